"""A better schedule for a fleet: what to change, and what it brings, shown by simulation.

What may change is when a VM is backed up (VMs of one policy are split over several, each with its
own time) and where its disks live. Found as `vmbk.service.planner_search` says, then judged by the
simulation of the scenario itself, under its own seed and with its failures, before and after. A
schedule of which any number of `vmbk.service.planner_measure.NEVER_WORSE` is higher than before is
not proposed: then the answer is that nothing better was found.

The makespan is the time from the first scheduled slot of a day to the end of the day's last job;
a day begins at the first slot after the schedule's longest pause.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.service.capacity import vault_slots
from vmbk.service.engine import simulate_fast
from vmbk.service.flows import busiest_change, disk_column, transfers
from vmbk.service.layout import plan_of
from vmbk.service.limits import shipped as shipped_limits
from vmbk.service.planner_changes import apply_layout, layout_changes
from vmbk.service.planner_measure import Measures, measure, ordinary, worse
from vmbk.service.planner_search import (
    Layout,
    Trials,
    balance,
    budget,
    candidates,
    improve,
    off_peak,
    score,
)
from vmbk.service.planner_static import Rules
from vmbk.service.scenario import Declared, Scenario
from vmbk.service.schedule import MINUTE_NS
from vmbk.units import format_duration, parse_duration, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmbk.service.calibration import Calibration

    Int64s = NDArray[np.int64]

MOVES: Final = (False, True, "managed")
MEASURED_DAYS: Final = 3
"""Of a fleet with daily policies; with weekly ones a week is measured."""

MOST_TRIED: Final = 9
"""Layouts that are judged on the scenario itself before nothing better is said to be found."""


@dataclass(frozen=True, eq=False)
class PlannedSchedule:
    """A schedule and what it brings.

    Attributes
    ----------
    scenario : Scenario
        With the new policies, times and accounts; the old one where nothing better was found.
    before, after : Measures
        Of the same ordinary days.
    changes : polars.DataFrame
        One row a VM or disk that changes: ``vm``, ``disk`` (null: the VM's time), ``change``
        ("time", "account", "managed"), ``old``, ``new``, ``policy`` (new one), ``reason``.
    policies : polars.DataFrame
        One row a policy of the new scenario that is new or has another time: ``policy``, ``from``,
        ``clock``, ``vms``.
    steps : polars.DataFrame
        What each kind of change brings alone: ``step`` ("before", "times only", "moves only",
        "all") and the measures.
    window : tuple of int
        Minutes of the day at which VMs could be scheduled.
    notes : tuple of str
        What could not be kept, or why nothing changed.
    trials : int
        Simulations that the search took.
    seconds : float
    """

    scenario: Scenario
    before: Measures
    after: Measures
    changes: pl.DataFrame
    policies: pl.DataFrame
    steps: pl.DataFrame
    window: tuple[int, ...]
    notes: tuple[str, ...]
    trials: int
    seconds: float

    @property
    def improved(self) -> bool:
        """Whether anything is to be changed."""
        return len(self.changes) > 0

    @property
    def ratio(self) -> float:
        """Makespan before over makespan after; 1 where nothing is to be changed."""
        if not self.after.makespan_s:
            return 1.0
        return self.before.makespan_s / self.after.makespan_s

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "improved": self.improved,
            "ratio": self.ratio,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "changes": self.changes.to_dicts(),
            "policies": self.policies.to_dicts(),
            "steps": self.steps.to_dicts(),
            "window": list(self.window),
            "notes": list(self.notes),
            "trials": self.trials,
            "seconds": self.seconds,
        }

    def to_toml(self) -> str:
        """The changes as TOML that a person can read and carry out, from top to bottom."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        before, after = self.before, self.after
        yield f"# Changes to the scenario {json.dumps(self.scenario.name, ensure_ascii=False)}."
        yield f"# A day's jobs end {_told(after.makespan_s)} after the first slot instead of"
        yield f"# {_told(before.makespan_s)}: {self.ratio:.2f} times as fast."
        for note in self.notes:
            yield f"# {note}"
        for row in self.policies.iter_rows(named=True):
            yield ""
            yield "[[policies]]"
            yield f"name = {json.dumps(row['policy'])}"
            yield f"like = {json.dumps(row['from'])}"
            yield f"at = {json.dumps(row['clock'])}"
        for row in self.changes.iter_rows(named=True):
            yield ""
            yield "[[changes]]"
            for key in ("vm", "disk", "change", "old", "new", "policy", "reason"):
                if row[key] is not None:
                    yield f"{key} = {json.dumps(row[key])}"

    def _repr_html_(self) -> str:
        both = (self.before, self.after)
        rows = [
            (name, *(_show(name, getattr(each, field)) for each in both)) for name, field in _SHOWN
        ]
        title = (
            f"{self.scenario.name}: a day's jobs end {self.ratio:.2f} times as fast"
            if self.improved
            else f"{self.scenario.name}: nothing better was found"
        )
        html = table(title, ("", "before", "after"), rows)
        steps = [
            (s["step"], _told(s["makespan_s"]), _told(s["mean_s"]), f"{s['peak_egress']:.0%}",
             f"{s['peak_requests']:.0%}", _told(s["lost_s"]))
            for s in self.steps.iter_rows(named=True)
        ]  # fmt: skip
        header = ("step", "makespan", "mean job", "peak egress", "peak requests", "lost a day")
        html += table("What each kind of change brings", header, steps)
        if self.improved:
            html += table("Policies", ("policy", "like", "at", "VMs"), self.policies.rows())
            columns = ("VM", "disk", "change", "from", "to", "policy", "reason")
            told = [["" if cell is None else cell for cell in row] for row in
                    self.changes.sort(pl.col("change") == "time").head(50).rows()]  # fmt: skip
            more = f" (the first 50 of {len(self.changes)})" if len(self.changes) > 50 else ""
            html += table(f"Changes{more}", columns, told)
        notes = [(note,) for note in self.notes]
        return html + (table("Notes", ("",), notes) if notes else "")


_UNJUDGED: Final = 1 << 30
"""Rules broken by a layout whose times are the old ones."""

_SHOWN: Final = (
    ("makespan", "makespan_s"), ("longest makespan", "longest_makespan_s"), ("mean job", "mean_s"),
    ("95 % of jobs", "p95_s"), ("late jobs", "late"), ("missed jobs", "missed"),
    ("peak egress", "peak_egress"), ("peak requests", "peak_requests"),
    ("throttled a day", "throttled_s"), ("lost a day", "lost_s"),
)  # fmt: skip


def plan_schedule(
    scenario: Declared,
    *,
    move_disks: bool | str = True,
    window: str | None = None,
    step: str | float = "30m",
    seed: int = 0,
    trials: int | None = None,
    penalties: Calibration | None = None,
) -> PlannedSchedule:
    """A better schedule for a fleet, verified by simulation.

    Parameters
    ----------
    scenario : Scenario, Mapping, or path
    move_disks : bool or str
        True: disks may move between the accounts that there are; the guests' load, which is
        declared of accounts, stays where it is. ``"managed"``: VMs with disks in overloaded
        accounts become managed ones instead. False: disks stay.
    window : str, optional
        In which backups may be scheduled: ``"22:00-06:00"``. Unless told it is off-peak: see
        `vmbk.service.planner_search.off_peak`.
    step : str or number of seconds
        Times are multiples of it from the window's beginning; the portal offers half hours.
    seed : int
        Of the search. The scenario's own seed is not used in it.
    trials : int, optional
        Layouts that are tried at most, at least 8; as many as suit the fleet's size unless told.
    penalties : Calibration, optional

    Returns
    -------
    PlannedSchedule

    Raises
    ------
    InputError
        If an argument is not what it must be.
    """
    scenario = Scenario.of(scenario)
    started = time.perf_counter()
    if move_disks not in MOVES:
        raise InputError(f"move_disks: {quoted(move_disks)} is not one of False, True, 'managed'")
    grid = parse_duration(step)
    if not MINUTE_NS <= grid <= 6 * 60 * MINUTE_NS or grid % MINUTE_NS:
        raise InputError(f"step: {quoted(step)} is not a whole number of minutes up to 6 hours")
    tries = budget(len(scenario.vms), 12, 250) if trials is None else trials
    if type(tries) is not int or not 8 <= tries <= 100_000:
        raise InputError(f"trials: {quoted(trials)} is not a whole number from 8 to 100,000")
    movable = [scenario.policies[vm.policy].schedule.frequency != "hourly" for vm in scenario.vms]
    weekly = any(scenario.policies[vm.policy].schedule.frequency == "weekly" for vm in scenario.vms)
    days = 7 if weekly else MEASURED_DAYS
    runs = Trials(scenario, movable, days, penalties)
    plan = plan_of(scenario, penalties)
    account = disk_column(plan, "account")
    slots = np.where(movable, vault_slots(scenario) // MINUTE_NS, -1)
    now = Layout(slots, account)
    runs.prepare(now)
    before_runs, _ = runs.run(now)
    hours = _hours(window) if window is not None else off_peak(scenario, plan)
    minutes = _window_slots(window, grid) if window is not None else _hour_slots(hours, grid)
    notes: list[str] = []
    rules = Rules.of(scenario)
    minutes = _within_limits(scenario, minutes, notes)
    homes = {"times only": account}
    if move_disks == "managed":
        homes["all"] = _managed(scenario, plan, account)
    elif move_disks:
        work = transfers(plan, "incremental", busiest_change(scenario, plan))
        homes["all"] = balance(plan, scenario, work, hours)
    order = (homes, before_runs, minutes, rules, np.random.default_rng(seed), now)
    layouts = _search(runs, *order, tries if any(movable) else 0)
    found = _verify(scenario, runs, now, layouts, penalties, notes)
    layout, new, before, after, steps = found
    changes, policies = layout_changes(scenario, new, plan, now, layout)
    return PlannedSchedule(
        new, before, after, changes, policies, steps, tuple(int(m) % 1440 for m in minutes),
        tuple(notes), runs.count, time.perf_counter() - started,
    )  # fmt: skip


def _search(
    trials: Trials, homes: dict[str, Int64s], before: list[Measures], minutes: Int64s,
    rules: Rules, rng: np.random.Generator, now: Layout, tries: int,
) -> list[tuple[str, Layout, int]]:  # fmt: skip
    """Layouts from the best on, of all kinds of changes."""
    ranked: list[tuple[int, float, int, str, Layout]] = []
    if "all" in homes and not np.array_equal(homes["all"], now.accounts):
        moves = Layout(now.slots, homes["all"])
        ranked.append((_UNJUDGED, score(trials.run(moves)[0], before), 0, "moves only", moves))
    else:
        homes = {"times only": homes["times only"]}
    kinds = homes if tries else {}
    own_tries = max(tries // max(len(kinds), 1), 4)
    laid, steps = own_tries * 3 // 8, own_tries * 5 // 8
    with progress("plan", len(kinds) * (laid + 1), unit="layouts") as advance:
        for kind, accounts in kinds.items():
            own: list[tuple[int, float, int, str, Layout]] = []
            given = candidates(trials, accounts, minutes, rules, laid)
            for n, (broken, layout) in enumerate(given):
                own.append((broken, score(trials.run(layout)[0], before), n, kind, layout))
                advance(1)
            own.sort(key=lambda each: each[:3])
            best, value = improve(trials, own[0][4], before, minutes, rules, rng, steps)
            ranked.append((own[0][0], value, -1, kind, best))
            ranked += own[:3]
            advance(1)
    # Those that keep the rules of thumb come first; moves alone, which may not, come last.
    ranked.sort(key=lambda each: (min(each[0], 1) + (each[0] == _UNJUDGED), each[1]))
    return [(kind, layout, broken) for broken, _, _, kind, layout in ranked]


def _verify(
    scenario: Scenario, trials: Trials, now: Layout, layouts: list[tuple[str, Layout, int]],
    penalties: Calibration | None, notes: list[str],
) -> tuple[Layout, Scenario, Measures, Measures, pl.DataFrame]:  # fmt: skip
    """The first layout that is better on the scenario itself, and in no number worse."""
    first, days = trials.warm, trials.days

    def real(changed: Scenario) -> Measures:
        plan = plan_of(ordinary(changed, first + days + 1), penalties)
        outputs = simulate_fast(plan, parts=True)
        trials.count += 1
        return measure(plan, outputs, first, days, trials.late)

    before = real(scenario)
    steps: list[tuple[str, Measures]] = [("before", before)]
    why: tuple[str, ...] = ()
    for kind, layout, broken in layouts[:MOST_TRIED]:
        new = apply_layout(scenario, now, layout)
        after = real(new)
        why = worse(after, before)
        gain = score([after], [before]) < score([before], [before]) - 1e-3
        if why or not gain:
            continue
        if kind == "all":
            for name, part in (
                ("times only", Layout(layout.slots, now.accounts)),
                ("moves only", Layout(now.slots, layout.accounts)),
            ):
                steps.append((name, real(apply_layout(scenario, now, part))))
        steps.append((kind, after))
        if 0 < broken < _UNJUDGED:
            notes.append(f"{broken} machines are at times at which there are more than advised")
        return layout, new, before, after, _steps(steps)
    reason = f" (worse: {', '.join(why)})" if why else ""
    notes.append(f"nothing better was found than the schedule that there is{reason}")
    return now, scenario, before, before, _steps(steps)


def _steps(steps: list[tuple[str, Measures]]) -> pl.DataFrame:
    return pl.DataFrame([{"step": name, **found.to_dict()} for name, found in steps])


def _managed(scenario: Scenario, plan: Any, account: Int64s) -> Int64s:
    """VMs with a disk in an account that the schedule overloads get managed disks."""
    from vmbk.service.capacity import capacity

    shares = capacity(scenario).accounts["share"].to_numpy()
    full = np.flatnonzero(shares > 1)
    vm = disk_column(plan, "vm")
    moved = np.isin(vm, vm[np.isin(account, full)])
    return np.where(moved, -1, account)


def _within_limits(scenario: Scenario, minutes: Int64s, notes: list[str]) -> Int64s:
    """Fewer slots where a vault would get more policies than it may have."""
    most = shipped_limits().value("policies_per_vault", scenario.profile.name)
    if most is None:
        return minutes
    of: dict[str, set[str]] = {}
    for vm in scenario.vms:
        of.setdefault(vm.vault, set()).add(vm.policy)
    policies = max(len(names) for names in of.values())
    slots = max(most // policies, 1)
    if slots >= len(minutes):
        return minutes
    chosen = np.unique(np.linspace(0, len(minutes) - 1, slots).astype(np.int64))
    notes.append(f"{len(chosen)} times only, so that no vault gets more than {most} policies")
    return minutes[chosen]


def _hours(window: str) -> list[int]:
    begin, end = _ends(window)
    first = begin // 60
    count = max(-(-(end - first * 60) // 60), 1)
    return sorted({(first + i) % 24 for i in range(count)})


def _ends(window: str) -> tuple[int, int]:
    """Minutes at which a window begins, and ends: later, maybe on the next day."""
    parts = window.split("-") if isinstance(window, str) else []
    times = []
    for part in parts:
        hours, colon, minutes = part.strip().partition(":")
        good = colon and len(minutes) == 2 and f"{hours}{minutes}".isdecimal() and len(hours) <= 2
        if not good or not f"{hours}{minutes}".isascii() or int(minutes) > 59:
            break
        times.append(int(hours) * 60 + int(minutes))
    good = len(times) == len(parts) == 2 and times[0] < 1440 and times[1] <= 1440
    if not good or times[0] == times[1]:
        raise InputError(
            f"window: {quoted(window)} is not a span of the day", hint='such as "22:00-06:00"'
        )
    return times[0], times[1] if times[1] > times[0] else times[1] + 1440


def _window_slots(window: str, grid: int) -> Int64s:
    begin, end = _ends(window)
    return np.arange(begin, end, grid // MINUTE_NS, dtype=np.int64)


def _hour_slots(hours: list[int], grid: int) -> Int64s:
    """Times in some hours, from the hour after the longest pause on."""
    step = grid // MINUTE_NS
    minutes = np.array([m for m in range(0, 1440, step) if m // 60 in set(hours)], np.int64)
    if not len(minutes):
        minutes = np.array([hours[0] * 60], np.int64)
    pauses = np.diff(minutes, append=minutes[0] + 1440)
    first = (int(np.argmax(pauses)) + 1) % len(minutes)
    return np.concatenate((minutes[first:], minutes[:first] + 1440))


def _told(seconds: float) -> str:
    return format_duration(seconds)


def _show(name: str, value: float) -> str:
    if name.startswith("peak"):
        return f"{value:.0%} of the cap"
    return str(value) if isinstance(value, int) else format_duration(value)
