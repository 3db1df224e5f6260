"""The mix of a fit, by trial: traces are made of candidates, and the nearest is kept."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.trace.schema import Op
from vmbk.trace.synthesis.generate import synthesise
from vmbk.trace.synthesis.measure import BLOCK, covering, figures, sequential
from vmbk.trace.synthesis.plan import expected_working_set
from vmbk.trace.synthesis.spec import Mix, Spec, VolumeSpec
from vmbk.trace.table import Trace
from vmbk.units import KIB

_TRIAL_REQUESTS: Final = 60_000
"""Requests of the trials in which mixes are compared."""
_FIRST_TRIALS, _LAST_TRIALS = 2, 5
"""Trials of each candidate, and of the one that is kept."""
_FULL_REQUESTS: Final = 5_000_000
"""Up to so many requests, the rewrite ratio is set by trials with all of them."""
_JUDGED: Final = {
    "unique_share": 6.0,
    "interval_cost": 1.0,
    "mean_extent_bytes": 0.5,
    "amplification_64k": 1.0,
    "sequential_writes": 1.0,
    "top_1": 0.5,
    "top_10": 1.0,
}
"""Metrics by which trials are compared, with what each counts: what a backup costs comes first."""

Ints = NDArray[np.int64]


def choose_mix(
    base: VolumeSpec, trace: Trace, op: Op, duration: int, seed: int
) -> tuple[float, VolumeSpec]:
    """The least distance of a trial from the original, and the volume with its mix."""
    if op != Op.WRITE:
        return 0.0, replace(base, workload=replace(base.workload, mix=Mix(0.0, 1.0, 0.0)))
    share, run, space = _streams(trace)
    median = sorted(length for length, _ in base.workload.sizes)[len(base.workload.sizes) // 2]
    granule = max(4 * KIB, 1 << (min(median, 64 * KIB) - 1).bit_length())
    trials = _Trials(base, figures(trace), duration, seed)
    part = min(_TRIAL_REQUESTS / base.workload.requests, 1.0)
    found = [trials.nearest(mix, part) for mix in _candidates(share, run, space, granule)]
    distance, mix, best = min(found, key=lambda result: result[0])
    if distance < math.inf:
        part = min(_FULL_REQUESTS / base.workload.requests, 1.0)
        closer, _, best = trials.nearest(mix, part, last=True)
    else:
        closer, mix = distance, Mix(share, 1 - share, 0.0, run=run)
    if closer < math.inf:
        distance = closer
    else:  # no working set makes the ratio: the one that was measured
        best = replace(base, workload=replace(base.workload, mix=mix))
    return distance, best


@dataclass(frozen=True)
class _Trials:
    """Traces made to see how near a mix comes to the original."""

    base: VolumeSpec
    wanted: dict[str, float]
    duration: int
    seed: int

    def nearest(
        self, mix: Mix, part: float, *, last: bool = False
    ) -> tuple[float, Mix, VolumeSpec]:
        """The least distance with this mix, the mix, and the volume.

        What the model leaves out (requests that overlap, edges of extents) shifts the sequential
        share and the share of the written bytes that is unique; how far a trial has them wrong
        corrects the next. That share and not the rewrite ratio is what trials are to reach: the
        ratio is one of blocks, and how many blocks a write touches depends on how it lies on them.
        """
        best, distance = self.base, math.inf
        ratio, in_streams = self.wanted["rewrite_ratio"], mix.sequential
        rest = max(mix.uniform + mix.zipf, 1e-9)
        for _ in range(_LAST_TRIALS if last else _FIRST_TRIALS):
            part_of_rest = (1 - in_streams) / rest
            changed = replace(
                mix,
                sequential=in_streams,
                uniform=mix.uniform * part_of_rest,
                zipf=mix.zipf * part_of_rest,
            )
            volume, found = self._trial(changed, ratio, part, last)
            if not found:
                break
            if (far := self._distance(found)) < distance:
                best, distance, mix_of_best = volume, far, changed
            ratio *= found["unique_share"] / self.wanted["unique_share"]
            in_streams += self.wanted["sequential_writes"] - found["sequential_writes"]
            in_streams = min(max(in_streams, 0.0), 0.999)
        return distance, mix_of_best if distance < math.inf else mix, best

    def _trial(
        self, mix: Mix, ratio: float, part: float, last: bool
    ) -> tuple[VolumeSpec, dict[str, float]]:
        """The volume with a mix and a rewrite ratio, and its figures; none if it cannot be."""
        work = replace(
            self.base.workload, mix=mix, working_set=0, rewrite_ratio=min(max(ratio, 1.0), 1e9)
        )
        volume = replace(self.base, workload=work)
        spec = Spec(self.duration, (volume,), self.seed)
        spec = spec.with_requests(max(round(spec.requests * part), 1))
        try:
            if not last:  # what is expected will do
                work = spec.volumes[0].workload
                line = expected_working_set(spec.volumes[0])
                work = replace(work, working_set=line, rewrite_ratio=0.0)
                spec = replace(spec, volumes=(replace(volume, workload=work),))
            return volume, figures(synthesise(spec))
        except InputError:  # no working set makes this ratio of this mix
            return volume, {}

    def _distance(self, found: dict[str, float]) -> float:
        """How far two traces are apart: the metrics' ratios, as logarithms, weighed and added."""
        return sum(
            weight * abs(math.log(max(found[name], 0.01) / max(self.wanted[name], 0.01)))
            for name, weight in _JUDGED.items()
        )


def _candidates(share: float, run: int, space: float, granule: int) -> Iterator[Mix]:
    """Mixes worth a trial: all that is not sequential is uniform, or Zipf, or some of both."""
    share = min(share, 0.999)
    spaces, granules = sorted({round(space, 6), 1.0}), sorted({4 * KIB, granule})
    even = Mix(share, 1 - share, 0.0, run=run)
    for stream_space in spaces:
        yield replace(even, stream_space=stream_space)
    for stream_space, unit, theta, part in product(
        spaces, granules, (0.7, 1.0, 1.4, 1.9), (0.8, 0.5, 0.2, 0.05)
    ):
        yield replace(
            even,
            uniform=(1 - share) * part,
            zipf=(1 - share) * (1 - part),
            theta=theta,
            stream_space=stream_space,
            granule=unit,
        )


def _streams(trace: Trace) -> tuple[float, int, float]:
    """Share of the writes that are sequential, bytes of a run, and the space of what they cover."""
    count = total = runs = written = 0
    places: list[Ints] = []
    others: list[Ints] = []
    for batch in covering(trace, (Op.WRITE,)):
        follows = sequential(batch.offset, batch.length)
        leads = sequential(-(batch.offset + batch.length)[::-1], batch.length[::-1])[::-1]
        total += len(batch)
        count += int(follows.sum())
        runs += int((leads & ~follows).sum())
        written += int(batch.length[follows | leads].sum())
        for rows, into in ((follows | leads, places), (~(follows | leads), others)):
            into.append(np.unique(batch.offset[rows] // BLOCK))
    if not count:
        return 0.0, 0, 1.0
    in_streams = len(np.unique(np.concatenate(places)))
    everywhere = len(np.unique(np.concatenate([*places, *others])))
    run = max(written // max(runs, 1) // BLOCK, 1) * BLOCK
    return count / total, run, min(max(in_streams / everywhere, 1e-6), 1.0)
