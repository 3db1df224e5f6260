"""SIGKILL at random moments of a backup: what was committed stays, and the job can be redone."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vmbk import RawDisk, Vault, backup, restore

pytestmark = pytest.mark.kill

MIB = 1024 * 1024
SIZE = 12 * MIB
KILLS = 50
TRIES = 80


def start(image: Path, vault: Path, key: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vmbk", "backup", str(image), "--vault", str(vault),
               "--vm", "vm", "--key-file", str(key)]  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def check_all(vault_path: Path, key: Path, contents: dict[str, bytes], folder: Path) -> None:
    """Every committed point restores what its image was."""
    with Vault.open(vault_path, key) as vault:
        report = vault.check()
        assert report.ok, report.errors
        assert {p.id for p in vault.points()} >= set(contents)
        for point, content in contents.items():
            restore(point, vault, folder)
            assert (folder / "disk.raw").read_bytes() == content


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def kill_at(process: subprocess.Popen[bytes], vault: Path, files: int, delay: float) -> bool:
    """Kill once so many files of the vault have come up, and a moment later; False if it ended."""
    seen: set[str] = set()
    deadline = time.monotonic() + 120
    while len(seen) < files and process.poll() is None and time.monotonic() < deadline:
        for folder in ("tmp", "index", "points"):
            seen |= names(vault / folder)
        time.sleep(0.0005)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def test_killed_at_random_moments(tmp_path: Path):
    rng = random.Random(int(os.environ.get("VMBK_KILL_SEED", "7")))
    image, vault_path, key = tmp_path / "disk.raw", tmp_path / "vault", tmp_path / "key"
    out = tmp_path / "out"
    contents: dict[str, bytes] = {}
    with RawDisk.create(image, SIZE) as disk:
        disk.write(0, np.random.default_rng(0).integers(0, 256, SIZE // 2, np.uint8))
    # Small packs: several files a job, so that kills fall between and within them.
    with Vault.create(vault_path, key, pack_target=MIB // 2) as vault:
        contents[backup([image], vault, "vm").point] = image.read_bytes()

    killed = committed = tries = 0
    while killed < KILLS and tries < TRIES:
        tries += 1
        with RawDisk(image, mode="rw") as disk:
            data = np.random.default_rng(tries).integers(0, 256, 2 * MIB, np.uint8)
            disk.write(rng.randrange(0, SIZE - len(data)), data)
        existing = sum(len(names(vault_path / f)) for f in ("tmp", "index", "points"))
        known = names(vault_path / "points")
        process = start(image, vault_path, key)
        # One kill in five during start-up, the others while the job stores its files.
        if tries % 5 == 0:
            done = kill_at(process, vault_path, 0, rng.uniform(0, 0.8))
        else:
            done = kill_at(process, vault_path, existing + rng.randint(1, 7), rng.uniform(0, 0.01))
        killed += done
        with Vault.open(vault_path, key) as vault:
            report = vault.check()
            assert report.ok, report.errors
            for point in vault.points():
                if point.id not in known:  # committed before the kill: it is this very image
                    contents[point.id] = image.read_bytes()
                    committed += done
            assert {p.id for p in vault.points()} == set(contents)
            if tries % 10 == 0:  # the interrupted job is run again
                contents[backup([image], vault, "vm").point] = image.read_bytes()
        newest = max(contents)
        check_all(vault_path, key, {newest: contents[newest]}, out)
    assert killed == KILLS, f"only {killed} of {tries} jobs were killed before their end"
    assert committed < KILLS, "every job was killed after its commit: nothing was tested"
    check_all(vault_path, key, contents, out)
    with Vault.open(vault_path, key) as vault:
        contents[backup([image], vault, "vm").point] = image.read_bytes()
        assert vault.check(read_data=True).ok
    check_all(vault_path, key, {max(contents): image.read_bytes()}, out)
    print(f"{killed} jobs killed in {tries} tries, {committed} of them after their commit")
