"""One sentence for each chart, computed from the same data: what a reader should see in it.

Named like the charts, and raising what they raise where there is nothing to draw. Nothing here
needs Altair.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from vmbk.charts.crashes import consistent
from vmbk.charts.tables import (
    cumulative_sent,
    drill_down_label,
    drilled,
    incremental,
    ordered,
    run_length_counts,
    stage_means,
)
from vmbk.units import format_duration, format_size


def times(more: float, less: float) -> str:
    """How many times as much: ``5.6 times``; empty where it is not at least 1.05."""
    if less <= 0 or more / less < 1.05:
        return ""
    ratio = more / less
    return f"{ratio:,.0f} times" if ratio >= 9.95 else f"{ratio:.1f} times"


def count(number: int, noun: str) -> str:
    """``1 backup``, ``1,200 backups``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def pair(names: Sequence[str]) -> tuple[str, str] | None:
    """The two detectors that a sentence compares, tracking with checksum where both ran."""
    for cheap, dear in (("tracking", "checksum"), ("auto", "checksum"), ("checksum", "full")):
        if cheap in names and dear in names:
            return cheap, dear
    return (names[-1], names[0]) if len(names) > 1 else None


def _totals(rows: pl.DataFrame, column: str) -> dict[str, float]:
    sums = rows.group_by("detector").agg(pl.col(column).sum())
    return {str(name): float(value) for name, value in sums.iter_rows()}


def bytes_read(rows: pl.DataFrame) -> str:
    """What the cheap detector read, against the dear one."""
    found = drilled(incremental(rows))
    read, names = _totals(found, "scanned_bytes"), ordered(found["detector"])
    two = pair(names)
    if two is None:
        return f"{names[0]} read {format_size(read[names[0]])} in {count(len(found), 'backup')}."
    cheap, dear = two
    backups = count(len(found.filter(pl.col("detector") == cheap)), "incremental backup")
    factor = times(read[dear], read[cheap])
    return (
        f"Over {backups} {cheap} read {format_size(read[cheap])} where {dear} read "
        f"{format_size(read[dear])}{f', {factor} as much' if factor else ''}."
    )


def bytes_sent(rows: pl.DataFrame) -> str:
    """What drill-down saved."""
    found = incremental(rows)
    names = ordered(found["detector"])
    name = next((n for n in ("checksum", "tracking", "auto", "compare") if n in names), names[0])
    mine = found.filter(pl.col("detector") == name)
    sums = mine.group_by("sub_block_size").agg(pl.col("sent_bytes").sum())
    sent = {int(sub): float(value) for sub, value in sums.iter_rows()}
    fine = min((sub for sub in sent if sub), default=0)
    if 0 in sent and fine and name != "full":
        factor = times(sent[0], sent[fine])
        saved = f", {factor} as much" if factor else ""
        text = (
            f"With {drill_down_label(fine)} {name} sent {format_size(sent[fine])}, "
            f"without it {format_size(sent[0])}{saved}"
        )
    else:
        reported = float(mine["reported_bytes"].sum())
        text = f"{name} reported {format_size(reported)} and sent {format_size(sum(sent.values()))}"
    if "full" in names and name != "full":
        text += f"; full sent {format_size(_totals(drilled(found), 'sent_bytes')['full'])}"
    return text + "."


def reported_against_compare(rows: pl.DataFrame) -> str:
    """What tracking reported although no byte differs."""
    found = drilled(incremental(rows)).with_columns(
        (pl.col("reported_bytes") - pl.col("oracle_block_bytes")).clip(0).alias("beyond")
    )
    parts, present = [], ordered(found["detector"])
    # Nobody wonders about the others, unless nothing else ran.
    for name in [n for n in present if n in ("checksum", "tracking", "auto")] or present:
        mine = found.filter(pl.col("detector") == name)
        beyond, reported = float(mine["beyond"].sum()), float(mine["reported_bytes"].sum())
        parts.append(
            f"{name} reported {format_size(beyond)} of blocks in which no byte differs, "
            f"{beyond / reported:.0%} of what it reported"
            if beyond
            else f"{name} reported no block in which no byte differs"
        )
    return "; ".join(parts) + "."


def stage_times(rows: pl.DataFrame) -> str:
    """What a backup took, and which stage took most of it."""
    found = stage_means(rows)
    means = found.group_by("detector", "stage").agg(
        (pl.col("seconds") * pl.col("backups")).sum() / pl.col("backups").sum()
    )
    total = _totals(means, "seconds")
    names = ordered(found["detector"])
    cheap, dear = pair(names) or (names[0], names[0])
    longest = means.filter(pl.col("detector") == dear).sort("seconds", "stage").row(-1, named=True)
    share = longest["seconds"] / total[dear] if total[dear] else 0.0
    first = f"A backup took {format_duration(total[cheap])} with {cheap}"
    second = f" and {format_duration(total[dear])} with {dear}" if dear != cheap else ""
    return f"{first}{second}; the longest stage of {dear} was {longest['stage']} ({share:.0%})."


def run_lengths(rows: pl.DataFrame) -> str:
    """The commonest length of a changed run, at the finest drill-down."""
    found = run_length_counts(rows).filter(pl.col("count") > 0)
    some = found.filter(pl.col("sub_block_size") > 0)
    finest = (found if some.is_empty() else some)["sub_block_size"].min()
    mine = found.filter(pl.col("sub_block_size") == finest)
    total = int(mine["count"].sum())
    common = mine.group_by("class").agg(pl.col("count").sum()).sort("count", "class").row(-1)
    low, number = int(common[0]), int(common[1])
    return (
        f"Of {count(total, 'run')} that {mine['detector'][0]} found with "
        f"{mine['drill_down'][0]}, {number / total:.0%} are from {format_size(low)} to under "
        f"{format_size(2 * low)} long."
    ).replace("with drill-down off", "without drill-down")


def sent_over_time(rows: pl.DataFrame) -> str:
    """How far differential had drifted from incremental by the last backup."""
    last = cumulative_sent(rows).group_by("panel", "series", maintain_order=True).last()
    worst: tuple[float, str] = (-1.0, "")
    for (panel,), curves in last.group_by("panel", maintain_order=True):
        others = curves.filter(pl.col("detector") != "differential").sort("sent")
        mine = curves.filter(pl.col("detector") == "differential")
        first, second = (others, None) if mine.is_empty() else (mine, others)
        more = float(first["sent"][0])
        text = f"By the last backup of {panel} {first['detector'][0]} had sent {format_size(more)}"
        factor = 0.0
        if second is not None and not second.is_empty():
            less = float(second["sent"][0])
            factor = more / max(less, 1.0)
            text += f" where {second['detector'][0]} had sent {format_size(less)}"
            text += f", {times(more, less)} as much" if times(more, less) else ""
        worst = max(worst, (factor, f"{text}."))
    return worst[1]


def outcomes(frame: pl.DataFrame) -> str:
    """How many crash states come up by themselves, and what was lost."""
    good = int(frame.select(consistent().sum()).item())
    lost = int(frame["commits_lost"].sum())
    where = len(frame.filter(pl.col("commits_lost") > 0))
    which = "All" if good == len(frame) else f"{good} of"
    loss = (
        f"{count(lost, 'acknowledged commit')} lost in {count(where, 'state')}"
        if lost
        else "no acknowledged commit is lost"
    )
    return f"{which} {count(len(frame), 'crash state')} come up by themselves; {loss}."
