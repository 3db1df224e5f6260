# ROUNDS rounds: COMMITS transactions on commits(n, body) and accounts(id, balance), whose sum never
# changes, each acknowledged by a mark; then TRANSACTIONS of pgbench, acknowledged together. What is
# written follows from SEED, but for the identity that initdb gives a cluster.

#include postgresql-server.sh

mkdir data
chown 70:70 data
cd data
server initdb -D /mnt/data -U postgres -A trust --wal-segsize=1 --data-checksums \
    --locale=C --encoding=UTF8 > /tmp/said 2>&1 || { cat /tmp/said; exit 1; }
#include postgresql-settings.sh
sync postgresql.conf  # initdb synced what it wrote, not what is appended here
mark 'cluster made'
start() { server pg_ctl -D /mnt/data -s -w -t 120 -l /tmp/server start || { cat /tmp/server; exit 1; }; }
start
mark 'server started'

sql << 'END'
CREATE TABLE commits(n integer PRIMARY KEY, body text NOT NULL);
CREATE TABLE accounts(id integer PRIMARY KEY, balance integer NOT NULL);
INSERT INTO accounts SELECT i, 1000 FROM generate_series(1, 100) AS i;
END
"$pg/pgbench" -q -i -s 1 -h /tmp -U postgres postgres > /tmp/said 2>&1 || { cat /tmp/said; exit 1; }
mark 'tables made'

round=1
while [ "$round" -le "$ROUNDS" ]; do
#include postgresql-commits.sh
    "$pg/pgbench" -n -M prepared -c 1 -t "$TRANSACTIONS" --random-seed="$((SEED * 1000 + round))" \
        -h /tmp -U postgres postgres > /tmp/said 2>&1 || { cat /tmp/said; exit 1; }
    grep -q "actually processed: $TRANSACTIONS/$TRANSACTIONS" /tmp/said
    mark "pgbench $((round * TRANSACTIONS))"
    if [ $((round % 2)) = 0 ]; then
        sql -c 'VACUUM pgbench_branches, pgbench_tellers' -c CHECKPOINT
        mark "checkpoint $round"
    fi
    # Once in the middle the server stops without a checkpoint and recovers from its log.
    if [ "$round" = $((ROUNDS / 2)) ]; then
        server pg_ctl -D /mnt/data -s -w -m immediate stop
        start
        mark 'recovered'
    fi
    round=$((round + 1))
done
test ! -e /tmp/failed
test "$(sql -A -t -c 'SELECT count(*), (SELECT sum(balance) FROM accounts),
    (SELECT count(*) FROM pgbench_history) FROM commits')" \
    = "$((ROUNDS * COMMITS))|100000|$((ROUNDS * TRANSACTIONS))"
server pg_ctl -D /mnt/data -s -w -m fast stop
mark 'server stopped'
cd /mnt
