"""Looking a vault over: that everything that is referred to is there, and is what was stored."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Final

from vmbk.errors import IntegrityError, NotFoundError, StorageError, VmbkError
from vmbk.units import format_size
from vmbk.vault.content import ContentCheck
from vmbk.vault.crypto import Keys
from vmbk.vault.diskmap import build_digests, build_map, read_digests, read_extents
from vmbk.vault.format import HEX_ID, pack_name
from vmbk.vault.manifest import DiskRecord, RecoveryPoint
from vmbk.vault.pack import PackEntries, read_footer, verify_pack
from vmbk.vault.reader import Reader
from vmbk.vault.store import Store

Progress = Callable[[int], None]

MAX_TABLES: Final = 64
"""Tables that a check remembers: twice a usual chain."""


@dataclass(frozen=True)
class CheckReport:
    """What a check found.

    Attributes
    ----------
    ok : bool
        Whether nothing is wrong.
    errors : tuple of str
        Everything that is.
    packs, chunks, points : int
        How many the vault has.
    stored_bytes : int
        Bytes of its packs.
    read_bytes : int
        Bytes of packs that were read and verified; 0 if only the structure was checked.
    """

    ok: bool
    errors: tuple[str, ...]
    packs: int
    chunks: int
    points: int
    stored_bytes: int
    read_bytes: int

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self) | {"errors": list(self.errors)}

    def _repr_html_(self) -> str:
        from vmbk.display import key_values

        rows: dict[str, object] = {
            "ok": self.ok,
            "packs": self.packs,
            "chunks": self.chunks,
            "points": self.points,
            "stored": format_size(self.stored_bytes),
            "read": format_size(self.read_bytes),
        }
        rows |= {f"error {i}": error for i, error in enumerate(self.errors, start=1)}
        return key_values("vault check", rows)


def check_vault(
    store: Store, keys: Keys, *, read_data: bool, on_progress: Progress | None = None
) -> CheckReport:
    """Check a vault; damage is listed, never raised.

    Parameters
    ----------
    read_data : bool
        Also read every pack and verify every chunk, and verify that the blocks which the chunks
        give are those that were digested.
    on_progress : callable, optional
        Called with the number of bytes of packs that were checked, from several threads.
    """
    # A reader of its own: what another one has in memory says nothing of what is stored.
    reader = Reader(store, keys)
    errors: list[str] = []
    packs = _footers(reader, errors)
    if read_data:
        read_bytes = _read(reader, packs, errors, on_progress or (lambda amount: None))
    else:
        read_bytes = 0
    points = _points(reader, errors, read_data=read_data)
    return CheckReport(
        ok=not errors,
        errors=tuple(errors),
        packs=len(reader.index.pack_sizes),
        chunks=len(reader.index),
        points=points,
        stored_bytes=sum(reader.index.pack_sizes.values()),
        read_bytes=read_bytes,
    )


def _footers(reader: Reader, errors: list[str]) -> list[PackEntries]:
    """Index, names and footers; the packs whose footers are sound."""
    try:
        reader.refresh()
        errors += reader.damaged.values()
        errors += _strange_packs(reader.store.list("packs/"))
    except VmbkError as error:
        errors.append(error.message)
    sound: dict[bytes, PackEntries] = {}
    for digest, rows in reader.index.rows_of_packs():
        name = pack_name(digest)
        try:
            footer = sound.get(digest) or read_footer(reader.store, reader.keys, digest)
        except (IntegrityError, StorageError) as error:
            errors.append(error.message)
            continue
        if rows.agree_with(footer):
            sound[digest] = footer
        else:
            errors.append(f"the footer of the pack {name!r} does not match the index")
    return list(sound.values())


def _strange_packs(names: Iterable[str]) -> list[str]:
    strange = []
    for name in names:
        digest = name.rpartition("/")[2]
        if not HEX_ID.fullmatch(digest) or name != pack_name(bytes.fromhex(digest)):
            strange.append(f"{name!r} is no pack")
    return strange


def _read(
    reader: Reader, packs: list[PackEntries], errors: list[str], on_progress: Progress
) -> int:
    read: list[int] = []

    def on_read(amount: int) -> None:
        read.append(amount)
        on_progress(amount)

    def verify(pack: PackEntries) -> list[str]:
        return verify_pack(reader.store, reader.keys, pack, on_read)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for found in pool.map(verify, packs):
            errors += found
    return sum(read)


def _points(reader: Reader, errors: list[str], *, read_data: bool) -> int:
    """Manifests, that the tables of every disk are there and cover it, and what they lead to."""
    try:
        points, damaged = reader.read_points()
    except VmbkError as error:
        errors.append(error.message)
        return 0
    errors += [error.message for error in damaged.values()]
    # A point shares all tables but one with its parent: remembering them makes this linear.
    extents = lru_cache(MAX_TABLES)(read_extents)
    digests = lru_cache(MAX_TABLES)(read_digests)

    content = ContentCheck(reader, extents, digests)

    def sub_digests(point: RecoveryPoint, disk: DiskRecord) -> None:
        if disk.sub_block_size:
            read_digests(reader, disk.sub_digests, disk.size, disk.sub_block_size)

    for point in points:
        for disk in point.disks:
            about = f"disk {disk.name!r} at the point {point.id}"
            found = (
                _error(lambda: build_map(reader, point, disk.name, extents)),  # noqa: B023
                _error(lambda: build_digests(reader, point, disk.name, digests)),  # noqa: B023
                _error(lambda: sub_digests(point, disk)),  # noqa: B023
            )
            for message in dict.fromkeys(filter(None, found)):
                errors.append(message if point.id in message else f"{about}: {message}")
            if read_data and not any(found):
                try:
                    errors += content.verify(point, disk.name)
                except VmbkError as error:  # sound a moment ago
                    errors.append(f"{about}: {error.message}")
    return len(points) + len(damaged)


def _error(look: Callable[[], object]) -> str:
    """What is wrong, or nothing; a point that was made without digests is not."""
    try:
        look()
    except NotFoundError:
        return ""
    except VmbkError as error:
        return error.message
    return ""
