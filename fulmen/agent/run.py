"""Runs of an agent on disk: what each was told to do, and everything that happened since.

    RUNS/NAME/run.json    folder, model, limits, and the run it was forked from; never changes
    RUNS/NAME/log.jsonl   one record a line, as they come (`trajectory.py`)
    RUNS/NAME/lock        held by the process that the run is going on in; its time says how long
    RUNS/NAME/outline.json  how far the log came, for lists; worth nothing if the log went on

A record counts once it is on disk, so a crash loses at most what was under way. A last line that
was cut off by a crash is dropped when the run is opened to go on. Nothing is ever taken out of a
log: a rewind is one more record.
"""

import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Self, cast, get_args

from fulmen.agent.trajectory import EndReason, Trajectory, apply, records_of
from fulmen.chat import Message, read_messages
from fulmen.files import read_json, shorten, user_folder, write_text

_FORMAT: Final = 1
_MAX_LINE_BYTES: Final = 64 * 2**20
"""A record: an answer of a million tokens takes some twenty megabytes"""
_OUTLINE: Final = "outline.json"
_MAX_TASK: Final = 200
"""Characters of a task in a list"""
MAX_NAME: Final = 80
"""Most characters of a run's name"""
_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Facts that a run was begun with."""

    name: str
    folder: str
    """The workspace"""
    seen_as: str
    """Path of the workspace that the model sees: a fork's is that of the run it comes from"""
    model: str
    """Name or URL of the model"""
    tools: str
    """Name of the tool profile"""
    system: tuple[Message, ...]
    start: str | None = None
    """Snapshot of the workspace before the first step"""
    session: str | None = None
    """Session that holds the model's states; None for a model at a URL"""
    parent: str | None = None
    """Run that it was forked from"""
    num_inherited: int = 0
    """Steps that it has from there"""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Limits and permissions"""
    created: float = 0.0
    """Seconds since 1970"""


@dataclass(frozen=True, slots=True)
class Outline:
    """A run as a list shows it."""

    facts: RunFacts
    num_steps: int
    end: EndReason | None
    task: str
    """Words that were said first, on one line, cut"""


class Run:
    """One run: its facts, its trajectory, and the log that both grow in."""

    def __init__(self, path: Path, facts: RunFacts, trajectory: Trajectory) -> None:
        self.path = path
        self.facts = facts
        self.trajectory = trajectory
        self._log: BinaryIO | None = None
        self._lock: BinaryIO | None = None

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.facts.name

    def __enter__(self) -> Self:
        """Take the run, to go on with it. Raises ValueError if another process has it."""
        self._lock = locked(self.path / "lock")
        if self._lock is None:
            raise ValueError(f"run {self.name} is going on in another process")
        with suppress(OSError):  # others could read runs of before
            self.path.chmod(0o700)
        log = self.path / "log.jsonl"
        self.trajectory, num_bytes = _read_log(log, self.facts)
        self._log = log.open("r+b" if log.exists() else "w+b")
        self._log.truncate(num_bytes)  # a line that a crash cut off
        self._log.seek(num_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        if self._log is not None:
            with suppress(OSError):  # without it the log is read
                self._write_outline(self._log.tell())
        for file in (self._log, self._lock):
            if file is not None:
                file.close()
        self._log = self._lock = None

    @property
    def outline(self) -> Outline:
        """The run as a list shows it."""
        steps = self.trajectory.steps
        said = steps[0].said if steps else self.trajectory.said
        task = " ".join(" ".join(one.content for one in said)[:10_000].split())[:_MAX_TASK]
        return Outline(self.facts, len(steps), self.trajectory.end, task)

    def _write_outline(self, num_bytes: int) -> None:
        outline = self.outline
        fields = {"num_steps": outline.num_steps, "end": outline.end, "task": outline.task}
        write_text(self.path / _OUTLINE, json.dumps({"num_bytes": num_bytes, **fields}) + "\n")

    def beat(self) -> None:
        """Note that the process that has the run is alive."""
        with suppress(OSError):
            os.utime(self.path / "lock")

    @property
    def last_beat(self) -> float:
        """Time of the last sign of life of a process that had the run, in seconds since 1970; 0
        if there was none."""
        try:
            return (self.path / "lock").stat().st_mtime
        except OSError:
            return 0.0

    def append(self, record: Mapping[str, Any]) -> None:
        """Let a record happen: it is on disk when this returns, and counts from then on.

        Raises ValueError for one that cannot follow, OSError if it cannot be written; neither
        changes anything.
        """
        if self._log is None:
            raise ValueError(f"run {self.name} is open for reading only")
        changed = self.trajectory.copy()
        apply(changed, record)
        line = _line(record)
        if len(line) > _MAX_LINE_BYTES:
            raise ValueError(
                f"a record has {len(line):,} bytes, at most {_MAX_LINE_BYTES:,} can be kept"
            )
        place = self._log.tell()
        try:
            self._log.write(line)
            self._log.flush()
            os.fsync(self._log.fileno())
        except BaseException:
            with suppress(OSError):
                self._log.seek(place)
                self._log.truncate(place)
            raise
        self.trajectory = changed

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the run, and then the records that lead to where it stands: what was taken back is
        not among them."""
        yield {"type": "run", **_written(self.facts)}
        yield from records_of(self.trajectory, len(self.trajectory.steps))
        if self.trajectory.end is not None:
            yield {"type": "ended", "reason": self.trajectory.end}
        if self.trajectory.score is not None:
            yield {"type": "scored", **asdict(self.trajectory.score)}


class Runs:
    """A folder of runs."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """List all runs, the last used first."""
        found: dict[str, float] = {}
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.root):
                if entry.is_dir(follow_symlinks=False) and (Path(entry) / "run.json").is_file():
                    log = Path(entry) / "log.jsonl"
                    found[entry.name] = (log if log.exists() else Path(entry)).stat().st_mtime
        return sorted(found, key=lambda name: -found[name])

    def create(self, facts: RunFacts, records: Iterable[Mapping[str, Any]] = ()) -> Run:
        """Make a run in which some records have happened already. Raises ValueError if there is one
        of that name."""
        path = self.root / check_name(facts.name)
        # All that was read and printed is in there, and nobody else's to read.
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.mkdir(exist_ok=True, mode=0o700)
        lock = locked(path / "lock")
        with lock or nullcontext():
            if lock is None or (path / "run.json").exists():
                raise ValueError(f"there is a run {facts.name} already")
            self._write(path, facts, records)
        return self.open(facts.name)

    def _write(self, path: Path, facts: RunFacts, records: Iterable[Mapping[str, Any]]) -> None:
        with (path / "log.jsonl").open("wb") as log:
            log.writelines(map(_line, records))
            log.flush()
            os.fsync(log.fileno())
        # From here on there is such a run: a crash before leaves none.
        text = json.dumps(_written(facts), indent=1, ensure_ascii=False)
        write_text(path / "run.json", text + "\n")

    def open(self, name: str) -> Run:
        """Read a run. Raises ValueError if there is none, or it cannot be read."""
        path, facts = self._path(name), self.facts(name)
        return Run(path, facts, _read_log(path / "log.jsonl", facts)[0])

    def _path(self, name: str) -> Path:
        path = self.root / check_name(name)
        if not (path / "run.json").is_file():
            known = self.names()[:3]
            hint = f"; the last ones are {', '.join(known)}" if known else ""
            raise ValueError(f"there is no run {shorten(name, 80)}{hint}")
        return path

    def facts(self, name: str) -> RunFacts:
        """Read what a run was begun with. Raises ValueError like `open`."""
        return _read_facts(self._path(name) / "run.json")

    def outline(self, name: str) -> Outline:
        """Read a run as a list shows it: its log only where it went on since it was last closed.
        Raises ValueError like `open`."""
        path, facts = self._path(name), self.facts(name)
        try:
            written = read_json(path / _OUTLINE)
            is_last = written["num_bytes"] == (path / "log.jsonl").stat().st_size
            num_steps, end, task = (written[key] for key in ("num_steps", "end", "task"))
        except (OSError, ValueError, KeyError):
            is_last, num_steps, end, task = False, None, None, None
        if not is_last or type(num_steps) is not int or not isinstance(task, str):
            return self.open(name).outline
        known = end if isinstance(end, str) and end in get_args(EndReason) else None
        return Outline(facts, num_steps, cast("EndReason | None", known), task)

    def fork(self, run: Run, num_steps: int, **changes: Any) -> Run:
        """Make a run that has the first steps of another one. changes: fields of `RunFacts`, the
        name among them."""
        total = len(run.trajectory.steps)
        if not 0 <= num_steps <= total:
            raise ValueError(f"step {num_steps} was asked for, run {run.name} has {total} steps")
        facts = RunFacts(
            **{
                **{name: getattr(run.facts, name) for name in RunFacts.__slots__},
                "parent": run.name,
                "num_inherited": num_steps,
                "created": time.time(),
                **changes,
            }
        )
        # Other words may take the place of those that come next.
        back = {"type": "rewound", "num_steps": num_steps}
        return self.create(facts, [*records_of(run.trajectory, num_steps), back])


def new_name() -> str:
    """Return a name for a run: its day, and something that no other run has."""
    return f"{time.strftime('%Y-%m-%d')}-{secrets.token_hex(3)}"


def default_runs() -> Path:
    """Return where runs live: $XDG_DATA_HOME/fulmen/agents, else ~/.local/share."""
    return user_folder("XDG_DATA_HOME", ".local/share") / "fulmen" / "agents"


def locked(path: Path) -> BinaryIO | None:
    """Return a file that this process alone has locked; None if another has."""
    try:
        import fcntl
    except ImportError:
        raise ValueError("runs need file locks, which this system does not have") from None
    lock = path.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _written(facts: RunFacts) -> dict[str, Any]:
    system = [message.to_dict() for message in facts.system]
    return {"format": _FORMAT, **asdict(replace(facts, system=())), "system": system}


def _line(record: Mapping[str, Any]) -> bytes:
    text = json.dumps({"time": round(time.time(), 3), **record}, ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _read_log(path: Path, facts: RunFacts) -> tuple[Trajectory, int]:
    """Return what happened in a run, and how many bytes of its log say so: all but a last line that
    was cut off."""
    trajectory = Trajectory(system=facts.system, start=facts.start)
    num_bytes = 0
    for number, line in enumerate(_lines(path), 1):
        if not line.endswith(b"\n"):
            break
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("it is no object")
            record.pop("time", None)
            apply(trajectory, record)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} cannot be read: {error}") from None
        num_bytes += len(line)
    return trajectory, num_bytes


def _lines(path: Path) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        while line := file.readline(_MAX_LINE_BYTES + 1):
            if len(line) > _MAX_LINE_BYTES:
                raise ValueError(f"{path} has a line of more than {_MAX_LINE_BYTES:,} bytes")
            yield line


def _read_facts(path: Path) -> RunFacts:
    fields = read_json(path)
    written = fields.pop("format", None)
    if written != _FORMAT:
        raise ValueError(f"{path} has the format {shorten(written, 40)}, {_FORMAT} is known")
    try:
        fields["system"] = tuple(read_messages(fields["system"]))  # type: ignore[arg-type]
        facts = RunFacts(**fields)  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} describes no run: {error}") from None
    texts = (facts.name, facts.folder, facts.seen_as, facts.model, facts.tools)
    if not all(isinstance(text, str) for text in texts) or facts.name != path.parent.name:
        raise ValueError(f"{path} describes no run of the name {path.parent.name}")
    return facts


def check_name(name: str) -> str:
    """Return the name of a run. Raises ValueError for what is none: it becomes a folder."""
    if not 0 < len(name) <= MAX_NAME or name[0] in ".-" or not set(name) <= _NAME_CHARACTERS:
        raise ValueError(
            f"{shorten(name, MAX_NAME)} is no name of a run: it has up to {MAX_NAME} small "
            "letters, digits, dots, dashes and underlines"
        )
    return name
