"""lm-eval measures what the model says: its numbers and texts are those of the engine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulmen.llm import LLM
from fulmen.sampling import SamplingParams
from tests.server.clients.programs import Place, lm_eval, program
from tests.server.helpers import served_checkpoint
from tests.tiny import write_checkpoint

pytestmark = pytest.mark.slow

DOCS: list[dict[str, Any]] = [
    {"question": "What is the capital of France? 🦩", "choices": ["Paris", "Rome"], "answer": 0},
    {"question": "Which is the colour of the sky?", "choices": ["green", "blue"], "answer": 1},
    {"question": "How many legs has a dog?", "choices": ["four", "seven"], "answer": 0},
]
TEXT = "Question: {{question}}\\nAnswer:"


def prompt(doc: dict[str, Any]) -> str:
    return f"Question: {doc['question']}\nAnswer:"


@pytest.fixture
def place(tmp_path: Path) -> Place:
    program("lm-eval")
    return Place.new(tmp_path)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """Folder of one task of choices and one of texts, over the same questions."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    common = f"""
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_text: "{TEXT}"
"""
    (folder / "choices.yaml").write_text(
        f"""task: our_choices{common}output_type: multiple_choice
doc_to_target: answer
doc_to_choice: choices
metric_list:
  - metric: acc
"""
    )
    (folder / "texts.yaml").write_text(
        f"""task: our_texts{common}output_type: generate_until
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs:
  until: ["e", "zz"]
  max_gen_toks: 24
metric_list:
  - metric: exact_match
"""
    )
    return folder


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return LLM.load(str(write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Address of the same model."""
    with served_checkpoint("m2") as url:
        yield url


def samples(place: Place, task: str) -> list[Any]:
    """Return what lm-eval noted of each document, in their order."""
    (file,) = (place.work / "out").rglob(f"samples_{task}_*.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return sorted(found, key=lambda sample: sample["doc_id"])


def loglikelihood(llm: LLM, before: str, text: str) -> tuple[float, bool]:
    """Return the log-probability of a text after another, and whether it is the likeliest: that of
    its ids as the engine draws them when they are forced."""
    ids, own = llm.tokenizer.encode(before), llm.tokenizer.encode(text)
    params = SamplingParams(max_tokens=len(own), logprobs=1, ignore_eos=True)
    tokens = llm.chat(text=ids, forced_ids=own, params=params).tokens
    is_likeliest = all(token.top_logprobs[0][0] == token.token_id for token in tokens)
    return sum(token.logprob for token in tokens), is_likeliest


def test_a_task_of_choices(place: Place, tasks: Path, url: str, llm: LLM) -> None:
    done = lm_eval(place, url, tasks, "our_choices").wait()
    assert done.returncode == 0, done.story
    found = samples(place, "our_choices")
    assert len(found) == len(DOCS)
    for doc, sample in zip(DOCS, found, strict=True):
        own = [loglikelihood(llm, prompt(doc), f" {choice}") for choice in doc["choices"]]
        for (logprob, is_likeliest), response in zip(own, sample["filtered_resps"], strict=True):
            assert float(response[0]) == pytest.approx(logprob, abs=1e-4)
            assert str(response[1]) == str(is_likeliest)
        best = max(range(len(own)), key=lambda index: own[index][0])
        assert sample["acc"] == float(best == doc["answer"])


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_task_of_texts(place: Place, tasks: Path, url: str, llm: LLM, is_chat: bool) -> None:
    done = lm_eval(place, url, tasks, "our_texts", is_chat=is_chat).wait()
    assert done.returncode == 0, done.story
    found = samples(place, "our_texts")
    assert len(found) == len(DOCS)
    params = SamplingParams(
        temperature=0, max_tokens=24, stop=("e", "zz"), thinking_budget=18 if is_chat else None
    )
    for doc, sample in zip(DOCS, found, strict=True):
        question = prompt(doc)
        if is_chat:
            reply = llm.chat([{"role": "user", "content": question}], params=params).reply
        else:
            reply = llm.generate(question, params=params).reply
        assert sample["resps"] == [[reply.content]]
