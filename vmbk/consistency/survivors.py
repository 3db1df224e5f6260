"""What may have survived a power cut, by model; see `vmbk.consistency.crash` for what they mean.

A model is a list of *moments*, the latest at which something could still be lost, and at each a
number of ways in which it may have come. Ways are told apart by a number, so that a sample makes
only those that it has. What is drawn at random depends on the seed, the model, the moment and the
number of the way, and on nothing else: not on how many states were asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import permutations, product
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.consistency.crash import MODELS, CrashPoint
from vmbk.consistency.states import SECTOR, changing_rows
from vmbk.errors import InputError
from vmbk.trace.schema import Flag, Op

if TYPE_CHECKING:
    from vmbk.trace.table import Trace

Ints = NDArray[np.int64]
Parts = NDArray[np.int64]

_MOST_VOLUMES: Final = 64
_MOST_LEADS: Final = 1 << 12  # that are listed; where there are more they are drawn


@dataclass(frozen=True, eq=False)
class _Disk:
    """What happened on one volume, as ascending rows.

    ``changes`` are all requests that change bytes; ``loose`` those that stay in the cache until a
    flush, ``forced`` those that do not.
    """

    id: int
    changes: Ints
    loose: Ints
    forced: Ints
    flushes: Ints

    def flushed(self, rows: Ints) -> Ints:
        """What is flushed at each row: the requests before the row that is given for it."""
        return np.concatenate(([0], self.flushes + 1))[np.searchsorted(self.flushes, rows)]

    def effective(self, changes: Ints) -> Ints:
        """The flushes before which, since the one before, there was a change."""
        reached = np.searchsorted(changes, self.flushes)
        return self.flushes[np.diff(reached, prepend=0) > 0]


def _disks(trace: Trace) -> list[_Disk]:
    requests = trace.requests
    if len(trace.volumes) > _MOST_VOLUMES:
        raise InputError(
            f"the trace has {len(trace.volumes)} volumes",
            hint=f"this model cuts the power of at most {_MOST_VOLUMES} together",
        )
    if not trace.volumes:
        raise InputError("the trace has no volume")
    changes = changing_rows(trace)
    is_forced = (requests.op == Op.WRITE) & (requests.flags & Flag.FUA != 0)
    flushes = np.flatnonzero(requests.op == Op.FLUSH)
    found = []
    for volume in trace.volumes:
        mine = changes[requests.volume[changes] == volume.id]
        found.append(
            _Disk(
                volume.id, mine, mine[~is_forced[mine]], mine[is_forced[mine]],
                flushes[requests.volume[flushes] == volume.id],
            )
        )  # fmt: skip
    # Where nothing is written nothing can be lost.
    return [disk for disk in found if len(disk.changes)] or found[:1]


class Survivors:
    """The states of a model: ``len()`` of them, and each by its number.

    Parameters
    ----------
    trace : Trace
    model : str
    seed : int
    disks : list of _Disk
    """

    def __init__(self, trace: Trace, model: str, seed: int, disks: list[_Disk]) -> None:
        self.model, self.seed, self.disks = model, seed, disks
        self.requests = trace.requests
        self.starts: Ints = np.zeros(1, np.int64)

    def count(self, ways: Ints) -> None:
        """Take how many ways there are at each moment."""
        self.starts = np.concatenate(([0], np.cumsum(ways))).astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def point(self, index: int) -> CrashPoint:
        """The state of a number."""
        moment = int(np.searchsorted(self.starts, index, "right")) - 1
        row, durable, parts = self.way(moment, index - int(self.starts[moment]))
        least = min(durable)
        cuts = zip((disk.id for disk in self.disks), durable, strict=True)
        same = least == max(durable)
        return CrashPoint(index, row, self.model, least, () if same else tuple(cuts), parts)

    def way(self, moment: int, number: int) -> tuple[int, list[int], Parts]:
        """One way: row, what is durable of each volume, and the parts beside that."""
        raise NotImplementedError

    def draws(self, *numbers: int) -> np.random.Generator:
        """Random numbers for one way."""
        return np.random.default_rng([self.seed, MODELS.index(self.model), *numbers])

    def whole(self, rows: Ints) -> Parts:
        """Requests as parts."""
        return np.stack([rows, np.zeros_like(rows), self.requests.length[rows]], axis=1)


def survivors(trace: Trace, model: str, seed: int, ways: int, depth: int, window: int) -> Survivors:
    """The states of one of the models that are no prefixes.

    Parameters are those of `vmbk.consistency.crash.crash_points`.

    Raises
    ------
    InputError
        If there are too many volumes, or too few to be cut apart.
    """
    disks = _disks(trace)
    if model == "apart":
        return _Apart(trace, seed, disks, ways, window)
    if model == "lying":
        return _Lying(trace, seed, disks, ways, depth)
    return _Epoch(trace, model, seed, disks, ways)


class _Epoch(Survivors):
    """``epoch`` and ``torn``: what was not flushed survives or not.

    Moments are those right before a flush, for until then everything may be lost that it is to
    make durable; before a forced write, which itself may not have come; and the end.
    """

    def __init__(self, trace: Trace, model: str, seed: int, disks: list[_Disk], ways: int) -> None:
        super().__init__(trace, model, seed, disks)
        self.ways = ways
        flushing = [disk.effective(disk.loose) for disk in disks]
        forcing = [disk.forced for disk in disks]
        self.rows = np.unique(np.concatenate([*flushing, *forcing, [len(trace)]])).astype(np.int64)
        self.durable = np.stack([disk.flushed(self.rows) for disk in disks], axis=1)
        self.forced = np.isin(self.rows, np.concatenate(forcing))
        pending = np.stack(
            [_within(d.loose, self.durable[:, i], self.rows) for i, d in enumerate(disks)], axis=1
        )
        held = pending.sum(axis=1)
        # What a flush makes durable altogether needs no state here: it is one of the next moment.
        settled = [np.isin(self.rows, rows) for rows in flushing]
        settles = (np.stack(settled, axis=1) & (pending == held[:, None])).any(axis=1)
        self.overlaps = np.zeros(len(self.rows), bool)
        for disk in disks:
            epochs = np.searchsorted(disk.flushes, self.rows)
            self.overlaps |= _overlapping(trace, disk)[epochs]
        self.all = self._all(trace, held)
        self.count(np.where(self.all > 0, self.all - settles, ways))

    def _all(self, trace: Trace, held: Ints) -> Ints:
        """How many ways there are at each moment, where they are no more than wanted; else 0."""
        most = math.log2(self.ways) + 1e-9
        if self.model == "epoch":
            bits = held.astype(np.float64)
            orders = np.array([len(_arrangements(k)) for k in range(6)])
            ordered = orders[np.minimum(held, 5)]
            bits[self.overlaps] = np.where(held < 6, np.log2(ordered), np.inf)[self.overlaps]
        else:
            bits = np.zeros(len(self.rows))
            choices = np.log2(self._choices(np.arange(len(trace))))
            for i, disk in enumerate(self.disks):
                sums = np.concatenate(([0.0], np.cumsum(choices[disk.loose])))
                low = np.searchsorted(disk.loose, self.durable[:, i])
                bits += sums[np.searchsorted(disk.loose, self.rows)] - sums[low]
            # A forced write that is under way can be torn; that it is whole is the next moment's.
            rows = self.rows[self.forced]
            bits[self.forced] += np.log2(np.maximum(self._choices(rows) - 1, 1))
            bits[self.overlaps & (held > 1)] = np.inf
        return np.where(bits <= most, np.round(np.exp2(np.minimum(bits, most))), 0).astype(np.int64)

    def _choices(self, rows: Ints) -> Ints:
        """How a write may have come when its sectors can be lost: absent, or any run of them."""
        sectors = np.minimum(self.requests.length[rows] // SECTOR, 1 << 20)
        runs = sectors * (sectors + 1) // 2
        return np.where(self.requests.op[rows] == Op.WRITE, runs, 1) + 1

    def way(self, moment: int, number: int) -> tuple[int, list[int], Parts]:
        """See `Survivors.way`."""
        row, durable = int(self.rows[moment]), self.durable[moment].tolist()
        loose = np.concatenate(
            [_between(d.loose, low, row) for d, low in zip(self.disks, durable, strict=True)]
        )
        forced = np.concatenate(
            [_between(d.forced, low, row) for d, low in zip(self.disks, durable, strict=True)]
        )
        loose.sort()
        forced.sort()
        if self.model == "torn":
            parts = self._torn(moment, number, loose)
        else:
            parts = self.whole(self._subset(moment, number, loose))
        return row, durable, self._merged(parts, self.whole(forced))

    def _subset(self, moment: int, number: int, loose: Ints) -> Ints:
        """Which writes came, in the order in which they came."""
        if self.all[moment]:
            chosen: Ints = (
                loose[np.array(_arrangements(len(loose))[number], np.int64)]
                if self.overlaps[moment]
                else loose[(number >> np.arange(len(loose))) & 1 == 1]
            )
            return chosen
        if number == 0:
            return loose[:0]
        draws = self.draws(int(self.rows[moment]), number)
        kept: Ints = loose[draws.random(len(loose)) < draws.random()]
        if self.overlaps[moment]:
            draws.shuffle(kept)
        return kept

    def _torn(self, moment: int, number: int, loose: Ints) -> Parts:
        """Which sectors of which writes came."""
        under_way = [int(self.rows[moment])] if self.forced[moment] else []
        rows = np.concatenate([loose, np.array(under_way, np.int64)])
        sectors = self.requests.length[rows] // SECTOR
        can_tear = self.requests.op[rows] == Op.WRITE
        first, end = np.zeros_like(rows), np.zeros_like(rows)
        order = np.arange(len(rows))
        if self.all[moment]:
            choices = self._choices(rows)
            choices[len(loose) :] -= 1
            for i, count in enumerate(choices.tolist()):
                number, choice = divmod(number, count)
                if choice and not can_tear[i]:
                    end[i] = sectors[i]
                elif choice:
                    first[i], end[i] = _runs(int(sectors[i]))[choice - 1]
        elif number:
            draws = self.draws(int(self.rows[moment]), number)
            absent, whole = np.sort(draws.random(2)).tolist()
            fate = draws.random(len(rows))
            ends = np.sort(draws.integers(0, sectors, (2, len(rows))), axis=0)
            torn = (fate >= absent) & (fate < whole) & can_tear
            first = np.where(torn, ends[0], 0)
            end = np.where(torn, ends[1] + 1, np.where(fate < absent, 0, sectors))
            lost = slice(len(loose), None)
            end[lost] = np.where(end[lost] - first[lost] == sectors[lost], 0, end[lost])
            if self.overlaps[moment]:
                order = draws.permutation(len(rows))
        parts = np.stack([rows, first * SECTOR, end * SECTOR], axis=1)[order]
        return parts[parts[:, 1] < parts[:, 2]]

    @staticmethod
    def _merged(parts: Parts, forced: Parts) -> Parts:
        """Parts with the forced writes: each is behind all that was asked for before it."""
        if not len(forced):
            return parts
        key = np.searchsorted(forced[:, 0], parts[:, 0]) * 2
        keys = np.concatenate([key, np.arange(len(forced)) * 2 + 1])
        return np.concatenate([parts, forced])[np.argsort(keys, kind="stable")]


class _Lying(Survivors):
    """``lying``: flushes that did nothing, counted over all volumes.

    A moment is a row right before a flush or the end, and how many flushes before it were lies.
    """

    def __init__(self, trace: Trace, seed: int, disks: list[_Disk], ways: int, depth: int) -> None:
        super().__init__(trace, "lying", seed, disks)
        flushes = np.unique(np.concatenate([disk.effective(disk.changes) for disk in disks]))
        ends = np.append(flushes, len(trace)).astype(np.int64)
        lies = np.minimum(np.arange(len(ends)), depth)
        of = np.repeat(np.arange(len(ends)), lies)
        self.lies = np.arange(len(of)) - np.repeat(np.cumsum(lies) - lies, lies) + 1
        self.rows = ends[of]
        # What the last honest flush saw: nothing where all of them lied.
        honest = of - self.lies - 1
        seen = np.where(honest >= 0, ends[honest] + 1, 0)
        self.durable = np.stack([disk.flushed(seen) for disk in disks], axis=1)
        held = np.zeros(len(self.rows), np.int64)
        for i, disk in enumerate(disks):
            held += _within(disk.changes, self.durable[:, i], self.rows)
        # That everything survived would be no lie.
        self.all = (np.int64(1) << np.minimum(held, 40)) <= ways
        self.count(np.where(self.all, (np.int64(1) << np.minimum(held, 40)) - 1, ways))

    def way(self, moment: int, number: int) -> tuple[int, list[int], Parts]:
        """See `Survivors.way`."""
        row, durable = int(self.rows[moment]), self.durable[moment].tolist()
        held = np.concatenate(
            [_between(d.changes, low, row) for d, low in zip(self.disks, durable, strict=True)]
        )
        held.sort()
        if self.all[moment]:
            kept = held[(number >> np.arange(len(held))) & 1 == 1]
        elif number == 0:
            kept = held[:0]
        else:
            draws = self.draws(row, int(self.lies[moment]), number)
            survives = draws.random(len(held)) < draws.random()
            survives[draws.integers(0, len(held))] = False
            kept = held[survives]
        return row, durable, self.whole(kept)


class _Apart(Survivors):
    """``apart``: some volume at its last flush, another at a later one of its own.

    Moments are rows right before a flush or a forced write, and the end: the earliest cut.
    """

    def __init__(self, trace: Trace, seed: int, disks: list[_Disk], ways: int, window: int) -> None:
        if len(disks) < 2:
            raise InputError(
                "volumes can be cut apart where a trace writes to at least 2 of them, and this "
                "one does not"
            )
        super().__init__(trace, "apart", seed, disks)
        self.prefixes = [_flush_prefixes(disk) for disk in disks]
        rows = [prefixes[1:] - 1 for prefixes in self.prefixes]
        self.rows = np.unique(np.concatenate([*rows, [len(trace)]])).astype(np.int64)
        self.first = np.stack([np.searchsorted(p, self.rows, "right") - 1 for p in self.prefixes])
        last = np.stack(
            [np.searchsorted(p, self.rows + window, "right") - 1 for p in self.prefixes]
        )
        self.later = last - self.first
        every = np.prod(self.later + 1.0, axis=0) - np.prod(self.later * 1.0, axis=0) - 1
        self.all = (every <= ways) & (np.prod(self.later + 1.0, axis=0) <= _MOST_LEADS)
        self.count(np.minimum(every, ways).astype(np.int64))

    def way(self, moment: int, number: int) -> tuple[int, list[int], Parts]:
        """See `Survivors.way`."""
        row, later = int(self.rows[moment]), self.later[:, moment]
        if self.all[moment]:
            ahead = np.array(_leads(tuple(later.tolist()))[number])
        else:
            draws = self.draws(row, number)
            ahead = draws.integers(0, later + 1)
            # One volume stays behind and another one does not.
            behind = int(draws.integers(0, len(later)))
            ahead[behind] = 0
            if not ahead.any():
                movable = np.flatnonzero(later * (np.arange(len(later)) != behind))
                if not len(movable):
                    movable = np.flatnonzero(later)
                one = int(draws.choice(movable))
                ahead[one] = draws.integers(1, later[one] + 1)
        chosen = self.first[:, moment] + ahead
        cuts = [int(p[k]) for p, k in zip(self.prefixes, chosen.tolist(), strict=True)]
        return row, cuts, np.empty((0, 3), np.int64)


def _within(rows: Ints, low: Ints, high: Ints) -> Ints:
    """How many of ascending rows lie in each range."""
    return np.searchsorted(rows, high) - np.searchsorted(rows, low)


def _between(rows: Ints, low: int, high: int) -> Ints:
    """Those of ascending rows that lie in a range."""
    first, stop = np.searchsorted(rows, [low, high]).tolist()
    return rows[first:stop]


def _flush_prefixes(disk: _Disk) -> Ints:
    """Rows before which the requests make a state that a flush or forced write left; 0 first."""
    durable = np.sort(np.concatenate([disk.flushes, disk.forced])) + 1
    reached = np.searchsorted(disk.changes, durable)
    return np.concatenate(([0], durable[np.diff(reached, prepend=0) > 0])).astype(np.int64)


def _overlapping(trace: Trace, disk: _Disk) -> NDArray[np.bool_]:
    """For each epoch of a disk whether two of its changes cover a sector both."""
    requests, rows = trace.requests, disk.changes
    epoch = np.searchsorted(disk.flushes, rows)
    order = np.lexsort((requests.offset[rows], epoch))
    begin = requests.offset[rows][order]
    end, epoch = begin + requests.length[rows][order], epoch[order]
    # The furthest end so far within the epoch: as ranks, to which the epoch is added.
    ends, rank = np.unique(end, return_inverse=True)
    reach = np.maximum.accumulate(rank.reshape(-1) + epoch * len(ends)) - epoch * len(ends)
    found = np.zeros(len(disk.flushes) + 1, bool)
    meets = (epoch[1:] == epoch[:-1]) & (begin[1:] < ends[reach[:-1]])
    found[epoch[1:][meets]] = True
    return found


@cache
def _arrangements(count: int) -> tuple[tuple[int, ...], ...]:
    """Subsets in every order; all of them, in order, comes last."""
    every = [order for k in range(count + 1) for order in permutations(range(count), k)]
    return (*sorted(every, key=lambda order: order == tuple(range(count))),)


@cache
def _runs(sectors: int) -> tuple[tuple[int, int], ...]:
    """Runs of sectors, the whole write last."""
    return tuple(
        (first, first + length)
        for length in range(1, sectors + 1)
        for first in range(sectors - length + 1)
    )


@lru_cache(256)
def _leads(later: tuple[int, ...]) -> list[tuple[int, ...]]:
    """How far each volume may be ahead: not all of them, and not none."""
    ranges = product(*(range(n + 1) for n in later))
    return [ahead for ahead in ranges if any(ahead) and not all(ahead)]
