"""The trainer: one policy that samples and is trained, states, refills, and what ends a run."""

import json
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.checkpoints import load_model
from fulmen.engine import Engine, EngineConfig, TokenOutput
from fulmen.models import Packed
from fulmen.sampling import SamplingParams
from fulmen.train import (
    Draw,
    LengthWindow,
    LimitsConfig,
    RolloutError,
    ScheduleConfig,
    Trainer,
    TrainerConfig,
    TrainingError,
    WindowConfig,
    latest_state,
    read_metrics,
)
from fulmen.train.rl.probe import Probe, ProbeConfig
from tests.train.rl_helpers import (
    DTYPES,
    SMALL,
    RandomIds,
    RandomTask,
    Seen,
    are_equal,
    new_tiny,
    new_trainer,
    rollouts_of,
    weights_of,
)
from tests.train.run_rl import prepare

every_model = pytest.mark.parametrize("kind", ["m1", "m2"])
every_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@every_model
@every_dtype
def test_on_policy_every_ratio_is_exactly_one(kind: str, dtype: str, tmp_path: Path) -> None:
    model = new_tiny(kind, dtype)
    trainer = new_trainer(model, tmp_path)
    before = weights_of(model)
    trainer.run()
    records = read_metrics(tmp_path, "step")
    assert [one["mismatch"]["different_tokens"] for one in records] == [0, 0, 0]
    assert [one["policy_version"] for one in records] == [1, 2, 3]
    assert all(one["updates"] == 2 for one in records)
    # Behind the first minibatch the policy has moved, so these were not equal by accident.
    assert all(one["max_ratio"] > 1 for one in records)
    assert not are_equal(before, weights_of(model))
    engine = rollouts_of(trainer).engine
    assert engine.stats.num_hit_tokens > 0  # members of a group began where its first had read to
    trainer.close()


@every_model
@every_dtype
def test_ratios_are_one_where_answers_were_preempted(kind: str, dtype: str, tmp_path: Path) -> None:
    model = new_tiny(kind, dtype)
    page = model.page_bytes()
    engine = EngineConfig(
        max_num_seqs=16, max_num_batched_tokens=256, kv_cache_bytes=12 * page, max_model_len=400
    )
    environments = {"random": RandomIds(end_ids=(), lengths=(40,))}
    trainer = new_trainer(model, tmp_path, environments=environments, engine=engine, num_steps=1)
    trainer.run()
    assert rollouts_of(trainer).engine.stats.num_preemptions > 0
    assert read_metrics(tmp_path, "step")[0]["mismatch"]["different_tokens"] == 0
    trainer.close()


@every_model
@every_dtype
def test_a_saved_policy_that_is_served_is_the_one_in_training(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    model = new_tiny(kind, dtype)
    trainer = new_trainer(model, tmp_path)
    trainer.run()
    trainer.close()
    state = latest_state(tmp_path)
    assert state is not None
    engine = Engine(load_model(state / "model", dtype=DTYPES[dtype]), SMALL)
    prompt = list(range(5, 60))
    engine.add_request(
        prompt,
        SamplingParams(temperature=1.0, top_p=1.0, top_k=None, seed=4, max_tokens=100),
    )
    outputs = list[TokenOutput]()
    while engine.has_unfinished:
        outputs += [one for one in engine.step() if isinstance(one, TokenOutput)]
    ids = [*prompt, *(one.token_id for one in outputs)]
    packed = Packed.of([ids[:-1]], num_logits=[len(outputs)])
    with torch.no_grad():
        logprobs = model.target_logprobs(packed, torch.tensor(ids[len(prompt) :]))
    assert torch.equal(logprobs, torch.tensor([one.logprob for one in outputs]))


@every_model
@every_dtype
def test_after_new_weights_the_next_answers_are_those_of_the_trainer(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    model = new_tiny(kind, dtype)
    trainer = new_trainer(model, tmp_path)
    trainer.step()
    rolled = rollouts_of(trainer).roll_out(
        [Draw("random", index) for index in range(4)], group_size=3, seed=5, max_tokens=50
    )
    for group in rolled.groups:
        for sample in group.samples:
            assert set(sample.policy_versions[sample.is_sampled].tolist()) == {1}
            packed = Packed.of([sample.ids[:-1]], num_logits=[sample.num_sampled])
            with torch.no_grad():
                found = model.target_logprobs(packed, sample.ids[sample.is_sampled])
            assert torch.equal(found, sample.logprobs[sample.is_sampled])
    trainer.close()


def test_weights_that_are_not_the_samplers_end_the_run(tmp_path: Path) -> None:
    model = new_tiny("m1")
    trainer = new_trainer(model, tmp_path)
    with torch.no_grad():
        model.model.norm.weight[0] *= 1.01
    before = weights_of(model)
    with pytest.raises(TrainingError, match=r"the importance ratio of \d+ of \d+ tokens is not 1"):
        trainer.step()
    assert are_equal(before, weights_of(model))
    trainer.close()


def run_process(folder: Path, *arguments: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.train.run_rl", str(folder), *map(str, arguments)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def without_seconds(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "seconds"}


def test_six_steps_are_three_a_kill_and_three_more(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    prepare(tmp_path)
    processes = [run_process(whole, 6), run_process(cut, 6, 5)]
    with processes[1] as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped\n"
        process.kill()  # in the sixth step, after the good state of the fourth
    assert processes[0].wait(120) == 0
    assert processes[0].stdout is not None
    processes[0].stdout.close()
    with run_process(cut, 6) as process:
        assert process.wait(120) == 0
    for name in ("model/model.safetensors", "optimizer.safetensors", "state.json"):
        files = [folder / "states" / "step-00000006" / name for folder in (whole, cut)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
    records = [list(map(without_seconds, read_metrics(folder))) for folder in (whole, cut)]
    assert records[0] == records[1]
    steps = [one for one in records[0] if one["kind"] == "step"]
    assert [one["step"] for one in steps] == [1, 2, 3, 4, 5, 6]
    assert [one["step"] for one in records[0] if one["kind"] == "probe"] == [0, 4, 6]
    assert all({"reward/random", "reward/questions"} <= one.keys() for one in steps[:1])
    assert len({one["rate"] for one in steps}) > 3
    assert len({one["max_tokens"] for one in steps}) == 3


def test_groups_of_equal_rewards_are_replaced_counted_and_shown(tmp_path: Path) -> None:
    seen = Seen()
    environments = {"random": RandomIds(), "dull": RandomIds(reward=1.0)}
    trainer = new_trainer(
        new_tiny("m2"),
        tmp_path,
        environments=environments,
        watcher=seen,
        options={"max_refills": 12},
    )
    record = trainer.step()
    trainer.close()
    assert record["groups_used"] == 6
    assert record["rounds"] == len(seen.rounds) > 1
    assert record["groups_idle"] == seen.rounds[-1][2] > 0
    assert record["groups"] == record["groups_used"] + record["groups_idle"]
    ended, total, speed = seen.progress[-1]
    assert ended == total > 0 < speed
    assert record["level/random"] == 0
    assert record["pass_rate/dull"] == 1
    assert record["oldest_policy_version"] == 0


def test_too_few_informative_groups_make_no_update_and_in_the_end_none_is_tried(
    tmp_path: Path,
) -> None:
    seen, model = Seen(), new_tiny("m1")
    environments = {"dull": RandomIds(reward=0.0)}
    options = {"max_refills": 1, "max_idle_steps": 2, "num_steps": 9}
    trainer = new_trainer(model, tmp_path, environments=environments, options=options, watcher=seen)
    before = weights_of(model)
    with pytest.raises(TrainingError, match="2 steps in a row made no update: these tasks are"):
        trainer.run()
    trainer.close()
    assert are_equal(before, weights_of(model))
    assert seen.sentences[0] == (
        "step 1 made no update: 0 groups of 12 have an advantage, 2 are needed"
    )
    assert [one[0] for one in seen.rounds] == [1, 2, 1, 2]


def test_groups_whose_advantages_are_masked_are_replaced_and_not_called_informative(
    tmp_path: Path,
) -> None:
    seen = Seen()
    environments = {"random": RandomIds(end_ids=())}  # all are cut at the limit
    options = {"max_refills": 1}
    trainer = new_trainer(
        new_tiny("m1"),
        tmp_path,
        environments=environments,
        options=options,
        watcher=seen,
        max_tokens=5,
        overlong="mask",
    )
    record = trainer.step()
    trainer.close()
    assert record["zero_variance_share"] < 1
    assert (record["groups_used"], record["groups_idle"], record["updates"]) == (0, 12, 0)
    assert seen.sentences == [
        "step 1 made no update: 0 groups of 12 have an advantage, 2 are needed"
    ]


@pytest.mark.parametrize("unit", ["tokens", "steps"])
def test_the_rate_is_that_of_the_step_and_the_first_one_learns(unit: Any, tmp_path: Path) -> None:
    warmup = {"tokens": 10**6, "steps": 4}[unit]
    model = new_tiny("m1")
    before = weights_of(model)
    schedule = ScheduleConfig(unit=unit, warmup=warmup)
    trainer = new_trainer(model, tmp_path, schedule=schedule)
    first = trainer.step()
    assert not are_equal(before, weights_of(model))
    trainer.run()
    trainer.close()
    records = read_metrics(tmp_path, "step")
    assert first["rate"] == records[0]["rate"] > 0
    places = [one["tokens_so_far"] if unit == "tokens" else one["step"] for one in records]
    assert [one["rate"] for one in records] == [place / warmup for place in places]


def test_a_sampler_that_is_another_model_is_said_where_a_run_is_not_exact(tmp_path: Path) -> None:
    seen, model = Seen(), new_tiny("m1")
    trainer = new_trainer(model, tmp_path, watcher=seen, is_exact=False)
    trainer.step()
    assert seen.sentences == []
    model.load_state_dict(new_tiny("m1", seed=5).state_dict())
    record = trainer.step()
    trainer.close()
    assert record["mismatch"]["correlation"] < 0.995
    (sentence,) = seen.sentences
    assert sentence.startswith("step 2: probabilities of sampler and trainer correlate by -0")


def test_a_probe_that_falls_brings_the_last_good_weights_back(tmp_path: Path) -> None:
    held = RandomIds(reward=1.0)
    seen, model = Seen(), new_tiny("m1", "bfloat16")
    trainer = new_trainer(
        model,
        tmp_path,
        environments={"random": RandomIds(), "held out": held},
        watcher=seen,
        probe=Probe(
            {"held out": range(100)},
            ProbeConfig(every=1, num_tasks=100, max_drop=0.2, max_returns=1),
            seed=0,
        ),
        num_steps=1,
    )
    trainer.run()
    good = weights_of(model)
    held.reward = 0.0
    assert trainer.step()["probe"] == {"held out": 0.0}
    assert seen.probes == [{"held out": 1.0}, {"held out": 1.0}, {"held out": 0.0}]
    assert seen.sentences == [
        *(f"probing after step {step}" for step in range(3)),
        "step 2: held out fell from 1.00 to 0.00, the weights of step 1 are back",
    ]
    assert are_equal(good, weights_of(model))
    held.reward = 0.95
    trainer.step()  # within what may be lost
    assert seen.sentences[-1] == "probing after step 3"
    held.reward = 0.2
    with pytest.raises(TrainingError, match="the probe sent the run back 2 times"):
        trainer.step()
    trainer.close()


@dataclass
class Unscored(RandomIds):
    """Tasks whose scores fail, for a time."""

    has_failed: bool = True

    def task(self, index: int) -> RandomTask:
        if self.has_failed:
            raise OSError("the judge is away")
        return super().task(index)


def test_a_probe_without_an_answer_is_not_good_and_the_last_step_has_one(tmp_path: Path) -> None:
    seen, lost = Seen(), Unscored(reward=1.0)
    trainer = new_trainer(
        new_tiny("m1"),
        tmp_path,
        environments={"random": RandomIds(), "held out": RandomIds(reward=1.0), "held lost": lost},
        watcher=seen,
        probe=Probe(
            {"held out": range(8), "held lost": [3]},
            ProbeConfig(every=2, num_tasks=8, max_drop=0.6),
            seed=0,
        ),
        num_steps=3,
    )
    trainer.run(should_stop=lambda: trainer.num_steps == 2)
    assert latest_state(tmp_path) is not None
    assert trainer._good is None
    assert [one["step"] for one in read_metrics(tmp_path, "probe")] == [0, 2]
    assert read_metrics(tmp_path, "probe")[0]["failures"] == {"OSError": 8}
    assert seen.sentences[:3] == [
        "probing after step 0",
        "of the probe's answers 8 (OSError) failed",
        "step 0 does not count as good, nothing is known of held lost",
    ]
    lost.has_failed = False
    trainer.run()
    assert trainer._good == 3
    assert lost.asked == [3] * 8  # a task comes again where there are too few
    assert [one["step"] for one in read_metrics(tmp_path, "probe")] == [0, 2, 3]
    trainer.close()


@dataclass
class Broken(RandomIds):
    """Tasks some of which cannot be made."""

    broken: tuple[int, ...] = ()

    def task(self, index: int) -> RandomTask:
        if index in self.broken:
            raise OSError("the judge is away")
        return super().task(index)


def test_a_broken_task_that_is_drawn_alone_ends_nothing(tmp_path: Path) -> None:
    trainer = new_trainer(
        new_tiny("m2"),
        tmp_path,
        environments={"random": Broken(broken=(3, 6))},
        options={"num_groups": 6, "dynamic_sampling": True, "max_refills": 9},
    )
    record = trainer.step()
    assert record["failures"] == {"OSError": 8}
    assert record["groups_dropped"] == 2
    assert record["groups_used"] == 6
    assert record["rounds"] > 1
    trainer.close()


def test_a_run_without_any_answer_ends_and_says_why(tmp_path: Path) -> None:
    environments = {"random": Broken(broken=tuple(range(99)))}
    trainer = new_trainer(new_tiny("m2"), tmp_path, environments=environments)
    with pytest.raises(RolloutError, match="all 24 rollouts failed, the last with: the judge is"):
        trainer.step()
    trainer.close()


def test_steps_without_updates_end_a_run_with_their_reason(tmp_path: Path) -> None:
    def sentence(environment: RandomIds, **options: Any) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        trainer = new_trainer(
            new_tiny("m2"),
            folder,
            environments={"random": environment},
            options={"max_idle_steps": 1, "max_refills": 0},
            **options,
        )
        with pytest.raises(TrainingError) as error:
            trainer.step()
        trainer.close()
        return str(error.value)

    assert "these tasks are always or never passed" in sentence(RandomIds(reward=1.0))
    assert "5 groups of the last batch lost their rollouts, 20 (OSError), the last with: the" in (
        sentence(Broken(broken=(0, 1, 2, 3, 4)))
    )
    cut = sentence(RandomIds(end_ids=()), overlong="mask", max_tokens=4)
    assert "0 groups had an advantage in answers whose loss is not masked, batch.min" in cut


def test_of_a_probe_with_few_answers_nothing_is_known(tmp_path: Path) -> None:
    some = Broken(reward=1.0, broken=(1, 2))
    trainer = new_trainer(
        new_tiny("m1"),
        tmp_path,
        environments={"random": RandomIds(), "held": some},
        probe=Probe({"held": range(8)}, ProbeConfig(every=9, num_tasks=8, max_drop=0.6), seed=0),
        num_steps=1,
    )
    trainer.run()
    assert trainer._good is None
    assert trainer._probe is not None
    assert trainer._probe.state()["best"] == {}
    some.broken = ()
    trainer._ask_all()
    assert trainer._good == 1
    trainer.close()


def test_a_state_that_is_not_whole_is_one_sentence(tmp_path: Path) -> None:
    trainer = new_trainer(new_tiny("m1"), tmp_path, num_steps=1)
    trainer.run()
    trainer.close()
    state = latest_state(tmp_path)
    assert state is not None
    values = json.loads((state / "state.json").read_text())
    del values["num_idle"]
    (state / "state.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="is not the state of such a run: it has no 'num_idle'"):
        new_trainer(new_tiny("m1"), tmp_path)


def test_a_probe_that_chance_alone_would_send_back_is_refused() -> None:
    assert ProbeConfig().num_tasks == 512
    with pytest.raises(
        ValueError,
        match=r"num_tasks is 128, whose mean moves by 0\.12 by chance, and max_drop is 0\.1: ask "
        "at least 200 tasks",
    ):
        ProbeConfig(num_tasks=128)


def test_answers_that_do_not_end_in_time_are_one_sentence(tmp_path: Path) -> None:
    limits = LimitsConfig(batch_seconds=1e-9)
    trainer = new_trainer(new_tiny("m2"), tmp_path, limits=limits)
    with pytest.raises(
        RolloutError,
        match="all 24 rollouts failed, the last with: it had not ended after 1e-09 seconds",
    ):
        trainer.step()
    assert not rollouts_of(trainer).engine.has_unfinished
    trainer.close()


def test_windows_give_the_length_and_open_as_answers_fill_them(tmp_path: Path) -> None:
    window = LengthWindow(WindowConfig(lengths=(5, 9), num_batches=2, settled=10.0, near=0.5))
    trainer = new_trainer(new_tiny("m1"), tmp_path, window=window, num_steps=4)
    trainer.run()
    trainer.close()
    records = read_metrics(tmp_path, "step")
    assert [one["max_tokens"] for one in records] == [5, 5, 9, 9]
    assert records[0]["length_p99"] == 5
    assert records[3]["length_p99"] > 5


def test_a_stopped_run_saves_after_its_step_and_goes_on(tmp_path: Path) -> None:
    model, answers = new_tiny("m2"), iter([False, True])
    trainer = new_trainer(model, tmp_path, num_steps=5)
    assert not trainer.run(should_stop=lambda: next(answers))
    trainer.close()
    other = new_trainer(new_tiny("m2", seed=3), tmp_path, num_steps=5)
    assert other.num_steps == 1
    assert are_equal(weights_of(other.model), weights_of(model))
    other.close()


def test_a_run_whose_time_is_used_up_ends_with_a_probe_and_stays_ended(tmp_path: Path) -> None:
    def trainer(max_seconds: float) -> Trainer:
        probe = Probe({"held": (0, 1)}, ProbeConfig(every=100, num_tasks=2, max_drop=1.0), seed=0)
        environments = {"random": RandomIds(), "held": RandomIds(1)}
        options = {"max_seconds": max_seconds}
        return new_trainer(
            *(new_tiny("m1"), tmp_path),
            environments=environments,
            num_steps=100,
            options=options,
            probe=probe,
        )

    with closing(trainer(1e-6)) as first:
        assert first.run()
    assert first.num_steps == 1
    assert [one["step"] for one in read_metrics(tmp_path, "probe")] == [0, 1]
    with closing(trainer(1e-6)) as again:
        assert again.run()
    assert again.num_steps == 1
    spent = read_metrics(tmp_path, "step")[-1]["seconds"]["so_far"]
    with closing(trainer(spent + 1e-6)) as more:  # the time before counts
        assert more.run()
    assert more.num_steps == 2
    with pytest.raises(ValueError, match="max_seconds is 0, it must be above 0 and finite"):
        TrainerConfig(num_steps=1, max_seconds=0)
