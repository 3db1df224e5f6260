"""One chunk: its id, and its way from plaintext to a pack's entry and back.

Section "Chunks and entries" of `FORMAT.md`.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from cryptography.exceptions import InvalidTag

from vmbk.errors import IntegrityError
from vmbk.vault.crypto import Keys, Random, same
from vmbk.vault.format import (
    CHECK_HINT,
    ENTRY_SIZE,
    NONCE_SIZE,
    RAW,
    TAG_SIZE,
    ZSTD,
    ZSTD_LEVEL,
    Buffer,
    EntryHeader,
)


def compress(data: Buffer) -> memoryview:
    """Deflate with zstd, one frame."""
    packed: Any = pa.Codec("zstd", compression_level=ZSTD_LEVEL).compress(data)
    return memoryview(packed).cast("B")  # Arrow calls its bytes signed, which ciphers refuse


def decompress(data: Buffer, raw: int, where: str) -> memoryview:
    """Inflate zstd into exactly ``raw`` bytes; no more is ever allocated.

    Raises
    ------
    IntegrityError
        If the data gives more or less.
    """
    try:
        buffer: Any = pa.Codec("zstd").decompress(data, decompressed_size=raw)
    except OSError:
        raise IntegrityError(
            f"{where} does not decompress to {raw} bytes", hint=CHECK_HINT
        ) from None
    return memoryview(buffer).cast("B").toreadonly()


def prepare(
    kind: int, chunk: bytes, plaintext: memoryview, random: Random
) -> tuple[bytes, memoryview]:
    """First half of making an entry: its header, and what is to be encrypted behind it.

    Parameters
    ----------
    chunk : bytes
        The chunk's id, which the caller has computed from this plaintext.
    plaintext : memoryview
        1 to `MAX_CHUNK` bytes.
    """
    raw = len(plaintext)
    packed = compress(plaintext)
    compression, body = (ZSTD, packed) if len(packed) < raw else (RAW, plaintext)
    nonce = random(NONCE_SIZE)
    header = EntryHeader(kind, compression, raw, len(body) + TAG_SIZE, chunk, nonce)
    return header.to_bytes(), body


def encrypt(keys: Keys, header: bytes, body: memoryview, out: memoryview) -> None:
    """Second half: put ciphertext and tag into ``out``, of ``len(body) + TAG_SIZE`` bytes."""
    chunk, nonce = header[16:48], header[48:60]
    cipher = keys.chunk_cipher(chunk)
    if hasattr(cipher, "encrypt_into"):
        cipher.encrypt_into(nonce, body, header + keys.vault_id, out)
    else:  # cryptography before 47
        out[:] = cipher.encrypt(nonce, body, header + keys.vault_id)


def decode(keys: Keys, entry: Buffer, wanted: EntryHeader | None, where: str) -> memoryview:
    """Plaintext of an entry, verified down to its id.

    Parameters
    ----------
    entry : bytes-like
        Header, ciphertext and tag.
    wanted : EntryHeader, optional
        What the index says; its nonce does not count. Without it the header speaks for itself.
    where : str
        Pack and offset, for messages.

    Raises
    ------
    IntegrityError
        If anything at all is not as it was stored.
    """
    header = bytes(entry[:ENTRY_SIZE])
    found = EntryHeader.parse(header, where)
    if wanted is not None and (
        (found.kind, found.compression, found.raw, found.stored, found.chunk)
        != (wanted.kind, wanted.compression, wanted.raw, wanted.stored, wanted.chunk)
    ):
        raise IntegrityError(
            f"{where} holds the chunk {found.chunk.hex()[:16]}, not {wanted.chunk.hex()[:16]} as "
            "the index says",
            hint=CHECK_HINT,
        )
    damaged = f"the chunk {found.chunk.hex()[:16]} in {where} is damaged"
    body = memoryview(entry)[ENTRY_SIZE:]
    if len(body) != found.stored:
        raise IntegrityError(f"{damaged}: it is cut short", hint=CHECK_HINT)
    try:
        packed = keys.chunk_cipher(found.chunk).decrypt(found.nonce, body, header + keys.vault_id)
    except InvalidTag:
        raise IntegrityError(
            f"{damaged}: its authentication tag does not match", hint=CHECK_HINT
        ) from None
    plain = memoryview(packed)
    if found.compression == ZSTD:
        plain = decompress(packed, found.raw, where)
    # A valid tag with a wrong id takes the key or a fault in memory while the chunk was stored.
    if not same(keys.chunk_id(found.kind, plain), found.chunk):
        raise IntegrityError(f"{damaged}: its content does not match its id", hint=CHECK_HINT)
    return plain
