"""Prices: a dated list for one region, with the source of each number.

Money is `decimal.Decimal`; what is computed of it is an exact fraction until it becomes a line of
an estimate or a bill, rounded to millionths by `money`. A GB of a price is 10^9 bytes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_HALF_EVEN, Context, Decimal
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

import polars as pl

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.fields import Fields, read_declaration
from vmbk.units import quoted

GB: Final = 10**9
"""Bytes of the GB that prices are for."""

REDUNDANCIES: Final = ("LRS", "ZRS", "GRS", "RA-GRS")
DEFAULT_REDUNDANCY: Final = "GRS"
"""Of a vault whose owner chose none (S4)."""

MOST_PRICE: Final = Decimal(10**9)
_MILLIONTH: Final = Decimal("0.000001")
_WIDE: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)
_DECIMAL: Final = re.compile(r"\d{1,10}(\.\d{1,12})?", re.ASCII)


def money(amount: Fraction | Decimal | int) -> Decimal:
    """An exact amount as a line of a bill: rounded to millionths, half to even."""
    exact = Fraction(amount)
    value = _WIDE.divide(Decimal(exact.numerator), Decimal(exact.denominator))
    return value.quantize(_MILLIONTH, context=_WIDE)


def read_price(fields: Fields, key: str) -> Decimal:
    """A price: a number that is not negative, as a text or as TOML has it, exactly as written.

    Raises
    ------
    InputError
        If it is none; the message names the field.
    """
    value = fields.get(key)
    text = value if isinstance(value, str) else repr(value)
    if type(value) is float and "e" in text:
        text = format(Decimal(text), "f")
    if type(value) not in (str, int, float) or not _DECIMAL.fullmatch(text):
        raise fields.fail(key, "is not a price", 'write it as 0.028 or "0.028"')
    price = Decimal(text)
    if price > MOST_PRICE:
        raise fields.fail(key, f"is more than {MOST_PRICE:,}")
    return price


@dataclass(frozen=True)
class Price:
    """One number of the list.

    Attributes
    ----------
    name : str
        Where the list has it, such as ``"storage.LRS"``.
    value : Decimal
        In the list's currency.
    source : str
        Where it is from.
    assumed : bool
        No document has it.
    """

    name: str
    value: Decimal
    source: str
    assumed: bool = False

    @classmethod
    def parse(cls, fields: Fields, key: str, source: str) -> Self:
        """Read one: a number, or a table of ``value``, ``source`` and ``assumed``."""
        name = fields.where(key)
        if not isinstance(fields.get(key), dict):
            return cls(name, read_price(fields, key), source)
        inner = Fields(fields.get(key), name, ("value", "source", "assumed"))
        told = inner.text("source", source, most=300)
        return cls(name, read_price(inner, "value"), told, inner.flag("assumed", False))


@dataclass(frozen=True)
class Step:
    """Of the list of protected instances by size: up to so many bytes, this price a month."""

    up_to: int
    price: Decimal


@dataclass(frozen=True)
class InstancePrices:
    """What a protected instance costs for a month.

    Attributes
    ----------
    one : Price
        A whole one.
    steps : tuple of Step
        The list by size, ascending.
    further_size : int
        Bytes after the last step that add `further_price` each time they are begun.
    further_price : Decimal
    source : str
        Of the list by size.
    """

    one: Price
    steps: tuple[Step, ...]
    further_size: int
    further_price: Decimal
    source: str

    @classmethod
    def parse(cls, content: Any, name: str, source: str) -> Self:
        """Read the table ``[instance]``."""
        fields = Fields(content, name, ("one", "steps", "further"))
        steps = []
        for n, row in enumerate(fields.tables("steps", 100)):
            step = Fields(row, f"{name}.steps[{n}]", ("up_to", "price"))
            steps.append(Step(step.size("up_to", least=1), read_price(step, "price")))
        for n, (a, b) in enumerate(pairwise(steps), 1):
            if b.up_to <= a.up_to or b.price < a.price:
                raise InputError(f"{name}.steps[{n}]: steps must ascend in size and price")
        if not steps:
            raise InputError(
                f"{name}.steps is missing", hint="the prices by size, [[instance.steps]]"
            )
        further = Fields(fields.get("further"), f"{name}.further", ("size", "price", "source"))
        return cls(
            Price.parse(fields, "one", source),
            tuple(steps),
            further.size("size", least=1),
            read_price(further, "price"),
            further.text("source", source, most=300),
        )


@dataclass(frozen=True)
class Rates:
    """Prices of a GB for a month by redundancy, in the order of `REDUNDANCIES`; None is absent."""

    name: str
    by_redundancy: tuple[Price | None, ...]

    @classmethod
    def parse(cls, fields: Fields, key: str, source: str, required: bool = False) -> Self:
        """Read a table such as ``[storage]``; without it every price is absent."""
        if key not in fields and not required:
            return cls(key, (None,) * len(REDUNDANCIES))
        inner = Fields(fields.get(key), fields.where(key), REDUNDANCIES)
        return cls(
            key, tuple(Price.parse(inner, r, source) if r in inner else None for r in REDUNDANCIES)
        )

    def of(self, redundancy: str) -> Price:
        """The price under one redundancy.

        Raises
        ------
        InputError
            If there is no such redundancy, or the list has no price for it.
        """
        check_redundancy(redundancy)
        price = self.by_redundancy[REDUNDANCIES.index(redundancy)]
        if price is None:
            raise InputError(
                f"the price list has no {self.name}.{redundancy}",
                hint=f"copy the list, add the price under [{self.name}], and give that list",
            )
        return price


def check_redundancy(redundancy: str) -> str:
    """The name itself, if there is such a redundancy; else an `InputError`."""
    if redundancy not in REDUNDANCIES:
        raise InputError(f"redundancy {quoted(redundancy)} is not one of {', '.join(REDUNDANCIES)}")
    return redundancy


@dataclass(frozen=True)
class Prices:
    """A price list.

    Attributes
    ----------
    title : str
    date : datetime.date
        When the prices were read.
    currency, region, source : str
        `source` is that of every price without its own.
    storage, snapshot, archive : Rates
        A GB for a month in the vault, the snapshot tier, the archive tier.
    staging : Price or None
        A GB for a month in a premium storage account.
    instance : InstancePrices
    """

    title: str
    date: date
    currency: str
    region: str
    source: str
    storage: Rates
    snapshot: Rates
    archive: Rates
    staging: Price | None
    instance: InstancePrices

    @classmethod
    def parse(cls, content: Any, name: str = "") -> Self:
        """Read a price list out of a table.

        Raises
        ------
        InputError
            If a field is unknown, missing or no price; the message names it.
        """
        known = ("title", "date", "currency", "region", "source", "storage", "snapshot", "archive",
                 "staging", "instance")  # fmt: skip
        fields = Fields(content, name, known)
        source = fields.text("source", most=300)
        where = fields.where("instance")
        return cls(
            title=fields.text("title", "prices"),
            date=fields.day("date"),
            currency=fields.text("currency", most=20),
            region=fields.text("region"),
            source=source,
            storage=Rates.parse(fields, "storage", source, required=True),
            snapshot=Rates.parse(fields, "snapshot", source),
            archive=Rates.parse(fields, "archive", source),
            staging=Price.parse(fields, "staging", source) if "staging" in fields else None,
            instance=InstancePrices.parse(fields.get("instance"), where, source),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Self:
        """Read a price list from a TOML file; without a path, the one that vmbk ships.

        Raises
        ------
        NotFoundError, InputError
            If there is none, or it is not one.
        """
        if path is None:
            path = Path(__file__).with_name("prices.toml")
        return cls.parse(read_declaration(path, "price list"))

    def staging_price(self) -> Price:
        """Of premium storage; an `InputError` where the list has none."""
        if self.staging is None:
            raise InputError(
                "the price list has no staging price",
                hint="add `staging = ...`, a GB-month of the premium account that is staged in",
            )
        return self.staging

    @property
    def every(self) -> tuple[Price, ...]:
        """All prices but the list of instances by size."""
        rates = (*self.storage.by_redundancy, *self.snapshot.by_redundancy,
                 *self.archive.by_redundancy, self.staging, self.instance.one)  # fmt: skip
        return tuple(price for price in rates if price is not None)

    @property
    def assumed(self) -> tuple[str, ...]:
        """Names of the prices that no document has."""
        return tuple(price.name for price in self.every if price.assumed)

    @property
    def frame(self) -> pl.DataFrame:
        """Columns ``price`` (str), ``value`` (Decimal), ``source`` (str), ``assumed`` (bool)."""
        rows = [(p.name, p.value, p.source, p.assumed) for p in self.every]
        return pl.DataFrame(
            rows,
            schema={
                "price": pl.String,
                "value": pl.Decimal(38, 12),
                "source": pl.String,
                "assumed": pl.Boolean,
            },
            orient="row",
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; numbers are binary floats, made of the decimal ones at the very end."""
        steps = [{"up_to": s.up_to, "price": float(s.price)} for s in self.instance.steps]
        return {
            "title": self.title,
            "date": self.date.isoformat(),
            "currency": self.currency,
            "region": self.region,
            "prices": [
                {"name": p.name, "value": float(p.value), "source": p.source, "assumed": p.assumed}
                for p in self.every
            ],
            "instance_steps": steps,
            "instance_further": {
                "size": self.instance.further_size,
                "price": float(self.instance.further_price),
            },
        }

    def _repr_html_(self) -> str:
        rows = [
            (p.name, p.value, p.source + (" (assumed)" if p.assumed else "")) for p in self.every
        ]
        rows += [
            (f"instance up to {s.up_to / GB:g} GB", s.price, self.instance.source)
            for s in self.instance.steps
        ]
        told = f"{self.title} ({self.region}, {self.currency}, {self.date})"
        return table(told, ("price", "a month", "source"), rows)


@cache
def shipped_prices() -> Prices:
    """The price list that vmbk ships."""
    return Prices.load()
