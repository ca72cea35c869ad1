"""The tokenizer that a GGUF holds, and the small files that name its special tokens.

A GGUF keeps a vocabulary, merges, and the name of a way to split text into words: that is all of a
byte-level BPE, so tokenizer.json can be written anew. Other kinds of tokenizer are refused.
"""

import reprlib

from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from fulmen.checkpoints.gguf_file import GgufFile
from fulmen.files import shorten

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPECIAL_TYPES = (TokenType.CONTROL, TokenType.UNKNOWN)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def build_tokenizer(file: GgufFile) -> str:
    """Return the text of a tokenizer.json."""
    kind = file.get("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise ValueError(
            f"{file.path} has a tokenizer of kind {shorten(kind, 80)}, only byte-level "
            "BPE (gpt2) is supported"
        )
    tokens = read_tokens(file)
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ValueError(f"{file.path} has the same token twice in tokenizer.ggml.tokens")
    merges = []
    for merge in file.get_strings("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise ValueError(
                f"{file.path} has the merge {reprlib.repr(merge)}, whose tokens it does not have"
            )
        merges.append((left, right))

    tokenizer = Tokenizer(models.BPE(vocab, merges))
    _set_splitting(tokenizer, file)
    tokenizer.decoder = decoders.ByteLevel()
    types = _read_token_types(file, len(tokens))
    special = [t for t, kind in zip(tokens, types, strict=True) if kind in _SPECIAL_TYPES]
    added = [t for t, kind in zip(tokens, types, strict=True) if kind == TokenType.USER_DEFINED]
    # All at once: for every call the tokenizer builds its search for added tokens anew.
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in added])
    return tokenizer.to_str()


def _set_splitting(tokenizer: Tokenizer, file: GgufFile) -> None:
    """Set how text becomes the words that merges apply to, by the file's name for it."""
    gpt2_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    match name := file.get("tokenizer.ggml.pre", str):
        case "gpt-2" | "default":
            tokenizer.pre_tokenizer = gpt2_words
        case "smollm":
            digits = pre_tokenizers.Digits(individual_digits=True)
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, gpt2_words])
        case "llama-bpe":
            tokenizer.pre_tokenizer = _split_by(_LLAMA3_WORDS)
            # Llama 3's vocabulary has whole words that its merges do not reach.
            tokenizer.model.ignore_merges = True
        case "qwen2":
            tokenizer.pre_tokenizer = _split_by(_QWEN2_WORDS)
            tokenizer.normalizer = normalizers.NFC()
        case _:
            raise ValueError(
                f"{file.path} has tokenizer.ggml.pre = {shorten(name, 80)}, supported are smollm, "
                "gpt-2, default, llama-bpe and qwen2"
            )


def _split_by(words: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def read_tokens(file: GgufFile) -> list[str]:
    """Return the vocabulary, by id."""
    return file.get_strings("tokenizer.ggml.tokens")


def _read_token_id(file: GgufFile, role: str, num_tokens: int) -> int | None:
    """Return the id of a special token (`bos`, `eos`, ...), or None if the file names none."""
    key = f"tokenizer.ggml.{role}_token_id"
    if key not in file.metadata:
        return None
    token_id = file.get(key, int)
    if not 0 <= token_id < num_tokens:
        raise ValueError(f"{file.path} has {key} = {token_id}, and {num_tokens} tokens")
    return token_id


def _read_token_types(file: GgufFile, num_tokens: int) -> list[int]:
    token_types = file.get("tokenizer.ggml.token_type", list)
    if len(token_types) != num_tokens:
        raise ValueError(
            f"{file.path} has {len(token_types)} values in tokenizer.ggml.token_type for "
            f"{num_tokens} tokens"
        )
    return token_types


def read_tokenizer_config(file: GgufFile) -> dict[str, object]:
    """Return the values of a tokenizer_config.json: special tokens and the chat template."""
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": file.get("tokenizer.ggml.add_bos_token", bool, False),
        "model_max_length": file.get("llama.context_length", int),
    }
    tokens = read_tokens(file)
    for role, name in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        if (token_id := _read_token_id(file, name, len(tokens))) is not None:
            config[f"{role}_token"] = tokens[token_id]
    if "tokenizer.chat_template" in file.metadata:
        config["chat_template"] = file.get("tokenizer.chat_template", str)
    return config


# A chat model may end its turn with any of these, whichever of them its metadata calls the end.
_END_TOKENS = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>")


def read_generation_config(file: GgufFile) -> dict[str, object]:
    """Return the values of a generation_config.json: the ids that begin, end and pad."""
    tokens = read_tokens(file)
    token_types = _read_token_types(file, len(tokens))
    ids = {
        role: _read_token_id(file, role, len(tokens))
        for role in ("bos", "eos", "eot", "eom", "padding")
    }
    end_ids = [ids["eos"], ids["eot"], ids["eom"]]
    for i, token in enumerate(tokens):
        if token in _END_TOKENS and token_types[i] == TokenType.CONTROL:
            end_ids.append(i)
    config = {
        "bos_token_id": ids["bos"],
        "eos_token_id": [i for i in dict.fromkeys(end_ids) if i is not None],
        "pad_token_id": ids["padding"],
    }
    return {name: value for name, value in config.items() if value is not None}
