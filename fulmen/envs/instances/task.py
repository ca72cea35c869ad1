"""An issue of a repository: the files without their history, then the patch, tested in fresh files.

tree at the commit -> folder -> agent -> what changed, as a patch
                   -> another tree + patch (without tests) + test patch -> tests -> score
"""

import asyncio
from hashlib import sha256
from pathlib import Path
from typing import Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message, ToolCall
from fulmen.envs.instances.git import apply_patch, changed_paths, is_test, make_patch
from fulmen.envs.instances.instance import Instance
from fulmen.envs.instances.repositories import GIT, Trees
from fulmen.envs.instances.testing import Tested, run_tests
from fulmen.envs.left import copy_left
from fulmen.envs.scratch import scratch_folder
from fulmen.envs.task import GraderError, Task
from fulmen.files import shorten
from fulmen.sandbox import Limits

_MAX_COMMAND: Final = 90_000
_MAX_EXCLUDED: Final = 1000
_COMMANDS: Final = {"coding": "bash", "minimal": "run"}


class InstanceTask(Task):
    """The issue of an instance."""

    def __init__(
        self,
        instance: Instance,
        repositories: Trees,
        *,
        profile: str = "coding",
        limits: Limits | None = None,
        sound: set[str] | None = None,
    ) -> None:
        """
        limits  of the tests; ten minutes and 4 GiB if omitted
        sound   ids of instances whose tests are known to pass here with the known patch; those that
                are found so are added
        """
        self.instance = instance
        self.model_patch: str | None = None
        """Changes of the agent as a patch, once `score` has read its folder"""
        self._repositories = repositories
        self._profile = profile
        self._limits = limits
        self._sound = set() if sound is None else sound

    @property
    def messages(self) -> tuple[Message, ...]:
        """The issue, as a user's message."""
        text = (
            f"The repository {self.instance.repo} lies in your folder. Resolve this issue:\n\n"
            f"{self.instance.problem_statement.strip()}\n\n"
            "Change the code, not its tests. Tests that are not there yet will be run on it."
        )
        return (Message("user", text),)

    @property
    def key(self) -> str:
        """The instance's name and the issue."""
        return f"{self.instance.instance_id}\n{super().key}"

    @property
    def profile(self) -> str:
        """Name of the tools that the model has."""
        return self._profile

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """A call that applies the known patch, and an answer; empty if it is too long for one."""
        patch = self.instance.patch.rstrip("\n")
        end = f"end_of_{sha256(patch.encode()).hexdigest()[:12]}"
        command = f"git apply --whitespace=nowarn - <<'{end}'\n{patch}\n{end}"
        if len(command) > _MAX_COMMAND:
            return ()
        call = ToolCall(_COMMANDS[self.profile], {"command": command})
        return (Message("assistant", "", tool_calls=(call,)), Message("assistant", "It is done."))

    async def prepare(self, folder: Path) -> None:
        """Write the repository at its commit."""
        await asyncio.to_thread(self._repositories.write, self.instance, folder)

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return the score of what has changed in the folder, see `grade`; `model_patch` has it."""
        if folder is None:
            return Score(0.0, {"applied": 0.0})
        with scratch_folder("fulmen-patch-") as scratch:
            before, after = scratch / "before", scratch / "after"
            await self.prepare(before)
            try:
                if not await asyncio.to_thread(copy_left, folder, after, without=GIT):
                    await self._check_size(before, scratch / "copy")
                    raise ValueError("the folder has become too large")
                self.model_patch = await asyncio.to_thread(make_patch, before, after)
            except ValueError:
                self.model_patch = ""
                return Score(0.0, {"applied": 0.0})
        return await self.grade(self.model_patch)

    async def _check_size(self, before: Path, copy: Path) -> None:
        """Raise GraderError if the repository as it was given is too large to be copied."""
        if not await asyncio.to_thread(copy_left, before, copy, without=GIT):
            raise GraderError(
                f"{self.instance.instance_id}: the repository has too many files, or too large ones"
            )

    async def grade(self, patch: str) -> Score:
        """Return 1 if all tests that are named pass with a patch, else 0.

        Parts: applied (it fits), fail_to_pass and pass_to_pass (shares of those tests that pass),
        touches_tests (it changes tests, or settings of tests: such changes do not count), believed
        (the tests could be run to their end), changed_lines.

        Raises GraderError where the tests cannot be run here, whatever the patch.
        """
        instance = self.instance
        if (strange := instance.strange_test) is not None:
            raise GraderError(
                f"{instance.instance_id}: {shorten(strange, 100)} is no name of pytest's, and "
                "other tests cannot be run here"
            )
        if not patch.strip():
            return Score(0.0, {"applied": 0.0, "changed_lines": 0.0})
        known, added = await self._paths("patch"), await self._paths("test_patch")
        try:
            changed = await asyncio.to_thread(changed_paths, patch)
        except ValueError:
            changed = {}
        tests = {path for path in changed if path in added or (is_test(path) and path not in known)}
        passed_over = tuple(path for path in changed if path in tests or not self.may_change(path))
        parts = {
            "applied": 0.0,
            "touches_tests": float(bool(tests)),
            "changed_lines": float(sum(changed.values())),
        }
        if not changed or len(passed_over) > _MAX_EXCLUDED:
            return Score(0.0, parts)
        names = (*instance.fail_to_pass, *instance.pass_to_pass)
        with scratch_folder("fulmen-grade-") as scratch:
            tree = scratch / "folder"
            await self.prepare(tree)
            try:
                await asyncio.to_thread(apply_patch, tree, patch, without=passed_over)
            except ValueError:
                return Score(0.0, parts)
            try:
                await self._add_tests(tree)
                tested = await self._run_tests(tree, names)
            except ValueError:
                tested = None
        if tested is not None and tested.have_passed(names):
            self._sound.add(instance.instance_id)
        if instance.instance_id not in self._sound:
            await self._check_tests(names)
        if tested is None or not tested.is_believed:
            return Score(0.0, {**parts, "applied": 1.0, "believed": 0.0})
        shares = {
            name: _share(tested, wanted)
            for name, wanted in (
                ("fail_to_pass", instance.fail_to_pass),
                ("pass_to_pass", instance.pass_to_pass),
            )
        }
        value = float(all(share == 1 for share in shares.values()))
        return Score(value, {**parts, "applied": 1.0, **shares, "believed": 1.0})

    def may_change(self, path: str) -> bool:
        """Return whether a change of this path counts, if it is none of the tests."""
        return True

    async def _paths(self, name: str) -> dict[str, int]:
        """Return the paths of one of the instance's patches. Raises GraderError if it is none."""
        patch = getattr(self.instance, name)
        try:
            return await asyncio.to_thread(changed_paths, patch) if patch.strip() else {}
        except ValueError as error:
            raise GraderError(f"{self.instance.instance_id}: {name}: {error}") from None

    async def _add_tests(self, tree: Path) -> None:
        if self.instance.test_patch.strip():
            await asyncio.to_thread(apply_patch, tree, self.instance.test_patch)

    async def _run_tests(self, tree: Path, names: tuple[str, ...]) -> Tested:
        return await run_tests(
            tree,
            names,
            self._limits,
            suspects=self.instance.fail_to_pass,
            hidden=self.hidden_paths,
            variables=self.variables,
        )

    async def _check_tests(self, names: tuple[str, ...]) -> None:
        """Raise GraderError if the tests do not pass with the known patch either."""
        with scratch_folder("fulmen-grade-") as scratch:
            tree = scratch / "folder"
            await self.prepare(tree)
            try:
                if self.instance.patch.strip():
                    await asyncio.to_thread(apply_patch, tree, self.instance.patch)
                await self._add_tests(tree)
                tested = await self._run_tests(tree, names)
            except ValueError as error:
                raise GraderError(f"{self.instance.instance_id}: {error}") from None
        if not tested.have_run(names):
            raise GraderError(
                f"{self.instance.instance_id}: its tests cannot be run here: {tested.output}"
            )
        if self.instance.patch.strip() and not tested.have_passed(names):
            failing = next(name for name in names if tested.outcomes[name] != "passed")
            raise GraderError(
                f"{self.instance.instance_id}: {shorten(failing, 200)} fails here with the known "
                "patch too"
            )
        self._sound.add(self.instance.instance_id)


def _share(tested: Tested, names: tuple[str, ...]) -> float:
    passed = sum(tested.outcomes.get(name) == "passed" for name in names)
    return passed / len(names) if names else 1.0
