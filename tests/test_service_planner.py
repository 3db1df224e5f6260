"""The planner: better on a saturated fleet, never worse on any, and within window and limits."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbk.errors import InputError
from vmbk.service.capacity import capacity, vault_slots
from vmbk.service.engine import simulate_fast
from vmbk.service.layout import plan_of
from vmbk.service.limits import shipped
from vmbk.service.plan import DAY, HOUR
from vmbk.service.planner import PlannedSchedule, plan_schedule
from vmbk.service.planner_measure import NEVER_WORSE, day_begin, measure, ordinary, worse
from vmbk.service.planner_search import hour_costs, off_peak
from vmbk.service.scenario import Scenario


@pytest.fixture(scope="module")
def saturated() -> Scenario:
    return Scenario.load("saturated")


@pytest.fixture(scope="module")
def planned(saturated: Scenario) -> PlannedSchedule:
    return plan_schedule(saturated, trials=160)


def not_worse(found: PlannedSchedule) -> None:
    assert worse(found.after, found.before) == ()
    for name in NEVER_WORSE:
        low = 0.5 if name.startswith("peak") else 0.0  # half a cap is nobody's trouble
        assert getattr(found.after, name) <= max(getattr(found.before, name), low) * (1 + 1e-9)


class TestSaturated:
    def test_it_beats_the_naive_schedule(self, planned: PlannedSchedule) -> None:
        print(
            f"\n200 machines: a day's jobs end {planned.ratio:.2f} times as fast, "
            f"{planned.before.makespan_s / 3600:.1f} h to {planned.after.makespan_s / 3600:.1f} h; "
            f"lost {planned.before.lost_s / 3600:.1f} h to {planned.after.lost_s / 3600:.1f} h a "
            f"day; {planned.trials} simulations in {planned.seconds:.1f} s"
        )
        assert planned.improved
        assert planned.ratio > 1.2
        assert planned.before.lost_s > 4 * planned.after.lost_s
        assert planned.before.mean_s > 1.5 * planned.after.mean_s
        not_worse(planned)

    def test_the_queue_is_not_what_it_lives_on(self, saturated: Scenario) -> None:
        # How long waits are by the hour is inferred; what is won without any is not.
        profile = saturated.profile.change({}, {"queue_curve": "never"})
        found = plan_schedule(replace(saturated, profile=profile), trials=60)
        print(f"\nwithout any wait in the queue: {found.ratio:.2f} times as fast")
        assert found.ratio > 1.2
        not_worse(found)

    def test_it_is_the_scenarios_own_simulation(self, planned: PlannedSchedule) -> None:
        """The measures can be found again by anyone from the new scenario."""
        for first in range(1, 6):
            scenario = ordinary(planned.scenario, first + planned.after.days + 1)
            plan = plan_of(scenario)
            outputs = simulate_fast(plan, parts=True)
            found = measure(plan, outputs, first, planned.after.days, scenario.profile["late"])
            if found == planned.after:
                return
        pytest.fail("no day from which on the measures are these")

    def test_times_are_in_the_window(self, planned: PlannedSchedule) -> None:
        minutes = {int(ns) // (60 * 10**9) for ns in vault_slots(planned.scenario)}
        assert minutes <= set(planned.window)

    def test_limits_of_2017_are_kept(self, planned: PlannedSchedule) -> None:
        times = Counter(vault_slots(planned.scenario).tolist())
        assert max(times.values()) <= 40
        disks: Counter[tuple[str, int]] = Counter()
        for vm, at in zip(planned.scenario.vms, vault_slots(planned.scenario), strict=True):
            for disk in vm.disks:
                disks[str(disk.account), int(at)] += 1
        assert max(disks.values()) <= 20
        assert max(Counter(vm.policy for vm in planned.scenario.vms).values()) <= 40

    def test_the_changes_make_the_scenario(
        self, saturated: Scenario, planned: PlannedSchedule
    ) -> None:
        """Whoever carries out the rows gets the new scenario."""
        times = {row["vm"]: row for row in planned.changes.to_dicts() if row["change"] == "time"}
        moves = {
            (row["vm"], row["disk"]): row
            for row in planned.changes.to_dicts()
            if row["change"] == "account"
        }
        assert moves
        for old, new in zip(saturated.vms, planned.scenario.vms, strict=True):
            assert (old.policy == new.policy) == (old.name not in times)
            if old.name in times:
                row = times[old.name]
                assert row["policy"] == new.policy
                at = planned.scenario.policies[new.policy].schedule.at
                assert row["new"] == f"{at // 60:02}:{at % 60:02}"
                assert row["reason"]
            for before, after in zip(old.disks, new.disks, strict=True):
                row = moves.get((old.name, before.name), {"old": before.account,
                                                          "new": before.account})  # fmt: skip
                assert (before.account, after.account) == (row["old"], row["new"])
                assert replace(after, account=None) == replace(before, account=None)
        kept = planned.policies["policy"].to_list()
        assert set(kept) == {vm.policy for vm in planned.scenario.vms}
        assert planned.policies["vms"].sum() == 200
        for name in kept:
            new_policy = planned.scenario.policies[name]
            assert new_policy.retention == saturated.policies["midnight"].retention

    def test_what_it_tells(self, planned: PlannedSchedule) -> None:
        json.dumps(planned.to_dict())
        told = tomllib.loads(planned.to_toml())
        assert len(told["changes"]) == len(planned.changes)
        assert len(told["policies"]) == len(planned.policies)
        html = planned._repr_html_()
        assert "times as fast" in html
        assert "fleet-5" in html
        steps = planned.steps["step"].to_list()
        assert steps == ["before", "times only", "moves only", "all"]
        assert planned.steps["makespan_s"][-1] == planned.after.makespan_s

    def test_the_static_plan_agrees(self, saturated: Scenario, planned: PlannedSchedule) -> None:
        assert capacity(planned.scenario).peak < capacity(saturated).peak / 2

    def test_disks_can_stay(self, saturated: Scenario) -> None:
        found = plan_schedule(saturated, move_disks=False, trials=30)
        assert set(found.changes["change"]) <= {"time"}
        assert set(found.steps["step"]) <= {"before", "times only"}
        not_worse(found)


class TestSmallCompany:
    def test_it_is_out_of_the_way_at_night(self) -> None:
        scenario = Scenario.load("small-company")
        found = plan_schedule(scenario, trials=40)
        assert found.ratio > 1.5
        not_worse(found)
        # The ERP's batch runs from 22:00 to 05:00.
        hours = {int(ns) // HOUR for ns in vault_slots(found.scenario)}
        assert not hours & {22, 23, 0, 1, 2, 3, 4}

    def test_a_given_window_holds(self) -> None:
        scenario = Scenario.load("small-company")
        found = plan_schedule(scenario, window="22:30-05:00", step="15m", trials=30)
        assert found.window[0] == 22 * 60 + 30
        assert len(found.window) == 26
        slots = {int(ns) // (60 * 10**9) for ns in vault_slots(found.scenario)}
        assert slots <= set(found.window) | {0}
        not_worse(found)

    def test_same_seed_same_plan(self) -> None:
        scenario = Scenario.load("small-company")
        first, again = (plan_schedule(scenario, seed=5, trials=16) for _ in range(2))
        assert first.changes.equals(again.changes)
        assert first.after == again.after

    def test_managed_disks_instead(self) -> None:
        scenario = Scenario.load("small-company")
        found = plan_schedule(scenario, move_disks="managed", trials=24)
        assert set(found.changes["change"]) <= {"time", "managed"}
        not_worse(found)
        moved = found.changes.filter(pl.col("change") == "managed")
        for name in set(moved["vm"]):
            vm = next(each for each in found.scenario.vms if each.name == name)
            assert all(disk.account is None for disk in vm.disks)
            assert vm.storage == "managed"


def small(draw: Any) -> Scenario:
    """A few machines in one or two small accounts, with daily, weekly or hourly policies."""
    era = draw(st.sampled_from(["2017", "instant", "enhanced"]))
    schedules: list[dict[str, Any]] = [
        {"at": "00:00"}, {"at": "22:30"},
        {"frequency": "weekly", "at": "23:00", "weekdays": ["sunday", "wednesday"]},
    ]  # fmt: skip
    if era == "enhanced":
        schedules.append({"frequency": "hourly", "at": "08:00", "every": "4h", "window": "12h"})
    policies = []
    for i, schedule in enumerate(schedules):
        hourly = schedule.get("frequency") == "hourly"
        policies.append(
            {"name": f"p{i}", "schedule": schedule,
             "subtype": "enhanced" if hourly else "standard"}
        )  # fmt: skip
    accounts = [
        {"name": f"a{i}", "egress": draw(st.sampled_from(["40MB/s", "200MB/s"])),
         "guest_egress": draw(st.sampled_from([0, 30_000_000, 300_000_000])),
         "busy_hours": [draw(st.sampled_from(["20:00-04:00", "08:00-18:00"]))]}
        for i in range(draw(st.integers(0, 2)))
    ]  # fmt: skip
    vms = []
    for i in range(draw(st.integers(1, 5))):
        used = draw(st.sampled_from([0, 1, 20, 200]))
        disk = {"name": "d", "size": "1TiB", "used": f"{used}GB", "churn": "10%"}
        home = draw(st.sampled_from([None, *(a["name"] for a in accounts)]))
        if home is not None:
            disk["account"] = home
        vms.append(
            {"name": f"v{i}", "policy": draw(st.sampled_from(policies))["name"], "disks": [disk],
             "stagger": draw(st.sampled_from(["0s", "90m", "45s"]))}
        )  # fmt: skip
    return Scenario.parse(
        {"profile": era, "vms": vms, "policies": policies, "accounts": accounts,
         "vaults": [{"name": "vault", "places": draw(st.sampled_from([0, 1, 3]))}],
         "seed": draw(st.integers(0, 1 << 40)), "first_day": "2026-01-05"}
    )  # fmt: skip


class TestAny:
    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def test_never_worse(self, data: st.DataObject) -> None:
        scenario = small(data.draw)
        move = data.draw(st.sampled_from([False, True, "managed"]))
        found = plan_schedule(scenario, move_disks=move, trials=8)
        not_worse(found)
        assert found.improved == (found.scenario is not scenario)
        slots = vault_slots(found.scenario) // (60 * 10**9)
        old = vault_slots(scenario) // (60 * 10**9)
        for vm, was, now in zip(scenario.vms, old, slots, strict=True):
            hourly = scenario.policies[vm.policy].schedule.frequency == "hourly"
            assert now == was if hourly else (now == was or int(now) in found.window)
        assert len(found.scenario.vms) == len(scenario.vms)
        found._repr_html_()
        tomllib.loads(found.to_toml())

    def test_nothing_better_is_said_to_be_so(self) -> None:
        declared = {
            "vms": [{"name": "v", "disks": [{"name": "d", "size": "1GiB"}]}],
            "readings": {"queue_curve": "never"}, "service": {"start_jitter": "0s"},
        }  # fmt: skip
        scenario = Scenario.parse(declared)
        found = plan_schedule(scenario, trials=8)
        assert not found.improved
        assert found.scenario is scenario
        assert found.ratio == 1
        assert found.after == found.before
        assert "nothing better was found" in found.notes[0]
        assert "nothing better" in found._repr_html_()

    def test_policies_stay_within_their_limits(self) -> None:
        vms = [{"name": f"v-{i}", "policy": "p", "disks": [{"name": "d", "size": "8GiB"}]}
               for i in range(230)]  # fmt: skip
        scenario = Scenario.parse({"vms": vms, "policies": [{"name": "p"}]})
        found = plan_schedule(scenario, window="09:00-11:00", trials=8)
        assert found.improved
        used = Counter(vm.policy for vm in found.scenario.vms)
        assert max(used.values()) <= (shipped().value("vms_per_policy", "instant") or 0) == 100
        assert max(Counter(vault_slots(found.scenario).tolist()).values()) <= 100

    def test_classic_machines_are_apart(self) -> None:
        vms = [{"name": f"v-{i}", "cloud_service": "shop",
                "disks": [{"name": "d", "size": "8GiB"}]} for i in range(25)]  # fmt: skip
        found = plan_schedule(Scenario.parse({"profile": "2017", "vms": vms}), trials=12)
        assert found.improved
        times = vault_slots(found.scenario)
        together = ((times[None, :] - times[:, None]) % DAY < HOUR).sum(axis=1)
        assert together.max() <= 10

    def test_off_peak(self) -> None:
        scenario = Scenario.load("small-company")
        plan = plan_of(scenario)
        cost = hour_costs(scenario, plan)
        found = off_peak(scenario, plan)
        assert cost[found].max() < np.delete(cost, found).min()
        flat = replace(scenario, accounts={}, vms=tuple(
            replace(vm, disks=tuple(replace(d, account=None) for d in vm.disks))
            for vm in scenario.vms
        ), profile=scenario.profile.change({}, {"queue_curve": "flat"}))  # fmt: skip
        assert off_peak(flat, plan_of(flat)) == list(range(24))

    def test_a_night_is_one_day(self) -> None:
        times = np.array([22, 23, 24 + 1, 24 + 22, 48 + 2], np.int64) * HOUR
        assert day_begin(times) == 22 * HOUR

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"move_disks": "some"}, "move_disks: 'some'"), ({"step": "7h"}, "step: '7h'"),
            ({"step": "90s"}, "step"), ({"window": "22:00"}, "window: '22:00'"),
            ({"window": "25:00-26:00"}, "window"), ({"window": "02:00-02:00"}, "window"),
            ({"window": "²2:00-03:00"}, "window"), ({"trials": 3}, "trials: 3"),
            ({"trials": True}, "trials"),
        ],
    )  # fmt: skip
    def test_errors_name_the_argument(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            plan_schedule(Scenario.load("small-company"), **arguments)
