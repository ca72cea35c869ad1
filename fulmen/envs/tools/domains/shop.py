"""Cases at a shop: orders that are cancelled, sent elsewhere, or paid back."""

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from fulmen.chat import Message
from fulmen.envs.tools import people as desk
from fulmen.envs.tools.domain import Case, Domain, Row
from fulmen.envs.tools.domains.shop_desk import (
    LAST_DAY,
    OPEN,
    OPERATIONS,
    RULES,
    due,
    forbidden,
    problems,
)
from fulmen.envs.tools.people import calls, says
from fulmen.envs.tools.values import cents, day, money

_GOODS: Final = (
    *("kettle", "lamp", "backpack", "blanket", "tea set", "desk fan", "toaster", "raincoat"),
    *("mirror", "radio", "tripod", "rug", "wok", "clock", "hammock", "stool", "scale", "tent"),
)
_STREETS: Final = ("Mill Lane", "Harbour Road", "Oak Street", "Station Square", "Church Hill")


class _Draft:
    """A database in the making, with a customer who has one order of each kind of goods."""

    def __init__(self, draw: Random) -> None:
        self._draw = draw
        self.today = desk.today(draw)
        self.user, *others = desk.ids(draw, "C", 4)
        customers = desk.people(draw, [self.user, *others])
        numbers = draw.sample(range(1, 100), 8)
        self._addresses = [f"{draw.choice(_STREETS)} {number}" for number in numbers]
        for row in customers.values():
            row["address"] = self.address()
        self.row = customers[self.user]
        self._numbers = desk.ids(draw, "S", 30)
        self._goods = draw.sample(_GOODS, len(_GOODS))
        self._orders: dict[str, Row] = {}
        self._customers = customers
        for key in others:
            for status in draw.choices(OPEN, k=draw.randint(1, 3)):
                self.order(status, customer=key, goods=draw.sample(_GOODS, 2))

    def address(self) -> str:
        """Return an address that nobody has."""
        return self._addresses.pop()

    def order(
        self,
        status: str,
        *,
        age: int | None = None,
        customer: str | None = None,
        goods: Sequence[str] | None = None,
        ordered: int | None = None,
    ) -> str:
        """Add an order and return its number.

        age      days since delivery, drawn if omitted
        ordered  days since it was ordered, drawn if omitted
        """
        draw, shipping = self._draw, self._draw.choice((290, 390, 490))
        if goods is None:
            goods = [self._goods.pop() for _ in range(draw.randint(1, 2))]
        prices = [draw.randrange(800, 9000, 5) for _ in goods]
        age = draw.randint(1, 25) if age is None else age
        if ordered is None:
            ordered = {"processing": draw.randint(2, 3), "shipped": draw.randint(4, 6)}.get(
                status, age + draw.randint(3, 6)
            )
        arrives = day(self.today, draw.randint(1, 8))
        number = self._numbers.pop()
        self._orders[number] = {
            "customer": customer or self.user,
            "status": status,
            "ordered": day(self.today, -ordered),
            "arrives": day(self.today, -age) if status == "delivered" else arrives,
            "delivered": day(self.today, -age) if status == "delivered" else "",
            "goods": [
                {"name": name, "price": money(price)}
                for name, price in zip(goods, prices, strict=True)
            ],
            "shipping": money(shipping),
            "total": money(sum(prices) + shipping),
            "address": self._customers[customer or self.user]["address"],
            "paid_back": "0.00",
        }
        return number

    def __getitem__(self, number: str) -> Row:
        return self._orders[number]

    def thing(self, number: str) -> str:
        """Return the first kind of goods of an order."""
        return str(self[number]["goods"][0]["name"])

    def last_day(self, number: str) -> dict[str, tuple[str, ...]]:
        """Return the last day of a refund, and the day of delivery that it is computed of."""
        delivered = self[number]["delivered"]
        return {day(delivered, LAST_DAY): (delivered,)}

    @property
    def others(self) -> list[str]:
        """Orders of other customers."""
        return [key for key, row in self._orders.items() if row["customer"] != self.user]

    def case(self, opening: str, told: Sequence[str], play: Sequence[Message], **more: Any) -> Case:
        """Return the case, see `desk.case`."""
        tables = {"customers": self._customers, "orders": self._orders}
        return desk.case(
            self.today, tables, (self.user, "customer_id"), (opening, told, play), **more
        )


def _make(draw: Random, level: int) -> Case:
    draft = _Draft(draw)
    return (_look_up, _change, _on_condition, _refused, _together)[level - 1](draw, draft)


def _look_up(draw: Random, draft: _Draft) -> Case:
    number = draft.order(draw.choice(("processing", "shipped")))
    draft.order("delivered")
    question, value = draw.choice(
        (
            (f"When does my order {number} arrive?", draft[number]["arrives"]),
            (f"Hello, on which day will {number} be here?", draft[number]["arrives"]),
            (f"How much did I pay in all for order {number}?", draft[number]["total"]),
            (f"Hi! What is the total of my order {number}, please?", draft[number]["total"]),
        )
    )
    play = (calls("get_order", order_id=number), says(f"It is {value}."))
    return draft.case(question, [value], play)


def _change(draw: Random, draft: _Draft) -> Case:
    number = draft.order("processing")
    draft.order("processing")
    draft.order("delivered")
    order = draft[number]
    look = calls("get_order", order_id=number)
    if draw.random() < 0.5:
        opening = draw.choice(
            (
                f"Please cancel my order {number}. How much do I get back?",
                f"I do not need {number} any more. Cancel it, and tell me what is paid back.",
            )
        )
        play = (look, calls("cancel_order", order_id=number), says(f"{order['total']} comes back."))
        return draft.case(opening, [order["total"]], play)
    address = draft.address()
    opening = draw.choice(
        (
            f"Please send my order {number} to {address} instead. When will it arrive?",
            f"I have moved: order {number} has to go to {address}. On which day does it come?",
        )
    )
    change = calls("change_address", order_id=number, address=address)
    play = (look, change, says(f"It arrives on {order['arrives']}."))
    return draft.case(opening, [order["arrives"]], play)


def _on_condition(draw: Random, draft: _Draft) -> Case:
    play: tuple[Message, ...]
    find = calls("find_orders", customer_id=draft.user)
    if draw.random() < 0.5:
        status = draw.choice(("processing", "shipped"))
        number = draft.order(status, ordered=1)
        for other in ("processing", "shipped", "delivered"):
            draft.order(other)
        order = draft[number]
        opening = draw.choice(
            (
                "It is about the last order that I made. If it has not left yet, cancel it and "
                "tell me what I get back. If it has, just tell me when it arrives.",
                "Can you still cancel my newest order? Then do, and say how much comes back. If "
                "it is too late for that, I only want to know the day of its arrival.",
            )
        )
        look = calls("get_order", order_id=number)
        if status == "processing":
            cancel = calls("cancel_order", order_id=number)
            value = order["total"]
            play = (find, look, cancel, says(f"It is cancelled, and {value} comes back."))
        else:
            value = order["arrives"]
            play = (find, look, says(f"It has left already and arrives on {value}."))
        return draft.case(opening, [value], play, has_check=True)
    age = draw.choice((2, 6, 11, 14, 15, 17, 20))
    number = draft.order("delivered", age=age)
    for other in ("processing", "delivered", "delivered"):
        draft.order(other)
    opening = (
        f"I once bought a {draft.thing(number)} from you, and would like to give the whole order "
        "back. If that is possible, do it and tell me what I get; if not, tell me until when it "
        "was."
    )
    look = calls("get_order", order_id=number)
    told, end = _refund_play(draft, number)
    bases = draft.last_day(number)
    return draft.case(opening, told, (find, look, *end), bases=bases, has_check=True)


def _refund_play(draft: _Draft, number: str) -> tuple[list[str], tuple[Message, ...]]:
    """Return the value to tell about a refund, and the answers that make or refuse it."""
    (last,) = draft.last_day(number)
    if draft.today > last:
        return [last], (says(f"That was possible until {last}; now it is too late."),)
    amount = due(draft[number])
    refund = calls("refund_order", order_id=number, amount=amount)
    return [amount], (refund, says(f"I have paid {amount} back to you."))


def _refused(draw: Random, draft: _Draft) -> Case:
    play: tuple[Message, ...]
    kind = draw.choice(("partly", "edge", "twice", "other", "shipped"))
    draft.order("processing")
    insist = draw.choice(
        (
            "I have been your customer for years. Surely you can make an exception this once?",
            "That cannot be right. Your colleague promised me that it would be done. Please do it.",
        )
    )
    insisting: dict[str, Any] = {"words": (insist,), "is_refused": True, "has_check": True}
    if kind == "partly":
        good, late = draft.order("delivered", age=8), draft.order("delivered", age=19)
        first, second = draw.sample((good, late), 2)
        opening = f"I want my money back for the orders {first} and {second}. How much is it?"
        told, refund = _refund_play(draft, good)
        last, refusal = _refund_play(draft, late)
        looks = [calls("get_order", order_id=number) for number in (first, second)]
        text = f"{refund[-1].content} For {late}: {refusal[-1].content}"
        play = (*looks, refund[0], says(text), says("I am sorry, I cannot do that."))
        return draft.case(opening, [*told, *last], play, bases=draft.last_day(late), **insisting)
    if kind == "edge":
        number = draft.order("delivered", age=draw.choice((13, 14, 14, 15)))
        opening = (
            f"My order {number} came two weeks ago or so, and I know that I am late. I still want "
            "my money back."
        )
        told, end = _refund_play(draft, number)
        look, bases = calls("get_order", order_id=number), draft.last_day(number)
        if len(end) == 1:
            play = (look, *end, says("I am sorry, it is too late."))
            return draft.case(opening, told, play, bases=bases, **insisting)
        play = (look, *end, says("So it is."))
        words = ("Thank you, that is kind.",)
        return draft.case(opening, told, play, words=words, has_check=True)
    if kind == "twice":
        number = draft.order("delivered", age=draw.randint(2, 9))
        draft[number]["paid_back"] = amount = due(draft[number])
        opening = f"I sent {number} back to you and never saw my money. Pay it back now, please."
        refuse = says(f"{amount} was paid back before, so I cannot do it again.")
        play = (calls("get_order", order_id=number), refuse, says("I am sorry, no."))
        return draft.case(opening, [amount], play, **insisting)
    if kind == "other":
        number, other = draft.order("processing"), draw.choice(draft.others)
        total = draft[number]["total"]
        opening = (
            f"Cancel my order {number}, and {other} too, which my neighbour made. What do I get "
            "back for each?"
        )
        play = (
            calls("get_order", order_id=number),
            calls("cancel_order", order_id=number),
            says(f"{number} is cancelled, {total} comes back. The other order is not yours."),
            says("I am sorry, I cannot do that."),
        )
        theirs = draft[other]["total"]
        untold = (theirs,) if theirs != total else ()
        return draft.case(opening, [total], play, untold=untold, **insisting)
    number = draft.order("shipped")
    opening = f"I have thought about it: cancel order {number}, I do not want it any more."
    arrives = draft[number]["arrives"]
    refuse = says(f"It has left already and arrives on {arrives}, so I cannot cancel it.")
    play = (calls("get_order", order_id=number), refuse, says("I am sorry, no."))
    return draft.case(opening, [arrives], play, **insisting)


def _together(draw: Random, draft: _Draft) -> Case:
    back = draft.order("delivered", age=draw.randint(1, 12))
    open_one = draft.order("processing")
    for status in ("shipped", "delivered"):
        draft.order(status)
    address, amount, row = draft.address(), due(draft[back]), draft[open_one]
    returned, ordered = draft.thing(back), draft.thing(open_one)
    refund = calls("refund_order", order_id=back, amount=amount)
    send = calls("change_address", order_id=open_one, address=address)
    cancel = calls("cancel_order", order_id=open_one)
    is_cancelled = draw.random() < 0.5
    if is_cancelled:
        wish = f"and the order with the {ordered} has to go to {address}"
        change = f"Wait, I do not need the {ordered} at all. Cancel that order instead."
        total = money(cents(amount) + cents(row["total"]))
        told, writes = [total], (refund, cancel)
        bases = {total: (amount, row["total"])}
        plans = [f"send {open_one} to {address}", f"cancel {open_one}"]
    else:
        wish = f"and cancel the order with the {ordered}"
        change = (
            f"Oh, now I remember what the {ordered} is for. Do not cancel it, but send that order "
            f"to {address}. And when does it come?"
        )
        told, writes = [amount, row["arrives"]], (refund, send)
        bases = {}
        plans = [f"cancel {open_one}", f"send {open_one} to {address}"]
    first = f"pay {amount} back for {back}"
    opening = (
        f"Two things: I give the whole order with the {returned} back, {wish}. In the end I want "
        "to know how much money I get back in all."
    )
    play = (
        calls("find_orders", customer_id=draft.user),
        calls("get_order", order_id=back),
        calls("get_order", order_id=open_one),
        *(says(f"I am going to {first} and {one}. Do you agree?") for one in plans),
        *writes,
        says(f"It is done: {told[0]} in all." + (f" It comes on {told[-1]}." if told[1:] else "")),
    )
    words = (change, "Yes, please do that.")
    return draft.case(opening, told, play, words=words, bases=bases, consent=1, has_check=True)


SHOP: Final = Domain(
    name="shop",
    place="a shop",
    people="customers",
    operations=OPERATIONS,
    rules=RULES,
    forbidden=forbidden,
    make=_make,
    problems=problems,
)
"""The desk of a shop"""
