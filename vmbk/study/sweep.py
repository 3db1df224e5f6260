"""Sweeps: one function over many cells, on one core, many cores or many machines.

The result of a sweep depends on its function, its cells and its seed alone: not on where the cells
ran, in which order, or how often the sweep was killed and begun anew. What a cell *measures* of
time is another matter: cells that run side by side share cores, memory and disks, so that
their timings are noisier, and longer, than those of a serial run.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from contextlib import ExitStack
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Final

import polars as pl

import vmbk.errors
from vmbk.errors import InputError, VmbkError
from vmbk.progress import Advance, progress
from vmbk.study.sweep_store import INDEX, Claim, DamagedError, Finished, ResultStore, decode
from vmbk.study.sweep_worker import (
    Answer,
    Engine,
    Function,
    Task,
    canonical,
    code_version,
    engine_of,
    function_name,
)
from vmbk.units import quoted

MOST_CELLS: Final = 1_000_000
"""Of one sweep; each is a file."""

CELLS_SCHEMA: Final = {
    INDEX: pl.Int64, "key": pl.String, "seed": pl.Int64, "status": pl.String, "rows": pl.Int64,
    "seconds": pl.Float64, "error": pl.String, "message": pl.String, "version": pl.String,
    "commit": pl.String, "provenance": pl.String,
}  # fmt: skip
"""Columns of `SweepResult.cells`."""

_POLL: Final = 0.05
_WAIT: Final = 0.5


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes
    ----------
    rows : polars.DataFrame
        The rows that the function returned, in the order of the cells, after the column ``cell``:
        the number of the cell that a row is of, from 0. Cells that failed have none.
    cells : polars.DataFrame
        One row a cell: ``cell``, ``key``, ``seed``, ``status`` (``run``: now, ``found``: in the
        store, ``failed``), number of ``rows``, ``seconds`` that it took when it ran, ``error`` (the
        type) and ``message`` where it failed, and what made it: ``version``, ``commit``,
        ``provenance``.
    damaged : int
        Results in the store that were not what a sweep wrote; their cells ran again.
    seconds : float
        Wall time.
    """

    rows: pl.DataFrame = field(repr=False)
    cells: pl.DataFrame = field(repr=False)
    damaged: int = 0
    seconds: float = 0.0

    def _count(self, status: str) -> int:
        return int((self.cells["status"] == status).sum())

    @property
    def run(self) -> int:
        """Cells that ran now."""
        return self._count("run")

    @property
    def found(self) -> int:
        """Cells whose results were in the store."""
        return self._count("found")

    @property
    def failed(self) -> int:
        """Cells that have no result."""
        return self._count("failed")

    def check(self) -> SweepResult:
        """The same sweep, if no cell of it failed.

        Raises
        ------
        VmbkError
            Of the first cell that failed: of its own class, where that is one of vmbk's.
        """
        bad = self.cells.filter(pl.col("status") == "failed")
        if bad.is_empty():
            return self
        first = bad.row(0, named=True)
        kind = getattr(vmbk.errors, first["error"], VmbkError)
        ours = isinstance(kind, type) and issubclass(kind, VmbkError)
        error: VmbkError = VmbkError.__new__(kind if ours else VmbkError)
        known = type(error) is not VmbkError
        VmbkError.__init__(
            error,
            f"cell {first[INDEX]}: {'' if known else first['error'] + ': '}{first['message']}",
            hint=f"{len(bad)} of {len(self.cells)} cells failed",
        )
        raise error

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        columns = [INDEX, "error", "message"]
        return {
            "cells": len(self.cells), "run": self.run, "found": self.found, "failed": self.failed,
            "damaged": self.damaged, "rows": len(self.rows), "seconds": self.seconds,
            "errors": self.cells.filter(pl.col("status") == "failed").select(columns).to_dicts(),
        }  # fmt: skip

    def _repr_html_(self) -> str:
        from vmbk.display import key_values

        shown = {k: v for k, v in self.to_dict().items() if k not in ("errors", "seconds")}
        return key_values("Sweep", shown)


def sweep(
    function: Function,
    cells: Iterable[Any],
    *,
    store: str | PathLike[str] | None = None,
    executor: Executor | int | Any | None = None,
    seed: int = 0,
    version: str | None = None,
    in_flight: int | None = None,
    retries: int = 2,
    on_progress: Advance | None = None,
) -> SweepResult:
    """Run a function on every cell; those whose results are in the store are not run again.

    Parameters
    ----------
    function : callable
        ``function(cell, seed)`` at the top level of a module that workers can import. It returns
        rows as mappings, one mapping, or a `polars.DataFrame`, which is best the same for the same
        arguments; everything it draws at random comes from ``seed``, an int from 0 to 2**63 - 1.
    cells : iterable of dataclass or mapping
        What is swept over, plain enough for JSON; no two are the same.
    store : path, optional
        Folder where finished cells are kept: a sweep that is killed, at whatever moment, goes on
        from there, and several sweeps may share it. Nothing is kept without it.
    executor : Executor, distributed.Client or int, optional
        Where cells run: any `concurrent.futures.Executor`, a client of Dask distributed, or that
        many processes of this machine, started for this sweep and replaced if they die (a script
        needs its ``if __name__ == "__main__":`` then). One cell after the other in this process
        without it. Workers that see the store's folder under the same path write there themselves.
        A scheduler of Dask trusts whoever can reach it: let it listen on loopback, or use TLS.
    seed : int
        Each cell's own seed is derived from it and the cell.
    version : str, optional
        What results depend on besides: declare one, and results stay valid until it changes.
        Without it that is vmbk's version and the digest of its sources and of the function's
        module: any change of these runs the cells again. Versions of other packages are recorded
        in the provenance and invalidate nothing.
    in_flight : int, optional
        Cells that are handed to the executor at once; by default twice its workers.
    retries : int
        How often a cell is run again whose process died, with processes of the sweep's own. Dask
        has its own count (``distributed.scheduler.allowed-failures``).
    on_progress : callable, optional
        Called with the number of cells that were finished since; a bar is shown without it.

    Returns
    -------
    SweepResult
        A cell that raises an error does not stop the others; see `SweepResult.check`.

    Raises
    ------
    InputError
        If an argument is wrong, two cells are the same, or the rows of cells do not go together.
    StorageError
        If the store cannot be read or written.
    VmbkError
        If the executor is gone before all cells ran; what is finished stays in the store.
    """
    started = time.perf_counter()
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 63:
        raise InputError(f"a seed of {quoted(seed)}: a whole number from 0 to 2^63 - 1 is one")
    if not isinstance(retries, int) or not 0 <= retries <= 100:
        raise InputError(f"{quoted(retries)} retries: a whole number from 0 to 100 is possible")
    results = None if store is None else ResultStore.open(store)
    tasks = _tasks(function, cells, seed, version, results)
    with ExitStack() as stack:
        if on_progress is None:
            on_progress = stack.enter_context(progress("sweep", len(tasks), unit="cells"))
        run = _Run(tasks, results, on_progress, retries)
        run.find()
        if run.waiting:
            with engine_of(executor, in_flight) as engine:
                run.run(engine)
    return run.result(time.perf_counter() - started)


def _tasks(
    function: Function, cells: Iterable[Any], seed: int, version: str | None,
    store: ResultStore | None,
) -> list[Task]:  # fmt: skip
    name = function_name(function)
    if version is not None and (not isinstance(version, str) or not 0 < len(version) <= 200):
        raise InputError(f"{quoted(version)} is no version", hint="a short text, such as '1'")
    declared = version is not None
    against = version if version is not None else code_version(name)
    where = {"store": str(store.root), "store_id": store.identity} if store else {}
    tasks: list[Task] = []
    seen: dict[str, int] = {}
    for number, cell in enumerate(cells):
        if number == MOST_CELLS:
            raise InputError(f"a sweep has at most {MOST_CELLS:,} cells", hint="split it")
        try:
            plain = canonical(cell)
        except InputError as error:
            raise InputError(f"cell {number}: {error.message}", hint=error.hint) from None
        if plain in seen:
            raise InputError(
                f"cells {seen[plain]} and {number} are the same: {quoted(cell)}",
                hint="number them, if you want several draws",
            )
        seen[plain] = number
        tasks.append(Task(name, cell, plain, seed, against, declared, **where))
    return tasks


class _Run:
    """The state of one sweep: what waits, what runs, what was found."""

    def __init__(
        self, tasks: list[Task], store: ResultStore | None, advance: Advance, retries: int
    ) -> None:
        self._tasks, self._store, self._advance, self._retries = tasks, store, advance, retries
        self._keys = [task.key for task in tasks]
        self._finished: dict[int, Finished] = {}
        self._failed: dict[int, Answer] = {}
        self._ran: set[int] = set()
        self._damaged: set[int] = set()
        self.waiting = deque(range(len(tasks)))
        self._elsewhere: deque[int] = deque()  # claimed by another sweep
        self._alone: deque[int] = deque()  # ran when a process died: one at a time, to tell which
        self._deaths: dict[int, int] = {}
        self._claims: dict[int, Claim] = {}
        self._running: dict[Future[Answer], int] = {}

    def find(self) -> None:
        """Take what the store has."""
        if self._store:
            self.waiting = deque(i for i in self.waiting if not self._look(i))

    def _look(self, i: int) -> bool:
        """Whether the store has a result of a cell, which is taken then."""
        data = self._store.read(self._keys[i]) if self._store else None
        if data is None:
            return False
        try:
            self._finished[i] = decode(data, self._keys[i])
        except DamagedError:
            self._damaged.add(i)
            return False
        self._advance(1)
        return True

    def run(self, engine: Engine) -> None:
        """Run what waits, until nothing does."""
        try:
            while self.waiting or self._elsewhere or self._alone or self._running:
                self._fill(engine)
                if not self._running:
                    time.sleep(_POLL)  # other sweeps have all that is left
                    self._advance(0)
                else:
                    timeout = _POLL if self._elsewhere else _WAIT
                    done, _ = wait(self._running, timeout, FIRST_COMPLETED)
                    self._advance(0)
                    self._settle(done, engine)
                if not self.waiting:
                    self.waiting, self._elsewhere = self._elsewhere, self.waiting
        finally:
            for future in self._running:
                future.cancel()
            for claim in self._claims.values():
                claim.release()

    def _fill(self, engine: Engine) -> None:
        """Hand cells to the engine, as many as it may have at once."""
        while self._alone or self.waiting:
            if len(self._running) >= (1 if self._alone else engine.limit):
                return
            i = (self._alone or self.waiting).popleft()
            if i not in self._claims and not self._claim(i):
                continue
            try:
                future = engine.submit(self._tasks[i])
            except (BrokenExecutor, RuntimeError) as error:
                if not engine.replaceable or not isinstance(error, BrokenExecutor):
                    raise self._gone(error) from error
                self.waiting.appendleft(i)
                if self._running:  # which say so too
                    return
                engine.replace()
                continue
            except Exception as error:  # a cell that cannot be sent anywhere
                self._fail(i, Answer(error=type(error).__name__, message=str(error)[:500]))
                continue
            self._running[future] = i

    def _claim(self, i: int) -> bool:
        """Whether a cell is ours to run; what another sweep has finished meanwhile is taken."""
        if self._store is None:
            return True
        claim = self._store.claim(self._keys[i])
        if claim is None:
            self._elsewhere.append(i)
            return False
        self._claims[i] = claim
        if self._look(i):
            self._release(i)
            return False
        if i in self._damaged:
            self._store.remove(self._keys[i])
        return True

    def _release(self, i: int) -> None:
        claim = self._claims.pop(i, None)
        if claim:
            claim.release()

    def _settle(self, done: set[Future[Answer]], engine: Engine) -> None:
        broken = False
        for future in done:
            i = self._running.pop(future)
            try:
                answer = future.result()
            except BrokenExecutor as error:
                if not engine.replaceable:
                    raise self._gone(error) from error
                broken = True
                self._died(i, alone=len(self._running) == 0 and len(done) == 1)
            except CancelledError as error:
                raise self._gone(error) from error
            except Exception as error:  # it could not be sent, or killed workers of Dask
                self._fail(i, Answer(error=type(error).__name__, message=str(error)[:500]))
            else:
                self._take(i, answer)
        if broken:
            for i in self._running.values():  # the same processes had them
                self._died(i, alone=False)
            self._running.clear()
            engine.replace()

    def _died(self, i: int, *, alone: bool) -> None:
        """A process died that may have run this cell; it surely did if it ran alone."""
        if alone:
            self._deaths[i] = self._deaths.get(i, 0) + 1
        if self._deaths.get(i, 0) > self._retries:
            times = f"{self._deaths[i]} times" if self._deaths[i] > 1 else "once"
            self._fail(i, Answer(error="WorkerDied", message=f"its process died {times}"))
        else:
            self._alone.append(i)

    def _gone(self, error: BaseException) -> VmbkError:
        left = len(self._tasks) - len(self._finished) - len(self._failed)
        kept = "what is finished is in the store: run again to go on" if self._store else ""
        return VmbkError(
            f"the executor is gone before {left} of {len(self._tasks)} cells ran: "
            f"{type(error).__name__} {error}".rstrip(),
            hint=kept or "give a store, and nothing finished is lost",
        )

    def _take(self, i: int, answer: Answer) -> None:
        """Keep what a worker answered."""
        if answer.error:
            self._fail(i, answer)
            return
        if self._store:
            self._store.put(self._keys[i], answer.data)  # unless the worker did
        try:
            self._finished[i] = decode(answer.data, self._keys[i])
        except DamagedError as error:
            self._fail(i, Answer(error="InputError", message=error.message))
            return
        if answer.ran:
            self._ran.add(i)
        self._release(i)
        self._advance(1)

    def _fail(self, i: int, answer: Answer) -> None:
        self._failed[i] = answer
        self._release(i)
        self._advance(1)

    def result(self, seconds: float) -> SweepResult:
        """All that was found, in the order of the cells."""
        frames, rows = [pl.DataFrame(schema={INDEX: pl.Int64})], []
        for i, task in enumerate(self._tasks):
            row = {INDEX: i, "key": self._keys[i], "seed": task.seed}
            if i in self._failed:
                answer = self._failed[i]
                message = answer.message + (f" ({answer.hint})" if answer.hint else "")
                row |= {"status": "failed", "rows": 0, "seconds": answer.seconds,
                        "error": answer.error, "message": message}  # fmt: skip
            else:
                found = self._finished[i]
                made = dict(found.header["provenance"])
                number = pl.repeat(i, len(found.rows), dtype=pl.Int64, eager=True).alias(INDEX)
                frames.append(found.rows.clone().insert_column(0, number))
                row |= {"status": "run" if i in self._ran else "found", "rows": len(found.rows),
                        "seconds": float(found.header["seconds"]),
                        "version": str(made.pop("version", "")),
                        "commit": str(made.pop("commit", "")),
                        "provenance": json.dumps(made, sort_keys=True)}  # fmt: skip
            rows.append(row)
        return SweepResult(
            rows=_together(frames), cells=pl.DataFrame(rows, schema=CELLS_SCHEMA),
            damaged=len(self._damaged), seconds=seconds,
        )  # fmt: skip


def _together(frames: list[pl.DataFrame]) -> pl.DataFrame:
    """One table of all; a column that a cell lacks is null there."""
    try:
        return pl.concat(frames, how="diagonal_relaxed", rechunk=True)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise InputError(
            f"the rows of the cells do not go together: {error}",
            hint="return the same columns of the same types for every cell",
        ) from None
