"""Synthetic content for traces that carry no bytes.

What a block holds depends on (seed, volume, block, version) and on nothing else: any block can be
made again alone, in any order, by any thread. Each block is one of four kinds. *Zero* and *random*
are what they say. *Compressible* is text of common words and numbers that zstd shrinks to about a
third. *Duplicate* is one of 1,024 random contents of the seed, so that the same content turns up at
many addresses.

Numbers come from SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
generators", 2014): its output function applied to a counter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.intrinsics import Bytes, bytes_of, load_word, store_word
from vmbk.kernels.jit import I64, OutU8, i64, kernel, u64, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

DUPLICATE_POOL = np.uint64(1024)
# Volumes are 32-bit numbers, so no block of a trace ever has this one.
_DUPLICATE_VOLUME = np.uint64(0xFFFF_FFFF_FFFF_FFFF)

_GAMMA = np.uint64(0x9E37_79B9_7F4A_7C15)
_FACTOR_1 = np.uint64(0xBF58_476D_1CE4_E5B9)
_FACTOR_2 = np.uint64(0x94D0_49BB_1331_11EB)
_N27, _N30, _N31 = np.uint64(27), np.uint64(30), np.uint64(31)
_NOTHING, _TWO, _N8 = np.uint64(0), np.uint64(2), np.uint64(8)
_N62, _BYTE = np.uint64(62), np.uint64(0xFF)
_HUNDRED = np.uint64(100)
# What the two draws of a block, its kind and its duplicate, add to its key: no counter of words
# in a block reaches them.
_KIND = np.uint64(0x6B69_6E64_6B69_6E64)
_DUPLICATE = np.uint64(0x6475_706C_6475_706C)

# 64 words of at most seven letters, each filled up with spaces to 8 bytes.
TEXT = np.frombuffer(
    b"".join(
        word.ljust(8)
        for word in (
            b"the of and to in is was for on are with as they at be this have from or had by not "
            b"word but what some we can out other were all there when up use your how said an each "
            b"she which do their time if will way about many then them write would like so these "
            b"her long make thing see him"
        ).split()
    ),
    dtype=np.uint64,
)
# A number is seven octal digits and a space: three bits of each of seven bytes, made printable.
_DIGIT_BITS = np.uint64(0x0007_0707_0707_0707)
_DIGIT_BASE = np.uint64(0x2030_3030_3030_3030)
# By the two highest bits and the six lowest of what was drawn: bits that are the same in every such
# text, and bits that are drawn. The highest two make it a number, one time in four.
_SAME = np.where(np.arange(256) % 4 == 0, _DIGIT_BASE, np.repeat(TEXT, 4))
_DRAWN = np.where(np.arange(256) % 4 == 0, _DIGIT_BITS, np.uint64(0))


@kernel(u64(u64))
def _mix(value: Any) -> Any:
    """Output function of SplitMix64."""
    value = (value ^ (value >> _N30)) * _FACTOR_1
    value = (value ^ (value >> _N27)) * _FACTOR_2
    return value ^ (value >> _N31)


@kernel(u64(u64, u64, u64, u64))
def _block_key(seed: Any, volume: Any, block: Any, version: Any) -> Any:
    """What all of a block's content is drawn from."""
    key = _mix(seed + _GAMMA)
    key = _mix((key ^ volume) + _GAMMA)
    key = _mix((key ^ block) + _GAMMA)
    return _mix((key ^ version) + _GAMMA)


@kernel(u64(u64, i64))
def _random_word(key: Any, index: int) -> Any:
    """8 bytes of random content."""
    return _mix(key + np.uint64(index + 1) * _GAMMA)


@kernel(u64(u64))
def _text_word(draw: Any) -> Any:
    """8 bytes of text: a number one time in four, else a word."""
    which = ((draw << _TWO) | (draw >> _N62)) & _BYTE
    return ((draw >> _N8) & _DRAWN[which]) | _SAME[which]


@kernel(void(Bytes, i64, i64, u64))
def _fill_zero(content: Any, start: int, length: int, key: Any) -> None:
    """Zeros; the key goes unused."""
    for i in range(length):
        content[start + i] = 0


@kernel(void(Bytes, i64, i64, u64))
def _fill_random(content: Any, start: int, length: int, key: Any) -> None:
    """Random content, 8 bytes at a time; the last word may be cut."""
    words = length >> 3
    for i in range(words):
        store_word(content, start + 8 * i, _random_word(key, i))
    word = _random_word(key, words)
    for i in range(8 * words, length):
        content[start + i] = word & _BYTE
        word >>= _N8


@kernel(void(Bytes, i64, i64, u64))
def _fill_text(content: Any, start: int, length: int, key: Any) -> None:
    """Text, 8 bytes at a time; the last word may be cut.

    What is drawn takes vectors, and looking up does not: gathers are slow where processors had to
    be mended. So the one is done after the other, while a block is in the nearest cache.
    """
    words = length >> 3
    _fill_random(content, start, length, key)
    for i in range(words):
        word = _text_word(load_word(content, start + 8 * i))
        # No text is zero, but a loop that may end early is one that LLVM leaves as it is.
        if word == _NOTHING:
            break
        store_word(content, start + 8 * i, word)
    word = _text_word(_random_word(key, words))
    for i in range(8 * words, length):
        content[start + i] = word & _BYTE
        word >>= _N8


@kernel(void(OutU8, i64, i64, i64, I64, i64, i64, i64, i64))
def fill_content(
    out: NDArray[np.uint8],
    seed: int,
    volume: int,
    first_block: int,
    versions: NDArray[np.int64],
    block_size: int,
    zero_percent: int,
    compressible_percent: int,
    duplicate_percent: int,
) -> None:
    """Make the content of consecutive blocks.

    Parameters
    ----------
    out : (n,) uint8
        Receives the content; the last block may be short.
    seed, volume, first_block : int64
        What the content depends on, none negative; `first_block` is the index of the block that
        ``out[0]`` begins.
    versions : (ceil(n / block_size),) int64
        Version of each block, none negative. Version 0 is like any other.
    block_size : int64
        Bytes of a block, at least 1.
    zero_percent, compressible_percent, duplicate_percent : int64
        Shares of blocks of each kind, together at most 100; the rest is random.
    """
    content = bytes_of(out)
    compressible = zero_percent + compressible_percent
    duplicate = compressible + duplicate_percent
    for i in range(versions.size):
        start = i * block_size
        length = min(block_size, out.size - start)
        key = _block_key(
            np.uint64(seed),
            np.uint64(volume),
            np.uint64(first_block + i),
            np.uint64(versions[i]),
        )
        kind = np.int64(_mix(key + _KIND) % _HUNDRED)
        if kind < zero_percent:
            _fill_zero(content, start, length, key)
        elif kind < compressible:
            _fill_text(content, start, length, key)
        elif kind < duplicate:
            which = _mix(key + _DUPLICATE) % DUPLICATE_POOL
            pool_key = _block_key(np.uint64(seed), _DUPLICATE_VOLUME, which, _NOTHING)
            _fill_random(content, start, length, pool_key)
        else:
            _fill_random(content, start, length, key)
