"""Making the trace that a spec declares, slice by slice, with all cores, in bounded memory.

A slice is `SLICE_ROWS` requests of one volume. Each is a function of the spec and of its number
alone, but for how far streams and sweeps have come, which are sums over the slices before it and
are counted in a first pass. So the threads may take slices in any order and any number at a time:
the trace is the same to the byte.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.progress import Advance
from vmbk.trace.schema import Op, Volume
from vmbk.trace.spool import Spool
from vmbk.trace.synthesis.intensity import arrival_curve, exponential_table
from vmbk.trace.synthesis.places import SLICE_ROWS, Places
from vmbk.trace.synthesis.plan import Plan, plan_volume
from vmbk.trace.synthesis.spec import Content, Spec, check
from vmbk.trace.synthesis.tables import Choices, mix
from vmbk.trace.table import Trace

_TASK_SLICES: Final = 8
"""Slices that a thread makes at a time."""

_DUPLICATES: Final = 1024
"""Different contents of duplicate blocks, as in `vmbk.kernels.content`."""

SOURCE_FORMAT: Final = "synthetic"

Rows = dict[str, NDArray[Any]]
R = TypeVar("R")


def synthesise(
    spec: Spec,
    *,
    threads: int | None = None,
    on_progress: Advance | None = None,
    task_slices: int | None = None,
) -> Trace:
    """Make the trace that a spec declares.

    The same spec makes the same bytes, with any number of threads, on any machine. Rows go to
    temporary files, so that the trace may be larger than memory.

    Parameters
    ----------
    spec : Spec
    threads : int, optional
        All cores by default.
    on_progress : callable, optional
        Called with the number of requests done since the last call.
    task_slices : int, optional
        Slices of `SLICE_ROWS` requests that a thread makes at a time; changes no byte.

    Returns
    -------
    Trace
        Its provenance holds the digest of the spec, the seed and the shares of content, by which
        a replay fills its writes.

    Raises
    ------
    InputError
        If the declared quantities cannot hold together.
    StorageError
        If temporary files cannot be written.
    """
    check(isinstance(spec, Spec), "spec", spec, "a Spec; Spec.load makes one of a name or file")
    threads = len(os.sched_getaffinity(0)) if threads is None else threads
    # With many volumes each has its own tasks under way: fewer and smaller ones.
    task_slices = max(_TASK_SLICES // len(spec.volumes), 1) if task_slices is None else task_slices
    ahead = max((threads + 1) // len(spec.volumes), 1)
    if threads < 1 or task_slices < 1:
        raise InputError(f"{threads} threads with {task_slices} slices at a time: at least 1 each")
    plans = [plan_volume(volume, i, spec.seed) for i, volume in enumerate(spec.volumes)]
    spool = Spool(content=spec.content.identities)
    try:
        with ThreadPoolExecutor(threads) as pool:
            sources = [
                _Source(plan, number, spec, pool, ahead, task_slices)
                for number, plan in enumerate(plans)
            ]
            for rows in sources[0].tasks() if len(sources) == 1 else _merged(sources):
                spool.append(**rows)
                if on_progress is not None:
                    on_progress(len(rows["op"]))
        return spool.finish(
            [Volume(i, v.name, v.size, v.sector_size) for i, v in enumerate(spec.volumes)],
            source_format=SOURCE_FORMAT,
            clock="exact",
            provenance={
                "spec": spec.digest,
                "seed": spec.seed,
                "content": asdict(spec.content),
                "doc": spec.doc,
            },
        )
    finally:
        spool.close()


def _in_order(
    work: Callable[[int], R], count: int, pool: ThreadPoolExecutor, ahead: int
) -> Iterator[R]:
    """Results of numbered pieces of work in their order, a few of them under way at a time."""
    running: deque[Future[R]] = deque()
    try:
        for number in range(count):
            running.append(pool.submit(work, number))
            if len(running) > ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


class _Source:
    """The requests of one volume, in order of time."""

    def __init__(
        self,
        plan: Plan,
        number: int,
        spec: Spec,
        pool: ThreadPoolExecutor,
        ahead: int,
        task_slices: int,
    ) -> None:
        from vmbk.kernels.synthesis import EXPONENTIAL_CELLS

        self._plan = plan
        self._number = number
        self._spec = spec
        self._work = spec.volumes[number].workload
        self._duration = spec.duration
        self._exponential = exponential_table(EXPONENTIAL_CELLS)
        self._pool, self._ahead, self._task_slices = pool, ahead, task_slices
        self._places = Places(plan)
        self._slices, self._keys = self._places.slices, self._places.keys

    def tasks(self) -> Iterator[Rows]:
        """All requests, some slices at a time."""
        self._curve = arrival_curve(self._work, self._duration, int(self._keys["burst"]))
        self._before = self._count()
        tasks = -(-self._slices // self._task_slices)
        yield from _in_order(self._make_task, tasks, self._pool, self._ahead)

    def _count(self) -> NDArray[np.int64]:
        """What the counters of streams and sweeps stand at before each slice."""
        from vmbk.kernels.synthesis import tally_kinds

        kinds = self._plan.kinds
        totals = np.zeros((self._slices + 1, kinds.counters), np.int64)
        if not kinds.weight.any():
            return totals

        def count(number: int) -> None:
            kind = np.empty(SLICE_ROWS, np.int64)
            for index in self._range(number):
                some = kind[: self._plan.requests - index * SLICE_ROWS]
                self._places.draw(index, some)
                tally_kinds(some, kinds.counter, kinds.weight, totals[index + 1])

        for _ in _in_order(count, -(-self._slices // self._task_slices), self._pool, self._ahead):
            pass
        return np.cumsum(totals, axis=0)

    def _range(self, task: int) -> range:
        first = task * self._task_slices
        return range(first, min(first + self._task_slices, self._slices))

    def _make_task(self, task: int) -> Rows:
        slices = self._range(task)
        first = slices.start * SLICE_ROWS
        count = min(slices.stop * SLICE_ROWS, self._plan.requests) - first
        rows: Rows = {
            "time_ns": np.empty(count, np.int64),
            "op": np.empty(count, np.int8),
            "volume": np.full(count, self._number, np.uint32),
            "offset": np.empty(count, np.int64),
            "length": np.empty(count, np.int64),
            "flags": np.empty(count, np.uint8),
        }
        for index in slices:
            at = slice((index - slices.start) * SLICE_ROWS, (index - slices.start + 1) * SLICE_ROWS)
            self._make_slice(index, {name: column[at] for name, column in rows.items()})
        if self._spec.content.identities:
            spec = self._spec
            parts = [
                identities(spec.content, spec.seed, self._number, first + at,
                           rows["op"][at : at + SLICE_ROWS])
                for at in range(0, count, SLICE_ROWS)
            ]  # fmt: skip
            rows |= _joined(parts)
        return rows

    def _make_slice(self, index: int, out: Rows) -> None:
        from vmbk.kernels.synthesis import arrival_times

        plan, kinds, first = self._plan, self._plan.kinds, index * SLICE_ROWS
        # Columns that are made last hold what is needed before: no memory beside the result.
        kind = out["time_ns"]
        self._places.make(index, self._before[index].copy(), kind, out["length"], out["offset"])
        for name in ("op", "length", "flags"):
            np.take(getattr(kinds, name), kind, out=out[name], mode="clip")
        arrival_times(
            self._keys["gap"], first, plan.requests, self._work.arrival == "constant",
            self._exponential, *self._curve, out["time_ns"],
        )  # fmt: skip


def identities(content: Content, seed: int, volume: int, first: int, op: NDArray[np.int8]) -> Rows:
    """128-bit identities of what the writes of a slice write, by the declared shares.

    Zero content has the identity 0. Duplicates have one of 1,024 of the seed, the same on all
    volumes. All others have one of their own.

    Parameters
    ----------
    content : Content
    seed, volume : int
    first : int
        Index of the first request in its volume.
    op : ndarray of int8, shape (n,)

    Returns
    -------
    dict
        ``content``, uint8 of shape (n, 16), and ``valid``, bool: which requests are writes.
    """
    from vmbk.kernels.synthesis import draw_kinds

    zero, duplicate = content.zero, content.duplicate / _DUPLICATES
    choices = Choices.of([zero, 100 - zero - content.duplicate, *[duplicate] * _DUPLICATES])
    kind = np.empty(len(op), np.int64)
    key = np.uint64(mix(seed, volume, 3))
    draw_kinds(key, first, choices.bits, choices.edges, choices.guide, kind)
    words = np.empty((len(op), 2), "<u8")
    words[:, 0], words[:, 1] = mix(seed, 3), kind
    words[kind == 0] = 0
    words[kind == 1, 0] = key
    words[:, 1] += np.where(kind == 1, np.arange(first, first + len(op)), 0).astype(np.uint64)
    return {"content": words.view(np.uint8), "valid": op == Op.WRITE}


def _merged(sources: list[_Source]) -> Iterator[Rows]:
    """The volumes' requests in one order of time; those of one time in the order of volumes.

    What lies before the end of every volume's rows so far is complete. Requests at the very end
    wait, since more of that time may follow.
    """
    tasks: list[Iterator[Rows] | None] = [source.tasks() for source in sources]
    waiting: list[Rows | None] = [None] * len(sources)
    while True:
        for i, more in enumerate(tasks):
            if waiting[i] is None and more is not None:
                waiting[i] = next(more, None)
                if waiting[i] is None:
                    tasks[i] = None
        ends = {
            i: int(rows["time_ns"][-1])
            for i, rows in enumerate(waiting)
            if rows is not None and tasks[i] is not None
        }
        taken = []
        for i, rows in enumerate(waiting):
            if rows is not None:
                stop = len(rows["op"])
                if ends:
                    stop = int(np.searchsorted(rows["time_ns"], min(ends.values())))
                taken.append(_cut(rows, 0, stop))
                waiting[i] = _cut(rows, stop, None)
        if taken:
            joined = _joined(taken)
            order = np.argsort(joined["time_ns"], kind="stable")
            yield {name: column[order] for name, column in joined.items()}
        if not ends:
            return
        first = min(ends, key=ends.__getitem__)  # it holds the others up
        more, rows = tasks[first], waiting[first]
        following = next(more, None) if more is not None else None
        if following is None:
            tasks[first] = None
        elif rows is not None:
            waiting[first] = _joined([rows, following])


def _cut(rows: Rows, start: int, stop: int | None) -> Rows:
    return {name: column[start:stop] for name, column in rows.items()}


def _joined(parts: list[Rows]) -> Rows:
    return {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}
