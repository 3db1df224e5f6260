"""Direct I/O moves the same bytes as any other, wherever it is not possible too."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmbk.disk import direct, imagefile
from vmbk.disk.direct import ALIGNMENT, aligned_buffer, aligned_length, set_direct
from vmbk.disk.raw import RawDisk
from vmbk.units import MIB
from vmbk.vault.store import LocalStore

SIZE = 6 * MIB + 700


def noise(size: int, seed: int = 0) -> np.ndarray:
    buffer = aligned_buffer(size)
    buffer[:] = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    return buffer


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder of a file system that has direct I/O, and one in memory, which may have none."""
    if request.param == "disk":
        yield tmp_path
        return
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no file system in memory")
    with tempfile.TemporaryDirectory(prefix="vmbk-test-", dir="/dev/shm") as name:
        yield Path(name)


@given(st.integers(0, 3 * ALIGNMENT), st.integers(0, 2 * ALIGNMENT), st.integers(0, ALIGNMENT))
def test_only_whole_pages_are_moved_directly(size: int, offset: int, shift: int) -> None:
    view = aligned_buffer(size + shift).data[shift:]
    length = aligned_length(view, offset)
    if offset % ALIGNMENT or shift % ALIGNMENT:
        assert length == 0
    else:
        assert length == size - size % ALIGNMENT


@pytest.mark.parametrize("start", [0, 4096, 512, 1])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_disk_holds_what_was_written(folder: Path, start: int, shift: int) -> None:
    data = noise(5 * MIB + 300)[shift:]
    with RawDisk.create(folder / "a.raw", SIZE, direct=True) as disk:
        disk.write(start, data)
        disk.write(start + 10, b"small")
        data[10:15] = np.frombuffer(b"small", np.uint8)
        back = aligned_buffer(SIZE)
        disk.read_into(0, back)
        disk.flush()
    expected = np.zeros(SIZE, np.uint8)
    expected[start : start + len(data)] = data
    assert np.array_equal(back, expected)
    assert (folder / "a.raw").read_bytes() == expected.tobytes()


def test_it_is_used_where_there_is_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT)
    has, _ = set_direct(probe, True), os.close(probe)
    if not has:
        pytest.skip("the temporary folder's file system has no direct I/O")
    moved = []
    pwrite = os.pwrite

    def watch(fd: int, data: memoryview, offset: int) -> int:
        flags = direct.fcntl.fcntl(fd, direct.fcntl.F_GETFL)
        moved.append((bool(flags & os.O_DIRECT), len(data)))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(imagefile.os, "pwrite", watch)
    with RawDisk.create(tmp_path / "a.raw", SIZE, direct=True) as disk:
        disk.write(0, noise(SIZE))
    assert moved == [(True, SIZE // ALIGNMENT * ALIGNMENT), (False, SIZE % ALIGNMENT)]


def test_a_device_that_wants_more_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, write = os.pwrite, os.write

    def refuse(fd: int) -> None:
        if direct.fcntl.fcntl(fd, direct.fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no")

    def strict_pwrite(fd: int, data: memoryview, offset: int) -> int:
        refuse(fd)
        return pwrite(fd, data, offset)

    def strict_write(fd: int, data: memoryview) -> int:
        refuse(fd)
        return write(fd, data)

    monkeypatch.setattr(os, "pwrite", strict_pwrite)
    monkeypatch.setattr(os, "write", strict_write)
    data = noise(SIZE)
    with RawDisk.create(tmp_path / "a.raw", SIZE, direct=True) as disk:
        disk.write(0, data)
    assert (tmp_path / "a.raw").read_bytes() == data.tobytes()
    LocalStore(tmp_path).put("packs/x", [data.data, b"tail"])
    assert (tmp_path / "packs/x").read_bytes() == data.tobytes() + b"tail"


@pytest.mark.parametrize("size", [MIB - 1, MIB, MIB + 1, SIZE])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_store_holds_what_was_put(folder: Path, size: int, shift: int) -> None:
    data = noise(size + shift)[shift:]
    store = LocalStore(folder)
    store.put("large", [data.data, b"footer", b"mac"])
    assert store.get("large") == data.tobytes() + b"footermac"
