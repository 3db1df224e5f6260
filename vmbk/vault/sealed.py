"""Sealed files: index files and manifests, compressed, encrypted and authenticated as a whole.

Section "Sealed files" of `FORMAT.md`.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag

from vmbk.errors import InputError, IntegrityError
from vmbk.vault.chunk import compress, decompress
from vmbk.vault.crypto import Keys, Random
from vmbk.vault.format import CHECK_HINT, MAX_SEALED, VERSION, Buffer

_SEALED: Final = struct.Struct("<8sBBH4x32sQ")
_SEALED_MAGIC: Final = b"VMBKSEAL"


def seal(keys: Keys, kind: int, name: str, payload: Buffer, random: Random) -> bytes:
    """An index file or manifest, ready to be stored.

    Parameters
    ----------
    kind : int
        `SEALED_INDEX` or `SEALED_POINT`.
    name : str
        What the file is bound to: a point id, or empty for an index.
    payload : bytes-like
        At most `MAX_SEALED` bytes.
    """
    raw = len(payload)
    if not 1 <= raw <= MAX_SEALED:
        raise InputError(f"{raw} bytes do not fit in one sealed file of {MAX_SEALED} bytes")
    salt = random(32)
    header = _SEALED.pack(_SEALED_MAGIC, kind, VERSION, 0, salt, raw)
    cipher, nonce = keys.sealed_cipher(kind, salt)
    bound = header + keys.vault_id + name.encode("ascii")
    return header + cipher.encrypt(nonce, compress(payload), bound)


def unseal(keys: Keys, kind: int, name: str, data: Buffer, where: str) -> memoryview:
    """Payload of a sealed file.

    Raises
    ------
    IntegrityError
        If it was changed, renamed, cut short, or belongs to another vault.
    """
    header = bytes(data[: _SEALED.size])
    damaged = IntegrityError(f"{where} is damaged or belongs elsewhere", hint=CHECK_HINT)
    if len(header) != _SEALED.size or len(data) > MAX_SEALED:
        raise damaged
    magic, found, version, epoch, salt, raw = _SEALED.unpack(header)
    if magic != _SEALED_MAGIC or found != kind:
        raise damaged
    if version != VERSION or epoch != 0:
        raise IntegrityError(
            f"{where} has version {version} and key epoch {epoch}, which this vmbk does not read",
            hint="use a newer vmbk, or, if there is none, restore this file",
        )
    cipher, nonce = keys.sealed_cipher(kind, salt)
    try:
        # The header goes back in as it was read, so its reserved bytes are checked as well.
        compressed = cipher.decrypt(
            nonce, data[_SEALED.size :], header + keys.vault_id + name.encode("ascii")
        )
    except (InvalidTag, ValueError):
        raise damaged from None
    if not 1 <= raw <= MAX_SEALED:
        raise damaged
    return decompress(compressed, raw, where)
