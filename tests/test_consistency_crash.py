"""Crash points, crash states and outcomes, on traces made here: small, with every byte known."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.test_consistency_checkers import journal_block, tool
from vmbk.consistency import (
    CaptureMarks,
    DatabaseSpec,
    Outcome,
    OutcomeTable,
    check_image,
    crash_points,
    crash_states,
    crash_test,
)
from vmbk.errors import InputError, NotFoundError
from vmbk.trace import Flag, Op, Trace, Volume

DISK = 16 << 20
SPEC = DatabaseSpec("/data/app.db")
COMMITS = 6

Row = tuple[Op, int, int, int, bytes | None]  # op, offset, length, flags, payload


def make_trace(rows: list[Row], size: int = DISK) -> Trace:
    op, offset, length, flags, payload = zip(*rows, strict=True) if rows else ((),) * 5
    return Trace.from_columns(
        volumes=[Volume(0, "vda", size)],
        op=np.array(op, np.int8), offset=np.array(offset, np.int64),
        length=np.array(length, np.int64), flags=np.array(flags, np.uint8), payload=list(payload),
    )  # fmt: skip


def write(offset: int, data: bytes, flags: int = 0) -> Row:
    return (Op.WRITE, offset, len(data), flags, data)


def mark(label: str) -> Row:
    return (Op.MARK, 0, 0, 0, label.encode())


FLUSH: Row = (Op.FLUSH, 0, 0, 0, None)


def differences(before: bytes, after: bytes) -> Iterator[Row]:
    """Writes that turn one disk into another, in runs of 4 KiB blocks."""
    blocks = [i for i in range(0, DISK, 4096) if before[i : i + 4096] != after[i : i + 4096]]
    for _, run in groupby(enumerate(blocks), lambda pair: pair[1] - 4096 * pair[0]):
        offsets = [offset for _, offset in run]
        yield write(offsets[0], after[offsets[0] : offsets[-1] + 4096])


def _filled(folder: Path, image: Path) -> bytes:
    """An ext4 image of a folder that is the same for the same content."""
    image.unlink(missing_ok=True)
    identity = "12345678-1234-1234-1234-123456789abc"
    tool(
        "mke2fs", "-q", "-t", "ext4", "-b", "1024", "-U", identity,
        "-E", f"hash_seed={identity}", "-d", folder, image, str(DISK // 1024),
    )  # fmt: skip
    return image.read_bytes()


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """A disk on which ext4 is made and a database then commits six times.

    It stands in for a guest's: each write is acknowledged only after the flush that follows it.
    """
    folder = tmp_path_factory.mktemp("capture")
    data = folder / "root" / "data"
    data.mkdir(parents=True)
    image = folder / "disk.img"
    disk = bytes(DISK)
    rows: list[Row] = []

    def becomes(after: bytes, *labels: str) -> None:
        nonlocal disk
        rows.extend([*differences(disk, after), FLUSH, *(mark(label) for label in labels)])
        disk = after

    whole = _filled(folder / "root", image)
    becomes(bytes(1024) + bytes(1024) + whole[2048:])  # all but the superblock
    becomes(whole, "mkfs done", "mounted")
    connection = sqlite3.connect(folder / "app.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE commits(n INTEGER PRIMARY KEY, payload BLOB)")
    values = random.Random(1)
    for number in range(1, COMMITS + 1):
        connection.execute("INSERT INTO commits VALUES(?, ?)", (number, values.randbytes(1000)))
        if number == 4:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for suffix in ("", "-wal"):
            shutil.copy(f"{folder}/app.db{suffix}", f"{data}/app.db{suffix}")
        whole = _filled(folder / "root", image)
        if number == 5:
            # This commit reaches its place only when the journal is replayed.
            content = tool_block(image)
            journal_block(image, "/data/app.db", 1, content)
            whole = image.read_bytes()
        becomes(whole, f"commit {number}")
        rows.append(FLUSH)
    connection.close()
    return make_trace(rows)


def tool_block(image: Path) -> bytes:
    """The second block of the database."""
    copy = image.with_name("copy.db")
    tool("debugfs", "-R", f"dump /data/app.db {copy}", image)
    return copy.read_bytes()[1024:2048]


# ---------------------------------------------------------------------------------------- points


def naive_points(trace: Trace, model: str) -> list[int]:
    """Rows of all crash points, by walking the trace once per row."""
    requests = trace.requests
    ops = [Op(int(op)) for op in requests.op]
    rows = []
    for row in range(len(trace) + 1):
        changed = [
            i for i in range(row)
            if ops[i] in (Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES) and requests.length[i]
        ]  # fmt: skip
        durable = [
            i + 1 for i in range(row)
            if ops[i] == Op.FLUSH or (ops[i] == Op.WRITE and requests.flags[i] & Flag.FUA)
        ]  # fmt: skip
        last_change = changed[-1] + 1 if changed else 0
        reached = model == "request" or any(at >= last_change for at in durable)
        next_changes = row < len(trace) and ops[row] in (Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES)
        next_changes = next_changes and requests.length[row] > 0
        if reached and (row == len(trace) or next_changes):
            rows.append(row)
    return rows


row_strategy = st.one_of(
    st.just(FLUSH),
    st.just(mark("commit 1")),
    st.sampled_from([write(0, b""), write(512, b"a" * 512), write(0, b"b" * 512, Flag.FUA)]),
    st.sampled_from(
        [
            (Op.DISCARD, 0, 1024, 0, None),
            (Op.WRITE_ZEROES, 512, 512, 0, None),
            (Op.READ, 0, 512, 0, None),
        ]
    ),
)


@given(rows=st.lists(row_strategy, max_size=25), model=st.sampled_from(["flush", "request"]))
@settings(max_examples=150, deadline=None)
def test_points_are_those_of_the_definition(rows: list[Row], model: str) -> None:
    trace = make_trace(rows)
    points = crash_points(trace, model)
    assert [p.row for p in points] == naive_points(trace, model)
    assert [p.index for p in points] == list(range(len(points)))
    assert {p.model for p in points} <= {model}


def test_a_point_stands_where_most_is_acknowledged() -> None:
    rows = [write(0, b"a" * 512), FLUSH, mark("commit 1"), FLUSH, FLUSH, write(0, b"b" * 512)]
    assert [p.row for p in crash_points(make_trace(rows))] == [5]
    assert [p.row for p in crash_points(make_trace(rows), "request")] == [0, 5, 6]


def test_a_sample_is_even_seeded_and_ascending() -> None:
    rows = [row for i in range(1000) for row in (write(0, bytes([i % 256]) * 512), FLUSH)]
    trace = make_trace(rows)
    every = crash_points(trace)
    assert len(every) == 1000
    sample = crash_points(trace, states=10, seed=1)
    assert [p.index // 100 for p in sample] == list(range(10))
    assert sample == crash_points(trace, states=10, seed=1)
    assert sample != crash_points(trace, states=10, seed=2)
    assert set(sample) < set(every)
    assert crash_points(trace, states=1000) == every == crash_points(trace, states=5000)


def test_another_volumes_flush_makes_nothing_durable() -> None:
    trace = Trace.from_columns(
        volumes=[Volume(0, "vda", DISK), Volume(1, "vdb", DISK)],
        op=[Op.WRITE, Op.FLUSH, Op.WRITE, Op.FLUSH], volume=[0, 1, 1, 0],
        offset=[0, 0, 0, 0], length=[1, 0, 1, 0], payload=[b"a", None, b"b", None],
    )  # fmt: skip
    assert [p.row for p in crash_points(trace, volume=0)] == [4]
    assert [p.row for p in crash_points(trace, volume=1)] == [2]
    with pytest.raises(InputError, match="2 volumes"):
        crash_points(trace)
    with pytest.raises(InputError, match="no volume 7"):
        crash_points(trace, volume=7)


def test_bad_arguments_are_quoted(capture: Trace) -> None:
    with pytest.raises(InputError, match=r"'epochs' is not a crash model\n.*apart"):
        crash_points(capture, "epochs")
    with pytest.raises(InputError, match="0 states"):
        crash_points(capture, states=0)
    with pytest.raises(InputError, match="0 workers"):
        crash_test(capture, workers=0)


# ---------------------------------------------------------------------------------------- states


def test_each_state_is_the_prefix_of_the_trace() -> None:
    values = random.Random(2)
    rows: list[Row] = []
    for _ in range(60):
        offset, length = 512 * values.randrange(64), 512 * values.randrange(1, 16)
        kind = values.choice("wwwwdz")
        if kind == "w":
            rows.append(write(offset, values.randbytes(length)))
        else:
            rows.append((Op.DISCARD if kind == "d" else Op.WRITE_ZEROES, offset, length, 0, None))
        if values.random() < 0.3:
            rows.append(FLUSH)
    trace = make_trace(rows, 64 << 10)
    points = crash_points(trace, "request")
    seen = []
    for state in crash_states(trace, points[::-1]):
        expected = bytearray(64 << 10)
        for op, offset, length, _, payload in rows[: state.point.row]:
            if op != Op.FLUSH:
                expected[offset : offset + length] = payload or bytes(length)
        assert state.image.read_bytes() == expected
        seen.append(state.point)
    assert seen == list(points)
    assert not state.image.exists()  # the scratch folder goes with the last state


def test_a_scratch_copy_may_be_changed(capture: Trace, tmp_path: Path) -> None:
    for state in crash_states(capture, crash_points(capture, states=2), folder=tmp_path):
        state.copy_to(tmp_path / "copy.img")
        (tmp_path / "copy.img").write_bytes(b"x")
        assert state.image.stat().st_size == DISK


def test_a_trace_without_bytes_is_refused() -> None:
    trace = Trace.from_columns(
        volumes=[Volume(0, "vda", DISK)], op=[Op.WRITE, Op.FLUSH], offset=[0, 0], length=[512, 0]
    )
    with pytest.raises(InputError, match="no captured bytes"):
        crash_test(trace)


def test_a_point_outside_the_trace_is_refused(capture: Trace) -> None:
    (point,) = crash_points(capture, states=1)
    short = capture[: point.row - 1]
    with pytest.raises(InputError, match="of a trace of"):
        crash_states(short, [point])


# -------------------------------------------------------------------------------------- outcomes


def test_the_marks_of_a_capture(capture: Trace, tmp_path: Path) -> None:
    marks = CaptureMarks.read(capture)
    assert marks.commits.tolist() == list(range(1, COMMITS + 1))
    assert marks.made_row is not None
    assert marks.context(0, tmp_path).filesystem_made is False
    assert marks.context(len(capture), tmp_path).filesystem_made is True
    third = int(marks.commit_rows[2])
    assert marks.context(third, tmp_path).acknowledged.tolist() == [1, 2]
    assert marks.context(third + 1, tmp_path).acknowledged.tolist() == [1, 2, 3]


def test_a_trace_without_marks_knows_nothing(tmp_path: Path) -> None:
    marks = CaptureMarks.read(make_trace([write(0, b"a" * 512), FLUSH]))
    assert marks.context(2, tmp_path).filesystem_made is None
    assert not len(marks.commits)


def test_a_good_disk_loses_nothing_wherever_it_is_cut(capture: Trace) -> None:
    done: list[int] = []
    found = crash_test(capture, states=None, database=SPEC, on_progress=done.append)
    assert found.consistent
    assert found.commits_lost == 0
    assert len(found) == len(crash_points(capture)) == sum(done)
    assert found.counts == [
        ("none", "none", 1), ("clean", "none", 1), ("clean", "clean", 1),
        ("clean", "recovered", 4), ("replayed", "recovered", 1),
    ]  # fmt: skip
    assert [o.commits_found for o in found] == [0, 0, 1, 2, 3, 4, 5, 6]
    assert [o.commits_acknowledged for o in found] == [0, 0, 1, 2, 3, 4, 5, 6]
    assert [o.row for o in found] == [p.row for p in crash_points(capture)]


def test_workers_change_nothing(capture: Trace) -> None:
    one, four = (
        [(o.row, o.filesystem, o.database, o.details) for o in
         crash_test(capture, states=6, seed=3, database=SPEC, workers=workers)]
        for workers in (1, 4)
    )  # fmt: skip
    assert one == four


def drop_epoch(trace: Trace, row: int) -> Trace:
    """The trace up to ``row`` on a disk that lied: what it flushed last never arrived.

    Its last non-empty epoch (between two flushes) vanishes; what was acknowledged stays so.
    """
    op = trace.requests.op[:row]
    writes = np.flatnonzero(op == Op.WRITE)
    flushes = np.flatnonzero(op == Op.FLUSH)
    start = flushes[flushes < writes[-1]].max(initial=-1)
    keep = (op != Op.WRITE) | (np.arange(row) <= start)
    return Trace.from_arrow(trace.table.slice(0, row).filter(keep), volumes=trace.volumes)


def test_a_disk_that_lies_about_a_flush_is_found_out(capture: Trace) -> None:
    for point in crash_points(capture)[2:]:
        lying = drop_epoch(capture, point.row)
        outcome = crash_test(lying, states=None, database=SPEC)[-1]
        assert not outcome.consistent
        assert outcome.commits_lost == 1
        assert outcome.database == "lost"


def test_a_disk_from_elsewhere_is_judged_alike(capture: Trace, tmp_path: Path) -> None:
    points = crash_points(capture)
    image = tmp_path / "restored.img"
    for state in crash_states(capture, [points[-2]]):
        state.copy_to(image)
    before = image.read_bytes()
    outcome = check_image(image, capture, row=points[-2].row, database=SPEC)
    assert (outcome.filesystem, outcome.database) == ("replayed", "recovered")
    assert (outcome.commits_acknowledged, outcome.commits_lost) == (COMMITS - 1, 0)
    assert outcome.model == "image"
    assert image.read_bytes() == before
    # As a backup that claims the end of the workload it lacks the last commit.
    late = check_image(image, capture, database=SPEC)
    assert (late.database, late.commits_lost) == ("lost", 1)
    alone = check_image(image)
    assert (alone.filesystem, alone.database) == ("replayed", "none")


def test_a_disk_that_cannot_be_judged_is_refused(capture: Trace, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        check_image(tmp_path / "absent.img")
    (tmp_path / "disk.img").write_bytes(bytes(DISK))
    with pytest.raises(InputError, match="row -1"):
        check_image(tmp_path / "disk.img", capture, row=-1)


def _outcome(index: int, filesystem: str, database: str, lost: int = 0) -> Outcome:
    return Outcome(
        "<x>", index, index, "flush", "crash", "", filesystem, database, 5, 5 - lost, lost, 0.1,
        "why",
    )  # fmt: skip


def test_outcomes_are_counted_and_shown() -> None:
    pytest.importorskip("polars")
    found = OutcomeTable(
        (
            _outcome(0, "replayed", "recovered"),
            _outcome(1, "none", "none"),
            _outcome(2, "replayed", "recovered"),
            _outcome(3, "damaged", "lost", 2),
        )
    )
    assert found.counts == [
        ("none", "none", 1), ("replayed", "recovered", 2), ("damaged", "lost", 1)
    ]  # fmt: skip
    assert not found.consistent
    assert [o.consistent for o in found] == [True, True, True, False]
    reply = json.loads(json.dumps(found.to_dict()))
    assert reply["states"] == 4
    assert reply["outcomes"][1] == {"filesystem": "replayed", "database": "recovered", "count": 2}
    assert reply["commits_lost"] == 2
    frame = found.frame()
    assert frame.height == 4
    assert frame["commits_lost"].sum() == 2
    assert OutcomeTable(()).frame().columns == frame.columns
    assert "<td>replayed</td>" in found._repr_html_()
    assert "&lt;x&gt;" in found[0]._repr_html_()
