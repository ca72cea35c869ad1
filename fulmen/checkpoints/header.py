"""What a safetensors file says it holds, checked before a weight is read."""

import json
import math
import reprlib
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

ALIGNMENT: Final = 64
"""Bytes: a packed matrix begins at a multiple of this, in memory and in the files we write."""


SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "U8": torch.uint8,
}
"""Those we read, by their names in a header."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor of a checkpoint lies."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """As safetensors names it; F32 for a GGUF, whose tensors are read as that."""
    begin: int = 0
    """Where its bytes begin in the file; 0 for a GGUF, which knows itself."""


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
