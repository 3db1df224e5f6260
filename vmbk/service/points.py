"""What becomes of a machine's recovery points: when each one expires, and when it is cleaned up.

- A point keeps the tags that it got when it was taken. A class that is added later tags no old
  point, and one that is removed leaves its points the expiry that they had (FAQ).
- A changed count reaches old points as well, up or down (seed S4, "impact of policy change").
- A schedule that becomes weekly cleans up the daily points (seed S4): those that no other class
  keeps. One that becomes daily keeps the weekly points for the days that they have left.
- Points are cleaned up once a day. The latest is kept while the machine is protected, so long as no
  newer one came, and a point of the vault never goes before its snapshot (Instant Restore page).
- Stopping protection with its data kept keeps every point for ever, and cleans up no more (FAQ).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.service.policy import Policy
from vmbk.service.retention import CLASSES, DAILY, ON_DEMAND_DAYS, TAGS
from vmbk.service.schedule import DAY_NS
from vmbk.units import quoted

NEVER: Final = (1 << 63) - 1
"""When a point that stays for ever is cleaned up."""

_NONE: Final = -NEVER
"""Expiry of a class that does not hold the point."""


@dataclass(frozen=True)
class Term:
    """A policy and since when it is in force.

    Attributes
    ----------
    since : int
        Nanoseconds since the first day's midnight.
    policy : Policy
    """

    since: int
    policy: Policy


@dataclass(frozen=True, eq=False)
class Kept:
    """Points of one machine in the vault.

    Attributes
    ----------
    first_day : datetime.date
    times : array of int64
        When each was taken, in nanoseconds since the first day's midnight, ascending.
    tags : array of uint8
        Sums of `vmbk.service.retention.TAGS`; 0 of an on-demand point.
    expiry : array of int64
        When its retention ends, as the last policy of its life has it.
    gone : array of int64
        When it was cleaned up; `NEVER` if it stays.
    """

    first_day: date
    times: NDArray[np.int64]
    tags: NDArray[np.uint8]
    expiry: NDArray[np.int64]
    gone: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.times)

    def live(self, at: int) -> NDArray[np.bool_]:
        """Which points there are at a moment; one that is taken or cleaned up just then counts as
        taken, and as gone.
        """
        return (self.times <= at) & (at < self.gone)

    def held(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many points there are at each of some moments."""
        return count_held(self.times, self.gone, at)

    @property
    def frame(self) -> pl.DataFrame:
        """One row per point: day, time, classes, expiry and clean-up; null for never."""
        tags = {name: (self.tags & tag) != 0 for name, tag in zip(CLASSES, TAGS, strict=True)}
        columns = {"time": self.times, "expiry": self.expiry, "gone": self.gone}
        return pl.DataFrame({**columns, **tags}).select(
            (pl.lit(self.first_day) + pl.duration(nanoseconds="time")).dt.date().alias("day"),
            "time",
            *CLASSES,
            pl.col("expiry", "gone").replace(NEVER, None),
        )

    def _repr_html_(self) -> str:
        stay = int(np.count_nonzero(self.gone == NEVER))
        return key_values("points", {"taken": f"{len(self):,}", "stay for ever": f"{stay:,}"})


def keep(
    times: NDArray[np.int64],
    first_day: date,
    terms: Sequence[Term],
    *,
    on_demand: NDArray[np.bool_] | None = None,
    on_demand_days: int = ON_DEMAND_DAYS,
    stopped: int | None = None,
    deleted: NDArray[np.int64] | None = None,
    clean_up: int = 0,
) -> Kept:
    """Tags points and finds out when each is cleaned up.

    Parameters
    ----------
    times : array of int64
        When the points in the vault were taken, in nanoseconds since the first day's midnight,
        strictly ascending.
    first_day : datetime.date
    terms : sequence of Term
        Policies, in order; the first holds for all that is before it, too.
    on_demand : array of bool, optional
        Which points nobody scheduled; they have no class, and `on_demand_days` to live.
    on_demand_days : int
        From 1 to 36,135.
    stopped : int, optional
        When protection was stopped with the data kept.
    deleted : array of int64, optional
        When the snapshot of each point was deleted; the point stays at least as long.
    clean_up : int
        Nanoseconds after midnight of the daily clean-up, which takes what expired before it.

    Returns
    -------
    Kept

    Raises
    ------
    InputError
        If `terms` are none or in no order, times do not ascend, or a number is out of range.
    """
    _check(times, terms, on_demand, on_demand_days, stopped, deleted, clean_up)
    count = len(times)
    scheduled = np.ones(count, np.bool_) if on_demand is None else ~on_demand
    tags = np.zeros(count, np.uint8)
    # One column of expiry per class, as each is changed by itself; the last is on-demand's.
    ends = np.full((count, len(TAGS) + 1), _NONE, np.int64)
    ends[:, -1] = np.where(scheduled, _NONE, times + on_demand_days * DAY_NS)
    # Each waits for the next to come: it is the latest until then.
    least = np.append(times[1:], NEVER) if count else times
    if deleted is not None:
        least = np.maximum(least, deleted)
    gone = np.full(count, NEVER, np.int64)
    for number, term in enumerate(terms):
        since = term.since if number else _NONE
        until = terms[number + 1].since if number + 1 < len(terms) else NEVER
        old = (times < since) & (gone > since)
        if number:
            _change(ends, tags, times, old, terms[number - 1].policy, term)
        new = (times >= since) & (times < until)
        tags[new] = np.where(scheduled[new], term.policy.retention.tags(times[new], first_day), 0)
        for column, (tag, days) in enumerate(zip(TAGS, term.policy.retention.days, strict=True)):
            ends[new, column] = np.where(tags[new] & tag, times[new] + days * DAY_NS, _NONE)
        # A change is seen by the clean-up after it.
        pending = old | new
        earliest = np.maximum(np.maximum(ends.max(axis=1), least), since)
        gone[pending] = next_clean_up(earliest, clean_up)[pending]
    if stopped is not None:
        gone[gone > stopped] = NEVER
    return Kept(first_day, times, tags, ends.max(axis=1), gone)


def _change(
    ends: NDArray[np.int64],
    tags: NDArray[np.uint8],
    times: NDArray[np.int64],
    old: NDArray[np.bool_],
    before: Policy,
    term: Term,
) -> None:
    """Gives old points the expiry that a new policy wants; writes `ends` and `tags`."""
    for column, (tag, days) in enumerate(zip(TAGS, term.policy.retention.days, strict=True)):
        held = old & ((tags & tag) != 0)
        if days:
            ends[held, column] = times[held] + days * DAY_NS
    weekly = term.policy.schedule.frequency == "weekly"
    if weekly and before.schedule.frequency != "weekly":
        daily = old & ((tags & DAILY) != 0)
        ends[daily, TAGS.index(DAILY)] = np.minimum(ends[daily, TAGS.index(DAILY)], term.since)
        # What another class keeps is no daily point any more, should there be daily ones again.
        tags[daily & (tags != DAILY)] &= ~np.uint8(DAILY)


def next_clean_up(at: NDArray[np.int64], clean_up: int) -> NDArray[np.int64]:
    """The first daily clean-up after each moment; `NEVER` after never.

    Parameters
    ----------
    at : array of int64
        Nanoseconds since a midnight.
    clean_up : int
        Nanoseconds after midnight.
    """
    known = np.minimum(at, NEVER - 2 * DAY_NS)
    found = ((known - clean_up) // DAY_NS + 1) * DAY_NS + clean_up
    return np.where(at == NEVER, NEVER, found)


def snapshots_gone(
    times: NDArray[np.int64], instant_days: int, *, clean_up: int = 0, late_days: int = 0
) -> NDArray[np.int64]:
    """When the snapshots beside the vault are deleted.

    Parameters
    ----------
    times : array of int64
        When they were taken, ascending.
    instant_days : int
        For which a snapshot is kept, from 1 to 30.
    clean_up : int
        Nanoseconds after midnight of the daily clean-up, which takes what expired before it.
    late_days : int
        Days by which the clean-up is late. The Instant Restore page tells of n + 1 snapshots, the
        latest being kept until the next succeeds, and now and then of two more: 2.

    Returns
    -------
    array of int64
        `NEVER` for the latest.

    Raises
    ------
    InputError
        If a number is out of range.
    """
    if type(instant_days) is not int or not 1 <= instant_days <= 30:
        raise InputError(f"instant_days: {quoted(instant_days)} is not from 1 to 30")
    if type(late_days) is not int or not 0 <= late_days <= 30:
        raise InputError(f"late_days: {quoted(late_days)} is not from 0 to 30")
    _check_clean_up(clean_up)
    following = np.append(times[1:], NEVER) if len(times) else times
    expired = times + (instant_days + late_days) * DAY_NS
    return next_clean_up(np.maximum(expired, following), clean_up)


def count_held(
    times: NDArray[np.int64], gone: NDArray[np.int64], at: NDArray[np.int64]
) -> NDArray[np.int64]:
    """How many of some things, each from its time until it is gone, there are at each moment."""
    come = np.searchsorted(times, at, side="right")
    left = np.searchsorted(np.sort(gone), at, side="right")
    return np.asarray(come - left, np.int64)


def _check(
    times: NDArray[np.int64],
    terms: Sequence[Term],
    on_demand: NDArray[np.bool_] | None,
    on_demand_days: int,
    stopped: int | None,
    deleted: NDArray[np.int64] | None,
    clean_up: int,
) -> None:
    if times.dtype != np.int64 or times.ndim != 1 or bool((np.diff(times) <= 0).any()):
        raise InputError("times: not int64 nanoseconds that strictly ascend")
    if len(times) and not (times[0] >= 0 and times[-1] <= NEVER // 2):
        raise InputError("times: a point lies before the first day or 146 years after it")
    for name, column in (("on_demand", on_demand), ("deleted", deleted)):
        if column is not None and column.shape != times.shape:
            raise InputError(f"{name}: {len(column):,} values for {len(times):,} points")
    if not terms:
        raise InputError("terms: at least one policy is needed")
    since = [term.since for term in terms]
    if sorted(set(since)) != since:
        raise InputError("terms: policies are not in the order in which they came into force")
    if type(on_demand_days) is not int or not 1 <= on_demand_days <= 99 * 365:
        raise InputError(f"on_demand_days: {quoted(on_demand_days)} is not from 1 to 36,135")
    if stopped is not None and (type(stopped) is not int or stopped < 0):
        raise InputError(f"stopped: {quoted(stopped)} is not a moment from 0 on")
    _check_clean_up(clean_up)


def _check_clean_up(clean_up: int) -> None:
    if type(clean_up) is not int or not 0 <= clean_up < DAY_NS:
        raise InputError(f"clean_up: {quoted(clean_up)} is not nanoseconds after midnight")
