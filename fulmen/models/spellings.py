"""Readers of either model's config.json, in the official spelling or in that of transformers.

Each returns a dataclass's fields by name. transformers spells M1 (`MiniMaxForCausalLM`) in its own
way: `layer_types` for `attn_type_list`, `*_alpha_factor` for the gains, no field for the rotated
width. A file may use both spellings where they agree.
"""

import logging
import reprlib
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

from fulmen.models.config import Fields, check_limit
from fulmen.models.model_config import take_shared

_logger = logging.getLogger(__name__)

T = TypeVar("T")

_UNUSED: Final[Mapping[str, object]] = {"hidden_act": "silu"}
"""Fields of both models of which one value is implemented, besides `NEUTRAL`."""

_M2_UNUSED: Final[Mapping[str, object]] = {
    "scoring_func": "sigmoid",
    "qk_norm_type": "per_layer",
    "shared_intermediate_size": 0,
    "postnorm": False,
    # M1's gains of residual and branch, which M2's blocks do not have.
    "layernorm_full_attention_alpha": 1.0,
    "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_alpha": 1.0,
    "layernorm_linear_attention_beta": 1.0,
    "layernorm_mlp_alpha": 1.0,
    "layernorm_mlp_beta": 1.0,
}

_GAINS: Final = {
    "linear_attention": "linear_attn",
    "full_attention": "full_attn",
    "mlp": "mlp",
}
"""Branches that have an alpha and a beta, in the official spelling and in transformers'."""


def read_m1(
    values: Mapping[str, object], where: str, ignored: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields of an `M1Config` that a config.json gives in either spelling."""
    given = Fields(values, where, ignored=ignored)
    is_hf = _is_hf(values)
    shared: dict[str, Any] = take_shared(
        given,
        rope_theta=1_000_000.0 if is_hf else 10_000.0,
        rms_norm_eps=1e-5,
        max_position_embeddings=10_240_000,
    )
    num_layers = shared["num_hidden_layers"]
    for name, needed in _UNUSED.items():
        given.require(name, needed)
    # The canonical chunk is 64 tokens whatever the file says; the result does not depend on it.
    given.take("block_size", int, 256, also=("block",))
    m1 = {
        "attn_type_list": _attention_types(given, num_layers, is_hf),
        "num_local_experts": _one_number(given, "num_local_experts", num_layers),
        "num_experts_per_tok": given.take("num_experts_per_tok", int, 2),
        "postnorm": given.take("postnorm", bool, is_hf),
        **{
            f"layernorm_{branch}_{gain}": _take_gain(
                given, f"layernorm_{branch}_{gain}", f"{hf_branch}_{gain}_factor"
            )
            for branch, hf_branch in _GAINS.items()
            for gain in ("alpha", "beta")
        },
        "shared_intermediate_size": _one_number(given, "shared_intermediate_size", num_layers, 0),
        "shared_moe_mode": given.take("shared_moe_mode", str, "sigmoid"),
    }
    given.finish()
    if shared["rotary_dim"] is None:
        sizes = (shared["hidden_size"], num_layers, m1["num_local_experts"])
        is_released = is_hf and sizes == (6144, 80, 32)
        # transformers has no such field, the released weights were trained with 64.
        shared["rotary_dim"] = 64 if is_released else shared["head_dim"]
        if is_released:
            _logger.warning(
                "%s names no rotary_dim; using 64, which the released weights need", where
            )
    return shared | m1


def read_m2(
    values: Mapping[str, object], where: str, ignored: Collection[str] = ()
) -> dict[str, Any]:
    """Return the fields of an `M2Config`: from the official file, a re-export, or transformers 5's.

    M2's two spellings differ in a few names only.
    """
    given = Fields(values, where, ignored=ignored)
    shared: dict[str, Any] = take_shared(
        given, rope_theta=5_000_000.0, rms_norm_eps=1e-6, max_position_embeddings=196_608
    )
    num_layers = shared["num_hidden_layers"]
    for name, needed in {**_UNUSED, **_M2_UNUSED}.items():
        given.require(name, needed)
    # A shared expert's width and mixing, which some releases name; shared_intermediate_size,
    # required to be 0 above, says that there is none.
    given.take_optional("mlp_intermediate_size", int)
    given.take_optional("shared_moe_mode", str)
    given.require("attn_type_list", [1] * num_layers)
    given.require("layer_types", ["full_attention"] * num_layers)
    m2 = {
        "num_local_experts": given.take("num_local_experts", int, also=("num_experts",)),
        "num_experts_per_tok": given.take("num_experts_per_tok", int),
        "use_qk_norm": given.take("use_qk_norm", bool, True),
        "use_routing_bias": given.take("use_routing_bias", bool, True),
    }
    given.finish()
    if shared["rotary_dim"] is None:
        shared["rotary_dim"] = shared["head_dim"]
    return shared | m2


def _is_hf(values: Mapping[str, object]) -> bool:
    return values.get("model_type") == "minimax" or values.get("architectures") == [
        "MiniMaxForCausalLM"
    ]


def _one_number(given: Fields, name: str, num_layers: int, default: int | None = None) -> int:
    """Take a count that some configs give once a layer; all entries must be equal."""
    if not isinstance(given.peek(name), list):
        return given.take(name, int, default)
    values = given.take(name, list)
    if len(values) != num_layers:
        problem = f"has {len(values)} entries, num_hidden_layers is {num_layers}"
    elif any(type(value) is not int for value in values):
        problem = f"is {reprlib.repr(values)}, it must be one integer or one for each layer"
    elif len(set(values)) > 1:
        problem = "differs from layer to layer, only one value for all is implemented"
    else:
        check_limit(name, values[0], where=given.where)
        return int(values[0])
    raise ValueError(f"{name} {problem}, see {given.where}")


def _take_gain(given: Fields, name: str, hf_name: str) -> float:
    """Take a gain of residual or branch, 1 where no spelling names it."""
    official, hf = given.take_optional(name, float), given.take_optional(hf_name, float)
    gain = _of_both(given.where, name, official, hf_name, hf)
    return 1.0 if gain is None else gain


def _attention_types(given: Fields, num_layers: int, is_hf: bool) -> tuple[int, ...]:
    official = given.take_optional("attn_type_list", list, also=("decoder_attention_types",))
    names = given.take_optional("layer_types", list)
    hf = [_attention_type(name, given.where) for name in names] if names else None
    kinds = _of_both(given.where, "attn_type_list", official, "layer_types", hf)
    if kinds is not None:
        return tuple(kinds)
    if not is_hf:
        raise ValueError(f"attn_type_list is missing and has no default, see {given.where}")
    # transformers' default for an absent list: softmax at even layers, lightning at odd ones.
    return tuple(1 - layer % 2 for layer in range(num_layers))


def _attention_type(name: object, where: str) -> int:
    if name == "linear_attention":
        return 0
    if name == "full_attention":
        return 1
    raise ValueError(
        f"layer_types holds {reprlib.repr(name)}, only linear_attention and full_attention are "
        f"known, see {where}"
    )


def _of_both(where: str, name: str, official: T | None, hf_name: str, hf: T | None) -> T | None:
    """Return the value that a config gives in one spelling, or in both alike.

    transformers 5 keeps the official fields of a config it read and writes its own defaults beside
    them: wrong ones, which must not be taken for the model's.
    """
    if official is None or hf is None:
        return hf if official is None else official
    if official != hf:
        raise ValueError(
            f"{name} says {reprlib.repr(official)} and {hf_name} says {reprlib.repr(hf)}: {where} "
            "looks like a damaged re-save by transformers, the published config.json is needed"
        )
    return official
