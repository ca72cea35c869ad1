"""Gradients of all ops in C++: any shape, any number of threads, kept values or values made again,
and that what nobody wants costs nothing."""

from collections.abc import Callable, Iterator
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.kernels import (
    ExpertWeights,
    add_residual,
    attend,
    gated_norm,
    lightning_attention,
    linear,
    linear_each,
    mixture_of_experts,
    residual_norm,
    rms_norm,
    rotary_angles,
    rotate,
    split_qkv,
    target_logprobs,
    target_scores,
    time_calls,
)
from tests.examples import examples
from tests.kernels.helpers import needs_native, normal, same_bits, with_threads
from tests.tolerances import BFLOAT16_PRODUCTS, FLOAT32_OP, assert_close

pytestmark = needs_native

Inputs = dict[str, Tensor]
Gradients = dict[str, Tensor | None]

LENGTHS = [70, 1, 130, 16]
T, C, F, H, D = sum(LENGTHS), 48, 40, 4, 24


def lens() -> Tensor:
    return torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0).int()


def run_linear(x: Inputs) -> Tensor:
    return linear(x["x"], x["weight"], activation="silu")


def run_experts(x: Inputs) -> Tensor:
    ids = torch.stack([torch.arange(T) % 3, (torch.arange(T) // 3 + 1) % 2], -1)
    ids[:, 1] += (ids[:, 1] >= ids[:, 0]).long()  # the fifth of five is chosen by none
    some = [ExpertWeights(x[f"w1.{e}"], x[f"w2.{e}"], x[f"w3.{e}"]) for e in range(5)]
    return mixture_of_experts(x["x"], x["weights"], ids, some)


def run_head(x: Inputs) -> Tensor:
    return target_logprobs(x["x"], x["weight"], torch.arange(T) % 200)


def run_scores(x: Inputs) -> Tensor:
    return target_scores(x["x"], x["weight"], torch.arange(T) % 200).logprobs


def run_attend(x: Inputs) -> Tensor:
    return attend(x["q"], x["k"], x["v"], cu_seqlens=lens())


def run_lightning(x: Inputs) -> Tensor:
    slopes = torch.tensor([0.7, 0.1, 0.05, 0.001])
    return lightning_attention(x["q"], x["k"], x["v"], slopes, cu_seqlens=lens())


def run_residual_norm(x: Inputs) -> Tensor:
    stream, normed = residual_norm(x["x"], x["branch"], x["norm"], 1e-5, alpha=3.5, beta=0.75)
    return stream * 2 + normed


def run_rotate(x: Inputs) -> Tensor:
    cos, sin = rotary_angles(torch.arange(T), 16, 1e4)
    q, k = rotate(
        x["x"], x["branch"], cos, sin, head_dim=D, q_norm=x["norm"], k_norm=x["other"], eps=1e-6
    )
    return torch.cat([q, k], 1)


Shapes = dict[str, tuple[int, ...]]

ROWS: Shapes = {"x": (T, C), "branch": (T, C), "norm": (C,), "other": (C,)}
MATRICES: Shapes = {
    f"w{i}.{e}": ((C, F) if i == 2 else (F, C)) for e in range(5) for i in (1, 2, 3)
}
OPS: dict[str, tuple[Callable[[Inputs], Tensor], Shapes]] = {
    "linear": (run_linear, {"x": (T, C), "weight": (100, C)}),
    "experts": (run_experts, {"x": (T, C), "weights": (T, 2), **MATRICES}),
    "head": (run_head, {"x": (T, C), "weight": (200, C)}),
    "scores": (run_scores, {"x": (T, C), "weight": (200, C)}),
    "attend": (run_attend, {"q": (T, H, D), "k": (T, 2, D), "v": (T, 2, D)}),
    "lightning": (run_lightning, dict.fromkeys("qkv", (T, H, D))),
    "rms_norm": (lambda x: rms_norm(x["x"], x["norm"], 1e-6), {k: ROWS[k] for k in ("x", "norm")}),
    "residual_norm": (run_residual_norm, {k: ROWS[k] for k in ("x", "branch", "norm")}),
    "add_residual": (
        lambda x: add_residual(x["x"], x["branch"], alpha=3.5, beta=0.75),
        {k: ROWS[k] for k in ("x", "branch")},
    ),
    "gated_norm": (
        lambda x: gated_norm(x["x"], x["norm"], x["branch"], 1e-6),
        {k: ROWS[k] for k in ("x", "branch", "norm")},
    ),
    "rotate": (run_rotate, ROWS),
}
WITH_MATRIX = {"linear", "head", "scores"}
"""Ops whose matrix gets its gradient from the kernel `outer`."""


def inputs_of(name: str, dtype: torch.dtype) -> Inputs:
    made = {}
    for seed, (key, shape) in enumerate(OPS[name][1].items()):
        value = normal(*shape, seed=seed) / shape[-1] ** (0.5 * (len(shape) == 2))
        made[key] = value.abs() if key == "weights" else value.to(dtype)
    return made


def gradients(name: str, inputs: Inputs, wanted: set[str]) -> tuple[Gradients, list[str]]:
    """Return the gradients of the inputs, and the kernels that the backward pass called."""
    leaves = {
        key: value.detach().clone().requires_grad_(key in wanted) for key, value in inputs.items()
    }
    out = OPS[name][0](leaves)
    upstream = normal(*out.shape, seed=99).to(out.dtype)
    with time_calls() as clock:
        torch.autograd.backward(out, upstream)
    return {key: leaf.grad for key, leaf in leaves.items()}, [c.kernel for c in clock.calls()]


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    yield
    with_threads(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_gradients_do_not_depend_on_the_number_of_threads(name: str, dtype: torch.dtype) -> None:
    inputs = inputs_of(name, dtype)
    found = []
    for count in (1, 2, 5):
        with_threads(count)
        found.append(gradients(name, inputs, set(inputs))[0])
    for other in found[1:]:
        for key, one in found[0].items():
            assert one is not None
            assert same_bits(one, other[key])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPS)
def test_what_is_frozen_gets_no_gradient_and_changes_no_other(name: str) -> None:
    inputs = inputs_of(name, torch.float32)
    whole, calls = gradients(name, inputs, set(inputs))
    for key in inputs:
        alone, few = gradients(name, inputs, {key})
        assert {other for other, gradient in alone.items() if gradient is not None} == {key}
        assert same_bits(alone[key], whole[key])  # type: ignore[arg-type]
        assert len(few) <= len(calls)
        if name == "lightning":
            assert few == ["lightning"]
            assert calls == 3 * few
        if name in WITH_MATRIX:
            assert ("outer" in few) == (key == "weight")
            assert ("linear" in few) == (key == "x")


@pytest.mark.parametrize("name", ["experts", "head", "scores"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_made_again_gives_the_gradients_of_what_was_kept(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(name, dtype)
    kept, _ = gradients(name, inputs, set(inputs))
    module = "experts" if name == "experts" else "head"
    monkeypatch.setattr(import_module(f"fulmen.kernels.cpu.{module}"), "KEPT_BYTES", 0)
    again, _ = gradients(name, inputs, set(inputs))
    for key, one in kept.items():
        assert same_bits(one, again[key])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matrices_of_one_input_give_together_what_each_gives_alone(dtype: torch.dtype) -> None:
    x = normal(T, C, seed=0, dtype=dtype)
    weights = [(normal(n, C, seed=n) / C**0.5).to(dtype) for n in (100, 33)]
    upstream = [normal(T, len(weight), seed=9, dtype=dtype) for weight in weights]
    together, alone = ([w.clone().requires_grad_() for w in (x, *weights)] for _ in range(2))
    outs = linear_each(together[0], together[1:], activations=("silu", "none"), input_bits=(16, 16))
    each = [
        linear(alone[0], alone[1], activation="silu"),
        linear(alone[0], alone[2]),
    ]
    assert all(map(same_bits, outs, each))
    torch.autograd.backward(outs, upstream)
    torch.autograd.backward(each, upstream)
    (dx, *found), (expected_dx, *expected) = (
        [leaf.grad for leaf in leaves] for leaves in (together, alone)
    )
    assert all(map(same_bits, found, expected))
    assert dx is not None
    assert expected_dx is not None
    scale = expected_dx.abs().max()
    tolerance = FLOAT32_OP if dtype == torch.float32 else BFLOAT16_PRODUCTS
    assert_close(dx / scale, expected_dx / scale, tolerance)


@pytest.mark.parametrize("is_joined", [True, False], ids=["side by side", "apart"])
def test_gradients_of_q_k_and_v_go_back_to_the_rows_they_are_of(is_joined: bool) -> None:
    rows = normal(T, H * 3 * D, seed=0).requires_grad_()
    heads = split_qkv(rows, D)
    assert same_bits(torch.cat(heads, -1).view_as(rows), rows)
    upstream = normal(T, H, 3 * D, seed=1)
    each = upstream.chunk(3, -1)
    gradients = each if is_joined else [gradient.clone() for gradient in each]
    (found,) = torch.autograd.grad(heads, rows, gradients)
    assert same_bits(found, upstream.view_as(rows))
    assert (found.data_ptr() == upstream.data_ptr()) == is_joined


def test_rows_of_no_whole_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="rows have 100 columns"):
        split_qkv(torch.zeros(2, 100), 16)


@given(st.data())
@settings(max_examples=examples(40), deadline=None)
def test_the_gradients_of_a_matrix_of_any_shape(data: st.DataObject) -> None:
    rows = data.draw(st.one_of(st.integers(1, 9), st.integers(100, 600)))
    inputs, outputs = (data.draw(st.integers(1, 300)) for _ in range(2))
    dtypes = st.sampled_from([torch.float32, torch.bfloat16])
    x_dtype, out_dtype = data.draw(dtypes), data.draw(dtypes)
    x = normal(rows, 2 * inputs, seed=1, dtype=x_dtype)[:, :inputs].requires_grad_()
    weight = (normal(outputs, inputs, seed=2) / inputs**0.5).to(x_dtype).requires_grad_()
    upstream = normal(rows, outputs, seed=3, dtype=out_dtype)
    found = torch.autograd.grad(linear(x, weight, out_dtype=out_dtype), (x, weight), upstream)
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    expected = torch.autograd.grad(wide[0] @ wide[1].T, wide, upstream.double())
    tolerance = FLOAT32_OP if x_dtype == out_dtype == torch.float32 else BFLOAT16_PRODUCTS
    for one, other in zip(found, expected, strict=True):
        scale = other.abs().max().clamp(min=1e-6)
        assert_close(one.double() / scale, other / scale, tolerance)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=4), st.data())
@settings(max_examples=examples(30), deadline=None)
def test_the_gradients_of_attention_over_sequences_of_any_length(
    lengths: list[int], data: st.DataObject
) -> None:
    heads, kv_heads, dim = data.draw(st.sampled_from([(4, 2, 24), (3, 3, 16), (2, 1, 72)]))
    q, k, v, upstream = (
        normal(sum(lengths), count, dim, seed=seed)
        for seed, count in enumerate((heads, kv_heads, kv_heads, heads))
    )
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()

    def found(wide: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(wide).requires_grad_() for x in (q, k, v)]
        out = attend(*leaves, cu_seqlens=cu_seqlens)
        return torch.autograd.grad(out, leaves, upstream.to(wide))

    for one, other in zip(found(torch.float32), found(torch.float64), strict=True):
        assert_close(one.double(), other, FLOAT32_OP)
