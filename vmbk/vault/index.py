"""The index: where each chunk lies, as sorted arrays, and as sealed Arrow tables.

Section "Index" of `FORMAT.md`. A loaded index is a few arrays, about 70 bytes a chunk: no Python
object is made for a chunk that is only known.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vmbk.errors import IntegrityError
from vmbk.vault.arrow import ID_TYPE, from_ipc, id_array, ids_of, int_array, ints_of, to_ipc
from vmbk.vault.format import (
    CHECK_HINT,
    ENTRY_SIZE,
    ID_SIZE,
    PACK_HEADER_SIZE,
    PACK_LIMIT,
    Buffer,
    EntryHeader,
    entries_allowed,
    pack_size,
)
from vmbk.vault.pack import PackEntries

_VERSION_KEY: Final = b"vmbk.index"

INDEX_SCHEMA: Final = pa.schema(
    [
        pa.field("chunk", ID_TYPE, nullable=False),
        pa.field("pack", pa.dictionary(pa.int32(), ID_TYPE), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("stored", pa.int32(), nullable=False),
        pa.field("raw", pa.int32(), nullable=False),
        pa.field("kind", pa.int8(), nullable=False),
        pa.field("compression", pa.int8(), nullable=False),
    ],
    metadata={_VERSION_KEY: b"1"},
)
"""Columns of an index file."""


class Location(NamedTuple):
    """Where a chunk lies."""

    pack: bytes
    offset: int
    header: EntryHeader  # its nonce is not known to the index


@dataclass(frozen=True, eq=False)
class IndexRows:
    """Entries of some packs, pack by pack.

    Attributes
    ----------
    packs : tuple of bytes
        Digests of the packs, distinct.
    pack : numpy.ndarray
        Shape (n,), int32: which of ``packs``.
    chunk : numpy.ndarray
        Shape (n, 32), uint8: chunk ids.
    offset : numpy.ndarray
        Shape (n,), int64: bytes from the start of the pack to the entry header.
    stored, raw : numpy.ndarray
        Shape (n,), int32, bytes.
    kind, compression : numpy.ndarray
        Shape (n,), int8.
    """

    packs: tuple[bytes, ...]
    pack: NDArray[np.int32]
    chunk: NDArray[np.uint8]
    offset: NDArray[np.int64]
    stored: NDArray[np.int32]
    raw: NDArray[np.int32]
    kind: NDArray[np.int8]
    compression: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.pack)

    @classmethod
    def of(cls, packs: Iterable[PackEntries]) -> IndexRows:
        """Rows of whole packs."""
        packs = tuple(packs)
        entries = [pack.entries for pack in packs]

        def column(name: str, dtype: Any) -> NDArray[Any]:
            return np.concatenate([part[name] for part in entries]).astype(dtype)

        return cls(
            packs=tuple(pack.digest for pack in packs),
            pack=np.repeat(np.arange(len(packs), dtype=np.int32), [len(part) for part in entries]),
            chunk=np.concatenate([pack.chunks for pack in packs]),
            offset=np.concatenate([pack.offsets[:-1] for pack in packs]),
            stored=column("stored", np.int32),
            raw=column("raw", np.int32),
            kind=column("kind", np.int8),
            compression=column("compression", np.int8),
        )

    def to_table(self) -> Any:
        """The rows as an Arrow table in `INDEX_SCHEMA`."""
        names = np.frombuffer(b"".join(self.packs), np.uint8).reshape(-1, ID_SIZE)
        columns = [
            id_array(self.chunk),
            pa.DictionaryArray.from_arrays(int_array(self.pack), id_array(names)),
            *(
                int_array(getattr(self, name))
                for name in ("offset", "stored", "raw", "kind", "compression")
            ),
        ]
        return pa.Table.from_arrays(columns, schema=INDEX_SCHEMA)

    def to_payload(self) -> memoryview:
        """The rows as the payload of an index file."""
        return to_ipc(self.to_table())

    @classmethod
    def from_payload(cls, payload: Buffer, where: str) -> IndexRows:
        """Read an index file's payload and refuse what the format does not allow.

        Raises
        ------
        IntegrityError
            Naming ``where``.
        """
        table = from_ipc(payload, where, INDEX_SCHEMA)
        if (table.schema.metadata or {}).get(_VERSION_KEY) != b"1":
            raise IntegrityError(f"{where} is an index of an unknown version", hint=CHECK_HINT)
        pack = table.column("pack").combine_chunks()
        if isinstance(pack, pa.ChunkedArray):  # several dictionaries: not ours
            pack = pack.unify_dictionaries().combine_chunks()
        names = pack.dictionary
        if names.null_count:
            raise IntegrityError(f"{where} has a pack without a name", hint=CHECK_HINT)
        rows = cls(
            packs=tuple(row.tobytes() for row in ids_of(names)),
            pack=ints_of(pack.indices),
            chunk=ids_of(table.column("chunk")),
            **{
                name: ints_of(table.column(name))
                for name in ("offset", "stored", "raw", "kind", "compression")
            },
        )
        rows._check(where)
        return rows

    def _check(self, where: str) -> None:
        def refuse(what: str) -> None:
            raise IntegrityError(f"{where} {what}", hint=CHECK_HINT)

        if not len(self):
            refuse("has no rows")
        if not entries_allowed(self.kind, self.compression, self.raw, self.stored):
            refuse("has an entry that the format does not allow")
        firsts = self._firsts()
        if len(set(self.packs)) != len(self.packs) or len(firsts) != len(self.packs):
            refuse("does not list each of its packs once and whole")
        if len(set(self.pack[firsts].tolist())) != len(firsts):
            refuse("lists a pack in two places")
        # Within a pack each entry begins where the one before it ends.
        expected = self.offset + self.stored + ENTRY_SIZE
        begins = np.concatenate((np.zeros(1, np.int64), expected[:-1]))
        begins[firsts] = PACK_HEADER_SIZE
        if not np.array_equal(begins, self.offset) or bool(np.any(self.offset >= PACK_LIMIT)):
            refuse("has entries that do not follow each other in their pack")

    def _firsts(self) -> NDArray[np.int64]:
        """Row numbers at which a pack begins."""
        changes = np.flatnonzero(np.diff(self.pack)) + 1
        return np.concatenate((np.zeros(1, np.int64), changes))

    def without(self, packs: Collection[bytes]) -> IndexRows:
        """The rows of all packs but these."""
        kept = np.array([digest not in packs for digest in self.packs], np.bool_)
        rows = kept[self.pack]
        numbers = (np.cumsum(kept) - 1).astype(np.int32)
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        columns["pack"] = numbers[columns["pack"]]
        names = tuple(digest for digest in self.packs if digest not in packs)
        return IndexRows(packs=names, **columns)

    def pack_sizes(self) -> dict[bytes, int]:
        """Size in bytes of each pack, which follows from its entries."""
        firsts = self._firsts()
        lasts = np.concatenate((firsts[1:], [len(self)])) - 1
        return {
            self.packs[self.pack[first]]: pack_size(
                int(self.offset[last]) + ENTRY_SIZE + int(self.stored[last]), int(last - first) + 1
            )
            for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True)
        }


class _Segment:
    """Rows sorted by chunk id's first eight bytes, big-endian."""

    __slots__ = ("columns", "keys")

    def __init__(self, keys: NDArray[np.uint64], columns: dict[str, NDArray[Any]]) -> None:
        order = np.argsort(keys, kind="stable")
        self.keys = keys[order]
        self.columns = {name: column[order] for name, column in columns.items()}

    def __len__(self) -> int:
        return len(self.keys)


_COLUMNS: Final = tuple(field.name for field in fields(IndexRows) if field.name != "packs")


def _keys_of(ids: NDArray[np.uint8]) -> NDArray[np.uint64]:
    return np.ascontiguousarray(ids[:, :8]).view(">u8").ravel().astype(np.uint64)


class Index:
    """All chunks that are known, and the packs that hold them.

    Reading needs no lock: a reader sees the segments as they were or as they are. Adding takes one.

    Attributes
    ----------
    pack_sizes : dict of bytes to int
        Packs and their sizes in bytes.
    lost : frozenset of bytes
        Those of them that were found missing, or of another size, when the packs were last looked
        at. Nothing new is built on what only they hold.
    """

    def __init__(self, lost: frozenset[bytes] = frozenset()) -> None:
        self._lock = threading.Lock()
        self._segments: tuple[_Segment, ...] = ()
        self._packs: list[bytes] = []
        self.pack_sizes: dict[bytes, int] = {}
        self.lost = lost

    def __len__(self) -> int:
        return sum(map(len, self._segments))

    def add(self, parts: Iterable[IndexRows]) -> None:
        """Add rows; one sort for all of them.

        Raises
        ------
        IntegrityError
            If two index files disagree on a pack; nothing is added then.
        """
        parts = [part for part in parts if len(part)]
        if not parts:
            return
        with self._lock:
            sizes = dict(self.pack_sizes)
            first = len(self._packs)
            columns: dict[str, list[NDArray[Any]]] = {name: [] for name in _COLUMNS}
            packs: list[bytes] = []
            for part in parts:
                for digest, size in part.pack_sizes().items():
                    if sizes.setdefault(digest, size) != size:
                        raise IntegrityError(
                            f"index files disagree on the pack {digest.hex()!r}", hint=CHECK_HINT
                        )
                for name in _COLUMNS:
                    columns[name].append(getattr(part, name))
                columns["pack"][-1] = part.pack + np.int32(first + len(packs))
                packs += part.packs
            joined = {name: np.concatenate(column) for name, column in columns.items()}
            self._packs += packs  # before the segments that refer to them
            self.pack_sizes = sizes
            segments = [*self._segments, _Segment(_keys_of(joined["chunk"]), joined)]
            # Merging the last two while they are of a size keeps the number of segments
            # logarithmic, and so the cost of a look-up, however often a long job adds rows.
            while len(segments) > 1 and 2 * len(segments[-1]) >= len(segments[-2]):
                segments[-2:] = [_merged(segments[-2], segments[-1])]
            self._segments = tuple(segments)

    def find(self, chunk: bytes) -> Location | None:
        """Where a chunk lies, or None; the best of the places if there are several."""
        return next(iter(self.places(chunk)), None)

    def holds(self, chunk: bytes) -> bool:
        """Whether a chunk lies in a pack that is not lost."""
        found = self.find(chunk)
        return found is not None and found.pack not in self.lost

    def places(self, chunk: bytes) -> list[Location]:
        """All places where a chunk lies, those in lost packs last."""
        lost = self.lost
        return sorted(self._places(chunk), key=lambda place: place.pack in lost)

    def _places(self, chunk: bytes) -> Iterator[Location]:
        key = np.uint64(int.from_bytes(chunk[:8], "big"))
        for segment in self._segments:
            row = int(segment.keys.searchsorted(key))
            while row < len(segment) and segment.keys[row] == key:
                columns = segment.columns
                if columns["chunk"][row].tobytes() == chunk:
                    header = EntryHeader(
                        columns["kind"][row].item(),
                        columns["compression"][row].item(),
                        columns["raw"][row].item(),
                        columns["stored"][row].item(),
                        chunk,
                        b"",
                    )
                    yield Location(
                        self._packs[columns["pack"][row]], columns["offset"][row].item(), header
                    )
                row += 1

    def raw_lengths(
        self, chunks: NDArray[np.uint8], kind: int, *, present: bool = False
    ) -> NDArray[np.int64]:
        """Plaintext lengths of many chunks at once.

        Parameters
        ----------
        chunks : numpy.ndarray
            Shape (n, 32), uint8.
        kind : int
            Only chunks of this kind count.
        present : bool
            Only chunks in packs that are not lost count.

        Returns
        -------
        numpy.ndarray
            Shape (n,), int64, bytes; -1 where a chunk is not known.
        """
        keys = _keys_of(chunks)
        lengths = np.full(len(keys), -1, np.int64)
        segments, lost = self._segments, self.lost if present else frozenset()
        packs = self._packs[:] if lost else []  # looked at after the segments that refer to them
        gone = np.array([digest in lost for digest in packs], np.bool_)
        for segment in segments:
            open_ = np.flatnonzero(lengths < 0)
            rows = segment.keys.searchsorted(keys[open_])
            while len(open_):
                inside = rows < len(segment)
                open_, rows = open_[inside], rows[inside]
                same_key = segment.keys[rows] == keys[open_]
                open_, rows = open_[same_key], rows[same_key]
                found = (segment.columns["chunk"][rows] == chunks[open_]).all(axis=1)
                found &= segment.columns["kind"][rows] == kind
                if lost:
                    found &= ~gone[segment.columns["pack"][rows]]
                lengths[open_[found]] = segment.columns["raw"][rows[found]]
                # Another chunk with the same first eight bytes, or another copy: the next row.
                open_, rows = open_[~found], rows[~found] + 1
        return lengths

    def rows_of_packs(self) -> Iterator[tuple[bytes, PackRows]]:
        """Digest and entries, in order, of every pack of every index file; for checks."""
        for segment in self._segments:
            columns = segment.columns
            order = np.lexsort((columns["offset"], columns["pack"]))
            cuts = np.flatnonzero(np.diff(columns["pack"][order])) + 1
            for part in np.split(order, cuts):
                digest = self._packs[int(columns["pack"][part[0]])]
                yield digest, PackRows(*(columns[name][part] for name in PackRows._fields))

    def columns(self) -> dict[str, NDArray[Any]]:
        """All rows, column by column, with the pack's digest as shape (n, 32); empty without."""
        segments = self._segments
        if not segments:
            return {}
        joined = {
            name: np.concatenate([segment.columns[name] for segment in segments])
            for name in _COLUMNS
        }
        names = np.frombuffer(b"".join(self._packs), np.uint8).reshape(-1, ID_SIZE)
        joined["pack"] = names[joined["pack"]]
        return joined


class PackRows(NamedTuple):
    """What the index says about the entries of one pack, in order."""

    chunk: NDArray[np.uint8]
    offset: NDArray[np.int64]
    stored: NDArray[np.int32]
    raw: NDArray[np.int32]
    kind: NDArray[np.int8]
    compression: NDArray[np.int8]

    def agree_with(self, footer: PackEntries) -> bool:
        """Whether the pack's own footer says the same."""
        entries = footer.entries
        return len(entries) == len(self.offset) and all(
            np.array_equal(a, b)
            for a, b in (
                (self.chunk, footer.chunks),
                (self.offset, footer.offsets[:-1]),
                (self.stored, entries["stored"]),
                (self.raw, entries["raw"]),
                (self.kind, entries["kind"]),
                (self.compression, entries["compression"]),
            )
        )


def _merged(a: _Segment, b: _Segment) -> _Segment:
    return _Segment(
        np.concatenate((a.keys, b.keys)),
        {name: np.concatenate((a.columns[name], b.columns[name])) for name in _COLUMNS},
    )
