"""Recipes: what a guest is made of and what it does, as a small TOML file beside a shell script."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from vmbk.errors import InputError, NotFoundError
from vmbk.units import GIB, MIB, format_size, parse_duration, parse_size, quoted

_SHIPPED: Final = Path(__file__).parent / "recipes"
MIN_VOLUME: Final = 8 * MIB
MAX_VOLUME: Final = 64 << 30
MIN_MEMORY: Final = 128 * MIB
MAX_MEMORY: Final = 8 * GIB
MAX_VOLUMES: Final = 16
"""The guest names its disks vda to vdp."""

_MOUNT: Final = re.compile(r"(/[A-Za-z0-9_-]+)+")
_OPTIONS: Final = re.compile(r"[A-Za-z0-9_.,=:-]*")
_FILE: Final = re.compile(r"(/[A-Za-z0-9_.+*-]+)+")
_INCLUDE: Final = re.compile(r"^#include ([A-Za-z0-9_-]+\.sh)$\n?", re.MULTILINE)
_VOLUME_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")


@dataclass(frozen=True)
class GuestVolume:
    """One disk of a guest and its file system.

    Parameters
    ----------
    name : str
        The volume's name in the trace: letters, digits, ``_`` and ``-``.
    size : int
        Bytes; a whole number of MiB.
    mkfs : tuple of str
        Command that makes the file system. ``{disk}``, ``{bytes}`` and ``{kib}`` in its words are
        the device and its size; where no word names the disk, it and ``{kib}k`` are appended.
    mount : str
        Where the guest mounts it.
    options : str
        What ``mount -o`` is told, "" for nothing.
    """

    name: str
    size: int
    mkfs: tuple[str, ...]
    mount: str = "/mnt"
    options: str = ""

    def __post_init__(self) -> None:
        if not _VOLUME_NAME.fullmatch(self.name):
            raise InputError(
                f"{quoted(self.name)} is no name of a volume",
                hint="letters, digits, _ and -, at most 40",
            )
        if self.size % MIB or not MIN_VOLUME <= self.size <= MAX_VOLUME:
            raise InputError(
                f"volume size {self.size} is not a whole number of MiB from 8 MiB to 64 GiB"
            )
        if not _MOUNT.fullmatch(self.mount):
            raise InputError(
                f"{quoted(self.mount)} is no place to mount at", hint="write it as /mnt or /log"
            )
        if not _OPTIONS.fullmatch(self.options):
            raise InputError(f"{quoted(self.options)} are no options of mount")

    def mkfs_command(self, disk: str) -> tuple[str, ...]:
        """The words of the command that makes the file system on the guest's device ``disk``."""
        words = self.mkfs
        if not any("{disk}" in word for word in words):
            words = (*words, "{disk}", "{kib}k")
        values = {"{disk}": disk, "{bytes}": str(self.size), "{kib}": str(self.size // 1024)}
        for name, value in values.items():
            words = tuple(word.replace(name, value) for word in words)
        return words


@dataclass(frozen=True)
class Recipe:
    """A guest's disks, their file systems and its workload.

    A guest of one disk is declared by ``volume_size``, ``mkfs`` and ``mount_options``, one of
    several by ``volumes``. `disks` has either.

    Parameters
    ----------
    name : str
    doc : str
        What the workload does, in a line or two.
    volume_size : int
        Bytes of the one volume that is captured; 0 where there are several.
    mkfs : tuple of str
        Command that makes its file system, as in `GuestVolume`; empty where there are several.
    script : str
        The workload, for BusyBox's shell; it runs in the first volume's file system.
    timeout_s : float
        Seconds of real time after which the guest is killed.
    modules : tuple of str
        Kernel modules beside those that the disk needs.
    programs : dict of str to str
        Programs of this machine that the guest needs beside BusyBox, and their Debian packages.
        The script finds them in ``/bin``; where BusyBox has an applet of the name, its shell takes
        that one unless the path is given.
    environment : dict of str to str
        Variables for the script.
    memory : int
        Bytes of the guest's memory; a whole number of MiB.
    mount_options : str
        What ``mount -o`` is told of the one volume.
    volumes : tuple of GuestVolume
        The disks, in the order of their ids, where there are several.
    files : dict of str to str
        Files and whole folders of this machine that the guest has in the same place, and their
        Debian packages. ``*`` stands for any name; of several matches the newest version counts.
        Programs among them bring their shared libraries.
    """

    name: str
    doc: str
    volume_size: int
    mkfs: tuple[str, ...]
    script: str
    timeout_s: float
    modules: tuple[str, ...]
    programs: dict[str, str]
    environment: dict[str, str]
    memory: int = 256 * MIB
    mount_options: str = ""
    volumes: tuple[GuestVolume, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.volumes and (self.volume_size or self.mkfs or self.mount_options):
            raise InputError(
                f"recipe {self.name!r} declares one volume and several",
                hint="with [[volumes]] leave volume_size, mkfs and mount_options out",
            )
        try:
            disks = self.disks
        except InputError as error:
            raise InputError(f"recipe {self.name!r}: {error.message}", hint=error.hint) from error
        if len(disks) > MAX_VOLUMES:
            raise InputError(
                f"recipe {self.name!r} has {len(disks)} volumes, at most {MAX_VOLUMES} are allowed"
            )
        for what, given in (("name", [d.name for d in disks]), ("mount", [d.mount for d in disks])):
            if len(set(given)) != len(given):
                raise InputError(f"recipe {self.name!r}: two volumes share a {what}: {given}")
        if self.memory % MIB or not MIN_MEMORY <= self.memory <= MAX_MEMORY:
            raise InputError(
                f"recipe {self.name!r}: memory {self.memory} is not a whole number of MiB from "
                f"{format_size(MIN_MEMORY)} to {format_size(MAX_MEMORY)}"
            )
        if not 0 < self.timeout_s <= 24 * 3600:
            raise InputError(f"recipe {self.name!r}: timeout {self.timeout_s} s is not up to a day")
        for disk in disks:
            if not disk.mkfs or disk.mkfs[0] not in self.programs:
                raise InputError(
                    f"recipe {self.name!r}: mkfs begins with no program of [programs]: "
                    f"{disk.mkfs!r}"
                )
        for variable in self.environment:
            if not variable.isidentifier() or not variable.isascii():
                raise InputError(f"recipe {self.name!r}: {variable!r} is no variable's name")
        for file in self.files:
            if not _FILE.fullmatch(file) or {".", ".."} & set(file.split("/")):
                raise InputError(
                    f"recipe {self.name!r}: {quoted(file)} is no file to bring",
                    hint="write its whole path, such as /usr/share/postgresql/*",
                )

    @property
    def disks(self) -> tuple[GuestVolume, ...]:
        """The disks, in the order of their ids, one at least."""
        if self.volumes:
            return self.volumes
        return (GuestVolume("disk", self.volume_size, self.mkfs, options=self.mount_options),)

    @property
    def digest(self) -> str:
        """BLAKE3 (hex) of everything that the recipe says.

        What a recipe leaves at its default is not in it, so that a new key changes no old digest.
        """
        from blake3 import blake3

        from vmbk.trace.schema import canonical_json

        said = asdict(self)
        for f in fields(self):
            if f.default is not MISSING and getattr(self, f.name) == f.default:
                del said[f.name]
        if not self.files:
            del said["files"]
        return str(blake3(canonical_json(said).encode()).hexdigest())

    def settings(self) -> dict[str, str]:
        """Shell variables that tell the guest's init of its disks.

        ``VMBK_VOLUMES`` lists their ids; each has its ``VMBK_DISK_n``, ``VMBK_MKFS_n``,
        ``VMBK_MOUNT_n`` and ``VMBK_OPTIONS_n``. Marks are written behind the end of the first.
        """
        import shlex

        variables = {
            "VMBK_VOLUMES": " ".join(str(id) for id in range(len(self.disks))),
            "VMBK_VOLUME_SIZE": str(self.disks[0].size),
        }
        for id, volume in enumerate(self.disks):
            disk = f"/dev/vd{chr(ord('a') + id)}"
            program, *rest = volume.mkfs_command(disk)
            # By its path: BusyBox's shell prefers its own applet to a program of the same name.
            variables |= {
                f"VMBK_DISK_{id}": disk,
                f"VMBK_MKFS_{id}": shlex.join([f"/bin/{program}", *rest]),
                f"VMBK_MOUNT_{id}": volume.mount,
                f"VMBK_OPTIONS_{id}": volume.options,
            }
        return variables

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> Recipe:
        """A shipped recipe by name, or one's own by the path of its TOML file.

        The script is the file beside it that ends in ``.sh`` instead of ``.toml``. In place of a
        line ``#include NAME.sh`` stands the text of that file, which lies beside it too.

        Raises
        ------
        NotFoundError
            If there is no such recipe.
        InputError
            If it is not what a recipe is.
        """
        path = Path(name)
        if path.suffix != ".toml":
            path = _SHIPPED / f"{name}.toml"
            if str(name) not in recipes():
                raise NotFoundError(
                    f"there is no recipe {str(name)!r}",
                    hint=f"shipped are {', '.join(recipes())}; your own is named by its .toml file",
                )
        try:
            declared = tomllib.loads(path.read_text(encoding="utf-8"))
            script = _INCLUDE.sub(
                lambda line: path.with_name(line[1]).read_text(encoding="utf-8"),
                path.with_suffix(".sh").read_text(encoding="utf-8"),
            )
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no file {str(error.filename)!r}") from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"cannot read the recipe {str(path)!r}: {error}") from error
        return _declared(path.stem, declared, script)


def recipes() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.toml")))


_KEYS: Final[dict[str, type]] = {
    "doc": str,
    "volume_size": str,
    "mkfs": list,
    "mount_options": str,
    "memory": str,
    "timeout": str,
    "modules": list,
    "programs": dict,
    "environment": dict,
    "files": dict,
}
_VOLUME_KEYS: Final[dict[str, type]] = {
    "name": str,
    "size": str,
    "mkfs": list,
    "mount": str,
    "options": str,
}
_NO_MEMORY: Final = "256MiB"


def _declared(name: str, declared: dict[str, Any], script: str) -> Recipe:
    tables = declared.pop("volumes", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InputError(
            f"recipe {name!r}: volumes is {quoted(tables)}", hint="write a [[volumes]] for each"
        )
    _check_keys(f"recipe {name!r}", declared, _KEYS, "volumes")
    for table in tables:
        _check_keys(f"recipe {name!r}: a volume", table, _VOLUME_KEYS)
    volumes = tuple(
        GuestVolume(
            name=table["name"],
            size=parse_size(table["size"]),
            mkfs=tuple(table["mkfs"]),
            mount=table["mount"] or "/mnt",
            options=table["options"],
        )
        for table in tables
    )
    return Recipe(
        name=name,
        doc=declared["doc"],
        volume_size=parse_size(declared["volume_size"] or ("0" if volumes else "")),
        mkfs=tuple(declared["mkfs"]),
        script=script,
        timeout_s=parse_duration(declared["timeout"]) / 1e9,
        modules=tuple(declared["modules"]),
        programs=declared["programs"],
        environment=declared["environment"],
        memory=parse_size(declared["memory"] or _NO_MEMORY),
        mount_options=declared["mount_options"],
        volumes=volumes,
        files=declared["files"],
    )


def _check_keys(what: str, table: dict[str, Any], keys: dict[str, type], *others: str) -> None:
    """Check that a table has no unknown keys and texts only; give absent keys an empty value."""
    unknown = sorted(set(table) - set(keys))
    if unknown:
        raise InputError(
            f"{what} has unknown keys {unknown}", hint="keys are " + ", ".join([*keys, *others])
        )
    for key, kind in keys.items():
        value = table.setdefault(key, kind())
        texts = value.values() if kind is dict else value if kind is list else [value]
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{what}: {key} is {value!r}", hint="write texts in quotes")
