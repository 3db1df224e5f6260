"""Machine code of kernels: a cache of object files, and their loading.

The cache lies in a folder whose name is a digest of all that the code depends on: the sources of
all kernels, the compiler, the processor. A change in a helper of another file can never pick up
stale code. One signature a kernel means that two processes that fill the cache together write the
same thing. A file holds a line with a digest and the function's name in the object, and the object;
what is damaged is compiled again.

`NUMBA_CACHE_DIR`, `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES` are respected.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import llvmlite
import llvmlite.binding as llvm

if TYPE_CHECKING:
    from vmbk.kernels.jit import Kernel

RELEASE: Final = "NRT_MemInfo_call_dtor"
"""What Numba's code calls to give back an array that it owns."""

_FORMAT: Final = b"vmbk-kernel-2"
_loaded: list[Any] = []  # engines own the code


class _Code(NamedTuple):
    """Machine code of a kernel: its function's name, what it needs of Numba, an object file."""

    name: str
    needs: tuple[str, ...]
    code: bytes


@cache
def folder() -> Path | None:
    """Where the machine code of exactly these sources is, or None where there is no cache."""
    if os.environ.get("VMBK_KERNEL_CACHE", "1") == "0":
        return None
    digest = hashlib.sha256(repr((llvmlite.__version__, _numba(), *processor())).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    base = os.environ.get("NUMBA_CACHE_DIR") or str(
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vmbk" / "kernels"
    )
    path = Path(base) / digest.hexdigest()[:16]
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:  # a read-only home: compile every time rather than fail
        return None
    return path


def _numba() -> tuple[str, int, int]:
    """What tells one installed Numba from another without importing it."""
    spec = find_spec("numba")
    if spec is None or spec.origin is None:
        return "", 0, 0
    status = (Path(spec.origin).parent / "_version.py").stat()
    return spec.origin, status.st_size, status.st_mtime_ns


def processor() -> tuple[str, str]:
    """The processor that code is made for: its name and its features, as LLVM writes them."""
    name = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    return name, llvm.get_host_cpu_features().flatten() if features is None else features


def is_cached(kernel: Kernel) -> bool:
    """Whether the machine code of a kernel is there."""
    place = _place(kernel)
    return place is not None and place.exists()


def compile_ahead(families: Iterable[str]) -> None:
    """Compile what the cache lacks of some modules of kernels, with a progress bar where it does.

    Parameters
    ----------
    families : iterable of str
        Names of modules in this package.
    """
    from vmbk.progress import progress

    modules = [import_module(f"{__package__}.{family}") for family in families]
    missing = [
        value
        for module in modules
        for value in vars(module).values()
        if _belongs(value, module) and not is_cached(value)
    ]
    if missing:
        with progress("compile kernels, once", len(missing), unit="kernels") as advance:
            for kernel in missing:
                _write(kernel, _made(kernel))
                advance(1)


def _place(kernel: Kernel) -> Path | None:
    package, _, family = kernel.function.__module__.rpartition(".")
    base = folder() if package == __package__ else None  # of others, the sources are not known
    return base and base / f"{family}.{kernel.function.__name__}.o"


def address_of(kernel: Kernel) -> int:
    """Where a kernel's machine code is in memory, once it is loaded."""
    found = _read(kernel)
    if found is None:
        _compile_family(kernel)
        found = _read(kernel) or _made(kernel)
    return _load(found)


def _compile_family(kernel: Kernel) -> None:
    """Compile all kernels of a module: whoever calls one of them calls others."""
    place = _place(kernel)
    if place is None:
        return
    with suppress(OSError):
        place.unlink(missing_ok=True)  # it is damaged
    compile_ahead([kernel.function.__module__.rpartition(".")[2]])


def _belongs(value: object, module: Any) -> bool:
    from vmbk.kernels.jit import Kernel

    return (
        isinstance(value, Kernel) and value.public and value.function.__module__ == module.__name__
    )


def _made(kernel: Kernel) -> _Code:
    """What the compiler makes of a kernel."""
    from vmbk.kernels.compiling import machine_code

    return _Code(*machine_code(kernel))


def _read(kernel: Kernel) -> _Code | None:
    place = _place(kernel)
    if place is None:
        return None
    try:
        data = place.read_bytes()
    except OSError:
        return None
    head, _, code = data.partition(b"\n")
    words = head.split(b" ")
    if len(words) != 4 or words[0] != _FORMAT or words[3] != _digest(*words[1:3], code):
        return None
    return _Code(words[1].decode(), tuple(words[2].decode().split(",")[1:]), code)


def _write(kernel: Kernel, made: _Code) -> None:
    place = _place(kernel)
    if place is None:
        return
    words = made.name.encode(), ",".join(("needs", *made.needs)).encode()
    data = b" ".join((_FORMAT, *words, _digest(*words, made.code))) + b"\n" + made.code
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
        try:
            file.write(data)
            file.close()
            Path(file.name).replace(place)
        except OSError:
            Path(file.name).unlink()


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"\0".join(parts)).hexdigest().encode()


def _load(made: _Code) -> int:
    if any(llvm.address_of_symbol(name) is None for name in made.needs):
        from vmbk.kernels.compiling import initialise

        initialise()
        # LLVM would call what it does not find at address 0.
        missing = [name for name in made.needs if llvm.address_of_symbol(name) is None]
        if missing:
            raise SystemError(f"kernel {made.name} needs {', '.join(missing)}")
    machine = _machine()
    # Numba's arrays can own memory, which those of our callers never do: the call is in the code,
    # and is not made. Where Numba is at work in this process, it has told LLVM the real one.
    if llvm.address_of_symbol(RELEASE) is None:
        llvm.add_symbol(RELEASE, ctypes.cast(ctypes.pythonapi.Py_IncRef, ctypes.c_void_p).value)
    # An engine each: what two objects have by the same name stays apart.
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(made.code))
    engine.finalize_object()
    _loaded.append(engine)
    return int(engine.get_function_address(made.name))


@cache
def _target() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple()


def _machine() -> Any:
    return _target().create_target_machine(jit=True)
