"""What is billed: machines, their disks, and for how long their points are kept.

Which disks count, by the subtype of the policy ("selective disks", FAQ and support matrix):

==========  ====================================  ================  ================
subtype     protected instance                    vault             snapshots
==========  ====================================  ================  ================
standard    all disks; the OS disk if only that   included disks    all disks
            one is included
enhanced    included disks                        included disks    included disks
==========  ====================================  ================  ================

A temporary disk counts nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, Self

from vmbk.errors import InputError
from vmbk.service.cost_rules import MONTH, Readings, billing_facts
from vmbk.service.fields import Fields, read_declaration
from vmbk.service.policy import SUBTYPES, WISHES, Policy
from vmbk.service.prices import DEFAULT_REDUNDANCY, REDUNDANCIES, check_redundancy
from vmbk.service.retention import BOUNDS, MOST_POINTS
from vmbk.units import quoted

MOST_DISK: Final = 512 * 10**12
"""Bytes: no machine may have more (support matrix), so no disk has."""
MOST_MONTHS: Final = 1200
"""Of an estimate, with those before its first: 99 years and a little."""
MOST_DISKS: Final = 1000
MOST_KEPT: Final = tuple(most for _, most in BOUNDS)
"""Daily, weekly, monthly, yearly points. Fewer than a policy must keep may be priced."""
WEEK: Final = 7
YEAR: Final = 12 * MONTH
INSTANT_DAYS: Final = {"standard": (2, 5), "enhanced": (7, 30)}
"""By subtype: days of instant restore unless others are asked for, and the most."""
_PERCENT: Final = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s*%", re.ASCII)


def _whole(what: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{what} {quoted(value)} is not a whole number from {low:,} to {high:,}")


@dataclass(frozen=True)
class CostDisk:
    """One disk.

    Parameters
    ----------
    name : str
    size : int
        Bytes of the disk.
    used : int
        Bytes that hold data on the first day; at most `size`.
    churn_per_day : int, optional
        Bytes that a day changes, new ones among them; more than the used bytes cannot change.
    growth_per_day : int, optional
        Bytes that are used anew each day, until the disk is full.
    temporary, excluded, operating_system : bool, optional

    Raises
    ------
    InputError
        If a number is out of range.
    """

    name: str
    size: int
    used: int
    churn_per_day: int = 0
    growth_per_day: int = 0
    temporary: bool = False
    excluded: bool = False
    operating_system: bool = False

    def __post_init__(self) -> None:
        _whole(f"size of disk {quoted(self.name)}:", self.size, 0, MOST_DISK)
        _whole(f"used bytes of disk {quoted(self.name)}:", self.used, 0, self.size)
        _whole(f"churn of disk {quoted(self.name)}:", self.churn_per_day, 0, self.size)
        _whole(f"growth of disk {quoted(self.name)}:", self.growth_per_day, 0, self.size)
        if self.temporary and self.operating_system:
            raise InputError(f"disk {quoted(self.name)} is temporary: it has no operating system")

    @classmethod
    def parse(cls, content: Any, name: str) -> Self:
        """Read ``{name, size, used, churn, growth, temporary, excluded, operating_system}``.

        ``churn`` and ``growth`` are a day's: a size, a share of the used bytes (``"5%"``), or, for
        the churn, a preset: ``"low"``, ``"moderate"``, ``"high"``.

        Raises
        ------
        InputError
            The message names the field.
        """
        known = ("name", "size", "used", "churn", "growth", "temporary", "excluded",
                 "operating_system")  # fmt: skip
        fields = Fields(content, name, known)
        size = fields.size("size", most=MOST_DISK)
        used = fields.size("used", most=size)
        return cls(
            fields.text("name", name),
            size,
            used,
            _a_day(fields, "churn", used, size),
            _a_day(fields, "growth", used, size),
            fields.flag("temporary", False),
            fields.flag("excluded", False),
            fields.flag("operating_system", False),
        )


def _a_day(fields: Fields, key: str, used: int, size: int) -> int:
    """Bytes of a day: a size, a share of the used ones, or a preset's name."""
    value = fields.get(key, 0)
    if isinstance(value, str):
        match = _PERCENT.fullmatch(value)
        share = Fraction(match[1]) if match else None
        if key == "churn" and share is None:
            share = next((r.value for r in billing_facts().churn if r.name == value), None)
        if share is not None and share > 100:
            raise fields.fail(key, "is more than the whole")
        if share is not None:
            return int(used * share / 100)
    found: int = fields.size(key, 0, most=size)
    return found


@dataclass(frozen=True)
class CostRetention:
    """How many points of each kind are kept.

    Without daily points the schedule is weekly. Here a week is 7 days, a month 31 and a year 12
    such months, as the documents count retention; for a calendar give the points themselves to
    `vmbk.service.stored_days.stored_by_day`.

    Raises
    ------
    InputError
        If there is neither a daily nor a weekly point, or a count is past the support matrix.
    """

    daily: int = 30
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        kinds = ("daily", "weekly", "monthly", "yearly")
        for kind, most in zip(kinds, MOST_KEPT, strict=True):
            _whole(f"{kind} points:", getattr(self, kind), 0, most)
        if not (self.daily or self.weekly):
            raise InputError("retention keeps no daily and no weekly point: nothing is backed up")
        if self.points > MOST_POINTS:
            raise InputError(f"retention keeps {self.points:,} points, more than {MOST_POINTS:,}")

    @property
    def points(self) -> int:
        """All counts together."""
        return self.daily + self.weekly + self.monthly + self.yearly

    @property
    def every(self) -> int:
        """Days from one backup to the next."""
        return 1 if self.daily else WEEK

    def __str__(self) -> str:
        pairs = (self.daily, "d"), (self.weekly, "w"), (self.monthly, "m"), (self.yearly, "y")
        return " ".join(f"{count}{unit}" for count, unit in pairs if count)

    @classmethod
    def parse(cls, content: Any, name: str = "retention") -> Self:
        """Read ``{daily, weekly, monthly, yearly}``; what is absent is 0.

        Raises
        ------
        InputError
            The message names the field.
        """
        fields = Fields(content, name, ("daily", "weekly", "monthly", "yearly"))
        counts = [
            fields.whole(kind, 0, most, 0)
            for kind, most in zip(("daily", "weekly", "monthly", "yearly"), MOST_KEPT, strict=True)
        ]
        try:
            return cls(*counts)
        except InputError as error:
            raise InputError(f"{name}: {error.message}") from None


@dataclass(frozen=True)
class CostVM:
    """One machine, or `count` equal ones.

    Parameters
    ----------
    name : str
    disks : tuple of CostDisk
    subtype : str
        ``"standard"`` or ``"enhanced"`` policy.
    wish : str
        ``"application"``, ``"filesystem"`` or ``"crash"`` (agentless; enhanced only).
    retention : CostRetention
    instant_days : int, optional
        Days of instant restore: standard 1 to 5 (2), enhanced 1 to 30 (7).
    redundancy : str
        Of the vault: ``"LRS"``, ``"ZRS"``, ``"GRS"``, ``"RA-GRS"``.
    snapshot_redundancy : str
        ``"LRS"``, or ``"ZRS"`` with an enhanced policy.
    archive : bool
        Points that may move to the archive tier do.
    staging : int
        Nanoseconds a day for which a job stages a copy in a premium account; 0 where none does.
    count : int
    snapshots : bool
        Whether the era keeps snapshots beside the disks.

    Raises
    ------
    InputError
        If one is out of range or does not go with another.
    """

    name: str
    disks: tuple[CostDisk, ...]
    subtype: str = "standard"
    wish: str = "application"
    retention: CostRetention = CostRetention()
    instant_days: int = 0
    redundancy: str = DEFAULT_REDUNDANCY
    snapshot_redundancy: str = "LRS"
    archive: bool = False
    staging: int = 0
    count: int = 1
    snapshots: bool = True

    def __post_init__(self) -> None:
        told = f"VM {quoted(self.name)}"
        if self.subtype not in SUBTYPES:
            raise InputError(f"{told}: subtype {quoted(self.subtype)} is not standard or enhanced")
        if self.wish not in WISHES:
            raise InputError(f"{told}: wish {quoted(self.wish)} is not one of {', '.join(WISHES)}")
        if self.wish == "crash" and self.subtype != "enhanced":
            raise InputError(
                f"{told}: agentless crash-consistent backup needs an enhanced policy",
                hint='set subtype = "enhanced"',
            )
        default, most = INSTANT_DAYS[self.subtype]
        _whole(f"{told}: instant_days", self.instant_days or default, 1, most)
        object.__setattr__(self, "instant_days", self.instant_days or default)
        check_redundancy(self.redundancy)
        if self.snapshot_redundancy not in ("LRS", "ZRS"):
            raise InputError(
                f"{told}: snapshot_redundancy {quoted(self.snapshot_redundancy)} is not LRS or ZRS"
            )
        if self.snapshot_redundancy == "ZRS" and self.subtype == "standard":
            raise InputError(f"{told}: snapshots of a standard policy are LRS")
        _whole(f"{told}: staging", self.staging, 0, 86_400 * 10**9)
        _whole(f"{told}: count", self.count, 1, 10**6)
        if len(self.disks) > MOST_DISKS:
            raise InputError(f"{told}: {len(self.disks):,} disks are more than {MOST_DISKS:,}")

    @classmethod
    def under(cls, policy: Policy, name: str, disks: Iterable[CostDisk], **more: Any) -> Self:
        """A machine under a declared policy; `more` are other fields of the class.

        Of the retention the counts are taken: this module's months have 31 days.
        """
        kept = policy.retention
        return cls(
            name,
            tuple(disks),
            subtype=policy.subtype,
            wish=policy.consistency,
            retention=CostRetention(kept.daily, kept.weekly, kept.monthly, kept.yearly),
            instant_days=policy.instant_days,
            archive=policy.archive != "never",
            **more,
        )

    @property
    def included(self) -> tuple[CostDisk, ...]:
        """Disks that are backed up."""
        return tuple(disk for disk in self.disks if not (disk.temporary or disk.excluded))

    @property
    def instance_disks(self) -> tuple[CostDisk, ...]:
        """Disks whose used bytes make the size of the protected instance."""
        included = self.included
        only_system = bool(included) and all(disk.operating_system for disk in included)
        if self.subtype == "enhanced" or only_system:
            return included
        return tuple(disk for disk in self.disks if not disk.temporary)

    @property
    def snapshot_disks(self) -> tuple[CostDisk, ...]:
        """Disks of which snapshots are kept."""
        if self.subtype == "enhanced":
            return self.included
        return tuple(disk for disk in self.disks if not disk.temporary)

    @property
    def excluded_share(self) -> Fraction:
        """Share of the size of its disks, temporary ones aside, that is excluded."""
        disks = [disk for disk in self.disks if not disk.temporary]
        size = sum(disk.size for disk in disks)
        return Fraction(sum(d.size for d in disks if d.excluded), size) if size else Fraction(0)

    @property
    def churn_share(self) -> Fraction:
        """Share of the used bytes of the included disks that a day changes."""
        used = sum(disk.used for disk in self.included)
        return Fraction(sum(d.churn_per_day for d in self.included), used) if used else Fraction(0)

    @classmethod
    def parse(cls, content: Any, name: str) -> Self:
        """Read one machine of a fleet; keys are those of the class, ``staging`` is a duration.

        Raises
        ------
        InputError
            The message names the field.
        """
        known = ("name", "disks", "subtype", "wish", "retention", "instant_days", "redundancy",
                 "snapshot_redundancy", "archive", "staging", "count")  # fmt: skip
        fields = Fields(content, name, known)
        where = fields.where("disks")
        rows = fields.tables("disks", MOST_DISKS)
        subtype = fields.choice("subtype", SUBTYPES, "standard")
        try:
            return cls(
                name=fields.text("name", name),
                disks=tuple(CostDisk.parse(row, f"{where}[{n}]") for n, row in enumerate(rows)),
                subtype=subtype,
                wish=fields.choice("wish", WISHES, "application"),
                retention=CostRetention.parse(
                    fields.get("retention", {"daily": 30}), fields.where("retention")
                ),
                instant_days=fields.whole("instant_days", 1, INSTANT_DAYS[subtype][1], 0),
                redundancy=fields.choice("redundancy", REDUNDANCIES, DEFAULT_REDUNDANCY),
                snapshot_redundancy=fields.choice("snapshot_redundancy", ("LRS", "ZRS"), "LRS"),
                archive=fields.flag("archive", False),
                staging=fields.duration("staging", 0, most=86_400 * 10**9),
                count=fields.whole("count", 1, 10**6, 1),
            )
        except InputError as error:
            if error.message.startswith("VM "):
                raise InputError(f"{name}: {error.message}", hint=error.hint) from None
            raise


@dataclass(frozen=True)
class CostFleet:
    """A declared fleet: its machines, readings and months."""

    vms: tuple[CostVM, ...]
    readings: Readings = field(default_factory=Readings)
    months: int = 12

    @classmethod
    def parse(cls, content: Any, name: str = "") -> Self:
        """Read ``[[vms]]``, ``[readings]`` and ``months``.

        Raises
        ------
        InputError
            The message names the field.
        """
        fields = Fields(content, name, ("vms", "readings", "months"))
        rows = fields.tables("vms", 100_000)
        if not rows:
            raise InputError(f"{fields.where('vms')} is missing", hint="declare machines: [[vms]]")
        return cls(
            tuple(CostVM.parse(row, f"{fields.where('vms')}[{n}]") for n, row in enumerate(rows)),
            Readings.parse(fields.get("readings", {}), fields.where("readings")),
            fields.whole("months", 1, MOST_MONTHS, 12),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a fleet from a TOML file.

        Raises
        ------
        NotFoundError, InputError
            If there is none, or it is not one.
        """
        return cls.parse(read_declaration(path, "fleet"))


def check_vms(vms: CostVM | Iterable[CostVM]) -> tuple[CostVM, ...]:
    """The machines as a tuple; an `InputError` where there is none or one is not a `CostVM`."""
    found = (vms,) if isinstance(vms, CostVM) else tuple(vms)
    if not found or not all(isinstance(vm, CostVM) for vm in found):
        raise InputError(f"machines must be one or more CostVM, not {quoted(vms)}")
    return found
