"""Recipes: what a guest is made of and what it does, as a small TOML file beside a shell script."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from vmbk.errors import InputError, NotFoundError
from vmbk.units import MIB, parse_duration, parse_size

_SHIPPED: Final = Path(__file__).parent / "recipes"
MIN_VOLUME: Final = 8 * MIB
MAX_VOLUME: Final = 64 << 30


@dataclass(frozen=True)
class Recipe:
    """A guest's disk, its file system and its workload.

    Parameters
    ----------
    name : str
    doc : str
        What the workload does, in a line or two.
    volume_size : int
        Bytes of the volume that is captured; a whole number of MiB.
    mkfs : tuple of str
        Command that makes the file system; the disk and its size are appended.
    script : str
        The workload, for BusyBox's shell; it runs in the mounted file system.
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

    def __post_init__(self) -> None:
        if self.volume_size % MIB or not MIN_VOLUME <= self.volume_size <= MAX_VOLUME:
            raise InputError(
                f"recipe {self.name!r}: volume size {self.volume_size} is not a whole number of "
                "MiB from 8 MiB to 64 GiB"
            )
        if not 0 < self.timeout_s <= 24 * 3600:
            raise InputError(f"recipe {self.name!r}: timeout {self.timeout_s} s is not up to a day")
        if not self.mkfs or self.mkfs[0] not in self.programs:
            raise InputError(
                f"recipe {self.name!r}: mkfs begins with no program of [programs]: {self.mkfs!r}"
            )
        for variable in self.environment:
            if not variable.isidentifier() or not variable.isascii():
                raise InputError(f"recipe {self.name!r}: {variable!r} is no variable's name")

    @property
    def digest(self) -> str:
        """BLAKE3 (hex) of everything that the recipe says."""
        from dataclasses import asdict

        from blake3 import blake3

        from vmbk.trace.schema import canonical_json

        return str(blake3(canonical_json(asdict(self)).encode()).hexdigest())

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> Recipe:
        """A shipped recipe by name, or one's own by the path of its TOML file.

        The script is the file beside it that ends in ``.sh`` instead of ``.toml``.

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
            script = path.with_suffix(".sh").read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no file {str(error.filename)!r}") from error
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(f"cannot read the recipe {str(path)!r}: {error}") from error
        return _declared(path.stem, declared, script)


def recipes() -> tuple[str, ...]:
    """Names of the shipped recipes."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.toml")))


_KEYS: Final = {
    "doc": str,
    "volume_size": str,
    "mkfs": list,
    "timeout": str,
    "modules": list,
    "programs": dict,
    "environment": dict,
}


def _declared(name: str, declared: dict[str, Any], script: str) -> Recipe:
    unknown = sorted(set(declared) - set(_KEYS))
    if unknown:
        raise InputError(
            f"recipe {name!r} has unknown keys {unknown}", hint="keys are " + ", ".join(_KEYS)
        )
    for key, kind in _KEYS.items():
        value = declared.setdefault(key, kind())
        texts = value.values() if kind is dict else value if kind is list else [value]
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"recipe {name!r}: {key} is {value!r}", hint="write texts in quotes")
    return Recipe(
        name=name,
        doc=declared["doc"],
        volume_size=parse_size(declared["volume_size"]),
        mkfs=tuple(declared["mkfs"]),
        script=script,
        timeout_s=parse_duration(declared["timeout"]) / 1e9,
        modules=tuple(declared["modules"]),
        programs=declared["programs"],
        environment=declared["environment"],
    )
