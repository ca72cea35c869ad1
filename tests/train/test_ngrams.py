"""N-grams: documents that an evaluation set has are left out, in all that is learnt of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from fulmen.train import Coder, TaskConfig, TaskStream
from fulmen.train.lm.documents import document_of
from fulmen.train.lm.ngrams import CheckConfig, NGrams
from fulmen.train.lm.sources import open_source
from tests.train.lm_helpers import coder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Coder:
    return coder(tmp_path_factory.mktemp("tokenizer"))


def test_documents_that_an_evaluation_set_has_are_left_out_and_counted(
    own: Coder, tmp_path: Path
) -> None:
    known = tmp_path / "test.jsonl"
    known.write_text(json.dumps({"question": "What is the Capital of France, please?"}) + "\n")
    rows = tmp_path / "rows.jsonl"
    texts = ["tell me: what is the capital of france please now", "another thing", "a third one"]
    answer = {"role": "assistant", "content": "Yes.", "thinking": texts[0]}
    talk = [{"role": "user", "content": "Ask me."}, answer]
    lines = [{"messages": talk}, *({"text": text} for text in texts)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ngrams = NGrams.of(CheckConfig(files=(known,), num_words=5))
    found = TaskStream("rows", open_source(TaskConfig(files=(rows,)), 0), own, ngrams=ngrams)
    drawn = set()
    for _ in range(8):
        example = found.peek(100)
        drawn.add(own.tokenizer.decode(list(example.ids[1:-1])))
        found.take(example)
    assert drawn == set(texts[1:])
    assert found.num_contaminated == 8
    assert NGrams.of(CheckConfig()) is None


def test_short_documents_are_compared_whole_and_never_by_an_answer_alone(tmp_path: Path) -> None:
    known = tmp_path / "test.jsonl"
    asked = {"question": "Is the sky really blue?", "answer": "yes", "kind": "easy"}
    talk = [
        {"role": "user", "content": "Say what rain is made of"},
        {"role": "assistant", "content": "Of water."},
    ]
    lines = [asked, {"prompt": "Is snow warm at night?", "answer": "no"}, {"messages": talk}]
    known.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ngrams = NGrams.of(CheckConfig(files=(known,)))
    assert ngrams is not None
    assert ngrams.has_any_of("is snow warm at night", "No.")
    assert ngrams.has_any_of("say what rain is made of", "of water")
    assert not ngrams.has_any_of("is ice warm at night", "no")
    assert not ngrams.has_any_of("is snow warm at night", "yes")
    for word in ("yes", "no", "easy", "user", "assistant"):
        assert not ngrams.has_any_of("a question of its own", word)
        assert not ngrams.has_any_of(word)


@pytest.mark.parametrize(
    ("text", "is_known"),
    [
        ("a b c d", True),
        ("x A, b! c d y", True),
        ("a b c x d", False),
        ("one two", False),
        ("", False),
    ],
)
def test_runs_of_words_are_compared(text: str, is_known: bool) -> None:
    assert NGrams([("w a b c d",), ("one two",)], 4).has_any_of(text) is is_known


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ("法国的首都是哪座城市", "请问法国的首都是哪座城市呢"),
        ("富士山はどこにありますか", "では、富士山はどこに・ありますか。"),
        ("เมืองหลวงของไทย", "ถาม: เมืองหลวงของไทย คือ"),
        ("the 首都 of France, ﾊﾟﾘ", "THE首都of france: ﾊﾟﾘ!"),
    ],
)
def test_a_character_is_a_word_where_spaces_part_none(known: str, text: str) -> None:
    ngrams = NGrams([(known,)], 7)
    assert ngrams.has_any_of(text)
    assert not ngrams.has_any_of(text[::-1])


ASKED = "one two three four five six"
CALL = {"function": {"name": "look", "arguments": {"query": [ASKED]}}}
WRITTEN = {"function": {"name": "look", "arguments": json.dumps({"query": f"so:\n{ASKED}\n?"})}}


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("a", {"content": ASKED}),
        ("a", {"content": "b", "reasoning_content": f"they ask {ASKED}"}),
        ("a", {"content": "b", "thinking": ASKED}),
        ("a", {"content": "b", "reasoning_details": [{"type": "text", "text": ASKED}]}),
        ("a", {"content": None, "tool_calls": [CALL]}),
        ("a", {"content": None, "tool_calls": [WRITTEN]}),
        ("a", {"content": [{"type": "text", "text": f"so:\n{ASKED}\n?"}]}),
        ("a", {"content": [{"type": "thinking", "thinking": f"so:\n{ASKED}"}, "b"]}),
        ("a", {"content": [{"type": "tool_use", "name": "look", "input": {"query": ASKED}}]}),
        ([{"type": "text", "text": f"so:\n{ASKED}\n?"}], {"content": "b"}),
        ([f"so:\n{ASKED}", "two"], {"content": "b"}),
    ],
)
def test_all_that_is_read_or_learnt_of_a_conversation_is_compared(
    asked: object, answer: dict[str, Any]
) -> None:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", **answer}]
    document = document_of({"messages": messages}, "here", "chat")
    assert NGrams([(ASKED,)], 6).has(document)
    assert not NGrams([("one two four five six three",)], 6).has(document)
    names = " ".join(("user a assistant", "text", "role content"))
    assert not NGrams([(names,)], 2).has(document)


def test_a_key_is_the_text_of_a_prompts_parts() -> None:
    answer = {"role": "assistant", "content": "b"}
    parts = [{"type": "text", "text": "it's"}, {"type": "text", "text": "so"}]
    for content, key in (("it's", "it's"), (parts[:1], "it's"), (parts, "it's\nso")):
        messages = [{"role": "user", "content": content}, answer]
        document = document_of({"messages": messages}, "here", "chat")
        assert (document.key, document.said, document.thoughts) == (key, "b", "")


def test_a_whole_document_is_known_with_its_thoughts_or_without(tmp_path: Path) -> None:
    def row(thinking: str | None) -> dict[str, Any]:
        user = {"role": "user", "content": "Is snow warm at night?"}
        return {"messages": [user, {"role": "assistant", "content": "no", "thinking": thinking}]}

    thinking = "It is cold."
    for known, other in ((None, thinking), (thinking, None), (thinking, thinking)):
        file = tmp_path / "test.jsonl"
        file.write_text(json.dumps(row(known)))
        ngrams = NGrams.of(CheckConfig(files=(file,)))
        assert ngrams is not None
        assert ngrams.has(document_of(row(other), "here", "chat"))


def test_the_trace_of_a_problem_is_compared() -> None:
    document = open_source(TaskConfig(generator="spell", smallest=9, largest=9), 0).document(0)
    assert document.problem is not None
    assert NGrams([(document.problem.trace,)], 9).has(document)


def test_rows_that_are_nested_deeply_are_compared(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"a":' * 400 + f'"{ASKED}"' + "}" * 400)
    ngrams = NGrams.of(CheckConfig(files=(file,), num_words=6))
    assert ngrams is not None
    assert ngrams.has_any_of(ASKED)


def test_a_number_of_words_without_files_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^num_words is 5, it needs files, there are none$"):
        CheckConfig(num_words=5)
