"""Detectors against a naive comparison of every byte, on random disks and random writes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tests.memory_disk import MemoryDisk
from vmbk.detect.changes import DETECTORS, Base, ChangeSet, Settings
from vmbk.detect.choose import (
    NO_BASE,
    NO_TRACKER,
    OTHER_BLOCK_SIZE,
    SPOT_CHECK,
    Tracked,
    detect,
)
from vmbk.detect.scan import align, split
from vmbk.errors import InputError

BLOCK, SUB = 4096, 512
SETTINGS = Settings(BLOCK, SUB)

Write = tuple[int, int, int]
"""Offset, length and the byte that is written; 0 zeroes."""


def digests(data: np.ndarray, unit: int) -> np.ndarray:
    return np.array(
        [xxhash.xxh3_64_intdigest(data[i : i + unit].tobytes()) for i in range(0, len(data), unit)],
        np.uint64,
    )


def base_of(disk: MemoryDisk, settings: Settings = SETTINGS) -> Base:
    sub = settings.sub_block_size
    return Base(
        "base", disk.size, settings.block_size, sub, digests(disk.data, settings.block_size),
        digests(disk.data, sub) if sub else None, disk=disk.copy(),
    )  # fmt: skip


def apply(disk: MemoryDisk, found: ChangeSet, onto: MemoryDisk) -> MemoryDisk:
    """What a restore does: the base with the extents laid over it."""
    result = MemoryDisk(np.resize(onto.data, disk.size) if onto.size >= disk.size
                        else np.pad(onto.data, (0, disk.size - onto.size)))  # fmt: skip
    for offset, length in zip(found.offsets.tolist(), found.lengths.tolist(), strict=True):
        result.data[offset : offset + length] = disk.data[offset : offset + length]
    for offset, length in zip(
        found.zero_offsets.tolist(), found.zero_lengths.tolist(), strict=True
    ):
        result.data[offset : offset + length] = 0
    return result


def mutate(disk: MemoryDisk, writes: list[Write]) -> Tracked:
    spans = []
    for offset, length, value in writes:
        offset %= disk.size
        length = min(length, disk.size - offset)
        disk.data[offset : offset + length] = value
        if length:
            spans.append((offset, length))
    spans.sort()
    array = np.array(spans, np.int64).reshape(-1, 2)
    return Tracked((array[:, 0].copy(), array[:, 1].copy()))


sizes = st.integers(1, 12 * BLOCK)
writes = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 9000), st.sampled_from([0, 0, 1, 7]))
)
contents = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 20000), st.sampled_from([1, 2, 0]))
)
settings_drawn = st.sampled_from(
    [Settings(BLOCK, SUB), Settings(BLOCK, 0), Settings(BLOCK, 1024), Settings(512, 0),
     Settings(BLOCK, SUB, gap=1024), Settings(65536, 4096)]
)  # fmt: skip


@given(sizes, contents, writes, settings_drawn, st.sampled_from(DETECTORS))
def test_extents_laid_over_the_base_give_the_disk(size, content, changes, settings, detector):
    disk = MemoryDisk(size)
    mutate(disk, content)
    base, before = base_of(disk, settings), disk.copy()
    tracked = mutate(disk, changes)

    found = detect(disk, base, detector=detector, settings=settings, tracked=tracked)

    assert found.detector == detector
    assert not found.fallback
    assert np.array_equal(apply(disk, found, before).data, disk.data)
    assert np.array_equal(found.digests, digests(disk.data, settings.block_size))
    if settings.sub_block_size:
        assert np.array_equal(found.sub_digests, digests(disk.data, settings.sub_block_size))
    offsets, lengths = found.all_extents()
    assert (lengths > 0).all()
    assert (offsets[1:] >= (offsets + lengths)[:-1]).all()
    assert detector == "full" or found.covers(
        detect(disk, base, detector="compare", settings=replace(settings, gap=0))
    )
    moved = found.digests != base.digests
    assert not (moved & ~found.touched).any(), "a changed digest would not be stored"


@given(sizes, contents, writes)
def test_drill_down_reports_exactly_the_sub_blocks_that_differ(size, content, changes):
    disk = MemoryDisk(size)
    mutate(disk, content)
    base, before = base_of(disk), disk.copy()
    tracked = mutate(disk, changes)
    differing = {
        i for i in range(0, size, SUB)
        if disk.data[i : i + SUB].tobytes() != before.data[i : i + SUB].tobytes()
    }  # fmt: skip
    for detector in ("checksum", "tracking", "differential", "compare"):
        found = detect(disk, base, detector=detector, settings=SETTINGS, tracked=tracked)
        reported = {
            i
            for o, n in zip(*(a.tolist() for a in found.all_extents()), strict=True)
            for i in range(o, o + n, SUB)
        }
        assert reported == differing


@given(st.integers(1, 10 * BLOCK), st.integers(1, 10 * BLOCK), contents, writes)
def test_a_disk_that_changed_its_size_is_compared_block_by_block(old, new, content, changes):
    before = MemoryDisk(old)
    mutate(before, content)
    base = base_of(before)
    disk = MemoryDisk(new)
    disk.data[: min(old, new)] = before.data[: min(old, new)]
    mutate(disk, changes)
    for detector in ("checksum", "compare"):
        found = detect(disk, base, detector=detector, settings=SETTINGS)
        assert np.array_equal(apply(disk, found, before).data, disk.data)
        assert np.array_equal(found.sub_digests, digests(disk.data, SUB))


def test_the_first_backup_is_full_and_says_why():
    disk = MemoryDisk(b"x" * 10000)
    found = detect(disk, None, detector="tracking", settings=SETTINGS)
    assert (found.detector, found.requested, found.fallback) == ("full", "tracking", NO_BASE)
    assert detect(disk, None, settings=SETTINGS).fallback == ""


def test_other_block_size_makes_a_full_backup():
    disk = MemoryDisk(b"x" * 10000)
    found = detect(disk, base_of(disk), detector="checksum", settings=Settings(8192, 512))
    assert (found.detector, found.fallback) == ("full", OTHER_BLOCK_SIZE)
    assert found.base == ""


def test_tracking_without_a_tracker_falls_back_to_checksum():
    disk = MemoryDisk(b"x" * 10000)
    found = detect(disk, base_of(disk), detector="tracking", settings=SETTINGS)
    assert (found.detector, found.fallback) == ("checksum", NO_TRACKER)
    auto = detect(disk, base_of(disk), settings=SETTINGS)
    assert (auto.detector, auto.fallback) == ("checksum", "")


def test_the_spot_check_notices_a_change_that_the_tracker_missed():
    disk = MemoryDisk(64 * BLOCK)
    disk.data[:] = 3
    base, before = base_of(disk), disk.copy()
    disk.data[1 * BLOCK + 9] ^= 1  # among the first clean blocks, which are always checked
    nothing = Tracked((np.zeros(0, np.int64), np.zeros(0, np.int64)))
    found = detect(disk, base, detector="tracking", settings=SETTINGS, tracked=nothing)
    assert (found.detector, found.fallback) == ("checksum", SPOT_CHECK)
    assert np.array_equal(apply(disk, found, before).data, disk.data)


def test_tracking_reads_only_what_was_marked_and_the_spot_check():
    disk = MemoryDisk(1000 * BLOCK)
    disk.data[:] = 9
    base = base_of(disk)
    disk.read_bytes = 0
    tracked = mutate(disk, [(500 * BLOCK, 10, 1)])
    found = detect(disk, base, detector="tracking", settings=SETTINGS, tracked=tracked)
    assert disk.read_bytes == found.scanned_bytes == (1 + 10) * BLOCK


def test_identical_rewrite_tracking_counts_it_and_checksum_does_not():
    """Golden vector G19."""
    disk = MemoryDisk(8 * BLOCK)
    disk.data[:] = 5
    base = base_of(disk, Settings(BLOCK, 0))
    tracked = mutate(disk, [(2 * BLOCK, BLOCK, 5)])
    track = detect(disk, base, detector="tracking", settings=Settings(BLOCK, 0), tracked=tracked)
    check = detect(disk, base, detector="checksum", settings=Settings(BLOCK, 0))
    assert (track.changed_bytes, check.changed_bytes) == (BLOCK, 0)
    base = base_of(disk)
    drilled = detect(disk, base, detector="tracking", settings=SETTINGS, tracked=tracked)
    assert (drilled.reported_bytes, drilled.changed_bytes) == (BLOCK, 0)


def test_zeroed_blocks_are_extents_without_data():
    disk = MemoryDisk(8 * BLOCK)
    disk.data[:] = 5
    base = base_of(disk)
    disk.data[BLOCK : 3 * BLOCK] = 0
    found = detect(disk, base, detector="checksum", settings=SETTINGS)
    assert found.data_bytes == 0
    assert (found.zero_offsets.tolist(), found.zero_lengths.tolist()) == ([BLOCK], [2 * BLOCK])


def test_gap_joins_extents_that_are_near():
    disk = MemoryDisk(8 * BLOCK)
    disk.data[:] = 5
    base = base_of(disk)
    disk.data[[0, 2 * SUB, 20 * SUB]] = 6
    found = detect(disk, base, detector="checksum", settings=Settings(BLOCK, SUB, gap=SUB))
    assert found.offsets.tolist() == [0, 20 * SUB]
    assert found.lengths.tolist() == [3 * SUB, SUB]


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000)), max_size=12),
    st.sampled_from([1, 7, 64, 512]),
)
def test_split_and_align_keep_every_byte(spans, unit):
    ordered = sorted(spans)
    disjoint, end = [], 0
    for offset, length in ordered:
        if offset >= end:
            disjoint.append((offset, length))
            end = offset + length
    ranges = tuple(np.array([s[i] for s in disjoint], np.int64) for i in (0, 1))
    pieces = list(zip(*(a.tolist() for a in split(ranges, unit)), strict=True))
    assert [b for o, n in pieces for b in range(o, o + n)] == [
        b for o, n in disjoint for b in range(o, o + n)
    ]
    assert all(o // unit == (o + n - 1) // unit for o, n in pieces)
    size = 9000
    grown = align(tuple(np.array([s[i] for s in ordered], np.int64) for i in (0, 1)), unit, size)
    expected = {b // unit for o, n in ordered for b in range(o, o + n)}
    got = [
        b
        for o, n in zip(*(a.tolist() for a in grown), strict=True)
        for b in range(o // unit, -(-(o + n) // unit))
    ]
    assert sorted(expected) == got


@pytest.mark.parametrize(
    ("settings", "words"),
    [((1000, 0), "1000"), ((256, 0), "256"), ((4096, 4096), "4096"), ((4096, 512, -1), "-1"),
     ((2 << 20, 0), "2097152")],
)  # fmt: skip
def test_bad_settings_quote_the_value(settings, words):
    with pytest.raises(InputError, match=words):
        Settings(*settings)


def test_an_unknown_detector_lists_those_there_are():
    with pytest.raises(InputError, match="tracking"):
        detect(MemoryDisk(4096), None, detector="guess")
