"""Changes of real guests: which digests would miss them, and which writes changed nothing.

A capture is replayed from backup to backup onto two disks, of which one stays a backup behind.
A change tracker of the real kind watches the other. What it marked is then compared with what the
block held before, byte for byte.

- A marked block that differs is an old and a new content, of which a digest may miss the change.
- A marked block that does not differ was an **identical rewrite**: tracking reports it, and sends
  it unless drill-down or a comparison of digests finds it out; checksum does not see it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from vmbk.detect.scan import bitmap_ranges, default_workers, for_each, touched_units
from vmbk.disk.base import Ranges
from vmbk.disk.raw import RawDisk
from vmbk.disk.replay import replay
from vmbk.disk.tracker import Tracker
from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.study.config import Interval
from vmbk.study.digests import DIGESTS, Digest, Words, chosen, digest_blocks, equal_low_bits, widths
from vmbk.study.misses import OLD_AND_NEW, Blocks, Row, all_pairs, measured
from vmbk.study.results import ResultColumn
from vmbk.study.runner import backup_requests
from vmbk.trace.datasets import datasets, open_trace
from vmbk.trace.table import Trace
from vmbk.units import KIB, MIB, format_size, parse_size, quoted

GUEST: Final = "guest"
"""Kind of the updates that a captured guest made."""

COLUMNS: Final = tuple(
    ResultColumn(*row)
    for row in (
        ("dataset", pl.String, "", "capture that was replayed"),
        ("dataset_digest", pl.String, "", "digest of the capture"),
        ("interval", pl.String, "", "between backups, as declared"),
        ("block_size", pl.Int64, "bytes", "unit of detection; the tracker's is the smallest"),
        ("backups", pl.Int64, "", "incremental backups, over which the rest are sums"),
        ("tracked_bytes", pl.Int64, "bytes", "blocks that the tracker marked"),
        ("differing_bytes", pl.Int64, "bytes", "of these, blocks that differ in any byte"),
        ("checksum_bytes", pl.Int64, "bytes", "of these, blocks whose XXH3-64 differs"),
        ("identical_bytes", pl.Int64, "bytes", "marked blocks that hold data and do not differ: "
         "what tracking sends without drill-down, and checksum does not"),
        ("identical_zero_bytes", pl.Int64, "bytes", "marked blocks that were zeros and still are: "
         "neither sends them"),
        ("differing_sub_blocks", pl.Int64, "",
         "sub-blocks of 4 KiB that differ; 0 for blocks of 4 KiB"),
        ("lone_sub_blocks", pl.Int64, "", "of these, those that are the only one of their block"),
    )
)  # fmt: skip
"""Columns of identical rewrites."""

MISSED: Final = tuple(
    ResultColumn(*row)
    for row in (
        ("dataset", pl.String, "", "capture that was replayed"),
        ("block_size", pl.Int64, "bytes", "of a block"),
        ("digest", pl.String, "", "whole digest that was the same before and after"),
        ("volume", pl.Int64, "", "id of the volume"),
        ("offset", pl.Int64, "bytes", "of the block on the volume"),
        ("structure", pl.String, "", "what begins the block, of `STRUCTURES`, or ''"),
        ("changes", pl.Int64, "", "of the block that were missed"),
    )
)
"""Columns of missed changes."""

STRUCTURES: Final = (
    ("ext4 extent tree", 0, (0xF30A).to_bytes(2, "little")),
    ("ext4 superblock", 1024 + 56, (0xEF53).to_bytes(2, "little")),
    ("PostgreSQL control file", 8, (1300).to_bytes(4, "little")),
)
"""Blocks that carry a CRC-32C of themselves, by name: a signature and where it stands.

Of ext4: its documentation, sections on the extent tree and the super block. Of PostgreSQL 13 to 16:
``pg_control_version`` in ``src/include/catalog/pg_control.h``.
"""

SUB_BLOCK: Final = 4 * KIB
"""Bytes of a sub-block, in which changed blocks are compared."""

_PLACE: Final = {name: i for i, name in enumerate(DIGESTS)}
_BATCH: Final = 16 * MIB


@dataclass(frozen=True)
class CapturedChanges:
    """What captured guests changed, and what they only wrote.

    Attributes
    ----------
    misses : polars.DataFrame
        With the columns of `vmbk.study.misses.COLUMNS`: changes that digests miss, of all captures
        together, and all pairs among the contents that the changed blocks ever had.
    rewrites : polars.DataFrame
        With the columns of `COLUMNS`: a row per capture and block size.
    missed : polars.DataFrame
        With the columns of `MISSED`: a row per block and whole digest that missed its change.
    """

    misses: pl.DataFrame = field(repr=False)
    rewrites: pl.DataFrame = field(repr=False)
    missed: pl.DataFrame = field(repr=False)


def study_captures(
    names: Sequence[str] | None = None,
    digests: Sequence[str] | None = None,
    *,
    interval: str = "10%",
    block_sizes: Sequence[int | str] = ("4KiB", "64KiB"),
    workers: int | None = None,
) -> CapturedChanges:
    """Replay captures, and compare what each block held before and after.

    Parameters
    ----------
    names : sequence of str, optional
        Shipped captures, or files of others; all shipped ones by default. Where a trace has no
        bytes, they are made up, and a rewrite is never identical.
    digests : sequence of str, optional
        Names of `vmbk.study.digests.DIGESTS`; all by default.
    interval : str
        Between backups, as in the declaration of a study: a share of the requests or a time.
    block_sizes : sequence of int or str
        Bytes of a block: powers of two from 4 KiB to 1 MiB.
    workers : int, optional
        Captures at a time; as many as there are processors by default.

    Returns
    -------
    CapturedChanges

    Raises
    ------
    InputError
        If a name is unknown, or a number out of bounds.
    NotFoundError
        If there is no such capture.

    Notes
    -----
    A change that several blocks made, from the same content to the same, is one pair. Contents are
    told apart by all digests together.
    """
    functions = chosen(digests)
    step = Interval.parse(interval, "interval")
    sizes = [_block_size(size) for size in block_sizes]
    found = [d.name for d in datasets()] if names is None else list(dict.fromkeys(names))
    if not found or not sizes:
        raise InputError("there is nothing to replay: no capture, or no block size")
    replayed: dict[int, list[_Sums]] = {}
    with progress("replay captures", len(found), unit="captures") as advance:

        def work(i: int, _: None) -> None:
            replayed[i] = _follow(found[i], open_trace(found[i]), sizes, step)
            advance(1)

        for_each(len(found), work, lambda: None, default_workers() if workers is None else workers)
    rows: list[Row] = []
    for k, size in enumerate(sizes):
        rows += _missed(
            np.concatenate([replayed[i][k].digests for i in range(len(found))]), functions, size
        )
    every = [sums for i in range(len(found)) for sums in replayed[i]]
    return CapturedChanges(
        measured(rows),
        pl.DataFrame([sums.row for sums in every], schema={c.name: c.dtype for c in COLUMNS}),
        _listed(every, functions),
    )


def _missed(pairs: Words, functions: Sequence[Digest], block_size: int) -> list[Row]:
    """Rows of all digests for changes: shape (changes, 2, digests)."""
    pairs = np.unique(pairs, axis=0)
    contents = np.unique(pairs.reshape(-1, len(DIGESTS)), axis=0)
    rows: list[Row] = []
    for digest in functions:
        at = _PLACE[digest.name]
        equal = equal_low_bits(pairs[:, 0, at], pairs[:, 1, at])
        rows += [
            (OLD_AND_NEW, "captures", GUEST, digest.name, n, block_size, len(pairs), int(equal[n]),
             None)
            for n in widths(digest)
        ]  # fmt: skip
    columns = {d.name: np.ascontiguousarray(contents[:, _PLACE[d.name]]) for d in functions}
    return rows + all_pairs(columns, "captures", block_size, None)


def _listed(every: Sequence[_Sums], functions: Sequence[Digest]) -> pl.DataFrame:
    """The table of `MISSED`: changes that whole digests missed."""
    names = [digest.name for digest in functions]
    frame = pl.DataFrame(
        [miss for sums in every for miss in sums.missed if miss[2] in names],
        schema={c.name: c.dtype for c in MISSED if c.name != "changes"}, orient="row",
    )  # fmt: skip
    return frame.group_by(frame.columns, maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("changes")
    )


class _Sums:
    """What is counted of one capture at one block size."""

    def __init__(
        self, name: str, trace: Trace, block_size: int, interval: Interval, backups: int
    ) -> None:
        self.row: dict[str, Any] = {c.name: 0 for c in COLUMNS} | {
            "dataset": name, "dataset_digest": trace.digest, "interval": str(interval),
            "block_size": block_size, "backups": backups,
        }  # fmt: skip
        self.missed: list[tuple[str, int, str, int, int, str]] = []
        self._digests = [np.empty((0, 2, len(DIGESTS)), np.uint64)]

    @property
    def digests(self) -> Words:
        """Of the old and the new content of each change, shape (changes, 2, digests)."""
        return np.concatenate(self._digests)

    def add(self, volume: int, blocks: NDArray[np.intp], old: Blocks, new: Blocks) -> None:
        """Compare blocks that were marked, before and after."""
        from vmbk.kernels.compare import compare_blocks, zero_blocks

        number, size = new.shape
        row, differs, zero = self.row, np.empty(number, np.uint8), np.empty(number, np.uint8)
        compare_blocks(old.reshape(-1), new.reshape(-1), size, differs)
        zero_blocks(new.reshape(-1), size, zero)
        changed, empty = differs.view(bool), zero.view(bool)
        before, after = old[changed].reshape(-1), new[changed].reshape(-1)
        digests = np.stack([_all_digests(before, size), _all_digests(after, size)], axis=1)
        self._digests.append(digests)
        equal = digests[:, 0] == digests[:, 1]
        row["tracked_bytes"] += number * size
        row["differing_bytes"] += len(before)
        row["checksum_bytes"] += int(np.count_nonzero(~equal[:, _PLACE["xxh3-64"]])) * size
        row["identical_bytes"] += int(np.count_nonzero(~changed & ~empty)) * size
        row["identical_zero_bytes"] += int(np.count_nonzero(~changed & empty)) * size
        if size > SUB_BLOCK and len(before):
            subs = np.empty(len(before) // SUB_BLOCK, np.uint8)
            compare_blocks(before, after, SUB_BLOCK, subs)
            per_block = subs.reshape(-1, size // SUB_BLOCK).sum(axis=1, dtype=np.int64)
            row["differing_sub_blocks"] += int(per_block.sum())
            row["lone_sub_blocks"] += int(np.count_nonzero(per_block == 1))
        places, names = blocks[changed] * size, list(DIGESTS)
        self.missed += [
            (row["dataset"], size, names[k], volume, int(places[i]),
             _structure(after[i * size : (i + 1) * size]))
            for i, k in np.argwhere(equal).tolist()
        ]  # fmt: skip


def _all_digests(data: NDArray[np.uint8], block_size: int) -> Words:
    """Of each block, shape (blocks, digests)."""
    return np.stack([digest_blocks(data, block_size, d) for d in DIGESTS.values()], axis=1)


def _structure(block: NDArray[np.uint8]) -> str:
    """What a block is by its signature, "" where it has none of `STRUCTURES`."""
    for name, at, signature in STRUCTURES:
        if block[at : at + len(signature)].tobytes() == signature:
            return name
    return ""


def _follow(name: str, trace: Trace, sizes: Sequence[int], interval: Interval) -> list[_Sums]:
    """Replay one capture from backup to backup, and count at every block size."""
    stops = backup_requests(trace, interval)
    every = [_Sums(name, trace, size, interval, len(stops) - 1) for size in sizes]
    with tempfile.TemporaryDirectory(prefix="vmbk-rewrites-") as folder, ExitStack() as stack:
        volumes = [_Pair(stack, Path(folder), v.id, v.size, min(sizes))
                   for v in trace.volumes if v.size]  # fmt: skip
        now, before = {v.id: v.now for v in volumes}, {v.id: v.before for v in volumes}
        for disks in (now, before):
            replay(trace, disks, stop=stops[0])
        for volume in volumes:
            volume.tracked()
        for start, stop in pairwise(stops):
            replay(trace, now, start=start, stop=stop)
            for volume in volumes:
                marked = volume.tracked()
                for sums in every:
                    for blocks, old, new in volume.contents(marked, sums.row["block_size"]):
                        sums.add(volume.id, blocks, old, new)
            replay(trace, before, start=start, stop=stop)
    return every


class _Pair:
    """A volume twice: as it is, with a tracker, and as it was at the last backup."""

    def __init__(
        self, stack: ExitStack, folder: Path, number: int, size: int, granularity: int
    ) -> None:
        self.id = number
        self.now = stack.enter_context(RawDisk.create(folder / f"now-{number}.raw", size))
        self.before = stack.enter_context(RawDisk.create(folder / f"before-{number}.raw", size))
        self._tracker: Tracker = self.now.start_tracking(granularity)
        self._base = self._tracker.checkpoint()

    def tracked(self) -> Ranges:
        """What was written since the last call."""
        closed = self._tracker.checkpoint()
        found = self._tracker.changed_since(self._base, until=closed)
        self._base = closed
        return bitmap_ranges(found.bits, found.granularity, self.now.size)

    def contents(
        self, marked: Ranges, unit: int
    ) -> Iterator[tuple[NDArray[np.intp], Blocks, Blocks]]:
        """The blocks that were marked, some at a time, with old and new content."""
        blocks = np.flatnonzero(touched_units(marked, unit, self.now.size))
        step = max(_BATCH // unit, 1)
        for at in range(0, len(blocks), step):
            some = blocks[at : at + step]
            yield some, self._read(self.before, some, unit), self._read(self.now, some, unit)

    def _read(self, disk: RawDisk, blocks: NDArray[np.intp], unit: int) -> Blocks:
        """Content of blocks, shape (blocks, bytes); zeros follow the end of the disk."""
        data = np.zeros((len(blocks), unit), np.uint8)
        cuts = np.flatnonzero(np.diff(blocks) != 1) + 1
        for run in np.split(np.arange(len(blocks)), cuts):  # one read for blocks side by side
            offset = int(blocks[run[0]]) * unit
            part = data[run[0] : run[-1] + 1].reshape(-1)
            disk.read_into(offset, part[: min(len(part), disk.size - offset)])
        return data


def _block_size(value: int | str) -> int:
    size = parse_size(value)
    if not 4 * KIB <= size <= MIB or size & (size - 1):
        raise InputError(
            f"the block size must be a power of two from {format_size(4 * KIB)} to 1 MiB, "
            f"not {quoted(value)}"
        )
    return size
