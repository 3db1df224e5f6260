"""Choices side by side: redundancy, retention, and whether to go on, stop or delete."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import polars as pl

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.archive import EARLY_DAYS
from vmbk.service.billing import check_soft_delete
from vmbk.service.cost import (
    PARTS,
    CostEstimate,
    CostLine,
    Usage,
    check_months,
    estimate,
    measure,
    priced,
    priced_all,
)
from vmbk.service.cost_items import CostDisk, CostRetention, CostVM, check_vms
from vmbk.service.cost_rules import MONTH, Readings
from vmbk.service.deletion import soft_deleted_days
from vmbk.service.prices import GB, REDUNDANCIES, Prices, check_redundancy, money
from vmbk.service.stored import (
    archived_points,
    chain_bytes,
    live_points,
    live_snapshots,
    merged,
    used_on,
)
from vmbk.units import quoted

# --- Comparisons ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CostRow:
    """One choice: its amounts by part, in the order of `PARTS`."""

    choice: str
    amounts: tuple[Decimal, ...]

    @property
    def total(self) -> Decimal:
        """All parts."""
        return sum(self.amounts, Decimal(0))

    def part(self, name: str) -> Decimal:
        """One of `PARTS`."""
        return self.amounts[PARTS.index(name)]


@dataclass(frozen=True)
class CostTable:
    """Choices side by side; `ratio` is to the first.

    Attributes
    ----------
    title, what : str
        `what` the choices are of, such as ``"redundancy"``.
    currency : str
    rows : tuple of CostRow
    """

    title: str
    what: str
    currency: str
    rows: tuple[CostRow, ...]

    def row(self, choice: str) -> CostRow:
        """The row of one choice.

        Raises
        ------
        InputError
            If there is none.
        """
        for row in self.rows:
            if row.choice == choice:
                return row
        known = ", ".join(row.choice for row in self.rows)
        raise InputError(f"{self.what} {quoted(choice)} is not one of {known}")

    def ratio(self, row: CostRow) -> float:
        """Its total by that of the first row; not a number where that is 0."""
        base = self.rows[0].total
        return float(row.total / base) if base else float("nan")

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that are not 0 in every row."""
        return tuple(name for name in PARTS if any(row.part(name) for row in self.rows))

    @property
    def frame(self) -> pl.DataFrame:
        """A row a choice: its name, Decimal columns of the parts and total, ``ratio`` (Float64)."""
        six = pl.Decimal(38, 6)
        columns = {self.what: pl.Series([row.choice for row in self.rows], dtype=pl.String)}
        for name in PARTS:
            column = name.replace(" ", "_")
            columns[column] = pl.Series([row.part(name) for row in self.rows], dtype=six)
        columns["total"] = pl.Series([row.total for row in self.rows], dtype=six)
        columns["ratio"] = pl.Series([self.ratio(row) for row in self.rows], dtype=pl.Float64)
        return pl.DataFrame(columns)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; amounts are binary floats, made of the decimal ones at the very end."""
        return {
            "title": self.title,
            "currency": self.currency,
            "rows": [
                {self.what: row.choice, "total": float(row.total)}
                | {name.replace(" ", "_"): float(row.part(name)) for name in PARTS}
                for row in self.rows
            ],
        }

    def _repr_html_(self) -> str:
        parts = self.parts
        rows = [
            (row.choice, *(f"{row.part(name):,.2f}" for name in parts), f"{row.total:,.2f}",
             f"{self.ratio(row):.2f}")
            for row in self.rows
        ]  # fmt: skip
        title = f"{self.title} ({self.currency})"
        return table(title, (self.what, *parts, "total", "ratio"), rows)


def _row(choice: str, found: CostEstimate) -> CostRow:
    return CostRow(choice, tuple(found.part(name) for name in PARTS))


def by_redundancy(
    vms: CostVM | Iterable[CostVM],
    prices: Prices,
    readings: Readings | None = None,
    months: int = 12,
    first_month: int = 0,
    redundancies: Sequence[str] = REDUNDANCIES,
) -> CostTable:
    """The same machines under each redundancy of the vault.

    Parameters and errors are those of `estimate`.
    """
    readings = readings or Readings()
    uses = measure(check_vms(vms), months, first_month, readings)
    rows = tuple(
        _row(name, priced_all(uses, prices, check_redundancy(name), readings, months, first_month))
        for name in redundancies
    )
    return CostTable(f"{months} months by redundancy", "redundancy", prices.currency, rows)


def sweep_retention(
    vms: CostVM | Iterable[CostVM],
    prices: Prices,
    retentions: Sequence[CostRetention],
    readings: Readings | None = None,
    months: int = 1,
    first_month: int = 0,
    redundancy: str | None = None,
) -> CostTable:
    """The same machines under each of some retentions.

    Parameters and errors are those of `estimate`.
    """
    machines = check_vms(vms)
    rows = []
    for retention in retentions:
        fleet = [replace(vm, retention=retention) for vm in machines]
        found = estimate(fleet, prices, redundancy, readings, months, first_month)
        rows.append(_row(str(retention), found))
    return CostTable(f"{months} months by retention", "retention", prices.currency, tuple(rows))


# --- Leaving --------------------------------------------------------------------------------------


def leaving(
    vms: CostVM | Iterable[CostVM],
    prices: Prices,
    after: int = 12,
    months: int = 12,
    soft_delete: int = 14,
    readings: Readings | None = None,
    redundancy: str | None = None,
) -> CostTable:
    """What it costs to go on, to stop and keep the data, or to stop and delete them.

    Whoever stops and keeps the data keeps paying for the instance as the last backup left it and
    for every point, since none expires any more; the snapshots are kept too. Whoever deletes pays,
    with a soft delete of more than 14 days, as if stopped until the last 14; points then leave the
    archive tier and are billed for what is left of their 180 days. Snapshots go at once.

    Parameters
    ----------
    vms, prices, readings, redundancy
        As for `estimate`.
    after : int
        Months since the first backup, at whose end protection is stopped.
    months : int
        Over how many months thereafter costs are counted.
    soft_delete : int
        Days that the vault keeps deleted data: 0, or 14 to 180.

    Returns
    -------
    CostTable
        Choices ``keep on``, ``stop, keep data`` and ``stop, delete``.

    Raises
    ------
    InputError
        As `estimate`; also for a soft delete that is not possible.
    """
    machines, readings = check_vms(vms), readings or Readings()
    check_months(after, months)
    if not after:
        raise InputError("nothing was backed up 0 months after the first backup")
    check_soft_delete(soft_delete)
    kept_days = min(soft_delete, months * MONTH)
    billed = soft_deleted_days(soft_delete, kept_days).billed if soft_delete else 0
    on = estimate(machines, prices, redundancy, readings, months, after)
    kept: list[CostLine] = []
    deleted: list[CostLine] = []
    for vm in machines:
        frozen = _frozen(vm, after * MONTH - 1, readings)
        own = redundancy or vm.redundancy
        for month in range(after, after + months):
            days = min(max(billed - (month - after) * MONTH, 0), MONTH)
            kept += priced(_scaled(frozen, month, MONTH), prices, own, readings)
            part = replace(_scaled(frozen, month, days), snapshot=0)
            deleted += priced(part, prices, own, readings)
        deleted += _early(vm, after * MONTH - 1, soft_delete, prices, own)
    rows = [_row("keep on", on)]
    for choice, lines in (("stop, keep data", kept), ("stop, delete", deleted)):
        rows.append(_row(choice, CostEstimate(prices, readings, months, after, tuple(lines))))
    title = f"{months} months, after {after} of protection"
    return CostTable(title, "choice", prices.currency, tuple(rows))


def _frozen(vm: CostVM, day: int, readings: Readings) -> Usage:
    """What a machine that stops at the end of a day keeps; byte-days are those of one day."""
    points, every = live_points(day, vm.retention), vm.retention.every
    away = archived_points(day, vm.retention)[0] if vm.archive else points[:0]
    near = np.setdiff1d(points, away, assume_unique=True)
    kept = vm.instant_days + (readings.snapshots == "one_more")
    shots = live_snapshots(day, every, kept)
    latest = np.array([day // every * every], np.int64)

    def snapshot(disk: CostDisk) -> int:
        if vm.subtype == "enhanced":
            return chain_bytes(disk, shots, readings.overlap)
        return sum(merged(disk, shots, np.append(shots[1:], day + 1), readings.overlap).tolist())

    return Usage(
        vm=vm,
        month=0,
        sizes=((sum(int(used_on(disk, latest)[0]) for disk in vm.instance_disks), 1),),
        vault=sum(chain_bytes(disk, near, readings.overlap) for disk in vm.included),
        snapshot=sum(snapshot(disk) for disk in vm.snapshot_disks),
        archive=sum(sum(used_on(disk, away).tolist()) for disk in vm.included),
        staging=Fraction(0),
    )


def _scaled(one_day: Usage, month: int, days: int) -> Usage:
    return replace(
        one_day,
        month=month,
        sizes=tuple((size, days) for size, _ in one_day.sizes),
        vault=one_day.vault * days,
        snapshot=one_day.snapshot * days,
        archive=one_day.archive * days,
    )


def _early(
    vm: CostVM, day: int, soft_delete: int, prices: Prices, redundancy: str
) -> Iterator[CostLine]:
    """What is billed for points that leave the archive tier too early."""
    if not vm.archive:
        return
    points, moved = archived_points(day, vm.retention)
    left = [max(EARLY_DAYS - (day + soft_delete - at), 0) for at in moved.tolist()]
    byte_days = sum(
        used * days
        for disk in vm.included
        for used, days in zip(used_on(disk, points).tolist(), left, strict=True)
    )
    amount = byte_days * Fraction(prices.archive.of(redundancy).value) / (GB * MONTH)
    yield CostLine(
        day // MONTH, vm.name, redundancy, "early deletion",
        byte_days * vm.count // MONTH, Decimal(0), money(amount * vm.count),
    )  # fmt: skip
