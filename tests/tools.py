"""Tests that need a program of the machine: skip, saying what to install, or fail if asked to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmbk.errors import ToolMissingError
from vmbk.trace.capture.guest import Kernel, find_kernel, find_program


def _absent(error: ToolMissingError) -> None:
    """Skip the test, or fail it where ``VMBK_REQUIRE_TOOLS=1`` says that everything is there."""
    if os.environ.get("VMBK_REQUIRE_TOOLS") == "1":
        pytest.fail(f"VMBK_REQUIRE_TOOLS=1, but {error}")
    pytest.skip(str(error))


def require_tool(name: str, package: str) -> Path:
    """The path of a program, where it is installed."""
    try:
        return find_program(name, package)
    except ToolMissingError as error:
        _absent(error)
        raise


def require_kernel() -> Kernel:
    """The kernel for guests, where it is installed."""
    try:
        return find_kernel()
    except ToolMissingError as error:
        _absent(error)
        raise


def require_guest() -> Kernel:
    """Everything that the shipped recipes need to boot a guest."""
    for name, package in (
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("mke2fs", "e2fsprogs"),
        ("sqlite3", "sqlite3"),
    ):
        require_tool(name, package)
    return require_kernel()


def real_trace(name: str) -> Path:
    """A published trace of the folder that ``VMBK_TRACES`` names, where it is set."""
    folder = os.environ.get("VMBK_TRACES")
    if folder is None:
        pytest.skip("VMBK_TRACES names no folder of published traces")
    path = Path(folder) / name
    assert path.exists(), f"VMBK_TRACES has no {name}"
    return path
