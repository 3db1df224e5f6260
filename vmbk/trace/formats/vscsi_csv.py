"""The requests of a vscsiStats trace as a table: ``version,time,op,size,lbn``.

Under a line that says so: the version of the trace, 1 or 2; whole seconds; the SCSI operation code
in hexadecimal digits; bytes; sectors of 512 bytes. The rows are those of the binary trace of which
the table was made, in its order; what is left of its microseconds are the seconds.

Source: the published table of a CloudPhysics trace (Waldspurger, Park, Garthwaite, Ahmad: SHARDS,
FAST 2015), compared with the binary trace row by row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import numpy as np

from vmbk.trace.formats.reading import SECTOR, Batch, Tally, delimited, mostly, whole
from vmbk.trace.formats.scsi import OPERATIONS
from vmbk.trace.formats.source import Source
from vmbk.trace.schema import Op

NAME: Final = "vscsi-csv"
DOC: Final = "vscsiStats as CSV, as of CloudPhysics"
VOLUME: Final = "disk"
FIELDS: Final = ("version", "time", "op", "size", "lbn")
_KINDS: Final = {"version": "int", "time": "int", "op": "text", "size": "int", "lbn": "int"}
_CODES: Final = {f"{code:x}": int(op) for code, op in OPERATIONS.items()}
_CODE: Final = re.compile(r"[0-9a-fA-F]{1,2}")
_OTHER: Final = -2  # a command that is no request


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    return mostly(head, _fits)


def _fits(line: bytes) -> bool:
    fields = [field.strip() for field in line.split(b",")]
    if line.strip() == ",".join(FIELDS).encode():
        return True
    if len(fields) != len(FIELDS) or fields[0] not in (b"1", b"2"):
        return False
    # Five whole numbers could be a row of Tencent's as well, were it not for 0 or 1 in the fourth.
    code = fields[2].decode("ascii", "replace")
    return (
        len(code) == 2
        and _CODE.fullmatch(code) is not None
        and whole(fields[1], *fields[3:])
        and fields[3] not in (b"0", b"1")
    )


def _operation(word: str) -> int:
    """An operation's code, -1 where the word is no code at all."""
    if _CODE.fullmatch(word) is None:
        return -1
    return _CODES.get(word.lower().lstrip("0"), _OTHER)


def read(source: Source, tally: Tally) -> Iterator[Batch]:
    """Requests of a file, all of one volume."""
    for rows in delimited(source, tally, ",", FIELDS, _KINDS, header=",".join(FIELDS)):
        version = rows["version"]
        rows = rows.without_bad((version < 1) | (version > 2), "neither version 1 nor 2")
        known = {word: _operation(word) for word in rows["op"].words}
        rows = rows.without_bad(rows["op"].map(known, -1) == -1, "no SCSI operation code")
        rows = rows.without(rows["op"].map(known, -1) == _OTHER)
        rows = rows.scaled("time", 10**9).scaled("lbn", SECTOR)
        op = rows["op"].map(known, -1).astype(np.int8)
        flush = op == Op.FLUSH
        yield Batch(
            time_ns=rows["time"],
            op=op,
            volume=np.full(len(rows), tally.volume_ids([VOLUME])[0]),
            offset=np.where(flush, 0, rows["lbn"]),
            length=np.where(flush, 0, rows["size"]),
            where=rows.where,
        )
