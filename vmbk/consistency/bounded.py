"""A program in a process group of its own: bounded in time and output, nothing left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

from vmbk.consistency.checkers import OUTPUT_KEPT
from vmbk.errors import StorageError
from vmbk.units import quoted

TOOL_ENVIRONMENT: Final[Mapping[str, str]] = {
    "LC_ALL": "C",
    "TZ": "UTC",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
"""What a tool's environment is made of: the user's own must not change a verdict."""

_CHUNK: Final = 1 << 16
_DRAINED: Final = 16
"""Chunks read after a program has ended: what it started may write without end."""


@dataclass(frozen=True)
class BoundedRun:
    """How a program ended.

    Parameters
    ----------
    code : int
        Exit code; minus the number of the signal that ended it.
    output : str
        The end of its standard output and error, together.
    timed_out : bool
        It was ended because its time was up.
    seen : bool
        It wrote what it was watched for, and was ended because of that.
    """

    code: int
    output: str
    timed_out: bool = False
    seen: bool = False


def run_bounded(
    words: Sequence[str],
    *,
    folder: Path,
    timeout_s: float,
    environment: Mapping[str, str] = TOOL_ENVIRONMENT,
    stop_at: bytes = b"",
    kept: int = OUTPUT_KEPT,
    settle_s: float = 0.0,
) -> BoundedRun:
    """Run a program without a shell until it ends, its time is up, or it writes ``stop_at``.

    However it ends, every process of its group is then killed. One that has made a group of its
    own is not reached.

    Parameters
    ----------
    words : sequence of str
        The program's path and its arguments.
    folder : Path
        Where it runs.
    timeout_s : float
        Seconds after which it is killed.
    environment : mapping of str to str
        All variables that it sees.
    stop_at : bytes, optional
        What it is watched for; nothing where empty.
    kept : int
        Bytes of its output that are held; of more, the last ones.
    settle_s : float
        Seconds for which its output is waited to be closed after its group was killed: then all
        that wrote to it are gone, those too that a kernel was still busy for.

    Raises
    ------
    StorageError
        If the operating system cannot start it.
    """
    deadline = monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            list(words), cwd=folder, env=dict(environment), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except (OSError, ValueError) as error:  # ValueError: a NUL in an argument
        why = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"{quoted(words[0])} cannot be run: {why}") from error
    output = _Output(process, stop_at, max(kept, len(stop_at)))
    ended = False
    try:
        ended = output.follow(deadline)
    finally:
        # Not reaped yet, so that its number is still that of its group.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if settle_s:
            output.settle(monotonic() + settle_s)
        output.close()
    text = output.tail[-kept:].decode("utf-8", "replace")
    return BoundedRun(process.returncode, text, not ended and not output.seen, output.seen)


class _Output:
    """What a process writes, of which the end is held, and whether it has ended."""

    def __init__(self, process: subprocess.Popen[bytes], stop_at: bytes, kept: int) -> None:
        assert process.stdout is not None
        self._file = process.stdout
        self._pipe = process.stdout.fileno()
        self._ended = os.pidfd_open(process.pid)
        self._stop_at, self._kept = stop_at, kept
        self._open = True
        self.tail = b""
        self.seen = False

    def follow(self, deadline: float) -> bool:
        """Read until it ends, has written what it is watched for, or the time is up."""
        waiting = select.poll()
        waiting.register(self._pipe, select.POLLIN)
        waiting.register(self._ended, select.POLLIN)
        while not self.seen:
            left = deadline - monotonic()
            ready = dict(waiting.poll(left * 1000)) if left > 0 else {}
            if not ready:
                return False
            if self._ended in ready:
                self._drain()
                return True
            self._read()
            if not self._open:
                waiting.unregister(self._pipe)
        return False

    def _read(self) -> None:
        chunk = os.read(self._pipe, _CHUNK)
        self._open = bool(chunk)
        window = self.tail + chunk
        self.seen = bool(self._stop_at) and self._stop_at in window
        self.tail = window[-self._kept :]

    def _drain(self) -> None:
        """Read what lies in the pipe of a process that has ended."""
        os.set_blocking(self._pipe, False)
        with suppress(BlockingIOError):
            for _ in range(_DRAINED):
                if self._open and not self.seen:
                    self._read()

    def settle(self, deadline: float) -> None:
        """Read until nobody can write any more, or the time is up."""
        waiting = select.poll()
        waiting.register(self._pipe, select.POLLIN)
        while self._open and waiting.poll(max(deadline - monotonic(), 0.0) * 1000):
            with suppress(BlockingIOError):
                self._read()

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self._ended)
        self._file.close()
