"""N-gram check: a document that shares a run of words with an evaluation set is not trained on.

Words are compared in lower case, without marks. A text of fewer words than a run is compared whole.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Final

_WORD: Final = re.compile(r"\w+")
_MAX_NGRAMS: Final = 20_000_000
"""Most runs of words that are held; each takes some 60 bytes"""


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


class NGrams:
    """Runs of words of some evaluation sets."""

    def __init__(self, texts: Iterable[str], num_words: int) -> None:
        self._num_words = num_words
        self._known: set[bytes] = set()
        for text in texts:
            self._known.update(self._runs(text))
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
        texts = (text for file in config.files for text in _texts(file))
        return cls(texts, config.num_words)

    def has_any_of(self, text: str) -> bool:
        """Return whether a text shares a run of words with the sets."""
        return any(run in self._known for run in self._runs(text))

    def _runs(self, text: str) -> Iterator[bytes]:
        words = _WORD.findall(text.lower())
        if not words:
            return
        last = max(len(words) - self._num_words, 0)
        for start in range(last + 1):
            run = " ".join(islice(words, start, start + self._num_words))
            yield blake2b(run.encode(errors="surrogatepass"), digest_size=8).digest()


def _texts(file: Path) -> Iterator[str]:
    """Yield the texts of an evaluation set: every string in a line of JSONL, or a whole file."""
    if not file.is_file():
        raise ValueError(f"{file} is missing, an evaluation set is needed there")
    if file.suffix not in (".jsonl", ".json"):
        try:
            yield file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8: {error}") from None
        return
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield from _strings(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, line {number} is not JSON: {error}") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for each in value.values() for text in _strings(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in _strings(each))
