r"""Numbers as people and models spell them, read exactly and in bounded time.

    1,234.50   -\frac{3}{4}   2 1/2   1.5 \times 10^{3}   -> Fraction

`spelled_numbers` finds the numbers of a text, `whole_number` reads a text that is just one number.
The spellings are those of docs/environments.md. Nothing is rounded, so 0.33 is not 1/3.
"""

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

_LONGEST: Final = 1000
"""Digits of a number that is read; Python refuses to read 4,300 at once"""
_MOST_ZEROS: Final = 400
"""Largest power of ten"""
_CHARACTERS: Final = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2007\u2009\u202f", "\u00a0"),  # spaces that stand within numbers
    **dict.fromkeys("\u200b\u200c\u200d\u200e\u200f\u2060\ufeff", ""),
    **dict.fromkeys("\u2044\u2215", "/"),
    **dict.fromkeys("\u22c5\u2219\u00b7", "\u00d7"),
    **dict.fromkeys("\uff0c\u066c", ","),
    **dict.fromkeys("\uff0e\u066b", "."),
    **{"\uff05": "%", "\u066a": "%", "\uff04": "$", "\uff0b": "+", "\u2019": "'"},
}
_NOT_ASCII: Final = re.compile(r"[^\x00-\x7f]")
_LATEX: Final = re.compile(
    r"\{,\}|\\[,!;: %$]|\\(?:times|cdot|[dtc]frac|left|right|quad)(?![A-Za-z])"
)
_PLAIN_LATEX: Final = {
    **{"{,}": ",", r"\,": "\u00a0", r"\!": "", r"\%": "%", r"\$": "$"},
    **{r"\times": "\u00d7", r"\cdot": "\u00d7", r"\left": "", r"\right": ""},
    **dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac"), r"\frac"),
}

_GROUPED: Final = "|".join(rf"\d{{1,3}}(?:{mark}\d{{3}}){{1,12}}(?!\d)" for mark in ",\u00a0'_")
_WHOLE: Final = rf"(?:{_GROUPED}|\d{{1,2}}(?:,\d{{2}}){{1,12}},\d{{3}}(?!\d)|\d++)"
_DECIMAL: Final = rf"(?:{_WHOLE}(?:\.\d++)?|(?<![\w.)\]}}])\.\d++)"
_VULGAR: Final = "\u00bc-\u00be\u2150-\u215e\u2189"
_TERM: Final = rf"(?:\{{ ?([-+]?{_DECIMAL}) ?\}}|(\d))"
_FRAC: Final = re.compile(rf" ?\\frac ?{_TERM} ?{_TERM}")
_BEGIN: Final = re.compile(rf"[\d{_VULGAR}]|\\frac|(?<![\w.)\]}}])\.\d")
_SIGN: Final = re.compile(
    r"(?P<sign>(?<![^\W_])(?<![)\]}%-])[-+])?(?P<currency>[$\u20ac\u00a3\u00a5] ?)?\Z"
)
_DIGITS: Final = re.compile(_DECIMAL)
_OVER: Final = re.compile(rf" ?/ ?({_WHOLE})(?!\.?\d| ?/ ?\d)")
_MIXED: Final = re.compile(r"[ \u00a0]{1,3}(\d{1,6})/(\d{1,6})(?!\.?\d| ?/ ?\d)")
_MIXED_VULGAR: Final = re.compile(rf"[ \u00a0]?([{_VULGAR}])")
_POWER: Final = re.compile(r"(?:\*\*| ?\^ ?)\{? ?([-+]?\d{1,4})(?!\d) ?\}?")
_TIMES_TEN: Final = re.compile(r"[ \u00a0]?[\u00d7*xX][ \u00a0]?10(?!\d)")
_EXPONENT: Final = re.compile(r"[eE]([-+]?\d{1,4})(?![^\W_])")
_DIGITS_ABOVE: Final = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079"
_ABOVE: Final = re.compile(rf"[\u207a\u207b]?[{_DIGITS_ABOVE}]{{1,4}}(?![{_DIGITS_ABOVE}])")
_LOWERED: Final = str.maketrans(_DIGITS_ABOVE + "\u207a\u207b", "0123456789+-")
_SEPARATORS: Final = re.compile("[,\u00a0'_]")
_NOT_ITS_OWN: Final = re.compile(r"(?:[A-Za-z]|[A-Za-z]_\{?[-+]?|\^ ?\{?[-+]?)\Z")
"""Before a digit of a name, an index or an exponent: H2, x_1, m^2"""
_ITS_OWN: Final = re.compile(r"(?:\\[A-Za-z]{1,20}|\b(?:USD|EUR|GBP|CHF|INR|JPY|Rs)|\d[xX])\Z")
_WRAPPED: Final = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox) ?\{([^{}]*)\}")
_AROUND: Final = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), (r"\boxed{", "}"), (r"\fbox{", "}"))


@dataclass(frozen=True, slots=True)
class Spelled:
    """A number in a text that `plain` returned."""

    begin: int
    end: int
    value: Fraction | None
    """None for what has the form of a number and is none (1/0), or is too long to be read"""
    currency: str = ""
    """Sign of a currency that stands before it"""


def plain(text: str) -> str:
    """Return a text with one kind of digits, minus, point, comma and space, and fewer commands of
    LaTeX that only change its looks."""
    text = _NOT_ASCII.sub(_plain_character, text)
    return _LATEX.sub(lambda found: _PLAIN_LATEX.get(found[0], " "), text)


def spelled_numbers(text: str, begin: int = 0, end: int | None = None) -> list[Spelled]:
    """Return the numbers of a plain text that begin between two places, in their order. Digits of a
    name, an index or an exponent are none: H2, x_1, m^2."""
    numbers: list[Spelled] = []
    end = len(text) if end is None else end
    while (found := _BEGIN.search(text, begin)) is not None and found.start() < end:
        number = _read(text, found)
        before = text[max(0, found.start() - 30) : found.start()]
        begin = found.end() if number is None else number.end
        if number and (_ITS_OWN.search(before) or not _NOT_ITS_OWN.search(before)):
            numbers.append(number)
    return numbers


def whole_number(text: str, units: Collection[str] = ()) -> Fraction | None:
    """Return the number that a text is, alone or with one of these units; else None.

    units  in lower case; a sign such as $ may also stand before the number
    """
    text = unwrapped(text)
    found = _BEGIN.search(text, 0, 10)
    number = found and _read(text, found)
    if not number or number.begin > 0 or (number.currency and number.currency not in units):
        return None
    unit = " ".join(text[number.end :].replace("\u00a0", " ").split()).strip(" *_").lower()
    return number.value if not unit or unit in units else None


def unwrapped(text: str) -> str:
    """Return a text in plain form, without marks of Markdown and LaTeX around it or a full stop."""
    text = _WRAPPED.sub(r"\1", plain(text))
    for _ in range(8):
        before = text
        text = text.strip(" \t\n\r\u00a0*_`").removesuffix(".")
        for opening, closing in _AROUND:
            if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
                text = text[len(opening) : -len(closing)]
        if text == before:
            break
    return text


def _plain_character(found: re.Match[str]) -> str:
    character = found[0]
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    return _CHARACTERS.get(character, character)


def _read(text: str, found: re.Match[str]) -> Spelled | None:
    """Return the number that begins here; None for a fraction whose parts are no numbers."""
    value: Fraction | None
    begin = found.start()
    if found[0] == r"\frac":
        if (fraction := _FRAC.match(text, begin)) is None:
            return None
        value, end = _quotient(fraction), fraction.end()
    elif (digits := _DIGITS.match(text, begin)) is None:
        value, end = _vulgar(found[0]), found.end()
    else:
        value, end = _decimal(digits[0]), digits.end()
        if value is not None:
            value, end = _continued(text, value, digits[0], end)
    first = max(0, begin - 4)
    before = _SIGN.search(text[first:begin])
    assert before is not None  # it may be empty
    if value is not None and before["sign"] == "-":
        value = -value
    return Spelled(first + before.start(), end, value, (before["currency"] or "").strip())


def _continued(text: str, value: Fraction, digits: str, end: int) -> tuple[Fraction | None, int]:
    """Return value and end of a number, with the fraction or power that follows its digits."""
    if (found := _EXPONENT.match(text, end)) is not None:
        return _times_ten(value, found[1]), found.end()
    if (found := _TIMES_TEN.match(text, end)) is not None:
        if (power := _POWER.match(text, found.end())) is not None:
            return _times_ten(value, power[1]), power.end()
        if (power := _ABOVE.match(text, found.end())) is not None:
            return _times_ten(value, power[0].translate(_LOWERED)), power.end()
    if "." in digits:
        return value, end
    if digits == "10" and (power := _ABOVE.match(text, end)) is not None:
        return _times_ten(Fraction(1), power[0].translate(_LOWERED)), power.end()
    if (found := _POWER.match(text, end)) is not None:
        return _power(value, int(found[1])), found.end()
    begin = end - len(digits)
    is_second = text[max(0, begin - 2) : begin].strip(" ").endswith("/")
    if not is_second and (found := _OVER.match(text, end)) is not None:
        return _divided(value, _decimal(found[1])), found.end()
    part: Fraction | None = None
    if (found := _MIXED.match(text, end)) is not None:
        part = _divided(_decimal(found[1]), _decimal(found[2]))
    elif (found := _MIXED_VULGAR.match(text, end)) is not None:
        part = _vulgar(found[1])
    elif (found := _FRAC.match(text, end)) is not None:
        part = _quotient(found)
    if found is not None and part is not None and 0 < part < 1:
        return value + part, found.end()
    return value, end


def _decimal(digits: str) -> Fraction | None:
    return None if len(digits) > _LONGEST else Fraction(_SEPARATORS.sub("", digits))


def _divided(above: Fraction | None, below: Fraction | None) -> Fraction | None:
    return above / below if above is not None and below else None


def _quotient(found: re.Match[str]) -> Fraction | None:
    r"""Return the value of \frac{a}{b} or \frac12."""
    return _divided(_decimal(found[1] or found[2]), _decimal(found[3] or found[4]))


def _vulgar(character: str) -> Fraction:
    above, _, below = unicodedata.normalize("NFKC", character).partition("\u2044")
    return Fraction(int(above), int(below))


def _times_ten(value: Fraction, exponent: str) -> Fraction | None:
    power = int(exponent)
    return value * Fraction(10) ** power if abs(power) <= _MOST_ZEROS else None


def _power(value: Fraction, exponent: int) -> Fraction | None:
    if (value == 0 and exponent < 0) or value.numerator.bit_length() * abs(exponent) > 3000:
        return None
    return value**exponent
