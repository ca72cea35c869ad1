"""Every state that runs went through: steps, files and the model's states, gone back to together.

    RUNS/NAME/            a run (`run.py`)
    RUNS/NAME/team/       runs of the agents that it leads (`team/`), an archive of their own
    RUNS/.snapshots/ID/   files of one workspace (`workspace.py`), shared by the forks of its runs
    sessions NAME, NAME.2 states of a model that is here: another session after each summary

A run's log rules. It names the snapshot of each step, and its messages say how far a session is its
own, so going back is one more record and a restored folder, and a fork is one file of each kind.
None of it needs the model. A crash in between leaves a run that says what is so: `settle` makes
folder and session follow the log before the run goes on.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Final

from fulmen.agent.compaction import edited
from fulmen.agent.run import MAX_NAME, Run, RunFacts, Runs, check_name, new_name
from fulmen.agent.scan import Limits, Skipped
from fulmen.agent.trajectory import Trajectory
from fulmen.agent.workspace import Change, ChangedSince, Restored, Snapshot, Snapshots
from fulmen.chat import Message, match_turns
from fulmen.sandbox import remove_placeholders
from fulmen.sessions import SessionStore, read_stored

_SNAPSHOTS: Final = ".snapshots"
_ASIDE: Final = "before"
TEAM: Final = "team"
"""Folder in a run's, of the agents that it leads"""
BEAT_SECONDS: Final = 1.0
"""Longest time between two signs of life of a process that has a run"""


@dataclass(frozen=True, slots=True)
class Aside:
    """A workspace as it was before something was restored over it."""

    number: int
    snapshot: str


class Archive:
    """All runs of a folder, with the files and states of their steps."""

    def __init__(
        self,
        root: Path,
        sessions: SessionStore | None = None,
        *,
        limits: Limits | None = None,
        snapshots: Path | None = None,
    ) -> None:
        """
        sessions   where models that are here keep their states
        limits     bounds on what a snapshot holds
        snapshots  folder of the snapshots of all folders, .snapshots beside the runs if omitted
        """
        self.runs = Runs(root)
        self._snapshots = snapshots or root / _SNAPSHOTS
        self.sessions = sessions
        self._limits = limits

    def begin(
        self,
        folder: Path,
        *,
        model: str,
        tools: str,
        system: tuple[Message, ...],
        name: str | None = None,
        has_session: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> Run:
        """Make a run in a folder, which is saved as it stands.

        has_session  the model's states are kept in a session

        Raises ValueError for a folder that cannot be one's workspace.
        """
        place = os.path.realpath(folder)
        if not os.path.isdir(place):
            raise ValueError(f"{folder} is no folder, an agent works in one")
        name = name or new_name()
        facts = RunFacts(
            name=name,
            folder=place,
            seen_as=place,
            model=model,
            tools=tools,
            system=system,
            session=name if has_session else None,
            settings=dict(settings or {}),
            created=time.time(),
        )
        snapshots = self.snapshots(facts)
        start = snapshots.take("start")
        run = self.runs.create(replace(facts, start=start.id))
        snapshots.keep(f"{name}/0", start.id)
        return run

    def snapshots(self, facts: RunFacts) -> Snapshots:
        """Return the snapshots of a run's folder. Raises ValueError if that is gone."""
        return Snapshots(Path(facts.folder), self._repository(facts), limits=self._limits)

    def files(self, facts: RunFacts) -> Snapshots:
        """Return the snapshots of a run to look at, whether its folder is there or not."""
        return Snapshots(self.runs.root / facts.name, self._repository(facts))

    def _repository(self, facts: RunFacts) -> Path:
        # A fork is seen at the path of the workspace it comes from: so they share what they have.
        digest = sha256(os.fsencode(facts.seen_as)).hexdigest()[:32]
        return self._snapshots / digest

    def team(self, name: str) -> "Archive":
        """Return the runs of the agents that a run leads; they share its snapshots and sessions."""
        root = self.runs.root / check_name(name) / TEAM
        return Archive(root, self.sessions, limits=self._limits, snapshots=self._snapshots)

    # ---- time ----------------------------------------------------------------------------------

    def rewind(self, name: str, num_steps: int, *, overwrite: bool = False) -> Restored:
        """Take a run back to its first steps, and its folder with it.

        Raises ChangedSince, and changes nothing, if a file would be overwritten that somebody else
        changed since the last step, or between two of the steps that are taken back. The folder is
        saved before, see `asides`.

        overwrite  go back also then, and where the folder cannot be saved before, which raises
                   NotSaved otherwise
        """
        with self.runs.open(name) as run:
            snapshots = self.snapshots(run.facts)
            trajectory = run.trajectory
            wanted = _snapshot(run, num_steps)
            restored = snapshots.restore(
                wanted,
                expected=trajectory.snapshot(len(trajectory.steps)),
                others=_found_since(trajectory, num_steps),
                overwrite=overwrite,
            )
            self._set_aside(snapshots, run, restored)
            run.append({"type": "rewound", "num_steps": num_steps})
            remove_placeholders(Path(run.facts.folder))
            missing = _not_saved(trajectory, num_steps)
            return replace(restored, left=(*restored.left, *missing))

    def fork(self, name: str, num_steps: int, folder: Path, *, new: str | None = None) -> Run:
        """Make a run that has the first steps of another one, in a new folder with the files as
        they were then. The model is shown that folder at the path of the first one.

        It shares all that was read: snapshots, and the model's states. Raises ValueError for a
        folder that is not empty.
        """
        run = self.runs.open(name)
        wanted = _snapshot(run, num_steps)
        if not all(step.is_whole for step in run.trajectory.steps[:num_steps]):
            raise ValueError(f"step {num_steps} of run {name} is not finished, fork one before it")
        new = check_name(new or self.free_name(name))
        if new in self.runs.names():
            raise ValueError(f"there is a run {new} already")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(f"{folder} is not empty, a fork needs a new folder")
        snapshots = self.files(run.facts)
        for place, id in _snapshots(run.trajectory, num_steps):
            snapshots.keep(f"{new}/{place}", id)
        snapshots.export(wanted, folder)
        forked = None if run.facts.session is None else new
        if forked is not None:
            self._fork_sessions(run, forked)
        return self.runs.fork(
            run, num_steps, name=new, folder=os.path.realpath(folder), session=forked
        )

    def edit_summary(self, name: str, text: str) -> None:
        """Put another text in the place of a run's summary. Raises ValueError if it has none."""
        with self.runs.open(name) as run:
            run.append({"type": "compacted", **asdict(edited(run.trajectory, text))})

    def expand_summary(self, name: str) -> None:
        """Put what the last summary stands for back in its place: the summary before it, or the
        steps themselves. Raises ValueError if the run has none."""
        with self.runs.open(name) as run:
            if not run.trajectory.compactions:
                raise ValueError(f"run {name} has no summary, all of its steps stand")
            run.append({"type": "expanded"})

    def diff(self, name: str, first: int, last: int) -> str:
        """Return the unified diff of the files after two steps of a run, as git writes it."""
        run = self.runs.open(name)
        return self.files(run.facts).diff(_snapshot(run, first), _snapshot(run, last))

    def changes(self, name: str, first: int, last: int) -> list[Change]:
        """Return the files that differ after two steps of a run."""
        run = self.runs.open(name)
        return self.files(run.facts).changes(_snapshot(run, first), _snapshot(run, last))

    def export_files(self, name: str, folder: Path, *, num_steps: int) -> None:
        """Write the files as they were after the first steps into a new or empty folder."""
        run = self.runs.open(name)
        self.files(run.facts).export(_snapshot(run, num_steps), folder)

    def export_aside(self, name: str, folder: Path, number: int) -> None:
        """Write what was saved before something was restored over it into a new or empty folder."""
        run = self.runs.open(name)
        known = {one.number: one.snapshot for one in self.asides(run.facts)}
        if number not in known:
            shown = ", ".join(map(str, known)) or "none"
            raise ValueError(f"run {name} has no saved folder {number}; there are: {shown}")
        self.files(run.facts).export(known[number], folder)

    def asides(self, facts: RunFacts) -> list[Aside]:
        """Return the states of a run's folder that something was restored over, the first first."""
        start = f"{facts.name}/{_ASIDE}/"
        found = [
            Aside(int(name.removeprefix(start)), id)
            for name, id in self.files(facts).kept().items()
            if name.startswith(start)
        ]
        return sorted(found, key=lambda one: one.number)

    def remove(self, name: str, *, prunes: bool = True) -> None:
        """Forget a run, its snapshots and sessions, and the agents that it led; its folder stays,
        and so do its forks.

        prunes  free the disk that its snapshots took, which takes seconds where there is much
        """
        with self.runs.open(name) as run:
            team = self.team(name)
            for member in team.runs.names():
                team.remove(member, prunes=prunes)
            snapshots = self.files(run.facts)
            for session in list(self._sessions_of(run.facts)):
                assert self.sessions is not None
                with self.sessions.used_by_one(session):
                    self.sessions.remove(session)
            snapshots.drop(name)
            # Without it there is no such run any more, whatever happens to the rest.
            (run.path / "run.json").unlink()
            remove_placeholders(Path(run.facts.folder))
            if prunes:
                snapshots.prune()
        shutil.rmtree(run.path, ignore_errors=True)

    # ---- going on ------------------------------------------------------------------------------

    def settle(self, run: Run, *, overwrite: bool = False) -> str | None:
        """Make the folder and the session of a run that was taken follow its log; return a sentence
        on what was done to the folder, if anything.

        Calls that were under way when it was ended are to be made again, so what they did is taken
        back, and kept aside. Raises ChangedSince, and changes nothing, if that would overwrite a
        file that somebody changed after the process had ended, unless overwrite is true. Else the
        folder is taken as it is.
        """
        trajectory = run.trajectory
        snapshots = self.snapshots(run.facts)
        self.settle_session(run)
        if all(step.is_whole for step in trajectory.steps[-1:]):
            return self._note_found(run, snapshots)
        last = trajectory.snapshot(len(trajectory.steps))
        if last is None:
            return None
        try:
            if not overwrite and (touched := self._touched_since(run, snapshots, last)):
                raise ChangedSince(touched)
            restored = snapshots.restore(last, expected=None)
        except ChangedSince:
            raise
        except (OSError, ValueError) as error:
            return f"calls that were under way are made again from files as they are: {error}"
        number = self._set_aside(snapshots, run, restored)
        if number is None:
            return None
        return (
            f"calls were under way when the run was ended: {restored.num_written} files were "
            f"restored and {restored.num_deleted} deleted before they are made again; as they were "
            f"found they are kept aside as {number}"
        )

    def _note_found(self, run: Run, snapshots: Snapshots) -> str | None:
        """Note that somebody changed the folder since the last step."""
        trajectory = run.trajectory
        last = trajectory.snapshot(len(trajectory.steps))
        try:
            now = snapshots.take("found")
        except (OSError, ValueError) as error:
            return f"the files are taken as they are, and cannot be saved: {error}"
        if last is not None and snapshots.read(last).tree == now.tree:
            return None
        snapshots.keep(f"{run.name}/{len(trajectory.steps)}", now.id)
        run.append({"type": "found", "snapshot": now.id})
        return "files were changed since the last step, and are taken as they are"

    def _touched_since(self, run: Run, snapshots: Snapshots, last: str) -> list[str]:
        """Return files that are not as in a snapshot, and changed after the process that had the
        run ended: somebody else changed them."""
        changes = snapshots.changes(last, snapshots.take("after a crash").id)
        touched = []
        for path in (change.path for change in changes if change.kind != "deleted"):
            with suppress(OSError):  # it has gone by now
                changed = os.lstat(os.path.join(run.facts.folder, path)).st_ctime
                if changed > run.last_beat + BEAT_SECONDS:
                    touched.append(path)
        return touched

    def found(self, run: Run) -> None:
        """Take the folder as somebody else left it, between two steps."""
        self._note_found(run, self.snapshots(run.facts))

    def _set_aside(self, snapshots: Snapshots, run: Run, restored: Restored) -> int | None:
        """Keep what was restored over, if anything was; return its number."""
        if restored.before is None or not (restored.num_written or restored.num_deleted):
            return None
        number = max((one.number for one in self.asides(run.facts)), default=0) + 1
        snapshots.keep(f"{run.name}/{_ASIDE}/{number}", restored.before.id)
        return number

    # ---- sessions ------------------------------------------------------------------------------

    def session_name(self, run: Run) -> str | None:
        """Return the session that a run goes on in; None for a run without."""
        return _session_name(run.facts, len(run.trajectory.compactions))

    def settle_session(self, run: Run) -> None:
        """Take the session back to the turns that the log has."""
        name = self.session_name(run)
        if name is not None and self.sessions is not None and self.sessions.has(name):
            with self.sessions.used_by_one(name):
                self._take_back(self.sessions, name, run.trajectory.messages)

    def _take_back(self, sessions: SessionStore, name: str, messages: list[Message]) -> None:
        state = sessions.state(name)
        turns = [read_stored(turn) for turn in sessions.turns(state)]
        count, _ = match_turns(turns, messages)
        if count < len(turns) or state.num_kept is not None:
            sessions.rewind(name, num_turns=count)

    def _fork_sessions(self, run: Run, new: str) -> None:
        """Give a fork all sessions; each is taken back to its steps before it goes on."""
        if self.sessions is None:
            return
        forked = replace(run.facts, session=new)
        for number in range(len(run.trajectory.compactions) + 1):
            name, its = _session_name(run.facts, number), _session_name(forked, number)
            assert name is not None
            assert its is not None
            if self.sessions.has(its):
                self.sessions.remove(its)
            if self.sessions.has(name):
                self.sessions.fork(name, its)

    def _sessions_of(self, facts: RunFacts) -> Iterator[str]:
        for number in count():
            name = _session_name(facts, number)
            if name is None or self.sessions is None or not self.sessions.has(name):
                return
            yield name

    def free_name(self, name: str) -> str:
        """Return a name for a fork that no run has: with the next free number instead of its own,
        so that the name of a fork's fork is no longer than its."""
        known = set(self.runs.names())
        stem = re.sub(r"(?<=.)-[0-9]{1,4}$", "", name)
        endings = (f"-{number}" for number in count(2))
        names = (stem[: MAX_NAME - len(ending)] + ending for ending in endings)
        return next(free for free in names if free not in known)


class Kept:
    """Snapshots of a run that goes on: each is kept under the step that it is taken in."""

    def __init__(self, snapshots: Snapshots, run: Run) -> None:
        self._snapshots = snapshots
        self._run = run

    def take(self, label: str) -> Snapshot:
        """Save the folder as it stands."""
        taken = self._snapshots.take(label)
        self._snapshots.keep(f"{self._run.name}/{len(self._run.trajectory.steps)}", taken.id)
        return taken


def _session_name(facts: RunFacts, num_compactions: int) -> str | None:
    if facts.session is None:
        return None
    return f"{facts.session}.{num_compactions + 1}" if num_compactions else facts.session


def _snapshot(run: Run, num_steps: int) -> str:
    """Return the files after the first steps. Raises ValueError if there are fewer steps."""
    total = len(run.trajectory.steps)
    if not 0 <= num_steps <= total:
        raise ValueError(f"step {num_steps} was asked for, run {run.name} has {total} steps")
    found = run.trajectory.snapshot(num_steps)
    if found is None:
        raise ValueError(f"run {run.name} has no snapshot of its files")
    return found


def _not_saved(trajectory: Trajectory, num_steps: int) -> list[Skipped]:
    """Return a reason why the first steps' snapshot is not all that they did, if there is one."""
    for place in range(num_steps, 0, -1):
        step = trajectory.steps[place - 1]
        if trajectory.found.get(place) is not None or step.snapshot is not None:
            break
        if any(one.details.get("not_saved") for one in step.results):
            return [Skipped(".", f"step {place} could not be saved, files are those before it")]
    return []


def _found_since(trajectory: Trajectory, num_steps: int) -> list[tuple[str, str]]:
    """Return pairs of snapshots between which somebody changed files, after the first steps."""
    pairs = []
    for place, found in sorted(trajectory.found.items()):
        known = trajectory.taken(place)
        if place > num_steps and known is not None:
            pairs.append((known, found))
    return pairs


def _snapshots(trajectory: Trajectory, num_steps: int) -> Iterator[tuple[int, str]]:
    """Yield each snapshot of the first steps with the first step that it stands after."""
    last = None
    for place in range(num_steps + 1):
        id = trajectory.snapshot(place)
        if id is not None and id != last:
            yield place, id
        last = id
