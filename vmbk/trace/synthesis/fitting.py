"""Fit: a spec that makes a trace like a given one, and how like it is.

The spec holds counts, shares and lengths, and no offset, name or content of the original, so that
a private trace can be shared as a synthetic one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.trace.schema import Op, Volume
from vmbk.trace.synthesis.generate import synthesise
from vmbk.trace.synthesis.measure import covering, span_ns
from vmbk.trace.synthesis.places import Union
from vmbk.trace.synthesis.plan import plan_volume
from vmbk.trace.synthesis.report import compare
from vmbk.trace.synthesis.spec import (
    MOST_DURATION,
    MOST_REQUEST,
    MOST_REQUESTS,
    MOST_VOLUME_SIZE,
    MOST_VOLUMES,
    Spec,
    VolumeSpec,
    Weights,
    Workload,
)
from vmbk.trace.synthesis.trials import choose_mix
from vmbk.trace.table import Trace, checked_trace
from vmbk.units import format_size, quoted

if TYPE_CHECKING:
    import polars as pl

_SIZES: Final = 64
_QUANTILES: Final = 500
_PARTS: Final = 1440
_ON_GRID: Final = (0.75, 0.97)
"""Shares of requests that may make a grid the grid of all; both are tried."""
_DAY: Final = 86_400 * 10**9

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted spec and how far the trace that it makes is from the original.

    Attributes
    ----------
    spec : Spec
    frame : polars.DataFrame
        ``metric``; ``original``, ``synthetic``: its value on each, null where there is nothing to
        measure; ``difference``: synthetic over original, less 1; null where the original is 0 or
        a value is null. Times count from a trace's first request. All are over all volumes:

        ============================ =========================================================
        requests                     without marks
        duration_s                   s from the first to the last
        writes_per_flush             0 without a flush
        write_share to               as `vmbk.profile` has them, with windows of a minute
        sequential_share
        sequential_writes            share of the writes that begin where one of the volume's 32
                                     writes before them ended
        unique_bytes, rewrite_ratio  as `vmbk.churn` has them of the whole trace
        extents, mean_extent_bytes,  as `vmbk.dispersion` has them of the whole trace, in blocks
        extents_per_gib,             of 4 KiB
        region_fill,
        dispersion_index
        amplification_64k, _2m       as `vmbk.granularity`
        interval_cost                as `vmbk.interval_cost`, of a tenth of the duration
        interval_cost_1m, ...        of those intervals that are shorter than the original
        top_1, top_10                share of the writes that begin in the most written 1 % and
                                     10 % of the blocks in which writes begin
        updated_share to             as ``coverage`` of `vmbk.updates`; null where more is written
        interval_p90                 than that follows
        read_size_distance,          0 of the original; of the synthetic the share of requests
        write_size_distance          whose length would have to go to another power of two
        run_length_distance          so too, of the bytes changed, by the length of their run
        ============================ =========================================================
    """

    spec: Spec
    frame: pl.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"metrics": self.frame.to_dicts(), "spec": self.spec.digest}

    def _repr_html_(self) -> str:
        header = ["metric", "original", "synthetic", "difference"]
        return table("Fit of a synthetic trace", header, self.shown())

    def shown(self) -> list[list[str]]:
        """The rows of `frame` as people read them."""
        return [
            [metric, *("" if value is None else f"{value:,.6g}" for value in values),
             "" if off is None else f"{off:+.1%}"]
            for metric, *values, off in self.frame.rows()
        ]  # fmt: skip


def fit(trace: Trace, *, seed: int = 0) -> Fit:
    """Derive a spec from a trace, and compare the trace that it makes with it.

    Counts, sizes, times, and the extents of what was written are taken over. The mix of access
    patterns is found by trial: candidates are made and measured, and the nearest is kept.

    Parameters
    ----------
    trace : Trace
    seed : int
        Of the spec.

    Raises
    ------
    InputError
        If the trace has no request or lasts longer than 366 days, or it has too many volumes or
        ones that are larger than 1 PiB.
    """
    checked_trace(trace)
    used = [v for v in trace.volumes if v.size >= 512]
    if not len(trace) or not used:
        raise InputError("a trace without requests cannot be fitted")
    duration = span_ns(trace)
    _check(trace, used, duration)
    volumes = tuple(_fit_volume(trace, v, i, duration, seed) for i, v in enumerate(used))
    spec = Spec(duration, volumes, seed, doc="Fitted to a trace.")
    return Fit(spec, compare(trace, synthesise(spec)))


def _check(trace: Trace, used: list[Volume], duration: int) -> None:
    """Refuse what no spec can be like, before anything is measured."""
    if len(used) > MOST_VOLUMES:
        raise InputError(f"{len(used)} volumes, at most {MOST_VOLUMES} can be fitted")
    for volume in used:
        if volume.size > MOST_VOLUME_SIZE:
            raise InputError(
                f"volume {quoted(volume.name)} of {format_size(volume.size)} is larger than can be "
                f"fitted, {format_size(MOST_VOLUME_SIZE)}"
            )
    hint = "fit a part of the trace: trace[first:stop]"
    if duration > MOST_DURATION:
        raise InputError(
            f"a trace of {duration / _DAY:,.1f} days is longer than can be fitted, "
            f"{MOST_DURATION // _DAY} days",
            hint=hint,
        )
    if len(trace) > MOST_REQUESTS:
        raise InputError(
            f"{len(trace):,} requests are more than can be fitted, {MOST_REQUESTS:,}", hint=hint
        )


# --- One volume ----------------------------------------------------------------------------------


def _fit_volume(trace: Trace, volume: Volume, number: int, duration: int, seed: int) -> VolumeSpec:
    one = _only(trace, volume)
    size, name = volume.size // 512 * 512, f"disk{number}"
    counts = np.bincount(one.requests.op, minlength=len(Op)).tolist()
    covered = [
        op for op in (Op.WRITE, Op.READ) if any(len(batch) for batch in covering(one, (op,)))
    ]
    if not covered:
        idle = Workload(0, sizes=((512, 1.0),), alignment=512, working_set=512)
        return VolumeSpec(name, size, idle)
    target = covered[0]
    grids = {_grid(one, target, on_grid) for on_grid in _ON_GRID}
    profile = _profile(one, int(trace.requests.time_ns[0]), duration)
    found = []
    for alignment, shift in sorted(grids):
        work = _workload(one, target, counts, alignment, shift, size, profile)
        base = VolumeSpec(name, size, work)
        found.append((*choose_mix(base, one, target, duration, seed), work.working_set))
    _, best, measured = min(found, key=lambda result: result[0])
    try:
        plan_volume(best, number, seed)
    except InputError:  # a ratio that is reached on the first volume alone, by chance
        work = replace(best.workload, rewrite_ratio=0.0, working_set=measured)
        best = replace(best, workload=work)
    return best


def _workload(
    one: Trace,
    target: Op,
    counts: list[int],
    alignment: int,
    shift: int,
    size: int,
    profile: tuple[float, ...],
) -> Workload:
    """All of the workload but its mix."""
    lengths, gaps = _extents(one, target, alignment, shift)
    extents = tuple(int(length) for length in _quantiles(lengths, alignment))
    weights = _quantiles(gaps, 0)
    shape = tuple(float(f"{gap * len(weights) / sum(weights):.6g}") for gap in weights)
    room = (size - shift) // alignment * alignment
    if int(lengths.sum()) + len(lengths) * alignment > room:  # all of it, but for crumbs
        extents, shape, lengths = (), (), np.array([room])
    longest = max(extents, default=room)
    writes = _sizes(one, (target,), longest)
    reads = _sizes(one, (Op.READ,), longest) or writes
    discards = counts[Op.DISCARD] + counts[Op.WRITE_ZEROES]
    return Workload(
        requests=sum(counts) - counts[Op.MARK],
        profile=profile,
        read_share=counts[Op.READ] / max(counts[Op.READ] + counts[Op.WRITE], 1),
        flush_every=_every(counts[Op.WRITE], counts[Op.FLUSH]),
        discard_every=_every(counts[Op.WRITE], discards),
        fua_share=_fua_share(one, counts[Op.WRITE]),
        sizes=writes,
        read_sizes=() if reads == writes else reads,
        discard_sizes=_sizes(one, (Op.DISCARD, Op.WRITE_ZEROES), longest),
        alignment=alignment,
        shift=shift,
        working_set=max(int(lengths.sum()), longest),
        extents=extents,
        gaps=shape,
    )


def _only(trace: Trace, volume: Volume) -> Trace:
    """The requests of one volume."""
    if len(trace.volumes) == 1:
        return trace
    r = trace.requests
    rows = r.volume == volume.id
    columns = {
        name: getattr(r, name)[rows] for name in ("time_ns", "op", "offset", "length", "flags")
    }
    return Trace.from_columns(
        volumes=[replace(volume, id=0)], clock=trace.metadata.clock, **columns
    )


def _every(writes: int, others: int) -> float:
    return min(max(writes / others, 1e-6), 1e9) if others and writes else 0.0


def _fua_share(trace: Trace, writes: int) -> float:
    durable = sum(int((batch.flags & 1).sum()) for batch in covering(trace, (Op.WRITE,)))
    return durable / writes if writes else 0.0


def _grid(trace: Trace, op: Op, on_grid: float) -> tuple[int, int]:
    """The coarsest grid on which most requests begin, and where it begins."""
    phases, whole, total = np.zeros(128, np.int64), np.zeros(8, np.int64), 0
    for batch in covering(trace, (op,)):
        phases += np.bincount((batch.offset >> 9) & 127, minlength=128)
        total += len(batch)
        for power in range(8):
            whole[power] += int((batch.length % (512 << power) == 0).sum())
    for power in range(7, 0, -1):
        folded = phases.reshape(-1, 1 << power).sum(axis=0)
        if min(int(folded.max()), int(whole[power])) >= on_grid * total:
            return 512 << power, 512 * int(folded.argmax())
    return 512, 0


def _sizes(trace: Trace, ops: tuple[Op, ...], longest: int) -> Weights:
    """The most frequent lengths; rarer ones count for the nearest of them."""
    found: dict[int, int] = {}
    most = min(longest, MOST_REQUEST) // 512 * 512
    for batch in covering(trace, ops):
        lengths = np.minimum(-(-batch.length // 512) * 512, most)
        for length, count in zip(*np.unique(lengths, return_counts=True), strict=True):
            found[int(length)] = found.get(int(length), 0) + int(count)
    kept = sorted(sorted(found, key=lambda length: -found[length])[:_SIZES])
    weights = dict.fromkeys(kept, 0)
    places = np.array(kept, float)
    for length, count in found.items():
        near = kept[int(np.argmin(np.abs(np.log(places / length))))]
        weights[near] += count
    least = sum(weights.values()) * 1e-8
    return tuple((length, float(n)) for length, n in weights.items() if n > least)


def _profile(trace: Trace, first: int, duration: int) -> tuple[float, ...]:
    """Requests in equal parts of the time: minutes, or as fine as there are requests for."""
    parts = min(max(duration // (60 * 10**9), 64), _PARTS, len(trace) // 8)
    if trace.metadata.clock == "none" or parts < 2:
        return ()
    counts = np.zeros(parts, np.int64)
    edges = np.array([duration * i // parts for i in range(parts)], np.int64)
    for batch in trace.batches():
        place = np.searchsorted(edges, batch.time_ns - first, "right") - 1
        counts += np.bincount(place, minlength=parts)
    return tuple(float(count) for count in counts)


def _extents(trace: Trace, op: Op, alignment: int, shift: int) -> tuple[Ints, Ints]:
    """Lengths of the extents of all that was written, and of the gaps between them; ascending."""
    union = Union()
    for batch in covering(trace, (op,)):
        start = (batch.offset - shift) // alignment  # -1 is what lies before the grid begins
        union.add(start, -((shift - batch.offset - batch.length) // alignment))
    start, stop = union.finish()
    gaps = start - np.concatenate([[-1], stop[:-1]])
    return np.sort(stop - start) * alignment, np.sort(gaps) * alignment


def _quantiles(values: NDArray[Any], least: int) -> list[float]:
    """Means of equally many of the sorted values, as many as there are values or `_QUANTILES`."""
    edges = np.linspace(0, len(values), min(len(values), _QUANTILES) + 1).astype(int)
    means = np.add.reduceat(values.astype(float), edges[:-1]) / np.diff(edges)
    if least:
        means = np.maximum(np.rint(means / least), 1) * least
    elif not means.any():
        means += 1
    return [float(mean) for mean in np.maximum(means, means.sum() * 1e-8)]
