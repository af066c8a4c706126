#!/bin/sh
#SBATCH --job-name=rlif-trl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
# TRL's trainer with weights sharded over all GPUs (docs/trl.md). Untested: no such cluster was at hand.
#   sbatch examples/slurm/trl.sh train.py              (FSDP2)
#   CONFIG=zero2 sbatch examples/slurm/trl.sh train.py
# The settings of accelerate are those that TRL ships: fsdp2, zero2, zero3, multi_gpu. With zero3 only AgreementReward.
set -eu
SCRIPT="$1"
CONFIGS=$(python -c 'import importlib.util as u; print(u.find_spec("trl").submodule_search_locations[0])')/accelerate_configs
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export SCRIPT FIRST FILE="$CONFIGS/${CONFIG:-fsdp2}.yaml"
exec srun --kill-on-bad-exit=1 sh -c 'exec accelerate launch --config_file "$FILE" --num_machines "$SLURM_NNODES" \
    --num_processes "$((SLURM_NNODES * 8))" --machine_rank "$SLURM_NODEID" --main_process_ip "$FIRST" \
    --main_process_port 29400 "$SCRIPT"'
