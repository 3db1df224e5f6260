"""Capture of a device's requests through tracefs: when, where and how much, but no payloads.

The kernel tells each request that it hands to the device (``block_rq_issue``; of devices that have
no queue of requests, such as those of the device mapper, ``block_bio_queue``). They are read from
an instance of tracefs of our own, so that nobody else's tracing is touched. Only root may do that.

Source: Linux, ``Documentation/trace/ftrace.rst`` (instances, ``trace_pipe``) and
``Documentation/trace/events.rst`` (filters).
"""

from __future__ import annotations

import math
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from vmbk.errors import InputError, IntegrityError, NotFoundError, StorageError, VmbkError
from vmbk.provenance import provenance
from vmbk.trace.capture.guest import find_program
from vmbk.trace.schema import Volume
from vmbk.trace.store import Trace, check_target, write_trace
from vmbk.units import MIB, quoted

TRACEFS: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_BLOCK_EVENTS: Final = Path("events/block")
_BUFFER_KIB: Final = 8192  # per processor: some 80,000 requests between two looks
_LOOK_S: Final = 0.02
_GRACE_S: Final = 5.0
_READ: Final = MIB


@dataclass(frozen=True)
class Device:
    """A block device of this machine.

    Parameters
    ----------
    name : str
        The kernel's name of it, such as ``vda``.
    number : int
        The device's number as the kernel's filters take it.
    size : int
        Bytes.
    sector_size : int
        Bytes.
    event : str
        The event that tells of its requests.
    """

    name: str
    number: int
    size: int
    sector_size: int
    event: str


def capture_device(
    device: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    seconds: float | None = None,
    command: Sequence[str] | None = None,
    keep: str | os.PathLike[str] | None = None,
) -> Trace:
    """Record the requests that reach a block device of this machine.

    What a program has written may still be in memory when it ends; what is not written out by
    then is not recorded: let the command end with ``sync``.

    Parameters
    ----------
    device : path
        A whole disk, such as ``/dev/vda``; not a partition.
    out : path
        Trace to write, ``.arrow`` or ``.parquet``.
    seconds : float, optional
        How long; with a command at most, and the command is then ended.
    command : sequence of str, optional
        A program to run meanwhile, and its arguments; the capture ends with it. Its standard
        output goes to standard error.
    keep : path, optional
        Folder for the kernel's text (``events``).

    Returns
    -------
    Trace
        Reads, writes, flushes and discards in the order in which they were handed to the device;
        no payloads, no marks.

    Raises
    ------
    InputError
        If this is not root, the device is none, or it is not said how long.
    NotFoundError
        If there is no such device, program or folder.
    StorageError
        If the kernel has no tracefs or no block events.
    IntegrityError
        If the kernel lost events.
    VmbkError
        If the command fails: its exit code is in the message, and no trace is written.
    """
    if seconds is None and command is None:
        raise InputError(
            "it is not said how long to record", hint="give a number of seconds, or a command"
        )
    if seconds is not None and not 0 < seconds <= 7 * 86400:
        raise InputError(f"{seconds} s is not above 0 and up to a week")
    if command is not None and (isinstance(command, str) or not command):
        raise InputError(
            f"{quoted(command)} is no command",
            hint="give the program and its arguments as separate words",
        )
    if command is not None and shutil.which(command[0]) is None:
        raise NotFoundError(f"there is no program {quoted(command[0])}")
    check_target(out)
    if keep is not None and not Path(keep).is_dir():
        raise NotFoundError(f"there is no folder {quoted(str(keep))} to keep the events in")
    if os.geteuid() != 0:
        raise InputError("only root can read the kernel's block events", hint="use sudo")
    disk = find_device(Path(device))
    with tempfile.TemporaryDirectory(prefix="vmbk-tracefs-") as name:
        folder = Path(name)
        events = folder / "events"
        began = time.monotonic()
        try:
            with (
                _tracefs(folder) as tracefs,
                _instance(tracefs, disk) as instance,
                events.open("wb") as sink,
            ):
                _record(instance, sink, seconds, command)
                lost = _lost(instance)
        except OSError as error:
            raise StorageError(f"cannot read the kernel's events: {error.strerror}") from error
        if lost:
            raise IntegrityError(f"the kernel lost {lost} events: requests came too fast")
        made = {
            "device": True,
            "event": disk.event,
            "seconds": round(time.monotonic() - began, 1),
            "made_by": provenance().to_dict(),
        }
        trace = read_events(events, disk, made)
        write_trace(trace, out)
        if keep is not None:
            shutil.move(events, Path(keep) / "events")
    return trace


def read_events(path: Path, disk: Device, made: dict[str, Any]) -> Trace:
    """The trace of recorded events of one device.

    Parameters
    ----------
    path : Path
        The kernel's text.
    disk : Device
    made : dict
        Provenance.

    Raises
    ------
    TraceFormatError, OutOfRangeError
        If the text is not what the kernel writes, or a request reaches past the device.
    """
    from vmbk.trace.formats import import_trace

    trace = import_trace(path, format="tracefs", volume_size=disk.size).trace
    if len(trace.volumes) > 1:
        raise VmbkError(
            f"the kernel told of {len(trace.volumes)} devices though it was asked for one"
        )
    # Without any request the text tells of no volume at all.
    id = trace.volumes[0].id if trace.volumes else 0
    metadata = replace(
        trace.metadata,
        volumes=(Volume(id, disk.name, disk.size, disk.sector_size),),
        provenance=made,
    )
    table = trace.table.replace_schema_metadata(metadata.to_arrow())
    return Trace.from_arrow(table, **vars(metadata))


def find_device(path: Path, sysfs: Path = Path("/sys")) -> Device:
    """What the kernel says of a block device.

    Raises
    ------
    NotFoundError
        If there is no such file.
    InputError
        If it is no block device, or a partition.
    """
    try:
        told = path.stat()
    except OSError as error:
        raise NotFoundError(f"there is no device {quoted(str(path))}: {error.strerror}") from error
    if not stat.S_ISBLK(told.st_mode):
        raise InputError(f"{quoted(str(path))} is no block device")
    major, minor = os.major(told.st_rdev), os.minor(told.st_rdev)
    place = (sysfs / f"dev/block/{major}:{minor}").resolve()
    try:
        if (place / "partition").exists():
            raise InputError(
                f"{quoted(str(path))} is a partition; the kernel tells of whole disks",
                hint=f"name the disk: /dev/{place.parent.name}",
            )
        return Device(
            name=place.name,
            number=(major << 20) | minor,  # as in the kernel, unlike what programs see
            size=int((place / "size").read_text()) * 512,
            sector_size=int((place / "queue/logical_block_size").read_text()),
            event="block_rq_issue" if (place / "mq").is_dir() else "block_bio_queue",
        )
    except (OSError, ValueError) as error:
        raise StorageError(f"the kernel tells nothing of {quoted(str(path))}: {error}") from error


@contextmanager
def _tracefs(folder: Path) -> Iterator[Path]:
    """Where tracefs is mounted: where everybody has it, or just for us."""
    for place in TRACEFS:
        if (place / "instances").is_dir():
            yield _with_block_events(place)
            return
    own = folder / "tracefs"
    own.mkdir()
    mount = [str(find_program("mount", "mount")), "-t", "tracefs", "vmbk", str(own)]
    told = subprocess.run(mount, capture_output=True, text=True)
    if told.returncode:
        said = told.stderr.replace(str(folder), "").strip()
        raise StorageError(
            f"this machine has no tracefs: {said}",
            hint="the kernel must be built with CONFIG_FTRACE, and a container be allowed to mount",
        )
    try:
        yield _with_block_events(own)
    finally:
        umount = [str(find_program("umount", "mount")), "--lazy", str(own)]
        subprocess.run(umount, capture_output=True)


def _with_block_events(place: Path) -> Path:
    if not (place / _BLOCK_EVENTS).is_dir():
        raise StorageError(
            "this machine's kernel has no block events",
            hint="it must be built with CONFIG_BLK_DEV_IO_TRACE or another tracer of blocks",
        )
    return place


@contextmanager
def _instance(tracefs: Path, disk: Device) -> Iterator[Path]:
    """Buffers of our own that receive the events of one device."""
    instance = Path(tempfile.mkdtemp(prefix="vmbk-", dir=tracefs / "instances"))
    try:
        with suppress(OSError):  # a small buffer loses events, which is noticed
            _tell(instance / "buffer_size_kb", str(_BUFFER_KIB))
        # One clock for all processors, unlike the default.
        _tell(instance / "trace_clock", "mono")
        event = instance / _BLOCK_EVENTS / disk.event
        _tell(event / "filter", f"dev == {disk.number}")
        _tell(event / "enable", "1")
        yield instance
    finally:
        with suppress(OSError):
            _tell(instance / "tracing_on", "0")
        _remove(instance)


def _remove(instance: Path) -> None:
    until = time.monotonic() + _GRACE_S
    while True:
        try:
            instance.rmdir()  # tracefs takes the files along
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            return


def _tell(file: Path, text: str) -> None:
    # Opened without being made anew, which tracefs has no notion of.
    handle = os.open(file, os.O_WRONLY)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _record(
    instance: Path, sink: Any, seconds: float | None, command: Sequence[str] | None
) -> None:
    """Copy the kernel's text until the time is over or the command has ended."""
    until = time.monotonic() + (math.inf if seconds is None else seconds)
    pipe = os.open(instance / "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
    process = None if command is None else subprocess.Popen(list(command), stdout=2)
    try:
        while time.monotonic() < until and (process is None or process.poll() is None):
            _drain(pipe, sink)
            time.sleep(_LOOK_S)
        ended = process.poll() if process is not None else 0
        _tell(instance / "tracing_on", "0")
        _drain(pipe, sink)
    finally:
        os.close(pipe)
        if process is not None:
            _end(process)
    if ended:
        raise VmbkError(
            f"the command failed: exit code {ended}",
            hint="no trace is written of a command that fails",
        )


def _drain(pipe: int, sink: Any) -> None:
    while True:
        try:
            text = os.read(pipe, _READ)
        except BlockingIOError:
            return
        if not text:
            return
        sink.write(text)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()


def _lost(instance: Path) -> int:
    """Events that the kernel had no room for."""
    lost = 0
    for stats in (instance / "per_cpu").glob("cpu*/stats"):
        for line in stats.read_text().splitlines():
            name, _, number = line.partition(":")
            if name in ("overrun", "dropped events"):
                lost += int(number)
    return lost
