"""What frequent incrementals cost: the blocks that they send again and again.

An incremental backup sends every block that changed since the one before it, once. Backups twice as
often therefore send a block twice that is written in both halves of the time. The *cost* of an
interval is what all its incrementals send, divided by what one at the very end would: 1 where
nothing is ever written again in a later window, and never more than the rewrite ratio.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.trace.metrics.dirty import CHANGES, WRITES
from vmbk.trace.metrics.leaves import Leaves, Places
from vmbk.trace.schema import Volume
from vmbk.trace.table import checked_trace
from vmbk.units import parse_duration, parse_size, quoted

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace.table import Requests, Trace

INTERVALS: Final = (
    "1m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "24h", "48h", "7d",
)  # fmt: skip
"""Time between two incrementals, from replication to weekly backups."""

_MOST_INTERVALS: Final = 64
_MOST_BLOCKS: Final = 1 << 29  # 4 GiB of times, 2 TiB written in blocks of 4 KiB
_LAST_NS: Final = (1 << 63) - 1


class IntervalPass:
    """Follows requests batch by batch; how they are cut into batches changes nothing.

    Parameters
    ----------
    volumes : sequence of Volume
    intervals_ns : sequence of int
        ns, each at least 1; 64 of them at most.
    block_size : int
        Bytes: a power of two from 512 to 4 MiB.
    discards : bool
        Whether discards and write_zeroes change blocks as well as writes.

    Raises
    ------
    InputError
        If a value is outside its bounds.
    """

    def __init__(
        self,
        volumes: Iterable[Volume],
        *,
        intervals_ns: Sequence[int],
        block_size: int = 4096,
        discards: bool = False,
    ) -> None:
        from vmbk.kernels.updates import LEAF_BITS

        if not 1 <= len(intervals_ns) <= _MOST_INTERVALS:
            raise InputError(f"{len(intervals_ns)} intervals: from 1 to {_MOST_INTERVALS} at once")
        for interval in intervals_ns:
            if interval < 1:
                raise InputError(f"an interval of {interval} ns: at least 1 ns is needed")
        self.intervals_ns = tuple(sorted(set(intervals_ns)))
        self.first_ns: int | None = None
        self.last_ns = 0
        self._leaves = Leaves(
            volumes, block_size, leaf_bits=LEAF_BITS, words=1 << LEAF_BITS,
            most_blocks=_MOST_BLOCKS,
        )  # fmt: skip
        self._places = Places(self._leaves.volumes)
        self._mask = CHANGES if discards else WRITES
        count = len(self.intervals_ns)
        self._intervals = np.array(self.intervals_ns, np.int64)
        self._starts = np.zeros(2 * count, np.int64)
        self._counts = np.zeros((count + 1) * len(self._leaves.volumes), np.int64)

    def add(self, batch: Requests) -> None:
        """Follow the next requests.

        Raises
        ------
        InputError
            If they touch too many blocks, as `interval_cost` says.
        """
        from vmbk.kernels.updates import interval_blocks

        leaves = self._leaves
        batch = self._places(batch)
        leaves.follow(
            batch, self._mask,
            lambda: interval_blocks(
                batch.time_ns, batch.op.view(np.uint8), batch.volume, batch.offset, batch.length,
                self._mask, leaves.shift, self._intervals, leaves.bases,
                leaves.table, leaves.keys, leaves.words, self._starts, self._counts, leaves.state,
            ),
        )  # fmt: skip
        if len(batch):
            self.first_ns = int(batch.time_ns[0]) if self.first_ns is None else self.first_ns
            self.last_ns = int(batch.time_ns[-1])

    def finish(self) -> pl.DataFrame:
        """The table of `interval_cost`."""
        import polars as pl

        volumes, block_size = self._leaves.volumes, self._leaves.block_size
        count = len(self.intervals_ns)
        blocks = self._counts.reshape(len(volumes), count + 1)
        blocks = np.concatenate([blocks, blocks.sum(axis=0, keepdims=True)])
        ids = [v.id for v in volumes] + [None]
        first = self.first_ns or 0
        windows = [
            min(self.last_ns // k - first // k + 1, _LAST_NS) for k in self.intervals_ns
        ]  # fmt: skip
        return pl.DataFrame(
            {
                "volume": pl.Series([id for id in ids for _ in range(count)], dtype=pl.UInt32),
                "interval_s": pl.Series(
                    [interval / 1e9 for interval in self.intervals_ns] * len(ids), dtype=pl.Float64
                ),
                "windows": pl.Series(windows * len(ids), dtype=pl.Int64),
                "changed_bytes": blocks[:, :count].reshape(-1) * block_size,
                "unique_bytes": np.repeat(blocks[:, count], count) * block_size,
            }
        ).with_columns(
            pl.when(pl.col("unique_bytes") > 0)
            .then(pl.col("changed_bytes") / pl.col("unique_bytes"))
            .alias("cost")
        )


def interval_cost(
    trace: Trace,
    intervals: Sequence[str | float] = INTERVALS,
    block_size: str | int = "4KiB",
    *,
    discards: bool = False,
) -> pl.DataFrame:
    """Incremental-frequency cost: what all incrementals send, for many intervals in one pass.

    Windows are aligned at the trace's start, as those of `churn` are, and the intervals need not
    divide each other. An interval longer than the trace costs 1.

    Parameters
    ----------
    trace : Trace
    intervals : sequence of str or float
        Times between two incrementals, such as ``15m``; seconds as numbers.
    block_size : str or int
        Bytes: a power of two from 512 B to 4 MiB.
    discards : bool
        Whether discards and write_zeroes change blocks as well as writes.

    Returns
    -------
    polars.DataFrame
        A row per volume and interval, shortest first, then those over all volumes (``volume``
        null):

        ============== ====== ================================================================
        volume         u32    id of the volume, null for all together
        interval_s     f64    s between two incrementals
        windows        i64    incrementals from the first request to the last
        changed_bytes  i64    bytes of the blocks that they send, each once an incremental
        unique_bytes   i64    bytes of the blocks ever changed, each once
        cost           f64    changed bytes / unique bytes; null where nothing was written, and
                              where the trace has no clock
        ============== ====== ================================================================

    Raises
    ------
    InputError
        If a value is outside its bounds, more than 2**25 leaves were written, or there is no
        memory for them.

    Notes
    -----
    For each block write the time of the block's last write decides: it counts for every interval
    whose current window began after that time. Leaves are made of 16 blocks that lie together, when
    one of them is first written, and take 128 bytes each and some 20 to 40 to be found: 2**25 of
    them hold 2**29 blocks (2 TiB at 4 KiB) that are written end to end, and 2**25 (128 GiB) that
    lie strewn. While they grow there are up to three times as many bytes.
    """
    checked_trace(trace)
    import polars as pl

    if isinstance(intervals, str):
        intervals = [intervals]
    if not isinstance(intervals, Iterable):
        raise InputError(
            f"intervals are a sequence, not {quoted(intervals)}", hint="such as ['15m', '1h']"
        )
    work = IntervalPass(
        trace.volumes,
        intervals_ns=[parse_duration(interval) for interval in intervals],
        block_size=parse_size(block_size),
        discards=discards,
    )
    with progress("interval cost", len(trace), unit="requests") as advance:
        for batch in trace.batches():
            work.add(batch)
            advance(len(batch))
    found = work.finish()
    if trace.metadata.clock != "none":
        return found
    return found.with_columns(pl.lit(None, pl.Float64).alias("cost"))
