"""Servers that speak a dialect, and what each takes beyond it.

    GET /v1/models -> owned_by ->  Server: names of the fields that it reads

A field that a server does not know is ignored by most of them, so an option that would change the
answer is sent only where its name is known, and refused elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """One kind of server."""

    name: str
    """As a sentence may call it"""
    has_extensions: bool = True
    """It takes top_k, min_p, stop_token_ids and ignore_eos, and thoughts of earlier answers"""
    thinking_budget: tuple[str, ...] = ()
    """Fields that each hold the most tokens of thought; none where no number can be said"""
    no_thinking: Mapping[str, Any] | None = None
    """Fields that turn thinking off, where thinking_budget does not"""
    constraints: str | None = None
    """Field of an object with a regex or a choice; "" puts a regex in the body itself"""
    has_token_ids: bool = False
    """It takes return_token_ids in a stream, and return_tokens_as_token_ids"""
    has_details: bool = False
    """It gives thoughts apart only if it is asked, and reads them as reasoning_details"""


_NO_THINKING: Final = {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}
OTHER: Final = Server(name="a server of unknown make")
OPENAI: Final = Server(
    name="OpenAI", has_extensions=False, no_thinking={"reasoning_effort": "none"}
)
MINIMAX: Final = Server(name="MiniMax", has_details=True)
_BY_OWNER: Final = {
    "fulmen": Server(
        name="fulmen",
        thinking_budget=("thinking_token_budget",),
        constraints="structured_outputs",
        has_token_ids=True,
    ),
    "vllm": Server(
        name="vLLM",
        thinking_budget=("thinking_token_budget",),
        constraints="structured_outputs",
        has_token_ids=True,
    ),
    "sglang": Server(name="SGLang", no_thinking=_NO_THINKING, constraints=""),
    # Its versions differ in the name of the budget; each ignores the other's.
    "llamacpp": Server(
        name="llama.cpp", thinking_budget=("reasoning_budget_tokens", "thinking_budget_tokens")
    ),
    "openai": OPENAI,
    "system": OPENAI,
    "minimax": MINIMAX,
}


def find_server(host: str, owner: object) -> Server:
    """Return the kind of a server, by its host or by what it lists as the owner of its model."""
    if host == "api.openai.com" or host.endswith(".openai.azure.com"):
        return OPENAI
    if host in ("api.minimax.io", "api.minimaxi.com"):
        return MINIMAX
    return _BY_OWNER.get(owner.lower() if isinstance(owner, str) else "", OTHER)
