"""Runs of next-token training: the same bits however they are cut, stopped, killed or branched."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fulmen.checkpoints import load_model
from fulmen.train import (
    LMConfig,
    LMTrainer,
    latest_state,
    read_metrics,
    read_run_file,
    run_lock,
)
from fulmen.train.lm.mixture import micro_batches
from tests.tolerances import FLOAT32_ORDER, assert_close
from tests.train.lm_helpers import assert_same, finish, run_config, run_file, tensors
from tests.warm import python

KILLED = """
import os, signal, sys
from pathlib import Path
from fulmen.train import LMConfig, LMTrainer, Watcher, read_run_file

class Killer(Watcher):
    def stepped(self, report, config):
        if report.step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

LMTrainer(read_run_file(Path(sys.argv[1]), LMConfig, sys.argv[3:])).run(Killer())
"""


KINDS = [
    ("minimax_m1", "float32", "adamw"),
    ("minimax_m1", "bfloat16", "muon"),
    ("minimax_m2", "bfloat16", "adamw"),
]


@pytest.mark.parametrize(("family", "dtype", "kind"), KINDS, ids=["-".join(k) for k in KINDS])
def test_six_steps_are_three_a_kill_and_three_to_the_bit(
    tmp_path: Path, family: str, dtype: str, kind: str
) -> None:
    file = run_file(tmp_path, family=family, dtype=dtype, kind=kind)
    overrides = [f"out={tmp_path}/killed", "save_every=1"]
    done = subprocess.run(
        python("-c", KILLED, file, "4", *overrides), capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = LMTrainer(read_run_file(file, LMConfig, overrides))
    assert resumed.num_steps == 3
    assert resumed.run()
    whole, _ = finish(read_run_file(file, LMConfig))
    assert whole.num_steps == 6
    assert_same(resumed, whole)
    times = {"step": {"seconds": 0, "tokens_per_second": 0}, "probe": {"seconds": 0}}
    records = [
        [{**record, **times.get(record["kind"], {})} for record in read_metrics(out)]
        for out in (tmp_path / "killed", tmp_path / "out")
    ]
    assert records[0] == records[1]


def wait_until_free(out: Path) -> None:
    """A process that was killed lets go of its run a moment later."""
    while True:
        with suppress(ValueError), run_lock(out):
            return
        time.sleep(0.01)


def test_a_run_killed_at_any_moment_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    whole, _ = finish(read_run_file(file, LMConfig))
    out = tmp_path / "killed"
    flags = ["--set", f"out={out}", "--set", "save_every=1"]
    command = python("-m", "fulmen", "train", "lm", file, *flags)
    for step in (2, 4):  # as soon as its line is there: its state may be, or not, or half of it
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while not any(record["step"] == step for record in read_metrics(out, "step")):
            assert child.poll() is None
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        wait_until_free(out)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state = latest_state(tmp_path / "killed")
    assert state is not None
    assert done.stdout == f"{state}/model\n"
    served = load_model(state / "model", trainable=True).state_dict()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(served[name], tensor), name
    steps = [record["step"] for record in read_metrics(tmp_path / "killed", "step")]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("family", ["minimax_m1", "minimax_m2"])
@pytest.mark.parametrize("more", [[], ["model.config.router_jitter_noise=0.1"]], ids=["", "jitter"])
def test_gradients_do_not_depend_on_the_micro_batch(
    tmp_path: Path, family: str, more: list[str]
) -> None:
    # A loss of the experts whose gradients are larger than those of the targets.
    overrides = ["balance.kind=loss", "balance.group_tokens=64", "balance.coefficient=10"]
    sizes = ["stages.0.step_tokens=1000", "tasks.copy.style=plain", "tasks.add.style=plain"]
    config = run_config(tmp_path, *overrides, *sizes, *more, family=family)
    found: list[tuple[float, dict[str, Tensor]]] = []
    counts: list[int] = []
    for size in (16384, 130, 64):
        trainer = LMTrainer(replace(config, micro_batch_tokens=size, out=tmp_path / str(size)))
        gradients: dict[str, Tensor] = {}
        move, forward = trainer.optimizer.step, trainer.model.target_logprobs
        counts.append(0)

        def count(*args: Any, forward: Any = forward, **options: Any) -> Any:
            counts[-1] += 1
            return forward(*args, **options)

        def keep(
            scale: float = 1.0, move: Any = move, of: Any = trainer, to: Any = gradients
        ) -> Any:
            to.update({name: each.clone() for name, each in of.optimizer.gradients().items()})
            return move(scale)

        trainer.optimizer.step = keep  # type: ignore[method-assign]
        trainer.model.target_logprobs = count  # type: ignore[method-assign]
        report = trainer.step()
        trainer.close()
        assert report.aux_loss > 1
        found.append((report.loss, gradients))
    assert counts[-1] >= 16
    assert counts[0] == (counts[-1] if more else 1)  # with jitter each group is one
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-6)
        for name, gradient in gradients.items():
            assert_close(gradient, found[0][1][name], FLOAT32_ORDER)


def test_a_step_is_the_mean_loss_of_its_targets_and_packed_sequences_do_not_meet(
    tmp_path: Path,
) -> None:
    trainer = LMTrainer(run_config(tmp_path))
    stage = trainer.config.stages[0]
    drawn = trainer.mixture.draw(stage.step_tokens, stage.length, trainer.config.shares(0))
    alone = []
    with torch.no_grad():
        for one in drawn:
            (batch,) = micro_batches([one], 10**6, 10**6)
            alone.append(-trainer.model.target_logprobs(batch.packed, batch.targets))
    expected = float(torch.cat(alone).double().mean())
    trainer.close()
    again = LMTrainer(run_config(tmp_path))
    assert again.step().loss == pytest.approx(expected, abs=1e-6)
    again.close()


def test_losses_fall_and_every_probe_has_every_task(tmp_path: Path) -> None:
    config = run_config(tmp_path, "optimizer.learning_rate=0.01", "stages.1.tokens=4000")
    trainer, notes = finish(replace(config, held_out=0.2))
    assert sum(notes.losses[-4:]) < 0.8 * sum(notes.losses[:4])
    assert notes.probes[-1].tasks.keys() == {"copy", "add", "text"}
    last = notes.probes[-1].tasks
    assert last["copy"]["right"] == 0  # an answer that is right has a test of its own
    assert "right" not in last["text"]
    assert last["text"]["loss"] > 0
    assert {sample.task for sample in notes.probes[-1].samples} == {"copy", "add"}
    assert next(r["step"] for r in read_metrics(config.out, "probe")) == 4
    assert read_metrics(config.out, "end")[0]["tokens"] == trainer.num_tokens >= 4600


def test_stages_change_length_and_rotation_and_the_run_can_be_made_longer(tmp_path: Path) -> None:
    config = run_config(tmp_path, "save_every=1", "keep=9")
    trainer, _ = finish(config)
    assert trainer.num_steps == 6
    assert trainer.model.config.rope_theta == 20000.0
    begun = load_model(config.out / "states/step-00000003/model")  # where the first stage ends
    assert begun.config.rope_theta == 10_000.0
    assert read_run_file(config.out / "run.toml", LMConfig).stages == config.stages
    stages = [record["stage"] for record in read_metrics(config.out, "step")]
    assert stages == [0, 0, 0, 1, 1, 1]
    again, _ = finish(config)  # it has ended: nothing is done
    assert again.num_steps == 6
    first, last = config.stages
    longer, _ = finish(replace(config, stages=(first, replace(last, tokens=1000))))
    assert longer.num_steps == 8
    more, _ = finish(replace(config, stages=(first, replace(last, tokens=1000), first)))
    assert more.num_steps == 11
    assert [record["step"] for record in read_metrics(config.out, "end")] == [6, 8, 11]
    with pytest.raises(
        ValueError, match=r"is of stage 2, the run has 1 stages now, counted from 0$"
    ):
        LMTrainer(replace(config, stages=(first,)))


def test_a_decay_branches_from_the_trunk_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    plain, _ = finish(replace(config, out=tmp_path / "plain"))
    branches = replace(config.branches, every=500, length=400)
    trunk, notes = finish(replace(config, branches=branches, keep=9))
    assert_same(trunk, plain)
    found = read_metrics(config.out, "branch")
    assert [record["step"] for record in found] == [3, 5]
    assert len(notes.sentences) == 2
    factors = [
        record["factor"] for record in read_metrics(config.out / "branches/step-00000003", "step")
    ]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == pytest.approx(0.02)
    assert latest_state(config.out / "branches/step-00000003") is not None


def test_a_run_that_goes_on_with_branches_further_apart_has_the_next_one(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    near, far = (replace(config.branches, every=every, length=200) for every in (250, 500))
    trunk = LMTrainer(replace(config, branches=near))
    assert not trunk.run(should_stop=lambda: trunk.num_steps == 4)
    trunk.close()
    finish(replace(config, branches=far))
    tokens = {each["step"]: each["tokens"] for each in read_metrics(config.out, "step")}
    found = [record["step"] for record in read_metrics(config.out, "branch")]
    assert tokens[found[-2]] < 1000 <= tokens[found[-1]]


def test_a_run_begins_with_a_checkpoint_of_another(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    trainer, _ = finish(config)
    folder = str(trainer.model_folder)
    start = replace(config.model, config={}, checkpoint=folder, tokenizer=None)
    other = LMTrainer(replace(config, model=start, out=tmp_path / "other"))
    assert (other.num_steps, other.model.config.max_position_embeddings) == (0, 512)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], tensor), name
    other.step()
    other.close()


def test_an_interrupt_saves_and_the_run_goes_on(tmp_path: Path) -> None:
    config = run_config(tmp_path, "save_every=100")
    trainer = LMTrainer(config)
    assert not trainer.run(should_stop=lambda: trainer.num_steps == 2)
    trainer.close()
    resumed, _ = finish(config)
    whole, _ = finish(replace(config, out=tmp_path / "whole"))
    assert_same(resumed, whole)


def test_one_seed_gives_one_run_and_touches_no_generator_of_torch(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    before = torch.get_rng_state()
    one, _ = finish(config)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    other, _ = finish(replace(config, out=tmp_path / "other"))
    assert_same(one, other)
    third = LMTrainer(replace(config, out=tmp_path / "third", seed=1))
    name = "model.embed_tokens.weight"
    assert not torch.equal(third.model.state_dict()[name], one.model.state_dict()[name])
    third.close()


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["optimizer.learningrate=1"], "unknown key optimizer.learningrate, did you mean "),
        (["model.config.hidden_sze=8"], "unknown field hidden_sze = 8 in model.config, "),
        (["model.tokenizer=/nowhere"], "/nowhere has no tokenizer.json, "),
        (["tasks.copy.generator=cpy"], "tasks.copy.generator is cpy, it must be one of copy, "),
        (["tasks.text.files=['/nowhere.txt']"], "tasks.text: /nowhere.txt is missing, a file or"),
        (["stages.0.length=4096", "stages.0.step_tokens=4096"], "stages.0.length is 4096, the"),
        (["stages.0.mixture.sort=1"], "stages.0.mixture.sort is no task, there are copy, add"),
        (["floor=0.5"], "floor is 0.5, 3 tasks can have at most 0.333 each"),
        (["model.config.vocab_size=99"], r"has 268 tokens, the model's vocab_size is 99"),
        (["balance.kind=bias"], "kind is bias, this model's experts are chosen without one"),
        (["model.checkpoint=x"], "model.config, checkpoint or state must be given, found config"),
        (
            ["model.checkpoint="],
            "config, checkpoint or state must be given, found config and check",
        ),
        (
            ["model.config={}", "model.checkpoint="],
            "model.checkpoint is empty, it must be a fold",
        ),
        (["branches.length=5"], "branches.length is 5, it needs every, the tokens between branch"),
        (["schedule.floor=0.1"], "schedule.floor is 0.1, it needs a decay: schedule.decay_start o"),
        (["schedule.decay=cosine"], "schedule.decay is cosine, it needs a decay: "),
        (["check.num_words=5"], "check.num_words is 5, it needs files, there are none"),
        (["tasks.text.style=plain"], "tasks.text: style is plain, it needs JSONL, see files"),
        (["check.files=['/nowhere.txt']"], "/nowhere.txt is missing, an evaluation set is needed"),
        (["micro_batch_tokens=99"], "micro_batch_tokens is 99, it must be at least balance.group_"),
        (
            ["branches.every=300", "schedule.decay_start=600", "schedule.decay_length=9"],
            "branches.every is 300, decays branch from a constant rate: leave out schedule.decay_",
        ),
        (["stages.1.length=300", "stages.1.step_tokens=300"], "about 256 tokens, stages.1.length"),
        (["balance.bias_rate=0.1"], "bias_rate is 0.1, this model's experts are balanced by a los"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    file = run_file(tmp_path)
    with pytest.raises(ValueError, match=sentence) as error:
        LMTrainer(read_run_file(file, LMConfig, overrides))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_state_of_another_shape_is_one_sentence_and_stays(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    finish(read_run_file(file, LMConfig))
    before = sorted(str(path) for path in (tmp_path / "out").rglob("*"))
    with pytest.raises(ValueError, match="its intermediate_size is 16, the run's model has 32"):
        LMTrainer(read_run_file(file, LMConfig, ["model.config.intermediate_size=32"]))
    with pytest.raises(ValueError, match="it belongs to another model or kind of optimizer"):
        LMTrainer(read_run_file(file, LMConfig, ["optimizer.kind=muon"]))
    with pytest.raises(ValueError, match="is no state of a run"):
        LMTrainer(
            read_run_file(
                file, LMConfig, ["model.state=/nowhere", "model.config={}", f"out={tmp_path}/b"]
            )
        )
    assert sorted(str(path) for path in (tmp_path / "out").rglob("*")) == before


def test_a_gradient_that_is_not_finite_ends_the_run_before_anything_moves(tmp_path: Path) -> None:
    trainer = LMTrainer(run_config(tmp_path))
    trainer.step()
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = torch.inf
    before = {name: tensor.clone() for name, tensor in tensors(trainer).items()}
    with pytest.raises(ValueError, match=r"^the gradient of .* is not finite, "):
        trainer.step()
    for name, tensor in tensors(trainer).items():
        assert torch.equal(tensor, before[name]), name
    trainer.close()


def test_the_run_file_beside_a_run_gives_it_again(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    LMTrainer(config).close()
    assert read_run_file(config.out / "run.toml", LMConfig) == config
    first, *_ = (config.out / "run.toml").read_text().splitlines()
    assert first.startswith("# fulmen ")
    assert json.dumps(str(config.out)) in (config.out / "run.toml").read_text()
