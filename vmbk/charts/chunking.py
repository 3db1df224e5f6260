"""Charts of chunks and of what disks hold. Each takes a table of `vmbk.content`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from vmbk.charts.style import BAD, BYTES_ON_LOG_AXIS, GOOD, NARROW, WIDE, altair, figure, finish
from vmbk.charts.tables import sizes
from vmbk.errors import InputError
from vmbk.units import format_size

if TYPE_CHECKING:
    import altair as alt

_METHODS: Final = {"fixed": GOOD, "fastcdc": BAD}
_TICKS: Final = [digit * 10**power for power in range(-3, 7) for digit in (1, 1.5, 2, 3, 5, 7)]
_KINDS: Final = {
    "zero": "#d8dee4", "duplicate": "#bbbbbb", "compressible": "#66ccee",
    "incompressible": "#4477aa",
}  # fmt: skip


def stored_by_chunks(frames: dict[str, pl.DataFrame]) -> alt.FacetChart:
    """What states of a disk take to store, by the mean size of chunks: fixed against FastCDC.

    Parameters
    ----------
    frames : dict of str to polars.DataFrame
        By title, as `vmbk.content.comparison.compare_chunking` returns them.

    Returns
    -------
    altair.FacetChart
        A panel for each.

    Raises
    ------
    InputError
        If there is nothing to draw.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    if not frames or any(frame.is_empty() for frame in frames.values()):
        raise InputError("nothing to draw: no sizes were compared")
    data = pl.concat(
        [frame.with_columns(pl.lit(title).alias("panel")) for title, frame in frames.items()]
    ).with_columns(
        (pl.col("stored_bytes") / (1 << 20)).alias("stored"),
        pl.format("{} of {}: {} stored, {} different chunks of {} in the mean", "method",
                  sizes("size"), sizes("stored_bytes"), "unique_chunks", sizes("mean_bytes"))
        .alias("tip"),
    )  # fmt: skip
    low, high = (int(n).bit_length() for n in (data["mean_bytes"].min(), data["mean_bytes"].max()))  # type: ignore[arg-type]
    marks = [1 << k for k in range(low - 1, high + 1) if k % 2 == 0]
    base = alt.Chart(data).encode(
        x=alt.X("mean_bytes:Q", title="mean size of a different chunk",
                scale=alt.Scale(type="log", base=2, nice=False),
                axis=alt.Axis(values=marks, labelExpr=BYTES_ON_LOG_AXIS)),
        y=alt.Y("stored:Q", title="stored, MiB", scale=alt.Scale(type="log", nice=False),
                axis=alt.Axis(values=_TICKS, grid=True, format="~r")),
        color=alt.Color("method:N", sort=list(_METHODS),
                        scale=alt.Scale(domain=list(_METHODS), range=list(_METHODS.values()))),
        description="tip:N",
    )  # fmt: skip
    points = base.mark_point(filled=True, size=50, opacity=1).encode(
        tooltip=[alt.Tooltip("tip:N", title=" ")]
    )
    width = WIDE if len(frames) == 1 else NARROW - 30
    layers = alt.layer(base.mark_line(strokeWidth=2), points).properties(width=width, height=190)
    return figure(
        layers, list(frames), "What it takes to store several states of a disk",
        "Different chunks of all states and what each chunk costs beside its content, by method",
        y="independent",
    )  # fmt: skip


def kinds_of_content(summaries: dict[str, pl.DataFrame]) -> alt.LayerChart:
    """What disks hold: shares of zero, duplicate, compressible and incompressible blocks.

    Parameters
    ----------
    summaries : dict of str to polars.DataFrame
        By name, as `vmbk.content.statistics.content_summary` returns them.

    Returns
    -------
    altair.LayerChart

    Raises
    ------
    InputError
        If there is nothing to draw.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    if not summaries or not all(int(frame["bytes"].sum()) for frame in summaries.values()):
        raise InputError("nothing to draw: there is no content")
    data = pl.concat(
        [frame.with_columns(pl.lit(name).alias("name")) for name, frame in summaries.items()]
    ).filter(pl.col("bytes") > 0).with_columns(
        pl.col("kind").replace_strict({kind: i for i, kind in enumerate(_KINDS)}).alias("order"),
        pl.format("{}: {} {}, {}%", "name", sizes("bytes"), "kind",
                  (pl.col("share") * 100).round(1)).alias("tip"),
    )  # fmt: skip
    total = format_size(int(data["bytes"].sum()))
    bars = alt.Chart(data).mark_bar().encode(
        x=alt.X("share:Q", title="share of bytes", scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format="%", tickCount=5, grid=True)),
        y=alt.Y("name:N", sort=list(summaries), title=None,
                axis=alt.Axis(ticks=False, domain=False, labelPadding=8)),
        color=alt.Color("kind:N", sort=list(_KINDS),
                        scale=alt.Scale(domain=list(_KINDS), range=list(_KINDS.values()))),
        order=alt.Order("order:Q"),
        description="tip:N",
        tooltip=[alt.Tooltip("tip:N", title=" ")],
    ).properties(width=WIDE - 60, height={"step": 26})  # fmt: skip
    return finish(
        alt.layer(bars), "What the disks hold",
        f"{total} in all, each block in the first kind that it fits; compressible: zstd level 1 is "
        "estimated to take off a tenth",
    )  # fmt: skip
