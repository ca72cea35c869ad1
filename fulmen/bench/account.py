"""The account of a decoded token: where its time goes, by kind of work and layer by layer.

Steps run as the engine runs them, in turn without and with instruments. With them every kernel call
is timed, and what lies between the calls; so all rows together must be as long as a token without
instruments. `Account.agreement` says how long they are.
"""

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from fulmen.bench.places import (
    EMBEDDING,
    FIRST,
    HEAD,
    LIGHTNING,
    NORMS,
    PROJECTIONS,
    ROTATION,
    ROUTER,
    SECOND,
    SHARED,
    SOFTMAX,
    Place,
    places_of,
)
from fulmen.bench.timer import ModelTimer
from fulmen.bench.workload import TOUCH_TOKENS, WARMUP_DECODE, until_steady
from fulmen.engine import Candidates, num_candidates, sample
from fulmen.kernels import (
    CallTimes,
    PackedMatrix,
    StageTimes,
    backend_for,
    linear,
    native,
    time_calls,
)
from fulmen.models import Model
from fulmen.sampling import SamplingParams

SAMPLING: Final = "sampling"
BETWEEN: Final = "between the calls"
KINDS: Final = (
    EMBEDDING,
    NORMS,
    PROJECTIONS,
    ROTATION,
    SOFTMAX,
    LIGHTNING,
    ROUTER,
    FIRST,
    SECOND,
    SHARED,
    HEAD,
    SAMPLING,
    BETWEEN,
)
"""Kinds of work, in the order of a step"""
WITHIN: Final = 0.05
"""Largest share by which all rows together may miss a token without instruments."""
_CACHE_CALLS: Final = 100
"""Calls that time a matrix in the cache"""
_CACHE_BYTES: Final = 2**18
"""Second-level cache of a processor that does not tell its size"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One row: a kind of work in one decoding step."""

    kind: str
    layer: int | None = None
    """None outside of the layers, and for all layers together"""
    calls: int = 0
    num_bytes: float = 0.0
    """Weights that are read; for attention, the past"""
    seconds: float = 0.0
    rounding: float = 0.0
    """Part of `seconds` in which inputs were laid out: rounded to 8 or 16 bits, or widened"""
    handing_over: float = 0.0
    """Part in which a thread had nothing to do, the mean over threads"""
    in_cache: float | None = None
    """Time of its products if the weights lay in the second-level cache; None where it has no
    product, or where sixteen rows of its weights do not fit"""

    @property
    def is_kernel(self) -> bool:
        """True for kernel calls; False for what Python and torch do beside them."""
        return self.kind not in (SAMPLING, BETWEEN)

    def reading(self, bytes_per_s: float) -> float:
        """Return the time that reading takes at a rate."""
        return self.num_bytes / bytes_per_s

    def arithmetic(self, bytes_per_s: float) -> float:
        """Return what is left of a kernel's time: less than nothing where bytes came faster than at
        that rate, as from a cache."""
        if not self.is_kernel:
            return 0.0
        return self.seconds - self.rounding - self.handing_over - self.reading(bytes_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """All work of one decoding step."""

    works: tuple[Work, ...]
    """One a kind and layer, in the order of a step"""
    plain_seconds: float
    """Time of a step without instruments"""
    depth: float
    """Tokens of each sequence before the step, the mean over steps"""
    is_recorded: bool
    """False where torch works between the kernels, so that no step can be recorded"""

    @property
    def total(self) -> Work:
        """Return all work together."""
        return added(self.works, "all rows")

    @property
    def agreement(self) -> float:
        """Return the time of all work over that of a step without instruments."""
        return self.total.seconds / self.plain_seconds

    def by_kind(self) -> list[Work]:
        """Return the work of all layers together, one a kind that occurs."""
        kinds = {work.kind for work in self.works}
        return [
            added((work for work in self.works if work.kind == kind), kind)
            for kind in KINDS
            if kind in kinds
        ]


def added(works: Iterable[Work], kind: str, layer: int | None = None) -> Work:
    """Return the sum of works, under a name."""
    works = list(works)
    cached = [work.in_cache for work in works if work.in_cache is not None]
    return Work(
        kind=kind,
        layer=layer,
        calls=sum(work.calls for work in works),
        num_bytes=sum(work.num_bytes for work in works),
        seconds=sum(work.seconds for work in works),
        rounding=sum(work.rounding for work in works),
        handing_over=sum(work.handing_over for work in works),
        in_cache=sum(cached) if cached else None,
    )


def check_account(dtype: torch.dtype) -> None:
    """Raise a ValueError where a model of this dtype runs without kernels."""
    if native() is None:
        raise ValueError("an account times the C++ kernels, and they are not in use here")
    if backend_for(torch.empty(0, dtype=dtype)) is None:
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"an account times the C++ kernels, and {name} runs on plain torch: choose bfloat16 or "
            "float32"
        )


def measure_account(
    model: Model, *, batch: int = 1, depth: int = 0, num_tokens: int = 64, rounds: int = 3
) -> Account:
    """Measure `num_tokens` steps of `batch` sequences of `depth` tokens, `rounds` times over, each
    once without and once with instruments.

    The faster half of the steps counts on both sides: what disturbs a machine hits single steps.
    """
    check_account(model.model.embed_tokens.weight.dtype)
    if not model.is_packed:
        raise ValueError("the model is not packed, an account is of a model as it is served")
    timer = ModelTimer(model)
    timer.reserve(batch, depth + num_tokens)
    timer.prefill(min(TOUCH_TOKENS, model.config.max_position_embeddings))
    timer.prepare(batch, depth + num_tokens)

    def warm_up() -> float:
        some = min(num_tokens, WARMUP_DECODE)
        return sum(_run_step(timer, batch, depth + i).seconds for i in range(some))

    with torch.inference_mode():
        for _ in range(2):  # a step is recorded when its shape comes a second time
            _run_step(timer, batch, depth)
        until_steady(warm_up)
        plain, timed = list[_Step](), list[_Step]()
        for context in [*range(depth, depth + num_tokens)] * rounds:
            plain.append(_run_step(timer, batch, context))
            with time_calls() as clock:
                step = _run_step(timer, batch, context)
            step.calls = clock.calls()
            timed.append(step)
        plain, timed = _faster_half(plain), _faster_half(timed)
        mean_depth = statistics.fmean(step.context for step in timed)
        works = _works(model, timed, batch, mean_depth)
    return Account(
        works=tuple(works),
        plain_seconds=statistics.fmean(step.seconds for step in plain),
        depth=mean_depth,
        is_recorded=timer.records_steps,
    )


@dataclass(slots=True)
class _Step:
    """One decoding step that was run."""

    context: int
    """Tokens of each sequence that came before"""
    seconds: float
    sampling: float
    """Part of `seconds` in which tokens were drawn"""
    calls: list[CallTimes] = field(default_factory=list)


def _run_step(timer: ModelTimer, batch: int, context: int) -> _Step:
    """Run random tokens and draw the next ones, as a request with default options does."""
    params = SamplingParams()
    top_k = num_candidates(params, timer.model.config.vocab_size)
    ids = timer.random_ids(batch, 1)
    start = time.perf_counter()
    found = timer.forward(ids, context, top_k=top_k)
    drawing = time.perf_counter()
    for row, logsumexp in enumerate(found.logsumexp.tolist()):
        best = Candidates(logsumexp, found.top_logits[row], found.top_ids[row])
        sample(best, params, seed=row, draw=context)
    end = time.perf_counter()
    return _Step(context, end - start, end - drawing)


def _faster_half(steps: Sequence[_Step]) -> list[_Step]:
    return sorted(steps, key=lambda step: step.seconds)[: -(-len(steps) // 2)]


def _works(model: Model, steps: Sequence[_Step], batch: int, depth: float) -> list[Work]:
    """Return the mean work of steps that make the same calls, one a kind and layer.

    Raises ValueError for steps that make different calls.
    """
    places = places_of(model, steps[0].calls, batch=batch, depth=depth)
    groups: dict[tuple[int | None, str], list[Work]] = {}
    cached = _CachedRates(model)
    for stages, *calls in zip(places, *(step.calls for step in steps), strict=True):
        if len({(call.kernel, call.weights) for call in calls}) > 1:
            raise ValueError("the steps of this model make different calls, they have no mean")
        num_matrices = statistics.fmean(call.num_matrices for call in calls)
        for place, *times in zip(stages, *(call.stages for call in calls), strict=True):
            work = _mean_work(place, times, num_matrices)
            if place.matrix is not None:
                rows = batch
                if place.is_experts:
                    chosen = batch * model.config.num_experts_per_tok
                    rows = max(1, round(chosen / num_matrices))
                work = replace(work, in_cache=cached.seconds(place, rows, work.num_bytes))
            groups.setdefault((place.layer, place.kind), []).append(work)
    works = [added(some, kind, layer) for (layer, kind), some in groups.items()]
    sampling = statistics.fmean(step.sampling for step in steps)
    inside = sum(work.seconds for work in works)
    between = statistics.fmean(step.seconds for step in steps) - sampling - inside
    works.append(Work(kind=SAMPLING, calls=batch, seconds=sampling))
    works.append(Work(kind=BETWEEN, seconds=between))
    return works


def _mean_work(place: Place, times: Sequence[StageTimes], num_matrices: float) -> Work:
    """Return the mean of one stage of a call over steps."""
    seconds, rounding, idle = (statistics.fmean(column) for column in zip(*times, strict=True))
    return Work(
        kind=place.kind,
        layer=place.layer,
        calls=1,
        num_bytes=place.num_bytes * (num_matrices if place.is_experts else 1),
        seconds=seconds,
        rounding=rounding,
        handing_over=idle,
    )


class _CachedRates:
    """Rates of products whose weights need not come from memory, measured once a kind."""

    def __init__(self, model: Model) -> None:
        self._dtype = model.model.embed_tokens.weight.dtype
        self._rates: dict[object, float | None] = {}

    def seconds(self, place: Place, rows: int, num_bytes: float) -> float | None:
        """Return the seconds of a product of so many bytes; None where none can be in cache."""
        matrix = place.matrix
        assert matrix is not None
        key = matrix.format, matrix.group, matrix.k, place.input_bits, rows
        if key not in self._rates:
            self._rates[key] = _cached_seconds_per_byte(place, matrix, rows, self._dtype)
        rate = self._rates[key]
        return None if rate is None else num_bytes * rate


def _cached_seconds_per_byte(
    place: Place, matrix: PackedMatrix, rows: int, dtype: torch.dtype
) -> float | None:
    """Return how long a product takes by byte of weights, with all threads, where the weights lie
    in the second-level cache; None where not even one block of 16 columns fits."""
    num_blocks = -(-matrix.n // 16)
    block_bytes = matrix.data.nbytes // num_blocks
    # Half of the cache of each core: whichever thread takes a panel, it is there.
    blocks = min(num_blocks, second_level_cache() // 2 // block_bytes)
    if blocks == 0:
        return None
    if blocks > 4:
        blocks -= blocks % 4  # whole panels
    data = matrix.data[: blocks * block_bytes].clone()
    small = replace(matrix, data=data, n=min(matrix.n, 16 * blocks))
    x = torch.randn(rows, matrix.k).to(dtype)
    with time_calls() as clock:
        for _ in range(_CACHE_CALLS):
            linear(x, small, input_bits=place.input_bits)
    busy = [
        stage.seconds - stage.preparing - stage.idle
        for call in clock.calls()
        for stage in call.stages
    ]
    return statistics.median(busy) / data.nbytes


def second_level_cache() -> int:
    """Return the bytes of a core's second-level cache."""
    try:
        found = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (ValueError, OSError):  # not Linux
        found = 0
    return found if found > 0 else _CACHE_BYTES
