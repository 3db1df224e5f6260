"""Crash states against naive ones: what each model may leave, and that it is built to the byte."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations, product
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import naive
from vmbk.consistency import CrashPoint, crash_points, crash_states
from vmbk.consistency.crash import MODELS
from vmbk.consistency.states import distinct_points, state_digests
from vmbk.errors import InputError, VmbkError
from vmbk.trace import Flag, Op, Trace, Volume, dataset_path, read_trace
from vmbk.trace.formats import import_trace

SECTOR = 512
SIZE = 12 * SECTOR  # of each volume
CHANGING = (Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES)
SCOPED = [HealthCheck.function_scoped_fixture]

Row = tuple[Op, int, int, int, int, bytes | None]  # op, volume, first sector, sectors, flags, data


def make_trace(rows: list[Row], volumes: int = 1, size: int = SIZE) -> Trace:
    op, volume, offset, length, flags, payload = zip(*rows, strict=True) if rows else ((),) * 6
    return Trace.from_columns(
        volumes=[Volume(3 * i, f"disk{i}", size) for i in range(volumes)],
        op=np.array(op, np.int8), volume=3 * np.array(volume, np.uint32),
        offset=SECTOR * np.array(offset, np.int64), length=SECTOR * np.array(length, np.int64),
        flags=np.array(flags, np.uint8), payload=list(payload),
    )  # fmt: skip


def flush(volume: int = 0) -> Row:
    return (Op.FLUSH, volume, 0, 0, 0, None)


def write(sector: int, content: bytes, flags: int = 0, volume: int = 0) -> Row:
    """A write of whole sectors, one for each byte of the content."""
    data = b"".join(bytes([c]) * SECTOR for c in content)
    return (Op.WRITE, volume, sector, len(content), flags, data)


@st.composite
def traces(
    draw: st.DrawFn, volumes: int = 1, most: int = 7, sectors: int = 3, disk: int = 4,
    forced: bool = True,
) -> Trace:  # fmt: skip
    rows: list[Row] = []
    for i in range(draw(st.integers(0, most))):
        volume = draw(st.integers(0, volumes - 1))
        kind = draw(st.sampled_from("wwwwffdzmr"))
        first = draw(st.integers(0, disk - 1))
        count = draw(st.integers(0, min(sectors, disk - first)))
        if kind == "w":
            fua = Flag.FUA if forced and draw(st.booleans()) else 0
            # A few contents, so that different requests can leave the same bytes; zeros too.
            content = draw(st.sampled_from([bytes(count), b"abc"[:count], bytes([i + 1]) * count]))
            rows.append(write(first, content, fua, volume))
        elif kind == "f":
            rows.append(flush(volume))
        elif kind == "m":
            rows.append((Op.MARK, 0, 0, 0, 0, b"commit 1"))
        else:
            op = {"d": Op.DISCARD, "z": Op.WRITE_ZEROES, "r": Op.READ}[kind]
            rows.append((op, volume, first, count, 0, None))
    rows.append(write(11, b"e", 0, draw(st.integers(0, volumes - 1))))  # there is a payload
    return make_trace(rows, volumes)


# --- The naive builder ---------------------------------------------------------------------------

Disks = tuple[bytes, ...]


def apply(disks: list[bytearray], trace: Trace, row: int, first: int, end: int) -> None:
    """Put bytes of a request on the disks."""
    requests = trace.requests
    disk = disks[[v.id for v in trace.volumes].index(int(requests.volume[row]))]
    at, length = int(requests.offset[row]), int(requests.length[row])
    data = trace.payload(row) if requests.op[row] == Op.WRITE else bytes(length)
    disk[at + first : at + end] = data[first:end]


def changes(trace: Trace) -> list[int]:
    requests = trace.requests
    return np.flatnonzero(np.isin(requests.op, CHANGING) & (requests.length > 0)).tolist()


def naive_disks(trace: Trace, point: CrashPoint) -> Disks:
    """The disks at a crash point, from nothing."""
    disks = [bytearray(v.size) for v in trace.volumes]
    until = dict(point.cuts)
    for row in changes(trace):
        if row < until.get(int(trace.requests.volume[row]), point.durable):
            apply(disks, trace, row, 0, int(trace.requests.length[row]))
    for row, first, end in point.parts.tolist():
        apply(disks, trace, row, first, end)
    return tuple(map(bytes, disks))


def naive_digest(disks: Disks) -> int:
    """The digest by its definition."""
    total = number = 0
    for disk in disks:
        for at in range(0, len(disk), SECTOR):
            sector = disk[at : at + SECTOR]
            number += 1
            if any(sector):
                content = xxhash.xxh3_64_intdigest(sector)
                total += naive.splitmix64(content + number * 0x9E3779B97F4A7C15)
    return total % (1 << 64)


def built(trace: Trace, points: tuple[CrashPoint, ...], folder: Path) -> dict[CrashPoint, Disks]:
    """The bytes of all states, in the order in which they come; digests are seen to be right."""
    found = {}
    for state in crash_states(trace, points, volume=trace.volumes[0].id, folder=folder):
        disks = tuple(path.read_bytes() for path in state.images.values())
        assert list(state.images) == [v.name for v in trace.volumes]
        assert state.image == state.images[trace.volumes[0].name]
        assert state.digest == naive_digest(disks)
        found[state.point] = disks
    return found


# --- What each model may leave, by definition ----------------------------------------------------


@dataclass(frozen=True)
class Plain:
    """A request as numbers. Every sector that is written has one byte throughout: its content."""

    op: int
    volume: int
    first: int
    sectors: int
    forced: bool
    content: bytes


@cache
def plain(trace: Trace) -> list[Plain]:
    ids = [v.id for v in trace.volumes]
    r = trace.requests
    found = []
    for row in range(len(trace)):
        sectors = int(r.length[row]) // SECTOR
        content = bytes(sectors)
        if r.op[row] == Op.WRITE:
            content = bytes(trace.payload(row))[::SECTOR]
        forced = bool(r.op[row] == Op.WRITE and r.flags[row] & Flag.FUA and sectors)
        volume = ids.index(int(r.volume[row]))
        found.append(
            Plain(int(r.op[row]), volume, int(r.offset[row]) // SECTOR, sectors, forced, content)
        )
    return found


def plain_changes(trace: Trace, volume: int | None = None) -> list[int]:
    return [
        row for row, r in enumerate(plain(trace))
        if r.op in CHANGING and r.sectors and volume in (None, r.volume)
    ]  # fmt: skip


def flushed(trace: Trace, row: int, volume: int) -> int:
    """The requests of a volume before this row were flushed before ``row``."""
    before = enumerate(plain(trace)[:row])
    return max((i + 1 for i, r in before if r.op == Op.FLUSH and r.volume == volume), default=0)


def naive_pending(trace: Trace, row: int) -> tuple[list[int], list[int], list[int]]:
    """Rows that are durable at a row, those that were forced since, and those that may be lost."""
    until = [flushed(trace, row, volume) for volume in range(len(trace.volumes))]
    durable, forced, loose = [], [], []
    for i in plain_changes(trace):
        r = plain(trace)[i]
        if i < row:
            (durable if i < until[r.volume] else forced if r.forced else loose).append(i)
    return durable, forced, loose


def naive_orders(forced: list[int], kept: tuple[int, ...]) -> Iterator[list[int]]:
    """Orders in which writes reach the disk: any, but a forced one comes after all before it."""
    for order in permutations((*forced, *kept)):
        place = {row: i for i, row in enumerate(order)}
        if all(
            (place[a] < place[b]) == (a < b)
            for a in (*forced, *kept) for b in forced if a != b
        ):  # fmt: skip
            yield list(order)


Contents = dict[bytes, int]  # of all sectors, and the latest row at which that can be left


def take(found: Contents, trace: Trace, row: int, parts: list[tuple[int, int, int]]) -> None:
    """Note what is left when these sectors of requests reach the disks in this order."""
    disks = bytearray(SIZE // SECTOR * len(trace.volumes))
    for i, first, end in parts:
        r = plain(trace)[i]
        at = SIZE // SECTOR * r.volume + r.first
        disks[at + first : at + end] = r.content[first:end]
    key = bytes(disks)
    found[key] = max(row, found.get(key, 0))


def whole(trace: Trace, rows: list[int]) -> list[tuple[int, int, int]]:
    return [(row, 0, plain(trace)[row].sectors) for row in rows]


def subsets(rows: list[int]) -> Iterator[tuple[int, ...]]:
    for count in range(len(rows) + 1):
        yield from combinations(rows, count)


def naive_epoch(trace: Trace) -> Contents:
    found: Contents = {}
    for row in range(len(trace) + 1):
        durable, forced, loose = naive_pending(trace, row)
        for kept in subsets(loose):
            for order in naive_orders(forced, kept):
                take(found, trace, row, whole(trace, durable + order))
    return found


def naive_torn(trace: Trace) -> Contents:
    """In the order of the trace; each write absent, whole or a run of its sectors."""
    found: Contents = {}
    for row in range(len(trace) + 1):
        durable, forced, loose = naive_pending(trace, row)
        under_way = [row] if row < len(trace) and plain(trace)[row].forced else []
        ways = []
        for i in (*loose, *under_way):
            r = plain(trace)[i]
            ends = range(0, r.sectors + 1, 1 if r.op == Op.WRITE else r.sectors)
            ways.append([(i, 0, 0), *((i, a, b) for a in ends for b in ends if a < b)])
        for parts in product(*ways):
            since = sorted([*parts, *whole(trace, forced)])
            take(found, trace, row, [*whole(trace, durable), *since])
    return found


def naive_lying(trace: Trace, depth: int) -> Contents:
    found: Contents = {}
    every = []
    for row, r in enumerate(plain(trace)):
        since = range(flushed(trace, row, r.volume), row)
        if r.op == Op.FLUSH and any(i in since for i in plain_changes(trace, r.volume)):
            every.append(row)
    for row in range(len(trace) + 1):
        before = [i for i in every if i < row]
        for lies in range(1, min(depth, len(before)) + 1):
            honest = before[: len(before) - lies]
            seen = honest[-1] + 1 if honest else 0
            until = [flushed(trace, seen, volume) for volume in range(len(trace.volumes))]
            past = [i for i in plain_changes(trace) if i < row]
            held = [i for i in past if i >= until[plain(trace)[i].volume]]
            safe = [i for i in past if i not in held]
            for kept in subsets(held):
                if len(kept) < len(held):
                    take(found, trace, row, whole(trace, [*safe, *kept]))
    return found


def naive_apart(trace: Trace, window: int) -> Contents:
    prefixes = {}
    for volume in sorted({plain(trace)[i].volume for i in plain_changes(trace)}):
        ends, last = [0], 0
        for i, r in enumerate(plain(trace)):
            if r.volume == volume and (r.op == Op.FLUSH or r.forced):
                count = len([c for c in plain_changes(trace, volume) if c <= i])
                if count > last:
                    ends.append(i + 1)
                last = count
        prefixes[volume] = ends
    found: Contents = {}
    for row in range(len(trace) + 1):
        now = [max(end for end in ends if end <= row) for ends in prefixes.values()]
        later = [[e for e in ends if row < e <= row + window] for ends in prefixes.values()]
        for cuts in product(*([a, *b] for a, b in zip(now, later, strict=True))):
            ahead = [cut > row for cut in cuts]
            if any(ahead) and not all(ahead):
                rows = [
                    i for volume, cut in zip(prefixes, cuts, strict=True)
                    for i in plain_changes(trace, volume) if i < cut
                ]  # fmt: skip
                take(found, trace, row, whole(trace, rows))
    return found


def check_model(trace: Trace, points: tuple[CrashPoint, ...], expected: Contents) -> None:
    """All that may be left is found, nothing else, each once and at its latest row."""
    assert [p.index for p in points] == sorted({p.index for p in points})
    found = [(b"".join(naive_disks(trace, p))[::SECTOR], p.row) for p in points]
    assert dict(found) == expected
    assert len(found) == len(expected)


MANY = 1 << 12


@given(traces(most=6))
@settings(max_examples=100, deadline=None)
def test_epoch_leaves_what_may_be_left(trace: Trace) -> None:
    check_model(trace, crash_points(trace, "epoch", ways=MANY), naive_epoch(trace))


@given(traces(volumes=2, most=5))
@settings(max_examples=60, deadline=None)
def test_epoch_of_two_volumes(trace: Trace) -> None:
    check_model(trace, crash_points(trace, "epoch", ways=MANY), naive_epoch(trace))


@given(traces(volumes=2, most=3, disk=3))
@settings(max_examples=60, deadline=None)
def test_torn_leaves_runs_of_sectors(trace: Trace) -> None:
    points = crash_points(trace, "torn", ways=MANY, states=MANY if overlapping(trace) else None)
    if overlapping(trace):  # orders are drawn
        assert len({naive_disks(trace, p) for p in points}) == len(points)
    else:
        check_model(trace, points, naive_torn(trace))


def overlapping(trace: Trace) -> bool:
    """Whether two requests between two flushes of a volume change the same sector."""
    for row in range(len(trace) + 1):
        _, forced, loose = naive_pending(trace, row)
        for a, b in combinations((*forced, *loose), 2):
            one, two = plain(trace)[a], plain(trace)[b]
            if one.volume == two.volume and (
                max(one.first, two.first) < min(one.first + one.sectors, two.first + two.sectors)
            ):
                return True
    return False


@given(traces(most=6), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_lying_loses_what_flushes_promised(trace: Trace, depth: int) -> None:
    points = crash_points(trace, "lying", ways=MANY, depth=depth)
    check_model(trace, points, naive_lying(trace, depth))


@given(traces(volumes=2, most=6), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_lying_of_two_volumes(trace: Trace, depth: int) -> None:
    points = crash_points(trace, "lying", ways=MANY, depth=depth)
    check_model(trace, points, naive_lying(trace, depth))


@given(traces(volumes=3, most=14, sectors=1), st.integers(1, 8))
@settings(max_examples=80, deadline=None)
def test_apart_cuts_each_at_a_flush_of_its_own(trace: Trace, window: int) -> None:
    if len({plain(trace)[i].volume for i in plain_changes(trace)}) < 2:
        with pytest.raises(InputError, match="at least 2"):
            crash_points(trace, "apart", window=window)
        return
    points = crash_points(trace, "apart", ways=MANY, window=window)
    check_model(trace, points, naive_apart(trace, window))


# --- What holds of states that are drawn ---------------------------------------------------------

LONG = make_trace(
    [
        row
        for i in range(40)
        for row in (
            *(write(i * j % 11, bytes([i + 1, j + 1]), 0, j % 2) for j in range(i % 13)),
            *([write(i % 12, bytes([i + 101]), Flag.FUA, i % 2)] if i % 5 == 0 else []),
            *([(Op.DISCARD, 0, i % 7, 3, 0, None)] if i % 6 == 0 else []),
            flush(i % 2 if i % 3 else 0),
        )
    ],
    2,
)


def lost_sectors(trace: Trace, point: CrashPoint) -> dict[int, set[int]]:
    """Of each request before the point, the sectors that no part and no prefix has."""
    until = dict(point.cuts)
    had = {
        i: set(range(int(trace.requests.length[i]) // SECTOR))
        for i in changes(trace) if i < point.row
    }  # fmt: skip
    for i in had:
        if i < until.get(int(trace.requests.volume[i]), point.durable):
            had[i] = set()
    for row, first, end in point.parts.tolist():
        if row in had:
            had[row] -= set(range(first // SECTOR, end // SECTOR))
    return {row: sectors for row, sectors in had.items() if sectors}


@pytest.mark.parametrize("model", ["epoch", "torn"])
@pytest.mark.parametrize("ways", [1, 5, 64])
def test_what_is_durable_is_there(model: str, ways: int) -> None:
    points = crash_points(LONG, model, ways=ways)
    assert len(points) > 30
    for point in points:
        _, _, loose = naive_pending(LONG, point.row)
        lost = lost_sectors(LONG, point)
        assert lost.keys() <= set(loose)
        for row, first, end in point.parts.tolist():
            assert row < point.row or (row == point.row and plain(LONG)[row].forced)
            assert model == "torn" or end - first == LONG.requests.length[row]
            if LONG.requests.op[row] != Op.WRITE:
                assert (first, end) == (0, LONG.requests.length[row])
    if ways > 1:
        # Some tear a write, and some let a later write survive an earlier one.
        cut = [
            p for p in points for row, a, b in p.parts.tolist() if b - a < LONG.requests.length[row]
        ]
        assert bool(cut) == (model == "torn")
        turned = [p for p in points if np.any(np.diff(p.parts[:, 0]) < 0)]
        assert turned
        assert any(max(lost) < max(p.parts[:, 0]) for p in points
                   if len(p.parts) and (lost := lost_sectors(LONG, p)))  # fmt: skip


def test_a_lying_cache_keeps_what_was_honestly_flushed() -> None:
    flushes = np.flatnonzero(LONG.requests.op == Op.FLUSH).tolist()
    points = crash_points(LONG, "lying", depth=3)
    assert len(points) > 100
    empty = [p for p in points if not len(p.parts)]
    assert len(empty) > len(points) / 20
    for point in points:
        lost = lost_sectors(LONG, point)
        assert lost  # else it was no lie
        # Of the last seven flushes four make something durable, and one of these was honest.
        seen = [0, *(f + 1 for f in flushes if f < point.row)][-7:][0]
        assert all(row >= flushed(LONG, seen, plain(LONG)[row].volume) for row in lost)
    assert any(
        row < flushed(LONG, p.row, plain(LONG)[row].volume)
        for p in points for row in lost_sectors(LONG, p)
    )  # fmt: skip


@pytest.mark.parametrize("model", MODELS[2:])
def test_a_sample_is_seeded_distinct_and_part_of_the_whole(model: str) -> None:
    whole = {p.index: p for p in crash_points(LONG, model, seed=5, ways=16)}
    sample = crash_points(LONG, model, states=40, seed=5, ways=16)
    assert sample == crash_points(LONG, model, states=40, seed=5, ways=16)
    assert sample != crash_points(LONG, model, states=40, seed=6, ways=16)
    assert 35 <= len(sample) <= 40
    # What a state is does not depend on how many were asked for.
    assert all(whole[p.index] == p for p in sample if p.index in whole)
    assert len({naive_disks(LONG, p) for p in sample}) == len(sample)
    few = crash_points(LONG, model, states=3, seed=5, ways=16)
    assert 1 <= len(few) <= 3


# --- Building ------------------------------------------------------------------------------------


@given(trace=traces(volumes=2, most=14, disk=10), seed=st.integers(0, 9), data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=SCOPED)
def test_states_of_all_models_are_built_to_the_byte(
    tmp_path: Path, trace: Trace, seed: int, data: st.DataObject
) -> None:
    points = []
    for model in MODELS:
        try:
            points += crash_points(trace, model, states=6, seed=seed, volume=0)
        except InputError:
            assert model == "apart"
    mixed = tuple(data.draw(st.permutations(points)))
    found = built(trace, mixed, tmp_path)  # forward and back, from one model to another
    assert found == {point: naive_disks(trace, point) for point in points}
    digests = state_digests(trace, mixed)
    assert [naive_digest(found[p]) for p in mixed] == digests.tolist()
    for point in points[:3]:
        assert built(trace, (point,), tmp_path)[point] == found[point]

    kept = distinct_points(trace, mixed)
    assert len(kept) == len(set(found.values()))
    assert {found[p] for p in kept} == set(found.values())
    for point in kept:
        assert point.row == max(p.row for p in mixed if found[p] == found[point])


def test_any_parts_in_any_order_can_be_built(tmp_path: Path) -> None:
    values = np.random.default_rng(7)
    rows = np.array(changes(LONG))
    points = []
    for i in range(60):
        parts = []
        for row in values.choice(rows, int(values.integers(0, 9))).tolist():
            sectors = int(LONG.requests.length[row]) // SECTOR
            first, end = np.sort(values.integers(0, sectors + 1, 2)).tolist()
            parts.append((row, SECTOR * first, SECTOR * end))
        cuts = ((0, int(values.integers(0, len(LONG)))), (3, int(values.integers(0, len(LONG)))))
        durable = int(values.integers(0, len(LONG)))
        points.append(
            CrashPoint(i, len(LONG), "torn", durable, cuts[: i % 3],
                       np.array(parts, np.int64).reshape(-1, 3))
        )  # fmt: skip
    found = built(LONG, tuple(points), tmp_path)
    assert found == {point: naive_disks(LONG, point) for point in points}


def test_states_of_prefixes_come_in_order(tmp_path: Path) -> None:
    points = crash_points(LONG, "request", volume=0)
    assert list(built(LONG, points[::-1], tmp_path)) == list(points)


def test_a_state_costs_its_distance_and_not_the_disk(tmp_path: Path) -> None:
    from vmbk.consistency.states import SectorHistory, _Walk

    size = 1 << 40
    rows = [(Op.DISCARD, 0, 0, size // SECTOR, 0, None)]
    rows += [write((size // SECTOR - 1) // 300 * i, b"ab"[: i % 2 + 1]) for i in range(300)]
    trace = make_trace([*rows, rows[0], flush()], 1, size)
    points = crash_points(trace, "request")
    history = SectorHistory.of(trace)
    assert len(history.places) == 450
    order = [0, 100, 101, 99, 301, 302, 301]
    walk = _Walk(history, history.route([points[i] for i in order]))
    touched = [len(walk.step(i)[1]) for i in range(len(order))]
    # Of a discard of the whole disk the sectors count that are ever written.
    assert touched == [0, 450 + 148, 2, 3, 303, 450, 450]
    for i, state in enumerate(crash_states(trace, points[100:102], folder=tmp_path)):
        assert state.image.stat().st_size == size
        assert state.image.stat().st_blocks * SECTOR < 4 << 20
        assert state.point == points[100 + i]


# --- The replay-log of dm-log-writes, from the description of its format ------------------------

MAGIC, FLUSH, FUA, DISCARD, MARK = 0x6A736677736872, 1, 2, 4, 8
Entry = tuple[int, int, int, bytes]  # sector, sectors, flags, data or label


def write_log(entries: list[Entry], sector: int) -> bytes:
    out = [struct.pack("<QQQI", MAGIC, 1, len(entries), sector).ljust(sector, b"\0")]
    for at, count, flags, data in entries:
        label = data if flags & MARK else b""
        head = struct.pack("<QQQQ", at, count, flags, len(label)) + label
        out += [head.ljust(sector, b"\0"), b"" if label else data]
    return b"".join(out)


def replay_log(log: bytes, size: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Flags of each entry, and the device before and after it: as the tool replays a log.

    An entry is a sector of numbers and, unless it is a discard, the data behind it. Discards make
    zeros; marks change nothing.
    """
    magic, version, count, sector = struct.unpack_from("<QQQI", log)
    assert (magic, version) == (MAGIC, 1)
    device, at = bytearray(size), sector
    for _ in range(count):
        before = bytes(device)
        where, sectors, flags, _ = struct.unpack_from("<QQQQ", log, at)
        at += sector
        if flags & DISCARD:
            device[where * sector : (where + sectors) * sector] = bytes(sectors * sector)
        elif not flags & MARK:
            device[where * sector : (where + sectors) * sector] = log[at : at + sectors * sector]
            at += sectors * sector
        yield flags, before, bytes(device)


@st.composite
def logs(draw: st.DrawFn) -> tuple[list[Entry], int]:
    sector = draw(st.sampled_from([512, 1024, 4096]))
    kinds = st.sampled_from([0, 0, 0, FLUSH, FUA, FLUSH | FUA, DISCARD, DISCARD | FLUSH, MARK])
    entries: list[Entry] = [(1, 1, 0, b"1" * sector)]
    for _ in range(draw(st.integers(0, 12))):
        flags = draw(kinds)
        count = 0 if flags & MARK else draw(st.integers(0, 3))
        data = bytes([draw(st.integers(0, 5))]) * (count * sector)
        if flags & (MARK | DISCARD):
            data = b"" if flags & DISCARD else b"commit 1"
        entries.append((draw(st.integers(0, 8)), count, flags, data))
    return entries, sector


@given(logs())
@settings(max_examples=80, deadline=None, suppress_health_check=SCOPED)
def test_prefixes_are_those_of_replay_log(tmp_path: Path, given: tuple[list[Entry], int]) -> None:
    entries, sector = given
    path = tmp_path / "log"
    path.write_bytes(write_log(entries, sector))
    trace = import_trace(path, volume_size=64 << 10).trace
    (volume,) = trace.volumes
    replayed = list(replay_log(path.read_bytes(), volume.size))

    # After every entry: one with a flush and data is two requests.
    row, ends = 0, []
    for _, count, flags, _ in entries:
        row += bool(flags & MARK) or bool(flags & FLUSH) + bool(count)
        ends.append(row)
    assert row == len(trace)
    points = tuple(CrashPoint(i, end, "request") for i, end in enumerate(ends))
    states = {p.index: disks for p, (disks,) in built(trace, points, tmp_path).items()}
    assert [states[i] for i in range(len(entries))] == [after for _, _, after in replayed]

    # At every flush what came before it, at every forced write that as well.
    durable = [bytes(volume.size)]
    for (_, count, flags, _), (_, before, after) in zip(entries, replayed, strict=True):
        if flags & FLUSH:
            durable.append(before)
        if flags & FUA and not flags & DISCARD and count:
            durable.append(after)
    flush_states = built(trace, crash_points(trace, "flush"), tmp_path)
    assert {disk for (disk,) in flush_states.values()} <= set(durable)
    assert set(durable[1:]) <= {disk for (disk,) in flush_states.values()}


# --- Captures ------------------------------------------------------------------------------------

GOLDEN = {
    "flush": "9ae4e17704ebbd6a",
    "request": "c7d98964884231f6",
    "epoch": "94de259397dfc377",
    "torn": "f5c5d783d5d1c786",
    "lying": "fcc96c2a6c4b476a",
    "apart": "7f80f676c4e582e1",
}
"""Sums of the digests of 50 states: which states are drawn for a seed, and what they hold."""


def image_digest(path: Path) -> int:
    data = np.fromfile(path, np.uint8).reshape(-1, SECTOR)
    total = 0
    for i in np.flatnonzero(data.any(axis=1)).tolist():
        content = xxhash.xxh3_64_intdigest(data[i])
        total += naive.splitmix64(content + (i + 1) * 0x9E3779B97F4A7C15)
    return total % (1 << 64)


@pytest.mark.parametrize("model", MODELS[:5])
def test_states_of_a_capture(model: str) -> None:
    trace = read_trace(dataset_path("ext4-sqlite"))
    points = crash_points(trace, model, states=50)
    assert len(points) == 50
    digests = state_digests(trace, points)
    assert f"{int(digests.sum(dtype=np.uint64)):016x}" == GOLDEN[model]
    for state in crash_states(trace, points[::17]):
        assert state.digest == image_digest(state.image)
        assert state.digest in digests


def test_states_of_two_disks_apart() -> None:
    trace = read_trace(dataset_path("ext4-two-disks"))
    points = crash_points(trace, "apart", states=50)
    digests = state_digests(trace, points)
    assert f"{int(digests.sum(dtype=np.uint64)):016x}" == GOLDEN["apart"]
    assert {tuple(volume for volume, _ in p.cuts) for p in points} == {(0, 1)}
    assert all(p.row >= min(cut for _, cut in p.cuts) for p in points)


# --- What cannot be done -------------------------------------------------------------------------


def test_bad_arguments_are_quoted() -> None:
    for name, value in (("ways", 0), ("depth", -1), ("window", 1 << 40)):
        with pytest.raises(InputError, match=f"{name} must be 1 to .*, not {value}"):
            crash_points(LONG, "lying", **{name: value})
    with pytest.raises(InputError, match="at least 2 of them"):
        crash_points(make_trace([write(0, b"a"), flush()]), "apart")
    with pytest.raises(InputError, match="no volume 7"):
        crash_points(LONG, "epoch", volume=7)
    with pytest.raises(InputError, match="no volume"):
        crash_points(Trace.from_columns(volumes=[], op=[], offset=[], length=[]), "epoch")


def test_more_states_than_can_be_listed() -> None:
    rows = [row for i in range(40) for row in (write(i % 3, bytes([i + 1])), write(5, b"x"))]
    trace = make_trace([row for row in rows for row in (row, write(7, b"y", Flag.FUA))])
    with pytest.raises(InputError, match="say how many"):
        crash_points(trace, "epoch", ways=1 << 20)
    assert len(crash_points(trace, "epoch", ways=1 << 20, states=20)) == 20


def test_what_is_no_sector_is_refused() -> None:
    trace = Trace.from_columns(
        volumes=[Volume(0, "vda", SIZE)], op=[Op.WRITE, Op.WRITE], offset=[0, 512],
        length=[512, 100], payload=[b"a" * 512, b"b" * 100],
    )  # fmt: skip
    with pytest.raises(InputError, match="request 1 covers 100 bytes at offset 512"):
        crash_states(trace, crash_points(trace, "request"))
    for model in MODELS[2:]:
        with pytest.raises(InputError, match="request 1"):
            crash_points(trace, model)


def test_a_write_without_bytes_is_refused() -> None:
    trace = Trace.from_columns(
        volumes=[Volume(0, "vda", SIZE)], op=[Op.WRITE, Op.WRITE], offset=[0, 512],
        length=[512, 512], payload=[b"a" * 512, None],
    )  # fmt: skip
    with pytest.raises(InputError, match="write 1 of the trace has no captured bytes"):
        crash_states(trace, crash_points(trace))


@pytest.mark.parametrize(
    ("cuts", "parts"),
    [
        ((), [(0, 0, 1024)]), ((), [(1, 0, 512)]), ((), [(0, 100, 512)]), ((), [(9, 0, 512)]),
        ((), [(0, -512, 512)]), ((), [(0, 512, 0)]), (((5, 0),), []), (((0, 99),), []),
    ],
)  # fmt: skip
def test_a_point_that_is_none_is_refused(
    cuts: tuple[tuple[int, int], ...], parts: list[tuple[int, int, int]]
) -> None:
    trace = make_trace([write(0, b"a"), flush()])
    point = CrashPoint(0, 1, "torn", 0, cuts, np.array(parts, np.int64).reshape(-1, 3))
    with pytest.raises(VmbkError):
        list(crash_states(trace, [point]))


def test_a_trace_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmbk.consistency.states._MOST_CELLS", 100)
    large = [write(0, b"abc"), *[(Op.DISCARD, 0, 0, 12, 0, None)] * 40, flush()]
    for rows in (large, [write(0, b"abcdefghijkl")] * 9):
        with pytest.raises(InputError, match="sectors"):
            state_digests(make_trace(rows), crash_points(make_trace(rows)))
