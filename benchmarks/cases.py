"""The table of what is measured: each case names our way, the naive one, a peer, and a baseline.

Tests call a case on little data, where all ways must agree; benchmarks time ours and the baseline
in turns. Machines differ and drift, so a time alone says little: a figure is the baseline's time
over ours, measured in the same run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import fleets
from vmbk.units import GIB, KIB, MIB

TIB = 1024 * GIB

Ways = Callable[[], Any]


@dataclass(frozen=True)
class Setup:
    """A case with its data.

    Attributes
    ----------
    ours, baseline : callable
    same : dict of str to callable
        Other ways to the same result: the naive one, a peer library.
    amount : int
        What ours goes through, in ``unit``.
    close : callable
        Removes the data.
    """

    ours: Ways
    baseline: Ways
    same: dict[str, Ways]
    amount: int
    unit: str = "bytes"
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Case:
    """A line of the table.

    Attributes
    ----------
    name : str
    baseline : str
        What ours is compared with.
    make : callable
        Told a share of the full size, makes the data.
    floor : float or None
        The least ratio of the baseline's time to ours.
    rounds : int
    """

    name: str
    baseline: str
    make: Callable[[float], Setup]
    floor: float | None = None
    rounds: int = 9


# --- Data and baselines --------------------------------------------------------------------------


def random_bytes(size: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 1 << 64, -(-size // 8), np.uint64).view(
        np.uint8
    )[:size]  # fmt: skip


def scaled(size: int, share: float, unit: int = 1) -> int:
    return max(int(size * share) // unit, 1) * unit


@cache
def _sum() -> Callable[[NDArray[np.uint64]], int]:
    import numba

    @numba.njit(nogil=True)
    def add(words: NDArray[np.uint64]) -> int:
        total = np.uint64(0)
        for i in range(words.size):
            total += words[i]
        return total

    add(np.zeros(1, np.uint64))
    return add  # type: ignore[no-any-return]


@cache
def _parallel_sum() -> Callable[[NDArray[np.uint64]], int]:
    import numba

    @numba.njit(parallel=True)
    def add(words: NDArray[np.uint64]) -> int:
        total = np.uint64(0)
        for i in numba.prange(words.size):
            total += words[i]
        return total

    add(np.zeros(1, np.uint64))
    return add  # type: ignore[no-any-return]


def reading(*arrays: NDArray[Any], threads: int = 2) -> Ways:
    """Reading arrays as fast as the memory gives them: their sum, by Numba."""
    add = _parallel_sum() if threads > 1 else _sum()
    words = [a.view(np.uint8)[: a.nbytes // 8 * 8].view(np.uint64) for a in arrays]
    return lambda: [add(w) for w in words]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)


def in_threads(work: Callable[[int, int], None], units: int, threads: int) -> None:
    """Call ``work(first, last)`` for as many shares of the units as there are threads."""
    if threads == 1:
        work(0, units)
        return
    edges = [units * i // threads for i in range(threads + 1)]
    list(_pool().map(work, edges[:-1], edges[1:]))


# --- Digests -------------------------------------------------------------------------------------


def hashing(share: float, threads: int, peer: bool) -> Setup:
    import xxhash

    from vmbk.kernels.hash import xxh3_64_blocks

    block = 4 * KIB
    data = random_bytes(scaled(GIB, share, block))
    digests = np.empty(data.size // block, np.uint64)

    def ours() -> NDArray[np.uint64]:
        def work(first: int, last: int) -> None:
            xxh3_64_blocks(data[first * block : last * block], block, digests[first:last])

        in_threads(work, len(digests), threads)
        return digests

    def by_xxhash() -> list[int]:
        view = memoryview(data)
        digest = xxhash.xxh3_64_intdigest
        return [digest(view[at : at + block]) for at in range(0, data.size, block)]

    baseline = by_xxhash if peer else reading(data, threads=threads)
    return Setup(ours, baseline, {"xxhash": by_xxhash}, data.size)


def wide_hashing(share: float) -> Setup:
    import xxhash

    from vmbk.kernels.seeded import xxh3_128_blocks

    block = 4 * KIB
    data = random_bytes(scaled(GIB, share, block))
    digests = np.empty(2 * (data.size // block), np.uint64)

    def ours() -> NDArray[np.uint64]:
        def work(first: int, last: int) -> None:
            part = data[first * block : last * block]
            xxh3_128_blocks(part, block, 0, digests[2 * first : 2 * last])

        in_threads(work, len(digests) // 2, 2)
        return digests

    def by_xxhash() -> NDArray[np.uint64]:
        parts = (data[at : at + block] for at in range(0, data.size, block))
        return np.frombuffer(b"".join(xxhash.xxh3_128_digest(part)[::-1] for part in parts), "<u8")

    return Setup(ours, reading(data), {"xxhash": by_xxhash}, data.size)


def crc32c(share: float) -> Setup:
    """CRC32C; the peer has CRC-32, which is as much work for a table and for zlib."""
    from vmbk.kernels.crc import crc32c_blocks

    block = 4 * KIB
    data = random_bytes(scaled(GIB // 4, share, block))
    sums = np.empty(data.size // block, np.uint32)

    def ours() -> NDArray[np.uint32]:
        crc32c_blocks(data, block, sums)
        return sums

    def by_zlib() -> list[int]:
        return [zlib.crc32(data[at : at + block]) for at in range(0, data.size, block)]

    def bitwise() -> list[int]:
        """By the definition, for the first block alone, and ours for the rest."""
        crc = 0xFFFF_FFFF
        for byte in data[:block].tolist():
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ 0x82F6_3B78 * (crc & 1)
        return [crc ^ 0xFFFF_FFFF, *ours()[1:].tolist()]

    return Setup(ours, by_zlib, {"the definition": bitwise}, data.size)


def drilling(share: float) -> Setup:
    """Hash, zero test and sub-block digests in one pass, beside three passes."""
    from vmbk.kernels.compare import zero_blocks
    from vmbk.kernels.fused import scan_blocks
    from vmbk.kernels.hash import xxh3_64_blocks

    block, sub = 64 * KIB, 4 * KIB
    data = random_bytes(scaled(GIB, share, block))
    data[: len(data) // 4] = 0
    base = np.zeros(data.size // block, np.uint64)

    def room() -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint8]]:
        subs = data.size // sub
        return np.empty(len(base), np.uint64), np.zeros(subs, np.uint64), np.empty(subs, np.uint8)

    one, three = room(), room()

    def ours() -> NDArray[np.uint64]:
        scan_blocks(data, block, sub, base, *one)
        return np.concatenate([one[0], one[1], one[2].astype(np.uint64)])

    def in_passes() -> NDArray[np.uint64]:
        xxh3_64_blocks(data, block, three[0])
        zero_blocks(data, sub, three[2])
        xxh3_64_blocks(data, sub, three[1])
        return np.concatenate([three[0], three[1], three[2].astype(np.uint64)])

    return Setup(ours, in_passes, {"three passes": in_passes}, data.size)


# --- Content -------------------------------------------------------------------------------------


def chunking(share: float) -> Setup:
    from vmbk.content.chunking import Chunking, cut_chunks

    data = random_bytes(scaled(GIB // 4, share, MIB))
    how = Chunking.fastcdc("64KiB")

    def in_pieces() -> NDArray[np.int64]:
        cuts = range(0, data.size, 333_333)
        return cut_chunks([data[at : at + 333_333] for at in cuts], how).lengths

    return Setup(
        lambda: cut_chunks(data, how).lengths, reading(data, threads=1),
        {"in pieces": in_pieces}, data.size,
    )  # fmt: skip


def entropy(share: float) -> Setup:
    from vmbk.content.statistics import content_blocks

    block = 64 * KIB
    data = random_bytes(scaled(GIB // 8, share, block)) & np.uint8(0x3F)

    def by_numpy() -> NDArray[np.float64]:
        found = []
        for at in range(0, data.size, block):
            share = np.bincount(data[at : at + block], minlength=256) / block
            share = share[share > 0]
            found.append(-(share * np.log2(share)).sum())
        return np.array(found).round(9)

    def ours() -> NDArray[np.float64]:
        return content_blocks(data, block, workers=1)["entropy"].to_numpy().round(9)

    return Setup(ours, by_numpy, {"numpy": by_numpy}, data.size)


def filling(share: float, text: int) -> Setup:
    from vmbk.kernels.content import fill_content

    block = 4 * KIB
    out = np.empty(scaled(GIB // 4, share, block), np.uint8)
    versions = np.zeros(out.size // block, np.int64)

    def ours() -> NDArray[np.uint8]:
        fill_content(out, 0, 0, 0, versions, block, 0, text, 0)
        return out

    def block_by_block() -> NDArray[np.uint8]:
        made = np.empty_like(out)
        for i in range(len(versions)):
            part = made[i * block : (i + 1) * block]
            fill_content(part, 0, 0, i, versions[:1], block, 0, text, 0)
        return made

    source = random_bytes(out.size)
    target = np.empty_like(out)
    return Setup(ours, lambda: np.copyto(target, source), {"each block alone": block_by_block},
                 out.size)  # fmt: skip


# --- Comparison and bitmaps ----------------------------------------------------------------------


def comparing(share: float) -> Setup:
    from vmbk.kernels.compare import compare_blocks

    block = 64 * KIB
    size = scaled(GIB, share, block)
    a = random_bytes(size)
    b = a.copy()
    differs = np.empty(size // block, np.uint8)

    def ours() -> NDArray[np.uint8]:
        def work(first: int, last: int) -> None:
            part = slice(first * block, last * block)
            compare_blocks(a[part], b[part], block, differs[first:last])

        in_threads(work, len(differs), 2)
        return differs

    def by_numpy() -> NDArray[np.bool_]:
        return np.any((a != b).reshape(-1, block), axis=1)

    return Setup(ours, reading(a, b), {"numpy": by_numpy}, 2 * size)


def extents(share: float) -> Setup:
    from vmbk.detect.scan import bitmap_ranges

    block = 64 * KIB
    blocks = scaled(TIB // block, share, 8)
    rng = np.random.default_rng(0)
    flags = np.zeros(blocks, np.uint8)
    for start in rng.integers(0, blocks, max(blocks // 400, 1)).tolist():
        flags[start : start + int(rng.geometric(1 / 20))] = 1
    bits = np.packbits(flags, bitorder="little")

    def by_numpy() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        flags = np.unpackbits(bits, bitorder="little").view(np.int8)
        edges = np.flatnonzero(np.diff(flags, prepend=0, append=0))
        starts, stops = edges[::2], edges[1::2]
        return starts * block, (stops - starts) * block

    return Setup(
        lambda: bitmap_ranges(bits, block, blocks * block), by_numpy, {"numpy": by_numpy},
        blocks, "blocks",
    )  # fmt: skip


def marking(share: float) -> Setup:
    from vmbk.kernels.bitmap import mark_ranges

    block = 64 * KIB
    ranges, blocks = scaled(10_000_000, share), scaled(TIB // block, share, 8)
    rng = np.random.default_rng(0)
    offsets = rng.integers(0, blocks * block - MIB, ranges) if blocks * block > MIB else None
    offsets = np.zeros(ranges, np.int64) if offsets is None else offsets // 512 * 512
    lengths = rng.integers(1, 257, ranges) * 512

    def ours() -> NDArray[np.uint8]:
        bits = np.zeros(blocks // 8, np.uint8)
        mark_ranges(bits, offsets, lengths, block)
        return bits

    def by_numpy() -> NDArray[np.uint8]:
        """Starts and stops of ranges added up: the way without a loop."""
        first, stop = offsets // block, (offsets + lengths - 1) // block + 1
        depth = np.bincount(first, minlength=blocks + 1) - np.bincount(stop, minlength=blocks + 1)
        return np.packbits(np.cumsum(depth[:blocks]) > 0, bitorder="little")

    return Setup(ours, by_numpy, {"numpy": by_numpy}, ranges, "ranges")


# --- Whole disks and whole processes -------------------------------------------------------------


def checksum(share: float) -> Setup:
    """`checksum` on an unchanged image whose pages the system has, beside ``cat``."""
    from benchmarks.peers.images import Mixed
    from vmbk.detect.changes import Base, Settings
    from vmbk.detect.choose import detect
    from vmbk.disk.raw import RawDisk

    folder = tempfile.TemporaryDirectory(prefix="vmbk-bench-")
    path = Path(folder.name) / "disk.img"
    Mixed(scaled(2 * GIB, share, MIB), holes=0.0, text=0.6).make(path)
    settings = Settings()
    with RawDisk(path) as disk:
        full = detect(disk, None, detector="full", settings=settings)
    base = Base("point", full.size, *settings.units, full.digests, full.sub_digests)

    def ours() -> int:
        with RawDisk(path) as disk:
            found = detect(disk, base, detector="checksum", settings=settings)
        return found.changed_bytes

    def cat() -> None:
        subprocess.run(["cat", str(path)], check=True, stdout=subprocess.DEVNULL)

    return Setup(ours, cat, {"what changed": lambda: 0}, full.size, close=folder.cleanup)


def crash_distance(share: float) -> Setup:
    """The same writes scattered over a disk of 1 TiB, beside a disk of 16 MiB."""
    from vmbk.consistency.crash import crash_points, crash_states
    from vmbk.consistency.states import state_digests
    from vmbk.trace import Op, Trace, Volume

    blocks, writes = 4096, scaled(2000, share, 2)
    rng = np.random.default_rng(0)
    places = rng.integers(0, blocks, writes)
    data = random_bytes(writes * 4 * KIB).tobytes()
    payload = [data[i * 4 * KIB : (i + 1) * 4 * KIB] for i in range(writes)]

    def capture(size: int) -> Trace:
        """Two writes and a flush, again and again."""
        columns = np.zeros((writes // 2, 3, 3), np.int64)
        columns[:, :2, 0] = Op.WRITE
        columns[:, :2, 1] = places.reshape(-1, 2) * (size // blocks)
        columns[:, :2, 2] = 4 * KIB
        columns[:, 2, 0] = Op.FLUSH
        rows = iter(payload)
        op, offset, length = columns.reshape(-1, 3).T
        return Trace.from_columns(
            volumes=[Volume(0, "disk", size)], op=op, offset=offset, length=length,
            payload=[next(rows) if n else None for n in length.tolist()],
        )  # fmt: skip

    large, small = capture(TIB), capture(16 * MIB)
    points = crash_points(large, "epoch", ways=4)

    def build(trace: Trace) -> list[int]:
        return [state.digest for state in crash_states(trace, points)]

    def from_nothing() -> list[int]:
        every = build(large)
        some = slice(None, None, max(len(points) // 20, 1))
        every[some] = [
            state.digest for point in points[some] for state in crash_states(large, [point])
        ]
        return every

    return Setup(
        lambda: build(large), lambda: build(small),
        {"without images": lambda: state_digests(large, points), "from nothing": from_nothing},
        len(points), "states",
    )  # fmt: skip


FIRST_CALL = "import vmbk; vmbk.hash_blocks(b'x' * 65536, 4096)"


def program(code: str, **environment: str) -> Ways:
    def call() -> None:
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True,
            env=os.environ | environment,
        )  # fmt: skip

    return call


def first_call(share: float) -> Setup:
    program(FIRST_CALL)()  # the machine's first call compiles
    return Setup(program(FIRST_CALL), program("import numpy"), {}, 1, "process")


def compiling(share: float) -> Setup:
    """The machine's very first call of a digest: an empty cache."""
    from vmbk.kernels import hash as family

    assert family

    def ours() -> None:
        with tempfile.TemporaryDirectory(prefix="vmbk-bench-") as folder:
            program(FIRST_CALL, NUMBA_CACHE_DIR=folder)()

    return Setup(ours, program("import numba"), {}, 1, "process")


CASES = (
    Case("XXH3-64 of 4 KiB blocks, 2 threads", "reading the array, 2 threads",
         lambda share: hashing(share, 2, False), 0.90),
    Case("XXH3-64 of 4 KiB blocks, 1 thread", "xxhash called per block",
         lambda share: hashing(share, 1, True), 1.6),
    Case("compare at 64 KiB, 2 threads", "reading both, 2 threads", comparing, 0.90),
    Case("XXH3-128 of 4 KiB blocks, 2 threads", "reading the array, 2 threads", wide_hashing),
    Case("CRC32C of 4 KiB blocks, 1 thread", "zlib's CRC-32 called per block", crc32c),
    Case("hash, zeros and drill-down in one pass", "the same in three passes", drilling),
    Case("bitmap to extents", "NumPy", extents, 10),
    Case("10 M ranges into a bitmap", "NumPy", marking, 5, rounds=15),
    Case("FastCDC at 64 KiB, with digests", "reading the array, 1 thread", chunking),
    Case("entropy and packed size of 64 KiB blocks", "NumPy, entropy alone", entropy, rounds=5),
    Case("random content", "memcpy", lambda share: filling(share, 0)),
    Case("text content", "memcpy", lambda share: filling(share, 100)),
    Case("checksum of an unchanged image", "cat", checksum, 1 / 2.5, rounds=7),
    Case("crash-state distance: epochs on 1 TiB", "the same on 16 MiB", crash_distance, rounds=5),
    Case("a fleet's jobs: fast engine", "SimPy, to be read", fleets.beside_reference, 100,
         rounds=3),
    Case("10,000 VMs for a year", "100 VMs, a hundred times", fleets.year, rounds=2),
    Case("first call in a fresh process", "import numpy", first_call),
    Case("first call on a machine: compiling", "import numba", compiling, rounds=3),
)  # fmt: skip
