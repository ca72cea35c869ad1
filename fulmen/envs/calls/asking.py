"""calculate, look_up, choose, two_steps and error: questions that need one call or two."""

import re
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

from fulmen.envs.calls.case import CallKind, Case, Device, called, chosen, mixed, said
from fulmen.envs.calls.names import Names
from fulmen.envs.calls.sums import (
    OPERATIONS,
    Computer,
    Operation,
    make_numbers,
    number_computer,
    shown,
    text_computer,
    value_of,
)
from fulmen.envs.calls.tables import (
    LANGUAGES,
    SUBJECTS,
    Table,
    make_key,
    make_question,
    make_reply,
    make_table,
)
from fulmen.envs.tools.values import has_value

_LONGEST: Final = 200
"""Characters of an answer; no right one comes near"""
_WHOLE: Final = re.compile(r"[0-9]{1,18}")
_RESULT: Final = {
    "en": ("The result is {value}.", "It is {value}.", "{a} {sign} {b} = {value}"),
    "de": ("Das Ergebnis ist {value}.", "Es ist {value}.", "{a} {sign} {b} = {value}"),
}
_BY_NAME: Final = {subject.name: subject for subject in SUBJECTS}
_CHAINS: Final = (
    *(("owner", "room"), ("owner", "phone number"), ("owner", "age"), ("capital", "mayor")),
    *(("capital", "platform"), ("mayor", "room"), ("mayor", "phone number"), ("mayor", "age")),
)
"""Subjects whose values are keys of another one"""
_WHOSE: Final = {
    "owner": {"en": "the owner of {key}", "de": "dem Besitzer von {key}"},
    "capital": {"en": "the capital of {key}", "de": "der Hauptstadt von {key}"},
    "mayor": {"en": "the mayor of {key}", "de": "dem Bürgermeister von {key}"},
}
_CHAINED: Final = {
    "en": ("What is the {noun} of {whose}?", "Tell me the {noun} of {whose}.", "{noun} of {whose}"),
    "de": ("Was ist {noun} von {whose}?", "Sag mir: Was ist {noun} von {whose}?"),
}
_BOUGHT: Final = {
    "en": (
        *("What do {n} of {key} cost?", "How much are {n} pieces of {key}?"),
        *("I buy {n} times {key}. How much is that?", "Price of {n} {key} in all?"),
    ),
    "de": (
        *("Was kosten {n} Stück {key}?", "Wie viel kosten {n} mal {key}?"),
        *("Ich kaufe {n} Stück {key}. Was kostet das?",),
    ),
}


def told(value: str) -> Callable[[str], bool]:
    """Return the verifier of answers that have to tell a value."""
    spellings = [value, f"{int(value):,}"] if _WHOLE.fullmatch(value) else [value]
    return lambda reply: len(reply) <= _LONGEST and any(has_value(reply, one) for one in spellings)


def _calculate(draw: Random, names: Names) -> Case:
    operation = draw.choice(OPERATIONS)
    computer = _computer(draw, names, operation)
    return _sum_case(draw, operation, computer, (computer.device,))


def _sum_case(
    draw: Random, operation: Operation, computer: Computer, devices: Sequence[Device]
) -> Case:
    language = draw.choice(LANGUAGES)
    a, b = make_numbers(draw, operation.sign)
    value = shown(value_of(a, operation.sign, b))
    words = draw.choice(_RESULT[language]).format(a=a, b=b, sign=operation.sign, value=value)
    made = computer.values(a, operation.sign, b)
    thought = f"I need {a}{operation.sign}{b}. {computer.thought(a, b)}"
    return Case(
        question=draw.choice(operation.asked[language]).format(a=a, b=b),
        devices=mixed(draw, devices),
        play=(
            called(thought, computer.device, *made),
            said(f"The result is {value}.", words),
        ),
        is_told=told(value),
    )


def _computer(draw: Random, names: Names, operation: Operation) -> Computer:
    if draw.random() < 0.5:
        return text_computer(draw, names)
    return number_computer(draw, names, operation)


def _look_up(draw: Random, names: Names) -> Case:
    language, subject = draw.choice(LANGUAGES), draw.choice(SUBJECTS)
    key = make_key(draw, subject.key, language)
    table = make_table(draw, names, subject, language, keys=[key])
    return _table_case(draw, table, language, key, (table.device,))


def _table_case(
    draw: Random, table: Table, language: str, key: str, devices: Sequence[Device]
) -> Case:
    subject, value = table.subject, table.rows[key]
    return Case(
        question=make_question(draw, subject, language, key),
        devices=mixed(draw, devices),
        play=(
            called(table.thought(key), table.device, key),
            said(
                f"The {subject.name} is {value}.", make_reply(draw, subject, language, key, value)
            ),
        ),
        is_told=told(value),
    )


def other_devices(
    draw: Random, names: Names, count: int, *, without: Sequence[str]
) -> list[Device]:
    """Return devices of subjects and operations other than these."""
    subjects = [one for one in SUBJECTS if one.name not in without]
    found = [make_table(draw, names, one, "en").device for one in draw.sample(subjects, count)]
    if "sum" not in without and draw.random() < 0.4:
        found[-1] = _computer(draw, names, draw.choice(OPERATIONS)).device
    return found


def _choose(draw: Random, names: Names) -> Case:
    num_others = draw.randint(1, 2)
    if draw.random() < 0.3:
        operation = draw.choice(OPERATIONS)
        computer = _computer(draw, names, operation)
        others = other_devices(draw, names, num_others, without=["sum"])
        return _sum_case(draw, operation, computer, [computer.device, *others])
    language, subject = draw.choice(LANGUAGES), draw.choice(SUBJECTS)
    key = make_key(draw, subject.key, language)
    table = make_table(draw, names, subject, language, keys=[key])
    others = other_devices(draw, names, num_others, without=[subject.name])
    return _table_case(draw, table, language, key, [table.device, *others])


def _two_steps(draw: Random, names: Names) -> Case:
    language = draw.choice(LANGUAGES)
    return draw.choice((_chained, _bought))(draw, names, language)


def _chained(draw: Random, names: Names, language: str) -> Case:
    """Return a case in which the value of one table is the key of another."""
    first, second = (_BY_NAME[name] for name in draw.choice(_CHAINS))
    key = make_key(draw, first.key, language)
    table = make_table(draw, names, first, language, keys=[key])
    middle = table.rows[key]
    other = make_table(draw, names, second, language, keys=[middle])
    value = other.rows[middle]
    noun, whose = second.nouns[language], _WHOSE[first.name][language].format(key=key)
    question = draw.choice(_CHAINED[language]).format(noun=noun, whose=whose)
    return Case(
        question=question[0].upper() + question[1:],
        devices=mixed(draw, [table.device, other.device]),
        play=(
            called(f"First the {first.name} of {key}. {chosen(table.device)}", table.device, key),
            called(
                f"Now the {second.name} of {middle}. {chosen(other.device)}", other.device, middle
            ),
            said(
                f"The {second.name} is {value}.", make_reply(draw, second, language, middle, value)
            ),
        ),
        is_told=told(value),
    )


def _bought(draw: Random, names: Names, language: str) -> Case:
    """Return a case in which a price is looked up and multiplied."""
    subject, operation = _BY_NAME["price"], OPERATIONS[2]
    key, count = make_key(draw, "thing", language), draw.randint(2, 99)
    table = make_table(draw, names, subject, language, keys=[key])
    computer = _computer(draw, names, operation)
    price = table.rows[key]
    value = shown(value_of(count, "*", int(price)))
    made = computer.values(count, "*", int(price))
    words = draw.choice(_RESULT[language]).format(a=count, b=price, sign="*", value=value)
    return Case(
        question=draw.choice(_BOUGHT[language]).format(n=count, key=key),
        devices=mixed(draw, [table.device, computer.device]),
        play=(
            called(f"First the price of {key}. {chosen(table.device)}", table.device, key),
            called(
                f"The price is {price}. Now {count}*{price}. {computer.thought(count, int(price))}",
                computer.device,
                *made,
            ),
            said(f"The result is {value}.", words),
        ),
        is_told=told(value),
    )


KINDS: Final = (
    CallKind("calculate", _calculate),
    CallKind("look_up", _look_up),
    CallKind("choose", _choose),
    CallKind("two_steps", _two_steps),
)
