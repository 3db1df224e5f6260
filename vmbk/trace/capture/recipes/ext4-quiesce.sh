# ROUNDS rounds of four snapshots of the disk, after some transactions each on commits(n, body) and
# accounts(id, balance), whose sum never changes. "snapshot N MODE" stands where the snapshot would
# be taken:
#   none       nothing is done
#   freeze     the file system is frozen
#   quiesce    the tables are locked and the database brought to rest, then the file system is
#              frozen: by backup mode ("backup mode N") in the rounds 1, 2, 5, 6, ..., by a checkpoint
#              ("checkpoint N") in the others
#   forgotten  as quiesce in backup mode, but it is released only when a watchdog's patience ends
#              ("released N"), and backup mode is never stopped
# In the rounds 3, 4, 7, 8, ... none and freeze fall into an open transaction. In odd rounds
# synchronous_commit is on; in even ones it is off, which shows what freezing a file system cannot
# save: the end of the server's log, still in the server's own memory.
#
# The plan follows from SEED, but for the identity that initdb gives a cluster.

#include postgresql-server.sh
export pg

# A new cluster is made of three databases of equal content: two go before the disk sees them, and
# with them most of the capture's size.
server initdb -D /tmp/data -U postgres -A trust --wal-segsize=1 --data-checksums \
    --locale=C --encoding=UTF8 > /tmp/said 2>&1 || { cat /tmp/said; exit 1; }
server postgres --single -F -D /tmp/data postgres > /tmp/said 2>&1 << 'END' || { cat /tmp/said; exit 1; }
UPDATE pg_database SET datistemplate = false;
DROP DATABASE template0;
DROP DATABASE template1;
END
cp -a /tmp/data /mnt/data
rm -r /tmp/data
cd data
#include postgresql-settings.sh
sync
mark 'cluster made'
server pg_ctl -D /mnt/data -s -w -t 120 -l /tmp/server start || { cat /tmp/server; exit 1; }
mark 'server started'
sql << 'END'
CREATE TABLE commits(n integer PRIMARY KEY, body text NOT NULL);
CREATE TABLE accounts(id integer PRIMARY KEY, balance integer NOT NULL);
INSERT INTO accounts SELECT i, 1000 FROM generate_series(1, 100) AS i;
END
mark 'tables made'

#include snapshot-frozen.sh
cat > /tmp/snapshot << 'END'
#!/bin/sh -eu
# NUMBER MODE HOW: what a guest's agent and its scripts do before and after a snapshot.
held() {
    "$pg/psql" -X -q -h /tmp -U postgres -v ON_ERROR_STOP=1 << SQL || touch /tmp/failed
BEGIN;
LOCK TABLE commits, accounts IN EXCLUSIVE MODE;
$4;
\! mark "$5 $1"; sync; /tmp/frozen $1 $2 $3 || touch /tmp/failed
$6;
COMMIT;
SQL
}
backup="SELECT pg_backup_start('snapshot $1', fast => true)"
case $2-$3 in
none-*) mark "snapshot $1 none" ;;
freeze-*) /tmp/frozen "$1" freeze "$HELD" ;;
quiesce-backup)
    held "$1" quiesce "$HELD" "$backup" 'backup mode' 'SELECT pg_backup_stop(false)' ;;
quiesce-checkpoint) held "$1" quiesce "$HELD" CHECKPOINT checkpoint '' ;;
forgotten-*)
    rm -f /tmp/taken
    touch /tmp/forgotten
    (held "$1" forgotten "$PATIENCE" "$backup" 'backup mode' ''; rm /tmp/forgotten) &
    while [ ! -e /tmp/taken ]; do sleep 0.05; done
    ;;
esac > /dev/null 2>&1
END
chmod 755 /tmp/snapshot

awk -v seed="$SEED" -v rounds="$ROUNDS" -v commits="$COMMITS" '
# Half text, half digits of chance: compresses about as well as records of a business do.
function word() { return substr("lorem ipsum dolor sit amet consectetur ", 1 + int(rand() * 30), 6) }
function number() { return sprintf("%05x%05x", rand() * 1048576, rand() * 1048576) }
function transfer(within,    body, words, i, amount, from, to) {
    n++
    body = ""
    words = 10 + int(rand() * rand() * 400)
    for (i = 0; i < words; i++) body = body (i % 2 ? word() : number())
    amount = 1 + int(rand() * 50)
    from = 1 + int(rand() * 100); to = 1 + int(rand() * 100)
    print "BEGIN;"
    printf "INSERT INTO commits VALUES(%d, \047%s\047);\n", n, body
    printf "UPDATE accounts SET balance = balance - %d WHERE id = %d;\n", amount, from
    if (within) print within
    printf "UPDATE accounts SET balance = balance + %d WHERE id = %d;\n", amount, to
    print "COMMIT;"
    # Reached only once COMMIT has returned.
    printf "\\! mark \"commit %d\" || touch /tmp/failed\n", n
}
BEGIN {
    srand(seed)
    split("none freeze quiesce forgotten", modes, " ")
    for (round = 1; round <= rounds; round++) {
        on = round % 2 ? "on" : "off"
        later = int((round - 1) / 2) % 2
        transfer("")  # held up by the last round
        printf "SET synchronous_commit = %s;\n", on
        printf "\\! mark \"synchronous_commit %s\" || touch /tmp/failed\n", on
        for (turn = 1; turn <= 4; turn++) {
            mode = modes[turn]
            call = sprintf("\\! /tmp/snapshot %d %s %s || touch /tmp/failed", \
                ++snapshot, mode, later && mode == "quiesce" ? "checkpoint" : "backup")
            for (i = 1 + int(rand() * (commits - 1)); i > 0; i--) transfer("")
            if (later && turn <= 2) transfer(call); else print call
        }
    }
    transfer("")
}' > /tmp/script.sql
sql -f /tmp/script.sql
while [ -e /tmp/forgotten ]; do sleep 0.05; done
test ! -e /tmp/failed
test "$(sql -A -t -c 'SELECT count(*) = max(n), (SELECT sum(balance) FROM accounts) FROM commits')" \
    = 't|100000'
server pg_ctl -D /mnt/data -s -w -m fast stop
mark 'server stopped'
cd /mnt
