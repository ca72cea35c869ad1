"""Environments: tasks whose trajectories can be scored, their sources, and how one is played."""

from fulmen.envs.arithmetic import Arithmetic
from fulmen.envs.basics import Basics, BasicTask
from fulmen.envs.calls import Calls, CallTask
from fulmen.envs.code import Code, CodeTask, Exercise, Exercises
from fulmen.envs.demonstration import KnownAnswers, demonstrate, demonstrated, tools_of
from fulmen.envs.environments import KINDS, load_environment
from fulmen.envs.folders import Folders, FolderTask
from fulmen.envs.injection import Injection, InjectionTask
from fulmen.envs.instances import (
    Instance,
    Instances,
    InstanceTask,
    Prediction,
    append_prediction,
    predict,
    read_instances,
    read_predictions,
)
from fulmen.envs.instructions import Instructions, InstructionTask
from fulmen.envs.judged import (
    Judge,
    Judged,
    JudgedTask,
    LengthBias,
    LengthMonitor,
    choose_reference,
    swiss_winner,
)
from fulmen.envs.number import NumberTask, final_number
from fulmen.envs.packages import Packages, PackageTask
from fulmen.envs.questions import Questions
from fulmen.envs.reasoning import ReasoningGym, ReasoningGymTask
from fulmen.envs.repairs import Repairs, RepairTask
from fulmen.envs.rows import VERIFIERS, Verifier
from fulmen.envs.run import run_task
from fulmen.envs.task import Environment, GraderError, Task, answered
from fulmen.envs.tau2 import Tau2, Tau2Task
from fulmen.envs.tools import ToolTask, ToolUse
from fulmen.envs.words import WordProblems, WordTask
from fulmen.envs.workers import WorkerError, Workers

__all__ = [
    "KINDS",
    "VERIFIERS",
    "Arithmetic",
    "BasicTask",
    "Basics",
    "CallTask",
    "Calls",
    "Code",
    "CodeTask",
    "Environment",
    "Exercise",
    "Exercises",
    "FolderTask",
    "Folders",
    "GraderError",
    "Injection",
    "InjectionTask",
    "Instance",
    "InstanceTask",
    "Instances",
    "InstructionTask",
    "Instructions",
    "Judge",
    "Judged",
    "JudgedTask",
    "KnownAnswers",
    "LengthBias",
    "LengthMonitor",
    "NumberTask",
    "PackageTask",
    "Packages",
    "Prediction",
    "Questions",
    "ReasoningGym",
    "ReasoningGymTask",
    "RepairTask",
    "Repairs",
    "Task",
    "Tau2",
    "Tau2Task",
    "ToolTask",
    "ToolUse",
    "Verifier",
    "WordProblems",
    "WordTask",
    "WorkerError",
    "Workers",
    "answered",
    "append_prediction",
    "choose_reference",
    "demonstrate",
    "demonstrated",
    "final_number",
    "load_environment",
    "predict",
    "read_instances",
    "read_predictions",
    "run_task",
    "swiss_winner",
    "tools_of",
]
