#include ext4-sqlite.sh
