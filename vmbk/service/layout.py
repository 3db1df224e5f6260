"""From a scenario to a plan: names become indices, rates and penalties become nanoseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmbk.service.bounds import check_bounds, check_counts
from vmbk.service.calibration import Calibration, calibration
from vmbk.service.plan import ATTEMPTS, DAY, DELETE, DISK, ROTATE, RULES, VM, Plan
from vmbk.service.profiles import QUEUE_CURVES
from vmbk.service.scenario import Disk, Machine, Scenario

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]

_UNIT: Final = 1 << 16
"""Of shares of a day's churn."""


def plan_of(scenario: Scenario, penalties: Calibration | None = None) -> Plan:
    """The plan that engines run.

    Parameters
    ----------
    scenario : Scenario
    penalties : Calibration, optional
        What dispersed and small writes cost; the one that comes with vmbk unless given.

    Returns
    -------
    Plan
        Disks that are not backed up are not in it.

    Raises
    ------
    InputError
        If there is too much of something, or a transfer could take many years.
    """
    check_counts(scenario)
    penalties = penalties or calibration()
    schedules, slots, due, schedule_of = _schedules(scenario)
    vaults = {name: i for i, name in enumerate(scenario.vaults)}
    accounts = {name: i for i, name in enumerate(scenario.accounts)}
    kinds: dict[Any, int] = {}
    compiled = []
    vms = np.zeros((len(scenario.vms), len(VM)), np.int64)
    disks: list[tuple[int, ...]] = []
    for v, vm in enumerate(scenario.vms):
        policy = scenario.policies[vm.policy]
        traits = vm.traits(policy)
        if traits not in kinds:
            kinds[traits] = len(kinds)
            compiled.append(
                scenario.failures.compile(
                    traits, reading=scenario.profile.reading("stopped_machine")
                )
            )
        agent = vm.power == "running" and policy.consistency != "crash"
        vms[v] = (schedule_of[v], vm.stagger, vaults[vm.vault], kinds[traits], int(agent))
        disks += [
            _disk(scenario, penalties, v, disk, accounts) for disk in vm.disks if disk.backed_up
        ]
    causes = len(compiled[0].thresholds)
    profile = scenario.profile
    places = [
        profile["places"] if spec.places is None else spec.places
        for spec in scenario.vaults.values()
    ]
    plan = Plan(
        rules=_rules(scenario),
        days=scenario.days,
        queue_curve=np.array(QUEUE_CURVES[profile.reading("queue_curve")], np.int64),
        slot_first=schedules, slots=slots, slot_due=due, vms=vms,
        disks=np.array(disks, np.int64).reshape(-1, len(DISK)),
        places=np.array(places, np.int64),
        thresholds=np.stack([c.thresholds for c in compiled]).astype(np.int64),
        consequences=np.stack(
            [c.consequence.reshape(causes + 1, ATTEMPTS) for c in compiled]
        ).astype(np.int64),
        lasting=np.stack([c.lasting for c in compiled]).astype(np.int64),
        accounts=np.array(
            [(a.limit.rate, a.limit.requests) for a in scenario.accounts.values()], np.int64
        ).reshape(-1, 2),
        guest_egress=_hours([a.guest_egress for a in scenario.accounts.values()]),
        guest_requests=_hours([a.guest_requests for a in scenario.accounts.values()]),
        events=_events(scenario, accounts),
    )  # fmt: skip
    check_bounds(scenario, plan)
    return plan


def _rules(scenario: Scenario) -> Int64s:
    profile = scenario.profile
    rules = {
        "seed": scenario.seed, "weekday": scenario.first_day.weekday(),
        "jitter": profile["start_jitter"], "install_low": profile["install_least"],
        "install_high": profile["install_most"], "snapshot_low": profile["snapshot_least"],
        "snapshot_high": profile["snapshot_most"], "retry": profile["retry_wait"],
        "queue_peak": profile["queue_peak"], "commit": profile["commit"],
        "transfer_failure": scenario.failures.transfer_failure, "overlap": profile["overlap"],
        "two_phase": profile["two_phase"], "request": profile["request_size"],
    }  # fmt: skip
    return np.array([rules[name] for name in RULES], np.int64)


def _disk(
    scenario: Scenario, penalties: Calibration, v: int, disk: Disk, accounts: dict[str, int]
) -> tuple[int, ...]:
    """A disk's row. A blob in a storage account gives its own rate, a managed disk its tier's."""
    profile = scenario.profile
    most = disk.limit.rate
    if disk.account is not None:
        most = min(most, profile["blob_rate"])
    best = profile["incremental_rate"]
    scan = best if profile.reading("scan") == "logical" else min(best, most)
    latency = profile["extent_latency"]
    columns = {
        "vm": v, "account": -1 if disk.account is None else accounts[disk.account],
        "used": disk.used, "growth": disk.growth, "churn": disk.churn,
        "spread": round(disk.churn_spread * _UNIT), "weekend": round(disk.weekend * _UNIT),
        "added": disk.added, "full_rate": min(profile["initial_rate"], most), "scan_rate": scan,
        "send_rate": min(best, most), "extent": disk.extent,
        "extent_cost": penalties.extent_cost(best, disk.write_size) + latency,
        "tracked_cost": penalties.tracked_cost(best), "iops": disk.limit.requests,
        "tracking": int(profile.reading("detector") == "tracking"), "size": disk.size,
    }  # fmt: skip
    return tuple(columns[name] for name in DISK)


def _schedules(scenario: Scenario) -> tuple[Int64s, Int64s, Int64s, list[int]]:
    """Slots of every schedule one after the other, and each VM's schedule.

    VMs with backups on demand have a schedule of their own; those go to the vault.
    """
    demands: dict[str, list[int]] = {}
    for event in scenario.events:
        if event.kind == "back-up" and event.at < scenario.days * DAY:  # as slots of schedules
            demands.setdefault(event.target, []).append(event.at)
    index: dict[Any, int] = {}
    times: list[Int64s] = []
    dues: list[Int64s] = []
    of: list[int] = []
    for vm in scenario.vms:
        extra = tuple(sorted(set(demands.get(vm.name, ()))))
        key = (vm.policy, extra, vm.stagger if extra else 0)
        if key not in index:
            index[key] = len(times)
            slots, due = _slots(scenario, vm, extra)
            times.append(slots)
            dues.append(due)
        of.append(index[key])
    first = np.zeros(len(times) + 1, np.int64)
    np.cumsum([len(slots) for slots in times], out=first[1:])
    return first, np.concatenate(times), np.concatenate(dues), of


def _slots(scenario: Scenario, vm: Machine, extra: tuple[int, ...]) -> tuple[Int64s, Int64s]:
    schedule = scenario.policies[vm.policy].schedule
    slots = schedule.slots(scenario.first_day, scenario.days)
    times, due = slots.times.astype(np.int64), slots.vault.astype(np.int64)
    if extra:  # the VM's stagger is not theirs
        wanted = np.setdiff1d(np.array(extra, np.int64) - vm.stagger, times)
        times = np.concatenate((times, wanted))
        due = np.concatenate((due, np.ones(len(wanted), np.int64)))
        order = np.argsort(times, kind="stable")
        times, due = times[order], due[order]
    return times, due


def _hours(rows: list[tuple[int, ...]]) -> Int64s:
    return np.array(rows, np.int64).reshape(-1, 24)


def _events(scenario: Scenario, accounts: dict[str, int]) -> Int64s:
    vms = {vm.name: v for v, vm in enumerate(scenario.vms)}
    rows = [
        (event.at, ROTATE, accounts[event.target])
        if event.kind == "rotate-keys"
        else (event.at, DELETE, vms[event.target])
        for event in scenario.events
        if event.kind != "back-up"
    ]
    return np.array(rows, np.int64).reshape(-1, 3)
