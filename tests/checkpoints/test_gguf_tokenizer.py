"""The tokenizer made from a GGUF gives the ids, the special tokens and the end-of-turn it had."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer

from fulmen.checkpoints import gguf
from tests.checkpoints.test_gguf import (
    TOKEN_TYPES,
    TOKENS,
    Weights,
    add_metadata,
    find_smollm2,
    write_gguf,
)

TEXTS = [
    "",
    "the inn's  well\n\n the end ",
    "12 112 1212 a12b  3.14 1,000,000 2025-02-07",
    "tabs\t\tand\r\nlines \n \n  indented\n    more",
    "naïve café, ÅNGSTRÖM, Straße, ﬁ, I'LL we've DON'T",
    "你好，世界。 日本語テキスト 한국어 Привет мир مرحبا",  # noqa: RUF001
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈 flags 🇩🇪 maths ∀x∈ℝ ½ ² Ⅷ ٣٤",  # noqa: RUF001
    "<|im_start|>user\nwhat is <think>12</think>?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|><|im_end|> <|endoftext|>the<|im_star t|>",
    "def f(x: int) -> int:\n\treturn x**2  # {'a': [1, 2]}\n",
    "\x00\x07 zero \ufeff width\u200b \u00a0nbsp \U00040000",
]


def read_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_str(gguf.read_tokenizer(path))


def test_tokenizer_merges_splits_digits_and_keeps_added_tokens_whole(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", pre="smollm")
    tokenizer = read_tokenizer(tmp_path / "a.gguf")
    text = "<|im_start|> the 12  1<think>in"
    pieces = ["<|im_start|>", "Ġthe", "Ġ", "1", "2", "ĠĠ", "1", "<think>", "in"]
    encoding = tokenizer.encode(text)
    assert encoding.tokens == pieces
    assert encoding.ids == [TOKENS.index(piece) for piece in pieces]
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text
    assert tokenizer.decode(encoding.ids) == text.removeprefix("<|im_start|>")


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["Ġthe", "Ġ", "Ġ1", "12"]),
        ("default", ["Ġthe", "Ġ", "Ġ1", "12"]),
        ("smollm", ["Ġthe", "ĠĠ", "1", "1", "2"]),
        ("qwen2", ["Ġthe", "Ġ", "Ġ", "1", "1", "2"]),
        ("llama-bpe", ["Ġthe", "Ġ", "Ġ", "1", "12"]),
    ],
)
def test_each_family_splits_words_its_own_way(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    write_gguf(tmp_path / "a.gguf", pre=pre)
    assert read_tokenizer(tmp_path / "a.gguf").encode(" the  112").tokens == pieces


@pytest.mark.parametrize("pre", ["gpt-2", "qwen2", "llama-bpe"])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_that_transformers_reads(tmp_path: Path, pre: str, text: str) -> None:
    write_gguf(tmp_path / "a.gguf", pre=pre)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="a.gguf")
    ours = read_tokenizer(tmp_path / "a.gguf")
    assert ours.encode(text).ids == theirs.encode(text, add_special_tokens=False)


def test_llama_3_takes_a_whole_word_before_its_merges(tmp_path: Path) -> None:
    def add_word(writer: GGUFWriter, weights: Weights) -> None:
        writer.add_token_list([*TOKENS, "Ġxyz"])
        writer.add_token_types([*TOKEN_TYPES, TokenType.NORMAL])

    for pre, pieces in {"llama-bpe": ["Ġxyz"], "gpt-2": ["Ġ", "x", "y", "z"]}.items():
        path = tmp_path / f"{pre}.gguf"
        write_gguf(path, pre=pre, drop=("tokens", "token_type"), change=add_word)
        assert read_tokenizer(path).encode(" xyz").tokens == pieces


# Special tokens and the chat template.


def test_the_end_of_a_chat_turn_ends_generation(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")  # its eos is <|endoftext|>
    gguf.unpack(tmp_path / "a.gguf", tmp_path / "folder")
    generation = json.loads((tmp_path / "folder/generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [0, 2]}


def test_transformers_loads_the_tokenizer_of_the_folder(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    gguf.unpack(tmp_path / "a.gguf", tmp_path / "folder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    messages = [{"role": "user", "content": "the 12"}]
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False)
        == "<|im_start|>user\nthe 12<|im_end|>\n"
    )
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 0)


# Tokenizers that are refused, each in one sentence.


@pytest.mark.parametrize(
    ("drop", "change", "message"),
    [
        ("model", lambda w: w.add_tokenizer_model("llama"), "only byte-level BPE"),
        ("pre", lambda w: w.add_tokenizer_pre("odd"), r"tokenizer\.ggml\.pre = odd, supported are"),
        ("pre", lambda w: None, r"has no tokenizer\.ggml\.pre"),
        ("merges", lambda w: w.add_token_merges(["q qq"]), "has the merge 'q qq', whose tokens"),
        ("token_type", lambda w: w.add_token_types([1, 2]), "has 2 values in tokenizer.ggml.token"),
        ("tokens", lambda w: w.add_array("tokenizer.ggml.tokens", [1, 2]), "are not texts"),
        ("tokens", lambda w: w.add_token_list(["a", "a"]), "the same token twice"),
    ],
)
def test_tokenizers_that_cannot_be_built_are_refused(
    tmp_path: Path, drop: str, change: Callable[[GGUFWriter], None], message: str
) -> None:
    write_gguf(tmp_path / "a.gguf", drop=(drop,), change=add_metadata(change))
    with pytest.raises(ValueError, match=message):
        gguf.read_tokenizer(tmp_path / "a.gguf")


def test_special_tokens_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    change = add_metadata(lambda w: w.add_eos_token_id(5000))
    write_gguf(tmp_path / "a.gguf", drop=("eos",), change=change)
    with pytest.raises(ValueError, match=r"eos_token_id = 5000, and \d+ tokens"):
        gguf.unpack(tmp_path / "a.gguf", tmp_path / "folder")


# The real model, when a user has pulled it.

smollm2 = pytest.fixture(scope="module")(find_smollm2)


@pytest.mark.slow
def test_smollm2_reads_text_as_its_makers_do(smollm2: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name).backend_tokenizer
    # transformers 5.23 passes over `pre` = smollm: SmolLM2's own tokenizer.json has digits apart.
    digits = pre_tokenizers.Digits(individual_digits=True)
    theirs.pre_tokenizer = pre_tokenizers.Sequence([digits, theirs.pre_tokenizer])
    ours = read_tokenizer(smollm2)
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text).ids
    assert ours.encode("a  35").tokens == ["a", "ĠĠ", "3", "5"]
