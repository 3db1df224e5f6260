"""Columns written batch by batch to temporary files, and mapped as one trace at the end.

A trace may be larger than memory while it is imported or synthesised. Each column goes to a file
of its own that has no name, so that nothing is left behind however the process ends; mapped, the
files are the one-chunk columns of an ordinary `Trace`, and the system pages them in and out.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vmbk.errors import StorageError
from vmbk.trace.schema import OP_NAMES, Volume
from vmbk.trace.table import Trace

_DTYPES: Final[dict[str, Any]] = {
    "time_ns": np.int64,
    "op": np.int8,
    "volume": np.uint32,
    "offset": np.int64,
    "length": np.int64,
    "flags": np.uint8,
}
_MOVE_ROWS: Final = 1 << 20  # rows moved at a time where the order is changed


class Spool:
    """A trace in the making, whose rows need not fit in memory.

    Parameters
    ----------
    folder : path, optional
        Where the files without names lie; the system's folder for temporary files by default.
    content : bool
        Whether rows carry a 128-bit identity of what was written.

    Raises
    ------
    StorageError
        From here and from every method: if the operating system refuses to write.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, content: bool = False
    ) -> None:
        self._folder = None if folder is None else os.fspath(folder)
        names = [*_DTYPES, *(("content", "valid") if content else ())]
        self._files = {name: self._file() for name in names}
        self._last = self._zero = 0
        self.rows = 0
        """Rows so far."""
        self.in_order = True
        """Whether no row's time is below the one before it."""

    def append(
        self,
        *,
        time_ns: NDArray[np.int64],
        op: NDArray[np.int8],
        volume: NDArray[np.uint32],
        offset: NDArray[np.int64],
        length: NDArray[np.int64],
        flags: NDArray[np.uint8],
        content: NDArray[np.uint8] | None = None,
        valid: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add rows.

        Parameters
        ----------
        time_ns, op, volume, offset, length, flags : ndarray, shape (n,)
            As in `Requests`; converted to the column's type where they have another.
        content : ndarray of uint8, shape (n, 16), optional
            Identities; only where the spool was made for them.
        valid : ndarray of bool, shape (n,), optional
            Which rows have an identity; all where absent and ``content`` is given, else none.
        """
        count = len(op)
        if not count:
            return
        columns: dict[str, NDArray[Any]] = {
            "time_ns": time_ns, "op": op, "volume": volume,
            "offset": offset, "length": length, "flags": flags,
        }  # fmt: skip
        if "content" in self._files:
            given = content is not None
            columns["content"] = content if given else np.zeros((count, 16), np.uint8)  # type: ignore[assignment]
            columns["valid"] = valid if valid is not None else np.full(count, given)
        for name, values in columns.items():
            dtype = _DTYPES.get(name, np.uint8)
            self._write(self._files[name], np.ascontiguousarray(values, dtype))
        times = np.asarray(time_ns)
        follows = not self.rows or int(times[0]) >= self._last
        self.in_order &= follows and bool((times[1:] >= times[:-1]).all())
        self._last = int(times[-1])
        self.rows += count

    def sort_by_time(self) -> None:
        """Put the rows in the order of their times; those of one time stay as they are.

        Takes 16 bytes of memory a row, and only where rows are out of order.
        """
        if self.in_order:
            return
        order = np.argsort(self._map("time_ns"), kind="stable")
        for name in list(self._files):
            source, sorted_file = self._map(name), self._file()
            for start in range(0, self.rows, _MOVE_ROWS):
                self._write(sorted_file, source[order[start : start + _MOVE_ROWS]])
            self._files[name].close()
            self._files[name] = sorted_file
        self.in_order = True

    def start_at(self, time_ns: int) -> None:
        """Count times from this moment, which no row may precede."""
        self._zero = time_ns

    def first_time(self) -> int:
        """The earliest time in ns, 0 where there is no row."""
        if not self.rows:
            return 0
        times = self._map("time_ns")
        return int(times[0] if self.in_order else times.min())

    def finish(
        self,
        volumes: Sequence[Volume],
        *,
        source_format: str,
        source_digest: str = "",
        clock: str = "exact",
        provenance: dict[str, Any] | None = None,
    ) -> Trace:
        """The trace of all rows, which is checked as every trace is.

        Parameters
        ----------
        volumes, source_format, source_digest, clock, provenance
            As in `vmbk.trace.schema.Metadata`.

        Raises
        ------
        TraceFormatError, OutOfRangeError
            If the rows make no valid trace.
        """
        arrays: dict[str, Any] = {}
        for name, dtype in _DTYPES.items():
            kind = pa.from_numpy_dtype(dtype)
            if name == "time_ns" and self._zero:
                self._shift(name, -self._zero)
            buffer = pa.py_buffer(self._map(name))
            arrays[name] = pa.Array.from_buffers(kind, self.rows, [None, buffer])
        arrays["op"] = pa.DictionaryArray.from_arrays(arrays["op"], pa.array(OP_NAMES))
        if "content" in self._files:
            bits = np.packbits(self._map("valid").view(np.bool_), bitorder="little")
            buffers = [pa.py_buffer(bits), pa.py_buffer(self._map("content").reshape(-1))]
            arrays["content"] = pa.Array.from_buffers(pa.binary(16), self.rows, buffers)
        for file in self._files.values():
            file.close()  # what is mapped stays
        return Trace.from_arrow(
            pa.table(arrays),
            volumes=volumes,
            source_format=source_format,
            source_digest=source_digest,
            clock=clock,
            provenance=provenance,
        )

    def close(self) -> None:
        """Give the rows up."""
        for file in self._files.values():
            file.close()

    def _shift(self, name: str, by: int) -> None:
        source, shifted = self._map(name), self._file()
        for start in range(0, self.rows, _MOVE_ROWS):
            self._write(shifted, source[start : start + _MOVE_ROWS] + by)
        self._files[name].close()
        self._files[name] = shifted

    def _file(self) -> IO[bytes]:
        try:
            return tempfile.TemporaryFile(prefix="vmbk-spool-", dir=self._folder)
        except OSError as error:
            raise StorageError(f"cannot make a temporary file: {error.strerror}") from error

    def _write(self, file: IO[bytes], values: NDArray[Any]) -> None:
        try:
            file.write(values.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise StorageError(
                f"cannot write a temporary file: {error.strerror}",
                hint="free space in the folder for temporary files, or name another with TMPDIR",
            ) from error

    def _map(self, name: str) -> NDArray[Any]:
        """A column as an array over its file."""
        file, dtype = self._files[name], _DTYPES.get(name, np.uint8)
        try:
            file.flush()
            size = os.fstat(file.fileno()).st_size
            view = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        except OSError as error:
            raise StorageError(f"cannot read a temporary file: {error.strerror}") from error
        array = np.frombuffer(view, dtype)
        return array.reshape(-1, 16) if name == "content" else array
