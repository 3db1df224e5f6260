"""That a fleet's backups end within a time that can be counted, before any of them is simulated.

Engines count nanoseconds in 63 bits, and an account's hours one by one. A disk of a petabyte at a
byte a second, or an account whose guests ask for a million times what it gives, would pass both.
What is computed here is no estimate: it is never less than what comes out, and may be far more.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmbk.errors import InputError
from vmbk.service.plan import DISK, ONE, SECOND, VM, Plan
from vmbk.units import format_interval, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmbk.service.scenario import Scenario

    Floats = NDArray[np.float64]

MOST_JOBS: Final = 20_000_000
"""Of a scenario: each is a row of some 140 bytes."""

MOST_DISKS: Final = 1_000_000
"""Of a scenario's machines together."""

MOST_TIME: Final = 10 * 365 * 86_400
"""Seconds after the last slot in which all transfers must have ended."""

MOST_HOURS: Final = 50_000_000
"""Of all accounts: each is a number in the result and a step of the engine."""

_LATE: Final = 500
"""Days by which a snapshot may come after its slot, at the longest waits that can be set."""


def check_counts(scenario: Scenario) -> None:
    """Check that a fleet's jobs and disks are not too many, before any is made.

    Parameters
    ----------
    scenario : Scenario

    Raises
    ------
    InputError
        If they are; the message names the field.
    """
    machines = Counter(vm.policy for vm in scenario.vms)
    jobs = sum(
        scenario.policies[name].schedule.per_day * scenario.days * count
        for name, count in machines.items()
    )
    if jobs > MOST_JOBS:
        raise InputError(
            f"days: {scenario.days:,} days of {len(scenario.vms):,} VMs are {jobs:,} jobs, more "
            f"than {MOST_JOBS:,}"
        )
    disks = sum(disk.backed_up for vm in scenario.vms for disk in vm.disks)
    if disks > MOST_DISKS:
        raise InputError(
            f"vms: {disks:,} disks are more than {MOST_DISKS:,}",
            hint="simulate parts of the fleet by themselves",
        )


def check_bounds(scenario: Scenario, plan: Plan) -> None:
    """Check that no number of a simulation leaves its range, and that it comes to an end.

    Parameters
    ----------
    scenario : Scenario
        For the names.
    plan : Plan

    Raises
    ------
    InputError
        If not; the message names the disk, account or vault and the field to change.
    """
    if not len(plan.disks):
        return
    column = {name: plan.disks[:, i].astype(np.float64) for i, name in enumerate(DISK)}
    used = np.minimum(column["used"] + column["growth"] * (plan.days + _LATE), column["size"])
    work, requests = _alone(column, used, plan)
    if work.max() > MOST_TIME:
        raise InputError(
            f"{_disk(scenario, plan, int(work.argmax()))}: a backup can take {_years(work.max())}, "
            f"more than {_years(MOST_TIME)}, even by itself",
            hint="see rate, iops and extent of the disk, and the rates in [service]",
        )
    shared = work * _slowed(scenario, plan, column, work, requests)
    _check_vaults(scenario, plan, column, shared)
    hours = len(plan.accounts) * (24 * plan.days + shared.max() / 3600)
    if hours > MOST_HOURS:
        raise InputError(
            f"accounts: {len(plan.accounts):,} accounts over {plan.days:,} days are more than "
            f"{MOST_HOURS:,} hours",
            hint="simulate fewer days, or parts of the fleet by themselves",
        )


def _alone(column: dict[str, Floats], used: Floats, plan: Plan) -> tuple[Floats, Floats]:
    """Seconds that a disk's longest backup takes at full speed, and requests a second at most."""
    request = float(plan.rule("request"))
    # A day's churn is at most twice the mean, and twice again on a weekend.
    changed = np.minimum(used, 4 * column["churn"] * (plan.days + _LATE))
    extents = changed / column["extent"] + 1
    reads = (used / request + 1) / column["iops"]
    first = np.maximum(used / column["full_rate"], reads)
    scan = np.maximum(used / column["scan_rate"], reads) + extents * column["tracked_cost"] / SECOND
    send = changed / column["send_rate"] + extents * column["extent_cost"] / SECOND
    writes = np.maximum(extents, changed / request + 1) / column["iops"]
    rate = _rate(column)
    asked = np.minimum(column["iops"], rate / request + rate / column["extent"] + 1) + 1
    return np.maximum(first, scan + np.maximum(send, writes)) + 1, asked


def _rate(column: dict[str, Floats]) -> Floats:
    return np.maximum(np.maximum(column["full_rate"], column["scan_rate"]), column["send_rate"])


def _slowed(
    scenario: Scenario, plan: Plan, column: dict[str, Floats], work: Floats, requests: Floats
) -> Floats:
    """How many times longer a disk's account makes it, with all its disks and guests at once."""
    account = column["account"].astype(np.int64)
    own = account >= 0
    slowed = np.ones(len(work))
    if not own.any():
        return slowed
    factor = np.ones(len(plan.accounts))
    for limit, asks, guests in (
        (plan.accounts[:, 0], _rate(column), plan.guest_egress),
        (plan.accounts[:, 1], requests, plan.guest_requests),
    ):
        asked = np.bincount(account[own], asks[own], len(factor)) + guests.max(axis=1)
        np.maximum(factor, asked / limit, out=factor)
    slowed[own] = np.minimum(factor, ONE)[account[own]]
    worst = int((work * slowed).argmax())
    if work[worst] * slowed[worst] > MOST_TIME:
        name = list(scenario.accounts)[account[worst]]
        raise InputError(
            f"accounts ({quoted(name)}).egress, .requests: a backup can take "
            f"{_years(work[worst] * slowed[worst])} there, {slowed[worst]:,.0f} times as long as "
            f"by itself and more than {_years(MOST_TIME)}",
            hint="see guest_egress and guest_requests too, and how many disks share the account",
        )
    return slowed


def _check_vaults(
    scenario: Scenario, plan: Plan, column: dict[str, Floats], shared: Floats
) -> None:
    """Transfers that wait for each other's places end as well."""
    of_vm = np.zeros(len(plan.vms))
    np.maximum.at(of_vm, column["vm"].astype(np.int64), shared)
    of_vm += plan.rule("commit") / SECOND
    vault = plan.vms[:, VM.index("vault")]
    total = np.bincount(vault, of_vm, len(plan.places))
    waiting = np.where(plan.places > 0, total / np.maximum(plan.places, 1), 0)
    if waiting.max() > MOST_TIME:
        name = list(scenario.vaults)[int(waiting.argmax())]
        raise InputError(
            f"vaults ({quoted(name)}).places: with {int(plan.places[waiting.argmax()]):,} at once, "
            f"its transfers can wait for {_years(float(waiting.max()))}, more than "
            f"{_years(MOST_TIME)}",
            hint="0 lets any number run at once",
        )


def _disk(scenario: Scenario, plan: Plan, row: int) -> str:
    """A disk's name in errors."""
    v = int(plan.disks[row, DISK.index("vm")])
    disks: list[Any] = [disk for disk in scenario.vms[v].disks if disk.backed_up]
    disk = disks[row - int(plan.disk_first[v])]
    return f"vms ({quoted(scenario.vms[v].name)}).disks ({quoted(disk.name)})"


def _years(seconds: float) -> str:
    years = seconds / (365 * 86_400)
    return f"{years:,.0f} years" if years >= 2 else format_interval(seconds)
