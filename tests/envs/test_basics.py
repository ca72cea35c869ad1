"""Basics: every answer and every thought is worked out a second way, and parts have nothing in
common."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from itertools import permutations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fulmen.chat import Message
from fulmen.envs import Basics, BasicTask, demonstrated, load_environment
from fulmen.envs.basics import KINDS, PARTS, part_of
from fulmen.evaluate import self_check
from tests.envs.test_environments import scored
from tests.examples import examples

COLUMN = re.compile(r"(\d)([-+*])(\d)([-+])(\d)=(\d)(\d)")


def drawn(kind: str, count: int = 200, seed: int = 5, part: str | None = None) -> list[BasicTask]:
    environment = Basics(seed, kind=kind, part=part)
    return [environment.task(index) for index in range(count)]


def columns(text: str) -> list[tuple[int, ...]]:
    """Return the steps of a thought: two digits, what is carried, and the two digits found."""
    return [
        (int(a), int(b), int(carry), int(tens), int(units))
        for a, _, b, _, carry, tens, units in COLUMN.findall(text)
    ]


def digit(number: int, place: int) -> int:
    return int(str(number)[::-1][place : place + 1] or 0)


def check_sum(text: str, x: int, y: int) -> None:
    """Check the steps of a sum, each carry by the sum of all that stands to its right."""
    steps = columns(text)
    assert len(steps) == max(len(str(x)), len(str(y)))
    for place, (a, b, carry, tens, units) in enumerate(steps):
        assert (a, b) == (digit(x, place), digit(y, place))
        assert carry == (x % 10**place + y % 10**place) // 10**place
        assert 10 * tens + units == a + b + carry


def check_difference(text: str, x: int, y: int) -> None:
    steps = columns(text)
    assert len(steps) == len(str(x))
    for place, (a, b, borrow, found, next_borrow) in enumerate(steps):
        assert (a, b) == (digit(x, place), digit(y, place))
        assert borrow == (x % 10**place < y % 10**place)
        assert found == digit(x - y, place)
        assert next_borrow == (x % 10 ** (place + 1) < y % 10 ** (place + 1))


def check_product(text: str, x: int, y: int) -> None:
    steps = columns(text)
    assert len(steps) == len(str(x))
    for place, (a, b, carry, tens, units) in enumerate(steps):
        assert (a, b) == (digit(x, place), y)
        assert carry == x % 10**place * y // 10**place
        assert 10 * tens + units == a * b + carry


def operands(text: str) -> tuple[int, int]:
    first, second = map(int, re.findall(r"\d+", text))
    return (second, first) if re.search(r"\b(from|von)\b", text) else (first, second)


@pytest.mark.parametrize("num_tasks", [60, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_pass_the_self_check(kind: str, num_tasks: int) -> None:
    environment = Basics(3, kind=kind)
    chance = environment.chance + 3 / num_tasks if environment.chance else 0.0
    assert asyncio.run(self_check(environment, range(num_tasks), chance=chance)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_is_right_more_often_than_its_kind_says(kind: str) -> None:
    tasks = drawn(kind, 1000)
    counts = Counter(task.question.read(task.question.answer) for task in tasks)
    (_, most), *_ = counts.most_common(1)
    assert most <= max(KINDS[kind].chance, 0.01) * 1000


def test_a_task_has_a_thought_and_an_answer_to_learn() -> None:
    environment = load_environment("basics:training", seed=1)
    kinds = set()
    for index in range(2 * len(KINDS)):
        task = environment.task(index)
        assert isinstance(task, BasicTask)
        user, answer = demonstrated(task)
        assert user == Message("user", task.question.text)
        assert answer.thinking
        assert scored(task, answer.content)[0] == 1
        assert scored(task, "", thinking=answer.content) == (0, None)
        kinds.add(task.kind)
    assert kinds == set(KINDS)
    assert len(KINDS) == 18


@pytest.mark.parametrize("kind", KINDS)
def test_parts_have_no_question_in_common(kind: str) -> None:
    found = {
        part: {task.question.content for seed in (1, 2) for task in drawn(kind, 200, seed, part)}
        for part in PARTS
    }
    for part in PARTS:
        others = set().union(*(found[other] for other in PARTS if other != part))
        assert not found[part] & others
        assert all(part_of(text) == part for text in found[part])
        assert len(found[part]) > 150, "a part has too few questions"


def test_parts_are_eight_to_one_to_one() -> None:
    asked = {task.question.content for kind in KINDS for task in drawn(kind, 300)}
    counts = Counter(map(part_of, asked))
    for part, share in zip(PARTS, (0.8, 0.1, 0.1), strict=True):
        assert abs(counts[part] / len(asked) - share) < 0.02


def test_a_sum_is_added_digit_by_digit() -> None:
    for task in drawn("add"):
        x, y = operands(task.question.text)
        assert x < 10**6 > y
        assert task.question.answer == str(x + y)
        check_sum(task.question.thought, x, y)
        assert task.question.thought.split()[-1] == str(x + y)[::-1]


def test_a_difference_is_subtracted_digit_by_digit() -> None:
    for task in drawn("subtract"):
        x, y = operands(task.question.text)
        assert task.question.answer == str(x - y)
        check_difference(task.question.thought, x, y)
        assert task.question.thought.split()[-1] == f"{x - y:0{len(str(x))}}"[::-1]


def test_a_product_is_multiplied_digit_by_digit() -> None:
    for task in drawn("multiply"):
        x, y = operands(task.question.text)
        assert 2 <= y <= 9
        assert task.question.answer == str(x * y)
        check_product(task.question.thought, x, y)
        assert task.question.thought.split()[-1] == str(x * y)[::-1]


def test_a_long_product_is_the_sum_of_two_rows() -> None:
    for task in drawn("long_multiply"):
        x, y = operands(task.question.text)
        assert task.question.answer == str(x * y)
        units, tens, total = task.question.thought.split("; ")
        check_product(units, x, y % 10)
        check_product(tens, x, y // 10)
        assert units.startswith(f"{x}*{y % 10}: ")
        assert tens.startswith(f"{x}*{y - y % 10}: ")
        rows = [int(row.split()[-1][::-1]) for row in (units, tens)]
        assert rows == [x * (y % 10), x * (y - y % 10)]
        steps = columns(total)
        assert [10 * s + t for *_, s, t in steps] == [a + b + c for a, b, c, _, _ in steps]
        assert [a + b for a, b, *_ in steps] == [
            digit(rows[0], place) + digit(rows[1], place) for place in range(len(steps))
        ]
        assert int(total.split()[-1][::-1]) == x * y


def material(text: str) -> str:
    """Return the letters that a question is about: in quotes, or the word that is not its own."""
    if found := re.findall(r'"([a-z]+)"', text):
        return str(found[0])
    own = (
        "copy say again repeat please write once more after me schreibe ab wiederhole spell how do "
        "you the word letter by which letters does have buchstabiere wie buchstabiert man reverse "
        "backwards what is turn around read from right to left drehe um rückwärts"
    )
    words = re.findall(r"\w+", text)
    foreign = [word for word in words if word.lower() not in own.split()]
    return foreign[0] if foreign else ""


@pytest.mark.parametrize("kind", ["copy", "spell", "reverse"])
def test_letters_are_numbered_in_their_order(kind: str) -> None:
    for task in drawn(kind, 300):
        question = task.question
        if question.text.count('"') > 2:
            words = re.findall('"([a-z]+)"', question.text)
            assert re.findall('"([a-z]+)"', question.answer) == words
            assert re.findall(r'(\d)"([a-z]+)"', question.thought) == [
                (str(place + 1), word) for place, word in enumerate(words)
            ]
        elif text := material(question.text):
            there, _, back = question.thought.partition("; ")
            assert there == " ".join(f"{i}{letter}" for i, letter in enumerate(text, 1))
            assert back.split() == (there.split()[::-1] if kind == "reverse" else [])
            said = {"copy": text, "spell": "-".join(text), "reverse": text[::-1]}[kind]
            assert question.answer.strip('"') == said
            assert not question.is_answered_by(f"{said}x")


def test_numbers_and_words_are_sorted() -> None:
    for task in drawn("sort"):
        question = task.question
        words = re.findall(r'"([a-z]+)"', question.text)
        numbers = [int(found) for found in re.findall(r"\d+", question.text)]
        items: list[object] = [*(words or numbers)]
        right = [*(sorted(words) or sorted(numbers))]
        assert [one.strip('"') for one in question.answer.split(", ")] == [*map(str, right)]
        assert len(question.thought.split("; ")) == len(items)
        for step, least in zip(question.thought.split("; "), right, strict=True):
            left, _, found = step.partition(">")
            if words:
                assert left.split() == [str(item)[0] for item in items]
                assert found == f'{str(least)[0]}"{least}"'
            else:
                assert left.split() == [str(item) for item in items]
                assert found == str(least)
            items.remove(least)
        assert not question.is_answered_by(", ".join(map(str, right[::-1])))
        assert question.is_answered_by(f"Answer: [{', '.join(map(str, right))}]")


def test_the_largest_and_the_smallest_number_are_found() -> None:
    for task in drawn("extreme"):
        question = task.question
        numbers = [int(found) for found in re.findall(r"\d+", question.text)]
        is_smallest = re.search("small|minimum|klein", question.text) is not None
        best = min if is_smallest else max
        assert question.answer == str(best(numbers))
        first, *steps = question.thought.split()
        assert first == str(numbers[0])
        for place, step in enumerate(steps, start=1):
            ((a, sign, b, kept),) = re.findall(r"(\d+)([<>])(\d+):(\d+)", step)
            assert (int(a) > int(b)) == (sign == ">")
            assert int(a) == numbers[place]
            assert int(b) == best(numbers[:place])
            assert int(kept) == best(numbers[: place + 1])


def test_two_numbers_are_compared() -> None:
    wholes = 0
    for task in drawn("compare"):
        question = task.question
        x, y = re.findall(r"\d+(?:\.\d+)?", question.text)
        wholes += "." not in x
        is_smaller = re.search("small|less|klein|weniger", question.text) is not None
        right = (min if is_smaller else max)(x, y, key=Decimal)
        assert question.answer == right
        steps, _, last = question.thought.partition("; ")
        assert last == f"{x}{'>' if Decimal(x) > Decimal(y) else '<'}{y}"
        for a, sign, b in re.findall(r"(\d+)([<>=])(\d+)", steps):
            assert sign == ("=" if a == b else ">" if int(a) > int(b) else "<")
        assert len(re.findall("[<>]", steps)) == 1
        assert not question.is_answered_by(y if right == x else x)
    assert 80 < wholes < 160


def told(text: str) -> int:
    """Return what a story comes to, read sentence by sentence."""
    counts: dict[str, int] = {}
    for sentence in re.split(r"(?<=[.?]) ", text):
        numbers = [int(found) for found in re.findall(r"\d+", sentence)]
        names = [name for name in re.findall(r"\b[A-Z][a-z]+\b", sentence) if len(name) == 3]
        names = [name for name in names if name not in ("How", "One")]
        if "?" in sentence:
            return counts[names[0]]
        if "One of them is" in sentence:
            counts[names[0]] = counts.pop("")
        elif re.search(r"more than|fewer than|times as many", sentence):
            (old,) = set(names) & set(counts)
            (new,) = set(names) - {old}
            (number,) = numbers
            is_about_new = names[0] == new
            if "times" in sentence:
                assert is_about_new
                counts[new] = counts[old] * number
            else:
                grows = ("more than" in sentence) == is_about_new
                counts[new] = counts[old] + (number if grows else -number)
        elif "share" in sentence:  # the one that has a part may be named in the next sentence
            counts[names[0] if names else ""] = max(numbers) // min(numbers)
        elif re.search(r"boxes|a day", sentence):
            counts[names[0]] = numbers[0] * numbers[1]
        elif len(numbers) == 2:
            counts[names[0]] = sum(numbers)
        elif re.search(r"\bhas\b", sentence):
            counts[names[0]] = numbers[0]
        else:
            gains = re.search(r"\bmore\b", sentence) is not None
            counts[names[0]] += numbers[0] if gains else -numbers[0]
    raise AssertionError(f"{text} asks nothing")


def test_a_story_is_worked_out_step_by_step() -> None:
    steps = Counter[int]()
    for task in drawn("story", 400):
        question = task.question
        assert question.answer == str(told(question.text)), question.text
        parts = question.thought.split("; ")
        steps[len(parts)] += 1
        for part in parts:
            if "/" in part:
                a, b, result = map(int, re.split("[/=]", part))
                assert a == b * result
                continue
            head, _, work = part.partition(": ")
            x, sign, y = re.split(r"([-+*])", head)
            {"+": check_sum, "-": check_difference, "*": check_product}[sign](work, int(x), int(y))
            known = {"+": int(x) + int(y), "-": int(x) - int(y), "*": int(x) * int(y)}[sign]
            result = int(work.split()[-1])
            assert result == known
        assert question.answer == str(result)
    assert set(steps) == {1, 2, 3}


def test_a_countdown_is_reached_and_no_other_formula_counts() -> None:
    for task in drawn("countdown"):
        question = task.question
        shown = [int(found) for found in re.findall(r"\d+", question.text)]
        (target,) = (Counter(shown) - Counter(map(int, re.findall(r"\d+", question.answer)))).keys()
        numbers = [int(found) for found in re.findall(r"\d+", question.answer)]
        assert sum(map(int, re.findall(r"[-+]?\d+", question.answer))) == target
        assert sorted([*numbers, target]) == sorted(shown)
        *tries, last = re.findall(r"(\d+)([-+])(\d+)=(\d+)(?: (yes|no))?", question.thought)
        assert (int(last[3]), last[4]) == (target, "yes")
        for a, sign, b, result, said in [*tries, last]:
            assert int(a) + (int(b) if sign == "+" else -int(b)) == int(result)
            assert said == "" or (said == "yes") == (int(result) == target)
        assert question.is_answered_by(f"Answer: {question.answer} = {target}")
        wrong = (f"{target}", f"{numbers[0]}*1", f"{question.answer}+1", f"{question.answer}-0")
        assert not any(map(question.is_answered_by, wrong))
        for order in permutations(numbers):
            text = "-".join(map(str, order))
            right = order[0] - sum(order[1:]) == target
            assert question.is_answered_by(text) == right


def test_an_expression_keeps_its_value_in_every_step() -> None:
    for task in drawn("boolean"):
        *steps, value = task.question.thought.split(" = ")
        assert steps[0] in task.question.text
        assert {str(eval(step)) for step in steps} == {value} == {task.question.answer}
        assert not task.question.is_answered_by(str(value == "False"))


def test_brackets_close_what_is_open() -> None:
    for task in drawn("brackets"):
        question = task.question
        (begun,) = re.findall(r"[(\[{][()\[\]{}]*", question.text)
        whole = begun + question.answer
        for _ in range(len(whole)):
            whole = re.sub(r"\(\)|\[\]|\{\}", "", whole)
        assert whole == ""
        steps = question.thought.split()
        assert "".join(step[0] for step in steps) == begun
        for place, step in enumerate(steps, start=1):
            left = begun[:place]
            for _ in range(place):
                left = re.sub(r"\(\)|\[\]|\{\}", "", left)
            assert step[2:] == (left or "-")
        assert question.is_answered_by(" ".join(question.answer))
        assert not question.is_answered_by(question.answer + ")")


def solutions(givens: list[str]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield every square of 4 rows that keeps what is given, by trying all orders of each row."""
    fitting = [
        [
            row
            for row in permutations(range(1, 5))
            if all(given in (".", str(cell)) for given, cell in zip(line, row, strict=True))
        ]
        for line in givens
    ]
    for a in fitting[0]:
        for b in fitting[1]:
            if any(len({*a[i : i + 2], *b[i : i + 2]}) < 4 for i in (0, 2)):
                continue
            for c in fitting[2]:
                for d in fitting[3]:
                    columns_are_whole = all(
                        len(set(column)) == 4 for column in zip(a, b, c, d, strict=True)
                    )
                    boxes = [{*c[i : i + 2], *d[i : i + 2]} for i in (0, 2)]
                    if columns_are_whole and all(len(box) == 4 for box in boxes):
                        yield a, b, c, d


def test_a_sudoku_has_one_solution_and_its_thought_fills_it() -> None:
    for task in drawn("sudoku", 100):
        question = task.question
        lines = question.text.splitlines()[1:]
        (solution,) = solutions(lines)
        assert question.answer.splitlines() == ["".join(map(str, row)) for row in solution]
        cells = {(i, j): cell for i, line in enumerate(lines) for j, cell in enumerate(line)}
        for step in question.thought.split("="):
            if (found := re.search(r"(\d)(\d):(\S+) (\S+) (\S+)\Z", step)) is None:
                continue
            i, j = int(found[1]) - 1, int(found[2]) - 1
            row, column, box = (
                "".join(cell for place, cell in cells.items() if cell != "." and fits(*place))
                for fits in (
                    lambda a, b, i=i: a == i,
                    lambda a, b, j=j: b == j,
                    lambda a, b, i=i, j=j: (a // 2, b // 2) == (i // 2, j // 2),
                )
            )
            assert found.groups()[2:] == tuple(group or "-" for group in (row, column, box))
            assert {*row, *column, *box} == {*"1234"} - {str(solution[i][j])}
            cells[i, j] = str(solution[i][j])
        assert "." not in cells.values()
        assert question.is_answered_by(" ".join(question.answer))
        assert not question.is_answered_by("1234\n3412\n2143\n1234")


@pytest.mark.parametrize("kind", ["who", "hello", "unknown"])
def test_a_reply_is_about_one_topic_in_one_language(kind: str) -> None:
    tasks = [task for name in ("who", "hello", "unknown") for task in drawn(name, 100)]
    replies = {task.question.answer for task in tasks}
    assert len(replies) == 10
    for task in drawn(kind, 100):
        right = [reply for reply in replies if task.question.is_answered_by(reply)]
        assert right == [task.question.answer]
        assert not task.question.is_answered_by(" ".join(sorted(replies)))
        assert not task.question.is_answered_by("I only know mini-m1.")


def test_who_it_is_and_what_it_can_do_is_in_the_reply() -> None:
    said = {task.question.answer for task in drawn("who", 50)}
    assert len(said) == 2
    for reply in said:
        assert re.search("Fulmen", reply)
        assert re.search("mini-m1", reply)
        assert re.search("small model|kleines Modell", reply)
        assert re.search("sudoku", reply, re.IGNORECASE)


@given(
    st.text(max_size=60)
    | st.text("0123456789+-*/()=.,^e \n", max_size=60)
    | st.from_regex(r"(Answer: ?)?[-+]?[0-9]{1,9}([-+*/][0-9]{1,9}){0,5}", fullmatch=True)
)
@example("1/0")
@example("9e9999")
@example("9" * 5000)
@example("Answer: " + "(" * 5000)
@settings(max_examples=examples(200), deadline=None)
def test_any_reply_is_read_or_not(reply: str) -> None:
    for kind in KINDS:
        (task,) = drawn(kind, 1)
        said = task.question.read(reply)
        assert said is None or said
        assert task.question.is_answered_by(reply) in (True, False)
        assert said is not None or not task.question.is_answered_by(reply)


@pytest.mark.parametrize(
    ("kind", "reply"),
    [
        ("add", "The answer is {}."),
        ("multiply", "**Answer:** {}"),
        ("compare", "Answer: {}."),
        ("copy", "Answer: {}"),
        ("boolean", "**{}**\n\nAnswer: {}"),
        ("sudoku", "Answer:\n```\n{}\n```"),
    ],
)
def test_replies_may_have_the_forms_of_other_environments(kind: str, reply: str) -> None:
    for task in drawn(kind, 40):
        assert scored(task, reply.replace("{}", task.question.answer))[0] == 1
        assert scored(task, "I do not know. Answer: so")[0] == 0


@pytest.mark.parametrize(
    ("name", "kinds", "parts"),
    [
        ("basics", set(KINDS), set(PARTS)),
        ("basics:test", set(KINDS), {"test"}),
        ("basics:add", {"add"}, set(PARTS)),
        ("basics:who:validation", {"who"}, {"validation"}),
    ],
)
def test_a_name_has_a_kind_a_part_or_both(name: str, kinds: set[str], parts: set[str]) -> None:
    environment = load_environment(name, seed=0)
    tasks = [environment.task(index) for index in range(90)]
    assert {task.kind for task in tasks} == kinds  # type: ignore[attr-defined]
    assert {part_of(task.question.content) for task in tasks} == parts  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", ["divide", "add:all", "test:add"])
def test_a_kind_that_there_is_not_is_one_sentence(words: str) -> None:
    with pytest.raises(ValueError, match=f"{words} is no kind of basics, it must be one of add, "):
        load_environment(f"basics:{words}", seed=0)
