"""Slow, obvious twins of the kernels, each written from the definition.

A twin has its kernel's name. It takes `bytes` or any sequence of bytes where the kernel takes an
array, a set of block numbers where the kernel takes a bitmap, and returns what the kernel writes.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections import Counter
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


# --- XXH3, from the xxHash specification ---------------------------------------------------------

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


def mix_step(data: bytes, secret: int, seed: int) -> int:
    return folded(
        number(data, 0) ^ number(SECRET, secret) + seed & WORD,
        number(data, 8) ^ number(SECRET, secret + 8) - seed & WORD,
    )


def flip(first: int, second: int, size: int = 8) -> int:
    return number(SECRET, first, size) ^ number(SECRET, second, size)


def modified(seed: int) -> int:
    return seed ^ int.from_bytes((seed & 0xFFFFFFFF).to_bytes(4, "little"), "big") << 32


def xxh3_64(data: bytes, seed: int = 0) -> int:
    n = len(data)
    if n == 0:
        return avalanche_xxh64(seed ^ flip(56, 64))
    if n <= 3:
        combined = data[-1] | n << 8 | data[0] << 16 | data[n >> 1] << 24
        return avalanche_xxh64(flip(0, 4, 4) + seed & WORD ^ combined)
    if n <= 8:
        combined = number(data, n - 4, 4) | number(data, 0, 4) << 32
        value = flip(8, 16) - modified(seed) & WORD ^ combined
        value ^= rotate(value, 49) ^ rotate(value, 24)
        value = value * PRIME_MX2 & WORD
        value ^= (value >> 35) + n
        value = value * PRIME_MX2 & WORD
        return value ^ value >> 28
    if n <= 16:
        low = flip(24, 32) + seed & WORD ^ number(data, 0)
        high = flip(40, 48) - seed & WORD ^ number(data, n - 8)
        swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
        return avalanche(n + swapped + high + folded(low, high) & WORD)
    if n <= 240:
        return xxh3_64_medium(data, seed)
    lanes = xxh3_lanes(data, derived_secret(seed))
    return merged(lanes, derived_secret(seed)[11:], n * PRIME64_1)


def xxh3_64_medium(data: bytes, seed: int) -> int:
    n = len(data)
    total = n * PRIME64_1
    if n <= 128:
        for i in reversed(range(((n - 1) >> 5) + 1)):
            end = n - 16 * i - 16
            total += mix_step(data[16 * i : 16 * i + 16], 32 * i, seed)
            total += mix_step(data[end : end + 16], 32 * i + 16, seed)
        return avalanche(total & WORD)
    chunks = [data[16 * i : 16 * i + 16] for i in range(n >> 4)]
    total += sum(mix_step(c, 16 * i, seed) for i, c in enumerate(chunks[:8]))
    total = avalanche(total & WORD)
    total += sum(mix_step(c, 16 * i + 3, seed) for i, c in enumerate(chunks[8:]))
    return avalanche(total + mix_step(data[-16:], 119, seed) & WORD)


def derived_secret(seed: int) -> bytes:
    signs = [seed, -seed] * 12
    words = [number(SECRET, 8 * i) + sign & WORD for i, sign in enumerate(signs)]
    return struct.pack("<24Q", *words)


def xxh3_lanes(data: bytes, secret: bytes) -> list[int]:
    total = [PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1]

    def accumulate(stripe: bytes, at: int) -> None:
        for i in range(8):
            lane = number(stripe, 8 * i)
            mixed = lane ^ number(secret, at + 8 * i)
            total[i ^ 1] = total[i ^ 1] + lane & WORD
            total[i] = total[i] + (mixed & 0xFFFFFFFF) * (mixed >> 32) & WORD

    whole_rounds = (len(data) - 1) // 1024
    for at in range(0, 1024 * whole_rounds, 1024):
        for n in range(16):
            accumulate(data[at + 64 * n : at + 64 * n + 64], 8 * n)
        for i in range(8):
            scrambled = total[i] ^ total[i] >> 47 ^ number(secret, 128 + 8 * i)
            total[i] = scrambled * PRIME32_1 & WORD
    rest = data[1024 * whole_rounds :]
    for n in range((len(rest) - 1) // 64):
        accumulate(rest[64 * n : 64 * n + 64], 8 * n)
    accumulate(data[-64:], 192 - 71)
    return total


def merged(lanes: Sequence[int], secret: bytes, result: int) -> int:
    for i in range(0, 8, 2):
        result += folded(lanes[i] ^ number(secret, 8 * i), lanes[i + 1] ^ number(secret, 8 * i + 8))
    return avalanche(result & WORD)


def xxh3_64_blocks(data: bytes, block_size: int) -> list[int]:
    return [xxh3_64(block) for block in blocks_of(data, block_size)]


def xxh3_64_seeded_blocks(data: bytes, block_size: int, seed: int) -> list[int]:
    return [xxh3_64(block, seed) for block in blocks_of(data, block_size)]


def xxh3_128(data: bytes, seed: int = 0) -> tuple[int, int]:
    """The lower and the upper half."""
    n = len(data)
    if n == 0:
        return avalanche_xxh64(seed ^ flip(64, 72)), avalanche_xxh64(seed ^ flip(80, 88))
    if n <= 3:
        low = data[-1] | n << 8 | data[0] << 16 | data[n >> 1] << 24
        high = int.from_bytes(low.to_bytes(4, "little"), "big")
        high = (high << 13 | high >> 19) & 0xFFFFFFFF
        return (
            avalanche_xxh64(low ^ flip(0, 4, 4) + seed & WORD),
            avalanche_xxh64(high ^ flip(8, 12, 4) - seed & WORD),
        )
    if n <= 8:
        combined = number(data, 0, 4) | number(data, n - 4, 4) << 32
        value = combined ^ flip(16, 24) + modified(seed) & WORD
        product = value * (PRIME64_1 + 4 * n)
        low = product & WORD
        high = (product >> 64) + 2 * low & WORD
        low ^= high >> 3
        low = (low ^ low >> 35) * PRIME_MX2 & WORD
        return low ^ low >> 28, avalanche(high)
    if n <= 16:
        first, last = number(data, 0), number(data, n - 8)
        product = (first ^ last ^ flip(32, 40) - seed & WORD) * PRIME64_1
        last ^= flip(48, 56) + seed & WORD
        low = product + (n - 1 << 54) & WORD
        high = (product >> 64) + last + (last & 0xFFFFFFFF) * (PRIME32_2 - 1) & WORD
        low ^= int.from_bytes(high.to_bytes(8, "little"), "big")
        product = low * PRIME64_2 + (high * PRIME64_2 << 64)
        return avalanche(product & WORD), avalanche(product >> 64 & WORD)
    if n <= 240:
        return xxh3_128_medium(data, seed)
    secret = derived_secret(seed)
    lanes = xxh3_lanes(data, secret)
    high = merged(lanes, secret[192 - 64 - 11 :], n * PRIME64_2 & WORD ^ WORD)
    return merged(lanes, secret[11:], n * PRIME64_1), high


def xxh3_128_medium(data: bytes, seed: int) -> tuple[int, int]:
    n = len(data)
    low, high = n * PRIME64_1 & WORD, 0

    def mix_two(first: int, second: int, secret: int, seed: int) -> None:
        nonlocal low, high
        a, b = data[first : first + 16], data[second : second + 16]
        low = low + mix_step(a, secret, seed) & WORD
        low ^= number(b, 0) + number(b, 8) & WORD
        high = high + mix_step(b, secret + 16, seed) & WORD
        high ^= number(a, 0) + number(a, 8) & WORD

    if n <= 128:
        for i in reversed(range(((n - 1) >> 5) + 1)):
            mix_two(16 * i, n - 16 * i - 16, 32 * i, seed)
    else:
        for at in range(0, 128, 32):
            mix_two(at, at + 16, at, seed)
        low, high = avalanche(low), avalanche(high)
        for at in range(128, n - 31, 32):
            mix_two(at, at + 16, at - 128 + 3, seed)
        mix_two(n - 16, n - 32, 103, -seed & WORD)
    last = low * PRIME64_1 + high * PRIME64_4 + (n - seed) * PRIME64_2
    return avalanche(low + high & WORD), -avalanche(last & WORD) & WORD


def xxh3_128_blocks(data: bytes, block_size: int, seed: int) -> list[tuple[int, int]]:
    return [xxh3_128(block, seed) for block in blocks_of(data, block_size)]


# --- CRC32C, from RFC 3720, 12.1 -----------------------------------------------------------------


def crc32c(data: bytes) -> int:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = state >> 1 ^ 0x82F63B78 * (state & 1)
    return state ^ 0xFFFFFFFF


def crc32c_blocks(data: bytes, block_size: int) -> list[int]:
    return [crc32c(block) for block in blocks_of(data, block_size)]


# --- Comparison ----------------------------------------------------------------------------------


def compare_blocks(a: bytes, b: bytes, block_size: int) -> list[int]:
    pairs = zip(blocks_of(a, block_size), blocks_of(b, block_size), strict=True)
    return [int(left != right) for left, right in pairs]


def zero_blocks(data: bytes, block_size: int) -> list[int]:
    return [int(not any(block)) for block in blocks_of(data, block_size)]


# --- Several looks in one pass -------------------------------------------------------------------


def scan_blocks(
    data: bytes, block_size: int, grain: int, base: Sequence[int], sub_digests: Sequence[int]
) -> tuple[list[int], list[int], list[int], int]:
    """Digests, sub-block digests, zeros, and the bytes hashed again."""
    digests, subs, drilled = xxh3_64_blocks(data, block_size), list(sub_digests), 0
    for block, content in enumerate(blocks_of(data, block_size)):
        if subs and (block >= len(base) or base[block] != digests[block]):
            first = block * (block_size // grain)
            for i, piece in enumerate(blocks_of(content, grain)):
                subs[first + i] = xxh3_64(piece)
            drilled += len(content)
    return digests, subs, zero_blocks(data, grain), drilled


def compare_and_hash_blocks(a: bytes, b: bytes, block_size: int) -> tuple[list[int], list[int]]:
    return compare_blocks(a, b, block_size), xxh3_64_blocks(a, block_size)


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


# --- Synthetic requests --------------------------------------------------------------------------


def word(key: int, index: int) -> int:
    return splitmix64(key + (index + 1) * GAMMA)


def below(draw: int, n: int) -> int:
    return int((draw >> 12) / 2**52 * n)


def choose(draw: int, edges: Sequence[int]) -> int:
    return max(k for k in range(len(edges) - 1) if edges[k] <= draw >> 2)


def permute(value: int, n: int, bits: int, key: int) -> int:
    if n <= 1:
        return 0
    shift, odd = (bits + 1) // 2, key >> 12 | 1
    while True:
        for factor, addend in ((odd, key), (0xD6E8FEB86659FD93, 0), (odd, 0)):
            value = (value + addend) * factor % 2**bits
            value ^= value >> shift
        if value < n:
            return value


def draw_kinds(key: int, first: int, count: int, edges: Sequence[int]) -> list[int]:
    order = word(key, first)
    step = (2**64 - 1) // max(count, 1)
    places = [permute(i, count, (count - 1).bit_length(), order) for i in range(count)]
    return [choose(p * step + splitmix64(order) % step, edges) for p in places]


def tally_kinds(
    kinds: Sequence[int], counter: Sequence[int], weight: Sequence[int], totals: Sequence[int]
) -> list[int]:
    return [
        total + sum(weight[k] for k in kinds if counter[k] == c) for c, total in enumerate(totals)
    ]


def advance_kinds(
    kinds: Sequence[int], counter: Sequence[int], weight: Sequence[int], totals: Sequence[int]
) -> list[int]:
    return [
        tally_kinds(kinds[:i], counter, weight, totals)[counter[k]] for i, k in enumerate(kinds)
    ]


def line_place(
    key: int,
    index: int,
    cursor: int,
    pattern: str,
    slots: int,
    step: int,
    units: int,
    hot: tuple[int, int],
    ranks: Sequence[int],
    bins: Sequence[tuple[int, int]],
) -> int:
    """`hot` is (places, threshold), `bins` are (least rank, count), `ranks` their edges."""
    order, bits = splitmix64(key + 32), (slots - 1).bit_length()
    draw, again = word(splitmix64(key + 1), index), word(splitmix64(key + 12), index)
    if pattern == "nowhere":
        return 0
    if pattern == "stream":
        return permute(cursor // step % slots, slots, bits, order) * step + cursor % step
    if pattern == "sweep":
        return permute(cursor % slots, slots, bits, word(order, cursor // slots)) * step
    if pattern == "anywhere":
        return below(draw, slots) * step
    if pattern == "zipf":
        low, count = bins[choose(draw, ranks)]
        rank = low + below(again, count)
    elif draw % 2**32 < hot[1]:
        rank = below(again, hot[0])
    else:
        rank = hot[0] + below(again, slots - hot[0])
    inner = below(splitmix64(again ^ draw), step - units + 1) if units < step else 0
    return permute(rank, slots, bits, order) * step + inner


def line_places(first: int, requests: Sequence[tuple[int, dict]], **shared: object) -> list[int]:
    """`requests` are (start of the kind's part, the rest of the arguments of `line_place`)."""
    return [
        start + line_place(index=first + i, **own, **shared)  # type: ignore[arg-type]
        for i, (start, own) in enumerate(requests)
    ]


def lay_out(
    key: int,
    requests: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    gaps: Sequence[int],
    span: int,
    unit: int,
    shift: int,
) -> list[int]:
    """`requests` are (place, units); `lengths` and `gaps` are those of one group."""
    offsets, n = [], len(lengths)
    for place, units in requests:
        if units == 0:
            offsets.append(0)
            continue
        group, within = divmod(place, sum(lengths))
        draw = word(key, group)
        a, b = draw % 2**32 * n >> 32, (draw >> 32) * n >> 32
        long, wide = [*lengths[a:], *lengths[:a]], [*gaps[b:], *gaps[:b]]
        ends = [sum(long[: e + 1]) for e in range(n)]
        extent = next(e for e in range(n) if within < ends[e])
        inner = within - ends[extent] + long[extent]
        if units <= long[extent]:
            inner = min(inner, long[extent] - units)
        else:
            following = [*range(extent + 1, n), *range(extent + 1)]
            extent = next(e for e in following if long[e] >= units)
            inner = within % (long[extent] - units + 1)
        lead = below(splitmix64(draw), wide[-1] + 1)
        start = group * span + lead + sum(wide[:extent]) + sum(long[:extent])
        offsets.append(shift + (start + inner) * unit)
    return offsets


def exponential(draw: int, quantile: Sequence[int]) -> int:
    value = 0
    for _ in range(8):
        cell, part = draw >> 54, (draw >> 12) % 2**20
        if cell < len(quantile) - 1:
            return value + quantile[cell] + ((quantile[cell + 1] - quantile[cell]) * part >> 20)
        value += quantile[-1]
        draw = splitmix64(draw)
    return value


def arrival_times(
    key: int,
    first: int,
    total: int,
    count: int,
    regular: bool,
    quantile: Sequence[int],
    edges: Sequence[int],
    share: Sequence[float],
) -> list[int]:
    if regular:
        sums, whole = list(range(count)), count
    else:
        draws = [exponential(word(key, first + i), quantile) for i in range(count)]
        sums = [sum(draws[: i + 1]) for i in range(count)]
        whole = sum(draws) + exponential(word(splitmix64(key), first), quantile)
    low, high = first / total, (first + count) / total
    times = []
    for sum_before in sums:
        at = min(low + (high - low) / max(whole, 1) * sum_before, high)
        cell = max([b for b in range(len(edges) - 1) if share[b] <= at], default=0)
        rise, width = share[cell + 1] - share[cell], edges[cell + 1] - edges[cell]
        part = (at - share[cell]) / rise if rise > 0 else 0.0
        times.append(min(max(edges[cell] + int(part * width), edges[cell]), edges[cell + 1]))
    return times


# --- Churn per window, from the definitions ------------------------------------------------------

Write = tuple[int, int, int, int, int]  # time_ns, op, volume, offset, length


def churn_windows(
    requests: Sequence[Write], ops: set[int], window_ns: int, block_size: int, gap: int
) -> tuple[dict[tuple[int, int], dict], dict[tuple[int, int], list[int]]]:
    """Window and volume -> its figures; volume and log2 of length -> extents and their blocks."""
    dirty: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for time_ns, op, volume, offset, length in requests:
        if op in ops and length:
            dirty.setdefault((time_ns // window_ns, volume), []).append((offset, length))
    ever: dict[int, set[int]] = {}
    figures, histogram = {}, {}
    for (window, volume), writes in sorted(dirty.items()):
        touched = [range(o // block_size, (o + n - 1) // block_size + 1) for o, n in writes]
        blocks = sorted({b for blocks in touched for b in blocks})
        extents = [[blocks[0], blocks[0]]]
        for block in blocks[1:]:
            if block - extents[-1][1] - 1 <= gap // block_size:
                extents[-1][1] = block
            else:
                extents.append([block, block])
        for first, last in extents:
            length = last - first + 1
            entry = histogram.setdefault((volume, length.bit_length() - 1), [0, 0])
            entry[0] += 1
            entry[1] += sum(first <= block <= last for block in blocks)
        regions: dict[int, int] = {}
        for block in blocks:
            region = block * block_size >> 22
            regions[region] = regions.get(region, 0) + 1
        seen = ever.setdefault(volume, set())
        figures[window, volume] = {
            "writes": len(writes),
            "write_bytes": sum(n for _, n in writes),
            "block_writes": sum(len(blocks) for blocks in touched),
            "unique": len(blocks),
            "new": len(set(blocks) - seen),
            "extents": len(extents),
            "leaves": len(regions),
            "squares": sum(n * n for n in regions.values()),
            "first": blocks[0],
            "last": blocks[-1],
            "levels": [
                len({b * block_size // size for b in blocks})
                for size in (block_size << k for k in range(24))
                if size <= 4 << 20
            ],
        }
        seen |= set(blocks)
    return figures, histogram


def merge_leaves(one: dict[int, set[int]], two: dict[int, set[int]]) -> dict[int, set[int]]:
    return {key: one.get(key, set()) | two.get(key, set()) for key in one.keys() | two.keys()}


def churn_finish(figures: dict[tuple[int, int], dict]) -> dict[tuple[int, int], dict]:
    last = max((window for window, _ in figures), default=0)
    return {key: figure for key, figure in figures.items() if key[0] == last}


# --- Records of binary traces --------------------------------------------------------------------


def has_tag(data: bytes, at: int, tag: bytes) -> bool:
    return data[at : at + 4] == tag


def walk_tagged(data: bytes, tag: bytes, big: bool, lost: bool) -> tuple[list[int], int, bool]:
    """Starts, bytes done with, and whether bytes are being passed over."""
    starts: list[int] = []
    at = 0
    while len(data) - at >= 4:
        if not has_tag(data, at, tag):
            if not lost:
                starts.append(-1 - at)
            at, lost = at + 1, True
            continue
        lost = False
        tail = int.from_bytes(data[at + 46 : at + 48], "big" if big else "little")
        if len(data) - at < 48 + tail:
            break
        starts.append(at)
        at += 48 + tail
    return starts, at, lost


def walk_sized(data: bytes, least: int, most: int) -> tuple[list[int], int, bool]:
    """Starts, bytes done with, and whether what follows has a size that no record has."""
    starts: list[int] = []
    at = 0
    while len(data) - at >= 4:
        size = int.from_bytes(data[at : at + 4], "big")
        if not least <= size <= most or size % 4:
            return starts, at, True
        if len(data) - at < size:
            break
        starts.append(at)
        at += size
    return starts, at, False


def vscsi_requests(
    data: bytes, version: int, codes: dict[int, int], most_sector: int, most_time: int
) -> tuple[list[tuple[int, int, int, int, int]], list[int]]:
    """(record, ns, operation, offset, length) of the requests; the records that are bad."""
    kept, bad = [], []
    layout = {1: "<IIIHHQQ", 2: "<HHIIIQQQ"}[version]
    for record, fields in enumerate(struct.iter_unpack(layout, data)):
        if version == 1:
            _, length, _, code, told, sector, time = fields
        else:
            code, told, _, length, _, sector, time, _ = fields
        if told >> 8 != version or code > 255 or sector > most_sector or time > most_time:
            bad.append(record)
        elif code in codes and codes[code] & 128:
            kept.append((record, time * 1000, codes[code] & 127, 0, 0))
        elif code in codes:
            kept.append((record, time * 1000, codes[code], sector * 512, length))
    return kept, bad


# --- Columns of a trace ---------------------------------------------------------------------------


def survey_text(text: bytes) -> tuple[int, bool, bool]:
    """Line feeds, whether there is a carriage return, whether a byte is not ASCII."""
    return text.count(b"\n"), b"\r" in text, not text.isascii()


def same_bytes(data: bytes, a: int, b: int, size: int) -> bool:
    return data[a : a + size] == data[b : b + size]


def number_codes(values: Sequence[int]) -> list[int]:
    order = list(dict.fromkeys(values))
    return [order.index(value) for value in values]


def decimal_units(words: Sequence[bytes], digits: int, most: int) -> list[int]:
    """The numbers up to the first word that is none."""
    found = []
    for word in words:
        match = re.fullmatch(rb"[ \t]*([0-9]*)(?:[.,]([0-9]*))?[ \t]*", word)
        if match is None or not (match[1] or match[2]) or int(match[1] or b"0") > most:
            break
        found.append(int((match[1] or b"0") + ((match[2] or b"") + b"0" * digits)[:digits]))
    return found


def word_codes(words: Sequence[bytes], most: int) -> tuple[list[int], list[int]] | None:
    """Code of each row and first row of each word; None where there are too many words."""
    order = list(dict.fromkeys(words))
    if len(order) > most:
        return None
    return [order.index(word) for word in words], [words.index(word) for word in order]


def first_unsound(
    rows: Sequence[tuple[int, int, int, int, int, int]],
    sizes: dict[int, int],
    most_op: int,
    known_flags: int,
) -> tuple[int, int] | None:
    """Row and reason of the first of (time, op, volume, offset, length, flags) that may not be."""
    for row, (time, op, volume, offset, length, flags) in enumerate(rows):
        if op > most_op:
            return row, 1
        if flags & ~known_flags:
            return row, 2
        if time < (rows[row - 1][0] if row else 0):
            return row, 3
        if volume not in sizes:
            return row, 4
        if offset < 0 or length < 0 or offset + length > sizes[volume]:
            return row, 5
    return None


def misplaced(rows: Sequence[tuple[int, int, int]], most_bytes: int, most_ns: int) -> list[int]:
    """For (time, offset, length): 1 where no volume can hold it, 2 where its time is too far."""
    return [
        1 if offset < 0 or length < 0 or offset + length > most_bytes else 2 * (abs(time) > most_ns)
        for time, offset, length in rows
    ]


def volume_ends(rows: Sequence[tuple[int, int, int]], ends: Sequence[int]) -> list[int]:
    """The end of each volume after (volume, offset, length)."""
    return [
        max([end, *(offset + length for v, offset, length in rows if v == volume)])
        for volume, end in enumerate(ends)
    ]


# --- Updates, working sets and requests, from the definitions ------------------------------------


def blocks_touched(offset: int, length: int, block_size: int) -> range:
    return range(offset // block_size, (offset + length - 1) // block_size + 1)


def cut_requests(
    requests: Sequence[Write], ops: set[int], block_size: int, leaf_blocks: int
) -> list[tuple[int, int, int, list[int]]]:
    """Row, volume, leaf of the volume and blocks within it, of every piece in order."""
    pieces: list[tuple[int, int, int, list[int]]] = []
    for row, (_, op, volume, offset, length) in enumerate(requests):
        if op not in ops or not length:
            continue
        for block in blocks_touched(offset, length, block_size):
            leaf, inside = divmod(block, leaf_blocks)
            if not pieces or pieces[-1][:3] != (row, volume, leaf):
                pieces.append((row, volume, leaf, []))
            pieces[-1][3].append(inside)
    return pieces


def find_leaves(keys: Sequence[int]) -> list[int]:
    """The slot of each key: in order of first appearance."""
    order = list(dict.fromkeys(keys))
    return [order.index(key) for key in keys]


def interval_blocks(
    requests: Sequence[Write], ops: set[int], intervals_ns: Sequence[int], block_size: int
) -> dict[tuple[int, int], int]:
    """Volume and interval -> the unique blocks of each window, summed; interval 0: of all."""
    seen = set()
    for time_ns, op, volume, offset, length in requests:
        if op in ops and length:
            for block in blocks_touched(offset, length, block_size):
                seen.add((volume, 0, 0, block))
                seen.update((volume, k, time_ns // k, block) for k in intervals_ns)
    counts: dict[tuple[int, int], int] = {}
    for volume, interval, _, _ in seen:
        counts[volume, interval] = counts.get((volume, interval), 0) + 1
    return counts


def block_updates(
    requests: Sequence[Write], ops: set[int], block_size: int
) -> dict[int, dict[str, list]]:
    """For each volume: block writes in order, and every update's distance and interval."""
    found: dict[int, dict[str, list]] = {}
    for time_ns, op, volume, offset, length in requests:
        if op not in ops or not length:
            continue
        of = found.setdefault(volume, {"writes": [], "distances": [], "intervals": []})
        for block in blocks_touched(offset, length, block_size):
            earlier = [i for i, (b, _) in enumerate(of["writes"]) if b == block]
            if earlier:
                of["distances"].append(len(of["writes"]) - earlier[-1] - 1)
                of["intervals"].append(time_ns - of["writes"][earlier[-1]][1])
            of["writes"].append((block, time_ns))
    return found


def profile_requests(requests: Sequence[Write], window_ns: int) -> dict[int, dict]:
    """For each volume with reads or writes: what they are like."""
    found: dict[int, dict] = {}
    for volume in {v for _, op, v, _, n in requests if op in (0, 1) and n}:
        mine = [(t, op, o, n) for t, op, v, o, n in requests if v == volume and op in (0, 1) and n]
        random, sequential = [], []
        for i, (_, op, offset, _) in enumerate(mine):
            before = mine[max(i - 32, 0) : i]
            if all(abs(offset - o) > 128 * 1024 for _, _, o, _ in before):
                random.append(op)
            if any(offset == o + n for _, _, o, n in before):
                sequential.append(op)
        windows: dict[int, list[int]] = {}
        for t, op, _, n in mine:
            window = windows.setdefault(t // window_ns, [0, 0, 0, 0])
            window[op] += 1
            window[2 + op] += n
        writes = [(o, n) for _, op, o, n in mine if op == 1]
        found[volume] = {
            "reads": len(mine) - len(writes),
            "writes": len(writes),
            "small": sum(n < 8192 for _, n in writes),
            "unaligned": sum(o % 4096 > 0 or n % 4096 > 0 for o, n in writes),
            "random": len(random),
            "random_writes": random.count(1),
            "sequential": len(sequential),
            "windows": windows,
        }
    return found


def touch_blocks(requests: Sequence[Write], ops: set[int], block_size: int) -> dict[int, dict]:
    """For each volume: blocks read, and how often each was written; and where writes begin."""
    found: dict[int, dict] = {}
    for _, op, volume, offset, length in requests:
        if not length or op not in ops | {0}:
            continue
        of = found.setdefault(volume, {"read": set(), "written": {}, "begins": []})
        blocks = blocks_touched(offset, length, block_size)
        if op == 0:
            of["read"] |= set(blocks)
            continue
        of["begins"].append(blocks[0])
        for block in blocks:
            of["written"][block] = of["written"].get(block, 0) + 1
    return found


# --- Short checksums ------------------------------------------------------------------------------


def crc_blocks(data: bytes, block_size: int, polynomial: int) -> list[int]:
    """Division by the polynomial, bit by bit, lowest power last."""
    found = []
    for block in blocks_of(data, block_size):
        crc = 0xFFFF_FFFF
        for byte in block:
            crc ^= byte
            for _ in range(8):
                crc = crc >> 1 ^ (polynomial if crc & 1 else 0)
        found.append(crc ^ 0xFFFF_FFFF)
    return found


def adler32_blocks(data: bytes, block_size: int) -> list[int]:
    """RFC 1950, section 8.2."""
    found = []
    for block in blocks_of(data, block_size):
        a, b = 1, 0
        for byte in block:
            a = (a + byte) % 65521
            b = (b + a) % 65521
        found.append(b << 16 | a)
    return found


# --- Chunks and what content is like -------------------------------------------------------------


def find_ends(
    data: bytes, last: bool, least: int, middle: int, most: int, before: int, beyond: int
) -> list[int]:
    gear = [
        int.from_bytes(hashlib.md5(bytes([i] * 64), usedforsecurity=False).digest()[:8], "big")
        for i in range(256)
    ]
    ends: list[int] = []
    start = 0
    while start < len(data) and (last or len(data) - start >= most):
        chunk = data[start : start + most]
        end = len(chunk)
        value = 0
        for at in range(least // 2 * 2, len(chunk) // 2 * 2 if len(chunk) > least else 0):
            value = (value * 2 + gear[chunk[at]]) & WORD
            if not value & (before if at < min(middle, len(chunk)) // 2 * 2 else beyond):
                end = at
                break
        start += end
        ends.append(start)
    return ends


def digest_chunks(data: bytes, ends: Sequence[int]) -> list[tuple[int, bool]]:
    starts = [0, *ends][: len(ends)]
    chunks = [data[start:end] for start, end in zip(starts, ends, strict=True)]
    return [(xxh3_64(chunk), not any(chunk)) for chunk in chunks]


def coded_bits(symbols: Sequence[int]) -> float:
    counts = Counter(symbols)
    return sum(n * math.log2(len(symbols) / n) for n in counts.values())


def code(value: int, plain: int) -> tuple[int, int]:
    """The code of a number, and how many bits follow it."""
    if value < plain:
        return value, 0
    high = value.bit_length() - 1
    return plain + high, high


def matches(block: bytes, start: int, stop: int, places: dict[int, int]) -> list[tuple[int, ...]]:
    """Where each match of a window begins, how long it is, how far back; 0 as the one before."""
    found = []
    at = anchor = start
    repeated = 0
    while at + 8 < stop:
        five = int.from_bytes(block[at : at + 5], "little")
        slot = ((five << 24) * 889_523_592_379 & WORD) >> 51
        earlier = places.get(slot, -1)
        places[slot] = at
        back = 0
        if repeated and at + 1 >= repeated and (
            block[at + 1 : at + 5] == block[at + 1 - repeated : at + 5 - repeated]
        ):  # fmt: skip
            at, distance, back = at + 1, 0, repeated
        elif earlier >= 0 and block[at : at + 5] == block[earlier : earlier + 5]:
            back = distance = at - earlier
        if not back:
            at += 1 + (at - anchor) // 128
            continue
        end = at
        while end < stop and block[end] == block[end - back]:
            end += 1
        while distance and at > anchor and at > back and block[at - 1] == block[at - 1 - back]:
            at -= 1
        found.append((at, end - at, distance))
        at = anchor = end
        repeated = back
    return found


def packed_bytes(block: bytes, every: int) -> float:
    window = 4096 if every > 1 else len(block)
    literals: list[int] = []
    codes: tuple[list[int], ...] = ([], [], [])
    places: dict[int, int] = {}
    bits, seen = 0.0, 0
    for start in range(0, len(block), window * every):
        stop = min(start + window, len(block))
        anchor = start
        for at, length, distance in matches(block, start, stop, places):
            literals += block[anchor:at]
            far = code(distance + 3, 1) if distance else (0, 0)
            parts = code(at - anchor, 16), code(length - 3, 32), far
            for kind, (symbol, extra) in zip(codes, parts, strict=True):
                kind.append(symbol)
                bits += extra
            anchor = at + length
        literals += block[anchor:stop]
        seen += stop - start
    packed = float(len(literals))
    if len(literals) > 63:
        coded = max(coded_bits(literals), len(literals)) / 8
        packed = min(packed, coded + 0.4 * len(set(literals)))
    bits += sum(coded_bits(kind) for kind in codes)
    packed += bits / 8 + min(0.6 * sum(len(set(kind)) for kind in codes), len(codes[0]) / 4)
    return min(packed * len(block) / seen, len(block)) + 12


def measure_content(data: bytes, block_size: int, every: int) -> list[tuple[float, float]]:
    """Entropy and packed bytes of each block."""
    found = []
    for block in blocks_of(data, block_size):
        bits = coded_bits(block)
        if not any(block):
            packed: float = min(17, len(block) + 12)
        elif 2 * math.log(2) * (8 * len(block) - bits) < 255 + 6 * math.sqrt(510):
            packed = len(block) + 12
        else:
            packed = packed_bytes(block, every)
        found.append((bits / len(block), packed))
    return found


# --- Crash states --------------------------------------------------------------------------------


def sector_digests(data: bytes, pieces: Sequence[tuple[int, int]]) -> list[int]:
    """XXH3-64 of each 512 bytes of each (start, sectors); 0 of zeros, which a negative start is."""
    found = []
    for start, count in pieces:
        for at in range(start, start + 512 * count, 512):
            sector = data[at : at + 512] if start >= 0 else bytes(512)
            found.append(xxh3_64(sector) if any(sector) else 0)
    return found


def former_owners(pieces: Sequence[tuple[int, int]]) -> list[int]:
    """For each sector of each (first sector, sectors), the last one before on the same place."""
    owner: dict[int, int] = {}
    found = []
    for first, count in pieces:
        for sector in range(first, first + count):
            found.append(owner.get(sector, 0))
            owner[sector] = len(found)
    return found


def sector_share(place: int, content: int) -> int:
    return splitmix64(content + (place + 1) * GAMMA) if content else 0


def follow_states(
    pieces: Sequence[tuple[int, int]],
    contents: Sequence[int],
    places: Sequence[int],
    starts: Sequence[int],
    states: Sequence[tuple[Sequence[int], Sequence[tuple[int, int, int]]]],
) -> list[tuple[list[int], int]]:
    """Owners and digest of each state, every one from nothing.

    A state is where the prefix of each volume's pieces ends, and runs of (sector, cell, cells).
    """
    cells = [sum(count for _, count in pieces[:p]) for p in range(len(pieces))]
    found = []
    for stops, runs in states:
        owner = [0] * len(places)
        for start, stop in zip(starts, stops, strict=True):
            for p in range(start, stop):
                for i in range(pieces[p][1]):
                    owner[pieces[p][0] + i] = cells[p] + i + 1
        for sector, cell, count in runs:
            for i in range(count):
                owner[sector + i] = cell + i + 1
        shares = (sector_share(at, contents[who]) for at, who in zip(places, owner, strict=True))
        found.append((owner, sum(shares) & WORD))
    return found


def changed_sectors(touched: Sequence[int], owner: Sequence[int], held: Sequence[int]) -> set[int]:
    return {sector for sector in touched if owner[sector] != held[sector]}


# --- Fleets --------------------------------------------------------------------------------------


def simulate_fleet(plan: object) -> object:
    """Jobs of a fleet, by the readable engine."""
    from vmbk.service.reference import simulate_reference

    return simulate_reference(plan, parts=True)
