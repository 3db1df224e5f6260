"""Altair charts, one function a figure; nothing else in vmbk draws.

Each takes the results of a study (``StudyResult.rows``, or `vmbk.study.read_results`) or its
outcomes and returns a chart that shows itself in a notebook. Everything is aggregated in Polars
first; a chart holds some hundred rows at most. Altair itself is an extra and is loaded on the first
call.
"""

from __future__ import annotations

from vmbk.charts.backups import bytes_read, bytes_sent, reported_against_compare
from vmbk.charts.crashes import outcomes
from vmbk.charts.spread import run_lengths, sent_over_time, stage_times
from vmbk.charts.style import DETECTOR_COLOURS
from vmbk.charts.svg import to_svg

__all__ = [
    "DETECTOR_COLOURS",
    "bytes_read",
    "bytes_sent",
    "outcomes",
    "reported_against_compare",
    "run_lengths",
    "sent_over_time",
    "stage_times",
    "to_svg",
]
