"""Charts of how time, run lengths and bytes are spread. Each takes the results of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from vmbk.charts.style import (
    DETECTOR_COLOURS,
    NOTHING,
    ROW,
    STAGE_COLOURS,
    altair,
    byte_unit,
    detector_colour,
    detectors,
    figure,
    part_colour,
    time_unit,
)
from vmbk.charts.tables import (
    STAGES,
    cumulative_sent,
    drill_down_label,
    drilled,
    durations,
    grain_label,
    ordered,
    panel_names,
    run_length_counts,
    sizes,
    stage_means,
)

if TYPE_CHECKING:
    import altair as alt

MOST_POINTS: Final = 3000
"""Points of all curves together; longer curves are thinned."""

OTHER_GRAINS: Final = ("#c4c4c4", "#8c8c8c", "#5f5f5f", "#333333")
"""Colours of the coarser drill-downs, beside the finest one's in the detector's colour."""


def stage_times(rows: pl.DataFrame) -> alt.FacetChart:
    """Where the time of a backup goes, by detector.

    Parameters
    ----------
    rows : polars.DataFrame
        Results with the columns of `vmbk.study.results.COLUMNS`.

    Returns
    -------
    altair.FacetChart

    Raises
    ------
    InputError
        If no backup is incremental.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    data = stage_means(rows)
    names, panels = ordered(data["detector"]), panel_names(data)
    longest = float(data["total"].max())  # type: ignore[arg-type]
    factor, unit = time_unit(longest)
    data = data.with_columns(
        (pl.col("seconds") * factor).alias("time"),
        (pl.col("total") * factor).alias("end"),
        durations("seconds").alias("label"),
        durations("total").alias("all"),
    ).with_columns(pl.format("{}, {}: {} of {}", "detector", "stage", "label", "all").alias("tip"))
    base = alt.Chart().encode(y=detectors(names))
    bars = base.mark_bar(height={"band": 0.62}).encode(
        x=alt.X("time:Q", title=f"time per backup, {unit}", axis=alt.Axis(tickCount=5),
                scale=alt.Scale(domain=[0, max(longest * factor, 1e-9) * 1.16])),
        color=part_colour("stage:N", dict(zip(STAGES, STAGE_COLOURS, strict=True))),
        order=alt.Order("rank:Q"),
        description="tip:N",
        tooltip=[alt.Tooltip("detector:N"), alt.Tooltip("stage:N"),
                 alt.Tooltip("label:N", title="mean time"), alt.Tooltip("all:N", title="of"),
                 alt.Tooltip("backups:Q")],
    )  # fmt: skip
    labels = (
        base.transform_filter(f"datum.stage == '{STAGES[0]}'")
        .mark_text(align="left", dx=6)
        .encode(x="end:Q", text="all:N")
    )
    return figure(
        alt.layer(bars, labels, data=data), panels, "Where the time goes",
        f"Mean of the incremental backups by stage, {grain_label(drilled(rows))}",
        height=ROW * len(names),
    )  # fmt: skip


def run_lengths(rows: pl.DataFrame, detector: str | None = None) -> alt.FacetChart:
    """How long the changed runs are, by class of length.

    Parameters
    ----------
    rows : polars.DataFrame
        Results with the columns of `vmbk.study.results.COLUMNS`.
    detector : str, optional
        Whose runs; by default those of ``compare``, the byte oracle, where it ran.

    Returns
    -------
    altair.FacetChart
        Shares of the runs, labelled with their number.

    Raises
    ------
    InputError
        If the detector is not in the results, or found no changed run.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    data = run_length_counts(rows, detector).with_columns(
        pl.format("{} runs from {}, {}", "count", "label", "drill_down").alias("tip")
    )
    panels, whose = panel_names(data), str(data["detector"][0])
    classes = data.sort("class")["label"].unique(maintain_order=True).to_list()
    grains = sorted(data["sub_block_size"].unique(), reverse=True)
    kinds = [drill_down_label(grain) for grain in grains]
    colours = [DETECTOR_COLOURS.get(whose, NOTHING), *OTHER_GRAINS][: len(kinds)]
    base = alt.Chart().encode(
        x=alt.X("label:O", sort=classes, title="length of a run, from",
                axis=alt.Axis(labelAngle=0 if len(classes) < 8 else -45, ticks=False)),
        y=alt.Y("share:Q", title="share of the runs",
                axis=alt.Axis(format="%", tickCount=4, grid=True),
                scale=alt.Scale(domain=[0, float(data["share"].max()) * 1.35])),  # type: ignore[arg-type]
        xOffset=alt.XOffset("drill_down:N", sort=kinds),
    )  # fmt: skip
    bars = base.mark_bar().encode(
        color=alt.Color("drill_down:N", sort=kinds, scale=alt.Scale(domain=kinds, range=colours)),
        description="tip:N",
        tooltip=[alt.Tooltip("drill_down:N", title="detection"),
                 alt.Tooltip("label:N", title="from"), alt.Tooltip("count:Q", title="runs"),
                 alt.Tooltip("share:Q", format=".1%")],
    )  # fmt: skip
    labels = (
        base.transform_filter("datum.count > 0")
        .mark_text(baseline="bottom", dy=-3, fontSize=10)
        .encode(text=alt.Text("count:Q", format=","))
    )
    return figure(
        alt.layer(bars, labels, data=data), panels, "How long the changed runs are",
        f"Extents that {whose} found in the incremental backups, by length, with their number",
        height=130,
    )  # fmt: skip


def sent_over_time(rows: pl.DataFrame) -> alt.FacetChart:
    """What had been sent by each backup: differential against the incremental detectors.

    Parameters
    ----------
    rows : polars.DataFrame
        Results with the columns of `vmbk.study.results.COLUMNS`.

    Returns
    -------
    altair.FacetChart
        Detectors that sent the same share a line.

    Raises
    ------
    InputError
        If there is no incremental backup by another detector than ``full``.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    data = cumulative_sent(rows)
    names, panels = ordered(data["detector"]), panel_names(data)
    if len(data) > MOST_POINTS:
        step = -(-len(data) // MOST_POINTS)
        last = pl.col("backup") == pl.col("backup").max().over("panel", "series")
        data = data.filter((pl.col("backup") % step == 0) | last)
    divisor, unit = byte_unit(float(data["sent"].max()))  # type: ignore[arg-type]
    height = 150
    top = max(float(data["sent"].max()) / divisor, 1e-9) * 1.08  # type: ignore[arg-type]
    data = _end_labels(
        data.with_columns(
            (pl.col("sent") / divisor).alias("size"),
            sizes("sent").alias("text"),
            pl.format("{}: {} after {} backups", "series", sizes("sent"), "backup").alias("tip"),
        ),
        gap=13 / height * top,
    )
    base = alt.Chart().encode(color=detector_colour(names))
    x = alt.X("backup:Q", title="incremental backups", scale=alt.Scale(nice=False),
              axis=alt.Axis(tickMinStep=1, format="d", tickCount=10, grid=False))  # fmt: skip
    y = alt.Y("size:Q", title=f"sent so far, {unit}", scale=alt.Scale(domain=[0, top]),
              axis=alt.Axis(tickCount=5, grid=True))  # fmt: skip
    lines = base.mark_line(strokeWidth=2, point={"size": 22, "filled": True}).encode(
        x=x, y=y, detail="series:N", description="tip:N",
        tooltip=[alt.Tooltip("series:N", title="detector"), alt.Tooltip("backup:Q"),
                 alt.Tooltip("text:N", title="sent so far")],
    )  # fmt: skip
    labels = (
        base.transform_filter("isValid(datum.label)")
        .mark_text(align="left", dx=7)
        .encode(x=x, y="label_y:Q", text="label:N")
    )
    # The labels stand right of the lines.
    return figure(
        alt.layer(lines, labels, data=data), panels,
        "Sent over time: differential against incremental",
        f"Sum of what the backups sent after the first, {grain_label(drilled(rows))}",
        height=height, beside=150, x="independent",
    )  # fmt: skip


def _end_labels(data: pl.DataFrame, gap: float) -> pl.DataFrame:
    """Give the last point of each curve its name, at least ``gap`` above the one below it."""
    ends = data.group_by("panel", "series", maintain_order=True).last().sort("size")
    heights: dict[tuple[Any, Any], float] = {}
    lowest: dict[str, float] = {}
    for panel, series, size in ends.select("panel", "series", "size").iter_rows():
        heights[panel, series] = lowest[panel] = max(size, lowest.get(panel, -gap) + gap)
    keys = ends.select("panel", "series", "backup")
    labels = keys.with_columns(
        pl.Series("label_y", [heights[row[:2]] for row in keys.iter_rows()], dtype=pl.Float64),
        pl.col("series").alias("label"),
    )
    return data.join(labels, on=["panel", "series", "backup"], how="left", maintain_order="left")
