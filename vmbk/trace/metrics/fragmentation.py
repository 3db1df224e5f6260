"""Fragmentation: everything about how finely what changed is spread, as one result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vmbk.display import key_values
from vmbk.trace.metrics.windows import WHOLE, measure
from vmbk.trace.table import checked_trace
from vmbk.units import format_interval, format_size, parse_duration, parse_size

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace.table import Trace

_FINEST: Final = 512  # bytes; amplification is shown from here to 4 MiB
_SHOWN: Final = (65536, 1 << 20, 2 << 20)  # bytes; amplification that a notebook shows


@dataclass(frozen=True)
class Fragmentation:
    """How what changed is spread over its volumes.

    Parameters
    ----------
    block_size : int
        Bytes; extents, run lengths and dispersion are counted in these blocks.
    window_s : float or None
        s between two incrementals, None for one over the whole trace.
    granularity : polars.DataFrame
        As `vmbk.trace.metrics.windows.granularity`, from 512 B.
    run_lengths : polars.DataFrame
        As `vmbk.trace.metrics.windows.run_lengths`.
    dispersion : polars.DataFrame
        As `vmbk.trace.metrics.windows.dispersion`.
    """

    block_size: int
    window_s: float | None
    granularity: pl.DataFrame
    run_lengths: pl.DataFrame
    dispersion: pl.DataFrame

    def amplification(self, volume: int | None = None) -> dict[int, float | None]:
        """Changed bytes by block size, over those at 4 KiB; None where nothing changed."""
        found = self.granularity.filter(_of(volume))
        return dict(found.select("block_size", "amplification").iter_rows())

    def indices(self, volume: int | None = None) -> dict[str, float | int | None]:
        """The columns of `dispersion` over all windows.

        Parameters
        ----------
        volume : int, optional
            Of one volume; by default of all together.

        Returns
        -------
        dict
            ``unique_bytes``, ``extents`` and ``regions`` are sums over the windows, and the ratios
            are ratios of these sums: ``fragmentation`` extents a changed block, ``region_fill``
            the changed bytes of those in regions with a change, and so on. ``span_bytes`` and
            ``dispersion_index`` are means over the windows, weighted by the bytes that changed; of
            all volumes together the span of a window is the sum of theirs. Where nothing changed
            they are None. What each means for a backup is told at
            `vmbk.trace.metrics.windows.dispersion`.
        """
        import polars as pl

        rows = self.dispersion.filter(_of(volume), pl.col("unique_bytes") > 0)
        bytes_, extents = int(rows["unique_bytes"].sum()), int(rows["extents"].sum())
        found: dict[str, float | int | None] = {
            "unique_bytes": bytes_, "extents": extents, "regions": int(rows["regions"].sum()),
        }  # fmt: skip
        if not bytes_:
            names = ("mean_extent_bytes", "extents_per_gib", "fragmentation", "region_fill",
                     "span_bytes", "dispersion_index")  # fmt: skip
            return found | dict.fromkeys(names)
        weight = rows["unique_bytes"].cast(pl.Float64)
        # What the regions hold follows from the share of them that changed.
        held = float((weight / rows["region_fill"]).sum())
        return found | {
            "mean_extent_bytes": bytes_ / extents,
            "extents_per_gib": extents / (bytes_ / (1 << 30)),
            "fragmentation": extents / (bytes_ / self.block_size),
            "region_fill": bytes_ / held,
            "span_bytes": float((weight * rows["span_bytes"]).sum()) / bytes_,
            "dispersion_index": float((weight * rows["dispersion_index"]).sum()) / bytes_,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; amplification by block size in bytes."""
        import polars as pl

        found = self.indices()
        several = self.granularity["volume"].n_unique() > 2
        volumes = self.granularity["volume"].unique().drop_nulls().sort().to_list()
        together = pl.col("volume").is_null()
        more = {
            "volumes": [
                {
                    "volume": id,
                    "dispersion": self.indices(id),
                    "amplification": {str(k): v for k, v in self.amplification(id).items()},
                }
                for id in volumes
            ]
        }
        return {
            "block_size": self.block_size,
            "window_s": self.window_s,
            "extents": found["extents"],
            "changed_bytes": found["unique_bytes"],
            "mean_extent_bytes": found["mean_extent_bytes"],
            "amplification": {str(k): v for k, v in self.amplification().items()},
            "dispersion": found,
            "run_lengths": self.run_lengths.filter(together).drop("volume").to_dicts(),
        } | (more if several else {})

    def _repr_html_(self) -> str:
        found = self.indices()
        over = "the whole trace" if self.window_s is None else format_interval(self.window_s)
        rows: dict[str, object] = {
            "extents": f"{found['extents']:,} of {format_size(self.block_size)} blocks",
            "changed": format_size(found["unique_bytes"] or 0),
        }
        if found["unique_bytes"]:
            factors = self.amplification()
            rows |= {
                "mean extent": format_size(found["mean_extent_bytes"] or 0),
                "extents per GiB": f"{found['extents_per_gib']:,.0f}",
                "region fill": f"{found['region_fill']:.1%}",
                "dispersion index": f"{found['dispersion_index']:.1f}",
            } | {f"amplification at {format_size(b)}": f"{factors[b]:.2f}" for b in _SHOWN}
        return key_values(f"Fragmentation per {over}", rows)


def fragmentation(
    trace: Trace,
    block_size: str | int = "64KiB",
    window: str | float = WHOLE,
    *,
    gap: str | int = 0,
    discards: bool = False,
) -> Fragmentation:
    """Measure how what changed is spread: extents, granularity, run lengths, dispersion.

    Parameters
    ----------
    trace : Trace
    block_size : str or int
        Bytes of the blocks in which changes are found: a power of two from 512 B to 4 MiB.
    window : str or float
        Time between two incrementals, such as ``1h``, or ``whole``; seconds as a number.
    gap : str or int
        Bytes; changed runs with no more between them count as one extent.
    discards : bool
        Whether discards and write_zeroes change blocks as well as writes.

    Returns
    -------
    Fragmentation
        From two passes over the trace: one in blocks of 512 B for the granularities, one in
        ``block_size``.

    Raises
    ------
    InputError
        If a value is outside its bounds, or more is written than `measure` follows in blocks of
        512 B: 8 TiB where it is written end to end.
    """
    checked_trace(trace)
    size = parse_size(block_size)
    spread = measure(trace, window, size, gap=gap, discards=discards)
    fine = measure(trace, window, _FINEST, discards=discards)
    return Fragmentation(
        size,
        None if window == WHOLE else parse_duration(window) / 1e9,
        fine.granularity,
        spread.run_lengths,
        spread.dispersion,
    )


def _of(volume: int | None) -> Any:
    import polars as pl

    return pl.col("volume").is_null() if volume is None else pl.col("volume") == volume
