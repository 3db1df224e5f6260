"""Block digests of a buffer, a file or a disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.detect.scan import WINDOW, align, default_workers, for_each, windows
from vmbk.disk.direct import aligned_buffer
from vmbk.disk.raw import RawDisk
from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.units import MIB, format_duration, format_size, parse_size

ALGORITHMS: Final = {"xxh3-64": "hash", "xxh3-128": "seeded", "crc32c": "crc"}
"""Family of kernels of each algorithm."""

Take = Callable[[Any, int, NDArray[Any]], None]
"""Digests of the blocks of some bytes, to an array with a row per block."""


@dataclass(frozen=True)
class BlockDigests:
    """Digests of every block, the last of which may be short.

    Attributes
    ----------
    algorithm : str
        What was computed.
    block_size : int
        Bytes per block.
    size : int
        Bytes hashed.
    digests : ndarray
        One digest a block: uint64 of shape (blocks,) for ``xxh3-64``, uint32 of shape (blocks,)
        for ``crc32c``, and for ``xxh3-128`` uint64 of shape (blocks, 2), the lower half first.
    seconds : float
        Wall time.
    """

    algorithm: str
    block_size: int
    size: int
    digests: NDArray[Any] = field(repr=False)
    seconds: float

    @property
    def digest(self) -> str:
        """The same algorithm, hex, over the little-endian array of the digests."""
        packed = self.digests.astype(self.digests.dtype.newbyteorder("<"), copy=False)
        data = packed.reshape(-1).view(np.uint8)
        take, row = _algorithm(self.algorithm)
        take(data, max(1, len(data)), row)
        words = reversed(row.reshape(-1).tolist())
        return "".join(f"{word:0{2 * row.itemsize}x}" for word in words)

    def __len__(self) -> int:
        return len(self.digests)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "blocks": len(self.digests),
            "algorithm": self.algorithm,
            "block_size": self.block_size,
            "bytes": self.size,
            f"digests_{self.algorithm.replace('-', '_')}": self.digest,
            "seconds": self.seconds,
        }

    def _repr_html_(self) -> str:
        rows = {
            "algorithm": self.algorithm,
            "bytes": format_size(self.size),
            "blocks": f"{len(self):,} of {format_size(self.block_size)}",
            "digest of digests": self.digest,
            "time": format_duration(self.seconds),
        }
        return key_values("Block digests", rows)


def hash_blocks(
    data: Any,
    block_size: int | str = 64 * 1024,
    *,
    algorithm: str = "xxh3-64",
    workers: int | None = None,
) -> BlockDigests:
    """Digest every block of a buffer or of a file.

    Parameters
    ----------
    data : buffer or path
        Anything with the buffer protocol (bytes, NumPy array, Arrow buffer), or the path of a
        file, an image or a block device.
    block_size : int or str
        Bytes per block, at least 1 and at most 1 GiB, such as ``"64KiB"``.
    algorithm : str
        ``xxh3-64`` or ``xxh3-128``: XXH3 with seed 0; ``crc32c``: the CRC of iSCSI. All are
        bit-exact with their references.
    workers : int, optional
        Threads; as many as there are processors by default.

    Returns
    -------
    BlockDigests

    Raises
    ------
    InputError
        If the block size or the algorithm is not one of those allowed, or the file is not there.

    Examples
    --------
    >>> hash_blocks(b"abc", 4096).digest
    'f267cda02014e7eb'
    """
    unit = parse_size(block_size)
    if not 1 <= unit <= 1 << 30:
        raise InputError(f"the block size must be from 1 byte to 1 GiB, not {block_size!r}")
    if algorithm not in ALGORITHMS:
        raise InputError(
            f"{algorithm!r} is no algorithm", hint=f"choose one of {', '.join(ALGORITHMS)}"
        )
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, not {workers}")
    take, row = _algorithm(algorithm)
    started = time.perf_counter()
    if isinstance(data, (str, os.PathLike)):
        digests, size = _hash_file(data, unit, take, row, workers)
    else:
        try:
            flat = np.frombuffer(memoryview(data).cast("B"), np.uint8)
        except (TypeError, ValueError) as error:
            raise InputError(f"cannot hash a {type(data).__name__}: {error}") from error
        digests, size = _hash_array(flat, unit, take, row, workers), len(flat)
    return BlockDigests(algorithm, unit, size, digests, time.perf_counter() - started)


def _algorithm(name: str) -> tuple[Take, NDArray[Any]]:
    """What computes an algorithm's digests, and room for one of them."""
    with progress(f"load {name}", 1, unit="families") as advance:
        kernels = import_module(f"vmbk.kernels.{ALGORITHMS[name]}")
        advance(1)
    if name == "xxh3-64":
        return kernels.xxh3_64_blocks, np.zeros(1, np.uint64)
    if name == "crc32c":
        return kernels.crc32c_blocks, np.zeros(1, np.uint32)

    def take(data: Any, unit: int, out: NDArray[Any]) -> None:
        kernels.xxh3_128_blocks(data, unit, np.uint64(0), out.reshape(-1))

    return take, np.zeros((1, 2), np.uint64)


def _hash_array(
    data: Any, unit: int, take: Take, row: NDArray[Any], workers: int | None
) -> NDArray[Any]:
    out = np.empty((-(-len(data) // unit), *row.shape[1:]), row.dtype)
    step = max(1, 4 * MIB // unit)

    def work(i: int, _: None) -> None:
        lo, hi = i * step, min((i + 1) * step, len(out))
        take(data[lo * unit : hi * unit], unit, out[lo:hi])

    for_each(-(-len(out) // step), work, lambda: None, workers or default_workers())
    return out


def _hash_file(
    path: str | os.PathLike[str], unit: int, take: Take, row: NDArray[Any], workers: int | None
) -> tuple[NDArray[Any], int]:
    with RawDisk(path, mode="r") as disk:
        ranges = align(disk.data_extents(), unit, disk.size)
        offsets, lengths = windows(ranges, unit)
        # What is not read is a hole.
        take(np.zeros(unit, np.uint8), unit, row)
        out = np.repeat(row, -(-disk.size // unit), axis=0)
        if disk.size % unit:
            take(np.zeros(disk.size % unit, np.uint8), unit, out[-1:])

        with progress(f"hash {disk.name}", int(ranges[1].sum())) as advance:

            def work(i: int, buffer: NDArray[np.uint8]) -> None:
                offset, length = int(offsets[i]), int(lengths[i])
                data = buffer[:length]
                disk.read_into(offset, data)
                take(data, unit, out[offset // unit : -(-(offset + length) // unit)])
                advance(length)

            for_each(
                len(offsets),
                work,
                lambda: aligned_buffer(max(WINDOW, unit)),
                workers or default_workers(),
            )
        return out, disk.size
