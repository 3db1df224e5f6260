"""Run a program on hostile data: without rights, bounded in time, output and size of files.

`run_tool` of `checkers` is enough for a tool that only reads an image. A database server does more:
it executes what its files say. As root it is therefore run as ``nobody``. Where the kernel allows
it, it has a network, processes and shared memory of its own, so it can reach nobody, and all that
it started ends with it; and where everybody may write it finds empty, read-only places, so it can
write in its scratch folder only. An ordinary user's server has that user's rights.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import select
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Final

from vmbk.consistency.checkers import Tool
from vmbk.errors import StorageError

OUTPUT_KEPT: Final = 16 << 20
"""Bytes of each output stream that may be written and are read."""

SETPRIV: Final = Tool("setpriv", "util-linux")
PRLIMIT: Final = Tool("prlimit", "util-linux")
UNSHARE: Final = Tool("unshare", "util-linux")

_ENVIRONMENT: Final = {
    "LC_ALL": "C",
    "TZ": "UTC",
    "HOME": "/nonexistent",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "DEBUGFS_PAGER": "__none__",
}
_COVER: Final = """\
for place in /tmp /var/tmp /dev/shm /run/lock; do
    test ! -d $place || test -L $place || mount -t tmpfs -o ro,size=4k none $place || exit
done
exec "$@"
"""
# What was opened before, such as the scratch folder, stays what it was.
_SYSTEM_V_MEMORY: Final = Path("/proc/sysvipc/shm")
_IPC_RMID: Final = 0  # linux/ipc.h


@dataclass(frozen=True)
class ConfinedRun:
    """How a confined program ended.

    Parameters
    ----------
    code : int
        Exit code; minus the number of the signal that ended it.
    output, errors : str
        What it wrote to standard output and to standard error.
    timed_out : bool
        It was ended because its time was up.
    """

    code: int
    output: str
    errors: str
    timed_out: bool = False

    @property
    def ok(self) -> bool:
        """Exit code 0, in time."""
        return self.code == 0 and not self.timed_out


def nobody() -> tuple[int, int] | None:
    """User and group to run hostile things as; None where this process has no rights to drop.

    Raises
    ------
    StorageError
        If the machine has no such user, or does not know the one that this process runs as, which
        a database server asks for.
    """
    try:
        if os.geteuid() != 0:
            pwd.getpwuid(os.geteuid())
            return None
        entry = pwd.getpwnam("nobody")
    except KeyError:
        who = f"user {os.geteuid()}" if os.geteuid() else "user 'nobody'"
        raise StorageError(
            f"the machine knows no {who} to run a database server as",
            hint="run vmbk as a user that /etc/passwd lists",
        ) from None
    return entry.pw_uid, entry.pw_gid


def run_confined(
    program: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    timeout_s: float,
    file_size: int,
    stdin: str = "",
    keep_open: Sequence[int] = (),
    unprivileged: bool = True,
) -> ConfinedRun:
    """Run a program in a session of its own, of which nothing is left afterwards.

    Parameters
    ----------
    program : str
        Its path.
    arguments : sequence of str
        Each is one argument.
    folder : Path
        A directory for scratch files. A program with its rights runs in it, one without in ``/``,
        as it may not have the right to come back to the folder.
    timeout_s : float
        Seconds after which all of its processes are killed.
    file_size : int
        Bytes that any file may grow to.
    stdin : str
        What it reads.
    keep_open : sequence of int
        File descriptors that it inherits.
    unprivileged : bool
        Give up root's rights, and the network.

    Raises
    ------
    ToolMissingError
        If the programs of util-linux are not installed.
    StorageError
        If the operating system cannot start it.
    """
    limits = [PRLIMIT.find(), f"--fsize={max(file_size, OUTPUT_KEPT)}", "--core=0"]
    command = [*limits, *(_unprivileged() if unprivileged else ()), program, *arguments]
    with (
        tempfile.TemporaryFile(dir=folder) as given,
        tempfile.TemporaryFile(dir=folder) as output,
        tempfile.TemporaryFile(dir=folder) as errors,
    ):
        try:
            given.write(stdin.encode())
            given.seek(0)
            process = subprocess.Popen(
                command, cwd="/" if unprivileged else folder, env=_ENVIRONMENT, stdin=given,
                stdout=output, stderr=errors, pass_fds=keep_open, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise StorageError(f"{program} cannot be run: {error.strerror or error}") from error
        ended = False
        try:
            ended = _wait(process, timeout_s)
        finally:
            # Not yet waited for, so that the number of the group cannot be another's by now.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _remove_shared_memory(process.pid)
        return ConfinedRun(process.returncode, _text(output), _text(errors), not ended)


@cache
def _unprivileged() -> tuple[str, ...]:
    """The programs through which a program is started, and that take its rights away."""
    user = nobody()
    drop = [SETPRIV.find(), "--no-new-privs"]
    alone = [UNSHARE.find(), "--net", "--ipc", "--pid", "--fork", "--kill-child"]
    if user is not None:
        drop += [f"--reuid={user[0]}", f"--regid={user[1]}", "--clear-groups", "--inh-caps=-all"]
        ways = [[*alone, "--mount", "sh", "-c", _COVER, "sh", *drop], [*alone, *drop]]
    else:
        ways = [[*alone, "--user", "--map-current-user", *drop]]
    for way in ways:
        if subprocess.run([*way, "true"], env=_ENVIRONMENT, capture_output=True).returncode == 0:
            return tuple(way)
    return tuple(drop)


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait without polling by sleep, which costs up to 50 ms a program; False if time is up."""
    handle = os.pidfd_open(process.pid)
    try:
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        return bool(waiting.poll(timeout_s * 1000))
    finally:
        os.close(handle)


def _remove_shared_memory(pid: int) -> None:
    """Remove System V shared memory that a killed process made and could not remove itself."""
    try:
        lines = _SYSTEM_V_MEMORY.read_text().splitlines()
    except OSError:
        return
    for line in lines[1:]:
        _, number, _, _, creator, _, attached, *_ = line.split()
        if int(creator) == pid and attached == "0":
            ctypes.CDLL(None).shmctl(int(number), _IPC_RMID, None)


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read(OUTPUT_KEPT).decode("utf-8", "replace")
