"""What protects backups from deletion: soft delete, immutability, authorisation by a second person.

A vault has three protections; a machine in it has one of four states:

    protected ──stop_keeping──▶ stopped ──resume──▶ protected
    protected, stopped ──delete──▶ deleted       where soft delete is off
    protected, stopped ──delete──▶ soft_deleted  where it is on
    soft_deleted ──undelete──▶ stopped,   ──its days are over──▶ deleted

None of this covers the snapshots beside the vault. `refusal` says why an operation may not be done,
`apply` and `act` do it. Sources: the pages of soft delete, enhanced soft delete, immutable vaults
and multi-user authorisation; seed S4 names them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.service.fields import Fields
from vmbk.service.schedule import DAY_NS
from vmbk.units import quoted

SOFT_DELETES: Final = ("disabled", "enabled", "always_on")
IMMUTABILITIES: Final = ("disabled", "enabled", "locked")
STATES: Final = ("protected", "stopped", "soft_deleted", "deleted")

FREE_DAYS: Final = 14
"""The last days of soft delete, which are free, and the fewest there can be (soft delete page)."""

MOST_DAYS: Final = 180
"""Of soft delete (enhanced soft delete page)."""

VAULT_OPERATIONS: Final = (
    "disable_soft_delete", "enable_soft_delete", "make_soft_delete_always_on",
    "enable_immutability", "disable_immutability", "lock_immutability",
    "enable_authorisation", "disable_authorisation",
)  # fmt: skip

ITEM_OPERATIONS: Final = (
    "stop_keeping", "resume", "delete", "undelete",
    "lengthen_retention", "reduce_retention", "move_to_shorter_policy", "change_schedule",
    "change_mars_pin",
)  # fmt: skip
"""Of a machine. The first four change its state."""

ALWAYS_GUARDED: Final = frozenset({"disable_soft_delete", "disable_authorisation"})
"""What always needs a second person (multi-user authorisation page)."""

MAY_BE_GUARDED: Final = frozenset(
    {"reduce_retention", "move_to_shorter_policy", "delete", "change_mars_pin"}
)
"""What needs one unless it is left out."""

_FROM: Final = {
    "stop_keeping": ("protected",),
    "resume": ("stopped",),
    "delete": ("protected", "stopped"),
    "undelete": ("soft_deleted",),
    "lengthen_retention": ("protected",),
    "reduce_retention": ("protected",),
    "move_to_shorter_policy": ("protected",),
    "change_schedule": ("protected",),
    "change_mars_pin": ("protected", "stopped"),
}


@dataclass(frozen=True)
class Safety:
    """The protections of a vault.

    Parameters
    ----------
    soft_delete : str
        One of `SOFT_DELETES`; always-on cannot be undone.
    soft_delete_days : int
        For which deleted data is kept: 14, or up to 180.
    immutability : str
        One of `IMMUTABILITIES`; locked cannot be undone.
    authorisation : bool
        Critical operations need the consent of a second person (multi-user authorisation).
    guarded : frozenset of str
        Which operations of `MAY_BE_GUARDED` do; those of `ALWAYS_GUARDED` always do.

    Raises
    ------
    InputError
        If a value is not one of these.
    """

    soft_delete: str = "enabled"
    soft_delete_days: int = FREE_DAYS
    immutability: str = "disabled"
    authorisation: bool = False
    guarded: frozenset[str] = MAY_BE_GUARDED

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("soft_delete", self.soft_delete, SOFT_DELETES),
            ("immutability", self.immutability, IMMUTABILITIES),
        ):
            if value not in allowed:
                raise InputError(f"{name}: {quoted(value)} is not one of {', '.join(allowed)}")
        days = self.soft_delete_days
        if type(days) is not int or not FREE_DAYS <= days <= MOST_DAYS:
            raise InputError(
                f"soft_delete_days: {quoted(days)} is not from {FREE_DAYS} to {MOST_DAYS}"
            )
        if not self.guarded <= MAY_BE_GUARDED:
            raise InputError(
                f"guarded: {quoted(sorted(self.guarded - MAY_BE_GUARDED))} cannot be guarded",
                hint=f"of {', '.join(sorted(MAY_BE_GUARDED))}",
            )

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """Declared protections: fields as the class's parameters.

        Raises
        ------
        InputError
            If a field is not what it must be.
        """
        known = ("soft_delete", "soft_delete_days", "immutability", "authorisation", "guarded")
        fields = Fields(table, name, known)
        guarded = frozenset(fields.words("guarded", tuple(MAY_BE_GUARDED)))
        arguments: dict[str, Any] = {
            "soft_delete": fields.choice("soft_delete", SOFT_DELETES, "enabled"),
            "soft_delete_days": fields.whole("soft_delete_days", FREE_DAYS, MOST_DAYS, FREE_DAYS),
            "immutability": fields.choice("immutability", IMMUTABILITIES, "disabled"),
            "authorisation": fields.flag("authorisation", False),
        }
        try:
            return cls(guarded=guarded, **arguments)
        except InputError as error:
            raise InputError(fields.where(error.message), hint=error.hint) from None

    def needs_consent(self, operation: str) -> bool:
        """Whether an operation needs a second person."""
        return self.authorisation and operation in ALWAYS_GUARDED | self.guarded

    def _repr_html_(self) -> str:
        return key_values(
            "protections",
            {
                "soft delete": f"{self.soft_delete}, {self.soft_delete_days} days",
                "immutability": self.immutability,
                "second person": self.authorisation,
            },
        )


@dataclass(frozen=True)
class Item:
    """A machine in a vault.

    Attributes
    ----------
    state : str
        One of `STATES`.
    since : int
        Nanoseconds; when it came to this state.
    days : int
        Of soft delete, as they were set when it was deleted.
    """

    state: str = "protected"
    since: int = 0
    days: int = 0

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise InputError(f"state: {quoted(self.state)} is not one of {', '.join(STATES)}")

    def at(self, moment: int) -> Item:
        """The same machine at a later moment: soft-deleted data goes when its days are over."""
        end = self.since + self.days * DAY_NS
        over = self.state == "soft_deleted" and moment >= end
        return Item("deleted", end) if over else self


@dataclass(frozen=True)
class _Rule:
    """Why some operations are refused, in some vaults."""

    operations: tuple[str, ...]
    forbids: Callable[[Safety], bool]
    reason: str


_RULES: Final = (
    _Rule(("disable_soft_delete",), lambda s: s.soft_delete == "always_on",
          "soft delete that is always on cannot be turned off"),
    _Rule(("enable_soft_delete",), lambda s: s.soft_delete == "always_on",
          "soft delete that is always on cannot be made less"),
    _Rule(("disable_immutability", "enable_immutability"), lambda s: s.immutability == "locked",
          "immutability that is locked cannot be undone"),
    _Rule(("lock_immutability",), lambda s: s.immutability == "disabled",
          "immutability has to be enabled before it is locked"),
    _Rule(("delete", "reduce_retention", "move_to_shorter_policy"),
          lambda s: s.immutability != "disabled",
          "the vault is immutable: no point goes before its retention ends"),
)  # fmt: skip


def refusal(
    safety: Safety, operation: str, *, item: Item | None = None, consent: bool = False
) -> str:
    """Why an operation may not be done; "" if it may.

    Parameters
    ----------
    safety : Safety
        Of the vault.
    operation : str
        One of `VAULT_OPERATIONS`, or of `ITEM_OPERATIONS` for an `item`.
    item : Item, optional
    consent : bool
        A second person agrees.

    Raises
    ------
    InputError
        If there is no such operation, or it is not one of a vault or of a machine.
    """
    known = VAULT_OPERATIONS if item is None else ITEM_OPERATIONS
    if operation not in known:
        raise InputError(
            f"operation: {quoted(operation)} is none of a {'vault' if item is None else 'machine'}",
            hint=f"one of {', '.join(known)}",
        )
    if item is not None and item.state not in _FROM[operation]:
        return f"the machine is {item.state}, not {' or '.join(_FROM[operation])}"
    for rule in _RULES:
        if operation in rule.operations and rule.forbids(safety):
            return rule.reason
    if safety.needs_consent(operation) and not consent:
        return "a second person has to agree"
    return ""


def apply(safety: Safety, operation: str, *, consent: bool = False) -> Safety:
    """The vault's protections after an operation on them.

    Raises
    ------
    InputError
        If it is refused.
    """
    _refuse(refusal(safety, operation, consent=consent), operation)
    changes: dict[str, dict[str, Any]] = {
        "disable_soft_delete": {"soft_delete": "disabled"},
        "enable_soft_delete": {"soft_delete": "enabled"},
        "make_soft_delete_always_on": {"soft_delete": "always_on"},
        "enable_immutability": {"immutability": "enabled"},
        "disable_immutability": {"immutability": "disabled"},
        "lock_immutability": {"immutability": "locked"},
        "enable_authorisation": {"authorisation": True},
        "disable_authorisation": {"authorisation": False},
    }
    return replace(safety, **changes[operation])


def act(safety: Safety, item: Item, operation: str, moment: int, *, consent: bool = False) -> Item:
    """A machine after an operation on it.

    Parameters
    ----------
    safety : Safety
    item : Item
    operation : str
        One of `ITEM_OPERATIONS`.
    moment : int
        Nanoseconds; not before the item's state began.
    consent : bool
        A second person agrees.

    Raises
    ------
    InputError
        If it is refused, or the moment lies before.
    """
    if type(moment) is not int or moment < item.since:
        raise InputError(f"moment: {quoted(moment)} lies before {item.since}")
    item = item.at(moment)
    _refuse(refusal(safety, operation, item=item, consent=consent), operation)
    if operation == "delete" and safety.soft_delete != "disabled":
        return Item("soft_deleted", moment, safety.soft_delete_days)
    states = {
        "stop_keeping": "stopped",
        "resume": "protected",
        "delete": "deleted",
        "undelete": "stopped",
    }
    return Item(states[operation], moment) if operation in states else item


def _refuse(why: str, operation: str) -> None:
    if why:
        raise InputError(f"operation: {quoted(operation)} is refused", hint=why)


@dataclass(frozen=True)
class SoftDeletedDays:
    """For how many days soft-deleted data is paid, and for how many it is free."""

    billed: int
    free: int

    def to_dict(self) -> dict[str, int]:
        """Plain values."""
        return {"billed": self.billed, "free": self.free}


def soft_deleted_days(setting: int, kept: int) -> SoftDeletedDays:
    """What the days of soft-deleted data cost: the last 14 of the setting are free.

    Parameters
    ----------
    setting : int
        Days of soft delete, 14 to 180.
    kept : int
        Days after which it was undeleted, or `setting`.

    Raises
    ------
    InputError
        If a number is out of range.
    """
    if type(setting) is not int or not FREE_DAYS <= setting <= MOST_DAYS:
        raise InputError(f"setting: {quoted(setting)} is not from {FREE_DAYS} to {MOST_DAYS}")
    if type(kept) is not int or not 0 <= kept <= setting:
        raise InputError(f"kept: {quoted(kept)} is not from 0 to {setting}")
    billed = min(kept, setting - FREE_DAYS)
    return SoftDeletedDays(billed, kept - billed)
