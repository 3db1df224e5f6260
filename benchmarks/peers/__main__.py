"""``python -m benchmarks.peers``: vmbk, restic and borg, as programs, on the same image.

Every program takes each step before any takes the next: a full backup; an incremental one after
1,280 random writes of 16 KiB; one of a disk that was in use and is as it was; a check that reads
all data; a restore, which is compared with the disk byte by byte. All encrypt and compress. Times
are of whole processes, with their start. ``benchmarks/peers/install.sh`` installs the others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from shutil import which
from typing import Any

import pyarrow as pa

from benchmarks.history import append
from benchmarks.peers.images import CLUSTER, Mixed, churn, make_ext4, rewrite, written
from benchmarks.peers.tools import Borg, Ran, Restic, Tool, Vmbk
from vmbk.provenance import provenance
from vmbk.units import MIB, format_size, parse_size

FLOORS = {
    ("full", "vmbk"): 4.0,
    ("incremental", "vmbk checksum"): 5.0,
    ("incremental", "vmbk"): 12.0,
    ("touched", "vmbk"): 10.0,
    ("restore", "vmbk"): 3.0,
}
"""The least ratios of restic's seconds to ours, on the mixed image of 2 GiB."""

STORED_AT_MOST = {"full": 1.1, "incremental": 1.15}
"""Stored bytes over restic's, and over the compressed bytes of exactly what was written."""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--image", choices=["mixed", "ext4"], default="mixed")
    parser.add_argument("--size", type=parse_size, default=2048 * MIB)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tools", default="vmbk,vmbk checksum,restic,borg", help="of these")
    parser.add_argument("--keep", action="store_true", help="append to the history")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(words)
    makers = {name: MAKERS[name] for name in args.tools.split(",")}
    for name in ("restic", "borg"):
        if name in makers and which(name) is None:
            print(f"{name} is not installed: run benchmarks/peers/install.sh", file=sys.stderr)
            del makers[name]
    rounds: list[list[dict[str, Any]]] = []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="vmbk-bench-") as folder:
            rounds.append(run(Path(folder), makers, args.image, args.size, number))
    found = together(rounds)
    print(table(found), flush=True)
    entry = {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "made_by": provenance().to_dict(),
        "image": args.image,
        "size": args.size,
        "peers": found,
    }
    if args.json is not None:
        args.json.write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
    if args.keep:
        append(entry)
    return 0


MAKERS: dict[str, Callable[[Path], Tool]] = {
    "vmbk": Vmbk,
    "vmbk checksum": lambda folder: Vmbk(folder).detect_by("checksum").trusting(),
    "restic": Restic,
    "borg": Borg,
}


def run(
    folder: Path, makers: dict[str, Callable[[Path], Tool]], kind: str, size: int, seed: int
) -> list[dict[str, Any]]:
    """One round: what each program took for each step."""
    image = folder / "disk.img"
    if kind == "mixed":
        Mixed(size, seed=seed).make(image)
    else:
        make_ext4(image, size)
    tools = {name: make(folder / name.replace(" ", "-")) for name, make in makers.items()}
    found: list[dict[str, Any]] = []

    def step(what: str, do: Callable[[Tool], Ran]) -> None:
        for name, tool in tools.items():
            before = tool.stored_bytes()
            # What was written or forgotten before must not cost this program anything.
            os.sync()
            read_all(image, tool.repository)
            ran = do(tool)
            found.append({
                "step": what, "tool": name, "seconds": ran.seconds, "peak": ran.peak_bytes,
                "stored": tool.stored_bytes() - before,
            })  # fmt: skip

    def restore(tool: Tool) -> Ran:
        ran, restored = tool.restore(image)
        subprocess.run(["cmp", str(image), str(restored)], check=True)
        tool.target()  # makes room
        return ran

    step("full", lambda tool: tool.backup(image))
    places = churn(image, seed + 1, min(1280, size // CLUSTER // 8))
    step("incremental", lambda tool: tool.backup(image))
    data, codec = written(image, places), pa.Codec("zstd", 1)
    least = sum(
        len(codec.compress(data[at : at + CLUSTER], asbytes=True))
        for at in range(0, len(data), CLUSTER)
    )
    found.append({"step": "incremental", "tool": "compressed writes", "stored": least})
    rewrite(image)
    step("touched", lambda tool: tool.backup(image))
    step("verify", lambda tool: tool.verify())
    step("restore", restore)
    return found


def read_all(*places: Path) -> None:
    """Read files, or those of folders, so that the system has them in memory."""
    for place in places:
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    while file.read(MIB):
                        pass


def together(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Medians of all rounds, and ratios of restic's seconds to the others' of the same round."""
    found = []
    for rows in zip(*rounds, strict=True):
        one = {"step": rows[0]["step"], "tool": rows[0]["tool"]}
        for key in ("seconds", "peak", "stored"):
            if key in rows[0]:
                one[key] = statistics.median(row[key] for row in rows)
        restic = [
            next((r for r in each if r["tool"] == "restic" and r["step"] == one["step"]), None)
            for each in rounds
        ]
        if "seconds" in one and all(restic):
            each = sorted(r["seconds"] / o["seconds"] for r, o in zip(restic, rows, strict=True))
            one |= {"ratio": statistics.median(each), "low": each[0], "high": each[-1]}
            one["floor"] = FLOORS.get((one["step"], one["tool"]))
        found.append(one)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The figures as text."""
    lines = [
        f"{'step':12} {'program':18} {'seconds':>8} {'peak memory':>12} {'stored':>12}  "
        "restic's time over it"
    ]
    for f in found:
        seconds = f"{f['seconds']:.2f}" if "seconds" in f else ""
        peak = format_size(int(f["peak"])) if "peak" in f else ""
        ratio = ""
        if "ratio" in f:
            ratio = f"{f['ratio']:.2f} ({f['low']:.2f} to {f['high']:.2f})"
            if f["floor"] is not None:
                ratio += f", floor {f['floor']:.0f}{'' if f['ratio'] >= f['floor'] else ' !'}"
        lines.append(
            f"{f['step']:12} {f['tool']:18} {seconds:>8} {peak:>12} "
            f"{format_size(int(f['stored'])):>12}  {ratio}"
        )
    stored = {(f["step"], f["tool"]): f["stored"] for f in found}
    for step, other in (("full", "restic"), ("incremental", "compressed writes")):
        if (step, other) in stored and (step, "vmbk") in stored:
            share = stored[step, "vmbk"] / stored[step, other]
            mark = "" if share <= STORED_AT_MOST[step] else " !"
            lines.append(
                f"stored by a {step} backup, over {other}: {share:.3f}, at most "
                f"{STORED_AT_MOST[step]}{mark}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
