"""The reader of dm-log-writes logs against a naive one, and against logs that are damaged."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmbk.errors import (
    InputError,
    NotFoundError,
    OutOfRangeError,
    TraceFormatError,
    UnknownFormatError,
    VmbkError,
)
from vmbk.trace.formats import FORMATS, import_trace
from vmbk.trace.schema import Volume
from vmbk.trace.store import Trace, write_trace

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK, META = 1, 2, 4, 8, 16
SCOPED = [HealthCheck.function_scoped_fixture]  # each example writes its own file
MIB = 1 << 20

Entry = tuple[int, int, int, bytes]
"""Sector, sectors, flags, data (or a mark's label)."""


def write_log(entries: list[Entry], sector: int = 512, claimed: int | None = None) -> bytes:
    """A log, from the description of the format in the Linux kernel."""
    n = len(entries) if claimed is None else claimed
    out = [struct.pack("<QQQI", MAGIC, 1, n, sector).ljust(sector, b"\0")]
    for at, count, flags, data in entries:
        inline = data if flags & MARK else b""
        out.append((struct.pack("<QQQQ", at, count, flags, len(inline)) + inline)
                   .ljust(sector, b"\0"))  # fmt: skip
        if not flags & MARK:
            out.append(data)
    return b"".join(out)


Row = tuple[str, int, int, int, bytes | None]


def naive_rows(log: bytes) -> list[Row]:
    """Operation, offset, length, flags and payload of every request of a sound log."""
    _, _, count, sector = struct.unpack_from("<QQQI", log)
    rows: list[Row] = []
    at = sector
    for _ in range(count):
        where, sectors, flags, inline = struct.unpack_from("<QQQQ", log, at)
        label = log[at + 32 : at + 32 + inline]
        at += sector
        data = b""
        if not flags & DISCARD:
            data = log[at : at + sectors * sector]
            at += sectors * sector
        bits = (1 if flags & FUA else 0) + (4 if flags & META else 0)
        if flags & MARK:
            rows.append(("mark", 0, 0, 0, label.split(b"\0")[0]))
            continue
        if flags & FLUSH:
            rows.append(("flush", 0, 0, 0, None))
        if flags & DISCARD and sectors:
            rows.append(("discard", where * sector, sectors * sector, bits, None))
        elif sectors:
            rows.append(("write", where * sector, sectors * sector, bits, data))
    return rows


def rows_of(trace: Trace) -> list[Row]:
    names = ("op", "offset", "length", "flags", "payload")
    return [tuple(row[n] for n in names) for row in trace.table.to_pylist()]


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Entry], int]:
    sector = draw(st.sampled_from([512, 1024, 4096]))
    entries: list[Entry] = []
    for _ in range(draw(st.integers(0, 20))):
        flags = draw(st.sampled_from([0, FLUSH, FUA, FLUSH | FUA, META, DISCARD, MARK,
                                      DISCARD | FLUSH, META | FUA]))  # fmt: skip
        if flags & MARK:
            label = draw(st.text(max_size=20)).encode()
            entries.append((0, 0, flags, label))
            continue
        count = draw(st.integers(0, 5))
        fill = draw(st.integers(0, 255))
        data = b"" if flags & DISCARD else bytes([fill]) * (count * sector)
        entries.append((draw(st.integers(0, 2000)), count, flags, data))
    return entries, sector


@settings(max_examples=100, deadline=None, suppress_health_check=SCOPED)
@given(logs(), st.binary(max_size=3000))
def test_equals_the_naive_reader(
    tmp_path: Path, log: tuple[list[Entry], int], trailing: bytes
) -> None:
    entries, sector = log
    raw = write_log(entries, sector)
    path = tmp_path / "log"
    path.write_bytes(raw + trailing)  # what follows the counted entries is not read
    result = import_trace(path)
    expected = naive_rows(raw)
    assert rows_of(result.trace) == expected
    assert result.format == "dm-log-writes"
    assert result.skipped == sum(
        1 for _, count, flags, _ in entries if not count and not flags & (FLUSH | MARK)
    )
    (volume,) = result.trace.volumes
    last = max((row[1] + row[2] for row in expected), default=0)
    assert volume == Volume(0, "disk", (last + MIB - 1) // MIB * MIB, sector)
    assert not result.trace.requests.time_ns.any()


def test_a_flush_with_data_comes_before_its_write(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(write_log([(3, 1, FLUSH | FUA, b"d" * 512), (0, 0, FLUSH, b"")]))
    assert rows_of(import_trace(path).trace) == [
        ("flush", 0, 0, 0, None),
        ("write", 1536, 512, 1, b"d" * 512),
        ("flush", 0, 0, 0, None),
    ]


def test_a_label_ends_at_its_nul(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(write_log([(0, 0, MARK, b"mkfs done\0rest"), (0, 0, MARK, b"x" * 480)]))
    assert import_trace(path).trace.marks() == [(0, "mkfs done"), (1, "x" * 480)]


def test_the_digest_of_the_log_is_kept(tmp_path: Path) -> None:
    from blake3 import blake3

    raw = write_log([(0, 1, 0, b"d" * 512)])
    (tmp_path / "log").write_bytes(raw)
    metadata = import_trace(tmp_path / "log").trace.metadata
    assert metadata.source_digest == blake3(raw).hexdigest()
    assert (metadata.source_format, metadata.clock) == ("dm-log-writes", "none")


def test_a_given_size_holds(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(write_log([(0, 1, 0, b"d" * 512), (7, 1, 0, b"e" * 512)]))
    assert import_trace(path, volume_size=4096).trace.volumes[0].size == 4096
    with pytest.raises(OutOfRangeError, match=r"request 1 .* 512 bytes at offset 3584.* 4095"):
        import_trace(path, volume_size=4095)


def superblock(magic: int = MAGIC, version: int = 1, count: int = 0, sector: int = 512) -> bytes:
    return struct.pack("<QQQI", magic, version, count, sector).ljust(512, b"\0")


ONE = (0, 1, 0, b"d" * 512)


@pytest.mark.parametrize(
    ("raw", "quoted"),
    [
        (bytes(4096), "all zero: the capture was killed before its first flush"),
        (b"", "0 bytes"),
        (superblock()[:100], "100 bytes"),
        (superblock(magic=1), "magic number is 0x1"),
        (superblock(version=2), "version 2"),
        (superblock(sector=0), "sector size 0"),
        (superblock(sector=513), "sector size 513"),
        (superblock(sector=256), "sector size 256"),
        (superblock(sector=1 << 31), "sector size 2147483648"),
        (superblock(count=1), "counts 1 entries, 0 can be read: entry 0"),
        (superblock(count=1, sector=65536), "counts 1 entries, 0"),
        (superblock(count=2**64 - 1), "counts 18446744073709551615 entries, 0"),
        (write_log([ONE, ONE], claimed=3), "counts 3 entries, 2 can be read"),
        (write_log([ONE, ONE])[:-1], "counts 2 entries, 1 can be read: entry 1"),
        (write_log([ONE, ONE])[:-513], "counts 2 entries, 1 can be read: entry 1"),
        (write_log([(0, 2**63, 0, b"d" * 512)]), "impossible"),
        (write_log([(2**63, 1, 0, b"d" * 512)]), "impossible"),
        (write_log([(2**54, 1, 0, b"d" * 512)]), "impossible"),
        (write_log([(0, 2**52, 0, b"d" * 512)]), "ends within it"),
        (write_log([(0, 1, 32, b"d" * 512)]), "entry 0 of the log has unknown flags 0x20"),
        (write_log([(0, 0, MARK, b"x" * 481)]) + bytes(512), "label is longer"),
        (write_log([(0, 0, MARK, b"\xff")]), "not UTF-8"),
    ],
)
def test_damaged_logs_are_refused(raw: bytes, quoted: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(raw)
    with pytest.raises(TraceFormatError, match=quoted):
        import_trace(path, format="dm-log-writes")


SOUND = write_log([(i, 1 + i % 3, i % 4, b"d" * 512 * (1 + i % 3)) for i in range(12)]
                  + [(0, 0, MARK, b"label"), (5, 9, DISCARD, b"")])  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=SCOPED)
@given(
    edits=st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.binary(max_size=9)), max_size=6),
    heads=st.lists(st.tuples(st.integers(0, 13), st.integers(0, 31), st.integers(0, 255)),
                   max_size=3),
    cut=st.none() | st.integers(0, len(SOUND)),
)  # fmt: skip
def test_any_damage_ends_in_an_error_of_ours(
    edits: list[tuple[int, bytes]],
    heads: list[tuple[int, int, int]],
    cut: int | None,
    tmp_path: Path,
) -> None:
    raw = bytearray(SOUND)
    positions, at = [], 512
    for i in range(12):
        positions.append(at)
        at += 512 * (2 + i % 3)
    positions += [at, at + 512]
    for entry, byte, value in heads:
        raw[positions[entry] + byte] = value
    for where, patch in edits:
        raw[where : where + len(patch)] = patch
    path = tmp_path / "log"
    path.write_bytes(raw[:cut])
    try:
        trace = import_trace(path).trace
    except VmbkError:
        return
    trace.summary()


@settings(max_examples=100, deadline=None, suppress_health_check=SCOPED)
@given(raw=st.binary(max_size=2000), begun=st.booleans())
def test_random_bytes_end_in_an_error_of_ours(raw: bytes, begun: bool, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(superblock(count=2) + raw if begun else raw)
    try:
        import_trace(path, format="dm-log-writes")
    except VmbkError:
        return


def naive_walk(log: bytes, sector: int, n: int) -> tuple[list[list[int]], int]:
    """Twin of `vmbk.kernels.log.walk_log`: rows of what was read, and the status."""
    rows, at = [], sector
    for _ in range(n):
        if at + sector > len(log):
            return rows, 1
        where, count, flags, inline = struct.unpack_from("<QQQQ", log, at)
        if max(where, count, flags, inline) >= 2**62 or (where + count) * sector > 2**62:
            return rows, 2
        stored = 0 if flags & DISCARD else count * sector
        if at + sector + stored > len(log):
            return rows, 1
        start, length = at + sector, stored
        if flags & MARK:
            if inline > sector - 32:
                return rows, 3
            start = at + 32
            length = len(log[start : start + inline].split(b"\0")[0])
        at += sector + stored
        rows.append([where * sector, count * sector, flags, start, length, at])
    return rows, 0


@settings(max_examples=200, deadline=None)
@given(
    logs(),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    st.integers(0, 25),
    st.integers(0, 10**6),
)
def test_walk_equals_its_twin(
    log: tuple[list[Entry], int], edits: list[tuple[int, int]], n: int, cut: int
) -> None:
    from vmbk.kernels.log import walk_log

    entries, sector = log
    raw = bytearray(write_log(entries, sector))
    for where, value in edits:
        raw[where % len(raw)] = value
    raw = raw[: max(cut, sector)]
    columns = [np.full(n, -1, np.int64) for _ in range(6)]
    status = np.zeros(1, np.int64)
    count = walk_log(np.frombuffer(bytes(raw), np.uint8), sector, n, *columns, status)
    rows, expected = naive_walk(bytes(raw), sector, n)
    assert (count, int(status[0])) == (len(rows), expected)
    assert [[int(c[i]) for c in columns] for i in range(count)] == rows


@given(st.binary(max_size=300), st.data())
@settings(max_examples=50, deadline=None)
def test_gather_equals_its_twin(source: bytes, data: st.DataObject) -> None:
    from vmbk.kernels.log import gather_ranges

    ranges = []
    for _ in range(data.draw(st.integers(0, 10))):
        start = data.draw(st.integers(0, len(source)))
        ranges.append((start, data.draw(st.integers(0, len(source) - start))))
    starts, lengths = np.array(ranges, np.int64).reshape(-1, 2).T.copy()
    out = np.zeros(int(lengths.sum()), np.uint8)
    gather_ranges(np.frombuffer(source, np.uint8), starts, lengths, out)
    assert out.tobytes() == b"".join(source[a : a + n] for a, n in ranges)


def test_our_own_traces_are_a_format(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(SOUND)
    trace = import_trace(tmp_path / "log").trace
    write_trace(trace, tmp_path / "t.parquet")
    result = import_trace(tmp_path / "t.parquet")
    assert result.format == "vmbk"
    assert result.trace.digest == trace.digest
    assert result.to_dict()["requests"] == len(trace)
    with pytest.raises(InputError, match="1 MiB was given"):
        import_trace(tmp_path / "t.parquet", volume_size=MIB)


def test_unknown_formats_are_refused_with_those_known(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("neither this nor that\n")
    for call in ({}, {"format": "blktrace-in-rhyme"}):
        with pytest.raises(UnknownFormatError) as caught:
            import_trace(tmp_path / "x", **call)
        offered = re.findall(r"[a-z][a-z-]*", caught.value.hint)
        assert [name for name in FORMATS if name not in offered] == ["oracle-general"]
    with pytest.raises(NotFoundError):
        import_trace(tmp_path / "none")


@pytest.mark.slow
def test_a_million_entries_take_seconds(tmp_path: Path) -> None:
    import time

    entry = struct.pack("<QQQQ", 8, 0, FLUSH, 0).ljust(512, b"\0")
    count = 1_000_000
    with (tmp_path / "log").open("wb") as file:
        file.write(superblock(count=count))
        for _ in range(count // 1000):
            file.write(entry * 1000)
    began = time.perf_counter()
    result: Any = import_trace(tmp_path / "log")
    assert len(result.trace) == count
    assert time.perf_counter() - began < 20
