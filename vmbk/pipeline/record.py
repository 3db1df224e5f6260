"""What a recovery point keeps of a disk: extents and digests, as tables in the vault."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vmbk.pipeline.job import DiskJob
from vmbk.pipeline.restore import whole_digest
from vmbk.vault import DiskRecord, Vault, VaultWriter
from vmbk.vault.arrow import int_array
from vmbk.vault.diskmap import DIGEST_SCHEMA, EXTENT_SCHEMA, Extents, overlay

MAX_CHAIN: Final = 32
"""Points whose tables are read together; the next one stores its whole map again."""


def disk_record_of(job: DiskJob, vault: Vault, writer: VaultWriter) -> DiskRecord:
    """Store the disk's tables: what changed since the base, or the whole where that is better."""
    changes = job.changes
    assert changes is not None
    sub = changes.sub_digests
    sub_size = changes.settings.sub_block_size if sub is not None else 0
    extents = _extents(job)
    parent = changes.base
    if job.base_point is not None and parent and _starts_anew(job, vault, sub_size):
        before = vault.disk_map(job.base_point, job.name)
        whole = Extents(
            before.offsets, before.lengths, before.chunks, before.chunk_offsets, before.zero
        )
        merged = overlay([whole, extents], [before.size, changes.size], f"disk {job.name!r}")
        extents = Extents(
            merged.offsets, merged.lengths, merged.chunks, merged.chunk_offsets, merged.zero
        )
        parent = ""
    touched = changes.touched if parent else np.ones(len(changes.digests), bool)
    blocks = np.flatnonzero(touched)
    sub_table: tuple[bytes, ...] = ()
    if sub is not None:
        factor = changes.settings.block_size // sub_size
        sub_blocks = np.flatnonzero(np.repeat(touched, factor)[: len(sub)])
        sub_table = writer.put_table(_digest_table(sub_blocks, sub[sub_blocks]))
    return DiskRecord(
        name=job.name,
        size=changes.size,
        block_size=changes.settings.block_size,
        sub_block_size=sub_size,
        detector=changes.detector,
        fallback=changes.fallback,
        parent=parent,
        extents=writer.put_table(_extent_table(extents)),
        digests=writer.put_table(_digest_table(blocks, changes.digests[blocks])),
        sub_digests=sub_table,
        tracker=job.tracker_id if job.generation else "",
        generation=job.generation,
        digest=whole_digest(changes.digests),
        scanned_bytes=changes.scanned_bytes,
        changed_bytes=changes.changed_bytes,
        sent_bytes=job.sent_bytes,
        new_bytes=job.new_bytes,
        stored_bytes=job.stored_bytes,
    )


def _starts_anew(job: DiskJob, vault: Vault, sub_size: int) -> bool:
    """Whether the point stores whole tables: the chain is long, or the base's digests differ."""
    assert job.base_point is not None
    return (
        vault.chain_length(job.base_point, job.name) >= MAX_CHAIN
        or job.base_point.disk(job.name).sub_block_size != sub_size
    )


def _extents(job: DiskJob) -> Extents:
    """Data pieces with their chunks and zero extents without, sorted by offset."""
    changes = job.changes
    assert changes is not None
    data, zeros = len(job.sent), len(changes.zero_offsets)
    offsets = np.concatenate([job.sent["offset"], changes.zero_offsets])
    order = np.argsort(offsets, kind="stable")
    return Extents(
        offset=offsets[order],
        length=np.concatenate([job.sent["length"], changes.zero_lengths])[order],
        chunk=np.concatenate([job.sent["chunk"], np.zeros((zeros, 32), np.uint8)])[order],
        chunk_offset=np.zeros(data + zeros, np.int64),
        zero=(np.arange(data + zeros) >= data)[order],
    )


def _extent_table(extents: Extents) -> pa.Table:
    chunks = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(32),
        len(extents.offset),
        [
            pa.py_buffer(np.packbits(~extents.zero, bitorder="little").tobytes()),
            pa.py_buffer(np.ascontiguousarray(extents.chunk).tobytes()),
        ],
    )
    offset, length, chunk_offset = (
        int_array(values) for values in (extents.offset, extents.length, extents.chunk_offset)
    )
    return pa.Table.from_arrays([offset, length, chunks, chunk_offset], schema=EXTENT_SCHEMA)


def _digest_table(index: NDArray[np.intp], digests: NDArray[np.uint64]) -> pa.Table:
    columns = [int_array(index.astype(np.int64)), int_array(digests.view(np.int64))]
    return pa.Table.from_arrays(columns, schema=DIGEST_SCHEMA)
