"""XXH3 with seeds and 128 bits, CRC32C, and several looks in one pass; on lesser machines too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

import vmbk
from tests import naive
from tests.test_kernels import COMPILED, array, ceil_div, compiled_only, random_bytes
from vmbk.kernels import crc, fused, seeded
from vmbk.kernels.intrinsics import (
    SCRATCH_BYTES,
    bytes_of,
    crc32c_word,
    high_product,
    load_word,
    scratch,
    store_half_word,
    store_word,
)
from vmbk.kernels.jit import OutU8, OutU64, kernel, u64, void

PACKAGE = Path(vmbk.__file__).parent

SEEDS = [0, 1, 0x9E3779B185EBCA87, (1 << 63) + 1, naive.WORD]
LENGTHS = range(5001) if COMPILED else [*range(0, 260, 3), 1023, 1024, 1025, 2049]

contents = st.binary(max_size=1500)
seeds = st.one_of(st.sampled_from(SEEDS), st.integers(0, naive.WORD))


@pytest.fixture(autouse=True, scope="module")
def wrapping_arithmetic() -> Iterator[None]:
    """Uncompiled, the kernels compute with NumPy scalars, which warn where they wrap around."""
    with np.errstate(over="ignore"):
        yield


def seeded_64(data: np.ndarray, block_size: int, seed: int) -> list[int]:
    out = np.zeros(ceil_div(len(data), block_size) or 1, np.uint64)
    seeded.xxh3_64_seeded_blocks(data, block_size, np.uint64(seed), out)
    return out.tolist()


def digests_128(data: np.ndarray, block_size: int, seed: int) -> list[tuple[int, int]]:
    out = np.zeros((ceil_div(len(data), block_size) or 1, 2), np.uint64)
    seeded.xxh3_128_blocks(data, block_size, np.uint64(seed), out.reshape(-1))
    return [(low, high) for low, high in out.tolist()]


def crcs(data: np.ndarray, block_size: int) -> list[int]:
    out = np.zeros(ceil_div(len(data), block_size) or 1, np.uint32)
    crc.crc32c_blocks(data, block_size, out)
    return out.tolist()


# --- XXH3 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_digests_of_every_length_are_those_of_xxhash(seed: int) -> None:
    data = random_bytes(max(LENGTHS) + 63)
    wrong = []
    for n in LENGTHS:
        part = data[n % 63 : n % 63 + n]
        [(low, high)] = digests_128(array(part), max(n, 1), seed)
        if high << 64 | low != xxhash.xxh3_128_intdigest(part, seed):
            wrong.append((128, n))
        if seeded_64(array(part), max(n, 1), seed) != [xxhash.xxh3_64_intdigest(part, seed)]:
            wrong.append((64, n))
    assert wrong == []


@pytest.mark.parametrize("start", [0, 1, 63])
@pytest.mark.parametrize("size", [64 << 10, (1 << 20) - 65, (1 << 20) + 3])
def test_digests_of_long_data_at_any_alignment(size: int, start: int) -> None:
    if not COMPILED:
        size //= 64
    data, seed = array(random_bytes(size + start))[start:], 0xFEED_F00D_DEAD_BEEF
    assert seeded_64(data, size, seed) == [xxhash.xxh3_64_intdigest(data, seed)]
    [(low, high)] = digests_128(data, size, seed)
    # The canonical form: the upper half first, each with its most significant byte first.
    canonical = np.array([high, low], ">u8").tobytes()
    assert canonical == xxhash.xxh3_128_digest(data, seed)


@given(contents, st.integers(1, 1100), seeds)
def test_blocks_with_a_seed(data: bytes, block_size: int, seed: int) -> None:
    if not data or (not COMPILED and len(data) // block_size > 50):
        return
    expected = naive.xxh3_64_seeded_blocks(data, block_size, seed)
    assert seeded_64(array(data), block_size, seed) == expected
    wide = naive.xxh3_128_blocks(data, block_size, seed)
    assert digests_128(array(data), block_size, seed) == wide


def test_naive_digests_are_those_of_xxhash() -> None:
    data = random_bytes(2100)
    for n in [*range(270), 1023, 1024, 1025, 2048, 2049, 2100]:
        for seed in SEEDS:
            low, high = naive.xxh3_128(data[:n], seed)
            assert high << 64 | low == xxhash.xxh3_128_intdigest(data[:n], seed), (n, seed)
            assert naive.xxh3_64(data[:n], seed) == xxhash.xxh3_64_intdigest(data[:n], seed)


# --- CRC32C --------------------------------------------------------------------------------------

# RFC 3720, B.4, where the bytes of each CRC are listed in the order in which they are sent.
ISCSI_READ = bytes.fromhex(
    "01c00000000000000000000000000000"
    "14000000000004000000001400000018"
    "28000000000000000200000000000000"
)
GOLDEN_CRC32C = [
    (bytes(32), "aa36918a"),
    (b"\xff" * 32, "43aba862"),
    (bytes(range(32)), "4e79dd46"),
    (bytes(reversed(range(32))), "5cdb3f11"),
    (ISCSI_READ, "563a96d9"),
    (b"123456789", "839206e3"),  # the check value of the CRC catalogue: e3069283
]


@pytest.mark.parametrize(("data", "sent"), GOLDEN_CRC32C)
def test_crc32c_is_the_golden_one(data: bytes, sent: str) -> None:
    expected = int.from_bytes(bytes.fromhex(sent), "little")
    assert crcs(array(data), len(data)) == [expected]
    assert naive.crc32c(data) == expected


@given(contents, st.integers(1, 1500), st.integers(0, 8))
def test_crc32c_blocks(data: bytes, block_size: int, start: int) -> None:
    if data[start:] and (COMPILED or len(data) // block_size < 50):
        expected = naive.crc32c_blocks(data[start:], block_size)
        assert crcs(array(data)[start:], block_size) == expected


@pytest.mark.parametrize("size", [0, 1, 7, 8, 23, 24, 25, 47, 48, 100, 4096, 4097, 12_345])
def test_crc32c_of_lengths_about_its_steps(size: int) -> None:
    data = random_bytes(size)
    assert crcs(array(data), max(size, 1)) == [naive.crc32c(data)]


def test_crc32c_is_linear_over_long_blocks() -> None:
    """What `naive` is too slow to say: of content of one length, crc(a ^ b ^ c) is that of each."""
    size = (1 << 20) + 13 if COMPILED else 5000
    a, b = (array(random_bytes(size, seed)) for seed in (1, 2))
    together = [crcs(data, size)[0] for data in (a, b, np.zeros(size, np.uint8))]
    assert crcs(a ^ b, size) == [together[0] ^ together[1] ^ together[2]]
    # And a change of one byte is seen wherever it is.
    for at in (0, size // 3, size // 2, size - 14, size - 1):
        changed = a.copy()
        changed[at] ^= 0x10
        assert crcs(changed, size) != [together[0]]


# --- Several looks in one pass -------------------------------------------------------------------


@st.composite
def sparse_content(draw: Callable[..., Any]) -> bytes:
    """Content with runs of zeros."""
    parts = draw(st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=8))
    return b"".join(random_bytes(n, i) if full else bytes(n) for i, (n, full) in enumerate(parts))


@given(sparse_content(), st.integers(1, 200), st.integers(1, 6), st.booleans(), st.data())
def test_scan_blocks(
    data: bytes, grain: int, factor: int, drill: bool, choose: st.DataObject
) -> None:
    block_size = grain * factor
    blocks, grains = ceil_div(len(data), block_size), ceil_div(len(data), grain)
    if not COMPILED and grains > 50:
        return
    base = naive.xxh3_64_blocks(data, block_size)[: choose.draw(st.integers(0, blocks))]
    for i in choose.draw(st.sets(st.integers(0, max(blocks - 1, 0)), max_size=3)):
        if i < len(base):
            base[i] ^= 1
    digests, is_zero = np.zeros(blocks, np.uint64), np.full(grains, 9, np.uint8)
    subs = np.full(grains if drill else 0, 7, np.uint64)
    expected = naive.scan_blocks(data, block_size, grain, base, subs.tolist())
    drilled = fused.scan_blocks(
        array(data), block_size, grain, np.array(base, np.uint64), digests, subs, is_zero
    )
    assert (digests.tolist(), subs.tolist(), is_zero.tolist(), drilled) == expected


@given(sparse_content(), st.integers(1, 700), st.data())
def test_compare_and_hash_blocks(data: bytes, block_size: int, choose: st.DataObject) -> None:
    other = bytearray(data)
    if other:
        for at in choose.draw(st.lists(st.integers(0, len(other) - 1), max_size=4)):
            other[at] ^= 1
    blocks = ceil_div(len(data), block_size)
    if not COMPILED and blocks > 50:
        return
    differs, digests = np.full(blocks, 9, np.uint8), np.zeros(blocks, np.uint64)
    fused.compare_and_hash_blocks(array(data), array(bytes(other)), block_size, differs, digests)
    expected = naive.compare_and_hash_blocks(data, bytes(other), block_size)
    assert (differs.tolist(), digests.tolist()) == expected


# --- Machine operations --------------------------------------------------------------------------


@kernel(void(u64, u64, OutU64, OutU8))
def hash_operations(a: Any, b: Any, out: np.ndarray, stored: np.ndarray) -> None:
    out[0] = high_product(a, b)
    room = scratch()
    store_word(room, SCRATCH_BYTES - 8, a)
    out[1] = load_word(room, SCRATCH_BYTES - 8)
    store_half_word(bytes_of(stored), 1, a & np.uint64(0xFFFF_FFFF))


words = st.one_of(st.integers(0, naive.WORD), st.integers(0, 63).map(lambda n: 1 << n))


@given(words, words)
def test_lowered_operations_do_what_their_definitions_say(a: int, b: int) -> None:
    out, stored = np.zeros(2, np.uint64), np.full(6, 9, np.uint8)
    hash_operations(np.uint64(a), np.uint64(b), out, stored)
    assert out.tolist() == [a * b >> 64, a]
    assert stored.tobytes() == b"\x09" + (a & 0xFFFFFFFF).to_bytes(4, "little") + b"\x09"


@compiled_only
@given(st.binary(min_size=8, max_size=8), st.integers(0, 0xFFFFFFFF))
def test_definition_of_a_crc_step(data: bytes, state: int) -> None:
    word = int.from_bytes(data, "little")
    after = crc32c_word.definition(np.uint64(state), np.uint64(word))
    # A CRC's state is its register before the last inversion, and a word may begin anywhere.
    head = (state ^ 0xFFFFFFFF).to_bytes(4, "little")
    known = crc32c_word.definition(np.uint64(0xFFFF_FFFF), np.uint64(word))
    assert int(known) == naive.crc32c(data) ^ 0xFFFFFFFF
    difference = crc32c_word.definition(np.uint64(int.from_bytes(head, "little")), np.uint64(0))
    assert int(after) ^ int(known) == int(difference)


# --- Other machines ------------------------------------------------------------------------------

# The arguments say whether seeds and 128 bits, which take longest to compile, are looked at too.
CHECK = """
import sys
import numpy as np
import xxhash
from tests import naive
from vmbk.kernels import crc, hash
from vmbk.kernels.jit import DISABLED

data = np.random.default_rng(7).integers(0, 256, 4200, np.uint8)
for size in (0, 2, 7, 13, 100, 200, 240, 241, 1025, 4099):
    part = data[size % 3 : size % 3 + size]
    assert int(hash.xxh3_64(part)) == xxhash.xxh3_64_intdigest(part), size
    out = np.zeros(1, np.uint32)
    crc.crc32c_blocks(part, max(size, 1), out)
    assert int(out[0]) == naive.crc32c(part.tobytes()), size
    if "seeds" in sys.argv:
        from vmbk.kernels import seeded
        narrow, wide = np.zeros(1, np.uint64), np.zeros(2, np.uint64)
        for seed in (0, 2**63 + 12345):
            seeded.xxh3_64_seeded_blocks(part, max(size, 1), np.uint64(seed), narrow)
            seeded.xxh3_128_blocks(part, max(size, 1), np.uint64(seed), wide)
            assert int(narrow[0]) == xxhash.xxh3_64_intdigest(part, seed), size
            assert wide[::-1].astype(">u8").tobytes() == xxhash.xxh3_128_digest(part, seed), size
if DISABLED:
    print(0)
else:
    from numba.core.registry import cpu_target
    from vmbk.kernels.lowerings import _crc_instruction
    print(int(_crc_instruction(cpu_target.target_context) is not None))
"""
HASWELL = "+sse4.2,+crc32,+popcnt,+avx,+avx2,+bmi,+bmi2,+fma,+lzcnt,+movbe,+f16c"
MACHINES = {
    "generic": (("seeds",), {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}, "0"),
    "haswell": ((), {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": HASWELL}, "1"),
    # NumPy scalars warn as they wrap around.
    "none": (
        ("seeds",), {"NUMBA_DISABLE_JIT": "1", "PYTHONWARNINGS": "ignore::RuntimeWarning"}, "0",
    ),
}  # fmt: skip


@compiled_only
@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_digests_on_other_machines(machine: str, tmp_path: Path) -> None:
    arguments, settings, has = MACHINES[machine]
    if machine == "haswell" and os.uname().machine != "x86_64":
        pytest.skip("is about x86-64")
    paths = {"PYTHONPATH": str(PACKAGE.parent), "NUMBA_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", CHECK, *arguments],
        env=os.environ | paths | settings,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (found.stdout, found.stderr) == (f"{has}\n", "")


# --- The public function -------------------------------------------------------------------------

ORACLES: dict[str, Callable[[bytes], str]] = {
    "xxh3-64": lambda data: xxhash.xxh3_64_hexdigest(data),
    "xxh3-128": lambda data: xxhash.xxh3_128_hexdigest(data),
    "crc32c": lambda data: f"{naive.crc32c(data):08x}",
}


@compiled_only
@pytest.mark.parametrize("algorithm", ORACLES)
def test_hash_blocks_by_any_algorithm(algorithm: str, tmp_path: Path) -> None:
    digest, unit = ORACLES[algorithm], 4096
    data = random_bytes(3 * unit + 5) + bytes(5 * unit)
    path = tmp_path / "image"
    path.write_bytes(data)
    os.truncate(path, 20 * unit - 3)
    data = data.ljust(20 * unit - 3, b"\0")
    # An integer of so many bytes, least significant first.
    blocks = [bytes.fromhex(digest(block))[::-1] for block in naive.blocks_of(data, unit)]
    expected = digest(b"".join(blocks))
    key = f"digests_{algorithm.replace('-', '_')}"
    for source in (data, path):
        found = vmbk.hash_blocks(source, unit, algorithm=algorithm)
        assert found.digests.tobytes() == b"".join(blocks)
        assert found.to_dict()[key] == found.digest == expected
    assert vmbk.hash_blocks(b"", unit, algorithm=algorithm).digest == digest(b"")
