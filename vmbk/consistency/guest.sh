#!/bin/sh
# First program of a guest that is given one disk, to mount it or to boot it. The kernel hands over
# what its command line says, as variables:
#   vmbk_task     mount: mount and unmount, so that the file system replays its log; say so
#                 boot: mount, and go on as the first program of the disk
#   vmbk_nonce    a number that nobody can know beforehand; whatever is counted on carries it
#   vmbk_device   the device, or the partition
#   vmbk_type     its file system
#   vmbk_options  of the mount
#   vmbk_init     the disk's first program
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev

give_up() {
    echo "given up: $1"
    poweroff -f
}

while read -r module; do
    insmod "/modules/$module.ko" || give_up "module $module"
done < /modules/order
mkdir -p /disk
mount -t "$vmbk_type" ${vmbk_options:+-o "$vmbk_options"} "$vmbk_device" /disk ||
    give_up "mount of $vmbk_device as $vmbk_type"
if [ "$vmbk_task" = mount ]; then
    umount /disk || give_up "umount"
    sync
    echo "mounted $vmbk_nonce"
    poweroff -f
fi
for place in dev proc sys; do
    [ -d "/disk/$place" ] && mount -o move "/$place" "/disk/$place"
done
# Where this fails the kernel loses its first program, and panics.
exec switch_root /disk "$vmbk_init"
