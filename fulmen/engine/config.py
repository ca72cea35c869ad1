"""Limits of one engine, checked against the machine's memory."""

import logging
import os
from dataclasses import dataclass
from typing import Final, Literal

import torch

from fulmen.engine.prefixes import pages_for
from fulmen.engine.runner import MAX_STEP_TOKENS
from fulmen.kernels import CHUNK, PAGE
from fulmen.models import Cache, Model
from fulmen.sampling import check_whole, shown

logger = logging.getLogger(__name__)

_MAX_BYTES: Final = 2**50
"""More than any machine has; what this one has is checked when the engine is made."""
_MAX_PAGES: Final = 2**22
"""Pages beyond these (268 million tokens) would only lengthen the list of free ones."""
_MAX_COUNT: Final = 2**31 - 1
"""The kernels count tokens and sequences in 32 bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Limits of one engine: requests, tokens, memory."""

    max_num_seqs: int = 8
    """Most requests that run together."""
    max_num_batched_tokens: int = 1024
    """Most tokens of one forward pass, over all requests; at least max_num_seqs."""
    max_token_gap_seconds: float | None = 0.25
    """Longest time between two tokens of an answer while others' prompts are read: a step reads as
    much of them as fits. None reads as fast as possible."""
    max_model_len: int | None = None
    """Most tokens of a conversation with its answer; None allows the model's whole context."""
    kv_cache_bytes: int = 2 * 2**30
    """Memory for the keys and values of running requests and known prefixes: it limits how many
    tokens the context can hold."""
    kv_cache_dtype: Literal["auto", "int8"] = "auto"
    """Precision of keys and values: the model's own, or 8 bits, which hold nearly twice the tokens
    and cost some accuracy."""
    num_draft_tokens: int = 0
    """Guess up to this many tokens (15 at most) from what followed the same words before, and check
    them in one step. Answers do not change; text that repeats itself comes faster."""
    snapshot_bytes: int = 2**30
    """Memory for snapshots of lightning states, from which later requests can start."""

    def __post_init__(self) -> None:
        check_whole("max_num_seqs", self.max_num_seqs, 1, _MAX_COUNT)
        check_whole("max_num_batched_tokens", self.max_num_batched_tokens, 1, _MAX_COUNT)
        gap = self.max_token_gap_seconds
        if gap is not None and (
            not isinstance(gap, int | float) or isinstance(gap, bool) or not 0 < gap < 1e9
        ):
            raise ValueError(
                f"max_token_gap_seconds is {shown(gap)}, it must lie between 0 and 1e9, or be none"
            )
        if self.max_model_len is not None:
            check_whole(
                "max_model_len", self.max_model_len, 2, _MAX_COUNT, needed="a whole number or none"
            )
        check_whole("kv_cache_bytes", self.kv_cache_bytes, 1, _MAX_BYTES)
        check_whole("num_draft_tokens", self.num_draft_tokens, 0, MAX_STEP_TOKENS - 1)
        check_whole("snapshot_bytes", self.snapshot_bytes, 0, _MAX_BYTES)
        if self.kv_cache_dtype not in ("auto", "int8"):
            raise ValueError(
                f"kv_cache_dtype is {shown(self.kv_cache_dtype)}, it must be auto or int8"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}, it must be at least "
                f"max_num_seqs, {self.max_num_seqs}, so that all that run can decode in one step"
            )


def context_length(model: Model, config: EngineConfig) -> int:
    """Return how many tokens of prompt and answer are allowed, whatever the cache holds."""
    longest = model.config.max_position_embeddings
    if config.max_model_len is not None and config.max_model_len > longest:
        raise ValueError(
            f"max_model_len is {config.max_model_len}, the model's context is {longest}"
        )
    return config.max_model_len or longest


def new_cache(model: Model, config: EngineConfig) -> Cache:
    """Return an empty cache of the size that the config allows.

    Raises ValueError for one that holds no page, or is larger than the machine's memory.
    """
    kv_dtype = torch.int8 if config.kv_cache_dtype == "int8" else None
    page_bytes = model.page_bytes(kv_dtype)
    max_model_len = context_length(model, config)
    memory = _memory_bytes(model.model.embed_tokens.weight.device)
    if config.kv_cache_bytes > memory and page_bytes:
        raise ValueError(
            f"kv_cache_bytes is {_size(config.kv_cache_bytes)}, this machine has {_size(memory)} "
            "of memory"
        )
    slot_bytes = model.new_cache(1, 1).snapshot_bytes(CHUNK)
    if config.max_num_seqs * slot_bytes > memory:
        raise ValueError(
            f"max_num_seqs is {config.max_num_seqs}, their lightning states take "
            f"{_size(slot_bytes)} each, this machine has {_size(memory)} of memory"
        )
    if page_bytes:
        num_pages = config.kv_cache_bytes // page_bytes
    else:  # a model of lightning layers alone keeps no keys and values
        num_pages = 4 * config.max_num_seqs * pages_for(max_model_len)
    if not num_pages:
        raise ValueError(
            f"kv_cache_bytes is {_size(config.kv_cache_bytes)}, one page of {PAGE} tokens needs "
            f"{_size(page_bytes)}"
        )
    num_pages = min(num_pages, _MAX_PAGES)
    if num_pages * PAGE < max_model_len:
        logger.warning(
            "the key-value cache of %.1f GiB holds %d tokens, the context could have %d: "
            "raise kv_cache_bytes",
            config.kv_cache_bytes / 2**30,
            num_pages * PAGE,
            max_model_len,
        )
    return model.new_cache(num_pages, config.max_num_seqs, kv_dtype=kv_dtype)


def _size(num_bytes: int) -> str:
    """Return a number of bytes as people write it, rounded to a tenth unless it is small."""
    power = min(max(num_bytes.bit_length() - 1, 0) // 10, 4)
    if power == 0:
        return f"{num_bytes} bytes"
    return f"{num_bytes / 1024**power:,.1f} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
