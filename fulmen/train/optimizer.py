"""Optimizer: AdamW for all, or Muon for the matrices, on float32 masters.

    backward, any number of times -> gradients summed in float32 -> norm, clipping -> masters move
    -> parameters are the masters, rounded

A bfloat16 weight of 0.05 has neighbours 2.4e-4 away, so a single update of 1e-4 would vanish in it.
Each parameter that is not float32 therefore has a float32 master here, and its gradients are added
up in float32, whatever the number of backward passes. The model's own tensors only ever hold the
rounded masters. The same gradients give the same bits.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import torch
from torch import Tensor, nn

from fulmen.train.run_file import changed_fields

_NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)
"""Coefficients of Muon's polynomial (Jordan et al., 2024): five rounds bring all singular values
near 1."""
_MUON_RMS: Final = 0.2
"""Root mean square of an orthogonal update after scaling by this and sqrt(max(rows, columns)): that
of a typical AdamW update, so both learning rates mean alike (arXiv:2502.16982)."""
_MUON_BATCH: Final = 2**24
"""Most elements of matrices of one shape that are orthogonalised together"""
_NOT_MATRICES: Final = (
    "embed_tokens.weight",
    "lm_head.weight",
    "block_sparse_moe.gate.weight",
    "coefficient.weight",
)
"""Ends of the names of tables, heads and routers: their rows are apart, so AdamW moves them"""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """Rule by which parameters follow their gradients."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw moves everything by AdamW; muon moves matrices by Muon, the rest by AdamW."""
    learning_rate: float = 3e-4
    """Rate of AdamW, where the schedule is at 1."""
    muon_learning_rate: float = 0.008
    """Rate of Muon, where the schedule is at 1."""
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-15
    """AdamW's; gradients of a large model's RL are as small as 1e-18 (arXiv:2506.13585)."""
    weight_decay: float = 0.0
    """Share of a matrix that is lost at each step, times the rate; norms keep all."""
    muon_momentum: float = 0.95
    muon_rounds: int = 5
    """Rounds of Newton and Schulz by which an update is made orthogonal."""
    clip_norm: float | None = 1.0
    """Gradients are scaled down to at most this norm, over all parameters together."""

    def __post_init__(self) -> None:
        if self.kind not in ("adamw", "muon"):
            raise ValueError(f"kind is {self.kind!r}, it must be adamw or muon")
        for name, low, high in (
            ("learning_rate", 0.0, 1e3),
            ("muon_learning_rate", 0.0, 1e3),
            ("eps", 0.0, 1.0),
            ("clip_norm", 0.0, 1e9),
        ):
            value = getattr(self, name)
            if value is not None and not low < value <= high:
                raise ValueError(f"{name} is {value}, it must be above {low:g}, at most {high:g}")
        for name, value in (
            ("betas", self.betas[0]),
            ("betas", self.betas[1]),
            ("muon_momentum", self.muon_momentum),
            ("weight_decay", self.weight_decay),
        ):
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 0 and below 1")
        if not 1 <= self.muon_rounds <= 100:
            raise ValueError(f"muon_rounds is {self.muon_rounds}, it must be from 1 to 100")
        for name, value in changed_fields(self).items():
            if name.startswith("muon_") and self.kind != "muon":
                raise ValueError(f"{name} is {value}, it needs kind muon, found {self.kind}")


@dataclass(slots=True, eq=False)
class _Slot:
    """A parameter with its master, the sum of its gradients, and its moments."""

    name: str
    parameter: nn.Parameter
    master: Tensor
    """The parameter itself where that is float32 or wider"""
    by_muon: bool
    decays: bool
    total: Tensor | None = None
    """Gradients so far in float32, for a parameter that is not"""
    moments: dict[str, Tensor] = field(default_factory=dict)

    @property
    def has_master(self) -> bool:
        return self.master is not self.parameter

    @property
    def gradient(self) -> Tensor | None:
        return self.total if self.has_master else self.parameter.grad


class Optimizer:
    """Optimizer of a model's trainable parameters; parameters that need no gradient cost nothing.

    While it lives, gradients of narrow parameters are here and not in their `grad`.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig | None = None) -> None:
        self.config = config or OptimizerConfig()
        self.num_steps = 0
        """Steps taken so far"""
        self._slots = [
            _new_slot(name, parameter, self.config.kind)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        if not self._slots:
            raise ValueError("the model has no parameters to train, load it with trainable=True")
        hooks = [
            slot.parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                _collect(slot)
            )
            for slot in self._slots
            if slot.has_master
        ]
        weakref.finalize(self, lambda: [hook.remove() for hook in hooks])

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> float:
        """Move all parameters; return the norm that their gradients had before clipping.

        scale  what the schedule multiplies every rate by

        Raises ValueError, and changes nothing, where a gradient is not finite.
        """
        gradients = self.gradients()
        norm = self._norm(gradients)
        factor = 1.0
        if self.config.clip_norm is not None and norm > self.config.clip_norm:
            factor = self.config.clip_norm / norm
        self.num_steps += 1
        by_shape: dict[torch.Size, list[_Slot]] = {}
        for slot in self._slots:
            gradient = gradients.get(slot.name)
            if gradient is None:
                continue
            gradient.mul_(factor)
            if slot.by_muon:
                by_shape.setdefault(slot.master.shape[-2:], []).append(slot)
            else:
                self._adamw(slot, gradient, scale * self.config.learning_rate)
        for slots in by_shape.values():
            for group in _batches(slots):
                self._muon(group, scale * self.config.muon_learning_rate)
        for slot in self._slots:
            if slot.has_master:
                slot.parameter.copy_(slot.master)
        return norm

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for slot in self._slots:
            slot.parameter.grad = slot.total = None

    def gradients(self) -> dict[str, Tensor]:
        """Return the sum of gradients of each parameter that has any, float32 or wider."""
        found = ((slot.name, slot.gradient) for slot in self._slots)
        return {name: gradient for name, gradient in found if gradient is not None}

    def state(self) -> dict[str, Tensor]:
        """Return all that a step depends on besides the model, as it is in memory, not copied."""
        tensors = {"num_steps": torch.tensor(self.num_steps)}
        for slot in self._slots:
            if slot.has_master:
                tensors[f"master.{slot.name}"] = slot.master
            tensors |= {f"{name}.{slot.name}": moment for name, moment in slot.moments.items()}
        return tensors

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave: masters, which become the parameters, and moments.

        Raises ValueError, and changes nothing, for a state of another model or kind.
        """
        self.check_state(state)
        self.num_steps = int(state["num_steps"])
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        for slot in self._slots:
            if slot.has_master:
                slot.parameter.copy_(slot.master)

    def check_state(self, state: Mapping[str, Tensor]) -> None:
        """Raise ValueError for a state of another model or kind of optimizer."""
        own = self.state()
        for name in (*own, *state):
            if name not in state or name not in own:
                verb = "lacks" if name not in state else "has"
                raise ValueError(
                    f"the optimizer's state {verb} {name}, it belongs to another model or kind of "
                    "optimizer"
                )
            if own[name].shape != state[name].shape:
                raise ValueError(
                    f"{name} of the optimizer's state has shape {tuple(state[name].shape)}, needed "
                    f"is {tuple(own[name].shape)}"
                )

    def _norm(self, gradients: Mapping[str, Tensor]) -> float:
        # In float64, so that the sum hardly depends on how torch's threads divide it.
        squares = {
            name: float(torch.linalg.vector_norm(gradient, dtype=torch.float64)) ** 2
            for name, gradient in gradients.items()
        }
        for name, square in squares.items():
            if not math.isfinite(square):
                raise ValueError(
                    f"the gradient of {name} is not finite, a lower learning rate or a smaller "
                    "clip_norm keeps a run from diverging"
                )
        return math.sqrt(sum(squares.values()))

    def _adamw(self, slot: _Slot, gradient: Tensor, rate: float) -> None:
        beta1, beta2 = self.config.betas
        first, second = slot.moments["first"], slot.moments["second"]
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction1, correction2 = (1 - beta**self.num_steps for beta in (beta1, beta2))
        denominator = second.sqrt().div_(math.sqrt(correction2)).add_(self.config.eps)
        self._decay(slot, rate)
        slot.master.addcdiv_(first, denominator, value=-rate / correction1)

    def _muon(self, slots: list[_Slot], rate: float) -> None:
        """Move matrices of one shape (rows, columns), or stacks of them, by orthogonal updates."""
        momentum = self.config.muon_momentum
        updates = []
        for slot in slots:
            gradient, average = slot.gradient, slot.moments["momentum"]
            assert gradient is not None
            average.lerp_(gradient, 1 - momentum)
            update = gradient.lerp(average, momentum)  # Nesterov's look ahead
            updates.append(update.reshape(-1, *update.shape[-2:]))
        together = orthogonalized(torch.cat(updates), self.config.muon_rounds)
        step = -rate * _MUON_RMS * math.sqrt(max(together.shape[-2:]))
        parts = torch.split(together, [len(update) for update in updates])
        for slot, update in zip(slots, parts, strict=True):
            self._decay(slot, rate)
            slot.master.add_(update.reshape(slot.master.shape), alpha=step)

    def _decay(self, slot: _Slot, rate: float) -> None:
        if slot.decays and self.config.weight_decay:
            slot.master.mul_(1 - rate * self.config.weight_decay)


def orthogonalized(matrices: Tensor, rounds: int = 5) -> Tensor:
    """Return matrices (N, rows, columns) with all singular values brought near 1: float32 on a CPU,
    where torch multiplies small bfloat16 matrices twenty times slower, else bfloat16."""
    a, b, c = _NEWTON_SCHULZ
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-30)
    x = x.float() if x.device.type == "cpu" else x.bfloat16()
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


def _new_slot(name: str, parameter: nn.Parameter, kind: str) -> _Slot:
    is_wide = parameter.dtype in (torch.float32, torch.float64)
    master: Tensor = parameter if is_wide else parameter.detach().float()
    by_muon = kind == "muon" and parameter.ndim >= 2 and not name.endswith(_NOT_MATRICES)
    names = ("momentum",) if by_muon else ("first", "second")
    moments = {each: torch.zeros_like(master, requires_grad=False) for each in names}
    return _Slot(name, parameter, master, by_muon, parameter.ndim >= 2, moments=moments)


def _collect(slot: _Slot) -> Callable[[Tensor], None]:
    """Return a hook that moves a new gradient of a parameter into its float32 sum."""

    def hook(parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None, f"{slot.name} has two optimizers"
        if slot.total is None:
            slot.total = gradient.float()
        else:
            slot.total += gradient
        parameter.grad = None

    return hook


def _batches(slots: list[_Slot]) -> Iterator[list[_Slot]]:
    """Yield slots in groups of at most `_MUON_BATCH` elements, or one slot."""
    group: list[_Slot] = []
    size = 0
    for slot in slots:
        if group and size + slot.master.numel() > _MUON_BATCH:
            yield group
            group, size = [], 0
        group.append(slot)
        size += slot.master.numel()
    yield group
