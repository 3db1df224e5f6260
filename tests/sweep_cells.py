"""Functions that the tests of sweeps run, in a module that workers import quickly."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl


@dataclass(frozen=True)
class Draw:
    """A cell that draws numbers."""

    size: int
    name: str = "a"


def draw(cell: Draw, seed: int) -> list[dict[str, Any]]:
    """Rows that depend on the seed."""
    numbers = random.Random(seed)
    return [{"name": cell.name, "i": i, "x": numbers.random()} for i in range(cell.size)]


def noted(cell: dict[str, Any], seed: int) -> dict[str, Any]:
    """Slow, and leaves a line in a file whenever it begins, with the time and its process."""
    line = f"{cell['i']} {time.time_ns()} {os.getpid()}\n".encode()
    file = os.open(cell["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line)
    os.close(file)
    time.sleep(cell.get("seconds", 0.1))
    return {"i": cell["i"], "x": random.Random(seed).random()}


def shapes(cell: dict[str, Any], seed: int) -> Any:
    """Results of many kinds."""
    kind = cell["kind"]
    if kind == "frame":
        return pl.DataFrame({"a": [1, 2], "b": [[1], None], "c": [None, None]})
    if kind == "row":
        return {"a": 1.5, "d": "x"}
    if kind == "none":
        return []
    if kind == "large":
        return pl.DataFrame({"a": [0]}).select(pl.lit("x" * (2 << 20)).alias("a"))
    return {"object": object(), "number": 7, "column": {"cell": 1}, "text": "rows"}[kind]


def moody(cell: dict[str, Any], seed: int) -> dict[str, Any]:
    """Fails in the way that its cell says."""
    match cell["mood"]:
        case "fails":
            raise ValueError("no luck " + "x" * 5000)
        case "exits":
            sys.exit("left")
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "dies once":
            mark = Path(cell["mark"])
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
    return {"mood": cell["mood"], "seed": seed}


def main() -> None:
    """Sweep `noted`, to be killed or to meet another one."""
    from vmbk.study.sweep import sweep

    store, log, count, processes = sys.argv[1:]
    done = sweep(
        noted, noted_cells(log, int(count)), store=store, version="1",
        executor=int(processes) or None,
    )  # fmt: skip
    print(done.run, done.found, done.failed)


def noted_cells(log: str, count: int, seconds: float = 0.1) -> list[dict[str, Any]]:
    """Cells of `noted`."""
    return [{"i": i, "log": log, "seconds": seconds} for i in range(count)]


if __name__ == "__main__":
    from tests.sweep_cells import main as main_of_module  # so that functions have their names

    main_of_module()
