"""Reading a config.json: every field is taken by name, and a field nobody took is an error.

A silently ignored field is how a model comes to speak nonsense (a rotary width, a decay, a norm
nobody read), so the reader knows three kinds: fields a model takes, fields that cannot change its
mathematics (`HARMLESS`), and fields whose other values it does not implement (`Fields.require`,
and `NEUTRAL` for those of every transformers config). All else stops the load with a sentence.
"""

import difflib
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import torch

from fulmen.models.quantization import PACKED_METHOD, Fp8Config, PackedConfig, QuantizationConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

HARMLESS = frozenset(
    {
        # What every transformers config says about itself, its library and its task.
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "auto_map",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "initializer_range",
        "is_decoder",
        "label2id",
        "model_type",
        "pretraining_tp",
        "problem_type",
        "task_specific_params",
        "tf_legacy_loss",
        "tokenizer_class",
        "torchscript",
        "transformers_version",
        "use_bfloat16",
        # How its forward pass is cut up and what it hands out.
        "chunk_size_feed_forward",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "return_dict",
        "use_cache",
        # Multi-token prediction, which M2's config declares and no release ships.
        "mtp_transformer_layers",
        "num_mtp_modules",
        "use_mtp",
        # Tokens; which of them end a text is generation_config.json's to say.
        "bos_token_id",
        "decoder_start_token_id",
        "eos_token_id",
        "pad_token_id",
        "prefix",
        "sep_token_id",
        "unk_token_id",
        # How to generate: transformers 4 kept it here, and its re-saved configs still hold it.
        "bad_words_ids",
        "begin_suppress_tokens",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_scores",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict_in_generate",
        "suppress_tokens",
        "temperature",
        "top_k",
        "top_p",
        "typical_p",
    }
)
"""Fields that say nothing about the mathematics of the forward pass."""

NEUTRAL: Mapping[str, object] = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
}
"""Fields of every transformers 4 config that would change the model, and the value at which they
do not."""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


class Fields:
    """The fields of one config.json, each taken once; `finish` complains about what is left."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._left = {name: value for name, value in values.items() if name not in HARMLESS}
        self._known: set[str] = set()
        self.where = where

    def peek(self, name: str) -> object:
        """The value of a field that has not been taken yet, or None."""
        return self._left.get(name)

    def take(
        self, name: str, kind: type[T], default: T | None = None, *, also: Sequence[str] = ()
    ) -> T:
        """The value of field `name` or of a spelling in `also`; without a default it must be
        there."""
        found = self.take_optional(name, kind, also=also)
        if found is None:
            found = default
        if found is None:
            raise ValueError(f"{name} is missing and has no default, see {self.where}")
        return found

    def take_optional(self, name: str, kind: type[T], *, also: Sequence[str] = ()) -> T | None:
        """As `take`, but None when no spelling is there."""
        found: T | None = None
        for spelling in (name, *also):
            self._known.add(spelling)
            value = self._left.pop(spelling, None)
            if value is None:
                continue
            typed = self._typed(spelling, value, kind)
            if found is not None and typed != found:
                raise ValueError(
                    f"{spelling} is {reprlib.repr(typed)} but {name} is {reprlib.repr(found)}, "
                    f"they must agree, see {self.where}"
                )
            found = typed
        return found

    def _typed(self, name: str, value: object, kind: type[T]) -> T:
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            try:
                value = float(value)
            except OverflowError:
                value = math.inf
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if kind is list and isinstance(value, tuple):  # as transformers' to_dict() gives some
            value = list(value)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise ValueError(
                f"{name} is {reprlib.repr(value)}, it must be of type {kind.__name__}, "
                f"see {self.where}"
            )
        return value

    def require(self, name: str, needed: object) -> None:
        """A field of which only the value `needed` is implemented; absent and null mean it."""
        self._known.add(name)
        value = self._left.pop(name, None)
        if value is not None and value != needed:
            raise ValueError(
                f"{name} is {reprlib.repr(value)}, only {reprlib.repr(needed)} is implemented, "
                f"see {self.where}"
            )

    def take_dtype(self) -> torch.dtype:
        """`torch_dtype` (`dtype` in transformers 5); bfloat16 when absent."""
        name = self.take("torch_dtype", str, "bfloat16", also=("dtype",))
        if name not in DTYPES:
            raise ValueError(
                f"torch_dtype is {name!r}, it must be one of {', '.join(DTYPES)}, see {self.where}"
            )
        return DTYPES[name]

    def take_rope(self, head_dim: int, default_theta: float) -> tuple[float, int | None]:
        """rope_theta and the rotated width, None if no field names it.

        The order is that of the M2 sheet: partial_rotary_factor in rope_parameters (or in
        rope_scaling, its name in transformers 4), the same at top level, then rotary_dim. They are
        alternatives: a factor is never applied to another field's result.
        """
        thetas = [self.take_optional("rope_theta", float)]
        factors = []
        for name in ("rope_parameters", "rope_scaling"):
            theta, factor = self._take_rotation(name)
            thetas.append(theta)
            factors.append(factor)
        factors.append(self.take_optional("partial_rotary_factor", float))
        rotary_dim = self.take_optional("rotary_dim", int)
        given = {theta: None for theta in thetas if theta is not None}
        if len(given) > 1:
            raise ValueError(
                f"rope_theta is {' and '.join(map(str, given))}, all fields that give it must "
                f"agree, see {self.where}"
            )
        for factor in factors:
            if factor is not None:
                if not 0 < factor <= 1:
                    raise ValueError(
                        f"partial_rotary_factor is {factor}, it must be above 0 and at most 1, "
                        f"see {self.where}"
                    )
                rotary_dim = round(factor * head_dim)
                break
        return next(iter(given), default_theta), rotary_dim

    def _take_rotation(self, name: str) -> tuple[float | None, float | None]:
        """rope_theta and partial_rotary_factor of one of transformers' two dictionaries."""
        values = cast(Mapping[str, object], self.take(name, dict, {}))
        inner = Fields(values, f"{name} in {self.where}")
        inner.require("rope_type", "default")
        inner.require("type", "default")
        theta = inner.take_optional("rope_theta", float)
        factor = inner.take_optional("partial_rotary_factor", float)
        inner.finish()
        return theta, factor

    def take_quantization(self) -> QuantizationConfig | None:
        """`quantization_config`, or None when the weights are stored as they are."""
        values = self.take_optional("quantization_config", dict)
        if values is None:
            return None
        inner = Fields(values, f"quantization_config in {self.where}")
        method = inner.take("quant_method", str, "fp8")
        if method not in ("fp8", PACKED_METHOD):
            raise ValueError(
                f"quant_method is {method!r}, only 'fp8' and {PACKED_METHOD!r} are implemented, "
                f"see {inner.where}"
            )
        config = inner._take_packed() if method == PACKED_METHOD else inner._take_fp8()
        inner.finish()
        return config

    def _take_packed(self) -> PackedConfig:
        is_fp8 = self.peek("bits") == "fp8"
        return PackedConfig(
            bits=self.take("bits", str) if is_fp8 else self.take("bits", int),
            group_size=self.take("group_size", int),
            input_bits=self.take("input_bits", int),
            head_bits=self.take_optional("head_bits", int),
        )

    def _take_fp8(self) -> Fp8Config:
        self.require("fmt", "float8_e4m3fn")
        self.require("activation_scheme", "dynamic")
        self.require("scale_fmt", "float")
        self.require("expert_dtype", "fp8")
        self.require("modules_to_convert", None)
        self.require("dequantize", False)
        block = self.take("weight_block_size", list)
        if len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
            raise ValueError(
                f"weight_block_size is {reprlib.repr(block)}, it must be two positive integers, "
                f"see {self.where}"
            )
        # Without a list, transformers leaves the head as it is; its router is never converted.
        modules = self.take(
            "modules_to_not_convert", list, ["gate", "lm_head"], also=("ignored_layers",)
        )
        if not all(isinstance(module, str) for module in modules):
            raise ValueError(
                f"modules_to_not_convert is {reprlib.repr(modules)}, it must be a list of names, "
                f"see {self.where}"
            )
        return Fp8Config(
            weight_block_size=(block[0], block[1]), modules_to_not_convert=tuple(modules)
        )

    def finish(self) -> None:
        """Raises for the first field that is left over: it might change the mathematics."""
        for name, needed in NEUTRAL.items():
            self.require(name, needed)
        for name, value in self._left.items():
            if value is None and name not in self._known:
                continue
            close = difflib.get_close_matches(name, self._known, n=1, cutoff=0.75)
            hint = f"did you mean {close[0]}?" if close else "it might change the mathematics"
            raise ValueError(
                f"unknown field {name} = {reprlib.repr(value)} in {self.where}, {hint}"
            )


class AttentionConfig(Protocol):
    """What both models' configs have in common, for the helpers below."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def rotary_dim(self) -> int: ...
    @property
    def rope_theta(self) -> float: ...
    @property
    def rms_norm_eps(self) -> float: ...
    @property
    def max_position_embeddings(self) -> int: ...
    @property
    def attn_type_list(self) -> tuple[int, ...]: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_local_experts(self) -> int: ...
    @property
    def num_experts_per_tok(self) -> int: ...
    @property
    def router_aux_loss_coef(self) -> float: ...
    @property
    def router_jitter_noise(self) -> float: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    @property
    def torch_dtype(self) -> torch.dtype: ...
    @property
    def quantization_config(self) -> QuantizationConfig | None: ...


def check_numbers(config: AttentionConfig) -> None:
    """Raises unless the numbers of a config are finite, in their range, and fit together."""
    for name in (field.name for field in fields(cast("DataclassInstance", config))):
        value = getattr(config, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is {value}, it must be a finite number, see config.json")
    check_positive(
        config,
        (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "intermediate_size",
            "num_local_experts",
            "num_experts_per_tok",
            "rotary_dim",
            "rope_theta",
            "rms_norm_eps",
            "max_position_embeddings",
        ),
    )
    for holds, sentence in (
        (
            len(config.attn_type_list) == config.num_hidden_layers,
            f"attn_type_list has {len(config.attn_type_list)} entries, "
            f"num_hidden_layers is {config.num_hidden_layers}",
        ),
        (
            config.num_attention_heads % config.num_key_value_heads == 0,
            f"num_attention_heads ({config.num_attention_heads}) must be a multiple of "
            f"num_key_value_heads ({config.num_key_value_heads})",
        ),
        (
            config.rotary_dim <= config.head_dim and config.rotary_dim % 2 == 0,
            f"rotary_dim ({config.rotary_dim}) must be even and at most "
            f"head_dim ({config.head_dim})",
        ),
        (
            config.num_experts_per_tok <= config.num_local_experts,
            f"num_experts_per_tok ({config.num_experts_per_tok}) is larger than "
            f"num_local_experts ({config.num_local_experts})",
        ),
        (
            config.router_aux_loss_coef >= 0,
            f"router_aux_loss_coef is {config.router_aux_loss_coef}, it must not be negative",
        ),
        (
            0 <= config.router_jitter_noise < 1,
            f"router_jitter_noise is {config.router_jitter_noise}, it must be at least 0 and "
            "below 1",
        ),
    ):
        if not holds:
            raise ValueError(f"{sentence}, see config.json")


def to_dict(config: "DataclassInstance") -> dict[str, object]:
    """The fields of a config as config.json holds them."""
    values: dict[str, object] = {}
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        if isinstance(value, torch.dtype):
            value = str(value).removeprefix("torch.")
        elif isinstance(value, Fp8Config):
            value = {
                "quant_method": "fp8",
                "fmt": "float8_e4m3fn",
                "activation_scheme": "dynamic",
                "weight_block_size": list(value.weight_block_size),
                "modules_to_not_convert": list(value.modules_to_not_convert),
            }
        elif isinstance(value, PackedConfig):
            given = {key: field for key, field in asdict(value).items() if field is not None}
            value = {"quant_method": PACKED_METHOD, **given}
        elif isinstance(value, tuple):
            value = list(value)
        if value is not None:
            values[name] = value
    return values


def check_positive(config: object, names: Sequence[str]) -> None:
    """Raises unless every named field of a config is above zero."""
    for name in names:
        value = getattr(config, name)
        if not value > 0:
            raise ValueError(f"{name} is {value}, it must be positive, see config.json")
