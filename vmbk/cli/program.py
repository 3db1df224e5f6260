"""One run of the program: from words to an answer, an exit code and nothing else.

Every command prints for people, or with ``--json`` exactly one JSON object on standard output.
Progress and messages go to standard error. Exit codes: 0 done, 2 bad usage or input, 3 integrity
failure, 1 anything else; 130 and 143 where SIGINT or SIGTERM ended it, 141 where whoever read the
output went away. No traceback reaches a user unless ``VMBK_DEBUG=1`` asks for it.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from typing import NoReturn

from vmbk.cli.parser import build_parser, check_output, wants_json
from vmbk.errors import StorageError, VmbkError
from vmbk.progress import interrupt

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Answer:
    """What a run of the program says, and with which exit code it ends."""

    code: int
    out: str = ""
    err: str = ""


class _Terminated(KeyboardInterrupt):
    """SIGTERM came; it ends whatever runs as Ctrl-C does."""


def _end(number: int, _: object) -> NoReturn:
    error = _Terminated if number == signal.SIGTERM else KeyboardInterrupt
    interrupt(error)
    raise error


def run(words: list[str]) -> Answer:
    """Run one command.

    Parameters
    ----------
    words : list of str
        The words after ``vmbk``.

    Returns
    -------
    Answer
        Whatever happens, except that ``VMBK_DEBUG=1`` raises errors anew.

    Raises
    ------
    KeyboardInterrupt
        If it is interrupted.
    """
    as_json = wants_json(words)
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):  # where argparse prints help and the version
            args = build_parser().parse_args(words)
        check_output(args)
        reply = args.run(args)
        text, code = reply.pop("_text", ""), reply.pop("_exit", 0)
        return Answer(code, json.dumps(reply, default=str) if as_json else text)
    except SystemExit:
        return Answer(0, printed.getvalue().rstrip("\n"))
    except Exception as error:
        if os.environ.get("VMBK_DEBUG") == "1":
            raise
        return _failed(_explained(error), as_json)


def _explained(error: Exception) -> VmbkError:
    if isinstance(error, VmbkError):
        return error
    if isinstance(error, OSError):
        where = f" {error.filename!r}" if error.filename else ""
        return StorageError(f"the operating system refused{where}: {error.strerror or error}")
    if isinstance(error, MemoryError):
        return VmbkError("out of memory", hint="use a smaller trace or disk")
    what = f"{type(error).__name__}: {error}"
    what = what if len(what) <= 500 else f"{what[:500]}…"
    return VmbkError(
        f"unexpected error: {what}, please report", hint="VMBK_DEBUG=1 shows where it comes from"
    )


def _failed(error: VmbkError, as_json: bool, code: int | None = None) -> Answer:
    code = error.exit_code if code is None else code
    body = {"error": error.message, "hint": error.hint, "exit_code": code}
    return Answer(code, json.dumps(body) if as_json else "", f"vmbk: {error}")


def _unraisable(caught: sys.UnraisableHookArgs) -> None:
    """Say nothing of a signal that came while an object was given up: it comes a second time."""
    if not isinstance(caught.exc_value, KeyboardInterrupt):
        sys.__unraisablehook__(caught)


def main() -> None:
    """Entry point of the ``vmbk`` program."""
    # NumPy's linear algebra starts a thread per processor, which spin while the program starts.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    _mend_streams()
    sys.unraisablehook = _unraisable
    words = sys.argv[1:]
    try:
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                signal.signal(number, _end)
        answer = run(words)
    except KeyboardInterrupt as error:
        code = 143 if isinstance(error, _Terminated) else 130
        interrupted = VmbkError(
            "interrupted", hint="nothing half done is left, nothing committed is lost"
        )
        answer = _failed(interrupted, wants_json(words), code)
    _ignore_signals()
    sys.exit(_deliver(answer))


def _ignore_signals() -> None:
    """From here on the answer is known: a signal must neither cut it short nor add a second one."""
    for number in _SIGNALS:
        with suppress(KeyboardInterrupt):  # one that came just now
            signal.signal(number, signal.SIG_IGN)
        signal.signal(number, signal.SIG_IGN)


def _mend_streams() -> None:
    """Make the standard streams safe to use, whatever state they were handed over in."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Closed: the next file that is opened would take its place, and a disk image would
            # get what a library or a child process writes to standard error.
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names hold any bytes, and not every terminal has every letter.
            stream.reconfigure(errors="backslashreplace")


def _deliver(answer: Answer) -> int:
    """Print an answer.

    Returns
    -------
    int
        The exit code; that the answer could not be printed counts where nothing else failed.
    """
    if answer.err:
        _complain(answer.err)
    if not answer.out:
        return answer.code
    try:
        if sys.stdout is None:
            raise OSError("it is closed")
        print(answer.out, flush=True)
    except BrokenPipeError:  # whoever read our output has gone away
        _discard_output()
        return answer.code or 141
    except (OSError, ValueError) as error:
        _discard_output()
        reason = error.strerror if isinstance(error, OSError) else None
        _complain(f"vmbk: cannot write to standard output: {reason or error}")
        return answer.code or 1
    return answer.code


def _complain(text: str) -> None:
    if sys.stderr is not None:  # print would take standard output instead
        with suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def _discard_output() -> None:
    """What is left in the buffer goes nowhere, so that the interpreter's exit does not fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
