"""What a caller may ask of the next token; the one set of options that every door accepts."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How one request is sampled. The defaults are those MiniMax recommends for M1 and M2."""

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
    """At most this many new tokens; None means until the context is full."""
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
    M1's training used 3,000 (report, section 5)."""
    repetition_probability: float = 0.99
    thinking_budget: int | None = None
    """After this many tokens of thought the closing tag is forced; None means no limit."""

    def __post_init__(self) -> None:
        _check(self.temperature >= 0, f"temperature is {self.temperature}, it must be 0 or more")
        _check(0 < self.top_p <= 1, f"top_p is {self.top_p}, it must be above 0 and at most 1")
        _check(
            self.top_k is None or self.top_k >= 1, f"top_k is {self.top_k}, it must be 1 or more"
        )
        _check(0 <= self.min_p <= 1, f"min_p is {self.min_p}, it must lie between 0 and 1")
        _check(
            self.max_tokens is None or self.max_tokens >= 1,
            f"max_tokens is {self.max_tokens}, it must be 1 or more",
        )
        _check(
            self.logprobs is None or 0 <= self.logprobs <= 20,
            f"logprobs is {self.logprobs}, it must lie between 0 and 20",
        )
        _check(
            self.repetition_window is None or self.repetition_window >= 1,
            f"repetition_window is {self.repetition_window}, it must be 1 or more",
        )
        _check(
            0 < self.repetition_probability < 1,
            f"repetition_probability is {self.repetition_probability}, it must lie between 0 and 1",
        )
        _check(
            self.thinking_budget is None or self.thinking_budget >= 0,
            f"thinking_budget is {self.thinking_budget}, it must be 0 or more",
        )
        _check(all(self.stop), "a stop text is empty, it must have at least one character")


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
