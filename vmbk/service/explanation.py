"""Why did this backup fail, why was it slow, and why so large: one job, in numbers that add up.

What went wrong comes first, with the service's code and what it means for the recovery points.

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
from vmbk.service.failures import causes
from vmbk.service.load import part_flows
from vmbk.service.plan import (
    CHECKSUM,
    DISK,
    FALLBACK,
    INITIAL,
    JOB,
    LABELS,
    MODES,
    NO_MODE,
    PART,
    SECOND,
    STATES,
    TOLD,
    TRANSFER_FAILED,
    TRANSFERS,
    Outputs,
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
    "commit failed": "all was sent, and then the transfer failed",
}


_CONSEQUENCES: Final = {
    "none": "No recovery point",
    "skipped": "Transfer skipped: the one before was still running; no new point in the vault",
    "not due": "Not due: only the day's last backup goes to the vault",
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
    attempts : int
        At a snapshot; 0 if the job was skipped.
    label : str
        Consistency of the snapshot, "none" where there is none.
    cause : str
        Code of the last attempt that failed; "" if none did.
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
        What went wrong and what follows from it, if anything did; what dominates.
    """

    vm: str
    job: int
    state: str
    transfer: str
    attempts: int
    label: str
    cause: str
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
            "attempts": self.attempts, "label": self.label, "cause": self.cause,
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
    codes = {name: int(told(outputs.jobs[row : row + 1], name)[0]) for name in TOLD}
    own = [disk for disk in scenario.vms[v].disks if disk.backed_up]
    first = int(plan.part_first[v]) + job * len(own)
    parts = [dict(zip(PART, line, strict=True)) for line in
             outputs.parts[first : first + len(own)].tolist()]  # fmt: skip
    disks = tuple(
        DiskPart(disk.name, MODES[part["mode"]], part["read"], part["changed"], part["extents"])
        for disk, part in zip(own, parts, strict=True)
        if part["mode"] != NO_MODE
    )
    critical = codes["critical"] - 1
    flows = _critical_parts(simulation, outputs, row, v, critical, parts, penalties)
    explanation = JobExplanation(
        vm=vm, job=job, state=STATES[codes["state"]], transfer=TRANSFERS[codes["transfer"]],
        attempts=codes["attempts"], label=LABELS[codes["label"]],
        # What failed a transfer is no cause of an attempt.
        cause=simulation.jobs["cause"][row]
        if codes["cause"] or codes["transfer"] != TRANSFER_FAILED
        else "",
        duration=found["end"] - found["start"], parts=_kept(found, flows, codes["transfer"]),
        critical=own[critical].name if critical >= 0 else None, disks=disks,
        changed=found["changed"], sent=found["sent"], text="",
    )  # fmt: skip
    return replace(explanation, text=_text(explanation, found["point"] >= 0))


def _kept(job: dict[str, int], flows: dict[str, int], transfer: int) -> tuple[JobPart, ...]:
    """The parts of a job that took any time, in their order."""
    times = {name: job[name] for name in ("install", "snapshot", "queue", "place")} | flows
    if not flows:
        times["cut off"] = job["scan"] + job["send"]
    times["commit failed" if transfer == TRANSFER_FAILED else "commit"] = job["commit"]
    return tuple(JobPart(name, ns) for name, ns in times.items() if ns)


def _critical_parts(
    simulation: Simulation, outputs: Outputs, row: int, v: int, critical: int,
    parts: list[dict[str, int]], penalties: Calibration | None,
) -> dict[str, int]:  # fmt: skip
    """Scan and send of a job's critical disk in parts; none where no disk was copied to its end."""
    if critical < 0:
        return {}
    scenario, plan = simulation.scenario, simulation.plan
    disk = [each for each in scenario.vms[v].disks if each.backed_up][critical]
    i = int(plan.disk_first[v]) + critical
    flows = part_flows(plan, outputs)
    at = int(((flows.job == row) & (flows.disk == i)).argmax())
    works = {"scan": int(flows.scan.work[at]), "send": int(flows.send.work[at])}
    plain = (penalties or calibration()).extent_cost(
        scenario.profile["incremental_rate"], max(disk.write_size, RECOMMENDED)
    )
    job = dict(zip(JOB, outputs.jobs[row].tolist(), strict=True))
    column = dict(zip(DISK, plan.disks[i].tolist(), strict=True))
    latency = scenario.profile["extent_latency"]
    return _taken_apart(job, parts[critical], column, works, plain + latency)


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


def _text(found: JobExplanation, point: bool) -> str:
    """What went wrong, and what dominates the time and the bytes."""
    said = _outcome(found, point)
    longest = max(found.parts, key=lambda part: part.ns, default=None)
    if longest is not None:
        disk = f" (disk {found.critical})" if longest.name.startswith(("scan", "send")) else ""
        said.append(
            f"{longest.ns / found.duration:.0%} of its time, "
            f"{format_duration(longest.ns / SECOND)}: {longest.meaning}{disk}"
        )
    if any(disk.mode == "fallback" for disk in found.disks):
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


def _outcome(found: JobExplanation, point: bool) -> list[str]:
    """State, attempts, label, cause and consequence of a job that did not just succeed."""
    if found.state == "Skipped":
        return ["Skipped, with no attempt: an earlier job was still under way; no recovery point"]
    plain = found.state == "Completed" and found.transfer == "done"
    if plain and not found.cause:
        return []
    tries = f"{found.attempts} attempt{'' if found.attempts == 1 else 's'}"
    label = "no snapshot" if found.label == "none" else f"{found.label} consistent"
    said = [f"{found.state} after {tries}, {label}"]
    if found.cause:
        message = next((each.message for each in causes() if each.code == found.cause), "")
        where = "" if found.label == "none" else "The snapshot met "
        said.append(f"{where}{found.cause}: {message}".rstrip(".: "))
    if found.transfer == "failed":
        done = any(part.name == "commit failed" for part in found.parts)
        why = "after all was sent" if done else "as its account's keys were rotated"
        kept = "no new point in the vault" if point else "no recovery point"
        said.append(f"The transfer failed {why}: {kept}; the next backup sends these changes too")
    elif found.transfer != "done":
        said.append(_CONSEQUENCES[found.transfer])
    return said
