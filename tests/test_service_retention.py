"""What becomes of recovery points: golden values, and a naive clerk who cleans up day by day."""

from __future__ import annotations

import calendar
from dataclasses import replace
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmbk.errors import InputError
from vmbk.service.blocks import GRANULE, Versions, granules
from vmbk.service.points import NEVER, Kept, Term, count_held, keep, next_clean_up, snapshots_gone
from vmbk.service.policy import Policy
from vmbk.service.retention import (
    DAILY,
    LAST,
    MONTHLY,
    ON_DEMAND_DAYS,
    WEEKLY,
    YEARLY,
    MonthDay,
    Retention,
)
from vmbk.service.schedule import DAY_NS, HOUR_NS, Schedule

MONDAY = date(2026, 1, 5)
SUNDAY = 6


def _daily(days: int, hour: int = 8) -> np.ndarray:
    return np.arange(days, dtype=np.int64) * DAY_NS + hour * HOUR_NS


def _policy(retention: Retention, schedule: Schedule | None = None) -> Policy:
    schedule = schedule or Schedule()
    weekly = schedule.frequency == "weekly"
    return Policy("p", schedule=schedule, retention=retention, instant_days=5 if weekly else 2)


def _keep(times: np.ndarray, *retentions: tuple[int, Policy], **more: object) -> Kept:
    terms = [Term(day * DAY_NS, policy) for day, policy in retentions]
    return keep(times, MONDAY, terms, **more)  # type: ignore[arg-type]


# --- Tags and lifetimes --------------------------------------------------------------------------


def test_g8_twelve_months_are_372_days() -> None:
    retention = Retention(daily=7, monthly=12)
    assert retention.days[2] == 372
    times = _daily(40)
    kept = _keep(times, (0, _policy(retention)))
    monthly = np.flatnonzero(kept.tags & MONTHLY)
    assert (kept.expiry - times)[monthly].tolist() == [372 * DAY_NS]
    # It is the first Sunday of February.
    assert MONDAY + timedelta(days=int(monthly[0])) == date(2026, 2, 1)


def test_no_point_is_kept_longer_than_99_years() -> None:
    assert Retention(daily=0, weekly=5163).days[1] == 99 * 365
    assert Retention(daily=0, monthly=1188).days[2] == 99 * 365


def _tags_of(day: date, retention: Retention) -> int:
    """Tags from the calendar, one day at a time."""
    length = calendar.monthrange(day.year, day.month)[1]

    def falls(on: MonthDay) -> bool:
        if on.weekday is None:
            return day.day == (length if on.number == LAST else on.number)
        same = [d for d in range(1, length + 1) if day.replace(day=d).weekday() == on.weekday]
        return day.day == same[-1 if on.number == LAST else on.number - 1]

    found = DAILY if retention.daily else 0
    if retention.weekly and day.weekday() in retention.weekly_on:
        found |= WEEKLY
    if retention.monthly and any(map(falls, retention.monthly_on)):
        found |= MONTHLY
    if retention.yearly and day.month in retention.yearly_in:
        found |= YEARLY if any(map(falls, retention.yearly_on)) else 0
    return found


month_days = st.one_of(
    st.builds(MonthDay, st.sampled_from([*range(1, 29), LAST])),
    st.builds(MonthDay, st.sampled_from([1, 2, 3, 4, LAST]), st.integers(0, 6)),
)
retentions = st.builds(
    Retention,
    daily=st.integers(7, 40),
    weekly=st.integers(0, 8),
    monthly=st.integers(0, 3),
    yearly=st.integers(0, 2),
    weekly_on=st.sets(st.integers(0, 6), min_size=1).map(lambda s: tuple(sorted(s))),
    monthly_on=st.lists(month_days, min_size=1, max_size=3).map(tuple),
    yearly_on=st.lists(month_days, min_size=1, max_size=2).map(tuple),
    yearly_in=st.sets(st.integers(1, 12), min_size=1).map(lambda s: tuple(sorted(s))),
)


@given(retentions, st.dates(date(1999, 12, 1), date(2101, 1, 1)))
def test_tags_are_those_of_the_calendar(retention: Retention, first_day: date) -> None:
    tags = retention.tags(_daily(400), first_day)
    assert tags.tolist() == [
        _tags_of(first_day + timedelta(days=day), retention) for day in range(400)
    ]


@given(retentions)
@settings(max_examples=30, deadline=None)
def test_points_held_stay_below_the_promised_number(retention: Retention) -> None:
    times = _daily(800)
    kept = _keep(times, (0, _policy(retention)))
    # The promise counts days of retention; clean-up may come a day after each.
    assert kept.held(times).max() <= retention.points + sum(map(bool, retention.counts)) * 7


# --- The naive clerk -----------------------------------------------------------------------------


def _naive(
    times: list[int],
    terms: list[tuple[int, Policy]],
    scheduled: list[bool],
    stopped: int | None,
    clean_up: int,
    until: int,
) -> list[int]:
    """When each point goes, by a clerk who walks from event to event; `NEVER` if not by `until`."""
    events: list[tuple[int, int, int]] = []  # time, order at the same time, number
    events += [(day * DAY_NS + clean_up, 0, 0) for day in range(until // DAY_NS)]
    events += [(since, 1, number) for number, (since, _) in enumerate(terms) if number]
    events += [(time, 2, number) for number, time in enumerate(times)]
    policy = terms[0][1]
    ends: dict[int, dict[str, int]] = {}
    gone = [NEVER] * len(times)
    units = {"daily": 1, "weekly": 7, "monthly": 31, "yearly": 365}
    bits = {"daily": DAILY, "weekly": WEEKLY, "monthly": MONTHLY, "yearly": YEARLY}
    for at, what, number in sorted(events):
        if what == 0:
            if stopped is not None and at > stopped:
                continue
            latest = max(ends, default=-1)
            for point in [p for p in ends if p != latest and max(ends[p].values()) < at]:
                if times[latest] < at:
                    gone[point] = at
                    del ends[point]
        elif what == 1:
            new = terms[number][1]
            weekly = new.schedule.frequency == "weekly" != policy.schedule.frequency
            for point, classes in ends.items():
                for name, unit in units.items():
                    count = getattr(new.retention, name)
                    if name in classes and count:
                        classes[name] = times[point] + count * unit * DAY_NS
                if weekly and "daily" in classes:
                    classes["daily"] = min(classes["daily"], at)
                    if len(classes) > 1:
                        del classes["daily"]
            policy = new
        elif not scheduled[number]:
            ends[number] = {"demand": times[number] + ON_DEMAND_DAYS * DAY_NS}
        else:
            tags = _tags_of(MONDAY + timedelta(days=times[number] // DAY_NS), policy.retention)
            ends[number] = {
                name: times[number] + getattr(policy.retention, name) * unit * DAY_NS
                for name, unit in units.items()
                if tags & bits[name]
            } or {"none": times[number]}
    return gone


@st.composite
def lives(
    draw: st.DrawFn,
) -> tuple[list[int], list[tuple[int, Policy]], list[bool], int | None, int]:
    hours = draw(st.sets(st.integers(0, 200 * 24), min_size=1, max_size=120))
    times = [hour * HOUR_NS for hour in sorted(hours)]
    policies = []
    for retention in draw(st.lists(retentions, min_size=1, max_size=4)):
        if draw(st.booleans()):
            policies.append(_policy(retention))
        else:
            days = retention.weekly_on
            fitting = replace(
                retention, daily=0, weekly=max(retention.weekly, 1), monthly=0, yearly=0
            )
            policies.append(_policy(fitting, Schedule("weekly", weekdays=tuple(sorted(days)))))
    since = draw(st.lists(st.integers(1, 210 * 24), min_size=3, max_size=3, unique=True))
    moments = [0, *sorted(hour * HOUR_NS + 60 for hour in since)]
    terms = list(zip(moments, policies, strict=False))
    scheduled = [draw(st.integers(0, 9)) > 0 for _ in times]
    stopped = draw(st.one_of(st.none(), st.integers(0, 250 * 24).map(lambda h: h * HOUR_NS + 5)))
    return times, terms, scheduled, stopped, draw(st.integers(0, 23)) * HOUR_NS


@given(lives())
@settings(max_examples=80, deadline=None)
def test_points_go_when_the_naive_clerk_says(
    life: tuple[list[int], list[tuple[int, Policy]], list[bool], int | None, int],
) -> None:
    times, terms, scheduled, stopped, clean_up = life
    until = 3 * 365 * DAY_NS
    expected = _naive(times, terms, scheduled, stopped, clean_up, until)
    kept = keep(
        np.array(times, np.int64),
        MONDAY,
        [Term(*term) for term in terms],
        on_demand=~np.array(scheduled),
        stopped=stopped,
        clean_up=clean_up,
    )
    got = [NEVER if gone > until else gone for gone in kept.gone.tolist()]
    assert got == expected


# --- What the documents say, one by one ----------------------------------------------------------


def test_more_and_fewer_days_reach_old_points_as_well() -> None:
    times = _daily(100)
    ten, forty = _policy(Retention(daily=10)), _policy(Retention(daily=40))
    shorter = _keep(times, (0, forty), (50, ten))
    at = np.array([50 * DAY_NS, 51 * DAY_NS])
    # The clean-up of the next midnight takes all that is older than ten days.
    assert shorter.held(at).tolist() == [40, 10]
    longer = _keep(times, (0, ten), (50, forty))
    assert longer.held(np.array([50, 60, 79, 99]) * DAY_NS).tolist() == [10, 20, 39, 40]
    assert (longer.expiry - times)[-1] == 40 * DAY_NS


def test_becoming_weekly_cleans_up_daily_points() -> None:
    retention = Retention(daily=30, weekly=8)
    times = _daily(30)
    weekly = _policy(Retention(daily=0, weekly=8), Schedule("weekly", 480, (SUNDAY,)))
    # The change comes as the first weekly point would be taken, on a Sunday.
    sunday = times[times // DAY_NS % 7 == 6]
    after = sunday[-1] + 7 * DAY_NS
    kept = _keep(np.append(times, after), (0, _policy(retention)), (30, weekly))
    assert kept.live(31 * DAY_NS).sum() == len(sunday) + 1  # the latest waits for the next one
    left = kept.times[kept.live(int(after) + DAY_NS)]
    assert left.tolist() == [*sunday.tolist(), int(after)]


def test_points_that_stopped_being_daily_are_not_daily_again() -> None:
    times = _daily(28)
    weekly = _policy(Retention(daily=0, weekly=8), Schedule("weekly", 480, (SUNDAY,)))
    kept = _keep(
        times,
        (0, _policy(Retention(daily=30, weekly=8))),
        (28, weekly),
        (40, _policy(Retention(daily=300))),
    )
    assert (kept.expiry - times)[6::7].tolist() == [56 * DAY_NS] * 4


def test_becoming_daily_keeps_weekly_points_for_the_days_they_have_left() -> None:
    weekly = _policy(Retention(daily=0, weekly=8), Schedule("weekly", 480, (SUNDAY,)))
    times = np.arange(6, 60, 7, dtype=np.int64) * DAY_NS + 8 * HOUR_NS
    before = _keep(times, (0, weekly))
    after = _keep(times, (0, weekly), (50, _policy(Retention(daily=7))))
    old = times < 50 * DAY_NS
    assert after.expiry[old].tolist() == before.expiry[old].tolist()
    assert (after.expiry - times)[~old].tolist() == [7 * DAY_NS]


def test_a_class_that_is_removed_leaves_its_points_their_expiry() -> None:
    times = _daily(60)
    both, daily = Retention(daily=7, weekly=20), Retention(daily=7)
    kept = _keep(times, (0, _policy(both)), (30, _policy(daily)))
    weekly = (kept.tags & WEEKLY) != 0
    assert np.flatnonzero(weekly).tolist() == [6, 13, 20, 27]
    assert set((kept.expiry - times)[weekly].tolist()) == {140 * DAY_NS}
    assert set((kept.expiry - times)[~weekly].tolist()) == {7 * DAY_NS}


def test_adding_yearly_does_not_touch_monthly_points() -> None:
    times = _daily(90)
    monthly = Retention(daily=7, monthly=12)
    with_yearly = replace(monthly, yearly=10, yearly_in=(1, 2, 3))
    before = _keep(times, (0, _policy(monthly)))
    after = _keep(times, (0, _policy(monthly)), (40, _policy(with_yearly)))
    old = times < 40 * DAY_NS
    assert (before.tags[old] & MONTHLY).any()
    assert after.expiry[old].tolist() == before.expiry[old].tolist()
    assert (after.tags[~old] & YEARLY).any()


def test_the_latest_point_stays_while_no_newer_one_comes() -> None:
    kept = _keep(_daily(5), (0, _policy(Retention(daily=7))))
    assert kept.gone[-1] == NEVER
    assert kept.live(10_000 * DAY_NS).tolist() == [False] * 4 + [True]
    # A gap: the last point before it waits for the first after it.
    times = np.concatenate([_daily(3), _daily(2) + 100 * DAY_NS])
    gap = _keep(times, (0, _policy(Retention(daily=7))))
    assert gap.live(99 * DAY_NS).tolist() == [False, False, True, False, False]
    assert gap.gone[2] == 101 * DAY_NS


def test_stopping_with_data_kept_keeps_all_that_is_left() -> None:
    times = _daily(30)
    kept = _keep(times, (0, _policy(Retention(daily=10))), stopped=30 * DAY_NS)
    assert kept.held(np.array([30, 5000]) * DAY_NS).tolist() == [10, 10]


def test_an_on_demand_point_lives_30_days_whatever_the_policy() -> None:
    times = _daily(20)
    demanded = np.arange(20) == 3
    policies = (0, _policy(Retention(daily=7))), (10, _policy(Retention(daily=300)))
    kept = _keep(times, *policies, on_demand=demanded)
    assert (kept.expiry - times)[3] == 30 * DAY_NS
    assert kept.tags[3] == 0
    week = _keep(times, *policies, on_demand=demanded, on_demand_days=7)
    assert (week.expiry - times)[3] == 7 * DAY_NS


def test_a_point_of_the_vault_stays_with_its_snapshot() -> None:
    times = _daily(40)
    policy = Policy("p", "enhanced", retention=Retention(daily=7), instant_days=7)
    deleted = snapshots_gone(times, 7, late_days=5)
    kept = keep(times, MONDAY, [Term(0, policy)], deleted=deleted)
    assert (kept.gone >= deleted).all()
    assert (kept.gone[:-1] > _keep(times, (0, policy)).gone[:-1]).all()


@given(st.integers(1, 30), st.integers(0, 23), st.integers(0, 23))
def test_g9_n_days_of_snapshots_are_n_plus_1_snapshots(n: int, hour: int, clean: int) -> None:
    times = _daily(70, hour)
    gone = snapshots_gone(times, n, clean_up=clean * HOUR_NS)
    at = np.arange(35 * 24, 69 * 24, dtype=np.int64) * HOUR_NS
    held = count_held(times, gone, at)
    assert held.max() == n + 1
    assert held.min() >= n
    # A clean-up that is two days late now and then leaves two more.
    late = snapshots_gone(times, n, clean_up=clean * HOUR_NS, late_days=2)
    assert count_held(times, late, at).max() == n + 1 + 2


def test_a_week_of_snapshots_keeps_the_last_until_the_next_came() -> None:
    weekly = np.arange(10, dtype=np.int64) * 7 * DAY_NS
    gone = snapshots_gone(weekly, 5)
    assert (gone[:-1] == weekly[1:] + DAY_NS).all()
    assert gone[-1] == NEVER
    assert len(snapshots_gone(weekly[:0], 5)) == 0


def test_clean_up_takes_what_expired_before_it() -> None:
    at = np.array([0, 1, DAY_NS - 1, DAY_NS, NEVER])
    assert next_clean_up(at, 0).tolist() == [DAY_NS, DAY_NS, DAY_NS, 2 * DAY_NS, NEVER]
    assert next_clean_up(at[:2], 1).tolist() == [1, DAY_NS + 1]


def test_points_show_themselves() -> None:
    kept = _keep(_daily(3), (0, _policy(Retention(daily=7, weekly=1))))
    assert kept.frame.columns == [
        "day", "time", "daily", "weekly", "monthly", "yearly", "expiry", "gone",
    ]  # fmt: skip
    assert kept.frame["day"].to_list() == [MONDAY + timedelta(days=day) for day in range(3)]
    assert kept.frame["gone"].is_null().to_list() == [False, False, True]
    assert kept.frame["daily"].dtype == pl.Boolean
    assert "<td style='text-align:left'>3</td>" in kept._repr_html_()
    assert len(_keep(_daily(0), (0, _policy(Retention())))) == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"times": np.array([2, 1])}, "times"),
        ({"times": np.array([1.0, 2.0])}, "times"),
        ({"times": np.array([-1, 2])}, "times"),
        ({"times": np.array([1, 2, 3])}, "on_demand"),
        ({"terms": []}, "terms"),
        ({"terms": [Term(0, Policy("a")), Term(0, Policy("b"))]}, "terms"),
        ({"on_demand_days": 0}, "on_demand_days"),
        ({"stopped": -1}, "stopped"),
        ({"clean_up": DAY_NS}, "clean_up"),
    ],
)
def test_bad_points_name_their_field(change: dict[str, object], field: str) -> None:
    good: dict[str, object] = {
        "times": np.array([1, 2]),
        "terms": [Term(0, Policy("a"))],
        "on_demand": np.zeros(2, np.bool_),
    }
    with pytest.raises(InputError, match=f"^{field}: "):
        keep(first_day=MONDAY, **{**good, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [{"instant_days": 0}, {"late_days": -1}, {"clean_up": -1}])
def test_bad_snapshot_days_name_their_field(bad: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(bad))}: "):
        snapshots_gone(**{"times": _daily(3), "instant_days": 2, **bad})  # type: ignore[arg-type]


# --- Blocks --------------------------------------------------------------------------------------


def _blocks(*changes: set[int]) -> Versions:
    return Versions.of([np.array(sorted(blocks), np.int64) for blocks in changes])


def test_g2_three_points_store_2_3_and_5_blocks_and_merge_safely() -> None:
    versions = _blocks({1, 2}, {3}, {2, 3})
    taken = np.arange(3)
    stored = [int(versions.stored(taken <= last)[versions.point <= last].sum()) for last in taken]
    assert stored == [2, 3, 5]
    # The first point expires: the second still needs both of its blocks, D2 among them.
    second = np.array([False, True, True])
    assert versions.stored(second).all()
    assert versions.blocks_held(second).tolist() == [0, 3, 2]
    # The second expires as well: the first D2, and D3, are overwritten for all that are left.
    third = np.array([False, False, True])
    left = versions.stored(third)
    pairs = zip(versions.block[left].tolist(), versions.point[left].tolist(), strict=True)
    assert sorted(pairs) == [(1, 0), (2, 2), (3, 2)]
    assert versions.blocks_held(third).tolist() == [0, 0, 3]


def test_g3_a_change_of_1_kb_stores_16_kb() -> None:
    one = granules(np.array([5000]), np.array([1000]))
    assert len(one) * GRANULE == 16 * 1024
    across = granules(np.array([GRANULE - 1]), np.array([2]))
    assert across.tolist() == [0, 1]
    assert len(granules(np.empty(0, np.int64), np.empty(0, np.int64))) == 0


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**5)), max_size=20))
def test_granules_are_those_of_every_byte(changes: list[tuple[int, int]]) -> None:
    offsets = np.array([offset for offset, _ in changes], np.int64)
    lengths = np.array([length for _, length in changes], np.int64)
    naive = set()
    for offset, length in changes:
        naive |= set(range(offset // GRANULE, (offset + length - 1) // GRANULE + 1))
    assert granules(offsets, lengths).tolist() == sorted(naive)


@given(
    st.lists(st.sets(st.integers(0, 12)), max_size=9),
    st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_blocks_are_stored_as_long_as_a_point_resolves_to_them(
    changes: list[set[int]], flags: list[bool]
) -> None:
    versions = _blocks(*changes)
    live = np.array(flags[: len(changes)], np.bool_)
    needed: dict[tuple[int, int], int] = {}  # (block, point that stored it) -> first that needs it
    for point in [number for number, alive in enumerate(live) if alive]:
        image: dict[int, int] = {}
        for number, blocks in enumerate(changes[: point + 1]):
            image |= dict.fromkeys(blocks, number)
        for pair in image.items():
            needed.setdefault(pair, point)
        seen = versions.seen(point)
        found = zip(versions.block[seen].tolist(), versions.point[seen].tolist(), strict=True)
        assert dict(found) == image
    stored = versions.stored(live)
    pairs = zip(versions.block[stored].tolist(), versions.point[stored].tolist(), strict=True)
    assert set(pairs) == set(needed)
    held = versions.blocks_held(live)
    assert held.tolist() == [list(needed.values()).count(point) for point in range(len(changes))]


def test_bad_blocks_are_refused() -> None:
    with pytest.raises(InputError, match=r"^changes: "):
        Versions.of([np.array([1, 1])])
    with pytest.raises(InputError, match=r"^live: "):
        _blocks({1}).stored(np.zeros(2, np.bool_))
    with pytest.raises(InputError, match=r"^point: 1 "):
        _blocks({1}).seen(1)
    with pytest.raises(InputError, match=r"^granule: 0 "):
        granules(np.array([0]), np.array([1]), 0)
    with pytest.raises(InputError, match=r"^offsets, lengths: "):
        granules(np.array([-1]), np.array([1]))
    assert "versions" in _blocks({1})._repr_html_()
