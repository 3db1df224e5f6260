"""What a backup server keeps of its points, and what its runs and restores did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.pipeline.results import RestoredDisk
from vmbk.units import format_duration, format_size, quoted

if TYPE_CHECKING:
    import polars as pl

TIERS: Final = ("disk", "online")
"""Nearest first."""


def check_tier(tier: str) -> str:
    """The tier, if there is such a one; else `InputError`."""
    if tier not in TIERS:
        raise InputError(f"{quoted(tier)} is no tier", hint=f"it is {' or '.join(TIERS)}")
    return tier


@dataclass(frozen=True)
class TierPoint:
    """A point of a member at one tier. Sizes in bytes, sums over its disks.

    Attributes
    ----------
    member, tier : str
        Whose, and where: ``disk`` or ``online``.
    at_ns : int
        When it was made, in nanoseconds since the first midnight.
    content_ns : int
        What it holds: the member as it was then. Online that is the last disk point's time.
    consistency : str
        The label that the disk tier gave it.
    points : tuple of (str, str)
        Each disk and the recovery point in the tier's vault.
    scanned_bytes, changed_bytes, sent_bytes, stored_bytes : int
        As of a backup.
    """

    member: str
    tier: str
    at_ns: int
    content_ns: int
    consistency: str
    points: tuple[tuple[str, str], ...]
    scanned_bytes: int
    changed_bytes: int
    sent_bytes: int
    stored_bytes: int

    @classmethod
    def parse(cls, told: Any) -> TierPoint:
        """Read one from the ledger; `ValueError` for anything else."""
        if not isinstance(told, dict) or sorted(told) != sorted(cls.__dataclass_fields__):
            raise ValueError("a point has other fields")
        for name, value in told.items():
            kind = str if name in ("member", "tier", "consistency") else int
            if name != "points" and type(value) is not kind:
                raise ValueError(f"{name} is {quoted(value)}")
        points = told["points"]
        if told["tier"] not in TIERS or not isinstance(points, list):
            raise ValueError("a point has no tier, or no disks")
        for pair in points:
            if not isinstance(pair, list) or [type(part) for part in pair] != [str, str]:
                raise ValueError(f"a disk is {quoted(pair)}")
        return cls(**{**told, "points": tuple((disk, point) for disk, point in points)})


@dataclass(frozen=True)
class ServerRestore:
    """A finished restore from a backup server.

    Attributes
    ----------
    point : TierPoint
        What was restored; ``point.tier`` is where it came from.
    lost_ns : int
        Nanoseconds between what it holds and the time that was asked for.
    passed_over : tuple of str
        Points that were nearer or newer and could not be restored, with the reason.
    disks : tuple of RestoredDisk
        Raw images.
    """

    point: TierPoint
    lost_ns: int
    passed_over: tuple[str, ...]
    disks: tuple[RestoredDisk, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "point": asdict(self.point),
            "lost_ns": self.lost_ns,
            "passed_over": list(self.passed_over),
            "disks": [disk.to_dict() for disk in self.disks],
        }

    def _repr_html_(self) -> str:
        rows = [(d.name, format_size(d.size), d.digest, d.path) for d in self.disks]
        title = (
            f"Restore of {self.point.member} from the tier {self.point.tier}: "
            f"{format_duration(self.lost_ns / 1e9)} lost"
        )
        return table(title, ("disk", "size", "digest", "image"), rows)


@dataclass(frozen=True)
class ServerRun:
    """What a server did in some days.

    Attributes
    ----------
    points : tuple of TierPoint
        In the order in which they were made.
    until_ns : int
        When it ended.
    """

    points: tuple[TierPoint, ...]
    until_ns: int

    def worst_loss(self, tier: str, member: str | None = None) -> int:
        """The worst that a member can lose when only one tier is left, in nanoseconds.

        The largest age that the newest point's content reached, just before the next point, from
        the first point on; that is the recovery point objective which the tier really had.

        Raises
        ------
        InputError
            If the tier is none, or has no point.
        """
        check_tier(tier)
        worst = 0
        members = {p.member for p in self.points} if member is None else {member}
        for name in members:
            mine = [p for p in self.points if (p.member, p.tier) == (name, tier)]
            if not mine:
                raise InputError(f"the member {quoted(name)} has no point at the tier {tier!r}")
            ends = [p.at_ns for p in mine[1:]] + [self.until_ns]
            worst = max(worst, *(e - p.content_ns for p, e in zip(mine, ends, strict=True)))
        return worst

    def total(self, tier: str, attribute: str) -> int:
        """Sum of an attribute, such as ``sent_bytes``, over the points of a tier."""
        check_tier(tier)
        return sum(int(getattr(p, attribute)) for p in self.points if p.tier == tier)

    def frame(self) -> pl.DataFrame:
        """One row for each point."""
        import polars as pl

        rows = [{k: v for k, v in asdict(p).items() if k != "points"} for p in self.points]
        return pl.DataFrame(rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"points": [asdict(p) for p in self.points], "until_ns": self.until_ns}

    def _repr_html_(self) -> str:
        rows = []
        for tier in TIERS:
            count = sum(p.tier == tier for p in self.points)
            sizes = (self.total(tier, f"{k}_bytes") for k in ("changed", "sent", "stored"))
            worst = format_duration(self.worst_loss(tier) / 1e9) if count else "everything"
            rows.append((tier, count, *(format_size(size) for size in sizes), worst))
        header = ("tier", "points", "changed", "sent", "stored", "worst loss")
        return table("Backup server", header, rows)
