"""The GGUF container: its header, metadata and where each tensor lies.

The `gguf` package's own reader takes seconds for a vocabulary and believes every length in the
file, so the header is parsed here, within bounds that no published file comes near.
"""

import math
import reprlib
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

T = TypeVar("T")

MAX_HEADER_BYTES: Final = 64 * 2**20
"""Largest header. One with Gemma 3's vocabulary of 262,144 tokens and its merges has 16 MB."""

MAX_VALUES: Final = 2 * 2**20
"""Most elements of all arrays in the metadata together: texts and numbers, which become objects.
Gemma 3's vocabulary, scores, types and merges are 1.3 million."""

MAX_ENTRIES: Final = 2**16
"""Most keys, and most tensors. The largest published Llama has 1,138 tensors."""

MAX_DIMENSIONS: Final = 4
"""Most dimensions of a tensor, as in ggml itself."""

_SCALAR_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.FLOAT64: "d",
    GGUFValueType.BOOL: "?",
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """Place of a tensor in the file."""

    shape: tuple[int, ...]
    """Sizes in torch's order: the last dimension is contiguous."""
    quantization: GGMLQuantizationType
    start: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF whose header is read."""

    path: Path
    mapped: npt.NDArray[np.uint8]
    """(file size,), a read-only map."""
    metadata: dict[str, object]
    entries: dict[str, _Entry]

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """Return the metadata value of `key`, of type `kind`; without a default it must exist."""
        value = self.metadata.get(key, default)
        if value is None:
            raise ValueError(f"{self.path} has no {key} in its metadata, which is needed")
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise ValueError(
                f"{self.path} has {key} = {reprlib.repr(value)}, it must be {kind.__name__}"
            )
        return value

    def get_strings(self, key: str) -> list[str]:
        """Return the metadata value of `key`, a list of texts."""
        values = self.get(key, list)
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{self.path} has {key} that are not texts")
        return values


class Cursor:
    """A reader of little-endian values, one after another, within a header's bounds."""

    def __init__(self, path: Path, mapped: npt.NDArray[np.uint8]) -> None:
        self.path = path
        self.memory = mapped.data
        self.position = 0
        self.num_left = MAX_VALUES
        """Elements of arrays that may still be read."""

    def take(self, size: int) -> memoryview:
        end = self.position + size
        if end > len(self.memory):
            raise ValueError(
                f"{self.path} is cut short or damaged: its header goes on past byte "
                f"{len(self.memory)}, the last it has"
            )
        if end > MAX_HEADER_BYTES:
            raise ValueError(
                f"{self.path} is damaged: its header is larger than {MAX_HEADER_BYTES} bytes"
            )
        taken = self.memory[self.position : end]
        self.position = end
        return taken

    def numbers(self, layout: str, count: int = 1) -> list[Any]:
        """Read `count` values of one `struct` letter."""
        taken = self.take(struct.calcsize(f"<{layout}") * count)
        return list(struct.unpack(f"<{count}{layout}", taken))

    def count(self, of: str, limit: int) -> int:
        """Read how many of something follow; ValueError for more than `limit`."""
        found: int = self.number("Q")
        self.check_count(of, found, limit)
        return found

    def check_count(self, of: str, found: int, limit: int) -> None:
        if found > limit:
            raise ValueError(
                f"{self.path} is damaged: its header counts {found} {of}, at most {limit} are read"
            )

    def number(self, layout: str) -> Any:
        return self.numbers(layout)[0]

    def string(self) -> str:
        return str(self.take(self.number("Q")), "utf-8")

    def strings(self, count: int) -> list[str]:
        """Read `count` texts. A vocabulary has a hundred thousand, hence a loop without calls."""
        memory, size_at = self.memory, struct.Struct("<Q").unpack_from
        position, limit = self.position, min(len(self.memory), MAX_HEADER_BYTES)
        texts = []
        for _ in range(count):
            start = position + 8
            position = start + size_at(memory, position)[0] if start <= limit else limit + 1
            if position > limit:
                self.take(limit + 1)  # raises
            texts.append(str(memory[start:position], "utf-8"))
        self.position = position
        return texts

    def value_type(self) -> GGUFValueType:
        number = self.number("I")
        try:
            return GGUFValueType(number)
        except ValueError:
            raise ValueError(
                f"{self.path} is damaged: its metadata holds a value of type {number}, which no "
                "GGUF has"
            ) from None

    def value(self) -> object:
        kind = self.value_type()
        if kind != GGUFValueType.ARRAY:
            return self.string() if kind == GGUFValueType.STRING else self._scalar(kind)
        kind = self.value_type()
        count = self.count("values in arrays", self.num_left)
        self.num_left -= count
        if kind == GGUFValueType.ARRAY:
            raise ValueError(f"{self.path} holds an array of arrays, which is not supported")
        if kind == GGUFValueType.STRING:
            return self.strings(count)
        return self.numbers(_SCALAR_FORMATS[kind], count)

    def _scalar(self, kind: GGUFValueType) -> object:
        value = self.number(_SCALAR_FORMATS[kind])
        # 1e-05 is stored as 9.999999747378752e-06; the shortest decimal is what its author wrote.
        return float(str(np.float32(value))) if kind == GGUFValueType.FLOAT32 else value


def read_gguf_file(path: Path) -> GgufFile:
    """Read the header of a GGUF; ValueError for a file that is none, is cut short or damaged."""
    # Mapping an empty file is an error of its own.
    mapped = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
    cursor = Cursor(path, mapped)
    if mapped[:4].tobytes() != b"GGUF":
        raise ValueError(f"{path} is not a GGUF: it does not begin with the letters GGUF")
    cursor.take(4)
    version = cursor.number("I")
    if version not in (2, 3):
        found = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise ValueError(f"{path} is a {found} GGUF, needed is a little-endian one, version 2 or 3")
    num_tensors = cursor.count("tensors", MAX_ENTRIES)
    num_values = cursor.count("keys", MAX_ENTRIES)
    try:
        metadata = {cursor.string(): cursor.value() for _ in range(num_values)}
        tensors = [_read_tensor_header(cursor) for _ in range(num_tensors)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: a text in its header is not UTF-8") from error
    file = GgufFile(path, mapped, metadata, {})
    alignment = file.get("general.alignment", int, 32)
    if alignment < 1:
        raise ValueError(f"{path} has general.alignment = {alignment}, it must be 1 or more")
    data_start = -(-cursor.position // alignment) * alignment
    for name, shape, quantization, offset in tensors:
        if name in file.entries:
            raise ValueError(f"{path} is damaged: it has tensor {reprlib.repr(name)} twice")
        file.entries[name] = _place(file, name, shape, quantization, data_start + offset)
    return file


def _read_tensor_header(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Read name, shape, quantisation id, and offset from the start of the data."""
    name = cursor.string()
    num_dimensions = cursor.number("I")
    cursor.check_count("dimensions of a tensor", num_dimensions, MAX_DIMENSIONS)
    dimensions = cursor.numbers("Q", num_dimensions)
    return name, tuple(reversed(dimensions)), cursor.number("I"), cursor.number("Q")


def _place(file: GgufFile, name: str, shape: tuple[int, ...], type_id: int, start: int) -> _Entry:
    short = name[:80]
    try:
        quantization = GGMLQuantizationType(type_id)
        block_size, block_bytes = GGML_QUANT_SIZES[quantization]
    except (ValueError, KeyError):
        raise ValueError(
            f"{file.path} stores {short} in quantisation {type_id}, which the installed gguf "
            "package does not know"
        ) from None
    if not shape or shape[-1] % block_size != 0:
        raise ValueError(
            f"{file.path} stores {short} of shape {shape} in {quantization.name}, which needs rows "
            f"of a multiple of {block_size} values"
        )
    num_bytes = math.prod(shape) // block_size * block_bytes
    if start + num_bytes > len(file.mapped):
        raise ValueError(
            f"{file.path} is cut short: it has {len(file.mapped)} bytes and {short} ends at byte "
            f"{start + num_bytes}"
        )
    return _Entry(shape, quantization, start, num_bytes)
