"""Runs that go on, that begin with another one, or that fail: nothing is lost, nothing is mixed."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import pytest

from fulmen.chat import TemplateFormat, load_format
from fulmen.checkpoints import load_model
from fulmen.models import Model, SparseMoE
from fulmen.train import (
    LMConfig,
    LMTrainer,
    ProbeConfig,
    ProbeResult,
    StageConfig,
    StartConfig,
    StepReport,
    TaskConfig,
    TaskStream,
    Watcher,
    latest_state,
    read_metrics,
    read_run_file,
)
from fulmen.train.lm.probes import Prober, Question
from fulmen.train.lm.procedural import Problem
from fulmen.train.lm.sources import open_source
from tests.models.helpers import random_model, tiny_m2
from tests.train.lm_helpers import Notes, assert_same, coder, finish, run_config, run_file


def test_a_warm_start_goes_on_when_the_state_it_resumed_from_is_gone(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    first, _ = finish(config)
    start = StartConfig(checkpoint=str(first.model_folder), dtype="float32")
    own = replace(config, model=start, save_every=1, keep=1, out=tmp_path / "own")
    begun = LMTrainer(own)
    assert not begun.run(should_stop=lambda: begun.num_steps == 2)
    begun.close()
    resumed, _ = finish(own)
    assert (resumed.model_folder / "tokenizer.json").is_file()
    whole, _ = finish(replace(own, out=tmp_path / "whole"))
    assert_same(resumed, whole)


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end_of_sentence>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def test_a_chat_template_beside_the_tokenizer_is_learnt_however_a_run_begins(
    tmp_path: Path,
) -> None:
    config = run_config(tmp_path, "save_every=100", "probe.every=100")
    (tmp_path / "tokenizer/chat_template.jinja").write_text(TEMPLATE)
    begun = LMTrainer(config)
    assert isinstance(begun.coder.format, TemplateFormat)
    assert not begun.run(should_stop=lambda: begun.num_steps == 3)
    begun.close()
    resumed, _ = finish(config)
    whole, _ = finish(replace(config, out=tmp_path / "whole"))
    assert_same(resumed, whole)
    assert isinstance(load_format(resumed.model_folder), TemplateFormat)  # as it is served
    from_state = replace(config.model, config={}, state=resumed.model_folder.parent)
    other = LMTrainer(replace(config, model=from_state, out=tmp_path / "other"))
    assert isinstance(other.coder.format, TemplateFormat)
    other.close()


def test_the_state_of_another_run_gives_weights_and_cursors_and_no_place(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    first, _ = finish(config)
    state = latest_state(config.out)
    assert state is not None
    start = replace(config.model, config={}, state=state)
    other = LMTrainer(replace(config, model=start, out=tmp_path / "other"))
    assert (other.num_steps, other.num_tokens, other.stage, other.is_done) == (0, 0, 0, False)
    assert_same(other, first)
    assert other.mixture.state()["streams"] == first.mixture.state()["streams"]
    assert other.run()
    other.close()
    assert other.num_tokens >= 1200
    assert other.model_folder.is_dir()


class Breaker(Watcher):
    """Watcher that does something after a step."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.step, self.act = step, act

    def stepped(self, report: StepReport, config: LMConfig) -> None:
        if report.step == self.step:
            self.act()


def test_a_step_that_fails_leaves_a_state_of_those_before_it(tmp_path: Path) -> None:
    config = run_config(tmp_path, "save_every=100", "probe.every=100", "stages.1.tokens=1500")
    text = tmp_path / "text.txt"
    whole_text = text.read_bytes()
    trainer = LMTrainer(config)
    broken = Breaker(2, lambda: text.write_bytes(b"\xff" * len(whole_text)))
    with pytest.raises(ValueError, match=r"text\.txt is not UTF-8"):
        trainer.run(broken)
    trainer.close()
    state = latest_state(config.out)
    assert state is not None
    assert 2 <= trainer.num_steps < 9
    assert state.name == f"step-{trainer.num_steps:08}"
    with pytest.raises(ValueError, match=r"tasks\.text: .*text\.txt is not UTF-8"):
        LMTrainer(config)
    text.write_bytes(whole_text)
    resumed, _ = finish(config)
    whole, _ = finish(replace(config, out=tmp_path / "whole"))
    assert_same(resumed, whole)


def full_disk() -> None:
    raise OSError("the disk is full")


def test_a_watcher_that_fails_costs_no_step_and_no_line(tmp_path: Path) -> None:
    config = run_config(tmp_path, "save_every=100")
    trainer = LMTrainer(config)
    with pytest.raises(OSError, match=r"^the disk is full$"):
        trainer.run(Breaker(3, full_disk))
    trainer.close()
    assert latest_state(config.out) == config.out / "states/step-00000003"
    resumed, _ = finish(config)
    assert resumed.num_steps == 6
    assert [record["step"] for record in read_metrics(config.out, "step")] == [1, 2, 3, 4, 5, 6]


def test_a_step_whose_line_cannot_be_written_is_taken_again(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    trainer = LMTrainer(config)
    write = trainer.metrics.write

    def fail_after_two(kind: str, step: int, values: Mapping[str, object]) -> None:
        if step > 2:
            full_disk()
        write(kind, step, values)

    trainer.metrics.write = fail_after_two  # type: ignore[method-assign]
    with pytest.raises(OSError, match=r"^the disk is full$"):
        trainer.run()
    trainer.close()
    assert latest_state(config.out) == config.out / "states/step-00000002"
    resumed, _ = finish(config)
    assert [record["step"] for record in read_metrics(config.out, "step")] == [1, 2, 3, 4, 5, 6]
    whole, _ = finish(replace(config, out=tmp_path / "whole"))
    assert_same(resumed, whole)


def test_a_probe_that_fails_costs_no_step_and_is_made_up_for(tmp_path: Path) -> None:
    config = run_config(tmp_path, "save_every=100")
    trainer = LMTrainer(config)
    prober = trainer._prober

    def fail(model: Model) -> ProbeResult:
        raise ValueError("no probe")

    prober.run = fail  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"^no probe$"):
        trainer.run()
    trainer.close()
    assert latest_state(config.out) == config.out / "states/step-00000004"
    finish(config)
    assert [record["step"] for record in read_metrics(config.out, "probe")] == [4, 6]
    assert len(read_metrics(config.out, "sample")) == 4


def test_a_prompt_that_leaves_no_room_is_not_asked(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    rows = tmp_path / "rows.jsonl"
    lengths = (20, 127, 128)  # with the first token of a text
    lines = [{"prompt": "x" * (length - 1), "completion": ""} for length in lengths]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines * 9))
    task = TaskConfig(files=(rows,), style="plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fulmen.train.lm.mixture.is_held_out", lambda key, share: len(key) != 19)
        stages = (replace(config.stages[1], tokens=100),)
        trainer, notes = finish(replace(config, tasks={"rows": task}, stages=stages))
    assert [len(question.prompt_ids) for question in trainer._prober._questions] == [127]
    assert notes.probes[-1].tasks["rows"]["documents"] == 2


def test_a_run_that_goes_on_takes_new_values_that_its_weights_do_not_depend_on(
    tmp_path: Path,
) -> None:
    file = run_file(tmp_path)
    finish(read_run_file(file, LMConfig))
    wanted = {
        "max_position_embeddings": 1024,
        "router_aux_loss_coef": 0.5,
        "router_jitter_noise": 0.25,
    }
    changes = [f"model.config.{name}={value}" for name, value in wanted.items()]
    more = ["stages.1.tokens=900", "stages.1.length=250", "stages.1.step_tokens=250"]
    longer, _ = finish(read_run_file(file, LMConfig, [*changes, *more]))
    saved = load_model(longer.model_folder).config
    assert {name: getattr(saved, name) for name in wanted} == wanted
    assert saved.rope_theta == 20_000.0
    noises = {each.router_jitter_noise for each in longer.model.modules() if is_moe(each)}
    assert noises == {0.25}
    losses = [record["aux_loss"] for record in read_metrics(tmp_path / "out", "step")]
    assert losses[-1] > 20 * losses[0]


def is_moe(module: object) -> TypeGuard[SparseMoE]:
    return isinstance(module, SparseMoE)


def test_a_stage_extends_the_context_of_a_checkpoint(tmp_path: Path) -> None:
    config = run_config(tmp_path, "tasks.text.block_bytes=4096")
    trainer, _ = finish(config)
    start = replace(config.model, config={}, checkpoint=str(trainer.model_folder))
    stage = StageConfig(tokens=1200, length=1024, step_tokens=1200, rope_theta=1e6)
    other, _ = finish(replace(config, model=start, stages=(stage,), out=tmp_path / "other"))
    saved = load_model(other.model_folder).config
    assert (saved.max_position_embeddings, saved.rope_theta) == (1024, 1e6)


def test_a_run_file_in_the_runs_own_folder_stays_as_it_is(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    config.out.mkdir()
    file = config.out / "run.toml"
    file.write_text("# my own\n[optimizer]\n")
    with pytest.raises(ValueError, match=r"run\.toml is where the run writes its whole config, "):
        LMTrainer(config)
    assert file.read_text() == "# my own\n[optimizer]\n"
    file.unlink()
    finish(config)
    file.write_text(file.read_text() + "x = [\n")
    before = (config.out / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"out/run\.toml is not valid TOML: "):
        LMTrainer(config)
    assert (config.out / "metrics.jsonl").read_bytes() == before


def test_data_that_changed_are_named_and_read_from_their_start(tmp_path: Path) -> None:
    config = run_config(tmp_path, "save_every=100")
    trainer = LMTrainer(config)
    assert not trainer.run(should_stop=lambda: trainer.num_steps == 3)
    trainer.close()
    cursors = trainer.mixture.state()["streams"]
    assert cursors["text"]["offset"] > 0
    with (tmp_path / "text.txt").open("a") as text:
        text.write("one more line\n")
    resumed, notes = LMTrainer(config), Notes()
    found = resumed.mixture.state()["streams"]
    assert found["copy"] == cursors["copy"]
    assert (found["text"]["index"], found["text"]["offset"]) == (0, 0)
    resumed.run(notes)
    resumed.close()
    assert notes.sentences == ["the data of text have changed, what changed is read from its start"]


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    trainer = LMTrainer(config)
    trainer.step()
    with pytest.raises(ValueError, match="is in use by another process, "):
        LMTrainer(config)
    trainer.close()
    LMTrainer(config).close()


def test_documents_that_are_left_out_are_counted_in_every_step(tmp_path: Path) -> None:
    known = tmp_path / "known.txt"
    config = run_config(tmp_path, f"check.files=['{known}']", "check.num_words=6")
    known.write_text("\n".join((tmp_path / "text.txt").read_text().splitlines()[:90]))
    trainer, _ = finish(config)
    assert trainer.mixture.num_contaminated > 0
    counts = [record["contaminated"] for record in read_metrics(config.out, "step")]
    assert counts == sorted(counts)
    assert counts[-1] == trainer.mixture.num_contaminated
    assert {record["too_long"] for record in read_metrics(config.out, "step")} == {0}


def test_a_run_says_how_it_goes_through_logging(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="fulmen.train")
    trainer = LMTrainer(run_config(tmp_path))
    trainer.run()
    trainer.close()
    assert any(line.startswith("step 1, 2") and "loss" in line for line in caplog.messages)
    assert any(line.startswith("probe after step 6, text: documents") for line in caplog.messages)


def test_answers_that_are_right_are_counted_and_shown_so(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"{i}?", "completion": "y\nz\n"}) for i in range(80)]
    rows.write_text("\n".join(lines))
    tasks = {
        "z": TaskConfig(files=(rows,), style="plain"),
        "copy": TaskConfig(generator="copy", smallest=6, largest=6, style="plain"),
    }
    config = run_config(tmp_path, "optimizer.learning_rate=0.02", "held_out=0.3")
    stage = replace(config.stages[0], tokens=8000, mixture={"z": 20, "copy": 1})
    _, notes = finish(replace(config, tasks=tasks, stages=(stage,)))
    result = notes.probes[-1]
    assert {task: scores["right"] for task, scores in result.tasks.items()} == {"z": 1, "copy": 0}
    assert {sample.task: sample.is_right for sample in result.samples} == {"z": True, "copy": False}


@pytest.mark.parametrize(
    ("style", "trace", "said", "final"),
    [
        ("plain", "", " a\nb\n", "a\nb"),
        ("plain", "1+1", "1+1\n2\n", "2"),
        ("plain", "1+1", "", ""),
        ("chat", "1+1", "<think>\n1+1\n</think>\n\na\nb\n", "a\nb"),
    ],
)
def test_the_final_answer_is_all_that_follows_a_trace_or_a_thought(
    tmp_path: Path, style: str, trace: str, said: str, final: str
) -> None:
    own = coder(tmp_path)
    prober = Prober({}, {}, own, ProbeConfig(), 64)
    question = Question("t", (1,), Problem("p", trace, final), style == "plain")
    assert prober._final(own.tokenizer.encode(said), question) == final


def test_a_document_of_several_examples_is_counted_once(tmp_path: Path) -> None:
    talk = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": text, "thinking": "e"} for role, text in talk]
    rows = tmp_path / "rows.jsonl"
    for size in (1, 2, 900):  # the last one is too long to be read
        messages[0]["content"] = "x" * size
        with rows.open("a") as file:
            file.write(json.dumps({"messages": messages}) + "\n")
    own = coder(tmp_path, "minimax_m2")
    task = TaskConfig(files=(rows,))
    stream = TaskStream("rows", open_source(task, 0), own, held_out=1.0)
    prober = Prober({"rows": stream}, {"rows": task}, own, ProbeConfig(), 256)
    assert len(prober._examples["rows"]) == 4
    assert prober.run(random_model(tiny_m2(vocab_size=300))).tasks["rows"]["documents"] == 2


def test_a_task_without_held_out_documents_is_in_the_probe(tmp_path: Path) -> None:
    _, notes = finish(run_config(tmp_path, "held_out=0"))
    assert notes.probes[-1].tasks == {name: {"documents": 0} for name in ("copy", "add", "text")}
