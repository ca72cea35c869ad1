"""Routes: each file has those of one dialect, or of one thing that the server holds."""

from fulmen.server.routes.absent import absent_router
from fulmen.server.routes.api import Api
from fulmen.server.routes.chat import chat_router
from fulmen.server.routes.completions import completions_router
from fulmen.server.routes.messages import messages_router
from fulmen.server.routes.models import health_router, models_router
from fulmen.server.routes.page import page_router
from fulmen.server.routes.responses import responses_router
from fulmen.server.routes.sessions import sessions_router
from fulmen.server.routes.tokens import tokens_router
from fulmen.server.routes.usage import usage_router

__all__ = [
    "Api",
    "absent_router",
    "chat_router",
    "completions_router",
    "health_router",
    "messages_router",
    "models_router",
    "page_router",
    "responses_router",
    "sessions_router",
    "tokens_router",
    "usage_router",
]
