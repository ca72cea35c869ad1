"""One refusal, in the shape of each dialect.

raise Refusal(429, "...", retry_after=2)  ->  {"error": {...}}                  OpenAI
                                          ->  {"type": "error", "error": {...}} Anthropic
"""

import logging
import math
from collections.abc import Mapping
from typing import Any, Final, Literal

from fulmen.chat import ModelError
from fulmen.files import shorten

_log = logging.getLogger(__name__)

Dialect = Literal["openai", "anthropic"]

_KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    500: "api_error",
    501: "api_error",
    502: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""Anthropic's word for each status; OpenAI's types are free texts, so the words serve both."""

_FINAL: Final = frozenset({400, 401, 403, 404, 405, 413, 415, 501, 504})
"""Statuses of requests that would end in the same way again"""


class Refusal(Exception):
    """A request that is not answered: its HTTP status and one sentence that says why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """
        param        field of the request at fault
        code         OpenAI's word
        retry_after  in seconds
        details      Anthropic's words
        """
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.details = details

    @property
    def headers(self) -> dict[str, str]:
        """HTTP headers that go with it."""
        if self.retry_after is not None:
            return {"retry-after": str(self.retry_after)}
        # Claude Code asks ten times, over minutes, with a key that is not known unless told not to.
        return {"x-should-retry": "false"} if self.status in _FINAL else {}

    def body(self, dialect: Dialect, request_id: str) -> dict[str, Any]:
        """Return the refusal as a dialect writes it."""
        kind = _KINDS.get(self.status, "api_error")
        if dialect == "anthropic":
            error: dict[str, Any] = {"type": kind, "message": self.message}
            if self.details is not None:
                error["details"] = dict(self.details)
            return {"type": "error", "error": error, "request_id": request_id}
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def dialect_of(path: str, headers: Mapping[str, str] | None = None) -> Dialect:
    """Return the dialect that a path belongs to; where both share it, the headers tell."""
    if path.startswith("/v1/messages") or (headers is not None and "anthropic-version" in headers):
        return "anthropic"
    return "openai"


def refusal_of(error: BaseException) -> Refusal:
    """Return any failure as a refusal. A ValueError is the caller's fault, all
    else is ours or the model's."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, ValueError):
        return Refusal(400, shorten(str(error), 2000))
    if isinstance(error, ModelError):
        wait = None if error.retry_after is None else math.ceil(min(error.retry_after, 3600))
        if error.public is not None:
            _log.warning("%s", error)
        said = str(error) if error.public is None else error.public
        return Refusal(error.status, shorten(said, 2000), retry_after=wait)
    return Refusal(500, "the server failed while it answered, see its log")


def failure_of(error: BaseException) -> Refusal:
    """Return a failure of an answer that was begun as a refusal: it is ours, not the caller's."""
    if isinstance(error, ValueError):
        return Refusal(500, shorten(str(error), 2000))
    return refusal_of(error)
