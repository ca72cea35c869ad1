"""HTTP: OpenAI's and Anthropic's dialects over one model or several."""

from fulmen.server.app import create_app
from fulmen.server.batch import Batch, BatchCounts
from fulmen.server.config import ServerConfig
from fulmen.server.errors import Refusal
from fulmen.server.keys import ApiKey, read_key_file
from fulmen.server.logs import log_to
from fulmen.server.run import bind, run_async, serve
from fulmen.server.traces import Traces, open_traces

__all__ = [
    "ApiKey",
    "Batch",
    "BatchCounts",
    "Refusal",
    "ServerConfig",
    "Traces",
    "bind",
    "create_app",
    "log_to",
    "open_traces",
    "read_key_file",
    "run_async",
    "serve",
]
