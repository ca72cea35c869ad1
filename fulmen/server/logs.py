"""The log: one line for each request, without a word of what was asked or answered.

A line is `key=value` text, or a JSON object. Whatever a client sends, it stays one line. Content
is in it only where the server was told to log it.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from fulmen.files import shorten
from fulmen.server.config import ServerConfig

LOGGER: Final = "fulmen.server.requests"
"""Name of the logger that lines go to"""
_QUIET_PATHS: Final = ("/health", "/ready", "/metrics")
"""Paths that are asked every few seconds; their lines are of level DEBUG"""
_MAX_VALUE: Final = 200
_MAX_CONTENT: Final = 1000
"""Most characters of a question and of an answer"""
_BARE: Final = re.compile(r"[A-Za-z0-9_./:@+,{}-]+")
"""Values that need no quotes"""


class RequestLog:
    """Writes a line about each request."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._logger = logging.getLogger(LOGGER)

    def write(
        self,
        *,
        request_id: str,
        method: str,
        path: str,
        status: int,
        seconds: float,
        key: str | None = None,
        answers: Any = None,
        is_gone: bool = False,
    ) -> None:
        """Write the line of a request.

        path     template of the route
        key      name of the client's API key
        answers  the request's `Answers`, if it came to any
        is_gone  the client went away before the end
        """
        level = logging.DEBUG if path in _QUIET_PATHS and status < 400 else logging.INFO
        if not self._logger.isEnabledFor(level):
            return
        values = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "request_id": request_id,
            "method": method,
            "path": path,
            "status": status,
            "ms": round(seconds * 1000, 1),
            "key": key,
            "gone": is_gone or None,
            **({} if answers is None else self._of_answers(answers)),
        }
        self._logger.log(level, "%s", self._line(values))

    def _of_answers(self, answers: Any) -> Mapping[str, Any]:
        """Return what a line tells of answers."""
        done = [completion for completion in answers.completions if completion is not None]
        usages = [completion.usage for completion in done]
        first = answers.first_token_seconds
        values = {
            "model": answers.ask.model,
            "prompt_tokens": answers.num_prompt_tokens,
            # The answers to one request share its prompt: the first one says what was cached.
            "cached_tokens": usages[0].num_cached_tokens if usages else None,
            "new_tokens": answers.num_new_tokens,
            "thinking_tokens": sum(usage.num_thinking_tokens for usage in usages),
            "finish_reason": ",".join(completion.finish_reason for completion in done) or None,
            "turns": _counts(turn.state for turn in answers.report.turns) or None,
            "missed_tokens": answers.report.num_missed_tokens or None,
            "repairs": len(answers.report.repairs) or None,
            "ttft_ms": None if first is None else round(first * 1000, 1),
        }
        if self._config.log_content:
            messages, texts = answers.ask.messages, answers.ask.texts
            asked = messages[-1].get("content") if messages else texts[0] if texts else None
            values["question"] = _content(asked)
            values["answer"] = _content("\n".join(each.reply.content for each in done))
        return values

    def _line(self, values: Mapping[str, Any]) -> str:
        """Return one line; what is not known is left out."""
        known = {
            key: shorten(value, _MAX_VALUE) if key not in ("question", "answer") else value
            for key, value in values.items()
            if value is not None
        }
        if self._config.log_format == "json":
            return json.dumps(
                {
                    key: values[key] if isinstance(values[key], bool | int | float) else value
                    for key, value in known.items()
                }
            )
        return " ".join(f"{key}={_quoted(str(value))}" for key, value in known.items())


def _counts(states: Iterable[str]) -> str:
    """Return how often each word comes, such as `matched:3,restored:1`."""
    return ",".join(f"{state}:{count}" for state, count in sorted(Counter(states).items()))


def _quoted(value: str) -> str:
    """Return a value that is one word; anything else is written as JSON, which has no newline."""
    return value if _BARE.fullmatch(value) else json.dumps(value)


def _content(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return shorten(text, _MAX_CONTENT)


def log_to(stream: Any, config: ServerConfig) -> None:
    """Send the lines of requests to a stream as they are, and no further; and news of the server
    to the handlers of the program."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger(LOGGER)
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logging.getLogger("fulmen.server").setLevel(logging.INFO)
