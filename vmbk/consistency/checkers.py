"""What a checker is: it judges the image of a disk after a power cut, and says why.

A checker runs the real tool of what it checks (e2fsck, SQLite) on a scratch copy, needs neither
root nor a mount, is bounded in time, and never lets a hostile image become a traceback.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import StorageError, ToolMissingError

OUTPUT_KEPT: Final = 4096
"""Bytes of a tool's output that are held: a verdict keeps the end, where the conclusion stands."""

_SEARCH_PATH: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where e2fsprogs lives on Debian; not on the PATH of an ordinary user."""

_ENVIRONMENT: Final = {
    "LC_ALL": "C",
    "TZ": "UTC",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "E2FSCK_CONFIG": os.devnull,  # the machine's e2fsck.conf must not change a verdict
    "DEBUGFS_PAGER": "__none__",
}


@dataclass(frozen=True)
class Tool:
    """A program that a checker runs, and the Debian package that has it."""

    name: str
    package: str

    def find(self) -> str:
        """Path of the program.

        Raises
        ------
        ToolMissingError
            If it is not installed; the hint names the package.
        """
        places = [*os.environ.get("PATH", os.defpath).split(os.pathsep), *_SEARCH_PATH]
        found = shutil.which(self.name, path=os.pathsep.join(places))
        if found is None:
            raise ToolMissingError(self.name, self.package)
        return found


@dataclass(frozen=True)
class ToolRun:
    """How a program ended.

    Parameters
    ----------
    code : int
        Exit code; minus the number of the signal that ended it.
    output : str
        Standard output and error together: their last `OUTPUT_KEPT` bytes, or their first where
        the caller asked for those.
    timed_out : bool
        It was ended because its time was up.
    """

    code: int
    output: str
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """Exit code 0, in time."""
        return self.code == 0 and not self.timed_out


def run_tool(
    tool: Tool,
    arguments: Sequence[str],
    *,
    folder: Path,
    timeout_s: float,
    environment: dict[str, str] | None = None,
    keep: str = "tail",
) -> ToolRun:
    """Run a program in ``folder`` without a shell, in a fixed environment, bounded in time.

    Of its output only a part is ever held: a damaged image can make a tool write without end.

    Parameters
    ----------
    arguments : sequence of str
        Each is one argument.
    timeout_s : float
        Seconds after which it is killed.
    environment : dict of str, optional
        Variables to add to the fixed ones.
    keep : str
        ``"tail"`` or ``"head"`` of the output.

    Raises
    ------
    ToolMissingError
        If the program is not installed.
    StorageError
        If the operating system cannot start it.
    """
    deadline = monotonic() + timeout_s
    try:
        process = subprocess.Popen(
            [tool.find(), *arguments], cwd=folder, env={**_ENVIRONMENT, **(environment or {})},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        raise StorageError(f"{tool.name} cannot be run: {error.strerror or error}") from error
    with process:
        assert process.stdout is not None
        try:
            kept, ended = _read_until(process.stdout.fileno(), deadline, keep)
            if ended:
                # Its output is closed: it is about to exit, and waiting costs nothing.
                process.wait(max(deadline - monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            if process.poll() is None:
                process.kill()
    return ToolRun(process.returncode, kept.decode("utf-8", "replace"), timed_out=not ended)


def _read_until(pipe: int, deadline: float, keep: str) -> tuple[bytes, bool]:
    """Read a pipe to its end; a part of what came, and whether the end came in time."""
    kept = b""
    waiting = select.poll()
    waiting.register(pipe, select.POLLIN)
    while waiting.poll(max(deadline - monotonic(), 0.0) * 1000):
        chunk = os.read(pipe, 1 << 16)
        if not chunk:
            return kept, True
        kept = (kept + chunk)[:OUTPUT_KEPT] if keep == "head" else (kept + chunk)[-OUTPUT_KEPT:]
    return kept, False


def _no_commits() -> NDArray[np.int64]:
    return np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class CheckContext:
    """What is known about the moment at which the image was cut.

    Parameters
    ----------
    folder : Path
        A directory for scratch files; several checkers may share it.
    filesystem_made : bool or None
        Whether making the file system had finished; None where nobody knows.
    acknowledged : ndarray of int64, shape (n,)
        Numbers of the commits that were acknowledged before the cut.
    timeout_s : float
        Seconds after which one program, or one pass over a database, is given up.
    others : mapping of str to Path
        Scratch copies of the machine's other volumes, at the same cut, by the volume's name.
    """

    folder: Path
    filesystem_made: bool | None = None
    acknowledged: NDArray[np.int64] = field(default_factory=_no_commits)
    timeout_s: float = 120.0
    others: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a checker found.

    Parameters
    ----------
    checker : str
        Its name.
    state : str
        One of the checker's ``states``.
    detail : str
        One line of why.
    output : str
        The end of what the tool said, "" where it had nothing to say.
    seconds : float
        What the check took.
    """

    checker: str
    state: str
    detail: str = ""
    output: str = ""
    seconds: float = 0.0


@runtime_checkable
class Checker(Protocol):
    """Judges an image."""

    @property
    def name(self) -> str:
        """Short name, such as ``"ext4"``."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The programs it needs."""

    @property
    def states(self) -> tuple[str, ...]:
        """Every state it can give, from good to bad."""

    def check(self, image: Path, context: CheckContext) -> Verdict:
        """Judge a scratch copy.

        Parameters
        ----------
        image : Path
            A scratch copy of the disk. The checker may change it; the one of a file system leaves
            it as a mount after the power cut would: with its journal replayed.
        context : CheckContext

        Raises
        ------
        ToolMissingError
            If a program is not installed.
        StorageError
            If the scratch space is full or cannot be used.
        """
