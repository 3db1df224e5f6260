"""Small files that are replaced and removed durably: a power cut leaves the old one or the new."""

from __future__ import annotations

import os
from pathlib import Path

from vmbk.disk.opening import storage_error


def save_file(path: Path, data: bytes) -> None:
    """Write a file beside its name and put it in place.

    Raises
    ------
    StorageError
        If the operating system refuses; what was there is still there.
    """
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise storage_error(f"the file {str(path)!r}", "cannot be saved", error) from error


def replace_file(new: Path, path: Path) -> None:
    """Put a file, whose content is durable, in the place of another one.

    Raises
    ------
    StorageError
        If the operating system refuses.
    """
    try:
        new.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise storage_error(f"the file {str(path)!r}", "cannot be replaced", error) from error


def remove_files(*paths: Path) -> None:
    """Remove files of one folder, those that are there.

    Raises
    ------
    StorageError
        If the operating system refuses.
    """
    try:
        there = [path for path in paths if os.path.lexists(path)]
        for path in there:
            path.unlink()
        if there:
            _sync(paths[0].parent)
    except OSError as error:
        raise storage_error(f"the file {str(paths[0])!r}", "cannot be removed", error) from error


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
