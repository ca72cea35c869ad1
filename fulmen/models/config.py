"""The reader of config.json: every field is taken by name, and a field nobody took is an error.

A silently ignored field is how a model comes to speak nonsense (a rotary width, a decay, a norm
nobody read), so the reader knows three kinds: fields a model takes, fields that cannot change its
mathematics (`is_harmless`), and fields whose other values it does not implement (`Fields.require`,
and `NEUTRAL` for those that other programs write). All else stops the load with a sentence, unless
the caller names it as one to ignore, and so does a number that no model has (`LIMITS`).
"""

import difflib
import logging
import math
import reprlib
import shlex
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Final, TypeVar, cast

import torch

from fulmen.files import shorten
from fulmen.models.bookkeeping import NEUTRAL, TOKEN_IDS, is_harmless

_logger = logging.getLogger(__name__)

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

_MOST_SHOWN: Final = 12
"""Unknown fields that an error names, each with the option that ignores it"""

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
"""Dtypes of a model by the name that a config and the command line give them."""


class Fields:
    """Fields of one config.json, each taken once; `finish` refuses what is left."""

    def __init__(
        self,
        values: Mapping[str, object],
        where: str,
        *,
        ignored: Collection[str] = (),
        prefix: str = "",
    ) -> None:
        """ignored  full names of fields that count as absent, for those that no model takes
        prefix   full name of the field that holds these, with a dot at its end
        """
        self.where = where
        self._prefix = prefix
        self._all_ignored = ignored
        self._ignored = {name: value for name, value in values.items() if prefix + name in ignored}
        self._left = {
            name: value
            for name, value in values.items()
            if not is_harmless(name) and name not in self._ignored
        }
        if values.get("use_sliding_window") is False:
            self._left.pop("sliding_window", None)  # a width that nobody uses
        self._known: set[str] = set()
        self._token_ids = {name: values.get(name) for name in TOKEN_IDS}

    def inner(self, name: str, values: Mapping[str, object]) -> "Fields":
        """Return the fields of an object that is the value of field `name`."""
        return Fields(
            values,
            f"{name} in {self.where}",
            ignored=self._all_ignored,
            prefix=f"{self._prefix}{name}.",
        )

    def check_token_ids(self, vocab_size: int) -> None:
        """Raise unless the fields that name tokens hold an id, a list of ids, or nothing.

        Only an end of text must be in the vocabulary: others may name a token that no text has, and
        -1 stands for none.
        """
        for name, value in self._token_ids.items():
            largest = (vocab_size if name == "eos_token_id" else LIMITS["vocab_size"]) - 1
            ids = value if isinstance(value, list | tuple) else [] if value is None else [value]
            for token_id in ids:
                if type(token_id) is not int or not -1 <= token_id <= largest:
                    raise ValueError(
                        f"{name} is {reprlib.repr(value)}, it must be a token's id or a list of "
                        f"ids, each from 0 to {largest}, see {self.where}"
                    )

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
            if self._ignored.get(spelling) is not None:
                raise ValueError(
                    f"{self._prefix}{spelling} cannot be ignored, the model needs it, see "
                    f"{self.where}"
                )
            value = self._left.pop(spelling, None)
            if value is None:
                continue
            typed = self._typed(spelling, value, kind)
            check_limit(name, typed, spelling=spelling, where=self.where)
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
        """Take `dtype`, or else `torch_dtype`, its name before transformers 5; bfloat16 if absent.
        The older one may be left over from the model that another was made of."""
        old = self.take_optional("torch_dtype", str)
        new = self.take_optional("dtype", str)
        if old is not None and new is not None and old != new:
            _say_once(
                f"{self.where}: dtype is {shorten(new, 40)} and torch_dtype {shorten(old, 40)}; "
                "dtype, the newer name, is taken"
            )
        name = new or old or "bfloat16"
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
        inner = self.inner(name, values)
        inner.require("rope_type", "default")
        inner.require("type", "default")
        theta = inner.take_optional("rope_theta", float)
        factor = inner.take_optional("partial_rotary_factor", float)
        inner.finish()
        return theta, factor

    def finish(self) -> None:
        """Raise for the first field that is left over: it might change the mathematics."""
        taken = sorted(self._known)
        for name, needed in NEUTRAL.items():
            if name not in self._known:
                self.require(name, needed)
        for name, value in self._ignored.items():
            if value is not None and not is_harmless(name):
                _logger.info(
                    "%s: %s = %s is ignored, as asked",
                    self.where,
                    shorten(name, 80),
                    reprlib.repr(value),
                )
        left = [
            name for name, value in self._left.items() if value is not None or name in self._known
        ]
        if not left:
            return
        name = left[0]
        close = difflib.get_close_matches(name[:80], taken, n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "it might change the mathematics"
        others = ", ".join(shorten(other, 80) for other in left[1:_MOST_SHOWN])
        rest = f" and {len(left) - _MOST_SHOWN} more" if len(left) > _MOST_SHOWN else ""
        flags = " ".join(
            f"--ignore-config-field {shlex.quote(shorten(self._prefix + each, 120))}"
            for each in left[:_MOST_SHOWN]
        )
        they = "it were" if len(left) == 1 else "they were"
        raise ValueError(
            f"unknown field {shorten(name, 80)} = {reprlib.repr(self._left[name])} in "
            f"{self.where}, {hint}"
            + (f" (and {others}{rest}, unknown too)" if others else "")
            + f"; {flags} (in Python ignore_config_fields) loads the model as if {they} not there"
        )


@lru_cache(maxsize=100)
def _say_once(sentence: str) -> None:
    """Warn of something in a file, which one command may read several times."""
    _logger.warning("%s", sentence)


def check_limit(
    name: str, value: object, *, spelling: str | None = None, where: str | None = None
) -> None:
    """Raise for an integer larger than `LIMITS` allows its field, however that was spelled."""
    limit = LIMITS.get(name)
    if limit is not None and isinstance(value, int) and value > limit:
        shown = str(value) if value < 10**30 else "more than 10^30"
        raise ValueError(
            f"{spelling or name} is {shown}, it must be at most {limit}, which is "
            "many times what any published model has" + (f", see {where}" if where else "")
        )
