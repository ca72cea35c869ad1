"""Replies about models, and about the server itself."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from fulmen.server.replies.shared import closed


@closed
class Supported(TypedDict):
    supported: bool


@closed
class EffortSupport(Supported):
    low: Supported
    medium: Supported
    high: Supported
    xhigh: Supported
    max: Supported


@closed
class ServerToolsSupport(Supported):
    code_execution: Supported
    web_search: Supported


@closed
class ThinkingTypes(TypedDict):
    adaptive: Supported
    between_tools: Supported
    disabled: Supported
    enabled: Supported


@closed
class ThinkingSupport(Supported):
    types: ThinkingTypes


@closed
class Capabilities(TypedDict):
    batch: Supported
    citations: Supported
    code_execution: Supported
    context_management: Supported
    effort: EffortSupport
    image_input: Supported
    pdf_input: Supported
    server_tools: ServerToolsSupport
    structured_outputs: Supported
    thinking: ThinkingSupport


@closed
class ModelCard(TypedDict):
    """A short card of a model for people, in Markdown."""

    en: str
    de: str


@closed
class ModelObject(TypedDict):
    """A model, in a form that both SDKs read."""

    id: str
    root: Annotated[str, Field(description="The model's own name, where the id is an alias too")]
    object: Literal["model"]
    type: Literal["model"]
    created: int
    created_at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    owned_by: str
    display_name: str
    card: Annotated[ModelCard | None, Field(description="Null where the weights are not here")]
    lifecycle: Literal["active"]
    max_model_len: Annotated[int | None, Field(description="Tokens that the context has")]
    max_input_tokens: int | None
    max_tokens: int | None
    capabilities: Capabilities


@closed
class ModelList(TypedDict):
    object: Literal["list"]
    data: Annotated[list[ModelObject], Field(min_length=1)]
    has_more: Literal[False]
    first_id: str
    last_id: str


@closed
class Health(TypedDict):
    status: Literal["ok"]


@closed
class Readiness(TypedDict):
    status: Literal["ready"]


@closed
class Version(TypedDict):
    version: str
