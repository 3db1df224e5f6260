"""Commands that make traces from declarations, and declarations from traces."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from vmbk.cli.reply import Reply, grid
from vmbk.cli.trace import _check_trace_name, _imported
from vmbk.errors import InputError, NotFoundError
from vmbk.units import quoted


def synth(args: argparse.Namespace) -> Reply:
    """Make the trace that a spec declares."""
    from vmbk.progress import progress
    from vmbk.trace.store import check_target, write_trace
    from vmbk.trace.synthesis import Spec, synthesise
    from vmbk.trace.synthesis.generate import SOURCE_FORMAT

    _check_trace_name(args.output)
    check_target(args.output)
    spec = Spec.load(args.spec)
    if args.seed is not None:
        spec = replace(spec, seed=args.seed)
    if args.requests is not None:
        spec = spec.with_requests(args.requests)
    with progress(f"synthesise {args.spec}", spec.requests, unit="requests") as advance:
        trace = synthesise(spec, on_progress=advance)
    write_trace(trace, args.output)
    return _imported(trace, 0, SOURCE_FORMAT, args.output)


def fit(args: argparse.Namespace) -> Reply:
    """Derive a spec from a trace."""
    from vmbk.trace import open_trace
    from vmbk.trace.store import replacing
    from vmbk.trace.synthesis import fit as derive

    target = Path(args.output)
    if target.suffix != ".toml":
        raise InputError(f"{quoted(args.output)} names no spec", hint="end it in .toml")
    if not target.parent.is_dir():
        raise NotFoundError(f"there is no folder {quoted(str(target.parent))} to write into")
    fitted = derive(open_trace(args.trace), seed=args.seed)
    with replacing(target) as temporary:
        temporary.write_text(fitted.spec.to_toml(), encoding="utf-8")
    text = grid(["metric", "original", "synthetic", "difference"], fitted.shown())
    return {
        **fitted.to_dict(),
        "requests": fitted.spec.requests,
        "volumes": len(fitted.spec.volumes),
        "output": args.output,
        "_text": f"{text}\n\n{args.output}: make the trace with vmbk trace synth {args.output}",
    }
