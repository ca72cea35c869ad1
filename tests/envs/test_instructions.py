"""Rules of IFEval: what keeps each of them, what does not, and files that are wrong."""

import asyncio
import importlib.util
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent import Answer, Score, Trajectory
from fulmen.chat import Message
from fulmen.envs import Instructions, InstructionTask, answered, load_environment
from fulmen.envs.instructions import environment as room
from fulmen.envs.instructions.rules import RULES, checked_settings
from fulmen.sampling import SamplingParams
from tests.examples import examples

CASES: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "keywords:existence": (
        {"keywords": ["Sun", "c++"]},
        ("The sun and C++.", "sunny c++"),
        ("The sun.", "c and sun"),
    ),
    "keywords:frequency": (
        {"keyword": "tea", "frequency": 2, "relation": "at least"},
        ("tea Tea", "tea, steam"),
        ("tea", "coffee"),
    ),
    "keywords:forbidden_words": (
        {"forbidden_words": ["cat", "the end"]},
        ("A category.", "the endless"),
        ("A Cat.", "This is the end"),
    ),
    "keywords:letter_frequency": (
        {"letter": "E", "let_frequency": 3, "let_relation": "less than"},
        ("Eve", "no"),
        ("Every e", "eee"),
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "less than"},
        ("One. Two!", "Dr. A. Smith came. He left!", "e.g. this", "1. One thing\n2. Two"),
        ("One. Two! Three?", "Wait... yes? She said. No"),
    ),
    "length_constraints:number_paragraphs": (
        {"num_paragraphs": 2},
        ("a\n***\nb", "***a***b***"),
        ("a\n\nb", "a***b***c", "a******b"),
    ),
    "length_constraints:number_words": (
        {"num_words": 3, "relation": "at least"},
        ("one two three", "it's so"),
        ("one two", "- - -"),
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Now"},
        ("a\n\nnow, b", 'a\n\n"Now" b'),
        ("now a\n\nb", "a\n\nnow b\n\nc", "a\n\nnowhere"),
    ),
    "detectable_content:number_placeholders": (
        {"num_placeholders": 2},
        ("[a] [b]", "[[a] x [b]]"),
        ("[a]", "[a\n] [b]", "[[a]]"),
    ),
    "detectable_content:postscript": (
        {"postscript_marker": "P.S."},
        ("Bye.\np. s. more", "P.S. x"),
        ("PS more", "p.p.s more"),
    ),
    "detectable_format:number_bullet_lists": (
        {"num_bullets": 2},
        ("* a\n  * b", "- a\ntext\n* b", "* a\n* \nb"),
        ("* a", "* a\n* b\n- c", "**a**\n* b"),
    ),
    "detectable_format:constrained_response": (
        {},
        ("My answer is yes.", "So: My answer is maybe. Bye"),
        ("my answer is yes.", "Yes."),
    ),
    "detectable_format:number_highlighted_sections": (
        {"num_highlights": 2},
        ("*a* *b*", "**a**, **b**"),
        ("*a*", "* a\n* b", "****"),
    ),
    "detectable_format:multiple_sections": (
        {"section_spliter": "Section", "num_sections": 2},
        ("Section 1\na\nSection 2\nb", "Section1 Section2 Section3"),
        ("Section 1", "section 1 section 2", "Section A Section B"),
    ),
    "detectable_format:json_format": (
        {},
        ('{"a": 1}', "```json\n[1]\n```", "3"),
        ("{a: 1}", "text", "[" * 50_000, "9" * 50_000),
    ),
    "detectable_format:title": (
        {},
        ("<<A poem>>\nx", "x <<<y>>>"),
        ("<<>>", "<< >>", "<<a\n>>", "<a>", ">> <<"),
    ),
    "combination:two_responses": (
        {},
        ("a******b", "******a******b******"),
        ("a******a ", "a", "a******b******c", "a************b"),
    ),
    "combination:repeat_prompt": (
        {"prompt_to_repeat": "Say it. "},
        ("say it. I do", " Say it."),
        ("I say it.", "Say"),
    ),
    "startend:end_checker": (
        {"end_phrase": "The End."},
        ("So. the end.", '"So. The End."\n'),
        ("The End. Really.", "The End"),
    ),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "less than"},
        ("ONE more", "I am"),
        ("ONE MORE", "I AM"),
    ),
    "punctuation:no_comma": ({}, ("a; b",), ("a, b",)),
    "startend:quotation": ({}, ('"a"', ' "a" "b" '), ('"a', '"', "a")),
}
LANGUAGES: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "language:response_language": (
        {"language": "de"},
        ("Das ist ein Satz, den man auf Deutsch schreibt, und noch einer.",),
        ("This is a sentence that is written in English.", "123 456"),
    ),
    "change_case:english_capital": (
        {},
        ("THIS IS A SENTENCE THAT IS WRITTEN IN CAPITAL LETTERS.",),
        ("This is a sentence.", "DAS IST EIN SATZ, DEN MAN AUF DEUTSCH SCHREIBT."),
    ),
    "change_case:english_lowercase": (
        {},
        ("this is a sentence that is written in small letters.",),
        ("This is a sentence.", "das ist ein satz, den man auf deutsch schreibt."),
    ),
}
HAS_LANGDETECT = importlib.util.find_spec("langdetect") is not None


def is_kept(name: str, given: Mapping[str, Any], text: str) -> bool:
    return RULES[name].is_kept(text, **checked_settings(name, given))


def test_every_rule_has_its_cases() -> None:
    assert {*CASES, *LANGUAGES} == set(RULES)
    assert len(RULES) == 25
    assert {name for name, rule in RULES.items() if rule.needs_language} == set(LANGUAGES)


@pytest.mark.parametrize("name", CASES)
def test_a_rule_is_kept_by_these_and_not_by_those(name: str) -> None:
    given, kept, broken = CASES[name]
    assert [text for text in kept if not is_kept(name, given, text)] == []
    assert [text for text in broken if is_kept(name, given, text)] == []


@pytest.mark.skipif(not HAS_LANGDETECT, reason="langdetect is not installed")
@pytest.mark.parametrize("name", LANGUAGES)
def test_rules_of_language_are_kept_by_these_and_not_by_those(name: str) -> None:
    given, kept, broken = LANGUAGES[name]
    assert [text for text in kept if not is_kept(name, given, text)] == []
    assert [text for text in broken if is_kept(name, given, text)] == []


def test_without_langdetect_a_rule_of_language_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "has_detector", lambda: False)
    for name, (set_to, _, _) in LANGUAGES.items():
        with pytest.raises(ValueError, match=rf"line 1: {name} is unsupported without langdetect"):
            Instructions(file_of(tmp_path, row([name], [set_to])))


@pytest.mark.parametrize(
    "piece", ["[", "<<", "*", "\n", "***", "a.", "p. ", "Section 1", ". ", "-"]
)
def test_long_answers_are_judged_soon(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    begin = time.process_time()
    for name, (set_to, _, _) in CASES.items():
        is_kept(name, set_to, text)
    assert time.process_time() - begin < 3


@given(st.text() | st.text("a*-[]<>\n\"'.,P S1{", max_size=200))
@settings(max_examples=examples(500), deadline=None)
def test_any_answer_has_a_score(text: str) -> None:
    rules = tuple((name, checked_settings(name, case[0])) for name, case in CASES.items())
    parts = score_of(InstructionTask("Do it.", rules), text).parts
    assert all(0 <= value <= 1 for value in parts.values())
    assert parts["instruction_strict"] <= parts["instruction_loose"]


def row(names: list[Any], given: list[Any]) -> dict[str, Any]:
    return {"key": 1, "prompt": "Do it.", "instruction_id_list": names, "kwargs": given}


def file_of(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def score_of(task: InstructionTask, text: str) -> Score:
    answer = Answer(
        message=Message("assistant", text), finish_reason="stop", params=SamplingParams()
    )
    return asyncio.run(task.score(answered(task.messages, answer)))


def test_a_prompt_is_judged_strictly_and_loosely(tmp_path: Path) -> None:
    rules = row(
        ["punctuation:no_comma", "startend:end_checker"],
        [{"end_phrase": None}, {"end_phrase": "Bye."}],
    )
    environment = load_environment(f"ifeval:{file_of(tmp_path, rules)}", seed=0)
    task = environment.task(0)
    assert isinstance(task, InstructionTask)
    assert environment.num_tasks == 1
    assert task.messages == (Message("user", "Do it."),)
    assert score_of(task, "It is done. Bye.").value == 1
    loose = score_of(task, "Sure, here it is:\nIt is done. **Bye.**")
    assert (loose.value, loose.parts) == (
        0,
        {
            "prompt_strict": 0,
            "prompt_loose": 1,
            "instruction_strict": 0,
            "instruction_loose": 1,
        },
    )
    half = score_of(task, "It is, at last, done. Bye.")
    assert (half.value, half.parts["instruction_strict"]) == (0, 0.5)
    assert score_of(task, " ").parts["instruction_loose"] == 0
    assert score_of(task, "a" * 200_000 + " Bye.").parts["instruction_loose"] == 0
    assert asyncio.run(task.score(Trajectory())).value == 0
    with pytest.raises(ValueError, match=r"task 1 was asked for, .* has 1"):
        environment.task(1)


WORDS = "length_constraints:number_words"


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ([1], "line 1 must hold a JSON object"),
        ({"prompt": "a"}, "line 1 must be an object with prompt"),
        (row([], []), "has 0 instructions and 0 kwargs"),
        (row(["punctuation:no_comma"], []), "has 1 instructions and 0 kwargs"),
        (row(["punctuation:no_comma"], [1]), "objects in kwargs"),
        (row([1], [{}]), "must have names in instruction_id_list"),
        (row(["no:such"], [{}]), "line 1: there is no instruction no:such, it must be one of key"),
        (
            row([WORDS], [{"num_words": 3}]),
            "has the settings num_words, it must have: num_words, r",
        ),
        (row(["punctuation:no_comma"], [{"x": 1}]), "has the settings x, it must have: none"),
        (
            row([WORDS], [{"num_words": "3", "relation": "at least"}]),
            "has num_words '3', it must be a count",
        ),
        (
            row([WORDS], [{"num_words": 3, "relation": "at most"}]),
            "has relation 'at most', it must be one of less than or at least",
        ),
        (
            row(["keywords:existence"], [{"keywords": []}]),
            r"has keywords \[\], it must be a list of texts",
        ),
    ],
)
def test_a_bad_row_is_one_sentence(tmp_path: Path, bad: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        Instructions(file_of(tmp_path, bad))
    assert "\n" not in str(refusal.value)
