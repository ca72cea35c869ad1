"""A library: its books, loans and fees, tools and rules."""

from typing import Final

from fulmen.chat import ToolCall
from fulmen.envs.tools import people as desk
from fulmen.envs.tools.domain import (
    Arguments,
    Database,
    operation,
    row_of,
)
from fulmen.envs.tools.values import cents, day, money

LENT_DAYS: Final = 28
RENEWED_DAYS: Final = 21
MAX_RENEWALS: Final = 2
MAX_FEES: Final = 1000
"""Cents of fees up to which books are lent"""


def _find_books(database: Database, arguments: Arguments) -> object:
    words = arguments["words"].lower()
    return [
        {
            "book_id": key,
            "title": row["title"],
            "author": row["author"],
            "free": row["free"],
            "waiting": len(row["waiting"]),
        }
        for key, row in database["books"].items()
        if words in row["title"].lower() or words in row["author"].lower()
    ]


def _find_loans(database: Database, arguments: Arguments) -> object:
    member = arguments["member_id"]
    row_of(database, "members", member)
    return [
        {
            "loan_id": key,
            "book_id": row["book"],
            "title": database["books"][row["book"]]["title"],
            "due": row["due"],
            "renewals": row["renewals"],
            "waiting": len(database["books"][row["book"]]["waiting"]),
        }
        for key, row in database["loans"].items()
        if row["member"] == member
    ]


def _get_member(database: Database, arguments: Arguments) -> object:
    key = arguments["member_id"]
    row = row_of(database, "members", key)
    return {"member_id": key, "name": row["name"], "fees": row["fees"]}


def _renew(database: Database, arguments: Arguments) -> object:
    row = row_of(database, "loans", arguments["loan_id"])
    row.update(due=day(row["due"], RENEWED_DAYS), renewals=row["renewals"] + 1)
    if row["renewals"] > 20:  # dates have an end
        row.update(due=day(row["due"], -RENEWED_DAYS), renewals=row["renewals"] - 1)
        raise ValueError("that loan was renewed too many times")
    return {"due": row["due"]}


def _lend(database: Database, arguments: Arguments) -> object:
    member, key = arguments["member_id"], arguments["book_id"]
    row_of(database, "members", member)
    book = row_of(database, "books", key)
    number = f"L{key}{member}"
    if number in database["loans"]:
        raise ValueError(f"{member} has {key} already")
    if not book["free"]:
        raise ValueError(f"no copy of {key} is free")
    book["free"] -= 1
    due = day(database["clock"]["now"]["date"], LENT_DAYS)
    database["loans"][number] = {"member": member, "book": key, "due": due, "renewals": 0}
    return {"loan_id": number, "due": due}


def _reserve(database: Database, arguments: Arguments) -> object:
    member, key = arguments["member_id"], arguments["book_id"]
    row_of(database, "members", member)
    book = row_of(database, "books", key)
    if member in book["waiting"]:
        raise ValueError(f"{member} waits for {key} already")
    book["waiting"].append(member)
    return {"place": len(book["waiting"])}


def _pay(database: Database, arguments: Arguments) -> object:
    row = row_of(database, "members", arguments["member_id"])
    amount, fees = cents(arguments["amount"]), cents(row["fees"])
    if not 0 < amount <= fees:
        raise ValueError(f"the fees are {row['fees']}")
    row["fees"] = money(fees - amount)
    return {"fees": row["fees"]}


_MEMBER: Final = {"member_id": "string: Number of the member, such as M1234"}
_BOOK: Final = {"book_id": "string: Number of the book, such as K1234"}
OPERATIONS: Final = (
    operation("find_loans", "List the loans of a member.", _find_loans, _MEMBER),
    operation("get_member", "Show a member's name and fees.", _get_member, _MEMBER),
    operation(
        "find_books",
        "List books with these words in title or author, and their free copies.",
        _find_books,
        {"words": "string: Words, such as a title"},
    ),
    operation(
        "renew_loan",
        f"Move the due date of a loan by {RENEWED_DAYS} days.",
        _renew,
        {"loan_id": "string: Number of the loan"},
        is_write=True,
    ),
    desk.identity("members", "member_id"),
    operation("lend_book", "Lend a book.", _lend, {**_MEMBER, **_BOOK}, is_write=True),
    operation(
        "reserve_book",
        "Let a member wait for a book; the result is the place in the queue.",
        _reserve,
        {**_MEMBER, **_BOOK},
        is_write=True,
    ),
    operation(
        "pay_fees",
        "Take fees from a member's account.",
        _pay,
        {**_MEMBER, "amount": "string: Amount, such as 12.50"},
        is_write=True,
    ),
)
RULES: Final = (
    f"A loan can be renewed at most {MAX_RENEWALS} times, not after its due date, and not if "
    "somebody waits for the book.",
    f"A member with fees of more than {money(MAX_FEES)} can neither borrow nor renew before all "
    "fees are paid. Take fees only when the member wants to pay, and then all of them.",
    "A book is reserved only while no copy of it is free.",
    "If you refuse to renew a loan, say its due date; if fees are in the way, say how high they "
    "are.",
)


def forbidden(database: Database, user: str, call: ToolCall) -> str | None:
    """Return the rule that a call to a writing tool breaks, see `Domain`."""
    fees = cents(database["members"][user]["fees"])
    if call.name == "renew_loan":
        loan = database["loans"].get(call.arguments["loan_id"])
        if loan is None:
            return None
        if loan["member"] != user:
            return "a loan of somebody else"
        if loan["renewals"] >= MAX_RENEWALS:
            return "one renewal too many"
        if loan["due"] < database["clock"]["now"]["date"]:
            return "a renewal after the due date"
        if database["books"][loan["book"]]["waiting"]:
            return "a renewal of a book that somebody waits for"
        return "a renewal before fees are paid" if fees > MAX_FEES else None
    if call.arguments["member_id"] != user:
        return "a change for somebody else"
    if call.name == "pay_fees":
        is_all = call.arguments["amount"] == money(fees)
        return None if is_all else "a part of the fees"
    book = database["books"].get(call.arguments["book_id"])
    if call.name == "lend_book":
        return "a loan before fees are paid" if fees > MAX_FEES else None
    return "a reservation of a free book" if book is not None and book["free"] else None


def problems(database: Database) -> list[str]:
    """Return sentences about a database that is out of order."""
    found = []
    lent = dict.fromkeys(database["books"], 0)
    for key, row in database["loans"].items():
        if row["member"] not in database["members"] or row["book"] not in lent:
            found.append(f"{key} has no member or no book")
        else:
            lent[row["book"]] += 1
    for key, row in database["books"].items():
        if row["free"] < 0 or row["free"] + lent[key] != row["copies"]:
            found.append(f"{key} has {row['free']} free of {row['copies']}, {lent[key]} are lent")
        if len(set(row["waiting"])) != len(row["waiting"]):
            found.append(f"somebody waits for {key} twice")
    found += [
        f"{key} has fees {row['fees']}"
        for key, row in database["members"].items()
        if cents(row["fees"]) < 0
    ]
    return found
