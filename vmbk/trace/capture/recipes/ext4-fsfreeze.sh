# FREEZES times: COMMITS transactions on commits(n, body) and accounts(id, balance), whose sum never
# changes, then fsfreeze, a moment, thaw. From "frozen N" to "thawing N" the file system does not
# write: what the disk holds in between is a snapshot as a guest's agent prepares it. The database's
# plan follows from SEED; what the background had written by a freeze does not.

freeze=/tmp/freeze
cat > "$freeze" << 'END'
#!/bin/sh -eu
# Marks are written past the file system, so that they can be written while it is frozen.
fsfreeze --freeze /mnt
mark "frozen $1"
sleep 0.5
mark "thawing $1"
fsfreeze --unfreeze /mnt
END
chmod 755 "$freeze"

mkdir files
: > /tmp/run
# Life beside the database: nothing of it is synced, so that a freeze has something to write.
(
    step=0
    while [ -e /tmp/run ]; do
        step=$((step + 1))
        awk -v seed="$step" 'BEGIN { srand(seed); for (n = 200 + seed * 37 % 2000; n > 0; n--) printf "%d ", rand() * 9999 }' \
            > "files/f-$((step % 40))"
        echo "step $step" >> files/log
        sleep 0.05
    done
) &
beside=$!

awk -v seed="$SEED" -v freezes="$FREEZES" -v commits="$COMMITS" -v freeze="$freeze" '
function word() { return substr("lorem ipsum dolor sit amet consectetur ", 1 + int(rand() * 30), 6) }
function number() { return sprintf("%05x%05x", rand() * 1048576, rand() * 1048576) }
function transfer(n, within,    body, words, i, amount, from, to) {
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
    print ".bail on"
    print "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;"
    # A transaction that outgrows this spills into the log before it is committed.
    print "PRAGMA cache_size=20;"
    print "CREATE TABLE commits(n INTEGER PRIMARY KEY, body BLOB NOT NULL);"
    print "CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);"
    print "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 100)"
    print "INSERT INTO accounts SELECT i, 1000 FROM c;"
    print ".system mark \"tables made\""
    for (turn = 1; turn <= freezes; turn++) {
        call = sprintf(".system %s %d || touch /tmp/failed", freeze, turn)
        for (i = 1; i <= commits; i++)
            transfer((turn - 1) * commits + i, i == commits && turn % 2 == 0 ? call : "")
        if (turn % 2) print call
        if (turn % 4 == 0) print "PRAGMA wal_checkpoint(TRUNCATE);"
    }
    print ".output /tmp/check"
    print "SELECT count(*), (SELECT sum(balance) FROM accounts) FROM commits;"
}' > /tmp/script.sql
sqlite3 -batch data.db < /tmp/script.sql > /tmp/said
rm /tmp/run
wait "$beside"
test ! -e /tmp/failed
test "$(cat /tmp/check)" = "$((FREEZES * COMMITS))|100000"
