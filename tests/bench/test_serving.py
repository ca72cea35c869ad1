"""The serving benchmark: gaps between tokens against the bound that Fulmen promises."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fulmen.checkpoints import save_model
from fulmen.engine import EngineConfig
from tests.bench.test_scripts import script
from tests.models.helpers import random_model, tiny_m2


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("serving", monkeypatch)


class Named:
    """An engine of which only the name counts."""

    def __init__(self, name: str) -> None:
        self.name = name


def test_gaps_beyond_the_bound_are_told_in_red_and_in_the_rows(
    serving: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    allowed = EngineConfig().max_token_gap_seconds
    assert allowed is not None
    trace = serving.Trace(prompts=[[1]], arrivals=[0.0], num_tokens=3)
    results = serving.Results()
    gaps = {"a": (0.1, allowed + 0.04), "a, HTTP": (0.1, allowed + 0.06), "b": (9.0, 9.0)}
    for name, (first, second) in gaps.items():
        answer: dict[str, Any] = {"times": [[1.0, 1 + first, 1 + first + second]]}
        if name == "a":  # the only one whose steps can be seen
            answer["longest_decode_seconds"] = 0.05
        results.add(1, name, serving.Measurement.of(trace, answer))
    engines = [Named(name) for name in gaps]
    ours = {"a": "a", "a, HTTP": "a"}
    rows = serving.make_rows([1], engines, engines[:2], results)
    serving.add_gap_bounds(rows, ours)
    assert [row.get("gaps_beyond") for row in rows] == [[], ["gap_longest"], None]
    assert rows[0]["gap_bound"] == rows[1]["gap_bound"] == pytest.approx(allowed + 0.05)
    serving.print_gaps(rows)
    lines = " ".join(capsys.readouterr().err.split())
    assert lines.count("beyond the bound: gap_longest") == 1
    assert "1 requests, b" not in lines


def test_the_longest_step_without_a_prompt_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = script("worker", monkeypatch)
    save_model(random_model(tiny_m2(torch_dtype="bfloat16")), tmp_path)
    model = worker.FulmenModel(tmp_path, None, 64)
    model.begin(2, 200)
    with torch.inference_mode():
        alone = model.serve_requests([[1] * 100], [0.0], 1)
        assert alone["longest_decode_seconds"] is None  # every step read its prompt
        answer = model.serve_requests([[1] * 100, [2] * 90], [0.0, 0.0], 8)
    assert 0 < answer["longest_decode_seconds"] <= answer["step_seconds"]
