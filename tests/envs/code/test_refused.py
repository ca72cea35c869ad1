"""Exercises of an evaluation are not for training."""

from pathlib import Path

import pytest

from fulmen.train import RLRun, SourceConfig, TrainerConfig, open_run
from tests.envs.code.test_exercises import HUMANEVAL, file_of


def test_training_refuses_them(tmp_path: Path) -> None:
    name = f"humaneval:{file_of(tmp_path, HUMANEVAL)}"
    run = RLRun(
        folder=tmp_path / "out",
        model=tmp_path,
        trainer=TrainerConfig(num_steps=1),
        sources=(SourceConfig(levels=(name,)),),
    )
    with (
        pytest.raises(ValueError, match=r"exercises\.jsonl is for evaluation only, it cannot be"),
        open_run(run),
    ):
        raise AssertionError("it was opened")
    assert not (tmp_path / "out").exists()
