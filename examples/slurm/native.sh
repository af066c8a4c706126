#!/bin/sh
#SBATCH --job-name=rlif
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@600
# rlif's own trainer on several machines (docs/scaling.md). Untested: no such cluster was at hand.
#   sbatch examples/slurm/native.sh paper-qwen3-1.7b-base runs/first
# Ten minutes before its time is up the job is told to end: the step is finished and a checkpoint written. Submit the
# same line again and the run goes on. The folder must be on a disk that all machines see.
set -eu
RECIPE="$1" OUT="$2"
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [ -e "$OUT/recipe.yaml" ]; then set -- --resume "$OUT"; else set -- "$RECIPE" --out "$OUT"; fi
exec srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --shutdown-timeout 540 \
    --rdzv-backend c10d --rdzv-endpoint "$FIRST:29400" --rdzv-id "$SLURM_JOB_ID" -m rlif train "$@"
