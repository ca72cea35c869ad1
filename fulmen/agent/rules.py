"""Rules of consent: patterns for commands and paths, in three lists, and how they match.

A rule is a tool's name with or without a pattern: `grep`, `bash(pytest *)`, `edit(src/**)`,
`read(~/.ssh/**)`. What is matched may be known in part only, such as `git $X`: a text holds marks
where any text may stand, and a pattern matches it surely, possibly or not at all. An allow rule
must match surely; a deny rule that matches possibly is a question.

- `*` in a command stands for any text. At the end, ` *` stands for arguments or none, and `:*`
  also for more of the last word: `npm run test:*` covers `npm run test:unit`.
- Paths are relative to the workspace; `/` begins an absolute one, `~/` one at home. `*` and `?`
  stay within a name, `**` crosses folders, a name without a slash is meant at any depth, and a
  folder stands for all below it.
- `web_fetch(HOST)` and `task(AGENT)` match like a command; `mcp__SERVER` names all of its tools.
- A backslash takes the meaning from the character behind it.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Final, Literal

from fulmen.agent.outside import SUBJECTS
from fulmen.files import shorten

ANY: Final = "\ufdd0"
"""Mark in a text: any characters may stand here"""
NAME: Final = "\ufdd1"
"""Mark in a text: any characters but a slash"""
WORDS: Final = "\ufdd2"
"""Mark in a text: nothing, or a space and any characters"""
BELOW: Final = "\ufdd3"
"""Mark in a text: any characters that lead to no folder above"""
MARKS: Final = frozenset((ANY, NAME, WORDS, BELOW))

Match = Literal["no", "possibly", "surely"]
Decision = Literal["allow", "ask", "deny"]

MAX_PATTERN: Final = 4096
"""Longest pattern. A remembered command is one, so this is also the longest that is remembered."""
MAX_RULES: Final = 10_000
_MAX_FOLDER_STARS: Final = 4
_TOOL = re.compile(r"[A-Za-z_][\w.-]{0,127}|\*")
_SAME_TOOL: Final = {"run": "bash", "write": "edit"}
PATTERNED: Final = ("bash", "read", "edit")
"""Tools for commands and paths; `run` is another name of `bash`, `write` of `edit`"""


def tool_of(name: str) -> str:
    """Return the name that rules know a tool by."""
    return _SAME_TOOL.get(name, name)


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """A tool, and what of its calls is meant: a pattern, or None for all of them."""

    tool: str
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None:
            _compiled(self.tool, self.pattern)

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Read a rule as people write it. Raises ValueError that names one which cannot be read."""
        stripped = text.strip()
        tool, bracket, rest = stripped.partition("(")
        where = f"the rule {shorten(repr(text))}"
        if len(stripped) > MAX_PATTERN:
            raise ValueError(f"{where} is longer than {MAX_PATTERN:,} characters")
        if not _TOOL.fullmatch(tool):
            raise ValueError(f"{where} must begin with a tool's name, such as bash(git status)")
        tool = tool_of(tool.lower() if tool.lower() in (*PATTERNED, *_SAME_TOOL) else tool)
        if not bracket:
            return cls(tool)
        if not rest.endswith(")"):
            raise ValueError(f"{where} has no closing bracket at its end")
        if tool not in (*PATTERNED, *SUBJECTS):
            known = ", ".join((*PATTERNED, *SUBJECTS))
            raise ValueError(f"{where} has a pattern, which only {known} take")
        try:
            return cls(tool, rest[:-1])
        except ValueError as error:
            raise ValueError(f"{where} cannot be read: {error}") from None

    def match(self, texts: Iterable[str]) -> Match:
        """Return the best match of the pattern with any spelling of one command or path."""
        if self.pattern is None:
            return "surely"
        found: set[Match] = set()
        for nfa in _compiled(self.tool, self.pattern):
            found |= {nfa.match(text) for text in texts}
        return "surely" if "surely" in found else "possibly" if "possibly" in found else "no"

    def is_exact(self) -> bool:
        """Return whether the pattern is one command or path, without a star."""
        return self.pattern is not None and not re.search(
            r"[*?]", re.sub(r"\\.", "", self.pattern, flags=re.S)
        )

    def __str__(self) -> str:
        return self.tool if self.pattern is None else f"{self.tool}({self.pattern})"


def exact(text: str) -> str:
    """Return the pattern that matches one text only."""
    return re.sub(r"([\\*?])", r"\\\1", text)


@dataclass(frozen=True, slots=True)
class Rules:
    """Three lists of rules. Deny beats ask, ask beats allow; their order says nothing."""

    allow: frozenset[Rule] = field(default_factory=frozenset)
    ask: frozenset[Rule] = field(default_factory=frozenset)
    deny: frozenset[Rule] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        if len(self.allow) + len(self.ask) + len(self.deny) > MAX_RULES:
            raise ValueError(f"at most {MAX_RULES:,} rules are read")

    @classmethod
    def parse(
        cls, allow: Iterable[str] = (), *, ask: Iterable[str] = (), deny: Iterable[str] = ()
    ) -> "Rules":
        """Read rules as people write them. Raises ValueError that names the first unreadable."""
        lists = (frozenset(map(Rule.parse, texts)) for texts in (allow, ask, deny))
        return cls(*lists)

    def __or__(self, other: "Rules") -> "Rules":
        return Rules(self.allow | other.allow, self.ask | other.ask, self.deny | other.deny)

    def narrowing(self) -> "Rules":
        """Return the rules that only take away: ask and deny."""
        return Rules(frozenset(), self.ask, self.deny)

    def narrowest(self, tool: str, texts: Iterable[str]) -> tuple[Decision, Rule] | None:
        """Return what deny and ask rules say of a command, path or tool, and which one says it.

        texts  the spellings of the command or path; none for a tool that has no patterns
        """
        texts = tuple(texts)
        found: tuple[Decision, Rule] | None = None
        for rule in sorted(self.deny, key=str):
            match = rule.match(texts) if rule.tool in (tool, "*") else "no"
            if match == "surely":
                return "deny", rule
            if match == "possibly":
                found = found or ("ask", rule)
        for rule in sorted(self.ask, key=str):
            if found is None and rule.tool in (tool, "*") and rule.match(texts) != "no":
                found = "ask", rule
        return found

    def allowing(self, tool: str, texts: Iterable[str] = ()) -> list[Rule]:
        """Return the allow rules that surely match a command, path or tool."""
        texts = tuple(texts)
        return [
            rule
            for rule in self.allow
            if rule.tool in (tool, "*") and rule.match(texts) == "surely"
        ]


# Matching


@dataclass(frozen=True, slots=True)
class _Automaton:
    """A pattern as states 0..n, one bit each: state i has matched the first i tokens.

    A token is a character, or loops: `any` on every character, `star` on all but a slash. A tail
    is an end that a space (or more) may follow.
    """

    advance: dict[str, int]
    one: int
    star: int
    any: int
    tail: int
    accept: int

    def match(self, text: str) -> Match:
        surely = possibly = self._close(1)
        for char in text:
            if char in MARKS:
                loops = self.any | (self.star if char == NAME else 0)
                surely = self._close(surely & loops) | (surely & self.tail if char == WORDS else 0)
                possibly = self._reach(possibly, within=char == NAME)
            else:
                surely = self._step(surely, char)
                possibly = self._step(possibly, char)
            if not possibly:
                return "no"
        if surely & self.accept:
            return "surely"
        return "possibly" if possibly & self.accept else "no"

    def _step(self, states: int, char: str) -> int:
        within = char != "/"
        moved = states & (self.advance.get(char, 0) | (self.one if within else 0))
        stayed = states & (self.any | (self.star if within else 0))
        return self._close(moved << 1 | stayed)

    def _reach(self, states: int, *, within: bool) -> int:
        """Return all states that some text leads to; `within` a name, text without a slash."""
        every = (1 << self.accept.bit_length()) - 1
        if not within:  # any text takes the lowest state to all later ones
            return states and -(states & -states) & every
        slash = self.advance.get("/", 0)
        while (more := (states | (states & ~slash) << 1) & every) != states:
            states = more
        return states

    def _close(self, states: int) -> int:
        loops = self.any | self.star
        while (more := states | (states & loops) << 1) != states:
            states = more
        return states


def _automaton(tokens: list[str], tail: str = "") -> _Automaton:
    """Make the states of tokens: a character, or "\\0?", "\\0*" and "\\0**" for what loops.

    tail  characters that may follow the end, with any text behind them
    """
    if tail:
        tokens = [*tokens, "\0tail", "\0**"]
    advance: dict[str, int] = {}
    kinds = {"\0?": 0, "\0*": 0, "\0**": 0, "\0tail": 0}
    for place, token in enumerate(tokens):
        if token in kinds:
            kinds[token] |= 1 << place
        else:
            advance[token] = advance.get(token, 0) | 1 << place
    for char in tail:
        advance[char] = advance.get(char, 0) | kinds["\0tail"]
    accept = 1 << len(tokens) | kinds["\0tail"]
    return _Automaton(advance, kinds["\0?"], kinds["\0*"], kinds["\0**"], kinds["\0tail"], accept)


@lru_cache(maxsize=MAX_RULES)
def _compiled(tool: str, pattern: str) -> tuple[_Automaton, ...]:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern has at most {MAX_PATTERN:,} characters")
    if not pattern.strip():
        raise ValueError("the pattern is empty, a tool's name alone covers all its calls")
    if MARKS & set(pattern) or "\0" in pattern:
        raise ValueError("it holds a character that no text has")
    if not re.fullmatch(r"(?:[^\\]|\\.)*", pattern, re.S):
        raise ValueError("a backslash at its end has nothing behind it")
    return _path(pattern) if tool in ("read", "edit") else (_command(pattern),)


def _tokens(pattern: str, wild: dict[str, str]) -> list[str]:
    pieces = re.findall(r"\\.|\*\*|.", pattern, re.S)
    return [wild.get(piece, piece[-1]) for piece in pieces]


def _command(pattern: str) -> _Automaton:
    wild = {"*": "\0**", "**": "\0**"}
    for end, tail in ((":*", " :"), (" *", " ")):
        if pattern.endswith(end) and not pattern.endswith("\\" + end):
            return _automaton(_tokens(pattern.removesuffix(end), wild), tail)
    return _automaton(_tokens(pattern, wild))


def _path(pattern: str) -> tuple[_Automaton, ...]:
    bare = re.sub(r"\\.", "", pattern, flags=re.S)
    for char in "[]{}":
        if char in bare:
            raise ValueError(f"a path's pattern has no {char}, write \\{char} for the character")
    if bare.startswith("!"):
        raise ValueError("a pattern that begins with ! has no meaning here, use another list")
    if ".." in bare.split("/"):
        raise ValueError("a pattern has no .., begin it with / for a place outside the workspace")
    if re.search(r"[^/]\*\*|\*\*[^/]", bare):
        raise ValueError("** stands between slashes, as in src/**")
    text = re.sub(r"(?<!^)/+", "/", pattern.removesuffix("/")).removeprefix("./") or "/"
    if "/" not in text and text not in ("**", "~"):
        text = f"**/{text}"
    parts = re.split(r"((?:^|(?<=/))\*\*/)", text)
    if len(parts) // 2 > _MAX_FOLDER_STARS:
        raise ValueError(f"at most {_MAX_FOLDER_STARS} folders may be **")
    wild = {"*": "\0*", "?": "\0?", "**": "\0**"}
    found = []
    for kept in product((True, False), repeat=len(parts) // 2):
        chosen = [part for place, part in enumerate(parts) if place % 2 == 0 or kept[place // 2]]
        found.append(_automaton(_tokens("".join(chosen), wild), "/"))
    return tuple(found)
