"""Locks of a vault: ``flock`` on files in ``locks/``, so that none outlives its process.

Section "Locks" of `FORMAT.md`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vmbk.errors import BusyError, StorageError

WAIT: Final = 2.0
"""Seconds that a lock is waited for: outlasts the clean-up of another job, not the job."""
_POLL: Final = 0.02

VAULT_LOCK: Final = "vault"


class Locks:
    """The lock files of one vault.

    Parameters
    ----------
    folder : path
        The vault's ``locks/`` directory.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def hold(
        self, name: str, *, exclusive: bool, busy: str, hint: str = "", wait: float | None = None
    ) -> Iterator[None]:
        """Hold a lock while the block runs.

        Parameters
        ----------
        name : str
            File name of the lock.
        exclusive : bool
            Alone, or together with other holders that are not exclusive.
        busy, hint : str
            What the error says.
        wait : float
            Seconds to wait at most; by default `WAIT`.

        Raises
        ------
        BusyError
            If somebody else holds it.
        StorageError
            If the lock file cannot be opened.
        """
        file = self._open(name, exclusive)
        if file is None:
            yield
            return
        try:
            _lock(file, exclusive, busy, hint, WAIT if wait is None else wait)
            yield
        finally:
            os.close(file)

    def _open(self, name: str, exclusive: bool) -> int | None:
        path = self._folder / name
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            try:
                return os.open(path, flags)  # flock asks for no write permission
            except FileNotFoundError:
                self._folder.mkdir(exist_ok=True)
                return os.open(path, flags | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES) and not exclusive:
                return None  # a vault that cannot be written, whose lock file is gone: only read
            reason = error.strerror or str(error)
            raise StorageError(f"cannot lock the vault with {str(path)!r}: {reason}") from error


def _lock(file: int, exclusive: bool, busy: str, hint: str, wait: float) -> None:
    operation = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    deadline = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(file, operation)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise BusyError(busy, hint=hint) from None
            time.sleep(_POLL)
        except OSError as error:
            raise StorageError(
                f"cannot lock the vault: {error.strerror or error}",
                hint="its file system has no flock",
            ) from error
