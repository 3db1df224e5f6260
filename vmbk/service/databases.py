"""Backups of SQL Server and SAP HANA databases in machines: kinds, rules, and what a restore needs.

=============  ========================================  ==================================
kind           holds                                     how often
=============  ========================================  ==================================
full           everything                                daily or weekly
differential   what changed since the last full          once a day at most, not on its day
incremental    what changed since the last data backup   the same; SAP HANA only, and on
                                                         no day with a differential
log            the log since the last log backup         every 15 minutes at most
=============  ========================================  ==================================

Source: tables of the backup architecture page, whose captions are in seed S4; seed S0 gives the
recovery point objective of 15 minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vmbk.display import key_values, table
from vmbk.errors import InputError
from vmbk.service.fields import Fields
from vmbk.service.schedule import DAY_NS, MINUTE_NS, WEEKDAYS, Schedule, Slots
from vmbk.units import quoted

WORKLOADS: Final = ("sql", "hana")

KINDS: Final = ("full", "differential", "incremental", "log")
FULL, DIFFERENTIAL, INCREMENTAL, LOG = range(4)
"""Positions in `KINDS`; of backups at the same moment the lower comes first."""

LOG_LEAST_MINUTES: Final = 15

DAY_MINUTES: Final = 24 * 60


@dataclass(frozen=True)
class DatabasePolicy:
    """When a database is backed up, and how.

    Parameters
    ----------
    workload : str
        One of `WORKLOADS`.
    full : Schedule
        Daily or weekly.
    differential_on, incremental_on : tuple of int
        Weekdays, 0 (Monday) to 6, ascending.
    differential_at, incremental_at : int
        Minutes since midnight.
    log_minutes : int
        Between log backups, from 15 to 1,440 and a part of a day; they begin at midnight. 0 takes
        none.

    Raises
    ------
    InputError
        If the service would refuse it; the message begins with the field.
    """

    workload: str = "sql"
    full: Schedule = field(default_factory=Schedule)
    differential_on: tuple[int, ...] = ()
    differential_at: int = 0
    incremental_on: tuple[int, ...] = ()
    incremental_at: int = 0
    log_minutes: int = LOG_LEAST_MINUTES

    def __post_init__(self) -> None:
        if self.workload not in WORKLOADS:
            raise InputError(f"workload: {quoted(self.workload)} is not one of sql, hana")
        if self.full.frequency == "hourly":
            raise InputError("full.frequency: 'hourly' is more than one full backup a day")
        minutes = self.log_minutes
        if type(minutes) is not int or not (
            minutes == 0
            or (LOG_LEAST_MINUTES <= minutes <= DAY_MINUTES and DAY_MINUTES % minutes == 0)
        ):
            raise InputError(
                f"log_every: {quoted(minutes)} minutes are not from {LOG_LEAST_MINUTES} to 1,440, "
                "or no part of a day"
            )
        if self.incremental_on and self.workload == "sql":
            raise InputError("incremental_on: SQL Server has no incremental backups")
        for name, days in (
            ("differential_on", self.differential_on),
            ("incremental_on", self.incremental_on),
        ):
            self._check_days(name, days)
        both = set(self.differential_on) & set(self.incremental_on)
        if both:
            raise InputError(
                f"incremental_on: {WEEKDAYS[min(both)]} has a differential backup already",
                hint="choose one of both for a day",
            )
        for name, at in (
            ("differential_at", self.differential_at),
            ("incremental_at", self.incremental_at),
        ):
            if type(at) is not int or not 0 <= at < DAY_MINUTES:
                raise InputError(f"{name}: {quoted(at)} is not a minute of the day, 0 to 1439")

    def _check_days(self, name: str, days: tuple[int, ...]) -> None:
        good = isinstance(days, tuple) and all(type(day) is int and 0 <= day < 7 for day in days)
        if not good or list(days) != sorted(set(days)):
            raise InputError(
                f"{name}: {quoted(days)} are not ascending numbers from 0 (Monday) to 6"
            )
        full = range(7) if self.full.frequency == "daily" else self.full.weekdays
        same = set(full) & set(days)
        if same:
            raise InputError(
                f"{name}: {WEEKDAYS[min(same)]} has a full backup",
                hint="a weekly full backup leaves days for others",
            )

    @classmethod
    def parse(cls, declared: Any, name: str) -> Self:
        """A declared policy.

        Fields: `workload`; `full`, a table as of a schedule; `differential_on`, `incremental_on`
        (["monday"]) with `differential_at`, `incremental_at` ("02:00"); `log_every` ("15m", the
        default, or 0 for no log backups).

        Raises
        ------
        InputError
            If a field is not what it must be.
        """
        known = ("workload", "full", "differential_on", "differential_at", "incremental_on",
                 "incremental_at", "log_every")  # fmt: skip
        fields = Fields(declared, name, known)
        every = fields.duration("log_every", LOG_LEAST_MINUTES * MINUTE_NS, most=DAY_NS)
        if every % MINUTE_NS:
            raise fields.fail("log_every", "is not whole minutes")
        arguments: dict[str, Any] = {
            "workload": fields.choice("workload", WORKLOADS, "sql"),
            "full": Schedule.parse(fields.get("full", {}), fields.where("full")),
            "log_minutes": every // MINUTE_NS,
        }
        for kind in ("differential", "incremental"):
            days = set()
            for word in fields.words(f"{kind}_on", (), most=7):
                matching = [i for i, day in enumerate(WEEKDAYS) if word.lower() in (day, day[:3])]
                if not matching:
                    raise fields.fail(f"{kind}_on", f"has no weekday {quoted(word)}")
                days.add(matching[0])
            arguments[f"{kind}_on"] = tuple(sorted(days))
            arguments[f"{kind}_at"] = fields.clock(f"{kind}_at", 0)
        try:
            return cls(**arguments)
        except InputError as error:
            raise InputError(fields.where(error.message), hint=error.hint) from None

    def timeline(self, first_day: date, days: int) -> Backups:
        """The backups of some days, from the first full one on.

        Parameters
        ----------
        first_day : datetime.date
            Whose midnight is time 0.
        days : int
            From 1 to `vmbk.service.schedule.MOST_DAYS`.

        Raises
        ------
        InputError
            If `days` is out of range.
        """
        none = np.empty(0, np.int64)
        found = [self.full.slots(first_day, days).times, none, none, none]
        for kind, on, at in (
            (DIFFERENTIAL, self.differential_on, self.differential_at),
            (INCREMENTAL, self.incremental_on, self.incremental_at),
        ):
            if on:
                slots: Slots = Schedule("weekly", at, on).slots(first_day, days)
                found[kind] = slots.times
        if self.log_minutes:
            step = self.log_minutes * MINUTE_NS
            of_day = np.arange(0, DAY_NS, step, dtype=np.int64)
            found[LOG] = (np.arange(days, dtype=np.int64)[:, None] * DAY_NS + of_day).ravel()
        times = np.concatenate(found)
        kinds = np.repeat(np.arange(4, dtype=np.uint8), [len(one) for one in found])
        order = np.lexsort((kinds, times))
        times, kinds = times[order], kinds[order]
        # Nothing can be based on a full backup that is still to come.
        first = int(np.argmax(kinds == FULL)) if bool((kinds == FULL).any()) else len(kinds)
        return Backups.of(times[first:], kinds[first:])

    def _repr_html_(self) -> str:
        def on(days: tuple[int, ...]) -> str:
            return ", ".join(WEEKDAYS[day] for day in days) or "never"

        return key_values(
            f"policy of a {self.workload} database",
            {
                "full": self.full,
                "differential": on(self.differential_on),
                "incremental": on(self.incremental_on),
                "log": f"every {self.log_minutes} min" if self.log_minutes else "never",
            },
        )


@dataclass(frozen=True)
class Chain:
    """What restoring a database to a moment takes.

    Attributes
    ----------
    at : int
        The moment asked for, in nanoseconds.
    reached : int or None
        The latest moment up to it that can be restored; None where there is none.
    backups : tuple of int
        Positions of the backups to restore, in order.
    """

    at: int
    reached: int | None
    backups: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"at": self.at, "reached": self.reached, "backups": list(self.backups)}


@dataclass(frozen=True, eq=False)
class Backups:
    """Backups of one database, in order of time.

    Attributes
    ----------
    times : array of int64
        Nanoseconds.
    kinds : array of uint8
        Positions in `KINDS`.
    base : array of int64
        The backup that one is based on: of a differential the last full, of an incremental the last
        data backup, of a log the last log or, of the first, the first full; -1 of a full.
    """

    times: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    base: NDArray[np.int64]

    @classmethod
    def of(cls, times: NDArray[np.int64], kinds: NDArray[np.uint8]) -> Self:
        """Backups of these kinds, in order of time; the first is a full one.

        Raises
        ------
        InputError
            If times fall, or the first is no full one.
        """
        if times.shape != kinds.shape or bool((np.diff(times) < 0).any()):
            raise InputError("times: not one per backup, or not in order")
        if len(kinds) and kinds[0] != FULL:
            raise InputError("kinds: the first backup is not a full one")
        base = np.full(len(times), -1, np.int64)
        for kind, sources in (
            (DIFFERENTIAL, kinds == FULL),
            (INCREMENTAL, kinds != LOG),
            (LOG, (kinds == LOG) | (np.arange(len(kinds)) == 0)),
        ):
            positions = np.where(sources, np.arange(len(kinds)), -1)
            last = np.maximum.accumulate(positions)
            this = kinds == kind
            base[this] = np.append(-1, last)[:-1][this]
        return cls(times, kinds, base)

    def __len__(self) -> int:
        return len(self.times)

    def chain(self, at: int) -> Chain:
        """What it takes to restore to a moment, with all of these backups at hand.

        Parameters
        ----------
        at : int
            Nanoseconds.
        """
        data = np.flatnonzero((self.kinds != LOG) & (self.times <= at))
        if not len(data):
            return Chain(at, None, ())
        needed = [int(data[-1])]
        while self.base[needed[-1]] >= 0:
            needed.append(int(self.base[needed[-1]]))
        needed.reverse()
        start = int(self.times[needed[-1]])
        logs = np.flatnonzero((self.kinds == LOG) & (self.times > start))
        # Up to the first that reaches the moment; none where the data backup is of that moment.
        count = int(np.searchsorted(self.times[logs], at)) + 1 if at > start else 0
        logs = logs[:count]
        reached = min(at, int(self.times[logs[-1]])) if len(logs) else start
        return Chain(at, reached, (*needed, *logs.tolist()))

    def lost(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """What is lost when the machine is lost at each of some moments.

        Parameters
        ----------
        at : array of int64
            Nanoseconds.

        Returns
        -------
        array of int64
            Nanoseconds back to the last backup; -1 before the first.
        """
        last = np.searchsorted(self.times, at, side="right") - 1
        back = at - self.times[np.maximum(last, 0)] if len(self.times) else np.zeros_like(at)
        return np.where(last >= 0, back, -1)

    @property
    def frame(self) -> pl.DataFrame:
        """One row per backup."""
        kinds = np.array(KINDS)[self.kinds]
        return pl.DataFrame({"time": self.times, "kind": kinds, "base": self.base}).with_columns(
            pl.col("base").replace(-1, None)
        )

    def _repr_html_(self) -> str:
        counts = np.bincount(self.kinds, minlength=4)
        return table("backups", KINDS, [[f"{count:,}" for count in counts]])


@dataclass(frozen=True)
class BlocksSent:
    """Blocks that each backup sends, by kind; the first is a full one in every column."""

    full: tuple[int, ...]
    differential: tuple[int, ...]
    incremental: tuple[int, ...]

    def to_dict(self) -> dict[str, list[int]]:
        """Plain values."""
        return {
            "full": list(self.full),
            "differential": list(self.differential),
            "incremental": list(self.incremental),
        }


def blocks_sent(blocks: int, changes: Sequence[NDArray[np.int64]]) -> BlocksSent:
    """What full, differential and incremental backups send of the same changes.

    Parameters
    ----------
    blocks : int
        Blocks of the data.
    changes : sequence of array of int64
        Numbers of the blocks that changed before each backup after the first; repeated ones count
        once.

    Returns
    -------
    BlocksSent

    Raises
    ------
    InputError
        If a changed block is not there.
    """
    distinct = [np.unique(each) for each in changes]
    every = np.concatenate([np.empty(0, np.int64), *distinct])
    if type(blocks) is not int or bool((every < 0).any() or (every >= blocks).any()):
        raise InputError(f"changes: a block is not from 0 to {blocks} - 1")
    sizes = np.array([len(each) for each in distinct], np.int64)
    # A differential grows by what changed for the first time since the full one.
    step = np.repeat(np.arange(len(distinct)), sizes)
    _, firsts = np.unique(every, return_index=True)
    new = np.bincount(step[firsts], minlength=len(distinct))
    return BlocksSent(
        full=(blocks,) * (1 + len(distinct)),
        differential=(blocks, *np.cumsum(new).tolist()),
        incremental=(blocks, *sizes.tolist()),
    )
