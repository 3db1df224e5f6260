"""Timing of alternatives that take turns: what disturbs the machine disturbs all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Seconds of one alternative, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.seconds), max(self.seconds)


def take_turns(alternatives: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Call every alternative once a round, after a round that does not count.

    Parameters
    ----------
    alternatives : mapping of str to callable
    rounds : int
    """
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for turn in range(rounds + 1):
        for name, call in alternatives.items():
            gc.collect()
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def ratios(ours: Timing, other: Timing) -> tuple[float, float, float]:
    """How many times faster ours is: median, lowest and highest of the rounds."""
    each = [b / a for a, b in zip(ours.seconds, other.seconds, strict=True)]
    return statistics.median(each), min(each), max(each)
