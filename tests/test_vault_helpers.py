"""What the vault's tests share: small backups, made and read the slow, obvious way."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from blake3 import blake3

from vmbk.errors import VmbkError
from vmbk.vault import DIGEST_SCHEMA, EXTENT_SCHEMA, DiskRecord, RecoveryPoint, Vault
from vmbk.vault.crypto import Random
from vmbk.vault.store import LocalStore
from vmbk.vault.writer import VaultWriter

BLOCK = 512
"""Block size of the disks in these tests: small, so that a disk has many."""

START_NS = 1_795_255_200_000_000_000
"""2026-11-21T10:00:00Z."""


def seeded(seed: int) -> Random:
    """A reproducible source of random bytes."""
    counter = itertools.count()
    return lambda n: blake3(f"{seed}/{next(counter)}".encode()).digest(length=n)


def ticking(start: int = START_NS, step: int = 10**9) -> Callable[[], int]:
    """A clock that goes one step further at each look."""
    return itertools.count(start, step).__next__


def new_vault(folder: Path, **options: Any) -> Vault:
    """An empty vault in ``folder/vault`` with the key ``folder/key``, not synced."""
    options = {"durability": "none", "pack_target": 1 << 16} | options
    return Vault.create(folder / "vault", folder / "key", **options)


def reopen(folder: Path, **options: Any) -> Vault:
    """The same vault, opened anew."""
    return Vault.open(folder / "vault", folder / "key", **({"durability": "none"} | options))


Row = tuple[int, int, bytes | None, int]


def extent_table(rows: Sequence[Row]) -> Any:
    """Extents of (offset, length, chunk or None, offset in the chunk)."""
    columns = list(zip(*rows, strict=True)) or [[], [], [], []]
    return pa.table(dict(zip(EXTENT_SCHEMA.names, map(list, columns), strict=True)), EXTENT_SCHEMA)


def digest_table(digests: Mapping[int, int]) -> Any:
    """Digests by block."""
    blocks = sorted(digests)
    values = np.array([digests[b] for b in blocks], np.uint64).view(np.int64)
    return pa.table([np.array(blocks, np.int64), values], schema=DIGEST_SCHEMA)


def blocks_of(content: bytes, size: int = BLOCK) -> list[bytes]:
    return [content[i : i + size] for i in range(0, len(content), size)]


def digest_of_all(digests: Sequence[int]) -> str:
    return xxhash.xxh3_64_hexdigest(struct.pack(f"<{len(digests)}Q", *digests))


def disk_record(
    writer: VaultWriter,
    vault: Vault,
    name: str,
    content: bytes,
    parent: RecoveryPoint | None = None,
    **fields: Any,
) -> DiskRecord:
    """Store a disk block by block: all of it, or what differs from the parent."""
    old: list[bytes] = []
    if parent is not None:
        old = blocks_of(read_back(vault, parent, name))
    rows: list[Row] = []
    changed, digests = {}, []
    for i, block in enumerate(blocks_of(content)):
        digests.append(xxhash.xxh3_64_intdigest(block))
        if i < len(old) and old[i] == block:
            continue
        changed[i] = digests[i]
        chunk = writer.put(block).id if any(block) else None
        rows.append((i * BLOCK, len(block), chunk, 0))
    return DiskRecord(
        name=name,
        size=len(content),
        block_size=BLOCK,
        detector="checksum" if parent else "full",
        parent=parent.id if parent else "",
        extents=writer.put_table(extent_table(rows)),
        digests=writer.put_table(digest_table(changed)),
        digest=digest_of_all(digests),
        changed_bytes=sum(row[1] for row in rows),
        **fields,
    )


def back_up(
    vault: Vault,
    disks: Mapping[str, bytes],
    parent: RecoveryPoint | None = None,
    vm: str = "vm",
    consistency: str = "crash",
) -> RecoveryPoint:
    """One recovery point of some disks."""
    with vault.writer(vm) as writer:
        records = [
            disk_record(writer, vault, name, content, parent) for name, content in disks.items()
        ]
        return writer.commit(vm, records, consistency, {"made": "by a test"})


def read_back(vault: Vault, point: RecoveryPoint, name: str) -> bytes:
    """Content of a disk, extent by extent."""
    disk_map = vault.disk_map(point, name)
    content = bytearray(b"\xee" * disk_map.size)
    for i in range(len(disk_map)):
        offset, length = int(disk_map.offsets[i]), int(disk_map.lengths[i])
        if disk_map.zero[i]:
            data = bytes(length)
        else:
            start = int(disk_map.chunk_offsets[i])
            data = bytes(vault.get(disk_map.chunks[i].tobytes())[start : start + length])
        assert len(data) == length
        content[offset : offset + length] = data
    return bytes(content)


def content(seed: int, size: int, zeros: float = 0.25) -> bytes:
    """Blocks that are random, zero, or text."""
    rng = np.random.default_rng(seed)
    blocks = []
    for start in range(0, size, BLOCK):
        length = min(BLOCK, size - start)
        draw = rng.random()
        if draw < zeros:
            blocks.append(bytes(length))
        elif draw < 0.7:
            blocks.append(rng.bytes(length))
        else:
            blocks.append((b"%d bottles of beer on the wall\n" % rng.integers(99) * 99)[:length])
    return b"".join(blocks)


def changed(seed: int, before: bytes, count: int = 3) -> bytes:
    """The content with a few ranges overwritten."""
    rng = np.random.default_rng(seed)
    after = bytearray(before)
    for _ in range(count):
        start = int(rng.integers(len(before)))
        length = int(rng.integers(1, min(700, len(before) - start) + 1))
        after[start : start + length] = rng.bytes(length)
    return bytes(after)


def everything_restores(vault: Vault, contents: Mapping[str, Mapping[str, bytes]]) -> None:
    """Each of the points (id to disks to content) gives back what was stored."""
    for point_id, disks in contents.items():
        point = vault.point(point_id)
        for name, expected in disks.items():
            assert read_back(vault, point, name) == expected
            vault.digests(point, name)


def nothing_wrong_is_read(vault: Vault, contents: Mapping[str, Mapping[str, bytes]]) -> None:
    """Each of the points gives back what was stored, or an error; never anything else."""
    for point_id, disks in contents.items():
        for name, expected in disks.items():
            try:
                found = read_back(vault, vault.point(point_id), name)
            except VmbkError:
                continue
            assert found == expected


class FaultyStore:
    """A store whose puts fail from the n-th on, as if the machine had stopped there.

    Attributes
    ----------
    fired : bool
        Whether the planned fault came up; a test must require it.
    """

    def __init__(self, store: LocalStore, puts: int, error: Exception) -> None:
        self._store = store
        self._left = puts
        self._error = error
        self.fired = False

    def put(self, name: str, data: Any) -> None:
        if self._left <= 0:
            self.fired = True
            raise self._error
        self._left -= 1
        self._store.put(name, data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
