"""The command line as a person and as a script meet it: JSON, exit codes, clear errors."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import xxhash

from tests.tools import require_tool
from vmbk import RawDisk, dataset_path, datasets
from vmbk.cli.parser import build_parser
from vmbk.cli.program import run
from vmbk.study import read_results

MIB = 1 << 20


def clean_environment(**more: str) -> dict[str, str]:
    found = {k: v for k, v in os.environ.items() if not k.startswith("VMBK_K")}
    return found | {"PYTHONPATH": str(Path(__file__).parent.parent)} | more


def vmbk(*arguments: object, cwd: Path | None = None, key: Path | None = None) -> Any:
    """Run a command; whatever happens there is no traceback.

    In this process, since starting one takes a second and there are hundreds; what a process is and
    prints is looked at by those tests that start one.
    """
    words = [str(argument) for argument in arguments]
    environment = clean_environment(**({} if key is None else {"VMBK_KEY_FILE": str(key)}))
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stderr(io.StringIO()) as told,
        contextlib.redirect_stdout(io.StringIO()) as printed,
    ):
        answer = run(words)
    out = printed.getvalue() + (f"{answer.out}\n" if answer.out else "")
    err = told.getvalue() + (f"{answer.err}\n" if answer.err else "")
    assert "Traceback" not in err, err
    return subprocess.CompletedProcess(words, answer.code, out, err)


def ok(*arguments: object, key: Path | None = None) -> dict[str, Any]:
    """Run a command with --json; exactly one object on standard output."""
    done = vmbk(*arguments, "--json", key=key)
    assert done.returncode == 0, done.stderr
    return one_object(done.stdout)


def one_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


def fails(code: int, *arguments: object, words: str, key: Path | None = None) -> None:
    """The command ends with this code, and its error holds these words, in both forms."""
    plain = vmbk(*arguments, key=key)
    assert plain.returncode == code, plain.stderr
    assert words in plain.stderr
    assert plain.stdout == ""
    as_json = vmbk(*arguments, "--json", key=key)
    assert as_json.returncode == code
    assert one_object(as_json.stdout)["exit_code"] == code


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    """A vault with two points of an image, made by the command line."""
    folder = tmp_path_factory.mktemp("cli")
    image, key, vault = folder / "disk.raw", folder / "key", folder / "vault"
    with RawDisk.create(image, 4 * MIB) as disk:
        disk.write(MIB, np.random.default_rng(0).integers(0, 256, MIB, np.uint8))
    made = ok("vault", "create", vault, "--key-file", key)
    assert made["ok"]
    assert made["key_file_made"]
    assert key.stat().st_mode & 0o777 == 0o600
    first = ok("backup", image, "--vault", vault, "--vm", "web", key=key)
    content = image.read_bytes()
    with RawDisk(image, mode="rw") as disk:
        disk.write(2 * MIB, b"changed")
    second = ok("backup", f"{image}", "--vault", vault, "--vm", "web", key=key)
    return {"folder": folder, "image": image, "key": key, "vault": vault,
            "first": first, "second": second, "first_content": content}  # fmt: skip


def test_backup_json_has_what_the_design_promises(setup):
    keys = {"point", "detector", "fallback", "scanned_bytes", "changed_bytes", "extents",
            "sent_bytes", "stored_bytes", "seconds"}  # fmt: skip
    assert keys <= set(setup["first"])
    assert setup["first"]["detector"] == "full"
    assert setup["second"]["detector"] == "tracking"
    assert setup["second"]["sent_bytes"] == 4096
    assert {"prepare", "snapshot", "detect", "transfer", "commit"} <= set(
        setup["second"]["seconds"]
    )


def test_points_restore_and_check(setup, tmp_path):
    key, vault = setup["key"], setup["vault"]
    points = ok("points", "--vault", vault, key=key)["points"]
    assert [p["id"] for p in points] == [setup["first"]["point"], setup["second"]["point"]]
    done = ok("restore", "latest", "--vault", vault, "--to", tmp_path / "a", key=key)
    assert done["verified"] is True
    assert done["bytes"] == 4 * MIB
    assert (tmp_path / "a" / "disk.raw").read_bytes() == setup["image"].read_bytes()
    other = ok(
        "restore", setup["first"]["point"], "--vault", vault, "--to", tmp_path / "b",
        "--no-verify", key=key,
    )  # fmt: skip
    assert done["verified"]
    assert not other["verified"]
    assert (tmp_path / "b" / "disk.raw").read_bytes() == setup["first_content"]
    assert ok("vault", "check", vault, "--read-data", key=key)["ok"] is True
    stats = ok("vault", "stats", vault, key=key)
    assert stats["points"] == 2
    assert stats["stored_bytes"] > MIB


def test_people_see_a_table(setup):
    shown = vmbk("points", "--vault", setup["vault"], key=setup["key"]).stdout
    assert setup["first"]["point"] in shown
    assert "4 MiB" in shown
    stats = vmbk("vault", "stats", setup["vault"], key=setup["key"]).stdout
    assert ["points", "2"] in [line.split() for line in stats.splitlines()]


def test_hash_is_the_reference_digest(tmp_path):
    data = np.random.default_rng(1).integers(0, 256, 5 * MIB + 77, np.uint8).tobytes()
    (tmp_path / "f").write_bytes(data)
    for size in (4096, 65536, 1000, 1 << 23):
        found = ok("hash", tmp_path / "f", "--block-size", size)
        digests = [xxhash.xxh3_64_intdigest(data[i : i + size]) for i in range(0, len(data), size)]
        packed = struct.pack(f"<{len(digests)}Q", *digests)
        assert found["blocks"] == len(digests)
        assert found["digests_xxh3_64"] == xxhash.xxh3_64_hexdigest(packed)


def test_trace_info_and_replay_of_a_shipped_capture(tmp_path):
    name = datasets()[0].name
    info = ok("trace", "info", name)
    keys = {"requests", "reads", "writes", "flushes", "read_bytes", "write_bytes",
            "unique_write_blocks", "duration_s", "volumes"}  # fmt: skip
    assert keys <= set(info)
    assert info["writes"] > 100
    assert info["flushes"] > 100
    done = ok("replay", name, "--disk", tmp_path / "disk.raw")
    assert done["writes"] == info["writes"]
    assert done["write_bytes"] == info["write_bytes"]
    fails(2, "replay", name, "--disk", tmp_path / "disk.raw", "--until", 10**9, words="1000000000")


def write_log(path: Path, entries: list[tuple[int, bytes]], *, count: int | None = None) -> None:
    """A dm-log-writes log of plain writes, at 512 B sectors."""
    header = struct.pack(
        "<QQQI", 0x6A736677736872, 1, len(entries) if count is None else count, 512
    )
    body = header.ljust(512, b"\0")
    for sector, data in entries:
        entry = struct.pack("<QQQQ", sector, len(data) // 512, 0, len(data)).ljust(512, b"\0")
        body += entry + data
    path.write_bytes(body)


class TestBadInput:
    """Each wrong input of the main job: a clear error, the right code, nothing lost."""

    def test_unknown_format(self, tmp_path):
        (tmp_path / "x").write_bytes(b"what is this\n" * 100)
        fails(
            2, "trace", "import", tmp_path / "x", "-o", tmp_path / "o.arrow", words="dm-log-writes"
        )
        assert not (tmp_path / "o.arrow").exists()
        fails(2, "trace", "import", tmp_path / "x", "-o", tmp_path / "o.arrow", "--format", "tape",
              words="tape")  # fmt: skip

    def test_truncated_log(self, tmp_path):
        write_log(tmp_path / "log", [(0, b"a" * 512), (1, b"b" * 512)], count=9)
        fails(2, "trace", "import", tmp_path / "log", "-o", tmp_path / "o.arrow", words="9")

    def test_all_zero_superblock(self, tmp_path):
        (tmp_path / "log").write_bytes(bytes(MIB))
        fails(2, "trace", "import", tmp_path / "log", "-o", tmp_path / "o.arrow",
              "--format", "dm-log-writes", words="zero")  # fmt: skip

    def test_request_past_the_end(self, tmp_path):
        write_log(tmp_path / "log", [(0, b"a" * 512), (4095, b"b" * 1024)])
        fails(2, "trace", "import", tmp_path / "log", "-o", tmp_path / "o.arrow",
              "--volume-size", "2MiB", words="2097152")  # fmt: skip
        done = ok("trace", "import", tmp_path / "log", "-o", tmp_path / "o.arrow",
                  "--volume-size", "3MiB")  # fmt: skip
        assert (done["requests"], done["writes"], done["skipped"]) == (2, 2, 0)

    def test_a_disk_too_small_for_the_trace(self, tmp_path):
        RawDisk.create(tmp_path / "small.raw", MIB).close()
        fails(2, "replay", "ext4-sqlite", "--disk", tmp_path / "small.raw", words="1 MiB")

    def test_wrong_key(self, setup, tmp_path):
        other = tmp_path / "other-key"
        ok("vault", "create", tmp_path / "v", "--key-file", other)
        for command in (["points"], ["restore", "latest", "--to", tmp_path / "out"]):
            fails(2, *command, "--vault", setup["vault"], words="key", key=other)
        fails(2, "points", "--vault", setup["vault"], key=tmp_path / "absent", words="absent")
        fails(2, "points", "--vault", setup["vault"], words="--key-file")
        assert not (tmp_path / "out").exists()

    def test_a_flipped_byte_in_a_pack(self, setup, tmp_path):
        copy = tmp_path / "vault"
        shutil.copytree(setup["vault"], copy)
        pack = max((p for p in (copy / "packs").rglob("*") if p.is_file()),
                   key=lambda p: p.stat().st_size)  # fmt: skip
        raw = bytearray(pack.read_bytes())
        raw[len(raw) // 2] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(raw)
        fails(3, "restore", "latest", "--vault", copy, "--to", tmp_path / "out", key=setup["key"],
              words="check")  # fmt: skip
        assert list((tmp_path / "out").iterdir()) == []
        done = vmbk("vault", "check", copy, "--read-data", "--json", key=setup["key"])
        assert done.returncode == 3
        report = one_object(done.stdout)
        assert report["ok"] is False
        assert report["errors"]

    def test_a_full_disk(self, setup, tmp_path):
        """A vault on a real file system of 3 MiB that fills up in mid-backup."""
        require_tool("mount", package="mount")
        if os.geteuid() != 0:
            pytest.skip("mounting a tmpfs needs root")
        small = tmp_path / "small"
        small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=True)
        try:
            vault, key, image = small / "vault", tmp_path / "key", tmp_path / "disk.raw"
            ok("vault", "create", vault, "--key-file", key)
            with RawDisk.create(image, 16 * MIB) as disk:
                disk.write(0, np.random.default_rng(3).integers(0, 256, MIB, np.uint8))
            ok("backup", image, "--vault", vault, "--vm", "a", key=key)
            before = image.read_bytes()
            with RawDisk(image, mode="rw") as disk:
                disk.write(0, np.random.default_rng(4).integers(0, 256, 12 * MIB, np.uint8))
            fails(1, "backup", image, "--vault", vault, "--vm", "a", key=key, words="pace")
            ok("restore", "latest", "--vault", vault, "--to", tmp_path / "out", key=key)
            assert (tmp_path / "out" / "disk.raw").read_bytes() == before
            # Restoring onto a file system that is nearly full: refused before a byte is written.
            free = shutil.disk_usage(small).free
            (small / "filler").write_bytes(bytes(free - MIB // 2))
            fails(2, "restore", "latest", "--vault", setup["vault"], "--to", small / "out",
                  "--vm", "web", key=setup["key"], words="free")  # fmt: skip
        finally:
            subprocess.run(["umount", small], check=True)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "COMMAND"),
            (["sing"], "sing"),
            (["hash"], "FILE"),
            (["hash", "/nonexistent"], "/nonexistent"),
            (["hash", "/etc/passwd", "--block-size", "huge"], "huge"),
            (["hash", "/etc/passwd", "--block-size", "0"], "0"),
            (["hash", "/etc/passwd", "--algorithm", "md4"], "md4"),
            (["trace", "info", "/nonexistent.arrow"], "nonexistent"),
            (["trace", "info", "/etc/passwd"], "passwd"),
            (["trace", "import", "/etc/passwd", "-o", "x.doc"], "x.doc"),
            (["trace", "capture", "nonesuch", "-o", "x.arrow"], "nonesuch"),
            (["crash", "ext4-sqlite", "--states", "0"], "0"),
            (["crash", "ext4-sqlite", "--states", "10000001"], "10000000"),
            (["crash", "ext4-sqlite", "--seed", "-5"], "'-5' is not a whole number from 0"),
            (["crash", "ext4-sqlite", "--seed", str(1 << 63)], str((1 << 63) - 1)),
            (["replay", "ext4-sqlite", "--disk", "/nonexistent/d", "--seed", "-5"], "'-5'"),
            (["replay", "ext4-sqlite", "--disk", "/nonexistent/d", "--seed", "9" * 5000], "999…99"),
            (["replay", "ext4-sqlite", "--disk", "/nonexistent/d", "--until", "1e9"], "1e9"),
            (["hash", "/etc/passwd", "--block-size", "9" * 400 + ".5"], "999…999"),
            (["hash", "/etc/passwd", "--block-size", "9" * 5000], "999…999"),
            (["hash", "/etc/passwd", "--block", "4096"], "--block"),
            (["study", "--ou", "/nonexistent"], "--ou"),
            (["study", "/dev/zero"], "not a regular file"),
            (["study", "/etc"], "not a regular file"),
            (["crash", "ext4-sqlite", "--model", "quake"], "quake"),
            (["study", "/nonexistent.toml"], "nonexistent"),
            (["vault", "check", "s3://bucket", "--key-file", "k"], "s3"),
            (["points", "--vault", "/nonexistent", "--key-file", "/etc/passwd"], "nonexistent"),
        ],
    )
    def test_wrong_words(self, arguments, words, tmp_path):
        fails(2, *arguments, words=words)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("[grid", "TOML"),
            ("[grid]\ndatasets = ['nonesuch']", "nonesuch"),
            ("[grid]\ndatasets = ['ext4-sqlite']\ndetectors = ['magic']", "magic"),
            ("[grid]\ndatasets = ['ext4-sqlite']\nblock_size = ['3KiB']", "3072"),
            ("[grid]\ndatasets = ['ext4-sqlite']\ninterval = ['0%']", "0%"),
            ("[grid]\ndatasets = ['ext4-sqlite']\ninterval = ['-5s']", "-5s"),
            ("[grid]\ndatasets = []", "grid.datasets"),
            ("[grid]\ndataset = ['ext4-sqlite']", "dataset"),
            ("[grid]\ndatasets = ['ext4-sqlite']\ninterval = ['1ns']", "grid.interval"),
            (f"[grid]\ndatasets = ['ext4-sqlite']\ninterval = ['{'9' * 400}.5h']", "grid.interval"),
            (f"[grid]\ndatasets = ['ext4-sqlite']\ninterval = [{'9' * 400}]", "grid.interval"),
            (f"[grid]\ndatasets = ['ext4-sqlite']\nblock_size = [{'9' * 5000}]", "TOML"),
            (f"[grid]\ndatasets = ['ext4-sqlite']\nblock_size = [0x{'f' * 9000}]", "digits"),
            ("a = " + "[" * 100_000, "TOML"),
            ("[grid]\ndatasets = ['ext4-sqlite']\ndetectors = ['full', 'full']", "grid.detectors"),
            ("#" * (1 << 20) + "\n", "1 MiB"),
            ("seed = -1\n[grid]\ndatasets = ['ext4-sqlite']", "seed"),
        ],
    )
    def test_wrong_studies(self, tmp_path, text, words):
        (tmp_path / "study.toml").write_text(text)
        fails(2, "study", tmp_path / "study.toml", "--out", tmp_path / "out", words=words)


def test_a_small_study_end_to_end(tmp_path):
    (tmp_path / "study.toml").write_text(
        "seed = 1\n[grid]\ndatasets = ['ext4-sqlite']\ndetectors = ['checksum', 'tracking']\n"
        "interval = ['50%']\n"
    )
    done = ok("study", tmp_path / "study.toml", "--out", tmp_path / "out")
    assert done["verified"] is True
    assert done["rows"] == 2 * 3
    assert {"results", "report"} <= set(done)
    assert Path(done["report"]).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert dataset_path("ext4-sqlite").exists()


def sh(script: str, *words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the program from a shell script, in which ``"$@"`` is the program and its words."""
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", sys.executable, "-m", "vmbk", *map(str, words)],
        capture_output=True, env=clean_environment(**environment), timeout=300, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr
    assert b"Exception ignored" not in done.stderr, done.stderr
    return done


class TestStreams:
    """Standard streams that are closed, full, gone or of few letters."""

    def test_output_that_cannot_be_written(self, tmp_path):
        for redirection, reason in ((">&-", b"closed"), (">/dev/full", b"No space left")):
            for words in (["trace", "info", "ext4-sqlite"], ["--help"], ["--version"]):
                for more in ([], ["--json"]):
                    done = sh(f'"$@" {redirection}', *words, *more)
                    assert done.returncode == 1, (redirection, words, done)
                    assert b"cannot write to standard output" in done.stderr
                    assert reason in done.stderr
        # What failed before stays what failed.
        assert sh('"$@" >/dev/full', "trace", "info", "/nonexistent", "--json").returncode == 2
        assert sh('"$@" >&-', "sing", "--json").returncode == 2

    def test_errors_do_not_go_to_standard_output(self):
        for redirection in ("2>&-", "2>/dev/full"):
            plain = sh(f'"$@" {redirection}', "trace", "info", "/nonexistent")
            assert (plain.returncode, plain.stdout) == (2, b"")
            as_json = sh(f'"$@" {redirection}', "trace", "info", "/nonexistent", "--json")
            assert as_json.returncode == 2
            assert one_object(as_json.stdout.decode())["exit_code"] == 2

    def test_progress_that_cannot_be_shown_does_not_stop_the_work(self, tmp_path):
        for i, redirection in enumerate(("2>&-", "2>/dev/full", ">&- 2>&- <&-")):
            disk = tmp_path / f"{i}.raw"
            words = ("replay", "ext4-sqlite", "--disk", disk, "--json")
            done = sh(f'"$@" {redirection}', *words, VMBK_PROGRESS="1")
            if i < 2:
                assert done.returncode == 0, done
                assert one_object(done.stdout.decode())["created"] is True
            else:
                assert done.returncode == 1
            assert disk.stat().st_size == 64 * MIB

    @pytest.mark.parametrize("where", ["terminal", "pipe"])
    def test_progress_is_shown_and_ends(self, tmp_path, where):
        """On a real terminal, where a bar takes the place of standard error while it is shown."""
        ours, theirs = os.openpty() if where == "terminal" else os.pipe()
        forced = {} if where == "terminal" else {"VMBK_PROGRESS": "1"}
        words = ["replay", "ext4-sqlite", "--disk", str(tmp_path / "disk.raw")]
        running = subprocess.Popen(
            [sys.executable, "-m", "vmbk", *words], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=theirs,
            env=clean_environment(TERM="xterm", **forced),
        )  # fmt: skip
        os.close(theirs)
        late = threading.Timer(60, running.kill)
        late.start()
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal says that its other side is gone
            while data := os.read(ours, 65536):
                shown += data
        os.close(ours)
        out, _ = running.communicate(timeout=60)
        late.cancel()
        assert running.returncode == 0, shown[:2000]
        assert b"disk.raw" in out
        assert "━".encode() in shown
        assert "replay" in re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()

    def test_a_closed_stream_is_not_taken_by_a_file(self, tmp_path):
        """What e2fsck and libraries print must not land in an image that got their number."""
        require_tool("e2fsck", package="e2fsprogs")
        done = sh('"$@" 2>&- <&-', "crash", "ext4-sqlite", "--states", "2", "--json")
        assert done.returncode == 0, done
        plain = sh('"$@"', "crash", "ext4-sqlite", "--states", "2", "--json")
        assert (
            one_object(done.stdout.decode())["outcomes"]
            == (one_object(plain.stdout.decode())["outcomes"])
        )

    @pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict", "latin-1:strict"])
    def test_names_of_any_bytes(self, tmp_path, encoding):
        name = os.fsencode(tmp_path) + b"/\xff\xe9\xe2\x82\xac"
        for more in ([], ["--json"]):
            done = subprocess.run(
                [sys.executable, "-m", "vmbk", "hash", name, *more], capture_output=True,
                env=clean_environment(PYTHONIOENCODING=encoding), timeout=60, check=False,
            )  # fmt: skip
            assert done.returncode == 2, done
            assert b"Traceback" not in done.stderr
            assert b"\\udcff" in done.stderr
            if more:
                assert "\\udcff" in one_object(done.stdout.decode("ascii"))["error"]
        Path(os.fsdecode(name)).write_bytes(bytes(4096))
        done = subprocess.run(
            [sys.executable, "-m", "vmbk", "hash", name], capture_output=True,
            env=clean_environment(PYTHONIOENCODING=encoding), timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done
        assert b"1 blocks of 64 KiB" in done.stdout

    def test_a_reader_that_goes_away(self):
        done = sh('{ "$@"; echo $? >&2; } | true', "trace", "info", "ext4-sqlite")
        assert done.stderr.split() in ([b"141"], [b"0"])  # 0 where the reader left too late


class TestSignals:
    """Ctrl-C and SIGTERM: one answer, the right code, no traceback."""

    @pytest.mark.parametrize("where", ["except", "del"])
    def test_an_interrupt_that_a_library_swallows_comes_again(self, tmp_path, where):
        """A signal arrives while a bare except clause or an object's end is around what runs."""
        swallowing = {
            "except": "    try:\n        strike()\n    except BaseException: pass\n",
            "del": "    class Object:\n        def __del__(self): strike()\n    Object()\n",
        }
        start = (
            "import os, signal, sys\n"
            "import vmbk.pipeline.backup as module\n"
            "load = module.load_kernels\n"
            "def strike(): os.kill(os.getpid(), signal.SIGTERM); sum(range(10**6))\n"
            f"def swallow():\n{swallowing[where]}    load()\n"
            "module.load_kernels = swallow\n"
            "from vmbk.cli import main; main()"
        )
        words = ["study", "--out", str(tmp_path / "out"), "--json"]
        done = subprocess.run(
            [sys.executable, "-c", start, *words], capture_output=True, text=True, check=False,
            env=clean_environment(VMBK_PROGRESS="0", TMPDIR=str(tmp_path)),
        )  # fmt: skip
        assert done.returncode == 143, done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        assert one_object(done.stdout)["exit_code"] == 143

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    @pytest.mark.parametrize("as_json", [True, False])
    def test_interrupted(self, tmp_path, number, code, as_json):
        # A shell may have started the tests with SIGINT ignored, which children inherit.
        start = (
            "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from vmbk.cli import main; main()"
        )
        words = ["study", "--out", str(tmp_path / "out"), *["--json"][: int(as_json)]]
        with subprocess.Popen(
            [sys.executable, "-c", start, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=clean_environment(VMBK_PROGRESS="0", TMPDIR=str(tmp_path)), text=True,
        ) as running:  # fmt: skip
            deadline = 200
            while not list(tmp_path.glob("vmbk-study-*/disk.raw")) and deadline:
                assert running.poll() is None
                select.select([], [], [], 0.1)
                deadline -= 1
            running.send_signal(number)
            out, err = running.communicate(timeout=60)
        assert running.returncode == code, err
        assert "Traceback" not in err
        assert "interrupted" in err
        if as_json:
            found = one_object(out)
            assert (found["error"], found["exit_code"]) == ("interrupted", code)
        else:
            assert out == ""
        assert list((tmp_path / "out").iterdir()) == []
        assert not list(tmp_path.glob("vmbk-study-*"))


def test_an_unexpected_error_is_one_object_too():
    """An installation without Arrow: nothing that vmbk foresees."""
    start = "import sys; sys.modules['pyarrow'] = None; from vmbk.cli import main; main()"
    words = ["trace", "info", "ext4-sqlite", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", start, *words], capture_output=True, text=True,
        env=clean_environment(), timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    found = one_object(done.stdout)
    assert found["error"].startswith("unexpected error: ModuleNotFoundError: ")
    assert "please report" in found["error"]
    assert "VMBK_DEBUG=1" in found["hint"]
    assert "Traceback" not in done.stderr


def test_debug_shows_tracebacks():
    done = subprocess.run(
        [sys.executable, "-m", "vmbk", "trace", "info", "/nonexistent"], capture_output=True,
        text=True, env=clean_environment(VMBK_DEBUG="1"), timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_json_may_stand_anywhere_among_the_options(tmp_path):
    for words in (
        ["--json", "trace", "info", "ext4-sqlite"],
        ["trace", "--json", "info", "ext4-sqlite"],
        ["trace", "info", "--json", "ext4-sqlite"],
        ["trace", "info", "ext4-sqlite", "--json"],
    ):
        done = vmbk(*words)
        assert done.returncode == 0, done.stderr
        assert one_object(done.stdout)["writes"] > 100
    done = vmbk("--json", "points")
    assert one_object(done.stdout)["exit_code"] == done.returncode == 2
    # After -- it is a name, not an option.
    done = vmbk("study", "--", "--json", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'--json'" in done.stderr


def test_a_study_from_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    fails(2, "study", tmp_path / "pipe", words="not a regular file")


def test_a_study_looks_at_its_folder_before_it_runs(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    for out in ("file", "file/below", "link"):
        fails(2, "study", "--out", tmp_path / out, words="no folder")
    fails(2, "study", "--out", tmp_path / "out", words="report.html")
    # Nobody, root included, makes files in /proc.
    fails(1, "study", "--out", "/proc", words="cannot write in the folder '/proc': No such file")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_study_on_a_read_only_file_system(tmp_path):
    require_tool("mount", package="mount")
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", tmp_path], check=True)
    try:
        fails(1, "study", "--out", tmp_path, words="Read-only file system")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_restoring_onto_a_file_is_bad_input(setup, tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for to in ("file", "file/below/it", "link"):
        fails(2, "restore", "latest", "--vault", setup["vault"], "--to", tmp_path / to,
              words="is no folder", key=setup["key"])  # fmt: skip
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]


def test_commands_and_studies_open_the_same_trace(tmp_path):
    """A file named as a shipped capture is what both of them take."""
    shutil.copy(dataset_path("ext4-fragmented"), tmp_path / "ext4-sqlite")
    (tmp_path / "study.toml").write_text(
        "[grid]\ndatasets = ['ext4-sqlite']\ndetectors = ['tracking']\ninterval = ['100%']\n"
    )
    info = one_object(vmbk("trace", "info", "ext4-sqlite", "--json", cwd=tmp_path).stdout)
    study = vmbk("study", "study.toml", "--out", "out", "--json", cwd=tmp_path)
    assert study.returncode == 0, study.stderr
    rows = read_results(tmp_path / "out")
    assert set(rows["dataset_digest"]) == {info["digest"]}
    assert info["digest"] == {d.name: d.digest for d in datasets()}["ext4-fragmented"]
    fails(2, "trace", "info", "nonesuch", words="ext4-sqlite")


def parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found += parsers(below)
    return found


def test_every_option_has_a_help_text_and_no_abbreviation():
    found = parsers(build_parser())
    assert len(found) > 12
    for parser in found:
        assert not parser.allow_abbrev
        assert parser.description
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, (parser.prog, action.dest)
        assert "--json" in parser.format_help()
