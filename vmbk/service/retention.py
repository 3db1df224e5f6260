"""For how long a policy keeps points: daily, weekly, monthly and yearly ones.

A scheduled point gets the tag of every class whose day it was taken on (seed S4, "policy
essentials": weekly is a certain day of the week, monthly of the month, yearly of the year), and is
kept as long as the longest of its classes wants. A week is seven days and a month is 31: twelve
months are 372 days (Instant Restore page).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.service.fields import Fields
from vmbk.service.schedule import DAY_NS, WEEKDAYS, Schedule
from vmbk.units import quoted

CLASSES: Final = ("daily", "weekly", "monthly", "yearly")

DAILY, WEEKLY, MONTHLY, YEARLY = TAGS = (1, 2, 4, 8)
"""Bits of a point's tags, in the order of `CLASSES`."""

CLASS_DAYS: Final = (1, 7, 31, 365)
"""Days of one unit of each class. That a year counts 365 is inferred: the most weeks that a policy
takes, 5,163, are 99 years of 365 days rounded up."""

BOUNDS: Final = ((7, 9999), (1, 5163), (1, 1188), (1, 99))
"""Least and most that a class may keep where it keeps any (support matrix)."""

MOST_POINTS: Final = 9999
"""Of one protected item (support matrix)."""

MOST_DAYS: Final = 99 * 365
"""No point expires later (support matrix: 99 years)."""

ON_DEMAND_DAYS: Final = 30
"""For which an on-demand backup is kept unless told (FAQ)."""

MONTHS: Final = ("january", "february", "march", "april", "may", "june", "july", "august",
                 "september", "october", "november", "december")  # fmt: skip

LAST: Final = -1
_ORDINALS: Final = {"first": 1, "second": 2, "third": 3, "fourth": 4, "last": LAST}
_DAY: Final = re.compile(r"day (\d{1,2})", re.ASCII)


@dataclass(frozen=True)
class Calendar:
    """What the days are of some points.

    Attributes
    ----------
    weekday : array of int64
        0 is Monday.
    day : array of int64
        Of the month, from 1.
    length : array of int64
        Days of the month.
    month : array of int64
        From 1.
    """

    weekday: NDArray[np.int64]
    day: NDArray[np.int64]
    length: NDArray[np.int64]
    month: NDArray[np.int64]

    @classmethod
    def of(cls, times: NDArray[np.int64], first_day: date) -> Self:
        """Of points taken at these nanoseconds since the first day's midnight."""
        days = np.datetime64(first_day, "D") + times // DAY_NS
        months = days.astype("M8[M]")
        begin, end = months.astype("M8[D]"), (months + 1).astype("M8[D]")
        return cls(
            weekday=(days.astype(np.int64) + 3) % 7,  # 1 January 1970 was a Thursday
            day=(days - begin).astype(np.int64) + 1,
            length=(end - begin).astype(np.int64),
            month=months.astype(np.int64) % 12 + 1,
        )


@dataclass(frozen=True)
class MonthDay:
    """A day of every month: the first Sunday, the last Friday, day 15, the last day.

    Parameters
    ----------
    number : int
        Which one: from 1, or `LAST`. At most 28 of days and 4 of weekdays: every month has those.
    weekday : int or None
        0 (Monday) to 6, or None for a day of the month.
    """

    number: int
    weekday: int | None = None

    def __post_init__(self) -> None:
        most = 28 if self.weekday is None else 4
        if type(self.number) is not int or not (self.number == LAST or 1 <= self.number <= most):
            raise InputError(
                f"number: {quoted(self.number)} is not from 1 to {most}, nor LAST (-1)"
            )
        if self.weekday is not None and (
            type(self.weekday) is not int or not 0 <= self.weekday < 7
        ):
            raise InputError(f"weekday: {quoted(self.weekday)} is not from 0 (Monday) to 6")

    @classmethod
    def read(cls, text: str) -> Self:
        """The day in ``"first sunday"``, ``"last friday"``, ``"day 15"`` or ``"last day"``.

        Raises
        ------
        InputError
            If it is none.
        """
        words = text.lower().split()
        numbered = _DAY.fullmatch(" ".join(words))
        if numbered and 1 <= int(numbered[1]) <= 28:
            return cls(int(numbered[1]))
        if words == ["last", "day"]:
            return cls(LAST)
        if len(words) == 2 and words[0] in _ORDINALS and words[1] in WEEKDAYS:
            return cls(_ORDINALS[words[0]], WEEKDAYS.index(words[1]))
        raise InputError(
            f"{quoted(text)} is not a day of a month",
            hint='write it as "first sunday", "last friday", "day 15" (1 to 28) or "last day"',
        )

    def among(self, days: Calendar) -> NDArray[np.bool_]:
        """Which of these days it is."""
        if self.weekday is None:
            wanted = days.length if self.number == LAST else np.full_like(days.day, self.number)
            return np.equal(days.day, wanted)
        last = self.number == LAST
        nth = days.day + 7 > days.length if last else (days.day - 1) // 7 == self.number - 1
        return np.equal(days.weekday, self.weekday) & nth

    def __str__(self) -> str:
        if self.weekday is None:
            return "last day" if self.number == LAST else f"day {self.number}"
        word = next(word for word, number in _ORDINALS.items() if number == self.number)
        return f"{word} {WEEKDAYS[self.weekday]}"


@dataclass(frozen=True)
class Retention:
    """How many days, weeks, months and years points are kept.

    Parameters
    ----------
    daily, weekly, monthly, yearly : int
        How many of each class's unit its points are kept; 0 where there is no such class.
    weekly_on : tuple of int
        Weekdays of the weekly points, 0 (Monday) to 6.
    monthly_on, yearly_on : tuple of MonthDay
        Days of the monthly points, and of the yearly ones within their months.
    yearly_in : tuple of int
        Months of the yearly points, from 1.

    Raises
    ------
    InputError
        If a number is past its bounds; the message names it.
    """

    daily: int = 30
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    weekly_on: tuple[int, ...] = (6,)
    monthly_on: tuple[MonthDay, ...] = (MonthDay(1, 6),)
    yearly_on: tuple[MonthDay, ...] = (MonthDay(1, 6),)
    yearly_in: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name, count, (low, high) in zip(CLASSES, self.counts, BOUNDS, strict=True):
            if type(count) is not int or not (count == 0 or low <= count <= high):
                raise InputError(f"{name}: {quoted(count)} is not from {low:,} to {high:,}, nor 0")
        for name, values, low, high in (
            ("weekly_on", self.weekly_on, 0, 6),
            ("yearly_in", self.yearly_in, 1, 12),
        ):
            if not (isinstance(values, tuple) and values) or not all(
                type(value) is int and low <= value <= high for value in values
            ):
                raise InputError(f"{name}: {quoted(values)} are not numbers from {low} to {high}")
        for name, days in (("monthly_on", self.monthly_on), ("yearly_on", self.yearly_on)):
            if not (isinstance(days, tuple) and days and all(type(d) is MonthDay for d in days)):
                raise InputError(f"{name}: {quoted(days)} are not days of a month")
        if not any(self.counts):
            raise InputError("daily: a policy keeps points of at least one class")
        if self.points > MOST_POINTS:
            raise InputError(
                f"daily, weekly, monthly, yearly: {self.points:,} points would be kept",
                hint=f"an item has at most {MOST_POINTS:,} recovery points",
            )

    @classmethod
    def parse(cls, table: Any, name: str, schedule: Schedule | None = None) -> Self:
        """A declared retention.

        Fields: `daily`, `weekly`, `monthly`, `yearly` (counts; a class that is not named is not
        kept); `weekly_on` (["sunday"]), `monthly_on` and `yearly_on` (["first sunday"], ["day 1"],
        ["last day"]), `yearly_in` (["january"]). Days are Sundays unless told, or those of a weekly
        `schedule`.

        Raises
        ------
        InputError
            If a field is not what it must be.
        """
        fields = Fields(
            table, name, (*CLASSES, "weekly_on", "monthly_on", "yearly_on", "yearly_in")
        )
        counts = {
            each: fields.whole(each, low, high, 0) if fields.get(each, 0) != 0 else 0
            for each, (low, high) in zip(CLASSES, BOUNDS, strict=True)
        }
        for key in ("weekly_on", "monthly_on", "yearly_on", "yearly_in"):
            if key in fields and not counts[key[:-3]]:
                raise fields.fail(key, f"needs {key[:-3]} points", f"say how many: {key[:-3]} = 12")
        weekdays = [WEEKDAYS[day] for day in schedule.weekdays] if schedule else []
        first = (f"first {weekdays[0]}" if weekdays else "first sunday",)
        chosen: dict[str, Any] = {
            **counts,
            "weekly_on": _named(fields, "weekly_on", WEEKDAYS, tuple(weekdays) or ("sunday",), 0),
            "yearly_in": _named(fields, "yearly_in", MONTHS, ("january",), 1),
        }
        for key in ("monthly_on", "yearly_on"):
            try:
                chosen[key] = tuple(map(MonthDay.read, fields.words(key, first, most=64)))
            except InputError as error:
                raise InputError(f"{fields.where(key)}: {error.message}", hint=error.hint) from None
        try:
            return cls(**chosen)
        except InputError as error:
            raise InputError(fields.where(error.message), hint=error.hint) from None

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """In the order of `CLASSES`."""
        return self.daily, self.weekly, self.monthly, self.yearly

    @property
    def days(self) -> tuple[int, int, int, int]:
        """For how many days a point of each class is kept, at most 99 years."""
        daily, weekly, monthly, yearly = (
            min(count * each, MOST_DAYS)
            for count, each in zip(self.counts, CLASS_DAYS, strict=True)
        )
        return daily, weekly, monthly, yearly

    @property
    def points(self) -> int:
        """Points held at most. Every scheduled point is of the first class that there is, so that
        another class adds only points older than those.
        """
        each = (
            1,
            len(set(self.weekly_on)),
            len(set(self.monthly_on)),
            len(set(self.yearly_on)) * len(set(self.yearly_in)),
        )
        held, kept = 0, 0
        for count, points, days in zip(self.counts, each, self.days, strict=True):
            older = max(days - kept, 0)
            held += -(-count * points * older // days) if days else 0
            kept = kept or days
        return held

    @property
    def shortest_class_days(self) -> int:
        """Days for which every scheduled point is kept: of the first class that there is."""
        return next(days for days in self.days if days)

    def fits(self, schedule: Schedule) -> None:
        """That the schedule takes the points that are to be kept.

        Raises
        ------
        InputError
            If not; the message begins with the field.
        """
        if schedule.frequency != "weekly":
            if not self.daily:
                raise InputError(f"daily: a {schedule.frequency} schedule needs daily points kept")
            return
        if self.daily:
            raise InputError(
                f"daily: {self.daily} does not fit a weekly schedule", hint="use weekly"
            )
        if not self.weekly:
            raise InputError("weekly: a weekly schedule needs weekly points kept")
        named = {
            "weekly_on": self.weekly_on if self.weekly else (),
            "monthly_on": [day.weekday for day in self.monthly_on if self.monthly],
            "yearly_on": [day.weekday for day in self.yearly_on if self.yearly],
        }
        for name, weekdays in named.items():
            # A day of the month falls on any weekday: a weekly schedule would miss most of them.
            if not set(weekdays) <= set(schedule.weekdays):
                raise InputError(f"{name}: the schedule takes no backup on one of these days")

    def tags(self, times: NDArray[np.int64], first_day: date) -> NDArray[np.uint8]:
        """The classes of scheduled points that are in the vault.

        Parameters
        ----------
        times : array of int64
            When they were taken, in nanoseconds since the first day's midnight.
        first_day : datetime.date

        Returns
        -------
        array of uint8
            Sums of `TAGS`.
        """
        days = Calendar.of(times, first_day)
        in_month = np.isin(days.month, np.array(self.yearly_in))
        masks = (
            np.ones(len(times), np.bool_),
            np.isin(days.weekday, np.array(self.weekly_on)),
            np.logical_or.reduce([day.among(days) for day in self.monthly_on]),
            np.logical_or.reduce([day.among(days) for day in self.yearly_on]) & in_month,
        )
        found = np.zeros(len(times), np.uint8)
        for mask, tag, count in zip(masks, TAGS, self.counts, strict=True):
            if count:
                found |= np.where(mask, tag, 0).astype(np.uint8)
        return found

    def lifetimes(self, tags: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Nanoseconds for which points with these tags are kept; 0 without any."""
        longest = np.zeros(len(tags), np.int64)
        for tag, days in zip(TAGS, self.days, strict=True):
            np.maximum(longest, np.where(tags & tag, days * DAY_NS, 0), out=longest)
        return longest

    def shortens(self, new: Retention) -> tuple[str, ...]:
        """The classes that another retention keeps for a shorter time, or no more."""
        pairs = zip(CLASSES, self.days, new.days, strict=True)
        return tuple(name for name, before, after in pairs if after < before)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **asdict(self),
            "weekly_on": [WEEKDAYS[day] for day in self.weekly_on],
            "monthly_on": [str(day) for day in self.monthly_on],
            "yearly_on": [str(day) for day in self.yearly_on],
            "yearly_in": [MONTHS[month - 1] for month in self.yearly_in],
        }

    def _repr_html_(self) -> str:
        rows = {f"{name} ({each} d)": f"{count:,}" for name, count, each in zip(
            CLASSES, self.counts, CLASS_DAYS, strict=True) if count}  # fmt: skip
        return key_values("retention", rows)


DEFAULT_STANDARD: Final = Retention(daily=30)
"""Of the policy that comes with a vault; the number is inferred (no document of the service gives
it; an integrator's page does)."""

DEFAULT_STANDARD_WEEKLY: Final = Retention(daily=0, weekly=12)
"""Inferred from the enhanced default."""

DEFAULT_ENHANCED: Final = Retention(daily=180, weekly=12, monthly=60, yearly=10)
"""Enhanced policy page."""


def _named(
    fields: Fields, key: str, names: tuple[str, ...], default: tuple[str, ...], first: int
) -> tuple[int, ...]:
    """Numbers, from `first` on, of the names that a field lists."""
    found = set()
    for word in fields.words(key, default, most=64):
        matching = [i for i, name in enumerate(names) if word.lower() in (name, name[:3])]
        if not matching:
            raise fields.fail(key, f"has {quoted(word)}", f"known: {', '.join(names)}")
        found.add(matching[0] + first)
    return tuple(sorted(found))
