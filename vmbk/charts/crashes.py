"""The chart of crash states: what the checkers found, and which commits were there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl

from vmbk.charts.style import BAD, GOOD, INK, LINE, MUTED, altair, finish
from vmbk.charts.tables import short_names, table
from vmbk.consistency.outcome import DATABASE_STATES, FILESYSTEM_STATES
from vmbk.errors import InputError

if TYPE_CHECKING:
    import altair as alt

CELL: Final = 52
"""Pixels of a cell's width; that of five is the left part."""

HEIGHT: Final = 150
"""Pixels of both parts."""

MOST_CAPTURES: Final = 12
"""Captures under one crash model each that a chart shows."""

MOST_STATES: Final = 1500
"""Crash states that a chart of commits shows one by one."""

COLUMNS: Final = ("capture", "model", "row", "filesystem", "database", "commits_acknowledged",
                  "commits_found", "commits_lost")  # fmt: skip


def consistent() -> pl.Expr:
    """Whether a machine would come up by itself with every acknowledged commit."""
    return pl.col("filesystem").is_in(["none", "clean", "replayed"]) & pl.col("database").is_in(
        ["none", "clean", "recovered"]
    )


def outcomes(frame: pl.DataFrame) -> alt.VConcatChart:
    """Crash states by what the checkers of file system and database found, and commits lost.

    Parameters
    ----------
    frame : polars.DataFrame
        The outcomes of a study, or of `vmbk.crash_test`: one row a crash state.

    Returns
    -------
    altair.VConcatChart
        For each capture the number of states by outcome, and beside it the commits that were
        acknowledged and found.

    Raises
    ------
    InputError
        If there are no outcomes, or they lack a column.
    VmbkError
        If Altair is not installed.
    """
    frame = table(frame, "outcomes")
    if not len(frame):
        raise InputError(
            "nothing to draw: no crash state was checked",
            hint="name captures under [consistency] in the study",
        )
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise InputError(f"these are no outcomes: they lack {', '.join(missing)}")
    alt = altair()
    names = short_names(frame["capture"])
    captures = frame.select("capture", "model").n_unique()
    if captures > MOST_CAPTURES:
        raise InputError(
            f"a chart of {captures} captures cannot be read; the most is {MOST_CAPTURES}",
            hint="filter the outcomes by capture",
        )
    rows = []
    for (capture, model), states in frame.group_by("capture", "model", maintain_order=True):
        parts = [_counts(states)]
        if states.select(pl.any_horizontal(pl.col("commits_acknowledged", "commits_found") > 0)
                         .any()).item():  # fmt: skip
            parts.append(_commits(states))
        title = alt.TitleParams(
            f"{names[str(capture)]} · crash model {model}",
            anchor="start", fontSize=12, color=INK, offset=8,
        )  # fmt: skip
        rows.append(alt.hconcat(*parts, spacing=36).properties(title=title))
    return finish(
        alt.vconcat(*rows, spacing=24),
        "What a power cut leaves",
        "Blue: the machine comes up by itself with every acknowledged commit; orange: it does not",
    )


def _counts(states: pl.DataFrame) -> Any:
    """States by outcome of file system and database, with the empty ones shown as such."""
    alt = altair()
    grid = pl.DataFrame({"filesystem": FILESYSTEM_STATES}).join(
        pl.DataFrame({"database": DATABASE_STATES}), how="cross"
    )
    found = states.group_by("filesystem", "database").len("states")
    data = grid.join(found, on=["filesystem", "database"], how="left").with_columns(
        pl.col("states").fill_null(0).cast(pl.Int64),
        pl.when(consistent()).then(pl.lit("good")).otherwise(pl.lit("bad")).alias("kind"),
        pl.format(
            "file system {}, database {}: {} crash states",
            "filesystem", "database", pl.col("states").fill_null(0),
        ).alias("tip"),
    )  # fmt: skip
    base = alt.Chart(data).encode(
        x=alt.X("filesystem:N", sort=list(FILESYSTEM_STATES), title="file system, good to bad",
                axis=alt.Axis(labelAngle=0, ticks=False, domain=False)),
        y=alt.Y("database:N", sort=list(DATABASE_STATES), title="database, good to bad",
                axis=alt.Axis(ticks=False, domain=False, labelPadding=6)),
    )  # fmt: skip
    cells = base.mark_rect(stroke=LINE, strokeWidth=1).encode(
        color=alt.Color("kind:N", legend=None,
                        scale=alt.Scale(domain=["good", "bad"], range=[GOOD, BAD])),
        description="tip:N",
        opacity=alt.condition("datum.states > 0", alt.value(1), alt.value(0.07)),
        tooltip=[alt.Tooltip("filesystem:N", title="file system"), alt.Tooltip("database:N"),
                 alt.Tooltip("states:Q", title="crash states")],
    )  # fmt: skip
    numbers = base.transform_filter("datum.states > 0").mark_text(
        fontSize=15, fontWeight="bold", color="#ffffff"
    ).encode(text="states:Q")  # fmt: skip
    title = _title(f"{len(states)} crash states by what the checkers found")
    return alt.layer(cells, numbers).properties(width=5 * CELL, height=HEIGHT, title=title)


def _commits(states: pl.DataFrame) -> Any:
    """Commits acknowledged and found, over the requests that the disk held."""
    alt = altair()
    shown = states.sort("row")
    if len(shown) > MOST_STATES:  # those that lost most, and every so many of the others
        worst = shown.sort("commits_lost", descending=True).head(MOST_STATES // 2)
        rest = shown.gather_every(-(-len(shown) // (MOST_STATES // 2)))
        shown = pl.concat([worst, rest]).unique(maintain_order=True).sort("row")
    data = shown.with_columns(
        pl.when(consistent()).then(pl.lit("good")).otherwise(pl.lit("bad")).alias("kind"),
        pl.format(
            "{} requests on the disk: {} commits acknowledged, {} found, {} lost",
            "row", "commits_acknowledged", "commits_found", "commits_lost",
        ).alias("tip"),
    )  # fmt: skip
    x = alt.X("row:Q", title="requests on the disk when the power was cut",
              axis=alt.Axis(tickCount=5, grid=False), scale=alt.Scale(nice=True))  # fmt: skip
    y = alt.Y("commits_acknowledged:Q", title="commits", axis=alt.Axis(tickCount=5, grid=True))
    base = alt.Chart(data)
    line = base.mark_line(color=MUTED, interpolate="step-after", strokeWidth=1.5).encode(x=x, y=y)
    lost = base.transform_filter("datum.commits_lost > 0").mark_rule(
        color=BAD, strokeWidth=2
    ).encode(x=x, y=y, y2="commits_found:Q")  # fmt: skip
    points = base.mark_point(filled=True, size=55, opacity=1).encode(
        x=x,
        y=alt.Y("commits_found:Q"),
        description="tip:N",
        color=alt.Color("kind:N", legend=None,
                        scale=alt.Scale(domain=["good", "bad"], range=[GOOD, BAD])),
        tooltip=[alt.Tooltip("row:Q", title="requests on the disk"),
                 alt.Tooltip("commits_acknowledged:Q", title="acknowledged"),
                 alt.Tooltip("commits_found:Q", title="found"),
                 alt.Tooltip("commits_lost:Q", title="lost"),
                 alt.Tooltip("filesystem:N", title="file system"), alt.Tooltip("database:N")],
    )  # fmt: skip
    total = int(states["commits_lost"].sum())
    title = _title(f"Commits: the line acknowledged, the dots found; {total or 'none'} lost")
    return alt.layer(line, lost, points).properties(width=390, height=HEIGHT, title=title)


def _title(text: str) -> Any:
    return altair().TitleParams(
        text, anchor="start", frame="group", fontSize=12, fontWeight="normal", color=INK, offset=6
    )
