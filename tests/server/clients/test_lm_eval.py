"""lm-eval measures what the model says: its numbers and texts are those of the engine, and of
`fulmen eval`."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fulmen.catalog.download import cache_folder
from fulmen.envs import Arithmetic
from fulmen.evaluate import read_results
from fulmen.llm import LLM
from fulmen.sampling import SamplingParams
from tests.cli.test_cli import called
from tests.server.clients.programs import Place, Running, lm_eval, program
from tests.server.helpers import served_checkpoint
from tests.tiny import write_checkpoint
from tests.warm import python

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


NUM_QUESTIONS = 200
MAX_TOKENS = 64


@contextmanager
def serving_smollm2(folder: Path) -> Iterator[str]:
    """Run `fulmen serve smollm2` with a home in a folder; give its address."""
    place = Place.new(folder)
    command = python("-m", "fulmen", "serve", "smollm2", "--port", "0")
    settings = {"XDG_CACHE_HOME": str(cache_folder().parent)}
    running = Running(command, home=place.home, work=place.work, settings=settings)
    try:
        address, deadline = "", time.monotonic() + 300
        while not address.endswith("\n"):
            assert running.process.poll() is None, (place.home / "stderr").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
            address = (place.home / "stdout").read_text()
        yield address.strip()
    finally:
        running.kill()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """File of stories with a number each, and beside it lm-eval's task of them: no stop texts, no
    words but the question, and of the answer the last number, as in lm-eval's own gsm8k."""
    stories = Arithmetic(seed=0)
    folder = tmp_path / "stories"
    folder.mkdir()
    file = folder / "questions.jsonl"
    with file.open("w") as lines:
        for index in range(NUM_QUESTIONS):
            task = stories.task(index)
            doc = {"question": task.question, "answer": int(task.number)}
            lines.write(json.dumps(doc) + "\n")
    (folder / "stories.yaml").write_text(
        f"""task: our_stories
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  until: []
  temperature: 0.0
  max_gen_toks: {MAX_TOKENS}
filter_list:
  - name: flexible-extract
    filter:
      - function: regex
        group_select: -1
        regex_pattern: "(-?[$0-9.,]{{2,}})|(-?[0-9]+)"
      - function: take_first
metric_list:
  - metric: exact_match
    regexes_to_ignore: [",", "\\\\$", "\\\\.$"]
"""
    )
    return file


def test_fulmen_eval_has_the_answers_of_lm_eval(
    place: Place, questions: Path, tmp_path: Path
) -> None:
    if not (cache_folder() / "smollm2/model.gguf").exists():
        pytest.skip("smollm2 is not here, `fulmen models pull smollm2` brings it")
    (tmp_path / "server").mkdir()
    with serving_smollm2(tmp_path / "server") as url:
        begin = time.monotonic()
        done = lm_eval(place, url, questions.parent, "our_stories", is_chat=True).wait(3000)
        seconds = [time.monotonic() - begin]
    assert done.returncode == 0, done.story
    theirs = samples(place, "our_stories")
    out, limit = tmp_path / "evals", str(MAX_TOKENS)
    flags = ("--temperature", "0", "--max-tokens", limit, "--out", out)
    begin = time.monotonic()
    run = called("eval", "smollm2", questions, *flags)
    seconds.append(time.monotonic() - begin)
    assert run.returncode == 0, run.stderr
    results = read_results(out)
    assert len(theirs) == len(results.passes) == NUM_QUESTIONS
    answers, verdicts = [], []
    for sample, played in zip(theirs, results.passes, strict=True):
        reply = results.trajectory(played).reply
        assert reply is not None
        ((text,),) = sample["resps"]
        if text != reply.content:
            answers.append((played.index, text, reply.content))
        if sample["exact_match"] != played.score:
            verdicts.append((played.index, text))
            # lm-eval takes the last number, after a mark or not, and reads "to-1" as -1.
            (read,) = sample["filtered_resps"]
            assert re.sub(r",|\$|\.$", "", read) != played.answer, text
    equal = [NUM_QUESTIONS - len(differing) for differing in (answers, verdicts)]
    scores = [[each["exact_match"] for each in theirs], [each.score for each in results.passes]]
    passed = [each.count(1.0) for each in scores]
    print(f"{NUM_QUESTIONS} questions, {equal} answers and verdicts equal, {passed} passed")
    print(f"{seconds} s of lm-eval and fulmen eval; other verdicts: {verdicts}")
    assert not answers
    assert len(verdicts) <= NUM_QUESTIONS // 20
