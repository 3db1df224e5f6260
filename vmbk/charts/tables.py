"""What the charts draw: the results of a study, aggregated in Polars before anything is drawn.

Only incremental backups count, since the first backup of a cell is full whatever the detector. A
*panel* is one small chart of a figure: a data set at one interval, and at one block size where the
study has several.
"""

from __future__ import annotations

import re
from typing import Final

import polars as pl

from vmbk.errors import InputError
from vmbk.study.results import DETECTOR_ORDER, RUN_LENGTH_CLASSES
from vmbk.units import format_duration, format_size, quoted

_NOT_XML: Final = re.compile("[^\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
STAGES: Final = ("prepare", "snapshot", "detect", "transfer", "commit")
KEYS: Final = ("dataset", "interval", "block_size", "sub_block_size", "detector", "backup")
"""Columns of a study's results that every chart of them needs."""
LONGEST_NAME: Final = 32
"""Characters of a data set's name that fit over a panel."""


def table(frame: object, part: str | None = None) -> pl.DataFrame:
    """What a chart was given, if it is a table.

    Parameters
    ----------
    frame : object
    part : str, optional
        The attribute under which results that hold several tables have the one for this chart.

    Raises
    ------
    InputError
        If it is not.
    """
    if not isinstance(frame, pl.DataFrame):
        if part is not None and part in dir(frame):
            raise InputError(
                f"a chart needs a table, not a whole {type(frame).__name__}",
                hint=f"pass its .{part}",
            )
        raise InputError(
            f"a chart needs a table, not {quoted(frame)}",
            hint="pass the polars.DataFrame that the chart's documentation names",
        )
    return frame


def incremental(
    rows: pl.DataFrame, *columns: str, hint: str = "pass the rows of a study"
) -> pl.DataFrame:
    """The incremental backups of a study.

    Parameters
    ----------
    rows : polars.DataFrame
        Results.
    *columns : str
        What a chart needs of them beside `KEYS`.
    hint : str
        What to do where they are missing.

    Raises
    ------
    InputError
        If there are none, a column is missing, or this is no table.
    """
    rows = table(rows, "rows")
    needed = (*KEYS, *columns)
    missing = [name for name in needed if name not in rows.columns]
    if missing:
        lacks = "all of them" if len(missing) == len(needed) else ", ".join(missing)
        raise InputError(
            f"the chart needs the columns {', '.join(needed)} of a study's results; this table "
            f"lacks {lacks}",
            hint=hint,
        )
    found = rows.filter(pl.col("backup") > 0)
    if found.is_empty():
        raise InputError(
            f"nothing to draw: none of these {len(rows)} backups is incremental",
            hint="a study needs at least two backups a cell",
        )
    return found


def drilled(rows: pl.DataFrame) -> pl.DataFrame:
    """The backups with drill-down; all of them where the study has none."""
    found = rows.filter(pl.col("sub_block_size") > 0)
    return rows if found.is_empty() else found


def ordered(names: pl.Series) -> list[str]:
    """The detectors that occur, in the order in which every chart and table shows them."""
    present = set(names.to_list())
    known = [name for name in DETECTOR_ORDER if name in present]
    return known + sorted(present - set(known))


def drill_down_label(sub_block_size: int) -> str:
    """How a chart names a size of sub-blocks."""
    return f"drill-down to {format_size(sub_block_size)}" if sub_block_size else "drill-down off"


def short_names(names: pl.Series, longest: int = LONGEST_NAME) -> dict[str, str]:
    """Names short enough for a chart, by name: of a long one the end, where files differ.

    Characters that XML has no place for are replaced: the renderer does not survive them.
    """
    short: dict[str, str] = {}
    for name in names.unique(maintain_order=True):
        text = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", name)
        text = text if len(text) <= longest else "…" + text[1 - longest :]
        label, number = text, 1
        while label in short.values():
            number += 1
            label = f"{text} ({number})"
        short[name] = label
    return short


def with_panels(rows: pl.DataFrame, *, apart: bool | None = None) -> pl.DataFrame:
    """Add a column ``panel``, and sort by it as the panels are to stand.

    Where the data sets come in pairs they stand side by side; otherwise a data set's own panels do.

    Parameters
    ----------
    rows : polars.DataFrame
        Results.
    apart : bool, optional
        Whether each size of sub-blocks has a panel of its own; by default, where there are several.

    Returns
    -------
    polars.DataFrame
        With ``panel``, in the order of the panels and then of ``backup``.
    """
    several_blocks = rows["block_size"].n_unique() > 1
    if apart is None:
        apart = rows["sub_block_size"].n_unique() > 1
    keys = ["dataset", "interval", "block_size", *["sub_block_size"][: int(apart)]]
    names = short_names(rows["dataset"])
    labels, ranks = [], []
    distinct = rows.select(keys).unique(maintain_order=True)
    intervals, datasets = _places(distinct["interval"]), _places(distinct["dataset"])
    pairs = len(datasets) % 2 == 0
    for dataset, interval, block, *sub in distinct.iter_rows():
        # The longest labels do without the words that the others explain.
        share = " of requests" if interval.endswith("%") and not apart else ""
        parts = [names[dataset], f"every {interval}{share}"]
        if several_blocks:
            parts.append(f"{format_size(block)} blocks")
        parts += [drill_down_label(size) for size in sub]
        labels.append(" · ".join(parts))
        setting, place = (intervals[interval], block, *sub), datasets[dataset]
        ranks.append((*setting, place) if pairs else (place, *setting))
    position = {rank: i for i, rank in enumerate(sorted(ranks))}
    panels = distinct.with_columns(
        pl.Series("panel", labels), pl.Series("_panel", [position[rank] for rank in ranks])
    )
    return rows.join(panels, on=keys, how="left").sort("_panel", "backup", maintain_order=True)


def _places(values: pl.Series) -> dict[str, int]:
    return {value: i for i, value in enumerate(values.unique(maintain_order=True))}


def means(rows: pl.DataFrame, columns: list[str], by: list[str]) -> pl.DataFrame:
    """Means of columns over the backups of each group, with their number as ``backups``."""
    return rows.group_by(by, maintain_order=True).agg(
        pl.len().alias("backups"), *[pl.col(name).mean() for name in columns]
    )


def sizes(column: str) -> pl.Expr:
    """A column of bytes as texts for people."""
    return pl.col(column).map_elements(format_size, return_dtype=pl.String)


def durations(column: str) -> pl.Expr:
    """A column of seconds as texts for people."""
    return pl.col(column).map_elements(format_duration, return_dtype=pl.String)


def stage_means(rows: pl.DataFrame) -> pl.DataFrame:
    """Mean time of each stage, one row a panel, detector and stage.

    Returns
    -------
    polars.DataFrame
        ``panel``, ``detector``, ``backups``, ``stage``, ``rank`` (of the stage), ``seconds`` and
        ``total`` (of all stages).
    """
    names = [f"{stage}_seconds" for stage in STAGES]
    found = means(with_panels(drilled(incremental(rows, *names))), names, ["panel", "detector"])
    return (
        found.with_columns(pl.sum_horizontal(names).alias("total"))
        .unpivot(
            on=names, index=["panel", "detector", "backups", "total"],
            variable_name="stage", value_name="seconds",
        )
        .with_columns(pl.col("stage").str.strip_suffix("_seconds"))
        .with_columns(pl.col("stage").replace_strict({s: i for i, s in enumerate(STAGES)},
                                                     return_dtype=pl.Int64).alias("rank"))
    )  # fmt: skip


def run_length_counts(rows: pl.DataFrame, detector: str | None = None) -> pl.DataFrame:
    """Changed runs by class of length, one row a panel, size of sub-blocks and class.

    Parameters
    ----------
    rows : polars.DataFrame
        Results.
    detector : str, optional
        Whose; by default the byte oracle's, ``compare``, or that of the detector nearest to it.

    Returns
    -------
    polars.DataFrame
        ``panel``, ``detector``, ``sub_block_size``, ``drill_down`` (its name), ``class`` (lower
        edge, bytes), ``count``, ``share`` of the runs and ``label``; the classes from the shortest
        to the longest run of all.

    Raises
    ------
    InputError
        If the detector is not in the results, or found no changed run.
    """
    found = incremental(
        rows, "run_lengths",
        hint="pass the rows of a study; a table of vmbk.run_lengths is for charts.changed_runs",
    )  # fmt: skip
    present = ordered(found["detector"])
    if detector is None:
        likeliest = ("compare", "checksum", "tracking", "auto", "differential")
        detector = next((d for d in likeliest if d in present), present[0])
    if detector not in present:
        raise InputError(
            f"the results hold nothing of {detector!r}", hint=f"they hold {', '.join(present)}"
        )
    keys = ["panel", "_panel", "sub_block_size"]
    counts = (
        with_panels(found.filter(pl.col("detector") == detector), apart=False)
        .with_row_index("_row")
        .explode("run_lengths")
        .with_columns(pl.int_range(pl.len()).over("_row").alias("_class"))
        .group_by(*keys, "_class")
        .agg(pl.col("run_lengths").sum().alias("count"))
        .with_columns(
            pl.col("_class").replace_strict(dict(enumerate(RUN_LENGTH_CLASSES))).alias("class")
        )
        .sort("_panel", "sub_block_size", "class")
    )
    some = counts.filter(pl.col("count") > 0)["class"]
    if some.is_empty():
        raise InputError(f"{detector} found no changed run")
    return counts.filter(pl.col("class").is_between(some.min(), some.max())).select(
        "panel",
        pl.lit(detector).alias("detector"),
        "sub_block_size",
        pl.col("sub_block_size")
        .map_elements(drill_down_label, return_dtype=pl.String)
        .alias("drill_down"),
        "class",
        "count",
        (pl.col("count") / pl.col("count").sum().over(keys)).fill_nan(0).alias("share"),
        sizes("class").alias("label"),
    )


def cumulative_sent(rows: pl.DataFrame) -> pl.DataFrame:
    """Bytes sent since the first backup, one row a panel, detector and backup; without ``full``.

    Detectors whose curve is the same share one row, their names joined in ``series``.

    Returns
    -------
    polars.DataFrame
        ``panel``, ``detector`` (the first of the series), ``series``, ``backup`` and ``sent``.

    Raises
    ------
    InputError
        If there is no detector but ``full``.
    """
    found = incremental(
        rows, "sent_bytes",
        hint="pass the rows of a study; a table of vmbk.churn is for charts.sent_so_far",
    ).filter(pl.col("detector") != "full")  # fmt: skip
    if found.is_empty():
        raise InputError("nothing to draw: full sends the same, whatever was sent before")
    found = with_panels(drilled(found))
    order = {name: i for i, name in enumerate(ordered(found["detector"]))}
    curves = (
        found.with_columns(pl.col("detector").replace_strict(order).alias("_rank"))
        .sort("_panel", "_rank", "backup")
        .with_columns(pl.col("sent_bytes").cum_sum().over("panel", "detector").alias("sent"))
        .group_by("panel", "detector", maintain_order=True)
        .agg("backup", "sent")
        .with_columns(pl.col("sent").cast(pl.List(pl.String)).list.join(" ").alias("_curve"))
        .group_by("panel", "_curve", maintain_order=True)
        .agg(
            pl.col("detector").first(),
            pl.col("detector").str.join(", ").alias("series"),
            pl.col("backup", "sent").first(),
        )
    )
    # Every curve begins at nothing: the first, full backup is the same for all and is left out.
    return curves.with_columns(
        pl.concat_list(pl.lit([0], pl.List(pl.Int64)), "backup").alias("backup"),
        pl.concat_list(pl.lit([0], pl.List(pl.Int64)), "sent").alias("sent"),
    ).select("panel", "detector", "series", "backup", "sent").explode("backup", "sent")  # fmt: skip


def panel_names(frame: pl.DataFrame) -> list[str]:
    """The panels, in the order in which they stand."""
    return frame["panel"].unique(maintain_order=True).to_list()


def grain_label(frame: pl.DataFrame) -> str:
    """How a subtitle names the drill-down of these backups."""
    found = sorted(frame["sub_block_size"].unique())
    return drill_down_label(found[0]) if len(found) == 1 else "with drill-down"
