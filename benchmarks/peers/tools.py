"""The programs, each as somebody would call it: encrypted, compressed, a folder as repository."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import vmbk

PASSWORD: Final = secrets.token_hex(16)
"""Of repositories that live as long as one run."""


@dataclass(frozen=True)
class Ran:
    """One call of a program.

    Attributes
    ----------
    seconds : float
        From its start to its end.
    peak_bytes : int
        The most memory that it had.
    output : str
    """

    seconds: float
    peak_bytes: int
    output: str = field(repr=False)


def call(command: list[str], folder: Path, more: dict[str, str] | None = None) -> Ran:
    """Run a program to its end; SystemExit, with what it said, where it fails."""
    out, err = folder / "stdout", folder / "stderr"
    began = time.perf_counter()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
            cwd=folder, env=os.environ | (more or {}),
        )  # fmt: skip
        peak = [0]
        watcher = threading.Thread(target=_watch, args=(child.pid, peak))
        watcher.start()
        child.wait()
        seconds = time.perf_counter() - began
        watcher.join()
    if child.returncode:
        raise SystemExit(f"{command[0]} failed: {err.read_text()[-2000:]}")
    return Ran(seconds, peak[0], out.read_text())


def _watch(pid: int, peak: list[int]) -> None:
    """Look at a process's peak memory until it is gone; what ``wait`` tells has its parent's."""
    status = Path(f"/proc/{pid}/status")
    while True:
        try:
            told = status.read_text()
        except OSError:
            return
        found = re.search(r"VmHWM:\s+(\d+) kB", told)
        if found is None:  # it has ended
            return
        peak[0] = max(peak[0], int(found[1]) * 1024)
        time.sleep(0.01)


@dataclass
class Tool:
    """A program and its repository.

    Parameters
    ----------
    folder : Path
        Where the repository and everything else it makes lie.
    """

    folder: Path
    name = ""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.repository = self.folder / "repository"
        self.prepare()

    def prepare(self) -> None: ...
    def backup(self, image: Path) -> Ran:
        raise NotImplementedError

    def verify(self) -> Ran:
        raise NotImplementedError

    def restore(self, image: Path) -> tuple[Ran, Path]:
        """Restore the last point; where the image lies then."""
        raise NotImplementedError

    def stored_bytes(self) -> int:
        """Bytes of all files of the repository."""
        return sum(f.stat().st_size for f in self.repository.rglob("*") if f.is_file())

    def call(self, *words: str) -> Ran:
        raise NotImplementedError

    def target(self) -> Path:
        """An empty folder to restore into."""
        target = self.folder / "restored"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        return target


class Vmbk(Tool):
    """vmbk by its command line."""

    name = "vmbk"
    detector = "auto"
    trust: tuple[str, ...] = ()

    def prepare(self) -> None:
        # An installed package has its bytecode; a checkout may not.
        self.more = {
            "VMBK_KEY_FILE": str(self.folder / "key"),
            "PYTHONPYCACHEPREFIX": str(self.folder / "bytecode"),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        package = str(Path(vmbk.__file__).parent)
        call([sys.executable, "-m", "compileall", "-q", package], self.folder, self.more)
        # What a machine compiles once is a benchmark of its own.
        call([sys.executable, "-m", "vmbk.kernels"], self.folder, self.more)
        self.call("vault", "create", str(self.repository))

    def call(self, *words: str) -> Ran:
        return call([sys.executable, "-m", "vmbk", *words, "--json"], self.folder, self.more)

    def backup(self, image: Path) -> Ran:
        return self.call("backup", str(image), "--vault", str(self.repository), "--vm", "vm",
                         "--detect", self.detector)  # fmt: skip

    def detect_by(self, detector: str) -> Vmbk:
        """Use this detector from now on."""
        self.detector = detector
        return self

    def trusting(self) -> Vmbk:
        """Read nothing back after a restore, as the others do not either."""
        self.trust = ("--no-verify",)
        return self

    def verify(self) -> Ran:
        return self.call("vault", "check", str(self.repository), "--read-data")

    def restore(self, image: Path) -> tuple[Ran, Path]:
        target = self.target()
        ran = self.call(
            "restore", "latest", "--vault", str(self.repository), "--to", str(target), *self.trust
        )
        assert json.loads(ran.output)["verified"] != bool(self.trust)
        return ran, next(target.iterdir())


class Restic(Tool):
    """restic, repository format 2, which compresses."""

    name = "restic"

    def prepare(self) -> None:
        self.call("init", "--repository-version", "2")

    def call(self, *words: str) -> Ran:
        cache = str(self.folder / "cache")
        return call(
            ["restic", "--repo", str(self.repository), "--cache-dir", cache, *words],
            self.folder, {"RESTIC_PASSWORD": PASSWORD},
        )  # fmt: skip

    def backup(self, image: Path) -> Ran:
        return self.call("backup", str(image))

    def verify(self) -> Ran:
        return self.call("check", "--read-data")

    def restore(self, image: Path) -> tuple[Ran, Path]:
        target = self.target()
        ran = self.call("restore", "latest", "--target", str(target))
        return ran, target / image.relative_to("/")


class Borg(Tool):
    """borg with fixed chunks, as its manual advises for disk images."""

    name = "borg"
    chunks = "fixed,4194304"
    points = 0

    def prepare(self) -> None:
        self.call("init", "--encryption=repokey-blake2", str(self.repository))

    def call(self, *words: str) -> Ran:
        base = {"BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": str(self.folder)}
        return call(["borg", *words], self.folder, base)

    def backup(self, image: Path) -> Ran:
        self.points += 1
        return self.call(
            "create", "--sparse", "--compression=zstd,1", f"--chunker-params={self.chunks}",
            f"{self.repository}::{self.points}", str(image),
        )  # fmt: skip

    def verify(self) -> Ran:
        return self.call("check", "--verify-data", str(self.repository))

    def restore(self, image: Path) -> tuple[Ran, Path]:
        target = self.target()
        # borg extracts into the working directory.
        ran = call(
            ["borg", "extract", "--sparse", f"{self.repository}::{self.points}"],
            target, {"BORG_PASSPHRASE": PASSWORD, "BORG_BASE_DIR": str(self.folder)},
        )  # fmt: skip
        return ran, target / image.relative_to("/")
