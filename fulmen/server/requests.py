"""Shapes of what requests hold inside their fields, for the published description.

These objects are read by hand, where a sentence can say what is wrong with one; `Shape` tells the
description what that reading takes. A value that is not checked is `Any`, and keys that are not
here are ignored.
"""

from typing import Annotated, Any, Literal, NotRequired, TypeAlias

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

_Object: TypeAlias = dict[str, Any]


class Shape:
    """Annotation of a type: the description shows another one, which says more."""

    def __init__(self, shape: Any) -> None:
        self._shape = shape

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the schema that values are read by."""
        return handler(source)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the schema that is shown."""
        return handler(TypeAdapter(self._shape).core_schema)


# ---- messages -----------------------------------------------------------------------------------

CacheControl = Annotated[Any, Field(description="No effect on the cache, which keeps all prompts")]
Name = Annotated[str, Field(min_length=1)]


class TextPartIn(TypedDict):
    """A text."""

    type: NotRequired[Literal["text", "input_text", "output_text"]]
    text: str
    name: NotRequired[str | None]
    cache_control: NotRequired[CacheControl]


class ThinkingPartIn(TypedDict):
    """A thought of an earlier answer; its signature finds it again."""

    type: Literal["thinking"]
    thinking: str
    signature: NotRequired[Any]


class RedactedThinkingIn(TypedDict):
    """A hidden thought of an earlier answer."""

    type: Literal["redacted_thinking"]
    data: NotRequired[Any]


class ToolUseIn(TypedDict):
    """A call, in a message of the assistant."""

    type: Literal["tool_use"]
    id: NotRequired[str | None]
    name: Name
    input: NotRequired[_Object | str | None]


class ToolResultIn(TypedDict):
    """The result of a call, in a message of the user."""

    type: Literal["tool_result"]
    tool_use_id: NotRequired[str | None]
    content: NotRequired[Any]
    is_error: NotRequired[bool | None]


class ToolReferenceIn(TypedDict):
    """A tool that was found: its definition is shown here."""

    type: Literal["tool_reference"]
    tool_name: NotRequired[Any]
    name: NotRequired[Any]
    definition: NotRequired[Any]


class ToolChangeIn(TypedDict):
    """A tool that is added or taken away."""

    type: Literal["tool_addition", "tool_removal"]
    tool: NotRequired[Any]


Part = str | TextPartIn | ThinkingPartIn | RedactedThinkingIn | ToolUseIn | ToolResultIn
MessagesPart = Part | ToolReferenceIn | ToolChangeIn


class FunctionIn(TypedDict):
    name: Name
    arguments: NotRequired[Annotated[_Object | str | None, Field(description="JSON, or its text")]]


class CallIn(TypedDict):
    """A call of an earlier answer."""

    id: NotRequired[str | None]
    function: FunctionIn


class FlatCallIn(FunctionIn):
    """A call of an earlier answer, without a function inside."""

    id: NotRequired[str | None]
    function: NotRequired[None]


class UserMessageIn(TypedDict):
    """A message of the user or the system."""

    role: Literal["system", "developer", "root", "user"]
    content: NotRequired[str | list[Part] | None]
    name: NotRequired[str | None]
    current_date: NotRequired[str | None]
    current_location: NotRequired[str | None]


class AssistantMessageIn(TypedDict):
    """An earlier answer."""

    role: Literal["assistant"]
    content: NotRequired[str | list[Part] | None]
    reasoning_content: NotRequired[Annotated[Any, Field(description="The thought, as text")]]
    reasoning: NotRequired[Annotated[Any, Field(description="The same")]]
    thinking: NotRequired[Annotated[Any, Field(description="The same")]]
    reasoning_details: NotRequired[
        Annotated[Any, Field(description="The thought as a list of text, signature and data")]
    ]
    tool_calls: NotRequired[list[CallIn | FlatCallIn] | None]


class ToolMessageIn(TypedDict):
    """The result of a call: text, parts with text or output, or any JSON."""

    role: Literal["tool"]
    content: NotRequired[Any]
    tool_call_id: NotRequired[str | None]
    name: NotRequired[str | None]


ChatMessageIn = UserMessageIn | AssistantMessageIn | ToolMessageIn


class MessagesMessageIn(TypedDict):
    """A message of the user, the system or the assistant."""

    role: Literal["user", "assistant", "system", "developer", "root"]
    content: NotRequired[str | list[MessagesPart] | None]


# ---- tools --------------------------------------------------------------------------------------

Parameters = Annotated[_Object | None, Field(description="JSON Schema of an object")]


class DeclaredIn(TypedDict):
    name: Name
    description: NotRequired[Any]
    parameters: NotRequired[Parameters]
    strict: NotRequired[Annotated[Any, Field(description="true: calls have the declared types")]]


class FunctionToolIn(TypedDict):
    """A function."""

    type: NotRequired[Any]
    function: DeclaredIn


class FlatToolIn(DeclaredIn):
    """A function, in Responses' and Anthropic's form."""

    type: NotRequired[Any]
    input_schema: NotRequired[Parameters]


class OtherToolIn(TypedDict):
    """A tool that only its maker runs; it is left out."""

    type: str
    name: NotRequired[Any]


ChatToolIn = FunctionToolIn | FlatToolIn | OtherToolIn


class MessagesToolIn(FlatToolIn):
    """A tool."""

    cache_control: NotRequired[CacheControl]
    defer_loading: NotRequired[
        Annotated[Any, Field(description="true: shown where the history first refers to it")]
    ]
    eager_input_streaming: NotRequired[Any]
    allowed_callers: NotRequired[Any]


class MakersToolIn(TypedDict):
    """A tool that only its maker runs; it is left out."""

    type: Any
    name: NotRequired[Any]


class GrammarIn(TypedDict):
    type: Any
    syntax: NotRequired[Any]
    definition: NotRequired[Any]


class CustomToolIn(TypedDict):
    """A tool that is called with text."""

    type: Literal["custom"]
    name: Name
    description: NotRequired[Any]
    format: NotRequired[GrammarIn | Any]


class NamespaceIn(TypedDict):
    """Several tools under one name."""

    type: Literal["namespace"]
    name: NotRequired[Any]
    tools: NotRequired[Any]


class ResponsesToolIn(FlatToolIn):
    """A function."""

    type: NotRequired[Literal["function"]]
    defer_loading: NotRequired[Any]
    allowed_callers: NotRequired[Any]


class NamedIn(TypedDict):
    name: Name


class FunctionChoiceIn(TypedDict):
    """The one function to call."""

    type: Literal["function"]
    function: NamedIn


class FlatChoiceIn(NamedIn):
    """The one tool to call."""

    type: Literal["function", "custom"]
    namespace: NotRequired[Any]


class AllowedIn(TypedDict):
    mode: NotRequired[Literal["auto", "required"]]
    tools: Annotated[list[_Object], Field(min_length=1)]


class AllowedChoiceIn(TypedDict):
    """Tools that may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedIn


class FlatAllowedIn(AllowedIn):
    """Tools that may be called."""

    type: Literal["allowed_tools"]


Word = Literal["none", "auto", "required"]
ChatChoiceIn = Word | FunctionChoiceIn | FlatChoiceIn | AllowedChoiceIn | FlatAllowedIn


class MessagesChoiceIn(TypedDict):
    type: Literal["auto", "any", "tool", "none"]
    name: NotRequired[Any]
    disable_parallel_tool_use: NotRequired[
        Annotated[Any, Field(description="true: at most one call")]
    ]


# ---- thinking -----------------------------------------------------------------------------------

Temperature = Annotated[float, Field(ge=0, le=2)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Budget = Annotated[int, Field(ge=-1, description="Most tokens of thought; -1: no limit")]
ThinkingType = Literal["enabled", "adaptive", "disabled", "between_tools", "auto"]


class ReasoningIn(TypedDict):
    """OpenRouter's."""

    effort: NotRequired[Effort | None]
    max_tokens: NotRequired[Budget | None]
    enabled: NotRequired[bool | None]
    exclude: NotRequired[Annotated[Any, Field(description="true: the thought is not shown")]]


class ResponsesReasoningIn(ReasoningIn):
    summary: NotRequired[Annotated[Any, Field(description="The thought comes as a summary")]]
    generate_summary: NotRequired[Annotated[Any, Field(description="Older name of summary")]]
    context: NotRequired[Literal["auto", "current_turn", "all_turns"] | None]


class ThinkingIn(TypedDict):
    """Anthropic's and MiniMax's."""

    type: NotRequired[ThinkingType | None]
    budget_tokens: NotRequired[Budget | None]


class MessagesThinkingIn(TypedDict):
    type: NotRequired[ThinkingType | None]
    budget_tokens: NotRequired[Annotated[Any, Field(description="Most tokens of thought")]]
    display: NotRequired[Literal["summarized", "omitted", "updates", "full"] | None]


class TemplateIn(TypedDict):
    """Options of the chat template."""

    enable_thinking: NotRequired[bool | None]
    thinking: NotRequired[bool | None]
    thinking_budget: NotRequired[Budget | None]
    keep_thoughts: NotRequired[Any]


# ---- structure of the answer --------------------------------------------------------------------

JsonSchema = Annotated[Any, Field(description="JSON Schema of the answer")]


class SchemaIn(TypedDict):
    schema: JsonSchema


class ChatSchemaFormatIn(TypedDict):
    type: Literal["json_schema"]
    json_schema: SchemaIn


class PlainFormatIn(TypedDict):
    type: NotRequired[Literal["text", "json_object"]]


class SchemaFormatIn(TypedDict):
    type: Literal["json_schema"]
    schema: JsonSchema


ResponseFormatIn = PlainFormatIn | ChatSchemaFormatIn


class StructuredIn(TypedDict):
    """vLLM's."""

    json: NotRequired[_Object | str | None]
    regex: NotRequired[str | None]
    choice: NotRequired[list[str] | None]


class TextIn(TypedDict):
    format: NotRequired[PlainFormatIn | SchemaFormatIn | None]


# ---- Messages' and Responses' own ---------------------------------------------------------------


class OutputConfigIn(TypedDict):
    effort: NotRequired[Effort | None]
    format: NotRequired[SchemaFormatIn | None]


class EditIn(TypedDict):
    type: NotRequired[Any]
    keep: NotRequired[Annotated[Any, Field(description="all: every thought is shown")]]


class ContextManagementIn(TypedDict):
    edits: NotRequired[list[EditIn] | Any]


class DiagnosticsIn(TypedDict):
    previous_message_id: NotRequired[str | None]


class RefusalPartIn(TypedDict):
    type: Literal["refusal"]
    refusal: NotRequired[Any]


class MessageItemIn(TypedDict):
    """A message."""

    type: NotRequired[Literal["message"]]
    role: Literal["user", "assistant", "system", "developer", "root"]
    content: NotRequired[str | list[Part | RefusalPartIn] | None]


class ReasoningItemIn(TypedDict):
    """A thought of an earlier answer; `encrypted_content` finds it again."""

    type: Literal["reasoning"]
    summary: NotRequired[list[Any] | None]
    content: NotRequired[list[Any] | None]
    encrypted_content: NotRequired[Any]


class CallItemIn(TypedDict):
    """A call of an earlier answer."""

    type: Literal["function_call", "custom_tool_call"]
    call_id: NotRequired[str | None]
    name: Name
    namespace: NotRequired[Any]
    arguments: NotRequired[Any]
    input: NotRequired[Any]


class ResultItemIn(TypedDict):
    """The result of a call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: NotRequired[str | None]
    output: NotRequired[Any]


class OtherItemIn(TypedDict):
    """An item that only its maker makes or reads; it is ignored."""

    type: Any


ItemIn = MessageItemIn | ReasoningItemIn | CallItemIn | ResultItemIn | OtherItemIn
ResponsesToolsIn = ResponsesToolIn | CustomToolIn | NamespaceIn | OtherToolIn
