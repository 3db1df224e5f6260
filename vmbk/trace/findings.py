"""What the tables of a trace say about its incremental backups, one finding a topic.

Each function takes tables of `vmbk.trace.metrics` and returns a `Finding`. What is called *large*
or *slow* is decided by the limits here; nothing else enters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from vmbk.trace.metrics.requests import SMALL
from vmbk.trace.wording import instant, listed, share, times, volume_name
from vmbk.units import GIB, MIB, format_duration, format_interval, format_size

if TYPE_CHECKING:
    import polars as pl

LARGE: Final = "large"
SLOW: Final = "slow"
FINE: Final = "fine"
NOTE: Final = "note"
UNKNOWN: Final = "unknown"

DAILY_CHURN: Final = 200 * 10**9
"""Bytes; with more churn a day backups may take over eight hours (Azure Backup documentation)."""

SHORT_EXTENT: Final = MIB
"""Bytes. At the best rate of incrementals, 640 Mbit/s (Azure Backup documentation), a request that
takes 10 ms to begin could have moved 800 kB: below some 1 MiB extents cost more by their number
than by their bytes. The documentation says the same of dispersed changes, without a figure."""

MOST: Final = 0.5
"""A share, such as of writes below 8 KiB, which slow backups down (Azure Backup documentation),
from which on something is true of *most*."""

TWICE: Final = 2.0
"""Times; from here on most of what is read or sent is so in vain."""

PEAK: Final = 4.0
"""Times the mean; a backup that mostly takes a quarter of its interval takes all of it then."""

COARSE: Final = 2 << 20
"""Bytes; change tracking in units of 2 MiB, as virtual disks with large blocks have it."""

SHORTEST_FOR_RATE: Final = 60
"""Minutes, rounded, since the last request comes a little before the recording ends; what a shorter
trace would come to in a day is a guess."""

_DAY: Final = 86400.0
_NAMED: Final = 3  # regions, windows and volumes that a sentence names


@dataclass(frozen=True)
class Finding:
    """One reason, or the lack of it.

    Parameters
    ----------
    topic : str
    verdict : str
        ``large`` or ``slow`` where it makes backups so, ``fine`` where it does not, ``note`` where
        it says when or where, ``unknown`` where the trace cannot tell.
    sentence : str
    figures : dict
        What the sentence rests on, as plain data for JSON: sizes in bytes, times in s, shares from
        0 to 1.
    """

    topic: str
    verdict: str
    sentence: str
    figures: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def change(churn: pl.DataFrame, costs: pl.DataFrame, windows: int, duration_s: float) -> Finding:
    """How much changes between two backups, and in a day.

    Parameters
    ----------
    churn : polars.DataFrame
        As `vmbk.churn`; of all volumes together.
    costs : polars.DataFrame
        As `vmbk.interval_cost`, with an interval of 24 h; empty where the trace has no clock.
    windows : int
        From the trace's first request to its last.
    duration_s : float
        s between them.
    """
    sent, peak = int(churn["unique_bytes"].sum()), int(churn["unique_bytes"].max())  # type: ignore[arg-type]
    figures: dict[str, Any] = {
        "changed_bytes": sent, "windows": windows, "mean_bytes": sent / windows,
        "largest_bytes": peak, "write_bytes": int(churn["write_bytes"].sum()),
    }  # fmt: skip
    text = f"An incremental finds {format_size(sent / windows)} changed"
    if windows > 1:
        text += (
            f" on average and {format_size(peak)} at most, all {windows:,} of them together "
            f"{format_size(sent)}"
        )
    if round(duration_s / 60) < SHORTEST_FOR_RATE or costs.is_empty():
        why = "has no clock" if costs.is_empty() else f"covers only {format_duration(duration_s)}"
        more = f"; the trace {why}, which does not tell what that is in a day."
        return Finding("change", UNKNOWN, text + more, figures)
    day = costs.filter(interval_s=_DAY)["changed_bytes"][0]
    daily = day * _DAY / duration_s
    verdict = LARGE if daily > DAILY_CHURN else FINE
    than = "above" if verdict == LARGE else "below"
    text += (
        f"; {'that is' if duration_s >= _DAY else 'at this pace'} {format_size(daily)} a day, "
        f"{than} the {format_size(DAILY_CHURN)} from which on backups take over eight hours."
    )
    return Finding("change", verdict, text, figures | {"daily_bytes": daily})


def no_change(clears: int) -> Finding:
    """That nothing is written; but there may be so many discards and write_zeroes."""
    text = "Nothing is written: incrementals are empty"
    if clears:
        text += " where a backup does not take discards and write_zeroes for changes"
    return Finding("change", FINE, f"{text}.", {})


def volumes(churn: pl.DataFrame, names: Mapping[int, str]) -> Finding:
    """Which volumes change most.

    Parameters
    ----------
    churn : polars.DataFrame
        As `vmbk.churn`, of each volume.
    names : mapping of int to str
        Of the volumes, by id.
    """
    import polars as pl

    found = (
        churn.group_by("volume").agg(pl.col("unique_bytes").sum())
        .sort("unique_bytes", "volume", descending=[True, False])
        .with_columns((pl.col("unique_bytes") / pl.col("unique_bytes").sum()).alias("share"))
    )  # fmt: skip
    named = [
        f"{volume_name(id, names)} has {share(part)}"
        for id, part in found.head(_NAMED).select("volume", "share").iter_rows()
    ]
    text = f"Of what changes, {listed(named)}."
    rows = [row | {"name": names[row["volume"]]} for row in found.to_dicts()]
    return Finding("volumes", NOTE, text, {"volumes": rows})


def hours(churn: pl.DataFrame, windows: int, interval_s: float) -> Finding:
    """When most changes.

    Parameters
    ----------
    churn : polars.DataFrame
        As `vmbk.churn`; of all volumes together.
    windows : int
        From the trace's first request to its last.
    interval_s : float
        s; of its windows.
    """
    found, half = _heaviest(churn)
    mean = int(churn["unique_bytes"].sum()) / windows
    peak = int(found["unique_bytes"][0])
    verdict = LARGE if peak > PEAK * mean else FINE
    first, *others = (
        (instant(start), format_size(size))
        for start, size in found.head(min(half, _NAMED)).select("start_s", "unique_bytes").rows()
    )
    text = (
        f"Half of what changes falls into {half:,} of {windows:,} intervals. The fullest, at "
        f"{first[0]}, has {first[1]}, {peak / mean:,.1f} times the mean"
    )
    if others:
        text += f"; next {listed([f'at {start} {size}' for start, size in others])}"
    text += "."
    figures = {
        "windows": windows, "half_in": half, "peak_to_mean": peak / mean,
        "interval_s": interval_s,
        "fullest": found.head(_NAMED).select("start_s", "unique_bytes", "share").to_dicts(),
    }  # fmt: skip
    return Finding("hours", verdict, text, figures)


def no_hours(why: str) -> Finding:
    """Why the trace cannot tell when changes happen."""
    return Finding("hours", UNKNOWN, f"It cannot be told when most changes: {why}.", {})


def one_interval(topic: str) -> Finding:
    """That one interval over all of a trace, as it was asked for, has no course."""
    has_no = "course of time" if topic == "hours" else "other to be held against"
    return Finding(topic, NOTE, f"All of the trace is one interval, which has no {has_no}.", {})


def regions(frame: pl.DataFrame, names: Mapping[int, str]) -> Finding:
    """Where most changes.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.regions.regions`.
    names : mapping of int to str
        Of the volumes, by id; of only one, no sentence tells.
    """
    import polars as pl

    found, half = _heaviest(
        frame.group_by("volume", "offset", "length").agg(pl.col("unique_bytes").sum()),
        "volume", "offset",
    )  # fmt: skip
    length = int(found["length"][0])
    top = [
        f"{share(row['share'])} from {format_size(row['offset'])} on"
        + (f" of {volume_name(row['volume'], names)}" if len(names) > 1 else "")
        for row in found.head(min(half, _NAMED)).iter_rows(named=True)
    ]
    text = (
        f"Half of what changes lies in {half:,} of the {len(found):,} regions of "
        f"{format_size(length)} with a change: {listed(top)}."
    )
    figures = {
        "regions": len(found), "half_in": half, "region_bytes": length,
        "fullest": found.head(_NAMED).select("volume", "offset", "unique_bytes", "share")
        .to_dicts(),
    }  # fmt: skip
    return Finding("regions", NOTE, text, figures)


def rewrites(churn: pl.DataFrame) -> Finding:
    """What share of the writes lands on blocks that changed in the same interval, or before it.

    Parameters
    ----------
    churn : polars.DataFrame
        As `vmbk.churn`; of all volumes together.
    """
    sent, first = int(churn["unique_bytes"].sum()), int(churn["new_bytes"].sum())
    block = sent // int(churn["unique_blocks"].sum())
    touched = int(churn["block_writes"].sum()) * block
    again, before = 1 - sent / touched, 1 - first / sent
    text = (
        f"{share(again)} of the block writes go to blocks that changed already since the last "
        f"backup; an incremental sends them once. {share(before)} of what incrementals send had "
        "been sent by an earlier one."
    )
    figures = {
        "touched_bytes": touched, "rewritten_share": again, "changed_bytes": sent,
        "sent_before_share": before, "ever_changed_bytes": first,
    }  # fmt: skip
    return Finding("rewrites", NOTE, text, figures)


def small_writes(profile: pl.DataFrame) -> Finding:
    """What share of the writes is short, or lies across the 4 KiB grid.

    Parameters
    ----------
    profile : polars.DataFrame
        As `vmbk.trace.metrics.requests.profile`; of all volumes together.
    """
    row = profile.row(0, named=True)
    short, crooked = row["small_write_share"], row["unaligned_share"]
    text = (
        f"{share(short, MOST)} of the writes are below {format_size(SMALL)}, the least that is "
        "recommended for backup; "
    )
    if crooked:
        text += (
            f"{share(crooked, MOST)} lie off the 4 KiB grid, so that they change more than they "
            f"write. From {MOST:.0%} of either on, this is slow."
        )
    else:
        text += f"all lie on the 4 KiB grid. From {MOST:.0%} of small ones on, this is slow."
    names = ("writes", "mean_write_bytes", "small_write_share", "unaligned_share")
    verdict = SLOW if max(short, crooked) >= MOST else FINE
    return Finding("small writes", verdict, text, {name: row[name] for name in names})


def granularity(frame: pl.DataFrame, block_size: int) -> Finding:
    """What finding changes in larger blocks costs.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.windows.granularity`; of all volumes together.
    block_size : int
        Bytes; the unit in which changes are found.
    """
    factors = dict(frame.select("block_size", "amplification").iter_rows())
    here, coarse = factors[block_size], factors[COARSE]
    text = (
        f"Found in blocks of {format_size(block_size)}, changes are "
        f"{times(here, TWICE)} times what they are at 4 KiB"
    )
    if block_size != COARSE:
        text += f", in blocks of {format_size(COARSE)} {coarse:,.2f} times"
    text += "; without drill-down all of that is sent."
    figures = {
        "block_size": block_size, "amplification": here, f"amplification_{COARSE}": coarse,
    }  # fmt: skip
    return Finding("granularity", LARGE if here >= TWICE else FINE, text, figures)


def dispersion(frame: pl.DataFrame, block_size: int) -> Finding:
    """How far the changes lie apart.

    Parameters
    ----------
    frame : polars.DataFrame
        As `vmbk.trace.metrics.windows.dispersion`; of all volumes together.
    block_size : int
        Bytes; of its blocks.
    """
    sent, extents = int(frame["unique_bytes"].sum()), int(frame["extents"].sum())
    mean, regions = sent / extents, int(frame["regions"].sum())
    fill = sent / (regions * 4 * MIB)
    text = (
        f"In blocks of {format_size(block_size)}, what changes lies in {extents:,} extents of "
        f"{format_size(mean)} on average, {extents / (sent / GIB):,.0f} a GiB, and takes up "
        f"{share(fill)} of the 4 MiB regions that it touches."
    )
    if mean < SHORT_EXTENT:
        text += f" Below {format_size(SHORT_EXTENT)} the number of extents costs more than bytes."
    figures = {
        "changed_bytes": sent, "extents": extents, "mean_extent_bytes": mean,
        "extents_per_gib": extents / (sent / GIB), "region_fill": fill,
    }  # fmt: skip
    return Finding("dispersion", SLOW if mean < SHORT_EXTENT else FINE, text, figures)


def discards(requests: int, freed: int, without: int, with_them: int) -> Finding:
    """What discards and write_zeroes would add, where they count as changes.

    Parameters
    ----------
    requests, freed : int
        Discards and write_zeroes, and their bytes.
    without, with_them : int
        Bytes that incrementals find changed.
    """
    figures = {"requests": requests, "bytes": freed, "changed_bytes": without,
               "changed_bytes_with_discards": with_them}  # fmt: skip
    if not requests:
        return Finding("discards", FINE, "There are no discards and no write_zeroes.", figures)
    text = (
        f"{requests:,} discards and write_zeroes clear {format_size(freed)}; where a backup takes "
        f"them for changes, it finds {format_size(with_them)} in place of {format_size(without)}."
    )
    large = with_them > TWICE * without
    return Finding("discards", LARGE if large else FINE, text, figures)


def frequency(costs: pl.DataFrame, interval_ns: int) -> Finding:
    """What more frequent backups would send.

    Parameters
    ----------
    costs : polars.DataFrame
        As `vmbk.interval_cost`; of all volumes together, with half and twice the interval.
    interval_ns : int
        ns between two backups.
    """
    found = {row["interval_s"]: row for row in costs.iter_rows(named=True)}
    _, half, one, double, _ = (ns / 1e9 for ns in around(interval_ns))
    text = (
        f"Incrementals every {format_interval(one)} send "
        f"{format_size(found[one]['changed_bytes'])} together, "
        f"{times(found[one]['cost'], TWICE)} times what one at the end would; "
    )
    if half < one:  # of an interval of 1 ns there is no half
        text += f"twice as often {found[half]['cost']:.2f} times, "
    text += f"half as often {found[double]['cost']:.2f} times."
    figures = {
        "unique_bytes": found[one]["unique_bytes"],
        "cost": [{"interval_s": s, "cost": row["cost"]} for s, row in sorted(found.items())],
    }
    return Finding("frequency", LARGE if found[one]["cost"] >= TWICE else FINE, text, figures)


def around(interval_ns: int) -> list[int]:
    """A quarter and a half of an interval, itself, twice and four times it, in ns."""
    return [min(max(interval_ns * k // 4, 1), (1 << 63) - 1) for k in (1, 2, 4, 8, 16)]


def no_frequency(why: str) -> Finding:
    """Why the trace cannot tell what more frequent backups cost."""
    return Finding(
        "frequency", UNKNOWN, f"It cannot be told what more frequent backups would send: {why}.", {}
    )


def _heaviest(frame: pl.DataFrame, *by: str) -> tuple[pl.DataFrame, int]:
    """Rows with the most bytes first and their share, and how few hold half."""
    import polars as pl

    keys = by or ("window",)
    found = frame.sort(
        "unique_bytes", *keys, descending=[True, *(False for _ in keys)]
    ).with_columns((pl.col("unique_bytes") / pl.col("unique_bytes").sum()).alias("share"))
    held = found["unique_bytes"].cum_sum() * 2
    return found, int((held < int(found["unique_bytes"].sum())).sum()) + 1
