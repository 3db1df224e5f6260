"""Explain: why the incremental backups of a workload would be large or slow.

Every finding is a sentence with the figures behind it, and the figures are those of the tables in
`vmbk.trace.metrics`; `vmbk.trace.findings` has the limits that decide.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmbk.display import table
from vmbk.trace import findings
from vmbk.trace.findings import LARGE, SLOW, Finding
from vmbk.trace.metrics.windows import WHOLE, measure
from vmbk.trace.table import checked_trace
from vmbk.trace.wording import listed
from vmbk.units import format_duration, format_interval, parse_duration, parse_size

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace.table import Trace

_GRID: Final = 4096  # bytes; the page of guests, in which changes are drilled down
_BECAUSE: Final = {
    "change": "how much changes",
    "hours": "uneven intervals",
    "small writes": "small or crooked writes",
    "granularity": "coarse blocks",
    "dispersion": "changes that lie apart",
    "discards": "discards",
    "frequency": "blocks sent again and again",
}
_WIDTH: Final = 100  # columns of a paragraph


@dataclass(frozen=True)
class Explanation:
    """Why the incremental backups of a workload would be large or slow.

    Parameters
    ----------
    interval_s : float or None
        s between two backups, None for one over the whole trace.
    block_size : int
        Bytes; the unit in which changes are found.
    findings : tuple of Finding
    duration_s : float or None
        s from the first request to the last, None where the trace has no clock.
    """

    interval_s: float | None
    block_size: int
    findings: tuple[Finding, ...]
    duration_s: float | None = None

    def __getitem__(self, topic: str) -> Finding:
        """The finding on a topic.

        Raises
        ------
        KeyError
            If there is none.
        """
        for finding in self.findings:
            if finding.topic == topic:
                return finding
        raise KeyError(topic)

    @property
    def summary(self) -> str:
        """All of them in one sentence; where the trace covers less than an interval, that first."""
        when, covered = " of the whole trace", ""
        if self.interval_s is not None:
            when = f" every {format_interval(self.interval_s)}"
            if self.duration_s is not None and _falls_short(self.duration_s, self.interval_s):
                when = ""
                covered = (
                    f"The trace covers only {format_duration(self.duration_s)} of an interval of "
                    f"{format_interval(self.interval_s)}; going by that, "
                )
        parts = []
        for verdict in (LARGE, SLOW):
            why = [_BECAUSE[f.topic] for f in self.findings if f.verdict == verdict]
            if why:
                parts.append(f"{verdict} because of {listed(why)}")
        if parts:
            text = f"incrementals{when} would be {', and '.join(parts)}."
        else:
            text = f"nothing here makes incrementals{when} large or slow."
        return covered + text if covered else text[0].upper() + text[1:]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "interval_s": self.interval_s,
            "block_size": self.block_size,
            "duration_s": self.duration_s,
            "summary": self.summary,
            "findings": [finding.to_dict() for finding in self.findings],
        }

    def frame(self) -> pl.DataFrame:
        """Topic, verdict and sentence of every finding."""
        import polars as pl

        names = ("topic", "verdict", "sentence")
        return pl.DataFrame(
            {name: [getattr(f, name) for f in self.findings] for name in names},
            schema=dict.fromkeys(names, pl.String),
        )

    def __str__(self) -> str:
        parts = [textwrap.fill(self.summary, _WIDTH)]
        for f in self.findings:
            indent = {"initial_indent": "  ", "subsequent_indent": "  "}
            parts.append(
                f"{f.topic}: {f.verdict}\n{textwrap.fill(f.sentence, _WIDTH, **indent)}"  # type: ignore[arg-type]
            )
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        rows = [(f.topic, f.verdict, f.sentence) for f in self.findings]
        return table(self.summary, ("topic", "verdict", "because"), rows)


def explain(
    trace: Trace, interval: str | float = "1h", block_size: str | int = "64KiB"
) -> Explanation:
    """Say why incremental backups of a workload would be large or slow.

    Parameters
    ----------
    trace : Trace
    interval : str or float
        Time between two backups, such as ``1h``, or ``whole``; seconds as a number.
    block_size : str or int
        Bytes of the blocks in which changes are found: a power of two from 512 B to 4 MiB.

    Returns
    -------
    Explanation
        Findings on: change, volumes (where there are several), hours, regions, rewrites, small
        writes, granularity, dispersion, discards, frequency. Where the trace has no clock, or is
        taken as one interval, those on hours and frequency say so. Where nothing is written, on
        change only, and on discards where there are any.

    Raises
    ------
    InputError
        If a value is outside its bounds, or more was written than can be measured.

    Notes
    -----
    The same trace always gives the same sentences. What changes is counted in blocks of 4 KiB,
    except for granularity and dispersion.
    """
    checked_trace(trace)
    import polars as pl

    from vmbk.trace.metrics.regions import regions
    from vmbk.trace.metrics.requests import measure_requests

    clock = trace.metadata.clock != "none"
    window: str | float = interval if clock else WHOLE
    size = parse_size(block_size)
    interval_ns = None if window == WHOLE else parse_duration(window)
    interval_s = None if interval_ns is None else interval_ns / 1e9
    changed, spread = measure(trace, window, _GRID), measure(trace, window, size)
    churn = changed.churn
    together = pl.col("volume").is_null()
    all_churn = churn.filter(together)
    without = with_them = int(all_churn["unique_bytes"].sum())
    requests = measure_requests(trace, keep_windows=False)
    clears = _clears(requests.request_sizes)
    if clears[0]:
        wider = measure(trace, window, _GRID, discards=True).churn
        with_them = int(wider.filter(together)["unique_bytes"].sum())
    cleared = findings.discards(*clears, without, with_them)
    # A part of a trace keeps its times, so that it may begin late.
    ends = (int(trace.requests.time_ns[0]), int(trace.requests.time_ns[-1])) if len(trace) else None
    first_ns, last_ns = ends or (0, 0)
    duration_s = (last_ns - first_ns) / 1e9
    lasting = duration_s if clock and ends else None
    if not without:
        nothing = findings.no_change(clears[0])
        why_empty = (nothing, cleared) if clears[0] else (nothing,)
        return Explanation(interval_s, size, why_empty, lasting)
    windows = 1 if interval_ns is None else last_ns // interval_ns - first_ns // interval_ns + 1
    why = _no_course(clock, interval_s, duration_s)
    costs = _costs(trace, interval_ns, clock).filter(together)
    finer = changed if size >= _GRID else spread
    names = {volume.id: volume.name for volume in trace.volumes}
    found = [
        findings.change(all_churn, costs, windows, duration_s),
        *([findings.volumes(churn.filter(~together), names)] if len(names) > 1 else []),
    ]
    if why is not None:
        found.append(findings.no_hours(why))
    elif interval_s is None:
        found.append(findings.one_interval("hours"))
    else:
        found.append(findings.hours(all_churn, windows, interval_s))
    found += [
        findings.regions(regions(trace, window, _GRID), names),
        findings.rewrites(all_churn),
        findings.small_writes(requests.profile.filter(together)),
        findings.granularity(finer.granularity.filter(together), size),
        findings.dispersion(spread.dispersion.filter(together), size),
        cleared,
    ]
    if why is not None:
        found.append(findings.no_frequency(why))
    elif interval_ns is None:
        found.append(findings.one_interval("frequency"))
    else:
        found.append(findings.frequency(costs, interval_ns))
    return Explanation(interval_s, size, tuple(found), lasting)


def _no_course(clock: bool, interval_s: float | None, duration_s: float) -> str | None:
    """Why the trace shows no course of time, or None where it does."""
    if not clock:
        return "the trace has no clock"
    if interval_s is None or duration_s >= interval_s:
        return None
    short = f"less than one interval of {format_interval(interval_s)}; choose a shorter one"
    if _falls_short(duration_s, interval_s):
        return f"the trace covers {format_duration(duration_s)}, {short}"
    return f"the trace covers {format_duration(interval_s - duration_s)} {short}"


def _falls_short(duration_s: float, interval_s: float) -> bool:
    """Whether a trace covers less than an interval by so much that people see it."""
    return duration_s < interval_s and format_duration(duration_s) != format_duration(interval_s)


def _costs(trace: Trace, interval_ns: int | None, clock: bool) -> pl.DataFrame:
    """Interval cost around the interval and of a day; without a clock none."""
    from vmbk.trace.metrics.intervals import interval_cost

    near = [] if interval_ns is None else [f"{ns}ns" for ns in findings.around(interval_ns)]
    found = interval_cost(trace, [*near, "24h"], _GRID)
    return found if clock else found.clear()


def _clears(request_sizes: pl.DataFrame) -> tuple[int, int]:
    """Discards and write_zeroes, and their bytes."""
    import polars as pl

    rows = request_sizes.filter(
        pl.col("volume").is_null(), pl.col("op").cast(pl.String).is_in(["discard", "write_zeroes"])
    )
    return int(rows["requests"].sum()), int(rows["bytes"].sum())
