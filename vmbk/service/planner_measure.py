"""What a schedule comes to: numbers of ordinary days, taken from a simulation.

The first days, with the first backups, are left out; so are events (keys rotated, snapshots
deleted, backups on demand). A disk that is added later is there from the beginning.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmbk.service.load import account_load
from vmbk.service.plan import (
    DAY,
    JOB,
    SECOND,
    SKIPPED,
    TRANSFER_DONE,
    TRANSFER_SKIPPED,
    Outputs,
    Plan,
    told,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmbk.service.scenario import Scenario

    Int64s = NDArray[np.int64]

MOST_WARM: Final = 21
"""Days that first backups are waited for."""


@dataclass(frozen=True)
class Measures:
    """Numbers of some ordinary days of a fleet.

    Attributes
    ----------
    days : int
        That were measured.
    makespan_s : float
        Of a day's jobs: from the first slot of the day to the end of the last job; mean of the
        days. A day begins at the first slot after the longest pause of the schedule, so that a
        night is one day.
    longest_makespan_s : float
        Of the worst of the days.
    mean_s, p95_s : float
        Duration of jobs whose transfer was done.
    late, missed : int
        Jobs longer than the era's bound of 24 h; jobs or transfers that were skipped since an
        earlier one was not over.
    peak_egress, peak_requests : float
        The most that was asked of an account at a time while backups ran, guests included, over
        its cap. Above 1 all are slowed.
    throttled_s : float
        Time a day in which accounts were at their caps, summed over accounts.
    lost_s : float
        By how much that held back backups and guests, as if an account had stood still for so
        long; a day, summed over accounts.
    """

    days: int
    makespan_s: float
    longest_makespan_s: float
    mean_s: float
    p95_s: float
    late: int
    missed: int
    peak_egress: float
    peak_requests: float
    throttled_s: float
    lost_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


NEVER_WORSE: Final = (
    "makespan_s", "mean_s", "late", "missed", "peak_egress", "peak_requests", "lost_s",
)  # fmt: skip
"""What a planned schedule is held to: none of these may be higher than before."""

HARMLESS: Final = 0.5
"""Peaks up to this share of a cap are as good as each other."""


def held(found: Measures, name: str) -> float:
    """One of `NEVER_WORSE` as it is compared: a harmless peak counts as `HARMLESS`."""
    value = float(getattr(found, name))
    return max(value, HARMLESS) if name.startswith("peak") else value


def worse(after: Measures, before: Measures) -> tuple[str, ...]:
    """Which of `NEVER_WORSE` are higher than before, by more than rounding."""
    return tuple(
        name for name in NEVER_WORSE if held(after, name) > held(before, name) * (1 + 1e-9) + 1e-9
    )


def ordinary(scenario: Scenario, days: int) -> Scenario:
    """The scenario for so many days, without events, and with all disks from the beginning."""
    vms = tuple(
        replace(vm, disks=tuple(replace(disk, added=0) for disk in vm.disks))
        if any(disk.added for disk in vm.disks)
        else vm
        for vm in scenario.vms
    )
    return replace(scenario, days=days, events=(), vms=vms)


def warm_days(plan: Plan, outputs: Outputs) -> int:
    """Days after which no first backup is under way."""
    initial = told(outputs.jobs, "initial") > 0
    end = outputs.jobs[initial, JOB.index("end")]
    over = -(-int(end.max(initial=0)) // DAY)
    return min(max(over, 1), MOST_WARM)


def day_begin(times: Int64s) -> int:
    """When a day begins: the first time of day after the longest pause of all."""
    slots = np.unique(times % DAY)
    pauses = np.diff(slots, append=slots[:1] + DAY)
    return int(slots[(int(np.argmax(pauses)) + 1) % len(slots)])


def measure(plan: Plan, outputs: Outputs, first: int, days: int, late: int) -> Measures:
    """Numbers of the days `first` to `first` + `days`.

    Parameters
    ----------
    plan : Plan
    outputs : Outputs
        With parts.
    first, days : int
        Of which days; jobs that were scheduled in one belong to it.
    late : int
        Nanoseconds above which a job is late.
    """
    column = {name: outputs.jobs[:, JOB.index(name)] for name in ("scheduled", "start", "end")}
    begin = first * DAY + day_begin(column["scheduled"])
    day = (column["scheduled"] - begin) // DAY
    mine = (column["scheduled"] >= begin) & (day < days)
    spans = []
    for each in range(days):
        jobs = mine & (day == each)
        if jobs.any():
            spans.append(column["end"][jobs].max() - column["scheduled"][jobs].min())
    makespans = np.array(spans) / SECOND
    transfer, state = told(outputs.jobs, "transfer"), told(outputs.jobs, "state")
    duration = (column["end"] - column["start"])[mine & (transfer == TRANSFER_DONE)]
    missed = (transfer == TRANSFER_SKIPPED) | (state == SKIPPED)
    load = account_load(plan, outputs, begin, begin + days * DAY)
    caps = plan.accounts[load.account]
    return Measures(
        days=days,
        makespan_s=float(makespans.mean()) if spans else 0.0,
        longest_makespan_s=float(makespans.max(initial=0.0)),
        mean_s=float(duration.mean() / SECOND) if len(duration) else 0.0,
        p95_s=float(np.quantile(duration, 0.95) / SECOND) if len(duration) else 0.0,
        late=int((duration > late).sum()),
        missed=int((mine & missed).sum()),
        peak_egress=float((load.egress / caps[:, 0]).max(initial=0.0)),
        peak_requests=float((load.requests / caps[:, 1]).max(initial=0.0)),
        throttled_s=load.throttled / SECOND / days,
        lost_s=load.lost / SECOND / days,
    )
