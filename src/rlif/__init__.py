"""Reinforcement learning from internal feedback: train a language model on its own confidence.

Nothing heavy is imported here; take what you need from the modules (`rlif.signals`, `rlif.rollout.engine`,
`rlif.training.loop`, …).
"""

__version__ = "0.1.0"
