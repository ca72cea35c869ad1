"""The numerics contract: a token's logits are the same bits however they are come by.

Prefill in any chunks, decode, any company, any number of threads, a cache full of other requests'
remains, and the forward pass of training: 0 differing bits.
"""

import copy
import random
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fulmen.engine import Runner
from fulmen.kernels import PAGE, HeadOutput, KVPages, Program, write_pages
from fulmen.kernels.cpu.head import MAX_CANDIDATES
from fulmen.models import M1Config, M2Config, Model, Packed
from fulmen.models.experts import Experts
from fulmen.models.layers import Linear
from tests.examples import examples
from tests.kernels.helpers import needs_native, packed, rounds_inputs, same_bits, with_threads
from tests.models.helpers import random_model, tiny_m1, tiny_m2

pytestmark = needs_native

PAGES_EACH = 4
CONFIGS: dict[str, M1Config | M2Config] = {
    "m1": tiny_m1(hidden_size=48, head_dim=16, rotary_dim=8, num_attention_heads=4),
    "m2": tiny_m2(hidden_size=48, head_dim=16, rotary_dim=8),
    "m1-plain-residual": tiny_m1(postnorm=False, shared_intermediate_size=24),
}
FORMATS = ("float32", "bfloat16", "int8", "int4", "codebook4")


def model_of(config: M1Config | M2Config, format: str) -> Model:
    """A random model ready for inference; integers for all but router and head."""
    model = random_model(config)
    if format != "float32":
        model = model.to(torch.bfloat16)
        float32_routers(model)
    if rounds_inputs(format):
        for name, module in model.named_modules():
            if isinstance(module, Linear) and not name.endswith(("gate", "lm_head")):
                assert isinstance(module.weight, Tensor)
                module.assign(packed(module.weight.detach().float(), format))
            elif isinstance(module, Experts):
                for matrix in ("w1", "w2", "w3"):
                    for expert, weight in enumerate(module.get_parameter(matrix).detach()):
                        module.assign(expert, matrix, packed(weight.float(), format))
    model.pack()
    return model


def float32_routers(model: Model) -> None:
    """Cast routers and choice biases to float32, as loading a checkpoint does."""
    for name, module in model.named_modules():
        if name.endswith("block_sparse_moe.gate"):
            module.float()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = buffer.data.float()


class Cached:
    """Sequences in one cache, each in a slot of its own, fed any tokens at a time."""

    def __init__(self, model: Model, count: int, seed: int) -> None:
        self.model = model
        pages = list(range(count * PAGES_EACH))
        random.Random(seed).shuffle(pages)
        self.tables = [pages[n * PAGES_EACH :][:PAGES_EACH] for n in range(count)]
        self.cache = model.new_cache(len(pages), count)
        self.lengths = [0] * count

    def feed(self, parts: dict[int, Sequence[int]]) -> dict[int, Tensor]:
        """Runs the next tokens of some sequences together; their logits."""
        packed = Packed.of(
            list(parts.values()),
            context_lens=[self.lengths[n] for n in parts],
            block_tables=[self.tables[n] for n in parts],
            slots=list(parts),
        )
        with torch.inference_mode():
            logits: Tensor = self.model(packed, self.cache)
        for n, ids in parts.items():
            self.lengths[n] += len(ids)
        pieces = torch.split(logits, [len(ids) for ids in parts.values()])
        return dict(zip(parts, pieces, strict=True))

    def poison(self) -> None:
        """Leaves NaN wherever earlier requests might have left something, and starts over."""
        for layer in self.cache.layers:
            if isinstance(layer, KVPages):
                rows = torch.arange(layer.num_pages * PAGE)
                nan = torch.full((len(rows), layer.num_kv_heads, layer.head_dim), torch.nan)
                write_pages(nan, nan, layer, rows)
            else:
                for state in layer.carry:
                    state.fill_(torch.nan)
        self.lengths = [0] * len(self.lengths)


def alone(model: Model, ids: Sequence[int]) -> Tensor:
    """(T, V): one sequence in one call, nothing beside it."""
    return Cached(model, 1, 0).feed({0: ids})[0]


MODELS = {
    (name, format): model_of(config, format)
    for name, config in CONFIGS.items()
    for format in FORMATS
}


@pytest.mark.parametrize("key", MODELS, ids="-".join)
@given(st.data())
@settings(max_examples=examples(12), deadline=None)
def test_logits_do_not_depend_on_chunks_company_cache_or_threads(
    key: tuple[str, str], data: st.DataObject
) -> None:
    model = MODELS[key]
    rng = random.Random(data.draw(st.integers(0, 10**6)))
    count = data.draw(st.integers(1, 5))
    lengths = [data.draw(st.integers(1, 64 * PAGES_EACH)) for _ in range(count)]
    sequences = [[rng.randrange(61) for _ in range(length)] for length in lengths]
    with_threads(1)
    expected = [alone(model, ids) for ids in sequences]
    with_threads(2)

    cached = Cached(model, count, rng.randrange(100))
    cached.poison()
    found: list[list[Tensor]] = [[] for _ in sequences]
    while any(done < length for done, length in zip(cached.lengths, lengths, strict=True)):
        parts: dict[int, Sequence[int]] = {}
        for n in rng.sample(range(count), rng.randint(1, count)):
            done = cached.lengths[n]
            if done < lengths[n]:
                size = rng.choice([1, 1, 2, 7, 63, 64, 65, 200])
                parts[n] = sequences[n][done : done + size]
        if parts:
            for n, logits in cached.feed(parts).items():
                found[n].append(logits)
    for n, logits in enumerate(expected):
        assert same_bits(torch.cat(found[n]), logits)


@pytest.mark.parametrize("key", MODELS, ids="-".join)
def test_sixty_four_sequences_decode_as_each_alone(key: tuple[str, str]) -> None:
    model = MODELS[key]
    rng = random.Random(1)
    prompts = [[rng.randrange(61) for _ in range(rng.randint(1, 90))] for _ in range(64)]
    cached = Cached(model, 64, 2)
    cached.feed(dict(enumerate(prompts)))
    steps = [[rng.randrange(61) for _ in prompts] for _ in range(3)]
    decoded = [cached.feed({n: [step[n]] for n in range(64)}) for step in steps]
    for n in rng.sample(range(64), 12):
        whole = alone(model, prompts[n] + [step[n] for step in steps])
        for logits, expected in zip(decoded, whole[-3:], strict=True):
            assert same_bits(logits[n][0], expected)


@pytest.mark.parametrize("key", MODELS, ids="-".join)
def test_recorded_steps_have_the_bits_of_fresh_ones(key: tuple[str, str]) -> None:
    """Through the ends of a chunk and a page, with sequences that come and go."""
    model = MODELS[key]
    rng = random.Random(5)
    count = 4
    cached = Cached(model, count, 3)
    runner = Runner(model, cached.cache)
    prompts = [[rng.randrange(61) for _ in range(rng.randint(1, 70))] for _ in range(count)]
    cached.feed(dict(enumerate(prompts)))
    history = [list(prompt) for prompt in prompts]
    found: list[tuple[int, int, HeadOutput, int]] = []
    for step in range(70):
        members = sorted(rng.sample(range(count), rng.choice([2, 2, 3])))
        ids = [rng.randrange(61) for _ in members]
        packed = Packed.of(
            [[token] for token in ids],
            context_lens=[cached.lengths[n] for n in members],
            block_tables=[cached.tables[n] for n in members],
            slots=members,
            only_last_logits=True,
        )
        targets = torch.tensor([step % 61] * len(members))
        out = runner.next_tokens(packed, targets=targets, top_k=3)
        for row, (n, token) in enumerate(zip(members, ids, strict=True)):
            history[n].append(token)
            cached.lengths[n] += 1
            found.append((n, len(history[n]) - 1, out, row))
    expected = [alone(model, ids) for ids in history]
    for n, position, out, row in found:
        logits = expected[n][position]
        assert out.target_logits is not None
        order = logits.sort(descending=True, stable=True)
        assert torch.equal(out.top_ids[row], order.indices[:3])
        assert same_bits(out.top_logits[row], order.values[:3])
    is_complete = any(step is not None for step in runner._steps.values())
    assert is_complete == (key[0] != "m1-plain-residual")  # its shared expert works in torch


def test_steps_with_many_candidates_are_recorded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, then the whole vocabulary sorted in torch, then greedy."""
    vocab_size = 300
    assert vocab_size > MAX_CANDIDATES
    model = random_model(tiny_m1(vocab_size=vocab_size))
    model.pack()
    replays = []
    replay = Program.replay

    def counted(program: Program[Tensor]) -> None:
        replays.append(program)
        replay(program)

    monkeypatch.setattr(Program, "replay", counted)
    cached, prompt = Cached(model, 1, 0), list(range(40))
    cached.feed({0: prompt})
    runner = Runner(model, cached.cache)
    ids = [7, 250, 3, 120, 33, 9]
    for step, (token, top_k) in enumerate(zip(ids, [1, 1, 1, vocab_size, 1, 5], strict=True)):
        packed = Packed.of(
            [[token]],
            context_lens=[cached.lengths[0]],
            block_tables=[cached.tables[0]],
            slots=[0],
            only_last_logits=True,
        )
        out = runner.next_tokens(packed, targets=torch.tensor([step]), top_k=top_k)
        cached.lengths[0] += 1
        logits = alone(model, prompt + ids[: step + 1])[-1:]
        order = logits.sort(descending=True, stable=True)
        assert torch.equal(out.top_ids, order.indices[:, :top_k])
        assert same_bits(out.top_logits, order.values[:, :top_k])
        assert out.target_logits is not None
        assert same_bits(out.target_logits, logits[:, step])
        assert len(replays) == max(step - 1, 0)  # the first runs directly, the second records


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("format", ["float32", "bfloat16"])
def test_the_forward_pass_of_training_has_the_bits_of_inference(name: str, format: str) -> None:
    trained = random_model(CONFIGS[name])
    if format == "bfloat16":
        trained = trained.to(torch.bfloat16)
        float32_routers(trained)
    served = copy.deepcopy(trained)
    served.pack()
    rng = random.Random(3)
    sequences = [[rng.randrange(61) for _ in range(length)] for length in (1, 64, 130, 200)]
    logits = trained(Packed.of(sequences))
    assert logits.requires_grad
    for ids, rows in zip(
        sequences, torch.split(logits, [len(ids) for ids in sequences]), strict=True
    ):
        assert same_bits(rows.detach(), alone(served, ids))
        decoded = Cached(served, 1, 0)
        steps = [decoded.feed({0: [token]})[0] for token in ids]
        assert same_bits(torch.cat(steps), rows.detach())
