"""Raw disks: an image file or a block device, byte for byte."""

from __future__ import annotations

import os
import stat
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vmbk.disk.at_rest import new_state, untrackable
from vmbk.disk.base import Bytes, Ranges, check_range
from vmbk.disk.imagefile import ImageFile, as_bytes
from vmbk.disk.opening import lock_image, open_image, storage_error
from vmbk.disk.sidecar import Stored, save, sidecar_path
from vmbk.disk.signature import ImageSignature, signature_of
from vmbk.disk.snapshot import Snapshot, open_overlay
from vmbk.disk.tracker import Tracker
from vmbk.disk.tracking_state import GRANULARITY, TrackingLostError, check_granularity
from vmbk.display import key_values
from vmbk.errors import InputError, NotFoundError, OutOfRangeError
from vmbk.units import format_size

__all__ = ["ImageSignature", "RawDisk"]


class RawDisk:
    """A raw image or a block device as a `Disk`.

    Reads hold no lock and may run beside a write; like those of a real disk they may then see part
    of it. Writes, zeroing and the start of a snapshot exclude each other.

    An image with a tracker (``<image>.tracking``) that is opened for writing is tracked: blocks are
    marked before they are written. Close it properly: tracking is not believed after a session that
    wrote and did not close. A block device is never tracked, see `vmbk.disk.tracker`.

    Parameters
    ----------
    path : path
        Image file or block device; symbolic links are followed.
    mode : str
        ``"r"`` locks it against writers, ``"rw"`` against everybody. A block device is claimed
        in both modes: it must not be mounted, and one opens it at a time.
    name : str, optional
        Name of the disk within its VM; the file's stem by default.

    Attributes
    ----------
    name : str
    size : int
        Bytes.
    path : Path
        With symbolic links resolved.
    mode : str
    is_block_device : bool

    Raises
    ------
    NotFoundError
        If there is no such file.
    InputError
        If it is neither a regular file nor a block device, is empty, or the mode is unknown.
    BusyError
        If somebody has it open in a way that excludes this one.
    StorageError
        If the operating system refuses.
    """

    def __init__(
        self, path: str | os.PathLike[str], mode: Literal["r", "rw"] = "r", name: str | None = None
    ) -> None:
        if mode not in ("r", "rw"):
            raise InputError(f"mode {mode!r} is unknown", hint="open a disk with 'r' or 'rw'")
        self.path = _resolve(path)
        self.mode = mode
        self.name = name if name is not None else self.path.stem
        self._label = f"disk {self.name!r}"
        fd = open_image(self.path, os.O_RDWR if mode == "rw" else os.O_RDONLY)
        try:
            lock_image(fd, self._label, exclusive=mode == "rw")
            self.is_block_device = stat.S_ISBLK(os.fstat(fd).st_mode)
            self.size = signature_of(fd).size
            if not self.size:
                raise InputError(f"{str(self.path)!r} is empty: a disk has at least one byte")
        except BaseException:
            os.close(fd)
            raise
        self._file = ImageFile(fd, self._label)
        # Forgotten by its user: the descriptor and the lock go, and tracking stays unclean.
        self._forgotten = weakref.finalize(self, self._file.close)
        self._lock = threading.RLock()
        self._snapshots: tuple[Snapshot, ...] = ()
        self._closed = False
        self._tracker: Tracker | None = None
        if mode == "rw":
            try:
                self._tracker = self._load_tracker()
            except BaseException:
                self._file.close()
                raise

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        size: int,
        *,
        exist_ok: bool = False,
        name: str | None = None,
        direct: bool = False,
    ) -> RawDisk:
        """Make a sparse image of zeros and open it for writing.

        Parameters
        ----------
        path : path
        size : int
            Bytes, at least 1.
        exist_ok : bool
            Open an image that is there already and has this size. It keeps its content; call
            ``zero(0, size)`` where zeros are needed.
        name : str, optional
            As for the class.
        direct : bool
            Move what is large past the page cache, from memory of `vmbk.disk.direct`, where the
            file system can: for an image that is written once and not read soon.

        Raises
        ------
        InputError
            If the size is not positive, or a file is there that may not be used.
        NotFoundError
            If the folder does not exist.
        StorageError
            If the operating system refuses.
        """
        if not 0 < size < 1 << 63:
            raise InputError(f"a disk of {size} bytes: at least 1 and less than 2^63 are possible")
        target = _resolve(path)
        label = f"disk image {str(target)!r}"
        try:
            fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError as error:
            if not exist_ok:
                raise InputError(
                    f"{str(target)!r} exists", hint="remove it, or choose another name"
                ) from error
            disk = cls(target, "rw", name)
            if disk.size != size:
                disk.close()
                raise InputError(
                    f"{str(target)!r} exists and has {disk.size} bytes, not {size}",
                    hint="remove it, or choose another name",
                ) from error
            return disk
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no folder {str(target.parent)!r}") from error
        except OSError as error:
            raise storage_error(label, "cannot be made", error) from error
        try:
            os.ftruncate(fd, size)
            # Left over from another image of this name; it says nothing about this one.
            if os.path.lexists(sidecar_path(target)):
                sidecar_path(target).unlink()
        except OSError as error:
            target.unlink()
            raise storage_error(label, f"cannot have {size} bytes", error) from error
        finally:
            os.close(fd)
        disk = cls(target, "rw", name)
        if direct:
            disk._file.open_direct(os.O_RDWR)
        return disk

    # Reading

    def read_into(self, offset: int, buffer: Bytes) -> None:
        """Fill the whole buffer with the bytes at ``offset``; safe to call from many threads.

        Raises
        ------
        OutOfRangeError
            If the range reaches past the end of the disk.
        InputError
            If the disk is closed, or the buffer is not contiguous or not writable.
        StorageError
            If the operating system refuses, or the image has become shorter.
        """
        view = as_bytes(buffer)
        check_range(self, offset, len(view))
        self._file.read_into(offset, view)

    def data_extents(self) -> Ranges:
        """Extents outside of which every byte is zero; everything where holes are not known.

        Returns
        -------
        offsets, lengths : ndarray of int64
            Bytes, sorted and disjoint.
        """
        return self._file.extents(0, self.size)

    def signature(self) -> ImageSignature:
        """What tells whether the image was written in between, by anybody.

        What was written so far is written back first, see
        `vmbk.disk.signature.trusted_signature`. Of a block device it tells nothing.

        Raises
        ------
        InputError
            If the disk is closed.
        StorageError
            If what was written cannot be written back.
        """
        return self._file.signature()

    # Writing

    def write(self, offset: int, data: Bytes | bytes | memoryview) -> None:
        """Write all of ``data`` at ``offset``; safe to call from many threads.

        Raises
        ------
        OutOfRangeError
            If the range reaches past the end of the disk; nothing is written.
        InputError
            If the disk is closed or open for reading only, or the data is not contiguous.
        StorageError
            If the operating system refuses, such as for lack of space.
        """
        view = as_bytes(data)
        self._check_writable()
        check_range(self, offset, len(view))
        if len(view):
            with self._lock:
                self._before_change(offset, len(view))
                self._file.write(offset, view)

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, as a hole where the file system has holes.

        Raises
        ------
        OutOfRangeError, InputError, StorageError
            As for `write`.
        """
        self._check_writable()
        check_range(self, offset, length)
        if length:
            with self._lock:
                self._before_change(offset, length)
                self._file.zero(offset, length)

    def write_batch(
        self,
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
        data: Bytes,
        starts: NDArray[np.int64],
    ) -> None:
        """Apply many writes in order, without a snapshot coming in between.

        Neighbours that continue each other, on the disk and in ``data``, become one write.

        Parameters
        ----------
        offsets, lengths : ndarray of int64, shape (n,)
            Where to write, in bytes.
        data : ndarray of uint8
            What to write: of write i ``data[starts[i]:starts[i] + lengths[i]]``.
        starts : ndarray of int64, shape (n,)
            Negative where the range is to be zeroed instead.

        Raises
        ------
        OutOfRangeError
            If a range reaches past the end of the disk or of the data; nothing is written.
        InputError, StorageError
            As for `write`; writes before the one that failed were done.
        """
        self._check_writable()
        wanted = lengths != 0
        if not wanted.all():
            offsets, lengths, starts = offsets[wanted], lengths[wanted], starts[wanted]
        if not len(offsets):
            return
        # Compared by subtraction: a sum may not fit in 63 bits.
        outside = (offsets < 0) | (lengths < 0) | (lengths > self.size - offsets)
        if outside.any():
            at = int(np.argmax(outside))
            check_range(self, int(offsets[at]), int(lengths[at]))
        if ((starts >= 0) & (lengths > len(data) - starts)).any():
            raise OutOfRangeError(f"a write reaches past the {len(data)} bytes of its data")
        zeroes = starts < 0
        joined = offsets[1:] == offsets[:-1] + lengths[:-1]
        joined &= np.where(
            zeroes[1:], zeroes[:-1], ~zeroes[:-1] & (starts[1:] == starts[:-1] + lengths[:-1])
        )
        first = np.flatnonzero(np.concatenate(([True], ~joined)))
        totals = np.add.reduceat(lengths, first).tolist()
        view = as_bytes(data)
        with self._lock:
            self._check_writable()
            if self._tracker is not None:
                self._tracker.mark_many(offsets, lengths)
            # One system call each is what the operating system offers; all else was done above.
            for offset, total, start in zip(
                offsets[first].tolist(), totals, starts[first].tolist(), strict=True
            ):
                for snapshot in self._snapshots:
                    snapshot.preserve(offset, total)
                if start < 0:
                    self._file.zero(offset, total)
                else:
                    self._file.write(offset, view[start : start + total])

    def _check_writable(self) -> None:
        if self._closed:
            raise InputError(f"{self._label} is closed")
        if self.mode != "rw":
            raise InputError(
                f"{self._label} is open for reading only", hint="open it with mode 'rw'"
            )

    def _before_change(self, offset: int, length: int) -> None:
        """What must precede a write, under the write lock: the mark, then the old content."""
        self._check_writable()
        if self._tracker is not None:
            self._tracker.mark(offset, length)
        for snapshot in self._snapshots:
            snapshot.preserve(offset, length)

    def flush(self) -> None:
        """Make everything written so far durable.

        Raises
        ------
        StorageError
            If the operating system refuses: writes since the last flush may be lost.
        """
        self._file.flush()

    # Tracking and snapshots

    @property
    def tracker(self) -> Tracker | None:
        """The image's change tracking, or None where it is not tracked."""
        if self._tracker is None and self.mode == "r":
            self._tracker = self._load_tracker()
        return self._tracker

    def _load_tracker(self) -> Tracker | None:
        if self.is_block_device or not os.path.lexists(sidecar_path(self.path)):
            return None
        try:
            if self.mode == "r":
                return Tracker.load(self.path, lock=self._lock)
            return Tracker.attach(self.path, self.signature, self._lock)
        except TrackingLostError:  # removed this very moment
            return None

    def start_tracking(self, granularity: int = GRANULARITY) -> Tracker:
        """Track what is written from now on, in this session and later ones.

        Parameters
        ----------
        granularity : int
            Bytes per block of the bitmaps; a power of two from 4 KiB to 64 MiB.

        Raises
        ------
        InputError
            If the disk is tracked already, closed or a block device, or the granularity is wrong.
        StorageError
            If the tracker cannot be saved beside the image.
        """
        check_granularity(granularity)
        if self.is_block_device:
            raise untrackable(self.path)
        with self._lock:
            if self.mode == "r":
                Tracker.create(self.path, self.size, granularity)
                self._tracker = Tracker.load(self.path, lock=self._lock)
                return self._tracker
            self._check_writable()
            state = new_state(self.path, self.size, granularity)
            stored = Stored(state, True, self.signature())
            save(sidecar_path(self.path), stored, like=self.path)
            self._tracker = Tracker.attach(self.path, self.signature, self._lock)
            return self._tracker

    def snapshot(self, folder: str | os.PathLike[str] | None = None) -> Snapshot:
        """The disk as it is now, to be read while it is written on.

        Of a tracked disk this is a checkpoint too, at the same moment: the snapshot's
        ``generation`` is the base to ask the tracker about later. Of a disk that is open for
        reading only, nothing needs to be preserved.

        Parameters
        ----------
        folder : path, optional
            Where the overlay goes; it needs as much space as is overwritten while the snapshot
            lives. The system's temporary folder by default.

        Raises
        ------
        InputError
            If the disk is closed.
        StorageError
            If the overlay or the checkpoint cannot be made.
        """
        with self._lock:
            if self._closed:
                raise InputError(f"{self._label} is closed")
            overlay = None
            if self.mode == "rw":
                where = None if folder is None else Path(folder)
                overlay = open_overlay(where, self.size, f"the snapshot of {self._label}")
            try:
                tracker, generation = self.tracker, 0
                if tracker is not None:
                    try:
                        generation = tracker.checkpoint()
                    except TrackingLostError:  # the tracker's file was removed
                        tracker = self._tracker = None
            except BaseException:
                if overlay is not None:
                    overlay.close()
                raise
            snapshot = Snapshot(
                self.name, self.size, self._file, overlay, self._lock,
                self._forget_snapshot, tracker, generation,
            )  # fmt: skip
            self._snapshots = (*self._snapshots, snapshot)
            return snapshot

    def _forget_snapshot(self, gone: Snapshot) -> None:
        self._snapshots = tuple(s for s in self._snapshots if s is not gone)

    # Life

    def close(self) -> None:
        """Delete the snapshots, save the tracking, release the disk; again without effect.

        Raises
        ------
        StorageError
            If what was written cannot be made durable or tracking cannot be saved. The disk is
            released and tracking will not be believed.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for snapshot in self._snapshots:
                snapshot.delete()
            try:
                if self._tracker is not None:
                    self._tracker.close(lambda: self._file.flush(metadata=True))
            finally:
                self._forgotten.detach()
                self._file.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def __enter__(self) -> RawDisk:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.mode
        return f"RawDisk({self.name!r}, {format_size(self.size)}, {state}, {str(self.path)!r})"

    def _repr_html_(self) -> str:
        rows = {
            "size": format_size(self.size),
            "open": "no" if self._closed else self.mode,
            "tracked": "yes" if not self._closed and self.tracker is not None else "no",
            "snapshots": len(self._snapshots),
        }
        return key_values(f"Disk {self.name}", rows)


def _resolve(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a NUL
        raise InputError(f"{os.fspath(path)!r} is no path: {error}") from error
