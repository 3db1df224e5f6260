# ROUNDS rounds of COMMITS transactions on commits(n, body) and accounts(id, balance), whose sum
# never changes, each acknowledged by a mark. PostgreSQL's log lies on the second disk, at /log/wal.
# What is written follows from SEED, but for the identity that initdb gives a cluster.

pg=$(echo /usr/lib/postgresql/*/bin)
# The server refuses to run as root.
mkdir -p /etc /dev/shm
chmod 1777 /dev/shm /tmp
echo 'root:x:0:0::/tmp:/bin/sh
postgres:x:70:70::/tmp:/bin/sh' > /etc/passwd
server() { /bin/setpriv --reuid 70 --regid 70 --clear-groups "$pg/$@"; }
sql() { "$pg/psql" -X -q -h /tmp -U postgres -v ON_ERROR_STOP=1 "$@"; }

mkdir data /log/wal
chown 70:70 data /log/wal
cd data
server initdb -D /mnt/data -X /log/wal -U postgres -A trust --wal-segsize=1 --data-checksums \
    --locale=C --encoding=UTF8 > /tmp/said 2>&1 || { cat /tmp/said; exit 1; }
cat >> postgresql.conf << 'END'
listen_addresses = ''
unix_socket_directories = '/tmp'
fsync = on
synchronous_commit = on
full_page_writes = on
shared_buffers = 16MB
min_wal_size = 4MB
max_wal_size = 12MB
checkpoint_timeout = 30s
autovacuum_naptime = 15s
max_connections = 8
max_parallel_workers = 0
jit = off
timezone = 'GMT'
END
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
    awk -v seed="$SEED" -v round="$round" -v commits="$COMMITS" '
    # Half text, half digits of chance: compresses about as well as records of a business do.
    function word() { return substr("lorem ipsum dolor sit amet consectetur ", 1 + int(rand() * 30), 6) }
    function number() { return sprintf("%05x%05x", rand() * 1048576, rand() * 1048576) }
    BEGIN {
        srand(seed * 1000 + round)
        for (n = (round - 1) * commits + 1; n <= round * commits; n++) {
            body = ""
            words = 10 + int(rand() * rand() * 400)
            for (i = 0; i < words; i++) body = body (i % 2 ? word() : number())
            amount = 1 + int(rand() * 50)
            from = 1 + int(rand() * 100); to = 1 + int(rand() * 100)
            print "BEGIN;"
            printf "INSERT INTO commits VALUES(%d, \047%s\047);\n", n, body
            printf "UPDATE accounts SET balance = balance - %d WHERE id = %d;\n", amount, from
            printf "UPDATE accounts SET balance = balance + %d WHERE id = %d;\n", amount, to
            print "COMMIT;"
            # Reached only once COMMIT has returned.
            printf "\\! mark \"commit %d\" || touch /tmp/failed\n", n
        }
    }' > /tmp/script.sql
    sql -f /tmp/script.sql
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
