"""Eras of the service as data: every number with its source, and every reading of a conflict.

The numbers are in ``profiles.toml``. A scenario may set any of them (its ``[service]`` table) and
choose another reading (``[readings]``); what it set is told with the rest.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.fields import Fields
from vmbk.service.plan import DAY
from vmbk.units import format_interval, format_size

if TYPE_CHECKING:
    import polars as pl

PROFILES: Final = ("2017", "instant", "enhanced")
KINDS: Final = ("rate", "size", "duration", "count", "flag", "reading")
_UNITS: Final = {"rate": "bytes/s", "size": "bytes", "duration": "ns", "count": "", "flag": "",
                 "reading": ""}  # fmt: skip
BASES: Final = ("documented", "carried", "inferred", "set")
MOST_WAIT: Final = 30 * DAY
"""No wait, and no step, of a scenario is set longer."""

MOST_RATE: Final = 8_000_000_000
"""Bytes a second of one disk, so that the engines' products stay within 63 bits."""

_NIGHT: Final = (1000, 1000, 900, 750, 500, 300, 200, 150, 100, 100, 100, 100,
                 100, 100, 100, 100, 100, 150, 200, 400, 600, 800, 900, 1000)  # fmt: skip
QUEUE_CURVES: Final = {"night": _NIGHT, "flat": (1000,) * 24, "never": (0,) * 24}
"""Thousandths of the longest wait, by hour of the day."""


@dataclass(frozen=True)
class Number:
    """One number of an era.

    Attributes
    ----------
    name, doc : str
    kind : str
        One of `KINDS`.
    value : int, bool or str
        Bytes, bytes a second, nanoseconds, a count, a flag, or the name of a reading.
    basis : str
        One of `BASES`: ``carried`` is an older era's number that no newer document replaces.
    source : str
    readings : tuple of (str, str)
        Names and meanings, where documents can be read in several ways.
    """

    name: str
    doc: str
    kind: str
    value: int | str
    basis: str
    source: str
    readings: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        if self.kind == "duration":
            return format_interval(int(self.value) / 1e9) if self.value else "0 s"
        if self.kind == "rate":
            return f"{int(self.value) / 1e6:g} MB/s"
        return format_size(int(self.value)) if self.kind == "size" else str(self.value)


@dataclass(frozen=True)
class Limit:
    """What a disk, or a storage account, gives at most: bytes and requests a second."""

    rate: int
    requests: int
    source: str


@dataclass(frozen=True)
class Profile:
    """An era of the service.

    Attributes
    ----------
    name, doc : str
    numbers : mapping of str to Number
    """

    name: str
    doc: str
    numbers: Mapping[str, Number]

    def __getitem__(self, name: str) -> int:
        """A number's value."""
        return int(self.numbers[name].value)

    def reading(self, name: str) -> str:
        """The reading that is taken."""
        return str(self.numbers[name].value)

    def change(self, service: Any = None, readings: Any = None) -> Profile:
        """The profile with other numbers or readings.

        Parameters
        ----------
        service, readings : Mapping, optional
            As a scenario declares them: ``{"queue_peak": "4h"}``, ``{"scan": "logical"}``.

        Raises
        ------
        InputError
            If there is no such number or reading, or it cannot have that value.
        """
        plain = [n for n in self.numbers.values() if n.kind != "reading"]
        fields = Fields(service or {}, "service", (n.name for n in plain))
        chosen = [n for n in self.numbers.values() if n.kind == "reading"]
        words = Fields(readings or {}, "readings", (n.name for n in chosen))
        changed = dict(self.numbers)
        for number in (*plain, *chosen):
            given = words if number.kind == "reading" else fields
            if number.name in given:
                changed[number.name] = Number(
                    number.name, number.doc, number.kind, _read(given, number.name, number),
                    "set", "set by the scenario", number.readings,
                )  # fmt: skip
        _check(changed)
        return Profile(self.name, self.doc, MappingProxyType(changed))

    @property
    def frame(self) -> pl.DataFrame:
        """One row a number: name, value as people write it, basis, source, what it is."""
        import polars as pl

        return pl.DataFrame(
            [
                {"name": n.name, "value": str(n), "basis": n.basis, "source": n.source,
                 "doc": n.doc}
                for n in self.numbers.values()
            ]
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        numbers = [
            {"name": n.name, "value": n.value, "unit": _UNITS[n.kind], "text": str(n),
             "basis": n.basis, "source": n.source, "doc": n.doc, "readings": dict(n.readings)}
            for n in self.numbers.values()
        ]  # fmt: skip
        return {"name": self.name, "doc": self.doc, "numbers": numbers}

    def _repr_html_(self) -> str:
        return table(
            f"Profile {self.name}: {self.doc}",
            ("number", "value", "basis", "source", "what it is"),
            self.frame.rows(),
        )


def profile(name: str) -> Profile:
    """An era by its name.

    Parameters
    ----------
    name : str
        One of `PROFILES`.

    Raises
    ------
    InputError
        If there is no such era.
    """
    if name not in PROFILES:
        raise InputError(f"profile: {name!r} is not one of {', '.join(PROFILES)}")
    return _shipped()[0][name]


def account_kinds() -> Mapping[str, Limit]:
    """Kinds of storage accounts."""
    return _shipped()[1]


def tiers() -> Mapping[str, Limit]:
    """Tiers of disks."""
    return _shipped()[2]


@cache
def _shipped() -> tuple[Mapping[str, Profile], Mapping[str, Limit], Mapping[str, Limit]]:
    file = resources.files("vmbk.service").joinpath("profiles.toml")
    top = Fields(
        tomllib.loads(file.read_text(encoding="utf-8")), "",
        ("profiles", "numbers", "accounts", "tiers"),
    )  # fmt: skip
    docs = Fields(top.get("profiles"), "profiles", PROFILES)
    found: dict[str, dict[str, Number]] = {name: {} for name in PROFILES}
    for name, declared in top.get("numbers").items():
        fields = Fields(declared, f"numbers.{name}", ("doc", "kind", "readings", *PROFILES))
        readings = tuple(dict(fields.get("readings", {})).items())
        for era in PROFILES:
            each = Fields(fields.get(era), fields.where(era), ("value", "basis", "source"))
            number = Number(
                name, fields.text("doc"), fields.choice("kind", KINDS), 0,
                each.choice("basis", BASES), each.text("source"), readings,
            )  # fmt: skip
            value = _read(each, "value", number)
            found[era][name] = Number(
                name, number.doc, number.kind, value, number.basis, number.source, readings
            )
    eras = {
        name: Profile(
            name, Fields(docs.get(name), name, ("doc",)).text("doc"), MappingProxyType(numbers)
        )
        for name, numbers in found.items()
    }
    accounts = {
        name: Limit(f.rate("egress"), f.whole("requests", 1, 1 << 40), f.text("source"))
        for name, f in _tables(top, "accounts", ("egress", "requests", "source"))
    }
    disks = {
        name: Limit(f.rate("rate"), f.whole("iops", 1, 1 << 40), f.text("source"))
        for name, f in _tables(top, "tiers", ("rate", "iops", "source"))
    }
    return MappingProxyType(eras), MappingProxyType(accounts), MappingProxyType(disks)


def _tables(top: Fields, key: str, known: tuple[str, ...]) -> list[tuple[str, Fields]]:
    return [(name, Fields(t, f"{key}.{name}", known)) for name, t in top.get(key).items()]


def _read(fields: Fields, key: str, number: Number) -> int | str:
    """The value of a field, as its number's kind is read."""
    found: int | str
    if number.kind == "rate":
        found = fields.rate(key, least=1, most=MOST_RATE)
    elif number.kind == "size":
        found = fields.size(key, least=512, most=1 << 30)
    elif number.kind == "duration":
        found = fields.duration(key, most=MOST_WAIT)
    elif number.kind == "count":
        found = fields.whole(key, 0, 1_000_000)
    elif number.kind == "flag":
        found = int(fields.flag(key))
    else:
        found = fields.choice(key, (name for name, _ in number.readings))
    return found


def _check(numbers: Mapping[str, Number]) -> None:
    for step in ("install", "snapshot"):
        least, most = numbers[f"{step}_least"], numbers[f"{step}_most"]
        if int(least.value) > int(most.value):
            raise InputError(f"service.{step}_least: {least} is more than {step}_most, {most}")
    if int(numbers["snapshot_least"].value) < 1 or int(numbers["commit"].value) < 1:
        raise InputError("service: neither snapshot_least nor commit can be nothing")
