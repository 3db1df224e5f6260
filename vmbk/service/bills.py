"""The bill of one protected item, day by day and by calendar month, from dated events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import polars as pl

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.billing import BillingEvent, Standing, check_soft_delete
from vmbk.service.cost_rules import Readings
from vmbk.service.deletion import FREE_DAYS
from vmbk.service.prices import DEFAULT_REDUNDANCY, GB, Prices, money
from vmbk.service.protected_instance import instance_price
from vmbk.service.stored_days import MOST_DAYS, CostPoint, stored_by_day

LAST_YEAR: Final = 9000
"""Of a bill, so that no date passes what the calendar can hold."""


@dataclass(frozen=True)
class BillSpan:
    """Equal days of a bill, from `first` up to and without `until`.

    Attributes
    ----------
    first, until : datetime.date
    state : str
    billed : bool
    size : int
        Bytes of the protected instance; 0 where nothing is billed.
    stored : int
        Bytes of the vault; likewise.
    """

    first: date
    until: date
    state: str
    billed: bool
    size: int
    stored: int

    @property
    def days(self) -> int:
        """How many days it has."""
        return (self.until - self.first).days


@dataclass(frozen=True)
class MonthCharge:
    """What one calendar month costs, in the price list's currency, to a millionth."""

    month: str
    billed_days: int
    instance: Decimal
    storage: Decimal

    @property
    def total(self) -> Decimal:
        """Both together."""
        return self.instance + self.storage


@dataclass(frozen=True)
class Bill:
    """The days of one item, billed or not.

    Attributes
    ----------
    spans : tuple of BillSpan
        Without gaps, from the first event's day.
    """

    spans: tuple[BillSpan, ...]

    @property
    def billed_days(self) -> int:
        """Days that are billed."""
        return sum(span.days for span in self.spans if span.billed)

    def in_state(self, state: str) -> tuple[int, int]:
        """Days in a state: those billed, those free."""
        spans = [span for span in self.spans if span.state == state]
        return (sum(s.days for s in spans if s.billed), sum(s.days for s in spans if not s.billed))

    @property
    def frame(self) -> pl.DataFrame:
        """A row a day: ``day``, ``state``, ``billed``, ``size`` and ``stored`` (Int64 bytes)."""
        spans = [span for span in self.spans for _ in range(span.days)]
        days = [s.first + timedelta(n) for s in self.spans for n in range(s.days)]
        return pl.DataFrame(
            {
                "day": pl.Series(days, dtype=pl.Date),
                "state": pl.Series([s.state for s in spans], dtype=pl.String),
                "billed": pl.Series([s.billed for s in spans], dtype=pl.Boolean),
                "size": pl.Series([s.size for s in spans], dtype=pl.Int64),
                "stored": pl.Series([s.stored for s in spans], dtype=pl.Int64),
            }
        )

    def charge(
        self,
        prices: Prices,
        redundancy: str = DEFAULT_REDUNDANCY,
        readings: Readings | None = None,
        wish: str = "application",
    ) -> tuple[MonthCharge, ...]:
        """What it costs, by calendar month; a day costs its share of its month.

        Raises
        ------
        InputError
            If the list has no price for the redundancy.
        """
        readings = readings or Readings()
        storage = Fraction(prices.storage.of(redundancy).value) / GB
        months: dict[tuple[int, int], tuple[int, Fraction, Fraction]] = {}
        for first, days, of_days, span in _by_month(self.spans):
            billed, instance, stored = months.get(
                (first.year, first.month), (0, Fraction(0), Fraction(0))
            )
            if span.billed:
                share = Fraction(days, of_days)
                billed += days
                instance += Fraction(instance_price(span.size, prices, readings, wish)) * share
                stored += span.stored * storage * share
            months[first.year, first.month] = billed, instance, stored
        return tuple(
            MonthCharge(f"{year}-{month:02}", billed, money(instance), money(stored))
            for (year, month), (billed, instance, stored) in months.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "billed_days": self.billed_days,
            "spans": [
                {
                    "first": s.first.isoformat(), "until": s.until.isoformat(), "days": s.days,
                    "state": s.state, "billed": s.billed, "size": s.size, "stored": s.stored,
                }
                for s in self.spans
            ],
        }  # fmt: skip

    def _repr_html_(self) -> str:
        rows = [
            (s.first, s.days, s.state, "yes" if s.billed else "no",
             f"{s.size / GB:,.1f}", f"{s.stored / GB:,.1f}")
            for s in self.spans
        ]  # fmt: skip
        header = ("from", "days", "state", "billed", "instance, GB", "stored, GB")
        return table(f"{self.billed_days:,} billed days", header, rows)


def _by_month(spans: Iterable[BillSpan]) -> Iterator[tuple[date, int, int, BillSpan]]:
    """Spans cut at the first of each month: day, days, days of that month, and the span."""
    for span in spans:
        first = span.first
        while first < span.until:
            start = first.replace(day=1)
            following = (start + timedelta(31)).replace(day=1)
            until = min(span.until, following)
            yield first, (until - first).days, (following - start).days, span
            first = until


def bill(events: Sequence[BillingEvent], until: date, soft_delete: int = 14) -> Bill:
    """The bill of one item.

    Parameters
    ----------
    events : sequence of BillingEvent
        By day; those of a day in their order.
    until : datetime.date
        The first day that is not billed any more.
    soft_delete : int
        Days that the vault keeps deleted data: 0 (disabled), or 14 to 180.

    Returns
    -------
    Bill

    Raises
    ------
    InputError
        If events do not ascend or one cannot happen where the item then stands, or if the bill
        spans more than a century.
    """
    check_soft_delete(soft_delete)
    standing, spans = Standing(), list[BillSpan]()
    at = events[0].day if events else until
    if not 0 <= (until - at).days <= MOST_DAYS or until.year > LAST_YEAR:
        raise InputError(
            f"a bill from {at} until {until} is not one of 0 to {MOST_DAYS:,} days",
            hint=f"and of years up to {LAST_YEAR}",
        )

    def pass_days(standing: Standing, first: date, last: date) -> Standing:
        """Bill the days before `last`; deleted data goes by itself meanwhile."""
        while first < last:
            stop, after = last, standing
            if standing.gone is not None:
                free = standing.gone - timedelta(min(FREE_DAYS, soft_delete))
                stop = min(last, free if first < free else standing.gone)
                after = Standing() if stop == standing.gone else standing
            billed = standing.billed_on(first, soft_delete)
            size, stored = (standing.size, standing.stored) if billed else (0, 0)
            spans.append(BillSpan(first, stop, standing.state, billed, size, stored))
            first, standing = stop, after
        return standing

    for event in events:
        if event.day < at:
            raise InputError(f"the event of {event.day} comes after one of {at}")
        if event.day >= until:
            break
        standing = pass_days(standing, at, event.day)
        at = event.day
        standing = standing.after(event, soft_delete)
    pass_days(standing, at, until)
    return Bill(_joined(spans))


def _joined(spans: list[BillSpan]) -> tuple[BillSpan, ...]:
    """Equal neighbours as one."""
    found: list[BillSpan] = []
    for span in spans:
        if found and replace(span, first=found[-1].first) == replace(found[-1], until=span.until):
            found[-1] = replace(found[-1], until=span.until)
        else:
            found.append(span)
    return tuple(found)


def events_of_points(
    points: Sequence[CostPoint], first: date, days: int, overlap: str = "distinct"
) -> list[BillingEvent]:
    """The events that recovery points make: a success at each, and what their expiry frees.

    Parameters
    ----------
    points : sequence of CostPoint
        By day, counted from `first`; `used` is the size of the protected instance.
    first : datetime.date
        On which protection is configured.
    days : int
        For so many days.
    overlap : str
        As in `vmbk.service.stored_days.stored_by_day`.

    Returns
    -------
    list of BillingEvent
    """
    stored = stored_by_day(points, days, overlap).tolist()
    made = {point.day: point for point in points}
    events = [BillingEvent(first, "protect")]
    before = 0
    for day, now in enumerate(stored):
        at = first + timedelta(day)
        if day in made:
            events.append(BillingEvent(at, "succeed", made[day].used, now))
        elif now != before:
            events.append(BillingEvent(at, "store", 0, now))
        before = now
    return events
