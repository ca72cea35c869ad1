"""Agents that a lead has begun: what each is, what it reported, and what the journal says of it."""

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from fulmen.agent.run import locked
from fulmen.agent.team.config import AgentKind
from fulmen.agent.team.mailbox import Mailbox
from fulmen.agent.trajectory import EndReason, Trajectory
from fulmen.agent.work import Work
from fulmen.chat import ToolCall
from fulmen.sampling import SamplingParams

_WHY: Final[Mapping[EndReason, str]] = {
    "turns": "it ended after as many answers as its kind may give",
    "tokens": "it ended at the token limit",
    "seconds": "it ended at the time limit",
    "loop": "it ended because it did the same again and again",
    "context": "it ended because its context was full",
    "interrupted": "it was stopped",
    "error": "it failed",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Outcome of one task of an agent."""

    agent: str
    text: str
    """Its last answer; else what it failed at"""
    reason: EndReason
    num_steps: int = 0
    """Answers of the agent so far, all tasks together"""
    num_new_tokens: int = 0

    @property
    def is_done(self) -> bool:
        """True if the agent came to the end of its task."""
        return self.reason == "done"

    @property
    def told(self) -> str:
        """The report as a lead reads it."""
        spent = f"{self.num_steps} steps, {self.num_new_tokens:,} tokens"
        why = "" if self.is_done else f"{_WHY[self.reason]}; "
        return f"{self.text}\n\n({self.agent}: {why}{spent})".lstrip("\n")


@dataclass(slots=True)
class Member:
    """One agent of a team; its name is never that of another one."""

    name: str
    kind: AgentKind
    run: str
    """Name of its run"""
    folder: Path
    box: Mailbox
    base: str | None = None
    """Commit that its copy of the lead's folder began as; None if it has none"""
    is_fork: bool = False
    """Its folder is a copy of another one's, without git"""
    calls: list[str | None] = field(default_factory=list)
    """Calls of the lead that gave it its tasks, the last one last"""
    in_background: bool = False
    """Its report comes as a message"""
    is_over: bool = False
    """It was stopped, and can be given no task any more"""
    params: SamplingParams | None = None
    """Sampling of its answers, if not the lead's"""
    report: Report | None = None
    """Report on its last task, once that ended"""
    task: "asyncio.Task[Report] | None" = None
    """Its work, while it goes on"""
    work: Work | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_working(self) -> bool:
        """True while it works on a task."""
        return self.task is not None


def key_of(trajectory: Trajectory, number: int, call: ToolCall) -> str:
    """Return a name for a call of the last step, the same when it is made again after a crash."""
    return _key(len(trajectory.steps) - 1, number, call)


def stands(trajectory: Trajectory, key: str) -> bool:
    """Return whether a call is still part of a run: it was not taken back."""
    place, number = (int(part) for part in key.split(".")[:2])
    if place >= len(trajectory.steps):
        return False
    calls = trajectory.steps[place].answer.message.tool_calls
    return number < len(calls) and _key(place, number, calls[number]) == key


def _key(place: int, number: int, call: ToolCall) -> str:
    text = json.dumps([call.name, call.arguments], sort_keys=True, default=str)
    return f"{place}.{number}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Journal:
    """A team's records on disk, one a line: each counts once it is there. One process has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self._lock: BinaryIO | None = None

    def open(self) -> list[dict[str, Any]]:
        """Take the journal; return what it says. Raises ValueError if another process has it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = locked(self._folder / "lock")
        if self._lock is None:
            raise ValueError(f"the team in {self._folder} is at work in another process")
        path = self._folder / "team.jsonl"
        records, num_bytes = [], 0
        for line, record in _read(path):
            records.append(record)
            num_bytes += len(line)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(num_bytes)  # a line that a crash cut off
        self._file.seek(num_bytes)
        return records

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep a record. Raises OSError if it cannot be written."""
        assert self._file is not None, "it is not open"
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        self._file.write(b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let others have it."""
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = self._lock = None


def _read(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield line, json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} cannot be read: {error}") from None
