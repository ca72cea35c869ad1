"""Tasks of tau2-bench, where its package is installed: policy, tools, databases and verdicts are
its own."""

from fulmen.envs.tau2.environment import Tau2
from fulmen.envs.tau2.task import Tau2Task

__all__ = ["Tau2", "Tau2Task"]
