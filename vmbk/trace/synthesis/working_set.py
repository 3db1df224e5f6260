"""The working set: how large it must be, and where it lies on the volume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Final

import numpy as np

from vmbk.errors import InputError
from vmbk.trace.schema import Op
from vmbk.trace.synthesis.spec import Weights, Workload
from vmbk.trace.synthesis.tables import Ints, Ranks, mix, whole_parts
from vmbk.units import format_size

_TRIAL_WRITES: Final = 1 << 16
_MOST_TRIAL: Final = 1 << 20
"""Requests of a trial: so many that enough of them write, but no more than this."""
_MOST_TRIALS: Final = 12
_NEAR, _FAR = 0.005, 0.04
"""How near a trial is to come to the ratio, and how far the best may be from it."""

QUANTILES: Final = 64
"""Extents in a group where only their mean is declared."""


def operations(work: Workload) -> dict[Op, float]:
    """Share of requests of each operation."""
    write = 1 - work.read_share
    weights = {
        Op.READ: work.read_share,
        Op.WRITE: write,
        Op.FLUSH: write / work.flush_every if work.flush_every else 0.0,
        Op.DISCARD: write / work.discard_every if work.discard_every else 0.0,
    }
    total = sum(weights.values())
    return {op: weight / total for op, weight in weights.items()}


def size_shares(sizes: Weights) -> list[tuple[int, float]]:
    """Lengths in bytes and the share of requests of each; none without a share."""
    total = math.fsum(weight for _, weight in sizes)
    return [(length, weight / total) for length, weight in sizes if weight]


@dataclass(frozen=True)
class Layout:
    """Where the working set lies; see `vmbk.kernels.synthesis.lay_out`."""

    lengths: Ints
    gaps: Ints
    guide: Ints
    guide_shift: int
    span: int

    @classmethod
    def of(cls, lengths: list[int], gaps: list[int], span: int) -> Layout:
        """The layout of a group's extents and gaps, in units."""
        sums = _twice(lengths)
        shift = max((int(sums[-1]) // (16 * len(lengths))).bit_length(), 0)
        cells = np.arange((int(sums[-1]) >> shift) + 1, dtype=np.int64) << shift
        guide = np.searchsorted(sums, cells, "right") - 1
        return cls(sums, _twice(gaps), guide.astype(np.int64), shift, span)


def exponential_quantiles(n: int) -> list[float]:
    """The exponential distribution in n equally frequent values of mean 1 or near."""
    return [round(-math.log1p(-(i + 0.5) / n), 6) for i in range(n)]


def lay_out_working_set(work: Workload, line: int, room: int, need: int, key: int) -> Layout:
    """Spread the working set over the volume in the declared extents.

    Parameters
    ----------
    work : Workload
    line, room : int
        Units of the working set and of the volume.
    need : int
        Units of the longest request, which some extent must hold.
    key : int
        Of the order of extents and gaps.

    Raises
    ------
    InputError
        If extents and gaps do not fit, or no extent holds the longest request.
    """
    declared = [length / work.alignment for length in work.extents] or [float(line)]
    if len(declared) == 1:
        lengths = _of_mean(declared[0], line)
        groups = max(round(line / math.fsum(lengths)), 1)
        of_group = -(-line // groups)
    else:
        lengths = declared
        groups = max(round(line / math.fsum(lengths)), 1)
        # A list of lengths is never shrunk; of the last group a part goes unused.
        of_group = max(-(-line // groups), math.ceil(math.fsum(lengths)))
    extents, span = len(lengths), room // groups
    least = 1 if groups * extents > 1 else 0
    if span - of_group < least * extents:
        raise InputError(
            f"a working set of {format_size(line * work.alignment)} in {groups * extents:,} "
            f"extents leaves no room for the gaps in {format_size(room * work.alignment)}",
            hint="declare a smaller working set or longer extents",
        )
    if of_group < extents:  # extents shorter than the grid
        raise InputError(
            f"extents of {format_size(work.alignment * of_group / extents)} on average are shorter "
            f"than the alignment of {format_size(work.alignment)}"
        )
    whole = whole_parts(lengths, of_group, 1)
    if max(whole) < need:
        raise InputError(
            f"no extent holds a request of {format_size(work.largest)}: the longest has "
            f"{format_size(max(whole) * work.alignment)}",
            hint="declare longer extents or smaller sizes",
        )
    weights = _pick(work.gaps, extents) if work.gaps else exponential_quantiles(extents)
    if not any(weights):
        weights = [1.0] * extents
    gaps = whole_parts(weights, span - of_group, least)
    return Layout.of(_shuffled(whole, mix(key, 1)), _shuffled(gaps, mix(key, 2)), span)


def _of_mean(mean: float, line: int) -> list[float]:
    """Lengths of a group's extents, exponential, and no more of them than the line takes."""
    count = min(max(round(line / mean), 1), QUANTILES)
    return [mean * quantile for quantile in exponential_quantiles(count)]


def _pick(values: Sequence[float], count: int) -> list[float]:
    """As many values, spread evenly over the sorted ones."""
    ordered = sorted(values)
    return [ordered[(2 * i + 1) * len(ordered) // (2 * count)] for i in range(count)]


def _shuffled(values: list[int], key: int) -> list[int]:
    return [values[i] for i in sorted(range(len(values)), key=lambda i: mix(key, i))]


def _twice(values: list[int]) -> Ints:
    return np.array([0, *accumulate(values * 2)], np.int64)


# --- From the rewrite ratio ----------------------------------------------------------------------


Trial = Callable[[int, int], tuple[int, int]]
"""Units that so many requests over so many units write: each as often as it is, and each once."""


def solve_working_set(work: Workload, need: int, room: int, granule: int, trial: Trial) -> int:
    """The units over which the declared writes make the declared rewrite ratio.

    First comes what is to be expected. It leaves out that requests are moved back where their
    extent ends, and that they overlap within a place of zipf and hot_cold. So trials follow, with
    all requests or the first of them, and what they find holds for all in proportion.

    Parameters
    ----------
    work : Workload
    need, room : int
        Least and most units.
    granule : int
        Units of a place of zipf and hot_cold.
    trial : callable

    Raises
    ------
    InputError
        If no working set makes it.
    """
    line, share = expected_line(work, need, room, granule), operations(work)[Op.WRITE]
    if work.requests * share < 0.5:
        return line
    requests = min(work.requests, round(_TRIAL_WRITES / share), _MOST_TRIAL)
    try:
        first = expected_line(replace(work, requests=requests), need, room, granule)
        most = max(_most(work, room) * first // line, need)
        found, off = _search(work, requests, first, need, most, trial)
    except InputError:  # so few requests have no such ratio, or need no extent for the longest
        return line
    line = max(_rounded(line * found // first), need)
    if abs(off - 1) > _FAR:
        raise _impossible(work, line, off > 1, work.rewrite_ratio / off)
    return line


def _search(
    work: Workload, requests: int, first: int, low: int, high: int, trial: Trial
) -> tuple[int, float]:
    """Where trials come nearest to the declared ratio, and how often more than wanted is unique.

    Raises
    ------
    InputError
        If the first of them cannot be made.
    """
    line = first
    tried: dict[int, float] = {}
    while len(tried) < _MOST_TRIALS and line not in tried:
        try:
            total, unique = trial(requests, line)
        except InputError:
            if not tried:
                raise
            break
        if not total:
            return line, 1.0
        tried[line] = off = unique * work.rewrite_ratio / total
        if abs(off - 1) <= _NEAR:
            break
        low, high = (line, high) if off < 1 else (low, line)
        line = min(max(_next(tried, line), low), high)
        if line in tried and high - low > max(low >> 10, 1):
            line = max(_rounded(math.isqrt(low * high)), low)
    best = min(tried, key=lambda line: abs(math.log(tried[line])))
    return best, tried[best]


def _next(tried: dict[int, float], line: int) -> int:
    """The next line to try: where a power law through the last two would be right."""
    slope = 1.0
    if len(tried) > 1:
        before = list(tried)[-2]
        rise = math.log(tried[line] / tried[before])
        slope = min(max(rise / math.log(line / before), 0.25), 2.0)
    factor = min(max(tried[line] ** (-1 / slope), 1 / 8), 8)
    return _rounded(round(line * factor))


def _most(work: Workload, room: int) -> int:
    """Units of the volume that extents may take: after each of them is a gap of a unit."""
    if not work.extents:
        return room
    length = math.fsum(work.extents) / len(work.extents) / work.alignment
    return int(room * length / (length + 1))


def _rounded(line: int) -> int:
    """So that the last bit of a machine's exponential function does not show."""
    return line - line % max(line >> 12, 1)


def _impossible(work: Workload, line: int, less: bool, ratio: float) -> InputError:
    return InputError(
        f"a rewrite ratio of {work.rewrite_ratio:g} cannot come of these writes: even over "
        f"{format_size(line * work.alignment)} they make {'less' if less else 'more'} than "
        f"{ratio:.3g}",
        hint="change the ratio, the mix, the extents, the number of requests or the volume's size",
    )


def expected_line(work: Workload, need: int, room: int, granule: int) -> int:
    """The units over which the declared ratio is to be expected; see `solve_working_set`.

    Raises
    ------
    InputError
        If it is nowhere.
    """
    writes = work.requests * operations(work)[Op.WRITE]
    if writes < 0.5:
        return need
    mean = math.fsum(
        -(-length // work.alignment) * share for length, share in size_shares(work.sizes)
    )
    wanted = writes * mean / work.rewrite_ratio

    def unique(line: int) -> float:
        return line * (1 - _untouched(work, writes, mean, line, min(granule, line)))

    low, high = need, max(_most(work, room), need)
    for line, less, bad in (
        (low, True, unique(low) > wanted),
        (high, False, unique(high) < wanted),
    ):
        if bad:
            raise _impossible(work, line, less, writes * mean / unique(line))
    while high - low > max(high >> 14, 1):
        middle = (low + high) // 2
        if unique(middle) < wanted:
            low = middle
        else:
            high = middle
    return max(_rounded(high), need)


def _untouched(work: Workload, writes: float, mean: float, line: int, granule: int) -> float:
    """Expected share of the working set that no write touches.

    Streams and sweeps touch places in turn, so what they miss is what they have not come to. The
    others touch a place by chance, as a Poisson process does.
    """
    shares, mixed = work.mix.shares(), work.mix
    written = writes * mean / line
    around = written * shares["sequential"] / mixed.stream_space
    left = max(0.0, 1 - written * shares["uniform"])
    left *= 1 - mixed.stream_space * min(around, 1.0)
    places = line // granule
    if left and shares["zipf"]:
        ranks = Ranks.zipf(places, mixed.theta)
        hits = written * shares["zipf"] * places / math.fsum(ranks.weight)
        left *= math.fsum(
            count * math.exp(-hits * weight / count)
            for count, weight in zip(ranks.count, ranks.weight, strict=True)
        ) / places  # fmt: skip
    if left and shares["hot_cold"]:
        hits = written * shares["hot_cold"]
        space, access = mixed.hot_space, mixed.hot_access
        cold = math.exp(-hits * (1 - access) / (1 - space)) if space < 1 else 0.0
        left *= space * math.exp(-hits * access / space) + (1 - space) * cold
    return left
