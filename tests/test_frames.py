"""Traces of tables in memory."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbk import Trace
from vmbk.errors import InputError, OutOfRangeError, TraceFormatError, VmbkError
from vmbk.trace import Op, Volume

OBVIOUS = {
    "timestamp_us": [30, 10, 20],
    "Op": ["R", "Write", "trim"],
    "lba": [8, 0, 16],
    "size": [4096, 512, 1024],
    "disk": ["b", "a", "b"],
}


def rows(trace: Trace) -> list[tuple[int, str, str, int, int]]:
    r = trace.requests
    names = {v.id: v.name for v in trace.volumes}
    return [
        (int(r.time_ns[i]), Op(int(r.op[i])).name.lower(), names[int(r.volume[i])],
         int(r.offset[i]), int(r.length[i]))
        for i in range(len(trace))
    ]  # fmt: skip


def table(**columns: Any) -> pl.DataFrame:
    """One write of 512 bytes, with columns in place of others."""
    base: dict[str, Any] = {"time_ns": [0], "op": ["w"], "offset": [0], "length": [512]}
    return pl.DataFrame({**base, **columns}, strict=False)


@pytest.mark.parametrize(
    "made",
    [
        pl.DataFrame(OBVIOUS),
        pl.LazyFrame(OBVIOUS),
        pa.table(OBVIOUS),
        pa.RecordBatch.from_pydict(OBVIOUS),
        pl.DataFrame(OBVIOUS).with_columns(pl.col("Op", "disk").cast(pl.Categorical)),
        pa.table(OBVIOUS).set_column(1, "Op", pa.array(OBVIOUS["Op"]).dictionary_encode()),
    ],
)
def test_obvious_names_need_no_telling(made):
    trace = Trace.from_frame(made)
    assert rows(trace) == [
        (0, "write", "a", 0, 512),
        (10_000, "discard", "b", 8192, 1024),
        (20_000, "read", "b", 4096, 4096),
    ]
    assert [(v.id, v.name, v.size) for v in trace.volumes] == [(0, "b", 1 << 20), (1, "a", 1 << 20)]
    assert trace.metadata.clock == "exact"
    assert trace.metadata.source_format == "frame"


def test_any_names_and_units_can_be_told():
    frame = pl.DataFrame(
        {"wann": [1.5, 2.0], "was": [7, 9], "wo": [3, 4], "wieviel": [1, 2], "x": [0, 0]}
    )
    trace = Trace.from_frame(
        frame,
        {"time": "wann", "op": "was", "offset": "wo", "length": "wieviel"},
        time_unit="ms", offset_unit=4096, length_unit=1024, ops={7: "write", 9: Op.FLUSH},
        volume_size="1GiB", provenance={"made_by": "hand"},
    )  # fmt: skip
    assert rows(trace) == [(0, "write", "disk", 12288, 1024), (500_000, "flush", "disk", 0, 0)]
    assert trace.volumes[0].size == 1 << 30
    assert trace.provenance == {"made_by": "hand"}


def test_values_of_operations_may_be_left_out():
    frame = table(op=["w"] * 1).vstack(table(op=["ioctl"]))
    assert len(Trace.from_frame(frame, ops={"ioctl": None})) == 1
    with pytest.raises(InputError, match=r"'ioctl', of which the operation is not known"):
        Trace.from_frame(frame)


def test_truth_values_are_operations_where_the_name_says_so():
    frame = table().drop("op").with_columns(is_write=pl.Series([True]))
    assert rows(Trace.from_frame(frame))[0][1] == "write"
    renamed = frame.rename({"is_write": "is_read"})
    with pytest.raises(InputError, match="which column is the op"):
        Trace.from_frame(renamed)
    with pytest.raises(InputError, match="True"):
        Trace.from_frame(renamed, {"op": "is_read"})
    told = Trace.from_frame(renamed, {"op": "is_read"}, ops={True: "read", False: "write"})
    assert rows(told)[0][1] == "read"


def test_without_times():
    frame = table().drop("time_ns")
    with pytest.raises(InputError, match=r"which column is the time(.|\n)*'time': None"):
        Trace.from_frame(frame)
    trace = Trace.from_frame(frame, {"time": None})
    assert (trace.metadata.clock, rows(trace)[0][0]) == ("none", 0)


BEGIN = datetime(2024, 5, 6, 7, 8, 9, 123456)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (BEGIN, BEGIN + timedelta(microseconds=7), 7000),
        (BEGIN.replace(tzinfo=UTC), (BEGIN + timedelta(1)).replace(tzinfo=UTC),
         86400 * 10**9),
        (date(2024, 1, 1), date(2024, 1, 3), 2 * 86400 * 10**9),
        (timedelta(seconds=1), timedelta(seconds=2), 10**9),
    ],
)  # fmt: skip
def test_dates_and_durations_have_their_own_unit(first, second, expected):
    frame = table().vstack(table()).with_columns(time_ns=pl.Series([second, first]))
    trace = Trace.from_frame(frame)
    assert trace.requests.time_ns.tolist() == [0, expected]
    with pytest.raises(InputError, match="leave time_unit out"):
        Trace.from_frame(frame, time_unit="s")


@pytest.mark.parametrize(
    ("values", "dtype", "unit", "expected"),
    [
        ([2**64 - 1, 2**64 - 6], pl.UInt64, "ns", 5),
        ([-(2**63), -(2**63) + 5], pl.Int64, "ns", 5),
        ([128166372003061629, 128166372016382155], pl.Int64, 100, 1332052600),
        ([1.25, 0.0], pl.Float64, "s", 1_250_000_000),
        ([0.0, 86400.000001], pl.Float64, "s", 86_400_000_001_000),
        ([Decimal("1456135200.013118001"), Decimal("1456135200.013118002")],
         pl.Decimal(28, 9), "s", 1),
        ([3, 4], pl.UInt8, "s", 10**9),
    ],
)  # fmt: skip
def test_times_are_counted_from_the_earliest(values, dtype, unit, expected):
    frame = table().vstack(table()).with_columns(time_ns=pl.Series(values, dtype=dtype))
    trace = Trace.from_frame(frame, time_unit=unit)
    assert trace.requests.time_ns.tolist() == [0, expected]


def test_requests_of_one_time_stay_in_order_and_take_all_columns_along():
    content = [bytes([i]) * 16 for i in range(4)]
    frame = pl.DataFrame(
        {"time_ns": [2, 1, 2, 1], "op": ["w"] * 4, "offset": [0, 512, 1024, 1536],
         "length": [512] * 4, "flags": [1, 2, 3, 4], "content": content}
    )  # fmt: skip
    trace = Trace.from_frame(frame)
    assert trace.requests.offset.tolist() == [512, 1536, 0, 1024]
    assert trace.requests.flags.tolist() == [2, 4, 1, 3]
    assert trace.table["content"].to_pylist() == [content[i] for i in (1, 3, 0, 2)]


def test_flushes_and_marks_cover_nothing_whatever_stands_there():
    frame = pl.DataFrame(
        {"time_ns": [0, 1, 2], "op": ["flush", "mark", "w"], "offset": [None, -7, 0],
         "length": [5, None, 512]}
    )  # fmt: skip
    assert [row[3:] for row in rows(Trace.from_frame(frame))] == [(0, 0), (0, 0), (0, 512)]


def test_sizes_of_volumes_by_their_values():
    frame = pl.DataFrame(OBVIOUS)
    trace = Trace.from_frame(frame, volume_size={"a": "1GiB", "b": 65536})
    assert [v.size for v in trace.volumes] == [65536, 1 << 30]
    numbered = frame.with_columns(disk=pl.Series([7, 3, 7]))
    trace = Trace.from_frame(numbered, volume_size={7: 65536})
    assert [(v.name, v.size) for v in trace.volumes] == [("7", 65536), ("3", 1 << 20)]
    with pytest.raises(OutOfRangeError):
        Trace.from_frame(frame, volume_size=4096)


def test_a_traces_own_frame_makes_the_same_trace():
    volumes = [Volume(7, "b", 1 << 20), Volume(3, "a", 1 << 21, 4096)]
    trace = Trace.from_columns(
        volumes=volumes, op=[1, 0, 2], offset=[512, 0, 0], length=[512, 4096, 0],
        volume=[7, 3, 7], time_ns=[0, 5, 5], flags=[1, 0, 2], content=[b"x" * 16, None, None],
        clock="exact",
    )  # fmt: skip
    again = Trace.from_frame(trace.frame(), volumes=trace.volumes)
    assert again.digest == trace.digest
    assert again.volumes == trace.volumes
    with pytest.raises(InputError, match="leave volume_size out"):
        Trace.from_frame(trace.frame(), volumes=trace.volumes, volume_size=5)
    with pytest.raises(TraceFormatError, match="unknown volume"):
        Trace.from_frame(trace.frame(), volumes=trace.volumes[:1])


def test_an_empty_table_is_an_empty_trace():
    for frame in (table().clear(), pl.DataFrame(OBVIOUS).clear()):
        trace = Trace.from_frame(frame)
        assert len(trace) == 0


@pytest.mark.parametrize(
    ("frame", "settings", "message"),
    [
        ([1, 2], {}, "not of 'list'"),
        (table().to_dict(), {}, "not of 'dict'"),
        (table(), {"columns": {"op": "kind"}}, r"no column 'kind' for the op(.|\n)*'offset'"),
        (table(), {"columns": {"lenght": "length"}}, "'lenght' is nothing that a request has"),
        (table().drop("offset"), {}, r"which column is the offset(.|\n)*'length'"),
        (table(size=[512]), {}, "'length' and 'size' could both be the length"),
        (table().rename({"time_ns": "ts"}), {}, "'ts' does not tell its unit"),
        (table(), {"time_unit": "fortnights"}, "'fortnights'"),
        (table(), {"time_unit": 0}, "time_unit is 0"),
        (table(), {"time_unit": True}, "time_unit is True"),
        (table(), {"offset_unit": 0}, "offset_unit is 0"),
        (table(), {"length_unit": 1.5}, "length_unit is 1.5"),
        (table(time_ns=["12:30"]), {}, "String, not times"),
        (table(time_ns=[float("nan")]), {}, "nan in row 0"),
        (table(time_ns=[None]), {}, "no value in row 0"),
        (table(offset=["0"]), {}, "String, numbers are needed"),
        (table(offset=[-1]), {}, "-1 in row 0"),
        (table(offset=[0.5]), {}, "0.5 in row 0"),
        (table(offset=[float("inf")]), {}, "inf in row 0"),
        (table(offset=[1 << 63]), {}, "9223372036854775808 in row 0"),
        (table(length=[1 << 61]), {"length_unit": 512}, "2305843009213693952 in row 0"),
        (table(length=[None]), {}, "'length' has no value in row 0"),
        (table(offset=[1 << 62], length=[1 << 62]), {}, r"past 2\^62"),
        (table(op=[1]), {}, "'op' holds 1, of which the operation is not known"),
        (table(op=[None]), {}, "no value in row 0"),
        (table(op=[["w"]]), {}, "does not look like operations"),
        (table(), {"ops": {"w": "scribble"}}, "'w' is 'scribble', which is no operation"),
        (table(), {"ops": {"w": 1}}, "'w' is 1, which is no operation"),
        (table(disk=[1.5]), {}, "names no volumes"),
        (table(disk=[None]), {}, "no value in row 0"),
        (table(), {"volume_size": "big"}, "'big' is not a size"),
        (table(), {"volume_size": 1.5}, "1.5 is no size"),
        (table(flags=["FUA"]), {}, "not bits of flags"),
        (table(flags=[8]), {}, "flag bits"),
        (table(flags=[300]), {}, "300"),
        (table(content=[b"short"]), {}, "not 16 bytes"),
        (table(content=["text"]), {}, "identities of 16 bytes"),
        (pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), {}, "cannot be read|op"),
    ],
)
def test_what_is_wrong_is_said(frame, settings, message):
    with pytest.raises(VmbkError, match=message) as caught:
        Trace.from_frame(frame, **settings)
    assert caught.value.exit_code == 2


def test_times_too_far_apart_are_refused():
    frame = table().vstack(table()).with_columns(time_ns=pl.Series([0, 10**10]))
    with pytest.raises(TraceFormatError, match="more than 146 years"):
        Trace.from_frame(frame, time_unit="s")


def test_a_column_of_many_words_is_no_column_of_operations():
    frame = pl.DataFrame({"time_ns": range(2000), "offset": 0, "length": 512}).with_columns(
        op=pl.col("time_ns").cast(pl.String)
    )
    with pytest.raises(InputError, match="does not look like operations"):
        Trace.from_frame(frame)


@given(
    requests=st.lists(
        st.tuples(
            st.integers(-(1 << 40), 1 << 40), st.sampled_from(["read", "W", "discard"]),
            st.integers(0, 1 << 40), st.integers(0, 1 << 20), st.sampled_from(["x", "y", "z"]),
        ), min_size=1, max_size=40,
    )
)  # fmt: skip
def test_it_holds_the_rows_of_the_table(requests):
    time, op, offset, length, volume = map(list, zip(*requests, strict=True))
    frame = pl.DataFrame(
        {"ts (us)": time, "op": op, "sector": offset, "n_sectors": length, "vol": volume}
    )
    trace = Trace.from_frame(frame)
    order = np.argsort(time, kind="stable")
    codes = {"read": 0, "W": 1, "discard": 3}
    names = [v.name for v in trace.volumes]
    assert names == list(dict.fromkeys(volume))
    r = trace.requests
    assert r.time_ns.tolist() == [(time[i] - min(time)) * 1000 for i in order]
    assert r.op.tolist() == [codes[op[i]] for i in order]
    assert r.offset.tolist() == [offset[i] * 512 for i in order]
    assert r.length.tolist() == [length[i] * 512 for i in order]
    assert [names[v] for v in r.volume.tolist()] == [volume[i] for i in order]


def test_a_column_has_one_role_and_sizes_are_of_volumes_that_are_there():
    frame = pl.DataFrame({"time_ns": [0], "op": ["W"], "offset": [0], "length": [512], "v": ["a"]})
    with pytest.raises(InputError, match="cannot be both the offset and the length"):
        Trace.from_frame(frame, {"offset": "length", "length": "length"})
    with pytest.raises(InputError, match="volume 'zz', which has no request"):
        Trace.from_frame(frame, {"volume": "v"}, volume_size={"a": "1MiB", "zz": "1MiB"})
