"""Training: next-token training, and reinforcement learning by CISPO and its relatives."""

from fulmen.train.advantages import AdvantageConfig
from fulmen.train.balance import Balance, BalanceConfig
from fulmen.train.batch import BatchConfig
from fulmen.train.curriculum import Curriculum, CurriculumConfig, Draw, SourceConfig
from fulmen.train.data import Mixture, TaskStream, micro_batches
from fulmen.train.examples import Coder, Example
from fulmen.train.fork import Fork, fork_config, warm_start
from fulmen.train.lm import LMTrainer, StepReport, Watcher
from fulmen.train.lm_config import BranchConfig, LMConfig, ProbeConfig, StageConfig, StartConfig
from fulmen.train.local_rollouts import LocalRollouts
from fulmen.train.metrics import Metrics, read_metrics
from fulmen.train.ngrams import CheckConfig
from fulmen.train.objective import ObjectiveConfig
from fulmen.train.optimizer import Optimizer, OptimizerConfig
from fulmen.train.playing import LimitsConfig
from fulmen.train.probes import ProbeResult
from fulmen.train.rl import EngineSizes, RLRun, ServerConfig, open_run
from fulmen.train.rollout import RolledOut, RolloutError, Rollouts, SamplingConfig
from fulmen.train.run_file import read_run_file, to_toml
from fulmen.train.samples import Group, Sample
from fulmen.train.schedule import ScheduleConfig
from fulmen.train.server_rollouts import ServerRollouts
from fulmen.train.sources import TaskConfig
from fulmen.train.state import latest_state, load_state, model_folder, run_lock, save_state
from fulmen.train.tasks import TokenEnvironment, TokenTask
from fulmen.train.tokenizer import make_tokenizer
from fulmen.train.trainer import Gathered, Trainer, TrainerConfig, TrainingError
from fulmen.train.windows import LengthWindow, WindowConfig

__all__ = [
    "AdvantageConfig",
    "Balance",
    "BalanceConfig",
    "BatchConfig",
    "BranchConfig",
    "CheckConfig",
    "Coder",
    "Curriculum",
    "CurriculumConfig",
    "Draw",
    "EngineSizes",
    "Example",
    "Fork",
    "Gathered",
    "Group",
    "LMConfig",
    "LMTrainer",
    "LengthWindow",
    "LimitsConfig",
    "LocalRollouts",
    "Metrics",
    "Mixture",
    "ObjectiveConfig",
    "Optimizer",
    "OptimizerConfig",
    "ProbeConfig",
    "ProbeResult",
    "RLRun",
    "RolledOut",
    "RolloutError",
    "Rollouts",
    "Sample",
    "SamplingConfig",
    "ScheduleConfig",
    "ServerConfig",
    "ServerRollouts",
    "SourceConfig",
    "StageConfig",
    "StartConfig",
    "StepReport",
    "TaskConfig",
    "TaskStream",
    "TokenEnvironment",
    "TokenTask",
    "Trainer",
    "TrainerConfig",
    "TrainingError",
    "Watcher",
    "WindowConfig",
    "fork_config",
    "latest_state",
    "load_state",
    "make_tokenizer",
    "micro_batches",
    "model_folder",
    "open_run",
    "read_metrics",
    "read_run_file",
    "run_lock",
    "save_state",
    "to_toml",
    "warm_start",
]
