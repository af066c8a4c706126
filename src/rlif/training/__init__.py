"""The training loop, the GRPO update and the optimizer."""
