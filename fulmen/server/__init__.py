"""HTTP: OpenAI's and Anthropic's dialects over one model."""

from fulmen.server.app import create_app
from fulmen.server.config import ServerConfig
from fulmen.server.errors import Refusal

__all__ = ["Refusal", "ServerConfig", "create_app"]
