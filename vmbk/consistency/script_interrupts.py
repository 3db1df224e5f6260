"""Ctrl-C held back while something must not be left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """A context in which Ctrl-C is kept for its end, but for the parts that let it through.

    The first one raises where it is `allowed`, and what then has to be put right is not disturbed
    by a second one, but for the parts that let a second one through. Outside of the main thread,
    which alone gets Ctrl-C, nothing is done.
    """

    def __init__(self) -> None:
        self._before: Callable[[int, FrameType | None], Any] | None = None
        self._raises_from: int | None = None  # the how many-th one raises now
        self.count = 0
        self._came: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if callable(before):  # else it is ignored, or not Python's to handle
                self._before = before
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is None:
            return
        signal.signal(signal.SIGINT, self._before)
        if self._came is not None and not isinstance(error, KeyboardInterrupt):
            self._before(*self._came)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._raises_from is not None and self.count >= self._raises_from:
            self._raise(number, frame)
        else:
            self._came = (number, frame)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self._raises_from, self._came = None, None
        if self._before is not None:
            self._before(number, frame)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A part in which Ctrl-C raises; at once if it has come before."""
        self._raises_from = 1
        try:
            if self._came is not None:
                self._raise(*self._came)
            yield
        finally:
            self._raises_from = None

    @contextmanager
    def second_allowed(self, since: int) -> Iterator[None]:
        """A part of something in which a second Ctrl-C raises, wherever the first one came.

        Parameters
        ----------
        since : int
            The `count` when it began: one that came before that and was kept does not end it.
        """
        self._raises_from = 2
        try:
            if self._came is not None and self.count > max(since, 1):
                self._raise(*self._came)
            yield
        finally:
            self._raises_from = None
