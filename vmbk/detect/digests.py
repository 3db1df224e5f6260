"""Block digests of a buffer, a file or a disk."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vmbk.detect.changes import Digests
from vmbk.detect.full import blank
from vmbk.detect.scan import align, default_workers, for_each, load_kernels, scan
from vmbk.disk.raw import RawDisk
from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.progress import progress
from vmbk.units import MIB, format_duration, format_size, parse_size

ALGORITHMS = ("xxh3-64",)


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
    digests : ndarray of uint64, shape (blocks,)
        One digest a block.
    seconds : float
        Wall time.
    """

    algorithm: str
    block_size: int
    size: int
    digests: Digests = field(repr=False)
    seconds: float

    @property
    def digest(self) -> str:
        """XXH3-64, hex, over the little-endian array of the digests."""
        from vmbk.kernels.hash import xxh3_64

        return f"{int(xxh3_64(self.digests.astype('<u8', copy=False).view(np.uint8))):016x}"

    def __len__(self) -> int:
        return len(self.digests)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "blocks": len(self.digests),
            "algorithm": self.algorithm,
            "block_size": self.block_size,
            "bytes": self.size,
            "digests_xxh3_64": self.digest,
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
        ``xxh3-64``: XXH3-64 with seed 0, bit-exact with the reference.
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
    '90a6a84d6a7dec2c'
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
    load_kernels()
    started = time.perf_counter()
    if isinstance(data, (str, os.PathLike)):
        digests, size = _hash_file(data, unit, workers)
    else:
        try:
            flat = np.frombuffer(memoryview(data).cast("B"), np.uint8)
        except (TypeError, ValueError) as error:
            raise InputError(f"cannot hash a {type(data).__name__}: {error}") from error
        digests, size = _hash_array(flat, unit, workers), len(flat)
    return BlockDigests(algorithm, unit, size, digests, time.perf_counter() - started)


def _hash_array(data: Any, unit: int, workers: int | None) -> Digests:
    from vmbk.kernels.hash import xxh3_64_blocks

    out = np.empty(-(-len(data) // unit), np.uint64)
    step = max(1, 4 * MIB // unit)

    def work(i: int, _: None) -> None:
        lo, hi = i * step, min((i + 1) * step, len(out))
        xxh3_64_blocks(data[lo * unit : hi * unit], unit, out[lo:hi])

    for_each(-(-len(out) // step), work, lambda: None, workers or default_workers())
    return out


def _hash_file(path: str | os.PathLike[str], unit: int, workers: int | None) -> tuple[Digests, int]:
    with RawDisk(path, mode="r") as disk:
        state = blank(disk.size, unit, 0)
        ranges = align(disk.data_extents(), unit, disk.size)
        with progress(f"hash {disk.name}", int(ranges[1].sum())) as advance:
            scan(disk, ranges, (unit, 0), state, None, workers=workers, on_progress=advance)
        return state.digests, disk.size
