"""Checkpoints in and out: safetensors, single or sharded, under the official names; GGUF in.

    config.json -> config -> module without memory -> one tensor at a time -> module

The config predicts every tensor: name, shape and stored dtype (`config.tensors()`). Loading and
checking compare the headers of the files with that list, so a tensor nobody expects and one nobody
brings are found before a weight is read.
"""

import copy
import json
import logging
import math
import re
import reprlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fulmen.files import replacing_path, write_text
from fulmen.kernels import Format, PackedMatrix, native_for, pack, pack_fp8, populate
from fulmen.models import gguf
from fulmen.models.config import GROUP_SIZES, Fp8Config, PackedConfig, TensorSpec, read_json
from fulmen.models.layers import CausalLM, Linear, SparseMoE
from fulmen.models.m1 import M1, M1Config
from fulmen.models.m2 import M2, M2Config

logger = logging.getLogger(__name__)

Config = M1Config | M2Config
Model = M1 | M2

CONFIG: Final = "config.json"
INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
GGUF: Final = "model.gguf"
ALIGNMENT: Final = 64
"""Bytes: a packed matrix begins at a multiple of this, in memory and in the files we write."""
PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_CONFIGS: dict[str, type[M1Config] | type[M2Config]] = {
    "minimaxm1forcausallm": M1Config,
    "minimaxtext01forcausallm": M1Config,
    "minimaxforcausallm": M1Config,
    "minimaxm2forcausallm": M2Config,
    "minimaxm1": M1Config,
    "minimaxtext01": M1Config,
    "minimax": M1Config,
    "minimaxm2": M2Config,
}
"""architectures and model_type, in lower case without underscores."""

# transformers saves these with a Text-01 model; they follow from the config.
_REDUNDANT = re.compile(r"\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)$")
_LAYERS = "model.layers."
_LAYER = re.compile(rf"^{re.escape(_LAYERS)}(\d+)\.")
# The official name of a shard, or with a number before it the name of a later save's.
_SHARD = re.compile(r"model-(\d+-)?\d{5}-of-\d{5}\.safetensors")
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
}
"""Those we read, by their names in a header."""
_QUANTISED: dict[torch.dtype | None, str] = {
    torch.float8_e4m3fn: "F8_E4M3 blocks",
    torch.uint8: "U8 (packed)",
}


def config_from_dict(values: Mapping[str, object], where: str = "config.json") -> Config:
    """The config of either model; `architectures` decides, then `model_type`."""
    architectures = values.get("architectures")
    names = [*architectures] if isinstance(architectures, list) else []
    names.append(values.get("model_type"))
    for name in names:
        kind = _CONFIGS.get(str(name).replace("_", "").lower())
        if kind is not None:
            return kind.from_dict(values, where)
    found = ", ".join(str(name) for name in names if name is not None) or "none"
    raise ValueError(
        f"unknown architecture {found} in {where}, known are MiniMaxM1ForCausalLM, "
        "MiniMaxText01ForCausalLM, MiniMaxForCausalLM and MiniMaxM2ForCausalLM"
    )


def read_config(path: Path) -> Config:
    """The config of a checkpoint folder, a config.json or a GGUF file."""
    if path.suffix == ".gguf" and not path.is_dir():
        return config_from_dict(gguf.read_config(path), str(path))
    file = path / CONFIG if path.is_dir() else path
    return config_from_dict(read_json(file), str(file))


def new_model(config: Config) -> Model:
    """A module of the config's kind, on torch's current default device."""
    return M1(config) if isinstance(config, M1Config) else M2(config)


def load_model(
    path: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    trainable: bool = False,
) -> Model:
    """Loads a checkpoint: a folder with config.json, or a Llama-shaped GGUF file.

    dtype      of weights and activations, None keeps the config's; router and choice bias stay
               float32
    device     where the weights go, tensor by tensor
    trainable  gives plain parameters, FP8 blocks and packed weights as the floats they stand for,
               and the head in float32; else matrices are packed for the kernels where these can
               run, and quantised ones stay quantised

    A matrix that `fulmen quantize` packed is used where it lies in its file, which must not be
    changed meanwhile. Memory is bounded by the model plus one tensor. Raises ValueError, one
    sentence, for a file or a tensor that is missing, unknown, truncated or of the wrong shape.
    """
    _check_device(device)
    checkpoint = Checkpoint.open_whole(Path(path))
    with torch.device("meta"):
        model = new_model(checkpoint.config)
    loader = _Loader(checkpoint, dtype, torch.device(device), trainable)
    loader.fill(model, checkpoint.names())
    if loader.is_packing:
        model.pack()
    return model.eval()


def stream_model(path: Path | str, *, dtype: torch.dtype | None = None) -> Model:
    """As load_model, for inference on a CPU, but each layer is read when it runs and let go after.

    Memory is bounded by embedding, head and one layer. For a pass over a model that does not fit.
    """
    checkpoint = Checkpoint.open_whole(Path(path))
    with torch.device("meta"):
        model = new_model(checkpoint.config)
    loader = _Loader(checkpoint, dtype, torch.device("cpu"), trainable=False)
    by_layer: dict[int | None, list[str]] = {}
    for name in checkpoint.names():
        match = _LAYER.match(name)
        by_layer.setdefault(int(match[1]) if match else None, []).append(name)
    layers = model.model.layers
    for index, layer in enumerate(layers):
        layers[index] = _StreamedLayer(layer, loader, f"{_LAYERS}{index}.", by_layer[index])
    loader.fill(model, by_layer[None])
    return model.eval()


class _StreamedLayer(nn.Module):
    """A layer without weights; every call fills a copy of it and forgets that."""

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
                if isinstance(module, SparseMoE):
                    module.combine()
        out: Tensor = layer.eval()(*args)
        return out


class _Loader:
    """Fills modules without memory from a checkpoint."""

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
        usable = native_for(torch.empty(0, dtype=self.dtype, device=device)) is not None
        self.is_packing = usable and not trainable

    def fill(self, module: nn.Module, names: Iterable[str], *, prefix: str = "") -> None:
        """Gives `module` the tensors `names`, which begin with `prefix` and its own names."""
        quantization = self.checkpoint.config.quantization_config
        input_bits = quantization.input_bits if isinstance(quantization, PackedConfig) else 16
        for name in names:
            owner, _, leaf = name.removeprefix(prefix).rpartition(".")
            holder = module.get_submodule(owner)
            if isinstance(holder, Linear):
                holder.assign(self._matrix(name))
                holder.input_bits = input_bits
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
        """Router and choice bias work in float32 whatever the rest does. The kernels sum in
        float32 whatever the head is stored in, so only one that learns needs to be float32."""
        is_wide = name.endswith((".gate.weight", "e_score_correction_bias"))
        if is_wide or (self.trainable and name == "lm_head.weight"):
            return torch.promote_types(self.dtype, torch.float32)
        return self.dtype


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the second: a build without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device} cannot be used: {reason}") from None


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor of a checkpoint lies."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it; F32 for a GGUF, whose tensors are read as that."""
    begin: int = 0
    """Where its bytes begin in the file; 0 for a GGUF, which knows itself."""


class Checkpoint:
    """A checkpoint on disk: its config, and what its file headers say it holds."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config
        self.stored: dict[str, Stored] = {}
        self._file_problems: list[str] = []
        self._lost: set[str] = set()
        """Tensors of files that are missing or cannot be read."""
        self._maps: dict[Path, Tensor] = {}
        self._gguf: dict[str, Callable[[], Tensor]] = {}
        self._specs = {
            spec.name: spec for spec in replace(config, quantization_config=None).tensors()
        }
        """The tensors of the model, with the shapes they have when nothing is quantised."""

    @classmethod
    def open(cls, path: Path) -> "Checkpoint":
        """Reads config and headers, no weights. Weights that cannot be read are among `problems`;
        without a config to compare them with, this raises a ValueError."""
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
        checkpoint = cls(path, read_config(path))
        checkpoint._read_headers()
        return checkpoint

    @classmethod
    def open_whole(cls, path: Path) -> "Checkpoint":
        """As `open`; raises a ValueError for the first of its problems."""
        checkpoint = cls.open(path)
        problems = checkpoint.problems()
        if problems:
            rest = len(problems) - 1
            more = f" (and {rest} more, see fulmen models check)" if rest else ""
            raise ValueError(problems[0] + more)
        return checkpoint

    @property
    def gguf_file(self) -> Path | None:
        """The GGUF file that holds the weights; None where safetensors do, which come first."""
        if self.path.is_file():
            return self.path
        if (self.path / INDEX).exists() or (self.path / SINGLE).exists():
            return None
        file = self.path / GGUF
        return file if file.is_file() else None

    def _read_headers(self) -> None:
        folder = self.path if self.path.is_dir() else self.path.parent
        by_file: dict[str, list[str]] = {}
        for name, file_name in self._weight_map().items():
            by_file.setdefault(file_name, []).append(name)
        for file_name, names in sorted(by_file.items()):
            file = folder / file_name
            if not file.is_file():
                self._lost.update(names)
                self._file_problems.append(
                    f"shard {file_name} is missing from {folder}, {len(names)} tensors are in it"
                )
                continue
            try:
                header = read_header(file) if file.suffix != ".gguf" else read_gguf_header(file)
            except ValueError as error:
                self._lost.update(names)
                self._file_problems.append(str(error))
                continue
            for name, stored in header.items():
                if name in self.stored:
                    self._file_problems.append(
                        f"tensor {name} is in {self.stored[name].file.name} "
                        f"and again in {file.name}"
                    )
                self.stored[name] = stored

    def _weight_map(self) -> dict[str, str]:
        """Which file each tensor should lie in."""
        gguf_file = self.gguf_file
        if gguf_file is not None:
            return {spec.name: gguf_file.name for spec in self.config.tensors()}
        index = self.path / INDEX
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise ValueError(f"{index} has no weight_map")
            for file_name in weight_map.values():
                if not isinstance(file_name, str) or Path(file_name).name != file_name:
                    raise ValueError(
                        f"{index} names {reprlib.repr(file_name)}, shards must lie in the same "
                        "folder"
                    )
            return weight_map
        if (self.path / SINGLE).exists():
            return {spec.name: SINGLE for spec in self.config.tensors()}
        pickles = sorted(file.name for file in self.path.iterdir() if file.suffix in PICKLES)
        if pickles:
            raise ValueError(
                f"{self.path} holds weights only as pickles ({pickles[0]}), which can run code; "
                "safetensors are needed"
            )
        raise ValueError(f"{self.path} holds no {SINGLE}, no {INDEX} and no {GGUF}")

    @property
    def num_tensors(self) -> int:
        """How many tensors the config asks for."""
        return sum(1 for _ in self.config.tensors())

    @property
    def num_bytes(self) -> int:
        """Of the files that hold the weights."""
        return sum(file.stat().st_size for file in {s.file for s in self.stored.values()})

    def describe_weights(self) -> str:
        """How the weights are stored, in a few words."""
        match self.config.quantization_config:
            case PackedConfig(bits="fp8"):
                kind = "e4m3 in blocks of 128 x 128, packed for the CPU"
            case PackedConfig() as packed:
                kind = (
                    f"{packed.bits} bits in groups of {packed.group_size}, packed for the CPU; "
                    f"inputs are rounded to {packed.input_bits} bits"
                )
            case Fp8Config(weight_block_size=(rows, columns)):
                kind = f"e4m3 in blocks of {rows} x {columns}"
            case None:
                kind = str(self.config.torch_dtype).removeprefix("torch.")
        return f"GGUF, read as {kind}" if self.gguf_file is not None else kind

    def problems(self) -> list[str]:
        """One sentence for each thing that keeps the checkpoint from loading."""
        problems = list(self._file_problems)
        expected = {spec.name: spec for spec in self.config.tensors()}
        for name, spec in expected.items():
            stored = self.stored.get(name)
            if stored is not None:
                problems += self._tensor_problems(spec, stored)
            elif name not in self._lost:
                problems.append(f"tensor {name} {list(spec.shape)} is missing from {self.path}")
        for name, stored in self.stored.items():
            if name not in expected and not self._is_skipped(name):
                problems.append(
                    f"unknown tensor {name} {list(stored.shape)} in {stored.file.name}, "
                    "the config has no place for it"
                )
        return problems

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
        """What differs from the release and does not keep the checkpoint from loading."""
        notes = []
        expected = {spec.name: spec.dtype for spec in self.config.tensors()}
        others: dict[tuple[str, torch.dtype], int] = {}
        for name, stored in self.stored.items():
            wanted = expected.get(name)
            if wanted is not None and SAFETENSORS_DTYPES.get(stored.dtype) != wanted:
                others[stored.dtype, wanted] = others.get((stored.dtype, wanted), 0) + 1
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
        """What lies there and is not read, though someone may have meant it to be."""
        extra = sorted(layer for layer in self._layers() if layer >= self.config.num_hidden_layers)
        if extra:
            yield (
                f"layers {extra[0]} to {extra[-1]} lie beyond num_hidden_layers "
                f"({self.config.num_hidden_layers}) and are skipped: multi-token prediction"
            )
        if self.gguf_file is None and (self.path / GGUF).exists():
            yield f"{GGUF} is not read, the safetensors beside it are"

    def _layers(self) -> set[int]:
        return {int(match[1]) for name in self.stored if (match := _LAYER.match(name))}

    def _is_skipped(self, name: str) -> bool:
        match = _LAYER.match(name)
        beyond = match is not None and int(match[1]) >= self.config.num_hidden_layers
        tied = self.config.tie_word_embeddings and name == "lm_head.weight"
        return beyond or tied or _REDUNDANT.search(name) is not None

    def names(self) -> list[str]:
        """Every tensor of the model, in the order in which they lie on disk."""
        for note in self._unread():
            logger.warning("%s: %s", self.path, note)
        return [name for name in self.stored if name in self._specs]

    def read(self, name: str) -> Tensor:
        """A tensor of the model as it is stored; FP8 blocks and packed weights come as float32."""
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
        """The dtype in which a tensor is stored; a GGUF's are read as float32."""
        return SAFETENSORS_DTYPES[self.stored[name].dtype]

    def read_packed(self, name: str) -> PackedMatrix | None:
        """A quantised matrix as the kernels take it: packed bytes where they lie in the file, FP8
        blocks as they are, packed. None for a tensor that is not quantised, or in FP8 blocks of a
        size the kernels do not take."""
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

    def _packed_as(self, name: str) -> tuple[Format, int] | None:
        """Format and group size of a matrix that `fulmen quantize` packed."""
        quantization = self.config.quantization_config
        if not isinstance(quantization, PackedConfig):
            return None
        format = quantization.format_of(name.removesuffix(".weight"))
        return None if format is None else (format, quantization.group_size)

    def _read(self, name: str) -> Tensor:
        """Into memory of its own: a map of the file would count as memory in use."""
        stored = self.stored[name]
        if stored.file.suffix == ".gguf":
            self._gguf = self._gguf or gguf.tensor_readers(stored.file)
            return self._gguf[name]()
        tensor = torch.empty(stored.shape, dtype=SAFETENSORS_DTYPES[stored.dtype])
        left = tensor.flatten().view(torch.uint8).numpy().data
        try:
            with stored.file.open("rb", buffering=0) as file:
                file.seek(stored.begin)
                while left:
                    left = left[file.readinto(left) or len(left) + 1 :]
        except OSError as error:
            raise ValueError(f"{stored.file} cannot be read: {error}") from None
        return tensor

    def _mapped(self, name: str) -> Tensor:
        """(bytes,) uint8 in the map of its file, which lives as long as the tensor does."""
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


def _scale_of(name: str) -> str:
    return f"{name.removesuffix('.weight')}.weight_scale_inv"


def read_header(file: Path) -> dict[str, Stored]:
    """What a safetensors file says it holds; ValueError if it is not one, is cut short, or says
    what cannot be."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise ValueError(f"{file} is truncated or no safetensors file: {size} bytes")
        try:
            header = json.loads(stream.read(length))
        except (ValueError, RecursionError):
            header = None
    if not isinstance(header, dict):
        raise ValueError(f"{file} is no safetensors file: its header cannot be read")
    header.pop("__metadata__", None)
    stored = {}
    spans = []
    for name, entry in header.items():
        found, begin, end = _read_entry(file, name, entry)
        stored[name] = replace(found, begin=8 + length + begin)
        spans.append((begin, end, name))
    needed = 8 + length + max((end for _, end, _ in spans), default=0)
    if size != needed:
        kind = "truncated" if size < needed else "too long"
        raise ValueError(f"{file} is {kind}: its header promises {needed} bytes, it has {size}")
    position = 0
    for begin, end, name in sorted(spans):
        if begin != position:
            raise ValueError(
                f"{file} is damaged: tensor {name} begins at byte {begin} of the data, the one "
                f"before it ends at {position}"
            )
        position = end
    return stored


def _read_entry(file: Path, name: str, entry: object) -> tuple[Stored, int, int]:
    """One tensor of a header, and where its bytes begin and end."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            all(type(size) is int and size >= 0 for size in shape) and 0 <= begin <= end
        ):
            pass
        case _:
            raise ValueError(
                f"{file} is damaged: its header gives tensor {name} as {reprlib.repr(entry)}, a "
                "dtype, a shape and data_offsets in whole numbers are needed"
            )
    known = SAFETENSORS_DTYPES.get(dtype)
    if known is not None and end - begin != math.prod(shape) * known.itemsize:
        raise ValueError(
            f"{file} is damaged: its header gives tensor {name} {end - begin} bytes, {shape} in "
            f"{dtype} needs {math.prod(shape) * known.itemsize}"
        )
    return Stored(file, tuple(shape), dtype), begin, end


def read_gguf_header(file: Path) -> dict[str, Stored]:
    """What a GGUF says it holds, under official names; ValueError if it is not one, is cut short,
    or holds what is not a Llama's."""
    # Checks all names, shapes and offsets before it returns; who does not call reads no weights.
    gguf.tensor_readers(file)
    config = config_from_dict(gguf.read_config(file), str(file))
    return {spec.name: Stored(file, spec.shape, "F32") for spec in config.tensors()}


def dequantise(weight: Tensor, scale_inv: Tensor, fp8: Fp8Config) -> Tensor:
    """weight (R, C) e4m3 times its block's scale (ceil(R / 128), ceil(C / 128)) -> (R, C) float32.

    `scale_inv` multiplies; the name is historic. Ragged last blocks count by block size.
    """
    rows, columns = fp8.weight_block_size
    scale = scale_inv.float().repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return weight.float().mul_(scale[: weight.shape[0], : weight.shape[1]])


def save_model(
    model: CausalLM[M1Config] | CausalLM[M2Config],
    folder: Path | str,
    *,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes config.json and safetensors, official names; `load_model` reads back the same values.

    Weights keep the dtype they have; router and choice bias are float32. The head, float32 in
    memory, is stored in the dtype of the rest where that loses nothing. Every file is written
    aside, synced and renamed. A checkpoint that is in the folder already stays as it is until the
    new one is whole: new shards get names that its index does not use, then the index is replaced
    (or, for a single file, deleted), and only then are its shards deleted.
    """
    if any(isinstance(getattr(m, "weight", None), PackedMatrix) for m in model.modules()):
        raise ValueError(
            "this model was loaded for inference, its weights are packed; load it with "
            "trainable=True to save it"
        )
    folder = Path(folder)
    dtype = model.model.embed_tokens.weight.dtype
    values = model.config.to_dict()
    values["torch_dtype"] = str(dtype).removeprefix("torch.")
    values.pop("quantization_config", None)
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    head = tensors.get("lm_head.weight")
    if head is not None and torch.equal(head.to(dtype).to(head.dtype), head):
        tensors["lm_head.weight"] = head.to(dtype)
    shards = _shards(tensors, max_shard_bytes)
    before = _weight_files(folder)
    if len(shards) == 1:
        files = [SINGLE]
        with replacing_path(folder / SINGLE) as temporary:
            _write_shard(tensors, temporary)
            _retire_config(folder, values)
        (folder / INDEX).unlink(missing_ok=True)
    else:
        files = _shard_names(len(shards), before)
        for file, names in zip(files, shards, strict=True):
            with replacing_path(folder / file) as temporary:
                _write_shard({name: tensors[name] for name in names}, temporary)
        _retire_config(folder, values)
        total = sum(tensor.nbytes for tensor in tensors.values())
        weight_map = {
            name: file for file, names in zip(files, shards, strict=True) for name in names
        }
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / CONFIG, values)
    for file in before.difference(files):
        (folder / file).unlink(missing_ok=True)


def _write_shard(tensors: Mapping[str, Tensor], file: Path) -> None:
    shard = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(shard, file, metadata={"format": "pt"})


def _weight_files(folder: Path) -> set[str]:
    """Safetensors of the checkpoint in a folder, and those that an interrupted save left there."""
    files = {file.name for file in folder.glob("*.safetensors") if _SHARD.fullmatch(file.name)}
    if (folder / SINGLE).exists():
        files.add(SINGLE)
    try:
        weight_map = read_json(folder / INDEX).get("weight_map")
    except ValueError:  # no index, or none that could be loaded
        return files
    if isinstance(weight_map, dict):
        shards = (Path(str(shard)) for shard in weight_map.values())
        files.update(s.name for s in shards if s.name == str(s) and s.suffix == ".safetensors")
    return files


def _shard_names(count: int, taken: set[str]) -> list[str]:
    """The official names, or with the first number before them that makes them new."""
    save, prefix = 1, ""
    while True:
        names = [f"model-{prefix}{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
        if taken.isdisjoint(names):
            return names
        save += 1
        prefix = f"{save}-"


def _retire_config(folder: Path, values: Mapping[str, object]) -> None:
    """Deletes a config.json that is not `values`, before the weights it belongs to are replaced.

    Should the save end here, the folder has no config, which is an error, rather than one model's
    weights under another's config.
    """
    try:
        is_same = read_json(folder / CONFIG) == values
    except ValueError:
        is_same = False
    if not is_same:
        (folder / CONFIG).unlink(missing_ok=True)


def _shards(tensors: Mapping[str, Tensor], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _write_json(file: Path, values: Mapping[str, object]) -> None:
    write_text(file, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
