"""Charts of where on a volume a workload writes. Each takes a table of `vmbk.trace.metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from vmbk.charts.style import GOOD, INK, altair, byte_unit
from vmbk.charts.tables import sizes, table
from vmbk.charts.traces import (
    OVER,
    clock_unit,
    first_bar,
    in_windows,
    of_volume,
    panel,
    time_axis,
    whose,
)
from vmbk.errors import InputError
from vmbk.units import format_interval, format_size

if TYPE_CHECKING:
    import altair as alt

MOST_CELLS: Final = (40, 32)
"""Steps of time, and regions of a volume, that a map shows."""

MOST_REGIONS: Final = 256
"""Regions that a chart of bars shows."""


def write_map(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """Where on a volume blocks are written, and how often.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.working_set.spatial` returns it.
    volume : int, optional
        By default the first of the table.

    Returns
    -------
    altair.LayerChart
        Bars of the bytes of block writes by region; the part of blocks written once is apart from
        what was written on top of them.

    Raises
    ------
    InputError
        If the table has no such volume.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    found = _one_volume(
        frame, volume, ("offset", "region_bytes", "unique_bytes", "rewritten_bytes")
    )
    whose_map = whose(int(found["volume"][0]), frame, alone=volume is None)
    length = int(found["region_bytes"][0])
    last = int(found["offset"].max()) + length  # type: ignore[arg-type]
    while last > MOST_REGIONS * length:
        length *= 2
    found = (
        found.with_columns((pl.col("offset") // length * length).alias("offset"))
        .group_by("offset").agg(pl.col("unique_bytes", "rewritten_bytes").sum()).sort("offset")
    )  # fmt: skip
    across, across_unit = byte_unit(last)
    divisor, unit = byte_unit(
        float(found.select((pl.col("unique_bytes") + pl.col("rewritten_bytes")).max()).item())
    )
    kinds = {"once": ("unique_bytes", GOOD), "again": ("rewritten_bytes", OVER)}
    data = pl.concat(
        found.select(
            (pl.col("offset") / across).alias("from"),
            ((pl.col("offset") + length) / across).alias("to"),
            pl.lit(name).alias("kind"), pl.col(column).alias("bytes"),
            (pl.lit(0.0) if name == "once" else pl.col("unique_bytes") / divisor).alias("low"),
            ((pl.col(column) + (0 if name == "once" else pl.col("unique_bytes"))) / divisor)
            .alias("high"),
            pl.format("at {}: {} written {}", sizes("offset"), sizes(column), pl.lit(name))
            .alias("tip"),
        )
        for name, (column, _) in kinds.items()
    ).filter(pl.col("bytes") > 0)  # fmt: skip
    bars = alt.Chart().mark_rect().encode(
        x=alt.X("from:Q", title=f"place on the volume, {across_unit}",
                scale=alt.Scale(domain=[0, last / across], nice=False),
                axis=alt.Axis(tickCount=8, grid=False)),
        x2="to:Q",
        y=alt.Y("low:Q", title=f"{unit} per {format_size(length)}",
                axis=alt.Axis(tickCount=5, grid=True)),
        y2="high:Q",
        color=alt.Color("kind:N", sort=list(kinds), scale=alt.Scale(
            domain=list(kinds), range=[colour for _, colour in kinds.values()])),
        description="tip:N",
        tooltip=[alt.Tooltip("tip:N", title=" ")],
    )  # fmt: skip
    return panel(
        alt.layer(bars, data=data), "Where the workload writes",
        f"Bytes of the blocks written in regions of {format_size(length)}, once and again; "
        f"{whose_map}",
    )  # fmt: skip


def churn_map(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """Where on a volume, and when, blocks change.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.regions.regions` returns it.
    volume : int, optional
        By default the first of the table.

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
    columns = ("offset", "length", "window", "start_s", "unique_bytes")
    found = _one_volume(frame, volume, columns)
    whose_map = whose(int(found["volume"][0]), frame, alone=volume is None)
    length = int(found["length"][0])
    found, seconds, each = in_windows(found, most=MOST_CELLS[0])
    last = int(found["offset"].max()) + length  # type: ignore[arg-type]
    while last > MOST_CELLS[1] * length:
        length *= 2
    found = (
        found.with_columns((pl.col("offset") // length * length).alias("offset"))
        .group_by("bar", "offset").agg(pl.col("unique_bytes").sum()).sort("bar", "offset")
        .filter(pl.col("unique_bytes") > 0)
    )  # fmt: skip
    if found.is_empty():
        raise InputError("nothing to draw: nothing changed")
    longest = (int(found["bar"].max()) + 1) * each * seconds  # type: ignore[arg-type]
    begin = first_bar(found) * each * seconds
    scale, _ = clock_unit(longest)
    across, across_unit = byte_unit(last)
    divisor, unit = byte_unit(float(found["unique_bytes"].max()))  # type: ignore[arg-type]
    data = found.select(
        (pl.col("bar") * each * seconds / scale).alias("from"),
        ((pl.col("bar") + 1) * each * seconds / scale).alias("to"),
        (pl.col("offset") / across).alias("low"), ((pl.col("offset") + length) / across)
        .alias("high"), (pl.col("unique_bytes") / divisor).alias("size"),
        pl.format("{} changed at {}", sizes("unique_bytes"), sizes("offset")).alias("tip"),
    )  # fmt: skip
    cells = alt.Chart().mark_rect(stroke="white", strokeWidth=0.5).encode(
        x=time_axis(longest, begin), x2="to:Q",
        y=alt.Y("low:Q", title=f"place on the volume, {across_unit}",
                scale=alt.Scale(domain=[0, last / across], nice=False),
                axis=alt.Axis(tickCount=6)),
        y2="high:Q",
        color=alt.Color("size:Q", scale=alt.Scale(scheme="blues", domainMin=0),
                        legend=alt.Legend(title=f"{unit} changed", gradientLength=200,
                                          titleFontWeight="normal", titleColor=INK)),
        description="tip:N",
        tooltip=[alt.Tooltip("tip:N", title=" ")],
    )  # fmt: skip
    return panel(
        alt.layer(cells, data=data), "Where changes lie, and when",
        f"Bytes that changed per {format_interval(each * seconds)} and {format_size(length)}; "
        f"{whose_map}",
        height=240,
    )  # fmt: skip


def _one_volume(frame: pl.DataFrame, volume: int | None, columns: tuple[str, ...]) -> pl.DataFrame:
    """The rows of a volume, by default the table's first."""
    frame = table(frame)
    if volume is None and "volume" in frame.columns and len(frame):
        volume = int(frame["volume"][0])
    return of_volume(frame, volume, columns)
