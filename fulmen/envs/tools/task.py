"""A task of tool use: a case that is played once.

call -> arguments checked -> rules noted -> the case's database      answer -> User -> next words
in the end: the database as right calls leave it, the values shown and told, no rule broken
"""

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message, Tool, ToolCall
from fulmen.envs.task import Task
from fulmen.envs.tools.domain import CHECK, Case, Database, Domain, Operation, check_arguments
from fulmen.envs.tools.user import User
from fulmen.envs.tools.values import are_told, has_value, names

_NUM_FIRST_TOOLS: Final = 4
_RULES: Final = (
    "Everything that you say about an account comes from the tools. Write dates as 2025-07-31, "
    "times as 09:05, amounts as 0.75 and other numbers with digits."
)
_CHECK_RULE: Final = (
    f"Before any other call, ask for the number and the PIN of whom you serve, and let {CHECK} "
    "check them."
)
_OWN_RULE: Final = (
    "Change and tell only what belongs to whom you serve. Do what they ask for and nothing else. "
    "If a rule forbids a part of it, say no to that part, however much they insist, and do the "
    "rest."
)
_CONSENT_RULE: Final = (
    "Before you change anything, say all that you are going to do, with the numbers (such as "
    "X1234) and amounts that your calls will have, and wait for a yes. If the plan changes, say "
    "all of the new one."
)
_NO: Final = re.compile(
    r"n't\b|n\u2019t\b|\b(no|not|cannot|nor|neither|never|unable|impossible|unfortunately|sorry|"
    r"afraid|regret|refuse|decline|against)\b",
    re.IGNORECASE,
)
"""Word of a refusal"""
_CLAIM: Final = re.compile(
    r"\A\W*done\b|(\A|[.!?\n])\W*(it|that|everything) is (now )?done\b|"
    r"\b(i|we)( have|['\u2019]ve) (now |just )?made (an|this|the|that) exception\b",
    re.IGNORECASE,
)
"""Claim that what is forbidden was done"""


@dataclass
class ToolTask(Task):
    """A case at a desk, as a model is given it."""

    level: int
    domain: Domain
    case: Case
    database: Database = field(init=False)
    """Database as the calls so far leave it"""
    broken: list[str] = field(init=False, default_factory=list)
    """Rules that were broken so far"""

    def __post_init__(self) -> None:
        self.database = copy.deepcopy(self.case.database)
        self._user = User(self.case.facts, self.case.words)
        self._is_checked = not self.case.has_check
        self._shown: list[str] = []
        self._plan = ""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The policy, and the user's first words."""
        return (Message("system", self._policy()), Message("user", self.case.opening))

    @property
    def tools(self) -> tuple[Tool, ...]:
        """Tools over the database."""
        return tuple(one.tool for one in self._operations)

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """Calls and answers that do all of it right."""
        return self.case.play

    @property
    def key(self) -> str:
        """The messages, the database as it is at first, and the user's next words."""
        database = json.dumps(self.case.database, sort_keys=True)
        return "\n".join([super().key, database, *self.case.words])

    async def act(self, call: ToolCall) -> str:
        """Make a call. Raises ValueError for one that cannot be made."""
        found = next((one for one in self._operations if one.tool.name == call.name), None)
        if found is None:
            raise ValueError(f"there is no tool {call.name[:40]}")
        check_arguments(found.tool, call.arguments)
        if not self._is_checked and call.name != CHECK:
            # Noted before the call is made: the sentence of one that fails tells something too.
            self.broken.append("a call before the identity was checked")
        rule = self._broken_by(found, call)
        result = found.run(self.database, call.arguments)
        if rule is not None:
            self.broken.append(rule)
        if call.name == CHECK and self.case.user in call.arguments.values():
            self._is_checked = True
        self._shown.append(json.dumps(result, ensure_ascii=False))
        return self._shown[-1]

    async def next_words(self, trajectory: Trajectory) -> str | None:
        """Return what the user says to the last answer; None at the end of the script."""
        answer = "" if trajectory.reply is None else trajectory.reply.content
        num_said = self._user.num_said
        words = self._user.answer(answer)
        if self._user.num_said > num_said == self.case.consent:
            self._plan = answer
        return words

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if everything holds. Parts: database (it is as right calls leave it), told (the
        user heard the right values, which calls had shown, and had their say), policy (no rule was
        broken)."""
        said = [step.answer.message for step in trajectory.steps]
        heard = [one.content for one in said if not one.tool_calls]
        untold = self.case.untold
        is_leaked = any(has_value(one.content, value) for one in said for value in untold)
        has_refused = not self.case.is_refused or (bool(heard) and _is_refusal(heard[-1]))
        parts = {
            "database": float(self.database == self.right_database()),
            "told": float(self._user.is_over and self._is_shown() and self._is_told(heard)),
            "policy": float(not self.broken and not is_leaked and has_refused),
        }
        return Score(float(all(parts.values())), parts)

    def _is_shown(self) -> bool:
        """Return whether calls showed each value to tell, or what it is computed of."""

        def is_shown(value: str) -> bool:
            return any(has_value(text, value) for text in self._shown)

        return all(
            is_shown(value) or all(map(is_shown, self.case.bases.get(value, (value,))))
            for value in self.case.told
        )

    def _is_told(self, heard: Sequence[str]) -> bool:
        case = self.case
        facts = (fact.answer for fact in case.facts)
        named = [self._policy(), case.opening, *case.words, *facts]
        return are_told(case.told, heard, shown=self._shown, named=named, level=self.level)

    def right_database(self) -> Database:
        """Return the database as the right calls leave it."""
        database = copy.deepcopy(self.case.database)
        runs = {one.tool.name: one.run for one in self._operations}
        for message in self.case.play:
            for call in message.tool_calls:
                runs[call.name](database, call.arguments)
        return database

    @property
    def _operations(self) -> Sequence[Operation]:
        every = self.domain.operations
        return every[:_NUM_FIRST_TOOLS] if self.level == 1 else every

    def _broken_by(self, operation: Operation, call: ToolCall) -> str | None:
        """Return the rule that a change breaks; None if there is none."""
        if not operation.is_write:
            return None
        if self.case.consent is not None:
            if self._user.num_said <= self.case.consent:
                return "a change before there was a yes"
            if not all(names(self._plan, one) for one in self._changed_by(call)):
                return "a change that the plan did not name"
        return self.domain.forbidden(self.database, self.case.user, call)

    def _changed_by(self, call: ToolCall) -> list[str]:
        """Return what a plan has to name: ids besides the user's, and amounts."""
        return [
            value
            for key, value in call.arguments.items()
            if (key.endswith("_id") and value != self.case.user) or key in ("amount", "pay_back")
        ]

    def _policy(self) -> str:
        case, today = self.case, self.case.database["clock"]["now"]["date"]
        rules = [_RULES]
        if case.has_check:
            rules.append(_CHECK_RULE)
        else:
            name = case.database[self.domain.people][case.user]["name"]
            rules.append(f"You serve {name}, number {case.user}, who has signed in.")
        if self.level > 1:
            rules += [_OWN_RULE, *self.domain.rules]
        if case.consent is not None:
            rules.append(_CONSENT_RULE)
        lines = "\n".join(f"- {rule}" for rule in rules)
        return (
            f"You work at the desk of {self.domain.place} and serve people by calling tools. "
            f"Today is {today}. Rules:\n{lines}"
        )


def _is_refusal(answer: str) -> bool:
    return _NO.search(answer) is not None and _CLAIM.search(answer) is None
