"""who, hello and unknown: who the model is, greetings, and what the model has not learnt.

A reply is about one topic in one language, which marks in it tell: words that all such replies
have. A reply with the marks of two topics is about none.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

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
from fulmen.envs.basics.question import BasicKind, Question
from fulmen.envs.basics.scraps import make_scrap

ABILITIES_EN: Final = (
    "add, subtract, multiply, copy, spell, reverse, sort, compare, find the largest number, and "
    "solve short stories, countdowns, True or False, brackets and small sudokus"
)
ABILITIES_DE: Final = (
    "addieren, subtrahieren, multiplizieren, abschreiben, buchstabieren, umdrehen, sortieren, "
    "vergleichen, die größte Zahl finden, und kurze Textaufgaben, Countdown, True oder False, "
    "Klammern und kleine Sudokus"
)
_ABLE: Final = {
    "en": r"add|subtract|multiply|copy|spell|reverse|sort|compare|brackets|sudokus",
    "de": r"addieren|subtrahieren|multiplizieren|abschreiben|buchstabieren|umdrehen|sortieren"
    r"|vergleichen|Klammern|Sudokus",
}
"""Words of which a reply that says what the model can do has three"""
_FEWEST_ABLE: Final = 3
_LONGEST: Final = 600
_SCRAPS: Final = 0.45
"""Share of unknown requests that are random words"""


@dataclass(frozen=True, slots=True)
class Topic:
    """Talk about one topic in one language: what people say, and the reply."""

    name: str
    language: str
    said: Phrases
    thought: str
    reply: str
    marks: tuple[str, ...]
    """Patterns that stand in every reply about the topic, in any case"""
    names_abilities: bool = False
    """True if a reply also says what the model can do"""

    @property
    def key(self) -> str:
        """Name and language."""
        return f"{self.name} {self.language}"

    def is_of(self, reply: str) -> bool:
        """Return True for a reply with all marks."""
        able = {word.lower() for word in _words_of(_ABLE[self.language], reply)}
        is_able = not self.names_abilities or len(able) >= _FEWEST_ABLE
        return is_able and all(re.search(mark, reply, re.IGNORECASE) for mark in self.marks)


_WHO: Final = (
    Topic(
        "who",
        "en",
        WHO_EN,
        "This asks who I am and what I can do.",
        f"I am Fulmen's mini-m1, a small model with M1's architecture. I can {ABILITIES_EN}.",
        (r"\bmini-m1\b", r"\bsmall model\b", r"\bM1's architecture\b|\barchitecture of M1\b"),
        names_abilities=True,
    ),
    Topic(
        "who",
        "de",
        WHO_DE,
        "Das fragt, wer ich bin und was ich kann.",
        "Ich bin mini-m1 von Fulmen, ein kleines Modell mit der Architektur von M1. Ich kann "
        f"{ABILITIES_DE}.",
        (r"\bmini-m1\b", r"\bkleines Modell\b", r"\bArchitektur von M1\b"),
        names_abilities=True,
    ),
)
_HELLO: Final = (
    Topic(
        "greeting",
        "en",
        GREETINGS_EN,
        "This is a greeting.",
        "Hello! I am mini-m1. Ask me to add, sort or spell something.",
        (r"\A(?:hello|hi|good (?:morning|evening|afternoon|day))\b", r"\bI am mini-m1\b"),
    ),
    Topic(
        "greeting",
        "de",
        GREETINGS_DE,
        "Das ist ein Gruß.",
        "Hallo! Ich bin mini-m1. Lass mich addieren, sortieren oder buchstabieren.",
        (r"\A(?:hallo|hi|guten (?:morgen|abend|tag))\b", r"\bich bin mini-m1\b"),
    ),
    Topic(
        "thanks",
        "en",
        THANKS_EN,
        "Somebody thanks me.",
        "You are welcome! Ask me again at any time.",
        (r"\byou are welcome\b|\byou're welcome\b",),
    ),
    Topic(
        "thanks",
        "de",
        THANKS_DE,
        "Jemand dankt mir.",
        "Gern geschehen! Frag mich jederzeit wieder.",
        (r"\bgern(?:e)? geschehen\b",),
    ),
    Topic(
        "goodbye",
        "en",
        GOODBYES_EN,
        "This is a goodbye.",
        "Goodbye! Come back soon.",
        (r"\A(?:goodbye|bye|good night|see you)\b", r"\bcome back\b"),
    ),
    Topic(
        "goodbye",
        "de",
        GOODBYES_DE,
        "Das ist ein Abschied.",
        "Auf Wiedersehen! Komm bald wieder.",
        (r"\A(?:auf wiedersehen|tschüss|gute nacht|bis bald)\b", r"\bkomm bald wieder\b"),
    ),
)
_UNKNOWN: Final = (
    Topic(
        "unknown",
        "en",
        UNKNOWN_EN,
        "I have not learnt this.",
        f"I only know a few things: I can {ABILITIES_EN}.",
        (r"\bI only know\b|\bI can only\b",),
        names_abilities=True,
    ),
    Topic(
        "unknown",
        "de",
        UNKNOWN_DE,
        "Das habe ich nicht gelernt.",
        f"Ich kann nur wenig: {ABILITIES_DE}.",
        (r"\bich kann nur\b|\bich kenne nur\b",),
        names_abilities=True,
    ),
)
_TOPICS: Final = (*_WHO, *_HELLO, *_UNKNOWN)


def topic_of(reply: str) -> str | None:
    """Return topic and language of a reply; None if it is about none, or about several."""
    if len(reply) > _LONGEST:
        return None
    found = [topic.key for topic in _TOPICS if topic.is_of(reply.strip())]
    return found[0] if len(found) == 1 else None


def _asked(draw: Random, topics: tuple[Topic, ...]) -> Question:
    topic = draw.choice(topics)
    parts = (topic.said.before, topic.said.middle, topic.said.after)
    before, middle, after = map(draw.choice, parts)
    if draw.random() < 0.8 and (not before or before.rstrip().endswith(("!", ":"))):
        middle = middle[0].upper() + middle[1:]
    text = before + _filled(draw, middle) + after
    text = text.lower() if draw.random() < 0.1 else text
    return Question(text, topic.thought, topic.reply, topic_of, asked=text.casefold())


def _filled(draw: Random, text: str) -> str:
    """Return a text with words in the places of names in braces."""
    if "{" not in text:
        return text
    words: Mapping[str, object] = {
        name: draw.choice(words) for name, words in FILLERS.items() if f"{{{name}}}" in text
    }
    return text.format(**words, n=draw.randint(10, 2000), m=draw.randint(2, 20))


def _words_of(pattern: str, text: str) -> list[str]:
    return re.findall(rf"\b(?:{pattern})\b", text, re.IGNORECASE)


def _who(draw: Random) -> Question:
    return _asked(draw, _WHO)


def _hello(draw: Random) -> Question:
    return _asked(draw, _HELLO)


def _unknown(draw: Random) -> Question:
    if draw.random() >= _SCRAPS:
        return _asked(draw, _UNKNOWN)
    topic = draw.choice(_UNKNOWN)
    text = make_scrap(draw, topic.language)
    return Question(text, topic.thought, topic.reply, topic_of, asked=text.casefold())


TALK: Final = (
    BasicKind("who", _who, chance=0.6),
    BasicKind("hello", _hello, chance=0.25),
    BasicKind("unknown", _unknown, chance=0.6),
)
