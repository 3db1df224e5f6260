"""What trials of a fit are compared by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.trace.metrics.dirty import DirtyPass
from vmbk.trace.metrics.windows import Measured
from vmbk.trace.schema import Op
from vmbk.trace.table import Requests, Trace

BLOCK: Final = 4096
LAGS: Final = 32
"""A write is sequential where it begins at the end of one of so many before it, per volume."""

WINDOWS: Final = 10
_MOST_STARTS: Final = 1 << 24  # of which the popularity of blocks is counted


def span_ns(trace: Trace) -> int:
    """Time from the first request to the last, at least a nanosecond a request."""
    times = trace.requests.time_ns
    return max(int(times[-1]) - int(times[0]) + 1 if len(trace) else 0, len(trace), 1000)


def batches(trace: Trace) -> Iterator[Requests]:
    """The requests, with times from the first of them on."""
    for batch in trace.batches():
        first = int(trace.requests.time_ns[0])
        yield replace(batch, time_ns=batch.time_ns - first) if first else batch


def covering(trace: Trace, ops: tuple[Op, ...]) -> Iterator[Requests]:
    """Batches of the requests of some operations that have a length."""
    for batch in trace.batches():
        rows = np.isin(batch.op, ops) & (batch.length > 0)
        yield Requests(
            batch.time_ns[rows], batch.op[rows], batch.volume[rows],
            batch.offset[rows], batch.length[rows], batch.flags[rows],
        )  # fmt: skip


def sequential(offset: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which requests of one volume begin where one of the `LAGS` before them ended."""
    ends, found = offset + length, np.zeros(len(offset), np.bool_)
    for lag in range(1, min(LAGS, len(offset) - 1) + 1):
        found[lag:] |= offset[lag:] == ends[:-lag]
    return found


def figures(trace: Trace) -> dict[str, float]:
    """The metrics by which trials are compared, over all volumes.

    Returns
    -------
    dict
        ``sequential_writes`` (share of writes; see `sequential`); of 4 KiB blocks written
        ``unique_bytes``, ``rewrite_ratio``, ``extents`` and ``mean_extent_bytes``, as
        `vmbk.trace.metrics.windows` has them of the whole trace; ``amplification_64k``,
        ``amplification_2m`` (bytes of the touched pieces of that size over unique bytes);
        ``interval_cost`` (unique bytes of each tenth of the time, added up, over unique bytes in
        all); ``top_1``, ``top_10`` (share of the writes that begin in the most written 1 % and
        10 % of the blocks in which writes begin); ``unique_share`` (of the bytes written).

    Raises
    ------
    InputError
        As `vmbk.trace.metrics.windows.measure`.
    """
    import polars as pl

    writes, in_sequence, starts = 0, 0, _Starts()
    ids = [v.id for v in trace.volumes]
    tail = dict.fromkeys(ids, (np.empty(0, np.int64), np.empty(0, np.int64)))
    whole_pass, tenths_pass = (
        DirtyPass(trace.volumes, window_ns=window, block_size=BLOCK)
        for window in (None, -(-span_ns(trace) // WINDOWS))
    )
    for batch in batches(trace):
        whole_pass.add(batch)
        tenths_pass.add(batch)
        rows = (batch.op == Op.WRITE) & (batch.length > 0)
        offset, length, volume = batch.offset[rows], batch.length[rows], batch.volume[rows]
        writes += len(offset)
        starts.add(volume, offset)
        for id in np.unique(volume).tolist():
            own = volume == id
            at = np.concatenate([tail[id][0], offset[own]])
            size = np.concatenate([tail[id][1], length[own]])
            in_sequence += int(sequential(at, size)[len(tail[id][0]) :].sum())
            tail[id] = (at[-LAGS:], size[-LAGS:])
    whole, tenths = Measured(whole_pass.finish()), Measured(tenths_pass.finish())
    together = pl.col("volume").is_null()
    changed = whole.churn.filter(together).sum()
    unique, extents = int(changed["unique_blocks"][0]), int(changed["extents"][0])
    blocks_of = dict(
        whole.granularity.filter(together).select("block_size", "changed_bytes").iter_rows()
    )
    return {
        "sequential_writes": in_sequence / max(writes, 1),
        "unique_bytes": unique * BLOCK,
        "rewrite_ratio": int(changed["block_writes"][0]) / max(unique, 1),
        "extents": extents,
        "mean_extent_bytes": unique * BLOCK / max(extents, 1),
        "amplification_64k": blocks_of[1 << 16] / max(unique * BLOCK, 1),
        "amplification_2m": blocks_of[1 << 21] / max(unique * BLOCK, 1),
        "interval_cost": int(tenths.churn.filter(together)["unique_blocks"].sum()) / max(unique, 1),
        "top_1": starts.top(0.01),
        "top_10": starts.top(0.1),
        "unique_share": unique * BLOCK / max(int(changed["write_bytes"][0]), 1),
    }


class _Starts:
    """How often writes begin in each block."""

    def __init__(self) -> None:
        self._keys = [np.empty(0, np.int64)]
        self._room = _MOST_STARTS

    def add(self, volume: NDArray[np.uint32], offset: NDArray[np.int64]) -> None:
        """Count writes; those after the first `_MOST_STARTS` are left out."""
        blocks = (volume[: self._room].astype(np.int64) << 40) ^ (offset[: self._room] // BLOCK)
        self._keys.append(blocks)
        self._room -= len(blocks)

    def top(self, share: float) -> float:
        """Share of the writes that begin in the most frequent share of the blocks."""
        _, hits = np.unique(np.concatenate(self._keys), return_counts=True)
        hits = np.sort(hits)[::-1]
        return float(hits[: max(round(len(hits) * share), 1)].sum() / max(hits.sum(), 1))
