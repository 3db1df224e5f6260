"""Charts of how finely what changed is spread. Each takes a table of `vmbk.trace.metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from vmbk.charts.style import (
    BYTES_ON_LOG_AXIS,
    GOOD,
    INK,
    NOTHING,
    WIDE,
    altair,
    finish,
    part_colour,
    tip,
)
from vmbk.charts.tables import sizes
from vmbk.charts.traces import (
    ACCENT,
    AGAIN,
    NEW,
    in_windows,
    of_volume,
    panel,
    placed,
    time_axis,
    whose,
)
from vmbk.errors import InputError
from vmbk.units import GIB, format_interval, format_size

if TYPE_CHECKING:
    import altair as alt

REGION: Final = 4 << 20
"""Bytes of the regions in which dispersion is measured."""


def amplification(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """What changes would be reported at each granularity, over those at 4 KiB.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.windows.granularity` returns it; ``granularity`` of a fragmentation.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart

    Raises
    ------
    InputError
        If the table has no such volume, nothing changed, or changes were found in blocks of more
        than 4 KiB.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    columns = ("block_size", "changed_bytes", "amplification")
    rows = of_volume(frame, volume, columns, part="granularity")
    found = rows.filter(pl.col("amplification").is_not_null())
    if found.is_empty() and int(rows["changed_bytes"].sum()):
        least = format_size(int(rows["block_size"].min()))  # type: ignore[arg-type]
        raise InputError(
            f"nothing to draw: changes were found in blocks of {least}, so that those at 4 KiB, to "
            "which others are held, are not known",
            hint="pass vmbk.granularity(trace), or measure in blocks of 4 KiB or less",
        )
    if found.is_empty():
        raise InputError("nothing to draw: nothing changed")
    data = found.sort("block_size").with_columns(
        sizes("block_size").alias("grain"),
        sizes("changed_bytes").alias("changed"),
        pl.col("amplification").map_elements(lambda a: f"{a:.2f}", return_dtype=pl.String)
        .alias("label"),
        (pl.col("block_size") == 4096).alias("base"),
    ).with_columns(
        pl.format("{} blocks: {} reported, {} times that at 4 KiB", "grain", "changed", "label")
        .alias("tip")
    )  # fmt: skip
    top = float(data["amplification"].max()) * 1.15  # type: ignore[arg-type]
    base = alt.Chart().encode(
        x=alt.X("grain:O", sort=data["grain"].to_list(), title="granularity of detection",
                axis=alt.Axis(labelAngle=0, ticks=False)),
        y=alt.Y("amplification:Q", title="reported ÷ reported at 4 KiB",
                axis=alt.Axis(tickCount=5, grid=True), scale=alt.Scale(domain=[0, top])),
    )  # fmt: skip
    bars = base.mark_bar(width={"band": 0.66}).encode(
        color=alt.condition("datum.base", alt.value(NOTHING), alt.value(GOOD)),
        description="tip:N",
        tooltip=[alt.Tooltip("grain:N"), alt.Tooltip("changed:N", title="reported"),
                 alt.Tooltip("amplification:Q", format=".2f")],
    )  # fmt: skip
    labels = base.mark_text(baseline="bottom", dy=-3).encode(text="label:N")
    return panel(
        alt.layer(bars, labels, data=data), "What granularity costs",
        "Bytes reported as changed by block size, over those at 4 KiB, summed over all windows; "
        f"{whose(volume, frame)}",
    )  # fmt: skip


def changed_runs(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """How long the runs of changed blocks are: their number, and the bytes in them.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.windows.run_lengths` returns it; ``run_lengths`` of a fragmentation.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart
        Shares of the runs, and of the bytes, labelled with their number.

    Raises
    ------
    InputError
        If the table has no such volume.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    found = of_volume(
        frame, volume, ("from_bytes", "runs", "changed_bytes"), part="run_lengths"
    ).sort("from_bytes")
    # Classes without runs stand too, so that lengths are in proportion.
    first, last = int(found["from_bytes"][0]), int(found["from_bytes"][-1])
    count = (last // first).bit_length()
    classes = pl.DataFrame({"from_bytes": [first << k for k in range(count)]})
    found = classes.join(found, on="from_bytes", how="left").with_columns(
        pl.col("runs", "changed_bytes").fill_null(0), sizes("from_bytes").alias("from")
    )
    kinds = {"runs": NOTHING, "bytes changed": NEW}
    runs = found.select(
        "from", pl.lit("runs").alias("kind"), (pl.col("runs") / pl.col("runs").sum())
        .alias("share"), pl.format("{}", "runs").alias("label"),
    )  # fmt: skip
    changed = found.select(
        "from", pl.lit("bytes changed").alias("kind"),
        (pl.col("changed_bytes") / pl.col("changed_bytes").sum()).alias("share"),
        sizes("changed_bytes").alias("label"),
    )  # fmt: skip
    data = pl.concat([runs, changed]).with_columns(
        pl.format("runs from {}: {} {}", "from", "label", "kind").alias("tip")
    )
    base = alt.Chart().encode(
        x=alt.X("from:O", sort=found["from"].to_list(), title="length of a run, from",
                axis=alt.Axis(labelAngle=0 if count < 13 else -45, ticks=False)),
        xOffset=alt.XOffset("kind:N", sort=list(kinds)),
        y=alt.Y("share:Q", title="share", axis=alt.Axis(format="%", tickCount=4, grid=True),
                scale=alt.Scale(domain=[0, float(data["share"].max()) * 1.15])),  # type: ignore[arg-type]
    )  # fmt: skip
    bars = base.mark_bar().encode(
        color=part_colour("kind:N", kinds),
        description="tip:N",
        tooltip=[alt.Tooltip("from:N"), alt.Tooltip("kind:N"), alt.Tooltip("label:N"),
                 alt.Tooltip("share:Q", format=".1%")],
    )  # fmt: skip
    total = int(found["runs"].sum())
    return panel(
        alt.layer(bars, data=data), "How long the changed runs are",
        f"{total:,} runs of {format_size(int(found['changed_bytes'].sum()))} over all windows, by "
        f"their length; {whose(volume, frame)}",
    )  # fmt: skip


def dispersion_over_time(frame: pl.DataFrame, volume: int | None = None) -> alt.VConcatChart:
    """How far what changed lies apart, window by window.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.windows.dispersion` returns it; ``dispersion`` of a fragmentation.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.VConcatChart
        Length of the mean extent, and the share that changed of the 4 MiB regions with a change.

    Raises
    ------
    InputError
        If the table has no such volume, or only one window.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    found, seconds, each = _changed_windows(frame, volume, "regions")
    found = found.group_by("bar").agg(pl.col("unique_bytes", "extents", "regions").sum())
    found, longest, begin = placed(found, seconds, each)
    data = found.sort("bar").with_columns(
        (pl.col("unique_bytes") / pl.col("extents")).alias("mean"),
        (pl.col("unique_bytes") / (pl.col("regions") * REGION)).alias("fill"),
    ).with_columns(
        pl.format("mean extent {}: {} extents, {} changed", sizes("mean"), "extents",
                  sizes("unique_bytes")).alias("mean_tip"),
        pl.format("{}% of {} regions changed", (pl.col("fill") * 100).round(1), "regions")
        .alias("fill_tip"),
    )  # fmt: skip

    powers = _powers(data["mean"])
    base = alt.Chart(data)
    mean = base.mark_rule(color=GOOD, strokeWidth=3).encode(
        x=time_axis(longest, begin, labelled=False), x2="to:Q", **tip("mean_tip:N"),
        y=alt.Y("mean:Q", title="mean extent",
                scale=alt.Scale(type="log", nice=False, domain=[powers[0], powers[-1]]),
                axis=alt.Axis(values=powers, labelExpr=BYTES_ON_LOG_AXIS, grid=True)),
    ).properties(width=WIDE, height=110)  # fmt: skip
    fill = base.mark_rect(color=ACCENT).encode(
        x=time_axis(longest, begin), x2="to:Q", **tip("fill_tip:N"),
        y=alt.Y("fill:Q", title="region fill", scale=alt.Scale(domainMin=0),
                axis=alt.Axis(tickCount=4, grid=True, format="%")),
        y2=alt.datum(0),
    ).properties(width=WIDE, height=110)  # fmt: skip
    what = f"Windows of {format_interval(each * seconds)}, {whose(volume, frame)}"
    return finish(
        alt.vconcat(mean, fill, spacing=14),
        "How far changes lie apart",
        f"{what}: mean length of a changed run, and share that changed of the 4 MiB regions with "
        "a change",
    )  # fmt: skip


def dispersion_indices(frame: pl.DataFrame, volume: int | None = None) -> alt.VConcatChart:
    """How many extents the changes of each window lie in, and whether they cluster.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.windows.dispersion` returns it; ``dispersion`` of a fragmentation.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.VConcatChart
        Extents per GiB that changed; fragmentation, which is 100 % where no changed block has a
        changed neighbour; index of dispersion, 1 (dashed) where changes are strewn at random, more
        where they cluster. Windows that share a bar are counted together; of their indices it is
        the mean, weighted by the bytes that changed.

    Raises
    ------
    InputError
        If the table has no such volume, or only one window.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    found, seconds, each = _changed_windows(frame, volume, "fragmentation", "dispersion_index")
    changed = pl.col("unique_bytes")
    data = found.group_by("bar").agg(
        (pl.col("extents").sum() / changed.sum() * GIB).alias("per_gib"),
        # Extents over blocks, of which there are extents / fragmentation.
        (pl.col("extents").sum() / (pl.col("extents") / pl.col("fragmentation")).sum())
        .alias("fragmentation"),
        ((changed * pl.col("dispersion_index")).sum() / changed.sum()).alias("index"),
    ).sort("bar")  # fmt: skip
    data, longest, begin = placed(data, seconds, each)
    data = data.with_columns(
        pl.format("{} extents per GiB", pl.col("per_gib").round().cast(pl.Int64)).alias("per_tip"),
        pl.format("fragmentation {}%", (pl.col("fragmentation") * 100).round(1)).alias("frag_tip"),
        pl.format("index of dispersion {}", pl.col("index").round(2)).alias("index_tip"),
    )  # fmt: skip
    base = alt.Chart(data)

    def bars(column: str, title: str, label: str, colour: str, *, last: bool, **axis: Any) -> Any:
        return base.mark_rect(color=colour).encode(
            x=time_axis(longest, begin, labelled=last), x2="to:Q", **tip(f"{label}:N"),
            y=alt.Y(f"{column}:Q", title=title, scale=alt.Scale(domainMin=0),
                    axis=alt.Axis(tickCount=3, grid=True, **axis)),
            y2=alt.datum(0),
        ).properties(width=WIDE, height=90)  # fmt: skip

    at_random = alt.Chart().mark_rule(color=INK, strokeDash=[4, 3]).encode(y=alt.datum(1))
    index = bars("index", "dispersion index", "index_tip", AGAIN, last=True)
    return finish(
        alt.vconcat(
            bars("per_gib", "extents per GiB", "per_tip", GOOD, last=False, format=",.0f"),
            bars("fragmentation", "fragmentation", "frag_tip", ACCENT, last=False, format="%"),
            alt.layer(index, at_random),
            spacing=14,
        ),
        "How finely changes are strewn",
        f"Windows of {format_interval(each * seconds)}, {whose(volume, frame)}: extents, extents "
        "over changed blocks, and how they cluster (dashed: at random)",
    )  # fmt: skip


def _changed_windows(
    frame: pl.DataFrame, volume: int | None, *more: str
) -> tuple[pl.DataFrame, float, int]:
    """The windows in which something changed, as `in_windows` returns them."""
    columns = ("window", "start_s", "unique_bytes", "extents", *more)
    rows = of_volume(frame, volume, columns, part="dispersion").filter(pl.col("unique_bytes") > 0)
    if rows.is_empty():
        raise InputError("nothing to draw: nothing changed")
    return in_windows(rows)


def _powers(sizes: pl.Series) -> list[int]:
    """Powers of two from below the least size to above the largest, as few as can be read."""
    low, high = int(sizes.min()), int(sizes.max())  # type: ignore[arg-type]
    first, last = low.bit_length() - 1, high.bit_length()
    step = -(-(last - first) // 5)
    return [1 << k for k in range(first, last + step, step)]
