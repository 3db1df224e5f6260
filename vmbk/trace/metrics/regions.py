"""Which parts of which volume change, window by window."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.progress import progress
from vmbk.trace.metrics.dirty import CHANGES, COARSEST, WRITES, DirtyPass, checked_count
from vmbk.trace.metrics.windows import WHOLE
from vmbk.trace.schema import Volume
from vmbk.trace.table import checked_trace
from vmbk.units import parse_duration, parse_size

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace.table import Requests, Trace

_MOST_REGIONS: Final = 1 << 16
_ROWS: Final = 1 << 14  # at a time, since each becomes as many as it touches regions


def regions(
    trace: Trace,
    window: str | float = "1h",
    block_size: str | int = "4KiB",
    *,
    most: int = 64,
    discards: bool = False,
) -> pl.DataFrame:
    """Churn by region: where on its volumes a trace's writes change blocks.

    Parameters
    ----------
    trace, window, block_size, discards
        As for `vmbk.trace.metrics.windows.measure`.
    most : int
        Regions on all volumes together, at most, but one for each volume at least. They are equally
        long: a power of two of bytes, 4 MiB at least.

    Returns
    -------
    polars.DataFrame
        A row per region and window with writes; over all regions of a volume they add up to `churn`
        of the same window:

        ============== ====== ================================================================
        volume         u32    id of the volume
        offset         i64    bytes; where the region begins
        length         i64    bytes of a region
        window         i64    number of the window
        start_s        f64    s since the start of the trace
        block_writes   i64    blocks that writes touched, each as often as it was
        unique_bytes   i64    bytes of the blocks that they touched, each once
        ============== ====== ================================================================

    Raises
    ------
    InputError
        As for `vmbk.trace.metrics.windows.measure`.
    """
    checked_trace(trace)
    import polars as pl

    from vmbk.kernels.churn import BLOCK_WRITES, UNIQUE, VOLUME, WINDOW

    most = checked_count(most, _MOST_REGIONS, "regions")
    size, mask = parse_size(block_size), CHANGES if discards else WRITES
    window_ns = None if window == WHOLE else parse_duration(window)
    ends = _ends(trace, mask)
    length = _length(ends, most)
    counts = np.maximum(-(-ends // length), 1)
    first = np.cumsum(counts) - counts
    # Each region is measured as if it were a volume; blocks never span two of them. The last of a
    # volume is only as long as it needs to be: all together are no longer than the volumes are.
    number = np.arange(int(counts.sum()))
    owner = np.repeat(np.arange(len(ends)), counts)
    sizes = np.minimum(ends[owner] - (number - first[owner]) * length, length)
    parts = [Volume(i, str(i), size) for i, size in enumerate(sizes.tolist())]
    work = DirtyPass(parts, window_ns=window_ns, block_size=size, discards=discards)
    ids = np.array([v.id for v in trace.volumes], np.uint32)
    with progress("regions", len(trace), unit="requests") as advance:
        for batch in trace.batches(_ROWS):
            work.add(_split(batch, mask, ids, first, length))
            advance(len(batch))
    result = work.finish()
    rows = result.windows
    part = rows[:, VOLUME]
    place = np.searchsorted(first, part, side="right") - 1
    return pl.DataFrame(
        {
            "volume": pl.Series(ids[place], dtype=pl.UInt32),
            "offset": (part - first[place]) * length if len(place) else part,
            "length": np.full(len(rows), length, np.int64),
            "window": rows[:, WINDOW],
            "start_s": rows[:, WINDOW] * (result.window_ns / 1e9),
            "block_writes": rows[:, BLOCK_WRITES],
            "unique_bytes": rows[:, UNIQUE] * size,
        }
    )


def _changing(batch: Requests, mask: int) -> NDArray[np.bool_]:
    return ((np.int64(mask) >> batch.op.astype(np.int64)) & 1).astype(bool) & (batch.length > 0)


def _ends(trace: Trace, mask: int) -> NDArray[np.int64]:
    """Where what changes on each volume ends, in bytes."""
    ids = np.array([v.id for v in trace.volumes], np.uint32)
    ends = np.zeros(len(ids), np.int64)
    for batch in trace.batches():
        rows = _changing(batch, mask)
        place = np.searchsorted(ids, batch.volume[rows])
        np.maximum.at(ends, place, batch.offset[rows] + batch.length[rows])
    return ends


def _length(ends: NDArray[np.int64], most: int) -> int:
    """The least power of two with which there are few enough regions."""
    length = COARSEST
    while (-(-ends // length)).sum() > max(most, len(ends)) and length < int(ends.max()):
        length *= 2
    return length


def _split(
    batch: Requests, mask: int, ids: NDArray[np.uint32], first: NDArray[np.int64], length: int
) -> Requests:
    """What changes blocks, cut where regions meet, with the region in place of the volume."""
    kept = np.flatnonzero(_changing(batch, mask))
    begin = batch.offset[kept]
    end = begin + batch.length[kept]
    low, high = begin // length, (end - 1) // length
    times = high - low + 1
    row = np.repeat(np.arange(len(kept)), times)
    region = low[row] + np.arange(len(row)) - np.repeat(np.cumsum(times) - times, times)
    start = np.maximum(begin[row], region * length)
    stop = np.minimum(end[row], (region + 1) * length)
    place = np.searchsorted(ids, batch.volume[kept])
    source = kept[row]
    return replace(
        batch,
        time_ns=batch.time_ns[source],
        op=batch.op[source],
        volume=(first[place][row] + region).astype(np.uint32),
        offset=start - region * length,
        length=stop - start,
        flags=batch.flags[source],
    )
