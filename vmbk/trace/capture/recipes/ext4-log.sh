# BURSTS of lines, appended to logs/current and synced every SYNC bursts; at FILE_SIZE bytes the file
# is rotated, and of the rotated ones the newest FILES are kept. Lines follow from SEED.

mkdir logs
: > logs/current
file=0
burst=1
while [ "$burst" -le "$BURSTS" ]; do
    awk -v seed="$SEED" -v burst="$burst" '
    BEGIN {
        srand(seed * 100000 + burst)
        split("GET POST PUT HEAD DELETE", method)
        split("/ /login /api/items /api/orders /static/app.js /search", path)
        for (lines = 40 + int(900 * rand() * rand()); lines > 0; lines--) {
            clock += rand() * 20
            printf "2024-01-01T00:%02d:%06.3f 10.%d.%d.%d %s %s?id=%x %d %d %.3f\n", burst % 60,
                clock % 60, rand() * 4, rand() * 256, rand() * 256, method[1 + int(rand() * 5)],
                path[1 + int(rand() * 6)], rand() * 4294967296, rand() < 0.95 ? 200 : 404,
                200 + rand() * rand() * 90000, rand() * rand()
        }
    }' >> logs/current
    if [ $((burst % SYNC)) = 0 ]; then
        sync logs/current
        mark "burst $burst"
    fi
    if [ "$(stat -c %s logs/current)" -ge "$FILE_SIZE" ]; then
        file=$((file + 1))
        sync logs/current
        mv logs/current "logs/$file"
        : > logs/current
        rm -f "logs/$((file - FILES))"
        sync logs
    fi
    burst=$((burst + 1))
done
sync
# What the guest itself reads there, for whoever checks the image.
md5sum logs/* > sums
