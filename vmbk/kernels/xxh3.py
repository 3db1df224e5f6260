"""XXH3-64 of one range of bytes, and the steps that XXH3-128 shares with it.

Written from the xxHash specification (xxhash_spec.md), section "XXH3 Algorithm Overview" and the
three "XXH3 Algorithm Description" sections that follow it. Bit-exact with every other XXH3.

Every digest takes a seed and, for inputs above 240 bytes, the secret derived from it. Where the
seed is the constant 0, LLVM folds both away.

All arithmetic is on uint64 and all indices are int64. The two never meet in one expression: Numba,
like NumPy, makes a float64 of their sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vmbk.kernels.intrinsics import (
    Bytes,
    accumulate_stripe,
    fold_product,
    get_lane,
    load_half_word,
    load_stripe,
    load_word,
    prefetch,
    scramble_stripe,
    stripe,
    swap_bytes,
)
from vmbk.kernels.jit import i64, kernel, u64

SECRET = np.frombuffer(
    bytes.fromhex(
        "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
        "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
        "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
        "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
        "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
        "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
    ),
    dtype=np.uint8,
)

PRIME32_1 = np.uint64(0x9E3779B1)
PRIME64_1 = np.uint64(0x9E3779B185EBCA87)
PRIME64_2 = np.uint64(0xC2B2AE3D27D4EB4F)
PRIME64_3 = np.uint64(0x165667B19E3779F9)
PRIME_MX1 = np.uint64(0x165667919E3779F9)
PRIME_MX2 = np.uint64(0x9FB21C651E98DF25)
INITIAL = np.array(
    [
        0xC2B2AE3D,
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x85EBCA77,
        0x27D4EB2F165667C5,
        0x9E3779B1,
    ],
    dtype=np.uint64,
).view(np.uint8)

# A round is 16 stripes of 64 bytes: as often as the secret's 128 bytes before its last stripe
# can move on by 8.
ROUND_STRIPES = 16

# Bytes to ask for ahead of the stripe at hand. Blocks lie side by side, so this reaches into the
# next block while the digest of this one is still being folded; reading past the data is harmless.
AHEAD = 2048

# Shift counts are typed: a plain 32 would be an int64 beside a uint64.
_N8, _N15, _N16, _N24, _N28, _N29 = (np.uint64(n) for n in (8, 15, 16, 24, 28, 29))
_N32, _N33, _N35, _N37, _N40, _N49 = (np.uint64(n) for n in (32, 33, 35, 37, 40, 49))


@kernel(u64(u64))
def _avalanche(value: Any) -> Any:
    """Last mixing step of all but the shortest inputs (`avalanche` in the specification)."""
    value = (value ^ (value >> _N37)) * PRIME_MX1
    return value ^ (value >> _N32)


@kernel(u64(u64))
def _avalanche_xxh64(value: Any) -> Any:
    """Last mixing step of inputs below 4 bytes (`avalanche_XXH64` in the specification)."""
    value = (value ^ (value >> _N33)) * PRIME64_2
    value = (value ^ (value >> _N29)) * PRIME64_3
    return value ^ (value >> _N32)


@kernel(u64(Bytes, i64, i64))
def _combine_1_to_3(data: Any, start: int, length: int) -> Any:
    """The bytes of an input of 1 to 3, and how many there are, in 32 bits."""
    first, last = np.uint64(data[start]), np.uint64(data[start + length - 1])
    middle = np.uint64(data[start + (length >> 1)])
    return last | (np.uint64(length) << _N8) | (first << _N16) | (middle << _N24)


@kernel(u64(u64))
def _widen_seed(seed: Any) -> Any:
    """The seed with its lower half, bytes reversed, over its upper half (`modifiedSeed`)."""
    return seed ^ ((swap_bytes(seed) >> _N32) << _N32)


@kernel(u64(Bytes, i64, i64, u64))
def _digest_0_to_16(data: Any, start: int, length: int, seed: Any) -> Any:
    """Section "for small inputs": 0, 1 to 3, 4 to 8 and 9 to 16 bytes."""
    size = np.uint64(length)
    if length > 8:
        low = ((load_word(SECRET, 24) ^ load_word(SECRET, 32)) + seed) ^ load_word(data, start)
        high = (load_word(SECRET, 40) ^ load_word(SECRET, 48)) - seed
        high ^= load_word(data, start + length - 8)
        return _avalanche(size + swap_bytes(low) + high + fold_product(low, high))
    if length > 3:
        first, last = load_half_word(data, start), load_half_word(data, start + length - 4)
        value = (load_word(SECRET, 8) ^ load_word(SECRET, 16)) - _widen_seed(seed)
        value ^= last | (first << _N32)
        turned = ((value << _N49) | (value >> _N15)) ^ ((value << _N24) | (value >> _N40))
        value = (value ^ turned) * PRIME_MX2
        value = (value ^ ((value >> _N35) + size)) * PRIME_MX2
        return value ^ (value >> _N28)
    if length > 0:
        key = (load_half_word(SECRET, 0) ^ load_half_word(SECRET, 4)) + seed
        return _avalanche_xxh64(key ^ _combine_1_to_3(data, start, length))
    return _avalanche_xxh64(seed ^ load_word(SECRET, 56) ^ load_word(SECRET, 64))


@kernel(u64(Bytes, i64, i64, u64))
def _mix_16(data: Any, offset: int, secret: int, seed: Any) -> Any:
    """16 bytes of data with 16 of the secret (`mixStep` in the specification)."""
    return fold_product(
        load_word(data, offset) ^ (load_word(SECRET, secret) + seed),
        load_word(data, offset + 8) ^ (load_word(SECRET, secret + 8) - seed),
    )


@kernel(u64(Bytes, i64, i64, u64))
def _digest_17_to_240(data: Any, start: int, length: int, seed: Any) -> Any:
    """Section "for medium inputs": 17 to 128 bytes from both ends, 129 to 240 in order."""
    total = np.uint64(length) * PRIME64_1
    last = start + length - 16
    if length <= 128:
        for i in range(((length - 1) >> 5) + 1):
            total += _mix_16(data, start + 16 * i, 32 * i, seed)
            total += _mix_16(data, last - 16 * i, 32 * i + 16, seed)
        return _avalanche(total)
    for i in range(8):
        total += _mix_16(data, start + 16 * i, 16 * i, seed)
    total = _avalanche(total)
    for i in range(8, length >> 4):
        total += _mix_16(data, start + 16 * i, 16 * (i - 8) + 3, seed)
    return _avalanche(total + _mix_16(data, last, 119, seed))


@kernel(stripe(Bytes, i64, i64, Bytes))
def _accumulate(data: Any, start: int, length: int, secret: Any) -> Any:
    """Section "for large inputs": the lanes that 241 bytes and more come to."""
    total = load_stripe(INITIAL, 0)
    last_secret = load_stripe(secret, 128)
    end = start + length
    at = start
    # The last round is never a whole one, even where the input would fill it.
    for _ in range((length - 1) >> 10):
        for i in range(ROUND_STRIPES):
            prefetch(data, at + 64 * i + AHEAD)
            total = accumulate_stripe(
                total, load_stripe(data, at + 64 * i), load_stripe(secret, 8 * i)
            )
        total = scramble_stripe(total, last_secret, PRIME32_1)
        at += 64 * ROUND_STRIPES
    for i in range((end - at - 1) >> 6):
        prefetch(data, at + 64 * i + AHEAD)
        total = accumulate_stripe(total, load_stripe(data, at + 64 * i), load_stripe(secret, 8 * i))
    return accumulate_stripe(total, load_stripe(data, end - 64), load_stripe(secret, 121))


@kernel(u64(stripe, Bytes, i64, u64))
def _merge_lanes(lanes: Any, secret: Any, at: int, result: Any) -> Any:
    """Eight lanes to one word (`finalMerge` in the specification)."""
    for i in range(4):
        result += fold_product(
            get_lane(lanes, 2 * i) ^ load_word(secret, at + 16 * i),
            get_lane(lanes, 2 * i + 1) ^ load_word(secret, at + 8 + 16 * i),
        )
    return _avalanche(result)


@kernel(u64(Bytes, i64, i64, u64, Bytes))
def _digest_64(data: Any, start: int, length: int, seed: Any, secret: Any) -> Any:
    """XXH3-64 of `length` bytes from `start`; `secret` is the seed's."""
    if length > 240:
        lanes = _accumulate(data, start, length, secret)
        return _merge_lanes(lanes, secret, 11, np.uint64(length) * PRIME64_1)
    if length > 16:
        return _digest_17_to_240(data, start, length, seed)
    return _digest_0_to_16(data, start, length, seed)
