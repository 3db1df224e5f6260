"""What backup costs: protected instances, the vault, snapshots, the archive tier, staging.

`estimate` prices a fleet month by month; `vmbk.service.cost_tables` compares. Day 0 is the day of
the first successful backup, before which nothing is billed (`vmbk.service.billing`). A month has 31
days here, as retention counts them; a calendar's bill is `vmbk.service.bills.Bill.charge`.

Restores, their egress and storage transactions cost nothing (FAQ, pricing), so they are no part.

Sums are exact fractions; each line of an estimate is rounded to a millionth, and totals add lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import numpy as np
import polars as pl

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.cost_items import MOST_MONTHS, CostVM, check_vms
from vmbk.service.cost_rules import MONTH, Readings
from vmbk.service.plan import DAY
from vmbk.service.prices import GB, Prices, check_redundancy, money
from vmbk.service.protected_instance import instance_price, instances
from vmbk.service.stored import (
    snapshot_month,
    used_on,
    vault_month,
)
from vmbk.units import quoted

PARTS: Final = ("instance", "vault", "snapshot", "archive", "staging", "early deletion")
FREE: Final = ("restores", "egress of restores", "storage transactions")
"""What is not charged."""


# --- Quantities -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """What one machine uses in one month, before prices.

    Attributes
    ----------
    vm : CostVM
    month : int
        0 begins with the first backup.
    sizes : tuple of (int, int)
        Bytes of the protected instance, and days of the month on which it has them.
    vault, snapshot, archive : int
        Bytes times days.
    staging : Fraction
        Bytes times days in a premium account.
    """

    vm: CostVM
    month: int
    sizes: tuple[tuple[int, int], ...]
    vault: int
    snapshot: int
    archive: int
    staging: Fraction


def usage(vm: CostVM, month: int, readings: Readings | None = None) -> Usage:
    """What a machine uses in a month; see `Usage`.

    Raises
    ------
    InputError
        If the month is out of range.
    """
    readings = readings or Readings()
    check_months(month, 1)
    every, overlap = vm.retention.every, readings.overlap
    kept = vm.instant_days + (readings.snapshots == "one_more")
    vault, archive = vault_month(vm.retention, month, vm.archive)
    snapshot = snapshot_month(every, kept, month, vm.subtype == "enhanced")
    days = np.arange(month * MONTH, (month + 1) * MONTH, dtype=np.int64)
    backups, counts = np.unique(days // every * every, return_counts=True)
    size = np.zeros(len(backups), np.int64)
    for disk in vm.instance_disks:
        size += used_on(disk, backups)
    grown = any(disk.growth_per_day for disk in vm.instance_disks)
    if not grown:  # one size all month
        size, counts = size[:1], np.array([MONTH])
    staging = Fraction(0)
    if vm.staging:
        made = days[days % every == 0]
        copies = sum(sum(used_on(disk, made).tolist()) for disk in vm.included)
        staging = Fraction(copies * vm.staging, DAY)
    return Usage(
        vm=vm,
        month=month,
        sizes=tuple(zip(size.tolist(), counts.tolist(), strict=True)),
        vault=sum(vault.byte_days(disk, overlap) for disk in vm.included),
        snapshot=vm.snapshots
        * sum(snapshot.byte_days(disk, overlap) for disk in vm.snapshot_disks),
        archive=sum(archive.byte_days(disk, overlap) for disk in vm.included),
        staging=staging,
    )


# --- Priced ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostLine:
    """One part of one machine's cost in one month; all of its `count` machines together.

    Attributes
    ----------
    month : int
    vm : str
    redundancy : str
        Of the vault.
    part : str
        One of `PARTS`.
    bytes : int
        Mean over the month; of ``instance`` the size.
    instances : Decimal
        Mean over the month; 0 in other parts.
    amount : Decimal
        In the price list's currency, to a millionth.
    """

    month: int
    vm: str
    redundancy: str
    part: str
    bytes: int
    instances: Decimal
    amount: Decimal


def priced(use: Usage, prices: Prices, redundancy: str, readings: Readings) -> Iterator[CostLine]:
    """The lines of one machine's month; errors as for `estimate`."""
    vm = use.vm
    count = vm.count

    def line(part: str, byte_days: Fraction | int, amount: Fraction, mean: Fraction) -> CostLine:
        return CostLine(
            use.month, vm.name, redundancy, part, round(Fraction(byte_days) * count / MONTH),
            money(mean * count), money(amount * count),
        )  # fmt: skip

    def stored(part: str, byte_days: Fraction | int, price: Decimal) -> CostLine:
        return line(part, byte_days, byte_days * Fraction(price) / (GB * MONTH), Fraction(0))

    def mean(of: Iterable[tuple[Decimal, int]]) -> Fraction:
        return sum((Fraction(value) * days for value, days in of), Fraction(0)) / MONTH

    yield line(
        "instance",
        sum(size * days for size, days in use.sizes),
        mean((instance_price(size, prices, readings, vm.wish), days) for size, days in use.sizes),
        mean((instances(size, readings, vm.wish), days) for size, days in use.sizes),
    )
    yield stored("vault", use.vault, prices.storage.of(redundancy).value)
    if vm.snapshots:
        price = prices.snapshot.of(vm.snapshot_redundancy).value
        yield stored("snapshot", use.snapshot, price)
    if vm.archive:
        yield stored("archive", use.archive, prices.archive.of(redundancy).value)
    if vm.staging:
        yield stored("staging", use.staging, prices.staging_price().value)


def _sum(amounts: Iterable[Decimal]) -> Decimal:
    return sum(amounts, Decimal(0))


@dataclass(frozen=True)
class CostEstimate:
    """What a fleet costs, month by month.

    Attributes
    ----------
    prices : Prices
    readings : Readings
    months, first_month : int
    lines : tuple of CostLine
    """

    prices: Prices
    readings: Readings
    months: int
    first_month: int
    lines: tuple[CostLine, ...]

    def __repr__(self) -> str:
        return (
            f"<CostEstimate: {self.a_month:,.2f} {self.prices.currency} a month over {self.months}>"
        )

    @property
    def total(self) -> Decimal:
        """Of all months."""
        return _sum(line.amount for line in self.lines)

    @property
    def a_month(self) -> Decimal:
        """The mean of a month."""
        return money(Fraction(self.total) / self.months)

    def part(self, name: str) -> Decimal:
        """One of `PARTS`, over all months."""
        if name not in PARTS:
            raise InputError(f"part {quoted(name)} is not one of {', '.join(PARTS)}")
        return _sum(line.amount for line in self.lines if line.part == name)

    @property
    def by_part(self) -> tuple[tuple[str, Decimal], ...]:
        """Parts that some machine has, over all months."""
        have = {line.part for line in self.lines}
        return tuple((name, self.part(name)) for name in PARTS if name in have)

    @property
    def mean_instances(self) -> Decimal:
        """Protected instances in a mean month."""
        counted = _sum(line.instances for line in self.lines)
        return money(Fraction(counted) / self.months)

    @property
    def assumed(self) -> tuple[str, ...]:
        """Names of the prices it used that no document has."""
        used = {"storage": "vault", "snapshot": "snapshot", "archive": "archive",
                "staging": "staging", "instance": "instance"}  # fmt: skip
        have = {line.part for line in self.lines}
        return tuple(n for n in self.prices.assumed if used[n.split(".")[0]] in have)

    @property
    def frame(self) -> pl.DataFrame:
        """A row a line; ``bytes`` Int64, ``instances`` and ``amount`` Decimal with 6 digits."""
        lines = self.lines
        six = pl.Decimal(38, 6)
        return pl.DataFrame(
            {
                "month": pl.Series([x.month for x in lines], dtype=pl.Int64),
                "vm": pl.Series([x.vm for x in lines], dtype=pl.String),
                "redundancy": pl.Series([x.redundancy for x in lines], dtype=pl.String),
                "part": pl.Series([x.part for x in lines], dtype=pl.String),
                "bytes": pl.Series([x.bytes for x in lines], dtype=pl.Int64),
                "instances": pl.Series([x.instances for x in lines], dtype=six),
                "amount": pl.Series([x.amount for x in lines], dtype=six),
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON; amounts are binary floats, made of the decimal ones at the very end."""
        return {
            "currency": self.prices.currency,
            "region": self.prices.region,
            "prices_of": self.prices.date.isoformat(),
            "assumed_prices": list(self.assumed),
            "readings": vars(self.readings) | {},
            "months": self.months,
            "first_month": self.first_month,
            "total": float(self.total),
            "a_month": float(self.a_month),
            "parts": {name: float(amount) for name, amount in self.by_part},
            "protected_instances": float(self.mean_instances),
            "free": list(FREE),
            "lines": [
                {
                    "month": x.month, "vm": x.vm, "redundancy": x.redundancy, "part": x.part,
                    "bytes": x.bytes, "instances": float(x.instances), "amount": float(x.amount),
                }
                for x in self.lines
            ],
        }  # fmt: skip

    def _repr_html_(self) -> str:
        total = self.total
        rows = [
            (name, f"{amount:,.2f}", f"{float(amount / total) if total else 0:.1%}")
            for name, amount in self.by_part
        ]
        rows.append(("all", f"{total:,.2f}", ""))
        rows.append(("a month", f"{self.a_month:,.2f}", ""))
        told = (
            f"{self.months} months, {self.prices.currency}, {self.prices.region}, "
            f"prices of {self.prices.date}"
        )
        if self.assumed:
            told += f"; assumed: {', '.join(self.assumed)}"
        return table(told, ("part", "amount", "share"), rows)


def check_months(first_month: int, months: int) -> None:
    """Raise an `InputError` unless there is at least one month, and not too many."""
    good = type(first_month) is int and type(months) is int and first_month >= 0 and months >= 1
    if not good or first_month + months > MOST_MONTHS:
        raise InputError(
            f"{quoted(months)} months after {quoted(first_month)} are not 1 to {MOST_MONTHS:,}"
        )


def measure(
    vms: Iterable[CostVM], months: int, first_month: int, readings: Readings
) -> list[Usage]:
    """What machines use in some months, by month and then as the machines stand."""
    check_months(first_month, months)
    return [
        usage(vm, month, readings)
        for month in range(first_month, first_month + months)
        for vm in check_vms(vms)
    ]


def priced_all(
    uses: Sequence[Usage], prices: Prices, redundancy: str | None, readings: Readings,
    months: int, first_month: int,
) -> CostEstimate:  # fmt: skip
    """Quantities with prices put on; without a redundancy, under each machine's own."""
    lines = (
        line for use in uses
        for line in priced(use, prices, redundancy or use.vm.redundancy, readings)
    )  # fmt: skip
    return CostEstimate(prices, readings, months, first_month, tuple(lines))


def estimate(
    vms: CostVM | Iterable[CostVM],
    prices: Prices,
    redundancy: str | None = None,
    readings: Readings | None = None,
    months: int = 1,
    first_month: int = 0,
) -> CostEstimate:
    """What machines cost, month by month.

    Stored bytes follow the formulas of `vmbk.service.stored`, day by day; prices are for a GB of
    10^9 bytes and a month. Restores and transactions cost nothing.

    Parameters
    ----------
    vms : CostVM, or an iterable of them
    prices : Prices
    redundancy : str, optional
        Of the vault, instead of each machine's own.
    readings : Readings, optional
        How documents are read where they disagree.
    months : int
        How many, of 31 days.
    first_month : int
        Months that passed before: 0 begins with the first successful backup. A vault is as full
        as it gets once the longest retention has passed.

    Returns
    -------
    CostEstimate

    Raises
    ------
    InputError
        If a name or number is out of range, or the list lacks a price that is needed.
    """
    if redundancy is not None:
        check_redundancy(redundancy)
    readings = readings or Readings()
    uses = measure(check_vms(vms), months, first_month, readings)
    return priced_all(uses, prices, redundancy, readings, months, first_month)
