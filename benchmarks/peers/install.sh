#!/usr/bin/env bash
# The programs that vmbk is compared with, from Debian.
set -euo pipefail
as_root=()
((EUID == 0)) || as_root=(sudo)
"${as_root[@]}" apt-get update -q
DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -q --no-install-recommends restic borgbackup
