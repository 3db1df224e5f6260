"""Keys: the key file, the subkeys of a vault, and what is done with them.

Sections "Key file" and "Keys" of `FORMAT.md`. No secret is ever part of a message,
a repr or a pickle.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vmbk.errors import InputError, NotFoundError, StorageError, WrongKeyError
from vmbk.vault.format import VERSION, Buffer

Random = Callable[[int], bytes]
"""Source of random bytes. Anything but `os.urandom` is for tests that pin the format."""

KEY_FILE_VARIABLE: Final = "VMBK_KEY_FILE"
KEY_SIZE: Final = 32
_KEY_FORMAT: Final = "vmbk key"
_CONTEXT: Final = "vmbk 2026-11-21 "

SEALED_INDEX: Final = 1
SEALED_POINT: Final = 2


class MasterKey:
    """The secret of a key file.

    Parameters
    ----------
    secret : bytes
        32 random bytes.
    """

    __slots__ = ("_secret", "key_id")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.key_id: str = (
            blake3(secret, derive_key_context=_CONTEXT + "key id").digest(length=8).hex()
        )

    def __repr__(self) -> str:
        return f"MasterKey(key_id={self.key_id!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key cannot be pickled")

    @classmethod
    def create(cls, path: Path, random: Random = os.urandom) -> MasterKey:
        """Make a new key file, durably, mode 0600; never replaces a file.

        Raises
        ------
        InputError
            If the file is there already.
        StorageError
            If it cannot be written.
        """
        key = cls(random(KEY_SIZE))
        document = {
            "format": _KEY_FORMAT,
            "version": VERSION,
            "key_id": key.key_id,
            "key": base64.b64encode(key._secret).decode(),
        }
        data = (json.dumps(document, indent=2) + "\n").encode()
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise InputError(f"the key file {str(path)!r} exists already") from None
        except OSError as error:
            raise _cannot("create", path, error) from None
        try:
            try:
                os.fchmod(file, 0o600)  # whatever the umask
                if os.write(file, data) != len(data):
                    raise OSError("short write")
                os.fsync(file)
            finally:
                os.close(file)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise _cannot("write", path, error) from None
        return key

    @classmethod
    def load(cls, path: Path) -> MasterKey:
        """Read a key file.

        Raises
        ------
        NotFoundError
            If it is not there.
        InputError
            If others may read it, or it is no key file, or a damaged one.
        """
        try:
            # Not blocking: a FIFO in place of the key must not hang a backup.
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError(
                f"there is no key file {str(path)!r}",
                hint="a vault opens only with the key file it was created with",
            ) from None
        except OSError as error:
            raise _cannot("read", path, error) from None
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"the key file {str(path)!r} is not a regular file")
            if status.st_mode & 0o077:
                raise InputError(
                    f"the key file {str(path)!r} has mode {stat.S_IMODE(status.st_mode):04o}: "
                    "others can read the key",
                    hint=f"chmod 600 {path}",
                )
            data = os.read(file, 4096)
        except OSError as error:
            raise _cannot("read", path, error) from None
        finally:
            os.close(file)
        return cls._parse(data, path)

    @classmethod
    def _parse(cls, data: bytes, path: Path) -> MasterKey:
        document, secret = _key_fields(data)
        version = document.get("version")
        if document.get("format") == _KEY_FORMAT and version != VERSION:
            raise InputError(
                f"the key file {str(path)!r} has version {version!r}, "
                f"this vmbk reads version {VERSION}",
                hint="use a newer vmbk",
            )
        key = cls(secret)
        if (
            document.keys() != {"format", "version", "key_id", "key"}
            or document["format"] != _KEY_FORMAT
            or len(secret) != KEY_SIZE
            or document["key_id"] != key.key_id
        ):
            raise InputError(
                f"{str(path)!r} is not a vmbk key file, or is damaged",
                hint="use the file that `vmbk vault create` made, or a copy of it",
            )
        return key

    def subkey(self, context: str, vault_id: bytes) -> bytes:
        """Secret of one purpose in one vault."""
        material = self._secret + vault_id
        return blake3(material, derive_key_context=f"{_CONTEXT}vault 1 {context}").digest()


def _key_fields(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Document and secret of a key file, empty where it has none.

    Nothing is raised: an exception of the parser would carry what it read, which is the key.
    """
    try:
        document = json.loads(data)
        return document, base64.b64decode(document["key"], validate=True)
    except (ValueError, TypeError, KeyError, RecursionError, binascii.Error):
        return {}, b""


def _cannot(verb: str, path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot {verb} the key file {str(path)!r}: {error.strerror or error}")


def key_file_path(key_file: str | os.PathLike[str] | None) -> Path:
    """The key file that was asked for, or that ``VMBK_KEY_FILE`` names.

    Raises
    ------
    InputError
        If there is neither.
    """
    chosen = key_file if key_file is not None else os.environ.get(KEY_FILE_VARIABLE)
    if not chosen:
        raise InputError(
            "no key file was given", hint=f"pass --key-file PATH or set {KEY_FILE_VARIABLE}"
        )
    return Path(chosen)


class Keys:
    """The subkeys of one vault.

    Parameters
    ----------
    master : MasterKey
        The key file's secret.
    vault_id : bytes
        16 bytes from ``config``.
    """

    __slots__ = ("_chunk", "_config", "_ids", "_lock", "_pack", "_sealed", "key_id", "vault_id")

    def __init__(self, master: MasterKey, vault_id: bytes) -> None:
        def derive(context: str) -> bytes:
            return master.subkey(context, vault_id)

        self.key_id = master.key_id
        self.vault_id = vault_id
        self._config = derive("config")
        self._ids = {1: derive("chunk id data"), 2: derive("chunk id table")}
        self._chunk = derive("chunk encryption")
        self._pack = derive("pack footer")
        self._sealed = {SEALED_INDEX: derive("index"), SEALED_POINT: derive("recovery point")}
        self._lock = derive("lock name")

    def __repr__(self) -> str:
        return f"Keys(key_id={self.key_id!r}, vault_id={self.vault_id.hex()!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("keys cannot be pickled")

    def config_check(self, canonical: bytes) -> str:
        """Key check value of a config, hex."""
        return blake3(canonical, key=self._config).hexdigest()

    def chunk_id(self, kind: int, plaintext: Buffer) -> bytes:
        """Name of a chunk; releases the interpreter lock on large ones."""
        return blake3(plaintext, key=self._ids[kind]).digest()

    def chunk_cipher(self, chunk: bytes) -> AESGCM:
        """Cipher of one chunk."""
        return AESGCM(blake3(chunk, key=self._chunk).digest())

    def pack_mac(self, *parts: Buffer) -> bytes:
        """MAC of a pack's footer."""
        mac = blake3(key=self._pack)
        for part in parts:
            mac.update(part)
        return mac.digest()

    def lock_name(self, vm: str) -> str:
        """File name of a VM's lock: tells nothing of the VM's name."""
        return "vm-" + blake3(vm.encode(), key=self._lock).digest(length=16).hex()

    def sealed_cipher(self, kind: int, salt: bytes) -> tuple[AESGCM, bytes]:
        """Cipher and nonce of one sealed file; a salt is used once, so the nonce is too."""
        stream = blake3(salt, key=self._sealed[kind]).digest(length=44)
        return AESGCM(stream[:32]), stream[32:]


def same(a: bytes | str, b: bytes | str) -> bool:
    """Whether two MACs are equal, in constant time."""
    left = a.encode() if isinstance(a, str) else a
    right = b.encode() if isinstance(b, str) else b
    return hmac.compare_digest(left, right)


def wrong_key(wanted: str, found: str) -> WrongKeyError:
    """The error for a key file that is not this vault's."""
    return WrongKeyError(
        f"this vault opens with the key {wanted!r}, the key file holds the key {found!r}",
        hint="pass the key file that the vault was created with",
    )
