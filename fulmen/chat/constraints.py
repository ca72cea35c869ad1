"""Constraints of an answer as a grammar: a schema, an expression, a choice, strict tools.

Everything that cannot be followed is refused here, before the answer starts, in one sentence.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from llguidance import LLMatcher

from fulmen.chat.arguments import check_depth
from fulmen.chat.expressions import literal
from fulmen.chat.format import ChatFormat
from fulmen.chat.grammar import Grammar
from fulmen.chat.messages import Tool
from fulmen.chat.schemas import Document
from fulmen.chat.tokenizer import Tokenizer
from fulmen.chat.validation import as_json
from fulmen.chat.vocabulary import Vocabulary
from fulmen.sampling import SamplingParams, shown

_WHITESPACE: Final = r" |\n[ \t]{0,64}"
"""White space between the tokens of JSON: without a bound, a model may never stop indenting."""


def make_grammar(
    vocabulary: Vocabulary,
    params: SamplingParams,
    *,
    format: ChatFormat | None = None,
    tools: tuple[Tool, ...] = (),
) -> Grammar | None:
    """Return the grammar of one completion; None where nothing is constrained.

    format  tells the thought and the calls of the completion from its content; None for plain text

    Raises ValueError for a schema, expression, choice or tool that no grammar can follow.
    """
    answer = calls = None
    for name, make in _ANSWERS.items():
        given = getattr(params, name)
        if given not in (None, ()):
            _check_text(name, given, format)
            try:
                answer = vocabulary.matcher(make(given))
            except ValueError as error:
                raise ValueError(f"{name} cannot be followed: {error}") from None
            _check_beginning(vocabulary, answer, name, format)
    if params.strict_tools and tools and format is not None:
        calls = _calls(vocabulary, format, tools)
    if answer is None and calls is None:
        return None
    return Grammar(vocabulary, format, answer, calls)


def _json_schema(given: str) -> str:
    raw = json.loads(given)
    document = Document(raw)
    if document.problems:
        raise ValueError(document.problems[0])
    schema = as_json(document, document.root)
    if isinstance(raw, Mapping) and "x-guidance" in raw:
        schema["x-guidance"] = raw["x-guidance"]
    grammar: str = LLMatcher.grammar_from_json_schema(_with_layout(schema))
    return grammar


def _regex(given: str) -> str:
    grammar: str = LLMatcher.grammar_from_regex(given)
    return grammar


def _choice(given: tuple[str, ...]) -> str:
    return _regex("|".join(map(literal, given)))


_ANSWERS: Final[dict[str, Callable[[Any], str]]] = {
    "json_schema": _json_schema,
    "regex": _regex,
    "choice": _choice,
}
"""Grammar that each constraint of an answer becomes"""


def _check_text(name: str, given: Any, format: ChatFormat | None) -> None:
    """Raise ValueError for a constraint that asks for text which no answer can hold."""
    if name == "json_schema":
        given = json.loads(given)
        check_depth(given)
        texts = [json.dumps(given, ensure_ascii=False)]
    else:
        texts = [given] if isinstance(given, str) else list(given)
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{name} has half a surrogate pair in it, which is no text: {shown(text)}"
            ) from None
        if format is None:
            continue
        tag = next((tag for tag in format.tags if tag in text), None)
        if tag is not None:
            raise ValueError(f"{name} has {tag} in it, no answer of {format.name} can hold that")
        if name == "choice" and format.thinking is not None and text.startswith("\n"):
            raise ValueError(
                f"choice has {shown(text)} in it, no answer of {format.name} can begin with a "
                "newline"
            )


def _check_beginning(
    vocabulary: Vocabulary, answer: LLMatcher, name: str, format: ChatFormat | None
) -> None:
    """Raise ValueError if every text of a grammar begins with the newlines that are layout."""
    if format is None or format.thinking is None:
        return
    mask = vocabulary.mask(answer.deep_copy())
    mask[vocabulary.starting_with(b"\n")] = False
    if not mask.any():
        raise ValueError(
            f"{name} begins with a newline, no answer of {format.name} can begin with one"
        )


def _calls(vocabulary: Vocabulary, format: ChatFormat, tools: tuple[Tool, ...]) -> LLMatcher:
    """Return a matcher of calls; the error of a tool that cannot be followed names it."""
    for tool in tools:
        try:
            tool.name.encode()
            check_depth(tool.parameters)
        except ValueError as error:
            raise ValueError(
                f"strict_tools: the schema of tool {shown(tool.name)[1:-1]} cannot be followed: "
                f"{error}"
            ) from None
    grammar = format.call_grammar(tools, vocabulary.tokenizer)
    try:
        return vocabulary.matcher(grammar)
    except ValueError as error:
        for tool in tools if len(tools) > 1 else ():
            _calls(vocabulary, format, (tool,))  # raises if this is the one
        names = ", ".join(tool.name for tool in tools)
        reason = str(error) if "large" in str(error) else "it asks for what no call can hold"
        raise ValueError(
            f"strict_tools: the schema of tool {shown(names)[1:-1]} cannot be followed: {reason}"
        ) from None


def text_rule(text: str, tokenizer: Tokenizer | None = None) -> str:
    """Return a rule, in Lark, for this text; with a tokenizer, also for its added token."""
    written = json.dumps(text)
    token_id = None if tokenizer is None else tokenizer.token_id(text)
    return written if token_id is None else f"({written} | <[{token_id}]>)"


def json_rule(schema: Mapping[str, Any]) -> str:
    """Return a rule for JSON that the schema allows."""
    return f"%json {json.dumps(_with_layout(schema))}"


def _with_layout(schema: Mapping[str, Any]) -> dict[str, Any]:
    own = schema.get("x-guidance", {})
    return {**schema, "x-guidance": {"whitespace_pattern": _WHITESPACE, **own}}
