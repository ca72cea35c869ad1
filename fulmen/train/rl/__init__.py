"""Reinforcement learning by CISPO and its relatives: rollouts, groups, advantages, updates."""

from fulmen.train.rl.advantages import AdvantageConfig
from fulmen.train.rl.batch import BatchConfig
from fulmen.train.rl.curriculum import Curriculum, CurriculumConfig, Draw, SourceConfig
from fulmen.train.rl.fork import Fork, fork_config, warm_start
from fulmen.train.rl.local_rollouts import LocalRollouts
from fulmen.train.rl.objective import ObjectiveConfig
from fulmen.train.rl.playing import LimitsConfig
from fulmen.train.rl.rollout import RolledOut, RolloutError, Rollouts, SamplingConfig
from fulmen.train.rl.run import EngineSizes, RLRun, ServerConfig, open_run
from fulmen.train.rl.samples import Group, Sample
from fulmen.train.rl.server_rollouts import ServerRollouts
from fulmen.train.rl.tasks import TokenEnvironment, TokenTask
from fulmen.train.rl.trainer import Trainer, TrainerConfig, TrainingError
from fulmen.train.rl.watcher import Gathered, RLWatcher
from fulmen.train.rl.windows import LengthWindow, WindowConfig

__all__ = [
    "AdvantageConfig",
    "BatchConfig",
    "Curriculum",
    "CurriculumConfig",
    "Draw",
    "EngineSizes",
    "Fork",
    "Gathered",
    "Group",
    "LengthWindow",
    "LimitsConfig",
    "LocalRollouts",
    "ObjectiveConfig",
    "RLRun",
    "RLWatcher",
    "RolledOut",
    "RolloutError",
    "Rollouts",
    "Sample",
    "SamplingConfig",
    "ServerConfig",
    "ServerRollouts",
    "SourceConfig",
    "TokenEnvironment",
    "TokenTask",
    "Trainer",
    "TrainerConfig",
    "TrainingError",
    "WindowConfig",
    "fork_config",
    "open_run",
    "warm_start",
]
