"""The error of rounded logits, beside that of llama.cpp's Q4_0 rule on the same weights.

    python benchmarks/logit_error.py m2 --rounded m2-int4 --rounded m2-int8

Every model reads the same random tokens; the truth is the original in float32. An error is the root
mean square of the difference of logits over that of the logits. Q4_0 rounds the matrices that
`fulmen quantize` rounds, and nothing else: inputs and head stay as they are, which favours it.
"""

from pathlib import Path
from typing import Annotated

import gguf
import torch
import typer
from measure import print_json, print_setup, print_wide, run, settings_text
from rich.table import Table
from torch import Tensor

from fulmen.bench import use_threads
from fulmen.checkpoints import load_model, read_config
from fulmen.models import Experts, Linear, Model, Packed
from fulmen.models.quantization import PACKED_MODULES

GROUP = 32
"""Weights that share a scale in Q4_0"""


def q4_0(weight: Tensor) -> Tensor:
    """Round a matrix (N, K) as Q4_0, by the gguf package: a float16 scale for each 32 weights."""
    if weight.shape[1] % GROUP:
        raise ValueError(f"a matrix has {weight.shape[1]} inputs, Q4_0 needs a multiple of {GROUP}")
    kind = gguf.GGMLQuantizationType.Q4_0
    blocks = gguf.quants.quantize(weight.float().numpy(), kind)
    return torch.from_numpy(gguf.quants.dequantize(blocks, kind))


def round_in_place(model: Model) -> None:
    """Round the matrices of a plain model that `fulmen quantize` rounds, by Q4_0's rule."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and name.rpartition(".")[2] in PACKED_MODULES:
            weights = [module.weight]
        elif isinstance(module, Experts):
            stacks = (module.get_parameter(kind) for kind in ("w1", "w2", "w3"))
            weights = [expert for stack in stacks for expert in stack]
        else:
            continue
        for weight in weights:
            assert isinstance(weight, Tensor)
            weight.copy_(q4_0(weight))


def logits_of(model: Model, input_ids: Tensor) -> Tensor:
    """Return the logits (T, V) float32 of one sequence."""
    packed = Packed.of([input_ids.tolist()])
    return model.logits(model.hidden_states(packed)).float()


def main(
    checkpoint: Annotated[Path, typer.Argument(help="The original, a folder.")],
    rounded: Annotated[list[Path], typer.Option(help="Folders that fulmen quantize wrote of it.")],
    tokens: Annotated[int, typer.Option(min=1, help="Random tokens to read.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the tokens.")] = 0,
    threads: Annotated[int, typer.Option(min=1)] = torch.get_num_threads(),
) -> None:
    """Print the error of each model's logits."""
    use_threads(threads)
    torch.manual_seed(seed)
    configs = {str(path): read_config(path) for path in (checkpoint, *rounded)}
    setup = print_setup(threads, configs)
    input_ids = torch.randint(configs[str(checkpoint)].vocab_size, (tokens,))
    errors = {}
    with torch.inference_mode():
        truth = logits_of(load_model(checkpoint, dtype=torch.float32), input_ids)

        def note(name: str, model: Model) -> None:
            logits = logits_of(model, input_ids)
            same = logits.argmax(-1) == truth.argmax(-1)
            error = (logits - truth).norm() / truth.norm()
            errors[name] = float(error), float(same.float().mean())

        note("bfloat16, not rounded", load_model(checkpoint))
        for path in rounded:
            note(f"{path.name}: {settings_text(configs[str(path)])}", load_model(path))
        plain = load_model(checkpoint, dtype=torch.float32, trainable=True)
        round_in_place(plain)
        note("Q4_0, inputs and head not rounded", plain)
    table = Table(title=f"{checkpoint.name}: logits of {tokens} tokens beside float32")
    for column in ("model", "error", "same likeliest token"):
        table.add_column(column)
    for name, (error, agreement) in errors.items():
        table.add_row(name, f"{error:.4f}", f"{agreement:.3f}")
    print_wide(table)
    print_json("logit_error", {**setup, "tokens": tokens, "errors": errors})


if __name__ == "__main__":
    run(main)
