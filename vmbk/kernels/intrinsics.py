"""Machine operations that Numba lacks: word loads at any address, 128-bit products, stripes.

Each operation has two forms. Its *definition*, here, is plain Python and NumPy; its *lowering*, of
the same name in `vmbk.kernels.lowerings`, is the LLVM code that kernels use. With
``NUMBA_DISABLE_JIT=1`` the definitions take over, so that kernels can be stepped through and
covered. Byte order is little-endian, as on every machine that Numba supports.

Offsets are not checked: a kernel asks only for bytes that it has.

Kernels that serve other kernels take `Bytes`, a bare address, instead of an array: Numba counts a
reference, atomically, for every array that one compiled function hands to another, and LLVM then
moves nothing across the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vmbk.kernels.jit import DISABLED, Bytes, stripe

__all__ = ["Bytes", "stripe"]

STRIPE_BYTES = 64
SCRATCH_BYTES = 4096

_LOW_HALF = 0xFFFF_FFFF


class Operation:
    """An operation for kernels; Python calls its `definition`."""

    def __init__(self, definition: Callable[..., Any]) -> None:
        self.definition = definition
        self.name = definition.__name__.removeprefix("_")


def _operation(definition: Callable[..., Any]) -> Any:
    return definition if DISABLED else Operation(definition)


def _bytes_of(data: Any) -> Any:
    """``bytes_of(data)``: where an array's bytes are. The array must outlive the result."""
    return data.view(np.uint8)


bytes_of = _operation(_bytes_of)


def _load_word(data: Any, offset: int) -> Any:
    """``load_word(data, offset)``: the 8 bytes at `offset` as uint64."""
    return np.uint64(int.from_bytes(data[offset : offset + 8].tobytes(), "little"))


load_word = _operation(_load_word)


def _load_half_word(data: Any, offset: int) -> Any:
    """``load_half_word(data, offset)``: the 4 bytes at `offset` as uint64."""
    return np.uint64(int.from_bytes(data[offset : offset + 4].tobytes(), "little"))


load_half_word = _operation(_load_half_word)


def _store_word(data: Any, offset: int, word: Any) -> None:
    """``store_word(data, offset, word)``: write a uint64 to the 8 bytes at `offset`."""
    data[offset : offset + 8] = np.frombuffer(int(word).to_bytes(8, "little"), np.uint8)


store_word = _operation(_store_word)


def _store_half_word(data: Any, offset: int, word: Any) -> None:
    """``store_half_word(data, offset, word)``: write a uint64 below 2^32 to 4 bytes at `offset`."""
    data[offset : offset + 4] = np.frombuffer(int(word).to_bytes(4, "little"), np.uint8)


store_half_word = _operation(_store_half_word)


def _scratch() -> Any:
    """``scratch()``: room for `SCRATCH_BYTES`, on the stack, until the kernel returns."""
    return np.empty(SCRATCH_BYTES, np.uint8)


scratch = _operation(_scratch)


def _high_product(a: Any, b: Any) -> Any:
    """``high_product(a, b)``: the upper half of the 128-bit product of two uint64."""
    return np.uint64(int(a) * int(b) >> 64)


high_product = _operation(_high_product)


def _fold_product(a: Any, b: Any) -> Any:
    """``fold_product(a, b)``: the 128-bit product of two uint64, its halves xored to uint64."""
    product = int(a) * int(b)
    return np.uint64((product ^ product >> 64) & 0xFFFF_FFFF_FFFF_FFFF)


fold_product = _operation(_fold_product)


def _swap_bytes(word: Any) -> Any:
    """``swap_bytes(word)``: a uint64 with its bytes in reverse."""
    return np.uint64(int.from_bytes(int(word).to_bytes(8, "little"), "big"))


swap_bytes = _operation(_swap_bytes)


def _count_ones(word: Any) -> int:
    """``count_ones(word)``: how many bits of a uint64 are set, as int64."""
    return int(word).bit_count()


count_ones = _operation(_count_ones)


def _count_trailing_zeros(word: Any) -> int:
    """``count_trailing_zeros(word)``: index of the lowest set bit of a uint64, 64 without one."""
    value = int(word)
    return (value & -value).bit_length() - 1 if value else 64


count_trailing_zeros = _operation(_count_trailing_zeros)


def _count_leading_zeros(word: Any) -> int:
    """``count_leading_zeros(word)``: bits above the highest set one of a uint64, 64 without one."""
    return 64 - int(word).bit_length()


count_leading_zeros = _operation(_count_leading_zeros)


def _load_stripe(data: Any, offset: int) -> Any:
    """``load_stripe(data, offset)``: the 64 bytes at `offset` as eight lanes."""
    return np.frombuffer(data[offset : offset + STRIPE_BYTES].tobytes(), "<u8")


load_stripe = _operation(_load_stripe)


def _accumulate_stripe(total: Any, data: Any, secret: Any) -> Any:
    """``accumulate_stripe(total, data, secret)``: step 2-1 of XXH3 for one stripe."""
    mixed = data ^ secret
    neighbours = data.reshape(4, 2)[:, ::-1].reshape(8)
    return total + neighbours + (mixed & np.uint64(_LOW_HALF)) * (mixed >> np.uint64(32))


accumulate_stripe = _operation(_accumulate_stripe)


def _scramble_stripe(total: Any, secret: Any, factor: Any) -> Any:
    """``scramble_stripe(total, secret, factor)``: step 2-2 of XXH3."""
    return (total ^ total >> np.uint64(47) ^ secret) * factor


scramble_stripe = _operation(_scramble_stripe)


def _get_lane(lanes: Any, index: int) -> Any:
    """``get_lane(lanes, index)``: one lane of a stripe as uint64."""
    return lanes[index]


get_lane = _operation(_get_lane)


def _has_crc32c_word() -> bool:
    """``has_crc32c_word()``: whether the processor that is compiled for has `crc32c_word`.

    A constant, so that LLVM drops whichever branch is not for this processor. What is asked is the
    list of features that code is generated with, not the machine at hand: with
    ``NUMBA_CPU_FEATURES`` set lower, no kernel has an instruction that is not on that list.
    """
    return False


has_crc32c_word = _operation(_has_crc32c_word)


def _crc32c_word(crc: Any, word: Any) -> Any:
    """``crc32c_word(crc, word)``: a CRC32C's state after 8 more bytes; both are uint64.

    Only where `has_crc32c_word` says so; elsewhere the result means nothing.
    """
    state = int(crc) ^ int(word)
    for _ in range(64):
        state = state >> 1 ^ 0x82F6_3B78 * (state & 1)
    return np.uint64(state)


crc32c_word = _operation(_crc32c_word)


def _prefetch(data: Any, offset: int) -> None:
    """``prefetch(data, offset)``: ask for the cache line at `offset`, which need not exist."""


prefetch = _operation(_prefetch)
