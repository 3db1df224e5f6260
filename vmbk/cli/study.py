"""Commands that run experiments: studies and crash tests."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from vmbk.cli.reply import Reply, grid
from vmbk.errors import InputError, IntegrityError

if TYPE_CHECKING:
    from vmbk.trace import Trace


def study(args: argparse.Namespace) -> Reply:
    """Run a study."""
    from vmbk.study_job import run_study

    jobs = args.jobs if args.jobs != 1 else None  # one after the other needs no other process
    done = run_study(args.config, out=args.out, executor=jobs, store=args.store)
    reply = done.to_dict()
    if not done.verified:
        reply["_exit"] = IntegrityError.exit_code
    return reply | {"_text": done.text()}


def crash(args: argparse.Namespace) -> Reply:
    """Cut the power of a capture and judge what is left."""
    from vmbk.consistency import VaultMarks, crash_test
    from vmbk.progress import progress
    from vmbk.trace import open_trace

    trace = open_trace(args.trace)
    if VaultMarks.read(trace).vault_row is not None:
        return _vault_crash(args, trace)
    with progress(f"crash {args.trace}", args.states, unit="states") as advance:
        found = crash_test(
            trace, model=args.model, states=args.states, seed=args.seed, on_progress=advance,
            boot=args.boot, command=_words(args.check),
        )  # fmt: skip
    reply = found.to_dict()
    rows = [[o["filesystem"], o["database"], o["count"]] for o in reply["outcomes"]]
    text = f"{reply['states']} states, {reply['commits_lost']} acknowledged commits lost\n"
    text += grid(["filesystem", "database", "count"], rows)
    for name in ("boot", "command"):
        if name in reply:
            text += f"\n{name}: " + ", ".join(f"{n} {what}" for what, n in reply[name].items())
    return reply | {"_text": text}


def _words(command: str | None) -> list[str] | None:
    """A command as a shell would split it; there is no shell."""
    if command is None:
        return None
    try:
        return shlex.split(command)
    except ValueError as error:
        raise InputError(f"--check {command!r} cannot be split into words: {error}") from error


def _vault_crash(args: argparse.Namespace, trace: Trace) -> Reply:
    """The same for the disk of a vault: does every acknowledged recovery point restore?"""
    from vmbk.consistency import vault_crash_test
    from vmbk.progress import progress

    if args.boot or args.check:
        raise InputError("the disk of a vault is not booted, nor judged by another program")
    with progress(f"crash {args.trace}", args.states, unit="states") as advance:
        found = vault_crash_test(
            trace, model=args.model, states=args.states, seed=args.seed, resume=1,
            on_progress=advance,
        )  # fmt: skip
    reply = found.to_dict()
    reply["outcomes"] = [{**o, "database": "none"} for o in reply["outcomes"]]
    rows = [[o["filesystem"], o["vault"], o["count"]] for o in reply["outcomes"]]
    text = f"{reply['states']} states, {reply['points_lost']} acknowledged recovery points lost\n"
    text += grid(["filesystem", "vault", "count"], rows)
    return reply | {"_text": text}
