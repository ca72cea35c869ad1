"""Folder of an evaluation: its settings, and a line for each pass, on disk before the next begins.

    FOLDER/settings.json  what every pass depends on; passes under other settings are refused
    FOLDER/passes.jsonl   a line a pass with its whole trajectory, in the order in which they ended
    FOLDER/report.html    for people (page.py)

A process that is killed loses the passes that were under way, and leaves at most a torn last line,
which is dropped. In memory a pass is its numbers; its trajectory is read where it is wanted.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, get_args

from fulmen.agent import Trajectory, read_trajectory, trajectory_record
from fulmen.files import naming, read_json, write_text

try:
    import fcntl
except ImportError:  # a system without file locks: nobody is kept out
    fcntl = None  # type: ignore[assignment]

Failure = Literal["wrong", "no answer", "limit", "loop", "error"]
"""Reason why a pass did not succeed: another answer than the right one, none in the form that was
asked for, an end by a limit, the same again and again, or an error of the model, the sandbox or the
grader, which is no score"""
FAILURES: Final = get_args(Failure)
_FORMAT: Final = 1
_SETTINGS: Final = "settings.json"
_PASSES: Final = "passes.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One play of a task, in numbers."""

    environment: str
    index: int
    """Task of the environment"""
    sample: int
    """Number of the play among those of the task"""
    prompt: str
    """Digest of the task: its messages, its key, its known answers"""
    seed: int
    score: float | None
    """From 0 to 1; None after an error"""
    parts: Mapping[str, float]
    """Named parts of the score"""
    failure: Failure | None
    """None if the score is 1"""
    error: str | None
    """Sentence about an error"""
    answer: str | None
    """Answer in one spelling, where the task knows one"""
    num_turns: int
    num_prompt_tokens: int
    num_new_tokens: int
    num_thinking_tokens: int
    seconds: float

    @property
    def key(self) -> tuple[str, int, int]:
        """Environment, task and sample."""
        return self.environment, self.index, self.sample


class Results:
    """Passes of one evaluation."""

    def __init__(self, path: Path, settings: Mapping[str, Any], about: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = settings
        """Values that every pass depends on"""
        self.about = about
        """Name of the model, and when it began"""
        self._passes: dict[tuple[str, int, int], Pass] = {}
        self._places: dict[tuple[str, int, int], int] = {}
        """Bytes before the line of each pass"""
        self._num_bytes = 0
        """Bytes of all whole lines that were read"""
        self._log: BinaryIO | None = None

    @property
    def passes(self) -> list[Pass]:
        """All passes, in the order of environments, tasks and samples."""
        return [self._passes[key] for key in sorted(self._passes)]

    def get(self, environment: str, index: int, sample: int) -> Pass | None:
        """Return a pass; None if it is yet to be played."""
        return self._passes.get((environment, index, sample))

    def trajectory(self, played: Pass) -> Trajectory:
        """Read the trajectory of a pass."""
        with (self.path / _PASSES).open("rb") as file:
            file.seek(self._places[played.key])
            return read_trajectory(json.loads(file.readline())["trajectory"])

    def append(self, played: Pass, trajectory: Trajectory) -> None:
        """Keep a pass: it is on disk when this returns. One with the same key gives way."""
        assert self._log is not None, "these results are open for reading only"
        record = {**asdict(played), "trajectory": trajectory_record(trajectory)}
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        place = self._log.tell()
        try:
            self._log.write(line)
            self._log.flush()
            os.fsync(self._log.fileno())
        except OSError as error:
            raise naming(error, self.path / _PASSES) from error
        self._passes[played.key], self._places[played.key] = played, place

    def _load(self) -> None:
        """Read the passes, all lines but a torn last one."""
        path, place = self.path / _PASSES, 0
        if not path.exists():
            return
        with path.open("rb") as file:
            number = 0
            while (line := file.readline()).endswith(b"\n"):
                number += 1
                try:
                    record = json.loads(line)
                    del record["trajectory"]
                    played = _read(record)
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    said = f"{path}, line {number} holds no pass: {error}"
                    raise ValueError(said) from None
                self._passes[played.key], self._places[played.key] = played, place
                place += len(line)
                self._num_bytes = place


def read_results(path: Path) -> Results:
    """Read the folder of an evaluation. Raises ValueError if it holds none."""
    if not (path / _SETTINGS).is_file():
        raise ValueError(f"{path} holds no evaluation, it has no {_SETTINGS}")
    written = read_json(path / _SETTINGS)
    settings, about = written.get("settings"), written.get("about")
    if written.get("format") != _FORMAT or not isinstance(settings, dict):
        raise ValueError(f"{path / _SETTINGS} does not hold settings that fulmen eval wrote")
    results = Results(path, settings, about if isinstance(about, dict) else {})
    results._load()
    return results


@contextmanager
def open_results(
    path: Path, settings: Mapping[str, Any], about: Mapping[str, Any]
) -> Iterator[Results]:
    """Open the folder of an evaluation to add passes to it; make it if there is none.

    settings  what passes depend on. Raises ValueError where there are passes under others, where
              another process adds passes, and for a folder of something else
    about     what is told of the model to people; kept as it was at the beginning
    """
    settings = json.loads(json.dumps(settings))
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor, path)
        is_new = not (path / _SETTINGS).exists()
        if is_new and any(not one.name.startswith(".") for one in path.iterdir()):
            raise ValueError(f"{path} holds something else, another folder is needed")
        if is_new or not read_results(path).passes:  # nothing depends on settings so far
            written = {"format": _FORMAT, "settings": settings, "about": dict(about)}
            write_text(path / _SETTINGS, json.dumps(written, indent=1) + "\n")
        results = read_results(path)
        for name in {**results.settings, **settings}:
            was, now = results.settings.get(name), settings.get(name)
            if was != now:
                raise ValueError(
                    f"{path} has passes with {name} {json.dumps(was)}, not {json.dumps(now)}; "
                    "another folder is needed"
                )
        with (path / _PASSES).open("ab") as log:
            log.truncate(results._num_bytes)
            log.seek(0, os.SEEK_END)
            results._log = log
            try:
                yield results
            finally:
                results._log = None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{path} is in use by another process") from None


def _read(record: Mapping[str, Any]) -> Pass:
    """Return the pass of a record. Raises ValueError or TypeError for a record of none."""
    played = Pass(**record)
    kinds = {"environment": str, "prompt": str, "index": int, "sample": int, "num_new_tokens": int}
    for name, kind in kinds.items():
        if type(getattr(played, name)) is not kind:
            raise ValueError(f"its {name} is no {kind.__name__}")
    if (played.failure is not None and played.failure not in FAILURES) or (
        (played.score is None) != (played.failure == "error")
    ):
        raise ValueError(f"its score is {played.score}, its failure {played.failure}")
    if played.score is not None and not is_score(played.score):
        raise ValueError(f"its score is {played.score}")
    return played


def is_score(value: float) -> bool:
    """Return whether a number is the value of a score."""
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1
