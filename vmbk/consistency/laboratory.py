"""The laboratory: cut the power of a capture, judge what is left, count the outcomes."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.consistency.checkers import CheckContext, Verdict
from vmbk.consistency.crash import CrashPoint, crash_points, crash_states
from vmbk.consistency.machines import Machine, capture_machine, capture_name
from vmbk.consistency.outcome import FREEZES, Outcome, OutcomeTable
from vmbk.consistency.scratch import copy_image, judge_states, scratch_folder
from vmbk.consistency.sqlite import DatabaseSpec
from vmbk.consistency.states import changing_rows
from vmbk.errors import InputError
from vmbk.trace.schema import Flag, Op

if TYPE_CHECKING:
    from vmbk.consistency.command import CommandChecker
    from vmbk.trace.table import Trace

TIMEOUT_S: Final = 120.0
"""Seconds for one program on one state; a check of a capture of 64 MiB takes some milliseconds."""

SNAPSHOT: Final = "snapshot"
"""The model of the moments at which a capture's machine had a snapshot taken."""

_COMMIT: Final = re.compile(r"commit (\d{1,18})", re.ASCII)
_HISTORY: Final = re.compile(r"pgbench (\d{1,18})", re.ASCII)
_SNAPSHOT: Final = re.compile(r"(?:snapshot \d{1,18} ([a-z]{1,20})|frozen \d{1,18})", re.ASCII)
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
    installed_row : int or None
        Row of the mark ``installed``: from there on the machine can be booted. None where the
        capture has no such mark.
    history : tuple of (int, int)
        Rows of the marks ``pgbench N``, and N.
    snapshots : tuple of (int, str)
        Rows of the marks ``snapshot N MODE`` and ``frozen N``, and the mode, of `FREEZES`.
    """

    commit_rows: NDArray[np.int64]
    commits: NDArray[np.int64]
    made_row: int | None
    installed_row: int | None = None
    history: tuple[tuple[int, int], ...] = ()
    snapshots: tuple[tuple[int, str], ...] = ()

    @classmethod
    def read(cls, trace: Trace) -> CaptureMarks:
        """The marks of a trace."""
        marks = trace.marks()
        commits = [(row, int(m[1])) for row, label in marks if (m := _COMMIT.fullmatch(label))]
        made = [row for row, label in marks if label in _MADE]
        rows, numbers = np.array(commits, np.int64).reshape(-1, 2).T
        history = [(row, int(m[1])) for row, label in marks if (m := _HISTORY.fullmatch(label))]
        snapshots = [
            (row, m[1] or "freeze") for row, label in marks if (m := _SNAPSHOT.fullmatch(label))
        ]
        known = tuple((row, mode) for row, mode in snapshots if mode in FREEZES)
        installed = next((row for row, label in marks if label == "installed"), None)
        made_row = made[0] if made else None
        return cls(rows, numbers, made_row, installed, tuple(history), known)

    def context(
        self,
        row: int,
        folder: Path,
        timeout_s: float = TIMEOUT_S,
        others: Mapping[str, Path] | None = None,
    ) -> CheckContext:
        """What is known when the requests before ``row`` have happened."""
        acknowledged = self.commits[: np.searchsorted(self.commit_rows, row)]
        made = None if self.made_row is None else self.made_row < row
        # Nothing can be committed before there is a file system.
        return CheckContext(
            folder, True if len(acknowledged) else made, acknowledged, timeout_s, others or {}
        )

    def transactions(self, row: int) -> int:
        """Transactions of ``pgbench`` that were acknowledged before ``row``."""
        return max((n for at, n in self.history if at < row), default=0)


def snapshot_points(
    trace: Trace, *, states: int | None = None, seed: int = 0
) -> tuple[CrashPoint, ...]:
    """The moments at which a capture's machine had a snapshot taken, from its marks.

    Parameters
    ----------
    trace : Trace
    states : int, optional
        How many at most; all where absent.
    seed : int
        Seed of the sample.

    Raises
    ------
    InputError
        If the capture marks none.
    """
    found = CaptureMarks.read(trace).snapshots
    if not found:
        raise InputError(
            "the capture has no marks of snapshots",
            hint="use ext4-fsfreeze, ext4-sqlite-off or ext4-quiesce, or another crash model",
        )
    chosen = np.arange(len(found))
    if states is not None and states < len(found):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(found))[:states])
    return tuple(CrashPoint(int(i), found[i][0], SNAPSHOT) for i in chosen)


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
    boot: bool = False,
    command: Sequence[str] | None = None,
) -> OutcomeTable:
    """Cut the power at points of a capture and judge what each cut leaves.

    Each disk is built, the journal of its file system replayed and the file system checked by its
    own checker, its database recovered and checked by its own server, and the commits that were
    acknowledged before the cut are counted, all on scratch copies.

    Parameters
    ----------
    trace : Trace
        A capture, with payloads.
    model : str
        One of `vmbk.consistency.MODELS`; or ``"snapshot"``, the moments at which the capture says
        that a snapshot was taken.
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
        Id of the volume with the file system and the database; the one that the capture names
        where absent.
    folder : Path, optional
        Where disks and scratch copies are made; in memory where there is plenty, else in the
        system's temporary folder where absent.
    boot : bool
        Also boot each disk, which takes seconds.
    command : sequence of str, optional
        A program of one's own that judges each disk too; see `vmbk.consistency.CommandChecker`.

    Returns
    -------
    OutcomeTable
        In order of row.

    Raises
    ------
    InputError
        If an argument is out of range, or the trace has no payloads.
    ToolMissingError
        If a checker's program is not installed.
    StorageError
        If the scratch space is full.
    """
    count = workers if workers is not None else len(os.sched_getaffinity(0))
    if count < 1:
        raise InputError(f"{count} workers: at least 1 is needed")
    judge = _Judge.of(trace, database, volume, boot, command)
    if model == SNAPSHOT:
        points = snapshot_points(trace, states=states, seed=seed)
    else:
        points = crash_points(trace, model, states=states, seed=seed, volume=judge.volume)
    if folder is None:
        folder = scratch_folder((count + 2) * sum(v.size or 0 for v in trace.volumes))
    states_built = crash_states(trace, points, volume=judge.volume, folder=folder)
    judge.require_tools()
    with closing(states_built):
        outcomes = judge_states(
            states_built,
            lambda state, copies, place: judge.judge(
                copies, place, state.point, f"{state.digest:016x}"
            ),
            workers=count, folder=folder, on_progress=on_progress,
        )  # fmt: skip
    return OutcomeTable(tuple(sorted(outcomes, key=lambda o: (o.row, o.index))))


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
        If a checker's program is not installed.
    StorageError
        If the scratch space is full.
    """
    length = len(trace) if trace is not None else 0
    row = length if row is None else row
    if not 0 <= row <= length:
        raise InputError(f"row {row} of a trace of {length} requests")
    judge = _Judge.of(trace, database, None, False, None)
    judge.require_tools()
    with tempfile.TemporaryDirectory(prefix="vmbk-check-", dir=folder) as scratch:
        place = Path(scratch) / "state"
        place.mkdir()
        copy = place / "disk.img"
        copy_image(Path(image), copy)
        return judge.judge({judge.system: copy}, place, CrashPoint(0, row, "image"), "")


@dataclass(frozen=True, eq=False)
class _Judge:
    """All that is needed to judge the states of one capture."""

    capture: str
    machine: Machine
    marks: CaptureMarks
    system: str
    """Name of the volume that is judged first, as `CrashState.images` has it."""
    volume: int | None
    boot: bool
    command: tuple[str, ...] | None
    flushes: NDArray[np.int64]
    """Rows at which everything before them was durable."""
    changes: NDArray[np.int64]
    """Rows that change the disk."""
    times: NDArray[np.int64]
    """Nanoseconds of every row."""

    @classmethod
    def of(
        cls,
        trace: Trace | None,
        database: DatabaseSpec | None,
        volume: int | None,
        boot: bool,
        command: Sequence[str] | None,
    ) -> _Judge:
        """The judge of a capture, or of a disk of which nothing is known."""
        nothing = np.empty(0, np.int64)
        machine = capture_machine(trace) if trace is not None else Machine()
        if database is not None:
            machine = replace(machine, database=database)
        words = tuple(command) if command is not None else None
        if trace is None:
            marks = CaptureMarks(nothing, nothing, None)
            return cls("", machine, marks, "disk", None, boot, words, nothing, nothing, nothing)
        if volume is None and machine.system:
            volume = next((v.id for v in trace.volumes if v.name == machine.system), None)
        from vmbk.consistency.crash import system_volume

        judged = system_volume(trace, volume)
        requests = trace.requests
        forced = (requests.op == Op.WRITE) & (requests.flags & Flag.FUA != 0)
        return cls(
            capture_name(trace),
            machine,
            CaptureMarks.read(trace),
            judged.name,
            judged.id if len(trace.volumes) > 1 else volume,
            boot,
            words,
            np.flatnonzero((requests.op == Op.FLUSH) | forced),
            changing_rows(trace),
            np.asarray(requests.time_ns),
        )

    def require_tools(self) -> None:
        """Fail before the first state rather than at it."""
        self.machine.require_tools()
        if self.boot:
            from vmbk.consistency.boot import BootChecker
            from vmbk.trace.datasets import datasets

            if not self.machine.boots and self.capture in {d.name for d in datasets()}:
                raise InputError(
                    f"there is no system on the disk of {self.capture} to boot",
                    hint="use ext4-boot, or a capture of your own",
                )
            reason = BootChecker(self.machine.filesystem).usable()
            if reason:
                raise InputError(f"the disks cannot be booted here: {reason}")
        if self.command is not None:
            reason = self._commander().usable()
            if reason:
                raise InputError(reason)

    def judge(
        self, images: Mapping[str, Path], folder: Path, point: CrashPoint, digest: str
    ) -> Outcome:
        """Run the checkers on scratch copies."""
        image = images[self.system] if self.system in images else next(iter(images.values()))
        others = {name: path for name, path in images.items() if path != image}
        context = self.marks.context(point.row, folder, others=others)
        booted = commanded = ""
        verdicts: list[Verdict] = []
        installed = self.marks.installed_row
        if self.boot and installed is not None and point.row <= installed:
            booted = "not tried"
        elif self.boot:  # first, as the power cut left it; what is booted leaves the image alone
            from vmbk.consistency.boot import BootChecker

            verdicts.append(BootChecker(self.machine.filesystem).check(image, context))
            booted = verdicts[-1].state
        checker = self.machine.filesystem_checker()
        judged = [checker.check(path, context) for path in (image, *others.values())]
        filesystem = max(judged, key=lambda v: checker.states.index(v.state))
        verdicts += judged
        found = self.machine.check_database(image, context, self.marks.transactions(point.row))
        verdicts.append(found)
        if self.command is not None:
            verdicts.append(self._commander().check(image, context))
            commanded = verdicts[-1].state
        freeze = ""
        if point.model == SNAPSHOT:
            freeze = dict(self.marks.snapshots)[point.row]
        since, seconds = self._since_flush(point)
        return Outcome(
            capture=self.capture,
            index=point.index,
            row=point.row,
            model=point.model,
            label=FREEZES[freeze] if freeze else "crash",
            freeze=freeze,
            filesystem=filesystem.state,
            database=found.state,
            commits_acknowledged=len(context.acknowledged),
            commits_found=found.commits_found,
            commits_lost=found.commits_lost,
            seconds=sum(v.seconds for v in verdicts),
            details="\n".join(f"{v.checker}: {v.detail}" for v in verdicts),
            boot=booted,
            command=commanded,
            requests_since_flush=since,
            seconds_since_flush=seconds,
            digest=digest,
        )

    def _commander(self) -> CommandChecker:
        from vmbk.consistency.command import CommandChecker

        assert self.command is not None
        return CommandChecker(self.command)

    def _since_flush(self, point: CrashPoint) -> tuple[int, float | None]:
        """Changes, and seconds, between the last flush that was kept and the cut."""
        kept = min([point.durable, *(row for _, row in point.cuts)])
        at = int(np.searchsorted(self.flushes, kept)) - 1
        begin = int(self.flushes[at]) + 1 if at >= 0 else 0
        changes = np.searchsorted(self.changes, [begin, max(point.row, begin)])
        if at < 0 or not point.row:
            return int(changes[1] - changes[0]), None
        last = max(point.row - 1, begin - 1)
        return int(changes[1] - changes[0]), float(self.times[last] - self.times[begin - 1]) / 1e9
