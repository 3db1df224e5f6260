"""The checker of one's own: what a program says by its exit code, and that nothing of it stays."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vmbk.consistency.bounded import run_bounded
from vmbk.consistency.checkers import OUTPUT_KEPT, CheckContext, Checker
from vmbk.consistency.command import CommandChecker
from vmbk.errors import InputError, NotFoundError, StorageError

PYTHON = sys.executable


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a disk.img"
    path.write_bytes(b"contents")
    return path


@pytest.fixture
def context(tmp_path: Path) -> CheckContext:
    return CheckContext(tmp_path, filesystem_made=True, timeout_s=30)


def judge(code: str, *more: str) -> CommandChecker:
    """A program of Python that stands for any."""
    return CommandChecker([PYTHON, "-c", code, *more])


def gone(pid: int) -> bool:
    """Whether a process has ended, soon."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":  # ended; whoever inherited it has not looked yet
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize(
    ("code", "state"), [(0, "passed"), (1, "failed"), (2, "error"), (126, "error"), (127, "error")]
)
def test_the_exit_code_is_the_verdict(
    image: Path, context: CheckContext, code: int, state: str
) -> None:
    checker = CommandChecker([PYTHON, "-c", f"print('said'); raise SystemExit({code})"], name="own")
    assert isinstance(checker, Checker)
    assert checker.usable() is None
    verdict = checker.check(image, context)
    assert (verdict.checker, verdict.state) == ("own", state)
    assert verdict.state in checker.states
    assert f"exit {code}" in verdict.detail
    assert verdict.output == "said\n"
    assert verdict.seconds > 0


def test_it_is_told_of_the_image_and_of_what_was_acknowledged(image: Path, tmp_path: Path) -> None:
    other = tmp_path / "log.img"
    other.write_bytes(b"other")
    context = CheckContext(
        tmp_path, acknowledged=np.arange(1, 8), others={"log": other, "../up": other}
    )
    code = (
        "import os, sys, pathlib as p; e = os.environ\n"
        "print(sys.argv[1:] == ['--disk=' + e['VMBK_IMAGE'], 'x'], e['VMBK_ACKNOWLEDGED'],\n"
        "  e['VMBK_LAST_COMMIT'], p.Path(e['VMBK_IMAGE']).read_text(),\n"
        "  sorted(f.name + ':' + f.read_text() for f in p.Path(e['VMBK_OTHERS']).iterdir()),\n"
        "  os.getcwd() == e['VMBK_FOLDER'])\n"
    )
    verdict = judge(code, "--disk={image}", "x").check(image, context)
    assert verdict.output == "True 7 7 contents ['.._up:other', 'log:other'] True\n"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_without_a_placeholder_the_path_comes_last(image: Path, context: CheckContext) -> None:
    verdict = judge("import sys; print(sys.argv[1:])", "-v").check(image, context)
    assert verdict.output == f"{['-v', str(image)]}\n"


def test_no_shell_reads_its_words(image: Path, context: CheckContext) -> None:
    words = ["$(touch x)", "; false", "*", "a b"]
    verdict = judge("import sys; print(sys.argv[1:-1])", *words).check(image, context)
    assert verdict.output == f"{words}\n"


def test_a_signal_is_no_verdict(image: Path, context: CheckContext) -> None:
    verdict = judge("import os; os.kill(os.getpid(), 9)").check(image, context)
    assert (verdict.state, verdict.detail.rpartition(": ")[2]) == ("error", "ended by signal 9")


def test_when_time_is_up_its_whole_group_is_killed(image: Path, context: CheckContext) -> None:
    code = (
        "import subprocess, sys, time, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    checker = CommandChecker([PYTHON, "-c", code], timeout_s=1.5)
    started = time.monotonic()
    verdict = checker.check(image, context)
    assert time.monotonic() - started < 15
    assert (verdict.state, verdict.detail.rpartition(": ")[2]) == ("error", "timed out after 1.5 s")
    assert gone(int(verdict.output))


def test_what_it_leaves_running_ends_with_it(image: Path, context: CheckContext) -> None:
    """The child holds standard output open: waiting for its end would take ten minutes."""
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid)"
    started = time.monotonic()
    verdict = judge(code).check(image, context)
    assert time.monotonic() - started < 15
    assert verdict.state == "passed"
    assert gone(int(verdict.output))


def test_output_without_end_is_bounded(image: Path, context: CheckContext) -> None:
    code = "import os, sys\nfor n in range(400): os.write(1, b'x' * 65536)\nprint('the end')"
    verdict = judge(code).check(image, context)
    assert verdict.state == "passed"
    assert len(verdict.output) == OUTPUT_KEPT
    assert verdict.output.endswith("the end\n")
    endless = CommandChecker(["yes"], timeout_s=1.0).check(image, context)
    assert endless.state == "error"
    assert len(endless.output) <= OUTPUT_KEPT


def test_output_that_is_no_text(image: Path, context: CheckContext) -> None:
    verdict = judge("import os; os.write(2, bytes(range(256)))").check(image, context)
    assert verdict.state == "passed"
    assert "abc" in verdict.output


def test_the_context_bounds_the_time_too(image: Path, tmp_path: Path) -> None:
    context = CheckContext(tmp_path, timeout_s=0.5)
    assert "0.5 s" in judge("import time; time.sleep(60)").check(image, context).detail


def test_a_program_that_is_not_there(image: Path, context: CheckContext) -> None:
    checker = CommandChecker(["no-such-judge"])
    assert "no-such-judge" in str(checker.usable())
    with pytest.raises(NotFoundError, match="no-such-judge"):
        checker.check(image, context)


def test_a_program_that_is_none(image: Path, context: CheckContext, tmp_path: Path) -> None:
    script = tmp_path / "judge"
    script.write_text("no interpreter is named here\n")
    script.chmod(0o755)
    with pytest.raises(StorageError, match="cannot be run"):
        CommandChecker([str(script)]).check(image, context)


@pytest.mark.parametrize(
    "command", ["fsck {image}", [], [""], ["a", "b\0c"], ["a", 3], None], ids=repr
)
def test_commands_that_are_none(command: object) -> None:
    with pytest.raises(InputError, match="command"):
        CommandChecker(command)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 61])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(InputError, match="name of a checker"):
        CommandChecker(["true"], name=name)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_times_that_are_none(seconds: float) -> None:
    with pytest.raises(InputError, match="cannot be given"):
        CommandChecker(["true"], timeout_s=seconds)


def test_a_program_can_be_watched_for_what_it_writes(tmp_path: Path) -> None:
    code = "import os, time\nos.write(1, b'not yet... boo')\ntime.sleep(0.3)\nos.write(1, b'ted 7')"
    started = time.monotonic()
    run = run_bounded([PYTHON, "-c", code + "\ntime.sleep(600)"], folder=tmp_path, timeout_s=60,
                      stop_at=b"booted 7")  # fmt: skip
    assert time.monotonic() - started < 30
    assert run.seen
    assert not run.timed_out
    assert run.code == -signal.SIGKILL
    # The last thing that a program writes counts although it has ended by then.
    run = run_bounded([PYTHON, "-c", code], folder=tmp_path, timeout_s=60, stop_at=b"booted 7")
    assert run.seen
    never = run_bounded([PYTHON, "-c", code], folder=tmp_path, timeout_s=60, stop_at=b"booted 8")
    assert (never.seen, never.timed_out, never.code) == (False, False, 0)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        run_bounded(["/bin/true"], folder=tmp_path, timeout_s=10)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
