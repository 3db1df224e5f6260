"""The schema, the store and the summary of traces."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vmbk
from vmbk.errors import (
    InputError,
    NotFoundError,
    OutOfRangeError,
    StorageError,
    TraceFormatError,
    UnknownFormatError,
    VmbkError,
)
from vmbk.trace.schema import COLUMNS, OP_NAMES, Metadata, Op, Volume
from vmbk.trace.store import Trace, read_trace, write_trace
from vmbk.trace.summary import unique_blocks

SCOPED = [HealthCheck.function_scoped_fixture]  # each example writes its own file
MIB = 1 << 20
SUFFIXES = (".arrow", ".parquet")


def small() -> Trace:
    """Two volumes, every operation, payloads, contents and marks."""
    return Trace.from_columns(
        volumes=[Volume(7, "data", 3 * MIB), Volume(2, "boot", MIB, 4096)],
        time_ns=[0, 0, 5, 9, 10, 11, 2_500_000_000],
        op=[Op.WRITE, Op.READ, Op.FLUSH, Op.DISCARD, Op.WRITE_ZEROES, Op.WRITE, Op.MARK],
        volume=[7, 2, 7, 7, 2, 2, 7],
        offset=[4000, 0, 0, MIB, 8192, MIB - 512, 0],
        length=[200, 4096, 0, MIB, 4096, 512, 0],
        flags=[1, 0, 0, 0, 0, 6, 0],
        content=[b"0123456789abcdef", None, None, None, None, None, None],
        payload=[b"x" * 200, None, None, None, None, bytes(range(256)) * 2, "commit 1 é".encode()],
        clock="exact",
        provenance={"made": "by hand"},
    )


def naive_unique(trace: Trace) -> int:
    r = trace.requests
    seen = set()
    for i in range(len(r)):
        if r.op[i] == Op.WRITE and r.length[i] > 0:
            first, last = int(r.offset[i]) // 4096, int(r.offset[i] + r.length[i] - 1) // 4096
            seen |= {(int(r.volume[i]), block) for block in range(first, last + 1)}
    return len(seen)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    sizes = draw(st.lists(st.integers(0, 4 * MIB), min_size=1, max_size=4))
    ids = draw(st.lists(st.integers(0, 2**32 - 1), min_size=len(sizes), max_size=len(sizes),
                        unique=True))  # fmt: skip
    columns: dict[str, list[Any]] = {n: [] for n in COLUMNS}
    clock = 0
    for _ in range(draw(st.integers(0, 30))):
        op = draw(st.sampled_from(list(Op)))
        k = draw(st.integers(0, len(ids) - 1))
        offset = draw(st.integers(0, sizes[k]))
        length = draw(st.integers(0, min(sizes[k] - offset, 70_000)))
        clock += draw(st.integers(0, 10**9))
        payload = None
        if op == Op.MARK:
            payload = draw(st.none() | st.text(max_size=9).map(str.encode))
        elif op == Op.WRITE and draw(st.booleans()):
            payload = draw(st.integers(0, 255)).to_bytes() * length
        row = (clock, op, ids[k], offset, length, draw(st.integers(0, 7)),
               draw(st.none() | st.binary(min_size=16, max_size=16)), payload)  # fmt: skip
        for name, value in zip(columns, row, strict=True):
            columns[name].append(value)
    volumes = [Volume(i, f"v{i}", s) for i, s in zip(ids, sizes, strict=True)]
    if draw(st.booleans()):
        del columns["content"]
    return Trace.from_columns(
        volumes=volumes,
        **{n: np.array(v, np.int64) if COLUMNS[n].required else v for n, v in columns.items()},
    )


def test_columns_of_the_small_trace_are_what_was_given() -> None:
    trace = small()
    assert [v.id for v in trace.volumes] == [2, 7]
    assert trace.volume(7).size == 3 * MIB
    assert trace.requests.offset.tolist() == [4000, 0, 0, MIB, 8192, MIB - 512, 0]
    assert trace.requests.op.tolist() == [1, 0, 2, 3, 4, 1, 5]
    assert [trace.payload(i) for i in (1, 2, 3, 4)] == [None] * 4
    assert trace.payload(0) == b"x" * 200
    assert trace.marks() == [(6, "commit 1 é")]
    assert trace.has_payload
    assert trace.provenance == {"made": "by hand"}
    with pytest.raises(InputError, match="no volume 3"):
        trace.volume(3)


def test_summary_of_the_small_trace() -> None:
    summary = small().summary()
    assert summary.to_dict() | {"volumes": None, "digest": None} == {
        "requests": 7, "reads": 1, "writes": 2, "flushes": 1, "discards": 1, "write_zeroes": 1,
        "marks": 1, "read_bytes": 4096, "write_bytes": 712, "unique_write_blocks": 3,
        "duration_s": 2.5, "volumes": None, "digest": None, "clock": "exact",
    }  # fmt: skip
    json.dumps(summary.to_dict())


# Stored results name traces by this digest: it may only change with the schema version.
GOLDEN = "ade1d54c15ab289583884dd62def7d9bacd98559e77f7685a393b988d9d3f10c"


def naive_digest(trace: Trace) -> str:
    """The digest from its definition: a row at a time, with Python's own packing."""
    volumes = [[v.id, v.name, v.size, v.sector_size] for v in trace.volumes]
    text = json.dumps([len(trace), volumes], separators=(",", ":"), ensure_ascii=False)
    parts = [b"vmbk trace content 1\n", text.encode()]
    rows = trace.table.to_pylist()
    for name, code in (("time_ns", "<q"), ("op", "<b"), ("volume", "<I"), ("offset", "<q"),
                       ("length", "<q"), ("flags", "<B")):  # fmt: skip
        parts.append(f"\n{name}\n".encode())
        for row in rows:
            value = OP_NAMES.index(row[name]) if name == "op" else row[name]
            parts.append(struct.pack(code, value))
    for name in ("content", "payload"):
        values = [row.get(name) for row in rows]
        present = [value for value in values if value is not None]
        if present:
            parts += [f"\n{name}\n".encode(), bytes(value is not None for value in values)]
            if name == "payload":
                parts += [struct.pack("<q", len(value)) for value in present]
            parts += present
    return str(blake3(b"".join(parts)).hexdigest())


def test_digest_is_pinned() -> None:
    assert small().digest == GOLDEN == naive_digest(small())


@settings(max_examples=60, deadline=None)
@given(traces())
def test_digest_equals_its_definition(trace: Trace) -> None:
    assert trace.digest == naive_digest(trace)


@settings(max_examples=60, deadline=None)
@given(traces())
def test_summary_equals_a_naive_count(trace: Trace) -> None:
    summary, r = trace.summary(), trace.requests
    assert summary.requests == len(trace)
    for op, key in zip(Op, ("reads", "writes", "flushes", "discards", "write_zeroes", "marks"),
                       strict=True):  # fmt: skip
        assert getattr(summary, key) == sum(1 for code in r.op if code == op)
    assert summary.write_bytes == sum(
        int(n) for code, n in zip(r.op, r.length, strict=True) if code == Op.WRITE
    )
    assert summary.unique_write_blocks == naive_unique(trace)
    assert unique_blocks(trace, bitmap_limit=0) == naive_unique(trace)


@settings(max_examples=40, deadline=None, suppress_health_check=SCOPED)
@given(trace=traces(), suffix=st.sampled_from(SUFFIXES), rows=st.integers(1, 40))
def test_files_and_batches_keep_everything(
    trace: Trace, suffix: str, rows: int, tmp_path: Path
) -> None:
    path = tmp_path / f"trace{suffix}"
    write_trace(trace, path)
    back = read_trace(path)
    assert back.table.equals(trace.table)
    assert back.metadata == trace.metadata
    assert back.digest == trace.digest
    # The same rows in many chunks, as another writer may lay them out.
    chunked = pa.Table.from_batches(trace.table.to_batches(rows), trace.table.schema)
    again = Trace.from_arrow(chunked, volumes=trace.volumes)
    assert again.digest == trace.digest
    assert [again.payload(i) for i in range(len(again))] == [
        trace.payload(i) for i in range(len(trace))
    ]
    assert sum(len(batch) for batch in again.batches(rows)) == len(trace)


@settings(max_examples=40, deadline=None)
@given(traces(), st.data())
def test_a_slice_is_the_trace_of_its_rows(trace: Trace, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(trace)))
    stop = data.draw(st.integers(start, len(trace)))
    part = trace[start:stop]
    assert [part.payload(i) for i in range(len(part))] == [
        trace.payload(i) for i in range(start, stop)
    ]
    assert part.requests.offset.tolist() == trace.requests.offset[start:stop].tolist()
    rebuilt = Trace.from_columns(
        volumes=trace.volumes,
        **{n: trace.requests.__dict__[n][start:stop]
           for n in ("time_ns", "op", "volume", "offset", "length", "flags")},
        **{n: trace.table.column(n).to_pylist()[start:stop]
           for n in ("content", "payload") if n in trace.table.column_names},
    )  # fmt: skip
    assert rebuilt.digest == part.digest


def test_digest_tells_traces_apart() -> None:
    base = small()
    digests = {base.digest, base[:6].digest, base[1:].digest}
    for name in ("time_ns", "offset", "length", "flags"):
        columns = {f: getattr(base.requests, f).copy() for f in base.requests.__dict__}
        row = 1 if name != "time_ns" else 6
        columns[name][row] += 1
        changed = Trace.from_columns(volumes=base.volumes, **columns,
                                     payload=base.table.column("payload").to_pylist(),
                                     content=base.table.column("content").to_pylist())  # fmt: skip
        digests.add(changed.digest)
    renamed = [Volume(v.id, v.name + "!", v.size, v.sector_size) for v in base.volumes]
    digests.add(Trace.from_arrow(base.table, volumes=renamed).digest)
    without = base.table.drop_columns(["payload"])
    digests.add(Trace.from_arrow(without, volumes=base.volumes).digest)
    assert len(digests) == 9


def test_bytes_under_a_null_do_not_change_the_digest() -> None:
    base = small()
    payload = base.table.column("payload").chunk(0)
    _, _, data = payload.buffers()
    offsets = np.frombuffer(payload.buffers()[1], np.int64).copy()[: len(payload) + 1]
    noisy = np.frombuffer(data, np.uint8)
    noisy = np.insert(noisy, 200, np.arange(50, dtype=np.uint8))  # lies under row 1, a null
    offsets[2:] += 50
    array = pa.Array.from_buffers(
        pa.large_binary(), len(payload),
        [payload.buffers()[0], pa.py_buffer(offsets), pa.py_buffer(noisy)],
    )  # fmt: skip
    at = base.table.column_names.index("payload")
    table = base.table.set_column(at, "payload", array)
    assert Trace.from_arrow(table, volumes=base.volumes).digest == base.digest


def test_an_ipc_trace_is_used_in_place(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    write_trace(small(), path)
    before = pa.total_allocated_bytes()
    trace = read_trace(path)
    r = trace.requests
    assert pa.total_allocated_bytes() - before < 4096
    assert not r.offset.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        r.offset[0] = 1


def test_from_columns_copies_its_arrays() -> None:
    offset = np.array([0, 512], np.int64)
    trace = Trace.from_columns(volumes=[Volume(0, "v", 4096)], op=[1, 1], offset=offset,
                               length=[512, 512])  # fmt: skip
    offset[0] = 3584
    assert trace.requests.offset.tolist() == [0, 512]


def test_a_frame_has_every_column_but_the_payload() -> None:
    frame = small().frame()
    assert frame.columns == [n for n in COLUMNS if n != "payload"]
    assert frame["op"].to_list() == ["write", "read", "flush", "discard", "write_zeroes", "write",
                                     "mark"]  # fmt: skip
    assert frame["op"].dtype.categories.to_list() == list(OP_NAMES)


def test_a_repr_escapes_names() -> None:
    trace = Trace.from_columns(volumes=[Volume(0, "<script>alert(1)</script>", 0)], op=[],
                               offset=[], length=[])  # fmt: skip
    html = trace._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


V = Volume(0, "v", MIB)
ROW: dict[str, Any] = {"volumes": [V], "op": [1], "offset": [0], "length": [512]}


@pytest.mark.parametrize(
    ("change", "error", "quoted"),
    [
        ({"offset": [MIB]}, OutOfRangeError, "512 bytes at offset 1048576"),
        ({"offset": [-512]}, OutOfRangeError, "offset -512"),
        ({"length": [-1]}, OutOfRangeError, "covers -1 bytes"),
        ({"offset": [2**63 - 1], "length": [2**63 - 1]}, OutOfRangeError, "9223372036854775807"),
        ({"offset": [MIB], "length": [2**63 - 1]}, OutOfRangeError, "volume 0 of 1048576"),
        ({"volume": [1]}, TraceFormatError, "request 0 is on an unknown volume"),
        ({"volumes": []}, TraceFormatError, "unknown volume"),
        ({"op": [6]}, TraceFormatError, r"without a meaning: \[6\]"),
        ({"op": [-1]}, TraceFormatError, r"without a meaning: \[-1\]"),
        ({"op": [300]}, TraceFormatError, "300"),
        ({"op": [1.5]}, TraceFormatError, "dtype float64"),
        ({"flags": [8]}, TraceFormatError, "flag bits.*flags 8"),
        ({"time_ns": [-1]}, TraceFormatError, "back in time.*time_ns -1"),
        ({"length": [512, 1]}, TraceFormatError, "shape"),
        ({"payload": [b"x"]}, TraceFormatError, "request 0 .write. of 512 bytes has .* of 1 "),
        ({"op": [0], "payload": [b"x" * 512]}, TraceFormatError, "request 0 .read."),
        ({"op": [5], "payload": [b"\xff"]}, TraceFormatError, "not UTF-8"),
        ({"payload": []}, TraceFormatError, "payload has 0 values"),
        ({"content": [b"short"]}, TraceFormatError, "content"),
        ({"clock": "sundial"}, TraceFormatError, "'sundial'"),
        ({"volumes": [V, Volume(0, "w", 1)]}, TraceFormatError, "share an id"),
    ],
)  # fmt: skip
def test_bad_columns_are_refused(
    change: dict[str, Any], error: type[VmbkError], quoted: str
) -> None:
    Trace.from_columns(**ROW)
    with pytest.raises(error, match=quoted):
        Trace.from_columns(**ROW | change)


def test_the_first_bad_row_far_into_a_trace_is_named() -> None:
    count, at = 700_000, 600_001
    columns: dict[str, Any] = {
        "op": np.ones(count, np.int8),
        "offset": np.zeros(count, np.int64),
        "length": np.full(count, 512),
        "time_ns": np.arange(count),
    }
    Trace.from_columns(volumes=[V], **columns)
    columns["offset"][at] = MIB
    with pytest.raises(OutOfRangeError, match=f"request {at} "):
        Trace.from_columns(volumes=[V], **columns)
    columns["offset"][at] = 0
    for fall in (1, 262_144, 262_145, at):
        columns["time_ns"] = np.arange(count)
        columns["time_ns"][fall] = fall - 2
        with pytest.raises(TraceFormatError, match=f"request {fall} goes back in time"):
            Trace.from_columns(volumes=[V], **columns)


@pytest.mark.parametrize(
    "bad",
    [{"id": -1}, {"id": 2**32}, {"size": -1}, {"size": 2**63}, {"size": 1.5}, {"sector_size": 0},
     {"sector_size": 1000}, {"sector_size": 1 << 17}, {"name": 3}, {"id": True}],
)  # fmt: skip
def test_bad_volumes_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(TraceFormatError):
        Volume(**{"id": 0, "name": "v", "size": 0, "sector_size": 512} | bad)


def test_a_huge_volume_costs_memory_by_its_requests() -> None:
    huge = [Volume(i, "huge", 1 << 62) for i in range(3)]
    trace = Trace.from_columns(
        volumes=huge, op=[1] * 5, volume=[0, 0, 2, 2, 1], length=[4096, 1, 5000, 1, 1 << 61],
        offset=[(1 << 62) - 4096, 0, 4000, 8191, 1 << 60],
    )  # fmt: skip
    summary = trace.summary()
    assert summary.unique_write_blocks == 2 + 3 + (1 << 49)
    assert summary.write_bytes == 4096 + 1 + 5000 + 1 + (1 << 61)


def test_sums_do_not_wrap() -> None:
    big = Volume(0, "big", 1 << 62)
    trace = Trace.from_columns(volumes=[big], op=[1] * 9, offset=[0] * 9, length=[1 << 62] * 9)
    assert trace.summary().write_bytes == 9 << 62


def test_columns_of_near_types_are_taken() -> None:
    base = small()
    table = base.table.replace_schema_metadata(None)
    table = table.set_column(1, "op", table.column("op").cast(pa.string()))
    table = table.set_column(2, "volume", table.column("volume").cast(pa.int64()))
    table = table.set_column(7, "payload", table.column("payload").cast(pa.binary()))
    assert Trace.from_arrow(table, volumes=base.volumes).digest == base.digest
    shuffled = pa.DictionaryArray.from_arrays(
        pa.array([5 - code for code in base.requests.op.tolist()], pa.int32()),
        pa.array(OP_NAMES[::-1]),
    )
    table = table.set_column(1, "op", shuffled)
    assert Trace.from_arrow(table, volumes=base.volumes).digest == base.digest


def _replaced(name: str, array: Any) -> Any:
    table = small().table
    return table.set_column(table.column_names.index(name), name, array)


@pytest.mark.parametrize(
    ("table", "quoted"),
    [
        (small().table.drop_columns(["offset"]), r"missing \['offset'\]"),
        (small().table.append_column("colour", pa.nulls(7)), r"unknown \['colour'\]"),
        (_replaced("offset", pa.array([1.0] * 7)), "type double"),
        (_replaced("volume", pa.array([-1] * 7)), "does not fit uint32"),
        (_replaced("length", pa.array([None] * 7, pa.int64())), "'length' holds 7 nulls"),
        (_replaced("op", pa.array(["write"] * 6 + ["erase"])), "'erase'"),
        (_replaced("op", pa.array(["write"] * 6 + [None])), "'op' holds 1 nulls"),
        (_replaced("op", pa.array([1] * 7)), "'op' has type int64"),
        (_replaced("content", pa.array([b""] * 7)), "'content' has type binary"),
    ],
)  # fmt: skip
def test_bad_tables_are_refused(table: Any, quoted: str) -> None:
    with pytest.raises(TraceFormatError, match=quoted):
        Trace.from_arrow(table, volumes=small().volumes)


@pytest.mark.parametrize(
    "change",
    [
        {"vmbk.volumes": "[{"}, {"vmbk.volumes": "{}"}, {"vmbk.volumes": "[1]"},
        {"vmbk.volumes": '[{"id":0}]'}, {"vmbk.volumes": '[{"id":0,"name":"v","size":"1"}]'},
        {"vmbk.volumes": "[" * 100_000}, {"vmbk.schema_version": "2"}, {"vmbk.clock": "?"},
        {"vmbk.provenance": "[]"}, {"vmbk.volumes": None}, {"vmbk.clock": b"\xff"},
        {"vmbk.volumes": '[{"id":0,"name":"v","size":' + "9" * 5000 + "}]"},
    ],
)  # fmt: skip
def test_bad_metadata_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    raw = small().table.schema.metadata | {
        k.encode(): v if isinstance(v, bytes) else str(v).encode() for k, v in change.items()
    }
    raw = {k: v for k, v in raw.items() if v != b"None"}
    table = small().table.replace_schema_metadata(raw)
    with (
        pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    with pytest.raises(TraceFormatError):
        read_trace(tmp_path / "t.arrow")


def test_metadata_comes_back() -> None:
    metadata = small().metadata
    assert Metadata.from_arrow(metadata.to_arrow()) == metadata


def test_dictionary_indices_that_point_outside_are_refused(tmp_path: Path) -> None:
    table = small().table
    names = pa.array(OP_NAMES)
    op = pa.DictionaryArray.from_arrays(
        pa.array([0, 1, 2, 3, 4, 5, 77], pa.int8()), names, safe=False
    )
    table = table.set_column(1, "op", op)
    path = tmp_path / "t.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(TraceFormatError, match="damaged"):
        read_trace(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=150, deadline=None, suppress_health_check=SCOPED)
@given(data=st.data())
def test_damaged_files_are_refused_and_never_crash(
    suffix: str, data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / f"t{suffix}"
    write_trace(small(), path)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    path.write_bytes(raw)
    try:
        trace = read_trace(path)
    except VmbkError:
        return
    trace.summary()
    for row in range(len(trace)):
        trace.payload(row)
    trace.marks()
    trace.frame()


@pytest.mark.parametrize("content", [b"", b"hello", b"ARROW1", b"PAR1", b"ARROW1\0\0ARROW1"])
def test_files_of_another_kind_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    path.write_bytes(content)
    with pytest.raises((UnknownFormatError, TraceFormatError)):
        read_trace(path)


def test_foreign_parquet_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(TraceFormatError, match=r"lacks vmbk\.schema_version"):
        read_trace(tmp_path / "t.parquet")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        read_trace(tmp_path / "none.arrow")
    with pytest.raises(InputError, match="not a regular file"):
        read_trace(tmp_path)
    with pytest.raises(NotFoundError, match="no folder"):
        write_trace(small(), tmp_path / "none" / "t.arrow")
    with pytest.raises(UnknownFormatError, match=r"t\.csv"):
        write_trace(small(), tmp_path / "t.csv")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    path.mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(StorageError, match="cannot write"):
        write_trace(small(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["t.arrow"]


def test_an_empty_trace(tmp_path: Path) -> None:
    trace = Trace.from_columns(volumes=[V], op=[], offset=[], length=[], payload=[])
    assert trace.summary().requests == 0
    assert not trace.has_payload
    for suffix in SUFFIXES:
        write_trace(trace, tmp_path / f"t{suffix}")
        assert read_trace(tmp_path / f"t{suffix}").digest == trace.digest


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *(
            (name, ())
            for name in (
                "activity", "churn", "dispersion", "explain", "fit", "fragmentation", "granularity",
                "measure", "profile", "regions", "request_sizes", "run_lengths", "spatial",
                "updates", "working_set",
            )
        ),
        ("interval_cost", (["1h"],)),
        ("export_trace", ("log", "fio-iolog")),
        ("write_trace", ("trace.arrow",)),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_refused(name, more, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrong in ("ext4-sqlite", None, 3):
        with pytest.raises(InputError, match="is no trace"):
            getattr(vmbk, name)(wrong, *more)
    assert list(tmp_path.iterdir()) == []


def test_a_shipped_capture_is_not_a_file_but_has_one():
    with pytest.raises(NotFoundError) as told:
        vmbk.read_trace("ext4-sqlite")
    assert (
        told.value.hint
        == "a shipped capture has that name: dataset_path('ext4-sqlite') is its file"
    )
    with pytest.raises(InputError, match="no path of a trace file"):
        vmbk.read_trace(None)


def test_a_trace_shows_itself_on_one_line():
    trace = vmbk.read_trace(vmbk.dataset_path("ext4-two-disks"))
    assert repr(trace) == (
        "<Trace: 2,128 requests in 59.0 s on 'data' of 96 MiB, 'log' of 32 MiB, with payloads>"
    )
    assert repr(trace[:0]).startswith("<Trace: 0 requests in no time on 'data' of 96 MiB")
