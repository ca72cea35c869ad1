"""A checkpoint on disk against its config: safetensors, single or sharded, or a GGUF.

The config predicts every tensor: name, shape and stored dtype (`config.tensors()`). Loading and
checking compare the headers of the files with that list, so an unknown tensor and a missing one
are found before a weight is read. Nothing is kept of tensors that no file holds, so a config that
predicts many costs no memory.
"""

import logging
import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from fulmen.checkpoints import gguf
from fulmen.checkpoints.header import ALIGNMENT, SAFETENSORS_DTYPES, Stored, read_header
from fulmen.files import read_json, read_json_if_present
from fulmen.kernels import PackedMatrix, WeightFormat, pack_fp8, populate
from fulmen.models import (
    FOREIGN_QUANTIZATION,
    GROUP_SIZES,
    HEAD,
    Config,
    Fp8Config,
    PackedConfig,
    TensorSpec,
    config_from_dict,
    raise_foreign,
)

logger = logging.getLogger(__name__)


CONFIG: Final = "config.json"
"""File of a folder that holds the config."""
INDEX: Final = "model.safetensors.index.json"
"""File that names the shard of each tensor."""
SINGLE: Final = "model.safetensors"
"""File of a checkpoint that has one shard."""
GGUF: Final = "model.gguf"
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files that run code when they are read; they are refused."""

LAYERS: Final = "model.layers."
LAYER: Final = re.compile(rf"^{re.escape(LAYERS)}(\d+)\.")

MAX_PROBLEMS: Final = 1000
"""Most problems of a checkpoint that are listed; the last line counts the rest."""

# A name in the same folder, short enough for every file system.
_SHARD_NAME = re.compile(r"[^/\\\x00-\x1f]{1,200}\.safetensors")
# transformers saves these with a Text-01 model; they follow from the config.
_REDUNDANT = re.compile(r"\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)$")
_QUANTISED: Final[dict[torch.dtype | None, str]] = {
    torch.float8_e4m3fn: "F8_E4M3 blocks",
    torch.uint8: "U8 (packed)",
}


def read_config(path: Path, *, ignore_config_fields: Collection[str] = ()) -> Config:
    """Read the config of a checkpoint folder, a config.json or a GGUF file.

    ignore_config_fields  names of fields that count as absent, see `config_from_dict`
    """
    if path.suffix == ".gguf" and not path.is_dir():
        return config_from_dict(gguf.read_config(path), str(path))
    file = path / CONFIG if path.is_dir() else path
    return config_from_dict(read_json(file), str(file), ignore_config_fields=ignore_config_fields)


class Checkpoint:
    """A checkpoint on disk: its config, and what its file headers say it holds."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self.ignore_config_fields: tuple[str, ...] = ()
        """Fields of config.json that count as absent"""
        self.stored: dict[str, Stored] = {}
        self._file_problems: list[str] = []
        self._lost: set[str] = set()
        """Tensors of shards that are missing or cannot be read."""
        self._is_lost = False
        """The one file that holds all tensors cannot be read."""
        self._maps: dict[Path, Tensor] = {}
        self._gguf: dict[str, Callable[[], Tensor]] = {}

    @cached_property
    def _specs(self) -> dict[str, TensorSpec]:
        """Tensors of the model by name, with the shapes they have when nothing is quantised."""
        unquantised = replace(self.config, quantization_config=None)
        return {spec.name: spec for spec in unquantised.tensors()}

    @classmethod
    def open(cls, path: Path, *, ignore_config_fields: Collection[str] = ()) -> "Checkpoint":
        """Read config and headers, no weights.

        ignore_config_fields  names of fields of the config that count as absent

        Weights that cannot be read are among `problems`; a folder without a config to compare them
        with is a ValueError.
        """
        if not path.exists():
            raise ValueError(
                f"{path} does not exist, a checkpoint folder or a .gguf file is needed"
            )
        if path.suffix in PICKLES:
            raise ValueError(
                f"{path} is a pickle, which can run code; only safetensors and GGUF load"
            )
        if path.is_file() and path.suffix != ".gguf":
            raise ValueError(f"{path} is neither a checkpoint folder nor a .gguf file")
        config = read_config(path, ignore_config_fields=ignore_config_fields)
        checkpoint = cls(path, config)
        checkpoint.ignore_config_fields = tuple(ignore_config_fields)
        if config.quantization_config is None and path.is_dir():
            refuse_foreign_quantization(path)
        checkpoint._read_headers()
        return checkpoint

    @classmethod
    def open_whole(cls, path: Path, *, ignore_config_fields: Collection[str] = ()) -> "Checkpoint":
        """Read a checkpoint like `open`; raise a ValueError for the first of its problems."""
        checkpoint = cls.open(path, ignore_config_fields=ignore_config_fields)
        problems = checkpoint._find_problems()
        first = next(problems, None)
        if first is not None:
            rest = sum(1 for _ in problems)
            more = f" (and {rest} more, see fulmen models check)" if rest else ""
            raise ValueError(first + more)
        return checkpoint

    @property
    def gguf_file(self) -> Path | None:
        """GGUF file that holds the weights; None where safetensors do, which come first."""
        if self.path.is_file():
            return self.path
        if (self.path / INDEX).exists() or (self.path / SINGLE).exists():
            return None
        file = self.path / GGUF
        return file if file.is_file() else None

    def _read_headers(self) -> None:
        folder = self.path if self.path.is_dir() else self.path.parent
        for file_name, names in sorted(self._files().items()):
            file = folder / file_name
            if not file.is_file():
                held = "all" if names is None else len(names)
                self._lose(
                    names, f"shard {file_name} is missing from {folder}, {held} tensors are in it"
                )
                continue
            try:
                header = read_header(file) if file.suffix != ".gguf" else read_gguf_header(file)
            except ValueError as error:
                self._lose(names, str(error))
                continue
            for name, stored in header.items():
                if name in self.stored:
                    self._file_problems.append(
                        f"tensor {name} is in {self.stored[name].file.name} "
                        f"and again in {file.name}"
                    )
                self.stored[name] = stored

    def _lose(self, names: set[str] | None, problem: str) -> None:
        self._file_problems.append(problem)
        if names is None:
            self._is_lost = True
        else:
            self._lost |= names

    def _files(self) -> dict[str, set[str] | None]:
        """Return the files of the checkpoint, each with the tensors that an index says it holds;
        None for a file that holds all."""
        gguf_file = self.gguf_file
        if gguf_file is not None:
            return {gguf_file.name: None}
        index = self.path / INDEX
        if index.exists():
            return dict(_read_index(index))
        if (self.path / SINGLE).exists():
            return {SINGLE: None}
        pickles = sorted(file.name for file in self.path.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise ValueError(
                f"{self.path} holds weights only as pickles ({pickles[0]}), which can run code; "
                "safetensors are needed"
            )
        raise ValueError(f"{self.path} holds no {SINGLE}, no {INDEX} and no {GGUF}")

    @property
    def num_tensors(self) -> int:
        """Number of tensors that the config predicts."""
        return sum(1 for _ in self.config.tensors())

    @property
    def num_bytes(self) -> int:
        """Size of the files that hold the weights."""
        return sum(file.stat().st_size for file in {s.file for s in self.stored.values()})

    def describe_weights(self) -> str:
        """Return how the weights are stored, in a few words."""
        match self.config.quantization_config:
            case PackedConfig(bits="fp8"):
                kind = "e4m3 in blocks of 128 x 128, packed for the CPU"
            case PackedConfig() as packed:
                levels = " on the levels of a codebook" if packed.levels == "codebook" else ""
                head = f", the head {packed.head_bits} bits in groups of "
                head = "" if packed.head_bits is None else f"{head}{packed.group_of('lm_head')}"
                kind = (
                    f"{packed.bits} bits{levels} in groups of {packed.group_size}{head}, packed "
                    f"for the CPU; inputs are rounded to {packed.input_bits} bits"
                )
            case Fp8Config(weight_block_size=(rows, columns)):
                kind = f"e4m3 in blocks of {rows} x {columns}"
            case None:
                kind = str(self.config.torch_dtype).removeprefix("torch.")
        return f"GGUF, read as {kind}" if self.gguf_file is not None else kind

    def problems(self) -> list[str]:
        """Return a sentence for each thing that keeps the checkpoint from loading."""
        found = self._find_problems()
        problems = list(islice(found, MAX_PROBLEMS))
        rest = sum(1 for _ in found)
        return [*problems, f"{rest} more problems are not listed"] if rest else problems

    def _find_problems(self) -> Iterator[str]:
        yield from self._file_problems
        known = set()
        for spec in self.config.tensors():
            stored = self.stored.get(spec.name)
            if stored is not None:
                known.add(spec.name)
                yield from self._tensor_problems(spec, stored)
            elif not self._is_lost and spec.name not in self._lost:
                yield f"tensor {spec.name} {list(spec.shape)} is missing from {self.path}"
        for name, stored in self.stored.items():
            if name not in known and not self._is_skipped(name):
                yield (
                    f"unknown tensor {name} {list(stored.shape)} in {stored.file.name}, "
                    "the config has no place for it"
                )

    def _tensor_problems(self, spec: TensorSpec, stored: Stored) -> Iterator[str]:
        if stored.shape != spec.shape:
            yield (
                f"tensor {spec.name} in {stored.file.name} has shape {list(stored.shape)}, "
                f"the config needs {list(spec.shape)}"
            )
        dtype = SAFETENSORS_DTYPES.get(stored.dtype)
        found, needed = (_QUANTISED.get(dtype, "a float type") for dtype in (dtype, spec.dtype))
        if dtype is None or found != needed:
            yield (
                f"tensor {spec.name} in {stored.file.name} has dtype {stored.dtype}, "
                f"{needed} is needed"
            )

    def notes(self) -> list[str]:
        """Return a sentence for each difference from the release that is harmless."""
        notes = []
        others: Counter[tuple[str, torch.dtype]] = Counter()
        for spec in self.config.tensors():
            stored = self.stored.get(spec.name)
            if stored is not None and SAFETENSORS_DTYPES.get(stored.dtype) != spec.dtype:
                others[stored.dtype, spec.dtype] += 1
        for (found, wanted), count in others.items():
            official = str(wanted).removeprefix("torch.")
            notes.append(f"{count} tensors are stored as {found}, the config implies {official}")
        notes += self._unread()
        if self.config.tie_word_embeddings and "lm_head.weight" in self.stored:
            notes.append("lm_head.weight is skipped, the config ties the head to the embedding")
        redundant = sum(bool(_REDUNDANT.search(name)) for name in self.stored)
        if redundant:
            notes.append(f"{redundant} decay buffers are skipped, they follow from the config")
        return notes

    def _unread(self) -> Iterator[str]:
        """Name what lies there and is not read, though someone may have meant it to be."""
        extra = sorted(layer for layer in self._layers() if layer >= self.config.num_hidden_layers)
        if extra:
            yield (
                f"layers {extra[0]} to {extra[-1]} lie beyond num_hidden_layers "
                f"({self.config.num_hidden_layers}) and are skipped: multi-token prediction"
            )
        if self.gguf_file is None and (self.path / GGUF).exists():
            yield f"{GGUF} is not read, the safetensors beside it are"

    def _layers(self) -> set[int]:
        return {int(match[1]) for name in self.stored if (match := LAYER.match(name))}

    def _is_skipped(self, name: str) -> bool:
        match = LAYER.match(name)
        beyond = match is not None and int(match[1]) >= self.config.num_hidden_layers
        tied = self.config.tie_word_embeddings and name == "lm_head.weight"
        return beyond or tied or _REDUNDANT.search(name) is not None

    def names(self) -> list[str]:
        """Return the name of every tensor of the model, in their order on disk."""
        for note in self._unread():
            logger.warning("%s: %s", self.path, note)
        return [name for name in self.stored if name in self._specs]

    def read(self, name: str) -> Tensor:
        """Read a tensor of the model as it is stored; FP8 blocks and packed weights as float32."""
        packed = self._packed_as(name)
        if packed is not None:
            (format, group), (n, k) = packed, self._specs[name].shape
            return PackedMatrix(self._read(name).flatten(), format, n, k, group).unpack()
        fp8 = self.config.quantization_config
        tensor = self._read(name)
        if isinstance(fp8, Fp8Config) and tensor.dtype == torch.float8_e4m3fn:
            return dequantise(tensor, self._read(_scale_of(name)), fp8)
        return tensor

    def dtype_of(self, name: str) -> torch.dtype:
        """Return the dtype in which a tensor is stored; a GGUF's are read as float32."""
        return SAFETENSORS_DTYPES[self.stored[name].dtype]

    @property
    def has_wide_head(self) -> bool:
        """True if the head is stored in float32, and the config says bfloat16."""
        stored = self.stored.get(HEAD)
        return (
            self.gguf_file is None
            and stored is not None
            and stored.dtype == "F32"
            and self.config.torch_dtype == torch.bfloat16
        )

    def read_packed(self, name: str) -> PackedMatrix | None:
        """Return a quantised matrix as the kernels take it.

        Packed bytes stay where they lie in the file; FP8 blocks are packed as they are. None for a
        tensor that is not quantised, or in FP8 blocks of a size the kernels do not take.
        """
        packed = self._packed_as(name)
        if packed is not None:
            (format, group), (n, k) = packed, self._specs[name].shape
            return PackedMatrix(self._mapped(name), format, n, k, group)
        fp8 = self.config.quantization_config
        if not isinstance(fp8, Fp8Config) or self.stored[name].dtype != "F8_E4M3":
            return None
        rows, columns = fp8.weight_block_size
        if rows % 16 or columns not in GROUP_SIZES:
            return None
        return pack_fp8(self._read(name), self._read(_scale_of(name)), fp8.weight_block_size)

    def _packed_as(self, name: str) -> tuple[WeightFormat, int] | None:
        """Return format and group size of a matrix that `fulmen quantize` packed."""
        quantization = self.config.quantization_config
        if not isinstance(quantization, PackedConfig):
            return None
        module = name.removesuffix(".weight")
        format = quantization.format_of(module)
        return None if format is None else (format, quantization.group_of(module))

    def _read(self, name: str) -> Tensor:
        """Read a tensor into memory of its own: a map of the file would count as memory in use."""
        stored = self.stored[name]
        if stored.file.suffix == ".gguf":
            self._gguf = self._gguf or gguf.tensor_readers(stored.file)
            return self._gguf[name]()
        tensor = torch.empty(stored.shape, dtype=SAFETENSORS_DTYPES[stored.dtype])
        left = tensor.flatten().view(torch.uint8).numpy().data
        try:
            with stored.file.open("rb", buffering=0) as file:
                file.seek(stored.begin)
                while len(left):
                    count = file.readinto(left)
                    if not count:
                        raise ValueError(f"{stored.file} became shorter while it was read")
                    left = left[count:]
        except OSError as error:
            raise ValueError(f"{stored.file} cannot be read: {error}") from None
        return tensor

    def _mapped(self, name: str) -> Tensor:
        """Return (bytes,) uint8 in the map of its file, which lives as long as the tensor does."""
        stored = self.stored[name]
        mapped = self._maps.get(stored.file)
        if mapped is None:
            size = stored.file.stat().st_size
            mapped = torch.from_file(str(stored.file), size=size, dtype=torch.uint8)
            populate(mapped)
            self._maps[stored.file] = mapped
        data = mapped[stored.begin : stored.begin + math.prod(stored.shape)]
        # Files that others re-saved may align to less than the kernels' cache line.
        return data if data.data_ptr() % ALIGNMENT == 0 else data.clone()


def _read_index(index: Path) -> dict[str, set[str]]:
    """Read which tensors an index says that each shard holds."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{index} has no weight_map, which names the shard of each tensor")
    by_file: dict[str, set[str]] = {}
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _SHARD_NAME.fullmatch(file_name):
            raise ValueError(
                f"{index} names {reprlib.repr(file_name)}, shards must lie in the same folder and "
                "be safetensors"
            )
        by_file.setdefault(file_name, set()).add(name)
    return by_file


def refuse_foreign_quantization(folder: Path) -> None:
    """Raise for weights that a file beside config.json says another program has quantised."""
    for name in FOREIGN_QUANTIZATION:
        values = read_json_if_present(folder / name)
        if values:
            nested = values.get("quantization")
            raise_foreign(values if not isinstance(nested, dict) else nested, str(folder / name))


def _scale_of(name: str) -> str:
    return f"{name.removesuffix('.weight')}.weight_scale_inv"


def read_gguf_header(file: Path) -> dict[str, Stored]:
    """Read what a GGUF says it holds, under official names.

    Raises ValueError for a file that is none, is cut short, or holds what is not a Llama's.
    """
    # Checks all names, shapes and offsets before it returns; who does not call reads no weights.
    gguf.tensor_readers(file)
    config = config_from_dict(gguf.read_config(file), str(file))
    return {spec.name: Stored(file, spec.shape, "F32") for spec in config.tensors()}


def dequantise(weight: Tensor, scale_inv: Tensor, fp8: Fp8Config) -> Tensor:
    """Return weight (R, C) e4m3 times its block's scale_inv (ceil(R / rows), ceil(C / columns)),
    (R, C) float32.

    `scale_inv` multiplies; the name is historic. Ragged last blocks count by block size.
    """
    # A block may be larger than the matrix; one of the matrix's size says the same.
    rows, columns = map(min, fp8.weight_block_size, weight.shape)
    scale = scale_inv.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return weight.float().mul_(scale[: weight.shape[0], : weight.shape[1]])
