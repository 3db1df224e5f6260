"""Charts of where on a volume a workload writes. Each takes a table of `vmbk.trace.metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from vmbk.charts.style import GOOD, INK, altair, byte_unit, tip
from vmbk.charts.tables import sizes, table
from vmbk.charts.traces import (
    OVER,
    in_windows,
    of_volume,
    panel,
    part_bars,
    placed,
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
    columns = ("offset", "region_bytes", "unique_bytes", "rewritten_bytes")
    found, whose_map = _one_volume(frame, volume, columns)
    found, length, last = _in_regions(found, int(found["region_bytes"][0]), MOST_REGIONS)
    found = found.group_by("offset").agg(pl.col("unique_bytes", "rewritten_bytes").sum())
    found = found.sort("offset")
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
    x = alt.X("from:Q", title=f"place on the volume, {across_unit}",
              scale=alt.Scale(domain=[0, last / across], nice=False),
              axis=alt.Axis(tickCount=8, grid=False))  # fmt: skip
    colours = {name: colour for name, (_, colour) in kinds.items()}
    bars = part_bars(x, f"{unit} per {format_size(length)}", "kind:N", colours)
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
    found, whose_map = _one_volume(frame, volume, columns)
    found, length, last = _in_regions(found, int(found["length"][0]), MOST_CELLS[1])
    found, seconds, each = in_windows(found, most=MOST_CELLS[0])
    found = (
        found.group_by("bar", "offset").agg(pl.col("unique_bytes").sum()).sort("bar", "offset")
        .filter(pl.col("unique_bytes") > 0)
    )  # fmt: skip
    if found.is_empty():
        raise InputError("nothing to draw: nothing changed")
    found, longest, begin = placed(found, seconds, each)
    across, across_unit = byte_unit(last)
    divisor, unit = byte_unit(float(found["unique_bytes"].max()))  # type: ignore[arg-type]
    data = found.select(
        "from", "to", (pl.col("unique_bytes") / divisor).alias("size"),
        (pl.col("offset") / across).alias("low"),
        ((pl.col("offset") + length) / across).alias("high"),
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
        **tip(),
    )  # fmt: skip
    return panel(
        alt.layer(cells, data=data), "Where changes lie, and when",
        f"Bytes that changed per {format_interval(each * seconds)} and {format_size(length)}; "
        f"{whose_map}",
        height=240,
    )  # fmt: skip


def _one_volume(
    frame: pl.DataFrame, volume: int | None, columns: tuple[str, ...]
) -> tuple[pl.DataFrame, str]:
    """The rows of a volume, by default the table's first, and whose they are."""
    frame, alone = table(frame), volume is None
    if volume is None and "volume" in frame.columns and len(frame):
        volume = int(frame["volume"][0])
    found = of_volume(frame, volume, columns)
    return found, whose(int(found["volume"][0]), frame, alone=alone)


def _in_regions(found: pl.DataFrame, length: int, most: int) -> tuple[pl.DataFrame, int, int]:
    """Put neighbouring regions together; their length then, and where the last one ends."""
    if length < 1:
        raise InputError(f"regions of {length} bytes cannot be drawn; they have 1 byte at least")
    last = int(found["offset"].max()) + length  # type: ignore[arg-type]
    while last > most * length:
        length *= 2
    return found.with_columns(pl.col("offset") // length * length), length, last
