"""A checkpoint into modules, one tensor at a time.

config.json -> config -> module without memory -> one tensor at a time -> module
"""

import copy
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fulmen.checkpoints.checkpoint import LAYER, LAYERS, Checkpoint
from fulmen.kernels import PackedMatrix, backend_for, pack
from fulmen.models import (
    HEAD,
    Experts,
    Linear,
    Model,
    PackedConfig,
    dtype_in_memory,
    new_model,
)

# A layer's experts are one module; its matrices are named as if each expert were one.
_EXPERT = re.compile(r"(.*\.)?experts\.(\d+)\.(w[123])")


def load_model(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    trainable: bool = False,
    ignore_config_fields: Collection[str] = (),
) -> Model:
    """Load a checkpoint: a folder with config.json, or a Llama-shaped GGUF file.

    dtype      for weights and activations, None keeps the config's; router and choice bias stay
               float32, and so does a head that is stored in float32 beside weights of bfloat16
    device     for the weights, which go there tensor by tensor
    trainable  gives plain parameters, FP8 blocks and packed weights as the floats they stand for,
               and the head in float32; else matrices are packed for the kernels where these can
               run, and quantised ones stay quantised
    ignore_config_fields  names of fields of config.json that count as absent; ValueError for one
               that the model needs

    A matrix that `fulmen quantize` packed is used where it lies in its file, which must not be
    changed meanwhile. Memory is bounded by the model plus one tensor. Raises ValueError, one
    sentence, for a file or a tensor that is missing, unknown, truncated or of the wrong shape.
    """
    _check_device(device)
    checkpoint = Checkpoint.open_whole(Path(path), ignore_config_fields=ignore_config_fields)
    with torch.device("meta"):
        model = new_model(checkpoint.config)
    loader = _Loader(checkpoint, dtype, torch.device(device), trainable)
    loader.fill(model, checkpoint.names())
    if loader.is_packing:
        model.pack()
    return model.eval()


def stream_model(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    ignore_config_fields: Collection[str] = (),
) -> Model:
    """Load a model like `load_model`, but read each layer when it runs and let it go after.

    For a pass on a CPU over a model that does not fit: memory is bounded by embedding, head and one
    layer.
    """
    checkpoint = Checkpoint.open_whole(Path(path), ignore_config_fields=ignore_config_fields)
    with torch.device("meta"):
        model = new_model(checkpoint.config)
    loader = _Loader(checkpoint, dtype, torch.device("cpu"), trainable=False)
    by_layer: dict[int | None, list[str]] = {}
    for name in checkpoint.names():
        match = LAYER.match(name)
        by_layer.setdefault(int(match[1]) if match else None, []).append(name)
    layers = model.model.layers
    for index, layer in enumerate(layers):
        layers[index] = _StreamedLayer(layer, loader, f"{LAYERS}{index}.", by_layer[index])
    loader.fill(model, by_layer[None])
    return model.eval()


class _StreamedLayer(nn.Module):
    """A layer without weights; every call fills a copy of it, runs it and drops it."""

    def __init__(
        self, layer: nn.Module, loader: "_Loader", prefix: str, names: Sequence[str]
    ) -> None:
        super().__init__()
        self.layer = layer
        self.loader, self.prefix, self.names = loader, prefix, names

    def forward(self, *args: Any) -> Tensor:
        layer = copy.deepcopy(self.layer)
        self.loader.fill(layer, self.names, prefix=self.prefix)
        if self.loader.is_packing:
            for module in layer.modules():
                if isinstance(module, Experts):
                    module.combine()
        out: Tensor = layer.eval()(*args)
        return out


class _Loader:
    """A filler of modules without memory, from one checkpoint."""

    def __init__(
        self,
        checkpoint: "Checkpoint",
        dtype: torch.dtype | None,
        device: torch.device,
        trainable: bool,
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype or checkpoint.config.torch_dtype
        self.device = device
        self.trainable = trainable
        usable = backend_for(torch.empty(0, dtype=self.dtype, device=device)) is not None
        self.is_packing = usable and not trainable

    def fill(self, module: nn.Module, names: Iterable[str], *, prefix: str = "") -> None:
        """Give `module` the tensors `names`, which are `prefix` and a name of its own."""
        quantization = self.checkpoint.config.quantization_config
        input_bits = quantization.input_bits if isinstance(quantization, PackedConfig) else 16
        for name in names:
            owner, _, leaf = name.removeprefix(prefix).rpartition(".")
            if _EXPERT.fullmatch(owner):
                assign_matrix(module, owner, self._matrix(name), input_bits)
                continue
            holder = module.get_submodule(owner)
            if isinstance(holder, Linear):
                assign_matrix(module, owner, self._matrix(name), input_bits)
            elif isinstance(getattr(holder, leaf), nn.Parameter):
                holder.register_parameter(leaf, nn.Parameter(self._plain(name)))
            else:
                holder.register_buffer(leaf, self._plain(name))

    def _matrix(self, name: str) -> Tensor | PackedMatrix:
        if not self.is_packing:
            return self._plain(name)
        packed = self.checkpoint.read_packed(name)
        return pack(self._plain(name)) if packed is None else packed

    def _plain(self, name: str) -> Tensor:
        return self.checkpoint.read(name).to(device=self.device, dtype=self._dtype_of(name))

    def _dtype_of(self, name: str) -> torch.dtype:
        # A head was trained in float32 where it is stored so beside weights of bfloat16: rounded,
        # it would be another model.
        is_wide_head = name == HEAD and self.checkpoint.has_wide_head
        return dtype_in_memory(name, self.dtype, trainable=self.trainable or is_wide_head)


def assign_matrix(
    module: nn.Module, name: str, weight: Tensor | PackedMatrix, input_bits: int
) -> None:
    """Give a matrix to the part of `module` that holds it under its official name.

    name        without `.weight`, such as block_sparse_moe.experts.3.w1
    input_bits  bits to which inputs are rounded, if the matrix is int8 or int4
    """
    if match := _EXPERT.fullmatch(name):
        prefix, expert, matrix = match.groups("")
        experts = module.get_submodule(f"{prefix}experts")
        assert isinstance(experts, Experts)
        experts.assign(int(expert), matrix, weight)
        experts.input_bits = input_bits
    else:
        linear = module.get_submodule(name)
        assert isinstance(linear, Linear)
        linear.assign(weight)
        linear.input_bits = input_bits


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second: a build without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device} cannot be used: {reason}") from None
