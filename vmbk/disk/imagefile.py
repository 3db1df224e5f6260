"""Positional I/O on one open file: what a raw disk and the overlay of a snapshot have in common.

Every operation takes its own offset, so threads share no file position. A descriptor is closed
only when the last operation on it has returned; otherwise a thread could read from whatever file
was opened next under the same number.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeAlias

import numpy as np

from vmbk.disk.base import Bytes, Ranges
from vmbk.disk.direct import aligned_length, set_direct
from vmbk.disk.opening import storage_error
from vmbk.disk.signature import ImageSignature, trusted_signature
from vmbk.errors import InputError, StorageError
from vmbk.units import MIB

_PUNCH_HOLE_KEEP_SIZE: Final = 0x02 | 0x01  # linux/falloc.h
_DIRECT: Final = MIB  # bytes of the smallest transfer that is worth going directly
_REGION: Final = MIB  # bytes of zeros written at once where holes cannot be punched
_ZEROS: Final = bytes(_REGION)
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


Move: TypeAlias = Callable[[int, memoryview, int], int]
"""A transfer of a descriptor, memory and an offset; the bytes it moved."""


def _read(fd: int, view: memoryview, offset: int) -> int:
    return os.preadv(fd, [view], offset)


def as_bytes(data: Any) -> memoryview:
    """A flat view of the bytes of anything that holds contiguous bytes.

    Raises
    ------
    InputError
        If it is not contiguous or holds no plain values.
    """
    try:
        return memoryview(data).cast("B")
    except (TypeError, ValueError) as error:
        raise InputError(f"{type(data).__name__} is no contiguous array of bytes") from error


class _Descriptor:
    """A file descriptor that several threads use; `close` waits until none does."""

    def __init__(self, fd: int, label: str) -> None:
        self._fd = fd
        self._label = label
        self._users = 0
        self._closed = False
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)

    def __enter__(self) -> int:
        with self._lock:
            if self._closed:
                raise InputError(f"{self._label} is closed")
            self._users += 1
        return self._fd

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._users -= 1
            if self._closed and not self._users:
                self._idle.notify_all()

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            while self._users:
                self._idle.wait()
            # A child that another thread is starting has the descriptor too, and the lock with it.
            with suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)


class ImageFile:
    """Reads, writes, holes and data of one open file; safe to use from many threads.

    Parameters
    ----------
    fd : int
        Open descriptor, which this object now owns.
    label : str
        What the file is, for messages.
    """

    def __init__(self, fd: int, label: str) -> None:
        self._descriptor = _Descriptor(fd, label)
        self._label = label
        self._can_punch = True
        self._direct: _Descriptor | None = None

    def open_direct(self, flags: int) -> None:
        """Move what is large and aligned directly from now on, where the file system can.

        Parameters
        ----------
        flags : int
            How the file is open: ``os.O_RDONLY`` or ``os.O_RDWR``.
        """
        with self._descriptor as fd, suppress(OSError):
            second = os.open(f"/proc/self/fd/{fd}", flags)
            self._direct = _Descriptor(second, self._label)
            if not set_direct(second, True):
                self._direct.close()
                self._direct = None

    def _directly(self, view: memoryview, offset: int, move: Move) -> int:
        """Move the start of a view directly; how many bytes that were."""
        if self._direct is None or len(view) < _DIRECT or not aligned_length(view, offset):
            return 0
        with self._direct as fd:
            try:
                return move(fd, view[: aligned_length(view, offset)], offset)
            except OSError as error:
                if error.errno != errno.EINVAL:  # else a device that wants more than pages
                    raise
                return 0

    def read_into(self, offset: int, buffer: Bytes | memoryview) -> None:
        """Fill the whole buffer with the bytes at ``offset``.

        Raises
        ------
        InputError
            If the file is closed, or the buffer is not contiguous or not writable.
        StorageError
            If the operating system refuses, or the file ends before the buffer is full.
        """
        view = as_bytes(buffer)
        if view.readonly:
            raise InputError(f"{self._label}: cannot read into a read-only buffer")
        done, wanted = 0, len(view)
        with self._descriptor as fd:
            try:
                done = self._directly(view, offset, _read)
                while done < wanted:
                    # One call moves 2 GiB at most, and a signal may cut it short.
                    count = os.preadv(fd, [view[done:] if done else view], offset + done)
                    if not count:
                        raise StorageError(
                            f"{self._label} ends at offset {offset + done}, inside the "
                            f"{wanted} bytes at offset {offset}",
                            hint="was it cut short by another program?",
                        )
                    done += count
            except OSError as error:
                what = f"cannot be read at offset {offset + done}"
                raise storage_error(self._label, what, error) from error

    def write(self, offset: int, view: memoryview) -> None:
        """Write all bytes of a flat view at ``offset``.

        Raises
        ------
        StorageError
            If the operating system refuses; bytes before the failure may have been written.
        """
        done, wanted = 0, len(view)
        with self._descriptor as fd:
            try:
                done = self._directly(view, offset, os.pwrite)
                while done < wanted:
                    done += os.pwrite(fd, view[done:] if done else view, offset + done)
            except OSError as error:
                what = f"cannot be written ({wanted - done} bytes at offset {offset + done})"
                raise storage_error(self._label, what, error) from error

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros: as a hole where that is possible, else by writing zeros.

        Raises
        ------
        StorageError
            If the operating system refuses.
        """
        if length and not (self._can_punch and self._punch(offset, length)):
            self.write_zeros(offset, length)

    def _punch(self, offset: int, length: int) -> bool:
        """Punch a hole; False where the file cannot have one there."""
        with self._descriptor as fd:
            while _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length):
                code = ctypes.get_errno()
                if code in (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV):
                    self._can_punch = False
                    return False
                if code == errno.EINVAL:  # a block device wants whole sectors
                    return False
                if code != errno.EINTR:
                    what = f"cannot be zeroed ({length} bytes at offset {offset})"
                    raise storage_error(self._label, what, OSError(code, os.strerror(code)))
        return True

    def write_zeros(self, offset: int, length: int) -> None:
        """Write zeros, allocating the range.

        Raises
        ------
        StorageError
            If the operating system refuses.
        """
        zeros = memoryview(_ZEROS)
        for start in range(offset, offset + length, _REGION):
            self.write(start, zeros[: min(_REGION, offset + length - start)])

    def extents(self, start: int, end: int) -> Ranges:
        """Parts of ``start .. end`` that may hold data; everything else reads as zeros.

        Where the file system cannot tell, that is the whole range.

        Raises
        ------
        StorageError
            If the operating system refuses.
        """
        offsets: list[int] = []
        lengths: list[int] = []
        position = start
        with self._descriptor as fd:
            # One extent per pair of calls is all that the operating system offers.
            while position < end:
                try:
                    data = os.lseek(fd, position, os.SEEK_DATA)
                    hole = min(os.lseek(fd, data, os.SEEK_HOLE), end) if data < end else end
                except OSError as error:
                    if error.errno == errno.ENXIO:  # no data from here on
                        break
                    if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY):
                        what = "cannot be searched for data"
                        raise storage_error(self._label, what, error) from error
                    offsets, lengths = [start], [end - start]
                    break
                if data >= end:
                    break
                if hole > data:  # else it was punched between the two calls
                    offsets.append(data)
                    lengths.append(hole - data)
                position = max(hole, position + 1)
        return np.array(offsets, np.int64), np.array(lengths, np.int64)

    def signature(self) -> ImageSignature:
        """The signature of the file as it is now, after writing it back.

        Raises
        ------
        StorageError
            If it cannot be written back.
        """
        with self._descriptor as fd:
            return trusted_signature(fd, self._label)

    def flush(self, *, metadata: bool = False) -> None:
        """Make what was written durable; with ``metadata``, the file's times as well.

        Raises
        ------
        StorageError
            If the operating system refuses: what was written since the last flush may be lost.
        """
        with self._descriptor as fd:
            try:
                (os.fsync if metadata else os.fdatasync)(fd)
            except OSError as error:
                raise storage_error(self._label, "cannot be flushed", error) from error

    def close(self) -> None:
        """Close the file once no thread uses it any more; again without effect."""
        if self._direct is not None:
            self._direct.close()
        self._descriptor.close()
