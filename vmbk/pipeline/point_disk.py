"""A disk of a recovery point, readable like any other disk."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

import numpy as np

from vmbk.disk.base import Bytes, Ranges, check_range
from vmbk.errors import IntegrityError
from vmbk.units import MIB
from vmbk.vault import RecoveryPoint, Vault

CACHE_BYTES: Final = 64 * MIB
"""Plaintext chunks kept: a large chunk is cut by small newer extents and comes up again soon."""


class PointDisk:
    """The bytes of one disk at a recovery point, read chunk by chunk from the vault.

    Implements `vmbk.disk.base.ReadableDisk`; every chunk that is read is authenticated.

    Parameters
    ----------
    vault : Vault
        Where the point is.
    point : RecoveryPoint
        The point.
    name : str
        Name of the disk within the point.
    """

    def __init__(self, vault: Vault, point: RecoveryPoint, name: str) -> None:
        self.name = name
        self._vault = vault
        self._map = vault.disk_map(point, name)
        self.size = next(d.size for d in point.disks if d.name == name)
        self._cache: OrderedDict[bytes, Bytes] = OrderedDict()
        self._cached = 0
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"PointDisk({self.name!r}, {self.size} bytes)"

    def data_extents(self) -> Ranges:
        """Extents that are stored; everything else is zeros."""
        data = ~self._map.zero
        return self._map.offsets[data], self._map.lengths[data]

    def read_into(self, offset: int, buffer: Bytes) -> None:
        """Fill the buffer with the bytes at ``offset``.

        Raises
        ------
        OutOfRangeError
            If the range reaches past the end.
        IntegrityError
            If a chunk is missing or is not what was stored.
        """
        check_range(self, offset, len(buffer))
        if not len(buffer):
            return
        m, end = self._map, offset + len(buffer)
        first = int(np.searchsorted(m.offsets, offset, side="right")) - 1
        last = int(np.searchsorted(m.offsets, end, side="left"))
        for i in range(first, last):
            begin, stop = int(m.offsets[i]), int(m.offsets[i] + m.lengths[i])
            lo, hi = max(begin, offset), min(stop, end)
            target = buffer[lo - offset : hi - offset]
            if m.zero[i]:
                target[:] = 0
                continue
            chunk = self._chunk(m.chunks[i].tobytes())
            at = int(m.chunk_offsets[i]) + lo - begin
            if at < 0 or at + len(target) > len(chunk):
                raise IntegrityError(
                    f"the map of disk {self.name!r} reaches past the end of a chunk at byte {lo}",
                    hint="run: vmbk vault check --read-data",
                )
            target[:] = chunk[at : at + len(target)]

    def _chunk(self, chunk_id: bytes) -> Bytes:
        with self._lock:
            found = self._cache.get(chunk_id)
            if found is not None:
                self._cache.move_to_end(chunk_id)
                return found
        data = np.frombuffer(self._vault.get(chunk_id), np.uint8)
        with self._lock:
            if chunk_id not in self._cache:
                self._cache[chunk_id] = data
                self._cached += len(data)
                while self._cached > CACHE_BYTES and len(self._cache) > 1:
                    self._cached -= len(self._cache.popitem(last=False)[1])
        return data
