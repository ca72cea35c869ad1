"""The C++ extension, when it is there, and what an op needs to use it.

Every op has a plain-torch reference; the extension is the same op, faster and with the same bits
for a row whatever stands beside it. It works on CPU tensors of bfloat16 and float32.
"""

import functools
import hashlib
import logging
from pathlib import Path
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

DTYPES: Final = {torch.float32: 0, torch.bfloat16: 1}
"""The activations the kernels know, as they number them."""


@functools.cache
def native() -> ModuleType | None:
    """The extension, or None where it was not built or cannot be used; says so once. Raises
    ValueError where FULMEN_ISA names a set that is unknown or that this machine lacks."""
    try:
        from fulmen.kernels.cpu import _native
    except ImportError:
        logger.warning(
            "the C++ kernels are not installed (pip builds them when it finds a C++ compiler); "
            "running on plain torch, which is slower and exact only to rounding"
        )
        return None
    try:
        isa = _native.isa()
    except RuntimeError as error:  # it says what was found and what is known
        raise ValueError(f"{error}; without FULMEN_ISA the processor decides") from None
    if not isa:
        logger.warning(
            "the C++ kernels are not in use: no AVX2, or FULMEN_ISA is none; running on plain torch"
        )
        return None
    return _native


@functools.cache
def numerics() -> str:
    """What the bits of results depend on besides their inputs and where they are computed: torch,
    the build of the kernels and the instruction set in use."""
    extension = native()
    if extension is None:
        return f"torch-{torch.__version__}"
    assert extension.__file__ is not None
    with open(extension.__file__, "rb") as file:
        build = hashlib.file_digest(file, "sha256").hexdigest()
    return f"torch-{torch.__version__} {extension.isa()}-{build[:16]}"


def native_for(*tensors: Tensor) -> ModuleType | None:
    """The extension if it can take these tensors, else None."""
    for x in tensors:
        if not x.is_cpu or x.dtype not in DTYPES:
            return None
    return native()


def native_alike(*tensors: Tensor) -> ModuleType | None:
    """The same where all of them must be of one dtype."""
    return native_for(*tensors) if len({x.dtype for x in tensors}) == 1 else None


def check_input_bits(input_bits: int) -> None:
    """Raises ValueError unless the kernels know this rounding of inputs."""
    if input_bits not in (8, 16):
        raise ValueError(f"input_bits is {input_bits}, it must be 8 or 16")


def set_num_threads(count: int) -> None:
    """How many threads the kernels use; the result of no kernel depends on it."""
    extension = native()
    if extension is not None:
        extension.set_num_threads(count)


def populate(mapped: Tensor) -> None:
    """Maps all pages of a file's map (bytes,) now, if memory holds them easily: else every first
    use of a page would interrupt a kernel."""
    extension = native()
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    available = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    if extension is not None and 2 * mapped.nbytes < available.get("MemAvailable", 0):
        extension.populate(mapped.data_ptr(), mapped.nbytes)


def needs_gradient(*tensors: Tensor) -> bool:
    """Whether autograd watches any of these tensors."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
