"""Block events as Linux's tracefs prints them, also by trace-cmd or perf.

``task-pid [cpu] flags seconds: event: maj,min rwbs [bytes] [(command)] sector + sectors [priority]
[[process]]``, sectors of 512 bytes; lines that begin with ``#`` and other events are skipped. The
events that are counted are ``block_bio_queue``, ``block_rq_issue`` and ``block_rq_complete``, one
of them (see `block_layer`). Kernels since 6.6 write a priority, such as ``none,0,0``, behind the
extent. A passthrough command has no sectors, and is no request. A volume is a device, named
``maj,min``. A line that tells of lost events is a bad row: requests are missing there.

Source: Linux, ``include/trace/events/block.h`` and ``Documentation/trace/ftrace.rst``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import numpy as np

from vmbk.trace.formats.block_layer import counted_action, text_events
from vmbk.trace.formats.reading import Batch, Tally, matched
from vmbk.trace.formats.source import CHUNK, Source

NAME: Final = "tracefs"
DOC: Final = "block events of tracefs, trace-cmd or perf"
EVENTS: Final = ("block_bio_queue", "block_rq_issue", "block_rq_complete")

_LINE: Final = (
    r".*?[ \t]\[[0-9]+\][ \t]+(?:[^ \t:]+[ \t]+)?(?<time>[0-9]+\.[0-9]+): "
    r"[ \t]*(?:[a-z]+:)?(?<event>[a-zA-Z_][a-zA-Z0-9_.]*):[ \t]*(?<rest>.*)$"
)
_REST: Final = (
    r"^(?<dev>[0-9]+,[0-9]+) (?<rwbs>[A-Z]+) (?:[0-9]+ )?(?:\([^)]*\) )?"
    r"(?<sector>[0-9]+) \+ (?<count>[0-9]+)(?: .*)?$"
)
_PROSE: Final = r"^(?:#|cpus=|version = )"
_EVENT: Final = rb"%b: [ \t]*[0-9]+,[0-9]+ "
_ANY: Final = re.compile(
    rb"[^\n]*[ \t]\[[0-9]+\][ \t][^\n]*[0-9]\.[0-9]+:[ \t]+(?:block:)?block_[a-z_]+: "
)


def detect(head: bytes) -> bool:
    """Whether a file that begins so is one."""
    lines = [line for line in head.split(b"\n", 400)[:400] if line.strip()]
    if lines and lines[0].startswith(b"# tracer:"):
        return True
    return any(_ANY.match(line[:500]) is not None for line in lines)


def read(source: Source, tally: Tally, size: int = CHUNK) -> Iterator[Batch]:
    """Requests of a file."""
    starts = [_EVENT % event.encode() for event in EVENTS]
    wanted = EVENTS[counted_action(source, starts, size)]
    for rows, others in matched(source, tally, _LINE, size=size):
        others = others.without(others["line"].str.contains(_PROSE).to_numpy())
        others.without_bad(np.ones(len(others), np.bool_), "no event")
        rows = rows.without((rows["event"] != wanted).to_numpy())
        parts = rows["rest"].str.extract_groups(_REST).struct.unnest()
        rows = rows.with_columns({name: parts[name] for name in parts.columns})
        fits = parts["count"].is_not_null().to_numpy()
        yield text_events(rows.without_bad(~fits, "no extent as it should be"), tally)
