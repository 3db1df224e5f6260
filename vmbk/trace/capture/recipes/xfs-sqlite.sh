# COMMITS transactions on commits(n, body) and accounts(id, balance), whose sum never changes.
# Everything that follows from SEED is the same in every run.
#
# One sqlite3 runs the whole script in order: `.system mark` is reached only once COMMIT returned.

churn=/tmp/churn
cat > "$churn" << 'END'
#!/bin/sh -eu
# One step of life beside the database: create, overwrite, append to and delete small files.
step=$1
words() { awk -v seed="$1" -v n="$2" 'BEGIN { srand(seed); while (n-- > 0) printf "%d ", rand() * 9999 }'; }
words "$((SEED * 10000 + step))" $((200 + step * 37 % 3000)) > "files/new-$step"
case $((step % 4)) in
0) sync "files/new-$step" ;;
1) words "$step" 600 | dd of=files/log bs=1024 seek=$((step % 40)) conv=notrunc status=none ;;
2) words "$step" 150 >> files/log && sync files/log ;;
3) rm -f "files/new-$((step - 3))" && mv "files/new-$((step - 1))" "files/kept-$((step / 4))" ;;
esac
END
chmod 755 "$churn"

mkdir files
: > files/log
awk -v seed="$SEED" -v commits="$COMMITS" -v churn="$churn" '
# Half text, half digits of chance: compresses about as well as records of a business do.
function word() { return substr("lorem ipsum dolor sit amet consectetur ", 1 + int(rand() * 30), 6) }
function number() { return sprintf("%05x%05x", rand() * 1048576, rand() * 1048576) }
BEGIN {
    srand(seed)
    print ".bail on"
    print "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=0;"
    print "CREATE TABLE commits(n INTEGER PRIMARY KEY, body BLOB NOT NULL);"
    print "CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);"
    print "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 100)"
    print "INSERT INTO accounts SELECT i, 1000 FROM c;"
    print ".system mark \"tables made\""
    for (n = 1; n <= commits; n++) {
        body = ""
        words = 10 + int(rand() * rand() * 1600)
        for (i = 0; i < words; i++) body = body (i % 2 ? word() : number())
        amount = 1 + int(rand() * 50)
        from = 1 + int(rand() * 100); to = 1 + int(rand() * 100)
        print "BEGIN IMMEDIATE;"
        printf "INSERT INTO commits VALUES(%d, CAST(\047%s\047 AS BLOB));\n", n, body
        printf "UPDATE accounts SET balance = balance - %d WHERE id = %d;\n", amount, from
        printf "UPDATE accounts SET balance = balance + %d WHERE id = %d;\n", amount, to
        print "COMMIT;"
        printf ".system mark \"commit %d\"\n", n
        if (n % 5 == 0) printf ".system %s %d || echo churn failed\n", churn, n / 5
        if (n % 60 == 0) print "PRAGMA wal_checkpoint(" (n % 120 ? "PASSIVE" : "TRUNCATE") ");"
    }
    print ".output /tmp/check"
    print "SELECT count(*), (SELECT sum(balance) FROM accounts) FROM commits;"
}' > /tmp/script.sql
sqlite3 -batch data.db < /tmp/script.sql > /tmp/said
if grep 'churn failed' /tmp/said; then exit 3; fi
test "$(cat /tmp/check)" = "$COMMITS|100000"
