"""Compiling kernels: the only module that calls Numba's compiler."""

from __future__ import annotations

from types import FunctionType
from typing import Any, Final

import numba
from numba import types
from numba.core.registry import cpu_target
from numba.core.runtime import rtsys
from numba.extending import intrinsic

from vmbk.kernels import lowerings
from vmbk.kernels.intrinsics import Operation
from vmbk.kernels.jit import FLAGS, Array, Kernel, Scalar
from vmbk.kernels.objects import RELEASE

_EVERYWHERE: Final = {RELEASE, "memcpy", "memset", "memmove", "memcmp", "bcmp"}
"""Functions that are there without Numba."""

_operations: dict[str, Any] = {}


def compiled(kernel: Kernel) -> Any:
    """Numba's object for a kernel, compiled for its signature.

    What the function calls by name is put in the place of what stands for it.
    """
    function, signature = kernel.function, kernel.signature
    names = {
        name: _callable(function.__globals__[name])
        for name in function.__code__.co_names
        if isinstance(function.__globals__.get(name), Kernel | Operation | Scalar)
    }
    own = FunctionType(function.__code__, function.__globals__ | names, function.__name__)
    own.__module__, own.__qualname__ = function.__module__, function.__qualname__
    result, *parameters = (_type_of(t) for t in (signature.result, *signature.parameters))
    return numba.njit(result(*parameters), **FLAGS)(own)


def machine_code(kernel: Kernel) -> tuple[str, tuple[str, ...], bytes]:
    """A kernel's object file.

    Returns
    -------
    str
        The name of its function there.
    tuple of str
        What it calls that only Numba has, such as the making of an array.
    bytes
        The file.
    """
    (code,) = kernel.dispatcher.overloads.values()
    library = code.library
    calls = {f.name for f in library._final_module.functions if f.is_declaration}
    needs = {name for name in calls - _EVERYWHERE if not name.startswith("llvm.")}
    return code.fndesc.llvm_func_name, tuple(sorted(needs)), library._get_compiled_object()


def initialise() -> None:
    """Tell LLVM where the functions are that Numba's code calls."""
    rtsys.initialize(cpu_target.target_context)


def _callable(value: Kernel | Operation | Scalar) -> Any:
    if isinstance(value, Scalar):
        return _type_of(value)
    if isinstance(value, Kernel):
        return value.dispatcher
    if value.name not in _operations:
        _operations[value.name] = intrinsic(getattr(lowerings, value.name))
    return _operations[value.name]


def _type_of(kind: Scalar | Array) -> Any:
    if isinstance(kind, Array):
        return types.Array(getattr(types, kind.name), 1, "C", readonly=kind.readonly)
    if kind.name in ("bytes", "stripe"):
        return {"bytes": lowerings.Bytes, "stripe": lowerings.stripe}[kind.name]
    return getattr(types, kind.name)
