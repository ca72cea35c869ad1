"""Sources: documents by index, from rules, environments, text files, JSONL and hub data sets.

A document is found by its index and encoded only when it is drawn. Files are read through once
when they are opened: so what is no document is known before a run begins, and a run that goes on
knows if they have changed.
"""

import codecs
import mmap
import random
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal

from fulmen.chat import Message
from fulmen.envs import demonstrated, load_environment, tools_of
from fulmen.files import shorten
from fulmen.train.lm.documents import (
    LONGEST_LINE,
    Document,
    document_of,
    encoder,
    located,
    numbered_lines,
    parsed_line,
    strings,
)
from fulmen.train.lm.examples import Coder, Example
from fulmen.train.lm.procedural import GENERATORS, Problem, make_problem
from fulmen.train.run_file import changed_fields

_SAMPLE_BYTES: Final = 65_536
"""Bytes of a block by which its tokens are counted"""
_DRAWN_FROM: Final = 2**40
"""Tasks of an endless environment that conversations draw from"""
_BEFORE_BYTES: Final = 64
"""Bytes before a block in which the last token before it is looked for"""


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
    environment: str | None = None
    """Environment whose tasks are demonstrated: its known answers are learnt, calls included."""
    questions: int = 1
    """Most questions of an environment that one conversation asks, one after another: 2 up to so
    many, where it is not 1."""
    cut_thoughts: float = 0.0
    """Share of an environment's questions whose thought is cut at a random token, as a thinking
    budget cuts it; of these only what is answered then is learnt."""
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
        given = [name for name in _KINDS if getattr(self, name) not in (None, ())]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(
                f"generator, environment, files or dataset must be given, found {found}"
            )
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
        if not 1 <= self.questions <= 1000:
            raise ValueError(f"questions is {self.questions}, it must be from 1 to 1000")
        if not 0 <= self.cut_thoughts <= 1:
            raise ValueError(f"cut_thoughts is {self.cut_thoughts}, it must be from 0 to 1")
        if self.cut_thoughts and self.questions > 1:
            raise ValueError(
                f"cut_thoughts is {self.cut_thoughts}, it needs single questions, questions is "
                f"{self.questions}"
            )
        if not 256 <= self.block_bytes <= 2**30:
            raise ValueError(f"block_bytes is {self.block_bytes}, it must be from 256 to 2^30")
        if self.environment is not None and self.style != "chat":
            raise ValueError(f"style is {self.style}, an environment's tasks are conversations")
        for name, value in changed_fields(self).items():
            owner = _OWNERS.get(name)
            if owner not in (None, *given):
                raise ValueError(f"{name} is {value}, it needs {owner}, found {given[0]}")


_KINDS: Final = ("generator", "environment", "files", "dataset")
"""Fields that say where documents come from"""
_OWNERS: Final[Mapping[str, str]] = {
    "smallest": "generator",
    "largest": "generator",
    "questions": "environment",
    "cut_thoughts": "environment",
    "block_bytes": "files",
    "subset": "dataset",
    "split": "dataset",
}
"""Field without which another one means nothing"""


class Source(ABC):
    """Documents by index."""

    num_documents: int | None
    """Number of documents; None means no end"""
    fingerprint: str = ""
    """Hash of all documents, by which a change is seen; empty for those that a config makes"""

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
        encode = encoder(problem, config.style)
        return Document(problem.prompt, encode, problem, problem.answer, problem.trace)


class Demonstrations(Source):
    """Tasks of an environment, done by their known answers."""

    def __init__(self, name: str, seed: int, cut_thoughts: float = 0.0) -> None:
        """cut_thoughts: share of questions whose thought is cut

        Raises ValueError for an environment whose tasks have no known answers.
        """
        self._name, self._seed, self._cut_thoughts = name, seed, cut_thoughts
        self._environment = load_environment(name, seed=seed)
        self.num_documents = count = self._environment.num_tasks
        if count is not None:
            self.fingerprint = _hash_of(self._environment.task(i).key for i in range(count))
        if not self._environment.task(0).known_answers:
            raise ValueError(f"environment is {name}, whose tasks have no known answers to learn")

    def document(self, index: int) -> Document:
        """Return the task of an index as a conversation."""
        task = self._environment.task(index)
        messages = demonstrated(task)
        problem = None
        if task.is_question and len(messages) == 2:
            problem = Problem(messages[0].content, "", messages[1].content)
        tools = tools_of(task)
        is_question = task.is_question and len(task.known_answers) == 1

        def encode(coder: Coder) -> list[Example]:
            examples = coder.conversation(messages, tools)
            draw = random.Random(f"cut {self._seed} {index}")
            is_cut = is_question and draw.random() < self._cut_thoughts
            return [coder.cut(one, draw) for one in examples] if is_cut else examples

        return Document(
            task.key,
            located(encode, f"{self._name}, {index}"),
            problem,
            "\n".join(one.content for one in task.known_answers),
            "\n".join(strings([[one.thinking, _given(one)] for one in task.known_answers])),
        )


class Conversations(Source):
    """Questions of an environment, asked one after another and answered by their known answers."""

    def __init__(self, name: str, seed: int, most: int) -> None:
        """most: most questions of a conversation; raises ValueError for an environment whose tasks
        are no questions, or have no known answers."""
        self._name, self._seed, self._most = name, seed, most
        self._tasks = load_environment(name, seed=seed)
        first = self._tasks.task(0)
        if not (first.is_question and first.known_answers):
            raise ValueError(
                f"questions is {most}, which needs tasks that are questions with known answers, "
                f"{name} has others"
            )
        count = self._tasks.num_tasks
        self.num_documents = None
        self._order: list[int] | None = None
        if count is not None:
            if count < most:
                raise ValueError(f"questions is {most}, {name} has only {count}")
            self.num_documents = count // most
            self.fingerprint = _hash_of(self._tasks.task(i).key for i in range(count))
            self._order = random.Random(seed).sample(range(count), count)

    def document(self, index: int) -> Document:
        """Return the conversation of an index: questions of a finite environment stand in one at
        most, those of an endless one are drawn."""
        draw = random.Random(f"{self._seed} {index}")
        count = draw.randint(2, self._most)
        if self._order is None:
            indices = [draw.randrange(_DRAWN_FROM) for _ in range(count)]
        else:
            indices = self._order[index * self._most :][:count]
        tasks = [self._tasks.task(each) for each in indices]
        messages = [one for task in tasks for one in demonstrated(task)]
        is_led = messages[0].role == "system"
        asked = [*messages[:is_led], *(one for one in messages if one.role != "system")]
        answers = [one for task in tasks for one in task.known_answers]
        return Document(
            "\n".join(task.key for task in tasks),
            located(lambda coder: coder.conversation(asked), f"{self._name}, {index}"),
            said="\n".join(one.content for one in answers),
            thoughts="\n".join(one.thinking or "" for one in answers),
        )


def _given(message: Message) -> list[object]:
    """Return the arguments of a message's calls."""
    return [call.arguments for call in message.tool_calls]


class TextFiles(Source):
    """Blocks of text files, each cut at the end of a line where there is one.

    A block goes on from the one before it: only a file's first one begins a text, and only its last
    one ends it.
    """

    def __init__(self, files: Sequence[Path], block_bytes: int) -> None:
        """Raises ValueError for a file that is not UTF-8."""
        self._block_bytes = block_bytes
        digests = [_text_hash(file, *_stamp(file)) for file in files]
        self.fingerprint = _hash_of([str(block_bytes), *digests])
        self._blocks = [
            (file, start, stop, stop == size)
            for file in files
            for size in (file.stat().st_size,)
            for start, stop in _blocks(file, block_bytes)
        ]
        self.num_documents = len(self._blocks)

    def document(self, index: int) -> Document:
        """Return the text of a block."""
        file, start, stop, is_last = self._blocks[index]
        first = max(start - _BEFORE_BYTES, 0)
        with file.open("rb") as opened:
            opened.seek(first)
            data = opened.read(stop - first)
        before = data[: start - first].decode(errors="ignore")  # may begin inside a character
        try:
            text = data[start - first :].decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8: {error}") from None
        return Document(text, lambda coder: coder.text(text, before=before, has_end=is_last))

    def block_tokens(self, coder: Coder) -> int | None:
        """Return about how many tokens a block has, None where no file is cut into blocks."""
        found = next((block for block in self._blocks if not block[3]), None)
        if found is None:
            return None
        file, start, stop, _ = found
        with file.open("rb") as opened:
            opened.seek(start)
            data = opened.read(min(stop - start, _SAMPLE_BYTES))
        num_tokens = len(coder.tokenizer.encode_plain(data.decode(errors="ignore")))
        return self._block_bytes * num_tokens // len(data)


class JsonLines(Source):
    """Lines of JSONL files: a text, a prompt with a completion, or messages."""

    def __init__(self, files: Sequence[Path], style: Literal["chat", "plain"]) -> None:
        """Raises ValueError for a line that is no document."""
        self._files = list(files)
        self._style: Literal["chat", "plain"] = style
        scanned = [_scan_lines(file, *_stamp(file)) for file in files]
        self.fingerprint = _hash_of(digest for digest, _ in scanned)
        self._starts = [starts for _, starts in scanned]
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
            line = opened.readline(LONGEST_LINE + 1)
        return document_of(parsed_line(line, where), where, self._style)


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
        self.fingerprint = str(getattr(self._rows, "_fingerprint", self.num_documents))

    def document(self, index: int) -> Document:
        """Return the document of a row."""
        return document_of(self._rows[index], f"{self._name}, row {index}", self._style)


def open_source(config: TaskConfig, seed: int) -> Source:
    """Return the source that a config names.

    Raises ValueError for a file that is missing or cannot be read as documents, or a source without
    any.
    """
    if config.generator is not None:
        return Procedural(config, seed)
    if config.environment is not None and config.questions > 1:
        return Conversations(config.environment, seed, config.questions)
    if config.environment is not None:
        return Demonstrations(config.environment, seed, config.cut_thoughts)
    if config.dataset is not None:
        return Hub(config)
    files = [file for path in config.files for file in _files_of(path)]
    lines = [file for file in files if file.suffix in (".jsonl", ".json")]
    if lines and len(lines) != len(files):
        raise ValueError(
            f"files are of two kinds, {lines[0]} is JSONL and others are text: make two tasks of "
            "them"
        )
    for name, needed, is_used in (
        ("style", "JSONL", bool(lines)),
        ("block_bytes", "text files", not lines),
    ):
        if files and not is_used and name in changed_fields(config):
            raise ValueError(f"{name} is {getattr(config, name)}, it needs {needed}, see files")
    found: Source = (
        JsonLines(files, config.style) if lines else TextFiles(files, config.block_bytes)
    )
    if not found.num_documents:
        raise ValueError(f"{', '.join(map(str, config.files))[:200]} has no documents, it is empty")
    return found


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


def _stamp(file: Path) -> tuple[int, int]:
    """Return the size of a file and when it was written, which change with what it holds."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=1024)
def _text_hash(file: Path, size: int, written: int) -> str:
    """Return the hash of a text; ValueError for one that is not UTF-8."""
    digest = blake2b(digest_size=16)
    decoder = codecs.getincrementaldecoder("utf-8")()
    with file.open("rb") as opened:
        try:
            while data := opened.read(2**20):
                digest.update(data)
                decoder.decode(data)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8: {error}") from None
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _scan_lines(file: Path, size: int, written: int) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return the hash of a JSONL file, and the number and the start of each line that is not empty;
    ValueError for one that is no document."""
    digest = blake2b(digest_size=16)
    found: list[tuple[int, int]] = []
    start = 0
    for number, line in numbered_lines(file):
        digest.update(line)
        if line.strip():
            where = f"{file}, line {number}"
            document_of(parsed_line(line, where), where, "plain")
            found.append((number, start))
        start += len(line)
    return digest.hexdigest(), tuple(found)


def _hash_of(digests: Iterable[str]) -> str:
    return blake2b(" ".join(digests).encode(), digest_size=16).hexdigest()
