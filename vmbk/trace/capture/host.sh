#!/bin/sh
# What a capture on this machine runs as the first process of mount and process namespaces of its
# own: whenever it ends, however it ends, what it mounted and whatever it started end with it.
#
#   host.sh FOLDER SIZE FILESYSTEM COMMAND ...
#
# FOLDER/device is the recorded disk: SIZE bytes of volume, then the area of the marks.
# FOLDER/lines is what the capture counts on:
#   mark LABEL     the label has been written to the mark area
#   failed STEP    a step before or after the command failed; FOLDER/said tells why
#   command STATUS the command ended so
#   done           all is written
folder=$1 size=$2 filesystem=$3
shift 3
place=$folder/mounted

step() {
    "$@" > "$folder/said" 2>&1 < /dev/null && return
    echo "failed $1" >> "$folder/lines"
    exit 1
}

# A mark is a 4 KiB block written straight to the disk, past the end of the volume; the area has
# room for 256 of them and is used in turn. The line comes last: what it says happened.
cat > "$folder/bin/mark" << END
#!/bin/sh
exec 9< "$folder/turn" && flock 9 || exit 1
read -r turn < "$folder/turn"
case \$1 in *"
"*) echo "mark: a label is one line" >&2; exit 2;; esac
if [ \$# != 1 ] || [ "\$(printf '%s' "\$1" | wc -c)" -gt 4096 ]; then
    echo "mark: one label of at most 4096 bytes is wanted" >&2; exit 2
fi
printf '%s' "\$1" | dd of="$folder/device" bs=4096 iflag=fullblock oflag=direct \\
    conv=sync,notrunc status=none seek=\$(($size / 4096 + turn % 256)) || exit 1
echo \$((turn + 1)) > "$folder/turn"
printf 'mark %s\n' "\$1" >> "$folder/lines"
END
chmod 755 "$folder/bin/mark"
echo 0 > "$folder/turn"
PATH=$folder/bin:$PATH:/usr/sbin:/sbin
export PATH

step losetup --find --show --sizelimit "$size" "$folder/device"
VMBK_DEVICE=$(cat "$folder/said")
export VMBK_DEVICE
# Held open it can be given back at once: it goes when the last that uses it is gone.
exec 8< "$VMBK_DEVICE" || exit 1
step losetup --detach "$VMBK_DEVICE"
case $filesystem in
ext4) step mke2fs -q -F -t ext4 -b 4096 -E lazy_itable_init=0,lazy_journal_init=0 "$VMBK_DEVICE" ;;
xfs) step mkfs.xfs -q -f "$VMBK_DEVICE" ;;
esac
if [ "$filesystem" != none ]; then
    step mark 'mkfs done'
    step mount -t "$filesystem" "$VMBK_DEVICE" "$place"
    step mark 'mounted'
    VMBK_MOUNT=$place
    export VMBK_MOUNT
    cd "$place" || exit 1
fi
step mark 'workload begins'
"$@" 8<&-
status=$?
cd /
echo "command $status" >> "$folder/lines"
[ $status = 0 ] || exit 1
step mark 'workload ends'

# What the command left running would keep the file system busy.
if kill -TERM -1 2> /dev/null; then
    for turn in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do
        sleep 0.2
        kill -0 -1 2> /dev/null || break
    done
    kill -KILL -1 2> /dev/null && sleep 0.5
fi
if [ "$filesystem" = none ]; then
    step sync "$VMBK_DEVICE"
else
    step umount "$place"
    step mark 'unmounted'
fi
# Flush the disk once more, so that the log's count of entries covers the last mark.
step dd if=/dev/null of="$folder/device" conv=fsync,notrunc status=none
echo done >> "$folder/lines"
