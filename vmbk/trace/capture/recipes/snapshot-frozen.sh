cat > /tmp/frozen << 'END'
#!/bin/sh -eu
# NUMBER MODE SECONDS: freeze, mark the moment of the snapshot, hold, thaw. Marks are written past
# the file system, so that they can be written while it is frozen. The last one stands before the
# thaw: after it, the workload may write marks again.
fsfreeze --freeze /mnt
mark "snapshot $1 $2"
touch /tmp/taken
sleep "$3"
if [ "$2" = forgotten ]; then mark "released $1"; else mark "thawing $1"; fi
fsfreeze --unfreeze /mnt
END
chmod 755 /tmp/frozen
