"""Sweeps: the same results on every engine, nothing finished runs twice, whatever is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.sweep_cells import Draw, draw, moody, noted, noted_cells, shapes
from vmbk.errors import InputError, IntegrityError, StorageError, VmbkError
from vmbk.study import read_config, run_grid, sweep_store
from vmbk.study.sweep import SweepResult, sweep
from vmbk.study.sweep_store import (
    INDEX,
    MOST_RESULT,
    DamagedError,
    ResultStore,
    decode,
    encode,
    is_intact,
)
from vmbk.study.sweep_worker import Task, canonical, code_version, run_task

ROOT = Path(__file__).resolve().parent.parent
DRAWS = [Draw(size, name) for size in range(5) for name in "ab"]


def run(function, cells, **options) -> SweepResult:
    """A sweep of a declared version, so that whoever edits vmbk meanwhile disturbs no test."""
    return sweep(function, cells, version="1", **options)


def starts(log: Path) -> dict[int, list[int]]:
    """When each cell of `noted` began, in nanoseconds."""
    found: dict[int, list[int]] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        i, at, _ = line.split()
        found.setdefault(int(i), []).append(int(at))
    return found


def files(store: Path) -> list[Path]:
    """The finished results of a store."""
    return [path for path in store.glob("results/*/*") if path.is_file()]


def wait_for(condition, seconds=30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A real cluster of two processes, that nobody else can reach."""
    import dask
    import distributed

    scratch = str(tmp_path_factory.mktemp("dask"))
    with (
        dask.config.set({"temporary-directory": scratch}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1",
            dashboard_address=None, local_directory=scratch,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client


# --- every engine ---


def test_every_engine_finds_what_a_serial_sweep_finds(client):
    serial = run(draw, DRAWS, seed=7)
    assert (serial.run, serial.found, serial.failed) == (10, 0, 0)
    assert serial.rows[INDEX].to_list() == [i for i, c in enumerate(DRAWS) for _ in range(c.size)]
    assert serial.rows["x"].n_unique() == len(serial.rows)  # every cell draws its own numbers
    spawn = multiprocessing.get_context("spawn")
    with ThreadPoolExecutor(3) as threads, ProcessPoolExecutor(2, spawn) as processes:
        for executor in (threads, processes, 1, client):
            found = run(draw, DRAWS, seed=7, executor=executor)
            assert found.failed == 0, found.cells["message"].to_list()
            assert found.rows.equals(serial.rows)
            assert found.cells["key"].equals(serial.cells["key"])
            assert found.cells["seed"].equals(serial.cells["seed"])


def test_a_cell_finds_the_same_in_whatever_company_and_order():
    serial = run(draw, DRAWS, seed=7)
    mixed = random.Random(1).sample(range(len(DRAWS)), 6)
    found = run(draw, [DRAWS[i] for i in mixed], seed=7)
    for place, i in enumerate(mixed):
        was = serial.rows.filter(pl.col(INDEX) == i).drop(INDEX)
        assert found.rows.filter(pl.col(INDEX) == place).drop(INDEX).equals(was)
    assert not run(draw, DRAWS, seed=8).rows.equals(serial.rows)


def test_keys_and_seeds_stay_what_they_are():
    """Golden: with other keys, nobody's store would be found again."""
    task = Task("m:f", {"a": 1}, canonical({"a": 1}), 5, "1")
    named = b'[1,"m:f","1",5,{"a":1}]'
    assert task.key == blake3(named).hexdigest()
    assert task.key == "11228e01deddbc4d6adad79c1069564643254020a46826f7698730c773cd143a"
    assert task.seed == 1224384916101462110
    assert replace(task, version="2").seed == task.seed  # new code draws the same numbers
    others = [replace(task, function="m:g"), replace(task, version="2"),
              replace(task, sweep_seed=6), replace(task, plain=canonical({"a": 2}))]  # fmt: skip
    assert len({task.key, *(other.key for other in others)}) == 5
    assert len({task.seed, *(other.seed for other in others[2:])}) == 3


class Counting(Executor):
    """Runs one cell whenever the last of those in flight was handed over, and counts."""

    def __init__(self):
        self.pool, self.flying, self.most = ThreadPoolExecutor(2), 0, 0
        self.lock = threading.Lock()

    def submit(self, function, /, *args):
        with self.lock:
            self.flying += 1
            self.most = max(self.most, self.flying)
        future = self.pool.submit(function, *args)
        future.add_done_callback(self.landed)
        return future

    def landed(self, _):
        with self.lock:
            self.flying -= 1


def test_only_so_many_cells_are_in_flight():
    executor = Counting()
    with executor.pool:
        found = run(draw, [Draw(1, str(i)) for i in range(60)], executor=executor, in_flight=3)
    assert found.run == 60
    assert 1 <= executor.most <= 3


class Far(Executor):
    """Runs cells as a machine that does not see the store."""

    def submit(self, function, /, task):
        future: Future = Future()
        future.set_result(function(replace(task, store=task.store + "-elsewhere")))
        return future


def test_workers_need_not_see_the_store(tmp_path):
    done = run(draw, DRAWS, store=tmp_path / "s", executor=Far())
    assert done.run == len(files(tmp_path / "s")) == 10
    again = run(draw, DRAWS, store=tmp_path / "s")
    assert (again.run, again.found) == (0, 10)
    assert again.rows.equals(done.rows)


def test_a_worker_with_other_sources_runs_nothing():
    plain = canonical({"i": 1})
    name = "tests.sweep_cells:draw"
    cell = Draw(1)
    assert not run_task(Task(name, cell, plain, 0, code_version(name))).error
    answer = run_task(Task(name, cell, plain, 0, "0.0 of yesterday"))
    assert answer.error == "InputError"
    assert "other sources" in answer.message


# --- the store ---


def test_finished_cells_are_found(tmp_path):
    log, store = tmp_path / "log", tmp_path / "deep" / "store"
    first = run(noted, noted_cells(str(log), 3, 0.0), store=store)
    more = run(noted, noted_cells(str(log), 5, 0.0)[::-1], store=store)
    assert (first.run, more.run, more.found) == (3, 2, 3)
    assert {i: len(at) for i, at in starts(log).items()} == dict.fromkeys(range(5), 1)
    assert more.rows["i"].to_list() == [4, 3, 2, 1, 0]
    assert sorted(p.name for p in store.iterdir()) == ["claims", "results", "sweep-store", "tmp"]
    assert not [*(store / "claims").iterdir(), *(store / "tmp").iterdir()]
    # Another version, another seed: other results.
    other = sweep(noted, noted_cells(str(log), 3, 0.0), store=store, version="2")
    assert other.run == 3
    assert run(noted, noted_cells(str(log), 3, 0.0), store=store, seed=1).run == 3


def test_results_say_what_made_them(tmp_path):
    done = run(draw, DRAWS[4:6], store=tmp_path, seed=3)
    row = done.cells.row(0, named=True)
    assert (row["status"], row["rows"], row["version"]) == ("run", 2, "0.1.0")
    assert {"python", "cpu", "libraries"} <= set(json.loads(row["provenance"]))
    header = decode(ResultStore.open(tmp_path).read(row["key"]), row["key"]).header
    assert header["function"] == "tests.sweep_cells:draw"
    assert header["cell"] == {"@tests.sweep_cells:Draw": {"size": 2, "name": "a"}}
    assert (header["sweep_seed"], header["seed"]) == (3, row["seed"])
    assert "Sweep" in done._repr_html_()
    assert json.loads(json.dumps(done.to_dict()))["run"] == 2


def signed(data: bytes) -> bytes:
    """Bytes and their digest, as strangers can make it too."""
    return data + blake3(data).digest()


def enveloped(key: str, stream: bytes, **more) -> bytes:
    """A result with a good digest around whatever bytes."""
    header = json.dumps({"key": key, "seconds": 0, "provenance": {}} | more).encode()
    return signed(b"vmbkswp1" + struct.pack("<I", len(header)) + header + stream)


def stream_of(table: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression, allow_64bit=True)
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


# Arrow's own `nulls` would really take that much memory.
NULLS = pa.table({"a": pa.Array.from_buffers(pa.null(), 1 << 40, [None])})
RUNS = pa.table({"a": pa.RunEndEncodedArray.from_arrays(pa.array([1 << 30], pa.int32()), ["x"])})
HOSTILE = {
    "nothing": lambda key, good: b"",
    "cut": lambda key, good: good[:-1],
    "cut to the header": lambda key, good: good[:50],
    "a bit": lambda key, good: good[:-100] + bytes([good[-100] ^ 4]) + good[-99:],
    "a longer one": lambda key, good: good + b"\0",
    "another cell's": lambda key, good: enveloped("0" * 64, stream_of(pa.table({"a": [1]}))),
    "a header without end": lambda key, good: signed(b"vmbkswp1" + b"\xff" * 4 + b"{}" * 50),
    "a deep header": lambda key, good: signed(
        b"vmbkswp1" + struct.pack("<I", 100_000) + b"[" * 100_000
    ),
    "a header that is a list": lambda key, good: signed(b"vmbkswp1\2\0\0\0[]"),
    "no provenance": lambda key, good: enveloped(key, b"", provenance=3),
    "no Arrow": lambda key, good: enveloped(key, b"x" * 1000),
    "half an Arrow": lambda key, good: enveloped(key, stream_of(pa.table({"a": [1]}))[:200]),
    "compressed": lambda key, good: enveloped(
        key, stream_of(pa.table({"a": np.zeros(10_000_000, np.int8)}), "zstd")
    ),
    "a million million nulls": lambda key, good: enveloped(key, stream_of(NULLS)),
    "runs": lambda key, good: enveloped(key, stream_of(RUNS)),
    "the sweep's column": lambda key, good: enveloped(key, stream_of(pa.table({"cell": [1]}))),
    "a pickle": lambda key, good: b"\x80\x04cos\nsystem\n(S'false'\ntR.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_damaged_results_are_noticed(kind):
    task = Task("m:f", {}, "{}", 0, "1")
    good = encode([{"a": 1, "b": "x" * 300}], {"key": task.key, "seconds": 1, "provenance": {}})
    assert decode(good, task.key).rows.rows() == [(1, "x" * 300)]
    with pytest.raises(DamagedError, match=task.key):
        decode(HOSTILE[kind](task.key, good), task.key)


def test_damaged_results_run_again(tmp_path):
    log, store = tmp_path / "log", tmp_path / "store"
    cells = noted_cells(str(log), len(HOSTILE) + 4, 0.0)
    good = run(noted, cells, store=store)
    paths = [ResultStore.open(store).path(key) for key in good.cells["key"]]
    for kind, path in zip(HOSTILE.values(), paths, strict=False):
        path.write_bytes(kind(path.name, path.read_bytes()))
    for path in paths[-4:]:
        path.unlink()
    with paths[-4].open("wb") as file:
        file.truncate(MOST_RESULT + 1)
    os.mkfifo(paths[-3])
    paths[-2].symlink_to("/dev/zero")
    paths[-1].symlink_to(paths[0])
    with ThreadPoolExecutor(2) as threads:
        again = run(noted, cells, store=store, executor=threads)
    assert (again.damaged, again.run, again.failed) == (len(cells), len(cells), 0)
    assert again.rows.equals(good.rows)
    third = run(noted, cells, store=store)
    assert (third.damaged, third.found) == (0, len(cells))


@given(st.binary(max_size=300), st.integers(0, 400))
def test_no_bytes_are_taken_for_a_result(noise, at):
    """Fuzzed Arrow behind a good digest: a table or `DamagedError`, nothing else."""
    key = "0" * 64
    stream = bytearray(stream_of(pa.table({"a": [1, None], "b": [["x"], []]})))
    stream[at : at + len(noise)] = noise
    try:
        found = decode(enveloped(key, bytes(stream)), key)
    except DamagedError:
        return
    assert isinstance(found.rows, pl.DataFrame)


def test_a_store_is_no_other_folder(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="no store"):
        run(draw, DRAWS, store=tmp_path)
    with pytest.raises(InputError, match="no folder"):
        run(draw, DRAWS, store=tmp_path / "thesis.tex")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep-store").write_text("mine")
    with pytest.raises(InputError, match="damaged"):
        run(draw, DRAWS, store=tmp_path / "s")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s", "thesis.tex"]


def test_what_cannot_be_stored_stops_the_sweep(tmp_path):
    store = ResultStore.open(tmp_path)
    key = Task("tests.sweep_cells:draw", DRAWS[0], canonical(DRAWS[0]), 0, "1").key
    store.path(key).parent.write_text("in the way")
    with pytest.raises(StorageError, match=key[:8]):
        run(draw, DRAWS[:1], store=tmp_path)


def test_what_is_claimed_is_left_alone(tmp_path):
    store = ResultStore.open(tmp_path)
    claim = store.claim("0" * 64)
    (tmp_path / "tmp" / f"{'0' * 64}-1").touch()
    (tmp_path / "tmp" / f"{'1' * 64}-1").touch()
    (tmp_path / "claims" / ("1" * 64)).touch()
    assert ResultStore.open(tmp_path).claim("0" * 64) is None
    assert [p.name[0] for p in (tmp_path / "tmp").iterdir()] == ["0"]
    claim.release()
    again = store.claim("0" * 64)
    assert again is not None
    again.release()
    again.release()
    assert not list((tmp_path / "claims").iterdir())


def test_whoever_finishes_second_keeps_the_first(tmp_path):
    store = ResultStore.open(tmp_path)
    assert store.put("a" * 64, b"first")
    assert not store.put("a" * 64, b"second")
    assert store.read("a" * 64) == b"first"
    assert not is_intact(b"first", "a" * 64)
    with pytest.raises(InputError, match="no key"):
        store.read("../../secret")


# --- killed and crowded ---


def child(store: Path, log: Path, count: int, processes: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sweep_cells", str(store), str(log), str(count),
         str(processes)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def workers_of(log: Path) -> set[int]:
    return {int(line.split()[2]) for line in log.read_text().splitlines()}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.kill
def test_a_killed_sweep_goes_on(tmp_path):
    log, store = tmp_path / "log", tmp_path / "store"
    count = 12
    with child(store, log, count, 2) as process:
        wait_for(lambda: len(files(store)) >= 3)
        process.kill()
        process.communicate()
    wait_for(lambda: not any(alive(pid) for pid in workers_of(log)))  # nobody is left running
    kept = {path.name: path.stat().st_ctime_ns for path in files(store)}
    assert 3 <= len(kept) < count
    done = run(noted, noted_cells(str(log), count), store=store)
    assert (done.found, done.run, done.failed) == (len(kept), count - len(kept), 0)
    began = starts(log)
    for i, key in enumerate(done.cells["key"]):
        if key in kept:
            assert len(began[i]) == 1
    assert done.rows.equals(run(noted, noted_cells(str(log), count), executor=None).rows)
    assert not [*(store / "claims").iterdir(), *(store / "tmp").iterdir()]


@pytest.mark.kill
def test_a_killed_worker_of_a_cluster_costs_nothing_that_is_finished(tmp_path, client):
    log, store = tmp_path / "log", tmp_path / "store"
    cells = noted_cells(str(log), 16)
    victims: list[int] = []

    def killer() -> None:
        wait_for(lambda: len(files(store)) >= 4)
        victims.append(int(log.read_text().splitlines()[-1].split()[2]))
        os.kill(victims[0], signal.SIGKILL)

    thread = threading.Thread(target=killer)
    thread.start()
    done = run(noted, cells, store=store, executor=client)
    thread.join()
    assert (done.failed, len(files(store))) == (0, 16)
    assert len(victims) == 1
    assert not alive(victims[0])
    # A cell may have begun twice, never after its result was there.
    finished = [ResultStore.open(store).path(key).stat().st_mtime_ns for key in done.cells["key"]]
    for i, at in starts(log).items():
        assert all(begin < finished[i] for begin in at)
    assert sum(len(at) for at in starts(log).values()) <= 17
    serial = run(noted, cells, store=tmp_path / "another")
    assert serial.run == 16
    assert done.rows.equals(serial.rows)


def test_two_sweeps_share_a_store(tmp_path):
    log, store = tmp_path / "log", tmp_path / "store"
    with child(store, log, 20, 0) as one, child(store, log, 20, 0) as two:
        said = [[int(n) for n in p.communicate(timeout=60)[0].split()] for p in (one, two)]
    assert {i: len(at) for i, at in starts(log).items()} == dict.fromkeys(range(20), 1)
    assert said[0][0] + said[1][0] == 20
    assert all(run + found == 20 and failed == 0 for run, found, failed in said)


def test_two_sweeps_of_threads_share_a_store(tmp_path):
    log, store = tmp_path / "log", tmp_path / "store"
    cells = noted_cells(str(log), 30, 0.02)
    with ThreadPoolExecutor(3) as outer, ThreadPoolExecutor(4) as inner:
        jobs = [outer.submit(run, noted, cells, store=store, executor=inner) for _ in range(3)]
        done = [job.result() for job in jobs]
    assert {len(at) for at in starts(log).values()} == {1}
    assert sum(d.run for d in done) == 30
    assert all(d.rows.equals(done[0].rows) for d in done)


# --- failures ---


def test_a_failed_cell_stops_no_other(tmp_path):
    cells = [{"mood": mood} for mood in ("fine", "fails", "exits", "well")]
    done = run(moody, cells, store=tmp_path)
    assert (done.run, done.failed) == (2, 2)
    assert done.rows["mood"].to_list() == ["fine", "well"]
    assert done.rows[INDEX].to_list() == [0, 3]
    errors = done.cells.filter(pl.col("status") == "failed")
    assert errors["error"].to_list() == ["ValueError", "SystemExit"]
    assert errors["message"][0].startswith("no luck")
    assert len(errors["message"][0]) < 2100
    with pytest.raises(VmbkError, match="cell 1: ValueError: no luck"):
        done.check()
    again = run(moody, cells, store=tmp_path)  # what failed is not finished
    assert (again.found, again.failed) == (2, 2)
    assert run(moody, cells[:1]).check().run == 1


def test_an_error_of_vmbk_keeps_its_class():
    frame = run(moody, [{"mood": "fails"}]).cells.with_columns(error=pl.lit("IntegrityError"))
    with pytest.raises(IntegrityError, match="cell 0: no luck"):
        SweepResult(pl.DataFrame(), frame).check()
    tool = frame.with_columns(error=pl.lit("ToolMissingError"))
    with pytest.raises(VmbkError, match="no luck"):
        SweepResult(pl.DataFrame(), tool).check()


@pytest.mark.kill
def test_a_process_that_dies_is_replaced(tmp_path):
    cells = [{"mood": "dies once", "mark": str(tmp_path / "mark")}, {"mood": "dies"},
             *({"mood": f"fine {i}"} for i in range(4))]  # fmt: skip
    done = run(moody, cells, executor=1, retries=1)
    assert (done.run, done.failed) == (5, 1)
    assert done.cells["error"].to_list() == [None, "WorkerDied", None, None, None, None]
    assert "2 times" in done.cells["message"][1]


@pytest.mark.kill
def test_an_executor_that_breaks_ends_the_sweep(tmp_path):
    cells = [{"mood": "fine"}, {"mood": "dies"}, {"mood": "well"}]
    with (
        ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as processes,
        pytest.raises(VmbkError, match="executor is gone") as caught,
    ):
        run(moody, cells, store=tmp_path, executor=processes, in_flight=1)
    assert "run again" in caught.value.hint
    with ThreadPoolExecutor(1) as threads:
        assert run(moody, cells[:1], store=tmp_path, executor=threads).found == 1
    with pytest.raises(VmbkError, match="executor is gone"):
        run(moody, cells[2:], executor=threads)


def test_results_of_all_kinds(monkeypatch):
    monkeypatch.setattr(sweep_store, "MOST_RESULT", 1 << 20)
    done = run(shapes, [{"kind": kind} for kind in ("frame", "row", "none")])
    assert done.check().rows.to_dict(as_series=False) == {
        INDEX: [0, 0, 1], "a": [1.0, 2.0, 1.5], "b": [[1], None, None], "c": [None] * 3,
        "d": [None, None, "x"],
    }  # fmt: skip
    bad = run(shapes, [{"kind": kind} for kind in ("object", "number", "column", "text", "large")])
    assert bad.failed == 5
    assert set(bad.cells["error"]) == {"InputError"}
    assert "1 MiB is the most" in bad.cells["message"][4]


# --- cells ---

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text().filter(lambda key: not key.startswith("@")), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
CELLS = st.dictionaries(st.text().filter(lambda key: not key.startswith("@")), PLAIN, max_size=4)


def typed(value):
    """A value that equals another only if that has the same types: 1 is not True nor 1.0."""
    if isinstance(value, dict):
        return {key: typed(v) for key, v in value.items()}
    if isinstance(value, list):
        return [typed(v) for v in value]
    return (type(value).__name__, repr(value))


def shuffled(value, order):
    if isinstance(value, dict):
        items = order.sample(list(value.items()), len(value))
        return {key: shuffled(v, order) for key, v in items}
    return [shuffled(v, order) for v in value] if isinstance(value, list) else value


@given(CELLS, st.randoms())
def test_the_order_of_fields_is_nothing(cell, order):
    assert canonical(shuffled(cell, order)) == canonical(cell)
    assert typed(json.loads(canonical(cell))) == typed(cell)  # nothing is lost


@given(CELLS, CELLS)
def test_different_cells_differ(one, two):
    same = typed(one) == typed(two)
    assert (canonical(one) == canonical(two)) == same
    keys = {Task("m:f", cell, canonical(cell), 0, "1").key for cell in (one, two)}
    assert (len(keys) == 1) == same


@dataclass(frozen=True)
class Twin:
    size: int
    name: str = "a"


def test_a_class_is_part_of_a_cell():
    assert len({canonical(c) for c in (Draw(1), Twin(1), {"size": 1, "name": "a"})}) == 3
    assert canonical({"a": (1, np.int64(2))}) == canonical({"a": [1, 2]})


@pytest.mark.parametrize(
    ("cell", "field"),
    [
        (3, "no cell"),
        (Draw, "no cell"),
        ({"a": {"b": [1, {2, 3}]}}, r"cell\.a\.b\[1\] holds"),
        ({"a": float("nan")}, r"cell\.a is nan"),
        ({"a": b"x"}, r"cell\.a holds"),
        ({1: 2}, "the key 1"),
        ({"@x": 2}, "the key '@x'"),
        ({"a": "x" * (1 << 20)}, "1 MiB is the most"),
        ({"a": 10**5000}, "JSON"),
        ({"a": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}, "deeper"),
    ],
)
def test_bad_cells_are_named(cell, field):
    with pytest.raises(InputError, match=field):
        run(draw, [DRAWS[0], cell])


class FakeClient:
    """A client of Dask that is meant for asynchronous programs."""

    __module__ = "distributed.client"
    asynchronous = True

    def get_executor(self):
        raise AssertionError


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cells": [Draw(1), Draw(2), Draw(1)]}, "cells 0 and 2 are the same"),
        ({"function": lambda cell, seed: {}}, "another process"),
        ({"function": Draw.__eq__}, "another process"),
        ({"executor": "two"}, "runs no cells"),
        ({"executor": 0}, "0 processes"),
        ({"executor": True}, "runs no cells"),
        ({"executor": FakeClient()}, "asynchronous"),
        ({"in_flight": 0}, "in flight"),
        ({"retries": -1}, "retries"),
        ({"seed": -1}, "seed of -1"),
        ({"seed": 1 << 63}, "seed of"),
        ({"version": ""}, "no version"),
    ],
)
def test_bad_arguments(options, match):
    given = {"function": draw, "cells": [Draw(1)], "version": "1"} | options
    with pytest.raises(InputError, match=match):
        sweep(given.pop("function"), given.pop("cells"), **given)


def test_an_empty_sweep_and_progress():
    assert run(draw, []).rows.schema == {INDEX: pl.Int64}
    steps: Counter[str] = Counter()
    run(draw, DRAWS, on_progress=lambda n: steps.update(done=n))
    assert steps["done"] == len(DRAWS)


# --- studies ---


def test_a_study_side_by_side_is_the_serial_one(tmp_path):
    (tmp_path / "study.toml").write_text(
        "seed = 5\n[grid]\ndatasets = ['ext4-sqlite']\ndetectors = ['tracking', 'checksum']\n"
        "sub_block_size = ['4KiB']\ninterval = ['100%']\n"
    )
    config = read_config(tmp_path / "study.toml")
    serial = run_grid(config)
    wide = run_grid(config, executor=2, store=tmp_path / "store")
    noisy = [n for n in serial.rows.columns if n.endswith("_seconds") and n != "trace_seconds"]
    assert wide.verified
    assert wide.rows.schema == serial.rows.schema
    # Keys and times are random to a compressor: no two runs store quite the same.
    assert wide.rows.drop(*noisy, "stored_bytes").equals(serial.rows.drop(*noisy, "stored_bytes"))
    # Another declaration finds what this one has run, and says whose rows these are.
    other = replace(config, detectors=("checksum",))
    found = run_grid(other, store=tmp_path / "store").rows
    kept = wide.rows.filter(pl.col("detector") == "checksum")
    assert found.drop("config_digest").equals(kept.drop("config_digest"))
    assert set(found["config_digest"]) == {other.digest}
    assert len(list((tmp_path / "store").glob("results/*/*"))) == 2
