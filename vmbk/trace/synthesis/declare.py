"""Specs as TOML: short to write, strict to read.

::

    duration = "24h"

    [[volumes]]
    name = "data"
    size = "64GiB"

    [workload]
    rate = 100                  # requests a second; or requests = 8_640_000
    working_set = "10%"         # of the volume; or a size; or rewrite_ratio = 3

is a whole spec. ``[workload]`` holds for every volume; what a volume's own ``[volumes.workload]``
says replaces it, key by key. All other keys are the attributes of `Workload`, `Mix`, `Burst` and
`Content`, with sizes and durations as people write them. Beyond those attributes, ``diurnal`` may
be ``{amplitude = 0.8, peak = 14}``, a cosine with its peak at an hour, and ``extents`` may be one
size.
"""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from vmbk.errors import InputError, NotFoundError
from vmbk.trace.synthesis.spec import (
    MOST_WEIGHTS,
    Burst,
    Content,
    Mix,
    Spec,
    VolumeSpec,
    Weights,
    Workload,
    check,
)
from vmbk.units import KIB, parse_duration, parse_size, quoted

_SHIPPED: Final = Path(__file__).parent / "specs"
_MOST_BYTES: Final = 4 << 20
_ALTERNATIVES: Final = (("requests", "rate"), ("working_set", "rewrite_ratio"))
"""Keys of a workload that say the same thing in two ways."""


def specs() -> tuple[str, ...]:
    """Names of the shipped specs."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.toml")))


def load(name: str | os.PathLike[str]) -> Spec:
    """A shipped spec by name, or one's own by the path of its TOML file; see `Spec.load`."""
    text = os.fspath(name)
    if not text.endswith(".toml"):
        if text not in specs():
            raise NotFoundError(
                f"there is no spec {quoted(text)}",
                hint=f"shipped are {', '.join(specs())}; your own is named by its .toml file",
            )
        text = str(_SHIPPED / f"{text}.toml")
    try:
        if not os.path.lexists(text):
            raise NotFoundError(f"there is no file {quoted(text)}")
        if not Path(text).is_file():
            raise InputError(f"the spec {quoted(text)} is not a regular file")
        with Path(text).open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        check(len(content) <= _MOST_BYTES, "the spec", text, f"at most {_MOST_BYTES:,} bytes long")
        declared = tomllib.loads(content.decode())
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or not TOML
        raise InputError(f"cannot read the spec {quoted(text)}: {error}") from error
    return from_dict(declared)


def from_dict(declared: dict[str, Any]) -> Spec:
    """A spec as TOML gives it; see `Spec.from_dict`."""
    table = _table("the spec", declared)
    _known("the spec", table, ("doc", "seed", "duration", "volumes", "workload", "content"))
    for needed in ("duration", "volumes"):
        if needed not in table:
            raise InputError(f"the spec lacks {needed}", hint=f"see {__name__} for an example")
    duration = _duration("duration", table["duration"])
    shared = _table("workload", table.get("workload", {}))
    volumes = table["volumes"]
    check(isinstance(volumes, list), "volumes", volumes, "a list of tables: [[volumes]]")
    return Spec(
        duration=duration,
        volumes=tuple(_volume(i, volume, shared, duration) for i, volume in enumerate(volumes)),
        seed=table.get("seed", 0),
        content=_fill(Content, "content", table.get("content", {}), {}),
        doc=table.get("doc", ""),
    )


def _volume(number: int, declared: Any, shared: dict[str, Any], duration: int) -> VolumeSpec:
    where = f"volumes[{number}]"
    table = _table(where, declared)
    _known(where, table, ("name", "size", "sector_size", "workload"))
    if "size" not in table:
        raise InputError(f"{where} lacks size", hint='size = "64GiB"')
    name = table.get("name", f"disk{number}")
    size = _size(f"{where}.size", table["size"])
    own = _table(f"{where}.workload", table.get("workload", {}))
    merged = dict(shared)
    for pair in _ALTERNATIVES:
        if any(key in own for key in pair):
            for key in pair:
                merged.pop(key, None)
    merged.update(own)
    try:
        workload = _workload(merged, size, duration)
        return VolumeSpec(name, size, workload, table.get("sector_size", 512))
    except InputError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from None


def _workload(table: dict[str, Any], size: int, duration: int) -> Workload:
    _known("workload", table, (*(f.name for f in fields(Workload)), "rate"))
    table = dict(table)
    if ("requests" in table) == ("rate" in table):
        raise InputError(
            "a workload needs its number of requests or its rate, one of the two",
            hint="requests = 1_000_000, or rate = 100 (a second)",
        )
    if "rate" in table:
        rate = _real("rate", table.pop("rate"))
        check(0 <= rate <= 1e9, "rate", rate, "a number of requests a second from 0 to 1e9")
        table["requests"] = round(rate * (duration / 1e9))
    if "working_set" not in table and "rewrite_ratio" not in table:
        table["working_set"] = "10%"
    readers: dict[str, Callable[[str, Any], Any]] = {
        "burst": lambda name, value: _fill(Burst, name, value, {"length": _duration}),
        "mix": lambda name, value: _fill(Mix, name, value, {"run": _size, "granule": _size}),
        "diurnal": _diurnal,
        "profile": _reals,
        "gaps": _reals,
        "sizes": _weights,
        "read_sizes": _weights,
        "discard_sizes": _weights,
        "alignment": _size,
        "shift": _size,
        "working_set": lambda name, value: _part(name, value, size),
        "extents": lambda name, value: tuple(
            _size(name, item) for item in (value if isinstance(value, list) else [value])
        ),
    }
    made: Workload = _fill(Workload, "workload", table, readers)
    return made


def _fill(kind: Any, where: str, value: Any, readers: dict[str, Callable[[str, Any], Any]]) -> Any:
    """Settings of a kind from a table; numbers where a default is a real number become real."""
    table = _table(where, value)
    _known(where, table, tuple(f.name for f in fields(kind)))
    given = {}
    for f in fields(kind):
        if f.name in table:
            read = readers.get(f.name) or (_real if f.type == "float" else lambda _, value: value)
            given[f.name] = read(
                f.name if where == "workload" else f"{where}.{f.name}", table[f.name]
            )
    return kind(**given)


def _table(where: str, value: Any) -> dict[str, Any]:
    check(isinstance(value, dict), where, value, "a table")
    return dict(value)


def _known(where: str, table: dict[str, Any], names: tuple[str, ...]) -> None:
    unknown = sorted(str(key) for key in table if key not in names)
    if unknown:
        raise InputError(
            f"{where} has no key {quoted(unknown[0])}", hint=f"keys: {', '.join(sorted(names))}"
        )


def _real(name: str, value: Any) -> float:
    good = type(value) in (int, float) and -1e18 <= value <= 1e18
    check(good, name, value, "a number")
    return float(value)


def _reals(name: str, value: Any) -> tuple[float, ...]:
    good = isinstance(value, list) and len(value) <= MOST_WEIGHTS
    check(good, name, value, f"a list of at most {MOST_WEIGHTS:,} numbers")
    return tuple(_real(name, item) for item in value)


def _size(name: str, value: Any) -> int:
    check(type(value) in (str, int), name, value, "a size, such as 4096 or '64KiB'")
    try:
        return parse_size(value)
    except InputError as error:
        raise InputError(f"{name}: {error.message}", hint=error.hint) from None


def _duration(name: str, value: Any) -> int:
    check(type(value) in (str, int, float), name, value, "a duration, such as '24h'")
    try:
        return parse_duration(value)
    except (InputError, OverflowError) as error:
        raise InputError(f"{name}: {str(error).splitlines()[0]}") from None


def _part(name: str, value: Any, whole: int) -> int:
    """A size, or a share of the whole."""
    if not isinstance(value, str) or not value.strip().endswith("%"):
        return _size(name, value)
    try:
        share = float(value.strip()[:-1]) / 100
    except ValueError:
        share = -1.0
    check(0 < share <= 1, name, value, "a share above 0% and up to 100%")
    return max(int(whole * share), 1)


def _weights(name: str, value: Any) -> Weights:
    if not isinstance(value, dict):
        check(type(value) in (str, int), name, value, "a size, or a table of sizes and weights")
        value = {str(value): 1.0}
    return tuple((_size(name, size), _real(f"{name}.{size}", w)) for size, w in value.items())


def _diurnal(name: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, dict):
        return _reals(name, value)
    _known(name, value, ("amplitude", "peak"))
    amplitude = _real(f"{name}.amplitude", value.get("amplitude", 0.5))
    peak = _real(f"{name}.peak", value.get("peak", 14))
    check(0 <= amplitude <= 1, f"{name}.amplitude", amplitude, "a number from 0 to 1")
    check(0 <= peak <= 24, f"{name}.peak", peak, "an hour from 0 to 24")
    # Rounded, so that the last bit of a machine's cosine does not show.
    angles = [2 * math.pi * (hour + 0.5 - peak) / 24 for hour in range(24)]
    return tuple(round(1 + amplitude * math.cos(angle), 6) for angle in angles)


# --- Writing -------------------------------------------------------------------------------------


def to_toml(spec: Spec) -> str:
    """The spec as TOML; see `Spec.to_toml`."""
    lines = [f"doc = {_text(spec.doc)}"] if spec.doc else []
    lines += [f"seed = {spec.seed}", f"duration = {_text(f'{spec.duration}ns')}", "", "[content]"]
    lines += [
        f"{f.name} = {_value(f.name, getattr(spec.content, f.name))}" for f in fields(Content)
    ]
    for volume in spec.volumes:
        lines += ["", "[[volumes]]", f"name = {_text(volume.name)}"]
        lines += [f"size = {_text(_exact(volume.size))}", f"sector_size = {volume.sector_size}"]
        lines += ["", "[volumes.workload]", *_settings(volume.workload)]
    return "\n".join(lines) + "\n"


def _settings(workload: Workload) -> list[str]:
    """Lines of a workload; what is as by default is left out, but for the number of requests."""
    default = Workload(requests=0, working_set=1)
    lines, tables = [], []
    for f in fields(Workload):
        value = getattr(workload, f.name)
        if value == getattr(default, f.name) and f.name not in ("requests", "working_set"):
            continue
        if f.name == "working_set" and not value:
            continue
        if isinstance(value, Burst | Mix):
            tables += ["", f"[volumes.workload.{f.name}]"]
            tables += [
                f"{g.name} = {_value(g.name, getattr(value, g.name))}" for g in fields(value)
            ]
        else:
            lines.append(f"{f.name} = {_value(f.name, value)}")
    return lines + tables


def _value(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if name.endswith("sizes"):
        return "{ " + ", ".join(f"{_text(_exact(s))} = {_number(w)}" for s, w in value) + " }"
    if name == "length":
        return _text(f"{value}ns")
    if name in ("working_set", "alignment", "shift", "run", "granule"):
        return _text(_exact(value))
    if isinstance(value, tuple):
        shown = (_text(_exact(v)) if name == "extents" else _number(v) for v in value)
        return f"[{', '.join(shown)}]"
    return _number(value) if isinstance(value, int | float) else _text(value)


def _number(value: float) -> str:
    """As TOML writes it; ``1e+16`` is allowed there."""
    return repr(value)


def _exact(size: int) -> str:
    """A size in the largest unit of which it is a whole number."""
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % KIB**power == 0:
            return f"{size // KIB**power}{unit}"
    return str(size)


def _text(text: str) -> str:
    # JSON's strings are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
