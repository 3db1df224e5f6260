"""Snapshots: a disk as it was at one moment, while it is written on.

Copy on write: before a write reaches the disk, the 64 KiB blocks that it touches are copied into
the overlay of every snapshot that does not have them yet. The overlay is a sparse file without a
name, so nothing of it survives the process.

Locking. Writes, the start of a snapshot and its end hold the disk's write lock. Readers hold none:
a reader reads from the disk what was not preserved when it began, then looks again and reads from
the overlay whatever has been preserved by then. A block is marked as preserved after its copy is in
the overlay and before the write reaches the disk, so a block that is still unmarked after it was
read is as it was.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.disk.base import Bytes, Ranges, check_range
from vmbk.disk.imagefile import ImageFile, as_bytes
from vmbk.disk.opening import storage_error
from vmbk.disk.tracker import Tracker
from vmbk.display import key_values
from vmbk.errors import InputError, NotFoundError, StorageError
from vmbk.units import KIB, MIB, format_size

BLOCK: Final = 64 * KIB
"""Unit of preservation: larger writes more per first touch, smaller keeps more flags."""

_COPY: Final = MIB  # bytes moved at once


class Snapshot:
    """A disk as it was when `RawDisk.snapshot` was called; a `ReadableDisk`.

    Use it as a context manager, or call `delete`: as long as it lives, first writes cost a copy. It
    does not outlive its disk's ``close``.

    Attributes
    ----------
    name : str
        The disk's name.
    size : int
        Bytes.
    generation : int
        The generation of change tracking that this snapshot closed; 0 where the disk is not
        tracked.
    tracker_id : str
        The tracker's identity; "" where the disk is not tracked.
    """

    def __init__(
        self,
        name: str,
        size: int,
        base: ImageFile,
        overlay: ImageFile | None,
        lock: threading.RLock,
        forget: Callable[[Snapshot], None],
        tracker: Tracker | None,
        generation: int,
    ) -> None:
        self.name = name
        self.size = size
        self.generation = generation
        self.tracker_id = tracker.id if tracker is not None else ""
        self._base = base
        self._overlay = overlay
        self._preserved = np.zeros(-(-size // BLOCK) if overlay else 0, np.bool_)
        self._lock = lock
        self._forget = forget
        self._tracker = tracker
        self._deleted = False
        self._failure = ""

    @property
    def deleted(self) -> bool:
        """Whether it can no longer be read because it was deleted."""
        return self._deleted

    @property
    def preserved_bytes(self) -> int:
        """Bytes of the disk that were written since, rounded out to blocks of 64 KiB."""
        return min(int(np.count_nonzero(self._preserved)) * BLOCK, self.size)

    def read_into(self, offset: int, buffer: Bytes) -> None:
        """Fill the whole buffer with the bytes that were at ``offset``; safe in many threads.

        Raises
        ------
        OutOfRangeError
            If the range reaches past the end of the disk.
        NotFoundError
            If the snapshot was deleted.
        StorageError
            If the operating system refuses, or the overlay ran out of space earlier.
        """
        view = as_bytes(buffer)
        check_range(self, offset, len(view))
        with self._reading():
            if self._overlay is None or not len(view):
                self._base.read_into(offset, view)
                return
            first, stop = offset // BLOCK, (offset + len(view) - 1) // BLOCK + 1
            before = self._preserved[first:stop].copy()
            for run in _runs(~before, first):
                self._read_blocks(self._base, run, offset, view)
            after = self._preserved[first:stop].copy()
            self._check_valid()  # now: from here on only the overlay is read
            for run in _runs(after, first):
                self._read_blocks(self._overlay, run, offset, view)

    @staticmethod
    def _read_blocks(file: ImageFile, run: tuple[int, int], offset: int, view: memoryview) -> None:
        start = max(run[0] * BLOCK, offset)
        end = min(run[1] * BLOCK, offset + len(view))
        file.read_into(start, view[start - offset : end - offset])

    def data_extents(self) -> Ranges:
        """Extents outside of which every byte is zero.

        Raises
        ------
        NotFoundError, StorageError
            As for `read_into`.
        """
        with self._reading():
            # In this order: what leaves the disk after the first step is in the overlay by the
            # third.
            base = self._base.extents(0, self.size)
            if self._overlay is None:
                return base
            preserved = list(_runs(self._preserved.copy(), 0))
            self._check_valid()
            overlay = self._overlay.extents(0, self.size)
        runs = np.array(preserved, np.int64).reshape(-1, 2) * BLOCK
        return _overlaid(base, (runs[:, 0], runs[:, 1] - runs[:, 0]), overlay)

    def preserve(self, offset: int, length: int) -> None:
        """Copy what is about to be overwritten; only the disk calls this, under its write lock.

        Never raises: where the overlay cannot take the copy, the snapshot is given up and the write
        goes on.
        """
        if self._overlay is None or not length or self._failure:
            return
        first, stop = offset // BLOCK, (offset + length - 1) // BLOCK + 1
        missing = ~self._preserved[first:stop]
        if not missing.any():
            return
        try:
            for start, end in _runs(missing, first):
                # Holes need no copy: the overlay has holes there too.
                data = self._base.extents(start * BLOCK, min(end * BLOCK, self.size))
                for at, count in zip(data[0].tolist(), data[1].tolist(), strict=True):
                    self._copy(self._overlay, at, count)
                self._preserved[start:end] = True
        except (StorageError, MemoryError) as error:
            self._failure = str(error)
            self._forget(self)

    def _copy(self, overlay: ImageFile, offset: int, length: int) -> None:
        buffer = memoryview(bytearray(min(length, _COPY)))
        for start in range(offset, offset + length, _COPY):
            part = buffer[: min(_COPY, offset + length - start)]
            self._base.read_into(start, part)
            overlay.write(start, part)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Check that the snapshot stands, and say so where it is deleted under the reader.

        Whoever gives a snapshot up says so before anything that it lacks is overwritten. So what
        was read from the disk is right if the snapshot still stands after that.
        """
        self._check_valid()
        try:
            yield
        except InputError:  # the overlay was closed
            self._check_valid()
            raise

    def _check_valid(self) -> None:
        if self._deleted:
            raise NotFoundError(
                f"the snapshot of disk {self.name!r} was deleted", hint="take a new one"
            )
        if self._failure:
            raise StorageError(
                f"the snapshot of disk {self.name!r} is not valid any more: {self._failure}",
                hint="give snapshots a folder with more space: snapshot(folder=...)",
            )

    def delete(self, *, base: bool = False) -> None:
        """Free the snapshot's space; again, or after the disk was closed, without effect.

        Parameters
        ----------
        base : bool
            Whether no later backup will name this snapshot as its base, as when the service
            deletes its snapshots: the tracker then refuses to say what changed since. By default
            the snapshot's content is gone and tracking still knows the moment.
        """
        with self._lock:
            if self._deleted:
                return
            self._deleted = True
            self._forget(self)
            if self._overlay is not None:
                self._overlay.close()
            self._preserved = np.zeros(0, np.bool_)
            if base and self._tracker is not None and self.generation in self._tracker.bases:
                self._tracker.delete_snapshot(self.generation)

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.delete()

    def _state(self) -> str:
        if self._deleted:
            return "deleted"
        return "not valid" if self._failure else f"{format_size(self.preserved_bytes)} preserved"

    def __repr__(self) -> str:
        return f"Snapshot({self.name!r}, {format_size(self.size)}, {self._state()})"

    def _repr_html_(self) -> str:
        rows = {
            "size": format_size(self.size),
            "state": self._state(),
            "generation": self.generation or "not tracked",
        }
        return key_values(f"Snapshot of {self.name}", rows)


def open_overlay(folder: Path | None, size: int, label: str) -> ImageFile:
    """A sparse file without a name, of the disk's size.

    Raises
    ------
    StorageError
        If the operating system refuses.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, prefix="vmbk-snapshot-", buffering=0) as file:
            os.ftruncate(file.fileno(), size)
            return ImageFile(os.dup(file.fileno()), label)
    except OSError as error:
        where = "the temporary folder" if folder is None else repr(str(folder))
        raise storage_error(label, f"cannot be kept in {where}", error) from error


def _runs(flags: NDArray[np.bool_], first: int) -> Iterator[tuple[int, int]]:
    """Start and end of each run of set flags, the first of which belongs to block ``first``."""
    padded = np.zeros(len(flags) + 2, np.int8)
    padded[1:-1] = flags
    edges = np.flatnonzero(np.diff(padded)) + first
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _overlaid(base: Ranges, preserved: Ranges, overlay: Ranges) -> Ranges:
    """``base`` without ``preserved``, together with ``overlay``."""
    places, kinds, steps = [], [], []
    for kind, (offsets, lengths) in enumerate((base, preserved, overlay)):
        places += [offsets, offsets + lengths]
        kinds += [np.full(2 * len(offsets), kind)]
        steps += [np.repeat([1, -1], len(offsets))]
    place, kind_of, step = np.concatenate(places), np.concatenate(kinds), np.concatenate(steps)
    order = np.argsort(place, kind="stable")
    place = place[order]
    inside = [np.cumsum(np.where(kind_of == k, step, 0)[order]) > 0 for k in range(3)]
    holds = (inside[0] & ~inside[1]) | inside[2]
    # Of several edges at one place only the last tells what follows.
    last = np.append(place[1:] != place[:-1], True) if len(place) else np.zeros(0, np.bool_)
    place, holds = place[last], holds[last]
    changes = np.flatnonzero(np.diff(np.concatenate(([False], holds)).astype(np.int8)))
    starts, ends = place[changes[::2]], place[changes[1::2]]
    return starts.astype(np.int64), (ends - starts).astype(np.int64)
