"""Packs: building one in memory, and reading what one says about itself.

Section "Packs" of `FORMAT.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from vmbk.errors import IntegrityError, NotFoundError, OutOfRangeError, StorageError
from vmbk.units import KIB
from vmbk.vault.chunk import decode
from vmbk.vault.crypto import Keys, same
from vmbk.vault.format import (
    CHECK_HINT,
    ENTRY_DTYPE,
    ENTRY_MAGIC,
    ENTRY_SIZE,
    PACK_HEADER_SIZE,
    PACK_LIMIT,
    TRAILER_SIZE,
    Buffer,
    entries_allowed,
    entry_offsets,
    pack_header,
    pack_name,
    parse_trailer,
    trailer_fields,
)
from vmbk.vault.store import Store


@dataclass(frozen=True)
class PackEntries:
    """What a pack holds.

    Attributes
    ----------
    digest : bytes
        BLAKE3-256 of the pack: its name.
    entries : numpy.ndarray
        Shape (n,), the entry headers as `ENTRY_DTYPE` records.
    """

    digest: bytes
    entries: NDArray[Any]

    @property
    def name(self) -> str:
        """Name of the pack in the store."""
        return pack_name(self.digest)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Offset of each entry, and of the footer; shape (n + 1,), bytes."""
        return entry_offsets(self.entries["stored"])

    @property
    def chunks(self) -> NDArray[np.uint8]:
        """Chunk ids, shape (n, 32)."""
        ids = np.ascontiguousarray(self.entries["chunk"])
        return ids.view(np.uint8).reshape(len(ids), -1)


HASH_STEP: Final = 256 * KIB
"""Bytes that are hashed at once at least: fewer cost more calls than they save."""


class PackBuilder:
    """Entries gathered for one pack, in a buffer that is used again for the next one.

    Many threads fill a pack at once: each reserves room for its entry under the writer's lock and
    encrypts into it without. Whoever has filled an entry then hashes what is complete so far, while
    it is still in the processor's cache: hashing whole packs later costs twice as much.

    Parameters
    ----------
    vault_id : bytes
        16 bytes.
    buffer : memoryview
        Room for the pack without its footer.

    Attributes
    ----------
    size : int
        Bytes so far.
    full : bool
        Set by the writer when nothing more is added.
    """

    def __init__(self, vault_id: bytes, buffer: memoryview) -> None:
        self.buffer = buffer
        self.size = PACK_HEADER_SIZE
        self.full = False
        self._headers: list[bytes] = []
        self._open: dict[int, None] = {}  # offsets of entries that are not filled yet, in order
        self._hash = blake3()
        self._hashed = 0  # bytes
        self._hashing = False
        self._given = False
        buffer[:PACK_HEADER_SIZE] = pack_header(vault_id)

    def __len__(self) -> int:
        return len(self._headers)

    def reserve(self, header: bytes, stored: int) -> tuple[int, memoryview]:
        """Append an entry header; return its offset, and room for ciphertext and tag."""
        offset, start = self.size, self.size + len(header)
        self.buffer[offset:start] = header
        self._headers.append(header)
        self._open[offset] = None
        self.size = start + stored
        return offset, self.buffer[start : self.size]

    def filled(self, offset: int) -> None:
        """Note that the entry at this offset is complete."""
        del self._open[offset]

    def claim(self, done: memoryview | None = None) -> memoryview | None:
        """What is to be hashed now, by the caller alone, in return for what it has hashed."""
        if done is not None:
            self._hashing = False
        complete = next(iter(self._open), self.size)
        if self._hashing or complete - self._hashed < HASH_STEP:
            return None
        part = self.buffer[self._hashed : complete]
        self._hashed, self._hashing = complete, True
        return part

    def absorb(self, part: memoryview) -> None:
        """Hash what `claim` gave."""
        self._hash.update(part)

    def take(self) -> bool:
        """Whether the caller is to finish this pack: it is full, and nobody works on it."""
        if not self.full or self._open or self._hashing or self._given:
            return False
        self._given = True
        return True

    def finish(self, keys: Keys) -> tuple[PackEntries, list[Buffer]]:
        """The pack's name and entries, and its bytes in parts."""
        footer = b"".join(self._headers)
        fields = trailer_fields(len(self._headers), self.size)
        mac = keys.pack_mac(pack_header(keys.vault_id), footer, fields)
        for part in (self.buffer[self._hashed : self.size], footer, fields, mac):
            self._hash.update(part)
        entries = PackEntries(self._hash.digest(), np.frombuffer(footer, ENTRY_DTYPE))
        return entries, [self.buffer[: self.size], footer, fields, mac]


def read_footer(store: Store, keys: Keys, digest: bytes) -> PackEntries:
    """List a pack with two ranged reads.

    Raises
    ------
    IntegrityError
        If the pack is missing or its footer is not what was written.
    """
    name = pack_name(digest)
    where = f"the pack {name!r}"
    try:
        size = store.size(name)
        if size < PACK_HEADER_SIZE + TRAILER_SIZE:
            raise IntegrityError(f"{where} is cut short: {size} bytes", hint=CHECK_HINT)
        trailer = store.get_range(name, size - TRAILER_SIZE, TRAILER_SIZE)
        count, footer_offset = parse_trailer(trailer, size, where)
        footer = store.get_range(name, footer_offset, ENTRY_SIZE * count)
    except NotFoundError:
        raise IntegrityError(f"{where} is missing", hint=CHECK_HINT) from None
    except OutOfRangeError:
        raise IntegrityError(f"{where} is cut short", hint=CHECK_HINT) from None
    return _parse_footer(keys, digest, footer, trailer, footer_offset)


def _parse_footer(
    keys: Keys, digest: bytes, footer: Buffer, trailer: Buffer, footer_offset: int
) -> PackEntries:
    where = f"the footer of the pack {pack_name(digest)!r}"
    mac = keys.pack_mac(pack_header(keys.vault_id), footer, trailer[:-32])
    if not same(mac, bytes(trailer[-32:])):
        raise IntegrityError(f"{where} is damaged or belongs to another vault", hint=CHECK_HINT)
    entries = np.frombuffer(footer, ENTRY_DTYPE)
    pack = PackEntries(digest, entries)
    offsets = pack.offsets
    if (
        bool(np.any(entries["magic"] != np.void(ENTRY_MAGIC)))
        or bool(np.any(entries["epoch"]))
        or not entries_allowed(
            entries["kind"], entries["compression"], entries["raw"], entries["stored"]
        )
        or offsets[-1] != footer_offset
        or offsets[-2] >= PACK_LIMIT
    ):
        raise IntegrityError(f"{where} breaks a rule of the format", hint=CHECK_HINT)
    return pack


def verify_pack(
    store: Store, keys: Keys, listed: PackEntries, on_read: Callable[[int], None]
) -> list[str]:
    """Read a whole pack and verify every byte of it.

    Parameters
    ----------
    listed : PackEntries
        The pack's footer, verified.
    on_read : callable
        Called with the number of bytes read.

    Returns
    -------
    list of str
        What is wrong with it; empty if nothing.
    """
    where = f"the pack {listed.name!r}"
    try:
        data = memoryview(store.get(listed.name))
    except (NotFoundError, StorageError) as error:
        return [error.message]
    on_read(len(data))
    if blake3(data).digest() == listed.digest:
        errors = []
    else:
        errors = [f"{where} does not match its name: bytes of it have changed"]
    if bytes(data[:PACK_HEADER_SIZE]) != pack_header(keys.vault_id):
        errors.append(f"the header of {where} is damaged or of another vault")
    offsets = listed.offsets
    headers = listed.entries.tobytes()
    for i, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        entry = data[start:end]
        at = f"{listed.name!r} at offset {start}"
        if bytes(entry[:ENTRY_SIZE]) != headers[i * ENTRY_SIZE : (i + 1) * ENTRY_SIZE]:
            errors.append(f"the entry header in {at} differs from the footer")
            continue
        try:
            decode(keys, entry, None, at)
        except IntegrityError as error:
            errors.append(error.message)
    return errors
