"""The questions that users ask, through the command line and from Python."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import vmbk
from vmbk.cli.program import run
from vmbk.errors import InputError
from vmbk.service.plan import HOUR
from vmbk.service.recovery import recovery

DISK = {"name": "os", "size": "64GiB", "used": "20GB", "churn": "5%"}


def fleet(**more: Any) -> dict[str, Any]:
    return {"days": 6, "seed": 2, "vms": [{"name": "vm", "disks": [DISK]}], **more}


def asked(*words: object, code: int = 0) -> dict[str, Any]:
    """One command's JSON, and that its text says something too."""
    told = [str(word) for word in words]
    answer = run([*told, "--json"])
    assert answer.code == code, answer.err
    if not code:
        text = run(
            [word for word in told if word not in ("-o",)] if "-o" not in told else told[:-2]
        )
        assert text.code == 0
        assert len(text.out) > 40
    reply: dict[str, Any] = json.loads(answer.out)
    return reply


def test_simulate() -> None:
    told = asked("service", "simulate", "small-company", "--days", "4")
    assert told["job_count"] == len(told["jobs"]) == 32 * 4
    assert told["jobs_left_out"] == 0
    assert {row["tier"] for row in told["objectives"]["rpo"]} >= {"any", "vault", "secondary"}
    rates = {n["name"]: n for n in told["profile"]["numbers"]}
    assert rates["initial_rate"]["value"] == 20_000_000
    assert (rates["initial_rate"]["unit"], rates["queue_peak"]["basis"]) == (
        "bytes/s",
        "documented",
    )
    same = asked("service", "simulate", "small-company", "--days", "4", "--engine", "reference")
    assert same["jobs"] == told["jobs"]


def test_plan(tmp_path: Path) -> None:
    told = asked("service", "plan", "small-company")
    assert told["improved"]
    assert told["after"]["makespan_s"] <= told["before"]["makespan_s"]
    asked("service", "plan", "small-company", "-o", tmp_path / "changes.toml")
    changes = tomllib.loads((tmp_path / "changes.toml").read_text())
    assert len(changes["changes"]) == len(told["changes"])
    again = asked("service", "plan", "small-company", "-o", tmp_path / "changes.toml", code=2)
    assert "exists already" in again["error"]


def test_advise() -> None:
    told = asked("service", "advise", "small-company", "--no-effects")
    assert {"daily-churn", "write-size"} <= {row["rule"] for row in told["findings"]}
    assert not told["effects"]
    wrong = asked("service", "advise", "small-company", "--only", "nothing", code=2)
    assert "there is no rule 'nothing'" in wrong["error"]


def test_explain_adds_up() -> None:
    told = asked("service", "explain", "small-company", "--vm", "sql-1", "--job", "3")
    assert sum(part["ns"] for part in told["parts"]) == told["duration_ns"]
    assert sum(disk["changed_bytes"] for disk in told["disks"]) == told["changed_bytes"]


def test_cost_from_python_is_that_of_the_command_line() -> None:
    told = asked("service", "cost", "small-company", "--months", "6")
    found = vmbk.estimate_cost("small-company", months=6)
    assert told["total"] == float(found.total)
    assert told["parts"]["vault"] == float(found.part("vault"))


def test_an_era_without_snapshots_bills_none_and_restores_from_none() -> None:
    old = fleet(profile="2017")
    assert dict(vmbk.estimate_cost(old).by_part).keys() == {"instance", "vault"}
    found = recovery(vmbk.simulate(old))
    assert found.of("snapshot")["points"] == 0
    assert found.of("any")["p50"] == found.of("vault")["p50"]
    row = pl.col("vm").is_null() & (pl.col("disaster") == "machine")
    assert found.restore.filter(row)["max"].item() > HOUR // 2  # from the vault, at 30 MB/s
    with pytest.raises(InputError, match="keeps no snapshots"):
        vmbk.simulate(old | {"events": [{"at": "1d", "kind": "delete-snapshots", "vm": "vm"}]})


def test_costs_of_several_days_a_week_are_refused() -> None:
    policy = {"name": "p", "schedule": {"frequency": "weekly", "weekdays": ["monday", "friday"]}}
    vms = [{"name": "vm", "policy": "p", "disks": [DISK]}]
    with pytest.raises(InputError, match=r"policies \(p\)\.schedule\.weekdays"):
        vmbk.estimate_cost(fleet(policies=[policy], vms=vms))


@pytest.mark.parametrize(
    ("profile", "reading", "label"),
    [("instant", None, "filesystem"), ("instant", "table", "crash"), ("2017", None, "crash"),
     ("2017", "writes", "filesystem"), ("enhanced", "note", "filesystem")],
)  # fmt: skip
def test_what_documents_say_of_stopped_machines_is_switchable(
    profile: str, reading: str | None, label: str
) -> None:
    readings = {} if reading is None else {"stopped_machine": reading}
    vms = [{"name": "vm", "power": "stopped", "disks": [DISK]}]
    found = vmbk.simulate(
        fleet(profile=profile, readings=readings, vms=vms, failures={"defaults": False})
    )
    assert set(found.jobs["label"].cast(pl.String)) == {label}


def test_first_backups_may_be_late_or_not() -> None:
    """1,900 GB at 20 MB/s take more than a day."""
    big = [{"name": "vm", "disks": [{"name": "d", "size": "4TiB", "used": "1900GB"}]}]
    counts = {
        reading: vmbk.simulate(
            fleet(vms=big, readings={"late_counts": reading, "queue_curve": "never"})
        ).summary()["late"]
        for reading in ("all", "incrementals")
    }
    assert counts == {"all": 1, "incrementals": 0}


def test_a_failure_that_lies_in_the_machine_has_its_cause() -> None:
    vms = [{"name": "vm", "provisioning": "failed", "disks": [DISK]}]
    jobs = vmbk.simulate(fleet(vms=vms, failures={"defaults": False})).jobs
    failed = jobs.filter(pl.col("state") == "Failed")
    assert set(failed["cause"].cast(pl.String)) <= {"UserErrorVmProvisioningStateFailed"}
    assert "" not in set(failed["cause"].cast(pl.String))


def test_a_transfer_that_fails_is_made_up_for_by_the_next_snapshot() -> None:
    """Of an hourly policy only the last backup of a day goes to the vault, unless one is owed."""
    policy = {"name": "p", "subtype": "enhanced",
              "schedule": {"frequency": "hourly", "every": "4h", "window": "24h"}}  # fmt: skip
    scenario = fleet(
        profile="enhanced", days=40, policies=[policy],
        vms=[{"name": "vm", "policy": "p", "disks": [DISK]}],
        failures={"defaults": False, "CopyingVHDsFromBackUpVaultTakingLongTime": "30%"},
        readings={"queue_curve": "never"},
    )  # fmt: skip
    jobs = vmbk.simulate(scenario).jobs.filter(pl.col("transfer") != "skipped")
    after = jobs.with_columns(before=pl.col("transfer").shift(1)).filter(
        pl.col("before") == "failed"
    )
    assert len(after) >= 5
    assert "not due" not in set(after["transfer"].cast(pl.String))


def test_a_restore_number_of_the_scenario_counts() -> None:
    slow = fleet(restores={"segment_rate": "1MB/s"})
    usual, slower = (recovery(vmbk.simulate(each)).restore for each in (fleet(), slow))
    where = pl.col("vm").is_null() & (pl.col("disaster") == "snapshots")
    assert slower.filter(where)["p50"].item() > usual.filter(where)["p50"].item()


def test_what_is_beyond_a_limit_is_told_or_refused(tmp_path: Path) -> None:
    vms = [{"name": "vm-{n}", "count": 101, "disks": [DISK]}]
    many = fleet(vms=vms, days=1)
    path = tmp_path / "many.toml"
    lines = [
        'days = 1', "[[vms]]", 'name = "vm-{n}"', "count = 101",
        'disks = [{ name = "os", size = "64GiB", used = "20GB" }]',
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    (told,) = asked("service", "simulate", path)["limits"]
    assert (told["where"], told["field"]) == ("policies (DefaultPolicy)", "vms_per_policy")
    assert (told["value"], told["limit"]) == (101, 100)
    with pytest.raises(InputError, match=r"policies \(DefaultPolicy\): vms_per_policy: 101"):
        vmbk.simulate(many | {"limits": {"refuse": True}})
    vmbk.simulate(many | {"limits": {"refuse": True, "vms_per_policy": "off"}})
    with pytest.raises(InputError, match=r"limits\.vms_per_vm"):
        vmbk.simulate(many | {"limits": {"vms_per_vm": "off"}})


def test_a_limit_has_the_reading_that_the_scenario_chooses() -> None:
    big = fleet(
        profile="2017",
        vms=[{"name": "vm", "disks": [{"name": "d", "size": "2TiB", "used": "1GB"}]}],
    )
    refused = {"refuse": True}
    with pytest.raises(InputError, match=r"vms \(vm\)\.disks \(d\): disk_size: 2 TiB is more"):
        vmbk.simulate(big | {"limits": refused})
    vmbk.simulate(big | {"limits": refused | {"disk_size": "2018"}})


def test_backups_on_demand_have_a_limit_a_day() -> None:
    events = [{"at": "1d", "clock": f"{hour:02d}:00", "kind": "back-up", "vm": "vm"}
              for hour in range(5)]  # fmt: skip
    with pytest.raises(InputError, match="on_demand_per_day: 5 is more than 4"):
        vmbk.simulate(fleet(events=events, limits={"refuse": True}))
