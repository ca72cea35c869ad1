"""Metrics: each step once, whatever was torn."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.train import Metrics, read_metrics
from tests.examples import examples


def test_records_are_lines_with_what_is_not_finite_as_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "run", has_board=False)
    metrics.write("step", 1, {"loss": 2.5, "norm": math.nan, "tasks": {"add": 0.5}})
    metrics.write("probe", 1, {"right": 3})
    metrics.close()
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"kind": "step", "step": 1, "loss": 2.5, "norm": None, "tasks": {"add": 0.5}},
        {"kind": "probe", "step": 1, "right": 3},
    ]
    assert [one["right"] for one in read_metrics(tmp_path / "run", "probe")] == [3]
    assert read_metrics(tmp_path) == []


@settings(max_examples=examples(100), deadline=None)
@given(torn=st.integers(0, 300), after=st.integers(0, 6))
def test_a_run_that_resumes_cuts_what_comes_after_its_state(
    tmp_path_factory: pytest.TempPathFactory, torn: int, after: int
) -> None:
    run = tmp_path_factory.mktemp("run")
    metrics = Metrics(run, has_board=False)
    for step in range(1, 6):
        metrics.write("step", step, {"loss": 1 / step})
    metrics.close()
    file = run / "metrics.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[: max(0, len(whole) - torn)])
    is_left = [record["step"] for record in read_metrics(run)]
    metrics = Metrics(run, after=after, has_board=False)
    for step in range(after + 1, 8):
        metrics.write("step", step, {"loss": 1 / step})
    metrics.close()
    steps = [record["step"] for record in read_metrics(run)]
    assert steps == [*(step for step in is_left if step <= after), *range(after + 1, 8)]


def test_a_line_that_is_no_record_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step", "step": 1}\n[]\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is no record of a run$"):
        Metrics(tmp_path, has_board=False)
    (tmp_path / "metrics.jsonl").write_text("{\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is not JSON$"):
        read_metrics(tmp_path)


def test_a_board_that_is_not_installed_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulmen.train.metrics.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^tensorboard is not installed, `pip install"):
        Metrics(tmp_path, has_board=True)
    Metrics(tmp_path).close()


def test_numbers_go_to_the_board_by_kind_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[Any, ...]] = []

    class SummaryWriter:
        """Writer with the interface of TensorBoard's."""

        def __init__(self, folder: str, purge_step: int) -> None:
            said.append((folder, purge_step))

        def add_scalar(self, *arguments: Any) -> None:
            said.append(arguments)

        def add_text(self, *arguments: Any) -> None:
            said.append(arguments)

        def flush(self) -> None:
            pass

        close = flush

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("fulmen.train.metrics.find_spec", lambda name: object())
    metrics = Metrics(tmp_path, after=4)
    metrics.write("step", 5, {"loss": 2.5, "tasks": {"add": 3}, "is_last": True})
    metrics.write("sample", 5, {"answer": "7"})
    metrics.close()
    assert said == [
        (f"{tmp_path}/tensorboard", 5),
        ("step/loss", 2.5, 5),
        ("step/tasks/add", 3, 5),
        ("sample/answer", "```\n7\n```", 5),
    ]
