"""The rules of the decision model as they are declared: axes, eras, readings, ordered rules.

`parse` reads a declaration such as the shipped ``decisions.toml`` and refuses one that names an
axis, a value, a profile, a reading, a label or an action that there is not.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from vmbk.errors import InputError
from vmbk.units import MIB, quoted

Value = str | int

AXES: Final = ("os", "step", "power", "provisioning", "agent", "wish", "attempt", "policy",
               "storage", "disks")  # fmt: skip
"""What is asked of a machine; the fields of a `vmbk.consistency.decision.Case`."""

LABELS: Final = ("application", "filesystem", "crash")
"""Labels of a point, from good to bad."""

ACTIONS: Final = ("point", "retry", "fail")
"""A point is made; none is made and another attempt follows; the job fails."""

OUTCOMES: Final = (*LABELS, *ACTIONS[1:])
"""The label, or the action where there is no point."""

_RULE_KEYS: Final = ("name", "profiles", "readings", "when", "action", "label", "write_order",
                     "reason", "source")  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One thing that is asked of a machine, and its values.

    Attributes
    ----------
    name, doc : str
    values : tuple of str, or of int
        In order.
    more : bool
        The last value, a number, stands for itself and everything above.
    """

    name: str
    doc: str
    values: tuple[Value, ...]
    more: bool = False


@dataclass(frozen=True, eq=False)
class Profile:
    """An era of the service: the values that it knows, by axis, and how it reads the seeds."""

    name: str
    doc: str
    reading: str
    knows: Mapping[str, tuple[Value, ...]]


@dataclass(frozen=True, eq=False)
class Rule:
    """A condition (for each axis named, one of these values) and what follows from it.

    Attributes
    ----------
    name : str
    profiles, readings : tuple of str
        For which it is; empty where for all.
    when : mapping of str to tuple
        Values by axis.
    action : str
        One of `ACTIONS`.
    label : str or None
        One of `LABELS`, where a point is made.
    write_order : bool
        The crash-consistent point keeps the order of writes over all disks.
    reason, source : str
        Why in a line, and where that is written.
    """

    name: str
    profiles: tuple[str, ...]
    readings: tuple[str, ...]
    when: Mapping[str, tuple[Value, ...]]
    action: str
    label: str | None
    write_order: bool
    reason: str
    source: str


@dataclass(frozen=True, eq=False)
class Rules:
    """A whole declaration.

    Attributes
    ----------
    axes : mapping of str to Axis
    steps : mapping of str to tuple
        The values of the axis ``step`` that happen on an operating system.
    readings : mapping of str to str
        What each reading says.
    profiles : mapping of str to Profile
    rules : tuple of Rule
        In order: the first that matches decides.
    """

    axes: Mapping[str, Axis]
    steps: Mapping[str, tuple[Value, ...]]
    readings: Mapping[str, str]
    profiles: Mapping[str, Profile]
    rules: tuple[Rule, ...]

    def known(self, profile: str) -> dict[str, tuple[Value, ...]]:
        """For every axis the values that a profile knows, in order.

        Raises
        ------
        InputError
            If there is no such profile.
        """
        if not isinstance(profile, str) or profile not in self.profiles:
            raise InputError(f"there is no profile {quoted(profile)}", hint=one_of(self.profiles))
        knows = self.profiles[profile].knows
        return {name: knows.get(name, axis.values) for name, axis in self.axes.items()}

    def reading(self, profile: str, reading: str | None = None) -> str:
        """A reading by its name, or the one that a profile takes.

        Raises
        ------
        InputError
            If there is no such profile or reading.
        """
        self.known(profile)
        chosen = self.profiles[profile].reading if reading is None else reading
        if not isinstance(chosen, str) or chosen not in self.readings:
            raise InputError(f"there is no reading {quoted(chosen)}", hint=one_of(self.readings))
        return chosen

    def applicable(self, profile: str, reading: str) -> list[Rule]:
        """The rules of a profile under a reading, in order."""
        return [
            rule
            for rule in self.rules
            if (not rule.profiles or profile in rule.profiles)
            and (not rule.readings or reading in rule.readings)
        ]


@cache
def shipped() -> Rules:
    """The rules that the documents give, with their sources."""
    file = resources.files("vmbk.consistency").joinpath("decisions.toml")
    return parse(file.read_text(encoding="utf-8"))


def parse(text: str) -> Rules:
    """Read a declaration.

    Raises
    ------
    InputError
        If it is not TOML, lacks something, or names what there is not; the message names it.
    """
    if len(text) > MIB:
        raise InputError("the rules are longer than 1 MiB")
    try:
        declared = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the rules are not TOML: {error}") from error
    _known("the rules", declared, ("axes", "steps", "readings", "profiles", "rules"))
    axes = {name: _axis(name, axis) for name, axis in _part("axes", declared).items()}
    if sorted(axes) != sorted(AXES):
        raise InputError(f"the axes must be {', '.join(AXES)}, not {quoted(', '.join(axes))}")
    systems = _part("steps", declared)
    steps = {os: _values(f"steps.{os}", values, axes["step"]) for os, values in systems.items()}
    if sorted(steps) != sorted(map(str, axes["os"].values)):
        raise InputError("steps must name every operating system", hint=one_of(axes["os"].values))
    readings = {
        name: _text(f"readings.{name}", doc) for name, doc in _part("readings", declared).items()
    }
    profiles = {
        name: _profile(name, profile, axes, readings)
        for name, profile in _part("profiles", declared).items()
    }
    given = declared.get("rules")
    if not isinstance(given, list) or not given:
        raise InputError("there are no rules", hint="declare each by [[rules]]")
    rules: dict[str, Rule] = {}
    for number, each in enumerate(given, start=1):
        rule = _rule(f"rule {number}", each, axes, readings, profiles)
        if rules.setdefault(rule.name, rule) is not rule:
            raise InputError(f"two rules are named {quoted(rule.name)}")
    return Rules(axes, steps, readings, profiles, tuple(rules.values()))


def _axis(name: str, declared: Any) -> Axis:
    where = f"axes.{name}"
    table = _known(where, declared, ("doc", "values", "more"))
    values = table.get("values")
    kinds = {type(v) for v in values} if isinstance(values, list) else set()
    if kinds not in ({str}, {int}) or len(set(values or ())) < len(values or ()):
        raise InputError(f"{where}.values must be a list of distinct texts, or of numbers")
    more = table.get("more", False)
    if type(more) is not bool or (more and kinds != {int}):
        raise InputError(f"{where}.more is true or false, and said of numbers")
    return Axis(name, _text(f"{where}.doc", table.get("doc")), tuple(values or ()), more)


def _profile(
    name: str, declared: Any, axes: Mapping[str, Axis], readings: Iterable[str]
) -> Profile:
    where = f"profiles.{name}"
    table = _known(where, declared, ("doc", "reading", "knows"))
    return Profile(
        name=name,
        doc=_text(f"{where}.doc", table.get("doc")),
        reading=_name(f"{where}.reading", table.get("reading"), readings),
        knows=_conditions(f"{where}.knows", table.get("knows", {}), axes),
    )


def _rule(
    where: str,
    declared: Any,
    axes: Mapping[str, Axis],
    readings: Iterable[str],
    profiles: Iterable[str],
) -> Rule:
    table = _known(where, declared, _RULE_KEYS)
    name = _text(f"{where}: name", table.get("name"))
    where = f"the rule {quoted(name)}"
    action = _name(f"{where}: action", table.get("action"), ACTIONS)
    label = _name(f"{where}: label", table["label"], LABELS) if "label" in table else None
    if (action == "point") != (label is not None):
        raise InputError(f"{where} must have a label if it makes a point, and else none")
    order = table.get("write_order", False)
    if type(order) is not bool or (order and label != "crash"):
        raise InputError(f"{where}: write_order is true or false, and said of crash consistency")
    return Rule(
        name=name,
        profiles=_names(f"{where}: profiles", table.get("profiles", []), profiles),
        readings=_names(f"{where}: readings", table.get("readings", []), readings),
        when=_conditions(f"{where}: when", table.get("when", {}), axes),
        action=action,
        label=label,
        write_order=order,
        reason=_text(f"{where}: reason", table.get("reason")),
        source=_text(f"{where}: source", table.get("source")),
    )


def _conditions(
    where: str, declared: Any, axes: Mapping[str, Axis]
) -> dict[str, tuple[Value, ...]]:
    table = _known(where, declared, axes)
    return {name: _values(f"{where}.{name}", value, axes[name]) for name, value in table.items()}


def _values(where: str, declared: Any, axis: Axis) -> tuple[Value, ...]:
    """One value of an axis, or several; in the order of the axis."""
    given = declared if isinstance(declared, list) else [declared]
    for value in given:
        if type(value) is not type(axis.values[0]) or value not in axis.values:
            raise InputError(f"{where}: there is no {quoted(value)}", hint=one_of(axis.values))
    if not given:
        raise InputError(f"{where} names no value", hint=one_of(axis.values))
    return tuple(value for value in axis.values if value in given)


def _name(where: str, declared: Any, known: Iterable[str]) -> str:
    known = list(known)
    if not isinstance(declared, str) or declared not in known:
        raise InputError(f"{where}: there is no {quoted(declared)}", hint=one_of(known))
    return declared


def _names(where: str, declared: Any, known: Iterable[str]) -> tuple[str, ...]:
    if not isinstance(declared, list):
        raise InputError(f"{where} must be a list, not {quoted(declared)}")
    return tuple(_name(where, name, known) for name in declared)


def _part(name: str, declared: dict[str, Any]) -> dict[str, Any]:
    value = declared.get(name)
    if not isinstance(value, dict) or not value:
        raise InputError(f"the rules lack [{name}]")
    return value


def _known(where: str, declared: Any, keys: Iterable[str]) -> dict[str, Any]:
    if not isinstance(declared, dict):
        raise InputError(f"{where} is no table, but {quoted(declared)}")
    keys = list(keys)
    for key in declared:
        if key not in keys:
            raise InputError(f"{where} has no {quoted(key)}", hint=one_of(keys))
    return declared


def _text(where: str, declared: Any) -> str:
    if not isinstance(declared, str) or not declared.strip():
        raise InputError(f"{where} must be a text")
    return declared


def one_of(values: Iterable[Value]) -> str:
    """A hint that names what there is."""
    return f"one of {', '.join(map(str, values))}"
