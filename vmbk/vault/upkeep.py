"""Keeping the index true to the packs: they say themselves what they hold."""

from __future__ import annotations

from contextlib import suppress

from vmbk.errors import IntegrityError, StorageError
from vmbk.vault.crypto import Random
from vmbk.vault.format import INDEX_PACKS, pack_name
from vmbk.vault.pack import PackEntries, read_footer
from vmbk.vault.reader import Reader
from vmbk.vault.writer import store_index, store_rows


def adopt_packs(reader: Reader, random: Random) -> None:
    """List packs that no index file lists: what a killed job stored is found by the next one.

    Packs of a job that is at work may be among them; that one will list them too, which is allowed.
    A pack that cannot be read is left alone: nobody needs it.
    """
    found = []
    for name in reader.unlisted_packs():
        with suppress(ValueError, IntegrityError, StorageError):
            found.append(_footer(reader, name))
    _list(reader, found, random)


def rebuild_index(reader: Reader, random: Random) -> int:
    """List all packs that are not listed, and no more those that are gone; delete index files
    that are damaged.

    For the holder of the exclusive lock. A pack that is there stays listed, even cut short: what
    can still be read of it is found by the index alone.

    Returns
    -------
    int
        Packs that were listed.

    Raises
    ------
    IntegrityError
        If a pack's footer is damaged; what could be listed is listed.
    """
    reader.refresh()
    _drop_gone(reader, random)
    found, errors = [], []
    for name in reader.unlisted_packs():
        try:
            found.append(_footer(reader, name))
        except ValueError:
            errors.append(f"{name!r} is no pack")
        except IntegrityError as error:
            errors.append(error.message)
    _list(reader, found, random)
    for name in list(reader.damaged):
        reader.store.delete(name)
    reader.refresh()
    if errors:
        raise IntegrityError(
            f"{len(found)} packs were listed, {len(errors)} could not be: " + "; ".join(errors)
        )
    return len(found)


def _drop_gone(reader: Reader, random: Random) -> None:
    """Replace the index files that list packs which are not there."""
    there = set(reader.store.list("packs/"))
    gone = {digest for digest in reader.index.pack_sizes if pack_name(digest) not in there}
    if not gone:
        return
    for name in reader.store.list("index/"):
        if name in reader.damaged:
            continue
        rows = reader.read_index(name)
        kept = rows.without(gone)
        if len(kept) == len(rows):
            continue
        if len(kept):
            store_rows(reader, kept, random)  # before the file that it replaces is deleted
        reader.store.delete(name)
    reader.refresh()


def _footer(reader: Reader, name: str) -> PackEntries:
    return read_footer(reader.store, reader.keys, bytes.fromhex(name.rpartition("/")[2]))


def _list(reader: Reader, packs: list[PackEntries], random: Random) -> None:
    for first in range(0, len(packs), INDEX_PACKS):
        store_index(reader, packs[first : first + INDEX_PACKS], random)
