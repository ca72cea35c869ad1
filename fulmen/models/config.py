"""The reader of config.json: every field is taken by name, and a field nobody took is an error.

A silently ignored field is how a model comes to speak nonsense (a rotary width, a decay, a norm
nobody read), so the reader knows three kinds: fields a model takes, fields that cannot change its
mathematics (`HARMLESS`), and fields whose other values it does not implement (`Fields.require`,
and `NEUTRAL` for those of every transformers config). All else stops the load with a sentence, and
so does a number that no model has (`LIMITS`).
"""

import difflib
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar, cast

import torch

T = TypeVar("T")

LIMITS: Final[Mapping[str, int]] = {
    "vocab_size": 2**22,  # Gemma 3: 262,144
    "hidden_size": 2**17,  # Llama 3.1 405B: 16,384
    "num_hidden_layers": 2**10,  # Llama 3.1 405B: 126
    "num_attention_heads": 2**10,  # DeepSeek-V3: 128
    "num_key_value_heads": 2**10,  # DeepSeek-V3: 128
    "head_dim": 2**12,  # Gemma 3n: 512
    "rotary_dim": 2**12,
    "intermediate_size": 2**19,  # Llama 3.1 405B: 53,248
    "shared_intermediate_size": 2**19,
    "mlp_intermediate_size": 2**19,
    "num_local_experts": 2**12,  # Qwen3-Next: 512
    "num_experts_per_tok": 2**12,
    "max_position_embeddings": 2**30,  # M1: 10,240,000
    "block_size": 2**20,  # M1: 256
}
"""Largest value that a field may have: at least eight times that of the largest published model.

A config is checked against these before anything is built from it, so that no file can ask for
endless lists or more memory than there is. M1 and M2 themselves are far below.
"""

MAX_EXPERTS: Final = 2**16
"""Most experts in all layers together, four times M2's 62 x 256. Each is three to six tensors that
a config predicts by name, which is work and memory even for weights that are not there."""

HARMLESS = frozenset(
    {
        # Facts that every transformers config states about itself, its library and its task.
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
        # Chunks and outputs of transformers' forward pass.
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
        # Sampling: transformers 4 kept it here, and its re-saved configs still hold it.
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
"""Dtypes of a model by the name that a config and the command line give them."""


class Fields:
    """Fields of one config.json, each taken once; `finish` refuses what is left."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._left = {name: value for name, value in values.items() if name not in HARMLESS}
        self._known: set[str] = set()
        self.where = where

    def peek(self, name: str) -> object:
        """Return the value of a field that has not been taken yet, or None."""
        return self._left.get(name)

    def take(
        self, name: str, kind: type[T], default: T | None = None, *, also: Sequence[str] = ()
    ) -> T:
        """Take field `name`, or a spelling in `also`; without a default it must be there.

        Raises ValueError for a value of another type, or an integer above `LIMITS`.
        """
        found = self.take_optional(name, kind, also=also)
        if found is None:
            found = default
        if found is None:
            raise ValueError(f"{name} is missing and has no default, see {self.where}")
        return found

    def take_optional(self, name: str, kind: type[T], *, also: Sequence[str] = ()) -> T | None:
        """Take a field like `take`; None when no spelling is there."""
        found: T | None = None
        for spelling in (name, *also):
            self._known.add(spelling)
            value = self._left.pop(spelling, None)
            if value is None:
                continue
            typed = self._typed(spelling, value, kind)
            check_limit(name, typed, self.where, spelling)
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
        """Take a field of which only the value `needed` is implemented; absent and null mean it."""
        self._known.add(name)
        value = self._left.pop(name, None)
        if value is not None and value != needed:
            raise ValueError(
                f"{name} is {reprlib.repr(value)}, only {reprlib.repr(needed)} is implemented, "
                f"see {self.where}"
            )

    def take_dtype(self) -> torch.dtype:
        """Take `torch_dtype` (`dtype` in transformers 5); bfloat16 when absent."""
        name = self.take("torch_dtype", str, "bfloat16", also=("dtype",))
        if name not in DTYPES:
            raise ValueError(
                f"torch_dtype is {reprlib.repr(name)}, it must be one of {', '.join(DTYPES)}, "
                f"see {self.where}"
            )
        return DTYPES[name]

    def take_rope(self, head_dim: int, default_theta: float) -> tuple[float, int | None]:
        """Take rope_theta and the rotated width, None if no field names it.

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
        """Take rope_theta and partial_rotary_factor of one of transformers' two dictionaries."""
        values = cast(Mapping[str, object], self.take(name, dict, {}))
        inner = Fields(values, f"{name} in {self.where}")
        inner.require("rope_type", "default")
        inner.require("type", "default")
        theta = inner.take_optional("rope_theta", float)
        factor = inner.take_optional("partial_rotary_factor", float)
        inner.finish()
        return theta, factor

    def finish(self) -> None:
        """Raise for the first field that is left over: it might change the mathematics."""
        for name, needed in NEUTRAL.items():
            self.require(name, needed)
        for name, value in self._left.items():
            if value is None and name not in self._known:
                continue
            close = difflib.get_close_matches(name, self._known, n=1, cutoff=0.75)
            hint = f"did you mean {close[0]}?" if close else "it might change the mathematics"
            raise ValueError(
                f"unknown field {name[:80]} = {reprlib.repr(value)} in {self.where}, {hint}"
            )


def check_limit(name: str, value: object, where: str, spelling: str | None = None) -> None:
    """Raise for an integer larger than `LIMITS` allows its field, however that was spelled."""
    limit = LIMITS.get(name)
    if limit is not None and isinstance(value, int) and value > limit:
        shown = str(value) if value < 10**30 else "more than 10^30"
        raise ValueError(
            f"{spelling or name} is {shown}, it must be at most {limit}, which is "
            f"many times what any published model has, see {where}"
        )
