"""Machine operations that Numba lacks: word loads at any address, 128-bit products, stripes.

Each operation has two forms. Its *definition* is plain Python and NumPy; its *lowering* is the
LLVM code that kernels use. With ``NUMBA_DISABLE_JIT=1`` the definitions take over, so that kernels
can be stepped through and covered. The lowerings name no instruction of any machine: LLVM turns
the 512-bit stripe into whatever vectors the processor has. Byte order is little-endian, as on
every machine that Numba supports.

Offsets are not checked: a kernel asks only for bytes that it has.

Kernels that serve other kernels take `Bytes`, a bare address, instead of an array: Numba counts a
reference, atomically, for every array that one compiled function hands to another, and LLVM then
moves nothing across the call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

STRIPE_BYTES = 64

_I8, _I32, _I64, _I128 = (ir.IntType(bits) for bits in (8, 32, 64, 128))
_LANES = ir.VectorType(_I64, 8)
_LOW_HALF = 0xFFFF_FFFF


class StripeType(types.Type):  # type: ignore[misc]
    """Numba type of a stripe: eight 64-bit lanes in one vector value."""

    def __init__(self) -> None:
        super().__init__(name="Stripe")


stripe = StripeType()
Bytes = types.CPointer(types.uint8)


@register_model(StripeType)
class _StripeModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, _LANES)


def _lowers(definition: Callable[..., Any]) -> Callable[[Callable[..., Any]], Any]:
    """Make a lowering the compiled form of a definition."""

    def decorate(lowering: Callable[..., Any]) -> Any:
        if numba.config.DISABLE_JIT:
            return definition
        operation = intrinsic(lowering)
        operation.definition = definition
        return operation

    return decorate


def _address(context: Any, builder: Any, signature: Any, arguments: Any, pointee: Any) -> Any:
    base = arguments[0]
    if isinstance(signature.args[0], types.Array):
        base = context.make_array(signature.args[0])(context, builder, base).data
    return builder.bitcast(builder.gep(base, [arguments[1]]), pointee.as_pointer())


def _each_lane(value: int) -> Any:
    return ir.Constant(_LANES, [value] * 8)


def _bytes_of(data: Any) -> Any:
    return data.view(np.uint8)


@_lowers(_bytes_of)
def bytes_of(typing: Any, data: Any) -> Any:
    """``bytes_of(data)``: where an array's bytes are. The array must outlive the result."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.bitcast(start, _I8.as_pointer())

    return Bytes(data), generate


def _load_word(data: Any, offset: int) -> Any:
    return np.uint64(int.from_bytes(data[offset : offset + 8].tobytes(), "little"))


@_lowers(_load_word)
def load_word(typing: Any, data: Any, offset: Any) -> Any:
    """``load_word(data, offset)``: the 8 bytes at `offset` as uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, _I64)
        return builder.load(address, align=1)

    return types.uint64(data, types.int64), generate


def _load_half_word(data: Any, offset: int) -> Any:
    return np.uint64(int.from_bytes(data[offset : offset + 4].tobytes(), "little"))


@_lowers(_load_half_word)
def load_half_word(typing: Any, data: Any, offset: Any) -> Any:
    """``load_half_word(data, offset)``: the 4 bytes at `offset` as uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, _I32)
        return builder.zext(builder.load(address, align=1), _I64)

    return types.uint64(data, types.int64), generate


def _store_word(data: Any, offset: int, word: Any) -> None:
    data[offset : offset + 8] = np.frombuffer(int(word).to_bytes(8, "little"), np.uint8)


@_lowers(_store_word)
def store_word(typing: Any, data: Any, offset: Any, word: Any) -> Any:
    """``store_word(data, offset, word)``: write a uint64 to the 8 bytes at `offset`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, _I64)
        builder.store(arguments[2], address, align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.uint64), generate


def _fold_product(a: Any, b: Any) -> Any:
    product = int(a) * int(b)
    return np.uint64((product ^ product >> 64) & 0xFFFF_FFFF_FFFF_FFFF)


@_lowers(_fold_product)
def fold_product(typing: Any, a: Any, b: Any) -> Any:
    """``fold_product(a, b)``: the 128-bit product of two uint64, its halves xored to uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = (builder.zext(argument, _I128) for argument in arguments)
        product = builder.mul(left, right)
        high = builder.lshr(product, ir.Constant(_I128, 64))
        return builder.trunc(builder.xor(product, high), _I64)

    return types.uint64(types.uint64, types.uint64), generate


def _swap_bytes(word: Any) -> Any:
    return np.uint64(int.from_bytes(int(word).to_bytes(8, "little"), "big"))


@_lowers(_swap_bytes)
def swap_bytes(typing: Any, word: Any) -> Any:
    """``swap_bytes(word)``: a uint64 with its bytes in reverse."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bswap(arguments[0])

    return types.uint64(types.uint64), generate


def _count_ones(word: Any) -> int:
    return int(word).bit_count()


@_lowers(_count_ones)
def count_ones(typing: Any, word: Any) -> Any:
    """``count_ones(word)``: how many bits of a uint64 are set, as int64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


def _count_trailing_zeros(word: Any) -> int:
    value = int(word)
    return (value & -value).bit_length() - 1 if value else 64


@_lowers(_count_trailing_zeros)
def count_trailing_zeros(typing: Any, word: Any) -> Any:
    """``count_trailing_zeros(word)``: index of the lowest set bit of a uint64, 64 without one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


def _count_leading_zeros(word: Any) -> int:
    return 64 - int(word).bit_length()


@_lowers(_count_leading_zeros)
def count_leading_zeros(typing: Any, word: Any) -> Any:
    """``count_leading_zeros(word)``: bits above the highest set one of a uint64, 64 without one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


def _load_stripe(data: Any, offset: int) -> Any:
    return np.frombuffer(data[offset : offset + STRIPE_BYTES].tobytes(), "<u8")


@_lowers(_load_stripe)
def load_stripe(typing: Any, data: Any, offset: Any) -> Any:
    """``load_stripe(data, offset)``: the 64 bytes at `offset` as eight lanes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, _LANES)
        return builder.load(address, align=1)

    return stripe(data, types.int64), generate


def _accumulate_stripe(total: Any, data: Any, secret: Any) -> Any:
    mixed = data ^ secret
    neighbours = data.reshape(4, 2)[:, ::-1].reshape(8)
    return total + neighbours + (mixed & np.uint64(_LOW_HALF)) * (mixed >> np.uint64(32))


@_lowers(_accumulate_stripe)
def accumulate_stripe(typing: Any, total: Any, data: Any, secret: Any) -> Any:
    """``accumulate_stripe(total, data, secret)``: step 2-1 of XXH3 for one stripe."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, data, secret = arguments
        mixed = builder.xor(data, secret)
        # This mask and this shift are what LLVM recognises as one 32 x 32 -> 64 bit multiply.
        low = builder.and_(mixed, _each_lane(_LOW_HALF))
        high = builder.lshr(mixed, _each_lane(32))
        exchange = ir.Constant(ir.VectorType(_I32, 8), [1, 0, 3, 2, 5, 4, 7, 6])
        neighbours = builder.shuffle_vector(data, data, exchange)
        # The total comes last: stripe after stripe then waits for one addition only.
        return builder.add(total, builder.add(neighbours, builder.mul(low, high)))

    return stripe(stripe, stripe, stripe), generate


def _scramble_stripe(total: Any, secret: Any, factor: Any) -> Any:
    return (total ^ total >> np.uint64(47) ^ secret) * factor


@_lowers(_scramble_stripe)
def scramble_stripe(typing: Any, total: Any, secret: Any, factor: Any) -> Any:
    """``scramble_stripe(total, secret, factor)``: step 2-2 of XXH3."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, secret, factor = arguments
        mixed = builder.xor(builder.xor(total, builder.lshr(total, _each_lane(47))), secret)
        first = builder.insert_element(
            ir.Constant(_LANES, ir.Undefined), factor, ir.Constant(_I32, 0)
        )
        every = ir.Constant(ir.VectorType(_I32, 8), [0] * 8)
        return builder.mul(mixed, builder.shuffle_vector(first, first, every))

    return stripe(stripe, stripe, types.uint64), generate


def _get_lane(lanes: Any, index: int) -> Any:
    return lanes[index]


@_lowers(_get_lane)
def get_lane(typing: Any, lanes: Any, index: Any) -> Any:
    """``get_lane(lanes, index)``: one lane of a stripe as uint64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.extract_element(arguments[0], arguments[1])

    return types.uint64(stripe, types.int64), generate


def _prefetch(data: Any, offset: int) -> None:
    pass


@_lowers(_prefetch)
def prefetch(typing: Any, data: Any, offset: Any) -> Any:
    """``prefetch(data, offset)``: ask for the cache line at `offset`, which need not exist."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, _I8)
        read, keep, data_cache = (ir.Constant(_I32, value) for value in (0, 3, 1))
        kind = ir.FunctionType(ir.VoidType(), [address.type, _I32, _I32, _I32])
        operation = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(operation, [address, read, keep, data_cache])
        return context.get_dummy_value()

    return types.void(data, types.int64), generate
