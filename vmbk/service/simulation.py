"""Run a scenario and look at its jobs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.provenance import Provenance, provenance
from vmbk.service.layout import plan_of
from vmbk.service.plan import (
    ACCOUNT_TOLD,
    JOB,
    LABELS,
    MODES,
    PART,
    SECOND,
    STATES,
    TRANSFERS,
    Outputs,
    Plan,
    told,
)
from vmbk.service.scenario import Declared, Scenario
from vmbk.units import format_duration, format_size, quoted

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    Int64s = NDArray[np.int64]

ENGINES: Final = ("fast", "reference")
PHASES: Final = ("install", "snapshot", "queue", "place", "scan", "send", "commit")
"""What a job's duration is the sum of."""


_ELSE: Final = "GuestAgentSnapshotTaskStatusError"
_OWN_CAUSES: Final = {
    "failed": "UserErrorVmProvisioningStateFailed",
    "unavailable": "UserErrorVmProvisioningStateFailed",
    "creating": "UserErrorVmNotInDesirableState",
    "deleting": "UserErrorVmNotInDesirableState",
}
"""Why a job fails with which nothing went wrong, by the machine's provisioning state."""


def simulate(
    scenario: Declared,
    *,
    engine: str = "fast",
    disks: bool = False,
) -> Simulation:
    """Run a scenario.

    Parameters
    ----------
    scenario : Scenario, Mapping, or path
        Declared in any of these ways.
    engine : str
        ``"fast"``, or ``"reference"``: the readable model, a hundred times slower, with the same
        jobs.
    disks : bool
        Whether to keep what each disk did in each job.

    Returns
    -------
    Simulation

    Raises
    ------
    InputError
        If a field of the scenario is not what it must be, or there is no such engine.
    """
    scenario = Scenario.of(scenario)
    if engine not in ENGINES:
        raise InputError(f"engine: {quoted(engine)} is not one of {', '.join(ENGINES)}")
    plan = plan_of(scenario)
    started = time.perf_counter()
    if engine == "fast":
        from vmbk.service.engine import simulate_fast

        outputs = simulate_fast(plan, parts=disks)
    else:
        from vmbk.service.reference import simulate_reference

        outputs = simulate_reference(plan, parts=disks)
    return Simulation(scenario, plan, outputs, time.perf_counter() - started, provenance())


@dataclass(frozen=True, eq=False)
class Simulation:
    """What a scenario came to.

    Attributes
    ----------
    scenario : Scenario
    plan : Plan
    outputs : Outputs
        Of the engine, whole numbers.
    seconds : float
        That the engine took.
    provenance : Provenance
    """

    scenario: Scenario
    plan: Plan
    outputs: Outputs
    seconds: float
    provenance: Provenance

    def __repr__(self) -> str:
        return (
            f"<Simulation of {self.scenario.name!r}: {len(self.outputs.jobs):,} jobs of "
            f"{len(self.scenario.vms):,} VMs in {self.scenario.days:,} days>"
        )

    @cached_property
    def jobs(self) -> pl.DataFrame:
        """One row a job, by VM and time.

        Columns: ``vm``, ``job`` (from 0); moments since the first midnight, -1 where there was
        none: ``scheduled_ns``, ``start_ns``, ``snapshot_at_ns`` (which the point holds),
        ``point_ns`` (from which it can be restored), ``end_ns``; the parts of its duration:
        ``install_ns``, ``snapshot_ns`` (all attempts), ``queue_ns``, ``place_ns``, ``scan_ns``,
        ``send_ns``, ``commit_ns``; ``attempts``, ``cause`` (last failure of an attempt), ``label``,
        ``state``, ``transfer``, ``initial``, ``fallback``; ``read_bytes``, ``changed_bytes``,
        ``sent_bytes``, ``extents``.
        """
        import polars as pl

        rows = self.outputs.jobs
        counts = np.diff(self.plan.job_first)
        names = [vm.name for vm in self.scenario.vms]
        column = {name: rows[:, i] for i, name in enumerate(JOB)}
        number = np.arange(len(rows)) - np.repeat(self.plan.job_first[:-1], counts)
        moments = ("scheduled", "start", "snapshot_at", "point", "end")
        return pl.DataFrame(
            {
                "vm": _words(np.repeat(np.arange(len(names)), counts), names),
                "job": number.astype(np.int32),
                **{f"{name}_ns": column[name] for name in (*moments, *PHASES)},
                "attempts": told(rows, "attempts").astype(np.uint8),
                "cause": self._causes(rows, counts),
                "label": _words(told(rows, "label"), list(LABELS)),
                "state": _words(told(rows, "state"), list(STATES)),
                "transfer": _words(told(rows, "transfer"), list(TRANSFERS)),
                "initial": told(rows, "initial").astype(bool),
                "fallback": told(rows, "fallback").astype(bool),
                **{f"{name}_bytes": column[name] for name in ("read", "changed", "sent")},
                "extents": column["extents"],
            }
        )

    def _causes(self, rows: Int64s, counts: Int64s) -> pl.Series:
        """Codes of the causes. Where none was drawn and a job failed, the machine itself is it."""
        codes = ["", *self.scenario.failures.codes]
        drawn = told(rows, "cause")
        no_point = rows[:, JOB.index("snapshot_at")] < 0
        failed = (told(rows, "state") == STATES.index("Failed")) & no_point & (drawn == 0)
        if failed.any():
            own = [_OWN_CAUSES.get(vm.provisioning, _ELSE) for vm in self.scenario.vms]
            more = list(dict.fromkeys(own))
            place = np.array([len(codes) + more.index(code) for code in own])
            drawn = np.where(failed, np.repeat(place, counts), drawn)
            codes += more
        return _words(drawn, codes)

    @cached_property
    def disks(self) -> pl.DataFrame:
        """One row a disk and job: ``vm``, ``job``, ``disk``, ``mode`` (none, initial, checksum,
        tracking, fallback), ``read_bytes``, ``changed_bytes``, ``extents``, ``scan_end_ns``,
        ``send_end_ns``.

        Raises
        ------
        InputError
            If they were not kept.
        """
        import polars as pl

        if not len(self.outputs.parts) and self.plan.part_first[-1]:
            raise InputError("the disks were not kept", hint="simulate(…, disks=True)")
        per_vm, jobs = np.diff(self.plan.disk_first), np.diff(self.plan.job_first)
        vm = np.repeat(np.arange(len(jobs)), jobs * per_vm)
        inner = np.arange(len(vm)) - self.plan.part_first[vm]
        own = [[d.name for d in vm.disks if d.backed_up] for vm in self.scenario.vms]
        names = [name for each in own for name in each]
        column = {name: self.outputs.parts[:, i] for i, name in enumerate(PART)}
        return pl.DataFrame(
            {
                "vm": _words(vm, [vm.name for vm in self.scenario.vms]),
                "job": (inner // per_vm[vm]).astype(np.int32),
                "disk": _words(self.plan.disk_first[vm] + inner % per_vm[vm], names),
                "mode": _words(column["mode"], list(MODES)),
                "read_bytes": column["read"],
                "changed_bytes": column["changed"],
                "extents": column["extents"],
                "scan_end_ns": column["scan_end"],
                "send_end_ns": column["send_end"],
            }
        )

    @cached_property
    def accounts(self) -> pl.DataFrame:
        """One row a storage account: its limits, ``busy_ns`` (with a transfer), ``throttled_ns``
        (at its limit), ``lost_ns`` (as if it had stood still for so long), and peaks a second of
        all load and of the backups'.
        """
        import polars as pl

        return pl.DataFrame(
            {
                "account": list(self.scenario.accounts),
                "egress": self.plan.accounts[:, 0],
                "requests": self.plan.accounts[:, 1],
                **{
                    f"{name}_ns" if name in ("busy", "throttled", "lost") else name:
                    self.outputs.accounts[:, i]
                    for i, name in enumerate(ACCOUNT_TOLD)
                },
            },
            schema_overrides={"account": pl.String},
        )  # fmt: skip

    def at(self, moment: int) -> pl.DataFrame:
        """The jobs that have started by a moment, as one sees them then.

        Parameters
        ----------
        moment : int
            ns.

        Returns
        -------
        polars.DataFrame
            ``vm``, ``job``, ``snapshot`` and ``transfer`` (none, in progress, completed, failed,
            skipped, not due), ``state`` (of the matrix in the Extended Zones page: a job whose
            snapshot or transfer is in progress is InProgress; with the snapshot the transfer has
            failed), ``phase`` (the one it is in).
        """
        import polars as pl

        jobs = self.jobs.filter(pl.col("start_ns") <= moment)
        taken = pl.col("start_ns") + pl.col("install_ns") + pl.col("snapshot_ns")
        running, wanted = pl.col("end_ns") > moment, pl.col("transfer").cast(pl.String)
        ended = {"done": "completed", "failed": "failed"}
        return jobs.select(
            "vm",
            "job",
            snapshot=pl.when(pl.col("state") == "Skipped")
            .then(pl.lit("none"))
            .when(taken > moment)
            .then(pl.lit("in progress"))
            .when(pl.col("snapshot_at_ns") < 0)
            .then(pl.lit("failed"))
            .otherwise(pl.lit("completed")),
            transfer=pl.when(taken > moment)
            .then(pl.lit("none"))
            .when(running)
            .then(pl.lit("in progress"))
            .when(pl.col("state") == "Skipped")
            .then(pl.lit("none"))
            .when(pl.col("snapshot_at_ns") < 0)
            .then(pl.lit("failed"))
            .otherwise(wanted.replace(ended)),
            state=pl.when(running)
            .then(pl.lit("InProgress"))
            .otherwise(pl.col("state").cast(pl.String)),
            phase=_phase_at(moment),
        )

    def summary(self) -> dict[str, Any]:
        """What the jobs came to: counts, durations in seconds, bytes."""
        import polars as pl

        jobs = self.jobs
        duration = (pl.col("end_ns") - pl.col("start_ns")) / SECOND
        done = jobs.filter(pl.col("transfer") == "done").with_columns(duration_s=duration)
        first, later = done.filter(pl.col("initial")), done.filter(~pl.col("initial"))
        profile = self.scenario.profile
        counted = done if profile.reading("late_counts") == "all" else later
        return {
            "jobs": len(jobs),
            "states": _counts(jobs, "state"),
            "transfers": _counts(jobs, "transfer"),
            "labels": _counts(jobs.filter(pl.col("label") != "none"), "label"),
            "causes": _counts(jobs.filter(pl.col("cause") != ""), "cause"),
            "first_backup_s": _spread(first["duration_s"]),
            "incremental_s": _spread(later["duration_s"]),
            "late": int((counted["duration_s"] > profile["late"] / SECOND).sum()),
            "slow": int((later["duration_s"] > profile["slow"] / SECOND).sum()),
            "fallbacks": int(jobs["fallback"].sum()),
            "sent_bytes": int(jobs["sent_bytes"].sum()),
            "read_bytes": int(jobs["read_bytes"].sum()),
            "parts_s": {n: float(done[f"{n}_ns"].sum() / SECOND) for n in PHASES},
            "engine_s": self.seconds,
        }

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``: the summary and accounts; jobs are a table of their own."""
        return {
            "name": self.scenario.name, "profile": self.scenario.profile.to_dict(),
            "seed": self.scenario.seed, "days": self.scenario.days,
            "vms": len(self.scenario.vms), **self.summary(),
            "accounts": self.accounts.to_dicts(), "provenance": self.provenance.to_dict(),
        }  # fmt: skip

    def _repr_html_(self) -> str:
        found = self.summary()
        rows = {
            "profile": self.scenario.profile.name,
            "jobs": f"{found['jobs']:,}: "
            + ", ".join(f"{n:,} {state}" for state, n in found["states"].items()),
            "first backup": spread_text(found["first_backup_s"]),
            "incremental": spread_text(found["incremental_s"]),
            "late, slow": f"{found['late']:,}, {found['slow']:,}",
            "sent": format_size(found["sent_bytes"]),
        }
        return key_values(self.scenario.name, rows)


def spread_text(spread: dict[str, float] | None) -> str:
    """A spread of durations for people."""
    if spread is None:
        return "none"
    median, p95, most = (format_duration(spread[k]) for k in ("median", "p95", "max"))
    return f"median {median}, 95 % within {p95}, at most {most}"


def _words(numbers: Any, names: list[str]) -> pl.Series:
    """Names by their numbers, as Polars' categories of a fixed set: one copy of each name."""
    import polars as pl

    unique = list(dict.fromkeys(names))
    if len(unique) < len(names):  # several numbers with one name
        place = {name: i for i, name in enumerate(unique)}
        numbers = np.array([place[name] for name in names])[numbers]
    codes = pl.Series(numbers.astype(np.uint32))
    return pl.Series(unique, dtype=pl.String).cast(pl.Enum(unique)).gather(codes)


def _counts(frame: pl.DataFrame, column: str) -> dict[str, int]:
    import polars as pl

    found = frame[column].cast(pl.String).value_counts(sort=True).rows()
    return {str(name): int(n) for name, n in sorted(found, key=lambda row: (-row[1], row[0]))}


def _spread(series: pl.Series) -> dict[str, float] | None:
    if not len(series):
        return None
    quantile = {name: series.quantile(q, "nearest") for name, q in _QUANTILES.items()}
    return {name: float(value or 0.0) for name, value in quantile.items()}


_QUANTILES: Final = {"median": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


def _phase_at(moment: int) -> pl.Expr:
    """The phase in which a job is: the first whose end is still to come."""
    import polars as pl

    end, found = pl.col("start_ns"), pl.lit("")
    chain: list[tuple[Any, str]] = []
    for phase in PHASES:
        end = end + pl.col(f"{phase}_ns")
        chain.append((end > moment, phase))
    for condition, phase in reversed(chain):
        found = pl.when(condition).then(pl.lit(phase)).otherwise(found)
    return found
