"""VHD images: fixed ones, and differencing ones that hold only the sectors that changed.

A fixed VHD is a raw image with a footer of 512 bytes behind it. A differencing VHD holds blocks of
2 MiB, each behind a bitmap of its sectors: a bit that is set says that the sector is here, any
other is in the parent. Sectors that are not here are holes of the file.

Source: Microsoft, Virtual Hard Disk Image Format Specification 1.0 (2006). All numbers in it are
big-endian, and bit 7 of a bitmap's first byte is the first sector.
"""

from __future__ import annotations

import os
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.detect.scan import PIECE, bitmap_ranges, default_workers, for_each, split
from vmbk.disk.base import Bytes, Ranges, ReadableDisk, check_range
from vmbk.disk.direct import aligned_buffer
from vmbk.disk.raw import RawDisk
from vmbk.errors import InputError, IntegrityError
from vmbk.progress import Advance
from vmbk.units import GIB, MIB, format_size

SECTOR: Final = 512
FIXED: Final = 2
DIFFERENCING: Final = 4
BLOCK: Final = 2 * MIB
"""Data of a block of a differencing VHD; the specification's default."""

MOST_BYTES: Final = 2040 * GIB
"""Of a disk: the block table counts sectors in 32 bits; the format's documented end."""

_FOOTER: Final = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")
_HEADER: Final = struct.Struct(">8sQQIIII16sI4x512s192s256x")
_LOCATOR: Final = struct.Struct(">4sIIIQ")
_NOWHERE: Final = (1 << 64) - 1
_EPOCH: Final = 946_684_800  # 2000-01-01
_VERSION: Final = 0x0001_0000
_HEADER_AT: Final = SECTOR
_TABLE_AT: Final = _HEADER_AT + _HEADER.size
_ABSENT: Final = 0xFFFF_FFFF
_BITMAP: Final = BLOCK // SECTOR // 8
_STRIDE: Final = BLOCK + 4096  # data on a page, the bitmap in the sector before it
# From a bitmap's first bit at the top of a byte to that at its bottom, and back.
_MIRRORED: Final = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)), bitorder="little")
# Readers take the size from the footer only where they know the maker, else from the geometry,
# which is rounded. Hyper-V is known to all.
_MAKER: Final = b"win "


@dataclass(frozen=True)
class Footer:
    """What the last sector of a VHD says.

    Attributes
    ----------
    size : int
        Bytes of the disk.
    kind : int
        `FIXED` or `DIFFERENCING`.
    id : bytes
        The image's identity, 16 bytes, by which a child names its parent.
    created : int
        Seconds since 2000.
    """

    size: int
    kind: int
    id: bytes
    created: int

    @classmethod
    def new(cls, size: int, kind: int) -> Footer:
        """The footer of a new image.

        Raises
        ------
        InputError
            If no VHD can hold a disk of this size.
        """
        if size <= 0 or size % SECTOR:
            raise InputError(f"a VHD holds whole sectors of {SECTOR} bytes, not {size} bytes")
        if size > MOST_BYTES:
            raise InputError(
                f"a VHD holds {format_size(MOST_BYTES)} at most, not {format_size(size)}",
                hint="back up a smaller volume",
            )
        return cls(size, kind, uuid.uuid4().bytes, max(0, int(time.time()) - _EPOCH))

    def to_bytes(self) -> bytes:
        """512 bytes, with their checksum."""
        inside = _NOWHERE if self.kind == FIXED else _HEADER_AT
        cylinders, heads, sectors = _geometry(self.size // SECTOR)

        def packed(checksum: int) -> bytes:
            return _FOOTER.pack(
                b"conectix", 2, _VERSION, inside, self.created, _MAKER, _VERSION, b"Wi2k",
                self.size, self.size, cylinders, heads, sectors, self.kind, checksum, self.id, 0,
            )  # fmt: skip

        return packed(_checksum(packed(0)))

    @classmethod
    def parse(cls, data: bytes, label: str) -> Footer:
        """Read one.

        Raises
        ------
        IntegrityError
            If it is no footer of a kind that is known here, or its checksum is wrong.
        """
        (cookie, _, version, _, created, _, _, _, _, size, _, _, _, kind, checksum, identity, _) = (
            _FOOTER.unpack(data)
        )
        good = cookie == b"conectix" and version == _VERSION and kind in (FIXED, DIFFERENCING)
        if not good or checksum != _checksum(data[:64] + bytes(4) + data[68:]):
            raise IntegrityError(f"{label} does not end in the footer of a VHD")
        if size % SECTOR or not 0 < size <= MOST_BYTES:
            raise IntegrityError(f"{label}: its footer tells a disk of {size} bytes")
        return cls(size, kind, identity, created)


def _checksum(data: bytes) -> int:
    return ~sum(data) & 0xFFFF_FFFF


def _geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors of a track, as the specification's appendix computes them."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    tracks = sectors // 17
    heads, of_track = max((tracks + 1023) // 1024, 4), 17
    if tracks >= heads * 1024 or heads > 16:
        tracks, heads, of_track = sectors // 31, 16, 31
    if tracks >= heads * 1024:
        tracks, heads, of_track = sectors // 63, 16, 63
    return tracks // heads, heads, of_track


def create_fixed(path: str | os.PathLike[str], size: int) -> tuple[RawDisk, Footer]:
    """Make a sparse fixed VHD of zeros and open it for writing.

    Returns
    -------
    RawDisk
        The whole file: the disk's bytes are where they are on the disk, the footer follows them.
    Footer

    Raises
    ------
    InputError
        If no VHD can hold so much, or the file exists.
    StorageError
        If the operating system refuses.
    """
    footer = Footer.new(size, FIXED)
    disk = RawDisk.create(path, size + SECTOR)
    try:
        disk.write(size, footer.to_bytes())
    except BaseException:
        disk.close()
        raise
    return disk, footer


def fixed_footer(disk: RawDisk) -> Footer:
    """The footer of a fixed VHD that is open as a raw disk.

    Raises
    ------
    IntegrityError
        If it has none, or one of another disk.
    """
    label = f"the image {str(disk.path)!r}"
    footer = _read_footer(disk, label)
    if footer.kind != FIXED or footer.size != disk.size - SECTOR:
        raise IntegrityError(f"{label} is no fixed VHD of its size")
    return footer


def _read_footer(disk: RawDisk, label: str) -> Footer:
    if disk.size < SECTOR:
        raise IntegrityError(f"{label} is too short to be a VHD")
    data = np.empty(SECTOR, np.uint8)
    disk.read_into(disk.size - SECTOR, data)
    return Footer.parse(data.tobytes(), label)


def copy_extents(
    source: ReadableDisk, ranges: Ranges, target: RawDisk, *, on_progress: Advance | None = None
) -> int:
    """Copy ranges of a disk to the same places of another one; zeros become holes.

    Returns
    -------
    int
        Bytes that were copied.
    """
    offsets, lengths = split(ranges, PIECE)

    def work(i: int, buffer: Bytes) -> None:
        offset, data = int(offsets[i]), buffer[: int(lengths[i])]
        source.read_into(offset, data)
        if data.any():
            target.write(offset, data)
        else:
            target.zero(offset, len(data))
        if on_progress is not None:
            on_progress(len(data))

    for_each(len(offsets), work, lambda: aligned_buffer(PIECE), default_workers())
    return int(lengths.sum())


def write_differencing(
    path: Path,
    source: ReadableDisk,
    ranges: Ranges,
    parent: Footer,
    parent_name: str,
    *,
    on_progress: Advance | None = None,
) -> None:
    """Make a differencing VHD that holds the ranges of a disk; durable when this returns.

    Parameters
    ----------
    path : Path
        The new file; one that is there is replaced.
    source : ReadableDisk
        What is read.
    ranges : offsets, lengths
        What changed, in bytes: sorted, disjoint, whole sectors.
    parent : Footer
        Of the VHD that holds the rest.
    parent_name : str
        Its file name, in the same folder.

    Raises
    ------
    InputError
        If the ranges are not whole sectors.
    StorageError
        If the operating system refuses.
    """
    from vmbk.kernels.bitmap import mark_ranges

    offsets, lengths = ranges
    if ((offsets | lengths) % SECTOR).any():
        raise InputError(f"a VHD holds whole sectors of {SECTOR} bytes")
    used = np.unique(split(ranges, BLOCK)[0] // BLOCK)
    footer = Footer.new(parent.size, DIFFERENCING)
    entries = -(-parent.size // BLOCK)
    name_at = _TABLE_AT + -(-4 * entries // SECTOR) * SECTOR
    name = f".\\{parent_name}".encode("utf-16-le")
    first = -(-(name_at + 2 * SECTOR) // 4096) * 4096  # data of the first block, on a page
    table = np.full((name_at - _TABLE_AT) // 4, _ABSENT, ">u4")
    table[used] = (first - _BITMAP + _STRIDE * np.arange(len(used))) // SECTOR
    end = first + _STRIDE * len(used)
    with suppress(FileNotFoundError):
        path.unlink()
    with RawDisk.create(path, end + SECTOR) as file:
        file.write(0, footer.to_bytes())
        file.write(_HEADER_AT, _header(entries, parent, parent_name, len(name), name_at))
        file.write(_TABLE_AT, table.tobytes())
        file.write(name_at, name)
        bits = np.zeros(len(used) * _BITMAP, np.uint8)
        mark_ranges(bits, *_packed(ranges, used), SECTOR)
        bitmaps = _MIRRORED[bits].reshape(len(used), _BITMAP)
        pieces, wide = split(ranges, PIECE)
        rank = np.searchsorted(used, pieces // BLOCK)

        def work(i: int, buffer: Bytes) -> None:
            data = buffer[: int(wide[i])]
            source.read_into(int(pieces[i]), data)
            at = first + _STRIDE * int(rank[i]) + int(pieces[i]) % BLOCK
            if data.any():  # else it stays a hole
                file.write(at, data)
            if on_progress is not None:
                on_progress(len(data))

        for_each(len(pieces), work, lambda: aligned_buffer(PIECE), default_workers())
        for i in range(len(used)):  # one write for each block is what the format asks for
            file.write(first - _BITMAP + _STRIDE * i, bitmaps[i])
        file.write(end, footer.to_bytes())
        file.flush()


def _header(entries: int, parent: Footer, name: str, name_bytes: int, name_at: int) -> bytes:
    locator = _LOCATOR.pack(b"W2ru", 1, name_bytes, 0, name_at)

    def packed(checksum: int) -> bytes:
        return _HEADER.pack(
            b"cxsparse", _NOWHERE, _TABLE_AT, _VERSION, entries, BLOCK, checksum, parent.id,
            parent.created, name.encode("utf-16-be"), locator,
        )  # fmt: skip

    return packed(_checksum(packed(0)))


def _packed(ranges: Ranges, used: NDArray[np.int64]) -> Ranges:
    """Ranges of a disk as ranges of its used blocks laid end to end."""
    offsets, lengths = split(ranges, BLOCK)
    rank = np.searchsorted(used, offsets // BLOCK)
    return rank * BLOCK + offsets % BLOCK, lengths


class DifferencingVhd:
    """A differencing VHD that is read: the sectors that it holds, without its parent.

    Implements `vmbk.disk.base.ReadableDisk`, except that what is not here cannot be read.

    Parameters
    ----------
    path : path
        Of the file.

    Attributes
    ----------
    name : str
    size : int
        Bytes of the disk.
    parent : bytes
        Identity of the VHD that holds the rest.

    Raises
    ------
    IntegrityError
        If the file is no differencing VHD with blocks of 2 MiB, or is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = RawDisk(path, "r")
        try:
            self._label = f"the image {str(self._file.path)!r}"
            self._load()
        except BaseException:
            self._file.close()
            raise

    def _load(self) -> None:
        footer = _read_footer(self._file, self._label)
        if footer.kind != DIFFERENCING:
            raise IntegrityError(f"{self._label} is no differencing VHD")
        self.name, self.size = self._file.name, footer.size
        header = self._bytes(_HEADER_AT, _HEADER.size)
        cookie, _, table_at, _, entries, block, checksum, self.parent, *_ = _HEADER.unpack(header)
        if cookie != b"cxsparse" or checksum != _checksum(header[:36] + bytes(4) + header[40:]):
            raise IntegrityError(f"{self._label} has a damaged header")
        if block != BLOCK or entries != -(-self.size // BLOCK):
            raise IntegrityError(f"{self._label} has {entries} blocks of {block} bytes")
        table = np.frombuffer(self._bytes(table_at, 4 * entries), ">u4").astype(np.int64)
        self._used = np.flatnonzero(table != _ABSENT)
        self._at = table[self._used] * SECTOR + _BITMAP
        end = self._file.size - SECTOR
        apart = np.diff(np.sort(self._at)) >= BLOCK + _BITMAP
        if len(self._at) and (int(self._at.max()) + BLOCK > end or not apart.all()):
            raise IntegrityError(f"{self._label} has blocks that overlap or reach past its end")
        bitmaps = [self._bytes(at - _BITMAP, _BITMAP) for at in self._at.tolist()]
        packed = np.frombuffer(b"".join(bitmaps), np.uint8)
        self._here = _MIRRORED[packed]

    def _bytes(self, offset: int, length: int) -> bytes:
        if offset + length > self._file.size:
            raise IntegrityError(f"{self._label} is cut short")
        data = np.empty(length, np.uint8)
        self._file.read_into(offset, data)
        return data.tobytes()

    def data_extents(self) -> Ranges:
        """Extents of the disk whose sectors are here, cut at every 2 MiB."""
        size = len(self._used) * BLOCK
        offsets, lengths = split(bitmap_ranges(self._here, SECTOR, size), BLOCK)
        where = self._used[offsets // BLOCK] * BLOCK + offsets % BLOCK
        inside = where < self.size  # bits past the end of the disk mean nothing
        where, lengths = where[inside], lengths[inside]
        return where, np.minimum(lengths, self.size - where)

    def read_into(self, offset: int, buffer: Bytes) -> None:
        """Fill the buffer with the bytes at ``offset``; safe to call from many threads.

        Raises
        ------
        OutOfRangeError
            If the range reaches past the end of the disk.
        IntegrityError
            If a sector of it is not here.
        """
        check_range(self, offset, len(buffer))
        done = 0
        for at, length, first in self._pieces(offset, len(buffer)):
            last = first + -(-length // SECTOR)
            bits = np.unpackbits(self._here[first // 8 : -(-last // 8)], bitorder="little")
            if not bits[first % 8 : first % 8 + last - first].all():
                raise IntegrityError(f"{self._label} does not hold byte {offset + done}")
            self._file.read_into(at, buffer[done : done + length])
            done += length

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Parts of a range by blocks: where in the file, bytes, and the first sector's flag."""
        for block in range(offset // BLOCK, -(-(offset + length) // BLOCK)):
            begin, end = max(offset, block * BLOCK), min(offset + length, (block + 1) * BLOCK)
            rank = int(np.searchsorted(self._used, block))
            if rank == len(self._used) or self._used[rank] != block:
                raise IntegrityError(f"{self._label} does not hold byte {begin}")
            inside = begin - block * BLOCK
            yield (
                int(self._at[rank]) + inside,
                end - begin,
                (rank * BLOCK + inside) // SECTOR,
            )

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> DifferencingVhd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
