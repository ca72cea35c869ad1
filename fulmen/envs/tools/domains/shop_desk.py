"""A shop: its orders, tools and rules."""

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
from fulmen.envs.tools.values import cents, day, money

LAST_DAY: Final = 14
"""Days after delivery on which a refund is still possible"""
OPEN: Final = ("processing", "shipped", "delivered")


def _get_order(database: Database, arguments: Arguments) -> object:
    key = arguments["order_id"]
    return {"order_id": key, **row_of(database, "orders", key)}


def _find_orders(database: Database, arguments: Arguments) -> object:
    key = arguments["customer_id"]
    row_of(database, "customers", key)
    return [
        {
            "order_id": number,
            "status": row["status"],
            "ordered": row["ordered"],
            "goods": row["goods"],
        }
        for number, row in database["orders"].items()
        if row["customer"] == key
    ]


def _get_customer(database: Database, arguments: Arguments) -> object:
    key = arguments["customer_id"]
    row = row_of(database, "customers", key)
    return {"customer_id": key, "name": row["name"], "address": row["address"]}


def _cancel(database: Database, arguments: Arguments) -> object:
    row = row_of(database, "orders", arguments["order_id"])
    if row["status"] not in ("processing", "shipped"):
        raise ValueError(f"an order that is {row['status']} cannot be cancelled")
    row.update(status="cancelled", paid_back=row["total"])
    return {"status": "cancelled", "paid_back": row["total"]}


def _refund(database: Database, arguments: Arguments) -> object:
    row = row_of(database, "orders", arguments["order_id"])
    amount = cents(arguments["amount"])
    if row["status"] != "delivered":
        raise ValueError(f"the order is {row['status']}, a refund is for one that is delivered")
    if not 0 < amount <= cents(row["total"]):
        raise ValueError(f"amount is {money(amount)}, the order's total is {row['total']}")
    row["paid_back"] = money(cents(row["paid_back"]) + amount)
    return {"paid_back": row["paid_back"]}


def _readdress(database: Database, arguments: Arguments) -> object:
    row = row_of(database, "orders", arguments["order_id"])
    if row["status"] not in ("processing", "shipped"):
        raise ValueError(f"the order is {row['status']}, its address cannot be changed")
    row["address"] = arguments["address"]
    return {"address": row["address"], "arrives": row["arrives"]}


_ORDER: Final = {"order_id": "string: Number of the order, such as S1234"}
_CUSTOMER: Final = {"customer_id": "string: Number of the customer, such as C1234"}
OPERATIONS: Final = (
    operation("get_order", "Show an order.", _get_order, _ORDER),
    operation("find_orders", "List all orders of a customer.", _find_orders, _CUSTOMER),
    operation("get_customer", "Show name and address of a customer.", _get_customer, _CUSTOMER),
    operation(
        "cancel_order", "Cancel an order and pay all of it back.", _cancel, _ORDER, is_write=True
    ),
    desk.identity("customers", "customer_id"),
    operation(
        "refund_order",
        "Pay an amount back for an order that was delivered.",
        _refund,
        {**_ORDER, "amount": "string: Amount, such as 12.50"},
        is_write=True,
    ),
    operation(
        "change_address",
        "Send an order to another address.",
        _readdress,
        {**_ORDER, "address": "string: Street and number"},
        is_write=True,
    ),
)
RULES: Final = (
    "An order can be cancelled, or sent to another address, only while it is processing.",
    f"An order can be paid back until {LAST_DAY} days after its delivery, day {LAST_DAY} "
    "included, and only once. What is paid back is its total without the shipping.",
    "If you refuse a refund because it is too late, say the last day on which it was possible; if "
    "you refuse it because it was paid back before, say the amount that was paid back.",
    "If you cannot cancel an order, say the day on which it arrives.",
)


def forbidden(database: Database, user: str, call: ToolCall) -> str | None:
    """Return the rule that a call to a writing tool breaks, see `Domain`."""
    order = database["orders"].get(call.arguments["order_id"])
    if order is None:
        return None
    if order["customer"] != user:
        return "an order of somebody else"
    if call.name != "refund_order":
        return None if order["status"] == "processing" else "an order that has left"
    if order["status"] == "delivered":
        if database["clock"]["now"]["date"] > day(order["delivered"], LAST_DAY):
            return "a refund that is too late"
        if order["paid_back"] != "0.00":
            return "a second refund"
        if call.arguments["amount"] != due(order):
            return "a refund of another amount"
    return None


def due(order: Row) -> str:
    """Return what a refund of an order pays back."""
    return money(cents(order["total"]) - cents(order["shipping"]))


def problems(database: Database) -> list[str]:
    """Return sentences about a database that is out of order."""
    found = []
    for key, row in database["orders"].items():
        if row["customer"] not in database["customers"]:
            found.append(f"{key} belongs to nobody")
        if row["status"] not in (*OPEN, "cancelled"):
            found.append(f"{key} is {row['status']}")
        if (row["status"] == "cancelled") and row["paid_back"] != row["total"]:
            found.append(f"{key} is cancelled and not paid back")
        if row["status"] in ("processing", "shipped") and row["paid_back"] != "0.00":
            found.append(f"{key} is paid back and not cancelled")
    return found
