"""The account of a decoded token: every call and every byte has its row, and the rows add up."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from fulmen.bench import Account, ModelTimer, check_account, measure_account
from fulmen.bench.account import BETWEEN, KINDS, SAMPLING
from fulmen.bench.places import (
    EMBEDDING,
    FIRST,
    HEAD,
    KERNELS,
    LIGHTNING,
    PROJECTIONS,
    ROTATION,
    ROUTER,
    SECOND,
    SHARED,
    SOFTMAX,
)
from fulmen.bench.report import account_table, layers_table
from fulmen.checkpoints import load_model, save_model
from fulmen.kernels import time_calls
from fulmen.models import M1Config, M2Config, Model, PackedConfig, decode_bytes
from fulmen.quantize import QuantizeConfig, quantize_checkpoint
from tests.kernels.helpers import needs_native
from tests.models.helpers import random_model, tiny_m1, tiny_m2

pytestmark = needs_native

WHOLE = {
    "vocab_size": 64,
    "hidden_size": 64,
    "head_dim": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "num_local_experts": 16,
}
"""Widths that packing pads nowhere, so that packed bytes are the config's"""
CONFIGS: dict[str, M1Config | M2Config] = {
    "m1": tiny_m1(**WHOLE),
    "m2": tiny_m2(**WHOLE),
    "m2 tied": tiny_m2(**WHOLE, tie_word_embeddings=True),
    "m2 padded": tiny_m2(),
    "m1 shared": tiny_m1(**WHOLE, shared_intermediate_size=32),
}


def packed_model(name: str) -> Model:
    model = random_model(CONFIGS[name])
    model.pack()
    return model


def account_of(model: Model, **settings: int) -> Account:
    return measure_account(model, num_tokens=3, rounds=1, **settings)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_rows_add_up_and_no_part_is_longer_than_its_row(name: str) -> None:
    account = account_of(packed_model(name), batch=2, depth=70)
    total = account.total
    assert total.seconds == pytest.approx(sum(row.seconds for row in account.by_kind()))
    assert total.num_bytes == pytest.approx(sum(row.num_bytes for row in account.by_kind()))
    assert total.calls == sum(row.calls for row in account.by_kind())
    for work in account.works:
        assert work.seconds > 0
        assert 0 <= work.rounding + max(0.0, work.handing_over) <= work.seconds + 1e-6
        if not work.is_kernel:
            assert work.rounding == work.handing_over == work.num_bytes == 0
    for table in (account_table(account, 1e9), layers_table(account, 1e9)):
        assert table.row_count >= len(account.by_kind())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_call_of_a_step_has_its_row_once(name: str) -> None:
    model = packed_model(name)
    account = account_of(model)
    timer = ModelTimer(model)
    timer.prepare(1, 3)
    with torch.inference_mode(), time_calls() as clock:
        timer.forward([[1]], 0)
    kernels = Counter(call.kernel for call in clock.calls())
    rows = {row.kind: row.calls for row in account.by_kind()}
    assert account.total.calls - rows[SECOND] - rows[SAMPLING] == kernels.total()
    assert rows[FIRST] == rows[SECOND] == kernels["experts"]
    assert rows[HEAD] == kernels["head"] == 1
    for kind in set(KERNELS.values()) - {ROUTER}:
        assert rows.get(kind, 0) == sum(kernels[name] for name in KERNELS if KERNELS[name] == kind)
    products = rows[PROJECTIONS] + rows[ROUTER] + rows.get(SHARED, 0)
    assert products == kernels["linear"] + kernels["route"]


def test_a_call_is_in_the_row_of_its_layer() -> None:
    account = account_of(packed_model("m1"))
    found = {(work.kind, work.layer) for work in account.works}
    assert {layer for kind, layer in found if kind == LIGHTNING} == {0, 1}
    assert {layer for kind, layer in found if kind == SOFTMAX} == {2}
    assert {layer for kind, layer in found if kind == ROTATION} == {None, 2}
    for kind in (PROJECTIONS, ROUTER, FIRST, SECOND):
        assert {layer for some, layer in found if some == kind} == {0, 1, 2}
    for kind in (EMBEDDING, HEAD, SAMPLING, BETWEEN):
        assert {layer for some, layer in found if some == kind} == {None}
    calls = {(work.kind, work.layer): work.calls for work in account.works}
    assert [calls[PROJECTIONS, layer] for layer in range(3)] == [3, 3, 2]  # q, k, v are one
    assert [row.kind for row in account.by_kind()] == [kind for kind in KINDS if kind != SHARED]


@pytest.mark.parametrize("name", ["m1", "m2", "m2 tied", "m1 shared"])
@pytest.mark.parametrize("depth", [0, 70])
def test_the_bytes_are_those_that_the_config_predicts(name: str, depth: int) -> None:
    model = packed_model(name)
    account = account_of(model, depth=depth)
    rows = {row.kind: row for row in account.by_kind()}
    expected = decode_bytes(model.config, depth=account.depth)
    if name == "m1 shared":  # its last matrix has one column, which is packed as 16
        expected += 3 * 15 * model.config.hidden_size * 4
    assert account.total.num_bytes - rows[EMBEDDING].num_bytes == pytest.approx(expected)
    assert account.depth == pytest.approx(depth + 1, abs=1)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_bytes_of_rounded_weights_are_those_of_their_file(bits: int, tmp_path: Path) -> None:
    config = tiny_m2(**WHOLE, torch_dtype="bfloat16")
    save_model(random_model(config), tmp_path / "plain")
    settings = QuantizeConfig(packed=PackedConfig(bits=bits, group_size=32))
    quantize_checkpoint(tmp_path / "plain", tmp_path / "rounded", settings)
    model = load_model(tmp_path / "rounded")
    account = account_of(model)
    rows = {row.kind: row for row in account.by_kind()}
    found = account.total.num_bytes - rows[EMBEDDING].num_bytes
    assert found == pytest.approx(decode_bytes(model.config, depth=account.depth))
    assert rows[FIRST].rounding > 0  # there is something to round, however short it takes


def test_more_sequences_read_more_experts_and_their_own_past() -> None:
    model = packed_model("m2")
    one, many = (
        {row.kind: row for row in account_of(model, batch=batch, depth=70).by_kind()}
        for batch in (1, 8)
    )
    assert many[SECOND].num_bytes == pytest.approx(many[FIRST].num_bytes / 2)
    assert one[FIRST].num_bytes < many[FIRST].num_bytes <= 8 * one[FIRST].num_bytes
    assert many[SOFTMAX].num_bytes == pytest.approx(8 * one[SOFTMAX].num_bytes, rel=0.02)
    assert many[PROJECTIONS].num_bytes == one[PROJECTIONS].num_bytes


def test_a_model_that_works_in_torch_between_its_kernels_is_accounted_too() -> None:
    account = account_of(packed_model("m1 shared"))
    assert not account.is_recorded
    assert {work.layer for work in account.works if work.kind == SHARED} == {0, 1, 2}
    assert "the steps are not recorded" in str(account_table(account, 1e9).caption)
    assert account_of(packed_model("m2")).is_recorded


def test_a_matrix_that_no_cache_holds_has_no_time_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = packed_model("m2")
    assert all(row.in_cache for row in account_of(model).by_kind() if row.kind in (FIRST, HEAD))
    monkeypatch.setattr("fulmen.bench.account.second_level_cache", lambda: 1024)
    assert account_of(model).total.in_cache is None


def test_models_without_kernels_have_no_account() -> None:
    with pytest.raises(ValueError, match="float64 runs on plain torch"):
        check_account(torch.float64)
    with pytest.raises(ValueError, match="the model is not packed"):
        measure_account(random_model(CONFIGS["m2"]))
