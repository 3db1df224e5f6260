"""Commands that run experiments: studies and crash tests."""

from __future__ import annotations

import argparse

from vmbk.cli.reply import Reply, grid
from vmbk.errors import IntegrityError


def study(args: argparse.Namespace) -> Reply:
    """Run a study."""
    from vmbk.study_job import run_study

    done = run_study(args.config, out=args.out)
    reply = done.to_dict()
    if not done.verified:
        reply["_exit"] = IntegrityError.exit_code
    return reply | {"_text": done.text()}


def crash(args: argparse.Namespace) -> Reply:
    """Cut the power of a capture and judge what is left."""
    from vmbk.consistency import crash_test
    from vmbk.progress import progress
    from vmbk.trace import open_trace

    trace = open_trace(args.trace)
    with progress(f"crash {args.trace}", args.states, unit="states") as advance:
        found = crash_test(
            trace, model=args.model, states=args.states, seed=args.seed, on_progress=advance
        )
    reply = found.to_dict()
    rows = [[o["filesystem"], o["database"], o["count"]] for o in reply["outcomes"]]
    text = f"{reply['states']} states\n{grid(['filesystem', 'database', 'count'], rows)}"
    return reply | {"_text": text}
