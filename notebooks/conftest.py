"""Notebooks under nbval: a cell that needs a program skips where it is not installed."""

from __future__ import annotations

import os
import shutil

import pytest

NEEDS = {"crash_test(": ("e2fsck", "e2fsprogs")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip such cells, with the package to install, unless tools are required."""
    if os.environ.get("VMBK_REQUIRE_TOOLS") == "1":
        return
    for item in items:
        source = getattr(getattr(item, "cell", None), "source", "")
        for call, (tool, package) in NEEDS.items():
            found = shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")
            if call in source and found is None:
                reason = f"{tool} is not installed: apt-get install {package}"
                item.add_marker(pytest.mark.skip(reason=reason))
