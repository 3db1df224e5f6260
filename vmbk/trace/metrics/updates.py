"""Updates: how soon, and after how much else, a block is written again.

An *update* is a block write to a block that was written before. Its *interval* is the time since
then; its *distance* is how many other blocks were written to the volume in between. Short ones mean
that a longer time between two backups saves much; what is past the working set's size is not
rewriting but moving on.

Sources of the definitions: Wang et al.: Separating Data via Block Invalidation Time Inference for
Write Amplification Reduction in Log-Structured Storage (SepBIT), FAST 2022, section 2 (distances,
and their shares within parts of the write working set); Li, Wang, Lee, Xu: An In-Depth Analysis of
Cloud Block Storage Workloads, IISWC 2020 (intervals, coverage).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.progress import progress
from vmbk.trace.metrics.dirty import CHANGES, WRITES
from vmbk.trace.metrics.leaves import Leaves, Places
from vmbk.trace.schema import Volume
from vmbk.trace.table import checked_trace
from vmbk.units import parse_size

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace.table import Requests, Trace

WITHIN: Final = (10, 20, 40, 80)
"""Percent of the write working set."""

_MOST_BLOCKS: Final = 1 << 29  # 8 GiB of times and positions, 2 TiB written in blocks of 4 KiB
_PERCENTILES: Final = (50, 90)


class UpdatePass:
    """Follows requests batch by batch; how they are cut into batches changes nothing.

    Parameters
    ----------
    volumes : sequence of Volume
    block_size : int
        Bytes: a power of two from 512 to 4 MiB.
    discards : bool
        Whether discards and write_zeroes count as writes.

    Raises
    ------
    InputError
        If a value is outside its bounds.
    """

    def __init__(
        self, volumes: Iterable[Volume], *, block_size: int = 4096, discards: bool = False
    ) -> None:
        from vmbk.kernels.updates import FIELDS, LEAF_BITS

        self._leaves = Leaves(
            volumes, block_size, leaf_bits=LEAF_BITS, words=2 << LEAF_BITS,
            most_blocks=_MOST_BLOCKS,
        )  # fmt: skip
        self._places = Places(self._leaves.volumes)
        self._mask = CHANGES if discards else WRITES
        self._totals = np.zeros(FIELDS * len(self._leaves.volumes), np.int64)

    def add(self, batch: Requests) -> None:
        """Follow the next requests.

        Raises
        ------
        InputError
            If they touch too many blocks, as `updates` says.
        """
        from vmbk.kernels.updates import block_updates

        leaves = self._leaves
        batch = self._places(batch)
        leaves.follow(
            batch, self._mask,
            lambda: block_updates(
                batch.time_ns, batch.op.view(np.uint8), batch.volume, batch.offset, batch.length,
                self._mask, leaves.shift, leaves.bases,
                leaves.table, leaves.keys, leaves.words, self._totals, leaves.state,
            ),
        )  # fmt: skip

    def finish(self) -> Updates:
        """What was counted."""
        from vmbk.kernels.updates import FIELDS

        totals = self._totals.reshape(len(self._leaves.volumes), FIELDS)
        return Updates(self._leaves.volumes, self._leaves.block_size, totals)


@dataclass(frozen=True)
class Updates:
    """What one pass measured; each table is made when it is asked for.

    Parameters
    ----------
    volumes : tuple of Volume
    block_size : int
        Bytes.
    totals : ndarray of int64, shape (volumes, FIELDS)
        Fields as named in `vmbk.kernels.updates`.
    has_clock : bool
        Whether the times of the requests tell anything.
    """

    volumes: tuple[Volume, ...]
    block_size: int
    totals: NDArray[np.int64]
    has_clock: bool = True

    @property
    def coverage(self) -> pl.DataFrame:
        """How much of what is written is written again; a row per volume and one for all.

        ============== ====== ================================================================
        volume         u32    id of the volume, null for all together
        block_writes   i64    blocks that writes touched, each as often as it was
        updates        i64    those of them to blocks written before
        unique_bytes   i64    bytes of the blocks written: the write working set
        updated_bytes  i64    bytes of the blocks written more than once
        updated_share  f64    updated bytes / unique bytes
        within_10      f64    share of updates whose distance is at most 10 % of the volume's
                              write working set; so too within_20, within_40, within_80
        distance_p50   f64    bytes written in between, median; distance_p90
        interval_p50   f64    s, median time between; interval_p90; null without a clock
        ============== ====== ================================================================

        Shares, percentiles and what they are of are null where there is no update. They come from
        histograms whose bins are at most 1/16 of their values wide, and are interpolated within a
        bin, so that a percentile, and the distance at which a share is taken, are off by no more
        than that. Over all volumes each distance is held against its own volume's working set.
        The share of all user-written blocks that live no longer, as SepBIT has it, is
        ``within * updates / block_writes``.
        """
        return _coverage(self)

    @property
    def distance(self) -> pl.DataFrame:
        """Updates by distance; a row per volume and bin with updates, then over all volumes.

        ============== ====== ================================================================
        volume         u32    id of the volume, null for all together
        from_bytes     i64    least distance of the bin: bytes of the blocks written in between
        to_bytes       f64    the least distance beyond it; at most 1/16 more, or one block
        updates        i64    how many
        share          f64    of the volume's updates, those up to and with this bin
        ============== ====== ================================================================
        """
        from vmbk.kernels.updates import BINS, DISTANCES

        return _histogram(self, DISTANCES, BINS, "bytes", self.block_size)

    @property
    def interval(self) -> pl.DataFrame:
        """Updates by interval; a row per volume and bin with updates, then over all volumes.

        ============== ====== ================================================================
        volume         u32    id of the volume, null for all together
        from_ns        i64    least time of the bin, ns since the block was last written
        to_ns          f64    the least time beyond it; at most 1/16 more, or 1 ns
        updates        i64    how many
        share          f64    of the volume's updates, those up to and with this bin
        ============== ====== ================================================================

        Where the trace has no clock it tells nothing.
        """
        from vmbk.kernels.updates import BINS, INTERVALS

        return _histogram(self, INTERVALS, BINS, "ns", 1)

    def _repr_html_(self) -> str:
        return str(self.coverage._repr_html_())


def updates(trace: Trace, block_size: str | int = "4KiB", *, discards: bool = False) -> Updates:
    """Measure how soon, and after how much else, blocks are written again, in one pass.

    Parameters
    ----------
    trace : Trace
    block_size : str or int
        Bytes: a power of two from 512 B to 4 MiB.
    discards : bool
        Whether discards and write_zeroes count as writes.

    Returns
    -------
    Updates
        The tables ``coverage``, ``distance`` and ``interval``.

    Raises
    ------
    InputError
        If a value is outside its bounds, more than 2**25 leaves were written, or there is no
        memory for them.

    Notes
    -----
    The update distance does not count the write itself: a block written twice in a row has 0.
    Leaves are made of 16 blocks that lie together, when one of them is first written, and take 256
    bytes each and some 20 to 40 to be found: 2**25 of them hold 2**29 blocks (2 TiB at 4 KiB) that
    are written end to end, and 2**25 (128 GiB) that lie strewn. While they grow there are up to
    three times as many bytes.
    """
    checked_trace(trace)
    work = UpdatePass(trace.volumes, block_size=parse_size(block_size), discards=discards)
    with progress("updates", len(trace), unit="requests") as advance:
        for batch in trace.batches():
            work.add(batch)
            advance(len(batch))
    return replace(work.finish(), has_clock=trace.metadata.clock != "none")


def bin_edges(count: int) -> NDArray[np.float64]:
    """Least value of each bin of the kernel's histograms, and what lies beyond the last."""
    from vmbk.kernels.updates import SUB_BITS

    bins = np.arange(count + 1, dtype=np.int64)
    octave = np.maximum((bins >> SUB_BITS) - 1, 0)
    steps = np.where(bins >> SUB_BITS > 0, (bins & ((1 << SUB_BITS) - 1)) + (1 << SUB_BITS), bins)
    edges: NDArray[np.float64] = np.ldexp(steps.astype(np.float64), octave)
    return edges


def _histogram(result: Updates, first: int, bins: int, unit: str, scale: int) -> pl.DataFrame:
    import polars as pl

    counts = result.totals[:, first : first + bins]
    counts = np.concatenate([counts, counts.sum(axis=0, keepdims=True)])
    ids = [v.id for v in result.volumes] + [None]
    row, bin = np.nonzero(counts)
    edges = bin_edges(bins) * scale
    return pl.DataFrame(
        {
            "volume": pl.Series([ids[i] for i in row.tolist()], dtype=pl.UInt32),
            f"from_{unit}": pl.Series(edges[bin], dtype=pl.Float64).cast(pl.Int64),
            f"to_{unit}": edges[bin + 1],
            "updates": counts[row, bin],
        }
    ).with_columns(
        (pl.col("updates").cum_sum() / pl.col("updates").sum()).over("volume").alias("share")
    )


def _up_to(counts: NDArray[np.int64], edges: NDArray[np.float64], limit: float) -> float:
    """How many values are at most ``limit``, taken as spread evenly within a bin.

    Values are whole, so that a bin up to an edge holds the values up to one less.
    """
    limit += 1
    reach = np.clip((limit - edges[:-1]) / (edges[1:] - edges[:-1]), 0, 1)
    return float((counts * reach).sum())


def _percentile(counts: NDArray[np.int64], edges: NDArray[np.float64], percent: int) -> float:
    """The value below which so many percent lie; NaN of nothing."""
    reached = np.cumsum(counts)
    if not reached[-1]:
        return np.nan
    wanted = reached[-1] * (percent / 100)
    bin = int(np.searchsorted(reached, wanted))
    before = reached[bin] - counts[bin]
    inside = (wanted - before) / counts[bin] * (edges[bin + 1] - 1 - edges[bin])
    return float(edges[bin] + inside)


def _coverage(result: Updates) -> pl.DataFrame:
    import polars as pl

    from vmbk.kernels.updates import BINS, BLOCK_WRITES, DISTANCES, INTERVALS, UNIQUE, UPDATED

    edges, block = bin_edges(BINS), result.block_size
    totals = np.concatenate([result.totals, result.totals.sum(axis=0, keepdims=True)])
    distances = totals[:, DISTANCES : DISTANCES + BINS]
    intervals = totals[:, INTERVALS : INTERVALS + BINS]
    updates = distances.sum(axis=1)
    columns = {
        "volume": pl.Series([v.id for v in result.volumes] + [None], dtype=pl.UInt32),
        "block_writes": pl.Series(totals[:, BLOCK_WRITES]),
        "updates": pl.Series(updates),
        "unique_bytes": pl.Series(totals[:, UNIQUE] * block),
        "updated_bytes": pl.Series(totals[:, UPDATED] * block),
    }
    for percent in WITHIN:
        within = [
            _up_to(counts, edges, unique * percent / 100)
            for counts, unique in zip(distances[:-1], totals[:-1, UNIQUE].tolist(), strict=True)
        ]
        columns[f"within_{percent}"] = pl.Series([*within, sum(within)], dtype=pl.Float64)
    for name, counts, scale in (("distance", distances, block), ("interval", intervals, 1e-9)):
        for percent in _PERCENTILES:
            known = result.has_clock or name == "distance"
            values = [_percentile(row, edges, percent) * scale if known else None for row in counts]
            columns[f"{name}_p{percent}"] = pl.Series(values, dtype=pl.Float64)
    shares = [pl.col(f"within_{percent}") / pl.col("updates") for percent in WITHIN]
    frame = pl.DataFrame(columns).with_columns(*shares)
    share = (pl.col("updated_bytes") / pl.col("unique_bytes")).alias("updated_share")
    frame = frame.with_columns(share)
    return frame.select(*frame.columns[:5], "updated_share", *frame.columns[5:-1]).fill_nan(None)
