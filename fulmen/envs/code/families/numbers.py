"""Problems with single numbers."""

from random import Random
from typing import Any, Final

from fulmen.envs.code.problem import Family, Input, Problem


def _draw_large(draw: Random, size: int) -> tuple[Any, ...]:
    return (draw.randint(10 ** (size // 4), 10 ** (size // 3 + 2)),)


def _digits(draw: Random, level: int) -> Problem:
    inputs = (Input("number", "number", "1 or more"),)
    factor, divisor = draw.randint(2, 9), draw.choice((7, 9, 11, 13))
    if level <= 2:
        name, value = draw.choice(
            (("sum", "sum(digits)"), ("sum of the squares", "sum(d * d for d in digits)"))
        )
        words = f"Take the {name} of the decimal digits."
        end = f"result = {value}"
    elif level == 3:
        words = (
            f"Multiply the first decimal digit by 1, the second by {factor}, the third by 1 again, "
            f"and so on by turns. Add all that up."
        )
        end = f"result = sum(digits[::2]) + {factor} * sum(digits[1::2])"
    else:
        words = (
            f"Multiply the last decimal digit by {factor}, the one before by {factor + 1}, the one "
            f"before that by {factor + 2}, and so on, and add all that up. "
            + (
                f"Take what is left (0 to {divisor - 1}) when {divisor} divides that."
                if level == 4
                else "Do the same with the number that this gives, as long as it has more than "
                f"one decimal digit, and no more than {divisor} times in all."
            )
        )
        end = f"""
weights = range({factor}, {factor} + len(digits))
result = sum(w * d for w, d in zip(weights, digits[::-1]))
"""
        if level == 4:
            end += f"result %= {divisor}"
        else:
            end = f"""
result = number
for turn in range({divisor}):
    if turn and result < 10:
        break
    digits = [int(digit) for digit in str(result)]
    weights = range({factor}, {factor} + len(digits))
    result = sum(w * d for w, d in zip(weights, digits[::-1]))
"""
    body = f"digits = [int(digit) for digit in str(number)]\n{end}"
    return Problem("check_digit", inputs, words, body, "number", _draw_large)


def _divisors(draw: Random, level: int) -> Problem:
    inputs = (Input("number", "number", "from 2 to 2000"),)

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        if draw.random() < 0.5:
            return (draw.randint(2, 20 + size * 30),)
        return (draw.randint(1, 12) * draw.choice((2, 4, 6, 8, 12, 30)),)

    if level <= 2:
        words = "List all numbers from 1 on that divide the number, itself too, the smallest first."
        body = "result = [d for d in range(1, number + 1) if number % d == 0]"
    elif level == 3:
        words = (
            "List the primes whose product is the number, the smallest first, each as often as it "
            "is in there: 12 is 2 times 2 times 3."
        )
        body = """
result, prime, rest = [], 2, number
while rest > 1:
    while rest % prime == 0:
        result.append(prime)
        rest //= prime
    prime += 1
"""
    else:
        count = draw.randint(3, 5)
        words = (
            f"List all numbers from 1 to the number that have exactly {count} divisors (1 and "
            "itself are two of them), the smallest first."
            if level == 4
            else "For every number from 1 to the number find how many of the numbers from 1 to "
            f"{count * 4} have no divisor with it in common but 1, and list these counts."
        )
        body = (
            f"""
result = []
for one in range(1, number + 1):
    if sum(one % d == 0 for d in range(1, one + 1)) == {count}:
        result.append(one)
"""
            if level == 4
            else f"""
result = []
for one in range(1, number + 1):
    count = 0
    for other in range(1, {count * 4 + 1}):
        a, b = one, other
        while b:
            a, b = b, a % b
        count += a == 1
    result.append(count)
"""
        )
        inputs = (Input("number", "number", "from 2 to 150"),)

        def small(draw: Random, size: int) -> tuple[Any, ...]:
            return (draw.randint(2, 20 + size * 10),)

        return Problem("divisors", inputs, words, body, "numbers", small)
    return Problem("divisors", inputs, words, body, "numbers", drawn)


def _sequence(draw: Random, level: int) -> Problem:
    divisor = draw.choice((2, 3))
    factor, added, bound = draw.randint(2, 5), draw.randint(1, 9), draw.choice((50, 64, 91, 100))
    inputs = (Input("start", "number", f"from 0 to {bound - 1}"),)

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        return (draw.randrange(bound),)

    if level <= 2:
        count = draw.randint(4, 8)
        words = (
            f"List {count} numbers: the first is `start`, and each other one is {factor} times the "
            f"one before plus {added}."
        )
        body = f"""
result = [start]
while len(result) < {count}:
    result.append({factor} * result[-1] + {added})
"""
        return Problem("sequence", inputs, words, body, "numbers", drawn)
    rule = (
        f"After a number that {divisor} divides comes its {'half' if divisor == 2 else 'third'}; "
        f"after any other one comes what is left (0 to {bound - 1}) when {bound} divides "
        f"{factor} times it plus {added}."
    )
    step = (
        f"number // {divisor} if number % {divisor} == 0 else ({factor} * number + {added}) "
        f"% {bound}"
    )
    if level == 3:
        count = draw.randint(6, 12)
        words = f"List {count} numbers, of which the first is `start`. {rule}"
        body = f"""
number, result = start, []
for _ in range({count}):
    result.append(number)
    number = {step}
"""
        return Problem("sequence", inputs, words, body, "numbers", drawn)
    words = f"Begin with `start`. {rule} Go on until a number comes that was there before. " + (
        "List all numbers before that one."
        if level == 4
        else "List those that come again and again from there on, as a round that begins with "
        "the number that came first of them."
    )
    end = "result = seen" if level == 4 else "result = seen[seen.index(number) :]"
    body = f"""
number, seen = start, []
while number not in seen:
    seen.append(number)
    number = {step}
{end}
"""
    return Problem("rounds", inputs, words, body, "numbers", drawn)


def _bases(draw: Random, level: int) -> Problem:
    base = draw.choice((2, 3, 5, 7))
    inputs = (Input("number", "number", "0 or more"),)

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        return (draw.randint(0, 5 + 10 ** (size // 3 + 1)),)

    if level <= 2:
        words = (
            f"List the digits of the number in base {base}, the most significant first; 0 has the "
            "one digit 0."
        )
        body = f"""
result = []
while number or not result:
    number, digit = divmod(number, {base})
    result.insert(0, digit)
"""
        return Problem("digits_in_base", inputs, words, body, "numbers", drawn)
    if level == 3:
        alphabet = "".join(draw.sample("abcdefghij", 6))
        words = (
            f"Write the number in base 6, with the letters {', '.join(alphabet)} for the digits 0 "
            "to 5, as a text, the most significant first; 0 is one letter."
        )
        body = f"""
result = ""
while number or not result:
    number, digit = divmod(number, 6)
    result = "{alphabet}"[digit] + result
"""
        return Problem("write_in_base", inputs, words, body, "text", drawn)
    values = draw.choice(((1000, 500, 100, 50, 10, 5, 1), (343, 140, 49, 20, 7, 3, 1)))
    names = draw.sample("qwertzpky", 7)
    signs = list(zip(values, names, strict=True))
    words = (
        "Write the number with these signs, as a text: "
        + ", ".join(f"{name} is {value}" for value, name in signs)
        + ". Take the largest sign that is not more than what is left, again and again, until "
        "nothing is left. 0 is the empty text."
    )
    written = "sign * count"
    if level >= 5:
        words += " A sign that is taken several times is written once, with how often before it."
        written = '(str(count) if count > 1 else "") + sign * (count > 0)'
    body = f"""
result = ""
for value, sign in {signs!r}:
    count, number = divmod(number, value)
    result += {written}
"""

    def small(draw: Random, size: int) -> tuple[Any, ...]:
        return (draw.randint(0, 20 + size * 60),)

    return Problem("write_signs", inputs, words, body, "text", small)


def _coins(draw: Random, level: int) -> Problem:
    coins = sorted(draw.sample(range(2, 12), 3))
    shown = f"{coins[0]}, {coins[1]} and {coins[2]}"
    inputs = (Input("amount", "number", "from 0 to 60"),)

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        return (draw.randint(0, 12 + size * 3),)

    if level <= 2:
        words = (
            f"There are coins of 1, {shown}. Pay the amount by taking, again and again, the "
            "largest coin that is not more than what is left. Count the coins."
        )
        body = f"""
result = 0
for coin in {[*coins[::-1], 1]}:
    result += amount // coin
    amount %= coin
"""
    elif level == 3:
        words = (
            f"There are coins of 1, {shown}. Find the least number of coins that make the amount."
        )
        body = f"""
least = [0]
for part in range(1, amount + 1):
    least.append(1 + min(least[part - coin] for coin in {[1, *coins]} if coin <= part))
result = least[amount]
"""
    elif level == 4:
        words = (
            f"There are coins of {shown}, as many of each as one likes. Count the ways to make the "
            "amount, in which the order of the coins does not matter; 0 is made in one way."
        )
        body = f"""
ways = [1] + [0] * amount
for coin in {coins}:
    for part in range(coin, amount + 1):
        ways[part] += ways[part - coin]
result = ways[amount]
"""
    else:
        words = (
            f"A stair has as many steps as the amount says. One goes up with jumps of {shown} "
            "steps, never with the same jump twice in a row, and must end exactly at the top. "
            "Count the ways; 0 steps are one way."
        )
        body = f"""
ways = [{{0: 1}}]
for part in range(1, amount + 1):
    now = {{}}
    for jump in {coins}:
        if jump <= part:
            now[jump] = sum(n for last, n in ways[part - jump].items() if last != jump)
    ways.append(now)
result = sum(ways[amount].values())
"""
    return Problem("coins", inputs, words, body, "number", drawn)


DIGITS: Final = Family("digits", _digits)
DIVISORS: Final = Family("divisors", _divisors)
SEQUENCE: Final = Family("sequence", _sequence)
BASES: Final = Family("bases", _bases)
COINS: Final = Family("coins", _coins)
