"""Raw disk, snapshots and tracker together, against bytes and sets of blocks."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.disk_conformance import read
from tests.test_tracker import GRAIN, SIZE, blocks, reason
from vmbk.disk import sidecar, tracking_state
from vmbk.disk.raw import RawDisk
from vmbk.disk.snapshot import Snapshot
from vmbk.disk.tracker import Lost, Tracker


class Base:
    def __init__(self, tracker: str, generation: int, content: bytes) -> None:
        self.key = tracker, generation
        self.content = content
        self.snapshot: Snapshot | None = None


class TrackedDisk(RuleBasedStateMachine):
    """A tracked raw disk with snapshots against bytes and sets."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.image = Path(self.folder.name) / "d.raw"
        self.disk: RawDisk | None = None
        self.content = bytearray(SIZE)
        self.touched: dict[int, set[int]] = {0: set(), 1: set()}  # by generation; the last is open
        self.bases: list[Base] = []
        self.refused: dict[tuple[str, int], Lost] = {}
        self.lost_ids: list[str] = []
        self.writing = False

    @initialize()
    def make(self) -> None:
        self.disk = RawDisk.create(self.image, SIZE)
        self.disk.start_tracking(GRAIN)

    def teardown(self) -> None:
        if self.disk is not None:
            self.disk.close()
        self.folder.cleanup()

    @property
    def tracker(self) -> Tracker:
        tracker = self.disk.tracker if self.disk is not None else Tracker.load(self.image)
        assert tracker is not None
        return tracker

    def touch(self, offset: int, length: int) -> None:
        if length:
            self.writing = True
            last = (offset + length - 1) // GRAIN
            self.touched[max(self.touched)] |= set(range(offset // GRAIN, last + 1))

    places = st.integers(0, SIZE)
    lengths = st.one_of(st.integers(0, 10), st.integers(0, 100_000))

    @precondition(lambda self: self.disk)
    @rule(offset=places, length=lengths, value=st.integers(0, 255))
    def write(self, offset: int, length: int, value: int) -> None:
        length = min(length, SIZE - offset)
        self.disk.write(offset, bytes([value]) * length)
        self.content[offset : offset + length] = bytes([value]) * length
        self.touch(offset, length)

    @precondition(lambda self: self.disk)
    @rule(offset=places, length=lengths)
    def zero(self, offset: int, length: int) -> None:
        length = min(length, SIZE - offset)
        self.disk.zero(offset, length)
        self.content[offset : offset + length] = bytes(length)
        self.touch(offset, length)

    @precondition(lambda self: self.disk)
    @rule(requests=st.lists(st.tuples(places, st.integers(1, 9000)), min_size=1, max_size=5))
    def write_batch(self, requests: list[tuple[int, int]]) -> None:
        requests = [(o, min(n, SIZE - o)) for o, n in requests if o < SIZE]
        if not requests:
            return
        offsets, lengths = (np.array(column, np.int64) for column in zip(*requests, strict=True))
        data = np.random.default_rng(int(lengths.sum())).integers(
            0, 256, int(lengths.sum()), np.uint8
        )
        starts = np.cumsum(lengths) - lengths
        self.disk.write_batch(offsets, lengths, data, starts)
        for offset, length, start in zip(offsets, lengths, starts, strict=True):
            self.content[offset : offset + length] = data[start : start + length].tobytes()
            self.touch(int(offset), int(length))

    def add_base(self, generation: int) -> Base:
        assert generation == max(self.touched)
        self.touched[generation + 1] = set()
        base = Base(self.tracker.id, generation, bytes(self.content))
        self.bases.append(base)
        return base

    @precondition(lambda self: self.disk)
    @rule()
    def take_snapshot(self) -> None:
        snapshot = self.disk.snapshot(self.folder.name)
        self.add_base(snapshot.generation).snapshot = snapshot
        assert self.bases[-1].key == (snapshot.tracker_id, snapshot.generation)

    @rule()
    def checkpoint(self) -> None:
        tracker = self.tracker
        generation = tracker.checkpoint()
        assert self.add_base(generation).key == (tracker.id, generation)

    @precondition(lambda self: self.bases)
    @rule(data=st.data(), base=st.booleans())
    def delete_snapshot(self, data: st.DataObject, base: bool) -> None:
        chosen = data.draw(st.sampled_from(self.bases))
        if chosen.snapshot is not None and not chosen.snapshot.deleted:
            chosen.snapshot.delete(base=base)
        elif base:
            self.tracker.delete_snapshot(chosen.key[1])
        if base:
            self.bases.remove(chosen)
            self.refused[chosen.key] = Lost.BASE_DELETED

    @precondition(lambda self: len(self.bases) > 1)
    @rule()
    def reset(self) -> None:
        self.tracker.reset()
        self.refuse_all_before(len(self.bases) - 1, Lost.GENERATION_MISMATCH)

    @precondition(lambda self: self.bases)
    @rule(data=st.data())
    def forget_before(self, data: st.DataObject) -> None:
        keep = data.draw(st.integers(0, len(self.bases) - 1))
        self.tracker.forget_before(self.bases[keep].key[1])
        self.refuse_all_before(keep, Lost.GENERATION_MISMATCH)

    def refuse_all_before(self, keep: int, why: Lost) -> None:
        first = self.bases[keep]
        for base in self.bases[:keep]:
            self.refused[base.key] = why
        # Those that were deleted before are now unknown altogether.
        for tracker, generation in self.refused:
            if tracker == first.key[0] and generation < first.key[1]:
                self.refused[tracker, generation] = why
        del self.bases[:keep]

    @precondition(lambda self: self.disk)
    @rule()
    def close(self) -> None:
        self.disk.close()
        self.disk, self.writing = None, False

    @precondition(lambda self: self.disk is None)
    @rule()
    def reopen(self) -> None:
        self.disk = RawDisk(self.image, "rw")

    def lose(self, tracker: str, why: Lost) -> None:
        """All bases of the tracker are gone; the next one is taken under a new id."""
        for key in [base.key for base in self.bases] + list(self.refused):
            if key[0] == tracker:
                self.refused[key] = why
        self.lost_ids.append(tracker)
        for key in self.refused:
            if key[0] in self.lost_ids[: -tracking_state.MAX_LOSSES]:
                self.refused[key] = Lost.GENERATION_MISMATCH
        self.bases.clear()
        now = self.tracker.generation
        self.touched = {now - 1: set(), now: set()}

    @precondition(lambda self: self.disk)
    @rule()
    def lose_the_session(self) -> None:
        """As a kill does to the disk: the descriptor closes, nothing is saved."""
        tracker = self.tracker.id
        for base in self.bases:
            base.snapshot = None
        self.disk = None
        gc.collect()
        if self.writing:
            self.lose(tracker, Lost.UNCLEAN)
        self.writing = False

    @precondition(lambda self: self.disk is None)
    @rule(offset=st.integers(0, SIZE - 1))
    def foreign_write(self, offset: int) -> None:
        tracker = self.tracker.id
        fd = os.open(self.image, os.O_WRONLY)
        os.pwrite(fd, b"F", offset)
        os.close(fd)
        self.content[offset] = ord("F")
        if tracker == self.saved_id():  # else it was lost already, and still says that reason
            self.lose(tracker, Lost.FOREIGN_WRITE)

    def saved_id(self) -> str:
        stored = sidecar.load(sidecar.sidecar_path(self.image), SIZE)
        assert stored is not None
        return stored.state.id

    @invariant()
    def content_is_right(self) -> None:
        if self.disk is None:
            assert not self.image.exists() or self.image.read_bytes() == self.content
            return
        assert read(self.disk).tobytes() == self.content
        for base in self.bases:
            if base.snapshot is not None and not base.snapshot.deleted:
                assert read(base.snapshot).tobytes() == base.content

    @invariant()
    def tracking_is_right(self) -> None:
        if not self.image.exists():
            return
        tracker = self.tracker
        for base in self.bases:
            generation = base.key[1]
            tracker.verify_base(*base.key, SIZE)
            found = blocks(tracker.changed_since(generation))
            now, then = (np.frombuffer(c, np.uint8) for c in (bytes(self.content), base.content))
            assert set((np.flatnonzero(now != then) // GRAIN).tolist()) <= found
            since = [marks for n, marks in self.touched.items() if n > generation]
            assert found == set().union(*since)
            for later in self.bases:
                until = later.key[1]
                if until >= generation:
                    between = [m for n, m in self.touched.items() if generation < n <= until]
                    assert blocks(tracker.changed_since(generation, until)) == set().union(*between)
        for key, why in self.refused.items():
            assert reason(lambda key=key: tracker.verify_base(*key, SIZE)) is why


TrackedDisk.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
TestTrackedDisk = TrackedDisk.TestCase
