"""How crash states are built: by what changes from one to the next.

A disk is followed by its sectors of 512 bytes: who wrote each last. Going to another state, forward
or back, touches the sectors of the requests between the two and of what each has beside its prefix,
and nothing else. One sparse image per volume follows. A digest of the whole state follows as well,
without an image, so that states that are equal are known before anything is written.

A discard makes zeros, like write_zeroes. The digest of a state is the sum, modulo 2^64, over all
sectors that are not all zero, of SplitMix64's output function of (XXH3-64 of the sector's bytes +
(its number + 1) * 0x9E3779B97F4A7C15). Sectors are numbered from 0, through all volumes in order of
id.
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.trace.schema import Op

if TYPE_CHECKING:
    from vmbk.consistency.crash import CrashPoint, CrashState
    from vmbk.disk.raw import RawDisk
    from vmbk.trace.table import Trace

Ints = NDArray[np.int64]

SECTOR: Final = 512
"""Bytes that a disk writes whole or not at all."""

_MOST_CELLS: Final = 1 << 25  # sectors of all requests: 16 GiB, for which some 600 MB are needed


def changing_rows(trace: Trace) -> Ints:
    """Rows of the requests that change bytes: writes, discards and write_zeroes of some length."""
    requests = trace.requests
    changing = (requests.op == Op.WRITE) | (requests.op == Op.DISCARD)
    changing |= requests.op == Op.WRITE_ZEROES
    return np.flatnonzero(changing & (requests.length > 0))


def check_captured(trace: Trace) -> None:
    """See that the bytes of all writes were captured.

    Raises
    ------
    InputError
        If they were not.
    """
    payloads, requests = trace.payloads, trace.requests
    if payloads is None or not trace.has_payload:
        raise InputError(
            "the trace has no captured bytes, so there is no file system to judge",
            hint="use a capture: `vmbk trace capture`, or one of those that come with vmbk",
        )
    lacking = (requests.op == Op.WRITE) & (requests.length > 0) & ~payloads.valid
    if lacking.any():
        raise InputError(
            f"write {int(np.argmax(lacking))} of the trace has no captured bytes",
            hint="crash states need the bytes of every write",
        )


def check_sectors(trace: Trace) -> None:
    """See that all that is written is whole sectors.

    Raises
    ------
    InputError
        If a request begins or ends within a sector.
    """
    rows = changing_rows(trace)
    requests = trace.requests
    broken = (requests.offset[rows] | requests.length[rows]) % SECTOR != 0
    if broken.any():
        row = int(rows[np.argmax(broken)])
        raise InputError(
            f"request {row} covers {requests.length[row]} bytes at offset {requests.offset[row]}: "
            f"it is not made of sectors of {SECTOR} bytes",
            hint="crash states are built of sectors, as disks write them",
        )


@dataclass(frozen=True, eq=False)
class SectorHistory:
    """What each request of a trace left in which sectors; see `vmbk.kernels.crash` for the words.

    Only sectors that are ever written are counted, so that memory follows what was written and
    not how large the volumes are.

    Parameters
    ----------
    changes : ndarray of int64, shape (n,)
        Rows that change bytes, ascending.
    change_pieces, change_counts : ndarray of int64, shape (n,)
        First piece of each of them, and how many it has.
    rows, begins, sectors, sources : ndarray of int64, shape (p,)
        Of each piece, by volume and then by row: its request, its first sector within that, its
        first sector of those that are written, and where its bytes begin in the payloads (-1:
        zeros).
    cells : ndarray of int64, shape (p + 1,)
        First cell of each piece.
    bounds : ndarray of int64, shape (volumes + 1,)
        First piece of each volume.
    places : ndarray of int64, shape (sectors,)
        The number of each sector on the volumes, one behind the other.
    bases : ndarray of int64, shape (volumes + 1,)
        The number of the first sector of each volume.
    former : ndarray of int32, shape (cells,)
    contents : ndarray of uint64, shape (cells + 1,)
        As `vmbk.kernels.crash.follow_states` takes them.
    data : ndarray of uint8
        The payloads.
    lengths : ndarray of int64, shape (n,)
        Bytes of each request of ``changes``.
    ids : tuple of int
        Ids of the volumes, in order.
    """

    changes: Ints
    change_pieces: Ints
    change_counts: Ints
    rows: Ints
    begins: Ints
    sectors: Ints
    sources: Ints
    cells: Ints
    bounds: Ints
    places: Ints
    bases: Ints
    former: NDArray[np.int32]
    contents: NDArray[np.uint64]
    data: NDArray[np.uint8]
    lengths: Ints
    ids: tuple[int, ...]

    @classmethod
    def of(cls, trace: Trace) -> SectorHistory:
        """The history of a trace; made once for each.

        Raises
        ------
        InputError
            If the trace lacks captured bytes, is not made of sectors, or is too large.
        """
        known = _HISTORIES.get(trace)
        if known is None:
            known = _HISTORIES[trace] = cls._of(trace)
        return known

    @classmethod
    def _of(cls, trace: Trace) -> SectorHistory:
        from vmbk.kernels.crash import former_owners, sector_digests

        check_captured(trace)
        check_sectors(trace)
        payloads = trace.payloads
        assert payloads is not None
        changes, requests = changing_rows(trace), trace.requests
        is_write = requests.op[changes] == Op.WRITE
        lengths = requests.length[changes]
        _check_room(int(lengths[is_write].sum(dtype=np.float64)) // SECTOR)
        ids = np.array([v.id for v in trace.volumes], np.int64)
        sizes = [-(-v.size // SECTOR) for v in trace.volumes]
        if sum(sizes) >= 1 << 62:
            raise InputError(f"the volumes of the trace have {sum(sizes)} sectors, too many")
        bases = np.concatenate(([0], np.cumsum(np.array(sizes, np.int64)))).astype(np.int64)
        volume = np.searchsorted(ids, requests.volume[changes])
        # By volume and then by row, so that a prefix of a volume is a prefix of its pieces.
        order = np.argsort(volume, kind="stable")
        first = (bases[volume] + requests.offset[changes] // SECTOR)[order]
        stop = first + lengths[order] // SECTOR
        written = is_write[order]
        starts, stops = _union(first[written], stop[written])
        numbers = np.concatenate(([0], np.cumsum(stops - starts))).astype(np.int64)
        places = np.arange(numbers[-1]) + np.repeat(starts - numbers[:-1], stops - starts)

        # What of a request lies in each of the ranges that are ever written; a write lies in one.
        low = np.searchsorted(stops, first, "right")
        count = np.maximum(np.searchsorted(starts, stop, "left") - low, 0)
        _check_room(int(count.sum()))
        of = np.repeat(np.arange(len(order)), count)
        pieces = np.cumsum(count) - count
        area = low[of] + np.arange(len(of)) - pieces[of]
        begin, end = np.maximum(first[of], starts[area]), np.minimum(stop[of], stops[area])
        _check_room(int((end - begin).sum()))
        cells = np.concatenate(([0], np.cumsum(end - begin))).astype(np.int64)
        sectors = numbers[area] + begin - starts[area]
        rows = changes[order][of]
        sources = np.where(written[of], payloads.offsets[rows], -1)

        former = np.empty(int(cells[-1]), np.int32)
        former_owners(sectors, cells, np.zeros(len(places), np.int32), former)
        contents = np.zeros(len(former) + 1, np.uint64)
        sector_digests(payloads.data, sources, cells, contents[1:])
        by_row = np.argsort(order)
        return cls(
            changes=changes, change_pieces=pieces[by_row], change_counts=count[by_row], rows=rows,
            begins=begin - first[of], sectors=sectors, sources=sources, cells=cells,
            bounds=np.searchsorted(volume[order][of], np.arange(len(ids) + 1)), places=places,
            bases=bases, former=former, contents=contents, data=payloads.data, lengths=lengths,
            ids=tuple(ids.tolist()),
        )  # fmt: skip

    def route(self, points: Sequence[CrashPoint]) -> _Route:
        """Where the prefixes of states end, and what lies on top of them.

        Raises
        ------
        InputError
            If a point names a volume, a request or bytes that are not there.
        """
        stops = self._stops(points)
        counts = np.array([len(p.parts) for p in points], np.int64)
        edges = np.concatenate(([0], np.cumsum(counts)))
        parts = np.concatenate([np.empty((0, 3), np.int64), *(p.parts for p in points)])
        row, first, end = parts.T
        change = np.minimum(np.searchsorted(self.changes, row), max(len(self.changes) - 1, 0))
        if len(row):
            self._check_parts(parts, change)
        else:
            change = np.empty(0, np.int64)
        count = self.change_counts[change]
        of = np.repeat(np.arange(len(row)), count)
        within = np.arange(len(of)) - np.repeat(np.cumsum(count) - count, count)
        piece = self.change_pieces[change][of] + within
        begin = self.begins[piece]
        low = np.maximum(first[of] // SECTOR, begin)
        high = np.minimum(end[of] // SECTOR, begin + np.diff(self.cells)[piece])
        some = low < high
        of, piece, low, high = of[some], piece[some], low[some], high[some]
        skip = low - self.begins[piece]
        return _Route(
            stops, self.sectors[piece] + skip, self.cells[piece] + skip, high - low,
            np.searchsorted(of, edges),
        )  # fmt: skip

    def _stops(self, points: Sequence[CrashPoint]) -> Ints:
        durable = np.array([p.durable for p in points], np.int64)
        until = np.repeat(durable[:, None], len(self.ids), axis=1)
        places = {id: i for i, id in enumerate(self.ids)}
        for i, point in enumerate(points):
            for volume, row in point.cuts:
                if volume not in places:
                    raise InputError(f"a crash point cuts volume {volume}, which is not there")
                until[i, places[volume]] = row
        stops = np.empty(until.shape, np.int64)
        for i, (low, high) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            stops[:, i] = low + np.searchsorted(self.rows[low:high], until[:, i])
        return stops

    def _check_parts(self, parts: Ints, change: Ints) -> None:
        row, first, end = parts.T
        wrong = np.ones(len(row), bool)
        if len(self.changes):
            wrong = (self.changes[change] != row) | (first < 0) | (first > end)
            wrong |= (end > self.lengths[change]) | ((first | end) % SECTOR != 0)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(
                f"a crash point has bytes {first[at]} to {end[at]} of request {row[at]}: these are "
                "no sectors of a request that changes the disk"
            )


@dataclass(frozen=True, eq=False)
class _Route:
    """States in the order in which they are visited, as `follow_states` takes them."""

    stops: Ints
    run_sectors: Ints
    run_cells: Ints
    run_counts: Ints
    run_edges: Ints

    def room(self) -> int:
        """The most sectors that the runs of one state cover."""
        total = np.concatenate(([0], np.cumsum(self.run_counts)))
        return int(np.diff(total[self.run_edges]).max(initial=0))


class _Walk:
    """Goes along a route and knows at any moment who wrote each sector."""

    def __init__(self, history: SectorHistory, route: _Route) -> None:
        self.history, self.route = history, route
        self.owner = np.zeros(len(history.places), np.int32)
        self._at = history.bounds[:-1].copy()
        room = max(route.room(), 1)
        self._undo = np.empty(room, np.int64), np.empty(room, np.int32)
        self._state = np.zeros(2, np.int64)
        self._digest = np.zeros(1, np.uint64)

    def go(self, first: int, stop: int, touched: Ints) -> NDArray[np.uint64]:
        """Visit states; their digests. ``touched`` has room for all sectors on the way, or none."""
        from vmbk.kernels.crash import follow_states

        h, r = self.history, self.route
        low, high = r.run_edges[first], r.run_edges[stop]
        digests = np.empty(stop - first, np.uint64)
        follow_states(
            h.sectors, h.cells, h.former, h.contents, h.places,
            np.ascontiguousarray(r.stops[first:stop]).reshape(-1),
            r.run_sectors[low:high], r.run_cells[low:high], r.run_counts[low:high],
            r.run_edges[first + 1 : stop + 1] - low,
            self.owner, self._at, *self._undo, touched, self._state, self._digest, digests,
        )  # fmt: skip
        return digests

    def step(self, i: int) -> tuple[int, Ints]:
        """Visit one state; its digest and the sectors touched on the way."""
        from vmbk.kernels.crash import TOUCHED, UNDONE

        h, r = self.history, self.route
        room = int(np.abs(h.cells[r.stops[i]] - h.cells[self._at]).sum())
        room += int(r.run_counts[r.run_edges[i] : r.run_edges[i + 1]].sum())
        touched = np.empty(room + int(self._state[UNDONE]), np.int64)
        self._state[TOUCHED] = 0
        (digest,) = self.go(i, i + 1, touched).tolist()
        return digest, touched[: int(self._state[TOUCHED])]


_HISTORIES: Final[WeakKeyDictionary[Trace, SectorHistory]] = WeakKeyDictionary()


def state_digests(trace: Trace, points: Sequence[CrashPoint]) -> NDArray[np.uint64]:
    """Digests of states, without making an image.

    Parameters
    ----------
    trace : Trace
        With payloads.
    points : sequence of CrashPoint

    Returns
    -------
    ndarray of uint64, shape (n,)
        Equal where the states are, on all volumes; see the module for what is summed up.

    Raises
    ------
    InputError
        If the trace lacks captured bytes, is not made of sectors or is too large, or a point lies
        outside it.
    """
    history = SectorHistory.of(trace)
    order = _order(points)
    walk = _Walk(history, history.route([points[i] for i in order.tolist()]))
    digests = np.empty(len(points), np.uint64)
    digests[order] = walk.go(0, len(points), np.empty(0, np.int64))
    return digests


def distinct_points(trace: Trace, points: Sequence[CrashPoint]) -> tuple[CrashPoint, ...]:
    """Of points whose states differ in no byte only the latest: the most was acknowledged by then.

    Parameters and errors are those of `state_digests`; the order is kept.
    """
    digests = state_digests(trace, points)
    rows = np.array([p.row for p in points], np.int64)
    # By digest, then the latest row, then the first of them.
    order = np.lexsort((np.arange(len(points)), -rows, digests))
    found = digests[order]
    kept = order[np.concatenate(([True], found[1:] != found[:-1]))[: len(order)]]
    return tuple(points[i] for i in np.sort(kept).tolist())


def build_states(
    trace: Trace, points: Sequence[CrashPoint], volume: int, folder: Path | None
) -> Generator[CrashState, None, None]:
    """Build states one after the other; see `vmbk.consistency.crash.crash_states`."""
    from vmbk.consistency.crash import CrashState
    from vmbk.disk.raw import RawDisk
    from vmbk.kernels.crash import changed_sectors

    history = SectorHistory.of(trace)
    ordered = [points[i] for i in _order(points).tolist()]
    walk = _Walk(history, history.route(ordered))
    held = np.zeros_like(walk.owner)
    names = [v.name for v in trace.volumes]
    unique = len(set(names)) == len(names)
    with (
        tempfile.TemporaryDirectory(prefix="vmbk-crash-", dir=folder) as scratch,
        ExitStack() as opened,
    ):
        disks = [
            opened.enter_context(RawDisk.create(Path(scratch) / f"{v.id}.img", v.size))
            if v.size
            else None
            for v in trace.volumes
        ]
        images = {
            v.name if unique else str(v.id): disk.path
            for v, disk in zip(trace.volumes, disks, strict=True)
            if disk is not None
        }
        judged = disks[history.ids.index(volume)]
        if judged is None:
            raise InputError(f"volume {volume} has no bytes")
        for i, point in enumerate(ordered):
            digest, touched = walk.step(i)
            changed = np.empty(len(touched), np.int64)
            count = changed_sectors(touched, walk.owner, held, changed)
            _write(history, disks, np.sort(changed[:count]), walk.owner)
            yield CrashState(point, judged.path, images, digest)


def _write(
    history: SectorHistory, disks: Sequence[RawDisk | None], changed: Ints, owner: NDArray[np.int32]
) -> None:
    """Bring images up to date: sectors that lie together on a disk and in the trace at once."""
    place = history.places[changed]
    cell = owner[changed].astype(np.int64) - 1
    piece = np.searchsorted(history.cells, cell, "right") - 1
    source = np.where(cell < 0, -1, history.sources[piece])
    source = np.where(source < 0, -1, source + (cell - history.cells[piece]) * SECTOR)
    edges = np.searchsorted(place, history.bases)
    for i, disk in enumerate(disks):
        low, high = edges[i : i + 2].tolist()
        if disk is not None and low < high:
            offset = (place[low:high] - history.bases[i]) * SECTOR
            lengths = np.full(high - low, SECTOR, np.int64)
            disk.write_batch(offset, lengths, history.data, source[low:high])


def _order(points: Sequence[CrashPoint]) -> Ints:
    """An order in which each state is near to the one before."""
    ends = [(p.cuts[0][1], p.cuts[-1][1]) if p.cuts else (p.durable, 0) for p in points]
    first, last = np.array(ends, np.int64).reshape(-1, 2).T
    # To and fro: while one disk stands still another goes through its cuts, and then back.
    turn = np.unique(first, return_inverse=True)[1].reshape(-1) & 1
    rows = np.array([p.row for p in points], np.int64)
    return np.lexsort((np.arange(len(points)), rows, np.where(turn == 1, -last, last), first))


def _union(first: Ints, stop: Ints) -> tuple[Ints, Ints]:
    """Ranges of sectors as the least ranges that do not touch each other, sorted."""
    order = np.argsort(first, kind="stable")
    first, reach = first[order], np.maximum.accumulate(stop[order])
    new = np.flatnonzero(np.concatenate(([True], first[1:] > reach[:-1]))[: len(first)])
    return first[new], reach[np.append(new[1:], len(first)) - 1] if len(new) else reach


def _check_room(sectors: int) -> None:
    if sectors > _MOST_CELLS:
        raise InputError(
            f"the requests of the trace cover {sectors} sectors of what is written, more than the "
            f"{_MOST_CELLS} that crash states are made of",
            hint="take a part of the trace: trace[:row]",
        )
