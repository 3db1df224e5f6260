"""The local store: the conformance suite, and what only a directory can do."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.store_conformance import StoreConformance
from vmbk.errors import InputError, NotFoundError, StorageError
from vmbk.vault.store import LocalStore


class TestLocalStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path)


class TestLocalStoreUnsynced(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path, "none")


class TestLocalStoreWithoutHardLinks(StoreConformance):
    """File systems such as exFAT refuse links; one name still has one winner."""

    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStore:
        def refuse(source: object, target: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
        return LocalStore(tmp_path)

    def test_one_of_many_writers_of_a_name_wins(self, store: LocalStore) -> None:  # type: ignore[override]
        store.put("a", b"1")
        with pytest.raises(StorageError, match="exists already"):
            store.put("a", b"2")
        assert store.get("a") == b"1"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "store").mkdir()
    return LocalStore(tmp_path / "store")


def test_durability_is_one_of_two(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'sometimes'"):
        LocalStore(tmp_path, "sometimes")  # type: ignore[arg-type]


def test_syncs_the_file_before_its_name_and_the_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power cut demands, as the system calls show it."""
    calls: list[str] = []
    fsync, link = os.fsync, os.link

    def path_of(file: int) -> str:
        return os.path.relpath(Path(f"/proc/self/fd/{file}").readlink(), tmp_path).split("/")[0]

    monkeypatch.setattr(
        os, "fsync", lambda file: (calls.append("sync " + path_of(file)), fsync(file))
    )
    monkeypatch.setattr(os, "link", lambda a, b: (calls.append("link"), link(a, b)))
    store = LocalStore(tmp_path)
    (tmp_path / "packs").mkdir()
    store.put("packs/ab/x", b"x")
    # The file in tmp/; its name; packs/ab; packs, which got ab; the root, which may have got packs.
    assert calls == ["sync tmp", "link", "sync packs", "sync packs", "sync ."]
    calls.clear()
    store.put("packs/ab/y", b"y")
    assert calls == ["sync tmp", "link", "sync packs"]
    calls.clear()
    LocalStore(tmp_path, "none").put("packs/ab/z", b"z")
    assert calls == ["link"]


def test_a_failed_sync_fails_the_put_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = LocalStore(tmp_path)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        StorageError, match=r"cannot write 'packs/aa/x'.*Input/output error"
    ) as info:
        store.put("packs/aa/x", b"x")
    assert "intact" in info.value.hint
    assert store.list("") == ()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_fifo_in_place_of_a_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config")
    with pytest.raises(StorageError, match="not a regular file"):
        LocalStore(tmp_path).get("config")


def test_a_directory_in_place_of_a_file_is_an_error(store: LocalStore) -> None:
    store.put("a/b", b"x")
    with pytest.raises(StorageError, match="not a regular file"):
        store.get("a")


def test_temporary_files_are_not_listed_and_can_be_cleaned(store: LocalStore) -> None:
    store.put("a", b"x")
    assert not store.has_leftovers()
    (store.root / "tmp" / "123-abc").write_bytes(b"half a pack")
    assert store.has_leftovers()
    assert store.list("") == ("a",)
    assert store.clean() == 1
    assert not store.has_leftovers()
    assert store.get("a") == b"x"


def test_a_missing_directory_lists_as_empty(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "nothing")
    assert store.list("") == ()
    with pytest.raises(NotFoundError):
        store.get("config")


def test_many_threads_put_at_once(store: LocalStore) -> None:
    def work(k: int) -> None:
        for i in range(25):
            store.put(f"packs/{i % 3}a/{k}-{i}", bytes([k]) * i)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.list("packs/")) == 100
    assert store.get("packs/1a/3-10") == bytes([3]) * 10


def test_sizes_are_those_of_regular_files(store: LocalStore, tmp_path: Path) -> None:
    store.put("packs/ab/one", b"12345")
    store.put("packs/two", b"")
    store.put("points/p", b"1")
    folder = store.root / "packs"
    (folder / "moved").symlink_to(folder / "ab" / "one")
    (folder / "nowhere").symlink_to(tmp_path / "nothing")
    os.mkfifo(folder / "fifo")
    assert store.sizes("packs/") == {"packs/ab/one": 5, "packs/two": 0, "packs/moved": 5}
    assert store.sizes("other/") == {}
