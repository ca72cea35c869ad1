"""An M1 that finds needles in a haystack by construction, however long the haystack is.

A model of noise attends to nothing in particular, so it cannot show that its past is still there.
Here all weights are noise except for one circuit in the last softmax layer. The circuit has some
dimensions of the hidden state to itself, which noise neither reads nor writes:

    a needle says "key a has value b"; at the end a question asks for key a
    its query and the needle's key agree, in dimensions that do not rotate, by a score of SCORE
    the needle's value reaches the hidden state, and the head says answer b

No other token scores, so in 10^6 tokens a needle has the weight e^SCORE / (e^SCORE + 10^6), nearly
1. The answer is right only if that one key and value are still in their page and are read. All else
runs as in any M1.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from fulmen.models import M1, M1Config, new_model

SCORE: Final = 30.0
"""Approximate score of a question and its needle; ln(10^6) is 13.8."""
LOGIT: Final = 20.0
"""Approximate logit of an answer that was found; logits of fillers have variance one."""

WRITERS: Final = ("out_proj.weight", "o_proj.weight", "w2.weight", "down_proj.weight")
"""Names of matrices that write the hidden state; all others read it."""


@dataclass(frozen=True, slots=True)
class Needles:
    """Vocabulary: fillers, a needle for each key and value, questions and answers."""

    num_fillers: int = 1024
    num_keys: int = 8
    num_values: int = 8

    @property
    def vocab_size(self) -> int:
        """Return the number of ids."""
        return self.answer(self.num_values - 1) + 1

    def needle(self, key: int, value: int) -> int:
        """Return the id that says that a key has a value."""
        return self.num_fillers + key * self.num_values + value

    def question(self, key: int) -> int:
        """Return the id that asks for the value of a key."""
        return self.needle(self.num_keys, 0) + key

    def answer(self, value: int) -> int:
        """Return the id that names a value."""
        return self.question(self.num_keys) + value

    def is_answer(self, token_id: int) -> bool:
        """Return True if an id names a value."""
        return token_id >= self.answer(0)

    def haystack(self, num_tokens: int, needles: Mapping[int, int], *, seed: int = 0) -> list[int]:
        """Return random fillers, with needles (ids by position) among them."""
        fillers = list(range(self.num_fillers))  # so that equal ids are one object
        ids = random.Random(seed).choices(fillers, k=num_tokens)
        for position, token in needles.items():
            ids[position] = token
        return ids


def needle_model(config: M1Config, needles: Needles, *, seed: int = 0) -> M1:
    """Return a model of noise with the circuit in its last softmax layer, in the config's dtype and
    not packed."""
    num_dims = 2 * needles.num_keys + 2 * needles.num_values
    has_room = (
        2 * num_dims <= config.hidden_size
        and needles.num_keys <= config.head_dim - config.rotary_dim
        and needles.num_values <= config.head_dim
    )
    if config.vocab_size != needles.vocab_size or 1 not in config.attn_type_list:
        raise ValueError(
            f"the needles need {needles.vocab_size} ids and a layer of softmax attention, the "
            f"config has {config.vocab_size} and attn_type_list {config.attn_type_list}"
        )
    if not has_room:
        raise ValueError(
            f"{needles.num_keys} keys and {needles.num_values} values need a hidden_size of "
            f"{2 * num_dims} or more, and a head with a dimension for each value and one that does "
            f"not rotate for each key, the config has {config.hidden_size}, head_dim "
            f"{config.head_dim} and rotary_dim {config.rotary_dim}"
        )
    model = new_model(config)
    assert isinstance(model, M1)
    with torch.no_grad():
        _fill_with_noise(model, num_dims, torch.Generator().manual_seed(seed))
        _add_circuit(model, needles)
    return model.to(config.torch_dtype).eval()


def _fill_with_noise(model: M1, num_dims: int, generator: torch.Generator) -> None:
    """Draw weights that keep activations near one; no noise is in the first num_dims."""
    hidden_size = model.config.hidden_size
    for name, parameter in model.state_dict().items():  # official names, each expert's own
        if parameter.ndim == 1:
            continue  # norms stay one
        noise = torch.randn(parameter.shape, generator=generator)
        is_written = name.endswith(WRITERS)
        if name != "model.embed_tokens.weight":
            noise *= parameter.shape[1] ** -0.5
        if is_written:
            noise[:num_dims] = 0
        else:
            assert parameter.shape[1] == hidden_size, name
            noise[:, :num_dims] = 0
        parameter.copy_(noise)


def _add_circuit(model: M1, needles: Needles) -> None:
    config, keys, values = model.config, needles.num_keys, needles.num_values
    needle_key, question_key, value, answer = torch.split(
        torch.arange(2 * keys + 2 * values), [keys, keys, values, values]
    )  # dimensions of the hidden state
    # Half as much energy as the noise. Noise grows from layer to layer, so the share of the circuit
    # shrinks to about two thirds after seven.
    embedded = math.sqrt(config.hidden_size) / 2
    arriving = embedded * 2 / 3
    embedding = model.model.embed_tokens.weight
    for key in range(keys):
        embedding[needles.question(key), question_key[key]] = embedded
        for index in range(values):
            embedding[needles.needle(key, index), needle_key[key]] = embedded
            embedding[needles.needle(key, index), value[index]] = embedded

    last = max(layer for layer, kind in enumerate(config.attn_type_list) if kind)
    attention = model.model.layers[last].get_submodule("self_attn")
    q, k, v, o = (_weight(attention, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    still = torch.arange(config.rotary_dim, config.rotary_dim + keys)  # of head 0, not rotated
    gain = math.sqrt(SCORE * math.sqrt(config.head_dim)) / arriving
    q[: config.head_dim] = 0  # head 0 asks for nothing else
    q[still, question_key] = gain
    k[still] = 0
    k[still, needle_key] = gain
    v[:values] = 0
    v[torch.arange(values), value] = 1.0
    o[answer, torch.arange(values)] = 1.0

    assert model.lm_head is not None
    head = model.lm_head.weight
    assert isinstance(head, Tensor)
    head[needles.num_fillers :] = 0  # needles and questions are never said
    head[[needles.answer(index) for index in range(values)], answer] = LOGIT / arriving


def _weight(module: nn.Module, name: str) -> Tensor:
    weight = module.get_submodule(name).weight
    assert isinstance(weight, Tensor)
    return weight
