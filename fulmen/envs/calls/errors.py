"""error: a tool that does not know what the user says, and tells how it has to be said."""

from collections.abc import Callable
from random import Random
from typing import Final

from fulmen.envs.calls.asking import told
from fulmen.envs.calls.case import Arguments, CallKind, Case, called, device, said
from fulmen.envs.calls.names import Names
from fulmen.envs.calls.tables import (
    LANGUAGES,
    SUBJECTS,
    make_key,
    make_question,
    make_reply,
    make_table,
)

_NOT_KNOWN: Final = (
    "unknown: {wrong}. Did you mean {right}?",
    "no entry {wrong}, try {right}",
    "{wrong} is not known, use {right}",
    "{wrong} must be written as {right}",
)


def _error(draw: Random, names: Names) -> Case:
    language, subject = draw.choice(LANGUAGES), draw.choice(SUBJECTS)
    key = make_key(draw, subject.key, language)
    table = make_table(draw, names, subject, language, keys=[key], key_form=_form(draw))
    right, value = next(iter(table.rows.items()))
    wrong = _misspelled(draw, key) if right == key else key
    sentence = draw.choice(_NOT_KNOWN).format(wrong=wrong, right=right)
    tool = table.device.tool

    def work(arguments: Arguments) -> str:
        if wrong in arguments.values():
            raise ValueError(sentence)
        return table.device.work(arguments)

    (parameter,) = tool.parameters["properties"]
    strict = device(tool.name, tool.description, work, {parameter: "string"})
    return Case(
        question=make_question(draw, subject, language, wrong),
        devices=(strict,),
        play=(
            called(table.thought(wrong), strict, wrong),
            called(f"The tool wants {right}, not {wrong}.", strict, right),
            said(
                f"The {subject.name} is {value}.", make_reply(draw, subject, language, right, value)
            ),
        ),
        is_told=told(value),
    )


def _form(draw: Random) -> Callable[[str], str]:
    """Return the form in which a table has its keys; every other one has them as they are said."""
    number, letter = draw.randint(1, 99), draw.choice("ABCDEF")
    forms: tuple[Callable[[str], str], ...] = (
        str.upper,
        lambda key: f"{key}-{number}",
        lambda key: f"{letter}:{key}",
    )
    return str if draw.random() < 0.5 else draw.choice(forms)


def _misspelled(draw: Random, word: str) -> str:
    """Return a word with two letters in the wrong order, a letter left out, or one twice."""
    while True:
        at = draw.randrange(len(word) - 1)
        wrong = draw.choice(
            (
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[: at + 1] + word[at + 2 :],
                word[: at + 1] + word[at:],
            )
        )
        if wrong != word:
            return wrong


KINDS: Final = (CallKind("error", _error),)
