"""qemu-storage-daemon: the process that records writes where no guest's own QEMU can."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from vmbk.errors import VmbkError
from vmbk.trace.capture.guest import find_program

STORAGE_DAEMON: Final = ("qemu-storage-daemon", "qemu-system-common")
_SETPRIV: Final = ("setpriv", "util-linux")
_READY_S: Final = 30.0
_STOP_S: Final = 60.0


def file_node(path: Path) -> dict[str, Any]:
    """A file as QEMU's lowest node.

    Flushes need not reach this machine's disk: a capture that dies is made again.
    """
    return {
        "driver": "file",
        "filename": str(path),
        "cache": {"direct": False, "no-flush": True},
        "discard": "unmap",
    }


def logging_node(name: str, file: dict[str, Any], log: dict[str, Any] | str) -> dict[str, Any]:
    """A node that hands every request on to ``file`` and records it in ``log``."""
    return {
        "driver": "blklogwrites",
        "node-name": name,
        "discard": "unmap",
        "detect-zeroes": "off",
        "log-sector-size": 512,
        "file": {"driver": "raw", "discard": "unmap", "detect-zeroes": "off", "file": file},
        "log": log,
    }


class StorageDaemon:
    """A running qemu-storage-daemon, as a context.

    Parameters
    ----------
    nodes : sequence of dict
        Block nodes, each after those it stands on.
    arguments : sequence of str
        Exports and servers.
    folder : Path
        For its process id and what it says.

    Raises
    ------
    ToolMissingError
        If it is not installed.
    VmbkError
        If it does not start, with what it said.
    """

    def __init__(
        self, nodes: Sequence[dict[str, Any]], arguments: Sequence[str], folder: Path
    ) -> None:
        daemon = str(find_program(*STORAGE_DAEMON))
        # Should this process be killed, the daemon goes with it.
        self._command = [str(find_program(*_SETPRIV)), "--pdeathsig", "TERM", daemon]
        for node in nodes:
            self._command += ["--blockdev", json.dumps(node)]
        self._ready = folder / "daemon.pid"
        self._said = folder / "daemon"
        self._command += [*arguments, "--pidfile", str(self._ready)]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> StorageDaemon:
        with self._said.open("wb") as output:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._folder,  # a socket's name may not be long
                # An interrupt from the keyboard is for us: what stands on the daemon goes first.
                start_new_session=True,
            )
        try:
            began = time.monotonic()
            while not (self._ready.exists() and self._ready.stat().st_size):
                if self._process.poll() is not None:
                    raise VmbkError(f"qemu-storage-daemon does not start: {self.said()}")
                if time.monotonic() - began > _READY_S:
                    raise VmbkError(f"qemu-storage-daemon was not ready within {_READY_S:g} s")
                time.sleep(0.005)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it; what it recorded is then whole."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        """The last of what it printed."""
        text = self._said.read_text(encoding="utf-8", errors="replace")
        return text.replace(str(self._folder), "").strip()[-1000:] or "it said nothing"
