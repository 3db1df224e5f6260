"""Crash points of a trace, and the disks as a power cut at each of them would leave them.

Models, after the replay-log tool of dm-log-writes (the first two) and CrashMonkey:

``flush``
    The requests up to and including each flush or forced (FUA) write. Everything before a flush is
    durable once it returns, whatever the disk caches and reorders, so these states are certain to
    occur.
``request``
    The requests up to any one of them: a disk that writes in the order in which it is told.
``epoch``
    What was written since the last flush may have reached the disk or not, each write for itself
    and in any order: a disk with a cache. Forced writes are durable when they complete.
``torn``
    The same, and of a write a run of its sectors of 512 bytes only: a disk that stops within one.
    Discards and write_zeroes are done whole or not at all, in this model as well.
``lying``
    The last flushes, one or several, did nothing, and forced writes since were not forced: of what
    came since the last honest flush some writes survive, and often none.
``apart``
    Several disks, each as one of its own flushes left it, not at one time: a snapshot that goes
    from disk to disk. What was acknowledged before the first of them counts.

A state is made once. Under the first two, points between which no request changes a byte are one,
and it stands just before the next change, where the most has been acknowledged (the strictest of
them). Under the others, of states that are equal in every byte the latest is kept.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.consistency.scratch import copy_image
from vmbk.consistency.states import (
    build_states,
    changing_rows,
    check_captured,
    check_sectors,
    distinct_points,
)
from vmbk.errors import InputError
from vmbk.trace.schema import Flag, Op, Volume
from vmbk.units import quoted

if TYPE_CHECKING:
    from vmbk.trace.table import Trace

MODELS: Final = ("flush", "request", "epoch", "torn", "lying", "apart")

MOST_STATES: Final = 1 << 20
"""States that a model may have where all of them are asked for."""


_TURNS: Final = 4


def _no_parts() -> NDArray[np.int64]:
    return np.empty((0, 3), np.int64)


@dataclass(frozen=True, eq=False)
class CrashPoint:
    """A moment of a trace at which the power fails, and what has reached the disks by then.

    Parameters
    ----------
    index : int
        Its number among all states of the model, from 0.
    row : int
        How many requests had happened: those before this row. What they acknowledged counts.
    model : str
        One of `MODELS`.
    durable : int
        The requests before this row are on the disks whole; ``row`` where absent.
    cuts : tuple of (int, int)
        Id of a volume, and the row that stands in the place of ``durable`` for it. Empty where
        ``durable`` holds for all volumes.
    parts : ndarray of int64, shape (n, 3)
        What is on the disks besides, in the order in which it reached them: row of a request, first
        byte and end byte within it.
    """

    index: int
    row: int
    model: str
    durable: int = -1
    cuts: tuple[tuple[int, int], ...] = ()
    parts: NDArray[np.int64] = field(default_factory=_no_parts, repr=False)

    def __post_init__(self) -> None:
        if self.durable < 0:
            object.__setattr__(self, "durable", self.row)

    def _key(self) -> tuple[Any, ...]:
        parts = self.parts.tobytes()
        return self.index, self.row, self.model, self.durable, self.cuts, parts

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, CrashPoint) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


def system_volume(trace: Trace, volume: int | None = None) -> Volume:
    """The volume that is judged: the one named or, where there is one only, that one.

    Raises
    ------
    InputError
        If there is no such volume, or several and none is named.
    """
    if volume is not None:
        return trace.volume(volume)
    if len(trace.volumes) != 1:
        ids = [v.id for v in trace.volumes]
        raise InputError(
            f"the trace has {len(ids)} volumes", hint=f"name the one to judge, of {ids[:20]}"
        )
    return trace.volumes[0]


def crash_points(
    trace: Trace,
    model: str = "flush",
    *,
    states: int | None = None,
    seed: int = 0,
    volume: int | None = None,
    ways: int | None = None,
    depth: int = 3,
    window: int = 256,
) -> tuple[CrashPoint, ...]:
    """The crash points of a trace, in ascending order of index.

    Parameters
    ----------
    trace : Trace
    model : str
        One of `MODELS`.
    states : int, optional
        How many are wanted at most; all where absent. Fewer than there are means a sample spread
        evenly: one from each of as many equal ranges, drawn with ``seed``. Of a sample of
        ``epoch`` and the models after it, states that are equal are left out.
    seed : int
        Seed of the sample, and of the states that are drawn.
    volume : int, optional
        Id of the volume; needed for ``flush`` and ``request`` where the trace has several. The
        other models cut the power of all volumes.
    ways : int, optional
        Of ``epoch``, ``torn`` and ``apart``: the most states at one moment, 64 where absent. All
        that there can be, where they are no more, else as many are drawn, one of which has lost
        everything that could be lost. Of ``lying``: the same for one number of lies, 4 where
        absent, so that often nothing survives.
    depth : int
        Of ``lying``: 1 to this many flushes did nothing.
    window : int
        Of ``apart``: requests of the trace within which all volumes are cut.

    Raises
    ------
    InputError
        If the model is unknown, a number is out of range, the volume is unclear, or a model other
        than ``flush`` and ``request`` meets a request that is not made of whole sectors.
    """
    if model not in MODELS:
        raise InputError(
            f"{quoted(model)} is not a crash model", hint="models are " + ", ".join(MODELS)
        )
    ways = (4 if model == "lying" else 64) if ways is None else ways
    for name, value in (("ways", ways), ("depth", depth), ("window", window)):
        if not 1 <= value <= MOST_STATES:
            raise InputError(f"{name} must be 1 to {MOST_STATES}, not {quoted(value)}")
    if states is not None and states < 1:
        raise InputError(f"{states} states: at least 1 is needed")
    if not 0 <= seed < 1 << 63:
        raise InputError(f"the seed must be 0 to 2^63 - 1, not {seed}")
    if model in ("flush", "request"):
        rows = _prefixes(trace, model, system_volume(trace, volume).id)
        return tuple(CrashPoint(i, int(rows[i]), model) for i in _sample(len(rows), states, seed))
    if volume is not None:
        trace.volume(volume)
    from vmbk.consistency.survivors import survivors

    check_sectors(trace)
    found = survivors(trace, model, seed, ways, depth, window)
    if states is None and len(found) > MOST_STATES:
        raise InputError(
            f"the model {model} has {len(found)} states of this trace",
            hint="say how many are wanted",
        )
    points: tuple[CrashPoint, ...] = ()
    tried: set[int] = set()
    wanted = len(found) if states is None else min(states, len(found))
    # Some of a sample are equal: draw more in their place, up to a limit.
    for turn in range(_TURNS):
        more = sorted(set(_sample(len(found), wanted - len(points), seed + turn)) - tried)
        tried.update(more)
        points = (*points, *(found.point(i) for i in more))
        if trace.has_payload:
            points = distinct_points(trace, points)
        if len(points) >= wanted or len(tried) == len(found):
            break
    return tuple(sorted(points, key=lambda point: point.index))


def _prefixes(trace: Trace, model: str, volume: int) -> NDArray[np.int64]:
    """Rows of the states that are prefixes of the trace."""
    requests = trace.requests
    here = requests.volume == volume
    changing = changing_rows(trace)
    changing = changing[here[changing]]
    # State k is the disk after the first k changes; it lasts until the row of change k.
    until = np.append(changing, len(requests))
    if model == "request":
        return until
    forced = (requests.op == Op.WRITE) & (requests.flags & Flag.FUA != 0)
    durable = np.flatnonzero(here & ((requests.op == Op.FLUSH) | forced))
    return until[np.unique(np.searchsorted(changing, durable + 1))]


def _sample(count: int, states: int | None, seed: int) -> list[int]:
    """Which of the states: all, or one of each of as many equal ranges."""
    if states is None or states >= count:
        return list(range(count))
    edges = np.linspace(0, count, states + 1).astype(np.int64)
    chosen = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    return chosen.tolist()  # type: ignore[no-any-return]


@dataclass(frozen=True)
class CrashState:
    """The disks at a crash point, valid until the next state is asked for.

    Parameters
    ----------
    point : CrashPoint
    image : Path
        The image of the volume that is judged. Nobody may change it.
    images : mapping of str to Path
        The images of all volumes, by the volume's name, or by its id where two share a name.
    digest : int
        A number that is equal where all volumes are equal in every byte; see
        `vmbk.consistency.states`.
    """

    point: CrashPoint
    image: Path
    images: Mapping[str, Path] = field(default_factory=dict)
    digest: int = 0

    def copy_to(self, target: Path) -> None:
        """Make a scratch copy of the image that may be changed; see `copy_image`."""
        copy_image(self.image, target)


def crash_states(
    trace: Trace,
    points: Sequence[CrashPoint],
    *,
    volume: int | None = None,
    folder: Path | None = None,
) -> Generator[CrashState, None, None]:
    """Build the disks at each point by moving forward and back over one sparse image per volume.

    What a state costs is the distance from the one before, not from the start.

    Parameters
    ----------
    trace : Trace
        With payloads: without the captured bytes there is nothing to judge.
    points : sequence of CrashPoint
        In any order. States come in an order in which each is near to the one before; those of
        ``flush`` and ``request`` in ascending order of row.
    volume : int, optional
        Id of the volume that is judged; needed where the trace has several.
    folder : Path, optional
        Where to make the images; the system's temporary folder where absent.

    Yields
    ------
    CrashState

    Raises
    ------
    InputError
        If the trace lacks captured bytes or is not made of whole sectors, a point lies outside it,
        or the volume is unclear.
    StorageError
        If the scratch space is full.
    """
    judged = system_volume(trace, volume)
    check_captured(trace)
    check_sectors(trace)
    rows = [row for p in points for row in (p.row, p.durable, *(cut for _, cut in p.cuts))]
    outside = [row for row in rows if not 0 <= row <= len(trace)]
    if outside:
        raise InputError(f"crash at row {outside[0]} of a trace of {len(trace)} requests")
    return build_states(trace, points, judged.id, folder)
