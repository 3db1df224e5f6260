"""Booting a disk: a real kernel, the disk's own first program, and a number that it has to say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.tools import require_guest, require_tool
from vmbk.consistency import crash_points, crash_states
from vmbk.consistency.boot import BootChecker
from vmbk.consistency.checkers import OUTPUT_KEPT, CheckContext, Checker, Verdict
from vmbk.consistency.scratch import copy_image
from vmbk.errors import InputError, VmbkError
from vmbk.trace import Trace, dataset_path, read_trace
from vmbk.trace.capture import file_digest
from vmbk.trace.capture.guest import find_kernel

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module", autouse=True)
def _tools() -> None:
    require_guest()


@pytest.fixture(scope="module")
def capture() -> Trace:
    return read_trace(dataset_path("ext4-boot"))


@pytest.fixture(scope="module")
def installed(capture: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk as the guest left it."""
    image = tmp_path_factory.mktemp("boot") / "disk, image.raw"  # QEMU's options know commas
    points = crash_points(capture, "request")
    for state in crash_states(capture, points[-1:]):
        copy_image(state.image, image)
    assert file_digest(image) == capture.provenance["image_digest"]
    return image


def rows(capture: Trace, label: str) -> list[int]:
    return [row for row, text in capture.marks() if text.startswith(label)]


def replace(image: Path, path: str, text: str) -> None:
    """Put another program in the place of one, without a mount."""
    debugfs = require_tool("debugfs", package="e2fsprogs")
    source = image.with_name("replacement")
    source.write_text(text)
    for command in (f"rm {path}", f"write {source} {path}", f"sif {path} mode 0100755"):
        subprocess.run(
            [str(debugfs), "-w", "-R", command, str(image)], check=True, capture_output=True
        )


FAILING = "#!/bin/sh\necho failed: nothing is as it was\nexit 1\n"
DAMAGED = "0123456789abcdef\nnot what was written\n"
# What is on a disk knows no number; what it may tell of the kernel's command line does not count.
FORGED = """#!/bin/sh
printf 'booted\\nbooted 0123456789abcdef\\n'
grep -o 'vmbk_n.*' /proc/cmdline
poweroff -f
"""
HANGING = "#!/bin/sh\nwhile :; do echo working; done\n"

CHANGED = {
    "failing": ("/sbin/init", FAILING, {}),
    "damaged": ("/var/lib/service/file-3", DAMAGED, {}),
    "forged": ("/sbin/init", FORGED, {}),
    "hanging": ("/sbin/init", HANGING, {"timeout_s": 8.0}),
    "other marker": ("/sbin/init", HANGING, {"marker": "working"}),
}
"""A file to replace on a whole disk, what by, and how it is booted."""


def cut_rows(capture: Trace) -> dict[str, int]:
    """Crash points: within the replacement of the shell, and among a service's steps."""
    begun, done = rows(capture, "upgrading 3")[0], rows(capture, "upgraded 3")[0]
    wanted = {
        "empty": rows(capture, "mounted")[0],
        "cut in upgrade": begun + (done - begun) * 2 // 3,
        "cut in service": rows(capture, "step 20")[0] + 1,
    }
    points = [point.row for point in crash_points(capture, "flush")]
    return {name: max(r for r in points if r <= row) for name, row in wanted.items()}


@pytest.fixture(scope="module")
def verdicts(
    capture: Trace, installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Verdict]:
    """All disks, booted two at a time."""
    folder = tmp_path_factory.mktemp("disks")
    chosen = cut_rows(capture)
    points = {point.row: point for point in crash_points(capture, "flush")}
    jobs: dict[str, tuple[Path, dict[str, object]]] = {"whole": (installed, {})}
    for state in crash_states(capture, [points[row] for row in chosen.values()]):
        for name in (name for name, row in chosen.items() if row == state.point.row):
            jobs[name] = folder / f"{name}.img", {}
            copy_image(state.image, jobs[name][0])
    for name, (path, text, options) in CHANGED.items():
        jobs[name] = folder / f"{name}.img", options
        copy_image(installed, jobs[name][0])
        replace(jobs[name][0], path, text)

    def boot(image: Path, options: dict[str, object]) -> Verdict:
        context = CheckContext(folder, filesystem_made=True)
        return BootChecker(**options).check(image, context)  # type: ignore[arg-type]

    with ThreadPoolExecutor(2) as pool:
        running = {name: pool.submit(boot, *job) for name, job in jobs.items()}
    assert list(folder.glob("guest-*")) == []
    return {name: job.result() for name, job in running.items()}


def last_step(verdict: Verdict) -> int:
    """The last step of the service that the booted system knows of."""
    found = re.search(r"service at step (\d+)", verdict.output)
    assert found is not None, verdict
    return int(found[1])


def test_what_a_guest_installed_boots_and_stays_as_it_was(
    capture: Trace, verdicts: dict[str, Verdict], installed: Path
) -> None:
    checker = BootChecker()
    assert isinstance(checker, Checker)
    assert checker.usable() is None
    verdict = verdicts["whole"]
    assert (verdict.checker, verdict.state) == ("boot", "boots"), verdict
    assert last_step(verdict) == len(rows(capture, "step "))
    assert file_digest(installed) == capture.provenance["image_digest"]


@pytest.mark.parametrize("name", ["cut in upgrade", "cut in service"])
def test_power_cuts_leave_a_system_that_boots_with_all_that_was_acknowledged(
    capture: Trace, verdicts: dict[str, Verdict], name: str
) -> None:
    assert verdicts[name].state == "boots", verdicts[name]
    row = cut_rows(capture)[name]
    assert last_step(verdicts[name]) >= sum(step < row for step in rows(capture, "step "))


def test_before_a_system_is_installed_nothing_boots(
    verdicts: dict[str, Verdict], installed: Path, tmp_path: Path
) -> None:
    assert verdicts["empty"].state == "no-boot"
    assert "Kernel panic" in verdicts["empty"].detail
    early = CheckContext(tmp_path, filesystem_made=False)
    assert BootChecker().check(installed, early).state == "not tried"


def test_a_first_program_that_fails_is_told_with_its_last_words(
    verdicts: dict[str, Verdict],
) -> None:
    verdict = verdicts["failing"]
    assert verdict.state == "no-boot"
    assert "Attempted to kill init" in verdict.detail
    assert "nothing is as it was" in verdict.output


def test_a_damaged_service_keeps_the_system_from_coming_up(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["damaged"].state == "no-boot"
    assert "file-3 is damaged" in verdicts["damaged"].output


def test_a_text_on_the_disk_cannot_say_the_number(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["forged"]
    assert verdict.state == "no-boot"
    assert "vmbk_nonce=" in verdict.output


def test_a_system_that_hangs_is_given_up(verdicts: dict[str, Verdict]) -> None:
    verdict = verdicts["hanging"]
    assert (verdict.state, verdict.detail) == ("no-boot", "nothing after 8 s")
    assert verdict.seconds < 20
    assert len(verdict.output) <= OUTPUT_KEPT


def test_a_system_that_knows_no_number_is_judged_by_what_it_writes(
    verdicts: dict[str, Verdict],
) -> None:
    assert verdicts["other marker"].state == "boots"


def test_no_file_system_no_boot(tmp_path: Path) -> None:
    image = tmp_path / "noise.img"
    image.write_bytes(os.urandom(1 << 20))
    verdict = BootChecker().check(image, CheckContext(tmp_path))
    assert verdict.state == "no-boot"
    assert verdict.detail == "given up: mount of /dev/vda as ext4"
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert not children.exists() or children.read_text() == ""


def test_where_qemu_itself_fails_nothing_is_said_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(VmbkError, match=r"QEMU ended with status 1.*absent"):
        BootChecker().check(tmp_path / "absent.img", CheckContext(tmp_path))


@pytest.fixture
def _no_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    from vmbk.consistency import guest

    guest._initramfs.cache_clear()
    # By its module: the package has a function of the name.
    monkeypatch.setattr(
        sys.modules[find_kernel.__module__], "find_kernel", lambda: find_kernel(tmp_path)
    )
    yield
    guest._initramfs.cache_clear()


@pytest.mark.usefixtures("_no_kernel")
def test_a_machine_without_a_kernel_for_guests_says_so() -> None:
    assert "vmlinuz" in str(BootChecker().usable())


@pytest.mark.parametrize(
    "wrong",
    [
        {"filesystem": "ntfs"},
        {"root": "/dev/sda"},
        {"root": "/dev/vda panic=0"},
        {"init": "sbin/init"},
        {"init": "/sbin/in it"},
        {"init": "/../init"},
        {"marker": "a\nb"},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
    ],
    ids=repr,
)
def test_what_cannot_be_booted(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        BootChecker(**wrong)  # type: ignore[arg-type]
