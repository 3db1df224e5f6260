"""Outcomes: what the checkers found at each crash point, counted and shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Final

from vmbk.display import table
from vmbk.errors import InputError

if TYPE_CHECKING:
    import polars as pl

FILESYSTEM_STATES: Final = ("none", "clean", "replayed", "repaired", "damaged")
"""From good to bad; see `vmbk.consistency.ext4`."""

DATABASE_STATES: Final = ("none", "clean", "recovered", "lost", "corrupt")
"""From good to bad; see `vmbk.consistency.sqlite`."""

BOOT_STATES: Final = ("", "boots", "no-boot", "not tried")
"""The first where no boot was asked for; see `vmbk.consistency.boot`."""

COMMAND_STATES: Final = ("", "passed", "failed", "error")
"""The first where no command was named; see `vmbk.consistency.command`."""

LABELS: Final = ("application", "filesystem", "crash")
"""What is claimed of a recovery point, from most to least."""

FREEZES: Final = {
    "none": "crash",
    "freeze": "filesystem",
    "quiesce": "application",
    "forgotten": "application",
}
"""What was done to the machine before a snapshot, and the label that the snapshot then has."""

LADDER: Final = {
    "none": "nothing was there yet, and nothing was acknowledged",
    "clean": "file system and database were consistent as they lay",
    "replayed": "the file system replayed its journal",
    "recovered": "the database recovered by its log or journal",
    "repaired": "the file system had to be repaired; nothing acknowledged is missing",
    "lost": "the machine runs, and acknowledged commits are missing",
    "corrupt": "the database is corrupt",
    "damaged": "the file system is damaged",
    "no-boot": "the machine does not boot",
    "failed": "the user's own command did not pass",
}
"""Every outcome of a machine, from good to bad, and what it says: the worst that was found."""

_GOOD: Final = ("none", "clean", "replayed", "recovered")
_WILSON: Final = 1.959963984540054  # of a 95 % interval


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
        The crash model, ``"snapshot"``, or ``"image"`` for a disk that came from elsewhere, as from
        a restore.
    label : str
        One of `LABELS`: what would be claimed of a recovery point taken at this moment.
    freeze : str
        What was done to the machine before a snapshot, "" where nothing was.
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
    boot, command : str
        One of `BOOT_STATES` and of `COMMAND_STATES`.
    requests_since_flush : int
        Requests that change the disk, from its last flush to the cut.
    seconds_since_flush : float
        Time from the last flush to the cut; null where there was none.
    digest : str
        Of the disk's content, hex; "" where it is not known. Equal disks have equal digests.
    """

    capture: str
    index: int
    row: int
    model: str
    label: str
    freeze: str
    filesystem: str
    database: str
    commits_acknowledged: int
    commits_found: int
    commits_lost: int
    seconds: float
    details: str
    boot: str = ""
    command: str = ""
    requests_since_flush: int = 0
    seconds_since_flush: float | None = None
    digest: str = ""

    @property
    def outcome(self) -> str:
        """The worst that was found: a key of `LADDER`."""
        found = {"none", self.filesystem, self.database, self.boot}
        if self.command in ("failed", "error"):
            found.add("failed")
        return max(found & set(LADDER), key=list(LADDER).index)

    @property
    def consistent(self) -> bool:
        """Whether a machine would come up by itself with every acknowledged commit."""
        return self.outcome in _GOOD

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"outcome": self.outcome}

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
        """One row per state, with the columns of `Outcome` and ``outcome``, a key of `LADDER`."""
        import polars as pl

        kinds = {"str": pl.String, "int": pl.Int64, "float": pl.Float64}
        schema = {f.name: kinds[str(f.type).split()[0]] for f in fields(Outcome)}
        schema["outcome"] = pl.String
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
            **self._others(),
        }

    def _others(self) -> dict[str, dict[str, int]]:
        """What a boot and the user's own command found, where there was one."""
        found = {
            "boot": Counter(o.boot for o in self.outcomes if o.boot),
            "command": Counter(o.command for o in self.outcomes if o.command),
        }
        return {name: dict(counts) for name, counts in found.items() if counts}

    def _repr_html_(self) -> str:
        title = f"{len(self)} crash states, {self.commits_lost} acknowledged commits lost"
        return table(title, ("file system", "database", "states"), self.counts)


def rates(frame: pl.DataFrame, by: Sequence[str] = ("label",)) -> pl.DataFrame:
    """How often each outcome was found, with what that says of its probability.

    States in which there was nothing yet (``none``) are left out.

    Parameters
    ----------
    frame : polars.DataFrame
        Outcomes, as of `OutcomeTable.frame`.
    by : sequence of str
        Columns to tell apart.

    Returns
    -------
    polars.DataFrame
        The columns of ``by``, then ``outcome``, ``states``, ``of`` (all states of the group),
        ``share``, and ``low`` and ``high``: Wilson's interval of the share at 95 %, as if states
        were drawn independently. Outcomes that nowhere occur are left out; one that occurs
        anywhere has a row in every group.

    Raises
    ------
    InputError
        If a column is missing.
    """
    import polars as pl

    names = list(by)
    missing = [name for name in (*names, "outcome") if name not in frame.columns]
    if missing:
        raise InputError(f"these are no outcomes: they lack {', '.join(missing)}")
    judged = frame.filter(pl.col("outcome") != "none")
    found = set(judged["outcome"])
    seen = pl.DataFrame({"outcome": [name for name in LADDER if name in found]})
    seen = seen.cast(pl.String)
    groups = judged.group_by(names, maintain_order=True).agg(of=pl.len().cast(pl.Int64))
    counts = judged.group_by(*names, "outcome").agg(states=pl.len().cast(pl.Int64))
    n, p, z = pl.col("of"), pl.col("share"), _WILSON
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)).sqrt()
    return (
        groups.join(seen, how="cross", maintain_order="left_right")
        .join(counts, on=[*names, "outcome"], how="left", nulls_equal=True, maintain_order="left")
        .with_columns(pl.col("states").fill_null(0))
        .with_columns(share=pl.col("states") / pl.col("of"))
        .with_columns(low=(middle - half).clip(0, 1), high=(middle + half).clip(0, 1))
        .select(*names, "outcome", "states", "of", "share", "low", "high")
    )
