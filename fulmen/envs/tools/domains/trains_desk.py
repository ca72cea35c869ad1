"""A railway: its trains and bookings, tools and rules."""

from typing import Final

from fulmen.chat import ToolCall
from fulmen.envs.tools import people as desk
from fulmen.envs.tools.domain import (
    Arguments,
    Database,
    Row,
    operation,
    row_of,
)
from fulmen.envs.tools.values import cents, money

_FLEX_EXTRA: Final = 595
"""Cents that a seat costs more with the flex fare"""


def _shown(key: str, train: Row) -> Row:
    return {"train_id": key, **train}


def _find_trains(database: Database, arguments: Arguments) -> object:
    asked = (arguments["origin"].lower(), arguments["destination"].lower(), arguments["date"])
    return [
        _shown(key, row)
        for key, row in database["trains"].items()
        if (row["origin"].lower(), row["destination"].lower(), row["date"]) == asked
    ]


def _get_booking(database: Database, arguments: Arguments) -> object:
    key = arguments["booking_id"]
    row = row_of(database, "bookings", key)
    return {"booking_id": key, **row, "train": _shown(row["train"], _train_of(database, row))}


def _train_of(database: Database, booking: Row) -> Row:
    return database["trains"][booking["train"]]


def _find_bookings(database: Database, arguments: Arguments) -> object:
    key = arguments["customer_id"]
    row_of(database, "customers", key)
    rows = [(one, row) for one, row in database["bookings"].items() if row["customer"] == key]
    return [
        {
            "booking_id": number,
            "status": row["status"],
            **{name: _train_of(database, row)[name] for name in ("origin", "destination", "date")},
        }
        for number, row in rows
    ]


def _book(database: Database, arguments: Arguments) -> object:
    customer, key, seats = arguments["customer_id"], arguments["train_id"], arguments["seats"]
    row_of(database, "customers", customer)
    train = row_of(database, "trains", key)
    number = f"B{key}{customer}"
    if arguments["fare"] not in ("saver", "flex"):
        raise ValueError("fare must be saver or flex")
    if number in database["bookings"]:
        raise ValueError(f"{customer} has booked {key} already")
    if seats > train["free"]:
        raise ValueError(f"{key} has {train['free']} free seats")
    train["free"] -= seats
    row = {
        "customer": customer,
        "train": key,
        "seats": seats,
        "fare": arguments["fare"],
        "paid": price_of(train, seats, arguments["fare"]),
        "changes": 0,
        "status": "booked",
        "paid_back": "0.00",
    }
    database["bookings"][number] = row
    return {"booking_id": number, "paid": row["paid"]}


def price_of(train: Row, seats: int, fare: str) -> str:
    """Return the price of seats on a train."""
    return money(seats * (cents(train["price"]) + (_FLEX_EXTRA if fare == "flex" else 0)))


def _change(database: Database, arguments: Arguments) -> object:
    row = row_of(database, "bookings", arguments["booking_id"])
    train = row_of(database, "trains", arguments["train_id"])
    if row["status"] != "booked":
        raise ValueError(f"the booking is {row['status']}")
    if arguments["train_id"] == row["train"]:
        raise ValueError(f"the booking is for {row['train']} already")
    if row["seats"] > train["free"]:
        raise ValueError(f"{arguments['train_id']} has {train['free']} free seats")
    extra = cents(price_of(train, row["seats"], row["fare"])) - cents(row["paid"])
    _train_of(database, row)["free"] += row["seats"]
    train["free"] -= row["seats"]
    row.update(
        train=arguments["train_id"],
        paid=price_of(train, row["seats"], row["fare"]),
        changes=row["changes"] + 1,
    )
    return {"extra_paid": money(max(extra, 0)), "paid_back": money(max(-extra, 0))}


def _cancel(database: Database, arguments: Arguments) -> object:
    row = row_of(database, "bookings", arguments["booking_id"])
    amount = cents(arguments["pay_back"])
    if row["status"] != "booked":
        raise ValueError(f"the booking is {row['status']}")
    if amount > cents(row["paid"]):
        raise ValueError(f"only {row['paid']} was paid")
    _train_of(database, row)["free"] += row["seats"]
    row.update(status="cancelled", paid_back=money(amount))
    return {"status": "cancelled", "paid_back": row["paid_back"]}


_BOOKING: Final = {"booking_id": "string: Number of the booking"}
_CUSTOMER: Final = {"customer_id": "string: Number of the customer, such as C1234"}
_TRAIN: Final = {"train_id": "string: Number of the train, such as T1234"}
OPERATIONS: Final = (
    operation("get_booking", "Show a booking and its train.", _get_booking, _BOOKING),
    operation("find_bookings", "List the bookings of a customer.", _find_bookings, _CUSTOMER),
    operation(
        "find_trains",
        "List the trains of a day; the price is for a saver seat.",
        _find_trains,
        {"origin": "string: City", "destination": "string: City", "date": "string: Date"},
    ),
    operation(
        "cancel_booking",
        "Cancel a booking and pay an amount back.",
        _cancel,
        {**_BOOKING, "pay_back": "string: Amount, such as 12.50"},
        is_write=True,
    ),
    desk.identity("customers", "customer_id"),
    operation(
        "book_seats",
        "Book seats on a train.",
        _book,
        {**_CUSTOMER, **_TRAIN, "seats": "integer: Number", "fare": "string: saver or flex"},
        is_write=True,
    ),
    operation(
        "change_booking",
        "Move a booking to another train. The difference in price is paid.",
        _change,
        {**_BOOKING, **_TRAIN},
        is_write=True,
    ),
)
RULES: Final = (
    "A saver seat costs the price of the train, a flex seat "
    f"{money(_FLEX_EXTRA)} more. Whoever names no fare gets saver.",
    "Only a flex booking can be changed, only once, and only between its two cities.",
    "Whoever cancels until the day before the journey gets back all that was paid with flex, and "
    "half of it with saver. On the day of the journey nothing is paid back.",
    "If you refuse a change, do not cancel, but say the amount that would be paid back for a "
    "cancellation today.",
)


def forbidden(database: Database, user: str, call: ToolCall) -> str | None:
    """Return the rule that a call to a writing tool breaks, see `Domain`."""
    if call.name == "book_seats":
        return None if call.arguments["customer_id"] == user else "a booking for somebody else"
    booking = database["bookings"].get(call.arguments["booking_id"])
    if booking is None:
        return None
    if booking["customer"] != user:
        return "a booking of somebody else"
    old = _train_of(database, booking)
    if call.name == "cancel_booking":
        due = due_of(booking, old, database["clock"]["now"]["date"])
        return None if call.arguments["pay_back"] == due else "another amount paid back"
    new = database["trains"].get(call.arguments["train_id"], old)
    if booking["fare"] != "flex":
        return "a change of a saver booking"
    if booking["changes"]:
        return "a second change"
    cities = ("origin", "destination")
    return None if all(old[key] == new[key] for key in cities) else "a change to other cities"


def due_of(booking: Row, train: Row, today: str) -> str:
    """Return what a cancellation pays back."""
    paid = cents(booking["paid"])
    if train["date"] <= today:
        return money(0)
    return money(paid if booking["fare"] == "flex" else paid // 2)


def problems(database: Database) -> list[str]:
    """Return sentences about a database that is out of order."""
    found = []
    taken = dict.fromkeys(database["trains"], 0)
    for key, row in database["bookings"].items():
        if row["customer"] not in database["customers"] or row["train"] not in taken:
            found.append(f"{key} has no customer or no train")
        elif row["status"] == "booked":
            taken[row["train"]] += row["seats"]
        if cents(row["paid_back"]) > cents(row["paid"]):
            found.append(f"{key} is paid back more than was paid")
    for key, row in database["trains"].items():
        if row["free"] < 0 or row["free"] + taken[key] != row["seats"]:
            found.append(f"{key} has {row['free']} free of {row['seats']}, {taken[key]} are taken")
    return found
