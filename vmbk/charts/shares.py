"""Charts of what share of the requests, and of the blocks, is hard or easy on backups.

Each takes a table of `vmbk.trace.metrics` with one row a volume.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from vmbk.charts.style import GOOD, INK, NOTHING, ROW, WIDE, altair, finish, part_colour, tip
from vmbk.charts.traces import ACCENT, AGAIN, of_volume, whose
from vmbk.errors import InputError
from vmbk.trace.metrics.updates import WITHIN
from vmbk.units import format_duration, format_size

if TYPE_CHECKING:
    import altair as alt

WHOLES: Final = {
    "of the reads and writes": ACCENT,
    "of their bytes": NOTHING,
    "of the writes": GOOD,
    "of the blocks written": GOOD,
    "of the block writes": NOTHING,
    "of the updates": AGAIN,
}
"""What shares are of, and their colours."""

PROFILE: Final = {
    "writes": ("write_share", "of the reads and writes"),
    "bytes written": ("write_byte_share", "of their bytes"),
    "requests in sequence": ("sequential_share", "of the reads and writes"),
    "requests at random places": ("random_share", "of the reads and writes"),
    "writes at random places": ("random_write_share", "of the writes"),
    "writes below 8 KiB": ("small_write_share", "of the writes"),
    "writes off the 4 KiB grid": ("unaligned_share", "of the writes"),
}
"""Shares of requests by how a chart names them: column, and what they are of."""

NAMES: Final = 130
"""Pixels that a chart with names beside its bars leaves to them."""


def profile(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """What share of the requests writes, is small, off the grid, at random places, in sequence.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.profile` returns it.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart
        Bars from 0 to 100 %; shares of nothing, as those of the writes where there are none, are
        left out. The numbers of requests, their mean sizes and, where the trace has a clock, the
        burstiness are in the subtitle.

    Raises
    ------
    InputError
        If the table has no such volume, or nothing was read or written.
    VmbkError
        If Altair is not installed.
    """
    columns = [column for column, _ in PROFILE.values()]
    more = ("reads", "writes", "mean_read_bytes", "mean_write_bytes", "burstiness")
    row = of_volume(frame, volume, (*columns, *more)).row(0, named=True)
    parts = [
        f"{row[f'{op}s']:,} {op}s, {format_size(row[f'mean_{op}_bytes'])} on average"
        for op in ("write", "read")
        if row[f"{op}s"]
    ]
    if not parts:
        raise InputError("nothing to draw: nothing was read or written")
    if row["burstiness"] is not None:
        parts.append(f"at the busiest {row['burstiness']:.1f} times the mean rate")
    bars = [(name, row[column], whole) for name, (column, whole) in PROFILE.items()]
    return _shares(bars, "What the requests are like", "; ".join((*parts, whose(volume, frame))))


def update_coverage(frame: pl.DataFrame, volume: int | None = None) -> alt.LayerChart:
    """How much of what is written is written again, and after how much else.

    Parameters
    ----------
    frame : polars.DataFrame
        As ``coverage`` of `vmbk.trace.metrics.updates.updates`.
    volume : int, optional
        One volume; by default all together.

    Returns
    -------
    altair.LayerChart
        Bars from 0 to 100 %: of the blocks written, those written more than once; of the block
        writes, those to blocks written before, which are *updates*; of the updates, those after
        which no more than a tenth, a fifth, two or four fifths of the write working set had been
        written. Medians are in the subtitle.

    Raises
    ------
    InputError
        If the table has no such volume, or nothing was written.
    VmbkError
        If Altair is not installed.
    """
    within = [f"within_{percent}" for percent in WITHIN]
    more = ("block_writes", "updates", "unique_bytes", "updated_bytes", "updated_share",
            "distance_p50", "interval_p50")  # fmt: skip
    row = of_volume(frame, volume, (*within, *more), part="coverage").row(0, named=True)
    if not row["block_writes"]:
        raise InputError("nothing to draw: nothing was written")
    bars = [
        ("written more than once", row["updated_share"], "of the blocks written"),
        ("to blocks written before", row["updates"] / row["block_writes"], "of the block writes"),
        *(
            (f"within {percent}% of the working set", row[column], "of the updates")
            for percent, column in zip(WITHIN, within, strict=True)
        ),
    ]
    text = f"A working set of {format_size(row['unique_bytes'])} is written"
    if row["updates"]:
        text += "; at the median a block is written again"
        if row["interval_p50"] is not None:
            text += f" after {format_duration(row['interval_p50'])},"
        text += f" with {format_size(row['distance_p50'])} of others in between"
    return _shares(bars, "How much is written again", f"{text}; {whose(volume, frame)}")


def _shares(bars: list[tuple[str, float | None, str]], title: str, subtitle: str) -> Any:
    """Labelled bars from 0 to 100 %, one a row, coloured by what they are shares of.

    Those that are None are left out.
    """
    alt = altair()
    shown = [bar for bar in bars if bar[1] is not None]
    names = [name for name, _, _ in shown]
    wholes = dict.fromkeys(whole for _, _, whole in shown)
    data = pl.DataFrame(
        shown, schema={"what": pl.String, "share": pl.Float64, "whole": pl.String}, orient="row"
    ).with_columns(
        pl.col("share").map_elements(_percent, return_dtype=pl.String).alias("label"),
    ).with_columns(pl.format("{}: {} {}", "what", "label", "whole").alias("tip"))  # fmt: skip
    base = alt.Chart().encode(
        # Right of all there is room for a label.
        x=alt.X("share:Q", title="share", scale=alt.Scale(domain=[0, 1.1], nice=False),
                axis=alt.Axis(format="%", values=[k / 5 for k in range(6)], grid=True)),
        y=alt.Y("what:N", sort=names, title=None, axis=alt.Axis(
            ticks=False, domain=False, labelPadding=8, labelFontSize=12, labelColor=INK,
            labelLimit=2 * NAMES)),
    )  # fmt: skip
    marks = base.mark_bar(height={"band": 0.62}).encode(
        color=part_colour("whole:N", {whole: WHOLES[whole] for whole in wholes}), **tip(),
    )  # fmt: skip
    labels = base.mark_text(align="left", dx=6).encode(text="label:N")
    chart = alt.layer(marks, labels, data=data).properties(
        width=WIDE - NAMES, height=ROW * len(names)
    )
    return finish(chart, title, subtitle)


def _percent(share: float) -> str:
    """A share for people; one that is neither nothing nor all does not look so."""
    text = f"{share:.1%}"
    if share > 0 and text == "0.0%":
        return "< 0.1%"
    if share < 1 and text == "100.0%":
        return "> 99.9%"
    return text.replace(".0%", "%")
