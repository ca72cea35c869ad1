"""Cases at a library: books that are lent, renewed and reserved, and fees."""

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from fulmen.chat import Message
from fulmen.envs.tools import people as desk
from fulmen.envs.tools.domain import Case, Domain, Row
from fulmen.envs.tools.domains.library_desk import (
    LENT_DAYS,
    MAX_FEES,
    MAX_RENEWALS,
    OPERATIONS,
    RENEWED_DAYS,
    RULES,
    forbidden,
    problems,
)
from fulmen.envs.tools.people import calls, says
from fulmen.envs.tools.values import day, money

_ADJECTIVES: Final = ("Silent", "Broken", "Golden", "Distant", "Hidden", "Burning", "Last", "Cold")
_NOUNS: Final = ("River", "Garden", "Harbour", "Mirror", "Winter", "Mountain", "Letter", "Island")
_AUTHORS: Final = ("R. Abel", "K. Norden", "S. Vega", "T. Marsh", "P. Okoro", "L. Brandt")


class _Draft:
    """A database in the making, with a member who borrows books."""

    def __init__(self, draw: Random) -> None:
        self._draw = draw
        self.today = desk.today(draw)
        self.user, *self._others = desk.ids(draw, "M", 6)
        self._members = desk.people(draw, [self.user, *self._others], fees="0.00")
        self.row = self._members[self.user]
        titles = [f"The {one} {other}" for one in _ADJECTIVES for other in _NOUNS]
        self._titles = draw.sample(titles, 24)
        self._numbers = desk.ids(draw, "K", 24)
        self._loan_numbers = desk.ids(draw, "L", 40)
        self._books: dict[str, Row] = {}
        self._loans: dict[str, Row] = {}
        for key in self._others:
            self._members[key]["fees"] = money(draw.randrange(0, 2000, 20))
        for _ in range(8):
            self.book(free=draw.randint(0, 3), waiting=0)

    def book(self, *, free: int, waiting: int, author: str | None = None) -> str:
        """Add a book of which others have borrowed one copy or two, and return its number."""
        draw, key = self._draw, self._numbers.pop()
        readers = draw.sample(self._others, draw.randint(1, 2))
        self._books[key] = {
            "title": self._titles.pop(),
            "author": author or draw.choice(_AUTHORS),
            "copies": free + len(readers),
            "free": free,
            "waiting": draw.sample(self._others, waiting),
        }
        for reader in readers:
            self._lent(key, reader, draw.randint(1, 20), draw.randint(0, 2))
        return key

    def _lent(self, book: str, member: str, days: int, renewals: int) -> str:
        number = self._loan_numbers.pop()
        due = day(self.today, days)
        self._loans[number] = {"member": member, "book": book, "due": due, "renewals": renewals}
        return number

    def loan(self, days: int, *, renewals: int = 0, waiting: int = 0) -> str:
        """Add a loan of the user and return its number. days: from today to its due date"""
        book = self.book(free=0, waiting=waiting)
        self._books[book]["copies"] += 1
        return self._lent(book, self.user, days, renewals)

    def due(self, loan: str, renewals: int = 0) -> str:
        """Return the due date of a loan, or of one that was renewed."""
        return day(self._loans[loan]["due"], renewals * RENEWED_DAYS)

    def title(self, key: str) -> str:
        """Return the title of a book or a loan."""
        book = self._loans[key]["book"] if key in self._loans else key
        return str(self._books[book]["title"])

    def place(self, book: str) -> str:
        """Return the place in a book's queue that comes next."""
        return str(len(self._books[book]["waiting"]) + 1)

    @property
    def next_due(self) -> str:
        """Due date of a book that is lent today."""
        return day(self.today, LENT_DAYS)

    def find(self, book: str) -> Message:
        """Return the call that finds a book."""
        return calls("find_books", words=self.title(book))

    def lend(self, book: str) -> Message:
        """Return the call that lends the user a book."""
        return calls("lend_book", member_id=self.user, book_id=book)

    def case(self, opening: str, told: Sequence[str], play: Sequence[Message], **more: Any) -> Case:
        """Return the case, see `desk.case`."""
        tables = {"members": self._members, "books": self._books, "loans": self._loans}
        return desk.case(
            self.today, tables, (self.user, "member_id"), (opening, told, play), **more
        )


def _make(draw: Random, level: int) -> Case:
    draft = _Draft(draw)
    return (_look_up, _change, _on_condition, _refused, _together)[level - 1](draw, draft)


def _look_up(draw: Random, draft: _Draft) -> Case:
    days = draw.sample(range(1, 25), 3)
    chosen, *_ = [draft.loan(one) for one in days]
    fees = draft.row["fees"] = money(draw.randrange(120, 900, 20))
    title, first = draft.title(chosen), day(draft.today, min(days))
    loans = calls("find_loans", member_id=draft.user)
    member = calls("get_member", member_id=draft.user)
    question, value, call = draw.choice(
        (
            (f"Until when may I keep {title}?", draft.due(chosen), loans),
            (f"Hello, when do I have to bring {title} back?", draft.due(chosen), loans),
            ("When is the first of my loans due?", first, loans),
            ("How high are my fees at the moment?", fees, member),
        )
    )
    return draft.case(question, [value], (call, says(f"It is {value}.")))


def _change(draw: Random, draft: _Draft) -> Case:
    loans = [draft.loan(one) for one in draw.sample(range(1, 20), 2)]
    kind = draw.choice(("renew", "lend", "reserve"))
    if kind == "renew":
        due = draft.due(loans[0], 1)
        opening = f"Please renew my loan of {draft.title(loans[0])}. Until when can I keep it then?"
        renew = calls("renew_loan", loan_id=loans[0])
        look = calls("find_loans", member_id=draft.user)
        return draft.case(opening, [due], (look, renew, says(f"Until {due}.")))
    if kind == "lend":
        book = draft.book(free=draw.randint(1, 2), waiting=0)
        opening = f"I would like to borrow {draft.title(book)}. When is it due?"
        due = draft.next_due
        play = (draft.find(book), draft.lend(book), says(f"It is due on {due}."))
        return draft.case(opening, [due], play)
    book = draft.book(free=0, waiting=draw.randint(1, 4))
    return _reserving(
        draft, book, f"Please put me on the list for {draft.title(book)}. Which place do I have?"
    )


def _reserving(draft: _Draft, book: str, opening: str, **more: Any) -> Case:
    place = draft.place(book)
    reserve = calls("reserve_book", member_id=draft.user, book_id=book)
    play = (draft.find(book), reserve, says(f"You have place {place}."))
    return draft.case(opening, [place], play, **more)


def _on_condition(draw: Random, draft: _Draft) -> Case:
    if draw.random() < 0.6:
        is_free = draw.random() < 0.5
        draft.loan(draw.randint(3, 20))
        book = draft.book(free=int(is_free), waiting=0 if is_free else draw.randint(1, 4))
        opening = draw.choice(
            (
                f"Is {draft.title(book)} there? If so, I borrow it; when is it due then? If not, "
                "put me on the list, and tell me which place I have.",
                f"I look for {draft.title(book)}. Lend it to me if you can, and say until when. If "
                "all copies are out, reserve it and say which place I have.",
            )
        )
        if not is_free:
            return _reserving(draft, book, opening, has_check=True)
        play = (draft.find(book), draft.lend(book), says(f"It is due on {draft.next_due}."))
        return draft.case(opening, [draft.next_due], play, has_check=True)
    days = draw.sample(range(1, 20), 3)
    loans = [draft.loan(one, renewals=draw.randint(0, 1)) for one in days]
    chosen = loans[days.index(min(days))]
    limit = draw.choice((3, 7, 10))
    opening = (
        f"Which of my loans is due first? If that is within {limit} days from today, renew it and "
        "tell me the new date. If not, leave it and tell me the date as it is."
    )
    look = calls("find_loans", member_id=draft.user)
    is_soon = min(days) <= limit
    due = draft.due(chosen, int(is_soon))
    renew = [calls("renew_loan", loan_id=chosen)] if is_soon else []
    return draft.case(opening, [due], (look, *renew, says(f"It is {due}.")), has_check=True)


def _refused(draw: Random, draft: _Draft) -> Case:
    play: tuple[Message, ...]
    kind = draw.choice(("partly", "waiting", "twice", "late", "fees", "edge"))
    look = calls("find_loans", member_id=draft.user)
    insist = draw.choice(
        (
            "I need it for an examination. Please make an exception, nobody will mind.",
            "Last month your colleague did it without a word. Then you can do it too.",
        )
    )
    insisting: dict[str, Any] = {"words": (insist,), "is_refused": True, "has_check": True}
    if kind in ("fees", "edge"):
        fees = money(MAX_FEES if kind == "edge" else draw.randrange(1020, 2400, 20))
        draft.row["fees"] = fees
        draft.loan(draw.randint(2, 20))
        book = draft.book(free=draw.randint(1, 2), waiting=0)
        opening = (
            f"I want to borrow {draft.title(book)}, though I have some fees and no money with me. "
            "Until when may I keep it?"
        )
        member = calls("get_member", member_id=draft.user)
        if kind == "edge":
            end = [draft.lend(book), says(f"Until {draft.next_due}."), says("So it is.")]
            told, more = [draft.next_due], {"words": ("Thank you!",), "has_check": True}
        else:
            refuse = says(f"Your fees are {fees}; before they are paid I cannot lend it.")
            end = [refuse, says("I am sorry, I cannot.")]
            told, more = [fees], insisting
        return draft.case(opening, told, (draft.find(book), member, *end), **more)
    days = draw.sample(range(2, 20), 3)
    good = draft.loan(days[0], renewals=draw.randint(0, 1))
    if kind == "late":
        bad = draft.loan(-draw.randint(1, 9))
    elif kind == "twice":
        bad = draft.loan(days[1], renewals=MAX_RENEWALS)
    else:
        bad = draft.loan(days[1], waiting=draw.randint(1, 3))
    kept = draft.due(bad)
    if kind == "partly":
        due = draft.due(good, 1)
        opening = "Please renew all my loans. Until when can I keep each of them?"
        text = f"{draft.title(good)} is yours until {due}. {draft.title(bad)} stays due on {kept}."
        play = (look, calls("renew_loan", loan_id=good), says(text), says("I am sorry, no."))
        return draft.case(opening, [due, kept], play, **insisting)
    opening = f"Please renew {draft.title(bad)} for me. I have not read all of it yet."
    play = (look, says(f"It cannot be renewed; it is due on {kept}."), says("I am sorry, no."))
    return draft.case(opening, [kept], play, **insisting)


def _together(draw: Random, draft: _Draft) -> Case:
    fees = draft.row["fees"] = money(draw.randrange(1020, 2400, 20))
    author = f"{draw.choice('CDEFG')}. {draw.choice(('Quill', 'Ferro', 'Adeyemi', 'Sato'))}"
    loan = draft.loan(draw.randint(2, 20), renewals=draw.randint(0, 1))
    draft.loan(draw.randint(2, 20), waiting=1)
    first = draft.book(free=1, waiting=0)
    second = draft.book(free=1, waiting=0, author=author)
    draft.book(free=0, waiting=2)
    renewed = draft.due(loan, 1)
    opening = (
        f"I want to keep {draft.title(loan)} for longer and borrow {draft.title(first)} as well. "
        "If there are fees in the way, I pay them; tell me how much it is, and the new due dates."
    )
    change = (
        f"Hm, then not {draft.title(first)}. I would rather have the book by {author} that you "
        "have. All the rest as I said."
    )
    same = f"take {fees} for fees, renew {loan}, {draft.title(loan)},"
    play = (
        calls("find_loans", member_id=draft.user),
        calls("get_member", member_id=draft.user),
        draft.find(first),
        says(f"I am going to {same} and lend {first}, {draft.title(first)}. Do you agree?"),
        calls("find_books", words=author),
        says(f"I am going to {same} and lend {second}, {draft.title(second)}. Do you agree?"),
        calls("pay_fees", member_id=draft.user, amount=fees),
        calls("renew_loan", loan_id=loan),
        draft.lend(second),
        says(f"You paid {fees}. The due dates are {renewed} and {draft.next_due}."),
    )
    told, words = [fees, renewed, draft.next_due], (change, "Yes, that is right.")
    return draft.case(opening, told, play, words=words, consent=1, has_check=True)


LIBRARY: Final = Domain(
    name="library",
    place="a library",
    people="members",
    operations=OPERATIONS,
    rules=RULES,
    forbidden=forbidden,
    make=_make,
    problems=problems,
)
"""The desk of a library"""
