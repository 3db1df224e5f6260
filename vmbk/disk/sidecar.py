"""The file that keeps change tracking between runs: ``<image>.tracking``.

An Arrow IPC stream of one table, one row per generation (``generation`` int64, ``bitmap``
large_binary), followed by a trailer of 40 bytes: the BLAKE3 digest of all that precedes it and
`MAGIC`. ``pyarrow.ipc.open_stream`` reads the file as it is. The schema's metadata holds the rest
of the state, see `vmbk.disk.tracking_state.State`.

Rules of the file:

1. It MUST be replaced as a whole (write beside it, fsync, rename, fsync the folder).
2. It MUST say ``clean = 0``, durably, before the first write of a session reaches the image.
3. It MUST say ``clean = 1`` only with the signature of an image whose writes are all durable and
   marked.
4. Whatever breaks a rule of this module makes it damaged, and damaged tracking is not believed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.disk.opening import storage_error
from vmbk.disk.signature import ImageSignature
from vmbk.disk.tracking_state import (
    MAX_GENERATIONS,
    MAX_GRANULARITY,
    MAX_LOSSES,
    MIN_GRANULARITY,
    Generation,
    Lost,
    State,
    TrackingLostError,
)
from vmbk.units import MIB

__all__ = ["Stored", "TrackingLostError", "load", "locked", "save", "sidecar_path"]

MAGIC: Final = b"VMBKTRK1"
SUFFIX: Final = ".tracking"
_VERSION: Final = "1"
_DIGEST: Final = 32  # bytes of BLAKE3
_TRAILER: Final = _DIGEST + len(MAGIC)
_NUMBER: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


@dataclass(frozen=True)
class Stored:
    """A sidecar as read: the state, whether it was closed cleanly, and the image's signature then.

    The bitmaps are empty where the image has another size than the state says.
    """

    state: State
    clean: bool
    signature: ImageSignature


def sidecar_path(image: Path) -> Path:
    """Where the tracking of an image is kept. The image's path must be resolved."""
    return image.with_name(image.name + SUFFIX)


def save(path: Path, stored: Stored, *, like: Path) -> None:
    """Replace the sidecar, durably.

    Parameters
    ----------
    path : Path
    stored : Stored
    like : Path
        The image, whose permissions the sidecar takes.

    Raises
    ------
    StorageError
        If the operating system refuses; the former file is then still there.
    """
    body = _encode(stored)
    from blake3 import blake3

    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                with suppress(OSError):  # the image may have been renamed while it was open
                    os.fchmod(fd, like.stat().st_mode & 0o666)
                file.write(body)
                file.write(blake3(body).digest() + MAGIC)
                file.flush()
                os.fsync(fd)
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise storage_error(f"change tracking {str(path)!r}", "cannot be saved", error) from error


def _schema() -> Any:
    # pyarrow is imported where it is needed: most disks are opened without tracking.
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("generation", pa.int64(), nullable=False),
            pa.field("bitmap", pa.large_binary(), nullable=False),
        ]
    )


def _encode(stored: Stored) -> memoryview:
    import pyarrow as pa

    state, signature = stored.state, stored.signature
    metadata = {
        "vmbk.tracking.version": _VERSION,
        "vmbk.tracking.id": state.id,
        "vmbk.tracking.size": str(state.size),
        "vmbk.tracking.granularity": str(state.granularity),
        "vmbk.tracking.generation": str(state.generation),
        "vmbk.tracking.first": str(state.first),
        "vmbk.tracking.losses": ";".join(f"{id}={reason.value}" for id, reason in state.losses),
        "vmbk.tracking.clean": str(int(stored.clean)),
        "vmbk.tracking.signature": " ".join(
            str(v)
            for v in (
                signature.size,
                signature.mtime_ns,
                signature.ctime_ns,
                signature.inode,
                signature.device,
            )
        ),
    }
    rows = pa.table(
        [
            pa.array([g.number for g in state.generations], pa.int64()),
            _bitmap_column([g.bits for g in state.generations]),
        ],
        schema=_schema().with_metadata(metadata),
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return memoryview(sink.getvalue())


def _bitmap_column(bitmaps: list[NDArray[np.uint8]]) -> Any:
    import pyarrow as pa

    lengths = np.array([0, *(len(bits) for bits in bitmaps)], np.int64)
    buffers = [None, pa.py_buffer(np.cumsum(lengths)), pa.py_buffer(np.concatenate(bitmaps))]
    return pa.Array.from_buffers(pa.large_binary(), len(bitmaps), buffers)


def load(path: Path, image_size: int) -> Stored | None:
    """Read a sidecar.

    Nothing in the file is believed before it was checked: its length is bounded by the image's
    real size before it is read, and every bitmap must have exactly the length that follows from
    that size.

    Parameters
    ----------
    path : Path
    image_size : int
        Bytes of the image as it is now.

    Returns
    -------
    Stored or None
        None where the file is damaged, or where something else than a file has its name.

    Raises
    ------
    FileNotFoundError
        If there is none.
    StorageError
        If the operating system refuses to read it.
    """
    import pyarrow as pa
    from blake3 import blake3

    largest = -(-image_size // MIN_GRANULARITY // 8) + 1
    bound = (MAX_GENERATIONS + 2) * largest + MIB
    try:
        fd = _open_regular(path)
        if fd is None:
            return None
        with os.fdopen(fd, "rb") as file:
            content = memoryview(file.read(bound + 1))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error(f"change tracking {str(path)!r}", "cannot be read", error) from error
    if not _TRAILER < len(content) <= bound:
        return None
    body, trailer = content[:-_TRAILER], bytes(content[-_TRAILER:])
    if trailer != blake3(body).digest() + MAGIC:
        return None
    try:
        if _compressed(body):
            return None
        with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
            table = reader.read_all()
        table.validate(full=True)
        return _decode(table, image_size)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError, struct.error):
        return None


def _open_regular(path: Path) -> int | None:
    """A descriptor for reading a file; None where something else, or a link, has its name.

    Looks before opening, as that may have effects on a device; a pipe that comes in between does
    not make us wait for somebody at its other end.
    """
    if not stat.S_ISREG(path.lstat().st_mode):
        return None
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return None
        raise
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    return None


def _compressed(body: memoryview) -> bool:
    """Whether any record batch is compressed, which `save` never does.

    A small file could then unfold into any amount of memory. pyarrow tells only after unfolding,
    so this looks up the field ``compression`` (3) in the table of the batch (field ``header``, 2,
    of the message), after the FlatBuffers layout: a table begins with the distance back to its
    vtable, which holds two 16-bit sizes and then the place of each field.
    """
    import pyarrow as pa

    def field(data: bytes, table: int, index: int) -> int:
        vtable = table - int(struct.unpack_from("<i", data, table)[0])
        size = int(struct.unpack_from("<H", data, vtable)[0])
        at = 4 + 2 * index
        return int(struct.unpack_from("<H", data, vtable + at)[0]) if at < size else 0

    for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
        if message.type == "record batch":
            data = message.metadata.to_pybytes()
            root = int(struct.unpack_from("<I", data, 0)[0])
            header = root + field(data, root, 2)
            header += int(struct.unpack_from("<I", data, header)[0])
            if field(data, header, 3):
                return True
    return False


def _decode(table: Any, image_size: int) -> Stored:
    """The content of a table that Arrow found sound; ValueError or KeyError where it breaks rules.

    The digest tells damage, not forgery: the file may have been written by anybody.
    """
    texts: dict[str, str] = {
        k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()
    }

    def text(key: str) -> str:
        return texts[f"vmbk.tracking.{key}"]

    def require(holds: bool, what: str) -> None:
        if not holds:
            raise ValueError(what)

    def number(value: str, low: int, high: int) -> int:
        require(_NUMBER.fullmatch(value) is not None, "number")
        require(low <= int(value) <= high, "range")
        return int(value)

    most = (1 << 63) - 1
    require(text("version") == _VERSION, "version")
    require(table.schema.equals(_schema()), "schema")
    require(1 <= table.num_rows <= MAX_GENERATIONS + 1, "rows")
    require(all(column.null_count == 0 for column in table.columns), "nulls")
    require(_ID.fullmatch(text("id")) is not None, "id")
    size = number(text("size"), 1, most)
    granularity = number(text("granularity"), MIN_GRANULARITY, MAX_GRANULARITY)
    require(granularity & (granularity - 1) == 0, "granularity")
    numbers = table.column("generation").to_pylist()
    require(all(a < b for a, b in pairwise(numbers)), "order")
    require(numbers[-1] == number(text("generation"), 1, most // 2), "generation")
    first = number(text("first"), 0, numbers[0])
    signature = [number(part, -most, most) for part in text("signature").split(" ")]
    require(len(signature) == len(ImageSignature.__dataclass_fields__), "signature")
    clean = number(text("clean"), 0, 1)
    listed = [item.partition("=") for item in text("losses").split(";") if item]
    require(len(listed) <= MAX_LOSSES, "losses")
    require(all(not id or _ID.fullmatch(id) for id, _, _ in listed), "lost id")
    losses = tuple((id, Lost(reason)) for id, _, reason in listed)
    state = State(text("id"), size, granularity, [], first, losses)
    same_size = size == image_size
    bitmaps = table.column("bitmap") if same_size else [None] * len(numbers)
    for generation, bitmap in zip(numbers, bitmaps, strict=True):
        bits = np.zeros(0, np.uint8)
        if bitmap is not None:
            raw = np.frombuffer(bitmap.as_buffer(), np.uint8)
            require(len(raw) == -(-state.n_blocks // 8), "bitmap length")
            spare = 8 * len(raw) - state.n_blocks
            require(int(raw[-1]) >> (8 - spare) == 0, "bits past the end")
            bits = raw.copy()
        state.generations.append(Generation(generation, bits))
    return Stored(state, bool(clean), ImageSignature(*signature))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the sidecar alone among processes that read the image.

    What is no file is not held: whoever finds it starts over under an id of his own, and of
    several only the last one's is believed later.

    Raises
    ------
    FileNotFoundError
        If there is none.
    StorageError
        If the operating system refuses.
    """
    while True:
        try:
            fd = _open_regular(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            what = "cannot be read"
            raise storage_error(f"change tracking {str(path)!r}", what, error) from error
        if fd is None:
            yield
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Whoever held it before may have put a new file in its place.
            try:
                current = path.lstat().st_ino == os.fstat(fd).st_ino
            except FileNotFoundError:
                current = False
            if current:
                yield
                return
        finally:
            os.close(fd)
