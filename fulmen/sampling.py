"""Options of sampling: the one set that every door of the package accepts."""

import json
import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:  # a command's help comes without it
    import numpy as np
    from numpy.typing import NDArray


FinishReason = Literal["stop", "length", "repetition", "abort", "error"]
"""Reason why an answer ended."""

_MAX_COUNT: Final = 2**31 - 1
"""Largest number of tokens that can be asked for: the kernels count in 32 bits."""
_MAX_CALLS: Final = 128
"""Largest limit on an answer's calls; a grammar counts them one by one."""


class Mask(NamedTuple):
    """Ids that the next token may have."""

    allowed: "NDArray[np.bool_]"
    """(V,) at least one is True"""
    redraw_only: bool = False
    """Draw without the mask; redraw under it only if the token is not allowed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Options of one request. The defaults are those MiniMax recommends for M2."""

    temperature: float = 1.0
    """Randomness: 0 always takes the likeliest token (the lowest id on a tie), higher values vary
    more."""
    top_p: float = 0.95
    """Draw only from the likeliest tokens whose probabilities add up to this."""
    top_k: int | None = 40
    """Draw only from this many of the likeliest tokens; None draws from all."""
    min_p: float = 0.0
    """Leave out tokens less likely than this share of the likeliest one's probability."""
    seed: int | None = None
    """Seed of the random draws; None draws anew each time."""
    max_tokens: int | None = None
    """Most tokens of an answer and its thought; None goes on until the context is full."""
    stop: tuple[str, ...] = ()
    """Stop when this text appears; it is no part of the answer."""
    stop_token_ids: tuple[int, ...] = ()
    """Stop at this token id, besides those that end the model's answers."""
    ignore_eos: bool = False
    """Go on past the tokens that end the model's answers, for measurements."""
    logprobs: int | None = None
    """Report the log-probability of each token, and of this many likeliest ones at its place."""
    prompt_logprobs: int | None = None
    """Report the log-probability of each token of the prompt too, and of this many likeliest ones
    at its place. The prompt is then read whole, though the cache knows its beginning."""
    repetition_window: int | None = None
    """Stop after this many tokens in a row that were nearly certain, because the answer is going in
    circles; None never does. M1's training used 3,000 (arXiv:2506.13585)."""
    repetition_probability: float = 0.99
    """Probability above which repetition_window counts a token as nearly certain."""
    thinking_budget: int | None = None
    """Most tokens of thought, such as 2000 or 40k; then the answer begins. 0 means no thought, None
    no limit. M1 was trained to 40k and 80k."""
    thinking_soft_end: float = 0.1
    """Share of the budget, at its end, in which the model is nudged to finish thinking; 0 cuts it
    off."""
    json_schema: str | None = None
    """Answer with JSON that follows this JSON Schema; {} allows any JSON."""
    regex: str | None = None
    """Answer with text that matches this regular expression as a whole (Rust's syntax)."""
    choice: tuple[str, ...] = ()
    """Answer with exactly one of these texts."""
    strict_tools: bool = False
    """Call only declared tools, with arguments of the declared types."""
    tool_choice: Literal["auto", "none", "required"] = "auto"
    """auto: the model decides. none: it calls no tool, though the prompt shows them. required:
    after its thought the answer is one block of tool calls and nothing else."""
    allowed_tools: tuple[str, ...] = ()
    """Call only these of the declared tools; empty allows all. One name and a tool_choice of
    required is a call of that tool."""
    max_calls: int | None = None
    """Most tool calls of an answer, all in one block; None sets no limit, 1 is no parallel calls.
    Without declared tools it has no effect."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("top_k", 1, _MAX_COUNT),
            ("seed", -(2**63), 2**64 - 1),
            ("max_tokens", 1, _MAX_COUNT),
            ("logprobs", 0, 20),
            ("prompt_logprobs", 0, 20),
            ("repetition_window", 1, _MAX_COUNT),
            ("thinking_budget", 0, _MAX_COUNT),
            ("max_calls", 1, _MAX_CALLS),
        ):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), low, high, needed="a whole number or none")
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_probability",
            "thinking_soft_end",
        ):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise ValueError(f"{name} is {shown(value)}, it must be a number")
            if not abs(value) <= sys.float_info.max:
                raise ValueError(f"{name} is {shown(value)}, it must be a finite number")
        for holds, name, needed in (
            (self.temperature >= 0, "temperature", "be 0 or more"),
            (0 < self.top_p <= 1, "top_p", "be above 0 and at most 1"),
            (0 <= self.min_p <= 1, "min_p", "lie between 0 and 1"),
            (
                0 < self.repetition_probability < 1,
                "repetition_probability",
                "lie between 0 and 1",
            ),
            (0 <= self.thinking_soft_end <= 1, "thinking_soft_end", "lie between 0 and 1"),
        ):
            if not holds:
                raise ValueError(f"{name} is {shown(getattr(self, name))}, it must {needed}")
        for name in ("ignore_eos", "strict_tools"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {shown(value)}, it must be True or False")
        for name in ("json_schema", "regex"):
            value = getattr(self, name)
            if not isinstance(value, str | None):
                as_text = "; json.dumps writes a schema as text" * isinstance(value, dict | bool)
                raise ValueError(f"{name} is {shown(value)}, it must be text or none{as_text}")
        if self.tool_choice not in ("auto", "none", "required"):
            raise ValueError(
                f"tool_choice is {shown(self.tool_choice)}, it must be auto, none or required"
            )
        for name, kind in (
            ("stop", str),
            ("stop_token_ids", int),
            ("choice", str),
            ("allowed_tools", str),
        ):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(type(value) is kind for value in values):
                raise ValueError(
                    f"{name} is {shown(values)}, it must be a tuple of {kind.__name__}"
                )
        for name in ("stop", "choice", "allowed_tools"):
            if not all(getattr(self, name)):
                raise ValueError(
                    f"{name} is {shown(getattr(self, name))}, it must have no empty text"
                )
        self._check_constraints()

    @property
    def is_constrained(self) -> bool:
        """True if a grammar says what the answer may be."""
        return self.json_schema is not None or self.regex is not None or bool(self.choice)

    @property
    def limits_calls(self) -> bool:
        """True if not every tool call may come, or one must."""
        return (
            self.strict_tools
            or self.tool_choice != "auto"
            or bool(self.allowed_tools)
            or self.max_calls is not None
        )

    def _check_constraints(self) -> None:
        given = [
            name
            for name in ("json_schema", "regex", "choice")
            if getattr(self, name) not in (None, ())
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given, an answer can follow only one")
        is_required = self.tool_choice == "required"
        if given and is_required:
            raise ValueError(
                f"tool_choice is required, so the answer is tool calls and cannot follow "
                f"{given[0]}, drop one"
            )
        if (given or self.strict_tools or is_required) and self.ignore_eos:
            name = "strict_tools" if self.strict_tools else "tool_choice"
            name = given[0] if given else name
            raise ValueError(f"ignore_eos goes on past the end that {name} leads to, drop one")
        if self.json_schema is not None:
            try:
                schema = json.loads(self.json_schema)
            except ValueError as error:
                is_long = "integer string conversion" in str(error)
                reason = "it has a number of thousands of digits" if is_long else error
                raise ValueError(f"json_schema is not JSON: {reason}") from None
            except RecursionError:
                raise ValueError(
                    f"json_schema is {shown(self.json_schema)}, it is nested too deeply"
                ) from None
            if not isinstance(schema, dict | bool):
                raise ValueError(
                    f"json_schema is {shown(schema)}, it must be a JSON Schema: an object"
                )


def max_new_tokens(
    params: SamplingParams, num_ids: int, *, num_prefix_ids: int, max_model_len: int
) -> int:
    """Return how many tokens may come after num_ids, which end with num_prefix_ids of the answer
    itself: max_tokens counts those. Raises ValueError if that is none."""
    if not num_ids:
        raise ValueError("the prompt is empty, at least one token is needed")
    room = max_model_len - num_ids
    if room < 1:
        raise ValueError(
            f"the prompt has {num_ids} tokens, the context holds {max_model_len} "
            "including at least one new token"
        )
    if params.max_tokens is None:
        return room
    if params.max_tokens <= num_prefix_ids:
        raise ValueError(
            f"max_tokens is {params.max_tokens}, it must be more than the {num_prefix_ids} "
            "tokens that the answer has already"
        )
    return min(params.max_tokens - num_prefix_ids, room)


def count_repetitive(params: SamplingParams, num_before: int, logprob: float) -> int:
    """Return how many tokens in a row were likelier than repetition_probability, the last of them
    with this log-probability, after num_before others."""
    return num_before + 1 if logprob > math.log(params.repetition_probability) else 0


def shown(value: object) -> str:
    """Return a value as an error's sentence can hold it: its repr, cut to 80 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply to show"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def check_whole(
    name: str, value: object, low: int, high: int, *, needed: str = "a whole number"
) -> None:
    """Raise ValueError unless value is a whole number from low to high; a bool is none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{name} is {shown(value)}, it must be {needed}")
    bound = f"{low} or more" if value < low else f"at most {high}"
    if not low <= value <= high:
        or_none = ", or none" * needed.endswith("or none")
        raise ValueError(f"{name} is {shown(value)}, it must be {bound}{or_none}")
