"""When requests come: the share of a volume's requests before each point in time."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vmbk.trace.synthesis.spec import Workload
from vmbk.trace.synthesis.tables import mix

HOUR: Final = 3600 * 10**9
_UNIT: Final = 1 << 20


def exponential_table(cells: int) -> NDArray[np.int64]:
    """Quantiles of the exponential distribution at multiples of ``1 / cells``, mean 2^20."""
    return np.array([round(-math.log1p(-i / cells) * _UNIT) for i in range(cells)], np.int64)


def arrival_curve(
    work: Workload, duration: int, key: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Times, and the share of all requests that come before each.

    The rate is the product of the profile, the hour's weight and the burst factor, even between
    the times. Sums and products alone: the same on every machine.

    Parameters
    ----------
    work : Workload
    duration : int
        ns.
    key : int
        Of where the bursts lie.

    Returns
    -------
    edges : ndarray of int64, shape (m + 1,)
        ns; from 0 to ``duration``.
    share : ndarray of float64, shape (m + 1,)
        From 0 to 1.
    """
    edges = [np.array([0, duration], np.int64)]
    if work.diurnal:
        edges.append(np.arange(0, duration, HOUR, dtype=np.int64))
    parts = min(len(work.profile), duration)
    profile_edges = np.array([duration * i // max(parts, 1) for i in range(parts)], np.int64)
    edges.append(profile_edges)
    starts = stops = np.empty(0, np.int64)
    if work.arrival == "bursty":
        starts, stops = _bursts(work, duration, key)
        edges += [starts, stops]
    at = np.unique(np.concatenate(edges))
    begin = at[:-1]
    rate = np.ones(len(begin))
    if work.diurnal:
        rate *= np.array(work.diurnal)[(begin // HOUR) % 24]
    if parts:
        rate *= np.array(work.profile)[np.searchsorted(profile_edges, begin, "right") - 1]
    if len(starts):
        burst = work.burst
        inside = np.searchsorted(starts, begin, "right") > np.searchsorted(stops, begin, "right")
        rest = 1 - burst.share
        between = max(1 - burst.factor * burst.share, 0.0) / rest if rest > 0 else 0.0
        rate *= np.where(inside, burst.factor, between)
    share = np.concatenate([[0.0], np.cumsum(rate * np.diff(at))])
    if not share[-1] > 0:  # the weights that are not 0 lie past the end
        share = at.astype(np.float64)
    return at, share / share[-1]


def _bursts(work: Workload, duration: int, key: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Beginnings and ends: one burst in each of equal periods, anywhere in it."""
    count = max(round(duration * work.burst.share / work.burst.length), 1)
    period = duration // count
    length = min(int(period * work.burst.share), period)
    spare = period - length + 1
    starts = [i * period + (mix(key, i) * spare >> 64) for i in range(count)]
    start = np.array(starts, np.int64)
    return start, start + length
