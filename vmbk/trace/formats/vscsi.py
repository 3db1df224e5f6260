"""Binary traces of VMware's vscsiStats, as of the CloudPhysics collection.

Records of one virtual disk, all numbers little-endian:

- version 1, 32 bytes: u32 number, bytes, scatter-gather elements; u16 SCSI operation code, version;
  u64 sector of 512 bytes, time in µs;
- version 2, 40 bytes: u16 SCSI operation code, version; u32 number, bytes, scatter-gather elements;
  u64 sector, time in µs, response time.

The high byte of ``version`` is 1 or 2. There is no header, so that the first records tell which it
is. Commands that read and write nothing, such as TEST UNIT READY, are skipped.

Source: Waldspurger, Park, Garthwaite, Ahmad: Efficient MRC Construction with SHARDS, FAST 2015 (the
collection); libCacheSim, ``vscsi.h`` (the layout).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import TraceFormatError
from vmbk.trace.formats.reading import SECTOR, Batch, Tally
from vmbk.trace.formats.scsi import OPERATIONS
from vmbk.trace.formats.source import RECORDS, Source
from vmbk.trace.schema import MAX_VOLUME_SIZE, Op
from vmbk.units import quoted

NAME: Final = "vscsi"
DOC: Final = "binary vscsiStats, versions 1 and 2, as of CloudPhysics"
VOLUME: Final = "disk"
LAYOUTS: Final[dict[int, Any]] = {
    1: np.dtype([("number", "<u4"), ("length", "<u4"), ("elements", "<u4"), ("code", "<u2"),
                 ("version", "<u2"), ("sector", "<u8"), ("time", "<u8")]),
    2: np.dtype([("code", "<u2"), ("version", "<u2"), ("number", "<u4"), ("length", "<u4"),
                 ("elements", "<u4"), ("sector", "<u8"), ("time", "<u8"), ("response", "<u8")]),
}  # fmt: skip
_PROBED: Final = 64  # records that a detector looks at
_MOST_TIME: Final = (1 << 62) // 1000  # µs whose ns are taken
_CODES: Final = np.full(256, 255, np.uint8)
_CODES[list(OPERATIONS)] = [op | (op == Op.FLUSH) << 7 for op in OPERATIONS.values()]
_WORDS: Final = {1: (8, 3, 1, 4, 6), 2: (10, 0, 2, 4, 6)}
"""What `vscsi_requests` calls the layout of each version."""


def _fitting(head: bytes) -> dict[int, NDArray[np.bool_]]:
    """For each version, which of the first bytes' records could be its."""
    fitting = {}
    for version, layout in LAYOUTS.items():
        rows = np.frombuffer(head, layout, min(len(head) // layout.itemsize, _PROBED))
        fitting[version] = (rows["version"] >> 8 == version) & (rows["code"] <= 0xFF)
    return fitting


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one.

    The first two records count, and most of those that follow: some may be damaged.
    """
    return any(
        len(fit) > 0 and fit[:2].all() and 4 * int(fit.sum()) >= 3 * len(fit)
        for fit in _fitting(head).values()
    )


def read(source: Source, tally: Tally, size: int = RECORDS) -> Iterator[Batch]:
    """Requests of a file, all of one volume.

    Raises
    ------
    TraceFormatError
        If the file begins with records of neither version.
    """
    fitting = {v: int(fit.sum()) for v, fit in _fitting(source.head(1 << 16)).items()}
    version = max(fitting, key=lambda v: fitting[v])
    if not fitting[version]:
        raise TraceFormatError(f"{quoted(source.path.name)} begins with no vscsiStats record")
    layout = LAYOUTS[version]
    first, rest = 1, b""
    for chunk in source.chunks(size):
        data = rest + chunk
        count = len(data) // layout.itemsize
        rest = data[count * layout.itemsize :]
        yield _requests(np.frombuffer(data, layout, count), first, version, tally)
        first += count
    if rest:
        tally.refuse(first, rest.hex(" "), f"{len(rest)} bytes, not {layout.itemsize}")


def _requests(rows: Any, first: int, version: int, tally: Tally) -> Batch:
    from vmbk.kernels.records import vscsi_requests

    count = len(rows)
    row, time_ns, offset, length = (np.empty(count, np.int64) for _ in range(4))
    op, bad = np.empty(count, np.uint8), np.empty(count + 1, np.int64)
    kept = vscsi_requests(
        rows.view("<u4"), np.array(_WORDS[version]), _CODES, version,
        MAX_VOLUME_SIZE // SECTOR, _MOST_TIME, row, time_ns, op, offset, length, bad,
    )  # fmt: skip
    for record in bad[1 : 1 + min(bad[0], 5)].tolist():
        told = ", ".join(f"{name} {rows[name][record]}" for name in rows.dtype.names)
        tally.refuse(first + record, told, "not what a record holds", 0)
    tally.bad += int(bad[0])
    tally.skipped += count - kept - int(bad[0])
    return Batch(
        time_ns=time_ns[:kept],
        op=op[:kept].view(np.int8),
        volume=np.full(kept, tally.volume_ids([VOLUME])[0]),
        offset=offset[:kept],
        length=length[:kept],
        where=row[:kept] + first,
    )
