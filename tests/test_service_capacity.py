"""The capacity plan: slots worked out by hand, and loads that are the engine's own."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.service_plans import random_plan
from vmbk.errors import InputError
from vmbk.service.calibration import Calibration, Estimate, Made
from vmbk.service.capacity import Capacity, capacity
from vmbk.service.engine import simulate_fast
from vmbk.service.failures import FailureModel
from vmbk.service.flows import busiest_change, shared_ends, transfers
from vmbk.service.layout import plan_of
from vmbk.service.load import account_load, part_flows
from vmbk.service.plan import ACCOUNT_TOLD, HOUR, INITIAL, JOB, PART, ROTATE, SECOND, Outputs, Plan
from vmbk.service.scenario import Scenario, shipped_scenarios

NOTHING = Estimate(0, 0, 0)
FREE = Calibration(NOTHING, NOTHING, NOTHING, NOTHING, (), Made("", "", "", "", 0, 0, 0, 0))
"""Dispersion costs nothing."""

HOUR_OF_READING = 216 * 10**9
"""Bytes that a blob gives in an hour, at 60 MB/s."""


def fleet(machines: list[dict[str, Any]], accounts: list[dict[str, Any]], **more: Any) -> Scenario:
    """Machines of one disk each in 2017, which read an hour and change nothing unless told."""
    vms, policies = [], []
    for i, each in enumerate(machines):
        disk = {"name": "d", "size": "1TiB", "used": HOUR_OF_READING, **each.get("disk", {})}
        policies.append({"name": f"p{i}", "schedule": each.get("schedule", {"at": each["at"]})})
        vms.append({"name": f"vm-{i}", "policy": f"p{i}", "disks": [disk]})
    declared = {"profile": "2017", "vms": vms, "policies": policies, "accounts": accounts, **more}
    return Scenario.parse(declared)


def row(plan: Capacity, account: str, clock: str) -> dict[str, Any]:
    """One slot of one account."""
    found = plan.slots.filter((plan.slots["account"] == account) & (plan.slots["clock"] == clock))
    assert len(found) == 1
    return found.row(0, named=True)


@pytest.fixture(scope="module")
def plan() -> Capacity:
    on = {"account": "a"}
    machines = [
        {"at": "00:00", "disk": on}, {"at": "00:00", "disk": on}, {"at": "01:30", "disk": on},
        {"at": "23:30", "disk": on}, {"at": "05:00", "disk": {"account": "b"}},
    ]  # fmt: skip
    accounts = [
        {"name": "a", "egress": "150MB/s", "guest_egress": "10MB/s", "busy_hours":
         ["00:00-01:00"]},
        {"name": "b", "guest_requests": 25_000, "busy_hours": ["05:00-06:00"]},
    ]  # fmt: skip
    return capacity(fleet(machines, accounts), penalties=FREE)


class TestSlots:
    def test_two_that_begin_together_add_up(self, plan: Capacity) -> None:
        # Two from 00:00 to 01:00 at 60 MB/s, one from 23:30 to 00:30.
        midnight = row(plan, "a", "00:00")
        assert midnight["disks"] == 3
        assert midnight["backup_egress"] == pytest.approx(120e6 + 30e6)
        assert midnight["peak_egress"] == 180_000_000
        assert midnight["share_egress"] == pytest.approx(190 / 150)
        assert midnight["overload"]
        # 216 GB in reads of 4 MiB are 51,499 an hour: 14.3 a second, told as the model rounds.
        assert midnight["peak_requests"] == 3 * 15

    def test_slots_that_one_only_touches(self, plan: Capacity) -> None:
        one, two = row(plan, "a", "01:00"), row(plan, "a", "02:00")
        assert one["backup_egress"] == two["backup_egress"] == pytest.approx(30e6)
        assert one["peak_egress"] == two["peak_egress"] == 60_000_000
        assert (one["disks"], two["disks"]) == (1, 1)
        assert not one["overload"]
        assert row(plan, "a", "03:00")["disks"] == 0

    def test_past_midnight_is_the_next_morning(self, plan: Capacity) -> None:
        assert row(plan, "a", "23:00")["backup_egress"] == pytest.approx(30e6)
        assert row(plan, "a", "22:00")["peak_egress"] == 0

    def test_guests_alone_can_be_too_much(self, plan: Capacity) -> None:
        kinds = {(each.kind, each.target) for each in plan.findings}
        assert ("overload", "a") in kinds
        assert ("guests", "b") in kinds
        assert ("guests", "a") not in kinds
        assert plan.peak == pytest.approx(190 / 150) or plan.peak > 25_000 / 20_000

    def test_half_hours_see_what_hours_blur(self) -> None:
        machines = [{"at": "01:30", "disk": {"account": "a"}}]
        found = capacity(fleet(machines, [{"name": "a"}]), slot="30m", penalties=FREE)
        assert len(found.slots) == 48
        assert row(found, "a", "01:00")["peak_egress"] == 0
        assert row(found, "a", "01:30")["backup_egress"] == pytest.approx(60e6)

    def test_longer_than_a_day_goes_round(self) -> None:
        disk = {"account": "a", "size": "8TiB", "used": 30 * HOUR_OF_READING}
        found = capacity(fleet([{"at": "10:00", "disk": disk}], [{"name": "a"}]), penalties=FREE)
        # 30 hours from 10:00: twice at work from 10:00 to 16:00.
        assert row(found, "a", "12:00")["peak_egress"] == 120_000_000
        assert row(found, "a", "12:00")["backup_egress"] == pytest.approx(120e6)
        assert row(found, "a", "16:00")["peak_egress"] == 60_000_000
        assert any(each.kind == "late" and each.target == "vm-0" for each in found.findings)


class TestTimes:
    def shared(self, *used: float, egress: str = "60MB/s") -> list[float]:
        machines = [
            {"at": "00:00", "disk": {"account": "a", "used": int(HOUR_OF_READING * each)}}
            for each in used
        ]
        found = capacity(fleet(machines, [{"name": "a", "egress": egress}]), penalties=FREE)
        return [ns / HOUR for ns in found.vms["incremental_shared_ns"]]

    def test_two_equal_ones_take_twice_as_long(self) -> None:
        assert self.shared(1, 1) == pytest.approx([2, 2], rel=1e-5)

    def test_the_longer_one_is_alone_in_the_end(self) -> None:
        # Half speed for an hour: the short one is done, the long one has half an hour to go.
        assert self.shared(1, 0.5) == pytest.approx([1.5, 1], rel=1e-5)

    def test_nobody_waits_below_the_cap(self) -> None:
        assert self.shared(1, 1, egress="120MB/s") == pytest.approx([1, 1])

    def test_first_backups_and_changes(self) -> None:
        disk = {"account": "a", "used": "100GB", "churn": "6GB", "extent": "4MiB"}
        found = capacity(fleet([{"at": "00:00", "disk": disk}], [{"name": "a"}]), penalties=FREE)
        vm = found.vms.row(0, named=True)
        assert vm["initial_ns"] == 100_000 * SECOND // 20  # 160 Mbps
        seconds = 100_000 / 60 + 6000 / 60  # all is read, what changed is sent
        assert vm["incremental_ns"] / SECOND == pytest.approx(seconds)
        assert vm["checksum_ns"] == vm["incremental_ns"]
        assert vm["critical"] == "d"

    def test_a_weekly_backup_sends_a_week(self) -> None:
        disk = {"used": "1000GB", "churn": "7GB", "weekend": 0.5}
        week = {"frequency": "weekly", "weekdays": ["sunday"]}
        scenario = fleet([{"at": "", "schedule": week, "disk": disk},
                          {"at": "01:00", "disk": disk}], [])  # fmt: skip
        changed = busiest_change(scenario, plan_of(scenario, FREE))
        assert changed.tolist() == [42 * 10**9, 7 * 10**9]

    def test_an_account_without_any_rest_is_refused(self) -> None:
        account = {"name": "a", "egress": 1000, "guest_egress": 1 << 40}
        scenario = fleet([{"at": "00:00", "disk": {"account": "a"}}], [account])
        with pytest.raises(InputError, match=r"accounts .'a'.*egress"):
            capacity(scenario, penalties=FREE)

    def test_shared_times_are_the_engines(self) -> None:
        scenario = Scenario.load("saturated")
        changes = {
            "start_jitter": "0s", "queue_peak": "0s", "snapshot_least": "2m",
            "snapshot_most": "2m", "places": 0,
        }  # fmt: skip
        profile = scenario.profile.change(changes)
        never = FailureModel.never("2017")
        scenario = replace(scenario, profile=profile, days=1, failures=never)
        plan = plan_of(scenario)
        outputs = simulate_fast(plan, parts=True)
        jobs = outputs.jobs
        begin = sum(jobs[:, JOB.index(name)] for name in ("start", "install", "snapshot"))
        begin = np.repeat(begin, np.diff(plan.disk_first))
        work = transfers(plan, "initial", busiest_change(scenario, plan))
        _, ends = shared_ends(plan, begin, work)
        assert ends.tolist() == outputs.parts[:, PART.index("send_end")].tolist()


class TestLoad:
    @pytest.mark.parametrize("seed", range(40))
    def test_accounts_are_told_as_the_engine_tells_them(self, seed: int) -> None:
        plan = without_rotations(random_plan(seed))
        outputs = simulate_fast(plan, parts=True)
        load = account_load(plan, outputs)
        rows = dict(zip(ACCOUNT_TOLD, outputs.accounts.T, strict=True))
        length = load.end - load.begin
        assert (length > 0).all()
        for a in range(len(plan.accounts)):
            mine = load.account == a
            assert length[mine].sum() == rows["busy"][a]
            assert length[mine & (load.share < 1 << 20)].sum() == rows["throttled"][a]
            for name in ("egress", "requests"):
                for told, asked in (
                    (f"peak_{name}", getattr(load, name)),
                    (f"peak_backup_{name}", getattr(load, f"backup_{name}")),
                ):
                    peak = (asked * load.share >> 20)[mine].max(initial=0)
                    assert peak == rows[told][a]  # fmt: skip

    def test_works_are_what_managed_disks_take(self) -> None:
        scenario = Scenario.load("small-company")
        plan = plan_of(scenario)
        outputs = simulate_fast(plan, parts=True)
        flows = part_flows(plan, outputs)
        managed = plan.disks[flows.disk, 1] < 0
        for first, last, work in (
            (flows.begin, flows.scan_end, flows.scan.work),
            (flows.scan_end, flows.send_end, flows.send.work),
        ):
            assert ((last - first)[managed] == work[managed]).all()
        modes = outputs.parts[:, PART.index("mode")]
        assert (modes == INITIAL).any()

    def test_a_part_of_the_time(self) -> None:
        scenario = Scenario.load("saturated")
        plan = plan_of(scenario)
        outputs = simulate_fast(plan, parts=True)
        whole = account_load(plan, outputs)
        some = account_load(plan, outputs, 30 * HOUR, 50 * HOUR)
        clipped = np.clip(whole.end, 30 * HOUR, 50 * HOUR) - np.clip(
            whole.begin, 30 * HOUR, 50 * HOUR
        )
        assert (some.end - some.begin).sum() == clipped.sum()
        assert some.throttled == clipped[whole.share < 1 << 20].sum()
        frame = some.frame(scenario)
        assert set(frame["account"]) <= set(scenario.accounts)
        assert frame["share"].is_between(0, 1).all()

    def test_disks_must_have_been_kept(self) -> None:
        plan = plan_of(Scenario.load("small-company"))
        with pytest.raises(InputError, match="not kept"):
            account_load(plan, Outputs.empty(plan, parts=False))


def without_rotations(plan: Plan) -> Plan:
    """A transfer that was cut off is not told by its disks."""
    return replace(plan, events=plan.events[plan.events[:, 1] != ROTATE])


class TestWhole:
    def test_shipped_scenarios_have_plans(self) -> None:
        assert shipped_scenarios() == ("saturated", "small-company")
        for name in shipped_scenarios():
            found = capacity(Scenario.load(name))
            assert len(found.vms) == len(Scenario.load(name).vms)
            json.dumps(found.to_dict())
            assert "Highest share" in found._repr_html_()
        assert found.findings

    def test_guidance_of_the_eras(self) -> None:
        on = {"account": "a", "used": "1GB"}
        for n, era, kinds in ((20, "2017", []), (21, "2017", ["disks"]), (4, "instant", []),
                              (5, "instant", ["disks"])):  # fmt: skip
            machines = [{"name": f"v{i}", "policy": "p", "disks": [
                {"name": "d", "size": "1TiB", **on}]} for i in range(n)]  # fmt: skip
            scenario = Scenario.parse(
                {"profile": era, "vms": machines, "accounts": [{"name": "a"}],
                 "policies": [{"name": "p"}]}
            )  # fmt: skip
            found = capacity(scenario, penalties=FREE)
            assert [each.kind for each in found.findings if each.kind == "disks"] == kinds
            assert found.accounts["scheduled"].to_list() == [n]

    def test_no_accounts_no_slots(self) -> None:
        found = capacity(fleet([{"at": "00:00"}], []), penalties=FREE)
        assert len(found.slots) == len(found.accounts) == 0
        assert found.peak == 0
        assert found.findings == ()

    def test_names_are_escaped(self) -> None:
        machines = [{"name": "<b>x</b>", "disks": [{"name": "<i>", "size": "1GiB",
                                                    "account": "<a>"}]}]  # fmt: skip
        scenario = Scenario.parse({"vms": machines, "accounts": [{"name": "<a>"}]})
        html = capacity(scenario)._repr_html_()
        assert "<b>" not in html
        assert "<i>" not in html
        assert "<a>" not in html

    @pytest.mark.parametrize("slot", ["7m", "2h", "0s", "1s", "soon"])
    def test_slots_divide_an_hour(self, slot: str) -> None:
        scenario = fleet([{"at": "00:00"}], [])
        with pytest.raises(InputError):
            capacity(scenario, slot=slot)

    def test_not_too_many_slots(self) -> None:
        accounts = [{"name": f"a{i}"} for i in range(4000)]
        with pytest.raises(InputError, match="4,000 accounts"):
            capacity(fleet([{"at": "00:00"}], accounts), slot="1m", penalties=FREE)

    def test_kinds_of_backups(self) -> None:
        scenario = fleet([{"at": "00:00", "disk": {"account": "a"}}], [{"name": "a"}])
        with pytest.raises(InputError, match="'full' is not one of initial"):
            capacity(scenario, backup="full")
        first = capacity(scenario, backup="initial", penalties=FREE)
        assert row(first, "a", "00:00")["peak_egress"] == 20_000_000
