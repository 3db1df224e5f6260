"""Charts of what a workload's requests are like: how long, when, where, and how soon again.

Each takes a table of `vmbk.trace.metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from vmbk.charts.style import (
    BYTES_ON_LOG_AXIS,
    GOOD,
    MUTED,
    altair,
    byte_unit,
    part_colour,
    tip,
)
from vmbk.charts.tables import sizes
from vmbk.charts.traces import (
    ACCENT,
    DURATION_ON_AXIS,
    clock_unit,
    duration_ticks,
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

OPERATIONS: Final = {"write": GOOD, "read": ACCENT}
"""Operations whose lengths are shown, and their colours."""

LINES: Final = {
    "read or written": ("total_bytes", MUTED),
    "read": ("read_bytes", ACCENT),
    "written": ("write_bytes", GOOD),
    "written again": ("update_bytes", "#56b4e9"),
}
"""Working sets by how a chart names them: column and colour."""

RARE: Final = 0.005
"""Share of the updates, shorter than all others, with which a curve begins."""

POINTS: Final = 200
"""Points of a curve."""


def request_sizes(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """How long reads and writes are.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.requests.request_sizes` returns it.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart

    Raises
    ------
    InputError
        If the table has no such volume, or nothing was read or written.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    found = of_volume(frame, volume, ("op", "from_bytes", "requests", "bytes", "share"))
    found = found.with_columns(pl.col("op").cast(pl.String)).filter(
        pl.col("op").is_in(list(OPERATIONS)), pl.col("from_bytes") > 0
    )
    if found.is_empty():
        raise InputError("nothing to draw: nothing was read or written")
    least, most = int(found["from_bytes"].min()), int(found["from_bytes"].max())  # type: ignore[arg-type]
    steps = [least << k for k in range((most // least).bit_length())]
    labels = [format_size(step) for step in steps]
    present = [op for op in OPERATIONS if op in set(found["op"])]
    data = found.with_columns(sizes("from_bytes").alias("from")).with_columns(
        pl.format("{} requests {} from {}: {}", "requests", "op", "from", sizes("bytes"))
        .alias("tip")
    )  # fmt: skip
    bars = alt.Chart().mark_bar().encode(
        x=alt.X("from:O", sort=labels, scale=alt.Scale(domain=labels),
                title="length of a request, from",
                axis=alt.Axis(labelAngle=0 if len(labels) < 13 else -45, ticks=False)),
        xOffset=alt.XOffset("op:N", sort=present),
        y=alt.Y("share:Q", title="share of the requests",
                axis=alt.Axis(format="%", tickCount=4, grid=True)),
        color=part_colour("op:N", {op: OPERATIONS[op] for op in present}),
        description="tip:N",
        tooltip=[alt.Tooltip("tip:N", title=" "), alt.Tooltip("share:Q", format=".1%")],
    )  # fmt: skip
    totals = ", ".join(f"{int(found.filter(op=op)['requests'].sum()):,} {op}s" for op in present)
    return panel(
        alt.layer(bars, data=data), "How long the requests are", f"{totals}; {whose(volume, frame)}"
    )


def activity(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """Bytes read and written over time.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.requests.activity` returns it.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart

    Raises
    ------
    InputError
        If the table has no such volume, or only one window.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    columns = ("window", "start_s", "reads", "writes", "read_bytes", "write_bytes")
    found, seconds, each = in_windows(of_volume(frame, volume, columns))
    found = found.group_by("bar").agg(pl.col(*columns[2:]).sum()).sort("bar")
    found, longest, begin = placed(found, seconds, each)
    rate = found.select(
        ((pl.col("read_bytes") + pl.col("write_bytes")) / (each * seconds)).max()
    ).item()
    divisor, unit = byte_unit(rate)
    kinds = {"written": ("write", GOOD), "read": ("read", ACCENT)}
    per_s = pl.lit(divisor * each * seconds)
    data = pl.concat(
        found.select(
            "from", "to", pl.lit(name).alias("kind"),
            pl.col(f"{op}s").alias("requests"),
            (pl.lit(0) if op == "write" else pl.col("write_bytes") / per_s).alias("low"),
            ((pl.col(f"{op}_bytes") + (0 if op == "write" else pl.col("write_bytes"))) / per_s)
            .alias("high"),
            pl.format("{} {} in {} requests", sizes(f"{op}_bytes"), pl.lit(name), f"{op}s")
            .alias("tip"),
        ).cast({"low": pl.Float64})
        for name, (op, _) in kinds.items()
    ).filter(pl.col("requests") > 0)  # fmt: skip
    colours = {name: colour for name, (_, colour) in kinds.items() if name in set(data["kind"])}
    bars = part_bars(time_axis(longest, begin), f"{unit} per s", "kind:N", colours)
    return panel(
        alt.layer(bars, data=data), "When the workload reads and writes",
        f"Mean rate in windows of {format_interval(each * seconds)}; {whose(volume, frame)}",
    )  # fmt: skip


def working_set(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """How the working sets of reads and of writes grow.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.working_set.working_set` returns it.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart
        Over time; where the trace has no clock, over its requests.

    Raises
    ------
    InputError
        If the table has no such volume, or nothing was read or written.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    columns = tuple(column for column, _ in LINES.values())
    found = of_volume(frame, volume, ("time_s", "requests", *columns))
    largest = float(found["total_bytes"].max())  # type: ignore[arg-type]
    if not largest:
        raise InputError("nothing to draw: nothing was read or written")
    found = _thinned(found.sort("requests"))
    first, longest = float(found["time_s"].min()), float(found["time_s"].max())  # type: ignore[arg-type]
    begin = first if longest > first > longest / 2 else 0.0  # a late part of a trace
    scale = clock_unit(longest)[0] if longest else 1.0
    x = time_axis(longest, begin) if longest else alt.X(
        "from:Q", title="requests since the start of the trace",
        axis=alt.Axis(tickCount=8, grid=False),
    )  # fmt: skip
    at = pl.col("time_s") / scale if longest else pl.col("requests").cast(pl.Float64)
    divisor, unit = byte_unit(largest)
    # Where nothing is read, what is written is all: one line would hide the other.
    reads = bool(found["read_bytes"].max())
    lines = {n: line for n, line in LINES.items() if reads or n.startswith("written")}
    start = pl.DataFrame({"kind": list(lines)}).select(
        pl.lit(begin / scale).alias("from"),
        "kind",
        pl.lit(0.0).alias("size"),
        pl.lit("").alias("tip"),
    )  # fmt: skip
    data = pl.concat([start, *(
        found.select(
            at.alias("from"), pl.lit(name).alias("kind"),
            (pl.col(column) / divisor).alias("size"),
            pl.format("{} {} after {} requests", sizes(column), pl.lit(name), "requests")
            .alias("tip"),
        )
        for name, (column, _) in lines.items()
    )])  # fmt: skip
    marks = stairs(x, unit, "kind:N", {name: colour for name, (_, colour) in lines.items()})
    return panel(
        alt.layer(marks, data=data), "How the working set grows",
        f"Bytes of the blocks read or written so far, each once; {whose(volume, frame)}",
    )  # fmt: skip


def update_distances(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """After how many other bytes a block is written again, cumulated.

    Parameters
    ----------
    frame : polars.DataFrame
        As ``distance`` of `vmbk.trace.metrics.updates.updates`.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart

    Raises
    ------
    InputError
        If the table has no such volume, or no block was written again.
    VmbkError
        If Altair is not installed.
    """
    found = of_volume(frame, volume, ("from_bytes", "to_bytes", "share"), part="distance")
    return _cumulated(
        found.select(pl.col("to_bytes").alias("to"), "share", sizes("to_bytes").alias("label")),
        "bytes of the blocks written in between", BYTES_ON_LOG_AXIS, 2,
        "After how much else blocks are written again",
        f"Share of block updates with at most so much written to the volume in between; "
        f"{whose(volume, frame)}",
    )  # fmt: skip


def update_intervals(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """How soon a block is written again, cumulated.

    Parameters
    ----------
    frame : polars.DataFrame
        As ``interval`` of `vmbk.trace.metrics.updates.updates`.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart

    Raises
    ------
    InputError
        If the table has no such volume, or no block was written again.
    VmbkError
        If Altair is not installed.
    """
    found = of_volume(frame, volume, ("from_ns", "to_ns", "share"), part="interval").with_columns(
        (pl.col("to_ns") / 1e9).alias("to")
    )
    return _cumulated(
        found.select("to", "share", pl.col("to").map_elements(
            format_duration, return_dtype=pl.String).alias("label")),
        "time since the block was last written", DURATION_ON_AXIS, 10,
        "How soon blocks are written again",
        f"Share of block updates that come within so long: incrementals less frequent than that "
        f"send them once; {whose(volume, frame)}",
    )  # fmt: skip


def _cumulated(
    found: pl.DataFrame, axis: str, label: str, base: int, title: str, subtitle: str
) -> Any:
    alt = altair()
    # Few short ones must not take most of a logarithmic axis.
    least = found.filter(pl.col("share") >= RARE)["to"][0]
    data = _thinned(found.filter(pl.col("to") >= least)).with_columns(
        pl.format("{}% within {}", (pl.col("share") * 100).round(1), "label").alias("tip")
    )
    most = float(data["to"].max())  # type: ignore[arg-type]
    ticks: dict[str, Any] = {"tickCount": 8}
    if label == DURATION_ON_AXIS:
        ticks = {"values": duration_ticks(least, most)}
    line = alt.Chart().mark_line(color=GOOD, strokeWidth=2, interpolate="step-after").encode(
        x=alt.X("to:Q", title=axis, scale=alt.Scale(type="log", base=base, nice=False),
                axis=alt.Axis(labelExpr=label, grid=False, labelOverlap=True, **ticks)),
        y=alt.Y("share:Q", title="share of updates", scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", tickCount=5, grid=True)),
        **tip(),
    )  # fmt: skip
    return panel(alt.layer(line, data=data), title, subtitle)


def _thinned(found: pl.DataFrame) -> pl.DataFrame:
    """At most some `POINTS` rows, the last one among them."""
    if len(found) <= POINTS:
        return found
    step = -(-len(found) // POINTS)
    return found.with_row_index("_row").filter(
        (pl.col("_row") % step == 0) | (pl.col("_row") == len(found) - 1)
    ).drop("_row")  # fmt: skip
