#!/usr/bin/env bash
# One node of a Ray cluster, in the foreground until it is asked to end; README.md beside this file says the rest.
#   cluster/node.sh HEAD_ADDRESS [options of `ray start`]
# The command is the same on every machine: the one that has HEAD_ADDRESS is the head. Ray listens where the firewall
# lets other nodes in, on fixed ports; the dashboard listens to the head alone.
set -euo pipefail
head=${1:?the address of the head in the network between the nodes}
shift
fail() {
    echo "error: $1" >&2
    exit 2
}

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
[[ -s $RAY_AUTH_TOKEN_PATH ]] || fail "$RAY_AUTH_TOKEN_PATH: no token; README.md says how to make the one of all nodes"
[[ $(stat -Lc %a "$RAY_AUTH_TOKEN_PATH") == ?00 ]] || fail "$RAY_AUTH_TOKEN_PATH: others can read it; chmod 600"

# Processes share a node's cores, so a CPU thread that waits must not keep others from running.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

# Fixed ports, some of which Ray would draw by chance; README.md lists them for the firewall.
export AUTOSCALER_METRIC_PORT=6387 DASHBOARD_METRIC_PORT=6388
options=(
    --node-manager-port 6380 --object-manager-port 6381 --runtime-env-agent-port 6382
    --dashboard-agent-grpc-port 6383 --dashboard-agent-listen-port 6384 --metrics-export-port 6385
    --min-worker-port 10002 --max-worker-port 19999
)
if [[ " $(hostname -I) " == *" $head "* ]]; then
    export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0  # with the head all ends, so nobody need hear of it 30 s before
    options+=(
        --head --node-ip-address "$head" --port 6379 --ray-client-server-port 6386
        --dashboard-host 127.0.0.1 --resources '{"trial_driver": 16}'
    )
else
    options+=(--address "$head:6379")
    until (: <"/dev/tcp/$head/6379") 2>/dev/null; do
        ((SECONDS < 300)) || fail "nothing answers at $head:6379: no head runs there, or a firewall is in between"
        sleep 1
    done
fi

# Ray opens its directory to every user of the machine, so it lies in one that is closed, with a path that is short
# enough for sockets. What workers keep on disk goes at the end, even if they were killed.
work=${TMPDIR:-/tmp}
((${#work} <= 50)) || fail "TMPDIR is $work: sockets lie below it, so it may have 50 characters at most"
directory=$(mktemp -d /tmp/ray.XXXXXX)
TMPDIR=$(mktemp -d "$work/ray-work.XXXXXX")
export TMPDIR
setsid ray start --block --disable-usage-stats --temp-dir "$directory/ray" "${options[@]}" "$@" &
ray=$!
# Ray's agents outlive a lost head by a minute, and would hold the ports of the next node.
trap 'pkill -KILL --session "$ray" || true; rm -rf "$directory" "$TMPDIR"' EXIT
trap 'kill "$ray" 2>/dev/null || true' INT TERM
while
    code=0
    wait "$ray" || code=$?  # a signal ends this wait, too
    kill -0 "$ray" 2>/dev/null
do :; done
exit "$code"
