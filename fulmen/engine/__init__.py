"""How a token flows: requests, cache, sampling."""

from fulmen.engine.engine import Engine, EngineConfig, FinishReason, TokenOutput

__all__ = ["Engine", "EngineConfig", "FinishReason", "TokenOutput"]
