"""Cases at a railway: bookings that are made, changed once, or cancelled."""

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from fulmen.chat import Message
from fulmen.envs.tools import people as desk
from fulmen.envs.tools.domain import Case, Domain, Row
from fulmen.envs.tools.domains.trains_desk import (
    OPERATIONS,
    RULES,
    due_of,
    forbidden,
    price_of,
    problems,
)
from fulmen.envs.tools.people import calls, says
from fulmen.envs.tools.values import cents, day, money

_CITIES: Final = ("Arden", "Bellmoor", "Corvik", "Dunwick", "Eastport", "Fernhill")
_MINUTES: Final = (10, 25, 40, 55)


class _Draft:
    """A database in the making: trains between three cities, and a customer with bookings."""

    def __init__(self, draw: Random) -> None:
        self._draw = draw
        self.today = desk.today(draw)
        self.user, *others = desk.ids(draw, "C", 4)
        self._others = others
        self._customers = desk.people(draw, [self.user, *others])
        self.row = self._customers[self.user]
        self.here, self.there, self.else_where = draw.sample(_CITIES, 3)
        self._numbers = desk.ids(draw, "T", 60)
        self._bookings: dict[str, Row] = {}
        self._trains: dict[str, Row] = {}
        self._booked = desk.ids(draw, "B", 20)

    def trains(self, origin: str, destination: str, days: int) -> list[str]:
        """Add the trains of a day from today on, and return their numbers from the first to the
        last; each is dearer than the one before."""
        draw, numbers = self._draw, []
        price = draw.randrange(1400, 3000, 10)
        for hour in sorted(draw.sample(range(6, 22), 5)):
            hours, minute = draw.randint(1, 2), draw.choice(_MINUTES)
            free = draw.randint(6, 60)
            numbers.append(self._numbers.pop())
            self._trains[numbers[-1]] = {
                "origin": origin,
                "destination": destination,
                "date": day(self.today, days),
                "departs": f"{hour:02}:{minute:02}",
                "arrives": f"{hour + hours:02}:{draw.choice(_MINUTES):02}",
                "price": money(price),
                "free": free,
                "seats": free,
            }
            price += draw.randrange(110, 700, 10)
        self.booking(
            numbers[-1], draw.choice(("saver", "flex")), customer=draw.choice(self._others)
        )
        return numbers

    def booking(
        self,
        train: str,
        fare: str,
        *,
        seats: int | None = None,
        changes: int = 0,
        customer: str | None = None,
    ) -> str:
        """Add a booking of seats that the train has, and return its number."""
        seats = self._draw.randint(1, 3) if seats is None else seats
        number = self._booked.pop()
        self._trains[train]["free"] -= seats
        self._bookings[number] = {
            "customer": customer or self.user,
            "train": train,
            "seats": seats,
            "fare": fare,
            "paid": price_of(self._trains[train], seats, fare),
            "changes": changes,
            "status": "booked",
            "paid_back": "0.00",
        }
        return number

    def fill(self, train: str) -> None:
        """Leave no seat free on a train."""
        other = self._draw.choice(self._others)
        self.booking(train, "saver", seats=self._trains[train]["free"], customer=other)

    def extra(self, booking: str, train: str) -> str:
        """Return what moving a booking to a dearer train costs."""
        row = self._bookings[booking]
        new = cents(price_of(self._trains[train], row["seats"], row["fare"]))
        return money(new - cents(row["paid"]))

    def due(self, booking: str) -> str:
        """Return what a cancellation of a booking pays back."""
        row = self._bookings[booking]
        return due_of(row, self._trains[row["train"]], self.today)

    def train(self, number: str) -> Row:
        """Return a train."""
        return self._trains[number]

    def paid(self, booking: str) -> str:
        """Return what a booking cost."""
        return str(self._bookings[booking]["paid"])

    def look(self, train: str) -> Message:
        """Return the call that lists a train and those of its day."""
        row = self._trains[train]
        return calls("find_trains", **{key: row[key] for key in ("origin", "destination", "date")})

    def case(self, opening: str, told: Sequence[str], play: Sequence[Message], **more: Any) -> Case:
        """Return the case, see `desk.case`."""
        tables = {"customers": self._customers, "trains": self._trains, "bookings": self._bookings}
        return desk.case(
            self.today, tables, (self.user, "customer_id"), (opening, told, play), **more
        )


def _make(draw: Random, level: int) -> Case:
    draft = _Draft(draw)
    return (_look_up, _one_change, _on_condition, _refused, _together)[level - 1](draw, draft)


def _look_up(draw: Random, draft: _Draft) -> Case:
    trains = draft.trains(draft.here, draft.there, draw.randint(1, 5))
    chosen = draw.choice(trains[:4])
    row = draft.train(chosen)
    if draw.random() < 0.5:
        number = draft.booking(chosen, draw.choice(("saver", "flex")))
        question, value = draw.choice(
            (
                (f"At what time does the train of my booking {number} leave?", row["departs"]),
                (f"When do I arrive with booking {number}?", row["arrives"]),
                (f"How much did I pay for {number}?", draft.paid(number)),
            )
        )
        return draft.case(
            question, [value], (calls("get_booking", booking_id=number), says(f"It is {value}."))
        )
    cheap = draft.train(trains[0])
    route = f"from {draft.here} to {draft.there} on {row['date']}"
    question, value = draw.choice(
        (
            (f"How much is a saver seat on the cheapest train {route}?", cheap["price"]),
            (f"What does the train {route} that leaves at {row['departs']} cost?", row["price"]),
            (f"When does train {chosen} {route} arrive?", row["arrives"]),
        )
    )
    return draft.case(question, [value], (draft.look(chosen), says(f"It is {value}.")))


def _one_change(draw: Random, draft: _Draft) -> Case:
    trains = draft.trains(draft.here, draft.there, draw.randint(1, 5))
    draft.trains(draft.there, draft.here, draw.randint(1, 5))
    chosen = draw.choice(trains[:4])
    row = draft.train(chosen)
    fare = draw.choice(("saver", "flex"))
    if draw.random() < 0.5:
        number = draft.booking(chosen, fare)
        due = draft.due(number)
        opening = draw.choice(
            (
                f"Please cancel booking {number}. What do I get back?",
                f"I cannot travel: cancel {number}, and tell me how much is paid back.",
            )
        )
        cancel = calls("cancel_booking", booking_id=number, pay_back=due)
        play = (calls("get_booking", booking_id=number), cancel, says(f"You get {due} back."))
        return draft.case(opening, [due], play)
    seats = draw.randint(1, 4)
    words = f"{seats} {fare} {'seat' if seats == 1 else 'seats'}"
    opening = (
        f"I would like {words} from {draft.here} to {draft.there} on {row['date']}, on the train "
        f"that leaves at {row['departs']}. What does it cost in all?"
    )
    price = price_of(row, seats, fare)
    book = calls("book_seats", customer_id=draft.user, train_id=chosen, seats=seats, fare=fare)
    return draft.case(opening, [price], (draft.look(chosen), book, says(f"{price} in all.")))


def _on_condition(draw: Random, draft: _Draft) -> Case:
    days = draw.randint(1, 5)
    trains = draft.trains(draft.here, draft.there, days)
    draft.booking(draft.trains(draft.here, draft.else_where, days)[0], "saver")
    number = draft.booking(trains[0], "flex")
    target = trains[2]
    if draw.random() < 0.5:  # the next one is full
        draft.fill(trains[2])
        target = trains[3]
    hour = draft.train(trains[2])["departs"][:3] + "00"
    extra = cents(draft.extra(number, target))
    most = max(extra + draw.choice((-150, -50, 10, 50, 300)), 100)
    limit = money(most)
    opening = (
        f"I have a booking from {draft.here} to {draft.there} and would like to leave later: on "
        f"the first train of that day after {hour} with enough free seats for us. Change it if "
        f"that costs at most {limit} more; otherwise leave it as it is. Tell me how much more it "
        "is."
    )
    if draw.random() < 0.5:
        opening = opening.replace("I have a booking", "Hello! We have a booking")
    change = [calls("change_booking", booking_id=number, train_id=target)]
    play = (
        calls("find_bookings", customer_id=draft.user),
        calls("get_booking", booking_id=number),
        draft.look(target),
        *(change if extra <= most else []),
        says(f"It is {money(extra)} more."),
    )
    bases = {money(extra): (draft.paid(number), str(draft.train(target)["price"]))}
    return draft.case(opening, [money(extra)], play, bases=bases, has_check=True)


def _refused(draw: Random, draft: _Draft) -> Case:
    days = draw.randint(1, 5)
    trains = draft.trains(draft.here, draft.there, days)
    other = draft.trains(draft.there, draft.here, days + 1)
    play: tuple[Message, ...]
    kind = draw.choice(("second", "saver", "partly", "first", "other cities"))
    insist = draw.choice(
        (
            "I travel with you every week. Please make an exception, only this once.",
            "Your colleague told me on the telephone that it can be done. So please do it.",
        )
    )
    insisting: dict[str, Any] = {"words": (insist,), "is_refused": True, "has_check": True}
    if kind == "partly":
        numbers = [draft.booking(trains[0], "flex"), draft.booking(other[0], "saver")]
        extra, due = draft.extra(numbers[0], trains[1]), draft.due(numbers[1])
        first, second = draw.sample(numbers, 2)
        opening = (
            f"Please move my bookings {first} and {second} to the next later train of the same "
            "day. What do I have to pay?"
        )
        play = (
            calls("get_booking", booking_id=first),
            calls("get_booking", booking_id=second),
            draft.look(trains[1]),
            calls("change_booking", booking_id=numbers[0], train_id=trains[1]),
            says(
                f"{numbers[0]} is changed for {extra}. {numbers[1]} is saver and cannot be "
                f"changed; a cancellation would pay {due} back."
            ),
            says("I am sorry, I cannot do that."),
        )
        bases = {due: (draft.paid(numbers[1]),)}
        return draft.case(opening, [extra, due], play, bases=bases, **insisting)
    fare = "saver" if kind == "saver" else "flex"
    number = draft.booking(trains[0], fare, changes=int(kind == "second"))
    look = calls("get_booking", booking_id=number)
    if kind == "other cities":
        away = draft.trains(draft.here, draft.else_where, days)
        where = f"to {draft.else_where} instead, with train {away[1]}"
    else:
        where = f"to train {trains[1]} on the same day"
    opening = (
        f"I know that the rules are strict, but I have to change my booking {number} {where}. "
        "What does it come to?"
    )
    if kind == "first":
        extra = draft.extra(number, trains[1])
        change = calls("change_booking", booking_id=number, train_id=trains[1])
        play = (look, draft.look(trains[1]), change, says(f"Done, for {extra} more."), says("So."))
        return draft.case(opening, [extra], play, words=("Thank you!",), has_check=True)
    due = draft.due(number)
    refuse = says(f"It cannot be changed. A cancellation would pay {due} back.")
    play = (look, refuse, says("I am sorry, I cannot."))
    bases = {due: (draft.paid(number),)}
    return draft.case(opening, [due], play, bases=bases, **insisting)


def _together(draw: Random, draft: _Draft) -> Case:
    days = draw.randint(1, 4)
    out, out_later = (draft.trains(draft.here, draft.there, one) for one in (days, days + 1))
    home, home_later = (draft.trains(draft.there, draft.here, one) for one in (days + 2, days + 3))
    seats = draw.randint(1, 3)
    # Trains get dearer over a day, not from one day to the next: the new one is made the dearer.
    for old, new in ((out[0], out_later[1]), (home[0], home_later[1])):
        more = cents(draft.train(old)["price"]) + draw.randrange(150, 900, 10)
        draft.train(new)["price"] = money(more)
    first = draft.booking(out[0], "flex", seats=seats)
    second = draft.booking(home[0], draw.choice(("flex", "saver")), seats=seats)
    extra, due = draft.extra(first, out_later[1]), draft.due(second)
    opening = (
        f"We travel from {draft.here} to {draft.there} and home again, and want to do both a day "
        "later, each time with the second train of the day. What does the journey out cost us "
        "more?"
    )
    change = (
        "Stop, we have just decided to stay there. So move the journey out as I said, but cancel "
        "the journey home. And what do we get back for it?"
    )
    plans = (f"{second} to {home_later[1]}", f"cancel {second}, with {due} paid back")
    play = (
        calls("find_bookings", customer_id=draft.user),
        calls("get_booking", booking_id=first),
        calls("get_booking", booking_id=second),
        draft.look(out_later[1]),
        draft.look(home_later[1]),
        *(
            says(f"I am going to move {first} to {out_later[1]} and {one}. Shall I?")
            for one in plans
        ),
        calls("change_booking", booking_id=first, train_id=out_later[1]),
        calls("cancel_booking", booking_id=second, pay_back=due),
        says(f"Done: {extra} more for the journey out, {due} back for the journey home."),
    )
    words = (change, "Yes, please.")
    return draft.case(opening, [extra, due], play, words=words, consent=1, has_check=True)


TRAINS: Final = Domain(
    name="trains",
    place="a railway",
    people="customers",
    operations=OPERATIONS,
    rules=RULES,
    forbidden=forbidden,
    make=_make,
    problems=problems,
)
"""The desk of a railway"""
