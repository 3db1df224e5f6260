"""Where the files of a vault lie: a contract, and the local directory that fulfils it.

A store is a flat map from names such as ``packs/ab/ab12…`` to immutable bytes. A further kind (an
object store) is one class here and one subclass of the conformance suite in
``tests/store_conformance.py``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, NoReturn, Protocol, runtime_checkable

from vmbk.disk.direct import write_directly
from vmbk.errors import (
    InputError,
    NotFoundError,
    OutOfRangeError,
    StorageError,
)
from vmbk.units import MIB
from vmbk.vault.format import Buffer

Durability = Literal["file", "none"]
"""``"file"``: every file and its directory entry is synced before `Store.put` returns.
``"none"``: nothing is synced; a killed process loses nothing, a power cut may lose everything."""

SAFE_HINT: Final = (
    "recovery points that were committed are intact, what was being written does not count; "
    "run it again once the cause is gone, and what was stored already is found again"
)

_NAME: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}"
)
_IOV_MAX: Final = 1024
_DIRECT: Final = MIB  # bytes of the smallest part that is worth writing directly


@runtime_checkable
class Store(Protocol):
    """Named, immutable byte strings.

    Names are one to four parts of letters, digits, ``.``, ``_`` and ``-`` that begin with a letter
    or a digit, joined by ``/``. All methods may be called from many threads. All raise
    `InputError` for a name that is none, and `StorageError` where the system below refuses.
    """

    def get(self, name: str) -> bytes:
        """All bytes of a file; `NotFoundError` if there is none."""

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``.

        `NotFoundError` if there is no such file, `OutOfRangeError` if it ends sooner.
        """

    def put(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        """Make a file of one buffer, or of several one after the other.

        Atomic: a reader sees all of it or nothing, however the writer ends. Durable on return.
        Never replaces: a name that is taken raises `StorageError` and stays as it was.
        """

    def list(self, prefix: str) -> tuple[str, ...]:
        """Names that begin with ``prefix`` (empty, or ending in ``/``), sorted."""

    def size(self, name: str) -> int:
        """Bytes of a file; `NotFoundError` if there is none."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Names as `list` gives them, and bytes of each; what is no regular file is left out."""

    def delete(self, name: str) -> None:
        """Remove a file, durably; `NotFoundError` if there is none."""


def check_name(name: str) -> str:
    """The name, if it is one that a store may use.

    Raises
    ------
    InputError
        If it could leave the store (``..``, an absolute path) or is no name at all.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is not a name in a store")
    return name


class LocalStore:
    """A store in a directory of a local file system.

    A file is written under ``tmp/``, synced, and linked to its name; then its directory is synced.

    Parameters
    ----------
    root : path
        The directory; it exists.
    durability : {"file", "none"}
        What `put` waits for.
    """

    def __init__(self, root: str | os.PathLike[str], durability: Durability = "file") -> None:
        if durability not in ("file", "none"):
            raise InputError(f"durability {durability!r} is not one of 'file', 'none'")
        self.root = Path(root)
        self._path = str(self.root)  # for reads: pathlib costs more than the system call
        self.durability = durability
        self._synced: set[Path] = set()  # directories whose own entry is durable

    def __repr__(self) -> str:
        return f"LocalStore({str(self.root)!r}, durability={self.durability!r})"

    def get(self, name: str) -> bytes:
        """See `Store.get`."""
        with self._open(name) as (file, size):
            return self._read(file, name, 0, size)

    def get_range(self, name: str, start: int, length: int) -> bytes:
        """See `Store.get_range`."""
        if start < 0 or length < 0:
            raise InputError(f"{length} bytes from {start} of {name!r} is not a range")
        with self._open(name) as (file, size):
            if start + length > size:
                raise OutOfRangeError(
                    f"{length} bytes from {start} reach past the end of {name!r} ({size} bytes)"
                )
            return self._read(file, name, start, length)

    def size(self, name: str) -> int:
        """See `Store.size`."""
        with self._open(name) as (_, size):
            return size

    def list(self, prefix: str) -> tuple[str, ...]:
        """See `Store.list`."""
        folder = prefix.rstrip("/")
        if folder:
            check_name(folder)
        names: list[str] = []
        try:
            for path, folders, files in os.walk(self.root / folder, onerror=_raise):
                inside = Path(path).relative_to(self.root)
                if inside == Path() and "tmp" in folders:
                    folders.remove("tmp")
                names += [(inside / file).as_posix() for file in files]
        except FileNotFoundError:
            return ()  # a directory that is made with its first file
        except OSError as error:
            _refused("list", folder or ".", error)
        return tuple(sorted(names))

    def sizes(self, prefix: str) -> dict[str, int]:
        """See `Store.sizes`."""
        found = {}
        for name in self.list(prefix):
            try:
                status = (self.root / name).stat()
            except FileNotFoundError:  # deleted meanwhile, or a link to nothing
                continue
            except OSError as error:
                _refused("look at", name, error)
            if stat.S_ISREG(status.st_mode):
                found[name] = status.st_size
        return found

    def put(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        """See `Store.put`."""
        target = self.root / check_name(name)
        parts = [data] if isinstance(data, bytes | bytearray | memoryview) else list(data)
        temporary = self.root / "tmp" / f"{os.getpid()}-{os.urandom(8).hex()}"
        try:
            temporary.parent.mkdir(exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._write(temporary, parts)
                self._name(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            self._sync_folders(target.parent)
        except FileExistsError:
            raise StorageError(
                f"{name!r} exists already and is never replaced", hint=SAFE_HINT
            ) from None
        except OSError as error:
            _refused("write", name, error)

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        path = self.root / check_name(name)
        try:
            path.unlink()
            self._sync(path.parent)
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(name) from None
        except OSError as error:
            _refused("delete", name, error)

    def sync_above(self) -> None:
        """Make the store's own directory durable: its entry, and those of new ones above it."""
        for folder in self.root.resolve().parents:
            try:
                self._sync(folder)
            except OSError:
                return  # not ours to read, so not made by us either

    def has_leftovers(self) -> bool:
        """Whether there is anything in ``tmp/``: of writers at work, or of killed ones."""
        try:
            with os.scandir(self.root / "tmp") as entries:
                return next(entries, None) is not None
        except OSError:
            return False

    def clean(self) -> int:
        """Remove what killed writers left in ``tmp/``; only for the holder of the exclusive lock.

        Returns
        -------
        int
            How many files were removed.
        """
        removed = 0
        try:
            for path in (self.root / "tmp").iterdir():
                path.unlink()
                removed += 1
        except FileNotFoundError:
            pass
        except OSError as error:
            _refused("clean", "tmp", error)
        return removed

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[tuple[int, int]]:
        path = f"{self._path}/{check_name(name)}"
        file = -1
        try:
            # Not blocking: a FIFO with the name of a file must not hang a restore.
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{name!r} in the vault is not a regular file")
            yield file, status.st_size
        except (FileNotFoundError, NotADirectoryError):
            raise _missing(name) from None
        except OSError as error:
            _refused("read", name, error)
        finally:
            if file >= 0:
                os.close(file)

    def _read(self, file: int, name: str, start: int, length: int) -> bytes:
        data = os.pread(file, length, start)
        if len(data) == length:
            return data
        parts = [data]  # Linux reads at most 2 GiB at once, and a signal may cut a read short
        while (got := sum(map(len, parts))) < length:
            part = os.pread(file, length - got, start + got)
            if not part:
                raise OutOfRangeError(f"{name!r} became shorter while it was read")
            parts.append(part)
        return b"".join(parts)

    def _write(self, path: Path, parts: Sequence[Buffer]) -> None:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            if self.durability == "file" and parts and len(parts[0]) >= _DIRECT:
                large = memoryview(parts[0])  # nobody reads a pack soon after it was written
                parts = [large[write_directly(file, large) :], *parts[1:]]
            for first in range(0, len(parts), _IOV_MAX):
                batch = parts[first : first + _IOV_MAX]
                total = sum(map(len, batch))
                written = os.writev(file, batch)
                if written < total:  # a signal, or nearly no space: the next call says which
                    rest = memoryview(b"".join(batch))[written:]
                    while rest:
                        rest = rest[os.write(file, rest) :]
            if self.durability == "file":
                os.fsync(file)
        finally:
            os.close(file)

    def _name(self, temporary: Path, target: Path) -> None:
        try:
            os.link(temporary, target)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
                raise
            # A file system without hard links. Names are random or content hashes, so that the
            # gap between the test and the renaming matters to nobody.
            if target.exists():
                raise FileExistsError from None
            temporary.rename(target)

    def _sync_folders(self, folder: Path) -> None:
        """Sync a directory, and those above it that may be new."""
        self._sync(folder)
        while folder != self.root and folder not in self._synced:
            self._sync(folder.parent)
            self._synced.add(folder)  # only now: another thread may rely on it
            folder = folder.parent

    def _sync(self, folder: Path) -> None:
        if self.durability == "none":
            return
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _raise(error: OSError) -> NoReturn:
    raise error


def _missing(name: str) -> NotFoundError:
    return NotFoundError(f"there is no {name!r} in the vault")


def _refused(verb: str, name: str, error: OSError) -> NoReturn:
    reason = error.strerror or str(error)
    raise StorageError(f"cannot {verb} {name!r} in the vault: {reason}", hint=SAFE_HINT) from error
