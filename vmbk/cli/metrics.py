"""Commands that measure a trace: churn, fragmentation, and why a backup of it would be slow."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any, Final

from vmbk.cli.reply import Reply, grid, lines
from vmbk.units import format_duration, format_interval, format_size, quoted

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace import Trace

MOST_ROWS: Final = 48
"""Windows that are printed for people; JSON holds all of them."""

NO_CLOCK: Final = "The trace has no clock: all of it is one window."

_WINDOW_KEYS: Final = ("start_s", "writes", "write_bytes", "unique_bytes", "new_bytes",
                       "rewrite_ratio", "extents")  # fmt: skip


def churn(args: argparse.Namespace) -> Reply:
    """Churn per window, of all volumes together and of each."""
    import polars as pl

    from vmbk.trace import open_trace
    from vmbk.trace.metrics.windows import churn

    trace = open_trace(args.trace)
    window = _window(trace, args.window)
    frame = churn(trace, window, args.block_size, discards=args.discards)
    together = frame.filter(pl.col("volume").is_null())
    reply: dict[str, Any] = {
        "window_s": _window_s(window),
        "block_size": args.block_size,
        "windows": _windows(together, _WINDOW_KEYS),
        "total": _total(together, args.block_size),
    }
    if len(trace.volumes) > 1:
        several = frame.filter(pl.col("volume").is_not_null()).sort("volume", "window")
        reply["volume_windows"] = _windows(several, ("volume", *_WINDOW_KEYS))
        reply["volumes"] = [
            {"volume": v.id, "name": v.name}
            | _total(frame.filter(pl.col("volume") == v.id), args.block_size)
            for v in trace.volumes
        ]
    no_clock = "" if trace.metadata.clock != "none" else f"\n\n{NO_CLOCK}"
    reply["_text"] = _churn_text(reply) + no_clock
    return reply


def fragmentation(args: argparse.Namespace) -> Reply:
    """How what changed is spread."""
    from vmbk.trace import open_trace
    from vmbk.trace.metrics.fragmentation import fragmentation

    trace = open_trace(args.trace)
    found = fragmentation(
        trace, args.block_size, _window(trace, args.window), gap=args.gap, discards=args.discards
    ).to_dict()
    names = {v.id: v.name for v in trace.volumes}
    for volume in found.get("volumes", []):
        volume["name"] = names[volume["volume"]]
    return {**found, "_text": _fragmentation_text(found)}


def explain(args: argparse.Namespace) -> Reply:
    """Why this workload's incrementals would be large or slow."""
    from vmbk.trace import open_trace
    from vmbk.trace.explain import explain

    found = explain(open_trace(args.trace), args.interval, args.block_size)
    return {**found.to_dict(), "_text": str(found)}


def _window(trace: Trace, window: str) -> str:
    """The window that was asked for; all of a trace whose times tell nothing."""
    from vmbk.trace.metrics.windows import WHOLE

    return window if trace.metadata.clock != "none" else WHOLE


def _window_s(window: str) -> float | None:
    from vmbk.trace.metrics.windows import WHOLE
    from vmbk.units import parse_duration

    return None if window == WHOLE else parse_duration(window) / 1e9


def _windows(frame: pl.DataFrame, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = frame.select(keys).to_dicts()
    for row in rows:  # JSON has no number for 0 / 0: a window of writes without bytes
        if math.isnan(row["rewrite_ratio"]):
            row["rewrite_ratio"] = None
    return rows


def _total(frame: pl.DataFrame, block_size: int) -> dict[str, Any]:
    """The same over the whole trace, and what its incrementals would send together."""
    sums = frame.select("writes", "write_bytes", "block_writes", "unique_bytes", "new_bytes").sum()
    total = sums.to_dicts()[0]
    in_windows, unique = total["unique_bytes"], total["new_bytes"]
    return {
        "writes": total["writes"],
        "write_bytes": total["write_bytes"],
        "unique_bytes": unique,
        "rewrite_ratio": total["block_writes"] * block_size / unique if unique else None,
        "windows": len(frame),
        "windows_bytes": in_windows,
        "cost": in_windows / unique if unique else None,
    }


def _churn_text(reply: dict[str, Any]) -> str:
    windows, total = reply["windows"], reply["total"]
    rows = [
        ("written", f"{format_size(total['write_bytes'])} in {total['writes']:,} writes"),
        ("unique", f"{format_size(total['unique_bytes'])} in {format_size(reply['block_size'])} "
         f"blocks, rewrite ratio {_ratio(total['rewrite_ratio'])}"),
        ("incrementals", f"{len(windows):,} windows with writes, {_length(reply['window_s'])}; "
         f"together {format_size(total['windows_bytes'])}, {_ratio(total['cost'])} times unique"),
    ]  # fmt: skip
    parts = [lines(rows)]
    if "volumes" in reply:
        header = ("volume", "name", "written", "unique", "rewrite", "incrementals")
        shown = [
            (v["volume"], _name(v["name"]), format_size(v["write_bytes"]),
             format_size(v["unique_bytes"]), _ratio(v["rewrite_ratio"]),
             format_size(v["windows_bytes"]))
            for v in reply["volumes"][:MOST_ROWS]
        ]  # fmt: skip
        parts.append(grid(header, shown) + _left_out(len(reply["volumes"]), "volumes"))
    if windows:
        parts.append(_windows_text(windows))
    return "\n\n".join(parts)


def _windows_text(windows: list[dict[str, Any]]) -> str:
    header = ("start", "writes", "written", "unique", "first", "rewrite", "extents")
    shown = [
        (_clock(w["start_s"]), f"{w['writes']:,}", format_size(w["write_bytes"]),
         format_size(w["unique_bytes"]), format_size(w["new_bytes"]),
         _ratio(w["rewrite_ratio"]), f"{w['extents']:,}")
        for w in windows[:MOST_ROWS]
    ]  # fmt: skip
    return grid(header, shown) + _left_out(len(windows), "windows")


def _fragmentation_text(found: dict[str, Any]) -> str:
    indices = found["dispersion"]
    rows = [("window", _length(found["window_s"])),
            ("extents", f"{found['extents']:,} of {format_size(found['block_size'])} blocks, "
             f"{format_size(found['changed_bytes'])}")]  # fmt: skip
    if not found["extents"]:
        return lines(rows)
    rows += [
        ("mean extent", format_size(found["mean_extent_bytes"])),
        ("extents per GiB", f"{indices['extents_per_gib']:,.0f}"),
        ("fragmentation", f"{indices['fragmentation']:.3f} extents a changed block"),
        ("region fill", f"{indices['region_fill']:.1%} of {indices['regions']:,} regions of 4 MiB"),
        ("span", format_size(indices["span_bytes"])),
        ("dispersion index", f"{indices['dispersion_index']:.2f}, 1 is strewn at random"),
    ]
    grains = [
        (format_size(int(size)), _ratio(factor)) for size, factor in found["amplification"].items()
    ]
    runs = [
        (format_size(r["from_bytes"]), f"{r['runs']:,}", format_size(r["changed_bytes"]))
        for r in found["run_lengths"]
    ]
    parts = [
        lines(rows),
        grid(("granularity", "amplification"), grains),
        grid(("runs from", "runs", "changed"), runs),
    ]
    if "volumes" in found:
        header = ("volume", "name", "changed", "extents", "mean extent", "at 2 MiB")
        shown = [
            (v["volume"], _name(v["name"]), format_size(v["dispersion"]["unique_bytes"]),
             f"{v['dispersion']['extents']:,}", _size(v["dispersion"]["mean_extent_bytes"]),
             _ratio(v["amplification"][str(2 << 20)]))
            for v in found["volumes"][:MOST_ROWS]
        ]  # fmt: skip
        parts.append(grid(header, shown) + _left_out(len(found["volumes"]), "volumes"))
    return "\n\n".join(parts)


def _left_out(count: int, what: str) -> str:
    if count <= MOST_ROWS:
        return ""
    return f"\n… and {count - MOST_ROWS:,} {what} more: --json prints all"


def _length(window_s: float | None) -> str:
    return "whole trace" if window_s is None else f"{format_interval(window_s)} each"


def _clock(start_s: float) -> str:
    return "0 s" if start_s == 0 else format_duration(start_s)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _size(value: float | None) -> str:
    return "-" if value is None else format_size(value)


def _name(name: str) -> str:
    """A volume's name, which a file may have chosen, on one line of a table."""
    return name if name.isprintable() and len(name) <= 32 else quoted(name, 34)
