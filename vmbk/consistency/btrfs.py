"""The btrfs checker: ``btrfs check`` on a scratch copy, after its log was replayed by a mount.

btrfs writes nothing in place, so that every superblock names a whole file system. Only what was
synced since the last one lies in a log, a tree of its own, which a mount replays. The rule, tried
with btrfs-progs 6.2:

========  =========================================================================================
none      there is no file system yet: the capture says that mkfs had not finished or, where it
          says nothing, the magic number of the first superblock is absent. No tool is run.
clean     the superblock names no log and ``btrfs check`` exits 0.
replayed  it names a log; then a mount and an unmount work and after them ``btrfs check``
          exits 0.
repaired  not replayed; then, each only where it is needed, ``btrfs rescue super-recover -y`` (a
          copy of the superblock takes the place of the first), ``btrfs rescue zero-log`` (the log
          is thrown away) and ``btrfs check --repair`` ran, and ``btrfs check`` exits 0.
          Nothing is said about what the repair threw away.
damaged   ``btrfs check`` still fails after that, or a program died or ran out of time.
========  =========================================================================================

The mount is that of a guest: a kernel knows a btrfs by its id, which all states of a capture share,
and would take one for the other.

``btrfs check`` is always ``btrfs check --readonly --check-data-csum``: btrfs keeps a checksum of
what files hold, and without the second option nobody looks at it.
"""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

from vmbk.consistency.checkers import CheckContext, Tool, ToolRun, Verdict, run_tool
from vmbk.consistency.extract import PLAIN_PATH
from vmbk.consistency.mounting import mount_once, why_no_mount
from vmbk.errors import InputError, IntegrityError, StorageError, VmbkError
from vmbk.units import quoted

BTRFS: Final = Tool("btrfs", "btrfs-progs")
PRLIMIT: Final = Tool("prlimit", "util-linux")

_CHECK: Final = ("check", "--readonly", "--check-data-csum")
_SUPERBLOCK_OFFSET: Final = 64 << 10  # bytes; there are copies at 64 MiB and 256 GiB
_SUPERBLOCK_SIZE: Final = 4096
_MAGIC: Final = b"_BHRfS_M"
_MAGIC_AT, _LOG_ROOT_AT = 0x40, 0x60


@dataclass(frozen=True)
class BtrfsChecker:
    """Judges a btrfs file system that fills the disk; the rule is in the module."""

    name: str = "btrfs"
    tools: tuple[Tool, ...] = (BTRFS,)
    states: tuple[str, ...] = ("none", "clean", "replayed", "repaired", "damaged")

    def usable(self) -> str | None:
        """Why this checker cannot work on this machine; None where it can."""
        try:
            BTRFS.find()
        except VmbkError as error:
            return error.message
        return why_no_mount("btrfs", "guest")

    def check(self, image: Path, context: CheckContext) -> Verdict:
        """Judge the copy and leave it replayed or repaired; see `Checker.check`.

        Raises
        ------
        InputError
            If there is a log and no guest can be booted to replay it.
        """
        started = perf_counter()
        state, detail, output = self._judge(image, context)
        return Verdict(self.name, state, detail, output, perf_counter() - started)

    def _judge(self, image: Path, context: CheckContext) -> tuple[str, str, str]:
        if context.filesystem_made is False:
            return "none", "mkfs had not finished", ""
        log = _log_root(image)
        if log is None and not context.filesystem_made:
            return "none", "no superblock", ""
        said: list[str] = []

        def btrfs(*words: str) -> ToolRun:
            run = run_tool(
                BTRFS, [*words, str(image.absolute())], folder=context.folder,
                timeout_s=context.timeout_s,
            )  # fmt: skip
            ending = "timed out" if run.timed_out else f"exit {run.code}"
            said.append(f"{' '.join(words)}: {ending}")
            return run

        def conclude(state: str, output: str) -> tuple[str, str, str]:
            return state, "; ".join(said), output

        if log == 0:
            look = btrfs(*_CHECK)
            if look.ok:
                return conclude("clean", look.output)
        elif log is not None:
            mount = mount_once(image, "btrfs", context, "guest")
            said.append(str(mount))
            if mount.timed_out:
                return conclude("damaged", mount.output)
            if mount.ok and btrfs(*_CHECK).ok:
                return conclude("replayed", mount.output)
        mend: ToolRun | None = None
        if log is None:
            mend = btrfs("rescue", "super-recover", "-y")
            log = _log_root(image)
        if log:
            mend = btrfs("rescue", "zero-log")
        look = btrfs(*_CHECK)
        if not look.ok:
            # Forced, it does not wait for somebody to think better of it.
            mend = btrfs("check", "--repair", "--force")
            look = btrfs(*_CHECK)
        if look.ok and mend is not None and not mend.timed_out and mend.code >= 0:
            return conclude("repaired", mend.output)
        return conclude("damaged", look.output)


def _log_root(image: Path) -> int | None:
    """Address of the log's root, 0 where there is no log; None where there is no superblock.

    Offsets are those of ``struct btrfs_super_block`` in the kernel's
    ``include/uapi/linux/btrfs_tree.h``.
    """
    try:
        with image.open("rb") as file:
            file.seek(_SUPERBLOCK_OFFSET)
            raw = file.read(_SUPERBLOCK_SIZE)
    except OSError as error:
        raise StorageError(f"cannot read the image: {error.strerror}") from error
    if len(raw) < _SUPERBLOCK_SIZE or raw[_MAGIC_AT:][: len(_MAGIC)] != _MAGIC:
        return None
    return int(struct.unpack_from("<Q", raw, _LOG_ROOT_AT)[0])


def read_btrfs_files(
    image: Path, paths: Sequence[str], folder: Path, *, timeout_s: float = 120.0
) -> dict[str, Path]:
    """Copy files out of an image by ``btrfs restore``, without a mount and without root.

    What a log still holds is not seen: first let `BtrfsChecker` replay it.

    Parameters
    ----------
    image : Path
        It is not changed.
    paths : sequence of str
        Each matches `vmbk.consistency.extract.PLAIN_PATH`: it becomes a part of a command.
    folder : Path
        Where the copies are made: ``0``, ``1``, ... in the order of the paths.
    timeout_s : float
        Seconds for one file.

    Returns
    -------
    dict of str to Path
        The copy of each path; those that are absent from the image are absent here.

    Raises
    ------
    InputError
        If a path is not plain.
    IntegrityError
        If something is there and cannot be read back: it is no regular file, claims more bytes
        than the disk has, or its blocks lie outside of it.
    ToolMissingError
        If btrfs-progs is not installed.
    StorageError
        If the scratch space is full.
    """
    for path in paths:
        if not PLAIN_PATH.fullmatch(path):
            raise InputError(
                f"{quoted(path)} is not a usable path of a file",
                hint="write it from the root of its file system, as /data/app.db",
            )
    targets = {path: folder / str(number) for number, path in enumerate(paths)}
    return {p: to for p, to in targets.items() if _copy_out(image, p, to, timeout_s)}


def _copy_out(image: Path, path: str, target: Path, timeout_s: float) -> bool:
    """Copy one file; False where it is absent."""
    # Each folder on the way must match as well: ^/(|data(|/app\.db))$
    first, *others = (re.escape(name) for name in path[1:].split("/"))
    names = "".join(f"(|{name}" for name in (first, *(f"/{other}" for other in others)))
    pattern = f"^/{names}{')' * (1 + len(others))}$"
    largest = image.stat().st_size
    try:
        with tempfile.TemporaryDirectory(prefix="btrfs-", dir=target.parent) as name:
            run = run_tool(
                PRLIMIT,
                [f"--fsize={largest}", BTRFS.find(), "restore", "--path-regex", pattern,
                 str(image.absolute()), name],
                folder=Path(name), timeout_s=timeout_s,
            )  # fmt: skip
            copy = Path(name) / path[1:]
            if not run.ok:
                said = "timed out" if run.timed_out else run.output.strip()[-300:]
                raise IntegrityError(f"{path} cannot be read back: btrfs restore: {said}")
            if copy.is_symlink() or not copy.is_file():
                return False
            copy.replace(target)
    except OSError as error:
        raise StorageError(f"cannot copy {path} out of an image: {error.strerror}") from error
    return True
