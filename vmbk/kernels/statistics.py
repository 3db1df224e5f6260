"""What content is like: its entropy, and how far it would shrink.

A block is read for its zeros and for how often each byte occurs. Those of random bytes stray from
evenness by a known law; a block that strays no further is taken as random, and nothing more is
looked for in it. Any other is gone through much as zstd's fast level does: where the last place
with the same five bytes is of the same block, as many bytes as agree are a match; what lies between
matches are literals; and the bits are counted that an entropy coder needs for both. What is left
out is the coding, and, where asked for, most of the block: one window of every so many is gone
through and stands for the others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.compare import _range_is_zero
from vmbk.kernels.intrinsics import (
    Bytes,
    bytes_of,
    count_leading_zeros,
    count_trailing_zeros,
    load_word,
)
from vmbk.kernels.jit import F64, U8, OutF64, OutI32, f64, i64, kernel, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

WINDOW = 4096

# Counters. How often a block's bytes occur is counted in eight rows: equal bytes often follow each
# other, and to count one up waits for the last time that it was.
_ROWS = 8
_LITERALS = _ROWS * 256
_RUNS = _LITERALS + 256
_LENGTHS = _RUNS + 64
_DISTANCES = _LENGTHS + 64
COUNTERS = _DISTANCES + 64

# Places, found by a hash of the five bytes there.
PLACES = 1 << 13
_FIVE_BYTES = np.uint64(24)
_HASH_FACTOR = np.uint64(889_523_592_379)
_HASH_SHIFT = np.uint64(64 - 13)
_LEAST = 5
_LEAST_AGAIN = 4  # bytes of a match at the distance of the one before it
_PATIENCE = 7  # the search goes faster by a byte for every 2^7 bytes without a match

# 2 ln 2 times the bytes of a block times the bits that their entropy lacks of 8 is distributed as
# chi-squared with 255 degrees of freedom if they are random: its mean, and six of its deviations.
_TWICE_LN_2 = 2 * math.log(2)
_RANDOM_UP_TO = 255 + 6 * math.sqrt(2 * 255)

# Bytes of zstd's own: of a frame with one block, of the code of each kind of literal, of that of
# each code of a match, and of a frame of nothing but zeros.
_FRAME, _LITERAL_CODE, _MATCH_CODE, _ALL_ZERO = 12, 0.4, 0.6, 17
_FEW_LITERALS = 63  # are not coded

_NOTHING, _BYTE, _LOW_HALF = (np.uint64(n) for n in (0, 0xFF, 0xFFFF_FFFF))
_N8, _N16, _N24, _N32, _N40, _N48, _N56 = (np.uint64(8 * n) for n in range(1, 8))


@kernel(void(Bytes, i64, i64, OutI32))
def _count_bytes(data: Any, start: int, stop: int, counts: Any) -> None:
    """How often each byte occurs, into the first 256 counters."""
    for i in range(_LITERALS):
        counts[i] = 0
    at = start
    while at + 8 <= stop:
        word = load_word(data, at)
        counts[np.int64(word & _BYTE)] += 1
        counts[256 + np.int64((word >> _N8) & _BYTE)] += 1
        counts[512 + np.int64((word >> _N16) & _BYTE)] += 1
        counts[768 + np.int64((word >> _N24) & _BYTE)] += 1
        counts[1024 + np.int64((word >> _N32) & _BYTE)] += 1
        counts[1280 + np.int64((word >> _N40) & _BYTE)] += 1
        counts[1536 + np.int64((word >> _N48) & _BYTE)] += 1
        counts[1792 + np.int64(word >> _N56)] += 1
        at += 8
    for i in range(at, stop):
        counts[np.int64(data[i])] += 1
    for value in range(256):
        for row in range(1, _ROWS):
            counts[value] += counts[256 * row + value]


@kernel(f64(i64, F64))
def _n_log_n(n: int, terms: Any) -> float:
    """n log2 n, looked up where it can be."""
    if n < terms.size:
        return terms[n]  # type: ignore[no-any-return]
    return n * math.log2(n)


@kernel(f64(OutI32, i64, i64, i64, F64))
def _coded_bits(counts: Any, first: int, last: int, total: int, terms: Any) -> float:
    """Bits of `total` symbols of which those from `first` to `last` occurred so often."""
    bits = _n_log_n(total, terms)
    for i in range(first, last):
        bits -= _n_log_n(counts[i], terms)
    return bits


@kernel(i64(Bytes, i64, i64, i64))
def _match_length(data: Any, at: int, earlier: int, stop: int) -> int:
    """How many bytes from `at`, before `stop`, are those from `earlier`."""
    begin = at
    while at + 8 <= stop:
        differs = load_word(data, at) ^ load_word(data, earlier)
        if differs != _NOTHING:
            same: int = at - begin + (count_trailing_zeros(differs) >> 3)
            return same
        at += 8
        earlier += 8
    while at < stop and data[at] == data[earlier]:
        at += 1
        earlier += 1
    return at - begin


@kernel(i64(i64, i64, i64, OutI32))
def _count_code(first: int, value: int, plain: int, counts: Any) -> int:
    """Count the code of a number: its own if below `plain`, else that of its highest bit.

    Returns how many bits follow the code.
    """
    if value < plain:
        counts[first + value] += 1
        return 0
    high: int = 63 - count_leading_zeros(np.uint64(value))
    # Above the plain codes: `plain` is a power of two, of which this takes off the logarithm.
    counts[first + plain + high - (63 - count_leading_zeros(np.uint64(plain)))] += 1
    return high


@kernel(i64(Bytes, i64, i64, i64, i64, OutI32))
def _count_match(data: Any, anchor: int, at: int, length: int, distance: int, counts: Any) -> int:
    """Count the literals from `anchor` and the match after them; a distance of 0 is the last one.

    Returns how many bits follow the codes.
    """
    for i in range(anchor, at):
        counts[_LITERALS + np.int64(data[i])] += 1
    bits = _count_code(_RUNS, at - anchor, 16, counts)
    bits += _count_code(_LENGTHS, length - 3, 32, counts)
    if distance:
        bits += _count_code(_DISTANCES, distance + 3, 1, counts)
    else:
        counts[_DISTANCES] += 1
    return bits


@kernel(i64(Bytes, i64, i64, i64, i64, OutI32, OutI32))
def _count_window(
    data: Any, begin: int, start: int, stop: int, repeated: int, counts: Any, places: Any
) -> int:
    """Count literals and matches from `start` to `stop` of a block that begins at `begin`.

    Returns how many bits follow the codes.
    """
    bits = 0
    anchor = start
    at = start
    while at + 8 < stop:
        word = load_word(data, at)
        slot = np.int64(((word << _FIVE_BYTES) * _HASH_FACTOR) >> _HASH_SHIFT)
        earlier: int = np.int64(places[slot])  # type: ignore[assignment]
        places[slot] = at
        ahead = at + 1
        if (
            repeated
            and ahead - repeated >= begin
            and (load_word(data, ahead) ^ load_word(data, ahead - repeated)) & _LOW_HALF == _NOTHING
        ):
            known = ahead + _LEAST_AGAIN
            length = _LEAST_AGAIN + _match_length(data, known, known - repeated, stop)
            bits += _count_match(data, anchor, ahead, length, 0, counts)
            at = ahead + length
            anchor = at
        elif begin <= earlier < at and (load_word(data, earlier) ^ word) << _FIVE_BYTES == _NOTHING:
            length = _LEAST + _match_length(data, at + _LEAST, earlier + _LEAST, stop)
            while at > anchor and earlier > begin and data[at - 1] == data[earlier - 1]:
                at -= 1
                earlier -= 1
                length += 1
            bits += _count_match(data, anchor, at, length, at - earlier, counts)
            repeated = at - earlier
            at += length
            anchor = at
        else:
            at += 1 + ((at - anchor) >> _PATIENCE)
    for i in range(anchor, stop):
        counts[_LITERALS + np.int64(data[i])] += 1
    return bits


@kernel(f64(Bytes, i64, i64, i64, F64, OutI32, OutI32))
def _packed_bytes(
    data: Any, start: int, stop: int, every: int, terms: Any, counts: Any, places: Any
) -> float:
    """Bytes to which zstd's fast level would shrink a block, about."""
    for i in range(_LITERALS, COUNTERS):
        counts[i] = 0
    step = every * WINDOW if every > 1 else stop - start
    bits = 0.0
    seen = 0
    for begin in range(start, stop, step):
        end = min(begin + WINDOW, stop) if every > 1 else stop
        bits += _count_window(data, start, begin, end, 0, counts, places)
        seen += end - begin
    literals, kinds = 0, 0
    for i in range(_LITERALS, _RUNS):
        literals += counts[i]
        kinds += 1 if counts[i] else 0
    packed: float = np.float64(literals)
    if literals > _FEW_LITERALS:
        coded = _coded_bits(counts, _LITERALS, _RUNS, literals, terms)
        packed = min(packed, max(coded, packed) / 8 + _LITERAL_CODE * kinds)
    matches, kinds = 0, 0
    for i in range(_RUNS, _LENGTHS):
        matches += counts[i]
    for i in range(_RUNS, COUNTERS):
        kinds += 1 if counts[i] else 0
    bits += _coded_bits(counts, _RUNS, _LENGTHS, matches, terms)
    bits += _coded_bits(counts, _LENGTHS, _DISTANCES, matches, terms)
    bits += _coded_bits(counts, _DISTANCES, COUNTERS, matches, terms)
    # Few matches are written in codes that are agreed upon.
    packed += bits / 8 + min(_MATCH_CODE * kinds, matches / 4)
    size = stop - start
    return min(packed * size / seen, np.float64(size)) + _FRAME


@kernel(void(U8, i64, i64, F64, OutI32, OutI32, OutF64, OutF64))
def measure_content(
    data: NDArray[np.uint8],
    block_size: int,
    every: int,
    terms: NDArray[np.float64],
    counts: NDArray[np.int32],
    places: NDArray[np.int32],
    entropy: NDArray[np.float64],
    packed: NDArray[np.float64],
) -> None:
    """Entropy and compressibility of each block.

    Parameters
    ----------
    data : (n,) uint8
        The content, less than 2 GiB; the last block may be short.
    block_size : int64
        Bytes of a block, at least 1.
    every : int64
        Of how many windows of 4 KiB one is gone through for matches; 1 for the whole block.
    terms : (m,) float64
        n log2 n for n from 0, as many as there are.
    counts, places : (`COUNTERS`,), (`PLACES`,) int32
        Room to work in, of whatever content.
    entropy : (ceil(n / block_size),) float64
        Receives the Shannon entropy of each block's bytes, in bits a byte.
    packed : (ceil(n / block_size),) float64
        Receives how many bytes zstd's level 1 would make of each block, about.
    """
    content = bytes_of(data)
    # What was remembered of other data must not be taken for this one's.
    for i in range(PLACES):
        places[i] = -1
    for block in range(entropy.size):
        start = block * block_size
        stop = min(start + block_size, data.size)
        size = stop - start
        if _range_is_zero(content, start, stop):
            entropy[block] = 0.0
            packed[block] = min(_ALL_ZERO, size + _FRAME)
            continue
        _count_bytes(content, start, stop, counts)
        bits = _coded_bits(counts, 0, 256, size, terms)
        entropy[block] = max(bits, 0.0) / size
        if _TWICE_LN_2 * (8.0 * size - bits) < _RANDOM_UP_TO:
            packed[block] = np.float64(size + _FRAME)
        else:
            packed[block] = _packed_bytes(content, start, stop, every, terms, counts, places)
