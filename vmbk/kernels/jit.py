"""What a kernel is: a function of arrays and numbers, compiled once a machine.

`kernel` wraps a function and compiles nothing. The first call looks for the machine code in a cache
on disk and loads it, which takes milliseconds and needs no compiler: Numba, whose start alone
takes longer than most commands, is loaded only where the code is not there yet. What was decided
here, and why:

- ``nogil``: parallelism comes from Python threads over ranges of blocks. That needs no OpenMP
  (which hangs in a forked child) and compiles in half the time of ``parallel=True``.
- One signature a kernel, with inputs as read-only arrays (`U8`, `I64`, ...). Those accept writable
  arrays as well, so Arrow buffers and NumPy arrays share one compiled version.
- No fast-math: digests and counts are exact.

``VMBK_KERNEL_CACHE=0`` turns the cache off; ``NUMBA_DISABLE_JIT=1`` leaves all functions as they
are written, to be stepped through and covered.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from types import FunctionType
from typing import Any, Final, TypeVar, cast

import numpy as np

__all__ = [
    "F64",
    "I32",
    "I64",
    "U8",
    "U32",
    "U64",
    "Bytes",
    "Kernel",
    "OutF64",
    "OutI32",
    "OutI64",
    "OutU8",
    "OutU32",
    "OutU64",
    "b1",
    "f64",
    "i64",
    "kernel",
    "stripe",
    "u8",
    "u64",
    "void",
]

F = TypeVar("F", bound=Callable[..., Any])

FLAGS: Final = {
    "nogil": True,
    "error_model": "numpy",  # no check for a division by zero
    "no_cpython_wrapper": True,  # the code is called by its address
    "no_cfunc_wrapper": True,
}
"""The compiler's flags."""

DISABLED: Final = os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")
"""Whether functions stay as they are written."""


@dataclass(frozen=True)
class Scalar:
    """A number, or nothing.

    Called with types of parameters it makes a `Signature`; in a kernel, with a number, it converts.
    """

    name: str

    def __call__(self, *parameters: Any) -> Any:
        if len(parameters) == 1 and not isinstance(parameters[0], Scalar | Array):
            return np.dtype(self.name).type(parameters[0])
        return Signature(self, parameters)


@dataclass(frozen=True)
class Array:
    """A contiguous array of one dimension."""

    name: str
    readonly: bool


@dataclass(frozen=True)
class Signature:
    """What a kernel takes and returns."""

    result: Scalar
    parameters: tuple[Scalar | Array, ...]


void, b1, u8, u64, i64, f64 = (
    Scalar(name) for name in ("none", "boolean", "uint8", "uint64", "int64", "float64")
)
U8, U32, U64, I32, I64, F64 = (
    Array(name, True) for name in ("uint8", "uint32", "uint64", "int32", "int64", "float64")
)
OutU8, OutU32, OutU64, OutI32, OutI64, OutF64 = (
    Array(name, False) for name in ("uint8", "uint32", "uint64", "int32", "int64", "float64")
)
Bytes: Final = Scalar("bytes")
"""A bare address, for kernels that serve other kernels."""
stripe: Final = Scalar("stripe")
"""64 bytes in one vector, for kernels that serve other kernels."""

_RESULTS: Final[dict[str, Any]] = {
    "none": ctypes.c_int64, "boolean": ctypes.c_bool, "uint8": ctypes.c_uint8,
    "uint64": ctypes.c_uint64, "int64": ctypes.c_int64, "float64": ctypes.c_double,
}  # fmt: skip
_LIMITS: Final = {
    "boolean": (0, 1), "uint8": (0, 0xFF), "uint64": (0, (1 << 64) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
}  # fmt: skip
_LOCK = threading.RLock()


class Kernel:
    """A function that runs as machine code.

    Attributes
    ----------
    function : function
        As it is written.
    signature : Signature
    """

    def __init__(self, function: FunctionType, signature: Signature) -> None:
        update_wrapper(self, function)
        self.function, self.signature = function, signature
        self._call: Callable[..., Any] | None = None
        self._dispatcher: Any = None

    def __call__(self, *arguments: Any) -> Any:
        """Run it."""
        call = self._call
        if call is None:
            call = self.load()
        return call(*arguments)

    def __repr__(self) -> str:
        return f"<kernel {self.function.__module__}.{self.function.__name__}>"

    @property
    def public(self) -> bool:
        """Whether it is called from Python and not only by other kernels."""
        kinds = {p.name for p in self.signature.parameters if isinstance(p, Scalar)}
        return not self.function.__name__.startswith("_") and not kinds & {"bytes", "stripe"}

    def load(self) -> Callable[..., Any]:
        """Load the machine code, made first where the cache has none."""
        from vmbk.kernels.objects import address_of

        with _LOCK:
            if self._call is None:
                self._call = _caller(self, address_of(self))
            return self._call

    @property
    def dispatcher(self) -> Any:
        """Numba's own object for the compiled function."""
        if self._dispatcher is None:
            from vmbk.kernels.compiling import compiled

            self._dispatcher = compiled(self)
        return self._dispatcher


def kernel(signature: Signature) -> Callable[[F], F]:
    """Make a function a kernel.

    Parameters
    ----------
    signature : Signature
        Such as ``void(U8, i64, OutU64)``, from the types of this module.
    """

    def decorate(function: F) -> F:
        if DISABLED:
            return function
        return cast(F, Kernel(cast(FunctionType, function), signature))

    return decorate


def _caller(kernel: Kernel, address: int) -> Callable[..., Any]:
    """A function that calls machine code as Numba's code is called.

    Its parameters are where the result goes, where an exception would go, and the arguments; an
    array comes as owner, parent, items, bytes of an item, address, shape, stride.
    """
    name, signature = kernel.function.__name__, kernel.signature
    flat: list[Any] = [ctypes.c_void_p, ctypes.c_void_p]
    for parameter in signature.parameters:
        if isinstance(parameter, Array):
            pointer, number = ctypes.c_void_p, ctypes.c_int64
            flat += [pointer, pointer, number, number, pointer, number, number]
        else:
            flat.append(_RESULTS[parameter.name])
    run = ctypes.CFUNCTYPE(ctypes.c_int32, *flat)(address)  # releases the GIL
    result_type, has_result = _RESULTS[signature.result.name], signature.result != void
    takers = [
        _array_taker(name, p) if isinstance(p, Array) else _number_taker(name, p)
        for p in signature.parameters
    ]
    error = ctypes.c_void_p()

    def call(*arguments: Any) -> Any:
        if len(arguments) != len(takers):
            raise TypeError(f"{name} takes {len(takers)} arguments, not {len(arguments)}")
        result = result_type()
        native: list[Any] = [ctypes.addressof(result), ctypes.addressof(error)]
        for taker, value in zip(takers, arguments, strict=True):
            taker(value, native)
        if run(*native):
            raise SystemError(f"kernel {name} raised")  # kernels never do
        return result.value if has_result else None

    return call


def _array_taker(name: str, kind: Array) -> Callable[[Any, list[Any]], None]:
    dtype = np.dtype(kind.name)
    typestr, size = dtype.str, dtype.itemsize

    def take(value: Any, native: list[Any]) -> None:
        try:
            told = value.__array_interface__
        except AttributeError:
            raise TypeError(f"{name} takes an array of {kind.name}, not {value!r}") from None
        address, readonly = told["data"]
        if (
            told["typestr"] != typestr
            or told["strides"] is not None
            or len(told["shape"]) != 1
            or address % size
            or (readonly and not kind.readonly)
        ):
            raise TypeError(
                f"{name} takes a contiguous {'' if kind.readonly else 'writable '}array of "
                f"{kind.name} of one dimension, not {value.dtype} of shape {value.shape}, "
                f"strides {value.strides}{', read-only' if readonly else ''}"
            )
        (items,) = told["shape"]
        native += (None, None, items, size, address, items, size)

    return take


def _number_taker(name: str, kind: Scalar) -> Callable[[Any, list[Any]], None]:
    if kind.name == "float64":
        return lambda value, native: native.append(float(value))
    low, high = _LIMITS[kind.name]

    def take(value: Any, native: list[Any]) -> None:
        number = value.__index__() if not isinstance(value, np.bool_) else int(value)
        if not low <= number <= high:
            raise OverflowError(f"{name} takes {kind.name}, and {number} is none")
        native.append(number)

    return take
