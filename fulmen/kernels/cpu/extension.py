"""The C++ extension: loaded on first use, told addresses and sizes.

It works on bfloat16 and float32 in a CPU's memory. A row's bits do not depend on the rows beside
it, nor on the number of threads.
"""

import functools
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

DTYPES: Final = {torch.float32: 0, torch.bfloat16: 1}
"""Dtypes of activations, as the extension numbers them."""


@functools.cache
def native() -> ModuleType | None:
    """Return the extension, or None where it was not built or cannot be used; log why, once.

    Raises ValueError where FULMEN_ISA names a set that is unknown or that this machine lacks.
    """
    try:
        from fulmen.kernels.cpu import _native
    except ImportError:
        shadowed = shadowed_install()
        if shadowed is not None:
            logger.warning("%s; running on plain torch", shadowed)
            return None
        logger.warning(
            "the C++ kernels are not installed (fulmen doctor tells how to get them); running on "
            "plain torch, which is slower and exact only to rounding"
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


def shadowed_install() -> str | None:
    """Return the sentence for a source folder without kernels that is imported in place of an
    installed package with them; None where no such package is on sys.path."""
    source = Path(__file__).parents[2]
    for entry in sys.path:
        package = Path(entry) / source.name
        if package.resolve() != source and any((package / "kernels/cpu").glob("_native*")):
            return (
                f"you are importing the source folder {source}, which has no C++ kernels, and not "
                f"the installed {package}; leave {source.parent}, or `pip install -e .` there"
            )
    return None


def built_sets() -> list[tuple[str, bool]] | None:
    """Return the instruction sets that the extension was compiled for, best first, and whether this
    machine has each; None where there is no extension."""
    try:
        from fulmen.kernels.cpu import _native
    except ImportError:
        return None
    if not hasattr(_native, "instruction_sets"):  # built from an older tree and left there
        raise ValueError("the C++ kernels are older than this package, install it again")
    return _native.instruction_sets()


def loaded() -> ModuleType:
    """Return the extension where an op was given to this backend, so it must be there."""
    extension = native()
    assert extension is not None
    return extension


def takes(*tensors: Tensor) -> bool:
    """Return whether the extension can work on these tensors."""
    return all(x.is_cpu and x.dtype in DTYPES for x in tensors) and native() is not None


def address(x: Tensor | None) -> int:
    """Return where a tensor's values begin; 0, a null pointer, for None."""
    return 0 if x is None else x.data_ptr()


def dense_rows(x: Tensor) -> Tensor:
    """Return x with its last dimension contiguous; other strides stay."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def set_num_threads(count: int) -> None:
    """Set how many threads the kernels use; the result of no kernel depends on it."""
    extension = native()
    if extension is not None:
        extension.set_num_threads(count)


def populate(mapped: Tensor) -> None:
    """Map all pages of a mapped file (bytes,) now, where memory holds them easily; else each first
    use of a page would interrupt a kernel."""
    extension = native()
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    available = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    if extension is not None and 2 * mapped.nbytes < available.get("MemAvailable", 0):
        extension.populate(mapped.data_ptr(), mapped.nbytes)
