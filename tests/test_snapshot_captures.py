"""The captures of snapshots: freezing done right, done wrong and not done, as the disks tell it."""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.tools import require_tool
from vmbk import RawDisk, replay
from vmbk.consistency.checkers import CheckContext
from vmbk.consistency.ext4 import Ext4Checker, Superblock
from vmbk.consistency.postgres_server import POSTGRES
from vmbk.consistency.postgresql import PostgresChecker, PostgresSpec
from vmbk.consistency.scratch import copy_image
from vmbk.consistency.sqlite import DatabaseSpec, DatabaseVerdict, Invariant, SqliteChecker
from vmbk.errors import ToolMissingError
from vmbk.trace.datasets import dataset_path
from vmbk.trace.schema import Op
from vmbk.trace.store import Trace, read_trace

MODES = ("none", "freeze", "quiesce", "forgotten")
BALANCES = Invariant("accounts", "balance", 100_000)
SQLITE = DatabaseSpec("/data.db", invariant=BALANCES)
POSTGRESQL = PostgresSpec("/data", invariant=BALANCES)


@dataclass(frozen=True)
class Snapshot:
    """A mark ``snapshot N MODE`` and the commits acknowledged before it."""

    number: int
    mode: str
    row: int
    acknowledged: tuple[int, ...]


def snapshots(trace: Trace) -> list[Snapshot]:
    found: list[Snapshot] = []
    commits: list[int] = []
    for row, label in trace.marks():
        if match := re.fullmatch(r"commit (\d+)", label):
            commits.append(int(match[1]))
        if match := re.fullmatch(r"snapshot (\d+) (\w+)", label):
            found.append(Snapshot(int(match[1]), match[2], row, tuple(commits)))
    return found


def images(
    trace: Trace, chosen: Sequence[Snapshot], folder: Path
) -> Iterator[tuple[Snapshot, Path]]:
    """The disk at each of these snapshots, as a copy of its own."""
    row = 0
    with RawDisk.create(folder / "disk", trace.volumes[0].size) as disk:
        for snapshot in sorted(chosen, key=lambda s: s.row):
            replay(trace, disk, start=row, stop=snapshot.row)
            row = snapshot.row
            copy = folder / f"snapshot-{snapshot.number}"
            copy_image(folder / "disk", copy)
            yield snapshot, copy
            copy.unlink()


def after(trace: Trace, snapshot: Snapshot) -> tuple[str, int]:
    """The label and row of the mark that follows a snapshot."""
    return next((label, row) for row, label in trace.marks() if row > snapshot.row)


@pytest.mark.parametrize(("name", "count"), [("ext4-sqlite-off", 64), ("ext4-quiesce", 48)])
def test_snapshots_come_in_turn_and_what_is_frozen_is_still(name: str, count: int) -> None:
    trace = read_trace(dataset_path(name))
    found = snapshots(trace)
    assert [s.number for s in found] == list(range(1, count + 1))
    assert [s.mode for s in found] == list(itertools.islice(itertools.cycle(MODES), count))
    commits = [int(label[7:]) for _, label in trace.marks() if label.startswith("commit ")]
    assert commits == list(range(1, len(commits) + 1))
    for snapshot in found:
        label, row = after(trace, snapshot)
        ends = {"none": "commit", "forgotten": f"released {snapshot.number}"}
        assert label.startswith(ends.get(snapshot.mode, f"thawing {snapshot.number}"))
        if snapshot.mode == "none":
            continue
        between = trace.requests.op[snapshot.row : row]
        assert not np.isin(between, [Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES]).any()
        # Nothing is acknowledged until it ends, which a forgotten one does late.
        held_s = (trace.requests.time_ns[row] - trace.requests.time_ns[snapshot.row]) / 1e9
        assert held_s > (1.9 if snapshot.mode == "forgotten" else 0.15)


def test_sqlite_without_syncs_is_as_good_as_what_was_done_before_the_snapshot(
    tmp_path: Path,
) -> None:
    for name in ("e2fsck", "debugfs"):
        require_tool(name, "e2fsprogs")
    trace = read_trace(dataset_path("ext4-sqlite-off"))
    outcomes: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    lost: Counter[str] = Counter()
    chosen = [s for s in snapshots(trace) if s.mode == "none" or (s.number - 1) % 32 < 8]
    for snapshot, image in images(trace, chosen, tmp_path):
        context = CheckContext(tmp_path, True, np.array(snapshot.acknowledged, np.int64))
        filesystem = Ext4Checker().check(image, context)
        database = SqliteChecker(SQLITE).check(image, context)
        mode = snapshot.mode
        if mode == "freeze" and (snapshot.number - 1) // 4 % 2:
            mode = "freeze within a transaction"
        outcomes[mode][filesystem.state, database.state] += 1
        lost[mode] += database.commits_lost
        if mode != "none":
            # Nothing more than was acknowledged, either: nothing was on its way.
            assert database.commits_found == snapshot.acknowledged[-1]
    assert outcomes["freeze"] == {("clean", "clean"): 2}
    assert outcomes["freeze within a transaction"] == {("clean", "recovered"): 2}
    assert outcomes["quiesce"] == outcomes["forgotten"] == {("clean", "clean"): 4}
    assert not any(lost[mode] for mode in outcomes if mode != "none")
    # The journal of the file system holds: it is the data that nobody asked it to keep.
    none = outcomes["none"]
    assert none.total() == 16
    assert {filesystem for filesystem, _ in none} == {"replayed"}
    assert none["replayed", "corrupt"] >= 3
    assert none["replayed", "lost"] >= 3
    assert lost["none"] > 16


def test_freezing_a_file_system_does_not_save_what_postgresql_has_not_written(
    tmp_path: Path,
) -> None:
    for name in ("e2fsck", "debugfs"):
        require_tool(name, "e2fsprogs")
    try:
        POSTGRES.find(15)
    except ToolMissingError as error:
        require_tool("postgres", error.package)
    trace = read_trace(dataset_path("ext4-quiesce"))
    said = [label for _, label in trace.marks() if label.startswith("synchronous_commit ")]
    assert said == [f"synchronous_commit {on}" for on in ("on", "off")] * 6
    found: dict[str, list[DatabaseVerdict]] = {}
    # Off twice: outside and within a transaction, in backup mode and at a checkpoint.
    chosen = [s for s in snapshots(trace) if s.number > 36]
    for snapshot, image in images(trace, chosen, tmp_path):
        superblock = Superblock.read(image)
        assert superblock is not None
        # Files deleted while a server has them open wait for their release, frozen or not.
        assert superblock.needs_recovery == (snapshot.mode == "none")
        context = CheckContext(tmp_path, True, np.array(snapshot.acknowledged, np.int64))
        assert Ext4Checker().check(image, context).state in ("clean", "replayed")
        on = "on" if (snapshot.number - 1) // 4 % 2 == 0 else "off"
        verdict = PostgresChecker(POSTGRESQL).check(image, context)
        found.setdefault(f"{snapshot.mode} {on}", []).append(verdict)
    assert set(found) == {f"{mode} {on}" for mode in MODES for on in ("on", "off")}
    for mode in ("none", "freeze"):
        assert {verdict.state for verdict in found[f"{mode} on"]} == {"recovered"}
        # What the server writes out every fifth of a second, thrice that at most.
        lost = [verdict.commits_lost for verdict in found[f"{mode} off"]]
        assert 0 < max(lost) < 20
        assert {verdict.state for verdict in found[f"{mode} off"]} <= {"lost", "recovered"}
    for mode, on in itertools.product(("quiesce", "forgotten"), ("on", "off")):
        assert {verdict.state for verdict in found[f"{mode} {on}"]} == {"recovered"}
