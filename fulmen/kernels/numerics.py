"""Numerics: a string that tells what the bits of results depend on.

Keys, values and states saved under one string may be used under the same string, in another process
or by another version, and under no other.
"""

import functools
import hashlib
from typing import Final

import torch

from fulmen.kernels.cpu import native
from fulmen.kernels.rotary import rotary_frequencies

REVISION: Final = 1
"""Revision of the C++ kernels' bits; 1 is that of version 0.1.0.

Raise it in the commit that changes any bit of any kernel's output on any instruction set, and
record the outputs anew: tests/kernels/test_numerics.py fails until then and says how.
"""

_ROPES: Final = ((64, 1e7), (64, 5e6), (128, 1e4), (128, 1e6), (96, 5e5))
"""rotary_dim and rope_theta of M1, of M2 and of others."""
_POWERS: Final = "ca70179be8809033"
"""`_digest_of_powers` of revision 1, with torch 2.13."""


@functools.cache
def numerics() -> str:
    """Return what bits depend on besides inputs, dtypes and device.

    With the C++ kernels "kernels-1 avx2": their revision and the instruction set. Without them
    "torch-2.13.0", since every op is torch's.

    One function of torch takes part beside the kernels, the power that gives rotary frequencies. A
    torch whose powers differ is named after the instruction set. All else between the kernels
    copies, or adds and multiplies elements, which IEEE 754 rounds in one way.
    """
    torch_version = f"torch-{torch.__version__}"
    extension = native()
    if extension is None:
        return torch_version
    kernels = f"kernels-{REVISION} {extension.isa()}"
    return kernels if _digest_of_powers() == _POWERS else f"{kernels} {torch_version}"


def _digest_of_powers() -> str:
    """Return a digest of the frequencies of `_ROPES`, which stand for all."""
    digest = hashlib.sha256()
    for rotary_dim, rope_theta in _ROPES:
        frequencies = rotary_frequencies(rotary_dim, rope_theta, torch.device("cpu"))
        digest.update(frequencies.numpy().tobytes())
    return digest.hexdigest()[:16]
