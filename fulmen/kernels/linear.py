"""Linear layers: y = x W^T, the weights packed once or for the call.

K is summed in one fixed order, so a row has the same bits alone and among a thousand.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fulmen.kernels.backends import backend_for
from fulmen.kernels.gradients import NO_GRADIENT, needs_gradient
from fulmen.kernels.weights import PackedMatrix, pack_reference, plain_dtype

Activation = Literal["none", "silu", "sigmoid"]
"""Function that `linear` applies to each output."""


def linear(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    activation: Activation = "none",
    out_dtype: torch.dtype | None = None,
    input_bits: int = 16,
) -> Tensor:
    """Return activation(x W^T), summed in float32 (float64 for float64), rounded once.

    x           (..., K)     bfloat16, float32 or float64
    weight      (N, K)       packed, or a plain matrix, which is packed for the call; float32 and
                             bfloat16 may meet
    out_dtype   of the result; x's if omitted
    input_bits  8 or 16: how finely x is rounded, group by group, for int8 and int4 weights

    Returns (..., N). Differentiable for a plain matrix.
    """
    out_dtype = out_dtype or x.dtype
    check_input_bits(input_bits)
    is_packed = isinstance(weight, PackedMatrix)
    k = weight.k if isinstance(weight, PackedMatrix) else weight.shape[1]
    if x.shape[-1] != k:
        raise ValueError(f"x has {x.shape[-1]} inputs, the matrix takes {k}")
    if is_packed and needs_gradient(x):
        raise ValueError(f"the weight is {NO_GRADIENT}")
    backend = backend_for(x, *plain_weights(weight))
    if backend is None or out_dtype not in backend.DTYPES:
        return linear_reference(x, weight, activation=activation, out_dtype=out_dtype)
    return backend.linear(
        x, weight, activation=activation, out_dtype=out_dtype, input_bits=input_bits
    )


def linear_each(
    x: Tensor,
    weights: Sequence[Tensor | PackedMatrix],
    *,
    activations: Sequence[Activation],
    input_bits: Sequence[int],
) -> list[Tensor]:
    """Return `linear` of x and each matrix. In training the gradients of x are added up as they are
    made, without a pass over memory for each.

    x            (..., K)       bfloat16, float32 or float64
    weights      (N, K) each    packed or plain, as `linear` takes them; N may differ
    activations  one a matrix
    input_bits   one a matrix

    Returns (..., N) in x's dtype for each. Differentiable if all are plain.
    """
    plain = plain_weights(*weights)
    backend = backend_for(x, *plain)
    fits = all(weight.shape[1] == x.shape[-1] for weight in plain)
    if len(plain) == len(weights) and backend is not None and fits and needs_gradient(x, *plain):
        return list(backend.linear_each(x, plain, activations, x.dtype))
    each = zip(weights, activations, input_bits, strict=True)
    return [
        linear(x, weight, activation=activation, input_bits=bits)
        for weight, activation, bits in each
    ]


def linear_reference(
    x: Tensor,
    weight: Tensor | PackedMatrix,
    *,
    activation: Activation = "none",
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return what `linear` does, in plain torch."""
    wide = torch.promote_types(x.dtype, torch.float32)
    matrix = weight.unpack() if isinstance(weight, PackedMatrix) else weight
    out = F.linear(x.to(wide), matrix.to(wide))
    if activation != "none":
        out = F.silu(out) if activation == "silu" else out.sigmoid()
    return out.to(out_dtype or x.dtype)


def pack(weight: Tensor) -> PackedMatrix:
    """Pack a float32 or bfloat16 matrix (N, K) as it is, for `linear` and its relatives."""
    backend = backend_for(weight)
    return pack_reference(weight) if backend is None else backend.pack(weight)


def copy_matrix(target: Tensor | PackedMatrix, source: Tensor | PackedMatrix) -> None:
    """Copy a matrix (N, K) to where another of its shape lies, rounded to the dtype of that one.

    A packed target keeps its memory, so programs recorded on it and matrices combined of it read
    the new values.
    """
    plain = source.unpack() if isinstance(source, PackedMatrix) else source.detach()
    if isinstance(target, Tensor):
        with torch.no_grad():
            target.copy_(plain)
        return
    dtype = plain_dtype(target.format)
    assert dtype is not None, "a rounded matrix takes no new values"
    plain = plain.to(device=target.data.device, dtype=dtype)
    backend = backend_for(plain)
    if backend is None:
        target.data.copy_(pack_reference(plain).data)
    else:
        backend.pack_into(target, plain)


def plain_weights(*weights: Tensor | PackedMatrix) -> list[Tensor]:
    """Return those weights that are not packed."""
    return [weight for weight in weights if isinstance(weight, Tensor)]


def check_input_bits(input_bits: int) -> None:
    """Raise ValueError unless inputs can be rounded to this many bits."""
    if input_bits not in (8, 16):
        raise ValueError(f"input_bits is {input_bits}, it must be 8 or 16")
