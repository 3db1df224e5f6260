"""Content to look at, in pieces: of a buffer, a file or a disk, or as it comes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmbk.disk.base import Bytes
from vmbk.errors import InputError
from vmbk.units import MIB

PIECE = 16 * MIB
"""Bytes that are looked at together."""


def as_array(data: Any) -> Bytes:
    """The bytes of a buffer, without a copy.

    Raises
    ------
    InputError
        If it is none.
    """
    try:
        return np.frombuffer(memoryview(data).cast("B"), np.uint8)
    except (TypeError, ValueError) as error:
        raise InputError(f"no content in a {type(data).__name__}: {error}") from error


def is_path(data: Any) -> bool:
    """Whether content is given by the name of a file."""
    return isinstance(data, str | os.PathLike)


def pieces(data: Any, piece: int = PIECE) -> Iterator[Bytes]:
    """Content, piece by piece; all but the last of ``piece`` bytes.

    Parameters
    ----------
    data : path, buffer, or iterable of buffers
        The path of a file, an image or a block device; anything with the buffer protocol; or
        several of those, one after the other.
    piece : int
        Bytes.

    Yields
    ------
    ndarray of uint8
        Valid until the next one is asked for.

    Raises
    ------
    InputError, NotFoundError, StorageError
        If the content cannot be read.
    """
    if is_path(data):
        from vmbk.disk.raw import RawDisk

        with RawDisk(data, mode="r") as disk:
            buffer = np.empty(min(piece, disk.size), np.uint8)
            for offset in range(0, disk.size, piece):
                part = buffer[: min(piece, disk.size - offset)]
                disk.read_into(offset, part)
                yield part
    elif isinstance(data, bytes | bytearray | memoryview) or hasattr(data, "__array__"):
        whole = as_array(data)
        for at in range(0, len(whole), piece):
            yield whole[at : at + piece]
    elif isinstance(data, Iterable):
        yield from _regrouped(data, piece)
    else:
        whole = as_array(data)
        for at in range(0, len(whole), piece):
            yield whole[at : at + piece]


def _regrouped(parts: Iterable[Any], piece: int) -> Iterator[Bytes]:
    buffer: NDArray[np.uint8] = np.empty(piece, np.uint8)
    filled = 0
    for part in parts:
        data = as_array(part)
        while len(data):
            taken = data[: piece - filled]
            buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            data = data[len(taken) :]
            if filled == piece:
                yield buffer
                filled = 0
    if filled:
        yield buffer[:filled]
