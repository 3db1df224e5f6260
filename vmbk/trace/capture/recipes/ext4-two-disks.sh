# ROUNDS rounds of COMMITS transactions on commits(n, body) and accounts(id, balance), whose sum
# never changes, each acknowledged by a mark. PostgreSQL's log lies on the second disk, at /log/wal.
# What is written follows from SEED, but for the identity that initdb gives a cluster.

#include postgresql-server.sh

mkdir data /log/wal
chown 70:70 data /log/wal
cd data
server initdb -D /mnt/data -X /log/wal -U postgres -A trust --wal-segsize=1 --data-checksums \
    --locale=C --encoding=UTF8 > /tmp/said 2>&1 || { cat /tmp/said; exit 1; }
#include postgresql-settings.sh
sync postgresql.conf  # initdb synced what it wrote, not what is appended here
sync  # the settings as well: nothing else would write them out before the mark
test "$(readlink pg_wal)" = /log/wal
mark 'cluster made'
start() { server pg_ctl -D /mnt/data -s -w -t 120 -l /tmp/server start || { cat /tmp/server; exit 1; }; }
start
mark 'server started'

sql << 'END'
CREATE TABLE commits(n integer PRIMARY KEY, body text NOT NULL);
CREATE TABLE accounts(id integer PRIMARY KEY, balance integer NOT NULL);
INSERT INTO accounts SELECT i, 1000 FROM generate_series(1, 100) AS i;
END
mark 'tables made'

round=1
while [ "$round" -le "$ROUNDS" ]; do
#include postgresql-commits.sh
    # Once in the middle the server stops without a checkpoint and recovers from its log.
    if [ "$round" = $(((ROUNDS + 1) / 2)) ]; then
        server pg_ctl -D /mnt/data -s -w -m immediate stop
        start
        mark 'recovered'
    fi
    sql -c CHECKPOINT
    mark "checkpoint $round"
    round=$((round + 1))
done
test ! -e /tmp/failed
test "$(sql -A -t -c 'SELECT count(*), (SELECT sum(balance) FROM accounts) FROM commits')" \
    = "$((ROUNDS * COMMITS))|100000"
server pg_ctl -D /mnt/data -s -w -m fast stop
mark 'server stopped'
cd /mnt
