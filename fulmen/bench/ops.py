"""The list of operations that `fulmen bench` times, in the shapes of a middle-sized checkpoint."""

from fulmen.bench.op import FormatName, Op, Shapes
from fulmen.bench.ops_attention import (
    lightning_backward_op,
    lightning_op,
    rotary_op,
    softmax_backward_op,
    softmax_op,
)
from fulmen.bench.ops_products import (
    experts_backward_op,
    experts_op,
    head_op,
    linear_backward_op,
    linear_op,
    router_op,
)
from fulmen.bench.ops_rows import embedding_op, gated_norm_op, norm_op, residual_norm_op
from fulmen.kernels import native


def list_ops(shapes: Shapes | None = None) -> list[Op]:
    """Return all operations. Plain torch runs no rounded weights, so without the C++ kernels they
    are in bfloat16 alone."""
    s = shapes or Shapes()
    formats: tuple[FormatName, ...] = ("bfloat16", "int8", "int4", "fp8")
    formats = formats[: 1 if native() is None else None]
    ragged = [s.long_context >> i for i in range(8)]
    return [
        *(linear_op(s, format, rows) for format in formats for rows in (1, 8, s.prompt)),
        linear_backward_op(s, s.prompt),
        *(
            experts_op(s, format, tokens)
            for format in formats
            for tokens in (1, 8, s.prompt, s.long_prompt)
        ),
        experts_backward_op(s, s.prompt),
        *(router_op(s, tokens) for tokens in (1, s.prompt)),
        lightning_op(s, "prefill", s.prompt),
        lightning_op(s, "decode", 8),
        lightning_backward_op(s, s.prompt),
        softmax_op(s, "prefill", s.prompt, [0]),
        softmax_op(s, "prefill", s.prompt, [s.long_context]),
        softmax_op(s, "decode", 1, [s.context]),
        softmax_op(s, "decode", 1, [s.long_context]),
        softmax_op(s, "decode", 1, ragged),
        softmax_op(s, "decode", 1, [s.long_context], is_int8=True),
        softmax_backward_op(s, s.prompt),
        *(rotary_op(s, tokens) for tokens in (1, s.prompt)),
        *(head_op(s, tokens) for tokens in (1, 8)),
        head_op(s, s.prompt, has_targets=True),
        *(norm_op(s, tokens) for tokens in (1, s.prompt)),
        *(residual_norm_op(s, tokens) for tokens in (1, s.prompt)),
        gated_norm_op(s, s.prompt),
        *(embedding_op(s, tokens) for tokens in (1, s.prompt)),
    ]
