"""A model as GET /v1/models lists it: one object for both SDKs."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fulmen.catalog import Language
from fulmen.llm import LLM
from fulmen.server.service import Service


def card_of(service: Service) -> Mapping[Language, str] | None:
    """Return the card of the model, by language; None where its weights are not here."""
    llm: LLM | None = getattr(service.model, "llm", None)
    return None if llm is None else llm.card(service.name)


def model_object(
    name: str, service: Service, *, started: int, card: Mapping[Language, str] | None
) -> dict[str, Any]:
    """Return one object that the OpenAI SDK reads as a model, and the Anthropic SDK too.

    started  time of the server's start, in seconds since 1970
    card     see `card_of`

    root, the model's own name, and max_model_len, the length of its context, are vLLM's words.
    """
    length = service.max_model_len
    supported, unsupported = {"supported": True}, {"supported": False}
    has_thought = getattr(getattr(service.model, "format", None), "thinking", None) is not None
    thought = {"supported": has_thought}
    return {
        "id": name,
        "root": service.name,
        "object": "model",
        "type": "model",
        "created": started,
        "created_at": datetime.fromtimestamp(started, UTC).isoformat().replace("+00:00", "Z"),
        "owned_by": "fulmen",
        "display_name": name,
        "card": card,
        "lifecycle": "active",
        "max_model_len": length,
        "max_input_tokens": None if length is None else length - 1,
        "max_tokens": None if length is None else length - 1,
        "capabilities": {
            "batch": unsupported,
            "citations": unsupported,
            "code_execution": unsupported,
            "context_management": unsupported,
            "effort": {
                **thought,
                **dict.fromkeys(("low", "medium", "high", "xhigh", "max"), thought),
            },
            "image_input": unsupported,
            "pdf_input": unsupported,
            "server_tools": {
                **unsupported,
                "code_execution": unsupported,
                "web_search": unsupported,
            },
            "structured_outputs": supported,
            "thinking": {
                **thought,
                "types": {
                    "adaptive": thought,
                    "between_tools": supported,  # accepted by a model without thoughts too
                    "disabled": supported,
                    "enabled": thought,
                },
            },
        },
    }
