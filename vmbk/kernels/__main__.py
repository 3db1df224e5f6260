"""``python -m vmbk.kernels``: compile all kernels ahead, once a machine; with a progress bar."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Final

from vmbk.kernels.jit import Kernel
from vmbk.kernels.objects import is_cached
from vmbk.progress import progress

_COMPILER: Final = ("compiling", "lowerings")


def main() -> None:
    """Compile what the cache lacks."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    families = [import_module(f"vmbk.kernels.{n}") for n in names if n not in _COMPILER]
    kernels = {
        id(value): value
        for family in families
        for value in vars(family).values()
        if isinstance(value, Kernel) and value.public
    }
    missing = [kernel for kernel in kernels.values() if not is_cached(kernel)]
    with progress("compile kernels", len(missing), unit="kernels") as advance:
        for kernel in missing:
            kernel.load()
            advance(1)


if __name__ == "__main__":
    main()
