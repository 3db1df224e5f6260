"""The working set: which blocks are read and written, how that grows, and where they lie.

Source of the definitions: Li, Wang, Lee, Xu: An In-Depth Analysis of Cloud Block Storage Workloads,
IISWC 2020 (working sets of reads, writes and updates; update coverage).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.trace.metrics.dirty import CHANGES, WRITES, checked_count
from vmbk.trace.metrics.leaves import Leaves, Places
from vmbk.trace.schema import Op, Volume
from vmbk.trace.table import checked_trace
from vmbk.units import parse_size

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace.table import Requests, Trace

_MOST_BLOCKS: Final = 1 << 34  # 64 TiB in blocks of 4 KiB, whose bits take 6 GiB
_MOST_REGIONS: Final = 1 << 24
_MOST_POINTS: Final = 100_000
_LEAST_REGION_BITS: Final = 6  # a word of blocks


class BlockPass:
    """Follows requests batch by batch; how they are cut into batches changes nothing.

    Parameters
    ----------
    volumes : sequence of Volume
    block_size : int
        Bytes: a power of two from 512 to 4 MiB.
    regions : int
        Most regions that a volume is divided into.
    discards : bool
        Whether discards and write_zeroes count as writes.

    Raises
    ------
    InputError
        If a value is outside its bounds.
    """

    def __init__(
        self,
        volumes: Iterable[Volume],
        *,
        block_size: int = 4096,
        regions: int = 1,
        discards: bool = False,
    ) -> None:
        from vmbk.kernels.requests import LEAF_BITS, LEAF_WORDS

        self._leaves = Leaves(
            volumes, block_size, leaf_bits=LEAF_BITS, words=LEAF_WORDS, most_blocks=_MOST_BLOCKS
        )
        self.volumes, self.block_size = self._leaves.volumes, block_size
        count = len(self.volumes)
        regions = checked_count(regions, _MOST_REGIONS, "regions")
        if regions * count > _MOST_REGIONS:
            raise InputError(
                f"{regions} regions of each of {count} volumes: at most {_MOST_REGIONS} of all "
                "volumes together are counted"
            )
        self._places = Places(self.volumes)
        self._mask = CHANGES if discards else WRITES
        bits, firsts, after = [], [], 0
        for volume in self.volumes:
            blocks = -(-volume.size // block_size)
            least = max((-(-blocks // regions) - 1).bit_length(), _LEAST_REGION_BITS)
            bits.append(least)
            firsts.append(after)
            after += -(-blocks // (1 << least))
        self.region_bits, self.first_region = (np.array(a, np.int64) for a in (bits, firsts))
        self._regions = np.zeros(3 * after, np.int64)
        self._totals = np.zeros(4 * count, np.int64)

    def add(self, batch: Requests) -> None:
        """Follow the next requests.

        Raises
        ------
        InputError
            If they touch too many blocks, as `working_set` says.
        """
        from vmbk.kernels.requests import touch_blocks

        leaves = self._leaves
        batch = self._places(batch)
        leaves.follow(
            batch, self._mask | 1 << Op.READ,
            lambda: touch_blocks(
                batch.op.view(np.uint8), batch.volume, batch.offset, batch.length,
                self._mask, leaves.shift, self.region_bits, self.first_region, leaves.bases,
                leaves.table, leaves.keys, leaves.words, self._totals, self._regions, leaves.state,
            ),
        )  # fmt: skip

    @property
    def totals(self) -> NDArray[np.int64]:
        """Blocks read, written, written again, and touched, each once; shape (volumes, 4)."""
        return self._totals.reshape(len(self.volumes), 4).copy()

    @property
    def regions(self) -> NDArray[np.int64]:
        """Block writes, writes and unique blocks of all volumes' regions; shape (regions, 3)."""
        return self._regions.reshape(-1, 3)


def working_set(
    trace: Trace, points: int = 200, block_size: str | int = "4KiB", *, discards: bool = False
) -> pl.DataFrame:
    """How the working sets of reads and of writes grow.

    Parameters
    ----------
    trace : Trace
    points : int
        How often they are looked at, at equal times from the first request to the last; where
        the trace has no clock, or no time goes by, after equal numbers of requests.
    block_size : str or int
        Bytes: a power of two from 512 B to 4 MiB.
    discards : bool
        Whether discards and write_zeroes count as writes.

    Returns
    -------
    polars.DataFrame
        A row per volume and point at which it has grown since the point before, and always the last
        point; then those over all volumes (``volume`` null):

        ================ ====== ==============================================================
        volume           u32    id of the volume, null for all together
        time_s           f64    s since the start of the trace, this moment included; 0 where it
                                has no clock
        requests         i64    requests of the trace up to then, of all volumes
        read_bytes       i64    bytes of the blocks read so far, each once
        write_bytes      i64    bytes of the blocks written so far, each once
        update_bytes     i64    bytes of the blocks written more than once so far
        total_bytes      i64    bytes of the blocks read or written so far
        update_coverage  f64    update bytes / total bytes; null where there are none
        ================ ====== ==============================================================

    Raises
    ------
    InputError
        If a value is outside its bounds, more than 2**26 leaves were touched, or there is no
        memory for them.

    Notes
    -----
    Leaves are made of 256 blocks that lie together, when one of them is first touched, and take 96
    bytes each and some 20 to 40 to be found: 2**26 of them hold 2**34 blocks (64 TiB at 4 KiB) that
    lie end to end, and 2**26 (256 GiB) that lie strewn.
    """
    checked_trace(trace)
    import polars as pl

    points = checked_count(points, _MOST_POINTS, "points")
    work = BlockPass(trace.volumes, block_size=parse_size(block_size), discards=discards)
    stops, times = _points(trace, points)
    rows: list[tuple[int, NDArray[np.intp], NDArray[np.int64]]] = []
    before = np.zeros((len(work.volumes) + 1, 4), np.int64)
    start = 0
    with progress("working set", len(trace), unit="requests") as advance:
        for number, stop in enumerate(stops):
            for batch in trace[start:stop].batches():
                work.add(batch)
                advance(len(batch))
            start = stop
            totals = work.totals
            totals = np.concatenate([totals, totals.sum(axis=0, keepdims=True)])
            grown = (totals != before).any(axis=1) | (number == len(stops) - 1)
            rows.append((number, np.flatnonzero(grown), totals[grown]))
            before = totals
    point = np.repeat([n for n, _, _ in rows], [len(places) for _, places, _ in rows])
    place = np.concatenate([places for _, places, _ in rows])
    blocks = np.concatenate([totals for _, _, totals in rows])
    order = np.lexsort((point, place))
    point, place, blocks = point[order], place[order], blocks[order] * work.block_size
    ids = [v.id for v in work.volumes] + [None]
    return pl.DataFrame(
        {
            "volume": pl.Series([ids[i] for i in place.tolist()], dtype=pl.UInt32),
            "time_s": np.array(times, np.float64)[point] / 1e9,
            "requests": np.array(stops, np.int64)[point],
            "read_bytes": blocks[:, 0],
            "write_bytes": blocks[:, 1],
            "update_bytes": blocks[:, 2],
            "total_bytes": blocks[:, 3],
        }
    ).with_columns(
        pl.when(pl.col("total_bytes") > 0)
        .then(pl.col("update_bytes") / pl.col("total_bytes"))
        .alias("update_coverage")
    )


def _points(trace: Trace, points: int) -> tuple[list[int], list[int]]:
    """After how many requests to look, and the times in ns of these points."""
    time_ns = trace.requests.time_ns
    clock = trace.metadata.clock != "none" and len(trace) > 0
    first, last = (int(time_ns[0]), int(time_ns[-1])) if clock else (0, 0)
    if first == last:
        return [(k + 1) * len(trace) // points for k in range(points)], [last] * points
    times = [first + (k + 1) * (last - first) // points for k in range(points)]
    return np.searchsorted(time_ns, times, side="right").tolist(), times


def spatial(
    trace: Trace, regions: int = 256, block_size: str | int = "4KiB", *, discards: bool = False
) -> pl.DataFrame:
    """Where on its volume a workload writes.

    Parameters
    ----------
    trace : Trace
    regions : int
        Most regions of a volume. They are equal, of a power of two of at least 64 blocks, and
        begin at the volume's start.
    block_size : str or int
        Bytes: a power of two from 512 B to 4 MiB.
    discards : bool
        Whether discards and write_zeroes count as writes.

    Returns
    -------
    polars.DataFrame
        A row per volume and region with writes. Volumes differ in the size of their regions, so
        there are no rows over all of them:

        =============== ====== ===============================================================
        volume          u32    id of the volume
        region          i64    number of the region
        offset          i64    bytes from the volume's start
        region_bytes    i64    its length
        writes          i64    requests that begin in it
        block_writes    i64    blocks that writes touched in it, each as often as it was
        unique_bytes    i64    bytes of these blocks, each once
        rewritten_bytes i64    bytes of these blocks, each as often as it was written again
        share           f64    of the volume's block writes, those in this region
        =============== ====== ===============================================================

    Raises
    ------
    InputError
        If a value is outside its bounds, more than 2**26 leaves were touched, or there is no
        memory for them. Leaves are those of `working_set`.
    """
    checked_trace(trace)
    import polars as pl

    work = BlockPass(
        trace.volumes, block_size=parse_size(block_size), regions=regions, discards=discards
    )
    with progress("spatial", len(trace), unit="requests") as advance:
        for batch in trace.batches():
            work.add(batch)
            advance(len(batch))
    found = work.regions
    at = np.flatnonzero(found[:, 0])
    place = np.searchsorted(work.first_region, at, side="right") - 1
    # A volume without a byte has no region, and shares its first number with the next one.
    ids = np.array([v.id for v in work.volumes], np.uint32)
    region = at - work.first_region[place]
    size = (1 << work.region_bits[place]) * work.block_size
    return pl.DataFrame(
        {
            "volume": ids[place],
            "region": region,
            "offset": region * size,
            "region_bytes": size,
            "writes": found[at, 1],
            "block_writes": found[at, 0],
            "unique_bytes": found[at, 2] * work.block_size,
            "rewritten_bytes": (found[at, 0] - found[at, 2]) * work.block_size,
        },
        schema_overrides={"volume": pl.UInt32},
    ).with_columns(
        (pl.col("block_writes") / pl.col("block_writes").sum()).over("volume").alias("share")
    )
