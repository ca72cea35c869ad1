"""Problems with dictionaries: accounts, votes, stock, marks."""

from random import Random
from typing import Any, Final

from fulmen.envs.code import drawing
from fulmen.envs.code.problem import Family, Input, Problem

_NAMES: Final = ("ann", "bob", "cid", "dora", "eve", "finn")


def _ledger(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        found = []
        for _ in range(size):
            name, other = draw.sample(_NAMES[:4], 2)
            amount = draw.randint(1, 20)
            if level >= 3 and draw.random() < 0.4:
                found.append(f"{name} gives {amount} to {other}")
            else:
                found.append(f"{name} {draw.choice(('gets', 'gets', 'spends'))} {amount}")
        return (found,)

    forms = "`NAME gets AMOUNT` or `NAME spends AMOUNT`"
    if level >= 3:
        forms = "`NAME gets AMOUNT`, `NAME spends AMOUNT` or `NAME gives AMOUNT to OTHER`"
    words = "Everybody begins with 0. Follow the lines, and find what everybody has in the end"
    refused = ""
    if level >= 4:
        words += "; who would have less than 0 after a line does not do what it says"
        refused = "\n    if change < 0 and result.get(name, 0) + change < 0:\n        continue"
    words += ": a dictionary by the names that "
    words += "have got, spent or given something" if level >= 4 else "are in the lines"
    words += (
        ", or been given something. A line that is not followed does not count."
        if level >= 4
        else "."
    )
    bonus = draw.randint(2, 4)
    if level >= 5:
        words += f" After every {bonus} lines that were followed, 1 is added to all that are in it."
    body = f"""
result, followed = {{}}, 0
for line in lines:
    name, verb, amount, *rest = line.split()
    change = int(amount) if verb == "gets" else -int(amount){refused}
    result[name] = result.get(name, 0) + change
    if verb == "gives":
        result[rest[1]] = result.get(rest[1], 0) + int(amount)
"""
    if level >= 5:
        body += f"""
    followed += 1
    if followed % {bonus} == 0:
        for one in result:
            result[one] += 1
""".lstrip("\n")
    else:
        body = body.replace("result, followed = {}, 0", "result = {}")
    inputs = (Input("lines", "lines", f"each is {forms}"),)
    return Problem("balances", inputs, words, body, "counts", drawn)


def _votes(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        names = _NAMES[: draw.randint(2, 5)]
        return ([draw.choice(names) for _ in range(size)],)

    inputs = (Input("votes", "words", "a name each"),)
    start = """
counts = {}
for name in votes:
    counts[name] = counts.get(name, 0) + 1
"""
    least = draw.randint(2, 3)
    if level <= 2:
        words = (
            "Count the votes for every name, and list the names, those with the most votes first "
            "and those with as many by the alphabet."
        )
        end, gives = "result = sorted(counts, key=lambda name: (-counts[name], name))", "words"
    elif level == 3:
        words = (
            f"Find the names that are voted for at least {least} times. List them in the order in "
            "which they came to that number of votes."
        )
        start = "counts, result = {}, []"
        end, gives = (
            f"""
for name in votes:
    counts[name] = counts.get(name, 0) + 1
    if counts[name] == {least}:
        result.append(name)
""",
            "words",
        )
    elif level == 4:
        words = (
            "Find who leads after each vote: the name with the most votes so far, and of several "
            "that have as many the one that led before, or the one just voted for if none of them "
            "did. List these names, one for each vote."
        )
        start = "counts, leader, result = {}, None, []"
        end, gives = (
            """
for name in votes:
    counts[name] = counts.get(name, 0) + 1
    if leader is None or counts[name] > counts[leader]:
        leader = name
    result.append(leader)
""",
            "words",
        )
    else:
        words = (
            f"Seats are given one after the other, {least + 2} in all: each to the name whose "
            f"votes, "
            "divided by one more than the seats it has, are the most; of several that are equal in "
            "that, to the first by the alphabet. List who has each seat, in the order in which "
            "they are given. Without votes there are no seats."
        )
        end, gives = (
            f"""
result = []
for _ in range({least + 2} if counts else 0):
    best = None
    for name in sorted(counts):
        share = (counts[name], result.count(name) + 1)
        if best is None or share[0] * best[1] > best[0] * share[1]:
            best, chosen = share, name
    result.append(chosen)
""",
            "words",
        )
    return Problem("count_votes", inputs, words, f"{start}\n{end}", gives, drawn)


def _stock(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        items = drawing.words(draw, size, "abcd", 2)
        return items, drawing.numbers(draw, size, -9, 20)

    inputs = (
        Input("items", "words"),
        Input("changes", "numbers", "as many as there are items; the first belongs to the first"),
    )
    start = "result = {}\nfor item, change in zip(items, changes):\n"
    if level <= 2:
        words = "Add up the changes of every item: a dictionary from items to sums."
        body = start + "    result[item] = result.get(item, 0) + change"
    elif level == 3:
        name, value = draw.choice((("largest", "max"), ("smallest", "min")))
        words = f"Find the {name} change of every item: a dictionary from items to that change."
        body = start + f"    result[item] = {value}(result.get(item, change), change)"
    else:
        most = draw.randint(15, 25)
        words = (
            f"Every item begins with 0. Follow the changes in their order, but what there is of an "
            f"item never falls below 0 and never rises above {most}: what is too much of a change "
            "is dropped. "
        )
        body = start + (f"    result[item] = min(max(result.get(item, 0) + change, 0), {most})")
        if level == 4:
            words += "Give a dictionary from items to what there is in the end."
        else:
            words += (
                "Give a dictionary from items to how much was dropped of their changes in "
                "all, without signs."
            )
            body = f"""
there, result = {{}}, {{}}
for item, change in zip(items, changes):
    wanted = there.get(item, 0) + change
    there[item] = min(max(wanted, 0), {most})
    result[item] = result.get(item, 0) + abs(wanted - there[item])
"""
    return Problem("keep_stock", inputs, words, body, "counts", drawn)


def _index(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        return (drawing.words(draw, size, "abc", 2),)

    inputs = (Input("words", "words", "small letters only"),)
    start = (
        "places = {}\nfor place, word in enumerate(words):\n    places.setdefault(word, "
        "[]).append(place)\n"
    )
    if level <= 2:
        which, end = draw.choice((("first", "[0]"), ("last", "[-1]")))
        words = (
            f"Find the {which} place of every word, counted from 0: a dictionary from "
            f"words to places."
        )
        body = start + f"result = {{word: found{end} for word, found in places.items()}}"
        gives = "counts"
    elif level == 3:
        words = (
            "For every word that occurs more than once find the distance from its first place to "
            "its last one: a dictionary from words to distances."
        )
        body = start + (
            "result = {word: found[-1] - found[0] for word, found in places.items() "
            "if len(found) > 1}"
        )
        gives = "counts"
    elif level == 4:
        words = (
            "For every word in the list find how many places before it the same word stands last; "
            "0 if it does not stand before it. List these distances."
        )
        body = """
last, result = {}, []
for place, word in enumerate(words):
    result.append(place - last.get(word, place))
    last[word] = place
"""
        gives = "numbers"
    else:
        size = draw.randint(2, 4)
        words = (
            f"A shelf has room for {size} words and is empty at first. Take the words one "
            f"after the "
            "other. A word that is on the shelf is a hit. A word that is not is put there; if "
            "there "
            "is no room, the word on the shelf that was taken longest ago goes first. List the "
            "places of the hits, counted from 0."
        )
        body = f"""
shelf, result = [], []
for place, word in enumerate(words):
    if word in shelf:
        result.append(place)
        shelf.remove(word)
    elif len(shelf) == {size}:
        shelf.pop(0)
    shelf.append(word)
"""
        gives = "numbers"
    return Problem("word_places", inputs, words, body, gives, drawn, is_free=True)


LEDGER: Final = Family("ledger", _ledger)
VOTES: Final = Family("votes", _votes)
STOCK: Final = Family("stock", _stock)
PLACES: Final = Family("places", _index)
