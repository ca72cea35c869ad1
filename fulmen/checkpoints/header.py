"""The header of a safetensors file: what it holds and where, checked before a weight is read."""

import math
import reprlib
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from fulmen.files import MAX_JSON_BYTES, parse_json

ALIGNMENT: Final = 64
"""Bytes: a packed matrix begins at a multiple of this, in memory and in the files we write."""

MAX_NAME: Final = 256
"""Longest name of a tensor. The longest that M1 or M2 has is 68 characters."""

MAX_DIMENSIONS: Final = 8
"""Most dimensions of a tensor. Ours have at most two."""

MAX_SIZE: Final = 2**48
"""Largest dimension of a tensor, far more than a disk holds."""

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
}
"""Dtypes that are read, by their names in a header."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Place of one tensor of a checkpoint."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """Name that safetensors gives it; F32 for a GGUF, whose tensors are read as that."""
    begin: int = 0
    """First byte in the file; 0 for a GGUF, whose reader knows it."""


def read_header(file: Path) -> dict[str, Stored]:
    """Read where a safetensors file holds each tensor.

    Raises ValueError, in bounded time and memory, for a file that is none, is cut short, or says
    what cannot be.
    """
    header, length = _read_json_header(file)
    header.pop("__metadata__", None)
    stored = {}
    spans = []
    for name, entry in header.items():
        found, begin, end = _read_entry(file, name, entry)
        stored[name] = replace(found, begin=8 + length + begin)
        spans.append((begin, end, name))
    size = file.stat().st_size
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


def read_metadata(file: Path) -> dict[str, str]:
    """Read the texts by name that a safetensors file holds beside its tensors."""
    header, _ = _read_json_header(file)
    match header.get("__metadata__", {}):
        case dict(metadata) if all(isinstance(text, str) for text in metadata.values()):
            return metadata
        case other:
            raise ValueError(f"{file} is damaged: its __metadata__ is {reprlib.repr(other)}")


def _read_json_header(file: Path) -> tuple[dict[str, object], int]:
    """Read the JSON text before the tensors, and its length in bytes."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if 8 + length > size:
            raise ValueError(f"{file} is truncated or no safetensors file: {size} bytes")
        if length > MAX_JSON_BYTES:
            raise ValueError(
                f"{file} is no safetensors file we read: its header of {length} bytes is larger "
                f"than {MAX_JSON_BYTES}"
            )
        try:
            return parse_json(stream.read(length), "it"), length
        except ValueError as error:
            raise ValueError(
                f"{file} is no safetensors file: its header cannot be read, {error}"
            ) from None


def _read_entry(file: Path, name: str, entry: object) -> tuple[Stored, int, int]:
    """Return one tensor of a header, and where its bytes begin and end."""
    if len(name) > MAX_NAME:
        raise ValueError(
            f"{file} is damaged: its header names a tensor {name[:40]}..., {len(name)} characters "
            f"long, at most {MAX_NAME} are read"
        )
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)]} if (
            len(shape) <= MAX_DIMENSIONS
            and all(type(size) is int and 0 <= size <= MAX_SIZE for size in shape)
            and type(begin) is type(end) is int
            and 0 <= begin <= end
        ):
            pass
        case _:
            raise ValueError(
                f"{file} is damaged: its header gives tensor {name} as {reprlib.repr(entry)}, a "
                f"dtype, a shape of at most {MAX_DIMENSIONS} dimensions and data_offsets in whole "
                "numbers are needed"
            )
    known = SAFETENSORS_DTYPES.get(dtype)
    if known is not None and end - begin != math.prod(shape) * known.itemsize:
        raise ValueError(
            f"{file} is damaged: its header gives tensor {name} {end - begin} bytes, {shape} in "
            f"{dtype} needs {math.prod(shape) * known.itemsize}"
        )
    return Stored(file, tuple(shape), dtype[:MAX_NAME]), begin, end
