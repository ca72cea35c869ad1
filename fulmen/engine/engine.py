"""The engine: requests in, tokens out.

    add_request -> waiting -> (cache reserved) -> running -> step: schedule, run, sample, record ->
    finished

A step runs the next tokens of many requests in one forward pass: one token of each request that
decodes, and pieces of the prompts that are still being read, up to max_num_batched_tokens. The
engine knows token ids only; text, stop texts and thinking are the business of `llm.py`, which may
force a request's next tokens or abort it between steps.
"""

import itertools
import logging
import math
import secrets
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from fulmen.engine.cache import CacheOwners, Reservation, pages_for
from fulmen.engine.runner import Runner
from fulmen.engine.sampler import Candidates, Sampled, num_candidates, sample
from fulmen.kernels import PAGE
from fulmen.models import Model, Packed
from fulmen.sampling import SamplingParams

logger = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "repetition", "abort"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How much runs at once."""

    max_num_seqs: int = 8
    """Requests that run together; each owns one lightning state."""
    max_num_batched_tokens: int = 1024
    """Tokens of one forward pass, over all requests."""
    max_model_len: int | None = None
    """Prompt and answer together; None means the model's max_position_embeddings."""
    kv_cache_bytes: int = 2 * 2**30
    """Memory for keys and values of the softmax layers; no more is taken than max_num_seqs
    requests of max_model_len tokens can use."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "kv_cache_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be positive")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ValueError(f"max_model_len is {self.max_model_len}, it must be at least 2")


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One new token of one request; the last one says why it is the last."""

    request_id: int
    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None


@dataclass(slots=True)
class Request:
    """One sequence from its prompt to its last token."""

    request_id: int
    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    output_ids: list[int] = field(default_factory=list)
    forced_ids: deque[int] = field(default_factory=deque)
    """Tokens that come next whatever the logits say."""
    num_cached_tokens: int = 0
    """Tokens whose keys, values and states are in the cache."""
    num_repetitive_tokens: int = 0
    """Latest tokens in a row that were each more likely than repetition_probability."""
    reservation: Reservation | None = None

    def next_ids(self, limit: int) -> list[int]:
        """At most `limit` tokens that come after the cached ones."""
        start = self.num_cached_tokens
        if start < len(self.prompt_ids):
            return self.prompt_ids[start : start + limit]
        return self.output_ids[start - len(self.prompt_ids) :][:limit]

    @property
    def num_tokens(self) -> int:
        """Prompt and new tokens so far."""
        return len(self.prompt_ids) + len(self.output_ids)


class Engine:
    """Runs requests on one model, synchronously and in one thread."""

    def __init__(
        self, model: Model, config: EngineConfig | None = None, *, eos_token_ids: Sequence[int] = ()
    ) -> None:
        self.model = model
        self.config = config or EngineConfig()
        self.eos_token_ids = frozenset(eos_token_ids)
        longest = model.config.max_position_embeddings
        if self.config.max_model_len is not None and self.config.max_model_len > longest:
            raise ValueError(
                f"max_model_len is {self.config.max_model_len}, the model's context is {longest}"
            )
        self.max_model_len = self.config.max_model_len or longest
        num_pages = self._num_pages()
        if num_pages * PAGE < self.max_model_len:
            logger.warning(
                "the key-value cache of %.1f GiB holds %d tokens, the context could have %d: "
                "raise kv_cache_bytes",
                self.config.kv_cache_bytes / 2**30,
                num_pages * PAGE,
                self.max_model_len,
            )
        self.max_model_len = min(self.max_model_len, num_pages * PAGE)
        self._runner = Runner(model, model.new_cache(num_pages, self.config.max_num_seqs))
        self._owners = CacheOwners(num_pages, self.config.max_num_seqs)
        self._request_ids = itertools.count()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []

    def _num_pages(self) -> int:
        config = self.model.config
        width = 2 * config.num_key_value_heads * config.head_dim
        itemsize = self.model.model.embed_tokens.weight.element_size()
        page_bytes = PAGE * width * itemsize * sum(config.attn_type_list)
        wanted = self.config.max_num_seqs * pages_for(self.max_model_len)
        if not page_bytes:  # a model of lightning layers alone keeps no keys and values
            return wanted
        affordable = self.config.kv_cache_bytes // page_bytes
        if not affordable:
            raise ValueError(
                f"kv_cache_bytes is {self.config.kv_cache_bytes}, one page of 64 tokens needs "
                f"{page_bytes}"
            )
        return min(wanted, affordable)

    def add_request(self, prompt_ids: Sequence[int], params: SamplingParams) -> int:
        """Queues a request and returns its id; its tokens come out of `step`.

        Raises ValueError for an empty prompt, an unknown token id, or a prompt that leaves no room
        for one new token in max_model_len. max_tokens is cut to the room there is.
        """
        ids = list(prompt_ids)
        if not ids:
            raise ValueError("the prompt is empty, at least one token is needed")
        self._check_ids(ids)
        room = self.max_model_len - len(ids)
        if room < 1:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, the context holds {self.max_model_len} "
                "including at least one new token"
            )
        request = Request(
            request_id=next(self._request_ids),
            prompt_ids=ids,
            params=params,
            seed=secrets.randbits(64) if params.seed is None else params.seed % 2**64,
            max_tokens=min(params.max_tokens or room, room),
        )
        self._waiting.append(request)
        return request.request_id

    def _check_ids(self, token_ids: Sequence[int]) -> None:
        vocab_size = self.model.config.vocab_size
        wrong = next((token for token in token_ids if not 0 <= token < vocab_size), None)
        if wrong is not None:
            raise ValueError(f"token id {wrong} is outside the {vocab_size} ids known")

    @property
    def has_unfinished(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._running)

    def step(self) -> list[TokenOutput]:
        """One forward pass; returns the new token of every request that got one.

        If it fails or is interrupted, the requests that took part are aborted.
        """
        scheduled = self._schedule()
        if not scheduled:
            return []
        outputs = []
        try:
            for best, (request, _) in zip(self._run(scheduled), scheduled, strict=True):
                # A request whose prompt is still being read gets no token yet.
                if request.num_cached_tokens == request.num_tokens:
                    outputs.append(self._record(request, self._sample(request, best)))
        except BaseException:
            # Their states may be half written. Nothing else is touched, so the others go on.
            for request, _ in scheduled:
                self.abort(request.request_id)
            raise
        return outputs

    def is_unfinished(self, request_id: int) -> bool:
        """Whether a request waits or runs."""
        return any(request.request_id == request_id for request in (*self._running, *self._waiting))

    def force(self, request_id: int, token_ids: Sequence[int]) -> None:
        """Makes token_ids the next tokens of a request, one a step, instead of sampled ones."""
        self._check_ids(token_ids)
        self._find(request_id).forced_ids.extend(token_ids)

    def abort(self, request_id: int) -> None:
        """Drops a request and frees what it owns; unknown and finished ids are ignored."""
        for request in list(self._waiting):
            if request.request_id == request_id:
                self._waiting.remove(request)
        for request in self._running:
            if request.request_id == request_id:
                self._finish(request)
                return

    def _schedule(self) -> list[tuple[Request, list[int]]]:
        """Which requests run this step, with the tokens each feeds: decoding ones first, then
        prompts."""
        while self._waiting and self._owners.can_hold(self._need(self._waiting[0])):
            request = self._waiting.popleft()
            request.reservation = self._owners.reserve(self._need(request))
            self._running.append(request)
        budget = self.config.max_num_batched_tokens
        scheduled = []
        by_need = sorted(self._running, key=lambda request: request.num_cached_tokens == 0)
        for request in by_need:
            ids = request.next_ids(budget)
            if ids:
                scheduled.append((request, ids))
                budget -= len(ids)
        return scheduled

    @staticmethod
    def _need(request: Request) -> int:
        return len(request.prompt_ids) + request.max_tokens

    def _run(self, scheduled: Sequence[tuple[Request, list[int]]]) -> list[Candidates]:
        """What may follow each request's last fed token."""
        requests = [request for request, _ in scheduled]
        reservations = [request.reservation for request in requests]
        device = self.model.model.embed_tokens.weight.device
        packed = Packed.of(
            [ids for _, ids in scheduled],
            context_lens=[request.num_cached_tokens for request in requests],
            block_tables=[owned.pages for owned in reservations if owned],
            slots=[owned.slot for owned in reservations if owned],
            only_last_logits=True,
            device=device,
        )
        vocab_size = self.model.config.vocab_size
        top_k = max(num_candidates(request.params, vocab_size) for request in requests)
        forced = [request.forced_ids[0] if request.forced_ids else 0 for request in requests]
        targets = torch.tensor(forced, device=device)
        found = self._runner.next_tokens(packed, targets=targets, top_k=top_k)
        for request, ids in scheduled:
            request.num_cached_tokens += len(ids)
        assert found.target_logits is not None
        sums, target_logits = found.logsumexp.tolist(), found.target_logits.tolist()
        rows = zip(sums, found.top_logits.cpu(), found.top_ids.cpu(), target_logits, strict=True)
        return [Candidates(*row) for row in rows]

    @staticmethod
    def _sample(request: Request, best: Candidates) -> Sampled:
        forced = request.forced_ids.popleft() if request.forced_ids else None
        draw = len(request.output_ids)
        return sample(best, request.params, seed=request.seed, draw=draw, forced=forced)

    def _record(self, request: Request, sampled: Sampled) -> TokenOutput:
        request.output_ids.append(sampled.token_id)
        finish_reason = self._finish_reason(request, sampled)
        if finish_reason is not None:
            self._finish(request)
        return TokenOutput(
            request.request_id,
            sampled.token_id,
            sampled.logprob,
            sampled.top_logprobs,
            finish_reason,
        )

    def _finish_reason(self, request: Request, sampled: Sampled) -> FinishReason | None:
        params = request.params
        ends = params.stop_token_ids if params.ignore_eos else self.eos_token_ids
        if sampled.token_id in ends or sampled.token_id in params.stop_token_ids:
            return "stop"
        if params.repetition_window is not None:
            is_repetitive = sampled.logprob > math.log(params.repetition_probability)
            request.num_repetitive_tokens = (request.num_repetitive_tokens + 1) * is_repetitive
            if request.num_repetitive_tokens >= params.repetition_window:
                return "repetition"
        if len(request.output_ids) >= request.max_tokens:
            return "length"
        return None

    def _find(self, request_id: int) -> Request:
        for request in (*self._running, *self._waiting):
            if request.request_id == request_id:
                return request
        raise ValueError(f"request {request_id} is unknown or finished")

    def _finish(self, request: Request) -> None:
        self._running.remove(request)
        if request.reservation is not None:
            self._owners.release(request.reservation)
            request.reservation = None
