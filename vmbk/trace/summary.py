"""What a trace holds, counted: the figures of ``vmbk trace info``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.trace.schema import Op, Volume
from vmbk.units import format_duration, format_size

if TYPE_CHECKING:
    from vmbk.trace.table import Requests, Trace

BLOCK: Final = 4096
"""Bytes; the sub-block, in which uniqueness is counted."""

_BITMAP_LIMIT: Final = 1 << 28
"""Bytes of bitmap, 8 TiB of volume: above it unique blocks are counted by sorting instead, so that
a trace that declares an enormous volume costs memory by its requests and not by its claim."""


@dataclass(frozen=True)
class TraceSummary:
    """Counts over a trace.

    Parameters
    ----------
    requests, reads, writes, flushes, discards, write_zeroes, marks : int
        Rows, by operation.
    read_bytes, write_bytes : int
        Sums of the lengths of reads and of writes (discards and write_zeroes not included).
    unique_write_blocks : int
        4 KiB blocks touched by writes, each counted once per volume.
    duration_s : float
        Time of the last request, 0 where the trace has no clock.
    volumes : tuple of Volume
    digest : str
        `Trace.digest`.
    clock : str
        What the times are worth.
    """

    requests: int
    reads: int
    writes: int
    flushes: int
    discards: int
    write_zeroes: int
    marks: int
    read_bytes: int
    write_bytes: int
    unique_write_blocks: int
    duration_s: float
    volumes: tuple[Volume, ...]
    digest: str
    clock: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"volumes": [asdict(v) for v in self.volumes]}

    def _repr_html_(self) -> str:
        rows = [
            ("requests", f"{self.requests:,}"),
            ("reads", f"{self.reads:,} ({format_size(self.read_bytes)})"),
            ("writes", f"{self.writes:,} ({format_size(self.write_bytes)})"),
            ("unique written", format_size(self.unique_write_blocks * BLOCK)),
            ("flushes", f"{self.flushes:,}"),
            ("discards", f"{self.discards:,}"),
            ("write_zeroes", f"{self.write_zeroes:,}"),
            ("marks", f"{self.marks:,}"),
            ("duration", format_duration(self.duration_s) if self.clock != "none" else "no clock"),
        ]
        rows += [(f"volume {v.id}", f"{v.name}, {format_size(v.size)}") for v in self.volumes[:16]]
        if len(self.volumes) > 16:
            rows.append(("", f"and {len(self.volumes) - 16} volumes more"))
        cells = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(value)}</td></tr>"
            for name, value in rows
        )
        return f"<table><caption>Trace</caption>{cells}</table>"


def summarise(trace: Trace) -> TraceSummary:
    """Count a trace, batch by batch."""
    counts = np.zeros(len(Op), np.int64)
    sums = [0] * len(Op)
    for batch in trace.batches():
        counts += np.bincount(batch.op, minlength=len(Op))
        for op in (Op.READ, Op.WRITE):
            sums[op] += _exact_sum(batch.length[batch.op == op])
    n = counts.tolist()
    return TraceSummary(
        requests=len(trace),
        reads=n[Op.READ],
        writes=n[Op.WRITE],
        flushes=n[Op.FLUSH],
        discards=n[Op.DISCARD],
        write_zeroes=n[Op.WRITE_ZEROES],
        marks=n[Op.MARK],
        read_bytes=sums[Op.READ],
        write_bytes=sums[Op.WRITE],
        unique_write_blocks=unique_blocks(trace),
        duration_s=int(trace.requests.time_ns[-1]) / 1e9 if len(trace) else 0.0,
        volumes=trace.volumes,
        digest=trace.digest,
        clock=trace.metadata.clock,
    )


def _exact_sum(values: NDArray[np.int64]) -> int:
    """Sum as a Python integer: lengths of 2**62 each would wrap around in 64 bits."""
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())


def unique_blocks(trace: Trace, *, bitmap_limit: int = _BITMAP_LIMIT) -> int:
    """4 KiB blocks touched by writes, each counted once per volume.

    Parameters
    ----------
    trace : Trace
    bitmap_limit : int
        Bytes of bitmap above which blocks are counted by sorting the writes.
    """
    blocks = [-(-v.size // BLOCK) for v in trace.volumes]
    if sum(blocks) > 8 * bitmap_limit:
        return _unique_by_sorting(trace.requests, trace.volumes)
    from vmbk.kernels.bitmap import count_set, mark_ranges

    # All volumes lie one after another in one bitmap, each starting at a block of its own.
    bitmap = np.zeros(-(-sum(blocks) // 8), np.uint8)
    first = np.cumsum([0, *blocks[:-1]], dtype=np.int64) * BLOCK
    ids = np.array([v.id for v in trace.volumes], np.uint32)
    for batch in trace.batches():
        offset, length, volume = _writes(batch)
        shift = first[np.searchsorted(ids, volume)] if len(ids) > 1 else np.int64(0)
        mark_ranges(bitmap, offset + shift, length, BLOCK)
    return int(count_set(bitmap))


def _writes(
    batch: Requests,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
    rows = (batch.op == Op.WRITE) & (batch.length > 0)
    return batch.offset[rows], batch.length[rows], batch.volume[rows]


def _unique_by_sorting(requests: Requests, volumes: tuple[Volume, ...]) -> int:
    """Size of the union of the writes' block ranges, per volume."""
    offset, length, volume = _writes(requests)
    start, end = offset // BLOCK, (offset + length - 1) // BLOCK + 1
    order = np.lexsort((start, volume))
    start, end, volume = start[order], end[order], volume[order]
    total = 0
    edges = np.concatenate([[0], np.flatnonzero(np.diff(volume)) + 1, [len(volume)]])
    for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        # A range adds what lies past everything before it.
        reach = np.maximum.accumulate(end[a:b])
        begin = np.maximum(start[a:b], np.concatenate([[0], reach[:-1]]))
        total += int(np.maximum(end[a:b] - begin, 0).sum())
    return total
