"""Churn, granularity, run lengths and dispersion: what each window's writes mean for a backup.

A *window* is the time between two incremental backups; windows are aligned at the trace's start,
and only those with writes have rows. A write changes every block that it touches. All of it comes
from one pass (`measure`); the four functions below it are for those who want one table.

Sources of the definitions: working set and rewrites, Li, Wang, Lee, Xu: An In-Depth Analysis of
Cloud Block Storage Workloads, IISWC 2020; index of dispersion (variance to mean of counts in equal
regions), Cox and Lewis: The Statistical Analysis of Series of Events, 1966.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.trace.metrics.dirty import COARSEST, DirtyPass, DirtyResult
from vmbk.trace.table import checked_trace
from vmbk.units import GIB, parse_duration, parse_size, quoted

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace.table import Trace

WHOLE: Final = "whole"
"""As a window: one over the whole trace."""

_BASE: Final = 4096  # bytes; amplification is over what changes in blocks of so many


@dataclass(frozen=True)
class Measured:
    """Everything that one pass measured; each table is made when it is asked for.

    Parameters
    ----------
    result : DirtyResult
    """

    result: DirtyResult

    @property
    def churn(self) -> pl.DataFrame:
        """As `churn` returns it."""
        return _churn(self.result)

    @property
    def granularity(self) -> pl.DataFrame:
        """As `granularity` returns it."""
        return _granularity(self.result)

    @property
    def run_lengths(self) -> pl.DataFrame:
        """As `run_lengths` returns it."""
        return _run_lengths(self.result)

    @property
    def dispersion(self) -> pl.DataFrame:
        """As `dispersion` returns it."""
        return _dispersion(self.result)

    def _repr_html_(self) -> str:
        return str(self.churn._repr_html_())


def measure(
    trace: Trace,
    window: str | float = "1h",
    block_size: str | int = "4KiB",
    *,
    gap: str | int = 0,
    discards: bool = False,
    threads: int | None = None,
) -> Measured:
    """Measure what writes change, in one pass over the trace.

    Parameters
    ----------
    trace : Trace
    window : str or float
        Time between two incrementals, such as ``1h``, or ``whole``; seconds as a number.
    block_size : str or int
        Bytes: a power of two from 512 B to 4 MiB.
    gap : str or int
        Bytes; changed runs with no more between them count as one extent, as a backup that reads
        across short gaps would take them.
    discards : bool
        Whether discards and write_zeroes change blocks as well as writes.
    threads : int, optional
        As many as there are processors by default.

    Raises
    ------
    InputError
        If a value is outside its bounds, more is written than is followed, or there is no memory
        for it.

    Notes
    -----
    Memory follows the regions of 4 MiB in which something is written: two bitmaps of each, which
    are 256 bytes at 4 KiB and 2 KiB at 512 B, and some 30 more to find it. There may be 4 GiB of
    bitmaps, and 2**24 regions: 64 TiB that are written end to end in blocks of 4 KiB and above,
    8 TiB in blocks of 512 B. While they grow there are up to three times as many bytes, and each
    further thread that shares a window has its own.
    """
    checked_trace(trace)
    window_ns = None if window == WHOLE else parse_duration(window)
    work = DirtyPass(
        trace.volumes,
        window_ns=window_ns,
        block_size=parse_size(block_size),
        gap=parse_size(gap),
        discards=discards,
        threads=threads,
    )
    with progress("measure", len(trace), unit="requests") as advance:
        for batch in trace.batches():
            work.add(batch)
            advance(len(batch))
    return Measured(work.finish())


def churn(
    trace: Trace,
    window: str | float = "1h",
    block_size: str | int = "4KiB",
    *,
    discards: bool = False,
) -> pl.DataFrame:
    """Churn per window: what an incremental backup at its end would find changed.

    Parameters
    ----------
    trace, window, block_size, discards
        As for `measure`.

    Returns
    -------
    polars.DataFrame
        A row per window and volume with writes, and one over all volumes (``volume`` null):

        ============== ====== ================================================================
        volume         u32    id of the volume, null for all together
        window         i64    number of the window
        start_s        f64    s since the start of the trace
        writes         i64    requests
        write_bytes    i64    bytes of their lengths
        block_writes   i64    blocks that they touched, each as often as it was
        unique_blocks  i64    blocks that they touched, each once
        unique_bytes   i64    bytes of these blocks
        new_bytes      i64    bytes of blocks never written in an earlier window
        wss_bytes      i64    bytes of all blocks written so far: the working set's growth
        rewrite_ratio  f64    block writes / unique blocks
        extents        i64    runs of changed blocks
        ============== ====== ================================================================
    """
    return measure(trace, window, block_size, discards=discards).churn


def granularity(
    trace: Trace,
    window: str | float = WHOLE,
    finest: str | int = 512,
    *,
    discards: bool = False,
) -> pl.DataFrame:
    """Amplification by granularity: what tracking changes in larger blocks would report.

    Parameters
    ----------
    trace, discards
        As for `measure`.
    window : str or float
        Changed blocks are counted per window and summed; ``whole`` counts over the whole trace.
    finest : str or int
        Bytes; the smallest block, a power of two from 512 B to 4 KiB.

    Returns
    -------
    polars.DataFrame
        A row per volume and block size, and one over all volumes (``volume`` null):

        ============== ====== ================================================================
        volume         u32    id of the volume, null for all together
        block_size     i64    bytes
        blocks         i64    changed blocks
        changed_bytes  i64    their bytes
        amplification  f64    changed bytes / changed bytes at 4 KiB, null where nothing changed
        ============== ====== ================================================================

        In the ``granularity`` of a `measure` in larger blocks than 4 KiB, which cannot tell what
        changed at 4 KiB, the amplification is null.

    Raises
    ------
    InputError
        As for `measure`, and if ``finest`` is more than 4 KiB.
    """
    size = parse_size(finest)
    if size > _BASE:
        raise InputError(
            f"finest is {quoted(finest)}: amplification is over what changes at 4 KiB, and cannot "
            "be told from larger blocks",
            hint="choose 4KiB or less; larger ones are in the table too",
        )
    return measure(trace, window, size, discards=discards).granularity


def run_lengths(
    trace: Trace,
    window: str | float = "1h",
    block_size: str | int = "4KiB",
    *,
    discards: bool = False,
) -> pl.DataFrame:
    """Lengths of contiguous changed runs, over all windows.

    Parameters
    ----------
    trace, window, block_size, discards
        As for `measure`.

    Returns
    -------
    polars.DataFrame
        A row per volume and power of two, and one over all volumes (``volume`` null):

        ============== ====== ================================================================
        volume         u32    id of the volume, null for all together
        from_bytes     i64    the runs are at least so long and shorter than twice that
        runs           i64    how many
        changed_bytes  i64    bytes of the changed blocks in them
        ============== ====== ================================================================

        Where runs with a gap between them count as one, its length counts what lies between
        them, and its changed bytes do not.
    """
    return measure(trace, window, block_size, discards=discards).run_lengths


def dispersion(
    trace: Trace,
    window: str | float = "1h",
    block_size: str | int = "4KiB",
    *,
    gap: str | int = 0,
    discards: bool = False,
) -> pl.DataFrame:
    """How far what changed lies apart: the price of reading and sending it.

    Parameters
    ----------
    trace, window, block_size, gap, discards
        As for `measure`.

    Returns
    -------
    polars.DataFrame
        A row per window and volume with writes, and one over all volumes (``volume`` null):

        ================== ====== ============================================================
        volume             u32    id of the volume, null for all together
        window             i64    number of the window
        start_s            f64    s since the start of the trace
        unique_bytes       i64    bytes changed
        extents            i64    contiguous changed runs: each is a seek and a request
        mean_extent_bytes  f64    unique bytes / extents
        extents_per_gib    f64    extents / GiB changed
        fragmentation      f64    extents / changed blocks: 1 where every one stands alone
        span_bytes         i64    bytes from the first changed block to the last, both included;
                                  over all volumes the sum of theirs
        regions            i64    4 MiB regions with a change
        region_fill        f64    unique bytes / bytes of these regions
        dispersion_index   f64    variance / mean of changed blocks per 4 MiB region of the span:
                                  1 for changes strewn at random, more where they cluster
        ================== ====== ============================================================

    Notes
    -----
    What each says of the price of a backup, which reads what changed and nothing else:

    - ``fragmentation`` is what reading costs besides bytes: seeks and requests, a changed block.
      At 1 each block costs one of its own; at 1/16 sixteen blocks share one. Defined here;
      ``extents_per_gib`` is the same for each byte.
    - ``region_fill`` is what reading neighbours together costs in bytes: a backup that reads or
      sends whole regions of 4 MiB handles 1 / region_fill bytes for each that changed, and
      1 - region_fill of them in vain. Defined here; see `granularity` for other sizes.
    - ``span_bytes`` is how far a reader travels over the volume from the first change to the last,
      and with that how much of a map of changes has to be looked at: span / 4 MiB regions, of
      which ``regions`` hold any. Defined here. Volumes are read one after another, so that
      over all of them it is a sum, and may be more than any one of them is long.
    - ``dispersion_index`` is the variance-to-mean ratio of Cox and Lewis (see the module), of
      counts in regions in place of intervals of time: high where a few regions hold most of what
      changed and large reads pay there, about 1 where they pay nowhere in particular. Over all
      volumes the regions of their spans are taken together.
    """
    return measure(trace, window, block_size, gap=gap, discards=discards).dispersion


def _rows(result: DirtyResult, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Any]:
    """Rows per volume and then per window over all volumes; and the volume of each, or null."""
    import polars as pl

    ids = np.array([v.id for v in result.volumes], np.uint32)
    numbers, place = np.unique(windows[:, 0], return_inverse=True)
    together = np.zeros((len(numbers), windows.shape[1]), np.int64)
    np.add.at(together, place, windows)
    together[:, 0] = numbers
    volume = pl.Series("volume", ids[windows[:, 1]], pl.UInt32)
    nothing = pl.Series("volume", [None] * len(numbers), pl.UInt32)
    return np.concatenate([windows, together]), pl.concat([volume, nothing])


def _churn(result: DirtyResult) -> pl.DataFrame:
    import polars as pl

    from vmbk.kernels.churn import BLOCK_WRITES, EXTENTS, NEW, UNIQUE, WINDOW, WRITE_BYTES, WRITES

    rows, volume = _rows(result, result.windows)
    frame = pl.DataFrame(
        {
            "volume": volume,
            "window": rows[:, WINDOW],
            "start_s": rows[:, WINDOW] * (result.window_ns / 1e9),
            "writes": rows[:, WRITES],
            "write_bytes": rows[:, WRITE_BYTES],
            "block_writes": rows[:, BLOCK_WRITES],
            "unique_blocks": rows[:, UNIQUE],
            "unique_bytes": rows[:, UNIQUE] * result.block_size,
            "new_bytes": rows[:, NEW] * result.block_size,
        }
    )
    return frame.with_columns(
        pl.col("new_bytes").cum_sum().over("volume").alias("wss_bytes"),
        (pl.col("block_writes") / pl.col("unique_blocks")).alias("rewrite_ratio"),
        pl.Series("extents", rows[:, EXTENTS]),
    )


def _granularity(result: DirtyResult) -> pl.DataFrame:
    import polars as pl

    from vmbk.kernels.churn import LEVELS, VOLUME

    sizes = [result.block_size << k for k in range((COARSEST // result.block_size).bit_length())]
    blocks = np.zeros((len(result.volumes) + 1, len(sizes)), np.int64)
    np.add.at(blocks, result.windows[:, VOLUME], result.windows[:, LEVELS : LEVELS + len(sizes)])
    blocks[-1] = blocks.sum(axis=0)
    ids = [v.id for v in result.volumes] + [None]
    frame = pl.DataFrame(
        {
            "volume": pl.Series([id for id in ids for _ in sizes], dtype=pl.UInt32),
            "block_size": pl.Series(sizes * len(ids), dtype=pl.Int64),
            "blocks": blocks.reshape(-1),
        }
    ).with_columns((pl.col("blocks") * pl.col("block_size")).alias("changed_bytes"))
    base = pl.col("changed_bytes").filter(pl.col("block_size") == _BASE)
    return frame.with_columns(
        (pl.col("changed_bytes") / base.first().over("volume"))
        .fill_nan(None)  # where nothing changed
        .alias("amplification")
    )


def _run_lengths(result: DirtyResult) -> pl.DataFrame:
    import polars as pl

    counts = np.concatenate([result.run_counts, result.run_counts.sum(axis=0)[None]])
    blocks = np.concatenate([result.run_blocks, result.run_blocks.sum(axis=0)[None]])
    ids = [v.id for v in result.volumes] + [None]
    if not result.volumes:
        counts, blocks = counts[-1:], blocks[-1:]
    row, bin = np.nonzero(counts)
    return pl.DataFrame(
        {
            "volume": pl.Series([ids[i] for i in row.tolist()], dtype=pl.UInt32),
            "from_bytes": (1 << bin.astype(np.int64)) * result.block_size,
            "runs": counts[row, bin],
            "changed_bytes": blocks[row, bin] * result.block_size,
        }
    )


def _dispersion(result: DirtyResult) -> pl.DataFrame:
    import polars as pl

    from vmbk.kernels.churn import EXTENTS, FIRST, LAST, LEAVES, SQUARES, UNIQUE, WINDOW

    windows = result.windows.copy()
    # From here on: blocks of the span, and its regions, which add up over volumes.
    per_region = COARSEST // result.block_size
    regions = windows[:, LAST] // per_region - windows[:, FIRST] // per_region + 1
    windows[:, LAST] = windows[:, LAST] - windows[:, FIRST] + 1
    windows[:, FIRST] = regions
    rows, volume = _rows(result, windows)
    unique, extents = rows[:, UNIQUE], rows[:, EXTENTS]
    mean = unique / rows[:, FIRST]
    variance = rows[:, SQUARES] / rows[:, FIRST] - mean**2
    return pl.DataFrame(
        {
            "volume": volume,
            "window": rows[:, WINDOW],
            "start_s": rows[:, WINDOW] * (result.window_ns / 1e9),
            "unique_bytes": unique * result.block_size,
            "extents": extents,
            "mean_extent_bytes": unique * result.block_size / extents,
            "extents_per_gib": extents / (unique * result.block_size / GIB),
            "fragmentation": extents / unique,
            "span_bytes": rows[:, LAST] * result.block_size,
            "regions": rows[:, LEAVES],
            "region_fill": unique / (rows[:, LEAVES] * per_region),
            "dispersion_index": variance / mean,
        }
    )
