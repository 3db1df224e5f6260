"""The directory of a vault, before there is one in it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vmbk.errors import InputError, IntegrityError, NotFoundError, StorageError
from vmbk.vault.config import CONFIG
from vmbk.vault.locks import VAULT_LOCK

FOLDERS: Final = ("packs", "index", "points", "locks", "tmp")
"""What a vault's directory has beside its ``config``."""


def make_folders(root: Path) -> None:
    """Make the directory and those within it, where they are not there yet.

    Raises
    ------
    StorageError
        If the system refuses.
    """
    try:
        for folder in (root, *(root / name for name in FOLDERS)):
            folder.mkdir(parents=True, exist_ok=True)
        (root / "locks" / VAULT_LOCK).touch()
    except OSError as error:
        raise StorageError(
            f"cannot make the vault {str(root)!r}: {error.strerror or error}"
        ) from error


def no_vault(root: Path) -> NotFoundError | IntegrityError:
    """The error for a directory without a ``config``: no vault, or one that has lost it."""
    if (root / "packs").is_dir() and any((root / "points").glob("*")):
        return IntegrityError(
            f"the vault {str(root)!r} has lost its `config`",
            hint="put back a copy: it never changes after the vault is created",
        )
    return NotFoundError(
        f"there is no vault in {str(root)!r}", hint="make one with `vmbk vault create`"
    )


def require_unused(root: Path) -> None:
    """Raise `InputError` unless a vault may be made here: nothing there, or a torso of one."""
    if (root / CONFIG).exists():
        raise InputError(
            f"{str(root)!r} is a vault already", hint="open it, or choose another directory"
        )
    if not root.exists():
        return
    if not root.is_dir():
        raise InputError(f"{str(root)!r} is not a directory")
    # Directories without a file, and the lock, are what a creation leaves that was killed.
    torso = {root / name for name in FOLDERS} | {root / "locks" / VAULT_LOCK}
    for path in root.rglob("*"):
        if path not in torso and path.parent != root / "tmp":
            raise InputError(
                f"{str(root)!r} is not empty: it has {path.name!r}",
                hint="a vault is made in a new or empty directory",
            )
