"""Charts of silent misses and of identical rewrites: what a comparison of digests does not see."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from vmbk.charts.style import BAD, GOOD, MUTED, NOTHING, ROW, altair, figure, part_colour, tip
from vmbk.charts.tables import sizes, table
from vmbk.charts.traces import ACCENT, AGAIN, panel
from vmbk.errors import InputError
from vmbk.units import format_size

if TYPE_CHECKING:
    import altair as alt

SERIES: Final = {
    "xxh3-64": GOOD, "crc32c": ACCENT, "crc32": "#009e73", "adler-32": BAD,
    "random": GOOD, "text": ACCENT, "captures": BAD,
}  # fmt: skip
"""Digests and contents, and their colours."""

WIDEST: Final = 32
"""Bits up to which misses are drawn: of longer digests there are none to be seen."""

FLEETS: Final = (GOOD, ACCENT, "#009e73", BAD, AGAIN, MUTED)

REWRITES: Final = {
    "changed": ("differing_bytes", GOOD),
    "rewritten with the same data": ("identical_bytes", BAD),
    "zeros that were zeros": ("identical_zero_bytes", NOTHING),
}
"""What marked blocks are by how a chart names it: column and colour."""

_POWER: Final = "datum.value >= 1 ? '1' : format(datum.value, '.0e')"


def missed_changes(frame: pl.DataFrame) -> alt.FacetChart:
    """What share of the changes digests miss, against what chance predicts.

    Parameters
    ----------
    frame : polars.DataFrame
        With the columns of `vmbk.study.misses.COLUMNS`; rows of one ``pairing``.

    Returns
    -------
    altair.FacetChart
        A panel per kind of update, whose series are the digests; of all pairs a panel per digest,
        whose series are the contents. Points are shares that were measured, with their intervals
        of 95 %; a hollow triangle is the most that is compatible with no miss in so many pairs.
        The line is 2 to the power of minus the bits. Of pairs of old and new every fourth number
        of bits is drawn, of all pairs every second.

    Raises
    ------
    InputError
        If a column is missing, the pairings are mixed, or there is nothing to draw.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    found = _with(frame, "pairing", "content", "update", "digest", "bits", "pairs", "misses",
                  "low", "high")  # fmt: skip
    found = found.filter(pl.col("bits") <= WIDEST, pl.col("pairs") > 0)
    pairings = found["pairing"].unique().to_list()
    if len(pairings) != 1:
        raise InputError(
            f"{len(pairings)} kinds of pairs in one chart" if pairings else "nothing to draw",
            hint="pass the rows of one pairing, such as frame.filter(pairing='all pairs')",
        )
    ours = pairings[0] == "all pairs"
    by, of = ("digest", "content") if ours else ("update", "digest")
    if not ours and found["content"].n_unique() > 1:
        raise InputError("changes of several contents in one chart", hint="filter by content")
    step = 2 if ours else 4  # there are more panels with more series of updates
    found = found.filter(pl.col("bits") % step == 0)
    kinds = found[of].unique(maintain_order=True).to_list()
    panels = found[by].unique(maintain_order=True).to_list()
    floor = 0.5 / float(found["pairs"].max())  # type: ignore[arg-type]
    place = {kind: (i - (len(kinds) - 1) / 2) * 0.4 for i, kind in enumerate(kinds)}
    marks = found.select(
        pl.col(by).alias("panel"),
        pl.col(of).alias("series"),
        "bits",
        (pl.col("bits") + pl.col(of).replace_strict(place, return_dtype=pl.Float64)).alias("at"),
        (pl.col("misses") > 0).alias("seen"),
        *[(pl.col(name) / pl.col("pairs")).alias(name) for name in ("low", "high")],
        pl.when(pl.col("misses") > 0).then(pl.col("misses"))
        .otherwise(pl.col("high")).truediv(pl.col("pairs")).alias("share"),
        pl.format("{}, {} bits: {} of {} missed", of, "bits", "misses", "pairs").alias("tip"),
    ).with_columns(pl.max_horizontal("low", pl.lit(floor)))  # fmt: skip
    line = pl.DataFrame({"bits": range(8, WIDEST + 1)}).with_columns(
        (2.0 ** -pl.col("bits")).alias("share")
    ).filter(pl.col("share") >= floor)  # fmt: skip
    data = pl.concat(
        [marks, *[line.with_columns(pl.lit(name).alias("panel"), pl.lit("chance").alias("series"),
                                    pl.col("bits").cast(pl.Float64).alias("at"))
                  for name in panels]], how="diagonal_relaxed",
    )  # fmt: skip
    base = alt.Chart().encode(
        x=alt.X("at:Q", title="bits of the digest", scale=alt.Scale(domain=[6.5, 33.5], nice=False),
                axis=alt.Axis(values=[8, 12, 16, 20, 24, 28, 32], grid=False)),
        y=alt.Y("share:Q", title="share missed", scale=alt.Scale(type="log", domain=[floor, 1.5],
                nice=False, clamp=True),
                axis=alt.Axis(values=_powers(floor), labelExpr=_POWER, grid=True)),
        color=part_colour("series:N", {kind: SERIES.get(kind, NOTHING) for kind in kinds}),
    )  # fmt: skip
    chance = base.transform_filter("datum.series == 'chance'").mark_line(
        color=MUTED, strokeDash=[4, 3], strokeWidth=1.2
    ).encode(color=alt.value(MUTED))  # fmt: skip
    ranges = base.transform_filter("datum.seen").mark_rule(strokeWidth=1.2).encode(
        y="low:Q", y2="high:Q"
    )  # fmt: skip
    points = base.transform_filter("datum.seen").mark_point(
        filled=True, size=26, opacity=1
    ).encode(**tip())  # fmt: skip
    none = base.transform_filter("datum.seen === false").mark_point(
        shape="triangle-down", size=20, opacity=0.7, strokeWidth=1
    ).encode(**tip())  # fmt: skip
    chart = alt.layer(chance, ranges, points, none, data=data)
    least, most = int(found["pairs"].min()), int(found["pairs"].max())  # type: ignore[arg-type]
    count = f"{most:,} pairs" if least == most else f"{least:,} to {most:,} pairs"
    size = ", ".join(format_size(n) for n in found["block_size"].unique().sort())
    what = "among different contents" if ours else f"of old and new, {found['content'][0]}"
    return figure(
        chart, panels, "Changes that digests miss, against 2^-bits (dashed)",
        f"{count} {what}, blocks of {size}; triangles: none was missed, at most so many (95 %)",
        height=130, beside=60,
    )  # fmt: skip


def fleet_misses(frame: pl.DataFrame, limit: float = 1e-6) -> alt.LayerChart:
    """Silent misses that a year of a fleet is to expect, by bits of the digest.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.study.chance.fleet_year` returns it; of several fleets one below the other, told
        apart by a column ``fleet``.
    limit : float
        Misses a year that are acceptable; a line.

    Returns
    -------
    altair.LayerChart

    Raises
    ------
    InputError
        If a column is missing, or nothing is to be expected.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    found = _with(frame, "bits", "misses").filter(pl.col("misses") > 0)
    if found.is_empty():
        raise InputError("nothing to draw: no miss is to be expected")
    if "fleet" not in found.columns:
        found = found.with_columns(pl.lit("fleet").alias("fleet"))
    fleets = found["fleet"].unique(maintain_order=True).to_list()
    data = found.select("fleet", "bits", "misses").with_columns(
        pl.format("{}, {} bits: {} misses a year", "fleet", "bits", "misses").alias("tip")
    )
    low, high = float(found["misses"].min()), float(found["misses"].max())  # type: ignore[arg-type]
    base = alt.Chart().encode(
        x=alt.X("bits:Q", title="bits of the digest", scale=alt.Scale(nice=False),
                axis=alt.Axis(values=sorted(set(found["bits"])), grid=False)),
        y=alt.Y("misses:Q", title="expected misses a year",
                scale=alt.Scale(type="log", domain=[min(low, limit), high]),
                axis=alt.Axis(format=".0e", tickCount=8, grid=True)),
    )  # fmt: skip
    lines = base.mark_line(strokeWidth=2, point={"size": 26, "filled": True}).encode(
        color=part_colour(
            "fleet:N", {name: FLEETS[i % len(FLEETS)] for i, name in enumerate(fleets)}
        ),
        **tip(),
    )  # fmt: skip
    rule = alt.Chart(pl.DataFrame({"misses": [limit], "label": [f"{limit:g} a year"]}))
    layers = [
        lines,
        rule.mark_rule(color=MUTED, strokeDash=[4, 3]).encode(y="misses:Q"),
        rule.mark_text(align="right", baseline="bottom", dy=-3, color=MUTED).encode(
            x=alt.value("width"), y="misses:Q", text="label:N"
        ),
    ]
    return panel(
        alt.layer(*layers, data=data), "Silent misses of a fleet in a year",
        "Expected, of ideal digests; drill-down's second digest included", height=240,
    )  # fmt: skip


def identical_rewrites(frame: pl.DataFrame) -> alt.FacetChart:
    """What blocks that tracking reports are: changed, or written with what they held.

    Parameters
    ----------
    frame : polars.DataFrame
        With the columns of `vmbk.study.rewrites.COLUMNS`.

    Returns
    -------
    altair.FacetChart
        A bar per capture, a panel per block size. The label is the share that holds data and was
        sent for nothing by tracking without drill-down.

    Raises
    ------
    InputError
        If a column is missing, or nothing was marked.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    columns = [column for column, _ in REWRITES.values()]
    found = _with(frame, "dataset", "block_size", "tracked_bytes", *columns)
    found = found.filter(pl.col("tracked_bytes") > 0).sort("block_size", maintain_order=True)
    if found.is_empty():
        raise InputError("nothing to draw: no block was marked")
    found = found.with_columns(
        pl.format("blocks of {}", sizes("block_size")).alias("panel"),
        pl.struct("tracked_bytes", "identical_bytes")
        .map_elements(
            lambda r: (
                _share(r["identical_bytes"] / r["tracked_bytes"])
                + f" of {format_size(r['tracked_bytes'])}"
            ),
            return_dtype=pl.String,
        )
        .alias("label"),
    )
    panels = found["panel"].unique(maintain_order=True).to_list()
    names = found["dataset"].unique(maintain_order=True).to_list()
    data = pl.concat(
        found.select(
            "panel", "dataset", "label", pl.lit(name).alias("what"), pl.lit(i).alias("rank"),
            (pl.col(column) / pl.col("tracked_bytes")).alias("share"),
            pl.format("{}: {} {}", "dataset", sizes(column), pl.lit(name)).alias("tip"),
        )
        for i, (name, (column, _)) in enumerate(REWRITES.items())
    )  # fmt: skip
    base = alt.Chart().encode(
        y=alt.Y("dataset:N", sort=names, title=None,
                axis=alt.Axis(ticks=False, domain=False, labelPadding=8)),
    )  # fmt: skip
    bars = base.mark_bar(height={"band": 0.62}).encode(
        x=alt.X("share:Q", title="share of the bytes that tracking reports",
                scale=alt.Scale(domain=[0, 1.42], nice=False),
                axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1], grid=True)),
        color=part_colour("what:N", {name: colour for name, (_, colour) in REWRITES.items()}),
        order=alt.Order("rank:Q"),
        **tip(),
    )  # fmt: skip
    labels = base.transform_filter("datum.rank === 0").mark_text(align="left", dx=6).encode(
        x=alt.datum(1.0), text="label:N"
    )  # fmt: skip
    chart = alt.layer(bars, labels, data=data)
    return figure(
        chart, panels, "Identical rewrites: what tracking reports and checksum does not",
        "Sums over the incremental backups; beside each bar the share that was rewritten with the "
        "same data, and what tracking reported",
        height=ROW * len(names), beside=95,
    )  # fmt: skip


def _powers(least: float) -> list[float]:
    """Powers of ten from 1 down, some five of them."""
    last = math.floor(-math.log10(least))
    return [10.0**-k for k in range(0, last + 1, max(-(-last // 6), 1))]


def _share(share: float) -> str:
    text = f"{share:.1%}"
    return "< 0.1%" if share > 0 and text == "0.0%" else text.replace("0.0%", "none")


def _with(frame: Any, *columns: str) -> pl.DataFrame:
    found = table(frame)
    missing = [name for name in columns if name not in found.columns]
    if missing:
        raise InputError(f"this table lacks {', '.join(missing)}, which the chart needs")
    return found
