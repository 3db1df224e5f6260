"""The only place where Numba is configured.

Kernels are declared with an explicit signature and compiled once, at import of their module; a
cache on disk makes that a load on the next start. What was decided here, and why:

- ``nogil``: parallelism comes from Python threads over ranges of blocks. That needs no OpenMP
  (which hangs in a forked child) and compiles in half the time of ``parallel=True``.
- Signatures name their inputs as read-only arrays (`U8`, `I64`, ...). Those accept writable arrays
  as well, so Arrow buffers and NumPy arrays share one compiled version.
- The cache lives in a folder whose name is a digest of all kernel sources and of Numba's version:
  a change in a helper of another file can never pick up stale code. One signature a kernel means
  that two processes that fill the cache together write the same thing.
- No fast-math: digests and counts are exact.

``NUMBA_CACHE_DIR`` is respected; ``VMBK_KERNEL_CACHE=0`` turns the cache off.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba import types

__all__ = [
    "F64",
    "I32",
    "I64",
    "U8",
    "U32",
    "U64",
    "OutI32",
    "OutI64",
    "OutU8",
    "OutU64",
    "b1",
    "i64",
    "kernel",
    "u8",
    "u64",
    "void",
]

F = TypeVar("F", bound=Callable[..., Any])

void, b1, u8, u64, i64 = types.void, types.boolean, types.uint8, types.uint64, types.int64


def _input(dtype: Any) -> Any:
    return types.Array(dtype, 1, "C", readonly=True)


U8, U32, U64, I32, I64, F64 = (
    _input(t)
    for t in (types.uint8, types.uint32, types.uint64, types.int32, types.int64, types.float64)
)
OutU8, OutU64, OutI32, OutI64 = (
    types.Array(t, 1, "C") for t in (types.uint8, types.uint64, types.int32, types.int64)
)


def _cache_folder() -> str | None:
    """Folder of the compiled kernels of exactly these sources, or None where caching is off."""
    if os.environ.get("VMBK_KERNEL_CACHE", "1") == "0":
        return None
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    base = os.environ.get("NUMBA_CACHE_DIR") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmbk" / "kernels"
    )
    folder = Path(base) / digest.hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # a read-only home: compile every time rather than fail
        return None
    return str(folder)


_CACHE = _cache_folder()


def kernel(signature: Any) -> Callable[[F], F]:
    """Compile a function for one signature, with the project's flags.

    Parameters
    ----------
    signature : numba signature
        Such as ``void(U8, i64, OutU64)``, from the types of this module.
    """

    def decorate(function: F) -> F:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = _CACHE or ""
        try:
            return numba.njit(  # type: ignore[no-any-return]
                signature, nogil=True, cache=_CACHE is not None, error_model="numpy"
            )(function)
        finally:
            numba.config.CACHE_DIR = before

    return decorate
