"""``python -m vmbk.kernels``: compile all kernels ahead, once a machine; with a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vmbk.kernels.objects import compile_ahead

_COMPILER: Final = ("compiling", "lowerings")


def main() -> None:
    """Compile what the cache lacks."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    compile_ahead(name for name in names if name not in _COMPILER)


if __name__ == "__main__":
    main()
