"""Who owns which pages and slots of the model's cache."""

from dataclasses import dataclass

from fulmen.kernels import PAGE


class FreeList:
    """Numbers 0 to size - 1, handed out and given back; the lowest free number first."""

    def __init__(self, size: int) -> None:
        self._free = list(range(size - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` numbers, which must be free."""
        assert count <= len(self._free), "taken without asking can_hold"
        return [self._free.pop() for _ in range(count)]

    def give_back(self, numbers: list[int]) -> None:
        """Returns numbers taken before."""
        self._free.extend(numbers)
        self._free.sort(reverse=True)


@dataclass(frozen=True, slots=True)
class Reservation:
    """What one request owns of the cache while it runs."""

    pages: list[int]
    slot: int


class CacheOwners:
    """Reserves for each request all the pages it may ever need, so a running request never waits
    for one."""

    def __init__(self, num_pages: int, num_slots: int) -> None:
        self.num_pages = num_pages
        self._pages = FreeList(num_pages)
        self._slots = FreeList(num_slots)

    def can_hold(self, num_tokens: int) -> bool:
        """Whether a request of num_tokens fits now."""
        return pages_for(num_tokens) <= len(self._pages) and len(self._slots) > 0

    def reserve(self, num_tokens: int) -> Reservation:
        """Pages and a slot for num_tokens; ask `can_hold` first."""
        return Reservation(self._pages.take(pages_for(num_tokens)), self._slots.take(1)[0])

    def release(self, reservation: Reservation) -> None:
        """Gives a request's share back."""
        self._pages.give_back(reservation.pages)
        self._slots.give_back([reservation.slot])


def pages_for(num_tokens: int) -> int:
    """Pages that hold num_tokens."""
    return -(-num_tokens // PAGE)
