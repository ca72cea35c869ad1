"""A shorter history for a full context: whole steps give way to a summary that the model writes.

It happens late, only between steps, and keeps the instructions and what people said. The summary is
asked for at the end of the conversation as it stands, so the model reads nothing again for it; only
where that has no room are long results cut for it. Where the last steps are too long by themselves,
fewer of them stay, and their results are cut.

A summary is a record: people see it, may write another in its place, and can go back to before it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fulmen.agent.cutting import cut_results
from fulmen.agent.trajectory import Compaction, Trajectory
from fulmen.chat import Completion, Message

REQUEST: Final = (
    "The context is nearly full. Write a hand-over for yourself: what was asked, what you found "
    "out, what you changed in which files, what works, what failed and why, and what is left to do "
    "next. Name files, commands and values exactly. Make no calls."
)
"""Words that ask for a summary"""
_HEAD: Final = "(This is a summary of the work so far; earlier messages were left out.)\n\n"
_WORTH: Final = 0.7
"""Part of the tokens before that may be left: else the summary was not worth it"""
_REQUEST_TOKENS: Final = len(REQUEST) // 4
_SKETCH: Final = 40
"""Characters of a result that a summary is made from where there is little room"""
_LEAST_RESULT: Final = 200
"""Characters of a result that stay in any case"""

Count = Callable[[Sequence[Message]], int | None]
"""Counts the tokens of a prompt with messages; None where nobody can"""


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a summary."""

    messages: Sequence[Message]
    room: int
    """Tokens that are left for the summary"""
    num_unseen: int
    """Last steps that are not in it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compactor:
    """Rules of when and how a history is made shorter."""

    max_tokens: int
    """Tokens that the context holds"""
    share: float = 0.8
    """Part of them from which on it is made shorter"""
    num_kept: int = 4
    """Last steps that stay as they are, if they leave room"""

    @property
    def least_room(self) -> int:
        """Tokens that a summary must have room for, thoughts included."""
        return max(self.max_tokens // 8, 1)

    def max_result(self, num_calls: int) -> int:
        """Return how many characters a result of an answer with so many calls may have: together
        about a fourth of the context."""
        return max(self.max_tokens // max(num_calls, 1), _LEAST_RESULT)

    def is_due(self, num_tokens: int) -> bool:
        """Return whether a prompt with so many tokens would be too long."""
        return num_tokens > self.share * self.max_tokens

    def request(self, trajectory: Trajectory, num_tokens: int, count: Count) -> Request | None:
        """Return how to ask for a summary: at the end of the conversation as it stands if it leaves
        room, else with long results cut, or without the last steps, which then have to stay; None
        where even that leaves none.

        num_tokens  tokens of the prompt as it stands
        """
        request = Message("user", REQUEST)
        whole = [*trajectory.messages, request]
        ways: list[tuple[int, int | None]] = [(0, None)]
        ways += [(0, cut) for cut in (*self._cuts(), _SKETCH)]
        ways += [(num, _SKETCH) for num in (1, 2, self.num_kept) if num <= self._most(trajectory)]
        for num_unseen, cut in ways:
            messages = whole
            if num_unseen:
                earlier = replace(trajectory, steps=trajectory.steps[:-num_unseen], said=[])
                messages = [*earlier.messages, request]
            if cut is not None:
                messages = cut_results(messages, cut)
            left = self.max_tokens - _counted(messages, whole, num_tokens + _REQUEST_TOKENS, count)
            if left >= self.least_room:
                room = left - (left - self.least_room) // 4  # a count may be a guess
                return Request(messages, room, num_unseen)
        return None

    def shortened(self, trajectory: Trajectory, num_tokens: int, count: Count) -> Compaction | None:
        """Return a history in which nothing gives way but long results; None if that makes too
        little room."""
        return self._chosen(trajectory, "", ((0, cut) for cut in self._cuts()), num_tokens, count)

    def compacted(
        self,
        trajectory: Trajectory,
        summary: Completion,
        num_tokens: int,
        count: Count,
        *,
        num_unseen: int = 0,
    ) -> Compaction | None:
        """Return the compaction that a summary makes; None if it makes too little room.

        num_unseen  last steps that the summary does not stand for
        """
        text, usage = summary.reply.content.strip(), summary.usage
        if not text:
            return None
        most = self._most(trajectory)
        ways: list[tuple[int, int | None]] = [(most, None)]
        ways += [(min(kept, most), self._cuts()[0]) for kept in (most, 2, 1)]
        ways += [(min(max(num_unseen, 1), most), cut) for cut in self._cuts()[1:]]
        ways = [way for way in ways if way[0] >= num_unseen]
        made = self._chosen(trajectory, _HEAD + text, ways, num_tokens, count)
        return made and replace(
            made,
            num_prompt_tokens=usage.num_prompt_tokens,
            num_cached_tokens=usage.num_cached_tokens,
            num_new_tokens=usage.num_new_tokens,
            num_thinking_tokens=usage.num_thinking_tokens,
        )

    def _most(self, trajectory: Trajectory) -> int:
        """Return how many of the last steps may stay."""
        total, earlier = len(trajectory.steps), trajectory.compactions[-1:]
        return min(self.num_kept, total - (earlier[0].num_steps if earlier else 0), total - 1)

    def _cuts(self) -> tuple[int, ...]:
        """Return lengths to which results may be cut, in turn."""
        shares = (self.max_tokens // part for part in (4, 16, 64))
        return tuple(dict.fromkeys(max(one, _LEAST_RESULT) for one in shares))

    def _chosen(
        self,
        trajectory: Trajectory,
        text: str,
        ways: Iterable[tuple[int, int | None]],
        num_tokens: int,
        count: Count,
    ) -> Compaction | None:
        """Return the first way to keep the last steps, with results cut to a length, that makes
        room."""
        total, whole = len(trajectory.steps), trajectory.messages
        for num_kept, cut in ways:
            made = Compaction(
                total - num_kept if text else 0,
                total,
                text,
                num_tokens,
                0,
                max_said=self.max_tokens,
                num_cut=0 if cut is None else total,
                max_result=cut or 0,
            )
            messages = [*trajectory.messages_after(made), *trajectory.said]
            after = _counted(messages, whole, num_tokens, count)
            if after <= _WORTH * num_tokens and not self.is_due(after):
                return replace(made, num_tokens_after=after)
        return None


def about_tokens(trajectory: Trajectory) -> int:
    """Return about how many tokens the next prompt has: those of the last one and its answer,
    and a fourth of the characters since; of all characters where the model counts no tokens.
    """
    if not trajectory.steps:
        return 0
    made = trajectory.compactions[-1:]
    if made and made[0].num_seen == len(trajectory.steps):  # no prompt was counted since
        return made[0].num_tokens_after + sum(len(one.content) for one in trajectory.said) // 4
    last = trajectory.steps[-1]
    since = [result.text for result in last.results] + [one.content for one in trajectory.said]
    known = last.answer.num_prompt_tokens + last.answer.num_new_tokens
    if not last.answer.num_prompt_tokens:
        return _characters(trajectory.messages) // 4
    return known + sum(map(len, since)) // 4


def summary_of(trajectory: Trajectory) -> str:
    """Return the text of the summary that stands for earlier steps, empty if there is none."""
    made = trajectory.compactions[-1:]
    return made[0].text.removeprefix(_HEAD) if made else ""


def edited(trajectory: Trajectory, text: str) -> Compaction:
    """Return the last summary with another text. Raises ValueError if there is none."""
    if not trajectory.compactions or not trajectory.compactions[-1].text:
        raise ValueError("there is no summary that could be changed")
    last, num_tokens = trajectory.compactions[-1], about_tokens(trajectory)
    text = _HEAD + text.strip()
    if text == _HEAD:
        raise ValueError("the summary is empty, it must say something")
    return Compaction(
        last.num_steps,
        len(trajectory.steps),
        text,
        num_tokens,
        max(num_tokens + (len(text) - len(last.text)) // 4, 0),
        max_said=last.max_said,
        num_cut=last.num_cut,
        max_result=last.max_result,
    )


def _counted(
    messages: Sequence[Message], whole: Sequence[Message], num_tokens: int, count: Count
) -> int:
    """Return the tokens of a prompt, counted, or else by its part of the characters of a prompt
    with so many tokens."""
    known = count(messages)
    if known is not None:
        return known
    return num_tokens * _characters(messages) // max(_characters(whole), 1)


def _characters(messages: Sequence[Message]) -> int:
    count = 0
    for message in messages:
        calls = sum(len(call.name) + len(str(call.arguments)) for call in message.tool_calls)
        count += len(message.content) + len(message.thinking or "") + calls
    return count
