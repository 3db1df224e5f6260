"""The checker of one's own: any program that takes the image of a disk and tells by its exit code.

======= ==========================================================================================
passed  exit code 0.
failed  exit code 1: the program has judged the disk and found it wrong.
error   any other exit code, a signal, or its time was up: nothing is known about the disk. Usage
        errors (2), a missing interpreter (126, 127) and a crash must not count as verdicts.
======= ==========================================================================================

The program runs without a shell, as the user who runs vmbk, with that user's environment and:

==================== =============================================================================
VMBK_IMAGE           path of the scratch copy; it may be changed.
VMBK_FOLDER          a directory for scratch files, where it runs too.
VMBK_OTHERS          path of a directory with the other volumes of the machine, ``NAME`` each; only
                     where there are any.
VMBK_ACKNOWLEDGED    how many commits were acknowledged before the cut.
VMBK_LAST_COMMIT     the largest number among them; only where there are any.
==================== =============================================================================
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

from vmbk.consistency.bounded import run_bounded
from vmbk.consistency.checkers import CheckContext, Tool, Verdict
from vmbk.errors import InputError, NotFoundError, StorageError
from vmbk.units import quoted

_IMAGE: Final = "{image}"
_PASSED, _FAILED = 0, 1  # exit codes
_CONTROL: Final = frozenset(map(chr, range(32))) | {"\x7f"}


@dataclass(frozen=True)
class CommandChecker:
    """Judges a disk by a program of the user's own; the rule is in the module.

    Parameters
    ----------
    command : sequence of str
        The program and its arguments, each a word. ``{image}`` in a word becomes the path of the
        image; where no word has it, the path comes last.
    name : str
        The checker's name in verdicts and tables.
    timeout_s : float, optional
        Seconds after which the program and its process group are killed; those of the context
        where absent, and never more than those.

    Raises
    ------
    InputError
        If there is no program, a word holds a NUL, the name is not plain, or the time is not
        positive.
    """

    command: Sequence[str]
    name: str = "command"
    timeout_s: float | None = None
    tools: tuple[Tool, ...] = ()
    states: tuple[str, ...] = ("passed", "failed", "error")

    def __post_init__(self) -> None:
        words = self.command
        if isinstance(words, str) or not words or not all(isinstance(w, str) for w in words):
            raise InputError(
                f"{quoted(words)} is no command",
                hint="give the program and its arguments as separate words",
            )
        if not words[0] or any("\0" in word for word in words):
            raise InputError(f"the command {quoted(list(words))} has no program or holds a NUL")
        if not self.name or len(self.name) > 60 or _CONTROL & set(self.name):
            raise InputError(f"{quoted(self.name)} is no name of a checker")
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise InputError(f"a command cannot be given {quoted(self.timeout_s)} s")

    def usable(self) -> str | None:
        """Why this checker cannot work on this machine; None where it can."""
        try:
            self._program()
        except NotFoundError as error:
            return error.message
        return None

    def check(self, image: Path, context: CheckContext) -> Verdict:
        """Run the program on the copy; see `Checker.check`.

        Raises
        ------
        NotFoundError
            If there is no such program.
        StorageError
            If the scratch space cannot be used or the program cannot be started.
        """
        started = perf_counter()
        program = self._program()
        limit = min(self.timeout_s or math.inf, context.timeout_s)
        where = str(image.absolute())
        words = [program, *(word.replace(_IMAGE, where) for word in self.command[1:])]
        if not any(_IMAGE in word for word in self.command[1:]):
            words.append(where)
        try:
            with tempfile.TemporaryDirectory(
                prefix="command-", dir=context.folder, ignore_cleanup_errors=True
            ) as name:
                folder = Path(name)
                run = run_bounded(
                    words, folder=folder, timeout_s=limit,
                    environment=self._environment(where, folder, context),
                )  # fmt: skip
        except OSError as error:
            raise StorageError(f"no scratch folder for a command: {error.strerror}") from error
        if run.timed_out:
            state, detail = "error", f"timed out after {limit:g} s"
        elif run.code < 0:
            state, detail = "error", f"ended by signal {-run.code}"
        else:
            state = {_PASSED: "passed", _FAILED: "failed"}.get(run.code, "error")
            detail = f"exit {run.code}"
        seconds = perf_counter() - started
        return Verdict(self.name, state, f"{Path(program).name}: {detail}", run.output, seconds)

    def _program(self) -> str:
        """The program's whole path: it runs in another folder."""
        found = shutil.which(self.command[0])
        if found is None:
            raise NotFoundError(
                f"there is no program {quoted(self.command[0])} to judge a disk with",
                hint="name one in PATH, or a path of an executable file",
            )
        return str(Path(found).absolute())

    def _environment(self, image: str, folder: Path, context: CheckContext) -> dict[str, str]:
        variables = {
            **os.environ,
            "VMBK_IMAGE": image,
            "VMBK_FOLDER": str(folder),
            "VMBK_ACKNOWLEDGED": str(len(context.acknowledged)),
        }
        if len(context.acknowledged):
            variables["VMBK_LAST_COMMIT"] = str(int(context.acknowledged.max()))
        if context.others:
            links = folder / "others"
            links.mkdir()
            for name, path in context.others.items():
                # A volume's name may hold anything; a link's name is one part of a path.
                (links / name.replace("/", "_").replace("\0", "_")).symlink_to(path.absolute())
            variables["VMBK_OTHERS"] = str(links)
        return variables
