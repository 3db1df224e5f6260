"""Protection groups of a backup server (DPM or MABS): what is protected, when, and for how long.

Seed S4, back up to DPM/MABS: a group has members, a schedule and a retention on the server's own
disks (short term), and a schedule and a retention in Azure (online).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.pipeline.job import DISK_NAME
from vmbk.service.fields import Fields
from vmbk.service.mars_records import mars_rules
from vmbk.service.plan import DAY
from vmbk.units import quoted

MINUTE_NS: Final = 60 * 10**9
KINDS: Final = ("dpm", "mabs")


@dataclass(frozen=True)
class ServerRules:
    """What the documents say of backup servers; ``mars.toml`` has the source of each.

    Attributes
    ----------
    places : tuple of str
        Where servers and machines are; both must be at the same one.
    in_azure : tuple of str
        Kinds of server that run in Azure.
    protects : tuple of str
        What a member can be protected as.
    aware : tuple of str
        Of these, what asks the application to get ready.
    not_incremental : tuple of str
        Of these, what is sent whole to the server's disks each time.
    aware_systems : tuple of str
        Operating systems on which an application can be asked.
    """

    places: tuple[str, ...]
    in_azure: tuple[str, ...]
    protects: tuple[str, ...]
    aware: tuple[str, ...]
    not_incremental: tuple[str, ...]
    aware_systems: tuple[str, ...]

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """Read them from a declaration of which each field is a table of value and source."""
        keys = tuple(cls.__dataclass_fields__)
        Fields(table, name, keys)
        found: dict[str, tuple[str, ...]] = {}
        for key in keys:
            if key not in table:
                raise InputError(f"{name}.{key} is missing")
            fields = Fields(table[key], f"{name}.{key}", ("value", "source"))
            fields.text("source")
            found[key] = fields.words("value")
        return cls(**found)


@cache
def server_rules() -> ServerRules:
    """The rules that the documents give."""
    text = resources.files("vmbk.service").joinpath("mars.toml").read_text(encoding="utf-8")
    return ServerRules.parse(tomllib.loads(text)["server"], "server")


@dataclass(frozen=True)
class Member:
    """A machine that is protected.

    Parameters
    ----------
    name : str
        Its name.
    disks : tuple of str
        Its disks, each ``path`` or ``name=path``.
    place : str
        ``on-premises`` or ``azure``.
    os : str
        Its operating system.
    protects : str
        What it is protected as; see `ServerRules.protects`. ``bare_metal`` restores to an empty
        machine, so all of its disks, never some.
    """

    name: str
    disks: tuple[str, ...]
    place: str = "on-premises"
    os: str = "windows"
    protects: str = "volumes"

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """Read one from a declaration."""
        rules = server_rules()
        fields = Fields(table, name, cls.__dataclass_fields__)
        member = fields.text("name")
        if not DISK_NAME.fullmatch(member):
            raise fields.fail("name", "is no name for a machine", "letters, digits, . - and _")
        found = cls(
            name=member,
            disks=fields.words("disks", most=1000),
            place=fields.choice("place", rules.places, cls.place),
            os=fields.choice("os", ("windows", "linux"), cls.os),
            protects=fields.choice("protects", rules.protects, cls.protects),
        )
        if not found.disks:
            raise fields.fail("disks", "names no disk")
        if found.protects in rules.aware and found.os not in rules.aware_systems:
            raise fields.fail(
                "protects", f"needs VSS writers, which {found.os} has not", 'try "volumes"'
            )
        return found


@dataclass(frozen=True)
class Tier:
    """When points are made at one tier, and for how long they are kept.

    Parameters
    ----------
    every_ns : int
        Nanoseconds between two.
    start_ns : int
        The first one, in nanoseconds since the first midnight.
    days : int
        Days that a point is kept; the newest is kept for ever.
    """

    every_ns: int
    start_ns: int
    days: int

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """Read one from a declaration: ``every``, ``start`` and ``days``."""
        fields = Fields(table, name, ("every", "start", "days"))
        every = fields.duration("every", least=MINUTE_NS, most=366 * DAY)
        start = MINUTE_NS * int(fields.clock("start", 0))
        return cls(every, start, fields.whole("days", 1, 36_525))

    def slots(self, until_ns: int) -> NDArray[np.int64]:
        """Times, in nanoseconds, of all points before ``until_ns``."""
        return np.array(range(self.start_ns, until_ns, self.every_ns), np.int64)

    def holds(self, made_ns: int, now_ns: int, newest: bool) -> bool:
        """Whether a point that was made at one time is still there at another."""
        return made_ns <= now_ns and (newest or now_ns - made_ns < self.days * DAY)


@dataclass(frozen=True)
class ProtectionGroup:
    """Members that share their schedules.

    Parameters
    ----------
    name : str
        Its name.
    members : tuple of Member
        At least one.
    disk : Tier
        Short term: on the server's own disks.
    online : Tier
        In Azure, by the MARS agent on the server.
    """

    name: str
    members: tuple[Member, ...]
    disk: Tier
    online: Tier

    @classmethod
    def parse(cls, table: Any, name: str) -> Self:
        """Read one from a declaration: ``name``, ``members``, ``disk`` and ``online``."""
        fields = Fields(table, name, ("name", "members", "disk", "online"))
        members = tuple(
            Member.parse(member, f"{fields.where('members')}[{i}]")
            for i, member in enumerate(fields.tables("members", most=10_000))
        )
        names = [member.name for member in members]
        if not members:
            raise InputError(f"{fields.where('members')} is empty", hint="name a machine")
        if twice := [n for n in names if names.count(n) > 1]:
            raise InputError(f"{fields.where('members')}: two are named {quoted(twice[0])}")
        online = Tier.parse(fields.get("online"), fields.where("online"))
        most = mars_rules().a_day
        if -(-DAY // online.every_ns) > most:
            raise InputError(
                f"{fields.where('online.every')} asks for more than {most} backups a day, which is "
                "what the MARS agent makes at most",
                hint=f'write every = "{24 // most}h" or more',
            )
        disk = Tier.parse(fields.get("disk"), fields.where("disk"))
        return cls(fields.text("name"), members, disk, online)
