"""Rows with a verifier: the answer in its forms is right, and nothing else is."""

import asyncio
import json
import tracemalloc
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fulmen.envs import Questions, Task, load_environment
from fulmen.envs.rows import VERIFIERS, read_row
from fulmen.envs.workers import WorkerError
from fulmen.evaluate import self_check
from tests.envs.test_environments import scored
from tests.examples import examples

COLOURS = ["red", "green", "blue and grey"]
ROWS: list[dict[str, Any]] = [
    {"question": "How many?", "answer": 12},
    {"question": "How many?", "answer": "#### 7", "verifier": "number"},
    {"question": "Which word?", "answer": "Two  Words", "verifier": "exact"},
    {"question": "Two lines?", "answer": "a b\nc", "verifier": "exact"},
    {"question": "Capital?", "answer": "Bogot\u00e1", "verifier": "text"},
    {"question": "Which?", "answer": "B", "verifier": "choice", "choices": COLOURS},
    {"question": "Which?", "answer": "blue and grey", "verifier": "choice", "choices": COLOURS},
    {"question": "Code?", "answer": r"[A-Z]{2}\d+", "verifier": "regex", "known": "AB12"},
    {"question": "Name both.", "answer": ["Ada", "Grace H"], "verifier": "contains"},
    {"question": "As JSON?", "answer": {"b": [1, 2.5], "a": None}, "verifier": "json"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


def task_of(verifier: str, answer: Any, **more: Any) -> Task:
    return read_row({"question": "Q?", "answer": answer, "verifier": verifier, **more}, "here")


def test_rows_pass_the_self_check(tmp_path: Path) -> None:
    environment = Questions(write(tmp_path / "a.jsonl", ROWS))
    assert environment.num_tasks == len(ROWS)
    assert asyncio.run(self_check(environment, range(len(ROWS)), making_seconds=1)) == []
    assert {row.get("verifier", "number") for row in ROWS} == set(VERIFIERS)


@pytest.mark.parametrize(
    ("verifier", "answer", "more", "right", "wrong"),
    [
        (
            "exact",
            "Two Words",
            {},
            ["Answer: Two  Words", "**Answer:** `Two Words`"],
            ["two words"],
        ),
        ("exact", "Two Words", {}, [], ["Two Words", "Answer: two words", "Answer: Two Words."]),
        ("text", "Bogot\u00e1", {}, ['Answer: "BOGOTA\u0301."'], ["Answer: Bogota", "Answer: B"]),
        ("choice", "B", {"choices": COLOURS}, ["Answer: b", "Answer: (B)", "Answer: B. green"], []),
        (
            "choice",
            "B",
            {"choices": COLOURS},
            ["Answer: Green", "Answer: B) x"],
            ["Answer: A or B"],
        ),
        (
            "choice",
            "B",
            {"choices": COLOURS},
            [],
            ["B", "Answer: Bad", "Answer: D", "Answer: A B C"],
        ),
        ("choice", "A", {"choices": ["B", "A"]}, ["Answer: B"], ["Answer: A"]),
        (
            "choice",
            "B. Jones",
            {"choices": ["B. Jones", "A. Smith"]},
            ["Answer: B. Jones", "Answer: A"],
            ["Answer: A. Smith", "Answer: B"],
        ),
        ("regex", "a+b", {}, ["Answer: aab"], ["Answer: aabc", "aab", "Answer: b"]),
        ("contains", "Ada", {}, ["It was Ada.", "ADA!"], ["Adam", "", "Canada"]),
        ("contains", ["x y", "z"], {}, ["Z, then x\n y"], ["x y", "z", "xz y"]),
        ("json", [1, True], {}, ["Answer: [1.0, true]", "Answer:\n```json\n[1,true]\n```"], []),
        (
            "json",
            [1, True],
            {},
            [],
            ["Answer: [1, 1]", "Answer: [true, 1]", "[1, true]", "Answer: ["],
        ),
        ("json", "a", {}, ['Answer: "a"'], ["Answer: a", "Answer: NaN", "Answer: " + "[" * 5000]),
    ],
)
def test_a_verifier_takes_the_forms_of_an_answer_and_no_others(
    verifier: str, answer: Any, more: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    task = task_of(verifier, answer, **more)
    for text in right:
        assert scored(task, text)[0] == 1, text
        assert scored(task, "", thinking=text)[0] == 0
    for text in wrong:
        assert scored(task, text)[0] == 0, text


@settings(max_examples=examples(100), deadline=None)
@given(st.sampled_from(["exact", "text", "choice", "contains", "json"]), st.text(), st.booleans())
@example("json", "1" * 5000, True)
@example("json", '{"\ud800": 1}', True)
def test_any_reply_has_a_score(verifier: str, text: str, is_marked: bool) -> None:
    task = task_of(verifier, "Zebra", choices=["Zebra", "Ox"])
    value, answer = scored(task, f"Answer: {text}" if is_marked else text)
    assert value in (0, 1)
    assert answer is None or isinstance(answer, str)


def test_a_pattern_that_never_ends_is_an_error() -> None:
    task = task_of("regex", "(a+)+b")
    with pytest.raises(WorkerError, match=r"too much time|in time"):
        scored(task, "Answer: " + "a" * 60)
    assert scored(task, "Answer: aab")[0] == 1


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"verifier": "magic"}, "has the verifier 'magic', it must be one of: number, exact"),
        ({"verifier": "os:system"}, "has the verifier 'os:system', it must be one of"),
        ({"verifier": ["exact"]}, "has the verifier"),
        ({"verifier": "exact", "answer": 1}, "has the answer 1, it must be a text"),
        ({"verifier": "text", "answer": " ."}, "it must be a text"),
        ({"verifier": "choice", "answer": "A"}, "must have choices"),
        ({"verifier": "choice", "answer": "C", "choices": ["x", "y"]}, "a choice or its letter"),
        ({"verifier": "regex", "answer": "("}, "has a pattern that cannot be read"),
        ({"verifier": "regex", "answer": "a" * 1001}, "a pattern of 1 to 1,000 characters"),
        ({"verifier": "contains", "answer": []}, "it must be a text or a list of texts"),
        ({"verifier": "contains", "answer": "q"}, "has a question that is itself a right answer"),
        ({"verifier": "exact", "answer": "*"}, "which cannot be told as one"),
        ({"answer": "blue"}, "must have a number in it"),
    ],
)
def test_a_wrong_row_is_one_sentence_with_its_number(
    tmp_path: Path, row: dict[str, Any], sentence: str
) -> None:
    path = write(tmp_path / "a.jsonl", [ROWS[0], {"question": "Q?", **row}])
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 2 .*{sentence}") as refusal:
        Questions(path)
    assert len(str(refusal.value).splitlines()) == 1


def test_all_wrong_rows_are_told_up_to_five(tmp_path: Path) -> None:
    wrong = {"question": "Q?", "answer": "blue"}
    path = write(tmp_path / "a.jsonl", [wrong, ROWS[0], *[wrong] * 6])
    with pytest.raises(ValueError, match=r"line 1 .*; line 3 .*; line 6 .*; and 2 more"):
        Questions(path)
    path.write_bytes(b'{"question": "Q?", "answer": 1}\n\xff\n' + b"x" * 2**21 + b"\n{\n")
    with pytest.raises(
        ValueError, match=r"line 2 is not UTF-8.*line 3 has more than.*line 4 is not"
    ):
        Questions(path)


@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("[" * 300 + "]" * 300, "is nested too deeply"),
        ("1" * 3000, "integer of 3000 digits"),
        (r'"\ud800"', "half of a surrogate pair"),
        (f'{{"a": {[1] * 5000}, "b": NaN}}', "answer|pattern|choices|Out of range"),
    ],
)
def test_an_absurd_answer_is_one_short_sentence(
    tmp_path: Path, verifier: str, answer: str, sentence: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"question": "Q?", "verifier": "{verifier}", "answer": {answer}}}')
    with pytest.raises(ValueError, match=sentence) as refusal:
        Questions(path)
    assert len(str(refusal.value)) < 500 + len(str(path))


def test_a_function_judges_only_where_python_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": "Q?", "wanted": "yes"}, ROWS[0]])
    environment = Questions(path, verifier="tests.envs.judging:is_wanted")
    assert scored(environment.task(0), "yes")[0] == 1
    assert scored(environment.task(0), "no")[0] == 0
    with pytest.raises(WorkerError, match="KeyError"):
        scored(environment.task(1), "no")
    broken = Questions(path, verifier="tests.envs.judging:too_much")
    with pytest.raises(WorkerError, match="returned 2, a score is from 0 to 1"):
        scored(broken.task(0), "no")
    with pytest.raises(ValueError, match="verifier is 'nothing', it must be a function"):
        Questions(path, verifier="nothing")


def test_a_large_file_stays_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = json.dumps({"question": "word " * 2000, "answer": 3})
    with path.open("w") as file:
        for _ in range(2000):
            file.write(line + "\n")
    assert path.stat().st_size > 2e7
    tracemalloc.start()
    environment = Questions(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4e6
    assert environment.num_tasks == 2000
    assert environment.chance == 1
    assert scored(environment.task(1999), "3")[0] == 1


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow (extra envs)")
def test_a_parquet_file_is_read_as_its_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    rows = [one for one in ROWS if isinstance(one["answer"], str)]
    path = tmp_path / "a.parquet"
    write_table(
        pa.Table.from_pylist([{"choices": None, "known": None, **one} for one in rows]), path
    )
    environment = load_environment(str(path), seed=0)
    lines = Questions(write(tmp_path / "a.jsonl", rows))
    assert environment.num_tasks == len(rows)
    for index in range(len(rows)):
        assert environment.task(index).messages == lines.task(index).messages
    write_table(pa.Table.from_pylist([{"question": "Q?", "answer": "no"}]), path)
    with pytest.raises(ValueError, match=r"a\.parquet, row 1 has the answer 'no'"):
        Questions(path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="cannot be read"):
        Questions(path)


@pytest.mark.skipif(find_spec("pyarrow") is not None, reason="pyarrow is installed")
def test_without_pyarrow_a_sentence_says_how_to_have_it(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"pip install 'fulmen\[envs\]'"):
        Questions(path)
