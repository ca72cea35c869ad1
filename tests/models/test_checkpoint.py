"""Checkpoints there and back, in every layout; and one clear sentence for everything that can be
wrong with one."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fulmen.models import (
    Checkpoint,
    M1Config,
    M2Config,
    config_from_dict,
    load_model,
    read_config,
    save_model,
)
from fulmen.models.checkpoint import dequantise
from fulmen.models.config import Fp8Config
from tests.models.helpers import random_model, tiny_m1, tiny_m2

GOLDEN = Path(__file__).parent.parent / "golden"
every_config = pytest.mark.parametrize(
    "config",
    [tiny_m1(), tiny_m1(shared_intermediate_size=8), tiny_m2(), tiny_m2(tie_word_embeddings=True)],
    ids=["m1", "m1-shared", "m2", "m2-tied"],
)


@every_config
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_models_load_as_they_were(
    config: M1Config | M2Config, max_shard_bytes: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = random_model(config)
    save_model(model, tmp_path / "first")
    model = load_model(tmp_path / "first", dtype=dtype)
    save_model(model, tmp_path / "second", max_shard_bytes=max_shard_bytes)
    again = load_model(tmp_path / "second")
    state = again.state_dict()
    assert set(state) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype, name
        assert torch.equal(state[name], tensor), name
    assert not list((tmp_path / "second").glob("*.partial"))
    if dtype == torch.float32:  # else the head keeps float32 values that bfloat16 cannot hold
        assert Checkpoint.open(tmp_path / "second").notes() == []
    files = list((tmp_path / "second").glob("*.safetensors"))
    assert (len(files) == 1) == (max_shard_bytes == 10**9)


def test_router_bias_and_head_stay_float32_in_a_bfloat16_model(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    model = load_model(tmp_path, dtype=torch.bfloat16)
    wide = {name for name, x in model.state_dict().items() if x.dtype == torch.float32}
    layers = [f"model.layers.{layer}.block_sparse_moe" for layer in range(3)]
    expected = {f"{moe}.{leaf}" for moe in layers for leaf in ("gate.weight", BIAS)}
    assert wide == expected | {"lm_head.weight"}


BIAS = "e_score_correction_bias"


def test_a_trained_float32_head_is_not_rounded_when_saved(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path / "wide")
    model = load_model(tmp_path / "wide", dtype=torch.bfloat16)
    save_model(model, tmp_path / "half")
    stored = load_file(tmp_path / "half/model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.float32
    with torch.no_grad():
        model.get_parameter("lm_head.weight").copy_(
            model.get_parameter("lm_head.weight").bfloat16().float()
        )
    save_model(model, tmp_path / "half")
    stored = load_file(tmp_path / "half/model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.bfloat16


def test_ragged_fp8_blocks_count_by_block_size() -> None:
    fp8 = Fp8Config(weight_block_size=(4, 3), modules_to_not_convert=())
    weight = torch.randn(10, 7).to(torch.float8_e4m3fn)
    scale = torch.rand(3, 3) + 0.5
    found = dequantise(weight, scale, fp8)
    for row in range(10):
        for column in range(7):
            expected = float(weight[row, column].float() * scale[row // 4, column // 3])
            assert float(found[row, column]) == pytest.approx(expected)


def test_unconverted_modules_match_by_whole_component() -> None:
    fp8 = Fp8Config(
        weight_block_size=(128, 128),
        modules_to_not_convert=("gate", "lm_head", "model.layers.1.self_attn", "layers.2.mlp"),
    )
    prefix = "model.layers.0.block_sparse_moe"
    assert not fp8.applies_to(f"{prefix}.gate")
    assert fp8.applies_to(f"{prefix}.gate_proj")
    assert fp8.applies_to(f"{prefix}.experts.0.w1")
    assert not fp8.applies_to("lm_head")
    assert not fp8.applies_to("model.layers.1.self_attn.q_proj")
    assert fp8.applies_to("model.layers.11.self_attn.q_proj")
    assert not fp8.applies_to("model.layers.2.block_sparse_moe.experts.3.w2")


def test_scales_may_lie_in_another_shard(tmp_path: Path) -> None:
    source = GOLDEN / "m2-tiny-fp8"
    tensors = load_file(source / "model.safetensors")
    shards = {"a.safetensors": {}, "b.safetensors": {}}  # type: dict[str, dict[str, torch.Tensor]]
    for name, tensor in tensors.items():
        file = "b.safetensors" if name.endswith("scale_inv") else "a.safetensors"
        shards[file][name] = tensor
    for file, part in shards.items():
        save_file(part, tmp_path / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    shutil.copy(source / "config.json", tmp_path)
    whole, split = load_model(source), load_model(tmp_path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(split.state_dict()[name], tensor)


def test_layers_beyond_the_model_are_skipped_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer in (3, 4):
        tensors[f"model.layers.{layer}.eh_proj.weight"] = torch.zeros(2, 2)
    save_file(tensors, tmp_path / "model.safetensors")
    with caplog.at_level(logging.WARNING):
        load_model(tmp_path)
    (record,) = caplog.records
    assert "layers 3 to 4 lie beyond num_hidden_layers (3)" in record.getMessage()


def test_redundant_buffers_of_transformers_are_ignored(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "m1-tiny-hf", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    for name in ("slope_rate", "query_decay", "key_decay", "diagonal_decay"):
        tensors[f"model.layers.0.self_attn.{name}"] = torch.zeros(4, 1, 1)
    save_file(tensors, tmp_path / "model.safetensors")
    assert load_model(tmp_path).config == load_model(GOLDEN / "m1-tiny-hf").config
    assert "4 decay buffers are skipped" in Checkpoint.open(tmp_path).notes()[-1]


def test_loading_needs_the_model_and_one_shard_of_memory(tmp_path: Path) -> None:
    config = tiny_m2(vocab_size=8192, hidden_size=512, num_hidden_layers=4, intermediate_size=2048)
    save_model(random_model(config), tmp_path, max_shard_bytes=2**24)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    largest = max(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size > 8 * largest
    program = (
        "import resource, sys\n"
        "from fulmen.models import load_model, read_config\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "model = load_model(sys.argv[1])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    grown = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert grown < size + largest + 30 * 2**20


# Configs


def test_the_hf_spelling_gives_the_same_config() -> None:
    official, hf = read_config(GOLDEN / "m1-tiny"), read_config(GOLDEN / "m1-tiny-hf")
    assert isinstance(official, M1Config)
    assert isinstance(hf, M1Config)
    assert official.rotary_dim == 8
    assert hf.rotary_dim == 16  # transformers rotates the whole head and has no such field
    assert hf.to_dict() | {"rotary_dim": 8} == official.to_dict()


def hf_config(**changes: object) -> dict[str, object]:
    values = json.loads((GOLDEN / "m1-tiny-hf/config.json").read_text())
    return {key: value for key, value in (values | changes).items() if value is not ...}


def test_an_absent_layer_types_list_alternates_in_the_hf_spelling() -> None:
    config = config_from_dict(hf_config(layer_types=...))
    assert config.attn_type_list == (1, 0, 1, 0, 1, 0, 1, 0)


def test_released_sizes_in_the_hf_spelling_rotate_64_dimensions(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes = {"hidden_size": 6144, "num_hidden_layers": 80, "num_local_experts": 32}
    heads = {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128}
    kinds = (["linear_attention"] * 7 + ["full_attention"]) * 10
    config = config_from_dict(hf_config(**sizes, **heads, layer_types=kinds))
    assert config.rotary_dim == 64
    assert "names no rotary_dim" in caplog.text


@pytest.mark.parametrize(
    ("changes", "rotary_dim"),
    [
        ({"rotary_dim": 4}, 4),
        ({"rotary_dim": ...}, 8),
        ({"rotary_dim": 4, "partial_rotary_factor": 0.25}, 2),
        ({"rotary_dim": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}, 4),
        (
            {
                "rotary_dim": 4,
                "partial_rotary_factor": 1.0,
                "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75},
            },
            6,
        ),
    ],
)
def test_rotary_width_is_resolved_in_the_order_of_the_fields(
    changes: dict[str, object], rotary_dim: int
) -> None:
    values = tiny_m2().to_dict() | changes
    values = {key: value for key, value in values.items() if value is not ...}
    assert config_from_dict(values).rotary_dim == rotary_dim


@pytest.mark.parametrize(
    ("model_type", "architecture", "kind"),
    [
        ("minimax_m1", None, M1Config),
        ("MiniMaxM1", None, M1Config),
        ("minimax_text_01", "MiniMaxText01ForCausalLM", M1Config),
        ("minimax", "MiniMaxForCausalLM", M1Config),
        ("minimax_m2", None, M2Config),
        ("minimax", "MiniMaxM2ForCausalLM", M2Config),
    ],
)
def test_architecture_then_model_type_picks_the_model(
    model_type: str, architecture: str | None, kind: type
) -> None:
    tiny = tiny_m1() if kind is M1Config else tiny_m2()
    values = tiny.to_dict() | {"model_type": model_type}
    values["architectures"] = [architecture] if architecture else None
    assert isinstance(config_from_dict(values), kind)


def test_vllm_aliases_and_lists_are_read() -> None:
    values = tiny_m1().to_dict() | {"num_local_experts": [4, 4, 4], "block": 128}
    values["decoder_attention_types"] = values.pop("attn_type_list")
    assert config_from_dict(values) == tiny_m1()


@pytest.mark.parametrize("config", [tiny_m1(), tiny_m2()], ids=["m1", "m2"])
def test_configs_survive_the_round_trip(config: M1Config | M2Config) -> None:
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", ["m2-tiny-fp8", "m1-tiny"])
def test_published_spellings_survive_the_round_trip(name: str) -> None:
    config = read_config(GOLDEN / name)
    assert config_from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rotary_dm": 4}, "unknown field rotary_dm = 4 in config.json, did you mean rotary_dim?"),
        ({"logit_softcap": 30.0}, "unknown field logit_softcap .* might change the mathematics"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "24"}, "hidden_size is '24', it must be of type int"),
        ({"hidden_size": True}, "hidden_size is True, it must be of type int"),
        ({"hidden_size": 0}, "hidden_size is 0, it must be positive"),
        ({"use_qk_norm": 1}, "use_qk_norm is 1, it must be of type bool"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax', only 'sigmoid' is implemented"),
        ({"sliding_window": 4096}, "sliding_window is 4096, only None is implemented"),
        ({"attn_type_list": [1, 0, 1]}, "attn_type_list is .*, only \\[1, 1, 1\\]"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn', only 'default'"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling is .*, only None is implemented"),
        ({"rotary_dim": 10}, "rotary_dim \\(10\\) must be even and at most head_dim \\(8\\)"),
        ({"rotary_dim": 3}, "rotary_dim \\(3\\) must be even"),
        ({"num_key_value_heads": 3}, "num_attention_heads \\(4\\) must be a multiple"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok \\(5\\) is larger than"),
        ({"torch_dtype": "int8"}, "torch_dtype is 'int8', it must be one of float32"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16' but torch_dtype is 'float32'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method is 'awq', only 'fp8'"),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "unknown architecture L"),
        ({"architectures": None, "model_type": None}, "unknown architecture none in config.json"),
    ],
)
def test_a_config_that_cannot_be_right_is_one_sentence(
    changes: dict[str, object], sentence: str
) -> None:
    values = tiny_m2().to_dict() | changes
    values = {key: value for key, value in values.items() if value is not ...}
    with pytest.raises(ValueError, match=sentence):
        config_from_dict(values)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attn_type_list": [0, 0]}, "attn_type_list has 2 entries, num_hidden_layers is 3"),
        ({"attn_type_list": [0, 2, 1]}, "attn_type_list holds .*, only 0 .* and 1"),
        ({"layer_types": ["linear_attention", "mamba", "full_attention"]}, "layer_types holds"),
        ({"shared_moe_mode": "sum"}, "shared_moe_mode is 'sum'"),
        ({"num_local_experts": [4, 1, 4]}, "num_local_experts differs from layer to layer"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu'"),
        ({"post_norm": True}, "unknown field post_norm = True .*, did you mean postnorm?"),
    ],
)
def test_an_m1_config_that_cannot_be_right_is_one_sentence(
    changes: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        config_from_dict(tiny_m1().to_dict() | changes)


# Broken files


def drop_a_shard(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def truncate(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-10])


def truncate_the_header(folder: Path) -> None:
    next(folder.glob("*.safetensors")).write_bytes(b"\x10\x00\x00")


def garble_the_header(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:8] + b"x" * (file.stat().st_size - 8))


def append(folder: Path) -> None:
    with next(folder.glob("*.safetensors")).open("ab") as stream:
        stream.write(b"more")


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def only_pickle(folder: Path) -> None:
    next(folder.glob("*.safetensors")).rename(folder / "pytorch_model.bin")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def config_list(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def no_weights(folder: Path) -> None:
    next(folder.glob("*.safetensors")).unlink()


def escape(folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (drop_a_shard, "shard model-00002-of-.* is missing from .*, \\d+ tensors are in it"),
        (truncate, "is truncated: its header promises \\d+ bytes, it has \\d+"),
        (truncate_the_header, "is truncated or no safetensors file: 3 bytes"),
        (garble_the_header, "is no safetensors file: its header cannot be read"),
        (append, "is too long"),
        (edit_tensors(lambda t: t.__delitem__(NORM)), f"tensor {NORM} \\[24\\] is missing"),
        (
            edit_tensors(lambda t: t.update({NORM: torch.zeros(25)})),
            f"tensor {NORM} in model.safetensors has shape \\[25\\], the config needs \\[24\\]",
        ),
        (
            edit_tensors(lambda t: t.update({NORM: torch.zeros(24, dtype=torch.int32)})),
            f"tensor {NORM} in model.safetensors has dtype I32, a float type is needed",
        ),
        (
            edit_tensors(lambda t: t.update({"model.extra": torch.zeros(2)})),
            "unknown tensor model.extra \\[2\\] in model.safetensors",
        ),
        (only_pickle, "holds weights only as pickles \\(pytorch_model.bin\\)"),
        (no_config, "config.json is missing"),
        (broken_config, "config.json is not valid JSON"),
        (config_list, "config.json must hold a JSON object, found list"),
        (no_weights, "holds no model.safetensors"),
        (escape, "shards must lie in the same folder"),
    ],
)
def test_a_broken_checkpoint_is_one_sentence(
    damage: Callable[[Path], None], sentence: str, tmp_path: Path
) -> None:
    max_shard_bytes = 20_000 if damage is drop_a_shard else 10**9
    save_model(random_model(tiny_m2()), tmp_path, max_shard_bytes=max_shard_bytes)
    damage(tmp_path)
    with pytest.raises(ValueError, match=sentence) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_pickles_and_other_files_are_refused_by_name(tmp_path: Path) -> None:
    for name, sentence in (("model.bin", "is a pickle"), ("model.txt", "neither a checkpoint")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=sentence):
            load_model(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        load_model(tmp_path / "absent")


def test_every_problem_of_a_checkpoint_is_listed(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(3)
    del tensors["lm_head.weight"]
    tensors["model.extra"] = torch.zeros(1)
    save_file(tensors, tmp_path / "model.safetensors")
    problems = Checkpoint.open(tmp_path).problems()
    assert len(problems) == 3
    with pytest.raises(ValueError, match="and 2 more, see fulmen models check"):
        load_model(tmp_path)


def test_other_float_types_are_a_note_and_load(tmp_path: Path) -> None:
    save_model(random_model(tiny_m2()), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].half()
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.problems() == []
    assert checkpoint.notes() == ["1 tensors are stored as F16, the config implies float32"]
    load_model(tmp_path)
