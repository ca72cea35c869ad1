"""The experts of a layer behind one call, and the router before them.

A layer's experts are one object, not a module each: three stacked parameters to train, or matrices
packed for the kernels. Under their official names (`experts.3.w1.weight`) they are slices of the
stacks, which is what `state_dict` gives and takes.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from fulmen.kernels import (
    ExpertWeights,
    PackedExperts,
    PackedMatrix,
    Scoring,
    backend_for,
    mixture_of_experts,
    native,
    pack,
    route,
)
from fulmen.models.layers import Context, Linear, full_precision
from fulmen.models.model_config import ModelConfig

_MATRICES: Final = ("w1", "w2", "w3")


class Experts(nn.Module):
    """Gated experts: w2(silu(w1 x) * (w3 x)), each for the tokens that chose it."""

    def __init__(self, num_experts: int, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.input_bits = 16
        """Bits to which inputs are rounded for int8 and int4 weights; 8 or 16."""
        wide, narrow = (intermediate_size, hidden_size), (hidden_size, intermediate_size)
        for name, shape in (("w1", wide), ("w2", narrow), ("w3", wide)):
            self.register_parameter(name, nn.Parameter(torch.empty(num_experts, *shape)))
        self._packed: dict[str, dict[int, PackedMatrix]] = {name: {} for name in _MATRICES}
        """Packed matrices by name and expert; a name that has all of them has no parameter."""
        self._combined: PackedExperts | None = None
        with torch.no_grad():
            for matrices in () if self.get_parameter("w1").is_meta else self.weights():
                for weight in matrices:  # expert by expert, like `Linear`
                    assert isinstance(weight, Tensor)
                    nn.init.kaiming_uniform_(weight, a=5**0.5)

    def forward(self, hidden_states: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        """Return (T, C): outputs of the chosen experts (T, K) for (T, C), weighted and added."""
        experts = self._combined or self.weights()
        return mixture_of_experts(
            hidden_states, topk_weights, topk_ids, experts, input_bits=self.input_bits
        )

    def assign(self, expert: int, name: str, weight: Tensor | PackedMatrix) -> None:
        """Replace matrix `name` (w1, w2 or w3) of an expert; a packed one cannot be trained.

        Weights on the meta device get their memory when the first of a name arrives.
        """
        self._combined = None
        if isinstance(weight, PackedMatrix):
            self._packed[name][expert] = weight
            if len(self._packed[name]) == self.num_experts:
                self.register_parameter(name, None)
            return
        stack = self.get_parameter(name)
        if stack.is_meta:
            stack = nn.Parameter(weight.new_empty(stack.shape))
            self.register_parameter(name, stack)
        with torch.no_grad():
            stack[expert].copy_(weight)

    def pack(self) -> None:
        """Pack plain weights for inference, where the kernels can use them."""
        for name in _MATRICES:
            stack = self._parameters[name]
            if stack is not None and backend_for(stack) is not None:
                for expert, weight in enumerate(stack.detach()):
                    if expert not in self._packed[name]:
                        self.assign(expert, name, pack(weight))
        self.combine()

    def combine(self) -> None:
        """Describe the experts to the kernels once for all calls, when each is packed."""
        if self.is_packed and native() is not None:
            self._combined = PackedExperts(self.weights())

    @property
    def is_packed(self) -> bool:
        """True when every matrix is packed; then none moves any more."""
        return all(self._parameters[name] is None for name in _MATRICES)

    def weights(self) -> list[ExpertWeights]:
        """Return the matrices of every expert: slices of the stacks, or packed."""
        columns = (self._matrices(name) for name in _MATRICES)
        return [ExpertWeights(*matrices) for matrices in zip(*columns, strict=True)]

    def _matrices(self, name: str) -> list[Tensor] | list[PackedMatrix]:
        stack = self._parameters[name]
        if stack is not None:
            return list(stack.unbind())
        return [self._packed[name][expert] for expert in range(self.num_experts)]

    def _slices(self, prefix: str) -> dict[str, Tensor]:
        """Return the slices of the stacks by their official names, expert by expert."""
        stacks = {name: self._parameters[name] for name in _MATRICES}
        return {
            f"{prefix}{expert}.{name}.weight": stack[expert]
            for expert in range(self.num_experts)
            for name, stack in stacks.items()
            if stack is not None
        }

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, weight in self._slices(prefix).items():
            destination[name] = weight if keep_vars else weight.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        slices = self._slices(prefix)
        with torch.no_grad():
            for name, weight in slices.items():
                given = state_dict.get(name)
                if given is None:
                    missing_keys.append(name)
                elif given.shape != weight.shape:
                    error_msgs.append(
                        f"{name} has shape {tuple(given.shape)}, needed is {tuple(weight.shape)}"
                    )
                else:
                    weight.copy_(given)
        unexpected_keys += [
            name for name in state_dict if name.startswith(prefix) and name not in slices
        ]


class SparseMoE(nn.Module):
    """A router in float32 and the experts it chooses."""

    scoring: Scoring
    """Function that makes scores of logits, in which the two models differ."""
    e_score_correction_bias: Tensor | None
    """(E,) float32: takes part in the choice of experts, never in their weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_experts_per_tok = config.num_experts_per_tok
        self.router_jitter_noise = config.router_jitter_noise
        self.gate = Linear(config.hidden_size, config.num_local_experts)
        self.experts = Experts(
            config.num_local_experts, config.hidden_size, config.intermediate_size
        )
        self.register_buffer("e_score_correction_bias", None)

    def forward(self, hidden_states: Tensor, context: Context) -> Tensor:
        """Return (T, C), what the chosen experts make of (T, C)."""
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
        out: Tensor = self.experts(hidden_states, topk_weights, topk_ids)
        return out
