#!/usr/bin/env bash
# local.sh N COMMAND...: N processes of one run on this machine, for trying (docs/hosts.md). For example, 2 x 4 CPUs:
#
#   JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=4 \
#       scripts/launch/local.sh 2 python -m scripts.pretrain --config configs/pretrain.yaml
#
# When one process fails, the others are killed. SIGTERM or Ctrl-C stops them all after a step that is saved; a second
# one kills. Ends with 0 if all did, else with the status of the first that failed.
set -u
if [ $# -lt 2 ] || ! [ "$1" -ge 1 ] 2>/dev/null; then
    echo "error: the form is local.sh N COMMAND..., N processes from 1 on" >&2
    exit 2
fi
count=$1
shift
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])') || exit 2

pids=()
for ((id = 0; id < count; id++)); do
    "$@" --hosts.coordinator "localhost:$port" --hosts.num-processes "$count" --hosts.process-id "$id" &
    pids+=($!)
done

stop() { # the first time politely
    kill "-$signal" "${pids[@]}" 2>/dev/null
    signal=KILL
}
signal=TERM
trap stop TERM INT HUP

status=0
while [ ${#pids[@]} -gt 0 ]; do
    sleep 0.2
    running=()
    for pid in "${pids[@]}"; do
        if kill -0 "$pid" 2>/dev/null; then
            running+=("$pid")
            continue
        fi
        wait "$pid"
        ended=$?
        if [ "$ended" -ne 0 ] && [ "$status" -eq 0 ]; then
            status=$ended
            echo "error: a process ended with status $status; the others are killed" >&2
            kill -KILL "${pids[@]}" 2>/dev/null
        fi
    done
    pids=(${running[@]+"${running[@]}"})
done
exit "$status"
