"""The curve of a study as an SVG: accuracy against the tokens of a run, with 95 % intervals."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from fulmen import svg

_WIDTH, _HEIGHT = 760, 470
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 620, 86, 400
_LABELS: Final = {
    "fork": "forked",
    "separate": "separate runs",
    "majority": "majority vote",
    "likeliest": "likeliest of n",
    "any": "any of n",
}
_LIGHT: Final = {
    "back": "#ffffff",
    "ink": "#1c2330",
    "soft": "#5b6678",
    "grid": "#e3e7ee",
    "fork": "#d1495b",
    "separate": "#2b6cb0",
    "majority": "#2f855a",
    "likeliest": "#b7791f",
    "any": "#8a94a6",
}
_DARK: Final = {
    "back": "#12161d",
    "ink": "#e8ecf3",
    "soft": "#9aa5b8",
    "grid": "#2a313d",
    "fork": "#ff7b8b",
    "separate": "#6ea3ff",
    "majority": "#5fd39a",
    "likeliest": "#e5b454",
    "any": "#6b7587",
}
_STYLE: Final = """\
text { font: 13px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif }
.title { font-size: 18px; font-weight: 600 }
.end { text-anchor: end }
.middle { text-anchor: middle }
.curve { fill: none; stroke-width: 2.5; stroke-linejoin: round }
.any.curve { stroke-dasharray: 5 4 }
.bar { stroke-width: 1.5 }"""
_RULES: Final = {
    "back": ".back { fill: %s }",
    "ink": "text { fill: %s }",
    "soft": ".soft { fill: %s } .axis { stroke: %s }",
    "grid": ".grid { stroke: %s }",
} | {kind: f".{kind} {{ stroke: %s }} .{kind}.dot {{ fill: %s }}" for kind in _LABELS}


class _Point(NamedTuple):
    tokens: float
    mean: float
    low: float
    high: float


def plot_svg(summary: Mapping[str, Any]) -> str:
    """Draw what `summarize` returns: tokens on a logarithmic axis, accuracy from 0 to 1."""
    lines = {kind: points for kind in _LABELS if (points := list(_points(summary, kind)))}
    axis = _Axis([point.tokens for points in lines.values() for point in points])
    about = summary["about"]
    name = f"{about['model']} on {about['task']}"
    caption = f"{summary['num_tasks']} tasks, {about['num_thoughts']} thoughts each; bars: 95 %"
    body = [
        svg.text(_LEFT, 34, f"Accuracy against thinking: {name}", "title"),
        svg.text(_LEFT, 58, caption, "soft"),
        *_frame(axis),
    ]
    for place, (kind, points) in reversed(list(enumerate(lines.items()))):
        # Side by side, so that bars at one place can be told apart.
        shift = 3.0 * (place - (len(lines) - 1) / 2)
        body += _curve(kind, points, axis, shift)
        y = _TOP + 20 + 26 * place
        body.append(f'<path class="{kind} curve" d="M{_RIGHT + 14} {y}h24"/>')
        body.append(svg.text(_RIGHT + 46, y + 4.5, _LABELS[kind]))
    return svg.page(
        _WIDTH,
        _HEIGHT,
        title=f"Accuracy against thinking tokens, {name}",
        style=svg.style_sheet(_STYLE, _RULES, _LIGHT, _DARK),
        body=body,
    )


def _points(summary: Mapping[str, Any], kind: str) -> Iterator[_Point]:
    for row in summary["budgets"]:
        if kind in ("fork", "separate"):
            if kind in row:
                yield _Point(row[kind]["tokens"], **row[kind]["accuracy"])
        elif row.get("votes") and row["votes"][kind] is not None:
            yield _Point(row["votes"]["tokens"], **row["votes"][kind])


class _Axis:
    """A horizontal axis on which tokens are spaced evenly in their logarithm."""

    def __init__(self, tokens: list[float]) -> None:
        self._low = math.log2(min(tokens)) - 0.25
        self._high = math.log2(max(tokens)) + 0.25

    def x(self, tokens: float) -> float:
        share = (math.log2(tokens) - self._low) / (self._high - self._low)
        return round(_LEFT + (_RIGHT - _LEFT) * share, 2)

    def ticks(self) -> list[int]:
        """Return about ten powers of two at most; a curve may have tokens between them."""
        powers = range(math.ceil(self._low), math.floor(self._high) + 1)
        step = max(1, math.ceil(len(powers) / 10))
        return [2**power for power in powers if power >= 0][::step]


def _y(accuracy: float) -> float:
    return round(_BOTTOM - (_BOTTOM - _TOP) * accuracy, 2)


def _frame(axis: _Axis) -> Iterator[str]:
    for tenths in range(0, 11, 2):
        y = _y(tenths / 10)
        yield svg.line(_LEFT, y, _RIGHT, y, "grid" if tenths else "axis")
        yield svg.text(_LEFT - 10, y + 4, f"{tenths / 10:.1f}", "soft end")
    for tokens in axis.ticks():
        x = axis.x(tokens)
        yield svg.line(x, _BOTTOM, x, _BOTTOM + 5, "axis")
        yield svg.text(x, _BOTTOM + 21, f"{tokens:,}", "soft middle")
    label = "tokens of a run, thought and answer together"
    yield svg.text((_LEFT + _RIGHT) / 2, _BOTTOM + 46, label, "soft middle")
    middle = (_TOP + _BOTTOM) / 2
    yield (
        f'<text class="soft middle" transform="translate(24 {middle}) rotate(-90)">accuracy</text>'
    )


def _curve(kind: str, points: list[_Point], axis: _Axis, shift: float) -> Iterator[str]:
    places = [(round(axis.x(point.tokens) + shift, 2), point) for point in points]
    path = "L".join(f"{x} {_y(point.mean)}" for x, point in places)
    yield f'<path class="{kind} curve" d="M{path}"/>'
    for x, point in places:
        if kind != "any":  # only an upper bound on what voting could reach
            yield svg.line(x, _y(point.low), x, _y(point.high), f"{kind} bar")
        yield f'<circle class="{kind} dot" cx="{x}" cy="{_y(point.mean)}" r="3.5"/>'
