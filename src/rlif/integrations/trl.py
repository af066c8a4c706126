"""rlif inside TRL's GRPOTrainer: internal rewards, rollouts that carry their signals, a probe and a guard.

Everything goes in by the trainer's constructor; no private name of TRL is used. docs/trl.md has examples and traps.
Raises `MissingPackageError`, one line with the command to install it, where TRL is missing or of another version.
"""

from rlif.utils.packages import require

require("trl", least="1.16", below="2", extra="trl")

from rlif.integrations.trl_callbacks import AgreementProbe, CollapseGuard  # noqa: E402  (after the check)
from rlif.integrations.trl_rewards import AgreementReward, InternalReward  # noqa: E402  (after the check)
from rlif.integrations.trl_rollouts import EngineRollouts  # noqa: E402  (after the check)

__all__ = ["AgreementProbe", "AgreementReward", "CollapseGuard", "EngineRollouts", "InternalReward"]
