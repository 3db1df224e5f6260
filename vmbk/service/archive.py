"""Which points may move to the archive tier, and what moving them too early or too late costs.

A point may move if it is a monthly or yearly one that no daily or weekly class keeps any more, is
at least three months old and has at least six left (archive page). In the archive it is a full copy
by itself, which shares no blocks: where little changes, moving can make the whole larger. What
leaves the archive before 180 days is paid for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.service.blocks import Versions
from vmbk.service.points import NEVER, Kept
from vmbk.service.policy import ARCHIVE_LEAST_MONTHS, ARCHIVE_REMAINING_MONTHS
from vmbk.service.retention import CLASS_DAYS, DAILY, MONTHLY, WEEKLY, YEARLY, Retention
from vmbk.service.schedule import DAY_NS
from vmbk.units import quoted

EARLY_DAYS: Final = 180
"""For which a point in the archive is paid at least."""

MONTH_NS: Final = CLASS_DAYS[2] * DAY_NS


def movable(
    kept: Kept, retention: Retention, *, after_months: int = ARCHIVE_LEAST_MONTHS
) -> NDArray[np.int64]:
    """When each point may first move to the archive tier.

    Parameters
    ----------
    kept : Kept
    retention : Retention
        In force.
    after_months : int
        Age that the policy asks for, from 3.

    Returns
    -------
    array of int64
        Nanoseconds since the first day's midnight; `vmbk.service.points.NEVER` for a point that
        never may.

    Raises
    ------
    InputError
        If `after_months` is out of range.
    """
    if type(after_months) is not int or not ARCHIVE_LEAST_MONTHS <= after_months <= 1188:
        raise InputError(
            f"after_months: {quoted(after_months)} is not from {ARCHIVE_LEAST_MONTHS} to 1,188"
        )
    age = np.full(len(kept), after_months * MONTH_NS)
    for tag, days in zip((DAILY, WEEKLY), retention.days[:2], strict=True):
        np.maximum(age, np.where(kept.tags & tag, days * DAY_NS, 0), out=age)
    when = kept.times + age
    long_term = (kept.tags & (MONTHLY | YEARLY)) != 0
    left = np.minimum(kept.expiry, kept.gone) - when >= ARCHIVE_REMAINING_MONTHS * MONTH_NS
    return np.where(long_term & left, when, NEVER)


def days_paid_too_much(moved: NDArray[np.int64], gone: NDArray[np.int64]) -> NDArray[np.int64]:
    """Days of archive that are paid though the point has left it.

    Parameters
    ----------
    moved, gone : array of int64
        When points came to the archive and when they are cleaned up; `NEVER` for never.
    """
    there = np.minimum(gone, NEVER - 1) - np.minimum(moved, gone)
    short = np.maximum(EARLY_DAYS * DAY_NS - there, 0)
    return np.where((moved == NEVER) | (moved >= gone), 0, -(-short // DAY_NS))


@dataclass(frozen=True)
class Moved:
    """What moving a point does to the blocks stored.

    Attributes
    ----------
    freed : int
        Blocks that the vault needs no more.
    added : int
        Blocks of the full copy in the archive.
    """

    freed: int
    added: int


def moved_blocks(versions: Versions, live: NDArray[np.bool_], point: int) -> Moved:
    """What the vault frees and the archive gets when a point moves.

    Parameters
    ----------
    versions : Versions
        Blocks of the machine's points.
    live : array of bool
        Which points are in the vault.
    point : int
        One of those.

    Raises
    ------
    InputError
        If the point is not in the vault.
    """
    full = len(versions.seen(point))
    if not live[point]:
        raise InputError(f"point: {point} is not in the vault")
    left = live.copy()
    left[point] = False
    freed = np.count_nonzero(versions.stored(live)) - np.count_nonzero(versions.stored(left))
    return Moved(freed=int(freed), added=full)
