"""Views that tell a feed what they see, in the words of `fulmen agent --json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from fulmen.agent import Report, TeamWatcher, Trajectory, Verdict, Watcher, records_of
from fulmen.chat import Event, ToolCall
from fulmen.cli.agent_view import JsonView, View
from fulmen.cli.watching.feed import LEAD, Feed


class FeedView(JsonView):
    """A view for those who watch; of the lead, or of an agent that it leads."""

    def __init__(self, feed: Feed, agent: str = LEAD) -> None:
        super().__init__(lambda event: feed.add(agent, event))
        self._feed = feed
        self._agent = agent

    def begin(self, fields: Mapping[str, Any], trajectory: Trajectory) -> None:
        """Tell what the run goes on with, and all that happened before."""
        if self._agent == LEAD:
            self._feed.begin()
        super().begin(fields, trajectory)
        self.recall(trajectory)

    def recall(self, trajectory: Trajectory) -> None:
        """Tell all that happened in a run."""
        self._num_steps, self._calls = 0, ()
        for record in records_of(trajectory, len(trajectory.steps)):
            self.record(record)

    def goes_on(self, trajectory: Trajectory) -> None:
        """Take note of where a run stands whose past was told."""
        self._stand(trajectory)

    def event(self, event: Event) -> None:
        """Tell of a piece of an answer."""
        self._feed.grow(self._agent, event)

    def output(self, text: str) -> None:
        """Tell of what a command prints."""
        self._feed.print(self._agent, text)


class FeedTeam:
    """Tells those who watch what the agents of a team do; a `TeamWatcher`."""

    def __init__(self, feed: Feed, other: TeamWatcher | None = None) -> None:
        """other: sees all of it too"""
        self._feed = feed
        self._other = other

    def began(self, name: str, trajectory: Trajectory) -> Watcher:
        """Return a view of an agent; if the page does not know it yet, that has all of its past."""
        other = None if self._other is None else self._other.began(name, trajectory)
        view = FeedView(self._feed, name)
        if self._feed.knows(name):
            view.goes_on(trajectory)
        else:
            view.recall(trajectory)
        return view if other is None else _Watchers((other, view))

    def ended(self, report: Report) -> None:
        """Tell how a task ended."""
        if self._other is not None:
            self._other.ended(report)
        self._feed.add(report.agent, {"type": "task.ended", "reason": report.reason})


class _Watchers:
    """Several watchers as one."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def event(self, event: Event) -> None:
        for one in self._watchers:
            one.event(event)

    def record(self, record: Mapping[str, Any]) -> None:
        for one in self._watchers:
            one.record(record)

    def calling(self, call: ToolCall) -> None:
        for one in self._watchers:
            one.calling(call)


class Both(_Watchers):
    """Several views as one."""

    def __init__(self, views: Sequence[View]) -> None:
        super().__init__(views)
        self._views = views

    def begin(self, fields: Mapping[str, Any], trajectory: Trajectory) -> None:
        """See that the run is gone on with."""
        for view in self._views:
            view.begin(fields, trajectory)

    def note(self, text: str) -> None:
        """See a sentence."""
        for view in self._views:
            view.note(text)

    def output(self, text: str) -> None:
        """See what a command prints."""
        for view in self._views:
            view.output(text)

    def refuse(self, call: ToolCall, verdict: Verdict) -> None:
        """See a call that was refused."""
        for view in self._views:
            view.refuse(call, verdict)

    def end(self, reason: str, code: int, trajectory: Trajectory, refused: int) -> None:
        """See that the work ended."""
        for view in self._views:
            view.end(reason, code, trajectory, refused)
