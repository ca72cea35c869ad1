"""A loaded model under the clock: prompts and decoding, as the engine runs them.

The past of a decoded token is noise written into the cache: its values do not change the work, and
nobody waits for a prompt of 65,536 tokens. The cache is kept between calls, so that its memory is
touched once and its steps are recorded once.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fulmen.engine import Runner
from fulmen.kernels import PAGE, HeadOutput, KVPages
from fulmen.models import Model, Packed


@dataclass(frozen=True, slots=True)
class Timing:
    """One measurement."""

    seconds: float
    softmax_seconds: float | None
    """Part of `seconds` that softmax attention takes, in a hybrid such as M1; else None. For
    decoding it comes from a second pass over the same steps, as a recorded step cannot look at a
    clock. That pass includes some microseconds of Python a layer."""


class ModelTimer:
    """Times a model on random tokens."""

    def __init__(self, model: Model, *, chunk: int = 1024) -> None:
        """Time a model; `chunk` is the number of tokens of one forward pass of a prompt."""
        self.model = model
        self.chunk = chunk
        kinds = model.config.attn_type_list
        self.is_hybrid = 0 < sum(kinds) < len(kinds)
        self._runner: Runner | None = None
        self._num_pages = self._num_slots = 0
        self._tables: list[list[int]] = []

    def reserve(self, batch: int, num_tokens: int) -> None:
        """Make a cache full of noise for `batch` sequences of `num_tokens` each, and its runner;
        keep those there are if they are large enough."""
        num_pages = batch * -(-num_tokens // PAGE)
        if num_pages <= self._num_pages and batch <= self._num_slots:
            return
        self._runner = None  # frees the old cache first
        self._num_pages = max(num_pages, self._num_pages)
        self._num_slots = max(batch, self._num_slots)
        with torch.inference_mode():
            cache = self.model.new_cache(self._num_pages, self._num_slots)
            for layer in cache.layers:
                if isinstance(layer, KVPages):
                    for part in layer.stored.values():
                        part.normal_()
        self._runner = Runner(self.model, cache)

    def prefill(self, num_tokens: int) -> Timing:
        """Time one prompt from an empty cache."""
        self.prepare(1, num_tokens)
        ids = self.random_ids(1, num_tokens)[0]
        chunks = [ids[start : start + self.chunk] for start in range(0, num_tokens, self.chunk)]
        with torch.inference_mode(), self._softmax_clock() as clock:
            start = time.perf_counter()
            for index, chunk in enumerate(chunks):
                self.forward([chunk], index * self.chunk)
            seconds = time.perf_counter() - start
        return Timing(seconds, clock[0] if self.is_hybrid else None)

    def decode(self, num_tokens: int, *, batch: int = 1, depth: int = 0) -> Timing:
        """Time `num_tokens` new tokens of each of `batch` sequences of `depth` tokens."""
        self.prepare(batch, depth + num_tokens)
        steps = [
            [[token] for token in column] for column in self.random_ids(num_tokens, batch)
        ]  # (tokens, batch, 1)
        with torch.inference_mode():
            for _ in range(2):  # a step is recorded when its shape comes a second time
                self.forward(steps[0], depth)
            start = time.perf_counter()
            for index, sequences in enumerate(steps):
                self.forward(sequences, depth + index)
            seconds = time.perf_counter() - start
            share = self._softmax_share(steps, depth) if self.is_hybrid else None
        return Timing(seconds, None if share is None else share * seconds)

    def best_logits(self, input_ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best logit and logsumexp (T,) after each token of one sequence.

        Every token is a step of its own, as in `decode`: recorded from the third on, if the model
        can be recorded.
        """
        self.prepare(1, len(input_ids))
        with torch.inference_mode():
            found = [self.forward([[token]], index) for index, token in enumerate(input_ids)]
        return (
            torch.cat([step.top_logits[:, 0] for step in found]),
            torch.cat([step.logsumexp for step in found]),
        )

    def _softmax_share(self, steps: Sequence[Sequence[Sequence[int]]], depth: int) -> float:
        """Return the share of a step that softmax layers take.

        Each step runs as the engine runs it and then in single calls with a clock in the softmax
        layers; side by side, so that a slow moment slows both.
        """
        whole = 0.0
        with self._softmax_clock() as clock:
            for index, sequences in enumerate(steps):
                softmax = clock[0]
                start = time.perf_counter()
                self.forward(sequences, depth + index)
                whole += time.perf_counter() - start
                clock[0] = softmax  # a step that is not recorded yet runs the hooks too
                self.forward(sequences, depth + index, is_direct=True)
        return clock[0] / whole

    def prepare(self, batch: int, num_tokens: int) -> None:
        """Reserve a cache, and give each sequence its pages."""
        self.reserve(batch, num_tokens)
        pages_each = -(-num_tokens // PAGE)
        self._tables = [list(range(n * pages_each, (n + 1) * pages_each)) for n in range(batch)]

    def random_ids(self, rows: int, columns: int) -> list[list[int]]:
        """Return random token ids."""
        ids: list[list[int]] = torch.randint(self.model.config.vocab_size, (rows, columns)).tolist()
        return ids

    @property
    def records_steps(self) -> bool:
        """False once a decode step could not be recorded; see `Runner`."""
        assert self._runner is not None, "prepare comes first"
        return self._runner.records_steps

    def forward(
        self,
        sequences: Sequence[Sequence[int]],
        context: int,
        *,
        top_k: int = 1,
        is_direct: bool = False,
    ) -> HeadOutput:
        """Run one pass and ask for the best next tokens, as the engine does."""
        assert self._runner is not None, "prepare comes first"
        batch = len(sequences)
        packed = Packed.of(
            sequences,
            context_lens=[context] * batch,
            block_tables=self._tables,
            slots=list(range(batch)),
            only_last_logits=True,
        )
        targets = torch.zeros(batch, dtype=torch.int64)
        if is_direct:
            return self.model.next_tokens(packed, self._runner.cache, targets=targets, top_k=top_k)
        return self._runner.next_tokens(packed, targets=targets, top_k=top_k)

    @contextmanager
    def _softmax_clock(self) -> Iterator[list[float]]:
        """Yield a list of one number: the seconds that softmax layers of a hybrid took so far."""
        clock, starts = [0.0], list[float]()

        def begin(*_: Any) -> None:
            starts.append(time.perf_counter())

        def end(*_: Any) -> None:
            clock[0] += time.perf_counter() - starts.pop()

        hooks = []
        if self.is_hybrid:
            layers = zip(self.model.model.layers, self.model.config.attn_type_list, strict=True)
            for attention in (layer.get_submodule("self_attn") for layer, kind in layers if kind):
                hooks += [
                    attention.register_forward_pre_hook(begin),
                    attention.register_forward_hook(end),
                ]
        try:
            yield clock
        finally:
            for hook in hooks:
                hook.remove()
