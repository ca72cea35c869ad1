"""Matrices: vectors, matrices of whole numbers, and games on grids."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_VECTORS = '''"""Vectors: lists of numbers."""


def dot(first, second):
    """Return the sum of the products of two vectors; ValueError for different lengths."""
    if len(first) != len(second):
        raise ValueError("the vectors have different lengths")
    return sum(one * other for one, other in zip(first, second))


def scaled(vector, number):
    """Return a vector with each entry times a number."""
    return [number * entry for entry in vector]


def added(first, second):
    """Return the sum of two vectors, the shorter one filled with zeros at its end."""
    length = max(len(first), len(second))
    one = first + [0] * (length - len(first))
    other = second + [0] * (length - len(second))
    return [left + right for left, right in zip(one, other)]


def rotated(vector, count):
    """Return a vector with its entries moved some places to the right, the last ones in front."""
    if not vector:
        return []
    count %= len(vector)
    return vector[len(vector) - count :] + vector[: len(vector) - count]


def longest_rise(vector):
    """Return the length of the longest stretch in which each entry is above the one before it."""
    best = length = 1 if vector else 0
    for before, entry in zip(vector, vector[1:]):
        length = length + 1 if entry > before else 1
        best = max(best, length)
    return best
'''

_MATRICES = '''"""Matrices: lists of rows of the same length."""

from .vectors import added, dot, longest_rise, rotated, scaled


def transposed(rows):
    """Return a matrix with rows and columns exchanged."""
    return [list(column) for column in zip(*rows)]


def product(first, second):
    """Return the product of two matrices."""
    columns = transposed(second)
    return [[dot(row, column) for column in columns] for row in first]


def power(rows, exponent):
    """Return a square matrix to the power of a whole number from 0 on."""
    size = len(rows)
    result = [[int(row == column) for column in range(size)] for row in range(size)]
    while exponent > 0:
        if exponent % 2 == 1:
            result = product(result, rows)
        rows = product(rows, rows)
        exponent //= 2
    return result


def determinant(rows):
    """Return the determinant of a square matrix, by its first row."""
    if len(rows) == 1:
        return rows[0][0]
    total = 0
    for column, entry in enumerate(rows[0]):
        rest = [row[:column] + row[column + 1 :] for row in rows[1:]]
        total += (-1) ** column * entry * determinant(rest)
    return total


def combine(rows, source, target, number):
    """Return a matrix in which a number times one row is added to another."""
    changed = [list(row) for row in rows]
    changed[target] = added(rows[target], scaled(rows[source], number))
    return changed


def spun(rows):
    """Return a matrix in which row 0 is moved 0 places to the right, row 1 one place and so on."""
    return [rotated(row, place) for place, row in enumerate(rows)]


def rises(rows):
    """Return the longest rise of each row."""
    return [longest_rise(row) for row in rows]
'''

_GRIDS = '''"""Uses of matrices."""

from .matrices import combine, determinant, power, product, rises, spun, transposed


def fibonacci(number):
    """Return the Fibonacci number of an index from 0 on: 0, 1, 1, 2, 3 and so on."""
    return power([[1, 1], [1, 0]], number)[0][1]


def num_walks(links, start, end, length):
    """Return in how many ways one walks from start to end by so many links, rows of 0 and 1."""
    return power(links, length)[start][end]


def is_regular(rows):
    """Return True if a square matrix has an inverse."""
    return determinant(rows) != 0


def steepest(heights):
    """Return the longest rise in a grid of heights, along rows or down columns."""
    return max(rises(heights) + rises(transposed(heights)))


def diagonal_sums(rows):
    """Return the sums of the columns once each row has been moved by its place to the right."""
    return [sum(column) for column in transposed(spun(rows))]


def cleared(rows):
    """Return a matrix of 1 at its top left and whole numbers, with zeros below that 1."""
    for row in range(1, len(rows)):
        rows = combine(rows, 0, row, -rows[row][0])
    return rows


def mixed(prices, orders):
    """Return what each order costs at each shop; prices has a row a shop, orders a row an order."""
    return transposed(product(prices, transposed(orders)))
'''


def _vector(draw: random.Random, length: int) -> list[int]:
    return [draw.randint(-4, 6) for _ in range(length)]


def _probes(draw: random.Random) -> list[Probe]:
    size = draw.randint(2, 3)
    square = [_vector(draw, size) for _ in range(size)]
    width = draw.randint(1, 3)
    other = [_vector(draw, width) for _ in range(size)]
    grid = [_vector(draw, 4) for _ in range(draw.randint(1, 4))]
    links = [[draw.randint(0, 1) for _ in range(3)] for _ in range(3)]
    vector = _vector(draw, draw.randint(0, 6))
    one = [[1, *_vector(draw, 2)], *(_vector(draw, 3) for _ in range(2))]
    return [
        probe(2, f"dot({_vector(draw, 3)}, {_vector(draw, draw.choice((3, 3, 2)))})"),
        probe(2, f"scaled({vector}, {draw.randint(-3, 3)})"),
        probe(2, f"added({vector}, {_vector(draw, draw.randint(0, 5))})"),
        probe(2, f"rotated({vector}, {draw.randint(-7, 9)})"),
        probe(2, f"longest_rise({vector})"),
        probe(2, f"longest_rise({draw.choice(([1, 2, 2, 3], [], [3, 2], [1, 2, 3]))})"),
        probe(1, f"transposed({grid})"),
        probe(1, f"product({square}, {other})"),
        probe(1, f"power({square}, {draw.randint(0, 5)})"),
        probe(1, f"determinant({draw.choice((square, square, [[7]], one))})"),
        probe(1, f"combine({square}, {draw.randint(0, 1)}, 1, {draw.randint(-3, 3)})"),
        probe(1, f"spun({grid})"),
        probe(1, f"rises({grid})"),
        probe(0, f"fibonacci({draw.randint(0, 30)})"),
        probe(
            0,
            f"num_walks({links}, {draw.randint(0, 2)}, {draw.randint(0, 2)}, {draw.randint(0, 5)})",
        ),
        probe(0, f"is_regular({draw.choice((square, [[2, 4], [1, 2]], one))})"),
        probe(0, f"steepest({grid})"),
        probe(0, f"diagonal_sums({grid})"),
        probe(0, f"cleared({one})"),
        probe(0, f"mixed({square}, {[_vector(draw, size) for _ in range(2)]})"),
    ]


KIND = Kind(
    "grids",
    (("grids", _GRIDS), ("matrices", _MATRICES), ("vectors", _VECTORS)),
    _probes,
    {
        "num_walks": ("count_walks", "walks_between"),
        "steepest": ("longest_climb", "best_climb"),
        "cleared": ("eliminated", "zeros_below"),
        "mixed": ("costs", "bills"),
        "combine": ("add_row", "row_added"),
        "spun": ("slanted", "skewed"),
        "scaled": ("stretched", "multiple"),
        "rotated": ("turned", "moved_right"),
        "longest_rise": ("longest_climb_in", "best_stretch"),
    },
)
