"""The search behind `vmbk.service.planner`: where disks live, and when machines are backed up.

Three steps, all from one seed. Disks are moved from the fullest account to the emptiest while that
helps. Machines get their slots one after the other, the longest first, each where it delays the end
of the night least on a static model (mean waits, loads by quarter of an hour): longest processing
time first. The best of several such layouts is then improved by moving single machines, judged by
the real simulation under other seeds than the scenario's own and without failures, so that what is
found does not lean on the scenario's luck.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from vmbk.service.engine import simulate_fast
from vmbk.service.failures import FailureModel
from vmbk.service.flows import Transfers, busiest_change, disk_column, transfers
from vmbk.service.layout import plan_of
from vmbk.service.plan import DAY, DISK, HOUR, JOB, RULES, VM, Plan
from vmbk.service.planner_measure import Measures, held, measure, ordinary, warm_days, worse
from vmbk.service.planner_static import Counts, Rules, StaticModel
from vmbk.service.schedule import MINUTE_NS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmbk.service.calibration import Calibration
    from vmbk.service.scenario import Scenario

    Int64s = NDArray[np.int64]
    Floats = NDArray[np.float64]

WEIGHTS: Final = {"makespan_s": 1.0, "mean_s": 0.25, "lost_s": 0.5, "peak": 0.25}
"""What the search makes small: each number over what it was before, times its weight. Late and
missed jobs, and anything that is worse than before, weigh 1 each."""

SEEDS: Final = 2
"""Other seeds under which a layout is judged."""

_CARES: Final = (0.4, math.inf, 0.1, 1.0)
"""How much an account's falling behind counts beside the night's end, in the layouts tried; see
`vmbk.service.planner_static.StaticModel.assign`."""

_BUDGET: Final = 50_000
"""VMs that all trials together simulate, about: a small fleet is searched longer."""


@dataclass(frozen=True, eq=False)
class Layout:
    """A schedule, and where disks are.

    Attributes
    ----------
    slots : numpy.ndarray of int64, shape (VMs,)
        Minute of the day; -1 for a VM of a policy that is not moved.
    accounts : numpy.ndarray of int64, shape (disks,)
        Index of each disk's account, -1 managed.
    """

    slots: Int64s
    accounts: Int64s


class Trials:
    """Simulates layouts of one scenario and keeps count.

    Parameters
    ----------
    scenario : Scenario
    movable : sequence of bool
        Which VMs' times may change.
    days : int
        That are measured.
    penalties : Calibration or None
    """

    def __init__(
        self, scenario: Scenario, movable: Sequence[bool], days: int, penalties: Calibration | None
    ) -> None:
        self.scenario, self.days = scenario, days
        self.movable = np.array(movable, bool)
        vms = tuple(
            replace(vm, stagger=0) if moves else vm
            for vm, moves in zip(scenario.vms, movable, strict=True)
        )
        policies = {
            name: policy
            if policy.schedule.frequency == "hourly"
            else replace(policy, schedule=replace(policy.schedule, at=0))
            for name, policy in scenario.policies.items()
        }
        self.base = replace(
            scenario, vms=vms, policies=policies,
            failures=FailureModel.never(scenario.profile.name),
        )  # fmt: skip
        self.penalties = penalties
        self.late = scenario.profile["late"]
        self.warm = 1
        self.count = 0
        self._plans: dict[bool, Plan] = {}

    def plan(self, layout: Layout, seed: int) -> Plan:
        """The layout as a plan; a disk that left its account is as a managed one."""
        managed = self._plan(False)
        kept = self._plan(True)
        disks = np.where((layout.accounts < 0)[:, None], managed.disks, kept.disks)
        disks[:, DISK.index("account")] = layout.accounts
        vms = kept.vms.copy()
        column = vms[:, VM.index("offset")]
        column[self.movable] = layout.slots[self.movable] * MINUTE_NS
        rules = kept.rules.copy()
        rules[RULES.index("seed")] = seed
        return replace(kept, vms=vms, disks=disks, rules=rules)

    def _plan(self, accounts: bool) -> Plan:
        if accounts not in self._plans:
            scenario = ordinary(self.base, self.warm + self.days + 1)
            if not accounts:
                vms = tuple(
                    replace(vm, disks=tuple(replace(disk, account=None) for disk in vm.disks))
                    for vm in scenario.vms
                )
                scenario = replace(scenario, vms=vms)
            self._plans[accounts] = plan_of(scenario, self.penalties)
        return self._plans[accounts]

    def prepare(self, layout: Layout) -> None:
        """Find out for how long the first backups take, from the schedule that there is."""
        for _ in range(3):
            plan = self.plan(layout, self.scenario.seed + 1)
            outputs = simulate_fast(plan)
            warm = warm_days(plan, outputs)
            self.count += 1
            if warm <= self.warm:
                break
            self.warm = warm
            self._plans.clear()

    def run(self, layout: Layout) -> tuple[list[Measures], Floats]:
        """Measures under each seed, and each VM's latest end, ns into the day."""
        found = []
        ends = np.zeros(len(self.scenario.vms))
        for n in range(1, SEEDS + 1):
            plan = self.plan(layout, (self.scenario.seed + n) % (1 << 63))
            outputs = simulate_fast(plan, parts=True)
            found.append(measure(plan, outputs, self.warm, self.days, self.late))
            jobs = outputs.jobs
            since = jobs[:, JOB.index("scheduled")] // DAY * DAY
            vm = np.repeat(np.arange(len(ends)), np.diff(plan.job_first))
            later = since >= self.warm * DAY
            np.maximum.at(ends, vm[later], (jobs[:, JOB.index("end")] - since)[later])
            self.count += 1
        return found, ends


def score(found: Sequence[Measures], before: Sequence[Measures]) -> float:
    """What is made small; the schedule that there was has 2 at most."""
    total = 0.0
    for now, was in zip(found, before, strict=True):
        peak, old_peak = (max(held(m, "peak_egress"), held(m, "peak_requests")) for m in (now, was))
        # A loss of a hundredth of the night is as bad as all that there was, if that was less.
        lost = now.lost_s / max(was.lost_s, was.makespan_s / 100, 1e-9)
        total += WEIGHTS["makespan_s"] * now.makespan_s / max(was.makespan_s, 1e-9)
        total += WEIGHTS["mean_s"] * now.mean_s / max(was.mean_s, 1e-9)
        total += WEIGHTS["lost_s"] * lost + WEIGHTS["peak"] * peak / old_peak
        total += now.late + now.missed + len(worse(now, was))
    return total / len(found)


def balance(plan: Plan, scenario: Scenario, work: Transfers, hours: Sequence[int]) -> Int64s:
    """Accounts of all disks after moving some from full accounts to empty ones.

    An account is as full as the time that its disks' bytes, or requests, would take at what its
    guests leave in these hours. Disks move from the fullest account to the emptiest of a kind that
    may take them, each time the one that lowers the fuller of both most, until the fullest is
    within a fiftieth of the mean. Premium disks stay on premium accounts, and others off them.
    """
    account: Int64s = disk_column(plan, "account").copy()
    specs = list(scenario.accounts.values())
    if len(specs) < 2:
        return account
    caps = plan.accounts.astype(np.float64)
    guests = np.stack((plan.guest_egress, plan.guest_requests), axis=2)[:, list(hours)].mean(axis=1)
    free = np.maximum(caps - guests, caps / 50)
    amount = np.stack(
        (
            (work.read + work.changed).astype(np.float64),
            (work.scan.requests * work.scan.work + work.send.requests * work.send.work) / 1e9,
        ), axis=1,
    )  # fmt: skip
    kind = np.array([int(spec.kind == "premium") for spec in specs])
    fixed = np.zeros(len(account), bool)
    for family in (0, 1):
        group = np.flatnonzero(kind == family)
        if len(group) < 2:
            continue
        for _ in range(len(account)):
            load = np.zeros((len(specs), 2))
            on = account >= 0
            np.add.at(load, account[on], amount[on])
            times = (load / free).max(axis=1)
            full, empty = group[times[group].argmax()], group[times[group].argmin()]
            disks = np.flatnonzero((account == full) & ~fixed)
            if not len(disks):
                break
            there = ((load[empty] + amount[disks]) / free[empty]).max(axis=1)
            here = ((load[full] - amount[disks]) / free[full]).max(axis=1)
            after = np.maximum(there, here)
            best = int(after.argmin())
            even = times[full] <= 1.02 * times[group].mean()
            if even or after[best] >= times[full] * (1 - 1e-6):
                break
            account[disks[best]] = empty
            fixed[disks[best]] = True  # no disk moves twice
    return account


def candidates(
    trials: Trials, accounts: Int64s, window: Int64s, rules: Rules, most: int
) -> list[tuple[int, Layout]]:
    """Layouts of several parts of the window, and how often each breaks a rule.

    Parameters
    ----------
    window : numpy.ndarray of int64
        Minutes at which machines may be scheduled, ascending from the window's beginning.
    most : int
        Layouts at most.
    """
    plan = trials.plan(Layout(np.zeros(len(trials.movable), np.int64), accounts), 0)
    work = transfers(plan, "incremental", busiest_change(trials.base, plan))
    static = StaticModel(plan, trials.base, work, accounts)
    parts = _parts(len(window), -(-most // len(_CARES)))
    found: list[tuple[int, Layout]] = []
    seen = set()
    for (first, last), care in itertools.product(parts, _CARES):
        slots, broken = static.assign(window[first:last], trials.movable, rules, care)
        if slots.tobytes() not in seen:
            seen.add(slots.tobytes())
            found.append((broken, Layout(slots, accounts)))
    return found


def _parts(n: int, most: int) -> list[tuple[int, int]]:
    """Parts of a window of n slots: all of it, then shorter ones from several beginnings on."""
    lengths = sorted({n, *(max(n * k // 8, 1) for k in (1, 2, 4)), 1, min(4, n)}, reverse=True)
    found = []
    for length in lengths:
        step = max(length // 2, -(-n // 12), 1)
        found += [(first, first + length) for first in range(0, n - length + 1, step)]
    return found[:: max(1, -(-len(found) // max(most, 1)))]


def improve(
    trials: Trials, layout: Layout, before: list[Measures], window: Int64s, rules: Rules,
    rng: np.random.Generator, steps: int,
) -> tuple[Layout, float]:  # fmt: skip
    """Local search: some of the machines that end last go elsewhere, mostly to earlier times.

    A step that breaks a rule which holds is not tried; one that does not lower the score is undone.
    """
    found, ends = trials.run(layout)
    best = score(found, before)
    minutes = {int(minute) % (24 * 60): i for i, minute in enumerate(window)}
    counts = Counts(
        rules, trials.scenario.vms, trials.plan(layout, 0).vms[:, VM.index("vault")],
        trials.plan(layout, 0), layout.accounts, window,
    )  # fmt: skip
    movable = np.flatnonzero(trials.movable)
    for v in movable.tolist():
        counts.add(v, minutes[int(layout.slots[v])])
    if len(movable) < 1 or len(window) < 2:
        return layout, best
    for _ in range(steps):
        slots = layout.slots.copy()
        late = movable[np.argsort(-ends[movable], kind="stable")][: max(3, len(movable) // 6)]
        for v in rng.choice(late, min(int(rng.geometric(0.4)), len(late)), replace=False).tolist():
            was = minutes[int(slots[v])]
            counts.add(v, was, -1)
            free = np.flatnonzero(counts.allowed(v))
            # Mostly to an earlier time: what ends last makes the night long.
            earlier = free[free < was]
            if len(earlier) and rng.random() < 0.8:
                free = earlier
            slot = int(rng.choice(free)) if len(free) else was
            counts.add(v, slot)
            slots[v] = window[slot] % (24 * 60)
        tried = Layout(slots, layout.accounts)
        if np.array_equal(slots, layout.slots):
            continue
        found, new_ends = trials.run(tried)
        value = score(found, before)
        if value < best - 1e-9:
            layout, best, ends = tried, value, new_ends
            continue
        for v in np.flatnonzero(slots != layout.slots).tolist():
            counts.add(v, minutes[int(slots[v])], -1)
            counts.add(v, minutes[int(layout.slots[v])])
    return layout, best


def hour_costs(scenario: Scenario, plan: Plan) -> Floats:
    """How bad each hour of the day is for backups: float64[24].

    The mean share that guests ask for of the accounts that are used, and the hour's place on the
    profile's queue curve, from 0 to 1 where the longest wait is 8 hours.
    """
    account = disk_column(plan, "account")
    used = np.unique(account[account >= 0])
    peak = scenario.profile["queue_peak"] / (8 * HOUR)
    cost: Floats = plan.queue_curve / 1000 * min(peak, 1.0)
    if len(used):
        caps = np.maximum(plan.accounts[used], 1)
        egress = plan.guest_egress[used] / caps[:, :1]
        requests = plan.guest_requests[used] / caps[:, 1:]
        cost = cost + np.maximum(egress, requests).mean(axis=0)
    return cost


def off_peak(scenario: Scenario, plan: Plan) -> list[int]:
    """Hours in which guests ask for least of the accounts, and waits are short: those of which the
    cost is in the lowest quarter of the range; all where hours do not differ.
    """
    cost = hour_costs(scenario, plan)
    bound = cost.min() + 0.25 * (cost.max() - cost.min())
    found: list[int] = np.flatnonzero(cost <= bound + 1e-12).tolist()
    return found


def budget(vms: int, least: int, most: int) -> int:
    """How many trials a fleet of so many VMs gets."""
    return int(np.clip(_BUDGET // max(vms, 1), least, most))
