"""The vault in its own laboratory: what was acknowledged before a power cut restores after it."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.test_capture_host import require_host
from tests.test_consistency_checkers import debugfs, overwrite, tool
from tests.tools import require_tool
from vmbk.consistency.checkers import Checker
from vmbk.consistency.crash import MODELS, crash_points, crash_states
from vmbk.consistency.ext4 import Ext4Checker
from vmbk.consistency.scratch import copy_image
from vmbk.consistency.vault_checker import (
    THE_VAULT,
    PointMark,
    VaultChecker,
    VaultMarks,
    VaultVerdict,
)
from vmbk.consistency.vault_laboratory import vault_crash_test
from vmbk.errors import InputError
from vmbk.trace import Op, Trace, dataset_path, read_trace
from vmbk.trace.capture.host import capture_host

MIB = 1 << 20
POINTS = 15
STATES = 12
HONEST = [model for model in MODELS if model not in ("lying", "apart")]


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    require_tool("e2fsck", package="e2fsprogs")
    require_tool("debugfs", package="e2fsprogs")


@pytest.fixture(scope="module")
def capture() -> Trace:
    return read_trace(dataset_path("vault"))


@pytest.fixture(scope="module")
def marks(capture: Trace) -> VaultMarks:
    return VaultMarks.read(capture)


@pytest.fixture(scope="module")
def last(capture: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk at the end of the capture."""
    image = tmp_path_factory.mktemp("last") / "disk.img"
    for state in crash_states(capture, crash_points(capture, "request")[-1:]):
        state.copy_to(image)
    return image


def judged(image: Path, marks: VaultMarks, row: int, *, resume: bool = False) -> VaultVerdict:
    """The verdict on an image, as if everything before ``row`` had been acknowledged."""
    context = marks.context(row, image.parent)
    Ext4Checker().check(image, context)
    return VaultChecker(marks, resume=resume).check(image, context)


# What the capture is


def test_the_marks_tell_of_a_whole_life(capture: Trace, marks: VaultMarks, tmp_path: Path) -> None:
    labels = [label for _, label in capture.marks()]
    assert labels.count("vault made") == labels.count("pruned") == 1
    assert labels.count("killed before") == 1
    assert labels.count("killed after") == 2
    assert len(marks.points) == POINTS
    assert len({point.id for point in marks.points}) == POINTS
    assert {len(point.digests) for point in marks.points} == {1, 2}
    (forgotten,) = [point for point in marks.points if point.forgotten_row is not None]
    assert forgotten.row < forgotten.forgotten_row
    # An unchanged disk has the same digest in the point that follows.
    assert marks.points[0].digests == marks.points[1].digests
    whole = marks.context(len(capture), tmp_path).acknowledged
    assert whole.tolist() == [
        n for n in range(POINTS + 1) if n == THE_VAULT or marks.points[n - 1] is not forgotten
    ]
    at = marks.context(forgotten.forgotten_row, tmp_path).acknowledged
    assert marks.points.index(forgotten) + 1 in at
    assert marks.context(0, tmp_path).filesystem_made is False


def test_before_each_acknowledgement_the_disk_is_flushed(capture: Trace, marks: VaultMarks) -> None:
    r = capture.requests
    for point in marks.points:
        last_write = np.flatnonzero(r.op[: point.row] == Op.WRITE)[-1]
        manifest = np.flatnonzero(r.op[: point.row] == Op.FLUSH)[-1]
        # Writes of another job, or of the kernel's own accord, may follow the manifest's flush.
        assert point.row - manifest < 60, (point, last_write)


def test_large_packs_were_written_at_once(capture: Trace) -> None:
    """Direct I/O: the data of two packs of 1 MiB came as a few large requests."""
    r = capture.requests
    large = (r.op == Op.WRITE) & (r.length >= 128 * 1024)
    assert int(r.length[large].sum()) >= 2 * MIB


# Honest disks


@pytest.mark.parametrize("model", HONEST)
def test_no_power_cut_loses_an_acknowledged_point(capture: Trace, model: str) -> None:
    found = vault_crash_test(capture, model=model, states=STATES, seed=5, resume=2)
    assert [o.details for o in found if o.vault not in ("none", "opens")] == []
    assert {o.filesystem for o in found} <= {"none", "clean", "replayed"}
    assert (found.points_lost, found.consistent) == (0, True)
    assert 1 <= sum(o.resumed for o in found) <= 2  # not where there was no vault yet
    acknowledged = [o.points_acknowledged for o in found]
    assert max(acknowledged) >= POINTS - 2
    # One job, or two at once, may have made points of which nobody was told yet; one that is being
    # deleted may still be there.
    assert {o.points_found - o.points_acknowledged for o in found} <= {0, 1, 2}
    assert found.frame().height == len(found) == STATES
    assert "0 acknowledged points lost" in found._repr_html_()
    assert sum(row["count"] for row in found.to_dict()["outcomes"]) == STATES


def test_the_last_disk_has_all_of_them(
    capture: Trace, marks: VaultMarks, last: Path, tmp_path: Path
) -> None:
    copy_image(last, tmp_path / "disk.img")
    verdict = judged(tmp_path / "disk.img", marks, len(capture), resume=True)
    assert (verdict.state, verdict.points_found, verdict.points_lost) == ("opens", POINTS - 1, 0)
    assert verdict.resumed
    # Nothing is left behind in the folder for scratch files.
    assert [path.name for path in tmp_path.iterdir()] == ["disk.img"]
    assert isinstance(VaultChecker(marks), Checker)


# Disks that are not honest, and vaults that are broken


def test_a_disk_that_forgets_what_it_flushed_loses_points(
    capture: Trace, marks: VaultMarks, tmp_path: Path
) -> None:
    points = crash_points(capture, "flush")
    image = tmp_path / "disk.img"
    found = set()
    for number in (1, 4, 9, 14):
        # The disk as it was a while before the point was acknowledged.
        row = marks.points[number].row
        stale = [point for point in points if point.row < row][-12:][:1]
        for state in crash_states(capture, stale):
            state.copy_to(image)
        verdict = judged(image, marks, row + 1)
        found.add(verdict.state)
        assert verdict.points_lost >= 1
        assert marks.points[number].id in verdict.detail
    assert found == {"lost"}


@pytest.mark.skipif("lying" not in MODELS, reason="the crash model is not there")
def test_a_cache_that_lies_about_flush_loses_points(capture: Trace) -> None:
    found = vault_crash_test(capture, model="lying", states=20, seed=2)
    assert found.points_lost > 0
    assert not found.consistent


def a_file(image: Path, folder: str) -> str:
    """A plain file below a folder of the image, the last by name."""
    path = folder
    while True:
        said = tool("debugfs", "-R", f"ls -p {path}", image)
        rows = [line.split("/") for line in said.splitlines() if line.startswith("/")]
        names = sorted((row[5], row[2]) for row in rows if not row[5].startswith("."))
        name, mode = names[-1]
        path = f"{path}/{name}"
        if mode.startswith("10"):
            return path


@pytest.mark.parametrize(
    ("what", "state", "said"),
    [
        ("packs", "corrupt", "does not restore|missing"),
        ("index", "corrupt", "in no index file"),
        ("points", "lost", "not listed"),
        ("config", "corrupt", "lost its `config`"),
        ("vault", "lost", "there is no vault"),
        ("file", "corrupt", "not a directory but a regular"),
        ("bytes", "corrupt", "damaged|does not match|not what was stored"),
    ],
)
def test_what_is_broken_is_seen(
    what: str, state: str, said: str, capture: Trace, marks: VaultMarks, last: Path, tmp_path: Path
) -> None:
    image = tmp_path / "disk.img"
    copy_image(last, image)
    if what == "vault":
        debugfs(image, "unlink /vault")
    elif what == "file":
        (tmp_path / "file").write_bytes(b"vault")
        debugfs(image, "unlink /vault", f"write {tmp_path / 'file'} vault")
    elif what == "config":
        debugfs(image, "rm /vault/config")
    elif what == "bytes":  # in the ciphertext of every chunk of every pack
        data = image.read_bytes()
        for found in re.finditer(b"VMBKPACK", data):
            overwrite(image, found.start() + 32 + 64 + 5, b"damage")
    else:
        debugfs(image, f"rm {a_file(image, f'/vault/{what}')}")
    context = marks.context(len(capture), tmp_path)
    verdict = VaultChecker(marks).check(image, context)
    assert verdict.state == state
    assert re.search(said, verdict.detail), verdict.detail
    assert verdict.points_lost >= 1


def test_other_bytes_than_those_backed_up_are_corrupt(
    capture: Trace, marks: VaultMarks, last: Path, tmp_path: Path
) -> None:
    wrong = dataclasses.replace(marks.points[3], digests=("0" * 64,))
    points = (*marks.points[:3], wrong, *marks.points[4:])
    context = marks.context(len(capture), tmp_path)
    verdict = VaultChecker(dataclasses.replace(marks, points=points)).check(last, context)
    assert (verdict.state, verdict.points_lost) == ("corrupt", 1)
    assert wrong.id in verdict.detail
    assert "not those that were backed up" in verdict.detail


def test_a_point_that_nobody_acknowledged_counts_as_well(
    marks: VaultMarks, last: Path, tmp_path: Path
) -> None:
    """It is listed, so it must restore; that it is there needs no acknowledgement."""
    verdict = VaultChecker(marks).check(last, marks.context(marks.points[0].row + 1, tmp_path))
    assert (verdict.state, verdict.points_found) == ("opens", POINTS - 1)


def test_marks_of_another_shape_are_none(tmp_path: Path) -> None:
    labels = [
        "mkfs done", "point 20260101T000000Z-00000000 " + "0" * 63, "forgotten x", "vault made?",
        "point 20260101T000000Z-00000001 " + "a" * 64, "forgotten 20260101T000000Z-00000009",
    ]  # fmt: skip
    trace = Trace.from_columns(
        volumes=read_trace(dataset_path("vault")).volumes,
        op=[Op.MARK] * len(labels), offset=[0] * len(labels), length=[0] * len(labels),
        payload=[label.encode() for label in labels],
    )  # fmt: skip
    marks = VaultMarks.read(trace)
    assert marks == VaultMarks(
        (PointMark("20260101T000000Z-00000001", ("a" * 64,), 4),), vault_row=None, made_row=0
    )
    with pytest.raises(InputError, match="tells of no vault"):
        vault_crash_test(trace)


def test_bad_arguments_are_refused(capture: Trace) -> None:
    with pytest.raises(InputError, match="0 workers"):
        vault_crash_test(capture, workers=0)
    with pytest.raises(InputError, match="-1 states"):
        vault_crash_test(capture, resume=-1)


# Live


# What a vault must not leave out, and what is found where it does.
LEFT_OUT = {
    "nothing": "",
    "syncs of folders": """
from vmbk.vault.store import LocalStore
LocalStore._sync = lambda self, folder: None
""",
    "syncs of files": """
import os, stat
fsync = os.fsync
os.fsync = lambda file: fsync(file) if stat.S_ISDIR(os.fstat(file).st_mode) else None
""",
    "all syncs": "options = ['--durability', 'none']",
}


@pytest.mark.slow
@pytest.mark.parametrize("left_out", LEFT_OUT)
def test_a_live_vault_and_those_that_must_fail(left_out: str, tmp_path: Path) -> None:
    """The vault loses nothing; without its syncs, or without some, the same one loses points."""
    require_host()
    program = f"""
options = []
{LEFT_OUT[left_out]}
from vmbk.consistency.vault_workload import main
main(["--steps", "4", "--seed", "3", *options])
"""
    trace = capture_host([sys.executable, "-c", program], tmp_path / "t.arrow", size=32 * MIB)
    assert len(VaultMarks.read(trace).points) == 3
    found = vault_crash_test(trace, resume=3)
    kinds = {o.vault for o in found}
    if left_out == "nothing":
        assert (found.points_lost, found.consistent) == (0, True)
        assert kinds == {"none", "opens"}
        assert [o.details for o in found if o.filesystem not in ("none", "clean", "replayed")] == []
    else:
        assert found.points_lost > 0
        assert ("corrupt" if left_out == "syncs of files" else "lost") in kinds
    # Once it is unmounted, the disk has all of it.
    assert found.outcomes[-1].vault == "opens"
    assert found.outcomes[-1].points_found == 3
