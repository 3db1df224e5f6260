"""Backup: all disks of a VM, at one point in time, into a vault, as one recovery point.

A job has five stages. *prepare* opens the disks, loads what the vault knows of the base point and
asks each tracker whether it can be trusted; *snapshot* fixes the point in time, on all disks
together; *detect* finds the changes; *transfer* sends them; *commit* makes the point. Disks go
through detect and transfer in parallel. Nothing is visible in the vault before commit.

A disk of which everything is taken, as in every first backup, is read once: each piece is digested
and sent while it is in memory. This is part of *transfer*, and its *detect* takes no time. It is
not done where the settings have a gap: what is sent along to join two extents is known too late.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Final

from vmbk.detect.changes import DETECTORS, Base, Settings
from vmbk.detect.choose import SPOT_CHECK, Tracked, detect, why_full
from vmbk.detect.scan import OnData, bitmap_ranges, for_each, load_kernels
from vmbk.disk.raw import RawDisk
from vmbk.disk.tracking_state import TrackingLostError
from vmbk.errors import InputError, IntegrityError, StorageError
from vmbk.pipeline.job import DISK_NAME, DiskJob, open_disks
from vmbk.pipeline.point_disk import PointDisk
from vmbk.pipeline.record import disk_record_of
from vmbk.pipeline.results import BackupResult, DiskBackup
from vmbk.pipeline.transfer import changed, transfer
from vmbk.progress import Advance, progress
from vmbk.provenance import provenance
from vmbk.vault import DiskRecord, RecoveryPoint, Vault

LOG: Final = logging.getLogger("vmbk")

BASE_DAMAGED: Final = "base point damaged"
CHECKPOINT_FAILED: Final = "checkpoint not saved"

CONSISTENCIES: Final = ("application", "filesystem", "crash")


def backup(
    disks: Sequence[RawDisk | str | os.PathLike[str]],
    vault: Vault,
    vm: str,
    *,
    detector: str = "auto",
    settings: Settings | None = None,
    consistency: str = "crash",
    exclude: Sequence[str] = (),
    track: bool = True,
    seed: int = 0,
) -> BackupResult:
    """Back the disks of a VM up as one recovery point.

    Parameters
    ----------
    disks : sequence of RawDisk or path
        A path is opened read-only and locked for the job: a disk at rest. A `RawDisk` that is open
        for writing is snapshotted and may be written on. ``name=path`` gives a disk its name;
        otherwise it is the file's stem.
    vault : Vault
        Where the point goes.
    vm : str
        The VM that the disks belong to; its last point is the base.
    detector : str
        ``auto`` (tracking where the disk is tracked, else checksum) or one of
        `vmbk.detect.changes.DETECTORS`.
    settings : Settings, optional
        Granularity of detection, drill-down and coalescing.
    consistency : str
        The label claimed: ``application``, ``filesystem`` or ``crash``.
    exclude : sequence of str
        Names of disks to leave out, such as the temporary disk.
    track : bool
        Start tracking disks that are not tracked yet, so that the next job can use it.
    seed : int
        For the random part of tracking's spot check.

    Returns
    -------
    BackupResult

    Raises
    ------
    InputError
        If an argument is wrong or a disk cannot be opened.
    ChangedDuringBackupError
        If a disk at rest was written during the job; no point is made then.
    BusyError
        If another job backs this VM up, or a disk is open for writing elsewhere.
    StorageError
        If the vault's disk refuses a write; what was committed earlier is untouched.
    """
    settings = settings or Settings()
    _check(vm, detector, consistency)
    load_kernels()
    started = time.perf_counter()
    with ExitStack() as stack:
        jobs, excluded = open_disks(disks, exclude, stack)
        writer = stack.enter_context(vault.writer(vm))
        bases = _base_points(vault, vm, detector)
        run = _Stages(jobs, started)
        run("prepare", lambda job: _prepare(job, vault, bases, detector))
        run("snapshot", lambda job: _snapshot(job, track, stack), parallel=False)
        find = partial(_detect, detector=detector, settings=settings, seed=seed)
        at_once = {
            job.name
            for job in jobs
            if not settings.gap and why_full(detector, job.base, settings) is not None
        }
        total = sum(job.disk.size for job in jobs if job.name not in at_once)
        with run.stoppable(f"detect {vm}", total) as step:
            run("detect", lambda job: None if job.name in at_once else find(job, step))
        total = sum(job.changes.data_bytes if job.changes else job.disk.size for job in jobs)
        with run.stoppable(f"transfer {vm}", total) as step:
            run("transfer", lambda job: transfer(job, writer, find, step))
        run("commit", _check_unchanged, parallel=False)
        records = [disk_record_of(job, vault, writer) for job in jobs]
        point = writer.commit(
            vm,
            disks=records,
            consistency=consistency,
            provenance={**provenance().to_dict(), "detector": detector, "seed": seed},
        )
        stored = writer.stored_bytes
    seconds = run.finish()
    return BackupResult(
        point.id, vm, tuple(_result(job) for job in jobs), excluded, seconds, stored
    )


class _Stages:
    """Takes the disks through the stages one after the other, and times them.

    A stage begins when the one before it has ended on all disks. When one disk fails, or the job
    is interrupted, the others stop at their next step.
    """

    def __init__(self, jobs: Sequence[DiskJob], started: float) -> None:
        self._jobs = jobs
        self._started = self._begun = started
        self._stopped = threading.Event()
        self._seconds: dict[str, float] = {}
        self._current = ""

    def __call__(
        self, name: str, work: Callable[[DiskJob], None], *, parallel: bool = True
    ) -> None:
        self._end_stage(name)

        def timed(job: DiskJob) -> None:
            at = time.perf_counter()
            work(job)
            job.seconds[name] = time.perf_counter() - at

        for_each(
            len(self._jobs),
            lambda i, _: timed(self._jobs[i]),
            lambda: None,
            len(self._jobs) if parallel else 1,
            self._stopped,
        )

    def _end_stage(self, following: str) -> None:
        now = time.perf_counter()
        if self._current:
            self._seconds[self._current] = now - self._begun
            self._begun = now
        self._current = following

    @contextmanager
    def stoppable(self, description: str, total: int) -> Iterator[Advance]:
        """Progress, where there is work, that ends the caller's once the job has failed."""
        with progress(description, total) if total else nullcontext(lambda amount: None) as advance:

            def step(amount: int) -> None:
                if self._stopped.is_set():
                    raise InputError("the job was stopped")
                advance(amount)

            yield step

    def finish(self) -> dict[str, float]:
        """Seconds of each stage; the first one includes opening disks and vault."""
        self._end_stage("")
        return {**self._seconds, "total": time.perf_counter() - self._started}


def _check(vm: str, detector: str, consistency: str) -> None:
    if detector not in (*DETECTORS, "auto"):
        raise InputError(
            f"{detector!r} is no detector", hint=f"choose one of auto, {', '.join(DETECTORS)}"
        )
    if consistency not in CONSISTENCIES:
        raise InputError(
            f"{consistency!r} is no consistency", hint=f"choose one of {', '.join(CONSISTENCIES)}"
        )
    if not DISK_NAME.fullmatch(vm):
        raise InputError(
            f"{vm!r} is no name for a VM",
            hint="use up to 64 letters, digits, dots, dashes and underscores",
        )


def _base_points(vault: Vault, vm: str, detector: str) -> tuple[RecoveryPoint, ...]:
    """Points of the VM that can be a base, newest first."""
    return tuple(reversed(vault.points(vm, damaged="skip"))) if detector != "full" else ()


def _base_records(
    points: Sequence[RecoveryPoint], name: str, *, full_only: bool
) -> Iterator[tuple[RecoveryPoint, DiskRecord]]:
    """Points that have the disk, or those that `full` made of it; newest first."""
    for point in points:
        for record in point.disks:
            if record.name == name and (not full_only or record.detector == "full"):
                yield point, record


def _prepare(job: DiskJob, vault: Vault, points: Sequence[RecoveryPoint], detector: str) -> None:
    """Load what the vault knows of the newest base point that can be read."""
    for point, record in _base_records(points, job.name, full_only=detector == "differential"):
        try:
            job.base = Base(
                point=point.id,
                size=record.size,
                block_size=record.block_size,
                sub_block_size=record.sub_block_size,
                digests=vault.digests(point, job.name),
                sub_digests=vault.sub_digests(point, job.name) if record.sub_block_size else None,
                tracker=record.tracker,
                generation=record.generation,
                disk=PointDisk(vault, point, job.name) if detector == "compare" else None,
            )
            vault.require_restorable(point, job.name)  # a new point stands on all of it
        except IntegrityError as error:
            LOG.warning("point %s cannot be a base: %s", point.id, error.message)
            job.base, job.damaged_base = None, True
        else:
            job.base_point = point
            break
    _ask_tracker(job)


def _ask_tracker(job: DiskJob) -> None:
    """Ask the disk's tracker whether what it knows since the base point can be trusted."""
    tracker = job.disk.tracker
    if tracker is None or job.base is None:
        return
    try:
        tracker.verify_base(job.base.tracker, job.base.generation, job.base.size)
    except TrackingLostError as lost:
        job.tracked = Tracked(lost=str(lost.reason))
    else:
        job.trusted = True


def _snapshot(job: DiskJob, track: bool, stack: ExitStack) -> None:
    """Fix the point in time, and close the tracker's generation with it."""
    if job.disk.tracker is None and track and not job.disk.is_block_device:
        _start_tracking(job.disk)
    job.signature = job.disk.signature() if job.disk.mode == "r" else None
    try:
        snapshot = stack.enter_context(job.disk.snapshot())
    except StorageError as error:
        if job.disk.mode != "r":
            raise
        # At rest behind our lock, the disk is its own snapshot; only tracking cannot go on.
        LOG.warning("disk %r: %s; tracking is not used", job.name, error.message)
        job.view, job.tracked = job.disk, Tracked(lost=CHECKPOINT_FAILED)
        return
    job.view = snapshot
    job.tracker_id, job.generation = snapshot.tracker_id, snapshot.generation
    tracker = job.disk.tracker
    if job.trusted and tracker is not None and job.base is not None:
        try:
            bits = tracker.changed_since(
                job.base.generation, until=snapshot.generation, tracker_id=job.base.tracker
            )
        except TrackingLostError as lost:  # written behind our back this very moment
            job.tracked = Tracked(lost=str(lost.reason))
        else:
            job.tracked = Tracked(bitmap_ranges(bits.bits, bits.granularity, job.disk.size))


def _start_tracking(disk: RawDisk) -> None:
    """Begin tracking a disk, where its folder lets us write beside it."""
    try:
        disk.start_tracking()
    except StorageError as error:
        LOG.warning("disk %r will not be tracked: %s", disk.name, error.message)


def _detect(
    job: DiskJob,
    advance: Advance,
    on_data: OnData | None = None,
    *,
    detector: str,
    settings: Settings,
    seed: int,
) -> None:
    assert job.view is not None
    found = detect(
        job.view,
        job.base,
        detector=detector,
        settings=settings,
        tracked=job.tracked,
        seed=seed,
        on_progress=advance,
        on_data=on_data,
    )
    if job.damaged_base and job.base is None:
        found = replace(found, fallback=BASE_DAMAGED)
    job.changes = found
    if found.fallback == SPOT_CHECK and job.disk.tracker is not None:
        # Nothing older than this job's own snapshot is believed any more.
        job.disk.tracker.reset()


def _check_unchanged(job: DiskJob) -> None:
    if job.signature is not None and job.disk.signature() != job.signature:
        raise changed(job)


def _result(job: DiskJob) -> DiskBackup:
    changes = job.changes
    assert changes is not None
    return DiskBackup(
        name=job.name,
        size=changes.size,
        detector=changes.detector,
        fallback=changes.fallback,
        base=changes.base,
        scanned_bytes=changes.scanned_bytes,
        reported_bytes=changes.reported_bytes,
        changed_bytes=changes.changed_bytes,
        extents=changes.extents,
        sent_bytes=job.sent_bytes,
        new_bytes=job.new_bytes,
        stored_bytes=job.stored_bytes,
        detect_seconds=job.seconds["detect"],
        transfer_seconds=job.seconds["transfer"],
        changes=changes,
    )
