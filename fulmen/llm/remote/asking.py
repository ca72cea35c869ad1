"""A request as both dialects ask it: messages and tools read, and no option that would be
lost on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fulmen.chat import ChatRequest, Message, Tool, read_messages, read_tools
from fulmen.llm.remote.servers import Server
from fulmen.sampling import SamplingParams, shown

_NEED_WEIGHTS: Final = ("prefix_ids", "prefix_logprobs", "forced_ids", "budget")
"""Fields of a request that only a model on this machine can follow"""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, read."""

    messages: tuple[Message, ...]
    """Every call has an id, and every result that of its call"""
    tools: tuple[Tool, ...]
    params: SamplingParams
    given: frozenset[str]
    """Fields of params that are sent; the server decides about all others"""
    text: str | tuple[int, ...] | None = None
    """A text, or ids, to go on from in place of messages"""

    def value(self, name: str) -> Any:
        """Return a field of params that is sent; None for one that is not."""
        return getattr(self.params, name) if name in self.given else None


def read_request(request: ChatRequest, sends: frozenset[str] | None) -> Asked:
    """Read a request. Raises ValueError for what no server can be asked.

    sends  fields of its params that are sent; all if None
    """
    for name in _NEED_WEIGHTS:
        if getattr(request, name):
            raise ValueError(f"the request has {name}, a model at a URL takes none")
    params = request.params or SamplingParams()
    given = frozenset(SamplingParams.__dataclass_fields__) if sends is None else sends
    if request.params is None:
        given = frozenset()
    text = request.text
    if text is not None and not isinstance(text, str):
        text = tuple(text)
    messages = _with_call_ids(read_messages(request.messages))
    if text is None and not messages:
        found = "a prompt of ids alone" if request.prompt is not None else "no messages"
        raise ValueError(f"the request has {found}, a model at a URL needs messages or a text")
    asked = Asked(messages, read_tools(request.tools), params, given, text)
    for name in ("repetition_window", "prompt_logprobs"):
        refuse(asked, name, "a model at a URL has no such option")
    return asked


def refuse(asked: Asked, name: str, reason: str) -> None:
    """Raise ValueError, with the reason, if a field is sent that says anything."""
    value = asked.value(name)
    if value in (None, ()) or value is False or (name == "min_p" and value == 0):
        return
    raise ValueError(f"{name} is {shown(value)}, {reason}")


def refuse_max_calls(asked: Asked) -> None:
    """Raise ValueError for a number of calls that no dialect can say."""
    if asked.value("max_calls") != 1:
        refuse(asked, "max_calls", "a model at a URL can be held to 1 call or to none of a number")


def check_soft_end(asked: Asked) -> None:
    """Raise ValueError for a soft end of thought that no dialect can say."""
    default = SamplingParams().thinking_soft_end
    if asked.value("thinking_budget") and asked.value("thinking_soft_end") not in (None, default):
        refuse(asked, "thinking_soft_end", "a model at a URL has no such option")


def thinking_fields(asked: Asked, server: Server) -> dict[str, Any]:
    """Return the fields of OpenAI's dialect that limit thoughts, in the server's own words."""
    budget = asked.value("thinking_budget")
    check_soft_end(asked)
    if budget is None:
        return {}
    if server.thinking_budget:
        return dict.fromkeys(server.thinking_budget, budget)
    if budget == 0 and server.no_thinking is not None:
        return dict(server.no_thinking)
    raise ValueError(
        f"thinking_budget is {budget}, {server.name} has no such limit on thoughts; fulmen, vLLM "
        "and llama.cpp have one"
    )


def _with_call_ids(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return messages in which each call has an id and each result that of its call: a result
    without one belongs to the first call that has none yet."""
    done: list[Message] = []
    waiting: list[str] = []
    for place, message in enumerate(messages):
        if message.role == "assistant":
            calls = tuple(
                call if call.id else replace(call, id=f"call_{place}_{number}")
                for number, call in enumerate(message.tool_calls)
            )
            waiting = [call.id for call in calls if call.id is not None]
            message = replace(message, tool_calls=calls)
        elif message.role == "tool":
            id = message.tool_call_id or (waiting[0] if waiting else f"call_{place}")
            if id in waiting:
                waiting.remove(id)
            message = replace(message, tool_call_id=id)
        done.append(message)
    return tuple(done)
