"""Pages as the C++ attention reads them, and writing to them.

Dp is head_dim rounded up to 16; v is 2 for a dtype of two bytes, whose pairs multiply at once, else
1. Keys have neighbouring tokens side by side, values neighbouring dimensions, which is what a tile
of 16 lanes loads in one instruction.
"""

import math
import mmap
from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.kernels.cpu.extension import DTYPES, address, dense_rows, loaded
from fulmen.kernels.rounding import rounded_rows, widened_rows

_PAGE: Final = 64
"""Tokens in a page, kPage of csrc/attention_args.h."""
_LANES: Final = 16


class InterleavedPages:
    """Keys and values of one layer in the C++ kernels' order."""

    def __init__(
        self,
        num_pages: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        stored: torch.dtype,
        room: Callable[[tuple[int, ...], torch.dtype], Tensor] | None = None,
    ) -> None:
        """Take memory for num_pages, zeros that `room` returns; see `KVPages`."""
        room = room or _untouched_zeros
        self.head_dim = head_dim
        self.dtype = dtype
        self.pair = 2 if dtype.itemsize == 2 else 1
        """v"""
        padded = -(-head_dim // _LANES) * _LANES
        k_shape = (num_pages, num_kv_heads, padded // self.pair, _PAGE, self.pair)
        v_shape = (num_pages, num_kv_heads, _PAGE // self.pair, padded, self.pair)
        # The dimensions from head_dim to Dp stay zero: they are never written.
        self.k_pages = room(k_shape, stored)
        """(P, Hkv, Dp / v, 64, v), keys after rotation"""
        self.v_pages = room(v_shape, stored)
        """(P, Hkv, 64 / v, Dp, v)"""
        self.k_scales: Tensor | None = None
        """(P, Hkv, 64) float32, the scale of each token and head; None unless int8 is stored."""
        self.v_scales: Tensor | None = None
        if stored == torch.int8:
            scales = num_pages, num_kv_heads, _PAGE
            self.k_scales = room(scales, torch.float32)
            self.v_scales = room(scales, torch.float32)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything stored, by name; the first dimension is that of pages."""
        parts = {"k": self.k_pages, "v": self.v_pages}
        if self.k_scales is not None and self.v_scales is not None:
            parts |= {"k_scales": self.k_scales, "v_scales": self.v_scales}
        return parts

    def read(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values in pages (B,): (B * 64, Hkv, D) each, in torch."""
        k = self._k_tokens()[pages].flatten(0, 1).flatten(2)  # (B * 64, Hkv, Dp)
        v = self._v_tokens()[pages].flatten(0, 2)  # (B * 64, Hkv, Dp)
        if self.k_scales is not None and self.v_scales is not None:
            k, v = (
                widened_rows(codes, scales[pages].transpose(1, 2).flatten(0, 1), self.dtype)
                for codes, scales in ((k, self.k_scales), (v, self.v_scales))
            )
        return k[:, :, : self.head_dim], v[:, :, : self.head_dim]

    def write(self, k: Tensor, v: Tensor, page: Tensor, row: Tensor) -> None:
        """Store k and v (T, Hkv, D): token t at row[t] of page[t], in torch."""
        padding = (0, self.v_pages.shape[-2] - self.head_dim)
        k, v = (F.pad(x.detach().to(self.dtype), padding) for x in (k, v))  # (T, Hkv, Dp)
        if self.k_scales is not None and self.v_scales is not None:
            k, self.k_scales[page, :, row] = rounded_rows(k)
            v, self.v_scales[page, :, row] = rounded_rows(v)
        self._k_tokens()[page, row] = k.view(*k.shape[:2], -1, self.pair)
        self._v_tokens()[page, row // self.pair, row % self.pair] = v

    def _k_tokens(self) -> Tensor:
        """Return the keys token by token: (P, 64, Hkv, Dp / v, v), the same memory."""
        return self.k_pages.permute(0, 3, 1, 2, 4)

    def _v_tokens(self) -> Tensor:
        """Return the values token by token: (P, 64 / v, v, Hkv, Dp), the same memory."""
        return self.v_pages.permute(0, 2, 4, 1, 3)

    def addresses(self) -> dict[str, int]:
        """Return where the tensors lie, by the extension's names."""
        return {
            "k_pages": self.k_pages.data_ptr(),
            "v_pages": self.v_pages.data_ptr(),
            "k_scales": address(self.k_scales),
            "v_scales": address(self.v_scales),
            "num_pages": self.k_pages.shape[0],
        }


def write_pages(k: Tensor, v: Tensor, pages: InterleavedPages, slot_mapping: Tensor) -> None:
    """Store k and v (T, Hkv, D) at rows slot_mapping (T,) of all pages, in C++."""
    k, v, slots = dense_rows(k), dense_rows(v), slot_mapping.to("cpu", torch.int64).contiguous()
    loaded().write_pages(
        k=k.data_ptr(),
        k_token_stride=k.stride(0),
        k_head_stride=k.stride(1),
        v=v.data_ptr(),
        v_token_stride=v.stride(0),
        v_head_stride=v.stride(1),
        dtype=DTYPES[k.dtype],
        **pages.addresses(),
        slots=slots.data_ptr(),
        num_tokens=len(k),
        num_kv_heads=k.shape[1],
        head_dim=pages.head_dim,
    )


def zeros_for_now(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros in memory that torch keeps for the next who asks, for pages of one call."""
    return torch.zeros(shape, dtype=dtype)


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros that take memory only where they are touched: a cache is as large as it may
    become, and grows as it fills."""
    num_bytes = math.prod(shape) * dtype.itemsize
    if not num_bytes:
        return torch.zeros(shape, dtype=dtype)
    memory = mmap.mmap(-1, num_bytes, access=mmap.ACCESS_COPY)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
