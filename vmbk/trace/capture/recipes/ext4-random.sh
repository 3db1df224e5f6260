# ROUNDS times WRITES overwrites of 4 KiB at random places of a preallocated file, then fsync or
# fdatasync, in turn, and a mark. Everything that follows from SEED is the same in every run.

blocks=8192  # of 4 KiB in the file
# What is written: 4 KiB from anywhere in 1 MiB, a quarter of it incompressible, the rest digits.
pool=1048576
awk -v seed="$SEED" -v pool=$pool '
function number() { return int(rand() * 100000) }
function byte() { return 1 + int(rand() * 127) }
BEGIN {
    srand(seed)
    for (made = 0; made < pool; made += length(text)) {
        if (made % 16384 < 4096)
            text = sprintf("%c%c%c%c%c%c%c%c", byte(), byte(), byte(), byte(), byte(), byte(), byte(), byte())
        else
            text = sprintf("%d %d %d %d %d %d ", number(), number(), number(), number(), number(), number())
        printf "%s", text
    }
}' > /tmp/pool

fallocate -l $((blocks * 4096)) big
sync big
mark 'preallocated'
awk -v seed="$SEED" -v rounds="$ROUNDS" -v writes="$WRITES" -v blocks=$blocks -v pool=$pool 'BEGIN {
    srand(seed)
    for (round = 1; round <= rounds; round++) {
        for (i = 0; i < writes; i++)
            print "put", int(rand() * (rand() < 0.5 ? blocks / 10 : blocks)), int(rand() * (pool - 4096))
        print "sync", round
    }
}' > /tmp/plan
while read -r what a b; do
    case $what in
    put) dd if=/tmp/pool of=big bs=4096 count=1 skip="$b" iflag=skip_bytes seek="$a" conv=notrunc status=none ;;
    sync)
        if [ $((a % 2)) = 0 ]; then sync -d big; else sync big; fi
        mark "round $a"
        ;;
    esac
done < /tmp/plan
# What the guest itself reads there, for whoever checks the image.
md5sum big > sums
