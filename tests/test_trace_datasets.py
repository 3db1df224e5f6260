"""The shipped captures: what the catalogue says, and what the guests left on their disks."""

from __future__ import annotations

import itertools
import json
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from tests.test_capture import naive_image
from tests.tools import require_tool
from vmbk.errors import NotFoundError, TraceFormatError
from vmbk.trace.capture import Recipe
from vmbk.trace.datasets import dataset_path, datasets
from vmbk.trace.schema import Op
from vmbk.trace.store import Trace, read_trace

MIB = 1 << 20
NAMES = ("ext4-fragmented", "ext4-sqlite")


def fsck_is_clean(image: Path) -> bool:
    e2fsck = require_tool("e2fsck", "e2fsprogs")
    return subprocess.run([str(e2fsck), "-fn", str(image)], capture_output=True).returncode == 0


def committed(image: Path) -> tuple[int, int, int]:
    """Rows and largest number of ``commits``, sum of ``accounts``, in the image's database.

    Tables that are not there count as zeros.
    """
    debugfs = require_tool("debugfs", "e2fsprogs")
    folder = image.parent / f"{image.name}-files"
    folder.mkdir()
    for name in ("data.db", "data.db-wal"):
        subprocess.run([str(debugfs), "-R", f"dump /{name} {folder / name}", str(image)],
                       capture_output=True, check=True)  # fmt: skip
    connection = sqlite3.connect(folder / "data.db")
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows, last = connection.execute("SELECT count(*), max(n) FROM commits").fetchone()
        (balance,) = connection.execute("SELECT sum(balance) FROM accounts").fetchone()
    finally:
        connection.close()
    return rows, last or 0, balance


@pytest.fixture(params=NAMES)
def trace(request: pytest.FixtureRequest) -> Trace:
    return read_trace(dataset_path(request.param))


def test_the_catalogue_says_what_the_files_are() -> None:
    listed = datasets()
    assert tuple(d.name for d in listed) == NAMES
    for dataset in listed:
        assert dataset.path == dataset_path(dataset.name)
        assert dataset.size == dataset.path.stat().st_size < 4 * MIB
        trace = read_trace(dataset.path)
        assert (dataset.rows, dataset.digest) == (len(trace), trace.digest)
        recipe = Recipe.load(dataset.recipe)
        assert dataset.doc == recipe.doc
        # The recipe in this version is the one that made the file.
        assert trace.provenance["recipe_digest"] == recipe.digest


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


def test_replayed_it_is_the_guests_own_disk(trace: Trace, tmp_path: Path) -> None:
    image = naive_image(trace)
    assert blake3(image).hexdigest() == trace.provenance["image_digest"]
    (tmp_path / "image").write_bytes(image)
    assert fsck_is_clean(tmp_path / "image")


def test_its_columns_are_plausible(trace: Trace) -> None:
    summary, r = trace.summary(), trace.requests
    assert trace.metadata.clock == "polled"
    assert r.time_ns[0] == 0
    assert summary.duration_s > 1
    assert len(np.unique(r.time_ns)) > 100
    assert min(summary.writes, summary.flushes, summary.marks) > 40
    assert summary.discards > 0
    assert summary.reads == 0
    labels = [label for _, label in trace.marks()]
    assert labels[:3] == ["mkfs done", "mounted", "workload begins"]
    assert labels[-2:] == ["workload ends", "unmounted"]


def test_nothing_of_the_machine_is_told(trace: Trace) -> None:
    told = json.dumps([trace.provenance, trace.metadata.source_format])
    assert "/" not in told
    assert set(trace.provenance) == {
        "recipe", "recipe_digest", "guest_kernel", "qemu", "image_digest", "log_bytes", "seconds",
        "poll_s", "made_by",
    }  # fmt: skip


def test_between_two_acknowledged_commits_the_disk_is_flushed() -> None:
    trace = read_trace(dataset_path("ext4-sqlite"))
    rows = [row for row, label in trace.marks() if label.startswith("commit ")]
    assert len(rows) == 400
    for before, after in itertools.pairwise(rows):
        assert Op.FLUSH in trace.requests.op[before:after]
        assert Op.WRITE in trace.requests.op[before:after]


@pytest.mark.parametrize("number", [1, 59, 60, 61, 120, 233, 399, 400])
def test_a_disk_cut_at_a_mark_has_the_commit(number: int, tmp_path: Path) -> None:
    e2fsck = require_tool("e2fsck", "e2fsprogs")
    trace = read_trace(dataset_path("ext4-sqlite"))
    row = {label: row for row, label in trace.marks()}[f"commit {number}"]
    image = tmp_path / "image"
    image.write_bytes(naive_image(trace, row))
    repaired = subprocess.run([str(e2fsck), "-fy", str(image)], capture_output=True)
    assert repaired.returncode in (0, 1)  # 1: the journal was replayed
    rows, last, balance = committed(image)
    assert (rows, last, balance) == (number, number, 100_000)


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
    import importlib

    for module in ("capture", "datasets"):
        importlib.import_module(f"vmbk.trace.{module}")
    from vmbk import trace

    assert callable(trace.capture)
    assert [d.name for d in trace.datasets()] == list(NAMES)
    assert trace.capture.__name__ == "capture"
