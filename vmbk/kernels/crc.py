"""CRC32C of blocks: the checksum of iSCSI (RFC 3720), of ext4, btrfs and much else.

The polynomial is Castagnoli's, reflected: bit i of a state is the coefficient of x^(31 - i).

One step of a CRC must wait for the one before, so each block is read as three parts side by side.
The state after A, B and C is that after A moved on by the length of B and C, xor that of B moved on
by the length of C, xor that of C. To move on by so many bytes is to multiply by a power of x, which
is linear: four tables of 256, made once a call, do it.

Where the processor that is compiled for has an instruction for a step, that is used. Elsewhere
eight tables take 8 bytes at a time (Kounavis and Berry, "A systematic approach to building high
performance software-based CRC generators", 2005).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vmbk.kernels.intrinsics import (
    Bytes,
    bytes_of,
    crc32c_word,
    has_crc32c_word,
    load_half_word,
    load_word,
    prefetch,
    scratch,
    store_half_word,
)
from vmbk.kernels.jit import U8, OutU32, i64, kernel, u64, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

POLYNOMIAL = np.uint64(0x82F63B78)

PARTS = 3
"""Parts that a block is read in: as many as the steps of the instruction's latency."""

AHEAD = 1024
"""Bytes to ask for ahead in each part."""

_N1, _N8, _N16, _N24, _N32 = (np.uint64(n) for n in (1, 8, 16, 24, 32))
_ZERO, _BYTE, _ONES = np.uint64(0), np.uint64(0xFF), np.uint64(0xFFFF_FFFF)
_X_0, _X_8 = np.uint64(1 << 31), np.uint64(1 << 23)

# Entry b of table k is the state after byte b and k bytes of zeros, from state 0.
_TABLES = np.zeros((8, 256), np.uint32)
_TABLES[0] = np.arange(256)
for _ in range(8):
    _TABLES[0] = _TABLES[0] >> 1 ^ (_TABLES[0] & 1) * np.uint32(POLYNOMIAL)
for _k in range(1, 8):
    _TABLES[_k] = _TABLES[_k - 1] >> 8 ^ _TABLES[0][_TABLES[_k - 1] & 0xFF]
STEPS = _TABLES.reshape(-1).view(np.uint8)


@kernel(u64(Bytes, i64, u64))
def _look_up(tables: Any, table: int, index: Any) -> Any:
    """An entry of one of several tables of 256 times 32 bits."""
    return load_half_word(tables, (table << 10) + (np.int64(index & _BYTE) << 2))


@kernel(u64(Bytes, i64, u64))
def _look_up_4(tables: Any, table: int, word: Any) -> Any:
    """Four bytes of a word, each looked up in a table of its own; the lowest in the last one."""
    low = _look_up(tables, table + 3, word) ^ _look_up(tables, table + 2, word >> _N8)
    return low ^ _look_up(tables, table + 1, word >> _N16) ^ _look_up(tables, table, word >> _N24)


@kernel(u64(u64, u64))
def _step(crc: Any, word: Any) -> Any:
    """A state after 8 more bytes."""
    if has_crc32c_word():
        return crc32c_word(crc, word)
    word ^= crc
    steps = bytes_of(STEPS)
    return _look_up_4(steps, 4, word) ^ _look_up_4(steps, 0, word >> _N32)


@kernel(u64(u64, u64))
def _multiply(a: Any, b: Any) -> Any:
    """The product of two states, modulo the polynomial."""
    product = _ZERO
    for i in range(32):
        product ^= b * ((a >> np.uint64(31 - i)) & _N1)
        b = (b >> _N1) ^ (POLYNOMIAL * (b & _N1))
    return product


@kernel(void(i64, Bytes))
def _make_moves(length: int, moves: Any) -> None:
    """Four tables that move a state on by `length` bytes of zeros, for `_look_up_4`."""
    factor, power = _X_0, _X_8
    while length > 0:
        if length & 1:
            factor = _multiply(factor, power)
        power = _multiply(power, power)
        length >>= 1
    for byte in range(4):
        table = (3 - byte) << 10
        store_half_word(moves, table, _ZERO)
        for bit in range(8):
            column = _multiply(_N1 << np.uint64(8 * byte + bit), factor)
            for i in range(1 << bit):
                other = load_half_word(moves, table + 4 * i)
                store_half_word(moves, table + (4 << bit) + 4 * i, other ^ column)


@kernel(u64(Bytes, i64, i64, i64, Bytes))
def _crc32c(data: Any, start: int, length: int, part: int, moves: Any) -> Any:
    """CRC32C of `length` bytes from `start`, read as three parts of `part` bytes and a rest."""
    crc, second, third = _ONES, _ZERO, _ZERO
    for at in range(start, start + part, 8):
        prefetch(data, at + AHEAD)
        crc = _step(crc, load_word(data, at))
        second = _step(second, load_word(data, at + part))
        third = _step(third, load_word(data, at + 2 * part))
    if part > 0:
        crc = _look_up_4(moves, 0, _look_up_4(moves, 0, crc) ^ second) ^ third
    at, stop = start + PARTS * part, start + length
    while at + 8 <= stop:
        crc = _step(crc, load_word(data, at))
        at += 8
    for i in range(at, stop):
        crc = (crc >> _N8) ^ _look_up(bytes_of(STEPS), 0, crc ^ np.uint64(data[i]))
    return crc ^ _ONES


@kernel(void(U8, i64, OutU32))
def crc32c_blocks(data: NDArray[np.uint8], block_size: int, out: NDArray[np.uint32]) -> None:
    """CRC32C (Castagnoli) of each block.

    Parameters
    ----------
    data : (n,) uint8
        The bytes; the last block may be short.
    block_size : int64
        Bytes of a block, at least 1.
    out : (ceil(n / block_size),) uint32
        Receives one checksum per block.
    """
    content, moves = bytes_of(data), scratch()
    usual = min(block_size, data.size)
    part = usual // (8 * PARTS) * 8
    _make_moves(part, moves)
    for block in range(out.size):
        start = block * block_size
        length = min(block_size, data.size - start)
        out[block] = _crc32c(content, start, length, part if length == usual else 0, moves)
