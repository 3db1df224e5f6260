"""The MARS agent, run for real: a volume's changes, found by checksum, as VHDs into a vault.

The agent keeps a cache of each volume (`vmbk.service.mars_cache`). Its first backup makes a VHD of
the volume and a checksum of each block, and sends the VHD. Every later one finds the blocks whose
checksums differ, makes a differencing VHD of what changed, sends it, compressed and encrypted, and
merges it into the first VHD, which so stays the latest state, that to be compared with next time.
(Seed S4, direct backup of on-premises Windows Server machines.)

Where this is simpler than the service: it backs up volumes, block by block, where the service picks
files and folders and asks first which files changed; the cached VHD holds all the data, where that
of the service fits into 5 to 10 % of it; compression and encryption are those of `vmbk.vault`,
chunk by chunk as they are sent and not of the VHD as a file; and no volume is larger than a VHD can
be, 2040 GiB. System state is a volume like any other here.

The steps are in an order that a kill between any two of them cannot make a later backup wrong. The
cache is believed only if its state names the volume's last recovery point in this vault; that state
is written last, and removed before the merge. Else the volume is compared in full: with the digests
of the last recovery point in the vault, or sent whole where that cannot be restored. A point exists
when the vault has committed it, whatever the cache says.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, NoReturn

from vmbk.detect.changes import ChangeSet, Settings
from vmbk.detect.choose import detect
from vmbk.detect.scan import load_kernels
from vmbk.disk.raw import RawDisk
from vmbk.errors import InputError, IntegrityError, StorageError
from vmbk.pipeline.job import DISK_NAME, DiskJob, open_disks
from vmbk.pipeline.record import disk_record_of
from vmbk.pipeline.restore import restore_disk
from vmbk.pipeline.results import RestoredDisk, RestoreResult
from vmbk.pipeline.transfer import changed, transfer
from vmbk.progress import progress
from vmbk.provenance import provenance
from vmbk.service.mars_base import what_is_known
from vmbk.service.mars_cache import Cache
from vmbk.service.mars_records import MarsBackup, MarsRules, mars_rules
from vmbk.service.plan import DAY
from vmbk.service.vhd import FIXED, DifferencingVhd, Footer, create_fixed
from vmbk.units import format_size, quoted
from vmbk.vault import RecoveryPoint, Vault, VaultWriter

LOG: Final = logging.getLogger("vmbk")


class MarsAgent:
    """The agent of one machine, with its cache folder and the vault that it sends to.

    Parameters
    ----------
    cache_dir : path
        The cache folder; made at the first backup.
    vault : Vault
        Where recovery points go; encrypted with the vault's key.
    machine : str
        The machine's name in the vault.
    os : str
        Its operating system; the agent runs on Windows only.
    settings : Settings, optional
        Bytes of a block and of a sub-block.
    rules : MarsRules, optional
        Others than `mars_rules`.

    Raises
    ------
    InputError
        If the agent does not run on this operating system, or the machine's name is none.
    """

    def __init__(
        self,
        cache_dir: str | os.PathLike[str],
        vault: Vault,
        machine: str,
        os: str = "windows",
        *,
        settings: Settings | None = None,
        rules: MarsRules | None = None,
    ) -> None:
        self.rules = rules or mars_rules()
        if os not in self.rules.systems:
            raise InputError(
                f"the MARS agent does not run on {quoted(os)}, only on {self.rules.systems[0]}",
                hint="protect the machine with a backup server (DPM or MABS), or as an Azure VM",
            )
        if not isinstance(machine, str) or not DISK_NAME.fullmatch(machine):
            raise InputError(
                f"{quoted(machine)} is no name for a machine",
                hint="use up to 64 letters, digits, dots, dashes and underscores",
            )
        self.cache_dir = Path(cache_dir)
        self.vault = vault
        self.machine = machine
        self.settings = settings or Settings()

    def __repr__(self) -> str:
        return f"MarsAgent({self.machine!r}, cache {str(self.cache_dir)!r}, {self.vault!r})"

    def cache_of(self, volume: str) -> Cache:
        """The cache of a volume.

        Raises
        ------
        InputError
            If that is no volume's name.
        """
        if not DISK_NAME.fullmatch(volume):
            raise InputError(f"{quoted(volume)} is no name for a volume")
        return Cache(self.cache_dir / self.machine / volume, volume)

    def points(self, volume: str | None = None) -> tuple[RecoveryPoint, ...]:
        """The machine's recovery points by time, or those of a volume."""
        points = self.vault.points(self.machine, damaged="skip")
        return tuple(p for p in points if volume is None or any(d.name == volume for d in p.disks))

    def back_up(self, volume_image: RawDisk | str | os.PathLike[str], at: int = 0) -> MarsBackup:
        """Back a volume up as one recovery point.

        Parameters
        ----------
        volume_image : RawDisk or path
            As `vmbk.backup` takes a disk: ``name=path`` names it.
        at : int
            The time, in nanoseconds since midnight of the scenario's first day; a day's backups
            are counted by it.

        Returns
        -------
        MarsBackup

        Raises
        ------
        InputError
            If the volume is none, is too large, or had its backups of this day.
        TargetTooSmallError
            If the cache folder has too little room.
        BusyError
            If another backup of this machine or volume runs.
        ChangedDuringBackupError
            If a volume at rest was written meanwhile; no point is made then.
        StorageError
            If an image or the vault cannot be written; points made earlier are untouched.
        """
        if type(at) is not int or at < 0:
            raise InputError(f"at={quoted(at)} is no time: nanoseconds since the first midnight")
        load_kernels()
        clock = _Clock()
        with ExitStack() as stack:
            with clock("snapshot"):
                jobs, _ = open_disks([volume_image], (), stack)
                job = jobs[0]
                self._require_allowed(job.disk)
                writer = stack.enter_context(self.vault.writer(self.machine))
                self._require_quota(job.name, at)
                kept = self.cache_of(job.name)
                stack.enter_context(kept.held())
                points = self.points(job.name)
                known = what_is_known(
                    self.vault, points, kept, job.name, job.disk.size, self.settings
                )
                job.base, job.base_point = known.base, known.point
                self._snapshot(job, stack)
            with clock("scan"):
                changes = self._scan(job)
            with clock("image"):
                image, image_bytes = self._image(kept, job, known.cached, stack)
            with clock("send"):
                point = self._send(job, image, writer, at)
            with clock("merge"):
                merged = self._merge(kept, image, point, changes, image_bytes)
        return MarsBackup(
            point=point.id,
            volume=job.name,
            at_ns=at,
            consistency=point.consistency,
            detector=changes.detector,
            fallback=known.why,
            size=changes.size,
            scanned_bytes=changes.scanned_bytes,
            changed_bytes=changes.changed_bytes,
            extents=changes.extents,
            image_bytes=image_bytes,
            sent_bytes=job.sent_bytes,
            new_bytes=job.new_bytes,
            stored_bytes=writer.stored_bytes,
            merged_bytes=merged,
            seconds=clock.finish(),
        )

    # What is asked before

    def _require_allowed(self, disk: RawDisk) -> None:
        """The rule of the agent, and what a VHD can hold."""
        if disk.size > self.rules.volume_most:
            raise InputError(
                f"the volume {disk.name!r} of {disk.size:,} bytes is larger than the "
                f"{self.rules.volume_most:,} that the MARS agent backs up",
                hint="split it, or protect the machine with a backup server",
            )
        Footer.new(disk.size, FIXED)

    def _require_quota(self, volume: str, at: int) -> None:
        """Three backups a day, and time goes on."""
        times = [_at_of(point) for point in self.points(volume)]
        if at < max(times, default=0):
            raise InputError(f"at={at} lies before the last backup of {volume!r}, at {max(times)}")
        today = sum(1 for time_ns in times if time_ns // DAY == at // DAY)
        if today >= self.rules.a_day:
            raise InputError(
                f"the volume {volume!r} had {today} backups on day {at // DAY}; the MARS agent "
                f"makes {self.rules.a_day} a day at most",
                hint="wait for the next day",
            )

    # The steps, in their order

    def _snapshot(self, job: DiskJob, stack: ExitStack) -> None:
        """The volume at one moment; at rest behind our lock, it is its own snapshot."""
        if job.disk.mode == "r":
            job.signature, job.view = job.disk.signature(), job.disk
        else:
            job.view = stack.enter_context(job.disk.snapshot())

    def _scan(self, job: DiskJob) -> ChangeSet:
        assert job.view is not None
        wanted = "checksum" if job.base is not None else "full"
        with progress(f"scan {job.name}", job.disk.size) as advance:
            job.changes = detect(
                job.view, job.base, detector=wanted, settings=self.settings, on_progress=advance
            )
        if not job.changes.base:
            job.base = job.base_point = None
        return job.changes

    def _image(
        self, kept: Cache, job: DiskJob, cached: bool, stack: ExitStack
    ) -> tuple[RawDisk | DifferencingVhd, int]:
        """The new VHD, and the bytes that it holds."""
        assert job.view is not None
        assert job.changes is not None
        data = int(job.view.data_extents()[1].sum())
        # An increment is there twice until it is merged: by itself, and in the base.
        needed = 2 * job.changes.data_bytes if cached else data
        if not cached:
            kept.drop()
        free = kept.require_room(needed, data, self.rules.cache_least)
        if free < self.rules.cache_wanted * data:
            LOG.warning(
                "the cache folder has %s free, less than %.0f %% of the data of %r",
                format_size(free), 100 * self.rules.cache_wanted, job.name,
            )  # fmt: skip
        if not cached:
            whole = kept.make_whole(job.view)
            stack.callback(whole.close)
            return whole, data
        increment = kept.make_increment(job.view, job.changes)
        stack.callback(increment.close)
        return increment, job.changes.changed_bytes

    def _send(
        self, job: DiskJob, image: RawDisk | DifferencingVhd, writer: VaultWriter, at: int
    ) -> RecoveryPoint:
        """What changed, read from the VHD, into the vault; the point exists when this returns."""
        assert job.changes is not None
        # The VHD's bytes are sent if they still are what was digested.
        sender = replace(job, view=image)
        with progress(f"send {job.name}", job.changes.data_bytes) as advance:
            transfer(sender, writer, _nothing_to_find, advance)
        job.sent = sender.sent
        if job.signature is not None and job.disk.signature() != job.signature:
            raise changed(job)
        record = disk_record_of(job, self.vault, writer)
        about = {"at_ns": at, "agent": "mars"}
        return writer.commit(
            self.machine,
            disks=[record],
            consistency=self.rules.consistency,
            provenance={**provenance().to_dict(), "detector": record.detector, "mars": about},
        )

    def _merge(
        self, kept: Cache, image: RawDisk | DifferencingVhd, point: RecoveryPoint,
        changes: ChangeSet, image_bytes: int,
    ) -> int:  # fmt: skip
        """Make the cache's VHD the latest state, and say so last of all."""
        if isinstance(image, RawDisk):
            kept.put_whole(image)
            merged = image_bytes
        else:
            merged = kept.merge(image)
            image.close()
        kept.save(self.vault.id, point.id, changes)
        return merged

    # Afterwards

    def verify_cache(self, volume: str) -> str:
        """Read the cached VHD of a volume whole and compare it with the cached checksums.

        Returns
        -------
        str
            The recovery point whose state it is.

        Raises
        ------
        IntegrityError
            If they differ, or there is no cache to believe.
        """
        load_kernels()
        kept = self.cache_of(volume)
        with kept.held():
            return kept.verify().point

    def restore(
        self, point: str | RecoveryPoint, to: str | os.PathLike[str], *, verify: bool = True
    ) -> RestoreResult:
        """Restore a recovery point as fixed VHDs ``TO/<volume>.vhd``.

        Parameters
        ----------
        point : str or RecoveryPoint
            A point of this machine, its id or a unique beginning of it, or ``latest``.
        to : path
            Folder; made where it is absent. An image that stands there is replaced when the new
            one is whole.
        verify : bool
            Read the image back and compare with the stored digests.

        Raises
        ------
        NotFoundError
            If this machine has no such point.
        IntegrityError
            If what is stored or what was written is not what was backed up.
        StorageError
            If the image cannot be written.
        """
        load_kernels()
        started = time.perf_counter()
        if isinstance(point, str):
            point = self.vault.point(point, vm=self.machine)
        folder = Path(to)
        done: list[RestoredDisk] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for record in point.disks:
                if not DISK_NAME.fullmatch(record.name):
                    raise IntegrityError(f"the point names a volume {quoted(record.name)}")
                final = folder / f"{record.name}.vhd"
                new = folder / f".{record.name}.vhd.partial"
                new.unlink(missing_ok=True)
                target, _ = create_fixed(new, record.size)
                with target:
                    result = restore_disk(
                        self.vault, point, record.name, target, blank=True, verify=verify
                    )
                    new.replace(final)
                done.append(replace(result, path=final))
        except OSError as error:
            raise StorageError(f"cannot restore to {str(folder)!r}: {error.strerror}") from error
        return RestoreResult(point.id, tuple(done), verify, time.perf_counter() - started)


def _at_of(point: RecoveryPoint) -> int:
    """When a point was made, by its provenance; 0 for one that another tool made."""
    told = point.provenance.get("mars")
    at = told.get("at_ns") if isinstance(told, dict) else None
    return at if type(at) is int else 0


def _nothing_to_find(*_: object) -> NoReturn:
    raise AssertionError("the changes were found before they are sent")


class _Clock:
    """Seconds of stages."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self._seconds[stage] = time.perf_counter() - begun

    def finish(self) -> dict[str, float]:
        return {**self._seconds, "total": time.perf_counter() - self._started}
