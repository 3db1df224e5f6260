"""Every kernel against its naive twin, and golden digests that pin hashing and content."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tests import naive
from vmbk.kernels import bitmap, compare, content, extents, log, overlay
from vmbk.kernels import hash as hashing
from vmbk.kernels.bitmap import next_clear, next_set
from vmbk.kernels.intrinsics import (
    bytes_of,
    count_leading_zeros,
    count_ones,
    count_trailing_zeros,
    fold_product,
    swap_bytes,
)
from vmbk.kernels.jit import DISABLED, U8, OutU64, i64, kernel, u64, void

COMPILED = not DISABLED
compiled_only = pytest.mark.skipif(not COMPILED, reason="is about compiled code")


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@pytest.fixture(autouse=True, scope="module")
def wrapping_arithmetic() -> Iterator[None]:
    """Uncompiled, the kernels compute with NumPy scalars, which warn where they wrap around."""
    with np.errstate(over="ignore"):
        yield


def array(data: bytes) -> np.ndarray:
    """A read-only array over bytes, as a trace or a memory map gives."""
    return np.frombuffer(data, np.uint8)


def random_bytes(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def hash_blocks(data: np.ndarray, block_size: int) -> list[int]:
    out = np.zeros(ceil_div(len(data), block_size), np.uint64)
    hashing.xxh3_64_blocks(data, block_size, out)
    return out.tolist()


# --- XXH3-64 -------------------------------------------------------------------------------------

# Of the first n bytes of 0, 1, ... 250, 0, 1, ...
GOLDEN_XXH3_64 = {
    0: "2d06800538d394c2",
    1: "c44bdff4074eecdb",
    2: "d6645fc3051a9457",
    3: "5f4299fc161c9cbb",
    4: "60dab036a58211f2",
    5: "b075753a84ca0fbe",
    8: "3a1c2d7c85af88f8",
    9: "e9612598145bb9dc",
    16: "8355e3a6f61770db",
    17: "9ef341a99de37328",
    32: "3523581fe96e4c05",
    33: "e68c56ba88991e58",
    64: "6187eb9089b0ed55",
    96: "278a3e12ea046dfb",
    128: "85c6174c7ff4c46b",
    129: "ec7642b431ba3e5a",
    160: "5bea9075ec9401b8",
    239: "972b14e3c46f214b",
    240: "375a384d957fe865",
    241: "02e8cd95421c6d02",
    255: "074191baf9c49567",
    256: "44f5d90dacde463a",
    512: "5c021aac13954143",
    1023: "d3d91d80ac495685",
    1024: "e5d78bafa45b2aa5",
    1025: "e95c42288f28186e",
    2048: "25339063db861586",
    2049: "6c9600c0e506e2ae",
    4096: "7135ffa504f1bc71",
    65536: "aaae63800707a868",
    65539: "afe3c94f82eba3b7",
}


@pytest.mark.parametrize("size", GOLDEN_XXH3_64)
def test_digests_are_the_golden_ones(size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    assert f"{int(hashing.xxh3_64(array(data))):016x}" == GOLDEN_XXH3_64[size]


def test_digest_of_every_length_is_that_of_xxhash() -> None:
    data = random_bytes(4096)
    lengths = range(4097) if COMPILED else [*range(280), 1023, 1024, 1025, 1088, 2049, 4096]
    wrong = [
        n for n in lengths if hashing.xxh3_64(array(data[:n])) != xxhash.xxh3_64_intdigest(data[:n])
    ]
    assert wrong == []


@pytest.mark.parametrize("start", [0, 1, 7, 63])
@pytest.mark.parametrize("size", [64 << 10, (64 << 10) + 1, (1 << 20) - 65, 1 << 20, (1 << 20) + 3])
def test_digest_of_long_data_at_any_alignment(size: int, start: int) -> None:
    if not COMPILED:
        size //= 64
    data = array(random_bytes(size + start))[start:]
    assert hashing.xxh3_64(data) == xxhash.xxh3_64_intdigest(data)


def test_naive_digest_is_that_of_xxhash() -> None:
    data = random_bytes(3000)
    for n in [*range(300), 1023, 1024, 1025, 2048, 2049, 3000]:
        assert naive.xxh3_64(data[:n]) == xxhash.xxh3_64_intdigest(data[:n]), n


@given(st.binary(max_size=1500))
def test_xxh3_64(data: bytes) -> None:
    assert hashing.xxh3_64(array(data)) == naive.xxh3_64(data)


@given(st.binary(max_size=3000), st.integers(1, 1100))
def test_xxh3_64_blocks(data: bytes, block_size: int) -> None:
    if COMPILED or len(data) // block_size < 50:
        assert hash_blocks(array(data), block_size) == naive.xxh3_64_blocks(data, block_size)


# --- Comparison ----------------------------------------------------------------------------------


@st.composite
def pairs_of_content(draw: Callable[..., Any]) -> tuple[bytes, bytes]:
    """Two pieces of content that differ in a few bytes, or in none."""
    first = bytearray(draw(st.integers(0, 2000)))
    if draw(st.booleans()):
        first[:] = random_bytes(len(first), draw(st.integers(0, 9)))
    second = bytearray(first)
    if second:
        for at in draw(st.lists(st.integers(0, len(second) - 1), max_size=4)):
            second[at] ^= draw(st.integers(1, 255))
    return bytes(first), bytes(second)


@given(pairs_of_content(), st.integers(1, 700))
def test_compare_blocks(pair: tuple[bytes, bytes], block_size: int) -> None:
    a, b = pair
    differs = np.full(ceil_div(len(a), block_size), 9, np.uint8)
    compare.compare_blocks(array(a), array(b), block_size, differs)
    assert differs.tolist() == naive.compare_blocks(a, b, block_size)


@given(pairs_of_content(), st.integers(1, 700))
def test_zero_blocks(pair: tuple[bytes, bytes], block_size: int) -> None:
    data = pair[1]
    is_zero = np.full(ceil_div(len(data), block_size), 9, np.uint8)
    compare.zero_blocks(array(data), block_size, is_zero)
    assert is_zero.tolist() == naive.zero_blocks(data, block_size)


@pytest.mark.parametrize("at", [0, 1, 255, 256, 1023, 1024, 1030, 1034])
def test_one_byte_is_found_wherever_it_is(at: int) -> None:
    blank = bytes(1035)
    data = bytearray(blank)
    data[at] = 0x80
    flag = np.zeros(1, np.uint8)
    compare.compare_blocks(array(bytes(data)), array(blank), 4096, flag)
    assert flag[0] == 1
    compare.zero_blocks(array(bytes(data)), 4096, flag)
    assert flag[0] == 0


# --- Sets of blocks ------------------------------------------------------------------------------

run_lengths = st.one_of(st.integers(1, 3), st.integers(1, 3), st.integers(1, 150))


@st.composite
def block_sets(draw: Callable[..., Any]) -> tuple[set[int], int]:
    """Set blocks of a disk, in runs of many lengths, and how many blocks the disk has."""
    blocks: set[int] = set()
    at = draw(st.integers(0, 3))
    for gap, length in draw(st.lists(st.tuples(run_lengths, run_lengths), max_size=12)):
        blocks.update(range(at, at + length))
        at += length + gap
    return blocks, max(blocks, default=-1) + 1 + draw(st.integers(0, 20))


def every_small_set() -> Iterator[tuple[set[int], int]]:
    for n_blocks in range(10):
        for members in range(1 << n_blocks):
            yield {i for i in range(n_blocks) if members >> i & 1}, n_blocks


def with_stray_bits(blocks: set[int], n_blocks: int) -> np.ndarray:
    """A bitmap with its bits past the last block set, which is a mistake that must not spread."""
    return naive.to_bitmap(blocks | set(range(n_blocks, 8 * ceil_div(n_blocks, 8))), n_blocks)


byte_ranges = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 5000), st.integers(0, naive.ANY_GAP)),
        st.one_of(st.integers(0, 5000), st.just(0), st.integers(0, naive.ANY_GAP)),
    ),
    max_size=12,
)


@given(block_sets(), byte_ranges, st.sampled_from([1, 7, 512, 4096]))
def test_mark_ranges(
    blocks_n: tuple[set[int], int], ranges: list[tuple[int, int]], block_size: int
) -> None:
    blocks, n_blocks = blocks_n
    n_blocks = 8 * ceil_div(n_blocks, 8)
    offsets, lengths = [r[0] for r in ranges], [r[1] for r in ranges]
    expected = naive.mark_ranges(blocks, n_blocks, offsets, lengths, block_size)

    marked = naive.to_bitmap(blocks, n_blocks)
    bitmap.mark_ranges(marked, np.array(offsets, np.int64), np.array(lengths, np.int64), block_size)
    assert naive.to_blocks(marked) == expected

    marked = naive.to_bitmap(blocks, n_blocks)
    for offset, length in ranges:
        bitmap.mark_range(marked, offset, length, block_size)
        blocks = naive.mark_range(blocks, n_blocks, offset, length, block_size)
    assert naive.to_blocks(marked) == blocks == expected


def test_mark_range_at_the_edges() -> None:
    for block_size in (1, 2, 3):
        for offset in range(-9 * block_size, 8 * block_size + 2):
            for length in [*range(8 * block_size + 2), naive.ANY_GAP]:
                bits = np.zeros(1, np.uint8)
                bitmap.mark_range(bits, offset, length, block_size)
                expected = naive.mark_range(set(), 8, offset, length, block_size)
                assert naive.to_blocks(bits) == expected, (block_size, offset, length)


@given(block_sets())
def test_count_set(blocks_n: tuple[set[int], int]) -> None:
    assert bitmap.count_set(naive.to_bitmap(*blocks_n)) == naive.count_set(blocks_n[0])


@given(block_sets(), block_sets())
def test_algebra(a_n: tuple[set[int], int], b_n: tuple[set[int], int]) -> None:
    n_blocks = max(a_n[1], b_n[1])
    a, b = naive.to_bitmap(a_n[0], n_blocks), naive.to_bitmap(b_n[0], n_blocks)
    for operation, twin in (
        (bitmap.union, naive.union),
        (bitmap.intersect, naive.intersect),
        (bitmap.subtract, naive.subtract),
    ):
        expected = twin(a_n[0], b_n[0])
        for out in (np.full_like(a, 0x5A), a.copy(), b.copy()):
            operation(a, b, out)
            assert naive.to_blocks(out) == expected
        left, right = a.copy(), b.copy()
        operation(left, b, left)
        operation(a, right, right)
        assert naive.to_blocks(left) == naive.to_blocks(right) == expected


def check_coarsen(blocks: set[int], n_blocks: int, factor: int) -> None:
    out = np.full(ceil_div(ceil_div(n_blocks, factor), 8), 0x5A, np.uint8)
    bitmap.coarsen(with_stray_bits(blocks, n_blocks), n_blocks, factor, out)
    assert naive.to_blocks(out) == naive.coarsen(blocks, n_blocks, factor)


@given(block_sets(), st.one_of(st.integers(1, 20), st.sampled_from([64, 1000])))
def test_coarsen(blocks_n: tuple[set[int], int], factor: int) -> None:
    check_coarsen(*blocks_n, factor)


def check_refine(blocks: set[int], n_blocks: int, factor: int, missing: int) -> None:
    n_fine = max(n_blocks * factor - missing % factor, 0)
    out = np.full(ceil_div(n_fine, 8), 0x5A, np.uint8)
    bitmap.refine(with_stray_bits(blocks, n_blocks), n_blocks, factor, n_fine, out)
    assert naive.to_blocks(out) == naive.refine(blocks, n_blocks, factor, n_fine)


@given(block_sets(), st.integers(1, 40), st.integers(0, 39))
def test_refine(blocks_n: tuple[set[int], int], factor: int, missing: int) -> None:
    check_refine(*blocks_n, factor, missing)


def test_every_small_set_in_other_block_sizes() -> None:
    for blocks, n_blocks in every_small_set():
        for factor in (1, 2, 3, 4):
            check_coarsen(blocks, n_blocks, factor)
            check_refine(blocks, n_blocks, factor, missing=n_blocks)


@kernel(i64(U8, i64, i64))
def set_from(bits: np.ndarray, start: int, n_blocks: int) -> int:
    found: int = next_set(bytes_of(bits), start, n_blocks)
    return found


@kernel(i64(U8, i64, i64))
def clear_from(bits: np.ndarray, start: int, n_blocks: int) -> int:
    found: int = next_clear(bytes_of(bits), start, n_blocks)
    return found


@given(block_sets(), st.integers(0, 400))
def test_next_set_and_next_clear(blocks_n: tuple[set[int], int], start: int) -> None:
    blocks, n_blocks = blocks_n
    bits = naive.to_bitmap(blocks, n_blocks)
    assert set_from(bits, start, n_blocks) == naive.next_set(blocks, start, n_blocks)
    assert clear_from(bits, start, n_blocks) == naive.next_clear(blocks, start, n_blocks)


# --- Extents -------------------------------------------------------------------------------------


def check_extents(
    blocks: set[int], n_blocks: int, block_size: int, gap_blocks: int, missing: int
) -> None:
    disk_size = max(n_blocks * block_size - missing % block_size, 0)
    bits = with_stray_bits(blocks, n_blocks)
    expected = naive.bitmap_to_extents(blocks, n_blocks, block_size, gap_blocks, disk_size)
    count = extents.count_extents(bits, n_blocks, gap_blocks)
    assert count == naive.count_extents(blocks, n_blocks, gap_blocks) == len(expected)

    for room in {count, count // 2, count + 3}:
        offsets, lengths = np.full(room, -1, np.int64), np.full(room, -1, np.int64)
        found = extents.bitmap_to_extents(
            bits, n_blocks, block_size, gap_blocks, disk_size, offsets, lengths
        )
        assert found == count
        written = list(zip(offsets.tolist(), lengths.tolist(), strict=True))
        assert written == (expected + [(-1, -1)] * 3)[:room]


@given(
    block_sets(),
    st.sampled_from([1, 512, 4096]),
    st.one_of(st.integers(0, 5), st.integers(0, 300), st.just(naive.ANY_GAP)),
    st.integers(0, 4095),
)
def test_bitmap_to_extents(
    blocks_n: tuple[set[int], int], block_size: int, gap_blocks: int, missing: int
) -> None:
    check_extents(*blocks_n, block_size, gap_blocks, missing)


def test_extents_of_every_small_set() -> None:
    for blocks, n_blocks in every_small_set():
        for gap_blocks in (0, 1, 2, 3, naive.ANY_GAP):
            check_extents(blocks, n_blocks, 4, gap_blocks, missing=n_blocks)


def test_full_and_empty_bitmaps() -> None:
    for n_blocks in (1, 7, 8, 63, 64, 65, 1000):
        bits = np.full(ceil_div(n_blocks, 8), 0xFF, np.uint8)
        offsets, lengths = np.zeros(1, np.int64), np.zeros(1, np.int64)
        size = n_blocks * 4096 - 1
        assert extents.bitmap_to_extents(bits, n_blocks, 4096, 0, size, offsets, lengths) == 1
        assert (offsets[0], lengths[0]) == (0, size)
        assert extents.count_extents(np.zeros_like(bits), n_blocks, 3) == 0


@given(st.lists(st.sampled_from([0, 0, 1, 1, 2, 127, 128, 255]), max_size=100))
def test_flags_to_bitmap(flags: list[int]) -> None:
    out = np.full(ceil_div(len(flags), 8), 0x5A, np.uint8)
    extents.flags_to_bitmap(np.array(flags, np.uint8), out)
    assert naive.to_blocks(out) == naive.flags_to_bitmap(flags)


@st.composite
def extent_lists(draw: Callable[..., Any]) -> list[tuple[int, int, int]]:
    """Disjoint extents in order, some of them touching, each with a row of its own."""
    at, found = 0, []
    for row in range(draw(st.integers(0, 6))):
        at += draw(st.sampled_from([0, 0, 1, 5]))
        length = draw(st.integers(1, 12))
        found.append((at, length, row))
        at += length
    return found


@given(extent_lists(), extent_lists())
def test_overlay_extents(base: list[tuple[int, int, int]], top: list[tuple[int, int, int]]) -> None:
    top = [(offset, length, 100 + row) for offset, length, row in top]
    lists = [np.array(each, np.int64).reshape(-1, 3).T.copy() for each in (base, top)]
    out = np.full((3, len(base) + 2 * len(top)), -1, np.int64)
    count = overlay.overlay_extents(*lists[0], *lists[1], *out)
    assert list(map(tuple, out[:, :count].T.tolist())) == naive.overlay_extents(base, top)


# --- Synthetic content ---------------------------------------------------------------------------

# XXH3-64 of 64 blocks of 4 KiB from block 1000 of volume 3, seed 42, versions 0, 1, 2, 0, ...
GOLDEN_CONTENT = {
    (100, 0, 0): "2d64c035e85fb928",
    (0, 100, 0): "3279fdec6e21fbca",
    (0, 0, 100): "157211be6c61ef29",
    (0, 0, 0): "1a82202d4209ac12",
    (20, 30, 20): "40608a22bc0f71c5",
}


def make_content(
    size: int,
    shares: tuple[int, int, int],
    *,
    seed: int = 42,
    volume: int = 3,
    first_block: int = 1000,
    block_size: int = 4096,
    versions: Any = None,
) -> np.ndarray:
    out = np.full(size, 0x5A, np.uint8)
    count = ceil_div(size, block_size)
    numbers = np.arange(count, dtype=np.int64) % 3 if versions is None else np.array(versions)
    content.fill_content(out, seed, volume, first_block, numbers, block_size, *shares)
    return out


@compiled_only
@pytest.mark.parametrize("shares", GOLDEN_CONTENT)
def test_content_is_the_golden_one(shares: tuple[int, int, int]) -> None:
    digest = hashing.xxh3_64(make_content(64 * 4096, shares))
    assert f"{digest:016x}" == GOLDEN_CONTENT[shares]


@given(
    size=st.integers(0, 700),
    block_size=st.integers(1, 200),
    seed=st.integers(0, naive.ANY_GAP),
    volume=st.integers(0, (1 << 32) - 1),
    first_block=st.integers(0, 1 << 40),
    version=st.integers(0, naive.ANY_GAP),
    shares=st.sampled_from(
        [(0, 0, 0), (100, 0, 0), (0, 100, 0), (0, 0, 100), (25, 25, 25), (10, 0, 60)]
    ),
)
def test_fill_content(
    size: int,
    block_size: int,
    seed: int,
    volume: int,
    first_block: int,
    version: int,
    shares: tuple[int, int, int],
) -> None:
    versions = [(version + i) % (1 << 63) for i in range(ceil_div(size, block_size))]
    out = np.full(size, 0x5A, np.uint8)
    content.fill_content(
        out, seed, volume, first_block, np.array(versions, np.int64), block_size, *shares
    )
    assert out.tobytes() == naive.fill_content(
        size, seed, volume, first_block, versions, block_size, *shares
    )


def test_any_block_can_be_made_alone() -> None:
    shares = (20, 30, 20)
    together = make_content(40 * 512 - 5, shares, block_size=512)
    for block in (0, 1, 17, 39):
        part = together[block * 512 : (block + 1) * 512]
        alone = make_content(
            len(part), shares, first_block=1000 + block, block_size=512, versions=[block % 3]
        )
        assert np.array_equal(alone, part)


@compiled_only
def test_content_has_the_shares_that_were_asked_for() -> None:
    blocks = 20_000
    data = make_content(blocks * 512, (20, 30, 10), block_size=512)
    rows = data.reshape(blocks, 512)
    zero = (rows == 0).all(axis=1)
    text = (rows < 0x80).all(axis=1) & ~zero
    assert abs(zero.mean() - 0.20) < 0.01
    assert abs(text.mean() - 0.30) < 0.01
    digests = np.array(hash_blocks(data, 512))[~zero & ~text]
    distinct, counts = np.unique(digests, return_counts=True)
    assert abs(counts[counts > 1].sum() / blocks - 0.10) < 0.015
    assert len(distinct[counts > 1]) <= content.DUPLICATE_POOL


@compiled_only
def test_duplicates_are_found_across_volumes_and_versions() -> None:
    made = [
        set(hash_blocks(make_content(3000 * 64, (0, 0, 100), block_size=64, **key), 64))
        for key in ({"volume": 1}, {"volume": 2}, {"first_block": 9}, {"versions": [7] * 3000})
    ]
    assert len(set.union(*made)) <= content.DUPLICATE_POOL
    other_seed = make_content(3000 * 64, (0, 0, 100), block_size=64, seed=43)
    assert not set(hash_blocks(other_seed, 64)) & made[0]


@compiled_only
@pytest.mark.parametrize("size", [4 << 10, 64 << 10, 1 << 20])
def test_text_compresses_like_text(size: int) -> None:
    zstd = pa.Codec("zstd", compression_level=3)
    text = make_content(size, (0, 100, 0), block_size=64 << 10)
    assert 2 < size / zstd.compress(text).size < 4
    noise = make_content(size, (0, 0, 0), block_size=64 << 10)
    assert size / zstd.compress(noise).size < 1.01


# --- dm-log-writes -------------------------------------------------------------------------------

log_numbers = st.one_of(st.integers(0, 4), st.sampled_from([1 << 52, 1 << 53, 1 << 62, 1 << 63]))


@st.composite
def logs(draw: Callable[..., Any]) -> bytes:
    """A log of 512-byte sectors, whole or cut, its numbers sensible or not."""
    data = bytes(512)
    for _ in range(draw(st.integers(0, 5))):
        flags = draw(st.sampled_from([0, 1, 2, 4, 8, 1 << 62]))
        sectors, inline = draw(log_numbers), draw(st.sampled_from([0, 5, 480, 481, 1 << 63]))
        head = struct.pack("<4Q", draw(log_numbers), sectors, flags, inline)
        label = draw(st.sampled_from([b"", b"mark", b"mark\0rest"]))
        body = b"" if flags == 4 or sectors > 4 else bytes(512 * sectors)
        data += (head + label).ljust(512, draw(st.sampled_from([b"\0", b"x"]))) + body
    return data[: len(data) - draw(st.sampled_from([0, 0, 0, 1, 512]))]


@given(logs(), st.integers(0, 6))
def test_walk_log(data: bytes, n_entries: int) -> None:
    columns = [np.zeros(n_entries, np.int64) for _ in range(6)]
    status = np.full(1, 9, np.int64)
    count = log.walk_log(array(data), 512, n_entries, *columns, status)
    entries = [tuple(int(column[i]) for column in columns) for i in range(count)]
    assert (entries, status[0]) == naive.walk_log(data, 512, n_entries)


@given(st.binary(min_size=8, max_size=40), st.data())
def test_number_at(data: bytes, choose: st.DataObject) -> None:
    at = choose.draw(st.integers(0, len(data) - 8))
    assert log.number_at(array(data), at) == naive.number_at(data, at)


@given(
    st.binary(min_size=50, max_size=50),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 20)), max_size=6),
)
def test_gather_ranges(source: bytes, ranges: list[tuple[int, int]]) -> None:
    starts, lengths = [r[0] for r in ranges], [r[1] for r in ranges]
    out = np.zeros(sum(lengths), np.uint8)
    log.gather_ranges(array(source), np.array(starts, np.int64), np.array(lengths, np.int64), out)
    assert out.tobytes() == naive.gather_ranges(source, starts, lengths)


# --- Machine operations --------------------------------------------------------------------------


@kernel(void(u64, u64, OutU64))
def word_operations(a: Any, b: Any, out: np.ndarray) -> None:
    out[0] = fold_product(a, b)
    out[1] = swap_bytes(a)
    out[2] = count_ones(a)
    out[3] = count_trailing_zeros(a)
    out[4] = count_leading_zeros(a)


words = st.one_of(st.integers(0, naive.WORD), st.integers(0, 63).map(lambda n: 1 << n))


@given(words, words)
def test_lowered_operations_do_what_their_definitions_say(a: int, b: int) -> None:
    out = np.zeros(5, np.uint64)
    word_operations(np.uint64(a), np.uint64(b), out)
    trailing_zeros = 64 if a == 0 else len(bin(a)) - len(bin(a).rstrip("0"))
    swapped = int.from_bytes(a.to_bytes(8, "big"), "little")
    leading_zeros = len(f"{a:064b}") - len(f"{a:064b}".lstrip("0"))
    assert out.tolist() == [
        naive.folded(a, b), swapped, bin(a).count("1"), trailing_zeros, leading_zeros,
    ]  # fmt: skip


# --- Threads -------------------------------------------------------------------------------------


@compiled_only
def test_two_threads_on_halves_equal_one_on_the_whole() -> None:
    block_size, blocks = 4096, 512
    shares, versions = (10, 30, 20), np.arange(blocks, dtype=np.int64)
    halves = [(0, 200), (200, blocks)]

    def in_threads(work: Callable[[int, int], None]) -> None:
        threads = [threading.Thread(target=work, args=half) for half in halves]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    whole, parts = np.zeros(blocks * block_size, np.uint8), np.ones(blocks * block_size, np.uint8)
    content.fill_content(whole, 1, 2, 3, versions, block_size, *shares)
    in_threads(
        lambda first, stop: content.fill_content(
            parts[first * block_size : stop * block_size],
            *(1, 2, 3 + first),
            versions[first:stop],
            block_size,
            *shares,
        )
    )
    assert np.array_equal(whole, parts)

    digests = np.zeros(blocks, np.uint64)
    in_threads(
        lambda first, stop: hashing.xxh3_64_blocks(
            whole[first * block_size : stop * block_size], block_size, digests[first:stop]
        )
    )
    assert digests.tolist() == hash_blocks(whole, block_size)
