"""Captures of several disks: recipes that declare them, and one true order of their requests."""

from __future__ import annotations

import importlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.guest_files import PostgreSQL, ext4_tree, replay_journal
from tests.test_capture import own_recipe
from tests.test_dm_log_writes import FLUSH, Entry, write_log
from tests.tools import require_guest, require_tool
from vmbk.errors import InputError, IntegrityError
from vmbk.trace.capture import Recipe, assemble, capture
from vmbk.trace.capture import order as order_module
from vmbk.trace.capture.machine import Run
from vmbk.trace.capture.order import REGION, read_order
from vmbk.trace.datasets import dataset_path
from vmbk.trace.formats.dm_log_writes import read_rows
from vmbk.trace.schema import Op, Volume
from vmbk.trace.store import Trace, read_trace

MIB = 1 << 20
TOML = """
doc = "A database on one disk, its log on another."
timeout = "2m"
[[volumes]]
name = "data"
size = "16MiB"
mkfs = ["mke2fs", "-q", "-F", "-t", "ext4"]
[[volumes]]
name = "redo"
size = "12MiB"
mkfs = ["mke2fs", "-q", "-F", "-t", "ext4", "{disk}", "{kib}k"]
mount = "/redo"
[programs]
mke2fs = "e2fsprogs"
"""


# Recipes


def test_a_recipe_of_several_disks(tmp_path: Path) -> None:
    recipe = Recipe.load(own_recipe(tmp_path, "true\n", TOML))
    assert [(d.name, d.size, d.mount) for d in recipe.disks] == [
        ("data", 16 * MIB, "/mnt"),
        ("redo", 12 * MIB, "/redo"),
    ]
    settings = recipe.settings()
    assert settings["VMBK_VOLUMES"] == "0 1"
    assert settings["VMBK_MKFS_0"] == "/bin/mke2fs -q -F -t ext4 /dev/vda 16384k"
    assert settings["VMBK_MKFS_1"] == "/bin/mke2fs -q -F -t ext4 /dev/vdb 12288k"
    assert settings["VMBK_VOLUME_SIZE"] == str(16 * MIB)


def test_a_recipe_of_one_disk_has_it_among_its_disks() -> None:
    recipe = Recipe.load("ext4-sqlite")
    (disk,) = recipe.disks
    assert (disk.name, disk.size, disk.mkfs, disk.mount) == (
        "disk", 64 * MIB, recipe.mkfs, "/mnt",
    )  # fmt: skip
    assert recipe.settings()["VMBK_MKFS_0"].endswith(" /dev/vda 65536k")


def test_a_key_left_at_its_default_does_not_change_the_digest() -> None:
    recipe = Recipe.load("ext4-sqlite")
    shipped = read_trace(dataset_path("ext4-sqlite"))
    assert recipe.digest == shipped.provenance["recipe_digest"]
    assert replace(recipe, memory=512 * MIB).digest != recipe.digest
    assert replace(recipe, mount_options="discard").digest != recipe.digest


@pytest.mark.parametrize(
    ("old", "new", "quoted"),
    [
        ('"redo"', '"data"', "share a name"),
        ('"/redo"', '"/mnt"', "share a mount"),
        ('"/redo"', '"redo; halt"', "no place to mount"),
        ('"12MiB"', '"4MiB"', "volume size 4194304"),
        ('"redo"', '"../up"', "no name of a volume"),
        ("timeout", 'volume_size = "8MiB"\ntimeout', "one volume and several"),
        ("timeout", 'memory = "64MiB"\ntimeout', "memory 67108864"),
        ("timeout", 'memory = "100000000"\ntimeout', "memory 100000000"),
        ("timeout", 'memory = "9GiB"\ntimeout', "memory 9663676416"),
        ("mount =", "place =", r"unknown keys \['place'\]"),
        ('"/redo"', '"/redo"\noptions = "a b"', "no options of mount"),
        ('"mke2fs", "-q", "-F", "-t", "ext4", "{disk}"', '"mkfs.xfs"', "no program of"),
    ],
)
def test_bad_volumes_are_refused(old: str, new: str, quoted: str, tmp_path: Path) -> None:
    assert old in TOML
    with pytest.raises(InputError, match=quoted):
        Recipe.load(own_recipe(tmp_path, "true\n", TOML.replace(old, new)))


def test_volumes_that_are_no_tables_are_refused(tmp_path: Path) -> None:
    text = TOML[: TOML.index("[[volumes]]")] + 'volumes = "two"\n'
    with pytest.raises(InputError, match="volumes is 'two'"):
        Recipe.load(own_recipe(tmp_path, "true\n", text))


# One order

SMALL = 1 * MIB  # a region, in tests


def sectors(text: str) -> bytes:
    return text.encode().ljust(512, b"\0")


def write_logs(folder: Path, story: list[tuple[int, Entry]]) -> Run:
    """The logs that two disks leave when these entries come one after another."""
    own: list[list[Entry]] = [[], []]
    common: list[Entry] = []
    for disk, entry in story:
        at = len(write_log(own[disk]))
        own[disk].append(entry)
        data = write_log(own[disk])
        common.append(((disk * SMALL + at) // 512, (len(data) - at) // 512, 0, data[at:]))
        if entry[2] & FLUSH:  # as QEMU does: the superblock is written anew, then flushed
            common.append((disk * SMALL // 512, 1, 0, data[:512]))
            common.append((0, 0, FLUSH, b""))
    (folder / "log").write_bytes(write_log(common))
    (folder / "logs").write_bytes(b"".join(write_log(o).ljust(SMALL, b"\0") for o in own))
    size = (folder / "log").stat().st_size
    samples = np.arange(512, size + 512, 512)
    return Run(
        log=folder / "log", logs=folder / "logs", disks=(), marks=[], seconds=1.0, qemu="7.2",
        sample_ns=samples * 10, sample_bytes=samples,
    )  # fmt: skip


VOLUMES = [Volume(0, "data", 8 * MIB), Volume(1, "log", 8 * MIB)]
entries = st.tuples(
    st.integers(0, 1),
    st.one_of(
        st.builds(
            lambda at, n, flush: (at, n, FLUSH if flush else 0, bytes([at % 255 + 1]) * 512 * n),
            st.integers(0, 1000), st.integers(1, 4), st.booleans(),
        ),
        st.just((0, 0, FLUSH, b"")),
    ),
)  # fmt: skip


@given(story=st.lists(entries, max_size=25))
def test_the_order_of_the_requests_is_the_order_of_their_log_entries(
    story: list[tuple[int, Entry]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("order")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_module, "REGION", SMALL)
        trace = assemble(write_logs(folder, story), VOLUMES, {})
    expected = []
    for disk, (at, n, flags, data) in story:
        if flags & FLUSH:
            expected.append((disk, Op.FLUSH, 0, 0, None))
        if n:
            expected.append((disk, Op.WRITE, at * 512, n * 512, data))
    r = trace.requests
    found = [
        (r.volume[i], r.op[i], r.offset[i], r.length[i],
         None if (p := trace.payload(i)) is None else bytes(p))
        for i in range(len(trace))
    ]  # fmt: skip
    assert found == expected
    assert (np.diff(r.time_ns) >= 0).all()
    assert [v.name for v in trace.volumes] == ["data", "log"]


def test_a_request_that_the_common_order_lacks_is_an_integrity_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_module, "REGION", SMALL)
    story: list[tuple[int, Entry]] = [
        (0, (0, 1, 0, sectors("a"))), (1, (0, 1, 0, sectors("b"))), (0, (8, 1, 0, sectors("c"))),
    ]  # fmt: skip
    run = write_logs(tmp_path, story)
    logs = (tmp_path / "logs").read_bytes()
    write_logs(tmp_path, story[:2])
    (tmp_path / "logs").write_bytes(logs)
    with pytest.raises(IntegrityError, match="lacks request 1"):
        assemble(run, VOLUMES, {})


# A whole capture

REDO = """
dd if=/dev/zero of=data bs=4096 count=64 status=none
dd if=/dev/zero of=/redo/log bs=4096 count=64 status=none
sync
n=1
while [ $n -le 20 ]; do
    printf 'redo %d.' $n | dd of=/redo/log bs=4096 seek=$n conv=sync,notrunc,fsync status=none
    mark "commit $n"
    printf 'data %d.' $n | dd of=data bs=4096 seek=$n conv=sync,notrunc,fsync status=none
    n=$((n + 1))
done
fstrim /redo
"""


def naive_images(trace: Trace) -> list[bytes]:
    """Each volume after all requests: what disks are, one request after another."""
    images = {volume.id: bytearray(volume.size) for volume in trace.volumes}
    r = trace.requests
    for i in range(len(trace)):
        image, start = images[int(r.volume[i])], int(r.offset[i])
        end = start + int(r.length[i])
        if r.op[i] == Op.WRITE:
            payload = trace.payload(i)
            assert payload is not None
            image[start:end] = payload
        elif r.op[i] in (Op.DISCARD, Op.WRITE_ZEROES):
            image[start:end] = bytes(end - start)
    return [bytes(images[volume.id]) for volume in trace.volumes]


@pytest.mark.guest
def test_two_disks_are_captured_in_one_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_guest()
    require_tool("qemu-storage-daemon", "qemu-system-common")
    own: dict[int, tuple[int, int]] = {}

    def counting(run: Run, volumes: list[Volume], made: dict[str, object]) -> Trace:
        assert run.logs is not None
        ordered = read_order(run.log, run.logs, len(volumes))
        for id in range(len(volumes)):
            rows = read_rows(run.logs, id * REGION, REGION)
            own[id] = (len(rows.op), int((rows.op == Op.FLUSH).sum()))
            assert len(ordered.rank[id]) == len(rows.op)
        return assemble(run, volumes, made)

    module = importlib.import_module("vmbk.trace.capture")
    monkeypatch.setattr(module, "assemble", counting)
    recipe = own_recipe(tmp_path, REDO, TOML)
    trace = capture(recipe, tmp_path / "t.parquet", keep=tmp_path)
    assert read_trace(tmp_path / "t.parquet").digest == trace.digest

    # Replayed, the volumes are the guest's own disks.
    assert [(v.id, v.name, v.size) for v in trace.volumes] == [
        (0, "data", 16 * MIB), (1, "redo", 12 * MIB),
    ]  # fmt: skip
    finals = [(tmp_path / f"{name}.raw").read_bytes() for name in ("data", "redo")]
    assert naive_images(trace) == finals
    digests = {n: blake3(f).hexdigest() for n, f in zip(("data", "redo"), finals, strict=True)}
    assert trace.provenance["image_digests"] == digests

    # No request of a disk's own log is lost, and each flush is its disk's.
    r = trace.requests
    for id, (count, flushes) in own.items():
        assert (r.volume == id).sum() == count
        assert ((r.volume == id) & (r.op == Op.FLUSH)).sum() == flushes > 20
    assert Op.DISCARD in r.op[r.volume == 1]
    assert (r.volume[r.op == Op.MARK] == 0).all()

    # Cause before effect, across the disks: the record is written and flushed on the second, then
    # acknowledged, then the database is written and flushed on the first.
    marks = {label: row for row, label in trace.marks()}
    for n in range(1, 21):
        redo, data = first_write(trace, 1, f"redo {n}."), first_write(trace, 0, f"data {n}.")
        assert redo < next_flush(trace, 1, redo) < marks[f"commit {n}"] < data
        if n < 20:
            assert next_flush(trace, 0, data) < first_write(trace, 1, f"redo {n + 1}.")


def first_write(trace: Trace, volume: int, text: str) -> int:
    r = trace.requests
    for row in np.flatnonzero((r.op == Op.WRITE) & (r.volume == volume)).tolist():
        if text.encode() in bytes(trace.payload(row) or b""):
            return int(row)
    raise AssertionError(f"{text!r} is never written to volume {volume}")


def next_flush(trace: Trace, volume: int, row: int) -> int:
    r = trace.requests
    later = (r.op == Op.FLUSH) & (r.volume == volume) & (np.arange(len(trace)) > row)
    return int(np.flatnonzero(later)[0])


# The shipped capture


def images_at(trace: Trace, label: str, folder: Path) -> list[Path]:
    """The disks of the shipped capture, cut at a mark, their journals replayed."""
    folder.mkdir()
    stop = {label: row for row, label in trace.marks()}[label]
    paths = []
    for volume, image in zip(trace.volumes, naive_images(trace[:stop]), strict=True):
        paths.append(folder / volume.name)
        paths[-1].write_bytes(image)
        replay_journal(paths[-1])
    return paths


@contextmanager
def server_on(data: Path, log: Path) -> Iterator[PostgreSQL]:
    """The real server on copies of the cluster of one image and its write-ahead log of another."""
    home = Path(tempfile.mkdtemp(prefix="vmbk-pg-"))  # open to the user that the server runs as
    try:
        home.chmod(0o711)
        (home / "files").mkdir(mode=0o711)
        cluster = ext4_tree(data, "/data", home / "files")
        wal = ext4_tree(log, "/wal", home / "files")
        (cluster / "postmaster.pid").unlink(missing_ok=True)
        (cluster / "pg_wal").unlink()
        wal.rename(cluster / "pg_wal")
        version = (cluster / "PG_VERSION").read_text().strip()
        server = PostgreSQL(home, cluster, Path(f"/usr/lib/postgresql/{version}/bin"))
        require_tool(str(server.programs / "postgres"), f"postgresql-{version}")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(home)


QUERY = "SELECT count(*), max(n), (SELECT sum(balance) FROM accounts) FROM commits"


@pytest.mark.parametrize("number", [1, 75, 120, 121, 240])
def test_both_disks_cut_at_a_mark_have_the_commit(number: int, tmp_path: Path) -> None:
    trace = read_trace(dataset_path("ext4-two-disks"))
    data, log = images_at(trace, f"commit {number}", tmp_path / "cut")
    with server_on(data, log) as server:
        assert server.ask(QUERY) == [str(number), str(number), "100000"]


def test_the_commits_lie_on_the_second_disk(tmp_path: Path) -> None:
    """With the log of an earlier moment, later commits are lost: they were nowhere else."""
    trace = read_trace(dataset_path("ext4-two-disks"))
    data, _ = images_at(trace, "commit 100", tmp_path / "late")
    data_then, log_then = images_at(trace, "commit 90", tmp_path / "early")
    with server_on(data_then, log_then) as server:
        assert server.ask(QUERY)[0] == "90"
    with server_on(data, log_then) as server:
        assert server.ask(QUERY)[0] == "90"


def test_each_commit_flushes_the_disk_of_the_log() -> None:
    trace = read_trace(dataset_path("ext4-two-disks"))
    assert [v.name for v in trace.volumes] == ["data", "log"]
    r = trace.requests
    rows = [row for row, label in trace.marks() if label.startswith("commit ")]
    assert len(rows) == 240
    on_log = r.volume == 1
    for before, after in itertools.pairwise(rows):
        ops = r.op[before:after][on_log[before:after]]
        assert Op.WRITE in ops
        assert Op.FLUSH in ops
    assert (r.op[~on_log] == Op.FLUSH).sum() > 20
