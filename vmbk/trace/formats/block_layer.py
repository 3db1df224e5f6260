"""Events of Linux's block layer, which blktrace, blkparse and tracefs tell in three ways.

One action is counted, so that a request is one row: when it was queued (Q), as the file system or
program asked for it; in a trace that tells of none, when it was handed to the device (D); in a
trace without either, when it was completed (C). Which it is, is found by looking through the trace
once before it is read, and that ends at the first Q. Devices that lie on others, such as those of
the device mapper, are volumes of their own, on which the same bytes are told again.

The letters of an event (``rwbs``): F a flush comes first; R read, W write, D discard, DE secure
erase, F flush, WZ write zeroes, N anything else; then F force unit access, A read ahead, S sync,
M metadata. A flush with data becomes a flush and then a write, for that is the order it promises.

Source: Linux, ``kernel/trace/blktrace.c`` (``blk_fill_rwbs``, ``__blk_add_trace``) and
``include/uapi/linux/blktrace_api.h``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vmbk.trace.formats.reading import (
    SECTOR,
    Batch,
    Rows,
    Tally,
    seconds,
    text_of,
    volumes,
    whole_numbers,
)
from vmbk.trace.formats.source import CHUNK, Source
from vmbk.trace.schema import MAX_VOLUME_SIZE, Flag, Op

MOST_SECTORS: Final = MAX_VOLUME_SIZE // SECTOR

_LETTERS: Final = (
    r"^(?<flush>F?)(?<op>WZ|W|DE|D|R|N|F|ZA|ZRA|Z[RFOC])(?<fua>F?)A?(?<sync>S?)(?<meta>M?)U?$"
)
_OPS: Final = {"R": Op.READ, "W": Op.WRITE, "WZ": Op.WRITE_ZEROES, "D": Op.DISCARD,
               "DE": Op.DISCARD, "ZA": Op.WRITE,
               # Older kernels have no letter for a write of zeroes, the only other operation of
               # ordinary disks that has an extent.
               "N": Op.WRITE_ZEROES}  # fmt: skip


@dataclass(frozen=True)
class Events:
    """Events of one action.

    Parameters
    ----------
    time_ns : ndarray of int64, shape (n,)
    volume : ndarray of uint32, shape (n,)
    flush : ndarray of bool, shape (n,)
        Whether a flush comes first, or is all.
    op : ndarray of int8, shape (n,)
        Code of what is done with the extent.
    offset, length : ndarray of int64, shape (n,)
        Bytes; a length of 0 where there is no extent.
    flags : ndarray of uint8, shape (n,)
    where : ndarray of int64, shape (n,)
        Line or record.
    """

    time_ns: NDArray[np.int64]
    volume: NDArray[np.uint32]
    flush: NDArray[np.bool_]
    op: NDArray[np.int8]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    flags: NDArray[np.uint8]
    where: NDArray[np.int64]

    def requests(self, tally: Tally) -> Batch:
        """The requests; events without a flush and an extent are skipped."""
        rows = self.flush.astype(np.int64) + (self.length > 0)
        tally.skipped += int((rows == 0).sum())
        event = np.repeat(np.arange(len(rows)), rows)
        place = np.arange(len(event)) - (np.cumsum(rows) - rows)[event]
        flush = self.flush[event] & (place == 0)
        return Batch(
            time_ns=self.time_ns[event],
            op=np.where(flush, int(Op.FLUSH), self.op[event]).astype(np.int8),
            volume=self.volume[event],
            offset=np.where(flush, 0, self.offset[event]),
            length=np.where(flush, 0, self.length[event]),
            flags=np.where(flush, 0, self.flags[event]).astype(np.uint8),
            where=self.where[event],
        )


def text_events(rows: Rows, tally: Tally) -> Batch:
    """The requests of lines that were taken apart.

    Parameters
    ----------
    rows : Rows
        Columns of strings: ``time`` in seconds, ``dev``, ``rwbs``, and ``sector`` and ``count`` in
        sectors of 512 bytes, null where there is no extent.
    tally : Tally
    """
    letters = rows["rwbs"].str.extract_groups(_LETTERS).struct.unnest()
    time_ns, late = seconds(rows["time"])
    count, large = whole_numbers(rows["count"].fill_null("0"))
    # Without sectors, where they would be means nothing: some kernels write 2^64 - 1.
    has_extent = pl.Series(large | (count > 0))
    sector, far = whole_numbers(
        pl.select(pl.when(has_extent).then(rows["sector"]).otherwise(pl.lit("0"))).to_series()
    )
    rows = rows.with_columns({
        **{name: letters[name] for name in letters.columns},
        "dev": text_of(rows["dev"]),
        "time_ns": time_ns, "late": late, "count": count, "sector": sector,
        "outside": large | far | (sector > MOST_SECTORS) | (count > MOST_SECTORS),
    })  # fmt: skip
    rows = rows.without_bad(rows["op"].is_null().to_numpy(), "letters that no request has")
    rows = rows.without_bad(rows["late"], "no time in seconds")
    rows = rows.without_bad(rows["outside"], "no place on a volume")
    op = text_of(rows["op"])
    flags = np.zeros(len(rows), np.uint8)
    for name, flag in (("fua", Flag.FUA), ("sync", Flag.SYNC), ("meta", Flag.META)):
        flags[(rows[name] != "").to_numpy()] |= np.uint8(flag)
    code = op.map(_OPS, -1)
    flush = (rows["flush"] == "F").to_numpy() | (op.map({"F": 1}, 0) == 1)
    return Events(
        time_ns=rows["time_ns"],
        volume=volumes(tally, rows["dev"]) if len(rows) else np.zeros(0, np.uint32),
        flush=flush,
        op=code.astype(np.int8),
        offset=rows["sector"] * SECTOR,
        length=np.where(code < 0, 0, rows["count"] * SECTOR),
        flags=flags,
        where=rows.where,
    ).requests(tally)


def counted_action(source: Source, patterns: Sequence[bytes], size: int = CHUNK) -> int:
    """Which action of a text is counted: the first one of which there is a line.

    Parameters
    ----------
    source : Source
        Looked through on its own, apart from the reading.
    patterns : sequence of bytes
        What a line of each action holds, the best action first; ``^`` is the beginning of a line.
    size : int
        Bytes looked at at a time.

    Returns
    -------
    int
        Place in ``patterns``; that of the first where none is found.
    """
    compiled = [re.compile(pattern, re.MULTILINE) for pattern in patterns]
    best = len(compiled)
    for _, _, block in Source(source.path).lines(size):
        for rank, pattern in enumerate(compiled[:best]):
            if pattern.search(block):
                best = rank
                break
        if best == 0:
            break
    return best if best < len(compiled) else 0
