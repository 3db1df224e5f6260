"""Charts of a simulated fleet: its jobs through a night, and what they ask of storage accounts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from vmbk.charts.style import (
    BAD,
    INK,
    altair,
    figure,
    part_colour,
    tip,
)
from vmbk.charts.tables import short_names
from vmbk.errors import InputError
from vmbk.service.plan import DAY, HOUR
from vmbk.units import format_duration, quoted

if TYPE_CHECKING:
    import altair as alt

    from vmbk.service.simulation import Simulation

PHASE_COLOURS: Final = {
    "install": "#228833",
    "snapshot": "#66ccee",
    "queue": "#d5d5d5",
    "place": "#9a9a9a",
    "scan": "#ccbb44",
    "send": "#4477aa",
    "commit": "#aa3377",
}
"""Of what a job's duration is the sum of, in order; waiting is grey."""

LOAD_COLOURS: Final = {"guests": "#b8b8b8", "backups": "#4477aa"}

MOST_VMS: Final = 40
"""Rows of VMs that can be read."""

MOST_ACCOUNTS: Final = 6

ROW: Final = 15
"""Pixels of a VM's row."""

DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_HOURS: Final = pl.col("begin", "end") / HOUR
_STEPS: Final = (1, 2, 3, 4, 6, 8, 12, 24, 48, 96, 168)
_MOST_ROWS: Final = 4_900


def simulated(simulation: object) -> Simulation:
    """What a chart was given, if it is a simulation with jobs.

    Raises
    ------
    InputError
        If it is not.
    """
    from vmbk.service.simulation import Simulation

    if not isinstance(simulation, Simulation):
        raise InputError(
            f"{quoted(simulation)} is no simulation", hint="pass what vmbk.service.simulate made"
        )
    if simulation.jobs.is_empty():
        raise InputError(f"nothing to draw: {quoted(simulation.scenario.name)} has no job")
    return simulation


def gantt(simulation: Simulation, day: int = 0) -> alt.FacetChart:
    """The jobs of one day, a row for each VM, coloured by what they are made of.

    Parameters
    ----------
    simulation : Simulation
    day : int
        From 0. A day begins after the longest pause of the schedule, so that a night is one day.

    Returns
    -------
    altair.FacetChart
        The clock to the right; the VM that ends last at the top, of a large fleet the `MOST_VMS`
        that end last. A cross stands at the end of a job without a new point in the vault.

    Raises
    ------
    InputError
        If it is no simulation, or no job was scheduled on that day.
    VmbkError
        If Altair is not installed.
    """
    return _gantt([("", simulated(simulation))], day)


def gantt_before_after(
    before: Simulation, after: Simulation, day: int = 0
) -> alt.FacetChart:  # fmt: skip
    """The same day of a fleet under two schedules, side by side, each with its makespan.

    Parameters
    ----------
    before, after : Simulation
        Of fleets with the same VMs.
    day : int
        From 0; see `gantt`.

    Returns
    -------
    altair.FacetChart
        As `gantt`, with the VMs of both in the same order.

    Raises
    ------
    InputError
        As `gantt`; also if the fleets have no VM in common.
    VmbkError
        If Altair is not installed.
    """
    pair = [("before", simulated(before)), ("after", simulated(after))]
    names = [{vm.name for vm in each.scenario.vms} for _, each in pair]
    if not names[0] & names[1]:
        raise InputError("the two fleets have no VM in common")
    return _gantt(pair, day)


def _gantt(runs: Sequence[tuple[str, Simulation]], day: int) -> Any:
    if type(day) is not int or day < 0:
        raise InputError(f"day {quoted(day)} is not a whole number from 0")
    found = [(label, *_night(each, day)) for label, each in runs]
    ends = pl.concat([jobs.select("vm", pl.col("end") - first) for _, jobs, first in found])
    order = ends.group_by("vm", maintain_order=True).agg(pl.col("end").max())
    order = order.sort("end", descending=True, maintain_order=True)
    shown, names = order["vm"].head(MOST_VMS), short_names(order["vm"].head(MOST_VMS), 22)
    rows, panels = [], []
    for label, jobs, first in found:
        last = int(jobs["end"].max())  # type: ignore[arg-type]
        took = format_duration((last - first) / 1e9)
        panels.append(f"{label}: {took}" if label else f"{took} from the first slot to the end")
        mine = jobs.filter(pl.col("vm").is_in(shown.implode())).with_columns(
            pl.col("vm").replace(names), panel=pl.lit(panels[-1])
        )
        rows += [_bars(mine), _crosses(mine), _rule(last, panels[-1])]
    data = pl.concat(rows, how="diagonal").with_columns(_HOURS)
    if len(data) > _MOST_ROWS:
        raise InputError(
            f"a day of {len(data):,} phases cannot be drawn", hint="draw a fleet with fewer jobs"
        )
    scenario = runs[0][1].scenario
    date = scenario.first_day + timedelta(days=day)
    left_out = len(order) - len(shown)
    which = "end last" if len(runs) == 1 else "in either take longest to end"
    note = f"The {len(shown)} of {len(order)} VMs that {which}. " if left_out else ""
    chart = _gantt_layers(data, [names[vm] for vm in shown], scenario.first_day.weekday() + day)
    return figure(
        chart, panels, f"Jobs of {DAYS[date.weekday()]}, {date}: {scenario.name}",
        f"{note}Dashed: the end of the last job; cross: no new point in the vault",
        height=ROW * len(shown),
    )  # fmt: skip


def _night(simulation: Simulation, day: int) -> tuple[pl.DataFrame, int]:
    """Jobs that belong to a day, times from its midnight, and their first slot."""
    from vmbk.service.planner_measure import day_begin

    jobs = simulation.jobs.with_columns(pl.col("vm").cast(pl.String))
    begin = day_begin(jobs["scheduled_ns"].to_numpy())
    if begin > DAY // 2 and day > 0:  # the evening before begins the night of this day
        begin -= DAY
    low = day * DAY + begin
    jobs = jobs.filter(pl.col("scheduled_ns").is_between(low, low + DAY, closed="left"))
    if jobs.is_empty():
        raise InputError(
            f"nothing to draw: no job was scheduled on day {day}",
            hint=f"the scenario has days 0 to {simulation.scenario.days - 1}",
        )
    moments = pl.col("scheduled_ns", "start_ns", "end_ns") - day * DAY
    jobs = jobs.with_columns(moments).rename({"start_ns": "begin", "end_ns": "end"})
    return jobs, int(jobs["scheduled_ns"].min())  # type: ignore[arg-type]


def _bars(jobs: pl.DataFrame) -> pl.DataFrame:
    """A row for each phase of each job."""
    parts, start = [], pl.col("begin")
    for phase in PHASE_COLOURS:
        length = pl.col(f"{phase}_ns")
        parts.append(
            jobs.filter(length > 0).select(
                "panel", "vm", kind=pl.lit("bar"), phase=pl.lit(phase), begin=start,
                end=start + length, text=pl.lit(""),
                tip=pl.format("{}: {} {} from {}", "vm", pl.lit(phase), _told(length),
                              _clock(start)),
            )
        )  # fmt: skip
        start = start + length
    return pl.concat(parts)


def _crosses(jobs: pl.DataFrame) -> pl.DataFrame:
    """Jobs that brought nothing into the vault, though they should have."""
    bad = ~pl.col("transfer").cast(pl.String).is_in(["done", "not due"])
    what = pl.when(pl.col("cause").cast(pl.String) == "").then(pl.lit("")).otherwise(
        pl.format(" ({})", pl.col("cause").cast(pl.String))
    )  # fmt: skip
    return jobs.filter(bad).select(
        "panel", "vm", kind=pl.lit("cross"), begin=pl.col("end"), end=pl.col("end"),
        text=pl.lit(""),
        tip=pl.format("{}: job {}, transfer {}{}", "vm", "state", "transfer", what),
    )  # fmt: skip


def _rule(last: int, panel: str) -> pl.DataFrame:
    at = _clock_text(last)
    return pl.DataFrame(
        {"panel": [panel], "kind": ["rule"], "begin": [last], "end": [last],
         "text": [at], "tip": [f"the last job ends at {at}"]}
    )  # fmt: skip


def _gantt_layers(data: pl.DataFrame, vms: Sequence[str], weekday: int) -> Any:
    alt = altair()
    low, high = float(data["begin"].min()), float(data["end"].max())  # type: ignore[arg-type]
    low = float(np.floor(low))
    step = next((s for s in _STEPS if (high - low) / s <= 8), int(high - low) // 8 + 1)
    x = alt.X(
        "begin:Q", title="time of day",
        scale=alt.Scale(domain=[low, high + (high - low) * 0.02], nice=False),
        axis=alt.Axis(values=list(range(int(-(-low // step) * step), int(high) + 1, step)),
                      grid=True, labelExpr=_clock_labels(weekday)),
    )  # fmt: skip
    y = alt.Y("vm:N", sort=list(vms), title=None,
              axis=alt.Axis(ticks=False, domain=False, labelPadding=6, labelLimit=150,
                            labelColor=INK))  # fmt: skip
    shown = {k: v for k, v in PHASE_COLOURS.items() if k in set(data["phase"])}
    base = alt.Chart(data)
    bars = base.transform_filter("datum.kind == 'bar'").mark_bar(height=ROW - 4).encode(
        x=x, x2="end:Q", y=y, color=part_colour("phase:N", shown), **tip()
    )  # fmt: skip
    crosses = base.transform_filter("datum.kind == 'cross'").mark_point(
        shape="cross", angle=45, size=70, filled=True, color=BAD, opacity=1, stroke="#ffffff",
        strokeWidth=0.5,
    ).encode(x=x, y=y, **tip())  # fmt: skip
    rule = base.transform_filter("datum.kind == 'rule'")
    return alt.layer(
        bars, crosses,
        rule.mark_rule(strokeDash=[4, 3], color=INK, strokeWidth=1.2).encode(x=x, **tip()),
        rule.mark_text(align="right", dx=-4, y=ROW * len(vms) - 8, fontWeight="bold").encode(
            x=x, text="text:N"
        ),
    )  # fmt: skip


def _clock_labels(weekday: int) -> str:
    """How an axis of hours is labelled: the clock, and at midnight the day."""
    days = ", ".join(f"'{day[:3]}'" for day in DAYS)
    return (
        "[pad(((datum.value % 24) + 24) % 24, 2, '0', 'left') + ':00', "
        f"datum.value % 24 == 0 ? [{days}][(floor(datum.value / 24) + {weekday % 7 + 7}) % 7] : '']"
    )


def _clock_text(ns: int) -> str:
    minutes = ns // (60 * 10**9)
    return f"{minutes // 60 % 24:02d}:{minutes % 60:02d}"


def _clock(moment: pl.Expr) -> pl.Expr:
    return moment.map_elements(_clock_text, return_dtype=pl.String)


def _told(ns: pl.Expr) -> pl.Expr:
    return ns.map_elements(lambda value: format_duration(value / 1e9), return_dtype=pl.String)


# --- Storage accounts -----------------------------------------------------------------------------


def account_load(simulation: Simulation, day: int | None = None) -> alt.FacetChart:
    """What guests and backups take of storage accounts by hour, against the caps.

    Parameters
    ----------
    simulation : Simulation
        With disks: ``simulate(…, disks=True)``.
    day : int, optional
        Of which day; the mean of all unless told.

    Returns
    -------
    altair.FacetChart
        Two panels for each account, egress and requests: bars are means of an hour, ticks the most
        that was asked for at once while backups ran, all against the cap. Of many accounts the
        `MOST_ACCOUNTS` that were at their caps longest.

    Raises
    ------
    InputError
        If there are no accounts (managed disks share none), the disks were not kept, or there is
        no such day.
    VmbkError
        If Altair is not installed.
    """
    simulated(simulation)
    scenario, plan = simulation.scenario, simulation.plan
    if not scenario.accounts:
        raise InputError(
            "nothing to draw: the scenario has no storage accounts", hint="managed disks share none"
        )
    if day is not None and not (type(day) is int and 0 <= day < scenario.days):
        raise InputError(f"day {quoted(day)} is not one of 0 to {scenario.days - 1}")
    first, days = (0, scenario.days) if day is None else (day, 1)
    order = np.argsort(-simulation.accounts["throttled_ns"].to_numpy(), kind="stable")
    shown = sorted(order[:MOST_ACCOUNTS].tolist())
    hours = _account_hours(simulation, first, days, shown)
    names = list(short_names(pl.Series(list(scenario.accounts)), 20).values())
    rows, panels = [], []
    for a in shown:
        caps = (f"{int(plan.accounts[a, 0]) / 1e6:,.0f} MB/s", f"{int(plan.accounts[a, 1]):,}/s")
        for what, cap in zip(("egress", "requests"), caps, strict=True):
            panels.append(f"{names[a]}: {what}, cap {cap}")
            mine = hours.filter(account=a, what=what)
            rows.append(mine.with_columns(panel=pl.lit(panels[-1])))
    data = pl.concat(rows).filter(pl.col("high") > pl.col("low")).select(
        "panel", "hour", "kind", "low", "high",
        tip=pl.format("{}:00, {}: {} % of the cap", "hour", "kind",
                      ((pl.col("high") - pl.col("low")) * 100).round(1)),
    )  # fmt: skip
    when = "Mean of all days" if day is None else str(scenario.first_day + timedelta(days=day))
    note = f" The {len(shown)} of {len(scenario.accounts)} accounts longest at their caps."
    return figure(
        _load_layers(data), panels, f"Load of storage accounts: {scenario.name}",
        f"{when}. Bars: an hour's mean; ticks: the most that is asked for at once; dashed: the cap."
        + (note if len(shown) < len(scenario.accounts) else ""),
        height=150, beside=20,
    )  # fmt: skip


def _account_hours(
    simulation: Simulation, first: int, days: int, shown: Sequence[int]
) -> pl.DataFrame:
    """By account, egress or requests, and hour: what guests and backups got, and the most asked."""
    from vmbk.service.load import account_load as loads
    from vmbk.service.plan import ONE

    plan = simulation.plan
    found = loads(plan, simulation.outputs, first * DAY, (first + days) * DAY)
    accounts = len(plan.accounts)
    hour = found.begin // HOUR % 24
    length = (found.end - found.begin) / HOUR / days
    share = found.share / ONE
    rows = []
    for i, what in enumerate(("egress", "requests")):
        cap = plan.accounts[:, i].astype(np.float64)[:, None]
        own = (plan.guest_egress, plan.guest_requests)[i]
        asked = (found.backup_egress, found.backup_requests)[i]
        backups, lost, peak = (np.zeros((accounts, 24)) for _ in range(3))
        np.add.at(backups, (found.account, hour), asked * share * length)
        guests_asked = own[found.account, hour]
        np.add.at(lost, (found.account, hour), guests_asked * (1 - share) * length)
        np.maximum.at(peak, (found.account, hour), (asked + guests_asked).astype(np.float64))
        guests, ours, most = (own - lost) / cap, backups / cap, peak / cap
        for a in shown:
            for h in range(24):
                g, b, m = (round(float(each[a, h]), 6) for each in (guests, ours, most))
                rows.append((a, what, h, "guests", 0.0, g))
                rows.append((a, what, h, "backups", g, g + b))
                if m:
                    rows.append((a, what, h, "asked for", 0.0, m))
    schema = {"account": pl.Int64, "what": pl.String, "hour": pl.Int64, "kind": pl.String,
              "low": pl.Float64, "high": pl.Float64}  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def _load_layers(data: pl.DataFrame) -> Any:
    alt = altair()
    top = max(1.15, float(data.select(pl.col("high").max()).item() or 0) * 1.05)
    x = alt.X("hour:O", title="hour of the day", scale=alt.Scale(domain=list(range(24))),
              axis=alt.Axis(labelAngle=0, values=list(range(0, 24, 3))))  # fmt: skip
    y = alt.Y("low:Q", title="of the cap", scale=alt.Scale(domain=[0, top], nice=False),
              axis=alt.Axis(format="%", tickCount=5, grid=True))  # fmt: skip
    base = alt.Chart(data)
    asked = base.transform_filter("datum.kind == 'asked for'")
    return alt.layer(
        base.transform_filter("datum.kind != 'asked for'").mark_bar(width={"band": 0.9}).encode(
            x=x, y=y, y2="high:Q", color=part_colour("kind:N", LOAD_COLOURS), **tip()
        ),
        asked.mark_tick(thickness=2, width={"band": 0.9}, color=INK).encode(
            x=x, y="high:Q", **tip()
        ),
        base.mark_rule(strokeDash=[4, 3], color=BAD, strokeWidth=1.2).encode(y=alt.datum(1.0)),
    )  # fmt: skip
