"""Charts of the calibration: time against extents, the service's rate, documented times beside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from vmbk.charts.style import (
    BAD,
    BYTES_ON_LOG_AXIS,
    GOOD,
    INK,
    LINE,
    MUTED,
    NOTHING,
    ROW,
    WIDE,
    altair,
    finish,
    part_colour,
    tip,
)
from vmbk.charts.tables import table
from vmbk.errors import InputError
from vmbk.service.calibration import GRAIN, Calibration
from vmbk.service.fit import cells_of
from vmbk.service.validation import (
    SCHEMA,
    THRESHOLD_BYTES,
    THRESHOLD_SECONDS,
    Rates,
    threshold_extent,
)
from vmbk.units import format_duration, format_size

if TYPE_CHECKING:
    import altair as alt

LATENCIES: Final = (0.0, 0.001, 0.01)
"""Seconds of a round trip for each extent; all but the first are assumptions."""

LATENCY_COLOURS: Final = (GOOD, "#56b4e9", "#e69f00")

WRITES: Final = {"4 KiB and more": GOOD, "below 4 KiB": "#e69f00"}

_CURVE: Final = 2.0 ** np.arange(9, 24.01, 0.25)  # 512 B to 16 MiB


def time_by_extent(frame: pl.DataFrame, calibration: Calibration) -> alt.LayerChart:
    """Seconds to send a GB of changes against the mean extent: measured, and fitted.

    Parameters
    ----------
    frame : polars.DataFrame
        Measurements, see `vmbk.study.calibration.measure`.
    calibration : Calibration
        Their fit.

    Returns
    -------
    altair.LayerChart
        Points are cells, by their writes; the line is the fit where each write is an extent, and
        its band has every cost at the ends of its interval. The time in which a backup starts to
        send is left out.

    Raises
    ------
    InputError
        If there are no measurements.
    """
    alt = altair()
    costs = calibration.fit("send")
    start = costs.cost("start").value
    cells = cells_of(table(frame)).filter(pl.col("spread") != "holed")
    if cells.is_empty():
        raise InputError("nothing to draw: no cell was measured")
    data = cells.select(
        extent=pl.col("written_bytes") / pl.col("extents"),
        seconds=(pl.col("transfer_seconds") - start) / pl.col("written_bytes") * 1e9,
        writes=pl.when(pl.col("write_size") < GRAIN).then(pl.lit("below 4 KiB"))
        .otherwise(pl.lit("4 KiB and more")),
        tip=pl.format("{} {} in writes of {}, {} extents: {} s", "machine", "spread",
                      _size("write_size"), pl.col("extents").cast(pl.Int64),
                      pl.col("transfer_seconds").round(4)),
    ).filter(pl.col("seconds") > 0)  # fmt: skip
    padding = np.maximum(0.0, GRAIN - _CURVE)
    line = pl.DataFrame({"extent": _CURVE} | {
        name: 1e9 / _CURVE * (
            getattr(costs.cost("sent"), end) * (_CURVE + padding)
            + getattr(costs.cost("extents"), end)
            + getattr(costs.cost("padding"), end) * padding
        )
        for name, end in (("seconds", "value"), ("low", "low"), ("high", "high"))
    })  # fmt: skip
    x, y = _extent_axis(), alt.Y(
        "seconds:Q", title="seconds for a GB of changes", scale=alt.Scale(type="log", nice=False),
        axis=alt.Axis(values=[1, 2, 5, 10, 20, 50, 100, 200, 500, 1000], format="~g", grid=True),
    )  # fmt: skip
    base = alt.Chart(line).encode(x=x)
    chart = alt.layer(
        base.mark_area(color=NOTHING, opacity=0.3).encode(
            y=alt.Y("low:Q", scale=alt.Scale(type="log", nice=False)), y2="high:Q"
        ),
        base.mark_line(color=INK, strokeWidth=1.5).encode(y=y),
        alt.Chart(data).mark_point(filled=True, size=36, opacity=0.8).encode(
            x=x, y=y, color=part_colour("writes:N", WRITES), **tip()
        ),
    ).properties(width=WIDE, height=300)  # fmt: skip
    return finish(
        chart, "The time to send the same bytes in more extents",
        "Points: medians of measured backups, by the size of writes; line and band: the fit where "
        "each write is an extent, its interval at 95 %",
    )  # fmt: skip


def service_throughput(calibration: Calibration, rates: Rates | None = None) -> alt.LayerChart:
    """The service's throughput against the mean extent: its published rate, less dispersion.

    Parameters
    ----------
    calibration : Calibration
    rates : Rates, optional
        The published ones by default. Its latency is not used: the chart shows several.

    Returns
    -------
    altair.LayerChart
        Lines for no round trip and for assumed ones, an interval about the first, and rules at the
        published rate and at the one that 200 GB in 8 hours imply.
    """
    alt = altair()
    rates = rates or Rates()
    names = {f"round trip of {format_duration(each)}, assumed" if each else "as measured": colour
             for each, colour in zip(LATENCIES, LATENCY_COLOURS, strict=True)}  # fmt: skip
    lines = pl.DataFrame(
        [
            {
                "extent": extent, "line": name,
                "rate": calibration.effective_rate(
                    rates.incremental, extent, extent, request_latency=latency) / 1e6,
            }
            for name, latency in zip(names, LATENCIES, strict=True) for extent in _CURVE.tolist()
        ]
    )  # fmt: skip
    low, high = calibration.ends()
    band = pl.DataFrame({"extent": _CURVE} | {
        name: [each.effective_rate(rates.incremental, extent, extent) / 1e6
               for extent in _CURVE.tolist()]
        for name, each in (("low", high), ("high", low))
    })  # fmt: skip
    implied = THRESHOLD_BYTES / THRESHOLD_SECONDS
    rules = pl.DataFrame({
        "rate": [rates.incremental / 1e6, implied / 1e6],
        "text": [f"published: {rates.incremental * 8 / 1e6:.0f} Mbps",
                 f"200 GB in 8 hours: {implied / 1e6:.1f} MB/s"],
        "extent": [float(_CURVE[0])] * 2,
    })  # fmt: skip
    crossing = threshold_extent(calibration, THRESHOLD_BYTES, THRESHOLD_SECONDS, rates.incremental)
    at = pl.DataFrame({
        "extent": [crossing], "rate": [implied / 1e6],
        "tip": [f"a mean extent of {format_size(crossing)} makes 200 GB take 8 hours"],
        "text": [format_size(crossing)],
    })  # fmt: skip
    top = rates.incremental / 1e6 * 1.6
    scale = alt.Scale(type="log", domain=[0.03, top], nice=False, clamp=True)
    x = _extent_axis()
    ticks = alt.Axis(values=[0.1, 0.3, 1, 3, 10, 30, 100], format="~g", grid=True)
    y = alt.Y("rate:Q", title="changed data, MB/s", scale=scale, axis=ticks)
    ruled = alt.Chart(rules)
    point = alt.Chart(at)
    chart = alt.layer(
        alt.Chart(band).mark_area(color=GOOD, opacity=0.25).encode(
            x=x, y=alt.Y("low:Q", scale=scale), y2="high:Q"
        ),
        ruled.mark_rule(color=MUTED, strokeDash=[4, 3]).encode(y=y),
        ruled.mark_text(align="left", dx=4, dy=-6, color=MUTED).encode(x=x, y=y, text="text:N"),
        alt.Chart(lines).mark_line(strokeWidth=2).encode(
            x=x, y=y, color=part_colour("line:N", names)
        ),
        point.mark_point(filled=True, size=70, opacity=1, color=BAD).encode(x=x, y=y, **tip()),
        point.mark_text(align="left", dx=8, dy=10).encode(x=x, y=y, text="text:N"),
    ).properties(width=WIDE, height=300)  # fmt: skip
    return finish(
        chart, "What dispersion leaves of the service's published rate",
        "Each write an extent; band: the calibration's interval at 95 %; round trips are in no "
        "document",
    )  # fmt: skip


def documented_times(frame: pl.DataFrame) -> alt.LayerChart:
    """Times that the documents tell beside the model's.

    Parameters
    ----------
    frame : polars.DataFrame
        Of `vmbk.service.validation.validate`.

    Returns
    -------
    altair.LayerChart
        A row a point: a black mark for what is documented, a point with its interval for the model.

    Raises
    ------
    InputError
        If this is another table, or has no rows.
    """
    alt = altair()
    found = table(frame)
    missing = [name for name in SCHEMA if name not in found.columns]
    if missing:
        raise InputError(f"these are no validation points: they lack {', '.join(missing)}")
    if found.is_empty():
        raise InputError("nothing to draw: there are no points")
    hours = {name: pl.col(f"{name}_seconds") / 3600
             for name in ("documented", "modelled", "low", "high")}  # fmt: skip
    data = found.select(
        "point", "verdict", tip=pl.format("{}: {}", "point", "explanation"), **hours
    )
    y = alt.Y("point:N", sort=data["point"].to_list(), title=None,
              axis=alt.Axis(ticks=False, domain=False, labelPadding=8, labelLimit=330,
                            labelColor=INK))  # fmt: skip
    ends = pl.concat([data["documented"].drop_nulls(), data["low"], data["high"]])
    low, high = float(ends.min()) / 1.5, float(ends.max()) * 1.5  # type: ignore[arg-type]
    x = alt.X("modelled:Q", title="hours",
              scale=alt.Scale(type="log", domain=[low, high], nice=False),
              axis=alt.Axis(format="~g", tickCount=6, grid=True))  # fmt: skip
    base = alt.Chart(data).encode(y=y)
    gaps = base.transform_filter("isValid(datum.documented)")
    chart = alt.layer(
        gaps.mark_rule(color=LINE, strokeWidth=3).encode(x=x, x2="documented:Q"),
        base.mark_rule(strokeWidth=3, opacity=0.45, color=GOOD).encode(
            x=alt.X("low:Q"), x2="high:Q"
        ),
        gaps.mark_tick(thickness=2.5, size=15, color=INK).encode(x="documented:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            x=x, color=part_colour("verdict:N", _VERDICTS), **tip()
        ),
    ).properties(width=WIDE - 320, height=ROW * len(data))  # fmt: skip
    return finish(
        chart, "Documented times beside the model's",
        "Black mark: documented; point and bar: the model, its interval at 95 %. For 200 GB more "
        "than 8 hours is documented",
    )  # fmt: skip


_VERDICTS: Final = {"as documented": GOOD, "gap": BAD, "solved for": INK}


def _extent_axis() -> object:
    alt = altair()
    return alt.X(
        "extent:Q", title="mean extent",
        scale=alt.Scale(type="log", base=2, domain=[float(_CURVE[0]), float(_CURVE[-1])],
                        nice=False, clamp=True),
        axis=alt.Axis(values=[512 << (2 * i) for i in range(8)], labelExpr=BYTES_ON_LOG_AXIS,
                      grid=False),
    )  # fmt: skip


def _size(column: str) -> pl.Expr:
    return pl.col(column).map_elements(format_size, return_dtype=pl.String)
