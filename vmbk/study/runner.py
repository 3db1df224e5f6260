"""Run a study: every cell of the grid is a fresh disk, a fresh vault and real restores."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from vmbk.detect.changes import Settings
from vmbk.detect.compare import differing_grains
from vmbk.disk.raw import RawDisk
from vmbk.disk.replay import replay
from vmbk.errors import InputError, ToolMissingError
from vmbk.pipeline.backup import backup
from vmbk.pipeline.restore import restore_disk
from vmbk.pipeline.results import BackupResult
from vmbk.progress import progress
from vmbk.provenance import provenance
from vmbk.study.config import Cell, Interval, StudyConfig
from vmbk.study.results import RUN_LENGTH_CLASSES, SCHEMA, StudyResult
from vmbk.study.sweep import sweep
from vmbk.trace.datasets import open_trace
from vmbk.trace.schema import Op
from vmbk.trace.table import Trace
from vmbk.units import KIB, format_duration, quoted
from vmbk.vault import Vault

SECTOR: Final = 512
ORACLE: Final = Settings(64 * KIB, SECTOR)
BEGIN_MARK: Final = "workload begins"

MOST_BACKUPS: Final = 10_000
"""Backups of one experiment: each is restored and compared, which takes milliseconds at best."""


@dataclass(frozen=True)
class _Oracle:
    """What differs between the disk and a base, found by comparing every byte."""

    sectors: np.ndarray[tuple[int], np.dtype[np.bool_]]

    @property
    def size(self) -> int:
        return int(np.count_nonzero(self.sectors)) * SECTOR

    def blocks(self, block_size: int) -> int:
        """Bytes of the blocks that differ."""
        step = block_size // SECTOR
        found = np.logical_or.reduceat(self.sectors, np.arange(0, len(self.sectors), step))
        short = -len(self.sectors) * SECTOR % block_size if found[-1] else 0
        return int(np.count_nonzero(found)) * block_size - short

    def covered_by(self, bitmap: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bool:
        """Whether a bitmap of sectors holds everything that differs."""
        found = np.unpackbits(bitmap, bitorder="little")[: len(self.sectors)].astype(bool)
        return not (self.sectors & ~found).any()


@dataclass(frozen=True)
class Experiment:
    """A cell of the grid for a sweep: with all that its rows depend on."""

    cell: Cell
    dataset_digest: str
    seed: int


def run_grid(
    config: StudyConfig,
    *,
    executor: Any = None,
    store: str | os.PathLike[str] | None = None,
) -> StudyResult:
    """Run every experiment of a study, and its crash states; nothing else is written.

    Parameters
    ----------
    config : StudyConfig
        What to run.
    executor : Executor, distributed.Client or int, optional
        What runs the experiments side by side; see `vmbk.study.sweep.sweep`. Without it one runs
        after the other. The rows are those of a serial run, but for the seconds: experiments side
        by side share cores and disks, so that their timings are longer and noisier. To compare
        times, run serially. (``stored_bytes`` differs a little between any two runs, because keys
        and times are random to a compressor.)
    store : path, optional
        Folder that keeps finished experiments, so that a study that was stopped goes on from there.
        Their timings are of when they ran.

    Returns
    -------
    StudyResult

    Raises
    ------
    InputError
        If a data set is wrong, or an interval makes too many backups of it. Nothing ran then.
    IntegrityError
        If a restore is not what was backed up.
    """
    started = time.perf_counter()
    traces = {
        name: open_trace(name)
        for name in dict.fromkeys((*config.datasets, *config.consistency.datasets))
    }
    for name in config.datasets:
        _check_volumes(name, traces[name])
    stops = {
        (name, interval): backup_requests(traces[name], interval)
        for name, interval in product(config.datasets, config.interval)
    }
    cells = config.cells()
    with progress("study", len(cells), unit="experiments") as advance:
        if executor is None and store is None:
            found: list[dict[str, Any]] = []
            for cell in cells:
                stop = stops[cell.dataset, cell.interval]
                found += run_cell(cell, traces[cell.dataset], config, stop)
                advance(1)
            rows = pl.DataFrame(found, schema=SCHEMA)
        else:
            experiments = [Experiment(c, traces[c.dataset].digest, config.seed) for c in cells]
            swept = sweep(
                run_experiment, experiments, store=store, executor=executor, seed=config.seed,
                on_progress=advance,
            ).check().rows  # fmt: skip
            # A stored experiment may be of another declaration that has it as well.
            rows = swept.with_columns(config_digest=pl.lit(config.digest)).select(
                pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()
            )
    outcomes, notes = _crash(config, traces)
    return StudyResult(
        rows=rows, outcomes=outcomes, notes=notes, seconds=time.perf_counter() - started
    )


def run_experiment(experiment: Experiment, seed: int) -> pl.DataFrame:
    """Run one experiment wherever a sweep has it run.

    Parameters
    ----------
    experiment : Experiment
    seed : int
        Of the cell; not used: all experiments of a study replay with the study's own seed, so that
        they differ in nothing but what the grid says.

    Returns
    -------
    polars.DataFrame
        A row a backup, with the columns of a study's results.

    Raises
    ------
    InputError
        If this machine has another data set of that name.
    """
    cell = experiment.cell
    trace = open_trace(cell.dataset)
    if trace.digest != experiment.dataset_digest:
        raise InputError(
            f"the data set {quoted(cell.dataset)} is not the one that the study was started with",
            hint="every worker needs the same files",
        )
    alone = StudyConfig(
        datasets=(cell.dataset,), detectors=(cell.detector,),
        block_size=(cell.settings.block_size,), sub_block_size=(cell.settings.sub_block_size,),
        interval=(cell.interval,), seed=experiment.seed,
    )  # fmt: skip
    rows = run_cell(cell, trace, alone, backup_requests(trace, cell.interval))
    return pl.DataFrame(rows, schema=SCHEMA)


def _check_volumes(name: str, trace: Trace) -> None:
    if len(trace.volumes) != 1:
        raise InputError(
            f"grid.datasets: {quoted(name)} has {len(trace.volumes)} volumes; a study takes one"
        )


def backup_requests(trace: Trace, interval: Interval) -> list[int]:
    """The requests before which backups are taken, the first one where the workload begins.

    Parameters
    ----------
    trace : Trace
        A capture; its mark ``workload begins`` is the first backup, or else its first write.
    interval : Interval
        A share of the requests that follow, or a trace time.

    Returns
    -------
    list of int
        Ascending; the last one is the end of the trace.

    Raises
    ------
    InputError
        If the interval is so short that there would be more than `MOST_BACKUPS`.
    """
    ops = trace.requests.op
    first = next(
        (
            int(row) + 1
            for row in np.flatnonzero(ops == Op.MARK)
            if bytes(trace.payload(int(row)) or b"") == BEGIN_MARK.encode()
        ),
        0,
    )
    end = len(trace)
    if interval.share:
        steps = np.arange(0, 1, interval.share)  # a last, shorter one reaches the end
        stops = np.append(first + np.ceil(steps * (end - first) - 1e-6).astype(np.int64), end)
    else:
        times = np.asarray(trace.requests.time_ns[first:])
        span = int(times[-1]) - int(times[0]) if len(times) else 0
        backups = -(-span // interval.ns)
        if backups > MOST_BACKUPS:
            raise InputError(
                f"grid.interval: {interval} makes {backups:,} backups of a capture of "
                f"{format_duration(span / 1e9)}, and {MOST_BACKUPS:,} are the most",
                hint="choose a longer interval",
            )
        marks = np.arange(backups) * interval.ns + (times[0] if backups else 0)
        stops = np.append(first + np.searchsorted(times, marks), end)
    return [int(s) for s in np.unique(stops)]


def run_cell(
    cell: Cell, trace: Trace, config: StudyConfig, stops: Sequence[int]
) -> list[dict[str, Any]]:
    """Replay, back up, restore and compare, from the first backup to the last.

    Parameters
    ----------
    cell : Cell
        The experiment.
    trace : Trace
        Its data set.
    config : StudyConfig
        The study that it belongs to.
    stops : sequence of int
        The requests before which backups are taken; see `backup_requests`.

    Returns
    -------
    list of dict
        A row a backup.
    """
    rows = []
    size = trace.volumes[0].size
    with tempfile.TemporaryDirectory(prefix="vmbk-study-") as temporary:
        folder = Path(temporary)
        vault = Vault.create(folder / "vault", folder / "key", durability="none")
        with (
            vault,
            RawDisk.create(folder / "disk.raw", size) as disk,
            RawDisk.create(folder / "restored.raw", size) as restored,
            RawDisk.create(folder / "first.raw", size) as first,
        ):
            if cell.detector in ("tracking", "auto"):
                disk.start_tracking()
            at = 0
            for number, stop in enumerate(stops):
                replay(trace, disk, start=at, stop=stop, seed=config.seed)
                at = stop
                done = backup(
                    [disk], vault, "study", detector=cell.detector, settings=cell.settings,
                    track=False, seed=config.seed,
                )  # fmt: skip
                # The scratch disk holds the previous point, restored: the base, by other means.
                base = first if cell.detector == "differential" else restored
                whole = not done.disks[0].base
                oracle = _compare(disk, base) if not whole else None
                begin = time.perf_counter()
                result = restore_disk(vault, vault.point(done.point), "disk", restored)
                seconds = time.perf_counter() - begin
                if number == 0:
                    restore_disk(vault, vault.point(done.point), "disk", first)
                identical = not differing_grains(disk, restored, ORACLE)[0].any()
                rows.append(
                    _row(cell, trace, config, number, stop, done, oracle)
                    | {"restore_seconds": seconds, "verified": result.verified,
                       "identical": identical}
                )  # fmt: skip
    return rows


def _compare(disk: RawDisk, base: RawDisk) -> _Oracle:
    return _Oracle(differing_grains(disk, base, ORACLE)[0])


def _row(
    cell: Cell, trace: Trace, config: StudyConfig, number: int, stop: int,
    done: BackupResult, oracle: _Oracle | None,
) -> dict[str, Any]:  # fmt: skip
    disk, made = done.disks[0], provenance()
    lengths = disk.changes.all_extents()[1]
    classes = np.searchsorted(RUN_LENGTH_CLASSES, lengths, side="right") - 1
    times = trace.requests.time_ns
    machine = {k: v for k, v in made.to_dict().items() if k not in ("version", "commit")}
    return {
        "dataset": cell.dataset,
        "dataset_digest": trace.digest,
        "detector": cell.detector,
        "ran": disk.detector,
        "fallback": disk.fallback if number else "",  # the first backup has no base to use
        "block_size": cell.settings.block_size,
        "sub_block_size": cell.settings.sub_block_size,
        "interval": str(cell.interval),
        "backup": number,
        "request": stop,
        "trace_seconds": float(times[stop - 1]) / 1e9 if stop else 0.0,
        "disk_bytes": disk.size,
        "scanned_bytes": disk.scanned_bytes,
        "reported_bytes": disk.reported_bytes,
        "changed_bytes": disk.changed_bytes,
        "extents": disk.extents,
        "run_lengths": np.bincount(classes, minlength=len(RUN_LENGTH_CLASSES)).tolist(),
        "sent_bytes": disk.sent_bytes,
        "new_bytes": disk.new_bytes,
        "stored_bytes": done.stored_bytes,
        "oracle_bytes": disk.size if oracle is None else oracle.size,
        "oracle_block_bytes": (
            disk.size if oracle is None else oracle.blocks(cell.settings.block_size)
        ),
        **{f"{s}_seconds": done.seconds[s]
           for s in ("prepare", "snapshot", "detect", "transfer", "commit")},
        "backup_seconds": done.seconds["total"],
        "covers": oracle is None or oracle.covered_by(disk.changes.bitmap(SECTOR)),
        "seed": config.seed,
        "config_digest": config.digest,
        "version": made.version,
        "commit": made.commit,
        "provenance": json.dumps(machine, sort_keys=True),
    }  # fmt: skip


def _crash(config: StudyConfig, traces: dict[str, Trace]) -> tuple[pl.DataFrame, tuple[str, ...]]:
    """Crash states of the declared captures; a note where a checker is not installed."""
    from vmbk.consistency import crash_test

    frames, notes = [], []
    wanted = config.consistency
    with progress("crash states", len(wanted.datasets) * wanted.states, unit="states") as advance:
        for name in wanted.datasets:
            try:
                found = crash_test(
                    traces[name], model=wanted.model, states=wanted.states, seed=config.seed,
                    on_progress=advance,
                )  # fmt: skip
            except ToolMissingError as error:
                notes.append(f"Crash states of {name} were not checked: {error.message}; "
                             f"{error.hint}.")  # fmt: skip
                continue
            frames.append(found.frame().with_columns(pl.lit(name).alias("capture")))
    return (pl.concat(frames) if frames else pl.DataFrame()), tuple(notes)
