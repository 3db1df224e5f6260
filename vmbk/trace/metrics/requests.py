"""What a workload's requests are like: sizes, alignment, order of places, and bursts.

None of it needs to know what was written before; it tells how hard the requests are on the disk,
and how much a changed block of 4 KiB or more overstates a write.

Source of the definitions: Li, Wang, Lee, Xu: An In-Depth Analysis of Cloud Block Storage Workloads,
IISWC 2020 (randomness ratio, burstiness ratio with one-minute peaks).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.trace.metrics.dirty import zeros
from vmbk.trace.metrics.leaves import Places, checked_volumes
from vmbk.trace.schema import OP_NAMES, Op, Volume
from vmbk.trace.table import checked_trace
from vmbk.units import parse_duration

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace.table import Requests, Trace

SMALL: Final = 8192
"""Bytes; a write of less is small."""

_RATES: Final = ("peak_per_s", "mean_per_s", "burstiness")
_FIRST_ROWS: Final = 1 << 10
_CURRENT: Final = 0  # place of the kernel's state


class RequestPass:
    """Follows requests batch by batch; how they are cut into batches changes nothing.

    Parameters
    ----------
    volumes : sequence of Volume
    window_ns : int
        ns of a window of activity.
    keep_windows : bool
        Whether to keep the figures of every window, or only those of the busiest.

    Raises
    ------
    InputError
        If a value is outside its bounds.
    """

    def __init__(
        self, volumes: Iterable[Volume], *, window_ns: int, keep_windows: bool = False
    ) -> None:
        from vmbk.kernels import requests as kernels

        self.volumes = checked_volumes(volumes)
        if window_ns < 1:
            raise InputError(f"a window of {window_ns} ns: at least 1 ns is needed")
        self._window_ns = window_ns
        self._places = Places(self.volumes)
        count = len(self.volumes)
        self._sizes = np.zeros(2 * kernels.OPS * kernels.SIZES * count, np.int64)
        self._near = np.zeros(kernels.NEIGHBOURS * count, np.int64)
        self._ends = np.zeros((kernels.NEIGHBOURS + 1) * count, np.int64)
        self._figures = np.zeros(kernels.FIGURES * (count + 1), np.int64)
        self._current = np.zeros(4 * count, np.int64)
        self._touched = np.zeros(count, np.int64)
        rows = max(_FIRST_ROWS, count) if keep_windows else 0
        self._out = np.zeros(kernels.ROW_FIELDS * rows, np.int64)
        self._state = np.zeros(5, np.int64)
        self._state[_CURRENT] = -1

    def add(self, batch: Requests) -> None:
        """Follow the next requests.

        Raises
        ------
        InputError
            If all requests come to 2**63 bytes.
        """
        self._follow(self._places(batch), 0)

    def _follow(self, batch: Requests, is_last: int) -> None:
        from vmbk.kernels.requests import profile_requests

        row = 0
        while True:
            row = profile_requests(
                row, batch.time_ns, batch.op.view(np.uint8), batch.volume, batch.offset,
                batch.length, self._window_ns, is_last, self._sizes, self._near, self._ends,
                self._figures, self._current, self._touched, self._out, self._state,
            )  # fmt: skip
            if row == len(batch):
                return
            if row < 0:
                raise InputError(
                    "the trace's requests come to more than 2^63 bytes, which is more than any "
                    "workload moves",
                    hint="measure a part of the trace: trace[first:stop]",
                )
            row = min(row, len(batch))
            grown = zeros(2 * len(self._out), np.int64)
            grown[: len(self._out)] = self._out
            self._out = grown

    def finish(self) -> RequestFigures:
        """End the last window; no more requests may follow."""
        from vmbk.kernels import requests as kernels
        from vmbk.trace.table import Requests

        i64, nothing = np.zeros(0, np.int64), np.zeros(0, np.uint8)
        no_volume = np.zeros(0, np.uint32)
        self._follow(Requests(i64, nothing.view(np.int8), no_volume, i64, i64, nothing), 1)
        count, rows = len(self.volumes), int(self._state[kernels.ROWS])
        return RequestFigures(
            self.volumes,
            self._window_ns,
            self._sizes.reshape(count, kernels.OPS, kernels.SIZES, 2),
            self._figures.reshape(count + 1, kernels.FIGURES),
            self._out[: rows * kernels.ROW_FIELDS].reshape(rows, kernels.ROW_FIELDS),
        )


@dataclass(frozen=True)
class RequestFigures:
    """What one pass counted; each table is made when it is asked for.

    Parameters
    ----------
    volumes : tuple of Volume
    window_ns : int
    sizes : ndarray of int64, shape (volumes, operations, 64, 2)
        Requests and their bytes by log2 of the length; the last bin is for lengths of 0.
    figures : ndarray of int64, shape (volumes + 1, FIGURES)
    windows : ndarray of int64, shape (rows, ROW_FIELDS)
        Fields as named in `vmbk.kernels.requests`.
    has_clock : bool
        Whether the times of the requests tell anything.
    """

    volumes: tuple[Volume, ...]
    window_ns: int
    sizes: NDArray[np.int64]
    figures: NDArray[np.int64]
    windows: NDArray[np.int64]
    has_clock: bool = True

    @property
    def profile(self) -> pl.DataFrame:
        """As `profile` returns it."""
        return _profile(self)

    @property
    def request_sizes(self) -> pl.DataFrame:
        """As `request_sizes` returns it."""
        return _request_sizes(self)

    @property
    def activity(self) -> pl.DataFrame:
        """As `activity` returns it; empty where the pass did not keep its windows."""
        return _activity(self)

    def _repr_html_(self) -> str:
        return str(self.profile._repr_html_())


def measure_requests(
    trace: Trace, window: str | float = "1m", *, keep_windows: bool = True
) -> RequestFigures:
    """Measure what requests are like, in one pass over the trace.

    Parameters
    ----------
    trace : Trace
    window : str or float
        Time over which requests are counted for rates, such as ``1m``; seconds as a number.
    keep_windows : bool
        Whether to keep the figures of every window for ``activity``, which a long trace of many
        volumes has millions of.

    Returns
    -------
    RequestFigures
        The tables ``profile``, ``request_sizes`` and ``activity``.

    Raises
    ------
    InputError
        If a value is outside its bounds, or all requests come to 2**63 bytes.
    """
    checked_trace(trace)
    window_ns = parse_duration(window)
    work = RequestPass(trace.volumes, window_ns=window_ns, keep_windows=keep_windows)
    with progress("requests", len(trace), unit="requests") as advance:
        for batch in trace.batches():
            work.add(batch)
            advance(len(batch))
    return replace(work.finish(), has_clock=trace.metadata.clock != "none")


def profile(trace: Trace, window: str | float = "1m") -> pl.DataFrame:
    """What the requests of each volume are like, in one row.

    Parameters
    ----------
    trace : Trace
    window : str or float
        Time over which requests are counted for peaks.

    Returns
    -------
    polars.DataFrame
        A row per volume and one over all volumes (``volume`` null). Reads and writes without a
        byte are left out, and shares of nothing are null. The last three are null where the trace
        has no clock:

        ===================== ===== ==========================================================
        volume                u32   id of the volume, null for all together
        reads                 i64   requests
        writes                i64   requests
        flushes               i64   requests
        discards              i64   requests
        write_zeroes          i64   requests
        read_bytes            i64   bytes of their lengths
        write_bytes           i64   bytes of their lengths
        write_share           f64   writes / (reads + writes)
        write_byte_share      f64   bytes written / bytes read or written
        mean_read_bytes       f64   bytes read / reads
        mean_write_bytes      f64   bytes written / writes
        small_write_share     f64   share of writes below 8 KiB
        unaligned_share       f64   share of writes that begin or end off the 4 KiB grid
        random_share          f64   share of reads and writes that begin more than 128 KiB away
                                    from where each of the volume's 32 before them began
        random_write_share    f64   as this, of the writes
        sequential_share      f64   share of reads and writes that begin where one of the
                                    volume's 32 before them ended
        active_windows        i64   windows with a read or write
        peak_per_s            f64   reads and writes per s in the busiest window
        mean_per_s            f64   the same from the first window with any to the last
        burstiness            f64   peak / mean
        ===================== ===== ==========================================================

    Raises
    ------
    InputError
        If a value is outside its bounds, or all requests come to 2**63 bytes.
    """
    return measure_requests(trace, window, keep_windows=False).profile


def request_sizes(trace: Trace) -> pl.DataFrame:
    """How long requests are.

    Parameters
    ----------
    trace : Trace

    Returns
    -------
    polars.DataFrame
        A row per volume, operation and power of two with requests, and those over all volumes
        (``volume`` null):

        =========== ====== ===================================================================
        volume      u32    id of the volume, null for all together
        op          str    operation
        from_bytes  i64    they are at least so long and shorter than twice that; 0 for none
        requests    i64    how many
        bytes       i64    of their lengths
        share       f64    of the volume's requests of the operation
        =========== ====== ===================================================================

    Raises
    ------
    InputError
        If there are more than 65536 volumes, or all requests come to 2**63 bytes.
    """
    return measure_requests(trace, keep_windows=False).request_sizes


def activity(trace: Trace, window: str | float = "1m") -> pl.DataFrame:
    """Reads and writes over time.

    Parameters
    ----------
    trace : Trace
    window : str or float
        Time over which they are counted, such as ``1m``; seconds as a number.

    Returns
    -------
    polars.DataFrame
        A row per window and volume with a read or write of at least a byte, in order of volume and
        then of window, and those over all volumes (``volume`` null):

        =========== ====== ===================================================================
        volume      u32    id of the volume, null for all together
        window      i64    number of the window
        start_s     f64    s since the start of the trace
        reads       i64    requests
        writes      i64    requests
        read_bytes  i64    bytes of their lengths
        write_bytes i64    bytes of their lengths
        requests_per_s f64 reads and writes / length of the window; null without a clock
        =========== ====== ===================================================================

    Raises
    ------
    InputError
        If a value is outside its bounds, or all requests come to 2**63 bytes.
    """
    return measure_requests(trace, window).activity


def _ids(volumes: tuple[Volume, ...]) -> list[int | None]:
    return [v.id for v in volumes] + [None]


def _profile(result: RequestFigures) -> pl.DataFrame:
    import polars as pl

    from vmbk.kernels import requests as kernels

    sizes = np.concatenate([result.sizes, result.sizes.sum(axis=0, keepdims=True)])
    figures = result.figures.copy()
    figures[-1, : kernels.FIRST] = figures[:-1, : kernels.FIRST].sum(axis=0)
    count, total = sizes[..., 0].sum(axis=2), sizes[..., 1].sum(axis=2)
    count[:, : Op.WRITE + 1] -= sizes[:, : Op.WRITE + 1, -1, 0]
    small = sizes[:, Op.WRITE, : SMALL.bit_length() - 1, 0].sum(axis=1)
    requests = count[:, Op.READ] + count[:, Op.WRITE]
    window_s = result.window_ns / 1e9
    spans = figures[:, kernels.LAST] - figures[:, kernels.FIRST] + 1.0
    peak, mean = figures[:, kernels.PEAK] / window_s, requests / (spans * window_s)

    def share(part: NDArray[np.generic], whole: NDArray[np.generic]) -> pl.Series:
        """Part / whole, null where there is nothing to have a part of."""
        some = whole != 0
        ratio = np.divide(part, whole, out=np.full(len(some), np.nan), where=some)
        return pl.Series(ratio).fill_nan(None)

    reads, writes = count[:, Op.READ], count[:, Op.WRITE]
    read_bytes, write_bytes = total[:, Op.READ], total[:, Op.WRITE]
    return pl.DataFrame(
        {
            "volume": pl.Series(_ids(result.volumes), dtype=pl.UInt32),
            "reads": reads,
            "writes": writes,
            "flushes": count[:, Op.FLUSH],
            "discards": count[:, Op.DISCARD],
            "write_zeroes": count[:, Op.WRITE_ZEROES],
            "read_bytes": read_bytes,
            "write_bytes": write_bytes,
            "write_share": share(writes, requests),
            "write_byte_share": share(write_bytes, read_bytes + write_bytes),
            "mean_read_bytes": share(read_bytes, reads),
            "mean_write_bytes": share(write_bytes, writes),
            "small_write_share": share(small, writes),
            "unaligned_share": share(figures[:, kernels.UNALIGNED], writes),
            "random_share": share(figures[:, kernels.RANDOM], requests),
            "random_write_share": share(figures[:, kernels.RANDOM_WRITES], writes),
            "sequential_share": share(figures[:, kernels.SEQUENTIAL], requests),
            "active_windows": figures[:, kernels.WINDOWS],
            "peak_per_s": peak,
            "mean_per_s": mean,
            "burstiness": share(peak, mean),
        }
    ).with_columns(*([] if result.has_clock else [_unknown(name) for name in _RATES]))


def _unknown(name: str) -> pl.Expr:
    import polars as pl

    return pl.lit(None, pl.Float64).alias(name)


def _request_sizes(result: RequestFigures) -> pl.DataFrame:
    import polars as pl

    sizes = np.concatenate([result.sizes, result.sizes.sum(axis=0, keepdims=True)])
    # The bin of requests without a byte comes first, as the shortest.
    sizes = np.roll(sizes, 1, axis=2)
    from_bytes = np.concatenate([[0], 1 << np.arange(sizes.shape[2] - 1, dtype=np.int64)])
    ids = _ids(result.volumes)
    row, op, bin = np.nonzero(sizes[..., 0])
    return pl.DataFrame(
        {
            "volume": pl.Series([ids[i] for i in row.tolist()], dtype=pl.UInt32),
            "op": pl.Series([OP_NAMES[code] for code in op.tolist()], dtype=pl.String),
            "from_bytes": from_bytes[bin],
            "requests": sizes[row, op, bin, 0],
            "bytes": sizes[row, op, bin, 1],
        }
    ).with_columns(
        (pl.col("requests") / pl.col("requests").sum()).over("volume", "op").alias("share")
    )


def _activity(result: RequestFigures) -> pl.DataFrame:
    import polars as pl

    names = ("window", "volume", "reads", "writes", "read_bytes", "write_bytes")
    rows = pl.DataFrame(result.windows, schema=dict.fromkeys(names, pl.Int64))
    together = rows.drop("volume").group_by("window").sum().sort("window")
    nothing = together.select(pl.lit(None, pl.UInt32).alias("volume"), pl.all())
    ids = pl.Series([v.id for v in result.volumes], dtype=pl.UInt32)
    named = rows.sort("volume", "window").select(
        ids.gather(rows.sort("volume", "window")["volume"]).alias("volume"), pl.exclude("volume")
    )
    window_s = result.window_ns / 1e9
    return pl.concat([named, nothing]).select(
        "volume",
        "window",
        (pl.col("window") * window_s).alias("start_s"),
        "reads",
        "writes",
        "read_bytes",
        "write_bytes",
        _unknown("requests_per_s")
        if not result.has_clock
        else ((pl.col("reads") + pl.col("writes")) / window_s).alias("requests_per_s"),
    )
