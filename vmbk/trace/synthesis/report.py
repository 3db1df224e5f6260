"""How far a trace is from another: the public metrics of both, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vmbk.errors import InputError
from vmbk.trace.metrics.dirty import DirtyPass
from vmbk.trace.metrics.intervals import INTERVALS, IntervalPass
from vmbk.trace.metrics.requests import RequestPass
from vmbk.trace.metrics.updates import UpdatePass
from vmbk.trace.metrics.windows import Measured
from vmbk.trace.schema import OP_NAMES, Op
from vmbk.trace.synthesis.measure import BLOCK, batches, figures, span_ns
from vmbk.trace.table import Trace
from vmbk.units import parse_duration

if TYPE_CHECKING:
    import polars as pl

_MINUTE: Final = 60 * 10**9
_PROFILE: Final = (
    "write_share", "read_bytes", "write_bytes", "mean_read_bytes", "mean_write_bytes",
    "small_write_share", "unaligned_share", "burstiness", "random_share", "random_write_share",
    "sequential_share",
)  # fmt: skip
_SPREAD: Final = ("extents_per_gib", "region_fill", "dispersion_index")
_UPDATES: Final = (
    "updated_share", "within_10", "within_20", "within_40", "within_80",
    "distance_p50", "distance_p90", "interval_p50", "interval_p90",
)  # fmt: skip
_DISTANCES: Final = {
    "read_size_distance": "share",
    "write_size_distance": "share",
    "run_length_distance": "changed_bytes",
}


def compare(original: Trace, made: Trace) -> pl.DataFrame:
    """The metrics of two traces, as `Fit.frame` has them.

    Raises
    ------
    InputError
        As `vmbk.trace.metrics.windows.measure` and `vmbk.trace.metrics.requests.profile`.
    """
    import polars as pl

    # The same intervals for both, of which the original is to be longer.
    intervals = [name for name in INTERVALS if parse_duration(name) < span_ns(original)]
    (a, spread_a), (b, spread_b) = (_metrics(trace, intervals) for trace in (original, made))
    for name, column in _DISTANCES.items():
        a[name], b[name] = 0.0, _distance(spread_a[name], spread_b[name], column)
    off = [None if not x or b[name] is None else b[name] / x - 1 for name, x in a.items()]
    return pl.DataFrame(
        {"metric": list(a), "original": a.values(), "synthetic": [b[name] for name in a],
         "difference": off},
        schema={"metric": pl.String, **dict.fromkeys(("original", "synthetic", "difference"),
                                                     pl.Float64)},
    )  # fmt: skip


def _metrics(trace: Trace, intervals: list[str]) -> tuple[dict[str, Any], dict[str, pl.DataFrame]]:
    """The values by name, and the tables of which `_DISTANCES` are taken."""
    import polars as pl

    requests = RequestPass(trace.volumes, window_ns=_MINUTE)
    dirty = DirtyPass(trace.volumes, window_ns=None, block_size=BLOCK)
    updates: UpdatePass | None = UpdatePass(trace.volumes, block_size=BLOCK)
    cost: IntervalPass | None = None
    if intervals:
        nanoseconds = [parse_duration(name) for name in intervals]
        cost = IntervalPass(trace.volumes, intervals_ns=nanoseconds, block_size=BLOCK)
    for batch in batches(trace):
        requests.add(batch)
        dirty.add(batch)
        try:
            for work in (updates, cost):
                if work is not None:
                    work.add(batch)
        except InputError:  # so much is written that the time of each block is not kept
            updates = cost = None
    counted, spread = requests.finish(), Measured(dirty.finish())
    together = pl.col("volume").is_null()
    row = _only_row(counted.profile.filter(together))
    sizes = counted.request_sizes.filter(together)
    values: dict[str, Any] = {
        "requests": sizes.filter(pl.col("op") != OP_NAMES[Op.MARK])["requests"].sum(),
        "duration_s": span_ns(trace) / 1e9,
        "writes_per_flush": row["writes"] / row["flushes"] if row["flushes"] else 0.0,
    }
    values |= {name: row[name] for name in _PROFILE}
    values |= {name: value for name, value in figures(trace).items() if name != "unique_share"}
    found = _only_row(spread.dispersion.filter(together))
    values |= {name: found.get(name) for name in _SPREAD}
    costs = [None] * len(intervals)
    if cost is not None:  # in order of their length, as INTERVALS are
        costs = cost.finish().filter(together)["cost"].to_list()
    values |= {f"interval_cost_{name}": c for name, c in zip(intervals, costs, strict=True)}
    found = {} if updates is None else _only_row(updates.finish().coverage.filter(together))
    values |= {name: found.get(name) for name in _UPDATES}
    return values, {
        "read_size_distance": sizes.filter(op="read"),
        "write_size_distance": sizes.filter(op="write"),
        "run_length_distance": spread.run_lengths.filter(together),
    }


def _only_row(frame: pl.DataFrame) -> dict[str, Any]:
    """The row of a frame of one row; nothing of an empty one."""
    return frame.row(0, named=True) if len(frame) else {}


def _distance(a: pl.DataFrame, b: pl.DataFrame, column: str) -> float:
    """The share that would have to go to another power of two to make one the other."""
    shares = []
    for frame in (a, b):
        found = dict(frame.select("from_bytes", column).iter_rows())
        total = sum(found.values())
        shares.append({key: value / total for key, value in found.items()})
    one, two = shares
    return float(sum(abs(one.get(key, 0) - two.get(key, 0)) for key in one.keys() | two.keys()) / 2)
