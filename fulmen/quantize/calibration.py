"""A calibration text: it runs through a model layer by layer, and each layer is rounded for it.

    hidden states -> original layer: the inputs of its matrices -> round them for those (gptq.py)
                  -> rounded layer  -> hidden states for the next layer

So every layer is rounded for the inputs that the rounded layers before it give, and each expert for
the tokens that chose it. In memory are embedding and head, one layer with its rounded matrices, the
text's hidden states, the inputs of the layer's matrices, and the work of a bounded number of
threads (`JOBS_BYTES`).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fulmen.checkpoints import Checkpoint, assign_matrix, read_header, stream_model
from fulmen.kernels import PackedMatrix, backend_for, embed, rotary_angles
from fulmen.models import Config, Context, Experts, Linear, Packed, PackedConfig, SparseMoE, Trace
from fulmen.quantize.gptq import feedback_of, round_with_feedback
from fulmen.quantize.quality import in_sequences
from fulmen.quantize.rounding import Rounded, check_rounded, compared, round_matrix, single_threads

MIN_TOKENS: Final = 256
"""Fewest inputs that a matrix is rounded for: with fewer, as of an expert that few tokens chose, it
would suit only those few, and is rounded without feedback."""

JOBS_BYTES: Final = 8 * 2**30
"""Memory for rounding matrices, over all threads; fewer threads run where one needs much. One
thread always runs, even if it needs more."""

_EXPERTS: Final = "block_sparse_moe.experts"

_Job = Callable[[], dict[str, Rounded]]


@dataclass(slots=True)
class _Inputs:
    """Inputs of the matrices of a layer."""

    by_module: dict[str, Tensor] = field(default_factory=dict)
    """(T, columns of its matrix); modules that share their inputs hold the same tensor"""
    expert_inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    """(T, C)"""
    topk_ids: Tensor = field(default_factory=lambda: torch.empty(0))
    """(T, K) int64: experts that each token chose"""


class Calibration:
    """A text on its way through a model, at the layer that is rounded next."""

    def __init__(self, checkpoint: Checkpoint, config: Config, input_ids: Sequence[int]) -> None:
        """Begin a text. `checkpoint` is the original, `config` that of the rounded result."""
        assert isinstance(config.quantization_config, PackedConfig)
        self.checkpoint, self.config = checkpoint, config
        self.quantization = config.quantization_config
        self._model = stream_model(
            checkpoint.path,
            dtype=config.torch_dtype,
            ignore_config_fields=checkpoint.ignore_config_fields,
        )
        packed = Packed.of(in_sequences(input_ids, config))
        self._model.check(packed, None)
        cos, sin = rotary_angles(packed.positions, config.rotary_dim, config.rope_theta)
        self._context = Context(packed, cos, sin, None, None)
        with torch.no_grad():
            weight = self._model.model.embed_tokens.weight
            self._hidden_states = embed(packed.input_ids, weight)  # (T, C)

    def round_layer(self, index: int) -> dict[str, Rounded]:
        """Round the matrices of a layer for their inputs; return them by tensor name."""
        seen = self._layer_inputs(index)
        sharing: dict[int, list[str]] = {}
        for module, inputs in seen.by_module.items():
            sharing.setdefault(id(inputs), []).append(_tensor(index, module))
        every = {id(inputs): inputs for inputs in seen.by_module.values()}
        jobs: list[_Job] = [
            partial(self._rounded, names, every[key]) for key, names in sharing.items()
        ]
        for expert in range(self.config.num_local_experts):
            jobs.append(partial(self._rounded_expert, index, expert, seen))
        largest = max(map(self._job_bytes, [*sharing.values(), *self._expert_matrices(index, 0)]))
        with single_threads(max(JOBS_BYTES // largest, 1)) as pool, torch.no_grad():
            parts = list(pool.map(lambda job: job(), jobs))
        return {name: rounded for part in parts for name, rounded in part.items()}

    def advance(self, index: int, file: Path) -> None:
        """Run the text through a layer with its rounded matrices, which `file` holds."""
        written = Checkpoint(file.parent, self.config)
        written.stored |= read_header(file)

        def use_rounded(layer: nn.Module, _args: object) -> None:
            prefix = f"model.layers.{index}."
            for name in written.stored:
                matrix = written.read_packed(name) if name.startswith(prefix) else None
                if matrix is not None:
                    module = name.removeprefix(prefix).removesuffix(".weight")
                    assign_matrix(layer, module, matrix, self.quantization.input_bits)
            for holder in layer.modules():
                if isinstance(holder, Experts) and backend_for(self._hidden_states) is not None:
                    holder.combine()

        with self._template(index).register_forward_pre_hook(use_rounded):
            self._hidden_states = self._run(index, self._context)
        if not self._hidden_states.isfinite().all():
            raise ValueError(
                f"layer {index} of {self.checkpoint.path} gives values that are not finite on the "
                "calibration text"
            )

    def _layer_inputs(self, index: int) -> _Inputs:
        """Run the original layer, and record the inputs of its matrices."""
        seen, trace = _Inputs(), Trace()
        template = self._template(index)

        def remember(module: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
            # A function and no object: a streamed layer is a deep copy, which shares functions
            # only.
            def hook(_linear: nn.Module, args: tuple[Tensor]) -> None:
                seen.by_module[module] = args[0]

            return hook

        def remember_experts(_moe: nn.Module, args: tuple[Tensor, Context]) -> None:
            seen.expert_inputs = args[0]

        with ExitStack() as hooks:
            for module, holder in template.named_modules():
                if isinstance(holder, SparseMoE):
                    hooks.enter_context(holder.register_forward_pre_hook(remember_experts))
                elif isinstance(holder, Linear) and self.quantization.format_of(module):
                    hooks.enter_context(holder.register_forward_pre_hook(remember(module)))
            self._run(index, replace(self._context, trace=trace))
        (seen.topk_ids,) = trace.topk_ids
        return seen

    def _template(self, index: int) -> nn.Module:
        """Return the layer that a streamed layer copies whenever it runs."""
        return self._model.model.layers[index].get_submodule("layer")

    def _run(self, index: int, context: Context) -> Tensor:
        with torch.no_grad():
            out: Tensor = self._model.model.layers[index](self._hidden_states, context, None)
        return out

    def _rounded(self, names: Sequence[str], inputs: Tensor) -> dict[str, Rounded]:
        """Round matrices that share inputs (T, K) of any float dtype; without feedback if T is
        small.

        This and `_rounded_expert` are the work of one thread.
        """
        module = names[0].removesuffix(".weight")
        format, group = self.quantization.format_of(module), self.quantization.group_of(module)
        assert format is not None
        weights = [self.checkpoint.read(name).float() for name in names]
        if len(inputs) < MIN_TOKENS:
            found = [round_matrix(weight, format, group) for weight in weights]
        else:
            try:
                feedback = feedback_of(inputs.float())
            except ValueError as error:
                raise ValueError(f"{names[0]} cannot be rounded: {error}") from None
            matrices = round_with_feedback(weights, feedback, format, group)
            found = [compared(m, weight) for m, weight in zip(matrices, weights, strict=True)]
        for name, rounded in zip(names, found, strict=True):
            check_rounded(name, rounded.squared_error, rounded.squared_norm)
        return dict(zip(names, found, strict=True))

    def _rounded_expert(self, index: int, expert: int, seen: _Inputs) -> dict[str, Rounded]:
        """Round an expert for its tokens, and its w2 for what the rounded w1 and w3 give."""
        (w1, w3), (w2,) = self._expert_matrices(index, expert)
        x = seen.expert_inputs[(seen.topk_ids == expert).any(-1)].float()  # (t, C)
        rounded = self._rounded([w1, w3], x)
        gate, up = (F.linear(x, self._unpacked(name, rounded[name])) for name in (w1, w3))
        hidden = (F.silu(gate) * up).to(seen.expert_inputs.dtype)  # (t, F)
        return rounded | self._rounded([w2], hidden)

    def _expert_matrices(self, index: int, expert: int) -> tuple[list[str], list[str]]:
        """Return the names of w1 and w3, which share their inputs, and of w2."""
        w1, w2, w3 = (_tensor(index, f"{_EXPERTS}.{expert}.w{i}") for i in (1, 2, 3))
        return [w1, w3], [w2]

    def _job_bytes(self, names: Sequence[str]) -> int:
        """Estimate the memory for rounding matrices (N, K) that share inputs: five K x K in
        float64, and six times the weights in float32."""
        shapes = [self.checkpoint.stored[name].shape for name in names]
        return 40 * shapes[0][1] ** 2 + 24 * sum(n * k for n, k in shapes)

    def _unpacked(self, name: str, rounded: Rounded) -> Tensor:
        """Unpack a rounded matrix to (N, K) float32."""
        n, k = self.checkpoint.stored[name].shape
        module = name.removesuffix(".weight")
        format, group = self.quantization.format_of(module), self.quantization.group_of(module)
        assert format is not None
        return PackedMatrix(rounded.data, format, n, k, group).unpack()


def _tensor(layer: int, module: str) -> str:
    return f"model.layers.{layer}.{module}.weight"
