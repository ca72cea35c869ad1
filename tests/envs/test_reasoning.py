"""reasoning-gym: what is on the list passes the self-check, and nothing else is given."""

import asyncio
from importlib.util import find_spec
from pathlib import Path

import pytest

from fulmen.envs import load_environment
from fulmen.envs.reasoning import Listed, ReasoningGym, ReasoningGymTask, listed_datasets
from fulmen.envs.reasoning.environment import is_whole
from fulmen.envs.workers import WorkerError, Workers, shared_workers
from fulmen.evaluate import self_check
from tests.envs.test_environments import scored

is_installed = find_spec("reasoning_gym") is not None
needs_library = pytest.mark.skipif(not is_installed, reason="reasoning-gym (extra envs)")
FEW = ("chain_sum", "basic_arithmetic", "base_conversion")


def test_a_data_set_off_the_list_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"reasoning_gym:propositional_logic is not on the list"):
        load_environment("reasoning_gym:propositional_logic", seed=0)
    with pytest.raises(ValueError, match=r"reasoning_gym:\.\. is not on the list"):
        load_environment("reasoning_gym:..", seed=0)


@pytest.mark.skipif(is_installed, reason="reasoning-gym is installed")
def test_without_the_library_a_sentence_says_how_to_have_it() -> None:
    with pytest.raises(ValueError, match=r"pip install 'fulmen\[envs\]'"):
        load_environment("reasoning_gym:chain_sum", seed=0)


def test_the_list_says_with_which_version_it_was_made() -> None:
    listed, version = listed_datasets()
    assert version == "0.1.25"
    assert set(FEW) <= set(listed)
    assert "binary_matrix" not in listed  # its verifier evaluates answers as Python
    assert all(0 < one.chance <= 1 for one in listed.values())
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert f'"reasoning-gym=={version}"' in text


@needs_library
@pytest.mark.parametrize("name", FEW)
def test_a_data_set_passes_the_self_check(name: str) -> None:
    environment = load_environment(f"reasoning_gym:{name}", seed=5)
    found = asyncio.run(self_check(environment, range(5), making_seconds=60))
    assert found == []


@needs_library
def test_another_process_makes_the_same_tasks() -> None:
    workers = Workers(size=1, hash_seed=7)
    for name in FEW:
        here, there = (ReasoningGym(3, name=name, workers=one) for one in (None, workers))
        tasks = [here.task(index) for index in range(10)]
        assert [there.task(index) for index in reversed(range(10))] == tasks[::-1]
        assert len({task.question for task in tasks}) > 5
        other = ReasoningGym(4, name=name)
        assert not {task.question for task in tasks} & {other.task(i).question for i in range(10)}
    workers.close()


@needs_library
def test_answers_stand_after_the_mark() -> None:
    task = load_environment("reasoning_gym:chain_sum", seed=0).task(0)
    assert isinstance(task, ReasoningGymTask)
    right = task.answer
    assert scored(task, f"So.\nAnswer: {right}") == (1, right)
    assert scored(task, f"**Answer: {right}**") == (1, right)
    assert scored(task, f"Answer: {right}1")[0] == 0
    assert scored(task, f"{right}") == (0, None)
    assert scored(task, "", thinking=f"Answer: {right}") == (0, None)
    many = " ".join(map(str, range(int(right) - 50, int(right) + 50)))
    assert scored(task, f"Answer: {many}")[0] == 0


def test_a_score_near_1_or_beyond_it_is_not_that_of_a_right_answer() -> None:
    assert [one for one in (1.0, 1 - 1e-12, 0.995, 148.4, 0.0, -1.0) if is_whole(one)] == [
        1.0,
        1 - 1e-12,
    ]


@needs_library
def test_a_long_answer_with_a_letter_too_many_is_wrong() -> None:
    environment = ReasoningGym(0, name="caesar_cipher")
    tasks = [environment.task(index) for index in range(20)]
    task = max(tasks, key=lambda one: len(one.answer))
    assert len(task.answer) >= 99
    assert scored(task, f"Answer: {task.answer}")[0] == 1
    assert scored(task, f"Answer: {task.answer}S")[0] == 0


@needs_library
def test_no_verifier_of_the_list_runs_an_answer() -> None:
    listed, _ = listed_datasets()
    code = '[__import__("os")._exit(7)]'
    for name in listed:
        (score,) = shared_workers().call("scores", name, 1, 0, [code], module="reasoning_gym")
        assert not is_whole(score), name


@needs_library
def test_all_of_the_list_comes_in_turn() -> None:
    listed = {name: Listed(False, 0.1) for name in FEW}
    environment = ReasoningGym(0, listed=listed)
    assert [environment.task(index).name for index in range(6)] == sorted(FEW) * 2
    with pytest.raises(ValueError, match="task -1 was asked for"):
        environment.task(-1)


@needs_library
def test_a_broken_generator_or_verifier_is_an_error() -> None:
    listed = {"no_such": Listed(False, 0.1), "chain_sum": Listed(False, 0.1)}
    with pytest.raises(WorkerError, match="not registered"):
        ReasoningGym(0, name="no_such", listed=listed).task(0)
    workers = Workers(size=1)
    task = ReasoningGym(0, name="chain_sum", listed=listed, workers=workers).task(0)
    workers.close()
    with pytest.raises(WorkerError, match="closed"):
        scored(task, "Answer: 5")


@needs_library
@pytest.mark.slow
def test_every_listed_data_set_passes_the_self_check() -> None:
    for name in listed_datasets()[0]:
        environment = load_environment(f"reasoning_gym:{name}", seed=77)
        found = asyncio.run(self_check(environment, range(10), making_seconds=60))
        assert found == [], name
