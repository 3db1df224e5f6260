"""Reading and writing trace files: Arrow IPC by memory map, Parquet for shipping."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vmbk.errors import (
    InputError,
    NotFoundError,
    StorageError,
    TraceFormatError,
    UnknownFormatError,
)
from vmbk.trace.schema import Metadata
from vmbk.trace.summary import TraceSummary
from vmbk.trace.table import Payloads, Requests, Trace, checked_trace
from vmbk.units import quoted

__all__ = ["Payloads", "Requests", "Trace", "TraceSummary", "read_trace", "write_trace"]

IPC_SUFFIXES: Final = (".arrow", ".feather", ".ipc")
PARQUET_SUFFIXES: Final = (".parquet",)
IPC_MAGIC: Final = b"ARROW1"
PARQUET_MAGIC: Final = b"PAR1"

PARQUET_LEVEL: Final = 9
"""zstd level."""

_PARQUET_PAGE: Final = 8 << 20  # bytes: zstd finds repeats only within a page
_DELTA_COLUMNS: Final = ("time_ns", "volume", "offset", "length")


def read_trace(path: str | os.PathLike[str]) -> Trace:
    """Open a trace file.

    Arrow IPC is memory-mapped and used in place: do not change the file while the trace lives.
    Parquet is read into memory. The file's content decides which it is, not its name.

    Parameters
    ----------
    path : path

    Raises
    ------
    NotFoundError
        If there is no such file.
    UnknownFormatError
        If it is neither Arrow IPC nor Parquet.
    TraceFormatError, OutOfRangeError
        If it is damaged, or no valid trace.
    StorageError
        If the operating system refuses to read it.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"{quoted(path)} is no path of a trace file")
    path = Path(path)
    try:
        head = read_head(path, 8)
    except NotFoundError as error:
        from vmbk.trace.datasets import datasets

        if any(dataset.name == str(path) for dataset in datasets()):
            error.hint = f"a shipped capture has that name: dataset_path({str(path)!r}) is its file"
        raise
    try:
        if head.startswith(IPC_MAGIC):
            table = pa.ipc.open_file(pa.memory_map(str(path), "r")).read_all()
        elif head.startswith(PARQUET_MAGIC):
            with pq.ParquetFile(path, pre_buffer=False) as file:
                table = file.read()
        else:
            raise UnknownFormatError(
                f"{str(path)!r} is neither Arrow IPC nor Parquet",
                hint="traces of other formats are read with `vmbk trace import`",
            )
        # The file comes from outside: offsets and dictionary indices may point anywhere.
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError) as error:
        raise TraceFormatError(
            f"{str(path)!r} is damaged: {_one_line(error)}",
            hint="fetch or make the trace anew",
        ) from error
    metadata = Metadata.from_arrow(table.schema.metadata)
    return Trace.from_arrow(
        table,
        volumes=metadata.volumes,
        source_format=metadata.source_format,
        source_digest=metadata.source_digest,
        clock=metadata.clock,
        provenance=metadata.provenance,
    )


def read_head(path: Path, size: int) -> bytes:
    """The first bytes of a file that should be a trace.

    Raises
    ------
    NotFoundError, InputError, StorageError
        If it is missing, no regular file, or not readable.
    """
    try:
        if not path.exists():
            raise NotFoundError(f"there is no file {str(path)!r}")
        if not path.is_file():
            raise InputError(f"{str(path)!r} is not a regular file")
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise StorageError(f"cannot read {str(path)!r}: {error.strerror}") from error


def write_trace(
    trace: Trace, path: str | os.PathLike[str], *, parquet_level: int = PARQUET_LEVEL
) -> None:
    """Write a trace; the file appears whole or not at all.

    Parameters
    ----------
    trace : Trace
    path : path
        ``.arrow``, ``.feather`` and ``.ipc`` make uncompressed Arrow IPC, ``.parquet`` makes
        Parquet with zstd and delta encoding.
    parquet_level : int
        zstd level, 1 to 22.

    Raises
    ------
    UnknownFormatError
        If the suffix is another.
    NotFoundError
        If the folder does not exist.
    StorageError
        If the operating system refuses to write it.
    """
    checked_trace(trace)
    path = check_target(path)
    if not 1 <= parquet_level <= 22:
        raise InputError(f"zstd level {parquet_level} is not between 1 and 22")
    with replacing(path) as temporary:
        if path.suffix.lower() in IPC_SUFFIXES:
            with (
                pa.OSFile(str(temporary), "wb") as sink,
                pa.ipc.new_file(sink, trace.table.schema) as writer,
            ):
                # One batch, so that it is read back without putting chunks together.
                writer.write_table(trace.table, max_chunksize=max(len(trace), 1))
        else:
            _write_parquet(trace.table, temporary, parquet_level)


def check_target(path: str | os.PathLike[str]) -> Path:
    """The path, if a trace can be written to it: to be asked before long work.

    Raises
    ------
    UnknownFormatError
        If its suffix names no trace format.
    NotFoundError
        If its folder does not exist.
    """
    path = Path(path)
    if path.suffix.lower() not in IPC_SUFFIXES + PARQUET_SUFFIXES:
        raise UnknownFormatError(
            f"{path.name!r} names no trace format",
            hint="end it with " + ", ".join(IPC_SUFFIXES + PARQUET_SUFFIXES),
        )
    if not path.parent.is_dir():
        raise NotFoundError(f"there is no folder {str(path.parent)!r} to write {path.name!r} into")
    return path


def _write_parquet(table: Any, path: Path, level: int) -> None:
    names = table.column_names
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=level,
        use_dictionary=["op", "flags"],
        column_encoding={name: "DELTA_BINARY_PACKED" for name in _DELTA_COLUMNS if name in names},
        data_page_size=_PARQUET_PAGE,
        # Statistics of payloads would put whole blocks into the footer.
        write_statistics=[name for name in names if name not in ("content", "payload")],
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its place, durably, if all goes well."""
    folder = path.parent
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=folder)
        os.close(handle)
        temporary = Path(name)
        try:
            temporary.chmod(0o666 & ~_umask())
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(folder)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {_one_line(error)}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's umask. It can only be read by setting it: Linux tells it in /proc as well."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077


def _one_line(error: BaseException) -> str:
    """What a library says, which may quote bytes of the file."""
    plain = "".join(c if c.isprintable() else " " for c in str(error))
    return " ".join(plain.split())[:300] or type(error).__name__
