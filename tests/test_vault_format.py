"""The on-disk format: pinned, readable by its document alone, and safe against any change."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tests.test_vault_frozen import BLAKE3, POINTS, write_frozen
from tests.test_vault_helpers import (
    BLOCK,
    back_up,
    changed,
    new_vault,
    nothing_wrong_is_read,
    read_back,
    reopen,
    seeded,
    ticking,
)
from vmbk.errors import InputError, IntegrityError, WrongKeyError
from vmbk.vault import Vault
from vmbk.vault.chunk import decode, encrypt, prepare
from vmbk.vault.crypto import SEALED_INDEX, SEALED_POINT, Keys, MasterKey
from vmbk.vault.format import ENTRY_SIZE, TRAILER_SIZE, EntryHeader, pack_name
from vmbk.vault.manifest import RecoveryPoint
from vmbk.vault.pack import read_footer
from vmbk.vault.sealed import seal, unseal
from vmbk.vault.store import LocalStore

FIRST = (
    seeded(5)(2 * BLOCK) + bytes(BLOCK) + (b"99 bottles of beer on the wall\n" * 99)[: BLOCK + 100]
)
"""Two random blocks, a block of zeros, text, and a short last block."""


@pytest.fixture
def pinned(tmp_path: Path) -> Path:
    """A vault in which nothing is left to chance."""
    vault = new_vault(tmp_path, random=seeded(1), clock=ticking())
    back_up(vault, {"disk": FIRST})
    return tmp_path


def files(folder: Path, below: str) -> list[Path]:
    return sorted(p for p in (folder / "vault" / below).rglob("*") if p.is_file())


def only(folder: Path, below: str) -> Path:
    (path,) = files(folder, below)
    return path


# What is pinned


def test_golden_digests(pinned: Path) -> None:
    """The bytes that the first version wrote; they may change with the format's version only."""
    digests = {
        path.relative_to(pinned).parts[1]: blake3(path.read_bytes()).hexdigest()
        for path in [pinned / "key", *files(pinned, "")]
        if path.stat().st_size and path.name != "key"
    }
    digests["key"] = blake3((pinned / "key").read_bytes()).hexdigest()
    assert digests == {
        "config": "af0a8ed470c95d1b08eb05a044fcacf4b38998f32351c32c286e28b7dede54ba",
        "packs": "a1433d988a842133aa45faada7a5afb82460eb9362fb2498667b826d31396677",
        "index": "76abe658f0a32aade18e2872e6fe53c855549bdcbe5b8f623343ce00e6de5985",
        "points": "9d05d0da5ec2c7e6be895762ddbf78d8d9036042b1fff7d0030342ca5f30b67c",
        "key": "b44903f0e23a28e88b6ba2604696a66be222a3dc4478b1318ef64b0898f66c2d",
    }
    assert only(pinned, "points").name == "20261121T100000Z-640cf3f6"


def test_a_vault_of_the_first_version_still_reads(tmp_path: Path) -> None:
    write_frozen(tmp_path)
    vault = Vault.open(tmp_path / "vault", tmp_path / "key")
    report = vault.check(read_data=True)
    assert report.ok, report.errors
    assert (report.points, report.packs) == (2, 2)
    points = vault.points("vm")
    assert tuple(point.id for point in points) == POINTS
    assert [point.consistency for point in points] == ["crash", "application"]
    assert points[1].disks[0].parent == points[0].id
    assert points[0].provenance == {"made": "by a test"}
    for point, digest in zip(points, BLAKE3, strict=True):
        assert blake3(read_back(vault, point, "disk")).hexdigest() == digest
        vault.digests(point, "disk")


def test_the_document_is_enough_to_read_a_vault(pinned: Path) -> None:
    """A reader written from FORMAT.md, with nothing of vmbk in it."""
    key_file = json.loads((pinned / "key").read_bytes())
    assert (key_file["format"], key_file["version"]) == ("vmbk key", 1)
    master = base64.b64decode(key_file["key"])

    def derive(context: str, material: bytes, length: int = 32) -> bytes:
        context = "vmbk 2026-11-21 " + context
        return blake3(material, derive_key_context=context).digest(length)

    assert key_file["key_id"] == derive("key id", master, 8).hex()
    raw_config = (pinned / "vault" / "config").read_bytes()
    config = json.loads(raw_config)
    vault_id = bytes.fromhex(config["vault_id"])

    def subkey(context: str) -> bytes:
        return derive("vault 1 " + context, master + vault_id)

    check = config.pop("key_check")
    canonical = (json.dumps(config, sort_keys=True, indent=2) + "\n").encode()
    assert blake3(canonical, key=subkey("config")).hexdigest() == check
    assert config == {
        "format": "vmbk vault", "version": 1, "vault_id": vault_id.hex(),
        "key_id": key_file["key_id"],
        "parameters": {"hash": "blake3-256", "aead": "aes-256-gcm", "compression": "zstd",
                       "max_chunk": 16777216, "pack_target": 65536},
    }  # fmt: skip

    def unsealed(path: Path, kind: int, context: str, name: bytes) -> Any:
        data = path.read_bytes()
        magic, found, version, epoch, reserved, salt, raw = struct.unpack("<8sBBHI32sQ", data[:56])
        assert (magic, found, version, epoch, reserved) == (b"VMBKSEAL", kind, 1, 0, 0)
        stream = blake3(salt, key=subkey(context)).digest(length=44)
        body = AESGCM(stream[:32]).decrypt(stream[32:], data[56:], data[:56] + vault_id + name)
        plain = pa.Codec("zstd").decompress(body, decompressed_size=raw)
        return pa.ipc.open_stream(plain).read_all()

    index_path = only(pinned, "index")
    assert blake3(index_path.read_bytes()).hexdigest() == index_path.name
    index = unsealed(index_path, 1, "index", b"")
    assert index.schema.metadata == {b"vmbk.index": b"1"}

    pack_path = only(pinned, "packs")
    pack = pack_path.read_bytes()
    assert pack_path.parent.name == pack_path.name[:2]
    assert blake3(pack).hexdigest() == pack_path.name
    head = struct.pack("<8sH6x16s", b"VMBKPACK", 1, vault_id)
    assert pack[:32] == head
    magic, count, zero, footer, zeros = struct.unpack("<8sIIQQ", pack[-64:-32])
    assert (magic, zero, zeros) == (b"VMBKTAIL", 0, 0)
    assert len(pack) == footer + 64 * count + 64
    assert blake3(head + pack[footer:-32], key=subkey("pack footer")).digest() == pack[-32:]

    chunks, offset, rows = {}, 32, index.to_pylist()
    for i in range(count):
        header = pack[offset : offset + 64]
        assert header == pack[footer + 64 * i : footer + 64 * i + 64]
        magic, kind, compression, epoch, raw, stored, chunk, nonce, short = struct.unpack(
            "<4sBBHII32s12s4s", header
        )
        assert (magic, epoch, short) == (b"VMBE", 0, blake3(header[:60]).digest()[:4])
        assert rows[i] == {
            "chunk": chunk, "pack": bytes.fromhex(pack_path.name), "offset": offset,
            "stored": stored, "raw": raw, "kind": kind, "compression": compression,
        }  # fmt: skip
        key = blake3(chunk, key=subkey("chunk encryption")).digest()
        plain = AESGCM(key).decrypt(
            nonce, pack[offset + 64 : offset + 64 + stored], header + vault_id
        )
        if compression == 1:
            plain = bytes(pa.Codec("zstd").decompress(plain, decompressed_size=raw))
        name = {1: "chunk id data", 2: "chunk id table"}[kind]
        assert blake3(plain, key=subkey(name)).digest() == chunk
        chunks[chunk] = plain
        offset += 64 + stored
    assert offset == footer
    assert len(rows) == count

    point_path = only(pinned, "points")
    manifest = unsealed(point_path, 2, "recovery point", point_path.name.encode())
    point = json.loads(manifest.schema.metadata[b"vmbk.point"])
    assert (point["version"], point["id"], point["vm"]) == (1, point_path.name, "vm")
    (disk,) = manifest.to_pylist()
    restored = bytearray(disk["size"])
    for table in disk["extents"]:
        for row in pa.ipc.open_stream(chunks[table]).read_all().to_pylist():
            if row["chunk"] is not None:
                start = row["chunk_offset"]
                part = chunks[row["chunk"]][start : start + row["length"]]
                restored[row["offset"] : row["offset"] + row["length"]] = part
    assert bytes(restored) == FIRST


# Changes of single bytes


def flipped(data: bytes, i: int) -> bytes:
    return data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :]


def opened(folder: Path) -> tuple[LocalStore, Keys]:
    master = MasterKey.load(folder / "key")
    config = json.loads((folder / "vault" / "config").read_bytes())
    return LocalStore(folder / "vault"), Keys(master, bytes.fromhex(config["vault_id"]))


def test_any_flip_in_an_entry_is_found(tmp_path: Path) -> None:
    new_vault(tmp_path)
    _, keys = opened(tmp_path)
    for plaintext in (bytes(100), seeded(1)(60)):
        chunk = keys.chunk_id(1, plaintext)
        header, body = prepare(1, chunk, memoryview(plaintext), seeded(1))
        entry = bytearray(len(header) + len(body) + 16)
        entry[:64] = header
        encrypt(keys, header, body, memoryview(entry)[64:])
        assert bytes(decode(keys, bytes(entry), None, "x")) == plaintext
        for i in range(len(entry)):
            with pytest.raises(IntegrityError):
                decode(keys, flipped(bytes(entry), i), None, "x")
        for length in range(len(entry)):
            with pytest.raises(IntegrityError):
                decode(keys, bytes(entry[:length]), None, "x")


def test_any_flip_in_a_sealed_file_is_found(tmp_path: Path) -> None:
    """Also by somebody who gives the file the name that its new bytes demand."""
    new_vault(tmp_path)
    _, keys = opened(tmp_path)
    for kind, name in ((SEALED_INDEX, ""), (SEALED_POINT, "20261121T101500Z-1a2b3c4d")):
        data = seal(keys, kind, name, b"some payload" * 9, seeded(1))
        assert bytes(unseal(keys, kind, name, data, "x")) == b"some payload" * 9
        damaged = [flipped(data, i) for i in range(len(data))]
        damaged += [data[:i] for i in range(len(data))] + [data + b"\0"]
        for bad in damaged:
            with pytest.raises(IntegrityError, match=r"^x "):
                unseal(keys, kind, name, bad, "x")
        for other in ((kind, "20261121T101500Z-1a2b3c4e"), (3 - kind, name)):
            with pytest.raises(IntegrityError):
                unseal(keys, *other, data, "x")


def test_any_flip_in_a_footer_is_found(pinned: Path) -> None:
    store, keys = opened(pinned)
    path = only(pinned, "packs")
    data, digest = path.read_bytes(), bytes.fromhex(path.name)
    count = len(read_footer(store, keys, digest).entries)
    for i in range(len(data) - TRAILER_SIZE - count * ENTRY_SIZE, len(data)):
        path.write_bytes(flipped(data, i))
        with pytest.raises(IntegrityError, match=path.name):
            read_footer(store, keys, digest)


def assert_found(folder: Path, contents: dict[str, dict[str, bytes]]) -> None:
    """Damage does not go unnoticed, and no wrong byte is ever handed out."""
    try:
        vault = reopen(folder)
    except (IntegrityError, WrongKeyError, InputError):
        return
    report = vault.check(read_data=True)
    assert not report.ok
    assert report.errors
    nothing_wrong_is_read(vault, contents)


@pytest.mark.parametrize("below", ["config", "packs", "index", "points"])
def test_any_flip_in_a_vault_is_found(pinned: Path, below: str) -> None:
    contents = {only(pinned, "points").name: {"disk": FIRST}}
    path = only(pinned, below) if below != "config" else pinned / "vault" / "config"
    data = path.read_bytes()
    # Every byte of an entry and of a footer has its turn in the tests above.
    step = 4 if below == "packs" else 1
    for i in (*range(0, len(data), step), *range(max(len(data) - 64, 0), len(data))):
        path.write_bytes(flipped(data, i))
        assert_found(pinned, contents)
    path.write_bytes(data)
    assert reopen(pinned).check(read_data=True).ok


@pytest.mark.parametrize("below", ["config", "packs", "index", "points"])
def test_any_truncation_and_extension_is_found(pinned: Path, below: str) -> None:
    contents = {only(pinned, "points").name: {"disk": FIRST}}
    path = only(pinned, below) if below != "config" else pinned / "vault" / "config"
    data = path.read_bytes()
    step = 5 if below == "packs" else 13
    for length in range(0, len(data), step):
        path.write_bytes(data[:length])
        assert_found(pinned, contents)
    for more in (b"\0", b"\n", data):
        path.write_bytes(data + more)
        assert_found(pinned, contents)
    if below != "config":
        path.unlink()
        if below != "points":  # without its manifest there is no point, and so no damage
            assert_found(pinned, contents)


def test_structure_alone_finds_missing_and_short_packs(pinned: Path) -> None:
    path = only(pinned, "packs")
    data = path.read_bytes()
    for damage in (data[:-1], data[:100], b"", data + b"x"):
        path.write_bytes(damage)
        report = reopen(pinned).check()
        assert not report.ok
        assert path.name in report.errors[0]
    path.unlink()
    report = reopen(pinned).check()
    assert f"the pack '{pack_name(bytes.fromhex(path.name))}' is missing" in report.errors


# Files of the wrong vault


def test_files_of_another_vault_with_the_same_key_are_refused(tmp_path: Path) -> None:
    """One key file may open two vaults; still nothing can be moved between them."""
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
        shutil.copy(tmp_path / "a" / "key", folder / "key") if folder != folders[0] else None
        back_up(new_vault(folder), {"disk": FIRST})
    a, b = folders
    assert (a / "key").read_bytes() == (b / "key").read_bytes()
    one, other = reopen(a), reopen(b)
    ids = [only(folder, "packs").name for folder in folders]
    assert ids[0] != ids[1]
    # Neither ids nor keys nor bound data agree, although key file and content do.
    chunk = one.index_frame()["chunk"][0]
    assert chunk not in set(other.index_frame()["chunk"])
    for below in ("index", "points", "packs"):
        source = only(a, below)
        target = b / "vault" / source.relative_to(a / "vault")
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source, target)
        if below == "packs":
            continue  # a pack that no index lists is harmless
        assert not reopen(b).check(read_data=True).ok
        target.unlink()
    with pytest.raises(IntegrityError, match="another vault"):
        read_footer(*opened(b), bytes.fromhex(only(a, "packs").name))


def test_chunks_cannot_be_swapped(pinned: Path) -> None:
    """Two whole entries of one pack change places: both are authentic, neither is where it was."""
    path = only(pinned, "packs")
    vault = reopen(pinned)
    frame = vault.index_frame()
    data = bytearray(path.read_bytes())
    rows = frame.filter(frame["stored"] == BLOCK + 16).to_dicts()
    one, two = rows[0], rows[1]
    a, b = (slice(r["offset"], r["offset"] + 64 + r["stored"]) for r in (one, two))
    data[a], data[b] = data[b], data[a]
    path.write_bytes(data)
    for row in (one, two):
        with pytest.raises(IntegrityError, match="as the index says"):
            vault.get(bytes.fromhex(row["chunk"]))


# Keys


def test_a_wrong_key_is_told_at_once(tmp_path: Path) -> None:
    new_vault(tmp_path)
    MasterKey.create(tmp_path / "other")
    with pytest.raises(WrongKeyError, match="opens with the key") as info:
        Vault.open(tmp_path / "vault", tmp_path / "other")
    assert info.value.exit_code == 2
    text = str(info.value)
    for name in ("key", "other"):
        document = json.loads((tmp_path / name).read_bytes())
        assert document["key"] not in text
        assert document["key_id"] in text


def test_a_forged_key_id_does_not_open(tmp_path: Path) -> None:
    """The key check value proves the key, not the name of it."""
    new_vault(tmp_path)
    MasterKey.create(tmp_path / "other")
    other = json.loads((tmp_path / "other").read_bytes())["key_id"]
    config = tmp_path / "vault" / "config"
    document = json.loads(config.read_bytes())
    document["key_id"] = other
    config.write_text(json.dumps(document, sort_keys=True, indent=2) + "\n")
    with pytest.raises(IntegrityError, match="key check value"):
        Vault.open(tmp_path / "vault", tmp_path / "other")


def test_any_flip_in_a_key_file_is_refused(tmp_path: Path) -> None:
    """Or changes nothing of what it says, as a blank does."""
    new_vault(tmp_path)
    path = tmp_path / "key"
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(flipped(data, i))
        message = ""
        try:
            Vault.open(tmp_path / "vault", path)
            assert json.loads(flipped(data, i)) == json.loads(data)
        except InputError as error:
            message = str(error)
        assert json.loads(data)["key"] not in message


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777, 0o610])
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    new_vault(tmp_path)
    (tmp_path / "key").chmod(mode)
    with pytest.raises(InputError, match=f"{mode:04o}") as info:
        reopen(tmp_path)
    assert info.value.hint == f"chmod 600 {tmp_path / 'key'}"


def test_secrets_do_not_show(tmp_path: Path) -> None:
    import pickle

    vault = new_vault(tmp_path)
    master = MasterKey.load(tmp_path / "key")
    secret = base64.b64decode(json.loads((tmp_path / "key").read_bytes())["key"])
    _, keys = opened(tmp_path)
    for thing in (vault, master, keys):
        shown = repr(thing) + str(thing) + getattr(thing, "_repr_html_", str)()
        for form in (secret.hex(), base64.b64encode(secret).decode(), repr(secret)[2:-1]):
            assert form not in shown
    for thing in (master, keys):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(thing)


# config


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a config and prove it again with the key, as another version would have."""
    _, keys = opened(folder)
    config = folder / "vault" / "config"
    document = json.loads(config.read_bytes())
    document.pop("key_check")
    change(document)
    canonical = (json.dumps(document, sort_keys=True, indent=2) + "\n").encode()
    document["key_check"] = keys.config_check(canonical)
    config.write_text(json.dumps(document, sort_keys=True, indent=2) + "\n")


def test_a_newer_version_is_refused_with_advice(tmp_path: Path) -> None:
    new_vault(tmp_path)
    rewritten(tmp_path, lambda document: document.update(version=2, cipher={"new": True}))
    with pytest.raises(InputError, match="format 2") as info:
        reopen(tmp_path)
    assert "newer vmbk" in info.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"hash": "sha-256"},
        {"aead": "none"},
        {"max_chunk": 1 << 40},
        {"more": 1},
        {"pack_target": "x"},
    ],
)
def test_unknown_parameters_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    new_vault(tmp_path)
    rewritten(tmp_path, lambda document: document["parameters"].update(change))
    with pytest.raises(InputError, match="does not know"):
        reopen(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 4000,
        b'{"format": "vmbk vault", "version": 1}',
        b"x" * 5000,
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: bytes) -> None:
    new_vault(tmp_path)
    (tmp_path / "vault" / "config").write_bytes(text)
    with pytest.raises(IntegrityError, match="`config`"):
        reopen(tmp_path)


def test_a_config_in_another_form_is_refused(tmp_path: Path) -> None:
    new_vault(tmp_path)
    config = tmp_path / "vault" / "config"
    document = json.loads(config.read_bytes())
    config.write_text(json.dumps(document, sort_keys=True))
    with pytest.raises(IntegrityError, match="canonical"):
        reopen(tmp_path)


# Entry headers


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": 0}, {"kind": 3}, {"compression": 2}, {"raw": 0}, {"raw": (16 << 20) + 1},
        {"raw": 99}, {"stored": 117}, {"stored": 115}, {"compression": 1},
        {"compression": 1, "stored": 16}, {"compression": 1, "stored": 117},
    ],
)  # fmt: skip
def test_a_header_that_the_format_does_not_allow_is_refused(fields: dict[str, int]) -> None:
    good = {"kind": 1, "compression": 0, "raw": 100, "stored": 116}
    parsed = EntryHeader.parse(
        EntryHeader(**good, chunk=bytes(32), nonce=bytes(12)).to_bytes(), "x"
    )
    assert (parsed.raw, parsed.stored) == (100, 116)
    bad = EntryHeader(**(good | fields), chunk=bytes(32), nonce=bytes(12))
    with pytest.raises(IntegrityError, match="does not allow"):
        EntryHeader.parse(bad.to_bytes(), "x")


def test_a_decompression_bomb_is_not_inflated(tmp_path: Path) -> None:
    """Authentic, but its compressed bytes give more than the header says."""
    new_vault(tmp_path)
    _, keys = opened(tmp_path)
    bomb = memoryview(pa.Codec("zstd").compress(bytes(64 << 20))).cast("B")
    chunk = keys.chunk_id(1, bytes(10_000))
    header = EntryHeader(1, 1, 10_000, len(bomb) + 16, chunk, bytes(12)).to_bytes()
    entry = bytearray(header) + bytearray(len(bomb) + 16)
    encrypt(keys, header, bomb, memoryview(entry)[64:])
    before = pa.total_allocated_bytes(), pa.default_memory_pool().max_memory()
    with pytest.raises(IntegrityError, match="does not decompress to 10000 bytes"):
        decode(keys, entry, None, "x")
    assert pa.default_memory_pool().max_memory() - max(before) < 1 << 20


def test_content_that_does_not_match_its_id_is_refused(tmp_path: Path) -> None:
    """A fault in memory while the chunk was stored: everything is authentic, and wrong."""
    new_vault(tmp_path)
    _, keys = opened(tmp_path)
    chunk = keys.chunk_id(1, b"a" * 50)
    header, body = prepare(1, chunk, memoryview(b"b" * 50), seeded(1))
    entry = bytearray(header) + bytearray(len(body) + 16)
    encrypt(keys, header, body, memoryview(entry)[64:])
    with pytest.raises(IntegrityError, match="does not match its id"):
        decode(keys, entry, None, "x")


def test_two_points_of_one_chain_are_pinned_too(tmp_path: Path) -> None:
    """What a second job writes depends on nothing but its input."""
    names = []
    for run in ("a", "b"):
        folder = tmp_path / run
        folder.mkdir()
        point: RecoveryPoint | None = None
        for seed, disk in ((1, FIRST), (2, changed(1, FIRST))):
            vault = (new_vault if point is None else reopen)(
                folder, random=seeded(seed), clock=ticking()
            )
            point = back_up(vault, {"disk": disk}, point)
        names.append([str(path.relative_to(folder)) for path in files(folder, "")])
    assert names[0] == names[1]
    assert len([name for name in names[0] if "index" in name]) == 2
