"""Arrow tables as bytes and as NumPy arrays, trusting neither.

What comes out of a vault is authenticated, yet it is parsed as if it were hostile: a fault in
another writer must end in an `IntegrityError`, never in wrong bytes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vmbk.errors import IntegrityError
from vmbk.vault.format import CHECK_HINT, ID_SIZE, Buffer

ID_TYPE: Final = pa.binary(ID_SIZE)
"""Arrow type of an id."""


def id_array(ids: NDArray[np.uint8]) -> Any:
    """An Arrow array of ids from shape (n, 32), uint8; no copy of a contiguous one."""
    data = np.ascontiguousarray(ids)
    return pa.Array.from_buffers(ID_TYPE, len(data), [None, pa.py_buffer(data)])


def int_array(values: NDArray[Any]) -> Any:
    """An Arrow array of integers; no copy of a contiguous one.

    `pyarrow.array` does the same and loads NumPy's masked arrays first, for as long as a small
    backup takes.
    """
    data = np.ascontiguousarray(values)
    kind = pa.from_numpy_dtype(data.dtype)
    return pa.Array.from_buffers(kind, len(data), [None, pa.py_buffer(data)])


def nulls_of(column: Any) -> NDArray[np.bool_]:
    """Which rows of an Arrow column are null."""
    array = _one(column)
    valid = array.buffers()[0]
    if valid is None or not array.null_count:
        return np.zeros(len(array), np.bool_)
    bits = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")
    empty: NDArray[np.bool_] = bits[array.offset : array.offset + len(array)] == 0
    return empty


def ids_of(column: Any) -> NDArray[np.uint8]:
    """Ids of an Arrow column as shape (n, 32), uint8; rows that are null hold anything."""
    array = _one(column)
    if array.null_count == len(array):  # so may be an array without rows
        return np.zeros((len(array), ID_SIZE), np.uint8)
    data = np.frombuffer(array.buffers()[1], np.uint8).reshape(-1, ID_SIZE)
    return data[array.offset : array.offset + len(array)]


def ints_of(column: Any) -> NDArray[Any]:
    """Integers of an Arrow column without nulls, in their own dtype, without a copy."""
    values: NDArray[Any] = _one(column).to_numpy(zero_copy_only=True)
    return values


def _one(column: Any) -> Any:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def to_ipc(table: Any) -> memoryview:
    """An Arrow IPC stream of one record batch, uncompressed."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.combine_chunks().to_batches() or [_no_rows(table.schema)]:
            writer.write_batch(batch)
    return memoryview(sink.getvalue()).cast("B")


def _no_rows(schema: Any) -> Any:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def from_ipc(payload: Buffer, where: str, schema: Any | None = None) -> Any:
    """Table of an Arrow IPC stream, fully validated.

    Parameters
    ----------
    payload : bytes-like
        Authenticated bytes.
    where : str
        For messages.
    schema : pyarrow.Schema, optional
        What the schema must be; a field that is not nullable must have no null.

    Raises
    ------
    IntegrityError
        If the bytes are no such table.
    """
    try:
        table = pa.ipc.open_stream(pa.py_buffer(payload)).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, NotImplementedError) as e:
        raise IntegrityError(f"{where} holds no valid Arrow table: {e}", hint=CHECK_HINT) from None
    if schema is not None:
        require_schema(table, schema, where)
    return table


def require_schema(table: Any, schema: Any, where: str) -> None:
    """Raise `IntegrityError` unless a table has these columns, types and no unexpected null."""
    found = [(field.name, field.type) for field in table.schema]
    if found != [(field.name, field.type) for field in schema]:
        names = ", ".join(f"{name}: {kind}" for name, kind in found)
        raise IntegrityError(f"{where} has other columns than it must: {names}", hint=CHECK_HINT)
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise IntegrityError(f"{where} has nulls in {field.name!r}", hint=CHECK_HINT)
