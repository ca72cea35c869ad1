"""The speed of a model on given hardware: GPUs, or one machine with memory and a disk.

Two bounds carry a forecast. A decoded token must read its active weights and its cache once, so
bandwidth bounds decoding. A prompt must do its FLOPs, so the matrix rate bounds reading it. Experts
that do not fit in memory are read from disk when they are chosen.

    PRECISIONS -> Weights (bytes) -> Reading (bytes of a step) -> Forecast (tokens a second)
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import torch

from fulmen.models import (
    ROUNDED_AS,
    Config,
    PackedConfig,
    TensorSpec,
    kind_of,
    num_elements,
    prefill_flops,
)
from fulmen.plan.hardware import Gpus

PRECISIONS: Final = {
    "bf16": "16 bits",
    "fp8": "8 bits, a float32 scale for a block of 128 x 128",
    "int8-experts": "experts 8 bits, a float32 scale for a row; attention bf16",
    "int8": "8.5 bits, a float32 scale for 64 weights; head 9 bits",
    "int4": "4.25 bits, an 8-bit scale for 32 weights; head 9 bits",
}
"""Formats of attention and expert matrices; embedding and norms are bf16, routers float32, and so
is the head bf16 unless it is named."""


_ROUNDED: Final = {"int8": ROUNDED_AS[8], "int4": ROUNDED_AS[4]}
"""Formats of `fulmen quantize` that are forecast, as they come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """The bytes of a model's weights at one precision."""

    experts: int
    embedding: int
    """Bytes of the embedding table, which is looked up and not read; 0 when it is also the head."""
    rest: int
    """Bytes of everything else, which each token reads."""

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return self.experts + self.embedding + self.rest


@lru_cache
def weights_at(config: Config, precision: str) -> Weights:
    """Return the bytes of a model at one of PRECISIONS."""
    packed = _packed_as(config, precision)
    is_tied = config.tie_word_embeddings and (packed is None or packed.head_bits is None)
    config = replace(config, quantization_config=packed, tie_word_embeddings=is_tied)
    experts = embedding = rest = 0
    for spec in config.tensors():
        kind = kind_of(spec)
        size = _bytes_at(spec, kind, precision, spec.dtype == config.torch_dtype)
        if kind == "experts":
            experts += size
        elif kind == "embedding" and not config.tie_word_embeddings:
            embedding += size
        else:
            rest += size
    return Weights(experts=experts, embedding=embedding, rest=rest)


def _packed_as(config: Config, precision: str) -> PackedConfig | None:
    """Return the format that `fulmen quantize` writes at a precision, or has written; None for the
    precisions of others."""
    usual, stored = _ROUNDED.get(precision), config.quantization_config
    if usual is not None and isinstance(stored, PackedConfig) and stored.bits == usual.bits:
        return stored
    return usual


def _bytes_at(spec: TensorSpec, kind: str, precision: str, is_ordinary: bool) -> int:
    size = num_elements(spec)
    if spec.dtype == torch.uint8:  # packed
        return size
    is_quantised = kind == "experts" or (kind == "dense" and precision != "int8-experts")
    if precision in ("bf16", *_ROUNDED) or not is_quantised:
        return size * (2 if is_ordinary else spec.dtype.itemsize)
    rows, columns = spec.shape
    if precision == "fp8":
        return size + 4 * math.ceil(rows / 128) * math.ceil(columns / 128)
    return size + 4 * rows


REACHED: Final = (0.2, 0.7)
"""Lowest and highest share of the bandwidth bound that public CPU engines reached in decoding."""
SKEW: Final = 0.3
"""Exponent of skewed routing: with a share s of the experts in memory, s^0.3 of the choices hit. A
public engine measured 52 % with 11 % of its experts. With uniform routing the share is s."""
SYSTEM_BYTES: Final = 2 * 1024**3
"""Memory of a machine without GPUs that the system itself takes."""
MAX_STREAMS: Final = 32
"""Most sequences that a forecast runs side by side."""
USABLE: Final = {"minimax_m1": 0.90, "minimax_m2": 0.85}
"""Share of GPU memory that serving engines may use, by model type. With it the makers' statements
come out within a quarter: M1 2M tokens on 8xH800 and 5M on 8xH20, M2 400K on 4x96 GB and 3M on
8x144 GB."""
HEADROOM: Final = 0.1
"""Share of the cache on GPUs that the longest sequence leaves free: an engine's own buffers vary,
and an engine whose limit needs the whole cache does not start."""
_LENGTH_STEP: Final = 256
"""Step in tokens of the longest sequence: a multiple of the page of any engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """Memory and speed at one precision, on the hardware asked about."""

    precision: str
    weight_bytes: int
    fits: bool
    """True if weights and one sequence of the planned length have room; if not, speeds are 0."""
    cache_tokens: int = 0
    """Tokens of cache that fit beside the weights and the state of one sequence."""
    max_model_len: int = 0
    """Tokens of the longest sequence that fits, on GPUs with headroom; 0 if the weights do not."""
    expert_share: float = 1.0
    """Share of the experts that is in memory; the rest is read from disk."""
    decode_bound: float = 0.0
    """Tokens a second of one sequence if nothing but reading took time."""
    decode_low: float | None = None
    """Tokens a second to expect at least; None on GPUs, where exchanges between them decide."""
    decode_high: float | None = None
    """Tokens a second to expect at most."""
    streams: int = 0
    """Sequences of the planned length that fit side by side, 32 at most."""
    streams_bound: float = 0.0
    """Tokens a second of all streams together, as a bound, with uniform routing."""
    prompt_seconds: float | None = None
    """Least time for a prompt of the planned length; None where it is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """Bytes that decoding must read at one precision, on any hardware."""

    precision: str
    weights: Weights
    chosen: float
    """Share of its experts that a token visits in a layer."""
    kv_bytes: int
    """Cache of one token; 0 if no layer is softmax attention."""
    state_bytes: int
    """State of one sequence; 0 if every layer is softmax attention."""
    context: int
    """Planned length of a sequence."""
    max_position_embeddings: int

    @property
    def sequence_bytes(self) -> int:
        """Bytes of cache and state of one sequence of the planned length."""
        return self.context * self.kv_bytes + self.state_bytes

    def cache_tokens(self, free: int) -> int:
        """Return the tokens whose cache fits in `free` bytes beside the state of one sequence."""
        if free < self.state_bytes:
            return 0
        if not self.kv_bytes:
            return self.max_position_embeddings
        return (free - self.state_bytes) // self.kv_bytes

    def experts_read(self, streams: int = 1) -> float:
        """Return the bytes of the experts that `streams` tokens visit, with uniform routing."""
        return self.weights.experts * (1 - (1 - self.chosen) ** streams)

    def bytes_read(self, streams: int = 1) -> float:
        """Return the bytes that a step of `streams` sequences reads: weights, caches and states."""
        return self.weights.rest + self.experts_read(streams) + streams * self.sequence_bytes


def readings(config: Config, *, kv_bytes: int, state_bytes: int, context: int) -> list[Reading]:
    """Return a reading for each of PRECISIONS."""
    return [
        Reading(
            precision=precision,
            weights=weights_at(config, precision),
            chosen=config.num_experts_per_tok / config.num_local_experts,
            kv_bytes=kv_bytes,
            state_bytes=state_bytes,
            context=context,
            max_position_embeddings=config.max_position_embeddings,
        )
        for precision in PRECISIONS
    ]


def forecast_gpus(reading: Reading, gpus: Gpus, *, usable: float, prompt_flops: float) -> Forecast:
    """Forecast weights spread over all GPUs; engines use the share `usable` of their memory."""
    gpu, weight_bytes = gpus.accelerator, reading.weights.total
    free = round(gpus.count * gpu.memory_bytes * usable) - weight_bytes
    cache_tokens = reading.cache_tokens(free)
    max_model_len = min(
        math.floor(cache_tokens * (1 - HEADROOM)) // _LENGTH_STEP * _LENGTH_STEP,
        reading.max_position_embeddings,
    )
    if max_model_len < reading.context:
        return Forecast(
            precision=reading.precision,
            weight_bytes=weight_bytes,
            fits=False,
            cache_tokens=cache_tokens,
            max_model_len=max_model_len,
        )
    bandwidth = gpus.count * gpu.bytes_per_second
    has_fp8 = reading.precision == "fp8" and gpu.fp8_flops is not None
    rate = gpu.fp8_flops if has_fp8 else gpu.bf16_flops
    assert rate is not None
    streams = min(free // reading.sequence_bytes, MAX_STREAMS)
    return Forecast(
        precision=reading.precision,
        weight_bytes=weight_bytes,
        fits=True,
        cache_tokens=cache_tokens,
        max_model_len=max_model_len,
        decode_bound=bandwidth / reading.bytes_read(),
        streams=streams,
        streams_bound=streams * bandwidth / reading.bytes_read(streams),
        prompt_seconds=prompt_flops / (gpus.count * rate),
    )


def forecast_machine(
    reading: Reading, *, ram_bytes: int, memory: float, disk: float | None
) -> Forecast:
    """Forecast one machine without GPUs; without a disk, all weights must fit in memory.

    memory, disk   bytes a second that they read
    """
    weights = reading.weights
    free = ram_bytes - SYSTEM_BYTES - weights.rest - weights.embedding
    room = free - reading.sequence_bytes
    is_in_memory = room >= weights.experts
    # Experts that a disk holds give way to the cache.
    cache_tokens = reading.cache_tokens(
        free - weights.experts if is_in_memory or disk is None else free
    )
    max_model_len = min(cache_tokens, reading.max_position_embeddings)
    forecast = Forecast(
        precision=reading.precision,
        weight_bytes=weights.total,
        fits=is_in_memory or (room >= 0 and disk is not None),
        cache_tokens=cache_tokens,
        max_model_len=max_model_len,
    )
    if is_in_memory:
        streams = min((free - weights.experts) // reading.sequence_bytes, MAX_STREAMS)
        bound = memory / reading.bytes_read()
        return replace(
            forecast,
            decode_bound=bound,
            decode_low=bound * REACHED[0],
            decode_high=bound * REACHED[1],
            streams=streams,
            streams_bound=streams * memory / reading.bytes_read(streams),
        )
    if room < 0 or disk is None:
        return forecast

    share = room / weights.experts
    missed_at_best = reading.experts_read() * (1 - share**SKEW)
    missed_at_worst = reading.experts_read() * (1 - share)
    # A layer's router says what to read only once the layer before is done: the disk's time is
    # added. What it brought is then read from memory like all else.
    in_memory = reading.bytes_read() / memory
    bound = missed_at_best / disk + in_memory
    best = missed_at_best / disk + in_memory / REACHED[1]
    worst = missed_at_worst / disk + in_memory / REACHED[0]
    # More sequences take room from the experts; half of it at most.
    streams = min(1 + room // 2 // reading.sequence_bytes, MAX_STREAMS)
    kept = (room - (streams - 1) * reading.sequence_bytes) / weights.experts
    missed = reading.experts_read(streams) * (1 - kept)
    together = missed / disk + reading.bytes_read(streams) / memory
    return replace(
        forecast,
        expert_share=share,
        decode_bound=1 / bound,
        decode_low=1 / worst,
        decode_high=1 / best,
        streams=streams,
        streams_bound=streams / together,
        # A prompt visits every expert, and a chunk of it reads each missing one once.
        prompt_seconds=weights.experts * (1 - share) / disk,
    )


def on_gpus(rows: Iterable[Reading], gpus: Gpus, config: Config, context: int) -> list[Forecast]:
    """Forecast each reading of a model on GPUs."""
    usable, flops = USABLE[config.model_type], prefill_flops(config, context)
    return [forecast_gpus(row, gpus, usable=usable, prompt_flops=flops) for row in rows]
