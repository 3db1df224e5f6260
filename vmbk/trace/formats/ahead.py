"""Taking from an iterator in a thread of its own, so that what follows overlaps with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from typing import Final, TypeVar

T = TypeVar("T")

_AHEAD: Final = 2  # items that wait: enough to keep both sides busy, few enough to bound memory
_LOOK_S: Final = 0.1  # between two looks at whether the other side is still there


@contextmanager
def ahead(items: Iterator[T]) -> Iterator[Iterator[T]]:
    """Iterate in another thread, a few items ahead of the one that takes them.

    What the iterator raises is raised to the taker. Leaving the block ends the thread, which
    finishes the item at hand first.

    Parameters
    ----------
    items : iterator
        Used by that thread alone from here on.
    """
    waiting: Queue[tuple[bool, T | BaseException | None]] = Queue(_AHEAD)
    left = threading.Event()

    def put(last: bool, item: T | BaseException | None) -> None:
        while not left.is_set():
            try:
                waiting.put((last, item), timeout=_LOOK_S)
                return
            except Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put(False, item)
                if left.is_set():
                    return
            put(True, None)
        except BaseException as error:  # the taker raises it
            put(True, error)

    def taken() -> Iterator[T]:
        while True:
            try:
                last, item = waiting.get(timeout=_LOOK_S)
            except Empty:  # a signal is only noticed between two waits
                continue
            if last:
                if item is not None:
                    raise item  # type: ignore[misc]
                return
            yield item  # type: ignore[misc]

    thread = threading.Thread(target=work, name="vmbk-ahead", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        left.set()
        thread.join()
