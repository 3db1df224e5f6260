"""Change tracking with generations, as QEMU's dirty bitmaps and VMware's change ids have it.

A tracked image has a `Tracker`, kept in ``<image>.tracking``. Writes mark blocks in the bitmap of
the open generation, before they reach the image. A checkpoint, taken with a snapshot, closes that
generation and opens the next; the number it closed is remembered with the recovery point. What
changed since a base of generation g is the union of the bitmaps of all generations after g.

Tracking is believed only where nothing can have been missed. A session that writes first makes
the file say that it is not clean, and only a proper close makes it say that it is; the image's
signature then is kept, so that a write by anything else is noticed. Where trust is lost the
tracker takes a new id, and every base of the former id is refused with the reason. That loss
heals by itself: what is written from then on is marked, so the next checkpoint is a good base.
What signatures cannot tell, see `vmbk.disk.signature`, and writes by a program that ignores locks
while the image is open for writing here, are left to the spot check. Block devices are not tracked:
the times of their nodes do not tell writes through another node, a partition or a mount.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmbk.disk.at_rest import at_rest, load_state, new_state, sidecar_locked
from vmbk.disk.opening import is_block_device
from vmbk.disk.sidecar import Stored, save, sidecar_path
from vmbk.disk.signature import ImageSignature
from vmbk.disk.tracking_state import (
    GRANULARITY,
    MAX_GENERATIONS,
    Bitmap,
    Generation,
    Lost,
    State,
    TrackingLostError,
    check_granularity,
    delete_base,
    forget_before,
    start_over,
)
from vmbk.display import key_values
from vmbk.errors import InputError, OutOfRangeError
from vmbk.units import format_size

__all__ = ["GRANULARITY", "Bitmap", "Lost", "Tracker", "TrackingLostError"]


class Tracker:
    """What was written to an image since each of its checkpoints; safe to use from many threads.

    `create` and `load` give the tracker of an image at rest: it answers, takes checkpoints and
    saves them at once. A disk opened for writing has its own, ``disk.tracker``, which marks too.
    """

    def __init__(
        self,
        image: Path,
        state: State,
        signature: ImageSignature,
        *,
        signature_now: Callable[[], ImageSignature] | None = None,
        lock: threading.RLock | None = None,
    ) -> None:
        self._image = image
        self._path = sidecar_path(image)
        self._state = state
        self._loaded = signature  # of the image when the state was last known to be true
        self._signature_now = signature_now  # only the one who writes has it
        self._lock = lock or threading.RLock()
        self._begun = False  # whether the sidecar says that it is not clean
        self._closed = False

    @classmethod
    def create(
        cls, image: str | os.PathLike[str], size: int, granularity: int = GRANULARITY
    ) -> Tracker:
        """Start tracking an image at rest.

        Parameters
        ----------
        image : path
            Symbolic links are followed.
        size : int
            Bytes; what the image really has.
        granularity : int
            Bytes per block of the bitmaps; a power of two from 4 KiB to 64 MiB.

        Raises
        ------
        InputError
            If the granularity or the size is wrong, the image is tracked already, or it is a
            block device.
        NotFoundError, StorageError
            If the image does not exist or the operating system refuses.
        BusyError
            If the image is open for writing.
        """
        path = Path(image).resolve()
        check_granularity(granularity)
        with at_rest(path) as signature:
            if signature.size != size:
                raise InputError(f"{str(path)!r} has {signature.size} bytes, not {size}")
            state = new_state(path, size, granularity)
            save(sidecar_path(path), Stored(state, True, signature), like=path)
        return cls(path, state, signature)

    @classmethod
    def load(cls, image: str | os.PathLike[str], *, lock: threading.RLock | None = None) -> Tracker:
        """The tracker of an image at rest.

        Where it cannot be trusted any more, it starts over in memory, and ``last_loss`` says why.

        Parameters
        ----------
        image : path
            Symbolic links are followed.
        lock : RLock, optional
            Held while the tracker is asked or changed; one of its own by default.

        Raises
        ------
        TrackingLostError
            If the image is not tracked.
        NotFoundError, StorageError
            If the image does not exist or the operating system refuses.
        """
        path = Path(image).resolve()
        if is_block_device(path):
            raise TrackingLostError(Lost.NO_TRACKER, f"{str(path)!r} is a block device")
        with at_rest(path, lock=False) as signature:
            return cls(path, load_state(path, signature), signature, lock=lock)

    @classmethod
    def attach(
        cls,
        image: Path,
        signature_now: Callable[[], ImageSignature],
        lock: threading.RLock,
    ) -> Tracker:
        """The tracker for a disk that holds the image exclusively, to write it.

        Parameters
        ----------
        image : Path
            Resolved.
        signature_now : callable
            Gives the signature of the open image, see `vmbk.disk.signature.trusted_signature`.
        lock : RLock
            The disk's write lock: a mark and its write belong to one generation.

        Raises
        ------
        TrackingLostError
            If the image is not tracked.
        """
        signature = signature_now()
        state = load_state(image, signature)
        return cls(image, state, signature, signature_now=signature_now, lock=lock)

    # What it knows

    @property
    def id(self) -> str:
        """The tracker's identity; bases of another identity are refused."""
        return self._state.id

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self._state.size

    @property
    def granularity(self) -> int:
        """Bytes per block of the bitmaps."""
        return self._state.granularity

    @property
    def generation(self) -> int:
        """The open generation: the number that the next checkpoint will close."""
        return self._state.generation

    @property
    def bases(self) -> tuple[int, ...]:
        """Closed generations that `changed_since` accepts."""
        with self._lock:
            return self._state.bases

    @property
    def last_loss(self) -> Lost | None:
        """Why this tracker last started over under a new id; None where it never did."""
        return self._state.losses[-1][1] if self._state.losses else None

    def verify_base(self, tracker_id: str, generation: int, size: int) -> None:
        """Check that tracking is complete since a base.

        Parameters
        ----------
        tracker_id : str
            The tracker's id when the base was taken.
        generation : int
            The generation that its snapshot closed.
        size : int
            Bytes of the disk then.

        Raises
        ------
        TrackingLostError
            If it is not, with the reason.
        """
        with self._lock:
            state = self._state
            state.check_id(tracker_id)
            if size != state.size:
                raise TrackingLostError(
                    Lost.SIZE_CHANGED, f"the base has {size} bytes, the disk {state.size}"
                )
            state.check_base(generation)

    def changed_since(
        self, generation: int, until: int | None = None, *, tracker_id: str | None = None
    ) -> Bitmap:
        """Blocks written after a base was taken.

        Parameters
        ----------
        generation : int
            The generation that the base's snapshot closed.
        until : int, optional
            The generation that a later snapshot closed: writes after it are left out. Without it
            everything up to now is reported.
        tracker_id : str, optional
            The tracker's id when the base was taken, to be sure that it did not start over since
            `verify_base` was asked.

        Raises
        ------
        TrackingLostError
            If the base was deleted, forgotten, is not known, or is one of another tracker.
        InputError
            If ``until`` is not a closed generation, or lies before the base.
        """
        with self._lock:
            if tracker_id is not None:
                self._state.check_id(tracker_id)
            return self._state.changed_since(generation, until)

    # What changes it

    def mark(self, offset: int, length: int) -> None:
        """Note a write that is about to happen.

        Parameters
        ----------
        offset, length : int
            Bytes, within the image.

        Raises
        ------
        InputError
            If the image is not open for writing.
        StorageError
            If it cannot be noted durably that tracking is under way; do not write then.
        """
        from vmbk.kernels.bitmap import mark_range

        with self._lock:
            state = self._writable_state()
            if offset < 0 or length < 0 or length > state.size - offset:
                raise self._outside(offset, length)
            mark_range(state.generations[-1].bits, offset, length, state.granularity)

    def mark_many(self, offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Note many writes that are about to happen, as `mark` does.

        Parameters
        ----------
        offsets, lengths : ndarray of int64, shape (n,)
            Bytes, within the image.
        """
        from vmbk.kernels.bitmap import mark_ranges

        with self._lock:
            state = self._writable_state()
            outside = (offsets < 0) | (lengths < 0) | (lengths > state.size - offsets)
            if outside.any():
                at = int(np.argmax(outside))
                raise self._outside(int(offsets[at]), int(lengths[at]))
            mark_ranges(state.generations[-1].bits, offsets, lengths, state.granularity)

    def _outside(self, offset: int, length: int) -> OutOfRangeError:
        return OutOfRangeError(
            f"a mark of {length} bytes at offset {offset} reaches outside the image of "
            f"{self.size} bytes"
        )

    def checkpoint(self) -> int:
        """Close the open generation, and open the next.

        Of a disk that is being written, take a snapshot instead, which does both at one moment.

        Returns
        -------
        int
            The closed generation: the base to ask about later.

        Raises
        ------
        BusyError
            If the image is at rest here and another process has opened it for writing.
        StorageError
            If the checkpoint cannot be saved.
        """
        with self._transaction() as state:
            closed = state.generation
            state.generations.append(Generation(closed + 1, state.blank()))
            if len(state.generations) > MAX_GENERATIONS + 1:
                forget_before(state, state.generations[1].number)
            return closed

    def delete_snapshot(self, generation: int) -> None:
        """Refuse a base from now on because its snapshot was deleted.

        What was written during its generation still counts for older bases.

        Raises
        ------
        InputError
            If there is no such base.
        """
        with self._transaction() as state:
            delete_base(state, generation)

    def forget_before(self, generation: int) -> None:
        """Refuse every base older than a base, and drop their bitmaps.

        Raises
        ------
        InputError
            If the generation is not one of ``bases``.
        """
        with self._transaction() as state:
            state.place_of_base(generation)
            forget_before(state, generation)

    def reset(self) -> None:
        """Start over after tracking was found wrong.

        Every base older than the latest checkpoint is refused from now on and the bitmaps before
        it are dropped. The latest checkpoint stays a base, because what was written since is
        still marked: a point whose content was read in full at that snapshot may name it.
        """
        with self._transaction() as state:
            forget_before(state, self.bases[-1] if self.bases else state.generation)

    # Persistence

    @contextmanager
    def _transaction(self) -> Iterator[State]:
        """The state, to be changed; saved where a reader could otherwise miss the change."""
        with self._lock:
            if self._signature_now is not None:
                self._check_open()
                self._notice_foreign_write()
                yield self._state
                # While the sidecar says that it is not clean, a kill makes the next session start
                # over under a new id, so nothing that happened in between can be taken for valid.
                if not self._begun:
                    self._save(clean=True, signature=self._loaded)
                return
            with at_rest(self._image) as signature, sidecar_locked(self._path):
                self._state = load_state(self._image, signature)
                self._loaded = signature
                yield self._state
                self._save(clean=True, signature=signature)

    def _check_open(self) -> None:
        if self._closed:
            raise InputError(f"the disk {str(self._image)!r} is closed")

    def _notice_foreign_write(self) -> None:
        """Start over where the image changed since it was opened and before we wrote to it."""
        if self._begun or self._signature_now is None:
            return
        now = self._signature_now()
        if not now.same_content(self._loaded):
            self._state = start_over(self._state, Lost.FOREIGN_WRITE, self._state.size)
            self._loaded = now

    def _writable_state(self) -> State:
        """The state, to be marked, once the sidecar says that it is not clean."""
        if not self._begun:
            if self._signature_now is None:
                raise InputError(
                    f"the tracker of {str(self._image)!r} only reads",
                    hint="open the disk with mode 'rw' and use its tracker",
                )
            self._check_open()
            self._notice_foreign_write()
            self._save(clean=False, signature=self._loaded)
            self._begun = True
        return self._state

    def _save(self, *, clean: bool, signature: ImageSignature) -> None:
        save(self._path, Stored(self._state, clean, signature), like=self._image)

    def close(self, make_durable: Callable[[], None]) -> None:
        """Save the marks of a session that wrote; called by the disk when it is closed.

        Parameters
        ----------
        make_durable : callable
            Flushes the image and its times.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._begun and self._signature_now is not None:
                make_durable()
                self._save(clean=True, signature=self._signature_now())
                self._begun = False

    def __repr__(self) -> str:
        return (
            f"Tracker({self._image.name!r}, {format_size(self.size)}, blocks of "
            f"{format_size(self.granularity)}, generation {self.generation})"
        )

    def _repr_html_(self) -> str:
        rows = {
            "size": format_size(self.size),
            "granularity": format_size(self.granularity),
            "open generation": self.generation,
            "bases": ", ".join(map(str, self.bases)),
            "last loss": self.last_loss.value if self.last_loss else "none",
        }
        return key_values(f"Change tracking of {self._image.name}", rows)
