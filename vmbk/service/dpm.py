"""A backup server (DPM or MABS), run for real: machines to its own disks, these disks to Azure.

Disk to disk to cloud. Tier one, ``disk``: a member's disks are backed up by the pipeline into a
vault on the server's storage, and what changed is written into a replica of each disk, so that the
replica is always the newest point. Tier two, ``online``: the MARS agent of the server backs the
replicas up into the vault in Azure. (Seed S4, back up to DPM/MABS.) So nothing that happened to a
member after the last disk point is online, however often the online tier runs.

Where this is simpler than the service: time is that of the scenario and a backup takes none of it;
a point past its retention is not offered any more, but its bytes stay in the vault; the protection
agent tracks changes as `vmbk.backup` does where it can; and the label of an online point in the
vault is that of the MARS agent, which asked no application, while the server's own record of it
says what the disk point that it copies was.

The server's ledger of points is replaced as a whole after each backup. A backup that is killed
before that leaves a point in the vault of which the server knows nothing, and that harms nobody.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from vmbk.disk.raw import RawDisk
from vmbk.display import table
from vmbk.errors import InputError, IntegrityError, NotFoundError, StorageError
from vmbk.pipeline.backup import backup
from vmbk.pipeline.job import DISK_NAME
from vmbk.pipeline.point_disk import PointDisk
from vmbk.pipeline.restore import restore, restore_disk
from vmbk.pipeline.results import BackupResult
from vmbk.service.dpm_groups import KINDS, Member, ProtectionGroup, ServerRules, server_rules
from vmbk.service.dpm_records import TIERS, ServerRestore, ServerRun, TierPoint, check_tier
from vmbk.service.durable import remove_files, save_file
from vmbk.service.mars import MarsAgent
from vmbk.service.vhd import copy_extents
from vmbk.units import quoted
from vmbk.vault import Vault

MOST_LEDGER: Final = 64 << 20
"""Bytes of the ledger: some hundred thousand points."""


class BackupServer:
    """A DPM or MABS server with its storage, its cache folder and a vault in Azure.

    Parameters
    ----------
    folder : path
        The server's own storage: replicas, the ledger and the cache of its MARS agent.
    local : Vault
        On the same storage: the points of the disk tier.
    online : Vault
        In Azure.
    name : str
        The server's name, by which its machines are known in the online vault.
    kind : str
        ``dpm`` or ``mabs``.
    place : str
        ``on-premises`` or ``azure``.
    rules : ServerRules, optional
        Others than `server_rules`.

    Raises
    ------
    InputError
        If there is no such server.
    IntegrityError
        If the ledger in the folder is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        local: Vault,
        online: Vault,
        *,
        name: str = "server",
        kind: str = "mabs",
        place: str = "on-premises",
        rules: ServerRules | None = None,
    ) -> None:
        self.rules = rules or server_rules()
        if kind not in KINDS:
            raise InputError(f"{quoted(kind)} is no backup server", hint="it is dpm or mabs")
        if place not in self.rules.places:
            raise InputError(
                f"a server cannot be at {quoted(place)}", hint=f"{' or '.join(self.rules.places)}"
            )
        if place == "azure" and kind not in self.rules.in_azure:
            raise InputError(
                f"a {kind} server cannot protect Azure VMs",
                hint="use MABS, running as an Azure VM",
            )
        if not DISK_NAME.fullmatch(name):
            raise InputError(f"{quoted(name)} is no name for a server")
        self.folder = Path(folder)
        self.local, self.online = local, online
        self.name, self.kind, self.place = name, kind, place
        self._groups: dict[str, tuple[Member, ProtectionGroup]] = {}
        self._ledger_file = self.folder / "ledger.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot use {str(self.folder)!r}: {error.strerror}") from error
        self._ledger = self._read_ledger()

    def __repr__(self) -> str:
        return f"BackupServer({self.name!r}, {self.kind}, {_where(self.place)})"

    def _repr_html_(self) -> str:
        rows = []
        for name, (machine, group) in self._groups.items():
            counts = (sum((p.member, p.tier) == (name, t) for p in self._ledger) for t in TIERS)
            rows.append((group.name, name, machine.protects, len(machine.disks), *counts))
        header = ("group", "member", "protected as", "disks", "disk points", "online points")
        return table(f"{self.kind.upper()} server {self.name}, {_where(self.place)}", header, rows)

    def _read_ledger(self) -> list[TierPoint]:
        try:
            with self._ledger_file.open("rb") as file:
                told = json.loads(file.read(MOST_LEDGER))
            if not isinstance(told, list):
                raise ValueError("it is no list")
            return [TierPoint.parse(point) for point in told]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:
            raise IntegrityError(
                f"the ledger {str(self._ledger_file)!r} is damaged: {error}"
            ) from error

    def protect(self, group: ProtectionGroup) -> None:
        """Take on a protection group.

        Raises
        ------
        InputError
            If a machine is somewhere else than the server, or is protected already.
        """
        for member in group.members:
            if member.place != self.place:
                raise InputError(
                    f"the server is {_where(self.place)} and cannot protect {quoted(member.name)}, "
                    f"which is {_where(member.place)}",
                    hint="a server protects machines of its own place",
                )
            if member.name in self._groups:
                raise InputError(f"{quoted(member.name)} is in a protection group already")
            if not DISK_NAME.fullmatch(f"{self.name}.{member.name}"):
                raise InputError(f"{quoted(member.name)} is too long a name for the online vault")
        self._groups.update({member.name: (member, group) for member in group.members})

    # Backups

    def back_up_to_disk(self, member: str, at: int, *, writers_ok: bool = True) -> TierPoint:
        """Tier one: the member's disks to the server's storage.

        Parameters
        ----------
        member : str
            Its name.
        at : int
            The time, in nanoseconds since the first midnight.
        writers_ok : bool
            Whether the application got ready, where it is asked; else the point is labelled
            ``filesystem``.

        Raises
        ------
        InputError
            If the member is unknown, or time went back.
        VmbkError
            As `vmbk.backup`.
        """
        machine, _ = self._member(member)
        self._require_after(member, "disk", at)
        aware = machine.protects in self.rules.aware
        done = backup(
            list(machine.disks),
            self.local,
            member,
            detector="full" if machine.protects in self.rules.not_incremental else "auto",
            consistency="application" if aware and writers_ok else "filesystem",
        )
        self._renew_replicas(member, done)
        return self._note(
            TierPoint(
                member=member,
                tier="disk",
                at_ns=at,
                content_ns=at,
                consistency=self.local.point(done.point).consistency,
                points=tuple((disk.name, done.point) for disk in done.disks),
                scanned_bytes=done.total("scanned_bytes"),
                changed_bytes=done.total("changed_bytes"),
                sent_bytes=done.total("sent_bytes"),
                stored_bytes=done.stored_bytes,
            )
        )

    def back_up_online(self, member: str, at: int) -> TierPoint:
        """Tier two: the member's replicas to Azure, by the server's MARS agent.

        Raises
        ------
        InputError
            If there is no disk point to send yet, or the agent had its backups of this day.
        VmbkError
            As `MarsAgent.back_up`.
        """
        self._member(member)
        self._require_after(member, "online", at)
        held = [p for p in self._ledger if (p.member, p.tier) == (member, "disk")]
        if not held:
            raise InputError(
                f"the server has no copy of {quoted(member)} yet", hint="back it up to disk first"
            )
        source = held[-1]
        self._require_replica(member, source)
        agent = MarsAgent(self.folder / "cache", self.online, f"{self.name}.{member}")
        done = [agent.back_up(self._replica(member, disk), at) for disk, _ in source.points]
        return self._note(
            replace(
                source,
                tier="online",
                at_ns=at,
                points=tuple((backed.volume, backed.point) for backed in done),
                scanned_bytes=sum(backed.scanned_bytes for backed in done),
                changed_bytes=sum(backed.changed_bytes for backed in done),
                sent_bytes=sum(backed.sent_bytes for backed in done),
                stored_bytes=sum(backed.stored_bytes for backed in done),
            )
        )

    def run(self, until_ns: int, before: Callable[[int], None] | None = None) -> ServerRun:
        """Back all members up by their schedules.

        Parameters
        ----------
        until_ns : int
            When to end, in nanoseconds since the first midnight.
        before : callable, optional
            Called with the time before each slot, to write to the members' disks.

        Returns
        -------
        ServerRun
        """
        slots = sorted(
            (int(time_ns), rank, name)
            for name, (_, group) in self._groups.items()
            for rank, tier in enumerate(TIERS)
            for time_ns in getattr(group, tier).slots(until_ns)
        )
        made = []
        for time_ns, rank, name in slots:
            if before is not None:
                before(time_ns)
            back_up = (self.back_up_to_disk, self.back_up_online)[rank]
            made.append(back_up(name, time_ns))
        return ServerRun(tuple(made), until_ns)

    # Restores

    def points(self, member: str, now: int, tier: str | None = None) -> tuple[TierPoint, ...]:
        """A member's points that are held at a time, by the time of their content.

        Raises
        ------
        InputError
            If the member or the tier is unknown.
        """
        _, group = self._member(member)
        found: list[TierPoint] = []
        for name in TIERS if tier is None else (check_tier(tier),):
            mine = [p for p in self._ledger if (p.member, p.tier) == (member, name)]
            mine = [p for p in mine if p.at_ns <= now]
            kept = getattr(group, name)
            found += [p for p in mine if kept.holds(p.at_ns, now, p is mine[-1])]
        return tuple(sorted(found, key=lambda p: (p.content_ns, TIERS.index(p.tier))))

    def restore(
        self,
        member: str,
        to: str | os.PathLike[str],
        *,
        now: int,
        wanted: int | None = None,
        tier: str | None = None,
        disks: Sequence[str] | None = None,
    ) -> ServerRestore:
        """Restore a member from the nearest tier that holds the point.

        Parameters
        ----------
        member : str
            Its name.
        to : path
            Folder for raw images.
        now : int
            The time: what is past its retention by then is not there.
        wanted : int, optional
            The newest content up to this time; up to now by default.
        tier : str, optional
            Only from this one.
        disks : sequence of str, optional
            Which; all by default.

        Raises
        ------
        InputError
            If the member or tier is unknown, or single disks of a bare-metal member are wanted.
        NotFoundError
            If no point holds that, or none of those that do can be restored.
        """
        machine, _ = self._member(member)
        if disks is not None and machine.protects == "bare_metal":
            raise InputError(f"{quoted(member)} is protected as bare metal: all disks or none")
        goal = now if wanted is None else wanted
        found = [p for p in self.points(member, now, tier) if p.content_ns <= goal]
        found.sort(key=lambda p: (-p.content_ns, TIERS.index(p.tier), -p.at_ns))
        passed: list[str] = []
        for point in found:
            vault = self.local if point.tier == "disk" else self.online
            chosen = [pair for pair in point.points if disks is None or pair[0] in disks]
            if disks is not None and len(chosen) != len(set(disks)):
                raise InputError(f"{quoted(member)} has no such disks: {quoted(list(disks))}")
            try:
                done = [restore(p, vault, to, disks=[d]).disks[0] for d, p in chosen]
            except (IntegrityError, NotFoundError, StorageError) as error:
                passed.append(f"{point.tier} point of {point.content_ns} ns: {error.message}")
                continue
            return ServerRestore(point, goal - point.content_ns, tuple(passed), tuple(done))
        why = f": {'; '.join(passed)}" if passed else ""
        raise NotFoundError(
            f"no point of {quoted(member)} holds what it was at {goal} ns{why}",
            hint="ask for a later time" if not passed else "",
        )

    # Replicas and the ledger

    def _replica(self, member: str, disk: str) -> Path:
        return self.folder / "replicas" / member / f"{disk}.raw"

    def _stamp(self, member: str) -> Path:
        """Which local point the replicas are; absent while they are being written."""
        return self.folder / "replicas" / member / "point"

    def _renew_replicas(self, member: str, done: BackupResult) -> None:
        """Make the replicas the state of a new disk point."""
        stamp = self._stamp(member)
        try:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stood = stamp.read_text(encoding="ascii", errors="replace") if stamp.exists() else ""
        except OSError as error:
            raise StorageError(f"cannot use {str(stamp.parent)!r}: {error.strerror}") from error
        remove_files(stamp)
        point = self.local.point(done.point)
        for disk in done.disks:
            path = self._replica(member, disk.name)
            if path.exists() and path.stat().st_size != disk.size:
                remove_files(path)
            in_step = path.exists() and stood == disk.base
            with RawDisk.create(path, disk.size, exist_ok=True) as replica:
                if in_step:
                    source = PointDisk(self.local, point, disk.name)
                    copy_extents(source, disk.changes.all_extents(), replica)
                    replica.flush()
                else:
                    restore_disk(self.local, point, disk.name, replica, verify=False)
        save_file(stamp, done.point.encode())

    def _require_replica(self, member: str, source: TierPoint) -> None:
        """Make the replicas anew where a backup was killed while it wrote them."""
        stamp = self._stamp(member)
        wanted = source.points[0][1]
        if stamp.exists() and stamp.read_bytes() == wanted.encode():
            return
        point = self.local.point(wanted)
        remove_files(stamp)
        for name, _ in source.points:
            with RawDisk.create(
                self._replica(member, name), point.disk(name).size, exist_ok=True
            ) as replica:
                restore_disk(self.local, point, name, replica, verify=False)
        save_file(stamp, wanted.encode())

    def _note(self, point: TierPoint) -> TierPoint:
        ledger = [*self._ledger, point]
        save_file(self._ledger_file, json.dumps([asdict(p) for p in ledger]).encode())
        self._ledger = ledger
        return point

    def _member(self, name: str) -> tuple[Member, ProtectionGroup]:
        found = self._groups.get(name)
        if found is None:
            known = ", ".join(self._groups) or "none"
            raise InputError(f"no group protects {quoted(name)}", hint=f"protected: {known}")
        return found

    def _require_after(self, member: str, tier: str, at: int) -> None:
        if type(at) is not int or at < 0:
            raise InputError(f"at={quoted(at)} is no time: nanoseconds since the first midnight")
        last = [p.at_ns for p in self._ledger if (p.member, p.tier) == (member, tier)]
        if last and at < last[-1]:
            raise InputError(f"at={at} lies before the last {tier} point, at {last[-1]}")


def _where(place: str) -> str:
    return "in Azure" if place == "azure" else place
