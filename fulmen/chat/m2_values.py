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
from fulmen.chat.parameters import Parameters

_OPENING = {END_PARAMETER: PARAMETER, END_INVOKE: INVOKE, END_TOOL_BLOCK: TOOL_BLOCK}
_ANY_TAG = re.compile(
    "|".join((*_OPENING, TOOL_BLOCK, rf"{INVOKE}(?=[\s>])", rf"{PARAMETER}(?=[\s>])"))
)
_JSON_SPACE = " \t\n\r"
_BRACKET_OR_QUOTE = re.compile(r'["{}\[\]]')
_QUOTE_OR_BACKSLASH = re.compile(r'["\\]')


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

    def __init__(self, name: str, parameters: Parameters) -> None:
        self.name = name
        self.parameters = parameters
        self.declared = set(self.parameters.names) if self.parameters.names else None
        self.required = self.parameters.required
        self.allows_others = self.parameters.is_open

        self.values: dict[str, Any] = {}
        self.given: set[str] = set()
        self.undeclared: list[str] = []
        self.is_odd = False  # a tag is missing, or text is in no parameter
        self.keeps_tags = False  # a value holds tags that may have meant its end
        self.may_be_text = False  # of a value in a call before, whose closing tag is in this one
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
        if self.may_be_text:
            return f"it holds {END_PARAMETER} and no parameter that it closes"
        if self.is_odd and self.keeps_tags:
            return "it lacks tags, and has others in a value"
        return None


class OpenTags:
    """Opening tags of a text that are not closed yet; each question takes constant time."""

    def __init__(self, *tags: str) -> None:
        self._tags: list[str] = []
        self._places: dict[str, list[int]] = {tag: [] for tag in _OPENING.values()}
        for tag in tags:
            self.open(tag)

    def __bool__(self) -> bool:
        return bool(self._tags)

    @property
    def last(self) -> str | None:
        """Tag that was opened last of all."""
        return self._tags[-1] if self._tags else None

    def has(self, tag: str) -> bool:
        return bool(self._places[tag])

    def has_around(self, tag: str, inner: str) -> bool:
        """Return True if a tag stands before the last one of another kind."""
        return self.has(tag) and self.has(inner) and self._places[tag][0] < self._places[inner][-1]

    def open(self, tag: str) -> None:
        self._places[tag].append(len(self._tags))
        self._tags.append(tag)

    def close(self, tag: str) -> None:
        """Close the last one of a tag, and all that were opened in it."""
        while self._tags:
            last = self._tags.pop()
            self._places[last].pop()
            if last == tag:
                return

    def follow(self, tag: str) -> bool:
        """Open or close a tag; return False for a closing one that has nothing to close."""
        opening = _OPENING.get(tag)
        if opening is None:
            self.open(tag)
            return True
        is_open = self.has(opening)
        if is_open:
            self.close(opening)
        return is_open

    def clear(self) -> None:
        self._tags.clear()
        for places in self._places.values():
            places.clear()


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
        self.elements = OpenTags()  # opening tags inside the value that are not closed yet
        self.doubt: Doubt | None = None
        self.json = JsonEnd() if self.is_json else None

    def read(self, text: str) -> None:
        """Note text of the value, of a doubt or not, for the end of its JSON."""
        if self.json is not None:
            self.json.read(text)
            if self.json.is_whole:  # the elements were text of its strings
                self.elements.clear()

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
        self.elements.follow(tag)

    def closes_element(self, tag: str) -> bool:
        """Return True if a closing tag may belong to an element inside the value."""
        return self.elements.has(_OPENING[tag])

    def weigh(self, verdict: Verdict) -> Verdict:
        """Return the verdict on a tag in the light of the value's types and its text so far."""
        if verdict in (Verdict.WAIT, Verdict.TEXT):
            return verdict
        if self.is_scalar:
            return Verdict.END
        if self.json is None:
            return verdict
        if self.json.may_end:
            return Verdict.END
        return Verdict.MAYBE if verdict is Verdict.END else verdict


class JsonEnd:
    """Search for the end of an object or an array, in a text that comes in pieces.

    Brackets and strings are counted as the pieces come. Where the last bracket closes, the text is
    checked once: if it is no JSON there, no more text can make it JSON.
    """

    def __init__(self) -> None:
        self.is_open = False
        """True from the first bracket to the last"""
        self.is_whole = False
        """True after the last bracket, until other text follows"""
        self._is_blank = True
        self._pieces: list[str] = []
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self._is_broken = False

    @property
    def may_end(self) -> bool:
        """True unless an object or an array goes on, or is not JSON."""
        return not (self.is_open or self._is_broken)

    def read(self, text: str) -> None:
        """Read the next piece."""
        if self._is_blank and text.strip():
            self._is_blank = False
            self.is_open = text.lstrip().startswith(("{", "["))
        rest = text
        if self._is_blank or self.is_open:
            end = self._find_end(text) if self.is_open else None
            self._pieces.append(text[:end])
            if end is None:
                return
            self._close()
            rest = text[end:]
        if self.is_whole and rest.strip(_JSON_SPACE):
            self.is_whole, self._is_broken = False, True

    def _find_end(self, text: str) -> int | None:
        """Return the place after the bracket that closes the first one."""
        at = 0
        while at < len(text):
            if self._is_escaped:
                self._is_escaped = False
                at += 1
                continue
            mark = _QUOTE_OR_BACKSLASH if self._is_in_string else _BRACKET_OR_QUOTE
            found = mark.search(text, at)
            if found is None:
                return None
            at = found.end()
            char = found.group()
            if char == "\\":
                self._is_escaped = True
            elif char == '"':
                self._is_in_string = not self._is_in_string
            else:
                self._depth += 1 if char in "{[" else -1
                if self._depth == 0:
                    return at
        return None

    def _close(self) -> None:
        text = "".join(self._pieces)
        self._pieces.clear()
        self.is_open = False
        try:
            load_json(text)
        except ValueError:
            self._is_broken = True
        else:
            self.is_whole = True


@dataclass(slots=True)
class Doubt:
    """First tag of a value that may be its end, while a sure end may still come."""

    tag: str
    verdict: Verdict
    is_in_element: bool
    """True if the tag may close an element inside the value"""
    is_in_json: bool
    """True if an object or an array is open before the tag"""
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
        if self.is_in_json:  # a bracket is missing, or text after the last tag is in the value
            return not rest[_end_of_tags(rest) :].strip()
        if self.tag == END_PARAMETER and not self.is_in_element:
            return True
        # A closing tag is missing, or an opening one is prose. Text after the last call may then be
        # the rest of the value.
        _, end, after = rest.rpartition(END_TOOL_BLOCK)
        return not end or not after.strip()


def _end_of_tags(text: str) -> int:
    """Return the end of the last closing tag, or 0."""
    return max((text.rfind(tag) + len(tag) for tag in _OPENING if tag in text), default=0)


def _closes_in_order(rest: str) -> bool:
    """Return True if each tag of a text that begins in a value has its place: a closing one closes
    what is open, a parameter is in a call."""
    open_tags = OpenTags(TOOL_BLOCK, INVOKE, PARAMETER)
    for found in _ANY_TAG.finditer(rest):
        tag = found.group()
        if tag == PARAMETER and open_tags.last not in (INVOKE, PARAMETER):
            return False
        if not open_tags.follow(tag):
            return False
    return True


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
    is_end = follower == END_INVOKE and not value.elements.has_around(INVOKE, PARAMETER)
    return Verdict.MAYBE if is_end else Verdict.UNSURE
