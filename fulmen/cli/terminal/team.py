"""The agents of a team at the terminal: a line each while they work, and a list of all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style

from fulmen.agent import Report, Trajectory
from fulmen.chat import ContentDelta, Event, ThinkingDelta, ToolCall
from fulmen.cli.agent_view import telling
from fulmen.files import printable

MOST_ROWS: Final = 4
"""Lines of agents that work, beside one that says how many more do"""
_DIM: Final = Style(dim=True)


@dataclass(slots=True)
class Seen:
    """Work of one agent, as far as it was seen; its `Watcher`."""

    name: str
    doing: str = "begins"
    is_working: bool = True
    num_steps: int = 0
    num_new_tokens: int = 0

    def event(self, event: Event) -> None:
        """See a piece of an answer."""
        if isinstance(event, ThinkingDelta):
            self.doing = "thinks"
        elif isinstance(event, ContentDelta):
            self.doing = "answers"

    def calling(self, call: ToolCall) -> None:
        """See a call that begins."""
        self.doing = f"{call.name} {telling(call)}".strip()[:200]

    def record(self, record: Mapping[str, Any]) -> None:
        """See a record that was just kept."""
        if record["type"] == "answer":
            self.num_steps += 1
            self.num_new_tokens += record["num_new_tokens"]
        elif record["type"] == "result":
            self.doing = "waits for the model"

    def row(self, width: int) -> str:
        """Return what it does, in one line."""
        steps = f"{self.num_steps} steps, {self.num_new_tokens:,} tokens"
        text = printable(f"  {self.name:<14} {steps:<24} {self.doing}")
        if cell_len(text) < width:
            return text
        return set_cell_size(text, max(width - 4, 0)).rstrip() + "..."


class TeamSeen:
    """All agents of a team; `TeamWatcher`."""

    def __init__(self) -> None:
        self._agents: dict[str, Seen] = {}

    def began(self, name: str, trajectory: Trajectory) -> Seen:
        """See that an agent begins a task."""
        steps, tokens = len(trajectory.steps), trajectory.num_new_tokens
        self._agents[name] = Seen(name, num_steps=steps, num_new_tokens=tokens)
        return self._agents[name]

    def ended(self, report: Report) -> None:
        """See how a task ended."""
        if report.agent in self._agents:
            one = self._agents[report.agent]
            one.is_working, one.doing = False, report.reason

    def clear(self) -> None:
        """Forget all: another run is shown."""
        self._agents.clear()

    @property
    def num_rows(self) -> int:
        """Number of lines that `rows` takes."""
        working = sum(one.is_working for one in self._agents.values())
        return min(working, MOST_ROWS + 1)

    def rows(self, width: int) -> list[list[Segment]]:
        """Return a line for each agent that works, at most so many, then how many more do."""
        working = [one for one in self._agents.values() if one.is_working]
        shown = [one.row(width) for one in working[:MOST_ROWS]]
        if len(working) > MOST_ROWS:
            shown.append(f"  ({len(working) - MOST_ROWS} more work)")
        return [[Segment(text, _DIM)] for text in shown]

    def told(self, width: int) -> list[str]:
        """Return a line for each agent."""
        return [one.row(width) for one in self._agents.values()] or ["no agent has begun yet"]
