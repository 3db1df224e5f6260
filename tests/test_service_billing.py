"""When a protected machine is billed, and what protected instances cost."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise, product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vmbk.errors import InputError, NotFoundError
from vmbk.service.billing import (
    EMPTIED,
    EVENTS,
    NEXT,
    PROTECTED,
    SOFT_DELETED,
    STATES,
    STOPPED,
    UNPROTECTED,
    WAITING,
    BillingEvent,
    Standing,
)
from vmbk.service.bills import Bill, bill, events_of_points
from vmbk.service.cost_items import CostDisk, CostVM
from vmbk.service.cost_rules import Readings, billing_facts
from vmbk.service.deletion import soft_deleted_days
from vmbk.service.prices import GB, REDUNDANCIES, Prices, money, shipped_prices
from vmbk.service.protected_instance import (
    instance_price,
    instances,
    prorated,
    protected_size,
)
from vmbk.service.stored_days import CostPoint

DAY = date(2026, 1, 1)
PRICES = shipped_prices()
SEED_VM = CostVM(
    "A2-Standard",
    (
        CostDisk("os", 1023 * GB, 17 * GB, operating_system=True),
        CostDisk("local", 135 * GB, 5 * GB, temporary=True),
        CostDisk("data1", 1023 * GB, 30 * GB),
        CostDisk("data2", 1023 * GB, 0),
    ),
)


def after(days: int) -> date:
    return DAY + timedelta(days)


def told(
    *events: tuple[int, str], size: int = 47 * GB, stored: int = 50 * GB
) -> list[BillingEvent]:
    return [BillingEvent(after(day), kind, size, stored) for day, kind in events]


# --- Protected instances -------------------------------------------------------------------------


def test_g4_used_bytes_without_the_temporary_disk_are_47_gb() -> None:
    assert protected_size(SEED_VM) == 47 * GB
    # 32 TB disks (seeds of 2024) change nothing.
    large = tuple(
        CostDisk(d.name, 32_000 * GB, d.used, temporary=d.temporary) for d in SEED_VM.disks
    )
    assert protected_size(CostVM("large", large)) == 47 * GB


@pytest.mark.parametrize(
    ("size", "price"), [(50, 5), (51, 10), (500, 10), (501, 20), (2000, 40), (0, 5)]
)
def test_g6_prices_by_size(size: int, price: int) -> None:
    assert instance_price(size * GB, PRICES) == price
    assert instance_price(size * GB, PRICES, Readings(instance="half")) == price


@pytest.mark.parametrize(
    ("reading", "counts"),
    [("half", "0.5 1 1 2 4"), ("whole", "1 1 1 2 4"), ("flat", "1 1 1 1 1"),
     ("steps", "0.5 1 1 2 4")],
)  # fmt: skip
def test_readings_of_how_many_instances(reading: str, counts: str) -> None:
    sizes = (50, 51, 500, 501, 2000)
    readings = Readings(instance=reading)
    assert [instances(s * GB, readings) for s in sizes] == [Decimal(c) for c in counts.split()]
    if reading != "steps":
        wanted = [Decimal(c) * 10 for c in counts.split()]
        assert [instance_price(s * GB, PRICES, readings) for s in sizes] == wanted


def test_one_byte_more_is_the_next_step() -> None:
    assert instance_price(50 * GB + 1, PRICES) == 10
    assert instance_price(500 * GB + 1, PRICES) == 20
    assert instance_price(1000 * GB, PRICES) == 20
    assert instance_price(1000 * GB + 1, PRICES) == 30


def test_agentless_backup_counts_half_an_instance() -> None:
    for size in (1, 50, 51, 5000):
        assert instances(size * GB, wish="crash") == Decimal("0.5")
        assert instance_price(size * GB, PRICES, wish="crash") == 5
    share = Readings(agentless="share")
    assert instances(2000 * GB, share, "crash") == 2
    assert instance_price(2000 * GB, PRICES, share, "crash") == 20
    assert instances(50 * GB, share, "crash") == Decimal("0.25")
    assert instance_price(50 * GB, PRICES, share, "crash") == Decimal("2.5")


@given(
    st.integers(0, 10**16),
    st.integers(0, 10**16),
    st.sampled_from(["steps", "half", "whole", "flat"]),
)
def test_no_larger_machine_costs_less(a: int, b: int, reading: str) -> None:
    low, high = sorted((a, b))
    readings = Readings(instance=reading)
    assert instance_price(low, PRICES, readings) <= instance_price(high, PRICES, readings)
    assert instances(low, readings) <= instances(high, readings)


def test_prorated_by_day() -> None:
    assert prorated(Decimal(10), 31, 31) == 10
    assert prorated(Decimal(10), 0, 31) == 0
    assert prorated(Decimal(10), 17, 31) == Decimal("5.483871")
    for days in (32, -1):
        with pytest.raises(InputError, match=f"{days} days"):
            prorated(Decimal(10), days, 31)


def test_which_disks_count_under_each_subtype() -> None:
    disks = (
        CostDisk("os", 100 * GB, 10 * GB, operating_system=True),
        CostDisk("temp", 100 * GB, 1 * GB, temporary=True),
        CostDisk("a", 100 * GB, 20 * GB),
        CostDisk("b", 100 * GB, 40 * GB, excluded=True),
    )
    only_system = tuple(
        CostDisk(d.name, d.size, d.used, excluded=not d.operating_system, temporary=d.temporary,
                 operating_system=d.operating_system)
        for d in disks
    )  # fmt: skip
    standard, enhanced = CostVM("s", disks), CostVM("e", disks, "enhanced")
    assert protected_size(standard) == 70 * GB  # all disks
    assert protected_size(CostVM("s", only_system)) == 10 * GB
    assert protected_size(enhanced) == 30 * GB
    assert protected_size(CostVM("e", only_system, "enhanced")) == 10 * GB
    for vm in (standard, enhanced):
        assert [d.name for d in vm.included] == ["os", "a"]
    assert [d.name for d in standard.snapshot_disks] == ["os", "a", "b"]
    assert [d.name for d in enhanced.snapshot_disks] == ["os", "a"]


# --- The machine of states -----------------------------------------------------------------------

REACH = {
    UNPROTECTED: (),
    WAITING: ((0, "protect"),),
    PROTECTED: ((0, "protect"), (1, "succeed")),
    EMPTIED: ((0, "protect"), (1, "succeed"), (2, "delete")),
    STOPPED: ((0, "protect"), (1, "succeed"), (2, "stop")),
    SOFT_DELETED: ((0, "protect"), (1, "succeed"), (2, "stop"), (3, "delete")),
}


@pytest.mark.parametrize(("state", "kind"), list(product(STATES, EVENTS)))
def test_every_event_in_every_state(state: str, kind: str) -> None:
    standing = Standing()
    for event in told(*REACH[state]):
        standing = standing.after(event)
    assert standing.state == state
    event = BillingEvent(after(10), kind, 60 * GB, 70 * GB)
    wanted = NEXT.get((state, kind))
    if wanted is None or (state == STOPPED and kind in ("succeed", "fail")):
        with pytest.raises(InputError, match=f"{kind}.* that is {state}"):
            standing.after(event)
        return
    found = standing.after(event)
    assert found.state == wanted
    # The rule itself: billed if something ever succeeded, and not both stopped and deleted.
    succeeded = kind == "succeed" or state in (PROTECTED, EMPTIED, STOPPED, SOFT_DELETED)
    stopped = wanted in (UNPROTECTED, STOPPED, SOFT_DELETED)
    deleted = wanted in (UNPROTECTED, EMPTIED, SOFT_DELETED)
    assert found.billed_on(after(10)) == (succeeded and not (stopped and deleted))
    if kind != "succeed" and found.state != UNPROTECTED:
        assert found.size == standing.size


def test_nothing_is_billed_before_the_first_success() -> None:
    found = bill(
        told((0, "protect"), (1, "start"), (2, "fail"), (3, "fail"), (9, "succeed")), after(12)
    )
    assert found.billed_days == 3
    assert [(s.state, s.days, s.billed) for s in found.spans] == [
        ("waiting", 9, False), ("protected", 3, True),
    ]  # fmt: skip
    never = bill(told((0, "protect"), (5, "fail"), (7, "stop")), after(400))
    assert never.billed_days == 0
    assert sum(m.total for m in never.charge(PRICES)) == 0


def test_stopped_protection_is_billed_while_data_is_kept() -> None:
    found = bill(told((0, "protect"), (0, "succeed"), (10, "stop")), after(1000))
    assert found.billed_days == 1000
    assert found.in_state("stopped") == (990, 0)


def test_deleted_data_is_billed_while_protection_goes_on() -> None:
    found = bill(told((0, "protect"), (0, "succeed"), (10, "delete"), (20, "stop")), after(50))
    assert found.in_state("emptied") == (10, 0)
    assert found.billed_days == 20
    assert found.spans[1].stored == 0
    assert found.spans[1].size == 47 * GB


def test_both_end_it() -> None:
    found = bill(told((0, "protect"), (0, "succeed"), (10, "stop"), (30, "delete")), after(100))
    assert found.billed_days == 30
    assert found.in_state("soft_deleted") == (0, 14)
    assert found.spans[-1].state == "unprotected"
    assert bill(
        told((0, "protect"), (0, "succeed"), (10, "stop"), (30, "delete")), after(100), 0
    ).in_state("soft_deleted") == (0, 0)


def test_the_size_of_the_last_success_stays() -> None:
    events = [
        BillingEvent(after(0), "protect"),
        BillingEvent(after(1), "succeed", 40 * GB, 40 * GB),
        BillingEvent(after(2), "succeed", 60 * GB, 70 * GB),
        BillingEvent(after(3), "fail"),
        BillingEvent(after(4), "stop"),
        BillingEvent(after(9), "store", 0, 65 * GB),
    ]
    last = bill(events, after(100)).spans[-1]
    assert (last.state, last.size, last.stored) == ("stopped", 60 * GB, 65 * GB)


def test_a_job_under_way_at_the_stop_still_counts() -> None:
    events = told((0, "protect"), (1, "succeed"), (5, "start"), (5, "stop"))
    late = BillingEvent(after(6), "succeed", 90 * GB, 95 * GB)
    assert bill([*events, late], after(9)).spans[-1].size == 90 * GB
    with pytest.raises(InputError, match="'succeed' cannot happen to an item that is stopped"):
        bill([*events, late, late], after(9))


def test_a_deleted_machine_is_billed_for_ever() -> None:
    found = bill(told((0, "protect"), (1, "succeed"), (2, "vm_deleted")), after(2000))
    assert found.billed_days == 1999


def test_resumed_protection() -> None:
    found = bill(
        told((0, "protect"), (0, "succeed"), (5, "stop"), (8, "protect"), (9, "succeed")), after(12)
    )
    assert [(s.state, s.days) for s in found.spans] == [
        ("protected", 5), ("stopped", 3), ("protected", 4),
    ]  # fmt: skip


def test_g7_soft_delete_of_60_days_undeleted_after_52() -> None:
    days = soft_deleted_days(60, 52)
    assert (days.billed, days.free) == (46, 6)
    found = bill(
        told((0, "protect"), (0, "succeed"), (10, "stop"), (20, "delete"), (72, "undelete")),
        after(100), 60,
    )  # fmt: skip
    assert found.in_state("soft_deleted") == (46, 6)
    assert found.billed_days == 20 + 46 + 28


@given(st.integers(14, 180), st.integers(0, 180))
def test_soft_deleted_days_of_the_bill_are_those_of_the_rule(setting: int, kept: int) -> None:
    assume(kept < setting)
    wanted = soft_deleted_days(setting, kept)
    events = told(
        (0, "protect"), (0, "succeed"), (0, "stop"), (1, "delete"), (1 + kept, "undelete")
    )
    assert bill(events, after(400), setting).in_state("soft_deleted") == (
        wanted.billed,
        wanted.free,
    )
    gone = bill(events[:-1], after(400), setting)
    assert gone.in_state("soft_deleted") == (setting - 14, 14)
    assert gone.spans[-1].state == "unprotected"
    with pytest.raises(InputError, match="undelete"):
        bill([*events[:-1], BillingEvent(after(1 + setting), "undelete")], after(400), setting)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[BillingEvent], int]:
    """Events that can happen, found by trying, and the vault's setting."""
    setting = draw(st.sampled_from([0, 14, 20, 60]))
    standing, day, events = Standing(), 0, []
    for kind in draw(st.lists(st.sampled_from(EVENTS), max_size=25)):
        day += draw(st.integers(0, 20))
        if standing.gone is not None and after(day) >= standing.gone:
            standing = Standing()
        size = draw(st.integers(0, 10**13))
        event = BillingEvent(after(day), kind, size, draw(st.integers(0, 10**14)))
        try:
            standing = standing.after(event, setting)
        except InputError:
            continue
        events.append(event)
    return events, setting


def naive_bill(events: list[BillingEvent], setting: int, days: int) -> list[tuple[bool, int, int]]:
    """Day by day, from the rule: billed, size and stored of each."""
    found = []
    for day in range(days):
        past = [event for event in events if event.day <= after(day)]
        ever, stopped, kept, deleted_on = False, True, False, None
        size = stored = 0
        for event in past:
            if deleted_on is not None and (event.day - deleted_on).days >= setting:
                ever, deleted_on, size, stored = False, None, 0, 0
            match event.kind:
                case "protect":
                    stopped = False
                case "succeed":
                    ever = kept = True
                    size, stored = event.size, event.stored
                case "store":
                    stored = event.stored
                case "stop":
                    stopped = True
                case "delete":
                    kept = False
                    if stopped:
                        deleted_on = event.day
                    else:
                        stored = 0
                case "undelete":
                    kept, deleted_on = True, None
            if stopped and not kept and deleted_on is None:
                ever, size, stored = False, 0, 0  # ended
        in_soft = (after(day) - deleted_on).days if deleted_on is not None else setting
        billed = ever and (not stopped or kept or in_soft < setting - 14)
        found.append((billed, size if billed else 0, stored if billed else 0))
    return found


@given(histories())
def test_the_bill_is_that_of_the_rule_day_by_day(history: tuple[list[BillingEvent], int]) -> None:
    events, setting = history
    assume(events)
    events = [BillingEvent(DAY, events[0].kind, events[0].size, events[0].stored), *events[1:]]
    assume(all(a.day <= b.day for a, b in pairwise(events)))
    days = (events[-1].day - DAY).days + 70
    found = bill(events, after(days), setting)
    frame = found.frame
    assert frame["day"].to_list() == [after(n) for n in range(days)]
    rows = list(zip(frame["billed"], frame["size"], frame["stored"], strict=True))
    assert rows == naive_bill(events, setting, days)
    assert found.billed_days == sum(billed for billed, _, _ in rows)
    assert all(a.until == b.first for a, b in pairwise(found.spans))


def naive_charge(found: Bill, redundancy: str) -> dict[str, Fraction]:
    """Of each month the sum over its days."""
    price = Fraction(PRICES.storage.of(redundancy).value)
    totals: dict[str, Fraction] = {}
    for day, billed, size, stored in found.frame.select("day", "billed", "size", "stored").rows():
        month = f"{day.year}-{day.month:02}"
        of = ((day.replace(day=1) + timedelta(31)).replace(day=1) - day.replace(day=1)).days
        totals.setdefault(month, Fraction(0))
        if billed:
            totals[month] += (Fraction(instance_price(size, PRICES)) + stored * price / GB) / of
    return totals


@given(histories(), st.sampled_from(REDUNDANCIES))
def test_months_add_up_their_days(history: tuple[list[BillingEvent], int], redundancy: str) -> None:
    events, setting = history
    assume(events)
    found = bill(events, events[-1].day + timedelta(45), setting)
    wanted = naive_charge(found, redundancy)
    charges = found.charge(PRICES, redundancy)
    assert [c.month for c in charges] == list(wanted)
    for charge in charges:
        assert abs(Fraction(charge.total) - wanted[charge.month]) <= Fraction(1, 10**6)
    assert sum(c.billed_days for c in charges) == found.billed_days


def test_a_calendar_month_costs_its_price() -> None:
    (january, february) = bill(told((0, "protect"), (0, "succeed")), date(2026, 3, 1)).charge(
        PRICES
    )
    assert (january.instance, january.storage) == (5, Decimal("2.8"))  # 50 GB of GRS at 0.056
    assert february == type(february)("2026-02", 28, Decimal(5), Decimal("2.8"))


def test_points_make_events() -> None:
    points = [CostPoint(2, 40 * GB, 40 * GB, 5), CostPoint(3, 41 * GB, 2 * GB, 9)]
    events = events_of_points(points, DAY, 12)
    found = bill(events, after(12))
    assert [(s.days, s.state, s.size // GB, s.stored // GB) for s in found.spans] == [
        (2, "waiting", 0, 0),
        (1, "protected", 40, 40),
        (2, "protected", 41, 42),
        (7, "protected", 41, 41),
    ]


def test_bad_events() -> None:
    with pytest.raises(InputError, match="'sleep' is not one of protect"):
        BillingEvent(DAY, "sleep")
    with pytest.raises(InputError, match="size -1 is not"):
        BillingEvent(DAY, "succeed", -1)
    with pytest.raises(InputError, match="comes after"):
        bill([BillingEvent(after(2), "protect"), BillingEvent(after(1), "succeed")], after(9))
    for setting in (-1, 1, 13, 181, True):
        with pytest.raises(InputError, match="soft delete of"):
            bill([], DAY, setting)
    with pytest.raises(InputError, match="days"):
        bill([BillingEvent(DAY, "protect")], date(9999, 1, 1))
    assert bill([], DAY).spans == ()
    with pytest.raises(InputError, match=r"events\[3\].event: 'succeeed' is not one of"):
        BillingEvent.parse({"day": "2026-01-01", "event": "succeeed"}, "events[3]")
    good = BillingEvent.parse({"day": DAY, "event": "succeed", "size": "47GB"}, "e")
    assert good == BillingEvent(DAY, "succeed", 47 * GB)


# --- Prices --------------------------------------------------------------------------------------


def test_shipped_prices() -> None:
    values = {p.name: p.value for p in PRICES.every}
    assert values["storage.LRS"] == Decimal("0.028")
    base = PRICES.storage.of("LRS").value
    ratios = [round(PRICES.storage.of(r).value / base, 2) for r in REDUNDANCIES]
    assert ratios == [Decimal("1.00"), Decimal("1.25"), Decimal("2.00"), Decimal("2.54")]
    assert PRICES.assumed == ("snapshot.LRS",)
    assert all(p.source for p in PRICES.every)
    assert (PRICES.currency, PRICES.region) == ("USD", "UK South")
    assert PRICES.frame.height == len(PRICES.every)
    assert "UK South" in PRICES._repr_html_()
    assert PRICES.to_dict()["prices"][0]["value"] == 0.028
    with pytest.raises(InputError, match=r"no archive\.GRS"):
        PRICES.archive.of("GRS")
    with pytest.raises(InputError, match="'grs' is not one of"):
        PRICES.storage.of("grs")
    with pytest.raises(InputError, match="no staging price"):
        PRICES.staging_price()


def own_prices() -> dict[str, object]:
    return {
        "date": date(2026, 5, 1), "currency": "EUR", "region": "somewhere", "source": "contract",
        "storage": {"LRS": "0.02", "GRS": 0.05},
        "archive": {"GRS": {"value": 1e-05, "source": "offer"}},
        "instance": {"one": 8, "steps": [{"up_to": "100GB", "price": 8}],
                     "further": {"size": "100GB", "price": 2}},
    }  # fmt: skip


def test_own_prices() -> None:
    prices = Prices.parse(own_prices())
    assert prices.storage.of("LRS").source == "contract"
    assert prices.archive.of("GRS").value == Decimal("0.00001")
    assert instance_price(100 * GB, prices) == 8
    assert instance_price(301 * GB, prices) == 14
    assert instance_price(301 * GB, prices, Readings(instance="flat")) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"storage": {"LSR": 1}}, r"storage\.LSR: there is no such field"),
        ({"storage": {"LRS": -1}}, r"storage\.LRS: -1 is not a price"),
        ({"storage": {"LRS": float("nan")}}, "nan is not a price"),
        ({"storage": {"LRS": "1e3"}}, "'1e3' is not a price"),
        ({"storage": {"LRS": True}}, "True is not a price"),
        ({"storage": {"LRS": 10**10}}, "is not a price|is more than"),
        ({"storage": {"LRS": {"value": 1, "sorce": "x"}}}, r"storage\.LRS\.sorce"),
        ({"storage": 3}, "storage must be a table"),
        ({"date": "yesterday"}, "date: 'yesterday' is not a date"),
        ({"instance": {"one": 1, "steps": [], "further": {"size": 1, "price": 1}}},
         r"instance\.steps is missing"),
        ({"instance": {"one": 1, "steps": [{"up_to": "9GB", "price": 1}] * 2,
                       "further": {"size": 1, "price": 1}}}, r"instance\.steps\[1\]: .*ascend"),
        ({"instance": {"one": 1, "steps": [{"up_to": "9GB", "price": 1}]}},
         r"instance\.further is missing"),
    ],
)  # fmt: skip
def test_bad_prices(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Prices.parse(own_prices() | change)
    with pytest.raises(NotFoundError):
        Prices.load("no such file.toml")


def test_every_fact_has_a_source() -> None:
    facts = billing_facts()
    assert all(rule.source and rule.unit for rule in (*facts.rules, *facts.churn))
    assert facts.rule("restore_charge").value == 0
    assert facts.named("instance") == ("steps", "half", "whole", "flat")
    for topic in ("instance", "agentless", "overlap", "snapshots"):  # the first is the default
        assert getattr(Readings(), topic) == facts.named(topic)[0]
    with pytest.raises(InputError, match="reading instance = 'third' is not one of"):
        Readings(instance="third")
    with pytest.raises(InputError, match=r"readings\.instance: 'stepz' .*\n.*steps"):
        Readings.parse({"instance": "stepz"})


@given(st.fractions(0, 10**12))
def test_money_is_rounded_to_millionths(amount: Fraction) -> None:
    found = money(amount)
    assert abs(Fraction(found) - amount) <= Fraction(1, 2 * 10**6)
    assert found.as_tuple().exponent == -6
    assert str(money(Fraction(1, 10)) + money(Fraction(2, 10))) == "0.300000"
