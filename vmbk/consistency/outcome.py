"""Outcomes: what the checkers found at each crash point, counted and shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from vmbk.display import table

if TYPE_CHECKING:
    import polars as pl

FILESYSTEM_STATES: Final = ("none", "clean", "replayed", "repaired", "damaged")
"""From good to bad; see `vmbk.consistency.ext4`."""

DATABASE_STATES: Final = ("none", "clean", "recovered", "lost", "corrupt")
"""From good to bad; see `vmbk.consistency.sqlite`."""


@dataclass(frozen=True)
class Outcome:
    """What the checkers found on one disk.

    Parameters
    ----------
    capture : str
        Name of the capture.
    index : int
        Number of the state among those of the model.
    row : int
        Requests of the capture that the disk holds.
    model : str
        The crash model, or ``"image"`` for a disk that came from elsewhere, as from a restore.
    filesystem : str
        One of `FILESYSTEM_STATES`.
    database : str
        One of `DATABASE_STATES`.
    commits_acknowledged, commits_found, commits_lost : int
        Commits that the workload was told are durable, that the database holds, and that were
        acknowledged and are missing.
    seconds : float
        What the checks took.
    details : str
        Why, in one line per checker.
    """

    capture: str
    index: int
    row: int
    model: str
    filesystem: str
    database: str
    commits_acknowledged: int
    commits_found: int
    commits_lost: int
    seconds: float
    details: str

    @property
    def consistent(self) -> bool:
        """Whether a machine would come up by itself with every acknowledged commit."""
        return self.filesystem in ("none", "clean", "replayed") and self.database in (
            "none",
            "clean",
            "recovered",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        rows = self.to_dict().items()
        return table("outcome", ("", "value"), rows)


@dataclass(frozen=True)
class OutcomeTable:
    """The outcomes of a crash test, in order of row."""

    outcomes: tuple[Outcome, ...]

    def __len__(self) -> int:
        return len(self.outcomes)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.outcomes)

    def __getitem__(self, index: int) -> Outcome:
        return self.outcomes[index]

    @property
    def counts(self) -> list[tuple[str, str, int]]:
        """How often each pair of file system and database was found, from good to bad."""
        found = Counter((o.filesystem, o.database) for o in self.outcomes)
        order = sorted(
            found, key=lambda p: (FILESYSTEM_STATES.index(p[0]), DATABASE_STATES.index(p[1]))
        )
        return [(*pair, found[pair]) for pair in order]

    @property
    def commits_lost(self) -> int:
        """Acknowledged commits that are missing, over all states."""
        return sum(o.commits_lost for o in self.outcomes)

    @property
    def consistent(self) -> bool:
        """Whether every state is; see `Outcome.consistent`."""
        return all(o.consistent for o in self.outcomes)

    def frame(self) -> pl.DataFrame:
        """One row per state, with the columns of `Outcome`."""
        import polars as pl

        kinds = {"str": pl.String, "int": pl.Int64, "float": pl.Float64}
        schema = {f.name: kinds[str(f.type)] for f in fields(Outcome)}
        return pl.DataFrame([o.to_dict() for o in self.outcomes], schema=schema)

    def to_dict(self) -> dict[str, Any]:
        """What ``vmbk crash --json`` prints."""
        return {
            "states": len(self),
            "outcomes": [
                {"filesystem": filesystem, "database": database, "count": count}
                for filesystem, database, count in self.counts
            ],
            "commits_lost": self.commits_lost,
            "consistent": self.consistent,
        }

    def _repr_html_(self) -> str:
        title = f"{len(self)} crash states, {self.commits_lost} acknowledged commits lost"
        return table(title, ("file system", "database", "states"), self.counts)
