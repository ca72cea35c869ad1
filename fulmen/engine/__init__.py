"""How a token flows: requests, cache, sampling."""

from fulmen.engine.engine import Engine, EngineConfig, EngineStats, FinishReason, TokenOutput
from fulmen.engine.runner import Runner

__all__ = ["Engine", "EngineConfig", "EngineStats", "FinishReason", "Runner", "TokenOutput"]
