"""Loads of blkreplay, a tool that replays the disk loads of a hosting company's servers.

``start_s ; sector ; length ; op ; replay_delay ; replay_duration`` with seconds of nine decimals
and sectors of 512 bytes; op is R or W, or letters as blkparse writes them, such as RA. Before the
rows and between them stand texts of several lines, such as a licence: lines that do not look like
a row are skipped. Some loads hold the same row twice in a row: see ``drop_duplicates``.

Source: blkreplay (T. Schöbel-Theuer), ``src/blkreplay.c`` and the loads that come with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import numpy as np

from vmbk.trace.formats.block_layer import MOST_SECTORS
from vmbk.trace.formats.reading import (
    SECTOR,
    Batch,
    Tally,
    matched,
    seconds,
    text_of,
    whole_numbers,
)
from vmbk.trace.formats.source import CHUNK, Source
from vmbk.trace.schema import Op

NAME: Final = "blkreplay"
DOC: Final = "load of blkreplay"
VOLUME: Final = "disk"
HEADING: Final = "start ; sector; length ; op ;  replay_delay=0 ; replay_duration=0"

_LINE: Final = (
    r"[ \t]*(?<start>[0-9]+\.[0-9]+)[ \t]*;[ \t]*(?<sector>[0-9]+)[ \t]*;[ \t]*(?<length>[0-9]+)"
    r"[ \t]*;[ \t]*(?<op>[A-Za-z]{1,8})[ \t]*(?:;.*)?$"
)
_ROW: Final = re.compile(
    rb"^[ \t]*[0-9]+\.[0-9]+[ \t]*;[ \t]*[0-9]+[ \t]*;[ \t]*[0-9]+[ \t]*;[ \t]*[A-Za-z]{1,8}[ \t]*"
    rb"(?:[;\r\n]|$)",
    re.MULTILINE,
)
_HEADING: Final = re.compile(rb"^start[ \t]*;[ \t]*sector[ \t]*;[ \t]*length[ \t]*;", re.MULTILINE)
_MEANT: Final = r"^[ \t]*[0-9.+-]+[ \t]*;|;.*;"
_HEADED: Final = r"^[ \t]*start[ \t]*;[ \t]*sector[ \t]*;"


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    first = _ROW.search(head)
    return first is not None and (first.start() == 0 or _HEADING.search(head) is not None)


def read(source: Source, tally: Tally, size: int = CHUNK) -> Iterator[Batch]:
    """Requests of a load, all of one volume."""
    for rows, others in matched(source, tally, _LINE, size=size):
        meant = others["line"].str.contains(_MEANT) & ~others["line"].str.contains(_HEADED)
        others = others.without(~meant.to_numpy())
        others.without_bad(np.ones(len(others), np.bool_), "no row as blkreplay writes it")
        start, late = seconds(rows["start"])
        sector, far = whole_numbers(rows["sector"])
        length, long = whole_numbers(rows["length"])
        op = text_of(rows["op"].str.to_uppercase().str.slice(0, 1)).map(
            {"R": Op.READ, "W": Op.WRITE, "D": Op.DISCARD}, -1
        )
        bad = far | long | (sector > MOST_SECTORS) | (length > MOST_SECTORS)
        rows = rows.with_columns(
            {"start": start, "late": late, "sector": sector, "length": length, "op": op, "bad": bad}
        )
        rows = rows.without_bad(rows["late"], "no time in seconds")
        rows = rows.without_bad(rows["bad"], "no place on a volume")
        rows = rows.without_bad(rows["op"] < 0, "neither R, W nor D")
        yield Batch(
            time_ns=rows["start"],
            op=rows["op"].astype(np.int8),
            volume=np.full(len(rows), tally.volume_ids([VOLUME])[0]),
            offset=rows["sector"] * SECTOR,
            length=rows["length"] * SECTOR,
            where=rows.where,
        )
