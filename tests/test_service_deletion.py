"""Soft delete, immutability, a second person, and the archive: every state and every operation."""

from __future__ import annotations

from datetime import date
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbk.errors import InputError
from vmbk.service.archive import MONTH_NS, days_paid_too_much, movable, moved_blocks
from vmbk.service.blocks import Versions
from vmbk.service.deletion import (
    IMMUTABILITIES,
    ITEM_OPERATIONS,
    MAY_BE_GUARDED,
    SOFT_DELETES,
    STATES,
    VAULT_OPERATIONS,
    Item,
    Safety,
    SoftDeletedDays,
    act,
    apply,
    refusal,
    soft_deleted_days,
)
from vmbk.service.points import NEVER, Term, keep
from vmbk.service.policy import Policy
from vmbk.service.retention import DAILY, MONTHLY, WEEKLY, YEARLY, Retention
from vmbk.service.schedule import DAY_NS

VAULTS = [
    Safety(soft, 14, immutable, second)
    for soft, immutable, second in product(SOFT_DELETES, IMMUTABILITIES, (False, True))
]


# --- Soft delete ---------------------------------------------------------------------------------


def test_g7_undeleted_on_day_52_of_60_is_46_days_billed_and_6_free() -> None:
    assert soft_deleted_days(60, 52) == SoftDeletedDays(billed=46, free=6)
    assert soft_deleted_days(60, 52).to_dict() == {"billed": 46, "free": 6}
    # The basic 14 days are free whenever they end.
    assert [soft_deleted_days(14, day).billed for day in range(15)] == [0] * 15
    assert soft_deleted_days(180, 180) == SoftDeletedDays(166, 14)


@given(st.integers(14, 180).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_days_of_soft_delete_are_billed_or_free(days: tuple[int, int]) -> None:
    setting, kept = days
    found = soft_deleted_days(setting, kept)
    naive = [day for day in range(kept) if day >= setting - 14]
    assert found == SoftDeletedDays(kept - len(naive), len(naive))


@pytest.mark.parametrize(("setting", "kept"), [(13, 1), (181, 1), (60, 61), (60, -1)])
def test_bad_days_of_soft_delete_are_refused(setting: int, kept: int) -> None:
    with pytest.raises(InputError, match=r"^(setting|kept): -?\d+ is not from"):
        soft_deleted_days(setting, kept)


def test_deleted_data_can_be_had_back_until_its_days_are_over() -> None:
    vault = Safety(soft_delete_days=20)
    deleted = act(vault, Item(), "delete", 5 * DAY_NS)
    assert deleted == Item("soft_deleted", 5 * DAY_NS, 20)
    # A setting that changes later is that of later deletions.
    other = Safety(soft_delete_days=14)
    back = act(other, deleted, "undelete", 25 * DAY_NS - 1)
    assert back == Item("stopped", 25 * DAY_NS - 1)
    assert act(vault, back, "resume", 26 * DAY_NS).state == "protected"
    assert deleted.at(25 * DAY_NS) == Item("deleted", 25 * DAY_NS)
    with pytest.raises(InputError) as told:
        act(vault, deleted, "undelete", 25 * DAY_NS)
    assert told.value.hint == "the machine is deleted, not soft_deleted"


# --- Every state and every operation -------------------------------------------------------------


def _vault_refuses(vault: Safety, operation: str, consent: bool) -> bool:
    """The rules of the vault, written out once more."""
    match operation:
        case "disable_soft_delete":
            no = vault.soft_delete == "always_on" or (vault.authorisation and not consent)
        case "disable_authorisation":
            no = vault.authorisation and not consent
        case "enable_soft_delete":
            no = vault.soft_delete == "always_on"
        case "enable_immutability" | "disable_immutability":
            no = vault.immutability == "locked"
        case "lock_immutability":
            no = vault.immutability == "disabled"
        case _:
            no = False
    return no


def _named(vault: Safety) -> str:
    """A name that is the same in every process, as that of a set is not."""
    return f"{vault.soft_delete}-{vault.immutability}-{vault.authorisation}"


@pytest.mark.parametrize("vault", VAULTS, ids=_named)
@pytest.mark.parametrize("consent", [False, True])
def test_every_operation_on_every_vault(vault: Safety, consent: bool) -> None:
    for operation in VAULT_OPERATIONS:
        refused = _vault_refuses(vault, operation, consent)
        assert bool(refusal(vault, operation, consent=consent)) == refused
        if refused:
            with pytest.raises(InputError, match=f"'{operation}' is refused"):
                apply(vault, operation, consent=consent)
            continue
        after = apply(vault, operation, consent=consent)
        verb, what = operation.split("_", 1)
        if what.startswith("soft_delete"):
            wanted = {"disable": "disabled", "enable": "enabled", "make": "always_on"}[verb]
            assert after == Safety(wanted, 14, vault.immutability, vault.authorisation)
        elif what == "immutability":
            wanted = {"disable": "disabled", "enable": "enabled", "lock": "locked"}[verb]
            assert after == Safety(vault.soft_delete, 14, wanted, vault.authorisation)
        else:
            on = verb == "enable"
            assert after == Safety(vault.soft_delete, 14, vault.immutability, on)


NEXT = {
    ("protected", "stop_keeping"): "stopped",
    ("protected", "lengthen_retention"): "protected",
    ("protected", "reduce_retention"): "protected",
    ("protected", "move_to_shorter_policy"): "protected",
    ("protected", "change_schedule"): "protected",
    ("protected", "change_mars_pin"): "protected",
    ("protected", "delete"): "gone",
    ("stopped", "change_mars_pin"): "stopped",
    ("stopped", "resume"): "protected",
    ("stopped", "delete"): "gone",
    ("soft_deleted", "undelete"): "stopped",
}


@pytest.mark.parametrize("vault", VAULTS, ids=_named)
@pytest.mark.parametrize("consent", [False, True])
def test_every_operation_on_every_machine(vault: Safety, consent: bool) -> None:
    shortening = {"delete", "reduce_retention", "move_to_shorter_policy"}
    for state, operation in product(STATES, ITEM_OPERATIONS):
        item = Item(state, 0, 14 if state == "soft_deleted" else 0)
        wanted = NEXT.get((state, operation))
        immutable = vault.immutability != "disabled" and operation in shortening
        second = vault.authorisation and operation in MAY_BE_GUARDED and not consent
        refused = wanted is None or immutable or second
        assert bool(refusal(vault, operation, item=item, consent=consent)) == refused
        if refused:
            with pytest.raises(InputError, match=f"'{operation}' is refused"):
                act(vault, item, operation, 1, consent=consent)
            continue
        after = act(vault, item, operation, 1, consent=consent)
        if wanted == "gone":
            wanted = "deleted" if vault.soft_delete == "disabled" else "soft_deleted"
        assert after.state == wanted
        assert after.since == (0 if wanted == state else 1)


def _reachable(vault: Safety, item: Item, consent: bool) -> set[tuple[Safety, str]]:
    """All that one person (or two) can bring about, in any number of steps of one day."""
    seen = {(vault, item)}
    todo = [(vault, item)]
    while todo:
        vault, item = todo.pop()
        steps = [
            (apply(vault, operation, consent=consent), item)
            for operation in VAULT_OPERATIONS
            if not refusal(vault, operation, consent=consent)
        ]
        steps += [
            (vault, act(vault, item, operation, 0, consent=consent))
            for operation in ITEM_OPERATIONS
            if not refusal(vault, operation, item=item, consent=consent)
        ]
        new = set(steps) - seen
        seen |= new
        todo += new
    return {(safety, one.state) for safety, one in seen}


def test_what_is_locked_or_always_on_stays_so() -> None:
    reached = _reachable(Safety("always_on", 14, "locked"), Item(), consent=True)
    assert {(s.soft_delete, s.immutability) for s, _ in reached} == {("always_on", "locked")}
    assert {state for _, state in reached} == {"protected", "stopped"}


def test_always_on_soft_delete_leaves_no_way_to_delete_at_once() -> None:
    reached = _reachable(Safety("always_on"), Item(), consent=True)
    assert "deleted" not in {state for _, state in reached}
    assert "deleted" in {state for _, state in _reachable(Safety(), Item(), consent=True)}


def test_one_person_alone_cannot_delete_under_authorisation() -> None:
    vault = Safety(authorisation=True)
    alone = _reachable(vault, Item(), consent=False)
    assert all(safety.authorisation for safety, _ in alone)
    assert {safety.soft_delete for safety, _ in alone} == {"enabled", "always_on"}
    assert {state for _, state in alone} == {"protected", "stopped"}
    # An operation that was left out needs nobody else; the two that cannot be left out still do.
    partly = Safety(authorisation=True, guarded=frozenset({"reduce_retention"}))
    reached = _reachable(partly, Item(), consent=False)
    assert {state for _, state in reached} == {"protected", "stopped", "soft_deleted"}
    assert all(safety.soft_delete != "disabled" for safety, _ in reached)


def test_protections_are_declared() -> None:
    table = {
        "soft_delete": "always_on",
        "soft_delete_days": 60,
        "immutability": "enabled",
        "authorisation": True,
        "guarded": ["delete"],
    }
    assert Safety.parse(table, "vault.safety") == Safety(
        "always_on", 60, "enabled", True, frozenset({"delete"})
    )
    assert Safety.parse({}, "s") == Safety()
    assert "always_on, 60 days" in Safety.parse(table, "s")._repr_html_()


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"soft_delete": "on"}, "soft_delete"),
        ({"soft_delete_days": 13}, "soft_delete_days"),
        ({"soft_delete_days": 181}, "soft_delete_days"),
        ({"immutability": "worm"}, "immutability"),
        ({"authorisation": 1}, "authorisation"),
        ({"guarded": ["disable_soft_delete"]}, "guarded"),
        ({"softdelete": "enabled"}, "softdelete"),
    ],
)
def test_bad_protections_name_their_field(table: dict[str, object], field: str) -> None:
    with pytest.raises(InputError, match=rf"^vault\.{field}: "):
        Safety.parse(table, "vault")


def test_bad_operations_are_refused() -> None:
    with pytest.raises(InputError, match=r"^operation: 'delete' is none of a vault"):
        refusal(Safety(), "delete")
    with pytest.raises(InputError, match=r"^operation: 'lock_immutability' is none of a machine"):
        refusal(Safety(), "lock_immutability", item=Item())
    with pytest.raises(InputError, match=r"^moment: 1 lies before 2"):
        act(Safety(), Item("stopped", 2), "resume", 1)
    with pytest.raises(InputError, match=r"^state: 'lost'"):
        Item("lost")
    for bad in ({"soft_delete": "x"}, {"soft_delete_days": 0}, {"guarded": frozenset({"x"})}):
        with pytest.raises(InputError, match=f"^{next(iter(bad))}: "):
            Safety(**bad)  # type: ignore[arg-type]


# --- Archive -------------------------------------------------------------------------------------


def test_only_long_term_points_move_with_half_a_year_left() -> None:
    retention = Retention(daily=30, weekly=20, monthly=9, yearly=3)
    times = np.arange(60, dtype=np.int64) * DAY_NS
    kept = keep(times, date(2026, 1, 1), [Term(0, Policy("p", retention=retention))])
    when = movable(kept, retention)
    # The first Sundays of January (a yearly point, too) and of February.
    tags = kept.tags[[3, 31]].tolist()
    assert tags == [DAILY + WEEKLY + MONTHLY + YEARLY, DAILY + WEEKLY + MONTHLY]
    assert np.flatnonzero(when != NEVER).tolist() == [3]
    # The weekly class keeps it for 140 days, longer than the three months; the monthly point of
    # February has less than six months left by then.
    assert when[3] == times[3] + 140 * DAY_NS
    assert movable(kept, Retention(daily=30, weekly=4, monthly=9))[31] == times[31] + 3 * MONTH_NS
    assert (movable(kept, retention, after_months=40) == NEVER).all()
    with pytest.raises(InputError, match=r"^after_months: 2 "):
        movable(kept, retention, after_months=2)


def test_what_leaves_the_archive_early_is_paid_for_180_days() -> None:
    moved = np.array([0, 0, 0, 10, NEVER, 50]) * 1
    moved[3] *= DAY_NS
    gone = np.array([179 * DAY_NS, 180 * DAY_NS, NEVER, 40 * DAY_NS + 1, 5, 40])
    assert days_paid_too_much(moved, gone).tolist() == [1, 0, 0, 150, 0, 0]


def test_the_archive_holds_full_copies() -> None:
    everything = np.arange(100)
    versions = Versions.of([everything, np.array([1, 2]), np.array([2]), np.array([3])])
    live = np.ones(4, np.bool_)
    # A machine that hardly changes: 1 block is freed, 100 are added.
    moved = moved_blocks(versions, live, 1)
    assert (moved.freed, moved.added) == (1, 100)
    # The only point that needs them frees all.
    alone = np.array([True, False, False, False])
    assert moved_blocks(versions, alone, 0).freed == 100
    with pytest.raises(InputError, match=r"^point: 1 is not in the vault"):
        moved_blocks(versions, alone, 1)
