"""HTTP: OpenAI's and Anthropic's dialects over one model or several."""

from fulmen.server.app import create_app
from fulmen.server.batch import Batch, BatchCounts
from fulmen.server.config import ServerConfig
from fulmen.server.errors import Refusal
from fulmen.server.keys import ApiKey, read_key_file
from fulmen.server.logs import log_to
from fulmen.server.page_files import PAGE_HEADERS, PageFile, page_files, read_files
from fulmen.server.run import bind, run_async, serve
from fulmen.server.traces import Traces, open_traces

__all__ = [
    "PAGE_HEADERS",
    "ApiKey",
    "Batch",
    "BatchCounts",
    "PageFile",
    "Refusal",
    "ServerConfig",
    "Traces",
    "bind",
    "create_app",
    "log_to",
    "open_traces",
    "page_files",
    "read_files",
    "read_key_file",
    "run_async",
    "serve",
]
