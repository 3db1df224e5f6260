"""The trace: an immutable table of block requests, in memory or memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from vmbk.errors import InputError, TraceFormatError
from vmbk.trace.schema import (
    COLUMNS,
    OP_NAMES,
    Metadata,
    Op,
    Volume,
    canonical_json,
    check_payload,
    check_requests,
    conform,
)
from vmbk.units import format_duration, format_size, quoted

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace.summary import TraceSummary

BATCH_ROWS: Final = 1 << 20
_DIGEST_FORMAT: Final = b"vmbk trace content 1\n"


@dataclass(frozen=True)
class Requests:
    """The integer columns of a trace as NumPy arrays, ready for kernels.

    Views of the trace's own buffers: read-only and never a copy.

    Parameters
    ----------
    time_ns : ndarray of int64, shape (n,)
    op : ndarray of int8, shape (n,)
        Codes of `Op`.
    volume : ndarray of uint32, shape (n,)
    offset : ndarray of int64, shape (n,)
        Bytes.
    length : ndarray of int64, shape (n,)
        Bytes.
    flags : ndarray of uint8, shape (n,)
    """

    time_ns: NDArray[np.int64]
    op: NDArray[np.int8]
    volume: NDArray[np.uint32]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]
    flags: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.op)

    def __getitem__(self, rows: slice) -> Requests:
        return Requests(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True)
class Payloads:
    """The payload column as the buffers under it, without a copy.

    Parameters
    ----------
    offsets : ndarray of int64, shape (n + 1,)
        Payload i is ``data[offsets[i]:offsets[i + 1]]``.
    data : ndarray of uint8
        All payloads; may begin before the first and end after the last.
    valid : ndarray of bool, shape (n,)
        False where a request has no payload.
    """

    offsets: NDArray[np.int64]
    data: NDArray[np.uint8]
    valid: NDArray[np.bool_]


def checked_trace(value: object) -> Trace:
    """The value, if it is a trace: what a function that takes one asks first.

    Raises
    ------
    InputError
        If it is something else, such as a path.
    """
    if isinstance(value, Trace):
        return value
    raise InputError(
        f"{quoted(value)} is no trace, but of type {type(value).__name__}",
        hint="vmbk.read_trace reads one from a file, vmbk.Trace.from_frame makes one of a table",
    )


@dataclass(frozen=True, eq=False)
class Trace:
    """Block requests in the order in which the disk saw them.

    Make one with `from_arrow`, `from_columns`, `from_frame`, `read_trace` or `import_trace`; all of
    them check every row, so whoever holds a trace may rely on its rules (see `vmbk.trace.schema`).

    Parameters
    ----------
    table : pyarrow.Table
        Conforming columns, one chunk each.
    metadata : Metadata
    """

    table: Any = field(repr=False)
    metadata: Metadata

    @classmethod
    def from_arrow(
        cls,
        table: Any,
        *,
        volumes: Sequence[Volume],
        source_format: str = "",
        source_digest: str = "",
        clock: str = "none",
        provenance: dict[str, Any] | None = None,
    ) -> Trace:
        """Check a table and make it a trace.

        Parameters
        ----------
        table : pyarrow.Table
            The columns of `COLUMNS`; ``content`` and ``payload`` may be absent.
        volumes : sequence of Volume
        source_format, source_digest, clock, provenance
            As in `Metadata`.

        Raises
        ------
        TraceFormatError
            If columns or rows break the schema.
        OutOfRangeError
            If a request reaches outside its volume.
        """
        metadata = Metadata(tuple(volumes), source_format, source_digest, clock, provenance or {})
        trace = cls(conform(table).replace_schema_metadata(metadata.to_arrow()), metadata)
        trace._check()
        return trace

    @classmethod
    def from_columns(
        cls,
        *,
        volumes: Sequence[Volume],
        op: ArrayLike,
        offset: ArrayLike,
        length: ArrayLike,
        time_ns: ArrayLike | None = None,
        volume: ArrayLike | None = None,
        flags: ArrayLike | None = None,
        content: Sequence[bytes | None] | None = None,
        payload: Sequence[bytes | None] | None = None,
        source_format: str = "",
        source_digest: str = "",
        clock: str = "none",
        provenance: dict[str, Any] | None = None,
    ) -> Trace:
        """Make a trace of arrays, which are copied.

        Parameters
        ----------
        volumes : sequence of Volume
        op, offset, length : array_like of integers, shape (n,)
            ``op`` as codes of `Op`.
        time_ns, volume, flags : array_like of integers, shape (n,), optional
            Zeros where absent; ``volume`` is the first volume's id.
        content, payload : sequence of bytes or None, shape (n,), optional
            A pyarrow array of the right type is taken as it is.
        source_format, source_digest, clock, provenance
            As in `Metadata`.

        Raises
        ------
        TraceFormatError, OutOfRangeError
            As for `from_arrow`, and where lengths differ or a value does not fit its column.
        """
        count = np.asarray(op).size
        first = volumes[0].id if volumes else 0
        given = {
            "time_ns": time_ns if time_ns is not None else np.zeros(count, np.int64),
            "op": op,
            "volume": volume if volume is not None else np.full(count, first, np.uint32),
            "offset": offset,
            "length": length,
            "flags": flags if flags is not None else np.zeros(count, np.uint8),
        }
        columns = {name: _integers(name, values, count) for name, values in given.items()}
        bad = [c for c in columns["op"].unique().to_pylist() if not 0 <= c < len(OP_NAMES)]
        if bad:
            raise TraceFormatError(f"op holds codes without a meaning: {bad[:10]}")
        columns["op"] = pa.DictionaryArray.from_arrays(columns["op"], pa.array(OP_NAMES))
        for name, values in (("content", content), ("payload", payload)):
            if values is not None:
                if len(values) != count:
                    raise TraceFormatError(f"{name} has {len(values)} values, op has {count}")
                try:
                    columns[name] = pa.array(values, COLUMNS[name].type)
                except (pa.ArrowException, TypeError) as error:
                    raise TraceFormatError(f"{name} does not fit its column: {error}") from error
        return cls.from_arrow(
            pa.table(columns),
            volumes=volumes,
            source_format=source_format,
            source_digest=source_digest,
            clock=clock,
            provenance=provenance,
        )

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        columns: Mapping[str, str | None] | None = None,
        *,
        time_unit: str | int | None = None,
        offset_unit: int | None = None,
        length_unit: int | None = None,
        ops: Mapping[Any, str | Op | None] | None = None,
        volume_size: int | str | Mapping[Any, int | str] | None = None,
        volumes: Sequence[Volume] | None = None,
        provenance: dict[str, Any] | None = None,
    ) -> Trace:
        """Make a trace of a table of any shape that has a row a request.

        Rows are put in the order of their times, which are counted from the earliest.

        Parameters
        ----------
        frame : polars.DataFrame, polars.LazyFrame or pyarrow.Table
            Or any table that hands itself over by Arrow's C interface, as those of pandas do.
        columns : mapping, optional
            Which column is the ``time``, the ``op``, the ``offset``, the ``length``, the
            ``volume``, the ``flags`` and the ``content``. Obvious names such as ``timestamp``,
            ``size`` or ``lba`` need not be told. ``{"time": None}`` says that there are no times.
        time_unit : str or int, optional
            ``s``, ``ms``, ``us`` or ``ns``, or the ns of a unit. A column of dates or durations
            has its own, and ``time_ns`` or ``ts (s)`` tell it by their names.
        offset_unit, length_unit : int, optional
            Bytes of a unit; by default 512 for columns named ``lba``, ``lbn``, ``sector`` or
            ``sectors``, and 1 for others.
        ops : mapping, optional
            The operation for each value of that column, or None to leave such rows out. Words such
            as ``R``, ``Write`` or ``trim`` need not be told, numbers must be.
        volume_size : int, str or mapping, optional
            Bytes of each volume, or of each by its value in the table; without it, the end of the
            last request rounded up to 1 MiB.
        volumes : sequence of Volume, optional
            The volumes, if that column holds their ids; otherwise ids are given in the order of
            appearance, and the values are the names.
        provenance : dict, optional
            As in `Metadata`.

        Raises
        ------
        InputError
            If it is not clear which column is what, or an argument means nothing.
        TraceFormatError, OutOfRangeError
            If a value does not fit, with its row.
        """
        from vmbk.trace.frames import from_frame

        return from_frame(
            frame,
            columns,
            time_unit=time_unit,
            offset_unit=offset_unit,
            length_unit=length_unit,
            ops=ops,
            volume_size=volume_size,
            volumes=volumes,
            provenance=provenance,
        )

    def _check(self) -> None:
        r = self.requests
        check_requests(self.volumes, r.time_ns, r.op, r.volume, r.offset, r.length, r.flags)
        payloads = self.payloads
        if payloads is None:
            return
        check_payload(r.op, r.length, payloads.offsets, payloads.valid)
        marks = self._column("payload").filter(pa.array(r.op == Op.MARK))
        try:
            marks.cast(pa.large_string())
        except pa.ArrowInvalid as error:
            raise TraceFormatError(f"a mark's label is not UTF-8: {error}") from error

    def __repr__(self) -> str:
        disks = ", ".join(f"{quoted(v.name)} of {format_size(v.size)}" for v in self.volumes[:4])
        more = f" and {len(self.volumes) - 4} more" if len(self.volumes) > 4 else ""
        clock = self.requests.time_ns
        time = format_duration(int(clock[-1] - clock[0]) / 1e9) if len(self) else "no time"
        bytes_too = ", with payloads" if self.has_payload else ""
        return (
            f"<Trace: {len(self):,} requests in {time} on {disks or 'no volume'}{more}{bytes_too}>"
        )

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, rows: slice) -> Trace:
        """The trace of a contiguous range of requests, without a copy."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise InputError(f"a trace can only be cut into contiguous ranges, not by step {step}")
        return Trace(self.table.slice(start, max(stop - start, 0)), self.metadata)

    @property
    def volumes(self) -> tuple[Volume, ...]:
        """The volumes, in order of id."""
        return self.metadata.volumes

    @property
    def provenance(self) -> dict[str, Any]:
        """What made the trace."""
        return self.metadata.provenance

    def volume(self, id: int) -> Volume:
        """The volume of this id.

        Raises
        ------
        InputError
            If there is none.
        """
        for volume in self.volumes:
            if volume.id == id:
                return volume
        raise InputError(f"the trace has no volume {id}, it has {[v.id for v in self.volumes]}")

    def _column(self, name: str) -> Any:
        chunked = self.table.column(name)
        return chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()

    @cached_property
    def requests(self) -> Requests:
        """The integer columns as NumPy views."""
        views = {}
        for f in fields(Requests):
            array = self._column(f.name)
            array = array.indices if f.name == "op" else array
            view = array.to_numpy(zero_copy_only=True)
            # A foreign file may place a buffer where the processor does not like to read it.
            views[f.name] = view if view.flags.aligned else view.copy()
        return Requests(**views)

    @cached_property
    def has_payload(self) -> bool:
        """Whether bytes were captured for any write."""
        payloads = self.payloads
        return payloads is not None and bool(
            (payloads.valid & (self.requests.op == Op.WRITE)).any()
        )

    @cached_property
    def payloads(self) -> Payloads | None:
        """The payload column's buffers, or None where there is no such column."""
        if "payload" not in self.table.column_names:
            return None
        array = self._column("payload")
        _, offsets, data = array.buffers()
        if offsets is None or offsets.size == 0:
            starts = np.zeros(1, np.int64)
        else:
            starts = np.frombuffer(offsets, np.int64, len(array) + 1, 8 * array.offset)
        starts = starts if starts.flags.aligned else starts.copy()
        valid = array.is_valid().to_numpy(zero_copy_only=False)
        content = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
        return Payloads(starts, content, valid)

    def payload(self, row: int) -> memoryview | None:
        """The captured bytes of one request, without a copy; None where there are none."""
        payloads = self.payloads
        if payloads is None or not payloads.valid[row]:
            return None
        row %= len(self)  # negative rows count from the end
        start, stop = payloads.offsets[row : row + 2].tolist()
        return payloads.data[start:stop].data

    def marks(self) -> list[tuple[int, str]]:
        """Row and label of every mark, in order."""
        rows = np.flatnonzero(self.requests.op == Op.MARK).tolist()
        return [(row, bytes(self.payload(row) or b"").decode()) for row in rows]

    def frame(self) -> pl.DataFrame:
        """A Polars frame of all columns but the payload."""
        import polars as pl

        names = [n for n in self.table.column_names if n != "payload"]
        frame = pl.DataFrame(pl.from_arrow(self.table.select(names)))
        return frame.with_columns(pl.col("op").cast(pl.String).cast(pl.Enum(OP_NAMES)))

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[Requests]:
        """The requests in ranges of at most ``rows``, as views."""
        if rows < 1:
            raise InputError(f"batches of {rows} rows: at least 1 is needed")
        whole = self.requests
        for start in range(0, len(whole), rows):
            yield whole[start : start + rows]

    def summary(self) -> TraceSummary:
        """Counts and sizes over the whole trace."""
        from vmbk.trace.summary import summarise

        return summarise(self)

    @cached_property
    def digest(self) -> str:
        """BLAKE3 (hex) of volumes and rows, the same in every container and batch layout."""
        from blake3 import blake3

        hasher = blake3(_DIGEST_FORMAT, max_threads=blake3.AUTO)
        volumes = [[v.id, v.name, v.size, v.sector_size] for v in self.volumes]
        hasher.update(canonical_json([len(self), volumes]).encode())
        for f in fields(Requests):
            values = getattr(self.requests, f.name)
            hasher.update(b"\n" + f.name.encode() + b"\n")
            hasher.update(_bytes(values))
        for name in ("content", "payload"):
            self._hash_binary(hasher, name)
        return str(hasher.hexdigest())

    def _hash_binary(self, hasher: Any, name: str) -> None:
        """Feed a nullable column: a byte a row for validity, the lengths, the bytes."""
        array = self._column(name) if name in self.table.column_names else None
        if array is None or array.null_count == len(array):
            return  # an absent column and one of nulls say the same
        hasher.update(b"\n" + name.encode() + b"\n")
        hasher.update(array.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8))
        if name == "content":
            present = array.drop_null()
            data = np.frombuffer(present.buffers()[1], np.uint8)
            hasher.update(data[16 * present.offset : 16 * (present.offset + len(present))])
            return
        payloads = self.payloads
        assert payloads is not None
        sizes = np.diff(payloads.offsets)
        hasher.update(_bytes(sizes[payloads.valid]))
        if not sizes[~payloads.valid].any():
            hasher.update(payloads.data[int(payloads.offsets[0]) : int(payloads.offsets[-1])].data)
            return
        # Arrow lets a null stand over bytes that mean nothing.
        for row in np.flatnonzero(payloads.valid).tolist():
            hasher.update(self.payload(row) or b"")

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


def _bytes(values: NDArray[Any]) -> memoryview:
    """The values in little-endian order as plain bytes."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).view(np.uint8).data


def _integers(name: str, values: ArrayLike, count: int) -> Any:
    """An Arrow array of a copy of ``values``, in the type of its column (``op``: its codes)."""
    array = np.asarray(values)
    if array.ndim != 1 or len(array) != count:
        raise TraceFormatError(f"{name} has shape {array.shape}, op has {count} values")
    if array.size and array.dtype.kind not in "iu":
        raise TraceFormatError(f"{name} has dtype {array.dtype}, integers are needed")
    wanted = np.dtype(np.int8) if name == "op" else np.dtype(COLUMNS[name].type.to_pandas_dtype())
    limits = np.iinfo(wanted)
    if array.size and (int(array.min()) < limits.min or int(array.max()) > limits.max):
        raise TraceFormatError(
            f"{name} holds values from {array.min()} to {array.max()}, outside {wanted}"
        )
    return pa.array(np.array(array, wanted))
