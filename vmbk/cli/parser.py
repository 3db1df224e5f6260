"""The words that the program knows, each with its help."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import Any, Final, NoReturn

from vmbk.cli import (
    bench,
    dataset,
    examples,
    export,
    metrics,
    service,
    service_tables,
    study,
    synth,
    trace,
    vault,
)
from vmbk.cli.reply import Reply
from vmbk.errors import InputError
from vmbk.units import parse_duration, parse_size, quoted

MOST_STATES: Final = 10_000_000
MOST_SEED: Final = (1 << 63) - 1
TRACE: Final = "a trace file, or the name of a shipped capture; a file of that name comes first"
EPILOG: Final = """\
exit codes: 0 done, 2 bad usage or input, 3 integrity failure, 1 anything else; 130 and 143 where
SIGINT or SIGTERM ended it
environment: VMBK_KEY_FILE names the key file, VMBK_PROGRESS=0 forbids progress bars and 1 forces
them, VMBK_DEBUG=1 shows tracebacks
"""


class _Parser(argparse.ArgumentParser):
    """Usage errors are input errors like any other, so that ``--json`` covers them too."""

    def __init__(self, **settings: Any) -> None:
        # Abbreviations would break scripts whenever an option is added.
        super().__init__(allow_abbrev=False, **settings)
        self.takes_program = False
        """Whether what stands behind ``--`` is a program and its arguments, left as they are."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, which would drop a ``--`` that is meant for the program."""
        if not self.takes_program:
            return super().parse_known_args(args, namespace)
        words = list(args or [])
        at = words.index("--") if "--" in words else len(words)
        parsed, rest = super().parse_known_args(words[:at], namespace)
        parsed.program = words[at + 1 :]
        return parsed, rest

    def error(self, message: str) -> NoReturn:
        most = 500
        shown = message if len(message) <= most else f"{message[:most]}…"
        raise InputError(shown, hint=f"see: {self.prog} --help")


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except InputError as error:
        raise _unfit(error) from None


def _seconds(text: str) -> float:
    try:
        return parse_duration(text) / 1e9
    except InputError as error:
        raise _unfit(error) from None


def _unfit(error: InputError) -> argparse.ArgumentTypeError:
    """What argparse takes, with what to do about it: its own hint is another."""
    return argparse.ArgumentTypeError("; ".join(filter(None, (error.message, error.hint))))


def _window(text: str) -> str:
    """A duration, or the word for the whole trace; as it was written."""
    if text != "whole" and _seconds(text) <= 0:
        raise argparse.ArgumentTypeError(
            f"{quoted(text)} has no length; write it as 15m, 1h or whole"
        )
    return text


def _whole(low: int, high: int) -> Callable[[str], int]:
    """A whole number within bounds, as a type of arguments."""

    def parse(text: str) -> int:
        # Bounded before it becomes a number: Python refuses, or takes long for, thousands of digits
        value = int(text) if re.fullmatch(r"-?[0-9]{1,30}", text) else low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{quoted(text)} is not a whole number from {low} to {high}"
            )
        return value

    return parse


def wants_json(words: list[str]) -> bool:
    """Whether ``--json`` is among the options, known before the words are understood."""
    return "--json" in (words[: words.index("--")] if "--" in words else words)


def build_parser() -> argparse.ArgumentParser:
    """The parser; ``run`` of what it returns is the command."""
    from vmbk import __version__

    parser = _Parser(
        prog="vmbk",
        description="The laboratory for VM disk backup.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action="version", version=f"vmbk {__version__}", help="print the version"
    )
    _json(parser, default=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _study_command(commands)
    _trace_commands(commands)
    _dataset_commands(commands)
    _vault_commands(commands)
    _crash_command(commands)
    _service_commands(commands)
    p = _add(
        commands, "bench", bench.bench, "run the benchmarks: ratios to baselines of the same run"
    )
    p.add_argument("--only", default="", metavar="TEXT", help="cases whose name has this")
    p.add_argument("--check", action="store_true", help="exit with 1 where one is below its floor")
    return parser


def _json(parser: argparse.ArgumentParser, default: Any = argparse.SUPPRESS) -> None:
    # Suppressed, so that a command does not undo what stands before it: vmbk --json points
    parser.add_argument(
        "--json", action="store_true", default=default,
        help="print exactly one JSON object instead of text",
    )  # fmt: skip


def _add(
    to: Any, name: str, run: Callable[[argparse.Namespace], Reply], doc: str, more: str = ""
) -> _Parser:
    description = f"{doc[:1].upper()}{doc[1:]}.{more and ' '}{more}"
    made: _Parser = to.add_parser(name, help=doc, description=description)
    _json(made)
    made.set_defaults(run=run)
    return made


def _group(commands: Any, name: str, doc: str) -> Any:
    made = commands.add_parser(name, help=doc, description=f"{doc[:1].upper()}{doc[1:]}.")
    _json(made)
    return made.add_subparsers(dest="verb", required=True, metavar="VERB")


def _in_vault(command: argparse.ArgumentParser, *, positional: bool = False) -> None:
    if positional:
        command.add_argument("vault", metavar="URL", help="folder of the vault")
    else:
        command.add_argument("--vault", metavar="URL", required=True, help="folder of the vault")
    command.add_argument(
        "--key-file", metavar="FILE", help="key of the vault; default: what VMBK_KEY_FILE names"
    )


def _study_command(commands: Any) -> None:
    p = _add(
        commands, "study", study.study,
        "run a declared grid of experiments and report on it: the main job",
        "Each experiment replays a capture onto a fresh disk, backs it up into a fresh vault at "
        "intervals, restores every backup and compares it with the disk byte for byte.",
    )  # fmt: skip
    p.add_argument(
        "config", nargs="?", metavar="CONFIG",
        help="TOML file that declares the study; without it, the default study on the shipped "
        "captures",
    )  # fmt: skip
    p.add_argument(
        "--out", default="results", metavar="DIR",
        help="folder for results.parquet, outcomes.parquet and report.html (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--jobs", type=_whole(1, 256), default=1, metavar="N",
        help="experiments that run side by side, each in a process; timings are noisier then, so "
        "that times should be compared with the default of 1",
    )  # fmt: skip
    p.add_argument(
        "--store", metavar="DIR",
        help="folder that keeps finished experiments, so that a study that was stopped goes on",
    )  # fmt: skip


def _trace_commands(commands: Any) -> None:
    verbs = _group(commands, "trace", "import, capture, summarise and measure traces")
    p = _add(
        verbs, "import", trace.import_, "read a trace in a foreign format, write it as a trace",
        "A malformed row fails the import, which quotes the first ones with their lines.",
    )  # fmt: skip
    p.add_argument(
        "source", metavar="SRC", help="file to read, also packed by gzip, bzip2, xz or zstd"
    )
    _trace_target(p)
    p.add_argument(
        "--format", default="auto", metavar="FORMAT",
        help="format of SRC, such as msr, where its content does not tell; a wrong one lists all "
        "(default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--volume-size", type=_size, metavar="SIZE",
        help="size of the disk, where the format does not say, such as 64MiB",
    )  # fmt: skip
    p.add_argument(
        "--skip-bad", action="store_true", help="pass over malformed rows and count them"
    )
    p.add_argument(
        "--drop-duplicates", action="store_true",
        help="drop rows that repeat the row before them, as some recorders write them",
    )  # fmt: skip
    p = _add(verbs, "info", trace.info, "summarise a trace")
    p.add_argument("trace", metavar="TRACE", help=TRACE)
    _metric_commands(verbs)
    p = _add(
        verbs, "capture", trace.capture,
        "record what a guest, or a program of this machine, does to a disk",
        "A recipe boots a real guest and needs no rights. --host runs COMMAND on a recorded disk "
        "of this machine at native speed, in the root of its file system; there `mark LABEL` "
        "acknowledges what is durable. --device tells when, where and how much reaches a block "
        "device, without the bytes. These two are for root.",
    )  # fmt: skip
    p.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="name of a shipped recipe, or a TOML file"
    )
    p.usage = (
        "%(prog)s RECIPE -o DST\n"
        "       %(prog)s --host [--size SIZE] [--fs FS] -o DST -- COMMAND ...\n"
        "       %(prog)s --device DEV [--seconds N] -o DST [-- COMMAND ...]"
    )
    p.takes_program = True
    way = p.add_mutually_exclusive_group()
    way.add_argument("--host", action="store_true", help="run COMMAND on a recorded disk")
    way.add_argument(
        "--device", metavar="DEV",
        help="record this block device, until COMMAND ends or for --seconds",
    )  # fmt: skip
    p.add_argument(
        "--size", type=_size, metavar="SIZE",
        help="with --host, size of the disk (default: 1GiB)",
    )  # fmt: skip
    p.add_argument(
        "--fs", choices=("ext4", "xfs", "none"),
        help="with --host, its file system (default: ext4)",
    )  # fmt: skip
    p.add_argument(
        "--seconds", type=_seconds, metavar="N", help="with --device, how long to record"
    )
    _trace_target(p)

    _synth_commands(verbs)
    _export_command(verbs)

    p = _add(commands, "replay", trace.replay, "apply a trace's writes to a disk image")
    p.add_argument("trace", metavar="TRACE", help=TRACE)
    p.add_argument(
        "--disk", metavar="IMG", required=True,
        help="raw image to write on; made in the volume's size where it is absent",
    )  # fmt: skip
    p.add_argument(
        "--until", type=_whole(0, MOST_SEED), metavar="N",
        help="only the first N requests (default: all)",
    )  # fmt: skip
    p.add_argument(
        "--seed", type=_whole(0, MOST_SEED), default=0, metavar="S",
        help="seed of made-up content, for traces without captured bytes (default: %(default)s)",
    )  # fmt: skip

    p = _add(commands, "hash", trace.hash_, "digest the blocks of a file")
    p.add_argument("file", metavar="FILE", help="file or image to read")
    p.add_argument(
        "--block-size", type=_size, default="64KiB", metavar="SIZE",
        help="bytes per digest (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--algorithm", default="xxh3-64", metavar="NAME",
        help="digest of a block: xxh3-64, xxh3-128 or crc32c (default: %(default)s)",
    )  # fmt: skip


def _metric_commands(verbs: Any) -> None:
    p = _add(
        verbs, "churn", metrics.churn, "what each window's writes change",
        "A window is the time between two incremental backups; only windows with writes are shown.",
    )  # fmt: skip
    _measured(p, window="1h", block_size="4KiB")
    p = _add(
        verbs, "fragmentation", metrics.fragmentation, "how what changed is spread over the volume",
        "Extents, dispersion and run lengths are counted in blocks; amplification is what larger "
        "granularities would report, against 4 KiB.",
    )  # fmt: skip
    _measured(p, window="whole", block_size="64KiB")
    p.add_argument(
        "--gap", type=_size, default="0", metavar="SIZE",
        help="join extents that are at most this far apart (default: %(default)s)",
    )  # fmt: skip
    p = _add(
        verbs, "explain", metrics.explain,
        "say why incremental backups of this workload would be large or slow",
        "Regions, hours, rewrites, small writes, granularity and dispersion, in sentences with the "
        "figures behind them.",
    )  # fmt: skip
    p.add_argument("trace", metavar="TRACE", help=TRACE)
    p.add_argument(
        "--interval", type=_window, default="1h", metavar="TIME",
        help="time between two backups, or: whole (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--block-size", type=_size, default="64KiB", metavar="SIZE",
        help="unit in which changes are found (default: %(default)s)",
    )  # fmt: skip


def _measured(p: argparse.ArgumentParser, *, window: str, block_size: str) -> None:
    p.add_argument("trace", metavar="TRACE", help=TRACE)
    p.add_argument(
        "--window", type=_window, default=window, metavar="TIME",
        help="time between two backups, such as 15m, or: whole (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--block-size", type=_size, default=block_size, metavar="SIZE",
        help="unit in which changes are found (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--discards", action="store_true",
        help="discards and write_zeroes change blocks too, not only writes",
    )  # fmt: skip


def _synth_commands(verbs: Any) -> None:
    p = _add(
        verbs, "synth", synth.synth, "make the trace that a spec declares",
        "The same spec makes the same trace on any machine.",
    )  # fmt: skip
    p.add_argument("spec", metavar="SPEC", help="TOML file, or the name of a shipped spec")
    _trace_target(p)
    p.add_argument(
        "--requests", type=_whole(0, MOST_SEED), metavar="N",
        help="so many requests in all instead of the declared ones",
    )  # fmt: skip
    p.add_argument(
        "--seed", type=_whole(0, MOST_SEED), metavar="S", help="instead of the declared seed"
    )
    p = _add(
        verbs, "fit", synth.fit,
        "derive a spec from a trace, and say how near the trace that it makes comes",
        "The spec holds no offset, name or content of the trace: a private trace can be shared as "
        "a synthetic one.",
    )  # fmt: skip
    p.add_argument("trace", metavar="TRACE", help=TRACE)
    _output(p, "SPEC", "spec to write, a .toml file")
    p.add_argument(
        "--seed", type=_whole(0, MOST_SEED), default=0, metavar="S",
        help="seed of the spec (default: %(default)s)",
    )  # fmt: skip


def _export_command(verbs: Any) -> None:
    p = _add(
        verbs, "export", export.export, "write a trace as text that another tool replays",
        "What the format cannot say, such as marks, is left out and counted.",
    )  # fmt: skip
    p.add_argument("trace", metavar="TRACE", help=TRACE)
    _output(p, "DST", "file to write")
    p.add_argument(
        "--format", default="fio-iolog", metavar="FORMAT",
        help="fio-iolog (version 3) or blkreplay (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--file", action="append", default=[], metavar="VOLUME=PATH",
        help="for fio, the file or device that stands for a volume (default: the volume's name); "
        "repeatable",
    )  # fmt: skip


def _trace_target(p: argparse.ArgumentParser) -> None:
    _output(p, "DST", "trace file to write: .arrow (working form) or .parquet (shipping form)")


def _output(p: argparse.ArgumentParser, metavar: str, doc: str) -> None:
    p.add_argument("-o", "--output", metavar=metavar, required=True, help=doc)
    p.add_argument("--force", action="store_true", help=f"replace {metavar} where it exists")


def check_output(args: argparse.Namespace) -> None:
    """Refuse, before any work, to replace a file that nobody said may be replaced.

    Raises
    ------
    InputError
        If the file to write exists and ``--force`` was not given.
    """
    wanted = "force" in args and args.output is not None
    if wanted and not args.force and os.path.lexists(args.output):
        raise InputError(
            f"{quoted(args.output)} exists already",
            hint="choose another name, or replace it with --force",
        )


def _dataset_commands(commands: Any) -> None:
    verbs = _group(commands, "dataset", "list the captures that come with vmbk")
    _add(
        verbs, "list", dataset.list_, "list the shipped captures and what they hold",
        "Wherever a command takes a trace, the name of one of them does.",
    )  # fmt: skip


def _vault_commands(commands: Any) -> None:
    verbs = _group(commands, "vault", "create, check and measure vaults")
    p = _add(verbs, "create", vault.create, "make a vault, and its key where the file is absent")
    _in_vault(p, positional=True)
    p = _add(verbs, "check", vault.check, "look for damage in a vault")
    p.add_argument(
        "--read-data", action="store_true",
        help="read and verify every chunk too; without it, only what describes them",
    )  # fmt: skip
    _in_vault(p, positional=True)
    p = _add(verbs, "stats", vault.stats, "say what a vault holds")
    _in_vault(p, positional=True)

    p = _add(commands, "backup", vault.backup, "back the disks of a VM up as one recovery point")
    p.add_argument(
        "disks", nargs="+", metavar="DISK",
        help="raw image or device; name=PATH where the disk's name is not the file's",
    )  # fmt: skip
    _in_vault(p)
    p.add_argument("--vm", required=True, metavar="NAME", help="name of the VM in the vault")
    p.add_argument(
        "--detect", default="auto", metavar="DETECTOR",
        help="how changes are found: auto, full, checksum, tracking, differential or compare "
        "(default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--block-size", type=_size, default="64KiB", metavar="SIZE",
        help="unit in which changes are found (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--sub-block-size", type=_size, default="4KiB", metavar="SIZE",
        help="unit to which changed blocks are drilled down before they are sent "
        "(default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--no-drill-down", action="store_true", help="send changed blocks whole")
    p.add_argument(
        "--gap", type=_size, default="0", metavar="SIZE",
        help="join extents that are at most this far apart (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--exclude", action="append", default=[], metavar="NAME",
        help="leave this disk out, such as the temporary disk; repeatable",
    )  # fmt: skip
    p.add_argument(
        "--consistency", default="crash", metavar="LABEL",
        help="what the point is said to be: application, filesystem or crash consistent "
        "(default: %(default)s)",
    )  # fmt: skip

    p = _add(commands, "points", vault.points, "list the recovery points of a vault")
    _in_vault(p)
    p.add_argument("--vm", metavar="NAME", help="only those of this VM")

    p = _add(commands, "restore", vault.restore, "restore a recovery point's disks as raw images")
    p.add_argument("point", metavar="POINT", help="id of a point, the beginning of one, or: latest")
    _in_vault(p)
    p.add_argument(
        "--to", metavar="DIR", required=True,
        help="folder for the images, DIR/<disk>.raw; made where it is absent",
    )  # fmt: skip
    p.add_argument("--vm", metavar="NAME", help="the VM whose latest point is meant")
    p.add_argument("--disk", action="append", metavar="NAME", help="only this disk; repeatable")
    p.add_argument(
        "--no-verify", action="store_true",
        help="do not read the images back: what is stored is still authenticated",
    )  # fmt: skip


def _crash_command(commands: Any) -> None:
    p = _add(
        commands, "crash", study.crash,
        "cut the power of a captured workload, judge what is left with real checkers",
        "Each state is the disk as a power cut would have left it; the file system's own checker "
        "and the database's own server judge it.",
    )  # fmt: skip
    p.add_argument("trace", metavar="TRACE", help=TRACE)
    p.add_argument(
        "--model", default="flush",
        choices=("flush", "request", "epoch", "torn", "lying", "apart", "snapshot"),
        help="what a power cut leaves: all up to a flush, or up to any request; of what was not "
        "flushed, some writes (epoch) or parts of them (torn); what a cache that lies about "
        "flushes leaves; disks cut at different times (apart); or the moments at which the capture "
        "had a snapshot taken (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--states", type=_whole(1, MOST_STATES), default=16, metavar="N",
        help="how many states are judged, spread over the trace; all where it has fewer "
        "(default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--seed", type=_whole(0, MOST_SEED), default=0, metavar="S",
        help="seed of the choice of states (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--boot", action="store_true", help="boot each disk too, which takes seconds")
    p.add_argument(
        "--check", metavar="PROGRAM",
        help="a program of your own that judges each disk as well: it gets the path of a scratch "
        "copy; 0 is passed, 1 failed",
    )  # fmt: skip


def _service_commands(commands: Any) -> None:
    verbs = _group(commands, "service", "model the service: how long, how much, why")
    p = _scenario(verbs, "simulate", service.simulate, "simulate a fleet's backup jobs")
    p.add_argument(
        "--engine", choices=("fast", "reference"), default="fast",
        help="the readable engine makes the same jobs a hundred times slower "
        "(default: %(default)s)",
    )  # fmt: skip
    p.add_argument("-o", "--output", metavar="FILE", help="write all jobs to this .parquet file")
    p.add_argument("--force", action="store_true", help="replace FILE where it exists")
    _table_verbs(verbs)
    p = _scenario(
        verbs, "plan", service.plan, "find a better schedule, and simulate it beside the old one",
        "Times that are busy, accounts at their limits and long waits are avoided; what is not "
        "better when it is simulated is not proposed.",
    )  # fmt: skip
    p.add_argument(
        "--window", metavar="HH:MM-HH:MM",
        help="in which backups may be scheduled (default: off-peak hours)",
    )  # fmt: skip
    p.add_argument(
        "--step", default="30m", metavar="TIME", help="times are multiples of it (%(default)s)"
    )
    p.add_argument(
        "--move-disks", choices=("accounts", "managed", "none"), default="accounts",
        help="disks may move to other accounts, become managed, or stay (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("-o", "--output", metavar="FILE", help="write the changes as TOML")
    p.add_argument("--force", action="store_true", help="replace FILE where it exists")
    p = _scenario(
        verbs, "advise", service.advise,
        "check best practices, and simulate what following each would bring",
    )  # fmt: skip
    p.add_argument("--no-effects", action="store_true", help="check only: simulate nothing")
    p.add_argument(
        "--only", action="append", default=[], metavar="RULE", help="this rule; repeatable"
    )
    p = _scenario(verbs, "explain", service.explain, "say why one job was large, or slow")
    p.add_argument("--vm", required=True, metavar="NAME", help="the VM")
    p.add_argument(
        "--job", type=_whole(0, MOST_STATES), default=1, metavar="N",
        help="the first one is 0 (default: %(default)s)",
    )  # fmt: skip
    p = _scenario(verbs, "cost", service.cost, "estimate what a fleet's protection costs")
    p.add_argument(
        "--months", type=_whole(1, 1200), default=12, metavar="N",
        help="over so many months (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--first-month", type=_whole(0, 1199), default=0, metavar="N",
        help="after so many months of protection (default: %(default)s)",
    )  # fmt: skip
    p.add_argument("--redundancy", choices=("LRS", "ZRS", "GRS", "RA-GRS"), help="of all vaults")
    p.add_argument("--prices", metavar="FILE", help="your price list, a .toml file")
    p.add_argument(
        "--soft-delete", type=_whole(0, 180), default=14, metavar="DAYS",
        help="days that deleted data are kept (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--reading", action="append", default=[], metavar="TOPIC=READING",
        help="how a conflict of the documents is read, such as instance=half; repeatable",
    )  # fmt: skip
    p = _add(
        verbs, "examples", examples.examples,
        "compute the documents' worked examples, compare them with what the documents say",
    )  # fmt: skip
    p.add_argument(
        "--only", action="append", default=[], metavar="EXAMPLE",
        help="this one, such as job-states; repeatable",
    )  # fmt: skip


def _table_verbs(verbs: Any) -> None:
    p = _scenario(
        verbs, "capacity", service_tables.capacity,
        "say whether storage accounts carry the backups that are scheduled",
        "A static plan of one day: each backup begins at its slot and asks for full speed; no "
        "queue, no failure. What really happens, simulate says.",
    )  # fmt: skip
    p.add_argument(
        "--slot", default="1h", metavar="TIME",
        help="into which the day is divided, a part of an hour (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--backup", choices=("incremental", "initial", "checksum"), default="incremental",
        help="what the day's backups are: later ones, all first ones, or later ones without "
        "snapshots to compare with (default: %(default)s)",
    )  # fmt: skip
    p = _scenario(
        verbs, "restore", service_tables.restore, "restore all machines at once: how long it takes"
    )
    p.add_argument(
        "--vm", action="append", default=[], metavar="NAME",
        help="only this machine; repeatable",
    )  # fmt: skip
    p.add_argument(
        "--tier", choices=("vault", "snapshot"), default="vault",
        help="where the points are taken from (default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--accounts", type=_whole(0, 10_000), default=0, metavar="N",
        help="storage accounts that the machines go into in turn; 0 is managed disks "
        "(default: %(default)s)",
    )  # fmt: skip
    p.add_argument(
        "--guest-writes", metavar="RATE",
        help="what applications write to each of the accounts meanwhile, such as 100MB/s",
    )  # fmt: skip


def _scenario(
    verbs: Any, name: str, run: Callable[[argparse.Namespace], Reply], doc: str, more: str = ""
) -> _Parser:
    """A command about a scenario."""
    p = _add(verbs, name, run, doc, more)
    p.add_argument(
        "scenario", metavar="SCENARIO",
        help="TOML file that declares a fleet, or the name of a shipped one, such as small-company",
    )  # fmt: skip
    p.add_argument(
        "--days", type=_whole(1, 3660), metavar="N", help="so many instead of the declared ones"
    )
    p.add_argument(
        "--seed", type=_whole(0, MOST_SEED), metavar="S", help="instead of the declared seed"
    )
    return p
