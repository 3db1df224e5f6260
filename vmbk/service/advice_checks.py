"""How each rule of ``advice.toml`` is checked on a scenario, and what following it changes.

A check gives hits: what was found, with its numbers, and the scenario as it is when the advice is
followed. Rules of thumb fire beyond their numbers: 40 machines are not too many, 41 are. Those on
schedules and accounts are in `vmbk.service.advice_schedules`, the others here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vmbk.service.advice_case import Case, Hit, counted, names
from vmbk.service.advice_schedules import (
    classic_vms,
    default_time,
    disks_per_account,
    disks_per_schedule,
    off_peak_hours,
    premium_own_account,
    premium_staging,
    traffic_jam,
    vms_at_once,
)
from vmbk.service.capacity import clock
from vmbk.service.fleet_limits import broken_limits
from vmbk.service.plan import DAY, HOUR, SECOND
from vmbk.service.policy import instant_span
from vmbk.service.restore_account import TargetAccount
from vmbk.service.restore_rules import RestoreRules
from vmbk.service.restores import disaster, simulate_restores
from vmbk.service.simulation import simulate
from vmbk.units import KIB, format_duration, format_size

if TYPE_CHECKING:
    from vmbk.service.scenario import Disk, Machine

LEAST_WRITE: Final = 8 * KIB
MOST_CHURN: Final = 200 * 10**9
"""Bytes a day of a machine, all disks together (S0 S2: protected disks)."""

RESTORED: Final = 10
"""Machines of the restore that is tried."""


def write_size(case: Case) -> Iterator[Hit]:
    """Disks that are written in blocks below 8 KiB."""
    found = [
        (vm, disk) for vm, disk in case.disks() if disk.write_size < LEAST_WRITE and disk.churn
    ]
    if not found:
        return

    def larger(_: Machine, disk: Disk) -> tuple[Disk, ...]:
        if disk.write_size >= LEAST_WRITE:
            return (disk,)
        extent = max(disk.extent, LEAST_WRITE)
        return (replace(disk, write_size=LEAST_WRITE, extent=extent),)

    told = [f"{vm.name}/{disk.name} ({format_size(disk.write_size)})" for vm, disk in found]
    machines = tuple(dict.fromkeys(vm.name for vm, _ in found))
    yield Hit(
        f"{counted(len(found), 'disk')} with writes in blocks below 8 KiB: {names(told)}",
        machines, case.with_disks(larger), only=machines,
    )  # fmt: skip


def daily_churn(case: Case) -> Iterator[Hit]:
    """Machines of which more than 200 GB change a day."""
    rows = case.capacity.disks
    for vm in case.scenario.vms:
        own = [disk for disk in vm.disks if disk.backed_up]
        churn = sum(disk.churn for disk in own)
        if churn <= MOST_CHURN:
            continue
        top = max(own, key=lambda disk: disk.churn)
        row = rows.filter((rows["vm"] == vm.name) & (rows["disk"] == top.name)).row(0, named=True)
        bytes_ns = row["changed_bytes"] * SECOND // case.scenario.profile["incremental_rate"]
        share = min(bytes_ns / max(row["incremental_ns"], 1), 1)
        what = "its bytes" if share >= 0.5 else f"its {row['extents']:,} extents"
        wait = format_duration(case.scenario.profile["queue_peak"] / SECOND)
        parts = -(-top.churn // (MOST_CHURN // 2))

        def spread(
            machine: Machine, disk: Disk, vm: Machine = vm, top: Disk = top, parts: int = parts
        ) -> tuple[Disk, ...]:
            if machine.name != vm.name or disk.name != top.name:
                return (disk,)
            return tuple(
                replace(
                    disk, name=f"{disk.name}-{i + 1}", size=-(-disk.size // parts),
                    used=disk.used // parts, growth=disk.growth // parts,
                    churn=disk.churn // parts,
                )
                for i in range(parts)
            )  # fmt: skip

        yield Hit(
            f"{churn / 1e9:,g} GB of {vm.name} change a day, {top.churn / 1e9:,g} GB of them on "
            f"disk {top.name}, whose transfer takes {format_duration(row['incremental_ns'] / 1e9)} "
            f"at full speed, most of it for {what} ({max(share, 1 - share):.0%}); the queue adds "
            f"up to {wait}. The change shown: the disk's data on {parts} disks",
            (vm.name, top.name), case.with_disks(spread), only=(vm.name,),
        )  # fmt: skip


def deleted_snapshot(case: Case) -> Iterator[Hit]:
    """Snapshots of a machine that somebody deletes."""
    found = [each for each in case.scenario.events if each.kind == "delete-snapshots"]
    if not found or case.scenario.profile.reading("detector") != "tracking":
        return
    machines = tuple(dict.fromkeys(each.target for each in found))
    kept = tuple(each for each in case.scenario.events if each not in found)
    times = [f"{e.target} on day {e.at // DAY} at {clock(e.at)}" for e in found]
    yield Hit(
        f"snapshots are deleted of {names(times)}: the next backup reads all that is used",
        machines, replace(case.scenario, events=kept), "whole", machines,
    )  # fmt: skip


def _restore_s(
    machines: Mapping[str, tuple[int, ...]], era: str, targets: list[TargetAccount], hour: int
) -> float:
    """Seconds until all machines are restored, from some hour of the day on."""
    rules = RestoreRules.default(era)
    requests = disaster(machines, hour * HOUR, accounts=[target.name for target in targets])
    return simulate_restores(requests, rules, targets).makespan / SECOND


def restore_accounts(case: Case) -> Iterator[Hit]:
    """Several machines restored into one account, or each into its own."""
    largest = sorted(case.scenario.vms, key=lambda vm: -vm.used)[:RESTORED]
    if len(largest) < 2:
        return
    machines = {vm.name: tuple(d.used for d in vm.disks if d.backed_up) for vm in largest}
    numbers = {}
    if case.effects:
        own = [TargetAccount(f"target-{i + 1}") for i in range(len(machines))]
        numbers["restore of all, seconds"] = (
            _restore_s(machines, case.era, own[:1], 8), _restore_s(machines, case.era, own, 8)
        )  # fmt: skip
    yield Hit(
        f"a restore of the {len(machines)} largest machines ("
        f"{format_size(sum(map(sum, machines.values())))}) wants {len(machines)} accounts",
        tuple(machines), numbers=numbers,
    )  # fmt: skip


def restore_elsewhere(case: Case) -> Iterator[Hit]:
    """Restores into accounts that guests load."""
    for account, spec in case.scenario.accounts.items():
        if not any(spec.guest_egress) and not any(spec.guest_requests):
            continue
        own = [vm for vm in case.scenario.vms if any(d.account == account for d in vm.disks)]
        if not own:
            continue
        largest = sorted(own, key=lambda vm: -vm.used)[:RESTORED]
        machines = {vm.name: tuple(d.used for d in vm.disks if d.backed_up) for vm in largest}
        numbers = {}
        if case.effects:
            loads = [e + r for e, r in zip(spec.guest_egress, spec.guest_requests, strict=True)]
            hour = loads.index(max(loads))
            loaded = TargetAccount(
                account, requests=spec.limit.requests, ingress=spec.limit.rate,
                total=spec.limit.rate, load_requests=spec.guest_requests,
                load_read=spec.guest_egress,
            )  # fmt: skip
            idle = replace(loaded, load_requests=(0,), load_read=(0,))
            busy, calm = (_restore_s(machines, case.era, [each], hour) for each in (loaded, idle))
            restored = counted(len(machines), "machine")
            numbers[f"restore of {restored} at {hour:02} h, seconds"] = (busy, calm)
        yield Hit(
            f"account {account} is loaded by its guests with up to {max(spec.guest_egress) / 1e6:g}"
            f" MB/s and {max(spec.guest_requests):,} requests/s",
            (account, *machines), numbers=numbers,
        )  # fmt: skip


def new_disk(case: Case) -> Iterator[Hit]:
    """Disks that are added to protected machines."""
    rows = case.capacity.disks
    end = case.scenario.days * DAY
    for vm, disk in case.disks():
        if not 0 < disk.added < end:
            continue
        row = rows.filter((rows["vm"] == vm.name) & (rows["disk"] == disk.name)).row(0, named=True)

        def there(machine: Machine, other: Disk, vm: Machine = vm, disk: Disk = disk
                  ) -> tuple[Disk, ...]:  # fmt: skip
            same = machine.name == vm.name and other.name == disk.name
            return (replace(other, added=0) if same else other,)

        yield Hit(
            f"disk {disk.name} is added to {vm.name} on day {disk.added // DAY}: its "
            f"{format_size(disk.used)} are sent whole, {format_duration(row['initial_ns'] / 1e9)} "
            "at full speed. The change shown: the disk was there from the beginning",
            (vm.name, disk.name), case.with_disks(there), "whole", (vm.name,),
        )  # fmt: skip


def first_backup(case: Case) -> Iterator[Hit]:
    """First backups of more than a day."""
    late = case.scenario.profile["late"]
    rows = case.capacity.vms
    slow = rows.filter(rows["initial_shared_ns"] > late)
    if len(slow):
        told = [
            f"{row['vm']} ({format_duration(row['initial_ns'] / 1e9)} at full speed)"
            for row in slow.sort("initial_ns", descending=True).iter_rows(named=True)
        ]
        yield Hit(
            f"a first backup takes more than {format_duration(late / SECOND)}, if all begin "
            f"together, of {counted(len(slow), 'machine')}: {names(told)}",
            tuple(slow["vm"].to_list()),
        )


def key_rotation(case: Case) -> Iterator[Hit]:
    """Keys rotated while a transfer of the account is wanted or under way."""
    import polars as pl

    found = [each for each in case.scenario.events if each.kind == "rotate-keys"]
    if not found:
        return
    # Without any rotation: how long the transfers would take that they cut off.
    others = tuple(each for each in case.scenario.events if each not in found)
    jobs = simulate(replace(case.scenario, events=others)).jobs
    for event in found:
        own = [
            vm.name for vm in case.scenario.vms
            if any(d.account == event.target and d.backed_up for d in vm.disks)
        ]  # fmt: skip
        wanted = pl.col("start_ns") + pl.col("install_ns") + pl.col("snapshot_ns")
        busy = jobs.filter(
            pl.col("vm").cast(pl.String).is_in(own)
            & pl.col("transfer").cast(pl.String).is_in(["done", "failed"])
        ).with_columns(wanted=wanted)
        hit = busy.filter((pl.col("wanted") <= event.at) & (pl.col("end_ns") >= event.at))
        if not len(hit):
            continue
        later = _calm(busy.select("wanted", "end_ns").sort("wanted").rows(), event.at)
        machines = tuple(dict.fromkeys(hit["vm"].cast(pl.String)))
        events = tuple(
            sorted(
                (replace(e, at=later) if e is event else e for e in case.scenario.events),
                key=lambda e: e.at,
            )
        )
        yield Hit(
            f"the keys of account {event.target} are rotated on day {event.at // DAY} at "
            f"{clock(event.at)}, in the midst of backups of {counted(len(machines), 'machine')}: "
            f"{names(machines)}; none is under way at {clock(later)} of day {later // DAY}",
            (event.target, *machines), replace(case.scenario, events=events), "whole", machines,
        )  # fmt: skip


def _calm(busy: list[tuple[int, int]], at: int) -> int:
    """The first moment from `at` on in none of the spans, an hour after the last that it is in."""
    for begin, end in busy:
        if begin - HOUR <= at <= end:
            at = end + HOUR
    return at


def limits(case: Case) -> Iterator[Hit]:
    """What `vmbk.service.limits` says of vaults, policies, machines and disks."""
    for where, found in broken_limits(case.scenario):
        yield Hit(f"{where}: {found}", (where.rpartition("(")[2].rstrip(")"),))


def snapshot_days(case: Case) -> Iterator[Hit]:
    """Policies that keep snapshots for longer than usual."""
    policies = Counter(vm.policy for vm in case.scenario.vms)
    for name, count in policies.items():
        policy = case.scenario.policies[name]
        usual = instant_span(policy.subtype, policy.schedule).default
        if policy.instant_days <= usual:
            continue
        own = [vm for vm in case.scenario.vms if vm.policy == name]
        churn = sum(d.churn for vm in own for d in vm.disks if d.backed_up)
        # n days of snapshots are n + 1 snapshots, of which the oldest are the changes since.
        kept = tuple(float(churn * days) for days in (policy.instant_days, usual))
        yield Hit(
            f"policy {name} keeps snapshots of {counted(count, 'machine')} for "
            f"{counted(policy.instant_days, 'day')}, {usual} would be usual: "
            f"about {format_size(churn)} a day more",
            (name,), numbers={"bytes of snapshots": (kept[0], kept[1])},
        )  # fmt: skip


def enhanced_stays(case: Case) -> Iterator[Hit]:
    """Machines that can never have a standard policy again."""
    found = [vm.name for vm in case.scenario.vms
             if case.scenario.policies[vm.policy].subtype == "enhanced"]  # fmt: skip
    if found:
        yield Hit(
            f"{counted(len(found), 'machine')} under enhanced policies, for good: {names(found)}",
            tuple(found),
        )


CHECKS: Final[Mapping[str, Callable[[Case], Iterator[Hit]]]] = {
    "vms-at-once": vms_at_once, "classic-vms": classic_vms,
    "disks-per-schedule": disks_per_schedule, "disks-per-account": disks_per_account,
    "off-peak": off_peak_hours, "default-time": default_time, "traffic-jam": traffic_jam,
    "write-size": write_size, "daily-churn": daily_churn, "deleted-snapshot": deleted_snapshot,
    "premium-staging": premium_staging, "premium-own-account": premium_own_account,
    "restore-accounts": restore_accounts, "restore-elsewhere": restore_elsewhere,
    "new-disk": new_disk, "first-backup": first_backup, "key-rotation": key_rotation,
    "limits": limits, "snapshot-days": snapshot_days, "enhanced-stays": enhanced_stays,
}  # fmt: skip
"""By the rule's name in ``advice.toml``."""
