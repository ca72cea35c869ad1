"""What a caller may ask of the next token; the one set of options that every door accepts."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # a command's help comes without it
    import numpy as np
    from numpy.typing import NDArray


class Mask(NamedTuple):
    """What a grammar allows of the next token."""

    allowed: "NDArray[np.bool_]"
    """(V,) at least one"""
    redraw_only: bool = False
    """Whether a token is drawn without it, and again under it only if that one is not allowed: so
    nothing changes but what must."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How one request is sampled. The defaults are those MiniMax recommends for M2."""

    temperature: float = 1.0
    """0 means greedy: the most likely token, the lowest id on a tie."""
    top_p: float = 0.95
    """Keep the smallest set of tokens whose probabilities sum to at least top_p."""
    top_k: int | None = 40
    """Keep the top_k most likely tokens; None keeps all."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the most likely one."""
    seed: int | None = None
    """The same seed gives the same draws, whatever runs beside; None takes a fresh one."""
    max_tokens: int | None = None
    """An answer has at most this many tokens; None means until the context is full."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are no part of it; matched where text is known, in llm.py."""
    stop_token_ids: tuple[int, ...] = ()
    """Ids that end the answer, besides the checkpoint's own end-of-sequence ids."""
    ignore_eos: bool = False
    """Go on past the checkpoint's end-of-sequence ids (for measurements)."""
    logprobs: int | None = None
    """Report the chosen token's log-probability and those of this many likeliest tokens."""
    repetition_window: int | None = None
    """Stop after this many consecutive tokens, each more likely than repetition_probability;
    M1's training used 3,000 (arXiv:2506.13585)."""
    repetition_probability: float = 0.99
    thinking_budget: int | None = None
    """At most this many tokens of thought; 0 means none, None no limit. Counts as 40k are taken,
    too: M1 was trained to 40k and 80k."""
    thinking_landing: float = 0.1
    """In this last share of the budget the end of the thought is made likelier where a sentence
    ends, and a last phrase leads to the answer; 0 cuts the thought off."""
    json_schema: str | None = None
    """The answer, after any thought, is JSON that this JSON Schema allows, given as JSON; {} allows
    any. On the command line it may be a .json file."""
    regex: str | None = None
    """The whole answer, after any thought, matches this regular expression (Rust's syntax)."""
    choice: tuple[str, ...] = ()
    """The answer, after any thought, is one of these texts."""
    strict_tools: bool = False
    """Tool calls name a declared tool and give it arguments of the declared types."""

    def __post_init__(self) -> None:
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repetition_probability",
            "thinking_landing",
        ):
            self._check_kind(name, (int, float), "a number")
        for name in ("top_k", "seed", "max_tokens", "logprobs", "repetition_window"):
            self._check_kind(name, (int, type(None)), "a whole number or none")
        self._check_kind("thinking_budget", (int, type(None)), "a whole number or none")
        for name in ("json_schema", "regex"):
            self._check_kind(name, (str, type(None)), "text or none")
        for name, kind in (("stop", str), ("stop_token_ids", int), ("choice", str)):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not all(type(value) is kind for value in values):
                raise ValueError(f"{name} is {values!r}, it must be a tuple of {kind.__name__}")
        for holds, name, needed in (
            (0 <= self.temperature < float("inf"), "temperature", "be 0 or more"),
            (0 < self.top_p <= 1, "top_p", "be above 0 and at most 1"),
            (self.top_k is None or self.top_k >= 1, "top_k", "be 1 or more"),
            (0 <= self.min_p <= 1, "min_p", "lie between 0 and 1"),
            (self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "be 1 or more"),
            (all(self.stop), "stop", "have no empty text"),
            (self.logprobs is None or 0 <= self.logprobs <= 20, "logprobs", "be 0 to 20"),
            (
                self.repetition_window is None or self.repetition_window >= 1,
                "repetition_window",
                "be 1 or more",
            ),
            (
                0 < self.repetition_probability < 1,
                "repetition_probability",
                "lie between 0 and 1",
            ),
            (
                self.thinking_budget is None or self.thinking_budget >= 0,
                "thinking_budget",
                "be 0 or more",
            ),
            (0 <= self.thinking_landing <= 1, "thinking_landing", "lie between 0 and 1"),
        ):
            if not holds:
                raise ValueError(f"{name} is {getattr(self, name)!r}, it must {needed}")
        self._check_constraints()

    @property
    def is_constrained(self) -> bool:
        """Whether a grammar says what the answer may be."""
        return self.json_schema is not None or self.regex is not None or bool(self.choice)

    def _check_constraints(self) -> None:
        given = [
            name
            for name in ("json_schema", "regex", "choice")
            if getattr(self, name) not in (None, ())
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given, an answer can follow only one")
        if (given or self.strict_tools) and self.ignore_eos:
            name = given[0] if given else "strict_tools"
            raise ValueError(f"ignore_eos goes on past the end that {name} leads to, drop one")
        if not all(self.choice):
            raise ValueError(f"choice is {self.choice!r}, it must have no empty text")
        if self.json_schema is not None:
            try:
                schema = json.loads(self.json_schema)
            except ValueError as error:
                raise ValueError(f"json_schema is not JSON: {error}") from None
            if not isinstance(schema, dict | bool):
                raise ValueError(
                    f"json_schema is {self.json_schema}, it must be a JSON Schema: an object"
                )

    def _check_kind(self, name: str, kinds: tuple[type, ...], needed: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}, it must be {needed}")


FinishReason = Literal["stop", "length", "repetition", "abort"]
