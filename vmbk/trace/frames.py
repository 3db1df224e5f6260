"""Traces of tables that the user has in memory: which column is what, and in which unit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from vmbk.errors import InputError, TraceFormatError
from vmbk.trace.schema import MAX_VOLUME_SIZE, OP_NAMES, Op, Volume
from vmbk.trace.table import Trace
from vmbk.units import MIB, parse_size, quoted

SECTOR: Final = 512
_TIME_UNITS: Final = {"ns": 1, "us": 10**3, "µs": 10**3, "ms": 10**6, "s": 10**9, "sec": 10**9,
                      "seconds": 10**9}  # fmt: skip

# What a column is by its name, in lower case. Only names that leave no doubt; in particular no
# "block", which is 512 bytes here and 4096 there.
_OBVIOUS: Final = {
    "time": r"(?:time|timestamp|ts|datetime)(?:[ _(]+(ns|us|µs|ms|s|sec|seconds)\)?)?",
    "op": r"op|operation|opcode|type|op_?type|io_?type|rw|is_?write",
    "offset": r"(?:byte_)?offset(?:_bytes)?|address|lba|lbn|sector|start_sector",
    "length": r"length(?:_bytes)?|len|size(?:_bytes)?|bytes|sectors|n_?sectors|sector_count",
    "volume": r"volume|vol|disk|device|dev|lun|(?:volume|disk|device)_?id",
    "flags": r"flags",
    "content": r"content",
}
_IN_SECTORS: Final = re.compile(r"lba|lbn|sector|start_sector|sectors|n_?sectors|sector_count")
_WORDS: Final = {
    "read": Op.READ, "r": Op.READ, "rd": Op.READ,
    "write": Op.WRITE, "w": Op.WRITE, "wr": Op.WRITE,
    "flush": Op.FLUSH, "fsync": Op.FLUSH, "sync": Op.FLUSH,
    "discard": Op.DISCARD, "trim": Op.DISCARD, "unmap": Op.DISCARD,
    "write_zeroes": Op.WRITE_ZEROES, "write zeroes": Op.WRITE_ZEROES,
    "mark": Op.MARK,
}  # fmt: skip
_MOST_OPS: Final = 1000  # different values that a column of operations may hold


def from_frame(
    frame: Any,
    columns: Mapping[str, str | None] | None,
    *,
    time_unit: str | int | None,
    offset_unit: int | None,
    length_unit: int | None,
    ops: Mapping[Any, str | Op | None] | None,
    volume_size: int | str | Mapping[Any, int | str] | None,
    volumes: Sequence[Volume] | None,
    provenance: dict[str, Any] | None,
) -> Trace:
    """`Trace.from_frame`, where it is documented."""
    table = _as_polars(frame)
    chosen = _choose(table, columns or {})
    op, kept = _operations(table[chosen["op"]], ops)
    if not kept.all():
        table, op = table.filter(pl.Series(kept)), op[kept]
    empty = (op == Op.FLUSH) | (op == Op.MARK)  # requests that cover nothing
    offset = _bytes(table, chosen["offset"], offset_unit, empty, "offset_unit")
    length = _bytes(table, chosen["length"], length_unit, empty, "length_unit")
    if (length > MAX_VOLUME_SIZE - offset).any():
        row = int(np.flatnonzero(length > MAX_VOLUME_SIZE - offset)[0])
        raise TraceFormatError(
            f"request {row} covers {length[row]} bytes at offset {offset[row]}, past 2^62"
        )
    timed = "time" in chosen
    zeros = np.zeros(len(op), np.int64)
    data: dict[str, Any] = {
        "time_ns": _times(table[chosen["time"]], time_unit) if timed else zeros,
        "op": op,
        "offset": offset,
        "length": length,
        "flags": _small(table[chosen["flags"]]) if "flags" in chosen else zeros.astype(np.uint8),
    }
    ends = offset + length
    column = table[chosen["volume"]] if "volume" in chosen else None
    data["volume"], made = _volumes(column, ends, volume_size, volumes)
    if "content" in chosen:
        data["content"] = _content(table[chosen["content"]])
    if (np.diff(data["time_ns"]) < 0).any():
        order = np.argsort(data["time_ns"], kind="stable")
        data = {name: values.take(order) for name, values in data.items()}
    return Trace.from_columns(
        volumes=made,
        source_format="frame",
        clock="exact" if timed else "none",
        provenance=provenance,
        **data,
    )


def _as_polars(frame: Any) -> pl.DataFrame:
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    if isinstance(frame, pl.DataFrame):
        return frame
    # Every kind of table that hands itself over by Arrow's interface, pyarrow's among them.
    if not hasattr(frame, "__arrow_c_stream__"):
        raise InputError(
            f"a trace is made of a Polars or pyarrow table, not of {quoted(type(frame).__name__)}",
            hint="wrap it: polars.DataFrame(...)",
        )
    try:
        return pl.DataFrame(frame)
    except (pl.exceptions.PolarsError, pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(f"the table cannot be read: {quoted(str(error), 200)}") from error


def _choose(table: pl.DataFrame, given: Mapping[str, str | None]) -> dict[str, str]:
    """Column of each role, by the user's word or by an obvious name."""
    there = "the table's columns are " + (", ".join(map(quoted, table.columns)) or "none")
    unknown = [role for role in given if role not in _OBVIOUS]
    if unknown:
        raise InputError(
            f"{quoted(unknown[0])} is nothing that a request has",
            hint=f"it has {', '.join(_OBVIOUS)}",
        )
    chosen: dict[str, str] = {}
    for role, pattern in _OBVIOUS.items():
        if role in given:
            name = given[role]
            if name is None:
                continue
            if name not in table.columns:
                raise InputError(f"there is no column {quoted(name)} for the {role}", hint=there)
            chosen[role] = name
            continue
        taken = [name for name in given.values() if name is not None]
        fits = [
            name
            for name in table.columns
            if name not in taken and re.fullmatch(pattern, name.strip().lower())
        ]
        if len(fits) > 1:
            raise InputError(
                f"columns {' and '.join(map(quoted, fits))} could both be the {role}",
                hint=f"say which: columns={{'{role}': {fits[0]!r}}}",
            )
        if fits:
            chosen[role] = fits[0]
    for role, name in chosen.items():
        twin = next(r for r, n in chosen.items() if n == name)
        if twin != role:
            raise InputError(
                f"column {quoted(name)} cannot be both the {twin} and the {role}", hint=there
            )
    for role in ("op", "offset", "length"):
        if role not in chosen:
            raise InputError(
                f"it is not clear which column is the {role}",
                hint=f"say it: columns={{'{role}': ...}}; {there}",
            )
    if "time" not in chosen and "time" not in given:
        raise InputError(
            "it is not clear which column is the time",
            hint=f"say it: columns={{'time': ...}}, or {{'time': None}} if there is none; {there}",
        )
    return chosen


def _operations(
    column: pl.Series, ops: Mapping[Any, str | Op | None] | None
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Code of each row, and which rows are kept."""
    _no_nulls(column)
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    nested = column.dtype.is_nested() or column.dtype == pl.Object
    values = [] if nested else column.unique(maintain_order=True).head(_MOST_OPS + 1).to_list()
    if nested or len(values) > _MOST_OPS:
        raise InputError(
            f"column {quoted(column.name)} ({column.dtype}) does not look like operations",
            hint="name the right one: columns={'op': ...}",
        )
    left_out = -1
    codes: list[int] = []
    unknown = []
    for value in values:
        code = _operation(value, ops, column.name)
        if code is None:
            unknown.append(value)
        codes.append(left_out if code is None else code)
    for value, name in (ops or {}).items():
        if name is None and value in unknown:
            unknown.remove(value)
    if unknown:
        shown = ", ".join(quoted(value) for value in unknown[:5])
        raise InputError(
            f"column {quoted(column.name)} holds {shown}, of which the operation is not known",
            hint="say it: ops={value: 'read', 'write', 'flush', 'discard', 'write_zeroes', 'mark' "
            "or None to leave such rows out}",
        )
    found: NDArray[np.int8] = (
        column.replace_strict(values, codes, return_dtype=pl.Int8).to_numpy()
        if values
        else np.zeros(0, np.int8)
    )
    return found, found != left_out


def _operation(value: Any, ops: Mapping[Any, str | Op | None] | None, name: str) -> int | None:
    """The code for a value of a table, None where it has none."""
    word = value.strip().lower() if isinstance(value, str) else None
    if ops is not None and value in ops:
        meant = ops[value]
        if meant is None:
            return None
        if isinstance(meant, Op):
            return int(meant)
        if not isinstance(meant, str) or meant.strip().lower() not in _WORDS:
            raise InputError(
                f"ops says that {quoted(value)} is {quoted(meant)}, which is no operation",
                hint="operations are " + ", ".join(OP_NAMES),
            )
        return int(_WORDS[meant.strip().lower()])
    if isinstance(value, bool) and ops is None and re.fullmatch("is_?write", name.strip().lower()):
        return int(Op.WRITE if value else Op.READ)
    return None if word is None or word not in _WORDS else int(_WORDS[word])


def _bytes(
    table: pl.DataFrame, name: str, unit: int | None, empty: NDArray[np.bool_], what: str
) -> NDArray[np.int64]:
    """A column of places or lengths in bytes; 0 where a request covers nothing."""
    if unit is None:
        unit = SECTOR if _IN_SECTORS.fullmatch(name.strip().lower()) else 1
    if type(unit) is not int or not 1 <= unit <= 1 << 40:
        raise InputError(f"{what} is {quoted(unit)}, it is a number of bytes from 1 to 2^40")
    column = table[name]
    column = pl.select(pl.when(pl.Series(empty)).then(None).otherwise(column)).to_series()
    whole = column.fill_null(0)
    if column.null_count() > int(empty.sum()):
        row = int(np.flatnonzero(column.is_null().to_numpy() & ~empty)[0])
        raise TraceFormatError(f"column {quoted(name)} has no value in row {row}")
    if not column.dtype.is_numeric():
        raise InputError(f"column {quoted(name)} holds {column.dtype}, numbers are needed")
    most = MAX_VOLUME_SIZE // unit
    values: NDArray[Any]
    if column.dtype.is_integer():
        values = _integers(whole)
        bad = (values < 0) | (values > most)
    else:
        values = whole.cast(pl.Float64).to_numpy()
        bad = ~((values >= 0) & (values <= most) & (np.floor(values) == values))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise TraceFormatError(
            f"column {quoted(name)} holds {quoted(whole[row])} in row {row}, which is no whole "
            f"number from 0 to {most}"
        )
    return values.astype(np.int64) * unit


def _integers(column: pl.Series) -> NDArray[Any]:
    """A column of integers in 64 bits, signed or unsigned."""
    wide = pl.Int64 if column.dtype.is_signed_integer() else pl.UInt64
    values = column.cast(wide, strict=False)
    _no_nulls(values)
    return values.to_numpy()


def _times(column: pl.Series, unit: str | int | None) -> NDArray[np.int64]:
    """Nanoseconds since the earliest row."""
    _no_nulls(column)
    name = quoted(column.name)
    if column.dtype.is_temporal():
        if unit is not None:
            raise InputError(
                f"column {name} holds {column.dtype}, time_unit={quoted(unit)} says nothing to it",
                hint="leave time_unit out",
            )
        if column.dtype == pl.Date:
            column = column.cast(pl.Datetime("us"))
        factor = _TIME_UNITS[getattr(column.dtype, "time_unit", "ns") or "ns"]
        column = column.to_physical()
    else:
        factor = _time_factor(column.name, unit)
    if not column.dtype.is_numeric():
        raise InputError(
            f"column {name} holds {column.dtype}, not times",
            hint="parse it first, such as by pl.col(...).str.to_datetime()",
        )
    if not len(column):
        return np.zeros(0, np.int64)
    if column.dtype.is_float() and not column.is_finite().all():
        row = int(np.flatnonzero(~column.is_finite().to_numpy())[0])
        raise TraceFormatError(f"column {name} holds {column[row]} in row {row}, which is no time")
    low: Any = column.min()
    high: Any = column.max()
    if (high - low) * factor > MAX_VOLUME_SIZE:
        raise TraceFormatError(
            f"column {name} goes from {low} to {high}, which is more than 146 years"
        )
    if column.dtype.is_integer():
        values = _integers(column)  # their differences fit in 63 bits, they themselves need not
        since = (values - values.dtype.type(low)).astype(np.int64)
        return np.asarray(since * factor, np.int64)
    apart: NDArray[np.float64] = (column - low).cast(pl.Float64).to_numpy()
    return np.rint(apart * factor).astype(np.int64)


def _time_factor(name: str, unit: str | int | None) -> int:
    """How many ns the unit of a column of numbers has."""
    if unit is None:
        match = re.fullmatch(_OBVIOUS["time"], name.strip().lower())
        if match is None or match[1] is None:
            raise InputError(
                f"column {quoted(name)} does not tell its unit",
                hint="say it: time_unit='s', 'ms', 'us' or 'ns', or the ns of a unit as a number",
            )
        unit = match[1]
    if isinstance(unit, str) and unit in _TIME_UNITS:
        return _TIME_UNITS[unit]
    if type(unit) is int and 1 <= unit <= 10**12:
        return unit
    raise InputError(
        f"time_unit is {quoted(unit)}",
        hint="it is 's', 'ms', 'us' or 'ns', or a number of ns from 1 to 10^12",
    )


def _volumes(
    column: pl.Series | None,
    ends: NDArray[np.int64],
    size: int | str | Mapping[Any, int | str] | None,
    given: Sequence[Volume] | None,
) -> tuple[NDArray[Any], Sequence[Volume]]:
    """Id of each row's volume, and the volumes."""
    if given is not None:
        if size is not None:
            raise InputError("volumes know their sizes", hint="leave volume_size out")
        if column is None:
            return np.full(len(ends), given[0].id if given else 0), given
        _no_nulls(column)
        if not column.dtype.is_integer():
            raise InputError(
                f"column {quoted(column.name)} holds {column.dtype}, ids of volumes are needed"
            )
        return column.to_numpy(), given
    if column is None:
        column = pl.Series("disk", np.zeros(len(ends), np.int64))
        names: list[Any] = ["disk"]
    else:
        _no_nulls(column)
        if column.dtype in (pl.Categorical, pl.Enum):
            column = column.cast(pl.String)
        if not (column.dtype.is_integer() or column.dtype == pl.String):
            raise InputError(
                f"column {quoted(column.name)} holds {column.dtype}, which names no volumes",
                hint="it should hold numbers or texts",
            )
        names = column.unique(maintain_order=True).to_list()
    keys = column.unique(maintain_order=True)
    ids = pl.DataFrame({"key": column}).join(
        pl.DataFrame({"key": keys, "id": np.arange(len(keys))}),
        on="key", how="left", maintain_order="left",
    )["id"].to_numpy()  # fmt: skip
    reach = np.zeros(max(len(names), 1), np.int64)
    np.maximum.at(reach, ids, ends)
    made = []
    if isinstance(size, Mapping):
        known = {*names, *map(str, names)}
        for name in size:
            if name not in known:
                raise InputError(
                    f"volume_size tells of a volume {quoted(name)}, which has no request",
                    hint=f"the volumes are {quoted(names, 200)}",
                )
    for id, name in enumerate(names):
        told = size.get(name, size.get(str(name))) if isinstance(size, Mapping) else size
        bytes_ = -(-int(reach[id]) // MIB) * MIB if told is None else _size(told)
        made.append(Volume(id, str(name), bytes_))
    return ids, made


def _size(told: int | str) -> int:
    if isinstance(told, bool) or not isinstance(told, int | str):
        raise InputError(f"volume_size {quoted(told)} is no size", hint="write 64MiB or 67108864")
    return parse_size(told)


def _small(column: pl.Series) -> NDArray[Any]:
    _no_nulls(column)
    if not column.dtype.is_integer():
        raise InputError(f"column {quoted(column.name)} holds {column.dtype}, not bits of flags")
    return column.to_numpy()


def _content(column: pl.Series) -> Any:
    """Identities as an Arrow array; `Trace.from_columns` checks their sizes."""
    if column.dtype != pl.Binary:
        raise InputError(
            f"column {quoted(column.name)} holds {column.dtype}, identities of 16 bytes are needed"
        )
    if (column.bin.size() != 16).any():
        raise InputError(f"column {quoted(column.name)} holds identities that are not 16 bytes")
    return column.to_arrow().cast(pa.binary()).cast(pa.binary(16))


def _no_nulls(column: pl.Series) -> None:
    if column.null_count():
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise TraceFormatError(f"column {quoted(column.name)} has no value in row {row}")
