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


@pytest.mark.parametrize("config", [tiny_m1(), tiny_m2()], ids=["m1", "m2"])
def test_logits_are_given_at_the_wanted_indices(config: M1Config | M2Config) -> None:
    model = random_model(config)
    sequences = [list(range(10)), [7], list(range(40, 55))]
    wanted = [[2, 3, 9], [], range(14)]
    packed = Packed.of(sequences, wanted=wanted)
    assert packed.logits_indices is not None
    assert packed.logits_indices.tolist() == [2, 3, 9, *range(11, 25)]
    with torch.no_grad():
        every = model(Packed.of(sequences))
        assert torch.equal(model(packed), every[packed.logits_indices])
    nothing = Packed.of(sequences, wanted=[[], [], []])
    assert nothing.logits_indices is not None
    assert nothing.logits_indices.dtype == torch.int64
    assert model.target_logprobs(nothing, torch.zeros(0, dtype=torch.int64)).shape == (0,)
    last = Packed.of(sequences, num_logits=[2, 1, 3]).logits_indices
    assert last is not None
    assert last.tolist() == [8, 9, 10, 23, 24, 25]


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ([[0]], "wanted has 1 entries for 2 sequences, each needs one"),
        ([[0], [3, 5]], "wanted of sequence 1 goes from 3 to 5, it has the tokens 0 to 4"),
        ([[-1, 0], [0]], "wanted of sequence 0 goes from -1 to 0, it has the tokens 0 to 2"),
    ],
)
def test_indices_that_no_token_has_are_refused(wanted: list[list[int]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Packed.of([[1, 2, 3], [1, 2, 3, 4, 5]], wanted=wanted)
