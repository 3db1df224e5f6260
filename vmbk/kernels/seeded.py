"""XXH3 of blocks with any seed, in 64 and in 128 bits.

Digests under two seeds are independent of one another, as studies of chance need them. Written from
the xxHash specification, as `vmbk.kernels.xxh3` is; bit-exact with every other XXH3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.intrinsics import (
    Bytes,
    bytes_of,
    high_product,
    load_half_word,
    load_word,
    scratch,
    store_word,
    swap_bytes,
)
from vmbk.kernels.jit import U8, OutU64, i64, kernel, u64, void
from vmbk.kernels.xxh3 import (
    PRIME64_1,
    PRIME64_2,
    PRIME_MX2,
    SECRET,
    _accumulate,
    _avalanche,
    _avalanche_xxh64,
    _combine_1_to_3,
    _digest_64,
    _merge_lanes,
    _mix_16,
    _widen_seed,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

PRIME32_2 = np.uint64(0x85EBCA77)
PRIME64_4 = np.uint64(0x85EBCA77C2B2AE63)

_N1, _N2, _N3, _N13, _N19, _N28 = (np.uint64(n) for n in (1, 2, 3, 13, 19, 28))
_N32, _N35, _N54 = (np.uint64(n) for n in (32, 35, 54))
_ZERO = np.uint64(0)
_LOW_HALF = np.uint64(0xFFFF_FFFF)


@kernel(void(u64, Bytes))
def _derive_secret(seed: Any, secret: Any) -> None:
    """The secret of 192 bytes that inputs above 240 bytes have with a seed."""
    for i in range(12):
        store_word(secret, 16 * i, load_word(SECRET, 16 * i) + seed)
        store_word(secret, 16 * i + 8, load_word(SECRET, 16 * i + 8) - seed)


@kernel(void(Bytes, i64, i64, u64, Bytes, i64))
def _digest_128_0_to_16(
    data: Any, start: int, length: int, seed: Any, out: Any, place: int
) -> None:
    """Section "for small inputs" at 128 bits; the lower half is written first."""
    size = np.uint64(length)
    if length > 8:
        first, last = load_word(data, start), load_word(data, start + length - 8)
        value = first ^ last ^ ((load_word(SECRET, 32) ^ load_word(SECRET, 40)) - seed)
        last ^= (load_word(SECRET, 48) ^ load_word(SECRET, 56)) + seed
        low = value * PRIME64_1 + ((size - _N1) << _N54)
        high = high_product(value, PRIME64_1)
        high += last + (last & _LOW_HALF) * (PRIME32_2 - _N1)
        low ^= swap_bytes(high)
        high = high_product(low, PRIME64_2) + high * PRIME64_2
        low = _avalanche(low * PRIME64_2)
        high = _avalanche(high)
    elif length > 3:
        first, last = load_half_word(data, start), load_half_word(data, start + length - 4)
        value = (load_word(SECRET, 16) ^ load_word(SECRET, 24)) + _widen_seed(seed)
        value ^= first | (last << _N32)
        factor = PRIME64_1 + (size << _N2)
        low = value * factor
        high = high_product(value, factor) + (low << _N1)
        low ^= high >> _N3
        low = (low ^ (low >> _N35)) * PRIME_MX2
        low ^= low >> _N28
        high = _avalanche(high)
    elif length > 0:
        combined = _combine_1_to_3(data, start, length)
        reverse = swap_bytes(combined) >> _N32
        turned = ((reverse << _N13) | (reverse >> _N19)) & _LOW_HALF
        low = (load_half_word(SECRET, 0) ^ load_half_word(SECRET, 4)) + seed
        high = (load_half_word(SECRET, 8) ^ load_half_word(SECRET, 12)) - seed
        low, high = _avalanche_xxh64(low ^ combined), _avalanche_xxh64(high ^ turned)
    else:
        low = _avalanche_xxh64(seed ^ load_word(SECRET, 64) ^ load_word(SECRET, 72))
        high = _avalanche_xxh64(seed ^ load_word(SECRET, 80) ^ load_word(SECRET, 88))
    store_word(out, place, low)
    store_word(out, place + 8, high)


@kernel(u64(u64, Bytes, i64, i64, i64, u64))
def _mix_half(total: Any, data: Any, mixed: int, added: int, secret: int, seed: Any) -> Any:
    """One half of `mixTwoChunks`: 16 bytes through the secret, 16 of the other half as they are."""
    total += _mix_16(data, mixed, secret, seed)
    return total ^ (load_word(data, added) + load_word(data, added + 8))


@kernel(void(Bytes, i64, i64, u64, Bytes, i64))
def _digest_128_17_to_240(
    data: Any, start: int, length: int, seed: Any, out: Any, place: int
) -> None:
    """Section "for medium inputs" at 128 bits; the lower half is written first."""
    size = np.uint64(length)
    low, high = size * PRIME64_1, _ZERO
    last = start + length - 16
    if length <= 128:
        for n in range(((length - 1) >> 5) + 1):
            i = ((length - 1) >> 5) - n
            front, back = start + 16 * i, last - 16 * i
            low = _mix_half(low, data, front, back, 32 * i, seed)
            high = _mix_half(high, data, back, front, 32 * i + 16, seed)
    else:
        at = start
        for i in range(length >> 5):
            secret = 32 * i if i < 4 else 32 * (i - 4) + 3
            low = _mix_half(low, data, at, at + 16, secret, seed)
            high = _mix_half(high, data, at + 16, at, secret + 16, seed)
            if i == 3:
                low, high = _avalanche(low), _avalanche(high)
            at += 32
        low = _mix_half(low, data, last, last - 16, 103, _ZERO - seed)
        high = _mix_half(high, data, last - 16, last, 119, _ZERO - seed)
    store_word(out, place, _avalanche(low + high))
    high = low * PRIME64_1 + high * PRIME64_4 + (size - seed) * PRIME64_2
    store_word(out, place + 8, _ZERO - _avalanche(high))


@kernel(void(Bytes, i64, i64, u64, Bytes, Bytes, i64))
def _digest_128(
    data: Any, start: int, length: int, seed: Any, secret: Any, out: Any, place: int
) -> None:
    """XXH3-128 of `length` bytes from `start`, to the 16 bytes of `out` at `place`."""
    if length > 240:
        lanes, size = _accumulate(data, start, length, secret), np.uint64(length)
        store_word(out, place, _merge_lanes(lanes, secret, 11, size * PRIME64_1))
        store_word(out, place + 8, _merge_lanes(lanes, secret, 117, ~(size * PRIME64_2)))
    elif length > 16:
        _digest_128_17_to_240(data, start, length, seed, out, place)
    else:
        _digest_128_0_to_16(data, start, length, seed, out, place)


@kernel(void(U8, i64, u64, OutU64))
def xxh3_64_seeded_blocks(
    data: NDArray[np.uint8], block_size: int, seed: Any, out: NDArray[np.uint64]
) -> None:
    """XXH3-64 of each block, with any seed.

    Parameters
    ----------
    data : (n,) uint8
        The bytes; the last block may be short.
    block_size : int64
        Bytes of a block, at least 1.
    seed : uint64
        With 0, the digests are those of `xxh3_64_blocks`.
    out : (ceil(n / block_size),) uint64
        Receives one digest per block.
    """
    content, secret = bytes_of(data), scratch()
    _derive_secret(seed, secret)
    for block in range(out.size):
        start = block * block_size
        length = min(block_size, data.size - start)
        out[block] = _digest_64(content, start, length, seed, secret)


@kernel(void(U8, i64, u64, OutU64))
def xxh3_128_blocks(
    data: NDArray[np.uint8], block_size: int, seed: Any, out: NDArray[np.uint64]
) -> None:
    """XXH3-128 of each block, with any seed.

    Parameters
    ----------
    data : (n,) uint8
        The bytes; the last block may be short.
    block_size : int64
        Bytes of a block, at least 1.
    seed : uint64
        0 is what others use where they name none.
    out : (2 * ceil(n / block_size),) uint64
        Receives two words per block: the lower half of the digest, then the upper. The canonical
        16 bytes are the upper half, then the lower, each with its most significant byte first.
    """
    content, secret, digests = bytes_of(data), scratch(), bytes_of(out)
    _derive_secret(seed, secret)
    for block in range(out.size >> 1):
        start = block * block_size
        length = min(block_size, data.size - start)
        _digest_128(content, start, length, seed, secret, digests, 16 * block)
