"""Tables that tools look things up in: a thing's price, a person's room, the capital of a country
that there is not.

    Subject  words that people ask with, keys and values to draw    Table  a subject's random rows
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from fulmen.envs.basics.phrases import FILLERS
from fulmen.envs.calls.case import Arguments, Device, chosen, device
from fulmen.envs.calls.names import Names, syllables
from fulmen.envs.logic.words import COLOURS, OBJECTS, PEOPLE

LANGUAGES: Final = ("en", "en", "de")
"""Languages of questions; two of three are in English"""


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that can be asked of a key."""

    name: str
    """Noun, which also stands in English names of tools"""
    nouns: Mapping[str, str]
    """The noun by language, with its article in German"""
    key: str
    """Kind of its keys: thing, person or place"""
    value: str
    """Kind of its values: number, thing, person, place, code or colour"""
    words: tuple[str, ...]
    """English words for names of tools"""
    descriptions: tuple[str, ...]
    asked: Mapping[str, tuple[str, ...]]
    """Questions by language"""


_KEY_WORDS: Final = {
    "thing": ("item", "thing", "product", "article", "name", "object", "key", "what"),
    "person": ("person", "name", "who", "user", "member", "key", "people", "employee"),
    "place": ("country", "place", "land", "name", "where", "region", "key", "location"),
}
_OF: Final = {"en": "What is the {noun} of {key}?", "de": "Was ist {noun} von {key}?"}
_SAID: Final = {
    "en": ("The {noun} of {key} is {value}.", "It is {value}."),
    "de": ("{noun} von {key} ist {value}.", "Es ist {value}."),
}

SUBJECTS: Final = (
    Subject(
        "price",
        {"en": "price", "de": "der Preis"},
        "thing",
        "number",
        ("price", "cost", "prices", "costs", "item_price"),
        ("Look up the price of a thing.", "Returns what a product costs."),
        {
            "en": ("How much is the {key}?", "What does the {key} cost?", "Price of {key}?"),
            "de": ("Was kostet {key}?", "Wie teuer ist {key}?", "Wie viel kostet {key}?"),
        },
    ),
    Subject(
        "stock",
        {"en": "stock", "de": "der Bestand"},
        "thing",
        "number",
        ("stock", "amount", "store", "inventory", "count"),
        ("Tells how many of a thing are in stock.", "Look up the stock of a product."),
        {
            "en": ("How many of {key} are in stock?", "Stock of {key}?"),
            "de": ("Wie viele von {key} sind im Lager?", "Wie groß ist der Bestand von {key}?"),
        },
    ),
    Subject(
        "owner",
        {"en": "owner", "de": "der Besitzer"},
        "thing",
        "person",
        ("owner", "owners", "holder", "belongs"),
        ("Tells who owns a thing.", "Look up the owner of a thing."),
        {
            "en": ("Who owns the {key}?", "Who has the {key}?"),
            "de": ("Wem gehört {key}?", "Wer besitzt {key}?"),
        },
    ),
    Subject(
        "colour",
        {"en": "colour", "de": "die Farbe"},
        "thing",
        "colour",
        ("colour", "color", "colours", "paint"),
        ("Tells the colour of a thing.", "Look up a colour."),
        {
            "en": ("Which colour has the {key}?", "What colour is the {key}?"),
            "de": ("Welche Farbe hat {key}?", "Sag mir die Farbe von {key}."),
        },
    ),
    Subject(
        "room",
        {"en": "room", "de": "das Zimmer"},
        "person",
        "code",
        ("room", "office", "rooms", "desk"),
        ("Look up the room of a person.", "Tells which room a person is in."),
        {
            "en": ("In which room is {key}?", "Where does {key} sit?", "Which room has {key}?"),
            "de": ("In welchem Zimmer ist {key}?", "Wo sitzt {key}?"),
        },
    ),
    Subject(
        "phone number",
        {"en": "phone number", "de": "die Telefonnummer"},
        "person",
        "number",
        ("phone", "number", "phones", "contact"),
        ("Look up the phone number of a person.", "Returns somebody's phone number."),
        {
            "en": ("How can I call {key}?", "Give me the phone number of {key}."),
            "de": ("Wie kann ich {key} anrufen?", "Gib mir die Telefonnummer von {key}."),
        },
    ),
    Subject(
        "age",
        {"en": "age", "de": "das Alter"},
        "person",
        "number",
        ("age", "years", "ages", "birthday"),
        ("Tells how old a person is.", "Look up the age of a person."),
        {
            "en": ("How old is {key}?", "Tell me the age of {key}."),
            "de": ("Wie alt ist {key}?", "Sag mir das Alter von {key}."),
        },
    ),
    Subject(
        "capital",
        {"en": "capital", "de": "die Hauptstadt"},
        "place",
        "place",
        ("capital", "city", "capitals", "main_city"),
        ("Look up the capital of a country.", "Tells the capital of a country."),
        {
            "en": ("Which city is the capital of {key}?", "Capital of {key}?"),
            "de": ("Welche Stadt ist die Hauptstadt von {key}?", "Wie heißt {key}s Hauptstadt?"),
        },
    ),
    Subject(
        "mayor",
        {"en": "mayor", "de": "der Bürgermeister"},
        "place",
        "person",
        ("mayor", "mayors", "head", "town_hall"),
        ("Tells who is the mayor of a place.", "Look up the mayor of a city."),
        {
            "en": ("Who is the mayor of {key}?", "Who governs {key}?"),
            "de": ("Wer ist Bürgermeister von {key}?", "Wer regiert {key}?"),
        },
    ),
    Subject(
        "platform",
        {"en": "platform", "de": "das Gleis"},
        "place",
        "number",
        ("platform", "track", "train", "platforms"),
        ("Tells the platform of the train to a place.", "Look up a train's platform."),
        {
            "en": ("Where does the train to {key} leave?", "Platform of the train to {key}?"),
            "de": ("Wo fährt der Zug nach {key}?", "Von welchem Gleis fährt der Zug nach {key}?"),
        },
    ),
)
"""All subjects"""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a subject, and the tool that looks into them."""

    subject: Subject
    rows: Mapping[str, str]
    device: Device

    def thought(self, key: str) -> str:
        """Return the thought that leads to a look at a key."""
        return f"I need the {self.subject.name} of {key}. {chosen(self.device)}"


def make_table(
    draw: Random,
    names: Names,
    subject: Subject,
    language: str,
    *,
    keys: Sequence[str] = (),
    key_form: Callable[[str], str] = str,
) -> Table:
    """Return a table with some rows.

    keys      keys that it has besides others
    key_form  form in which keys stand in the table
    """
    others = [make_key(draw, subject.key, language) for _ in range(3)]
    every = list(dict.fromkeys([*keys, *others]))
    values = [make_value(draw, subject.value) for _ in every]
    rows = {key_form(key): value for key, value in zip(every, values, strict=True)}
    shape = draw.choice(("{value}", "{value}", "{key}: {value}", "{noun}: {value}"))

    def work(arguments: Arguments) -> str:
        (key,) = arguments.values()
        if key not in rows:
            raise ValueError(f"unknown: {key[:40]}")
        return shape.format(key=key, value=rows[key], noun=subject.name)

    parameter = names.parameter(_KEY_WORDS[subject.key])
    name = names.tool([word.replace(" ", "_") for word in subject.words])
    made = device(name, draw.choice(subject.descriptions), work, {parameter: "string"})
    return Table(subject, rows, made)


def make_key(draw: Random, kind: str, language: str) -> str:
    """Return a key of a kind: a thing, a person, or a place that there is not."""
    if kind == "person":
        return draw.choice(PEOPLE) if draw.random() < 0.5 else syllables(draw).title()
    if kind == "place":
        return syllables(draw).title()
    if draw.random() < 0.3:
        return syllables(draw)
    return draw.choice(OBJECTS if language == "en" else FILLERS["ding"])


def make_value(draw: Random, kind: str) -> str:
    """Return a value of a kind."""
    if kind == "number":
        return str(draw.randint(2, 10 ** draw.randint(1, 4)))
    if kind == "code":
        return f"{draw.choice('ABCDEFGH')}{draw.randint(1, 999)}"
    if kind == "colour":
        return draw.choice(COLOURS)
    return make_key(draw, kind, "en")


def make_question(draw: Random, subject: Subject, language: str, key: str) -> str:
    """Return a question about a key."""
    ways = (*subject.asked[language], _OF[language])
    return draw.choice(ways).format(key=key, noun=subject.nouns[language])


def make_reply(draw: Random, subject: Subject, language: str, key: str, value: str) -> str:
    """Return the answer that tells a value."""
    words = draw.choice(_SAID[language])
    reply = words.format(noun=subject.nouns[language], key=key, value=value)
    return reply[0].upper() + reply[1:]
