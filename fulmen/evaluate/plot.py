"""The curve as an SVG: accuracy against the tokens that a run takes, with its intervals."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple
from xml.sax.saxutils import escape

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
# Plain rules and no CSS variables: converters to PNG and PDF know nothing newer.
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
    """The lines of what `summarize` gives: tokens on a logarithmic axis, accuracy from 0 to 1."""
    lines = {kind: points for kind in _LABELS if (points := list(_points(summary, kind)))}
    axis = _Axis([point.tokens for points in lines.values() for point in points])
    about = summary["about"]
    name = f"{about['model']} on {about['task']}"
    caption = f"{summary['num_tasks']} tasks, {about['num_thoughts']} thoughts each; bars: 95 %"
    body = [
        _text(_LEFT, 34, f"Accuracy against thinking: {name}", "title"),
        _text(_LEFT, 58, caption, "soft"),
        *_frame(axis),
    ]
    for place, (kind, points) in reversed(list(enumerate(lines.items()))):
        # Side by side, so that bars at one place can be told apart.
        shift = 3.0 * (place - (len(lines) - 1) / 2)
        body += _curve(kind, points, axis, shift)
        y = _TOP + 20 + 26 * place
        body.append(f'<path class="{kind} curve" d="M{_RIGHT + 14} {y}h24"/>')
        body.append(_text(_RIGHT + 46, y + 4.5, _LABELS[kind]))
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-labelledby="title">',
            f'  <title id="title">Accuracy against thinking tokens, {escape(name)}</title>',
            f"  <style>\n{_style()}\n  </style>",
            f'  <rect class="back" width="{_WIDTH}" height="{_HEIGHT}"/>',
            *(f"  {line}" for line in body),
            "</svg>\n",
        )
    )


def _points(summary: Mapping[str, Any], kind: str) -> Iterator[_Point]:
    for row in summary["budgets"]:
        if kind in ("fork", "separate"):
            if kind in row:
                yield _Point(row[kind]["tokens"], **row[kind]["accuracy"])
        elif row.get("votes"):
            yield _Point(row["votes"]["tokens"], **row["votes"][kind])


class _Axis:
    """Tokens to places from left to right, evenly in their logarithm."""

    def __init__(self, tokens: list[float]) -> None:
        self._low = math.log2(min(tokens)) - 0.25
        self._high = math.log2(max(tokens)) + 0.25

    def x(self, tokens: float) -> float:
        share = (math.log2(tokens) - self._low) / (self._high - self._low)
        return round(_LEFT + (_RIGHT - _LEFT) * share, 2)

    def ticks(self) -> list[int]:
        """Powers of two, at most some ten of them; tokens that are none are not hidden by it."""
        powers = range(math.ceil(self._low), math.floor(self._high) + 1)
        step = max(1, math.ceil(len(powers) / 10))
        return [2**power for power in powers if power >= 0][::step]


def _y(accuracy: float) -> float:
    return round(_BOTTOM - (_BOTTOM - _TOP) * accuracy, 2)


def _frame(axis: _Axis) -> Iterator[str]:
    for tenths in range(0, 11, 2):
        y = _y(tenths / 10)
        yield _line(_LEFT, y, _RIGHT, y, "grid" if tenths else "axis")
        yield _text(_LEFT - 10, y + 4, f"{tenths / 10:.1f}", "soft end")
    for tokens in axis.ticks():
        x = axis.x(tokens)
        yield _line(x, _BOTTOM, x, _BOTTOM + 5, "axis")
        yield _text(x, _BOTTOM + 21, f"{tokens:,}", "soft middle")
    label = "tokens drawn for an answer, thought and answer together"
    yield _text((_LEFT + _RIGHT) / 2, _BOTTOM + 46, label, "soft middle")
    middle = (_TOP + _BOTTOM) / 2
    yield (
        f'<text class="soft middle" transform="translate(24 {middle}) rotate(-90)">accuracy</text>'
    )


def _curve(kind: str, points: list[_Point], axis: _Axis, shift: float) -> Iterator[str]:
    places = [(round(axis.x(point.tokens) + shift, 2), point) for point in points]
    path = "L".join(f"{x} {_y(point.mean)}" for x, point in places)
    yield f'<path class="{kind} curve" d="M{path}"/>'
    for x, point in places:
        if kind != "any":  # an upper line for what voting could reach: read without bars
            yield _line(x, _y(point.low), x, _y(point.high), f"{kind} bar")
        yield f'<circle class="{kind} dot" cx="{x}" cy="{_y(point.mean)}" r="3.5"/>'


def _style() -> str:
    light = [_RULES[name].replace("%s", colour) for name, colour in _LIGHT.items()]
    dark = [_RULES[name].replace("%s", colour) for name, colour in _DARK.items()]
    return "\n".join((_STYLE, *light, "@media (prefers-color-scheme: dark) {", *dark, "}"))


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x}" y="{y}">{escape(text)}</text>'
