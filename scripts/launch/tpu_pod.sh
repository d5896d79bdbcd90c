#!/usr/bin/env bash
# tpu_pod.sh VERB: one run on all hosts of a Cloud TPU VM slice, from a laptop with gcloud (docs/hosts.md).
#
#   export TPU=temper ZONE=us-east5-a TYPE=v6e-16 RUNTIME=v2-alpha-tpuv6e SHARE=10.0.0.2:/share
#   scripts/launch/tpu_pod.sh create          # makes the slice; mounts SHARE (NFS, such as Filestore) as /mnt/share
#   scripts/launch/tpu_pod.sh install         # this working tree and requirements-tpu.txt, on every host
#   scripts/launch/tpu_pod.sh run python -m scripts.pretrain --output-dir /mnt/share/runs/first ...
#   scripts/launch/tpu_pod.sh log             # what host 0 printed last, and whether each host still runs
#   scripts/launch/tpu_pod.sh stop            # SIGTERM: the run saves itself and ends; `run` again goes on
#   scripts/launch/tpu_pod.sh fetch /mnt/share/runs/first   # copies it here
#   scripts/launch/tpu_pod.sh delete
set -eu
: "${TPU:?set TPU, the name of the slice}" "${ZONE:?set ZONE, such as us-east5-a}"

on() { # on WORKER COMMAND
    gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker "$1" --command "$2"
}

verb=${1:-help}
[ $# -gt 0 ] && shift
case $verb in
create)
    : "${TYPE:?set TYPE, such as v6e-16}" "${RUNTIME:?set RUNTIME, such as v2-alpha-tpuv6e}"
    : "${SHARE:?set SHARE, the HOST:/PATH of an NFS export that the hosts can reach}"
    gcloud compute tpus tpu-vm create "$TPU" --zone "$ZONE" --accelerator-type "$TYPE" --version "$RUNTIME"
    on all "sudo apt-get update -q && sudo apt-get install -q -y nfs-common python3-venv &&
            sudo mkdir -p /mnt/share && sudo mount -t nfs $SHARE /mnt/share && sudo chmod a+rwx /mnt/share"
    ;;
install)
    archive=$(mktemp --suffix .tar.gz)
    trap 'rm -f "$archive"' EXIT
    git ls-files --cached --others --exclude-standard -z | tar --null --ignore-failed-read -czf "$archive" -T -
    gcloud compute tpus tpu-vm scp "$archive" "$TPU:temper.tar.gz" --zone "$ZONE" --worker all
    on all 'rm -rf temper.new && mkdir temper.new && tar -xzf temper.tar.gz -C temper.new && rm -rf temper &&
            mv temper.new temper && python3 -m venv venv && venv/bin/pip install -q -r temper/requirements-tpu.txt'
    ;;
run)
    [ $# -gt 0 ] || { echo "error: the form is tpu_pod.sh run python -m scripts.NAME ..." >&2; exit 2; }
    command=$(printf '%q ' "$@")
    on all "cd temper && . ../venv/bin/activate &&
            if [ -e ../pid ] && kill -0 \$(cat ../pid) 2>/dev/null; then echo 'error: a run is under way' >&2; exit 1; fi
            nohup $command >../log.txt 2>&1 </dev/null & echo \$! >~/pid"
    ;;
log)
    on 0 'tail -n 40 log.txt'
    on all 'if kill -0 $(cat pid) 2>/dev/null; then echo "$(hostname): running"; else
            echo "$(hostname): ended: $(tail -n 1 log.txt)"; fi'
    ;;
stop)
    on all 'kill -TERM $(cat pid)'
    ;;
fetch)
    gcloud compute tpus tpu-vm scp --recurse "$TPU:${1:?name the run directory}" . --zone "$ZONE" --worker 0
    ;;
delete)
    gcloud compute tpus tpu-vm delete "$TPU" --zone "$ZONE"
    ;;
*)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    [ "$verb" = help ] || exit 2
    ;;
esac
