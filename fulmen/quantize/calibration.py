"""A text that goes through a model while it is rounded, layer by layer.

    hidden states -> the layer as it was: what its matrices meet -> rounded for that (gptq.py)
                  -> the layer as rounded -> hidden states for the next one

So every layer is rounded for the inputs that the rounded layers before it give. In memory are
embedding and head, one layer and its rounded matrices, the text's hidden states, what the layer's
matrices meet, and what a bounded number of threads (`JOBS_BYTES`) needs to round; each expert is
rounded for the tokens that chose it.
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

from fulmen.checkpoints import Checkpoint, read_header, stream_model
from fulmen.kernels import PackedMatrix, backend_for, embed, rotary_angles
from fulmen.models import Config, Context, Linear, Packed, PackedConfig, SparseMoE, Trace
from fulmen.quantize.gptq import feedback_of, round_with_feedback
from fulmen.quantize.quality import in_sequences
from fulmen.quantize.rounding import Rounded, check_rounded, compared, round_matrix, single_threads

MIN_TOKENS: Final = 256
"""An expert that fewer tokens chose is rounded without feedback: it would suit only those few."""

JOBS_BYTES: Final = 8 * 2**30
"""What is made while matrices are rounded, in all threads together; fewer work where one needs
much. One always works, if it needs more than that."""

_EXPERTS: Final = "block_sparse_moe.experts"

_Job = Callable[[], dict[str, Rounded]]


@dataclass(slots=True)
class _Met:
    """What the matrices of a layer meet."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    """(T, columns of its matrix) by module; modules that share their inputs hold the same tensor"""
    expert_inputs: Tensor = field(default_factory=lambda: torch.empty(0))
    """(T, C)"""
    topk_ids: Tensor = field(default_factory=lambda: torch.empty(0))
    """(T, K) int64: the experts each token chose"""


class Calibration:
    """A text that has come as far as some layer of a model, which is rounded meanwhile."""

    def __init__(self, checkpoint: Checkpoint, config: Config, input_ids: Sequence[int]) -> None:
        """checkpoint is what is rounded, config that of the result."""
        assert isinstance(config.quantization_config, PackedConfig)
        self.checkpoint, self.config = checkpoint, config
        self.quantization = config.quantization_config
        self._model = stream_model(checkpoint.path, dtype=config.torch_dtype)
        packed = Packed.of(in_sequences(input_ids, config))
        self._model.check(packed, None)
        cos, sin = rotary_angles(packed.positions, config.rotary_dim, config.rope_theta)
        self._context = Context(packed, cos, sin, None, None)
        with torch.no_grad():
            weight = self._model.model.embed_tokens.weight
            self._hidden_states = embed(packed.input_ids, weight)  # (T, C)

    def round_layer(self, index: int) -> dict[str, Rounded]:
        """The matrices of a layer by tensor name, rounded for what they meet."""
        met = self._meet(index)
        sharing: dict[int, list[str]] = {}
        for module, inputs in met.inputs.items():
            sharing.setdefault(id(inputs), []).append(_tensor(index, module))
        every = {id(inputs): inputs for inputs in met.inputs.values()}
        jobs: list[_Job] = [
            partial(self._rounded, names, every[key]) for key, names in sharing.items()
        ]
        for expert in range(self.config.num_local_experts):
            jobs.append(partial(self._rounded_expert, index, expert, met))
        largest = max(map(self._job_bytes, [*sharing.values(), *self._expert_matrices(index, 0)]))
        with single_threads(max(JOBS_BYTES // largest, 1)) as pool, torch.no_grad():
            parts = list(pool.map(lambda job: job(), jobs))
        return {name: rounded for part in parts for name, rounded in part.items()}

    def advance(self, index: int, file: Path) -> None:
        """Lets the text pass a layer with its rounded matrices, as `file` holds them."""
        written = Checkpoint(file.parent, self.config)
        written.stored |= read_header(file)

        def use_rounded(layer: nn.Module, _args: object) -> None:
            for module, holder in layer.named_modules():
                if not isinstance(holder, Linear):
                    continue
                matrix = written.read_packed(_tensor(index, module))
                if matrix is not None:
                    holder.assign(matrix)
                    holder.input_bits = self.quantization.input_bits
            for holder in layer.modules():
                if isinstance(holder, SparseMoE) and backend_for(self._hidden_states) is not None:
                    holder.combine()

        with self._template(index).register_forward_pre_hook(use_rounded):
            self._hidden_states = self._run(index, self._context)
        if not self._hidden_states.isfinite().all():
            raise ValueError(
                f"layer {index} of {self.checkpoint.path} gives values that are not finite on the "
                "calibration text"
            )

    def _meet(self, index: int) -> _Met:
        """Runs a layer as it was and looks on."""
        met, trace = _Met(), Trace()
        template = self._template(index)

        def remember(module: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
            # A function, not an object: the streamed layer is a copy, but it shares functions.
            def hook(_linear: nn.Module, args: tuple[Tensor]) -> None:
                met.inputs[module] = args[0]

            return hook

        def remember_experts(_moe: nn.Module, args: tuple[Tensor, Context]) -> None:
            met.expert_inputs = args[0]

        with ExitStack() as hooks:
            for module, holder in template.named_modules():
                if isinstance(holder, SparseMoE):
                    hooks.enter_context(holder.register_forward_pre_hook(remember_experts))
                elif isinstance(holder, Linear) and self.quantization.format_of(module):
                    hooks.enter_context(holder.register_forward_pre_hook(remember(module)))
            self._run(index, replace(self._context, trace=trace))
        (met.topk_ids,) = trace.topk_ids
        return met

    def _template(self, index: int) -> nn.Module:
        """The layer that a streamed layer copies whenever it runs."""
        return self._model.model.layers[index].get_submodule("layer")

    def _run(self, index: int, context: Context) -> Tensor:
        with torch.no_grad():
            out: Tensor = self._model.model.layers[index](self._hidden_states, context, None)
        return out

    # The work of one thread

    def _rounded(self, names: Sequence[str], inputs: Tensor) -> dict[str, Rounded]:
        """Matrices that share inputs (T, K) of any float dtype; without feedback where these are
        few."""
        format = self.quantization.format_of(names[0].removesuffix(".weight"))
        assert format is not None
        group = self.quantization.group_size
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

    def _rounded_expert(self, index: int, expert: int, met: _Met) -> dict[str, Rounded]:
        """w2 is rounded for what the rounded w1 and w3 give."""
        (w1, w3), (w2,) = self._expert_matrices(index, expert)
        x = met.expert_inputs[(met.topk_ids == expert).any(-1)].float()  # (t, C)
        rounded = self._rounded([w1, w3], x)
        gate, up = (F.linear(x, self._unpacked(name, rounded[name])) for name in (w1, w3))
        hidden = (F.silu(gate) * up).to(met.expert_inputs.dtype)  # (t, F)
        return rounded | self._rounded([w2], hidden)

    def _expert_matrices(self, index: int, expert: int) -> tuple[list[str], list[str]]:
        """w1 and w3, which share their inputs, and w2."""
        w1, w2, w3 = (_tensor(index, f"{_EXPERTS}.{expert}.w{i}") for i in (1, 2, 3))
        return [w1, w3], [w2]

    def _job_bytes(self, names: Sequence[str]) -> int:
        """About what rounding matrices (N, K) that share their inputs takes: some five K x K in
        float64, and six times the weights in float32."""
        shapes = [self.checkpoint.stored[name].shape for name in names]
        return 40 * shapes[0][1] ** 2 + 24 * sum(n * k for n, k in shapes)

    def _unpacked(self, name: str, rounded: Rounded) -> Tensor:
        """(N, K) float32"""
        n, k = self.checkpoint.stored[name].shape
        format = self.quantization.format_of(name.removesuffix(".weight"))
        assert format is not None
        return PackedMatrix(rounded.data, format, n, k, self.quantization.group_size).unpack()


def _tensor(layer: int, module: str) -> str:
    return f"model.layers.{layer}.{module}.weight"
