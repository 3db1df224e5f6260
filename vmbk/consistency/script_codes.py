"""What the Linux agent of the service reports, and where it differs from its own documents.

The numbers and names are those of the public extension VMSnapshotLinux
(Azure/azure-linux-extensions, ``VMBackup/main/ExtensionErrorCodeHelper.py``); the titles are those
of the troubleshooting table in "Application-consistent backup of Azure Linux VMs using Azure
Backup" (2024-04-23).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from vmbk.errors import InputError
from vmbk.units import quoted


@dataclass(frozen=True)
class ResultCode:
    """One code that a run may report.

    Parameters
    ----------
    number : int
    name : str
        The extension's own.
    meaning : str
        In plain words.
    health : str
        How the extension shows it: ``green``, ``yellow`` or ``red``.
    title : str
        The documents' name of it, "" where they have none.
    """

    number: int
    name: str
    meaning: str
    health: str = "yellow"
    title: str = ""


APPLICATION_CONSISTENT: Final = 0
FILESYSTEM_CONSISTENT: Final = 1
ERROR: Final = 2
FREEZE_FAILED: Final = 121
FREEZE_TIMEOUT: Final = 122
MOUNT_NOT_OPENED: Final = 123
FREEZER_MISSING: Final = 124
CONFIG_HOST_PARSING: Final = 304
CONFIG_PARSING: Final = 305
CONFIG_MISSING: Final = 316
CONFIG_PERMISSION: Final = 317
CONFIG_OWNER: Final = 318


def _codes() -> dict[int, ResultCode]:
    rows = (
        ResultCode(0, "success_appconsistent", "an application-consistent snapshot", "green"),
        ResultCode(1, "success", "a file-system consistent snapshot", "green"),
        ResultCode(2, "error", "an error without a code of its own", "green"),
        ResultCode(76, "FailedRetryableSnapshotFailedNoNetwork", "no way to the storage", "red"),
        ResultCode(85, "FailedSnapshotLimitReached", "the disk has too many snapshots", "red"),
        ResultCode(121, "FailedRetryableFsFreezeFailed", "a file system could not be frozen, or "
                   "somebody else thawed it", title="UserErrorFsFreezeFailed"),
        ResultCode(122, "FailedRetryableFsFreezeTimeout",
                   "freezing took too long, or the snapshot outlasted the freeze"),
        ResultCode(123, "FailedRetryableUnableToOpenMount", "a mount point could not be opened",
                   title="UserErrorUnableToOpenMount"),
        ResultCode(124, "FailedSafeFreezeBinaryNotFound", "the program that freezes is missing"),
        ResultCode(173, "FailedRetryableSnapshotRateExceeded", "too many snapshots at once",
                   "green"),
        ResultCode(300, "FailedPrepostPreScriptFailed", "the pre-script failed",
                   title="Pre-ScriptExecutionFailed"),
        ResultCode(301, "FailedPrepostPostScriptFailed", "the post-script failed",
                   title="Post-ScriptExecutionFailed"),
        ResultCode(302, "FailedPrepostPreScriptNotFound", "there is no pre-script at its location",
                   title="Pre-ScriptNotFound"),
        ResultCode(303, "FailedPrepostPostScriptNotFound",
                   "there is no post-script at its location", title="Post-ScriptNotFound"),
        ResultCode(304, "FailedPrepostPluginhostConfigParsing",
                   "the host's configuration cannot be used", title="IncorrectPluginhostFile"),
        ResultCode(305, "FailedPrepostPluginConfigParsing", "the configuration cannot be used",
                   title="IncorrectJSONConfigFile"),
        ResultCode(306, "FailedPrepostPreScriptPermissionError",
                   "others than its owner may use the pre-script, or root does not own it",
                   title="InsufficientPermissionforPre-Script"),
        ResultCode(307, "FailedPrepostPostScriptPermissionError",
                   "others than its owner may use the post-script, or root does not own it",
                   title="InsufficientPermissionforPost-Script"),
        ResultCode(308, "FailedPrepostPreScriptTimeout", "the pre-script ran out of time",
                   title="Pre-ScriptTimeout"),
        ResultCode(309, "FailedPrepostPostScriptTimeout", "the post-script ran out of time",
                   title="Post-ScriptTimeout"),
        ResultCode(310, "FailedPrepostPluginhostPreTimeout",
                   "all tries of the pre-script together ran out of time"),
        ResultCode(311, "FailedPrepostPluginhostPostTimeout",
                   "all tries of the post-script together ran out of time"),
        ResultCode(312, "FailedPrepostCheckSumMismatch", "a script is not the one expected"),
        ResultCode(313, "FailedPrepostPluginhostConfigNotFound", "no host's configuration"),
        ResultCode(314, "FailedPrepostPluginhostConfigPermissionError",
                   "others may write the host's configuration"),
        ResultCode(315, "FailedPrepostPluginhostConfigOwnershipError",
                   "root does not own the host's configuration"),
        ResultCode(316, "FailedPrepostPluginConfigNotFound", "there is no configuration"),
        ResultCode(317, "FailedPrepostPluginConfigPermissionError",
                   "others than its owner may use the configuration, or it can be executed"),
        ResultCode(318, "FailedPrepostPluginConfigOwnershipError",
                   "root does not own the configuration"),
        ResultCode(402, "FailedGuestAgentInvokedCommandTooLate", "the command came too late",
                   "red"),
        ResultCode(556, "FailedHostSnapshotRemoteServerError", "the host could not make it"),
        ResultCode(761, "FailedRetryableSnapshotFailedRestrictedNetwork",
                   "no free way to the storage", "red"),
    )  # fmt: skip
    return {row.number: row for row in rows}


CODES: Final[Mapping[int, ResultCode]] = _codes()
"""Every code by its number."""


def _rule(documented: str, extension: str) -> Any:
    return field(default=True, metadata={"documented": documented, "extension": extension})


@dataclass(frozen=True)
class Behaviour:
    """Where the extension's source differs from its documents; each True is as documented.

    The two presets are `DOCUMENTED` and `EXTENSION`; a mixture shows what one difference does.
    `differences` gives what each means.
    """

    retries_relaunch: bool = _rule(
        "a script that failed is started again, as often as its number of retries says",
        "the loop of retries counts them but never starts the script again",
    )
    retries_reset_clock: bool = _rule(
        "each try has the whole timeout",
        "the time of earlier tries counts against the later ones",
    )
    timeout_is_30: bool = _rule(
        "without timeoutInSeconds a script has 30 s, as in the template",
        "without timeoutInSeconds a script has 10 s",
    )
    timeout_is_exact: bool = _rule(
        "a script has its timeout and no more",
        "the timeout is rounded up to whole polls",
    )
    timeout_kills: bool = _rule(
        "a script that ran out of time is ended, with all of its process group",
        "a script that ran out of time goes on during the snapshot (it is ended after the run)",
    )
    output_is_read: bool = _rule(
        "what a script writes is read, and its end kept",
        "nobody reads the pipe: a script that writes more than 64 KiB hangs until its timeout",
    )
    script_is_executed: bool = _rule(
        "the script is executed, for which it needs the permission (700)",
        "the script is an argument of sh: neither its permission nor its first line counts",
    )
    repeated_fields_refused: bool = _rule(
        "a configuration that gives a field twice is incorrect (305)",
        "of a field that is given twice the last one counts",
    )
    flags_are_booleans: bool = _rule(
        "continueBackupOnFailure and fsFreezeEnabled are true or false, else 305",
        'any value that is not empty counts as true, so that "false" in quotes is true',
    )
    wrong_timeout_is_305: bool = _rule(
        "a timeout that is no number, or a configuration that is no object, is 305",
        "it is an unforeseen error of the host, 304",
    )
    owner_has_a_code: bool = _rule(
        "a configuration of the wrong owner is 318",
        "a configuration of the wrong owner is 317; 318 is never used",
    )
    config_errors_are_told: bool = _rule(
        "a configuration that cannot be used is a warning, for the label is lost",
        "304 and 305 are written to a log and the run reports plain success, 1",
    )
    failed_script_without_freeze_continues: bool = _rule(
        "fsFreezeEnabled false, a script failed, continueBackupOnFailure true: crash-consistent",
        "fsFreezeEnabled false and a script failed: the backup fails whatever the setting",
    )
    unfrozen_is_crash: bool = _rule(
        "a snapshot without scripts and without a freeze is crash-consistent",
        "scripts that may not run, with fsFreezeEnabled false, give a file-system consistent label "
        "though nothing was frozen",
    )
    single_disk_falls_back: bool = _rule(
        "a machine with a single disk falls back to crash-consistent whatever failed",
        "it does so only on a retry, where the service allows it, and only if the freeze failed",
    )
    late_thaw_is_122: bool = _rule(
        "a snapshot that outlasts the freeze is a freeze timeout, 122",
        "a snapshot that outlasts the freeze is an error without a code, 2",
    )


DOCUMENTED: Final = Behaviour()
EXTENSION: Final = Behaviour(**{f.name: False for f in fields(Behaviour)})


@dataclass(frozen=True)
class Difference:
    """One difference between the documents and the extension's source.

    Parameters
    ----------
    name : str
        The field of `Behaviour`.
    documented, extension : str
        What each does.
    """

    name: str
    documented: str
    extension: str


def differences() -> tuple[Difference, ...]:
    """All differences that `Behaviour` can switch."""
    return tuple(
        Difference(f.name, f.metadata["documented"], f.metadata["extension"])
        for f in fields(Behaviour)
    )


def behaviour_of(behaviour: str | Behaviour) -> Behaviour:
    """The preset of a name; a `Behaviour` is given back as it is.

    Raises
    ------
    InputError
        If there is no such preset.
    """
    if isinstance(behaviour, Behaviour):
        return behaviour
    presets = {"documented": DOCUMENTED, "extension": EXTENSION}
    if behaviour not in presets:
        raise InputError(
            f"{quoted(behaviour)} is no behaviour", hint="allowed are " + ", ".join(presets)
        )
    return presets[behaviour]
