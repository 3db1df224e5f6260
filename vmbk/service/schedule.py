"""When a policy asks for backups: daily, weekly or several times a day.

A schedule gives slots, the moments at which a job is wanted; when a job really starts is another
matter (the service starts it within two hours of its slot). Seed S4 knows daily and weekly ones; an
enhanced policy also has hourly ones, with a window of the day in which they repeat (enhanced policy
page). Of a day's backups only the last is sent to the vault; the others stay snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.service.fields import Fields
from vmbk.service.plan import DAY, HOUR, SECOND
from vmbk.units import quoted

FREQUENCIES: Final = ("daily", "weekly", "hourly")

WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
"""As `datetime.date.weekday` counts them."""

EVERY_HOURS: Final = (4, 6, 8, 12, 24)
"""Hours between two slots of an hourly schedule (enhanced policy page)."""

MINUTE_NS: Final = 60 * SECOND
HOUR_NS: Final = HOUR
DAY_NS: Final = DAY

MOST_DAYS: Final = 36_525
"""A century: no point is kept longer than 99 years."""

HOURLY_START: Final = 8 * 60
"""Minutes since midnight at which an hourly schedule begins unless told: 08:00."""


@dataclass(frozen=True, eq=False)
class Slots:
    """Moments at which a backup is wanted.

    Attributes
    ----------
    times : array of int64
        Nanoseconds since the first day's midnight, ascending, no two equal.
    vault : array of bool
        It is the last slot of its day, whose backup goes to the vault.
    """

    times: NDArray[np.int64]
    vault: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.times)


@dataclass(frozen=True)
class Schedule:
    """When backups are wanted; the same every day, or on the same days of every week.

    Parameters
    ----------
    frequency : str
        One of `FREQUENCIES`.
    at : int
        Minutes since midnight of the slot, or of the first slot of an hourly schedule's window.
    weekdays : tuple of int
        0 (Monday) to 6, ascending, of a weekly schedule; empty in another.
    every : int
        Hours between slots of an hourly schedule, one of `EVERY_HOURS`; 24 in another.
    window : int
        Nanoseconds from the first slot in which an hourly schedule has its slots; the very end of
        the window is none (inferred; a window of 24 hours leaves no other choice). It may reach
        past midnight.

    Raises
    ------
    InputError
        If a value is not one of these; the message names it.
    """

    frequency: str = "daily"
    at: int = 0
    weekdays: tuple[int, ...] = ()
    every: int = 24
    window: int = DAY_NS

    def __post_init__(self) -> None:
        if self.frequency not in FREQUENCIES:
            raise InputError(
                f"frequency: {quoted(self.frequency)} is not one of {', '.join(FREQUENCIES)}"
            )
        if type(self.at) is not int or not 0 <= self.at < 24 * 60:
            raise InputError(f"at: {quoted(self.at)} is not a minute of the day, 0 to 1439")
        good = isinstance(self.weekdays, tuple) and all(
            type(day) is int and 0 <= day < 7 for day in self.weekdays
        )
        if not good or list(self.weekdays) != sorted(set(self.weekdays)):
            raise InputError(
                f"weekdays: {quoted(self.weekdays)} are not ascending numbers from 0 (Monday) to 6"
            )
        if bool(self.weekdays) != (self.frequency == "weekly"):
            raise InputError(
                f"weekdays: {quoted(self.weekdays)} does not fit a {self.frequency} schedule",
                hint="a weekly schedule names at least one weekday, no other names any",
            )
        if type(self.every) is not int or self.every not in EVERY_HOURS:
            hours = ", ".join(map(str, EVERY_HOURS))
            raise InputError(f"every: {quoted(self.every)} is not one of {hours} hours")
        if type(self.window) is not int or not self.every * HOUR_NS <= self.window <= DAY_NS:
            raise InputError(
                f"window: {quoted(self.window)} ns is not from {self.every} to 24 hours",
                hint="a window is at least as long as the time between two slots",
            )
        if self.frequency != "hourly" and (self.every, self.window) != (24, DAY_NS):
            raise InputError(f"every: a {self.frequency} schedule has neither every nor window")

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """A declared schedule.

        Fields: `frequency`; `at` ("02:30"; midnight, or 08:00 for an hourly one, unless told);
        `weekdays` (["sunday"], weekly only); `every` ("4h") and `window` ("12h"), hourly only.

        Parameters
        ----------
        table : Mapping
        name : str
            How errors call it.

        Raises
        ------
        InputError
            If a field is not what it must be.
        """
        fields = Fields(table, name, ("frequency", "at", "weekdays", "every", "window"))
        frequency = fields.choice("frequency", FREQUENCIES, "daily")
        for key, only in (("weekdays", "weekly"), ("every", "hourly"), ("window", "hourly")):
            if key in fields and frequency != only:
                raise fields.fail(key, f"does not fit a {frequency} schedule", f"{only} ones only")
        hourly = frequency == "hourly"
        every = fields.duration("every", (4 if hourly else 24) * HOUR_NS)
        if every not in [each * HOUR_NS for each in EVERY_HOURS]:
            raise fields.fail("every", "is not 4h, 6h, 8h, 12h or 24h")
        return cls(
            frequency=frequency,
            at=fields.clock("at", HOURLY_START if hourly else 0),
            weekdays=_weekdays(fields) if frequency == "weekly" else (),
            every=every // HOUR_NS,
            window=fields.duration("window", DAY_NS, least=every, most=DAY_NS),
        )

    @property
    def minutes(self) -> tuple[int, ...]:
        """Minutes since midnight of the slots of a day that has any, ascending."""
        if self.frequency != "hourly":
            return (self.at,)
        count = -(-self.window // (self.every * HOUR_NS))
        return tuple(
            sorted((self.at + each * self.every * 60) % (24 * 60) for each in range(count))
        )

    @property
    def per_day(self) -> int:
        """Slots of a day that has any."""
        return len(self.minutes)

    @property
    def longest_gap(self) -> int:
        """Nanoseconds of the longest time between two slots: the best that a recovery point
        objective can be, were every backup taken at once and at its slot.
        """
        days = self.weekdays or range(7)
        week = 7 * DAY_NS
        times = [day * DAY_NS + at * MINUTE_NS for day in days for at in self.minutes]
        return max(b - a for a, b in zip(times, [*times[1:], times[0] + week], strict=True))

    def slots(self, first_day: date, days: int) -> Slots:
        """The slots of some days.

        The schedule is taken to have been in force before: of an hourly one whose window reaches
        past midnight, the first day begins with the slots of the day before.

        Parameters
        ----------
        first_day : datetime.date
            Whose midnight is time 0; it tells the weekdays.
        days : int
            From 1 to `MOST_DAYS`.

        Returns
        -------
        Slots
            Within ``[0, days * 24 h)``.

        Raises
        ------
        InputError
            If `days` is out of range.
        """
        if type(days) is not int or not 1 <= days <= MOST_DAYS:
            raise InputError(f"days: {quoted(days)} is not a whole number from 1 to {MOST_DAYS:,}")
        day = np.arange(days, dtype=np.int64)
        if self.frequency == "weekly":
            day = day[np.isin((day + first_day.weekday()) % 7, np.array(self.weekdays))]
        offsets = np.array(self.minutes, np.int64) * MINUTE_NS
        times = (day[:, None] * DAY_NS + offsets).ravel()
        vault = np.zeros((len(day), len(offsets)), np.bool_)
        vault[:, -1] = True
        return Slots(times, vault.ravel())

    def __str__(self) -> str:
        clock = f"{self.at // 60:02}:{self.at % 60:02}"
        if self.frequency == "weekly":
            return f"{', '.join(WEEKDAYS[day] for day in self.weekdays)} at {clock}"
        if self.frequency == "daily":
            return f"daily at {clock}"
        return f"every {self.every} h from {clock} for {self.window / HOUR_NS:g} h"

    def _repr_html_(self) -> str:
        return key_values("schedule", {"when": self, "slots of a day": self.per_day})


def _weekdays(fields: Fields) -> tuple[int, ...]:
    """The weekdays of a weekly schedule; Sunday unless told (inferred)."""
    found = set()
    for word in fields.words("weekdays", ("sunday",), most=7):
        matching = [i for i, day in enumerate(WEEKDAYS) if word.lower() in (day, day[:3])]
        if not matching:
            raise fields.fail("weekdays", f"has no weekday {quoted(word)}", ", ".join(WEEKDAYS))
        found.add(matching[0])
    if not found:
        raise fields.fail("weekdays", "names no weekday")
    return tuple(sorted(found))
