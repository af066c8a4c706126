#!/bin/sh
# Untested: written from the source of verl 0.9.1. From this folder: sh run.sh vote | likelihood
# The data are verl's: Parquet with prompt, data_source and reward_model, whose ground_truth may be "".
set -eu
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"    # on every machine of the Ray cluster
case "${1:-}" in
vote)
    export VERL_USE_EXTERNAL_MODULES=vote_advantage
    set -- reward.custom_reward_function.path="$PWD/vote_reward.py" algorithm.adv_estimator=majority_vote ;;
likelihood)
    set -- actor_rollout_ref.rollout.agent.agent_loop_config_path="$PWD/likelihood_loop.yaml" \
        actor_rollout_ref.rollout.agent.default_agent_loop=likelihood algorithm.adv_estimator=grpo ;;
*) echo "run.sh: say vote or likelihood" >&2; exit 2 ;;
esac
exec python3 -m verl.trainer.main_ppo "$@" \
    algorithm.use_kl_in_reward=False \
    actor_rollout_ref.actor.use_kl_loss=True actor_rollout_ref.actor.kl_loss_coef=0.005 \
    actor_rollout_ref.model.path="${MODEL:-Qwen/Qwen3-1.7B-Base}" \
    actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.n=8 actor_rollout_ref.rollout.temperature=1.0 \
    actor_rollout_ref.actor.optim.lr=3e-6 actor_rollout_ref.actor.ppo_mini_batch_size=128 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    data.train_files="${TRAIN:-train.parquet}" data.val_files="${VAL:-val.parquet}" data.train_batch_size=128 \
    data.max_response_length=3072 trainer.total_training_steps=80 trainer.n_gpus_per_node="${GPUS:-8}"
