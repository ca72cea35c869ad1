"""fulmen quantize: a model's weights rounded, and what that changed."""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from fulmen.cli import completion
from fulmen.cli.help import examples
from fulmen.cli.options import (
    MODEL_HELP,
    IgnoreInFileOption,
    checked,
    in_flags,
    or_none,
    parse_whole,
    read_dtype,
    read_text_file,
)
from fulmen.cli.output import print_table
from fulmen.cli.progress import byte_progress
from fulmen.files import write_text
from fulmen.units import parse_bytes

if TYPE_CHECKING:
    from rich.table import Table


_FLAGS: Final = {
    "bits": "--bits",
    "levels": "--levels",
    "group_size": "--group-size",
    "input_bits": "--input-bits",
    "head_bits": "--head-bits",
}
"""Flags of the fields of a rounded model's format"""

EXAMPLES: Final = examples("""
fulmen quantize smollm2 smollm2-int8
fulmen quantize minimax-m2 m2-int4 --bits 4
fulmen quantize minimax-m2 m2-int4 --bits 4 --calibrate text.txt  closer
fulmen chat --model m2-int4                                talk to the result
fulmen models show m2-int4                                 see what was lost
""")


def _parse_head_bits(text: str) -> int:
    return 16 if text == "none" else parse_whole(text)


def quantize(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=completion.models)
    ],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="Output folder. An interrupted run continues where it stopped."
        ),
    ],
    bits: Annotated[
        Literal["8", "4", "fp8"], typer.Option(help="Bits of attention and expert weights.")
    ] = "8",
    levels: Annotated[
        Literal["even", "codebook"] | None,
        typer.Option(
            help="Levels of 4-bit weights: codebook, denser where more weights are, or even, "
            "which loses nothing of a Q4_1 GGUF. Default: codebook.",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text like those the model will read: weights are rounded to suit it (GPTQ).",
        ),
    ] = None,
    calibrate_tokens: Annotated[
        int,
        typer.Option(metavar="TOKENS", help="Tokens of that text to read; more is slower, better."),
    ] = 16384,
    group_size: Annotated[
        int | None,
        typer.Option(
            metavar="INTEGER",
            parser=or_none(parse_whole),
            help="Weights that share a scale, but for the head, which has 32: 32, 64 or 128. "
            "Default: 32 with 4 bits, 64 with 8, 128 with fp8.",
        ),
    ] = None,
    input_bits: Annotated[
        int | None,
        typer.Option(
            metavar="INTEGER",
            parser=or_none(parse_whole),
            help="Bits of inputs as the model runs: 8, faster, or 16. Default: 8 with the "
            "codebook, else 16.",
        ),
    ] = None,
    head_bits: Annotated[
        str | None,
        typer.Option(
            metavar="INTEGER",
            parser=checked(_parse_head_bits),
            help="8 rounds the head too; 16 or none keeps it as it is. Default: 8; 16 with fp8 or "
            "even levels of 4 bits.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="DTYPE",
            parser=or_none(str),
            help="Embedding, norms and head: bfloat16 or float32. Default: the model's.",
            autocompletion=completion.one_of("bfloat16", "float32"),
        ),
    ] = None,
    max_shard: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            parser=checked(parse_bytes),
            help="Largest file to write; with --calibrate each layer is a file. Default: 2GB.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Text to compare both models on. Default: one that comes along."
        ),
    ] = None,
    report_tokens: Annotated[
        int, typer.Option(metavar="TOKENS", help="Tokens of that text to read; 0 compares nothing.")
    ] = 2000,
    ignore_config_field: IgnoreInFileOption = None,
) -> None:
    """Round weights to 8 or 4 bits, and report the loss.

    The model is read and written piece by piece, so it may be larger than memory.
    """
    from fulmen.catalog import resolve
    from fulmen.chat import Tokenizer
    from fulmen.quantize import QuantizeConfig, parse_packed, sample_text
    from fulmen.quantize import quantize_checkpoint as write

    try:
        packed = parse_packed(
            bits=bits,
            levels=levels,
            group_size=group_size,
            input_bits=input_bits,
            head_bits=None if head_bits is None else _parse_head_bits(head_bits),
        )
    except ValueError as error:
        raise ValueError(in_flags(str(error), _FLAGS)) from None
    settings = QuantizeConfig(
        packed=packed,
        dtype=read_dtype(dtype, ("bfloat16", "float32")),
        max_shard_bytes=parse_bytes(max_shard or "2GB"),
    )
    if report_tokens < 0 or report_tokens == 1:
        raise ValueError(f"--report-tokens is {report_tokens}, it must be 0 or at least 2")
    if calibrate is not None:
        try:
            settings.check_calibration(calibrate_tokens)
        except ValueError as error:
            given = "--calibrate is given" if bits == "fp8" else "--calibrate-tokens is too small"
            raise ValueError(f"{given}: {error}") from None
        if max_shard is not None:
            raise ValueError("--max-shard has no effect with --calibrate, each layer is a file")
    settings.check_out(out)
    text = sample_text() if report is None else read_text_file(report)
    calibration = None if calibrate is None else read_text_file(calibrate)
    with byte_progress("fetching", model) as on_progress:
        source = resolve(model, on_progress=on_progress)
    ids, calibration_ids, ignored = None, None, ignore_config_field or ()
    if calibration is not None:
        calibration_ids = Tokenizer.from_folder(source).encode(calibration)[:calibrate_tokens]
    if report_tokens and (source / "tokenizer.json").exists():
        ids = Tokenizer.from_folder(source).encode(text)[:report_tokens]
        if len(ids) < 2:
            raise ValueError(
                f"{report or 'the text'} has {len(ids)} tokens, a comparison needs at least 2"
            )
    elif report_tokens:
        print("no tokenizer.json, so the models are not compared on a text", file=sys.stderr)
    with byte_progress("rounding", model) as on_progress:
        errors = write(
            source,
            out,
            settings,
            calibration_ids=calibration_ids,
            on_progress=on_progress,
            ignore_config_fields=ignored,
        )
    quality = _quality(source, out, errors, ids, ignored)
    write_text(out / "quality.json", json.dumps(quality, indent=2) + "\n")
    print_table(quality_table(quality))


def _quality(
    source: Path,
    out: Path,
    errors: dict[str, float],
    input_ids: list[int] | None,
    ignored: Sequence[str],
) -> dict[str, Any]:
    """Return the values of quality.json; with `input_ids`, also how the models differ on them."""
    from rich.console import Console

    from fulmen.checkpoints import Checkpoint, stream_model
    from fulmen.quantize import measure_drift

    worst = sorted(errors, key=lambda name: -errors[name])[:10]
    original = Checkpoint.open(source, ignore_config_fields=ignored)
    sizes = [original.num_bytes, Checkpoint.open(out).num_bytes]
    quality: dict[str, Any] = {
        "bytes": {"original": sizes[0], "rounded": sizes[1]},
        "mean_relative_error": sum(errors.values()) / max(len(errors), 1),
        "worst_tensors": {name: errors[name] for name in worst},
    }
    if input_ids is None:
        return quality
    with Console(stderr=True).status("comparing both models"):
        model = stream_model(source, ignore_config_fields=ignored)
        drift = measure_drift(model, stream_model(out), input_ids)
    return quality | {"drift": dataclasses.asdict(drift)}


def quality_table(quality: dict[str, Any]) -> "Table":
    """Return the values of quality.json as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    sizes = quality["bytes"]
    share = sizes["rounded"] / sizes["original"]
    table.add_row("bytes", f"{sizes['rounded']:,} ({share:.0%} of the original)")
    table.add_row("mean relative error of a tensor", f"{quality['mean_relative_error']:.5f}")
    for name, error in quality["worst_tensors"].items():
        table.add_row(f"  {name}", f"{error:.5f}")
    if (drift := quality.get("drift")) is not None:
        table.add_row("compared on", f"{drift['num_tokens']:,} tokens")
        for name, label in (
            ("top1_agreement", "same most likely token"),
            ("mean_kl", "mean KL divergence, nats"),
            ("mean_logit_drift", "mean logit drift"),
            ("max_logit_drift", "largest logit drift"),
            ("original_perplexity", "perplexity of the original"),
            ("perplexity", "perplexity"),
        ):
            table.add_row(label, f"{drift[name]:.4f}")
    return table
