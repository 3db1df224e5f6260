"""Charts of what backups read, report and send. Each takes the results of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from vmbk.charts.style import (
    BYTES_ON_LOG_AXIS,
    INK,
    NOTHING,
    ROW,
    altair,
    byte_unit,
    detector_colour,
    detectors,
    figure,
    panel_width,
)
from vmbk.charts.tables import (
    drilled,
    grain_label,
    incremental,
    means,
    ordered,
    panel_names,
    sizes,
    with_panels,
)

if TYPE_CHECKING:
    import altair as alt

MOST_STROKES: Final = 2000
"""Single backups that a chart shows; of more, the least and the most of each bar."""


def bytes_read(rows: pl.DataFrame) -> alt.FacetChart:
    """What each detector reads to find the changes: bars are means, strokes are single backups.

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
    found = with_panels(drilled(incremental(rows, "scanned_bytes")))
    names, panels = ordered(found["detector"]), panel_names(found)
    divisor, unit = byte_unit(float(found["scanned_bytes"].max()))  # type: ignore[arg-type]
    mean = means(found, ["scanned_bytes"], ["panel", "detector"]).with_columns(
        (pl.col("scanned_bytes") / divisor).alias("read"), sizes("scanned_bytes").alias("mean"),
        pl.format("{}: {} a backup, mean of {}", "detector", sizes("scanned_bytes"), "backups")
        .alias("tip"),
    )  # fmt: skip
    single = found.select(
        "panel", "detector", "backup", (pl.col("scanned_bytes") / divisor).alias("read"),
        sizes("scanned_bytes").alias("label"),
        pl.format("{}, backup {}: {}", "detector", "backup", sizes("scanned_bytes")).alias("tip"),
    )  # fmt: skip
    strokes_are = "each stroke is one backup"
    if len(single) > MOST_STROKES:
        single = single.sort("read", maintain_order=True)
        single = pl.concat(
            [
                single.group_by("panel", "detector", maintain_order=True).first(),
                single.group_by("panel", "detector", maintain_order=True).last(),
            ]
        )
        strokes_are = "strokes are the least and the most"
    # One frame for both layers: a facet has one source. Means have no number of a backup.
    data = pl.concat(
        [
            mean.with_columns(pl.lit("mean").alias("kind")),
            single.with_columns(pl.lit("one").alias("kind")),
        ],
        how="diagonal",
    )
    data = data.with_columns(pl.col("read").max().over("panel", "detector").alias("end"))
    top = float(data["read"].max()) * 1.16  # type: ignore[arg-type]
    base = alt.Chart().encode(y=detectors(names))
    x = alt.X("read:Q", title=f"read per backup, {unit}", scale=alt.Scale(domain=[0, top]),
              axis=alt.Axis(tickCount=5))  # fmt: skip
    bars = (
        base.transform_filter("datum.kind == 'mean'")
        .mark_bar(height={"band": 0.62})
        .encode(
            x=x,
            color=detector_colour(names),
            description="tip:N",
            tooltip=[alt.Tooltip("detector:N"), alt.Tooltip("mean:N", title="mean"),
                     alt.Tooltip("backups:Q")],
        )
    )  # fmt: skip
    strokes = (
        base.transform_filter("datum.kind == 'one'")
        .mark_tick(thickness=1.5, height=9, color=INK, opacity=0.5)
        .encode(
            x=x,
            description="tip:N",
            tooltip=[alt.Tooltip("detector:N"), alt.Tooltip("backup:Q"),
                     alt.Tooltip("label:N", title="read")],
        )
    )  # fmt: skip
    labels = (
        base.transform_filter("datum.kind == 'mean'")
        .mark_text(align="left", dx=6)
        .encode(x=alt.X("end:Q"), text="mean:N")
    )
    return figure(
        alt.layer(bars, strokes, labels, data=data), panels, "Read to find the changes",
        f"Mean of the incremental backups, {grain_label(found)}; {strokes_are}",
        height=ROW * len(names),
    )  # fmt: skip


def bytes_sent(rows: pl.DataFrame) -> alt.FacetChart:
    """What each detector reported, what was left after drill-down, and what was sent.

    Parameters
    ----------
    rows : polars.DataFrame
        Results with the columns of `vmbk.study.results.COLUMNS`.

    Returns
    -------
    altair.FacetChart
        On a logarithmic axis, a panel for each size of sub-blocks.

    Raises
    ------
    InputError
        If no backup is incremental.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    columns = {"reported_bytes": "reported", "changed_bytes": "changed", "sent_bytes": "sent"}
    found = with_panels(incremental(rows, *columns), apart=True)
    names, panels = ordered(found["detector"]), panel_names(found)
    mean = means(found, list(columns), ["panel", "detector"])
    values = mean.select(list(columns)).unpivot()["value"]
    low, ticks, high = _log_axis(values)
    data = (
        mean.with_columns(
            pl.min_horizontal(list(columns)).clip(low).alias("from"),
            pl.max_horizontal(list(columns)).clip(low).alias("to"),
        )
        .unpivot(
            on=list(columns),
            index=["panel", "detector", "backups", "from", "to"],
            variable_name="measure",
            value_name="bytes",
        )
        .with_columns(
            pl.col("measure").replace_strict(columns),
            pl.col("bytes").clip(low).alias("x"),
            sizes("bytes").alias("label"),
        )
        .with_columns(
            pl.format(
                "{}, {}: {} a backup, mean of {}", "detector", "measure", "label", "backups"
            ).alias("tip")
        )
    )
    scale = alt.Scale(type="log", base=2, domain=[low / 5, high * 5], nice=False)
    axis = alt.Axis(values=ticks, labelExpr=BYTES_ON_LOG_AXIS, labelOverlap="greedy")
    x = alt.X("x:Q", scale=scale, axis=axis, title="per backup (logarithmic)")
    base = alt.Chart().encode(y=detectors(names))
    sent = base.transform_filter("datum.measure == 'sent'")
    lines = sent.mark_rule(strokeWidth=2, opacity=0.55).encode(
        x=alt.X("from:Q", scale=scale), x2="to:Q", color=detector_colour(names)
    )
    # What changed is a bar that is seen behind the dot of what was sent.
    kinds = list(columns.values())
    points = base.mark_point(filled=True, opacity=1, size=80).encode(
        x=x,
        shape=alt.Shape(
            "measure:N", legend=alt.Legend(symbolFillColor=NOTHING),
            scale=alt.Scale(domain=kinds, range=["square", "M-0.3,-1.5H0.3V1.5H-0.3Z", "circle"]),
        ),
        color=detector_colour(names),
        description="tip:N",
        tooltip=[alt.Tooltip("detector:N"), alt.Tooltip("measure:N"),
                 alt.Tooltip("label:N", title="mean per backup"), alt.Tooltip("backups:Q")],
    )  # fmt: skip
    left = sent.mark_text(align="right", dx=-9).encode(
        x=alt.X("from:Q", scale=scale), text="label:N"
    )
    right = (
        base.transform_filter("datum.measure == 'reported' && datum.to > datum.from")
        .mark_text(align="left", dx=9)
        .encode(x=alt.X("to:Q", scale=scale), text="label:N")
    )
    return figure(
        alt.layer(lines, points, left, right, data=data), panels, "Reported, changed and sent",
        "Mean of the incremental backups: blocks reported (right), changed after drill-down, sent "
        "without zeros (left)",
        height=ROW * len(names),
    )  # fmt: skip


def _log_axis(values: pl.Series) -> tuple[float, list[int], float]:
    """Lower end, ticks at powers of four and upper end of an axis for sizes; zeros stand low."""
    some = values.filter(values > 0)
    if some.is_empty():
        return 512.0, [512, 1024], 1024.0
    low, high = float(some.min()), float(some.max())  # type: ignore[arg-type]
    low = max(1.0, low / 2) if (values <= 0).any() else low
    step = 4 if high / low < 1 << 12 else 16
    tick, ticks = 1, []
    while tick <= high * 1.5:
        if tick >= low / 5:
            ticks.append(tick)
        tick *= step
    return low, ticks, high


def reported_against_compare(rows: pl.DataFrame) -> alt.FacetChart:
    """Blocks that each detector reported, beyond those in which a byte differs from the base.

    ``full`` is left out where there are others: it reports the whole disk.

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
    found = drilled(incremental(rows, "reported_bytes", "oracle_block_bytes"))
    others = found.filter(pl.col("detector") != "full")
    left_out = "" if others.is_empty() or len(others) == len(found) else "; full reports all"
    found = with_panels(found if others.is_empty() else others)
    names, panels = ordered(found["detector"]), panel_names(found)
    divisor, unit = byte_unit(float(found["reported_bytes"].max()))  # type: ignore[arg-type]
    measures = ("a byte differs", "no byte differs")
    data = (
        means(found, ["reported_bytes", "oracle_block_bytes"], ["panel", "detector"])
        .with_columns(
            (pl.col("reported_bytes") - pl.col("oracle_block_bytes")).clip(0).alias("beyond"),
        )
        .with_columns(
            pl.min_horizontal("reported_bytes", "oracle_block_bytes").alias(measures[0]),
            pl.col("beyond").alias(measures[1]),
            (
                sizes("reported_bytes")
                + pl.when(pl.col("beyond") > 0)
                .then(pl.lit(", ") + sizes("beyond") + pl.lit(" beyond"))
                .otherwise(pl.lit(""))
            ).alias("label"),
            (pl.col("reported_bytes") / divisor).alias("end"),
        )
        .unpivot(
            on=list(measures),
            index=["panel", "detector", "backups", "label", "end"],
            variable_name="blocks",
            value_name="bytes",
        )
        .with_columns((pl.col("bytes") / divisor).alias("size"), sizes("bytes").alias("text"))
        .with_columns(
            pl.format(
                "{}, {}: {} a backup, mean of {}", "detector", "blocks", "text", "backups"
            ).alias("tip")
        )
    )
    # Right of each bar there is room for its label, of some 6 pixels a character.
    width = panel_width(panels)
    room = (width - 12 - 6.2 * pl.col("label").str.len_chars()).clip(width / 3)
    top = max(float(data.select((pl.col("end") * width / room).max()).item()), 1e-9)
    base = alt.Chart().encode(y=detectors(names))
    bars = base.mark_bar(height={"band": 0.62}).encode(
        x=alt.X("size:Q", title=f"reported per backup, {unit}",
                scale=alt.Scale(domain=[0, top]), axis=alt.Axis(tickCount=5)),
        color=detector_colour(names),
        opacity=alt.Opacity(
            "blocks:N", scale=alt.Scale(domain=list(measures), range=[1, 0.35]),
            legend=alt.Legend(symbolFillColor=NOTHING, symbolType="square"),
        ),
        order=alt.Order("blocks:N"),
        description="tip:N",
        tooltip=[alt.Tooltip("detector:N"), alt.Tooltip("blocks:N", title="blocks of which"),
                 alt.Tooltip("text:N", title="mean per backup"), alt.Tooltip("backups:Q")],
    )  # fmt: skip
    labels = (
        base.transform_filter(f"datum.blocks == '{measures[0]}'")
        .mark_text(align="left", dx=6)
        .encode(x="end:Q", text="label:N")
    )
    return figure(
        alt.layer(bars, labels, data=data), panels, "Reported beyond what differs",
        f"Blocks before drill-down, against a comparison of every byte{left_out}",
        height=ROW * len(names),
    )  # fmt: skip
