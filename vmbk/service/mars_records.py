"""What the documents say of the MARS agent, and what one backup by it did."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from vmbk.display import key_values
from vmbk.errors import InputError
from vmbk.service.fields import Fields
from vmbk.units import format_duration, format_size


@dataclass(frozen=True)
class MarsRules:
    """What the documents say of the agent; ``mars.toml`` has the source of each.

    Attributes
    ----------
    systems : tuple of str
        Operating systems that it runs on.
    consistency : str
        The label of its points: it asks no application's VSS writer.
    a_day : int
        Backups of a volume on one day at most.
    volume_most : int
        Bytes of the largest volume.
    cache_least, cache_wanted : float
        Share of the data that the cache folder must have free, and should have.
    """

    systems: tuple[str, ...]
    consistency: str
    a_day: int
    volume_most: int
    cache_least: float
    cache_wanted: float

    @classmethod
    def parse(cls, table: Any, name: str) -> MarsRules:
        """Read them from a declaration of which each field is a table of value and source."""
        keys = tuple(cls.__dataclass_fields__)
        fields = {k: Fields(v, f"{name}.{k}", ("value", "source")) for k, v in table.items()}
        Fields(table, name, keys)
        for key in keys:
            if key not in fields:
                raise InputError(f"{name}.{key} is missing")
            fields[key].text("source")
        return cls(
            systems=fields["systems"].words("value"),
            consistency=fields["consistency"].choice("value", ("filesystem", "crash")),
            a_day=fields["a_day"].whole("value", 1, 1000),
            volume_most=fields["volume_most"].size("value", least=1),
            cache_least=fields["cache_least"].share("value"),
            cache_wanted=fields["cache_wanted"].share("value"),
        )


@cache
def mars_rules() -> MarsRules:
    """The rules that the documents give."""
    text = resources.files("vmbk.service").joinpath("mars.toml").read_text(encoding="utf-8")
    return MarsRules.parse(tomllib.loads(text)["mars"], "mars")


@dataclass(frozen=True)
class MarsBackup:
    """What one backup of one volume did. Sizes in bytes, times in seconds unless said.

    Attributes
    ----------
    point : str
        The recovery point.
    volume : str
        The volume.
    at_ns : int
        When, in nanoseconds since midnight of the scenario's first day.
    consistency : str
        The label of the point.
    detector : str
        ``full`` where everything was taken, else ``checksum``.
    fallback : str
        Why the cache was not believed, "" where it was or there is none yet.
    size : int
        Of the volume.
    scanned_bytes : int
        Read of the volume to find what changed.
    changed_bytes, extents : int
        What did.
    image_bytes : int
        That the new VHD holds: all data, or what changed.
    sent_bytes : int
        Data handed to the vault.
    new_bytes : int
        Of these, what the vault did not have.
    stored_bytes : int
        What the vault grew by, compressed and encrypted, tables and manifest included.
    merged_bytes : int
        Written into the cached VHD.
    seconds : dict of str to float
        Of the stages ``snapshot``, ``scan``, ``image``, ``send``, ``merge``, and ``total``.
    """

    point: str
    volume: str
    at_ns: int
    consistency: str
    detector: str
    fallback: str
    size: int
    scanned_bytes: int
    changed_bytes: int
    extents: int
    image_bytes: int
    sent_bytes: int
    new_bytes: int
    stored_bytes: int
    merged_bytes: int
    seconds: dict[str, float] = field(hash=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def _repr_html_(self) -> str:
        rows = {
            "detector": self.detector,
            "fallback": self.fallback or "none",
            "label": self.consistency,
            "read": format_size(self.scanned_bytes),
            "changed": f"{format_size(self.changed_bytes)} in {self.extents:,} extents",
            "VHD": format_size(self.image_bytes),
            "sent": format_size(self.sent_bytes),
            "stored": format_size(self.stored_bytes),
            "time": ", ".join(f"{k} {format_duration(v)}" for k, v in self.seconds.items()),
        }
        return key_values(f"MARS backup of {self.volume}: recovery point {self.point}", rows)
