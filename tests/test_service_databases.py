"""Backups of databases: kinds, rules, chains and what is lost, against naive recomputation."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbk.errors import InputError
from vmbk.service.databases import (
    DIFFERENTIAL,
    FULL,
    INCREMENTAL,
    LOG,
    Backups,
    DatabasePolicy,
    blocks_sent,
)
from vmbk.service.schedule import DAY_NS, HOUR_NS, MINUTE_NS, Schedule

MONDAY = date(2026, 1, 5)
SUNDAY_FULL = {"frequency": "weekly", "weekdays": ["sunday"], "at": "01:00"}
WORKDAYS = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday"]


# --- Kinds ---------------------------------------------------------------------------------------


def test_g1_ten_blocks_by_kind_of_backup() -> None:
    # A2, A3, A4 and A9 change in the first month, A5 in the next; A1 is number 0.
    sent = blocks_sent(10, [np.array([1, 2, 3, 8]), np.array([4])])
    assert sent.full == (10, 10, 10)
    assert sent.differential == (10, 4, 5)
    assert sent.incremental == (10, 4, 1)
    assert sent.to_dict()["incremental"] == [10, 4, 1]


@given(st.lists(st.lists(st.integers(0, 19), max_size=12), max_size=8))
def test_blocks_sent_are_those_of_sets(changes: list[list[int]]) -> None:
    sent = blocks_sent(20, [np.array(each, np.int64) for each in changes])
    since: set[int] = set()
    for number, each in enumerate(changes, 1):
        since |= set(each)
        assert sent.full[number] == 20
        assert sent.differential[number] == len(since)
        assert sent.incremental[number] == len(set(each))
        assert sent.incremental[number] <= sent.differential[number] <= sent.full[number]


def test_a_block_that_is_not_there_cannot_change() -> None:
    for bad in (-1, 10):
        with pytest.raises(InputError, match=r"^changes: "):
            blocks_sent(10, [np.array([bad])])


# --- Rules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "field"),
    [
        ({"workload": "oracle"}, "workload"),
        ({"full": {"frequency": "hourly"}}, "full.frequency"),
        ({"log_every": "5m"}, "log_every"),
        ({"log_every": "25h"}, "log_every"),
        ({"log_every": "100m"}, "log_every"),
        ({"log_every": 1000.5}, "log_every"),
        ({"differential_on": ["monday"]}, "differential_on"),  # every day has its full one
        ({"full": SUNDAY_FULL, "differential_on": ["sunday"]}, "differential_on"),
        ({"full": SUNDAY_FULL, "differential_on": ["noday"]}, "differential_on"),
        ({"full": SUNDAY_FULL, "incremental_on": ["monday"]}, "incremental_on"),  # not SQL
        (
            {"workload": "hana", "full": SUNDAY_FULL, "incremental_on": ["sunday"]},
            "incremental_on",
        ),
        (
            {
                "workload": "hana",
                "full": SUNDAY_FULL,
                "differential_on": ["monday", "friday"],
                "incremental_on": ["tuesday", "friday"],
            },
            "incremental_on",
        ),
        ({"full": SUNDAY_FULL, "differential_at": "25:00"}, "differential_at"),
        ({"copy_only": True}, "copy_only"),
    ],
)
def test_a_bad_policy_of_a_database_names_its_field(
    declared: dict[str, object], field: str
) -> None:
    with pytest.raises(InputError, match=rf"^databases\[0\]\.{field}"):
        DatabasePolicy.parse(declared, "databases[0]")


def test_a_policy_of_a_database_cannot_be_made_wrong() -> None:
    for bad in (
        {"log_minutes": 14},
        {"differential_at": -1},
        {"full": Schedule("weekly", weekdays=(6,)), "differential_on": (7,)},
    ):
        with pytest.raises(InputError):
            DatabasePolicy(**bad)  # type: ignore[arg-type]


def test_hana_takes_differentials_and_incrementals_on_different_days() -> None:
    policy = DatabasePolicy.parse(
        {
            "workload": "hana",
            "full": SUNDAY_FULL,
            "differential_on": ["wed"],
            "incremental_on": ["mon", "tue", "thu", "fri", "sat"],
            "incremental_at": "02:00",
            "differential_at": "03:00",
            "log_every": 0,
        },
        "d",
    )
    backups = policy.timeline(MONDAY, 14)
    days = [MONDAY + timedelta(days=int(time // DAY_NS)) for time in backups.times]
    # Nothing comes before the first full one, on Sunday.
    assert days[0].weekday() == 6
    assert days == sorted(set(days))
    kinds = backups.kinds.tolist()
    incremental = INCREMENTAL
    assert kinds == [FULL, *[incremental] * 2, DIFFERENTIAL, *[incremental] * 3, FULL]
    # Of Saturday: the full one, Wednesday's differential, and each day's incremental since.
    saturday = 12 * DAY_NS + 12 * HOUR_NS
    assert backups.chain(saturday).backups == (0, 3, 4, 5, 6)
    assert backups.chain(saturday).reached == 12 * DAY_NS + 2 * HOUR_NS
    assert "wednesday" in policy._repr_html_()
    assert "differential" in backups._repr_html_()


def test_sql_loses_15_minutes_at_most() -> None:
    policy = DatabasePolicy.parse({"full": SUNDAY_FULL, "differential_on": WORKDAYS}, "d")
    backups = policy.timeline(date(2026, 1, 4), 28)  # begins with a Sunday
    first = int(backups.times[0])
    at = np.arange(first, 28 * DAY_NS, MINUTE_NS, dtype=np.int64)
    assert backups.lost(at).max() == 14 * MINUTE_NS
    assert backups.lost(np.array([at[-1] + MINUTE_NS - 1])).max() < 15 * MINUTE_NS
    assert backups.lost(np.array([first - 1])).tolist() == [-1]
    counts = np.bincount(backups.kinds, minlength=4).tolist()
    assert counts == [4, 24, 0, 28 * 96 - 4]  # the logs of the first day's first hour are useless
    # To any second of a Thursday: full, that day's differential, and its logs.
    thursday = 4 * DAY_NS + 10 * HOUR_NS + 7 * 10**9
    chain = backups.chain(thursday)
    kinds = backups.kinds[list(chain.backups)].tolist()
    assert chain.reached == thursday
    assert kinds == [FULL, DIFFERENTIAL, *[LOG] * 41]
    assert chain.to_dict()["reached"] == thursday
    # The log of just that moment is the last one needed.
    assert backups.chain(4 * DAY_NS + 10 * HOUR_NS).backups == chain.backups[:-1]
    # A data backup of just that moment needs none.
    assert backups.chain(4 * DAY_NS).backups == chain.backups[:2]


def test_without_logs_only_backups_can_be_restored() -> None:
    backups = DatabasePolicy(log_minutes=0).timeline(MONDAY, 3)
    chain = backups.chain(DAY_NS + HOUR_NS)
    assert (chain.reached, chain.backups) == (DAY_NS, (1,))
    assert backups.lost(np.array([DAY_NS + HOUR_NS])).tolist() == [HOUR_NS]
    assert Backups.of(np.empty(0, np.int64), np.empty(0, np.uint8)).chain(5).reached is None
    assert Backups.of(np.empty(0, np.int64), np.empty(0, np.uint8)).lost(np.array([5])) == [-1]
    sunday = Schedule("weekly", weekdays=(6,))
    assert len(DatabasePolicy(full=sunday).timeline(MONDAY, 3)) == 0


policies = st.builds(
    lambda hana, days, at, log: DatabasePolicy(
        "hana" if hana else "sql",
        Schedule("weekly", at[0], tuple(d for d in range(7) if days[d] == 0) or (6,)),
        tuple(d for d in range(6) if days[d] == 1),
        at[1],
        tuple(d for d in range(6) if days[d] == 2 and hana),
        at[2],
        log,
    ),
    st.booleans(),
    st.lists(st.integers(0, 3), min_size=7, max_size=7),
    st.tuples(*[st.integers(0, 1439)] * 3),
    st.sampled_from([0, 15, 60, 96, 1440]),
)


@given(policies, st.integers(0, 20 * 24 * 60), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_a_chain_replays_everything_up_to_the_moment(
    policy: DatabasePolicy, minute: int, odd: int
) -> None:
    backups = policy.timeline(MONDAY, 20)
    at = minute * MINUTE_NS + odd
    chain = backups.chain(at)
    times, kinds = backups.times.tolist(), backups.kinds.tolist()
    before = [n for n, kind in enumerate(kinds) if kind != LOG and times[n] <= at]
    if not before:
        assert chain.reached is None
        return
    assert chain.reached is not None
    assert chain.reached <= at
    # Replays the chain: each step must begin where the database stands.
    stands: int | None = None
    for number in chain.backups:
        if kinds[number] == FULL:
            stands = times[number]
        elif kinds[number] == DIFFERENTIAL:
            fulls = [times[n] for n in range(number) if kinds[n] == FULL]
            assert stands == fulls[-1]
            stands = times[number]
        elif kinds[number] == INCREMENTAL:
            data = [times[n] for n in range(number) if kinds[n] != LOG]
            assert stands == data[-1]
            stands = times[number]
        else:
            logs = [times[n] for n in range(number) if kinds[n] == LOG]
            begin = logs[-1] if logs else times[0]
            assert stands is not None
            assert begin <= stands < times[number]
            stands = times[number]
    assert stands is not None
    assert min(stands, at) == chain.reached
    # Nothing later would have done, and a log that covers the moment is enough.
    reachable = [times[before[-1]]] + [
        min(times[n], at) for n in range(len(kinds)) if kinds[n] == LOG
    ]
    assert chain.reached == max(reachable)


@given(policies, st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_a_timeline_keeps_the_rules(policy: DatabasePolicy, days: int) -> None:
    backups = policy.timeline(MONDAY, days)
    of_day: dict[int, list[int]] = {}
    for time, kind in zip(backups.times.tolist(), backups.kinds.tolist(), strict=True):
        if kind != LOG:
            of_day.setdefault(time // DAY_NS, []).append(kind)
    assert all(len(kinds) == 1 for kinds in of_day.values())
    logs = backups.times[backups.kinds == LOG]
    assert not len(logs) or (np.diff(logs) >= 15 * MINUTE_NS).all()
    frame = backups.frame
    assert frame["base"].null_count() == int((backups.kinds == FULL).sum())
    assert frame.height == len(backups)


def test_bad_backups_are_refused() -> None:
    with pytest.raises(InputError, match=r"^times: "):
        Backups.of(np.array([2, 1]), np.array([FULL, FULL], np.uint8))
    with pytest.raises(InputError, match=r"^kinds: "):
        Backups.of(np.array([1]), np.array([LOG], np.uint8))
    with pytest.raises(InputError, match=r"^days: "):
        DatabasePolicy().timeline(MONDAY, 0)
