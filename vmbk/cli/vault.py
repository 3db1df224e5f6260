"""Commands on vaults: backups, recovery points, restores, checks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from vmbk.cli.reply import Reply, grid, lines
from vmbk.errors import InputError, IntegrityError
from vmbk.units import format_duration, format_size


def create(args: argparse.Namespace) -> Reply:
    """Make a vault, and its key where there is none."""
    from vmbk.vault import Vault

    key = _key_file(args)
    made = not Path(key).exists()
    vault = Vault.create(_local(args.vault), key)
    note = "made" if made else "used"
    return {
        "ok": True,
        "id": vault.id,
        "key_file": str(key),
        "key_file_made": made,
        "_text": f"vault {args.vault} created; key file {key} {note}: keep a copy of it elsewhere, "
        "without it nothing can be restored",
    }


def check(args: argparse.Namespace) -> Reply:
    """Look for damage."""
    with _vault(args) as vault:
        report = vault.check(read_data=args.read_data)
    reply: Reply = report.to_dict()
    if report.ok:
        reply["_text"] = (
            f"ok: {report.points} points, {report.chunks:,} chunks, "
            f"{format_size(report.stored_bytes)} stored"
            + (f", {format_size(report.read_bytes)} read back" if args.read_data else "")
        )
        return reply
    reply["_text"] = "\n".join([f"{len(report.errors)} errors", *report.errors])
    reply["_exit"] = IntegrityError.exit_code
    return reply


def stats(args: argparse.Namespace) -> Reply:
    """Say what a vault holds."""
    with _vault(args) as vault:
        reply: Reply = {"ok": True, "errors": [], **vault.stats().to_dict()}
    shown = {
        key: format_size(value) if key.endswith("_bytes") else value
        for key, value in reply.items()
        if key not in ("ok", "errors")
    }
    return reply | {"_text": lines([(k.replace("_", " "), v) for k, v in shown.items()])}


def backup(args: argparse.Namespace) -> Reply:
    """Back disks up as one recovery point."""
    from vmbk.detect.changes import Settings
    from vmbk.pipeline.backup import backup as make_point

    settings = Settings(args.block_size, 0 if args.no_drill_down else args.sub_block_size, args.gap)
    with _vault(args) as vault:
        done = make_point(
            args.disks,
            vault,
            args.vm,
            detector=args.detect,
            settings=settings,
            consistency=args.consistency,
            exclude=args.exclude,
        )
    reply = done.to_dict()
    header = ["disk", "detector", "read", "changed", "extents", "sent", "new", "stored", "time"]
    rows = [
        [d.name, d.detector + (f" ({d.fallback})" if d.fallback else ""),
         format_size(d.scanned_bytes), format_size(d.changed_bytes), f"{d.extents:,}",
         format_size(d.sent_bytes), format_size(d.new_bytes), format_size(d.stored_bytes),
         format_duration(d.detect_seconds + d.transfer_seconds)]
        for d in done.disks
    ]  # fmt: skip
    stages = ", ".join(f"{k} {format_duration(v)}" for k, v in done.seconds.items())
    left_out = f"\nleft out: {', '.join(done.excluded)}" if done.excluded else ""
    text = f"recovery point {done.point}\n{grid(header, rows)}\n{stages}{left_out}"
    return reply | {"_text": text}


def points(args: argparse.Namespace) -> Reply:
    """List recovery points."""
    with _vault(args) as vault:
        points = vault.points(args.vm)
    listed = [
        {
            "id": p.id,
            "vm": p.vm,
            "created_ns": p.created_ns,
            "consistency": p.consistency,
            "bytes": sum(d.size for d in p.disks),
            "disks": [
                {
                    "name": d.name,
                    "size": d.size,
                    "detector": d.detector,
                    "fallback": d.fallback,
                    "parent": d.parent,
                    "changed_bytes": d.changed_bytes,
                    "sent_bytes": d.sent_bytes,
                    "stored_bytes": d.stored_bytes,
                }
                for d in p.disks
            ],
        }
        for p in points
    ]
    header = ["point", "vm", "consistency", "disks", "size", "detector", "changed", "stored"]
    rows = [
        [p.id, p.vm, p.consistency, str(len(p.disks)), format_size(sum(d.size for d in p.disks)),
         "+".join(sorted({d.detector for d in p.disks})),
         format_size(sum(d.changed_bytes for d in p.disks)),
         format_size(sum(d.stored_bytes for d in p.disks))]
        for p in points
    ]  # fmt: skip
    return {"points": listed, "_text": grid(header, rows) if rows else "no recovery points yet"}


def restore(args: argparse.Namespace) -> Reply:
    """Restore the disks of a recovery point."""
    from vmbk.pipeline.restore import restore as restore_point

    _check_folder(args.to)
    with _vault(args) as vault:
        point = vault.point(args.point, vm=args.vm)
        done = restore_point(
            point, vault, args.to, disks=args.disk or None, verify=not args.no_verify
        )
    header = ["disk", "file", "size", "written", "digest", "verified"]
    rows = [
        [d.name, str(d.path), format_size(d.size), format_size(d.written_bytes), d.digest,
         "yes" if done.verified else "no"]
        for d in done.disks
    ]  # fmt: skip
    text = f"recovery point {done.point}, {format_duration(done.seconds)}\n{grid(header, rows)}"
    return done.to_dict() | {"_text": text}


def _key_file(args: argparse.Namespace) -> Path:
    key = args.key_file or os.environ.get("VMBK_KEY_FILE")
    if not key:
        raise InputError(
            "no key file is named", hint="give --key-file FILE or set VMBK_KEY_FILE=FILE"
        )
    return Path(key)


def _local(url: str) -> Path:
    """The folder of a vault's URL; other schemes are not there yet."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return Path(url)
    if scheme != "file":
        raise InputError(f"{url!r}: vaults on {scheme!r} are not supported", hint="use a folder")
    return Path(rest)


def _vault(args: argparse.Namespace) -> Any:
    from vmbk.vault import Vault

    return Vault.open(_local(args.vault), _key_file(args))


def _check_folder(name: str) -> None:
    """Refuse a folder that cannot be made, since a file has its name or that of one above it."""
    for path in (Path(name), *Path(name).parents):
        if os.path.lexists(path):
            if not path.is_dir():
                raise InputError(
                    f"--to {name!r}: {str(path)!r} is no folder",
                    hint="name a folder, or one that does not exist yet",
                )
            return
