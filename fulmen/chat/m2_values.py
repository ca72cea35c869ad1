"""The end of a value in MiniMax-M2's calls: the rules by which a tag ends it or is its text.

Nothing in a value is escaped, so a value may hold any tag of the format: an XML file, an example of
a call, a page about this format. Three things tell the value's own end:

- what follows the tag, past white space: </parameter> ends a value before a parameter that may come
  next, and before the </invoke> that ends the call. Before other text it belongs to the value.
- the schema: no parameter comes twice, and none that the tool neither declares nor allows, unless
  the rest of the call reads well as the model's own, with an argument too many.
- the elements that are open inside the value: </parameter> closes the element of its name in it.

`Verdict` says how sure a tag is. At the first tag that only may be the end, the parser begins a
`Doubt` and reads on. If a sure end comes, all text before it is the value. If the text ends without
one, the value ends where the doubt began, if that leaves a call which is whole; else the call and
all that follows is refused, since what follows may be the value's text.

A value that is a number, a boolean or null ends at the first tag that may be its end, and one that
is an object or an array where its JSON is whole.
"""

import re
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from fulmen.chat.arguments import load_json
from fulmen.chat.m2_tags import (
    END_INVOKE,
    END_PARAMETER,
    END_TOOL_BLOCK,
    INVOKE,
    PARAMETER,
    TOOL_BLOCK,
)
from fulmen.chat.messages import Tool
from fulmen.chat.parameters import Parameters

_OPENING = {END_PARAMETER: PARAMETER, END_INVOKE: INVOKE, END_TOOL_BLOCK: TOOL_BLOCK}
_ANY_TAG = re.compile(
    "|".join((*_OPENING, TOOL_BLOCK, rf"{INVOKE}(?=[\s>])", rf"{PARAMETER}(?=[\s>])"))
)
_MAX_JSON_CHECKS = 8
"""Times that the text of one value is tried as JSON: each reads the whole value"""


class Verdict(Enum):
    """Meaning of a tag in a value."""

    WAIT = auto()
    """Only the next piece can tell."""
    TEXT = auto()
    """Text of the value"""
    END = auto()
    """The end of the value, for sure"""
    MAYBE = auto()
    """The end of the value unless a sure one comes later"""
    UNSURE = auto()
    """Perhaps the end of the value, perhaps text of a value that is cut off or badly written"""


class Call:
    """Call being read, and what its tool declares."""

    def __init__(self, name: str, tool: Tool | None) -> None:
        self.name = name
        self.parameters = Parameters(tool.parameters if tool else {})
        self.declared = set(self.parameters.names) if self.parameters.names else None
        self.required = self.parameters.required
        self.allows_others = self.parameters.is_open

        self.values: dict[str, Any] = {}
        self.given: set[str] = set()
        self.undeclared: list[str] = []
        self.is_odd = False  # a tag is missing, or text is in no parameter
        self.keeps_tags = False  # a value holds tags that may have meant its end
        self.index: int | None = None  # set once its ToolCallStart is out

    def may_come(self, name: str) -> bool:
        """Return True if a parameter of this name may come next."""
        if self.declared is None:
            return True
        return name not in self.given and (self.allows_others or name in self.declared)

    def is_declared(self, name: str) -> bool:
        return self.declared is None or name in self.declared

    def is_known(self, name: str) -> bool:
        """Return True if the tool declares this parameter, or allows any."""
        return self.allows_others or self.is_declared(name)

    def refusal(self) -> str | None:
        """Return why an odd call that has ended may be another than the model meant, or None."""
        missing = sorted(self.required - self.given)
        if missing and (self.is_odd or self.keeps_tags):
            return f"it lacks {', '.join(missing)}"
        if self.is_odd and self.undeclared:
            return f"its tool does not declare {', '.join(self.undeclared)}"
        if self.is_odd and self.keeps_tags:
            return "it lacks tags, and has others in a value"
        return None


class Value:
    """Value of a parameter being read."""

    def __init__(
        self, name: str, opening: str, types: frozenset[str], *, is_repeated: bool
    ) -> None:
        self.name = name
        self.opening = opening  # JSON up to the value: `{"key": ` or `, "key": `
        self.types = types
        self.is_repeated = is_repeated
        self.is_streaming = False
        self.pieces: list[str] = []
        self.kept_tags: dict[str, None] = {}  # tags that may have meant its end, in their order
        self.elements: list[str] = []  # opening tags inside the value that are not closed yet
        self.doubt: Doubt | None = None
        self._num_json_checks = 0

    @property
    def is_json(self) -> bool:
        """True if the value is an object or an array, not text."""
        return "string" not in self.types and bool(self.types & {"object", "array"})

    @property
    def is_scalar(self) -> bool:
        """True if no value of these types can have a tag in it."""
        return not self.types & {"string", "object", "array"}

    def may_stream(self) -> bool:
        """Return True once the value can only be text: it may not still become the word null."""
        if "string" not in self.types or not self.types <= {"string", "null"}:
            return False
        return "null" not in self.types or not "null".startswith("".join(self.pieces).lower())

    def follow(self, tag: str) -> None:
        """Note a tag that is text of the value: it opens or closes an element in it."""
        opening = _OPENING.get(tag)
        if opening is None:
            self.elements.append(tag)
        elif opening in self.elements:
            _pop(self.elements, opening)

    def closes_element(self, tag: str) -> bool:
        """Return True if a closing tag may belong to an element inside the value."""
        return _OPENING[tag] in self.elements

    def weigh(self, verdict: Verdict) -> Verdict:
        """Return the verdict on a tag in the light of the value's types and its text so far."""
        if verdict in (Verdict.WAIT, Verdict.TEXT):
            return verdict
        if self.is_scalar:
            return Verdict.END
        if self.is_json and not self.is_repeated and self._num_json_checks < _MAX_JSON_CHECKS:
            self._num_json_checks += 1
            if self._is_whole_json():
                return Verdict.END
            return Verdict.MAYBE if verdict is Verdict.END else verdict
        return verdict

    def _is_whole_json(self) -> bool:
        """Return False for the beginning of an object or an array, which goes on."""
        text = "".join([*self.pieces, *(self.doubt.pieces if self.doubt else ())])
        try:
            load_json(text)
        except ValueError:
            return not text.lstrip().startswith(("{", "["))
        return True


@dataclass(slots=True)
class Doubt:
    """First tag of a value that may be its end, while a sure end may still come."""

    tag: str
    verdict: Verdict
    is_in_element: bool
    """True if the tag may close an element inside the value"""
    num_raw: int
    """Pieces of the call's text before the tag"""
    pieces: list[str] = field(default_factory=list)
    """Text from the tag on"""
    kept_tags: dict[str, None] = field(default_factory=dict)

    def is_settled_by(self, rest: str) -> bool:
        """Return True if the value may end at the tag, where no sure end came.

        rest  the text from the tag to the end of the answer
        """
        if self.verdict is not Verdict.MAYBE or not _closes_in_order(rest):
            return False
        if self.tag == END_PARAMETER and not self.is_in_element:
            return True
        # A closing tag is missing, or an opening one is prose. Text after the last call may then be
        # the rest of the value.
        _, end, after = rest.rpartition(END_TOOL_BLOCK)
        return not end or not after.strip()


def _closes_in_order(rest: str) -> bool:
    """Return True if each tag of a text that begins in a value has its place: a closing one closes
    what is open, a parameter is in a call."""
    open_tags = [TOOL_BLOCK, INVOKE, PARAMETER]
    for found in _ANY_TAG.finditer(rest):
        opening = _OPENING.get(found.group())
        if opening is None:
            if found.group() == PARAMETER and open_tags[-1:] not in ([INVOKE], [PARAMETER]):
                return False
            open_tags.append(found.group())
        elif opening not in open_tags:
            return False
        else:
            _pop(open_tags, opening)
    return True


def _pop(tags: list[str], tag: str) -> None:
    while tags.pop() != tag:
        pass


def judge_end_parameter(
    value: Value, call: Call, follower: str, name: str | None, *, ends_call: bool
) -> Verdict:
    """Judge </parameter> by the tag that follows it.

    name       of the parameter that follows
    ends_call  an </invoke> that follows stands where a call ends
    """
    is_in_element = value.closes_element(END_PARAMETER)
    if follower == PARAMETER:
        assert name is not None
        if not call.may_come(name):  # an argument too many, unless a value holds such elements
            return Verdict.TEXT if is_in_element else Verdict.MAYBE
        if not value.elements:
            return Verdict.END
        if not is_in_element or name in call.required:
            return Verdict.MAYBE
        return Verdict.UNSURE
    if follower == END_INVOKE and not value.elements:
        return Verdict.END if ends_call else Verdict.MAYBE
    if not is_in_element:
        return Verdict.MAYBE
    outer = value.elements[: _last(value.elements, PARAMETER)]
    is_end = follower == END_INVOKE and INVOKE not in outer
    return Verdict.MAYBE if is_end else Verdict.UNSURE


def _last(tags: list[str], tag: str) -> int:
    return len(tags) - 1 - tags[::-1].index(tag)
