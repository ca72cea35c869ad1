"""Tokenizers for new models: byte-level, with a chat format's control tokens, digits apart.

Three kinds. `bpe` merges the frequent bytes of a text, as the published models do. `characters`
merges nothing but the words it is told: a small model that sees single letters learns to copy and
spell in minutes, where merged pieces keep it from learning that at all. `words` lies between them:
frequent words are one token, all others are spelled, and so is what stands in quotes. All encode
any text.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, Literal

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from fulmen.chat import ChatFormat, Control, Message, Tool, ToolCall, get_format
from fulmen.envs import demonstrated, load_environment, tools_of
from fulmen.files import shorten, write_text

TokenizerKind = Literal["bpe", "characters", "words"]

_PIECES: Final = {
    "characters": r"[\s\S]",
    "words": r'"\p{L}+|[^\S\n]?\p{L}{2,}|[\s\S]',
    "bpe": r"\p{N}|[^\S\n]?\p{L}+|[^\S\n]?[^\s\p{L}\p{N}]+|\s",
}
"""Pieces within which bytes merge: a character; a word of two or more letters with the space before
it, where a quotation mark before it makes it a piece that is no word; or a digit alone, a word or
marks with the space before"""
_HEADS: Final = (
    "system ai_setting=assistant\n",
    "user name=user\n",
    "ai name=assistant\n",
    "tool name=tools\n",
    "system\n",
    "user\n",
    "ai\n",
)
"""Heads of turns in both formats: one token each, since every prompt has them"""
_BYTES: Final = 256
_LARGEST: Final = 2**20
_PIECE_CHARACTERS: Final = 2**20
_DEMONSTRATIONS: Final = 300
"""Tasks of an environment that merges or words are learnt from"""
_FEWEST: Final = 5
"""Times that a word must stand in the texts to be a token"""
_SEED: Final = 2**40
"""Seed of those tasks: a run that trains has smaller ones"""
_TOKENIZER, _CONFIG = "tokenizer.json", "tokenizer_config.json"


def make_tokenizer(
    out: Path,
    *,
    kind: TokenizerKind,
    files: Sequence[Path] = (),
    environments: Sequence[str] = (),
    vocab_size: int = 4096,
    words: Sequence[str] = (),
    format: str = "minimax_m1",
) -> int:
    """Write tokenizer.json and tokenizer_config.json into a folder; return the number of tokens.

    files         texts to learn merges or words from
    environments  names of environments, whose demonstrations are texts too
    vocab_size    tokens in all, at most, of the kinds bpe and words
    words         texts that are one token wherever they stand
    format        name of the chat format whose control tokens are in the vocabulary

    Raises ValueError for a folder with a checkpoint or a tokenizer, a text that is missing, or a
    size that cannot be.
    """
    for name in ("config.json", _TOKENIZER):
        if (out / name).exists():
            raise ValueError(
                f"{out} has a {name}, whose model would be lost with another tokenizer: remove it, "
                "or give another folder"
            )
    chat = get_format(format)
    special, tags, own_words = control_tokens(chat)
    all_words = list(dict.fromkeys([*own_words, *words]))
    if any(not word.strip() or len(word) < 2 for word in words):
        raise ValueError("a word is empty or one character, it must have two or more")
    if kind == "characters" and (files or environments):
        raise ValueError("a text is given, the kind characters learns nothing from it")
    if kind != "characters" and not (files or environments):
        raise ValueError(
            f"no text is given (--text, --environment), the kind {kind} learns its "
            f"{'merges' if kind == 'bpe' else 'words'} from one; --kind characters needs none"
        )
    num_fixed = _BYTES + len(all_words) + len(special) + len(tags)
    if kind != "characters" and not num_fixed < vocab_size <= _LARGEST:
        raise ValueError(
            f"vocab_size is {vocab_size}, it must be above {num_fixed}, which the bytes, the words "
            f"and the control tokens take, and at most {_LARGEST}"
        )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    longest_first = sorted(all_words, key=lambda word: (-len(word), word))
    any_word = "|".join(map(re.escape, longest_first))
    pattern = rf"{any_word}|[^\S\n](?={any_word})|{_PIECES[kind]}"
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_of])
    tokenizer.decoder = decoders.ByteLevel()
    texts = chain(_pieces(files), _demonstrations(environments, chat))
    size = vocab_size - (num_fixed - _BYTES)
    if kind == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
    elif kind == "words":
        all_words += _frequent(texts, split, (*special, *tags), all_words)[: size - _BYTES]
    spelled = ["".join(piece for piece, _ in bytes_of.pre_tokenize_str(w)) for w in all_words]
    tokenizer = Tokenizer.from_str(json.dumps(_with_words(json.loads(tokenizer.to_str()), spelled)))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tags])
    names = {"bos_token": special[0], "eos_token": chat.end_of_turn}
    write_text(out / _CONFIG, json.dumps(names, indent=1) + "\n")
    try:
        write_text(out / _TOKENIZER, tokenizer.to_str())  # last: without it there is no tokenizer
    except OSError:
        (out / _CONFIG).unlink(missing_ok=True)
        raise
    return int(tokenizer.get_vocab_size(with_added_tokens=True))


def control_tokens(format: ChatFormat) -> tuple[list[str], list[str], list[str]]:
    """Return the texts that a format writes: tokens of turns, tokens inside answers, and texts that
    it writes as plain text, such as M1's tags and the heads of turns."""
    call = ToolCall("a", {"a": "a"})
    answer = Message("assistant", "a", thinking="a", tool_calls=(call,))
    messages = [Message("system", "a"), Message("user", "a"), answer, Message("tool", "a")]
    segments = format.segments(messages, [Tool("a")])
    found = list(dict.fromkeys(one.text for one in segments if isinstance(one, Control)))
    texts = "".join(one for one in segments if isinstance(one, str))
    special = [token for token in found if token not in format.tags]
    inside = [token for token in found if token in format.tags]
    words = [tag for tag in format.tags if tag not in found]
    return special, inside, [*words, *(head for head in _HEADS if head in texts)]


def _with_words(tokenizer: dict[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return a tokenizer.json with whole pieces added to its vocabulary; a piece that is in the
    vocabulary is one token whatever merges there are."""
    model = tokenizer["model"]
    model["ignore_merges"] = True
    for word in words:
        model["vocab"].setdefault(word, len(model["vocab"]))
    return tokenizer


def _frequent(
    texts: Iterable[str],
    split: pre_tokenizers.Split,
    controls: Sequence[str],
    known: Sequence[str],
) -> list[str]:
    """Return the words that stand in texts often enough, the most frequent first; one with the
    space before it is another one than the same without.

    controls  tokens that are no text
    known     pieces that are tokens already
    """
    between = re.compile("|".join(map(re.escape, controls)))
    counts: Counter[str] = Counter()
    for text in texts:
        for part in between.split(text):
            counts.update(piece for piece, _ in split.pre_tokenize_str(part))
    words = [
        word
        for word, count in counts.items()
        if count >= _FEWEST and len(word) > 1 and word.lstrip().isalpha() and word not in known
    ]
    return sorted(words, key=lambda word: (-counts[word], word))


def _demonstrations(names: Sequence[str], format: ChatFormat) -> Iterator[str]:
    """Yield tasks with their known answers, as a model reads and writes them."""
    for name in names:
        environment = load_environment(name, seed=_SEED)
        num_tasks = environment.num_tasks
        for index in range(_DEMONSTRATIONS if num_tasks is None else num_tasks)[:_DEMONSTRATIONS]:
            task = environment.task(index)
            yield format.render(demonstrated(task), tools_of(task))


def _pieces(files: Sequence[Path]) -> Iterator[str]:
    """Yield texts in pieces that fit in memory, cut at ends of lines where those are near."""
    for file in files:
        if not file.is_file():
            raise ValueError(f"{file} is missing, a text to learn from is needed there")
        with file.open(encoding="utf-8", newline="") as opened:
            try:
                while piece := opened.read(_PIECE_CHARACTERS):
                    yield piece + opened.readline(_PIECE_CHARACTERS)
            except UnicodeDecodeError as error:
                raise ValueError(f"{shorten(file)} is not UTF-8: {error}") from None
