"""How a token flows: requests, scheduler, cache, forward pass, sampling."""

from fulmen.engine.drafts import Drafter
from fulmen.engine.engine import Engine, EngineConfig, EngineStats
from fulmen.engine.prefixes import Allocation, PrefixCache, pages_for
from fulmen.engine.request import Guide, TokenOutput
from fulmen.engine.runner import MAX_STEP_TOKENS, Runner
from fulmen.engine.sampler import Candidates, Sampled, num_candidates, sample
from fulmen.engine.scheduler import Scheduler
from fulmen.engine.states import Origin

__all__ = [
    "MAX_STEP_TOKENS",
    "Allocation",
    "Candidates",
    "Drafter",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "Guide",
    "Origin",
    "PrefixCache",
    "Runner",
    "Sampled",
    "Scheduler",
    "TokenOutput",
    "num_candidates",
    "pages_for",
    "sample",
]
