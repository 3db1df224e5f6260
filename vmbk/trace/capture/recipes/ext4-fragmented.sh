# ROUNDS rounds of scattered writes to a file of 16 MiB and of small files that come and go; each
# round ends durably and is acknowledged by a mark. Everything that follows from SEED is the same
# in every run.

blocks=4096  # of 4 KiB in the big file
mkdir small
# What is written: 512 blocks, one of four incompressible, the others text. Rounds draw from them,
# so that contents repeat now and then, as they do on real disks.
contents=512
awk -v seed="$SEED" -v blocks=$contents 'BEGIN {
    srand(seed)
    for (block = 0; block < blocks; block++)
        for (left = 4096; left > 0; left -= length(word)) {
            if (block % 4 == 0) { word = ""; for (i = 0; i < 64; i++) word = word sprintf("%c", 1 + int(rand() * 127)) }
            else word = int(rand() * 99999) " "
            word = substr(word, 1, left)
            printf "%s", word
        }
}' > /tmp/contents

fallocate -l $((blocks * 4096)) big
sync big
mark 'preallocated'

# The first 2 MiB in one sequential stream, so that later rounds overwrite as well as fill.
dd if=/tmp/contents of=big bs=65536 conv=notrunc status=none
sync big
mark 'filled'

# The plan: one command a line, from the seed alone.
awk -v seed="$SEED" -v rounds="$ROUNDS" -v blocks="$blocks" -v contents="$contents" '
BEGIN {
    srand(seed)
    for (round = 1; round <= rounds; round++) {
        for (i = 0; i < 16; i++) {
            # Half of the writes fall into a sixteenth of the file.
            at = int(rand() * (rand() < 0.5 ? blocks / 16 : blocks))
            print "put", at, int(rand() * contents)
            now[i] = at
        }
        # Blocks of the round before, which are on the disk by now, once more with the same bytes.
        if (round > 1) for (i = 0; i < 16; i += 4) print "again", before[i]
        for (i = 0; i < 16; i++) before[i] = now[i]
        for (i = 0; i < 6; i++) print "file", round "-" i, 1 + int(rand() * 6), int(rand() * contents / 4)
        if (round > 3) for (i = 0; i < 6; i += 2) print "drop", round - 3 "-" i
        if (round % 4 == 0) print "sync"
        if (round % 10 == 0) print "trim"
        print "done", round
    }
}' > /tmp/plan
while read -r what a b c; do
    case $what in
    put) dd if=/tmp/contents of=big bs=4096 skip="$b" seek="$a" count=1 conv=notrunc status=none ;;
    again) dd if=big bs=4096 skip="$a" count=1 status=none > /tmp/same
           dd if=/tmp/same of=big bs=4096 seek="$a" conv=notrunc status=none ;;
    file) dd if=/tmp/contents of="small/$a" bs=3000 skip="$c" count="$b" status=none ;;
    drop) rm "small/$a" ;;
    sync) sync ;;
    trim) sync; fstrim . ;;
    done) sync big; mark "round $a" ;;
    esac
done < /tmp/plan
ls small | wc -l > survivors
