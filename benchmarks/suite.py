"""The cases measured by pytest-benchmark, as figures and as a table."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.history import short
from vmbk.provenance import provenance

HERE = Path(__file__).resolve().parent


def measure(only: str = "") -> list[dict[str, Any]]:
    """Figures of all cases whose name has ``only``; what is measured now goes to standard error.

    Raises
    ------
    SystemExit
        If a case fails, or none has such a name.
    """
    os.environ["VMBK_BENCH_ONLY"] = only
    with tempfile.TemporaryDirectory(prefix="vmbk-bench-") as folder:
        told = Path(folder) / "told.json"
        words = [
            str(HERE / "test_cases.py"), f"--rootdir={HERE.parent}", "-q", "-p", "no:cacheprovider",
            "--benchmark-disable-gc", "--benchmark-quiet", f"--benchmark-json={told}",
        ]  # fmt: skip
        with redirect_stdout(sys.stderr):
            code = pytest.main(words)
        if code:
            raise SystemExit(int(code))
        benchmarks = json.loads(told.read_text(encoding="utf-8"))["benchmarks"]
    return [short(b["extra_info"]) for b in benchmarks]


def entry(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures with their date and what made them."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "made_by": provenance().to_dict(),
        "ratios": found,
    }


def is_low(figure: dict[str, Any]) -> bool:
    """Whether a ratio is below its floor."""
    return figure["floor"] is not None and figure["ratio"] < figure["floor"]


def table(found: list[dict[str, Any]]) -> str:
    """Ratios with their spread, as text."""
    rows = [("case", "beside", "ratio", "lowest to highest", "floor", "ours")]
    for f in found:
        ratio = f"{f['ratio']:.2f}{' !' if is_low(f) else ''}"
        floor = "" if f["floor"] is None else f"{f['floor']:.2f}"
        spread = f"{f['low']:.2f} to {f['high']:.2f}"
        rows.append((f["name"], f["baseline"], ratio, spread, floor, _rate(f)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    low = [
        f"below its floor: {f['name']}: {f['ratio']:.2f}, not {f['floor']:.2f}"
        for f in found
        if is_low(f)
    ]
    return "\n".join(["A ratio is the time of what stands beside over ours.", *lines, *low])


def _rate(figure: dict[str, Any]) -> str:
    rate = figure["amount"] / figure["seconds"]
    if figure["unit"] == "bytes":
        return f"{rate / 1e9:.1f} GB/s"
    if figure["unit"] == "process":
        return f"{figure['seconds']:.2f} s"
    if rate < 1e6:
        return f"{rate / 1e3:.1f} k {figure['unit']}/s"
    return f"{rate / 1e6:.0f} M {figure['unit']}/s"
