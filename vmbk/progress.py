"""Progress bars on standard error, for anything that takes over a second.

Silent unless standard error is a terminal, so that logs, pipes and tested notebooks stay clean;
``VMBK_PROGRESS=1`` forces and ``VMBK_PROGRESS=0`` forbids them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

Advance = Callable[[int], None]
"""Called with how much was done since the last call; safe to call from many threads."""


_interrupt: list[type[BaseException]] = []


def interrupt(error: type[BaseException]) -> None:
    """Raise this at the next step of whatever is under way.

    A signal handler that raises can be swallowed: libraries have bare ``except`` clauses. This is
    its second chance.
    """
    _interrupt[:] = [error]


def _stoppable(advance: Advance) -> Advance:
    def step(amount: int) -> None:
        if _interrupt:
            raise _interrupt[0]
        advance(amount)

    return step


def _wanted() -> bool:
    if sys.stderr is None:  # closed by whoever started us
        return False
    forced = os.environ.get("VMBK_PROGRESS")
    return sys.stderr.isatty() if forced is None else forced != "0"


class _Lenient:
    """Standard error, except that what cannot be written is lost: a bar must not stop the work.

    It is the stream of the moment a bar begins: while one is shown, ``sys.stderr`` leads back here.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:
        return self._stream.encoding

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def _console() -> Console:
    from rich.console import Console

    # Who forces bars wants to see them, wherever they go.
    forced = True if os.environ.get("VMBK_PROGRESS") is not None else None
    return Console(file=cast("IO[str]", _Lenient(sys.stderr)), force_terminal=forced)


@contextmanager
def progress(description: str, total: int, *, unit: str = "bytes") -> Iterator[Advance]:
    """Show a bar while the block runs.

    Parameters
    ----------
    description : str
        What is being done, such as ``"restore web-1"``.
    total : int
        How much there is to do, in ``unit``.
    unit : str
        ``"bytes"`` shows sizes and a rate; anything else shows counts.

    Yields
    ------
    Advance
        Call it with the amount done since the last call.
    """
    if not _wanted():
        yield _stoppable(lambda amount: None)
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount = (
        [DownloadColumn(binary_units=True), TransferSpeedColumn()]
        if unit == "bytes"
        else [MofNCompleteColumn(), TextColumn(unit)]
    )
    columns = [TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn()]
    with Progress(*columns, console=_console(), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield _stoppable(lambda done: bar.update(task, advance=done))
