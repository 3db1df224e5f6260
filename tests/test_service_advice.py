"""Advice: each rule fires exactly beyond its number, and what following it brings is simulated."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_service_planner import small
from vmbk.errors import InputError
from vmbk.service.advice import Advice, advise, rules
from vmbk.service.advice_checks import CHECKS
from vmbk.service.explanation import MEANINGS, explain_job
from vmbk.service.plan import SECOND
from vmbk.service.scenario import Event, Scenario
from vmbk.service.simulation import simulate

QUIET = {"defaults": False}
"""Nothing fails."""


def fleet(n: int = 1, era: str = "instant", /, **more: Any) -> dict[str, Any]:
    """n equal machines of one disk, at 03:00; ``disk`` and ``vm`` say more of each."""
    disk = {"name": "d", "size": "128GiB", "used": "20GB", "churn": "1GB", **more.pop("disk", {})}
    vm = {"policy": "p", "disks": [disk], **more.pop("vm", {})}
    vms = [{"name": f"v{i}", **vm} for i in range(n)]
    schedule = more.pop("schedule", {"at": "03:00"})
    policies = [{"name": "p", "schedule": schedule, **more.pop("policy", {})}]
    return {
        "profile": era, "days": 6, "vms": vms, "policies": policies, "failures": QUIET, **more
    }  # fmt: skip


def found(rule: str, declared: dict[str, Any]) -> pl.DataFrame:
    """What one rule finds, without effects."""
    return advise(Scenario.parse(declared), False, only=(rule,)).frame


def shown(rule: str, declared: dict[str, Any]) -> Advice:
    return advise(Scenario.parse(declared), only=(rule,))


ON = {"account": "a"}
A = [{"name": "a"}]
PREMIUM = [{"name": "a", "kind": "premium"}]


class TestThresholds:
    """One below the number nothing is said, one above it is."""

    @pytest.mark.parametrize(
        ("rule", "kept", "broken"),
        [
            ("vms-at-once", fleet(40, "2017"), fleet(41, "2017")),
            ("vms-at-once", fleet(100), fleet(101)),
            ("classic-vms", fleet(10, "2017", vm={"cloud_service": "c"}),
             fleet(11, "2017", vm={"cloud_service": "c"})),
            ("disks-per-schedule", fleet(20, "2017", disk=ON, accounts=A),
             fleet(21, "2017", disk=ON, accounts=A)),
            ("disks-per-account", fleet(4, disk=ON, accounts=A), fleet(5, disk=ON, accounts=A)),
            ("default-time", fleet(schedule={"at": "00:01"}), fleet(schedule={"at": "00:00"})),
            ("write-size", fleet(disk={"write_size": "8KiB"}), fleet(disk={"write_size": 8191})),
            ("daily-churn", fleet(disk={"size": "1TiB", "used": "1TB", "churn": "200GB"}),
             fleet(disk={"size": "1TiB", "used": "1TB", "churn": 200 * 10**9 + 1})),
            ("premium-staging",
             fleet(7, disk={**ON, "size": "2560GiB"}, accounts=PREMIUM),
             fleet(8, disk={**ON, "size": "2560GiB"}, accounts=PREMIUM)),
            ("premium-own-account", fleet(1, "2017", disk=ON, accounts=PREMIUM),
             fleet(2, "2017", disk=ON, accounts=PREMIUM)),
            ("restore-accounts", fleet(1), fleet(2)),
            ("new-disk", fleet(disk={"added": "6d"}), fleet(disk={"added": "5d"})),
            ("first-backup", fleet(disk={"size": "2TiB", "used": "1728GB"}),
             fleet(disk={"size": "2TiB", "used": "1729GB"})),
            ("snapshot-days", fleet(policy={"instant_days": 2}), fleet(policy={"instant_days": 3})),
            ("limits", fleet(disk={"size": "32TiB"}), fleet(disk={"size": (32 << 40) + 512})),
            ("enhanced-stays", fleet(1, "enhanced"),
             fleet(1, "enhanced", policy={"subtype": "enhanced"})),
            ("off-peak", fleet(schedule={"at": "12:00"}), fleet(schedule={"at": "00:00"})),
            ("restore-elsewhere", fleet(disk=ON, accounts=A),
             fleet(disk=ON, accounts=[{"name": "a", "guest_requests": 1}])),
            ("traffic-jam", fleet(2, disk=ON, accounts=[{"name": "a", "egress": "2GB/s"}]),
             fleet(2, disk=ON, accounts=[{"name": "a", "egress": "2MB/s"}])),
        ],
    )  # fmt: skip
    def test_beyond_its_number(
        self, rule: str, kept: dict[str, Any], broken: dict[str, Any]
    ) -> None:
        assert found(rule, kept).height == 0
        hits = found(rule, broken)
        assert hits.height >= 1
        row = hits.row(0, named=True)
        assert row["rule"] == rule
        assert row["what"]
        assert row["source"]

    def test_numbers_are_quoted(self) -> None:
        (what,) = found("vms-at-once", fleet(41, "2017"))["what"]
        assert what.startswith("41 machines at 03:00, more than 40: v0, v1, v2, v3 and 37 more")
        declared = fleet(2, disk={"size": "1TiB", "used": "1TB", "churn": "201GB"})
        first, _ = found("daily-churn", declared)["what"]
        assert first.startswith("201 GB of v0 change a day, 201 GB of them on disk d")
        assert "8 h 0 min" in first

    def test_all_disks_of_a_machine_count(self) -> None:
        disks = [{"name": n, "size": "1TiB", "used": "1TB", "churn": "101GB"} for n in "ab"]
        declared = fleet(vm={"disks": disks})
        assert found("daily-churn", declared).height == 1
        disks[1]["excluded"] = True  # type: ignore[assignment]
        assert found("daily-churn", declared).height == 0

    def test_classic_machines_an_hour_apart_are_apart(self) -> None:
        declared = fleet(20, "2017", vm={"cloud_service": "c"})
        for vm in declared["vms"][10:]:
            vm["stagger"] = "1h"
        assert found("classic-vms", declared).height == 0
        declared["vms"][10]["stagger"] = "59m"
        assert found("classic-vms", declared).height == 1

    def test_eras(self) -> None:
        busy = {"used": "900GB", "size": "1TiB", "churn": "300GB"}
        assert found("daily-churn", fleet(1, "2017", disk=busy)).height == 0
        assert found("disks-per-schedule", fleet(30, disk=ON, accounts=A)).height == 0
        assert found("deleted-snapshot", fleet(1, "2017")).height == 0

    def test_rules_and_checks_are_the_same(self) -> None:
        assert [rule.name for rule in rules()] == list(CHECKS)
        assert all(rule.reason and rule.todo and rule.source for rule in rules())


def event(kind: str, target: str, at: str) -> dict[str, Any]:
    days, _, clock = at.partition(" ")
    key = "account" if kind == "rotate-keys" else "vm"
    return {"kind": kind, key: target, "at": days, "clock": clock}


class TestEffects:
    """Following an advice brings what it is said to bring."""

    def test_deleted_snapshot(self) -> None:
        declared = fleet(2, disk={"size": "1TiB", "used": "800GB"},
                         events=[event("delete-snapshots", "v1", "2d 12:00")])  # fmt: skip
        advice = shown("deleted-snapshot", declared)
        assert advice.frame["targets"].to_list() == [["v1"]]
        assert advice.effect("deleted-snapshot", "fallbacks") == (1, 0)
        before, after = advice.effect("deleted-snapshot", "longest_s")
        assert before > after + 800e9 / 80e6 / 2

    def test_key_rotation(self) -> None:
        declared = fleet(1, disk={**ON, "size": "1TiB", "used": "900GB"}, accounts=A,
                         readings={"queue_curve": "never"}, service={"start_jitter": "0s"},
                         events=[event("rotate-keys", "a", "0d 05:00")])  # fmt: skip
        advice = shown("key-rotation", declared)
        assert advice.effect("key-rotation", "failed") == (1, 0)
        assert "v0" in advice.frame["what"][0]
        declared["events"] = [event("rotate-keys", "a", "3d 23:00")]
        assert shown("key-rotation", declared).frame.height == 0

    def test_small_writes(self) -> None:
        advice = shown("write-size", fleet(3, disk={"write_size": "1KiB", "extent": "1KiB",
                                                    "churn": "5GB"}))  # fmt: skip
        before, after = advice.effect("write-size", "mean_of_these_s")
        assert before > 2 * after

    def test_churn_on_several_disks(self) -> None:
        declared = fleet(2, disk={"size": "2TiB", "used": "1TB", "churn": "300GB"})
        before, after = shown("daily-churn", declared).effect("daily-churn", "mean_of_these_s")
        assert before == pytest.approx(3 * after, rel=0.05)

    def test_a_new_disk(self) -> None:
        disks = [{"name": "a", "size": "64GiB", "used": "20GB", "churn": "1GB"},
                 {"name": "b", "size": "1TiB", "used": "900GB", "added": "3d"}]  # fmt: skip
        advice = shown("new-disk", fleet(vm={"disks": disks}))
        before, after = advice.effect("new-disk", "longest_s")
        assert before > 900e9 / 20e6
        assert after < before / 3

    def test_staggers_and_accounts_take_load_off(self) -> None:
        busy = [{"name": "a", "egress": "300MB/s", "guest_egress": "200MB/s"}]
        disk = {**ON, "size": "1TiB", "used": "300GB"}
        crowd = fleet(41, "2017", disk=disk, accounts=busy)
        for rule in ("vms-at-once", "disks-per-schedule"):
            before, after = shown(rule, crowd).effect(rule, "lost_s")
            assert after <= before
        jam = fleet(20, disk={**disk, "churn": "30GB"}, accounts=busy,
                    readings={"detector": "checksum"})  # fmt: skip
        before, after = shown("disks-per-account", jam).effect("disks-per-account", "makespan_s")
        assert after < before * 0.9
        jam["accounts"] = [{**busy[0], "busy_hours": ["00:00-08:00"]}]
        before, after = shown("traffic-jam", jam).effect("traffic-jam", "lost_s")
        assert after < before

    def test_off_peak(self) -> None:
        declared = fleet(12, schedule={"at": "23:00"})
        before, after = shown("off-peak", declared).effect("off-peak", "mean_s")
        assert after < before / 2

    def test_restores(self) -> None:
        many = [{"name": f"d{i}", "size": "1TiB", "used": "900GB"} for i in range(20)]
        advice = shown("restore-accounts", fleet(10, vm={"disks": many}))
        before, after = advice.effect("restore-accounts", "restore of all, seconds")
        assert before > 1.5 * after  # 200 streams into 25 Gbps
        busy = [{"name": "a", "egress": "10Gbps", "guest_egress": "10Gbps"}]
        advice = shown("restore-elsewhere", fleet(10, disk={**ON, "size": "1TiB", "used": "900GB"},
                                                  accounts=busy))  # fmt: skip
        (effect,) = advice.effects.to_dicts()
        assert effect["before"] > 1.2 * effect["after"]
        assert "restore of 10 machines" in advice.frame["effect"][0]

    def test_snapshots_cost(self) -> None:
        declared = fleet(3, disk={"churn": "2GB"}, policy={"instant_days": 5})
        assert shown("snapshot-days", declared).effect("snapshot-days", "bytes of snapshots") == (
            30e9, 12e9,
        )  # fmt: skip

    def test_premium_machines_of_their_own(self) -> None:
        busy = [{"name": "a", "kind": "premium", "egress": "100MB/s", "guest_egress": "50MB/s"}]
        declared = fleet(6, "2017", disk={**ON, "size": "1TiB", "used": "200GB"}, accounts=busy)
        advice = shown("premium-own-account", declared)
        before, after = advice.effect("premium-own-account", "makespan_s")
        assert after < before


class TestWhole:
    @pytest.fixture(scope="module")
    @staticmethod
    def advice() -> Advice:
        return advise(Scenario.load("small-company"))

    def test_small_company(self, advice: Advice) -> None:
        rules_found = set(advice.frame["rule"])
        assert {"traffic-jam", "daily-churn", "disks-per-account", "off-peak", "default-time",
                "write-size", "restore-elsewhere", "snapshot-days"} <= rules_found  # fmt: skip
        order = [("warning", "advice", "info").index(s) for s in advice.frame["severity"]]
        assert order == sorted(order)
        before, after = advice.effect("off-peak", "makespan_s")
        assert after < before
        json.dumps(advice.to_dict())
        assert "reports-1" in advice._repr_html_()

    def test_it_can_be_found_again(self, advice: Advice) -> None:
        assert advise(Scenario.load("small-company")).effects.equals(advice.effects)

    def test_without_effects(self, advice: Advice) -> None:
        quick = advise(Scenario.load("small-company"), False)
        assert quick.effects.height == 0
        assert quick.frame["what"].to_list() == advice.frame["what"].to_list()
        assert set(quick.frame["effect"]) == {""}

    def test_a_quiet_fleet_is_left_alone(self) -> None:
        advice = advise(Scenario.parse(fleet(schedule={"at": "10:10"})))
        assert advice.frame.height == 0
        assert advice.to_dict() == {"findings": [], "effects": []}
        assert "0 findings" in advice._repr_html_()

    def test_unknown_rules(self, advice: Advice) -> None:
        with pytest.raises(InputError, match="no rule 'everything'"):
            advise(Scenario.parse(fleet()), only=("everything",))
        with pytest.raises(InputError, match="no rule"):
            advice.of("everything")
        with pytest.raises(InputError, match="no effect"):
            advice.effect("off-peak", "colour")
        assert advice.of("off-peak").height == 1

    @settings(max_examples=15, deadline=None)
    @given(st.data())
    def test_any_fleet_can_be_advised(self, data: st.DataObject) -> None:
        scenario = replace(small(data.draw), days=4)
        advice = advise(scenario, only=tuple(set(CHECKS) - {"traffic-jam"}))
        assert advice.effects["before"].is_not_nan().all()
        assert set(advice.effects["finding"]) <= set(advice.frame["finding"])


class TestExplanations:
    def test_every_job_adds_up(self) -> None:
        scenario = Scenario.load("small-company")
        scenario = replace(
            scenario, days=5,
            events=(Event(30 * 3600 * SECOND, "delete-snapshots", "file-1"),
                    Event(50 * 3600 * SECOND, "rotate-keys", "erp2016")),
        )  # fmt: skip
        run = simulate(scenario, disks=True)
        rows = run.jobs.to_dicts()
        for row in rows:
            found = explain_job(run, row["vm"], row["job"])
            assert sum(part.ns for part in found.parts) == row["end_ns"] - row["start_ns"]
            assert all(part.ns > 0 for part in found.parts)
            assert sum(disk.changed for disk in found.disks) == row["changed_bytes"]
            assert sum(disk.extents for disk in found.disks) == row["extents"]
            assert {part.name for part in found.parts} <= set(MEANINGS)
            assert found.transfer == row["transfer"]
        file = [explain_job(run, "file-1", job) for job in range(5)]
        fallen = [each for each in file if any(d.mode == "fallback" for d in each.disks)]
        assert len(fallen) == 1
        assert fallen[0].dominant == "scan bytes"
        assert "snapshot had been deleted" in fallen[0].text

    def test_saturated_accounts_are_named(self) -> None:
        run = simulate(Scenario.load("saturated"))
        names = set()
        for row in run.jobs.to_dicts()[::5]:
            found = explain_job(run, row["vm"], row["job"])
            assert sum(part.ns for part in found.parts) == found.duration
            names |= {part.name for part in found.parts}
        assert {"scan throttled", "send throttled", "place", "queue"} <= names

    def test_keys_rotated(self) -> None:
        declared = fleet(1, disk={**ON, "size": "1TiB", "used": "900GB"}, accounts=A,
                         readings={"queue_curve": "never"}, service={"start_jitter": "0s"},
                         events=[event("rotate-keys", "a", "0d 05:00")])  # fmt: skip
        found = explain_job(simulate(declared), "v0", 0)
        assert found.transfer == "failed"
        assert found.dominant == "cut off"
        assert found.critical is None
        assert found.text.startswith("CompletedWithWarnings after 1 attempt, filesystem consistent")
        assert "keys were rotated: no new point in the vault; the next backup sends" in found.text

    def test_failures_come_first(self) -> None:
        """Of each outcome some job, in both eras: state, attempts, label, cause, consequence."""
        seen = set()
        disk = {"size": "4TiB", "used": "3TB", "churn": "300GB"}
        for era in ("2017", "enhanced"):
            failures = {"defaults": False, "GuestAgentSnapshotTaskStatusError": "70%",
                        "CopyingVHDsFromBackUpVaultTakingLongTime": "40%"}  # fmt: skip
            run = simulate(fleet(20, era, days=8, disk=disk, failures=failures))
            for row in run.jobs.to_dicts():
                found = explain_job(run, row["vm"], row["job"])
                told = found.to_dict()
                assert all(told[k] == row[k] for k in ("attempts", "label", "state"))
                assert found.cause in ("", row["cause"])
                if (row["state"], row["transfer"], row["cause"]) == ("Completed", "done", ""):
                    assert "attempt" not in found.text
                    continue
                seen.add((era, row["state"], row["transfer"]))
                assert found.text.startswith(row["state"])
                names = {part.name for part in found.parts}
                if found.cause:
                    assert f"{row['cause']}: the agent does not tell" in found.text
                if row["transfer"] == "failed":
                    assert "commit" not in names
                    assert "the recovery point was made" not in found._repr_html_()
                    lost = "no recovery point" if era == "2017" else "no new point in the vault"
                    assert f"{lost}; the next backup sends these changes too" in found.text
                elif row["transfer"] == "skipped":
                    assert "the one before was still running" in found.text
                elif row["transfer"] == "none":
                    assert "no recovery point" in found.text.lower()
        assert seen >= {
            ("2017", "Skipped", "none"), ("2017", "Failed", "none"), ("2017", "Failed", "failed"),
            ("enhanced", "Failed", "none"), ("enhanced", "Completed", "skipped"),
            ("enhanced", "CompletedWithWarnings", "failed"), ("enhanced", "Completed", "done"),
        }  # fmt: skip

    def test_only_the_last_backup_of_a_day_is_due(self) -> None:
        hourly = {"frequency": "hourly", "at": "08:00", "every": "4h", "window": "12h"}
        run = simulate(fleet(1, "enhanced", schedule=hourly, policy={"subtype": "enhanced"}))
        row = run.jobs.filter(run.jobs["transfer"] == "not due").to_dicts()[0]
        text = explain_job(run, row["vm"], row["job"]).text
        assert "Not due: only the day's last backup goes to the vault." in text

    def test_small_writes_are_told_from_dispersion(self) -> None:
        coarse, fine = (
            explain_job(
                simulate(fleet(disk={"write_size": size, "extent": "4KiB", "churn": "20GB",
                                     "tier": "P60"})), "v0", 2
            )
            for size in ("8KiB", "512B")
        )  # fmt: skip
        parts = [{part.name: part.ns for part in each.parts} for each in (coarse, fine)]
        assert "send small writes" not in parts[0]
        assert parts[1]["send small writes"] > 0
        assert parts[0]["send extents"] == pytest.approx(parts[1]["send extents"], rel=1e-6)

    def test_what_it_tells(self) -> None:
        run = simulate(Scenario.load("small-company"))
        first = explain_job(run, "reports-1", 0)
        assert first.largest is not None
        assert first.largest.mode == "initial"
        assert "warehouse" in first.text
        assert first.dominant == "send bytes"
        json.dumps(first.to_dict())
        html = first._repr_html_()
        assert "bytes were sent at the best rate" in html
        with pytest.raises(InputError, match="no VM 'nobody'"):
            explain_job(run, "nobody", 0)
        with pytest.raises(InputError, match="no job 30"):
            explain_job(run, "reports-1", 30)
        with pytest.raises(InputError, match="no job -1"):
            explain_job(run, "reports-1", -1)
