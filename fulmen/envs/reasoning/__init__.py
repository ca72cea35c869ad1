"""Tasks of reasoning-gym, from the data sets that pass the self-check."""

from fulmen.envs.reasoning.environment import (
    Listed,
    ReasoningGym,
    ReasoningGymTask,
    listed_datasets,
)

__all__ = ["Listed", "ReasoningGym", "ReasoningGymTask", "listed_datasets"]
