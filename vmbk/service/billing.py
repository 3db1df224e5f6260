"""When a protected machine is billed: the state machine of S0, S1 and S2, "backup costs".

Nothing is billed until the first backup succeeds. From then on a protected instance and its storage
are, as long as any data is in the vault, even when protection is stopped. Only stopped protection
*and* the deletion of all data end it.

==============  =========================================  ==========================
state           what it is                                 billed
==============  =========================================  ==========================
unprotected     never protected, or ended                  nothing
waiting         protected, no backup has succeeded yet     nothing
protected       protected, with data                       instance and storage
emptied         all data deleted, protection not stopped   instance
stopped         protection stopped, data kept              instance (as the last
                                                           successful backup left
                                                           it) and storage
soft_deleted    stopped, data deleted and not yet gone     as stopped; nothing in the
                                                           last 14 days
==============  =========================================  ==========================

A day is billed by the state at its end. A job that is under way when protection stops may still
succeed: then its size is the one that stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any, Final, Self

from vmbk.errors import InputError
from vmbk.service.deletion import FREE_DAYS
from vmbk.service.deletion import MOST_DAYS as MOST_SOFT
from vmbk.service.fields import MOST, Fields
from vmbk.units import quoted

UNPROTECTED, WAITING, PROTECTED, EMPTIED, STOPPED, SOFT_DELETED = STATES = (
    "unprotected", "waiting", "protected", "emptied", "stopped", "soft_deleted",
)  # fmt: skip
EVENTS: Final = (
    "protect", "start", "succeed", "fail", "store", "stop", "delete", "undelete", "vm_deleted",
)  # fmt: skip

NEXT: Final = {
    (UNPROTECTED, "protect"): WAITING,
    (WAITING, "start"): WAITING,
    (WAITING, "succeed"): PROTECTED,
    (WAITING, "fail"): WAITING,
    (WAITING, "stop"): UNPROTECTED,
    (WAITING, "vm_deleted"): WAITING,
    (PROTECTED, "start"): PROTECTED,
    (PROTECTED, "succeed"): PROTECTED,
    (PROTECTED, "fail"): PROTECTED,
    (PROTECTED, "store"): PROTECTED,
    (PROTECTED, "stop"): STOPPED,
    (PROTECTED, "delete"): EMPTIED,
    (PROTECTED, "vm_deleted"): PROTECTED,
    (EMPTIED, "start"): EMPTIED,
    (EMPTIED, "succeed"): PROTECTED,
    (EMPTIED, "fail"): EMPTIED,
    (EMPTIED, "stop"): UNPROTECTED,
    (EMPTIED, "vm_deleted"): EMPTIED,
    (STOPPED, "protect"): PROTECTED,
    (STOPPED, "succeed"): STOPPED,  # only of a job that was under way at the stop
    (STOPPED, "fail"): STOPPED,  # likewise
    (STOPPED, "store"): STOPPED,
    (STOPPED, "delete"): SOFT_DELETED,
    (STOPPED, "vm_deleted"): STOPPED,
    (SOFT_DELETED, "undelete"): STOPPED,
    (SOFT_DELETED, "vm_deleted"): SOFT_DELETED,
}
"""The state after an event; what is not here cannot happen. A soft-deleted item goes to unprotected
by itself, when its days are over."""


def check_soft_delete(days: int) -> int:
    """The days themselves, if a vault can be set to them: 0 (disabled), or 14 to 180."""
    if type(days) is not int or (days != 0 and not FREE_DAYS <= days <= MOST_SOFT):
        raise InputError(
            f"soft delete of {quoted(days)} days is not possible",
            hint=f"0 disables it; else {FREE_DAYS} to {MOST_SOFT} days",
        )
    return days


@dataclass(frozen=True)
class BillingEvent:
    """Something that matters to the bill.

    Parameters
    ----------
    day : datetime.date
    kind : str
        ``"protect"`` (also: resume), ``"start"`` of a job (needed only where a stop comes before
        its end), ``"succeed"``, ``"fail"``, ``"store"`` (the vault's bytes changed without a
        backup), ``"stop"`` (data kept), ``"delete"`` (all data), ``"undelete"``, ``"vm_deleted"``
        (the machine itself, which changes nothing: its last point is kept and billed).
    size : int
        Bytes of the protected instance, of ``succeed``.
    stored : int
        Bytes in the vault thereafter, of ``succeed`` and ``store``.

    Raises
    ------
    InputError
        If the kind is unknown or a size is out of range.
    """

    day: date
    kind: str
    size: int = 0
    stored: int = 0

    def __post_init__(self) -> None:
        if self.kind not in EVENTS:
            raise InputError(f"event {quoted(self.kind)} is not one of {', '.join(EVENTS)}")
        for name in ("size", "stored"):
            if not 0 <= getattr(self, name) <= MOST:
                raise InputError(
                    f"{name} {quoted(getattr(self, name))} is not from 0 to 2^62 bytes"
                )

    @classmethod
    def parse(cls, content: Any, name: str) -> Self:
        """Read ``{day, event, size, stored}``.

        Raises
        ------
        InputError
            The message names the field.
        """
        fields = Fields(content, name, ("day", "event", "size", "stored"))
        return cls(
            fields.day("day"), fields.choice("event", EVENTS), fields.size("size", 0),
            fields.size("stored", 0),
        )  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """Where an item stands.

    Attributes
    ----------
    state : str
        One of `STATES`.
    size : int
        Bytes of its protected instance: of the last backup that succeeded.
    stored : int
        Bytes in the vault.
    jobs : int
        Jobs under way that were told of.
    gone : datetime.date or None
        Of a soft-deleted item, the first day without its data.
    """

    state: str = UNPROTECTED
    size: int = 0
    stored: int = 0
    jobs: int = 0
    gone: date | None = None

    def after(self, event: BillingEvent, soft_delete: int = 14) -> Standing:
        """Where it stands after an event.

        Raises
        ------
        InputError
            If that cannot happen in this state.
        """
        kind = event.kind
        state = NEXT.get((self.state, kind))
        late = self.state == STOPPED and kind in ("succeed", "fail")
        if state is None or (late and not self.jobs):
            raise InputError(f"{event.day}: {kind!r} cannot happen to an item that is {self.state}")
        jobs = self.jobs + (kind == "start")
        if kind in ("succeed", "fail"):
            jobs = max(jobs - 1, 0)
        now = replace(self, state=state, jobs=jobs)
        if kind == "succeed":
            return replace(now, size=event.size, stored=event.stored)
        if kind == "store":
            return replace(now, stored=event.stored)
        if state == EMPTIED and kind == "delete":
            return replace(now, stored=0)
        if state == UNPROTECTED:
            return Standing()
        if kind == "delete":
            if not soft_delete:
                return Standing()
            return replace(now, gone=event.day + timedelta(soft_delete), jobs=0)
        return replace(now, gone=None) if kind == "undelete" else now

    def billed_on(self, day: date, soft_delete: int = 14) -> bool:
        """Whether the day at whose end it stands so is billed."""
        if self.gone is not None:  # soft-deleted
            return day < self.gone - timedelta(min(FREE_DAYS, soft_delete))
        return self.state in (PROTECTED, EMPTIED, STOPPED)
