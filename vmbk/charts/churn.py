"""Charts of what changes over time, and what backing up more often costs.

Each takes a table of `vmbk.trace.metrics`.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Final

import polars as pl

from vmbk.charts.style import GOOD, MUTED, WIDE, altair, byte_unit
from vmbk.charts.tables import sizes
from vmbk.charts.traces import (
    AGAIN,
    DURATION_ON_AXIS,
    NEW,
    OVER,
    clock_unit,
    first_bar,
    in_windows,
    of_volume,
    panel,
    part_bars,
    placed,
    stairs,
    time_axis,
    whose,
)
from vmbk.errors import InputError
from vmbk.units import format_duration, format_interval, format_size

if TYPE_CHECKING:
    import altair as alt

PARTS: Final = {
    "first written": ("new_bytes", NEW),
    "changed again": ("again_bytes", AGAIN),
    "rewritten within the window": ("over_bytes", OVER),
}
"""What a window's writes are made of, by how a chart names it: column and colour."""


def churn_over_time(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """What the writes of each window change: the bytes that an incremental would send.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.churn` returns it.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart
        Bars of the blocks that changed, those never written before apart; grey above them is what
        was written on top of the same blocks within the window, which an incremental does not send.

    Raises
    ------
    InputError
        If the table has no such volume, or only one window.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    columns = ("window", "start_s", "block_writes", "unique_blocks", "unique_bytes", "new_bytes")
    found, seconds, each = in_windows(of_volume(frame, volume, columns, part="churn"))
    block = found.filter(pl.col("unique_blocks") > 0).select(
        (pl.col("unique_bytes") // pl.col("unique_blocks")).max()
    )
    size = block.item() or 0
    bars = (
        found.group_by("bar")
        .agg(pl.col("block_writes", "unique_bytes", "new_bytes").sum())
        .sort("bar")
        .with_columns(
            (pl.col("unique_bytes") - pl.col("new_bytes")).alias("again_bytes"),
            (pl.col("block_writes") * size - pl.col("unique_bytes")).alias("over_bytes"),
        )
    )
    bars, longest, begin = placed(bars, seconds, each)
    divisor, unit = byte_unit(
        float(bars.select((pl.col("unique_bytes") + pl.col("over_bytes")).max()).item())
    )
    parts = [column for column, _ in PARTS.values()]
    stacked = [
        (name, parts[k], (pl.lit(0), *map(pl.col, parts[:k]))) for k, name in enumerate(PARTS)
    ]
    data = pl.concat(
        bars.select(
            "bar", "from", "to", pl.lit(name).alias("part"),
            pl.col(column).alias("bytes"),
            (pl.sum_horizontal(below) / divisor).alias("low"),
            (pl.sum_horizontal(*below, column) / divisor).alias("high"),
        )
        for name, column, below in stacked
    ).with_columns(
        pl.format("{}: {} {}", (pl.col("bar") * each * seconds).map_elements(
            _instant, return_dtype=pl.String), sizes("bytes"), "part").alias("tip"),
    ).filter(pl.col("bytes") > 0)  # fmt: skip
    colours = {name: colour for name, (_, colour) in PARTS.items()}
    marks = part_bars(
        time_axis(longest, begin), f"{unit} per {'bar' if each > 1 else 'window'}",
        "part:N", colours, "window at",
    )  # fmt: skip
    bar = f"; a bar sums {each} of them" if each > 1 else ""
    return panel(
        alt.layer(marks, data=data), "What changes over time",
        f"Bytes written in windows of {format_interval(seconds)}{bar}, as {format_size(size)} "
        f"blocks; {whose(volume, frame)}",
    )  # fmt: skip


def sent_so_far(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """How the set of blocks ever written grows, and what incrementals send of it.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.churn` returns it.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart
        Where the lower curve is flat while the upper one climbs, the workload changes the same
        blocks again and again.

    Raises
    ------
    InputError
        If the table has no such volume, or only one window.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    columns = ("window", "start_s", "unique_bytes", "wss_bytes")
    found, seconds, each = in_windows(
        of_volume(frame, volume, columns, part="churn").sort("window")
    )
    curves = {"ever written": "wss_bytes", "sent by incrementals so far": "sent_bytes"}
    found = (
        found.with_columns(pl.col("unique_bytes").cum_sum().alias("sent_bytes"))
        .group_by("bar").agg(pl.col(*curves.values()).last()).sort("bar")
    )  # fmt: skip
    # Nothing is written before the first window; beyond the last there is room to see its step.
    first, last = first_bar(found), int(found["bar"][-1])
    start = pl.DataFrame({"bar": [first - 1], "wss_bytes": [0], "sent_bytes": [0]})
    longest = (last + 1 + 0.03 * (last + 1 - first)) * each * seconds
    found = pl.concat([start, found]).with_columns(
        ((pl.col("bar") + 1) * each * seconds).cast(pl.Float64).alias("at")
    )
    found = pl.concat([found, found[-1:].with_columns(pl.lit(longest).alias("at"))])
    divisor, unit = byte_unit(float(found["sent_bytes"].max()))  # type: ignore[arg-type]
    scale, _ = clock_unit(longest)
    data = pl.concat(
        found.select(
            (pl.col("at") / scale).alias("from"),
            pl.lit(name).alias("curve"),
            (pl.col(column) / divisor).alias("size"),
            pl.format("{} {} after {}", sizes(column), pl.lit(name),
                      ((pl.col("bar") + 1) * each * seconds).map_elements(
                          _instant, return_dtype=pl.String)).alias("tip"),
        )
        for name, column in curves.items()
    )  # fmt: skip
    colours = dict(zip(curves, (GOOD, MUTED), strict=True))
    lines = stairs(time_axis(longest, first * each * seconds), unit, "curve:N", colours)
    return panel(
        alt.layer(lines, data=data), "What had been sent by then",
        f"Blocks ever written, and the sum of what an incremental every {format_interval(seconds)} "
        f"sends; {whose(volume, frame)}",
    )  # fmt: skip


def rewrites_over_time(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """How often the blocks that change in a window are written in it.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.churn` returns it.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart
        Bars of the rewrite ratio, which is 1 where every block is written once; what is above, an
        incremental does not send. Windows that share a bar are counted together.

    Raises
    ------
    InputError
        If the table has no such volume, or only one window.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    columns = ("window", "start_s", "block_writes", "unique_blocks")
    found, seconds, each = in_windows(of_volume(frame, volume, columns, part="churn"))
    bars = (
        found.group_by("bar").agg(pl.col("block_writes", "unique_blocks").sum())
        .filter(pl.col("unique_blocks") > 0).sort("bar")
        .with_columns((pl.col("block_writes") / pl.col("unique_blocks")).alias("ratio"))
    )  # fmt: skip
    if bars.is_empty():
        raise InputError("nothing to draw: nothing changed")
    bars, longest, begin = placed(bars, seconds, each)
    kinds = {"the first time": (pl.lit(0.0), pl.lit(1.0), GOOD),
             "again": (pl.lit(1.0), pl.col("ratio"), OVER)}  # fmt: skip
    data = pl.concat(
        bars.select(
            "from", "to", pl.lit(name).alias("part"), low.alias("low"), high.alias("high"),
            pl.format("{} block writes to {} blocks, {} each", "block_writes", "unique_blocks",
                      pl.col("ratio").round(2)).alias("tip"),
        )
        for name, (low, high, _) in kinds.items()
    ).filter(pl.col("high") > pl.col("low"))  # fmt: skip
    colours = {name: colour for name, (*_, colour) in kinds.items()}
    marks = part_bars(time_axis(longest, begin), "block writes per block", "part:N", colours)
    return panel(
        alt.layer(marks, data=data), "How often a changed block is written",
        f"Block writes over the blocks that changed, in windows of "
        f"{format_interval(each * seconds)}; {whose(volume, frame)}",
    )  # fmt: skip


def interval_cost(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """What incrementals send together, by how often they run.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.interval_cost` returns it.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart
        The cost is 1 where a backup at the end sends as much as all the incrementals together.
        Intervals longer than the trace are left out, and the subtitle says how many.

    Raises
    ------
    InputError
        If the table has no such volume, no interval with changes, or only such as are longer than
        the trace.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    columns = ("interval_s", "windows", "changed_bytes", "unique_bytes", "cost")
    changed = of_volume(frame, volume, columns).filter(pl.col("cost").is_finite())
    if changed.is_empty():
        raise InputError("nothing to draw: nothing changed in any interval")
    found = changed.filter(pl.col("windows") > 1)
    if found.is_empty():
        raise InputError(
            "nothing to draw: no interval is shorter than the trace, and longer ones cost 1",
            hint="measure shorter ones, such as vmbk.interval_cost(trace, ['1s', '10s'])",
        )
    data = found.sort("interval_s").with_columns(
        pl.col("interval_s").map_elements(format_interval, return_dtype=pl.String).alias("every"),
        sizes("changed_bytes").alias("sent"),
        pl.col("cost").map_elements(lambda c: f"{c:.2f}", return_dtype=pl.String).alias("label"),
    ).with_columns(
        pl.format("every {}: {} sent, {} times the unique bytes", "every", "sent", "label")
        .alias("tip"),
    )  # fmt: skip
    intervals = data["interval_s"].to_list()
    # Beside the first and the last point there is room for half a label.
    beside = (intervals[-1] / intervals[0]) ** 0.05 if intervals[-1] > intervals[0] else 2.0
    domain = [intervals[0] / beside, intervals[-1] * beside]
    labelled = _spaced(intervals, data["label"].to_list())
    data = data.with_columns(pl.col("interval_s").is_in(labelled).alias("labelled"))
    named = _spaced(intervals, data["every"].to_list())
    names = f"indexof({json.dumps(named)}, datum.value) < 0 ? '' : {DURATION_ON_AXIS}"
    top = float(data["cost"].max())  # type: ignore[arg-type]
    x = alt.X(
        "interval_s:Q", title="time between two incrementals",
        scale=alt.Scale(type="log", nice=False, domain=domain),
        axis=alt.Axis(values=intervals, labelExpr=names, grid=False, labelOverlap=False),
    )  # fmt: skip
    base = alt.Chart().encode(
        x=x,
        y=alt.Y("cost:Q", title="sent ÷ unique bytes", axis=alt.Axis(tickCount=5, grid=True),
                scale=alt.Scale(domain=[0, max(top, 1.0) * 1.15])),
    )  # fmt: skip
    line = base.mark_line(color=GOOD, strokeWidth=2)
    points = base.mark_point(filled=True, color=GOOD, size=45, opacity=1).encode(
        description="tip:N",
        tooltip=[alt.Tooltip("every:N"), alt.Tooltip("sent:N"),
                 alt.Tooltip("cost:Q", format=".2f")],
    )  # fmt: skip
    labels = base.transform_filter("datum.labelled").mark_text(dy=-11).encode(text="label:N")
    once = alt.Chart().mark_rule(color=MUTED, strokeDash=[4, 3]).encode(y=alt.datum(1))
    layers = [once, line, points, labels]
    unique = format_size(int(data["unique_bytes"][0]))
    longer = len(changed) - len(found)
    left_out = f"; {longer} longer than the trace left out" if longer else ""
    return panel(
        alt.layer(*layers, data=data), "What more frequent incrementals cost",
        f"Bytes that changed in each interval, summed, over the {unique} that changed in all"
        f"{left_out}; {whose(volume, frame)}",
    )  # fmt: skip


def _spaced(intervals: list[float], labels: list[str]) -> list[float]:
    """Those intervals that have room for their labels on a logarithmic axis, the two ends first.

    Parameters
    ----------
    intervals : list of float
        Shortest first; they take ten parts of eleven of the axis.
    labels : list of str
        Some 6 pixels a character, in the middle over or under each.
    """
    span = math.log(intervals[-1] / intervals[0]) or 1.0
    places = [math.log(each / intervals[0]) / span * WIDE / 1.1 for each in intervals]
    half = [3.1 * len(label) + 4 for label in labels]
    shown, last = [0], len(intervals) - 1
    for i in range(1, last):
        after = places[i] - half[i] >= places[shown[-1]] + half[shown[-1]]
        if after and places[i] + half[i] <= places[last] - half[last]:
            shown.append(i)
    return [intervals[i] for i in dict.fromkeys((*shown, last))]


def _instant(seconds: float) -> str:
    return "0 s" if seconds == 0 else format_duration(seconds)
