"""The xfs checker: xfs_repair on a scratch copy, after its log was replayed by a mount.

The rule, from the exit codes of xfs_repair(8) (with ``-n``, which writes nothing: 0 nothing wrong,
1 corruption found; without: 0 done, 1 failed, 2 the log is dirty and was left alone), tried with
xfsprogs 6.1.0:

========  =========================================================================================
none      there is no file system yet: the capture says that mkfs had not finished or, where it
          says nothing, the magic number at byte 0 is absent. No tool is run.
clean     ``xfs_logprint -t`` calls the log clean and ``xfs_repair -n`` exits 0.
replayed  not clean, and the log is dirty or unreadable; then a mount and an unmount work and after
          them ``xfs_repair -n`` exits 0. The mount replays the log and frees the inodes that were
          deleted while open; nothing else is corrected.
repaired  not replayed; then ``xfs_repair`` or, where it exits 2, ``xfs_repair -L``, which throws
          the log away, ran, and after it ``xfs_repair -n`` exits 0. Nothing is said about what the
          repair threw away.
damaged   ``xfs_repair -n`` still fails after that, or a program died or ran out of time.
========  =========================================================================================

``xfs_repair -n`` alone cannot decide: with a dirty log it judges blocks that the log replaces. No
program replays the log but the kernel; `vmbk.consistency.mounting` says whose kernel is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

from vmbk.consistency.bounded import run_bounded
from vmbk.consistency.checkers import CheckContext, Tool, ToolRun, Verdict, run_tool
from vmbk.consistency.extract import PLAIN_PATH
from vmbk.consistency.mounting import WAYS, mount_once, why_no_mount
from vmbk.errors import InputError, IntegrityError, StorageError, VmbkError
from vmbk.units import MIB, quoted

XFS_REPAIR: Final = Tool("xfs_repair", "xfsprogs")
XFS_LOGPRINT: Final = Tool("xfs_logprint", "xfsprogs")
XFS_DB: Final = Tool("xfs_db", "xfsprogs")

_MAGIC: Final = b"XFSB"
_LOG_STATE: Final = re.compile(r"log tail: \d+ head: \d+ state: <(CLEAN|DIRTY)>")
_DIRTY_LOG: Final = 2  # exit code of xfs_repair

_NUMBER: Final = re.compile(r"^([a-z_.]+) = (\d{1,18})$", re.MULTILINE)
_EXTENT: Final = re.compile(
    r"offset (\d{1,18}) startblock \d+ \((\d{1,10})/(\d{1,10})\) count (\d{1,18}) flag ([01])"
)
_REGULAR: Final = 0o100000
_KIND: Final = 0o170000
_NEEDED: Final = {"blocksize", "agblocks", "core.mode", "core.size", "core.realtime"}
_ABSENT: Final = ("No such file or directory", "Not a directory")
_SAID: Final = 4 * MIB
"""Bytes of a map of blocks that are held: room for 60,000 extents of a file."""


@dataclass(frozen=True)
class XfsChecker:
    """Judges an xfs file system that fills the disk; the rule is in the module.

    Parameters
    ----------
    way : str
        Whose kernel replays the log: ``"host"``, ``"guest"``, or ``"auto"``, the host where it can,
        which takes root, else a guest.

    Raises
    ------
    InputError
        If there is no such way.
    """

    way: str = "auto"
    name: str = "xfs"
    tools: tuple[Tool, ...] = (XFS_REPAIR, XFS_LOGPRINT)
    states: tuple[str, ...] = ("none", "clean", "replayed", "repaired", "damaged")

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise InputError(
                f"{quoted(self.way)} is no way to mount", hint="allowed are " + ", ".join(WAYS)
            )

    def usable(self) -> str | None:
        """Why this checker cannot work on this machine; None where it can."""
        try:
            for tool in self.tools:
                tool.find()
        except VmbkError as error:
            return error.message
        return why_no_mount("xfs", self.way)

    def check(self, image: Path, context: CheckContext) -> Verdict:
        """Judge the copy and leave it replayed or repaired; see `Checker.check`.

        Raises
        ------
        InputError
            If the log is dirty and no kernel can be asked to replay it.
        """
        started = perf_counter()
        state, detail, output = self._judge(image, context)
        return Verdict(self.name, state, detail, output, perf_counter() - started)

    def _judge(self, image: Path, context: CheckContext) -> tuple[str, str, str]:
        if context.filesystem_made is False:
            return "none", "mkfs had not finished", ""
        superblock = _has_superblock(image)
        if not superblock and not context.filesystem_made:
            return "none", "no superblock", ""
        said: list[str] = []

        def repair(*options: str) -> ToolRun:
            run = run_tool(
                XFS_REPAIR, [*options, "-f", str(image.absolute())], folder=context.folder,
                timeout_s=context.timeout_s,
            )  # fmt: skip
            ending = "timed out" if run.timed_out else f"exit {run.code}"
            said.append(f"{' '.join(('xfs_repair', *options))}: {ending}")
            return run

        def conclude(state: str, output: str) -> tuple[str, str, str]:
            return state, "; ".join(said), output

        if superblock:
            log = _log_state(image, context)
            said.append(f"log {log}")
            if log == "clean":
                look = repair("-n")
                if look.ok:
                    return conclude("clean", look.output)
            else:
                mount = mount_once(image, "xfs", context, self.way)
                said.append(str(mount))
                if mount.timed_out:
                    return conclude("damaged", mount.output)
                if mount.ok:
                    look = repair("-n")
                    if look.ok:
                        return conclude("replayed", mount.output)
        mend = repair()
        if mend.code == _DIRTY_LOG:
            mend = repair("-L")
        look = repair("-n")
        finished = not mend.timed_out and mend.code >= 0
        if finished and look.ok:
            return conclude("repaired", mend.output)
        return conclude("damaged", look.output)


def _has_superblock(image: Path) -> bool:
    try:
        with image.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise StorageError(f"cannot read the image: {error.strerror}") from error


def _log_state(image: Path, context: CheckContext) -> str:
    """``clean``, ``dirty``, or ``unreadable`` where no state is told."""
    # The state comes first; what a dirty log holds follows, which may be long.
    run = run_tool(
        XFS_LOGPRINT, ["-t", str(image.absolute())], folder=context.folder,
        timeout_s=context.timeout_s, keep="head",
    )  # fmt: skip
    found = _LOG_STATE.search(run.output)
    return found[1].lower() if found else "unreadable"


def read_xfs_files(
    image: Path, paths: Sequence[str], folder: Path, *, timeout_s: float = 120.0
) -> dict[str, Path]:
    """Copy files out of an image, without a mount and without root.

    xfs_db tells where their blocks are. What a dirty log still holds is not seen: first let
    `XfsChecker` replay it.

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
        If xfs_db is not installed.
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
    commands = ["sb 0", "print blocksize agblocks", f"path {path}"]
    commands += ["print core.mode core.size core.realtime", "bmap"]
    words = [word for command in commands for word in ("-c", command)]
    run = run_bounded(
        [XFS_DB.find(), "-r", "-f", *words, str(image.absolute())],
        folder=target.parent, timeout_s=timeout_s, kept=_SAID,
    )  # fmt: skip
    told = dict(_NUMBER.findall(run.output))
    if any(f"{path}: {why}" in run.output for why in _ABSENT):
        return False
    if run.timed_out or run.code != 0 or not set(told) >= _NEEDED or len(run.output) >= _SAID:
        ending = "timed out" if run.timed_out else run.output.strip()[-300:]
        raise IntegrityError(f"{path} cannot be read back: xfs_db: {ending}")
    size, block, group = (int(told[name]) for name in ("core.size", "blocksize", "agblocks"))
    if int(told["core.mode"], 8) & _KIND != _REGULAR:
        raise IntegrityError(f"{path} is not a regular file: its mode is {told['core.mode']}")
    if told["core.realtime"] != "0":
        raise IntegrityError(f"{path} lies on a real-time device, which is not there")
    if size > image.stat().st_size:
        raise IntegrityError(f"{path} claims {size} bytes, more than its disk has")
    extents = [
        (int(first) * block, (int(ag) * group + int(start)) * block, int(count) * block)
        for first, ag, start, count, unwritten in _EXTENT.findall(run.output)
        if unwritten == "0"  # what was reserved and never written reads as zeros
    ]
    _copy_extents(image, path, target, size, extents)
    return True


def _copy_extents(
    image: Path, path: str, target: Path, size: int, extents: list[tuple[int, int, int]]
) -> None:
    """Make a file of extents: (offset in the file, offset on the disk, length), in bytes."""
    end = image.stat().st_size
    # The last block is whole on the disk; its rest does not belong to the file.
    used = [(first, start, min(n, size - first)) for first, start, n in extents if first < size]
    if any(start + n > end for _, start, n in used):
        raise IntegrityError(f"{path} has blocks beyond the end of its disk")
    if sum(n for _, _, n in used) > size:
        raise IntegrityError(f"{path} has several blocks in one place")
    try:
        with image.open("rb") as disk, target.open("wb") as copy:
            copy.truncate(size)
            for first, start, n in used:
                copy.seek(first)
                disk.seek(start)
                for done in range(0, n, MIB):
                    copy.write(disk.read(min(n - done, MIB)))
    except OSError as error:
        raise StorageError(f"cannot copy {path} out of an image: {error.strerror}") from error
