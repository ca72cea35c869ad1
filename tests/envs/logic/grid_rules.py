"""Rules of the puzzles on grids, written once more, from the words of the question alone.

A check reads the puzzle out of its question and says if a grid, as rows of texts, solves it. Slow
and plain, and of nothing that the package has.
"""

import re
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise, product
from math import prod

Rows = list[list[str]]


def paragraph(question: str, index: int) -> str:
    return question.split("\n\n")[index]


def field(question: str) -> Rows:
    return [line.split() for line in paragraph(question, 1).split("\n")]


def numbers_after(question: str, words: str) -> list[int]:
    found = re.search(rf"^{words}: ([\d ]+)$", question, re.MULTILINE)
    assert found is not None
    return [int(word) for word in found[1].split()]


def fits(rows: Rows, given: Rows, hidden: str, allowed: set[str]) -> bool:
    """The size is right, the given cells are as they were, and the others are what they may be."""
    return [len(row) for row in rows] == [len(row) for row in given] and all(
        cell in allowed if was == hidden else cell == was
        for row, given_row in zip(rows, given, strict=True)
        for cell, was in zip(row, given_row, strict=True)
    )


def digits(size: int) -> set[str]:
    return {str(number) for number in range(1, size + 1)}


def lines(rows: Rows) -> Rows:
    return [*rows, *(list(column) for column in zip(*rows, strict=True))]


def is_full_latin(rows: Rows) -> bool:
    return all(sorted(line, key=int) == sorted(digits(len(rows)), key=int) for line in lines(rows))


def neighbours(row: int, column: int, rows: Rows, diagonal: bool) -> list[tuple[int, int]]:
    steps = [(-1, 0), (1, 0), (0, -1), (0, 1)]
    if diagonal:
        steps += [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    return [
        (row + a, column + b)
        for a, b in steps
        if row + a in range(len(rows)) and column + b in range(len(rows[0]))
    ]


def places(rows: Rows, symbol: str) -> list[tuple[int, int]]:
    return [(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if cell == symbol]


def sudoku(question: str, rows: Rows) -> bool:
    given = field(question)
    found = re.search(r"blocks of (\d) rows and (\d) columns", question)
    assert found is not None
    height, width = int(found[1]), int(found[2])
    if not (fits(rows, given, ".", digits(len(given))) and is_full_latin(rows)):
        return False
    boxes: dict[tuple[int, int], set[str]] = {}
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            boxes.setdefault((r // height, c // width), set()).add(cell)
    return all(box == digits(len(given)) for box in boxes.values())


def futoshiki(question: str, rows: Rows) -> bool:
    given = field(question)
    if not (fits(rows, given, ".", digits(len(given))) and is_full_latin(rows)):
        return False
    signs = re.findall(r"^\((\d),(\d)\) < \((\d),(\d)\)$", question, re.MULTILINE)
    assert signs
    return all(
        int(rows[int(a) - 1][int(b) - 1]) < int(rows[int(c) - 1][int(d) - 1])
        for a, b, c, d in signs
    )


def calcudoko(question: str, rows: Rows) -> bool:
    letters = field(question)
    if not fits(rows, [["."] * len(letters)] * len(letters), ".", digits(len(letters))):
        return False
    if not is_full_latin(rows):
        return False
    values = re.findall(r"^(\w): (\d+)([-+*/]?)$", question, re.MULTILINE)
    assert {value[0] for value in values} == {letter for row in letters for letter in row}
    for letter, value, sign in values:
        cage = sorted(int(rows[r][c]) for r, c in places(letters, letter))
        assert sign or len(cage) == 1
        assert sign not in ("-", "/") or (sign and len(cage) == 2)
        results = {
            "": cage[0],
            "+": sum(cage),
            "*": prod(cage),
            "-": cage[-1] - cage[0],
            "/": cage[-1] / cage[0],
        }
        if results[sign] != int(value):
            return False
    return True


def skyscraper_puzzle(question: str, rows: Rows) -> bool:
    given = field(question)
    if not (fits(rows, given, ".", digits(len(given))) and is_full_latin(rows)):
        return False

    def seen(line: list[str]) -> int:
        return sum(all(int(b) < int(cell) for b in line[:i]) for i, cell in enumerate(line))

    turned = [list(column) for column in zip(*rows, strict=True)]
    return (
        numbers_after(question, "from the left, row by row") == [seen(row) for row in rows]
        and numbers_after(question, "from the right, row by row")
        == [seen(row[::-1]) for row in rows]
        and numbers_after(question, "from the top, column by column") == [*map(seen, turned)]
        and numbers_after(question, "from the bottom, column by column")
        == [seen(column[::-1]) for column in turned]
    )


def kukurasu(question: str, rows: Rows) -> bool:
    row_sums = numbers_after(question, "rows, from the top")
    column_sums = numbers_after(question, "columns, from the left")
    if not fits(rows, [["."] * len(row_sums)] * len(row_sums), ".", {"0", "1"}):
        return False
    ones = places(rows, "1")
    return all(
        sum(c + 1 for r, c in ones if r == i) == row_sums[i]
        and sum(r + 1 for r, c in ones if c == i) == column_sums[i]
        for i in range(len(rows))
    )


def survo(question: str, rows: Rows) -> bool:
    given = field(question)
    every = digits(len(given) * len(given[0]))
    if not fits(rows, given, ".", every) or {cell for row in rows for cell in row} != every:
        return False
    sums = numbers_after(question, "sums of the rows, from the top")
    sums += numbers_after(question, "sums of the columns, from the left")
    return [sum(map(int, line)) for line in lines(rows)] == sums


def numbrix(question: str, rows: Rows) -> bool:
    given = field(question)
    every = digits(len(given) ** 2)
    if not fits(rows, given, ".", every) or {cell for row in rows for cell in row} != every:
        return False
    where = [places(rows, str(number))[0] for number in range(1, len(every) + 1)]
    return all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in pairwise(where))


def minesweeper(question: str, rows: Rows) -> bool:
    given = field(question)
    found = re.search(r"There are (\d+) mines", question)
    assert found is not None
    if not fits(rows, given, "?", {"*", "."}) or len(places(rows, "*")) != int(found[1]):
        return False
    return all(
        sum(rows[a][b] == "*" for a, b in neighbours(r, c, rows, diagonal=True)) == int(cell)
        for r, row in enumerate(rows)
        for c, cell in enumerate(row)
        if cell.isdigit()
    )


def star_placement_puzzle(question: str, rows: Rows) -> bool:
    letters = field(question)
    if not fits(rows, [["?"] * len(letters)] * len(letters), "?", {"*", "."}):
        return False
    found = re.search(r"there (?:is|are) exactly (\d) star", question)
    assert found is not None
    num_each = int(found[1])
    given = re.search(r"^Given stars, .*: (.*)\. They stay", question, re.MULTILINE)
    for pair in re.findall(r"\((\d+),(\d+)\)", given[1] if given else ""):
        if rows[int(pair[0]) - 1][int(pair[1]) - 1] != "*":
            return False
    stars = places(rows, "*")
    if any(max(abs(a - c), abs(b - d)) < 2 for (a, b), (c, d) in combinations(stars, 2)):
        return False
    return all(line.count("*") == num_each for line in lines(rows)) and all(
        sum(rows[r][c] == "*" for r, c in places(letters, letter)) == num_each
        for letter in {letter for row in letters for letter in row}
    )


def norinori(question: str, rows: Rows) -> bool:
    letters = field(question)
    if not fits(rows, [["?"] * len(letters[0])] * len(letters), "?", {"#", "."}):
        return False
    black = places(rows, "#")
    if any(sum(abs(a - c) + abs(b - d) == 1 for c, d in black) != 1 for a, b in black):
        return False
    return all(
        sum(rows[r][c] == "#" for r, c in places(letters, letter)) == 2
        for letter in {letter for row in letters for letter in row}
    )


def number_wall(question: str, rows: Rows) -> bool:
    given = field(question)
    if not fits(rows, given, "?", {"#", "."}):
        return False
    for r, c in product(range(len(rows) - 1), repeat=2):
        if rows[r][c] == rows[r][c + 1] == rows[r + 1][c] == rows[r + 1][c + 1] == "#":
            return False

    def island(place: tuple[int, int]) -> frozenset[tuple[int, int]]:
        reached, before = {place}, set[tuple[int, int]]()
        while reached != before:
            before = reached
            near = {n for r, c in reached for n in neighbours(r, c, rows, diagonal=False)}
            reached = reached | {(r, c) for r, c in near if rows[r][c] != "#"}
        return frozenset(reached)

    every = product(range(len(rows)), repeat=2)
    return all(
        [rows[r][c] for r, c in found if rows[r][c] != "."] == [str(len(found))]
        for found in {island((r, c)) for r, c in every if rows[r][c] != "#"}
    )


ARROWS = {
    "↑": (-1, 0), "↓": (1, 0), "←": (0, -1), "→": (0, 1),
    "↖": (-1, -1), "↗": (-1, 1), "↙": (1, -1), "↘": (1, 1),
}  # fmt: skip


def arrows_of(question: str) -> set[str]:
    found = re.search(r"one of the arrows ([^a-z]*) in place", question)
    assert found is not None
    return set(found[1].split())


def arrow_maze(question: str, rows: Rows) -> bool:
    given = field(question)
    if not fits(rows, given, ".", arrows_of(question)):
        return False
    counts = {
        (r, c): 0 for r, row in enumerate(rows) for c, cell in enumerate(row) if cell.isdigit()
    }
    for arrow, (step, shift) in ARROWS.items():
        for r, c in places(rows, arrow):
            # Back along the line, up to the number where it begins.
            while (r, c) not in counts:
                r, c = r - step, c - shift
                if r not in range(len(rows)) or c not in range(len(rows[0])):
                    return False
                if (r, c) not in counts and rows[r][c] != arrow:
                    return False
            counts[r, c] += 1
    return all(rows[r][c] == str(count) for (r, c), count in counts.items())


CHECKS: dict[str, Callable[[str, Rows], bool]] = {
    check.__name__: check
    for check in (
        arrow_maze,
        calcudoko,
        futoshiki,
        kukurasu,
        minesweeper,
        norinori,
        number_wall,
        numbrix,
        skyscraper_puzzle,
        star_placement_puzzle,
        sudoku,
        survo,
    )
}


def symbols(name: str, question: str, answer: Rows) -> list[str]:
    """Texts that may stand in a cell that is not given."""
    if name == "arrow_maze":
        return sorted(arrows_of(question))
    if name in ("minesweeper", "star_placement_puzzle"):
        return ["*", "."]
    if name in ("norinori", "number_wall"):
        return ["#", "."]
    if name == "kukurasu":
        return ["0", "1"]
    num = len(answer) * len(answer[0]) if name in ("survo", "numbrix") else len(answer)
    return sorted(digits(num), key=int)


def candidates(name: str, question: str, answer: Rows) -> Iterator[Rows]:
    """Grids of a small puzzle, among which are all that solve it."""
    size = len(answer)
    if name == "calcudoko":
        rows = [list(row) for row in product(digits(size), repeat=size) if len({*row}) == size]
        yield from ([*grid] for grid in product(rows, repeat=size))
    elif name == "star_placement_puzzle":
        rows = [["*" if i == j else "." for j in range(size)] for i in range(size)]
        yield from ([*grid] for grid in product(rows, repeat=size))
    elif name == "norinori":
        width, num = len(answer[0]), len({letter for row in field(question) for letter in row})
        cells = list(product(range(size), range(width)))
        pairs = [
            (a, b) for a, b in combinations(cells, 2) if abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1
        ]
        for dominoes in combinations(pairs, num):
            black = {cell for pair in dominoes for cell in pair}
            if len(black) == 2 * num:
                yield [["#" if (r, c) in black else "." for c in range(width)] for r in range(size)]
    else:
        hidden = "?" if name in ("minesweeper", "number_wall") else "."
        given = [["."] * size] * size if name == "kukurasu" else field(question)
        every = symbols(name, question, answer)
        width = len(answer[0])
        choices = [every if cell == hidden else [cell] for row in given for cell in row]
        for filled in product(*choices):
            yield [[*filled[i : i + width]] for i in range(0, len(filled), width)]
