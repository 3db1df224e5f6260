"""Runs the pre- and the post-script: no shell, a process group each, bounded in time and output.

A script's processes may outlive it: a pre-script can hold a database's backup session open in the
background for the post-script to end. They are ended with the run, whatever became of it. A
process that has left its group on purpose, such as a service that was started, is not reached.
"""

from __future__ import annotations

import errno
import math
import os
import select
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Final, Literal

from vmbk.consistency.bounded import TOOL_ENVIRONMENT
from vmbk.consistency.script_codes import Behaviour
from vmbk.consistency.script_config import MAX_TIMEOUT_S, ScriptConfig
from vmbk.consistency.script_interrupts import Interrupts

Role = Literal["pre", "post"]

OUTPUT_KEPT: Final = 4096
"""Bytes of a script's output that are held: the end, where an error stands."""

_FAILED: Final = {"pre": 300, "post": 301}
_TIMEOUT: Final = {"pre": 308, "post": 309}
_HOST_TIMEOUT: Final = {"pre": 310, "post": 311}
_CHUNK: Final = 1 << 16
_DRAINED: Final = 16
_DYING_S: Final = 10.0
_CANNOT_EXECUTE: Final = 126  # as a shell reports it
_UNKNOWN: Final = 255  # nothing that may count as success
_SHELL: Final = "/bin/sh"


@dataclass(frozen=True)
class ScriptResult:
    """How a script ended.

    Parameters
    ----------
    code : int
        0, or 300 and 301 (failed), 308 and 309 (ran out of time), 310 and 311 (all tries together
        did), for the pre- and the post-script.
    tries : int
        How often it was started.
    exit_code : int or None
        Of the last try; minus the number of the signal that ended it; None if it ran out of time.
    output : str
        The end of what the last try wrote.
    """

    code: int
    tries: int
    exit_code: int | None
    output: str

    @property
    def detail(self) -> str:
        """In one line."""
        ended = "ran out of time" if self.exit_code is None else f"exit code {self.exit_code}"
        tries = f", {self.tries} tries" if self.tries > 1 else ""
        said = self.output.strip().splitlines()
        return f"{ended}{tries}" + (f": {said[-1][:200]}" if said else "")


class ScriptRunner:
    """Runs a configuration's scripts; a context manager, whose end ends what they left running.

    Parameters
    ----------
    config : ScriptConfig
    behaviour : Behaviour
    host_timeout_s : float
        Seconds for all tries of a script together.
    second : float
        How long a second of the configuration lasts, in seconds.
    interrupts : Interrupts, optional
        Lets Ctrl-C through while the pre-script is waited for, and a second one while the
        post-script is.
    """

    def __init__(
        self,
        config: ScriptConfig,
        behaviour: Behaviour,
        *,
        interrupts: Interrupts | None = None,
        host_timeout_s: float = MAX_TIMEOUT_S,
        second: float = 1.0,
    ) -> None:
        self._config = config
        self._rules = behaviour
        self._interrupts = interrupts or Interrupts()
        self._poll_s = config.poll_s * second
        self._host_s = host_timeout_s * second
        self._limit_s = config.timeout_s * second
        if not behaviour.timeout_is_exact:
            self._limit_s = math.ceil(config.timeout_s / config.poll_s) * self._poll_s
        self._started: list[_Process] = []

    def __enter__(self) -> ScriptRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def run(self, role: Role) -> ScriptResult:
        """Run a script, with its tries, to its end or until its time is up."""
        host_end = monotonic() + self._host_s
        left = self._limit_s
        tries = 0
        while True:
            tries += 1
            before = len(self._started)
            began = monotonic()
            exit_code, output = self._try(role, min(began + left, host_end))
            code = 0 if exit_code == 0 else _FAILED[role]
            if exit_code is None:
                code = _TIMEOUT[role]
            over = code == 0 or not self._rules.retries_relaunch
            if not over and monotonic() >= host_end:
                code, over = _HOST_TIMEOUT[role], True
            if not self._rules.retries_reset_clock:
                left -= monotonic() - began
            if over or tries > self._config.retries(role) or left <= 0:
                return ScriptResult(code, tries, exit_code, output)
            if exit_code is not None or self._rules.timeout_kills:
                self._end(before)  # there may be a great many tries

    def _end(self, first: int = 0) -> None:
        """End the groups of the processes from one on."""
        for process in self._started[first:]:
            process.kill()
            process.close()
        del self._started[first:]

    def _try(self, role: Role, deadline: float) -> tuple[int | None, str]:
        """Start the script once; its exit code, None if it ran out of time, and what it wrote."""
        # The application waits for the post-script: one Ctrl-C must not be the end of it.
        interrupts, count = self._interrupts, self._interrupts.count
        words = [self._config.location(role), *self._config.params(role)]
        try:
            process = self._start(words)
        except (OSError, ValueError) as error:  # gone or changed since it was checked
            return _CANNOT_EXECUTE, f"cannot be executed: {error}"
        while True:
            poll_at = monotonic() + self._poll_s
            if (exit_code := process.exit_code()) is not None:
                break
            if monotonic() >= deadline:
                if self._rules.timeout_kills:
                    process.kill()
                break
            with interrupts.allowed() if role == "pre" else interrupts.second_allowed(count):
                self._wait(min(poll_at, deadline))
        process.drain()
        return exit_code, process.output

    def _start(self, words: list[str]) -> _Process:
        if not self._rules.script_is_executed:
            words = [_SHELL, *words]
        try:
            process = _Process(words, self._rules.output_is_read)
        except OSError as error:
            if error.errno != errno.ENOEXEC:
                raise
            # It has no first line that names its interpreter: as POSIX's execvp, use sh.
            process = _Process([_SHELL, *words], self._rules.output_is_read)
        self._started.append(process)
        return process

    def _wait(self, until: float) -> None:
        """Let time pass, and meanwhile read what the scripts write."""
        waiting = select.poll()
        pipes = {pipe: each for each in self._started for pipe in each.pipes if each.is_read}
        for pipe in pipes:
            waiting.register(pipe, select.POLLIN)
        while pipes and (left := until - monotonic()) > 0:
            for pipe, _ in waiting.poll(left * 1000):
                if not pipes[pipe].read(pipe):
                    waiting.unregister(pipe)
                    del pipes[pipe]
        if (left := until - monotonic()) > 0:
            sleep(left)


class _Process:
    """A script's process and its group; reaped last, so that the number stays its own."""

    def __init__(self, words: list[str], is_read: bool) -> None:
        # The extension gives standard error a pipe of its own, which counts where nobody reads.
        self._process = subprocess.Popen(
            words, cwd="/", env=dict(TOOL_ENVIRONMENT), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if is_read else subprocess.PIPE,
        )  # fmt: skip
        self._files = [file for file in (self._process.stdout, self._process.stderr) if file]
        self.pipes = {file.fileno() for file in self._files}
        self.is_read = is_read
        self._gone = False
        self._tail = b""

    @property
    def output(self) -> str:
        return self._tail.decode("utf-8", "replace")

    def exit_code(self) -> int | None:
        """Its exit code once it has ended, whatever it left running; it stays to be reaped."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            ended = os.waitid(os.P_PID, self._process.pid, flags)
        except ChildProcessError:  # the program that we are part of reaps all children itself
            return _UNKNOWN
        if ended is None:
            return None
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def read(self, pipe: int) -> bool:
        """Read once from a pipe; whether it is still open."""
        chunk = os.read(pipe, _CHUNK)
        self._tail = (self._tail + chunk)[-OUTPUT_KEPT:]
        if not chunk:
            self.pipes.discard(pipe)
        return bool(chunk)

    def drain(self) -> None:
        """Read what lies in the pipes, which its children may keep open."""
        for pipe in tuple(self.pipes):
            os.set_blocking(pipe, False)
            with suppress(BlockingIOError):
                for _ in range(_DRAINED):
                    if not self.read(pipe):
                        break
            os.set_blocking(pipe, True)

    def kill(self) -> None:
        """Kill all of its group, and wait until it has gone."""
        if self._gone:
            return
        self._gone = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # only if the kernel does not let it go
            self._process.wait(_DYING_S)
        # The others are not ours to reap: dead is enough.
        until = monotonic() + _DYING_S
        while _lives(self._process.pid) and monotonic() < until:
            sleep(0.002)

    def close(self) -> None:
        """Give its pipes back."""
        for file in self._files:
            file.close()


def _lives(group: int) -> bool:
    """Whether a process of a group is left that is no zombie."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            state, _, number = file.read_bytes().rpartition(b")")[2].split()[:3]
            if int(number) == group and state not in (b"Z", b"X"):
                return True
    return False
