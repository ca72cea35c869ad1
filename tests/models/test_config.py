"""Config files: every published and re-saved one loads, and one that cannot be right is one clear
sentence."""

import json
from pathlib import Path

import pytest
from transformers import FineGrainedFP8Config, MiniMaxConfig, MiniMaxM2Config

from fulmen.checkpoints import read_config
from fulmen.files import read_json
from fulmen.models import M1Config, M2Config, config_from_dict
from fulmen.models.quantization import Fp8Config
from tests.models.helpers import tiny_m1, tiny_m2

GOLDEN = Path(__file__).parent.parent / "golden"


FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "float8_e4m3fn",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"],
}
M2_PUBLISHED: dict[str, object] = {
    "architectures": ["MiniMaxM2ForCausalLM"],
    "attn_type_list": [1] * 62,
    "auto_map": {"AutoConfig": "configuration_minimax_m2.MiniMaxM2Config"},
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "max_position_embeddings": 196608,
    "model_type": "minimax_m2",
    "mtp_transformer_layers": 1,
    "num_attention_heads": 48,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
    "num_local_experts": 256,
    "num_mtp_modules": 3,
    "qk_norm_type": "per_layer",
    "quantization_config": FP8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000,
    "rotary_dim": 64,
    "scoring_func": "sigmoid",
    "shared_intermediate_size": 0,
    "tie_word_embeddings": False,
    "transformers_version": "4.46.1",
    "use_cache": True,
    "use_mtp": True,
    "use_qk_norm": True,
    "use_routing_bias": True,
    "vocab_size": 200064,
}
M1_PUBLISHED: dict[str, object] = {
    "architectures": ["MiniMaxM1ForCausalLM"],
    "attention_dropout": 0.0,
    "attn_type_list": [0, 0, 0, 0, 0, 0, 0, 1] * 10,
    "auto_map": {"AutoConfig": "configuration_minimax_m1.MiniMaxM1Config"},
    "bos_token_id": None,
    "eos_token_id": None,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 6144,
    "initializer_range": 0.02,
    "intermediate_size": 9216,
    "layernorm_full_attention_alpha": 3.5565588200778455,
    "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_alpha": 3.5565588200778455,
    "layernorm_linear_attention_beta": 1.0,
    "layernorm_mlp_alpha": 3.5565588200778455,
    "layernorm_mlp_beta": 1.0,
    "max_position_embeddings": 10240000,
    "model_type": "minimax_m1",
    "num_attention_heads": 64,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "postnorm": True,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000000,
    "rotary_dim": 64,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "shared_intermediate_size": 0,
    "shared_moe_mode": "sigmoid",
    "sliding_window": None,
    "tie_word_embeddings": False,
    "transformers_version": "4.45.2",
    "use_cache": True,
    "vocab_size": 200064,
}


def test_the_published_configs_predict_the_published_tensors() -> None:
    assert sum(1 for _ in config_from_dict(M2_PUBLISHED).tensors()) == 96_103
    assert sum(1 for _ in config_from_dict(M1_PUBLISHED).tensors()) == 8_243


@pytest.mark.parametrize(
    "changes",
    [
        {"mlp_intermediate_size": 8192, "attention_dropout": 0.0, "sliding_window": None},
        {
            "mlp_intermediate_size": 8192,
            "shared_moe_mode": "sigmoid",
            "router_aux_loss_coef": 0.001,
            "router_jitter_noise": 0.0,
        },
        {"dtype": "bfloat16"},
        {
            f"layernorm_{kind}_{gain}": 1.0
            for kind in ("full_attention", "linear_attention", "mlp")
            for gain in ("alpha", "beta")
        }
        | {"postnorm": False},
        {
            "partial_rotary_factor": 0.5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5000000,
                "partial_rotary_factor": 0.5,
            },
        },
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "default"}},
        {
            "max_length": 20,
            "min_length": 0,
            "do_sample": False,
            "num_beams": 1,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
            "return_dict_in_generate": False,
            "bad_words_ids": None,
            "add_cross_attention": False,
            "is_decoder": False,
            "pruned_heads": {},
            "tie_encoder_decoder": False,
            "tokenizer_class": None,
        },
    ],
    ids=["m2", "m2-early", "m2.7", "gains", "transformers-5", "rope", "rope-type", "generation"],
)
def test_what_copies_of_m2s_config_add_changes_nothing(changes: dict[str, object]) -> None:
    assert config_from_dict(M2_PUBLISHED | changes) == config_from_dict(M2_PUBLISHED)


TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "bos_token_id": None,
    "eos_token_id": None,
}
FP8_OF_TRANSFORMERS = [
    None,
    FineGrainedFP8Config(),
    FineGrainedFP8Config(modules_to_not_convert=["gate", "lm_head"]),
]


@pytest.mark.parametrize("fp8", FP8_OF_TRANSFORMERS, ids=["plain", "fp8", "fp8-list"])
@pytest.mark.parametrize("kind", [MiniMaxConfig, MiniMaxM2Config], ids=["m1", "m2"])
def test_configs_that_transformers_makes_load(
    kind: type[MiniMaxConfig] | type[MiniMaxM2Config],
    fp8: FineGrainedFP8Config | None,
    tmp_path: Path,
) -> None:
    theirs = kind(**TINY, quantization_config=fp8) if fp8 else kind(**TINY)
    theirs.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert config == config_from_dict(theirs.to_dict())
    assert config.hidden_size == 24
    assert (config.quantization_config is None) == (fp8 is None)
    if kind is MiniMaxConfig:
        assert config.attn_type_list == (1, 0, 1, 0)
    if fp8 is not None:
        kinds = {spec.name: spec.dtype.itemsize for spec in config.tensors()}
        assert kinds["model.layers.0.self_attn.q_proj.weight"] == 1
        assert kinds["model.layers.0.block_sparse_moe.gate.weight"] == 4
        assert kinds["lm_head.weight"] == 2


def test_m2s_config_survives_transformers(tmp_path: Path) -> None:
    MiniMaxM2Config.from_dict(M2_PUBLISHED).save_pretrained(tmp_path)
    assert read_config(tmp_path) == config_from_dict(M2_PUBLISHED)


def test_m1s_config_does_not_survive_transformers_and_the_error_says_so(tmp_path: Path) -> None:
    MiniMaxConfig.from_dict(M1_PUBLISHED | {"model_type": "minimax"}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"damaged re-save .* published config\.json is needed"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_types": ["full_attention", "linear_attention", "full_attention"]},
        {"mlp_alpha_factor": 1},
        {"linear_attn_beta_factor": 2.0},
    ],
)
def test_spellings_that_contradict_each_other_are_a_damaged_re_save(
    changes: dict[str, object],
) -> None:
    with pytest.raises(ValueError, match="looks like a damaged re-save by transformers"):
        config_from_dict(tiny_m1().to_dict() | changes)


def test_both_spellings_may_say_the_same() -> None:
    changes = {
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        "mlp_alpha_factor": 1.75,
        "mlp_beta_factor": 0.75,
    }
    assert config_from_dict(tiny_m1().to_dict() | changes) == tiny_m1()


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
        ({"rope_scaling": {"type": "yarn"}}, "type is 'yarn', only 'default' .* rope_scaling in"),
        ({"rope_scaling": {"rope_type": "default", "factor": 4.0}}, "unknown field factor = 4.0"),
        ({"rope_parameters": {"rope_theta": 7.0}}, "rope_theta is 5000000.0 and 7.0, .* agree"),
        ({"rope_theta": float("inf")}, "rope_theta is inf, it must be a finite number"),
        ({"rope_theta": 10**400}, "rope_theta is inf, it must be a finite number"),
        ({"rope_theta": 0}, "rope_theta is 0.0, it must be positive"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps is inf, it must be a finite number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, it must be a finite number"),
        ({"partial_rotary_factor": float("nan")}, "partial_rotary_factor is nan, it must be above"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor is 2.0, it must be above 0"),
        ({"rotary_dim": 0}, "rotary_dim is 0, it must be positive"),
        ({"router_jitter_noise": 2}, "router_jitter_noise is 2.0, it must be at least 0 and below"),
        ({"router_aux_loss_coef": -1}, "router_aux_loss_coef is -1.0, it must not be negative"),
        ({"shared_intermediate_size": 8}, "shared_intermediate_size is 8, only 0 is implemented"),
        ({"postnorm": True}, "postnorm is True, only False is implemented"),
        ({"layernorm_mlp_alpha": 3.5}, "layernorm_mlp_alpha is 3.5, only 1.0 is implemented"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is True, only False is implemented"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is .*, only {} is implemented"),
        ({"rotary_dim": 10}, "rotary_dim \\(10\\) must be even and at most head_dim \\(8\\)"),
        ({"rotary_dim": 3}, "rotary_dim \\(3\\) must be even"),
        ({"num_key_value_heads": 3}, "num_attention_heads \\(4\\) must be a multiple"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok \\(5\\) is larger than"),
        ({"torch_dtype": "int8"}, "torch_dtype is 'int8', it must be one of float32"),
        ({"dtype": "int4"}, "torch_dtype is 'int4', it must be one of float32"),
        ({"quantization_config": {"quant_method": "x"}}, "the weights were quantised by x, "),
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
        (
            {"weight_block_size": [True, 128]},
            "weight_block_size is \\[True, 128\\], it must",
        ),
        ({"weight_block_size": [128]}, "weight_block_size is \\[128\\], it must be two positive"),
        (
            {"modules_to_not_convert": [3]},
            "modules_to_not_convert is \\[3\\], it must be",
        ),
        ({"scale_fmt": "ue8m0"}, "scale_fmt is 'ue8m0', only 'float' is implemented"),
        ({"expert_dtype": "fp4"}, "expert_dtype is 'fp4', only 'fp8' is implemented"),
        ({"modules_to_convert": ["embed_tokens"]}, "modules_to_convert is .*, only None"),
        ({"dequantize": True}, "dequantize is True, only False is implemented"),
        ({"scale_format": "float"}, "unknown field scale_format .*, did you mean scale_fmt?"),
    ],
)
def test_an_fp8_config_that_cannot_be_right_is_one_sentence(
    changes: dict[str, object], sentence: str
) -> None:
    values = M2_PUBLISHED | {"quantization_config": FP8 | changes}
    with pytest.raises(ValueError, match=sentence):
        config_from_dict(values)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"attn_type_list": [[0], [0], [1]]}, "attn_type_list holds \\[0\\], only 0"),
        ({"attn_type_list": [0, 0.5, 1]}, "attn_type_list holds 0.5, only 0"),
        ({"attn_type_list": None}, "attn_type_list is missing"),
        ({"layer_types": [["linear_attention"]] * 3}, "layer_types holds \\['linear_attention'\\]"),
        ({"num_local_experts": [[4]] * 3}, "num_local_experts is .*, it must be one integer or"),
        ({"num_local_experts": [True] * 3}, "num_local_experts is .*, it must be one integer or"),
        ({"num_local_experts": [4]}, "num_local_experts has 1 entries, num_hidden_layers is 3"),
        ({"num_local_experts": []}, "num_local_experts has 0 entries, num_hidden_layers is 3"),
        ({"shared_intermediate_size": -1}, "shared_intermediate_size is -1, it must be 0"),
        ({"layernorm_mlp_alpha": float("nan")}, "layernorm_mlp_alpha is nan, it must be a finite"),
        ({"mlp_beta_factor": float("-inf"), "layernorm_mlp_beta": None}, "mlp_beta is -inf, it"),
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


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"a": ' * 100_000, "config.json is nested too deeply"),
        ('{"hidden_size": ' + "1" * 5000 + "}", "config.json is not valid JSON: .*digits"),
        ("{", "config.json is not valid JSON"),
        ("[]", "config.json must hold a JSON object, found list"),
    ],
    ids=["deep", "digits", "cut", "list"],
)
def test_a_json_that_cannot_be_read_is_one_sentence(
    text: str, sentence: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=sentence) as caught:
        read_json(tmp_path / "config.json")
    assert "\n" not in str(caught.value)
