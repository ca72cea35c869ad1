"""How a token flows: requests, cache, sampling; and sessions, where it stays."""

from fulmen.engine.engine import Engine, EngineConfig, EngineStats, FinishReason, Guide, TokenOutput
from fulmen.engine.runner import Runner
from fulmen.engine.session import Head, Origin, SessionStore, Turn

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineStats",
    "FinishReason",
    "Guide",
    "Head",
    "Origin",
    "Runner",
    "SessionStore",
    "TokenOutput",
    "Turn",
]
