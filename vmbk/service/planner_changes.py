"""A layout carried out: the scenario that it makes, and what a person has to do for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from vmbk.service.capacity import clock, vault_slots
from vmbk.service.limits import shipped as shipped_limits
from vmbk.service.plan import Plan
from vmbk.service.planner_search import Layout
from vmbk.service.scenario import Scenario
from vmbk.service.schedule import MINUTE_NS


def apply_layout(scenario: Scenario, now: Layout, layout: Layout) -> Scenario:
    """The scenario with a layout: policies are split where their VMs get several times."""
    limit = shipped_limits().value("vms_per_policy", scenario.profile.name) or len(scenario.vms)
    groups: dict[str, dict[tuple[int, int], list[int]]] = {}
    filled: dict[tuple[str, int], int] = {}
    for v, vm in enumerate(scenario.vms):
        minute = int(layout.slots[v])
        moved = minute >= 0 and minute != now.slots[v]
        at = minute if moved else -1
        n = filled[vm.policy, at] = filled.get((vm.policy, at), 0) + 1
        part = (n - 1) // limit if at >= 0 else 0
        groups.setdefault(vm.policy, {}).setdefault((at, part), []).append(v)
    policies, names = dict(scenario.policies), {}
    for policy, slots in groups.items():
        old = scenario.policies[policy]
        for (at, part), members in slots.items():
            if at < 0:
                continue
            name = policy
            if len(slots) > 1 and (part or at != old.schedule.at):
                name = _free_name(policies, f"{policy}-{at // 60:02}{at % 60:02}", part)
            if name != policy or len(slots) == 1:
                policies[name] = replace(old, name=name, schedule=replace(old.schedule, at=at))
            names.update(dict.fromkeys(members, name))
    accounts = list(scenario.accounts)
    vms, d = [], 0
    for v, vm in enumerate(scenario.vms):
        disks = []
        for disk in vm.disks:
            if disk.backed_up:
                home = int(layout.accounts[d])
                if home != now.accounts[d]:
                    disk = replace(disk, account=accounts[home] if home >= 0 else None)
                d += 1
            disks.append(disk)
        changed: dict[str, Any] = {"disks": tuple(disks)}
        if v in names:
            changed |= {"policy": names[v], "stagger": 0}
        if vm.storage == "unmanaged" and all(disk.account is None for disk in disks):
            changed["storage"] = "managed"
        vms.append(replace(vm, **changed))
    return replace(scenario, vms=tuple(vms), policies=policies)


def _free_name(policies: dict[str, Any], wanted: str, part: int) -> str:
    name, n = wanted + (f"-{part + 1}" if part else ""), 2
    while name in policies:
        name, n = f"{wanted}-{part + 1}-{n}", n + 1
    return name


def layout_changes(
    old: Scenario, new: Scenario, plan: Plan, now: Layout, layout: Layout
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What a person has to do."""
    rows: list[tuple[str | None, ...]] = []
    accounts = list(old.accounts)
    curve = plan.queue_curve // 10
    old_slots, new_slots = vault_slots(old), vault_slots(new)
    own = [(vm.name, disk.name) for vm in old.vms for disk in vm.disks if disk.backed_up]
    for v, (was, vm) in enumerate(zip(old.vms, new.vms, strict=True)):
        a, b = int(old_slots[v]), int(new_slots[v])
        if a != b or was.policy != vm.policy:
            hours = [int(curve[ns // (60 * MINUTE_NS)]) for ns in (a, b)]
            reason = f"waits are at {hours[1]} % of the longest then, not {hours[0]} %"
            if hours[0] == hours[1]:
                reason = "fewer others at that time"
            rows.append((vm.name, None, "time", clock(a), clock(b), vm.policy, reason))
    for d in np.flatnonzero(now.accounts != layout.accounts).tolist():
        home, to = int(now.accounts[d]), int(layout.accounts[d])
        others = [int((each.accounts == home).sum()) for each in (now, layout)]
        reason = f"{accounts[home]} has {others[1]} disks instead of {others[0]}"
        target = accounts[to] if to >= 0 else "managed disk"
        change = "account" if to >= 0 else "managed"
        rows.append((*own[d], change, accounts[home], target, None, reason))
    schema = dict.fromkeys(("vm", "disk", "change", "old", "new", "policy", "reason"), pl.String)
    edited = []
    homes = {vm.policy: was.policy for was, vm in zip(old.vms, new.vms, strict=True)}
    for name, policy in new.policies.items():
        if old.policies.get(name) != policy and name in homes:
            count = sum(vm.policy == name for vm in new.vms)
            edited.append((name, homes[name], clock(policy.schedule.at * MINUTE_NS), count))
    columns = {"policy": pl.String, "from": pl.String, "clock": pl.String, "vms": pl.Int64}
    return (
        pl.DataFrame(rows, schema=schema, orient="row"),
        pl.DataFrame(edited, schema=columns, orient="row"),
    )
