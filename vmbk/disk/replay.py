"""Replay: the writes of a trace onto disks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.disk.base import Bytes, Disk
from vmbk.disk.raw import RawDisk
from vmbk.display import key_values
from vmbk.errors import InputError, OutOfRangeError, TargetTooSmallError
from vmbk.progress import Advance
from vmbk.trace.schema import Op, Volume
from vmbk.trace.table import Payloads, Requests, Trace
from vmbk.units import KIB, MIB, format_duration, format_size

__all__ = ["CONTENT_BLOCK", "ContentMix", "ReplayResult", "replay"]

CONTENT_BLOCK: Final = 4 * KIB
"""Bytes per block of synthetic content, each with a version of its own."""

_BATCH_ROWS: Final = 8192
_BATCH_BYTES: Final = 16 * MIB  # prepared at once; a multiple of CONTENT_BLOCK
_LARGE_BLOCKS: Final = 256  # writes of more blocks are counted one by one

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ContentMix:
    """What synthetic content is made of, in percent of blocks; the rest is random.

    The defaults are a guess at a mixed server disk: what they are matters little to detection,
    which only asks whether bytes differ, and much to compression.

    Attributes
    ----------
    zero, compressible, duplicate : int
        Together at most 100.
    """

    zero: int = 5
    compressible: int = 50
    duplicate: int = 10

    def __post_init__(self) -> None:
        shares = (self.zero, self.compressible, self.duplicate)
        if min(shares) < 0 or sum(shares) > 100:
            raise InputError(f"shares of content must be 0 to 100 % in all, not {shares}")

    @classmethod
    def of(cls, trace: Trace) -> ContentMix:
        """The shares that a synthesised trace declares, the defaults for any other."""
        declared = trace.provenance.get("content")
        names = [f.name for f in fields(cls)]
        if isinstance(declared, dict) and all(type(declared.get(n)) is int for n in names):
            return cls(**{name: declared[name] for name in names})
        return cls()


@dataclass(frozen=True)
class ReplayResult:
    """What a replay did.

    Attributes
    ----------
    requests : int
        Rows of the trace that were gone through.
    writes, write_bytes : int
        Writes and their bytes.
    zeroed_bytes : int
        Bytes covered by discard and write_zeroes.
    flushes : int
        Flushes in the trace; they are counted, not carried out.
    seconds : float
        Wall time.
    next : int
        The row to go on from.
    """

    requests: int
    writes: int
    write_bytes: int
    zeroed_bytes: int
    flushes: int
    seconds: float
    next: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        rows = {
            "requests": f"{self.requests:,}",
            "writes": f"{self.writes:,} ({format_size(self.write_bytes)})",
            "zeroed": format_size(self.zeroed_bytes),
            "flushes": f"{self.flushes:,}",
            "time": format_duration(self.seconds),
            "next row": f"{self.next:,}",
        }
        return key_values("Replay", rows)


def replay(
    trace: Trace,
    disks: Disk | Mapping[int, Disk],
    *,
    start: int = 0,
    stop: int | None = None,
    seed: int = 0,
    content: ContentMix | None = None,
    on_progress: Advance | None = None,
) -> ReplayResult:
    """Apply the writes of a trace, in order.

    Writes are written, discard and write_zeroes make zeros, everything else is only counted. What
    the disks hold already stays where nothing is written, so a replay can be stopped and resumed.
    Nothing is flushed at the end.

    Parameters
    ----------
    trace : Trace
        Where a write's bytes were not captured, they are made up: each block of 4 KiB that it
        touches gets content that depends on the seed, the volume, the block, and on how many
        writes of the trace touched the block before.
    disks : Disk, or mapping of volume id to Disk
        Open for writing; at least as large as the volumes. A single disk will do for a trace of a
        single volume.
    start, stop : int
        Rows ``start`` up to, not including, ``stop``; to the end by default.
    seed : int
        Of synthetic content; 0 to 2^63 - 1.
    content : ContentMix, optional
        Of synthetic content; by default what the trace declares, if it was synthesised.
    on_progress : callable, optional
        Called with the number of requests done since the last call.

    Returns
    -------
    ReplayResult

    Raises
    ------
    InputError
        If the rows, the seed or the disks do not fit the trace. Nothing is written then.
    TargetTooSmallError
        If a disk is smaller than its volume. Nothing is written then.
    OutOfRangeError
        If a request reaches outside its volume. Nothing is written then.
    StorageError
        If a disk refuses a write; those before it were done.
    """
    began = time.perf_counter()
    stop = len(trace) if stop is None else stop
    if not 0 <= start <= stop <= len(trace):
        raise InputError(
            f"rows {start} to {stop} of a trace of {len(trace)} requests",
            hint="0 <= start <= stop <= number of requests",
        )
    if not 0 <= seed < 1 << 63:
        raise InputError(f"the seed must be 0 to 2^63 - 1, not {seed}")
    targets = _targets(trace, disks)
    requests = trace.requests[start:stop]
    _check_ranges(trace, requests, start)

    written = requests.op == Op.WRITE
    zeroed = (requests.op == Op.DISCARD) | (requests.op == Op.WRITE_ZEROES)
    rows = np.flatnonzero((written | zeroed) & (requests.length > 0)) + start
    source = _Source(trace, rows, start, seed, content or ContentMix.of(trace))
    done = start
    for begin in range(0, len(rows), _BATCH_ROWS):
        batch = rows[begin : begin + _BATCH_ROWS]
        for part in _parts(trace.requests, batch):
            _apply(targets[part.volume], part, source)
        if on_progress is not None:
            on_progress(int(batch[-1]) + 1 - done)
        done = int(batch[-1]) + 1
    if on_progress is not None and stop > done:
        on_progress(stop - done)
    return ReplayResult(
        requests=len(requests),
        writes=int(np.count_nonzero(written)),
        write_bytes=int(requests.length[written].sum()),
        zeroed_bytes=int(requests.length[zeroed].sum()),
        flushes=int(np.count_nonzero(requests.op == Op.FLUSH)),
        seconds=time.perf_counter() - began,
        next=stop,
    )


def _targets(trace: Trace, disks: Disk | Mapping[int, Disk]) -> dict[int, Disk]:
    """A writable disk, large enough, for every volume."""
    volumes = [v for v in trace.volumes if v.size]
    if not isinstance(disks, Mapping):
        if len(trace.volumes) != 1:
            raise InputError(
                f"one disk for a trace of {len(trace.volumes)} volumes",
                hint="give a mapping of volume ids to disks: " + _listed(trace.volumes),
            )
        disks = {trace.volumes[0].id: disks}
    missing = [v for v in volumes if v.id not in disks]
    if missing:
        raise InputError(
            f"there is no disk for volume {missing[0].id}",
            hint="the trace has " + _listed(trace.volumes),
        )
    for volume in volumes:
        disk = disks[volume.id]
        if disk.size < volume.size:
            raise TargetTooSmallError(
                f"disk {disk.name!r} has {disk.size} bytes ({format_size(disk.size)}), volume "
                f"{volume.id} needs {volume.size} ({format_size(volume.size)})",
                hint="make the disk at least as large as the volume",
            )
        if isinstance(disk, RawDisk) and disk.mode != "rw":
            raise InputError(
                f"disk {disk.name!r} is open for reading only", hint="open it with mode 'rw'"
            )
    return {v.id: disks[v.id] for v in volumes}


def _listed(volumes: tuple[Volume, ...]) -> str:
    return ", ".join(f"volume {v.id} ({v.name}, {format_size(v.size)})" for v in volumes[:10])


def _check_ranges(trace: Trace, requests: Requests, first: int) -> None:
    """A trace was checked when it was made; this keeps a broken one from touching a disk."""
    ids = np.array([v.id for v in trace.volumes], np.int64)
    sizes = np.array([v.size for v in trace.volumes], np.int64)
    if not len(requests):
        return
    place = np.minimum(np.searchsorted(ids, requests.volume), len(ids) - 1)
    size = sizes[place]
    outside = (ids[place] != requests.volume) | (requests.offset < 0) | (requests.length < 0)
    outside |= requests.length > size - requests.offset
    if outside.any():
        at = int(np.argmax(outside))
        raise OutOfRangeError(
            f"request {first + at} covers {requests.length[at]} bytes at offset "
            f"{requests.offset[at]}, outside volume {requests.volume[at]} of {size[at]} bytes"
        )


@dataclass(frozen=True)
class _Part:
    """Pieces of requests on one volume: at most `_BATCH_BYTES` are written, in this order."""

    volume: int
    row: Ints
    is_write: NDArray[np.bool_]
    offset: Ints
    length: Ints


def _parts(requests: Requests, rows: Ints) -> Iterator[_Part]:
    """Cut rows into parts.

    Writes are cut at multiples of `_BATCH_BYTES` on the volume, so that the largest request fits in
    memory and no block of content lies in two pieces of one write.
    """
    offset, length = requests.offset[rows], requests.length[rows]
    is_write = requests.op[rows] == Op.WRITE
    first = offset // _BATCH_BYTES
    count = np.where(is_write, (offset + length - 1) // _BATCH_BYTES - first + 1, 1)
    of = np.repeat(np.arange(len(rows)), count)
    within = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
    row, is_write = rows[of], is_write[of]
    begin = np.where(within > 0, (first[of] + within) * _BATCH_BYTES, offset[of])
    end = offset[of] + length[of]
    end = np.where(is_write, np.minimum(end, (first[of] + within + 1) * _BATCH_BYTES), end)
    volume = requests.volume[row]
    # A new part with every volume, and where the running sum passes a multiple of half the limit:
    # one piece more then still fits.
    half = np.cumsum(np.where(is_write, end - begin, 0)) // (_BATCH_BYTES // 2)
    cuts = np.flatnonzero((volume[1:] != volume[:-1]) | (half[1:] != half[:-1])) + 1
    edges = [0, *cuts.tolist(), len(row)]
    for low, high in pairwise(edges):
        at = slice(low, high)
        yield _Part(
            int(volume[low]), row[at], is_write[at], begin[at], end[at] - begin[at]
        )  # fmt: skip


def _apply(disk: Disk, part: _Part, source: _Source) -> None:
    data, starts = source.data(part)
    if isinstance(disk, RawDisk):
        disk.write_batch(part.offset, part.length, data, starts)
        return
    # Other kinds of disk have no call for many.
    for offset, length, at in zip(
        part.offset.tolist(), part.length.tolist(), starts.tolist(), strict=True
    ):
        if at < 0:
            disk.zero(offset, length)
        else:
            disk.write(offset, data[at : at + length])


class _Source:
    """Gives the bytes of writes: those that were captured, or synthetic ones."""

    def __init__(self, trace: Trace, rows: Ints, start: int, seed: int, mix: ContentMix) -> None:
        self._requests = trace.requests
        self._payloads: Payloads | None = trace.payloads
        self._seed = seed
        self._mix = mix
        self._buffer = np.empty(0, np.uint8)
        self._versions: dict[int, NDArray[np.int32]] = {}
        writes = rows[self._requests.op[rows] == Op.WRITE]
        captured = self._payloads is not None and bool(self._payloads.valid[writes].all())
        if len(writes) and not captured:
            before = np.flatnonzero(self._requests.op[:start] == Op.WRITE)
            for volume in trace.volumes:
                # Pages of zeros that nobody touches take no memory.
                self._versions[volume.id] = np.zeros(-(-volume.size // CONTENT_BLOCK), np.int32)
                self._count(volume.id, before[self._requests.volume[before] == volume.id])

    def _count(self, volume: int, rows: Ints) -> None:
        """Count the versions that writes before the start made."""
        versions = self._versions[volume]
        first, count = _blocks(self._requests.offset[rows], self._requests.length[rows])
        large = count > _LARGE_BLOCKS
        for block, blocks in zip(first[large].tolist(), count[large].tolist(), strict=True):
            versions[block : block + blocks] += 1
        first, count = first[~large], count[~large]
        for begin in range(0, len(first), _BATCH_ROWS):
            some = count[begin : begin + _BATCH_ROWS]
            within = np.arange(some.sum()) - np.repeat(np.cumsum(some) - some, some)
            np.add.at(versions, np.repeat(first[begin : begin + _BATCH_ROWS], some) + within, 1)

    def data(self, part: _Part) -> tuple[Bytes, Ints]:
        """Bytes to write, and where those of each piece begin; -1 for zeros."""
        payloads = self._payloads
        if not self._versions:
            if payloads is None:  # nothing but zeros in the whole range
                return self._buffer, np.full(len(part.row), -1, np.int64)
            begin = payloads.offsets[part.row] + part.offset - self._requests.offset[part.row]
            return payloads.data, np.where(part.is_write, begin, -1)
        lengths = np.where(part.is_write, part.length, 0)
        ends = np.cumsum(lengths)
        if int(ends[-1]) > len(self._buffer):
            self._buffer = np.empty(int(ends[-1]), np.uint8)
        starts = np.where(part.is_write, ends - lengths, -1)
        self._synthesise(part, starts)
        return self._buffer, starts

    def _synthesise(self, part: _Part, starts: Ints) -> None:
        """Fill the buffer for the writes of a part, and count them as versions."""
        from vmbk.kernels.content import fill_content

        mix, volume, versions = self._mix, part.volume, self._versions[part.volume]
        rows, offsets = part.row[part.is_write], part.offset[part.is_write]
        lengths = part.length[part.is_write]
        if not len(rows):
            return
        first, count = _blocks(offsets, lengths)
        scratch = np.empty(int(count.max()) * CONTENT_BLOCK, np.uint8)
        captured = np.full(len(rows), -1, np.int64)
        if self._payloads is not None:
            begin = self._payloads.offsets[rows] + offsets - self._requests.offset[rows]
            captured = np.where(self._payloads.valid[rows], begin, -1)
        # A loop over writes, because a write must see the versions that those before it made; each
        # costs a fill and a system call, which take longer than the loop.
        for block, blocks, skip, start, length, known in zip(
            first.tolist(), count.tolist(), (offsets - first * CONTENT_BLOCK).tolist(),
            starts[part.is_write].tolist(), lengths.tolist(), captured.tolist(), strict=True,
        ):  # fmt: skip
            touched = versions[block : block + blocks]
            target = self._buffer[start : start + length]
            if known >= 0 and self._payloads is not None:
                target[:] = self._payloads.data[known : known + length]
            else:
                # Blocks are made from their beginnings: in place, unless the write begins within.
                made = target if not skip else scratch[: skip + length]
                fill_content(
                    made, self._seed, volume, block, touched.astype(np.int64), CONTENT_BLOCK,
                    mix.zero, mix.compressible, mix.duplicate,
                )  # fmt: skip
                if skip:
                    target[:] = made[skip:]
            touched += 1


def _blocks(offset: Ints, length: Ints) -> tuple[Ints, Ints]:
    """First block of content of each write, and how many it touches."""
    first = offset // CONTENT_BLOCK
    return first, np.where(length > 0, -(-(offset + length) // CONTENT_BLOCK) - first, 0)
