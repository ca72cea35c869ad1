"""SVG pages of lines and text, in a light and a dark palette.

A rule of the style names its colour by `%s`; the palettes fill it in. Rules are plain, without CSS
variables: converters to PNG and PDF know nothing newer.
"""

from collections.abc import Iterable, Mapping
from xml.sax.saxutils import escape


def page(width: int, height: int, *, title: str, style: str, body: Iterable[str]) -> str:
    """Return a whole SVG file with a background; readers of screens are told its title."""
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-labelledby="title">',
            f'  <title id="title">{escape(title)}</title>',
            f"  <style>\n{style}\n  </style>",
            f'  <rect class="back" width="{width}" height="{height}"/>',
            *(f"  {line}" for line in body),
            "</svg>\n",
        )
    )


def style_sheet(
    plain: str, coloured: Mapping[str, str], light: Mapping[str, str], dark: Mapping[str, str]
) -> str:
    """Return rules without colour, and those with one in both palettes.

    coloured      rules by the name of their colour
    light, dark   colours by name
    """
    in_light, in_dark = (
        [coloured[name].replace("%s", colour) for name, colour in palette.items()]
        for palette in (light, dark)
    )
    return "\n".join((plain, *in_light, "@media (prefers-color-scheme: dark) {", *in_dark, "}"))


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a line of a class."""
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def text(x: float, y: float, content: str, kind: str = "") -> str:
    """Return a line of text whose baseline begins at (x, y), unless its classes say otherwise."""
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{x}" y="{y:.1f}">{escape(content)}</text>'
