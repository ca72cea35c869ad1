"""fulmen agent with the tools of small models: the prompts that such a model was trained on."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fulmen.agent import Archive, Trajectory, default_runs
from fulmen.chat import ChatRequest, load_format
from fulmen.chat.tokenizer import Tokenizer
from fulmen.checkpoints import save_model
from fulmen.cli import agent_run
from fulmen.envs import demonstrated, load_environment, tools_of
from fulmen.envs.calls.micro import MicroRepair
from fulmen.llm import LocalModel, LocalStream
from fulmen.train.lm.examples import Coder, Example
from fulmen.train.speedrun import find_recipe
from tests.cli.test_cli import called
from tests.models.helpers import random_model, tiny_m2
from tests.sandbox.helpers import skip_without_sandbox


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    skip_without_sandbox()


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An M2 of random weights with the tokenizer of runs/mini-m2.toml."""
    folder = tmp_path_factory.mktemp("mini")
    size = find_recipe("mini-m2").tokenizer.make(folder)
    save_model(random_model(tiny_m2(vocab_size=size)), folder)
    return folder


def answers_of(example: Example) -> Iterator[tuple[int, int]]:
    """Yield where each answer begins and ends that an example teaches."""
    targets = list(example.targets)
    starts = [one for one in targets if one - 1 not in targets]
    ends = [one + 1 for one in targets if one + 1 not in targets]
    yield from zip(starts, ends, strict=True)


def play(
    task: MicroRepair, answers: Sequence[Sequence[int]], checkpoint: Path, tmp_path: Path
) -> Trajectory:
    """Let the command work on a task by a model that is made to say these answers; the folder is
    graded."""
    script = iter(answers)

    class Saying(LocalModel):
        """The model of the command, made to say the script."""

        def stream(self, request: ChatRequest) -> LocalStream:
            return super().stream(replace(request, forced_ids=tuple(next(script))))

    work = tmp_path / "work"
    work.mkdir()
    asyncio.run(task.prepare(work))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent_run, "LocalModel", Saying)
        flags = ("--tools", "minimal", "--mode", "auto", "--folder", work, "--model", checkpoint)
        run = called("agent", "-p", task.messages[-1].content, *flags)
    assert run.returncode == 0, run.stderr
    assert asyncio.run(task.score(Trajectory(), work)).value == 1
    runs = Archive(default_runs()).runs
    return runs.open(runs.names()[0]).trajectory


@pytest.mark.parametrize("index", [0, 4])
def test_a_repair_has_the_tokens_that_a_small_model_was_trained_on(
    index: int, mini: Path, tmp_path: Path
) -> None:
    task = load_environment("calls:repair:test", seed=0).task(index)
    assert isinstance(task, MicroRepair)
    coder = Coder(Tokenizer.from_folder(mini), load_format(mini))
    (example,) = coder.conversation(demonstrated(task), tools_of(task))
    places = list(answers_of(example))
    assert len(places) == len(task.known_answers)
    answers = [example.ids[start:end] for start, end in places]
    steps = play(task, answers, mini, tmp_path).steps
    for step, (start, _) in zip(steps, places, strict=True):
        assert step.answer.sampled is not None
        assert step.answer.sampled.prompt_ids == example.ids[:start]
