"""Verdicts on tool calls: a decision, and the parts of the call that it rests on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fulmen.agent.rules import Decision, Rule


class ToolCall(Protocol):
    """A call as a model makes it."""

    @property
    def name(self) -> str: ...
    @property
    def arguments(self) -> Mapping[str, object]: ...


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a call that needs a decision.

    text    the part, such as one command of several
    reason  why it is asked about or denied
    rules   what to allow so that it is not asked about again; none if no rule can do that
    by      a rule (or what is outside the sandbox), the name of a file that is asked about in
            every mode, or the mode
    """

    text: str
    reason: str
    rules: tuple[Rule, ...] = ()
    by: Literal["rule", "name", "mode"] = "mode"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a call.

    parts  those that ask or are denied; none if the call is allowed
    """

    decision: Decision
    parts: tuple[Part, ...] = ()

    @property
    def reason(self) -> str:
        """One sentence: for a person if it asks, for the model if it is denied."""
        return "; ".join(dict.fromkeys(f"{part.text}: {part.reason}" for part in self.parts))

    @property
    def rules(self) -> frozenset[Rule]:
        """Rules that "always" would remember: the narrowest that are of use, none if none are."""
        if not all(part.rules for part in self.parts):
            return frozenset()
        return frozenset(rule for part in self.parts for rule in part.rules)


@dataclass(slots=True)
class Findings:
    """Parts by decision, while a call is judged."""

    leaves: str | None = None
    ask: list[Part] = field(default_factory=list)
    deny: list[Part] = field(default_factory=list)

    def verdict(self) -> Verdict:
        if self.deny:
            return Verdict("deny", tuple(dict.fromkeys(self.deny)))
        return Verdict("ask", tuple(dict.fromkeys(self.ask))) if self.ask else Verdict("allow")
