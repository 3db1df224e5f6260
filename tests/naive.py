"""Slow, obvious twins of the kernels, each written from the definition.

A twin has its kernel's name. It takes `bytes` or any sequence of bytes where the kernel takes an
array, a set of block numbers where the kernel takes a bitmap, and returns what the kernel writes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np

WORD = (1 << 64) - 1
ANY_GAP = (1 << 63) - 1


def to_bitmap(blocks: Iterable[int], n_blocks: int) -> np.ndarray:
    bitmap = np.zeros((n_blocks + 7) // 8, dtype=np.uint8)
    for block in blocks:
        bitmap[block // 8] |= 1 << (block % 8)
    return bitmap


def to_blocks(bitmap: np.ndarray) -> set[int]:
    return {i for i in range(8 * len(bitmap)) if int(bitmap[i // 8]) >> (i % 8) & 1}


def blocks_of(data: bytes, block_size: int) -> list[bytes]:
    return [data[at : at + block_size] for at in range(0, len(data), block_size)]


# --- XXH3-64, from the xxHash specification ------------------------------------------------------

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
PRIME32_1, PRIME32_2, PRIME32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
PRIME64_1, PRIME64_2, PRIME64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
PRIME64_4, PRIME64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
PRIME_MX1, PRIME_MX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25


def number(data: bytes, start: int, size: int = 8) -> int:
    return int.from_bytes(data[start : start + size], "little")


def rotate(value: int, count: int) -> int:
    return (value << count | value >> (64 - count)) & WORD


def avalanche(value: int) -> int:
    value = (value ^ value >> 37) * PRIME_MX1 & WORD
    return value ^ value >> 32


def avalanche_xxh64(value: int) -> int:
    value = (value ^ value >> 33) * PRIME64_2 & WORD
    value = (value ^ value >> 29) * PRIME64_3 & WORD
    return value ^ value >> 32


def folded(a: int, b: int) -> int:
    return a * b & WORD ^ a * b >> 64


def mix_step(data: bytes, secret: int) -> int:
    return folded(
        number(data, 0) ^ number(SECRET, secret), number(data, 8) ^ number(SECRET, secret + 8)
    )


def xxh3_64(data: bytes) -> int:
    n = len(data)
    if n == 0:
        return avalanche_xxh64(number(SECRET, 56) ^ number(SECRET, 64))
    if n <= 3:
        combined = data[-1] | n << 8 | data[0] << 16 | data[n >> 1] << 24
        return avalanche_xxh64(number(SECRET, 0, 4) ^ number(SECRET, 4, 4) ^ combined)
    if n <= 8:
        combined = number(data, n - 4, 4) | number(data, 0, 4) << 32
        value = number(SECRET, 8) ^ number(SECRET, 16) ^ combined
        value ^= rotate(value, 49) ^ rotate(value, 24)
        value = value * PRIME_MX2 & WORD
        value ^= (value >> 35) + n
        value = value * PRIME_MX2 & WORD
        return value ^ value >> 28
    if n <= 16:
        low = number(SECRET, 24) ^ number(SECRET, 32) ^ number(data, 0)
        high = number(SECRET, 40) ^ number(SECRET, 48) ^ number(data, n - 8)
        swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
        return avalanche(n + swapped + high + folded(low, high) & WORD)
    if n <= 240:
        return xxh3_64_medium(data)
    return xxh3_64_large(data)


def xxh3_64_medium(data: bytes) -> int:
    n = len(data)
    total = n * PRIME64_1
    if n <= 128:
        for i in reversed(range(((n - 1) >> 5) + 1)):
            end = n - 16 * i - 16
            total += mix_step(data[16 * i : 16 * i + 16], 32 * i)
            total += mix_step(data[end : end + 16], 32 * i + 16)
        return avalanche(total & WORD)
    chunks = [data[16 * i : 16 * i + 16] for i in range(n >> 4)]
    total = avalanche(total + sum(mix_step(c, 16 * i) for i, c in enumerate(chunks[:8])) & WORD)
    total += sum(mix_step(c, 16 * i + 3) for i, c in enumerate(chunks[8:]))
    return avalanche(total + mix_step(data[-16:], 119) & WORD)


def xxh3_64_large(data: bytes) -> int:
    total = [PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1]

    def accumulate(stripe: bytes, secret: int) -> None:
        for i in range(8):
            lane = number(stripe, 8 * i)
            mixed = lane ^ number(SECRET, secret + 8 * i)
            total[i ^ 1] = total[i ^ 1] + lane & WORD
            total[i] = total[i] + (mixed & 0xFFFFFFFF) * (mixed >> 32) & WORD

    whole_rounds = (len(data) - 1) // 1024
    for at in range(0, 1024 * whole_rounds, 1024):
        for n in range(16):
            accumulate(data[at + 64 * n : at + 64 * n + 64], 8 * n)
        for i in range(8):
            scrambled = total[i] ^ total[i] >> 47 ^ number(SECRET, 128 + 8 * i)
            total[i] = scrambled * PRIME32_1 & WORD
    rest = data[1024 * whole_rounds :]
    for n in range((len(rest) - 1) // 64):
        accumulate(rest[64 * n : 64 * n + 64], 8 * n)
    accumulate(data[-64:], 192 - 71)
    result = len(data) * PRIME64_1
    for i in range(0, 8, 2):
        result += folded(
            total[i] ^ number(SECRET, 11 + 8 * i), total[i + 1] ^ number(SECRET, 19 + 8 * i)
        )
    return avalanche(result & WORD)


def xxh3_64_blocks(data: bytes, block_size: int) -> list[int]:
    return [xxh3_64(block) for block in blocks_of(data, block_size)]


# --- Comparison ----------------------------------------------------------------------------------


def compare_blocks(a: bytes, b: bytes, block_size: int) -> list[int]:
    pairs = zip(blocks_of(a, block_size), blocks_of(b, block_size), strict=True)
    return [int(left != right) for left, right in pairs]


def zero_blocks(data: bytes, block_size: int) -> list[int]:
    return [int(not any(block)) for block in blocks_of(data, block_size)]


# --- Sets of blocks ------------------------------------------------------------------------------


def next_set(blocks: set[int], start: int, n_blocks: int) -> int:
    return next((i for i in range(start, n_blocks) if i in blocks), n_blocks)


def next_clear(blocks: set[int], start: int, n_blocks: int) -> int:
    return next((i for i in range(start, n_blocks) if i not in blocks), n_blocks)


def mark_range(
    blocks: set[int], n_blocks: int, offset: int, length: int, block_size: int
) -> set[int]:
    touched = set()
    for block in range(n_blocks):
        first, stop = block * block_size, (block + 1) * block_size
        if max(first, offset) < min(stop, offset + length):
            touched.add(block)
    return blocks | touched


def mark_ranges(
    blocks: set[int],
    n_blocks: int,
    offsets: Sequence[int],
    lengths: Sequence[int],
    block_size: int,
) -> set[int]:
    for offset, length in zip(offsets, lengths, strict=True):
        blocks = mark_range(blocks, n_blocks, offset, length, block_size)
    return blocks


def count_set(blocks: set[int]) -> int:
    return len(blocks)


def union(a: set[int], b: set[int]) -> set[int]:
    return a | b


def intersect(a: set[int], b: set[int]) -> set[int]:
    return a & b


def subtract(a: set[int], b: set[int]) -> set[int]:
    return a - b


def coarsen(blocks: set[int], n_blocks: int, factor: int) -> set[int]:
    return {block // factor for block in blocks if block < n_blocks}


def refine(blocks: set[int], n_blocks: int, factor: int, n_fine: int) -> set[int]:
    return {fine for fine in range(n_fine) if fine // factor in blocks}


def bitmap_to_extents(
    blocks: set[int], n_blocks: int, block_size: int, gap_blocks: int, disk_size: int
) -> list[tuple[int, int]]:
    extents: list[list[int]] = []  # first block and last block
    for block in sorted(b for b in blocks if b < n_blocks):
        if extents and block - extents[-1][1] - 1 <= gap_blocks:
            extents[-1][1] = block
        else:
            extents.append([block, block])
    return [
        (first * block_size, min((last + 1) * block_size, disk_size) - first * block_size)
        for first, last in extents
    ]


def count_extents(blocks: set[int], n_blocks: int, gap_blocks: int) -> int:
    return len(bitmap_to_extents(blocks, n_blocks, 1, gap_blocks, n_blocks))


def flags_to_bitmap(flags: Sequence[int]) -> set[int]:
    return {i for i, flag in enumerate(flags) if flag}


def overlay_extents(
    base: Sequence[tuple[int, int, int]], top: Sequence[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """Extents as (offset, length, row)."""
    covered = {byte for offset, length, _ in top for byte in range(offset, offset + length)}
    pieces = list(top)
    for offset, length, row in base:
        bare = [byte for byte in range(offset, offset + length) if byte not in covered]
        starts = [byte for byte in bare if byte == offset or byte - 1 in covered]
        stops = [byte + 1 for byte in bare if byte + 1 == offset + length or byte + 1 in covered]
        pieces += [(start, stop - start, row) for start, stop in zip(starts, stops, strict=True)]
    return sorted(pieces)


# --- Synthetic content ---------------------------------------------------------------------------

GAMMA = 0x9E3779B97F4A7C15
TEXT = """
    the of and to in is was for on are with as they at be this have from or had by not word but what
    some we can out other were all there when up use your how said an each she which do their time
    if will way about many then them write would like so these her long make thing see him
""".split()  # noqa: SIM905 (prose reads better than a list)


def splitmix64(state: int) -> int:
    value = state & WORD
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & WORD
    return value ^ value >> 31


def block_key(seed: int, volume: int, block: int, version: int) -> int:
    key = 0
    for part in (seed, volume, block, version):
        key = splitmix64((key ^ part) + GAMMA)
    return key


def random_bytes(key: int, length: int) -> bytes:
    words = [splitmix64(key + (i + 1) * GAMMA) for i in range(length // 8 + 1)]
    return b"".join(word.to_bytes(8, "little") for word in words)[:length]


def text(key: int, length: int) -> bytes:
    words = []
    for i in range(length // 8 + 1):
        draw = splitmix64(key + (i + 1) * GAMMA)
        if draw >> 62 == 0:
            digits = (draw >> 8).to_bytes(8, "little")[:7]
            words.append("".join(str(digit & 7) for digit in digits) + " ")
        else:
            words.append(TEXT[draw % 64].ljust(8))
    return "".join(words).encode()[:length]


def fill_content(
    size: int,
    seed: int,
    volume: int,
    first_block: int,
    versions: Sequence[int],
    block_size: int,
    zero_percent: int,
    compressible_percent: int,
    duplicate_percent: int,
) -> bytes:
    content = b""
    for block, version in enumerate(versions, start=first_block):
        length = min(block_size, size - len(content))
        key = block_key(seed, volume, block, version)
        kind = splitmix64(key + int.from_bytes(b"kindkind", "big")) % 100
        if kind < zero_percent:
            content += bytes(length)
        elif kind < zero_percent + compressible_percent:
            content += text(key, length)
        elif kind < zero_percent + compressible_percent + duplicate_percent:
            which = splitmix64(key + int.from_bytes(b"dupldupl", "big")) % 1024
            content += random_bytes(block_key(seed, WORD, which, 0), length)
        else:
            content += random_bytes(key, length)
    return content


# --- dm-log-writes -------------------------------------------------------------------------------


def number_at(log: bytes, at: int) -> int:
    (value,) = struct.unpack_from("<Q", log, at)
    return value if value < 1 << 62 else -1


def gather_ranges(source: bytes, starts: Sequence[int], lengths: Sequence[int]) -> bytes:
    return b"".join(source[s : s + n] for s, n in zip(starts, lengths, strict=True))


def walk_log(
    log: bytes, sector_size: int, n_entries: int
) -> tuple[list[tuple[int, int, int, int, int, int]], int]:
    """Entries as (offset, length, flags, data start, data length, end), and how the walk ended."""
    complete, truncated, too_large, bad_mark = range(4)
    entries: list[tuple[int, int, int, int, int, int]] = []
    at = sector_size
    for _ in range(n_entries):
        if at + sector_size > len(log):
            return entries, truncated
        sector, sectors, flags, inline = struct.unpack_from("<4Q", log, at)
        if max(sector, sectors, flags, inline) >= 1 << 62:
            return entries, too_large
        if sector > (1 << 62) // sector_size - sectors:
            return entries, too_large
        body = at + sector_size
        stored = 0 if flags & 4 else sectors * sector_size
        end = body + stored
        if end > len(log):
            return entries, truncated
        start = body
        if flags & 8:
            if inline > sector_size - 32:
                return entries, bad_mark
            start = at + 32
            stored = len(log[start : start + inline].split(b"\0")[0])
        entries.append((sector * sector_size, sectors * sector_size, flags, start, stored, end))
        at = end
    return entries, complete
