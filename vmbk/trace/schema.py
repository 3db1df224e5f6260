"""The one schema of a trace: its operations, columns, volumes and metadata, and what must hold.

A trace is an Arrow table with one row per request, in the order in which the disk saw them. The
registry `COLUMNS` is the single description of its columns; validation, documentation and
displays are made from it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum, IntFlag
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from vmbk.errors import OutOfRangeError, TraceFormatError

SCHEMA_VERSION: Final = "1"
CLOCKS: Final = ("none", "polled", "exact")
"""What ``time_ns`` is worth: nothing (all zero), sampled from outside, or stamped by the source."""

MAX_VOLUME_SIZE: Final = 1 << 62
"""Bytes; leaves room to round a size up to any block without leaving 63 bits."""

_CHECK_ROWS: Final = 1 << 18  # rows checked at a time: keeps the temporary arrays in the cache


class Op(IntEnum):
    """What a request does. The value is its code in the ``op`` column's dictionary."""

    READ = 0
    WRITE = 1
    FLUSH = 2
    DISCARD = 3
    WRITE_ZEROES = 4
    MARK = 5


class Flag(IntFlag):
    """Bits of the ``flags`` column."""

    FUA = 1
    SYNC = 2
    META = 4


OP_NAMES: Final = tuple(op.name.lower() for op in Op)
_ALL_FLAGS: Final = int(Flag.FUA | Flag.SYNC | Flag.META)


@dataclass(frozen=True)
class ColumnSpec:
    """One column of a trace."""

    name: str
    type: Any
    unit: str
    doc: str
    required: bool = True


COLUMNS: Final = {
    spec.name: spec
    for spec in (
        ColumnSpec("time_ns", pa.int64(), "ns", "time since the start of the trace; never falls"),
        ColumnSpec(
            "op", pa.dictionary(pa.int8(), pa.string()), "", "what is done: " + ", ".join(OP_NAMES)
        ),
        ColumnSpec("volume", pa.uint32(), "", "id of the volume"),
        ColumnSpec("offset", pa.int64(), "bytes", "where the request starts; 0 for flush and mark"),
        ColumnSpec("length", pa.int64(), "bytes", "how much it covers; 0 for flush and mark"),
        ColumnSpec("flags", pa.uint8(), "bits", "FUA 1, SYNC 2, META 4"),
        ColumnSpec(
            "content",
            pa.binary(16),
            "",
            "128-bit identity of what was written, null where unknown",
            required=False,
        ),
        ColumnSpec(
            "payload",
            pa.large_binary(),
            "bytes",
            "the bytes of a write as captured, or a mark's label in UTF-8; null where unknown",
            required=False,
        ),
    )
}


@dataclass(frozen=True)
class Volume:
    """One disk of a trace.

    Parameters
    ----------
    id : int
        The value in the ``volume`` column, 0 to 2**32 - 1.
    name : str
        Name for people.
    size : int
        Bytes.
    sector_size : int
        Bytes; the unit below which the source cannot write. A power of two from 512 to 65536.
    """

    id: int
    name: str
    size: int
    sector_size: int = 512

    def __post_init__(self) -> None:
        whole = all(type(v) is int for v in (self.id, self.size, self.sector_size))
        if not whole or not isinstance(self.name, str):
            raise TraceFormatError(f"a volume's numbers and name have the wrong types: {self!r}")
        if not 0 <= self.id < 1 << 32:
            raise TraceFormatError(f"volume id {self.id} is not between 0 and 2^32 - 1")
        if not 0 <= self.size <= MAX_VOLUME_SIZE:
            raise TraceFormatError(f"volume {self.id}: size {self.size} is not between 0 and 2^62")
        if not is_sector_size(self.sector_size):
            raise TraceFormatError(
                f"volume {self.id}: sector size {self.sector_size} is not a power of two "
                "from 512 to 65536"
            )


def is_sector_size(size: int) -> bool:
    """Whether ``size`` is a power of two from 512 to 65536."""
    return 512 <= size <= 65536 and size & (size - 1) == 0


@dataclass(frozen=True)
class Metadata:
    """What a trace says about itself, beside its rows.

    Parameters
    ----------
    volumes : tuple of Volume
        In order of id.
    source_format : str
        Name of the format that it was imported from, or what made it.
    source_digest : str
        BLAKE3 of the source file in hex, "" where there was none.
    clock : str
        One of `CLOCKS`.
    provenance : dict
        What made it; plain JSON data, free of paths and names of machines.
    """

    volumes: tuple[Volume, ...]
    source_format: str
    source_digest: str
    clock: str
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        if self.clock not in CLOCKS:
            raise TraceFormatError(
                f"vmbk.clock is {self.clock!r}", hint="allowed are " + ", ".join(CLOCKS)
            )
        ids = [v.id for v in self.volumes]
        if len(set(ids)) != len(ids):
            raise TraceFormatError(f"two volumes share an id: {sorted(ids)[:20]}")
        object.__setattr__(self, "volumes", tuple(sorted(self.volumes, key=lambda v: v.id)))

    def to_arrow(self) -> dict[bytes, bytes]:
        """The schema metadata that carries this."""
        pairs = {
            "vmbk.schema_version": SCHEMA_VERSION,
            "vmbk.source_format": self.source_format,
            "vmbk.source_digest": self.source_digest,
            "vmbk.volumes": canonical_json([asdict(v) for v in self.volumes]),
            "vmbk.clock": self.clock,
            "vmbk.provenance": canonical_json(self.provenance),
        }
        return {key.encode(): value.encode() for key, value in pairs.items()}

    @classmethod
    def from_arrow(cls, raw: dict[bytes, bytes] | None) -> Metadata:
        """Read it back.

        Raises
        ------
        TraceFormatError
            If a key is missing or holds something else than it should.
        """
        try:
            texts = {k.decode(): v.decode() for k, v in (raw or {}).items() if k[:5] == b"vmbk."}
        except UnicodeDecodeError as error:
            raise TraceFormatError("the trace's metadata is not UTF-8") from error
        version = texts.get("vmbk.schema_version")
        if version is None or "vmbk.volumes" not in texts:
            raise TraceFormatError(
                "the table's metadata lacks vmbk.schema_version or vmbk.volumes",
                hint="it is no trace of vmbk; make one with `vmbk trace import`",
            )
        if version != SCHEMA_VERSION:
            raise TraceFormatError(
                f"the trace has schema version {version!r}, this vmbk reads {SCHEMA_VERSION!r}"
            )
        listed = _json(texts["vmbk.volumes"], "vmbk.volumes", list)
        provenance = _json(texts.get("vmbk.provenance", "{}"), "vmbk.provenance", dict)
        try:
            volumes = tuple(Volume(**item) for item in listed)
        except TypeError as error:
            raise TraceFormatError(
                f"vmbk.volumes is not a list of volumes: {texts['vmbk.volumes'][:200]!r}"
            ) from error
        return cls(
            volumes,
            texts.get("vmbk.source_format", ""),
            texts.get("vmbk.source_digest", ""),
            texts.get("vmbk.clock", "none"),
            provenance,
        )


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces: equal values make equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _json(text: str, key: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceFormatError(f"{key} is not JSON: {text[:200]!r}") from error
    if not isinstance(value, kind):
        raise TraceFormatError(f"{key} is not a JSON {kind.__name__}: {text[:200]!r}")
    return value


def schema(columns: Sequence[str]) -> Any:
    """The Arrow schema of a trace that has these columns."""
    return pa.schema(
        [
            pa.field(spec.name, spec.type, nullable=not spec.required)
            for spec in COLUMNS.values()
            if spec.name in columns
        ]
    )


def conform(table: Any) -> Any:
    """The table with exactly the columns of `COLUMNS`, of exactly their types, in one chunk each.

    Integers of another width, strings for ``op`` and small binaries are converted; nothing is
    copied where the type is right already and there is one chunk.

    Parameters
    ----------
    table : pyarrow.Table

    Raises
    ------
    TraceFormatError
        If a column is missing, unknown, of another kind, holds nulls where none may be, or holds
        a value that does not fit.
    """
    names = list(table.column_names)
    unknown = sorted(set(names) - set(COLUMNS))
    missing = [s.name for s in COLUMNS.values() if s.required and s.name not in names]
    if unknown or missing or len(set(names)) != len(names):
        raise TraceFormatError(
            f"the table's columns are not those of a trace: missing {missing}, unknown {unknown}, "
            f"present {names}",
            hint="columns are " + ", ".join(COLUMNS),
        )
    arrays = []
    for spec in COLUMNS.values():
        if spec.name not in names:
            continue
        column = table.column(spec.name)
        array = _op_array(column) if spec.name == "op" else _array(column, spec)
        if spec.required and array.null_count:
            raise TraceFormatError(f"column {spec.name!r} holds {array.null_count} nulls")
        arrays.append(array)
    return pa.Table.from_arrays(arrays, schema=schema(names))


def _array(column: Any, spec: ColumnSpec) -> Any:
    if column.type != spec.type:
        integers = pa.types.is_integer(column.type) and pa.types.is_integer(spec.type)
        binaries = pa.types.is_binary(column.type) and pa.types.is_large_binary(spec.type)
        if not integers and not binaries:
            raise TraceFormatError(
                f"column {spec.name!r} has type {column.type}, it must be {spec.type}"
            )
        try:
            column = column.cast(spec.type)
        except pa.ArrowInvalid as error:
            raise TraceFormatError(
                f"column {spec.name!r} does not fit {spec.type}: {error}"
            ) from error
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _op_array(column: Any) -> Any:
    """The ``op`` column over the six names in their order; no copy where it is so already."""
    names = pa.array(OP_NAMES, pa.string())
    wanted = COLUMNS["op"].type
    strings = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if strings:
        column = column.dictionary_encode()
    if not pa.types.is_dictionary(column.type) or not (
        pa.types.is_string(column.type.value_type)
        or pa.types.is_large_string(column.type.value_type)
    ):
        raise TraceFormatError(f"column 'op' has type {column.type}, it must be {wanted}")
    codes = []
    for chunk in column.chunks:
        if chunk.null_count:
            raise TraceFormatError(f"column 'op' holds {chunk.null_count} nulls")
        if chunk.type == wanted and chunk.dictionary.equals(names):
            codes.append(chunk.indices)
            continue
        translation = pc.index_in(chunk.dictionary.cast(pa.string()), value_set=names)
        code = translation.take(chunk.indices)
        if code.null_count:
            at = int(np.flatnonzero(code.is_null().to_numpy(zero_copy_only=False))[0])
            raise TraceFormatError(
                f"column 'op' holds {chunk[at].as_py()!r}",
                hint="allowed are " + ", ".join(OP_NAMES),
            )
        codes.append(code.cast(pa.int8()))
    chunked = pa.chunked_array(codes, pa.int8())
    indices = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
    return pa.DictionaryArray.from_arrays(indices, names)


def check_requests(
    volumes: Sequence[Volume],
    time_ns: NDArray[np.int64],
    op: NDArray[np.int8],
    volume: NDArray[np.uint32],
    offset: NDArray[np.int64],
    length: NDArray[np.int64],
    flags: NDArray[np.uint8],
    first_row: int = 0,
) -> None:
    """Check the integer columns of a trace.

    Parameters
    ----------
    volumes : sequence of Volume
        In order of id.
    time_ns, op, volume, offset, length, flags : ndarray, shape (n,)
        The columns; ``op`` as codes of `Op`.
    first_row : int
        Number of the first row, for messages.

    Raises
    ------
    TraceFormatError
        If an operation or a volume is unknown, a flag bit has no meaning, or time falls.
    OutOfRangeError
        If a request reaches outside its volume.
    """
    from vmbk.kernels import checks

    ids = np.array([v.id for v in volumes], np.uint32)
    sizes = np.array([v.size for v in volumes], np.int64)
    found = np.zeros(2, np.int64)
    columns = time_ns, op.view(np.uint8), volume, offset, length, flags
    why = checks.first_unsound(*columns, ids, sizes, max(Op), _ALL_FLAGS, found)
    if why == checks.SOUND:
        return
    i, place = found.tolist()
    if why == checks.PLACE:
        raise OutOfRangeError(
            f"request {first_row + i} ({Op(int(op[i])).name.lower()}) covers {length[i]} bytes "
            f"at offset {offset[i]}, outside volume {volume[i]} of {sizes[place]} bytes"
        )
    what = {
        checks.OPERATION: "has an unknown operation",
        checks.FLAGS: "has flag bits without a meaning",
        checks.ORDER: "goes back in time",
        checks.VOLUME: "is on an unknown volume",
    }[why]
    raise TraceFormatError(
        f"request {first_row + i} {what}: time_ns {time_ns[i]}, op {op[i]}, volume {volume[i]}, "
        f"offset {offset[i]}, length {length[i]}, flags {flags[i]}"
    )


def check_payload(
    op: NDArray[np.int8],
    length: NDArray[np.int64],
    payload_offsets: NDArray[np.int64],
    valid: NDArray[np.bool_],
) -> None:
    """Check that only writes and marks have payloads and that a write's payload has its length.

    Parameters
    ----------
    op, length : ndarray, shape (n,)
    payload_offsets : ndarray of int64, shape (n + 1,)
        Where each payload starts in the payload bytes.
    valid : ndarray of bool, shape (n,)

    Raises
    ------
    TraceFormatError
        Quoting the first request that breaks this.
    """
    for start in range(0, len(op), _CHECK_ROWS):
        rows = slice(start, min(start + _CHECK_ROWS, len(op)))
        stored = np.diff(payload_offsets[start : rows.stop + 1])
        ops = op[rows]
        bad = valid[rows] & (
            ((ops == Op.WRITE) & (stored != length[rows])) | ((ops != Op.WRITE) & (ops != Op.MARK))
        )
        if bad.any():
            j = int(np.argmax(bad))
            raise TraceFormatError(
                f"request {start + j} ({Op(int(ops[j])).name.lower()}) of {length[start + j]} "
                f"bytes has a payload of {stored[j]} bytes"
            )
