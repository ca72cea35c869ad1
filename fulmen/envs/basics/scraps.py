"""Scraps: sentences of random words, which look like a request and ask nothing that can be done.

A model that has only seen requests of known forms takes an unknown one for the nearest of them.
Scraps fill the room between, so that what has no known form is told apart from what has one.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from fulmen.envs.logic.words import PEOPLE, PLACES, WORDS

_ENGLISH: Final = """
a about after again all also always am an and another any are as ask at away back be because been
before begin best better big both bring build but buy by call can cannot change close come cook
could day did do does done down draw each easy eat end enough even every explain fast feel few find
first food for forget friend from full fun game get give go going good great had happy hard has have
he hear help her here him his home hope hot house how hungry i idea if important in into is it its
job just keep kind know language last late learn leave less let life light like list listen little
live long look lost love make man many maybe me mean meet mind money more morning most much music
must my name near need never new next nice night no not nothing now of off often old on once one
only open or other our out over own party people perhaps person picture plan play please poem
problem put question quick quiet rain read ready really remember right run sad said same say school
see send she should show sing sister sleep slow small so some song sorry speak start stay still stop
story strong such sure table take talk teach tell test than thank that the their them then there
these they thing think this those though time tired to today together tomorrow too travel true try
turn two under understand until up us use very wait walk want warm was watch water way we weather
week well were what when where which while who why will with without woman word work world worry
would write wrong year yes yesterday yet you young your
"""
_GERMAN: Final = """
ab aber alle allein als also alt am an andere anfangen arbeiten auch auf aus backen bald bauen bei
beide beste besser bin bis bitte bleiben brauchen brief bringen buch bunt da dann das dass dein dem
den denken denn der deshalb dich die dies diese dir doch dort du dunkel dürfen ein eine einem einen
einer eines einfach einmal ende endlich er erklären erzählen es essen etwas euch fahren falsch fast
fehler fertig finden fragen frau freund früh für ganz geben gegen gehen geld gern gestern gibt
glauben groß gut haben hallo halten hast hat haus heißen helfen heute hier hilfe hören hund hungrig
ich ihm ihn ihr im immer in ins ist ja jahr jede jemand jetzt jung kalt kann kannst kaufen kein
keine kennen kind klein kochen kommen können lachen lang langsam lassen laufen laut leben legen
leicht leider lernen lesen letzte leute lieben liegen machen man mann mehr mein meine mensch mich
mir mit möchte mögen morgen müde muss musik nach nacht nah name natürlich neben nehmen nein neu
nicht nichts nie noch nur ob oben oder oft ohne problem reden regen reise richtig rufen ruhig sagen
schicken schlafen schlecht schnell schon schön schreiben schule schwer sehen sehr sein seit selbst
sich sie sind singen sitzen so sollen sonne spät spielen sprache sprechen stadt stark stehen stellen
suchen tag tanzen teuer tisch traurig treffen trinken tun über um und uns unter vergessen verstehen
viel vielleicht von vor wann war warm warten warum was wasser weg weil weit welche welt wem wen
wenig wenn wer werden wetter wichtig wie wieder wirklich wissen wo wohin wohnen wollen wort
wunderbar zahlen zeigen zeit zu zum zur zusammen zwei zwischen
"""
_COMMON: Final[Mapping[str, Sequence[str]]] = {"en": _ENGLISH.split(), "de": _GERMAN.split()}
_ENDS: Final = ("?", "?", ".", "", "!", "...")
_SYLLABLES: Final = (
    *("ba", "be", "bo", "da", "den", "der", "di", "fa", "fen", "ga", "ger", "gro", "ha", "hel"),
    *("in", "ka", "ken", "kla", "la", "ler", "lin", "ma", "men", "mi", "mo", "na", "ner", "no"),
    *("pa", "per", "pla", "ra", "ren", "ro", "sa", "sche", "ser", "sta", "ste", "ta", "ter", "ti"),
    *("to", "un", "va", "ver", "wa", "wen", "za", "zen", "ing", "ly", "tion", "keit", "ung", "ig"),
)
_NAMES: Final = (*PEOPLE, *PLACES)


def make_scrap(draw: Random, language: str) -> str:
    """Return a sentence of 2 to 12 random words, most of them common ones of a language."""
    words = [_word(draw, language) for _ in range(draw.randint(2, 12))]
    if draw.random() < 0.2:
        place = draw.randrange(len(words))
        words[place] += draw.choice((",", ":", " -"))
    if draw.random() < 0.7:
        words[0] = words[0][0].upper() + words[0][1:]
    return " ".join(words) + draw.choice(_ENDS)


def _word(draw: Random, language: str) -> str:
    kind = draw.random()
    if kind < 0.7:
        return draw.choice(_COMMON[language])
    if kind < 0.8:
        return draw.choice(_NAMES if draw.random() < 0.5 or language == "de" else WORDS)
    if kind < 0.97:
        made = "".join(draw.choice(_SYLLABLES) for _ in range(draw.randint(1, 4)))
        return made.capitalize() if draw.random() < 0.3 else made
    return str(draw.randint(0, 10 ** draw.randint(1, 4)))
