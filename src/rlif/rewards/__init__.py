"""Rewards and advantages: what a completion is worth. Nothing here imports a trainer."""
