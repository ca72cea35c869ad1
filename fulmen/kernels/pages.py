"""Pages of 64 tokens that hold the keys and values of softmax attention."""

import math
import mmap

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.kernels.backends import DTYPES, native_alike

PAGE = 64
"""Tokens in a page of the key-value cache."""


_LANES = 16


class KVPages:
    """The keys and values of one softmax layer, in pages that sequences take and give back.

    Dp is head_dim rounded up to 16, v is 2 for a dtype of two bytes, whose pairs multiply at once,
    else 1. Keys have neighbouring tokens side by side, values neighbouring dimensions.
    """

    def __init__(
        self,
        num_pages: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        stored: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """dtype is that of queries, keys and values; stored is the same if omitted, or int8."""
        if stored not in (None, dtype, torch.int8):
            raise ValueError(f"pages for {dtype} cannot hold {stored}, only {dtype} or torch.int8")
        self.head_dim = head_dim
        self.dtype = dtype
        self.pair = 2 if dtype.itemsize == 2 else 1
        """v"""
        padded = -(-head_dim // _LANES) * _LANES
        k_shape = (num_pages, num_kv_heads, padded // self.pair, PAGE, self.pair)
        v_shape = (num_pages, num_kv_heads, PAGE // self.pair, padded, self.pair)
        # Zeros for the dimensions from head_dim to Dp, which are never written.
        self.k_pages = _untouched_zeros(k_shape, stored or dtype, device)
        """(P, Hkv, Dp / v, 64, v), keys after rotation"""
        self.v_pages = _untouched_zeros(v_shape, stored or dtype, device)
        """(P, Hkv, 64 / v, Dp, v)"""
        self.k_scales: Tensor | None = None
        """(P, Hkv, 64) float32 for int8 pages: what the codes of a token and head are times"""
        self.v_scales: Tensor | None = None
        if stored == torch.int8:
            scales = num_pages, num_kv_heads, PAGE
            self.k_scales = _untouched_zeros(scales, torch.float32, device)
            self.v_scales = _untouched_zeros(scales, torch.float32, device)

    @property
    def num_pages(self) -> int:
        """P"""
        return self.k_pages.shape[0]

    @property
    def page_bytes(self) -> int:
        """Memory of one page, keys and values and their scales."""
        return sum(part.nbytes for part in self.stored.values()) // self.num_pages

    @property
    def num_kv_heads(self) -> int:
        """Hkv"""
        return self.k_pages.shape[1]

    def read(self, pages: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` tokens of a sequence in `pages` (B,): k and v (length, Hkv, D), in at
        least float32 where pages hold codes."""
        pages = pages.long()
        k = self._k_tokens()[pages].flatten(0, 1).flatten(2)  # (B * 64, Hkv, Dp)
        v = self._v_tokens()[pages].flatten(0, 2)  # (B * 64, Hkv, Dp)
        if self.k_scales is not None and self.v_scales is not None:
            wide = torch.promote_types(self.dtype, torch.float32)
            k, v = (
                codes.to(wide) * scales[pages].transpose(1, 2).reshape(*codes.shape[:2], 1)
                for codes, scales in ((k, self.k_scales), (v, self.v_scales))
            )
        return k[:length, :, : self.head_dim], v[:length, :, : self.head_dim]

    def write(self, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
        """`write_pages`, in torch."""
        page, row = slot_mapping.long() // PAGE, slot_mapping.long() % PAGE
        padding = (0, self.v_pages.shape[-2] - self.head_dim)
        k, v = (F.pad(x.detach().to(self.dtype), padding) for x in (k, v))  # (T, Hkv, Dp)
        if self.k_scales is not None and self.v_scales is not None:
            k, self.k_scales[page, :, row] = _codes(k)
            v, self.v_scales[page, :, row] = _codes(v)
        self._k_tokens()[page, row] = k.view(len(k), self.num_kv_heads, -1, self.pair)
        self._v_tokens()[page, row // self.pair, row % self.pair] = v

    @property
    def stored(self) -> dict[str, Tensor]:
        """All that is kept, by name; the first dimension is that of pages."""
        parts = {"k": self.k_pages, "v": self.v_pages}
        if self.k_scales is not None and self.v_scales is not None:
            parts |= {"k_scales": self.k_scales, "v_scales": self.v_scales}
        return parts

    def copy_page(self, source: int, target: int) -> None:
        """Makes page `target` what page `source` is."""
        for part in self.stored.values():
            part[target] = part[source]

    def _k_tokens(self) -> Tensor:
        """The keys, token by token: (P, 64, Hkv, Dp / v, v), the same memory."""
        return self.k_pages.permute(0, 3, 1, 2, 4)

    def _v_tokens(self) -> Tensor:
        """The values, token by token: (P, 64 / v, v, Hkv, Dp), the same memory."""
        return self.v_pages.permute(0, 2, 4, 1, 3)

    def _addresses(self) -> dict[str, int]:
        """Where the tensors lie, as the extension takes it."""
        return {
            "k_pages": self.k_pages.data_ptr(),
            "v_pages": self.v_pages.data_ptr(),
            "k_scales": 0 if self.k_scales is None else self.k_scales.data_ptr(),
            "v_scales": 0 if self.v_scales is None else self.v_scales.data_ptr(),
            "num_pages": self.num_pages,
        }


def _untouched_zeros(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """Zeros that on a CPU take memory only where they are touched: a cache is as large as it may
    become, and grows as it fills."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    if not num_bytes:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, num_bytes, access=mmap.ACCESS_COPY), dtype=dtype).view(
        shape
    )


def _codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes of x (T, Hkv, D) and their scales (T, Hkv); the largest of a row becomes 127.

    A row with infinity or NaN has scale NaN, so that it is not taken for numbers.
    """
    wide = x.float()
    finite = wide.isfinite().all(-1)
    largest = wide.abs().amax(-1)
    scales = torch.where(finite, largest / 127, torch.nan)
    known = torch.where(finite & (largest > 0), scales, torch.inf)
    codes = torch.where(finite[..., None], wide, 0) / known[..., None]
    return codes.round().to(torch.int8), scales


def write_pages(k: Tensor, v: Tensor, pages: KVPages, slot_mapping: Tensor) -> None:
    """Stores k and v (T, Hkv, D): token t becomes row slot_mapping[t] of the pages, counted through
    all of them. No gradient passes."""
    if k.shape != v.shape or k.shape[1:] != (pages.num_kv_heads, pages.head_dim):
        raise ValueError(
            f"k has shape {tuple(k.shape)} and v {tuple(v.shape)}, the pages take "
            f"(T, {pages.num_kv_heads}, {pages.head_dim})"
        )
    if slot_mapping.shape != k.shape[:1]:
        raise ValueError(f"slot_mapping has {slot_mapping.numel()} rows for {len(k)} tokens")
    extension = native_alike(k, v) if same_kind(k, pages) else None
    if extension is None:
        pages.write(k, v, slot_mapping)
        return
    k, v, slots = rows_of(k), rows_of(v), slot_mapping.long().contiguous()
    extension.write_pages(
        k=k.data_ptr(),
        k_token_stride=k.stride(0),
        k_head_stride=k.stride(1),
        v=v.data_ptr(),
        v_token_stride=v.stride(0),
        v_head_stride=v.stride(1),
        dtype=DTYPES[k.dtype],
        **pages._addresses(),
        slots=slots.data_ptr(),
        num_tokens=len(k),
        num_kv_heads=pages.num_kv_heads,
        head_dim=pages.head_dim,
    )


def same_kind(x: Tensor, pages: KVPages) -> bool:
    return x.dtype == pages.dtype and x.device == pages.k_pages.device


def rows_of(x: Tensor) -> Tensor:
    """x with its last dimension contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
