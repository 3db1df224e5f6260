"""One pass over a trace that measures what its writes change in every window."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.trace.schema import Op, Volume
from vmbk.units import format_size, quoted

if TYPE_CHECKING:
    from vmbk.trace.table import Requests

COARSEST: Final = 1 << 22
"""Bytes; the coarsest granularity."""

_LAST_NS: Final = (1 << 63) - 1
_MOST_LEAVES: Final = 1 << 24  # as many as a slot's number has bits for: 64 TiB written
_MOST_BYTES: Final = 4 << 30  # of bitmaps: at 4 KiB and above all leaves, at 512 B 8 TiB written
_MOST_PAGES: Final = 1 << 20  # 4 PiB in which something was written; 8 GiB
_FIRST_LEAVES: Final = 1 << 10
_FIRST_ROWS: Final = 1 << 8
_MOST_VOLUMES: Final = 1 << 20
_SHARED_ROWS: Final = 1 << 17  # fewer are not worth a second thread
_PROBE_ROWS: Final = 64  # enough to begin a window
_CURRENT, _UNTIL = 3, 4  # places of the kernel's state
_REGION: Final = 1 << 32  # bytes of a page of the directory
_PAGE_LEAVES: Final = 1 << 10
_FIRST_PAGES: Final = 8
_MOST_REGIONS: Final = 1 << 24  # 64 PiB

WRITES: Final = 1 << Op.WRITE
CHANGES: Final = WRITES | 1 << Op.WRITE_ZEROES | 1 << Op.DISCARD


class DirtyPass:
    """Follows requests batch by batch; how they are cut into batches changes nothing.

    Parameters
    ----------
    volumes : sequence of Volume
    window_ns : int or None
        ns of a window; None for one window over all.
    block_size : int
        Bytes: a power of two from 512 to 4 MiB.
    gap : int
        Bytes; extents of one window with no more between them count as one.
    discards : bool
        Whether discards and write_zeroes change blocks as well as writes.
    threads : int, optional
        Threads that share a window's requests; by default as many as there are processors.

    Raises
    ------
    InputError
        If a value is outside its bounds.
    """

    def __init__(
        self,
        volumes: Iterable[Volume],
        *,
        window_ns: int | None,
        block_size: int = 4096,
        gap: int = 0,
        discards: bool = False,
        threads: int | None = None,
    ) -> None:
        self.volumes = tuple(volumes)
        self.block_size = checked_block_size(block_size)
        if window_ns is not None and window_ns < 1:
            raise InputError(f"a window of {window_ns} ns: at least 1 ns is needed")
        if gap < 0:
            raise InputError(f"a gap of {gap} bytes is negative")
        if len(self.volumes) > _MOST_VOLUMES:
            raise InputError(f"{len(self.volumes)} volumes, at most {_MOST_VOLUMES} are measured")
        self.window_ns = _LAST_NS if window_ns is None else window_ns
        self._ids = np.array([v.id for v in self.volumes], np.uint32)
        self._dense = bool((self._ids == np.arange(len(self._ids))).all())
        self._mask = CHANGES if discards else WRITES
        self._shift = block_size.bit_length() - 1
        self._gap = gap // block_size
        self._words = max(COARSEST // block_size // 64, 1)
        self._most_leaves = min(_MOST_LEAVES, _MOST_BYTES // (16 * self._words))
        count = max(len(self.volumes), 1)
        regions = np.array([-(-v.size // _REGION) for v in self.volumes], np.int64)
        if int(regions.sum()) > _MOST_REGIONS:
            total = sum(v.size for v in self.volumes)
            raise InputError(
                f"volumes of {format_size(total)} in all are more than is measured in one pass, "
                f"{format_size(_MOST_REGIONS * _REGION)}",
                hint="measure a part of the volumes",
            )
        self._bases = np.concatenate([[0], np.cumsum(regions)[:-1]]).astype(np.int64)
        # Zeros that were never written take no memory: the system gives pages when they are.
        self._root = np.zeros(int(regions.sum()) + 1, np.int64)
        self._pages = np.zeros(_FIRST_PAGES * _PAGE_LEAVES, np.int64)
        self._keys, self._touched = (np.zeros(_FIRST_LEAVES, np.int64) for _ in range(2))
        self._bits, self._ever = (
            np.zeros(_FIRST_LEAVES * self._words, np.uint64) for _ in range(2)
        )
        self._written = np.zeros(3 * count, np.int64)
        self._run_counts, self._run_blocks = (np.zeros(64 * count, np.int64) for _ in range(2))
        self._out = np.zeros(0, np.int64)
        self._threads = threads if threads is not None else len(os.sched_getaffinity(0))
        self._helpers: list[DirtyPass] = []
        self._state = np.array([1, 1, 0, -1, 0, 0, 0, 1, 0], np.int64)
        if window_ns is None:
            self._state[[_CURRENT, _UNTIL]] = 0, _LAST_NS  # no time, however late, ends it
        self._grow_out(count)

    def add(self, batch: Requests) -> None:
        """Follow the next requests.

        Raises
        ------
        InputError
            If the writes touch more leaves of 4 MiB than 4 GiB hold the bitmaps of: 64 TiB in
            blocks of 4 KiB and above, 8 TiB in blocks of 512 B. Or if there is no memory for them.
        """
        volume = batch.volume
        if not self._dense:
            volume = np.searchsorted(self._ids, volume).astype(np.uint32)
            batch = replace(batch, volume=volume)
        row, probe = 0, _PROBE_ROWS
        while row < len(batch):
            until = row
            if self._state[_CURRENT] >= 0:
                until = int(np.searchsorted(batch.time_ns, self._state[_UNTIL], side="right"))
            if until - row >= _SHARED_ROWS and self._threads > 1:
                self._share(batch[row:until])
                row = until
            elif until > row:
                self._follow(batch[row:until])
                row = until
            else:
                # A window ends here. The next one may be short, and others after it.
                self._merge()
                before = int(self._state[_CURRENT])
                count = probe if self._window_of(batch, row) > _SHARED_ROWS else _SHARED_ROWS
                self._follow(batch[row : row + count])
                row += count
                # Without a write no window begins, and there may be many more rows like that.
                begun = int(self._state[_CURRENT]) != before
                probe = _PROBE_ROWS if begun else min(2 * probe, _SHARED_ROWS)

    def _window_of(self, batch: Requests, row: int) -> int:
        """How many rows of the batch belong to the window of this row, itself included."""
        time_ns = int(batch.time_ns[row])
        last = min(time_ns - time_ns % self.window_ns + self.window_ns - 1, _LAST_NS)
        return int(np.searchsorted(batch.time_ns, last, side="right")) - row

    def _follow(self, batch: Requests) -> None:
        from vmbk.kernels.churn import SLOTS, WANTED, WANTED_PAGES, churn_windows

        op, row = batch.op.view(np.uint8), 0
        while True:
            row = churn_windows(
                row, batch.time_ns, op, batch.volume, batch.offset, batch.length,
                self._mask, self.window_ns, self._shift, self._gap,
                self._bases, self._root, self._pages, self._keys, self._touched,
                self._bits, self._ever,
                self._written, self._run_counts, self._run_blocks, self._out, self._state,
            )  # fmt: skip
            if row == len(batch):
                if self._state[SLOTS] == len(self._keys) < self._most_leaves:
                    # With no slot free, every request would have to count what it lacks.
                    self._grow_leaves(len(self._keys) + 1, 0)
                return
            wanted = int(self._state[WANTED])
            if wanted:
                self._grow_leaves(wanted, int(self._state[WANTED_PAGES]))
            else:
                self._grow_out(len(self.volumes))

    def _share(self, batch: Requests) -> None:
        """Follow requests of the current window in several threads."""
        while len(self._helpers) < self._threads - 1:
            self._helpers.append(
                DirtyPass(
                    self.volumes, window_ns=None, block_size=self.block_size,
                    discards=bool(self._mask & 1 << Op.DISCARD), threads=1,
                )
            )  # fmt: skip
        share = -(-len(batch) // self._threads)
        with ThreadPoolExecutor(len(self._helpers)) as pool:
            futures = [
                pool.submit(helper._follow, batch[k * share : (k + 1) * share])
                for k, helper in enumerate(self._helpers, start=1)
            ]
            self._follow(batch[:share])
            for future in futures:
                future.result()

    def _merge(self) -> None:
        """Take over what the other threads saw of the current window."""
        from vmbk.kernels.churn import TOUCHED, merge_leaves

        for helper in self._helpers:
            touched = int(helper._state[TOUCHED])
            if not touched:
                continue
            self._grow_leaves(*self._with_leaves(helper._keys[helper._touched[:touched]]))
            merge_leaves(
                helper._keys, helper._touched, touched, helper._bits, self._shift,
                self._bases, self._root, self._pages,
                self._keys, self._touched, self._bits, self._state,
            )  # fmt: skip
            self._written += helper._written
            helper._written[:] = 0
            helper._forget_window()

    def _with_leaves(self, keys: NDArray[np.int64]) -> tuple[int, int]:
        """Slots and pages in use once there are leaves of these keys, no two of them the same."""
        from vmbk.kernels.churn import PAGE_BITS, PAGE_MASK, PAGES, SLOTS, VOLUME_SHIFT

        leaf = keys & ((1 << VOLUME_SHIFT) - 1)
        region = self._bases[keys >> VOLUME_SHIFT] + (leaf >> PAGE_BITS)
        page = self._root[region]
        there = self._pages[(page << PAGE_BITS) + (leaf & PAGE_MASK)] != 0  # page 0 has none
        pages = len(np.unique(region[page == 0]))
        slots = int(self._state[SLOTS]) + int((~there).sum())
        return slots, int(self._state[PAGES]) + pages

    def _forget_window(self) -> None:
        from vmbk.kernels.churn import STAMP, TOUCHED

        self._state[TOUCHED] = 0
        self._state[STAMP] += 1

    def finish(self) -> DirtyResult:
        """Measure the last window; no more requests may follow."""
        from vmbk.kernels.churn import FIELDS, ROWS, churn_finish

        self._merge()
        count = len(self.volumes)
        self._grow_out(count)
        churn_finish(
            self._keys, self._bits, self._ever, self._touched, self._shift, self._gap,
            self._written, self._run_counts, self._run_blocks, self._out, self._state,
        )  # fmt: skip
        return DirtyResult(
            self.volumes, self.window_ns, self.block_size,
            self._out[: int(self._state[ROWS]) * FIELDS].reshape(-1, FIELDS),
            self._run_counts.reshape(-1, 64), self._run_blocks.reshape(-1, 64),
        )  # fmt: skip

    def _grow_out(self, rows: int) -> None:
        from vmbk.kernels.churn import FIELDS

        more = max(rows, _FIRST_ROWS, len(self._out) // FIELDS) * FIELDS
        self._grow("_out", len(self._out) + more)

    def _grow_leaves(self, slots: int, pages: int) -> None:
        """Make room for so many leaves in all, and for so many pages."""
        if slots > self._most_leaves or pages > _MOST_PAGES:
            few = slots <= self._most_leaves
            most = _MOST_PAGES * _REGION if few else self._most_leaves * COARSEST
            raise InputError(
                f"the writes touch {'regions of 4 GiB' if few else 'regions of 4 MiB'} of more "
                f"than {format_size(most)} in all, which is more than is measured in one pass in "
                f"blocks of {format_size(self.block_size)}",
                hint="measure a part of the trace: trace[first:stop]",
            )
        if slots > len(self._keys):
            spare = slots // 16 + 1  # a table that is full at once would have to grow again
            capacity = min(max(slots + spare, 2 * len(self._keys)), self._most_leaves)
            for name, each in (("_keys", 1), ("_touched", 1),
                               ("_bits", self._words), ("_ever", self._words)):  # fmt: skip
                self._grow(name, capacity * each)
        if pages * _PAGE_LEAVES > len(self._pages):
            self._grow("_pages", max(2 * len(self._pages), pages * _PAGE_LEAVES))

    def _grow(self, name: str, size: int) -> None:
        old: NDArray[Any] = getattr(self, name)
        grown = zeros(size, old.dtype)
        grown[: len(old)] = old
        setattr(self, name, grown)


@dataclass(frozen=True)
class DirtyResult:
    """What a pass measured, as the rows that its kernel wrote.

    Parameters
    ----------
    volumes : tuple of Volume
    window_ns : int
    block_size : int
        Bytes.
    windows : ndarray of int64, shape (rows, FIELDS)
        A row for each window and volume with writes; fields as named in `vmbk.kernels.churn`.
    run_counts, run_blocks : ndarray of int64, shape (volumes, 64)
        Extents of all windows, and their blocks, by log2 of their length in blocks.
    """

    volumes: tuple[Volume, ...]
    window_ns: int
    block_size: int
    windows: NDArray[np.int64]
    run_counts: NDArray[np.int64]
    run_blocks: NDArray[np.int64]


def zeros(count: int, dtype: Any) -> NDArray[Any]:
    """Memory for what a pass keeps, zeros, which is not there until it is used.

    Raises
    ------
    InputError
        If the system has no more.
    """
    try:
        return np.zeros(count, dtype)
    except MemoryError:
        size = format_size(count * np.dtype(dtype).itemsize)
        raise InputError(
            f"there is no memory for all that the requests touch: {size} more cannot be had",
            hint="measure larger blocks, or a part of the trace: trace[first:stop]",
        ) from None


def checked_count(value: Any, most: int, what: str) -> int:
    """The value, if it is a whole number from 1 to ``most``.

    Raises
    ------
    InputError
        Quoting the value and what there would be so many of.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if not 1 <= count <= most:
        raise InputError(f"{quoted(value)} {what}: from 1 to {most} are allowed")
    return count


def checked_block_size(block_size: int) -> int:
    """The block size, if it is a power of two from 512 bytes to 4 MiB.

    Raises
    ------
    InputError
        If it is not.
    """
    if not 512 <= block_size <= COARSEST or block_size & (block_size - 1):
        raise InputError(
            f"a block size of {quoted(block_size)} bytes is not a power of two from 512 B to 4 MiB"
        )
    return block_size
