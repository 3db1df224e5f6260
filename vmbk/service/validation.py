"""What the documents say of times, beside what the calibrated model says.

Nothing is fitted to these points. Where the model's time is another, the gap is told with what can
explain it, and what the documents leave open (the wait in the queue, round trips to a remote disk)
is named as what it would have to be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from vmbk.errors import InputError
from vmbk.service.calibration import Calibration
from vmbk.service.plan import SECOND
from vmbk.service.profiles import profile
from vmbk.service.restore_rules import RestoreRules
from vmbk.units import KIB, format_duration, format_size

GB: Final = 10**9
TB: Final = 10**12
HOUR: Final = 3600

EXTENTS: Final = tuple(4 * KIB << i for i in range(11))
"""Mean extents for which the 200 GB of churn are told: 4 KiB to 4 MiB."""

THRESHOLD_BYTES: Final = 200 * GB
"""Daily churn from which on a backup takes more than 8 hours (overview of VM backup)."""

THRESHOLD_SECONDS: Final = 8 * HOUR

NEAR: Final = 0.02
"""How far, of the documented time, the model may be and still be called the same."""

SCHEMA: Final = {
    "point": pl.String, "source": pl.String, "relation": pl.String, "mean_extent": pl.Int64,
    "documented_seconds": pl.Float64, "modelled_seconds": pl.Float64, "low_seconds": pl.Float64,
    "high_seconds": pl.Float64, "gap_seconds": pl.Float64, "verdict": pl.String,
    "explanation": pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class Rates:
    """Published rates, bytes a second.

    Attributes
    ----------
    initial, incremental : int
        Best case of first and later backups (seed S1, table of throughput: 160 and 640 Mbps).
    blob : int
        Target of a single blob (seed S1, "Number of disks").
    vault_restore : int
        Of a restore from the vault (FAQ, vault restore).
    queue_wait : int
        Longest wait at peak, seconds (seed S1, "Total VM backup time").
    request_latency : float
        Seconds of a round trip for each extent. Inferred; 0 unless somebody assumes one.
    """

    initial: int = field(default_factory=lambda: profile("2017")["initial_rate"])
    incremental: int = field(default_factory=lambda: profile("2017")["incremental_rate"])
    blob: int = field(default_factory=lambda: profile("2017")["blob_rate"])
    vault_restore: int = field(default_factory=lambda: RestoreRules.default("2017").segment_rate)
    queue_wait: int = field(default_factory=lambda: profile("2017")["queue_peak"] // SECOND)
    request_latency: float = 0.0

    def __post_init__(self) -> None:
        for name in ("initial", "incremental", "blob", "vault_restore"):
            if not 0 < getattr(self, name) < 1 << 62:
                raise InputError(f"a rate of {getattr(self, name)} bytes a second: {name}")
        if self.queue_wait < 0 or not 0 <= self.request_latency < math.inf:
            raise InputError("a wait or a latency is negative")


def threshold_extent(
    calibration: Calibration, changed: float, seconds: float, rate: float, latency: float = 0.0
) -> float:
    """Mean extent at which sending takes just this long, in bytes; writes are of 8 KiB or more.

    Parameters
    ----------
    changed : float
        Bytes.
    seconds : float
        Longer than without any dispersion.
    rate : float
        Best rate, bytes a second.
    latency : float
        Seconds for each extent, inferred.

    Returns
    -------
    float
    """
    spare = seconds - changed / rate
    if spare <= 0:
        raise InputError(f"{changed:.0f} bytes take longer than {seconds:.0f} s in one extent")
    return changed * (calibration.extent.value / rate + latency) / spare


def implied_latency(
    calibration: Calibration, changed: float, seconds: float, rate: float, mean_extent: float
) -> float:
    """Round trip for each extent that would make it take just this long, in seconds; inferred.

    0 where dispersion alone takes as long.
    """
    left = seconds - changed / calibration.effective_rate(rate, mean_extent)
    return max(0.0, left * mean_extent / changed)


def validate(calibration: Calibration, rates: Rates | None = None) -> pl.DataFrame:
    """The documented points beside the model's.

    Parameters
    ----------
    calibration : Calibration
    rates : Rates, optional
        The published ones by default.

    Returns
    -------
    polars.DataFrame
        A row a point: ``point``, ``source``, ``relation`` (``equal``, ``at least``, ``at most``, or
        ``order`` for the three machines whose order alone is documented), ``mean_extent`` (bytes,
        null where nothing is dispersed), ``documented_seconds``, ``modelled_seconds`` with its
        interval (``low_seconds``, ``high_seconds``), ``gap_seconds`` (documented less modelled),
        ``verdict`` (``as documented``, ``gap``, or ``solved for``: the documented time went in, so
        that the model's agrees by construction) and ``explanation``.
    """
    rates = rates or Rates()
    rows = [
        *_plain(rates),
        *_threshold(calibration, rates),
        *_spread(calibration, rates),
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


def _row(
    point: str, source: str, documented: float | None, modelled: float, explanation: str,
    *, relation: str = "equal", mean_extent: float | None = None,
    interval: tuple[float, float] | None = None, agrees: bool | None = None,
    solved: bool = False,
) -> dict[str, Any]:  # fmt: skip
    low, high = interval or (modelled, modelled)
    gap = None if documented is None else documented - modelled
    if agrees is None and gap is not None and documented is not None:
        near = abs(gap) <= NEAR * documented
        agrees = near or (relation == "at least" and gap < 0) or (relation == "at most" and gap > 0)
    return {
        "point": point, "source": source, "relation": relation,
        "mean_extent": None if mean_extent is None else round(mean_extent),
        "documented_seconds": documented, "modelled_seconds": modelled, "low_seconds": low,
        "high_seconds": high, "gap_seconds": gap,
        "verdict": "solved for" if solved else "as documented" if agrees else "gap",
        "explanation": explanation,
    }  # fmt: skip


def _plain(rates: Rates) -> Iterator[dict[str, Any]]:
    """Points that follow from a rate alone."""
    table = "seed S1, table of throughput"
    for name, size, hours in (("1 TB", TB, 13.9), ("1023 GB", 1023 * GB, 14.2),
                              ("4 TB", 4 * TB, 55.6)):  # fmt: skip
        yield _row(f"first backup of {name}", table, hours * HOUR, size / rates.initial,
                   "size over the rate of first backups")  # fmt: skip
    yield _row("reading 1 TB to find changes", table, 3.5 * HOUR, TB / rates.incremental,
               "disk over the rate of later backups, which counts bytes of the disk")  # fmt: skip
    yield _row(
        "reading 1 TB to find changes, at a blob's target", "seed S1, Number of disks",
        3.5 * HOUR, TB / rates.blob,
        "the documents conflict: the rate of later backups is above the target of a single blob; "
        "both are kept, and a profile says which it uses",
    )  # fmt: skip
    modelled = 2332e6 / rates.initial
    yield _row(
        "a backup of 2332 MB", "REST documentation, 2018", 20 * 60 + 23, modelled,
        "sending takes the least of it; what is left is install, snapshot, wait and commit: "
        f"{format_duration(20 * 60 + 23 - modelled)}",
    )  # fmt: skip
    yield _row("restore of 2 TB from the vault", "FAQ, vault restore", 18.5 * HOUR,
               2 * TB / rates.vault_restore, "size over the optimal rate; segments of a disk go in "
               "parallel")  # fmt: skip


def _threshold(calibration: Calibration, rates: Rates) -> Iterator[dict[str, Any]]:
    """More than 200 GB of churn take more than 8 hours: with which dispersion, or which wait?

    The churn is that of one disk, found by tracking, and its writes are of 8 KiB or more, or as
    large as the extents.
    """
    source = "overview of VM backup, total backup time"
    rate, latency = rates.incremental, rates.request_latency
    yield _row(
        "200 GB of churn in one extent, at the rate of first backups", source, THRESHOLD_SECONDS,
        THRESHOLD_BYTES / rates.initial,
        "even the lower rate does not make 8 hours; what does is dispersion, or the wait, below",
        relation="at least",
    )  # fmt: skip
    low, high = calibration.ends()

    def seconds(of: Calibration, extent: float) -> float:
        return THRESHOLD_BYTES / of.effective_rate(rate, extent, request_latency=latency)

    for extent in EXTENTS:
        modelled = seconds(calibration, extent)
        left = THRESHOLD_SECONDS - modelled
        if left <= 0:
            why = "dispersion alone takes as long"
        else:
            trip = implied_latency(calibration, THRESHOLD_BYTES, THRESHOLD_SECONDS, rate, extent)
            why = (
                f"the wait in the queue must be {format_duration(left)} (up to "
                f"{format_duration(rates.queue_wait)} is documented), or a round trip of "
                f"{format_duration(trip)} for each extent, which is inferred"
            )
        yield _row(
            f"200 GB of churn in extents of {format_size(extent)}", source, THRESHOLD_SECONDS,
            modelled, why, relation="at least", mean_extent=extent,
            interval=(seconds(low, extent), seconds(high, extent)),
        )  # fmt: skip
    ends = [
        threshold_extent(each, THRESHOLD_BYTES, THRESHOLD_SECONDS, rate, latency)
        for each in (low, calibration, high)
    ]
    yield _row(
        "200 GB of churn, with the dispersion that takes 8 hours", source, THRESHOLD_SECONDS,
        seconds(calibration, ends[1]),
        f"a mean extent of {format_size(ends[1])} ({format_size(ends[0])} to "
        f"{format_size(ends[2])}); larger ones need a wait beside",
        relation="at least", mean_extent=ends[1],
        interval=(seconds(low, ends[1]), seconds(high, ends[1])), solved=True,
    )  # fmt: skip


def _spread(calibration: Calibration, rates: Rates) -> Iterator[dict[str, Any]]:
    """The same churn on the same data, on one, two and four disks."""
    churn, extent = 100 * GB, 64 * KIB
    machines = (
        ("VM2", 4, TB, "shortest"),
        ("VM3", 2, 2 * TB, "between"),
        ("VM1", 1, 4 * TB, "longest"),
    )

    def seconds(of: Calibration, disks: int, size: int) -> float:
        rate = of.effective_rate(rates.incremental, extent, request_latency=rates.request_latency)
        return size / rates.incremental + churn / disks / rate

    times = [seconds(calibration, disks, size) for _, disks, size, _ in machines]
    low, high = calibration.ends()
    for (name, disks, size, place), modelled in zip(machines, times, strict=True):
        yield _row(
            f"{name}: 100 GB of churn over {disks} × {size // TB} TB",
            "manage recovery points, 2021",
            None, modelled,
            f"{place} of the three is documented; disks go in parallel, each at its own rate, and "
            "are read whole",
            relation="order", mean_extent=extent, agrees=times == sorted(set(times)),
            interval=(seconds(low, disks, size), seconds(high, disks, size)),
        )  # fmt: skip


def measured_spread(frame: pl.DataFrame) -> pl.DataFrame:
    """How long vmbk itself takes for the same churn on one, two and four disks.

    vmbk reads and sends one disk with all processors, so more disks need not be faster: the
    documented order is that of a service with one stream a disk.

    Parameters
    ----------
    frame : polars.DataFrame
        Measurements, see `vmbk.study.calibration.measure`.

    Returns
    -------
    polars.DataFrame
        ``detector``, ``mean_extent``, ``disks``, ``seconds`` (median of finding and sending) and
        ``ratio`` to one disk.
    """
    keys = ["detector", "mean_extent"]
    return (
        frame.filter(pl.col("kind") == "disks")
        .with_columns(mean_extent=pl.col("written_bytes") // pl.col("extents"))
        .group_by(*keys, "disks")
        .agg(seconds=(pl.col("detect_seconds") + pl.col("transfer_seconds")).median())
        .sort(*keys, "disks")
        .with_columns(ratio=pl.col("seconds") / pl.col("seconds").first().over(keys))
    )
