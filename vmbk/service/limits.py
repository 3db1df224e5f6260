"""The service's limits: what it refuses, and what its documents ask for.

They are data: ``limits.toml``, each number with its source, and where documents disagree with all
readings. A profile takes one reading of each; another one can be chosen by name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final, Self

import polars as pl

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.fields import Fields
from vmbk.service.profiles import PROFILES
from vmbk.units import format_size, quoted

KINDS: Final = ("hard", "advice")
BOUNDS: Final = ("most", "least")


@dataclass(frozen=True)
class Reading:
    """What a limit is according to one document.

    Attributes
    ----------
    name : str
    value : int
        A count, or bytes.
    profiles : tuple of str
        That take it unless told.
    source : str
    """

    name: str
    value: int
    profiles: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Limit:
    """One limit and all readings of it.

    Attributes
    ----------
    name, doc : str
    kind : str
        ``"hard"``, what the service refuses, or ``"advice"``.
    bound : str
        ``"most"`` or ``"least"``.
    unit : str
        ``"bytes"``, or "" for a count.
    readings : tuple of Reading
    """

    name: str
    doc: str
    kind: str
    bound: str
    unit: str
    readings: tuple[Reading, ...]

    @classmethod
    def parse(cls, declared: Any, name: str) -> Self:
        """A declared limit.

        Raises
        ------
        InputError
            If a field is not what it must be.
        """
        fields = Fields(declared, name, ("doc", "kind", "bound", "unit", "readings"))
        unit = fields.choice("unit", ("bytes",), "")
        readings = []
        for number, one in enumerate(fields.tables("readings", most=20)):
            known = ("name", "value", "profiles", "source")
            row = Fields(one, f"{name}.readings[{number}]", known)
            value = row.size("value") if unit else row.whole("value", 0, 1 << 40)
            profiles = row.words("profiles")
            if not set(profiles) <= set(PROFILES):
                raise row.fail("profiles", f"are not of {', '.join(PROFILES)}")
            readings.append(Reading(row.text("name"), value, profiles, row.text("source")))
        if not readings or len({one.name for one in readings}) != len(readings):
            raise fields.fail("readings", "are none, or two of the same name")
        return cls(
            name=name,
            doc=fields.text("doc"),
            kind=fields.choice("kind", KINDS, "hard"),
            bound=fields.choice("bound", BOUNDS, "most"),
            unit=unit,
            readings=tuple(readings),
        )

    def reading(self, profile: str, chosen: str | None = None) -> Reading | None:
        """The reading that a profile takes, or the chosen one; None where the era has no limit.

        Raises
        ------
        InputError
            If there is no such profile or reading.
        """
        if profile not in PROFILES:
            raise InputError(f"profile: {quoted(profile)} is not one of {', '.join(PROFILES)}")
        for one in self.readings:
            if chosen == one.name or (chosen is None and profile in one.profiles):
                return one
        if chosen is None:
            return None
        names = ", ".join(one.name for one in self.readings)
        raise InputError(f"{self.name}: there is no reading {quoted(chosen)}", hint=names)

    def show(self, value: int) -> str:
        """A value for people."""
        return format_size(value) if self.unit else f"{value:,}"


@dataclass(frozen=True)
class Finding:
    """A limit that is not kept.

    Attributes
    ----------
    field : str
        Which count.
    value, bound : int
        What there is, and what the limit allows.
    limit : Limit
    reading : Reading
    """

    field: str
    value: int
    bound: int
    limit: Limit
    reading: Reading

    def __str__(self) -> str:
        side = "more" if self.limit.bound == "most" else "less"
        value, bound = self.limit.show(self.value), self.limit.show(self.bound)
        if value == bound:  # where both round to the same size, only the bytes tell them apart
            value, bound = f"{self.value:,} bytes", f"{self.bound:,}"
        return (
            f"{self.field}: {value} is {side} than {bound} "
            f"({self.limit.doc}; {self.reading.source})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "field": self.field,
            "value": self.value,
            "limit": self.bound,
            "bound": self.limit.bound,
            "kind": self.limit.kind,
            "reading": self.reading.name,
            "source": self.reading.source,
        }


@dataclass(frozen=True)
class Limits:
    """All limits, by name."""

    limits: Mapping[str, Limit]

    @classmethod
    def parse(cls, declared: Any, name: str = "limits") -> Self:
        """Declared limits: a table of tables, as ``limits.toml``.

        Raises
        ------
        InputError
            If a field is not what it must be.
        """
        if not isinstance(declared, Mapping):
            raise InputError(f"{name} must be a table, not {quoted(declared)}")
        return cls({str(key): Limit.parse(one, str(key)) for key, one in declared.items()})

    def __getitem__(self, name: str) -> Limit:
        if name not in self.limits:
            raise InputError(
                f"there is no limit {quoted(name)}", hint=f"limits: {', '.join(self.limits)}"
            )
        return self.limits[name]

    def value(self, name: str, profile: str, reading: str | None = None) -> int | None:
        """What a limit allows in an era; None where it has no such limit."""
        found = self[name].reading(profile, reading)
        return None if found is None else found.value

    @property
    def conflicts(self) -> tuple[str, ...]:
        """Limits of which documents say different things."""
        return tuple(
            name
            for name, limit in self.limits.items()
            if len({one.value for one in limit.readings}) > 1
        )

    @property
    def frame(self) -> pl.DataFrame:
        """One row per limit and reading."""
        rows = [
            (name, one.name, one.value, limit.unit, limit.bound, limit.kind,
             list(one.profiles), one.source, limit.doc)
            for name, limit in self.limits.items()
            for one in limit.readings
        ]  # fmt: skip
        schema: dict[str, Any] = {
            "limit": pl.String, "reading": pl.String, "value": pl.Int64, "unit": pl.String,
            "bound": pl.String, "kind": pl.String, "profiles": pl.List(pl.String),
            "source": pl.String, "doc": pl.String,
        }  # fmt: skip
        return pl.DataFrame(rows, schema=schema, orient="row")

    def _repr_html_(self) -> str:
        rows = [
            (limit.doc, one.name, limit.show(one.value), limit.kind, one.source)
            for limit in self.limits.values()
            for one in limit.readings
        ]
        return table("limits", ("of", "reading", "limit", "kind", "source"), rows)


@cache
def shipped() -> Limits:
    """The limits that come with vmbk."""
    text = resources.files("vmbk.service").joinpath("limits.toml").read_text(encoding="utf-8")
    return Limits.parse(tomllib.loads(text))


def check_limits(
    counts: Mapping[str, int],
    profile: str,
    *,
    readings: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> list[Finding]:
    """Which limits some counts do not keep.

    Parameters
    ----------
    counts : Mapping
        From the name of a limit to what there is: a count, or bytes.
    profile : str
        One of `PROFILES`.
    readings : Mapping, optional
        From the name of a limit to the reading that holds instead of the profile's.
    limits : Limits, optional
        Instead of the shipped ones.

    Returns
    -------
    list of Finding
        Hard ones first, each kind in the order of `counts`.

    Raises
    ------
    InputError
        If there is no such limit, profile or reading, or a count is negative.
    """
    known, chosen = limits or shipped(), readings or {}
    for name in chosen:
        known[name].reading(profile, chosen[name])
    findings = []
    for name, value in counts.items():
        limit = known[name]
        if type(value) is not int or value < 0:
            raise InputError(f"{name}: {quoted(value)} is no whole number from 0 on")
        reading = limit.reading(profile, chosen.get(name))
        if reading is None:
            continue
        kept = value <= reading.value if limit.bound == "most" else value >= reading.value
        if not kept:
            findings.append(Finding(name, value, reading.value, limit, reading))
    return sorted(findings, key=lambda finding: finding.limit.kind != "hard")


def require_limits(findings: Iterable[Finding]) -> None:
    """That no hard limit is among the findings.

    Raises
    ------
    InputError
        Naming the first one's field.
    """
    for finding in findings:
        if finding.limit.kind == "hard":
            raise InputError(str(finding))
