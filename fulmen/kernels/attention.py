"""Softmax attention of packed sequences over paged keys and values, and the rotation before it.

The one idea: keys and values are written to pages first, those of new tokens too, and a token then
reads the pages from position 0 to its own, a page of 64 after the other. So its result is the same
whether it came in a whole prompt, in a part of one or alone. Where the C++ extension runs (CPU,
bfloat16 and float32) this holds to the bit; the plain-torch definitions below keep it to rounding.
"""

import functools
import itertools
import math
import mmap
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.native import DTYPES, native, native_alike, needs_gradient
from fulmen.kernels.norms import norm_backward

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
    extension = native_alike(k, v) if _same_kind(k, pages) else None
    if extension is None:
        pages.write(k, v, slot_mapping)
        return
    k, v, slots = _rows(k), _rows(v), slot_mapping.long().contiguous()
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


def softmax_attention(
    q: Tensor,
    pages: KVPages,
    *,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
) -> Tensor:
    """Causal attention with grouped queries; scores are scaled by 1 / sqrt(D), softmax in float32.

    q             (T, H, D)    packed new tokens
    pages         keys and values of all tokens, those before and the new ones
    cu_seqlens    (N + 1,)     int32: sequence n owns tokens cu_seqlens[n] to cu_seqlens[n + 1]
    context_lens  (N,)         int32: tokens of each sequence before the new ones
    block_table   (N, B)       int32: the pages of each sequence, in order

    Returns (T, H, D). Query head i reads key-value head i // (H / Hkv). Not differentiable:
    training uses `attend`.
    """
    _check_heads(q, pages.num_kv_heads, pages.head_dim)

    if needs_gradient(q):
        raise ValueError(
            "q needs a gradient, which keys and values in pages do not give: training reads whole "
            "sequences without a cache; wrap inference in torch.no_grad()"
        )
    extension = native_alike(q) if _same_kind(q, pages) else None
    if extension is not None:
        return _native_attention(extension, q, pages, cu_seqlens, context_lens, block_table)
    outs = []
    bounds = cu_seqlens.tolist()
    for n, context in enumerate(context_lens.tolist()):
        length = context + bounds[n + 1] - bounds[n]
        k, v = pages.read(block_table[n, : -(-length // PAGE)], length)
        outs.append(_one_sequence(q[bounds[n] : bounds[n + 1]].to(k.dtype), k, v))
    return torch.cat(outs).to(q.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, *, cu_seqlens: Tensor) -> Tensor:
    """`softmax_attention` of whole sequences that have no pages, as in training; differentiable.

    q           (T, H, D)     packed tokens
    k, v        (T, Hkv, D)   keys after rotation
    cu_seqlens  (N + 1,)      int32

    Returns (T, H, D), equal to the bit to what pages would give.
    """
    _check_heads(q, k.shape[1], k.shape[2])
    bounds = cu_seqlens.tolist()

    extension = native_alike(q, k, v)
    if extension is None:
        parts = itertools.pairwise(bounds)
        return torch.cat([_one_sequence(q[a:b], k[a:b], v[a:b]) for a, b in parts])
    if needs_gradient(q, k, v):
        out: Tensor = _Attend.apply(q, k, v, extension, cu_seqlens, bounds)  # type: ignore[no-untyped-call]
        return out
    return _through_pages(extension, q, k, v, cu_seqlens, bounds)


class _Attend(torch.autograd.Function):
    """Whole sequences, forward through pages, backward by a kernel of its own."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        extension: ModuleType,
        cu_seqlens: Tensor,
        bounds: Sequence[int],
    ) -> Tensor:
        out = _through_pages(extension, q, k, v, cu_seqlens, bounds)
        ctx.save_for_backward(q, k, v, out)
        ctx.others = extension, cu_seqlens.to("cpu", torch.int32).contiguous()
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        extension, cu_seqlens = ctx.others
        q, k, v, out = (x.contiguous() for x in ctx.saved_tensors)
        dout = dout.contiguous()
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        extension.softmax_attention_backward(
            q=q.data_ptr(),
            k=k.data_ptr(),
            v=v.data_ptr(),
            out=out.data_ptr(),
            dout=dout.data_ptr(),
            dq=dq.data_ptr(),
            dk=dk.data_ptr(),
            dv=dv.data_ptr(),
            dtype=DTYPES[q.dtype],
            cu_seqlens=cu_seqlens.data_ptr(),
            num_sequences=len(cu_seqlens) - 1,
            num_heads=q.shape[1],
            num_kv_heads=k.shape[1],
            head_dim=q.shape[2],
        )
        return dq, dk, dv, None, None, None


def _through_pages(
    extension: ModuleType,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    bounds: Sequence[int],
) -> Tensor:
    pages, slots, block_table = _own_pages(k, bounds)
    write_pages(k, v, pages, slots)
    context_lens = torch.zeros(len(bounds) - 1, dtype=torch.int32)
    return _native_attention(extension, q, pages, cu_seqlens, context_lens, block_table)


def rotate(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Queries and keys as attention takes them: normalised over all heads together, if there are
    weights for it, then turned.

    q, k            (T, H * D), (T, Hkv * D)   rows may lie apart, as parts of wider ones
    cos, sin        (T, rotary_dim / 2)        float32, of `rotary_angles`
    q_norm, k_norm  (H * D,), (Hkv * D,)       weights of RMSNorm(eps), or none

    Dimension j < rotary_dim / 2 of a head turns with j + rotary_dim / 2, those from rotary_dim on
    pass through. Sums, norm and rotation are in float32, rounded after each of scale, weight and
    rotation. Returns (T, H, D) and (T, Hkv, D); differentiable in q, k and the weights.
    """
    if cos.shape != (len(q), cos.shape[-1]) or cos.shape != sin.shape or len(k) != len(q):
        raise ValueError(
            f"q and k have {len(q)} and {len(k)} tokens, cos and sin shapes {tuple(cos.shape)} and "
            f"{tuple(sin.shape)}, needed is one row a token"
        )
    if 2 * cos.shape[-1] > head_dim or q.shape[1] % head_dim or k.shape[1] % head_dim:
        raise ValueError(
            f"rows of {q.shape[1]} and {k.shape[1]} and rotary_dim {2 * cos.shape[-1]} do not fit "
            f"head_dim {head_dim}"
        )
    if (q_norm is None) != (k_norm is None):
        raise ValueError("q_norm and k_norm go together, one is missing")
    norms = [] if q_norm is None or k_norm is None else [q_norm, k_norm]
    for norm, rows in zip(norms, (q, k), strict=False):
        if norm.shape != rows.shape[1:]:
            raise ValueError(
                f"a norm has {norm.numel()} weights for rows of {rows.shape[1]}, needed is one each"
            )

    extension = native_alike(q, k, *norms)
    if extension is None:
        if norms:
            q, k = _normalise(q, norms[0], eps), _normalise(k, norms[1], eps)
        return _turn(q, cos, sin, head_dim), _turn(k, cos, sin, head_dim)
    if needs_gradient(q, k, *norms):
        turned: tuple[Tensor, Tensor] = _Rotate.apply(  # type: ignore[no-untyped-call]
            q, k, extension, cos, sin, head_dim, eps, *norms
        )
        return turned
    return _rotate(extension, q, k, cos, sin, head_dim, eps, norms)


def _rotate(
    extension: ModuleType,
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    head_dim: int,
    eps: float,
    norms: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    q, k = _rows(q), _rows(k)
    q_out = q.new_empty(len(q), q.shape[1] // head_dim, head_dim)
    k_out = k.new_empty(len(k), k.shape[1] // head_dim, head_dim)
    # Names hold what a conversion may copy until the kernel has run.
    c, s = cos.float().contiguous(), sin.float().contiguous()
    weights = [x.contiguous() for x in norms]
    q_weight, k_weight = (x.data_ptr() for x in weights) if weights else (0, 0)
    extension.rotate(
        q=q.data_ptr(),
        q_stride=q.stride(0),
        q_norm=q_weight,
        q_out=q_out.data_ptr(),
        num_heads=q_out.shape[1],
        k=k.data_ptr(),
        k_stride=k.stride(0),
        k_norm=k_weight,
        k_out=k_out.data_ptr(),
        num_kv_heads=k_out.shape[1],
        dtype=DTYPES[q.dtype],
        num_tokens=len(q),
        head_dim=head_dim,
        half=c.shape[1],
        cos=c.data_ptr(),
        sin=s.data_ptr(),
        eps=eps,
    )
    return q_out, k_out


class _Rotate(torch.autograd.Function):
    """Backward turns the other way, then goes through the norms, if there are any."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        extension: ModuleType,
        cos: Tensor,
        sin: Tensor,
        head_dim: int,
        eps: float,
        *norms: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*((q, k, *norms) if norms else ()))
        # Not saved as tensors: the angles may have been made in inference mode.
        ctx.others = extension, cos, sin, head_dim, eps
        return _rotate(extension, q, k, cos, sin, head_dim, eps, norms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
        extension, cos, sin, head_dim, eps = ctx.others
        rows = dq.flatten(1), dk.flatten(1)
        dq, dk = (x.flatten(1) for x in _rotate(extension, *rows, cos, -sin, head_dim, eps))
        if not ctx.saved_tensors:
            return dq, dk, None, None, None, None, None
        q, k, q_norm, k_norm = ctx.saved_tensors
        dq, dq_norm, *_ = norm_backward(q, q_norm, eps, dq)
        dk, dk_norm, *_ = norm_backward(k, k_norm, eps, dk)
        return dq, dk, None, None, None, None, None, dq_norm, dk_norm


def rotary_angles(positions: Tensor, rotary_dim: int, rope_theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin (T, rotary_dim / 2) float32 of position * rope_theta^(-2j / rotary_dim), for
    positions (T,) int64; never a table of the whole context.

    The angle is rounded to float32 also for a float64 model, as in the reference implementations.
    """
    frequencies = _frequencies(rotary_dim, rope_theta, positions.device)
    extension = native() if positions.device.type == "cpu" else None
    if extension is None:
        angles = positions.float()[:, None] * frequencies
        return angles.cos(), angles.sin()
    positions = positions.long().contiguous()
    # Not torch's cos: its value may differ with the place of an element in the tensor.
    cos = torch.empty(len(positions), len(frequencies))
    sin = torch.empty_like(cos)
    extension.rotary_angles(
        positions=positions.data_ptr(),
        frequencies=frequencies.data_ptr(),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        num_tokens=len(positions),
        half=len(frequencies),
    )
    return cos, sin


@functools.lru_cache(maxsize=64)
def _frequencies(rotary_dim: int, rope_theta: float, device: torch.device) -> Tensor:
    exponents = torch.arange(0, rotary_dim, 2, device=device).float() / rotary_dim
    return 1.0 / rope_theta**exponents


def _same_kind(x: Tensor, pages: KVPages) -> bool:
    return x.dtype == pages.dtype and x.device == pages.k_pages.device


def _rows(x: Tensor) -> Tensor:
    """x with its last dimension contiguous."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _check_heads(q: Tensor, num_kv_heads: int, head_dim: int) -> None:
    if q.ndim != 3 or q.shape[2] != head_dim or q.shape[1] % num_kv_heads:
        raise ValueError(
            f"q has shape {tuple(q.shape)}, needed is (T, H, {head_dim}) with H a multiple of "
            f"{num_kv_heads} key-value heads"
        )


def _native_attention(
    extension: ModuleType,
    q: Tensor,
    pages: KVPages,
    cu_seqlens: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
) -> Tensor:
    q = _rows(q)
    out = q.new_empty(q.shape)
    # Names hold what a conversion may copy until the kernel has run.
    bounds, past, table = (
        x.to("cpu", torch.int32).contiguous() for x in (cu_seqlens, context_lens, block_table)
    )
    if len(bounds) != len(past) + 1 or len(table) != len(past) or int(bounds[-1]) != len(q):
        raise ValueError(
            f"cu_seqlens has {len(bounds)} entries and ends at {int(bounds[-1])}, for {len(q)} "
            f"tokens, {len(past)} context_lens and {len(table)} rows of block_table"
        )
    extension.softmax_attention(
        q=q.data_ptr(),
        q_token_stride=q.stride(0),
        q_head_stride=q.stride(1),
        out=out.data_ptr(),
        dtype=DTYPES[q.dtype],
        **pages._addresses(),
        block_table=table.data_ptr(),
        block_table_width=table.shape[1],
        cu_seqlens=bounds.data_ptr(),
        context_lens=past.data_ptr(),
        num_sequences=len(past),
        num_heads=q.shape[1],
        num_kv_heads=pages.num_kv_heads,
        head_dim=pages.head_dim,
    )
    return out


def _own_pages(like: Tensor, bounds: Sequence[int]) -> tuple[KVPages, Tensor, Tensor]:
    """Pages for tokens like (T, Hkv, D), their slot_mapping (T,) and block_table (N, B)."""
    # Where a sequence has fewer pages than the widest, its row ends in some that it never reads.
    slots, tables, num_pages = [], [], 0
    lens = [b - a for a, b in itertools.pairwise(bounds)]
    width = max(-(-length // PAGE) for length in lens)
    for length in lens:
        slots.append(torch.arange(length) + num_pages * PAGE)
        tables.append(torch.arange(num_pages, num_pages + width))
        num_pages += -(-length // PAGE)
    pages = KVPages(num_pages, like.shape[1], like.shape[2], dtype=like.dtype)
    return pages, torch.cat(slots), torch.stack(tables).to(torch.int32)


def _one_sequence(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q (t, H, D) of the last t positions, k and v (context + t, Hkv, D) -> (t, H, D)"""
    length, context = len(q), len(k) - len(q)
    mask = None
    if context and length > 1:
        reach = torch.arange(context + length, device=q.device)
        mask = reach[None, :] <= context + torch.arange(length, device=q.device)[:, None]
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        is_causal=not context and length > 1,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[0].transpose(0, 1)


def _normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of rows (T, C)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, head_dim: int) -> Tensor:
    """(T, H * D) -> (T, H, D)"""
    x = x.reshape(len(x), -1, head_dim)
    half = cos.shape[-1]
    wide = x[..., : 2 * half].to(torch.promote_types(x.dtype, torch.float32))
    a, b, c, s = wide[..., :half], wide[..., half:], cos[:, None], sin[:, None]
    turned = torch.cat((a * c - b * s, b * c + a * s), -1)
    return torch.cat((turned.to(x.dtype), x[..., 2 * half :]), -1)
