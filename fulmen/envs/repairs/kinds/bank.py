"""Accounts: amounts of money, a ledger of entries, and a bank over both."""

import random

from fulmen.envs.repairs.kind import Kind, Probe, probe

_MONEY = '''"""Amounts of money, held as whole cents."""


def parse_amount(text):
    """Return the cents of "12.34", "12.3", "12" or "-0.50"; ValueError for anything else."""
    text = text.strip()
    sign = -1 if text.startswith("-") else 1
    whole, _, part = text.lstrip("-").partition(".")
    if not whole.isdigit() or len(part) > 2 or (part and not part.isdigit()):
        raise ValueError("no amount")
    return sign * (int(whole) * 100 + int(part.ljust(2, "0") or "0"))


def format_amount(cents):
    """Return cents as "1,234.50", with a minus in front if negative."""
    sign = "-" if cents < 0 else ""
    whole, part = divmod(abs(cents), 100)
    return f"{sign}{whole:,}.{part:02d}"


def share_out(cents, num_parts):
    """Return num_parts whole amounts that add up to cents, the larger ones first."""
    if num_parts < 1:
        raise ValueError("at least one part is needed")
    small, rest = divmod(cents, num_parts)
    return [small + 1] * rest + [small] * (num_parts - rest)


def percent_of(cents, percent):
    """Return percent (a whole number) of cents, rounded half up."""
    return (cents * percent + 50) // 100
'''

_LEDGER = '''"""A list of entries, each a date and an amount."""

from .money import format_amount, parse_amount, percent_of, share_out


class Ledger:
    """Entries in the order of their days."""

    def __init__(self):
        self.entries = []

    def add(self, day, text):
        """Add an entry of an amount such as "12.30" on a day, a whole number from 1."""
        if day < 1:
            raise ValueError("days count from 1")
        self.entries.append((day, parse_amount(text)))
        self.entries.sort(key=lambda entry: entry[0])

    def total(self, first=1, last=None):
        """Return the cents of all entries from the first day to the last one, both included."""
        return sum(
            cents
            for day, cents in self.entries
            if day >= first and (last is None or day <= last)
        )

    def lowest(self):
        """Return the lowest balance that there ever was after an entry, 0 if none was below."""
        balance = lowest = 0
        for _, cents in self.entries:
            balance += cents
            lowest = min(lowest, balance)
        return lowest

    def lines(self):
        """Return a line for each entry: day, amount and the balance after it."""
        balance, lines = 0, []
        for day, cents in self.entries:
            balance += cents
            lines.append(f"{day}: {format_amount(cents)} -> {format_amount(balance)}")
        return lines


def interest(cents, percent, years):
    """Return cents after some years in which percent of them were added each year."""
    for _ in range(years):
        cents += percent_of(cents, percent)
    return cents


def split_bill(text, names):
    """Return what each of the names pays of an amount, the first ones a cent more if need be."""
    return dict(zip(names, share_out(parse_amount(text), len(names))))
'''

_BANK = '''"""Accounts by name, with transfers between them."""

from .ledger import Ledger, interest, split_bill


class Bank:
    """Accounts, none of which may be overdrawn."""

    def __init__(self):
        self.accounts = {}

    def deposit(self, name, day, text):
        """Put an amount into an account, which is opened if there is none."""
        self.accounts.setdefault(name, Ledger()).add(day, text)

    def transfer(self, source, target, day, text):
        """Move an amount; False, and nothing happens, if the source holds less than that."""
        trial = Ledger()
        trial.add(day, text)
        if source not in self.accounts or self.accounts[source].total() < trial.total():
            return False
        self.accounts[source].add(day, "-" + text)
        self.deposit(target, day, text)
        return True

    def balances(self):
        """Return (name, cents) of all accounts, the richest first, then by name."""
        found = [(name, ledger.total()) for name, ledger in self.accounts.items()]
        return sorted(found, key=lambda one: (-one[1], one[0]))

    def statement(self, name):
        """Return the lines of an account, with its name above them."""
        return [f"Account {name}", *self.accounts[name].lines()]


def years_until(cents, percent, goal):
    """Return the years until cents have become the goal by interest, at most 100."""
    years = 0
    while interest(cents, percent, years) < goal and years < 100:
        years += 1
    return years


def settle(bills):
    """Return what each name pays of all bills, pairs of an amount and names, in order of names."""
    paid = {}
    for text, names in bills:
        for name, cents in split_bill(text, names).items():
            paid[name] = paid.get(name, 0) + cents
    return dict(sorted(paid.items()))
'''

_NAMES = ("ann", "ben", "eva", "ida", "leo", "mia", "tom")


def _amount(draw: random.Random) -> str:
    whole = draw.choice((0, draw.randint(1, 9), draw.randint(10, 99), draw.randint(1000, 99999)))
    return draw.choice(
        (f"{whole}", f"{whole}.{draw.randint(1, 9)}", f"{whole}.{draw.randint(10, 99)}")
    )


def _probes(draw: random.Random) -> list[Probe]:
    text, wrong = _amount(draw), draw.choice(("", "1.234", "x", "1.x", "--1", ".5"))
    cents, percent = draw.randint(1, 200_000), draw.randint(1, 12)
    days = [draw.randint(1, 9) for _ in range(4)]
    adds = [f"ledger.add({day}, {draw.choice(('', '-')) + _amount(draw)!r})" for day in days]
    names = draw.sample(_NAMES, 3)
    bank = [
        "bank = Bank()",
        *(f"bank.deposit({name!r}, {draw.randint(1, 9)}, {_amount(draw)!r})" for name in names),
    ]
    move = f"bank.transfer({names[0]!r}, {names[1]!r}, 10, {_amount(draw)!r})"
    bills = [(_amount(draw), draw.sample(_NAMES, draw.randint(1, 3))) for _ in range(3)]
    return [
        probe(2, f"parse_amount({draw.choice(('', '-', ' ')) + text!r})"),
        probe(2, f"parse_amount({wrong!r})"),
        probe(2, f"format_amount({draw.choice((1, -1)) * cents})"),
        probe(2, f"format_amount({draw.randint(-120, 120)})"),
        probe(2, f"share_out({cents}, {draw.randint(0, 7)})"),
        probe(2, f"percent_of({cents}, {percent})"),
        probe(1, "ledger = Ledger()", *adds, "ledger.lines()"),
        probe(1, "ledger = Ledger()", *adds, "ledger.lowest()"),
        probe(1, "ledger = Ledger()", *adds, f"ledger.total({min(days)}, {max(days)})"),
        probe(1, "ledger = Ledger()", *adds, f"ledger.total({days[0]}, {days[1]})"),
        probe(1, "ledger = Ledger()", f"ledger.add({draw.randint(-1, 1)}, '1')", "ledger.total()"),
        probe(1, f"interest({cents}, {percent}, {draw.randint(0, 6)})"),
        probe(1, f"split_bill({text!r}, {names})"),
        probe(0, *bank, move, "bank.balances()"),
        probe(0, *bank, f"[{move}, {move}, bank.balances()]"),
        probe(0, *bank, move, f"bank.statement({names[1]!r})"),
        probe(0, *bank, f"bank.transfer('nobody', {names[1]!r}, 3, '1')"),
        probe(0, f"years_until({cents}, {percent}, {cents * draw.randint(1, 3)})"),
        probe(0, f"settle({bills})"),
    ]


KIND = Kind(
    "bank",
    (("bank", _BANK), ("ledger", _LEDGER), ("money", _MONEY)),
    _probes,
    {
        "Ledger": ("Journal", "Book"),
        "deposit": ("pay_in", "credit"),
        "transfer": ("move", "send"),
        "balances": ("standings", "totals_by_name"),
        "statement": ("report", "account_lines"),
        "lowest": ("low_point", "deepest"),
        "interest": ("grown", "with_interest"),
        "settle": ("pay_all", "shares"),
        "share_out": ("divide", "split_evenly"),
        "percent_of": ("part_of", "rate_of"),
    },
)
