"""Softmax attention over pages: the plain formula, and the same bits however tokens are grouped."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import (
    PAGE,
    KVPages,
    attend,
    native,
    rotary_angles,
    rotate,
    softmax_attention,
    write_pages,
)
from tests.examples import examples
from tests.tolerances import (
    BFLOAT16_GRADIENT,
    BFLOAT16_ROTATED,
    BFLOAT16_SOFTMAX,
    FLOAT32_OP,
    FLOAT64_OP,
    Tolerance,
    assert_close,
)

TOLERANCES = {
    torch.float64: FLOAT64_OP,
    torch.float32: FLOAT32_OP,
    torch.bfloat16: BFLOAT16_SOFTMAX,
}
NATIVE_DTYPES = [torch.float32, torch.bfloat16]
STORED = [None, torch.int8]
needs_native = pytest.mark.skipif(native() is None, reason="the C++ kernels are not built")

Heads = tuple[int, int, int]
HEADS: list[Heads] = [(1, 1, 8), (4, 2, 16), (6, 1, 24), (12, 2, 64), (8, 1, 128), (3, 3, 40)]
sequences_of_tokens = st.lists(
    st.tuples(st.integers(0, 150), st.integers(1, 90)), min_size=1, max_size=4
)
seeds = st.integers(0, 10**6)


@dataclass
class Sequences:
    """N sequences whose tokens are at hand; their pages lie in random order."""

    q: list[Tensor]
    """(length, H, D) each"""
    k: list[Tensor]
    """(length, Hkv, D) each"""
    v: list[Tensor]
    pages: KVPages
    """NaN in every row until `write` fills it"""
    block_table: Tensor

    @classmethod
    def random(
        cls,
        lengths: list[int],
        heads: Heads,
        dtype: torch.dtype,
        seed: int,
        stored: torch.dtype | None = None,
    ) -> "Sequences":
        generator = torch.Generator().manual_seed(seed)
        num_heads, num_kv_heads, dim = heads

        def some(length: int, count: int) -> Tensor:
            return torch.randn(length, count, dim, generator=generator, dtype=torch.float64)

        width = max(lengths) // PAGE + 2
        num_pages = width * len(lengths)
        pages = KVPages(num_pages, num_kv_heads, dim, dtype=dtype, stored=stored)
        stale = torch.full((num_pages * PAGE, num_kv_heads, dim), torch.nan, dtype=dtype)
        write_pages(stale, stale, pages, torch.arange(num_pages * PAGE))
        return cls(
            q=[2 * some(n, num_heads).to(dtype) for n in lengths],
            k=[some(n, num_kv_heads).to(dtype) for n in lengths],
            v=[some(n, num_kv_heads).to(dtype) for n in lengths],
            pages=pages,
            block_table=torch.randperm(num_pages, generator=generator).view(-1, width).int(),
        )

    def write(self, sequence: int, start: int, end: int) -> None:
        rows = torch.arange(start, end)
        slots = self.block_table[sequence, rows // PAGE].long() * PAGE + rows % PAGE
        write_pages(self.k[sequence][start:end], self.v[sequence][start:end], self.pages, slots)

    def attention(self, spans: dict[int, tuple[int, int]]) -> Tensor:
        """The output for tokens start to end of each sequence named, in one batch."""
        lengths = [end - start for start, end in spans.values()]
        return softmax_attention(
            torch.cat([self.q[n][start:end] for n, (start, end) in spans.items()]),
            self.pages,
            cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
            context_lens=torch.tensor([start for start, _ in spans.values()]).int(),
            block_table=self.block_table[list(spans)],
        )


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v in float64 for the last len(q) positions of one sequence."""
    q, k, v = q.double(), k.double(), v.double()
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[2] ** 0.5
    reach = torch.arange(len(k))[None] <= torch.arange(len(k) - len(q), len(k))[:, None]
    return torch.einsum("hqk,khd->qhd", scores.where(reach, -torch.inf).softmax(-1), v)


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """Equal to the bit, the sign of zeros too."""
    assert found.dtype == expected.dtype
    assert found.isfinite().all()
    integers = {2: torch.int16, 4: torch.int32}[found.dtype.itemsize]
    assert torch.equal(found.contiguous().view(integers), expected.contiguous().view(integers))


@pytest.mark.parametrize("dtype", TOLERANCES)
@given(sequences_of_tokens, st.sampled_from(HEADS), seeds)
@settings(max_examples=examples(25), deadline=None)
def test_continued_sequences_in_scattered_pages_equal_the_formula(
    dtype: torch.dtype, spans: list[tuple[int, int]], heads: Heads, seed: int
) -> None:
    tokens = Sequences.random([context + new for context, new in spans], heads, dtype, seed)
    parts = {n: (context, context + new) for n, (context, new) in enumerate(spans)}
    for n, (_, end) in parts.items():
        tokens.write(n, 0, end)
    expected = [formula(tokens.q[n][a:b], tokens.k[n], tokens.v[n]) for n, (a, b) in parts.items()]
    assert_close(tokens.attention(parts).double(), torch.cat(expected), TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@given(sequences_of_tokens, st.sampled_from(HEADS), seeds)
@settings(max_examples=examples(15), deadline=None)
def test_int8_pages_equal_the_formula_of_what_they_hold(
    dtype: torch.dtype, spans: list[tuple[int, int]], heads: Heads, seed: int
) -> None:
    lengths = [context + new for context, new in spans]
    tokens = Sequences.random(lengths, heads, dtype, seed, torch.int8)
    # Codes depend on the values alone, and a float32 page reads them without rounding.
    wide = KVPages(tokens.pages.num_pages, *heads[1:], dtype=torch.float32, stored=torch.int8)
    parts = {n: (context, context + new) for n, (context, new) in enumerate(spans)}
    expected = []
    for n, (start, end) in parts.items():
        tokens.write(n, 0, end)
        k, v = tokens.k[n].float(), tokens.v[n].float()
        slots = tokens.block_table[n].long()[:, None] * PAGE + torch.arange(PAGE)
        write_pages(k, v, wide, slots.flatten()[:end])
        held = wide.read(tokens.block_table[n], end)
        for found, given_ in zip(held, (k, v), strict=True):
            assert ((found - given_).abs() <= given_.abs().amax(-1, keepdim=True) / 253).all()
        expected.append(formula(tokens.q[n][start:end], *held))
    assert_close(tokens.attention(parts).double(), torch.cat(expected), TOLERANCES[dtype])


@needs_native
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("stored", STORED)
def test_the_extension_writes_what_torch_writes(
    dtype: torch.dtype, stored: torch.dtype | None
) -> None:
    k, v = torch.randn(2, 90, 3, 24, generator=torch.Generator().manual_seed(8)).to(dtype)
    k[3, 1], v[4, 2, 5], v[5, 0, 5] = 0, torch.inf, torch.nan
    slots = torch.randperm(2 * PAGE, generator=torch.Generator().manual_seed(9))[:90]
    found, expected = (KVPages(2, 3, 24, dtype=dtype, stored=stored) for _ in range(2))
    write_pages(k, v, found, slots)
    expected.write(k, v, slots)
    torch.testing.assert_close(found.stored, expected.stored, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float64, *NATIVE_DTYPES])
def test_pages_return_what_was_written_to_them(dtype: torch.dtype) -> None:
    tokens = Sequences.random([130, 70], (2, 2, 24), dtype, 3)
    for n, length in enumerate((130, 70)):
        tokens.write(n, 0, length)
        k, v = tokens.pages.read(tokens.block_table[n], length)
        assert torch.equal(k, tokens.k[n])
        assert torch.equal(v, tokens.v[n])


@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
def test_scores_of_tens_and_far_maxima_equal_the_formula(dtype: torch.dtype) -> None:
    """bfloat16 has steps of an eighth there; the largest score comes last, in the last page."""
    tokens = Sequences.random([200], (4, 2, 64), dtype, 13)
    tokens.q[0] *= 4
    tokens.k[0][-1] = tokens.q[0][-1, ::2] * 2
    tokens.write(0, 0, 200)
    expected = formula(tokens.q[0], tokens.k[0], tokens.v[0])
    assert_close(tokens.attention({0: (0, 200)}).double(), expected, TOLERANCES[dtype])


@needs_native
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@given(
    st.integers(1, 300), st.lists(st.integers(1, 299), max_size=6), st.sampled_from(HEADS), seeds
)
@settings(max_examples=examples(25), deadline=None)
def test_a_prompt_has_the_same_bits_however_it_is_cut(
    dtype: torch.dtype,
    stored: torch.dtype | None,
    length: int,
    cuts: list[int],
    heads: Heads,
    seed: int,
) -> None:
    """While a part is computed, the rows of all later tokens hold NaN."""
    tokens = Sequences.random([length], heads, dtype, seed, stored)
    bounds = [0, *sorted({cut for cut in cuts if cut < length}), length]
    parts = []
    for start, end in pairwise(bounds):
        tokens.write(0, start, end)
        parts.append(tokens.attention({0: (start, end)}))
    assert_same_bits(torch.cat(parts), tokens.attention({0: (0, length)}))


@needs_native
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("heads", HEADS)
def test_decoding_has_the_bits_of_the_prompt(dtype: torch.dtype, heads: Heads) -> None:
    tokens = Sequences.random([150], heads, dtype, 5)
    decoded = []
    for position in range(150):
        tokens.write(0, position, position + 1)
        decoded.append(tokens.attention({0: (position, position + 1)}))
    assert_same_bits(torch.cat(decoded), tokens.attention({0: (0, 150)}))


@needs_native
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@given(sequences_of_tokens, st.sampled_from(HEADS), seeds)
@settings(max_examples=examples(15), deadline=None)
def test_a_batch_has_the_bits_of_its_sequences_alone_on_any_threads(
    dtype: torch.dtype,
    stored: torch.dtype | None,
    spans: list[tuple[int, int]],
    heads: Heads,
    seed: int,
) -> None:
    extension = native()
    assert extension is not None
    tokens = Sequences.random([context + new for context, new in spans], heads, dtype, seed, stored)
    parts = {n: (context, context + new) for n, (context, new) in enumerate(spans)}
    for n, (_, end) in parts.items():
        tokens.write(n, 0, end)
    alone = torch.cat([tokens.attention({n: part}) for n, part in parts.items()])
    threads = extension.num_threads()
    try:
        for count in (1, 2):
            extension.set_num_threads(count)
            assert_same_bits(tokens.attention(parts), alone)
    finally:
        extension.set_num_threads(threads)


@needs_native
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.sampled_from(HEADS), seeds)
@settings(max_examples=examples(15), deadline=None)
def test_attend_has_the_bits_of_the_pages(
    dtype: torch.dtype, lengths: list[int], heads: Heads, seed: int
) -> None:
    tokens = Sequences.random(lengths, heads, dtype, seed)
    for n, length in enumerate(lengths):
        tokens.write(n, 0, length)
    out = attend(
        *(torch.cat(x) for x in (tokens.q, tokens.k, tokens.v)),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0),
    )
    parts = {n: (0, length) for n, length in enumerate(lengths)}
    assert_same_bits(out, tokens.attention(parts))


@needs_native
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("end", [1, 64, 75, 96])
def test_later_tokens_leave_no_bits_in_earlier_ones(
    dtype: torch.dtype, stored: torch.dtype | None, poison: float, end: int
) -> None:
    tokens = Sequences.random([130], (6, 2, 24), dtype, 7, stored)
    tokens.write(0, 0, 130)
    clean = tokens.attention({0: (0, 130)})[:end]
    tokens.k[0][end:] = poison
    tokens.v[0][end:] = poison
    tokens.write(0, 0, 130)
    assert_same_bits(tokens.attention({0: (0, 130)})[:end], clean)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, FLOAT32_OP), (torch.bfloat16, BFLOAT16_GRADIENT)],
)
def test_the_gradient_of_attend_is_that_of_the_formula(
    dtype: torch.dtype, tolerance: Tolerance
) -> None:
    lengths = [70, 1, 33]
    tokens = Sequences.random(lengths, (4, 2, 24), dtype, 11)
    inputs = [torch.cat(x).requires_grad_() for x in (tokens.q, tokens.k, tokens.v)]
    direction = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(12))
    out = attend(*inputs, cu_seqlens=torch.tensor([0, *lengths]).cumsum(0))
    found = torch.autograd.grad(out, inputs, direction.to(dtype))
    exact = [x.detach().double().requires_grad_() for x in inputs]
    parts = zip(*(torch.split(x, lengths) for x in exact), strict=True)
    expected = torch.autograd.grad(
        torch.cat([formula(*part) for part in parts]), exact, direction.to(dtype).double()
    )
    for gradient, truth in zip(found, expected, strict=True):
        assert_close(gradient.double(), truth, tolerance)


def test_a_batch_that_does_not_fit_its_pages_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cannot hold torch.bfloat16"):
        KVPages(2, 2, 8, dtype=torch.float32, stored=torch.bfloat16)
    pages = KVPages(2, 2, 8, dtype=torch.float32)
    k = torch.zeros(3, 2, 8)
    with pytest.raises(ValueError, match="the pages take"):
        write_pages(k[..., :4], k[..., :4], pages, torch.arange(3))
    with pytest.raises(
        ValueError, match="q needs a gradient, which keys and values in pages do not"
    ):
        softmax_attention(
            k.clone().requires_grad_(),
            pages,
            cu_seqlens=torch.tensor([0, 3], dtype=torch.int32),
            context_lens=torch.tensor([0], dtype=torch.int32),
            block_table=torch.tensor([[0]], dtype=torch.int32),
        )
    with pytest.raises(ValueError, match="slot_mapping has 2 rows for 3 tokens"):
        write_pages(k, k, pages, torch.arange(2))
    with pytest.raises(ValueError, match="needed is"):
        attend(k, k[:, :1, :4], k[:, :1, :4], cu_seqlens=torch.tensor([0, 3]))


@needs_native
def test_pages_that_are_not_there_are_refused() -> None:
    pages = KVPages(2, 2, 8, dtype=torch.float32)
    k = torch.zeros(3, 2, 8)
    with pytest.raises(ValueError, match="sends token 2 to row 128, the pages have 128"):
        write_pages(k, k, pages, torch.tensor([0, 1, 128]))

    def run(context: int, table: list[int]) -> None:
        softmax_attention(
            k,
            pages,
            cu_seqlens=torch.tensor([0, 3]),
            context_lens=torch.tensor([context]),
            block_table=torch.tensor([table]),
        )

    with pytest.raises(ValueError, match="names page 2 for sequence 0, there are 2"):
        run(0, [2])
    with pytest.raises(ValueError, match="1 pages wide, sequence 0 has 65 tokens and needs 2"):
        run(62, [0])
    with pytest.raises(ValueError, match="neither may be negative"):
        run(-4, [0])


def turned(
    x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor, dim: int, eps: float
) -> Tensor:
    """RMSNorm of rows (T, C) and rotation of their heads, as pairs of numbers in float64."""
    x = x.double()
    if weight is not None:
        x = weight.double() * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    x, half = x.view(len(x), -1, dim), cos.shape[1]
    pairs = torch.complex(x[..., :half], x[..., half : 2 * half])
    pairs = pairs * torch.complex(cos.double(), sin.double())[:, None]
    return torch.cat((pairs.real, pairs.imag, x[..., 2 * half :]), -1)


ROTATIONS = [(4, 2, 8, 8), (3, 1, 24, 10), (6, 2, 64, 32), (4, 1, 128, 64)]
ROTATED = {torch.float64: FLOAT64_OP, torch.float32: FLOAT32_OP, torch.bfloat16: BFLOAT16_ROTATED}


@pytest.mark.parametrize("dtype", ROTATED)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "dim", "rotary_dim"), ROTATIONS)
def test_rotate_equals_the_formula_on_parts_of_wider_rows(
    dtype: torch.dtype, normed: bool, num_heads: int, num_kv_heads: int, dim: int, rotary_dim: int
) -> None:
    generator = torch.Generator().manual_seed(num_heads)
    widths = [num_heads * dim, num_kv_heads * dim]
    rows = torch.randn(37, sum(widths) + 5, generator=generator, dtype=torch.float64).to(dtype)
    q, k, _ = torch.split(rows, [*widths, 5], -1)
    weights = [1 + torch.randn(width, generator=generator).to(dtype) / 4 for width in widths]
    norms = weights if normed else [None, None]
    cos, sin = rotary_angles(torch.arange(900, 937), rotary_dim, 1e4)
    found = rotate(q, k, cos, sin, head_dim=dim, q_norm=norms[0], k_norm=norms[1], eps=1e-6)
    for x, weight, out in zip((q, k), norms, found, strict=True):
        assert out.is_contiguous()
        expected = turned(x, weight, cos, sin, dim, 1e-6)
        assert_close(out.double(), expected, ROTATED[dtype])


@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
def test_rotate_without_norms_rounds_as_torch_does(dtype: torch.dtype) -> None:
    q, k = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    cos, sin = rotary_angles(torch.arange(9), 16, 1e4)
    a, b = q.view(9, 2, 24).float()[..., :8], q.view(9, 2, 24).float()[..., 8:16]
    c, s = cos[:, None], sin[:, None]
    out, _ = rotate(q, k, cos, sin, head_dim=24, eps=1e-6)
    assert_same_bits(out[..., :16], torch.cat((a * c - b * s, b * c + a * s), -1).to(dtype))
    assert_same_bits(out[..., 16:], q.view(9, 2, 24)[..., 16:])


def test_rotate_with_norms_rounds_where_torch_does() -> None:
    """The sum of squares has an order of its own, which moves a rounding here and there."""
    generator = torch.Generator().manual_seed(6)
    q, k = (torch.randn(40, width, generator=generator).bfloat16() for width in (96, 48))
    norm = torch.randn(96, generator=generator).bfloat16()
    cos, sin = torch.ones(40, 4), torch.zeros(40, 4)
    out, _ = rotate(q, k, cos, sin, head_dim=24, q_norm=norm, k_norm=norm[:48], eps=1e-6)
    scale = torch.rsqrt(q.float().square().mean(-1, keepdim=True) + 1e-6)
    expected = norm * (q.float() * scale).bfloat16()
    assert (out.flatten(1) == expected).float().mean() > 0.99


@needs_native
@pytest.mark.parametrize("dtype", NATIVE_DTYPES)
def test_rotate_has_the_same_bits_token_by_token(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(50, 3 * 40 + 40, generator=generator).to(dtype)
    q, k = torch.split(rows, [120, 40], -1)
    norms = [torch.randn(width, generator=generator).to(dtype) for width in (120, 40)]
    cos, sin = rotary_angles(torch.arange(50), 24, 1e6)

    def some(at: slice) -> tuple[Tensor, Tensor]:
        return rotate(
            q[at], k[at], cos[at], sin[at], head_dim=40, q_norm=norms[0], k_norm=norms[1], eps=1e-5
        )

    whole, parts = some(slice(None)), [some(slice(t, t + 1)) for t in range(50)]
    for out, singles in zip(whole, zip(*parts, strict=True), strict=True):
        assert_same_bits(out, torch.cat(singles))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, FLOAT32_OP), (torch.bfloat16, BFLOAT16_GRADIENT)],
)
def test_the_gradient_of_rotate_is_that_of_the_formula(
    dtype: torch.dtype, tolerance: Tolerance
) -> None:
    generator = torch.Generator().manual_seed(4)
    q, k = (torch.randn(21, width, generator=generator) for width in (96, 24))
    weights = (1 + torch.randn(width, generator=generator) / 4 for width in (96, 24))
    cos, sin = rotary_angles(torch.arange(21), 16, 1e4)
    inputs = [x.to(dtype).requires_grad_() for x in (q, k, *weights)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    directions = [torch.randn(21, heads, 24, generator=generator).to(dtype) for heads in (4, 1)]
    q, k, q_norm, k_norm = inputs
    outs = rotate(q, k, cos, sin, head_dim=24, q_norm=q_norm, k_norm=k_norm, eps=1e-6)
    found = torch.autograd.grad(outs, inputs, directions)
    truths = [turned(exact[i], exact[2 + i], cos, sin, 24, 1e-6) for i in range(2)]
    expected = torch.autograd.grad(truths, exact, [x.double() for x in directions])
    for gradient, truth in zip(found, expected, strict=True):
        assert_close(gradient.double(), truth, tolerance)


def test_rotary_angles_are_those_of_float32_products() -> None:
    positions = torch.tensor([0, 1, 2, 1000, 123_456, 1_048_575])
    cos, sin = rotary_angles(positions, 64, 1e7)
    frequencies = 1.0 / 1e7 ** (torch.arange(0, 64, 2).float() / 64)
    angles = (positions.float()[:, None] * frequencies).double()
    assert_close(cos.double(), angles.cos(), Tolerance(2**-23, 0.0))
    assert_close(sin.double(), angles.sin(), Tolerance(2**-23, 0.0))


@needs_native
@given(st.integers(0, 10**6), st.integers(1, 150), st.integers(1, 150))
@settings(max_examples=examples(15), deadline=None)
def test_rotary_angles_have_the_same_bits_however_they_are_cut(
    start: int, length: int, cut: int
) -> None:
    positions = torch.arange(start, start + length)
    whole = rotary_angles(positions, 20, 1e6)
    parts = [rotary_angles(part, 20, 1e6) for part in torch.split(positions, cut)]
    for angles, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert_same_bits(angles, torch.cat(pieces))


def test_rotation_turns_half_pairs_inside_the_rotated_part_only() -> None:
    x = torch.randn(5, 16)
    angles = rotary_angles(torch.arange(5), 4, 100.0)
    turned, _ = rotate(x, x, *angles, head_dim=8, eps=0.0)
    heads = x.view(5, 2, 8)
    assert torch.equal(turned[..., 4:], heads[..., 4:])
    angle = torch.arange(5)[:, None] * 100.0**-0.5
    expected = heads[..., 1] * angle.cos() - heads[..., 3] * angle.sin()
    assert_close(turned[..., 1], expected, FLOAT32_OP)
