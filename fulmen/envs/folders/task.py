"""A task of a folder: the files, then the tests in a fresh copy of what the agent left.

    recipe -> folder -> agent -> copy of the folder, with /tests and an empty /logs -> test.sh
                              -> /logs/verifier/reward.json or reward.txt -> score

Nothing of the tests, the solution and the reward's place is there while the agent works. The reward
counts if test.sh came to its end by itself. Where it wrote none, it runs once more on the folder as
it was given, and then on the folder as the solution leaves it: if it writes one there, the agent's
files are what stopped it, and the score is 0; else the tests are broken, which is an error.

Tests that run the agent's program do so as the same user: a program that looks for the reward's
file can write it. Tests should do it last, as all the usual ones do.
"""

import base64
import math
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message, ToolCall
from fulmen.envs.folders.description import LOGS, SOLUTION, TESTS, Description
from fulmen.envs.left import copy_left, left_file
from fulmen.envs.scratch import scratch_folder
from fulmen.envs.task import GraderError, Task
from fulmen.files import parse_json, shorten
from fulmen.sandbox import Access, Sandbox

_PACKAGE: Final = Path(__file__).resolve().parents[2]
_NUMBER: Final = re.compile(
    r"\s*[+-]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,3})?\s*"
)
_MAX_PARTS: Final = 20
_PLACE: Final = "/tmp/solution"
_MAX_COMMAND: Final = 90_000
_UNLINK: Final = (
    "find . -type l -print0 | while IFS= read -rd '' link; do "
    f'case "$(readlink -f -- "$link")" in {TESTS}|{TESTS}/*|{LOGS}|{LOGS}/*) rm -f -- "$link";; '
    "esac; done"
)
"""Command that takes away links to the tests, whose files are no work of an agent"""
_COMMANDS: Final = {"coding": "bash", "minimal": "run"}


@dataclass(frozen=True)
class FolderTask(Task):
    """A task that a folder describes."""

    description: Description = field(repr=False)
    tools_profile: str = "coding"

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.description.path.name

    @property
    def messages(self) -> tuple[Message, ...]:
        """The instruction, as a user's message."""
        return (Message("user", self.description.instruction),)

    @property
    def key(self) -> str:
        """The folder's name and the instruction."""
        return f"{self.name}\n{self.description.instruction}"

    @property
    def profile(self) -> str:
        """Name of the tools that the model has."""
        return self.tools_profile

    @property
    def seen_as(self) -> Path:
        """The Dockerfile's last WORKDIR."""
        return Path(self.description.recipe.workdir)

    @property
    def variables(self) -> Mapping[str, str]:
        """The Dockerfile's ENV."""
        return self.description.recipe.variables

    @property
    def agent_seconds(self) -> float | None:
        """The time that task.toml gives an agent."""
        return self.description.agent_seconds

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """A call that runs the solution, and an answer; empty without a solution, or if its files
        are too large for a command.

        Its files lie in /tmp, and /solution in their texts is changed accordingly.
        """
        if "solve.sh" not in self.description.solution:
            return ()
        lines = [f"mkdir -p {_PLACE}"]
        for path, content in self.description.solution.items():
            place = shlex.quote(f"{_PLACE}/{path}")
            text = base64.b64encode(_moved(content)).decode()
            lines.append(f'mkdir -p "$(dirname {place})"; echo {text} | base64 -d > {place}')
        command = "\n".join([*lines, f"chmod -R u+x {_PLACE}; bash {_PLACE}/solve.sh"])
        if len(command) > _MAX_COMMAND:
            return ()
        call = ToolCall(_COMMANDS[self.profile], {"command": command})
        return (Message("assistant", "", tool_calls=(call,)), Message("assistant", "It is done."))

    async def prepare(self, folder: Path) -> None:
        """Put the files of the Dockerfile into the folder."""
        recipe, context = self.description.recipe, self.description.path / "environment"
        for name in recipe.folders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for copy in recipe.copies:
            source, place = context / copy.source, folder / copy.destination
            if not source.is_dir() and (copy.is_into or place.is_dir()):
                place /= source.name
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, place, dirs_exist_ok=True)
            else:
                shutil.copy(source, place)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return the reward that the tests write, with its other numbers as parts.

        Part: graded, 0 where the folder as it was left kept the tests from their end.
        """
        if folder is None:
            return Score(0.0, {"graded": 0.0})
        with scratch_folder("fulmen-grade-") as scratch:
            if not copy_left(folder, scratch / "folder"):
                return Score(0.0, {"graded": 0.0})
            if isinstance(found := await self._reward(scratch), Score):
                return found
        for is_solved in (False, True) if self.description.solution else (False,):
            with scratch_folder("fulmen-grade-") as scratch:
                (scratch / "folder").mkdir()
                await self.prepare(scratch / "folder")
                if is_solved:
                    await self._solve(scratch)
                if isinstance(await self._reward(scratch), Score):
                    return Score(0.0, {"graded": 0.0})
        raise GraderError(f"{self.name}: its tests {found}, and so they do without an agent")

    async def _solve(self, scratch: Path) -> None:
        """Run the solution on the folder in there."""
        solution = scratch / "solution"
        copy_left(self.description.path / "solution", solution)
        access = Access(
            folder=scratch / "folder",
            seen_as=self.seen_as,
            protected=(),
            hidden=(_PACKAGE,),
            readable=(solution,),
            seen_at={solution: Path(SOLUTION)},
            environment=self.variables,
        )
        async with Sandbox(access, self.description.limits) as sandbox:
            await sandbox.run(f"bash {SOLUTION}/solve.sh")

    async def _reward(self, scratch: Path) -> Score | str:
        """Run the tests on the folder in there; return the reward, or why there is none."""
        tests, logs = scratch / "tests", scratch / "logs"
        if not copy_left(self.description.path / "tests", tests):
            raise GraderError(f"{self.name}: its tests are too large")
        (tests / "test.sh").chmod(0o755)
        for name in ("verifier", "agent", "artifacts"):
            (logs / name).mkdir(parents=True)
        access = Access(
            folder=scratch / "folder",
            seen_as=self.seen_as,
            protected=(),
            hidden=(_PACKAGE,),
            readable=(tests,),
            writable=(logs,),
            seen_at={tests: TESTS, logs: LOGS},
            environment=self.description.test_variables,
        )
        async with Sandbox(access, self.description.limits) as sandbox:
            outcome = await sandbox.run(_UNLINK, folder=str(self.seen_as))
            if outcome.ended_by == "exit":
                outcome = await sandbox.run(f"exec {TESTS}/test.sh", folder=str(self.seen_as))
        if outcome.ended_by != "exit":
            return f"were ended ({outcome.ended_by})"
        try:
            value, parts = _read(logs / "verifier")
        except ValueError as error:
            return f"wrote no reward ({error}; they said: {shorten(outcome.output, 300)})"
        if not 0 <= value <= 1:
            raise GraderError(f"{self.name}: its tests wrote the reward {value:g}, not from 0 to 1")
        return Score(value, {**parts, "graded": 1.0})


def _read(folder: Path) -> tuple[float, dict[str, float]]:
    """Return the reward in a folder and the numbers beside it. Raises ValueError."""
    if (content := left_file(folder / "reward.json")) is not None:
        numbers = {
            name[:64]: float(value)
            for name, value in parse_json(content, "reward.json").items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if not numbers or not all(map(math.isfinite, numbers.values())):
            raise ValueError("reward.json has no numbers, or one without end")
        if "reward" not in numbers and len(numbers) > 1:
            raise ValueError("reward.json has several numbers and no reward among them")
        value = numbers.pop("reward") if "reward" in numbers else next(iter(numbers.values()))
        return value, dict(sorted(numbers.items())[:_MAX_PARTS])
    content = left_file(folder / "reward.txt")
    if content is None:
        raise ValueError("there is no reward.txt and no reward.json")
    text = content[:200].decode("utf-8", "replace")
    if len(content) > 200 or not _NUMBER.fullmatch(text):
        raise ValueError(f"reward.txt has {shorten(text, 60)!r}")
    return float(text), {}


def _moved(content: bytes) -> bytes:
    """Return a file of the solution with its paths in the other folder."""
    return re.sub(
        rb"(?<![\w/.-])" + str(SOLUTION).encode() + rb"(?![\w-])", _PLACE.encode(), content
    )
