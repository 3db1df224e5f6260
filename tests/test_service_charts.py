"""Charts of the service model: what they show, how much of it, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from tests.test_charts import chart_rows, texts
from vmbk import charts
from vmbk.charts import fleet
from vmbk.charts import jobs as job_charts
from vmbk.errors import InputError
from vmbk.service.charges import cost_vms
from vmbk.service.cost_tables import CostRow, CostTable, by_redundancy
from vmbk.service.objectives import Objectives, objectives
from vmbk.service.plan import DAY, HOUR
from vmbk.service.prices import Prices
from vmbk.service.restore_rules import RestoreRequest, RestoreRules
from vmbk.service.restores import simulate_restores
from vmbk.service.scenario import Scenario
from vmbk.service.simulation import Simulation, simulate

DISKS = [
    {"name": "os", "size": "127GiB", "used": "30GB", "churn": "1GB", "account": "one"},
    {"name": "data", "size": "1TiB", "used": "300GB", "churn": "20GB", "account": "one"},
]


def declared(count: int = 4, at: str = "00:00", **more: Any) -> dict[str, Any]:
    """A fleet in one storage account; snapshots of its first VM are deleted on the sixth day."""
    return {
        "name": "fleet", "days": 10, "seed": 5, "first_day": date(2026, 1, 5),
        "accounts": [{"name": "one", "guest_egress": "500MB/s", "busy_hours": ["20:00-05:00"]}],
        "policies": [{"name": "nightly", "schedule": {"frequency": "daily", "at": at}}],
        "vms": [{"name": "vm-{n}", "count": count, "policy": "nightly", "disks": DISKS}],
        "events": [{"at": "5d", "clock": "12:00", "kind": "delete-snapshots", "vm": "vm-1"}],
    } | more  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Simulation:
    return simulate(declared(), disks=True)


@pytest.fixture(scope="module")
def goals(small: Simulation) -> Objectives:
    requests = [
        RestoreRequest(vm.name, 2 * i * DAY, (30 * 10**9,), tier=tier, option=option)
        for i, vm in enumerate(small.scenario.vms)
        for tier, option in (("snapshot", "create-vm"), ("vault", "create-vm"))
    ]
    restores = simulate_restores(requests, RestoreRules.default("instant"), seed=1)
    return objectives(small.jobs, end=10 * DAY, restores=restores)


@pytest.fixture(scope="module")
def costs(small: Simulation) -> CostTable:
    return by_redundancy(cost_vms(small.scenario), Prices.load())


def drawn(small: Simulation, goals: Objectives, costs: CostTable) -> dict[str, Any]:
    return {
        "gantt": charts.gantt(small),
        "gantt_before_after": charts.gantt_before_after(small, small, 2),
        "account_load": charts.account_load(small),
        "durations": charts.durations(small),
        "deleted_snapshot": charts.deleted_snapshot(small, "vm-1"),
        "recovery_objectives": charts.recovery_objectives(goals),
        "cost_by": charts.cost_by(costs),
    }


UNITS = {
    "gantt": ("time of day",), "gantt_before_after": ("time of day",),
    "account_load": ("hour of the day", "of the cap"), "durations": ("hours",),
    "deleted_snapshot": ("hours", "GB"), "recovery_objectives": ("hours",), "cost_by": ("USD",),
}  # fmt: skip


def test_every_chart_draws_the_same_picture_each_time_with_units(
    small: Simulation, goals: Objectives, costs: CostTable
) -> None:
    first, again = drawn(small, goals, costs), drawn(small, goals, costs)
    for name, chart in first.items():
        svg = charts.to_svg(chart)
        assert svg == charts.to_svg(again[name]), name
        assert set(UNITS[name]) <= set(texts(svg)), name
        assert 0 < len(chart_rows(chart)) < 5000, name


def test_bars_of_a_job_follow_one_another_and_are_its_parts(small: Simulation) -> None:
    rows = [r for r in chart_rows(charts.gantt(small, 3)) if r["kind"] == "bar"]
    jobs = small.jobs.filter(pl.col("scheduled_ns") == 3 * DAY)
    assert {r["vm"] for r in rows} == set(jobs["vm"].cast(pl.String))
    for job in jobs.iter_rows(named=True):
        mine = [r for r in rows if r["vm"] == job["vm"]]
        for bar in mine:
            length = bar["end"] - bar["begin"]
            assert length == pytest.approx(job[f"{bar['phase']}_ns"] / HOUR, abs=1e-6)
        assert mine[0]["begin"] == pytest.approx((job["start_ns"] - 3 * DAY) / HOUR)
        assert mine[-1]["end"] == pytest.approx((job["end_ns"] - 3 * DAY) / HOUR)
        assert [a["end"] for a in mine[:-1]] == pytest.approx([b["begin"] for b in mine[1:]])


def test_the_makespan_is_from_the_first_slot_to_the_last_end(small: Simulation) -> None:
    jobs = small.jobs.filter(pl.col("scheduled_ns") == 0)
    [rule] = [r for r in chart_rows(charts.gantt(small)) if r["kind"] == "rule"]
    assert rule["end"] == pytest.approx(jobs["end_ns"].max() / HOUR)  # type: ignore[operator]


def test_a_large_fleet_shows_those_that_end_last() -> None:
    found = simulate(declared(60, days=2))
    chart = charts.gantt(found)
    rows = [r for r in chart_rows(chart) if r["kind"] == "bar"]
    jobs = found.jobs.filter(pl.col("scheduled_ns") == 0).sort("end_ns", descending=True)
    last = jobs["vm"].cast(pl.String).head(fleet.MOST_VMS)
    assert {r["vm"] for r in rows} == set(last)
    assert any(f"{fleet.MOST_VMS} of 60 VMs" in text for text in texts(charts.to_svg(chart)))
    assert len(chart_rows(charts.gantt_before_after(found, found))) < 5000


def test_a_night_that_begins_in_the_evening_is_one_day() -> None:
    late = {"name": "late", "schedule": {"frequency": "daily", "at": "22:00"}}
    early = {"name": "early", "schedule": {"frequency": "daily", "at": "01:00"}}
    vms = [{"name": p, "policy": p, "disks": DISKS} for p in ("late", "early")]
    found = simulate(declared(policies=[late, early], vms=vms, events=[]))
    rows = [r for r in chart_rows(charts.gantt(found, 2)) if r["kind"] == "bar"]
    begins = {vm: min(r["begin"] for r in rows if r["vm"] == vm) for vm in ("late", "early")}
    assert -2 <= begins["late"] <= 0.5
    assert 1 <= begins["early"] <= 3.5


def test_a_failed_transfer_has_a_cross() -> None:
    events = [{"at": "2d", "clock": "02:30", "kind": "rotate-keys", "account": "one"}]
    found = simulate(declared(12, events=events))
    jobs = found.jobs.filter(pl.col("scheduled_ns") == 2 * DAY, pl.col("transfer") == "failed")
    crosses = [r for r in chart_rows(charts.gantt(found, 2)) if r["kind"] == "cross"]
    assert len(jobs) > 0
    assert {r["vm"] for r in crosses} >= set(jobs["vm"].cast(pl.String))


def test_what_guests_and_backups_get_is_within_the_cap() -> None:
    guests = [{"name": "one", "egress": "600MB/s", "guest_egress": "580MB/s"}]
    found = simulate(declared(20, accounts=guests, days=4), disks=True)
    rows = [r for r in chart_rows(charts.account_load(found, 1)) if "egress" in r["panel"]]
    assert max(r["high"] for r in rows if r["kind"] == "backups") <= 1 + 1e-6
    assert max(r["high"] for r in rows if r["kind"] == "asked for") > 1
    moved = sum(r["high"] - r["low"] for r in rows if r["kind"] == "backups")
    told = found.outputs.account_hours[0, 24:48].sum() / (600e6 * 3600)
    assert moved == pytest.approx(told, rel=0.01)  # the engine rounds, and counts begun hours


def test_an_account_that_nobody_uses_is_an_empty_panel() -> None:
    idle = [{"name": name} for name in ("one", "idle")]
    chart = charts.account_load(simulate(declared(1, accounts=idle, days=2), disks=True), 1)
    said = texts(charts.to_svg(chart))
    assert {"0", "12", "21"} <= set(said)  # all hours, though most have no bar
    assert not any("idle" in r["panel"] for r in chart_rows(chart))


def test_bars_of_durations_are_means_of_all_jobs(small: Simulation) -> None:
    rows = chart_rows(charts.durations(small))
    done = small.jobs.filter(pl.col("transfer") == "done", ~pl.col("initial"))
    mean = float(((done["end_ns"] - done["start_ns"]) / HOUR).mean() or 0)  # type: ignore[arg-type]
    later = [r for r in rows if "incremental" in r["panel"]]
    bins = min(job_charts.BINS, len(done))
    shares = {r["left"]: 0.0 for r in later}
    for r in later:
        shares[r["left"]] += r["high"] - r["low"]
    assert len(shares) == bins
    if len(done) % bins == 0:
        assert sum(shares.values()) / bins == pytest.approx(mean)
    tops = [shares[left] for left in sorted(shares)]
    assert tops == sorted(tops)


def test_exactly_one_job_reads_after_a_deletion(small: Simulation) -> None:
    rows = chart_rows(charts.deleted_snapshot(small, "vm-1"))
    read = [r for r in rows if r.get("part") == "read to find changes"]
    assert [int(r["day"]) for r in read] == [6]
    assert read[0]["value"] == pytest.approx(330, rel=0.01)
    assert [r["day"] for r in rows if r.get("text")] == [5.5]


def test_objectives_are_shown_in_hours_by_what_is_lost(goals: Objectives) -> None:
    rows = chart_rows(charts.recovery_objectives(goals))
    vault = goals.of("vault")
    [bar] = [r for r in rows if r["what"] == "machine and snapshots lost" and r["range"] == "95 %"
             and "point" in r["panel"]]  # fmt: skip
    assert bar["high"] == pytest.approx(vault["p95"] / HOUR)
    assert {r["panel"].split(":")[0] for r in rows} == {"recovery point", "recovery time"}
    alone = chart_rows(charts.recovery_objectives(replace(goals, restore=goals.restore.clear())))
    assert {r["panel"].split(":")[0] for r in alone} == {"recovery point"}


def test_bars_of_costs_add_up(costs: CostTable) -> None:
    rows = chart_rows(charts.cost_by(costs))
    for choice in costs.rows:
        parts = [r["high"] - r["low"] for r in rows if r["choice"] == choice.choice and "part" in r]
        assert sum(parts) == pytest.approx(float(choice.total))


def test_free_choices_are_drawn() -> None:
    nothing = CostTable("t", "choice", "EUR", (CostRow("none", (Decimal(0),) * 6),))
    assert "EUR" in texts(charts.to_svg(charts.cost_by(nothing)))


def test_what_cannot_be_drawn_is_refused(small: Simulation, goals: Objectives) -> None:
    managed = [{"name": "os", "size": "127GiB", "used": "30GB", "churn": "1GB"}]
    plain = simulate(declared(vms=[{"name": "a", "policy": "nightly", "disks": managed}],
                              accounts=[], events=[]))  # fmt: skip
    never = objectives(small.jobs.head(1), begin=0, end=1)
    refused = [
        ("no simulation", lambda: charts.gantt(small.jobs)),  # type: ignore[arg-type]
        ("day 10", lambda: charts.gantt(small, 10)),
        ("day -1", lambda: charts.gantt(small, -1)),
        ("no VM in common", lambda: charts.gantt_before_after(small, plain)),
        ("no storage accounts", lambda: charts.account_load(plain)),
        ("not kept", lambda: charts.account_load(simulate(declared()))),
        ("day 77", lambda: charts.account_load(small, 77)),
        ("there is no VM 'x'", lambda: charts.deleted_snapshot(small, "x")),
        ("no snapshot of 'vm-2'", lambda: charts.deleted_snapshot(small, "vm-2")),
        ("no incremental", lambda: charts.deleted_snapshot(simulate(declared(days=1)), "vm-1")),
        ("no objectives", lambda: charts.recovery_objectives(small)),  # type: ignore[arg-type]
        ("never a usable point", lambda: charts.recovery_objectives(never)),
        ("no table of costs", lambda: charts.cost_by(goals)),  # type: ignore[arg-type]
        ("0 choices", lambda: charts.cost_by(CostTable("t", "w", "EUR", ()))),
    ]
    for words, call in refused:
        with pytest.raises(InputError, match=words):
            call()


def test_names_of_vms_need_not_be_short_or_plain() -> None:
    long = [{"name": "<b>" + "x" * 70 + f"&{n}", "policy": "nightly", "disks": DISKS} for n in "ab"]
    svg = charts.to_svg(charts.gantt(simulate(declared(vms=long, events=[]))))
    assert "<b>" not in svg


def test_shipped_scenarios_can_be_drawn() -> None:
    found = simulate(replace(Scenario.load("small-company"), days=3), disks=True)
    for chart in (charts.gantt(found, 1), charts.account_load(found), charts.durations(found)):
        assert charts.to_svg(chart).startswith("<svg")


def test_before_and_after_show_the_same_vms_by_the_time_since_the_first_slot() -> None:
    before, after = simulate(declared(60, days=2)), simulate(declared(60, "09:00", days=2))
    rows = chart_rows(charts.gantt_before_after(before, after))
    last: dict[str, float] = {}
    for found, first in ((before, 0), (after, 9 * HOUR)):
        jobs = found.jobs.filter(pl.col("job") == 0).with_columns(pl.col("vm").cast(pl.String))
        for vm, end in jobs.select("vm", pl.col("end_ns") - first).rows():
            last[vm] = max(last.get(vm, 0), end)
    expected = set(sorted(last, key=lambda vm: -last[vm])[: fleet.MOST_VMS])
    for panel in {r["panel"] for r in rows}:
        assert {r["vm"] for r in rows if r["panel"] == panel and r["kind"] == "bar"} == expected
    ends = {r["panel"].split(":")[0]: r["end"] for r in rows if r["kind"] == "rule"}
    assert ends["after"] > ends["before"]  # by the clock
