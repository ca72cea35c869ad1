"""Choice of the backend that takes tensors, layouts of pages, and arguments by name."""

import pytest
import torch
from torch import Tensor

from fulmen.kernels import PAGE, backend_for, cpu, native
from fulmen.kernels.backends import backend_for_alike
from fulmen.kernels.cpu.pages import InterleavedPages
from fulmen.kernels.pages import PageStorage, TokenPages
from tests.kernels.helpers import needs_native, normal, same_bits


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_cpu_takes_the_dtypes_it_knows(dtype: torch.dtype) -> None:
    x = torch.empty(2, dtype=dtype)
    assert backend_for(x, x.float()) is cpu
    assert (backend_for_alike(x, x.float()) is cpu) == (dtype == torch.float32)


@pytest.mark.parametrize(
    "x",
    [
        torch.empty(2, dtype=torch.float64),
        torch.empty(2, dtype=torch.float16),
        torch.empty(2, dtype=torch.int64),
        torch.empty(2, device="meta"),
    ],
    ids=lambda x: f"{x.dtype} {x.device}",
)
def test_the_reference_takes_the_rest(x: Tensor) -> None:
    assert backend_for(x) is None
    assert backend_for(torch.empty(2), x) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("is_int8", [False, True])
@pytest.mark.parametrize("head_dim", [16, 24])
def test_every_layout_gives_back_what_was_written(
    dtype: torch.dtype, is_int8: bool, head_dim: int
) -> None:
    stored = torch.int8 if is_int8 else dtype
    layouts: tuple[PageStorage, ...] = (
        InterleavedPages(3, 2, head_dim, dtype=dtype, stored=stored),
        TokenPages(3, 2, head_dim, dtype=dtype, stored=stored, device="cpu"),
    )
    k, v = (normal(3 * PAGE, 2, head_dim, seed=seed, dtype=dtype) for seed in (1, 2))
    slots = torch.randperm(3 * PAGE, generator=torch.Generator().manual_seed(3))
    order = torch.tensor([2, 0, 1])
    found = []
    for layout in layouts:
        layout.write(k, v, slots // PAGE, slots % PAGE)
        assert all(len(part) == 3 for part in layout.tensors().values())
        found.append(layout.read(order))
    assert all(map(same_bits, *found))
    if not is_int8:
        rows = (order[:, None] * PAGE + torch.arange(PAGE)).flatten()
        for given, read in zip((k, v), found[0], strict=True):
            assert same_bits(read, given[slots.argsort()][rows])


@needs_native
def test_a_missing_or_unknown_argument_is_named_or_counted() -> None:
    extension = native()
    assert extension is not None
    x = torch.zeros(1)
    names = dict.fromkeys(("positions", "frequencies", "cos", "sin"), x.data_ptr())
    with pytest.raises(TypeError, match="argument half is missing"):
        extension.rotary_angles(**names, num_tokens=0)
    with pytest.raises(TypeError, match="7 arguments are given, 6 are known"):
        extension.rotary_angles(**names, num_tokens=0, half=0, quarter=0)
