"""The documents' worked examples, each computed anew by the model and compared.

What a document says is written here as data, with where it says so; what is compared with it comes
out of `vmbk.service.example_runs`: simulated scenarios, estimates of cost, policies, a real disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service import example_runs as runs
from vmbk.units import quoted

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Example:
    """One worked example.

    Attributes
    ----------
    number, name : str
        The name says what it is about; the number is short for it.
    title : str
    documented : Any
        What the document says, as plain values.
    source : str
        Where.
    compute : callable
        The model's answer, in the same form.
    note : str
        What else there is to know, such as a document that contradicts itself.
    """

    number: str
    name: str
    title: str
    documented: Any
    source: str
    compute: Callable[[], Any]
    note: str = ""


@dataclass(frozen=True)
class Outcome:
    """An example and what the model makes of it."""

    example: Example
    found: Any

    @property
    def agrees(self) -> bool:
        """Whether the model says what the document says."""
        return bool(self.found == self.example.documented)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        told = self.example
        return {
            "number": told.number, "name": told.name, "title": told.title,
            "documented": told.documented, "found": self.found, "agrees": self.agrees,
            "source": told.source, "note": told.note,
        }  # fmt: skip


@dataclass(frozen=True)
class Examples:
    """Examples that were computed.

    Attributes
    ----------
    outcomes : tuple of Outcome
    """

    outcomes: tuple[Outcome, ...]

    def __len__(self) -> int:
        return len(self.outcomes)

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self.outcomes)

    @property
    def agree(self) -> bool:
        """Whether all of them agree."""
        return all(outcome.agrees for outcome in self.outcomes)

    @property
    def frame(self) -> pl.DataFrame:
        """One row an example: ``number``, ``example`` (its name), ``title``, ``documented`` and
        ``found`` (as JSON), ``agrees``, ``source``, ``note``.
        """
        import polars as pl

        rows = [
            (e.number, e.name, e.title, json.dumps(e.documented), json.dumps(outcome.found),
             outcome.agrees, e.source, e.note)
            for outcome in self.outcomes for e in (outcome.example,)
        ]  # fmt: skip
        words = dict.fromkeys(("number", "example", "title", "documented", "found"), pl.String)
        schema = {**words, "agrees": pl.Boolean, "source": pl.String, "note": pl.String}
        return pl.DataFrame(rows, schema=schema, orient="row")

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "examples": [outcome.to_dict() for outcome in self.outcomes],
            "agree": self.agree,
        }

    def _repr_html_(self) -> str:
        rows = [
            (o.example.title, plain(o.example.documented), plain(o.found),
             "yes" if o.agrees else "no", o.example.source)
            for o in self.outcomes
        ]  # fmt: skip
        header = ("example", "documented", "found", "agrees", "source")
        return table("Worked examples of the documents", header, rows)


def plain(value: Any) -> str:
    """A value for people: ``a: 1, b: 2``."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')}: {plain(each)}" for key, each in value.items())
    if isinstance(value, list):
        nested = any(isinstance(each, list) for each in value)
        return ("; " if nested else " ").join(plain(each) for each in value)
    return (
        f"{value:,g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else value
    )


def run_examples(only: str | Iterable[str] | None = None) -> Examples:
    """Compute worked examples of the documents.

    Parameters
    ----------
    only : str or iterable of str, optional
        Names or numbers of examples; all by default.

    Returns
    -------
    Examples
        In the order of `EXAMPLES`.

    Raises
    ------
    InputError
        If there is no such example.
    """
    wanted = None if only is None else {only} if isinstance(only, str) else set(only)
    for name in wanted or ():
        if not any(name in (example.name, example.number) for example in EXAMPLES):
            raise InputError(
                f"there is no example {quoted(name)}",
                hint=f"one of {', '.join(example.name for example in EXAMPLES)}",
            )
    return Examples(
        tuple(
            Outcome(example, example.compute())
            for example in EXAMPLES
            if wanted is None or wanted & {example.name, example.number}
        )
    )


EXAMPLES: Final = (
    Example(
        "G1", "backup-types", "blocks that backups of three types send of the same changes",
        {"full": [10, 10, 10], "differential": [10, 4, 5], "incremental": [10, 4, 1]},
        "S4, backup types: blocks A1 to A10", runs.backup_types,
    ),
    Example(
        "G2", "shared-blocks", "blocks that three recovery points share",
        {"stored": [2, 3, 5], "left_as_they_expire": [5, 3]},
        "recovery points page", runs.shared_blocks,
        "What is left follows the page's rule and steps. Its two cases would free block 2 with the "
        "first point, which the second still needs, and keep the old block 3 after the second, "
        "which no point needs.",
    ),
    Example(
        "G3", "stored-granule", "what is stored of a change of 1 KB",
        {"stored_bytes": 16_384}, "recovery points page", runs.stored_granule,
    ),
    Example(
        "G4", "protected-size", "the size of a protected instance: 17 + 30 + 0 GB",
        {"2017": 47_000_000_000, "instant": 47_000_000_000},
        "S0, S1, S2: backup costs", runs.protected_size,
        "The largest disk is of 1023 GB in S1, of 32 TB in S0 and S2; it makes no difference.",
    ),
    Example(
        "G5", "snapshot-size", "five days of snapshots of 100 GB with 2 % of churn",
        {"standard": 10_000_000_000, "enhanced": 108_000_000_000},
        "Instant Restore page: cost", runs.snapshot_size,
    ),
    Example(
        "G6", "instance-price", "dollars a month for protected instances, by size",
        {"50 GB": 5.0, "51 GB": 10.0, "500 GB": 10.0, "501 GB": 20.0, "2000 GB": 40.0},
        "pricing of the launch, 2015; estimator", runs.instance_price,
    ),
    Example(
        "G7", "soft-delete-days", "soft delete of 60 days, undeleted on day 52",
        {"billed": 46, "free": 6}, "enhanced soft delete page", runs.soft_delete_days,
    ),
    Example(
        "G8", "months-of-31-days", "days for which twelve months keep a point",
        {"days": 372}, "Instant Restore page", runs.months_of_31_days,
    ),
    Example(
        "G9", "one-more-snapshot", "snapshots at once, by the days for which they are kept",
        {str(days): days + 1 for days in range(1, 6)},
        "Instant Restore page", runs.one_more_snapshot,
        "Now and then there are two more, where the daily clean-up is late.",
    ),
    Example(
        "G10", "start-within-two-hours", "100 machines scheduled at 02:00 run by 04:00",
        {"machines": 100, "started_from_2_to_4": 100}, "FAQ", runs.start_within_two_hours,
    ),
    Example(
        "G11", "job-states", "what a job's snapshot and transfer make of its state",
        [
            ["completed", "in progress", "InProgress"],
            ["completed", "skipped", "Completed"],
            ["completed", "completed", "Completed"],
            ["completed", "failed", "CompletedWithWarnings"],
            ["failed", "failed", "Failed"],
        ],
        "Extended Zones page: job states", runs.job_states,
    ),
    Example(
        "G12", "crash-fallback", "attempts at which an enhanced policy falls back to crash",
        {"crash_attempts": [4, 6, 8]}, "restore points page", runs.crash_fallback,
    ),
    Example(
        "G13", "secondary-region", "age of the newest point in the other region at most",
        {"hours": 36.0}, "restore page: 24 h between backups and 12 h", runs.secondary_region,
    ),
    Example(
        "G14", "vault-restore", "a restore of 2 TB from the vault at 30 MB/s",
        {"hours": 18.5}, "FAQ: vault restore", runs.vault_restore,
        "The FAQ says about 20 h for 16 TB in segments of 2 TB, which are copied side by side.",
    ),
    Example(
        "G15", "excluded-disks", "what excluding two of three equal disks saves",
        {"saved_percent": 66.7}, "cost estimator: excluded disks", runs.excluded_disks,
    ),
    Example(
        "G16", "churn-share", "a churn of 10 GB of 200 GB is 5 %",
        {"first_bytes": 200_000_000_000, "later_bytes": 10_000_000_000, "percent": 5.0},
        "cost estimator: churn", runs.churn_share,
    ),
    Example(
        "G17", "snapshot-days", "days of snapshots at most, by hours between backups",
        {"4 h": 17, "6 h": 22, "12 h": 30}, "enhanced policy page", runs.snapshot_days,
    ),
    Example(
        "G18", "churn-spread", "the same churn on four disks, on two and on one: shortest first",
        {"order": ["VM2", "VM3", "VM1"]}, "recovery points page", runs.churn_spread,
    ),
    Example(
        "G19", "identical-rewrite", "64 KiB written again with the same bytes, on a real disk",
        {"written_bytes": 65_536, "tracking_bytes": 65_536, "checksum_bytes": 0},
        "page ranges of blobs: what is written counts; S0, S1, S2: checksums",
        runs.identical_rewrite,
    ),
    Example(
        "G20", "deleted-snapshot", "deleting a snapshot makes the next job read all, only that one",
        {
            "modes": ["initial", "tracking", "fallback", "tracking", "tracking"],
            "read_bytes": [0, 0, 100_000_000_000, 0, 0],
        },
        "S0, S2: factors of backup performance", runs.deleted_snapshot,
    ),
)  # fmt: skip
"""All examples, in order."""
