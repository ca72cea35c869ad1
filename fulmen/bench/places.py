"""The part of a model that each kernel call of a step belongs to.

A call tells the address of the first weight that it reads, and every layer begins with a norm of
its own, so nothing in the models has to name what it does.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from torch import Tensor

from fulmen.kernels import CallTimes, PackedMatrix, pack
from fulmen.models import Experts, Linear, Model

EMBEDDING: Final = "embedding"
NORMS: Final = "norms and residuals"
PROJECTIONS: Final = "attention projections"
ROTATION: Final = "rotation"
SOFTMAX: Final = "softmax attention"
LIGHTNING: Final = "lightning attention"
ROUTER: Final = "router"
FIRST: Final = "experts, first products"
SECOND: Final = "experts, second product"
SHARED: Final = "shared expert"
HEAD: Final = "head"

KERNELS: Final = {
    "embed": EMBEDDING,
    "norm": NORMS,
    "rotary_angles": ROTATION,
    "rotate": ROTATION,
    "write_pages": SOFTMAX,
    "softmax_attention": SOFTMAX,
    "lightning": LIGHTNING,
    "route": ROUTER,
}
"""Kinds of work by kernel, for those without a product"""
_SHOWN_ROWS: Final = 1024
"""Rows of a tied head that stand for all"""


class Place(NamedTuple):
    """The part of a model that one stage of a call is."""

    kind: str
    layer: int | None
    """None outside of the layers"""
    num_bytes: float = 0.0
    """Bytes of weights that are read, and of the past; for experts, of each"""
    matrix: PackedMatrix | None = None
    """One of its matrices, all of one format and length of rows; None without a product"""
    input_bits: int = 16

    @property
    def is_experts(self) -> bool:
        """True for a product of several experts."""
        return self.kind in (FIRST, SECOND)


def places_of(
    model: Model, calls: Sequence[CallTimes], *, batch: int, depth: float
) -> list[tuple[Place, ...]]:
    """Return the place of each stage of each call of a step, for `batch` sequences of `depth`
    tokens."""
    products = dict(_products(model, {call.weights for call in calls}))
    first_norms = {
        layer.get_submodule("input_layernorm").get_parameter("weight").data_ptr(): index
        for index, layer in enumerate(model.model.layers)
    }
    last_norm = model.model.norm.weight.data_ptr()
    layer: int | None = None
    found: list[tuple[Place, ...]] = []
    for call in calls:
        if call.kernel == "norm":
            layer = None if call.weights == last_norm else first_norms.get(call.weights, layer)
        if call.kernel == "head":
            found.append((_head(model),))
        elif call.kernel in KERNELS:
            num_bytes = _bytes_besides(model, call, layer, batch, depth)
            found.append((Place(KERNELS[call.kernel], layer, num_bytes),))
        else:
            found.append(products[call.weights])
    return found


def _products(model: Model, called: set[int]) -> Iterator[tuple[int, tuple[Place, ...]]]:
    """Yield the address and the places of each product in the layers.

    called  addresses that calls name: those of q, k and v are one where they are one matrix
    """
    for layer, module in enumerate(model.model.layers):
        matrices = {
            name: part.weight
            for name, part in module.named_modules()
            if isinstance(part, Linear) and isinstance(part.weight, PackedMatrix)
        }
        for name, part in module.named_modules():
            if isinstance(part, Experts):
                first = part.weights()[0]
                assert isinstance(first.w1, PackedMatrix)
                assert isinstance(first.w2, PackedMatrix)
                bits = part.input_bits
                yield (
                    first.w1.data.data_ptr(),
                    (
                        Place(FIRST, layer, 2 * first.w1.data.nbytes, first.w1, bits),
                        Place(SECOND, layer, first.w2.data.nbytes, first.w2, bits),
                    ),
                )
            elif isinstance(part, Linear) and name in matrices:
                matrix = matrices[name]
                num_bytes = matrix.data.nbytes
                if name.endswith("q_proj"):
                    others = (matrices[name.replace("q_proj", one)] for one in ("k_proj", "v_proj"))
                    num_bytes += sum(
                        other.data.nbytes for other in others if other.data.data_ptr() not in called
                    )
                place = Place(_kind(name), layer, num_bytes, matrix, part.input_bits)
                yield matrix.data.data_ptr(), (place,)


def _kind(name: str) -> str:
    """Return the kind of a linear layer by its name within a layer."""
    if name.startswith("self_attn"):
        return PROJECTIONS
    return ROUTER if name.endswith(".gate") else SHARED


def _head(model: Model) -> Place:
    if model.lm_head is not None:
        matrix = model.lm_head.weight
        assert isinstance(matrix, PackedMatrix)
        return Place(HEAD, None, matrix.data.nbytes, matrix, model.lm_head.input_bits)
    table = model.model.embed_tokens.weight
    return Place(HEAD, None, table.nbytes, pack(table[:_SHOWN_ROWS].detach()))


def _bytes_besides(
    model: Model, call: CallTimes, layer: int | None, batch: int, depth: float
) -> float:
    """Return the bytes that a kernel without a product reads: a vector of weights, or the past."""
    config = model.config
    itemsize = model.model.embed_tokens.weight.itemsize
    match call.kernel:
        case "embed":
            return batch * config.hidden_size * itemsize
        case "norm":
            return _vectors(model, layer, call.weights)
        case "rotate":
            return _vectors(model, layer, "q_norm", "k_norm")
        case "route":
            return _vectors(model, layer, "e_score_correction_bias")
        case "softmax_attention":
            return batch * depth * 2 * config.num_key_value_heads * config.head_dim * itemsize
        case "lightning":
            return batch * config.num_attention_heads * config.head_dim**2 * 4
    return 0.0


def _vectors(model: Model, layer: int | None, *wanted: str | int) -> int:
    """Return the bytes of a layer's vectors that lie at an address, or whose names hold a word;
    outside of the layers, of the last norm."""
    if layer is None:
        return model.model.norm.weight.nbytes
    found = 0
    module = model.model.layers[layer]
    vectors: Iterator[tuple[str, Tensor]]
    for vectors in (module.named_parameters(), module.named_buffers()):
        for name, vector in vectors:
            if any(
                vector.data_ptr() == one if isinstance(one, int) else one in name for one in wanted
            ):
                found += vector.nbytes
    return found
