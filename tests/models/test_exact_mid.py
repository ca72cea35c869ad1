"""The numerics contract at the shapes of the released models, scaled down to what a laptop holds.

Random checkpoints of 1.7 (M2) and 1.4 (M1) billion parameters as benchmarks/checkpoints.py writes
them, in bfloat16 and rounded: a token's logits are the same bits however they are come by.
"""

import copy
import gc
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fulmen.checkpoints import Checkpoint, load_model
from fulmen.models import Model, Packed
from fulmen.quantize import QuantizeConfig, parse_packed, quantize_checkpoint
from tests.kernels.helpers import needs_native, same_bits, with_threads
from tests.models.test_exact import Cached, alone

pytestmark = [pytest.mark.slow, needs_native]

SCRIPT = Path(__file__).parents[2] / "benchmarks/checkpoints.py"
FORMATS = ("bfloat16", "int8", "int4")
PROMPT = 150
"""Tokens: more than two pages, with a ragged end."""


@pytest.fixture(scope="module", params=["m2", "m1"])
def source(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("mid") / request.param
    make = [sys.executable, str(SCRIPT), request.param, str(folder)]
    subprocess.run(make, check=True, capture_output=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", params=FORMATS)
def model(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    folder = source
    if request.param != "bfloat16":
        folder = tmp_path_factory.mktemp("rounded") / request.param
        packed = parse_packed(bits=request.param.removeprefix("int"))
        quantize_checkpoint(source, folder, QuantizeConfig(packed=packed))
    loaded = load_model(folder)
    assert loaded.config.torch_dtype == torch.bfloat16
    yield loaded
    del loaded
    gc.collect()
    if folder != source:
        shutil.rmtree(folder)


def tokens(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(32_000) for _ in range(count)]


def in_chunks(model: Model, ids: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """(T, V): one sequence, so many tokens at a time; the last size repeats."""
    cached = Cached(model, 1, 4)
    cached.poison()
    logits = []
    left = list(sizes)
    done = 0
    while done < len(ids):
        size = left.pop(0) if len(left) > 1 else left[0]
        logits.append(cached.feed({0: ids[done : done + size]})[0])
        done += size
    return torch.cat(logits)


def test_chunks_and_threads_leave_every_bit_of_a_prompt(model: Model) -> None:
    ids = tokens(PROMPT, 0)
    with_threads(2)
    expected = alone(model, ids)
    assert expected.isfinite().all()
    for threads, sizes in (
        (1, [PROMPT]),
        (2, [64]),
        (1, [1, 63, 65, 7]),
        (2, [100, 1]),
        (2, [149, 1]),
        (1, [33]),
    ):
        with_threads(threads)
        assert same_bits(in_chunks(model, ids, sizes), expected), (threads, sizes)
    with_threads(2)


def test_every_token_decoded_alone_has_the_bits_of_prefill(model: Model) -> None:
    ids = tokens(70, 1)
    expected = alone(model, ids)
    for threads in (1, 2):
        with_threads(threads)
        assert same_bits(in_chunks(model, ids, [1]), expected)
    with_threads(2)


def test_a_warm_cache_gives_the_bits_of_a_cold_one(model: Model) -> None:
    """A prefix that another request left is used as if it had been read again."""
    ids = tokens(PROMPT, 2)
    expected = alone(model, ids)
    cached = Cached(model, 2, 5)
    cached.poison()
    cached.feed({1: tokens(90, 3)})
    cached.feed({0: ids[:128]})
    assert same_bits(cached.feed({0: ids[128:], 1: tokens(5, 4)})[0], expected[128:])
    cached.lengths = [0, 0]  # the same pages and slots once more, with what lies in them
    assert same_bits(cached.feed({0: ids})[0], expected)
    copied = Cached(model, 2, 6)  # a second request that goes on from the first one's prefix
    copied.feed({0: ids[:64]})
    copied.cache.restore(1, copied.cache.snapshot(0, 0))
    copied.tables[1] = [copied.tables[0][0], *copied.tables[1][1:]]
    copied.lengths[1] = 64
    assert same_bits(copied.feed({1: ids[64:]})[1], expected[64:])


def test_a_token_decodes_the_same_in_batches_of_1_to_64(model: Model) -> None:
    count = 64
    prompts = [tokens(1 + n * 7 % 90, 10 + n) for n in range(count)]
    cached = Cached(model, count, 7)
    for n, prompt in enumerate(prompts):
        cached.feed({n: prompt})
    last = tokens(count, 8)
    observed = (0, 1, 5)
    expected = {n: alone(model, [*prompts[n], last[n]])[-1] for n in observed}
    lengths = list(cached.lengths)
    for size in (*range(1, 18), 24, 31, 32, 33, 48, 63, 64):
        for threads in (1, 2) if size in (1, 2, 3, 8, 33, 64) else (2,):
            with_threads(threads)
            for n in observed:
                if n >= size and size > 3:
                    continue
                others = [m for m in range(count) if m != n][: size - 1]
                members = sorted({n, *others})
                found = decode_once(cached, members, last, lengths)
                assert same_bits(found[n], expected[n]), (size, threads, n)
    with_threads(2)


def decode_once(
    cached: Cached, members: Sequence[int], last: Sequence[int], lengths: Sequence[int]
) -> dict[int, Tensor]:
    """One step of some sequences (V,) each, after which all are as before it."""
    kept = [layer.carry for layer in cached.cache.layers if hasattr(layer, "carry")]
    saved = [[state.clone() for state in carry] for carry in kept]
    logits = cached.feed({n: [last[n]] for n in members})
    for carry, states in zip(kept, saved, strict=True):
        for state, before in zip(carry, states, strict=True):
            state.copy_(before)
    cached.lengths = list(lengths)
    return {n: rows[0] for n, rows in logits.items()}


@pytest.mark.parametrize("num_layers", [2, 8])
@pytest.mark.parametrize("kind", ["m2", "m1"])
def test_the_forward_pass_of_training_has_the_bits_of_inference(
    kind: str, num_layers: int, tmp_path: Path
) -> None:
    """Fewer layers: training packs every weight for each call, and both models are in memory."""
    folder = tmp_path / kind
    make = [sys.executable, str(SCRIPT), kind, str(folder), "--layers", str(num_layers)]
    subprocess.run(make, check=True, capture_output=True)
    loaded, trained = load_model(folder), load_model(folder, trainable=True)
    shutil.rmtree(folder)
    trained.train()
    served = copy.deepcopy(trained)
    served.pack()
    sequences = [tokens(length, 20 + length) for length in (1, 64, 100)]
    with_threads(2)
    logits = trained(Packed.of(sequences))
    assert logits.requires_grad
    packed = Packed.of(sequences)
    with torch.no_grad():  # the head of a model that learns is float32, that of the file is not
        assert same_bits(trained.hidden_states(packed), loaded.hidden_states(packed))
    rows = torch.split(logits.detach(), [len(ids) for ids in sequences])
    for ids, found in zip(sequences, rows, strict=True):
        assert same_bits(found, alone(served, ids))
    with_threads(1)
    assert same_bits(trained(Packed.of(sequences)).detach(), logits.detach())
    with_threads(2)


def test_the_checkpoints_are_of_the_size_they_are_said_to_be(source: Path) -> None:
    assert Checkpoint.open_whole(source).num_bytes > 2.5e9
