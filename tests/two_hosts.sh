#!/usr/bin/env bash
# The lock of a run directory on a network file system: bash tests/two_hosts.sh   (as root, 4 minutes)
# Two hosts, a and b, are namespaces of this machine. Each has its name, its boot ID and its own mount
# by sshfs, so neither hears of the other's flock, and a file has another number on each of them.
# Needs sshfs, sshd and ssh-keygen.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
top=$(mktemp -d)
export PYTHONPATH=$PWD top port=2222
python=$PWD/.venv/bin/python; [ -x "$python" ] || python=$(command -v python)
mkdir -p "$top/store/run" /run/sshd
for key in client server; do ssh-keygen -q -t ed25519 -N '' -f "$top/$key"; done
"$(command -v sshd)" -p $port -o ListenAddress=127.0.0.1 -o HostKey="$top/server" -o UsePAM=no \
  -o AuthorizedKeysFile="$top/client.pub" -o StrictModes=no -o PermitRootLogin=yes -o PidFile="$top/pid"
trap 'kill $(cat "$top/pid") $(jobs -p) 2>/dev/null || true; rm -rf "$top"' EXIT

# host NAME SECONDS: locks the run directory on that host, and lets go of it after so many seconds.
host() {
  unshare --mount --uts bash -euc '
    hostname $0; mkdir $top/$0.$$; echo $0 > $top/boot.$0
    mount --make-rprivate /; mount --bind $top/boot.$0 /proc/sys/kernel/random/boot_id
    sshfs -p $port -o IdentityFile=$top/client,StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null \
      root@127.0.0.1:$top/store $top/$0.$$
    cd $top/$0.$$; exec "$@"' "$1" "$python" -c '
import sys, time
from pathlib import Path
from bvit.lock import RunLock
lock = RunLock(Path("run", ".lock"))
print("locked", flush=True)
time.sleep(float(sys.argv[1]))
lock.release()' "$2" >"$top/$1.out" 2>&1
}

expect() { # expect NAME WORDS: what that host printed
  grep -q "$2" "$top/$1.out" || { echo "FAILED: $1 did not print \"$2\":"; cat "$top/$1.out"; exit 1; }
  echo "ok: $1 printed \"$2\""
}

host a 30 & sleep 15; host b 0 || true
expect b "process .* on a) is working in run"
wait; host b 0
expect b locked
host a 600 & sleep 15; pkill -KILL -f "time.sleep.* 600"; host b 0
expect b "was in use by .* waiting up to"
expect b locked
host a 601 & sleep 15; pkill -STOP -f "time.sleep.* 601"; host b 20 & sleep 75
expect b locked
pkill -CONT -f "time.sleep.* 601"; sleep 12
expect a "on b) has taken over run"
