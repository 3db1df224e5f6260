"""What backup costs: stored bytes against blocks that are counted, and estimates made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vmbk.errors import InputError
from vmbk.service.cost import FREE, PARTS, estimate, usage
from vmbk.service.cost_items import (
    MOST_DISK,
    CostDisk,
    CostFleet,
    CostRetention,
    CostVM,
)
from vmbk.service.cost_rules import MONTH, Readings
from vmbk.service.cost_tables import by_redundancy, leaving, sweep_retention
from vmbk.service.points import NEVER, Term, keep
from vmbk.service.policy import Policy
from vmbk.service.prices import GB, REDUNDANCIES, Prices, money, shipped_prices
from vmbk.service.protected_instance import instance_price, protected_size
from vmbk.service.retention import Retention
from vmbk.service.schedule import DAY_NS
from vmbk.service.stored import (
    archived_points,
    chain_bytes,
    live_points,
    merged,
    snapshot_bytes,
    used_on,
)
from vmbk.service.stored_days import CostPoint, points_of, stored_by_day

PRICES = shipped_prices()
FULL_LIST = Prices.parse(
    {
        "date": date(2026, 1, 1), "currency": "USD", "region": "test", "source": "test",
        "storage": {"LRS": 0.028, "ZRS": 0.035, "GRS": 0.056, "RA-GRS": 0.0711},
        "snapshot": {"LRS": 0.05, "ZRS": 0.06}, "archive": {"LRS": 0.004, "GRS": 0.008},
        "staging": 0.2,
        "instance": {"one": 10, "further": {"size": "500GB", "price": 10},
                     "steps": [{"up_to": "50GB", "price": 5}, {"up_to": "500GB", "price": 10}]},
    }
)  # fmt: skip
OVERLAPS = ("distinct", "random", "same")


def machine(used: int = 100, churn: int = 2, **more: object) -> CostVM:
    """One OS disk of 1 TB; sizes in GB."""
    disk = CostDisk("os", 1000 * GB, used * GB, churn * GB, operating_system=True)
    return CostVM("vm", (disk,), **more)  # type: ignore[arg-type]


# --- Golden values -------------------------------------------------------------------------------


def test_g4_the_seeds_example_costs_the_step_of_50_gb() -> None:
    disks = (
        CostDisk("os", 32_000 * GB, 17 * GB, operating_system=True),
        CostDisk("temp", 135 * GB, 5 * GB, 5 * GB, temporary=True),
        CostDisk("data1", 32_000 * GB, 30 * GB),
        CostDisk("data2", 32_000 * GB, 0),
    )
    found = estimate(CostVM("A2", disks), PRICES)
    by_part = {line.part: line for line in found.lines}
    assert by_part["instance"].bytes == 47 * GB
    assert by_part["instance"].amount == 5
    assert by_part["vault"].bytes == 47 * GB  # the temporary disk's churn is nowhere
    assert by_part["vault"].amount == Decimal("2.632")  # 47 GB of GRS at 0.056
    assert by_part["snapshot"].bytes == 0


def test_g5_snapshots_of_100_gb_with_2_percent_churn_and_5_days() -> None:
    assert snapshot_bytes(100 * GB, 2 * GB, 5) == 10 * GB
    assert snapshot_bytes(100 * GB, 2 * GB, 5, "enhanced") == 108 * GB
    # The same out of an estimate, once the tier is full.
    for subtype, wanted in (("standard", 10), ("enhanced", 108)):
        vm = machine(subtype=subtype, instant_days=5)
        (line,) = [x for x in estimate(vm, PRICES, first_month=3).lines if x.part == "snapshot"]
        assert line.bytes == wanted * GB
        assert line.amount == wanted * Decimal("0.05")
    one_more = Readings(snapshots="one_more")
    kept = usage(machine(instant_days=5), 3, one_more).snapshot
    assert kept == 12 * GB * MONTH


def test_g6_prices_by_size_out_of_an_estimate() -> None:
    for used, price in ((50, 5), (51, 10), (500, 10), (501, 20), (2000, 40)):
        disk = CostDisk("os", 4000 * GB, used * GB)
        assert estimate(CostVM("vm", (disk,)), PRICES).part("instance") == price


def test_g7_soft_delete_of_60_days_is_billed_for_46() -> None:
    # Of month 12 on: 31 days, then 15, then nothing; 14 are free.
    vm = machine(used=50, churn=0)
    deleted = leaving(vm, PRICES, after=12, months=3, soft_delete=60).row("stop, delete")
    assert deleted.part("vault") == money(Fraction(50 * 56, 1000) * 46 / 31)
    assert deleted.part("instance") == money(Fraction(5)) + money(Fraction(5 * 15, 31))
    for free in (14, 0):
        free_row = leaving(vm, PRICES, after=12, months=3, soft_delete=free).row("stop, delete")
        assert free_row.total == 0


def test_g15_excluding_two_of_three_equal_disks_saves_two_thirds() -> None:
    disks = tuple(CostDisk(name, 100 * GB, 60 * GB, GB) for name in "abc")
    one = (disks[0], *(replace(disk, excluded=True) for disk in disks[1:]))
    vm, less = CostVM("all", disks, "enhanced"), CostVM("one", one, "enhanced")
    assert less.excluded_share == Fraction(2, 3)
    assert f"{float(less.excluded_share):.1%}" == "66.7%"
    whole, part = estimate(vm, PRICES), estimate(less, PRICES)
    for name in ("vault", "snapshot"):
        assert float(1 - part.part(name) / whole.part(name)) == pytest.approx(2 / 3, abs=1e-6)
    # A standard policy keeps snapshots of all disks, and bills the instance for all of them.
    standard, kept = CostVM("all", disks), CostVM("one", one)
    assert estimate(kept, PRICES).part("snapshot") == estimate(standard, PRICES).part("snapshot")
    assert estimate(kept, PRICES).part("instance") == estimate(standard, PRICES).part("instance")
    assert estimate(kept, PRICES).part("vault") == part.part("vault")


def test_g16_churn_of_10_of_200_gb_is_5_percent() -> None:
    vm = machine(200, 10)
    assert vm.churn_share == Fraction(5, 100)
    told = {"size": "1TB", "used": "200GB", "churn": "5%"}
    assert CostDisk.parse(told, "disk").churn_per_day == 10 * GB
    presets = {"low": 2, "moderate": 6, "high": 10}
    for name, churn in presets.items():
        assert CostDisk.parse(told | {"churn": name}, "disk").churn_per_day == churn * GB


def test_months_of_31_days() -> None:
    # 12 monthly points are kept for 372 days: the first is gone on the day of the 13th.
    kept = CostRetention(7, monthly=12)
    assert live_points(371, kept)[0] == 0
    assert live_points(372, kept)[0] == 31


# --- Stored bytes against blocks -----------------------------------------------------------------


class Blocks:
    """A disk of blocks, its points, and which versions of which blocks live points resolve to."""

    def __init__(self, used: int) -> None:
        self.now = dict.fromkeys(range(used), 0)
        self.points: dict[int, dict[int, int]] = {}

    def stored(self, live: list[int]) -> int:
        return len({pair for day in live for pair in self.points[day].items()})


def naive_live(day: int, kept: CostRetention) -> list[int]:
    """Points that live, from the definition: each is held by the classes it is the first of."""
    every = 1 if kept.daily else 7
    backups = range(0, day + 1, every)
    live = set()
    for point in backups:
        ends = [point + kept.daily] if kept.daily else []
        for period, count in ((7, kept.weekly), (MONTH, kept.monthly), (12 * MONTH, kept.yearly)):
            start = point // period * period
            if point - every < start:  # no backup before it in this period
                ends.append(start + count * period)
        if max(ends, default=0) > day or point == backups[-1]:
            live.add(point)
    return sorted(live)


RETENTIONS = st.builds(
    CostRetention, st.integers(1, 40), st.integers(0, 12), st.integers(0, 14), st.integers(0, 3)
) | st.builds(
    CostRetention, st.just(0), st.integers(1, 12), st.integers(0, 14), st.integers(0, 3)
)  # fmt: skip


@given(RETENTIONS, st.integers(0, 1500))
def test_live_points_are_those_of_the_definition(kept: CostRetention, day: int) -> None:
    found = live_points(day, kept).tolist()
    assert found == naive_live(day, kept)
    assert found == sorted(set(found))


@settings(max_examples=60)
@given(
    RETENTIONS, st.integers(1, 40), st.integers(0, 40), st.integers(1, 150),
    st.sampled_from(["distinct", "same"]),
)  # fmt: skip
def test_the_formula_counts_the_blocks_that_live_points_resolve_to(
    kept: CostRetention, used: int, churn: int, days: int, overlap: str
) -> None:
    churn = min(churn, used)
    blocks, disk = Blocks(used), CostDisk("d", used, used, churn)
    for day in range(days):
        if day:  # each day writes the next blocks in turn, or always the first
            first = (day - 1) * churn if overlap == "distinct" else 0
            for n in range(churn):
                blocks.now[(first + n) % used] = day
        if day % kept.every == 0:
            blocks.points[day] = dict(blocks.now)
    day = days - 1
    points = live_points(day, kept)
    assert chain_bytes(disk, points, overlap) == blocks.stored(points.tolist())
    # The same, from a list of points with their changed bytes.
    told = []
    alive = [set(naive_live(d, kept)) for d in range(days)]
    for before, at in pairwise([None, *blocks.points]):
        ends = [d for d in range(at, days) if at not in alive[d]]
        span = at - before if before is not None else 0
        changed = min(churn * span, used) if overlap == "distinct" else churn
        told.append(CostPoint(at, used, changed if at else used, min(ends, default=NEVER)))
    stored = stored_by_day(told, days, overlap)
    assert stored[day] == blocks.stored(points.tolist())


@given(RETENTIONS, st.integers(1, 30), st.integers(0, 10), st.integers(1, 100))
def test_a_disk_that_only_grows(kept: CostRetention, used: int, growth: int, days: int) -> None:
    size = used + 2000  # it never gets full
    disk = CostDisk("d", size, used, growth, growth)
    points = live_points(days, kept)
    # Nothing is overwritten, so all points together hold what the latest uses.
    for overlap in OVERLAPS:
        assert chain_bytes(disk, points, overlap) == used_on(disk, points[-1:])[0]


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 400))
def test_readings_of_overlap_are_ordered_and_bounded(used: int, churn: int, gap: int) -> None:
    disk = CostDisk("d", used, used, min(churn, used))
    since, until = np.array([0]), np.array([gap])
    distinct, random, same = (int(merged(disk, since, until, o)[0]) for o in OVERLAPS)
    assert same <= random <= distinct <= used
    if gap == 1:
        assert same == random == distinct


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 50), st.integers(1, 60)), max_size=25),
    st.sampled_from(OVERLAPS),
)
def test_stored_by_day_against_the_definition(
    rows: list[tuple[int, int, int]], overlap: str
) -> None:
    points, day = [], -1
    for gap, changed, life in rows:
        day += gap
        points.append(CostPoint(day, 40, changed, day + life))
    days = day + 70
    stored = stored_by_day(points, days, overlap, keep_latest=False)
    for at in range(days):
        total, since, first = 0.0, [], True
        for point in points:
            if point.day > at:
                break
            since.append(min(point.changed, 40))
            if point.expires > at:
                untouched = 40.0
                for change in since:
                    untouched *= 1 - change / 40
                merge = {
                    "distinct": min(40, sum(since)),
                    "same": max(since),
                    "random": 40 - untouched,
                }
                total += 40 if first else merge[overlap]
                first, since = False, []
        assert stored[at] == pytest.approx(total, abs=0 if overlap != "random" else len(points))
    assert (stored[:1] == 0).all() or points[0].day == 0
    kept = stored_by_day(points, days, overlap)
    assert (kept >= stored).all()
    if points:
        assert kept[-1] >= 40 * (days > points[-1].day)


def test_points_of_a_calendar() -> None:
    first = date(2026, 1, 5)
    policy = Policy("p", retention=Retention(7, weekly=4, monthly=12))
    times = np.arange(400, dtype=np.int64) * DAY_NS
    kept = keep(times, first, [Term(0, policy)])
    points = points_of(kept, [100] * 400, [100] + [3] * 399)
    stored = stored_by_day(points, 400, keep_latest=False)
    for day in (0, 10, 100, 399):
        live = [point.day for point in points if point.day <= day < point.expires]
        wanted = 100 + sum(min(100, 3 * (b - a)) for a, b in pairwise(live))
        assert stored[day] == wanted
    with pytest.raises(InputError, match="400 points with 1 and 2 sizes"):
        points_of(kept, [1], [1, 2])


def test_bad_points() -> None:
    with pytest.raises(InputError, match="changed -1 of a point"):
        CostPoint(0, 1, -1)
    with pytest.raises(InputError, match="cannot expire on day 3"):
        CostPoint(3, 1, 1, 3)
    with pytest.raises(InputError, match="must ascend"):
        stored_by_day([CostPoint(1, 1, 1), CostPoint(1, 1, 1)], 3)
    with pytest.raises(InputError, match="'most' is not one of"):
        stored_by_day([], 3, "most")
    with pytest.raises(InputError, match="days are not from 0"):
        stored_by_day([], 10**9)
    with pytest.raises(InputError, match="days of instant restore 0"):
        snapshot_bytes(1, 1, 0)
    with pytest.raises(InputError, match="subtype 'basic'"):
        snapshot_bytes(1, 1, 1, "basic")
    many = [CostPoint(day, MOST_DISK, MOST_DISK) for day in range(20_000)]
    with pytest.raises(InputError, match="63 bits"):
        stored_by_day(many, 20_000)


# --- Archive tier --------------------------------------------------------------------------------


def test_what_moves_to_the_archive_tier() -> None:
    kept = CostRetention(30, 12, 24, 10)
    points, moved = archived_points(200, kept)
    assert points.tolist() == [0, 31, 62, 93]
    assert moved.tolist() == [93, 124, 155, 186]
    assert archived_points(92, kept)[0].tolist() == []
    # Less than six months left once it is old enough: none, but the yearly ones.
    assert archived_points(500, CostRetention(30, 12, 8))[0].tolist() == []
    assert archived_points(500, CostRetention(30, 12, 9))[0].tolist() == [
        248,
        279,
        310,
        341,
        372,
        403,
    ]
    assert archived_points(500, CostRetention(30, 12, 8, 2))[0].tolist() == [0, 372]
    # As long as a daily or weekly class keeps it, it stays.
    assert archived_points(200, CostRetention(180, 0, 24))[0].tolist() == [0]
    weekly = archived_points(200, CostRetention(30, 20, 24))
    assert weekly[0].tolist() == [0, 31, 62, 93]
    assert weekly[1].tolist() == [140, 124, 155, 186]


def test_a_point_in_the_archive_is_a_full_copy() -> None:
    kept = CostRetention(30, 0, 24)
    near, away = (estimate(machine(100, 0, retention=kept, archive=a), FULL_LIST, first_month=12)
                  for a in (False, True))  # fmt: skip
    assert near.part("archive") == 0
    # With no churn the vault holds 100 GB either way: archiving only adds copies.
    assert near.part("vault") == away.part("vault") == Decimal("5.6")
    copies = [x.bytes for x in away.lines if x.part == "archive"]
    assert copies == [1000 * GB]  # points of months 0 to 9
    assert away.total > near.total
    # With much churn it pays.
    near, away = (estimate(machine(100, 50, retention=kept, archive=a), FULL_LIST, first_month=12)
                  for a in (False, True))  # fmt: skip
    assert away.total < near.total
    with pytest.raises(InputError, match=r"no archive\.GRS"):
        estimate(machine(archive=True), PRICES)


def test_leaving_the_archive_early_is_billed_for_180_days() -> None:
    vm = machine(100, 0, retention=CostRetention(30, 0, 24), archive=True, redundancy="LRS")
    row = leaving(vm, FULL_LIST, after=6, months=6, soft_delete=0).row("stop, delete")
    # Stopped at the end of day 185: points 0, 31 and 62 moved on days 93, 124, 155.
    early = sum(180 - (185 - moved) for moved in (93, 124, 155))
    assert row.part("early deletion") == money(Fraction(early * 100 * 4, 1000 * MONTH))
    assert row.total == row.part("early deletion")
    later = leaving(vm, FULL_LIST, after=6, months=6, soft_delete=180).row("stop, delete")
    assert later.part("early deletion") == 0


# --- Estimates -----------------------------------------------------------------------------------


def naive_estimate(
    vm: CostVM, month: int, prices: Prices, readings: Readings
) -> dict[str, Fraction]:
    """Of one machine, day by day from the definitions; distinct or same overlap, no archive."""
    totals = dict.fromkeys(("instance", "vault", "snapshot"), Fraction(0))

    def used(disk: CostDisk, day: int) -> int:
        return min(disk.size, disk.used + disk.growth_per_day * day)

    def changed(disk: CostDisk, since: int, until: int) -> int:
        new = used(disk, until) - used(disk, since)
        if readings.overlap == "distinct":
            return min(used(disk, until), max(disk.churn_per_day * (until - since), new))
        again = min(max(disk.churn_per_day - disk.growth_per_day, 0), used(disk, since))
        return min(used(disk, until), new + again)

    every = 1 if vm.retention.daily else 7
    for day in range(month * MONTH, (month + 1) * MONTH):
        latest = day // every * every
        size = sum(used(disk, latest) for disk in vm.instance_disks)
        totals["instance"] += Fraction(instance_price(size, prices, readings, vm.wish))
        live = naive_live(day, vm.retention)
        stored = sum(
            used(disk, live[0]) + sum(changed(disk, a, b) for a, b in pairwise(live))
            for disk in vm.included
        )
        totals["vault"] += stored * Fraction(prices.storage.of(vm.redundancy).value) / GB
        days = vm.instant_days + (readings.snapshots == "one_more")
        shots = [d for d in range(0, day + 1, every) if day - d < days or d == latest]
        shot = 0
        for disk in vm.snapshot_disks:
            if vm.subtype == "enhanced":
                shot += used(disk, shots[0]) + sum(changed(disk, a, b) for a, b in pairwise(shots))
            else:
                shot += sum(changed(disk, a, b) for a, b in pairwise([*shots, day + 1]))
        totals["snapshot"] += shot * Fraction(prices.snapshot.of(vm.snapshot_redundancy).value) / GB
    return {name: total * vm.count / MONTH for name, total in totals.items()}


@st.composite
def disks(draw: st.DrawFn) -> CostDisk:
    size = draw(st.integers(0, 4 * 10**12))
    temporary = draw(st.booleans())
    return CostDisk(
        "d", size, draw(st.integers(0, size)), draw(st.integers(0, size)),
        draw(st.integers(0, min(size, 10**10))), temporary, draw(st.booleans()),
        draw(st.booleans()) and not temporary,
    )  # fmt: skip


@st.composite
def machines(draw: st.DrawFn) -> CostVM:
    subtype = draw(st.sampled_from(["standard", "enhanced"]))
    wishes = ["application", "filesystem"] + ["crash"] * (subtype == "enhanced")
    return CostVM(
        "vm",
        tuple(draw(st.lists(disks(), max_size=3))),
        subtype,
        draw(st.sampled_from(wishes)),
        draw(RETENTIONS),
        draw(st.integers(1, 5 if subtype == "standard" else 30)),
        draw(st.sampled_from(REDUNDANCIES)),
        "ZRS" if subtype == "enhanced" and draw(st.booleans()) else "LRS",
        count=draw(st.integers(1, 5)),
    )


READINGS = st.builds(
    Readings,
    st.sampled_from(["steps", "half", "whole", "flat"]),
    st.sampled_from(["vm", "share"]),
    st.sampled_from(["distinct", "same"]),
    st.sampled_from(["days", "one_more"]),
)


@settings(max_examples=40, deadline=None)
@given(machines(), st.integers(0, 14), READINGS)
def test_the_closed_form_is_the_naive_day_by_day_sum(
    vm: CostVM, month: int, readings: Readings
) -> None:
    wanted = naive_estimate(vm, month, FULL_LIST, readings)
    found = estimate(vm, FULL_LIST, readings=readings, first_month=month)
    for name, amount in wanted.items():
        assert found.part(name) == money(amount)
    assert found.total == sum(found.part(name) for name in PARTS)


@settings(max_examples=40, deadline=None)
@given(machines(), st.integers(0, 14), READINGS, st.integers(0, 10**12), st.integers(1, 40))
def test_more_of_anything_never_costs_less(
    vm: CostVM, month: int, readings: Readings, more: int, longer: int
) -> None:
    assume(vm.disks)
    disk = vm.disks[0]
    base = estimate(vm, FULL_LIST, readings=readings, first_month=month)
    used = replace(disk, used=min(disk.used + more, disk.size))
    churn = replace(disk, churn_per_day=min(disk.churn_per_day + more, disk.size))
    kept = vm.retention
    larger = [
        replace(vm, disks=(used, *vm.disks[1:])),
        replace(vm, disks=(churn, *vm.disks[1:])),
        replace(vm, retention=replace(kept, weekly=kept.weekly + longer)),
        replace(vm, retention=replace(kept, monthly=kept.monthly + longer)),
        replace(vm, retention=replace(kept, yearly=kept.yearly + 1)),
        replace(vm, count=vm.count + 1),
    ]
    if kept.daily:
        larger.append(replace(vm, retention=replace(kept, daily=kept.daily + longer)))
    for other in larger:
        found = estimate(other, FULL_LIST, readings=readings, first_month=month)
        for part in ("instance", "vault", "snapshot"):
            if part == "snapshot" and other is larger[0] and disk.growth_per_day:
                continue  # a fuller disk has less room to grow, and these snapshots hold changes
            assert found.part(part) >= base.part(part), (part, other)


@settings(max_examples=25, deadline=None)
@given(machines())
def test_redundancy_costs_in_the_order_of_its_prices(vm: CostVM) -> None:
    table = by_redundancy(vm, FULL_LIST, months=2)
    totals = [row.total for row in table.rows]
    assert totals == sorted(totals)
    assert table.row(vm.redundancy).total == estimate(vm, FULL_LIST, months=2).total


def test_ratios_of_redundancies() -> None:
    table = by_redundancy(machine(), PRICES)
    base = table.row("LRS").part("vault")
    ratios = [float(table.row(name).part("vault") / base) for name in REDUNDANCIES]
    assert ratios == pytest.approx([1, 1.25, 2, 2.539], abs=0.001)
    assert table.frame.columns == ["redundancy", "instance", "vault", "snapshot", "archive",
                                   "staging", "early_deletion", "total", "ratio"]  # fmt: skip
    assert json.loads(json.dumps(table.to_dict()))["rows"][0]["redundancy"] == "LRS"
    assert "RA-GRS" in table._repr_html_()
    with pytest.raises(InputError, match="'GRX' is not one of LRS"):
        table.row("GRX")


def test_a_sweep_over_retention() -> None:
    counts = [
        CostRetention(7),
        CostRetention(30),
        CostRetention(30, 12),
        CostRetention(30, 12, 60, 10),
    ]
    table = sweep_retention([machine()], PRICES, counts, first_month=130)
    assert [row.choice for row in table.rows] == ["7d", "30d", "30d 12w", "30d 12w 60m 10y"]
    totals = [row.total for row in table.rows]
    assert totals == sorted(set(totals))
    # 100 GB with 2 GB a day: 6 more points of 2 GB, 29 more.
    assert table.rows[0].part("vault") == Decimal("0.056") * 112
    assert table.rows[1].part("vault") == Decimal("0.056") * 158


def test_growth() -> None:
    disk = CostDisk("os", 1000 * GB, 40 * GB, GB, GB)
    found = estimate(CostVM("vm", (disk,), retention=CostRetention(7)), PRICES, months=3)
    sizes = [x.bytes for x in found.lines if x.part == "instance"]
    assert sizes == [55 * GB, 86 * GB, 117 * GB]
    # Up to 50 GB on the first 11 days of 31.
    first = found.frame.filter(pl.col("part") == "instance")
    assert first["amount"][0] == money(Fraction(5 * 11 + 10 * 20, 31))
    assert first["instances"][0] == money(Fraction(11, 62) + Fraction(20, 31))
    full = estimate(CostVM("vm", (disk,)), PRICES, first_month=100)
    assert full.lines[0].bytes == 1000 * GB  # a full disk grows no more


def test_leaving() -> None:
    vm = machine(100, 2, retention=CostRetention(7, 4, 12))
    table = leaving(vm, PRICES, after=12, months=12)
    on, stopped, deleted = table.rows
    assert on.total == estimate(vm, PRICES, months=12, first_month=12).total
    # Kept data stays as it is: 12 times what a day of it costs for a month.
    points = live_points(12 * MONTH - 1, vm.retention)
    stored = chain_bytes(vm.disks[0], points)
    assert stopped.part("vault") == 12 * money(Fraction(stored * 56, 1000 * GB))
    assert stopped.part("instance") == 120
    assert deleted.total == 0
    assert table.to_dict()["rows"][2]["choice"] == "stop, delete"
    with pytest.raises(InputError, match="0 months after"):
        leaving(vm, PRICES, after=0)
    with pytest.raises(InputError, match="soft delete of 200 days"):
        leaving(vm, PRICES, soft_delete=200)


def test_staging_in_a_premium_account() -> None:
    vm = machine(310, 0, staging=12 * 3600 * 10**9)
    found = estimate(vm, FULL_LIST)
    assert found.part("staging") == Decimal("31")  # 310 GB for half of each day at 0.2
    with pytest.raises(InputError, match="no staging price"):
        estimate(vm, PRICES)


def test_what_an_estimate_tells() -> None:
    found = estimate(
        [machine(count=3), machine(600, wish="crash", subtype="enhanced")], PRICES, months=2
    )
    assert found.mean_instances == Decimal("3.5")
    assert found.part("instance") == 70
    assert found.a_month == money(Fraction(found.total) / 2)
    assert found.assumed == ("snapshot.LRS",)
    assert found.frame["amount"].sum() == found.total
    assert found.frame.schema["amount"] == pl.Decimal(38, 6)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["free"] == list(FREE)
    assert told["total"] == float(found.total)
    assert told["prices_of"] == "2026-01-01"
    assert told["readings"]["instance"] == "steps"
    assert len(told["lines"]) == len(found.lines) == 2 * 2 * 3
    html = found._repr_html_()
    assert "assumed: snapshot.LRS" in html
    assert "USD" in html
    with pytest.raises(InputError, match="part 'tape' is not one of"):
        found.part("tape")


def test_totals_are_sums_of_what_is_shown() -> None:
    prices = Prices.parse(
        {
            "date": date(2026, 1, 1), "currency": "X", "region": "r", "source": "s",
            "storage": {"GRS": 0.1}, "snapshot": {"LRS": 0.2},
            "instance": {"one": 0.3, "steps": [{"up_to": "1PB", "price": 0.3}],
                         "further": {"size": 1, "price": 0}},
        }
    )  # fmt: skip
    vm = machine(1, 1, retention=CostRetention(1), instant_days=1)
    found = estimate(vm, prices)
    assert [str(amount) for _, amount in found.by_part] == ["0.300000", "0.100000", "0.200000"]
    assert str(found.total) == "0.600000"
    assert found.to_dict()["total"] == 0.6


# --- Declarations --------------------------------------------------------------------------------

FLEET = """
months = 6
[readings]
instance = "half"
[[vms]]
name = "web"
count = 10
subtype = "enhanced"
instant_days = 3
redundancy = "LRS"
retention = {daily = 30, weekly = 12, monthly = 12}
[[vms.disks]]
name = "os"
size = "128GB"
used = "30GB"
churn = "2.5%"
growth = "10MB"
operating_system = true
[[vms.disks]]
name = "temp"
size = "64GB"
used = "1GB"
temporary = true
"""


def test_a_declared_fleet(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(FLEET)
    fleet = CostFleet.load(tmp_path / "fleet.toml")
    (vm,) = fleet.vms
    assert (fleet.months, fleet.readings) == (6, Readings(instance="half"))
    assert vm.disks[0] == CostDisk(
        "os", 128 * GB, 30 * GB, 750_000_000, 10_000_000, operating_system=True
    )
    assert (vm.count, vm.retention, protected_size(vm)) == (10, CostRetention(30, 12, 12), 30 * GB)
    found = estimate(fleet.vms, PRICES, readings=fleet.readings, months=fleet.months)
    assert found.part("instance") == 300  # ten halves for six months


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('size = "128GB"', 'size = "-1"', r"vms\[0\]\.disks\[0\]\.size: '-1' is not a size"),
        ('used = "30GB"', 'used = "300GB"', r"vms\[0\]\.disks\[0\]\.used: '300GB' is not a size"),
        ('churn = "2.5%"', 'churn = "101%"', r"disks\[0\]\.churn: '101%' is more than"),
        ('churn = "2.5%"', 'churn = "some"', r"disks\[0\]\.churn: 'some'"),
        ('growth = "10MB"', 'growth = "high"', r"disks\[0\]\.growth: 'high'"),
        ('"LRS"', '"LSR"', r"vms\[0\]\.redundancy: 'LSR' is not one of"),
        ('"enhanced"', '"premium"', r"vms\[0\]\.subtype: 'premium'"),
        ("instant_days = 3", "instant_days = 31", r"vms\[0\]\.instant_days: 31"),
        ("daily = 30", "daily = -1", r"vms\[0\]\.retention\.daily: -1"),
        ("daily = 30, weekly = 12", "yearly = 1", r"vms\[0\]\.retention: retention keeps no daily"),
        ("months = 6", "months = 0", "months: 0 is not"),
        ('"half"', '"halv"', r"readings\.instance: 'halv'"),
        ("count = 10", "cuont = 10", r"vms\[0\]\.cuont: there is no such field"),
        ("count = 10", 'wish = "crash"\nsnapshot_redundancy = "GRS"', "snapshot_redundancy: 'GRS'"),
        ('subtype = "enhanced"', 'wish = "crash"', r"vms\[0\]: VM 'web': agentless .* enhanced"),
        ("temporary = true", "temporary = true\noperating_system = true", "'temp' is temporary"),
    ],
)
def test_bad_declarations(old: str, new: str, message: str, tmp_path: Path) -> None:
    assert FLEET.count(old) >= 1
    (tmp_path / "fleet.toml").write_text(FLEET.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        CostFleet.load(tmp_path / "fleet.toml")


def test_bad_machines() -> None:
    with pytest.raises(InputError, match="used bytes of disk 'd': 2 is not"):
        CostDisk("d", 1, 2)
    with pytest.raises(InputError, match="size of disk 'd'"):
        CostDisk("d", MOST_DISK + 1, 0)
    with pytest.raises(InputError, match="instant_days 6"):
        machine(instant_days=6)
    with pytest.raises(InputError, match="standard policy are LRS"):
        machine(snapshot_redundancy="ZRS")
    with pytest.raises(InputError, match="10,000 points, more than 9,999"):
        CostRetention(9999, 1)
    with pytest.raises(InputError, match="one or more CostVM"):
        estimate([], PRICES)
    for months, first in ((0, 0), (1, -1), (1201, 0), (1, 1200)):
        with pytest.raises(InputError, match="months after"):
            estimate(machine(), PRICES, months=months, first_month=first)
    with pytest.raises(InputError, match=r"vms is missing"):
        CostFleet.parse({})


def test_a_machine_under_a_policy() -> None:
    policy = Policy("p", retention=Retention(30, weekly=8, monthly=24), archive="eligible")
    vm = CostVM.under(policy, "vm", machine().disks, redundancy="ZRS", count=2)
    assert (vm.retention, vm.archive, vm.instant_days) == (CostRetention(30, 8, 24), True, 2)
    assert (vm.subtype, vm.redundancy, vm.count) == ("standard", "ZRS", 2)


def test_the_largest_retention_and_disk_stay_exact() -> None:
    disk = CostDisk("d", MOST_DISK, MOST_DISK, MOST_DISK)
    vm = CostVM("vm", (disk,), retention=CostRetention(9999))
    (vault,) = [x for x in estimate(vm, PRICES, first_month=400).lines if x.part == "vault"]
    assert vault.bytes == 9999 * MOST_DISK
    assert vault.amount == money(Fraction(9999 * MOST_DISK * 56, 1000 * GB))
