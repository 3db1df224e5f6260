"""What a snapshot with scripts is asked for and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from vmbk.consistency.script_codes import CODES, Behaviour, behaviour_of
from vmbk.consistency.script_config import ScriptConfig
from vmbk.display import table
from vmbk.units import format_duration

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")

STATES: Final = ("completed", "completed with warnings", "failed")
"""What becomes of the job."""

LABELS: Final = ("application", "filesystem", "crash")
"""What the recovery point claims to be, from good to bad; None where there is none."""


@dataclass(frozen=True)
class Attempt:
    """What is known of the backup, of which the fall back to a crash-consistent point depends.

    Parameters
    ----------
    disks : int
        How many the machine has; only a single one can fall back.
    retry : int
        How often the backup was tried before.
    managed : bool
        The disks are managed disks.
    crash_allowed : bool
        The service allows a crash-consistent point.
    """

    disks: int = 2
    retry: int = 0
    managed: bool = True
    crash_allowed: bool = True

    def falls_back(self, behaviour: str | Behaviour = "documented") -> bool:
        """Whether a failure costs the label and not the backup."""
        if behaviour_of(behaviour).single_disk_falls_back:
            return self.disks == 1
        return self.disks == 1 and self.managed and self.crash_allowed and self.retry > 0


@dataclass(frozen=True)
class SnapshotEvent:
    """One step of a run.

    Parameters
    ----------
    name : str
        ``configuration``, ``checks``, ``pre-script``, ``freeze``, ``snapshot``, ``thaw`` or
        ``post-script``.
    code : int
        0 if it went well, else as in `CODES`.
    start_s, seconds : float
        When it began, since the run did, and what it took.
    detail : str
        One line.
    """

    name: str
    code: int
    start_s: float
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class SnapshotRun(Generic[T]):
    """What became of a snapshot with scripts.

    Parameters
    ----------
    snapshot : object or None
        What the caller's function gave. It is there, if it was taken, even where the job failed
        afterwards: such a snapshot is no recovery point and is the caller's to remove.
    label : str or None
        One of `LABELS`: what the recovery point claims to be; None where there is none.
    state : str
        One of `STATES`.
    code : int
        What is reported: 0 application-consistent, 1 file-system consistent, else the first
        failure in the order freeze, thaw, configuration, pre-script, post-script.
    codes : tuple of int
        All failures that are reported, in that order.
    events : tuple of SnapshotEvent
    config : ScriptConfig or None
        None where there was none, or none that could be used.
    behaviour : Behaviour
    """

    snapshot: T | None
    label: str | None
    state: str
    code: int
    codes: tuple[int, ...]
    events: tuple[SnapshotEvent, ...]
    config: ScriptConfig | None
    behaviour: Behaviour = field(repr=False)

    @property
    def taken(self) -> bool:
        """Whether a snapshot was taken at all."""
        return self.event("snapshot") is not None

    @property
    def frozen_s(self) -> float:
        """Seconds from the end of freezing to the end of thawing."""
        freeze, thaw = self.event("freeze"), self.event("thaw")
        if freeze is None or thaw is None or freeze.code:
            return 0.0
        return thaw.start_s + thaw.seconds - freeze.start_s - freeze.seconds

    def event(self, name: str) -> SnapshotEvent | None:
        """The step of a name; None if the run did not come to it."""
        return next((event for event in self.events if event.name == name), None)

    def frame(self) -> pl.DataFrame:
        """One row per step, with the columns of `SnapshotEvent`."""
        import polars as pl

        columns = {"name": pl.String, "code": pl.Int64, "start_s": pl.Float64,
                   "seconds": pl.Float64, "detail": pl.String}  # fmt: skip
        return pl.DataFrame([vars(event) for event in self.events], schema=columns)

    def _repr_html_(self) -> str:
        rows = (
            (event.name, event.code or "", format_duration(event.seconds), event.detail)
            for event in self.events
        )
        point = f"{self.label}-consistent" if self.label else "no recovery point"
        code = f"{self.code} {CODES[self.code].name}"
        return table(f"{point}, {self.state}, {code}", ("step", "code", "took", ""), rows)
