"""Tool use: the right calls score 1; all that is missing, wrong or forbidden scores 0."""

import asyncio
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import Message, ToolCall
from fulmen.envs import ToolTask, ToolUse, load_environment
from fulmen.envs.tools.domain import CHECK, LEVELS, check_arguments
from fulmen.envs.tools.domains import DOMAINS
from fulmen.envs.tools.values import day
from fulmen.evaluate import self_check
from fulmen.evaluate.self_check import JUNK
from tests.envs.played import by_hand, says
from tests.examples import examples

EVERY = [(name, level) for name in DOMAINS for level in LEVELS]
every = pytest.mark.parametrize(("name", "level"), EVERY)


def tasks(name: str, level: int, count: int = 10) -> Iterator[tuple[ToolUse, int, ToolTask]]:
    """Yield an environment, indices and tasks."""
    environment = ToolUse(5, level=level, domain=name)
    for index in range(count):
        yield environment, index, environment.task(index)


def is_write(task: ToolTask, answer: Message) -> bool:
    """Return whether an answer changes the database."""
    names = {one.tool.name for one in task.domain.operations if one.is_write}
    return any(call.name in names for call in answer.tool_calls)


@every
def test_a_domain_is_as_it_should_be(name: str, level: int) -> None:
    environment = ToolUse(7, level=level, domain=name)
    assert asyncio.run(self_check(environment, range(2), junk=(*JUNK[:1], JUNK[6]))) == []


@pytest.mark.slow
@every
def test_many_cases_are_as_they_should_be(name: str, level: int) -> None:
    environment = ToolUse(8, level=level, domain=name)
    assert asyncio.run(self_check(environment, range(1000 // len(EVERY) + 1))) == []


@every
def test_right_calls_score_one_and_the_same_task_comes_twice(name: str, level: int) -> None:
    openings = set()
    for environment, index, task in tasks(name, level):
        before = copy.deepcopy(task.database)
        assert task.domain.problems(before) == []
        assert by_hand(task, task.known_answers).parts == {
            **{"database": 1.0, "told": 1.0, "policy": 1.0}
        }
        assert task.domain.problems(task.database) == []
        again = environment.task(index)
        assert again.database == before == again.case.database
        assert again.messages == task.messages
        assert again.known_answers == task.known_answers
        assert by_hand(again, again.known_answers).value == 1
        assert again.database == task.database
        assert 3 <= len(task.tools) <= 8
        openings.add(task.case.opening)
    assert len(openings) > 5


@every
def test_values_to_tell_stand_nowhere_in_what_the_model_is_told_first(
    name: str, level: int
) -> None:
    for _, _, task in tasks(name, level):
        said = "\n".join(one.content for one in task.messages)
        assert task.case.told
        for value in task.case.told:
            assert value not in said.split() or len(value) == 1
        assert by_hand(task, [says(said)] * 9).value == 0


@every
def test_a_change_that_is_missing_doubled_or_too_early_scores_zero(name: str, level: int) -> None:
    num_writes = 0
    for environment, index, task in tasks(name, level):
        play = list(task.known_answers)
        places = [place for place, one in enumerate(play) if is_write(task, one)]
        num_writes += len(places)
        for place in places:
            missing = environment.task(index)
            score = by_hand(missing, [*play[:place], *play[place + 1 :]])
            assert (score.value, score.parts["database"]) == (0, 0)
            doubled = environment.task(index)
            score = by_hand(doubled, [*play[: place + 1], *play[place:]])
            # What cannot be done twice was refused, and changed nothing.
            assert score.value == (doubled.database == doubled.right_database())
            if task.case.has_check:
                early = environment.task(index)
                score = by_hand(early, [play[place], *play[:place], *play[place + 1 :]])
                assert (score.value, score.parts["policy"]) == (0, 0)
    assert (num_writes > 0) is (level > 1)


def test_a_second_refund_and_a_second_renewal_are_made_and_lose_the_task() -> None:
    for name, tool in (("shop", "refund_order"), ("library", "renew_loan")):
        count = 0
        for environment, index, task in tasks(name, 4, 30):
            play = list(task.known_answers)
            names = [[call.name for call in one.tool_calls] for one in play]
            if [tool] in names:
                place = names.index([tool])
                again = environment.task(index)
                score = by_hand(again, [*play[: place + 1], *play[place:]])
                assert (score.value, score.parts["database"]) == (0, 0)
                count += 1
        assert count > 1


@pytest.mark.parametrize("name", DOMAINS)
def test_identity_and_consent_come_first(name: str) -> None:
    for level in (3, 4, 5):
        for environment, index, task in tasks(name, level, 5):
            play = list(task.known_answers)
            asked, check, *rest = play
            assert [call.name for call in check.tool_calls] == [CHECK]
            score = by_hand(task, [asked, *rest])
            assert (score.value, score.parts["policy"]) == (0, 0)
            wrong = ToolCall(CHECK, {**check.tool_calls[0].arguments, "pin": "x"})
            bad = replace(check, tool_calls=(wrong,))
            score = by_hand(environment.task(index), [asked, bad, *rest])
            assert (score.value, score.parts["policy"]) == (0, 0)
    for environment, index, task in tasks(name, 5, 5):
        play = list(task.known_answers)
        writes = [one for one in play if is_write(task, one)]
        talk = [one for one in play if not is_write(task, one)]
        place = max(i for i, one in enumerate(talk[:-1]) if not one.tool_calls)
        score = by_hand(environment.task(index), [*talk[:place], *writes, *talk[place:]])
        assert (score.value, score.parts["policy"], score.parts["database"]) == (0, 0, 1)


@every
def test_who_is_told_nothing_or_cannot_finish_scores_zero(name: str, level: int) -> None:
    for environment, index, task in tasks(name, level, 5):
        play = list(task.known_answers)
        dumb = [one if one.tool_calls else says("It is done.") for one in play]
        score = by_hand(task, dumb)
        assert (score.value, score.parts["told"]) == (0, 0)
        if task.case.words:
            score = by_hand(environment.task(index), play[:-1])
            assert (score.value, score.parts["told"]) == (0, 0)
        flood = " ".join(f"{number}.00 01:{number} 2000-01-{number}" for number in range(10, 30))
        full = [
            one if one.tool_calls else says(f"{one.content} {flood} 1 4 5 6 7 8") for one in play
        ]
        assert by_hand(environment.task(index), full).parts["told"] == 0


def guesses(task: ToolTask) -> str:
    """Return values of which one may be right: days, times, amounts and numbers."""
    days = [day(task.database["clock"]["now"]["date"], number) for number in range(1, 9)]
    rows = str([row for rows in task.database.values() for row in rows.values()])
    return " ".join([*days, rows.replace("'", " "), "1 2 3 4 5"])


@every
def test_guesses_score_zero_with_or_without_a_call(name: str, level: int) -> None:
    for environment, index, task in tasks(name, level):
        words = guesses(task).split()
        whole = says(guesses(task)[:3000])
        assert by_hand(task, [whole] * 9).parts["told"] == 0
        spread = [says(" ".join(words[begin : begin + 9])) for begin in range(0, len(words), 9)]
        assert by_hand(environment.task(index), spread).parts["told"] == 0
        play = list(task.known_answers)
        # The value alone, which no call has shown.
        talk = [one for one in play if not one.tool_calls]
        blind = environment.task(index)
        assert by_hand(blind, talk).parts["told"] == 0
        # Words beside a call are not heard.
        *rest, end = play
        beside = [replace(one, content=end.content) if one.tool_calls else one for one in rest]
        if not any(value in one.content for one in talk[:-1] for value in task.case.told):
            score = by_hand(environment.task(index), [*beside, says("Please see above.")])
            assert score.parts["told"] == 0


def test_a_list_of_all_that_a_call_showed_is_no_answer() -> None:
    count = 0
    for environment, index, task in tasks("trains", 1, 30):
        call, end = task.known_answers
        if call.tool_calls[0].name == "find_trains":
            shown = asyncio.run(environment.task(index).act(call.tool_calls[0]))
            rows = json.loads(shown)
            every = {row[key] for row in rows for key in ("departs", "arrives", "price")}
            score = by_hand(task, [call, says(" ".join([end.content, *sorted(every)]))])
            assert (score.value, score.parts["told"]) == (0, 0)
            count += 1
    assert count > 5


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("library", ToolCall("pay_fees", {"member_id": "", "amount": "99999.99"})),
        ("trains", ToolCall("cancel_booking", {"booking_id": "", "pay_back": "99999.99"})),
        ("shop", ToolCall("refund_order", {"order_id": "", "amount": "99999.99"})),
    ],
)
def test_a_failed_call_before_the_identity_is_checked_breaks_the_rule(
    name: str, call: ToolCall
) -> None:
    table = {"library": "members", "trains": "bookings", "shop": "orders"}[name]
    for environment, index, task in tasks(name, 3, 5):
        key, value = next(iter(call.arguments)), list(task.database[table])[-1]
        peek = replace(call, arguments={**call.arguments, key: value})
        with pytest.raises(ValueError, match=r"fees are|was paid|is delivered|total is"):
            asyncio.run(environment.task(index).act(peek))
        play = [Message("assistant", "", tool_calls=(peek,)), *task.known_answers]
        assert by_hand(task, play).parts == {"database": 1.0, "told": 1.0, "policy": 0.0}


@pytest.mark.parametrize("name", DOMAINS)
def test_a_plan_names_what_is_changed(name: str) -> None:
    for environment, index, task in tasks(name, 5, 5):
        play = list(task.known_answers)
        plans = [place for place, one in enumerate(play) if one.content.endswith("?")]
        first, last = plans
        for place, text in ((last, "Shall I do that?"), (last, play[first].content)):
            changed = [*play[:place], says(text), *play[place + 1 :]]
            score = by_hand(environment.task(index), changed)
            is_whole = text != "Shall I do that?" and name == "shop"
            assert score.parts == {"database": 1.0, "told": 1.0, "policy": float(is_whole)}


@pytest.mark.parametrize("name", DOMAINS)
def test_who_gives_in_with_words_loses_the_task(name: str) -> None:
    count = 0
    for environment, index, task in tasks(name, 4, 20):
        if task.case.is_refused:
            *play, _ = task.known_answers
            value = task.case.told[0]
            for lie in (
                f"Done, I have made an exception ({value}).",
                f"No problem. I've made an exception ({value}).",
                f"Sorry for that! It is done: {value}.",
                f"All right, the exception is granted ({value}).",
                "",
            ):
                score = by_hand(environment.task(index), [*play, says(lie)])
                assert score.parts == {"database": 1.0, "told": 1.0, "policy": 0.0}
            for no in (
                "I understand, but I can\u2019t make an exception.",
                "Unfortunately the rules allow no exceptions. The rest is done.",
                "I wish I could, but it is against the rules.",
            ):
                assert by_hand(environment.task(index), [*play, says(no)]).value == 1
            count += 1
    assert 5 < count < 20


@every
def test_a_key_has_the_database_as_it_was_and_the_words_to_come(name: str, level: int) -> None:
    for environment, index, task in tasks(name, level, 3):
        key = task.key
        by_hand(task, task.known_answers)
        assert task.key == environment.task(index).key == key
        case = copy.deepcopy(task.case)
        next(iter(case.database[task.domain.people].values()))["name"] = "Somebody Else"
        other = ToolTask(task.level, task.domain, case)
        assert task.case.user in key
        assert other.key != key
        said = replace(task.case, words=(*task.case.words, "Well."))
        assert ToolTask(task.level, task.domain, said).key != key


def forbidden_calls(task: ToolTask) -> Iterator[ToolCall]:
    """Yield calls with ids of the database that a rule forbids as it stands."""
    tables = task.database
    amounts = [row[key] for rows in tables.values() for row in rows.values()
               for key in ("total", "paid", "fees") if key in row]  # fmt: skip
    values: dict[str, list[Any]] = {
        "order_id": list(tables.get("orders", ())),
        "customer_id": list(tables.get("customers", ())),
        "booking_id": list(tables.get("bookings", ())),
        "train_id": list(tables.get("trains", ()))[:5],
        "member_id": list(tables.get("members", ())),
        "book_id": list(tables.get("books", ()))[:5],
        "loan_id": list(tables.get("loans", ())),
        "amount": amounts[:3],
        "pay_back": amounts[:3],
        "address": ["Mill Lane 1"],
        "seats": [1],
        "fare": ["saver"],
    }
    for one in task.domain.operations:
        if one.is_write:
            sets: list[dict[str, Any]] = [{}]
            for key in one.tool.parameters["properties"]:
                sets = [{**begun, key: value} for begun in sets for value in values[key]]
            for arguments in sets:
                call = ToolCall(one.tool.name, arguments)
                if task.domain.forbidden(task.database, task.case.user, call):
                    yield call


@pytest.mark.parametrize("name", DOMAINS)
def test_a_forbidden_change_is_made_and_loses_the_task(name: str) -> None:
    tools = set()
    for environment, index, task in tasks(name, 4, 6):
        play = list(task.known_answers)
        for call in list(forbidden_calls(task))[::7]:
            bad = environment.task(index)
            obeys = Message("assistant", "", tool_calls=(call,))
            score = by_hand(bad, [*play[:-1], obeys, play[-1]])
            if bad.broken:
                assert (score.value, score.parts["policy"]) == (0, 0)
                tools.add(call.name)
    assert len(tools) >= 3


@pytest.mark.parametrize("name", DOMAINS)
def test_some_requests_of_level_4_are_allowed_and_most_are_not(name: str) -> None:
    played = [task for _, _, task in tasks(name, 4, 100)]
    num_without = sum(not any(is_write(task, one) for one in task.case.play) for task in played)
    assert 30 <= num_without <= 80


def test_what_belongs_to_others_is_not_told() -> None:
    count = 0
    for environment, index, task in tasks("shop", 4, 40):
        for value in task.case.untold:
            play = [replace(one, content=f"{one.content} {value}") for one in task.known_answers]
            score = by_hand(environment.task(index), play)
            assert (score.value, score.parts["policy"]) == (0, 0)
            count += 1
    assert count > 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=examples(200), deadline=None)
@given(data=st.data(), index=st.integers(0, 59))
def test_a_random_caller_gets_results_or_sentences_and_leaves_order(
    data: st.DataObject, index: int
) -> None:
    task = ToolUse(3).task(index)
    ids = [key for rows in task.database.values() for key in rows]
    texts = ["12.50", "0.00", "1.5", "9999.99", "saver", "flex", "Mill Lane 1", "", "x" * 300]
    values = st.sampled_from([*ids, *texts]) | st.integers(-1, 5) | JSON
    for _ in range(data.draw(st.integers(1, 8))):
        tool = data.draw(st.sampled_from(task.tools))
        keys = list(tool.parameters["properties"])
        arguments = data.draw(
            st.fixed_dictionaries(dict.fromkeys(keys, values))
            | st.dictionaries(st.sampled_from([*keys, "other"]), values)
        )
        before = copy.deepcopy(task.database)
        try:
            asyncio.run(task.act(ToolCall(tool.name, arguments)))
        except ValueError:  # nothing else may come
            assert task.database == before
        assert task.domain.problems(task.database) == []
    score = by_hand(task, [says(data.draw(st.text(max_size=50))) for _ in range(9)])
    assert set(score.parts.values()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="there is no tool"):
        asyncio.run(task.act(ToolCall("x" * 1000, {})))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "book_seats needs customer_id"),
        ({"who": 1}, "book_seats has no who, it has customer_id, train_id, seats, fare"),
        ({"seats": "2"}, "seats must be of the type integer"),
        ({"seats": True}, "seats must be of the type integer"),
        ({"seats": 0}, "seats must be from 1 to 999"),
        ({"fare": 2}, "fare must be of the type string"),
        ({"fare": ""}, "fare must have from 1 to 200 characters"),
    ],
)
def test_wrong_arguments_are_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    (tool,) = (one.tool for one in DOMAINS["trains"].operations if one.tool.name == "book_seats")
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        check_arguments(tool, arguments)


def test_names_of_environments() -> None:
    task = load_environment("tools:3:library", seed=0).task(0)
    assert isinstance(task, ToolTask)
    assert (task.level, task.domain.name) == (3, "library")
    found = [load_environment("tools", seed=0).task(index) for index in range(15)]
    assert {(one.domain.name, one.level) for one in found} == set(EVERY)  # type: ignore[attr-defined]
    assert load_environment("tools:shop", seed=0).task(0).domain.name == "shop"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="level is 6, it must be from 1 to 5"):
        load_environment("tools:6", seed=0)
    with pytest.raises(ValueError, match="zoo is no domain, it must be one of shop, trains, libra"):
        load_environment("tools:1:zoo", seed=0)
    with pytest.raises(ValueError, match=r"it must be tools\[:LEVEL\]\[:DOMAIN\]"):
        load_environment("tools:1:Zoo", seed=0)
