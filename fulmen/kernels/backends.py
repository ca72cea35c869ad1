"""Backends: who computes an op on given tensors.

A backend is a package with the functions of `Backend`, such as `cpu/`. Each op checks its input at
its door, asks `backend_for` and runs its plain-torch reference where no backend takes the tensors.
A new backend is a package beside `cpu/` and a line in `_BACKENDS`.
"""

from collections.abc import Collection, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from fulmen.kernels import cpu
from fulmen.kernels.lengths import Lengths
from fulmen.kernels.weights import PackedMatrix


class Backend(Protocol):
    """Ops of one kind of device. Shapes and meaning are those of the op of the same name in
    `kernels/`, which has checked its input; a row's bits never depend on the rows beside it."""

    @property
    def DTYPES(self) -> Collection[torch.dtype]: ...

    def takes(self, *tensors: Tensor) -> bool: ...

    def pack(self, weight: Tensor) -> PackedMatrix: ...

    def pack_into(self, matrix: PackedMatrix, weight: Tensor) -> None: ...

    def search_codebook(
        self, weight: Tensor, columns: Tensor, group: int
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def embed(self, input_ids: Tensor, weight: Tensor) -> Tensor: ...

    def linear(
        self,
        x: Tensor,
        weight: Tensor | PackedMatrix,
        *,
        activation: str,
        out_dtype: torch.dtype,
        input_bits: int,
    ) -> Tensor: ...

    def linear_each(
        self,
        x: Tensor,
        weights: Sequence[Tensor],
        activations: Sequence[str],
        out_dtype: torch.dtype,
    ) -> tuple[Tensor, ...]: ...

    def head(
        self,
        hidden_states: Tensor,
        weight: Tensor | PackedMatrix,
        *,
        targets: Tensor | None,
        top_k: int,
        draws: Sequence[Tensor] | None,
        input_bits: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]: ...

    def target_logprobs(
        self,
        hidden_states: Tensor,
        weight: Tensor | PackedMatrix,
        targets: Tensor,
        *,
        input_bits: int,
    ) -> Tensor: ...

    def target_scores(
        self,
        hidden_states: Tensor,
        weight: Tensor | PackedMatrix,
        targets: Tensor,
        *,
        input_bits: int,
    ) -> tuple[Tensor, Tensor]: ...

    def route(
        self, router_logits: Tensor, top_k: int, *, is_sigmoid: bool, choice_bias: Tensor | None
    ) -> tuple[Tensor, Tensor]: ...

    def stack_experts(
        self,
        w1: Sequence[PackedMatrix],
        w2: Sequence[PackedMatrix],
        w3: Sequence[PackedMatrix],
    ) -> Any: ...

    def mixture_of_experts(
        self,
        hidden_states: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        stack: Any,
        *,
        input_bits: int,
    ) -> Tensor: ...

    def train_experts(
        self,
        hidden_states: Tensor,
        topk_weights: Tensor,
        topk_ids: Tensor,
        flat: Sequence[Tensor],
    ) -> Tensor: ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor: ...

    def residual_norm(
        self,
        residual: Tensor,
        branch: Tensor,
        weight: Tensor,
        eps: float,
        *,
        alpha: float,
        beta: float,
    ) -> tuple[Tensor, Tensor]: ...

    def add_residual(
        self, residual: Tensor, branch: Tensor, *, alpha: float, beta: float
    ) -> Tensor: ...

    def gated_norm(self, x: Tensor, weight: Tensor, gate_logits: Tensor, eps: float) -> Tensor: ...

    def rotary_angles(self, positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]: ...

    def rotate(
        self,
        q: Tensor,
        k: Tensor,
        cos: Tensor,
        sin: Tensor,
        *,
        head_dim: int,
        norms: Sequence[Tensor],
        eps: float,
    ) -> tuple[Tensor, Tensor]: ...

    def write_pages(self, k: Tensor, v: Tensor, pages: Any, slot_mapping: Tensor) -> None: ...

    def softmax_attention(
        self, q: Tensor, pages: Any, *, lengths: Lengths, block_table: Tensor
    ) -> Tensor: ...

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Lengths) -> Tensor: ...

    def lightning_attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        slope_rate: Tensor,
        *,
        lengths: Lengths,
        states: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Tensor: ...


_BACKENDS: Final[tuple[Backend, ...]] = (cpu,)


def backend_for(*tensors: Tensor) -> Backend | None:
    """Return the backend that takes these tensors; None where the reference must do."""
    for backend in _BACKENDS:
        if backend.takes(*tensors):
            return backend
    return None


def backend_for_alike(*tensors: Tensor) -> Backend | None:
    """Return the backend that takes these tensors, if all have one dtype."""
    return backend_for(*tensors) if len({x.dtype for x in tensors}) == 1 else None
