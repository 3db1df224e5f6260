# STEPS steps of a file server: people create, append to, overwrite, rename, copy and delete files in
# trees of folders; sizes are heavy-tailed. Every EVERY steps all is synced, which a mark says.
# Everything that follows from SEED is the same in every run.

# What is written: from anywhere in 1 MiB, a quarter of it incompressible, the rest digits.
pool=1048576
awk -v seed="$SEED" -v pool=$pool '
function number() { return int(rand() * 100000) }
function byte() { return 1 + int(rand() * 127) }
BEGIN {
    srand(seed)
    for (made = 0; made < pool; made += length(text)) {
        if (made % 65536 < 16384)
            text = sprintf("%c%c%c%c%c%c%c%c", byte(), byte(), byte(), byte(), byte(), byte(), byte(), byte())
        else
            text = sprintf("%d %d %d %d %d %d ", number(), number(), number(), number(), number(), number())
        printf "%s", text
    }
}' > /tmp/pool
awk -v seed="$SEED" -v steps="$STEPS" -v every="$EVERY" -v pool=$pool '
# Pareto with shape 1 from 1.5 KiB, cut at 512 KiB.
function size(    bytes) {
    bytes = int(1536 / (1 - rand()))
    return bytes > 524288 ? 524288 : bytes
}
function write(what, path,    bytes) {
    bytes = size()
    print what, path, bytes, int(rand() * (pool - bytes))
}
# A file that is there; new files are touched more often than old ones.
function some(    back) {
    back = int(count * rand() * rand())
    return count - 1 - back
}
function forget(i) { count--; path[i] = path[count] }
function fresh() { return folder[int(rand() * folders)] "/f" (++made) }
BEGIN {
    srand(seed)
    for (i = 0; i < 6; i++) { folder[folders++] = "share/user" i; print "folder", "share/user" i }
    for (step = 1; step <= steps; step++) {
        chance = rand()
        if (count < 20 || chance < 0.38) {
            path[count++] = fresh()
            write(rand() < 0.3 ? "safe" : "create", path[count - 1])
        }
        else if (chance < 0.58) write("append", path[some()])
        else if (chance < 0.70) write("over", path[some()])
        else if (chance < 0.78) { i = some(); to = fresh(); print "move", path[i], to; path[i] = to }
        else if (chance < 0.83) { to = fresh(); print "copy", path[some()], to; path[count++] = to }
        else if (chance < 0.96) { i = some(); print "drop", path[i]; forget(i) }
        else if (folders < 16) {
            at = folder[int(rand() * folders)] "/d" step
            folder[folders++] = at
            print "folder", at
        }
        else {
            # The youngest folder goes with all that is in it; what is below it was removed before.
            at = folder[--folders] "/"
            for (i = count - 1; i >= 0; i--) if (index(path[i], at) == 1) forget(i)
            print "tree", at
        }
        if (step % every == 0) print "done", step
    }
}' > /tmp/plan
while read -r what a b c; do
    case $what in
    folder) mkdir -p "$a" ;;
    create) dd if=/tmp/pool of="$a" bs="$b" count=1 skip="$c" iflag=skip_bytes status=none ;;
    # As careful programs save: a new file, synced, takes the name.
    safe)
        dd if=/tmp/pool of="$a.new" bs="$b" count=1 skip="$c" iflag=skip_bytes status=none
        sync "$a.new"
        mv "$a.new" "$a"
        ;;
    append) dd if=/tmp/pool bs="$b" count=1 skip="$c" iflag=skip_bytes status=none >> "$a" ;;
    over) dd if=/tmp/pool of="$a" bs="$b" count=1 skip="$c" iflag=skip_bytes conv=notrunc status=none ;;
    move) mv "$a" "$b" ;;
    copy) cp "$a" "$b" ;;
    drop) rm "$a" ;;
    tree) rm -r "$a" ;;
    done) sync; mark "step $a" ;;
    esac
done < /tmp/plan
# What the guest itself reads there, for whoever checks the image.
find share -type f -exec md5sum {} + > sums
