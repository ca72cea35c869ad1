"""N-gram check: a document that shares a run of words with an evaluation set is not trained on.

Words are compared in lower case, without marks; where no spaces part them, as in Chinese, Japanese
and Thai, each character is one. Texts of fewer words than a run are compared as whole documents, a
prompt together with its answer: a short answer alone, a label or a role says nothing about where a
document comes from.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from fulmen.train.lm.documents import (
    LONGEST_LINE,
    Document,
    document_of,
    numbered_lines,
    parsed_line,
    strings,
)
from fulmen.train.run_file import changed_fields

_UNSPACED: Final = (
    r"\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    r"\u0e01-\u0e3a\u0e40-\u0e4e"
)
"""Kana, Chinese characters and Thai: written without spaces, so each character is a word"""
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_MAX_NGRAMS: Final = 20_000_000
"""Most runs of words that are held; each takes some 60 bytes"""
_LEAST_WORDS: Final = 5
"""Words below which a whole document is like another one by chance"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckConfig:
    """Evaluation sets that training data must not contain."""

    files: tuple[Path, ...] = ()
    """JSONL or text files of evaluation sets."""
    num_words: int = 13
    """Words in a row that a document may not share with them."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_words <= 1000:
            raise ValueError(f"num_words is {self.num_words}, it must be from 1 to 1000")
        if "num_words" in changed_fields(self) and not self.files:
            raise ValueError(f"num_words is {self.num_words}, it needs files, there are none")


class NGrams:
    """Runs of words of some evaluation sets."""

    def __init__(self, documents: Iterable[Sequence[str]], num_words: int) -> None:
        """documents  texts of each one, such as a prompt and its answer"""
        self._num_words = num_words
        self._known: set[bytes] = set()
        for texts in documents:
            self._known.update(self._hashes(texts))
            if len(self._known) > _MAX_NGRAMS:
                raise ValueError(
                    f"the evaluation sets have more than {_MAX_NGRAMS:,} runs of {num_words} "
                    "words, check against fewer files"
                )

    @classmethod
    def of(cls, config: CheckConfig) -> "NGrams | None":
        """Read evaluation sets; None if there are none."""
        if not config.files:
            return None
        documents = (texts for file in config.files for texts in _documents(file))
        return cls(documents, config.num_words)

    def has_any_of(self, *texts: str) -> bool:
        """Return whether the texts of a document share a run of words with the sets, or are
        together a whole document of them."""
        return any(each in self._known for each in self._hashes(texts))

    def has(self, document: Document) -> bool:
        """Return whether a document shares a run of words with the sets, or is a whole document of
        them, with its thoughts or without."""
        return any(self.has_any_of(*texts) for texts in _texts_of(document))

    def _hashes(self, texts: Sequence[str]) -> Iterator[bytes]:
        """Yield the hash of each run of words, and of all words together."""
        whole: list[str] = []
        for text in texts:
            words = _WORD.findall(text.lower())
            whole += words
            for start in range(len(words) - self._num_words + 1):
                yield _hash(words[start : start + self._num_words])
        if len(whole) >= min(_LEAST_WORDS, self._num_words):
            yield _hash(whole)


def _hash(words: Sequence[str]) -> bytes:
    return blake2b(" ".join(words).encode(errors="surrogatepass"), digest_size=8).digest()


def _documents(file: Path) -> Iterator[tuple[str, ...]]:
    """Yield the texts of each document of an evaluation set: of a line of JSONL, or a whole file.

    Every string of a line counts, names and roles among them; a line that could be learnt from is
    compared as its prompt and answer too.
    """
    if not file.is_file():
        raise ValueError(f"{file} is missing, an evaluation set is needed there")
    if file.suffix not in (".jsonl", ".json"):
        with file.open("rb") as opened:
            data = opened.read(LONGEST_LINE + 1)
        if len(data) > LONGEST_LINE:
            raise ValueError(f"{file} has more than {LONGEST_LINE:,} bytes, cut it into parts")
        try:
            yield (data.decode(),)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8: {error}") from None
        return
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        row = parsed_line(line, where)
        yield tuple(strings(row))
        with suppress(ValueError):  # a line of another shape has been compared as all its strings
            yield from _texts_of(document_of(row, where, "plain"))


def _texts_of(document: Document) -> Iterator[tuple[str, ...]]:
    """Yield the texts of a document, first without its thoughts: either may be a whole document of
    an evaluation set."""
    yield document.key, document.said
    if document.thoughts:
        yield document.key, document.thoughts, document.said
