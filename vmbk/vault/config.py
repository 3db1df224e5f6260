"""``config``: the public parameters of a vault, and the proof that a key is its key.

Section "config" of `FORMAT.md`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from vmbk.errors import InputError, IntegrityError
from vmbk.vault.crypto import Keys, MasterKey, Random, same, wrong_key
from vmbk.vault.format import MAX_CHUNK, MAX_CONFIG, PACK_TARGET_RANGE, VERSION

CONFIG: Final = "config"
_FORMAT: Final = "vmbk vault"
_FIELDS: Final = {"format", "version", "vault_id", "key_id", "key_check", "parameters"}
_FIXED: Final = {
    "hash": "blake3-256",
    "aead": "aes-256-gcm",
    "compression": "zstd",
    "max_chunk": MAX_CHUNK,
}
_HINT: Final = "put back a copy of `config`: it never changes after the vault is created"


@dataclass(frozen=True)
class Config:
    """Public parameters of a vault.

    Attributes
    ----------
    vault_id : bytes
        16 random bytes.
    pack_target : int
        Size in bytes at which a pack is closed.
    """

    vault_id: bytes
    pack_target: int

    @classmethod
    def new(cls, random: Random, pack_target: int) -> Config:
        """Parameters of a new vault."""
        low, high = PACK_TARGET_RANGE
        if not low <= pack_target <= high:
            raise InputError(f"the pack target {pack_target} is not between {low} and {high} bytes")
        return cls(random(16), pack_target)

    def to_bytes(self, keys: Keys) -> bytes:
        """The file's content, with the key check value."""
        document: dict[str, Any] = {
            "format": _FORMAT,
            "version": VERSION,
            "vault_id": self.vault_id.hex(),
            "key_id": keys.key_id,
            "parameters": {**_FIXED, "pack_target": self.pack_target},
        }
        document["key_check"] = keys.config_check(_canonical(document))
        return _canonical(document)

    @classmethod
    def parse(cls, data: bytes, master: MasterKey) -> tuple[Config, Keys]:
        """Read the file and prove the key.

        Raises
        ------
        WrongKeyError
            If the vault was made with another key.
        IntegrityError
            If the file is damaged.
        InputError
            If it is of a version or has parameters that this vmbk does not know.
        """
        document = _document(data)
        if document["key_id"] != master.key_id:
            raise wrong_key(document["key_id"], master.key_id)
        vault_id = bytes.fromhex(document["vault_id"])
        keys = Keys(master, vault_id)
        check = document.pop("key_check")
        if not same(keys.config_check(_canonical(document)), check):
            raise IntegrityError(
                "the vault's `config` is damaged: its key check value does not match", hint=_HINT
            )
        if _canonical({**document, "key_check": check}) != data:
            raise _damaged("is not in canonical form")
        parameters = dict(document["parameters"])
        pack_target = parameters.pop("pack_target", None)
        if parameters != _FIXED or not isinstance(pack_target, int):
            raise InputError(
                f"the vault has parameters that this vmbk does not know: {parameters!r}",
                hint="use a newer vmbk",
            )
        return cls(vault_id, pack_target), keys


def _canonical(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=2) + "\n").encode("ascii")


def _document(data: bytes) -> dict[str, Any]:
    """The fields of the file, of the right types."""
    try:
        document = json.loads(data) if len(data) <= MAX_CONFIG else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise _damaged("is not the JSON object of a vault")
    if document.get("version") != VERSION:  # before the fields, which may be others then
        raise InputError(
            f"the vault has format {document.get('version')!r}, this vmbk reads format {VERSION}",
            hint="use a newer vmbk",
        )
    texts = ("vault_id", "key_id", "key_check")
    if (
        document.keys() != _FIELDS
        or not all(isinstance(document[name], str) for name in texts)
        or not all(
            _is_hex(document[name], size) for name, size in zip(texts, (16, 8, 32), strict=True)
        )
        or not isinstance(document["parameters"], dict)
    ):
        raise _damaged("has other fields than it must")
    return document


def _is_hex(text: str, size: int) -> bool:
    return len(text) == 2 * size and set(text) <= set("0123456789abcdef")


def _damaged(what: str) -> IntegrityError:
    return IntegrityError(f"the vault's `config` {what}", hint=_HINT)
