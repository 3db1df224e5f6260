"""CRC-32 and Adler-32 of blocks: the short checksums that the study of missed changes measures.

CRC by a reflected polynomial, eight bytes at a time through eight tables (Kounavis and Berry, "A
systematic approach to building high performance software-based CRC generators", ISCC 2005), and
Adler-32 from RFC 1950, section 8.2. Nothing but that study uses them, and it runs in memory: they
are as fast as plain loops get.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vmbk.kernels.intrinsics import bytes_of, load_word
from vmbk.kernels.jit import U8, U64, OutU64, i64, kernel, void

if TYPE_CHECKING:
    from numpy.typing import NDArray

ADLER_MODULUS = 65521
# So many bytes that the weighted sum of all of them stays far below 2^63.
ADLER_CHUNK = 4096

_BYTE = np.uint64(0xFF)
_ONES = np.uint64(0xFFFF_FFFF)
# Where each table begins.
_TABLE = tuple(np.uint64(256 * k) for k in range(8))
_N8, _N16, _N24, _N32, _N40, _N48, _N56 = (np.uint64(n) for n in (8, 16, 24, 32, 40, 48, 56))


@kernel(void(U8, i64, U64, OutU64))
def crc_blocks(
    data: NDArray[np.uint8],
    block_size: int,
    tables: NDArray[np.uint64],
    out: NDArray[np.uint64],
) -> None:
    """CRC of each block, with all ones before and an inversion after, as CRC-32 and CRC-32C have.

    Parameters
    ----------
    data : (n,) uint8
        The bytes; the last block may be short.
    block_size : int64
        Bytes of a block, at least 1.
    tables : (2048,) uint64
        Eight tables of 256: the remainder of each byte, followed by 0 to 7 zero bytes.
    out : (ceil(n / block_size),) uint64
        Receives one CRC of 32 bits per block.
    """
    content = bytes_of(data)
    for block in range(out.size):
        at = block * block_size
        stop = min(at + block_size, data.size)
        crc = _ONES
        while at + 8 <= stop:
            word = load_word(content, at) ^ crc
            crc = (
                tables[_TABLE[7] + (word & _BYTE)]
                ^ tables[_TABLE[6] + ((word >> _N8) & _BYTE)]
                ^ tables[_TABLE[5] + ((word >> _N16) & _BYTE)]
                ^ tables[_TABLE[4] + ((word >> _N24) & _BYTE)]
                ^ tables[_TABLE[3] + ((word >> _N32) & _BYTE)]
                ^ tables[_TABLE[2] + ((word >> _N40) & _BYTE)]
                ^ tables[_TABLE[1] + ((word >> _N48) & _BYTE)]
                ^ tables[word >> _N56]
            )
            at += 8
        for i in range(at, stop):
            crc = (crc >> _N8) ^ tables[(crc ^ np.uint64(content[i])) & _BYTE]
        out[block] = crc ^ _ONES


@kernel(void(U8, i64, OutU64))
def adler32_blocks(data: NDArray[np.uint8], block_size: int, out: NDArray[np.uint64]) -> None:
    """Adler-32 of each block.

    Parameters
    ----------
    data : (n,) uint8
        The bytes; the last block may be short.
    block_size : int64
        Bytes of a block, at least 1.
    out : (ceil(n / block_size),) uint64
        Receives one checksum of 32 bits per block: the sum of the bytes in the low half, the sum
        of those sums in the high half.
    """
    content = bytes_of(data)
    for block in range(out.size):
        at = block * block_size
        stop = min(at + block_size, data.size)
        low, high = np.int64(1), np.int64(0)
        while at < stop:
            count = min(ADLER_CHUNK, stop - at)
            plain, weighted = np.int64(0), np.int64(0)
            for i in range(count):
                byte = np.int64(content[at + i])
                plain += byte
                weighted += byte * (count - i)
            high = (high + count * low + weighted) % ADLER_MODULUS
            low = (low + plain) % ADLER_MODULUS
            at += count
        out[block] = np.uint64(high << 16 | low)
