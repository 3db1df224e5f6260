# SNAPSHOTS snapshots of the disk, after some transactions each on commits(n, body) and
# accounts(id, balance), whose sum never changes. "snapshot N MODE" stands where the snapshot would
# be taken; the modes come in turn:
#   none       nothing is done
#   freeze     the file system is frozen
#   quiesce    the database is locked with no transaction open, then the file system is frozen
#   forgotten  as quiesce, but it is released only when a watchdog's patience ends ("released N")
# In every second round of the four, none and freeze fall into an open transaction.
#
# With synchronous=OFF, SQLite never syncs: what is acknowledged is in the kernel's memory. The
# rollback journal shows best what that costs. Pages are overwritten in place and carry no checksum,
# the kernel writes them back in an order of its own, and the file's new size reaches the disk
# later, with the journal of the file system. The log of WAL mode, whose frames have checksums, would
# mostly lose its end and nothing else.
#
# The plan follows from SEED; what the kernel had written back by a snapshot does not.

echo "$EXPIRE" > /proc/sys/vm/dirty_expire_centisecs
echo "$WRITE_BACK" > /proc/sys/vm/dirty_writeback_centisecs

#include snapshot-frozen.sh
cat > /tmp/snapshot << 'END'
#!/bin/sh -eu
# NUMBER MODE: what a guest's agent does before and after a snapshot.
held() {
    sqlite3 -batch -bail /mnt/data.db '.timeout 10000' 'BEGIN EXCLUSIVE' '.system sync' \
        ".system /tmp/frozen $1 $2 $3 || touch /tmp/failed" 'ROLLBACK' || touch /tmp/failed
}
case $2 in
none) mark "snapshot $1 none" ;;
freeze) /tmp/frozen "$1" freeze "$HELD" ;;
quiesce) held "$1" quiesce "$HELD" ;;
forgotten)
    rm -f /tmp/taken
    touch /tmp/forgotten
    (held "$1" forgotten "$PATIENCE"; rm /tmp/forgotten) > /dev/null 2>&1 &
    while [ ! -e /tmp/taken ]; do sleep 0.05; done
    ;;
esac
END
chmod 755 /tmp/snapshot

mkdir files
: > /tmp/run
# Life beside the database, of which nothing is synced either.
(
    step=0
    while [ -e /tmp/run ]; do
        step=$((step + 1))
        awk -v seed="$step" 'BEGIN { srand(seed); for (n = 100 + seed * 37 % 800; n > 0; n--) printf "%d ", rand() * 9999 }' \
            > "files/f-$((step % 40))"
        echo "step $step" >> files/log
        sleep 0.2
    done
) &
beside=$!

awk -v seed="$SEED" -v snapshots="$SNAPSHOTS" -v commits="$COMMITS" '
# Half text, half digits of chance: compresses about as well as records of a business do.
function word() { return substr("lorem ipsum dolor sit amet consectetur ", 1 + int(rand() * 30), 6) }
function number() { return sprintf("%05x%05x", rand() * 1048576, rand() * 1048576) }
function transfer(within,    body, words, i, amount, from, to) {
    n++
    body = ""
    words = 10 + int(rand() * rand() * 800)
    for (i = 0; i < words; i++) body = body (i % 2 ? word() : number())
    amount = 1 + int(rand() * 50)
    from = 1 + int(rand() * 100); to = 1 + int(rand() * 100)
    print "BEGIN IMMEDIATE;"
    printf "INSERT INTO commits VALUES(%d, CAST(\047%s\047 AS BLOB));\n", n, body
    printf "UPDATE accounts SET balance = balance - %d WHERE id = %d;\n", amount, from
    if (within) print within
    printf "UPDATE accounts SET balance = balance + %d WHERE id = %d;\n", amount, to
    print "COMMIT;"
    printf ".system mark \"commit %d\"\n", n
}
BEGIN {
    srand(seed)
    split("none freeze quiesce forgotten", modes, " ")
    print ".bail on"
    print ".timeout 60000"  # while somebody else holds the database
    print "PRAGMA journal_mode=DELETE; PRAGMA synchronous=OFF;"
    print "CREATE TABLE commits(n INTEGER PRIMARY KEY, body BLOB NOT NULL);"
    print "CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);"
    print "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 100)"
    print "INSERT INTO accounts SELECT i, 1000 FROM c;"
    print ".system sync; mark \"tables made\""
    for (turn = 1; turn <= snapshots; turn++) {
        mode = modes[1 + (turn - 1) % 4]
        call = sprintf(".system /tmp/snapshot %d %s || touch /tmp/failed", turn, mode)
        inside = int((turn - 1) / 4) % 2 && (mode == "none" || mode == "freeze")
        # The kernel needs time to write back a part.
        most = mode == "none" ? 4 * commits : commits
        for (i = 1 + int(rand() * (most - 1)); i > 0; i--) transfer("")
        if (inside) transfer(call); else print call
    }
    transfer("")  # held up by the last one
    print ".output /tmp/check"
    print "SELECT count(*) = max(n), (SELECT sum(balance) FROM accounts) FROM commits;"
}' > /tmp/script.sql
sqlite3 -batch data.db < /tmp/script.sql > /tmp/said
while [ -e /tmp/forgotten ]; do sleep 0.05; done
rm /tmp/run
wait "$beside"
test ! -e /tmp/failed
test "$(cat /tmp/check)" = '1|100000'
