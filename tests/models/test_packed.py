"""A batch for a cache is checked where it is made: every sequence has its pages and its slot."""

from typing import Any

import pytest
import torch

from fulmen.models import M1Config, M2Config, Packed
from tests.models.helpers import Session, random_model, tiny_m1, tiny_m2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"block_tables": [[1], [2, 3]]}, "block_tables are given without slots, a cache needs"),
        ({"slots": [0, 1]}, "slots are given without block_tables, a cache needs both"),
        (
            {"block_tables": [[1], [2, 3]], "slots": [0, 1]},
            "sequence 0 has 70 tokens, past and new, and 1 pages, it needs 2",
        ),
        (
            {"block_tables": [[1, 4], [2, 3]], "slots": [0, 1], "context_lens": [0, 29]},
            "sequence 1 has 129 tokens, past and new, and 2 pages, it needs 3",
        ),
        ({"block_tables": [[1, 4], [2, -1]], "slots": [0, 1]}, "none may be negative"),
        ({"block_tables": [[1, 4], [2, 3]], "slots": [0, -1]}, "none may be negative"),
        ({"block_tables": [[1, 4]], "slots": [0, 1]}, "block_tables has 1 entries for 2 sequences"),
        ({"block_tables": [[1, 4], [2, 3]], "slots": [0]}, "slots has 1 entries for 2 sequences"),
        ({"context_lens": [0, 0, 0]}, "context_lens has 3 entries for 2 sequences"),
        ({"context_lens": [0, -1]}, "context_lens of sequence 1 is -1, it must not be negative"),
    ],
)
def test_a_batch_that_does_not_fit_its_cache_is_refused(
    arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Packed.of([[2] * 70, [3] * 100], **arguments)


def test_short_block_tables_are_padded_with_pages_of_their_own() -> None:
    packed = Packed.of([[2] * 10, [3] * 100], block_tables=[[1], [2, 3]], slots=[0, 1])
    assert packed.block_table is not None
    assert packed.block_table.tolist() == [[1, 1], [2, 3]]


@pytest.mark.parametrize("config", [tiny_m1(), tiny_m2()], ids=["m1", "m2"])
def test_a_cache_needs_a_batch_with_pages_and_slots(config: M1Config | M2Config) -> None:
    session = Session(random_model(config))
    for batch in (Packed.of([[1, 2]]), torch.tensor([[1, 2]])):
        with pytest.raises(ValueError, match="no block_table and slots, a cache needs both"):
            session.model(batch, session.cache)
