"""A fleet as it is declared: machines, disks, accounts, vaults, policies, and what happens to them.

::

    profile = "instant"             # 2017, instant or enhanced
    first_day = 2026-01-05          # a Monday
    days = 30

    [[policies]]
    name = "nightly"
    schedule = { frequency = "daily", at = "02:00" }

    [[vms]]
    name = "web-{n}"                # with count, {n} counts from 1
    count = 10
    policy = "nightly"
    disks = [
        { name = "os", size = "128GiB", used = "30GB", churn = "2%" },
        { name = "data", size = "1TiB", used = "400GB", churn = "10GB", write_size = "16KiB" },
    ]

is a whole scenario. Sizes are as people write them (GB is 10^9 bytes, GiB 2^30); ``churn`` is what
changes a day, each block counted once, as a size or a share of what is used. ``[service]`` and
``[readings]`` change numbers of the profile (`vmbk.service.profiles`), ``[failures]`` sets how
probable causes are (`vmbk.service.failures`), ``[restores]`` numbers of restores. What a fleet has
beyond the service's limits is told; with ``limits = { refuse = true }`` it is an error. Where
documents disagree on a limit, ``[limits]`` chooses a reading, or ``"off"``. ``[[accounts]]`` are
storage accounts of one's own: a disk that names one shares it; the others are managed.
``[[events]]`` are ``rotate-keys`` of an account and ``delete-snapshots`` and ``back-up`` (on
demand) of a VM, each ``at`` a day and time.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final, TypeAlias

from vmbk.display import key_values
from vmbk.errors import InputError, NotFoundError
from vmbk.service.failures import FailureModel, MachineTraits
from vmbk.service.fields import Fields, read_declaration
from vmbk.service.fleet_limits import LimitReadings, require_fleet_limits
from vmbk.service.plan import DAY, MOST_CHURN
from vmbk.service.policy import DEFAULT_POLICY, Policy
from vmbk.service.prices import REDUNDANCIES
from vmbk.service.profiles import (
    MOST_RATE,
    PROFILES,
    Limit,
    Profile,
    account_kinds,
    profile,
    tiers,
)
from vmbk.service.restore_rules import RestoreRules
from vmbk.units import KIB, format_size, quoted

MOST_VMS: Final = 200_000
MOST_DAYS: Final = 3660
MOST_DISK: Final = 1 << 49
"""Bytes; the service's own limits, which are smaller, are `vmbk.service.limits`."""

MOST_DISKS: Final = 64
STORAGES: Final = ("managed", "host_cached", "unmanaged", "not_premium_capable", "boost", "ultra",
                   "premium_v2", "ephemeral", "shared", "write_accelerated")  # fmt: skip
EVENTS: Final = ("rotate-keys", "delete-snapshots", "back-up")


_SHIPPED: Final = Path(__file__).with_name("scenarios")

_STANDARD: Final = Limit(60_000_000, 500, "limits: standard disk")


@dataclass(frozen=True)
class Disk:
    """A disk of a VM.

    Attributes
    ----------
    name : str
    size, used : int
        Bytes; `used` on the first day.
    growth : int
        Bytes a day by which `used` grows.
    churn : int
        Bytes that change a day.
    churn_spread, weekend : float
        Days differ by up to this share; on Saturdays and Sundays `weekend` of it changes.
    write_size : int
        Typical write of the applications, bytes.
    extent : int
        Mean length of a changed extent, bytes: the write size where changes are strewn.
    tier : str
        A key of `vmbk.service.profiles.tiers`.
    limit : Limit
        What the disk gives: the tier's, or what was set.
    account : str or None
        Its storage account; None is managed.
    temporary, excluded : bool
        The temporary disk is never backed up, an excluded one not by this policy.
    added : int
        When it was attached, ns.
    """

    name: str
    size: int
    used: int
    growth: int = 0
    churn: int = 0
    churn_spread: float = 0.0
    weekend: float = 1.0
    write_size: int = 16 * KIB
    extent: int = 64 * KIB
    tier: str = "standard-hdd"
    limit: Limit = _STANDARD
    account: str | None = None
    temporary: bool = False
    excluded: bool = False
    added: int = 0

    @property
    def backed_up(self) -> bool:
        """Whether the policy covers it."""
        return not (self.temporary or self.excluded)

    @classmethod
    def parse(cls, table: Any, name: str) -> Disk:
        """A declared disk; `DISK_FIELDS` are its fields."""
        f = Fields(table, name, DISK_FIELDS)
        size = f.size("size", least=512, most=MOST_DISK)
        used = f.size("used", size, most=size)
        tier = f.choice("tier", tiers(), "standard-hdd")
        given = tiers()[tier]
        rate = f.rate("rate", given.rate, least=1, most=MOST_RATE)
        iops = f.whole("iops", 1, 10_000_000, given.requests)
        write_size = f.size("write_size", 16 * KIB, least=512, most=1 << 30)
        return cls(
            name=f.text("name"), size=size, used=used,
            growth=_part(f, "growth", used, 1 << 44),
            churn=_part(f, "churn", used, MOST_CHURN),
            churn_spread=f.share("churn_spread", 0.0),
            weekend=f.share("weekend", 1.0, most=2.0),
            write_size=write_size,
            extent=f.size("extent", max(write_size, 64 * KIB), least=512, most=1 << 40),
            tier=tier, limit=Limit(rate, iops, given.source),
            account=f.text("account", None),
            temporary=f.flag("temporary", False), excluded=f.flag("excluded", False),
            added=f.duration("added", 0, most=MOST_DAYS * DAY),
        )  # fmt: skip


DISK_FIELDS: Final = (
    "name", "size", "used", "growth", "churn", "churn_spread", "weekend", "write_size", "extent",
    "tier", "rate", "iops", "account", "temporary", "excluded", "added",
)  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """A VM.

    Attributes
    ----------
    name, policy, vault : str
    disks : tuple of Disk
    os : str
        ``"windows"`` or ``"linux"``.
    scripts : bool
        A Linux machine has pre- and post-scripts, which succeed.
    power, provisioning, agent, storage : str
        As of `vmbk.consistency.decision.Case`.
    stagger : int
        Its jobs are so much later than its policy's slots, ns.
    cloud_service : str or None
        Of a classic VM.
    """

    name: str
    policy: str
    disks: tuple[Disk, ...]
    vault: str = "vault"
    os: str = "linux"
    scripts: bool = False
    power: str = "running"
    provisioning: str = "succeeded"
    agent: str = "ready"
    storage: str = "managed"
    stagger: int = 0
    cloud_service: str | None = None

    @property
    def used(self) -> int:
        """Bytes on the disks that count: all but temporary ones."""
        return sum(disk.used for disk in self.disks if not disk.temporary)

    def traits(self, policy: Policy) -> MachineTraits:
        """What decides what becomes of a snapshot."""
        return MachineTraits(
            os=self.os, scripts="ok" if self.scripts else "none", power=self.power,
            provisioning=self.provisioning, agent=self.agent, wish=policy.consistency,
            policy=policy.subtype, storage=self.storage,
            disks=max(sum(disk.backed_up for disk in self.disks), 1),
        )  # fmt: skip

    @classmethod
    def parse(cls, table: Any, name: str) -> list[Machine]:
        """One declared VM, or `count` of them."""
        f = Fields(table, name, MACHINE_FIELDS)
        title = f.text("name", most=80)
        count = f.whole("count", 1, MOST_VMS, 1)
        if "count" in f and "{n}" not in title:
            raise f.fail("name", "names several VMs", 'write the name as "web-{n}"')
        disks = tuple(
            Disk.parse(each, f"{name}.disks[{i}]")
            for i, each in enumerate(f.tables("disks", MOST_DISKS))
        )
        names = [disk.name for disk in disks]
        if len(set(names)) < len(names):
            raise InputError(f"{name}.disks: two disks have the same name")
        unmanaged = any(disk.account for disk in disks)
        shared: dict[str, Any] = {
            "policy": f.text("policy", DEFAULT_POLICY.name),
            "vault": f.text("vault", "vault"),
            "os": f.choice("os", ("windows", "linux"), "linux"),
            "scripts": f.flag("scripts", False),
            "power": f.choice("power", ("running", "stopped"), "running"),
            "provisioning": f.choice(
                "provisioning",
                ("succeeded", "unavailable", "failed", "creating", "deleting"),
                "succeeded",
            ),
            "agent": f.choice("agent", ("ready", "missing", "unresponsive"), "ready"),
            "storage": f.choice("storage", STORAGES, "unmanaged" if unmanaged else "managed"),
            "stagger": f.duration("stagger", 0, most=DAY),
            "cloud_service": f.text("cloud_service", None),
        }
        if shared["scripts"] and shared["os"] == "windows":
            raise f.fail("scripts", "does not fit a Windows machine, which has VSS writers")
        return [
            cls(name=title.replace("{n}", str(n + 1)), disks=disks, **shared) for n in range(count)
        ]


MACHINE_FIELDS: Final = (
    "name", "count", "policy", "vault", "os", "scripts", "power", "provisioning", "agent",
    "storage", "stagger", "cloud_service", "disks",
)  # fmt: skip


@dataclass(frozen=True)
class Account:
    """A storage account with disks of VMs.

    Attributes
    ----------
    name, kind : str
        The kind is a key of `vmbk.service.profiles.account_kinds`, or ``"own"``.
    limit : Limit
        Egress in bytes and requests, a second.
    guest_egress, guest_requests : tuple of int
        The guests' own load a second, by hour of the day.
    """

    name: str
    kind: str
    limit: Limit
    guest_egress: tuple[int, ...] = (0,) * 24
    guest_requests: tuple[int, ...] = (0,) * 24

    @classmethod
    def parse(cls, table: Any, name: str) -> Account:
        """A declared account."""
        f = Fields(
            table, name,
            ("name", "kind", "egress", "requests", "guest_egress", "guest_requests", "busy_hours"),
        )  # fmt: skip
        kind = f.choice("kind", account_kinds(), "gpv2")
        given = account_kinds()[kind]
        limit = Limit(
            f.rate("egress", given.rate, least=1000, most=1 << 40),
            f.whole("requests", 1, 1 << 40, given.requests),
            given.source,
        )
        egress = f.rate("guest_egress", 0, most=1 << 40)
        requests = f.whole("guest_requests", 0, 1 << 40, 0)
        busy = f.words("busy_hours", ("00:00-24:00",), 24)
        hours = _hours(f, busy)
        return cls(
            f.text("name"), kind, limit,
            tuple(egress * on for on in hours), tuple(requests * on for on in hours),
        )  # fmt: skip


@dataclass(frozen=True)
class VaultSpec:
    """A vault of the service.

    Attributes
    ----------
    name, redundancy : str
    places : int or None
        Transfers at once; None is the profile's number, 0 any.
    """

    name: str
    redundancy: str = "GRS"
    places: int | None = None

    @classmethod
    def parse(cls, table: Any, name: str) -> VaultSpec:
        """A declared vault."""
        f = Fields(table, name, ("name", "redundancy", "places"))
        return cls(
            f.text("name"), f.choice("redundancy", REDUNDANCIES, "GRS"),
            f.whole("places", 0, 1_000_000, None),
        )  # fmt: skip


@dataclass(frozen=True)
class Event:
    """Something that is done to an account or a VM, at a moment (ns)."""

    at: int
    kind: str
    target: str

    @classmethod
    def parse(cls, table: Any, name: str) -> Event:
        """A declared event: ``{ at = "3d", clock = "02:30", kind = "back-up", vm = "web-1" }``."""
        f = Fields(table, name, ("at", "clock", "kind", "vm", "account"))
        kind = f.choice("kind", EVENTS)
        at = f.duration("at", 0, most=MOST_DAYS * DAY) + f.clock("clock", 0) * 60 * 10**9
        what = "account" if kind == "rotate-keys" else "vm"
        other = "vm" if what == "account" else "account"
        if other in f:
            raise f.fail(other, f"is not what {kind} is done to", f"name the {what}")
        return cls(at, kind, f.text(what))


@dataclass(frozen=True)
class Scenario:
    """A fleet, the service that backs it up, and for how long it is watched.

    Attributes
    ----------
    name : str
    profile : Profile
        The era, with what the scenario set.
    first_day : datetime.date
    days : int
    seed : int
    vms : tuple of Machine
    policies : mapping of str to Policy
    accounts : mapping of str to Account
    vaults : mapping of str to VaultSpec
    events : tuple of Event
        By time.
    failures : FailureModel
    restores : RestoreRules
    limits : LimitReadings
    """

    name: str
    profile: Profile
    first_day: date
    days: int
    seed: int
    vms: tuple[Machine, ...]
    policies: Mapping[str, Policy]
    accounts: Mapping[str, Account]
    vaults: Mapping[str, VaultSpec]
    events: tuple[Event, ...] = ()
    failures: FailureModel = field(default_factory=lambda: FailureModel.default("instant"))
    restores: RestoreRules = field(default_factory=lambda: RestoreRules.default("instant"))
    limits: LimitReadings = field(default_factory=LimitReadings)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Scenario:
        """A scenario from its TOML file, or one of `shipped_scenarios` by its name.

        Raises
        ------
        InputError
            If a field is not what it must be; the message names it.
        """
        return cls.parse(scenario_table(path))

    @classmethod
    def of(cls, what: Declared) -> Scenario:
        """A scenario, from one, from plain tables, or from a file or a shipped one's name."""
        if isinstance(what, Scenario):
            return what
        return cls.parse(what) if isinstance(what, Mapping) else cls.load(what)

    @classmethod
    def parse(cls, declared: Any) -> Scenario:
        """A scenario from plain tables, as TOML gives them.

        Raises
        ------
        InputError
            If a field is not what it must be; the message names it.
        """
        try:
            return cls._parse(declared)
        except RecursionError:  # while a value is quoted
            raise InputError("the scenario's tables are nested too deep") from None

    @classmethod
    def _parse(cls, declared: Any) -> Scenario:
        f = Fields(
            declared, "",
            ("name", "profile", "first_day", "days", "seed", "service", "readings", "failures",
             "vaults", "accounts", "policies", "vms", "events", "restores", "limits"),
        )  # fmt: skip
        era = profile(f.choice("profile", PROFILES, "instant"))
        era = era.change(f.get("service", {}), f.get("readings", {}))
        days = f.whole("days", 1, MOST_DAYS, 30)
        vms: list[Machine] = []
        for i, each in enumerate(f.tables("vms")):
            vms += Machine.parse(each, f"vms[{i}]")
            if len(vms) > MOST_VMS:
                raise InputError(f"vms[{i}].count: there would be more than {MOST_VMS:,} VMs")
        if not vms:
            raise InputError("vms: a scenario needs at least one", hint="[[vms]] …")
        policies = {DEFAULT_POLICY.name: DEFAULT_POLICY} | _named(f, "policies", Policy.parse)
        vaults = {"vault": VaultSpec("vault")} | _named(f, "vaults", VaultSpec.parse)
        accounts = _named(f, "accounts", Account.parse)
        events = sorted(
            (Event.parse(each, f"events[{i}]") for i, each in enumerate(f.tables("events"))),
            key=lambda event: event.at,
        )
        scenario = cls(
            name=f.text("name", "scenario"), profile=era,
            first_day=f.day("first_day", date(2026, 1, 5)), days=days,
            seed=f.whole("seed", 0, (1 << 63) - 1, 0), vms=tuple(vms), policies=policies,
            accounts=accounts, vaults=vaults, events=tuple(events),
            failures=FailureModel.parse(f.get("failures", {}), "failures", era.name),
            restores=RestoreRules.parse(f.get("restores", {}), "restores", era.name),
            limits=LimitReadings.parse(f.get("limits", {}), "limits"),
        )  # fmt: skip
        scenario._check()
        require_fleet_limits(scenario)
        return scenario

    def _check(self) -> None:
        """Names that are used exist, and are used once; a policy is one of the era's."""
        seen: set[str] = set()
        for vm in self.vms:
            if vm.name in seen:
                raise InputError(f"vms: two VMs have the name {quoted(vm.name)}")
            seen.add(vm.name)
            where = f"vms ({vm.name})"
            for kind, name, known in (
                ("policy", vm.policy, self.policies), ("vault", vm.vault, self.vaults)
            ):  # fmt: skip
                if name not in known:
                    raise InputError(
                        f"{where}.{kind}: there is no {kind} {quoted(name)}",
                        hint=f"there are {', '.join(list(known)[:10])}",
                    )
            for disk in vm.disks:
                if disk.account is not None and disk.account not in self.accounts:
                    raise InputError(
                        f"{where}.disks ({disk.name}).account: there is no account "
                        f"{quoted(disk.account)}",
                        hint="declare it: [[accounts]]",
                    )
            policy = self.policies[vm.policy]
            if policy.subtype == "enhanced" and self.profile.name != "enhanced":
                raise InputError(
                    f"{where}.policy: {quoted(policy.name)} is enhanced, which profile "
                    f"{quoted(self.profile.name)} does not know",
                    hint='profile = "enhanced"',
                )
        for event in self.events:
            what = "account" if event.kind == "rotate-keys" else "vm"
            if event.target not in (self.accounts if what == "account" else seen):
                raise InputError(
                    f"events ({event.kind}).{what}: there is no {what} {quoted(event.target)}"
                )
            if event.kind == "delete-snapshots" and not self.profile["two_phase"]:
                raise InputError(
                    f"events.kind: profile {quoted(self.profile.name)} keeps no snapshots that "
                    "could be deleted",
                    hint='profile = "instant"',
                )

    def __repr__(self) -> str:
        return (
            f"<Scenario {self.name!r}: {len(self.vms):,} VMs, profile {self.profile.name}, "
            f"{self.days:,} days from {self.first_day}>"
        )

    def _repr_html_(self) -> str:
        disks = [disk for vm in self.vms for disk in vm.disks if disk.backed_up]
        return key_values(
            self.name,
            {
                "profile": f"{self.profile.name}: {self.profile.doc}",
                "days": f"{self.days} from {self.first_day}",
                "VMs": f"{len(self.vms):,} with {len(disks):,} disks",
                "used": format_size(sum(disk.used for disk in disks)),
                "churn a day": format_size(sum(disk.churn for disk in disks)),
                "accounts": len(self.accounts) or "managed disks",
                "policies": ", ".join(dict.fromkeys(vm.policy for vm in self.vms)),
                "seed": self.seed,
            },
        )


def shipped_scenarios() -> tuple[str, ...]:
    """Names of the scenarios that come with vmbk; each can stand where a path does."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.toml")))


def scenario_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A scenario's file, or one of `shipped_scenarios` by its name, as plain tables.

    Raises
    ------
    InputError
        If there is none, or it is no TOML.
    """
    name = os.fspath(path)
    if os.path.lexists(path):
        return read_declaration(path, "scenario")
    if name not in shipped_scenarios():
        raise NotFoundError(
            f"there is no scenario {quoted(name)}",
            hint=f"shipped are {', '.join(shipped_scenarios())}; yours is a .toml file",
        )
    return read_declaration(_SHIPPED / f"{name}.toml", "scenario")


Declared: TypeAlias = Scenario | Mapping[str, Any] | str | os.PathLike[str]
"""A scenario, or what `Scenario.of` makes one of: its tables, its file, a shipped one's name."""


def _named(f: Fields, key: str, parse: Any) -> dict[str, Any]:
    """Declared objects by their names, which differ."""
    found: dict[str, Any] = {}
    for i, each in enumerate(f.tables(key)):
        made = parse(each, f"{key}[{i}]")
        if made.name in found:
            raise InputError(f"{key}[{i}].name: {quoted(made.name)} is there twice")
        found[made.name] = made
    return found


def _part(f: Fields, key: str, whole: int, most: int) -> int:
    """A size, or a share of a whole; 0 where the field is absent."""
    value = f.get(key, 0)
    if isinstance(value, str) and value.strip().endswith("%"):
        return min(round(float(f.share(key, most=10.0)) * whole), most)
    return int(f.size(key, 0, most=most))


def _hours(f: Fields, spans: tuple[str, ...]) -> list[int]:
    """1 for each hour of the day in one of the spans ``"08:00-18:00"``."""
    hours = [0] * 24
    for span in spans:
        first, dash, last = span.partition("-")
        ends = [t[:2] for t in (first, last) if len(t) == 5 and t.endswith(":00")]
        if not dash or len(ends) != 2 or not all(e.isascii() and e.isdigit() for e in ends):
            raise f.fail("busy_hours", 'is not a list of whole hours, such as "08:00-18:00"')
        begin, end = int(ends[0]), int(ends[1])
        if not (0 <= begin <= 23 and 0 <= end <= 24):
            raise f.fail("busy_hours", 'is not a list of whole hours, such as "22:00-06:00"')
        for hour in range(begin, end if end > begin else end + 24):
            hours[hour % 24] = 1
    return hours
