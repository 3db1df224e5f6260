"""Commands on the captures that come with vmbk."""

from __future__ import annotations

import argparse
import textwrap

from vmbk.cli.reply import Reply, grid
from vmbk.units import format_duration, format_size

_WIDTH = 100  # columns of a paragraph


def list_(_: argparse.Namespace) -> Reply:
    """The catalogue of the shipped captures."""
    from vmbk.trace import datasets

    found = datasets()
    header = (
        *("name", "file system", "database", "volumes", "requests", "acknowledged", "duration"),
        *("size", "digest"),
    )
    rows = [
        (
            d.name,
            d.file_system,
            d.database or "-",
            format_size(d.volume_size),
            f"{d.rows:,}",
            d.acknowledged,
            format_duration(d.duration_s),
            format_size(d.size),
            d.digest[:12],
        )
        for d in found
    ]
    what = [
        f"{d.name}\n" + textwrap.fill(d.doc, _WIDTH, initial_indent="  ", subsequent_indent="  ")
        for d in found
    ]
    made = (
        f"{len(found)} captures, {format_size(sum(d.size for d in found))}; each is made anew by "
        "vmbk trace capture NAME -o DST"
    )
    text = "\n\n".join([grid(header, rows), "\n".join(what), made])
    return {"datasets": [d.to_dict() for d in found], "_text": text}
