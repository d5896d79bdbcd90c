#!/bin/bash
# sbatch scripts/launch/slurm.sh python -m scripts.pretrain ...: one run on several nodes (docs/hosts.md).
# Adapt the lines below: one task per node, which drives all of the node's GPUs. Submitted from the repository; the
# repository, the environment and --output-dir lie on a file system that all nodes see.
#SBATCH --job-name=temper
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
# 120 s before the time is up (longer, if a checkpoint takes longer) this shell, and it alone, gets SIGTERM: it passes
# it on, the run saves itself and ends, and the job goes back to the queue, to go on from there.
set -u
if [ $# -eq 0 ]; then
    echo "error: the form is sbatch scripts/launch/slurm.sh python -m scripts.NAME ..." >&2
    exit 2
fi
[ -f .venv/bin/activate ] && . .venv/bin/activate

stopping=
stop() {
    stopping=yes
    scancel --signal=TERM "$SLURM_JOB_ID" # reaches the step's processes, not this shell
}
trap stop TERM

srun --kill-on-bad-exit=1 "$@" &
step=$!
wait "$step" # until the step ends, or a signal comes
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
done
wait "$step"
status=$?

if [ -n "$stopping" ] && [ "$status" -eq 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
