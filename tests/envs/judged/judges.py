"""Judges that are scripts: fair ones, and some with the faults of real ones."""

import re
from collections.abc import Callable
from itertools import repeat

from fulmen.chat import ChatRequest, Message, get_format
from fulmen.envs import Judge
from fulmen.llm import ScriptedModel

M2 = get_format("minimax_m2")


def texts(request: ChatRequest) -> list[str]:
    """Return the texts that a judge was shown as data."""
    asked = request.messages[1]
    assert isinstance(asked, Message)
    found = re.findall(r"^\[(text \w+)\]\n(.*?)\n\[/\1\]$", asked.content, re.MULTILINE | re.DOTALL)
    return [text for _, text in found]


def judging(says: Callable[[ChatRequest], str]) -> tuple[Judge, ScriptedModel]:
    """Return a judge that says this, and its model."""
    model = ScriptedModel(M2, repeat(lambda request: f"Hm.\n</think>\n\n{says(request)}"))
    return Judge(model), model


def fair(request: ChatRequest) -> str:
    """Grade 5 for what has the reference in it, and 1 for all else."""
    _, reference, answer = texts(request)
    return f"Let me see.\nGrade: {5 if reference in answer else 1}"


def by(value: Callable[[str], float]) -> Callable[[ChatRequest], str]:
    """Return a judge of pairs that follows a value of answers."""

    def says(request: ChatRequest) -> str:
        _, a, b = texts(request)
        better = "equal" if value(a) == value(b) else "A" if value(a) > value(b) else "B"
        return f"Better: {better}"

    return says
