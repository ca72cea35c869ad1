"""How a token flows: requests, cache, sampling."""

from fulmen.engine.engine import Engine, EngineConfig, FinishReason, TokenOutput
from fulmen.engine.runner import Runner

__all__ = ["Engine", "EngineConfig", "FinishReason", "Runner", "TokenOutput"]
