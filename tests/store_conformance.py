"""What every store must do. A back end subclasses `StoreConformance` and gives a ``store`` fixture.

.. code-block:: python

    class TestLocalStore(StoreConformance):
        @pytest.fixture
        def store(self, tmp_path):
            return LocalStore(tmp_path)
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from vmbk.errors import InputError, NotFoundError, OutOfRangeError, StorageError
from vmbk.vault.store import Store

NAMES = ("config", "packs/ab/ab12", "index/00ff", "points/20261121T101500Z-1a2b3c4d")
BAD_NAMES = (
    "", "/", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "a/", "/a", ".", "a/.", ".hidden",
    "a/.b", "a\0b", "a\nb", "a b", "a\\b", "ä", "a/b/c/d/e", "-x", "x" * 200,
)  # fmt: skip


class StoreConformance:
    """Tests of the contract in `vmbk.vault.store.Store`."""

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("a subclass gives an empty store")

    def test_is_a_store(self, store: Store) -> None:
        assert isinstance(store, Store)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("data", [b"", b"\0", b"hello", bytes(range(256)) * 1000])
    def test_gives_back_what_was_put(self, store: Store, name: str, data: bytes) -> None:
        store.put(name, data)
        assert store.get(name) == data
        assert store.size(name) == len(data)
        assert store.list("") == (name,)

    def test_puts_several_buffers_as_one_file(self, store: Store) -> None:
        parts = [b"a" * 100, bytearray(b"b" * 7), b"", memoryview(b"xcy")[1:2]]
        store.put("packs/aa/one", parts)
        assert store.get("packs/aa/one") == b"a" * 100 + b"b" * 7 + b"c"

    def test_puts_more_buffers_than_one_system_call_takes(self, store: Store) -> None:
        parts = [bytes([i % 256]) * (i % 5) for i in range(5000)]
        store.put("many", parts)
        assert store.get("many") == b"".join(parts)

    def test_gives_ranges(self, store: Store) -> None:
        data = bytes(range(100))
        store.put("a", data)
        for start, length in ((0, 100), (0, 0), (100, 0), (99, 1), (10, 20), (0, 1)):
            assert store.get_range("a", start, length) == data[start : start + length]

    @pytest.mark.parametrize(("start", "length"), [(0, 101), (100, 1), (101, 0), (50, 2**62)])
    def test_refuses_a_range_past_the_end(self, store: Store, start: int, length: int) -> None:
        store.put("a", bytes(100))
        with pytest.raises(OutOfRangeError, match="'a'"):
            store.get_range("a", start, length)

    @pytest.mark.parametrize(("start", "length"), [(-1, 5), (5, -1)])
    def test_refuses_a_negative_range(self, store: Store, start: int, length: int) -> None:
        store.put("a", bytes(100))
        with pytest.raises(InputError):
            store.get_range("a", start, length)

    def test_says_what_is_missing(self, store: Store) -> None:
        store.put("packs/aa/one", b"1")
        for name in ("packs/aa/two", "packs/bb/one", "index/x", "packs/aa/one/below"):
            for call in (
                lambda: store.get(name),  # noqa: B023
                lambda: store.get_range(name, 0, 1),  # noqa: B023
                lambda: store.size(name),  # noqa: B023
                lambda: store.delete(name),  # noqa: B023
            ):
                with pytest.raises(NotFoundError, match=name):
                    call()

    def test_never_replaces(self, store: Store) -> None:
        store.put("a", b"first")
        with pytest.raises(StorageError, match="'a' exists already"):
            store.put("a", b"second")
        assert store.get("a") == b"first"
        assert store.list("") == ("a",)

    def test_lists_by_prefix_sorted(self, store: Store) -> None:
        names = ["packs/ff/1", "packs/aa/2", "packs/aa/1", "packs2/aa/1", "index/1", "config"]
        for name in names:
            store.put(name, name.encode())
        assert store.list("") == tuple(sorted(names))
        assert store.list("packs/") == ("packs/aa/1", "packs/aa/2", "packs/ff/1")
        assert store.list("packs/aa/") == ("packs/aa/1", "packs/aa/2")
        assert store.list("points/") == ()

    def test_deletes(self, store: Store) -> None:
        store.put("packs/aa/1", b"1")
        store.put("packs/aa/2", b"2")
        store.delete("packs/aa/1")
        assert store.list("") == ("packs/aa/2",)
        with pytest.raises(NotFoundError):
            store.get("packs/aa/1")
        store.put("packs/aa/1", b"again")
        assert store.get("packs/aa/1") == b"again"

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_refuses_names_that_could_leave_it(self, store: Store, name: str) -> None:
        for call in (
            lambda: store.get(name),
            lambda: store.get_range(name, 0, 0),
            lambda: store.size(name),
            lambda: store.put(name, b"x"),
            lambda: store.delete(name),
        ):
            with pytest.raises(InputError, match="is not a name in a store"):
                call()
        assert store.list("") == ()

    def test_one_of_many_writers_of_a_name_wins(self, store: Store) -> None:
        start = threading.Barrier(8)

        def put(i: int) -> bool:
            start.wait()
            try:
                store.put("packs/aa/same", bytes([i]) * 10_000)
            except StorageError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(put, range(8)))
        assert sum(won) == 1
        assert store.get("packs/aa/same") == bytes([won.index(True)]) * 10_000
        assert store.list("") == ("packs/aa/same",)

    def test_a_reader_never_sees_half_a_file(self, store: Store) -> None:
        size, seen = 1 << 20, []
        done = threading.Event()

        def read() -> None:
            while not done.is_set():
                seen.extend(store.size(name) for name in store.list("packs/"))

        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(read)
            for i in range(20):
                store.put(f"packs/aa/{i}", bytes(size))
            done.set()
            reader.result()
        assert set(seen) <= {size}

    def test_behaves_like_a_dictionary(self, store: Store) -> None:
        machine = _machine_of(store)
        settings_ = settings(
            max_examples=20,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        from hypothesis.stateful import run_state_machine_as_test

        run_state_machine_as_test(machine, settings=settings_)


def _machine_of(store: Store) -> type[RuleBasedStateMachine]:
    names = st.sampled_from(
        ["config", "a/b", "a/c", "a/d/e", "b/c"],
    )
    data = st.binary(max_size=50)

    class Machine(RuleBasedStateMachine):
        """A store and a dictionary that must agree."""

        def __init__(self) -> None:
            super().__init__()
            self.model: dict[str, bytes] = {}

        @initialize()
        def empty(self) -> None:
            for name in store.list(""):
                store.delete(name)

        @rule(name=names, data=data)
        def put(self, name: str, data: bytes) -> None:
            if name in self.model:
                with pytest.raises(StorageError):
                    store.put(name, data)
            else:
                store.put(name, data)
                self.model[name] = data

        @rule(name=names)
        def get(self, name: str) -> None:
            if name in self.model:
                assert store.get(name) == self.model[name]
            else:
                with pytest.raises(NotFoundError):
                    store.get(name)

        @rule(name=names, start=st.integers(0, 60), length=st.integers(0, 60))
        def get_range(self, name: str, start: int, length: int) -> None:
            if name not in self.model:
                with pytest.raises(NotFoundError):
                    store.get_range(name, start, length)
            elif start + length > len(self.model[name]):
                with pytest.raises(OutOfRangeError):
                    store.get_range(name, start, length)
            else:
                part = self.model[name][start : start + length]
                assert store.get_range(name, start, length) == part

        @rule(name=names)
        def delete(self, name: str) -> None:
            if name in self.model:
                store.delete(name)
                del self.model[name]
            else:
                with pytest.raises(NotFoundError):
                    store.delete(name)

        @invariant()
        def lists_what_is_there(self) -> None:
            assert store.list("") == tuple(sorted(self.model))
            assert store.list("a/") == tuple(sorted(n for n in self.model if n.startswith("a/")))

    return Machine
