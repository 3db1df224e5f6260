"""What guests left in their file systems, read from images without mounting them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.tools import require_tool

NOBODY = 65534


def is_xfs(image: Path) -> bool:
    with image.open("rb") as file:
        return file.read(4) == b"XFSB"


def fsck_is_clean(image: Path) -> bool:
    """What the file system's own checker says of an image that it may not change."""
    if is_xfs(image):
        command = [str(require_tool("xfs_repair", "xfsprogs")), "-n", "-f", str(image)]
    else:
        command = [str(require_tool("e2fsck", "e2fsprogs")), "-fn", str(image)]
    return subprocess.run(command, capture_output=True).returncode == 0


def replay_journal(image: Path) -> None:
    """What mounting ext4 after a power cut does; fails where more than that is wrong."""
    e2fsck = require_tool("e2fsck", "e2fsprogs")
    done = subprocess.run([str(e2fsck), "-fy", str(image)], capture_output=True)
    assert done.returncode in (0, 1), done.stdout  # 1: the journal was replayed


def ext4_tree(image: Path, path: str, folder: Path) -> Path:
    """Copy a folder of an ext4 image below ``folder``."""
    debugfs = require_tool("debugfs", "e2fsprogs")
    folder.mkdir(exist_ok=True)
    subprocess.run(
        [str(debugfs), "-R", f"rdump {path} {folder}", str(image)], capture_output=True, check=True
    )
    found = folder / path.strip("/")
    assert found.exists()
    return found


def xfs_file(image: Path, path: str) -> bytes:
    """A file of an xfs image, from the map of its blocks that xfs_db prints."""
    xfs_db = require_tool("xfs_db", "xfsprogs")

    def ask(*commands: str) -> str:
        words = [word for command in commands for word in ("-c", command)]
        done = subprocess.run(
            [str(xfs_db), "-r", "-f", *words, str(image)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout

    told = ask("sb 0", "print blocksize agblocks", f"path {path}", "print core.size", "bmap")
    number = dict(re.findall(r"^([a-z.]+) = (\d+)$", told, re.MULTILINE))
    block, group = int(number["blocksize"]), int(number["agblocks"])
    data = bytearray(int(number["core.size"]))
    extents = re.findall(r"offset (\d+) startblock \d+ \((\d+)/(\d+)\) count (\d+) flag 0", told)
    with image.open("rb") as file:
        for at, group_number, start, count in (map(int, extent) for extent in extents):
            file.seek((group_number * group + start) * block)
            piece = file.read(count * block)[: len(data) - at * block]
            data[at * block : at * block + len(piece)] = piece
    return bytes(data)


def committed(image: Path) -> tuple[int, int, int]:
    """Rows and largest number of ``commits``, sum of ``accounts``, in the image's database.

    Tables that are not there count as zeros.
    """
    folder = image.parent / f"{image.name}-files"
    folder.mkdir()
    if is_xfs(image):
        (folder / "data.db").write_bytes(xfs_file(image, "/data.db"))
    else:
        debugfs = require_tool("debugfs", "e2fsprogs")
        for name in ("data.db", "data.db-wal"):
            subprocess.run([str(debugfs), "-R", f"dump /{name} {folder / name}", str(image)],
                           capture_output=True, check=True)  # fmt: skip
    connection = sqlite3.connect(folder / "data.db")
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows, last = connection.execute("SELECT count(*), max(n) FROM commits").fetchone()
        (balance,) = connection.execute("SELECT sum(balance) FROM accounts").fetchone()
    finally:
        connection.close()
    return rows, last or 0, balance


def sums_hold(image: Path, folder: Path) -> int:
    """Compare all files that the guest listed in ``sums``; how many they were."""
    root = ext4_tree(image, "/", folder)
    lines = (root / "sums").read_text().splitlines()
    for line in lines:
        digest, _, name = line.partition("  ")
        assert hashlib.md5((root / name).read_bytes()).hexdigest() == digest, name
    return len(lines)


@contextmanager
def postgresql(image: Path) -> Iterator[PostgreSQL]:
    """The real server, of the version that wrote it, on a copy of an ext4 image's ``/data``."""
    # Not below pytest's folders: those are closed to the user that the server runs as.
    folder = Path(tempfile.mkdtemp(prefix="vmbk-pg-"))
    try:
        folder.chmod(0o711)
        data = ext4_tree(image, "/data", folder / "image")
        (folder / "image").chmod(0o711)
        # A server that was alive when the image was taken has left its own.
        (data / "postmaster.pid").unlink(missing_ok=True)
        version = (data / "PG_VERSION").read_text().strip()
        server = PostgreSQL(folder, data, Path(f"/usr/lib/postgresql/{version}/bin"))
        require_tool(str(server.programs / "postgres"), f"postgresql-{version}")
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


class PostgreSQL:
    """A server on a Unix socket, run by a user that is not root."""

    def __init__(self, folder: Path, data: Path, programs: Path) -> None:
        self.folder, self.data, self.programs = folder, data, programs
        self.user = NOBODY if os.geteuid() == 0 else None
        self.socket = folder / "socket"
        self.socket.mkdir()
        if self.user is not None:
            for path in (self.socket, data, *data.rglob("*")):
                os.chown(path, self.user, self.user, follow_symlinks=False)

    def _control(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.programs / "pg_ctl"), "-D", str(self.data), "-s", "-w", *words]
        groups = None if self.user is None else []
        return subprocess.run(
            command, user=self.user, group=self.user, extra_groups=groups,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            text=True, cwd="/", timeout=180,
        )  # fmt: skip

    def start(self) -> None:
        """Start, and recover where it was cut off."""
        log = self.socket / "log"
        options = f"-c unix_socket_directories={self.socket} -c listen_addresses="
        done = self._control("-l", str(log), "-o", options, "-t", "120", "start")
        if done.returncode:
            said = log.read_text() if log.exists() else ""
            pytest.fail(f"the server does not start: {done.stderr}{said}")

    def stop(self) -> None:
        """Stop at once; nothing is needed any more."""
        self._control("-m", "immediate", "stop")

    def ask(self, query: str) -> list[str]:
        """The answer's one row, as texts."""
        done = subprocess.run(
            [str(self.programs / "psql"), "-X", "-q", "-A", "-t", "-h", str(self.socket),
             "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", query, "postgres"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().split("|")

    def committed(self) -> tuple[int, int, int, int]:
        """Rows and largest number of ``commits``, sum of ``accounts``, pgbench's transactions."""
        rows, last, balance, bench = self.ask(
            "SELECT count(*), max(n), (SELECT sum(balance) FROM accounts), "
            "(SELECT count(*) FROM pgbench_history) FROM commits"
        )
        return int(rows), int(last), int(balance), int(bench)

    def log(self) -> str:
        """What the server has said."""
        return (self.socket / "log").read_text()
