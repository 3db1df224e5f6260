"""Charts of benchmarks: ratios of a run, ratios over runs, and other programs beside vmbk.

Each takes a plain table, such as ``notebooks/09_performance.ipynb`` makes of
``benchmarks/history.jsonl``. A ratio is the baseline's time over ours, in the same run: above 1
ours is faster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from vmbk.charts.style import (
    BAD,
    BYTES_ON_LOG_AXIS,
    DETECTOR_COLOURS,
    GOOD,
    INK,
    MUTED,
    NOTHING,
    ROW,
    altair,
    figure,
    finish,
    part_colour,
    tip,
)
from vmbk.charts.tables import short_names, sizes, table
from vmbk.errors import InputError
from vmbk.units import format_size

if TYPE_CHECKING:
    import altair as alt

TOOLS: Final = {
    "vmbk": DETECTOR_COLOURS["tracking"], "vmbk checksum": DETECTOR_COLOURS["checksum"],
    "restic": "#e69f00", "borg": "#cc79a7",
}  # fmt: skip
"""Programs and their colours; others are grey."""

MACHINES: Final = (GOOD, "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
"""Colours of a history's machines, in the order in which they came; the rest are grey."""

STATES: Final = {"at or above its floor": GOOD, "below its floor": BAD, "no floor": NOTHING}

LONGEST_NAME: Final = 48
"""Characters of a case's name or baseline that have room."""

RATIOS_WIDE: Final = 340
"""Pixels of the panel of `speed_ratios`; names stand left of it and baselines right."""

PEERS_WIDE: Final = 340
"""Pixels of each panel of `peers`."""

_DAY_MS: Final = 86_400_000
_BESIDE: Final = 1.25
"""How far a logarithmic axis goes beyond its marks, as a factor."""


def speed_ratios(frame: pl.DataFrame) -> alt.LayerChart:
    """Ratios of each case's latest run, with their spread and floor.

    Parameters
    ----------
    frame : polars.DataFrame
        A row per run and case: ``date`` (Date or Datetime), ``name``, ``baseline``, ``ratio``
        (median of the rounds), ``low`` and ``high`` (least and greatest of the rounds) and
        ``floor``, the least ratio that is asked for, or null.

    Returns
    -------
    altair.LayerChart
        A row per case, in the order of the table. The axis is logarithmic: twice as fast is as far
        from 1 as half as fast.

    Raises
    ------
    InputError
        If a column is missing or holds something else, or there is nothing to draw.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    found = _ratios(frame, "baseline")
    found = found.filter(pl.col("at") == pl.col("at").max().over("name")).unique(
        "name", keep="last", maintain_order=True
    )
    data = found.select(
        "name", "ratio", "low", "high", "floor",
        pl.when(pl.col("floor").is_null()).then(pl.lit("no floor"))
        .when(pl.col("ratio") < pl.col("floor")).then(pl.lit("below its floor"))
        .otherwise(pl.lit("at or above its floor")).alias("state"),
        pl.format("{} × {}", _figure("ratio"), "baseline").alias("label"),
        pl.format("{}: {} times as fast as {}; rounds {} to {}", "name", _figure("ratio"),
                  "baseline", _figure("low"), _figure("high")).alias("tip"),
    )  # fmt: skip
    ends = pl.concat([data["low"], data["high"], data["floor"].drop_nulls(), pl.Series([1.0])])
    low, high = float(ends.min()) / _BESIDE, float(ends.max()) * _BESIDE  # type: ignore[arg-type]
    states = {state: colour for state, colour in STATES.items() if state in set(data["state"])}
    base = alt.Chart().encode(
        y=alt.Y("name:N", sort=data["name"].to_list(), title=None,
                axis=alt.Axis(ticks=False, domain=False, labelPadding=8, labelLimit=260,
                              labelColor=INK)),
        x=alt.X("ratio:Q", title="times as fast as the baseline",
                scale=alt.Scale(type="log", domain=[low, high], nice=False),
                axis=alt.Axis(values=_ticks(low, high), format="~g", grid=True)),
        color=part_colour("state:N", states).legend(symbolOpacity=1),
    )  # fmt: skip
    even = alt.Chart(pl.DataFrame({"ratio": [1.0]})).mark_rule(color=MUTED, strokeDash=[4, 3])
    floors = base.transform_filter("isValid(datum.floor)").mark_tick(thickness=2, size=15)
    chart = alt.layer(
        even.encode(x="ratio:Q"),
        base.mark_rule(strokeWidth=3, opacity=0.45).encode(x="low:Q", x2="high:Q"),
        floors.encode(x="floor:Q", color=alt.value(INK)),
        base.mark_point(filled=True, size=60, opacity=1).encode(**tip()),
        base.mark_text(align="left", limit=270).encode(
            x=alt.value(RATIOS_WIDE + 12), text="label:N", color=alt.value(INK)
        ),
        data=data,
    ).properties(width=RATIOS_WIDE, height=ROW * len(data))
    return finish(
        chart, "How fast, beside a baseline of the same run",
        "Point: median of the rounds; bar: lowest to highest round; black mark: the floor; dashed: "
        "as fast as the baseline",
    )  # fmt: skip


def ratio_history(frame: pl.DataFrame) -> alt.FacetChart:
    """Each case's ratio from run to run, with the floor of its last run.

    Parameters
    ----------
    frame : polars.DataFrame
        As `speed_ratios` takes it, and ``machine``: a line joins ratios of the same one. Dates
        without a time zone are UTC's.

    Returns
    -------
    altair.FacetChart
        A panel per case, each with a logarithmic axis of its own.

    Raises
    ------
    InputError
        If a column is missing or holds something else, or there is nothing to draw.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    found = _ratios(frame, "machine").sort("at", maintain_order=True)
    machines = found["machine"].unique(maintain_order=True).to_list()
    colours = {name: (*MACHINES, MUTED)[min(i, len(MACHINES))] for i, name in enumerate(machines)}
    data = found.select(
        pl.col("name").alias("panel"), "machine", "at", "ratio", "low", "high",
        pl.when(pl.int_range(pl.len()).over("name") == pl.len().over("name") - 1)
        .then("floor").alias("floor"),
        pl.format("{}, {}: {}; rounds {} to {}", "machine",
                  pl.from_epoch("at", "ms").dt.strftime("%Y-%m-%d %H:%M"), _figure("ratio"),
                  _figure("low"), _figure("high")).alias("tip"),
    )  # fmt: skip
    first, last = int(data["at"].min()), int(data["at"].max())  # type: ignore[arg-type]
    beside = max((last - first) // 20, _DAY_MS // 24)
    long = last - first > 4 * _DAY_MS
    # Times are shown as UTC's, so that a picture does not depend on where it is drawn.
    base = alt.Chart().encode(
        x=alt.X("at:T", title="date of the run, UTC",
                scale=alt.Scale(type="utc", domain=[first - beside, last + beside], nice=False),
                axis=alt.Axis(format="%Y-%m-%d" if long else "%m-%d %H:%M", tickCount=4,
                              grid=False, labelOverlap=True)),
        y=alt.Y("ratio:Q", title="ratio",
                scale=alt.Scale(type="log", nice=False, padding=8),
                axis=alt.Axis(tickCount=4, format="~g", minExtent=34)),
        color=part_colour("machine:N", colours).legend(symbolOpacity=1, labelLimit=370),
    )  # fmt: skip
    floors = alt.Chart().transform_filter("isValid(datum.floor)").mark_rule(
        color=MUTED, strokeDash=[4, 3], strokeWidth=1.2
    )  # fmt: skip
    chart = alt.layer(
        floors.encode(y="floor:Q"),
        base.mark_rule(strokeWidth=3, opacity=0.45).encode(y="low:Q", y2="high:Q"),
        base.mark_line(strokeWidth=1.5),
        base.mark_point(filled=True, size=40, opacity=1).encode(**tip()),
        data=data,
    )
    return figure(
        chart, data["panel"].unique(maintain_order=True).to_list(), "Ratios from run to run",
        "Baseline's time over ours; bar: lowest to highest round; dashed: the floor",
        height=100, beside=30, y="independent",
    )  # fmt: skip


def peers(frame: pl.DataFrame) -> alt.HConcatChart:
    """Seconds and stored bytes of each step, by program.

    Parameters
    ----------
    frame : polars.DataFrame
        A row per step and program of one run: ``step``, ``tool``, ``seconds`` (of the whole
        process; null for what is no program, such as the compressed writes alone), ``stored``
        (bytes that the step added to the repository), ``image`` (its kind) and ``size`` (of the
        image, bytes).

    Returns
    -------
    altair.HConcatChart
        Left the seconds; right, on a logarithmic axis, the stored bytes of the steps that store.

    Raises
    ------
    InputError
        If a column is missing or holds something else, the table is of several runs, or there is
        nothing to draw.
    VmbkError
        If Altair is not installed.
    """
    alt = altair()
    found = _with(frame, ("seconds", "stored", "size"), ("step", "tool", "image"))
    timed = found.filter(pl.col("seconds").is_not_null())
    if timed.is_empty():
        raise InputError("nothing to draw: no program was timed")
    runs = found.select("image", "size").unique()
    if len(runs) > 1 or found.select("step", "tool").is_duplicated().any():
        raise InputError("several runs in one chart", hint="pass the rows of one run")
    longest = float(timed["seconds"].max())  # type: ignore[arg-type]
    bars = _by_step(
        timed.with_columns(
            pl.col("seconds").map_elements(_seconds, return_dtype=pl.String).alias("label")
        ),
        found, True,
        alt.X("seconds:Q", title="time of the whole process, s",
              scale=alt.Scale(domain=[0, max(longest, 1e-3) * 1.2], nice=False),
              axis=alt.Axis(tickCount=5, grid=True)),
    )  # fmt: skip
    panels = [alt.layer(bars.mark_bar().encode(**tip()), _labels(bars))]
    stored = found.filter(pl.col("stored") > 0)
    if not stored.is_empty():
        low, high = float(stored["stored"].min()), float(stored["stored"].max())  # type: ignore[arg-type]
        marks = [1 << k for k in range(0, 60, 5) if low / 2 <= 1 << k <= high * 16]
        points = _by_step(
            stored.with_columns(sizes("stored").alias("label")),
            found, False,
            alt.X("stored:Q", title="added to the repository",
                  scale=alt.Scale(type="log", base=2, domain=[low / 2, high * 16], nice=False),
                  axis=alt.Axis(values=marks, labelExpr=BYTES_ON_LOG_AXIS, grid=True)),
        )  # fmt: skip
        dots = points.mark_point(filled=True, size=70, opacity=1)
        panels.append(alt.layer(dots.encode(**tip()), _labels(points)))
    kind, size = runs.row(0)
    chart = alt.hconcat(*(panel.properties(width=PEERS_WIDE) for panel in panels), spacing=20)
    return finish(
        chart, "vmbk beside other programs",
        f"Image: {kind}, {format_size(int(size))}; times of whole processes with their start; "
        "all encrypt and compress; a step without a point stores nothing",
    )  # fmt: skip


def _by_step(rows: pl.DataFrame, whole: pl.DataFrame, named: bool, x: Any) -> Any:
    """A chart of rows with their ``label``: steps one below the other, and in each the programs.

    All steps and programs of the whole table have their place, so that panels side by side match.
    """
    alt = altair()
    tools = whole["tool"].unique(maintain_order=True).to_list()
    steps = whole["step"].unique(maintain_order=True).to_list()
    data = rows.select(
        "step", "tool", "seconds", "stored", "label",
        pl.format("{}, {}: {}", "step", "tool", "label").alias("tip"),
    )  # fmt: skip
    return alt.Chart(data, height={"step": 15}).encode(
        x=x,
        y=alt.Y("step:N", sort=steps, title=None,
                scale=alt.Scale(domain=steps, paddingInner=0.2),
                axis=alt.Axis(ticks=False, domain=False, labels=named, labelPadding=8,
                              labelFontSize=12, labelColor=INK)),
        yOffset=alt.YOffset("tool:N", sort=tools, scale=alt.Scale(domain=tools)),
        color=part_colour("tool:N", {name: TOOLS.get(name, NOTHING) for name in tools}),
    )  # fmt: skip


def _labels(chart: Any) -> Any:
    return chart.mark_text(align="left", dx=7).encode(text="label:N", color=altair().value(INK))


def _ratios(frame: Any, *texts: str) -> pl.DataFrame:
    """Rows with ratios that a logarithmic axis can show; ``at`` is the date, ms since 1970."""
    found = _with(frame, ("ratio", "low", "high", "floor"), ("name", *texts), ("date",))
    measured = pl.min_horizontal("ratio", "low", "high")
    if found.select("ratio", "low", "high", "date").null_count().sum_horizontal().item():
        raise InputError("a ratio or its date is missing", hint="only floor may be null")
    bad = found.filter((measured <= 0) | (pl.col("floor") <= 0))
    if len(bad):
        name = bad["name"][0]
        raise InputError(f"the ratios of {name!r} are not above 0", hint="a ratio is of two times")
    return found.with_columns(pl.col("date").cast(pl.Datetime("ms")).dt.epoch("ms").alias("at"))


def _with(
    frame: Any, numbers: tuple[str, ...], texts: tuple[str, ...], dates: tuple[str, ...] = ()
) -> pl.DataFrame:
    """The table, if its columns hold what they should; texts are made fit for a picture."""
    found = table(frame)
    missing = [name for name in (*dates, *texts, *numbers) if name not in found.columns]
    if missing:
        raise InputError(f"this table lacks {', '.join(missing)}, which the chart needs")
    if found.is_empty():
        raise InputError("nothing to draw: the table is empty")
    schema = found.schema
    fits = {name: schema[name].is_numeric() or schema[name] == pl.Null for name in numbers}
    fits |= {name: schema[name] == pl.String for name in texts}
    fits |= {name: schema[name] in (pl.Date, pl.Datetime) for name in dates}
    wrong = [name for name, right in fits.items() if not right]
    if wrong:
        kind = "numbers" if wrong[0] in numbers else "texts" if wrong[0] in texts else "dates"
        raise InputError(f"the column {wrong[0]} holds {schema[wrong[0]]}, not {kind}")
    if any(found[name].null_count() for name in texts):
        raise InputError(f"one of the columns {', '.join(texts)} has nulls")
    found = found.with_columns(pl.col(*numbers).cast(pl.Float64))
    odd = [name for name in numbers if not found[name].drop_nulls().is_finite().all()]
    if odd:
        raise InputError(f"the column {odd[0]} holds what is no finite number")
    return found.with_columns(
        pl.col(name).replace_strict(short_names(found[name], LONGEST_NAME)) for name in texts
    )


def _figure(column: str) -> pl.Expr:
    """A ratio as a text of three digits or so."""
    return pl.col(column).map_elements(
        lambda r: f"{r:.2f}" if r < 20 else f"{r:.0f}", return_dtype=pl.String
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"


def _ticks(low: float, high: float) -> list[float]:
    """Some ratios between two: 1, 2 and 5 times powers of ten."""
    powers = [digit * 10.0**k for k in range(-6, 7) for digit in (1, 2, 5)]
    return [float(f"{tick:.3g}") for tick in powers if low <= tick <= high]
