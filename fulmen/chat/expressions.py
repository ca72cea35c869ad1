"""Expressions (Rust's syntax) and rules (llguidance's Lark) that grammars are made of."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any, Final

from llguidance import LLMatcher, LLTokenizer

from fulmen.chat.tokenizer import Tokenizer
from fulmen.sampling import shown

INTEGER: Final = "-?(0|[1-9][0-9]*)"
NUMBER: Final = rf"{INTEGER}(\.[0-9]+)?([eE][+-]?[0-9]{{1,2}})?"
_WHITESPACE: Final = r" |\n[ \t]{0,64}"
"""White space between the tokens of JSON: without a bound, a model may never stop indenting."""
_ERRORS: Final = (
    ("look-around", "it looks ahead or back"),
    ("lookarounds", "it has ^, $ or \\b inside"),
    ("backreferences", "it refers back to a group"),
    ("unclosed", "a bracket is not closed"),
    ("unopened", "a bracket is not opened"),
    ("too ", "it is too large"),
)
"""Words of llguidance's errors, and ours"""


def whole_text(pattern: object) -> str:
    """Return an expression for the whole texts in which a JSON Schema's `pattern` matches.

    Raises ValueError for one that llguidance cannot follow.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"it is {shown(pattern)}, it must be text")
    if not is_text(pattern):
        raise ValueError(f"{shown(pattern)}: it has half a surrogate pair, which is no text")
    branches = []
    for branch in _branches(pattern):
        flags = re.match(r"\(\?[a-zA-Z]+\)", branch)
        body = branch[flags.end() :] if flags else branch
        start = re.match(r"\^|\\A", body)
        body = body[start.end() :] if start else body
        end = re.search(r"(?<!\\)(?:\\\\)*(\$|\\[zZ])$", body)
        body = body[: end.start(1)] if end else body
        body = f"{flags.group()[:-1]}:{body})" if flags else f"(?:{body})"
        branches.append(("" if start else "(?s:.*)") + body + ("" if end else "(?s:.*)"))
    whole = f"(?:{'|'.join(branches)})"
    check(whole, pattern)
    return whole


def is_text(text: str) -> bool:
    """Return False for half a surrogate pair, which no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check(expression: str, given: str) -> None:
    """Raise ValueError, with the expression as it was given, if llguidance cannot follow it."""
    error = LLMatcher.validate_grammar(LLMatcher.grammar_from_regex(expression))
    if error:
        kind = next((text for word, text in _ERRORS if word in error), "it is not valid")
        raise ValueError(f"{shown(given)}: {kind}")


def matches(expression: str, text: str) -> bool:
    """Return True if the whole text matches, in time linear in its length."""
    matcher = _byte_matcher(LLMatcher.grammar_from_regex(expression)).deep_copy()
    data = list(text.encode("utf-8", "surrogatepass"))
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def have_common_text(expressions: Iterable[str]) -> bool:
    """Return False if no text matches all the expressions."""
    every = " & ".join(in_lark(f"(?:{expression})") for expression in expressions)
    matcher = _byte_matcher(f"start: ALL\nALL: {every}").deep_copy()
    matcher.compute_bitmask()
    return not matcher.get_error().startswith("NoExtension")


@lru_cache(maxsize=256)
def _byte_matcher(grammar: str) -> LLMatcher:
    return LLMatcher(_byte_tokenizer(), grammar, log_level=0)


@cache
def _byte_tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")


def literal(text: str) -> str:
    """Return an expression for exactly this text."""
    return "".join(c if c.isalnum() or ord(c) > 127 else f"\\x{{{ord(c):x}}}" for c in text)


def in_lark(expression: str) -> str:
    """Return an expression as a terminal of llguidance's Lark."""
    escaped = re.sub(r"\\.|/", lambda found: r"\/" if found[0] == "/" else found[0], expression)
    return f"/{escaped.replace(chr(10), chr(92) + 'n').replace(chr(13), chr(92) + 'r')}/"


def text_without(tags: Iterable[str]) -> str:
    """Return an expression for text that holds none of the tags, each of which has one `<`, first.

    It is spelled out: llguidance's `~` beside a length runs out of memory after a few words.
    """
    return f"[^<]*(<{_not_starting_with([tag[1:] for tag in tags])})*"


def _not_starting_with(rests: list[str]) -> str:
    """Return an expression for text without `<` that starts with none of the rests."""
    heads: dict[str, list[str]] = {}
    for rest in rests:
        heads.setdefault(rest[0], []).append(rest[1:])
    choices = [f"[^<{''.join(map(literal, heads))}][^<]*"]
    choices += [
        literal(head) + _not_starting_with(tails) for head, tails in heads.items() if all(tails)
    ]
    return f"({'|'.join(choices)})?"


def integers(low: int | None, high: int | None) -> str:
    """Return an expression for the whole numbers from low to high, None being no bound."""
    choices = []
    if high is None or high >= 0:
        choices.append(_digits(max(low or 0, 0), high))
    if low is None or low < 0:
        negative = _digits(max(-high, 1) if high is not None and high < 0 else 1, low and -low)
        choices.append(f"-({negative})")
    return f"({'|'.join(choices)})"


def _digits(low: int, high: int | None) -> str:
    """Return an expression for the numbers from low to high, neither below 0."""
    choices = []
    while high is None or low <= high:
        size = len(str(low))
        if high is None and low in (0, 1, 10 ** (size - 1)):
            rest = f"[1-9][0-9]{{{size - 1},}}"
            choices += ["0", rest] if low == 0 else [rest]
            break
        last = 10**size - 1 if high is None else min(10**size - 1, high)
        choices.append(_same_length(str(low), str(last)))
        low = last + 1
    return "|".join(choices)


def _same_length(low: str, high: str) -> str:
    """Return an expression for the numbers between two of as many digits."""
    if not low:
        return ""
    if low[0] == high[0]:
        return low[0] + _same_length(low[1:], high[1:])
    rest = len(low) - 1
    first, last = int(low[0]), int(high[0])
    choices = []
    if low[1:] != "0" * rest:
        choices.append(low[0] + _same_length(low[1:], "9" * rest))
        first += 1
    if high[1:] != "9" * rest:
        choices.append(high[0] + _same_length("0" * rest, high[1:]))
        last -= 1
    if first <= last:
        choices.append(f"[{first}-{last}]" + f"[0-9]{{{rest}}}" * bool(rest))
    return f"({'|'.join(choices)})"


def _branches(pattern: str) -> list[str]:
    """Return the alternatives of an expression that are not in a group."""
    branches, depth, start, place = [], 0, 0, 0
    class_start: int | None = None
    while place < len(pattern):
        char = pattern[place]
        if char == "\\":
            place += 1
        elif class_start is not None:
            if char == "]" and pattern[class_start + 1 : place] not in ("", "^"):
                class_start = None
        elif char == "[":
            class_start = place
        elif char in "()":
            depth += 1 if char == "(" else -1
        elif char == "|" and depth == 0:
            branches.append(pattern[start:place])
            start = place + 1
        place += 1
    return [*branches, pattern[start:]]


def text_rule(text: str, tokenizer: Tokenizer | None = None) -> str:
    """Return a rule, in Lark, for this text; with a tokenizer, also for its added token."""
    written = json.dumps(text)
    token_id = None if tokenizer is None else tokenizer.token_id(text)
    return written if token_id is None else f"({written} | <[{token_id}]>)"


def repeated(rule: str, most: int | None) -> str:
    """Return a rule for one of these or more, at most so many."""
    return f"({rule})+" if most is None else f"({rule}){{1,{most}}}"


def json_rule(schema: Mapping[str, Any]) -> str:
    """Return a rule for JSON that the schema allows."""
    return f"%json {json.dumps(with_layout(schema))}"


def with_layout(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema that also says how JSON is laid out; ValueError for a strange x-guidance."""
    own = schema.get("x-guidance", {})
    if not isinstance(own, Mapping):
        raise ValueError(f"x-guidance is {shown(own)}, it must be an object")
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE, **own}}
