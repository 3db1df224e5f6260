"""Commands on traces and on what they are replayed onto."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vmbk.cli.reply import Reply, lines
from vmbk.errors import InputError
from vmbk.units import format_duration, format_size, quoted


def import_(args: argparse.Namespace) -> Reply:
    """Read a trace in a foreign format and write it as Arrow."""
    from vmbk.trace.formats import import_trace
    from vmbk.trace.store import check_target, write_trace

    _check_trace_name(args.output)
    check_target(args.output)  # before the long work
    imported = import_trace(
        args.source,
        format=args.format,
        volume_size=args.volume_size,
        skip_bad=args.skip_bad,
        drop_duplicates=args.drop_duplicates,
    )
    write_trace(imported.trace, args.output)
    reply = _imported(imported.trace, imported.skipped, imported.format, args.output)
    reply |= {"bad": imported.bad, "duplicates": imported.duplicates}
    reply["examples"] = list(imported.examples)
    reply["_text"] += f", {imported.bad} malformed, {imported.duplicates} duplicates dropped"
    reply["_text"] += "".join(f"\n  | {example}" for example in imported.examples)
    return reply


def _check_trace_name(path: str) -> None:
    if Path(path).suffix not in (".arrow", ".parquet"):
        raise InputError(
            f"{path!r} names no trace format",
            hint="end it in .arrow (working form) or .parquet (shipping form)",
        )


def _imported(trace: Any, skipped: int, source_format: str, output: str) -> Reply:
    summary = trace.summary().to_dict()
    reply = {
        "requests": summary["requests"],
        "writes": summary["writes"],
        "volumes": summary["volumes"],
        "skipped": skipped,
        "format": source_format,
        "output": output,
    }
    reply["_text"] = (
        f"{output}: {summary['requests']:,} requests, {summary['writes']:,} writes of "
        f"{format_size(summary['write_bytes'])}, from {source_format}, {skipped} skipped"
    )
    return reply


def info(args: argparse.Namespace) -> Reply:
    """Summarise a trace."""
    from vmbk.trace import open_trace

    summary = open_trace(args.trace).summary().to_dict()
    rows = []
    for key, value in summary.items():
        if key == "volumes":
            shown = ", ".join(f"{v['name']} ({format_size(v['size'])})" for v in value)
        elif key.endswith("_bytes"):
            shown = format_size(value)
        elif key == "duration_s":
            shown = format_duration(value)
        else:
            shown = f"{value:,}" if isinstance(value, int) else str(value)
        rows.append((key.replace("_bytes", "").replace("_", " ").removesuffix(" s"), shown))
    return {**summary, "_text": lines(rows)}


def capture(args: argparse.Namespace) -> Reply:
    """Record a guest, a program on a disk of this machine, or a device."""
    from vmbk.trace.store import read_trace

    _check_trace_name(args.output)
    if args.host:
        _capture_host(args)
    elif args.device is not None:
        _capture_device(args)
    else:
        _capture_guest(args)
    trace = read_trace(args.output)
    source = "tracefs" if args.device is not None else "capture"
    return _imported(trace, 0, source, args.output)


def _capture_guest(args: argparse.Namespace) -> None:
    from vmbk.trace import capture as record

    _refuse("a recipe", {"--size": args.size, "--fs": args.fs, "--seconds": args.seconds})
    if args.recipe is None:
        raise InputError(
            "it is not said what to capture",
            hint="name a recipe, or use --host or --device with a command behind --",
        )
    if args.program:
        raise InputError(
            f"a recipe brings its own workload, {quoted(args.program)} cannot be run in it",
            hint="a program of this machine is captured with --host",
        )
    record(args.recipe, Path(args.output))


def _capture_host(args: argparse.Namespace) -> None:
    from vmbk.trace.capture.host import capture_host
    from vmbk.units import GIB

    _refuse("--host", {"--seconds": args.seconds, "RECIPE": args.recipe})
    if not args.program:
        raise InputError("--host needs a command", hint="put it behind --, as in: --host -- make")
    size = GIB if args.size is None else args.size
    capture_host(args.program, args.output, size=size, filesystem=args.fs or "ext4")


def _capture_device(args: argparse.Namespace) -> None:
    from vmbk.trace.capture.tracefs import capture_device

    _refuse("--device", {"--size": args.size, "--fs": args.fs, "RECIPE": args.recipe})
    capture_device(args.device, args.output, seconds=args.seconds, command=args.program or None)


def _refuse(way: str, given: dict[str, Any]) -> None:
    """Refuse arguments that mean nothing for a way to capture."""
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"{way} and {name} {quoted(value)} do not go together",
                hint="see: vmbk trace capture --help",
            )


def replay(args: argparse.Namespace) -> Reply:
    """Apply the writes of a trace to an image."""
    from vmbk.disk.raw import RawDisk
    from vmbk.disk.replay import replay as apply
    from vmbk.progress import progress
    from vmbk.trace import open_trace

    trace = open_trace(args.trace)
    if len(trace.volumes) != 1:
        raise InputError(
            f"the trace has {len(trace.volumes)} volumes and --disk names one image",
            hint="replay it from Python: vmbk.replay(trace, {volume: disk, ...})",
        )
    total = len(trace)
    stop = total if args.until is None else args.until
    if not 0 <= stop <= total:
        raise InputError(f"--until {stop} is not within the trace's {total} requests")
    path = Path(args.disk)
    made = not path.exists()
    disk = RawDisk.create(path, trace.volumes[0].size) if made else RawDisk(path, mode="rw")
    with disk, progress(f"replay {args.trace}", stop, unit="requests") as advance:
        done = apply(trace, disk, stop=stop, seed=args.seed, on_progress=advance)
        disk.flush()
    rate = format_size(done.write_bytes / max(done.seconds, 1e-9))
    return {
        "writes": done.writes,
        "write_bytes": done.write_bytes,
        "seconds": done.seconds,
        "requests": done.requests,
        "created": made,
        "_text": f"{args.disk}: {done.writes:,} writes, {format_size(done.write_bytes)} in "
        f"{format_duration(done.seconds)} ({rate}/s)",
    }


def hash_(args: argparse.Namespace) -> Reply:
    """Digest the blocks of a file."""
    from vmbk.detect.digests import hash_blocks

    found = hash_blocks(args.file, args.block_size, algorithm=args.algorithm)
    reply: Reply = found.to_dict()
    return reply | {
        "_text": f"{found.digest}  {args.file}: {reply['blocks']:,} blocks of "
        f"{format_size(args.block_size)}, {found.algorithm}, {format_duration(found.seconds)}"
    }
