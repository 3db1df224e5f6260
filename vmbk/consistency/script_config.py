"""The configuration of the pre- and post-script, and what must hold before a script is run.

Fields, defaults and permissions are those of "Application-consistent backup of Azure Linux VMs
using Azure Backup" (2024-04-23) and of the template that it names. The file is read as hostile
input: bounded, strictly typed, and nothing in it is believed before its owner is.
"""

from __future__ import annotations

import difflib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vmbk.consistency.script_codes import (
    CODES,
    CONFIG_HOST_PARSING,
    CONFIG_MISSING,
    CONFIG_OWNER,
    CONFIG_PARSING,
    CONFIG_PERMISSION,
    Behaviour,
    behaviour_of,
)
from vmbk.errors import InputError
from vmbk.units import quoted

CONFIG_PATH: Final = "/etc/azure/VMSnapshotScriptPluginConfig.json"
"""Where the documents want it."""

CONFIG_SIZE: Final = 64 << 10
"""Bytes above which a configuration is refused; the template has 350."""

MAX_TIMEOUT_S: Final = 1800
"""Seconds; the documents' largest timeout, and that of the host."""

_MANY_RETRIES: Final = 1_000_000
_NOTES: Final = 32
_OTHERS: Final = 0o077


class ScriptConfigError(InputError):
    """A configuration that cannot be used; ``code`` is what the service reports for it."""

    def __init__(self, code: int, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


@dataclass(frozen=True)
class ScriptConfig:
    """What ``VMSnapshotScriptPluginConfig.json`` says.

    Parameters
    ----------
    pre_location, post_location : str
        ``preScriptLocation``, ``postScriptLocation``: full paths. The only fields without a
        default.
    plugin_name : str
        ``pluginName``; to be left as it is.
    pre_params, post_params : tuple of str
        ``preScriptParams``, ``postScriptParams``: one argument each.
    pre_retries, post_retries : int
        ``preScriptNoOfRetries``, ``postScriptNoOfRetries``: 0 is one try.
    timeout_s : float
        ``timeoutInSeconds`` of each script; at most 1800.
    continue_on_failure : bool
        ``continueBackupOnFailure``: a failed script costs the label, not the backup.
    freeze_enabled : bool
        ``fsFreezeEnabled``.
    poll_s : int
        ``ScriptsExecutionPollTimeSeconds``, 1 to 5: how often it is looked whether a script ended.
    app_name : str
        ``appName``: told to the service, no more.
    notes : tuple of str
        What was ignored or changed, such as fields that nobody knows.
    """

    pre_location: str
    post_location: str
    plugin_name: str = "ScriptRunner"
    pre_params: tuple[str, ...] = ()
    post_params: tuple[str, ...] = ()
    pre_retries: int = 0
    post_retries: int = 0
    timeout_s: float = 30
    continue_on_failure: bool = True
    freeze_enabled: bool = True
    poll_s: int = 3
    app_name: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str] = CONFIG_PATH,
        *,
        owner: int = 0,
        behaviour: str | Behaviour = "documented",
    ) -> ScriptConfig:
        """Read a configuration, after its owner and its permissions were checked.

        Parameters
        ----------
        path : path
        owner : int
            The user that must own it: root, but for trials.
        behaviour : str or Behaviour
            As in `vmbk.consistency.scripts.take_snapshot`.

        Raises
        ------
        ScriptConfigError
            With the code 316 (missing), 317 (permission), 318 (owner) or 305 (contents).
        """
        rules = behaviour_of(behaviour)
        name = quoted(os.fspath(path))
        try:
            # A FIFO in its place must not hold the backup up.
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise ScriptConfigError(
                CONFIG_MISSING, f"there is no configuration {name}",
                hint="without one the snapshot is file-system consistent",
            ) from None  # fmt: skip
        except OSError as error:
            raise ScriptConfigError(
                CONFIG_PARSING, f"cannot read the configuration {name}: {error.strerror}"
            ) from error
        try:
            _check_file(file, name, owner, rules)
            data = _read_all(file, name)
        finally:
            os.close(file)
        return cls.parse(data, behaviour=rules)

    @classmethod
    def parse(cls, data: bytes, *, behaviour: str | Behaviour = "documented") -> ScriptConfig:
        """The configuration in the bytes of a file.

        Raises
        ------
        ScriptConfigError
            With the code 305, or 304 where the extension reports that.
        """
        rules = behaviour_of(behaviour)
        if len(data) > CONFIG_SIZE:
            raise ScriptConfigError(CONFIG_PARSING, f"the configuration has over {CONFIG_SIZE} B")
        return _Reader(rules).read(data)

    def location(self, role: str) -> str:
        """The path of the script of a role, ``pre`` or ``post``."""
        return self.pre_location if role == "pre" else self.post_location

    def params(self, role: str) -> tuple[str, ...]:
        """The arguments of a role's script."""
        return self.pre_params if role == "pre" else self.post_params

    def retries(self, role: str) -> int:
        """How often a role's script is tried again."""
        return self.pre_retries if role == "pre" else self.post_retries


def check_scripts(
    config: ScriptConfig, *, owner: int = 0, behaviour: str | Behaviour = "documented"
) -> tuple[int, str]:
    """Whether both scripts may be run: 0, or the code of the first that may not, and why.

    Parameters
    ----------
    config : ScriptConfig
    owner : int
        The user that must own them.
    behaviour : str or Behaviour

    Returns
    -------
    (int, str)
        302 or 303: nothing at the location, or no full path; 306 or 307: owner or permission.
    """
    rules = behaviour_of(behaviour)
    for offset, role in enumerate(("pre", "post")):
        location = config.location(role)
        name = f"the {role}-script {quoted(location)}"
        if not Path(location).is_absolute():
            return 302 + offset, f"{name} is no full path"
        try:
            found = Path(location).stat()
        except (OSError, ValueError):
            return 302 + offset, f"there is no {name.removeprefix('the ')}"
        if not stat.S_ISREG(found.st_mode):
            return 302 + offset, f"{name} is no file"
        if found.st_mode & _OTHERS:
            return 306 + offset, f"{name} has permission {_permission(found)}, not 700"
        if rules.script_is_executed and not found.st_mode & stat.S_IXUSR:
            return 306 + offset, f"{name} has permission {_permission(found)}, not 700"
        if found.st_uid != owner:
            return 306 + offset, f"{name} belongs to user {found.st_uid}, not {owner}"
    return 0, ""


def _permission(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):03o}"


def _check_file(file: int, name: str, owner: int, rules: Behaviour) -> None:
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode):
        raise ScriptConfigError(CONFIG_MISSING, f"the configuration {name} is no file")
    if found.st_mode & (_OTHERS | stat.S_IXUSR):
        raise ScriptConfigError(
            CONFIG_PERMISSION,
            f"the configuration {name} has permission {_permission(found)}, not 600",
            hint="only its owner may read and write it, nobody may execute it: chmod 600",
        )
    if found.st_uid != owner:
        raise ScriptConfigError(
            CONFIG_OWNER if rules.owner_has_a_code else CONFIG_PERMISSION,
            f"the configuration {name} belongs to user {found.st_uid}, not {owner}",
            hint=f"chown {owner}",
        )


def _read_all(file: int, name: str) -> bytes:
    """What the file holds, up to a byte too many."""
    data = b""
    try:
        while len(data) <= CONFIG_SIZE and (more := os.read(file, CONFIG_SIZE + 1 - len(data))):
            data += more
    except OSError as error:
        raise ScriptConfigError(
            CONFIG_PARSING, f"cannot read the configuration {name}: {error.strerror}"
        ) from error
    return data


class _Reader:
    """Turns the JSON into a `ScriptConfig`, field by field."""

    def __init__(self, rules: Behaviour) -> None:
        self._rules = rules
        self._notes: list[str] = []

    def read(self, data: bytes) -> ScriptConfig:
        found: dict[str, Any] = {} if self._rules.timeout_is_30 else {"timeout_s": 10}
        for name, value in self._object(data).items():
            if name in _FIELDS:
                attribute, convert = _FIELDS[name]
                found[attribute] = convert(self, name, value)
            else:
                self._unknown(name)
        for name in ("preScriptLocation", "postScriptLocation"):
            if _FIELDS[name][0] not in found:
                raise self._wrong(f"the configuration has no {name}")
        if found.get("plugin_name", "ScriptRunner") != "ScriptRunner":
            self._note(f"pluginName is {quoted(found['plugin_name'])}, not 'ScriptRunner'")
        return ScriptConfig(**found, notes=tuple(self._notes))

    def _object(self, data: bytes) -> dict[str, Any]:
        try:
            value = json.loads(
                data.decode("utf-8"), object_pairs_hook=self._pairs, parse_constant=self._constant
            )
        except (ValueError, RecursionError) as error:
            why = str(error) or type(error).__name__
            raise self._wrong(f"the configuration is no JSON: {why[:200]}") from None
        if not isinstance(value, dict):
            raise self._wrong(f"the configuration is {quoted(value)}, no object", unforeseen=True)
        return value

    def _pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value: dict[str, Any] = {}
        for name, each in pairs:
            if name in value:
                if self._rules.repeated_fields_refused:
                    raise self._wrong(f"the configuration gives {quoted(name)} twice")
                self._note(f"{quoted(name)} is given twice: the last one counts")
            value[name] = each
        return value

    def _constant(self, name: str) -> Any:
        raise self._wrong(f"{name} is no JSON")

    def _unknown(self, name: str) -> None:
        near = difflib.get_close_matches(name[:64], _FIELDS, 1)
        meant = f": is {near[0]} meant?" if near else ""
        self._note(f"the field {quoted(name)} is not known and ignored{meant}")

    def _note(self, text: str) -> None:
        if len(self._notes) < _NOTES:
            self._notes.append(text)

    def _wrong(self, message: str, *, unforeseen: bool = False) -> ScriptConfigError:
        other = unforeseen and not self._rules.wrong_timeout_is_305
        code = CONFIG_HOST_PARSING if other else CONFIG_PARSING
        hint = "fill the template in again" if not other else CODES[code].meaning
        return ScriptConfigError(code, message, hint=hint)

    def text(self, name: str, value: Any) -> str:
        if not isinstance(value, str) or "\0" in value:
            raise self._wrong(f"{name} is {quoted(value)}, no text")
        try:
            os.fsencode(value)
        except UnicodeEncodeError:  # half of a pair of surrogates, as JSON can write it
            raise self._wrong(f"{name} is {quoted(value)}, no text") from None
        return value

    def texts(self, name: str, value: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise self._wrong(f"{name} is {quoted(value)}, no list of texts")
        return tuple(self.text(name, each) for each in value)

    def count(self, name: str, value: Any) -> int:
        if type(value) is not int or not 0 <= value <= _MANY_RETRIES:
            raise self._wrong(f"{name} is {quoted(value)}, no number of retries")
        return value

    def timeout(self, name: str, value: Any) -> float:
        whole = self._rules.wrong_timeout_is_305
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise self._wrong(f"{name} is {quoted(value)}, no number of seconds", unforeseen=True)
        if whole and value < 1:
            raise self._wrong(f"{name} is {quoted(value)}, less than a second")
        if value > MAX_TIMEOUT_S:
            self._note(f"{name} is {quoted(value)}: it is cut to {MAX_TIMEOUT_S}")
        return max(min(value, MAX_TIMEOUT_S), 0)

    def flag(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool) and self._rules.flags_are_booleans:
            raise self._wrong(
                f"{name} is {quoted(value)}, neither true nor false",
            )
        return bool(value)

    def poll(self, name: str, value: Any) -> int:
        if type(value) is not int:
            raise self._wrong(f"{name} is {quoted(value)}, no whole number")
        if not 1 <= value <= 5:
            self._note(f"{name} is {quoted(value)}, not 1 to 5: it is 3")
            return 3
        return value


_FIELDS: Final[dict[str, tuple[str, Callable[[_Reader, str, Any], Any]]]] = {
    "pluginName": ("plugin_name", _Reader.text),
    "preScriptLocation": ("pre_location", _Reader.text),
    "postScriptLocation": ("post_location", _Reader.text),
    "preScriptParams": ("pre_params", _Reader.texts),
    "postScriptParams": ("post_params", _Reader.texts),
    "preScriptNoOfRetries": ("pre_retries", _Reader.count),
    "postScriptNoOfRetries": ("post_retries", _Reader.count),
    "timeoutInSeconds": ("timeout_s", _Reader.timeout),
    "continueBackupOnFailure": ("continue_on_failure", _Reader.flag),
    "fsFreezeEnabled": ("freeze_enabled", _Reader.flag),
    "ScriptsExecutionPollTimeSeconds": ("poll_s", _Reader.poll),
    "appName": ("app_name", _Reader.text),
}
"""The fields of the file: the attribute of `ScriptConfig` that each becomes, and how."""
