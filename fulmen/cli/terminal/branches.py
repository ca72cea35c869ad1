"""Steps of a run and branches of its family, as rows that one can be chosen of."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from fulmen.agent import Archive, Outline, Step, Trajectory
from fulmen.files import printable

_MAX_LOOKED_AT: Final = 500
"""Runs that are looked at, the last used first"""
_MAX_ROW: Final = 160
_MAX_DEPTH: Final = 12


def steps_of(trajectory: Trajectory) -> list[str]:
    """Return a row for each place to go back to: before the first step, and after each."""
    rows = ["0 before the first step"]
    return rows + [f"{at} {_told(step)}" for at, step in enumerate(trajectory.steps, 1)]


def _told(step: Step) -> str:
    """Return what was said, done and answered in a step, on one line."""
    parts = [f'"{_line(one.content, 60)}"' for one in step.said[-1:]]
    message = step.answer.message
    for call in message.tool_calls[:3]:
        given = call.arguments
        told = next((given[key] for key in ("command", "path", "pattern") if key in given), "")
        parts.append(f"{_line(call.name, 20)} {_line(str(told), 50)}".rstrip())
    if not message.tool_calls:
        parts.append(_line(message.content, 80) or "(no answer)")
    return " - ".join(parts)[:_MAX_ROW]


def _line(text: str, most: int) -> str:
    line = printable(" ".join(text[: 4 * most].split()))
    return line if len(line) <= most else f"{line[:most]}..."


def family(archive: Archive, name: str) -> list[Outline]:
    """Return the runs that come from one beginning, each behind the one it was forked from; those
    that cannot be read are left out."""
    known: dict[str, Outline] = {}
    names = archive.runs.names()[:_MAX_LOOKED_AT]
    for one in dict.fromkeys([name, *names]):
        with suppress(ValueError, OSError):
            known[one] = archive.runs.outline(one)
    children: dict[str, list[str]] = {}
    for one, outline in known.items():
        if outline.facts.parent in known:
            children.setdefault(str(outline.facts.parent), []).append(one)
    first, seen = name, {name}
    while (parent := known[first].facts.parent) in known and parent not in seen:
        first = str(parent)
        seen.add(first)
    found: list[str] = []
    waiting = [first]
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.append(one)
            below = children.get(one, [])
            waiting += sorted(below, key=lambda child: -known[child].facts.created)
    return [known[one] for one in found]


def branches_of(found: Sequence[Outline], current: str) -> list[str]:
    """Return a row for each run of a family, the forks below where they come from."""
    depths: dict[str, int] = {}
    rows = []
    for one in found:
        facts = one.facts
        depth = depths[facts.name] = depths.get(str(facts.parent), -1) + 1
        begin = "  " * min(depth, _MAX_DEPTH)
        begun = f" from step {facts.num_inherited}" if depth else ""
        mark = " (here)" if facts.name == current else ""
        steps = f"{one.num_steps} steps" if one.num_steps != 1 else "1 step"
        end = one.end or "unfinished"
        rows.append(
            f"{begin}{facts.name}{mark}{begun}, {steps}, {end}: {_line(one.task, 60)}"[:_MAX_ROW]
        )
    return rows
