"""From a declared workload to the tables that the kernels draw from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import InputError
from vmbk.trace.schema import Flag, Op
from vmbk.trace.synthesis.places import written_units
from vmbk.trace.synthesis.spec import VolumeSpec, Workload
from vmbk.trace.synthesis.tables import Choices, Ints, Ranks, mix
from vmbk.trace.synthesis.working_set import (
    Layout,
    expected_line,
    lay_out_working_set,
    operations,
    size_shares,
    solve_working_set,
)
from vmbk.units import format_size, quoted


@dataclass(frozen=True)
class Kinds:
    """The kinds of requests of a volume: all that is the same for each request of a kind.

    A kind is an operation, a pattern, a stream and a size. Columns have one value a kind; their
    meaning is that of the arguments of `vmbk.kernels.synthesis`.
    """

    choices: Choices
    op: NDArray[np.int8]
    length: Ints
    flags: NDArray[np.uint8]
    pattern: Ints
    start: Ints
    slots: Ints
    slot_bits: Ints
    step: Ints
    units: Ints
    counter: Ints
    weight: Ints
    counters: int


@dataclass(frozen=True)
class Plan:
    """All that is needed to make any slice of a volume's requests."""

    requests: int
    key: int
    kinds: Kinds
    layout: Layout
    hot_slots: int
    hot_threshold: int
    ranks: Choices
    rank_low: Ints
    rank_count: Ints
    alignment: int
    shift: int
    working_set: int
    """Bytes."""


def plan_volume(volume: VolumeSpec, number: int, seed: int) -> Plan:
    """Prepare a volume.

    Raises
    ------
    InputError
        If the declared quantities cannot hold together.
    """
    try:
        return _plan(volume, mix(seed, number))
    except InputError as error:
        raise InputError(
            f"volume {quoted(volume.name)}: {error.message}", hint=error.hint
        ) from None


def _plan(volume: VolumeSpec, key: int) -> Plan:
    work, room = volume.workload, (volume.size - volume.workload.shift) // volume.workload.alignment
    need, granule = _units(work)
    if need > room:
        raise InputError(
            f"a request of {format_size(work.largest)} does not fit in {format_size(volume.size)}"
        )
    line = work.working_set // work.alignment

    def assemble(requests: int, line: int) -> Plan:
        return _assemble(work, key, requests, line, room, need, granule)

    if work.rewrite_ratio:
        line = solve_working_set(
            work, need, room, granule, lambda *sizes: written_units(assemble(*sizes))
        )
    if line < need:
        raise InputError(
            f"the working set of {format_size(line * work.alignment)} holds no request of "
            f"{format_size(work.largest)}",
            hint="declare a larger working set or smaller sizes",
        )
    return assemble(work.requests, line)


def expected_working_set(volume: VolumeSpec) -> int:
    """The working set in bytes of which the declared rewrite ratio is to be expected.

    Unlike the one that is found by trials, it takes no time.

    Raises
    ------
    InputError
        If there is none.
    """
    work = volume.workload
    room = (volume.size - work.shift) // work.alignment
    need, granule = _units(work)
    return expected_line(work, need, room, granule) * work.alignment


def _units(work: Workload) -> tuple[int, int]:
    """Units of the largest request, and of a place of zipf and hot_cold."""
    need = -(-work.largest // work.alignment)
    return need, max(-(-work.mix.granule // work.alignment), 1) if work.mix.granule else need


def _assemble(
    work: Workload, key: int, requests: int, line: int, room: int, need: int, granule: int
) -> Plan:
    """The plan of so many requests over so many units."""
    granule = min(granule, line)
    places = line // granule
    hot = min(max(round(places * work.mix.hot_space), 1), places)
    ranks = Ranks.zipf(places, work.mix.theta)
    return Plan(
        requests=requests,
        key=key,
        kinds=_kinds(work, line, need, granule),
        layout=lay_out_working_set(work, line, room, need, mix(key, 1)),
        hot_slots=hot,
        hot_threshold=1 << 32 if hot == places else round(work.mix.hot_access * (1 << 32)),
        ranks=Choices.of(ranks.weight),
        rank_low=np.array(ranks.low, np.int64),
        rank_count=np.array(ranks.count, np.int64),
        alignment=work.alignment,
        shift=work.shift,
        working_set=line * work.alignment,
    )


def _kinds(work: Workload, line: int, need: int, granule: int) -> Kinds:
    """Every kind with its share of all requests, and the part of the line that it goes to."""
    from vmbk.kernels import synthesis as kernels

    share_of, patterns = operations(work), work.mix.shares()
    writes, reads = size_shares(work.sizes), size_shares(work.read_sizes or work.sizes)
    around = max(int(line * work.mix.stream_space), need)
    streams = min(work.mix.streams, around // need)
    region = around // streams
    run = min(-(-work.mix.run // work.alignment) or region, region)
    sweeps = _sweeps([(-(-length // work.alignment), share) for length, share in writes], line)
    rows: list[dict[str, Any]] = []

    def add(op: Op, share: float, length: int, flags: int = 0, **columns: int) -> None:
        units = -(-length // work.alignment)
        # Counter 0 is for kinds that count nothing.
        row = {"pattern": kernels.NOWHERE, "start": 0, "slots": 1, "step": 1}
        row |= {"counter": 0, "weight": 0} | columns
        rows.append(
            row | {"op": op, "share": share, "length": length, "flags": flags, "units": units}
        )

    def add_all(op: Op, share: float, sizes: list[tuple[int, float]], flags: int = 0) -> None:
        for number, (length, part) in enumerate(sizes):
            of, units = share * part, -(-length // work.alignment)
            for s in range(streams):
                add(op, of * patterns["sequential"] / streams, length, flags,
                    pattern=kernels.STREAM, start=s * region, slots=region // run, step=run,
                    counter=1 + 2 * s + (op == Op.READ), weight=units)  # fmt: skip
            if op == Op.WRITE:
                start, slots = sweeps[number]
                add(op, of * patterns["uniform"], length, flags,
                    pattern=kernels.SWEEP, start=start, slots=slots, step=units,
                    counter=1 + 2 * streams + number, weight=1)  # fmt: skip
            else:
                add(op, of * patterns["uniform"], length, flags,
                    pattern=kernels.ANYWHERE, slots=line - units + 1)  # fmt: skip
            for name, pattern in (("zipf", kernels.ZIPF), ("hot_cold", kernels.HOT_COLD)):
                add(op, of * patterns[name], length, flags,
                    pattern=pattern, slots=line // granule, step=granule)  # fmt: skip

    add_all(Op.READ, share_of[Op.READ], reads)
    add_all(Op.WRITE, share_of[Op.WRITE] * (1 - work.fua_share), writes)
    add_all(Op.WRITE, share_of[Op.WRITE] * work.fua_share, writes, int(Flag.FUA))
    add(Op.FLUSH, share_of[Op.FLUSH], 0)
    for length, part in size_shares(work.discard_sizes or work.sizes) if work.discard_every else ():
        units = -(-length // work.alignment)
        add(Op.DISCARD, share_of[Op.DISCARD] * part, length,
            pattern=kernels.ANYWHERE, slots=line - units + 1)  # fmt: skip
    rows = [row for row in rows if row["share"] > 0]
    # In the order of operations and sizes: even draws from a sorted table keep their sums.
    rows.sort(key=lambda row: (row["op"], row["length"]))

    def column(name: str, dtype: Any = np.int64) -> NDArray[Any]:
        return np.array([int(row[name]) for row in rows], dtype)

    return Kinds(
        choices=Choices.of([row["share"] for row in rows]),
        op=column("op", np.int8),
        flags=column("flags", np.uint8),
        slot_bits=np.array([(row["slots"] - 1).bit_length() for row in rows], np.int64),
        counters=1 + 2 * streams + len(writes),
        **{
            name: column(name)
            for name in (
                "length",
                "pattern",
                "start",
                "slots",
                "step",
                "units",
                "counter",
                "weight",
            )
        },
    )


def _sweeps(sizes: list[tuple[int, float]], line: int) -> list[tuple[int, int]]:
    """First unit and slots of the part of the line that writes of each size sweep over.

    Parts are in proportion to the bytes written, so that all are done at the same time.
    """
    total = math.fsum(units * share for units, share in sizes)
    parts, at = [], 0.0
    for units, share in sizes:
        start = min(int(at), line - units)
        at += line * (units * share / total)
        parts.append((start, max((min(int(at), line) - start) // units, 1)))
    return parts
