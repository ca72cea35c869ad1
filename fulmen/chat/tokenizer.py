"""Text to token ids and back, around the `tokenizers` library.

A prompt is a sequence of segments: plain text, `Control` tokens, and `Ids` of answers that were
sampled. Only a `Control` becomes a special token; plain text is encoded with special tokens
switched off. So no user, tool or web page can open a turn or a thought by writing the characters of
a special token.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import tokenizers

from fulmen.files import read_json_if_present
from fulmen.sampling import shown

_logger = logging.getLogger(__name__)

MAX_TOKENIZER_BYTES: Final = 64 * 2**20
"""Size of the largest tokenizer.json we read; the largest published ones have some 35 MB."""
MAX_TOKENIZER_MARKS: Final = 5_000_000
"""Most brackets, colons and commas in it: a bound on its tokens and merges. M2's has 1 million,
and would have 2 million in the newer spelling of merges."""
MAX_TOKEN_ID: Final = 2**22 - 1
"""Largest id of a token: `tokenizers` takes memory for every id up to it."""
MAX_ADDED_TOKENS: Final = 100_000
"""Most added tokens; we look for each of them in all plain text."""

_MINIMAX_VOCABULARY = 200_000
_REPLACEMENT = "\ufffd"
_WINDOW = 8
_LONGEST_CHARACTER = 4  # bytes


@dataclass(frozen=True, slots=True)
class Control:
    """Special token that the format itself writes."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Ids:
    """Ids that an answer was sampled as, in place of its text."""

    ids: tuple[int, ...]
    num_dropped: int = 0
    """1 where these are the answer after a thought that is left out"""
    num_straddling: int = 0
    """1 where the id before them held the end of that thought and the start of the answer"""


Segment = str | Control | Ids


def join_segments(segments: Iterable[Segment]) -> str:
    return "".join(str(segment) for segment in segments)


class Tokenizer:
    """Tokenizer of a checkpoint. Ids beyond its vocabulary (padding rows) decode to nothing."""

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._plain: tokenizers.Tokenizer | None = None
        added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
        # An empty alternation would match everywhere; `(?!)` matches nowhere.
        self._added = re.compile("|".join(map(re.escape, added)) or "(?!)")
        self.special_tokens = dict(special_tokens or {})
        """Texts of the special tokens that tokenizer_config.json names, such as bos_token"""
        self.eos_token_ids = tuple(eos_token_ids)
        """Ids that end a turn: first those of generation_config.json"""

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """Read tokenizer.json, and the files that name its special tokens, from a checkpoint."""
        folder = Path(folder)
        tokenizer = _read_tokenizer(folder / "tokenizer.json")
        _warn_if_wrong_minimax(tokenizer, folder / "tokenizer.json")
        special_tokens = read_special_tokens(read_json_if_present(folder / "tokenizer_config.json"))
        ids = _read_eos_token_ids(folder / "generation_config.json")
        by_name = tokenizer.token_to_id(special_tokens.get("eos_token", ""))
        if by_name is not None:
            ids.append(by_name)
        return cls(
            tokenizer, special_tokens=special_tokens, eos_token_ids=tuple(dict.fromkeys(ids))
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; a model's embedding may have more rows."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        """Id that begins a text; None if the tokenizer names none."""
        return self.token_id(self.special_tokens.get("bos_token", ""))

    def token_id(self, token: str) -> int | None:
        """Return the id of exactly this token, or None."""
        return self._tokenizer.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        """Return a token as the vocabulary spells it; None beyond the vocabulary."""
        return self._tokenizer.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to a text; a token may hold part of a character."""
        token = self.token(token_id)
        if token is None:
            return b""
        text = self.decode([token_id])
        if _REPLACEMENT not in text or _REPLACEMENT in token:
            return text.encode()
        if re.fullmatch("<0x[0-9A-F]{2}>", token):  # a byte of a vocabulary that falls back to them
            return bytes([int(token[3:5], 16)])
        known = _byte_of_char()
        if all(char in known for char in token):
            return bytes(known[char] for char in token)
        return text.encode()

    def to_json(self) -> str:
        """Return the whole tokenizer as tokenizer.json has it."""
        return self._tokenizer.to_str()

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Encode text in which special tokens are recognised.

        add_special_tokens  add those that the tokenizer puts around any text, such as a BOS token
        """
        return _encode(self._tokenizer, text, add_special_tokens=add_special_tokens)

    def encode_plain(self, text: str) -> list[int]:
        """Encode text in which the characters of a special token are ordinary characters."""
        if not self._added.search(text):
            return self.encode(text)
        if self._plain is None:
            definition = json.loads(self._tokenizer.to_str())
            definition |= {"added_tokens": [], "post_processor": None}
            self._plain = tokenizers.Tokenizer.from_str(json.dumps(definition))
        return _encode(self._plain, text)

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Encode a prompt; a control token that the vocabulary lacks is encoded as plain text."""
        ids: list[int] = []
        text: list[str] = []
        for segment in segments:
            if isinstance(segment, Ids):
                ids += self.encode_plain("".join(text))
                ids += segment.ids
                text.clear()
                continue
            token_id = self.token_id(segment.text) if isinstance(segment, Control) else None
            if token_id is None:
                text.append(str(segment))
                continue
            ids += self.encode_plain("".join(text))
            ids.append(token_id)
            text.clear()
        return ids + self.encode_plain("".join(text))

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of ids."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def detokenizer(self, *, skip_special_tokens: bool = False) -> "Detokenizer":
        """Return a streaming decoder for one sequence."""
        return Detokenizer(self, skip_special_tokens=skip_special_tokens)


def _encode(
    tokenizer: tokenizers.Tokenizer, text: str, *, add_special_tokens: bool = False
) -> list[int]:
    try:
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
    except TypeError:  # the library's error for text that UTF-8 cannot hold
        raise ValueError("the text holds half of a surrogate pair, it must be Unicode") from None


class Detokenizer:
    """Decoder of ids as they come; the pieces join to the decode of all ids.

    A piece never ends inside a UTF-8 character: the replacement mark that a cut character decodes
    to is held back until the next ids settle it, or `flush` ends the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []  # a window, enough to decode the next id as among all ids
        self._sent = ""  # the part of the window's text that is out
        self._previous = ""  # the window's text when it last ended in a mark

    @property
    def is_open(self) -> bool:
        """True inside a character, whose first bytes came and whose last are still to come."""
        return self._decode() != self._sent

    def feed(self, ids: Iterable[int]) -> str:
        """Return the text that these ids settle."""
        pieces = []
        for token_id in ids:
            self._ids.append(token_id)
            text = self._decode()
            if text.endswith(_REPLACEMENT):
                pieces.append(self._send(text[:-1]))
                self._shorten_open_end(text)
            else:
                pieces.append(self._send(text))
                if len(self._ids) > 2 * _WINDOW:
                    del self._ids[:-_WINDOW]
                    self._sent = self._decode()
        return "".join(pieces)

    def flush(self) -> str:
        """Return the text held back; a character that never became whole is a replacement mark."""
        return self._send(self._decode())

    def _shorten_open_end(self, text: str) -> None:
        """Shorten a window whose last character may be unfinished: its text ends in a mark.

        The bytes that are still open are three at most, so they are within a tail of the ids whose
        text is longer than that; any earlier byte decodes to the same marks with and without what
        comes next. Ids without a text could make such a tail long, and are left out.
        """
        if self._previous == text and not self._decode_ids(self._ids[-1:]):
            self._ids.pop()
        self._previous = text
        if len(self._ids) <= 2 * _WINDOW:
            return
        tail = self._ids[-_WINDOW:]
        open_text = self._decode_ids(tail)
        if len(open_text) > _LONGEST_CHARACTER and open_text.endswith(_REPLACEMENT):
            self._ids, self._sent, self._previous = tail, open_text[:-1], open_text

    def _decode(self) -> str:
        return self._decode_ids(self._ids)

    def _decode_ids(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)

    def _send(self, text: str) -> str:
        piece = text[len(self._sent) :]
        if piece:
            self._sent = text
        return piece


@cache
def _byte_of_char() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2): printable
    characters of Latin-1 are themselves, the other bytes follow from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    """Read a tokenizer.json whose size, ids and added tokens are within bounds."""
    if not path.is_file():
        raise ValueError(f"{path.parent} has no tokenizer.json, put the checkpoint's own there")
    with path.open("rb") as file:
        text = file.read(MAX_TOKENIZER_BYTES + 1)
    if len(text) > MAX_TOKENIZER_BYTES:
        raise ValueError(f"{path} has more than {MAX_TOKENIZER_BYTES:,} bytes, none is that large")
    if sum(text.count(mark) for mark in b"{[:,") > MAX_TOKENIZER_MARKS:
        raise ValueError(f"{path} has more than {MAX_TOKENIZER_MARKS:,} values, none is that large")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(text)
    except Exception as error:  # the library raises a bare Exception for a bad file
        reason = str(error).removeprefix("Cannot instantiate Tokenizer from buffer: ")
        raise ValueError(f"{path} is not a readable tokenizer: {reason}") from None
    num_added = len(tokenizer.get_added_tokens_decoder())
    if num_added > MAX_ADDED_TOKENS:
        raise ValueError(f"{path} has {num_added:,} added tokens, at most {MAX_ADDED_TOKENS:,} fit")
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest > MAX_TOKEN_ID:
        raise ValueError(f"{path} has a token with the id {largest}, at most {MAX_TOKEN_ID} fits")
    return tokenizer


def _read_eos_token_ids(path: Path) -> list[int]:
    """Read the ids that end a turn from a generation_config.json, if there is one."""
    found = read_json_if_present(path).get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    for token_id in ids:
        if type(token_id) is not int or not 0 <= token_id <= MAX_TOKEN_ID:
            raise ValueError(
                f"eos_token_id in {path} is {shown(found)}, it must be a token's id or a list of "
                f"ids from 0 to {MAX_TOKEN_ID}"
            )
    return list(ids)


def read_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Read bos_token, eos_token and so on: text, or an object with the text in `content`."""
    tokens = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _warn_if_wrong_minimax(tokenizer: tokenizers.Tokenizer, path: Path) -> None:
    """Warn of a MiniMax vocabulary rebuilt from its merges in one of two subtly wrong ways."""
    if tokenizer.get_vocab_size(with_added_tokens=False) != _MINIMAX_VOCABULARY:
        return
    if tokenizer.id_to_token(ord("A")) != "A":
        _logger.warning(
            "%s has MiniMax's size but not its byte order (id 65 is %r, it must be 'A'), "
            "prompts will be nonsense to the model, use the checkpoint's own tokenizer.json",
            path,
            tokenizer.id_to_token(ord("A")),
        )
    split = tokenizer.pre_tokenizer
    pieces = [piece for piece, _ in split.pre_tokenize_str("HelloWorld 12345")] if split else []
    if pieces != ["Hello", "World", "Ġ", "123", "45"]:
        _logger.warning(
            "%s has MiniMax's size but splits text by another pattern (it must part words at "
            "inner capitals and digits by three), use the checkpoint's own tokenizer.json",
            path,
        )
