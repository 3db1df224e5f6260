"""How many bytes are stored: in the vault, in the snapshot tier, in the archive tier.

**Vault.** A block is stored as long as a live point resolves to it. So the oldest live point costs
all that its disk used then, and each later one what changed since the live point before it: the
changes of the expired points between them are merged into it, and what was overwritten meanwhile is
gone. With live points on days d1 < d2 < … < dk:

    stored = used(d1) + Σ merged(d[i-1], d[i])

    used(d)      = min(size, used + growth · d)
    merged(a, b) = min(used(b), max(churn · (b - a), used(b) - used(a)))           reading distinct
                 = new + round(old · (1 - (1 - c / old)^(b - a)))                   reading random
                 = min(used(b), new + c)                                            reading same

where new = used(b) - used(a), old = used(a), and c = min(max(churn - growth, 0), old) is what a day
rewrites. A point holds at most what its disk uses. The bill of storage is the sum of the actual
data in each recovery point (S0, S1, S2: backup costs).

**Snapshots** ("instant restore", cost): n days of a standard policy store the churn of n days; of
an enhanced one all used bytes and the churn of n - 1 days.

**Archive tier**: monthly and yearly points leave the vault when they are old enough, no daily or
weekly point any more, and have enough retention left; each is stored there in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from operator import mul
from typing import TYPE_CHECKING, Final

import numpy as np

from vmbk.errors import InputError
from vmbk.service.cost_items import WEEK, YEAR, CostDisk, CostRetention
from vmbk.service.cost_rules import MONTH
from vmbk.service.policy import ARCHIVE_LEAST_MONTHS, ARCHIVE_REMAINING_MONTHS
from vmbk.units import quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]

ARCHIVE_AGE: Final = ARCHIVE_LEAST_MONTHS * MONTH
ARCHIVE_REMAINING: Final = ARCHIVE_REMAINING_MONTHS * MONTH


# --- Points of a retention, with weeks of 7 and months of 31 days ---------------------------------


def _tagged(day: int, period: int, every: int, kept: int) -> Int64s:
    """Days, up to `day`, whose point is the first of a period; of the last `kept` periods."""
    first = max(0, -(-(day - kept * period + 1) // period))
    starts = np.arange(first, day // period + 1, dtype=np.int64) * period
    days = -(-starts // every) * every
    found: Int64s = days[days <= day]
    return found


def live_points(day: int, retention: CostRetention) -> Int64s:
    """Days of the points that live at the end of `day`, ascending; the latest always does.

    Parameters
    ----------
    day : int
        Days since the first backup, which is on day 0.
    retention : CostRetention

    Returns
    -------
    numpy.ndarray of int64
    """
    every = retention.every
    latest = day // every * every
    daily = np.arange(max(0, day - retention.daily + 1), day + 1, dtype=np.int64)
    kinds = (
        daily if retention.daily else daily[:0],
        _tagged(day, WEEK, every, retention.weekly),
        _tagged(day, MONTH, every, retention.monthly),
        _tagged(day, YEAR, every, retention.yearly),
        np.array([latest], np.int64),
    )
    found: Int64s = np.unique(np.concatenate(kinds))
    return found


def archived_points(day: int, retention: CostRetention) -> tuple[Int64s, Int64s]:
    """Days of the points that are in the archive tier at the end of `day`, and since when.

    Returns
    -------
    tuple of numpy.ndarray of int64
        Days of points, ascending, and the days on which they moved.
    """
    every = retention.every
    monthly = _tagged(day, MONTH, every, retention.monthly)
    yearly = _tagged(day, YEAR, every, retention.yearly)
    points = np.union1d(monthly, yearly)
    # A point's period began up to `every` - 1 days before it; retention counts from the point here.
    left = np.zeros(len(points), np.int64)
    for period, kept in ((MONTH, retention.monthly), (YEAR, retention.yearly)):
        begun = points // period * period
        starts = np.where(points - begun < every, begun + kept * period - points, 0)
        left = np.maximum(left, starts)
    busy = np.full(len(points), max(ARCHIVE_AGE, retention.daily), np.int64)
    weekly = points % WEEK == 0
    busy[weekly] = np.maximum(busy[weekly], WEEK * retention.weekly)
    latest = day // every * every
    goes = (left - busy >= ARCHIVE_REMAINING) & (day - points >= busy) & (points != latest)
    return points[goes], (points + busy)[goes]


# --- Bytes of one disk ----------------------------------------------------------------------------


def used_on(disk: CostDisk, days: Int64s) -> Int64s:
    """Used bytes of a disk on some days."""
    if not disk.growth_per_day:
        return np.full(len(days), disk.used, np.int64)
    full = -(-(disk.size - disk.used) // disk.growth_per_day)  # no product past 63 bits
    used: Int64s = np.minimum(disk.size, disk.used + disk.growth_per_day * np.minimum(days, full))
    return used


def merged(disk: CostDisk, since: Int64s, until: Int64s, overlap: str = "distinct") -> Int64s:
    """Bytes that a point holds of its own: what changed from one day to a later one.

    Parameters
    ----------
    disk : CostDisk
    since, until : numpy.ndarray of int64
        Days; each of `until` is after its `since`.
    overlap : str
        A reading: see the top of this module.

    Returns
    -------
    numpy.ndarray of int64
        Never more than the disk uses on `until`.
    """
    before, after = used_on(disk, since), used_on(disk, until)
    new, gap, churn = after - before, until - since, disk.churn_per_day
    found: Int64s = new
    if overlap == "distinct":
        if churn:  # no more days than change all, so that no product passes 63 bits
            found = np.minimum(after, np.maximum(churn * np.minimum(gap, -(-after // churn)), new))
        return found
    rewritten = np.minimum(max(churn - disk.growth_per_day, 0), before)
    if overlap == "same":
        found = np.minimum(after, new + rewritten)
    else:
        share = np.divide(rewritten, before, out=np.zeros(len(before)), where=before > 0)
        hit = np.rint(before * (1.0 - (1.0 - share) ** gap)).astype(np.int64)
        found = new + np.minimum(hit, before)
    return found


def chain_bytes(disk: CostDisk, points: Int64s, overlap: str = "distinct") -> int:
    """Bytes that live points of a disk hold together: the formula at the top of this module.

    Parameters
    ----------
    disk : CostDisk
    points : numpy.ndarray of int64
        Days of the live points, ascending.
    overlap : str
    """
    if not len(points):
        return 0
    own: list[int] = merged(disk, points[:-1], points[1:], overlap).tolist()
    return int(used_on(disk, points[:1])[0]) + sum(own)


@dataclass(frozen=True, eq=False)
class Spans:
    """Sums over the days of a month: full copies, and changes from one day to another.

    Attributes
    ----------
    full, full_count : numpy.ndarray of int64
        Days of which all used bytes are stored, and on how many days of the month they are.
    since, until, count : numpy.ndarray of int64
        Likewise of what changed between two days.
    """

    full: Int64s
    full_count: Int64s
    since: Int64s
    until: Int64s
    count: Int64s

    def byte_days(self, disk: CostDisk, overlap: str) -> int:
        """Bytes of a disk times days."""
        whole: list[int] = used_on(disk, self.full).tolist()
        parts: list[int] = merged(disk, self.since, self.until, overlap).tolist()
        total: int = sum(map(mul, whole, self.full_count.tolist())) + sum(
            map(mul, parts, self.count.tolist())
        )
        return total


def _spans(full: list[Int64s], since: list[Int64s], until: list[Int64s]) -> Spans:
    empty = [np.zeros(0, np.int64)]
    days, counts = np.unique(np.concatenate(full or empty), return_counts=True)
    pairs = np.stack([np.concatenate(since or empty), np.concatenate(until or empty)])
    unique, times = np.unique(pairs, axis=1, return_counts=True)
    return Spans(days, counts.astype(np.int64), unique[0], unique[1], times.astype(np.int64))


@lru_cache(maxsize=4096)
def vault_month(retention: CostRetention, month: int, archive: bool) -> tuple[Spans, Spans]:
    """What the vault and the archive tier store over a month of `MONTH` days, from 0."""
    full, since, until, moved = [], [], [], []
    for day in range(month * MONTH, (month + 1) * MONTH):
        points = live_points(day, retention)
        if archive:
            away, _ = archived_points(day, retention)
            points = np.setdiff1d(points, away, assume_unique=True)
            moved.append(away)
        full.append(points[:1])
        since.append(points[:-1])
        until.append(points[1:])
    return _spans(full, since, until), _spans(moved, [], [])


def live_snapshots(day: int, every: int, kept: int) -> Int64s:
    """Days of the snapshots that live at the end of `day`: `kept` days of them, and the latest."""
    latest = day // every * every
    first = -(-max(0, day - kept + 1) // every) * every
    return np.union1d(np.arange(first, latest + 1, every, dtype=np.int64), [latest])


@lru_cache(maxsize=4096)
def snapshot_month(every: int, kept: int, month: int, full_first: bool) -> Spans:
    """What the snapshot tier stores over a month.

    Parameters
    ----------
    every : int
        Days from one backup to the next.
    kept : int
        Days for which a snapshot is kept; the latest always is.
    month : int
    full_first : bool
        The oldest snapshot is a whole copy and each later one adds what changed before it
        (enhanced). Otherwise each holds what changed after it (standard): the latest, the day's
        churn.
    """
    full, since, until = [], [], []
    for day in range(month * MONTH, (month + 1) * MONTH):
        points = live_snapshots(day, every, kept)
        if full_first:
            full.append(points[:1])
            since.append(points[:-1])
            until.append(points[1:])
        else:
            since.append(points)
            until.append(np.append(points[1:], day + 1))
    return _spans(full, since, until)


def snapshot_bytes(used: int, churn_per_day: int, days: int, subtype: str = "standard") -> int:
    """Bytes of the snapshot tier once it is full, with a backup each day.

    The documents' formulas: churn · days (standard), used + churn · (days - 1) (enhanced). 100 GB
    with 2 % churn and 5 days: 10 GB and 108 GB.

    Raises
    ------
    InputError
        If a number is out of range or the subtype unknown.
    """
    if subtype not in ("standard", "enhanced"):
        raise InputError(f"subtype {quoted(subtype)} is not standard or enhanced")
    if not 1 <= days <= 31:
        raise InputError(f"days of instant restore {quoted(days)} are not from 1 to 31")
    disk = CostDisk("disk", used, used, churn_per_day)
    day = days - 1
    points = live_snapshots(day, 1, days)
    if subtype == "enhanced":
        return chain_bytes(disk, points)
    own: list[int] = merged(disk, points, np.append(points[1:], day + 1)).tolist()
    return sum(own)
