"""no_call: tools are there, but what is said needs none of them, however near it comes.

A reply is held to marks in it: words that all such replies have.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from fulmen.agent import PROFILES
from fulmen.envs.basics.phrases import (
    FILLERS,
    GOODBYES_DE,
    GOODBYES_EN,
    GREETINGS_DE,
    GREETINGS_EN,
    THANKS_DE,
    THANKS_EN,
    UNKNOWN_DE,
    UNKNOWN_EN,
    WHO_DE,
    WHO_EN,
    Phrases,
)
from fulmen.envs.basics.scraps import make_scrap
from fulmen.envs.calls.asking import other_devices
from fulmen.envs.calls.case import Case, Device, said
from fulmen.envs.calls.names import Names
from fulmen.envs.calls.tables import (
    LANGUAGES,
    SUBJECTS,
    make_key,
    make_question,
    make_table,
    make_value,
)

_LONGEST: Final = 300
_FAR: Final = ("stock", "owner", "colour", "room", "phone number")
"""Subjects that no far question is about"""


@dataclass(frozen=True, slots=True)
class _Topic:
    """Talk about one topic: the thought, the reply by language and marks of it."""

    said: Mapping[str, Phrases]
    thought: str
    reply: Mapping[str, str]
    marks: Mapping[str, tuple[str, ...]]
    """Patterns that stand in every reply, in any case"""


_GREETING: Final = _Topic(
    {"en": GREETINGS_EN, "de": GREETINGS_DE},
    "This is a greeting. I need no tool.",
    {"en": "Hello! How can I help you?", "de": "Hallo! Wie kann ich dir helfen?"},
    {
        "en": (r"\A(?:hello|hi|good \w+)\b", r"\bhelp\b"),
        "de": (r"\A(?:hallo|hi|guten \w+)\b", r"\bhelfen\b"),
    },
)
_THANKS: Final = _Topic(
    {"en": THANKS_EN, "de": THANKS_DE},
    "Somebody thanks me. I need no tool.",
    {"en": "You are welcome!", "de": "Gern geschehen!"},
    {"en": (r"\byou(?: a|')re welcome\b",), "de": (r"\bgern(?:e)? geschehen\b",)},
)
_GOODBYE: Final = _Topic(
    {"en": GOODBYES_EN, "de": GOODBYES_DE},
    "Somebody leaves. I need no tool.",
    {"en": "Goodbye! Come back at any time.", "de": "Auf Wiedersehen! Komm gern wieder."},
    {
        "en": (r"\b(?:good)?bye\b", r"\bcome back\b"),
        "de": (r"\b(?:wiedersehen|tschüss)\b", r"\bkomm (?:gern )?wieder\b"),
    },
)
_WHO: Final = _Topic(
    {"en": WHO_EN, "de": WHO_DE},
    "This asks who I am. I need no tool.",
    {
        "en": "I am Fulmen's mini-m2, a small model with M2's architecture. I call tools and "
        "repair small programs.",
        "de": "Ich bin mini-m2 von Fulmen, ein kleines Modell mit der Architektur von M2. Ich rufe "
        "Werkzeuge auf und repariere kleine Programme.",
    },
    {
        "en": (r"\bmini-m2\b", r"\bsmall model\b", r"\btools\b"),
        "de": (r"\bmini-m2\b", r"\bkleines Modell\b", r"\bWerkzeuge\b"),
    },
)
_UNKNOWN: Final = _Topic(
    {"en": UNKNOWN_EN, "de": UNKNOWN_DE},
    "No tool that I have does that.",
    {"en": "I have no tool for that.", "de": "Dafür habe ich kein Werkzeug."},
    {"en": (r"\bno tool\b",), "de": (r"\bkein Werkzeug\b",)},
)
_TOPICS: Final = (_GREETING, _THANKS, _GOODBYE, _WHO)
_SHARES: Final = (25, 10, 10, 15)
_SCRAPS: Final = 0.45
"""Share of unknown requests that are random words"""
_OF_FILES: Final = re.compile("program|write|open|schreib|öffne|search|suche", re.IGNORECASE)
"""Words of requests that tools for files and commands might do"""
_TOOLS_ASKED: Final = {
    "en": Phrases(
        ("", "", "Hello! ", "Please tell me: ", "A question: ", "So, "),
        (
            *("which tools do you have", "what tools are there", "name your tools"),
            *("list your tools", "what are your tools called", "which tools can you use"),
        ),
        ("?", "", ", please?", " now?", " exactly?", "."),
    ),
    "de": Phrases(
        ("", "", "Hallo! ", "Sag mir bitte: ", "Eine Frage: ", "Also, "),
        (
            *("welche Werkzeuge hast du", "was für Werkzeuge gibt es", "nenne deine Werkzeuge"),
            *("wie heißen deine Werkzeuge", "welche Werkzeuge kannst du benutzen"),
        ),
        ("?", "", ", bitte?", " genau?", " jetzt?", "."),
    ),
}
_TOOLS_SAID: Final = {"en": "I have {names}.", "de": "Ich habe {names}."}
_KNOWN_ALREADY: Final = {
    "en": (
        "I know now that the {noun} of {key} is {value}. Thank you!",
        "The {noun} of {key} is {value}, I see. Thanks!",
        "So the {noun} of {key} is {value}. Thanks a lot!",
        "You said that the {noun} of {key} is {value}. Thank you for that.",
    ),
    "de": (
        "Jetzt weiß ich: {noun} von {key} ist {value}. Danke!",
        "Also: {noun} von {key} ist {value}. Vielen Dank!",
        "Aha, {noun} von {key} ist {value}. Danke schön!",
    ),
}
_FILLER: Final = re.compile(r"\{(\w+)\}")


def make_talk(draw: Random, names: Names, *, is_in_folder: bool) -> Case:
    """Return talk beside tools of its own, or beside those of a folder."""
    while True:
        language = draw.choice(LANGUAGES)
        if is_in_folder:
            case = _beside_files(draw, language)
        else:
            makers = (_near, _tools_asked, _known_already, _far)
            case = draw.choices(makers, (25, 10, 10, 55))[0](draw, names, language)
        if not case.is_told(case.question):
            return case


def _near(draw: Random, names: Names, language: str) -> Case:
    """Return a question about a key that a tool knows, and something that none tells."""
    asked = draw.choice(SUBJECTS)
    near = [one for one in SUBJECTS if one.key == asked.key and one is not asked]
    key = make_key(draw, asked.key, language)
    table = make_table(draw, names, draw.choice(near), language, keys=[key])
    question = make_question(draw, asked, language, key)
    return _case(question, [table.device], _UNKNOWN, language)


def _known_already(draw: Random, names: Names, language: str) -> Case:
    """Return thanks of somebody who names what a tool would tell."""
    subject = draw.choice(SUBJECTS)
    key, value = make_key(draw, subject.key, language), make_value(draw, subject.value)
    table = make_table(draw, names, subject, language, keys=[key])
    words = draw.choice(_KNOWN_ALREADY[language])
    question = words.format(noun=subject.nouns[language], key=key, value=value)
    return _case(question, [table.device], _THANKS, language)


def _tools_asked(draw: Random, names: Names, language: str) -> Case:
    """Return the question which tools there are."""
    devices = other_devices(draw, names, draw.randint(1, 3), without=[])
    return _named(draw, [one.tool.name for one in devices], devices, language)


def _named(draw: Random, called: Sequence[str], devices: Sequence[Device], language: str) -> Case:
    """Return the question which tools there are, and their names."""
    words = _TOOLS_SAID[language].format(names=", ".join(called))
    marks = [rf"(?<!\w){re.escape(name)}(?!\w)" for name in called]
    return Case(
        question=_said(draw, _TOOLS_ASKED[language]),
        devices=tuple(devices),
        play=(said("This asks for the names of my tools. I need no call.", words),),
        is_told=_marked(marks),
    )


def _far(draw: Random, names: Names, language: str) -> Case:
    """Return talk that has nothing to do with the tools."""
    topic = draw.choices((_UNKNOWN, *_TOPICS), (40, *_SHARES))[0]
    without = [one.name for one in SUBJECTS if one.name not in _FAR]
    devices = other_devices(draw, names, draw.randint(1, 2), without=[*without, "sum"])
    return _case(_talk_about(draw, topic, language), devices, topic, language)


def _talk_about(draw: Random, topic: _Topic, language: str) -> str:
    if topic is _UNKNOWN and draw.random() < _SCRAPS:
        return make_scrap(draw, language)
    return _said(draw, topic.said[language])


def _beside_files(draw: Random, language: str) -> Case:
    """Return talk that has nothing to do with files."""
    if draw.random() < 0.2:
        return _named(draw, [tool.name for tool in PROFILES["minimal"]], (), language)
    topic = draw.choices((_UNKNOWN, *_TOPICS), (40, *_SHARES))[0]
    while _OF_FILES.search(question := _talk_about(draw, topic, language)):
        continue
    return _case(question, (), topic, language)


def _case(question: str, devices: Sequence[Device], topic: _Topic, language: str) -> Case:
    return Case(
        question=question,
        devices=tuple(devices),
        play=(said(topic.thought, topic.reply[language]),),
        is_told=lambda reply: _topics_of(reply) == [(topic, language)],
    )


def _topics_of(reply: str) -> list[tuple[_Topic, str]]:
    """Return what a reply is about, and in which language; a right one is about one topic."""
    return [
        (topic, language)
        for topic in (*_TOPICS, _UNKNOWN)
        for language in topic.reply
        if _marked(topic.marks[language])(reply)
    ]


def _marked(marks: Sequence[str]) -> Callable[[str], bool]:
    """Return the verifier of replies with all marks."""
    return lambda reply: (
        len(reply) <= _LONGEST and all(re.search(mark, reply, re.IGNORECASE) for mark in marks)
    )


def _said(draw: Random, phrases: Phrases) -> str:
    """Return a drawn sentence, its fillers drawn too."""
    words = (
        f"{draw.choice(phrases.before)}{draw.choice(phrases.middle)}{draw.choice(phrases.after)}"
    )
    fillers = {name: draw.choice(some) for name, some in FILLERS.items()}
    fillers |= {"n": str(draw.randint(2, 9999)), "m": str(draw.randint(2, 99))}
    text = _FILLER.sub(lambda found: fillers[found[1]], words).replace("mini-m1", "mini-m2")
    return text[0].upper() + text[1:]
