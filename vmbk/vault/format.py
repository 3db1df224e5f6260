"""The fixed bytes of the vault's format: constants, headers, and what a reader refuses.

`FORMAT.md` beside this file is the authority; each name here is a field there. No keys, no I/O.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from vmbk.errors import IntegrityError
from vmbk.units import KIB, MIB

Buffer = bytes | bytearray | memoryview
"""Bytes that are already in memory."""

VERSION: Final = 1
"""Version of the format that this code writes, and the only one it reads."""

KINDS: Final = {"data": 1, "table": 2}
"""What a chunk can hold, by name and by number."""

RAW: Final = 0
ZSTD: Final = 1
ZSTD_LEVEL: Final = 1
"""Level 1 keeps up with the disks; a reader does not need to know it."""

ID_SIZE: Final = 32
TAG_SIZE: Final = 16
NONCE_SIZE: Final = 12

MAX_CHUNK: Final = 16 * MIB
"""Largest plaintext of a chunk: what a reader must be ready to allocate for one."""
MAX_TABLE_CHUNK: Final = 4 * MIB
"""Largest plaintext of a chunk of a table."""
PACK_TARGET: Final = 16 * MIB
"""A pack is closed at this size: large enough that syncs and requests cost little."""
PACK_TARGET_RANGE: Final = (64 * KIB, 64 * MIB)
PACK_LIMIT: Final = 64 * MIB
"""No entry begins at or after this offset."""
MAX_SEALED: Final = 256 * MIB
"""Largest sealed file, and largest payload of one."""
MAX_CONFIG: Final = 4 * KIB
INDEX_PACKS: Final = 64
"""Packs after which a writer writes an index file: what a killed job has to store again."""
INDEX_ROWS: Final = 1 << 19
"""Entries after which it does: bounds the size of an index file of tiny chunks."""
MAX_CHAIN: Final = 1024
"""Longest chain of recovery points that a reader follows; writers start anew at 32."""

POINT_ID: Final = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{8}", re.ASCII)
HEX_ID: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)

CHECK_HINT: Final = "`vmbk vault check --read-data` lists everything that is damaged"

PACK_MAGIC: Final = b"VMBKPACK"
TAIL_MAGIC: Final = b"VMBKTAIL"
ENTRY_MAGIC: Final = b"VMBE"

_PACK_HEADER: Final = struct.Struct("<8sH6x16s")
_ENTRY: Final = struct.Struct("<4sBBHII32s12s")
_TRAILER: Final = struct.Struct("<8sI4xQ8x")
PACK_HEADER_SIZE: Final = _PACK_HEADER.size
ENTRY_SIZE: Final = _ENTRY.size + 4
TRAILER_SIZE: Final = _TRAILER.size + 32

ENTRY_DTYPE: Final = np.dtype(
    [
        ("magic", "V4"),
        ("kind", "u1"),
        ("compression", "u1"),
        ("epoch", "<u2"),
        ("raw", "<u4"),
        ("stored", "<u4"),
        ("chunk", "V32"),
        ("nonce", "V12"),
        ("check", "V4"),
    ]
)
"""An entry header as a NumPy record, for whole footers at once."""


@dataclass(frozen=True, slots=True)
class EntryHeader:
    """The 64 bytes before a chunk in a pack."""

    kind: int
    compression: int
    raw: int
    stored: int
    chunk: bytes
    nonce: bytes

    def to_bytes(self) -> bytes:
        """The header as stored."""
        fields = _ENTRY.pack(
            ENTRY_MAGIC, self.kind, self.compression, 0, self.raw, self.stored, self.chunk,
            self.nonce,
        )  # fmt: skip
        return fields + blake3(fields).digest(length=4)

    @classmethod
    def parse(cls, data: Buffer, where: str) -> EntryHeader:
        """Read a header and refuse what the format does not allow.

        Raises
        ------
        IntegrityError
            Naming ``where``, if the bytes are no valid entry header.
        """
        fields = bytes(data[: _ENTRY.size])
        check = bytes(data[_ENTRY.size : ENTRY_SIZE])
        if len(fields) + len(check) != ENTRY_SIZE or blake3(fields).digest(length=4) != check:
            raise IntegrityError(f"the entry header in {where} is damaged", hint=CHECK_HINT)
        magic, kind, compression, epoch, raw, stored, chunk, nonce = _ENTRY.unpack(fields)
        if magic != ENTRY_MAGIC or epoch != 0 or not _allowed(kind, compression, raw, stored):
            raise IntegrityError(
                f"the entry header in {where} says kind {kind}, compression {compression}, key "
                f"epoch {epoch}, {raw} bytes stored as {stored}, which format {VERSION} does not "
                "allow",
                hint=CHECK_HINT,
            )
        return cls(kind, compression, raw, stored, chunk, nonce)


def _allowed(kind: int, compression: int, raw: int, stored: int) -> bool:
    if kind not in (1, 2) or not 1 <= raw <= MAX_CHUNK:
        return False
    if compression == RAW:
        return stored == raw + TAG_SIZE
    return compression == ZSTD and TAG_SIZE < stored < raw + TAG_SIZE


def entries_allowed(kind: Any, compression: Any, raw: Any, stored: Any) -> bool:
    """Whether the fields of all entries are ones that the format allows.

    Parameters
    ----------
    kind, compression, raw, stored : numpy.ndarray
        Shape (n,), any integer dtype.
    """
    raw, stored = raw.astype(np.int64), stored.astype(np.int64)
    plain = (compression == RAW) & (stored == raw + TAG_SIZE)
    smaller = (compression == ZSTD) & (stored > TAG_SIZE) & (stored < raw + TAG_SIZE)
    known = (kind == 1) | (kind == 2)
    return bool(np.all(known & (raw >= 1) & (raw <= MAX_CHUNK) & (plain | smaller)))


def entry_offsets(stored: NDArray[Any]) -> NDArray[np.int64]:
    """Offsets of the entries of one pack, and of its footer, from their stored lengths.

    Returns
    -------
    numpy.ndarray
        Shape (n + 1,), int64, bytes.
    """
    sizes = stored.astype(np.int64) + ENTRY_SIZE
    return PACK_HEADER_SIZE + np.concatenate((np.zeros(1, np.int64), np.cumsum(sizes)))


def pack_size(footer_offset: int, count: int) -> int:
    """Size in bytes of a pack of ``count`` entries that end at ``footer_offset``."""
    return footer_offset + ENTRY_SIZE * count + TRAILER_SIZE


def pack_header(vault_id: bytes) -> bytes:
    """The first bytes of every pack of a vault."""
    return _PACK_HEADER.pack(PACK_MAGIC, VERSION, vault_id)


def trailer_fields(count: int, footer_offset: int) -> bytes:
    """The trailer of a pack without its MAC."""
    return _TRAILER.pack(TAIL_MAGIC, count, footer_offset)


def parse_trailer(data: Buffer, size: int, where: str) -> tuple[int, int]:
    """Number of entries and offset of the footer that a trailer gives for a pack of ``size``.

    Raises
    ------
    IntegrityError
        If the fields do not fit the size; the MAC is for the caller to check.
    """
    magic, count, footer_offset = _TRAILER.unpack(data[: _TRAILER.size])
    if (
        magic != TAIL_MAGIC
        or count < 1
        or pack_size(footer_offset, count) != size
        or bytes(data[: _TRAILER.size]) != trailer_fields(count, footer_offset)
    ):
        raise IntegrityError(f"the trailer of {where} is damaged", hint=CHECK_HINT)
    return count, footer_offset


def pack_name(digest: bytes) -> str:
    """Name in the store of the pack with this BLAKE3."""
    text = digest.hex()
    return f"packs/{text[:2]}/{text}"
