"""What the charts of trace metrics share: choosing a volume, thinning, the axis of time."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, Final

import polars as pl

from vmbk.charts.style import WIDE, altair, finish, part_colour, tip
from vmbk.charts.tables import table
from vmbk.errors import InputError
from vmbk.units import quoted

MOST_BARS: Final = 240
"""Bars, or points of a line, that a chart shows; of more, neighbours are put together."""

HEIGHT: Final = 190
"""Pixels of a panel that stands alone."""

NEW: Final = "#0072b2"
AGAIN: Final = "#56b4e9"
OVER: Final = "#c4c4c4"
ACCENT: Final = "#e69f00"


DURATION_ON_AXIS: Final = (
    "datum.value >= 86400 ? format(datum.value / 86400, '.4~g') + ' d' : "
    "datum.value >= 3600 ? format(datum.value / 3600, '.4~g') + ' h' : "
    "datum.value >= 60 ? format(datum.value / 60, '.4~g') + ' min' : "
    "datum.value >= 1 ? format(datum.value, '.4~g') + ' s' : "
    "datum.value >= 1e-3 ? format(datum.value * 1e3, '.4~g') + ' ms' : "
    "datum.value >= 1e-6 ? format(datum.value * 1e6, '.4~g') + ' µs' : "
    "format(datum.value * 1e9, '.4~g') + ' ns'"
)

_DECADES: Final = (
    *(10.0**k for k in range(-9, 2)), 60.0, 600.0, 3600.0,
    *(86400 * 10.0**k for k in range(6)),
)  # fmt: skip
_BETWEEN: Final = (
    *(m * 10.0**k for k in range(-9, 1) for m in (2, 5)), 20.0, 30.0, 120.0, 300.0, 1200.0, 1800.0,
    7200.0, 21600.0, 43200.0, *(m * 86400 * 10.0**k for k in range(5) for m in (2, 5)),
)  # fmt: skip


def duration_ticks(low: float, high: float) -> list[float]:
    """Durations between two, in s, that read well on a logarithmic axis.

    They are 1, 10, 100 ms, 1 s, 10 s, 1 min and so on; where these are fewer than three, those
    between them too, and where there are none the two ends.
    """
    for ticks in (_DECADES, sorted((*_DECADES, *_BETWEEN))):
        found = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(found) > 2:
            return found
    return found or sorted({low, high})


def of_volume(
    frame: pl.DataFrame, volume: int | None, columns: tuple[str, ...], part: str | None = None
) -> pl.DataFrame:
    """The rows of one volume, or of all together.

    Parameters
    ----------
    frame : polars.DataFrame
        A table of `vmbk.trace.metrics`.
    volume : int or None
    columns : tuple of str
        What the chart needs of it.
    part : str, optional
        As `table` takes it.

    Raises
    ------
    InputError
        If this is no table or a column is missing, the volume is no number, or there is nothing to
        draw.
    """
    frame = table(frame, part)
    if volume is not None and not isinstance(volume, Integral):
        raise InputError(
            f"{quoted(volume)} is not the id of a volume", hint="ids are whole numbers, such as 0"
        )
    missing = [name for name in ("volume", *columns) if name not in frame.columns]
    if missing:
        raise InputError(f"this table lacks {', '.join(missing)}, which the chart needs")
    chosen = pl.col("volume").is_null() if volume is None else pl.col("volume") == volume
    found = frame.filter(chosen)
    if found.is_empty():
        whole = "the trace" if volume is None else f"volume {quoted(volume)}"
        raise InputError(f"nothing to draw: the table has no rows for {whole}")
    return found


def whose(volume: int | None, frame: pl.DataFrame, *, alone: bool = False) -> str:
    """For a subtitle: which volume is shown, and of how many.

    Parameters
    ----------
    volume : int or None
    frame : polars.DataFrame
        The table, of all volumes.
    alone : bool
        Whether the chart chose the volume, because it cannot show several.
    """
    ids = frame["volume"].unique().drop_nulls().sort().to_list()
    if volume is None:
        return f"{len(ids)} volumes together" if len(ids) > 1 else "all volumes together"
    text = f"volume {volume}"
    if len(ids) > 1:
        text += f", one of {len(ids)}"
    if len(ids) > 1 and alone:
        others = [id for id in ids if id != volume]
        text += f" (volume={others[0]} shows {'the other' if len(others) == 1 else 'another'})"
    return text


def clock_unit(longest: float) -> tuple[float, str]:
    """Seconds in, and name of, the unit in which instants up to ``longest`` seconds read well."""
    for seconds, name in ((86400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s")):
        if longest >= 3 * seconds:
            return seconds, name
    return (1e-3, "ms") if longest >= 3e-3 else (1e-6, "µs")


def in_windows(found: pl.DataFrame, most: int = MOST_BARS) -> tuple[pl.DataFrame, float, int]:
    """Put neighbouring windows together until there are few enough to be seen.

    Parameters
    ----------
    found : polars.DataFrame
        Rows of one volume, with ``window`` and ``start_s``.
    most : int
        Bars.

    Returns
    -------
    frame : polars.DataFrame
        With the column ``bar``, the number of the bar to which a window belongs.
    seconds : float
        Length of a window.
    each : int
        Windows in a bar.

    Raises
    ------
    InputError
        If all is in one window: there is no course of time to show.
    """
    first, last = int(found["window"].min()), int(found["window"].max())  # type: ignore[arg-type]
    if first == last:
        raise InputError(
            "nothing to draw over time: all requests are in one window",
            hint="measure in shorter windows, such as window='1m'",
        )
    late = found.filter(pl.col("window") == last)
    seconds = float(late["start_s"][0]) / last
    each = -(-(last + 1 - _begin(first, last)) // most)
    return found.with_columns((pl.col("window") // each).alias("bar")), seconds, each


def first_bar(found: pl.DataFrame) -> int:
    """The bar of `in_windows` with which the axis of time begins.

    It is the trace's start, but where all is in the second half, as in a late part of a trace.
    """
    return _begin(int(found["bar"].min()), int(found["bar"].max()))  # type: ignore[arg-type]


def _begin(first: int, last: int) -> int:
    return first if 2 * first > last else 0


def placed(found: pl.DataFrame, seconds: float, each: int) -> tuple[pl.DataFrame, float, float]:
    """Give the bars of `in_windows` their ends ``from`` and ``to``; and what `time_axis` takes."""
    longest = (int(found["bar"].max()) + 1) * each * seconds  # type: ignore[arg-type]
    scale, _ = clock_unit(longest)
    found = found.with_columns(
        (pl.col("bar") * each * seconds / scale).alias("from"),
        ((pl.col("bar") + 1) * each * seconds / scale).alias("to"),
    )
    return found, longest, first_bar(found) * each * seconds


def time_axis(longest: float, begin: float = 0.0, *, labelled: bool = True) -> Any:
    """The horizontal axis of time since the trace's start; column ``from``, in its unit."""
    alt = altair()
    seconds, unit = clock_unit(longest)
    return alt.X(
        "from:Q", title=f"time since the start of the trace, {unit}" if labelled else None,
        scale=alt.Scale(domain=[begin / seconds, longest / seconds], nice=False),
        axis=alt.Axis(tickCount=8, grid=False, labels=labelled),
    )  # fmt: skip


def part_bars(
    x: Any, title: str, column: str, colours: Mapping[str, str], tip_title: str = " "
) -> Any:
    """Bars of parts, which lie from ``from`` to ``to`` and from ``low`` to ``high``."""
    alt = altair()
    return alt.Chart().mark_rect().encode(
        x=x, x2="to:Q",
        y=alt.Y("low:Q", title=title, axis=alt.Axis(tickCount=5, grid=True)), y2="high:Q",
        color=part_colour(column, colours), **tip(title=tip_title),
    )  # fmt: skip


def stairs(x: Any, title: str, column: str, colours: Mapping[str, str]) -> Any:
    """Curves of ``size`` that stay as they are until the next point."""
    alt = altair()
    return alt.Chart().mark_line(interpolate="step-after", strokeWidth=2).encode(
        x=x, y=alt.Y("size:Q", title=title, axis=alt.Axis(tickCount=5, grid=True)),
        color=part_colour(column, colours), **tip(),
    )  # fmt: skip


def panel(chart: Any, title: str, subtitle: str, height: int = HEIGHT) -> Any:
    """A chart that stands alone, with its title and the common look."""
    return finish(chart.properties(width=WIDE, height=height), title, subtitle)
