"""The vault checker: after a power cut, the vault opens and every acknowledged point restores.

======= ==========================================================================================
none    there is no vault, and none was acknowledged.
opens   the vault opens, and every point that it lists restores byte for byte; every point that was
        acknowledged and not forgotten is among them.
lost    an acknowledged point is not listed, or the whole vault is gone.
corrupt the vault does not open, or a point that it lists does not restore, or not as it was backed
        up; or the vault cannot be used any further.
======= ==========================================================================================

What a point must be is known from marks (`VaultMarks`): BLAKE3 of each disk's image, computed
without vmbk when the backup had returned. A point that was not acknowledged may be listed or not,
but if it is, it must restore: it exists from the moment its manifest has its name.

The vault is read back with ``debugfs``, file by file, and opened by vmbk itself; no disk is written
for a restore. Where `VaultChecker.resume` is set, it is then used further, as its owner would: the
newest point's disks are restored, changed and backed up again, that point is read back, and
``vault check --read-data`` must find nothing.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Final

import numpy as np
from blake3 import blake3

from vmbk.consistency.checkers import CheckContext, Tool, Verdict
from vmbk.consistency.extract import DEBUGFS, UnreadableError, extract_tree
from vmbk.consistency.vault_workload import VAULT, write_laboratory_key
from vmbk.errors import IntegrityError, NotFoundError, StorageError, VmbkError
from vmbk.units import MIB

if TYPE_CHECKING:
    from vmbk.trace.table import Trace
    from vmbk.vault import RecoveryPoint, Vault

THE_VAULT: Final = 0
"""Number of what `Vault.create` acknowledged; the points are numbered from 1."""

_POINT: Final = re.compile(
    r"point (\d{8}T\d{6}Z-[0-9a-f]{8}) ([0-9a-f]{64}(?:,[0-9a-f]{64})*)", re.ASCII
)
_FORGOTTEN: Final = re.compile(r"forgotten (\d{8}T\d{6}Z-[0-9a-f]{8})", re.ASCII)
_PIECE: Final = 4 * MIB  # bytes of a disk that are in memory
_REMEMBERED: Final = 256  # vaults: states that follow each other often hold the same one


@dataclass(frozen=True)
class PointMark:
    """What a capture says about one recovery point.

    Parameters
    ----------
    id : str
        The point.
    digests : tuple of str
        BLAKE3 (hex) of its disks, in the order of the point.
    row : int
        Row of the mark: before it, nothing was promised.
    forgotten_row : int or None
        Row from which on it need not exist any more.
    """

    id: str
    digests: tuple[str, ...]
    row: int
    forgotten_row: int | None = None


@dataclass(frozen=True)
class VaultMarks:
    """What the marks of a capture say about its vault.

    Parameters
    ----------
    points : tuple of PointMark
        In the order of their marks; the first has number 1.
    vault_row : int or None
        Row of the mark ``vault made``.
    made_row : int or None
        Row of the mark after which there is a file system.
    """

    points: tuple[PointMark, ...]
    vault_row: int | None
    made_row: int | None

    @classmethod
    def read(cls, trace: Trace) -> VaultMarks:
        """The marks of a trace, as `vmbk.consistency.vault_workload` writes them."""
        vault_row = made_row = None
        points: dict[str, PointMark] = {}
        for row, label in trace.marks():
            if label == "vault made":
                vault_row = row
            elif label == "mkfs done":
                made_row = row
            elif found := _POINT.fullmatch(label):
                points[found[1]] = PointMark(found[1], tuple(found[2].split(",")), row)
            elif (found := _FORGOTTEN.fullmatch(label)) and found[1] in points:
                points[found[1]] = replace(points[found[1]], forgotten_row=row)
        return cls(tuple(points.values()), vault_row, made_row)

    def context(self, row: int, folder: Path, timeout_s: float = 120.0) -> CheckContext:
        """What is known when the requests before ``row`` have happened.

        ``acknowledged`` has the numbers of all that must be there: `THE_VAULT`, and the points
        that were acknowledged and not forgotten.
        """
        numbers = [THE_VAULT] if self.vault_row is not None and self.vault_row < row else []
        for number, point in enumerate(self.points, start=1):
            forgotten = point.forgotten_row is not None and point.forgotten_row < row
            if point.row < row and not forgotten:
                numbers.append(number)
        made = None if self.made_row is None else self.made_row < row
        return CheckContext(folder, made, np.array(numbers, np.int64), timeout_s)


@dataclass(frozen=True)
class VaultVerdict(Verdict):
    """A verdict on a vault, with its points counted.

    Parameters
    ----------
    points_found : int
        Points that the vault lists and that restore as they were backed up.
    points_lost : int
        Points that must be there and do not.
    resumed : bool
        Whether the vault was used further.
    """

    points_found: int = 0
    points_lost: int = 0
    resumed: bool = False


@dataclass(frozen=True)
class _Found:
    """What a vault holds: for each point it lists, its disks' digests or why there are none."""

    exists: bool = False
    broken: str = ""  # why it does not open
    points: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class VaultChecker:
    """Judges a vault on an ext4 image; the rule is in the module.

    Parameters
    ----------
    marks : VaultMarks
        Of the capture: they say what each point must be.
    path : str
        The vault, from the root of its file system.
    resume : bool
        Whether the vault is used further after the cut.
    """

    marks: VaultMarks
    path: str = f"/{VAULT}"
    resume: bool = False
    name: str = "vault"
    tools: tuple[Tool, ...] = (DEBUGFS,)
    states: tuple[str, ...] = ("none", "opens", "lost", "corrupt")
    _memory: OrderedDict[str, _Found] = field(
        default_factory=OrderedDict, repr=False, compare=False
    )
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def check(self, image: Path, context: CheckContext) -> VaultVerdict:
        """Judge the vault on a file system that was replayed already; see `Checker.check`."""
        started = perf_counter()
        if context.filesystem_made is False:
            return VaultVerdict(self.name, "none", "mkfs had not finished")
        try:
            found, used = self._examine(image, context)
        except UnreadableError as error:
            found, used = _Found(exists=True, broken=str(error)), None
        state, detail, right, lost = self._judge(found, context)
        if used:
            state, detail = "corrupt", used
        return VaultVerdict(
            self.name, state, detail, "", perf_counter() - started, right, lost, used is not None
        )

    def _judge(self, found: _Found, context: CheckContext) -> tuple[str, str, int, int]:
        """State, why, points that are right, acknowledged points that are not there."""
        marks = self.marks.points
        known = {mark.id: mark.digests for mark in marks}
        needed = {marks[n - 1].id for n in context.acknowledged.tolist() if n != THE_VAULT}
        wrong = dict(found.damaged)
        for point, digests in found.points.items():
            if digests != known.get(point, digests):
                wrong[point] = "its bytes are not those that were backed up"
        right = found.points.keys() - wrong.keys()
        lost = len(needed - right)
        if found.broken:
            return "corrupt", f"the vault does not open: {found.broken}", 0, lost
        if not found.exists:
            if not len(context.acknowledged):
                return "none", "no vault", 0, 0
            return "lost", "there is no vault", 0, lost
        if wrong:
            point = min(wrong)
            return "corrupt", f"point {point}: {wrong[point]}", len(right), lost
        if lost:
            missing = ", ".join(sorted(needed - right))
            return "lost", f"not listed: {missing}", len(right), lost
        return "opens", f"{len(right)} points restore", len(right), 0

    def _examine(self, image: Path, context: CheckContext) -> tuple[_Found, str | None]:
        """What the vault on an image holds, and how its further use failed; None where not tried.

        "" says that it was used further and that nothing failed.
        """
        with tempfile.TemporaryDirectory(prefix="vault-", dir=context.folder) as name:
            folder = Path(name)
            vault = folder / "vault"
            if extract_tree(image, self.path, vault, context.timeout_s) is None:
                return _Found(), None
            deadline = monotonic() + context.timeout_s
            content = _digest_of_content(vault)
            with self._lock:
                found = self._memory.get(content)
            if found is None or self.resume:
                write_laboratory_key(folder / "key")
            if found is None:
                found = _look(vault, folder / "key", deadline)
                with self._lock:
                    self._memory[content] = found
                    while len(self._memory) > _REMEMBERED:
                        self._memory.popitem(last=False)
            used = None
            if self.resume and not found.broken:
                used = _use(vault, folder, found.exists, deadline)
        return found, used


def _digest_of_content(vault: Path) -> str:
    """BLAKE3 over names and contents of all that is read for a restore."""
    hasher = blake3()
    for path in sorted(vault.rglob("*")):
        name = path.relative_to(vault).as_posix()
        if path.is_file() and not name.startswith(("tmp/", "locks/")):
            data = path.read_bytes()
            hasher.update(f"{name} {len(data)} ".encode())
            hasher.update(data)
    return hasher.hexdigest()


def _look(path: Path, key: Path, deadline: float) -> _Found:
    """Open a vault and read every point that it lists, all disks to their ends."""
    from vmbk.vault import Vault

    points: dict[str, tuple[str, ...]] = {}
    damaged: dict[str, str] = {}
    try:
        with Vault.open(path, key, durability="none") as vault:
            listed = {entry.name for entry in (path / "points").glob("*")}
            good = vault.points(damaged="skip")
            for point in good:
                try:
                    points[point.id] = _digests(vault, point, deadline)
                except (IntegrityError, NotFoundError, StorageError) as error:
                    damaged[point.id] = error.message
    except NotFoundError:
        return _Found()
    except VmbkError as error:
        return _Found(exists=True, broken=error.message)
    for name in listed - {point.id for point in good}:
        damaged[name] = "its manifest does not open"
    return _Found(True, "", points, damaged)


def _digests(vault: Vault, point: RecoveryPoint, deadline: float) -> tuple[str, ...]:
    """BLAKE3 (hex) of each disk of a point, read from the vault."""
    from vmbk.pipeline.point_disk import PointDisk

    digests = []
    for record in point.disks:
        disk = PointDisk(vault, point, record.name)
        hasher = blake3()
        buffer = np.empty(min(disk.size, _PIECE), np.uint8)
        for offset in range(0, disk.size, _PIECE):
            if monotonic() > deadline:
                raise StorageError("it was not read in time")
            piece = buffer[: min(_PIECE, disk.size - offset)]
            disk.read_into(offset, piece)
            hasher.update(piece.data)
        digests.append(hasher.hexdigest())
    return tuple(digests)


def _use(path: Path, folder: Path, exists: bool, deadline: float) -> str:
    """Go on with a vault after the cut, as its owner would; what failed, "" where nothing did."""
    from vmbk.pipeline.backup import backup
    from vmbk.vault import Vault

    key = folder / "key"
    try:
        if not exists:
            Vault.create(path, key, durability="none")
        with Vault.open(path, key, durability="none") as vault:
            vm, images = _changed_disks(vault, folder)
            point = backup(images, vault, vm, track=False).point
        with Vault.open(path, key, durability="none") as vault:
            wanted = tuple(blake3(image.read_bytes()).hexdigest() for image in images)
            if _digests(vault, vault.point(point), deadline) != wanted:
                return "a new backup does not hold what was backed up"
            report = vault.check(read_data=True)
            return "" if report.ok else f"after a new backup: {report.errors[0]}"
    except VmbkError as error:
        return f"a new backup fails: {error.message}"


def _changed_disks(vault: Vault, folder: Path) -> tuple[str, list[Path]]:
    """The disks of the newest point, restored and changed; a new VM's where there is none."""
    from vmbk.pipeline.restore import restore

    points = vault.points()
    if points:
        restored = restore(points[-1], vault, folder / "restored", verify=False)
        vm, images = points[-1].vm, []
        for disk in restored.disks:
            assert disk.path is not None
            # A copy: a child that another thread forks meanwhile inherits the lock of the restore.
            images.append(Path(shutil.copyfile(disk.path, folder / f"{disk.name}.raw")))
    else:
        vm, images = "first", [folder / "first.raw"]
        images[0].write_bytes(bytes(MIB))
    for image in images:
        with image.open("r+b") as file:
            file.write(b"after the power cut" * 500)
    return vm, images
