"""The fork task: what it asks and scores, and that CISPO learns it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.agent import Score
from fulmen.kernels import set_num_threads
from fulmen.models import count_parameters, new_model
from fulmen.train import (
    BatchConfig,
    EngineSizes,
    Fork,
    OptimizerConfig,
    RLRun,
    SamplingConfig,
    SourceConfig,
    TrainerConfig,
    fork_config,
    open_run,
    read_metrics,
    warm_start,
)
from fulmen.train.rl.fork import COUNTED, DIRECT, END
from fulmen.train.rl.probe import ProbeConfig


def test_answers_of_both_ways_are_scored_by_their_sum() -> None:
    environment = Fork(0)
    task = environment.task(3)
    assert environment.task(3) == task
    running, total = task.sums
    assert total == sum(task.digits) % 10
    first, second, third = task.digits
    counted = [COUNTED, first, second, running, third, total, END]
    right = [[DIRECT, total, END], counted]
    assert [task.score(answer).value for answer in right] == [1.0, 1.0]
    assert [task.score(answer).parts["counted"] for answer in right] == [0.0, 1.0]
    wrong = (total + 1) % 10
    for answer in (
        [],
        [END],
        [DIRECT, wrong, END],
        [DIRECT, total],
        [total, END],
        counted[:-1],
        counted[1:],
        [*counted[:-2], wrong, END],
        [DIRECT, total, total, total, END],
    ):
        assert task.score(answer).value == 0.0, answer
    assert environment.text([1, 2, 3, 10, *right[0], 15]) == f"1 2 3 = D {total} . <15>"


def test_demonstrations_are_right_answers_of_both_ways_but_for_wrong_sums() -> None:
    environment = Fork(1)
    shown = [environment.demonstration(index, wrong=0.0) for index in range(400)]
    for index, (ids, start) in enumerate(shown):
        assert environment.task(index).score(ids[start:]) == Score(
            1.0, {"counted": float(ids[start] == COUNTED)}
        )
    assert 160 < sum(ids[start] == COUNTED for ids, start in shown) < 240
    some = [environment.demonstration(index) for index in range(400)]
    assert any(
        environment.task(index).score(ids[4:]).value == 0 for index, (ids, _) in enumerate(some)
    )


def test_the_model_has_ninety_thousand_parameters() -> None:
    assert 80_000 < count_parameters(fork_config()).total < 100_000


@pytest.mark.slow
def test_cispo_learns_the_fork_from_a_tenth_to_over_a_half(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_num_threads(1)  # so small a model is slower on two
    model = new_model(fork_config(), seed=0)
    warm_start(model, seed=0)
    run = RLRun(
        folder=tmp_path / "run",
        model=tmp_path,
        dtype="float32",
        trainer=TrainerConfig(num_steps=90, num_groups=32, save_every=45),
        sources=(SourceConfig(levels=("fork",)),),
        sampling=SamplingConfig(group_size=8, max_tokens=8, repetition_window=None),
        batch=BatchConfig(num_minibatches=16, min_groups=2),
        optimizer=OptimizerConfig(learning_rate=3e-4),
        engine=EngineSizes(max_num_seqs=256),
        probe=ProbeConfig(every=30, num_tasks=512),
    )
    with open_run(run, model=model) as trainer:
        trainer.run()
    torch.set_num_threads(threads)
    set_num_threads(threads)
    probes: list[dict[str, Any]] = read_metrics(run.folder, "probe")
    rates = [one["fork (held out)"] for one in probes]
    assert rates[0] < 0.2
    assert rates[-1] > 0.5
    steps = read_metrics(run.folder, "step")
    counted = [one["reward_part/counted"] for one in steps]
    assert counted[0] < 0.1
    assert counted[-1] > 0.9
