"""Whether what a point's map leads to is what was digested when the point was made.

Chunks and digests are each authentic by themselves; that they belong together is the promise of
whoever made the point, and this is where it is checked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import VmbkError
from vmbk.units import MIB
from vmbk.vault.diskmap import DigestReader, DiskMap, Extents, Int64s, build_map, chain
from vmbk.vault.manifest import DiskRecord, RecoveryPoint
from vmbk.vault.reader import Reader

BATCH: Final = 1 << 16
"""Blocks looked at together: bounds memory."""

PIECE: Final = MIB
"""Bytes read together, or one block if that is larger."""

CACHE_BYTES: Final = 64 * MIB
"""Plaintext of chunks that is kept: neighbouring blocks often lie in one chunk."""

MAX_BLOCK: Final = 64 * MIB
"""Largest block that is verified: a block is digested in one piece."""

SHOWN: Final = 8
"""Blocks that a message names."""

_SOURCE: Final = np.dtype([("chunk", "V32"), ("at", "<i8"), ("length", "<i8"), ("digest", "<u8")])
"""Where all bytes of a block come from, and their digest."""


@dataclass(frozen=True)
class _Bad:
    """Blocks of a disk at a point that are not right.

    Attributes
    ----------
    wrong, unread : numpy.ndarray
        Block numbers: those with another digest, and those that could not be read.
    why : str
        Why the first one could not be read.
    """

    wrong: Int64s
    unread: Int64s
    why: str

    def messages(self, point: RecoveryPoint, disk: str) -> list[str]:
        """For the report of a check; none if nothing is wrong."""
        where = f"point {point.id} disk {disk!r}"
        found = []
        if len(self.wrong):
            verb = "is" if len(self.wrong) == 1 else "are"
            found.append(f"{where}: {_some(self.wrong)} as stored {verb} not what was digested")
        if len(self.unread):
            found.append(f"{where}: {_some(self.unread)} cannot be read: {self.why}")
        return found


_NONE: Final = np.empty(0, np.int64)
_GOOD: Final = _Bad(_NONE, _NONE, "")


class ContentCheck:
    """Digests blocks as they are stored and compares; remembers what it has verified.

    Of a point that has a parent only those blocks are verified that its own tables touch, the
    others being the parent's: so a check reads what was sent, not what it adds up to. A block that
    comes from one place of one chunk is verified once, whichever points share it.

    Parameters
    ----------
    reader : Reader
        The vault.
    extents, digests : callable
        Read tables; those that remember them serve best.
    """

    def __init__(
        self,
        reader: Reader,
        extents: Callable[[Reader, DiskRecord], Extents],
        digests: DigestReader,
    ) -> None:
        self._reader = reader
        self._extents = extents
        self._digests = digests
        self._verified: NDArray[np.uint64] = np.empty(0, np.uint64)  # of `_SOURCE` rows, sorted
        self._bad: dict[tuple[str, str], _Bad] = {}
        self._cache: OrderedDict[bytes, NDArray[np.uint8] | VmbkError] = OrderedDict()
        self._cached = 0

    def verify(self, point: RecoveryPoint, disk_name: str) -> list[str]:
        """What is wrong with the content of a disk whose tables were found sound.

        Call it for the points in the order in which they were made.
        """
        records = chain(self._reader, point, disk_name)
        record = records[0]
        blocks, digests = self._touched(records)
        if len(blocks) and min(record.block_size, record.size) > MAX_BLOCK:
            return [
                f"point {point.id} disk {disk_name!r}: blocks of {record.block_size} bytes are too "
                "large to be verified"
            ]
        disk_map = build_map(self._reader, point, disk_name, self._extents)
        parts = [self._inherited(record, blocks)]
        for first in range(0, len(blocks), BATCH):
            batch = slice(first, first + BATCH)
            parts.append(self._compare(disk_map, record.block_size, blocks[batch], digests[batch]))
        bad = _Bad(
            np.unique(np.concatenate([part.wrong for part in parts])),
            np.unique(np.concatenate([part.unread for part in parts])),
            next((part.why for part in parts if part.why), ""),
        )
        if len(bad.wrong) or len(bad.unread):
            self._bad[point.id, disk_name] = bad
        return bad.messages(point, disk_name)

    def _inherited(self, record: DiskRecord, blocks: Int64s) -> _Bad:
        """What is wrong with the parent's blocks that the point took over."""
        bad = self._bad.get((record.parent, record.name), _GOOD)
        count = -(-record.size // record.block_size)
        wrong, unread = (
            np.setdiff1d(part[part < count], blocks) for part in (bad.wrong, bad.unread)
        )
        return _Bad(wrong, unread, bad.why if len(unread) else "")

    def _touched(self, records: list[DiskRecord]) -> tuple[Int64s, NDArray[np.uint64]]:
        """Blocks that the newest point gave new bytes or a new digest, and their digests."""
        newest = records[0]
        size = newest.block_size
        extents = self._extents(self._reader, newest)
        first = extents.offset // size
        stop = -(-(extents.offset + extents.length) // size)
        if len(records) > 1 and newest.size and newest.size != records[1].size:
            # What ended with the disk, or ends with it now, has another length.
            last = (newest.size - 1) // size
            first, stop = np.append(first, last), np.append(stop, last + 1)
        limit = -(-newest.size // size)
        blocks, digests = [], []
        for record in records:  # newest first
            block, digest = self._digests(self._reader, record.digests, record.size, size)
            if record is not newest:
                marks = np.zeros(len(block) + 1, np.int64)
                np.add.at(marks, np.searchsorted(block, first), 1)
                np.add.at(marks, np.searchsorted(block, stop), -1)
                chosen = (np.cumsum(marks[:-1]) > 0) & (block < limit)
                block, digest = block[chosen], digest[chosen]
            limit = min(limit, -(-record.size // size))  # what was cut off does not come back
            blocks.append(block)
            digests.append(digest)
        found, index = np.unique(np.concatenate(blocks), return_index=True)  # the newest counts
        return found, np.concatenate(digests)[index].view(np.uint64)

    def _compare(
        self, disk_map: DiskMap, size: int, blocks: Int64s, digests: NDArray[np.uint64]
    ) -> _Bad:
        """Compare some blocks, each of which is read unless one like it was."""
        from vmbk.kernels.hash import xxh3_64_blocks

        starts = blocks * size
        lengths = np.minimum(size, disk_map.size - starts)
        extent = np.searchsorted(disk_map.offsets, starts, side="right") - 1
        within = starts - disk_map.offsets[extent]
        whole = np.flatnonzero(within + lengths <= disk_map.lengths[extent])
        sources = np.zeros(len(whole), _SOURCE)
        at = extent[whole]
        sources["chunk"] = np.ascontiguousarray(disk_map.chunks[at]).view("V32").ravel()
        sources["at"] = np.where(disk_map.zero[at], 0, disk_map.chunk_offsets[at] + within[whole])
        sources["length"] = lengths[whole]
        sources["digest"] = digests[whole]
        marks = np.empty(len(whole), np.uint64)
        xxh3_64_blocks(sources.view(np.uint8), _SOURCE.itemsize, marks)
        marks, first, alike = np.unique(marks, return_index=True, return_inverse=True)
        known = np.isin(marks, self._verified, assume_unique=True)
        read_for = np.arange(len(blocks))  # which block is read in place of each
        read_for[whole] = whole[first[alike]]
        done = np.zeros(len(blocks), np.bool_)
        done[whole] = known[alike]

        chosen = np.unique(read_for[~done])
        wrong, unread = np.zeros((2, len(blocks)), np.bool_)
        why = ""
        for part in _pieces(blocks[chosen], max(1, PIECE // size)):
            piece = chosen[part]
            begin = int(starts[piece[0]])
            data = np.empty(int(lengths[piece].sum()), np.uint8)
            failed = self._fill(disk_map, begin, data)
            found = np.empty(len(piece), np.uint64)
            xxh3_64_blocks(data, size, found)
            for lo, hi, reason in failed:
                unread[piece[(lo - begin) // size : -(-(hi - begin) // size)]] = True
                why = why or reason
            wrong[piece] = (found != digests[piece]) & ~unread[piece]
        good = ~(wrong | unread)[whole[first]]
        self._verified = np.union1d(self._verified, marks[good])
        return _Bad(blocks[wrong[read_for]], blocks[unread[read_for]], why)

    def _fill(
        self, disk_map: DiskMap, start: int, data: NDArray[np.uint8]
    ) -> list[tuple[int, int, str]]:
        """Bytes of a disk; the ranges (from, to, why) that could not be read."""
        failed: list[tuple[int, int, str]] = []
        end = start + len(data)
        first = int(np.searchsorted(disk_map.offsets, start, side="right")) - 1
        last = int(np.searchsorted(disk_map.offsets, end))
        data[:] = 0
        for i in range(first, last):
            if disk_map.zero[i]:
                continue
            offset = int(disk_map.offsets[i])
            lo, hi = max(offset, start), min(offset + int(disk_map.lengths[i]), end)
            chunk = self._chunk(disk_map.chunks[i].tobytes())
            if isinstance(chunk, VmbkError):
                failed.append((lo, hi, chunk.message))
                continue
            at = int(disk_map.chunk_offsets[i]) + lo - offset
            data[lo - start : hi - start] = chunk[at : at + hi - lo]
        return failed

    def _chunk(self, chunk: bytes) -> NDArray[np.uint8] | VmbkError:
        """Plaintext of a chunk, or why there is none."""
        found = self._cache.get(chunk)
        if found is None:
            try:
                found = np.frombuffer(self._reader.get(chunk, "data"), np.uint8)
            except VmbkError as error:
                found = error
            self._cache[chunk] = found
            self._cached += _weight(found)
            while self._cached > CACHE_BYTES and len(self._cache) > 1:
                self._cached -= _weight(self._cache.popitem(last=False)[1])
        self._cache.move_to_end(chunk)
        return found


def _weight(found: NDArray[np.uint8] | VmbkError) -> int:
    return 1024 if isinstance(found, VmbkError) else len(found)


def _pieces(blocks: Int64s, most: int) -> Iterator[slice]:
    """Runs of blocks that follow each other, at most so many in one."""
    cuts = [0, *(np.flatnonzero(np.diff(blocks) != 1) + 1).tolist(), len(blocks)]
    for begin, end in pairwise(cuts):
        for first in range(begin, end, most):
            yield slice(first, min(first + most, end))


def _some(blocks: Int64s) -> str:
    """Block numbers for a message."""
    shown = ", ".join(map(str, blocks[:SHOWN].tolist()))
    more = f" and {len(blocks) - SHOWN} more" if len(blocks) > SHOWN else ""
    return f"block{'s' if len(blocks) > 1 else ''} {shown}{more}"
