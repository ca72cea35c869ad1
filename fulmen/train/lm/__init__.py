"""Next-token training: documents of tasks, mixed, packed into rows, learnt step by step."""

from fulmen.train.lm.balance import Balance, BalanceConfig
from fulmen.train.lm.config import BranchConfig, LMConfig, ProbeConfig, StageConfig, StartConfig
from fulmen.train.lm.examples import Coder, Example
from fulmen.train.lm.mixture import Mixture, TaskStream, micro_batches
from fulmen.train.lm.ngrams import CheckConfig
from fulmen.train.lm.probes import ProbeResult
from fulmen.train.lm.sources import TaskConfig
from fulmen.train.lm.tokenizer import make_tokenizer
from fulmen.train.lm.trainer import LMTrainer
from fulmen.train.lm.watching import StepReport, Watcher

__all__ = [
    "Balance",
    "BalanceConfig",
    "BranchConfig",
    "CheckConfig",
    "Coder",
    "Example",
    "LMConfig",
    "LMTrainer",
    "Mixture",
    "ProbeConfig",
    "ProbeResult",
    "StageConfig",
    "StartConfig",
    "StepReport",
    "TaskConfig",
    "TaskStream",
    "Watcher",
    "make_tokenizer",
    "micro_batches",
]
