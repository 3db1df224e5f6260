"""What is measured on a trace and on its synthetic twin, so that the two can be compared."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.trace.metrics.dirty import DirtyPass
from vmbk.trace.metrics.windows import Measured
from vmbk.trace.schema import Op
from vmbk.trace.table import Trace

BLOCK: Final = 4096
LAGS: Final = 32
"""A write is sequential where it begins at the end of one of so many before it, per volume."""

WINDOWS: Final = 10
_SMALL: Final = 8192
_MINUTE: Final = 60 * 10**9
_MOST_BINS: Final = 1 << 24
_MOST_STARTS: Final = 1 << 24  # of which the popularity of blocks is counted


def end_ns(trace: Trace) -> int:
    """End of the time that the trace covers, at least a nanosecond a request."""
    last = int(trace.requests.time_ns[-1]) if len(trace) else 0
    return max(last + 1, len(trace), 1000)


def sequential(offset: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which requests of one volume begin where one of the `LAGS` before them ended."""
    ends, found = offset + length, np.zeros(len(offset), np.bool_)
    for lag in range(1, min(LAGS, len(offset) - 1) + 1):
        found[lag:] |= offset[lag:] == ends[:-lag]
    return found


def figures(trace: Trace) -> dict[str, float]:
    """The metrics by which a fit is judged, over all volumes.

    Returns
    -------
    dict
        ``requests`` (marks left out); ``duration_s``; ``read_share`` of reads and writes;
        ``writes_per_flush`` (0 without a flush); ``read_bytes``, ``write_bytes``;
        ``mean_write_bytes``; ``small_write_share`` (below 8 KiB); ``burstiness`` (requests of the
        busiest minute over the mean, of traces below an hour those of the busiest sixtieth);
        ``sequential_writes`` (share of writes; see `sequential`); and of 4 KiB blocks written:
        ``unique_bytes``; ``rewrite_ratio``; ``extents`` and ``mean_extent_bytes`` of the union;
        ``amplification_64k``, ``amplification_2m`` (bytes of the touched pieces of that size over
        unique bytes); ``interval_cost`` (unique bytes of each tenth of the time, added up, over
        unique bytes in all); ``top_1``, ``top_10`` (share of the writes that begin in the most
        written 1 % and 10 % of the blocks in which writes begin).

    Raises
    ------
    InputError
        As `vmbk.trace.metrics.windows.measure`.
    """
    import polars as pl

    end = end_ns(trace)
    counts, sums = np.zeros(len(Op), np.int64), np.zeros(len(Op))
    bin_ns = max(min(_MINUTE, end // 60), end // _MOST_BINS, 1)
    bins = np.zeros(end // bin_ns + 1, np.int64)
    small, in_sequence, starts = 0, 0, _Starts()
    ids = [v.id for v in trace.volumes]
    tail = dict.fromkeys(ids, (np.empty(0, np.int64), np.empty(0, np.int64)))
    whole_pass, tenths_pass = (
        DirtyPass(trace.volumes, window_ns=window, block_size=BLOCK)
        for window in (None, -(-end // WINDOWS))
    )
    for batch in trace.batches():
        whole_pass.add(batch)
        tenths_pass.add(batch)
        counts += np.bincount(batch.op, minlength=len(Op))
        sums += np.bincount(batch.op, batch.length, minlength=len(Op))
        bins += np.bincount(batch.time_ns // bin_ns, minlength=len(bins))
        rows = (batch.op == Op.WRITE) & (batch.length > 0)
        offset, length, volume = batch.offset[rows], batch.length[rows], batch.volume[rows]
        small += int((length < _SMALL).sum())
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
    reads, writes, flushes = (int(counts[op]) for op in (Op.READ, Op.WRITE, Op.FLUSH))
    return {
        "requests": len(trace) - int(counts[Op.MARK]),
        "duration_s": end / 1e9,
        "read_share": reads / max(reads + writes, 1),
        "writes_per_flush": writes / flushes if flushes else 0.0,
        "read_bytes": float(sums[Op.READ]),
        "write_bytes": float(sums[Op.WRITE]),
        "mean_write_bytes": float(sums[Op.WRITE]) / max(writes, 1),
        "small_write_share": small / max(writes, 1),
        "burstiness": float(bins.max() * (end / bin_ns) / max(len(trace), 1)),
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
