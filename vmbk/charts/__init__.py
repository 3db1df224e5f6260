"""Altair charts, one function a figure; nothing else in vmbk draws.

Those of a study take its results (``StudyResult.rows``, or `vmbk.study.read_results`) or its
outcomes; those of a trace take a table of `vmbk.trace.metrics`; those of benchmarks take a table of
ratios or of programs; those of the service model take simulations, objectives and tables of costs.
Each returns a chart that shows itself in a notebook. Everything is
aggregated in Polars first; a chart holds some hundred rows at most. `run_lengths` and
`sent_over_time` are of a study; what they show of a trace is drawn by `changed_runs` and
`sent_so_far`. Altair itself is an extra and is loaded on the first call.
"""

from __future__ import annotations

from vmbk.charts.backups import bytes_read, bytes_sent, reported_against_compare
from vmbk.charts.chunking import kinds_of_content, stored_by_chunks
from vmbk.charts.churn import churn_over_time, interval_cost, rewrites_over_time, sent_so_far
from vmbk.charts.costs import cost_by
from vmbk.charts.crashes import outcomes
from vmbk.charts.decisions import decision_grid, vss_timeline
from vmbk.charts.fleet import account_load, gantt, gantt_before_after
from vmbk.charts.fragmentation import (
    amplification,
    changed_runs,
    dispersion_indices,
    dispersion_over_time,
)
from vmbk.charts.jobs import deleted_snapshot, durations, recovery_objectives
from vmbk.charts.misses import fleet_misses, identical_rewrites, missed_changes
from vmbk.charts.performance import peers, ratio_history, speed_ratios
from vmbk.charts.places import churn_map, write_map
from vmbk.charts.power_cuts import lost_commits, outcome_shares, since_flush
from vmbk.charts.requests import (
    activity,
    request_sizes,
    update_distances,
    update_intervals,
    working_set,
)
from vmbk.charts.shares import profile, update_coverage
from vmbk.charts.spread import run_lengths, sent_over_time, stage_times
from vmbk.charts.style import DETECTOR_COLOURS
from vmbk.charts.svg import to_svg

__all__ = [
    "DETECTOR_COLOURS",
    "account_load",
    "activity",
    "amplification",
    "bytes_read",
    "bytes_sent",
    "changed_runs",
    "churn_map",
    "churn_over_time",
    "cost_by",
    "decision_grid",
    "deleted_snapshot",
    "dispersion_indices",
    "dispersion_over_time",
    "durations",
    "fleet_misses",
    "gantt",
    "gantt_before_after",
    "identical_rewrites",
    "interval_cost",
    "kinds_of_content",
    "lost_commits",
    "missed_changes",
    "outcome_shares",
    "outcomes",
    "peers",
    "profile",
    "ratio_history",
    "recovery_objectives",
    "reported_against_compare",
    "request_sizes",
    "rewrites_over_time",
    "run_lengths",
    "sent_over_time",
    "sent_so_far",
    "since_flush",
    "speed_ratios",
    "stage_times",
    "stored_by_chunks",
    "to_svg",
    "update_coverage",
    "update_distances",
    "update_intervals",
    "vss_timeline",
    "working_set",
    "write_map",
]
