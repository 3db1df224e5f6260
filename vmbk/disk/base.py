"""What a disk is to the rest of vmbk."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import OutOfRangeError

Bytes = NDArray[np.uint8]
"""A contiguous one-dimensional array of bytes."""

Ranges = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Offsets and lengths in bytes, sorted and disjoint."""


@runtime_checkable
class ReadableDisk(Protocol):
    """Bytes at offsets, at one point in time: a disk, a snapshot of one, or a recovery point."""

    @property
    def name(self) -> str:
        """Name of the disk within its VM."""

    @property
    def size(self) -> int:
        """Size in bytes; never changes."""

    def read_into(self, offset: int, buffer: Bytes) -> None:
        """Fill the whole buffer with the bytes at ``offset``; safe to call from many threads.

        Raises
        ------
        OutOfRangeError
            If the range reaches past the end of the disk.
        StorageError
            If the operating system refuses.
        """

    def data_extents(self) -> Ranges:
        """Extents outside of which every byte is zero (holes of a sparse image)."""


@runtime_checkable
class Disk(ReadableDisk, Protocol):
    """A disk that can be written."""

    def write(self, offset: int, data: Bytes | bytes | memoryview) -> None:
        """Write all of ``data`` at ``offset``."""

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, without storing it where the disk is sparse."""

    def flush(self) -> None:
        """Make everything written so far durable."""

    def close(self) -> None:
        """Release the disk."""


def check_range(disk: ReadableDisk, offset: int, length: int) -> None:
    """Raise `OutOfRangeError` unless ``offset .. offset + length`` lies within the disk."""
    if offset < 0 or length < 0 or offset + length > disk.size:
        raise OutOfRangeError(
            f"access to {length} bytes at offset {offset} reaches outside disk {disk.name!r} "
            f"of {disk.size} bytes"
        )
