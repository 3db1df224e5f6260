"""The documents' worked examples, computed by the model.

One function for each of the examples that `vmbk.service.examples` lists. Each gives plain values in
the form and to the digits in which the document tells them; none of them is written down here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmbk.service.plan import DAY, HOUR
from vmbk.service.scenario import Scenario
from vmbk.service.simulation import Simulation, simulate

if TYPE_CHECKING:
    from vmbk.detect.changes import Base, ChangeSet
    from vmbk.service.cost_items import CostVM

GB: Final = 10**9
TB: Final = 10**12

AT_TWO: Final = {"name": "at two", "schedule": {"frequency": "daily", "at": "02:00"}}


def quiet(vms: list[dict[str, Any]], **more: Any) -> Scenario:
    """A scenario in which nothing fails, nothing waits and jobs start at their slots."""
    return Scenario.parse(
        {
            "failures": {"defaults": False},
            "readings": {"queue_curve": "never"},
            "service": {"start_jitter": "0s"},
            "policies": [AT_TWO],
            "vms": [{"policy": "at two", **vm} for vm in vms],
            **more,
        }
    )


def _disk(used: str, size: str = "4TiB", name: str = "disk", **more: Any) -> dict[str, Any]:
    return {"name": name, "size": size, "used": used, **more}


def _vm(*disks: dict[str, Any], name: str = "vm", **more: Any) -> dict[str, Any]:
    return {"name": name, "disks": list(disks), **more}


def _machine(*disks: dict[str, Any], profile: str = "instant", **policy: Any) -> CostVM:
    """One machine as the price list knows it."""
    from vmbk.service.charges import cost_vms

    declared = {**AT_TWO, **policy}
    return cost_vms(quiet([_vm(*disks)], profile=profile, policies=[declared]))[0]


# --- What is sent and stored ----------------------------------------------------------------------


def backup_types() -> Any:
    """Ten blocks A1 to A10; four of them change in the first month, one in the second."""
    from vmbk.service.databases import blocks_sent

    months = [np.array(changed, np.int64) - 1 for changed in ([2, 3, 4, 9], [5])]
    return blocks_sent(10, months).to_dict()


def shared_blocks() -> Any:
    """Three points on four blocks: the second changes block 3, the third blocks 2 and 3."""
    from vmbk.service.blocks import Versions

    versions = Versions.of([np.array(blocks, np.int64) for blocks in ([1, 2], [3], [2, 3])])

    def stored(live: Iterable[bool]) -> int:
        return int(versions.stored(np.array(list(live))).sum())

    taken = [stored(point <= last for point in range(3)) for last in range(3)]
    left = [stored(point > gone for point in range(3)) for gone in range(2)]
    return {"stored": taken, "left_as_they_expire": left}


def stored_granule() -> Any:
    """A change of 1 KB within one of four blocks."""
    from vmbk.service.blocks import GRANULE, granules

    changed = granules(np.array([GRANULE + 5000]), np.array([1024]))
    return {"stored_bytes": len(changed) * GRANULE}


def excluded_disks() -> Any:
    """A machine of three equal disks, once with all of them and once without two."""

    def sent(excluded: bool) -> int:
        disks = [_disk("100GB", name=f"disk{i}", excluded=excluded and i > 0) for i in range(3)]
        return int(simulate(quiet([_vm(*disks)], days=1)).jobs["sent_bytes"].sum())

    return {"saved_percent": round(100 * (1 - sent(True) / sent(False)), 1)}


def churn_share() -> Any:
    """A disk of which 10 GB of 200 GB change a day: what its jobs send."""
    # The second day is short of the minutes that the first job took to install the extension.
    first, _, later = simulate(quiet([_vm(_disk("200GB", churn="10GB"))], days=3)).jobs[
        "sent_bytes"
    ]
    return {"first_bytes": first, "later_bytes": later, "percent": 100 * later / first}


def identical_rewrite() -> Any:
    """A real disk: 64 KiB are written a second time with what is there already."""
    from tempfile import TemporaryDirectory

    from vmbk.disk.raw import RawDisk

    length = 1 << 16
    content = np.random.default_rng(0).bytes(length)
    with TemporaryDirectory() as folder, RawDisk.create(f"{folder}/disk.raw", 1 << 20) as disk:
        disk.write(0, content)
        tracker = disk.start_tracking(4096)
        with disk.snapshot(folder) as before:
            base = _base(before, tracker.id)
        disk.write(0, content)
        with disk.snapshot(folder) as after:
            found = [_changes(after, base, name, tracker) for name in ("tracking", "checksum")]
    return {"written_bytes": length} | {
        f"{each.detector}_bytes": each.reported_bytes for each in found
    }


def _base(snapshot: Any, tracker_id: str) -> Base:
    from vmbk.detect.changes import Base, Settings
    from vmbk.detect.choose import detect

    digests = detect(snapshot, None, settings=Settings(4096, 0)).digests
    return Base("before", snapshot.size, 4096, 0, digests, None, tracker_id, snapshot.generation)


def _changes(snapshot: Any, base: Base, detector: str, tracker: Any) -> ChangeSet:
    from vmbk.detect.changes import Settings
    from vmbk.detect.choose import Tracked, detect
    from vmbk.detect.scan import bitmap_ranges

    written = tracker.changed_since(base.generation, snapshot.generation, tracker_id=base.tracker)
    return detect(
        snapshot, base, detector=detector, settings=Settings(4096, 0),
        tracked=Tracked(bitmap_ranges(written.bits, written.granularity, snapshot.size)),
    )  # fmt: skip


# --- What it costs --------------------------------------------------------------------------------


def protected_size() -> Any:
    """An operating system disk, two data disks and a temporary one, with the maxima of two eras."""
    from vmbk.service.protected_instance import protected_size

    found = {}
    for profile, most in (("2017", "1023GiB"), ("instant", "32TiB")):
        vm = _machine(
            _disk("17GB", most, "os"),
            _disk("5GB", "135GiB", "temp", temporary=True),
            _disk("30GB", most, "data1"),
            _disk("0GB", most, "data2"),
            profile=profile,
        )
        found[profile] = protected_size(vm)
    return found


def snapshot_size() -> Any:
    """Five days of snapshots of 100 GB that change by 2 % a day, when there are that many."""
    from vmbk.service.cost import estimate
    from vmbk.service.prices import Prices

    found = {}
    for subtype, profile in (("standard", "instant"), ("enhanced", "enhanced")):
        vm = _machine(_disk("100GB", churn="2%"), profile=profile, subtype=subtype, instant_days=5)
        lines = estimate(vm, Prices.load(), first_month=2).lines
        found[subtype] = next(line.bytes for line in lines if line.part == "snapshot")
    return found


def instance_price() -> Any:
    """Protected instances of five sizes, at the prices of the launch."""
    from vmbk.service.cost import estimate
    from vmbk.service.prices import Prices

    sizes = (50, 51, 500, 501, 2000)
    vms = [_machine(_disk(f"{size}GB")) for size in sizes]
    bills = [estimate(vm, Prices.load()).part("instance") for vm in vms]
    return {f"{size} GB": float(bill) for size, bill in zip(sizes, bills, strict=True)}


def soft_delete_days() -> Any:
    """Soft delete of 60 days, undeleted on day 52."""
    from vmbk.service.deletion import soft_deleted_days

    return soft_deleted_days(60, 52).to_dict()


# --- Policies -------------------------------------------------------------------------------------


def months_of_31_days() -> Any:
    """A monthly point that is kept for twelve months."""
    from vmbk.service.points import Term, keep
    from vmbk.service.policy import Policy
    from vmbk.service.retention import MonthDay, Retention

    policy = Policy("p", retention=Retention(daily=7, monthly=12, monthly_on=(MonthDay(1),)))
    first_day = quiet([_vm(_disk("1GB"))]).first_day.replace(day=1)
    kept = keep(np.array([0], np.int64), first_day, [Term(0, policy)])
    return {"days": int(kept.expiry[0] - kept.times[0]) // DAY}


def one_more_snapshot() -> Any:
    """How many snapshots a machine has at most, by the days for which a policy keeps them."""
    from vmbk.service.points import count_held, snapshots_gone

    found = {}
    for days in range(1, 6):
        fleet = quiet([_vm(_disk("1GB"))], policies=[{**AT_TWO, "instant_days": days}], days=20)
        times = simulate(fleet).jobs["snapshot_at_ns"].to_numpy()
        gone = snapshots_gone(times, fleet.policies["at two"].instant_days)
        found[str(days)] = int(count_held(times, gone, times).max())
    return found


def snapshot_days() -> Any:
    """The most days of snapshots that an enhanced policy takes, by hours between backups."""
    from vmbk.errors import InputError
    from vmbk.service.policy import Policy

    def accepted(hours: int, days: int) -> bool:
        schedule = {"frequency": "hourly", "every": f"{hours}h"}
        declared = {"subtype": "enhanced", "schedule": schedule, "instant_days": days}
        try:
            Policy.parse(declared, "policy")
        except InputError:
            return False
        return True

    return {
        f"{hours} h": max(days for days in range(1, 100) if accepted(hours, days))
        for hours in (4, 6, 12)
    }


# --- Jobs -----------------------------------------------------------------------------------------


def start_within_two_hours() -> Any:
    """100 machines, all scheduled at 02:00."""
    fleet = Scenario.parse(
        {
            "days": 1,
            "policies": [AT_TWO],
            "vms": [_vm(_disk("30GB"), name="vm-{n}", count=100, policy="at two")],
        }
    )
    start = simulate(fleet).jobs["start_ns"]
    return {
        "machines": len(start),
        "started_from_2_to_4": int(start.is_between(2 * HOUR, 4 * HOUR).sum()),
    }


STATES: Final = (("large", 0), ("large", 1), ("small", 0), ("rotated", 0), ("broken", 0))
"""The jobs in which the rows of the matrix are seen."""


def states_scenario() -> Scenario:
    """Machines whose jobs come to every state: a first backup of more than a day, a small one, one
    whose account's keys are rotated meanwhile, and one whose shadow copy service is broken.
    """
    return quiet(
        [
            _vm(_disk("4TB"), name="large"),
            _vm(_disk("1GB"), name="small"),
            _vm(_disk("400GB", account="account"), name="rotated"),
            _vm(_disk("1GB"), name="broken", os="windows"),
        ],
        profile="enhanced",
        days=2,
        accounts=[{"name": "account"}],
        events=[{"at": "0d", "clock": "04:00", "kind": "rotate-keys", "account": "account"}],
        failures={"defaults": False, "ExtensionFailedVssServiceInBadState": "100%"},
    )


def job_states() -> Any:
    """Jobs as one sees them at 05:00 of the second day."""
    import polars as pl

    seen = simulate(states_scenario()).at(DAY + 5 * HOUR)
    rows = [seen.filter((pl.col("vm") == vm) & (pl.col("job") == job)) for vm, job in STATES]
    return [list(row.select("snapshot", "transfer", "state").row(0)) for row in rows]


def crash_fallback() -> Any:
    """Attempts of an enhanced policy at a machine whose agent does not answer."""
    from vmbk.consistency.decision import Case, decide

    cases = [Case(agent="unresponsive", policy="enhanced", attempt=n) for n in range(1, 9)]
    return {"crash_attempts": [c.attempt for c in cases if decide(c, "enhanced").label == "crash"]}


def churn_spread_scenario() -> Scenario:
    """The same bytes, and the same changes of them, on one disk, four disks and two."""
    machines = {"VM1": (1, 4), "VM2": (4, 1), "VM3": (2, 2)}
    return quiet(
        [
            _vm(*[_disk(f"{size}TB", f"{size}TB", f"disk{i}", churn=f"{100 // count}GB")
                  for i in range(count)], name=name)
            for name, (count, size) in machines.items()
        ],
        days=8,
    )  # fmt: skip


def churn_spread() -> Any:
    """The machines by the time that a later backup takes, shortest first."""
    return {"order": by_duration(simulate(churn_spread_scenario()))}


def by_duration(simulation: Simulation) -> list[str]:
    """Machines by the median duration of their later jobs."""
    import polars as pl

    later = simulation.jobs.filter((pl.col("transfer") == "done") & ~pl.col("initial"))
    taken = later.group_by("vm").agg((pl.col("end_ns") - pl.col("start_ns")).median().alias("ns"))
    return taken.sort("ns")["vm"].cast(pl.String).to_list()


def deleted_scenario() -> Scenario:
    """A machine whose snapshots somebody deletes on the third day, before its job."""
    return quiet(
        [_vm(_disk("100GB", churn="2%"))],
        days=5,
        events=[{"at": "2d", "clock": "01:00", "kind": "delete-snapshots", "vm": "vm"}],
    )


def deleted_snapshot() -> Any:
    """How each job finds what changed, and what it reads to find it."""
    import polars as pl

    disks = simulate(deleted_scenario(), disks=True).disks
    modes = disks["mode"].cast(pl.String).to_list()
    return {"modes": modes, "read_bytes": disks["read_bytes"].to_list()}


# --- Restores -------------------------------------------------------------------------------------


def secondary_region() -> Any:
    """How old the newest point of the other region becomes under a daily backup of no duration."""
    import polars as pl

    from vmbk.service.objectives import objectives

    days = np.arange(30, dtype=np.int64) * DAY
    jobs = pl.DataFrame(
        {"vm": "vm", "snapshot_at_ns": days, "point_ns": days, "end_ns": days,
         "label": "application", "transfer": "done"}
    )  # fmt: skip
    found = objectives(jobs, begin=10 * DAY, end=20 * DAY).of("secondary")
    return {"hours": found["max"] / HOUR}


def vault_restore() -> Any:
    """The copy of 2 TB from the vault."""
    from vmbk.service.restore_rules import RestoreRequest, RestoreRules
    from vmbk.service.restores import simulate_restores

    request = RestoreRequest("vm", 0, (2 * TB,))
    copy = simulate_restores([request], RestoreRules.default("enhanced")).frame["copy"][0]
    return {"hours": round(copy / HOUR, 1)}
