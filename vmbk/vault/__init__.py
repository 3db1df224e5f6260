"""The vault: where backups are kept, encrypted, deduplicated and verified.

`FORMAT.md` is the on-disk format. From the bottom: `format` (fixed bytes), `crypto` (keys), `store`
and `locks` (files), `chunk`, `pack`, `index`, `manifest` (what the files hold), `reader`, `diskmap`
and `writer` (what is done with them), `check`, and `vault` (the public face).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmbk.vault.check import CheckReport as CheckReport
    from vmbk.vault.diskmap import DIGEST_SCHEMA as DIGEST_SCHEMA
    from vmbk.vault.diskmap import EXTENT_SCHEMA as EXTENT_SCHEMA
    from vmbk.vault.diskmap import DiskMap as DiskMap
    from vmbk.vault.manifest import DiskRecord as DiskRecord
    from vmbk.vault.manifest import RecoveryPoint as RecoveryPoint
    from vmbk.vault.stats import VaultStats as VaultStats
    from vmbk.vault.store import LocalStore as LocalStore
    from vmbk.vault.store import Store as Store
    from vmbk.vault.vault import Vault as Vault
    from vmbk.vault.writer import ChunkRef as ChunkRef
    from vmbk.vault.writer import VaultWriter as VaultWriter

_HOME = {
    "CheckReport": "check",
    "ChunkRef": "writer",
    "DIGEST_SCHEMA": "diskmap",
    "DiskMap": "diskmap",
    "DiskRecord": "manifest",
    "EXTENT_SCHEMA": "diskmap",
    "LocalStore": "store",
    "RecoveryPoint": "manifest",
    "Store": "store",
    "Vault": "vault",
    "VaultStats": "stats",
    "VaultWriter": "writer",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    # Loaded when first asked for: `import vmbk` must not wait for Arrow and the ciphers.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
