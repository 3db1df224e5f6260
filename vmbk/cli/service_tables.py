"""Tables of the service model: what accounts carry, and how long restores of many VMs take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

from vmbk.cli.reply import Reply, grid, lines
from vmbk.cli.service import SHOWN, _scenario
from vmbk.errors import InputError
from vmbk.units import format_duration, format_size, quoted

if TYPE_CHECKING:
    import polars as pl

    from vmbk.service.capacity import Capacity
    from vmbk.service.restores import Restores

SLOWEST: Final = 10
"""Machines that people see."""


def capacity(args: argparse.Namespace) -> Reply:
    """Whether accounts carry the backups that are scheduled."""
    from vmbk.service.capacity import capacity

    found = capacity(_scenario(args), slot=args.slot, backup=args.backup)
    return {**found.to_dict(), "_text": _capacity_text(found)}


def _capacity_text(found: Capacity) -> str:
    import polars as pl

    slots = found.slots.group_by("account", maintain_order=True)
    shares = slots.agg(pl.col("share_egress", "share_requests").max())
    accounts = found.accounts.join(shares, "account", maintain_order="left")
    rows = [
        (a["account"], f"{a['vms']:,}", f"{a['disks']:,}", f"{a['share_egress']:.0%}",
         f"{a['share_requests']:.0%}", a["busiest"], format_duration(a["overloaded_ns"] / 1e9)
         if a["overloaded_ns"] else "never", format_size(a["sent_bytes"]))
        for a in accounts.sort("share", descending=True).head(SHOWN).iter_rows(named=True)
    ]  # fmt: skip
    header = ("account", "VMs", "disks", "egress of limit", "requests of limit", "at",
              "above a limit", "sent a day")  # fmt: skip
    parts = [f"{found.name}: a day of {found.backup} backups, at full speed from their slots on"]
    parts.append(grid(header, rows) + _more(len(accounts), SHOWN) if rows else "no account")
    slowest = found.vms.sort(f"{found.backup}_shared_ns", descending=True)
    times = [
        (v["vm"], v["policy"], v["clock"], format_duration(v[f"{found.backup}_ns"] / 1e9),
         format_duration(v[f"{found.backup}_shared_ns"] / 1e9), v["critical"] or "")
        for v in slowest.head(SLOWEST).iter_rows(named=True)
    ]  # fmt: skip
    columns = ("slowest VMs", "policy", "at", "at full speed", "with shared accounts", "last disk")
    parts.append(grid(columns, times) + _more(len(slowest), SLOWEST))
    told = [(each.kind, each.target, each.message) for each in found.findings[:SHOWN]]
    findings = grid(("finding", "of", "what"), told) + _more(len(found.findings), SHOWN)
    return "\n\n".join([*parts, findings if told else "no findings: the accounts carry it"])


def _more(count: int, shown: int) -> str:
    return f"\n… and {count - shown:,} more" if count > shown else ""


def restore(args: argparse.Namespace) -> Reply:
    """All machines, or some, restored at once."""
    from vmbk.service.fields import Fields
    from vmbk.service.restore_account import TargetAccount
    from vmbk.service.restores import disaster, simulate_restores

    scenario = _scenario(args)
    names = dict.fromkeys(args.vm) or dict.fromkeys(vm.name for vm in scenario.vms)
    machines = {
        vm.name: [disk.used for disk in vm.disks if disk.backed_up]
        for vm in scenario.vms
        if vm.name in names
    }
    for name in names:
        if name not in machines:
            hint = ", ".join(vm.name for vm in scenario.vms[:10])
            raise InputError(f"there is no VM {quoted(name)}", hint=hint)
    writes = 0
    if args.guest_writes is not None:
        writes = Fields(vars(args), "--guest-writes", vars(args)).rate("guest_writes", most=1 << 40)
    targets = [TargetAccount(f"target-{i + 1}", load_write=(writes,)) for i in range(args.accounts)]
    if writes and not targets:
        raise InputError(
            "--guest-writes: managed disks share no account", hint="give --accounts N as well"
        )
    into: list[str | None] = [target.name for target in targets] or [None]
    requests = disaster(machines, 0, tier=args.tier, accounts=into)
    found = simulate_restores(requests, scenario.restores, targets, scenario.seed)
    reply: Reply = {**found.to_dict(), "jobs": len(found.frame)}
    reply["_text"] = _restore_text(found, sum(map(sum, machines.values())), args)
    return reply


def _restore_text(found: Restores, size: int, args: argparse.Namespace) -> str:
    import polars as pl

    count = len(found.frame)
    into = f"{_counted(args.accounts, 'storage account')}" if args.accounts else "managed disks"
    begun = found.frame.filter(pl.col("state") != "Refused")
    states = found.frame["state"].value_counts(sort=True).rows()
    rows: list[tuple[str, Any]] = [
        ("restored", f"{_counted(count, 'machine')} of {format_size(size)} from the {args.tier}, "
         f"all at once, into {into}"),
        ("states", ", ".join(f"{n:,} {state}" for state, n in states)),
    ]  # fmt: skip
    if len(begun):
        rows.append(("all are back after", format_duration(found.makespan / 1e9)))
    parts = [lines(rows)]
    if len(begun):
        times = [(told, *_spread(begun[name])) for name, told in _PARTS]
        parts.append(grid(("each restore", "half within", "95 % within", "at most"), times))
    told: dict[str, int] = {}
    for each in found.findings:
        told[each.message] = told.get(each.message, 0) + 1
    findings = [f"{n:,} × {message}" for message, n in list(told.items())[:SHOWN]]
    return "\n\n".join([*parts, *(["\n".join(findings) + _more(len(told), SHOWN)] * bool(told))])


_PARTS: Final = (
    ("queue", "wait in the queue"), ("copy", "copy"), ("slowed", "  lost to shared accounts"),
    ("create", "making the machine"), ("total", "in all"),
)  # fmt: skip


def _spread(times: pl.Series) -> list[str]:
    """Median, 95th percentile and maximum of nanoseconds."""
    found = [times.quantile(q, "higher") or 0 for q in (0.5, 0.95, 1.0)]
    return [format_duration(each / 1e9) if each else "0 s" for each in found]


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
