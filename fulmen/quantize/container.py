"""A safetensors file written piece by piece, so that no more than a piece of a tensor is in memory.

The header comes first in the file. Names, dtypes and shapes are known before the data, but metadata
such as errors is not: its place is reserved, and the header is written again at the end.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO, Final

import torch
from torch import Tensor

from fulmen.checkpoints import ALIGNMENT, SAFETENSORS_DTYPES
from fulmen.models import TensorSpec, num_elements

_NAMES: Final = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}


def num_bytes(spec: TensorSpec) -> int:
    """Return the bytes of a stored tensor."""
    return num_elements(spec) * spec.dtype.itemsize


def in_file_order(specs: Iterable[TensorSpec]) -> list[TensorSpec]:
    """Return tensors in an order that aligns each, in a format that allows no gaps.

    Tensors of a multiple of 64 bytes come first. The rest follows, the wider types first.
    """

    def raggedness(spec: TensorSpec) -> int:
        return 0 if num_bytes(spec) % ALIGNMENT == 0 else ALIGNMENT - spec.dtype.itemsize

    return sorted(specs, key=raggedness)


def write_container(
    file: BinaryIO,
    specs: Sequence[TensorSpec],
    pieces: Callable[[TensorSpec], Iterable[Tensor]],
    metadata: Callable[[], Mapping[str, str]],
) -> Iterator[int]:
    """Write `specs` in their order, each as the bytes of its `pieces`; yield the bytes of each
    piece.

    `metadata` is called before and after the data; both results must have the same length in JSON.
    """
    header = _header(specs, metadata())
    file.write(header)
    for spec in specs:
        left = num_bytes(spec)
        for piece in pieces(spec):
            file.write(_bytes(piece))
            left -= piece.nbytes
            yield piece.nbytes
        assert left == 0, spec.name
    file.seek(0)
    final = _header(specs, metadata())
    assert len(final) == len(header)
    file.write(final)


def _header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    begin = 0
    for spec in specs:
        end = begin + num_bytes(spec)
        entries[spec.name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": spec.shape,
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
