"""The experts of a layer, and the router before them."""

import torch
from torch import Tensor, nn

from fulmen.kernels import (
    ExpertWeights,
    PackedExperts,
    PackedMatrix,
    Scoring,
    mixture_of_experts,
    route,
)
from fulmen.models.layers import Context, Linear, full_precision
from fulmen.models.model_config import ModelConfig


class Expert(nn.Module):
    """One gated expert: w2(silu(w1 x) * (w3 x))."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.w1 = Linear(hidden_size, intermediate_size)
        self.w2 = Linear(intermediate_size, hidden_size)
        self.w3 = Linear(hidden_size, intermediate_size)

    def weights(self) -> ExpertWeights:
        """The three matrices, as the kernel takes them."""
        return ExpertWeights(self.w1.weight, self.w2.weight, self.w3.weight)


class SparseMoE(nn.Module):
    """A router in float32 and the experts it chooses."""

    scoring: Scoring
    """Where the two models differ: how logits become scores."""
    e_score_correction_bias: Tensor | None
    """(E,) float32: takes part in the choice of experts, never in their weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.router_jitter_noise = config.router_jitter_noise
        self.gate = Linear(config.hidden_size, config.num_local_experts)
        self.experts = nn.ModuleList(
            Expert(config.hidden_size, config.intermediate_size)
            for _ in range(config.num_local_experts)
        )
        self.register_buffer("e_score_correction_bias", None)
        self._packed: PackedExperts | None = None

    def weights(self) -> list[ExpertWeights]:
        """The matrices of every expert."""
        return [expert.weights() for expert in self.experts if isinstance(expert, Expert)]

    def combine(self) -> None:
        """Stands the experts side by side for inference, once each is packed."""
        experts = self.weights()
        if all(isinstance(w, PackedMatrix) for expert in experts for w in expert):
            self._packed = PackedExperts(experts)

    def forward(self, hidden_states: Tensor, context: Context) -> Tensor:
        """(T, C) -> (T, C)"""
        if self.training and self.router_jitter_noise:
            noise = torch.empty_like(hidden_states).uniform_(
                1 - self.router_jitter_noise,
                1 + self.router_jitter_noise,
                generator=context.generator,
            )
            hidden_states = hidden_states * noise
        router_logits = self.gate(hidden_states, out_dtype=full_precision(hidden_states.dtype))
        topk_weights, topk_ids = route(
            router_logits,
            self.num_experts_per_tok,
            scoring=self.scoring,
            choice_bias=self.e_score_correction_bias,
        )
        if context.trace is not None:
            context.trace.router_logits.append(router_logits)
            context.trace.topk_weights.append(topk_weights)
            context.trace.topk_ids.append(topk_ids)
        experts = self.weights() if self._packed is None else self._packed
        bits = self.input_bits
        return mixture_of_experts(hidden_states, topk_weights, topk_ids, experts, input_bits=bits)

    @property
    def input_bits(self) -> int:
        """How finely the experts' inputs are rounded, if they are int8 or int4."""
        first = self.experts[0]
        assert isinstance(first, Expert)
        return first.w1.input_bits
