"""Measure the pipeline: what a backup costs by what was written, how finely and where.

The service model charges for dispersed and for small writes; how much is measured here, on real
disks and with real backups into a real vault. A *cell* of the plan is a known change: so many
bytes, in writes of one size, in runs of adjacent writes, at places that are strewn over the disk or
close together. Cells come in random order, and the whole plan several times: what else the machine
does then meets all of them alike. The table and the fit that come with vmbk were made by
``python -m vmbk.study.calibration``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vmbk.detect.scan import bitmap_ranges
from vmbk.disk.raw import RawDisk
from vmbk.disk.tracking_state import GRANULARITY
from vmbk.errors import InputError, IntegrityError, NotFoundError, VmbkError
from vmbk.pipeline.backup import backup
from vmbk.pipeline.results import BackupResult
from vmbk.progress import progress
from vmbk.provenance import provenance
from vmbk.service.calibration import CALIBRATION
from vmbk.service.fit import fit_calibration, to_toml
from vmbk.study.calibration_plan import PLAN, SETTINGS, Churn, Machine, Plan
from vmbk.units import KIB, MIB, quoted
from vmbk.vault import Vault

SHIPPED: Final = "calibration.parquet"
"""Name of the shipped table, beside the notebooks."""

COMPRESSIBLE: Final = 50
"""Percent of the writes that are text; the others are random bytes."""

STAGES: Final = ("prepare", "snapshot", "detect", "transfer", "commit")

QUIET: Final = 0.1
"""Share of the processors that others may use before `main` says that it matters."""

_FILL: Final = 8 * MIB


def measure(
    plan: Plan = PLAN, *, seed: int = 0, scratch: str | os.PathLike[str] | None = None
) -> pl.DataFrame:
    """Make the changes of a plan on scratch disks and back them up.

    Parameters
    ----------
    plan : Plan
    seed : int
        Of the order, the places and the content.
    scratch : path, optional
        Folder for disks and vault, some GiB; the system's one for temporary files by default.

    Returns
    -------
    polars.DataFrame
        A row a backup. What was done: ``round``, ``turn``, ``kind``, ``machine``, ``disks``,
        ``disk_bytes``, ``data_bytes``, ``detector``, ``spread``, ``written_bytes``,
        ``write_size``, ``run_bytes``, ``runs``, ``tracked_extents`` (runs of written blocks of the
        tracker's granularity). What the backup says: ``scanned_bytes``, ``reported_bytes``,
        ``changed_bytes``, ``extents``, ``sent_bytes``, ``new_bytes``, ``stored_bytes`` and the
        seconds of each stage. With what it was made: ``others`` (share of the processors that
        other processes used in the round, null where unknown), ``seed``, ``version``, ``commit``,
        ``provenance``. First backups are rows of the kind ``first``.

    Raises
    ------
    IntegrityError
        If a backup does not send what was written, or another detector ran.
    NotFoundError
        If there is no scratch folder.
    StorageError
        If it is refused or full.
    """
    from vmbk.kernels.jit import DISABLED
    from vmbk.kernels.objects import compile_ahead

    if scratch is not None and not Path(scratch).is_dir():
        raise NotFoundError(f"there is no folder {quoted(os.fspath(scratch))}")
    if not DISABLED:
        compile_ahead(("content",))
    rows: list[dict[str, Any]] = []
    total = plan.rounds * (len(plan.machines) + len(plan.cells))
    with progress("calibration", total, unit="backups") as advance:
        for number in range(plan.rounds):
            before = _processor_seconds()
            done: list[dict[str, Any]] = []
            with tempfile.TemporaryDirectory(prefix="vmbk-calibration-", dir=scratch) as folder:
                for row in _round(plan, number, seed, Path(folder)):
                    done.append(row)
                    advance(1)
            others = _others(before, _processor_seconds())
            rows += [{**row, "others": others} for row in done]
    made = provenance().to_dict()
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(
        seed=pl.lit(seed),
        version=pl.lit(str(made.pop("version"))),
        commit=pl.lit(str(made.pop("commit"))),
        provenance=pl.lit(json.dumps(made, sort_keys=True)),
    )


def _round(plan: Plan, number: int, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """All cells once, in random order, on new disks and in a new vault; a row a backup."""
    order = np.random.default_rng([seed, number]).permutation(len(plan.cells)).tolist()
    machines = {machine.name: machine for machine in plan.machines}
    with ExitStack() as stack:
        vault = stack.enter_context(
            Vault.create(folder / "vault", folder / "key", durability="none")
        )
        disks: dict[str, list[RawDisk]] = {}
        for place, machine in enumerate(plan.machines):
            name = machine.name
            disks[name] = [
                stack.enter_context(RawDisk.create(folder / f"{name}-{i}.raw", machine.size))
                for i in range(machine.disks)
            ]
            for i, disk in enumerate(disks[machine.name]):
                _fill(disk, machine.data, seed, volume=(number << 8 | place) << 8 | i)
                disk.start_tracking()
            done = backup(disks[machine.name], vault, machine.name, detector="full", track=False)
            whole = machine.disks * machine.data
            yield {
                "round": number, "turn": -1, "kind": "first", **_of_machine(machine),
                "detector": "full", "spread": "contiguous", "written_bytes": whole,
                "write_size": MIB, "run_bytes": machine.data, "runs": machine.disks,
                "tracked_extents": 0, **_of_result(done),
            }  # fmt: skip
        _write_back(folder)
        for turn, which in enumerate(order):
            cell = plan.cells[which]
            machine = machines[cell.machine]
            tracked = _change(disks[cell.machine], machine, cell, [seed, number, which])
            done = backup(
                disks[cell.machine], vault, cell.machine, detector=cell.detector,
                settings=SETTINGS, track=False, seed=seed,
            )  # fmt: skip
            _check(done, cell)
            yield {
                "round": number, "turn": turn, "kind": cell.kind, **_of_machine(machine),
                "detector": cell.detector, "spread": cell.spread, "written_bytes": cell.written,
                "write_size": cell.write_size, "run_bytes": cell.run, "runs": cell.runs,
                "tracked_extents": tracked, **_of_result(done),
            }  # fmt: skip


def _write_back(folder: Path) -> None:
    """Have all files on the disk: whoever comes next would pay for what is written back then."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _processor_seconds() -> tuple[float, float, float]:
    """Seconds that this process, all processes and all processors have run so far; NaN unknown."""
    own = os.times()
    mine = own.user + own.system
    try:
        words = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
        ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in words]
    except (OSError, ValueError):
        return mine, math.nan, math.nan
    return mine, sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # less idle and waiting for disks


def _others(before: tuple[float, ...], after: tuple[float, ...]) -> float | None:
    """Share of the processors that others used in between."""
    mine, busy, whole = (b - a for a, b in zip(before, after, strict=True))
    return round(min(max((busy - mine) / whole, 0.0), 1.0), 4) if whole > 0 else None


def _of_machine(machine: Machine) -> dict[str, Any]:
    return {
        "machine": machine.name, "disks": machine.disks, "disk_bytes": machine.disks * machine.size,
        "data_bytes": machine.disks * machine.data,
    }  # fmt: skip


def _of_result(done: BackupResult) -> dict[str, Any]:
    counts = ("scanned_bytes", "reported_bytes", "changed_bytes", "extents", "sent_bytes",
              "new_bytes", "stored_bytes")  # fmt: skip
    return {name: done.total(name) for name in counts} | {
        f"{stage}_seconds": done.seconds[stage] for stage in STAGES
    }


def _check(done: BackupResult, cell: Churn) -> None:
    """A measurement of something else than was planned is worth nothing."""
    for disk in done.disks:
        if disk.fallback or disk.detector != cell.detector:
            raise IntegrityError(
                f"{cell.detector} was to be measured and {disk.detector} ran: {disk.fallback}"
            )
    if done.total("sent_bytes") < cell.written:
        raise IntegrityError(
            f"{cell.written} bytes were written and {done.total('sent_bytes')} sent"
        )


def _content(size: int, unit: int, seed: int, volume: int) -> NDArray[np.uint8]:
    """Text and random bytes, half of the units each."""
    from vmbk.kernels.content import fill_content

    data = np.empty(size, np.uint8)
    versions = np.zeros(-(-size // unit), np.int64)
    fill_content(data, seed, volume, 0, versions, unit, 0, COMPRESSIBLE, 0)
    return data


def _fill(disk: RawDisk, data: int, seed: int, volume: int) -> None:
    """Give the disk its first content."""
    for piece, offset in enumerate(range(0, data, _FILL)):
        length = min(_FILL, data - offset)
        disk.write(offset, _content(length, 16 * KIB, seed, volume << 24 | piece))


def _change(disks: Sequence[RawDisk], machine: Machine, cell: Churn, seeds: Sequence[int]) -> int:
    """Make the change of a cell; returns how many extents a tracker sees."""
    random = np.random.default_rng(seeds)
    each = cell.runs // len(disks)
    tracked = 0
    for disk in disks:
        starts = _places(cell, each, machine.data, random)
        within = np.arange(cell.run // cell.write_size, dtype=np.int64) * cell.write_size
        offsets = (starts[:, None] + within).ravel()
        random.shuffle(offsets)
        content = _content(
            len(offsets) * cell.write_size, cell.write_size, int(random.integers(1 << 40)), 0
        )
        disk.write_batch(
            offsets, np.full(len(offsets), cell.write_size, np.int64), content,
            np.arange(len(offsets), dtype=np.int64) * cell.write_size,
        )  # fmt: skip
        tracked += tracked_extents(starts, cell.run, machine.size)
    return tracked


def _places(cell: Churn, runs: int, data: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Where the runs begin, ascending."""
    slots = data // cell.slot
    if cell.spread == "strewn":
        chosen = np.sort(random.choice(slots, runs, replace=False))
    else:
        chosen = random.integers(slots - runs + 1) + np.arange(runs)
    return chosen.astype(np.int64) * cell.slot


def tracked_extents(starts: NDArray[np.int64], run: int, size: int) -> int:
    """Runs of blocks that a tracker marks when all of these are written.

    Parameters
    ----------
    starts : ndarray of int64, shape (n,)
        Where each begins, bytes.
    run, size : int
        Bytes of each, and of the disk.

    Returns
    -------
    int
    """
    from vmbk.kernels.bitmap import mark_ranges

    bits = np.zeros((-(-size // GRANULARITY) + 7) // 8, np.uint8)
    mark_ranges(bits, starts, np.full(len(starts), run, np.int64), GRANULARITY)
    return len(bitmap_ranges(bits, GRANULARITY, size)[0])


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write the table of measurements, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(frame.to_arrow(), partial, compression="zstd")
    partial.replace(path)


def read_table(path: Path) -> pl.DataFrame:
    """The table of measurements.

    Raises
    ------
    NotFoundError
        If there is none.
    InputError
        If it is no Parquet file.
    """
    if not path.is_file():
        raise NotFoundError(f"there are no measurements {quoted(str(path))}")
    try:
        return pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"cannot read the measurements {quoted(str(path))}: {error}") from error


def main(words: list[str] | None = None) -> int:
    """Measure anew, and fit what the service model uses."""
    parser = argparse.ArgumentParser(prog="python -m vmbk.study.calibration", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("notebooks"), help="folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=PLAN.rounds, help="times each cell is run")
    parser.add_argument("--scratch", type=Path, help="folder for disks and vault, some GiB")
    parser.add_argument("--fit-only", action="store_true", help="fit the table that is there")
    parser.add_argument(
        "--toml", type=Path, default=CALIBRATION, help="where the fit goes; by default its place"
    )
    args = parser.parse_args(words)
    table = args.out / SHIPPED
    try:
        if not args.out.is_dir():
            raise NotFoundError(f"there is no folder {quoted(str(args.out))}")
        if not args.fit_only:
            plan = Plan(PLAN.machines, PLAN.cells, args.rounds)
            write_table(measure(plan, seed=args.seed, scratch=args.scratch), table)
        found = read_table(table)
        fitted = fit_calibration(found)
        args.toml.write_text(to_toml(fitted), encoding="utf-8")
    except VmbkError as error:
        parser.error(error.message)
    except OSError as error:
        parser.error(str(error))
    for name, value in fitted.summary().items():
        print(f"{name}: {value}", file=sys.stderr)
    if (fitted.made.others or 0) > QUIET:
        print(f"others used {fitted.made.others:.0%} of the processors: measure on a quiet "
              "machine", file=sys.stderr)  # fmt: skip
    print(f"calibration in {table} and {args.toml}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
