"""The laboratory on the shipped captures of real guests: what is good is seen, and what is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.tools import require_tool
from vmbk.consistency import check_image, crash_points, crash_states, crash_test
from vmbk.errors import InputError
from vmbk.trace import Op, Trace, dataset_path, read_trace

STATES = 24


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    require_tool("e2fsck", package="e2fsprogs")
    require_tool("debugfs", package="e2fsprogs")


@pytest.fixture(scope="module")
def capture() -> Trace:
    return read_trace(dataset_path("ext4-sqlite"))


def without(trace: Trace, dropped: np.ndarray, stop: int) -> Trace:
    """The first ``stop`` requests as a disk keeps them that never wrote those of ``dropped``."""
    rows = np.setdiff1d(np.arange(stop), dropped)
    return Trace.from_arrow(
        trace.table.take(rows), volumes=trace.volumes, provenance=trace.provenance
    )


def last_state(trace: Trace, image: Path) -> Path:
    for state in crash_states(trace, crash_points(trace, "request")[-1:]):
        state.copy_to(image)
    return image


@pytest.mark.parametrize("model", ["flush", "request"])
def test_a_power_cut_damages_nothing_and_loses_nothing(capture: Trace, model: str) -> None:
    found = crash_test(capture, model=model, states=STATES, seed=1)
    assert len(found) == STATES
    assert found.commits_lost == 0
    assert [o.details for o in found if not o.consistent] == []
    assert {o.capture for o in found} == {"ext4-sqlite"}
    # Most cuts fall into the workload, where there is a journal to replay and a log to recover.
    assert {(f, d): n for f, d, n in found.counts}["replayed", "recovered"] > STATES // 2
    acknowledged = [o.commits_acknowledged for o in found]
    assert acknowledged == sorted(acknowledged)
    assert acknowledged[-1] > acknowledged[0]
    assert all(o.commits_found - o.commits_acknowledged in (0, 1) for o in found)


def test_after_a_clean_shutdown_there_is_nothing_to_recover(capture: Trace, tmp_path: Path) -> None:
    outcome = check_image(last_state(capture, tmp_path / "disk.img"), capture)
    assert (outcome.filesystem, outcome.database) == ("clean", "clean")
    commits = [label for _, label in capture.marks() if label.startswith("commit ")]
    assert outcome.commits_found == outcome.commits_acknowledged == len(commits)


def test_before_mkfs_is_done_there_is_no_file_system(capture: Trace) -> None:
    done = next(row for row, label in capture.marks() if label == "mkfs done")
    early = list(crash_test(capture[: done + 1], model="request", states=None))
    assert {o.filesystem for o in early[:-1]} == {"none"}
    assert (early[-1].filesystem, early[-1].database) == ("clean", "none")


def test_a_cache_that_lies_about_its_last_flush_loses_commits(
    capture: Trace, tmp_path: Path
) -> None:
    commits = [row for row, label in capture.marks() if label.startswith("commit ")]
    for row in commits[20::60]:
        op = capture.requests.op[:row]
        writes, flushes = np.flatnonzero(op == Op.WRITE), np.flatnonzero(op == Op.FLUSH)
        begin = flushes[flushes < writes[-1]].max()
        lying = without(capture, writes[writes > begin], row + 1)
        outcome = check_image(last_state(lying, tmp_path / "disk.img"), lying)
        assert outcome.commits_lost >= 1, outcome
        assert outcome.database in ("lost", "corrupt")
        assert not outcome.consistent


def test_a_disk_that_forgets_old_writes_is_found_out(capture: Trace, tmp_path: Path) -> None:
    """Half of the writes since the file system was mounted, drawn with a seed, never happened."""
    mounted = next(row for row, label in capture.marks() if label == "mounted")
    values = np.random.default_rng(5)
    for stop in np.linspace(mounted, len(capture), 6).astype(int)[2:]:
        op = capture.requests.op[:stop]
        since = np.flatnonzero((op == Op.WRITE) & (np.arange(stop) > mounted))
        lying = without(capture, values.permutation(since)[: len(since) // 2], int(stop))
        outcome = check_image(last_state(lying, tmp_path / "disk.img"), lying)
        assert not outcome.consistent, outcome


def test_a_capture_without_a_database_is_judged_by_its_file_system() -> None:
    found = crash_test(read_trace(dataset_path("ext4-fragmented")), states=STATES, seed=2)
    assert found.consistent
    assert {o.database for o in found} == {"none"}
    assert "replayed" in {o.filesystem for o in found}


def test_a_disk_without_a_system_is_not_booted(capture: Trace) -> None:
    with pytest.raises(InputError, match="no system on the disk of ext4-sqlite"):
        crash_test(capture, states=1, boot=True)


def test_a_program_of_ones_own_judges_each_disk(capture: Trace) -> None:
    found = crash_test(capture, states=3, command=["test", "-s"])
    assert [o.command for o in found] == ["passed"] * 3
    assert found.to_dict()["command"] == {"passed": 3}
    with pytest.raises(InputError, match="no program"):
        crash_test(capture, states=1, command=["/nonexistent/program"])
