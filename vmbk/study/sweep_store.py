"""Results of sweeps: what they are as bytes, and the folder where they lie.

A result is an envelope around an Arrow IPC stream: eight bytes of magic, the length of a header,
the header as JSON, the stream, and the BLAKE3 digest of all of it. It is data and nothing else:
nothing in it is ever executed, and it is read as if a stranger had written it.

The folder has one file a finished cell, named by its key. It is written under ``tmp/``, synced, and
linked to its name under ``results/``; so it is whole or not there, whatever was killed when, and of
two sweeps that finish the same cell the second finds the first's result and throws its own away. A
lock in ``claims/``, which no process outlives, keeps them from running the same cell at once.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import polars as pl
import pyarrow as pa
from blake3 import blake3

from vmbk.errors import InputError, IntegrityError, StorageError
from vmbk.units import MIB, format_size, quoted
from vmbk.vault.arrow import from_ipc, to_ipc

INDEX: Final = "cell"
"""The column of the results that says which cell a row is of."""

MOST_RESULT: Final = 64 * MIB
"""Bytes of one cell's result: a cell is a row or a table, not a data set."""

MOST_VALUES: Final = 1 << 26
"""Values in a result, counted where they are nested: a column of nulls takes no bytes in a file."""

_MAGIC: Final = b"vmbkswp1"
_DIGEST: Final = 32
_ALIGN: Final = 64
_MOST_HEADER: Final = 4 * MIB

MARKER: Final = "sweep-store"
"""The file that makes a folder a store, and holds its identity."""

_KEY: Final = re.compile(r"[0-9a-f]{64}")
_MARK: Final = re.compile(rb"vmbk sweep store 1\n([0-9a-f]{32})\n")
_PARTIAL: Final = f".{MARKER}."
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # neither links nor pipes


class DamagedError(IntegrityError):
    """A stored result is not what a sweep wrote under this key."""


@dataclass(frozen=True)
class Finished:
    """A result that was read and checked: its rows, and what made them."""

    rows: pl.DataFrame
    header: dict[str, Any]


def _frame(made: Any) -> pl.DataFrame:
    """What a function returned, as a table."""
    if isinstance(made, pl.DataFrame):
        frame = made
    else:
        rows = [made] if isinstance(made, Mapping) else made
        if not isinstance(rows, Sequence) or isinstance(rows, (str, bytes)):
            raise InputError(
                f"{quoted(made)} is no result", hint="return rows as mappings, or a Polars frame"
            )
        for row in rows:
            if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
                raise InputError(f"{quoted(row)} is no row", hint="a row is a mapping with names")
        frame = pl.DataFrame([dict(row) for row in rows], infer_schema_length=None)
    if INDEX in frame.columns:
        raise InputError(f"a result has the column {INDEX!r}, which the sweep adds itself")
    return frame


def encode(made: Any, header: Mapping[str, Any]) -> bytes:
    """The result of a cell as bytes.

    Parameters
    ----------
    made : DataFrame, mapping or sequence of mappings
        What its function returned.
    header : mapping
        Its ``key``, ``seconds``, ``provenance`` and whatever else is worth knowing, as plain data.

    Raises
    ------
    InputError
        If it is no table, holds what Arrow cannot, or is larger than `MOST_RESULT`.
    """
    try:
        stream = to_ipc(_frame(made).to_arrow())
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, TypeError,
            ValueError, OverflowError) as error:  # fmt: skip
        raise InputError(f"a result is no table: {error}") from None
    head = json.dumps(header).encode()
    head += b" " * (-(len(_MAGIC) + 4 + len(head)) % _ALIGN)  # Arrow likes aligned numbers
    data = b"".join([_MAGIC, struct.pack("<I", len(head)), head, stream])
    if len(data) + _DIGEST > MOST_RESULT:
        raise InputError(
            f"a result is {format_size(len(data))}, and {format_size(MOST_RESULT)} is the most",
            hint="return a summary, or write a file and return its digest",
        )
    return data + blake3(data).digest()


def is_intact(data: bytes, key: str) -> bool:
    """Whether bytes are a whole result of this key."""
    try:
        _open(data, key)
    except DamagedError:
        return False
    return True


def _open(data: bytes, key: str) -> tuple[dict[str, Any], memoryview]:
    """Header and stream of a result."""
    start = len(_MAGIC) + 4
    if len(data) < start + _DIGEST or data[: len(_MAGIC)] != _MAGIC:
        raise DamagedError(f"result {key} is no result")
    whole = memoryview(data)
    if blake3(whole[:-_DIGEST]).digest() != data[-_DIGEST:]:
        raise DamagedError(f"result {key} does not have its digest")
    size = struct.unpack_from("<I", data, len(_MAGIC))[0]
    if size > min(_MOST_HEADER, len(data) - start - _DIGEST):
        raise DamagedError(f"the header of result {key} is longer than it may be")
    try:
        header = json.loads(data[start : start + size])
    except (ValueError, RecursionError):
        raise DamagedError(f"the header of result {key} is no JSON") from None
    if not isinstance(header, dict) or header.get("key") != key:
        raise DamagedError(f"result {key} is that of another cell")
    return header, whole[start + size : -_DIGEST]


def decode(data: bytes, key: str) -> Finished:
    """Read a result.

    Raises
    ------
    DamagedError
        If the bytes are not what a sweep wrote under this key.
    """
    header, stream = _open(data, key)
    where = f"result {key}"
    made, seconds = header.get("provenance"), header.get("seconds")
    if not isinstance(made, dict) or not isinstance(seconds, (int, float)):
        raise DamagedError(f"{where} does not say what made it")
    try:
        _check_uncompressed(stream)
        table = from_ipc(stream, where)
        values = sum(_values(chunk) for column in table.columns for chunk in column.chunks)
        if max(values, table.num_rows) > MOST_VALUES or INDEX in table.column_names:
            raise DamagedError(f"{where} holds more values than it may, or a column of the sweep")
        rows = pl.from_arrow(table)
    except DamagedError:
        raise
    except (IntegrityError, pa.ArrowException, pl.exceptions.PolarsError, struct.error, OSError,
            pl.exceptions.PanicException, IndexError, KeyError, ValueError, TypeError,
            NotImplementedError, MemoryError) as error:  # fmt: skip
        raise DamagedError(f"{where} holds no table: {error}") from None
    if not isinstance(rows, pl.DataFrame):
        raise DamagedError(f"{where} holds no table")
    return Finished(rows, header)


def _values(array: Any) -> int:
    """Values of an Arrow array with all that are nested in it."""
    kind, count = array.type, len(array)
    if pa.types.is_struct(kind):
        return count + sum(_values(array.field(i)) for i in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return count + _values(array.values)
    if pa.types.is_dictionary(kind):
        words = kind.value_type
        if not (pa.types.is_string(words) or pa.types.is_large_string(words)
                or words == pa.string_view()):  # fmt: skip
            raise ValueError(f"a dictionary of {words}")  # repeats what is large
    elif kind.num_fields:  # unions and runs: a few bytes that stand for many values
        raise ValueError(f"a column of {kind}")
    return count


_DICTIONARY, _BATCH = 2, 3  # kinds of messages


def _check_uncompressed(stream: memoryview) -> None:
    """Refuse compressed columns, which a sweep never writes: a few bytes may claim to be many.

    Reads as much of each message's FlatBuffers as says so (Arrow's ``Message.fbs``).
    """

    def field(table: int, number: int) -> int:
        """Where a field of the table lies; 0 where it has none."""
        entries = table - struct.unpack_from("<i", head, table)[0]
        if entries < 0 or 4 + 2 * number >= struct.unpack_from("<H", head, entries)[0]:
            return 0
        offset: int = struct.unpack_from("<H", head, entries + 4 + 2 * number)[0]
        return table + offset if offset else 0

    def follow(at: int) -> int:
        below: int = at + struct.unpack_from("<I", head, at)[0]
        return below

    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(stream)):
        head = memoryview(message.metadata)
        root = follow(0)
        kind, header = field(root, 1), field(root, 2)
        number = head[kind] if kind else 0
        if number not in (_DICTIONARY, _BATCH):
            continue
        batch = follow(header)
        if number == _DICTIONARY:
            batch = follow(field(batch, 1))
        if field(batch, 3):
            raise ValueError("it is compressed")


class Claim:
    """A cell that this process alone may run, until `release` or its end."""

    def __init__(self, path: Path, file: int) -> None:
        self._path, self._file = path, file

    def release(self) -> None:
        """Let others have it."""
        if self._file < 0:
            return
        # Unlinked while held: whoever opened it meanwhile sees that it is gone, and tries again.
        with suppress(OSError):
            self._path.unlink()
        os.close(self._file)
        self._file = -1


class ResultStore:
    """A folder of results.

    Parameters
    ----------
    root : path
        The folder.
    identity : str
        Of the store, 32 hex digits: by it a worker elsewhere knows that it sees the same one.
    """

    def __init__(self, root: Path, identity: str) -> None:
        self.root, self.identity = root, identity

    @classmethod
    def open(cls, root: str | os.PathLike[str]) -> ResultStore:
        """Open a store, or make one in a folder that is empty or not there.

        Raises
        ------
        InputError
            If the folder holds something else.
        StorageError
            If nothing can be written there.
        """
        folder = Path(root).absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if _identity(folder) is None:
                others = {p.name for p in folder.iterdir() if not p.name.startswith(_PARTIAL)}
                if others and MARKER not in others:
                    raise InputError(
                        f"{quoted(str(folder))} is no store of results, and not empty",
                        hint="name a new folder",
                    )
                _mark(folder)
            for name in ("results", "claims", "tmp"):
                (folder / name).mkdir(exist_ok=True)
            _sync(folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(f"{quoted(str(folder))} is no folder") from error
        except OSError as error:
            _refused("open", folder, error)
        identity = _identity(folder)
        if identity is None:
            raise InputError(f"{quoted(str(folder / MARKER))} is damaged", hint="name a new folder")
        store = cls(folder, identity)
        store.clean()
        return store

    @classmethod
    def if_same(cls, root: str, identity: str) -> ResultStore | None:
        """The store, if this machine sees it under the same path; a worker may be elsewhere."""
        try:
            found = _identity(Path(root))
        except OSError:
            return None
        return cls(Path(root), identity) if found == identity else None

    def path(self, key: str) -> Path:
        """The file of a key."""
        if not _KEY.fullmatch(key):
            raise InputError(f"{quoted(key)} is no key of a result")
        return self.root / "results" / key[:2] / key

    def read(self, key: str) -> bytes | None:
        """Bytes of a result; None if there is none; empty if what is there cannot be one."""
        path = self.path(key)
        try:
            file = os.open(path, os.O_RDONLY | _FLAGS)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link or a socket: no result
                return b""
            _refused("read", path, error)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_RESULT:
                return b""
            with os.fdopen(os.dup(file), "rb") as opened:
                return opened.read(MOST_RESULT)
        except OSError as error:
            if error.errno == errno.EIO:  # a bad sector: as good as damaged
                return b""
            _refused("read", path, error)
        finally:
            os.close(file)

    def put(self, key: str, data: bytes) -> bool:
        """Store a result, durably; False if somebody did before.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        target = self.path(key)
        temporary = self.root / "tmp" / f"{key}-{os.urandom(8).hex()}"
        try:
            if target.exists():
                return False
            if not target.parent.exists():
                target.parent.mkdir(exist_ok=True)
                _sync(target.parent.parent)
            try:
                _write(temporary, data)
                _link(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            _sync(target.parent)
        except FileExistsError:
            return False
        except OSError as error:
            if target.exists():  # ours was cleaned away after another finished the cell
                return False
            _refused("write", target, error)
        return True

    def remove(self, key: str) -> None:
        """Remove a damaged result; only for the holder of its claim."""
        path = self.path(key)
        try:
            path.unlink(missing_ok=True)
            _sync(path.parent)
        except OSError as error:
            _refused("remove", path, error)

    def claim(self, key: str) -> Claim | None:
        """Claim a cell for this process; None if another one has it."""
        path = self.root / "claims" / self.path(key).name
        try:
            while True:
                file = os.open(path, os.O_RDONLY | os.O_CREAT | _FLAGS, 0o666)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(file).st_ino == path.stat().st_ino:
                        return Claim(path, file)
                except BlockingIOError:
                    os.close(file)
                    return None
                except FileNotFoundError:
                    pass  # its holder released it between our two calls
                except OSError as error:
                    if error.errno not in _NO_LOCKS:
                        os.close(file)
                        raise
                    return Claim(path, file)  # no locks here: whoever finishes second finds it
                os.close(file)
        except OSError as error:
            _refused("claim", path, error)

    def clean(self) -> None:
        """Remove what killed sweeps left in ``tmp/`` and ``claims/``; what is in use stays."""
        try:
            parts = [self.root / name for name in ("tmp", "claims")]
            left = {path.name[:64] for part in parts for path in part.iterdir()}
        except OSError as error:
            _refused("look at", self.root, error)
        for key in left:
            if not _KEY.fullmatch(key):
                continue
            with self._claimed(key) as alone:
                if alone:
                    for path in (self.root / "tmp").glob(f"{key}-*"):
                        with suppress(OSError):
                            path.unlink()

    @contextmanager
    def _claimed(self, key: str) -> Iterator[bool]:
        claim = self.claim(key)
        try:
            yield claim is not None
        finally:
            if claim:
                claim.release()


def _identity(folder: Path) -> str | None:
    """The identity in a store's marker; None if there is no marker that says so."""
    try:
        file = os.open(folder / MARKER, os.O_RDONLY | _FLAGS)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return None
        found = _MARK.fullmatch(os.read(file, 100))
    finally:
        os.close(file)
    return found[1].decode() if found else None


def _mark(folder: Path) -> None:
    """Make a folder a store; of two that do so at once, one wins."""
    temporary = folder / f"{_PARTIAL}{os.urandom(8).hex()}"
    try:
        _write(temporary, b"vmbk sweep store 1\n" + os.urandom(16).hex().encode() + b"\n")
        with suppress(FileExistsError):
            _link(temporary, folder / MARKER)
    finally:
        temporary.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _link(temporary: Path, target: Path) -> None:
    """Give a whole file its name, unless the name is taken."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # A file system without hard links: both of two writers have the same cell's result.
        temporary.rename(target)


def _sync(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _refused(verb: str, path: Path, error: OSError) -> NoReturn:
    raise StorageError(
        f"cannot {verb} {quoted(str(path), 200)}: {error.strerror or error}",
        hint="the results that are there stay; run again to go on",
    ) from error
