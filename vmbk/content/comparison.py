"""Fixed against content-defined chunks: what several states of a disk take to store."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vmbk.content.chunking import LEVEL, Chunking, Chunks, cut_chunks
from vmbk.disk.base import Bytes
from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.units import KIB, parse_size

if TYPE_CHECKING:
    import polars as pl

    from vmbk.trace.table import Trace

SIZES: Final = tuple((4 * KIB) << k for k in range(0, 11, 2))
"""4 KiB to 4 MiB, each four times the one before."""

CHUNK_COST: Final = 144
"""Bytes that vmbk's vault keeps beside a different chunk: its header of 64, once more in the footer
of its pack, and the tag of 16 that authenticates it."""

REFERENCE_COST: Final = 40
"""Bytes that every chunk of every state takes in a manifest: an id of 32 bytes and its place."""


def compare_chunking(
    states: Sequence[Any],
    sizes: Sequence[int | str] = SIZES,
    *,
    level: int = LEVEL,
    chunk_cost: int = CHUNK_COST,
    reference_cost: int = REFERENCE_COST,
) -> pl.DataFrame:
    """Store several states of a disk by fixed chunks and by FastCDC, at the same sizes.

    Parameters
    ----------
    states : sequence of paths or buffers
        The disk at one time after the other.
    sizes : sequence of int or str
        That chunks are to have, 256 bytes to 4 MiB.
    level : int
        Of FastCDC's normalised chunking, 0 to 3.
    chunk_cost, reference_cost : int
        Bytes that a different chunk costs beside its content, and a chunk of a state, be it stored
        already or not.

    Returns
    -------
    polars.DataFrame
        A row for each method and size:

        ============== ====== ================================================================
        method         str    ``fixed`` or ``fastcdc``
        size           i64    bytes that chunks were to have
        chunks         i64    of all states, but for those of zeros
        unique_chunks  i64    different ones
        mean_bytes     f64    bytes that a different one has in the mean
        bytes          i64    of all states
        unique_bytes   i64    of the different chunks: what is stored
        added_bytes    i64    of those that the first state did not have
        dedup_ratio    f64    bytes over unique_bytes
        overhead_bytes i64    what chunks and references cost beside their content
        stored_bytes   i64    unique_bytes and overhead_bytes
        ============== ====== ================================================================

        Chunks of zeros are holes, as in any backup of disks: nothing is stored for them and nothing
        mentions them.

    Raises
    ------
    InputError
        If there is no state, a size is not possible, or a state cannot be read.
    StorageError
        If the operating system refuses to read.
    """
    import polars as pl

    if not states:
        raise InputError("no states to compare")
    if min(chunk_cost, reference_cost) < 0:
        raise InputError(f"costs of {chunk_cost} and {reference_cost} bytes: none is negative")
    ways = [
        way
        for size in dict.fromkeys(parse_size(size) for size in sizes)
        for way in (Chunking.of_size(size), Chunking.fastcdc(size, level=level))
    ]
    rows = []
    with progress("chunk", len(ways) * len(states), unit="states") as advance:
        for way in ways:
            cut = []
            for state in states:
                cut.append(cut_chunks(state, way))
                advance(1)
            rows.append(_row(cut, chunk_cost, reference_cost))
    return pl.DataFrame(rows).sort("method", "size")


def _row(cut: list[Chunks], chunk_cost: int, reference_cost: int) -> dict[str, Any]:
    way = cut[0].chunking
    lengths = np.concatenate([c.lengths for c in cut])
    digests = np.concatenate([c.digests for c in cut])
    zero = np.concatenate([c.zero for c in cut])
    everything = Chunks(way, lengths, digests, zero)
    unique_chunks, unique_bytes = everything.unique()
    chunks, size = int((~zero).sum()), everything.size
    overhead = unique_chunks * chunk_cost + chunks * reference_cost
    return {
        "method": "fixed" if way.fixed else "fastcdc",
        "size": way.target,
        "chunks": chunks,
        "unique_chunks": unique_chunks,
        "mean_bytes": unique_bytes / max(unique_chunks, 1),
        "bytes": size,
        "unique_bytes": unique_bytes,
        "added_bytes": unique_bytes - cut[0].unique()[1],
        "dedup_ratio": size / max(unique_bytes, 1),
        "overhead_bytes": overhead,
        "stored_bytes": unique_bytes + overhead,
    }


def replayed_states(
    trace: Trace, count: int = 3, *, volume: int | None = None, seed: int = 0
) -> Iterator[Bytes]:
    """A volume as it is after equal parts of a trace's requests.

    Parameters
    ----------
    trace : Trace
    count : int
        States, at least 1; the last one is the end of the trace.
    volume : int, optional
        Its id; by default the first one.
    seed : int
        Of synthetic content, where the trace carries none.

    Yields
    ------
    ndarray of uint8
        All bytes of the volume.

    Raises
    ------
    InputError
        If there is no such volume or the count is not positive.
    VmbkError
        As `vmbk.disk.replay.replay`.
    """
    import tempfile
    from contextlib import ExitStack

    from vmbk.disk.raw import RawDisk
    from vmbk.disk.replay import replay

    volumes = {v.id: v for v in trace.volumes if v.size}
    wanted = next(iter(volumes), None) if volume is None else volume
    if wanted is None or wanted not in volumes:
        raise InputError(
            f"there is no volume {volume}", hint="the trace has " + ", ".join(map(str, volumes))
        )
    if count < 1:
        raise InputError(f"{count} states: at least one is possible")
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="vmbk-states-"))
        disks = {
            v.id: stack.enter_context(RawDisk.create(f"{folder}/{v.id}.img", v.size))
            for v in volumes.values()
        }
        done = 0
        for i in range(count):
            stop = len(trace) * (i + 1) // count
            replay(trace, disks, start=done, stop=stop, seed=seed)
            done = stop
            state = np.empty(disks[wanted].size, np.uint8)
            disks[wanted].read_into(0, state)
            yield state
