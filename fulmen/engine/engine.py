"""The engine: requests in, tokens out.

    add_request -> waiting -> (known prefix found) -> running -> step: schedule, run, sample, record
    -> finished

A step runs the next tokens of many requests in one forward pass: one token of each request that
decodes, and pieces of the prompts that are still being read, up to max_num_batched_tokens. The
engine knows token ids only; text, stop texts and thinking are the business of `llm.py`, which may
force a request's next tokens or abort it between steps.
"""

import itertools
import logging
import math
import secrets
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch

from fulmen import __version__
from fulmen.engine.prefixes import PrefixCache, pages_for
from fulmen.engine.request import Guide, Part, Request, TokenOutput
from fulmen.engine.runner import MAX_STEP_TOKENS, Runner
from fulmen.engine.sampler import Candidates, Sampled, num_candidates, sample
from fulmen.engine.scheduler import Scheduler
from fulmen.kernels import CHUNK, PAGE, HeadOutput, numerics
from fulmen.models import Model, Packed
from fulmen.sampling import FinishReason, Mask, SamplingParams

logger = logging.getLogger(__name__)

MASKED_CANDIDATES: Final = 256
"""Candidates that a draw under a mask looks among before it asks for the whole vocabulary; the most
that the head finds without sorting it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """How much runs at once."""

    max_num_seqs: int = 8
    """Requests that run together; each owns one lightning state."""
    max_num_batched_tokens: int = 1024
    """Tokens of one forward pass, over all requests; at least max_num_seqs."""
    max_model_len: int | None = None
    """Prompt and answer together; None means the model's max_position_embeddings."""
    kv_cache_bytes: int = 2 * 2**30
    """Memory for keys and values of the softmax layers, of what runs and of prefixes that ran."""
    kv_cache_dtype: Literal["auto", "int8"] = "auto"
    """How keys and values are stored: as the model computes them, or as codes of 8 bits with a
    scale for each token and head, which holds nearly twice the tokens and costs some accuracy."""
    num_draft_tokens: int = 0
    """Guesses (at most 15) that a decoding request may check in one step: tokens that followed the
    same ones before in its own text. What is said does not change, to the bit; text that repeats
    itself comes faster."""
    snapshot_bytes: int = 2**30
    """Memory for snapshots of lightning states, where a later request can go on."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "kv_cache_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be positive")
        if self.kv_cache_dtype not in ("auto", "int8"):
            raise ValueError(f"kv_cache_dtype is {self.kv_cache_dtype!r}, it must be auto or int8")
        if not 0 <= self.num_draft_tokens < MAX_STEP_TOKENS:
            raise ValueError(
                f"num_draft_tokens is {self.num_draft_tokens}, it must be 0 to "
                f"{MAX_STEP_TOKENS - 1}"
            )
        if self.snapshot_bytes < 0:
            raise ValueError(f"snapshot_bytes is {self.snapshot_bytes}, it must not be negative")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, it must be at least "
                f"max_num_seqs, {self.max_num_seqs}, so that all that run can decode in one step"
            )
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ValueError(f"max_model_len is {self.max_model_len}, it must be at least 2")


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine did so far."""

    num_steps: int
    num_prompt_tokens: int
    """Of all requests added"""
    num_hit_tokens: int
    """Tokens that requests found in the cache when they began, or went on"""
    num_new_tokens: int
    num_preemptions: int
    num_drafted_tokens: int
    num_accepted_tokens: int
    """Of those drafted"""
    schedule_seconds: float
    """What the scheduler, guessing, masks and the bookkeeping of the cache took"""
    run_seconds: float
    """What forward passes took"""
    used_snapshot_bytes: int
    """Memory that snapshots of lightning states take now"""


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
        self._kv_dtype = torch.int8 if self.config.kv_cache_dtype == "int8" else None
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
        cache = model.new_cache(num_pages, self.config.max_num_seqs, kv_dtype=self._kv_dtype)
        self._runner = Runner(model, cache)
        self.prefixes = PrefixCache(cache, snapshot_bytes=self.config.snapshot_bytes)
        self._scheduler = Scheduler(
            self.prefixes, self.config.max_num_seqs, self.config.max_num_batched_tokens
        )
        self._requests: dict[int, Request] = {}
        """Those that wait or run"""
        self._request_ids = itertools.count()
        self._is_stepping = False
        self._in_pass: set[Request] = set()
        """Requests of the step under way whose tokens are not taken yet: their states are ahead of
        what is known of them"""
        self._num_steps = self._num_prompt_tokens = self._num_new_tokens = 0
        self._num_drafted_tokens = self._num_accepted_tokens = 0
        self._schedule_seconds = self._run_seconds = 0.0

    def _num_pages(self) -> int:
        page_bytes = self.model.page_bytes(self._kv_dtype)
        if not page_bytes:  # a model of lightning layers alone keeps no keys and values
            return 4 * self.config.max_num_seqs * pages_for(self.max_model_len)
        affordable = self.config.kv_cache_bytes // page_bytes
        if not affordable:
            raise ValueError(
                f"kv_cache_bytes is {self.config.kv_cache_bytes}, one page of 64 tokens needs "
                f"{page_bytes}"
            )
        return affordable

    def add_request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        num_begun: int = 0,
        num_repetitive: int = 0,
        priority: int = 0,
        guide: Guide | None = None,
    ) -> int:
        """Queues a request and returns its id; its tokens come out of `step`. Lower priorities go
        first, equal ones in the order they came. A guide sees every new token and may mask some.

        num_begun   the last tokens of prompt_ids that are an answer's beginning: with a seed, the
                    rest is drawn as if it had never stopped; max_tokens counts them too
        num_repetitive  the last of those in a row that were each more likely than
                    repetition_probability: the repetition_window counts them too

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
        wanted = room
        if params.max_tokens is not None:
            wanted = params.max_tokens - num_begun
            if wanted < 1:
                raise ValueError(
                    f"the answer has begun with {num_begun} tokens, max_tokens is "
                    f"{params.max_tokens}, it must be more"
                )
        request = Request(
            request_id=next(self._request_ids),
            prompt_ids=ids,
            params=params,
            seed=secrets.randbits(64) if params.seed is None else params.seed % 2**64,
            max_tokens=min(wanted, room),
            num_begun=num_begun,
            num_repetitive_tokens=num_repetitive,
            priority=priority,
            guide=guide,
        )
        self._requests[request.request_id] = request
        self._scheduler.add(request)
        self._num_prompt_tokens += len(ids)
        return request.request_id

    def _check_ids(self, token_ids: Collection[int]) -> None:
        vocab_size = self.model.config.vocab_size
        if not token_ids:
            return
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise ValueError(f"token id {wrong} is outside the {vocab_size} ids known")

    @property
    def numerics(self) -> str:
        """What the bits of keys, values and states depend on besides the model and the tokens."""
        weight = self.model.model.embed_tokens.weight
        dtype, device = str(weight.dtype).removeprefix("torch."), weight.device.type
        kv_dtype = self.config.kv_cache_dtype
        return f"fulmen-{__version__} {device} {dtype} {kv_dtype} {numerics()}"

    @property
    def has_unfinished(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._requests)

    @property
    def stats(self) -> EngineStats:
        """What was done so far."""
        return EngineStats(
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_hit_tokens=self._scheduler.num_hit_tokens,
            num_new_tokens=self._num_new_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            num_drafted_tokens=self._num_drafted_tokens,
            num_accepted_tokens=self._num_accepted_tokens,
            schedule_seconds=self._schedule_seconds,
            run_seconds=self._run_seconds,
            used_snapshot_bytes=self.prefixes.used_snapshot_bytes,
        )

    def step(self) -> list[TokenOutput]:
        """One forward pass; returns the new tokens of every request that got some."""
        return list(self.outputs())

    def outputs(self) -> Generator[TokenOutput]:
        """One forward pass; gives its new tokens one by one. A request that is aborted meanwhile
        gets no more, and what is forced on the request of the latest token counts at once, on
        another from the next step.

        If it fails, is interrupted or not read to its end, the requests that took part and were not
        done are aborted.
        """
        if self._is_stepping:
            raise RuntimeError("a step is under way, it must be read to its end first")
        self._is_stepping = True
        try:
            yield from self._outputs()
        finally:
            self._is_stepping = False

    def _outputs(self) -> Iterator[TokenOutput]:
        start = time.perf_counter()
        parts = [
            Part(self._requests[part.request.rank[1]], part.num_tokens)
            for part in self._scheduler.schedule()
        ]
        if not parts:
            return
        for part in parts:
            request = part.request
            part.forced = request.forced_ids[0] if request.forced_ids else None
            part.nudge = request.nudge
        self._add_drafts(parts)
        self._in_pass = {part.request for part in parts}
        left = list(parts)
        try:
            self._add_masks(parts)
            planned = time.perf_counter()
            found = self._run(parts)
            self._run_seconds += time.perf_counter() - planned
            self._schedule_seconds += planned - start
            self._num_steps += 1
            for part, candidates in zip(parts, found, strict=True):
                yield from self._take(part, candidates)
                left.remove(part)
        except BaseException:
            # Their states may be half written. Nothing else is touched, so the others go on.
            for part in left:
                if part.request.request_id in self._requests:
                    self._remove(part.request, keeps_end=False)
            raise
        finally:
            self._in_pass = set()

    def _add_drafts(self, parts: Sequence["Part"]) -> None:
        """Guesses for those that decode, as far as the step's budget and their pages go."""
        room = self.config.max_num_batched_tokens - sum(part.num_tokens for part in parts)
        for part in parts:
            request, allocation = part.request, part.request.allocation
            if not self.config.num_draft_tokens or request.num_pending > 1 or allocation is None:
                continue
            if part.forced is not None or part.nudge is not None:
                continue
            fed = allocation.num_tokens + 1
            # Within a chunk wrong guesses are written over; a state that took them in at the
            # chunk's end could not be taken back.
            in_chunk = CHUNK - 1 - fed % CHUNK
            to_come = request.max_tokens - request.num_new_tokens - 1
            most = min(self.config.num_draft_tokens, room, in_chunk, to_come)
            draft = request.drafter.draft(request.ids, most) if most > 0 else []
            if draft and self.prefixes.grow(allocation, fed + len(draft)):
                part.draft = draft
                room -= len(draft)
                self._num_drafted_tokens += len(draft)

    def _add_masks(self, parts: Sequence["Part"]) -> None:
        """What guides allow to those that are to be sampled; guesses they refuse are dropped."""
        for part in parts:
            guide = part.request.guide
            if (
                guide is None
                or part.forced is not None
                or part.num_tokens < part.request.num_pending
            ):
                continue
            found = guide.masks(part.draft)
            part.masks = found
            self._num_drafted_tokens -= len(part.draft) - (len(found) - 1)
            part.draft = part.draft[: len(found) - 1]

    def _take(self, part: "Part", candidates: Sequence[Candidates]) -> Iterator[TokenOutput]:
        """What a part of a step came to: no token while a prompt is read, else one and those after
        it that were guessed right."""
        request, allocation = part.request, part.request.allocation
        if allocation is None:  # aborted since the pass
            return
        self._in_pass.discard(request)
        fed = allocation.num_tokens + part.num_tokens
        self._advance(request, fed)
        if request.num_pending:
            return
        for index, best in enumerate(candidates):
            sampled = self._sample(part, index, best)
            yield self._record(request, sampled)
            self._num_new_tokens += 1
            was_guessed = index < len(part.draft) and part.draft[index] == sampled.token_id
            # What was forced or nudged since was not known to the pass.
            is_steered = bool(request.forced_ids) or request.nudge is not None
            if not was_guessed or request.allocation is None or is_steered:
                return
            self._num_accepted_tokens += 1
            self._advance(request, fed + index + 1)

    def _advance(self, request: Request, num_tokens: int) -> None:
        start = time.perf_counter()
        assert request.allocation is not None
        self.prefixes.advance(request.allocation, request.ids, num_tokens)
        self._schedule_seconds += time.perf_counter() - start

    def is_unfinished(self, request_id: int) -> bool:
        """Whether a request waits or runs."""
        return request_id in self._requests

    def force(self, request_id: int, token_ids: Collection[int]) -> None:
        """Makes token_ids the next tokens of a request, one a step, instead of sampled ones. Its
        guide is told of them, not asked."""
        self._check_ids(token_ids)
        if request_id not in self._requests:
            raise ValueError(f"request {request_id} is unknown or finished")
        self._requests[request_id].forced_ids.extend(token_ids)

    def nudge(self, request_id: int, token_id: int, bias: float) -> None:
        """Adds bias to the logit of one id where a request's next token is drawn, and only there;
        its log-probability is reported as the model gave it."""
        self._check_ids([token_id])
        if request_id not in self._requests:
            raise ValueError(f"request {request_id} is unknown or finished")
        self._requests[request_id].nudge = token_id, bias

    def abort(self, request_id: int) -> None:
        """Drops a request and frees what it owns; unknown and finished ids are ignored."""
        request = self._requests.get(request_id)
        if request is not None:
            self._remove(request, keeps_end=request not in self._in_pass)

    def _remove(self, request: Request, *, keeps_end: bool = True) -> None:
        del self._requests[request.request_id]
        self._scheduler.remove(request, keeps_end=keeps_end)

    def _run(self, parts: Sequence["Part"]) -> list[list[Candidates]]:
        """What may follow the last fed token of each part, and each of its guesses."""
        requests = [part.request for part in parts]
        allocations = [request.allocation for request in requests if request.allocation is not None]
        device = self.model.model.embed_tokens.weight.device
        packed = Packed.of(
            [part.ids for part in parts],
            context_lens=[allocation.num_tokens for allocation in allocations],
            block_tables=[allocation.pages for allocation in allocations],
            slots=[allocation.slot for allocation in allocations],
            num_logits=[1 + len(part.draft) for part in parts],
            device=device,
        )
        vocab_size = self.model.config.vocab_size
        top_k = max(num_candidates(request.params, vocab_size) for request in requests)
        masked = self._masked(parts)
        if masked:  # the allowed are mostly among the best
            top_k = max(top_k, min(MASKED_CANDIDATES, vocab_size))
        wanted = [part.target(index) for part in parts for index in range(1 + len(part.draft))]
        targets = torch.tensor(wanted, device=device)

        def is_enough(found: HeadOutput) -> bool:
            return all(
                mask.allowed[found.top_ids[row].cpu().numpy()].sum() >= n for row, mask, n in masked
            )

        found = self._runner.next_tokens(
            packed, targets=targets, top_k=top_k, is_enough=is_enough if masked else None
        )
        assert found.target_logits is not None
        sums, target_logits = found.logsumexp.tolist(), found.target_logits.tolist()
        rows = zip(sums, found.top_logits.cpu(), found.top_ids.cpu(), target_logits, strict=True)
        candidates = (Candidates(*row) for row in rows)
        return [list(itertools.islice(candidates, 1 + len(part.draft))) for part in parts]

    def _masked(self, parts: Sequence["Part"]) -> list[tuple[int, Mask, int]]:
        """The rows of logits under a mask, their masks, and how many of the allowed ids are drawn
        from."""
        masked, row = [], 0
        for part in parts:
            for index in range(1 + len(part.draft)):
                mask = part.mask(index)
                if mask is not None and part.settled(index) is None:
                    count = num_candidates(part.request.params, int(mask.allowed.sum()))
                    masked.append((row, mask, count))
                row += 1
        return masked

    @staticmethod
    def _sample(part: "Part", index: int, best: Candidates) -> Sampled:
        request = part.request
        if part.forced is not None:
            request.forced_ids.popleft()
        if request.nudge is part.nudge:
            request.nudge = None
        settled = part.settled(index)
        return sample(
            best,
            request.params,
            seed=request.seed,
            draw=request.num_begun + request.num_new_tokens,
            forced=settled,
            nudge=part.nudge,
            mask=None if settled is not None else part.mask(index),
        )

    def _record(self, request: Request, sampled: Sampled) -> TokenOutput:
        request.ids.append(sampled.token_id)
        if request.guide is not None:
            request.guide.accept(sampled.token_id)
        finish_reason = self._finish_reason(request, sampled)
        if finish_reason is not None:
            self._remove(request)
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
        if request.num_new_tokens >= request.max_tokens:
            return "length"
        return None
