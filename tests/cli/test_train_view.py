"""View of a training run: what it shows at any width, during a branch, a probe and a save."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fulmen.cli.train_view import TrainView, tokens_left
from fulmen.train import BranchConfig, LMConfig, StepReport, read_run_file
from fulmen.train.lm.config import branch_of
from tests.train.lm_helpers import run_file


@pytest.fixture
def config(tmp_path: Path) -> LMConfig:
    overrides = ["stages.0.tokens=60M", "stages.1.tokens=40M", "branches.every=10M"]
    return read_run_file(run_file(tmp_path), LMConfig, [*overrides, "branches.length=2M"])


def report(step: int, tokens: int, **changes: object) -> StepReport:
    values = {
        "stage": 0,
        "loss": 1.23456,
        "task_losses": {"text": 2.5, "copy": 0.75},
        "norm": 0.5,
        "factor": 1.0,
        "aux_loss": 0.0,
        "max_load": 1.5,
        "num_targets": 9,
        "num_sequences": 9,
        "num_too_long": 0,
        "num_contaminated": 0,
        "seconds": 0.5,
        "step_tokens": 8192,
    }
    return StepReport(step=step, tokens=tokens, **{**values, **changes})  # type: ignore[arg-type]


def shown(view: TrainView, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(view.drawn())
    return capture.get()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_number_is_cut_at_any_width(config: LMConfig, width: int) -> None:
    view = TrainView(config, 0)
    more = {"num_too_long": 12_345, "num_contaminated": 6}
    view.stepped(report(6_500, 53_000_000, **more), config)
    text = " ".join(shown(view, width).split())
    assert max(map(len, shown(view, width).splitlines())) <= width
    for part in (" left", "53%", "step 6500", "loss 1.2346", "16,384 tokens/s", "norm 0.50"):
        assert part in text
    for part in ("rate 1.00", "load 1.50", "stage 1 of 2", "copy 0.7500", "text 2.5000"):
        assert part in text
    assert "12,345 too long, 6 in evaluation sets" in text
    bar = shown(view, width).splitlines()[0].count("\u2501")
    assert bar >= 10  # filled or not, the bar keeps its width


def test_a_branch_has_a_line_of_its_own_below_its_trunk(config: LMConfig) -> None:
    view = TrainView(config, 0)
    view.stepped(report(35, 10_000_000), config)
    branch = branch_of(config, config.out / "states/step-00000035", 0)
    view.stepped(report(1, 1_500_000), branch)
    trunk, decay, *_ = map(str.rstrip, shown(view, 80).splitlines())
    assert trunk.endswith("10%")
    assert decay.endswith("decay from step 35  75%")
    view.stepped(report(36, 11_000_000), config)
    assert "decay" not in shown(view, 80)


def test_branches_are_in_the_time_that_is_left(config: LMConfig) -> None:
    assert tokens_left(config, 0, None) == 100_000_000 + 10 * 2_000_000
    assert tokens_left(config, 10_000_000, 500_000) == 90_000_000 + 9 * 2_000_000 + 1_500_000
    assert tokens_left(config, 100_000_000, None) == 0
    plain = replace(config, branches=BranchConfig())
    assert tokens_left(plain, 25_000_000, None) == 75_000_000


def test_a_probe_and_a_save_are_named_while_they_last(config: LMConfig) -> None:
    view = TrainView(config, 0)
    assert "probing" not in shown(view, 80)
    view.began("probing")
    assert shown(view, 80).splitlines()[-1].startswith("probing, 0 s")
    view.began(None)
    assert "probing" not in shown(view, 80)
