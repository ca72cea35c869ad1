"""`route` and `mixture_of_experts` in C++, and their gradients."""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fulmen.kernels.cpu.extension import DTYPES, address, loaded
from fulmen.kernels.cpu.weights import pack, stack_experts
from fulmen.kernels.gradients import needs_gradient

KEPT_BYTES: Final = 64 * 2**20
"""A layer's forward pass keeps what goes into its experts' activation for the backward pass, two
float32 for each hidden value, unless that is more than these bytes; then it is made again."""


def route(
    router_logits: Tensor, top_k: int, *, is_sigmoid: bool, choice_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Choose experts: (T, E), (E,) float32 -> weights (T, K), ids (T, K); differentiable."""
    if needs_gradient(router_logits):
        weights, ids = _Route.apply(router_logits, top_k, is_sigmoid, choice_bias)  # type: ignore[no-untyped-call]
        return weights, ids
    return _route(router_logits, top_k, is_sigmoid, choice_bias)


def _route(
    router_logits: Tensor, top_k: int, is_sigmoid: bool, choice_bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    logits = router_logits.contiguous()
    bias = None if choice_bias is None else choice_bias.float().contiguous()
    rows, num_experts = logits.shape
    weights = torch.empty(rows, top_k)
    ids = torch.empty(rows, top_k, dtype=torch.int64)
    loaded().route(
        logits=logits.data_ptr(),
        rows=rows,
        num_experts=num_experts,
        top_k=top_k,
        is_sigmoid=is_sigmoid,
        bias=address(bias),
        weights=weights.data_ptr(),
        ids=ids.data_ptr(),
    )
    return weights, ids


class _Route(torch.autograd.Function):
    """The choice of experts; only their weights have a gradient."""

    @staticmethod
    def forward(
        ctx: Any, router_logits: Tensor, top_k: int, is_sigmoid: bool, choice_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        logits = router_logits.contiguous()
        weights, ids = _route(logits, top_k, is_sigmoid, choice_bias)
        ctx.mark_non_differentiable(ids)
        ctx.is_sigmoid = is_sigmoid
        ctx.save_for_backward(logits, weights, ids)
        return weights, ids

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor | None, ...]:
        logits, weights, ids = ctx.saved_tensors
        gradient = gradient.contiguous()
        out = torch.empty_like(logits)
        rows, num_experts = logits.shape
        loaded().route_backward(
            logits=logits.data_ptr(),
            ids=ids.data_ptr(),
            weights=weights.data_ptr(),
            dweights=gradient.data_ptr(),
            rows=rows,
            num_experts=num_experts,
            top_k=weights.shape[1],
            is_sigmoid=ctx.is_sigmoid,
            dlogits=out.data_ptr(),
        )
        return out, None, None, None


def mixture_of_experts(
    hidden_states: Tensor, topk_weights: Tensor, topk_ids: Tensor, stack: Any, *, input_bits: int
) -> Tensor:
    """Run packed experts, stacked by `stack_experts`: (T, C), (T, K), (T, K) -> (T, C)."""
    return _run(hidden_states, topk_weights, topk_ids, stack, input_bits)


def _run(
    hidden_states: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    stack: Any,
    input_bits: int,
    sums: Tensor | None = None,
) -> Tensor:
    """One call of the kernel; sums (T * K, 2, F) float32 receives w1 x and w3 x, pairs of a token
    and its expert grouped by expert."""
    x, weights = hidden_states.contiguous(), topk_weights.float().contiguous()
    ids = topk_ids.long().contiguous()
    out = torch.empty_like(x)
    loaded().experts(
        x=x.data_ptr(),
        dtype=DTYPES[x.dtype],
        rows=len(x),
        x_stride=x.stride(0),
        ids=ids.data_ptr(),
        weights=weights.data_ptr(),
        top_k=ids.shape[1],
        stack=stack,
        input_bits=input_bits,
        sums=address(sums),
        out=out.data_ptr(),
    )
    return out


def train_experts(
    hidden_states: Tensor, topk_weights: Tensor, topk_ids: Tensor, flat: Sequence[Tensor]
) -> Tensor:
    """Run plain experts, whose w1, w2, w3 lie in flat, expert by expert; differentiable."""
    if needs_gradient(hidden_states, topk_weights, *flat):
        out: Tensor = _Experts.apply(hidden_states, topk_weights, topk_ids, *flat)  # type: ignore[no-untyped-call]
        return out
    return _run_plain(hidden_states, topk_weights, topk_ids, flat)


def _run_plain(
    x: Tensor,
    topk_weights: Tensor,
    topk_ids: Tensor,
    flat: Sequence[Tensor],
    sums: Tensor | None = None,
) -> Tensor:
    """Pack experts whose w1, w2, w3 lie in flat for one call of the kernel; see `_run`."""
    matrices = [pack(w) for w in flat]  # a name: lives until the kernel has run
    stack = stack_experts(matrices[::3], matrices[1::3], matrices[2::3])
    return _run(x, topk_weights, topk_ids, stack, 16, sums)


class _Experts(torch.autograd.Function):
    """The kernel forward and backward; w1, w2, w3 of every expert follow the three inputs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, topk_weights: Tensor, topk_ids: Tensor, *flat: Tensor
    ) -> Tensor:
        shape = topk_ids.numel(), 2, len(flat[0])
        is_kept = math.prod(shape) * torch.float32.itemsize <= KEPT_BYTES
        sums = torch.empty(shape, dtype=torch.float32) if is_kept else None
        ctx.save_for_backward(x, topk_weights, topk_ids, sums, *flat)
        return _run_plain(x, topk_weights, topk_ids, flat, sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, ids, sums, *flat = ctx.saved_tensors
        x, weights, ids = x.contiguous(), weights.float().contiguous(), ids.long().contiguous()
        flat = [w.contiguous() for w in flat]
        gradient = gradient.contiguous()
        x_gradient, weights_gradient, _, *flat_gradients = (
            torch.empty_like(tensor) if wanted else None
            for tensor, wanted in zip((x, weights, ids, *flat), ctx.needs_input_grad, strict=True)
        )
        w1, w2, w3 = ([w.data_ptr() for w in flat[i::3]] for i in range(3))
        dw1, dw2, dw3 = ([address(w) for w in flat_gradients[i::3]] for i in range(3))
        loaded().experts_backward(
            dtype=DTYPES[x.dtype],
            rows=len(x),
            hidden_size=x.shape[1],
            intermediate_size=len(flat[0]),
            top_k=ids.shape[1],
            x=x.data_ptr(),
            dout=gradient.data_ptr(),
            ids=ids.data_ptr(),
            weights=weights.data_ptr(),
            sums=address(sums),
            w1=w1,
            w2=w2,
            w3=w3,
            dx=address(x_gradient),
            dweights=address(weights_gradient),
            dw1=dw1,
            dw2=dw2,
            dw3=dw3,
        )
        return x_gradient, weights_gradient, None, *flat_gradients
