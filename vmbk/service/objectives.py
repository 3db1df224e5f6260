"""How much would be lost, and how long until it is back: distributions of RPO and RTO.

The recovery point objective at a moment is the moment minus the time that the newest usable point
holds. It grows second by second and falls when a point becomes usable, so that its distribution
over a disaster at a random moment is known exactly: between two points it takes every value from
one age to another once. Nothing is sampled.

When a point is usable depends on what is lost with the machine:

=============  ===================================================================================
tier           usable
=============  ===================================================================================
``any``        as soon as there is a snapshot, or a point in the vault (2017 has no other)
``snapshot``   from the end of the snapshot phase; the newest is kept until there is a newer one
``vault``      from the end of a transfer that is done
``secondary``  12 h later, in the other region (restore VMs: 36 h = 24 between backups + 12)
=============  ===================================================================================

Labels are "at least": ``crash`` takes every point, ``filesystem`` also those of label application.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.plan import HOUR
from vmbk.service.restore_rules import RestoreRules
from vmbk.units import format_duration, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vmbk.service.restores import Restores

    Int64s = NDArray[np.int64]

TIERS: Final = ("any", "snapshot", "vault", "secondary")
LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    "crash": ("crash", "filesystem", "application"),
    "filesystem": ("filesystem", "application"),
    "application": ("application",),
}
"""Labels of points that are good enough, by what is asked at least."""

PERCENTS: Final = (50, 90, 95, 99)
TARGETS: Final[Mapping[str, int]] = {
    "any": 24 * HOUR, "snapshot": 24 * HOUR, "vault": 24 * HOUR, "secondary": 36 * HOUR,
}  # fmt: skip
"""Nanoseconds: a daily backup, and what the documents promise of the secondary region."""

DISASTERS: Final[Mapping[str, str]] = {
    "machine": "any",
    "snapshots": "vault",
    "region": "secondary",
}
"""What is lost (the machine; its snapshots too; the whole region), and from which tier it comes
back."""

_CELLS: Final = 1 << 20
"""Of a table of spans at once."""
_LAST: Final = (1 << 62) - 2
"""Above every value; what fills a table up."""
_COLUMNS: Final = ("vm", "snapshot_at_ns", "point_ns", "end_ns", "label", "transfer")
_VALUES: Final = ("mean", *(f"p{percent}" for percent in PERCENTS), "max")


@dataclass(frozen=True, eq=False)
class Objectives:
    """Distributions over a disaster at a random moment.

    Attributes
    ----------
    frame : polars.DataFrame
        Recovery point objectives, one row for the fleet (``vm`` null) and one for each VM, by
        ``tier`` and ``label`` (at least): ``points`` that became usable, ``protected`` (share of
        the time with a usable point), ``mean``, ``p50``, ``p90``, ``p95``, ``p99``, ``max`` (ns, of
        the protected time; null where there is none), ``target`` (ns), ``above`` (share of all the
        time in which the objective is above it, or there is no point).
    restore : polars.DataFrame
        Recovery time objectives by ``vm`` and ``disaster`` (see `DISASTERS`): ``restorable``
        (share of the time at which a restore brings the machine back), ``mean``, ``p50`` … ``max``
        (ns). Empty where no restores were given.
    begin, end : int
        The time in which the disaster happens, in ns.
    """

    frame: pl.DataFrame
    restore: pl.DataFrame
    begin: int
    end: int

    def __repr__(self) -> str:
        vms = self.frame["vm"].n_unique() - 1
        return f"<Objectives of {vms:,} VMs over {_told(self.end - self.begin)}>"

    @property
    def fleet(self) -> pl.DataFrame:
        """The fleet's rows of `frame`."""
        return self.frame.filter(pl.col("vm").is_null()).drop("vm")

    def of(self, tier: str = "any", label: str = "crash", vm: str | None = None) -> dict[str, Any]:
        """One row of `frame`.

        Raises
        ------
        InputError
            If there is none.
        """
        row = self.frame.filter(
            pl.col("vm").eq_missing(pl.lit(vm, pl.String))
            & (pl.col("tier") == tier) & (pl.col("label") == label)
        )  # fmt: skip
        if not len(row):
            raise InputError(f"there are no objectives of {quoted((vm, tier, label))}")
        return row.row(0, named=True)

    def to_dict(self, *, vms: bool = False) -> dict[str, Any]:
        """For ``--json``: the fleet's rows, with `vms` those of every VM too."""
        chosen = pl.lit(True) if vms else pl.col("vm").is_null()
        return {
            "begin_ns": self.begin,
            "end_ns": self.end,
            "rpo": self.frame.filter(chosen).to_dicts(),
            "rto": self.restore.filter(chosen).to_dicts(),
        }

    def _repr_html_(self) -> str:
        def told(row: Mapping[str, Any], *first: str) -> list[str]:
            values = [_told(row[each]) for each in _VALUES]
            return [*(_told_share(row[each], each) for each in first), *values]

        points = [
            [*told(row, "tier", "label", "protected"), _told(row["target"]), f"{row['above']:.1%}"]
            for row in self.fleet.iter_rows(named=True)
        ]
        header = ("tier", "label at least", "protected", *_VALUES, "target", "above")
        html = table("Recovery point objective of the fleet", header, points)
        rows = self.restore.filter(pl.col("vm").is_null()).iter_rows(named=True)
        times = [told(row, "disaster", "restorable") for row in rows]
        header = ("what is lost", "restorable", *_VALUES)
        return html + (
            table("Recovery time objective of the fleet", header, times) if times else ""
        )


def objectives(
    jobs: pl.DataFrame,
    *,
    begin: int = 0,
    end: int | None = None,
    restores: Restores | None = None,
    targets: Mapping[str, int] | None = None,
    rules: RestoreRules | None = None,
) -> Objectives:
    """Recovery point and recovery time objectives of a fleet.

    Parameters
    ----------
    jobs : polars.DataFrame
        One row a job: ``vm``, ``snapshot_at_ns`` (the moment that the point holds), ``point_ns``
        (when a snapshot-tier point became usable), ``end_ns``, ``label``, ``transfer``; times int64
        ns, -1 where absent. A vault point is usable from ``end_ns`` where ``transfer`` is "done".
    begin, end : int
        The disaster happens at a random moment between them; by default from 0 to the last time
        that the jobs have.
    restores : Restores, optional
        Restores of these VMs from the tiers in question (options that copy files are left out),
        once or many times; from their durations come the recovery time objectives.
    targets : mapping of str to int, optional
        Nanoseconds by tier; see `TARGETS`.
    rules : RestoreRules, optional
        For the replication to the secondary region.

    Returns
    -------
    Objectives

    Raises
    ------
    InputError
        If a column is missing, the time is empty, or a target is of no tier.
    """
    missing = [name for name in _COLUMNS if name not in jobs.columns]
    if missing:
        raise InputError(f"the jobs lack the columns {', '.join(missing)}")
    if end is None:
        last = jobs.select(pl.max_horizontal(pl.col("end_ns", "point_ns").max())).item()
        end = int(last or 0)
    if not len(jobs):
        raise InputError("there are no jobs, and so no objectives")
    if not begin < end:
        raise InputError(f"there is no time from {begin} to {end} ns", hint="give begin < end")
    wanted = {**TARGETS, **(targets or {})}
    for tier in wanted:
        if tier not in TIERS:
            raise InputError(f"targets: there is no tier {quoted(tier)}", hint=", ".join(TIERS))
    replication = (rules or RestoreRules.default("instant")).replication
    names = pl.col("vm").cast(pl.String)
    vms = jobs.select(names.unique(maintain_order=True)).to_series()
    numbered = jobs.select(
        names.replace_strict(vms, pl.arange(len(vms), eager=True), return_dtype=pl.Int64),
        "snapshot_at_ns", "point_ns", "end_ns",
        pl.col("label", "transfer").cast(pl.String),
    )  # fmt: skip
    frames: list[pl.DataFrame] = []
    crash: dict[str, _Spans] = {}
    for tier in TIERS:
        before = -1
        every = _usable(numbered, tier, replication)
        for label, good in LABELS.items():
            points = every.filter(pl.col("label").is_in(good)).drop("label")
            if len(points) == before:  # no point has less: the distribution is the same
                same = pl.lit(label, frames[-1].schema["label"]).alias("label")
                frames += [each.with_columns(same) for each in frames[-2:]]
                continue
            before = len(points)
            spans = _spans(points, begin, end)
            crash.setdefault(tier, spans)
            frames += [
                _rows(spans, vms, fleet, tier, label, end - begin, wanted[tier])
                for fleet in (True, False)
            ]
    frame = pl.concat(frames).sort("vm", nulls_last=False, maintain_order=True)
    restore = _restore(crash, vms, end - begin, restores)
    return Objectives(frame, restore, begin, end)


@dataclass(frozen=True)
class _Spans:
    """Times between two points: VM, objective at its begin and end, whether from a snapshot."""

    vm: Int64s
    low: Int64s
    high: Int64s
    snapshot: NDArray[np.bool_]
    points: Int64s
    """VM of each point that becomes usable."""


def _usable(jobs: pl.DataFrame, tier: str, replication: int) -> pl.DataFrame:
    """Points by VM: from when they are usable, what they hold, whether they are snapshots."""
    in_vault = pl.col("transfer") == "done"
    at_once = pl.col("point_ns") >= 0
    usable, when, snapshot = {
        "any": (at_once | in_vault, pl.when(at_once).then("point_ns").otherwise("end_ns"), at_once),
        "snapshot": (at_once, pl.col("point_ns"), at_once),
        "vault": (in_vault, pl.col("end_ns"), pl.lit(False)),
        "secondary": (in_vault, pl.col("end_ns") + replication, pl.lit(False)),
    }[tier]
    points = jobs.filter(usable & (pl.col("snapshot_at_ns") >= 0)).select(
        "vm", "label", when.alias("usable"), pl.col("snapshot_at_ns").alias("held"),
        snapshot.alias("snapshot"),
    )  # fmt: skip
    vm, moment = (points[name].to_numpy() for name in ("vm", "usable"))
    step, later = np.diff(vm), np.diff(moment)
    if ((step > 0) | ((step == 0) & (later >= 0))).all():  # as the engines have them
        return points
    return points[np.lexsort((moment, vm))]


def _spans(points: pl.DataFrame, begin: int, end: int) -> _Spans:
    """What each point is the newest for. An older point that comes later changes nothing."""
    # The newest point so far; of two that hold the same moment the snapshot is taken. One number
    # carries both: twice the moment, and 1 for a snapshot.
    newest = (pl.col("held") * 2 + pl.col("snapshot").cast(pl.Int64)).cum_max().over("vm")
    until = pl.col("usable").shift(-1).over("vm").fill_null(end)
    spans = (
        points.with_columns(newest.alias("newest"), until.alias("until"))
        .filter((pl.col("until") > begin) & (pl.col("usable") < end))
        .with_columns(
            pl.col("usable").clip(begin, end).alias("from"), pl.col("until").clip(begin, end)
        )
        .filter(pl.col("until") > pl.col("from"))
        .with_columns((pl.col("newest") // 2).alias("held"))
    )
    return _Spans(
        vm=spans["vm"].to_numpy(),
        low=(spans["from"] - spans["held"]).to_numpy(),
        high=(spans["until"] - spans["held"]).to_numpy(),
        snapshot=(spans["newest"] % 2 == 1).to_numpy(),
        points=points.filter(pl.col("usable") < end)["vm"].to_numpy(),
    )


def _rows(
    spans: _Spans, vms: pl.Series, fleet: bool, tier: str, label: str, window: int, target: int
) -> pl.DataFrame:
    """The distribution of one tier and label, for every VM or for the fleet."""
    who = pl.Series([None], dtype=pl.String) if fleet else vms
    groups = len(who)
    vm = np.zeros_like(spans.vm) if fleet else spans.vm
    length = spans.high - spans.low
    whole = float(window) * (len(vms) if fleet else 1)
    covered = _sums(vm, length.astype(np.float64), groups)
    middle = (spans.low + spans.high).astype(np.float64) / 2
    over = np.clip(spans.high - np.maximum(spans.low, target), 0, None).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _sums(vm, middle * length, groups) / covered
    quantiles = _quantiles(vm, spans.low, spans.high, groups)
    highest = np.full(groups, -1, np.int64)
    np.maximum.at(highest, vm, spans.high)
    points = np.bincount(np.zeros_like(spans.points) if fleet else spans.points, minlength=groups)
    above = (_sums(vm, over, groups) + whole - covered) / whole
    return pl.DataFrame(
        {
            "vm": who, "tier": pl.Series([tier] * groups, dtype=pl.Enum(TIERS)),
            "label": pl.Series([label] * groups, dtype=pl.Enum(list(LABELS))),
            "points": points.astype(np.int64), "protected": covered / whole,
            "mean": np.where(covered > 0, mean, -1).round().astype(np.int64),
            **{f"p{p}": quantiles[:, i] for i, p in enumerate(PERCENTS)},
            "max": highest, "target": np.full(groups, target, np.int64), "above": above,
        }
    ).with_columns(pl.when(pl.col(c) >= 0).then(c) for c in _VALUES)  # fmt: skip


def _sums(groups: Int64s, values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.bincount(groups, weights=values, minlength=count).astype(np.float64)


def _quantiles(groups: Int64s, low: Int64s, high: Int64s, count: int) -> Int64s:
    """Quantiles of mixtures of even distributions: int64[count, percents], -1 where empty.

    Groups with about as many spans are done together, as rows of one table.
    """
    found = np.full((count, len(PERCENTS)), -1, np.int64)
    sizes = np.bincount(groups, minlength=count)
    starts = np.cumsum(sizes) - sizes
    order = np.argsort(-sizes, kind="stable")
    order = order[sizes[order] > 0]
    while len(order):
        widest = int(sizes[order[0]])
        batch, order = np.split(order, [max(1, _CELLS // widest)])
        place = np.arange(widest)
        inside = place < sizes[batch][:, None]
        at = np.where(inside, starts[batch][:, None] + place, 0)
        # A value and whether a span begins there, in one number, so that sorting moves one array.
        ends = np.where(inside, low[at] * 2 + 1, _LAST), np.where(inside, high[at] * 2, _LAST)
        keys = np.concatenate(ends, axis=1)
        keys.sort(axis=1)
        found[batch] = _mixtures(keys)
    return found


def _mixtures(keys: Int64s) -> Int64s:
    """Quantiles of each row.

    Between two neighbours among all the ends of spans the density is constant: so many spans cover
    the value. Its running integral is the time in which the objective is below. In whole numbers,
    unless a large fleet has more nanoseconds than 63 bits hold.
    """
    value = keys >> 1
    density = np.cumsum((keys & 1) * 2 - 1, axis=1)[:, :-1]
    steps = np.diff(value, axis=1)
    exact = (density.astype(np.float64) * steps).sum(axis=1).max() < 2**62
    width = density * steps if exact else density.astype(np.float64) * steps
    below = np.cumsum(width, axis=1)
    total = below[:, -1]
    rows = np.arange(len(keys))
    found = np.empty((len(keys), len(PERCENTS)), np.int64)
    for column, percent in enumerate(PERCENTS):
        if exact:
            need = total // 100 * percent + (total % 100 * percent + 99) // 100
        else:
            need = total * (percent / 100)
        at = np.argmax(below >= need[:, None], axis=1)
        missing = need - (below[rows, at] - width[rows, at])
        more = -(-missing // density[rows, at])  # rounded up
        found[:, column] = value[rows, at] + more.astype(np.int64)
    return found


def _restore(
    spans: Mapping[str, _Spans], vms: pl.Series, window: int, restores: Restores | None
) -> pl.DataFrame:
    """How long it takes to come back: durations of restores, weighted by when they are needed."""
    disasters = pl.Enum(list(DISASTERS))
    schema: dict[str, Any] = {"vm": pl.String, "disaster": disasters, "restorable": pl.Float64,
              **dict.fromkeys(_VALUES, pl.Int64)}  # fmt: skip
    if restores is None:
        return pl.DataFrame(schema=schema)
    region = pl.col("option") == "cross-region"
    ran = restores.frame.filter(
        (pl.col("option") != "file-recovery") & ~pl.col("state").is_in(["Refused", "Cancelled"])
    ).select(
        "vm", "total", (pl.col("state") == "Completed").alias("good"),
        pl.when(region).then(pl.lit("secondary")).otherwise("tier").alias("source"),
    )  # fmt: skip
    ran = ran.with_columns((1.0 / pl.len()).over("vm", "source").alias("part")).filter("good")
    needed = []
    for disaster, tier in DISASTERS.items():
        lost = spans[tier]
        length = (lost.high - lost.low).astype(np.float64) / window
        for source in ("snapshot", "vault") if tier == "any" else (tier,):
            taken = lost.snapshot == (source == "snapshot")
            weight = _sums(lost.vm[taken], length[taken], len(vms))
            needed.append(
                pl.DataFrame({"vm": vms, "weight": weight}).with_columns(
                    pl.lit(disaster, disasters).alias("disaster"),
                    pl.lit(source).alias("source"),
                )
            )
    samples = (
        pl.concat(needed)
        .join(ran, on=["vm", "source"], how="left")
        .with_columns((pl.col("weight") * pl.col("part").fill_null(0.0)).alias("weight"))
    )
    fleet = samples.with_columns(pl.lit(None, pl.String).alias("vm"), pl.col("weight") / len(vms))
    rows = []
    for each in (fleet, samples):
        keys = ["vm", "disaster"]
        ordered = each.sort(*keys, "total", nulls_last=True).with_columns(
            pl.col("weight").cum_sum().over(keys).alias("below"),
            pl.col("weight").sum().over(keys).alias("whole"),
        )
        counts = pl.col("weight") > 0
        weighted = (pl.col("total") * pl.col("weight")).sum() / pl.col("weight").sum()
        counted = pl.col("total").filter(counts)
        reached = (pl.col("below") / pl.col("whole")).filter(counts)
        # A rounding error below the quantile's rank is still the rank.
        quantiles = [
            counted.filter(reached >= p / 100 - 1e-12).min().alias(f"p{p}") for p in PERCENTS
        ]
        rows.append(
            ordered.group_by(keys, maintain_order=True).agg(
                pl.col("weight").sum().alias("restorable"),
                pl.when(counts.any()).then(weighted).round().cast(pl.Int64).alias("mean"),
                *quantiles,
                pl.col("total").filter(counts).max().alias("max"),
            )
        )
    return pl.concat(rows).select(*schema)


def _told(ns: int | None) -> str:
    return "" if ns is None else format_duration(ns / 1e9)


def _told_share(value: Any, name: str) -> str:
    return f"{value:.1%}" if name in ("protected", "restorable") else str(value)
