"""Charts of the decision table, and of a run of VSS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from vmbk.charts.style import BAD, INK, LINE, MUTED, altair, finish, tip
from vmbk.charts.tables import short_names, table
from vmbk.errors import InputError
from vmbk.units import quoted

if TYPE_CHECKING:
    import altair as alt

    from vmbk.consistency.vss import VssRun

# Lightness falls from bad to good, so that the grid reads in black and white as well.
CELLS: Final = {
    "application": ("application", "#08519c", "#ffffff"),
    "filesystem": ("file system", "#6baed6", INK),
    "crash": ("crash", "#fdd0a2", INK),
    "retry": ("retried", "#ffffff", INK),
    "fail": ("job fails", "#525252", "#ffffff"),
    "depends": ("depends", "#f0f0f0", INK),
}
"""Of each outcome its word, the colour of its cell, and that of the word on it."""

WORDS: Final = {
    "windows": "Windows",
    "linux": "Linux",
    "ready": "agent ready",
    "missing": "agent missing",
    "any": "",
    "writers_ok": "all VSS writers succeeded",
    "writers_failed": "some VSS writers failed",
    "vss_failed": "VSS failed",
    "scripts_ok": "both scripts succeeded",
    "no_scripts": "no scripts",
    "pre_failed": "pre-script failed",
    "post_failed": "post-script failed",
    "freeze_failed": "freeze failed",
    "scripts_stop": "a script failed, and stops the job",
    "table": "stopped: crash (table)",
    "writes": "stopped: no writes (step 4)",
    "note": "stopped: by provisioning (note)",
}
"""What a value is called over a panel or at an axis, where its own name is not enough."""

CELL: Final = (78, 22)
"""Pixels of a cell."""

MOST_CELLS: Final = 600
"""Cells of all panels together that can be read."""

PHASE_COLOURS: Final = {
    "identify": "#d9d9d9",
    "prepare backup": "#bdbdbd",
    "prepare snapshot": "#9ecae1",
    "freeze": "#4292c6",
    "frozen": "#08306b",
    "hold writes": "#e69f00",
    "thaw": "#66c2a4",
    "post snapshot": "#a6d96a",
    "backup": "#f0f0f0",
    "backup complete": "#969696",
}
"""Of a run of VSS, in order."""

ROW: Final = 30
"""Pixels of a writer's row."""

MOST_WRITERS: Final = 30


def decision_grid(
    frame: pl.DataFrame,
    *,
    x: str | Sequence[str] = ("power", "agent"),
    y: str | Sequence[str] = "provisioning",
    panel: str | Sequence[str] = ("os", "step"),
) -> alt.FacetChart:
    """What becomes of a backup: the label, or retried, or failed, by what is so of the machine.

    Parameters
    ----------
    frame : polars.DataFrame
        Rows of `vmbk.consistency.decision_table`, filtered: what is neither ``x``, ``y`` nor
        ``panel`` should be the same in all rows, or a cell may say "depends".
    x, y, panel : str or sequence of str
        Columns whose values, together, make the columns, the rows and the panels of the grid. The
        agent of a stopped machine is left out where it makes no difference.

    Returns
    -------
    altair.FacetChart
        One panel for each value of ``panel``, two in a row.

    Raises
    ------
    InputError
        If there are no rows, a column is missing, or the cells are too many to read.
    VmbkError
        If Altair is not installed.
    """
    frame = table(frame)
    axes = {"x": _columns(x), "y": _columns(y), "panel": _columns(panel)}
    needed = [*dict.fromkeys([c for columns in axes.values() for c in columns]), "outcome"]
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise InputError(
            f"this is no decision table: it lacks {', '.join(missing)}",
            hint="pass rows of vmbk.consistency.decision_table",
        )
    if frame.is_empty():
        raise InputError("nothing to draw: no combination is left", hint="filter less")
    cells = _cells(frame, axes)
    if len(cells) > MOST_CELLS:
        raise InputError(
            f"a grid of {len(cells):,} cells cannot be read; the most is {MOST_CELLS}",
            hint="filter the table, or name fewer columns",
        )
    alt = altair()
    order = {name: cells[name].unique(maintain_order=True).to_list() for name in axes}
    base = alt.Chart(cells).encode(
        x=alt.X("x:N", sort=order["x"], title=None, axis=alt.Axis(
            labelAngle=0, ticks=False, domain=False, labelPadding=4,
            labelExpr="split(datum.label, ', ')")),
        y=alt.Y("y:N", sort=order["y"], title=None,
                axis=alt.Axis(ticks=False, domain=False, labelPadding=6)),
    )  # fmt: skip
    shown = [name for name in CELLS if name in set(cells["outcome"])]
    fill = alt.Scale(domain=shown, range=[CELLS[name][1] for name in shown])
    ink = alt.Scale(domain=shown, range=[CELLS[name][2] for name in shown])
    rects = base.mark_rect(stroke=LINE, strokeWidth=1).encode(
        color=alt.Color("outcome:N", scale=fill, legend=None), **tip()
    )
    words = base.mark_text(fontSize=11).encode(
        text="word:N", color=alt.Color("outcome:N", scale=ink, legend=None)
    )
    width, height = CELL[0] * len(order["x"]), CELL[1] * len(order["y"])
    chart = (
        alt.layer(rects, words)
        .resolve_scale(color="independent")
        .properties(width=width, height=height)
    )
    header = alt.Header(
        labelAnchor="start", labelFontSize=12, labelFontWeight="bold", labelColor=INK,
        labelLimit=width + 60, labelPadding=4,
    )  # fmt: skip
    many = chart.facet(
        facet=alt.Facet("panel:N", sort=order["panel"], title=None, header=header),
        columns=2 if width <= 4 * CELL[0] else 1,
        spacing={"row": 18, "column": 24},
    ).resolve_axis(x="independent")
    return finish(many, "What becomes of a backup", _subtitle(frame))


def _cells(frame: pl.DataFrame, axes: dict[str, list[str]]) -> pl.DataFrame:
    """One row a cell: what stands at both axes, in which panel, and what comes out."""
    keys = list(dict.fromkeys(c for columns in axes.values() for c in columns))
    found = _without_idle_agents(frame, keys).group_by(keys).agg(
        pl.col("outcome").unique().sort().alias("outcomes"),
        pl.col("reason").unique().sort().alias("reasons") if "reason" in frame.columns
        else pl.lit([""]).alias("reasons"),
    ).sort(*(c for columns in (axes["panel"], axes["y"], axes["x"]) for c in columns))  # fmt: skip
    rows = []
    for row in found.iter_rows(named=True):
        outcome = row["outcomes"][0] if len(row["outcomes"]) == 1 else "depends"
        names = {
            axis: ", ".join(filter(None, (_word(row, c) for c in columns)))
            for axis, columns in axes.items()
        }
        outcomes = " or ".join(CELLS[each][0] for each in row["outcomes"])
        why = row["reasons"][0] if len(row["reasons"]) == 1 else f"{len(row['reasons'])} rules"
        told = f"{names['panel']}; {names['y']}; {names['x']}: {outcomes} ({why})"
        rows.append({**names, "outcome": outcome, "word": CELLS[outcome][0], "tip": told})
    return pl.DataFrame(rows)


def _without_idle_agents(frame: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """A stopped machine's agent is not asked: one column instead of three, where all are alike."""
    if not {"power", "agent"} <= set(keys):
        return frame.with_columns(pl.col(k).cast(pl.String) for k in keys if k == "agent")
    others = [key for key in keys if key != "agent"]
    stopped = frame.filter(pl.col("power").cast(pl.String) == "stopped")
    by_agent = stopped.group_by(*others, "agent").agg(pl.col("outcome").unique().sort())
    alike = by_agent.group_by(others).agg(pl.col("outcome").n_unique().alias("n"))
    if (alike["n"] > 1).any():
        return frame
    any_agent = (
        pl.when(pl.col("power").cast(pl.String) == "stopped")
        .then(pl.lit("any"))
        .otherwise(pl.col("agent").cast(pl.String))
    )
    kinds = frame["agent"].dtype
    values = (
        kinds.categories.to_list() if isinstance(kinds, pl.Enum) else sorted(set(frame["agent"]))
    )
    return frame.with_columns(any_agent.cast(pl.Enum([*values, "any"])).alias("agent"))


def _columns(names: str | Sequence[str]) -> list[str]:
    columns = [names] if isinstance(names, str) else list(names)
    if not columns or not all(isinstance(name, str) for name in columns):
        raise InputError(f"{quoted(names)} names no columns")
    return columns


def _word(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if column in ("attempt", "policy", "profile", "wish"):
        return f"{column} {value}"
    if column == "disks":
        return "one disk" if value == 1 else "several disks"
    return WORDS.get(str(value), str(value).replace("_", " "))


def _subtitle(frame: pl.DataFrame) -> str:
    """What is the same in all rows."""
    named = ("profile", "policy", "wish", "attempt", "storage")
    fixed = [f"{name} {str(frame[name][0]).replace('_', ' ')}" for name in named
             if name in frame.columns and frame[name].n_unique() == 1]  # fmt: skip
    return " · ".join(fixed) or "Every combination of the rows given"


def vss_timeline(run: VssRun) -> alt.LayerChart:
    """The phases of one run of VSS by writer, and when the volumes held their writes.

    Parameters
    ----------
    run : VssRun
        As `vmbk.consistency.run_vss` returns it.

    Returns
    -------
    altair.LayerChart
        Seconds to the right, a row for each writer; a cross where one failed.

    Raises
    ------
    InputError
        If it is no run, or has too many writers to read.
    VmbkError
        If Altair is not installed.
    """
    from vmbk.consistency.vss import VssRun

    if not isinstance(run, VssRun):
        raise InputError(f"{quoted(run)} is no run of VSS", hint="pass what run_vss returned")
    writers = pl.Series([w.name for w in run.writers])
    if len(writers) > MOST_WRITERS:
        raise InputError(f"a chart of {len(writers)} writers; the most is {MOST_WRITERS}")
    names = short_names(writers) | {"volumes": "volumes", "requestor": "requestor"}
    data = run.events.filter(pl.col("phase") != "abort").select(
        pl.col("actor").replace(names),
        "phase",
        "outcome",
        (pl.col("start_ns") / 1e9).alias("start"),
        (pl.col("end_ns") / 1e9).alias("end"),
        pl.format(
            "{}: {} from {} s to {} s, {}{}", "actor", "phase",
            (pl.col("start_ns") / 1e9).round(3), (pl.col("end_ns") / 1e9).round(3), "outcome",
            pl.when(pl.col("detail") != "").then(": " + pl.col("detail")).otherwise(pl.lit("")),
        ).alias("tip"),
    )  # fmt: skip
    alt = altair()
    shown = [phase for phase in PHASE_COLOURS if phase in set(data["phase"])]
    order = [*(names[w] for w in writers), "volumes", "requestor"]
    rows = [name for name in order if name in set(data["actor"])]
    base = alt.Chart(data).encode(
        y=alt.Y("actor:N", sort=rows, title=None,
                axis=alt.Axis(ticks=False, domain=False, labelPadding=8, labelFontSize=12,
                              labelColor=INK)),
    )  # fmt: skip
    seconds = alt.X("start:Q", title="seconds", axis=alt.Axis(tickCount=8, grid=True))
    bars = base.mark_bar(height=14, stroke=MUTED, strokeWidth=0.5).encode(
        x=seconds,
        x2="end:Q",
        color=alt.Color("phase:N", sort=shown, scale=alt.Scale(
            domain=shown, range=[PHASE_COLOURS[p] for p in shown]),
            legend=alt.Legend(columns=5)),
        **tip(),
    )  # fmt: skip
    crosses = base.transform_filter("datum.outcome != 'ok'").mark_point(
        shape="cross", angle=45, size=130, filled=True, color=BAD, opacity=1, stroke="#ffffff"
    ).encode(x=alt.X("end:Q"), **tip())  # fmt: skip
    chart = alt.layer(bars, crosses).properties(width=620, height=ROW * len(rows))
    held = run.write_hold_ns / 1e9
    what = {None: "no shadow copy", "filesystem": "file-system consistent"}
    label = what.get(run.label, f"{run.label} consistent")
    failed = f"; failed: {', '.join(names[w] for w in run.failed_writers)}"
    return finish(
        chart,
        f"A VSS {run.backup_type} backup: {label}",
        f"Writes held for {held:g} s{failed if run.failed_writers else ''}",
    )
