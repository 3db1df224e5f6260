"""Chunk ends and content measures: kernels against their naive twins, and golden boundaries."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import naive
from vmbk.content.chunking import Chunking
from vmbk.kernels import chunk
from vmbk.kernels import statistics as measures
from vmbk.kernels.jit import DISABLED

COMPILED = not DISABLED


@pytest.fixture(autouse=True, scope="module")
def wrapping_arithmetic() -> Iterator[None]:
    """Uncompiled, the kernels compute with NumPy scalars, which warn where they wrap around."""
    with np.errstate(over="ignore"):
        yield


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def find_ends(data: bytes, how: Chunking, last: bool = True) -> list[int]:
    before, beyond = (np.uint64(mask) for mask in how.masks())
    ends = np.full(len(data) // (how.least - 1) + 1, -1, np.int64)
    found = chunk.find_ends(
        array(data), last, how.least, how.target, how.most, before, beyond, ends
    )
    assert (ends[found:] == -1).all()
    return ends[:found].tolist()


# --- Chunks --------------------------------------------------------------------------------------


@st.composite
def contents(draw: st.DrawFn, most: int = 6000) -> bytes:
    """Bytes of few values or many, in stretches, some of them zero and some repeated."""
    parts = []
    for _ in range(draw(st.integers(0, 4))):
        size = draw(st.integers(0, most // 4))
        rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
        part = rng.integers(0, draw(st.sampled_from([1, 3, 30, 256])), size, np.uint8).tobytes()
        parts += [part] * draw(st.sampled_from([1, 1, 2]))
    return b"".join(parts)


chunkings = st.builds(
    lambda least, target, most, level: Chunking.fastcdc(
        least + target, least=least, most=least + target + most, level=level
    ),
    st.integers(64, 300), st.integers(192, 600), st.integers(0, 3000), st.integers(0, 3),
)  # fmt: skip


@given(contents(), chunkings, st.booleans())
def test_find_ends(data: bytes, how: Chunking, last: bool) -> None:
    expected = naive.find_ends(data, last, how.least, how.target, how.most, *how.masks())
    assert find_ends(data, how, last) == expected


@given(contents(), st.lists(st.integers(0, 6000), max_size=6))
def test_digest_chunks(data: bytes, cuts: list[int]) -> None:
    ends = sorted(min(cut, len(data)) for cut in cuts)
    out, is_zero = np.zeros(len(ends), np.uint64), np.full(len(ends), 9, np.uint8)
    chunk.digest_chunks(array(data), np.array(ends, np.int64), out, is_zero)
    found = list(zip(out.tolist(), is_zero.tolist(), strict=True))
    assert found == naive.digest_chunks(data, ends)


@given(contents(20_000), chunkings)
def test_chunks_tile_the_data_within_their_sizes(data: bytes, how: Chunking) -> None:
    ends = find_ends(data, how)
    assert ends == sorted(set(ends))
    assert ends[-1:] == [len(data)][: len(data)]
    sizes = np.diff(ends, prepend=0)
    assert (sizes <= how.most).all()
    # An odd least size is skipped but for its last byte.
    assert (sizes[:-1] >= how.least // 2 * 2).all()


@given(st.integers(0, 1 << 32), st.integers(0, 5000), st.binary(min_size=1, max_size=40))
def test_what_is_inserted_early_moves_later_ends_with_it(seed: int, at: int, new: bytes) -> None:
    data = np.random.default_rng(seed).bytes(300_000 if COMPILED else 160_000)
    how = Chunking.fastcdc(1024)
    ends = find_ends(data, how)
    others = find_ends(data[:at] + new + data[at:], how)
    # Before the place nothing changes, and some chunks after it both fall into step again.
    assert {end for end in ends if end < at} <= set(others)
    assert {end for end in ends if end > at + 150_000} <= {end - len(new) for end in others}


# Made by the authors' method in pyfastcdc 0.3.1, whose boundaries are those of the Rust crate
# fastcdc 3; the content is words of SplitMix64, little-endian.
GOLDEN = {
    (8192, 2048, 65536, 2): [
        10635,
        19093,
        28256,
        38433,
        43240,
        52031,
        65896,
        74592,
        83550,
        92965,
        101473,
        113229,
        115493,
        125310,
        133638,
        143782,
        156597,
        159596,
        169280,
        178487,
        188318,
        202428,
        212159,
        222638,
        231294,
        240185,
        250570,
        261184,
        263241,
        272861,
        282711,
        291202,
        299696,
        308561,
        317038,
        320764,
        326723,
        335431,
        341611,
        351650,
        362513,
        375694,
        386506,
        400000,
    ],
    (8192, 2048, 65536, 1): [
        3843,
        7246,
        10635,
        21304,
        23429,
        32058,
        43240,
        52031,
        66042,
        72024,
        86419,
        99612,
        103500,
        115493,
        121014,
        133299,
        140501,
        159179,
        169280,
        178487,
        185162,
        195833,
        206087,
        220144,
        231294,
        245668,
        261542,
        272861,
        282711,
        293514,
        301129,
        311886,
        320163,
        326723,
        330565,
        335976,
        341611,
        362513,
        375758,
        380540,
        389779,
        400000,
    ],
    (16384, 4096, 131072, 3): [
        17109,
        38433,
        58205,
        74592,
        92965,
        113229,
        120340,
        139568,
        156597,
        176009,
        195833,
        220144,
        236968,
        258215,
        263641,
        282711,
        299696,
        317038,
        330565,
        348117,
        365072,
        381850,
        400000,
    ],
    (65536, 16384, 524288, 2): [66042, 133299, 261542, 328354, 400000],
}


def splitmix_bytes(size: int) -> bytes:
    return naive.random_bytes(0, size)


@pytest.mark.parametrize("sizes", GOLDEN, ids=str)
def test_ends_are_the_golden_ones(sizes: tuple[int, int, int, int]) -> None:
    target, least, most, level = sizes
    how = Chunking.fastcdc(target, least=least, most=most, level=level)
    assert find_ends(splitmix_bytes(400_000), how) == GOLDEN[sizes]


def test_gear_is_the_golden_one() -> None:
    assert f"{int(chunk.GEAR[0]):016x}" == "3b5d3c7d207e37dc"
    assert f"{int(chunk.GEAR[1]):016x}" == "784d68ba91123086"
    assert len(np.unique(chunk.GEAR)) == 256


def test_ends_are_those_of_a_peer() -> None:
    import pyfastcdc

    rng = np.random.default_rng(0)
    for case in range(12 if COMPILED else 1):
        data = rng.integers(0, (256, 4, 2)[case % 3], 1 << 18, np.uint8)
        data[1 << 16 : (1 << 16) * (1 + case % 2)] = 0
        for target, level in ((256, 1), (1000, 2), (16384, 3), (65537, 2)):
            how = Chunking.fastcdc(target, least=max(64, target // 4), level=level)
            peer = pyfastcdc.FastCDC(
                target, min_size=how.least, max_size=how.most, normalized_chunking=level
            )
            ends = [c.offset + c.length for c in peer.cut_buf(data.tobytes())]
            assert find_ends(data.tobytes(), how) == ends


# --- What content is like ------------------------------------------------------------------------


def measure(data: bytes, block_size: int, every: int) -> list[tuple[float, float]]:
    blocks = -(-len(data) // block_size)
    # Only some terms are there, so that others are computed.
    terms = np.array([n * np.log2(n) if n else 0.0 for n in range(100)])
    counts = np.full(measures.COUNTERS, 77, np.int32)
    places = np.full(measures.PLACES, 77, np.int32)
    entropy, packed = np.empty(blocks), np.empty(blocks)
    measures.measure_content(array(data), block_size, every, terms, counts, places, entropy, packed)
    return list(zip(entropy.tolist(), packed.tolist(), strict=True))


@given(contents(), st.integers(1, 3000), st.sampled_from([1, 2]))
@example(bytes(100), 50, 1)
@example(bytes(range(256)) * 16, 4096, 1)
@example(b"abcdefgh" * 3000 + bytes(5000) + b"abcdefgh" * 3000, 53_000, 3)
@settings(max_examples=60)
def test_measure_content(data: bytes, block_size: int, every: int) -> None:
    if not COMPILED and len(data) // block_size > 30:
        return
    expected = naive.measure_content(data, block_size, every)
    assert np.allclose(measure(data, block_size, every), expected, rtol=1e-9, atol=1e-9)


def test_a_long_block_is_measured_by_some_of_its_windows() -> None:
    rng = np.random.default_rng(1)
    data = rng.integers(0, 40, 48_000, np.uint8)
    data[9000:17_000] = data[1000:9000]
    data[30_000:38_000] = 7
    for every in (1, 2, 4):
        found, expected = (
            m(data.tobytes(), 48_000, every) for m in (measure, naive.measure_content)
        )
        assert np.allclose(found, expected, rtol=1e-9)


def test_entropy_of_known_content() -> None:
    for values in (1, 2, 4, 16, 128, 256):
        data = bytes(i % values for i in range(4096))
        assert measure(data, 4096, 1)[0][0] == pytest.approx(np.log2(values), abs=1e-12)


@pytest.mark.skipif(not COMPILED, reason="a mean over many blocks")
@pytest.mark.parametrize("block_size", [4096, 65536])
def test_packed_bytes_are_near_those_of_zstd(block_size: int) -> None:
    rng = np.random.default_rng(2)
    words = [rng.bytes(int(n)) for n in rng.integers(3, 9, 300)]
    text = b" ".join(words[i] for i in rng.zipf(1.3, 60_000) % 300)
    few = rng.integers(0, 12, 1 << 18, np.uint8).tobytes()
    table = np.arange(1 << 15, dtype=np.int64) * 1000 + rng.integers(0, 50, 1 << 15)
    kinds = (bytes(1 << 18), rng.bytes(1 << 18), text, few, table.tobytes())
    codec = pa.Codec("zstd", compression_level=1)
    for data in kinds:
        whole = data[: len(data) // block_size * block_size]
        packed = np.array([p for _, p in measure(whole, block_size, 1)])
        zstd = [len(codec.compress(b, asbytes=True)) for b in naive.blocks_of(whole, block_size)]
        assert np.abs(packed - zstd).mean() < 0.04 * block_size
