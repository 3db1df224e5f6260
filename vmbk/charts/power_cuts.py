"""Charts of power cuts: what machines come up with, by label, by model, by time since a flush."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from vmbk.charts.style import (
    INK,
    MUTED,
    WIDE,
    altair,
    figure,
    finish,
    part_colour,
    tip,
)
from vmbk.charts.tables import table
from vmbk.consistency.outcome import FREEZES, LABELS, LADDER, rates
from vmbk.errors import InputError

if TYPE_CHECKING:
    import altair as alt

OUTCOME_COLOURS: Final = {
    "clean": "#0072b2",
    "replayed": "#56b4e9",
    "recovered": "#bcdff5",
    "repaired": "#f0e442",
    "lost": "#e69f00",
    "corrupt": "#d55e00",
    "damaged": "#a03d00",
    "no-boot": "#5c1f00",
    "failed": "#3c3c3c",
}
"""From blue, where a machine comes up by itself, to dark red; light and dark also in print."""

LOST_COLOURS: Final = {
    "none": "#56b4e9",
    "1": "#f0e442",
    "2 or 3": "#e69f00",
    "4 to 9": "#d55e00",
    "10 or more": "#5c1f00",
}
"""Of acknowledged commits that are missing."""

ROW: Final = 22
"""Pixels of an outcome's row."""

_SHARE: Final = "share of crash states"
_ORDER: Final = {name: i for i, name in enumerate((*LABELS, *FREEZES))}


def outcome_shares(frame: pl.DataFrame, by: str = "label") -> alt.FacetChart:
    """How often each outcome was found, with its interval, one panel for each value of a column.

    Parameters
    ----------
    frame : polars.DataFrame
        Outcomes: one row a crash state, see `vmbk.consistency.Outcome`.
    by : str
        The column to tell apart, such as ``label``, ``model``, ``capture`` or ``freeze``.

    Returns
    -------
    altair.FacetChart
        Points are shares, bars Wilson's intervals at 95 %.

    Raises
    ------
    InputError
        If there are no outcomes, or they lack the column.
    """
    alt = altair()
    found = rates(_outcomes(frame, by), [by])
    shown = found.with_columns(
        panel=pl.format("{} ({} states)", pl.col(by), "of"),
        text=pl.when(pl.col("states") > 0).then(pl.col("states").cast(pl.String)).otherwise(
            pl.lit("none")
        ),
        tip=pl.format(
            "{}: {} of {} states {}, {} to {} %",
            by, "states", "of", "outcome",
            (pl.col("low") * 100).round(2), (pl.col("high") * 100).round(2),
        ),
    )  # fmt: skip
    groups = shown.select(by, "panel").unique(maintain_order=True).rows()
    panels = [panel for _, panel in sorted(groups, key=lambda g: _ORDER.get(g[0], len(_ORDER)))]
    rungs = [name for name in LADDER if name in set(shown["outcome"])]
    y = alt.Y("outcome:N", sort=rungs, title=None,
              axis=alt.Axis(ticks=False, domain=False, labelPadding=6, labelColor=INK))  # fmt: skip
    share = alt.Axis(format="%", tickCount=5)
    base = alt.Chart(shown.drop("of"))
    bars = base.mark_bar(height=7, opacity=0.45).encode(
        x=alt.X("low:Q", title=_SHARE, axis=share, scale=alt.Scale(domain=[0, 1])),
        x2="high:Q", y=y, color=_colour(rungs, legend=None), **tip(),
    )  # fmt: skip
    points = base.mark_point(filled=True, size=60, opacity=1, stroke=INK, strokeWidth=0.5).encode(
        x="share:Q", y=y, color=_colour(rungs, legend=None)
    )
    numbers = base.mark_text(align="left", dx=7, color=MUTED).encode(x="high:Q", y=y, text="text:N")
    return figure(
        alt.layer(bars, points, numbers), panels,
        f"What a machine comes up with, by {by}",
        "Points: share of the crash states; bars: its interval at 95 %; numbers: states",
        height=ROW * len(rungs), beside=70,
    )  # fmt: skip


def since_flush(frame: pl.DataFrame) -> alt.FacetChart:
    """Outcomes over how much had been written since the disk's last flush.

    Parameters
    ----------
    frame : polars.DataFrame
        Outcomes with a column ``honest``, as of `vmbk.study_power_cuts`.

    Returns
    -------
    altair.FacetChart
        One panel for disks that keep what they promise, one for those that do not.

    Raises
    ------
    InputError
        If there are no outcomes, or they lack a column.
    """
    alt = altair()
    found = _outcomes(frame, "honest", "requests_since_flush")
    edges = [1, 2, 4, 8, 16, 32, 64]
    labels = ["0", "1", "2–3", "4–7", "8–15", "16–31", "32–63", "≥ 64"]
    found = found.with_columns(
        since=pl.Series([labels[i] for i in np.searchsorted(
            edges, found["requests_since_flush"], side="right"
        ).tolist()], dtype=pl.String),
        panel=pl.when("honest").then(pl.lit("disks that keep their promises")).otherwise(
            pl.lit("lying caches, and disks cut apart")
        ),
    )  # fmt: skip
    counted = (
        found.group_by("panel", "since", "outcome").agg(states=pl.len())
        .with_columns(of=pl.col("states").sum().over("panel", "since"))
        .with_columns(share=pl.col("states") / pl.col("of"))
        .with_columns(tip=pl.format("{} requests since the last flush: {} of {} states {}",
                                    "since", "states", "of", "outcome"))
        .with_columns(rung=pl.col("outcome").replace_strict(_rungs(), return_dtype=pl.Int64))
        .sort("panel", "since", "rung")
        .with_columns(first=pl.struct("panel", "since").is_first_distinct())
    )  # fmt: skip
    rungs = [name for name in LADDER if name in set(counted["outcome"])]
    panels = sorted(counted["panel"].unique().to_list())
    x = alt.X("since:N", sort=labels, title="requests that changed the disk since its last flush",
              axis=alt.Axis(labelAngle=0, ticks=False))  # fmt: skip
    base = alt.Chart(counted).encode(x=x)
    bars = base.mark_bar(stroke="#ffffff", strokeWidth=0.5).encode(
        y=alt.Y("share:Q", title=_SHARE, axis=alt.Axis(format="%", tickCount=5),
                scale=alt.Scale(domain=[0, 1])),
        color=_colour(rungs), order="rung:Q", **tip(),
    )  # fmt: skip
    sizes = (
        base.transform_filter("datum.first")
        .mark_text(dy=-6, fontSize=10, color=MUTED)
        .encode(y=alt.datum(1.0), text="of:Q")
    )
    return figure(
        alt.layer(bars, sizes), panels,
        "Outcome against what was written since the last flush",
        "Numbers above the bars: crash states",
        height=200,
    )  # fmt: skip


def lost_commits(frame: pl.DataFrame, by: str = "model") -> alt.Chart:
    """How many acknowledged commits are missing, by crash model.

    Parameters
    ----------
    frame : polars.DataFrame
        Outcomes of machines with a database.
    by : str
        The column to tell apart.

    Returns
    -------
    altair.Chart
        The share of states by how many commits they lost. States with a corrupt database or a
        damaged file system are left out: there, nothing can be counted.

    Raises
    ------
    InputError
        If there are no outcomes with commits, or they lack a column.
    """
    alt = altair()
    found = _outcomes(frame, by, "commits_acknowledged", "commits_lost").filter(
        pl.col("commits_acknowledged") > 0, ~pl.col("outcome").is_in(["corrupt", "damaged"])
    )
    if not len(found):
        raise InputError("nothing to draw: no state has an acknowledged commit")
    names = list(LOST_COLOURS)
    classes = np.searchsorted([1, 2, 4, 10], found["commits_lost"], side="right").tolist()
    shares = (
        found.with_columns(lost=pl.Series([names[i] for i in classes], dtype=pl.String))
        .with_columns(order=pl.Series(classes, dtype=pl.Int64))
        .group_by(by, "lost", "order", maintain_order=True).agg(states=pl.len())
        .with_columns(of=pl.col("states").sum().over(by))
        .with_columns(share=pl.col("states") / pl.col("of"))
        .with_columns(row=pl.format("{} ({} states)", by, "of"))
        .with_columns(tip=pl.format("{}: {} of {} states: {}", by, "states", "of", "lost"))
        .sort("order")
    )  # fmt: skip
    rows = found[by].unique(maintain_order=True).to_list()
    sizes = dict(shares.select(by, "row").unique().rows())
    bars = alt.Chart(shares).mark_bar(stroke="#ffffff", strokeWidth=0.5).encode(
        x=alt.X("share:Q", title="share of states with commits",
                axis=alt.Axis(format="%", tickCount=5), scale=alt.Scale(domain=[0, 1])),
        y=alt.Y("row:N", sort=[sizes[name] for name in rows], title=None,
                axis=alt.Axis(ticks=False, domain=False, labelPadding=6, labelColor=INK)),
        color=part_colour("lost:N", LOST_COLOURS), order="order:Q", **tip(),
    )  # fmt: skip
    return finish(
        bars.properties(width=WIDE - 120, height=ROW * len(rows)),
        f"Acknowledged commits lost, by {by}",
        "States with a corrupt database are left out: there is nothing to count",
    )


def _outcomes(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """The states in which there was something, with the columns that a chart needs."""
    found = table(frame, "outcomes")
    missing = [name for name in ("outcome", *columns) if name not in found.columns]
    if missing:
        raise InputError(f"these are no outcomes: they lack {', '.join(missing)}")
    found = found.filter(pl.col("outcome") != "none")
    if not len(found):
        raise InputError("nothing to draw: no crash state was checked")
    return found


def _rungs() -> dict[str, int]:
    return {name: i for i, name in enumerate(LADDER)}


def _colour(rungs: Sequence[str], **options: Any) -> Any:
    colour = part_colour("outcome:N", {name: OUTCOME_COLOURS[name] for name in rungs})
    if options:
        colour.legend = options["legend"]
    return colour
