"""Goods: quantities with units, shelves of lots, and a warehouse that fills orders."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_QUANTITY = '''"""Quantities of goods, written with a unit."""

GRAMS = {"g": 1, "kg": 1000, "t": 1000000}


def to_grams(text):
    """Return the grams of "3 kg", "250g" or "1 t"; ValueError for anything else."""
    text = text.replace(" ", "")
    number = text.rstrip("kgt")
    unit = text[len(number):]
    if not number.isdigit() or unit not in GRAMS:
        raise ValueError("no quantity")
    return int(number) * GRAMS[unit]


def show_grams(grams):
    """Return grams in the largest unit that divides them, as "3kg" or "1500g"."""
    for unit in ("t", "kg"):
        if grams > 0 and grams % GRAMS[unit] == 0:
            return f"{grams // GRAMS[unit]}{unit}"
    return f"{grams}g"


def num_boxes(grams, box):
    """Return the number of boxes that hold grams, so many each; the last may be part full."""
    if box < 1:
        raise ValueError("a box must hold something")
    return -(-grams // box)


def fits(weights, limit):
    """Return how many of the weights, taken in their order, stay within the limit together."""
    total = count = 0
    for weight in weights:
        if total + weight > limit:
            break
        total += weight
        count += 1
    return count
'''

_SHELF = '''"""A shelf: lots of one item, of which the oldest is taken first."""

from .quantity import fits, num_boxes, show_grams, to_grams


class Shelf:
    """Lots of an item, each with the day on which it came."""

    def __init__(self, item):
        self.item = item
        self.lots = []

    def put(self, day, text):
        """Add a lot, such as "2 kg", that came on a day."""
        self.lots.append([day, to_grams(text)])
        self.lots.sort(key=lambda lot: lot[0])

    def grams(self):
        """Return the grams of all lots."""
        return sum(grams for _, grams in self.lots)

    def take(self, grams):
        """Take grams, oldest lot first, and return (day, grams) of each lot that was touched.

        ValueError, and nothing is taken, if there are fewer.
        """
        if grams > self.grams():
            raise ValueError("there is not enough")
        taken = []
        while grams > 0:
            lot = self.lots[0]
            part = min(lot[1], grams)
            taken.append((lot[0], part))
            lot[1] -= part
            grams -= part
            if lot[1] == 0:
                del self.lots[0]
        return taken

    def older_than(self, day):
        """Return the grams of lots that came before a day."""
        return sum(grams for came, grams in self.lots if came < day)

    def label(self):
        """Return the item with its weight and its boxes of a kilogram, as "tea 2kg in 2"."""
        return f"{self.item} {show_grams(self.grams())} in {num_boxes(self.grams(), 1000)}"


def load_van(texts, limit):
    """Return the quantities, in their order, that a van takes up to a limit such as "1 t"."""
    count = fits([to_grams(text) for text in texts], to_grams(limit))
    return texts[:count]
'''

_WAREHOUSE = '''"""A warehouse: shelves by item, and orders that are filled from them."""

from .shelf import Shelf, load_van


class Warehouse:
    """Shelves, each with one item."""

    def __init__(self):
        self.shelves = {}

    def receive(self, item, day, text):
        """Put a quantity of an item on its shelf, which is made if there is none."""
        if item not in self.shelves:
            self.shelves[item] = Shelf(item)
        self.shelves[item].put(day, text)

    def fill(self, order):
        """Fill an order, a dict of items and grams, whole or not at all; return whether it was."""
        for item, grams in order.items():
            if item not in self.shelves or self.shelves[item].grams() < grams:
                return False
        for item, grams in order.items():
            self.shelves[item].take(grams)
        return True

    def labels(self):
        """Return the labels of all shelves that are not empty, in the order of their items."""
        shelves = [self.shelves[item] for item in sorted(self.shelves)]
        return [shelf.label() for shelf in shelves if shelf.lots]

    def stale(self, day):
        """Return (item, grams) of what came before a day, the heaviest first."""
        found = [(item, shelf.older_than(day)) for item, shelf in self.shelves.items()]
        return sorted([one for one in found if one[1]], key=lambda one: (-one[1], one[0]))


def trips(texts, limit):
    """Return how many trips a van with a limit makes to bring all quantities, in their order.

    ValueError if one of them is too much for the van.
    """
    count = 0
    while texts:
        loaded = load_van(texts, limit)
        if not loaded:
            raise ValueError("it is too much for the van")
        texts = texts[len(loaded):]
        count += 1
    return count
'''

_ITEMS = ("tea", "rice", "salt", "flour", "beans")


def _quantity(draw: random.Random) -> str:
    number = draw.choice((draw.randint(1, 9), draw.randint(10, 900)))
    return f"{number}{draw.choice(('', ' '))}{draw.choice(('g', 'g', 'kg'))}"


def _probes(draw: random.Random) -> list[Probe]:
    wrong = draw.choice(("", "kg", "3", "3 lb", "-2 kg", "3 kg 4"))
    puts = [f"shelf.put({draw.randint(1, 9)}, {_quantity(draw)!r})" for _ in range(3)]
    shelf = ["shelf = Shelf('tea')", *puts]
    weights = [draw.randint(1, 9) for _ in range(6)]
    house = [
        "house = Warehouse()",
        *(
            f"house.receive({draw.choice(_ITEMS)!r}, {draw.randint(1, 9)}, {_quantity(draw)!r})"
            for _ in range(5)
        ),
    ]
    order = {draw.choice(_ITEMS): draw.randint(1, 900) for _ in range(2)}
    whole = (
        "order = {'tea': house.shelves['tea'].grams()}",
        "[house.fill(order), house.labels()]",
    )
    texts = [f"{draw.randint(1, 9)}kg" for _ in range(draw.randint(1, 7))]
    limit = f"{draw.randint(9, 20)} kg"
    return [
        probe(2, f"to_grams({_quantity(draw)!r})"),
        probe(2, f"to_grams('{draw.randint(1, 9)} t')"),
        probe(2, f"to_grams({wrong!r})"),
        probe(
            2, f"show_grams({draw.choice((0, 1, 1500, 3000, 2_000_000, draw.randint(1, 9999)))})"
        ),
        probe(2, f"num_boxes({draw.randint(0, 5000)}, {draw.choice((0, 1, 250, 1000))})"),
        probe(2, f"fits({weights}, {sum(weights[: draw.randint(0, 6)])})"),
        probe(2, f"fits({weights}, {draw.randint(0, 40)})"),
        probe(1, *shelf, f"[shelf.take({draw.randint(0, 1500)}), shelf.lots]"),
        probe(1, *shelf, "[shelf.take(shelf.grams()), shelf.lots]"),
        probe(1, *shelf, f"shelf.older_than({draw.randint(1, 10)})"),
        probe(1, *shelf, "shelf.label()"),
        probe(1, f"load_van({texts}, {limit!r})"),
        probe(0, *house, f"[house.fill({order}), house.labels()]"),
        probe(0, *house, "house.receive('tea', 1, '2kg')", *whole),
        probe(0, *house, f"house.stale({draw.randint(2, 10)})"),
        probe(0, f"trips({texts}, {limit!r})"),
        probe(0, f"trips({texts}, '5kg')"),
    ]


KIND = Kind(
    "stock",
    (("warehouse", _WAREHOUSE), ("shelf", _SHELF), ("quantity", _QUANTITY)),
    _probes,
    {
        "Warehouse": ("Depot", "Storehouse"),
        "Shelf": ("Rack", "Bin"),
        "receive": ("store", "bring"),
        "fill": ("serve", "ship"),
        "stale": ("aged", "overdue"),
        "trips": ("num_trips", "rides"),
        "label": ("tag", "caption"),
        "show_grams": ("format_grams", "grams_text"),
        "num_boxes": ("boxes_for", "count_boxes"),
        "load_van": ("load_truck", "load_cart"),
        "item": ("article", "ware"),
    },
)
