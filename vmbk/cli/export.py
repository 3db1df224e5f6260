"""The command that writes a trace as text for other tools."""

from __future__ import annotations

import argparse

from vmbk.cli.reply import Reply
from vmbk.errors import InputError
from vmbk.units import quoted

_LEFT_OUT = {"empty": "requests of no bytes", "mark": "marks", "flush": "flushes",
             "discard": "discards", "read": "reads", "write": "writes",
             "write_zeroes": "writes of zeroes"}  # fmt: skip
_CHANGED = {
    "flags": "went without their flags",
    "payload": "went without their bytes",
    "widened": "were widened to whole sectors",
    "split": "were split",
}


def export(args: argparse.Namespace) -> Reply:
    """Write a trace as text that another tool replays."""
    from vmbk.trace import open_trace
    from vmbk.trace.export import export_trace

    trace = open_trace(args.trace)
    files: dict[int, str] = {}
    ids = {volume.name: volume.id for volume in trace.volumes}
    for word in args.file:
        name, equals, path = word.partition("=")
        if not equals or name not in ids:
            raise InputError(
                f"--file {quoted(word)} does not begin with the name of a volume",
                hint=f"write VOLUME=PATH; the volumes are {quoted(list(ids), 200)}",
            )
        files[ids[name]] = path
    if files and args.format != "fio-iolog":
        raise InputError(f"--file is for fio-iolog, a trace in {args.format} names no files")
    done = export_trace(trace, args.output, args.format, files=files)
    told = [f"{args.output}: {done.requests:,} requests as {done.format}"]
    if done.left_out:
        listed = ", ".join(f"{n:,} {_LEFT_OUT[name]}" for name, n in done.left_out.items())
        told.append(f"left out, for the format cannot say them: {listed}")
    told += [f"{count:,} {_CHANGED[name]}" for name, count in done.changed.items()]
    return {**done.to_dict(), "output": args.output, "_text": "\n".join(told)}
