"""``python -m benchmarks``: measure all cases, print ratios, keep them.

With ``--check`` it fails where a ratio is below its floor and keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks.history import append, short
from vmbk.provenance import provenance


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="cases whose name has this")
    parser.add_argument("--check", action="store_true", help="fail below a floor, keep nothing")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(words)
    found = measure(args.only)
    print(table(found), flush=True)
    entry = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "made_by": provenance().to_dict(),
        "ratios": found,
    }
    if args.json is not None:
        args.json.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
    low = [f for f in found if f["floor"] is not None and f["ratio"] < f["floor"]]
    if args.check:
        for f in low:
            print(f"below its floor: {f['name']}: {f['ratio']:.2f}, not {f['floor']:.2f}")
        return 1 if low else 0
    if not args.only:
        append(entry)
    return 0


def measure(only: str) -> list[dict[str, Any]]:
    """Ratios of all cases, by pytest-benchmark."""
    os.environ["VMBK_BENCH_ONLY"] = only
    with tempfile.TemporaryDirectory(prefix="vmbk-bench-") as folder:
        told = Path(folder) / "told.json"
        code = pytest.main([
            str(Path(__file__).parent / "test_cases.py"), "-q", "-p", "no:cacheprovider",
            "--benchmark-disable-gc", "--benchmark-quiet", f"--benchmark-json={told}",
        ])  # fmt: skip
        if code:
            raise SystemExit(int(code))
        benchmarks = json.loads(told.read_text(encoding="utf-8"))["benchmarks"]
    return [short(b["extra_info"]) for b in benchmarks]


def table(found: list[dict[str, Any]]) -> str:
    """Ratios with their spread, as text."""
    rows = [("case", "beside", "ratio", "lowest to highest", "floor", "rate")]
    for f in found:
        floor = "" if f["floor"] is None else f"{f['floor']:.2f}"
        mark = " !" if f["floor"] is not None and f["ratio"] < f["floor"] else ""
        spread = f"{f['low']:.2f} to {f['high']:.2f}"
        rows.append((f["name"], f["baseline"], f"{f['ratio']:.2f}{mark}", spread, floor, _rate(f)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _rate(figure: dict[str, Any]) -> str:
    rate = figure["amount"] / figure["seconds"]
    if figure["unit"] == "bytes":
        return f"{rate / 1e9:.1f} GB/s"
    if figure["unit"] == "process":
        return f"{figure['seconds']:.2f} s"
    return f"{rate / 1e6:.0f} M {figure['unit']}/s"


if __name__ == "__main__":
    sys.exit(main())
