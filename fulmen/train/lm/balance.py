"""Balance of experts: an auxiliary loss, or a bias of the choice that no gradient touches.

M1 adds its loss over all layers jointly (`router_aux_loss`) to the model's. Jointly, each layer may
send every token to the same two experts as long as the layers do not all take the same ones, and
small models do end there: scope "layer" takes the loss layer by layer. M2 has a bias on the choice
of experts: after each step it rises for experts that had less than their share of the tokens and
falls for the others, so that nothing disturbs the model's own gradient (arXiv:2408.15664). The loss
is taken over groups of sequences that do not depend on micro-batches, the loads over the whole
step, so neither depends on how a step is cut.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fulmen.models import M1Config, Model, SparseMoE, Trace, router_aux_loss
from fulmen.train.run_file import changed_fields


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceConfig:
    """Balance of a model's experts in training."""

    kind: Literal["auto", "loss", "bias", "none"] = "auto"
    """loss adds an auxiliary loss, bias moves the choice (M2 only); auto is bias where the model
    has one, else loss."""
    coefficient: float | None = None
    """Weight of the loss; none takes router_aux_loss_coef of the model's config."""
    scope: Literal["model", "layer"] = "model"
    """model takes the loss over all layers jointly, layer takes the mean of each layer's own."""
    bias_rate: float = 0.001
    """Step of the bias."""
    group_tokens: int = 4096
    """Tokens over which the loss is taken and jitter drawn: whole sequences, whatever the
    micro-batch, which must be as large."""

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "loss", "bias", "none"):
            raise ValueError(f"kind is {self.kind!r}, it must be auto, loss, bias or none")
        if self.scope not in ("model", "layer"):
            raise ValueError(f"scope is {self.scope!r}, it must be model or layer")
        if self.coefficient is not None and not 0 <= self.coefficient <= 1e3:
            raise ValueError(f"coefficient is {self.coefficient}, it must be from 0 to 1000")
        if not 0 < self.bias_rate <= 1:
            raise ValueError(f"bias_rate is {self.bias_rate}, it must be above 0 and at most 1")
        if not 1 <= self.group_tokens < 2**31:
            raise ValueError(f"group_tokens is {self.group_tokens}, it must be 1 or more")


class Balance:
    """Balance of one model's experts, step by step."""

    def __init__(self, model: Model, config: BalanceConfig) -> None:
        """Raises ValueError for a bias that the model does not have, or a value that the kind of
        balance does not use."""
        self._config = config
        self._top_k = model.config.num_experts_per_tok
        self._is_softmax = isinstance(model.config, M1Config)
        self._layers = [each for each in model.modules() if isinstance(each, SparseMoE)]
        has_bias = any(each.e_score_correction_bias is not None for each in self._layers)
        if config.kind == "bias" and not has_bias:
            raise ValueError("kind is bias, this model's experts are chosen without one")
        has_choice = model.config.num_local_experts > 1 and config.kind != "none"
        self.moves_bias = has_choice and config.kind != "loss" and has_bias
        adds_loss = has_choice and not self.moves_bias
        has_jitter = model.config.router_jitter_noise > 0
        for name, is_used in (
            ("coefficient", adds_loss),
            ("scope", adds_loss),
            ("group_tokens", adds_loss or has_jitter),
            ("bias_rate", self.moves_bias),
        ):
            if not is_used and name in changed_fields(config):
                used = "a bias" if self.moves_bias else "a loss" if adds_loss else "nothing"
                raise ValueError(
                    f"{name} is {getattr(config, name)}, this model's experts are balanced by "
                    f"{used}, see kind"
                )
        coefficient = config.coefficient
        if coefficient is None:
            coefficient = model.config.router_aux_loss_coef
        self._coefficient = coefficient if adds_loss else 0.0
        has_groups = self._coefficient > 0 or has_jitter
        self.group_tokens = config.group_tokens if has_groups else None
        """Most tokens of a group; None where nothing is computed in groups"""
        self._loads = torch.zeros(len(self._layers), model.config.num_local_experts)

    def loss(
        self, trace: Trace, groups: Sequence[tuple[int, int]], num_step_tokens: int
    ) -> Tensor | None:
        """Return what a micro-batch adds to the step's loss, None where it adds nothing; and count
        its tokens among the experts' loads.

        groups           bounds of groups among the micro-batch's tokens
        num_step_tokens  tokens of the whole step, fixed before its first micro-batch
        """
        experts = self._loads.shape[1]
        for layer, chosen in enumerate(trace.topk_ids):
            self._loads[layer] += torch.bincount(chosen.flatten(), minlength=experts)
        if not self._coefficient:
            return None
        parts = [
            (stop - start) / num_step_tokens * self._group_loss(trace, slice(start, stop))
            for start, stop in groups
        ]
        return self._coefficient * torch.stack(parts).sum()

    def finish_step(self) -> float:
        """Move the bias by the loads of a step; return the largest load over the mean load, in any
        layer: 1 is perfect."""
        mean = self._loads.mean(-1, keepdim=True)
        largest = float((self._loads / mean.clamp(min=1e-9)).max())
        if self.moves_bias:
            steps = self._config.bias_rate * torch.sign(mean - self._loads)
            for layer, step in zip(self._layers, steps, strict=True):
                if layer.e_score_correction_bias is not None:
                    layer.e_score_correction_bias += step
        self._loads.zero_()
        return largest

    def _group_loss(self, trace: Trace, rows: slice) -> Tensor:
        logits = [each[rows] for each in trace.router_logits]
        chosen = [each[rows] for each in trace.topk_ids]
        if self._config.scope == "model":
            return self._loss_of(logits, chosen)
        layers = zip(logits, chosen, strict=True)
        return torch.stack([self._loss_of([one], [ids]) for one, ids in layers]).mean()

    def _loss_of(self, logits: Sequence[Tensor], chosen: Sequence[Tensor]) -> Tensor:
        if self._is_softmax:
            return router_aux_loss(logits, self._top_k)
        return sigmoid_aux_loss(logits, chosen)


def sigmoid_aux_loss(router_logits: Sequence[Tensor], topk_ids: Sequence[Tensor]) -> Tensor:
    """Return M1's loss for a router with sigmoid scores: E * sum over e of f_e P_e.

    router_logits holds (T, E) a layer, topk_ids (T, K). P_e is the mean share of expert e in the
    scores of a row, f_e the number of choices of e a row. Perfect balance gives K.
    """
    scores = torch.cat(tuple(router_logits)).sigmoid()
    shares = (scores / scores.sum(-1, keepdim=True)).mean(0)  # (E,)
    chosen = torch.cat(tuple(topk_ids))
    num_experts = scores.shape[-1]
    counts = torch.bincount(chosen.flatten(), minlength=num_experts).to(shares.dtype)
    return num_experts * (counts / len(chosen) * shares).sum()
