"""Problems in which something happens step by step: robots, queues, machines, cells, circles."""

from random import Random
from typing import Any, Final

from fulmen.envs.code import drawing
from fulmen.envs.code.problem import Family, Input, Problem


def _robot(draw: Random, level: int) -> Problem:
    moves = "NESW" if level <= 2 else "FLR"

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        letters = moves if level <= 2 else "FFFLR"
        return ("".join(draw.choice(letters) for _ in range(2 * size)),)

    side = draw.randint(2, 4)
    if level <= 2:
        intro = (
            "A robot begins at x = 0 and y = 0. N adds 1 to y, S takes 1 from it, E adds 1 to x, W "
            "takes 1 from it. "
        )
        body = """
x = y = 0
seen = [(0, 0)]
for move in moves:
    x += (move == "E") - (move == "W")
    y += (move == "N") - (move == "S")
    seen.append((x, y))
"""
    else:
        intro = (
            "A robot begins at x = 0 and y = 0 and looks toward larger y. F is one step in the "
            "direction in which it looks; L turns it to the left, R to the right, on the spot. "
            "With "
            "larger y in front, larger x is to the right. "
        )
        wall = ""
        if level >= 4:
            intro += (
                f"Nothing with an x or y below 0 or above {side} can be entered: a step there "
                f"is not "
                "made. "
            )
            wall = f"""
        if not (0 <= x + dx <= {side} and 0 <= y + dy <= {side}):
            continue"""
        if level >= 5:
            intro += "Of a step that is not made it turns to the right. "
            wall = wall.replace(
                "            continue", "            dx, dy = dy, -dx\n            continue"
            )
        body = f"""
x, y, dx, dy = 0, 0, 0, 1
seen = [(0, 0)]
for move in moves:
    if move == "L":
        dx, dy = -dy, dx
    elif move == "R":
        dx, dy = dy, -dx
    else:{wall}
        x, y = x + dx, y + dy
        seen.append((x, y))
"""
    words, end, gives = draw.choice(
        (
            ("List its x and its y in the end.", "result = [x, y]", "numbers"),
            (
                "Count the different places at which it is, the first one too.",
                "result = len(set(seen))",
                "number",
            ),
            (
                "List the sum of x and y at the beginning and after each step that it makes.",
                "result = [a + b for a, b in seen]",
                "numbers",
            ),
        )
    )
    inputs = (Input("moves", "text", f"only the letters {', '.join(moves)}"),)
    return Problem("move_robot", inputs, intro + words, body + end, gives, drawn)


def _queue(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        return (drawing.numbers(draw, size, 1, 12),)

    inputs: tuple[Input, ...] = (
        Input("minutes", "numbers", "minutes that each customer takes, from 1 to 12"),
    )
    turn, desks = draw.randint(2, 5), draw.randint(2, 3)
    if level <= 2:
        words = (
            "Customers are served one after the other, in the order of the list, the first at "
            "minute 0. List at which minute each is done."
        )
        body = """
now, result = 0, []
for need in minutes:
    now += need
    result.append(now)
"""
    elif level == 3:
        words = (
            f"Customers are served in turns, in the order of the list, from minute 0 on. A turn is "
            f"{turn} minutes, or less if less is left; who is not done then goes to the end of the "
            "queue. List the numbers of the customers, counted from 0, in the order in which they "
            "are done."
        )
        body = f"""
queue, result = list(enumerate(minutes)), []
while queue:
    customer, need = queue.pop(0)
    if need > {turn}:
        queue.append((customer, need - {turn}))
    else:
        result.append(customer)
"""
    elif level == 4:
        words = (
            f"There are {desks} desks, free at minute 0. Customers are served in the order of the "
            "list; each goes to the desk that is free first, and of several to the first of them. "
            "For each customer find the minute at which the customer is done, and list these."
        )
        body = f"""
free, result = [0] * {desks}, []
for need in minutes:
    desk = free.index(min(free))
    free[desk] += need
    result.append(free[desk])
"""
    else:
        inputs = (
            Input(
                "arrivals",
                "numbers",
                "minute at which each customer comes, never earlier than the one before",
            ),
            Input("minutes", "numbers", "minutes that each of them takes, from 1 to 12"),
        )
        words = (
            "One customer is served after the other. When the desk is free, it takes, of all who "
            "have come by then, the one who takes the fewest minutes, and of several the one who "
            "came first by the list; if nobody is there, it waits for the next to come. Nobody is "
            "sent away before being done. List the numbers of the customers, counted from 0, in "
            "the order in which they are served."
        )

        def drawn_with_arrivals(draw: Random, size: int) -> tuple[Any, ...]:
            arrivals = sorted(draw.randint(0, 4 * size) for _ in range(size))
            return arrivals, drawing.numbers(draw, size, 1, 12)

        body = """
now, result = 0, []
left = list(range(len(arrivals)))
while left:
    now = max(now, min(arrivals[customer] for customer in left))
    there = [customer for customer in left if arrivals[customer] <= now]
    chosen = min(there, key=lambda customer: (minutes[customer], customer))
    now += minutes[chosen]
    result.append(chosen)
    left.remove(chosen)
"""
        return Problem("serve", inputs, words, body, "numbers", drawn_with_arrivals)
    return Problem("serve", inputs, words, body, "numbers", drawn)


def _machine(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        found = []
        words = ["add", "sub", "swap", "drop"] + ["dup", "mul"] * (level >= 3)
        for _ in range(size):
            if draw.random() < 0.5:
                found.append(f"push {draw.randint(-9, 20)}")
            elif level >= 5 and draw.random() < 0.3:
                found.append(f"skip {draw.randint(1, 2)}")
            else:
                found.append(draw.choice(words))
        return (found,)

    known = {
        "push": "`push N` puts the number N on top",
        "drop": "`drop` takes the top number away",
        "add": "`add` replaces the two top numbers by their sum",
        "sub": "`sub` replaces the two top numbers by the lower one minus the top one",
        "swap": "`swap` swaps the two top numbers",
    }
    if level >= 3:
        known["dup"] = "`dup` puts the top number on top once more"
        known["mul"] = "`mul` replaces the two top numbers by their product"
    if level >= 5:
        known["skip"] = (
            "`skip N` leaves out the N commands after it, if the top number is below 0, which it "
            "leaves there"
        )
    words = (
        f"A machine has a pile of numbers, empty at first. {'; '.join(known.values())}. "
        "A command for which there are too few numbers does nothing. "
    )
    body = """
pile, place = [], 0
while place < len(commands):
    name, *rest = commands[place].split()
    place += 1
    if name == "push":
        pile.append(int(rest[0]))
    elif name == "skip":
        if pile and pile[-1] < 0:
            place += int(rest[0])
    elif name in ("drop", "dup"):
        if pile:
            top = pile.pop()
            pile += [top, top] if name == "dup" else []
    elif len(pile) >= 2:
        top, low = pile.pop(), pile.pop()
        results = {"add": [low + top], "sub": [low - top], "mul": [low * top], "swap": [top, low]}
        pile += results[name]
"""
    if level < 5:
        body = body.replace(
            """\
    elif name == "skip":
        if pile and pile[-1] < 0:
            place += int(rest[0])
""",
            "",
        )
    if level == 4:
        words += "List the number on top after each command, or 0 if there is none."
        body = body.replace("pile, place = [], 0", "pile, place, result = [], 0, []")
        body += "    result.append(pile[-1] if pile else 0)\n"
    else:
        words += "List the numbers in the end, from the bottom to the top."
        body += "result = pile"
    inputs = (Input("commands", "lines"),)
    return Problem("run_commands", inputs, words, body, "numbers", drawn)


def _cells(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        cells = "".join(draw.choice(".#") for _ in range(size + 2))
        return (cells,) if level <= 2 else (cells, draw.randint(1, 6))

    inputs: tuple[Input, ...] = (
        Input("cells", "text", "# is a cell that lives, . one that does not"),
    )
    if level >= 3:
        inputs = (*inputs, Input("rounds", "number", "1 or more"))
    around = "end" if level <= 3 else "ring"
    born, lives = draw.choice(
        ((1, (0,)), (1, (1,)), (1, (1, 2)), (2, (1,)), (1, (0, 2)), (2, (0, 2)))
    )
    kept = " or ".join(map(str, lives))
    words = (
        f"In each round all cells change at once: a cell that lives goes on if {kept} of its two "
        f"neighbours live, and dies otherwise; one that does not live begins to if exactly {born} "
        "of its neighbours live. "
    )
    words += (
        "Beyond both ends nothing lives. "
        if around == "end"
        else "The cells are a ring: the first and the last are neighbours. "
    )
    if level >= 5:
        words += (
            "In every second round (the second, the fourth, and so on) cells do not count "
            "their two "
            "neighbours, but the two cells next to these. "
        )
    words += f"Give the cells after {'one round' if level <= 2 else '`rounds` rounds'}, as a text."
    far = "far" if level >= 5 else "1"
    sides = f"(cells[(place + {far}) % len(cells)], cells[(place - {far}) % len(cells)])"
    if around == "end":
        sides = '(cells[place + 1 : place + 2], cells[place - 1 : place] if place else "")'
    body = f"""
for number in range({"1" if level <= 2 else "rounds"}):
    far = 1 + number % 2
    after = ""
    for place, cell in enumerate(cells):
        sides = {sides}
        count = sides.count("#")
        after += "#" if count in ({lives!r} if cell == "#" else ({born},)) else "."
    cells = after
result = cells
"""
    if level < 5:
        body = body.replace("    far = 1 + number % 2\n", "").replace("for number in", "for _ in")
    return Problem("run_cells", inputs, words, body, "text", drawn)


def _circle(draw: Random, level: int) -> Problem:
    step = draw.randint(2, 5)

    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        return (draw.randint(1, 3 + 2 * size),)

    inputs: tuple[Input, ...] = (Input("count", "number", "1 or more"),)
    intro = (
        "People with the numbers from 1 to `count` stand in a circle, in this order. Counting "
        "begins "
        "at person 1, "
    )
    if level <= 3:
        words = intro + (
            f"and every person at {step} goes away; counting goes on at the next one with 1. "
        )
        if level <= 2:
            words += "List the people in the order in which they go."
            gives, end = "numbers", "result = gone"
        else:
            stay = draw.randint(1, 2)
            words += (
                "The last one stays. Find this number."
                if stay == 1
                else "The last two stay. List the two, the smaller number first; of one person "
                "alone that one."
            )
            gives, end = (
                ("number", "result = gone[-1]")
                if stay == 1
                else ("numbers", "result = sorted(gone[-2:])")
            )
        move = f"{step} - 1"
    elif level == 4:
        words = intro + (
            f"and the person at {step} goes away; then counting begins at the next one, the person "
            f"at {step + 1} goes away, then the one at {step + 2}, and so on. List the people "
            f"in the "
            "order in which they go."
        )
        gives, end, move = "numbers", "result = gone", f"{step} - 1 + len(gone)"
    else:
        words = intro + (
            f"and the person at {step} goes away; then counting begins at the next one, and "
            f"goes up "
            "to the last decimal digit of the number of the person who has just gone, or to "
            f"{step} if that digit is 0; the person there goes away, and so on. List the people in "
            "the order in which they go."
        )
        gives, end = "numbers", "result = gone"
        move = f"((gone[-1] % 10 if gone else 0) or {step}) - 1"
    body = f"""
people, gone, place = list(range(1, count + 1)), [], 0
while people:
    place = (place + {move}) % len(people)
    gone.append(people.pop(place))
{end}
"""
    return Problem("count_out", inputs, words, body, gives, drawn)


def _tables(draw: Random, level: int) -> Problem:
    def drawn(draw: Random, size: int) -> tuple[Any, ...]:
        width = draw.randint(1, 2 + size // 3)
        return ([drawing.numbers(draw, width, -9, 20) for _ in range(1 + size // 3)],)

    inputs = (Input("table", "rows", "rows of a table, one or more, all with as many numbers"),)
    if level <= 2:
        words, body, gives = draw.choice(
            (
                (
                    "List the sums of its columns, from left to right.",
                    "result = [sum(column) for column in zip(*table)]",
                    "numbers",
                ),
                (
                    "Turn the table a quarter to the right: its first column, read from the bottom "
                    "to the top, is the first row then.",
                    "result = [list(column)[::-1] for column in zip(*table)]",
                    "rows",
                ),
                (
                    "Swap rows and columns: the first column is the first row then.",
                    "result = [list(column) for column in zip(*table)]",
                    "rows",
                ),
            )
        )
    elif level == 3:
        words = (
            "List the numbers that are larger than all others in their row and in their "
            "column, row "
            "by row."
        )
        body = """
result = []
for y, row in enumerate(table):
    for x, number in enumerate(row):
        others = row[:x] + row[x + 1 :] + [other[x] for other in table[:y] + table[y + 1 :]]
        if all(number > other for other in others):
            result.append(number)
"""
        gives = "numbers"
    elif level == 4:
        words = (
            "List its numbers along a spiral: the first row from left to right, then down the last "
            "column, back along the last row, up the first column, and so on inward."
        )
        body = """
rows, result = [row[:] for row in table], []
while rows:
    result += rows.pop(0)
    rows = [list(column) for column in zip(*rows)][::-1]
"""
        gives = "numbers"
    else:
        words = (
            "A way begins in the first row, goes down a row with each step, straight or one column "
            "to the left or right, and ends in the last row. For every number of the last row find "
            "the largest sum that the numbers of a way to it can have, it and the first included. "
            "List these sums."
        )
        body = """
result = table[0]
for row in table[1:]:
    result = [number + max(result[max(x - 1, 0) : x + 2]) for x, number in enumerate(row)]
"""
        gives = "numbers"
    return Problem("read_table", inputs, words, body, gives, drawn)


ROBOT: Final = Family("robot", _robot)
QUEUE: Final = Family("queue", _queue)
MACHINE: Final = Family("machine", _machine)
CELLS: Final = Family("cells", _cells)
CIRCLE: Final = Family("circle", _circle)
TABLES: Final = Family("tables", _tables)
