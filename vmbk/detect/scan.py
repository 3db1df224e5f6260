"""Read a disk once; hash its blocks, find zeros, and drill down, window by window.

The one place where detectors read. A window is read into a buffer that stays in the processor's
second-level cache while each block is hashed, tested for zeros, and, where it is not what the base
says, hashed again at sub-block level. Windows are shared out among threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.detect.changes import Digests
from vmbk.disk.base import Bytes, Ranges, ReadableDisk
from vmbk.disk.direct import aligned_buffer
from vmbk.units import MIB

WINDOW: Final = 4 * MIB
"""Bytes read at once. From the page cache into memory that begins on a page, 512 KiB took 1.4 to
1.9 times as long, although they stay in the L2 cache until they are hashed: every read costs a turn
of Python's lock."""

PIECE: Final = MIB
"""Bytes of the largest piece that is sent: at 1 MiB the cost per chunk is small and zstd compresses
well. No block is larger."""

OnData = Callable[[int, Bytes], None]
"""Takes the offset and the bytes of data that was found."""

KERNELS: Final = ("hash", "compare", "fused", "bitmap", "extents", "overlay")
"""Families of kernels that every job uses."""


def default_workers() -> int:
    """Threads to use: the processors this process may run on, at most 8."""
    return min(8, len(os.sched_getaffinity(0)))


def load_kernels() -> None:
    """Compile the kernels that every job uses, where the machine's cache lacks them.

    Called before anything is timed, so that a stage's time is its own. The first call on a machine
    compiles for some seconds, and shows a bar.
    """
    from vmbk.kernels.jit import DISABLED
    from vmbk.kernels.objects import compile_ahead

    if not DISABLED:
        compile_ahead(KERNELS)


def zero_digest(length: int) -> np.uint64:
    """XXH3-64 of ``length`` zero bytes."""
    from vmbk.kernels.hash import xxh3_64

    return np.uint64(xxh3_64(np.zeros(length, np.uint8)))


def zero_digests(size: int, unit: int) -> Digests:
    """XXH3-64 of every unit of a disk that is all zeros; the last unit may be short."""
    digests = np.full(-(-size // unit), zero_digest(unit), np.uint64)
    if size % unit:
        digests[-1] = zero_digest(size % unit)
    return digests


def align(ranges: Ranges, unit: int, size: int) -> Ranges:
    """Grow ranges to whole units and join those that meet; the last is clipped to the disk."""
    offsets, lengths = ranges
    if not len(offsets):
        return offsets, lengths
    first = offsets // unit
    last = -(-(offsets + lengths) // unit)
    starts_run = np.concatenate([[True], first[1:] > np.maximum.accumulate(last)[:-1]])
    run = np.flatnonzero(starts_run)
    begin = first[run] * unit
    end = np.minimum(np.maximum.reduceat(last, run) * unit, size)
    return begin, end - begin


def touched_units(ranges: Ranges, unit: int, size: int) -> NDArray[np.bool_]:
    """Which units of a disk the ranges touch.

    Returns
    -------
    ndarray of bool, shape (units,)
    """
    from vmbk.kernels.bitmap import mark_ranges

    units = -(-size // unit)
    bits = np.zeros((units + 7) // 8, np.uint8)
    mark_ranges(bits, ranges[0], ranges[1], unit)
    return np.unpackbits(bits, count=units, bitorder="little").view(bool)


def bitmap_ranges(bits: NDArray[np.uint8], unit: int, size: int, gap: int = 0) -> Ranges:
    """Coalesced extents of a bitmap with one bit per ``unit`` bytes of a disk."""
    from vmbk.kernels.extents import bitmap_to_extents, count_extents

    units, gap_units = -(-size // unit), gap // unit
    found = count_extents(bits, units, gap_units)
    offsets, lengths = np.empty(found, np.int64), np.empty(found, np.int64)
    bitmap_to_extents(bits, units, unit, gap_units, size, offsets, lengths)
    return offsets, lengths


def flag_ranges(flags: NDArray[np.bool_], unit: int, size: int, gap: int = 0) -> Ranges:
    """Coalesced extents of the units that are flagged."""
    return bitmap_ranges(np.packbits(flags, bitorder="little"), unit, size, gap)


def windows(ranges: Ranges, unit: int, window: int = WINDOW) -> Ranges:
    """Cut ranges that begin on units into pieces of at most ``window`` bytes, or one unit."""
    return split(ranges, max(window // unit, 1) * unit)


def split(ranges: Ranges, piece: int) -> Ranges:
    """Cut ranges at every multiple of ``piece`` bytes of the disk."""
    offsets, lengths = ranges
    first, last = offsets // piece, (offsets + lengths - 1) // piece
    pieces = last - first + 1
    owner = np.repeat(np.arange(len(offsets)), pieces)
    nth = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = np.maximum((first[owner] + nth) * piece, offsets[owner])
    end = np.minimum((first[owner] + nth + 1) * piece, (offsets + lengths)[owner])
    return begin.astype(np.int64), (end - begin).astype(np.int64)


def for_each(
    items: int,
    work: Callable[[int, Any], None],
    make_local: Callable[[], Any],
    workers: int,
    failed: threading.Event | None = None,
) -> None:
    """Call ``work(i, local)`` for every i below ``items``, shared out among threads.

    The first exception, or an interrupt, stops the others at their next item and is raised; the
    event ``failed`` is set then.
    """
    tickets, failed = count(), failed or threading.Event()
    errors: list[BaseException] = []  # in the order in which they happened

    def run() -> None:
        local = make_local()
        try:
            while (i := next(tickets)) < items and not failed.is_set():
                work(i, local)
        except BaseException as error:
            errors.append(error)
            failed.set()

    workers = max(1, min(workers, items))
    if workers == 1:
        run()
    else:
        with ThreadPoolExecutor(workers) as pool:
            try:
                wait([pool.submit(run) for _ in range(workers)])
            except BaseException:  # an interrupt reaches only this thread
                failed.set()
                raise
    if errors:
        raise errors[0]


@dataclass
class Scan:
    """Digests and zeros of the units that were read, filled in by `scan`."""

    digests: Digests
    """Block digests, shape (blocks,)."""
    sub_digests: Digests | None
    """Sub-block digests, shape (sub-blocks,), renewed where a block differs from the base."""
    zero: NDArray[np.uint8]
    """1 where a grain reads as zeros, shape (grains,)."""
    scanned_bytes: int = 0
    hashed_bytes: int = 0


def scan(
    disk: ReadableDisk,
    ranges: Ranges,
    units: tuple[int, int],
    state: Scan,
    base: Digests | None,
    *,
    workers: int | None = None,
    on_progress: Callable[[int], None] | None = None,
    on_data: OnData | None = None,
) -> None:
    """Read the ranges (whole blocks) and renew ``state`` for them.

    Parameters
    ----------
    disk : ReadableDisk
        What is read.
    ranges : offsets, lengths
        Whole blocks in bytes.
    units : (int, int)
        Bytes per block and per sub-block; 0 for the latter means no drill-down.
    state : Scan
        Arrays over the whole disk, renewed in place.
    base : ndarray of uint64 or None
        Block digests of the base; blocks that equal them are not hashed at sub-block level.
    on_data : callable, optional
        Called from many threads with the offset and the bytes of each run of grains that are not
        zero, cut at every multiple of `PIECE`. They are the very bytes that were digested, in a
        buffer that is used again.
    """
    from vmbk.kernels.fused import scan_blocks

    block, sub = units
    grain = sub or block
    nothing = np.empty(0, np.uint64)
    window = WINDOW if on_data is None else PIECE
    offsets, lengths = windows(ranges, block, window)
    lock = threading.Lock()

    def work(i: int, buffer: NDArray[np.uint8]) -> None:
        offset, length = int(offsets[i]), int(lengths[i])
        data = buffer[:length]
        assert len(data) == length
        disk.read_into(offset, data)
        first, last = offset // block, -(-(offset + length) // block)
        grains = slice(offset // grain, -(-(offset + length) // grain))
        drilled = scan_blocks(
            data,
            block,
            grain,
            nothing if base is None else base[first:last],
            state.digests[first:last],
            nothing if not sub or state.sub_digests is None else state.sub_digests[grains],
            state.zero[grains],
        )
        if on_data is not None:
            runs = flag_ranges(state.zero[grains] == 0, grain, length)
            for begin, size in zip(*(values.tolist() for values in runs), strict=True):
                on_data(offset + begin, data[begin : begin + size])
        with lock:
            state.scanned_bytes += length
            state.hashed_bytes += length + drilled
        if on_progress is not None:
            on_progress(length)

    for_each(
        len(offsets),
        work,
        lambda: aligned_buffer(max(window, block)),
        workers or default_workers(),
    )
