"""Objectives: exact distributions against a disaster tried at every single moment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbk.errors import InputError
from vmbk.service.objectives import DISASTERS, LABELS, PERCENTS, TIERS, Objectives, objectives
from vmbk.service.plan import DAY, HOUR
from vmbk.service.restore_rules import RestoreRequest, RestoreRules
from vmbk.service.restores import simulate_restores

MINUTE = 60 * 10**9
REPLICATION = 7  # of the brute force, whose moments are single nanoseconds


def job(vm: str, number: int, at: int, **more: Any) -> dict[str, Any]:
    """A job whose snapshot takes no time and whose transfer ends at once, unless said otherwise."""
    row = {
        "vm": vm, "job": number, "scheduled_ns": at, "start_ns": at, "snapshot_at_ns": at,
        "point_ns": at, "end_ns": at, "label": "application", "state": "Completed",
        "transfer": "done",
    }  # fmt: skip
    return {**row, **more}


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(
        rows,
        schema_overrides=dict.fromkeys(("snapshot_at_ns", "point_ns", "end_ns"), pl.Int64),
    )


def daily(days: int = 30, **more: Any) -> pl.DataFrame:
    """A backup each midnight."""
    return frame([job("web", i, i * DAY, **more) for i in range(days)])


# --- Golden and by hand --------------------------------------------------------------------------


def test_g13_the_secondary_region_is_36_hours_behind_at_most() -> None:
    """Restore VMs: 36 h = 24 h between backups + 12 h of replication."""
    found = objectives(daily(), end=30 * DAY)
    row = found.of("secondary")
    assert row["max"] == 36 * HOUR == RestoreRules.default("enhanced").secondary_promise
    assert row["target"] == 36 * HOUR
    assert row["protected"] == pytest.approx(1 - 0.5 / 30)
    assert row["above"] == pytest.approx(0.5 / 30)  # before the first point is there
    # A transfer of 8 h is not in the promise.
    late = frame([job("web", i, i * DAY, end_ns=i * DAY + 8 * HOUR) for i in range(30)])
    assert objectives(late, end=30 * DAY).of("secondary")["max"] == 44 * HOUR
    assert objectives(late, end=30 * DAY).of("secondary")["above"] > 0.2


def test_a_daily_backup_loses_half_a_day_in_the_mean_and_a_day_at_most() -> None:
    row = objectives(daily(), end=30 * DAY).of("snapshot", "application", "web")
    assert (row["points"], row["protected"], row["above"]) == (30, 1.0, 0.0)
    assert (row["mean"], row["p50"], row["max"]) == (12 * HOUR, 12 * HOUR, 24 * HOUR)
    assert row["p90"] == 24 * HOUR * 9 // 10
    assert row["p99"] == -(-24 * HOUR * 99 // 100)


def test_what_follows_from_the_failure_of_one_job() -> None:
    """A failed snapshot makes the objective of a day twice as long."""
    rows = daily().to_dicts()
    rows[9].update(snapshot_at_ns=-1, point_ns=-1, label="none", transfer="none", state="Failed")
    row = objectives(frame(rows), end=30 * DAY).of()
    assert row["max"] == 48 * HOUR
    assert row["above"] == pytest.approx(1 / 30)
    assert row["points"] == 29


def test_in_2017_a_point_is_there_when_its_transfer_ends() -> None:
    old = frame([job("web", i, i * DAY, point_ns=-1, end_ns=i * DAY + 8 * HOUR) for i in range(30)])
    found = objectives(old, begin=DAY, end=30 * DAY)
    assert found.of("snapshot")["max"] is None
    assert found.of("snapshot")["protected"] == 0
    assert found.of("snapshot")["above"] == 1
    assert found.of("any")["max"] == found.of("vault")["max"] == 32 * HOUR
    assert found.of("any")["p50"] == 20 * HOUR


def test_labels_ask_for_at_least_so_much() -> None:
    rows = daily(8).to_dicts()
    for i, label in enumerate(["application", "filesystem", "crash", "application"] * 2):
        rows[i]["label"] = label
    found = objectives(frame(rows), end=8 * DAY)
    assert found.of("any", "crash")["max"] == 24 * HOUR
    assert found.of("any", "filesystem")["max"] == 48 * HOUR
    assert found.of("any", "application")["max"] == 72 * HOUR


def test_a_skipped_or_failed_transfer_leaves_the_vault_behind() -> None:
    rows = daily(10).to_dicts()
    rows[3]["transfer"], rows[4]["transfer"], rows[5]["transfer"] = "skipped", "failed", "not due"
    found = objectives(frame(rows), end=10 * DAY)
    assert found.of("vault")["max"] == 4 * 24 * HOUR
    assert found.of("snapshot")["max"] == found.of("any")["max"] == 24 * HOUR


def test_the_fleet_is_all_its_machines() -> None:
    rows = [job("a", i, i * DAY) for i in range(10)] + [job("b", 0, 0)]
    found = objectives(frame(rows), end=10 * DAY, targets={"any": 5 * DAY})
    assert found.of("any", vm="a")["max"] == DAY
    assert found.of("any", vm="b")["max"] == 10 * DAY
    fleet = found.of("any")
    assert (fleet["points"], fleet["max"], fleet["target"]) == (11, 10 * DAY, 5 * DAY)
    assert fleet["mean"] == (DAY // 2 + 5 * DAY) // 2
    assert fleet["above"] == pytest.approx(0.25)
    assert len(found.fleet) == len(TIERS) * len(LABELS)
    assert len(found.frame) == 3 * len(found.fleet)
    told = found.to_dict()
    assert len(told["rpo"]) == len(found.fleet)
    assert len(found.to_dict(vms=True)["rpo"]) == len(found.frame)
    assert "Recovery point objective" in found._repr_html_()
    assert "Recovery time" not in found._repr_html_()


# --- Every moment tried --------------------------------------------------------------------------


def brute(jobs: list[dict[str, Any]], tier: str, label: str, begin: int, end: int) -> list[int]:
    """Ages of the newest usable point at each nanosecond that has one."""
    points = []
    for each in jobs:
        if each["label"] not in LABELS[label] or each["snapshot_at_ns"] < 0:
            continue
        if tier in ("any", "snapshot") and each["point_ns"] >= 0:
            points.append((each["point_ns"], each["snapshot_at_ns"]))
        if tier in ("any", "vault") and each["transfer"] == "done":
            points.append((each["end_ns"], each["snapshot_at_ns"]))
        if tier == "secondary" and each["transfer"] == "done":
            points.append((each["end_ns"] + REPLICATION, each["snapshot_at_ns"]))
    ages = []
    for moment in range(begin, end):
        held = [at for usable, at in points if usable <= moment]
        if held:
            ages.append(moment - max(held))
    return ages


def check(row: dict[str, Any], ages: list[int], moments: int) -> None:
    """An age counts from the whole nanosecond in which it was seen to the next."""
    assert row["protected"] == pytest.approx(len(ages) / moments)
    if not ages:
        assert [row[c] for c in ("mean", "p50", "p99", "max")] == [None] * 4
        assert row["above"] == 1
        return
    ages.sort()
    assert row["max"] == ages[-1] + 1
    assert row["mean"] == pytest.approx(sum(ages) / len(ages) + 0.5, abs=0.5)
    for percent in PERCENTS:
        need = -(-len(ages) * percent // 100)
        assert row[f"p{percent}"] == ages[need - 1] + 1
    above = sum(age >= row["target"] for age in ages) + moments - len(ages)
    assert row["above"] == pytest.approx(above / moments)


@st.composite
def fleets(draw: st.DrawFn) -> list[dict[str, Any]]:
    rows = []
    for vm in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, 20))
        for number in range(draw(st.integers(1, 7))):
            point = draw(st.one_of(st.just(-1), st.integers(at, at + 15)))
            rows.append(
                job(
                    f"vm{vm}", number, at, point_ns=point,
                    end_ns=max(at, point) + draw(st.integers(0, 40)),
                    label=draw(st.sampled_from(["application", "filesystem", "crash"])),
                    transfer=draw(st.sampled_from(["done", "done", "failed", "not due"])),
                )
            )  # fmt: skip
            if draw(st.integers(0, 5)) == 0:
                rows[-1].update(
                    snapshot_at_ns=-1, point_ns=-1, label="none", transfer="none", state="Failed"
                )
            at += draw(st.integers(1, 40))
    return draw(st.permutations(rows))


@settings(max_examples=60, deadline=None)
@given(
    rows=fleets(), begin=st.integers(0, 30), length=st.integers(1, 250), target=st.integers(0, 60)
)
def test_the_distribution_is_that_of_every_moment(
    rows: list[dict[str, Any]], begin: int, length: int, target: int
) -> None:
    rules = replace(RestoreRules.default("instant"), replication=REPLICATION)
    end = begin + length
    found = objectives(
        frame(rows), begin=begin, end=end, rules=rules, targets=dict.fromkeys(TIERS, target)
    )
    vms = sorted({row["vm"] for row in rows})
    for tier in TIERS:
        for label in LABELS:
            together = []
            for vm in vms:
                mine = [row for row in rows if row["vm"] == vm]
                ages = brute(mine, tier, label, begin, end)
                together += ages
                check(found.of(tier, label, vm), ages, length)
            check(found.of(tier, label), together, length * len(vms))


def test_a_large_fleet_does_not_overflow() -> None:
    """Sums of nanoseconds of all machines are past 63 bits, those of one are not."""
    years, machines = 20, 40
    rows = [
        job(f"vm{m}", i, i * 30 * DAY) for m in range(machines) for i in range(years * 365 // 30)
    ]
    end = years * 365 * DAY
    assert machines * end > 2**62
    found = objectives(frame(rows), end=end)
    alone = objectives(frame(rows[: len(rows) // machines]), end=end)
    for name in ("mean", *(f"p{p}" for p in PERCENTS), "max", "above", "protected"):
        assert found.of("vault")[name] == pytest.approx(alone.of("vault")[name], rel=1e-12)
        assert found.of("vault", vm="vm7")[name] == alone.of("vault")[name]


# --- Recovery time -------------------------------------------------------------------------------


def restored(found: Objectives, disaster: str, vm: str | None = None) -> dict[str, Any]:
    return found.restore.filter(
        pl.col("vm").eq_missing(pl.lit(vm, pl.String)) & (pl.col("disaster") == disaster)
    ).row(0, named=True)


def test_recovery_time_is_that_of_the_tier_that_is_left() -> None:
    rules = RestoreRules.default("instant")
    machines = {"web": (10**12,), "db": (2 * 10**12,)}
    requests = [
        RestoreRequest(vm, i * DAY, disks, tier, option)
        for i, (tier, option) in enumerate(
            [("snapshot", "create-vm"), ("vault", "create-vm"), ("vault", "cross-region")]
        )
        for vm, disks in machines.items()
    ]
    restores = simulate_restores(requests, rules)
    jobs = frame([job(vm, i, i * DAY) for i in range(10) for vm in machines])
    found = objectives(jobs, end=10 * DAY, restores=restores)
    assert set(found.restore["disaster"].unique()) == set(DISASTERS)
    assert restored(found, "machine")["p99"] == restores.frame["total"][:2].max()
    assert restored(found, "snapshots", "db")["p50"] == restores.frame["total"][3]
    fleet = restored(found, "snapshots")
    assert (fleet["p50"], fleet["p90"]) == tuple(restores.frame["total"][2:4])
    assert fleet["mean"] == sum(restores.frame["total"][2:4]) // 2
    assert restored(found, "region")["restorable"] == pytest.approx(1 - 0.5 / 10)
    assert restored(found, "machine")["restorable"] == pytest.approx(1)
    assert "Recovery time objective" in found._repr_html_()
    assert len(found.to_dict()["rto"]) == len(DISASTERS)


def test_before_the_vault_has_it_a_machine_comes_from_its_snapshot() -> None:
    """Weights are shares of time: 2017 has points in the vault, later eras snapshots."""
    rules = RestoreRules.default("instant")
    restores = simulate_restores(
        [RestoreRequest("web", 0, (10**12,)), RestoreRequest("web", DAY, (10**12,), "snapshot")],
        rules,
    )
    rows = [job("web", 0, 0, point_ns=-1), job("web", 1, 9 * DAY)]
    found = objectives(frame(rows), end=10 * DAY, restores=restores)
    slow, fast = restores.frame["total"]
    row = restored(found, "machine")
    assert (row["p50"], row["p90"], row["max"]) == (slow, slow, slow)
    assert row["mean"] == pytest.approx(0.9 * slow + 0.1 * fast, abs=1)


def test_what_was_never_restored_is_not_promised() -> None:
    restores = simulate_restores(
        [RestoreRequest("web", 0, (10**12,), option="replace-existing", power="running"),
         RestoreRequest("web", 0, (10**12,), option="file-recovery", files=1)],
        RestoreRules.default("instant"),
    )  # fmt: skip
    found = objectives(daily(), end=30 * DAY, restores=restores)
    row = restored(found, "snapshots", "web")
    assert (row["restorable"], row["mean"], row["p50"], row["max"]) == (0.0, None, None, None)


# --- Bad input -----------------------------------------------------------------------------------


def test_bad_input_is_named() -> None:
    with pytest.raises(InputError, match="the jobs lack the columns point_ns, label"):
        objectives(daily().drop("point_ns", "label"))
    with pytest.raises(InputError, match="no time from 5 to 5"):
        objectives(daily(), begin=5, end=5)
    with pytest.raises(InputError, match="there is no tier 'vualt'"):
        objectives(daily(), targets={"vualt": 1})
    with pytest.raises(InputError, match="there are no jobs"):
        objectives(daily().head(0))
    with pytest.raises(InputError, match="there are no objectives of"):
        objectives(daily()).of("any", "crash", "nobody")


def test_a_fleet_without_any_point() -> None:
    rows = [job("web", 0, 0, snapshot_at_ns=-1, point_ns=-1, label="none", transfer="none")]
    row = objectives(frame(rows), end=DAY).of()
    assert (row["points"], row["protected"], row["p50"], row["above"]) == (0, 0.0, None, 1.0)
