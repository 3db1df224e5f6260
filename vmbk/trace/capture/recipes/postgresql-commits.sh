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
