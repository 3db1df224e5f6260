"""The vault in its own laboratory: cut the power of the disk that a vault lies on, and open it.

Every state is built on a scratch copy, its journal is replayed and its file system checked by
e2fsck, and then `VaultChecker` opens the vault and restores every point.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmbk.consistency.crash import CrashPoint, CrashState, crash_points, crash_states
from vmbk.consistency.ext4 import Ext4Checker
from vmbk.consistency.laboratory import TIMEOUT_S
from vmbk.consistency.scratch import judge_states, scratch_folder
from vmbk.consistency.vault_checker import VaultChecker, VaultMarks
from vmbk.display import table
from vmbk.errors import InputError

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace.table import Trace


@dataclass(frozen=True)
class VaultOutcome:
    """What was found on one disk with a vault.

    Parameters
    ----------
    index : int
        Number of the state among those of the model.
    row : int
        The moment of the cut: requests of the capture that had happened.
    model : str
        The crash model.
    filesystem : str
        State of `vmbk.consistency.ext4`.
    vault : str
        State of `vmbk.consistency.vault_checker`.
    points_acknowledged, points_found, points_lost : int
        Points that must be there; that are and restore; that must be there and are not.
    resumed : bool
        Whether the vault was used further.
    seconds : float
        What the checks took.
    details : str
        Why, in one line per checker.
    """

    index: int
    row: int
    model: str
    filesystem: str
    vault: str
    points_acknowledged: int
    points_found: int
    points_lost: int
    resumed: bool
    seconds: float
    details: str


@dataclass(frozen=True)
class VaultOutcomes:
    """The outcomes of a crash test of a vault, in the order of their index."""

    outcomes: tuple[VaultOutcome, ...]

    def __len__(self) -> int:
        return len(self.outcomes)

    def __iter__(self) -> Iterator[VaultOutcome]:
        return iter(self.outcomes)

    @property
    def counts(self) -> list[tuple[str, str, str, int]]:
        """How often each pair of file system and vault was found in each model."""
        found = Counter((o.model, o.filesystem, o.vault) for o in self.outcomes)
        return [(*key, found[key]) for key in sorted(found)]

    @property
    def points_lost(self) -> int:
        """Acknowledged points that are missing, over all states."""
        return sum(o.points_lost for o in self.outcomes)

    @property
    def consistent(self) -> bool:
        """Whether in every state all that was acknowledged restores."""
        return all(o.vault in ("none", "opens") for o in self.outcomes)

    def frame(self) -> pl.DataFrame:
        """One row per state, with the columns of `VaultOutcome`."""
        import polars as pl

        return pl.DataFrame([asdict(o) for o in self.outcomes])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        names = ("model", "filesystem", "vault", "count")
        return {
            "states": len(self),
            "outcomes": [dict(zip(names, row, strict=True)) for row in self.counts],
            "points_lost": self.points_lost,
            "consistent": self.consistent,
        }

    def _repr_html_(self) -> str:
        title = f"{len(self)} crash states of a vault, {self.points_lost} acknowledged points lost"
        return table(title, ("model", "file system", "vault", "states"), self.counts)


def vault_crash_test(
    trace: Trace,
    *,
    model: str = "flush",
    states: int | None = None,
    seed: int = 0,
    resume: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    folder: Path | None = None,
) -> VaultOutcomes:
    """Cut the power of a disk with a vault on it, and judge what each cut leaves.

    Parameters
    ----------
    trace : Trace
        A capture of `vmbk.consistency.vault_workload` on ext4, with payloads.
    model : str
        One of `vmbk.consistency.crash.MODELS`.
    states : int, optional
        How many states at most; all where None.
    seed : int
        Seed of the sample of states.
    resume : int
        In how many of the states, evenly spread, the vault is used further: a new backup, and a
        check of every byte.
    workers : int, optional
        How many states are checked at once; as many as there are cores where absent.
    on_progress : callable, optional
        Called with 1 after each state, in the calling thread.
    folder : Path, optional
        Where scratch copies are made; the system's temporary folder where absent.

    Returns
    -------
    VaultOutcomes

    Raises
    ------
    InputError
        If an argument is out of range, the trace has no payloads, or its marks tell of no vault.
    ToolMissingError
        If e2fsck or debugfs is not installed.
    StorageError
        If the scratch space is full.
    """
    count = workers if workers is not None else len(os.sched_getaffinity(0))
    if count < 1:
        raise InputError(f"{count} workers: at least 1 is needed")
    if resume < 0:
        raise InputError(f"{resume} states in which the vault is used further: at least 0 are")
    marks = VaultMarks.read(trace)
    if marks.vault_row is None:
        raise InputError(
            "the trace tells of no vault", hint="use the capture `vault`, or one of its workload"
        )
    points = crash_points(trace, model, states=states, seed=seed)
    if folder is None:
        folder = scratch_folder((count + 2) * sum(v.size or 0 for v in trace.volumes))
    built = crash_states(trace, points, folder=folder)
    checkers = {again: VaultChecker(marks, resume=again) for again in (False, True)}
    for tool in (*Ext4Checker().tools, *checkers[False].tools):
        tool.find()
    every = {points[i * len(points) // resume].index for i in range(min(resume, len(points)))}

    def judge(state: CrashState, copies: Mapping[str, Path], place: Path) -> VaultOutcome:
        (image,) = copies.values()
        return _judge(image, place, marks, checkers[state.point.index in every], state.point)

    with closing(built):
        outcomes = judge_states(built, judge, workers=count, folder=folder, on_progress=on_progress)
    return VaultOutcomes(tuple(sorted(outcomes, key=lambda o: o.index)))


def _judge(
    image: Path, folder: Path, marks: VaultMarks, checker: VaultChecker, point: CrashPoint
) -> VaultOutcome:
    """Run the checkers on a scratch copy."""
    context = marks.context(point.row, folder, TIMEOUT_S)
    filesystem = Ext4Checker().check(image, context)
    found = checker.check(image, context)
    return VaultOutcome(
        index=point.index,
        row=point.row,
        model=point.model,
        filesystem=filesystem.state,
        vault=found.state,
        points_acknowledged=int((context.acknowledged > 0).sum()),
        points_found=found.points_found,
        points_lost=found.points_lost,
        resumed=found.resumed,
        seconds=filesystem.seconds + found.seconds,
        details="\n".join(f"{v.checker}: {v.detail}" for v in (filesystem, found)),
    )
