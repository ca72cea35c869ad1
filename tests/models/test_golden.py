"""Recorded truth: logits, states and routing of public implementations on tiny random checkpoints.

What each file holds and how it was made is in tests/golden/README-*.md; tolerances are the ones
given there.
"""

import gzip
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fulmen.catalog.cards import published_config
from fulmen.checkpoints import Checkpoint, load_model, read_config
from fulmen.kernels import KVPages
from fulmen.models import M1Config, Packed, Trace
from fulmen.models.m1 import alibi_slopes, router_aux_loss, slope_rates
from tests.models.helpers import Session, relative_error
from tests.tolerances import FLOAT32_OP, M1_GOLDEN, M2_GOLDEN, assert_close

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name)


@pytest.fixture(scope="module")
def rotary16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """m1-tiny with rotary_dim equal to head_dim."""
    folder = tmp_path_factory.mktemp("rotary16")
    shutil.copy(GOLDEN / "m1-tiny/model.safetensors", folder)
    config = json.loads((GOLDEN / "m1-tiny/config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rotary_dim": 16}))
    return folder


@pytest.mark.parametrize("name", ["m1-tiny", "m1-tiny-hf"])
def test_m1_prefill_of_600_tokens(name: str) -> None:
    expected = golden(f"{name}/prefill600.safetensors")
    model = load_model(GOLDEN / name, dtype=torch.float32)
    with torch.no_grad():
        logits = model(expected["input_ids"].long())
    assert logits.dtype == torch.float32
    assert_close(logits[0], expected["logits"], M1_GOLDEN)


@pytest.mark.parametrize("name", ["m1-tiny", "m1-tiny-hf"])
def test_m1_prefill_of_300_then_24_decoded_tokens(name: str) -> None:
    expected = golden(f"{name}/decode300p24.safetensors")
    ids = expected["input_ids"][0].tolist()
    session = Session(load_model(GOLDEN / name, dtype=torch.float32))
    logits = [session.feed(ids[:300])[-1:]] + [session.feed([token]) for token in ids[300:]]
    assert_close(torch.cat(logits), expected["logits"], M1_GOLDEN)


def test_m1_cache_after_decode_holds_the_recorded_states_keys_and_values() -> None:
    expected = golden("m1-tiny/decode300p24.safetensors")
    model = load_model(GOLDEN / "m1-tiny", dtype=torch.float32)
    session = Session(model)
    session.feed(expected["input_ids"][0, :300].tolist())
    for token in expected["input_ids"][0, 300:].tolist():
        session.feed([token])
    for layer in range(7):
        state = session.kv_state(layer)
        assert relative_error(state, expected[f"linear_state.{layer}"]) < 1e-4
    pages = session.cache.layers[7]
    assert isinstance(pages, KVPages)
    keys, values = pages.read(torch.tensor(session.pages), 324)
    assert relative_error(keys, expected["softmax_k.7"]) < 1e-4
    assert relative_error(values, expected["softmax_v.7"]) < 1e-4


def test_m1_intermediate_values_router_choices_and_aux_loss() -> None:
    expected = golden("m1-tiny/intermediates.safetensors")
    ids = golden("m1-tiny/prefill600.safetensors")["input_ids"].long()
    model = load_model(GOLDEN / "m1-tiny", dtype=torch.float32)
    trace = Trace()
    session = Session(model)
    session.feed(ids[0].tolist(), trace=trace)
    positions = expected["positions"].long()
    for stage, hidden_states in enumerate(trace.hidden_states):
        assert relative_error(hidden_states[positions], expected["hidden_states"][stage]) < 1e-4
    for layer in range(8):
        logits = trace.router_logits[layer][positions]
        assert relative_error(logits, expected["router_logits"][layer]) < 1e-4
        chosen = trace.topk_ids[layer].sort(-1).values
        recorded = expected["selected_experts"][layer].long().sort(-1).values
        assert torch.equal(chosen, recorded)
    for layer in (0, 6):
        recorded = expected[f"linear_state_layer{layer}_after600"]
        assert relative_error(session.kv_state(layer), recorded) < 1e-4
    aux_loss = router_aux_loss(trace.router_logits, model.config.num_experts_per_tok)
    assert_close(aux_loss, expected["aux_loss"].reshape(()), FLOAT32_OP)
    assert_close(torch.tensor(alibi_slopes(4)), expected["slopes_base"].flatten(), M1_GOLDEN)


def test_m1_batch_without_padding() -> None:
    expected = golden("m1-tiny/batch48.safetensors")
    model = load_model(GOLDEN / "m1-tiny", dtype=torch.float32)
    with torch.no_grad():
        logits = model(expected["input_ids"].long())
    assert_close(logits, expected["logits"], M1_GOLDEN)


def test_m1_row_that_others_pad_is_right_when_packed() -> None:
    expected = golden("m1-tiny/batch48.safetensors")
    rows = [
        ids[mask.bool()]
        for ids, mask in zip(expected["padded_ids"], expected["attention_mask"], strict=True)
    ]
    model = load_model(GOLDEN / "m1-tiny", dtype=torch.float32)
    with torch.no_grad():
        logits = model(Packed.of(rows))
    assert_close(logits[len(rows[0]) :], expected["row1_unpadded_logits"], M1_GOLDEN)


def test_m1_hf_row_that_others_pad_is_right_when_packed() -> None:
    expected = golden("m1-tiny-hf/batch48.safetensors")
    row, mask = expected["padded_ids"][1], expected["attention_mask"][1].bool()
    model = load_model(GOLDEN / "m1-tiny-hf", dtype=torch.float32)
    with torch.no_grad():
        logits = model(Packed.of([row[mask]]))
    assert_close(logits, expected["leftpad_logits"][1][mask], M1_GOLDEN)


def test_m1_with_the_whole_head_rotated(rotary16: Path) -> None:
    expected = golden("m1-tiny/rotary16.safetensors")
    model = load_model(rotary16, dtype=torch.float32)
    ids = golden("m1-tiny/prefill600.safetensors")["input_ids"].long()
    with torch.no_grad():
        logits = model(ids)[0]
        batch = model(golden("m1-tiny/batch48.safetensors")["input_ids"].long())
    assert_close(logits[536:], expected["logits_last64"], M1_GOLDEN)
    middle = expected["logits_pos_240_272"]
    assert_close(logits[240 : 240 + len(middle)], middle, M1_GOLDEN)
    recorded = golden("m1-tiny/batch48.safetensors")["logits_rotary16"]
    assert_close(batch, recorded, M1_GOLDEN)

    session = Session(model)
    decode_ids = golden("m1-tiny/decode300p24.safetensors")["input_ids"][0].tolist()
    decoded = [session.feed(decode_ids[:300])[-1:]]
    decoded += [session.feed([token]) for token in decode_ids[300:]]
    assert_close(torch.cat(decoded), expected["decode300p24"], M1_GOLDEN)


@pytest.mark.parametrize("name", ["m2-tiny", "m2-tiny-fp8", "m2-tiny-fp8-partial"])
def test_m2_prefill_of_300_tokens_and_greedy_decode(name: str) -> None:
    expected = golden(f"{name}/golden.safetensors")
    model = load_model(GOLDEN / name, dtype=torch.float32)
    with torch.no_grad():
        logits = model(expected["input_ids"].long())[0]
    assert_close(logits, expected["logits"], M2_GOLDEN)

    greedy = expected["greedy_ids"][0].tolist()
    session = Session(model)
    ids = greedy[:32]
    logits = session.feed(ids)
    for _ in range(24):
        ids.append(int(logits[-1].argmax()))
        logits = session.feed(ids[-1:])
    assert ids == greedy


def test_m2_intermediate_values_and_router_choices() -> None:
    expected = golden("m2-tiny/golden.safetensors")
    model = load_model(GOLDEN / "m2-tiny", dtype=torch.float32)
    trace = Trace()
    with torch.no_grad():
        model(expected["input_ids"].long(), trace=trace)
    for layer in range(4):
        topk_ids, order = trace.topk_ids[layer].sort(-1)
        assert torch.equal(topk_ids, expected[f"layer{layer}.topk_index_sorted"].long())
        weights = trace.topk_weights[layer].gather(-1, order)
        recorded = expected[f"layer{layer}.topk_weight_sorted"]
        assert_close(weights, recorded, M2_GOLDEN)
        for name, values in (
            ("attn_out", trace.attention_outputs[layer]),
            ("block_out", trace.hidden_states[layer + 1]),
        ):
            if name == "block_out" and layer == 3:
                continue  # the trace holds the last block's output after the last norm
            recorded = expected[f"layer{layer}.{name}_first32"]
            assert_close(values[:32], recorded, M2_GOLDEN)


def test_m1_config_predicts_the_released_index_exactly() -> None:
    index = json.loads(gzip.decompress((GOLDEN / "m1-index.json.gz").read_bytes()))
    config = published_config("minimax-m1-80k")
    assert isinstance(config, M1Config)
    specs = list(config.tensors())
    assert len(specs) == 8243
    assert {spec.name for spec in specs} == set(index["weight_map"])
    total = sum(torch.Size(spec.shape).numel() * spec.dtype.itemsize for spec in specs)
    assert total == index["metadata"]["total_size"] == 912_210_767_872


@pytest.mark.parametrize(
    "name", ["m1-tiny", "m1-tiny-hf", "m2-tiny", "m2-tiny-fp8", "m2-tiny-fp8-partial"]
)
def test_config_predicts_every_golden_tensor(name: str) -> None:
    checkpoint = Checkpoint.open(GOLDEN / name)
    assert checkpoint.problems() == []
    assert set(checkpoint.stored) == {spec.name for spec in read_config(GOLDEN / name).tensors()}


@pytest.mark.parametrize("name", ["m1-tiny", "m2-tiny"])
def test_router_and_head_of_a_bfloat16_model_work_in_float32(name: str) -> None:
    model = load_model(GOLDEN / name, dtype=torch.bfloat16, trainable=True)
    trace = Trace()
    weights: list[Tensor] = []
    inputs: list[Tensor] = []
    with torch.no_grad():
        for layer in range(model.config.num_hidden_layers):
            moe = model.get_submodule(f"model.layers.{layer}.block_sparse_moe")
            moe.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
            weights.append(moe.get_parameter("gate.weight"))
        weights.append(model.get_parameter("lm_head.weight"))
        for weight in weights:
            weight.mul_(1.001)  # so that bfloat16 could not hold it
        logits = model(torch.arange(40)[None], trace=trace)[0]
        inputs.append(trace.hidden_states[-1])
        for x, weight, found in zip(inputs, weights, [*trace.router_logits, logits], strict=True):
            assert (x.dtype, weight.dtype, found.dtype) == (
                torch.bfloat16,
                torch.float32,
                torch.float32,
            )
            assert_close(found.double(), x.double() @ weight.double().T, FLOAT32_OP)
    assert {chosen.dtype for chosen in trace.topk_weights} == {torch.float32}


def test_lightning_state_of_a_bfloat16_model_is_float32_after_prefill_and_decode() -> None:
    """Against the recurrence in float64 over the keys and values the model itself made."""
    model = load_model(GOLDEN / "m1-tiny", dtype=torch.bfloat16, trainable=True)
    config = model.config
    projected: list[Tensor] = []
    qkv_proj = model.get_submodule("model.layers.0.self_attn.qkv_proj")
    qkv_proj.register_forward_hook(lambda *call: projected.append(call[2]))
    session = Session(model)
    ids = golden("m1-tiny/decode300p24.safetensors")["input_ids"][0].tolist()
    session.feed(ids[:300])
    for token in ids[300:]:
        session.feed([token])
    found = session.kv_state(0)
    assert found.dtype == torch.float32

    qkv = torch.cat(projected).view(len(ids), config.num_attention_heads, -1).double()
    _, keys, values = qkv.chunk(3, -1)  # (T, H, D)
    rates = slope_rates(config.num_attention_heads, 0, config.num_hidden_layers)
    decay = torch.exp(-torch.tensor(rates, dtype=torch.float64))[:, None, None]
    state = torch.zeros_like(found, dtype=torch.float64)
    for k, v in zip(keys, values, strict=True):
        state = decay * state + k[:, :, None] * v[:, None, :]
    assert relative_error(found, state) < 1e-5
