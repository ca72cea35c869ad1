"""Configs with the marks of other programs: notes that change nothing, fields to be ignored,
quantisations and architectures that are not read."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from fulmen.checkpoints import Checkpoint, fingerprint, load_model, read_config, stream_model
from fulmen.llm import LLM
from fulmen.models import Fp8Config, M1Config, M2Config, config_from_dict, is_harmless
from fulmen.models.bookkeeping import NEUTRAL
from tests.models.helpers import tiny_m1, tiny_m2
from tests.models.test_config import FP8
from tests.tiny import write_checkpoint

HARMLESS_NOTES: dict[str, dict[str, object]] = {
    "unsloth": {
        "unsloth_fixed": True,
        "unsloth_version": "2026.4.1",
        "model_name": "unsloth/MiniMax-M2",
        "pad_token_id": 200063,
    },
    "transformers 4": {
        "_name_or_path": "/tmp/m2",
        "name_or_path": "MiniMaxAI/MiniMax-M2",
        "model_max_length": 10**30,
        "_attn_implementation": "eager",
        "attn_implementation": None,
        "gradient_checkpointing": False,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "task_specific_params": None,
        "tokenizer_class": "GPT2Tokenizer",
        "eos_token_id": [60, 3],
        "pad_token_id": -1,
        "num_labels": 2,
        "output_past": True,
        "min_p": 0.0,
        "max_new_tokens": 100,
    },
    "transformers.js": {"transformers.js_config": {"dtype": "q4", "use_external_data_format": 1}},
    "llm-foundry": {
        "init_device": "cpu",
        "init_config": {"name": "kaiming_normal_"},
        "verbose": 0,
        "learned_pos_emb": False,
        "emb_pdrop": 0.0,
        "resid_pdrop": 0,
        "no_bias": True,
        "norm_type": "rmsnorm",
        "logit_scale": None,
    },
    "axolotl": {"axolotl_config_path": "a.yml", "base_model": "x/y", "wandb_project": "z"},
    "qwen's words": {
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "mlp_only_layers": [],
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
    },
    "deepseek's words": {
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": None,
        "routed_scaling_factor": 1,
        "aux_loss_alpha": 0.001,
        "num_nextn_predict_layers": 1,
    },
}


@pytest.mark.parametrize("config", [tiny_m1(), tiny_m2()], ids=["m1", "m2"])
@pytest.mark.parametrize("program", HARMLESS_NOTES)
def test_notes_that_programs_leave_in_a_config_change_nothing(
    program: str, config: M1Config | M2Config
) -> None:
    assert config_from_dict(config.to_dict() | HARMLESS_NOTES[program]) == config


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_a_field_that_could_change_the_model_is_read_only_at_the_value_that_does_not(
    name: str,
) -> None:
    for config in (tiny_m1(), tiny_m2()):
        off = config.to_dict() | {name: NEUTRAL[name]}
        assert config_from_dict(off) == config
        for value in ("x", 3.5):
            with pytest.raises(ValueError, match=f"{name} is .*, only .* is implemented"):
                config_from_dict(config.to_dict() | {name: value})


def test_no_field_that_a_model_reads_counts_as_a_note() -> None:
    for config in (tiny_m1(), tiny_m2()):
        read = config.to_dict().keys() - {"architectures", "model_type"}
        assert not [name for name in read if is_harmless(name)]


def test_an_unknown_field_is_ignored_when_it_is_named(caplog: pytest.LogCaptureFixture) -> None:
    values = tiny_m2().to_dict() | {"strange": 1, "other": [2], "rope_scaling": {"factor": 4.0}}
    with pytest.raises(
        ValueError, match=r"unknown field factor = 4.0 in rope_scaling in c\.json, "
    ):
        config_from_dict(values, "c.json")
    names = ["rope_scaling.factor"]
    with pytest.raises(ValueError, match=r"strange = 1 in c\.json, it might") as error:
        config_from_dict(values, "c.json", ignore_config_fields=names)
    assert "(and other, unknown too); --ignore-config-field strange" in str(error.value)
    names += ["strange", "other", "not_there", "use_cache"]
    caplog.set_level("INFO")
    assert config_from_dict(values, "c.json", ignore_config_fields=names) == tiny_m2()
    assert "c.json: strange = 1 is ignored, as asked" in caplog.messages


def test_all_unknown_fields_can_be_ignored_by_one_line() -> None:
    strange = {"a b": 1, "c": 2, "$d": 3}
    with pytest.raises(ValueError, match="unknown field a b = 1") as error:
        config_from_dict(tiny_m2().to_dict() | strange)
    said = str(error.value).split("; ")[1].partition(" (in Python")[0]
    words = shlex.split(said)
    assert words[::2] == ["--ignore-config-field"] * 3
    assert words[1::2] == list(strange)


@pytest.mark.parametrize(
    "values",
    [
        {"model_parallel_size": 1, "sequence_parallel": True},
        {"add_bos_token": False, "add_eos_token": True},
        {"training_args": {"learning_rate": 1e-5}, "bf16": True},
        {"ms_model_id": "a/b", "modelscope_version": "1"},
        {"fp8": False, "quantized": False, "load_in_4bit": False},
        {"quantization_config": {}},
    ],
)
def test_a_note_of_another_program_changes_nothing(values: dict[str, object]) -> None:
    assert config_from_dict(tiny_m2().to_dict() | values) == tiny_m2()


def test_of_two_dtypes_the_newer_name_wins(caplog: pytest.LogCaptureFixture) -> None:
    values = tiny_m2().to_dict() | {"torch_dtype": "float32", "dtype": "bfloat16"}
    assert config_from_dict(values, "two.json").torch_dtype == torch.bfloat16
    assert caplog.messages == [
        "two.json: dtype is bfloat16 and torch_dtype float32; dtype, the newer name, is taken"
    ]


@pytest.mark.parametrize("fmt", ["e4m3", "float8_e4m3fn", None])
def test_a_format_of_fp8_has_several_names(fmt: str | None) -> None:
    found = {"quant_method": "fp8", "fmt": fmt, "weight_block_size": [128, 128]}
    read = config_from_dict(tiny_m2().to_dict() | {"quantization_config": found})
    assert isinstance(read.quantization_config, Fp8Config)


def test_the_way_out_that_a_sentence_names_is_one() -> None:
    values = tiny_m2().to_dict() | {"rope_parameters": {"odd": 1}, "even": 2}
    names: list[str] = []
    for _ in range(2):
        with pytest.raises(ValueError, match="--ignore-config-field") as error:
            config_from_dict(values, ignore_config_fields=names)
        names.append(str(error.value).split("--ignore-config-field ")[1].split()[0])
    assert config_from_dict(values, ignore_config_fields=names) == tiny_m2()


@pytest.mark.parametrize("config", [tiny_m1(), tiny_m2()], ids=["m1", "m2"])
def test_a_field_that_the_model_needs_cannot_be_ignored(config: M1Config | M2Config) -> None:
    values = config.to_dict()
    read = values.keys() - {"architectures", "model_type", "attn_type_list", "scoring_func"}
    for name in sorted(read):
        with pytest.raises(ValueError, match=f"{name} cannot be ignored, the model needs it"):
            config_from_dict(values, ignore_config_fields=[name])
    with pytest.raises(ValueError, match="it must be a list of names"):
        config_from_dict(values, ignore_config_fields="rope_theta")


def test_ignored_fields_reach_the_config_by_every_way_in(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "m2")
    file = folder / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"strange": 1}))
    for read in (read_config, Checkpoint.open, load_model, stream_model, fingerprint, LLM.load):
        where: Any = str(folder) if read == LLM.load else folder
        with pytest.raises(ValueError, match="unknown field strange = 1"):
            read(where)
        assert read(where, ignore_config_fields=["strange"])
    llm = LLM.load(str(folder), ignore_config_fields=["strange"])
    assert llm.origin.model == fingerprint(folder, ignore_config_fields=["strange"])


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "MLX \\(4 bits\\)"),
        (
            {
                "quantization": {"group_size": 32, "bits": 8, "mode": "affine"},
                "quantization_config": {"group_size": 32, "bits": 8, "mode": "affine"},
            },
            "MLX \\(affine, 8 bits\\)",
        ),
        (
            {
                "quantization_config": {
                    "group_size": 64,
                    "bits": 4,
                    "model.layers.0.block_sparse_moe.gate": {"group_size": 64, "bits": 8},
                }
            },
            "MLX",
        ),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "sym": True}}, "GPTQ"),
        ({"quantization_config": {"bits": 4, "group_size": 128, "desc_act": False}}, "GPTQ"),
        ({"quantization_config": {"w_bit": 4, "q_group_size": 128, "zero_point": True}}, "AWQ"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}, "AWQ"),
        ({"quantization_config": {"load_in_4bit": True}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        (
            {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "format": "nvfp4-pack-quantized",
                    "config_groups": {},
                }
            },
            "compressed-tensors \\(nvfp4-pack-quantized\\)",
        ),
        ({"compression_config": {"config_groups": {"group_0": {}}}}, "compressed-tensors"),
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
            "NVIDIA ModelOpt \\(NVFP4\\)",
        ),
        (
            {"quantization_config": {"producer": {"name": "modelopt"}, "quant_algo": "FP8"}},
            "NVIDIA ModelOpt",
        ),
        ({"quantization_config": {"quant_method": "torchao", "quant_type": "int4"}}, "torchao"),
        ({"quantization_config": {"quant_method": "exl3", "bits": 4.0}}, "ExLlamaV3"),
        ({"quantization_config": {"quant_method": "auto-round", "bits": 4}}, "AutoRound"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "MXFP4"),
        ({"quantization_config": {"quant_method": "tomorrow's"}}, "tomorrow's"),
        ({"quantization": "awq"}, "AWQ"),
        ({"quantization_config": {"bits": 4, "group_size": 64}}, "another program \\(4 bits\\)"),
        ({"quantization_config": {"quant_method": "x" * 100_000}}, "x{60}\\.\\.\\."),
    ],
)
def test_a_quantisation_of_others_is_named_and_the_way_out_said(
    values: dict[str, object], kind: str
) -> None:
    sentence = f"the weights were quantised by {kind}.*, which Fulmen does not read; take the "
    with pytest.raises(ValueError, match=sentence) as error:
        config_from_dict(tiny_m2().to_dict() | values, "a/config.json")
    assert "fulmen quantize" in str(error.value)
    assert "weight_block_size" not in str(error.value)
    assert len(str(error.value)) < 350
    assert str(error.value).endswith(" in a/config.json")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        (
            "hf_quant_config.json",
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}},
            "NVIDIA ModelOpt",
        ),
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": True}, "GPTQ"),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 128}, "AWQ"),
    ],
)
def test_a_quantisation_in_a_file_of_its_own_is_found(
    name: str, content: dict[str, object], kind: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, "m2")
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"quantised by {kind} .* see .*{name}$"):
        Checkpoint.open(folder)


def test_fp8_without_blocks_is_told_what_it_lacks() -> None:
    values = {"quant_method": "fp8", "activation_scheme": "static"}
    for given in (values, {"quant_method": "fp8"}):
        with pytest.raises(ValueError, match=r"(only FP8 with a scale for each block|'dynamic')"):
            config_from_dict(tiny_m2().to_dict() | {"quantization_config": given})


@pytest.mark.parametrize(
    "value", [10**30, 2**63, 61, "</s>", True, 1.5, [1, 10**30], [[1]], {"a": 1}, -2]
)
def test_an_end_of_text_that_is_no_token_is_refused(value: object, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny_m2(vocab_size=61).to_dict() | {"eos_token_id": value}))
    with pytest.raises(ValueError, match=r"eos_token_id is .*, it must be a token's id") as error:
        read_config(tmp_path)
    assert str(error.value).endswith(f"see {file}")
    assert len(str(error.value)) < 300 + len(str(file))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("m1", {"attn_type_list": [0, 1, 2]}),
        ("m1", {"shared_intermediate_size": -1}),
        ("m1", {"shared_moe_mode": "x"}),
        ("m2", {"num_key_value_heads": 3}),
        ("m2", {"rope_theta": 0}),
        ("m2", {"vocab_size": 2**40}),
        ("m2", {"num_local_experts": 2**11, "num_hidden_layers": 2**10, "attn_type_list": None}),
        ("m2", {"quantization_config": FP8 | {"weight_block_size": [0, 1]}}),
        ("m2", {"quantization_config": {"quant_method": "fulmen", "bits": 5, "group_size": 32}}),
    ],
)
def test_a_sentence_about_a_config_names_its_file(
    kind: str, changes: dict[str, object], tmp_path: Path
) -> None:
    tiny = tiny_m1() if kind == "m1" else tiny_m2()
    file = tmp_path / "config.json"
    file.write_text(json.dumps(tiny.to_dict() | changes))
    with pytest.raises(ValueError, match="see ") as error:
        read_config(tmp_path)
    assert str(error.value).count(str(file)) == 1
    assert str(error.value).count("see ") == 1


# Models of MiniMax that are others.


@pytest.mark.parametrize(
    ("names", "title"),
    [
        ({"model_type": "minimax_m3_vl"}, "MiniMax-M3"),
        ({"model_type": "minimax_m3"}, "MiniMax-M3"),
        ({"model_type": "minimax_m3_text"}, "MiniMax-M3"),
        ({"model_type": "minimax_m3_mtp"}, "MiniMax-M3"),
        ({"architectures": ["MiniMaxM3SparseForConditionalGeneration"]}, "MiniMax-M3"),
        ({"architectures": ["MiniMaxM3SparseForCausalLM"], "model_type": "minimax"}, "MiniMax-M3"),
        ({"architectures": ["MiniMaxVL01ForConditionalGeneration"]}, "MiniMax-VL-01"),
        ({"model_type": "minimax_vl_01"}, "MiniMax-VL-01"),
        ({"text_config": {"model_type": "minimax_m3_text"}}, "MiniMax-M3"),
    ],
)
def test_a_minimax_model_of_another_architecture_is_refused_by_name(
    names: dict[str, object], title: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {}, **names}))
    for read in (read_config, Checkpoint.open, load_model, lambda path: LLM.load(str(path))):
        with pytest.raises(
            ValueError, match=f"{title} .*; Fulmen runs MiniMax-M1, .*M2.7"
        ) as error:
            read(tmp_path)
        assert str(tmp_path) in str(error.value)
