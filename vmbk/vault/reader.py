"""Reading a vault's files: index, chunks, tables and manifests, each verified.

Section "Reading: order" of `FORMAT.md`. The reader knows a store, keys and an index, and nothing of
directories, locks or configuration.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
from blake3 import blake3

from vmbk.errors import (
    InputError,
    IntegrityError,
    NotFoundError,
    OutOfRangeError,
    StorageError,
    VmbkError,
)
from vmbk.vault.arrow import from_ipc
from vmbk.vault.chunk import decode
from vmbk.vault.crypto import SEALED_INDEX, SEALED_POINT, Keys
from vmbk.vault.format import (
    CHECK_HINT,
    ENTRY_SIZE,
    HEX_ID,
    ID_SIZE,
    KINDS,
    MAX_SEALED,
    POINT_ID,
    pack_name,
)
from vmbk.vault.index import Index, IndexRows, Location
from vmbk.vault.manifest import RecoveryPoint, from_payload
from vmbk.vault.sealed import unseal
from vmbk.vault.store import Store


class Reader:
    """Verified reading of everything below ``config``.

    Parameters
    ----------
    store : Store
        Where the files lie.
    keys : Keys
        The vault's subkeys.

    Attributes
    ----------
    damaged : dict of str to str
        Index files that could not be read, and why. Their chunks are missing until the index is
        rebuilt; everything else can be read.
    """

    def __init__(self, store: Store, keys: Keys) -> None:
        self.store = store
        self.keys = keys
        self.damaged: dict[str, str] = {}
        self._index = Index()
        self._loaded: set[str] | None = None
        self._lock = threading.Lock()
        self._points: dict[str, RecoveryPoint] = {}

    @property
    def index(self) -> Index:
        """The index, loaded when first asked for."""
        if self._loaded is None:
            self.refresh()
        return self._index

    def refresh(self) -> None:
        """Load the index files that are new; all of them again if one is gone."""
        with self._lock:
            names = set(self.store.list("index/"))
            if self._loaded is None or not self._loaded <= names:
                self._index = Index(self._index.lost)
                self._loaded, self.damaged = set(), {}
            parts = []
            for name in sorted(names - self._loaded):
                try:
                    parts.append(self.read_index(name))
                except IntegrityError as error:
                    self.damaged[name] = error.message
                except NotFoundError:
                    continue  # rebuilt by another process meanwhile; its replacement is listed
                self._loaded.add(name)
            self._index.add(parts)

    def written(self, name: str, rows: IndexRows) -> None:
        """Take over the rows of an index file that this process has written."""
        with self._lock:
            self._index.add([rows])
            if self._loaded is not None:
                self._loaded.add(name)

    def unlisted_packs(self) -> list[str]:
        """Names below ``packs/`` of which the index knows nothing."""
        known = {pack_name(digest) for digest in self.index.pack_sizes}
        return [name for name in self.store.list("packs/") if name not in known]

    def look_for_packs(self) -> None:
        """Note in `Index.lost` which packs are missing, or not of the size that they must have.

        One listing; no pack is opened. A pack that is lost later, or damaged within, is found by
        who reads it.
        """
        # Known before what is there: a pack is durable before an index file lists it.
        known = self.index.pack_sizes
        there = self.store.sizes("packs/")
        lost = frozenset(
            digest for digest, size in known.items() if there.get(pack_name(digest)) != size
        )
        with self._lock:
            self._index.lost = lost

    def require_whole_index(self) -> None:
        """Raise `IntegrityError` if an index file is damaged: a backup must not build on that."""
        if self.damaged:
            raise IntegrityError(
                "; ".join(self.damaged.values()),
                hint="rebuild the index from the packs (`Vault.rebuild_index`); until then every "
                "point whose chunks are found still restores",
            )

    def read_index(self, name: str) -> IndexRows:
        """Rows of one index file.

        Raises
        ------
        NotFoundError
            If there is none of this name.
        IntegrityError
            If it is damaged.
        """
        where = f"the index file {name!r}"
        digest = name.removeprefix("index/")
        if not HEX_ID.fullmatch(digest):
            raise IntegrityError(f"{name!r} is no index file", hint="remove it if it is not yours")
        data = self._whole(name, where)
        if blake3(data).hexdigest() != digest:
            raise IntegrityError(f"{where} does not match its name", hint=CHECK_HINT)
        payload = unseal(self.keys, SEALED_INDEX, "", data, where)
        return IndexRows.from_payload(payload, where)

    def _whole(self, name: str, where: str) -> bytes:
        size = self.store.size(name)
        if size > MAX_SEALED:
            raise IntegrityError(
                f"{where} has {size} bytes, at most {MAX_SEALED} are allowed", hint=CHECK_HINT
            )
        return self.store.get(name)

    def places(self, chunk: bytes) -> list[Location]:
        """Where a chunk lies: one place or more, those in lost packs last.

        Raises
        ------
        IntegrityError
            If no index file lists it.
        """
        if len(chunk) != ID_SIZE:
            raise InputError(f"{chunk!r} is no chunk id: it has {len(chunk)} bytes, not {ID_SIZE}")
        found = self.index.places(chunk)
        if not found:
            self.refresh()  # another process may have stored it since
            found = self.index.places(chunk)
        if not found:
            self.require_whole_index()
            raise IntegrityError(
                f"the chunk {chunk.hex()[:16]} is in no index file", hint=CHECK_HINT
            )
        return found

    def get(self, chunk: bytes, kind: str | None = None) -> memoryview:
        """Plaintext of a chunk, verified; where one copy cannot be read, from another.

        Parameters
        ----------
        chunk : bytes
            The chunk's id.
        kind : {"data", "table"}, optional
            What it must be.

        Raises
        ------
        IntegrityError
            If it is not in the vault or no copy of it is what was stored.
        StorageError
            If the system refused to read it.
        """
        failed: dict[Location, VmbkError] = {}
        places = self.places(chunk)
        while places:
            for place in places:
                try:
                    return self._entry(place, kind)
                except (IntegrityError, StorageError) as error:
                    failed[place] = error
            # Another process may have stored it again since. What is raised if not, or if that
            # cannot be found out, is why the first copy could not be read.
            with suppress(IntegrityError, StorageError):
                self.refresh()
            places = [place for place in self.index.places(chunk) if place not in failed]
        raise next(iter(failed.values()))

    def _entry(self, place: Location, kind: str | None) -> memoryview:
        """Plaintext of one copy of a chunk."""
        chunk = place.header.chunk
        name = pack_name(place.pack)
        at = f"the pack {name!r} at offset {place.offset}"
        if kind is not None and place.header.kind != KINDS[kind]:
            raise IntegrityError(
                f"the chunk {chunk.hex()[:16]} in {at} is not of kind {kind!r}", hint=CHECK_HINT
            )
        try:
            entry = self.store.get_range(name, place.offset, ENTRY_SIZE + place.header.stored)
        except NotFoundError:
            raise IntegrityError(f"the pack {name!r} is missing", hint=CHECK_HINT) from None
        except OutOfRangeError:
            raise IntegrityError(f"{at} is cut short", hint=CHECK_HINT) from None
        return decode(self.keys, entry, place.header, at)

    def get_table(self, chunks: Sequence[bytes], schema: Any | None = None) -> Any:
        """Table of some chunks, verified, its rows in the order of the chunks.

        Parameters
        ----------
        chunks : sequence of bytes
            Chunk ids; none of them gives a table without rows, for which a schema is needed.
        schema : pyarrow.Schema, optional
            What the schema must be.

        Raises
        ------
        IntegrityError
            If a chunk is no table, or the tables do not fit together.
        """
        parts: list[Any] = []
        for chunk in chunks:
            part = from_ipc(
                self.get(chunk, "table"), f"the table chunk {bytes(chunk).hex()[:16]}", schema
            )
            schema = part.schema if schema is None else schema
            parts.append(part)
        if schema is None:
            raise InputError("no chunks were given, and no schema for a table without rows")
        return pa.concat_tables(parts).combine_chunks() if parts else schema.empty_table()

    def point_ids(self) -> tuple[str, ...]:
        """File names below ``points/``, whether they are point ids or not."""
        return tuple(name.removeprefix("points/") for name in self.store.list("points/"))

    def point(self, point_id: str) -> RecoveryPoint:
        """Read one recovery point's manifest.

        Raises
        ------
        NotFoundError
            If there is none of this id.
        IntegrityError
            If it is damaged.
        """
        known = self._points.get(point_id)
        if known is not None:
            return known
        name = f"points/{point_id}"
        where = f"the manifest {name!r}"
        if not POINT_ID.fullmatch(point_id):
            raise IntegrityError(f"{name!r} is no manifest", hint="remove it if it is not yours")
        data = self._whole(name, where)
        point = from_payload(
            unseal(self.keys, SEALED_POINT, point_id, data, where), point_id, where
        )
        self._points[point_id] = point
        return point

    def read_points(self) -> tuple[list[RecoveryPoint], dict[str, VmbkError]]:
        """All recovery points by time, and what is wrong with the manifests that do not open."""
        good: list[RecoveryPoint] = []
        bad: dict[str, VmbkError] = {}
        for point_id in self.point_ids():
            try:
                good.append(self.point(point_id))
            except NotFoundError:
                continue  # deleted meanwhile
            except (IntegrityError, StorageError) as error:
                bad[point_id] = error
        return sorted(good, key=lambda point: (point.created_ns, point.id)), bad
