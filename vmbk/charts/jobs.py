"""Charts of simulated jobs: how long they take, what a deleted snapshot costs, what is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from vmbk.charts.fleet import PHASE_COLOURS, simulated
from vmbk.charts.style import (
    BAD,
    INK,
    MUTED,
    WIDE,
    altair,
    figure,
    finish,
    part_colour,
    tip,
)
from vmbk.charts.tables import short_names
from vmbk.errors import InputError
from vmbk.service.plan import DAY, HOUR
from vmbk.units import format_duration, quoted

if TYPE_CHECKING:
    import altair as alt

    from vmbk.service.objectives import Objectives
    from vmbk.service.simulation import Simulation

BINS: Final = 25
"""Bars of a distribution of durations."""

MOST_JOBS: Final = 90
"""Jobs of one VM that are drawn."""

READ_COLOURS: Final = {"read to find changes": "#ccbb44", "sent": "#4477aa"}

TIER_WORDS: Final = {
    "any": "machine lost",
    "snapshot": "machine lost, from snapshots only",
    "vault": "machine and snapshots lost",
    "secondary": "region lost",
    "machine": "machine lost",
    "snapshots": "machine and snapshots lost",
    "region": "region lost",
}
"""What is lost, by tier of the point that is left or by disaster."""

RANGES: Final = {"half": "#08519c", "95 %": "#6baed6", "all": "#c6dbef"}
ENDS: Final = dict(zip(RANGES, ("p50", "p95", "max"), strict=True))

_ROW: Final = 30


def durations(simulation: Simulation) -> alt.FacetChart:
    """How long first and later backups take, and of what that is made.

    Parameters
    ----------
    simulation : Simulation

    Returns
    -------
    altair.FacetChart
        A panel for first backups and one for incremental ones. Jobs stand in the order of their
        durations, of many jobs `BINS` groups of neighbours; each bar is their mean, by part. Jobs
        without a transfer that was done are left out.

    Raises
    ------
    InputError
        If it is no simulation, or no transfer was done.
    VmbkError
        If Altair is not installed.
    """
    jobs = simulated(simulation).jobs.filter(pl.col("transfer") == "done")
    if jobs.is_empty():
        raise InputError("nothing to draw: no transfer was done")
    rows, panels = [], []
    jobs = jobs.with_columns(length=pl.col("end_ns") - pl.col("start_ns"))
    for initial, what in ((True, "first backups"), (False, "incremental backups")):
        mine = jobs.filter(pl.col("initial") == initial)
        if len(mine):
            half = float(mine["length"].quantile(0.5, "nearest") or 0) / 1e9
            panels.append(f"{len(mine):,} {what}, half within {format_duration(half)}")
            rows.append(_ranked(mine).with_columns(panel=pl.lit(panels[-1])))
    data = pl.concat(rows)
    alt = altair()
    shown = {k: v for k, v in PHASE_COLOURS.items() if k in set(data["phase"])}
    chart = alt.layer(
        alt.Chart(data).mark_rect(stroke="#ffffff", strokeWidth=0.4).encode(
            x=alt.X("left:Q", title="share of jobs that take no longer",
                    scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%", tickCount=5)),
            x2="right:Q",
            y=alt.Y("low:Q", title="hours", axis=alt.Axis(grid=True, tickCount=6)),
            y2="high:Q", color=part_colour("phase:N", shown), **tip(),
        )
    )  # fmt: skip
    return figure(
        chart, panels, f"How long backups take, and why: {simulation.scenario.name}",
        "Jobs in the order of their durations; each bar is the mean of its jobs, by part",
        height=240, beside=10, y="independent",
    )  # fmt: skip


def _ranked(jobs: pl.DataFrame) -> pl.DataFrame:
    """Mean parts of neighbours in the order of durations, as pieces of a bar for each group."""
    bins, place = min(BINS, len(jobs)), {phase: i for i, phase in enumerate(PHASE_COLOURS)}
    return (
        jobs.sort("length", "vm", "job")
        .group_by(bin=pl.int_range(pl.len()) * bins // len(jobs), maintain_order=True)
        .agg((pl.col(f"{phase}_ns").mean() / HOUR).alias(phase) for phase in PHASE_COLOURS)
        .unpivot(index="bin", variable_name="phase", value_name="hours")
        .sort("bin", pl.col("phase").replace_strict(place))
        .with_columns(high=pl.col("hours").cum_sum().over("bin"))
        .filter(pl.col("hours") > 0)
        .select(
            "phase", "high", low=pl.col("high") - pl.col("hours"),
            left=pl.col("bin") / bins, right=(pl.col("bin") + 1) / bins,
            tip=pl.format("{}: {} h", "phase", pl.col("hours").round(3)),
        )
    )  # fmt: skip


def deleted_snapshot(simulation: Simulation, vm: str) -> alt.VConcatChart:
    """What the jobs of a VM whose snapshots were deleted take and read, day by day.

    Parameters
    ----------
    simulation : Simulation
    vm : str
        Its name; the scenario has an event ``delete-snapshots`` for it.

    Returns
    -------
    altair.VConcatChart
        Durations by part over bytes read and sent, of at most `MOST_JOBS` jobs about the first
        deletion; each deletion is marked. First backups are left out.

    Raises
    ------
    InputError
        If there is no such VM, no snapshot of it was deleted, or it has no later backups.
    VmbkError
        If Altair is not installed.
    """
    scenario = simulated(simulation).scenario
    if vm not in {each.name for each in scenario.vms}:
        raise InputError(f"there is no VM {quoted(vm)}")
    deleted = [e.at for e in scenario.events if e.kind == "delete-snapshots" and e.target == vm]
    if not deleted:
        raise InputError(
            f"no snapshot of {quoted(vm)} is deleted", hint='an event kind = "delete-snapshots"'
        )
    jobs = simulation.jobs.filter(
        pl.col("vm") == vm, pl.col("transfer") == "done", ~pl.col("initial")
    ).with_columns(pl.col("vm").cast(pl.String))
    if jobs.is_empty():
        raise InputError(f"nothing to draw: {quoted(vm)} has no incremental backup")
    at = int((jobs["start_ns"] < deleted[0]).sum())
    jobs = jobs.slice(max(at - MOST_JOBS // 2, 0), MOST_JOBS)
    first, days = scenario.first_day, pl.col("start_ns") / DAY
    when = (pl.lit(first) + pl.duration(days=days.floor().cast(pl.Int64))).dt.to_string()
    low, high = float(jobs.select(days.min()).item()), float(jobs.select(days.max()).item())
    marks = pl.DataFrame(
        {"day": [m / DAY for m in deleted], "text": ["snapshots deleted"] * len(deleted)}
    ).filter(pl.col("day").is_between(low - 1, high + 1))
    phases = jobs.unpivot(
        on=[f"{phase}_ns" for phase in PHASE_COLOURS], index=["start_ns"], variable_name="part"
    ).with_columns(pl.col("part").str.strip_suffix("_ns"), value=pl.col("value") / HOUR)
    columns = dict(zip(READ_COLOURS, (pl.col("read_bytes"), pl.col("sent_bytes")), strict=True))
    moved = jobs.select("start_ns", **columns).unpivot(index=["start_ns"], variable_name="part")
    moved = moved.with_columns(value=pl.col("value") / 1e9)
    shown = {k: v for k, v in PHASE_COLOURS.items()
             if k in set(phases.filter(pl.col("value") > 0)["part"])}  # fmt: skip
    alt = altair()
    scale = alt.Scale(domain=[low - 0.6, high + 0.6], nice=False)
    axis = alt.Axis(tickMinStep=1, tickCount=15, format="d")
    width = max(3, min(16, int(WIDE / (high - low + 2) * 0.7)))

    def panel(rows: pl.DataFrame, unit: str, colours: dict[str, str], title: str | None) -> Any:
        place = {name: i for i, name in enumerate(colours)}
        data = rows.filter(pl.col("value") > 0).with_columns(
            pl.col("part").replace_strict(place).alias("place"), day=days,
            tip=pl.format("{}, {}: {} {}", when, "part", pl.col("value").round(3), pl.lit(unit)),
        ).drop("start_ns")  # fmt: skip
        x = alt.X("day:Q", title=title, scale=scale, axis=axis)
        bars = alt.Chart(data).mark_bar(size=width).encode(
            x=x, y=alt.Y("value:Q", title=unit, axis=alt.Axis(grid=True, tickCount=5)),
            color=part_colour("part:N", colours), order="place:Q", **tip(),
        )  # fmt: skip
        mark = alt.Chart(marks)
        layers = [bars, mark.mark_rule(color=BAD, strokeDash=[4, 3], strokeWidth=1.3).encode(x=x)]
        if unit == "hours":
            text = mark.mark_text(align="right", dx=-5, y=6, color=BAD)
            layers.append(text.encode(x=x, text="text:N"))
        return alt.layer(*layers).properties(width=WIDE, height=130)

    chart = alt.vconcat(
        panel(phases, "hours", shown, None),
        panel(moved, "GB", READ_COLOURS, f"day of the scenario, from {first}"),
        spacing=10,
    ).resolve_scale(color="independent")
    fell = jobs.filter(pl.col("fallback"))
    read = f"{int(fell['read_bytes'].sum()) / 1e9:,.0f} GB"
    name = short_names(pl.Series([vm]))[vm]
    return finish(
        chart, f"What deleted snapshots cost: {name}",
        f"Above: durations by part; below: bytes. {len(fell)} of {len(jobs)} jobs fell back to "
        f"reading the disks: {read}",
    )  # fmt: skip


def recovery_objectives(objectives: Objectives) -> alt.FacetChart:
    """How much would be lost at a random moment, and how long until it is back.

    Parameters
    ----------
    objectives : Objectives
        As `vmbk.service.objectives.objectives` returns it.

    Returns
    -------
    altair.FacetChart
        A row for each kind of loss: bars end at what is not exceeded half of the time, 95 % of it,
        and ever. A red mark is the target, the number how often it is missed. A second panel has
        recovery times, where restores were given.

    Raises
    ------
    InputError
        If they are no objectives, or there was never a usable point.
    VmbkError
        If Altair is not installed.
    """
    from vmbk.service.objectives import Objectives

    if not isinstance(objectives, Objectives):
        raise InputError(f"{quoted(objectives)} are no objectives", hint="pass what it returned")
    points = objectives.fleet.filter(pl.col("label") == "crash").with_columns(
        what=pl.col("tier").cast(pl.String), panel=pl.lit("recovery point: data lost"),
        text=pl.format("{} % above target", (pl.col("above") * 100).round(1)),
    )  # fmt: skip
    times = objectives.restore.filter(pl.col("vm").is_null()).with_columns(
        what=pl.col("disaster").cast(pl.String), panel=pl.lit("recovery time: until it is back"),
        text=pl.format("95 % within {}", _told("p95")), target=pl.lit(None, pl.Int64),
    )  # fmt: skip
    columns = ["panel", "what", "p50", "p95", "max", "target", "text"]
    rows = pl.concat([points.select(columns), times.select(columns)]).drop_nulls("max")
    if rows.is_empty():
        raise InputError("nothing to draw: there was never a usable point")
    if rows["panel"].n_unique() > 1:  # rows of both panels are of the same losses
        rows = rows.filter(pl.col("what") != "snapshot")
    rows = rows.with_columns(pl.col("what").replace(TIER_WORDS))
    long = pl.concat(
        rows.select(
            "panel", "what", range=pl.lit(word), low=pl.col(since) / HOUR if since else pl.lit(0.0),
            high=pl.col(until) / HOUR,
            tip=pl.format("{}: {} within {}", "what", pl.lit(word), _told(until)),
        )
        for (word, until), since in zip(ENDS.items(), ("", "p50", "p95"), strict=True)
    )  # fmt: skip
    marks = rows.select("panel", "what", "text", range=pl.lit("target"), low=pl.col("max") / HOUR,
                        high=pl.col("target") / HOUR,
                        tip=pl.format("target: {} h", pl.col("target") / HOUR))  # fmt: skip
    data = pl.concat([long, marks], how="diagonal")
    alt = altair()
    order = rows["what"].unique(maintain_order=True).to_list()
    y = alt.Y("what:N", sort=order, title=None,
              axis=alt.Axis(ticks=False, domain=False, labelPadding=8, labelLimit=220,
                            labelFontSize=12, labelColor=INK))  # fmt: skip
    room = 1.3 if rows["panel"].n_unique() == 1 else 1.5  # for the words beside the bars
    most = float(rows.select(pl.col("max").max()).item()) / HOUR * room
    hours = alt.X("low:Q", title="hours", scale=alt.Scale(domain=[0, most or 1.0], nice=False),
                  axis=alt.Axis(grid=True, tickCount=8))  # fmt: skip
    base = alt.Chart(data)
    target = base.transform_filter("datum.range == 'target'")
    chart = alt.layer(
        base.transform_filter("datum.range != 'target'").mark_bar(height=16).encode(
            x=hours, x2="high:Q", y=y, color=part_colour("range:N", RANGES), **tip()
        ),
        target.mark_tick(thickness=2.5, size=24, color=BAD).encode(x="high:Q", y=y),
        target.mark_text(align="left", dx=6, color=MUTED).encode(x="low:Q", y=y, text="text:N"),
    )  # fmt: skip
    panels = rows["panel"].unique(maintain_order=True).to_list()
    return figure(
        chart, panels, "What a disaster at a random moment costs",
        "Bars end at what half, 95 % and all of the moments do not exceed; red: the target",
        height=_ROW * len(order), beside=60,
    )  # fmt: skip


def _told(column: str) -> pl.Expr:
    return pl.col(column).map_elements(lambda ns: format_duration(ns / 1e9), return_dtype=pl.String)
