"""Files and trees of an ext4 image, copied out with ``debugfs``: no mount, no root, no harm.

The image may be damaged, or made to harm. Of a tree, only directories and regular files with plain
names are copied, each to a path of its own: no link is ever made, so nothing can be written through
one, and ``debugfs rdump``, which makes them, is not used. Sizes are bounded by the disk's own
before anything is written, because a damaged inode can claim petabytes.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vmbk.consistency.checkers import Tool, run_tool
from vmbk.consistency.confined import ConfinedRun, run_confined
from vmbk.errors import StorageError
from vmbk.units import quoted

DEBUGFS: Final = Tool("debugfs", "e2fsprogs")

PLAIN_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)+", re.ASCII)
"""Absolute paths that may become part of a debugfs command."""

_SIZE: Final = re.compile(r"^User:.*\bSize:\s*(\d+)", re.MULTILINE)
_TYPE: Final = re.compile(r"^Inode: (\d+)\s+Type: (\w+)", re.MULTILINE)
_COMMAND: Final = "debugfs: ls -p <"
# ls -p: inode, mode, user, group, name, size (none for a directory).
_ENTRY: Final = re.compile(r"/(\d{1,10})/(\d{6})/-?\d+/-?\d+/([^/]*)/(\d*)/")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,127}", re.ASCII)
_MOST_ENTRIES: Final = 200_000
_DEEPEST: Final = 12


class UnreadableError(Exception):
    """It exists and cannot be read back; the message says why."""


@dataclass
class Tree:
    """What was copied out of an image.

    Parameters
    ----------
    files : dict of str to int
        Bytes of each regular file, by its path within the tree.
    left_out : list of str
        Paths of what is neither a file nor a directory: links, sockets, devices.
    """

    files: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def extract_file(image: Path, path: str, target: Path, timeout_s: float) -> bool:
    """Copy a regular file out of an image; False where it is absent.

    Parameters
    ----------
    image : Path
        An ext2, ext3 or ext4 image.
    path : str
        Matches `PLAIN_PATH`.
    target : Path
        Where to; its name is plain as well.
    timeout_s : float
        Seconds for each run of debugfs.

    Raises
    ------
    UnreadableError
        If it is no regular file, claims more than its disk has, or cannot be read back.
    """

    said = _ask(image, f"stat {path}", target.parent, timeout_s)
    kind, size = _TYPE.search(said), _SIZE.search(said)
    if kind is None or size is None:
        return False
    if kind[2] != "regular":
        raise UnreadableError(f"{path} is not a file but a {kind[2]}")
    if int(size[1]) > image.stat().st_size:
        raise UnreadableError(f"{path} claims {size[1]} bytes, more than its disk has")
    said = _ask(image, f"dump {path} {target.name}", target.parent, timeout_s)
    if not target.is_file() or target.stat().st_size != int(size[1]):
        raise UnreadableError(f"{path} cannot be read back: {said.strip()[-300:]}")
    return True


def extract_tree(
    image: Path,
    path: str,
    target: Path,
    timeout_s: float,
    *,
    wanted: Callable[[str], bool] = lambda _: True,
) -> Tree | None:
    """Copy a directory and all below it out of an image; None where it is absent.

    Parameters
    ----------
    image : Path
        An ext2, ext3 or ext4 image, its journal replayed.
    path : str
        Of the directory; matches `PLAIN_PATH`.
    target : Path
        A directory that does not exist yet, of a plain name.
    timeout_s : float
        Seconds for each run of debugfs.
    wanted : callable, optional
        Called with each path within the tree; what it refuses is not copied.

    Raises
    ------
    UnreadableError
        If it is no directory, a name is odd, or a directory or file cannot be read back, or
        together they claim more than the disk has.
    StorageError
        If the scratch space is full.
    """
    folder = target.parent
    kind = _TYPE.search(_ask(image, f"stat {path}", folder, timeout_s))
    if kind is None:
        return None
    if kind[2] != "directory":
        raise UnreadableError(f"{path} is not a directory but a {kind[2]}")
    tree = Tree()
    target.mkdir()
    inodes: dict[str, int] = {}
    level = {int(kind[1]): ""}
    seen, taken = set(level), set[str]()
    while level:
        listing = _listing(image, list(level), folder, timeout_s)
        below: dict[int, str] = {}
        for parent, inode, mode, name, size in listing:
            place = f"{level[parent]}{name}"
            if not wanted(place):
                continue
            if place in taken:
                raise UnreadableError(f"{path}/{place} is there twice")
            taken.add(place)
            if stat.S_ISDIR(mode):
                if inode in seen or place.count("/") >= _DEEPEST:
                    raise UnreadableError(f"{path}/{place} is a directory within itself")
                seen.add(inode)
                below[inode] = f"{place}/"
                (target / place).mkdir()
            elif stat.S_ISREG(mode):
                inodes[place] = inode
                tree.files[place] = size
            else:
                tree.left_out.append(place)
        if len(taken) > _MOST_ENTRIES:
            raise UnreadableError(f"{path} has more than {_MOST_ENTRIES} entries")
        level = below
    _dump(image, path, target, inodes, tree.files, timeout_s)
    return tree


def _ask(image: Path, command: str, folder: Path, timeout_s: float) -> str:
    """Run one command; the beginning of what debugfs said."""
    run = run_tool(
        DEBUGFS, ["-R", command, str(image.absolute())], folder=folder, timeout_s=timeout_s,
        keep="head",
    )  # fmt: skip
    if run.timed_out:
        raise UnreadableError(f"debugfs {command}: timed out")
    return run.output


def _listing(
    image: Path, inodes: list[int], folder: Path, timeout_s: float
) -> list[tuple[int, int, int, str, int]]:
    """Directory, inode, mode, name and size of each entry of some directories."""
    commands = "".join(f"ls -p <{inode}>\n" for inode in inodes)
    run = _debugfs(image, commands, folder, timeout_s, file_size=0)
    entries = []
    parent = 0
    for line in run.output.splitlines():
        if line.startswith(_COMMAND):
            parent = int(line[len(_COMMAND) : -1])
        elif line.strip():
            # A name could hold a line end and pretend to be an entry; then its own line is cut.
            entry = _ENTRY.fullmatch(line)
            if entry is None or stat.S_ISDIR(int(entry[2], 8)) == bool(entry[4]):
                raise UnreadableError(f"directory <{parent}> has an entry {quoted(line)}")
            name = entry[3]
            if int(entry[1]) == 0 or name in (".", ".."):
                continue
            if not _PLAIN_NAME.fullmatch(name):
                raise UnreadableError(f"directory <{parent}> has an entry named {quoted(name)}")
            entries.append((parent, int(entry[1]), int(entry[2], 8), name, int(entry[4] or 0)))
    return entries


def _dump(
    image: Path,
    path: str,
    target: Path,
    inodes: dict[str, int],
    sizes: dict[str, int],
    timeout_s: float,
) -> None:
    claimed, disk = sum(sizes.values()), image.stat().st_size
    if claimed > disk:
        raise UnreadableError(f"{path} claims {claimed} bytes, more than its disk has")
    commands = "".join(f"dump <{i}> {target.name}/{place}\n" for place, i in inodes.items())
    largest = max(sizes.values(), default=0)
    run = _debugfs(image, commands, target.parent, timeout_s, file_size=largest)
    for place, size in sizes.items():
        copy = target / place
        if not copy.is_file() or copy.stat().st_size != size:
            raise UnreadableError(f"{path}/{place} cannot be read back: {run.errors[-300:]}")


def _debugfs(
    image: Path, commands: str, folder: Path, timeout_s: float, *, file_size: int
) -> ConfinedRun:
    """Run commands; raise where debugfs complained about the image."""
    run = run_confined(
        DEBUGFS.find(), ["-f", "-", str(image.absolute())], folder=folder, timeout_s=timeout_s,
        file_size=file_size, stdin=commands, unprivileged=False,
    )  # fmt: skip
    if run.timed_out:
        raise UnreadableError("debugfs: timed out")
    # Its first line says its version.
    complaints = [s for s in run.errors.splitlines() if s.strip() and not s.startswith("debugfs ")]
    if any("No space left" in s for s in complaints):
        raise StorageError("no space for the scratch copy of a database")
    if complaints or run.code < 0:
        said = " ".join(complaints)[:300] or f"ended by signal {-run.code}"
        raise UnreadableError(f"debugfs: {said}")
    return run
