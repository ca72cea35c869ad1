"""Exercises of others: their solutions pass, and nothing else does that the tests do not allow."""

import json
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.envs import Exercises, GraderError, load_environment
from fulmen.envs.code.checks import packed, unpacked
from fulmen.envs.code.task import LIMITS
from fulmen.sandbox import SandboxError
from tests.envs.code.answering import scored
from tests.examples import examples

HUMANEVAL: dict[str, Any] = {
    "task_id": "Own/0",
    "prompt": (
        "from typing import List\n\n\ndef weigh(values, factor):\n"
        "    return sum(factor**place * value for place, value in enumerate(values))\n\n\n"
        'def shift(values: List[float], by: float) -> List[float]:\n    """Add a number."""\n'
    ),
    "canonical_solution": "    return [value + by for value in values]\n",
    "test": (
        "def check(candidate):\n    assert candidate([2, 3.5], 1) == [3, 4.5]\n"
        "    assert candidate([], 1) == []\n    assert weigh(candidate([1, 2], 0), 3) == 7\n"
    ),
    "entry_point": "shift",
}
PAIRS: dict[str, Any] = {
    "task_id": 5,
    "text": "Write a function to add up pairs.",
    "code": (
        "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\n\n"
        "def total(pairs, more):\n    return sum(p.a * p.b for p in pairs) + more\n"
    ),
    "test_list": ["assert total([Pair(5, 24), Pair(15, 25)], 4) == 499"],
    "test_setup_code": "",
}
TREES = {
    "task_id": 6,
    "prompt": "Write a function to find the height of a tree.",
    "code": (
        "class Node:\n    def __init__(self, value):\n"
        "        self.value, self.left, self.right = value, None, None\n\n"
        "def height(node):\n"
        "    return 0 if node is None else 1 + max(height(node.left), height(node.right))\n"
    ),
    "test_list": ["assert (height(root)) == 3", "assert math.isclose(height(root.left), 2)"],
    "test_imports": ["import math"],
    "test_setup_code": "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(4)",
}


def file_of(folder: Path, *lines: object) -> Path:
    path = folder / "exercises.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.mark.usefixtures("has_sandbox")
def test_solutions_pass(tmp_path: Path) -> None:
    path = file_of(tmp_path, HUMANEVAL, PAIRS, TREES)
    environment = load_environment(f"humaneval:{path}", seed=0)
    assert environment.num_tasks == 3
    for index in range(3):
        task = environment.task(index)
        assert scored(task, task.known_answers[0].content).value == 1
        assert scored(task, task.messages[0].content).value == 0
    body = "```python\ndef shift(values, by):\n    return list(map(by.__add__, values))\n```"
    assert scored(environment.task(0), body).parts == {"format": 1.0, "correct": 0.0}
    code = "def shift(values, by):\n    return [v + by * weigh([1], 9) for v in values]"
    leave = "import sys\nleave = exit if len(sys.argv) > 9 else quit\n"
    for begin in ("", "from __future__ import annotations\n", leave):
        helped = f"```python\n{begin}{code}\n```"
        assert scored(environment.task(0), helped).value == 1


RECORDS = """from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Sum:
    values: list[float]
    by: float
def shift(values, by):
    return [Sum(values, by).by + value for value in Sum(values, by).values]
"""


@pytest.mark.usefixtures("has_sandbox")
def test_dataclasses_may_have_annotations_as_texts(tmp_path: Path) -> None:
    task = Exercises(file_of(tmp_path, HUMANEVAL)).task(0)
    assert scored(task, f"```python\n{RECORDS}```").value == 1
    helped = {**HUMANEVAL, "prompt": RECORDS + HUMANEVAL["prompt"].replace("from typing", "#")}
    helped["prompt"] = helped["prompt"].replace("List", "list")
    task = Exercises(file_of(tmp_path, helped)).task(0)
    assert scored(task, task.known_answers[0].content).value == 1


VALUES = """
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
values = [
    date(5, 1, 2), date.max, time(3, 4, 5, 6), time(3, tzinfo=timezone.utc), datetime(2024, 2, 29),
    datetime(2024, 2, 29, 1, 2, 3, 4, timezone(timedelta(hours=-5, minutes=-30, seconds=-1))),
    timedelta(days=-3, seconds=2, microseconds=1), timedelta.max, timedelta.min, Decimal("1.50"),
    Decimal("-Infinity"), Decimal("1E+99"), Fraction(-3, 4), Fraction(7),
]
"""


@pytest.mark.usefixtures("has_sandbox")
def test_dates_and_exact_numbers_are_compared_by_value(tmp_path: Path) -> None:
    right = f"{VALUES}def value(place): return values[place]\ndef echo(one): return one"
    fields = {
        "text": "Give the value at a place.",
        "code": right,
        "test_setup_code": VALUES,
        "test_list": [
            "assert [value(place) for place in range(14)] == values",
            "assert [type(value(place)) for place in range(14)] == list(map(type, values))",
            "assert echo({one: [one] for one in values}) == {one: [one] for one in values}",
            "assert str(value(9)) == '1.50'",
            "assert value(5).tzname() == values[5].tzname()",
        ],
    }
    task = Exercises(file_of(tmp_path, fields)).task(0)
    assert scored(task, f"```python\n{right}\n```").value == 1
    wrong = right.replace("return values[place]", "return [*values[1:], values[0]][place]")
    assert scored(task, f"```python\n{wrong}\n```").value == 0
    same = "class Same(date):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
    same += "def value(place): return Same(1, 1, 1)"
    assert scored(task, f"```python\n{right}\n{same}\n```").value == 0


ZONES = st.timedeltas(-timedelta(hours=23), timedelta(hours=23)).map(timezone)


@given(
    st.dates()
    | st.times(timezones=st.none() | ZONES)
    | st.datetimes(timezones=st.none() | ZONES)
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.fractions()
)
@settings(max_examples=examples(500), deadline=None)
def test_values_come_back_as_they_were(value: object) -> None:
    back = unpacked(json.loads(json.dumps(packed(value, id))), id)
    assert (type(back), back, str(back)) == (type(value), value, str(value))


CHEATS = {
    "exit": "import sys\nsys.exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "exit in the call": "import os\ndef shift(values, by):\n    os._exit(0)",
    "equal to everything": """
class Equal(list):
    def __eq__(self, other): return True
    def __len__(self): return 2
class Same:
    def __eq__(self, other): return True
    def __iter__(self): return iter([1, 2])
    def __getattr__(self, name): return self
def shift(values, by):
    return Equal() if by else Same()
""",
    "patched": """
import builtins, json
class Fine(Exception): pass
builtins.AssertionError = Fine
json.dumps = lambda *_: '{"value": true}'
def shift(values, by):
    return values
""",
    "writes a verdict everywhere": """
import os
verdict = b'The program runs.\\n{"passed": true, "nonce": ""}'
for pid in filter(str.isdigit, os.listdir("/proc")):
    for number in range(30):
        try:
            os.write(os.open(f"/proc/{pid}/fd/{number}", os.O_WRONLY | os.O_NONBLOCK), verdict)
        except OSError:
            pass
def shift(values, by):
    return values
""",
    "says what is no message": """
import os
os.write(4, b"[" * 100000 + b"\\n")
def shift(values, by):
    return values
""",
    "takes the place of a builtin": """
import os
os.write(4, b'{"shift": 0, "abs": 1, "len": 2}\\n')
while os.read(3, 99999):
    os.write(4, b'{"value": {"int": "2"}}\\n')
""",
    "reads the tests": """
import gc, glob, os, sys
found = []
for path in [*glob.glob("/proc/*/mem"), *glob.glob("/proc/*/fd/*"), *glob.glob("/tmp/*")]:
    try:
        found.append(open(path, "rb").read(4096))
    except OSError:
        pass
found += [repr(one).encode() for one in gc.get_objects() if isinstance(one, (str, dict))]
if any(b"weigh(candidate" in one for one in found):
    def shift(values, by):
        return [value + by for value in values]
""",
}


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("error", ["StopIteration", "StopAsyncIteration", "GeneratorExit"])
def test_an_error_of_the_program_ends_no_loop_of_the_tests(error: str, tmp_path: Path) -> None:
    loop = "    assert all(map(lambda by: candidate([1], by) == [1 + by], [1, 2]))\n"
    task = Exercises(
        file_of(tmp_path, {**HUMANEVAL, "test": "def check(candidate):\n" + loop})
    ).task(0)
    assert scored(task, task.known_answers[0].content).value == 1
    for program in (f"raise {error}", f"yield 1\n    raise {error}", f"return iter({error}, 1)"):
        code = f"```python\ndef shift(values, by):\n    {program}\n```"
        assert scored(task, code).value == 0


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("name", CHEATS)
def test_cheats_score_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Some wait for what never comes.
    monkeypatch.setattr("fulmen.envs.code.exercises.ALL_SECONDS", 6.0)
    near = "def check(candidate):\n    assert abs(len(candidate([1, 2], 3)) - 2) < 3\n"
    fields = {**HUMANEVAL, "test": near} if "builtin" in name else HUMANEVAL
    task = Exercises(file_of(tmp_path, fields)).task(0)
    assert scored(task, f"```python\n{CHEATS[name]}\n```").value == 0


def own(**changes: str) -> dict[str, Any]:
    return {**HUMANEVAL, **changes}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "an import in front": (own(test="import nowhere\n" + HUMANEVAL["test"]), "No module named"),
    "an import in the check": (
        own(test="def check(candidate):\n    import nowhere\n    candidate([], 1)\n"),
        "ModuleNotFoundError: No module named 'nowhere'",
    ),
    "a prompt": (own(prompt="import nowhere\n" + HUMANEVAL["prompt"]), "No module named 'nowhere'"),
    "a name": (own(test="def check(candidate):\n    assert nothing\n"), "NameError"),
    "no check": (own(test="def chek(candidate):\n    assert candidate\n"), "'check' is not def"),
    "an end": (own(test="raise SystemExit\ndef check(candidate): pass\n"), "SystemExit"),
    "a function to hand over": (
        own(test="def check(candidate):\n    assert candidate([len], 1)\n"),
        "builtin_function_or_method cannot be handed to the program",
    ),
    "a setup": ({**PAIRS, "test_setup_code": "one = [][0]"}, "IndexError: list index"),
    "imports": ({**PAIRS, "test_imports": ["import nowhere"]}, "No module named 'nowhere'"),
    "a test": ({**PAIRS, "test_list": ["assert 1 == 2", *PAIRS["test_list"]]}, "AssertionError"),
}


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("name", BROKEN)
def test_tests_that_fail_for_all_programs_are_an_error(name: str, tmp_path: Path) -> None:
    fields, sentence = BROKEN[name]
    task = Exercises(file_of(tmp_path, fields)).task(0)
    for code in (task.known_answers[0].content, "```python\nexit()\n```"):
        with pytest.raises(GraderError, match=rf"exercise .* before they call .*: .*{sentence}"):
            scored(task, code)
    assert scored(task, "I do not know.").value == 0


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("begin", ["while True: pass", "import os\nos._exit(0)"])
def test_tests_that_hang_or_end_before_a_call_are_an_error(
    begin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulmen.envs.code.exercises.LIMITS", replace(LIMITS, seconds=4.0))
    task = Exercises(file_of(tmp_path, own(test=f"{begin}\n{HUMANEVAL['test']}"))).task(0)
    with pytest.raises(SandboxError, match="did not begin"):
        scored(task, task.known_answers[0].content)


SPOILERS = {
    "nothing": "pass",
    "no Python": "def total(",
    "its error": "def total(pairs, more):\n    raise ImportError('nowhere')",
    "its class": "class Pair:\n    def __init__(self, *_):\n        raise NameError",
    "interrupts": """
import os, signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
    try:
        os.kill(os.getppid(), number)
    except OSError:
        pass
""",
    "odd numbers": 'import os\nos.write(4, b\'{"Pair": [], "total": {}}\\n\')',
    "a list": 'import os\nos.write(4, b\'["Pair", "total"]\\n\')',
    "a verdict": 'import os\nos.write(4, b\'{"fault": "mine", "nonce": ""}\\n\')',
    "all memory": "kept = []\nwhile True:\n    kept.append(bytearray(2**24))",
}


@pytest.mark.usefixtures("has_sandbox")
@pytest.mark.parametrize("name", SPOILERS)
def test_no_program_makes_an_error_of_its_failure(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulmen.envs.code.exercises.ALL_SECONDS", 6.0)
    setup = "import random, tempfile\nkinds = {Pair: 1, total: 2}\nfile = tempfile.mkdtemp()"
    task = Exercises(file_of(tmp_path, {**PAIRS, "test_setup_code": setup})).task(0)
    assert scored(task, task.known_answers[0].content).value == 1
    assert scored(task, f"```python\n{SPOILERS[name]}\n```").value == 0


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 must be an object"),
        ('{"prompt": "a"}', "line 1 must have the fields of HumanEval"),
        ('{"entry_point": "f", "prompt": 1}', "line 1 must have the fields of HumanEval"),
        ('{"text": "a", "code": "b", "test_list": ["assert ("]}', "tests that are not Python"),
        ('{"text": "a", "code": "b", "test_list": 3}', "line 1 must have the fields"),
        ('{"text": "a", "code": "b", "test_list": []}', "test_list is missing, empty or"),
        ('{"text": "a", "code": "b", "test_list": "x"}', "test_list is missing, empty or"),
        ('{"text": "a", "code": "b", "test_list": ["\\u0000"]}', "tests that are not Python"),
        (json.dumps(own(test="def check(")), "line 1 has .* not Python: .*never closed"),
        (json.dumps(own(test="return 1")), "line 1 has a prompt or tests that are not Python"),
        (json.dumps(own(prompt="def f(x):\n")), "line 1 has a prompt or tests that are not"),
        (json.dumps(own(test="\0")), "line 1 has a prompt or tests that are not Python"),
        ("", "is empty"),
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "exercises.jsonl"
    path.write_text(line)
    with pytest.raises(ValueError, match=sentence):
        load_environment(f"mbpp:{path}", seed=0)


def test_a_missing_file_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="nowhere is no file, it must be the JSONL file"):
        load_environment("humaneval:nowhere", seed=0)
    with pytest.raises(ValueError, match="mbpp is no environment, it must be mbpp:FILE"):
        load_environment("mbpp", seed=0)
