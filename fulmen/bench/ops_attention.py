"""Operations of attention: lightning, softmax, and the rotation of queries and keys."""

import itertools
from collections.abc import Sequence
from functools import cache
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.bench.op import Op, Output, Prepared, Shapes, normal, prepare_backward, tokens_text
from fulmen.kernels import (
    CHUNK,
    PAGE,
    KVPages,
    Lengths,
    LightningCarry,
    attend,
    lightning_attention,
    rotary_angles,
    rotate,
    softmax_attention,
    write_pages,
)

_EPS: Final = 1e-6
_ROPE_THETA: Final = 1e6


def lightning_op(s: Shapes, kind: Literal["prefill", "decode"], count: int) -> Op:
    """Read `count` tokens of one prompt, or decode one token of each of `count` sequences.

    A decoded token lies in the middle of a chunk, so that a call leaves the states as they were.
    """
    is_prefill = kind == "prefill"
    what = "tokens" if is_prefill else "sequences"
    width = s.num_heads * s.head_dim
    tail = CHUNK // 2
    state_bytes = width * (4 * s.head_dim + 2 * 2 * CHUNK)
    lens = [count] if is_prefill else [1] * count
    if is_prefill:
        num_bytes = 2.0 * 4 * count * width
        # A token meets half of its chunk twice, for scores and values; it reads and feeds the
        # state.
        operations = 4.0 * count * width * (CHUNK / 2 + s.head_dim)
    else:
        num_bytes = count * width * (4.0 * s.head_dim + 2 * 2 * (tail + 1))
        operations = count * width * (2.0 * s.head_dim + 4 * (tail + 1))

    def prepare() -> Prepared:
        slopes = _slopes(s)
        cu_seqlens = torch.tensor([0, *torch.tensor(lens).cumsum(0).tolist()], dtype=torch.int32)
        num_copies = s.copies(num_bytes if is_prefill else count * state_bytes)
        num_inputs = num_copies if is_prefill else 1
        inputs = [normal(3, sum(lens), s.num_heads, s.head_dim, seed=i) for i in range(num_inputs)]
        past = [0 if is_prefill else CHUNK + tail] * len(lens)
        context_lens = torch.tensor(past, dtype=torch.int32)
        num_slots = len(lens) * (1 if is_prefill else num_copies)
        carry = LightningCarry(
            torch.randn(num_slots, s.num_heads, s.head_dim, s.head_dim),
            normal(num_slots, s.num_heads, CHUNK, s.head_dim),
            normal(num_slots, s.num_heads, CHUNK, s.head_dim),
        )
        slots = [torch.arange(start, start + len(lens)) for start in range(0, num_slots, len(lens))]

        def run(i: int) -> Tensor:
            q, k, v = inputs[i % len(inputs)]
            return lightning_attention(
                q,
                k,
                v,
                slopes,
                cu_seqlens=cu_seqlens,
                context_lens=context_lens,
                states=carry,
                slots=slots[i % len(slots)],
            )

        def define() -> Tensor:
            q, k, v = inputs[0].double()
            return lightning_attention(
                q,
                k,
                v,
                slopes,
                cu_seqlens=cu_seqlens,
                context_lens=context_lens,
                states=LightningCarry(*(x[slots[0]].double() for x in carry)),
                slots=slots[0],
            )

        return Prepared(run, num_copies, define)

    return Op(
        name=f"lightning {kind}",
        format="bfloat16",
        work=f"{count} {what}, {s.num_heads} heads of {s.head_dim}",
        num_bytes=num_bytes,
        operations=operations,
        prepare=prepare,
    )


def _slopes(s: Shapes) -> Tensor:
    return torch.tensor([2 ** (-8 * (h + 1) / s.num_heads) for h in range(s.num_heads)])


def lightning_backward_op(s: Shapes, num_tokens: int) -> Op:
    """Compute the gradients of q, k and v of lightning attention over a prompt."""
    forward = lightning_op(s, "prefill", num_tokens)

    def prepare() -> Prepared:
        slopes, bounds = _slopes(s), torch.tensor([0, num_tokens], dtype=torch.int32)
        inputs = list(normal(3, num_tokens, s.num_heads, s.head_dim))

        def apply(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return lightning_attention(q, k, v, slopes, cu_seqlens=bounds)

        return prepare_backward(s, inputs, apply)

    return Op(
        name="lightning backward",
        format="bfloat16",
        work=forward.work,
        num_bytes=forward.num_bytes / 4 * 7,  # q, k, v, the output's gradient; three gradients
        operations=2 * forward.operations,
        prepare=prepare,
    )


def softmax_op(
    s: Shapes,
    kind: Literal["prefill", "decode"],
    num_tokens: int,
    depths: Sequence[int],
    *,
    is_int8: bool = False,
) -> Op:
    """Attend from `num_tokens` of each sequence to the pages of all tokens before and among them.

    depths    tokens before, of each sequence
    is_int8   True for pages of int8 codes, else of bfloat16

    torch has an operation for one sequence.
    """
    heads, kv_heads, dim = s.num_heads, s.num_kv_heads, s.head_dim
    lens = [depth + num_tokens for depth in depths]
    pages_each = [-(-length // PAGE) for length in lens]
    token_bytes = 2 * kv_heads * (dim + 4 if is_int8 else 2 * dim)
    past_bytes = token_bytes * sum(lens)

    def prepare() -> Prepared:
        num_copies, num_pages = s.copies(past_bytes), sum(pages_each)
        pages = _noisy_pages(s, num_pages * num_copies, is_int8=is_int8)
        table = torch.zeros(len(lens), max(pages_each), dtype=torch.int32)
        ends = list(itertools.accumulate(pages_each))
        for row, count, end in zip(table, pages_each, ends, strict=True):
            row[:count] = torch.arange(end - count, end)
        tables = [table + copy * num_pages for copy in range(num_copies)]
        q = normal(num_tokens * len(lens), heads, dim)
        lengths = Lengths.of([num_tokens] * len(lens), depths)

        def define() -> Tensor:
            wide = KVPages(num_pages, kv_heads, dim, dtype=torch.float64)
            for row, length in zip(table, lens, strict=True):
                k, v = (x.double() for x in pages.read(row[: -(-length // PAGE)], length))
                write_pages(k, v, wide, int(row[0]) * PAGE + torch.arange(length))
            return softmax_attention(q.double(), wide, block_table=table, lengths=lengths)

        @cache
        def flat() -> tuple[Tensor, Tensor, Tensor]:
            shape = (num_copies, 1, kv_heads, lens[0], dim)
            keys, values = torch.randn(2, *shape, dtype=torch.bfloat16)
            reach = torch.arange(lens[0])[None, :]
            return keys, values, reach <= depths[0] + torch.arange(num_tokens)[:, None]

        def run_torch(i: int) -> Tensor:
            keys, values, mask = flat()
            return F.scaled_dot_product_attention(
                q.transpose(0, 1)[None],
                keys[i % num_copies],
                values[i % num_copies],
                attn_mask=mask if depths[0] and num_tokens > 1 else None,
                is_causal=not depths[0] and num_tokens > 1,
                enable_gqa=True,
            )

        def run(i: int) -> Tensor:
            return softmax_attention(q, pages, block_table=tables[i % num_copies], lengths=lengths)

        return Prepared(run, num_copies, define, run_torch if len(lens) == 1 else None)

    at = f"at depth {depths[0]:,}"
    if len(depths) > 1:
        at = f"each of {len(depths)} at depths {min(depths):,} to {max(depths):,}"
    return Op(
        name=f"softmax {kind}" + " from int8 pages" * is_int8,
        format="bfloat16",
        work=f"{tokens_text(num_tokens)} {at}, {heads}/{kv_heads} heads",
        num_bytes=past_bytes + 2 * 2 * len(lens) * num_tokens * heads * dim,
        operations=sum(4 * heads * dim * num_tokens * (d + (num_tokens + 1) / 2) for d in depths),
        prepare=prepare,
    )


def _noisy_pages(s: Shapes, num_pages: int, *, is_int8: bool) -> KVPages:
    stored = torch.int8 if is_int8 else torch.bfloat16
    pages = KVPages(num_pages, s.num_kv_heads, s.head_dim, dtype=torch.bfloat16, stored=stored)
    for part in pages.stored.values():
        if part.dtype == torch.int8:
            part.random_(-127, 128)
        elif is_int8:
            part.fill_(1 / 64)  # scales
        else:
            part.normal_()
    return pages


def softmax_backward_op(s: Shapes, num_tokens: int) -> Op:
    """Compute the gradients of attention over a whole sequence without pages, as in training."""
    forward = softmax_op(s, "prefill", num_tokens, [0])

    def prepare() -> Prepared:
        bounds = torch.tensor([0, num_tokens], dtype=torch.int32)
        heads = (s.num_heads, s.num_kv_heads, s.num_kv_heads)
        inputs = [normal(num_tokens, h, s.head_dim, seed=i) for i, h in enumerate(heads)]

        def in_torch(*inputs: Tensor) -> Tensor:
            q, k, v = (x.transpose(0, 1)[None] for x in inputs)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            return out[0].transpose(0, 1)

        return prepare_backward(
            s, inputs, lambda q, k, v: attend(q, k, v, cu_seqlens=bounds), in_torch
        )

    return Op(
        name="softmax backward",
        format="bfloat16",
        work=f"{tokens_text(num_tokens)}, {s.num_heads}/{s.num_kv_heads} heads",
        num_bytes=2 * forward.num_bytes,
        operations=2 * forward.operations,
        prepare=prepare,
    )


def rotary_op(s: Shapes, num_tokens: int) -> Op:
    """Normalise queries and keys over all heads, and rotate them."""
    sizes = (s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim)
    row_bytes = 2 * num_tokens * sum(sizes)

    def prepare() -> Prepared:
        num_copies = s.copies(row_bytes)
        both = torch.randn(num_copies, num_tokens, sum(sizes), dtype=torch.bfloat16)
        q_norm, k_norm = (normal(size, seed=size) for size in sizes)
        cos, sin = rotary_angles(torch.arange(num_tokens), s.rotary_dim, _ROPE_THETA)

        def turn(both: Tensor, *tensors: Tensor) -> Output:
            cos, sin, q_norm, k_norm = tensors
            q, k = both[:, : sizes[0]], both[:, sizes[0] :]
            norms = {"q_norm": q_norm, "k_norm": k_norm}
            return rotate(q, k, cos, sin, head_dim=s.head_dim, eps=_EPS, **norms)

        tensors = (cos, sin, q_norm, k_norm)
        return Prepared(
            run=lambda i: turn(both[i % num_copies], *tensors),
            num_copies=num_copies,
            define=lambda: turn(both[0].double(), *(x.double() for x in tensors)),
        )

    return Op(
        name="rotary",
        format="bfloat16",
        work=f"{tokens_text(num_tokens)}, {s.num_heads}/{s.num_kv_heads} heads and their norms",
        num_bytes=2 * row_bytes,
        operations=10 * num_tokens * sum(sizes),
        prepare=prepare,
    )
