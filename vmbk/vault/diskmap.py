"""The map and the digests of a disk, put together from the chain of its recovery points.

Sections "Tables" and "The map of a disk" of `FORMAT.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vmbk.errors import IntegrityError, NotFoundError
from vmbk.units import format_size
from vmbk.vault.arrow import ID_TYPE, ids_of, ints_of, nulls_of
from vmbk.vault.format import CHECK_HINT, KINDS, MAX_CHAIN
from vmbk.vault.manifest import DiskRecord, RecoveryPoint
from vmbk.vault.reader import Reader

EXTENT_SCHEMA: Final = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("chunk", ID_TYPE),
        pa.field("chunk_offset", pa.int64(), nullable=False),
    ]
)
"""Columns of an extent table; a null chunk stands for zeros."""

DIGEST_SCHEMA: Final = pa.schema(
    [
        pa.field("block", pa.int64(), nullable=False),
        pa.field("digest", pa.int64(), nullable=False),
    ]
)
"""Columns of a digest table; the digest is the bit pattern of an unsigned XXH3-64."""

Int64s = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class DiskMap:
    """Where every byte of a disk is: n extents, sorted, that cover it without a gap.

    Attributes
    ----------
    size : int
        Bytes of the disk.
    offsets, lengths : numpy.ndarray
        Shape (n,), int64, bytes on the disk.
    chunks : numpy.ndarray
        Shape (n, 32), uint8: ids of the chunks; zeros where ``zero``.
    chunk_offsets : numpy.ndarray
        Shape (n,), int64: where the bytes begin in the chunk's plaintext; 0 where ``zero``.
    zero : numpy.ndarray
        Shape (n,), bool: the bytes are zero and have no chunk.
    """

    size: int
    offsets: Int64s
    lengths: Int64s
    chunks: NDArray[np.uint8]
    chunk_offsets: Int64s
    zero: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets)

    def __repr__(self) -> str:
        return f"DiskMap({len(self)} extents, {format_size(self.size)})"

    def _repr_html_(self) -> str:
        from vmbk.display import key_values

        zeros = int(self.lengths[self.zero].sum())
        rows = {"size": format_size(self.size), "extents": len(self), "zero": format_size(zeros)}
        return key_values("disk map", rows)


def chain(reader: Reader, point: RecoveryPoint, disk_name: str) -> list[DiskRecord]:
    """Records of a disk from the point back to the one whose tables are whole.

    Raises
    ------
    NotFoundError
        If the point has no such disk.
    IntegrityError
        If a parent is missing or damaged, is of another VM, lacks the disk, or if the chain runs in
        a circle or is too long.
    """
    record = point.disk(disk_name)
    records, seen = [record], {point.id}
    while record.parent:
        if record.parent in seen:
            _broken(point, disk_name, f"runs in a circle at {record.parent}")
        if len(records) == MAX_CHAIN:
            _broken(point, disk_name, f"is longer than {MAX_CHAIN}")
        try:
            parent = reader.point(record.parent)
            record = parent.disk(disk_name)
        except NotFoundError as error:
            _broken(point, disk_name, f"ends early: {error.message}")
        if parent.vm != point.vm:
            _broken(point, disk_name, f"leaves the VM at {parent.id}")
        seen.add(parent.id)
        records.append(record)
    return records


def _broken(point: RecoveryPoint, disk_name: str, what: str) -> NoReturn:
    raise IntegrityError(
        f"the chain of disk {disk_name!r} at the point {point.id} {what}", hint=CHECK_HINT
    )


@dataclass(frozen=True, eq=False)
class Extents:
    """One extent table, verified.

    ``complete`` says that every chunk it names is in the index. One that is not was lost: that is
    damage only where the map of a disk still shows it.
    """

    offset: Int64s
    length: Int64s
    chunk: NDArray[np.uint8]
    chunk_offset: Int64s
    zero: NDArray[np.bool_]
    complete: bool = True


def read_extents(reader: Reader, record: DiskRecord) -> Extents:
    """The extent table of one recovery point.

    Raises
    ------
    IntegrityError
        If a row breaks a rule of the format.
    """
    table = reader.get_table(record.extents, EXTENT_SCHEMA)
    column = table.column("chunk")
    zero = nulls_of(column)
    extents = Extents(
        offset=ints_of(table.column("offset")),
        length=ints_of(table.column("length")),
        chunk=ids_of(column),
        chunk_offset=ints_of(table.column("chunk_offset")),
        zero=zero,
    )
    return replace(extents, complete=_check_extents(reader, record, extents))


def _check_extents(reader: Reader, record: DiskRecord, extents: Extents) -> bool:
    """Refuse what breaks a rule; whether every chunk is in the index."""

    def refuse(bad: NDArray[np.bool_], what: str) -> None:
        if bool(bad.any()):
            row = int(np.argmax(bad))
            raise IntegrityError(
                f"extent {row} of disk {record.name!r} (offset {extents.offset[row]}, length "
                f"{extents.length[row]}) {what}",
                hint=CHECK_HINT,
            )

    offset, length, zero = extents.offset, extents.length, extents.zero
    # Compared without adding to what was read: a sum could overflow.
    refuse(
        (offset < 0) | (length < 1) | (offset > record.size) | (length > record.size - offset),
        f"is outside the disk of {record.size} bytes",
    )
    follows = np.ones(len(offset), np.bool_)
    follows[1:] = offset[1:] >= offset[:-1] + length[:-1]
    refuse(~follows, "overlaps the one before it or is out of order")
    refuse(extents.chunk_offset < 0, "reaches outside its chunk")
    raw = _raw_lengths(reader, extents.chunk, zero, length)
    refuse(_outside(raw, extents.chunk_offset, length), "reaches outside its chunk")
    return not bool((raw < 0).any())


def _raw_lengths(
    reader: Reader, chunks: NDArray[np.uint8], zero: NDArray[np.bool_], length: Int64s
) -> Int64s:
    """Plaintext lengths of the chunks of extents; -1 where one is in no index file."""
    raw = np.where(zero, length, 0)
    raw[~zero] = reader.index.raw_lengths(chunks[~zero], KINDS["data"])
    if bool((raw < 0).any()):  # another process may have stored them since
        reader.refresh()
        raw[~zero] = reader.index.raw_lengths(chunks[~zero], KINDS["data"])
    return raw


def _outside(raw: Int64s, chunk_offset: Int64s, length: Int64s) -> NDArray[np.bool_]:
    """Which extents reach past the end of a chunk that is known."""
    return (raw >= 0) & ((chunk_offset > raw) | (length > raw - chunk_offset))


def build_map(
    reader: Reader,
    point: RecoveryPoint,
    disk_name: str,
    read: Callable[[Reader, DiskRecord], Extents] = read_extents,
) -> DiskMap:
    """The map of a disk at a recovery point.

    Parameters
    ----------
    read : callable
        Reads a table; one that remembers tables serves who builds the maps of a whole chain.

    Raises
    ------
    NotFoundError
        If the point has no such disk.
    IntegrityError
        If the chain is broken or does not cover the whole disk.
    """
    records = chain(reader, point, disk_name)[::-1]
    tables = [read(reader, record) for record in records]
    sizes = [record.size for record in records]
    where = f"disk {disk_name!r} at the point {point.id}"
    disk_map = overlay(tables, sizes, where)
    if not all(table.complete for table in tables):
        _require_known(reader, disk_map, where)
    return disk_map


def _require_known(reader: Reader, disk_map: DiskMap, where: str) -> None:
    """Refuse a map that shows a chunk which is in no index file, or more than it holds."""
    raw = _raw_lengths(reader, disk_map.chunks, disk_map.zero, disk_map.lengths)
    if bool((raw < 0).any()):
        reader.require_whole_index()
    for bad, what in (
        (raw < 0, "refers to a chunk of data that is in no index file"),
        (_outside(raw, disk_map.chunk_offsets, disk_map.lengths), "reaches outside its chunk"),
    ):
        if bool(bad.any()):
            raise IntegrityError(
                f"the extent at offset {disk_map.offsets[np.argmax(bad)]} of {where} {what}",
                hint=CHECK_HINT,
            )


def overlay(tables: list[Extents], sizes: list[int], where: str) -> DiskMap:
    """Lay extent tables over each other, oldest first, and require that they cover the disk.

    Parameters
    ----------
    tables : list of Extents
        Each within its disk.
    sizes : list of int
        Size of the disk at each of them. What a smaller disk cut off does not come back with a
        larger one.
    """
    from vmbk.kernels.overlay import overlay_extents

    starts = np.cumsum([0, *(len(table.offset) for table in tables)])
    offsets, lengths, rows = (np.empty(0, np.int64) for _ in range(3))
    for table, size, first in zip(tables, sizes, starts.tolist(), strict=False):
        kept = int(np.searchsorted(offsets, size))
        offsets, rows = offsets[:kept], rows[:kept]
        lengths = np.minimum(lengths[:kept], size - offsets)
        top = len(table.offset)
        top_rows = np.arange(first, first + top, dtype=np.int64)
        merged = tuple(np.empty(kept + 2 * top, np.int64) for _ in range(3))
        count = overlay_extents(
            offsets, lengths, rows, table.offset, table.length, top_rows, *merged
        )
        offsets, lengths, rows = (part[:count] for part in merged)

    size = sizes[-1]
    source = np.concatenate([table.offset for table in tables])
    zero = np.concatenate([table.zero for table in tables])[rows]
    chunks = np.concatenate([table.chunk for table in tables])[rows]
    chunks[zero] = 0
    chunk_offsets = np.concatenate([table.chunk_offset for table in tables])[rows]
    chunk_offsets += offsets - source[rows]
    chunk_offsets[zero] = 0
    ends = np.concatenate((np.zeros(1, np.int64), offsets + lengths))
    if not (np.array_equal(ends[:-1], offsets) and ends[-1] == size):
        gap = int(np.argmax(np.append(offsets, size) != ends))
        raise IntegrityError(
            f"the map of {where} has a gap at offset {ends[gap]}: it does not cover {size} bytes",
            hint=CHECK_HINT,
        )
    return DiskMap(size, offsets, lengths, chunks, chunk_offsets, zero)


DigestReader = Callable[[Reader, tuple[bytes, ...], int, int], tuple[Int64s, Int64s]]


def read_digests(
    reader: Reader, chunks: tuple[bytes, ...], disk_size: int, block_size: int
) -> tuple[Int64s, Int64s]:
    """Blocks and digests of one digest table, verified."""
    table: Any = reader.get_table(chunks, DIGEST_SCHEMA)
    block, digest = ints_of(table.column("block")), ints_of(table.column("digest"))
    count = -(-disk_size // block_size)
    if len(block) and (
        int(block[0]) < 0 or int(block[-1]) >= count or not bool(np.all(block[1:] > block[:-1]))
    ):
        raise IntegrityError(
            f"a digest table has blocks out of order or outside 0 to {count - 1}", hint=CHECK_HINT
        )
    return block, digest


def build_digests(
    reader: Reader, point: RecoveryPoint, disk_name: str, read: DigestReader = read_digests
) -> NDArray[np.uint64]:
    """Digest of every block of a disk at a recovery point.

    Parameters
    ----------
    read : callable
        Reads a table; one that remembers tables serves who looks at a whole chain.

    Returns
    -------
    numpy.ndarray
        Shape (ceil(size / block_size),), uint64, XXH3-64.

    Raises
    ------
    NotFoundError
        If the point has no such disk, or was made without digests of all its blocks.
    IntegrityError
        If the chain is broken, a block has no digest, or the digest of all does not match.
    """
    records = chain(reader, point, disk_name)
    digests = _gather(reader, records, "digests", "block_size", read)
    where = f"disk {disk_name!r} at the point {point.id}"
    if digests is None:
        if not records[0].digest:
            raise NotFoundError(f"the block digests of {where} are not stored")
        raise IntegrityError(f"not every block of {where} has a digest", hint=CHECK_HINT)
    if records[0].digest:
        from vmbk.kernels.hash import xxh3_64

        if f"{int(xxh3_64(digests.view(np.uint8))):016x}" != records[0].digest:
            raise IntegrityError(
                f"the block digests of {where} do not match their digest", hint=CHECK_HINT
            )
    return digests


def build_sub_digests(
    reader: Reader, point: RecoveryPoint, disk_name: str
) -> NDArray[np.uint64] | None:
    """Digest of every sub-block, or None where they are not stored for the whole disk.

    Returns
    -------
    numpy.ndarray or None
        Shape (ceil(size / sub_block_size),), uint64, XXH3-64.
    """
    records = chain(reader, point, disk_name)
    if not records[0].sub_block_size or len({r.sub_block_size for r in records}) > 1:
        return None
    return _gather(reader, records, "sub_digests", "sub_block_size")


def _gather(
    reader: Reader,
    records: list[DiskRecord],
    tables: str,
    block_size: str,
    read: DigestReader = read_digests,
) -> NDArray[np.uint64] | None:
    """Digests of a whole disk from the tables of its chain, or None if one is missing."""
    newest, size = records[0], getattr(records[0], block_size)
    count = -(-newest.size // size)
    parts = []
    for record in reversed(records):
        if getattr(record, block_size) != size:
            raise IntegrityError(
                f"the {block_size} of disk {newest.name!r} changes within its chain from "
                f"{getattr(record, block_size)} to {size}",
                hint=CHECK_HINT,
            )
        parts.append((record, *read(reader, getattr(record, tables), record.size, size)))
    if sum(len(block) for _, block, _ in parts) < count:
        return None  # before anything of a size that only the manifest claims is allocated
    digests = np.zeros(count, np.int64)
    known = np.zeros(count, np.bool_)
    for record, block, digest in parts:
        known[-(-record.size // size) :] = False  # what a smaller disk cut off does not come back
        inside = block < count
        digests[block[inside]] = digest[inside]
        known[block[inside]] = True
    return digests.view(np.uint64) if known.all() else None
