"""What is billed and how the documents can be read: `billing.toml`, loaded."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

from vmbk.errors import InputError
from vmbk.service.fields import Fields, read_declaration
from vmbk.service.retention import CLASS_DAYS
from vmbk.units import quoted


@dataclass(frozen=True)
class Rule:
    """A number with its unit and source."""

    name: str
    value: Fraction
    unit: str
    source: str


@dataclass(frozen=True)
class Reading:
    """One way to read what documents leave open or say twice."""

    topic: str
    name: str
    says: str


@dataclass(frozen=True)
class BillingFacts:
    """All of `billing.toml`.

    Attributes
    ----------
    rules, churn : tuple of Rule
        `churn`: presets, percent of the used bytes a day.
    readings : tuple of Reading
        The first of a topic is the one that is taken unless another is asked for.
    """

    rules: tuple[Rule, ...]
    churn: tuple[Rule, ...]
    readings: tuple[Reading, ...]

    def rule(self, name: str) -> Rule:
        """One rule by name."""
        return next(rule for rule in self.rules if rule.name == name)

    def named(self, topic: str) -> tuple[str, ...]:
        """Names of a topic's readings."""
        return tuple(reading.name for reading in self.readings if reading.topic == topic)


def _rules(content: dict[str, Any]) -> tuple[Rule, ...]:
    return tuple(
        Rule(name, Fraction(str(row["value"])), row["unit"], row["source"])
        for name, row in content.items()
    )


@cache
def billing_facts() -> BillingFacts:
    """The rules and readings that vmbk ships."""
    content = read_declaration(Path(__file__).with_name("billing.toml"), "rules of billing")
    readings = tuple(
        Reading(topic, name, says)
        for topic, rows in content["readings"].items()
        for name, says in rows.items()
    )
    return BillingFacts(_rules(content["rules"]), _rules(content["churn"]), readings)


MONTH: Final = CLASS_DAYS[2]
"""Days of a month where no calendar is at hand: retention counts 31."""


@dataclass(frozen=True)
class Readings:
    """How documents are read where they disagree or leave a thing open; see ``billing.toml``.

    Parameters
    ----------
    instance : str
        Protected instances by size: ``"steps"``, ``"half"``, ``"whole"`` or ``"flat"``.
    agentless : str
        The half instance of agentless crash-consistent backup: for each ``"vm"``, or a ``"share"``
        of what its size counts.
    overlap : str
        Whether the changes of several days hit the same blocks: ``"distinct"`` (the most that can
        be stored), ``"random"`` or ``"same"`` (the least).
    snapshots : str
        Snapshots that are kept: as many as ``"days"``, or ``"one_more"``.

    Raises
    ------
    InputError
        If a reading is unknown.
    """

    instance: str = "steps"
    agentless: str = "vm"
    overlap: str = "distinct"
    snapshots: str = "days"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, known = getattr(self, field.name), billing_facts().named(field.name)
            if value not in known:
                raise InputError(
                    f"reading {field.name} = {quoted(value)} is not one of {', '.join(known)}"
                )

    @classmethod
    def parse(cls, content: Any, name: str = "readings") -> Self:
        """Read a table such as ``{instance = "half"}``.

        Raises
        ------
        InputError
            If a topic or a reading is unknown; the message names the field.
        """
        topics = [field.name for field in fields(cls)]
        table = Fields(content, name, topics)
        return cls(**{
            topic: table.choice(topic, billing_facts().named(topic)) for topic in topics
            if topic in table
        })  # fmt: skip
