"""What every kind of disk must do.

A kind is tested by a subclass with one method::

    class TestRawDisk(DiskConformance):
        @contextmanager
        def blank(self, size, folder):
            with RawDisk.create(folder / "disk.raw", size) as disk:
                yield disk

or, where it can only be read, of `ReadableDiskConformance` with ``holding``.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from vmbk.disk.base import Bytes, Disk, ReadableDisk
from vmbk.errors import OutOfRangeError
from vmbk.units import KIB


def sample(size: int, seed: int = 0) -> Bytes:
    """Random bytes with stretches of zeros at the start, the middle and the end."""
    content = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    for start in (0, size // 2, size - size // 5):
        content[start : start + size // 6] = 0
    return content


def read(disk: ReadableDisk, offset: int = 0, length: int | None = None) -> Bytes:
    buffer = np.full(disk.size - offset if length is None else length, 0xA5, np.uint8)
    disk.read_into(offset, buffer)
    return buffer


class ReadableDiskConformance:
    SIZE = 5 * 64 * KIB + 3 * 512

    def holding(self, content: Bytes, folder: Path) -> AbstractContextManager[ReadableDisk]:
        """A disk with this content."""
        raise NotImplementedError

    @pytest.fixture
    def content(self) -> Bytes:
        return sample(self.SIZE)

    @pytest.fixture
    def filled(self, content: Bytes, tmp_path: Path) -> Iterator[ReadableDisk]:
        with self.holding(content, tmp_path) as disk:
            yield disk

    def test_says_what_it_is(self, filled: ReadableDisk, content: Bytes) -> None:
        assert isinstance(filled, ReadableDisk)
        assert filled.name
        assert filled.size == len(content)

    def test_reads_all(self, filled: ReadableDisk, content: Bytes) -> None:
        np.testing.assert_array_equal(read(filled), content)

    def test_reads_any_range(self, filled: ReadableDisk, content: Bytes) -> None:
        rng = np.random.default_rng(1)
        ranges = [(0, 0), (len(content), 0), (len(content) - 1, 1), (65535, 2), (1, 131072)]
        for _ in range(100):
            offset = int(rng.integers(0, len(content)))
            ranges.append((offset, int(rng.integers(0, len(content) - offset + 1))))
        for offset, length in ranges:
            found = read(filled, offset, length)
            np.testing.assert_array_equal(found, content[offset : offset + length])

    def test_refuses_what_lies_outside(self, filled: ReadableDisk) -> None:
        for offset, length in ((-1, 1), (0, self.SIZE + 1), (self.SIZE, 1), (1 << 62, 8)):
            buffer = np.full(length, 7, np.uint8)
            with pytest.raises(OutOfRangeError, match=str(offset)):
                filled.read_into(offset, buffer)
            assert (buffer == 7).all()

    def test_extents_hold_all_data(self, filled: ReadableDisk, content: Bytes) -> None:
        offsets, lengths = filled.data_extents()
        assert offsets.dtype == lengths.dtype == np.int64
        assert (lengths > 0).all()
        assert (offsets[1:] >= (offsets + lengths)[:-1]).all()
        assert offsets[0] >= 0
        assert offsets[-1] + lengths[-1] <= filled.size
        outside = np.ones(len(content), bool)
        for offset, length in zip(offsets, lengths, strict=True):
            outside[offset : offset + length] = False
        assert not content[outside].any()

    def test_reads_in_many_threads(self, filled: ReadableDisk, content: Bytes) -> None:
        def work(seed: int) -> bool:
            rng = np.random.default_rng(seed)
            for _ in range(50):
                offset = int(rng.integers(0, len(content)))
                length = int(rng.integers(1, len(content) - offset + 1))
                if (read(filled, offset, length) != content[offset : offset + length]).any():
                    return False
            return True

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(8)))


class DiskConformance(ReadableDiskConformance):
    def blank(self, size: int, folder: Path) -> AbstractContextManager[Disk]:
        """A disk of zeros."""
        raise NotImplementedError

    def holding(self, content: Bytes, folder: Path) -> AbstractContextManager[ReadableDisk]:
        @contextmanager
        def held() -> Iterator[ReadableDisk]:
            with self.blank(len(content), folder) as disk:
                for start in range(0, len(content), 512):
                    if content[start : start + 512].any():
                        disk.write(start, content[start : start + 512])
                yield disk

        return held()

    @pytest.fixture
    def disk(self, tmp_path: Path) -> Iterator[Disk]:
        with self.blank(self.SIZE, tmp_path) as disk:
            yield disk

    def test_is_a_disk(self, disk: Disk) -> None:
        assert isinstance(disk, Disk)

    def test_is_blank_at_first(self, disk: Disk) -> None:
        assert not read(disk).any()

    def test_reads_what_was_written(self, disk: Disk) -> None:
        model = np.zeros(self.SIZE, np.uint8)
        rng = np.random.default_rng(2)
        for i in range(200):
            offset = int(rng.integers(0, self.SIZE))
            length = int(rng.integers(0, min(self.SIZE - offset, 200_000 if i % 8 else 9) + 1))
            if i % 3:
                data = rng.integers(0, 256, length, np.uint8)
                disk.write(offset, (data, data.tobytes(), memoryview(data))[i % 5 % 3])
                model[offset : offset + length] = data
            else:
                disk.zero(offset, length)
                model[offset : offset + length] = 0
        np.testing.assert_array_equal(read(disk), model)

    def test_zeroes_to_the_byte(self, disk: Disk) -> None:
        disk.write(0, np.full(self.SIZE, 1, np.uint8))
        disk.zero(4097, 3 * 65536 + 77)
        expected = np.ones(self.SIZE, np.uint8)
        expected[4097 : 4097 + 3 * 65536 + 77] = 0
        np.testing.assert_array_equal(read(disk), expected)

    def test_refuses_to_write_outside(self, disk: Disk) -> None:
        for offset, length in ((-1, 2), (self.SIZE, 1), (self.SIZE - 1, 2), (1 << 62, 1)):
            with pytest.raises(OutOfRangeError):
                disk.write(offset, b"x" * length)
            with pytest.raises(OutOfRangeError):
                disk.zero(offset, length)
        with pytest.raises(OutOfRangeError):
            disk.zero(0, -1)
        assert not read(disk).any()

    def test_closes_twice(self, disk: Disk) -> None:
        disk.write(3, b"abc")
        disk.flush()
        disk.close()
        disk.close()
