"""Environments: tasks whose trajectories can be scored, their sources, and how one is played."""

from fulmen.envs.arithmetic import Arithmetic
from fulmen.envs.demonstration import KnownAnswers, demonstrate, demonstrated, tools_of
from fulmen.envs.environments import KINDS, load_environment
from fulmen.envs.injection import Injection, InjectionTask
from fulmen.envs.instructions import Instructions, InstructionTask
from fulmen.envs.number import NumberTask, final_number
from fulmen.envs.questions import Questions
from fulmen.envs.repairs import Repairs, RepairTask
from fulmen.envs.run import run_task
from fulmen.envs.task import Environment, Task, answered
from fulmen.envs.tools import ToolTask, ToolUse
from fulmen.envs.words import WordProblems, WordTask

__all__ = [
    "KINDS",
    "Arithmetic",
    "Environment",
    "Injection",
    "InjectionTask",
    "KnownAnswers",
    "InstructionTask",
    "Instructions",
    "NumberTask",
    "Questions",
    "RepairTask",
    "Repairs",
    "Task",
    "ToolTask",
    "ToolUse",
    "WordProblems",
    "WordTask",
    "answered",
    "demonstrate",
    "demonstrated",
    "final_number",
    "load_environment",
    "run_task",
    "tools_of",
]
