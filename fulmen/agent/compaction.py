"""A shorter history for a full context: whole steps give way to a summary that the model writes.

It happens late, only between steps, and keeps the task and the instructions verbatim. The summary
is asked for at the end of the conversation as it stands, so the model reads nothing again for it.
It is a record: people see it, may write another in its place, and can go back to before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fulmen.agent.trajectory import Compaction, Trajectory
from fulmen.chat import Message

REQUEST: Final = (
    "The context is nearly full. Write a hand-over for yourself: what was asked, what you found "
    "out, what you changed in which files, what works, what failed and why, and what is left to do "
    "next. Name files, commands and values exactly. Make no calls."
)
"""Words that ask for a summary"""
_HEAD: Final = "(This is a summary of the work so far; earlier messages were left out.)\n\n"
_WORTH: Final = 0.7
"""Part of the tokens before that may be left: else the summary was not worth it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compactor:
    """Rules of when and how a history is made shorter."""

    max_tokens: int
    """Tokens that the context holds"""
    share: float = 0.8
    """Part of them from which on it is made shorter"""
    num_kept: int = 4
    """Last steps that stay as they are"""

    def is_due(self, trajectory: Trajectory) -> bool:
        """Return whether the next prompt would be too long, and there is something to leave out."""
        return self.tokens(trajectory) > self.share * self.max_tokens

    def tokens(self, trajectory: Trajectory) -> int:
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
            return sum(map(_characters, trajectory.messages)) // 4
        return known + sum(map(len, since)) // 4

    def first_kept(self, trajectory: Trajectory) -> int:
        """Return how many steps a summary would stand for; 0 if there are too few."""
        return max(len(trajectory.steps) - self.num_kept, 0)

    def compacted(self, trajectory: Trajectory, text: str, *, num_before: int) -> Compaction | None:
        """Return the compaction that a summary makes; None if it is not worth it."""
        num_steps = self.first_kept(trajectory)
        text = _HEAD + text.strip()
        left = [one for step in trajectory.steps[num_steps:] for one in step.messages]
        left += [*trajectory.system, *trajectory.steps[0].said, *trajectory.said]
        characters = sum(map(_characters, trajectory.messages))
        num_after = num_before * (sum(map(_characters, left)) + len(text)) // max(characters, 1)
        if text == _HEAD or num_after > _WORTH * num_before:
            return None
        return Compaction(num_steps, len(trajectory.steps), text, num_before, num_after)


def _characters(message: Message) -> int:
    calls = sum(len(call.name) + len(str(call.arguments)) for call in message.tool_calls)
    return len(message.content) + len(message.thinking or "") + calls


def summary_messages(messages: Sequence[Message]) -> list[Message]:
    """Return the conversation with the words that ask for a summary."""
    return [*messages, Message("user", REQUEST)]
