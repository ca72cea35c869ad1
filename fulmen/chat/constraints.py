"""Constraints of an answer as a grammar: a schema, an expression, a choice, strict tools.

Everything that cannot be followed is refused here, before the answer starts, in one sentence.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from llguidance import LLMatcher

from fulmen.chat.arguments import check_depth
from fulmen.chat.call_grammar import StrictTool, check_name, free_tool
from fulmen.chat.expressions import literal, with_layout
from fulmen.chat.format import ChatFormat
from fulmen.chat.grammar import Grammar, HeldCalls
from fulmen.chat.messages import Tool
from fulmen.chat.schemas import Document
from fulmen.chat.validation import as_json
from fulmen.chat.vocabulary import Vocabulary
from fulmen.sampling import SamplingParams, shown

CIRCULAR: Final = "circular references with sibling keys"
"""Words of llguidance's error for a recursive schema that has to hold at once with another one"""


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
                answer = make(vocabulary, given)
            except ValueError as error:
                raise ValueError(f"{name} cannot be followed: {error}") from None
            _check_beginning(vocabulary, answer, name, format)
    if limits_calls(params, format, tools):
        assert format is not None
        calls = _held_calls(vocabulary, params, format, tools)
    if answer is None and calls is None:
        return None
    return Grammar(vocabulary, format, answer, calls)


def limits_calls(
    params: SamplingParams, format: ChatFormat | None, tools: tuple[Tool, ...]
) -> bool:
    """Return True if params limit the calls of a completion that may have some.

    Raises ValueError for a call that is required and cannot come, or an allowed tool that is not
    declared.
    """
    declared = [tool.name for tool in tools]
    unknown = [name for name in params.allowed_tools if name not in declared]
    if params.tool_choice == "required":
        if format is None:
            raise ValueError(
                "tool_choice is required, text that is continued as it stands has no tool calls"
            )
        if format.calls is None:
            raise ValueError(
                f"tool_choice is required, the format {format.name} does not tell tool calls from "
                "text"
            )
        if not tools:
            raise ValueError("tool_choice is required, and no tool is declared")
    if unknown:
        names = f"only {shown(', '.join(declared))[1:-1]} are" if declared else "no tool is"
        raise ValueError(f"allowed_tools has {shown(unknown[0])} in it, {names} declared")
    if format is None or not params.limits_calls:
        return False
    if params.strict_tools and tools:  # a format without calls says so when it is asked for them
        return True
    return format.calls is not None and (bool(tools) or params.tool_choice == "none")


def _held_calls(
    vocabulary: Vocabulary, params: SamplingParams, format: ChatFormat, tools: tuple[Tool, ...]
) -> HeldCalls:
    if params.tool_choice == "none":
        return HeldCalls(matcher=None)
    if params.allowed_tools:
        tools = tuple(tool for tool in tools if tool.name in params.allowed_tools)
    if not params.strict_tools:
        for tool in tools:
            check_name(tool)
        tools = tuple(map(free_tool, tools))
    return HeldCalls(
        matcher=_calls(vocabulary, format, tools, params.max_calls),
        is_required=params.tool_choice == "required",
        is_one_block=params.max_calls is not None,
        has_plain_values=not params.strict_tools,
    )


def _json_schema(vocabulary: Vocabulary, given: str) -> LLMatcher:
    raw = json.loads(given)
    document = Document(raw)
    schema = as_json(document, document.root)
    if not document.choices(document.root):
        raise ValueError(document.problems[0])
    if document.problems:  # llguidance may follow what the grammars of calls cannot
        schema = raw
    elif isinstance(raw, Mapping) and "x-guidance" in raw:
        schema["x-guidance"] = raw["x-guidance"]
    try:
        return vocabulary.matcher(_json_grammar(schema))
    except ValueError:
        if document.problems:
            raise ValueError(document.problems[0]) from None
        raise


def _json_grammar(schema: Any) -> str:
    layout = with_layout(schema) if isinstance(schema, Mapping) else schema
    grammar: str = LLMatcher.grammar_from_json_schema(layout)
    return grammar


def _regex(vocabulary: Vocabulary, given: str) -> LLMatcher:
    return vocabulary.matcher(LLMatcher.grammar_from_regex(given))


def _choice(vocabulary: Vocabulary, given: tuple[str, ...]) -> LLMatcher:
    return _regex(vocabulary, "|".join(map(literal, given)))


_ANSWERS: Final[dict[str, Callable[[Vocabulary, Any], LLMatcher]]] = {
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
        document = Document(given)
        # What it says apart from descriptions, examples and the like, if it can be read
        meant = given if document.problems else as_json(document, document.root)
        texts = [json.dumps(meant, ensure_ascii=False)]
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


def _calls(
    vocabulary: Vocabulary, format: ChatFormat, tools: tuple[Tool, ...], max_calls: int | None
) -> LLMatcher:
    """Return a matcher of calls; the error of a tool that cannot be followed names it."""
    for tool in tools:
        name = shown(tool.name)[1:-1]
        try:
            check_depth(tool.parameters)
            for argument, schema in StrictTool(tool).limited_values():
                try:
                    vocabulary.matcher(_json_grammar(schema))
                except ValueError as error:
                    raise ValueError(f"{argument} has limits that fail: {error}") from None
        except ValueError as error:
            raise ValueError(
                f"strict_tools: the schema of tool {name} cannot be followed: {error}"
            ) from None
    grammar = format.call_grammar(tools, vocabulary.tokenizer, max_calls=max_calls)
    try:
        return vocabulary.matcher(grammar)
    except ValueError as error:
        for tool in tools if len(tools) > 1 else ():
            _calls(vocabulary, format, (tool,), max_calls)  # raises if this is the one
        names = shown(", ".join(tool.name for tool in tools))[1:-1]
        reason = "it is too large for the matcher, or allows no call"
        if CIRCULAR in str(error):
            reason = "a definition that refers to itself has to hold at once with another schema"
        raise ValueError(
            f"strict_tools: the schema of tool {names} cannot be followed: {reason}"
        ) from None
