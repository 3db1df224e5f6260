"""A vault: opened with its key, it gives recovery points, chunks and writers.

What lies on the disk, and why, is told in `FORMAT.md`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import BusyError, InputError, IntegrityError, NotFoundError, StorageError
from vmbk.vault.check import CheckReport, Progress, check_vault
from vmbk.vault.config import CONFIG, Config
from vmbk.vault.crypto import Keys, MasterKey, Random, key_file_path
from vmbk.vault.diskmap import DiskMap, build_digests, build_map, build_sub_digests, chain
from vmbk.vault.folder import make_folders, no_vault, require_unused
from vmbk.vault.format import MAX_CONFIG, PACK_TARGET, POINT_ID
from vmbk.vault.locks import VAULT_LOCK, Locks
from vmbk.vault.manifest import RecoveryPoint, check_vm
from vmbk.vault.reader import Reader
from vmbk.vault.restorable import require_restorable
from vmbk.vault.stats import VaultStats, vault_stats
from vmbk.vault.store import Durability, LocalStore, Store
from vmbk.vault.upkeep import adopt_packs, rebuild_index
from vmbk.vault.writer import VaultWriter

if TYPE_CHECKING:
    import polars as pl

PathLike = str | os.PathLike[str]
Clock = Callable[[], int]


class Vault:
    """An open vault; make one with `Vault.create` or `Vault.open`. Safe to use from many threads.

    Attributes
    ----------
    path : pathlib.Path
        Its directory.
    """

    def __init__(
        self, path: Path, store: Store, keys: Keys, config: Config, random: Random, clock: Clock
    ) -> None:
        self.path = path
        self._store = store
        self._keys = keys
        self._config = config
        self._random = random
        self._clock = clock
        self._locks = Locks(path / "locks")
        self._reader = Reader(store, keys)

    @classmethod
    def create(
        cls,
        path: PathLike,
        key_file: PathLike | None = None,
        *,
        durability: Durability = "file",
        pack_target: int = PACK_TARGET,
        random: Random = os.urandom,
        clock: Clock = time.time_ns,
    ) -> Vault:
        """Make a vault in a new or empty directory, and its key file unless there is one.

        Parameters
        ----------
        path : path
            Directory of the vault.
        key_file : path, optional
            Outside of the vault; by default what ``VMBK_KEY_FILE`` names.
        durability : {"file", "none"}
            Whether everything is synced. ``"none"`` is for laboratories.
        pack_target : int
            Size in bytes at which a pack is closed.
        random, clock : callable
            Sources of randomness and of nanoseconds since 1970; others than the default are for
            tests that pin the format.

        Raises
        ------
        InputError
            If the directory is in use or the key file is refused.
        StorageError
            If something cannot be written.
        """
        root = Path(path)
        keyed = key_file_path(key_file)
        config = Config.new(random, pack_target)
        if keyed.resolve().is_relative_to(root.resolve()):
            raise InputError(
                f"the key file {str(keyed)!r} would lie inside the vault {str(root)!r}",
                hint="keep the key apart from what it protects",
            )
        require_unused(root)
        store = LocalStore(root, durability)
        master = MasterKey.load(keyed) if keyed.exists() else None
        make_folders(root)
        keys = Keys(master or MasterKey.create(keyed, random), config.vault_id)
        # Last of all, and never replaced: of two processes that create one vault, one fails here.
        store.put(CONFIG, config.to_bytes(keys))
        store.sync_above()
        return cls(root, store, keys, config, random, clock)

    @classmethod
    def open(
        cls,
        path: PathLike,
        key_file: PathLike | None = None,
        *,
        durability: Durability = "file",
        wrap_store: Callable[[LocalStore], Store] | None = None,
        random: Random = os.urandom,
        clock: Clock = time.time_ns,
    ) -> Vault:
        """Open a vault with its key.

        Parameters
        ----------
        path, key_file, durability, random, clock
            As for `create`.
        wrap_store : callable, optional
            Puts another store over the vault's own: for laboratories that count or break things.

        Raises
        ------
        NotFoundError
            If there is no vault, or no key file.
        WrongKeyError
            If the vault was made with another key.
        IntegrityError
            If its ``config`` is damaged.
        """
        root = Path(path)
        local = LocalStore(root, durability)
        try:
            # No more than it may have, whatever lies there in its place.
            data = local.get_range(CONFIG, 0, min(local.size(CONFIG), MAX_CONFIG + 1))
        except NotFoundError:
            raise no_vault(root) from None
        config, keys = Config.parse(data, MasterKey.load(key_file_path(key_file)))
        store = local if wrap_store is None else wrap_store(local)
        return cls(root, store, keys, config, random, clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing is held open between calls: a vault in a ``with`` reads well, no more."""

    def __repr__(self) -> str:
        return f"Vault({str(self.path)!r})"

    def _repr_html_(self) -> str:
        return self.stats()._repr_html_()

    @property
    def id(self) -> str:
        """The vault's random identity, 32 hex."""
        return self._config.vault_id.hex()

    # Recovery points

    def points(
        self, vm: str | None = None, *, damaged: Literal["raise", "skip"] = "raise"
    ) -> tuple[RecoveryPoint, ...]:
        """Recovery points by time.

        Parameters
        ----------
        vm : str, optional
            Only those of this VM.
        damaged : {"raise", "skip"}
            What to do about manifests that do not open: `IntegrityError`, or leave them out.
        """
        if damaged not in ("raise", "skip"):
            raise InputError(f"damaged={damaged!r} is not one of 'raise', 'skip'")
        good, bad = self._reader.read_points()
        if bad and damaged == "raise":
            raise IntegrityError(
                "; ".join(error.message for error in bad.values()),
                hint="the other points still restore, by their ids",
            )
        return tuple(point for point in good if vm is None or point.vm == vm)

    def point(self, which: str, vm: str | None = None) -> RecoveryPoint:
        """One recovery point.

        Parameters
        ----------
        which : str
            ``"latest"``, a point id, or the beginning of exactly one.
        vm : str, optional
            Only points of this VM count.

        Raises
        ------
        NotFoundError
            If there is none, listing what there is; or if several begin like this.
        IntegrityError
            If its manifest is damaged, or one that may be the latest is.
        """
        good, bad = self._reader.read_points()
        points = [point for point in good if vm is None or point.vm == vm]
        if which == "latest":
            # Better no answer than an older state that passes for the latest. A manifest that
            # does not open tells neither its VM nor its time, but its name does tell the time.
            newest = points[-1].id if points else ""
            newer = [
                name
                for name in sorted(bad)
                if POINT_ID.fullmatch(name) and name[:16] >= newest[:16]
            ]
            if newer:
                raise IntegrityError(
                    f"the latest point may be {newer[-1]}, but {bad[newer[-1]].message}",
                    hint="name the point to restore by its id: `vmbk points` lists them",
                )
            if points:
                return points[-1]
        elif which:
            found = [point for point in points if point.id.startswith(which)]
            exact = [name for name in bad if name.startswith(which)]
            if len(found) == 1 and not exact:
                return found[0]
            if exact and not found:
                raise bad[exact[0]]
            if found:
                raise NotFoundError(
                    f"{which!r} is the beginning of {len(found) + len(exact)} points",
                    hint="write more of it: " + _listed(points),
                )
        about = f"no point {which!r}" if which != "latest" else "no point"
        raise NotFoundError(
            f"there is {about}{f' of the VM {vm!r}' if vm else ''} in {str(self.path)!r}",
            hint=_listed(points) if points else "make one with `vmbk backup`",
        )

    # Writing

    @contextmanager
    def writer(self, vm: str) -> Iterator[VaultWriter]:
        """A writer for one backup job of one VM, with the locks that it needs.

        Raises
        ------
        BusyError
            If another job backs up this VM, or the vault is held exclusively.
        IntegrityError
            If the index is damaged: a backup must not build on that.
        """
        name = self._keys.lock_name(check_vm(vm))
        self._clean()
        with (
            self.reading(),
            self._locks.hold(
                name,
                exclusive=True,
                busy=f"another backup of the VM {vm!r} is running",
                hint="wait for it to end; jobs of other VMs can run meanwhile",
            ),
        ):
            self._reader.refresh()
            self._reader.require_whole_index()
            adopt_packs(self._reader, self._random)
            self._reader.look_for_packs()
            writer = VaultWriter(
                self._reader,
                vm,
                pack_target=self._config.pack_target,
                random=self._random,
                clock=self._clock,
            )
            try:
                yield writer
            finally:
                writer.abandon()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the shared lock: nothing is deleted while the block runs.

        Raises
        ------
        BusyError
            If the vault is held exclusively.
        """
        with self._locks.hold(
            VAULT_LOCK,
            exclusive=False,
            busy=f"the vault {str(self.path)!r} is being cleaned up or repaired",
            hint="run this again when that has ended",
        ):
            yield

    @contextmanager
    def exclusive(self, wait: float | None = None) -> Iterator[None]:
        """Hold the vault alone.

        Raises
        ------
        BusyError
            If anybody uses it.
        """
        with self._locks.hold(
            VAULT_LOCK,
            exclusive=True,
            busy=f"the vault {str(self.path)!r} is in use",
            hint="run this again when backups, restores and checks have ended",
            wait=wait,
        ):
            yield

    def _clean(self) -> None:
        """Remove what killed writers left in ``tmp/``, if nobody else is here."""
        local = LocalStore(self.path)
        if local.has_leftovers():
            try:
                with self.exclusive(wait=0):
                    local.clean()
            except (BusyError, StorageError):
                return  # harmless; the next job tries again

    # Reading

    def get(self, chunk: bytes) -> memoryview:
        """Plaintext of a chunk, verified down to its id.

        Raises
        ------
        IntegrityError
            If it is not in the vault or no copy of it is what was stored.
        """
        return self._reader.get(chunk)

    def get_table(self, chunks: Sequence[bytes], schema: Any | None = None) -> Any:
        """Arrow table of chunks that `VaultWriter.put_table` returned; see `Reader.get_table`."""
        return self._reader.get_table(chunks, schema)

    def disk_map(self, point: RecoveryPoint, disk_name: str) -> DiskMap:
        """Where every byte of a disk is; covers it exactly, or raises `IntegrityError`."""
        return build_map(self._reader, point, disk_name)

    def digests(self, point: RecoveryPoint, disk_name: str) -> NDArray[np.uint64]:
        """XXH3-64 of every block of a disk, uint64; see `build_digests`."""
        return build_digests(self._reader, point, disk_name)

    def sub_digests(self, point: RecoveryPoint, disk_name: str) -> NDArray[np.uint64] | None:
        """XXH3-64 of every sub-block, or None where they are not stored for the whole disk."""
        return build_sub_digests(self._reader, point, disk_name)

    def require_restorable(self, point: RecoveryPoint, disk_name: str) -> None:
        """Raise unless all that a disk of a point is put together from is there; packs unread.

        What is lost is known once a writer was opened, which looks for the packs.

        Raises
        ------
        IntegrityError
            If the chain is broken or a chunk is in no index file or only in lost packs.
        """
        require_restorable(self._reader, point, disk_name)

    def chain_length(self, point: RecoveryPoint, disk_name: str) -> int:
        """Recovery points that a disk is put together from: 1 if its tables are whole."""
        return len(chain(self._reader, point, disk_name))

    # Upkeep

    def check(self, read_data: bool = False, on_progress: Progress | None = None) -> CheckReport:
        """Check structure, and every byte with ``read_data``; damage is listed, never raised.

        Parameters
        ----------
        read_data : bool
            Read all packs and verify every chunk, and that the blocks of every disk, put together
            from the chunks, are those that were digested.
        on_progress : callable, optional
            Called from several threads with bytes of packs that were read; see
            `VaultStats.stored_bytes` for the total.
        """
        with self.reading():
            return check_vault(
                self._store, self._keys, read_data=read_data, on_progress=on_progress
            )

    def rebuild_index(self) -> int:
        """Make the index again from the footers of the packs.

        Packs that are gone are listed no more, and damaged index files are deleted.

        Returns
        -------
        int
            Packs that are listed again or for the first time.

        Raises
        ------
        BusyError
            If anybody uses the vault.
        IntegrityError
            If a pack's footer is damaged as well; what could be listed is listed.
        """
        with self.exclusive():
            return rebuild_index(self._reader, self._random)

    def stats(self) -> VaultStats:
        """What the vault holds; damaged manifests are counted apart."""
        return vault_stats(self._reader)

    def index_frame(self) -> pl.DataFrame:
        """The index as a Polars frame: one row per entry, ids and packs in hexadecimal."""
        from vmbk.vault.frames import index_frame

        self._reader.refresh()
        return index_frame(self._reader.index)

    def points_frame(self) -> pl.DataFrame:
        """The recovery points as a Polars frame: one row per disk of each."""
        from vmbk.vault.frames import points_frame

        return points_frame(self.points(damaged="skip"))


def _listed(points: list[RecoveryPoint]) -> str:
    shown = [f"{point.id} ({point.vm})" for point in points[-10:]]
    more = f" and {len(points) - len(shown)} older ones" if len(points) > len(shown) else ""
    return "there are " + ", ".join(shown) + more
