"""The guest: the newest cloud kernel of this machine and an initramfs built on the spot."""

from __future__ import annotations

import gzip
import lzma
import math
import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vmbk.errors import StorageError, ToolMissingError, VmbkError
from vmbk.trace.capture.recipe import Recipe

DISK_MODULES: Final = ("virtio_pci", "virtio_blk")
_SEARCH: Final = os.pathsep.join(
    [os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin"]
)
_INIT: Final = Path(__file__).with_name("init.sh")
_KERNEL: Final = re.compile(r"vmlinuz-(.*-cloud-amd64)")


def find_program(name: str, package: str) -> Path:
    """A program of this machine.

    Raises
    ------
    ToolMissingError
        Naming the Debian package.
    """
    found = shutil.which(name, path=_SEARCH)
    if found is None:
        raise ToolMissingError(name, package)
    return Path(found)


def find_files(pattern: str, package: str) -> list[Path]:
    """The file that a pattern names, or all files below that folder, by name.

    Raises
    ------
    ToolMissingError
        Naming the Debian package.
    """
    found = max(Path("/").glob(pattern.lstrip("/")), key=_by_version, default=None)
    if found is None:
        raise ToolMissingError(pattern, package)
    if not found.is_dir():
        return [found]
    return sorted(path for path in found.rglob("*") if path.is_file())


def _by_version(path: Path) -> list[tuple[int, str]]:
    """A key by which version 15 comes after version 9."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", str(path))]


@dataclass(frozen=True)
class Kernel:
    """A kernel and the folder of its modules."""

    release: str
    image: Path
    modules: Path


def find_kernel(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> Kernel:
    """The newest cloud kernel that has its modules.

    Raises
    ------
    ToolMissingError
        If there is none.
    """
    found = []
    for image in boot.glob("vmlinuz-*-cloud-amd64"):
        match = _KERNEL.fullmatch(image.name)
        if match and (modules / match[1] / "modules.dep").is_file() and os.access(image, os.R_OK):
            version = tuple(int(part) for part in re.findall(r"\d+", match[1]))
            found.append((version, Kernel(match[1], image, modules / match[1])))
    if not found:
        raise ToolMissingError(f"{boot}/vmlinuz-*-cloud-amd64", "linux-image-cloud-amd64")
    return max(found, key=lambda pair: pair[0])[1]


def module_files(kernel: Kernel, names: Iterable[str]) -> list[Path]:
    """Files of these modules and of those they need, each after what it needs.

    Modules that are built into the kernel have no file.

    Raises
    ------
    VmbkError
        If the kernel does not have a module.
    """
    needs: dict[str, list[str]] = {}
    paths: dict[str, Path] = {}
    for line in (kernel.modules / "modules.dep").read_text(encoding="utf-8").splitlines():
        file, _, rest = line.partition(":")
        paths[_module_name(file)] = kernel.modules / file
        needs[_module_name(file)] = [_module_name(need) for need in rest.split()]
    built_in = {
        _module_name(line)
        for line in (kernel.modules / "modules.builtin").read_text(encoding="utf-8").splitlines()
    }
    order: dict[str, None] = {}

    def visit(name: str) -> None:
        if name in order or name in built_in:
            return
        if name not in paths:
            raise VmbkError(f"kernel {kernel.release} has no module {name!r}")
        # modules.dep lists everything needed, directly or not, the last one first.
        for need in reversed(needs[name]):
            visit(need)
        order[name] = None

    for name in names:
        visit(_module_name(name))
    return [paths[name] for name in order]


def _module_name(path: str) -> str:
    return Path(path).name.partition(".ko")[0].replace("-", "_")


def plain_module(path: Path) -> bytes:
    """A module as the guest's insmod takes it: not compressed."""
    raw = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(raw)
    if path.suffix == ".gz":
        return gzip.decompress(raw)
    if path.suffix == ".zst":
        import pyarrow as pa

        return bytes(pa.input_stream(str(path), compression="zstd").read())
    return raw


def shared_libraries(program: Path) -> list[Path]:
    """The libraries, dynamic loader included, that a program needs; none if it is static."""
    ldd = subprocess.run(
        ["ldd", str(program)], capture_output=True, text=True, check=False, timeout=30
    )
    if ldd.returncode:
        return []
    if "not found" in ldd.stdout:
        raise VmbkError(f"{program.name} lacks a shared library: {' '.join(ldd.stdout.split())}")
    return [Path(match) for match in re.findall(r"(?:=> |^\s*)(/\S+)", ldd.stdout, re.MULTILINE)]


@dataclass
class Archive:
    """A cpio archive in the format "newc", which Linux unpacks as its first file system."""

    parts: list[bytes] = field(default_factory=list)
    names: set[str] = field(default_factory=set)

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        """Add an entry and the folders that lead to it; the first of a name counts."""
        folder = name.rpartition("/")[0]
        if folder and folder not in self.names:
            self.add(folder, stat.S_IFDIR | 0o755)
        if name not in self.names:
            self.names.add(name)
            self._append(name, mode, data, device)

    def _append(self, name: str, mode: int, data: bytes, device: tuple[int, int]) -> None:
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device, special device, name's size, checksum
        numbers = (len(self.names), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
        self.parts += [head, bytes(-len(head) % 4), data, bytes(-len(data) % 4)]

    def compressed(self) -> bytes:
        """The finished archive."""
        self._append("TRAILER!!!", 0, b"", (0, 0))
        return gzip.compress(b"".join(self.parts), compresslevel=1, mtime=0)


def build_initramfs(recipe: Recipe, kernel: Kernel) -> bytes:
    """The first file system of the guest: BusyBox, programs, modules, workload.

    Raises
    ------
    ToolMissingError
        If BusyBox or a program of the recipe is not installed.
    StorageError
        If a file cannot be read.
    """
    archive = Archive()
    try:
        archive.add("dev/console", stat.S_IFCHR | 0o600, device=(5, 1))
        for folder in ("proc", "sys", "tmp", "mnt", "lib"):
            archive.add(folder, stat.S_IFDIR | 0o755)
        for name, package in recipe.programs.items():
            _add_program(archive, name, find_program(name, package))
        for pattern, package in recipe.files.items():
            for path in find_files(pattern, package):
                _add_file(archive, str(path).lstrip("/"), path)
        add_busybox(archive)
        files = module_files(kernel, [*DISK_MODULES, *recipe.modules])
        for file in files:
            plain = file.name.partition(".ko")[0] + ".ko"
            archive.add(f"modules/{plain}", stat.S_IFREG | 0o644, plain_module(file))
        names = [file.name.partition(".ko")[0] for file in files]
        archive.add("init", stat.S_IFREG | 0o755, _INIT.read_bytes())
        archive.add("settings", stat.S_IFREG | 0o644, _settings(recipe, names).encode())
        archive.add("workload", stat.S_IFREG | 0o755, recipe.script.encode())
    except OSError as error:
        raise StorageError(f"cannot build the guest: {error}") from error
    return archive.compressed()


def _add_program(archive: Archive, name: str, path: Path) -> None:
    _add_file(archive, f"bin/{name}", path)


def _add_file(archive: Archive, name: str, path: Path) -> None:
    """A file, and the libraries without which it would not run."""
    data = path.read_bytes()
    mode = 0o755 if path.stat().st_mode & 0o111 else 0o644
    archive.add(name, stat.S_IFREG | mode, data)
    if not data.startswith(b"\x7fELF"):
        return
    for library in shared_libraries(path):
        archive.add(str(library).lstrip("/"), stat.S_IFREG | 0o755, library.read_bytes())


def add_busybox(archive: Archive) -> None:
    """BusyBox under the names of its applets, but for programs that the recipe brings."""
    busybox = find_program("busybox", "busybox-static")
    _add_program(archive, "busybox", busybox)
    listed = subprocess.run(
        [str(busybox), "--list"], capture_output=True, text=True, check=True, timeout=30
    )
    for applet in listed.stdout.split():
        archive.add(f"bin/{applet}", stat.S_IFLNK | 0o777, b"busybox")


def _settings(recipe: Recipe, modules: list[str]) -> str:
    """Shell variables for the guest's init and the workload."""
    variables = {
        "VMBK_MODULES": " ".join(modules),
        **recipe.settings(),
        "VMBK_TIMEOUT": str(math.ceil(recipe.timeout_s)),
        **recipe.environment,
    }
    return "".join(f"export {name}={shlex.quote(text)}\n" for name, text in variables.items())
