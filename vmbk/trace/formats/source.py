"""The file that is imported: unpacked on the way where it is compressed, counted and digested."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import pyarrow as pa
from blake3 import blake3

from vmbk.errors import StorageError, TraceFormatError
from vmbk.trace.store import read_head
from vmbk.units import MIB, format_size, quoted

CHUNK: Final = 4 * MIB
"""Bytes handed on at a time: enough to keep two threads of a parser busy."""

RECORDS: Final = MIB
"""Bytes of binary records at a time: their arrays are then small enough to be used again, where
larger ones come as fresh pages from the system, which takes as long as the parsing."""

LONGEST_LINE: Final = MIB
"""Bytes; no trace has longer lines, and a file without line ends must not fill the memory."""

BOM: Final = b"\xef\xbb\xbf"
"""What Windows programs like to put before UTF-8; it belongs to no line."""

_XZ_MEMORY: Final = 256 * MIB
"""Bytes that an .xz file may ask for; ``xz -9`` asks for 65 MiB."""


class _Counted(io.RawIOBase):
    """A file that is digested and counted as it is read."""

    def __init__(self, path: Path, advance: Callable[[int], None]) -> None:
        self._file = path.open("rb", buffering=0)
        self._advance = advance
        self.hasher = blake3()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self.hasher.update(memoryview(buffer)[:count])
        self._advance(count)
        return count

    def read(self, size: int = -1) -> Any:
        # What this class inherits would copy all of it once more.
        data = self._file.read(size)
        self.hasher.update(data)
        self._advance(len(data))
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


class _Xz(io.RawIOBase):
    """An .xz or .lzma stream, or several, with bounded memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._inner = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._inner.eof:
                self._rest = self._inner.unused_data or self._file.read(65536)
                if not self._rest.strip(b"\0"):  # nothing, or padding between streams
                    return 0
                self._inner = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
            elif self._inner.needs_input and not self._rest:
                self._rest = self._file.read(65536)
                if not self._rest:
                    raise EOFError("it is cut off")
            data = self._inner.decompress(self._rest, len(buffer))
            self._rest = b""
            if data:
                buffer[: len(data)] = data
                return len(data)


def _zstd(file: Any) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(file), "zstd")


_PACKINGS: Final[tuple[tuple[str, bytes, Callable[[Any], Any]], ...]] = (
    ("gzip", b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    ("bzip2", b"BZh", lambda file: bz2.BZ2File(file)),
    ("xz", b"\xfd7zXZ\0", lambda file: io.BufferedReader(_Xz(file), MIB)),
    ("zstd", b"\x28\xb5\x2f\xfd", _zstd),
)  # fmt: skip


class Source:
    """A file to be imported.

    Parameters
    ----------
    path : Path
    on_progress : callable, optional
        Called with how many bytes of the file were read since the last call.
    companions : sequence of Path
        Further files of the same trace, for formats that spread one over several.

    Raises
    ------
    NotFoundError, InputError, StorageError
        If it is missing, no regular file, or not readable.
    """

    def __init__(
        self,
        path: Path,
        on_progress: Callable[[int], None] | None = None,
        companions: Sequence[Path] = (),
    ) -> None:
        self.path = path
        self.companions = tuple(Source(other, on_progress) for other in companions)
        magic = read_head(path, 8)
        found = [(name, unpack) for name, begin, unpack in _PACKINGS if magic.startswith(begin)]
        self.packing = found[0][0] if found else ""
        self._unpack = found[0][1] if found else None
        self._advance = on_progress or (lambda count: None)
        self.digest = ""
        """BLAKE3 (hex) of the file as it lies there, once it was read to its end."""

    def whole_digest(self) -> str:
        """The digest; of several files, BLAKE3 (hex) of their digests one after another."""
        if not self.companions:
            return self.digest
        digests = [self.digest, *(other.digest for other in self.companions)]
        return blake3(b"".join(bytes.fromhex(digest) for digest in digests)).hexdigest()

    def head(self, size: int) -> bytes:
        """The first bytes of what the file holds, unpacked.

        Raises
        ------
        TraceFormatError, StorageError
            As `chunks`.
        """
        return next(Source(self.path).chunks(size), b"")

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """What the file holds, unpacked, ``size`` bytes at a time.

        Raises
        ------
        TraceFormatError
            If the packing is damaged or cut off.
        StorageError
            If the operating system refuses to read.
        """
        raw = self._open()
        with raw:
            stream: Any = self._unpack(raw) if self._unpack else raw
            while data := self._read(stream, size):
                yield data
            while raw.read(MIB):
                pass  # what stands behind the packed data belongs to the digest as well
            self.digest = raw.hasher.hexdigest()

    def lines(self, size: int = CHUNK) -> Iterator[tuple[int, int, bytes]]:
        """Number of the first line, how many there are, and the lines: about ``size`` bytes.

        Lines end in a line feed, also the last one; a carriage return before it is left out, as is
        a byte order mark before the first.

        Raises
        ------
        TraceFormatError
            As `chunks`, and if a line is longer than `LONGEST_LINE`.
        """
        from vmbk.kernels.text import survey_text

        number, rest = 1, b""
        for chunk in self.chunks(size):
            cut = chunk.rfind(b"\n") + 1
            if not cut:
                rest += chunk
                if len(rest) > LONGEST_LINE:
                    raise self._endless(number)
                continue
            block, rest = b"".join((rest, memoryview(chunk)[:cut])), chunk[cut:]
            # A line longer than this, and no other, covers a multiple of it.
            for place in range(LONGEST_LINE, len(block), LONGEST_LINE):
                begin = block.rfind(b"\n", 0, place) + 1
                if block.index(b"\n", place) - begin > LONGEST_LINE:
                    raise self._endless(number + block.count(b"\n", 0, begin))
            block = block.removeprefix(BOM) if number == 1 else block
            seen = np.empty(2, np.uint8)
            count = survey_text(np.frombuffer(block, np.uint8), seen)
            yield number, count, _plain(block) if seen.any() else block
            number += count
            if len(rest) > LONGEST_LINE:
                raise self._endless(number)
        if rest:
            rest = rest.removeprefix(BOM) if number == 1 else rest
            yield number, 1, _plain(rest + b"\n")

    def _endless(self, number: int) -> TraceFormatError:
        return TraceFormatError(
            f"line {number} of {quoted(self.path.name)} is longer than {format_size(LONGEST_LINE)}"
        )

    def _open(self) -> _Counted:
        try:
            return _Counted(self.path, self._advance)
        except OSError as error:
            raise StorageError(f"cannot read {str(self.path)!r}: {error.strerror}") from error

    def _read(self, stream: Any, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end."""
        parts, left = [], size
        try:
            while left and (data := stream.read(left)):
                parts.append(data)
                left -= len(data)
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise self._damaged(error) from error
        except OSError as error:
            # gzip, bz2 and zstd report damage as an OSError without a number.
            if error.errno is None:
                raise self._damaged(error) from error
            raise StorageError(f"cannot read {str(self.path)!r}: {error.strerror}") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _damaged(self, error: BaseException) -> TraceFormatError:
        return TraceFormatError(
            f"{quoted(self.path.name)} is damaged {self.packing or 'data'}: {error}",
            hint="fetch the file again",
        )


def _plain(block: bytes) -> bytes:
    """The block in UTF-8 and without carriage returns; bytes that are no text are replaced."""
    if b"\r" in block:
        block = block.replace(b"\r\n", b"\n")
    if not block.isascii():
        block = block.decode("utf-8", "replace").encode()
    return block
