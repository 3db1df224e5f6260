"""A disk in memory: the model that tests compare with."""

from __future__ import annotations

import numpy as np

from vmbk.disk.base import Bytes, Ranges, check_range


class MemoryDisk:
    """Implements ReadableDisk and Disk over a NumPy array, and counts what is read."""

    def __init__(self, data: Bytes | bytes | int, name: str = "memory") -> None:
        self.name = name
        if isinstance(data, int):
            self.data = np.zeros(data, np.uint8)
        else:
            self.data = np.frombuffer(bytes(data), np.uint8).copy()
        self.read_bytes = 0

    @property
    def size(self) -> int:
        return len(self.data)

    def copy(self) -> MemoryDisk:
        return MemoryDisk(self.data, self.name)

    def read_into(self, offset: int, buffer: Bytes) -> None:
        check_range(self, offset, len(buffer))
        buffer[:] = self.data[offset : offset + len(buffer)]
        self.read_bytes += len(buffer)

    def data_extents(self) -> Ranges:
        """4 KiB pages that are not all zeros, like the holes of a file."""
        offsets, lengths = [], []
        for offset in range(0, self.size, 4096):
            page = self.data[offset : offset + 4096]
            if page.any():
                offsets.append(offset)
                lengths.append(len(page))
        return np.array(offsets, np.int64), np.array(lengths, np.int64)

    def write(self, offset: int, data: Bytes | bytes | memoryview) -> None:
        raw = np.frombuffer(data, np.uint8)
        check_range(self, offset, len(raw))
        self.data[offset : offset + len(raw)] = raw

    def zero(self, offset: int, length: int) -> None:
        check_range(self, offset, length)
        self.data[offset : offset + length] = 0

    def flush(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""
