"""What may be restored how, and how long its steps take: rules by era, requests, checks before.

Numbers and their sources are in ``restores.toml``; `precheck` says of a request what the service
would say before it begins.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any, Final, Self

from vmbk.display import table
from vmbk.errors import InputError
from vmbk.service.fields import MOST, Fields
from vmbk.service.prices import REDUNDANCIES
from vmbk.service.profiles import PROFILES
from vmbk.units import quoted

_ALWAYS: Final = ("create-vm", "restore-disks", "file-recovery")
_CROSS: Final = ("cross-region", "cross-subscription", "cross-zone")
OPTIONS: Final = (*_ALWAYS, "replace-existing", *_CROSS)
CREATES: Final = ("create-vm", *_CROSS)
"""Options at whose end a new machine is made."""
TIERS: Final = ("snapshot", "vault", "archive")
KNOWN_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "2017": _ALWAYS, "instant": OPTIONS, "enhanced": OPTIONS,
}  # fmt: skip
KNOWN_TIERS: Final[Mapping[str, tuple[str, ...]]] = {
    "2017": ("vault",), "instant": TIERS, "enhanced": TIERS,
}  # fmt: skip
BASES: Final = ("documented", "inferred")
"""Of a number: a document gives it, or none does."""

_COUNTS: Final = ("per_day", "places", "many_disks")
_SIZES: Final = ("segment", "request", "large")
_RATES: Final = ("segment_rate", "blob_rate", "files_rate")
_PAIRS: Final = ("create", "replace", "disks", "rehydrate", "mount_large")
LONGEST: Final = 366 * 24 * 3600 * 10**9
"""Of any one step."""


@dataclass(frozen=True)
class RestoreRules:
    """Numbers of restores; ``restores.toml`` says of each what it is and where it is written.

    Sizes are bytes, rates bytes a second, times nanoseconds.
    """

    profile: str
    per_day: int
    places: int
    wait_most: int
    segment: int
    segment_rate: int
    blob_rate: int
    request: int
    create_low: int
    create_high: int
    replace_low: int
    replace_high: int
    disks_low: int
    disks_high: int
    rehydrate_low: int
    rehydrate_high: int
    mount: int
    mount_large_low: int
    mount_large_high: int
    many_disks: int
    large: int
    files_rate: int
    files_valid: int
    backup_interval: int
    replication: int
    slow: int

    @classmethod
    def default(cls, profile: str) -> Self:
        """As ``restores.toml`` has it."""
        return cls.parse({}, "restores", profile)

    @classmethod
    def parse(cls, declared: Any, name: str, profile: str) -> Self:
        """Read a scenario's ``[restores]``: any number, as it is written or by a reading's name.

        Parameters
        ----------
        declared : Mapping
            Such as ``{"per_day": "older", "segment_rate": "50MB/s", "places": 4}``.
        name : str
            How errors call it.
        profile : str
            The era.

        Raises
        ------
        InputError
            If there is no such profile or number, or a value does not fit.
        """
        if profile not in PROFILES:
            raise InputError(
                f"there is no profile {quoted(profile)}", hint=f"one of {', '.join(PROFILES)}"
            )
        numbers = _numbers()
        given = Fields(declared, name, numbers)
        chosen = {
            key: _chosen(each, given.get(key, None), profile) for key, each in numbers.items()
        }
        values = Fields(chosen, name, numbers)
        found = {key: _read(values, key) for key in numbers}
        for pair in _PAIRS:
            if found[f"{pair}_low"] > found[f"{pair}_high"]:
                raise values.fail(f"{pair}_low", f"is more than {pair}_high")
        return cls(profile, **found)

    @property
    def secondary_promise(self) -> int:
        """Age of the newest point in the secondary region at most: 36 h (restore VMs)."""
        return self.backup_interval + self.replication

    def streams(self, size: int, *, account: bool) -> list[int]:
        """Nanoseconds at full speed of each stream that copies a disk from the vault.

        Parameters
        ----------
        size : int
            Allocated bytes.
        account : bool
            The disk becomes a blob of an account, and not a managed disk.
        """
        count = -(-size // self.segment)
        rate = self.stream_rate(size, account=account)
        sizes = [min(self.segment, size - i * self.segment) for i in range(count)]
        return [-(-each * 10**9 // rate) for each in sizes]

    def stream_rate(self, size: int, *, account: bool) -> int:
        """Bytes a second of each stream that copies a disk."""
        count = max(1, -(-size // self.segment))
        return max(1, min(self.segment_rate, self.blob_rate // count if account else MOST))

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``: every number with what it is, its source and whether it is inferred."""
        numbers = _numbers()
        return {
            "profile": self.profile,
            **{
                key: {"value": getattr(self, key), "doc": each["doc"], "source": each["source"],
                      "basis": each["basis"]}
                for key, each in numbers.items()
            },
        }  # fmt: skip

    def _repr_html_(self) -> str:
        rows = [
            (key, each["value"], each["doc"], each["basis"], each["source"])
            for key, each in self.to_dict().items()
            if key != "profile"
        ]
        header = ("number", "value", "what", "basis", "source")
        return table(f"Restores of profile {self.profile} (bytes, ns)", header, rows)


@cache
def _numbers() -> dict[str, Mapping[str, Any]]:
    file = resources.files("vmbk.service").joinpath("restores.toml")
    declared = tomllib.loads(file.read_text(encoding="utf-8"))["numbers"]
    names = {field.name for field in fields(RestoreRules)} - {"profile"}
    if set(declared) != names:
        raise InputError(f"restores.toml lacks or has too many of {sorted(names ^ set(declared))}")
    for name, number in declared.items():
        Fields(number, f"restores.toml: {name}", number).choice("basis", BASES)
    return dict(declared)


def _chosen(number: Mapping[str, Any], given: Any, profile: str) -> Any:
    """A number as it is set, as a reading has it, or as the era takes it."""
    readings = number.get("readings", {})
    if given is None:
        return readings.get(number.get("profiles", {}).get(profile), number["value"])
    return readings.get(given, given) if isinstance(given, str) else given


def _read(values: Fields, key: str) -> int:
    if key in _COUNTS:
        found: int = values.whole(key, 1, 1_000_000)
    elif key in _SIZES:
        found = values.size(key, least=1, most=1 << 50)
    elif key in _RATES:
        found = values.rate(key, least=1, most=1 << 40)
    else:
        found = values.duration(key, most=LONGEST)
    return found


@dataclass(frozen=True)
class RestoreRequest:
    """Somebody asks for a machine, its disks or its files.

    Parameters
    ----------
    vm : str
    at : int
        Nanoseconds.
    disks : tuple of int
        Allocated bytes of each disk.
    tier : str
        Where the point is taken from: ``"snapshot"``, ``"vault"`` or ``"archive"``.
    option : str
        One of `OPTIONS`.
    account : str or None
        Target storage account; None makes managed disks.
    power : str
        Of the machine that is replaced: ``"off"`` or ``"running"``.
    encryption : str
        ``"none"``, ``"ade"`` (keys in the machine) or ``"cmk"`` (keys of the customer).
    keys : bool
        The keys are in the key vault.
    snapshot_deleted : bool
        Somebody deleted the snapshot of the point.
    redundancy : str
        Of the vault.
    cross_region_restore : bool
        It is switched on in the vault.
    premium : bool
        The machine is on premium storage.
    target : str
        ``"premium"`` or ``"standard"`` storage.
    source_account : str or None
        Account of the machine's own disks.
    by : str
        ``"portal"`` or ``"powershell"``.
    target_group : bool
        TargetResourceGroupName is given.
    files : int
        Bytes of files, in a file recovery.
    cancel : int or None
        Nanoseconds; somebody cancels the restore then.
    """

    vm: str
    at: int
    disks: tuple[int, ...]
    tier: str = "vault"
    option: str = "create-vm"
    account: str | None = None
    power: str = "off"
    encryption: str = "none"
    keys: bool = True
    snapshot_deleted: bool = False
    redundancy: str = "GRS"
    cross_region_restore: bool = True
    premium: bool = False
    target: str = "standard"
    source_account: str | None = None
    by: str = "portal"
    target_group: bool = True
    files: int = 0
    cancel: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.at < MOST or not (self.cancel is None or 0 <= self.cancel < MOST):
            raise InputError(f"restore of {quoted(self.vm)}: times must not be negative")
        if self.files < 0 or any(size < 0 for size in self.disks):
            raise InputError(f"restore of {quoted(self.vm)}: sizes must not be negative")

    @property
    def crosses_regions(self) -> bool:
        """The vault has a copy in another region from which one may restore."""
        return self.cross_region_restore and self.redundancy in ("GRS", "RA-GRS")

    @classmethod
    def parse(cls, declared: Any, name: str) -> Self:
        """Read one ``[[restores]]`` table of a scenario.

        Raises
        ------
        InputError
            If a field is missing, unknown or wrong; the message names it.
        """
        given = Fields(declared, name, (field.name for field in fields(cls)))
        sizes = given.get("disks")
        if not isinstance(sizes, Sequence) or isinstance(sizes, str) or not 1 <= len(sizes) <= 64:
            raise given.fail("disks", 'is not a list of 1 to 64 sizes, such as ["30GB"]')
        disks = tuple(
            Fields({"size": size}, given.where(f"disks[{i}]"), ("size",)).size("size", most=1 << 47)
            for i, size in enumerate(sizes)
        )
        return cls(
            vm=given.text("vm"),
            at=given.duration("at"),
            disks=disks,
            tier=given.choice("tier", TIERS, "vault"),
            option=given.choice("option", OPTIONS, "create-vm"),
            account=given.text("account", None),
            power=given.choice("power", ("off", "running"), "off"),
            encryption=given.choice("encryption", ("none", "ade", "cmk"), "none"),
            keys=given.flag("keys", True),
            snapshot_deleted=given.flag("snapshot_deleted", False),
            redundancy=given.choice("redundancy", REDUNDANCIES, "GRS"),
            cross_region_restore=given.flag("cross_region_restore", True),
            premium=given.flag("premium", False),
            target=given.choice("target", ("premium", "standard"), "standard"),
            source_account=given.text("source_account", None),
            by=given.choice("by", ("portal", "powershell"), "portal"),
            target_group=given.flag("target_group", True),
            files=given.size("files", 0, most=1 << 50),
            cancel=given.duration("cancel", None),
        )


@dataclass(frozen=True)
class Finding:
    """What is to be said of a request before it begins.

    Attributes
    ----------
    request : int
        Its number, from 0.
    refuses : bool
        The service does not begin it; otherwise it is advice.
    code : str
        The service's, "" where the documents give none.
    message, source : str
    """

    request: int
    refuses: bool
    code: str
    message: str
    source: str


def precheck(request: RestoreRequest, rules: RestoreRules, number: int = 0) -> tuple[Finding, ...]:
    """What the service says of one request by itself.

    Parameters
    ----------
    request : RestoreRequest
    rules : RestoreRules
    number : int
        Which one it is, for the findings.

    Returns
    -------
    tuple of Finding
        Refusals first.
    """
    found = [
        Finding(number, refuses, code, message, source)
        for refuses, checks in ((True, _refusals), (False, _advice))
        for applies, code, message, source in checks(request, rules)
        if applies
    ]
    return tuple(found)


_Check = tuple[bool, str, str, str]


def _refusals(r: RestoreRequest, rules: RestoreRules) -> Iterable[_Check]:
    option, encrypted = r.option, r.encryption != "none"
    return (
        (option not in KNOWN_OPTIONS[rules.profile], "",
         f"profile {rules.profile} does not offer {option}", "restore VMs"),
        (r.tier not in KNOWN_TIERS[rules.profile], "",
         f"profile {rules.profile} has no points in tier {r.tier}", "S1: backup process"),
        (r.tier == "snapshot" and r.snapshot_deleted, "UserErrorInstantRpNotFound",
         "the snapshot of the point was deleted; take another point",
         "errors: UserErrorInstantRpNotFound"),
        (encrypted and not r.keys, "",
         "the machine's keys and secrets are not in the key vault; restore them first",
         "S4: restore of managed disks"),
        (option == "replace-existing" and r.power == "running", "UserErrorVmNotShutDown",
         "the machine whose disks are replaced is running; stop it first",
         "restore VMs: replace existing"),
        (option == "replace-existing" and encrypted, "",
         "disks of an encrypted machine cannot be replaced; restore the disks",
         "restore VMs: replace existing"),
        (option == "replace-existing" and r.account is not None, "",
         "disks can be replaced on machines of managed disks only",
         "restore VMs: replace existing"),
        (option in _CROSS and r.tier != "vault", "",
         f"{option} restores from tier vault only, not {r.tier}", f"restore VMs: {option}"),
        (option == "cross-region" and not r.crosses_regions, "",
         f"cross-region needs a vault of GRS with it switched on, not {r.redundancy}",
         "restore VMs: cross-region"),
        (option == "cross-zone" and r.redundancy != "ZRS" and not r.crosses_regions, "",
         f"cross-zone needs a vault of ZRS or with cross-region restore, not {r.redundancy}",
         "restore VMs: cross-zone"),
        (option == "cross-subscription" and encrypted, "",
         f"machines with {r.encryption} keys cannot go to another subscription",
         "restore VMs: cross-subscription"),
        (r.by == "powershell" and r.account is None and not r.target_group, "",
         "TargetResourceGroupName is missing, without which there are no managed disks",
         "S0 S2: restore performance"),
    )  # fmt: skip


def _advice(r: RestoreRequest, rules: RestoreRules) -> Iterable[_Check]:
    large = max(r.disks, default=0) > rules.large
    return (
        (r.option == "restore-disks" and r.tier != "snapshot" and large, "",
         "no VHD files are made of disks this large", "restore VMs: disks above 4 TB"),
        (r.option == "file-recovery" and (large or len(r.disks) > rules.many_disks), "",
         "many or large disks: run the script on another machine, 20 to 30 min later",
         "file recovery"),
        (r.tier == "archive", "", "an archived point comes back to the vault first",
         "archive tier"),
        (r.premium and r.account is not None and r.account == r.source_account, "",
         "the account of the machine itself: its backups have fewer IOPS meanwhile",
         "S1: premium storage"),
        (r.premium and r.target == "premium" and r.option == "file-recovery", "",
         "for a subset of the files standard storage may be cheaper", "S4: premium storage"),
        (r.option == "cross-region" and r.cancel is not None, "",
         "a cross-region restore cannot be cancelled", "restore VMs: cross-region"),
    )  # fmt: skip
