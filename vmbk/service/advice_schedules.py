"""Checks of the advice on schedules and accounts: who is backed up when, and from where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from vmbk.service.advice_case import Case, Hit, counted, names
from vmbk.service.capacity import clock
from vmbk.service.layout import plan_of
from vmbk.service.plan import DAY, HOUR
from vmbk.service.planner import plan_schedule
from vmbk.service.planner_search import hour_costs, off_peak
from vmbk.service.schedule import MINUTE_NS
from vmbk.units import format_size

if TYPE_CHECKING:
    from vmbk.service.scenario import Account

STAGING: Final = 0.5


def vms_at_once(case: Case) -> Iterator[Hit]:
    """Machines of one slot; of a vault each in the eras after 2017."""
    most = case.limit("vms_at_once")
    groups: dict[tuple[int, str], list[str]] = {}
    for vm in case.scenario.vms:
        vault = "" if case.era == "2017" else vm.vault
        groups.setdefault((case.slots[vm.name], vault), []).append(vm.name)
    for (slot, vault), found in groups.items():
        if len(found) > most:
            by = {name: i // most * HOUR // 2 for i, name in enumerate(found)}
            of = f" of vault {vault}" if vault else ""
            yield Hit(
                f"{counted(len(found), 'machine')}{of} at {clock(slot)}, more than {most:,}: "
                f"{names(found)}",
                tuple(found), case.shifted(by),
            )  # fmt: skip


def classic_vms(case: Case) -> Iterator[Hit]:
    """Classic machines of a cloud service within an hour."""
    most = case.limit("classic_vms_at_once")
    groups: dict[str, list[str]] = {}
    for vm in case.scenario.vms:
        if vm.cloud_service is not None:
            groups.setdefault(vm.cloud_service, []).append(vm.name)
    for service, found in groups.items():
        times = np.array([case.slots[name] for name in found])
        apart = (times[None, :] - times[:, None]) % DAY
        together = (apart < HOUR).sum(axis=1)
        if together.max() > most:
            first = int(times[together.argmax()])
            by = {
                name: (first + i // most * HOUR - case.slots[name]) % DAY
                for i, name in enumerate(found)
            }
            yield Hit(
                f"{counted(int(together.max()), 'classic machine')} of cloud service {service} "
                f"within an hour from {clock(first)}, more than {most}: {names(found)}",
                tuple(found), case.shifted(by),
            )  # fmt: skip


def disks_per_schedule(case: Case) -> Iterator[Hit]:
    """Disks of an account under one policy (2017)."""
    most = case.limit("disks_per_account")
    groups: dict[tuple[str, str], list[str]] = {}
    for vm, disk in case.disks():
        if disk.account is not None:
            groups.setdefault((disk.account, vm.policy), []).append(vm.name)
    over = {key: found for key, found in groups.items() if len(found) > most}
    if not over:
        return
    # Machines go to the next hour as soon as an account of theirs is full in this one.
    hour: dict[str, int] = {}
    filled: Counter[tuple[str, str, int]] = Counter()
    for vm in case.scenario.vms:
        own = Counter(d.account for d in vm.disks if d.backed_up and d.account is not None)
        if not any((a, vm.policy) in over for a in own):
            continue
        at = 0
        while at < 23 and any(filled[a, vm.policy, at] + n > most and filled[a, vm.policy, at]
                              for a, n in own.items()):  # fmt: skip
            at += 1
        hour[vm.name] = at * HOUR
        for a, n in own.items():
            filled[a, vm.policy, at] += n
    changed = case.shifted(hour)
    for (account, policy), found in over.items():
        machines = list(dict.fromkeys(found))
        yield Hit(
            f"{counted(len(found), 'disk')} of account {account} under policy {policy}, more than "
            f"{most}, of {counted(len(machines), 'machine')}: {names(machines)}",
            (account, *machines), changed,
        )  # fmt: skip


def disks_per_account(case: Case) -> Iterator[Hit]:
    """Disks of an account at all, in the eras after 2017."""
    most = case.limit("disks_per_account")
    count = Counter(disk.account for _, disk in case.disks() if disk.account is not None)
    for account, n in count.items():
        if n <= most:
            continue
        spec = case.scenario.accounts[account]
        groups = -(-n // most)
        parts = [_part_account(spec, f"{account}-{i + 1}", groups) for i in range(groups)]
        place = iter(range(n))
        changed = case.with_disks(
            lambda _, disk, account=account, parts=parts, place=place: (  # type: ignore[misc]
                replace(disk, account=parts[next(place) // most].name)
                if disk.account == account
                else disk,
            )
        )
        changed = replace(changed, accounts={**changed.accounts, **{p.name: p for p in parts}})
        machines = tuple(dict.fromkeys(vm.name for vm, d in case.disks() if d.account == account))
        yield Hit(
            f"{counted(n, 'disk')} on account {account}, from {most + 1} on they should be "
            f"spread; here over {counted(groups, 'account')}",
            (account, *machines), changed,
        )  # fmt: skip


def _part_account(spec: Account, name: str, parts: int) -> Account:
    """An account that gets its part of another's guests, as their disks move."""
    egress, requests = (
        tuple(-(-load // parts) for load in loads)
        for loads in (spec.guest_egress, spec.guest_requests)
    )
    return replace(spec, name=name, guest_egress=egress, guest_requests=requests)


def off_peak_hours(case: Case) -> Iterator[Hit]:
    """Machines in the hours that cost most: the highest quarter of the range."""
    plan = plan_of(case.scenario)
    cost = hour_costs(case.scenario, plan)
    if cost.max() - cost.min() < 0.1:
        return
    busy = cost >= cost.max() - 0.25 * (cost.max() - cost.min())
    found = [name for name, slot in case.slots.items() if busy[slot // HOUR]]
    if not found:
        return
    calm = off_peak(case.scenario, plan)
    best = min(calm, key=lambda hour: (cost[hour], hour))
    by = {name: (best - case.slots[name] // HOUR) * HOUR for name in found}
    hours = sorted({int(case.slots[name] // HOUR) for name in found})
    yield Hit(
        f"{counted(len(found), 'machine')} in the busiest hours ("
        f"{', '.join(f'{hour:02}' for hour in hours)} h): {names(found)}; calmest is {best:02} h",
        tuple(found), case.shifted(by),
    )  # fmt: skip


def default_time(case: Case) -> Iterator[Hit]:
    """Machines at midnight sharp."""
    found = [name for name, slot in case.slots.items() if slot == 0]
    if found:
        by = {name: (1 + i % 48) * 5 * MINUTE_NS for i, name in enumerate(found)}
        yield Hit(
            f"at 00:00, the portal's default, {counted(len(found), 'machine')}: {names(found)}",
            tuple(found), case.shifted(by),
        )  # fmt: skip


def traffic_jam(case: Case) -> Iterator[Hit]:
    """Accounts that are asked for more than their caps."""
    over = case.capacity.accounts.filter(
        (case.capacity.accounts["share"] > 1) & (case.capacity.accounts["disks"] > 1)
    )
    if not len(over):
        return
    told = [f"{a['account']} ({a['share']:.0%} at {a['busiest']})" for a in over.to_dicts()]
    planned = plan_schedule(case.scenario, move_disks=False) if case.effects else None
    yield Hit(
        f"asked for more than they give: {names(told)}",
        tuple(over["account"].to_list()),
        planned.scenario if planned is not None and planned.improved else None,
    )


def premium_staging(case: Case) -> Iterator[Hit]:
    """Premium accounts that are more than half full."""
    most = case.limit("premium_account_disks")
    for account, spec in case.scenario.accounts.items():
        if spec.kind != "premium" or most >= 1 << 62:
            continue
        own = [disk for vm in case.scenario.vms for disk in vm.disks if disk.account == account]
        size = sum(disk.size for disk in own)
        if size > most * STAGING:
            yield Hit(
                f"{counted(len(own), 'disk')} on premium account {account}: {format_size(size)}, "
                f"{size / most:.0%} of the most it holds ({format_size(most)})",
                (account,),
            )


def premium_own_account(case: Case) -> Iterator[Hit]:
    """Premium accounts of several machines."""
    for account, spec in case.scenario.accounts.items():
        if spec.kind != "premium":
            continue
        found = tuple(dict.fromkeys(vm.name for vm, d in case.disks() if d.account == account))
        if len(found) < 2:
            continue
        parts = {name: _part_account(spec, f"{account}-{name}", len(found)) for name in found}
        changed = case.with_disks(
            lambda vm, disk, account=account, parts=parts: (  # type: ignore[misc]
                replace(disk, account=parts[vm.name].name) if disk.account == account else disk,
            )
        )
        accounts = {**changed.accounts, **{part.name: part for part in parts.values()}}
        yield Hit(
            f"{counted(len(found), 'machine')} on premium account {account}: {names(found)}",
            (account, *found), replace(changed, accounts=accounts),
        )  # fmt: skip
