"""Figure 1 (right) of the M1 report: FLOPs against generated tokens, for M1, R1 and Qwen3.

The whole figure is six pairs (a, c) of F(N) = a N + c N^2 / 2: three models in two countings. The
first counting is from first principles. The second is the one that the report draws: read off the
published figure and fitted to 0.24 %, so its details are inferred.
"""

from dataclasses import replace
from typing import Final

from fulmen import svg
from fulmen.catalog import published_config
from fulmen.models import GenerationCost, M1Config, generation_cost, multiplied_weights


def _m1() -> M1Config:
    config = published_config("minimax-m1-80k")
    assert isinstance(config, M1Config)
    return config


# The two models that the report's figure compares M1 with, from their published configurations.

_R1_LAYERS, _R1_HEADS, _R1_HIDDEN = 61, 128, 7168
_R1_KEY, _R1_VALUE, _R1_LATENT = 128 + 64, 128, 512 + 64
"""Widths of a head's keys (64 of them rotated) and values, and of the cached latent."""
_R1_ATTENTION = (
    _R1_HIDDEN * 1536
    + 1536 * _R1_HEADS * _R1_KEY
    + _R1_HIDDEN * _R1_LATENT
    + 512 * _R1_HEADS * (128 + _R1_VALUE)
    + _R1_HEADS * _R1_VALUE * _R1_HIDDEN
)
_R1_EXPERT = 3 * _R1_HIDDEN * 2048
_R1_DENSE_MLP = 3 * _R1_HIDDEN * 18432
_R1_HEAD = 129280 * _R1_HIDDEN

_QWEN3_LAYERS, _QWEN3_HEADS, _QWEN3_HIDDEN = 94, 64, 4096
_QWEN3_WEIGHTS = (
    _QWEN3_LAYERS * (2 * _QWEN3_HIDDEN * (64 + 4) * 128 + 8 * 3 * _QWEN3_HIDDEN * 1536)
    + 151936 * _QWEN3_HIDDEN
)


def first_principles() -> tuple[GenerationCost, ...]:
    """Return the cost of M1, R1 and Qwen3, counted as `generation_cost` counts.

    R1's attention is counted as written out, 2 * 128 heads * (192 + 128) for each earlier token.
    """
    # R1: eight routed experts and a shared one in 58 layers, a dense MLP in three.
    r1 = _R1_LAYERS * _R1_ATTENTION + 58 * 9 * _R1_EXPERT + 3 * _R1_DENSE_MLP + _R1_HEAD
    return (
        generation_cost(_m1(), "MiniMax-M1"),
        GenerationCost(
            model="DeepSeek-R1",
            per_token=2 * r1,
            per_position=_R1_LAYERS * _R1_HEADS * 2 * (_R1_KEY + _R1_VALUE),
        ),
        GenerationCost(
            model="Qwen3-235B-A22B",
            per_token=2 * _QWEN3_WEIGHTS,
            per_position=_QWEN3_LAYERS * _QWEN3_HEADS * 2 * (128 + 128),
        ),
    )


def absorbed_r1() -> GenerationCost:
    """Return the cost of R1 decoding on its latents, 2 * 128 * (576 + 512) a position."""
    written_out = first_principles()[1]
    positions = _R1_LAYERS * _R1_HEADS * 2 * (_R1_LATENT + 512)
    return replace(written_out, model="DeepSeek-R1, absorbed", per_position=positions)


def as_drawn() -> tuple[GenerationCost, ...]:
    """Return the cost of M1, R1 and Qwen3 that the report's curves show.

    The curves fit 3 D for a pair of query and key where first principles give 2 D, a lightning
    layer of 2 (H D)^2 a token, 72 lightning and 8 softmax layers in M1, and in R1 experts in all 61
    layers with the three dense MLPs on top.
    """
    m1 = _m1()
    width = m1.num_attention_heads * m1.head_dim
    weights = multiplied_weights(replace(m1, attn_type_list=(0,) * 72 + (1,) * 8))
    r1 = _R1_LAYERS * (_R1_ATTENTION + 9 * _R1_EXPERT) + 3 * _R1_DENSE_MLP + _R1_HEAD
    return (
        GenerationCost(
            model="MiniMax-M1",
            per_token=2 * weights + 72 * 2 * width**2,
            per_position=8 * 2 * 3 * width,
        ),
        GenerationCost(
            model="DeepSeek-R1",
            per_token=2 * r1,
            per_position=_R1_LAYERS * _R1_HEADS * 2 * (_R1_KEY + 2 * _R1_VALUE),
        ),
        GenerationCost(
            model="Qwen3-235B-A22B",
            per_token=2 * _QWEN3_WEIGHTS,
            per_position=_QWEN3_LAYERS * _QWEN3_HEADS * 2 * 3 * 128,
        ),
    )


_LENGTHS: Final = {
    "32K": 32_768,
    "64K": 65_536,
    "100 000": 100_000,
    "100K": 102_400,
    "128K": 131_072,
}


def _ratio(costs: tuple[GenerationCost, ...], num_tokens: int) -> float:
    return costs[0].cumulative(num_tokens) / costs[1].cumulative(num_tokens)


def figure1_text() -> str:
    """Return both countings as tables, and check the report's two claims against them."""
    tables = []
    for title, costs in (
        ("From first principles", first_principles()),
        ("As the report draws it", as_drawn()),
    ):
        lines = [title, f"  {'':<17}{'a':>11}{'c':>11}" + "".join(f"{k:>11}" for k in _LENGTHS)]
        for cost in costs:
            cells = "".join(f"{cost.cumulative(n):>11.3g}" for n in _LENGTHS.values())
            lines.append(
                f"  {cost.model:<17}{cost.per_token:>11.4g}{cost.per_position:>11.4g}{cells}"
            )
        ratios = "".join(f"{_ratio(costs, n):>11.3f}" for n in _LENGTHS.values())
        lines.append(f"  {'M1 / R1':<39}{ratios}")
        tables.append("\n".join(lines))
    own, drawn = first_principles(), as_drawn()
    at_100k = own[0].at(100_000) / own[1].at(100_000)
    absorbed = own[0].cumulative(100_000) / absorbed_r1().cumulative(100_000)
    claims = f"""\
The report's claims for M1 against R1
  less than half the FLOPs at 64K tokens: holds in both countings,
    F_M1 / F_R1 = {_ratio(own, 65_536):.3f} and {_ratio(drawn, 65_536):.3f}
  about a quarter at 100K tokens: holds from first principles for the token at that place,
    (a + 100 000 c) of M1 / (a + 100 000 c) of R1 = {at_100k:.2f},
    not for all tokens up to there, F_M1 / F_R1 = {_ratio(own, 100_000):.3f};
    as drawn F_M1 / F_R1 = {_ratio(drawn, 102_400):.3f} at 100 x 1024 tokens

R1's attention is counted as written out. An engine that decodes in the space of its latents reads
less memory for more FLOPs; against it M1 needs {absorbed:.3f} at 100 000 tokens."""
    formula = """\
FLOPs of generating N tokens from an empty prompt: F(N) = a N + c N^2 / 2
  a = 2 x weights a token visits, with the head, and M1's constant work in lightning attention
  c = FLOPs that one earlier token adds, in the softmax layers"""
    return "\n\n".join((formula, *tables, claims)) + "\n"


# The figure. F(N) is a parabola, so one quadratic Bezier curve draws it exactly.

_WIDTH, _HEIGHT = 1040, 600
_PANEL_WIDTH, _PANEL_HEIGHT, _PANEL_TOP = 390, 330, 158
_PANEL_LEFTS = (80, 588)
_MAX_TOKENS, _MAX_FLOPS = 131_072, 8e16
_COLOURS: Final = {"MiniMax-M1": "m1", "DeepSeek-R1": "r1", "Qwen3-235B-A22B": "qwen"}

_LIGHT: Final = {
    "back": "#ffffff",
    "ink": "#1c2430",
    "soft": "#5b6675",
    "grid": "#dfe3e9",
    "guide": "#a3acb9",
    "m1": "#d6322d",
    "r1": "#2f6bd8",
    "qwen": "#7a4fc4",
}
_DARK: Final = {
    "back": "#10151d",
    "ink": "#e8edf4",
    "soft": "#a2aebd",
    "grid": "#2a323e",
    "guide": "#667385",
    "m1": "#ff6b61",
    "r1": "#6ea3ff",
    "qwen": "#b795f5",
}
_STYLE: Final = """\
text { font: 13px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif }
.title { font-size: 20px; font-weight: 600 }
.panel { font-size: 15px; font-weight: 600 }
.small { font-size: 12px }
.end { text-anchor: end }
.middle { text-anchor: middle }
.guide { stroke-dasharray: 3 4 }
.curve { fill: none; stroke-width: 2.5; stroke-linecap: round }
.dot { stroke-width: 2 }
.halo { paint-order: stroke; stroke-width: 5px; stroke-linejoin: round }"""
_RULES: Final = {
    "back": ".back, .dot { fill: %s } .halo { stroke: %s }",
    "ink": "text { fill: %s }",
    "soft": ".soft { fill: %s } .axis { stroke: %s }",
    "grid": ".grid { stroke: %s }",
    "guide": ".guide { stroke: %s }",
    "m1": ".m1 { stroke: %s }",
    "r1": ".r1 { stroke: %s }",
    "qwen": ".qwen { stroke: %s }",
}


def figure1_svg() -> str:
    """Draw cumulative FLOPs against generated tokens, 0 to 128K: one panel for each counting."""
    panels = (
        (
            "From first principles",
            "4 D for a pair of tokens and head; M1 has 10 softmax layers",
            first_principles(),
        ),
        (
            "As the report draws it",
            "6 D for a pair; 8 softmax layers (inferred, within 0.24 %)",
            as_drawn(),
        ),
    )
    body = [
        svg.text(
            _PANEL_LEFTS[0] - 50, 40, "FLOPs to generate N tokens from an empty prompt", "title"
        ),
        svg.text(
            _PANEL_LEFTS[0] - 50,
            63,
            "F(N) = a N + c N²/2; a: every token, c: each earlier token in softmax attention",
            "soft",
        ),
    ]
    for left, (title, subtitle, costs) in zip(_PANEL_LEFTS, panels, strict=True):
        body.append(svg.text(left, _PANEL_TOP - 40, title, "panel"))
        body.append(svg.text(left, _PANEL_TOP - 20, subtitle, "small soft"))
        body += _panel(left, costs)
    body += _legend()
    return svg.page(
        _WIDTH,
        _HEIGHT,
        title="FLOPs against generated tokens for MiniMax-M1, DeepSeek-R1 and Qwen3-235B-A22B, in "
        "two countings",
        style=svg.style_sheet(_STYLE, _RULES, _LIGHT, _DARK),
        body=body,
    )


def _panel(left: int, costs: tuple[GenerationCost, ...]) -> list[str]:
    bottom, right = _PANEL_TOP + _PANEL_HEIGHT, left + _PANEL_WIDTH
    lines = []
    for flops in range(0, 9, 2):
        y = _y(flops * 1e16)
        lines.append(svg.line(left, y, right, y, "axis" if flops == 0 else "grid"))
        lines.append(svg.text(left - 10, y + 4, str(flops), "soft end"))
    for thousands in (0, 32, 64, 96, 128):
        x = _x(left, thousands * 1024)
        lines.append(svg.line(x, bottom, x, bottom + 5, "axis"))
        label = f"{thousands}K" if thousands else "0"
        lines.append(svg.text(x, bottom + 21, label, "soft middle"))
    lines.append(svg.text((left + right) / 2, bottom + 43, "generated tokens N", "soft middle"))
    lines.append(
        f'<text class="soft middle" transform="translate({left - 36} {(_PANEL_TOP + bottom) / 2}) '
        'rotate(-90)">FLOPs, in units of 10<tspan dy="-4" font-size="10">16</tspan></text>'
    )
    for num_tokens, name in ((65_536, "64K"), (100_000, "100 000")):
        x = _x(left, num_tokens)
        top = _y(costs[1].cumulative(num_tokens))
        lines.append(svg.line(x, bottom, x, top - 10, "guide"))
        share = 100 * _ratio(costs, num_tokens)
        lines.append(svg.text(x - 8, top - 30, f"at {name}", "halo soft end"))
        lines.append(svg.text(x - 8, top - 14, f"M1 = {share:.1f} % of R1", "halo end"))
    for cost in reversed(costs):
        lines.append(_curve(left, cost))
        for num_tokens in (65_536, 100_000):
            x, y = _x(left, num_tokens), _y(cost.cumulative(num_tokens))
            lines.append(f'<circle class="dot {_COLOURS[cost.model]}" cx="{x}" cy="{y}" r="3.5"/>')
    for cost in costs:
        y = _y(cost.cumulative(_MAX_TOKENS))
        lines.append(svg.text(right + 8, y + 4, f"{cost.cumulative(_MAX_TOKENS) / 1e16:.2f}"))
    return lines


def _legend() -> list[str]:
    lines, x = [], _WIDTH / 2 - 240
    for model, colour in _COLOURS.items():
        lines.append(f'<path class="curve {colour}" d="M{x} {_HEIGHT - 32}h28"/>')
        lines.append(svg.text(x + 38, _HEIGHT - 27.5, model))
        x += 170
    return lines


def _curve(left: int, cost: GenerationCost) -> str:
    # The control point lies where the tangents at both ends meet: at N / 2, on the one at 0.
    control = _x(left, _MAX_TOKENS / 2), _y(cost.per_token * _MAX_TOKENS / 2)
    end = _x(left, _MAX_TOKENS), _y(cost.cumulative(_MAX_TOKENS))
    path = f"M{left} {_y(0)}Q{control[0]} {control[1]} {end[0]} {end[1]}"
    return f'<path class="curve {_COLOURS[cost.model]}" d="{path}"/>'


def _x(left: int, num_tokens: float) -> float:
    return round(left + _PANEL_WIDTH * num_tokens / _MAX_TOKENS, 2)


def _y(flops: float) -> float:
    return round(_PANEL_TOP + _PANEL_HEIGHT * (1 - flops / _MAX_FLOPS), 2)
