"""Crash points of a trace, and the disk as a power cut at each of them would leave it.

Models, after the replay-log tool of dm-log-writes:

``flush``
    The requests up to and including each flush or forced (FUA) write. Everything before a flush is
    durable once it returns, whatever the disk caches and reorders, so these states are certain to
    occur.
``request``
    The requests up to any one of them: a disk that writes in the order in which it is told.

A state is made once: points between which no byte changes are one, and it stands just before the
next change, where the most has been acknowledged (the strictest of them).
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from vmbk.consistency.scratch import copy_image
from vmbk.errors import InputError
from vmbk.trace.schema import Flag, Op, Volume

if TYPE_CHECKING:
    from vmbk.trace.table import Trace

MODELS: Final = ("flush", "request")
_CHANGING: Final = (Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES)


@dataclass(frozen=True)
class CrashPoint:
    """A moment of a trace at which the power fails.

    Parameters
    ----------
    index : int
        Its number among all states of the model, from 0.
    row : int
        How many requests had happened: those before this row.
    model : str
        One of `MODELS`.
    """

    index: int
    row: int
    model: str


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
) -> tuple[CrashPoint, ...]:
    """The crash points of a trace, in ascending order.

    Parameters
    ----------
    trace : Trace
    model : str
        One of `MODELS`.
    states : int, optional
        How many are wanted at most; all where absent. Fewer than there are means a sample spread
        evenly: one from each of as many equal ranges, drawn with ``seed``.
    seed : int
        Seed of the sample.
    volume : int, optional
        Id of the volume; needed where the trace has several.

    Raises
    ------
    InputError
        If the model is unknown, ``states`` is not positive, the seed is negative, or the volume is
        unclear.
    """
    if model not in MODELS:
        raise InputError(f"{model!r} is not a crash model", hint="models are " + ", ".join(MODELS))
    if states is not None and states < 1:
        raise InputError(f"{states} states: at least 1 is needed")
    if not 0 <= seed < 1 << 63:
        raise InputError(f"the seed must be 0 to 2^63 - 1, not {seed}")
    requests = trace.requests
    here = requests.volume == system_volume(trace, volume).id
    changing = np.flatnonzero(here & np.isin(requests.op, _CHANGING) & (requests.length > 0))
    # State k is the disk after the first k changes; it lasts until the row of change k.
    until = np.append(changing, len(requests))
    if model == "request":
        reached = np.arange(len(until))
    else:
        forced = (requests.op == Op.WRITE) & (requests.flags & Flag.FUA != 0)
        durable = np.flatnonzero(here & ((requests.op == Op.FLUSH) | forced))
        reached = np.unique(np.searchsorted(changing, durable + 1))
    rows = until[reached]
    chosen = np.arange(len(rows))
    if states is not None and states < len(rows):
        edges = np.linspace(0, len(rows), states + 1).astype(np.int64)
        chosen = np.random.default_rng(seed).integers(edges[:-1], edges[1:])
    return tuple(CrashPoint(int(i), int(rows[i]), model) for i in chosen)


@dataclass(frozen=True)
class CrashState:
    """The disk at a crash point, valid until the next state is asked for."""

    point: CrashPoint
    image: Path

    def copy_to(self, target: Path) -> None:
        """Make a scratch copy that may be changed; see `copy_image`."""
        copy_image(self.image, target)


def crash_states(
    trace: Trace,
    points: Sequence[CrashPoint],
    *,
    volume: int | None = None,
    folder: Path | None = None,
) -> Generator[CrashState, None, None]:
    """Build the disk at each point by moving forward over one sparse image.

    What a state costs is the distance from the one before, not from the start.

    Parameters
    ----------
    trace : Trace
        With payloads: without the captured bytes there is nothing to judge.
    points : sequence of CrashPoint
        In any order; states come in ascending order of row.
    volume : int, optional
        Id of the volume; needed where the trace has several.
    folder : Path, optional
        Where to make the image; the system's temporary folder where absent.

    Yields
    ------
    CrashState

    Raises
    ------
    InputError
        If the trace has no payloads, a point lies outside it, or the volume is unclear.
    StorageError
        If the scratch space is full.
    """
    judged = system_volume(trace, volume)
    if not trace.has_payload:
        raise InputError(
            "the trace has no captured bytes, so there is no file system to judge",
            hint="use a capture: `vmbk trace capture`, or one of those that come with vmbk",
        )
    outside = [p.row for p in points if not 0 <= p.row <= len(trace)]
    if outside:
        raise InputError(f"crash at row {outside[0]} of a trace of {len(trace)} requests")
    return _states(trace, sorted(points, key=lambda p: p.row), judged, folder)


def _states(
    trace: Trace, points: Sequence[CrashPoint], volume: Volume, folder: Path | None
) -> Generator[CrashState, None, None]:
    from vmbk.disk.raw import RawDisk
    from vmbk.disk.replay import replay

    with (
        tempfile.TemporaryDirectory(prefix="vmbk-crash-", dir=folder) as name,
        ExitStack() as opened,
    ):
        # All volumes move together, so that one moment is one moment on each of them.
        disks = {
            v.id: opened.enter_context(RawDisk.create(Path(name) / f"{v.id}.img", v.size))
            for v in trace.volumes
            if v.size
        }
        row = 0
        for point in points:
            replay(trace, disks, start=row, stop=point.row)
            row = point.row
            yield CrashState(point, disks[volume.id].path)
