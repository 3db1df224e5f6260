"""The laboratory: cut the power of a capture, judge what is left, count the outcomes."""

from __future__ import annotations

import os
import re
import tempfile
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.consistency.checkers import CheckContext
from vmbk.consistency.crash import CrashPoint, crash_points, crash_states
from vmbk.consistency.ext4 import E2FSCK, Ext4Checker
from vmbk.consistency.outcome import Outcome, OutcomeTable
from vmbk.consistency.scratch import copy_image
from vmbk.consistency.sqlite import DEBUGFS, DatabaseSpec, DatabaseVerdict, Invariant, SqliteChecker
from vmbk.errors import InputError

if TYPE_CHECKING:
    from vmbk.trace.table import Trace

TIMEOUT_S: Final = 120.0
"""Seconds for one program on one state; a check of a capture of 64 MiB takes some milliseconds."""

SHIPPED_DATABASES: Final = {
    "ext4-sqlite": DatabaseSpec("/data.db", invariant=Invariant("accounts", "balance", 100_000)),
}
"""What the recipes in ``vmbk.trace.capture`` leave on their disks, by the recipe's name."""

_COMMIT: Final = re.compile(r"commit (\d{1,18})", re.ASCII)
_MADE: Final = ("mkfs done", "mounted")


@dataclass(frozen=True, eq=False)
class CaptureMarks:
    """What the marks of a capture say about the workload.

    Parameters
    ----------
    commit_rows : ndarray of int64, shape (n,)
        Rows of the marks ``commit N``, ascending.
    commits : ndarray of int64, shape (n,)
        The numbers N: the workload was told that this commit is durable.
    made_row : int or None
        Row of the first mark after which there is a file system (``mkfs done`` or ``mounted``);
        None where the capture has no such mark.
    """

    commit_rows: NDArray[np.int64]
    commits: NDArray[np.int64]
    made_row: int | None

    @classmethod
    def read(cls, trace: Trace) -> CaptureMarks:
        """The marks of a trace."""
        marks = trace.marks()
        commits = [(row, int(m[1])) for row, label in marks if (m := _COMMIT.fullmatch(label))]
        made = [row for row, label in marks if label in _MADE]
        rows, numbers = np.array(commits, np.int64).reshape(-1, 2).T
        return cls(rows, numbers, made[0] if made else None)

    def context(self, row: int, folder: Path, timeout_s: float = TIMEOUT_S) -> CheckContext:
        """What is known when the requests before ``row`` have happened."""
        acknowledged = self.commits[: np.searchsorted(self.commit_rows, row)]
        made = None if self.made_row is None else self.made_row < row
        # Nothing can be committed before there is a file system.
        return CheckContext(folder, True if len(acknowledged) else made, acknowledged, timeout_s)


def crash_test(
    trace: Trace,
    *,
    model: str = "flush",
    states: int | None = 8,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    database: DatabaseSpec | None = None,
    volume: int | None = None,
    folder: Path | None = None,
) -> OutcomeTable:
    """Cut the power at points of a capture and judge what each cut leaves.

    Each disk is built, its journal replayed and its file system checked by e2fsck, its database
    recovered and checked by SQLite, and the commits that were acknowledged before the cut are
    counted, all on scratch copies, without root and without a mount.

    Parameters
    ----------
    trace : Trace
        A capture of an ext4 file system, with payloads.
    model : str
        ``"flush"`` or ``"request"``; see `vmbk.consistency.crash`.
    states : int, optional
        How many states at most; all where None.
    seed : int
        Seed of the sample of states.
    workers : int, optional
        How many states are checked at once; as many as there are cores where absent.
    on_progress : callable, optional
        Called with 1 after each state, in the calling thread.
    database : DatabaseSpec, optional
        The database to judge; the one that the capture names where absent.
    volume : int, optional
        Id of the volume with the file system; needed where the trace has several.
    folder : Path, optional
        Where scratch copies are made; the system's temporary folder where absent.

    Returns
    -------
    OutcomeTable
        In order of row.

    Raises
    ------
    InputError
        If an argument is out of range, or the trace has no payloads.
    ToolMissingError
        If e2fsck or debugfs is not installed.
    StorageError
        If the scratch space is full.
    """
    count = workers if workers is not None else len(os.sched_getaffinity(0))
    if count < 1:
        raise InputError(f"{count} workers: at least 1 is needed")
    points = crash_points(trace, model, states=states, seed=seed, volume=volume)
    states_built = crash_states(trace, points, volume=volume, folder=folder)  # a wrong trace first
    spec = database or capture_database(trace)
    _find_tools()
    marks = CaptureMarks.read(trace)
    name = capture_name(trace)
    waiting: deque[Future[Outcome]] = deque()
    outcomes: list[Outcome] = []

    def collect() -> None:
        outcomes.append(waiting.popleft().result())
        if on_progress is not None:
            on_progress(1)

    with (
        tempfile.TemporaryDirectory(prefix="vmbk-check-", dir=folder) as scratch,
        ThreadPoolExecutor(count) as pool,
        closing(states_built) as built,
    ):
        for state in built:
            copy = Path(scratch) / f"state-{state.point.index}.img"
            state.copy_to(copy)
            context = marks.context(state.point.row, Path(scratch))
            waiting.append(pool.submit(_judge, copy, context, spec, name, state.point))
            if len(waiting) > count:  # one copy waits while the others are checked
                collect()
        while waiting:
            collect()
    return OutcomeTable(tuple(outcomes))


def check_image(
    image: str | os.PathLike[str],
    trace: Trace | None = None,
    *,
    row: int | None = None,
    database: DatabaseSpec | None = None,
    folder: Path | None = None,
) -> Outcome:
    """Judge a disk that came from elsewhere, as from a restore, by the same checkers.

    Parameters
    ----------
    image : path
        A raw image; it is not touched, a scratch copy is.
    trace : Trace, optional
        The capture that was replayed onto the disk: it tells which commits were acknowledged.
    row : int, optional
        How many of the capture's requests had happened when the disk was backed up; all where
        absent.
    database : DatabaseSpec, optional
        The database to judge; the one that the capture names where absent.
    folder : Path, optional
        Where the scratch copy is made; the system's temporary folder where absent.

    Raises
    ------
    NotFoundError
        If there is no such image.
    InputError
        If ``row`` lies outside the trace.
    ToolMissingError
        If e2fsck or debugfs is not installed.
    StorageError
        If the scratch space is full.
    """
    length = len(trace) if trace is not None else 0
    row = length if row is None else row
    if not 0 <= row <= length:
        raise InputError(f"row {row} of a trace of {length} requests")
    spec = database or (capture_database(trace) if trace is not None else None)
    _find_tools()
    with tempfile.TemporaryDirectory(prefix="vmbk-check-", dir=folder) as scratch:
        context = CheckContext(Path(scratch), timeout_s=TIMEOUT_S)
        if trace is not None:
            context = CaptureMarks.read(trace).context(row, Path(scratch))
        copy = Path(scratch) / "disk.img"
        copy_image(Path(image), copy)
        capture = capture_name(trace) if trace is not None else ""
        return _judge(copy, context, spec, capture, CrashPoint(0, row, "image"))


def capture_name(trace: Trace) -> str:
    """Name of the recipe that a trace was captured with, "" where it says none."""
    return str(trace.provenance.get("recipe", ""))


def capture_database(trace: Trace) -> DatabaseSpec | None:
    """The database of a trace that was captured with one of vmbk's own recipes, if it has one."""
    return SHIPPED_DATABASES.get(capture_name(trace))


def _find_tools() -> None:
    """Fail before the first state rather than at it."""
    for tool in (E2FSCK, DEBUGFS):
        tool.find()


def _judge(
    image: Path,
    context: CheckContext,
    database: DatabaseSpec | None,
    capture: str,
    point: CrashPoint,
) -> Outcome:
    """Run the checkers on a scratch copy and remove it."""
    filesystem = Ext4Checker().check(image, context)
    if database is None:
        found = DatabaseVerdict("sqlite", "none", "the capture names no database")
    else:
        found = SqliteChecker(database).check(image, context)
    image.unlink()
    return Outcome(
        capture=capture,
        index=point.index,
        row=point.row,
        model=point.model,
        filesystem=filesystem.state,
        database=found.state,
        commits_acknowledged=len(context.acknowledged),
        commits_found=found.commits_found,
        commits_lost=found.commits_lost,
        seconds=filesystem.seconds + found.seconds,
        details="\n".join(f"{v.checker}: {v.detail}" for v in (filesystem, found)),
    )
