"""Schedules, policies and limits: golden values, and slots against a walk over every minute."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbk.errors import InputError
from vmbk.service.limits import Limits, check_limits, require_limits, shipped
from vmbk.service.policy import DEFAULT_POLICY, Policy, change, instant_span
from vmbk.service.retention import LAST, MonthDay, Retention
from vmbk.service.schedule import (
    DAY_NS,
    EVERY_HOURS,
    HOUR_NS,
    MINUTE_NS,
    WEEKDAYS,
    Schedule,
)

MONDAY = date(2026, 1, 5)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    at = draw(st.integers(0, 1439))
    kind = draw(st.sampled_from(["daily", "weekly", "hourly"]))
    if kind == "daily":
        return Schedule("daily", at)
    if kind == "weekly":
        days = draw(st.sets(st.integers(0, 6), min_size=1))
        return Schedule("weekly", at, tuple(sorted(days)))
    every = draw(st.sampled_from(EVERY_HOURS))
    hours = draw(st.integers(every, 24))
    return Schedule("hourly", at, (), every, hours * HOUR_NS)


def _walked(schedule: Schedule, first_day: date, days: int) -> list[tuple[int, bool]]:
    """Slots as one who looks at the clock would note them, windows begun the day before too."""
    found = set()
    for day in range(-1, days):
        weekday = (first_day + timedelta(days=day)).weekday()
        if schedule.frequency == "weekly" and weekday not in schedule.weekdays:
            continue
        start = day * 24 * 60 + schedule.at
        minute = start
        while minute * MINUTE_NS < start * MINUTE_NS + schedule.window:
            found.add(minute)
            minute += schedule.every * 60
    times = sorted(minute for minute in found if 0 <= minute < days * 24 * 60)
    last = {minute // (24 * 60): minute for minute in times}
    return [(minute * MINUTE_NS, last[minute // (24 * 60)] == minute) for minute in times]


@given(schedules(), st.dates(date(2000, 1, 1), date(2100, 1, 1)), st.integers(1, 40))
def test_slots_are_those_of_a_walk(schedule: Schedule, first_day: date, days: int) -> None:
    slots = schedule.slots(first_day, days)
    assert list(zip(slots.times.tolist(), slots.vault.tolist(), strict=True)) == _walked(
        schedule, first_day, days
    )
    assert slots.times.dtype == np.int64
    assert slots.vault.dtype == np.bool_
    if days >= 21 and len(slots) > 1:
        assert int(np.diff(slots.times).max()) == schedule.longest_gap


def test_the_default_hourly_schedule_backs_up_six_times_a_day() -> None:
    schedule = Schedule.parse({"frequency": "hourly"}, "schedule")
    slots = schedule.slots(MONDAY, 1)
    assert (slots.times // HOUR_NS).tolist() == [0, 4, 8, 12, 16, 20]
    assert slots.vault.tolist() == [False] * 5 + [True]
    assert schedule.longest_gap == 4 * HOUR_NS


def test_a_short_window_leaves_the_night_without_a_backup() -> None:
    schedule = Schedule.parse({"frequency": "hourly", "every": "4h", "window": "12h"}, "s")
    assert schedule.minutes == (8 * 60, 12 * 60, 16 * 60)
    assert schedule.longest_gap == 16 * HOUR_NS


def test_weekly_slots_fall_on_their_weekdays() -> None:
    schedule = Schedule.parse(
        {"frequency": "weekly", "weekdays": ["Sun", "wednesday"], "at": "02:30"}, "s"
    )
    slots = schedule.slots(date(2026, 1, 7), 8)  # a Wednesday
    assert slots.times.tolist() == [day * DAY_NS + 150 * MINUTE_NS for day in (0, 4, 7)]
    assert slots.vault.all()
    assert str(schedule) == "wednesday, sunday at 02:30"


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"frequency": "monthly"}, "p.frequency"),
        ({"at": "24:00"}, "p.at"),
        ({"every": "4h"}, "p.every"),
        ({"weekdays": ["sunday"]}, "p.weekdays"),
        ({"frequency": "weekly", "weekdays": []}, "p.weekdays"),
        ({"frequency": "weekly", "weekdays": ["someday"]}, "p.weekdays"),
        ({"frequency": "hourly", "every": "5h"}, "p.every"),
        ({"frequency": "hourly", "every": "8h", "window": "6h"}, "p.window"),
        ({"frequency": "hourly", "window": "30h"}, "p.window"),
        ({"frequenzy": "daily"}, "p.frequenzy"),
        ([], "p must be a table"),
    ],
)
def test_a_bad_schedule_names_its_field(table: object, field: str) -> None:
    with pytest.raises(InputError, match="^" + field.replace(".", r"\.")):
        Schedule.parse(table, "p")


@pytest.mark.parametrize(
    "bad",
    [
        {"frequency": "never"},
        {"at": 1440},
        {"frequency": "weekly"},
        {"frequency": "weekly", "weekdays": (7,)},
        {"weekdays": (1,)},
        {"every": 4},
        {"frequency": "hourly", "every": 3},
        {"frequency": "hourly", "every": 6, "window": HOUR_NS},
    ],
)
def test_a_schedule_cannot_be_made_wrong(bad: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Schedule(**bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="days"):
        Schedule().slots(MONDAY, 0)


def test_g17_enhanced_caps_are_17_22_and_30_days() -> None:
    caps = {}
    for hours in (4, 6, 12):
        schedule = {"frequency": "hourly", "every": f"{hours}h"}
        for days in range(1, 31):
            table = {"subtype": "enhanced", "schedule": schedule, "instant_days": days}
            if days <= instant_span("enhanced", Schedule.parse(schedule, "s")).most:
                caps[hours] = Policy.parse(table, "policy").instant_days
                continue
            with pytest.raises(InputError, match=rf"^policy\.instant_days: {days} "):
                Policy.parse(table, "policy")
    assert caps == {4: 17, 6: 22, 12: 30}


def test_days_of_snapshots_by_subtype_and_schedule() -> None:
    daily, weekly = Schedule(), Schedule("weekly", weekdays=(6,))
    spans = {
        ("standard", daily): (1, 5, 2),
        ("enhanced", daily): (1, 30, 7),
        ("standard", weekly): (5, 5, 5),
        ("enhanced", weekly): (5, 20, 7),
    }
    for (subtype, schedule), (least, most, default) in spans.items():
        span = instant_span(subtype, schedule)
        assert (span.least, span.most, span.default) == (least, most, default)
        table = {"subtype": subtype, "schedule": {"frequency": schedule.frequency}}
        assert Policy.parse(table, "p").instant_days == default
        for days in (least - 1, most + 1):
            with pytest.raises(InputError, match=r"^p\.instant_days"):
                Policy.parse({**table, "instant_days": days}, "p")


def test_snapshots_are_not_kept_longer_than_the_vault_keeps_points() -> None:
    table = {"subtype": "enhanced", "retention": {"daily": 7}, "instant_days": 7}
    assert Policy.parse(table, "p").instant_days == 7
    with pytest.raises(InputError, match=r"^p\.instant_days: 8 .* 7 days"):
        Policy.parse({**table, "instant_days": 8}, "p")


def test_defaults() -> None:
    assert (DEFAULT_POLICY.name, DEFAULT_POLICY.subtype) == ("DefaultPolicy", "standard")
    assert Policy.parse({}, "p") == DEFAULT_POLICY
    assert DEFAULT_POLICY.schedule.per_day == 1
    enhanced = Policy.parse({"subtype": "enhanced"}, "p")
    assert enhanced.retention.counts == (180, 12, 60, 10)
    assert enhanced.retention.days == (180, 84, 1860, 3650)
    weekly = Policy.parse(
        {"subtype": "enhanced", "schedule": {"frequency": "weekly", "weekdays": ["friday"]}}, "p"
    )
    assert weekly.retention.counts == (0, 12, 60, 10)
    assert weekly.retention.monthly_on == (MonthDay(1, WEEKDAYS.index("friday")),)


HOURLY = {"frequency": "hourly"}
WEEKLY = {"frequency": "weekly", "weekdays": ["sunday"]}


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"subtype": "premium"}, "subtype"),
        ({"consistency": "crash"}, "consistency"),
        ({"schedule": HOURLY}, "schedule.frequency"),
        ({"schedule": {"frequency": "often"}}, "schedule.frequency"),
        ({"retention": {"daily": 6}}, "retention.daily"),
        ({"retention": {"daily": 10_000}}, "retention.daily"),
        ({"retention": {"daily": 30, "weekly": 5164}}, "retention.weekly"),
        ({"retention": {"daily": 30, "monthly": 1189}}, "retention.monthly"),
        ({"retention": {"daily": 30, "yearly": 100}}, "retention.yearly"),
        ({"retention": {"daily": 30, "weekly": -1}}, "retention.weekly"),
        ({"retention": {"daily": 9999, "weekly": 5000}}, "retention.daily, weekly"),
        ({"retention": {}}, "retention.daily"),
        ({"retention": {"weekly": 4}}, "retention.daily"),
        ({"retention": {"daily": True}}, "retention.daily"),
        ({"schedule": WEEKLY, "retention": {"daily": 30}}, "retention.daily"),
        ({"schedule": WEEKLY, "retention": {"monthly": 3}}, "retention.weekly"),
        (
            {"schedule": WEEKLY, "retention": {"weekly": 3, "weekly_on": ["monday"]}},
            "retention.weekly_on",
        ),
        (
            {"schedule": WEEKLY, "retention": {"weekly": 3, "monthly": 3, "monthly_on": ["day 1"]}},
            "retention.monthly_on",
        ),
        ({"retention": {"daily": 9, "weekly_on": ["monday"]}}, "retention.weekly_on"),
        (
            {"retention": {"daily": 9, "monthly": 2, "monthly_on": ["fifth sunday"]}},
            "retention.monthly_on",
        ),
        ({"retention": {"daily": 9, "monthly": 2, "monthly_on": ["day 29"]}}, "retention.monthly"),
        ({"retention": {"daily": 9, "yearly": 2, "yearly_in": ["vendemiaire"]}}, "retention.year"),
        ({"instant_days": 6}, "instant_days"),
        ({"archive": "eligible"}, "archive"),
        ({"archive": "some"}, "archive"),
        ({"archive_months": 2}, "archive_months"),
        ({"name": ""}, "name"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_bad_policy_names_its_field(table: dict[str, object], field: str) -> None:
    with pytest.raises(InputError, match="^" + f"policies[3].{field}".replace("[", r"\[")):
        Policy.parse(table, "policies[3]")


def test_archive_needs_points_that_live_long_enough() -> None:
    table = {"archive": "eligible", "archive_months": 6, "retention": {"daily": 30, "monthly": 12}}
    assert Policy.parse(table, "p").archive_months == 6
    with pytest.raises(InputError, match=r"^p\.archive: .*13 months"):
        Policy.parse({**table, "archive_months": 7}, "p")


def test_enhanced_never_becomes_standard() -> None:
    standard, enhanced = Policy("s"), Policy("e", "enhanced", instant_days=7)
    assert change(standard, enhanced) is enhanced
    assert change(enhanced, enhanced) is enhanced
    assert change(standard, standard) is standard
    with pytest.raises(InputError, match=r"^subtype: "):
        change(enhanced, standard)


def test_a_policy_shows_itself() -> None:
    policy = Policy.parse({"name": "<b>", "subtype": "enhanced", "schedule": HOURLY}, "p")
    assert "&lt;b&gt;" in policy._repr_html_()
    told = policy.to_dict()
    assert told["schedule"] == "every 4 h from 08:00 for 24 h"
    assert told["retention"]["yearly_on"] == ["first sunday"]
    assert "daily" in policy.retention._repr_html_()
    assert "00:00" in Schedule()._repr_html_()


@given(st.integers(-3, 30), st.one_of(st.none(), st.integers(-1, 8)))
def test_a_day_of_a_month_reads_back(number: int, weekday: int | None) -> None:
    most = 28 if weekday is None else 4
    good = (number == LAST or 1 <= number <= most) and (weekday is None or 0 <= weekday <= 6)
    if good:
        assert MonthDay.read(str(MonthDay(number, weekday)).upper()) == MonthDay(number, weekday)
    else:
        with pytest.raises(InputError):
            MonthDay(number, weekday)


# --- Limits --------------------------------------------------------------------------------------


def test_documented_limits() -> None:
    limits = shipped()
    assert limits.value("vaults_per_subscription", "enhanced") == 500
    assert limits.value("vaults_per_subscription", "2017") == 25
    assert limits.value("points_per_item", "instant") == 9999
    assert limits.value("vms_at_once", "2017") == 40
    assert limits.value("disks_per_account", "2017") == 20
    assert limits.value("disk_size", "2017") == 1023 << 30
    assert limits.value("disk_size", "enhanced", "2018") == 4095 << 30
    assert limits.value("classic_vms_at_once", "enhanced") is None
    assert {"disk_size", "on_demand_per_day", "restores_per_day"} <= set(limits.conflicts)
    frame = limits.frame
    assert frame.height == sum(len(limit.readings) for limit in limits.limits.values())
    assert frame["source"].str.len_chars().min() > 1
    assert "restores of an item" in limits._repr_html_()


def test_the_limits_are_those_that_retention_enforces() -> None:
    limits = shipped()
    for name, key in (
        ("daily", "daily_days"),
        ("weekly", "weekly_weeks"),
        ("monthly", "monthly_months"),
        ("yearly", "yearly_years"),
    ):
        most = limits.value(key, "enhanced")
        assert most is not None
        counts = {"daily": 0, name: most}
        assert Retention(**counts).counts.count(0) == 3
        with pytest.raises(InputError, match=f"^{name}: "):
            Retention(**{**counts, name: most + 1})


def test_a_limit_holds_up_to_its_value() -> None:
    counts = {"vms_per_policy": 100, "vm_cores": 2, "on_demand_per_day": 9, "vm_memory": 10**9}
    assert check_limits(counts, "enhanced") == []
    over = {"vm_cores": 1, "vms_per_policy": 101, "on_demand_per_day": 10, "disk_size": 1 << 50}
    findings = check_limits(over, "enhanced")
    # Hard ones first, otherwise in the order asked.
    assert [f.field for f in findings] == [
        "vms_per_policy",
        "on_demand_per_day",
        "disk_size",
        "vm_cores",
    ]
    assert str(findings[0]).startswith("vms_per_policy: 101 is more than 100 ")
    assert str(findings[2]).startswith("disk_size: 1 PiB is more than ")
    at = findings[2].bound
    (close,) = check_limits({"disk_size": at + 1}, "enhanced")
    assert f"{at + 1:,} bytes is more than {at:,}" in str(close)
    assert findings[0].to_dict()["source"] == "FAQ"
    with pytest.raises(InputError, match=r"^vms_per_policy: 101"):
        require_limits(findings)
    require_limits(findings[3:])  # advice is not enforced


def test_another_reading_can_be_chosen() -> None:
    counts = {"disks_per_account": 7}
    assert [f.bound for f in check_limits(counts, "instant")] == [4]
    assert check_limits(counts, "instant", readings={"disks_per_account": "ten"}) == []
    assert check_limits({"classic_vms_at_once": 99}, "enhanced") == []


@pytest.mark.parametrize(
    ("counts", "profile", "readings", "told"),
    [
        ({"vms_per_polcy": 1}, "enhanced", {}, "vms_per_polcy"),
        ({"vms_per_policy": -1}, "enhanced", {}, "^vms_per_policy: -1"),
        ({"vms_per_policy": 1.5}, "enhanced", {}, "^vms_per_policy: 1.5"),
        ({"vms_per_policy": 1}, "2042", {}, "^profile: '2042'"),
        ({}, "enhanced", {"vms_per_policy": "other"}, "^vms_per_policy: .*'other'"),
        ({}, "enhanced", {"nothing": "other"}, "nothing"),
    ],
)
def test_bad_counts_name_their_field(
    counts: dict[str, int], profile: str, readings: dict[str, str], told: str
) -> None:
    with pytest.raises(InputError, match=told):
        check_limits(counts, profile, readings=readings)


@pytest.mark.parametrize(
    "declared",
    [
        [],
        {"a": 1},
        {"a": {"doc": "x", "readings": []}},
        {"a": {"doc": "x", "readings": [{"name": "n", "value": 1, "profiles": ["1999"]}]}},
        {"a": {"doc": "x", "readings": [{"name": "n", "value": "1GB", "profiles": []}]}},
        {"a": {"doc": "x", "kind": "soft", "readings": []}},
        {
            "a": {
                "doc": "x",
                "readings": [{"name": "n", "value": 1, "profiles": [], "source": "s"}] * 2,
            }
        },
    ],
)
def test_bad_declarations_of_limits_are_refused(declared: object) -> None:
    with pytest.raises(InputError):
        Limits.parse(declared)
