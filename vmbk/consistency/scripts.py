"""A snapshot between the pre- and the post-script, as the service takes it of a Linux machine.

The order is: configuration, checks, pre-script, freeze, snapshot, thaw, post-script. The service
only calls the scripts; whether the application is consistent is theirs to bring about, and the
label says no more than that both ended well. What failed decides the label and the job:

=====================================  ========================  ==============================
what happened                          continueBackupOnFailure   recovery point, job
=====================================  ========================  ==============================
both scripts ended well                any                       application, completed
no configuration                       (none)                    filesystem, completed
scripts unfit, or one failed           true                      filesystem, with warnings; crash
                                                                 if fsFreezeEnabled is false
scripts unfit, or one failed           false                     none, failed; with a single disk
                                                                 crash, with warnings
freezing failed, or thawed too early   any                       none, failed; with a single disk
                                                                 crash, with warnings
=====================================  ========================  ==============================

The post-script runs whenever the pre-script was started, before anything is judged. Sources: the
documents "Application-consistent backup of Azure Linux VMs using Azure Backup" (2024-04-23) and "An
overview of Azure VM backup"; for ``behaviour="extension"`` the public source of VMSnapshotLinux
(Azure/azure-linux-extensions, ``VMBackup/main/handle.py``). `vmbk.consistency.script_codes` has the
codes and the differences between the two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from time import monotonic
from typing import TypeVar

from vmbk.consistency.freeze import FREEZE_TIMEOUT_S, Freezer, FsFreezer, freezable_mounts
from vmbk.consistency.script_codes import (
    APPLICATION_CONSISTENT,
    CONFIG_HOST_PARSING,
    CONFIG_MISSING,
    CONFIG_PARSING,
    ERROR,
    FILESYSTEM_CONSISTENT,
    Behaviour,
    behaviour_of,
)
from vmbk.consistency.script_config import (
    MAX_TIMEOUT_S,
    ScriptConfig,
    ScriptConfigError,
    check_scripts,
)
from vmbk.consistency.script_interrupts import Interrupts
from vmbk.consistency.script_result import Attempt, SnapshotEvent, SnapshotRun
from vmbk.consistency.script_run import Role, ScriptRunner
from vmbk.errors import InputError
from vmbk.units import quoted

T = TypeVar("T")


def take_snapshot(
    config_path: str | os.PathLike[str],
    snapshot: Callable[[], T],
    *,
    behaviour: str | Behaviour = "documented",
    mounts: Collection[str | os.PathLike[str]] | None = None,
    skip: Collection[str | os.PathLike[str]] = (),
    freezer: Freezer | None = None,
    attempt: Attempt | None = None,
    owner: int = 0,
    freeze_timeout_s: float = FREEZE_TIMEOUT_S,
    host_timeout_s: float = MAX_TIMEOUT_S,
    second: float = 1.0,
) -> SnapshotRun[T]:
    """Take a snapshot with the application quiesced by its scripts and the file systems frozen.

    Nothing stays frozen and no process of a script's group stays running, however this ends; on
    Ctrl-C and when ``snapshot`` raises, the file systems are thawed and the post-script is run
    before the exception goes on. While the post-script runs it takes a second Ctrl-C to end it.

    Parameters
    ----------
    config_path : path
        ``VMSnapshotScriptPluginConfig.json``; the documents have it in ``/etc/azure``.
    snapshot : callable
        Takes the snapshot and returns what is to be kept of it. While it runs nothing can be
        written to a frozen file system, not even by itself.
    behaviour : str or Behaviour
        ``documented``, ``extension`` (what the source of the extension does), or a mixture.
    mounts : collection of path, optional
        Mount points to freeze; all of this machine that can be, if not given.
    skip : collection of path
        Mount points to pass over (``MountsToSkip``).
    freezer : Freezer, optional
        Freezes instead of `FsFreezer`; then ``mounts`` and ``skip`` are not looked at.
    attempt : Attempt, optional
        If not given: of several disks, without a fall back.
    owner : int
        The user that must own the configuration and the scripts: root, but for trials.
    freeze_timeout_s : float
        Seconds after which the file systems thaw by themselves.
    host_timeout_s : float
        Seconds for all tries of one script, at most.
    second : float
        How long a second of the configuration and of ``host_timeout_s`` lasts, in seconds.

    Returns
    -------
    SnapshotRun

    Raises
    ------
    InputError
        If there is no such behaviour or mount point, or a time is not positive. What is wrong
        with the configuration or a script is no exception but a code.
    StorageError
        If it cannot be read what is mounted.
    """
    for seconds in (second, host_timeout_s, freeze_timeout_s):
        if not 0 < seconds < float("inf"):
            raise InputError(f"{quoted(seconds)} is no time in seconds")
    with Interrupts() as interrupts:
        run = _Run(behaviour_of(behaviour), attempt or Attempt(), interrupts)
        run.read(config_path, owner)
        if run.freeze_enabled and freezer is None:
            # Before a script runs: a wrong argument must not cost the application a pause.
            freezer = FsFreezer(freezable_mounts(mounts, skip=skip), timeout_s=freeze_timeout_s)
        if run.config is None or run.problem:
            value = run.hold(freezer, snapshot)
        else:
            value = run.between(freezer, snapshot, host_timeout_s, second)
    label, state, code = run.judge()
    return SnapshotRun(
        snapshot=value, label=label, state=state, code=code, codes=run.codes,
        events=tuple(run.events), config=run.config, behaviour=run.rules,
    )  # fmt: skip


class _Run:
    """What is found while a run goes on, and what follows from it."""

    def __init__(self, rules: Behaviour, attempt: Attempt, interrupts: Interrupts) -> None:
        self.rules = rules
        self._interrupts = interrupts
        self.config: ScriptConfig | None = None
        self.problem = self.pre = self.post = self.freeze = self.thaw = 0
        self.events: list[SnapshotEvent] = []
        self._fallback = attempt.falls_back(rules)
        self._taken = False
        self._frozen = False
        self._began = monotonic()

    @property
    def freeze_enabled(self) -> bool:
        return self.config is None or self.config.freeze_enabled

    @property
    def _continues(self) -> bool:
        return self.config is None or self.config.continue_on_failure

    def _log(self, name: str, code: int, began: float, detail: str) -> None:
        now = monotonic()
        self.events.append(SnapshotEvent(name, code, began - self._began, now - began, detail))

    def read(self, path: str | os.PathLike[str], owner: int) -> None:
        """Read the configuration and check the scripts."""
        began = monotonic()
        try:
            self.config = ScriptConfig.read(path, owner=owner, behaviour=self.rules)
        except ScriptConfigError as error:
            self.problem = error.code
            self._log("configuration", error.code, began, error.message)
            return
        self._log("configuration", 0, began, "; ".join(self.config.notes))
        began = monotonic()
        self.problem, detail = check_scripts(self.config, owner=owner, behaviour=self.rules)
        self._log("checks", self.problem, began, detail)

    def between(
        self,
        freezer: Freezer | None,
        snapshot: Callable[[], T],
        host_timeout_s: float,
        second: float,
    ) -> T | None:
        """Run the pre-script, take the snapshot and run the post-script, whatever happens."""
        assert self.config is not None
        with ScriptRunner(
            self.config, self.rules, host_timeout_s=host_timeout_s, second=second,
            interrupts=self._interrupts,
        ) as runner:  # fmt: skip
            try:
                self.pre = self._script(runner, "pre")
                value = self.hold(freezer, snapshot)
            except BaseException as error:
                self.post = self._script(runner, "post")
                error.add_note(f"the post-script was run: {self.events[-1].detail}")
                raise
            self.post = self._script(runner, "post")
        return value

    def _script(self, runner: ScriptRunner, role: Role) -> int:
        began = monotonic()
        result = runner.run(role)
        self._log(f"{role}-script", result.code, began, result.detail)
        return result.code

    def hold(self, freezer: Freezer | None, snapshot: Callable[[], T]) -> T | None:
        """Freeze, take the snapshot and thaw, if what happened so far allows it."""
        blocked = self._blocked()
        if blocked and not (self._fallback and self.rules.single_disk_falls_back):
            return None
        if freezer is None or not self.freeze_enabled or blocked:
            return self._take(snapshot)
        try:
            began = monotonic()
            self.freeze = freezer.freeze()
            self._frozen = not self.freeze
            self._log("freeze", self.freeze, began, freezer.detail)
            if self.freeze and not self._fallback:
                return None
            return self._take(snapshot)
        finally:
            began = monotonic()
            code = freezer.thaw()
            if self._frozen:
                self.thaw = code
                self._log("thaw", code, began, freezer.detail)

    def _take(self, snapshot: Callable[[], T]) -> T:
        began = monotonic()
        with self._interrupts.allowed():
            value = snapshot()
        self._taken = True
        self._log("snapshot", 0, began, "")
        return value

    def _blocked(self) -> bool:
        """Whether a failure of the scripts forbids a recovery point."""
        scripts = bool(self.pre or self.post)
        if not (scripts or self._unfit):
            return False
        if scripts and not self.freeze_enabled:
            return not (self._continues and self.rules.failed_script_without_freeze_continues)
        return not self._continues

    @property
    def _unfit(self) -> bool:
        """The scripts were not run though somebody wanted them to be."""
        return self.problem not in (0, CONFIG_MISSING)

    @property
    def codes(self) -> tuple[int, ...]:
        """All failures that are reported; first what costs the recovery point."""
        thaw = self.thaw
        if thaw and not self.rules.late_thaw_is_122:
            # The extension has no code for it, and none at all where it falls back.
            thaw = 0 if self._fallback else ERROR
        silent = {CONFIG_MISSING}
        if not self.rules.config_errors_are_told:
            silent |= {CONFIG_HOST_PARSING, CONFIG_PARSING}
        problem = 0 if self.problem in silent else self.problem
        found = (self.freeze, thaw, problem, self.pre, self.post)
        return tuple(code for code in found if code)

    def judge(self) -> tuple[str | None, str, int]:
        """The label, the job's state and the code."""
        codes = self.codes
        code = codes[0] if codes else FILESYSTEM_CONSISTENT
        state = "completed with warnings" if codes else "completed"
        held = not (self.freeze or self.thaw)
        if not self._taken or not (held or self._fallback):
            return None, "failed", code
        if self._blocked():
            if self._fallback and self.rules.single_disk_falls_back:
                return "crash", state, code
            return None, "failed", code
        if not held:
            return "crash", state, code
        if not (self.problem or self.pre or self.post):
            return "application", "completed", APPLICATION_CONSISTENT
        unfrozen = not self._frozen and (self.rules.unfrozen_is_crash or self.pre or self.post)
        return "crash" if unfrozen else "filesystem", state, code
