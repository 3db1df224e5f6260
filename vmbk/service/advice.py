"""What should be changed, why, and what it would bring: best practices checked on a scenario.

The rules are data with their sources (``advice.toml``); `vmbk.service.advice_checks` looks for what
they are about. The effect of following one is not claimed but simulated: the scenario and the
changed scenario run under the same seed.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

import polars as pl

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.service.advice_case import Case, Hit, counted
from vmbk.service.advice_checks import CHECKS
from vmbk.service.fields import Fields
from vmbk.service.plan import SECOND
from vmbk.service.planner_measure import Measures, measure, ordinary, warm_days
from vmbk.service.profiles import PROFILES
from vmbk.service.scenario import Declared, Scenario
from vmbk.service.simulation import Simulation, simulate
from vmbk.units import format_duration, format_size, quoted

SEVERITIES: Final = ("warning", "advice", "info")
DAYS: Final = 3
"""Ordinary days of which effects are measured."""

SHOWN: Final = ("makespan_s", "mean_s", "p95_s", "late", "missed", "peak_egress", "peak_requests",
                "lost_s")  # fmt: skip
"""Effects on ordinary days; see `vmbk.service.planner_measure.Measures`."""


@dataclass(frozen=True)
class Rule:
    """One best practice.

    Attributes
    ----------
    name : str
    eras : tuple of str
        In which it holds.
    severity : str
        One of `SEVERITIES`.
    source, reason, todo : str
    limit : str or None
        Name of its number in ``limits.toml``.
    """

    name: str
    eras: tuple[str, ...]
    severity: str
    source: str
    reason: str
    todo: str
    limit: str | None

    @classmethod
    def parse(cls, declared: Any, name: str) -> Rule:
        """A declared rule."""
        f = Fields(declared, name, ("eras", "severity", "source", "reason", "todo", "limit"))
        eras = f.words("eras")
        if not eras or not set(eras) <= set(PROFILES):
            raise f.fail("eras", f"are not of {', '.join(PROFILES)}")
        if name not in CHECKS:
            raise InputError(f"{name}: nothing checks this rule")
        return cls(
            name, eras, f.choice("severity", SEVERITIES), f.text("source"), f.text("reason"),
            f.text("todo"), f.text("limit", None),
        )  # fmt: skip


@cache
def rules() -> tuple[Rule, ...]:
    """The rules that come with vmbk."""
    text = resources.files("vmbk.service").joinpath("advice.toml").read_text(encoding="utf-8")
    return tuple(Rule.parse(each, name) for name, each in tomllib.loads(text).items())


@dataclass(frozen=True, eq=False)
class Advice:
    """What the rules found.

    Attributes
    ----------
    frame : polars.DataFrame
        One row a finding, warnings first: ``finding`` (its number), ``rule``, ``era``,
        ``severity``, ``what`` (found, with its numbers), ``targets``, ``todo``, ``reason``,
        ``source``, ``effect`` (in words; "" where none was simulated).
    effects : polars.DataFrame
        One row a finding and number: ``finding``, ``rule``, ``measure``, ``before``, ``after``.
        Measures are those of ordinary days (`SHOWN`), ``longest_s``, ``failed`` and ``fallbacks``
        of the whole scenario with its events, and what a rule has of its own.
    """

    frame: pl.DataFrame
    effects: pl.DataFrame

    def of(self, rule: str) -> pl.DataFrame:
        """The findings of one rule.

        Raises
        ------
        InputError
            If there is no such rule.
        """
        if rule not in CHECKS:
            raise InputError(f"there is no rule {quoted(rule)}", hint=", ".join(CHECKS))
        return self.frame.filter(pl.col("rule") == rule)

    def effect(self, rule: str, measure: str) -> tuple[float, float]:
        """A number before and after, of the rule's first finding that has it.

        Raises
        ------
        InputError
            If none has.
        """
        found = self.effects.filter((pl.col("rule") == rule) & (pl.col("measure") == measure))
        if not len(found):
            raise InputError(f"there is no effect {quoted(measure)} of rule {quoted(rule)}")
        row = found.row(0, named=True)
        return row["before"], row["after"]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"findings": self.frame.to_dicts(), "effects": self.effects.to_dicts()}

    def _repr_html_(self) -> str:
        shown = self.frame.select("severity", "rule", "what", "todo", "effect", "source").head(100)
        header = ("severity", "rule", "found", "what to do", "effect", "source")
        return table(f"Advice: {counted(len(self.frame), 'finding')}", header, shown.rows())


def advise(
    scenario: Declared, simulate_effects: bool = True, *, only: tuple[str, ...] | None = None
) -> Advice:
    """Check the best practices of the scenario's era.

    Parameters
    ----------
    scenario : Scenario, Mapping, or path
    simulate_effects : bool
        Whether to simulate what following each advice brings.
    only : tuple of str, optional
        Names of the rules to check; all of the era unless told.

    Returns
    -------
    Advice

    Raises
    ------
    InputError
        If there is no such rule.
    """
    scenario = Scenario.of(scenario)
    for name in only or ():
        if name not in CHECKS:
            raise InputError(f"there is no rule {quoted(name)}", hint=", ".join(CHECKS))
    case = Case(scenario, simulate_effects)
    wanted = [
        rule
        for rule in rules()
        if scenario.profile.name in rule.eras and (only is None or rule.name in only)
    ]
    wanted.sort(key=lambda rule: SEVERITIES.index(rule.severity))
    effects = _Effects(case)
    rows: list[dict[str, Any]] = []
    numbers: list[tuple[int, str, str, float, float]] = []
    with progress("advise", len(wanted), unit="rules") as advance:
        for rule in wanted:
            for hit in CHECKS[rule.name](case):
                found = effects.of(hit) if simulate_effects else {}
                for name, (before, after) in found.items():
                    numbers.append((len(rows), rule.name, name, float(before), float(after)))
                rows.append(
                    {
                        "finding": len(rows), "rule": rule.name, "era": scenario.profile.name,
                        "severity": rule.severity, "what": hit.finding,
                        "targets": list(hit.targets), "todo": rule.todo, "reason": rule.reason,
                        "source": rule.source, "effect": _words(found),
                    }
                )  # fmt: skip
            advance(1)
    text = dict.fromkeys(("rule", "era", "severity", "what"), pl.String)
    more = dict.fromkeys(("todo", "reason", "source", "effect"), pl.String)
    schema: dict[str, Any] = {"finding": pl.Int64, **text, "targets": pl.List(pl.String), **more}
    effect_schema: dict[str, Any] = {
        "finding": pl.Int64, "rule": pl.String, "measure": pl.String, "before": pl.Float64,
        "after": pl.Float64,
    }  # fmt: skip
    return Advice(
        pl.DataFrame(rows, schema=schema),
        pl.DataFrame(numbers, schema=effect_schema, orient="row"),
    )


class _Effects:
    """Simulates hits; the scenario itself only once."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.warm = 0
        self.plain: Simulation | None = None

    def of(self, hit: Hit) -> dict[str, tuple[float, float]]:
        """Each number before and after."""
        found = dict(hit.numbers)
        if hit.changed is None:
            return found
        if hit.span == "whole":
            both = (self.case.simulation, simulate(hit.changed))
            first, second = (_whole(each, hit.only) for each in both)
            return found | {name: (first[name], second[name]) for name in first}
        if self.plain is None:
            scenario = self.case.scenario
            # A day more than what first backups take, whose first day is yet another schedule's.
            tried = simulate(ordinary(scenario, 7))
            self.warm = warm_days(tried.plan, tried.outputs) + 1
            days = ordinary(scenario, self.warm + DAYS + 1)
            self.plain = simulate(days, disks=True)
        changed = simulate(ordinary(hit.changed, self.plain.scenario.days), disks=True)
        before, after = (self._measure(each) for each in (self.plain, changed))
        found |= {
            name: (getattr(before, name), getattr(after, name))
            for name in SHOWN
            if getattr(before, name) or getattr(after, name)
        }
        if hit.only:
            mean, new_mean = (_mean(each, hit.only, self.warm) for each in (self.plain, changed))
            found["mean_of_these_s"] = (mean, new_mean)
        return found

    def _measure(self, found: Simulation) -> Measures:
        late = found.scenario.profile["late"]
        return measure(found.plan, found.outputs, self.warm, DAYS, late)


def _whole(found: Simulation, only: tuple[str, ...]) -> dict[str, float]:
    """Numbers of some VMs over a whole scenario."""
    jobs = found.jobs.filter(pl.col("vm").cast(pl.String).is_in(list(only)))
    done = jobs.filter((pl.col("transfer") == "done") & (pl.col("job") > 0))
    longest = done.select((pl.col("end_ns") - pl.col("start_ns")).max()).item() or 0
    return {
        "longest_s": longest / SECOND,
        "failed": float((jobs["transfer"] == "failed").sum()),
        "fallbacks": float(jobs["fallback"].sum()),
    }


def _mean(found: Simulation, only: tuple[str, ...], warm: int) -> float:
    """Mean scan and send of some VMs' jobs, in seconds."""
    jobs = found.jobs.filter(
        pl.col("vm").cast(pl.String).is_in(list(only))
        & (pl.col("transfer") == "done") & (pl.col("job") >= warm)
    )  # fmt: skip
    mean = jobs.select((pl.col("scan_ns") + pl.col("send_ns")).mean()).item()
    return float(mean or 0.0) / SECOND


_TOLD: Final = {
    "makespan_s": "makespan", "mean_s": "mean job", "p95_s": "95 % of jobs", "late": "late jobs",
    "missed": "missed jobs", "peak_egress": "peak egress", "peak_requests": "peak requests",
    "lost_s": "lost at caps a day", "longest_s": "longest later backup", "failed": "failed",
    "fallbacks": "checksum backups", "mean_of_these_s": "reading and sending of these",
}  # fmt: skip


def _words(found: dict[str, tuple[float, float]]) -> str:
    """Effects for people: those that change."""
    said = []
    for name, (before, after) in found.items():
        if abs(before - after) <= 1e-3 * max(abs(before), abs(after)):
            continue
        label, both = _TOLD.get(name, name), (before, after)
        if name.endswith(("_s", "seconds")):
            told_both = [format_duration(each) for each in both]
            label = label.removesuffix(", seconds")
        elif name.startswith("bytes"):
            told_both = [format_size(each) for each in both]
            label = label.removeprefix("bytes of ")
        elif name.startswith("peak"):
            told_both = [f"{each:.0%}" for each in both]
        else:
            told_both = [f"{each:,.0f}" if each == round(each) else f"{each:,.3g}" for each in both]
        said.append(f"{label} {told_both[0]} → {told_both[1]}")
    return "; ".join(said) if said else ("no change" if found else "")
