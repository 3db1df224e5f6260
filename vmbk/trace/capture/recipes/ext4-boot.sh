# A system is installed on the disk; from the mark "installed" on it boots. STEPS times its own
# service writes, syncs and renames files ("step N": they are durable), and every UPGRADE steps the
# system's programs are replaced ("upgrading V", "upgraded V"). All programs run from the disk.
#
# Booted with vmbk_nonce=NONCE on the kernel's command line, /sbin/init checks what the service left
# and writes "booted NONCE" to the console; without a number it just starts.

mkdir -p bin sbin dev proc sys run tmp etc usr/sbin usr/lib/service var/lib/service var/lib/packages
for applet in sh awk cat chmod cp cut dd grep head ls md5sum mkdir mount mv poweroff rm sed sync; do
    ln -s busybox "bin/$applet"
done

# What the system consists of, at version $1, into the folder $2. Each file ends with the line
# "# end", after a part that differs between versions: what is cut off or mixed up does not pass.
build() {
    version=$1 into=$2
    mkdir -p "$into"
    { cat /bin/busybox; printf '\nversion %s\n' "$version"; } > "$into/busybox"
    cat > "$into/init" << 'END'
#!/bin/sh
# First program of the disk.
export PATH=/bin:/sbin:/usr/sbin
set -eu
[ -e /proc/mounts ] || mount -t proc proc /proc
. /usr/lib/service/functions
whole /sbin/init /usr/sbin/service /usr/sbin/upgrade /usr/lib/service/functions
service check
mkdir -p /run/service
echo up > /run/service/state
sealed /var/lib/service/boots up
if [ -n "${vmbk_nonce:-}" ]; then echo "booted $vmbk_nonce"; fi
poweroff -f
END
    cat > "$into/functions" << 'END'
# What the service and the upgrade share.
state=/var/lib/service
# Files that are not whole end the program.
whole() {
    for file; do
        grep -q '^# end$' "$file" || { echo "failed: $file is not whole"; exit 1; }
    done
}
# A file that carries the digest of its text is written beside the old one, synced, and takes its
# name, which is durable once its folder has been synced.
sealed() {
    printf '%s\n%s\n' "$(printf '%s' "$2" | md5sum | cut -c 1-32)" "$2" > "${1%/*}/new-${1##*/}"
    sync "${1%/*}/new-${1##*/}"
    mv "${1%/*}/new-${1##*/}" "$1"
}
unsealed() {
    { read -r sum; text=$(cat); } < "$1"
    [ "$(printf '%s' "$text" | md5sum | cut -c 1-32)" = "$sum" ] ||
        { echo "failed: $1 is damaged"; exit 1; }
}
END
    cat > "$into/service" << 'END'
#!/bin/sh
# The service: "step N SEED" does some work, "check" judges what it finds.
set -eu
. /usr/lib/service/functions
case $1 in
step)
    text=$(awk -v seed="$3$2" 'BEGIN {
        srand(seed)
        for (n = 40 + int(rand() * rand() * 600); n > 0; n--) printf "%05x ", rand() * 1048576
    }')
    sealed "$state/file-$(($2 % 12))" "$text"
    echo "step $2 did its work" >> "$state/log"
    [ $(($2 % 3)) != 0 ] || sync "$state/log"
    # Nothing says when this reaches the disk.
    echo "$text" > "$state/cache-$(($2 % 5))"
    [ $(($2 % 7)) != 0 ] || rm -f "$state"/cache-*
    sealed "$state/step" "$2"
    sync "$state"
    ;;
check)
    step=0
    for file in "$state"/file-* "$state/step"; do
        [ ! -e "$file" ] || unsealed "$file"
    done
    if [ -e "$state/step" ]; then
        unsealed "$state/step"
        step=$text
    fi
    echo "service at step $step"
    ;;
esac
END
    cat > "$into/upgrade" << 'END'
#!/bin/sh
# Replace the system's programs by those in the folder $2, of version $1, as a package manager does:
# all of them are unpacked and synced beside the old ones before the first takes its place.
set -eu
. /usr/lib/service/functions
place() {
    case $1 in
    busybox) at=/bin/busybox ;;
    init) at=/sbin/init ;;
    functions) at=/usr/lib/service/functions ;;
    *) at=/usr/sbin/$1 ;;
    esac
}
for name in $(ls "$2"); do
    place "$name"
    cp "$2/$name" "$at.new"
    chmod 755 "$at.new"
    sync "$at.new"
done
sealed /var/lib/packages/status "unpacked $1"
for name in $(ls "$2"); do
    place "$name"
    mv "$at.new" "$at"
done
sync /bin /sbin /usr/sbin /usr/lib/service
sealed /var/lib/packages/status "installed $1"
sync /var/lib/packages
END
    number=1
    for name in init functions service upgrade; do
        number=$((number + 1))
        awk -v seed="$SEED$version$number" 'BEGIN {
            srand(seed)
            for (n = 20 + int(rand() * 180); n > 0; n--)
                printf "# %05x%05x%05x\n", rand() * 1048576, rand() * 1048576, rand() * 1048576
            print "# end"
        }' >> "$into/$name"
    done
}

build 1 /tmp/version-1
cp /tmp/version-1/busybox bin/busybox
cp /tmp/version-1/init sbin/init
cp /tmp/version-1/functions usr/lib/service/functions
cp /tmp/version-1/service /tmp/version-1/upgrade usr/sbin/
chmod 755 bin/busybox sbin/init usr/sbin/*
echo 'vmbk' > etc/hostname
sync
mark 'installed'

version=1
step=0
while [ $step -lt "$STEPS" ]; do
    step=$((step + 1))
    chroot . /usr/sbin/service step $step "$SEED"
    mark "step $step"
    if [ $((step % UPGRADE)) = 0 ]; then
        version=$((version + 1))
        # New packages come by way of the disk, unsynced, as any download does.
        build $version var/cache
        [ $version -le 3 ] || rm var/cache/busybox
        mark "upgrading $version"
        chroot . /usr/sbin/upgrade $version /var/cache
        mark "upgraded $version"
        rm -r var/cache
    fi
done
chroot . /usr/sbin/service check
