"""What made a result: version, commit, machine and libraries.

After the provenance records of tskit: every capture, manifest, result row and report carries one,
so that a figure can be traced to the code and the machine that produced it. Host names, user names
and paths are left out: a result may be published.
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

LIBRARIES = ("numpy", "numba", "polars", "pyarrow", "blake3", "cryptography")


@dataclass(frozen=True)
class Provenance:
    """The software and the machine behind a result."""

    version: str
    commit: str
    python: str
    machine: str
    cpu: str
    cores: int
    kernel: str
    libraries: dict[str, str]

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _commit() -> str:
    """The checkout's commit, with ``+dirty`` where tracked files differ; "" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    import subprocess

    try:
        return subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*",
             "--dirty=+dirty"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return ""


def _versions() -> dict[str, str]:
    """Versions of the libraries, by the names of the folders that installers leave beside them.

    `importlib.metadata` says the same, and takes as long to load as a small backup.
    """
    found: dict[str, str] = {}
    for place in sys.path:
        with suppress(OSError), os.scandir(place or ".") as entries:
            for entry in entries:
                name, dash, rest = entry.name.partition("-")
                if dash and rest.endswith(".dist-info") and name in LIBRARIES:
                    found.setdefault(name, rest.removesuffix(".dist-info"))
    return {name: found[name] for name in LIBRARIES if name in found}


@cache
def provenance() -> Provenance:
    """The record of this process."""
    from vmbk import __version__

    return Provenance(
        version=__version__,
        commit=_commit(),
        python=sys.version.split()[0],
        machine=platform.machine(),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        kernel=f"{platform.system()} {platform.release().split('-')[0]}",
        libraries=_versions(),
    )
