"""Every error that vmbk raises on purpose.

One hierarchy: each class owns the exit code of the command line and may carry a hint, which is
printed under the message and says what to do next. Exit codes: 2 bad usage or input, 3 integrity
failure, 1 anything else.
"""

from __future__ import annotations


class VmbkError(Exception):
    """Something that the user can understand and act on.

    Parameters
    ----------
    message : str
        What happened, with the offending value quoted.
    hint : str, optional
        What to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class InputError(VmbkError):
    """An argument, a file or a configuration is not what was asked for."""

    exit_code = 2


class UnknownFormatError(InputError):
    """A trace is in no format that vmbk knows."""


class TraceFormatError(InputError):
    """A trace claims a format and breaks its rules: truncated, inconsistent or damaged."""


class OutOfRangeError(InputError):
    """A request or an access reaches past the end of its volume or disk."""


class TargetTooSmallError(InputError):
    """A disk, device or file system has no room for what is to be written on it."""


class WrongKeyError(InputError):
    """The key does not belong to this vault."""


class NotFoundError(InputError):
    """A vault, point, disk, data set or file does not exist."""


class IntegrityError(VmbkError):
    """Stored bytes are not what was stored: a digest or an authentication tag does not match."""

    exit_code = 3


class StorageError(VmbkError):
    """The operating system refused a read or a write (no space, I/O error, permission)."""


class BusyError(VmbkError):
    """A vault, VM or disk is in use by another process."""


class ChangedDuringBackupError(VmbkError):
    """A disk was written while it was being backed up, so no point in time can be claimed."""


class ToolMissingError(VmbkError):
    """A program that this step needs is not installed."""

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(
            f"the program {tool!r} is not installed",
            hint=f"on Debian or Ubuntu: apt-get install {package}",
        )
        self.tool = tool
        self.package = package
