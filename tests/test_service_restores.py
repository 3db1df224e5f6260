"""Restores: what the documents promise, what is refused, and a queue that adds up."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbk.errors import InputError
from vmbk.service.failures import FailureModel
from vmbk.service.plan import DAY, HOUR
from vmbk.service.restore_account import TargetAccount
from vmbk.service.restore_rules import OPTIONS, PROFILES, RestoreRequest, RestoreRules, precheck
from vmbk.service.restores import Restores, disaster, simulate_restores

MINUTE = 60 * 10**9
GB, TB = 10**9, 10**12
INSTANT = RestoreRules.default("instant")
VAULT = RestoreRequest("web", 0, (TB,))
PARTS = ("queue", "prepare", "copy", "create")


def one(request: RestoreRequest, rules: RestoreRules = INSTANT, **more: Any) -> dict[str, Any]:
    """The row of a request by itself."""
    return simulate_restores([request], rules, **more).frame.row(0, named=True)


def adds_up(restores: Restores) -> None:
    """Every total is the sum of its parts, to the nanosecond, and nothing is negative."""
    for row in restores.frame.iter_rows(named=True):
        assert sum(row[part] for part in PARTS) == row["total"], row
        assert row["ideal"] + row["slowed"] == row["copy"], row
        assert min(row[part] for part in (*PARTS, "ideal", "slowed")) >= 0, row
        if row["state"] != "Refused":
            assert row["end"] - row["at"] == row["total"]


# --- Golden --------------------------------------------------------------------------------------


def test_g14_two_terabytes_at_30_mb_a_second_take_18_and_a_half_hours() -> None:
    """FAQ: 30 MB/s of a segment; 2 TB take 18.5 h and segments go in parallel."""
    row = one(RestoreRequest("web", 0, (2 * TB,)))
    assert row["copy"] / HOUR == pytest.approx(18.5185, abs=1e-4)
    assert row["slow"]
    # FAQ: 16 TB with 2 TB allocated in each segment take about as long (20 h).
    assert one(RestoreRequest("web", 0, (16 * TB,)))["copy"] == row["copy"]
    seen = RestoreRules.parse({"segment_rate": "seen"}, "restores", "instant")
    assert one(RestoreRequest("web", 0, (2 * TB,)), seen)["copy"] / HOUR == pytest.approx(
        11.111, abs=1e-3
    )


def test_g13_the_secondary_region_promises_36_hours() -> None:
    """Restore VMs: 36 h = 24 h between backups + 12 h of replication."""
    for profile in PROFILES:
        assert RestoreRules.default(profile).secondary_promise == 36 * HOUR


def test_a_snapshot_restores_in_minutes_and_copies_nothing() -> None:
    """20 to 30 min for a new machine, 22 to 40 min for one whose disks are replaced."""
    new = [one(replace(VAULT, tier="snapshot"), seed=seed) for seed in range(200)]
    assert {(row["copy"], row["slow"]) for row in new} == {(0, False)}
    totals = [row["total"] for row in new]
    assert 20 * MINUTE <= min(totals) < 21 * MINUTE
    assert 29 * MINUTE < max(totals) <= 30 * MINUTE
    assert sum(totals) / len(totals) == pytest.approx(25 * MINUTE, rel=0.05)
    replaced = [
        one(replace(VAULT, tier="snapshot", option="replace-existing"), seed=seed)["total"]
        for seed in range(200)
    ]
    assert 22 * MINUTE <= min(replaced) < 23 * MINUTE
    assert 39 * MINUTE < max(replaced) <= 40 * MINUTE


def test_an_archived_point_comes_back_first() -> None:
    row = one(replace(VAULT, tier="archive"))
    assert HOUR <= row["prepare"] <= 15 * HOUR
    assert row["copy"] == one(VAULT)["copy"]


def test_a_blob_takes_60_mb_a_second_however_many_streams_it_has() -> None:
    """S1: target throughput for a single blob."""
    request = RestoreRequest("web", 0, (8 * TB,), account="a")
    row = one(request, accounts=[TargetAccount("a")])
    assert row["copy"] / HOUR == pytest.approx(8 * TB / 60e6 / 3600, rel=1e-6)


# --- One account or several ----------------------------------------------------------------------


def fleet(accounts: int, **load: Any) -> Restores:
    """Ten machines of 16 disks into so many accounts."""
    machines = {f"vm{i}": (TB,) * 16 for i in range(10)}
    names = [f"a{i}" for i in range(accounts)]
    targets = [TargetAccount(name, **load) for name in names]
    return simulate_restores(disaster(machines, 0, accounts=names), INSTANT, targets)


def test_ten_machines_into_ten_accounts_are_faster_than_into_one() -> None:
    """S0 S2: if 10 VMs are restored, use 10 different storage accounts."""
    into_one, into_ten = fleet(1), fleet(10)
    assert into_ten.frame["slowed"].sum() == 0
    assert into_one.makespan > 1.5 * into_ten.makespan
    told = [f for f in into_one.findings if "use one for each" in f.message]
    assert len(told) == 9
    assert not any(f.refuses for f in into_one.findings)
    assert not into_ten.findings
    for restores in (into_one, into_ten):
        adds_up(restores)
        assert restores.to_dict()["makespan_s"] == restores.makespan / 1e9
        assert "<table>" in restores._repr_html_()


def test_a_restore_takes_longer_the_more_applications_load_its_account() -> None:
    """S0 S1 S2: select a storage account that isn't loaded."""
    times = [fleet(10, load_write=(rate,)).makespan for rate in (0, 2 * 10**9, 3 * 10**9, 10**10)]
    assert times == sorted(times)
    assert times[0] < times[2] < times[3]
    loaded = fleet(10, load_requests=(10**6,))
    assert any("loaded by applications" in f.message for f in loaded.findings)
    assert loaded.makespan > times[0]


def test_load_of_the_day_leaves_the_night_alone() -> None:
    day = (0,) * 8 + (3 * 10**9,) * 10 + (0,) * 6
    account = TargetAccount("a", load_write=day)
    request = RestoreRequest("web", 0, (200 * GB,) * 32, account="a")
    night = one(request, accounts=[account])
    assert night["slowed"] == 0
    morning = one(replace(request, at=8 * HOUR), accounts=[account])
    assert morning["slowed"] > 0


def test_a_premium_account_has_one_limit_for_both_ways() -> None:
    request = RestoreRequest("web", 0, (TB,) * 32, account="p")
    free = one(request, accounts=[TargetAccount("p", total=6_250_000_000)])
    read = TargetAccount("p", total=6_250_000_000, load_read=(6_000_000_000,))
    assert free["slowed"] == 0 < one(request, accounts=[read])["slowed"]


def test_the_queue_is_first_come_first_served() -> None:
    rules = RestoreRules.parse({"places": 2}, "restores", "instant")
    requests = [RestoreRequest(f"vm{i}", i, (100 * GB,)) for i in range(5)]
    restores = simulate_restores(requests, rules)
    adds_up(restores)
    assert restores.frame["begun"].is_sorted()
    assert restores.frame["queue"][0] == restores.frame["queue"][1] == 0
    assert restores.frame["begun"][2] == restores.frame["end"][0]
    assert restores.makespan > 2.9 * restores.frame["total"][0]


# --- What is refused -----------------------------------------------------------------------------

REFUSED: list[tuple[str, RestoreRequest, str, str]] = [
    ("instant", replace(VAULT, option="replace-existing", power="running"),
     "UserErrorVmNotShutDown", "running"),
    ("instant", replace(VAULT, option="replace-existing", account="a"), "", "managed disks only"),
    ("instant", replace(VAULT, option="replace-existing", encryption="ade"), "", "encrypted"),
    ("instant", replace(VAULT, tier="snapshot", snapshot_deleted=True),
     "UserErrorInstantRpNotFound", "deleted"),
    ("enhanced", replace(VAULT, encryption="ade", keys=False), "", "key vault"),
    ("enhanced", replace(VAULT, option="cross-region", tier="snapshot"), "", "tier vault only"),
    ("enhanced", replace(VAULT, option="cross-region", redundancy="LRS"), "", "GRS"),
    ("enhanced", replace(VAULT, option="cross-zone", redundancy="LRS"), "", "ZRS"),
    ("enhanced", replace(VAULT, option="cross-subscription", encryption="cmk"), "", "subscription"),
    ("enhanced", replace(VAULT, by="powershell", target_group=False), "", "TargetResource"),
    ("2017", replace(VAULT, option="replace-existing"), "", "does not offer"),
    ("2017", replace(VAULT, tier="snapshot"), "", "no points in tier snapshot"),
]  # fmt: skip


@pytest.mark.parametrize(("profile", "request_", "code", "message"), REFUSED)
def test_what_the_service_refuses(
    profile: str, request_: RestoreRequest, code: str, message: str
) -> None:
    rules = RestoreRules.default(profile)
    found = precheck(request_, rules)
    assert [(f.refuses, f.code) for f in found] == [(True, code)]
    assert message in found[0].message
    restores = simulate_restores([request_], rules, [TargetAccount("a")])
    row = restores.frame.row(0, named=True)
    assert (row["state"], row["begun"], row["end"], row["total"]) == ("Refused", -1, -1, 0)
    assert restores.makespan == 0
    assert restores.findings[0].source


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(VAULT, option="restore-disks", disks=(5 * TB,)), "no VHD files"),
        (replace(VAULT, option="file-recovery", disks=(TB,) * 17), "another machine"),
        (replace(VAULT, tier="archive"), "comes back"),
        (replace(VAULT, premium=True, account="a", source_account="a"), "fewer IOPS"),
        (replace(VAULT, premium=True, target="premium", option="file-recovery"), "cheaper"),
        (replace(VAULT, option="cross-region", cancel=1), "cannot be cancelled"),
    ],
)
def test_advice_does_not_stop_a_restore(request_: RestoreRequest, message: str) -> None:
    (found,) = precheck(request_, INSTANT)
    assert message in found.message
    assert not found.refuses
    assert one(request_, accounts=[TargetAccount("a")])["state"] == "Completed"


def test_twenty_restores_of_an_item_within_24_hours() -> None:
    """Support matrix: 20 restores per item per 24 h; its older text says 10."""
    requests = [RestoreRequest("web", i * MINUTE, (GB,)) for i in range(22)]
    requests += [RestoreRequest("db", HOUR, (GB,)), RestoreRequest("web", DAY + MINUTE, (GB,))]
    for profile, most in (("instant", 20), ("2017", 10)):
        restores = simulate_restores(requests, RestoreRules.default(profile))
        refused = restores.frame["state"] == "Refused"
        assert refused.to_list() == [False] * most + [True] * (22 - most) + [False, False]
        assert all(f"{most} times within 24 h" in f.message for f in restores.findings if f.refuses)


# --- Files, cancelling, failing ------------------------------------------------------------------


def test_files_can_be_read_for_twelve_hours() -> None:
    request = replace(VAULT, option="file-recovery", files=30 * GB)
    row = one(request)
    assert (row["state"], row["prepare"], row["create"]) == ("Completed", 5 * MINUTE, 0)
    assert row["copy"] == 1000 * 10**9
    late = one(replace(request, files=2 * TB))
    assert (late["state"], late["copy"]) == ("Expired", 12 * HOUR)
    large = one(replace(request, disks=(5 * TB,)))
    assert 20 * MINUTE <= large["prepare"] <= 30 * MINUTE


def test_cancelling_helps_until_the_data_are_there() -> None:
    account = [TargetAccount("a")]
    whole = one(replace(VAULT, account="a"), accounts=account)
    for cancel, state, part in (
        (HOUR, "Cancelled", "copy"),
        (whole["copied"] + 1, "Completed", "create"),
    ):
        for target in ("a", None):
            restores = simulate_restores(
                [replace(VAULT, account=target, cancel=cancel)], INSTANT, account
            )
            adds_up(restores)
            row = restores.frame.row(0, named=True)
            assert (row["state"], row[part] > 0) == (state, True)
            assert row["end"] == (cancel if state == "Cancelled" else whole["end"])
    crossing = replace(VAULT, option="cross-region", cancel=HOUR)
    assert one(crossing)["state"] == "Completed"
    waiting = simulate_restores(
        [VAULT, replace(VAULT, vm="db", cancel=HOUR), replace(VAULT, vm="log")],
        RestoreRules.parse({"places": 1}, "restores", "instant"),
    )
    adds_up(waiting)
    assert waiting.frame["state"].to_list() == ["Completed", "Cancelled", "Completed"]
    assert waiting.frame["begun"][2] == waiting.frame["end"][0]


def test_what_others_cancel_makes_room() -> None:
    account = TargetAccount("a", ingress=600_000_000)
    other = RestoreRequest("db", 0, (TB,) * 30, account="a")
    web = RestoreRequest("web", 0, (TB,) * 20, account="a")
    full = simulate_restores([web, other], INSTANT, [account]).frame["copied"][0]
    less = simulate_restores([web, replace(other, cancel=HOUR)], INSTANT, [account])
    alone = simulate_restores([web], INSTANT, [account]).frame["copied"][0]
    assert alone < less.frame["copied"][0] < full
    adds_up(less)


def test_a_machine_may_not_be_had() -> None:
    model = FailureModel.parse({"UserErrorSkuNotAvailable": "100%", "defaults": False}, "failures",
                               "instant")  # fmt: skip
    row = one(VAULT, failures=model)
    assert (row["state"], row["cause"]) == ("Failed", "UserErrorSkuNotAvailable")
    # errors: restore the disks instead.
    assert one(replace(VAULT, option="restore-disks"), failures=model)["state"] == "Completed"


def test_every_number_says_whether_a_document_gives_it() -> None:
    told = INSTANT.to_dict()
    told.pop("profile")
    assert {each["basis"] for each in told.values()} == {"documented", "inferred"}
    for each in told.values():  # what one user said of his machine is no document's
        assert each["basis"] == "inferred" or "thread" not in each["source"]
    assert (told["create_low"]["value"], told["create_high"]["value"]) == (20 * MINUTE, 30 * MINUTE)


# --- Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"plces": 3}, "restores.plces: there is no such field"),
        ({"places": 0}, "restores.places: 0 is not a whole number"),
        ({"per_day": "oldest"}, "restores.per_day: 'oldest' is not a whole number"),
        ({"segment": "-2TB"}, "restores.segment: '-2TB' is not a size"),
        ({"segment_rate": "fast"}, "restores.segment_rate: 'fast' is not a rate"),
        ({"create_low": "2h"}, "restores.create_low"),
        ({"wait_most": "400d"}, "restores.wait_most"),
        (7, "restores must be a table"),
    ],
)
def test_bad_numbers_are_named(table: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        RestoreRules.parse(table, "restores", "instant")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"vm": "web", "at": "1h", "disks": ["-3GB"]}, "restores[0].disks[0].size: '-3GB'"),
        ({"vm": "web", "at": "1h", "disks": []}, "restores[0].disks"),
        ({"vm": "web", "at": "1h", "disks": 7}, "restores[0].disks"),
        ({"vm": "web", "at": "1h"}, "restores[0].disks is missing"),
        ({"vm": "web", "at": "1h", "disks": ["3GB"], "tier": "vualt"}, "did you mean vault"),
        ({"vm": "web", "at": "1h", "disks": ["3GB"], "keys": 1}, "restores[0].keys"),
    ],
)
def test_bad_requests_are_named(table: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        RestoreRequest.parse(table, "restores[0]")


def test_a_request_is_read() -> None:
    table = {"vm": "web", "at": "90m", "disks": ["30GB", "1TiB"], "option": "restore-disks"}
    expected = RestoreRequest("web", 90 * MINUTE, (30 * GB, 1 << 40), option="restore-disks")
    assert RestoreRequest.parse(table, "restores[0]") == expected
    account = TargetAccount.parse({"name": "a", "ingress": "10Gbps", "load_write": "1GB/s"}, "x")
    assert account == TargetAccount("a", ingress=1_250_000_000, load_write=(GB,))


def test_what_cannot_be_run_is_an_error() -> None:
    with pytest.raises(InputError, match=r"restores\[0\].account: there is no account 'b'"):
        simulate_restores([replace(VAULT, account="b")], INSTANT, [TargetAccount("a")])
    with pytest.raises(InputError, match="two are named 'a'"):
        simulate_restores([VAULT], INSTANT, [TargetAccount("a"), TargetAccount("a")])
    with pytest.raises(InputError, match="streams are more than"):
        simulate_restores([VAULT], replace(INSTANT, segment=1))
    with pytest.raises(InputError, match="more than ten years"):
        simulate_restores([replace(VAULT, account="a")], INSTANT, [TargetAccount("a", ingress=1)])
    with pytest.raises(InputError, match="must not be negative"):
        RestoreRequest("web", -1, (GB,))
    with pytest.raises(InputError, match="1 or 24 numbers"):
        TargetAccount("a", load_read=(1, 2))
    with pytest.raises(InputError, match="there is no profile '1999'"):
        RestoreRules.default("1999")


def test_nothing_to_do() -> None:
    empty = simulate_restores([], INSTANT)
    assert (len(empty.frame), len(empty.timeline), empty.makespan) == (0, 0, 0)
    assert "0 requests" in empty._repr_html_()


def test_every_number_says_where_it_is_written() -> None:
    told = INSTANT.to_dict()
    for key, each in told.items():
        if key != "profile":
            assert each["doc"], key
            assert each["source"], key
            assert each["basis"] in ("documented", "inferred"), key
    assert told["segment_rate"]["basis"] == "documented"
    assert told["places"]["basis"] == "inferred"
    assert "segment_rate" in INSTANT._repr_html_()


# --- Properties ----------------------------------------------------------------------------------

SIZES = st.lists(st.integers(0, 3 * TB), min_size=1, max_size=4).map(tuple)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[RestoreRequest], RestoreRules, list[TargetAccount], int]:
    """Some requests for some accounts, all with and without cancelling, in any order."""
    accounts = [
        TargetAccount(
            f"a{i}",
            requests=draw(st.integers(50, 5_000)),
            ingress=draw(st.integers(10**7, 10**9)),
            total=draw(st.sampled_from([0, 10**8, 10**9])),
            load_write=draw(st.sampled_from([(0,), (10**7,), tuple(i * 10**7 for i in range(24))])),
            load_requests=(draw(st.sampled_from([0, 1000])),),
        )
        for i in range(draw(st.integers(1, 2)))
    ]
    names = [None, *(account.name for account in accounts)]
    requests = [
        RestoreRequest(
            f"vm{draw(st.integers(0, 3))}",
            draw(st.integers(0, DAY)),
            draw(SIZES),
            tier=draw(st.sampled_from(["vault", "vault", "snapshot", "archive"])),
            option=draw(st.sampled_from(OPTIONS)),
            account=draw(st.sampled_from(names)),
            cancel=draw(st.one_of(st.none(), st.integers(0, 2 * DAY))),
            files=draw(st.integers(0, 2 * TB)),
        )
        for _ in range(draw(st.integers(1, 6)))
    ]
    rules = RestoreRules.parse(
        {"places": draw(st.integers(1, 4)), "wait_most": "1h"}, "restores", "instant"
    )
    return requests, rules, accounts, draw(st.integers(0, 1 << 40))


@settings(max_examples=60, deadline=None)
@given(run=runs())
def test_restores_add_up_and_no_limit_is_exceeded(
    run: tuple[list[RestoreRequest], RestoreRules, list[TargetAccount], int],
) -> None:
    requests, rules, accounts, seed = run
    restores = simulate_restores(requests, rules, accounts, seed)
    adds_up(restores)
    assert restores.frame.equals(simulate_restores(requests, rules, accounts, seed).frame)
    limits = {account.name: account for account in accounts}
    moved = dict.fromkeys(limits, 0.0)
    for span in restores.timeline.iter_rows(named=True):
        account = limits[span["account"]]
        used = [span["all_write"] / account.ingress, span["all_requests"] / account.requests]
        if account.total:
            used.append(span["all_bytes"] / account.total)
        # The factor is a whole number of 2^-20: it may stay that much below what is left.
        assert max(used) <= 1 + 1e-9
        if span["factor"] < 1:  # work-conserving: somebody slowed down means a limit is used up
            assert max(used) >= 1 - 2 / (span["factor"] * 2**20)
        assert span["streams"] > 0
        assert span["start"] < span["end"]
        moved[account.name] += span["write"] * (span["end"] - span["start"]) / 1e9
    # What went into each account is what its restores had to copy.
    whole = restores.frame.filter(
        pl.col("account").is_not_null() & (pl.col("tier") != "snapshot")
        & (pl.col("option") != "file-recovery") & (pl.col("state") != "Refused")
    )  # fmt: skip
    for name in limits:
        mine = whole.filter(pl.col("account") == name)
        total = mine["bytes"].sum()
        if (mine["state"] == "Completed").all():
            assert moved[name] == pytest.approx(total, rel=1e-5, abs=1e4)
        else:
            assert moved[name] <= total * (1 + 1e-5) + 1e4
    # Never more at once than there are places.
    served = restores.frame.filter(
        (pl.col("begun") >= 0) & (pl.col("option") != "file-recovery")
    ).select("begun", "end")
    for moment in served["begun"].to_list():
        at_once = served.filter((pl.col("begun") <= moment) & (pl.col("end") > moment))
        assert len(at_once) <= rules.places


@settings(max_examples=40, deadline=None)
@given(
    machines=st.lists(SIZES, min_size=1, max_size=10),
    ingress=st.integers(10**7, 10**9),
    places=st.integers(1, 10),
    load=st.integers(0, 10**8),
)
def test_ten_accounts_are_never_slower_than_one(
    machines: list[tuple[int, ...]], ingress: int, places: int, load: int
) -> None:
    rules = replace(INSTANT, places=places)
    sizes = {f"vm{i}": disks for i, disks in enumerate(machines)}
    ends = []
    for count in (1, 10):
        names = [f"a{i}" for i in range(count)]
        targets = [TargetAccount(name, ingress=ingress, load_write=(load,)) for name in names]
        restores = simulate_restores(disaster(sizes, 0, accounts=names), rules, targets)
        ends.append(restores.frame["end"].to_list())
    # A stream's end is rounded up to whole nanoseconds, at most once for each that shares.
    assert all(ten <= one + 1000 for one, ten in zip(*ends, strict=True))
