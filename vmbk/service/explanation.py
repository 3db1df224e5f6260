"""Why was this backup slow, and why so large: one job taken apart, in numbers that add up.

A job's duration is the sum of its phases (`MODEL.md`); those of its critical disk, scan and send,
are taken apart further: bytes at the best rate, what dispersed extents and small writes cost, what
the disk's own requests a second cost, and what the account lost to its caps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.calibration import RECOMMENDED, Calibration, calibration
from vmbk.service.engine import simulate_fast
from vmbk.service.load import part_flows
from vmbk.service.plan import (
    CHECKSUM,
    DISK,
    FALLBACK,
    INITIAL,
    JOB,
    MODES,
    NO_MODE,
    PART,
    SECOND,
    STATES,
    TRANSFERS,
    told,
)
from vmbk.units import format_duration, format_size, quoted

if TYPE_CHECKING:
    from vmbk.service.simulation import Simulation

MEANINGS: Final = {
    "install": "the extension was installed",
    "snapshot": "the snapshot phase, with its retries",
    "queue": "the wait in the service's queue",
    "place": "the wait for a place among the vault's transfers",
    "scan bytes": "used blocks were read and compared",
    "scan extents": "changed extents were looked up",
    "scan requests": "the disk gave no more requests a second while it was read",
    "scan throttled": "the account was at its cap while the disk was read",
    "send bytes": "bytes were sent at the best rate",
    "send extents": "changes lay apart: each extent cost more",
    "send small writes": "extents were written in blocks below 8 KiB",
    "send requests": "the disk gave no more requests a second while it was sent",
    "send throttled": "the account was at its cap while the disk was sent",
    "cut off": "the transfer was under way until the account's keys were rotated",
    "commit": "the recovery point was made",
}


@dataclass(frozen=True)
class JobPart:
    """A part of a job's duration."""

    name: str
    ns: int

    @property
    def meaning(self) -> str:
        """What it is, in words."""
        return MEANINGS[self.name]


@dataclass(frozen=True)
class DiskPart:
    """What one disk had in a job: its mode, and bytes read, changed and (if done) sent."""

    disk: str
    mode: str
    read: int
    changed: int
    extents: int


@dataclass(frozen=True)
class JobExplanation:
    """A job taken apart.

    Attributes
    ----------
    vm, job : str, int
    state, transfer : str
    duration : int
        Nanoseconds: exactly the sum of `parts`.
    parts : tuple of JobPart
        Those that are not 0, in their order in time.
    critical : str or None
        The disk that ended last, of which scan and send are.
    disks : tuple of DiskPart
        All that took part: their changed bytes add up to the job's.
    changed, sent : int
        Bytes.
    text : str
        What dominates, in a sentence or two.
    """

    vm: str
    job: int
    state: str
    transfer: str
    duration: int
    parts: tuple[JobPart, ...]
    critical: str | None
    disks: tuple[DiskPart, ...]
    changed: int
    sent: int
    text: str

    @property
    def dominant(self) -> str | None:
        """The longest part's name."""
        return max(self.parts, key=lambda part: part.ns).name if self.parts else None

    @property
    def largest(self) -> DiskPart | None:
        """The disk of which most bytes changed."""
        return max(self.disks, key=lambda part: part.changed) if self.disks else None

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "vm": self.vm, "job": self.job, "state": self.state, "transfer": self.transfer,
            "duration_ns": self.duration, "critical": self.critical, "dominant": self.dominant,
            "parts": [{"part": p.name, "ns": p.ns, "meaning": p.meaning} for p in self.parts],
            "changed_bytes": self.changed, "sent_bytes": self.sent,
            "disks": [
                {"disk": d.disk, "mode": d.mode, "read_bytes": d.read, "changed_bytes": d.changed,
                 "extents": d.extents}
                for d in self.disks
            ],
            "text": self.text,
        }  # fmt: skip

    def _repr_html_(self) -> str:
        rows = [
            (part.name, format_duration(part.ns / SECOND), f"{part.ns / self.duration:.1%}",
             part.meaning)
            for part in self.parts
        ]  # fmt: skip
        title = f"{self.vm}, job {self.job}: {format_duration(self.duration / SECOND)}. {self.text}"
        html = table(title, ("part", "time", "of all", "what it is"), rows)
        disks = [
            (d.disk, d.mode, format_size(d.read), format_size(d.changed), f"{d.extents:,}")
            for d in self.disks
        ]
        return html + table("Disks", ("disk", "mode", "read", "changed", "extents"), disks)


def explain_job(
    simulation: Simulation, vm: str, job: int, penalties: Calibration | None = None
) -> JobExplanation:
    """Take a job apart.

    Parameters
    ----------
    simulation : Simulation
        If it did not keep what disks did, it is run again with them.
    vm : str
    job : int
        From 0.
    penalties : Calibration, optional
        With which the simulation was made, if not with the one that comes with vmbk: it tells
        dispersion and small writes apart.

    Returns
    -------
    JobExplanation

    Raises
    ------
    InputError
        If there is no such VM or job.
    """
    scenario, plan, outputs = simulation.scenario, simulation.plan, simulation.outputs
    names = [each.name for each in scenario.vms]
    if vm not in names:
        raise InputError(f"there is no VM {quoted(vm)}", hint=", ".join(names[:10]))
    v = names.index(vm)
    count = int(plan.job_first[v + 1] - plan.job_first[v])
    if type(job) is not int or not 0 <= job < count:
        raise InputError(f"{vm} has no job {quoted(job)}", hint=f"jobs: 0 to {count - 1}")
    if not len(outputs.parts) and plan.part_first[-1]:
        outputs = simulate_fast(plan, parts=True)
    row = int(plan.job_first[v]) + job
    found = dict(zip(JOB, outputs.jobs[row].tolist(), strict=True))
    codes = {name: int(told(outputs.jobs[row : row + 1], name)[0])
             for name in ("state", "transfer", "critical")}  # fmt: skip
    own = [disk for disk in scenario.vms[v].disks if disk.backed_up]
    first = int(plan.part_first[v]) + job * len(own)
    parts = [dict(zip(PART, line, strict=True)) for line in
             outputs.parts[first : first + len(own)].tolist()]  # fmt: skip
    disks = tuple(
        DiskPart(disk.name, MODES[part["mode"]], part["read"], part["changed"], part["extents"])
        for disk, part in zip(own, parts, strict=True)
        if part["mode"] != NO_MODE
    )
    times = {name: found[name] for name in ("install", "snapshot", "queue", "place")}
    critical = None
    if codes["critical"]:
        i = codes["critical"] - 1
        critical = own[i].name
        flows = part_flows(plan, outputs)
        at = int(((flows.job == row) & (flows.disk == plan.disk_first[v] + i)).argmax())
        works = {"scan": int(flows.scan.work[at]), "send": int(flows.send.work[at])}
        column = dict(zip(DISK, plan.disks[int(plan.disk_first[v]) + i].tolist(), strict=True))
        latency = scenario.profile["extent_latency"]
        plain = (penalties or calibration()).extent_cost(
            scenario.profile["incremental_rate"], max(own[i].write_size, RECOMMENDED)
        )
        times |= _taken_apart(found, parts[i], column, works, plain + latency)
    elif found["scan"] + found["send"]:
        times["cut off"] = found["scan"] + found["send"]
    times["commit"] = found["commit"]
    kept = tuple(JobPart(name, ns) for name, ns in times.items() if ns)
    duration = found["end"] - found["start"]
    explanation = JobExplanation(
        vm, job, STATES[codes["state"]], TRANSFERS[codes["transfer"]], duration, kept, critical,
        disks, found["changed"], found["sent"], "",
    )  # fmt: skip
    return replace(explanation, text=_text(explanation, parts))


def _taken_apart(
    job: dict[str, int], part: dict[str, int], disk: dict[str, int], works: dict[str, int],
    plain: int,
) -> dict[str, int]:  # fmt: skip
    """Scan and send of the critical disk in parts."""
    times: dict[str, int] = {}
    extents, cost = part["extents"], disk["extent_cost"]
    for flow in ("scan", "send"):
        if flow == "scan":
            reads = part["mode"] in (CHECKSUM, FALLBACK)
            size, rate = (part["read"] if reads else 0), disk["scan_rate"]
            looked = 0 if reads or part["mode"] == INITIAL else extents * disk["tracked_cost"]
            pieces = {"extents": looked}
        else:
            size = part["changed"]
            rate = disk["full_rate"] if part["mode"] == INITIAL else disk["send_rate"]
            small = extents * max(cost - plain, 0)
            pieces = {"extents": extents * cost - small, "small writes": small}
        pieces = {"bytes": -(-size * SECOND // rate), **pieces}
        pieces["requests"] = works[flow] - sum(pieces.values())
        pieces["throttled"] = job[flow] - works[flow]
        times |= {f"{flow} {name}": ns for name, ns in pieces.items()}
    return times


def _text(found: JobExplanation, parts: list[dict[str, int]]) -> str:
    """What dominates the time and the bytes."""
    if found.dominant is None:
        return "It was skipped: an earlier job was still under way."
    longest = max(found.parts, key=lambda part: part.ns)
    said = [
        f"{longest.ns / found.duration:.0%} of its time, {format_duration(longest.ns / SECOND)}: "
        f"{longest.meaning}"
    ]
    if longest.name.startswith(("scan", "send")):
        said[0] += f" (disk {found.critical})"
    if any(part["mode"] == FALLBACK for part in parts):
        said.append("A snapshot had been deleted, so that checksums were compared")
    largest = found.largest
    if largest is not None and found.changed:
        initial = largest.mode == "initial"
        why = "all that it uses, for the first time" if initial else "changed"
        said.append(
            f"{largest.changed / found.changed:.0%} of its {format_size(found.changed)} are of "
            f"disk {largest.disk}: {why}"
        )
    return ". ".join(said) + "."
