"""The folder of a run: its layout, log, rollouts and checkpoints."""
