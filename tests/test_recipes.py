"""Recipes of real guests: what they bring along, and tiny runs of the shipped ones."""

from __future__ import annotations

import gzip
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from blake3 import blake3

from tests.guest_files import committed, fsck_is_clean, postgresql, sums_hold
from tests.test_capture import END, GUEST, MIB, VOLUME, guest_run, naive_image
from tests.test_dm_log_writes import Entry
from tests.tools import require_guest, require_kernel, require_tool
from vmbk.errors import InputError, ToolMissingError
from vmbk.trace.capture import Recipe, assemble, capture, recipes
from vmbk.trace.capture.guest import build_initramfs, find_files, shared_libraries
from vmbk.trace.schema import Op
from vmbk.trace.store import Trace


def small(name: str, **environment: str) -> Recipe:
    """A shipped recipe with other settings."""
    recipe = Recipe.load(name)
    assert set(environment) <= set(recipe.environment)
    return replace(recipe, environment=recipe.environment | environment)


def run(recipe: Recipe, folder: Path) -> tuple[Trace, Path]:
    """The capture of a recipe of one disk, and the image that the guest left."""
    trace = capture(recipe, folder / "t.parquet", keep=folder)
    image = folder / "volume.raw"
    final = image.read_bytes()
    assert naive_image(trace) == final
    assert trace.provenance["image_digest"] == blake3(final).hexdigest()
    assert fsck_is_clean(image)
    return trace, image


def worked(trace: Trace) -> list[str]:
    """The labels that the workload itself has written."""
    labels = [label for _, label in trace.marks()]
    return labels[labels.index("workload begins") + 1 : labels.index("workload ends")]


# What recipes bring


def test_shipped_recipes_end_within_minutes_and_say_what_they_do() -> None:
    for name in recipes():
        recipe = Recipe.load(name)
        assert recipe.timeout_s <= 900
        assert int(recipe.environment["SEED"]) > 0
        assert 40 < len(recipe.doc) < 400
        assert "\n" not in recipe.doc
        assert recipe.script.startswith("# ")
        # Each disk has a name of its own, so that captures differ by what was done only.
        assert all("uuid=" in " ".join(d.mkfs) or "-U" in d.mkfs for d in recipe.disks)


def test_files_are_found_by_pattern_the_newest_version_first(tmp_path: Path) -> None:
    for version in ("9", "15", "14"):
        folder = tmp_path / "lib" / version / "bin"
        folder.mkdir(parents=True)
        (folder / "server").write_text(version)
        (folder / "below").mkdir()
        (folder / "below" / "more").touch()
    newest = tmp_path / "lib" / "15" / "bin"
    assert find_files(f"{tmp_path}/lib/*/bin/server", "p") == [newest / "server"]
    assert find_files(f"{tmp_path}/lib/*/bin", "p") == [newest / "below/more", newest / "server"]
    assert find_files(f"{tmp_path}/lib/9/bin/server", "p")[0].read_text() == "9"
    with pytest.raises(ToolMissingError, match="apt-get install some-package"):
        find_files(f"{tmp_path}/none/*", "some-package")


@pytest.mark.parametrize("name", ["usr/x", "/", "/usr/../etc/x", "/usr/./x", "/a b", "/usr/", ""])
def test_files_are_named_by_their_whole_path(name: str) -> None:
    with pytest.raises(InputError, match="is no file to bring"):
        replace(Recipe.load("ext4-log"), files={name: "p"})


def test_files_keep_their_place_and_bring_libraries(tmp_path: Path) -> None:
    require_guest()
    cpio, sqlite = require_tool("cpio", "cpio"), require_tool("sqlite3", "sqlite3")
    text = tmp_path / "tree" / "deep" / "text"
    text.parent.mkdir(parents=True)
    text.write_text("text")
    libraries = shared_libraries(sqlite)
    assert len(libraries) > 2
    recipe = replace(
        Recipe.load("ext4-log"), files={str(tmp_path / "tree"): "p", str(sqlite): "sqlite3"}
    )
    raw = gzip.decompress(build_initramfs(recipe, require_kernel()))
    wanted = [str(path).lstrip("/") for path in (text, sqlite, *libraries)]
    guest = tmp_path / "guest"
    guest.mkdir()
    subprocess.run([str(cpio), "-idm", "--quiet", *wanted], input=raw, cwd=guest, check=True)
    for name, mode in zip(wanted, (0o644, *(0o755,) * (1 + len(libraries))), strict=True):
        assert (guest / name).read_bytes() == Path(f"/{name}").read_bytes()
        assert (guest / name).stat().st_mode & 0o777 == mode


def test_a_recipes_digest_knows_its_files() -> None:
    recipe = Recipe.load("ext4-log")
    assert replace(recipe, files={"/usr/x": "p"}).digest != recipe.digest
    assert replace(recipe, files={}).digest == recipe.digest


def test_zeros_behind_the_volume_are_no_mark(tmp_path: Path) -> None:
    # mkfs.xfs wipes the end of the device, whatever size it is told to use.
    wiped: Entry = (END + 16, 16, 0, bytes(8192))
    found = assemble(guest_run(tmp_path, [wiped, *GUEST], ["commit 1", "commit 2 ü"]), [VOLUME], {})
    assert found.marks() == [(2, "commit 1"), (4, "commit 2 ü")]
    assert found.requests.offset.tolist() == [0, 0, 0, 8 * MIB - 4096, 0]


# Tiny runs


@pytest.mark.guest
def test_sqlite_on_xfs(tmp_path: Path) -> None:
    require_guest()
    require_tool("mkfs.xfs", "xfsprogs")
    trace, image = run(small("xfs-sqlite", COMMITS="12", SEED="9"), tmp_path)
    assert worked(trace) == ["tables made", *(f"commit {n}" for n in range(1, 13))]
    assert committed(image) == (12, 12, 100_000)


@pytest.mark.guest
def test_freezing(tmp_path: Path) -> None:
    require_guest()
    trace, image = run(small("ext4-fsfreeze", FREEZES="2", COMMITS="3"), tmp_path)
    assert worked(trace) == [
        "tables made", "commit 1", "commit 2", "commit 3", "frozen 1", "thawing 1",
        "commit 4", "commit 5", "frozen 2", "thawing 2", "commit 6",
    ]  # fmt: skip
    assert committed(image) == (6, 6, 100_000)
    rows = {label: row for row, label in trace.marks()}
    for number in (1, 2):
        between = trace.requests.op[rows[f"frozen {number}"] : rows[f"thawing {number}"]]
        assert Op.WRITE not in between


@pytest.mark.guest
def test_snapshots_of_sqlite(tmp_path: Path) -> None:
    require_guest()
    recipe = small("ext4-sqlite-off", SNAPSHOTS="8", COMMITS="3", PATIENCE="0.5", HELD="0.1")
    trace, image = run(recipe, tmp_path)
    others = [label for label in worked(trace) if not label.startswith("commit ")]
    assert others == [
        "tables made",
        "snapshot 1 none",
        "snapshot 2 freeze", "thawing 2",
        "snapshot 3 quiesce", "thawing 3",
        "snapshot 4 forgotten", "released 4",
        "snapshot 5 none",
        "snapshot 6 freeze", "thawing 6",
        "snapshot 7 quiesce", "thawing 7",
        "snapshot 8 forgotten", "released 8",
    ]  # fmt: skip
    commits = [label for label in worked(trace) if label.startswith("commit ")]
    assert worked(trace)[-1] == commits[-1] == f"commit {len(commits)}"
    assert committed(image) == (len(commits), len(commits), 100_000)


@pytest.mark.guest
def test_trimming(tmp_path: Path) -> None:
    require_guest()
    trace, image = run(small("ext4-trim", ROUNDS="12", FILES="3"), tmp_path)
    assert worked(trace)[5:8] == ["trimmed 6", "discard on", "round 6"]
    assert sums_hold(image, tmp_path / "files") == 9
    rows = {label: row for row, label in trace.marks()}
    discards = (trace.requests.op == Op.DISCARD).nonzero()[0]
    assert (discards < rows["trimmed 6"]).any()
    assert (discards > rows["discard on"]).any()


def require_files(recipe: Recipe) -> None:
    for pattern, package in recipe.files.items():
        try:
            find_files(pattern, package)
        except ToolMissingError:
            require_tool(pattern, package)  # skips the test, or fails it


@pytest.mark.guest
def test_snapshots_of_postgresql(tmp_path: Path) -> None:
    require_guest()
    recipe = small("ext4-quiesce", ROUNDS="3", COMMITS="2", PATIENCE="0.5", HELD="0.1")
    require_files(recipe)
    trace, image = run(recipe, tmp_path)
    others = [label for label in worked(trace) if not label.startswith("commit ")]
    assert others[:13] == [
        "cluster made", "server started", "tables made",
        "synchronous_commit on",
        "snapshot 1 none",
        "snapshot 2 freeze", "thawing 2",
        "backup mode 3", "snapshot 3 quiesce", "thawing 3",
        "backup mode 4", "snapshot 4 forgotten", "released 4",
    ]  # fmt: skip
    assert others[13] == "synchronous_commit off"
    assert others[23] == "synchronous_commit on"
    assert others[27:30] == ["checkpoint 11", "snapshot 11 quiesce", "thawing 11"]
    assert others[-2:] == ["released 12", "server stopped"]
    # One before each snapshot, one at the start of each round and one at the end; two more because
    # two snapshots of the last round fall into a transaction.
    last = 3 * 4 + 3 + 1 + 2
    with postgresql(image) as server:
        assert server.ask("SELECT count(*), max(n) FROM commits") == [str(last)] * 2
        assert server.ask("SELECT sum(balance) FROM accounts") == ["100000"]


@pytest.mark.guest
def test_postgresql(tmp_path: Path) -> None:
    require_guest()
    recipe = small("ext4-postgresql", ROUNDS="1", COMMITS="5", TRANSACTIONS="20")
    require_files(recipe)
    trace, image = run(recipe, tmp_path)
    assert worked(trace) == [
        "cluster made", "server started", "tables made", *(f"commit {n}" for n in range(1, 6)),
        "pgbench 20", "server stopped",
    ]  # fmt: skip
    with postgresql(image) as server:
        assert server.committed() == (5, 5, 100_000, 20)
