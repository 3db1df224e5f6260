"""Operations for LLVM: what `vmbk.kernels.intrinsics` defines, as the code that kernels use.

The lowerings name no instruction of any machine: LLVM turns the 512-bit stripe into whatever
vectors the processor has. Imported only where a kernel is compiled.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.cgutils import alloca_once, get_or_insert_function
from numba.extending import models, register_model

from vmbk.kernels.intrinsics import SCRATCH_BYTES

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


def _address(context: Any, builder: Any, signature: Any, arguments: Any, pointee: Any) -> Any:
    base = arguments[0]
    if isinstance(signature.args[0], types.Array):
        base = context.make_array(signature.args[0])(context, builder, base).data
    return builder.bitcast(builder.gep(base, [arguments[1]]), pointee.as_pointer())


def _each_lane(value: int) -> Any:
    return ir.Constant(_LANES, [value] * 8)


def _crc_instruction(context: Any) -> tuple[str, bool] | None:
    """Name of the target's CRC32C instruction in LLVM, and whether its state has 64 bits."""
    triple, _, features = context.codegen().magic_tuple()
    machine, enabled = triple.split("-")[0], features.split(",")
    if machine == "x86_64" and "+crc32" in enabled:
        return "llvm.x86.sse42.crc32.64.64", True
    if machine in ("aarch64", "arm64") and "+crc" in enabled:
        return "llvm.aarch64.crc32cx", False
    return None


def bytes_of(typing: Any, data: Any) -> Any:
    """Code of `intrinsics.bytes_of`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.bitcast(start, _I8.as_pointer())

    return Bytes(data), generate


def load_word(typing: Any, data: Any, offset: Any) -> Any:
    """Code of `intrinsics.load_word`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, _I64)
        return builder.load(address, align=1)

    return types.uint64(data, types.int64), generate


def load_half_word(typing: Any, data: Any, offset: Any) -> Any:
    """Code of `intrinsics.load_half_word`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, _I32)
        return builder.zext(builder.load(address, align=1), _I64)

    return types.uint64(data, types.int64), generate


def store_word(typing: Any, data: Any, offset: Any, word: Any) -> Any:
    """Code of `intrinsics.store_word`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, _I64)
        builder.store(arguments[2], address, align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.uint64), generate


def store_half_word(typing: Any, data: Any, offset: Any, word: Any) -> Any:
    """Code of `intrinsics.store_half_word`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, _I32)
        builder.store(builder.trunc(arguments[2], _I32), address, align=1)
        return context.get_dummy_value()

    return types.void(data, types.int64, types.uint64), generate


def scratch(typing: Any) -> Any:
    """Code of `intrinsics.scratch`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        room = alloca_once(builder, ir.ArrayType(_I8, SCRATCH_BYTES))
        return builder.bitcast(room, _I8.as_pointer())

    return Bytes(), generate


def high_product(typing: Any, a: Any, b: Any) -> Any:
    """Code of `intrinsics.high_product`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = (builder.zext(argument, _I128) for argument in arguments)
        high = builder.lshr(builder.mul(left, right), ir.Constant(_I128, 64))
        return builder.trunc(high, _I64)

    return types.uint64(types.uint64, types.uint64), generate


def fold_product(typing: Any, a: Any, b: Any) -> Any:
    """Code of `intrinsics.fold_product`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, right = (builder.zext(argument, _I128) for argument in arguments)
        product = builder.mul(left, right)
        high = builder.lshr(product, ir.Constant(_I128, 64))
        return builder.trunc(builder.xor(product, high), _I64)

    return types.uint64(types.uint64, types.uint64), generate


def swap_bytes(typing: Any, word: Any) -> Any:
    """Code of `intrinsics.swap_bytes`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bswap(arguments[0])

    return types.uint64(types.uint64), generate


def count_ones(typing: Any, word: Any) -> Any:
    """Code of `intrinsics.count_ones`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


def count_trailing_zeros(typing: Any, word: Any) -> Any:
    """Code of `intrinsics.count_trailing_zeros`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


def count_leading_zeros(typing: Any, word: Any) -> Any:
    """Code of `intrinsics.count_leading_zeros`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), generate


def load_stripe(typing: Any, data: Any, offset: Any) -> Any:
    """Code of `intrinsics.load_stripe`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, _LANES)
        return builder.load(address, align=1)

    return stripe(data, types.int64), generate


def accumulate_stripe(typing: Any, total: Any, data: Any, secret: Any) -> Any:
    """Code of `intrinsics.accumulate_stripe`."""

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


def scramble_stripe(typing: Any, total: Any, secret: Any, factor: Any) -> Any:
    """Code of `intrinsics.scramble_stripe`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, secret, factor = arguments
        mixed = builder.xor(builder.xor(total, builder.lshr(total, _each_lane(47))), secret)
        first = builder.insert_element(
            ir.Constant(_LANES, ir.Undefined), factor, ir.Constant(_I32, 0)
        )
        every = ir.Constant(ir.VectorType(_I32, 8), [0] * 8)
        return builder.mul(mixed, builder.shuffle_vector(first, first, every))

    return stripe(stripe, stripe, types.uint64), generate


def get_lane(typing: Any, lanes: Any, index: Any) -> Any:
    """Code of `intrinsics.get_lane`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.extract_element(arguments[0], arguments[1])

    return types.uint64(stripe, types.int64), generate


def has_crc32c_word(typing: Any) -> Any:
    """Code of `intrinsics.has_crc32c_word`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(_crc_instruction(context) is not None))

    return types.boolean(), generate


def crc32c_word(typing: Any, crc: Any, word: Any) -> Any:
    """Code of `intrinsics.crc32c_word`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        crc, word = arguments
        instruction = _crc_instruction(context)
        if instruction is None:
            return ir.Constant(_I64, 0)
        name, wide = instruction
        state = _I64 if wide else _I32
        kind = ir.FunctionType(state, [state, _I64])
        operation = get_or_insert_function(builder.module, kind, name)
        after = builder.call(operation, [crc if wide else builder.trunc(crc, _I32), word])
        return after if wide else builder.zext(after, _I64)

    return types.uint64(types.uint64, types.uint64), generate


def prefetch(typing: Any, data: Any, offset: Any) -> Any:
    """Code of `intrinsics.prefetch`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = _address(context, builder, signature, arguments, _I8)
        read, keep, data_cache = (ir.Constant(_I32, value) for value in (0, 3, 1))
        kind = ir.FunctionType(ir.VoidType(), [address.type, _I32, _I32, _I32])
        operation = builder.module.declare_intrinsic("llvm.prefetch", [address.type], kind)
        builder.call(operation, [address, read, keep, data_cache])
        return context.get_dummy_value()

    return types.void(data, types.int64), generate
