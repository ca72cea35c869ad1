"""Fields of requests that have no effect here: harmless ones pass, others are refused.

A field is refused where ignoring it would change the answer, unless it has the value that it has
anyway. Whatever nobody knows is ignored, and named in the reply.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from fulmen.sampling import shown
from fulmen.server.errors import Refusal

REFUSED: Final[dict[str, tuple[Any, ...]]] = {
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "conversation": (),
    "documents": ([],),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "ebnf": ("",),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "grammar": ("",),
    "guided_grammar": (),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "mcp_servers": ([],),
    "min_tokens": (0,),
    "mirostat": (0,),
    "n_predict": (-1,),
    "presence_penalty": (0,),
    "prompt": (),
    "prompt_logprobs": (0, False),
    "regex": ("",),
    "repeat_penalty": (1,),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}
"""Fields that no dialect follows, each with the values that change nothing; null never does"""

HARMLESS: Final = frozenset(
    {
        "betas",
        "cache_control",
        "cache_prompt",
        "client_metadata",
        "container",
        "inference_geo",
        "metadata",
        "moderation",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "speed",
        "store",
        "stream_reasoning",
        "user",
        "verbosity",
        "web_search_options",
    }
)
"""Fields that clients send to everyone and that say nothing about the answer"""


def unknown_fields(extra: Mapping[str, Any], *, known: Collection[str] = ()) -> tuple[str, ...]:
    """Return the names of fields that are ignored and not known to be harmless.

    extra  fields that the dialect does not declare
    known  those among them that something else reads

    Raises a Refusal for one that would change the answer.
    """
    unknown: list[str] = []
    for name, value in extra.items():
        if name in known or name in HARMLESS:
            continue
        if name in REFUSED:
            if value is not None and not _is_any(value, REFUSED[name]):
                raise Refusal(
                    400,
                    f"{name} is {shown(value)}, this server does not follow it; leave it out",
                    param=name,
                )
            continue
        unknown.append(name[:80])
    return tuple(unknown[:50])


def describe_ignored(schema: dict[str, Any]) -> None:
    """Add the fields that have no effect, and the values that may be sent of those that are
    refused, to the description of a body, in place."""
    properties = schema["properties"]
    for name, neutral in REFUSED.items():
        allowed = {
            "enum": [*neutral, None],
            "description": "Not followed: only what changes nothing",
        }
        properties.setdefault(name, allowed)
    for name in sorted(HARMLESS):
        properties.setdefault(name, {"description": "No effect"})


def _is_any(value: object, neutral: tuple[Any, ...]) -> bool:
    """Return whether a value is one of these; 0 is not False."""
    return any(
        value == other and isinstance(value, bool) == isinstance(other, bool) for other in neutral
    )
