"""A checkpoint with its matrices rounded, written as the CPU's kernels read it.

    source -> plan (which tensors are packed, in which shard) -> shard by shard -> config.json

One tensor is in memory at a time; with a calibration text it is one layer, and a shard is a layer
until all are there: those that fit into one file are joined then.

A killed run continues with the first missing shard and ends with the same files, because a shard is
written aside, synced and renamed, and each of its bytes follows from the source and the settings.
With a calibration text the last bits also depend on the kind of machine, so continue on the machine
that began. config.json comes last: a folder that has one is whole.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor

from fulmen.catalog import OnProgress
from fulmen.checkpoints import CONFIG, INDEX, SINGLE, Checkpoint, read_metadata
from fulmen.files import parse_json, read_json, replacing, write_text
from fulmen.models import (
    HEAD_GROUP_SIZE,
    ROUNDED_AS,
    Bits,
    Config,
    Fp8Config,
    PackedConfig,
    TensorSpec,
    is_harmless,
)
from fulmen.quantize.calibration import MIN_TOKENS, Calibration
from fulmen.quantize.container import in_file_order, num_bytes, write_container
from fulmen.quantize.rounding import Rounded, check_rounded, round_rows

RECORD: Final = ".quantize.json"
"""File in the output folder with the settings and the source that a run must continue with."""

REPORT: Final = "quality.json"
"""File with measurements of the result; a source's own is not copied."""

_EVEN4: Final = PackedConfig(bits=4, group_size=32)
"""Format of 4 bits with even levels, as a Q4_1 GGUF has them: it comes back as it was."""

_COPIED: Final = ("*.json", "*.jinja", "*.txt", "*.md", "*.model", "LICENSE*")
"""Files that go from the source's folder to the output as they are."""
_VERSION: Final = 2
"""Version of the rounding; files of two versions must not be mixed."""
_KEPT_DTYPES: Final = (torch.bfloat16, torch.float32)
"""Dtypes of tensors that are not rounded, and of activations: those that the kernels multiply."""
_ERROR: Final = "{:.4e}"
"""Format of a tensor's error in its shard; its length never varies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeConfig:
    """Settings of a rounded checkpoint."""

    packed: PackedConfig
    dtype: torch.dtype | None = None
    """Dtype of embedding, norms and head, and of activations: bfloat16 or float32; None keeps the
    source's."""
    max_shard_bytes: int = 2 * 10**9
    """Bytes of a shard at most: a killed run repeats at most one. With a calibration text a shard
    is a layer, but a model of no more bytes than this is one file in the end."""

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in _KEPT_DTYPES:
            raise ValueError(
                f"dtype is {_name_of(self.dtype)}, it must be bfloat16 or float32, or absent"
            )

    def check_calibration(self, num_tokens: int) -> None:
        """Raise a ValueError if a calibration text of `num_tokens` is of no use."""
        if self.packed.bits == "fp8":
            raise ValueError("a calibration text is for bits 8 or 4, fp8 is rounded without one")
        if num_tokens < MIN_TOKENS:
            raise ValueError(
                f"a calibration text of {num_tokens} tokens is too short, at least {MIN_TOKENS} "
                "are needed"
            )

    def check_out(self, out: Path) -> None:
        """Raise a ValueError for a folder that cannot be written, whatever the source is."""
        if (out / RECORD).exists():
            _check_begun(out, {"version": _VERSION, **self.to_dict()})
            return
        if out.exists() and not _is_unused(out):
            raise ValueError(
                f"{out} exists and fulmen quantize did not begin it, choose a new folder"
            )
        above = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
            raise ValueError(f"{out} cannot be written, {above} is no folder that we may write to")

    def to_dict(self) -> dict[str, object]:
        """Return the settings as values for JSON."""
        dtype = None if self.dtype is None else _name_of(self.dtype)
        return asdict(self.packed) | {"dtype": dtype, "max_shard_bytes": self.max_shard_bytes}


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class _Shard:
    file: str
    specs: list[TensorSpec]
    """Tensors in their stored form, in the order of the file."""
    layer: int | None
    """Index of the layer it holds, with a calibration text; None for tensors outside the layers,
    and without a text."""


def quantize_checkpoint(
    source: Path,
    out: Path,
    settings: QuantizeConfig,
    *,
    calibration_ids: Sequence[int] | None = None,
    on_progress: OnProgress | None = None,
    ignore_config_fields: Sequence[str] = (),
) -> dict[str, float]:
    """Write the folder `out`, or continue where an interrupted run stopped.

    source           a checkpoint folder or a GGUF file
    calibration_ids  a text; matrices are then rounded for the inputs it gives them (GPTQ)
    on_progress      called with the bytes written so far and in all
    ignore_config_fields  names of fields of the source's config.json that count as absent

    Returns |rounded - original| / |original| of every rounded tensor. Raises ValueError for a
    source that does not load, and for an `out` that holds anything but the same run.
    """
    checkpoint = Checkpoint.open_whole(source, ignore_config_fields=ignore_config_fields)
    if isinstance(checkpoint.config.quantization_config, PackedConfig):
        raise ValueError(f"{source} is quantised already, the original checkpoint is needed")
    if calibration_ids is not None:
        settings.check_calibration(len(calibration_ids))
    config = _new_config(checkpoint, settings)
    shards = _plan(checkpoint, config, settings, by_layer=calibration_ids is not None)
    total = sum(num_bytes(spec) for shard in shards for spec in shard.specs)
    is_joined = len(shards) > 1 and total <= settings.max_shard_bytes
    with _claimed(out, settings, _record(checkpoint, settings, calibration_ids)):
        has_whole = is_joined and (out / SINGLE).exists()
        missing = [shard for shard in shards if not (has_whole or (out / shard.file).exists())]
        left = sum(num_bytes(spec) for shard in missing for spec in shard.specs)
        needed = left + total if is_joined and not has_whole else left
        if (free := shutil.disk_usage(out).free) < needed:
            raise ValueError(f"{out} needs {needed:,} more bytes, its disk has {free:,} free")
        done = total - left
        calibration = None
        # The text runs through the model no further than the last layer that is missing.
        missing_layers = [shard.layer for shard in missing if shard.layer is not None]
        if missing_layers and calibration_ids is not None:
            calibration = Calibration(checkpoint, config, calibration_ids)
        for shard in shards:
            if shard in missing:
                rounded = {}
                if calibration is not None and shard.layer is not None:
                    rounded = calibration.round_layer(shard.layer)
                for written in _write_shard(checkpoint, config, shard, out, rounded):
                    done += written
                    if on_progress is not None:
                        on_progress(done, total)
            if (
                calibration is not None
                and shard.layer is not None
                and shard.layer < missing_layers[-1]
            ):
                calibration.advance(shard.layer, out / shard.file)
        if is_joined:
            shards = [_join(shards, out)]
        _finish(checkpoint, config, shards, out)
    return {name: e for shard in shards for name, e in _errors_of(out / shard.file).items()}


def _new_config(checkpoint: Checkpoint, settings: QuantizeConfig) -> Config:
    """Return the config of the result, in which a rounded head is never tied to the embedding."""
    config = checkpoint.config
    if settings.dtype is None and config.torch_dtype not in _KEPT_DTYPES:
        raise ValueError(
            f"{checkpoint.path} is in {_name_of(config.torch_dtype)}, rounded models are in "
            "bfloat16 or float32, name one of them (--dtype)"
        )
    is_tied = config.tie_word_embeddings and settings.packed.head_bits is None
    return replace(
        config,
        quantization_config=settings.packed,
        torch_dtype=settings.dtype or config.torch_dtype,
        tie_word_embeddings=is_tied,
    )


def _plan(
    checkpoint: Checkpoint, config: Config, settings: QuantizeConfig, *, by_layer: bool
) -> list[_Shard]:
    parts: list[list[TensorSpec]] = [[]]
    layers: list[int | None] = [None]
    size = 0
    for spec in config.tensors():
        if spec.dtype != torch.uint8:
            spec = spec._replace(dtype=_kept_dtype(checkpoint, spec, settings))
        layer = _layer_of(spec.name) if by_layer else None
        is_full = layer is None and size + num_bytes(spec) > settings.max_shard_bytes
        if parts[-1] and (is_full or layer != layers[-1]):
            parts.append([])
            layers.append(layer)
            size = 0
        parts[-1].append(spec)
        size += num_bytes(spec)
    count = len(parts)
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    if count == 1:
        names = [SINGLE]
    return [
        _Shard(name, in_file_order(part), layer)
        for name, part, layer in zip(names, parts, layers, strict=True)
    ]


def _layer_of(name: str) -> int | None:
    """Return the layer of a tensor; None for embedding, last norm and head."""
    match = re.match(r"model\.layers\.(\d+)\.", name)
    return int(match[1]) if match else None


def _kept_dtype(checkpoint: Checkpoint, spec: TensorSpec, settings: QuantizeConfig) -> torch.dtype:
    """Return the dtype of a tensor that is not rounded: the user's, or the one it has.

    Routers and choice biases, float32 in every config, keep the dtype they are stored in. Tensors
    that are stored as FP8 blocks get the config's dtype.
    """
    if settings.dtype is not None and spec.dtype == settings.dtype:
        return settings.dtype
    stored = checkpoint.dtype_of(spec.name)
    return spec.dtype if stored == torch.float8_e4m3fn else stored


def _record(
    checkpoint: Checkpoint, settings: QuantizeConfig, calibration_ids: Sequence[int] | None
) -> dict[str, object]:
    """Return all that decides the bytes of the result: settings, text, and the source's files."""
    text = None if calibration_ids is None else json.dumps(list(calibration_ids))
    files = sorted({stored.file for stored in checkpoint.stored.values()})
    config = json.dumps(checkpoint.config.to_dict(), sort_keys=True)
    return {
        "version": _VERSION,
        **settings.to_dict(),
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "calibration": text and hashlib.sha256(text.encode()).hexdigest(),
        "files": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files},
    }


def _check_begun(out: Path, record: Mapping[str, object]) -> None:
    # A run that began before there was a choice of levels names none.
    before = {"levels": "even", **read_json(out / RECORD)}
    for name, value in record.items():
        if before.get(name) != value:
            raise ValueError(
                f"{out} was begun {_difference(name, before.get(name), value)}; go on with "
                "the same, or choose another folder"
            )


@contextmanager
def _claimed(out: Path, settings: QuantizeConfig, record: Mapping[str, object]) -> Iterator[None]:
    """Create `out`, or check that it holds the same run; one process at a time may write it."""
    import fcntl  # here, because Windows has none and can still load models

    settings.check_out(out)
    file = out / RECORD
    if not file.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(record, indent=2) + "\n")
    with file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another fulmen quantize is writing {out}") from None
        _check_begun(out, record)
        for part in out.glob(".*.part"):
            part.unlink()
        yield


def _is_unused(out: Path) -> bool:
    """Return True if a folder is empty except for a record that a killed run did not finish."""
    return out.is_dir() and {*out.iterdir()} == {*out.glob(f".{RECORD}.*.part")}


def _difference(name: str, before: object, now: object) -> str:
    match name:
        case "version":
            return "by another version of fulmen"
        case "config" | "files":
            return "from another input"
        case "calibration":
            return "with another calibration text, or with none"
    return f"with {name} {before}, not {now}"


def _finish(checkpoint: Checkpoint, config: Config, shards: list[_Shard], out: Path) -> None:
    """Write everything that is not weights; config.json last."""
    folder = checkpoint.path if checkpoint.path.is_dir() else None
    values: dict[str, object] = {}
    if folder is not None:
        sources = {file for pattern in _COPIED for file in folder.glob(pattern)}
        for file in sorted(sources):
            if file.name not in (CONFIG, INDEX, REPORT) and file.is_file():
                with file.open("rb") as original, replacing(out / file.name) as copy:
                    shutil.copyfileobj(original, copy)
        original_config = read_json(folder / CONFIG)
        values = {name: value for name, value in original_config.items() if is_harmless(name)}
    if len(shards) > 1:
        total = sum(num_bytes(spec) for shard in shards for spec in shard.specs)
        weight_map = {spec.name: shard.file for shard in shards for spec in shard.specs}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(out / INDEX, json.dumps(index, indent=2) + "\n")
    values |= config.to_dict()
    write_text(out / CONFIG, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _write_shard(
    checkpoint: Checkpoint,
    config: Config,
    shard: _Shard,
    out: Path,
    rounded: Mapping[str, Rounded],
) -> Iterator[int]:
    """Write a shard, and yield the bytes of every piece.

    rounded   matrices that are rounded already; the others are rounded here
    """
    errors = {spec.name: 0.0 for spec in shard.specs if spec.dtype == torch.uint8}

    def pieces(spec: TensorSpec) -> Iterator[Tensor]:
        if spec.name not in errors:
            yield _read(checkpoint, spec.name).to(spec.dtype)
            return
        error = norm = 0.0
        parts = [rounded[spec.name]] if spec.name in rounded else _rounded(checkpoint, config, spec)
        for part in parts:
            error += part.squared_error
            norm += part.squared_norm
            yield part.data
        check_rounded(spec.name, error, norm)
        errors[spec.name] = (error / norm) ** 0.5 if norm else 0.0

    with replacing(out / shard.file) as file:
        yield from write_container(file, shard.specs, pieces, lambda: _error_metadata(errors))


def _join(shards: Sequence[_Shard], out: Path) -> _Shard:
    """Write the tensors of finished shards into one file, delete the shards, and return it."""
    whole = _Shard(SINGLE, in_file_order(spec for one in shards for spec in one.specs), None)
    if not (out / SINGLE).exists():
        errors = {name: e for one in shards for name, e in _errors_of(out / one.file).items()}
        metadata = _error_metadata(errors)
        with ExitStack() as opened, replacing(out / SINGLE) as file:
            readers: dict[str, Any] = {}  # safetensors has no types
            for one in shards:
                reader = opened.enter_context(safe_open(out / one.file, framework="pt"))
                readers |= dict.fromkeys((spec.name for spec in one.specs), reader)

            def pieces(spec: TensorSpec) -> list[Tensor]:
                return [readers[spec.name].get_tensor(spec.name)]

            for _ in write_container(file, whole.specs, pieces, lambda: metadata):
                pass
    (out / INDEX).unlink(missing_ok=True)
    for one in shards:
        (out / one.file).unlink(missing_ok=True)
    return whole


def _error_metadata(errors: Mapping[str, float]) -> dict[str, str]:
    return {"relative_errors": json.dumps({n: _ERROR.format(e) for n, e in errors.items()})}


def _rounded(checkpoint: Checkpoint, config: Config, spec: TensorSpec) -> Iterator[Rounded]:
    """Round a matrix, some rows at a time."""
    packed = config.quantization_config
    assert isinstance(packed, PackedConfig)
    module = spec.name.removesuffix(".weight")
    format, group = packed.format_of(module), packed.group_of(module)
    assert format is not None
    source = checkpoint.config.quantization_config
    if packed.bits == "fp8" and isinstance(source, Fp8Config):
        same = checkpoint.read_packed(spec.name)
        if same is not None and (same.format, same.group) == (format, group):
            yield Rounded(same.data, 0, 0)
            return
    yield from round_rows(_read(checkpoint, spec.name), format, group)


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    is_tied = name == "lm_head.weight" and checkpoint.config.tie_word_embeddings
    return checkpoint.read("model.embed_tokens.weight" if is_tied else name)


def _errors_of(file: Path) -> dict[str, float]:
    kept = parse_json(read_metadata(file)["relative_errors"].encode(), str(file))
    return {name: float(str(error)) for name, error in kept.items()}


def parse_packed(
    *,
    bits: str,
    levels: str | None = None,
    group_size: int | None = None,
    input_bits: int | None = None,
    head_bits: int | None = None,
) -> PackedConfig:
    """Return the format of `bits`, which is 8, 4 or fp8; what is not given is as suits it.

    head_bits   8, or 16 for a head that stays as it is
    """
    kind: Bits = int(bits) if bits.isdecimal() else bits
    if kind not in ROUNDED_AS:
        raise ValueError(f"bits is {bits}, it must be {' or '.join(map(str, ROUNDED_AS))}")
    if head_bits not in (None, 8, 16):
        raise ValueError(f"head_bits is {head_bits}, it must be 8 or 16")
    usual = _EVEN4 if (kind, levels) == (4, "even") else ROUNDED_AS[kind]
    rounded_head = {None: usual.head_bits, 8: 8, 16: None}[head_bits]
    return PackedConfig(
        bits=kind,
        levels=usual.levels if levels is None else levels,
        group_size=usual.group_size if group_size is None else group_size,
        input_bits=usual.input_bits if input_bits is None else input_bits,
        head_bits=rounded_head,
        head_group_size=None if rounded_head is None else HEAD_GROUP_SIZE,
    )
