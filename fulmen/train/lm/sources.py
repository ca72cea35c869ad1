"""Sources: documents by index, from rules, text files, JSONL and hub data sets.

A document is found by its index, encoded only when it is drawn, and known by a key: its text, or
its prompt where it has one. The key decides, by a hash and so for ever, whether a document is held
out for probes, and the n-gram check reads it.
"""

import json
import mmap
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal

from fulmen.chat import Message
from fulmen.files import shorten
from fulmen.train.lm.examples import Coder, Example
from fulmen.train.lm.procedural import GENERATORS, Problem, make_problem

_LONGEST_LINE: Final = 64 * 2**20
"""Most bytes of one line of JSONL"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """One thing to learn, and where its documents come from."""

    generator: str | None = None
    """Rule that makes problems: copy, spell, reverse, add, sub, mul, sort or countdown."""
    smallest: int = 1
    """Smallest size of a generator's problem: letters, digits or numbers."""
    largest: int = 4
    """Largest size of a generator's problem."""
    style: Literal["chat", "plain"] = "chat"
    """Problems and pairs become conversations, or plain text without a format."""
    files: tuple[Path, ...] = ()
    """Text files (.txt, .md) and JSONL; of a folder all of those in it."""
    block_bytes: int = 65_536
    """Text files are cut at ends of lines into documents of about this size."""
    dataset: str | None = None
    """Data set on the Hugging Face hub, read by the library datasets."""
    subset: str | None = None
    """Configuration of that data set."""
    split: str = "train"
    """Split of that data set."""

    def __post_init__(self) -> None:
        given = [name for name in ("generator", "files", "dataset") if getattr(self, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(f"generator, files or dataset must be given, found {found}")
        if self.generator is not None and self.generator not in GENERATORS:
            raise ValueError(
                f"generator is {shorten(self.generator, 40)}, it must be one of "
                f"{', '.join(GENERATORS)}"
            )
        if not 1 <= self.smallest <= self.largest <= 1000:
            raise ValueError(
                f"smallest and largest are {self.smallest} and {self.largest}, they must go from 1 "
                "up to at most 1000"
            )
        if not 256 <= self.block_bytes <= 2**30:
            raise ValueError(f"block_bytes is {self.block_bytes}, it must be from 256 to 2^30")


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a source: a text, a problem, a prompt with its answer, or a conversation."""

    key: str
    """Text by which it is held out: what is asked, or all of a text"""
    encode: Callable[[Coder], list[Example]]
    problem: Problem | None = None
    """The problem, where its answer can be checked"""
    said: str = ""
    """The answers, which are compared with evaluation sets too"""


class Source(ABC):
    """Documents by index."""

    num_documents: int | None
    """Number of documents; None means no end"""

    @abstractmethod
    def document(self, index: int) -> Document:
        """Return the document at an index; ValueError for one that cannot be read."""


class Procedural(Source):
    """Problems of one generator."""

    num_documents = None

    def __init__(self, config: TaskConfig, seed: int) -> None:
        self._config = config
        self._seed = seed

    def document(self, index: int) -> Document:
        """Return the problem of an index."""
        config = self._config
        assert config.generator is not None
        problem = make_problem(config.generator, self._seed, index, config.smallest, config.largest)
        return Document(problem.prompt, encoder(problem, config.style), problem)


class TextFiles(Source):
    """Blocks of text files, each cut at the end of a line where there is one."""

    def __init__(self, files: Sequence[Path], block_bytes: int) -> None:
        self._blocks = [
            (file, start, stop) for file in files for start, stop in _blocks(file, block_bytes)
        ]
        self.num_documents = len(self._blocks)

    def document(self, index: int) -> Document:
        """Return the text of a block."""
        file, start, stop = self._blocks[index]
        with file.open("rb") as opened:
            opened.seek(start)
            data = opened.read(stop - start)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8: {error}") from None
        return Document(text, lambda coder: coder.text(text))


class JsonLines(Source):
    """Lines of JSONL files: a text, a prompt with a completion, or messages."""

    def __init__(self, files: Sequence[Path], style: Literal["chat", "plain"]) -> None:
        self._files = list(files)
        self._style: Literal["chat", "plain"] = style
        self._starts = [_line_starts(file) for file in files]
        self._ends = list(accumulate(len(starts) for starts in self._starts))
        self.num_documents = self._ends[-1] if self._ends else 0

    def document(self, index: int) -> Document:
        """Return the document of a line, empty lines not counted."""
        place = bisect_right(self._ends, index)
        number, start = self._starts[place][index - (self._ends[place - 1] if place else 0)]
        file = self._files[place]
        where = f"{file}, line {number}"
        with file.open("rb") as opened:
            opened.seek(start)
            line = opened.readline(_LONGEST_LINE + 1)
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"{where} has more than {_LONGEST_LINE:,} bytes")
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        return _document_of(row, where, self._style)


class Hub(Source):
    """Rows of a data set on the Hugging Face hub, as `datasets` reads them."""

    def __init__(self, config: TaskConfig) -> None:
        if find_spec("datasets") is None:
            raise ValueError(
                f"dataset is {config.dataset}, which needs the library datasets: `pip install "
                "datasets`; a JSONL file needs nothing"
            )
        from datasets import load_dataset

        self._name, self._style = str(config.dataset), config.style
        try:
            self._rows: Any = load_dataset(self._name, config.subset, split=config.split)
        except Exception as error:  # the library has errors of many kinds for what it cannot find
            said = str(error).strip() or type(error).__name__
            raise ValueError(
                f"dataset {self._name} cannot be read: {shorten(said.splitlines()[0])}"
            ) from error
        self.num_documents = len(self._rows)

    def document(self, index: int) -> Document:
        """Return the document of a row."""
        return _document_of(self._rows[index], f"{self._name}, row {index}", self._style)


def open_source(config: TaskConfig, seed: int) -> Source:
    """Return the source that a config names.

    Raises ValueError for a file that is missing, or a source without documents.
    """
    if config.generator is not None:
        return Procedural(config, seed)
    if config.dataset is not None:
        return Hub(config)
    files = [file for path in config.files for file in _files_of(path)]
    lines = [file for file in files if file.suffix in (".jsonl", ".json")]
    if lines and len(lines) != len(files):
        raise ValueError(
            f"files are of two kinds, {lines[0]} is JSONL and others are text: make two tasks of "
            "them"
        )
    found: Source = (
        JsonLines(files, config.style) if lines else TextFiles(files, config.block_bytes)
    )
    if not found.num_documents:
        raise ValueError(f"{', '.join(map(str, config.files))[:200]} has no documents, it is empty")
    return found


def is_held_out(key: str, share: float) -> bool:
    """Return whether a document is kept for probes: its key's hash decides, whatever the run."""
    digest = blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def encoder(problem: Problem, style: Literal["chat", "plain"]) -> Callable[[Coder], list[Example]]:
    """Return what encodes a problem: as a conversation whose thought is the trace, or as text."""
    if style == "plain":
        answer = f"{problem.trace}\n{problem.answer}" if problem.trace else problem.answer
        return lambda coder: coder.pair(f"{problem.prompt}\n", answer)
    messages = (
        Message("user", problem.prompt),
        Message("assistant", problem.answer, thinking=problem.trace or None),
    )
    return lambda coder: coder.conversation(messages)


def _document_of(row: object, where: str, style: Literal["chat", "plain"]) -> Document:
    """Return the document that an object holds: `text`, `prompt` and `completion`, or
    `messages`."""
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{where} is no object, it must have text, prompt and completion, or messages"
        )
    text, prompt = row.get("text"), row.get("prompt")
    answer = row.get("completion", row.get("answer"))
    if isinstance(text, str):
        return Document(text, _located(lambda coder: coder.text(text), where))
    if isinstance(prompt, str) and isinstance(answer, str):
        problem = Problem(prompt, "", answer)
        encode = encoder(problem, style)
        if style == "plain":  # as it stands, without a line between

            def encode(coder: Coder) -> list[Example]:
                return coder.pair(prompt, answer)

        return Document(prompt, _located(encode, where), problem, answer)
    messages, tools = row.get("messages"), row.get("tools") or ()
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise ValueError(
            f"{where} must have text, or prompt and completion, or messages, found "
            f"{shorten(', '.join(map(str, row)) or 'nothing', 80)}"
        )
    texts: dict[bool, list[str]] = {True: [], False: []}
    for one in messages:
        texts[one.get("role") == "assistant"].append(str(one.get("content")))
    return Document(
        "\n".join(texts[False]),
        _located(lambda coder: coder.conversation(messages, tools), where),
        said="\n".join(texts[True]),
    )


def _located(
    encode: Callable[[Coder], list[Example]], where: str
) -> Callable[[Coder], list[Example]]:
    """Return an encoder whose errors name the document."""

    def located(coder: Coder) -> list[Example]:
        try:
            return encode(coder)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    return located


def _files_of(path: Path) -> list[Path]:
    """Return a file, or those of a folder that can be read, by name."""
    if path.is_dir():
        kinds = (".txt", ".md", ".jsonl", ".json")
        return sorted(file for file in path.iterdir() if file.suffix in kinds)
    if not path.is_file():
        raise ValueError(f"{path} is missing, a file or a folder of text or JSONL is needed there")
    return [path]


def _blocks(file: Path, block_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of a file's blocks: each ends behind a line, or else behind a character."""
    size = file.stat().st_size
    if not size:
        return
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = 0
        while start < size:
            stop = min(start + block_bytes, size)
            if stop < size:
                line = data.rfind(b"\n", start, stop)
                if line >= start:
                    stop = line + 1
                else:
                    while stop > start + 1 and data[stop] & 0xC0 == 0x80:  # inside a character
                        stop -= 1
            yield start, stop
            start = stop


def _line_starts(file: Path) -> tuple[tuple[int, int], ...]:
    """Return the number and the start of each line that is not empty."""
    found: list[tuple[int, int]] = []
    start = 0
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if line.strip():
                found.append((number, start))
            start += len(line)
    return tuple(found)
