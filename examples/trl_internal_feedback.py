"""TRL's GRPOTrainer on a model's own certainty, watched without labels and kept at its best step.

pip install 'rlif[trl]'
python examples/trl_internal_feedback.py                       # the shipped tiny model; minutes on a CPU
torchrun --nproc-per-node 2 examples/trl_internal_feedback.py  # two processes draw what one would
"""

import argparse
from random import Random

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import rlif
from rlif.integrations.trl import AgreementProbe, CollapseGuard, EngineRollouts, InternalReward

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--model", default="tiny-base", help="a name, a hub id or a folder")
parser.add_argument("--out", default="runs/trl")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--probe", type=int, default=32, help="prompts of the probe")
options = parser.parse_args()

policy = rlif.load_policy(options.model, dtype="float32")
random = Random(0)
sums = dict.fromkeys(f"{random.randint(10, 99)}+{random.randint(10, 99)}=?" for _ in range(1200))
problems = [rlif.Problem(text, text) for text in sums]
prompts = [prompt.text for prompt in rlif.render(policy, "plain", problems)]

probe = AgreementProbe(prompts[: options.probe], format="last_number", every=5)
reward = InternalReward("self_certainty", probe=probe)
guard = CollapseGuard(probe)
trainer = GRPOTrainer(
    model=policy.model,
    processing_class=policy.tokenizer,
    reward_funcs=[reward],
    rollout_func=EngineRollouts(),
    callbacks=[reward, probe, guard],
    train_dataset=Dataset.from_dict({"prompt": prompts[options.probe :]}),
    args=GRPOConfig(
        output_dir=options.out,
        max_steps=options.steps,
        per_device_train_batch_size=64,
        num_generations=8,
        max_completion_length=96,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        bf16=False,
        use_cpu=policy.device.type == "cpu",
        save_strategy="no",
        report_to="none",
        logging_steps=1,
    ),
)
trainer.train()
print(f"ended after step {trainer.state.global_step}; best step {guard.best_step}; stopped by {guard.stopped}")
