"""Importers of binary formats: records made from the documented layouts, to the last byte."""

from __future__ import annotations

import gzip
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import naive
from tests.test_formats_text import rows
from tests.tools import real_trace, require_tool
from vmbk.errors import NotFoundError, TraceFormatError, UnknownFormatError
from vmbk.trace.formats import FORMATS, import_trace
from vmbk.trace.formats.reading import Tally
from vmbk.trace.formats.source import Source

SCOPED = [HealthCheck.function_scoped_fixture]  # each example writes its own file
WRITE, FLUSH, SYNC, COMMAND, NOTIFY, META, DISCARD, FUA = (
    1 << (16 + bit) for bit in (1, 2, 3, 9, 10, 12, 13, 15)
)
READ = 1 << 16
QUEUE, GET, ISSUE, COMPLETE, REMAP = 1, 4, 7, 8, 15
DISK, OTHER = 8 << 20, 259 << 20 | 3


def vscsi(version, sector, time_us, length=4096, code=0x2A, number=1):
    if version == 1:
        return struct.pack("<IIIHHQQ", number, length, 1, code, 0x0100, sector, time_us)
    return struct.pack("<HHIIIQQQ", code, 0x0200, number, length, 1, sector, time_us, 99)


def event(
    time_ns, action, sector=0, length=0, device=DISK, cpu=0, error=0, tail=b"", big=False
) -> bytes:
    """A record of blktrace."""
    return struct.pack(
        (">" if big else "<") + "IIQQIIIIIHH",
        0x65617407, 1, time_ns, sector, length, action, 42, device, cpu, error, len(tail),
    ) + tail  # fmt: skip


def srt(seconds, micros, length, block, flags, device=0x0300, size=56, kind=0x0007_0001):
    return struct.pack(
        ">14I", size, kind, seconds, micros, 5, 9, length, block, device, 1, 2, flags, 0, 3
    ).ljust(size, b"\0")[:size]


def oracle(time_s, object_id, length, next_one):
    return struct.pack("<IQIq", time_s, object_id, length, next_one)


VSCSI_1 = (
    vscsi(1, 100, 5_000_000) + vscsi(1, 8, 5_000_001, 512, 0x28) + vscsi(1, 0, 5_000_002, 36, 0x12)
    + vscsi(1, 7, 5_000_003, 99, 0x35) + vscsi(1, 100, 5_000_004, 1024, 0x8A)
)  # fmt: skip
VSCSI_2 = vscsi(2, 100, 5_000_000) + vscsi(2, 8, 5_000_001, 512, 0x88)
BLKTRACE = b"".join((
    event(50, NOTIFY, tail=b"swapper/0\0\0\0\0\0\0\0"),
    event(100, WRITE | SYNC | REMAP, 2048, 4096, tail=bytes(16)),
    event(100, WRITE | SYNC | QUEUE, 2048, 4096),
    event(110, WRITE | SYNC | GET, 2048, 4096),
    event(120, NOTIFY | 2, tail=b"a message"),
    event(200, READ | META | QUEUE, 8, 512, OTHER),
    event(300, FLUSH | WRITE | FUA | SYNC | QUEUE, 16, 1024),
    event(350, FLUSH | WRITE | SYNC | QUEUE),
    event(400, DISCARD | WRITE | QUEUE, 4096, 1 << 20),
    event(410, COMMAND | READ | QUEUE, 0, 36),
    event(420, SYNC | QUEUE),
    event(500, WRITE | SYNC | COMPLETE, 2048, 4096),
))  # fmt: skip
BLKTRACE_BIG = b"".join((
    event(7, WRITE | QUEUE, 8, 512, big=True), event(9, READ | QUEUE, 16, 512, big=True),
))  # fmt: skip
SRT = b"SRT 1.3\nhost: cello\n\f" + b"".join((
    srt(100, 0, 8192, 4, 1),
    srt(0, 0, 0, 0, 0, size=24, kind=0x0007_0002),
    srt(101, 250_000, 1024, 1 << 20, 0x10, 0x1F04_0500),
    srt(100, 999_999, 256, 0, 2, size=64),
))  # fmt: skip
ORACLE = b"".join((
    oracle(0, 5, 4096, 3), oracle(0, 1 << 60, 512, -1), oracle(2, 7, 100, (1 << 63) - 1),
    oracle(2, 5, 4096, -1),
))  # fmt: skip

BINARY = {
    "vscsi": [VSCSI_1, VSCSI_2],
    "blktrace": [BLKTRACE, BLKTRACE_BIG],
    "srt": [SRT],
    "oracle-general": [ORACLE],
}


def save(folder: Path, data: bytes, name: str = "trace") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", BINARY)
def test_a_sample_is_known_as_its_own_format_and_as_no_other(name):
    for sample in BINARY[name]:
        assert [f.name for f in FORMATS.values() if f.detect(sample)] == [name]


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", bytes(4096), b"\xff" * 4096, bytes(range(256)) * 16, b"1 2 3 4\n" * 500,
     b"text\f", b"text\f" + bytes(60), b"\x07ta", b"\x06tae" + bytes(44)],
    ids=repr,
)  # fmt: skip
def test_other_bytes_are_in_no_binary_format(data):
    assert not any(FORMATS[name].detect(data) for name in BINARY)


@pytest.mark.parametrize(("name", "least"), [("vscsi", 32), ("blktrace", 48), ("srt", 60)])
def test_a_file_of_one_record_is_known(name, least):
    first = {"vscsi": vscsi(1, 1, 1), "blktrace": event(1, QUEUE), "srt": SRT[:77]}[name]
    assert len(first) >= least
    assert FORMATS[name].detect(first)


# --- vscsiStats ----------------------------------------------------------------------------------


def test_vscsi(tmp_path):
    result = import_trace(save(tmp_path, VSCSI_1))
    assert rows(result) == [
        (0, "write", "disk", 51200, 4096),
        (1000, "read", "disk", 4096, 512),
        (3000, "flush", "disk", 0, 0),
        (4000, "write", "disk", 51200, 1024),
    ]
    assert (result.format, result.skipped, result.bad) == ("vscsi", 1, 0)
    second = import_trace(save(tmp_path, VSCSI_2))
    assert rows(second) == [
        (0, "write", "disk", 51200, 4096),
        (1000, "read", "disk", 4096, 512),
    ]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (vscsi(2, 1, 1)[:32], "record 3: not what a record holds"),
        (vscsi(1, 1 << 60, 1), "record 3: not what a record holds: .*sector 1152921504606846976"),
        (vscsi(1, 1, 1 << 63), "record 3: not what a record holds"),
        (vscsi(1, 1, 1, code=0x12A), "record 3: not what a record holds"),
    ],
)
def test_vscsi_refuses_what_is_no_record(row, why, tmp_path):
    path = save(tmp_path, VSCSI_1[:64] + row + VSCSI_1[64:])
    with pytest.raises(TraceFormatError, match=why):
        import_trace(path, format="vscsi")
    assert len(import_trace(path, format="vscsi", skip_bad=True).trace) == 4


@pytest.mark.parametrize("sample", [VSCSI_1, VSCSI_2])
def test_vscsi_cut_off(sample, tmp_path):
    path = save(tmp_path, sample[:-5])
    with pytest.raises(TraceFormatError, match=r"bytes, not (32|40)"):
        import_trace(path)
    result = import_trace(path, skip_bad=True)
    assert (result.bad, len(result.trace)) == (
        1,
        len(import_trace(save(tmp_path, sample)).trace) - 1,
    )


def test_vscsi_needs_records_of_either_version(tmp_path):
    with pytest.raises(TraceFormatError, match="begins with no vscsiStats record"):
        import_trace(save(tmp_path, bytes(100)), format="vscsi")


# --- blktrace ------------------------------------------------------------------------------------


def test_blktrace(tmp_path):
    result = import_trace(save(tmp_path, BLKTRACE))
    assert rows(result) == [
        (0, "write", "8,0", 1 << 20, 4096),
        (100, "read", "259,3", 4096, 512),
        (200, "flush", "8,0", 0, 0),
        (200, "write", "8,0", 8192, 1024),
        (250, "flush", "8,0", 0, 0),
        (300, "discard", "8,0", 2 << 20, 1 << 20),
    ]
    assert result.trace.requests.flags.tolist() == [2, 4, 0, 3, 0, 0]
    assert (result.skipped, result.bad) == (7, 0)


def test_blktrace_of_a_machine_of_the_other_byte_order(tmp_path):
    result = import_trace(save(tmp_path, BLKTRACE_BIG))
    assert rows(result) == [(0, "write", "8,0", 4096, 512), (2, "read", "8,0", 8192, 512)]


@pytest.mark.parametrize(
    ("actions", "count"), [((ISSUE, COMPLETE), 3), ((COMPLETE,), 2), ((GET, REMAP), 0)]
)
def test_blktrace_counts_one_action(actions, count, tmp_path):
    """Without events of the queue those of the device count, and then those that went well."""
    data = b"".join(
        event(10 * i + action, WRITE | action, 8 * i, 512, error=5 if i == 2 else 0)
        for i in range(3)
        for action in actions
    )
    result = import_trace(save(tmp_path, data))
    assert len(result.trace) == count
    assert result.skipped == 3 * len(actions) - count


def test_blktrace_files_of_several_processors_are_one_trace(tmp_path):
    whole = [(i, event(10 * i, WRITE | QUEUE, 8 * i, 512, cpu=i % 3)) for i in range(30)]
    for cpu in range(3):
        data = b"".join(data for i, data in whole if i % 3 == cpu)
        save(tmp_path, data, f"sda.blktrace.{cpu}")
    save(tmp_path, b"", "sda.blktrace.3")
    save(tmp_path, whole[0][1], "other.blktrace.0")
    save(tmp_path, b"", "sda.blktrace.txt")
    expected = [(10 * i, "write", "8,0", 4096 * i, 512) for i in range(30)]
    names = ("sda.blktrace.0", "sda.blktrace.2", "sda.blktrace.3", "sda", "sda.blktrace")
    results = [import_trace(tmp_path / name) for name in names]
    assert [rows(result) for result in results] == [expected] * len(names)
    assert len({result.trace.metadata.source_digest for result in results}) == 1
    alone = import_trace(tmp_path / "other.blktrace.0")
    assert len(alone.trace) == 1
    (tmp_path / "sda.blktrace.1").write_bytes(b"")
    changed = import_trace(tmp_path / "sda")
    assert len(changed.trace) == 20
    assert changed.trace.metadata.source_digest != results[0].trace.metadata.source_digest
    with pytest.raises(NotFoundError):
        import_trace(tmp_path / "sdb")


def test_blktrace_decides_over_all_files_which_action_counts(tmp_path):
    save(tmp_path, event(10, WRITE | ISSUE, 8, 512), "sda.blktrace.0")
    save(tmp_path, event(5, WRITE | QUEUE, 8, 512), "sda.blktrace.1")
    assert rows(import_trace(tmp_path / "sda")) == [(0, "write", "8,0", 4096, 512)]


def test_blktrace_packed_files_of_several_processors(tmp_path):
    for cpu in range(2):
        data = gzip.compress(event(cpu, WRITE | QUEUE, 8, 512))
        save(tmp_path, data, f"sda.blktrace.{cpu}.gz")
    assert len(import_trace(tmp_path / "sda.blktrace.1.gz").trace) == 2


def test_blktrace_goes_on_behind_bytes_that_are_no_record(tmp_path):
    first, second = event(1, WRITE | QUEUE, 8, 512), event(2, WRITE | QUEUE, 16, 512)
    path = save(tmp_path, first + b"garbage" * 30 + second + b"\x07ta")
    with pytest.raises(TraceFormatError, match=r"1 malformed record so far\n.*record 2: no record"):
        import_trace(path)
    result = import_trace(path, skip_bad=True)
    assert (len(result.trace), result.bad) == (2, 2)


@pytest.mark.parametrize(
    "record",
    [event(1, WRITE | QUEUE, 1 << 60, 512), event(1 << 63, WRITE | QUEUE, 8, 512)],
)
def test_blktrace_refuses_places_and_times_out_of_range(record, tmp_path):
    path = save(tmp_path, event(1, WRITE | QUEUE, 8, 512) + record)
    with pytest.raises(TraceFormatError, match="record 2: out of range"):
        import_trace(path)


def test_blktrace_of_another_version_is_unknown(tmp_path):
    with pytest.raises(UnknownFormatError):
        import_trace(save(tmp_path, BLKTRACE.replace(b"\x07tae", b"\x06tae")))


CATEGORIES = st.sampled_from((READ, READ | META, WRITE, WRITE | SYNC, WRITE | FUA | SYNC,
                              WRITE | FLUSH | FUA, WRITE | DISCARD))  # fmt: skip


@settings(max_examples=15, suppress_health_check=SCOPED)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 10**6), CATEGORIES, st.integers(1, 10**6), st.integers(1, 64),
            st.sampled_from((QUEUE, ISSUE, COMPLETE)), st.sampled_from((DISK, OTHER)),
        ),
        min_size=1, max_size=30, unique_by=lambda item: item[0],
    )
)  # fmt: skip
def test_blktrace_and_the_text_that_blkparse_makes_of_it_are_one_trace(tmp_path_factory, items):
    blkparse = require_tool("blkparse", "blktrace")
    folder = tmp_path_factory.mktemp("blk")
    # blkparse waits for the number of a record that is missing.
    data = b"".join(
        event(time, category | action, sector, 512 * count, device)
        for time, category, sector, count, action, device in sorted(items)
    )
    numbered = bytearray(data)
    for i in range(len(items)):
        struct.pack_into("<I", numbered, 48 * i + 4, i + 1)
    save(folder, bytes(numbered), "t.blktrace.0")
    subprocess.run([blkparse, "-q", "-i", "t", "-o", "t.txt"], cwd=folder, check=True,
                   capture_output=True)  # fmt: skip
    binary, text = import_trace(folder / "t"), import_trace(folder / "t.txt", format="blkparse")
    assert rows(binary) == rows(text)
    assert binary.trace.requests.flags.tolist() == text.trace.requests.flags.tolist()


# --- SRT and oracleGeneral -----------------------------------------------------------------------


def test_srt(tmp_path):
    result = import_trace(save(tmp_path, SRT))
    assert rows(result) == [
        (0, "read", "disk3", 1024, 8192),
        (999_999_000, "write", "disk3", 0, 256),
        (1_250_000_000, "write", "disk5", 256 << 20, 1024),
    ]
    assert (result.format, result.skipped, result.bad) == ("srt", 1, 0)


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (srt(1, 1, 1, 1, 1)[:40], "record 5: a cut-off record"),
        (b"\0\0", "record 5: a cut-off record"),
        (srt(1, 1, 1, 1, 1, size=1 << 20)[:300], "record 5: a size that no record has"),
        (struct.pack(">I", 7) + bytes(90), "record 5: a size that no record has"),
        (srt(1, 10**6, 1, 1, 1), "record 5: a million microseconds or more"),
    ],
)
def test_srt_refuses_what_is_no_record(tail, why, tmp_path):
    path = save(tmp_path, SRT + tail)
    with pytest.raises(TraceFormatError, match=why):
        import_trace(path, format="srt")
    assert len(import_trace(path, format="srt", skip_bad=True).trace) == 3


def test_srt_needs_a_header(tmp_path):
    with pytest.raises(TraceFormatError, match="no header"):
        import_trace(save(tmp_path, SRT.partition(b"\f")[2]), format="srt")
    with pytest.raises(TraceFormatError, match="no header"):
        import_trace(save(tmp_path, b"x" * 100_000), format="srt")


def test_oracle_general_is_refused_with_the_reason(tmp_path):
    path = save(tmp_path, ORACLE)
    with pytest.raises(TraceFormatError, match="does not tell reads from writes"):
        import_trace(path)
    with pytest.raises(TraceFormatError, match="does not tell reads from writes"):
        import_trace(path, skip_bad=True)


# --- Chunks and kernels --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 47, 64, 100, 1000])
@pytest.mark.parametrize("name", ["vscsi", "blktrace", "srt"])
def test_chunks_change_nothing(name, size, tmp_path):
    from vmbk.trace.formats import blktrace, srt, vscsi

    module = {"vscsi": vscsi, "blktrace": blktrace, "srt": srt}[name]
    for sample in BINARY[name]:
        half = len(sample) // 2
        for data in (sample, sample[:-7], sample[:half] + b"garbage" + sample[half:]):
            source = Source(save(tmp_path, data))
            told = []
            for cut in (size, 1 << 20):
                tally = Tally("record")
                batches = list(module.read(source, tally, cut))
                columns = [
                    np.concatenate([getattr(batch, field) for batch in batches]).tolist()
                    for field in ("time_ns", "op", "volume", "offset", "length", "where")
                ]
                counts = (tally.bad, tally.skipped, tally.names)
                told.append((columns, counts, [e.partition(":")[0] for e in tally.examples]))
            assert told[0] == told[1]


PIECES = st.lists(
    st.one_of(
        st.binary(max_size=60).map(lambda tail: event(1, QUEUE, tail=tail)),
        st.binary(max_size=60).map(lambda tail: event(1, QUEUE, tail=tail, big=True)),
        st.binary(max_size=9),
        st.sampled_from((b"\x07tae", b"eat\x07", b"\x07ta", event(1, QUEUE)[:40])),
    ),
    max_size=8,
).map(b"".join)


@given(PIECES, st.booleans(), st.booleans())
def test_walk_tagged_finds_what_its_twin_finds(data, big, lost):
    from vmbk.kernels.records import has_tag, walk_tagged

    tag = b"eat\x07" if big else b"\x07tae"
    view, tag_view = np.frombuffer(data, np.uint8), np.frombuffer(tag, np.uint8)
    starts = np.empty(2 * (len(data) // 48) + 2, np.int64)
    state = np.array([0, lost], np.int64)
    count = walk_tagged(view, tag_view, big, starts, state)
    expected = naive.walk_tagged(data, tag, big, lost)
    assert (starts[:count].tolist(), int(state[0]), bool(state[1])) == expected
    for at in range(len(data) - 3):
        assert has_tag(view, at, tag_view) == naive.has_tag(data, at, tag)


SIZES = st.sampled_from((0, 4, 8, 12, 14, 56, 60, 100, 104, 1 << 31))


@given(
    st.lists(
        st.tuples(SIZES, st.integers(0, 3)).map(
            lambda item: struct.pack(">I", item[0]) + bytes(max(min(item[0], 120) - 4 - item[1], 0))
        ),
        max_size=8,
    ).map(b"".join)
)
def test_walk_sized_finds_what_its_twin_finds(data):
    from vmbk.kernels.records import walk_sized

    starts, state = np.empty(len(data) // 8 + 1, np.int64), np.zeros(2, np.int64)
    count = walk_sized(np.frombuffer(data, np.uint8), 8, 100, starts, state)
    expected = naive.walk_sized(data, 8, 100)
    assert (starts[:count].tolist(), int(state[0]), bool(state[1])) == expected


# --- Published traces ----------------------------------------------------------------------------


@pytest.mark.traces
def test_cloudphysics_trace():
    result = import_trace(real_trace("cloudPhysicsIO.vscsi"))
    summary = result.trace.summary()
    assert (summary.requests, result.skipped, result.bad) == (113_872, 0, 0)
    assert round(100 * summary.writes / summary.requests, 1) == 58.7
    assert round(summary.write_bytes / 2**30, 3) == 2.243
    assert round(summary.unique_write_blocks * 4096 / 2**30, 3) == 0.796


@pytest.mark.traces
def test_blktrace_of_a_real_machine_holds_reads_only(tmp_path):
    path = real_trace("sample.blktrace.0")
    result = import_trace(path)
    summary = result.trace.summary()
    assert (summary.requests, summary.reads, summary.read_bytes) == (963, 963, 3_944_448)
    assert (result.skipped, result.bad) == (5780, 0)
    assert [volume.name for volume in result.trace.volumes] == ["259,0"]
    blkparse = require_tool("blkparse", "blktrace")
    # Its records are of processor 1: blkparse wants that in the name, and a file of processor 0.
    save(tmp_path, b"", "s.blktrace.0")
    save(tmp_path, path.read_bytes(), "s.blktrace.1")
    subprocess.run([blkparse, "-q", "-i", "s", "-o", "s.txt"], cwd=tmp_path, check=True,
                   capture_output=True)  # fmt: skip
    assert rows(import_trace(tmp_path / "s.txt")) == rows(result)
