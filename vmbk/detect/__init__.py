"""Detectors: which extents of a disk changed since a base point, and what it cost to find out.

One module per detector, one function each: `full`, `checksum`, `tracking`, `differential` and
`compare`, all returning a `ChangeSet`. `scan` reads and hashes, `choose` picks and falls back.
"""
