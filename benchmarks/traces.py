"""Traces at scale: metrics beside plain Polars and libCacheSim, import, memory.

``python -m benchmarks.traces`` makes a synthetic trace of 100 million requests on the spot and
prints a table; ``--requests`` makes it smaller, ``--json FILE`` writes the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.ratios import Timing, ratios, take_turns
from vmbk.provenance import provenance
from vmbk.trace.formats import import_trace
from vmbk.trace.metrics.windows import measure
from vmbk.trace.store import read_trace, write_trace
from vmbk.trace.synthesis import Spec, synthesise
from vmbk.trace.table import Trace
from vmbk.units import GIB, format_size

WINDOW_NS = 3600 * 10**9
BLOCK = 4096
LEVELS = tuple(BLOCK << k for k in range(11))
CAP = GIB
ROOT = Path(__file__).resolve().parent.parent


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.traces", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000_000)
    parser.add_argument("--text-requests", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--capped", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.capped is not None:
        return capped(args.capped)
    with tempfile.TemporaryDirectory(prefix="vmbk-bench-") as name:
        results = []
        for result in run(args.requests, args.text_requests, args.rounds, Path(name)):
            show(result)
            results.append(result)
    if args.json is not None:
        made = {"results": results, "made_by": provenance().to_dict()}
        args.json.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    return 0


def run(requests: int, text_requests: int, rounds: int, folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "trace.arrow"
    began = time.perf_counter()
    write_trace(synthetic(requests), path)
    print(
        f"{requests:,} requests made and written in {time.perf_counter() - began:.1f} s",
        file=sys.stderr,
    )
    trace = read_trace(path)
    small = trace[: min(text_requests, requests)]
    hour = WINDOW_NS / 1e9
    yield beside_polars(
        "churn per hour", trace, rounds,
        lambda: measure(trace, hour).churn, lambda: polars_churn(trace),
    )  # fmt: skip
    alone = single(requests)
    yield beside_polars(
        "churn per hour, requests of one block", alone, rounds,
        lambda: measure(alone, hour).churn, lambda: polars_churn_single(alone),
    )  # fmt: skip
    yield beside_polars(
        "churn, amplification and extents in one pass", trace, rounds,
        lambda: everything(trace), lambda: polars_everything(trace),
    )  # fmt: skip
    yield memory(path, requests)
    yield text_import(small, rounds, folder)
    # So many that starting a program is a small part of its time.
    part = trace[: min(8 * text_requests, requests)]
    yield from beside_libcachesim(part, rounds, folder)


def synthetic(requests: int, **changes: Any) -> Trace:
    """The benchmark's workload with so many requests."""
    spec = Spec.load("benchmark").with_requests(requests)
    volumes = tuple(replace(v, workload=replace(v.workload, **changes)) for v in spec.volumes)
    return synthesise(replace(spec, volumes=volumes))


def single(requests: int) -> Trace:
    return synthetic(requests, sizes=((BLOCK, 1.0),))


def everything(trace: Trace) -> None:
    measured = measure(trace, WINDOW_NS / 1e9)
    _ = measured.churn, measured.granularity, measured.run_lengths, measured.dispersion


# --- The same in plain Polars --------------------------------------------------------------------


def windows(trace: Trace) -> Any:
    """Frames of the writes of each window, as views."""
    r = trace.requests
    frame = pl.DataFrame({"op": r.op, "offset": r.offset, "length": r.length})
    edges = np.searchsorted(r.time_ns, np.arange(0, r.time_ns[-1] + WINDOW_NS, WINDOW_NS))
    for a, b in zip(edges, [*edges[1:], len(frame)], strict=True):
        yield frame.slice(a, b - a).filter((pl.col("op") == 1) & (pl.col("length") > 0))


def blocks(writes: pl.DataFrame) -> pl.Series:
    first = pl.col("offset") // BLOCK
    stop = (pl.col("offset") + pl.col("length") - 1) // BLOCK + 1
    return writes.select(pl.int_ranges(first, stop).alias("block")).explode("block")["block"]


def polars_churn(trace: Trace) -> list[tuple[int, int]]:
    return [(len(b), b.n_unique()) for b in map(blocks, windows(trace))]


def polars_churn_single(trace: Trace) -> list[tuple[int, int]]:
    """The same where every request is one block, which spares Polars the ranges."""
    found = []
    for writes in windows(trace):
        block = writes.select(pl.col("offset") // BLOCK)["offset"]
        found.append((len(block), block.n_unique()))
    return found


def polars_everything(trace: Trace) -> list[tuple[int, ...]]:
    found = []
    for writes in windows(trace):
        touched = blocks(writes)
        unique = touched.unique().sort()
        levels = [(unique // (size // BLOCK)).n_unique() for size in LEVELS[1:]]
        gaps = (unique.diff() > 1).sum()
        found.append((len(touched), len(unique), int(gaps or 0) + 1, *levels))
    return found


def beside_polars(what: str, trace: Trace, rounds: int, ours: Any, theirs: Any) -> dict[str, Any]:
    agree(trace, theirs())
    times = take_turns({"vmbk": ours, "polars": theirs}, rounds)
    return result(what, len(trace), "requests", times, "polars")


def agree(trace: Trace, theirs: list[tuple[int, ...]]) -> None:
    """Two programs that count differently cannot be compared in speed."""
    frame = measure(trace, WINDOW_NS / 1e9).churn.filter(pl.col("volume").is_null())
    columns = ["block_writes", "unique_blocks", "extents"][: min(len(theirs[0]), 3)]
    ours = list(frame.select(columns).iter_rows())
    if ours != [row[: len(columns)] for row in theirs if row[0]]:
        raise SystemExit(f"vmbk and Polars differ: {ours[:3]} and {theirs[:3]}")


# --- Memory --------------------------------------------------------------------------------------


def memory(path: Path, requests: int) -> dict[str, Any]:
    """All metrics in a process that may not have more than 1 GiB of memory of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.traces", "--capped", str(path)],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    told = json.loads(done.stdout)
    return {
        "what": f"peak memory of its own, under a limit of {format_size(CAP)}",
        "requests": requests,
        "peak_bytes": told["peak"],
        "before_bytes": told["before"],
        "trace_bytes": path.stat().st_size,
    }


def capped(path: Path) -> int:
    """Measure a trace under the limit; the pages of the mapped file are the system's."""
    measure(read_trace(path)[:1000])  # load libraries and kernels first
    before = own_memory()
    # The kernel limits what is reserved; libraries reserve more than they use.
    limit = reserved() - before + CAP
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak.append(own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    everything(read_trace(path))
    done.set()
    watcher.join()
    print(json.dumps({"before": before, "peak": max(peak)}))
    return 0


def own_memory() -> int:
    return _status("RssAnon")


def reserved() -> int:
    return _status("VmData")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"the kernel does not tell {name}")


# --- Import --------------------------------------------------------------------------------------


def text_import(trace: Trace, rounds: int, folder: Path) -> dict[str, Any]:
    """A CSV in the format of MSR Cambridge, imported; beside pyarrow's parser alone."""
    import pyarrow as pa
    import pyarrow.csv as csv

    path = folder / "msr.csv"
    r = trace.requests
    keep = r.length > 0
    pl.DataFrame(
        {
            "t": 128_166_372_000_000_000 + r.time_ns[keep] // 100,
            "host": "usr",
            "disk": r.volume[keep],
            "type": np.where(r.op[keep] == 1, "Write", "Read"),
            "offset": r.offset[keep],
            "size": r.length[keep],
            "response": np.arange(int(keep.sum())) % 100_000,
        }
    ).write_csv(path, include_header=False)
    size = path.stat().st_size
    names = ["t", "host", "disk", "type", "offset", "size", "response"]

    def parser_alone() -> object:
        word = pa.dictionary(pa.int32(), pa.string())
        kinds = dict(
            zip(names, [pa.int64(), word, pa.int64(), word, *[pa.int64()] * 3], strict=True)
        )
        return csv.read_csv(
            path,
            csv.ReadOptions(column_names=names, block_size=4 << 20),
            convert_options=csv.ConvertOptions(column_types=kinds, include_columns=names[:6]),
        )

    assert len(import_trace(path).trace) == int(keep.sum())
    times = take_turns(
        {"vmbk": lambda: import_trace(path), "pyarrow's parser alone": parser_alone}, rounds
    )
    return result("import of text (MSR CSV)", size, "bytes", times, "pyarrow's parser alone")


# --- libCacheSim ---------------------------------------------------------------------------------

ANALYSER = """
import sys, time
import libcachesim
began = time.perf_counter()
reader = libcachesim.TraceReader(sys.argv[1], libcachesim.TraceType.VSCSI_TRACE)
libcachesim.TraceAnalyzer(reader, sys.argv[2]).run()
print("seconds", time.perf_counter() - began)
"""

OURS = """
import sys, time
from benchmarks.traces import everything
from vmbk.trace.formats import import_trace
everything(import_trace(sys.argv[2]).trace)  # loads the kernels, as its import loads the analyser
began = time.perf_counter()
everything(import_trace(sys.argv[1]).trace)
print("seconds", time.perf_counter() - began)
"""


def has_libcachesim(python: str) -> bool:
    try:
        done = subprocess.run([python, "-c", "import libcachesim"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def beside_libcachesim(trace: Trace, rounds: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Its trace analyser and our import with all metrics, each a process, on one vscsi file."""
    peer = os.environ.get("VMBK_LIBCACHESIM_PYTHON", sys.executable)
    if not has_libcachesim(peer):
        print("libcachesim is not installed: pip install libcachesim, or name the Python that has "
              "it with VMBK_LIBCACHESIM_PYTHON", file=sys.stderr)  # fmt: skip
        return
    r = trace.requests
    keep = r.length > 0
    rows = np.zeros(int(keep.sum()), np.dtype(
        [("sn", "<u4"), ("len", "<u4"), ("nsg", "<u4"), ("cmd", "<u2"), ("ver", "<u2"),
         ("lbn", "<u8"), ("ts", "<u8")]
    ))  # fmt: skip
    rows["sn"], rows["len"], rows["nsg"], rows["ver"] = np.arange(len(rows)), r.length[keep], 1, 256
    rows["cmd"] = np.where(r.op[keep] == 1, 0x2A, 0x28)
    rows["lbn"], rows["ts"] = r.offset[keep] // 512, r.time_ns[keep] // 1000 + 1
    path, first = folder / "trace.vscsi", folder / "first.vscsi"
    rows.tofile(path)
    rows[:1000].tofile(first)
    inside: dict[str, list[float]] = {"vmbk": [], "libCacheSim": []}

    def process(name: str, *command: str) -> Callable[[], None]:
        def call() -> None:
            # The analyser leaves files in its working directory.
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            inside[name].append(float(done.stdout.split("seconds")[-1]))

        return call

    times = take_turns(
        {
            "vmbk": process("vmbk", sys.executable, "-c", OURS, str(path), str(first)),
            "libCacheSim": process(
                "libCacheSim", peer, "-c", ANALYSER, str(path), str(folder / "analysis")
            ),
        },
        rounds,
    )
    warm = {name: Timing(tuple(seconds[1:])) for name, seconds in inside.items()}
    what = "all metrics of a vscsi file"
    yield result(f"{what}, as processes", len(rows), "requests", times, "libCacheSim")
    yield result(f"{what}, without their start", len(rows), "requests", warm, "libCacheSim")


# --- The table -----------------------------------------------------------------------------------


def result(
    what: str, amount: int, unit: str, times: dict[str, Timing], other: str
) -> dict[str, Any]:
    middle, low, high = ratios(times["vmbk"], times[other])
    return {
        "what": what,
        "amount": amount,
        "unit": unit,
        "other": other,
        "rate": amount / times["vmbk"].median,
        "other_rate": amount / times[other].median,
        "ratio": middle,
        "ratio_low": low,
        "ratio_high": high,
        "seconds": {name: timing.seconds for name, timing in times.items()},
    }


def show(found: dict[str, Any]) -> None:
    if "peak_bytes" in found:
        peak, before, trace = (
            format_size(found[key]) for key in ("peak_bytes", "before_bytes", "trace_bytes")
        )
        print(
            f"{found['what']}: {peak}, of which libraries {before}; the trace has {trace}",
            flush=True,
        )
        return
    scale, unit = (1e6, "MB/s") if found["unit"] == "bytes" else (1e6, "M requests/s")
    print(
        f"{found['what']}: {found['rate'] / scale:.1f} {unit}; {found['other']} "
        f"{found['other_rate'] / scale:.1f}; ratio {found['ratio']:.2f} "
        f"({found['ratio_low']:.2f} to {found['ratio_high']:.2f})",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
