"""Pages of 64 tokens that hold the keys and values of softmax attention.

A layer's pages are one `KVPages`. How tokens lie within a page is the business of the backend that
reads them: a CPU's pages are `cpu/pages.py`, other devices have `TokenPages`, in token order.
"""

from typing import Final, Protocol

import torch
from torch import Tensor

from fulmen.kernels.backends import backend_for_alike
from fulmen.kernels.cpu import InterleavedPages
from fulmen.kernels.rounding import rounded_rows, widened_rows

PAGE: Final = 64
"""Tokens in a page of the key-value cache."""


class PageStorage(Protocol):
    """Memory of a layer's pages in one backend's layout, readable and writable in torch."""

    def tensors(self) -> dict[str, Tensor]:
        """Return everything stored, by name; the first dimension is that of pages."""

    def read(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values in pages (B,): (B * 64, Hkv, D) each."""

    def write(self, k: Tensor, v: Tensor, page: Tensor, row: Tensor) -> None:
        """Store k and v (T, Hkv, D): token t at row[t] of page[t]."""


class KVPages:
    """Keys and values of one softmax layer, in pages that sequences take and give back."""

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
        """Take memory for num_pages.

        dtype   of queries, keys and values
        stored  of what pages hold: dtype if omitted, or int8 with a float32 scale for each token
                and head
        """
        if stored not in (None, dtype, torch.int8):
            raise ValueError(f"pages for {dtype} cannot hold {stored}, only {dtype} or torch.int8")
        self.num_pages = num_pages
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.device = torch.device(device)
        self.storage: PageStorage
        """Memory in the layout of the device's backend, which alone looks inside."""
        shape = num_pages, num_kv_heads, head_dim
        if self.device.type == "cpu":
            self.storage = InterleavedPages(*shape, dtype=dtype, stored=stored or dtype)
        else:
            self.storage = TokenPages(*shape, dtype=dtype, stored=stored or dtype, device=device)

    @property
    def page_bytes(self) -> int:
        """Memory of one page: keys, values and their scales."""
        return sum(part.nbytes for part in self.stored.values()) // self.num_pages

    @property
    def stored(self) -> dict[str, Tensor]:
        """Everything stored, by name, to be saved page by page: the first dimension is that of
        pages, the others are the backend's."""
        return self.storage.tensors()

    def read(self, pages: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return the first `length` keys and values of a sequence in pages (B,).

        (length, Hkv, D) each, in dtype, or at least float32 where pages hold codes.
        """
        k, v = self.storage.read(pages.long())
        return k[:length], v[:length]

    def write(self, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
        """Store as `write_pages` does, in torch."""
        self.storage.write(k, v, slot_mapping.long() // PAGE, slot_mapping.long() % PAGE)

    def copy_page(self, source: int, target: int) -> None:
        """Make page `target` equal to page `source`."""
        for part in self.stored.values():
            part[target] = part[source]

    def holds(self, x: Tensor) -> bool:
        """Return whether x has the dtype and device of these pages."""
        return x.dtype == self.dtype and x.device.type == self.device.type


class TokenPages:
    """Pages in token order, for a device without a layout of its own."""

    def __init__(
        self,
        num_pages: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        stored: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Take memory for num_pages; see `KVPages`."""
        shape = num_pages, PAGE, num_kv_heads
        self.dtype = dtype
        self.k_pages, self.v_pages = (
            torch.zeros(*shape, head_dim, dtype=stored, device=device) for _ in "kv"
        )
        """(P, 64, Hkv, D), keys after rotation"""
        self.scales: tuple[Tensor, Tensor] | None = None
        """(P, 64, Hkv) float32 of keys and of values; None unless int8 is stored."""
        if stored == torch.int8:
            self.scales = torch.zeros(shape, device=device), torch.zeros(shape, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything stored, by name."""
        parts = {"k": self.k_pages, "v": self.v_pages}
        if self.scales is not None:
            parts |= dict(zip(("k_scales", "v_scales"), self.scales, strict=True))
        return parts

    def read(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Return all keys and values in pages (B,): (B * 64, Hkv, D) each."""
        k, v = (part[pages].flatten(0, 1) for part in (self.k_pages, self.v_pages))
        if self.scales is None:
            return k, v
        k_scales, v_scales = (scales[pages].flatten(0, 1) for scales in self.scales)
        return widened_rows(k, k_scales, self.dtype), widened_rows(v, v_scales, self.dtype)

    def write(self, k: Tensor, v: Tensor, page: Tensor, row: Tensor) -> None:
        """Store k and v (T, Hkv, D): token t at row[t] of page[t]."""
        k, v = (x.detach().to(self.dtype) for x in (k, v))
        if self.scales is not None:
            k, self.scales[0][page, row] = rounded_rows(k)
            v, self.scales[1][page, row] = rounded_rows(v)
        self.k_pages[page, row] = k
        self.v_pages[page, row] = v


def write_pages(k: Tensor, v: Tensor, pages: KVPages, slot_mapping: Tensor) -> None:
    """Store new keys and values in pages; no gradient passes.

    k, v          (T, Hkv, D)   keys after rotation
    slot_mapping  (T,)          integers: token t goes to row slot_mapping[t], counted over all
                                pages, 64 a page
    """
    if k.shape != v.shape or k.shape[1:] != (pages.num_kv_heads, pages.head_dim):
        raise ValueError(
            f"k has shape {tuple(k.shape)} and v {tuple(v.shape)}, the pages take "
            f"(T, {pages.num_kv_heads}, {pages.head_dim})"
        )
    if slot_mapping.shape != k.shape[:1]:
        raise ValueError(f"slot_mapping has {slot_mapping.numel()} rows for {len(k)} tokens")
    backend = backend_for_alike(k, v) if pages.holds(k) else None
    if backend is None:
        pages.write(k, v, slot_mapping)
    else:
        backend.write_pages(k, v, pages.storage, slot_mapping)
