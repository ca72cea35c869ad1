"""Filling cells with numbers that differ within groups, by a search that ends after some steps.

A cell's candidates are bits: bit 0 for the number 1, bit 1 for 2, and so on. A step narrows what
follows at once (a cell with one candidate, a number with one place, a pair of which one is less),
then tries the candidates of the cell that has the fewest.
"""

from collections.abc import Sequence
from random import Random


class _OutOfSteps(Exception):
    """The search has taken all its steps."""


class Filling:
    """Cells with the numbers 1 to size, in groups of that many cells that hold each number once."""

    def __init__(
        self,
        size: int,
        groups: Sequence[Sequence[int]],
        less: Sequence[tuple[int, int]] = (),
    ) -> None:
        """less    pairs of cells; the first must have the smaller number"""
        num_cells = 1 + max(map(max, groups))
        self._all = (1 << size) - 1
        self._num_cells = num_cells
        self._groups = groups
        self._peers = [
            sorted({peer for group in groups if cell in group for peer in group} - {cell})
            for cell in range(num_cells)
        ]
        self._greater = [[b for a, b in less if a == cell] for cell in range(num_cells)]
        self._smaller = [[a for a, b in less if b == cell] for cell in range(num_cells)]
        self._steps = 0

    def find(self, draw: Random, max_steps: int) -> list[int] | None:
        """Return numbers at random that fill all cells; None if the steps did not find any."""
        self._steps = max_steps
        masks = [self._all] * self._num_cells
        try:
            found = self._descend(masks, draw)
        except _OutOfSteps:
            return None
        return found and [mask.bit_length() for mask in found]

    def thin_out(
        self, draw: Random, numbers: Sequence[int], num_empty: int, max_steps: int
    ) -> list[int | None]:
        """Return numbers of which up to that many are None, so that they follow from the others.

        A cell is emptied if a search of some steps shows that no other number can stand there.
        """
        kept: list[int | None] = list(numbers)
        for cell in draw.sample(range(self._num_cells), self._num_cells):
            if num_empty == 0:
                break
            kept[cell] = None
            if self._has_other(kept, cell, numbers[cell], max_steps):
                kept[cell] = numbers[cell]
            else:
                num_empty -= 1
        return kept

    def _has_other(
        self, kept: Sequence[int | None], cell: int, number: int, max_steps: int
    ) -> bool:
        """Return False if the search shows that no filling has another number in a cell."""
        masks = [self._all if kept_one is None else 1 << (kept_one - 1) for kept_one in kept]
        masks[cell] &= ~(1 << (number - 1))
        for peer in self._peers[cell]:
            if kept[peer] is not None:
                masks[cell] &= ~masks[peer]
        if masks[cell] == 0:
            return False
        self._steps = max_steps
        try:
            return self._narrow(masks, range(self._num_cells)) and (
                self._descend(masks, None) is not None
            )
        except _OutOfSteps:
            return True

    def _descend(self, masks: list[int], draw: Random | None) -> list[int] | None:
        """Return the masks of a filling, narrowed to one bit each; None if there is none."""
        if self._steps == 0:
            raise _OutOfSteps
        self._steps -= 1
        if not self._place_lone_numbers(masks):
            return None
        open_cells = [cell for cell in range(self._num_cells) if masks[cell] & (masks[cell] - 1)]
        if not open_cells:
            return masks
        cell = min(open_cells, key=lambda cell: masks[cell].bit_count())
        bits = [1 << i for i in range(masks[cell].bit_length()) if masks[cell] >> i & 1]
        if draw is not None:
            draw.shuffle(bits)
        for bit in bits:
            tried = masks.copy()
            tried[cell] = bit
            if self._narrow(tried, [cell]):
                found = self._descend(tried, draw)
                if found is not None:
                    return found
        return None

    def _place_lone_numbers(self, masks: list[int]) -> bool:
        """Place each number that has one place in a group, until none has; False if one has no
        place at all."""
        is_changed = True
        while is_changed:
            is_changed = False
            for group in self._groups:
                once = twice = 0
                for cell in group:
                    twice |= once & masks[cell]
                    once |= masks[cell]
                if once != self._all:
                    return False
                lone = once & ~twice
                for cell in group:
                    bit = masks[cell] & lone
                    if bit and bit != masks[cell]:
                        masks[cell] = bit
                        if not self._narrow(masks, [cell]):
                            return False
                        is_changed = True
        return True

    def _narrow(self, masks: list[int], cells: Sequence[int]) -> bool:
        """Strike candidates that those of some cells rule out, and what follows from that; False if
        a cell is left with none."""
        changed = list(cells)
        while changed:
            cell = changed.pop()
            mask = masks[cell]
            if mask & (mask - 1) == 0:
                for peer in self._peers[cell]:
                    if masks[peer] & mask and not _strike(masks, peer, mask, changed):
                        return False
            for other in self._greater[cell]:
                low = mask & -mask  # the other is greater than the least candidate
                if not _strike(masks, other, (low << 1) - 1, changed):
                    return False
            for other in self._smaller[cell]:
                high = 1 << (mask.bit_length() - 1)
                if not _strike(masks, other, self._all & ~(high - 1), changed):
                    return False
        return True


def _strike(masks: list[int], cell: int, struck: int, changed: list[int]) -> bool:
    """Take candidates from a cell, and note a change; False if it is left with none."""
    left = masks[cell] & ~struck
    if left != masks[cell]:
        masks[cell] = left
        changed.append(cell)
    return left != 0
