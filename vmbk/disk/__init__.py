"""Disks: raw sparse images, point-in-time snapshots, change tracking, and replay onto them."""
