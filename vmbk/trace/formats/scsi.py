"""SCSI operation codes, as the traces of hypervisors hold them.

Source: SCSI Block Commands (SBC-4), table of operation codes.
"""

from __future__ import annotations

from typing import Final

from vmbk.trace.schema import Op

OPERATIONS: Final = {
    0x08: Op.READ,  # READ (6), (10), (12), (16)
    0x28: Op.READ,
    0xA8: Op.READ,
    0x88: Op.READ,
    0x0A: Op.WRITE,  # WRITE (6), (10), (12), (16)
    0x2A: Op.WRITE,
    0xAA: Op.WRITE,
    0x8A: Op.WRITE,
    0x2E: Op.WRITE,  # WRITE AND VERIFY (10), (12), (16)
    0xAE: Op.WRITE,
    0x8E: Op.WRITE,
    0x35: Op.FLUSH,  # SYNCHRONIZE CACHE (10), (16)
    0x91: Op.FLUSH,
}
"""What a command does. Those that are not here carry no request: a trace does not tell the extents
of an UNMAP nor the length of a WRITE SAME."""
