"""How many bytes the vault stores day by day, from the recovery points themselves.

The general form of `vmbk.service.stored`: any points with what each changed, kept by any calendar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from vmbk.errors import InputError
from vmbk.service.cost_items import MOST_DISK
from vmbk.service.cost_rules import billing_facts
from vmbk.service.points import NEVER, Kept
from vmbk.service.schedule import DAY_NS
from vmbk.units import quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]

MOST_DAYS: Final = 40_000
"""Of a computation day by day: more than a century."""


@dataclass(frozen=True)
class CostPoint:
    """One recovery point of a disk or machine.

    Parameters
    ----------
    day : int
        Days since the first of the scenario.
    used : int
        Bytes that a full copy has.
    changed : int
        Bytes that differ from the point before it, as was sent.
    expires : int, optional
        The first day on which it is gone; kept for ever unless given.
    """

    day: int
    used: int
    changed: int
    expires: int = NEVER

    def __post_init__(self) -> None:
        limits = ("day", MOST_DAYS), ("used", MOST_DISK), ("changed", MOST_DISK)
        for name, most in limits:
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise InputError(f"{name} {quoted(value)} of a point is not from 0 to {most:,}")
        if self.expires <= self.day:
            raise InputError(f"a point of day {self.day} cannot expire on day {self.expires}")


def stored_by_day(
    points: Sequence[CostPoint], days: int, overlap: str = "distinct", keep_latest: bool = True
) -> Int64s:
    """Bytes that the vault stores at the end of each day, from the points themselves.

    The oldest live point counts in full, each later one by the merged changes of all points after
    the live one before it, up to its own used bytes.

    Parameters
    ----------
    points : sequence of CostPoint
        By day, ascending; no two of one day.
    days : int
        Length of the result.
    overlap : str
        ``"distinct"``, ``"random"`` or ``"same"``: whether changes of several days hit the same.
    keep_latest : bool
        While protected, the latest point never expires.

    Returns
    -------
    numpy.ndarray of int64, shape (days,)

    Raises
    ------
    InputError
        If points do not ascend, a number is out of range, or all sizes pass 63 bits together.
    """
    if overlap not in billing_facts().named("overlap"):
        raise InputError(f"overlap {quoted(overlap)} is not one of distinct, random, same")
    if not 0 <= days <= MOST_DAYS:
        raise InputError(f"{quoted(days)} days are not from 0 to {MOST_DAYS:,}")
    at = np.array([point.day for point in points], np.int64)
    if (np.diff(at) <= 0).any():
        raise InputError("points must ascend by day, with no two on one day")
    if sum(point.used + point.changed for point in points) >= 1 << 63:
        raise InputError(f"{len(points):,} points hold more bytes than 63 bits can count")
    used = np.array([point.used for point in points], np.int64)
    ends = np.array([point.expires for point in points], np.int64)
    changed = np.array([min(point.changed, point.used) for point in points], np.int64)
    stored = np.zeros(days, np.int64)
    before: bytes | None = None
    total = 0
    for day in range(days):
        made = int(np.searchsorted(at, day, "right"))
        live = np.flatnonzero(ends[:made] > day)
        if keep_latest and made and (not len(live) or live[-1] != made - 1):
            live = np.append(live, made - 1)
        if live.tobytes() != before:
            before = live.tobytes()
            total = int(used[live[:1]].sum()) + _merged(live, used, changed, overlap)
        stored[day] = total
    return stored


def _merged(live: Int64s, used: Int64s, changed: Int64s, overlap: str) -> int:
    """Bytes that live points after the first hold of their own."""
    if len(live) < 2:
        return 0
    begin, most = live[:-1] + 1, used[live[1:]]
    until = changed[: live[-1] + 1]
    if overlap == "distinct":
        return int(np.minimum(most, np.add.reduceat(until, begin)).sum())
    if overlap == "same":
        return int(np.minimum(most, np.maximum.reduceat(until, begin)).sum())
    each = np.repeat(most, np.diff(live))
    part = np.minimum(until[begin[0] :], each)
    untouched = 1.0 - np.divide(part, each, out=np.zeros(len(each)), where=each > 0)
    kept = np.multiply.reduceat(untouched, begin - begin[0])
    return int(np.minimum(most, np.rint(most * (1.0 - kept)).astype(np.int64)).sum())


def points_of(kept: Kept, used: Sequence[int], changed: Sequence[int]) -> list[CostPoint]:
    """A machine's points of the vault, as the retention's calendar keeps them, with their bytes.

    Parameters
    ----------
    kept : Kept
        At most one point a day, as only one a day goes to the vault.
    used, changed : sequence of int
        Bytes of each point: of a full copy, and since the point before it.

    Returns
    -------
    list of CostPoint
        For `stored_by_day` with ``keep_latest=False``: `Kept` has settled that.

    Raises
    ------
    InputError
        If there are not as many numbers as points, or two points are of one day.
    """
    if not len(kept) == len(used) == len(changed):
        raise InputError(f"{len(kept):,} points with {len(used):,} and {len(changed):,} sizes")
    days = (kept.times // DAY_NS).tolist()
    gone = [
        NEVER if end == NEVER else max(end // DAY_NS, day + 1)
        for day, end in zip(days, kept.gone.tolist(), strict=True)
    ]
    return [
        CostPoint(day, full, new, end)
        for day, end, full, new in zip(days, gone, used, changed, strict=True)
    ]
