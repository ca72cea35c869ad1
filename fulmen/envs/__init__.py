"""Environments: tasks whose replies can be scored, and the sources of such tasks."""

from fulmen.envs.arithmetic import Arithmetic
from fulmen.envs.environments import load_environment
from fulmen.envs.number import NumberTask, final_number
from fulmen.envs.questions import Questions
from fulmen.envs.task import Environment, Task

__all__ = [
    "Arithmetic",
    "Environment",
    "NumberTask",
    "Questions",
    "Task",
    "final_number",
    "load_environment",
]
