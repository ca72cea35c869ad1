"""Wishes about thinking, in every dialect's words, read into two answers: how much, and how it is
shown.

    none  minimal  low  medium  high ...         effort, in OpenAI's and Anthropic's words
    {"type": "enabled", "budget_tokens": 4000}   Anthropic's and MiniMax's thinking
    thinking_token_budget, reasoning_budget ...  other engines' names of a budget

Where a request says it twice, a number of tokens beats a word, and off beats both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from fulmen.sampling import shown
from fulmen.server.errors import Refusal

Show = Literal["apart", "inline", "hidden"]
"""apart: in a field or block of its own; inline: in the content, in tags; hidden: not at all"""

EFFORT_BUDGETS: Final[dict[str, int | None]] = {
    "none": 0,
    "minimal": 512,
    "low": 2048,
    "medium": 8192,
    "high": None,
    "xhigh": None,
    "max": None,
}
"""Most tokens of thought for each word; None: no limit"""
_NO_LIMIT: Final = -1
"""llama.cpp's word for no budget"""


@dataclass(frozen=True, slots=True)
class Thinking:
    """A request's wishes about the thought."""

    budget: int | Literal["default"] | None = "default"
    """Most tokens of thought; None: no limit; default: the server's own"""
    is_number: bool = False
    """The budget is a number of tokens that the request gave, or no limit by number"""
    show: Show = "apart"
    has_reasoning: bool = False
    """Show it as `reasoning` too"""
    has_details: bool = False
    """Show it as `reasoning_details` too"""


def read_chat_thinking(body: Mapping[str, Any]) -> Thinking:
    """Read the fields of a Chat Completions request that are about thinking."""
    reasoning = _object(body, "reasoning")
    template = _object(body, "chat_template_kwargs")
    thinking = _object(body, "thinking")
    budgets: list[int | None] = []
    for name, value in (
        ("reasoning_effort", body.get("reasoning_effort")),
        ("reasoning.effort", reasoning.get("effort")),
    ):
        if value is not None:
            budgets.append(_effort(name, value))
    counts = [
        _tokens(name, value)
        for name, value in (
            ("reasoning.max_tokens", reasoning.get("max_tokens")),
            ("thinking_token_budget", body.get("thinking_token_budget")),
            ("thinking_budget", body.get("thinking_budget")),
            ("reasoning_budget", body.get("reasoning_budget")),
            ("chat_template_kwargs.thinking_budget", template.get("thinking_budget")),
            ("thinking.budget_tokens", thinking.get("budget_tokens")),
        )
        if value is not None
    ]
    switches = [
        _switch(name, value)
        for name, value in (
            ("reasoning.enabled", reasoning.get("enabled")),
            ("chat_template_kwargs.enable_thinking", template.get("enable_thinking")),
            ("chat_template_kwargs.thinking", template.get("thinking")),
        )
        if value is not None
    ]
    kind = thinking.get("type")
    if kind is not None:
        switches.append(_kind(kind) != "disabled")
    budget: int | Literal["default"] | None = "default"
    if False in switches:
        budget = 0
    elif counts:
        budget = counts[-1]
    elif budgets:
        budget = budgets[-1]
    return Thinking(
        budget,
        is_number=budget == 0 or bool(counts),
        show=_chat_show(body, reasoning),
        has_reasoning=bool(reasoning) or body.get("include_reasoning") is True,
        has_details=body.get("reasoning_split") is True or bool(reasoning),
    )


def read_messages_thinking(body: Mapping[str, Any]) -> Thinking:
    """Read `thinking` and `output_config.effort` of an Anthropic request."""
    thinking = _object(body, "thinking")
    effort = _object(body, "output_config").get("effort")
    budget: int | Literal["default"] | None = "default"
    if effort is not None:
        budget = _effort("output_config.effort", effort)
    kind, is_number = thinking.get("type"), False
    if kind is not None:
        kind = _kind(kind)
    if kind == "disabled":
        budget, is_number = 0, True
    elif kind == "enabled":
        tokens = thinking.get("budget_tokens")
        if tokens is not None:
            budget = _tokens("thinking.budget_tokens", tokens)
            is_number = True
    display = thinking.get("display")
    if display not in (None, "summarized", "omitted", "updates", "full"):
        raise Refusal(
            400, f"thinking.display is {shown(display)}, it must be summarized or omitted"
        )
    show: Show = "hidden" if display == "omitted" else "apart"
    return Thinking(budget, is_number=is_number, show=show)


def _chat_show(body: Mapping[str, Any], reasoning: Mapping[str, Any]) -> Show:
    if reasoning.get("exclude") is True or body.get("include_reasoning") is False:
        return "hidden"
    is_inline = (
        body.get("separate_reasoning") is False
        or body.get("reasoning_split") is False
        or body.get("reasoning_format") == "none"
    )
    return "inline" if is_inline else "apart"


def _object(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise Refusal(400, f"{name} is {shown(value)}, it must be an object", param=name)
    return value


def _effort(name: str, value: object) -> int | None:
    if not isinstance(value, str) or value not in EFFORT_BUDGETS:
        words = ", ".join(EFFORT_BUDGETS)
        raise Refusal(400, f"{name} is {shown(value)}, it must be one of {words}", param=name)
    return EFFORT_BUDGETS[value]


def _tokens(name: str, value: object) -> int | None:
    if not isinstance(value, int) or isinstance(value, bool) or value < _NO_LIMIT:
        raise Refusal(400, f"{name} is {shown(value)}, it must be a number of tokens", param=name)
    return None if value == _NO_LIMIT else value


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise Refusal(400, f"{name} is {shown(value)}, it must be true or false", param=name)
    return value


def _kind(kind: object) -> str:
    if kind not in ("enabled", "adaptive", "disabled", "between_tools", "auto"):
        raise Refusal(
            400,
            f"thinking.type is {shown(kind)}, it must be enabled, adaptive or disabled",
            param="thinking",
        )
    return str(kind)
