"""The ext4 checker: e2fsck on a scratch copy, after the journal was replayed as a mount would.

The rule, from the exit codes of e2fsck(8) (0 no errors, 1 and 2 errors corrected, 4 errors left
uncorrected, 8 operational error, 16 usage, 32 cancelled), tried with e2fsprogs 1.47.0:

========  =========================================================================================
none      there is no file system yet: the capture says that mkfs had not finished or, where it
          says nothing, the magic number at byte 1080 is absent. No tool is run.
clean     the superblock asks for no recovery (no ``needs_recovery``, no orphans) and
          ``e2fsck -fn`` (everything checked, nothing written) exits 0.
replayed  not clean; then ``e2fsck -p`` exits 0 and after it ``e2fsck -fn`` exits 0. Without ``-f``,
          ``-p`` on a journaled file system replays the journal, releases orphaned inodes (files
          deleted or truncated while open) and recomputes the superblock's free counts, which ext4
          updates lazily. A mount does these three as well. Exit 0 says that it corrected nothing
          else.
repaired  not replayed; then ``e2fsck -fy`` ran and after it ``e2fsck -fn`` exits 0: the structure
          was wrong and is consistent again. Nothing is said about what the repair threw away.
damaged   ``e2fsck -fn`` still fails after ``-fy``, or a program died or ran out of time.
========  =========================================================================================

``-fn`` alone cannot decide: with a journal to replay it skips the replay and judges the stale
blocks, which can look worse or better than they are. ``-E journal_only`` with ``-f`` checks and
repairs all the same, and without it leaves the free counts wrong, so it is not used. The clock is
set to the file system's own last write (``E2FSCK_TIME``), so that a verdict does not depend on
the day.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

from vmbk.consistency.checkers import CheckContext, Tool, ToolRun, Verdict, run_tool
from vmbk.errors import StorageError

E2FSCK: Final = Tool("e2fsck", "e2fsprogs")

_SUPERBLOCK_OFFSET: Final = 1024  # bytes, on every ext file system whatever its block size
_SUPERBLOCK_SIZE: Final = 1024
_MAGIC: Final = 0xEF53
_INCOMPAT_RECOVER: Final = 0x4
_RO_COMPAT_ORPHAN_PRESENT: Final = 0x10000
_SANE_TIME: Final = 1_262_322_000  # January 2010: e2fsck calls an earlier clock insane


@dataclass(frozen=True)
class Superblock:
    """What the primary superblock says, as far as the rule needs it.

    Offsets are those of the kernel's ``Documentation/filesystems/ext4/super.rst``.
    """

    needs_recovery: bool
    orphans: bool
    time_s: int

    @classmethod
    def read(cls, image: Path) -> Superblock | None:
        """Read it; None where the magic number is not there.

        Raises
        ------
        StorageError
            If the image cannot be read.
        """
        try:
            with image.open("rb") as file:
                file.seek(_SUPERBLOCK_OFFSET)
                raw = file.read(_SUPERBLOCK_SIZE)
        except OSError as error:
            raise StorageError(f"cannot read the image: {error.strerror}") from error
        if len(raw) < _SUPERBLOCK_SIZE or struct.unpack_from("<H", raw, 0x38)[0] != _MAGIC:
            return None
        mounted, written = struct.unpack_from("<II", raw, 0x2C)
        (checked,) = struct.unpack_from("<I", raw, 0x40)
        incompat, ro_compat = struct.unpack_from("<II", raw, 0x60)
        (last_orphan,) = struct.unpack_from("<I", raw, 0xE8)
        return cls(
            needs_recovery=bool(incompat & _INCOMPAT_RECOVER),
            orphans=last_orphan != 0 or bool(ro_compat & _RO_COMPAT_ORPHAN_PRESENT),
            time_s=max(mounted, written, checked, _SANE_TIME),
        )


@dataclass(frozen=True)
class Ext4Checker:
    """Judges an ext2, ext3 or ext4 file system that fills the disk; the rule is in the module."""

    name: str = "ext4"
    tools: tuple[Tool, ...] = (E2FSCK,)
    states: tuple[str, ...] = ("none", "clean", "replayed", "repaired", "damaged")

    def check(self, image: Path, context: CheckContext) -> Verdict:
        """Judge the copy and leave it replayed or repaired; see `Checker.check`."""
        started = perf_counter()
        state, detail, output = self._judge(image, context)
        return Verdict(self.name, state, detail, output, perf_counter() - started)

    def _judge(self, image: Path, context: CheckContext) -> tuple[str, str, str]:
        if context.filesystem_made is False:
            return "none", "mkfs had not finished", ""
        superblock = Superblock.read(image)
        if superblock is None and not context.filesystem_made:
            return "none", "no superblock", ""
        clock = {"E2FSCK_TIME": str(superblock.time_s)} if superblock else {}
        said: list[str] = []

        def e2fsck(options: str) -> ToolRun:
            run = run_tool(
                E2FSCK, [options, str(image.absolute())], folder=context.folder,
                timeout_s=context.timeout_s, environment=clock,
            )  # fmt: skip
            ending = "timed out" if run.timed_out else f"exit {run.code}"
            said.append(f"e2fsck {options}: {ending}")
            return run

        def conclude(state: str, run: ToolRun) -> tuple[str, str, str]:
            return state, "; ".join(said), run.output

        if superblock and not superblock.needs_recovery and not superblock.orphans:
            look = e2fsck("-fn")
            if look.ok:
                return conclude("clean", look)
        if superblock:
            mount = e2fsck("-p")
            if mount.ok and e2fsck("-fn").ok:
                return conclude("replayed", mount)
        repair = e2fsck("-fy")
        look = e2fsck("-fn")
        finished = not repair.timed_out and repair.code >= 0
        if finished and look.ok:
            return conclude("repaired", repair)
        return conclude("damaged", look)
