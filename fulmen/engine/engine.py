"""The engine: requests in, tokens out.

    add_request -> waiting -> running -> step: schedule, ask, run, take -> ... -> finished

A step runs the next tokens of many requests in one forward pass: one token of each request that
decodes, and pieces of prompts that are still being read. The engine knows token ids only. What a
request may say is decided by its `Steering`, which is asked before a token and told after it; a
fault of one request (a steering that raises, logits that are not finite) ends that request alone.
"""

import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from fulmen.engine.config import EngineConfig, context_length, new_cache
from fulmen.engine.pace import Pace
from fulmen.engine.prefixes import PrefixCache
from fulmen.engine.request import Part, Request, RequestFailed, read_ids
from fulmen.engine.runner import Runner
from fulmen.engine.sampler import Candidates, Sampled, prompt_logprobs, sample
from fulmen.engine.scheduler import Scheduler
from fulmen.engine.states import numerics_of
from fulmen.engine.stats import Counters, EngineStats, timed
from fulmen.engine.steering import Steering, TokenOutput
from fulmen.kernels import PAGE
from fulmen.models import Model, generation_cost
from fulmen.sampling import (
    FinishReason,
    SamplingParams,
    check_whole,
    count_repetitive,
    max_new_tokens,
    shown,
)

logger = logging.getLogger(__name__)


class Engine:
    """Requests on one model, run synchronously and in one thread."""

    def __init__(
        self, model: Model, config: EngineConfig | None = None, *, eos_token_ids: Sequence[int] = ()
    ) -> None:
        self.model = model
        self.policy_version = 0
        """Number of times that `load_weights` has changed the weights"""
        self.config = config or EngineConfig()
        self.eos_token_ids = frozenset(read_ids("eos_token_ids", eos_token_ids))
        cache = new_cache(model, self.config)
        self.max_model_len = min(context_length(model, self.config), cache.num_pages * PAGE)
        self.prefixes = PrefixCache(cache, snapshot_bytes=self.config.snapshot_bytes)
        self._runner = Runner(model, cache)
        self._scheduler = Scheduler(
            self.prefixes,
            self.config.max_num_seqs,
            Pace(
                self.config.max_token_gap_seconds,
                self.config.max_num_batched_tokens,
                _position_cost(model),
            ),
            self.config.num_draft_tokens,
        )
        self._requests: dict[int, Request] = {}
        """Requests that wait or run"""
        self._request_ids = itertools.count()
        self._counters = Counters()
        self._bookkeeping_seconds = 0.0

    def step(self) -> list[TokenOutput | RequestFailed]:
        """Run one forward pass; return its new tokens, and the requests that failed.

        If the pass itself fails or is interrupted, the requests that took part end, their steering
        is told, and the error is raised; the others go on.
        """
        started = time.perf_counter()
        parts = self._scheduler.schedule()  # requests, tokens of each, guesses
        outputs: list[TokenOutput | RequestFailed] = []
        with self._ending_on_error(parts):
            for part in parts:
                outputs += self._ask(part)  # which ids may come
            parts = [part for part in parts if self.is_unfinished(part.request.request_id)]
            found = self._runner.run(parts)  # one forward pass: candidates of each part
            for part, candidates in zip(parts, found, strict=True):
                outputs += self._take(part, candidates)
        self._scheduler.learn(time.perf_counter() - started)
        self._counters.add_step(parts, outputs)
        return outputs

    def add_request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        num_prefix_ids: int = 0,
        num_repetitive: int = 0,
        first_scored: int = 1,
        priority: int = 0,
        steering: Steering | None = None,
    ) -> int:
        """Queue a request and return its id; `step` returns its tokens.

        num_prefix_ids  number of the prompt's last tokens that are the answer's beginning:
                        max_tokens counts them, and with a seed the answer continues as if it had
                        never stopped
        num_repetitive  number of tokens at the end of that beginning that already count for the
                        repetition_window
        first_scored    index of the prompt's first token whose log-probability is wanted, if
                        prompt_logprobs asks for any: the cache may know those before it
        priority        lower ones go first, equal ones in the order they came
        steering        decides which tokens may come; without it, all may

        Raises ValueError for an empty prompt, an unknown token id, or a prompt that leaves no room
        for one new token in max_model_len. max_tokens is cut to the room there is.
        """
        vocab_size = self.model.config.vocab_size
        ids = read_ids("prompt_ids", prompt_ids, vocab_size)
        read_ids("stop_token_ids", params.stop_token_ids, vocab_size)
        check_whole("num_prefix_ids", num_prefix_ids, 0, len(ids))
        check_whole("num_repetitive", num_repetitive, 0, num_prefix_ids)
        check_whole("priority", priority, -(2**63), 2**63 - 1)
        max_tokens = max_new_tokens(
            params, len(ids), num_prefix_ids=num_prefix_ids, max_model_len=self.max_model_len
        )  # refuses an empty prompt
        check_whole("first_scored", first_scored, 1, len(ids))
        request = Request(
            request_id=next(self._request_ids),
            ids=ids,
            params=params,
            seed=secrets.randbits(64) if params.seed is None else params.seed % 2**64,
            max_tokens=max_tokens,
            num_prefix_ids=num_prefix_ids,
            num_repetitive_tokens=num_repetitive,
            first_scored=first_scored,
            priority=priority,
            steering=steering,
        )
        self._requests[request.request_id] = request
        self._scheduler.add(request)
        self._counters.num_prompt_tokens += len(ids)
        return request.request_id

    def abort(self, request_id: int) -> None:
        """Drop a request and free what it owns; unknown and finished ids are ignored. Only between
        steps."""
        request = self._requests.get(request_id)
        if request is not None:
            self._remove(request, "abort")

    def load_weights(self, model: Model, *, running: Literal["end", "continue"] = "end") -> int:
        """Take a model's weights, in place, and forget all prefixes; return the new policy_version.
        Only between steps. From then on the engine is as one made anew on these weights.

        model    of this engine's config; its own model, if that was changed in place
        running  end: requests that run or wait end, and their steering is told. continue: each
                 reads its prompt and what it has said so far again, and goes on under the new
                 weights

        Raises ValueError, and has changed nothing, for a model that does not fit; see
        `CausalLM.copy_weights`.
        """
        if running not in ("end", "continue"):
            raise ValueError(f"running is {shown(running)}, it must be end or continue")
        self.model.copy_weights(model)
        self.policy_version += 1
        requests = list(self._requests.values())
        for request in requests:
            if running == "continue":
                request.restart()
            else:
                self._remove(request, "abort")
        self._scheduler.restart()
        for request in requests if running == "end" else ():
            self._tell(request, lambda steering: steering.abort())
        return self.policy_version

    def is_unfinished(self, request_id: int) -> bool:
        """Return whether a request waits or runs."""
        return request_id in self._requests

    def num_read_tokens(self, request_id: int) -> int:
        """Return how many tokens of a request are in the cache, those found there included; 0 for
        one that has ended. Any thread may ask."""
        request = self._requests.get(request_id)
        return 0 if request is None else request.num_cached_tokens

    @property
    def has_unfinished(self) -> bool:
        """True if some request waits or runs."""
        return bool(self._requests)

    @property
    def numerics(self) -> str:
        """Name of all that the bits of keys, values and states depend on besides the model and the
        tokens."""
        return numerics_of(self.model, self.config.kv_cache_dtype)

    @property
    def stats(self) -> EngineStats:
        """Counts and seconds so far. Any thread may ask."""
        prefixes = self.prefixes
        num_pages, num_free = prefixes.cache.num_pages, prefixes.num_free_pages
        num_available = min(max(prefixes.num_available_pages, 0), num_pages)
        return EngineStats(
            num_steps=self._counters.num_steps,
            num_prompt_tokens=self._counters.num_prompt_tokens,
            num_queried_tokens=self._scheduler.num_queried_tokens,
            num_hit_tokens=self._scheduler.num_hit_tokens,
            num_fed_tokens=self._counters.num_fed_tokens,
            num_finished=dict(self._counters.num_finished),
            num_new_tokens=self._counters.num_new_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            num_drafted_tokens=self._counters.num_drafted_tokens,
            num_accepted_tokens=self._counters.num_accepted_tokens,
            schedule_seconds=self._scheduler.seconds + self._bookkeeping_seconds,
            run_seconds=self._runner.seconds,
            used_snapshot_bytes=prefixes.used_snapshot_bytes,
            num_running=self._scheduler.num_running,
            num_waiting=self._scheduler.num_waiting,
            kv_cache_usage=1 - num_available / num_pages,
            num_known_tokens=max(num_available - num_free, 0) * PAGE,
            num_evicted_tokens=prefixes.num_evicted_pages * PAGE,
        )

    @timed("_bookkeeping_seconds")
    def _ask(self, part: Part) -> list[RequestFailed]:
        """Ask a part's steering what may come after it; drop the guesses that may not."""
        steering = part.request.steering
        if steering is None or not part.is_sampled:
            return []
        try:
            choices = steering.ask(tuple(part.draft_ids))
            part.set_choices(choices, self.model.config.vocab_size)
        except Exception as error:
            return [self._fail(part.request, error)]
        return []

    def _take(
        self, part: Part, candidates: Sequence[Candidates]
    ) -> list[TokenOutput | RequestFailed]:
        """Return a part's new tokens: none while its prompt is read, else one, and one more after
        each draft that is verified.

        candidates  row i: those of the token after the first i drafts; before them those after
                    scored tokens of the prompt
        """
        request, outputs = part.request, list[TokenOutput | RequestFailed]()
        scored, candidates = candidates[: -part.num_places], candidates[-part.num_places :]
        for place, row in enumerate(scored, request.num_cached_tokens + 1):
            if not math.isfinite(row.logsumexp):
                return [self._fail(request, self._not_finite(row, place))]
        if part.num_scored:
            rows = [*scored, candidates[0]][: part.num_scored]
            found = prompt_logprobs(part.scored_ids, rows, request.params)
            request.add_prompt_logprobs(request.num_cached_tokens + 1, found)
        # Read before the loop: both depend on the request's progress, which the loop changes.
        is_sampled = part.is_sampled
        num_before_drafts = request.num_cached_tokens + part.num_tokens
        # Round i is reached only if the first i drafts equal the tokens sampled before it.
        # So the cache is right up to draft i, and row i holds the candidates of the next token.
        for num_verified, row in enumerate(candidates):
            num_certain = num_before_drafts + num_verified
            # Check before _advance: it publishes full pages, which other requests may then read.
            if not math.isfinite(row.logsumexp):
                return [*outputs, self._fail(request, self._not_finite(row, num_certain))]
            self._advance(request, num_certain)
            if not is_sampled:
                break  # the prompt is not read to its end
            output = self._next_token(part, num_verified, row)
            outputs.append(output)
            if isinstance(output, RequestFailed) or output.finish_reason is not None:
                break
            if num_verified == len(part.draft_ids):
                break  # no draft is left
            if output.token_id != part.draft_ids[num_verified]:
                break  # the next draft is wrong, and so is everything computed after it
        return outputs

    @timed("_bookkeeping_seconds")
    def _advance(self, request: Request, num_tokens: int) -> None:
        assert request.allocation is not None
        self.prefixes.advance(request.allocation, request.ids, num_tokens)

    def _next_token(self, part: Part, index: int, best: Candidates) -> TokenOutput | RequestFailed:
        """Sample the token after a part and the first `index` of its guesses, and tell it to the
        steering."""
        request = part.request
        sampled = sample(
            best,
            request.params,
            seed=request.seed,
            draw=request.num_answer_tokens,
            choice=part.choice(index),
        )
        request.ids.append(sampled.token_id)
        reason = self._finish_reason(request, sampled)
        num_hit = request.num_hit_tokens or 0
        waited = request.queue_seconds or 0.0
        of_prompt = request.prompt_logprobs if request.num_new_tokens == 1 else ()
        output = TokenOutput(
            request.request_id,
            *sampled,
            reason,
            num_hit,
            waited,
            of_prompt,
            self.policy_version,
        )
        if request.steering is not None:
            try:
                if request.steering.take(output):
                    output = replace(output, finish_reason="stop")
            except Exception as error:
                return self._fail(request, error)
        if output.finish_reason is not None:
            self._remove(request, output.finish_reason)
        return output

    def _finish_reason(self, request: Request, sampled: Sampled) -> FinishReason | None:
        """Return why this token is the request's last; None if it is not. Counts repetition."""
        params = request.params
        ends_turn = sampled.token_id in self.eos_token_ids and not params.ignore_eos
        if ends_turn or sampled.token_id in params.stop_token_ids:
            return "stop"
        if params.repetition_window is not None:
            num_before = request.num_repetitive_tokens
            request.num_repetitive_tokens = count_repetitive(params, num_before, sampled.logprob)
            if request.num_repetitive_tokens >= params.repetition_window:
                return "repetition"
        if request.num_new_tokens >= request.max_tokens:
            return "length"
        return None

    def _not_finite(self, best: Candidates, num_tokens: int) -> ValueError:
        """Return the error for logits that no token can be sampled from."""
        has_infinity = bool((best.logits == math.inf).any()) or math.isinf(best.logsumexp)
        dtype = str(self.model.model.embed_tokens.weight.dtype).removeprefix("torch.")
        return ValueError(
            f"the model gave {'infinite' if has_infinity else 'NaN'} logits after {num_tokens} "
            f"tokens in {dtype}: a weight is not finite or this input overflows, check the "
            "checkpoint or load it in another dtype"
        )

    def _remove(self, request: Request, reason: FinishReason) -> None:
        del self._requests[request.request_id]
        self._scheduler.remove(request, keeps_end=reason != "error")
        self._counters.num_finished[reason] += 1

    def _fail(self, request: Request, error: BaseException) -> RequestFailed:
        """End a request because of an error, and tell its steering."""
        self._remove(request, "error")
        self._tell(request, lambda steering: steering.fail(error))
        return RequestFailed(request.request_id, error)

    def _tell(self, request: Request, news: Callable[[Steering], None]) -> None:
        """Tell a request's steering, if it has one, how the request ended."""
        if request.steering is None:
            return
        try:
            news(request.steering)
        except Exception:
            logger.exception(
                "request %d ended, and its steering failed when told", request.request_id
            )

    @contextmanager
    def _ending_on_error(self, parts: Sequence[Part]) -> Iterator[None]:
        """End the requests of a step that raises: their states may be half written."""
        try:
            yield
        except BaseException as error:
            for part in parts:
                if self.is_unfinished(part.request.request_id):
                    self._fail(part.request, error)
            raise


def _position_cost(model: Model) -> float:
    """Return what each earlier token adds to the cost of a token, over the cost of a first one."""
    cost = generation_cost(model.config)
    return cost.per_position / cost.per_token
