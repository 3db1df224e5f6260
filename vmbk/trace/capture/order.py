"""One order of the requests to several disks.

Two logs of two disks have no common order, and one log of a disk on which both lie does not tell
whose flush it was. So the logs themselves are logged: each disk has a log of its own, and these
logs lie, one region each, on one more disk that is logged as well. An entry of a disk's log is a
write there, and where it is written tells which entry of which log it is: the order of these
writes is the order of all requests, flushes included. A request is over only once its entry is
written, so what one request waited for stands before it, on whichever disk it was. Of requests
that are under way at once any order is right, as it is on one disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vmbk.errors import IntegrityError
from vmbk.trace.capture.daemon import StorageDaemon, file_node, logging_node
from vmbk.trace.formats.dm_log_writes import LogRows, read_rows
from vmbk.trace.schema import Op
from vmbk.units import GIB

REGION: Final = 256 * GIB
"""Bytes that each disk's log may take; the file is sparse."""


def order_daemon(disks: int, folder: Path) -> tuple[StorageDaemon, list[dict[str, Any]]]:
    """A daemon that keeps the logs of several disks and the order of their entries.

    It leaves ``folder / "logs"``, the disks' logs at multiples of `REGION`, and
    ``folder / "log"``, the log of that.

    Parameters
    ----------
    disks : int
    folder : Path

    Returns
    -------
    StorageDaemon
        Not yet running.
    list of dict
        For each disk the node, for another process, that its log is to be written to.
    """
    (folder / "log").touch()
    with (folder / "logs").open("wb") as file:
        file.truncate(disks * REGION)
    socket = "socket"  # in the folder, in which both processes run
    nodes = [logging_node("order", file_node(folder / "logs"), file_node(folder / "log"))]
    arguments = ["--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=0"]
    clients = []
    for id in range(disks):
        name = f"log{id}"
        place = {"offset": id * REGION, "size": REGION}
        nodes.append({"driver": "raw", "node-name": name, "file": "order"} | place)
        arguments += ["--export", f"nbd,id={name},node-name={name},name={name},writable=on"]
        server = {"type": "unix", "path": socket}
        clients.append({"driver": "nbd", "server": server, "export": name})
    return StorageDaemon(nodes, arguments, folder), clients


@dataclass(frozen=True)
class OrderedRows:
    """The requests of several disks in one order.

    Parameters
    ----------
    disks : list of LogRows
        Each disk's own log.
    rank : list of ndarray of int64
        For each disk, where in the common order its requests stand; a flush and the write that
        came with it share a rank.
    end : list of ndarray of int64
        For each disk, the byte of the common log by which the request had been recorded.
    """

    disks: list[LogRows]
    rank: list[NDArray[np.int64]]
    end: list[NDArray[np.int64]]


def read_order(log: Path, logs: Path, disks: int) -> OrderedRows:
    """Read what `order_daemon` left.

    Parameters
    ----------
    log, logs : Path
    disks : int

    Raises
    ------
    IntegrityError
        If the common order lacks an entry of a disk's log.
    TraceFormatError
        If a log is damaged.
    """
    order = read_rows(log)
    written = (order.op == Op.WRITE) | (order.op == Op.WRITE_ZEROES)
    place = np.flatnonzero(written)
    region = order.offset[place] // REGION
    stop = (order.offset + order.length)[place] - region * REGION
    own, ranks, ends = [], [], []
    for id in range(disks):
        rows = read_rows(logs, first=id * REGION, size=REGION)
        # The writes that end where an entry ends: all others rewrote the superblock, which is not
        # an entry, or are the first part of one.
        here = place[region == id]
        stops = stop[region == id]
        by_stop = np.argsort(stops, kind="stable")
        found = np.searchsorted(stops[by_stop], rows.end)
        found = np.minimum(found, max(len(stops) - 1, 0))
        missing = stops[by_stop][found] != rows.end if len(stops) else rows.end >= 0
        if missing.any():
            row = int(np.argmax(missing))
            raise IntegrityError(
                f"disk {id}: the common order of {len(place)} log writes lacks request {row}, "
                f"whose entry ends at byte {rows.end[row]} of the disk's log"
            )
        rank = here[by_stop][found] if len(stops) else np.zeros(0, np.int64)
        # What follows the last entry is a hole of many GiB.
        last = int(rows.end.max(initial=512))
        own.append(replace(rows, log=rows.log[:last]))
        ranks.append(rank)
        ends.append(order.end[rank])
    return OrderedRows(own, ranks, ends)
