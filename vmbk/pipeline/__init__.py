"""Jobs: back disks up into a vault, and restore recovery points from it."""
