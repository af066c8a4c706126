"""For verl, untested there: the reward trajectory_entropy, the mean ln p of a completion's tokens (docs/rewards.md).

    actor_rollout_ref.rollout.agent.agent_loop_config_path=likelihood_loop.yaml
    actor_rollout_ref.rollout.agent.default_agent_loop=likelihood

An agent loop is handed the sampler's log-probabilities, and may set the reward. They are those of the distribution that
was sampled from: keep temperature, top_p and top_k at 1, 1 and -1, or the signal is another one. Validation gets the
same reward, not an accuracy.
"""

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


class LikelihoodLoop(SingleTurnAgentLoop):  # type: ignore[misc]
    """verl's own loop of one turn, with the reward."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        output = await super().run(sampling_params, **kwargs)
        if not output.response_logprobs:
            raise ValueError("no log-probabilities: set actor_rollout_ref.rollout.calculate_log_probs=True")
        output.reward_score = sum(output.response_logprobs) / len(output.response_logprobs)
        output.extra_fields["reward_extra_info"] = {"trajectory_entropy": output.reward_score}
        return output
