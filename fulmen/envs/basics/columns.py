"""Arithmetic by columns, as it is written on paper: from the right, one digit and its carry at a
time.

    68 + 141 -> 8+1+0=09 6+4+0=10 0+1+1=02 902

Each step has its two digits and what is carried, and the result with two digits. What is written
last are the digits of the result in the order in which they were found, that is, reversed.
"""

from itertools import zip_longest


def sum_steps(first: int, second: int) -> str:
    """Return the steps of a sum: `8+1+0=09` is 8 + 1 and nothing carried."""
    return _added(str(first)[::-1], str(second)[::-1])


def difference_steps(first: int, second: int) -> str:
    """Return the steps of a difference that is not negative: `3-7-0=61` is 6, and 1 is borrowed
    from the next column."""
    steps, digits, borrow = [], "", 0
    for a, b in _columns(str(first)[::-1], str(second)[::-1]):
        digit = (a - b - borrow) % 10
        next_borrow = int(a - b - borrow < 0)
        steps.append(f"{a}-{b}-{borrow}={digit}{next_borrow}")
        digits, borrow = f"{digits}{digit}", next_borrow
    return f"{' '.join(steps)} {digits}"


def product_steps(first: int, digit: int) -> str:
    """Return the steps of a product with one digit: `6*7+1=43` is 6 * 7 and 1 carried."""
    steps, digits = _multiplied(first, digit)
    return f"{steps} {digits}"


def long_product_steps(first: int, second: int) -> str:
    """Return the steps of a product with a number of two digits: a row for each digit, then the sum
    of the rows, which stand reversed already."""
    tens, units = divmod(second, 10)
    steps, row = _multiplied(first, units)
    more_steps, more_row = _multiplied(first, tens)
    rows = f"{first}*{units}: {steps} {row}; {first}*{tens}0: {more_steps} 0{more_row}"
    return f"{rows}; {_added(row, f'0{more_row}')}"


def _added(first: str, second: str) -> str:
    """Return the steps of a sum of numbers that are given reversed."""
    steps, digits, carry = [], "", 0
    for a, b in _columns(first, second):
        total = a + b + carry
        steps.append(f"{a}+{b}+{carry}={total:02}")
        carry, digit = divmod(total, 10)
        digits += str(digit)
    return f"{' '.join(steps)} {digits}{carry or ''}"


def _multiplied(first: int, digit: int) -> tuple[str, str]:
    """Return the steps of a product and its digits, reversed."""
    steps, digits, carry = [], "", 0
    for a in map(int, reversed(str(first))):
        total = a * digit + carry
        steps.append(f"{a}*{digit}+{carry}={total:02}")
        carry, last = divmod(total, 10)
        digits += str(last)
    return " ".join(steps), f"{digits}{carry or ''}"


def _columns(first: str, second: str) -> list[tuple[int, int]]:
    return [(int(a), int(b)) for a, b in zip_longest(first, second, fillvalue="0")]
