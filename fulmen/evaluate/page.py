"""An evaluation as one page for a browser: the tables, and trajectories to read.

    Results -> sheets and chosen passes -> html_page: no script, no request, everything escaped

The page has a bounded size, whatever models said. Where not all passes fit, every kind of outcome
of every environment has its share of them; the folder has all.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Final

from fulmen.agent import Trajectory, escaped, html_page, trajectory_facts, view_inside
from fulmen.evaluate.results import Pass, Results
from fulmen.evaluate.scoreboard import Sheet, eval_sheets, summarize_passes
from fulmen.files import write_text

_PAGE_CHARS: Final = 12 * 2**20
"""Characters of all trajectories on a page"""
_PASS_CHARS: Final = 2**18
"""Characters of one trajectory, from which on its later steps are left out"""
_STEP_CHARS: Final = 2**21
"""Longest step; of a longer one the page says so"""
_SUMMARY_CHARS: Final = 100
_PAGE: Final = "report.html"

_STYLE: Final = """
body { max-width: 75rem; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
.sheet { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { border-bottom: 1px solid var(--line); font-weight: 600; }
th, td { padding: .15rem 1.2rem .15rem 0; text-align: left; white-space: nowrap; }
.number { text-align: right; }
.passed > summary::after { color: #2a7d2a; content: " passed"; }
.failed > summary b { color: var(--bad); font-weight: 400; }
"""


def write_page(results: Results, baselines: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write the page of an evaluation into its folder, and return its path.

    baselines  summaries of earlier evaluations, shown beside this one
    """
    path = results.path / _PAGE
    write_text(path, eval_page(results, baselines))
    return path


def eval_page(results: Results, baselines: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the page of an evaluation."""
    summary = summarize_passes(results)
    title = f"{summary['model'] or 'a model'}: {', '.join(summary['environments']) or 'no pass'}"
    body = [f"<h1>{escaped(title)}</h1>", f'<p class="facts">{escaped(_facts(results))}</p>']
    body += map(_table, eval_sheets(summary, baselines))
    shown = _shown(results)
    by_name: dict[str, list[Pass]] = defaultdict(list)
    for one in results.passes:
        by_name[one.environment].append(one)
    for name, passes in by_name.items():
        body.append(f"<h2>{escaped(name)}</h2>")
        body += [shown[one.key] for one in passes if one.key in shown]
        if rest := sum(one.key not in shown for one in passes):
            body.append(f'<p class="facts">{rest:,} more passes are in passes.jsonl</p>')
    return html_page(title, "\n".join(body), style=_STYLE)


def _facts(results: Results) -> str:
    settings = [f"{name} {value}" for name, value in results.settings.items() if value is not None]
    begun = results.about.get("begun")
    if isinstance(begun, int | float):
        settings.insert(0, time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(begun)))
    return " · ".join(settings)


def _shown(results: Results) -> dict[tuple[str, int, int], str]:
    """Return the passes that have room on a page, as HTML."""
    shown: dict[tuple[str, int, int], str] = {}
    room = _PAGE_CHARS
    for one in _in_turn(results.passes):
        if room <= 0:
            break
        text = "\n".join(_pass(one, results.trajectory(one)))
        shown[one.key] = text
        room -= len(text)
    return shown


def _in_turn(passes: Sequence[Pass]) -> Iterator[Pass]:
    """Yield the first pass of every outcome of every environment, then the second ones ..."""
    kinds: dict[tuple[str, str | None], list[Pass]] = defaultdict(list)
    for one in passes:
        kinds[one.environment, one.failure].append(one)
    rounds: Iterable[tuple[Pass | None, ...]] = zip_longest(*kinds.values())
    return (one for one in chain.from_iterable(rounds) if one is not None)


def _pass(one: Pass, trajectory: Trajectory) -> Iterator[str]:
    kind = "passed" if one.failure is None else "failed"
    name = f"task {one.index}" + (f", sample {one.sample}" if one.sample else "")
    found = f" · {escaped(one.answer[:_SUMMARY_CHARS])}" if one.answer else ""
    failure = "" if one.failure is None else f" <b>{escaped(one.failure)}</b>"
    yield (
        f'<details class="{kind}"><summary>{name}{found} <span class="more">'
        f"{one.num_new_tokens:,} tokens</span>{failure}</summary>"
    )
    yield f'<p class="facts">{escaped(trajectory_facts(trajectory))}</p>'
    if one.error is not None:
        yield f'<div class="error"><pre>{escaped(one.error)}</pre></div>'
    room = _PASS_CHARS
    for piece in view_inside(trajectory, has_tokens=False):
        if room <= 0:
            yield '<p class="facts">the rest is too long for this page</p>'
            break
        if len(piece) > _STEP_CHARS:
            piece = '<p class="facts">a step that is too long for this page</p>'
        yield piece
        room -= len(piece)
    yield "</details>"


def _table(sheet: Sheet) -> str:
    def cell(tag: str, place: int, text: str) -> str:
        kind = "" if place < sheet.num_texts else ' class="number"'
        return f"<{tag}{kind}>{escaped(text)}</{tag}>"

    head = "".join(cell("th", place, text) for place, text in enumerate(sheet.columns))
    rows = [
        "<tr>" + "".join(cell("td", place, text) for place, text in enumerate(row)) + "</tr>"
        for row in sheet.rows
    ]
    return (
        f'<h2>{escaped(sheet.title)}</h2><div class="sheet"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>\n{chr(10).join(rows)}\n</tbody></table></div>"
    )
