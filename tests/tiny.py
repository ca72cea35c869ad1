"""A whole checkpoint folder, small enough for every test: random weights, a byte tokenizer, a
native format."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from fulmen.checkpoints import save_model
from fulmen.models import M1Config, M2Config
from tests.models.helpers import random_model, tiny_m1, tiny_m2

SPECIAL = {
    "m1": ["<begin_of_document>", "<beginning_of_sentence>", "<end_of_sentence>"],
    "m2": ["]~!b[", "]~b]", "[e~["],
}
ADDED = ["<think>", "</think>", "<minimax:tool_call>", "</minimax:tool_call>"]
NUM_BYTES = 256


def write_checkpoint(folder: Path, kind: str, **changes: object) -> Path:
    """Writes a checkpoint of `kind` m1 or m2 with one id a byte and the format's control tokens.
    changes are fields of its config."""
    tokens = SPECIAL[kind] + (ADDED if kind == "m2" else [])
    vocab_size = NUM_BYTES + len(tokens)
    config: M1Config | M2Config = (
        tiny_m1(vocab_size=vocab_size, **changes)
        if kind == "m1"
        else tiny_m2(vocab_size=vocab_size, **changes)
    )
    save_model(random_model(config), folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL[kind]])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens[3:]])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": SPECIAL[kind][2]}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    sampling = {"temperature": 0.7, "top_p": 0.9, "top_k": 30}
    (folder / "generation_config.json").write_text(json.dumps(sampling))
    return folder
