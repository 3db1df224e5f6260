"""``import vmbk`` is cheap, and what it promises is there."""

from __future__ import annotations

import json
import subprocess
import sys

import vmbk


def test_import_loads_nothing_heavy_and_takes_under_100_ms():
    code = (
        "import sys, time, json; begin = time.perf_counter(); import vmbk; "
        "seconds = time.perf_counter() - begin; heavy = [m for m in ('numba', 'pyarrow', 'polars', "
        "'numpy', 'altair', 'rich') if m in sys.modules]; print(json.dumps([seconds, heavy]))"
    )
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                  check=True).stdout)
        for _ in range(5)
    ]  # fmt: skip
    assert min(seconds for seconds, _ in runs) < 0.1
    assert all(heavy == [] for _, heavy in runs)


def test_every_public_name_loads_and_is_listed():
    for name in vmbk.__all__:
        assert getattr(vmbk, name) is not None
    assert set(dir(vmbk)) == set(vmbk.__all__)


def test_type_checkers_see_the_same_names():
    import ast
    from pathlib import Path

    tree = ast.parse(Path(vmbk.__file__).read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    typed = {alias.asname: node.module for node in block.body for alias in node.names}
    assert typed == vmbk._PUBLIC
