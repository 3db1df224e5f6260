"""The tracking of an image that nobody writes: keep it so, load it, judge whether to believe it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vmbk.disk.opening import is_block_device, lock_image, open_image
from vmbk.disk.sidecar import load, locked, sidecar_path
from vmbk.disk.signature import ImageSignature, trusted_signature
from vmbk.disk.tracking_state import (
    GRANULARITY,
    Lost,
    State,
    TrackingLostError,
    fresh,
    start_over,
)
from vmbk.errors import InputError


def untrackable(device: Path) -> InputError:
    """Why a block device cannot be tracked."""
    return InputError(
        f"{str(device)!r} is a block device and cannot be tracked: writes through its other "
        "nodes, its partitions or a mount leave no trace on it",
        hint="use another detector, such as checksum",
    )


@contextmanager
def at_rest(image: Path, *, lock: bool = True) -> Iterator[ImageSignature]:
    """Keep writers away from an image while its tracking is changed.

    Parameters
    ----------
    image : Path
        Resolved.
    lock : bool
        False to let writers be, where the tracking is only read.

    Raises
    ------
    InputError
        If it is a block device.
    BusyError
        If it is open for writing.
    NotFoundError, StorageError
        If it does not exist or the operating system refuses.
    """
    if is_block_device(image):
        raise untrackable(image)
    label = f"disk image {str(image)!r}"
    fd = open_image(image, os.O_RDONLY)
    try:
        if lock:
            lock_image(fd, label, exclusive=False)
        yield trusted_signature(fd, label)
    finally:
        os.close(fd)


@contextmanager
def sidecar_locked(path: Path) -> Iterator[None]:
    """Hold a sidecar alone; `TrackingLostError` where there is none."""
    try:
        with locked(path):
            yield
    except FileNotFoundError as error:
        raise _not_tracked(path) from error


def new_state(image: Path, size: int, granularity: int) -> State:
    """The state of a tracker that starts now. Its base 0 is the image as it is.

    Raises
    ------
    InputError
        If the image is tracked already.
    """
    if os.path.lexists(sidecar_path(image)):
        raise InputError(
            f"{str(image)!r} is tracked already",
            hint=f"to start over, remove {str(sidecar_path(image))!r}",
        )
    return fresh(size, granularity, 0)


def load_state(image: Path, signature: ImageSignature) -> State:
    """The state of an image that has this signature now; started over where trust is lost.

    Raises
    ------
    TrackingLostError
        If the image is not tracked.
    StorageError
        If the operating system refuses to read the sidecar.
    """
    path = sidecar_path(image)
    try:
        stored = load(path, signature.size)
    except FileNotFoundError as error:
        raise _not_tracked(path) from error
    if stored is None:
        state = fresh(signature.size, GRANULARITY, 0)
        state.losses = (("", Lost.DAMAGED),)
        return state
    if stored.state.size != signature.size:
        return start_over(stored.state, Lost.SIZE_CHANGED, signature.size)
    if not stored.clean:
        return start_over(stored.state, Lost.UNCLEAN, signature.size)
    if not stored.signature.same_content(signature):
        return start_over(stored.state, Lost.FOREIGN_WRITE, signature.size)
    return stored.state


def _not_tracked(path: Path) -> TrackingLostError:
    return TrackingLostError(Lost.NO_TRACKER, f"there is no {str(path)!r}")
