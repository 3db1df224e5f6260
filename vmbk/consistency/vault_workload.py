"""The life of a vault: the program whose disk the capture ``vault`` records.

``python -m vmbk.consistency.vault_workload`` runs on a recorded disk (`capture_host`): its vault
lies there, everything else in the folder for temporary files. What vmbk acknowledges is marked
right after the call that acknowledged it has returned:

``vault made``
    `Vault.create` has returned.
``point ID DIGEST[,DIGEST...]``
    A backup has returned this recovery point. The digests are BLAKE3 (hex) of its disks' images, in
    the order of the point, and owe nothing to the code that they judge.
``forgotten ID``
    The point is about to be deleted: from here on it need not exist.

Its key is no secret: it is derived from a published sentence, so that everybody can open the vault
of the shipped capture.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from blake3 import blake3

if TYPE_CHECKING:
    from vmbk.vault import Vault

LABORATORY_KEY: Final = blake3(
    b"vmbk laboratory key: it is published and protects nothing"
).digest()
"""The key of every vault of this workload, 32 bytes."""

VAULT: Final = "vault"
"""The vault's folder, in the root of the recorded file system."""

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_PACK_TARGET: Final = _MIB  # so that packs of this size, which are written directly, come up
_MODULE: Final = "vmbk.consistency.vault_workload"


def write_laboratory_key(path: Path) -> None:
    """Make a key file that holds `LABORATORY_KEY`.

    Raises
    ------
    InputError
        If the file is there already.
    StorageError
        If it cannot be written.
    """
    from vmbk.vault.crypto import MasterKey

    MasterKey.create(path, lambda size: LABORATORY_KEY[:size])


class Workload:
    """The vault, the disks that are backed up into it, and what is done with both.

    Parameters
    ----------
    mount : Path
        Root of the recorded file system.
    folder : Path
        Where everything else lies.
    durability : str
        As for `Vault.create`. ``"none"`` makes the control: a vault that must fail.
    seed : int
        Seed of what is written to the disks.
    """

    def __init__(self, mount: Path, folder: Path, durability: str, seed: int) -> None:
        import numpy as np

        self._random = np.random.default_rng(seed)
        self._folder = folder
        self._vault = mount / VAULT
        self._durability: Any = durability
        self._key = folder / "laboratory.key"
        self._packs: dict[str, set[str]] = {}  # those that were new with a point
        write_laboratory_key(self._key)

    @property
    def steps(self) -> tuple[Callable[[], None], ...]:
        """What happens, in order; a shorter life is a beginning of it."""
        return (
            self.make, self.full, self.unchanged, self.by_checksum, self.tracked, self.two_disks,
            self.killed_before_the_pack_has_its_name, self.restored, self.killed_after_it,
            self.two_writers, self.for_a_short_time, self.checked, self.grown,
            self.pruned, self.tracked, self.two_writers, self.index_rebuilt, self.by_checksum,
        )  # fmt: skip

    # The steps

    def make(self) -> None:
        """Create the vault."""
        from vmbk.vault import Vault

        Vault.create(self._vault, self._key, durability=self._durability, pack_target=_PACK_TARGET)
        _mark("vault made")

    def full(self) -> None:
        """The first backup: with more than a pack of what cannot be compressed."""
        self._new_disk("system", 4 * _MIB, incompressible=_MIB + 96 * _KIB)
        self._back_up("one", ["system"])

    def unchanged(self) -> None:
        """A backup of a disk that nobody has written: a manifest and no pack."""
        self._back_up("one", ["system"])

    def by_checksum(self) -> None:
        """A few writes, found by checksum."""
        self._change("system")
        self._back_up("one", ["system"], detector="checksum")

    def tracked(self) -> None:
        """A few writes, found by the tracker; the program itself makes the backup."""
        self._change("system")
        self._run_backup("one", ["system"])

    def two_disks(self) -> None:
        """A VM of two disks, which a point holds both or neither."""
        self._new_disk("data", 3 * _MIB, incompressible=40 * _KIB)
        self._new_disk("log", 2 * _MIB, incompressible=20 * _KIB)
        self._back_up("two", ["data", "log"])

    def killed_before_the_pack_has_its_name(self) -> None:
        """SIGKILL, with a pack in ``tmp/`` that nobody needs; then the job again."""
        self._change("system")
        self._kill_backup("one", ["system"], "before")
        self._back_up("one", ["system"])

    def restored(self) -> None:
        """A restore by the program itself."""
        folder = self._folder / "restored"
        self._run("restore", "latest", "--vm", "two", "--to", str(folder))
        for name in ("data", "log"):
            if _digest(folder / f"{name}.raw") != _digest(self._image(name)):
                raise SystemExit(f"the disk {name!r} was not restored as it was")

    def killed_after_it(self) -> None:
        """SIGKILL while a large pack has its name and no index lists it; then the job again."""
        self._change("data", incompressible=_MIB + 64 * _KIB)
        self._kill_backup("two", ["data", "log"], "after")
        self._back_up("two", ["data", "log"])

    def two_writers(self) -> None:
        """Two jobs at once, of two VMs."""
        self._change("system")
        self._change("log")
        failed: list[BaseException] = []

        def job(vm: str, disks: list[str]) -> None:
            try:
                self._back_up(vm, disks)
            except BaseException as error:
                failed.append(error)

        jobs = [
            threading.Thread(target=job, args=("one", ["system"])),
            threading.Thread(target=job, args=("two", ["data", "log"])),
        ]
        for thread in jobs:
            thread.start()
        for thread in jobs:
            thread.join()
        if failed:
            raise failed[0]

    def for_a_short_time(self) -> None:
        """A VM whose only point will be deleted."""
        self._new_disk("scratch", 2 * _MIB, incompressible=60 * _KIB)
        self._back_up("three", ["scratch"])

    def checked(self) -> None:
        """A check of every byte by the program itself."""
        self._run("vault", "check", "--read-data")

    def grown(self) -> None:
        """A disk that has become larger."""
        with self._image("log").open("r+b") as file:
            file.truncate(3 * _MIB)
        self._change("log", within=3 * _MIB)
        self._back_up("two", ["data", "log"])

    def pruned(self) -> None:
        """The point of `for_a_short_time` is deleted, with the packs that only it needs.

        vmbk has no command for this yet; the order is the one that the vault's format demands:
        manifest, then the index (one file that replaces all others, before they go), then packs.
        """
        from vmbk.vault.config import CONFIG, Config
        from vmbk.vault.crypto import MasterKey
        from vmbk.vault.format import pack_name
        from vmbk.vault.pack import read_footer
        from vmbk.vault.reader import Reader
        from vmbk.vault.writer import store_index

        store = self._store()
        _, keys = Config.parse(store.get(CONFIG), MasterKey.load(self._key))
        with self._open() as vault, vault.exclusive():
            (point,) = vault.points("three")
            packs = self._packs[point.id]
            _mark(f"forgotten {point.id}")
            store.delete(f"points/{point.id}")
            names = store.list("index/")
            reader = Reader(store, keys)
            kept = [d for d in reader.index.pack_sizes if pack_name(d) not in packs]
            store_index(reader, [read_footer(store, keys, d) for d in kept], os.urandom)
            for name in (*names, *sorted(packs)):
                store.delete(name)
        _mark("pruned")

    def index_rebuilt(self) -> None:
        """The index is made again, with a pack that a killed job has left."""
        self._change("system")
        self._kill_backup("one", ["system"], "after")
        with self._open() as vault:
            vault.rebuild_index()
        _mark("index rebuilt")

    # The disks

    def _image(self, name: str) -> Path:
        return self._folder / f"{name}.raw"

    def _new_disk(self, name: str, size: int, incompressible: int) -> None:
        """A disk: what cannot be compressed, then a quarter of zeros, then what can be."""
        rest = size - incompressible
        plain = self._random.integers(0, 256, rest // 256 + 1, "uint8").repeat(256)[:rest]
        plain[: size // 4] = 0
        random = self._random.integers(0, 256, incompressible, "uint8")
        self._image(name).write_bytes(random.tobytes() + plain.tobytes())

    def _change(self, name: str, incompressible: int = 0, within: int = 2 * _MIB) -> None:
        """Some writes of 4 to 24 KiB, and one large one where that is asked for."""
        from vmbk.disk.raw import RawDisk

        with RawDisk(self._image(name), mode="rw") as disk:
            for _ in range(4):
                length = int(self._random.integers(1, 7)) * 4 * _KIB
                offset = int(self._random.integers(0, (within - length) // 4096)) * 4096
                every = int(self._random.integers(1, 65))
                few = self._random.integers(0, 256, length // every + 1, "uint8")
                disk.write(offset, few.repeat(every)[:length])
            if incompressible:
                disk.write(0, self._random.integers(0, 256, incompressible, "uint8"))

    # What is done with the vault

    def _open(self) -> Vault:
        from vmbk.vault import Vault

        return Vault.open(self._vault, self._key, durability=self._durability)

    def _store(self) -> Any:
        from vmbk.vault import LocalStore

        return LocalStore(self._vault, self._durability)

    def _back_up(self, vm: str, disks: Sequence[str], detector: str = "auto") -> None:
        from vmbk.pipeline.backup import backup

        before = set(self._store().list("packs/"))
        with self._open() as vault:
            images = [self._image(name) for name in disks]
            point = backup(images, vault, vm, detector=detector).point
        self._acknowledge(point, disks)
        self._packs[point] = set(self._store().list("packs/")) - before

    def _run_backup(self, vm: str, disks: Sequence[str]) -> None:
        if self._durability == "none":  # which the program does not offer
            self._back_up(vm, disks)
            return
        reply = self._run("backup", *(str(self._image(name)) for name in disks), "--vm", vm)
        self._acknowledge(str(json.loads(reply)["point"]), disks)

    def _acknowledge(self, point: str, disks: Sequence[str]) -> None:
        digests = ",".join(_digest(self._image(name)) for name in disks)
        _mark(f"point {point} {digests}")

    def _run(self, *words: str) -> str:
        """Run the program; its answer."""
        place = [str(self._vault)] if words[0] == "vault" else ["--vault", str(self._vault)]
        command = [sys.executable, "-m", "vmbk", *words, *place, "--json"]
        done = subprocess.run(
            [*command, "--key-file", str(self._key)], check=True, stdout=subprocess.PIPE, text=True
        )
        return done.stdout

    def _kill_backup(self, vm: str, disks: Sequence[str], moment: str) -> None:
        """A backup that ends by SIGKILL before or after its first pack gets its name."""
        words = [str(self._vault), str(self._key), self._durability, vm]
        command = [sys.executable, "-m", _MODULE, "--killed", moment, *words]
        images = [str(self._image(name)) for name in disks]
        done = subprocess.run([*command, *images])
        if done.returncode != -signal.SIGKILL:
            raise SystemExit(f"the backup was not killed: exit code {done.returncode}")
        _mark(f"killed {moment}")


def _digest(path: Path) -> str:
    return blake3(path.read_bytes()).hexdigest()


def _mark(label: str) -> None:
    subprocess.run(["mark", label], check=True)


def _be_killed(moment: str, words: Sequence[str]) -> None:
    """Back up, and die by SIGKILL at the first file that gets its name."""
    from vmbk.pipeline.backup import backup
    from vmbk.vault import Vault

    vault, key, durability, vm, *images = words
    link = os.link

    def last_link(*arguments: Any, **options: Any) -> None:
        if moment == "after":
            link(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    vars(os)["link"] = last_link
    known: Any = durability
    backup(list(images), Vault.open(vault, key, durability=known), vm)


def main(words: Sequence[str] | None = None) -> None:
    """Run the workload in ``VMBK_MOUNT``."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="only so many of them")
    parser.add_argument("--durability", choices=("file", "none"), default="file")
    parser.add_argument("--killed", choices=("before", "after"), help=argparse.SUPPRESS)
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    chosen = parser.parse_args(words)
    if chosen.killed:
        _be_killed(chosen.killed, chosen.words)
        return
    with tempfile.TemporaryDirectory(prefix="vmbk-vault-") as name:
        mount = Path(os.environ["VMBK_MOUNT"])
        life = Workload(mount, Path(name), chosen.durability, chosen.seed)
        for step in life.steps[: chosen.steps]:
            step()


if __name__ == "__main__":
    main()
