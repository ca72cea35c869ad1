"""Numbers in the spellings that docs/environments.md promises, drawn at random."""

from fractions import Fraction
from random import Random

MINUS = ("-", "\u2212", "\u2013", "\uff0d")
SCRIPTS = tuple("".join(chr(zero + i) for i in range(10)) for zero in (48, 1632, 2406, 65296))
MARKS = (",", "\u00a0", "\u202f", "\u2009", "'", "_", "{,}", r"\,", "\uff0c")
VULGAR = {Fraction(1, 2): "½", Fraction(1, 4): "¼", Fraction(3, 4): "¾", Fraction(1, 3): "⅓"}
ABOVE = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
UNITS = (
    "",
    "",
    " km",
    "kg",
    " km²",
    " m^2",
    r" \text{ cm}^{2}",
    "%",
    " %",
    r"\%",
    " per cent",
    " €",
)
WRAPS = (
    "{}",
    "{}",
    "**{}**",
    "${}$",
    r"\({}\)",
    r"\boxed{{{}}}",
    r"$\boxed{{{}}}$",
    "`{}`",
    "_{}_",
)
FRAMES = (
    "{}",
    "The answer is {}.",
    "Answer: {}",
    "**Answer:** {}",
    "#### {}",
    "So 3 + 4 = 7, and in the end it is {}.",
    "First 12. Then 5.\nFinal answer: {}\n",
    "It is {}. ",
    "\n\n = {}\n",
    "The answer is {}! I looked at 17 pages for it.",
)
TWICE = (
    "The answer is {}. No, I was wrong: the answer is {}.",
    "#### {}\n#### {}",
    r"\boxed{{{}}}, or rather \boxed{{{}}}",
    "First I thought of {}. It is {}.",
)


def spelled(draw: Random, value: Fraction) -> str:
    """Return a number in one of its spellings, without unit."""
    sign = draw.choice(MINUS) if value < 0 else draw.choice(("", "", "", "+"))
    return sign + _unsigned(draw, abs(value))


def in_reply(draw: Random, value: Fraction) -> str:
    """Return a reply that ends up with a number."""
    said = _said(draw, value)
    if draw.random() < 0.2:
        first = _said(draw, other_than(draw, value))
        if "boxed" not in first:  # a number in a box counts before one without a mark
            return draw.choice(TWICE).format(first, said)
    return draw.choice(FRAMES).format(said)


def other_than(draw: Random, value: Fraction) -> Fraction:
    """Return another number, often one that looks like it."""
    near = [value + 1, value - 1, -value, value * 10, value / 10, value * 1000, value / 100]
    near += [value + Fraction(1, 1000), 1 / value if value else Fraction(7), value**2]
    near += [Fraction(draw.randint(-1000, 1000)), value + Fraction(1, 10**20)]
    return draw.choice([one for one in near if one != value])


def decimal(value: Fraction) -> str | None:
    """Return a number of at most 30 places with a point; None if there is none."""
    for places in range(31):
        if (shifted := value * 10**places).denominator == 1:
            digits = str(shifted.numerator).rjust(places + 1, "0")
            return digits if places == 0 else f"{digits[:-places]}.{digits[-places:]}"
    return None


def _said(draw: Random, value: Fraction) -> str:
    said = spelled(draw, value)
    unit = draw.choice(UNITS)
    if unit == "kg" and ("e" in said.lower() or not said[-1].isdecimal()):
        unit = ""
    if draw.random() < 0.1 and value >= 0 and "frac" not in said and not set(said) & set("+½¼¾⅓"):
        return draw.choice((rf"\${said}", f"${said}", f"€{said}"))
    if unit == "" or draw.random() < 0.5:
        return draw.choice(WRAPS).format(said + unit)
    return said + unit


def _unsigned(draw: Random, value: Fraction) -> str:
    digits = decimal(value)
    if digits is None or (value.denominator > 1 and draw.random() < 0.5):
        return _fraction(draw, value)
    if draw.random() < 0.15:
        return _scientific(draw, value)
    whole, point, rest = digits.partition(".")
    if draw.random() < 0.4:
        whole = _grouped(whole, draw.choice(MARKS))
    if draw.random() < 0.2:
        point, rest = ".", rest + "0" * draw.randint(1, 4)
    if whole == "0" and rest and draw.random() < 0.2:
        whole = ""
    script = draw.choice((SCRIPTS[0], SCRIPTS[0], *SCRIPTS))
    return (whole + point + rest).translate(str.maketrans(SCRIPTS[0], script))


def _grouped(whole: str, mark: str) -> str:
    groups = []
    while len(whole) > 3:
        whole, group = whole[:-3], whole[-3:]
        groups.append(group)
    return mark.join([whole, *reversed(groups)])


def _fraction(draw: Random, value: Fraction) -> str:
    times = draw.choice((1, 1, 1, 2, 3))
    above, below = value.numerator * times, value.denominator * times
    whole, part = divmod(value, 1)
    ways = [f"{above}/{below}", f"{above} / {below}", rf"\frac{{{above}}}{{{below}}}"]
    ways += [rf"\dfrac{{{above}}}{{{below}}}", f"{above}\u2044{below}"]
    if whole and part and part.denominator < 10**6:
        ways.append(f"{whole} {part}")
        ways.append(rf"{whole}\frac{{{part.numerator}}}{{{part.denominator}}}")
    if part in VULGAR:
        ways.append(f"{whole or ''}{VULGAR[part]}")
    return draw.choice(ways)


def _scientific(draw: Random, value: Fraction) -> str:
    power = draw.randint(-4, 6)
    digits = decimal(value / Fraction(10) ** power)
    if digits is None:
        return str(decimal(value))
    raised = str(power).translate(ABOVE)
    ways = (
        *(f"{digits}e{power}", f"{digits}E{power:+03}", f"{digits} \u00d7 10^{power}"),
        *(rf"{digits} \times 10^{{{power}}}", rf"{digits}\cdot 10^{{{power}}}"),
        *(f"{digits} \u00d7 10{raised}", f"{digits}*10**{power}", f"{digits} x 10^{power}"),
    )
    return draw.choice(ways)
