"""Log-probabilities of prompts: those of a plain pass, whatever the cache knows."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.engine import PromptLogprob
from fulmen.llm import LLM
from fulmen.models import Packed
from fulmen.sampling import SamplingParams
from tests.engine.helpers import assert_nothing_is_owned, new_tokens
from tests.engine.test_prefixes import MODELS, every_model, kv_dtype, small_engine
from tests.examples import examples


def plainly(name: str, prompt: list[int], count: int) -> list[PromptLogprob]:
    """Return what one pass over the whole prompt says of its tokens."""
    model = MODELS[name]
    cache = model.new_cache(8, 1, kv_dtype=kv_dtype(name))
    packed = Packed.of([prompt], context_lens=[0], block_tables=[list(range(8))], slots=[0])
    targets = torch.tensor([*prompt[1:], 0])
    with torch.inference_mode():
        head = model.next_tokens(packed, cache, targets=targets, top_k=count)
    assert head.target_logits is not None
    found = []
    for place, token_id in enumerate(prompt[1:]):
        # As the engine subtracts: in Python's floats
        logsumexp = float(head.logsumexp[place])
        top = zip(head.top_ids[place].tolist(), head.top_logits[place].tolist(), strict=True)
        found.append(
            PromptLogprob(
                token_id,
                float(head.target_logits[place]) - logsumexp,
                tuple((other, logit - logsumexp) for other, logit in top),
            )
        )
    return found


PROMPT = st.tuples(st.integers(0, 1), st.integers(1, 180), st.lists(st.integers(0, 60), max_size=5))
ARRIVAL = st.tuples(
    PROMPT,
    st.sampled_from([None, None, 0, 3]),  # prompt_logprobs
    st.just(1) | st.integers(1, 180),  # the first one that is wanted
    st.integers(1, 60),  # new tokens
    st.integers(0, 1),  # priority
    st.integers(0, 10),  # steps until the next arrives
)


@every_model
@given(
    load=st.lists(ARRIVAL, min_size=1, max_size=6),
    pages=st.integers(5, 9),
    drafts=st.sampled_from([0, 5]),
)
@settings(max_examples=examples(25), deadline=None)
def test_they_are_those_of_a_plain_pass_to_the_bit(name, load, pages, drafts) -> None:  # type: ignore[no-untyped-def]
    engine = small_engine(name, pages=pages, drafts=drafts)
    asked: dict[int, tuple[list[int], int | None, int]] = {}
    found: dict[int, list[PromptLogprob]] = {}

    def step() -> None:
        for output in new_tokens(engine.step()):
            is_first = output.request_id not in found
            assert is_first or not output.prompt_logprobs
            found.setdefault(output.request_id, list(output.prompt_logprobs))

    for (stream, length, end), count, first, max_tokens, priority, wait in load:
        prompt = [(7 * place + stream) % 61 for place in range(length)] + end
        params = SamplingParams(max_tokens=max_tokens, seed=1, prompt_logprobs=count)
        first = min(first, len(prompt))
        request_id = engine.add_request(prompt, params, priority=priority, first_scored=first)
        asked[request_id] = prompt, count, first
        for _ in range(wait):
            step()
    while engine.has_unfinished:
        step()
    for request_id, (prompt, count, first) in asked.items():
        expected = [] if count is None else plainly(name, prompt, count)[first - 1 :]
        assert found[request_id] == expected
    assert_nothing_is_owned(engine)


def test_an_answer_has_them_without_its_prefix(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from tests.tiny import write_checkpoint

    llm = LLM.load(str(write_checkpoint(tmp_path, "m2")))
    for fields in ({}, {"prefix_ids": [5, 6, 7]}):
        completion = llm.generate(
            [1, 2, 3, 4],
            params=SamplingParams(max_tokens=5, seed=1, prompt_logprobs=1),
            **fields,
        )
        assert [token.token_id for token in completion.prompt_tokens] == [2, 3, 4]
        assert all(
            token.logprob <= token.top_logprobs[0][1] < 0 for token in completion.prompt_tokens
        )
        assert all(math.isfinite(token.logprob) for token in completion.prompt_tokens)
    prompt = [place % 60 for place in range(300)]
    params = SamplingParams(max_tokens=1, prompt_logprobs=2)
    whole = llm.generate(prompt, params=params)
    last = llm.generate(prompt, params=params, first_scored=280)
    assert last.prompt_tokens == whole.prompt_tokens[279:]
    assert (whole.usage.num_cached_tokens, last.usage.num_cached_tokens) == (0, 279)
    with pytest.raises(ValueError, match="first_scored"):
        llm.generate([1, 2], params=params, first_scored=3)
    assert llm.generate([1, 2], params=SamplingParams(max_tokens=1)).prompt_tokens == ()


@pytest.mark.parametrize("count", [-1, 21, True, 1.5])
def test_a_wrong_number_of_them_is_refused(count: object) -> None:
    with pytest.raises(ValueError, match="prompt_logprobs is"):
        SamplingParams(prompt_logprobs=count)  # type: ignore[arg-type]
