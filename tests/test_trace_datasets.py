"""The shipped captures: what the catalogue says, and what the guests left on their disks."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from tests.guest_files import (
    committed,
    fsck_is_clean,
    is_xfs,
    postgresql,
    replay_journal,
    sums_hold,
)
from tests.test_capture import naive_image
from tests.tools import require_tool
from vmbk import RawDisk, replay
from vmbk.errors import NotFoundError, TraceFormatError
from vmbk.trace.capture import Recipe, recipes
from vmbk.trace.datasets import HOST_RECIPES, _main, dataset_path, datasets, describe
from vmbk.trace.schema import Op
from vmbk.trace.store import Trace, read_trace

MIB = 1 << 20
NAMES = tuple(dataset.name for dataset in datasets())
# Files of the file systems whose workloads end with a list of their files' digests.
LISTED = {"ext4-fileserver": 100, "ext4-log": 4, "ext4-random": 1, "ext4-trim": 20}
COMMITS = {"ext4-fsfreeze": 120, "ext4-sqlite": 400, "xfs-sqlite": 250}


def image_at(trace: Trace, path: Path, label: str | None = None) -> Path:
    """The disk of a trace of one volume, at its end or right after a mark."""
    stop = None if label is None else row_of(trace, label)
    path.write_bytes(naive_image(trace, stop))
    return path


def row_of(trace: Trace, label: str) -> int:
    return {label: row for row, label in trace.marks()}[label]


def numbers(trace: Trace, word: str) -> list[int]:
    """The numbers of the marks that begin with a word, in order."""
    pairs = [label.partition(" ") for _, label in trace.marks()]
    return [int(rest) for first, _, rest in pairs if first == word]


@pytest.fixture(params=NAMES)
def trace(request: pytest.FixtureRequest) -> Trace:
    return read_trace(dataset_path(request.param))


def test_the_catalogue_says_what_the_files_are() -> None:
    listed = datasets()
    assert set(NAMES) <= {*recipes(), *HOST_RECIPES}
    assert not set(recipes()) & set(HOST_RECIPES)
    assert list(NAMES) == sorted(NAMES)
    assert len(NAMES) >= 9
    folder = dataset_path(NAMES[0]).parent
    assert {path.stem for path in folder.glob("*.parquet")} == set(NAMES)
    assert sum(dataset.size for dataset in listed) < 40 * MIB
    for dataset in listed:
        assert dataset.path == dataset_path(dataset.name)
        assert dataset.size == dataset.path.stat().st_size < 10 * MIB
        trace = read_trace(dataset.path)
        here = HOST_RECIPES.get(dataset.recipe)
        recipe = here or Recipe.load(dataset.recipe)
        assert dataset == describe(recipe, trace, dataset.path)
        assert (dataset.rows, dataset.digest) == (len(trace), trace.digest)
        if isinstance(recipe, Recipe):
            assert dataset.volume_size == sum(disk.size for disk in recipe.disks)
            assert dataset.file_system == dataset.name.partition("-")[0]
        else:
            assert (dataset.volume_size, dataset.file_system) == (recipe.size, recipe.file_system)
        assert dataset.acknowledged == len(trace.marks()) - 5
        # The recipe in this version is the one that made the file.
        assert trace.provenance["recipe_digest"] == recipe.digest
    kinds = Counter(dataset.database for dataset in listed)
    assert kinds["SQLite"] >= 3
    assert kinds[None] >= 5
    assert kinds["PostgreSQL"] >= 1


def test_the_command_line_prints_the_catalogue() -> None:
    command = [sys.executable, "-m", "vmbk", "dataset", "list"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    told = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout
    listed = json.loads(told)
    assert list(listed) == ["datasets"]
    # A path is no JSON, but its text is.
    expected = [asdict(dataset) | {"path": str(dataset.path)} for dataset in datasets()]
    assert listed["datasets"] == expected
    table = [line.split() for line in shown.splitlines()]
    for dataset in datasets():
        (row,) = (cells for cells in table if cells[:1] == [dataset.name] and len(cells) > 1)
        assert {dataset.digest[:12], f"{dataset.rows:,}", dataset.file_system} <= set(row)
    sqlite = {d.name: d for d in datasets()}["ext4-sqlite"]
    assert " 64 MiB " in shown
    assert " ".join(sqlite.doc.split()) in " ".join(shown.split())


def test_made_without_names_what_is_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("vmbk.trace.datasets")  # not the function of the name
    made: list[list[str]] = []
    monkeypatch.setattr(module, "make_datasets", lambda names, folder: made.append(list(names)))
    (tmp_path / "ext4-sqlite.parquet").touch()
    for words in ([], ["--all"], ["ext4-log"]):
        _main(words, tmp_path)
    every = [*recipes(), *HOST_RECIPES]
    missing = [name for name in every if name != "ext4-sqlite"]
    assert made == [missing, every, ["ext4-log"]]


def test_unknown_data_sets_and_catalogues(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="'ext5'") as caught:
        dataset_path("ext5")
    assert all(name in caught.value.hint for name in NAMES)
    with pytest.raises(NotFoundError):
        datasets(tmp_path)
    for text in ("", "[]", '{"datasets": [{}]}', '{"datasets": [{"file": "x", "colour": 1}]}'):
        (tmp_path / "catalogue.json").write_text(text)
        with pytest.raises(TraceFormatError, match="damaged"):
            datasets(tmp_path)


def digests_of(trace: Trace) -> dict[str, str]:
    """BLAKE3 of each volume as the guest left it, by the volume's name."""
    if len(trace.volumes) == 1:
        return {trace.volumes[0].name: trace.provenance["image_digest"]}
    return dict(trace.provenance["image_digests"])


def test_replayed_it_is_the_guests_own_disk(trace: Trace, tmp_path: Path) -> None:
    disks = {
        volume.id: RawDisk.create(tmp_path / volume.name, volume.size) for volume in trace.volumes
    }
    replay(trace, disks)
    for disk in disks.values():
        disk.close()
    expected = digests_of(trace)
    assert list(expected) == [volume.name for volume in trace.volumes]
    for name, digest in expected.items():
        assert blake3((tmp_path / name).read_bytes()).hexdigest() == digest
        assert fsck_is_clean(tmp_path / name)
    if len(trace.volumes) == 1:
        assert naive_image(trace) == (tmp_path / trace.volumes[0].name).read_bytes()


def test_its_columns_are_plausible(trace: Trace) -> None:
    summary, r = trace.summary(), trace.requests
    assert trace.metadata.clock == "polled"
    assert r.time_ns[0] == 0
    assert summary.duration_s > 1
    assert len(np.unique(r.time_ns)) > 100
    assert min(summary.writes, summary.flushes) > 34
    assert summary.marks > 20
    assert summary.reads == 0
    labels = [label for _, label in trace.marks()]
    assert labels[:3] == ["mkfs done", "mounted", "workload begins"]
    assert labels[-2:] == ["workload ends", "unmounted"]


def test_nothing_of_the_machine_is_told(trace: Trace) -> None:
    told = json.dumps([trace.provenance, trace.metadata.source_format])
    assert "/" not in told
    where = {"guest_kernel"}
    if trace.provenance["recipe"] in HOST_RECIPES:
        where = {"host", "program", "filesystem"}
    assert {key.removesuffix("s") for key in trace.provenance} == where | {
        "recipe", "recipe_digest", "qemu", "image_digest", "log_byte", "second", "poll_", "made_by",
    }  # fmt: skip


@pytest.mark.parametrize("name", COMMITS)
def test_between_two_acknowledged_commits_the_disk_is_flushed(name: str) -> None:
    trace = read_trace(dataset_path(name))
    rows = [row for row, label in trace.marks() if label.startswith("commit ")]
    assert numbers(trace, "commit") == list(range(1, COMMITS[name] + 1))
    for before, after in itertools.pairwise(rows):
        assert Op.FLUSH in trace.requests.op[before:after]
        assert Op.WRITE in trace.requests.op[before:after]


@pytest.mark.parametrize("name", COMMITS)
def test_the_last_disk_has_every_commit(name: str, tmp_path: Path) -> None:
    image = image_at(read_trace(dataset_path(name)), tmp_path / "image")
    assert is_xfs(image) == name.startswith("xfs")
    assert committed(image) == (COMMITS[name], COMMITS[name], 100_000)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("ext4-sqlite", number) for number in (1, 59, 60, 61, 120, 233, 399, 400)),
        *(("ext4-fsfreeze", number) for number in (1, 40, 77, 120)),
    ],
)
def test_a_disk_cut_at_a_mark_has_the_commit(name: str, number: int, tmp_path: Path) -> None:
    trace = read_trace(dataset_path(name))
    image = image_at(trace, tmp_path / "image", f"commit {number}")
    replay_journal(image)
    assert committed(image) == (number, number, 100_000)


def test_a_frozen_file_system_is_still_and_clean(tmp_path: Path) -> None:
    trace = read_trace(dataset_path("ext4-fsfreeze"))
    assert numbers(trace, "frozen") == numbers(trace, "thawing") == list(range(1, 13))
    for number in (1, 2, 3, 4, 11, 12):
        frozen = row_of(trace, f"frozen {number}")
        between = trace.requests.op[frozen : row_of(trace, f"thawing {number}")]
        assert not np.isin(between, [Op.WRITE, Op.DISCARD, Op.WRITE_ZEROES]).any()
        # No journal to replay, which a cut at another moment leaves.
        image = image_at(trace, tmp_path / f"image{number}", f"frozen {number}")
        assert fsck_is_clean(image)
        assert not needs_recovery(image)
        done = sum(row < frozen for row, label in trace.marks() if label.startswith("commit "))
        # Every second freeze falls into a transaction, of which nothing is seen.
        assert done == number * 10 - (number % 2 == 0)
        assert committed(image) == (done, done, 100_000)
    assert needs_recovery(image_at(trace, tmp_path / "cut", "commit 77"))


def needs_recovery(image: Path) -> bool:
    dumpe2fs = require_tool("dumpe2fs", "e2fsprogs")
    told = subprocess.run([str(dumpe2fs), "-h", str(image)], capture_output=True, check=True)
    return b"needs_recovery" in told.stdout


@pytest.mark.parametrize("name", LISTED)
def test_files_are_what_the_guest_read(name: str, tmp_path: Path) -> None:
    image = image_at(read_trace(dataset_path(name)), tmp_path / "image")
    assert sums_hold(image, tmp_path / "files") >= LISTED[name]


def test_a_disk_cut_at_a_mark_has_the_files_that_were_synced(tmp_path: Path) -> None:
    trace = read_trace(dataset_path("ext4-random"))
    assert numbers(trace, "round") == list(range(1, 101))
    image = image_at(trace, tmp_path / "image", "round 50")
    replay_journal(image)
    assert fsck_is_clean(image)
    debugfs = require_tool("debugfs", "e2fsprogs")
    subprocess.run([str(debugfs), "-R", f"dump /big {tmp_path / 'big'}", str(image)],
                   capture_output=True, check=True)  # fmt: skip
    blocks = np.fromfile(tmp_path / "big", np.uint8).reshape(-1, 4096)
    written = int(blocks.any(axis=1).sum())
    # Half of 800 random writes fall into 819 blocks, the others anywhere in 8192.
    assert written == pytest.approx(819 * (1 - np.exp(-440 / 819)) + 360 - 8, rel=0.06)


def test_the_trim_capture_discards_by_both_ways() -> None:
    trace = read_trace(dataset_path("ext4-trim"))
    discards = np.flatnonzero(trace.requests.op == Op.DISCARD)
    begins, on = row_of(trace, "workload begins"), row_of(trace, "discard on")
    trimmed = [row_of(trace, f"trimmed {number}") for number in numbers(trace, "trimmed")]
    assert len(trimmed) >= 3
    assert ((discards > begins) & (discards < on)).sum() >= len(trimmed)
    assert (discards > on).sum() > 30
    # Before the mount option, only fstrim discards: right before its mark.
    last = [discards[discards < row][-1] for row in trimmed]
    assert all(0 < row - at < 50 for row, at in zip(trimmed, last, strict=True))
    freed = trace.requests.length[discards[discards > begins]].sum()
    assert freed > 8 * MIB


# PostgreSQL


def test_postgresql_starts_on_the_last_disk_and_has_every_transaction(tmp_path: Path) -> None:
    trace = read_trace(dataset_path("ext4-postgresql"))
    assert numbers(trace, "commit") == list(range(1, 241))
    assert numbers(trace, "pgbench") == [200, 400, 600, 800]
    with postgresql(image_at(trace, tmp_path / "image")) as server:
        assert server.committed() == (240, 240, 100_000, 800)
        assert server.ask("SHOW data_checksums") == ["on"]
        assert "recovery" not in server.log()


@pytest.mark.parametrize(("label", "least"), [("commit 100", 200), ("pgbench 400", 400)])
def test_postgresql_recovers_what_was_acknowledged(label: str, least: int, tmp_path: Path) -> None:
    trace = read_trace(dataset_path("ext4-postgresql"))
    image = image_at(trace, tmp_path / "image", label)
    replay_journal(image)
    last = max(
        n for n in numbers(trace, "commit") if row_of(trace, f"commit {n}") <= row_of(trace, label)
    )
    with postgresql(image) as server:
        assert server.committed() == (last, last, 100_000, least)
        assert "redo done" in server.log()
        # Reads every page of every table, and with it the page's checksum.
        counted = server.ask("SELECT sum(abalance) FROM pgbench_accounts")
        assert counted == server.ask("SELECT sum(delta) FROM pgbench_history")


def test_the_fragmented_capture_rewrites_blocks_with_the_same_bytes() -> None:
    trace = read_trace(dataset_path("ext4-fragmented"))
    image, same = bytearray(trace.volumes[0].size), 0
    for i, (op, offset, length) in enumerate(
        zip(trace.requests.op, trace.requests.offset, trace.requests.length, strict=True)
    ):
        if op == Op.WRITE:
            payload = trace.payload(i)
            assert payload is not None
            same += any(payload) and image[offset : offset + length] == payload
            image[offset : offset + length] = payload
    assert same >= 50


def test_functions_are_not_hidden_by_modules_of_their_names() -> None:
    for module in ("capture", "datasets"):
        importlib.import_module(f"vmbk.trace.{module}")
    from vmbk import trace

    assert callable(trace.capture)
    assert tuple(d.name for d in trace.datasets()) == NAMES
    assert trace.capture.__name__ == "capture"
