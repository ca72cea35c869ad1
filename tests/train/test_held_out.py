"""Held-out tasks: never trained on, by what they ask and not by where they stand."""

from pathlib import Path

import pytest

from fulmen.envs import Arithmetic, Questions, Repairs
from fulmen.train import Curriculum, CurriculumConfig, Fork, SourceConfig
from fulmen.train.rl.held_out import HeldOut
from tests.train.rl_helpers import RandomIds, RandomTask


def questions(folder: Path, count: int, *, copies: int = 1) -> Questions:
    """Return questions of a file, each of which stands there so many times."""
    lines = [f'{{"question": "{number} and 1?", "answer": 2}}\n' for number in range(count)]
    file = folder / f"{count}-{copies}.jsonl"
    file.write_text("".join(lines * copies))
    return Questions(file)


def test_no_task_that_the_fork_trains_on_is_probed() -> None:
    trained, probed = Fork(0), Fork(1)
    held_out = HeldOut({"fork": trained}, {"fork": probed}, 512)
    asked = {probed.task(index).digits for index in held_out.indices["fork"]}
    assert 100 < len(asked) == len(held_out.indices["fork"]) < 256
    found = Curriculum(
        [SourceConfig(levels=("fork",))],
        CurriculumConfig(),
        num_tasks={"fork": None},
        seed=0,
        is_held_out=held_out.has,
    )
    drawn = {trained.task(one.task_index).digits for one in found.draw(9000)}
    assert not drawn & asked
    assert len(drawn) + len(asked) > 990  # of a thousand


def test_of_a_file_a_fifth_is_held_out_at_most_and_copies_go_with_it(tmp_path: Path) -> None:
    own = questions(tmp_path, 20, copies=2)
    found = HeldOut({"book": own}, {"book": own}, 512)
    kept = {own.task(index).messages[0].content for index in found.indices["book"]}
    assert len(kept) == 4
    for index in range(40):
        assert found.has("book", index) is (own.task(index).messages[0].content in kept)
    assert len(HeldOut({"book": own}, {"book": own}, 3).indices["book"]) == 3
    # It is the hash that picks, whatever stands beside it.
    more = questions(tmp_path, 21)
    again = HeldOut({"book": more}, {"book": more}, 512)
    assert {more.task(index).messages[0].content for index in again.indices["book"]} <= {
        *kept,
        "20 and 1?",
    }


def test_a_claimed_environment_is_asked_whole_and_its_tasks_are_trained_on_nowhere(
    tmp_path: Path,
) -> None:
    own, claimed = questions(tmp_path, 20), questions(tmp_path, 7)
    found = HeldOut({"book": own}, {"book": own, "other": claimed}, 512)
    assert found.indices["other"] == tuple(range(7))
    assert all(found.has("book", index) for index in range(7))


def test_few_endless_tasks_leave_half_for_training() -> None:
    class Few(RandomIds):
        def task(self, index: int) -> RandomTask:
            if index % 100 == 0:
                raise OSError("this one is broken")
            return super().task(index % 10)

    found = HeldOut({"few": Few()}, {"few": Few()}, 300)
    assert len(found.indices["few"]) == 5
    assert sum(found.has("few", index) for index in range(1, 11)) == 5
    assert not found.has("few", 0)


def test_one_task_cannot_be_held_out_and_trained_on(tmp_path: Path) -> None:
    two = questions(tmp_path, 2)
    assert len(HeldOut({"two": two}, {"two": two}, 9).indices["two"]) == 1
    one = questions(tmp_path, 1)
    with pytest.raises(ValueError, match="one has 1 different tasks, so none can be kept for the"):
        HeldOut({"one": one}, {"one": one}, 9)


def test_tasks_that_differ_in_their_files_alone_are_two() -> None:
    repairs = Repairs(0, level=1)
    keys = {repairs.task(index).key for index in range(4)}
    assert len(keys) == 4
    assert Arithmetic(0).task(1).key == f"user: {Arithmetic(0).task(1).question}"
