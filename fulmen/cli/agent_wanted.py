"""Flags of a run of an agent: what is wanted of it, over the settings that it was begun with.

    flags, settings of the run -> merged -> Wanted

What a run has from its beginning to its end, its folder, tools and model's side, no flag changes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from fulmen.agent import (
    Budget,
    Mode,
    Rules,
    Run,
    TeamConfig,
    check_protected,
    parse_team,
    read_team,
)
from fulmen.cli.options import in_seconds, parse_whole
from fulmen.units import parse_count

_LIMITS: Final[Mapping[str, tuple[str, Callable[[str], Any]]]] = {
    "max_turns": ("turns", parse_whole),
    "max_tokens": ("tokens", parse_count),
    "thinking_tokens": ("thinking_tokens", parse_count),
    "max_seconds": ("seconds", in_seconds),
    "context": ("context", parse_count),
}
"""Limits by the names of their flags, and how those are read"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Flags of a run that is begun or gone on with; None where they say nothing."""

    folder: Path
    tools: str | None = None
    mode: Mode | None = None
    rules: Rules = field(default_factory=Rules)
    limits: Mapping[str, float | None] = field(default_factory=dict)
    """Fields of `Budget`, and context; None lifts a limit"""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    has_network: bool | None = None
    writable: tuple[str, ...] = ()
    team: TeamConfig | None = None


def merged(flags: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run: those that it was begun with, and the flags over them. Rules
    and writable names are all those of both."""
    found = {**earlier, **{name: one for name, one in flags.items() if one not in (None, [], {})}}
    for name in ("allow", "ask", "deny", "writable"):
        both = (*(earlier.get(name) or ()), *(flags.get(name) or ()))
        found[name] = list(dict.fromkeys(both))
    for name in ("sampling", "engine"):
        found[name] = {**(earlier.get(name) or {}), **(flags.get(name) or {})}
    return found


def read_wanted(settings: Mapping[str, Any], folder: Path) -> Wanted:
    """Read what flags ask for. Raises ValueError before a model is loaded."""

    limits: dict[str, Any] = {}
    for flag, (name, read) in _LIMITS.items():
        value = settings.get(flag)
        if value is not None:
            limits[name] = None if value == "none" else read(value)
    budget_of(limits)
    lists = [settings.get(name) or () for name in ("allow", "ask", "deny")]
    writable = tuple(settings.get("writable") or ())
    check_protected(writable)
    return Wanted(
        folder=folder,
        tools=settings.get("tools"),
        mode=settings.get("mode"),
        rules=Rules.parse(lists[0], ask=lists[1], deny=lists[2]),
        limits=limits,
        sampling={
            name: tuple(value) if isinstance(value, list) else value
            for name, value in settings["sampling"].items()
        },
        has_network=settings.get("network"),
        writable=writable,
        team=_team(settings.get("team"), limits),
    )


def team_text(file: Path) -> str:
    """Return the text of a team, as it is kept with its run. Raises ValueError for what is none."""
    return read_team(file)[1]


def _team(text: str | None, limits: dict[str, Any]) -> TeamConfig | None:
    """Read the team of a run; limits of tokens and time are then those of all its agents."""
    if text is None:
        return None
    team = parse_team(text, "the team of the run")
    if "tokens" in limits:
        team = replace(team, max_tokens=limits.pop("tokens"))
    return team


def budget_of(limits: Mapping[str, Any]) -> Budget:
    """Return the limits that an agent itself holds; what is not said is as in `Budget`."""
    try:
        return Budget(**{name: value for name, value in limits.items() if name != "context"})
    except ValueError as error:
        raise ValueError(f"--max-{error}") from None


def check_same(earlier: Run, flags: Mapping[str, Any], folder: Path | None) -> None:
    """Raise ValueError for flags that would change what a run keeps. Its states are of one model,
    and its messages of none."""
    facts, name = earlier.facts, earlier.facts.name
    if facts.session is not None and flags["url"] is not None:
        raise ValueError(
            f"--url is given, but run {name} has its model on this machine, whose states it keeps"
        )
    if facts.session is None and flags["url"] is None and flags["engine"]:
        raise ValueError(f"run {name} has its model at a URL, options of an engine have no effect")
    if folder is not None and str(folder.resolve()) != facts.folder:
        raise ValueError(f"--folder is given, but run {name} works in {facts.folder}")
    if flags["team"] not in (None, facts.settings.get("team")):
        raise ValueError(f"--team is given, but run {name} was begun with another team, or none")
    if flags["tools"] not in (None, facts.tools):
        raise ValueError(f"--tools is given, but run {name} has the tools {facts.tools}")
