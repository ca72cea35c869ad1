"""Tables of text: fields with quotes, records, and queries."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_FIELDS = '''"""Fields of a line, with commas between them and quotes around some."""


def split_line(line):
    """Return the fields of a line. In "quotes" a comma is text, and two quotes are one.

    ValueError if a quote is never closed.
    """
    fields, field, inside, place = [], "", False, 0
    while place < len(line):
        char = line[place]
        if inside and line[place : place + 2] == '""':
            field += '"'
            place += 1
        elif char == '"':
            inside = not inside
        elif char == "," and not inside:
            fields.append(field)
            field = ""
        else:
            field += char
        place += 1
    if inside:
        raise ValueError("a quote is not closed")
    return [*fields, field]


def quote(field):
    """Return a field as a line has it, in quotes if it has a comma or a quote in it."""
    if "," in field or '"' in field:
        return '"' + field.replace('"', '""') + '"'
    return field


def guess(field):
    """Return the whole number, None for an empty field, or else the text that a field is."""
    field = field.strip()
    if not field:
        return None
    digits = field[1:] if field.startswith("-") else field
    return int(field) if digits.isdigit() else field


def unique(names):
    """Return names in which each one that came before has _2, _3 and so on behind it."""
    seen, found = {}, []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found
'''

_ROWS = '''"""Rows of a table, read from lines of which the first has the names."""

from .fields import guess, quote, split_line, unique


def read_rows(lines):
    """Return a dict for each line after the first; empty lines are passed over.

    ValueError for a line with another number of fields than the first.
    """
    names = unique([name.strip() for name in split_line(lines[0])])
    rows = []
    for line in lines[1:]:
        if not line.strip():
            continue
        fields = split_line(line)
        if len(fields) != len(names):
            raise ValueError("a line has another number of fields")
        rows.append({name: guess(field) for name, field in zip(names, fields)})
    return rows


def write_rows(rows):
    """Return the lines of rows, which all have the same names; None is an empty field."""
    if not rows:
        return []
    lines = [",".join(quote(name) for name in rows[0])]
    for row in rows:
        texts = ["" if value is None else str(value) for value in row.values()]
        lines.append(",".join(quote(text) for text in texts))
    return lines


def sort_rows(rows, name):
    """Return rows in the order of a column of numbers, the largest last and None first."""
    return sorted(rows, key=lambda row: (row[name] is not None, row[name] or 0))


def column_of(rows, name):
    """Return the values of a column that are not None."""
    return [row[name] for row in rows if row[name] is not None]
'''

_QUERIES = '''"""Questions to a table, given as lines."""

from .rows import column_of, read_rows, sort_rows, write_rows


def total(lines, name):
    """Return the sum of a column of numbers."""
    return sum(column_of(read_rows(lines), name))


def average(lines, name):
    """Return the mean of a column of numbers, rounded down; None if it is empty."""
    values = column_of(read_rows(lines), name)
    return sum(values) // len(values) if values else None


def group_sums(lines, key, name):
    """Return the sum of a column for each value of another one, in the order they first come."""
    sums = {}
    for row in read_rows(lines):
        if row[name] is not None:
            sums[row[key]] = sums.get(row[key], 0) + row[name]
    return sums


def largest(lines, name, count):
    """Return the lines, with names, of so many rows with the largest numbers in a column.

    The largest comes first.
    """
    rows = sort_rows(read_rows(lines), name)[::-1]
    return write_rows(rows[:count])


def where(lines, name, low, high):
    """Return the lines, with names, of the rows whose number is from low to high, both included."""
    rows = [
        row
        for row in read_rows(lines)
        if row[name] is not None and low <= row[name] <= high
    ]
    return write_rows(rows)


def missing(lines):
    """Return how many fields of each column are empty, for columns that have such fields."""
    counts = {}
    for row in read_rows(lines):
        for name, value in row.items():
            if value is None:
                counts[name] = counts.get(name, 0) + 1
    return counts
'''

_CITIES = ("Rome", "Oslo", "Bonn, old", 'the "Hook"', "", "Lima", "Rome", "Oslo")


def _field(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


def _lines(draw: random.Random) -> list[str]:
    lines = [draw.choice(("city,price,stock", "city, price ,stock"))]
    for _ in range(draw.randint(2, 6)):
        price = draw.choice(("", str(draw.randint(-20, 99)), str(draw.randint(1, 99))))
        lines.append(f"{_field(draw.choice(_CITIES))},{price},{draw.randint(0, 9)}")
        if draw.random() < 0.15:
            lines.append("")
    return lines


def _probes(draw: random.Random) -> list[Probe]:
    lines = _lines(draw)
    rows = [
        {"a": draw.choice((None, draw.randint(-9, 9))), "b": draw.choice(_CITIES)} for _ in "xyz"
    ]
    names = [draw.choice(("a", "a", "b")) for _ in range(4)]
    line = ",".join(_field(draw.choice(_CITIES)) for _ in range(3))
    return [
        probe(2, f"split_line({line!r})"),
        probe(2, f"split_line({draw.choice((',', 'a,b,', '', 'x,' + chr(34)))!r})"),
        probe(2, f"quote({draw.choice(_CITIES)!r})"),
        probe(2, f"guess({draw.choice(('', ' ', '12', '-3', ' 7 ', '1.5', '-', 'x1', '0'))!r})"),
        probe(2, f"unique({names})"),
        probe(1, f"read_rows({lines})"),
        probe(1, f"read_rows({[*lines, draw.choice(('1', '1,2,3,4', ',,'))]})"),
        probe(1, f"read_rows({['a,a,b', '1,2,3']})"),
        probe(1, f"write_rows({draw.choice((rows, rows, []))})"),
        probe(1, f"sort_rows({rows}, 'a')"),
        probe(1, f"column_of({rows}, 'a')"),
        probe(0, f"total({lines}, {draw.choice(('price', 'stock'))!r})"),
        probe(0, f"average({lines}, 'price')"),
        probe(0, f"group_sums({lines}, 'city', {draw.choice(('price', 'stock'))!r})"),
        probe(0, f"largest({lines}, 'price', {draw.randint(1, 4)})"),
        probe(0, f"where({lines}, 'stock', {draw.randint(0, 4)}, {draw.randint(4, 9)})"),
        probe(0, f"where({lines}, 'price', {draw.randint(-20, 4)}, {draw.randint(4, 90)})"),
        probe(0, f"missing({lines})"),
    ]


KIND = Kind(
    "tables",
    (("queries", _QUERIES), ("rows", _ROWS), ("fields", _FIELDS)),
    _probes,
    {
        "total": ("column_sum", "sum_of"),
        "average": ("mean_of", "column_mean"),
        "group_sums": ("sums_by", "grouped"),
        "largest": ("highest", "greatest"),
        "where": ("between", "rows_from_to"),
        "missing": ("empty_fields", "holes_in"),
        "read_rows": ("parse_rows", "load_rows"),
        "split_line": ("parse_line", "fields_of"),
        "guess": ("convert", "typed"),
        "unique": ("distinct", "numbered"),
    },
)
