"""Cells of a sweep and what runs them: their names, their seeds, workers near and far."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from blake3 import blake3

from vmbk.errors import InputError, StorageError, VmbkError
from vmbk.progress import interrupt
from vmbk.provenance import provenance
from vmbk.study.sweep_store import ResultStore, encode, is_intact
from vmbk.units import MIB, format_size, quoted

Function = Callable[[Any, int], Any]
"""``function(cell, seed)``: rows as mappings, one mapping, or a `polars.DataFrame`."""

MOST_CELL: Final = MIB
"""Bytes of one cell as JSON."""

MOST_IN_FLIGHT: Final = 512
"""Cells that are handed out at once: each holds a claim, which is an open file."""

MOST_PROCESSES: Final = 256

_GRACE: Final = 5.0
"""Seconds that a worker has to tidy up when it is told to end."""

_MOST_MESSAGE: Final = 2000
_MOST_DEPTH: Final = 32


@dataclass(frozen=True)
class Task:
    """A cell on its way to a worker; everything that a worker needs to know.

    Parameters
    ----------
    function : str
        ``module:name`` of what is run.
    cell : dataclass or mapping
        Its first argument.
    plain : str
        The cell as canonical JSON.
    sweep_seed, seed : int
        The sweep's seed, and the one derived for this cell.
    version : str
        What the result depends on besides: declared, or the digest of the sources.
    declared : bool
        Whether the version was declared; otherwise a worker compares it with its own sources.
    store, store_id : str
        Folder and identity of the store; empty without one.
    """

    function: str
    cell: Any
    plain: str
    sweep_seed: int
    version: str
    declared: bool = False
    store: str = ""
    store_id: str = ""

    @property
    def key(self) -> str:
        """BLAKE3 (hex) of all that decides the result."""
        named = [1, self.function, self.version, self.sweep_seed, json.loads(self.plain)]
        return blake3(_json(named).encode()).hexdigest()

    @property
    def seed(self) -> int:
        """Seed of this cell, 0 to 2**63 - 1: from the sweep's seed and the cell, nothing else.

        New code on the same cell draws the same numbers.
        """
        named = f"vmbk sweep seed\n{self.sweep_seed}\n{self.plain}"
        return int.from_bytes(blake3(named.encode()).digest(8), "big") >> 1


@dataclass(frozen=True)
class Answer:
    """What a worker answers: the bytes of a result, or the error that the cell raised."""

    data: bytes = b""
    ran: bool = True
    error: str = ""
    message: str = ""
    hint: str = ""
    seconds: float = 0.0


def function_name(function: Function) -> str:
    """``module:name`` of a function that every worker can import.

    Raises
    ------
    InputError
        If it is a lambda, a method, nested, or of the script that runs.
    """
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", None)
    if not module or not name or not name.isidentifier() or module == "__main__":
        raise InputError(
            f"{quoted(function)} cannot be named in another process",
            hint="a sweep takes a function at the top level of a module that can be imported",
        )
    named = f"{module}:{name}"
    if resolve(named) is not function:
        raise InputError(f"{named} is another function than {quoted(function)}")
    return named


def resolve(name: str) -> Function:
    """The function of a name; names come from the caller of a sweep, never from a store."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{quoted(name)} cannot be imported: {error}", hint="workers need the same packages"
        ) from error
    if not callable(found):
        raise InputError(f"{quoted(name)} is no function")
    function: Function = found
    return function


@cache
def code_version(function: str) -> str:
    """Version of vmbk and BLAKE3 of its sources, and of the function's module.

    A commit would say less: it does not know of files that were changed since.

    Parameters
    ----------
    function : str
        ``module:name``.

    Raises
    ------
    InputError
        If the function cannot be imported.
    """
    from vmbk import __version__

    root = Path(__file__).resolve().parent.parent
    hasher = blake3()
    sources = sorted(p for kind in ("*.py", "*.toml", "*.sql") for p in root.rglob(kind))
    module = importlib.import_module(resolve(function).__module__)
    own = getattr(module, "__file__", None)
    if own and root not in Path(own).resolve().parents:
        sources.append(Path(own))
    for path in sources:
        inside = path.relative_to(root).as_posix() if root in path.parents else ""
        content = path.read_bytes()
        hasher.update(f"{inside}\n{len(content)}\n".encode() + content)
    return f"{__version__} {hasher.hexdigest()[:32]}"


def canonical(cell: Any) -> str:
    """A cell as canonical JSON: equal cells make equal text, in whatever order their fields are.

    A dataclass differs from a mapping and from another class with the same fields; a tuple is a
    list.

    Parameters
    ----------
    cell : dataclass or mapping
        Of None, bool, int, float, str, lists, mappings with keys of text, and dataclasses.

    Raises
    ------
    InputError
        If it is neither, or holds something else; the message names the field.
    """
    if not isinstance(cell, Mapping) and not _is_record(cell):
        raise InputError(f"{quoted(cell)} is no cell", hint="write a mapping or a frozen dataclass")
    try:
        text = _json(_plain(cell, "cell", 0))
    except ValueError as error:  # an int of more digits than Python prints
        raise InputError(f"a cell cannot be written as JSON: {error}") from None
    if len(text) > MOST_CELL:
        raise InputError(
            f"a cell is {format_size(len(text))} as JSON, and {format_size(MOST_CELL)} is the most",
            hint="name a file and its digest instead",
        )
    return text


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _plain(value: Any, where: str, depth: int) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InputError(f"{where} is {value}, which names no cell")
        return value
    if depth == _MOST_DEPTH:
        raise InputError(f"{where} is nested deeper than {_MOST_DEPTH} levels")
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
    if _is_record(value):
        found = {
            f.name: _plain(getattr(value, f.name), f"{where}.{f.name}", depth + 1)
            for f in dataclasses.fields(value)
        }
        # No mapping has such a key, so that none looks like a dataclass.
        return {f"@{type(value).__module__}:{type(value).__qualname__}": found}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key.startswith("@"):
                raise InputError(f"{where} has the key {quoted(key)}: texts without '@' are names")
        return {key: _plain(v, f"{where}.{key}", depth + 1) for key, v in value.items()}
    raise InputError(
        f"{where} holds {quoted(value)}, which is no JSON",
        hint="cells hold numbers, texts, lists, mappings and dataclasses of these",
    )


def run_task(task: Task) -> Answer:
    """Run a cell, unless the store has its result already; what it raises becomes the answer.

    A worker that sees the store writes there itself, so that a finished cell stays finished even if
    the worker dies before it is asked for the result.
    """
    store = ResultStore.if_same(task.store, task.store_id) if task.store else None
    started = time.perf_counter()
    try:
        found = store.read(task.key) if store else None
        if found is not None and is_intact(found, task.key):
            return Answer(found, ran=False)
        function = resolve(task.function)
        if not task.declared and code_version(task.function) != task.version:
            raise InputError(
                "this worker has other sources than the process that sweeps",
                hint="install the same vmbk everywhere, or declare a version",
            )
        made = function(task.cell, task.seed)
        header = {
            "key": task.key, "function": task.function, "version": task.version,
            "cell": json.loads(task.plain), "sweep_seed": task.sweep_seed, "seed": task.seed,
            "seconds": time.perf_counter() - started, "provenance": provenance().to_dict(),
        }  # fmt: skip
        data = encode(made, header)
        if store:
            with suppress(StorageError):  # whoever asked for the result stores it, or says why not
                store.put(task.key, data)
        return Answer(data, seconds=time.perf_counter() - started)
    except _Stopped:
        raise
    except (Exception, SystemExit) as error:  # the others go on, whatever this one does
        message = error.message if isinstance(error, VmbkError) else str(error)
        hint = error.hint if isinstance(error, VmbkError) else ""
        if len(message) > _MOST_MESSAGE:
            message = message[:_MOST_MESSAGE] + "…"
        return Answer(
            error=type(error).__name__, message=message, hint=hint[:_MOST_MESSAGE],
            seconds=time.perf_counter() - started,
        )  # fmt: skip


class Engine:
    """An executor, and how much it may have at once.

    Parameters
    ----------
    executor : Executor
    limit : int
        Cells in flight.
    """

    replaceable = False
    """Whether `replace` makes a new one of an executor whose processes died."""

    def __init__(self, executor: Executor, limit: int) -> None:
        self._executor = executor
        self.limit = limit

    def submit(self, task: Task) -> Future[Answer]:
        """Have a cell run."""
        return self._executor.submit(run_task, task)

    def replace(self) -> None:
        """Start anew after processes died."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what the engine itself has started."""


class _Here(Engine):
    """One cell after the other, in this thread."""

    def __init__(self) -> None:
        self.limit = 1

    def submit(self, task: Task) -> Future[Answer]:
        future: Future[Answer] = Future()
        future.set_result(run_task(task))
        return future


class _Processes(Engine):
    """Processes of this sweep's own."""

    replaceable = True

    def __init__(self, processes: int, limit: int) -> None:
        self._processes = processes
        super().__init__(self._start(), limit)

    def _start(self) -> ProcessPoolExecutor:
        # Not forked: a copy of a process that has threads, as NumPy's and Polars', may hang.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._processes, context, initializer=_prepare)

    def submit(self, task: Task) -> Future[Answer]:
        return self._executor.submit(_run_owned, task)

    def replace(self) -> None:
        self.close()
        self._executor = self._start()

    def close(self) -> None:
        processes = list((getattr(self._executor, "_processes", None) or {}).values())
        self._executor.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # an abandoned cell need not come to its end
            process.terminate()
        for process in processes:
            process.join(_GRACE)
            if process.is_alive():
                process.kill()
                process.join()


class _Stopped(SystemExit):
    """This worker was told to end."""


class _Worker:
    """What a process of `_Processes` is at."""

    busy = False
    stopping = False


def _prepare() -> None:
    """Make ready a process of `_Processes`: it ends when it is told to, and when its parent does.

    It ends as an interrupted command does, so that cells remove the folders that they work in.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which tells us
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_watch, daemon=True).start()


def _stop(number: int, _: object) -> None:
    if _Worker.stopping and _Worker.busy:
        return  # tidying up already
    _Worker.stopping = True
    interrupt(_Stopped)  # should a library swallow this one
    raise _Stopped(128 + number)


def _watch() -> None:
    """End with the parent, even if that was killed: nobody else would end an idle worker."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    parent.join()
    for _ in range(int(_GRACE / 0.1)):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
    os._exit(1)


def _run_owned(task: Task) -> Answer:
    if _Worker.stopping:
        raise _Stopped
    _Worker.busy = True
    try:
        return run_task(task)
    finally:
        _Worker.busy = False


@contextmanager
def engine_of(executor: Any, in_flight: int | None) -> Iterator[Engine]:
    """The engine of what a caller gave; what it starts itself ends with the block.

    Parameters
    ----------
    executor : Executor, distributed.Client, int or None
        See `vmbk.study.sweep.sweep`.
    in_flight : int or None
        Cells handed out at once; twice the workers where None.

    Raises
    ------
    InputError
        If it is none of these, or a number is out of range.
    """
    if in_flight is not None and (
        not isinstance(in_flight, int) or not 1 <= in_flight <= MOST_IN_FLIGHT
    ):
        raise InputError(f"{quoted(in_flight)} cells in flight: 1 to {MOST_IN_FLIGHT} are possible")
    engine = _engine(executor, in_flight)
    try:
        yield engine
    finally:
        engine.close()


def _engine(executor: Any, in_flight: int | None) -> Engine:
    def limit(workers: int) -> int:
        return in_flight or min(2 * max(workers, 1), MOST_IN_FLIGHT)

    if executor is None:
        return _Here()
    if isinstance(executor, int) and not isinstance(executor, bool):
        if not 1 <= executor <= MOST_PROCESSES:
            raise InputError(f"{executor} processes: 1 to {MOST_PROCESSES} are possible")
        return _Processes(executor, limit(executor))
    if isinstance(executor, Executor):
        workers = getattr(executor, "_max_workers", None) or os.cpu_count() or 1
        return Engine(executor, limit(workers))
    if _is_dask_client(executor):
        # Impure: Dask must not take two cells for one, nor remember a result; the store does.
        return Engine(executor.get_executor(pure=False), limit(sum(executor.nthreads().values())))
    raise InputError(
        f"{quoted(executor)} runs no cells",
        hint="give an executor of concurrent.futures, a client of Dask distributed, or the number "
        "of processes",
    )


def _is_dask_client(value: Any) -> bool:
    """Whether this is a client of Dask, told without loading Dask."""
    kind = type(value)
    if not any(base.__module__.split(".")[0] == "distributed" for base in kind.__mro__):
        return False
    if not hasattr(value, "get_executor"):
        return False
    if value.asynchronous:
        raise InputError("a sweep waits, and this client of Dask is asynchronous")
    return True
