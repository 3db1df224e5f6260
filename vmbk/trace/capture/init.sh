#!/bin/sh
# First program of a captured guest. /settings and /workload come from the recipe.
#
# Two serial lines lead out: the console, and ttyS1 for what the host counts on:
#   mark LABEL    the label has been written to the mark area of the disk
#   exit STATUS   the guest is done
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
. /settings

finish() {
    echo "exit $1" > /dev/ttyS1
    poweroff -f
}
step() {
    "$@" || { echo "failed ($?): $*"; finish 1; }
}

# Nobody may be left outside to stop this machine.
(sleep "$VMBK_TIMEOUT" && poweroff -f) &

for module in $VMBK_MODULES; do
    step insmod "/modules/$module.ko"
done
export VMBK_DISK="$VMBK_DISK_0"

# A mark is a 4 KiB block written straight to the first disk, past the end of the volume. The area
# has room for 256 of them and is used in turn. The line to the host comes last: what it says happened.
cat > /bin/mark << 'END'
#!/bin/sh
read -r turn < /tmp/turn
printf '%s' "$1" | dd of="$VMBK_DISK" bs=4096 oflag=direct conv=sync,notrunc status=none \
    seek=$((VMBK_VOLUME_SIZE / 4096 + turn % 256)) || exit 1
echo $((turn + 1)) > /tmp/turn
echo "mark $1" > /dev/ttyS1
END
chmod 755 /bin/mark
echo 0 > /tmp/turn

for id in $VMBK_VOLUMES; do
    eval "eval set -- \"\$VMBK_MKFS_$id\""
    step "$@"
done
step mark 'mkfs done'
for id in $VMBK_VOLUMES; do
    eval "disk=\$VMBK_DISK_$id place=\$VMBK_MOUNT_$id options=\$VMBK_OPTIONS_$id"
    step mkdir -p "$place"
    step mount ${options:+-o "$options"} "$disk" "$place"
done
step mark 'mounted'
step cd "$VMBK_MOUNT_0"
step mark 'workload begins'
sh -eu /workload
status=$?
cd /
[ $status = 0 ] || { echo "the workload failed ($status)"; finish $status; }
step mark 'workload ends'
places=
for id in $VMBK_VOLUMES; do
    eval "places=\"\$VMBK_MOUNT_$id \$places\""  # the last one first
done
for place in $places; do
    step umount "$place"
done
step mark 'unmounted'
# Flush each disk once more, so that the log's count of entries covers the last mark.
for id in $VMBK_VOLUMES; do
    eval "disk=\$VMBK_DISK_$id"
    step dd if=/dev/null of="$disk" conv=fsync,notrunc status=none
done
finish 0
