"""Writing: chunks into packs, packs into the index, and last the manifest of a recovery point.

Section "Writing: order" of `FORMAT.md`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, NamedTuple, cast

from blake3 import blake3
from numpy.typing import NDArray

from vmbk.disk.direct import aligned_buffer
from vmbk.errors import InputError, StorageError, VmbkError
from vmbk.vault.arrow import ID_TYPE, ids_of, nulls_of, to_ipc
from vmbk.vault.chunk import encrypt, prepare
from vmbk.vault.crypto import SEALED_INDEX, SEALED_POINT, Random
from vmbk.vault.format import (
    ENTRY_SIZE,
    ID_SIZE,
    INDEX_PACKS,
    INDEX_ROWS,
    KINDS,
    MAX_CHUNK,
    MAX_TABLE_CHUNK,
    PACK_HEADER_SIZE,
    TAG_SIZE,
    TRAILER_SIZE,
    Buffer,
)
from vmbk.vault.index import IndexRows
from vmbk.vault.manifest import (
    DiskRecord,
    RecoveryPoint,
    check_point,
    new_point_id,
    to_payload,
)
from vmbk.vault.pack import PackBuilder, PackEntries
from vmbk.vault.reader import Reader
from vmbk.vault.restorable import lost_error, require_restorable
from vmbk.vault.sealed import seal
from vmbk.vault.store import SAFE_HINT

BUFFERS: Final = 3
"""Packs in memory at most: one being filled, one being stored, one in between."""

_ENTRY_OVERHEAD: Final = 2 * ENTRY_SIZE + TAG_SIZE  # the footer repeats the header


class ChunkRef(NamedTuple):
    """What became of bytes that were put into a vault.

    Attributes
    ----------
    id : bytes
        Chunk id, 32 bytes.
    new : bool
        Whether the vault did not have them.
    raw : int
        Bytes that were put.
    stored : int
        Bytes by which the vault grew: 0 unless new.
    """

    id: bytes
    new: bool
    raw: int
    stored: int


class VaultWriter:
    """One backup job's way into a vault; made by `Vault.writer`, which holds the locks.

    `put` and `put_table` may be called from many threads; `commit` once, when they are done. After
    any failure the writer refuses everything: a chunk that was promised might be missing.
    """

    def __init__(
        self,
        reader: Reader,
        vm: str,
        *,
        pack_target: int,
        random: Random,
        clock: Callable[[], int],
    ) -> None:
        self.vm = vm
        self._reader = reader
        self._keys = reader.keys
        self._store = reader.store
        self._pack_target = pack_target
        self._random = random
        self._clock = clock
        self._lock = threading.Condition()
        self._pack: PackBuilder | None = None
        self._buffers: list[memoryview] = []  # those that no pack uses
        self._made = 0  # buffers in all
        self._stores: ThreadPoolExecutor | None = None
        self._jobs: list[Future[None]] = []
        self._session: set[bytes] = set()  # chunks that are promised and in no index file yet
        self._unindexed: list[PackEntries] = []
        self._active = 0  # calls under way
        self._stored = 0
        self._failure: str | None = None
        self._closed = False

    @property
    def stored_bytes(self) -> int:
        """Bytes by which the vault grows: chunks put so far, and packs, index and manifest."""
        return self._stored

    def put(self, data: Buffer | NDArray[Any], kind: str = "data") -> ChunkRef:
        """Store a chunk unless the vault has it.

        What lies only in packs that were missing, or had another size than they must have, when
        the writer was made does not count: it is stored again.

        Parameters
        ----------
        data : bytes-like or numpy.ndarray
            Contiguous, 1 byte to 16 MiB.
        kind : {"data", "table"}
            What the chunk holds.

        Raises
        ------
        InputError
            If the data is empty or too large, or the kind unknown.
        StorageError
            If the store refuses; the writer is of no use afterwards.
        """
        if kind not in KINDS:
            raise InputError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        number, view = KINDS[kind], _bytes_of(data)
        raw = len(view)
        if not 1 <= raw <= MAX_CHUNK:
            raise InputError(f"a chunk has 1 to {MAX_CHUNK} bytes, not {raw}")
        chunk = self._keys.chunk_id(number, view)
        with self._lock:
            self._require_usable()
            if chunk in self._session or self._reader.index.holds(chunk):
                return ChunkRef(chunk, False, raw, 0)
            self._session.add(chunk)
            self._active += 1
        try:
            header, body = prepare(number, chunk, view, self._random)
            self._append(header, body)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            with self._lock:
                self._active -= 1
        return ChunkRef(chunk, True, raw, len(body) + _ENTRY_OVERHEAD)

    def put_table(self, table: Any) -> tuple[bytes, ...]:
        """Store an Arrow table as chunks of kind ``"table"``.

        Parameters
        ----------
        table : pyarrow.Table
            Chunk ids in a column ``chunk`` of fixed_size_binary(32) must be ones that are stored.

        Returns
        -------
        tuple of bytes
            Chunk ids, in order; none for a table without rows.

        Raises
        ------
        InputError
            If the table refers to a chunk that the vault does not have.
        IntegrityError
            If it refers to one that only a lost pack holds.
        """
        index = table.schema.get_field_index("chunk")
        if index >= 0 and table.schema.field(index).type == ID_TYPE:
            self._require_stored(table.column(index))
        return tuple(self.put(part, "table").id for part in _table_parts(table))

    def commit(
        self,
        vm: str,
        disks: Sequence[DiskRecord],
        consistency: str,
        provenance: dict[str, Any] | None = None,
    ) -> RecoveryPoint:
        """Make the recovery point; it exists, durably, when this returns.

        Parameters
        ----------
        vm : str
            The VM that this writer was made for.
        disks : sequence of DiskRecord
            All disks of the point.
        consistency : {"application", "filesystem", "crash"}
            What is claimed.
        provenance : dict, optional
            Plain data on what made the point.

        Raises
        ------
        InputError
            If a record is not allowed.
        IntegrityError
            If the map of a disk does not cover it, or refers to what is not in the vault or only
            in packs that are lost: such a point is never made.
        StorageError
            If the store refuses.
        """
        if vm != self.vm:
            raise InputError(f"this writer is for the VM {self.vm!r}, not {vm!r}")
        with self._lock:
            self._require_usable()
            if self._active:
                raise InputError(f"commit while {self._active} chunks are being stored")
            self._closed = True
        self._flush()
        now = max(self._clock(), 1 + max(self._times(), default=-1))
        point = RecoveryPoint(
            id=new_point_id(now, self._random(4)),
            vm=vm,
            created_ns=now,
            consistency=consistency,
            disks=tuple(disks),
            provenance=dict(provenance or {}),
        )
        check_point(point, InputError, "this recovery point")
        self._reader.look_for_packs()  # once more: the job may have taken hours
        for disk in point.disks:
            require_restorable(self._reader, point, disk.name)
        sealed = seal(self._keys, SEALED_POINT, point.id, to_payload(point), self._random)
        self._store.put(f"points/{point.id}", sealed)
        self._stored += len(sealed)
        return point

    def _times(self) -> Iterator[int]:
        points, _ = self._reader.read_points()
        return (point.created_ns for point in points if point.vm == self.vm)

    def abandon(self) -> None:
        """Give up: what was stored so far is listed, so that another run finds it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        # The reason for giving up is what the user must see, not what else fails now.
        with contextlib.suppress(VmbkError):
            self._wait()
        with contextlib.suppress(VmbkError):
            self._list_packs()

    def _require_usable(self) -> None:
        self._require_sound()
        if self._closed:
            raise InputError("this writer is done", hint="make another with Vault.writer")

    def _require_sound(self) -> None:
        if self._failure is not None:
            raise StorageError(self._failure, hint=SAFE_HINT)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._failure is None and isinstance(error, VmbkError):
                self._failure = error.message
            elif self._failure is None:
                self._failure = f"writing to the vault has failed before: {error!r}"
            self._lock.notify_all()

    def _append(self, header: bytes, body: memoryview) -> None:
        with self._lock:
            pack = self._open_pack()
            offset, room = pack.reserve(header, len(body) + TAG_SIZE)
            self._stored += len(body) + _ENTRY_OVERHEAD
            if pack.size >= self._pack_target:
                pack.full, self._pack = True, None
        encrypt(self._keys, header, body, room)
        with self._lock:
            pack.filled(offset)
            part = pack.claim()
        while part is not None:
            pack.absorb(part)
            with self._lock:
                part = pack.claim(part)
        with self._lock:
            if pack.take():
                self._submit(pack)

    def _open_pack(self) -> PackBuilder:
        """The pack that is being filled; waits while all buffers are on their way to the store."""
        while self._pack is None:
            self._require_usable()
            if self._buffers:
                buffer = self._buffers.pop()
            elif self._made < BUFFERS:
                self._made += 1
                room = self._pack_target + MAX_CHUNK + ENTRY_SIZE + TAG_SIZE
                buffer = _bytes_of(aligned_buffer(room))  # memory only where it is used
            else:
                self._lock.wait()
                continue
            self._pack = PackBuilder(self._keys.vault_id, buffer)
        return self._pack

    def _submit(self, pack: PackBuilder) -> None:
        # A thread of its own writes packs: it mostly waits for a sync, during which the thread
        # that filled the pack can go on compressing.
        if self._stores is None:
            self._stores = ThreadPoolExecutor(1, "vmbk-packs")
        self._jobs = [job for job in self._jobs if not job.done() or job.exception()]
        self._jobs.append(self._stores.submit(self._store_pack, pack))

    def _store_pack(self, pack: PackBuilder) -> None:
        try:
            with self._lock:
                self._require_sound()
            entries, parts = pack.finish(self._keys)
            self._store.put(entries.name, parts)
            due = []
            with self._lock:
                self._stored += PACK_HEADER_SIZE + TRAILER_SIZE
                self._unindexed.append(entries)
                rows = sum(len(part.entries) for part in self._unindexed)
                if len(self._unindexed) >= INDEX_PACKS or rows >= INDEX_ROWS:
                    due, self._unindexed = self._unindexed, []
            if due:
                self._store_index(due)
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            with self._lock:
                self._buffers.append(pack.buffer)
                self._lock.notify_all()

    def _store_index(self, packs: list[PackEntries]) -> None:
        size = store_index(self._reader, packs, self._random)
        with self._lock:  # only after they are found in the index
            self._stored += size
            self._session.difference_update(row.tobytes() for pack in packs for row in pack.chunks)

    def _flush(self) -> None:
        """Everything that was put is stored and listed when this returns."""
        with self._lock:
            if self._pack is not None:
                pack, self._pack = self._pack, None
                self._submit(pack)
        self._wait()
        self._list_packs()

    def _list_packs(self) -> None:
        packs, self._unindexed = self._unindexed, []
        if packs:
            self._store_index(packs)

    def _wait(self) -> None:
        """Wait for the packs on their way to the store; raise if one did not get there."""
        if self._stores is not None:
            self._stores.shutdown()
            self._stores = None
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job.result()

    def _require_stored(self, column: Any) -> None:
        ids = ids_of(column)[~nulls_of(column)]
        with self._lock:
            index = self._reader.index
            known = index.raw_lengths(ids, KINDS["data"], present=True) >= 0
            for row in ids[~known]:
                chunk = row.tobytes()
                if chunk in self._session:
                    continue
                if int(index.raw_lengths(row[None], KINDS["data"])[0]) >= 0:
                    raise lost_error(self._reader, chunk, "a table")
                raise InputError(
                    f"a table refers to the chunk {chunk.hex()[:16]}, which is not in the vault",
                    hint="put the data first",
                )


def store_index(reader: Reader, packs: list[PackEntries], random: Random) -> int:
    """List packs in an index file, and take it over in the reader; bytes of the file."""
    return store_rows(reader, IndexRows.of(packs), random)


def store_rows(reader: Reader, rows: IndexRows, random: Random) -> int:
    """Store rows of whole packs as an index file, as `store_index` does."""
    data = seal(reader.keys, SEALED_INDEX, "", rows.to_payload(), random)
    name = f"index/{blake3(data).hexdigest()}"
    reader.store.put(name, data)
    reader.written(name, rows)
    return len(data)


def _bytes_of(data: Buffer | NDArray[Any]) -> memoryview:
    try:
        view = memoryview(cast(Buffer, data))
        return view.cast("B") if view.nbytes else memoryview(b"")
    except (TypeError, ValueError) as error:
        raise InputError(f"data to store must be contiguous bytes: {error}") from None


def _table_parts(table: Any) -> Iterator[memoryview]:
    """Arrow IPC streams of at most `MAX_TABLE_CHUNK` bytes that together hold the table."""
    if not table.num_rows:
        return
    # Cut at a fixed number of rows, so that a table that only grows keeps its first chunks.
    row = sum(_row_bytes(field.type) for field in table.schema)
    step = max(1, (MAX_TABLE_CHUNK - (64 << 10)) // row)
    for start in range(0, table.num_rows, step):
        yield from _halved(table.slice(start, step))


def _row_bytes(kind: Any) -> int:
    """Bytes of a value and its validity; a guess for types without a fixed width."""
    try:
        return 1 + max(1, int(kind.bit_width) // 8)
    except ValueError:
        return ID_SIZE


def _halved(table: Any) -> Iterator[memoryview]:
    payload = to_ipc(table)
    if len(payload) <= MAX_TABLE_CHUNK:
        yield payload
    elif table.num_rows == 1:
        raise InputError(f"one row of a table has {len(payload)} bytes, over {MAX_TABLE_CHUNK}")
    else:
        half = table.num_rows // 2
        yield from _halved(table.slice(0, half))
        yield from _halved(table.slice(half))
