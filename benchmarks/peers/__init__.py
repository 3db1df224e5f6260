"""vmbk beside restic and borg, as programs, on the same disk images."""
