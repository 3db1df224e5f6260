"""Scenarios that are wrong, hostile or too large: a clear error that names the field, or a result
within bounds, through the API and the command line.
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbk.cli.program import Answer, run
from vmbk.errors import InputError, NotFoundError
from vmbk.service.bounds import MOST_TIME
from vmbk.service.charges import cost_vms
from vmbk.service.plan import DAY, SECOND
from vmbk.service.profiles import profile
from vmbk.service.scenario import (
    DISK_FIELDS,
    MACHINE_FIELDS,
    Scenario,
    scenario_table,
    shipped_scenarios,
)
from vmbk.service.simulation import PHASES, Simulation, simulate

FULL: dict[str, Any] = {
    "name": "full", "profile": "enhanced", "first_day": date(2026, 1, 5), "days": 3, "seed": 1,
    "service": {
        "queue_peak": "4h", "request_size": "4MiB", "places": 3, "overlap": True,
        "initial_rate": "20MB/s", "incremental_rate": "80MB/s", "blob_rate": "60MB/s",
        "extent_latency": "1ms", "start_jitter": "1h", "install_least": "30s",
        "install_most": "5m", "snapshot_least": "2m", "snapshot_most": "10m",
        "retry_wait": "30m", "commit": "5m",
    },
    "readings": {"detector": "tracking", "queue_curve": "night", "scan": "capped"},
    "failures": {"defaults": True, "ExtensionSnapshotFailedNoNetwork": "1%"},
    "vaults": [{"name": "v", "redundancy": "ZRS", "places": 2}],
    "accounts": [
        {"name": "a", "kind": "gpv2", "egress": "1Gbps", "requests": 20000,
         "guest_egress": "10MB/s", "guest_requests": 100, "busy_hours": ["08:00-18:00"]},
    ],
    "policies": [
        {"name": "p", "subtype": "enhanced", "consistency": "application",
         "schedule": {"frequency": "hourly", "at": "08:00", "every": "4h", "window": "12h"},
         "retention": {"daily": 30, "weekly": 12, "monthly": 36, "yearly": 5,
                       "weekly_on": ["sunday"], "monthly_on": ["first sunday"],
                       "yearly_on": ["first sunday"], "yearly_in": ["january"]},
         "instant_days": 7, "archive": "eligible", "archive_months": 6},
        {"name": "w", "schedule": {"frequency": "weekly", "at": "01:00", "weekdays": ["monday"]}},
    ],
    "vms": [
        {"name": "x-{n}", "count": 2, "policy": "p", "vault": "v", "os": "linux", "scripts": True,
         "power": "running", "provisioning": "succeeded", "agent": "ready",
         "storage": "unmanaged", "stagger": "1h", "cloud_service": "c",
         "disks": [
             {"name": "d", "size": "64GiB", "used": "20GB", "growth": "1%", "churn": "5%",
              "churn_spread": "10%", "weekend": "50%", "write_size": "8KiB", "extent": "64KiB",
              "tier": "P10", "rate": "100MB/s", "iops": 500, "account": "a",
              "temporary": False, "excluded": False, "added": "1d"},
             {"name": "e", "size": "64GiB"},
         ]},
        {"name": "y", "policy": "w", "os": "windows", "disks": []},
    ],
    "events": [
        {"at": "1d", "clock": "02:30", "kind": "back-up", "vm": "y"},
        {"at": "1d", "kind": "rotate-keys", "account": "a"},
    ],
}  # fmt: skip
"""Every field of a scenario."""

SMALL: dict[str, Any] = {
    "days": 2,
    "vms": [{"name": "vm", "disks": [{"name": "d", "size": "64GiB", "used": "20GB"}]}],
}

BAD: list[Any] = [
    None, True, False, -1, 0, 1, 3, 10**30, -(10**30), 2**63 - 1, 2**62, 1.5, -0.5, math.nan,
    math.inf, -math.inf, 1e300, "", "a", "-1GB", "1e999", "NaN", "inf", "100%", "-5%", "1000%",
    "5GB", "1 EB", f"{10**26}GB", "9" * 5000, "\x00\x1b[31m", "é" * 300, "🜁", "\u202ex", "25:00",
    "1d", "-1d", "1000000d", [], [[]], [None], ["sunday"], {}, {"a": 1}, {"name": "zz"},
    [{"name": "zz"}], date(1, 1, 1), date(9999, 12, 31), datetime(2026, 1, 5), b"x", object(),
]  # fmt: skip
"""Values that hardly fit anywhere."""

EXTREME: list[Any] = [
    0, 1, 2, 512, 1000, 3660, 10_000_000, 1 << 30, 1 << 40, 1 << 42, 1 << 44, 1 << 49, 1 << 53,
    8_000_000_000, "1GB", "64GiB", "512TiB", "30d", "3660d", "0s", "1ms", "100%", "200%", "1000%",
    True, False, "2017", "instant", "enhanced", "checksum", "tracking", "logical", "flat", "never",
    "stopped", "failed", "creating", "missing", "crash", "weekly", "daily", "standard",
]  # fmt: skip
"""Values at the ends of what fits somewhere."""

Where = tuple[str | int, ...]


def fields(value: Any, at: Where = ()) -> Iterator[Where]:
    """Where everything is in a declaration."""
    if at:
        yield at
    if isinstance(value, dict):
        for key in value:
            yield from fields(value[key], (*at, key))
    elif isinstance(value, list):
        for i, each in enumerate(value):
            yield from fields(each, (*at, i))


def put(declared: dict[str, Any], at: Where, value: Any) -> dict[str, Any]:
    """The declaration with one value replaced."""
    found: Any = copy.deepcopy(declared)
    inner = found
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return found  # type: ignore[no-any-return]


def called(at: Where) -> str:
    """How errors call a field; of a list of words only the list has a name."""
    name = ""
    for i, key in enumerate(at):
        last_word = i == len(at) - 1 and at[i - 1] not in TABLES
        if isinstance(key, str):
            name += f".{key}" if name else key
        elif not last_word:
            name += f"[{key}]"
    return name


TABLES = ("vaults", "accounts", "policies", "vms", "disks", "events")


def check_bounded(found: Simulation) -> None:
    """What holds of any simulation: nothing overflowed, and durations are the sums of parts."""
    jobs = found.jobs
    assert jobs.height <= 200_000
    numbers = jobs.select(pl.col(pl.Int64)).to_numpy()
    assert (numbers >= -1).all()
    assert (numbers < 1 << 60).all()
    none = pl.zeros(len(jobs), pl.Int64, eager=True)
    total = sum((jobs[f"{phase}_ns"] for phase in PHASES), start=none)
    assert (jobs["end_ns"] - jobs["start_ns"] == total).all()
    last = found.plan.slots.max(initial=0) + found.plan.vms[:, 1].max(initial=0)
    assert jobs["end_ns"].max() is None or jobs["end_ns"].max() <= (  # type: ignore[operator]
        last + (2 * MOST_TIME + 500 * 86_400) * SECOND
    )
    assert (found.outputs.accounts >= 0).all()
    assert (found.outputs.account_hours >= 0).all()


def error_of(declared: Any) -> str | None:
    """The error that a scenario gives; None where it runs, within bounds."""
    try:
        scenario = Scenario.parse(declared)
        check_bounded(simulate(scenario))
        assert cost_vms(scenario) is not None
    except InputError as error:
        message = str(error)
        assert len(message) < 3000
        assert all(c.isprintable() or c == "\n" for c in message)
        return message
    return None


def program(*words: object) -> tuple[Answer, dict[str, Any]]:
    """What the program answers with --json: one object."""
    answer = run([*map(str, words), "--json"])
    assert "Traceback" not in answer.err + answer.out
    assert len(answer.out.splitlines()) == 1
    told = json.loads(answer.out)
    assert isinstance(told, dict)
    assert "unexpected error" not in told.get("error", "")
    return answer, told


def refused(*words: object) -> str:
    """The error of a command that must fail as bad input does."""
    answer, told = program(*words)
    assert (answer.code, told["exit_code"]) == (2, 2), told
    return str(told["error"])


# --- Every field, one after the other -------------------------------------------------------------


def test_the_full_scenario_has_every_field_and_runs() -> None:
    assert set(FULL["vms"][0]) == set(MACHINE_FIELDS)
    assert set(FULL["vms"][0]["disks"][0]) == set(DISK_FIELDS)
    kinds = {number.kind for number in profile("enhanced").numbers.values()}
    known = {n.name: n.kind for n in profile("enhanced").numbers.values()}
    assert {known[name] for name in (*FULL["service"], *FULL["readings"])} == kinds
    assert error_of(FULL) is None
    assert error_of(SMALL) is None


# What a bad value makes wrong elsewhere: another field of the same thing, or one that refers to it.
_ELSEWHERE = {
    "size": (".used",), "install_most": ("service.install_least",),
    "snapshot_most": ("service.snapshot_least",), "snapshot_least": ("service: ",),
    "commit": ("service: ",), "ExtensionSnapshotFailedNoNetwork": ("failures: ",),
    "profile": ("vms (",), "initial_rate": ("a backup can take",),
    "incremental_rate": ("a backup can take",), "blob_rate": ("a backup can take",),
    "extent_latency": ("a backup can take",), "rate": ("a backup can take",),
    "iops": ("a backup can take",), "extent": ("a backup can take",),
}  # fmt: skip
_REFERENCES = ("vaults", "accounts", "policies", "vms")


@pytest.mark.parametrize("section", list(FULL))
def test_a_bad_value_of_any_field_is_an_error_that_names_it(section: str) -> None:
    tried = refusals = 0
    for at in fields({section: FULL[section]}):
        for value in BAD:
            tried += 1
            message = error_of(put(FULL, at, value))
            if message is None:
                continue
            refusals += 1
            name, leaf = called(at), str(at[-1])
            good = message.startswith(name) or any(
                each in message for each in _ELSEWHERE.get(leaf, ())
            )
            # Whatever is renamed or left out is missed where it is referred to.
            good |= at[0] in _REFERENCES and message.startswith(("vms (", "events ("))
            good |= at[0] == "events" and message.startswith("events (") and leaf in message
            # A mistake in one field can show in another one of the same table.
            good |= at[0] == "policies" and message.startswith(called(at[:2]))
            assert good, (name, value, message)
    assert tried > 40
    assert refusals >= tried * (0.5 if section in ("name", "seed") else 0.75)


def test_an_unknown_field_is_an_error_with_what_was_meant() -> None:
    tables = [at for at in fields(FULL) if isinstance(_at(FULL, at), dict)]
    assert len(tables) > 12
    for at in tables:
        table = _at(FULL, at)
        known = "defaults" if at == ("failures",) else next(iter(table), "name")
        wrong = f"{known}s"
        message = error_of(put(FULL, (*at, wrong), 1))
        assert message is not None
        assert message.startswith(f"{called(at)}.{wrong}: there is no such field")
        assert f"did you mean {known}?" in message
    assert "did you mean vms?" in str(error_of({**FULL, "vm": []}))


def _at(declared: Any, at: Where) -> Any:
    for key in at:
        declared = declared[key]
    return declared


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_several_extreme_values_at_once_are_refused_or_bounded(data: st.DataObject) -> None:
    places = [at for at in fields(FULL) if at[-1] not in ("days", "count", "name")]
    declared = FULL
    for _ in range(data.draw(st.integers(1, 5), "how many")):
        at = data.draw(st.sampled_from(places), "where")
        try:
            declared = put(declared, at, data.draw(st.sampled_from(EXTREME), "what"))
        except (KeyError, IndexError, TypeError):  # what it lay in was replaced
            continue
    error_of(declared)


@pytest.mark.parametrize("name", shipped_scenarios())
def test_shipped_scenarios_survive_extreme_values(name: str) -> None:
    declared = {**scenario_table(name), "days": 2}
    declared["vms"] = declared["vms"][:4]
    del_events = {k: v for k, v in declared.items() if k != "events"}
    places = [at for at in fields(del_events) if at[-1] not in ("days", "count")]
    draw = np.random.default_rng(6)
    for at in places:
        value = EXTREME[draw.integers(len(EXTREME))]
        error_of(put(del_events, at, value))


# --- Sizes and numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"size": "-64GiB"}, "vms[0].disks[0].size: '-64GiB'"),
        ({"size": -1}, "vms[0].disks[0].size: -1 is not a"),
        ({"used": "65GiB"}, "vms[0].disks[0].used: '65GiB' is not a size from 0 to 68,719,476,736"),
        ({"used": True}, "vms[0].disks[0].used: True is not a size"),
        ({"size": "1EiB"}, "vms[0].disks[0].size: '1EiB'"),
        ({"tier": "P31"}, "vms[0].disks[0].tier: 'P31' is not one of"),
        ({"churn": "-1%"}, "vms[0].disks[0].churn: '-1%' is not a share"),
        ({"churn": math.nan}, "vms[0].disks[0].churn: nan"),
        ({"weekend": "nan%"}, "vms[0].disks[0].weekend: 'nan%' is not a share"),
        ({"churn_spread": "101%"}, "vms[0].disks[0].churn_spread: '101%' is not a share"),
        ({"added": "11y"}, "vms[0].disks[0].added"),
        ({"account": "b"}, "vms (vm).disks (d).account: there is no account 'b'"),
        ({"chrun": "5%"}, "vms[0].disks[0].chrun: there is no such field\n  hint: did you mean"),
        ({"rate": 1}, "vms ('vm').disks ('d'): a backup can take"),
    ],
)
def test_bad_disks(tmp_path: Path, change: dict[str, Any], error: str) -> None:
    declared = copy.deepcopy(SMALL)
    declared["vms"][0]["disks"][0].update(change)
    message = error_of(declared)
    assert message is not None
    assert message.startswith(error)
    told = refused("service", "simulate", _toml(tmp_path, declared))
    assert told == message.split("\n")[0]


def _toml(folder: Path, declared: dict[str, Any]) -> Path:
    """A declaration as a file; JSON's values are TOML's, but for tables, and nan."""

    def value(v: Any) -> str:
        if isinstance(v, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(x)}" for k, x in v.items()) + "}"
        if isinstance(v, list):
            return f"[{', '.join(map(value, v))}]"
        if isinstance(v, date):
            return v.isoformat()
        return "nan" if v != v else json.dumps(v, ensure_ascii=False)

    path = folder / "scenario.toml"
    path.write_text("".join(f"{json.dumps(k)} = {value(v)}\n" for k, v in declared.items()))
    return path


def test_the_full_scenario_as_a_file(tmp_path: Path) -> None:
    path = _toml(tmp_path, FULL)
    assert tomllib.loads(path.read_text()) == FULL
    answer, told = program("service", "simulate", path)
    assert answer.code == 0
    assert told["job_count"] == len(simulate(FULL).jobs)


# --- Policies past each limit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("era", "policy", "error"),
    [
        ("instant", {"retention": {"daily": 6}}, "retention.daily: 6 is not"),
        ("instant", {"retention": {"daily": 10_000}}, "retention.daily: 10000 is not"),
        ("instant", {"retention": {"daily": 7, "weekly": 5164}}, "retention.weekly: 5164 is not"),
        ("instant", {"retention": {"daily": 7, "monthly": 1189}}, "retention.monthly: 1189 is not"),
        ("instant", {"retention": {"daily": 7, "yearly": 100}}, "retention.yearly: 100 is not"),
        ("instant", {"retention": {"daily": -7}}, "retention.daily: -7 is not"),
        ("instant", {"retention": {"daily": 9999, "monthly": 1188}},
         "retention.daily, weekly, monthly, yearly: "),
        ("instant", {"retention": {}}, "retention.daily: "),
        ("instant", {"retention": {"weekly": 4}}, "retention.daily: "),
        ("instant", {"schedule": {"frequency": "weekly", "weekdays": ["sunday"]},
                     "retention": {"daily": 7}}, "retention.daily: 7 does not fit"),
        ("instant", {"instant_days": 0}, "instant_days: 0 is not"),
        ("instant", {"instant_days": 6}, "instant_days: 6 is not from 1 to 5 days"),
        ("enhanced", {"subtype": "enhanced", "instant_days": 31}, "instant_days: 31 is not"),
        ("enhanced", {"subtype": "enhanced", "instant_days": 20, "retention": {"daily": 14}},
         "instant_days: 20 days of snapshots are more than the 14 days"),
        ("enhanced", {"subtype": "enhanced", "instant_days": 18,
                      "schedule": {"frequency": "hourly", "every": "4h"}},
         "instant_days: 18 is not from 1 to 17 days"),
        ("enhanced", {"subtype": "enhanced", "instant_days": 23,
                      "schedule": {"frequency": "hourly", "every": "6h"}},
         "instant_days: 23 is not from 1 to 22 days"),
        ("enhanced", {"subtype": "enhanced",
                      "schedule": {"frequency": "hourly", "every": "5h"}},
         "schedule.every: '5h' is not 4h, 6h, 8h, 12h or 24h"),
        ("enhanced", {"subtype": "enhanced",
                      "schedule": {"frequency": "hourly", "every": "12h", "window": "4h"}},
         "schedule.window: '4h' is not"),
        ("2017", {"schedule": {"frequency": "hourly"}},
         "schedule.frequency: 'hourly' needs an enhanced policy"),
        ("instant", {"schedule": {"frequency": "hourly"}},
         "schedule.frequency: 'hourly' needs an enhanced policy"),
        ("enhanced", {"consistency": "crash"}, "consistency: 'crash' needs an enhanced policy"),
        ("instant", {"schedule": {"frequency": "daily", "weekdays": ["monday"]}},
         "schedule.weekdays: "),
        ("instant", {"schedule": {"at": "24:00"}}, "schedule.at: '24:00' is not a time of day"),
        ("instant", {"subtype": "premium"}, "subtype: 'premium' is not one of"),
        ("instant", {"archive": "eligible"}, "archive: 'eligible' needs monthly or yearly"),
        ("instant", {"archive_months": 2}, "archive_months: 2 is not"),
    ],
)  # fmt: skip
def test_policies_past_their_limits(
    tmp_path: Path, era: str, policy: dict[str, Any], error: str
) -> None:
    declared = {"profile": era, **SMALL, "policies": [{"name": "p", **policy}]}
    message = refused("service", "simulate", _toml(tmp_path, declared))
    assert message.startswith(f"policies[0].{error}")
    with pytest.raises(InputError) as caught:
        simulate(declared)
    assert caught.value.message == message


@pytest.mark.parametrize("era", ["2017", "instant"])
def test_an_era_without_enhanced_policies_names_the_machine(era: str) -> None:
    declared = {"profile": era, **SMALL, "policies": [{"name": "p", "subtype": "enhanced"}]}
    assert error_of(declared) is None, "nobody uses it"
    declared = put(declared, ("vms", 0, "policy"), "p")
    assert str(error_of(declared)).startswith("vms (vm).policy: 'p' is enhanced")


# --- Names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "a\nb", "\x1b[31mred", "a\u202eb", "\x00", "\ud800", "x" * 201, "\u200b"]
)
def test_hostile_names_are_refused_wherever_there_is_one(name: str) -> None:
    for at in fields(FULL):
        if at[-1] == "name":
            message = str(error_of(put(FULL, at, name)))
            assert message.startswith(f"{called(at)}: ")
            assert "is not a printable text" in message


def test_any_printable_name_will_do(tmp_path: Path) -> None:
    for name in ("über", "机器", "🜁", "<b>&amp;", "a b", "'; DROP TABLE vms", "%s{0}", "../../x"):
        declared = put(SMALL, ("vms", 0, "name"), name)
        found = simulate(declared)
        assert found.jobs["vm"].cast(pl.String).to_list() == [name] * 2
        assert "<b>&amp;" not in found._repr_html_()
        assert "<b>&amp;" not in found.scenario._repr_html_()
        _, told = program("service", "simulate", _toml(tmp_path, declared))
        assert told["jobs"][0]["vm"] == name


@pytest.mark.parametrize("key", ["vaults", "accounts", "policies", "vms"])
def test_the_same_name_twice(key: str) -> None:
    declared = copy.deepcopy(FULL)
    declared[key].append(copy.deepcopy(declared[key][0]))
    message = str(error_of(declared))
    assert message.startswith(("vms: two VMs have the name 'x-1'", f"{key}["))


def test_disks_and_counted_machines_with_the_same_name() -> None:
    disks = [{"name": "d", "size": "1GB"}] * 2
    assert str(error_of(put(SMALL, ("vms", 0, "disks"), disks))).startswith("vms[0].disks: two")
    machines = [{"name": "a-{n}", "count": 12}, {"name": "a-1{n}", "count": 2}]
    assert "'a-11'" in str(error_of({**SMALL, "vms": machines}))
    assert str(error_of({"vms": [{"name": "a", "count": 2}]})).startswith("vms[0].name: 'a' names")


@pytest.mark.parametrize(
    ("at", "error"),
    [
        (("vms", 0, "policy"), "vms (x-1).policy: there is no policy 'none'"),
        (("vms", 0, "vault"), "vms (x-1).vault: there is no vault 'none'"),
        (("vms", 0, "disks", 0, "account"), "vms (x-1).disks (d).account: there is no account"),
        (("events", 0, "vm"), "events (back-up).vm: there is no vm 'none'"),
        (("events", 1, "account"), "events (rotate-keys).account: there is no account 'none'"),
    ],
)
def test_references_to_nothing(at: Where, error: str) -> None:
    assert str(error_of(put(FULL, at, "none"))).startswith(error)


def test_an_event_of_the_wrong_thing() -> None:
    event = {"kind": "back-up", "account": "a"}
    assert str(error_of({**FULL, "events": [event]})).startswith("events[0].account: 'a' is not")
    event = {"kind": "rotate-keys"}
    assert str(error_of({**FULL, "events": [event]})) == "events[0].account is missing"


def test_a_backup_on_demand_after_the_last_day_is_none() -> None:
    events = [{"at": day, "kind": "back-up", "vm": "vm"} for day in ("1d", "100d", "3660d")]
    assert len(simulate({**SMALL, "events": events}).jobs) == 2  # the second is the slot's own
    events[0]["clock"] = "12:00"
    assert len(simulate({**SMALL, "events": events}).jobs) == 3


# --- Too much -------------------------------------------------------------------------------------


def quickly(declared: dict[str, Any], error: str, seconds: float) -> None:
    began = time.perf_counter()
    assert error in str(error_of(declared))
    assert time.perf_counter() - began < seconds


def test_too_many_machines_jobs_disks_and_hours_are_refused_in_time() -> None:
    disk = {"name": "d", "size": "64GiB"}
    many = {"name": "{n}", "count": 200_000, "disks": [disk]}
    huge = {"name": "{n}", "count": 10**15, "disks": [disk]}
    quickly({"vms": [huge]}, "vms[0].count: 1000000000000000 is not", 1)
    tables = [many, *[{**many, "name": f"{{n}}-{i}", "count": 5} for i in range(1000)]]
    quickly({"vms": tables}, "vms[1].count: there would be more than 200,000 VMs", 15)
    fewer = {**many, "count": 10_000}
    quickly({"days": 3660, "vms": [fewer]}, "days: 3,660 days of 10,000 VMs are", 5)
    accounts = [{"name": f"a{i}"} for i in range(2000)]
    quickly({**SMALL, "days": 3660, "accounts": accounts}, "accounts: 2,000 accounts over", 10)


def test_disks_are_counted_before_they_are_laid_out() -> None:
    disks = [{"name": f"d{i}", "size": "1GB"} for i in range(64)]
    many = {"name": "{n}", "count": 20_000, "disks": disks}
    quickly({"days": 1, "vms": [many]}, "vms: 1,280,000 disks are more than 1,000,000", 15)
    too_many = [*disks, {"name": "e", "size": "1GB"}]
    quickly({"vms": [{"name": "a", "disks": too_many}]}, "vms[0].disks: 65 tables", 1)


def test_transfers_that_would_take_for_ever_are_refused_at_once() -> None:
    slow = put(SMALL, ("vms", 0, "disks", 0), {"name": "d", "size": "512TiB", "rate": 1})
    quickly(slow, "vms ('vm').disks ('d'): a backup can take 17,851,0", 1)
    shared = {"name": "d", "size": "4TiB", "account": "a"}
    for account, name in (
        ({"name": "a", "egress": 1000}, "accounts ('a').egress"),
        ({"name": "a", "requests": 1, "guest_requests": 1 << 40}, "accounts ('a').egress, .requ"),
        ({"name": "a", "egress": "1MB/s", "guest_egress": 1 << 40}, "accounts ('a').egress"),
    ):
        declared = put({**SMALL, "accounts": [account]}, ("vms", 0, "disks", 0), shared)
        quickly(declared, name, 1)
    fleet = {"name": "{n}", "count": 5000, "vault": "v",
             "disks": [{"name": "d", "size": "4TiB"}]}  # fmt: skip
    declared = {"days": 1, "vaults": [{"name": "v", "places": 1}], "vms": [fleet]}
    quickly(declared, "vaults ('v').places: with 1 at once, its transfers can wait for", 10)
    declared["vaults"] = [{"name": "v", "places": 0}]
    assert error_of(declared) is None


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6), st.integers(10**6, 10**9), st.integers(0, 10**9), st.integers(1, 3),
    st.integers(1, 400), st.sampled_from(["2017", "instant"]),
)  # fmt: skip
def test_what_is_said_to_end_in_time_does(
    machines: int, egress: int, guests: int, places: int, used: int, era: str
) -> None:
    """The bound on an account's slowness holds, and both engines stay within it."""
    declared = {
        "profile": era, "days": 3,
        "accounts": [{"name": "a", "egress": egress, "guest_egress": guests}],
        "vaults": [{"name": "v", "places": places}],
        "vms": [{"name": "{n}", "count": machines, "vault": "v", "disks": [
            {"name": "d", "size": "1TiB", "used": f"{used}GB", "churn": "30%", "account": "a"}]}],
    }  # fmt: skip
    fast = simulate(declared)
    check_bounded(fast)
    if fast.jobs["end_ns"].max() < 30 * DAY:  # type: ignore[operator]
        assert fast.jobs.equals(simulate(declared, engine="reference").jobs)


# --- Files ----------------------------------------------------------------------------------------


def _files(folder: Path) -> dict[str, bytes]:
    small = b'[[vms]]\nname = "a"\n'
    return {
        "binary": bytes(range(256)) * 40,
        "latin-1": 'name = "über"\n'.encode("latin-1") + small,
        "ten megabytes": b"# \n" * (10_000_000 // 3),
        "no table": b"vms = 1\n",
        "empty": b"",
        "a null": b"\x00",
        "a mark of its byte order": b"\xef\xbb\xbf" + small,
        "open string": b'name = "a',
        "twice": b"days = 1\ndays = 2\n" + small,
        "nested lists": b"a = " + b"[" * 100_000,
        "nested tables": b"a = " + b"{a=" * 10_000,
        "a deep field": b"days." + b".".join([b"a"] * 2000) + b" = 1\n" + small,
        "a deep value": b"days = " + b"[" * 150 + b"]" * 150 + b"\n" + small,
        "digits": b"days = " + b"9" * 100_000 + b"\n" + small,
        "hexadecimal": b"days = 0x" + b"f" * 10_000 + b"\n" + small,
        "infinite": b"days = inf\n" + small,
        "not a number": b"seed = nan\n" + small,
        "a moment for a day": b"first_day = 2026-01-05T00:00:00\n" + small,
        "a day that is none": b"first_day = 2026-02-30\n" + small,
        "negative days": b"days = -1\n" + small,
    }  # fmt: skip


@pytest.mark.parametrize("kind", list(_files(Path())))
@pytest.mark.parametrize("verb", ["simulate", "cost"])
def test_files_that_are_no_scenario(tmp_path: Path, kind: str, verb: str) -> None:
    path = tmp_path / "scenario.toml"
    path.write_bytes(_files(tmp_path)[kind])
    began = time.perf_counter()
    message = refused("service", verb, path)
    assert time.perf_counter() - began < 5
    assert len(message) < 1000
    assert all(c.isprintable() for c in message)
    if b"days" in path.read_bytes()[:4] and kind not in ("twice", "digits", "a deep field"):
        assert message.startswith("days: ")
    with pytest.raises(InputError):
        Scenario.load(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    assert refused("service", "simulate", tmp_path / "none.toml").startswith("there is no scenario")
    assert refused("service", "cost", "").startswith("there is no scenario ''")
    assert "is not a regular file" in refused("service", "simulate", tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "is not a regular file" in refused("service", "simulate", tmp_path / "fifo")
    assert "is not a regular file" in refused("service", "simulate", "/dev/zero")
    hostile = refused("service", "simulate", "\x1b[31m\n\u202e")
    assert all(c.isprintable() for c in hostile)
    with pytest.raises(NotFoundError, match="small-company"):
        Scenario.load("small-compnay")


def test_a_file_comes_before_the_shipped_scenario_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(Scenario.load("small-company").vms) > 10
    _toml(tmp_path, SMALL).rename(tmp_path / "small-company")
    assert len(Scenario.load("small-company").vms) == 1


@pytest.mark.parametrize("given", [None, 1, [], "nothing", {"vms": []}, {"vms": {}}, {}, [SMALL]])
def test_what_is_no_scenario_at_all(given: Any) -> None:
    if isinstance(given, str):
        with pytest.raises(NotFoundError):
            simulate(given)
    else:
        with pytest.raises(InputError):
            Scenario.parse(given)


def test_an_unknown_engine() -> None:
    with pytest.raises(InputError, match="engine: 'slow' is not one of fast, reference"):
        simulate(SMALL, engine="slow")


# --- Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", "-1", "x", "1e3", "9" * 40, "3661", "", "1.5", "nan"])
def test_days_that_are_none(value: str) -> None:
    assert "argument --days" in refused("service", "simulate", "small-company", f"--days={value}")
    assert "argument --days" in refused("service", "cost", "small-company", f"--days={value}")


def test_days_and_seeds_of_the_command_line_replace_the_declared_ones(tmp_path: Path) -> None:
    path = _toml(tmp_path, SMALL)
    _, told = program("service", "simulate", path, "--days", 5, "--seed", 3)
    assert (told["days"], told["seed"], told["job_count"]) == (5, 3, 5)
    many = _toml(tmp_path, {"days": 1, "vms": [{"name": "{n}", "count": 10_000, "disks": []}]})
    message = refused("service", "simulate", many, "--days", 3660)
    assert message.startswith("days: 3,660 days of 10,000 VMs are 36,600,000 jobs")


def test_output_to_a_bad_place_is_refused_before_any_work(tmp_path: Path) -> None:
    path = _toml(tmp_path, SMALL)
    folder = tmp_path / "folder.parquet"
    folder.mkdir()
    full = tmp_path / "full.parquet"
    full.symlink_to("/dev/full")
    for out, error in (
        (folder, "is there and is no regular file"),
        (full, "is there and is no regular file"),
        (tmp_path / "none" / "jobs.parquet", "there is no such folder"),
        (tmp_path / "jobs.csv", "a .parquet file"),
        (path, "a .parquet file"),
        ("", "a .parquet file"),
    ):
        assert error in refused("service", "simulate", path, "--force", "--output", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "folder.parquet", "full.parquet", "scenario.toml",
    ]  # fmt: skip
    answer, told = program("service", "simulate", path, "--output", tmp_path / "jobs.parquet")
    assert answer.code == 0
    assert len(pl.read_parquet(told["output"])) == told["job_count"] == 2
    again = refused("service", "simulate", path, "--output", tmp_path / "jobs.parquet")
    assert "exists already" in again


def test_options_of_cost(tmp_path: Path) -> None:
    path = _toml(tmp_path, SMALL)
    for words, error in (
        (["--months", "0"], "argument --months"),
        (["--months", "1201"], "argument --months"),
        (["--months", "1200", "--first-month", "1"], "1 to 1,200"),
        (["--first-month", "-1"], "argument --first-month"),
        (["--redundancy", "lrs"], "argument --redundancy"),
        (["--soft-delete", "5"], "soft delete of 5 days"),
        (["--reading", "instance"], "--reading 'instance' is not written as topic=reading"),
        (["--reading", "instance=haalf"], "--reading.instance: 'haalf' is not one of"),
        (["--reading", "instnace=half"], "--reading.instnace: there is no such field"),
        (["--prices", "none.toml"], "there is no price list 'none.toml'"),
    ):
        assert error in refused("service", "cost", path, *words)
    answer, told = program("service", "cost", path, "--first-month", 1199, "--months", 1)
    assert answer.code == 0
    assert told["first_month"] == 1199


def test_a_process_says_one_object_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text('[[vms]]\nname = "a"\ndisks = [{ name = "d", size = -1 }]\n')
    for path in (tmp_path / "bad.toml", tmp_path, tmp_path / "none"):
        ran = subprocess.run(
            [sys.executable, "-m", "vmbk", "service", "simulate", str(path), "--json"],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert ran.returncode == 2
        assert json.loads(ran.stdout)["error"]
        assert "Traceback" not in ran.stderr
        assert len(ran.stdout.splitlines()) == 1
