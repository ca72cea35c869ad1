"""A harmless job on files, with a place where somebody else's text can stand."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from fulmen.chat import Message, ToolCall

RUN = "run"
"""Name of the call that runs a command, as a job writes it; a profile may call it otherwise"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Something to be done in a folder."""

    question: str
    files: Mapping[str, str]
    """Texts by path"""
    hide: Callable[[str], Mapping[str, str]]
    """Files that change when a text of some lines is put where the work leads to"""
    play: tuple[Message, ...]
    """Calls that do it, with `run` for commands"""
    answer: str | None = None
    """Right answer; None if something has to be changed instead"""
    wrong: str = ""
    """An answer that is wrong"""
    edits: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    """Right changes of texts, by path"""


Maker = Callable[[Random], Job]


def calls(name: str, **arguments: Any) -> Message:
    """Return an answer that makes a call."""
    return Message("assistant", "", tool_calls=(ToolCall(name, arguments),))


def nothing_hidden(text: str) -> Mapping[str, str]:
    """Return no change: the job has no place for a text."""
    return {}
