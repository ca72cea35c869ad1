"""Both countings of the report's Figure 1 give its curves, and the drawing shows just those."""

import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from fulmen.catalog.cards import published_config
from fulmen.models.flops import count_parameters, generation_cost, prefill_flops
from fulmen.models.m1 import M1Config
from fulmen.plan.figure1 import absorbed_r1, as_drawn, figure1_svg, figure1_text, first_principles

SVG = "{http://www.w3.org/2000/svg}"


def ratio(counting: str, num_tokens: int) -> float:
    costs = first_principles() if counting == "own" else as_drawn()
    return costs[0].cumulative(num_tokens) / costs[1].cumulative(num_tokens)


def test_the_three_models_cost_what_their_configurations_give() -> None:
    m1, r1, qwen3 = first_principles()
    assert [cost.model for cost in (m1, r1, qwen3)] == [
        "MiniMax-M1",
        "DeepSeek-R1",
        "Qwen3-235B-A22B",
    ]
    assert m1.per_token == pytest.approx(9.461e10, rel=1e-4)
    assert r1.per_token == pytest.approx(7.304e10, rel=1e-4)
    assert qwen3.per_token == pytest.approx(4.304e10, rel=1e-4)
    assert m1.per_position == 10 * 64 * 4 * 128
    assert r1.per_position == 61 * 128 * 2 * 320
    assert qwen3.per_position == 94 * 64 * 512
    assert absorbed_r1().per_position == 61 * 128 * 2 * 1088


@pytest.mark.parametrize(
    ("num_tokens", "m1", "r1", "qwen3", "share", "share_of_absorbed"),
    [
        (32_768, 3.28e15, 5.08e15, 3.06e15, 0.645, 0.285),
        (65_536, 6.90e15, 1.552e16, 9.44e15, 0.445, 0.167),
        (100_000, 1.110e16, 3.229e16, 1.970e16, 0.344, 0.120),
        (131_072, 1.522e16, 5.250e16, 3.210e16, 0.290, 0.098),
    ],
)
def test_first_principles_give_these_totals(
    num_tokens: int, m1: float, r1: float, qwen3: float, share: float, share_of_absorbed: float
) -> None:
    totals = [cost.cumulative(num_tokens) for cost in first_principles()]
    assert totals == pytest.approx([m1, r1, qwen3], rel=2e-3)
    assert ratio("own", num_tokens) == pytest.approx(share, abs=6e-4)
    absorbed = totals[0] / absorbed_r1().cumulative(num_tokens)
    assert absorbed == pytest.approx(share_of_absorbed, abs=6e-4)


def test_the_curves_as_drawn_are_those_fitted_to_the_published_figure() -> None:
    m1, r1, qwen3 = as_drawn()
    assert m1.per_token == pytest.approx(1.0453e11, rel=1e-4)
    assert m1.per_position == 8 * 64 * 2 * 3 * 128
    assert r1.per_position == 61 * 128 * 2 * (192 + 2 * 128)
    assert qwen3.per_token == pytest.approx(4.3037e10, rel=1e-4)
    assert qwen3.per_position == 94 * 64 * 2 * 3 * 128
    for num_tokens, share in ((65_536, 0.385), (98_304, 0.295), (102_400, 0.288), (131_072, 0.244)):
        assert ratio("drawn", num_tokens) == pytest.approx(share, abs=6e-4)


def test_a_quarter_at_100k_holds_for_the_token_and_not_for_the_total() -> None:
    m1, r1, _ = first_principles()
    assert m1.at(100_000) / r1.at(100_000) == pytest.approx(0.22, abs=5e-3)
    text = figure1_text()
    assert text.endswith("tokens.\n")
    for number in ("0.445", "0.385", "0.344", "0.288", "= 0.22", "0.120", "F(N) = a N + c N^2 / 2"):
        assert number in text


def test_a_total_is_the_sum_of_its_tokens() -> None:
    cost = first_principles()[0]
    # F(N) takes the mean of the positions before and after a token.
    total = sum(cost.at(position) + cost.per_position / 2 for position in range(1000))
    assert cost.cumulative(1000) == pytest.approx(total)


def test_a_prompt_costs_its_tokens_and_the_products_within_lightning_blocks() -> None:
    m1, m2 = published_config("minimax-m1-80k"), published_config("minimax-m2")
    assert prefill_flops(m2, 5000) == generation_cost(m2).cumulative(5000)
    within = prefill_flops(m1, 5000) - generation_cost(m1).cumulative(5000)
    assert within == 70 * 4 * 64 * 128 * 256 / 2 * 5000


def test_active_parameters_are_those_that_a_token_visits() -> None:
    m1 = published_config("minimax-m1-80k")
    assert isinstance(m1, M1Config)
    counts = count_parameters(m1)
    assert counts.experts == 80 * 32 * 3 * 6144 * 9216
    assert counts.chosen_experts == counts.experts // 16
    assert counts.routers == 80 * 32 * 6144
    every_expert = count_parameters(replace(m1, num_experts_per_tok=32))
    assert every_expert.active == counts.total - 2 * 200_064 * 6144


def test_the_figure_is_well_formed_and_names_all_it_shows() -> None:
    root = ElementTree.fromstring(figure1_svg())
    assert root.tag == f"{SVG}svg"
    words = " ".join(root.itertext())
    for text in (
        "MiniMax-M1",
        "DeepSeek-R1",
        "Qwen3-235B-A22B",
        "From first principles",
        "As the report draws it",
        "generated tokens N",
        "M1 = 44.5 % of R1",
        "M1 = 34.4 % of R1",
        "M1 = 38.5 % of R1",
        "prefers-color-scheme: dark",
    ):
        assert text in words
    title = root.find(f"{SVG}title")
    assert title is not None
    assert title.text


def test_each_curve_of_the_figure_is_exactly_its_parabola() -> None:
    root = ElementTree.fromstring(figure1_svg())
    paths = [path.get("d", "") for path in root.iter(f"{SVG}path") if "Q" in path.get("d", "")]
    costs = [*reversed(first_principles()), *reversed(as_drawn())]
    assert len(paths) == len(costs) == 6
    for path, cost in zip(paths, costs, strict=True):
        x0, y0, x1, y1, x2, y2 = map(float, re.findall(r"-?[\d.]+", path))
        for t in (0.25, 0.5, 0.75, 1.0):
            x = (1 - t) ** 2 * x0 + 2 * t * (1 - t) * x1 + t**2 * x2
            y = (1 - t) ** 2 * y0 + 2 * t * (1 - t) * y1 + t**2 * y2
            num_tokens = 131_072 * (x - x0) / (x2 - x0)
            # 330 units of height stand for 8e16 FLOPs; coordinates have two digits.
            drawn = (y0 - y) / 330 * 8e16
            assert drawn == pytest.approx(cost.cumulative(round(num_tokens)), abs=5e12)


def test_nothing_in_the_figure_leaves_its_frame() -> None:
    root = ElementTree.fromstring(figure1_svg())
    width, height = float(root.get("width", "")), float(root.get("height", ""))
    for element in root.iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(element.get(name, "0")) <= width
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(element.get(name, "0")) <= height
