"""A request that fails ends alone and says why; the others go on, to the same bits."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import ChatRequest, Prompt, TokenBudget, complete
from fulmen.engine import EngineConfig
from fulmen.llm import LLM, LocalModel
from fulmen.sampling import SamplingParams
from tests.cli.test_cli import fulmen
from tests.engine.helpers import assert_nothing_is_owned
from tests.examples import examples
from tests.tiny import write_checkpoint

BAD = "Z"
"""A byte whose embedding is not a number"""


def params(seed: int) -> SamplingParams:
    return SamplingParams(seed=seed, temperature=1.0, max_tokens=12, stop=("Z",))


def poison(llm: LLM, value: float) -> None:
    (token_id,) = llm.tokenizer.encode(BAD)
    weight = llm.engine.model.model.embed_tokens.weight.data
    weight[token_id] = value


@pytest.fixture(scope="module", params=["m1", "m2"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    folder: Path = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    return LLM.load(str(folder), engine_config=EngineConfig(max_num_seqs=4))


def ask(text: str, seed: int) -> ChatRequest:
    return ChatRequest(messages=[{"role": "user", "content": text}], params=params(seed))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@settings(max_examples=examples(8), deadline=None)
@given(
    texts=st.lists(st.tuples(st.text("abc", max_size=150), st.booleans()), min_size=1, max_size=6)
)
def test_only_requests_that_meet_what_is_no_number_end(
    llm: LLM, value: float, texts: list[tuple[str, bool]]
) -> None:
    (token_id,) = llm.tokenizer.encode(BAD)
    weight = llm.engine.model.model.embed_tokens.weight.data
    kept = weight[token_id].clone()
    llm.engine.prefixes.clear()
    alone = [llm.chat(ask(text, seed)) for seed, (text, _) in enumerate(texts)]
    poison(llm, value)
    try:
        llm.engine.prefixes.clear()

        async def main() -> None:
            async with LocalModel(llm) as model:
                requests = [
                    ask(text + BAD * is_bad, seed) for seed, (text, is_bad) in enumerate(texts)
                ]
                found = await asyncio.gather(
                    *(complete(model, request) for request in requests), return_exceptions=True
                )
            for (_, is_bad), one, before in zip(texts, found, alone, strict=True):
                if is_bad:
                    assert isinstance(one, ValueError)
                    assert "NaN" in str(one) or "not finite" in str(one) or "infinite" in str(one)
                elif BAD not in llm.tokenizer.decode(before.answer_ids):
                    assert not isinstance(one, BaseException)
                    assert one.answer_ids == before.answer_ids
                    assert [t.logprob for t in one.tokens] == [t.logprob for t in before.tokens]

        asyncio.run(main())
        assert_nothing_is_owned(llm.engine)
    finally:
        weight[token_id] = kept
        llm.engine.prefixes.clear()


def test_the_command_line_says_why_in_one_sentence(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = write_checkpoint(tmp_path, "m2")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for flags in (["--temperature", "0"], ["--temperature", "1"], ["--json"]):
        run = fulmen("generate", "Hello", "--model", folder, "--max-tokens", "4", *flags)
        assert run.returncode == 1
        assert run.stdout.strip() == ""
        assert "NaN" in run.stderr
        assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prefix_ids": [1.5]}, "prefix_ids holds 1.5"),
        ({"prefix_ids": "ab"}, "prefix_ids of a request is of type str"),
        ({"prefix_ids": [10**12]}, "is outside the"),
        ({"prefix_ids": [-1]}, "token id -1 is outside"),
        ({"forced_ids": [True]}, "forced_ids holds True"),
        ({"prefix_logprobs": [-1.0]}, "prefix_logprobs has 1 entries"),
        ({"prefix_ids": [1], "prefix_logprobs": ["a"]}, "it must hold numbers"),
        ({"budget": 5}, "budget of a request is of type int"),
        ({"params": 5}, "params of a request is of type int"),
        ({"prompt": (1, 2)}, "prompt of a request is of type tuple"),
        ({"prompt": Prompt((1.5,))}, "prompt_ids holds 1.5"),  # type: ignore[arg-type]
        ({"priority": "high"}, "priority is 'high'"),
        ({"tools": 5}, "tools is of type int"),
        ({"messages": 5}, "messages is of type int"),
        ({"messages": "hello"}, "messages is of type str"),
    ],
)
def test_a_wrong_field_of_a_request_is_one_sentence(
    llm: LLM, fields: dict[str, Any], sentence: str
) -> None:
    given = {"messages": [{"role": "user", "content": "a"}], **fields}
    with pytest.raises(ValueError, match=sentence) as error:
        llm.stream(**given)
    assert "\n" not in str(error.value)
    assert not llm.engine.has_unfinished
    for wrong in (1.5, -1, float("nan"), True):
        with pytest.raises(ValueError, match="the budget of tokens is"):
            TokenBudget(wrong)  # type: ignore[arg-type]
    for text in (5, None, [1.5]):
        with pytest.raises(ValueError, match="prompt"):
            llm.generate(text)  # type: ignore[arg-type]


def test_an_answer_that_cannot_start_costs_no_shared_budget(llm: LLM) -> None:
    shared = TokenBudget(100)
    opening = "" if llm.format.thinking_open_in_prompt else "<think>\n"
    prefix = llm.tokenizer.encode(f"{opening}abc Z")
    with pytest.raises(ValueError, match="a stop text"):
        llm.stream(ask("a", 1), prefix_ids=prefix, budget=shared)
    assert shared.num_left == 100
