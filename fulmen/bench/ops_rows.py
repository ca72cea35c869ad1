"""Operations on the rows of hidden states: norms, and the embedding that makes them."""

from collections.abc import Callable
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.bench.op import Op, Output, Prepared, Shapes, normal, tokens_text
from fulmen.kernels import embed, gated_norm, residual_norm, rms_norm

_EPS: Final = 1e-6


def norm_op(s: Shapes, num_tokens: int) -> Op:
    """Normalise rows."""

    def apply(x: Tensor, weight: Tensor) -> Output:
        return rms_norm(x[0], weight, _EPS)

    def in_torch(x: Tensor, weight: Tensor) -> Output:
        return F.rms_norm(x[0], weight.shape, weight, _EPS)

    return _normed(s, "rms norm", num_tokens, 1, 1, apply, in_torch)


def residual_norm_op(s: Shapes, num_tokens: int) -> Op:
    """Add rows to the residual stream, and normalise the sum."""

    def apply(x: Tensor, weight: Tensor) -> Output:
        return residual_norm(x[0], x[1], weight, _EPS)

    def in_torch(x: Tensor, weight: Tensor) -> Output:
        stream = x[0] + x[1]
        return stream, F.rms_norm(stream, weight.shape, weight, _EPS)

    return _normed(s, "residual norm", num_tokens, 2, 2, apply, in_torch)


def gated_norm_op(s: Shapes, num_tokens: int) -> Op:
    """Normalise rows and multiply them by a gate."""

    def apply(x: Tensor, weight: Tensor) -> Output:
        return gated_norm(x[0], weight, x[1], _EPS)

    def in_torch(x: Tensor, weight: Tensor) -> Output:
        return x[1].sigmoid() * F.rms_norm(x[0], weight.shape, weight, _EPS)

    return _normed(s, "gated norm", num_tokens, 2, 1, apply, in_torch)


def _normed(
    s: Shapes,
    name: str,
    num_tokens: int,
    num_inputs: int,
    num_outputs: int,
    apply: Callable[[Tensor, Tensor], Output],
    in_torch: Callable[[Tensor, Tensor], Output],
) -> Op:
    """Build a norm; `apply` and `in_torch` take inputs (num_inputs, T, C) and a weight (C,)."""
    row_bytes = 2 * num_tokens * s.hidden_size

    def prepare() -> Prepared:
        num_copies = s.copies(num_inputs * row_bytes)
        x = torch.randn(num_copies, num_inputs, num_tokens, s.hidden_size, dtype=torch.bfloat16)
        weight = normal(s.hidden_size)
        return Prepared(
            run=lambda i: apply(x[i % num_copies], weight),
            num_copies=num_copies,
            define=lambda: apply(x[0].double(), weight.double()),
            run_torch=lambda i: in_torch(x[i % num_copies], weight),
        )

    return Op(
        name=name,
        format="bfloat16",
        work=f"{num_tokens} x {s.hidden_size}",
        num_bytes=(num_inputs + num_outputs) * row_bytes,
        operations=(3 + num_inputs) * num_tokens * s.hidden_size,
        prepare=prepare,
    )


def embedding_op(s: Shapes, num_tokens: int) -> Op:
    """Look up rows by id."""

    def prepare() -> Prepared:
        weight = normal(s.vocab_size, s.hidden_size)
        draw = torch.Generator().manual_seed(1)
        num_copies = s.copies(2 * num_tokens * s.hidden_size)
        ids = torch.randint(s.vocab_size, (num_copies, num_tokens), generator=draw)
        return Prepared(
            run=lambda i: embed(ids[i % num_copies], weight),
            num_copies=num_copies,
            define=lambda: weight[ids[0]].double(),
            run_torch=lambda i: F.embedding(ids[i % num_copies], weight),
        )

    return Op(
        name="embedding",
        format="bfloat16",
        work=f"{tokens_text(num_tokens)} of {s.vocab_size:,} x {s.hidden_size}",
        num_bytes=4 * num_tokens * s.hidden_size,
        operations=0,
        prepare=prepare,
    )
