"""Worked examples of the documents that the project implements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmbk import RawDisk, Settings, Vault, backup

KIB = 1024
BLOCK = 64 * KIB


def block(label: str) -> bytes:
    """A block that looks like nothing else: the label's own pseudo-random bytes."""
    seed = int.from_bytes(label.encode(), "little")
    return np.random.default_rng(seed).integers(0, 256, BLOCK, np.uint8).tobytes()


@pytest.fixture
def vault(tmp_path: Path):
    with Vault.create(tmp_path / "vault", tmp_path / "key", durability="none") as made:
        yield made


@pytest.mark.parametrize(
    ("detector", "sent"),
    [("full", [10, 10, 10]), ("differential", [10, 4, 5]), ("checksum", [10, 4, 1]),
     ("tracking", [10, 4, 1]), ("compare", [10, 4, 1])],
)  # fmt: skip
def test_g1_ten_blocks(tmp_path: Path, vault: Vault, detector: str, sent: list[int]):
    """Ten blocks A1 to A10; A2, A3, A4 and A9 change, then A5 (architecture, backup types).

    Golden vector G1: full 10/10/10, differential 10/4/5, incremental 10/4/1.
    """
    with RawDisk.create(tmp_path / "A.raw", 10 * BLOCK) as disk:
        if detector == "tracking":
            disk.start_tracking()
        months = [range(1, 11), [2, 3, 4, 9], [5]]
        blocks = []
        for month, changed in enumerate(months, start=1):
            for number in changed:
                disk.write((number - 1) * BLOCK, block(f"A{number} in month {month}"))
            done = backup([disk], vault, "A", detector=detector, track=False)
            assert done.total("sent_bytes") % BLOCK == 0
            blocks.append(done.total("sent_bytes") // BLOCK)
    assert blocks == sent


@pytest.mark.parametrize("detector", ["checksum", "tracking", "compare"])
@pytest.mark.parametrize(("sub_block", "stored"), [(0, 16 * KIB), (4 * KIB, 4 * KIB)])
def test_g3_one_kib_changes(tmp_path, vault, detector, sub_block, stored):
    """A 1 KiB change at 16 KiB blocks: the whole block is stored; with drill-down, one sub-block.

    Golden vector G3.
    """
    settings = Settings(16 * KIB, sub_block)
    with RawDisk.create(tmp_path / "disk.raw", 4 * 16 * KIB) as disk:
        disk.write(0, block("D1"))
        if detector == "tracking":
            disk.start_tracking(16 * KIB)
        backup([disk], vault, "vm", detector=detector, settings=settings, track=False)
        disk.write(20 * KIB, block("D2")[:KIB])
        done = backup([disk], vault, "vm", detector=detector, settings=settings, track=False)
    assert done.disks[0].detector == detector
    assert done.total("sent_bytes") == done.total("new_bytes") == stored
    assert stored <= done.total("stored_bytes") < stored + KIB


def test_g20_a_deleted_snapshot_costs_a_full_scan_of_the_next_job_only(tmp_path, vault):
    """Golden vector G20: without its base snapshot a job reads everything, the one after not."""
    with RawDisk.create(tmp_path / "disk.raw", 256 * BLOCK) as disk:
        disk.start_tracking()
        for i in range(256):
            disk.write(i * BLOCK, block(f"B{i}"))
        backup([disk], vault, "vm", detector="tracking")
        first = disk.tracker.generation - 1
        disk.write(0, block("new"))
        disk.tracker.delete_snapshot(first)
        second = backup([disk], vault, "vm", detector="tracking").disks[0]
        disk.write(BLOCK, block("newer"))
        third = backup([disk], vault, "vm", detector="tracking").disks[0]
    assert (second.detector, second.fallback) == ("checksum", "base snapshot deleted")
    assert second.scanned_bytes == disk.size
    assert (third.detector, third.fallback) == ("tracking", "")
    assert third.scanned_bytes <= 11 * BLOCK
    assert (second.sent_bytes, third.sent_bytes) == (BLOCK, BLOCK)
