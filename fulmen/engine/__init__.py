"""The engine: requests, scheduler, cache, forward pass, sampling."""

from fulmen.engine.config import EngineConfig
from fulmen.engine.drafts import Drafter
from fulmen.engine.engine import Engine
from fulmen.engine.prefixes import Allocation, PrefixCache, pages_for
from fulmen.engine.request import RequestFailed, read_ids
from fulmen.engine.runner import MAX_STEP_TOKENS, Runner
from fulmen.engine.sampler import Candidates, Sampled, num_candidates, sample
from fulmen.engine.scheduler import Scheduler
from fulmen.engine.states import (
    Between,
    KnownStates,
    Origin,
    at_once,
    check_pages,
    check_snapshot,
    is_of_use,
    max_snapshot_bytes,
)
from fulmen.engine.stats import EngineStats
from fulmen.engine.steering import Choice, PromptLogprob, Steering, TokenOutput

__all__ = [
    "MAX_STEP_TOKENS",
    "Allocation",
    "Between",
    "Candidates",
    "Choice",
    "Drafter",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "KnownStates",
    "Origin",
    "PrefixCache",
    "PromptLogprob",
    "RequestFailed",
    "Runner",
    "Sampled",
    "Scheduler",
    "Steering",
    "TokenOutput",
    "at_once",
    "check_pages",
    "check_snapshot",
    "is_of_use",
    "max_snapshot_bytes",
    "num_candidates",
    "pages_for",
    "read_ids",
    "sample",
]
