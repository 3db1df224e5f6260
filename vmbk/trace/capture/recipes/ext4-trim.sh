# ROUNDS rounds in which FILES files are created and those of three rounds before are deleted, but for
# one. In the first half fstrim tells the disk every few rounds what is free, in the second half the
# mount option discard. Everything that follows from SEED is the same in every run.

# What is written: from anywhere in 1 MiB of digits.
pool=1048576
awk -v seed="$SEED" -v pool=$pool '
function number() { return int(rand() * 100000) }
BEGIN {
    srand(seed)
    for (made = 0; made < pool; made += length(text)) {
        text = sprintf("%d %d %d %d %d %d ", number(), number(), number(), number(), number(), number())
        printf "%s", text
    }
}' > /tmp/pool
awk -v seed="$SEED" -v rounds="$ROUNDS" -v files="$FILES" -v pool=$pool 'BEGIN {
    srand(seed)
    for (round = 1; round <= rounds; round++) {
        print "folder", round
        for (i = 0; i < files; i++) {
            size = 4096
            while (size < 65536 && rand() < 0.6) size *= 2
            size += int(rand() * size)
            print "file", round "/" i, size, int(rand() * (pool - size))
        }
        if (round > 3) {
            print "drop", round - 3
            # A sync lets the journal commit, which is when the mount option discards.
            print "sync"
        }
        if (round <= rounds / 2 && round % 6 == 0) print "trim", round
        if (round == int(rounds / 2)) print "discard"
        print "done", round
    }
}' > /tmp/plan
while read -r what a b c; do
    case $what in
    folder) mkdir "$a" ;;
    file) dd if=/tmp/pool of="$a" bs="$b" count=1 skip="$c" iflag=skip_bytes status=none ;;
    drop) mv "$a/0" "kept-$a"; rm -r "$a" ;;
    sync) sync ;;
    trim) sync; fstrim .; mark "trimmed $a" ;;
    discard) mount -o remount,discard /mnt; mark 'discard on' ;;
    done) sync; mark "round $a" ;;
    esac
done < /tmp/plan
# What the guest itself reads there, for whoever checks the image.
md5sum kept-* > sums
