"""Replay against the obvious replay: one request at a time onto a bytearray."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.disk_conformance import read
from tests.memory_disk import MemoryDisk
from vmbk.disk import replay as module
from vmbk.disk.base import Disk
from vmbk.disk.raw import RawDisk
from vmbk.disk.replay import CONTENT_BLOCK, ContentMix, replay
from vmbk.errors import InputError, OutOfRangeError, TargetTooSmallError
from vmbk.trace.schema import Op, Volume
from vmbk.trace.table import Trace
from vmbk.units import KIB, MIB

SIZES = {0: 40 * 4096 + 100, 7: 9 * 4096}
MUTATING = (Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES)

GOLDEN = "d78c0cc605a59e7d91a6e18fc60013ae3d2f3a4a80d7671451856cc6f7cd5b37"

Row = tuple[Op, int, int, int, bytes | None]
"""op, volume, offset, length, payload"""


def make_trace(rows: list[Row], *, payloads: bool, sizes: dict[int, int] = SIZES) -> Trace:
    return Trace.from_columns(
        volumes=[Volume(id, f"v{id}", size) for id, size in sizes.items()],
        op=np.array([row[0] for row in rows], np.int8),
        volume=np.array([row[1] for row in rows], np.uint32),
        offset=np.array([row[2] for row in rows], np.int64),
        length=np.array([row[3] for row in rows], np.int64),
        payload=[row[4] for row in rows] if payloads else None,
    )


def block_content(seed: int, volume: int, block: int, version: int, mix: ContentMix) -> bytes:
    from vmbk.kernels.content import fill_content

    out = np.empty(CONTENT_BLOCK, np.uint8)
    fill_content(
        out, seed, volume, block, np.array([version], np.int64), CONTENT_BLOCK,
        mix.zero, mix.compressible, mix.duplicate,
    )  # fmt: skip
    return out.tobytes()


def naive_replay(
    rows: list[Row],
    start: int,
    stop: int,
    seed: int,
    state: dict[int, bytearray],
    mix: ContentMix | None = None,
) -> None:
    """Replay by the definition, a row and a block at a time."""
    mix = mix or ContentMix()
    writes: dict[tuple[int, int], int] = {}
    for i, (op, volume, offset, length, payload) in enumerate(rows[:stop]):
        disk, end = state[volume], offset + length
        if op == Op.WRITE and length:
            blocks = range(offset // CONTENT_BLOCK, (end - 1) // CONTENT_BLOCK + 1)
            made = b"".join(
                block_content(seed, volume, b, writes.get((volume, b), 0), mix) for b in blocks
            )
            for b in blocks:
                writes[volume, b] = writes.get((volume, b), 0) + 1
            skip = offset - blocks[0] * CONTENT_BLOCK
            if i >= start:
                disk[offset:end] = payload if payload is not None else made[skip : skip + length]
        elif op in MUTATING and i >= start:
            disk[offset:end] = bytes(length)


@st.composite
def traces(draw: st.DrawFn) -> tuple[list[Row], bool]:
    kind = draw(st.sampled_from(["captured", "synthetic", "mixed"]))
    rows: list[Row] = []
    for _ in range(draw(st.integers(0, 30))):
        op = draw(st.sampled_from([Op.WRITE, Op.WRITE, Op.WRITE, *Op]))
        volume = draw(st.sampled_from([0, 0, 0, 7]))
        offset = length = 0
        if op not in (Op.FLUSH, Op.MARK):
            length = min(draw(st.sampled_from([0, 1, 512, 4096, 5000, 30000])), SIZES[volume])
            offset = draw(st.integers(0, SIZES[volume] - length))
            if rows and rows[-1][1] == volume and draw(st.booleans()):  # go on where it ended
                offset = min(rows[-1][2] + rows[-1][3], SIZES[volume] - length)
        payload = None
        if op == Op.WRITE and (kind == "captured" or (kind == "mixed" and draw(st.booleans()))):
            payload = np.random.default_rng(len(rows)).bytes(length)
        if op == Op.MARK and kind != "synthetic":
            payload = b"a mark"
        rows.append((op, volume, offset, length, payload))
    return rows, kind != "synthetic"


@given(traces(), st.data())
def test_replay_is_the_naive_replay(made: tuple[list[Row], bool], data: st.DataObject) -> None:
    rows, payloads = made
    trace = make_trace(rows, payloads=payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=2)))
    seed = data.draw(st.sampled_from([0, 1, (1 << 63) - 1]))
    mix = data.draw(st.sampled_from([None, ContentMix(0, 0, 0), ContentMix(30, 30, 30)]))
    model = {id: bytearray(size) for id, size in SIZES.items()}
    naive_replay(rows, 0, len(rows), seed, model, mix)
    with tempfile.TemporaryDirectory() as folder:
        memory = MemoryDisk(SIZES[7])
        with RawDisk.create(Path(folder) / "v0.raw", SIZES[0]) as raw:
            tracker = raw.start_tracking(4 * KIB)
            disks: dict[int, Disk] = {0: raw, 7: memory}
            edges = [0, *cuts, len(rows)]
            done: list[int] = []
            for start, stop in pairwise(edges):
                result = replay(
                    trace, disks, start=start, stop=stop, seed=seed, content=mix,
                    on_progress=done.append,
                )  # fmt: skip
                part = rows[start:stop]
                assert result.next == stop
                assert result.requests == len(part)
                assert result.writes == sum(r[0] == Op.WRITE for r in part)
                assert result.write_bytes == sum(r[3] for r in part if r[0] == Op.WRITE)
                assert result.zeroed_bytes == sum(
                    r[3] for r in part if r[0] in (Op.DISCARD, Op.WRITE_ZEROES)
                )
                assert result.flushes == sum(r[0] == Op.FLUSH for r in part)
            assert sum(done) == len(rows)
            assert all(amount > 0 for amount in done)
            assert read(raw).tobytes() == model[0]
            assert memory.data.tobytes() == model[7]
            touched: set[int] = set()
            for op, volume, offset, length, _ in rows:
                if volume == 0 and op in MUTATING and length:
                    touched |= set(range(offset // 4096, (offset + length - 1) // 4096 + 1))
            bits = np.unpackbits(tracker.changed_since(0).bits, bitorder="little")
            assert set(np.flatnonzero(bits).tolist()) == touched


def test_large_requests_are_cut_without_a_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH_BYTES", 8 * KIB)
    monkeypatch.setattr(module, "_BATCH_ROWS", 3)
    monkeypatch.setattr(module, "_LARGE_BLOCKS", 4)
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for i in range(60):
        length = int(rng.integers(1, 100_000))
        offset = int(rng.integers(0, SIZES[0] - length))
        payload = rng.bytes(length) if i % 7 == 0 else None
        rows.append(
            (Op.WRITE if i % 5 else Op.DISCARD, 0, offset, length, payload if i % 5 else None)
        )
    trace = make_trace(rows, payloads=True)
    model = {0: bytearray(SIZES[0]), 7: bytearray(SIZES[7])}
    naive_replay(rows, 0, 60, 5, model)
    with RawDisk.create(tmp_path / "d.raw", SIZES[0]) as disk:
        for start, stop in ((0, 1), (1, 30), (30, 60)):
            replay(trace, {0: disk, 7: MemoryDisk(SIZES[7])}, start=start, stop=stop, seed=5)
        assert read(disk).tobytes() == model[0]


def test_content_is_pinned(tmp_path: Path) -> None:
    """A faster way to make content may not change it: studies would not repeat."""
    rows: list[Row] = [(Op.WRITE, 0, (i * 7919) % 130_000, 3000 + i * 50, None) for i in range(300)]
    disk = MemoryDisk(SIZES[0])
    replay(make_trace(rows, payloads=False), {0: disk, 7: MemoryDisk(SIZES[7])}, seed=3)
    assert hashlib.sha256(disk.data).hexdigest() == GOLDEN


def test_what_the_disk_held_stays(tmp_path: Path) -> None:
    rows: list[Row] = [(Op.WRITE, 0, 5000, 100, b"n" * 100)]
    disk = MemoryDisk(b"o" * (SIZES[0] + 5000))
    replay(make_trace(rows, payloads=True), {0: disk, 7: MemoryDisk(SIZES[7])})
    assert disk.data.tobytes() == b"o" * 5000 + b"n" * 100 + b"o" * (SIZES[0] - 100)


def test_a_single_disk_serves_a_single_volume() -> None:
    rows: list[Row] = [(Op.WRITE, 3, 0, 4, b"data")]
    trace = make_trace(rows, payloads=True, sizes={3: 4096})
    disk = MemoryDisk(4096)
    replay(trace, disk)
    assert disk.data[:4].tobytes() == b"data"
    with pytest.raises(InputError, match="one disk for a trace of 2 volumes"):
        replay(make_trace([], payloads=False), disk)


def test_nothing_is_written_where_something_is_wrong(tmp_path: Path) -> None:
    rows: list[Row] = [(Op.WRITE, 0, 0, 100, None), (Op.WRITE, 7, 4096, 100, None)]
    trace = make_trace(rows, payloads=False)
    good, second = MemoryDisk(SIZES[0], "good"), MemoryDisk(SIZES[7])
    small = MemoryDisk(SIZES[7] - 1, "small")
    with pytest.raises(InputError, match="no disk for volume 7"):
        replay(trace, {0: good})
    with pytest.raises(TargetTooSmallError, match=f"'small' has {SIZES[7] - 1} .* {SIZES[7]} "):
        replay(trace, {0: good, 7: small})
    for start, stop in ((-1, 1), (2, 1), (0, 3), (3, 3)):
        with pytest.raises(InputError, match=f"rows {start} to {stop} of a trace of 2"):
            replay(trace, {0: good, 7: second}, start=start, stop=stop)
    for seed in (-1, 1 << 63):
        with pytest.raises(InputError, match=f"not {seed}"):
            replay(trace, {0: good, 7: second}, seed=seed)
    broken = Trace(  # made without the checks that every way to make one has
        trace.table.set_column(
            trace.table.column_names.index("offset"), "offset", [[0, SIZES[7] - 99]]
        ),
        trace.metadata,
    )
    with pytest.raises(
        OutOfRangeError, match=f"request 1 covers 100 bytes at offset {SIZES[7] - 99}"
    ):
        replay(broken, {0: good, 7: second})
    path = tmp_path / "d.raw"
    RawDisk.create(path, SIZES[7]).close()
    with RawDisk(path) as readonly, pytest.raises(InputError, match="reading only"):
        replay(trace, {0: good, 7: readonly})
    assert not good.data.any()
    for shares in ((-1, 0, 0), (50, 50, 1)):
        with pytest.raises(InputError, match=str(sum(shares)) if sum(shares) < 0 else "0 to 100"):
            ContentMix(*shares)


def test_an_empty_trace_and_an_empty_volume() -> None:
    trace = make_trace([], payloads=False, sizes={0: 4096, 1: 0})
    result = replay(trace, {0: MemoryDisk(4096)})
    assert (result.requests, result.next) == (0, 0)


def test_a_snapshot_during_replay_is_between_requests(tmp_path: Path) -> None:
    """Replay and snapshots of one disk may run at once: the tracker loses nothing."""
    rng = np.random.default_rng(1)
    size = 4 * MIB
    rows: list[Row] = [
        (Op.WRITE, 0, int(rng.integers(0, size // 512 - 8)) * 512, 4096, None) for _ in range(4000)
    ]
    trace = make_trace(rows, payloads=False, sizes={0: size})
    with RawDisk.create(tmp_path / "d.raw", size) as disk:
        tracker = disk.start_tracking(4 * KIB)
        thread = threading.Thread(target=replay, args=(trace, disk))
        thread.start()
        bases = []
        while thread.is_alive() and len(bases) < 20:
            with disk.snapshot(tmp_path) as snapshot:
                bases.append((snapshot.generation, read(snapshot)))
        thread.join()
        now = read(disk)
        for generation, then in bases:
            bits = np.unpackbits(tracker.changed_since(generation).bits, bitorder="little")
            changed = np.unique(np.flatnonzero(now != then) // 4096)
            assert bits[changed].all()
        for (first, then), (second, later) in pairwise(bases):
            bits = np.unpackbits(tracker.changed_since(first, second).bits, bitorder="little")
            assert bits[np.unique(np.flatnonzero(later != then) // 4096)].all()
        assert bases


def test_result_shows_itself() -> None:
    rows: list[Row] = [(Op.WRITE, 0, 0, 2048, None), (Op.FLUSH, 0, 0, 0, None)]
    trace = make_trace(rows, payloads=False)
    result = replay(trace, {0: MemoryDisk(SIZES[0]), 7: MemoryDisk(SIZES[7])})
    assert "2 KiB" in result._repr_html_()
    assert result.to_dict()["flushes"] == 1
    assert result.seconds > 0
