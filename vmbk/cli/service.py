"""The service model: how long, how much, why."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vmbk.cli.reply import Reply, grid, lines
from vmbk.errors import InputError
from vmbk.units import format_duration, format_size, quoted

if TYPE_CHECKING:
    from vmbk.service.cost import CostEstimate
    from vmbk.service.cost_tables import CostTable
    from vmbk.service.objectives import Objectives
    from vmbk.service.planner import PlannedSchedule
    from vmbk.service.scenario import Scenario
    from vmbk.service.simulation import Simulation

MOST_JOBS: Final = 10_000
"""Jobs in a reply; --out writes all of them."""

MOST_TOLD: Final = 1000
"""Broken limits in a reply."""

SHOWN: Final = 12
"""Rows that people see."""


def simulate(args: argparse.Namespace) -> Reply:
    """Run a scenario, tell its jobs."""
    from vmbk.service.fleet_limits import broken_limits
    from vmbk.service.recovery import recovery
    from vmbk.service.simulation import simulate

    _check_table(args.output)
    found = simulate(_scenario(args), engine=args.engine)
    jobs = found.jobs
    reply: Reply = found.to_dict()
    reply["job_count"] = reply.pop("jobs")
    reply["jobs"] = jobs.head(MOST_JOBS).to_dicts()
    reply["jobs_left_out"] = max(len(jobs) - MOST_JOBS, 0)
    broken = list(broken_limits(found.scenario))
    reply["limits"] = [{"where": where, **each.to_dict()} for where, each in broken[:MOST_TOLD]]
    goals = recovery(found)
    reply["objectives"] = goals.to_dict()
    if args.output is not None:
        jobs.write_parquet(args.output)
        reply["output"] = args.output
    told = [f"beyond a limit: {where}: {each}" for where, each in broken[:3]]
    if len(broken) > len(told):
        told.append(f"… and {len(broken) - len(told):,} more")
    parts = [_simulate_text(found, reply), "\n".join(told), _objectives_text(goals)]
    reply["_text"] = "\n\n".join(filter(None, parts))
    return reply


def _scenario(args: argparse.Namespace) -> Scenario:
    """The scenario, with what the command line replaces of it."""
    from dataclasses import replace

    from vmbk.service.scenario import Scenario

    scenario = Scenario.load(args.scenario)
    changes = {k: v for k in ("days", "seed") if (v := getattr(args, k, None)) is not None}
    return replace(scenario, **changes)


def _check_table(path: str | None) -> None:
    """Refuse, before any work, a file that the jobs cannot be written to."""
    if path is None:
        return
    file = Path(path)
    if file.suffix != ".parquet":
        raise InputError(f"--output {quoted(path)}: jobs are written as a .parquet file")
    if os.path.lexists(file) and not file.is_file():
        raise InputError(f"--output {quoted(path)} is there and is no regular file")
    if not file.parent.is_dir():
        raise InputError(f"--output {quoted(path)}: there is no such folder")


def _simulate_text(found: Simulation, reply: dict[str, Any]) -> str:
    from vmbk.service.simulation import spread_text

    total = sum(reply["parts_s"].values()) or 1.0
    numbers = found.scenario.profile.numbers
    parts = sorted(reply["parts_s"].items(), key=lambda part: -part[1])
    states = ", ".join(f"{n:,} {state}" for state, n in reply["states"].items())
    labels = ", ".join(f"{n:,} {label}" for label, n in reply["labels"].items())
    causes = ", ".join(f"{cause} {n:,}" for cause, n in list(reply["causes"].items())[:4])
    rows = [
        ("scenario", f"{found.scenario.name}, profile {found.scenario.profile.name}, "
         f"{reply['vms']:,} VMs, {reply['days']} days"),
        ("jobs", f"{reply['job_count']:,}: {states}"),
        ("consistency", labels or "no point"),
        ("failures", causes or "none"),
        ("first backup", spread_text(reply["first_backup_s"])),
        ("incremental", spread_text(reply["incremental_s"])),
        ("of which", ", ".join(f"{name} {s / total:.0%}" for name, s in parts if s >= total / 200)),
        ("too late", f"{reply['late']:,} over {numbers['late']} "
         f"({numbers['late_counts'].value} count), {reply['slow']:,} over {numbers['slow']}"),
        ("sent, read", f"{format_size(reply['sent_bytes'])}, {format_size(reply['read_bytes'])}"),
        ("simulated in", format_duration(found.seconds)),
    ]  # fmt: skip
    if not reply["accounts"]:
        return lines(rows)
    header = ("account", "egress of limit", "requests of limit", "throttled")
    table = [
        (a["account"], f"{a['peak_egress'] / a['egress']:.0%}",
         f"{a['peak_requests'] / a['requests']:.0%}", _time(a["throttled_ns"]))
        for a in reply["accounts"][:SHOWN]
    ]  # fmt: skip
    return f"{lines(rows)}\n\n{grid(header, table)}"


def _objectives_text(goals: Objectives) -> str:
    """What a disaster at a random moment would cost: lost work, and time."""
    import polars as pl

    header = ("recovery point objective", "half within", "95 % within", "at most", "target",
              "not met")  # fmt: skip
    rows = []
    for tier in _TIERS:
        row = goals.of(tier)
        times = (_time(row[k]) for k in ("p50", "p95", "max", "target"))
        rows.append((_TIERS[tier], *times, f"{row['above']:.1%}"))
    told = grid(header, rows)
    back = [
        (_LOST[row["disaster"]], *(_time(row[k]) for k in ("p50", "p95", "max")),
         f"{1 - row['restorable']:.1%}")
        for row in goals.restore.filter(pl.col("vm").is_null()).iter_rows(named=True)
    ]  # fmt: skip
    if back:
        columns = ("recovery time objective", *header[1:4], "nothing to restore")
        told += f"\n\n{grid(columns, back)}"
    return told


def _time(ns: int | None) -> str:
    if ns is None:
        return "never"
    return format_duration(ns / 1e9) if ns else "none"


_TIERS: Final = {
    "any": "machine lost", "vault": "machine and snapshots lost", "secondary": "region lost",
}  # fmt: skip
_LOST: Final = {
    "machine": _TIERS["any"], "snapshots": _TIERS["vault"], "region": _TIERS["secondary"],
}  # fmt: skip


def cost(args: argparse.Namespace) -> Reply:
    """What a scenario's fleet costs."""
    from vmbk.service.charges import cost_vms
    from vmbk.service.cost import estimate
    from vmbk.service.cost_items import MOST_MONTHS
    from vmbk.service.cost_rules import Readings
    from vmbk.service.cost_tables import by_redundancy, leaving
    from vmbk.service.prices import Prices

    vms = cost_vms(_scenario(args))
    prices = Prices.load(args.prices)
    readings = Readings.parse(_pairs(args.reading), "--reading")
    found = estimate(vms, prices, args.redundancy, readings, args.months, args.first_month)
    choices = by_redundancy(vms, prices, readings, args.months, args.first_month)
    after = min(args.first_month + args.months, MOST_MONTHS - 12)
    left = leaving(vms, prices, after, 12, args.soft_delete, readings, args.redundancy)
    reply: Reply = found.to_dict()
    reply["redundancy"] = choices.to_dict()
    reply["leaving"] = left.to_dict()
    reply["protected_bytes"] = sum(
        vm.count * sum(disk.used for disk in vm.instance_disks) for vm in vms
    )
    reply["_text"] = _cost_text(found, choices, left, reply["protected_bytes"])
    return reply


def _pairs(given: list[str]) -> dict[str, str]:
    """``name=value`` words as a table."""
    table = {}
    for word in given:
        name, sign, value = word.partition("=")
        if not sign:
            raise InputError(f"--reading {quoted(word)} is not written as topic=reading")
        table[name] = value
    return table


def _cost_text(
    found: CostEstimate, choices: CostTable, left: CostTable, protected_bytes: int
) -> str:
    from vmbk.service.cost_rules import billing_facts

    unit = found.prices.currency
    rows = [
        ("prices", f"{found.prices.title}, {found.prices.date}, {unit}"),
        ("protected", f"{format_size(protected_bytes)} on the first day, "
         f"{found.mean_instances:.1f} instances"),
        ("months", f"{found.months} from month {found.first_month + 1}"),
        ("a month", f"{found.a_month:,.2f} {unit}"),
        *((f"  {name}", f"{amount / found.months:,.2f}") for name, amount in found.by_part),
        ("in all", f"{found.total:,.2f} {unit}"),
    ]  # fmt: skip
    says = {reading.name: reading.says for reading in billing_facts().readings
            if reading.topic == "overlap"}  # fmt: skip
    rows.append(("changes overlap", f"{found.readings.overlap}: {says[found.readings.overlap]}"))
    if found.assumed:
        rows.append(("assumed", ", ".join(found.assumed) + ": no document has these prices"))
    tables = [
        grid(
            (table.what, f"{table.title}, {unit}"),
            [(row.choice, f"{row.total:,.2f}") for row in table.rows],
        )
        for table in (choices, left)
    ]
    return "\n\n".join([lines(rows), *tables])


def plan(args: argparse.Namespace) -> Reply:
    """A better schedule for a scenario's fleet."""
    from vmbk.service.planner import plan_schedule

    ways: dict[str, bool | str] = {"accounts": True, "managed": "managed", "none": False}
    scenario = _scenario(args)
    found = plan_schedule(
        scenario, move_disks=ways[args.move_disks], window=args.window, step=args.step
    )
    reply: Reply = found.to_dict()
    if args.output:
        Path(args.output).write_text(found.to_toml(), encoding="utf-8")
        reply["output"] = args.output
    reply["_text"] = _plan_text(scenario, found)
    return reply


def _plan_text(scenario: Scenario, found: PlannedSchedule) -> str:
    import polars as pl

    shown = [("makespan", "makespan_s"), ("mean job", "mean_s"), ("95 % of jobs within", "p95_s"),
             ("throttled a day", "throttled_s"), ("lost a day", "lost_s")]  # fmt: skip
    both = (found.before, found.after)
    rows = [
        (name, *(_time(round(getattr(each, field) * 1e9)) for each in both))
        for name, field in shown
    ]
    for name, field in (("egress wanted at most", "peak_egress"),
                        ("requests wanted at most", "peak_requests")):  # fmt: skip
        rows.append((name, *(f"{getattr(each, field):.0%} of the limit" for each in both)))
    rows += [
        (name, *(f"{getattr(each, field):,}" for each in both))
        for name, field in (("late jobs", "late"), ("missed jobs", "missed"))
    ]
    faster = (
        f"a day's jobs end {found.ratio:.2f} times as fast"
        if found.ratio >= 1.005
        else "a day's jobs end no sooner, with less load"
    )
    title = f"{scenario.name}: {faster if found.improved else 'nothing better was found'}"
    parts = [title, grid(("", "before", "after"), rows)]
    if len(found.policies):
        columns = [row[:4] for row in found.policies.rows()]
        parts.append(grid(("policy", "like", "at", "VMs"), columns))
    moved = found.changes.filter(pl.col("change") != "time")
    if len(moved):
        told = [(m["vm"], m["disk"], m["old"], m["new"])
                for m in moved.head(SHOWN).iter_rows(named=True)]  # fmt: skip
        more = f"\n… and {len(moved) - SHOWN:,} more" if len(moved) > SHOWN else ""
        parts.append(grid(("moved: VM", "disk", "from", "to"), told) + more)
    curve = scenario.profile.numbers["queue_curve"]
    if found.improved and curve.basis == "inferred":
        parts.append(
            f"When transfers wait long is inferred (queue_curve = {curve.value}, at most "
            f'{scenario.profile.numbers["queue_peak"]}): try [readings] queue_curve = "flat" too.'
        )
    return "\n\n".join([*parts, *found.notes])


def advise(args: argparse.Namespace) -> Reply:
    """Best practices that a scenario does not follow, and what following them brings."""
    from vmbk.service.advice import advise

    only = tuple(args.only) or None
    found = advise(_scenario(args), not args.no_effects, only=only)
    texts = [
        f"{row['severity']}: {row['what']}\n"
        + "".join(
            f"  {name}: {row[key]}\n"
            for name, key in (("do", "todo"), ("why", "reason"), ("effect", "effect"),
                              ("source", "source"))
            if row[key]
        )
        for row in found.frame.iter_rows(named=True)
    ]  # fmt: skip
    return {**found.to_dict(), "_text": "\n".join(texts).rstrip() or "nothing to advise"}


def explain(args: argparse.Namespace) -> Reply:
    """Why one job was large, or slow."""
    from vmbk.service.explanation import explain_job
    from vmbk.service.simulation import simulate

    found = explain_job(simulate(_scenario(args), disks=True), args.vm, args.job)
    parts = [(part.name, format_duration(part.ns / 1e9), part.meaning) for part in found.parts]
    return {**found.to_dict(), "_text": f"{found.text}\n\n{grid(('part', 'took', ''), parts)}"}
