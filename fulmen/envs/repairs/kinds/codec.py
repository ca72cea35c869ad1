"""Codes: letters, run lengths and shifts, and messages."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_LETTERS = '''"""Letters and how they are moved."""


def shift(letter, count):
    """Return the letter some places on in the alphabet, which begins anew after z; others stay."""
    if not letter.isalpha():
        return letter
    first = ord("A") if letter.isupper() else ord("a")
    return chr((ord(letter) - first + count) % 26 + first)


def runs(text):
    """Return (letter, count) of each run of one letter."""
    found = []
    for letter in text:
        if found and found[-1][0] == letter:
            found[-1] = (letter, found[-1][1] + 1)
        else:
            found.append((letter, 1))
    return found


def blocks(text, size):
    """Return a text in pieces of a size, the last one filled with "_"; an empty text has none."""
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    if pieces:
        pieces[-1] = pieces[-1].ljust(size, "_")
    return pieces


def checksum(text):
    """Return the sum of the places (from 1) times the codes of a text's letters, modulo 97."""
    return sum(place * ord(letter) for place, letter in enumerate(text, 1)) % 97
'''

_CODES = '''"""Codes and how they are undone."""

from .letters import blocks, checksum, runs, shift


def pack(text):
    """Return a text with each run as its count, left out if 1, and its letter."""
    return "".join(f"{count if count > 1 else ''}{letter}" for letter, count in runs(text))


def unpack(code):
    """Return the text that was packed; ValueError if a count has no letter behind it."""
    text, number = "", ""
    for char in code:
        if char.isdigit():
            number += char
        else:
            text += char * int(number or "1")
            number = ""
    if number:
        raise ValueError("a count without a letter")
    return text


def cipher(text, key):
    """Return a text whose letters are shifted by those of a key, a by 0, b by 1, again and again.

    Only letters take a step in the key.
    """
    place, found = 0, ""
    for letter in text:
        found += shift(letter, ord(key[place % len(key)]) - ord("a"))
        if letter.isalpha():
            place += 1
    return found


def decipher(text, key):
    """Return the text that was ciphered with a key."""
    back = "".join(shift("a", ord("a") - ord(letter)) for letter in key)
    return cipher(text, back)


def columns(text, width):
    """Return a text written in rows of a width and read in columns; empty places are "_"."""
    rows = blocks(text, width)
    return "".join(row[column] for column in range(width) for row in rows)


def sealed(text):
    """Return a text with its checksum behind it, as "text#07"."""
    return f"{text}#{checksum(text):02d}"


def is_sealed(text):
    """Return True if a text ends with its right checksum."""
    body, mark, _ = text.rpartition("#")
    return mark == "#" and sealed(body) == text
'''

_MESSAGES = '''"""Messages in code."""

from .codes import cipher, columns, decipher, is_sealed, pack, sealed, unpack


def send(text, key):
    """Return a text as a message: packed, ciphered with a key, and sealed."""
    return sealed(cipher(pack(text), key))


def receive(message, key):
    """Return the text of a message; ValueError if its seal is wrong."""
    if not is_sealed(message):
        raise ValueError("the seal is broken")
    return unpack(decipher(message.rpartition("#")[0], key))


def saving(text):
    """Return how many letters packing saves, 0 if none."""
    return max(len(text) - len(pack(text)), 0)


def broken(messages):
    """Return the places, from 1, of messages whose seal is wrong."""
    return [place for place, one in enumerate(messages, 1) if not is_sealed(one)]


def scramble(text, widths):
    """Return a text after it was read in columns of each of the widths in turn."""
    for width in widths:
        text = columns(text, width)
    return text


def best_width(text, most):
    """Return the width from 1 to most whose columns pack shortest, the smallest of equals."""
    return min(range(1, most + 1), key=lambda width: (len(pack(columns(text, width))), width))
'''


def _text(draw: random.Random, letters: str = "aabBcxyzZ ") -> str:
    return "".join(
        draw.choice(letters) * draw.choice((1, 1, 2, 3, 11)) for _ in range(draw.randint(1, 6))
    )


def _key(draw: random.Random) -> str:
    return "".join(draw.choice("abcdkz") for _ in range(draw.randint(1, 4)))


def _probes(draw: random.Random) -> list[Probe]:
    text, key, plain = _text(draw), _key(draw), _text(draw, "abcdef")
    seal = "sealed('" + plain + "')"
    return [
        probe(2, f"shift({draw.choice('aazZAm-7')!r}, {draw.randint(-30, 30)})"),
        probe(2, f"runs({text!r})"),
        probe(2, f"blocks({plain!r}, {draw.randint(1, 6)})"),
        probe(2, f"blocks({draw.choice(('', 'abcdef'))!r}, {draw.randint(1, 4)})"),
        probe(2, f"checksum({text!r})"),
        probe(1, f"pack({text!r})"),
        probe(1, f"unpack({draw.choice(('3ab', '12x', 'a2', '', '2a10b', 'abc', '7'))!r})"),
        probe(1, f"cipher({text!r}, {key!r})"),
        probe(1, f"decipher({text!r}, {key!r})"),
        probe(1, f"columns({plain!r}, {draw.randint(1, 6)})"),
        probe(1, seal),
        probe(1, f"is_sealed({draw.choice((seal, repr(plain + '#00'), repr(plain)))})"),
        probe(0, f"send({text!r}, {key!r})"),
        probe(0, f"receive(send({text!r}, {key!r}), {key!r})"),
        probe(0, f"receive({draw.choice((plain, plain + '#11', plain + '#'))!r}, {key!r})"),
        probe(0, f"saving({text!r})"),
        probe(0, f"broken([send({text!r}, 'b'), {plain!r}, send({plain!r}, 'cd') + 'x'])"),
        probe(0, f"scramble({plain!r}, {[draw.randint(1, 4) for _ in range(2)]})"),
        probe(0, f"best_width({plain!r}, {draw.randint(1, 5)})"),
    ]


KIND = Kind(
    "messages",
    (("messages", _MESSAGES), ("codes", _CODES), ("letters", _LETTERS)),
    _probes,
    {
        "send": ("write_message", "outgoing"),
        "receive": ("read_message", "incoming"),
        "saving": ("saved", "gain"),
        "broken": ("damaged", "bad_seals"),
        "scramble": ("shuffle_columns", "mixed"),
        "pack": ("compress", "squeeze"),
        "unpack": ("expand", "inflate"),
        "cipher": ("encode", "encrypt"),
        "decipher": ("decode", "decrypt"),
        "runs": ("repeats", "stretches"),
        "checksum": ("check_number", "digest"),
    },
)
