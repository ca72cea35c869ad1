"""The tools at work: a call is checked, consented to, made in the sandbox, and the folder is saved.

    call -> Arguments -> Permissions (a person is asked) -> Sandbox -> Result, with a snapshot

All that a call touches goes through the sandbox, reading and editing too, so one set of mounts
decides what can be seen and changed. What goes wrong in a call is a result that the model reads;
only a sandbox that fails itself ends the run.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from fulmen.agent.consent import Approve, Consent
from fulmen.agent.editing import diff, replaced
from fulmen.agent.instructions import (
    MAX_BYTES,
    instruction_places,
    instructions_of,
    is_instruction,
)
from fulmen.agent.permissions import Permissions
from fulmen.agent.tools import PROFILES, READING, Arguments, ToolError
from fulmen.agent.trajectory import Result
from fulmen.agent.workspace import Snapshot
from fulmen.chat import Tool, ToolCall
from fulmen.files import explain
from fulmen.sandbox import (
    FileChangedError,
    JobOutput,
    JobStatus,
    Outcome,
    Sandbox,
    SandboxError,
)

_MAX_READ_BYTES: Final = 4 * 2**20
_MAX_LINES: Final = 2000
_MAX_LINE_CHARACTERS: Final = 2000
_MAX_TEXT: Final = 40_000
"""Characters of a result"""
_MAX_FOUND: Final = 200
_MAX_TODO: Final = 100
_MAX_DEPTH: Final = 32
_MAX_LISTED: Final = 20_000
_REASONS: Final = {
    "timeout": "the time was over",
    "signal": "a signal ended it",
    "memory": "it took too much memory",
    "processes": "it had too many processes",
    "output": "it did not stop writing",
    "cancelled": "it was stopped",
}


class Saves(Protocol):
    """Snapshots of the workspace, or what keeps them."""

    def take(self, label: str) -> Snapshot:
        """Save the workspace as it stands; any thread may call this."""


class Workbench:
    """The tools of one profile, in one sandbox; `Hands` of an agent."""

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        profile: str,
        permissions: Permissions,
        folder: Path,
        approve: Approve | None = None,
        consent: Consent | None = None,
        snapshots: Saves | None = None,
        on_output: Callable[[str], None] | None = None,
        shell_note: str = "",
        has_network: bool = False,
    ) -> None:
        """
        folder      the workspace as the sandbox shows it
        approve     asks a person; without it, what asks is refused
        consent     the run's, where it has other tools too; its own, of permissions and approve,
                    if omitted
        on_output   sees what a command prints, as it comes
        shell_note  told to the model with the result of its next command
        has_network the sandbox lets commands use it, which permissions take into account
        """
        self.sandbox = sandbox
        self.permissions = permissions
        self.folder = folder
        self.todo: tuple[dict[str, str], ...] = ()
        """Steps that the model wrote down"""
        self._tools = PROFILES[profile]
        self.consent = consent or Consent(permissions, approve)
        self._snapshots = snapshots
        self._on_output = on_output
        self._shell_note = shell_note
        self._has_network = has_network
        self._output: list[str] = []
        """Output so far of the command that runs"""
        self._cursors: dict[int, int] = {}
        """Places up to which the model has read the jobs' output"""
        self._told: set[Path] = set()
        """Instructions of folders below that the model has read"""

    @property
    def tools(self) -> Sequence[Tool]:
        """Tools as the model is told of them."""
        return self._tools

    def is_independent(self, call: ToolCall) -> bool:
        """Return whether a call only reads."""
        return call.name in READING

    async def run(self, number: int, call: ToolCall) -> Result:
        """Make a call; whatever is wrong with it is a result that says so."""
        begin = time.monotonic()
        details: dict[str, Any] = {}
        if not self.is_independent(call):
            self._output = []
        try:
            arguments = Arguments.of(call, tuple(self._tools))
            folder = self.sandbox.folder  # where a command is judged, and runs
            await self._consent(call, arguments, Path(folder))
            text, is_error = await self._make(arguments, folder, details), False
        except ToolError as error:
            text, is_error = str(error), True
        except FileChangedError:
            text, is_error = "the file was changed meanwhile; read it again", True
        except (OSError, ValueError) as error:
            text = explain(error) if isinstance(error, OSError) else str(error)
            is_error = True
        except SandboxError:
            raise
        except Exception as error:  # the outer edge of one call: what a model wrote ends no run
            text, is_error = f"the call failed: {type(error).__name__}: {error}", True
        if details.get("exit_code", 0) != 0:
            is_error = True
        return await self._result(number, call, _cut(text), is_error, begin, details)

    def forget(self) -> None:
        """Take note that the model does not see earlier results any more: instructions that came
        with them are given again."""
        self._told.clear()

    async def interrupted(self, number: int, call: ToolCall, by: str = "the user") -> Result:
        """Return the result of a call that was ended, with what a command printed until then."""
        printed, self._output = "".join(self._output), []
        text = f"{printed}\n(ended by {by} before it was done)".lstrip("\n")
        return await self._result(number, call, _cut(text), True, time.monotonic(), {})

    async def _result(
        self,
        number: int,
        call: ToolCall,
        text: str,
        is_error: bool,
        begin: float,
        details: dict[str, Any],
    ) -> Result:
        result = Result(number, text, is_error, details=details)
        if call.name not in READING and call.name != "todo":
            result = await self.saved(result, call.name)
        return replace(result, seconds=round(time.monotonic() - begin, 3))

    async def saved(self, result: Result, label: str) -> Result:
        """Return a result with a snapshot of the workspace as it stands after the call."""
        if self._snapshots is None:
            return result
        try:
            taken = await asyncio.to_thread(self._snapshots.take, label)
        except (OSError, ValueError) as error:  # what the call did is done all the same
            why = explain(error) if isinstance(error, OSError) else str(error)
            return replace(result, details={**result.details, "not_saved": [why]})
        details = dict(result.details)
        if taken.skipped:
            details["not_saved"] = [str(one.path) for one in taken.skipped[:20]]
        return replace(result, snapshot=taken.id, details=details)

    async def _consent(self, call: ToolCall, arguments: Arguments, shell: Path) -> None:
        """Return if a call may be made. Raises ToolError if not.

        shell  folder in which a command would begin
        """
        if call.name == "bash" and not call.arguments.get("command"):
            return  # it looks at jobs that were consented to, or ends them
        is_command = call.name in ("bash", "run")
        folder = shell if is_command else None
        leaves = "the network" if self._has_network and is_command else None
        await self.consent.obtain(
            call, lambda: self._preview(arguments), folder=folder, leaves=leaves
        )

    async def _preview(self, arguments: Arguments) -> str:
        """Return what somebody consents to: the whole command, or all that a file would become."""
        if arguments.tool.name not in ("edit", "write"):
            return arguments.text("command")
        path = arguments.text("path")
        try:
            before, after, _ = await self._change(arguments)
        except (ToolError, OSError, ValueError):
            return ""  # the result will say why
        most = 2 * (len(before) + len(after)) + 1000  # all of it
        if shown := await asyncio.to_thread(diff, path, before, after, max_characters=most):
            return shown
        return f"--- a/{path}\n+++ b/{path}\n" + "".join(f"+{line}\n" for line in after.split("\n"))

    async def _make(self, arguments: Arguments, folder: str, details: dict[str, Any]) -> str:
        match arguments.tool.name:
            case "bash" | "run":
                return await self._bash(arguments, folder, details)
            case "read":
                return await self._read(arguments)
            case "edit":
                return await self._edit(arguments, details)
            case "write":
                return await self._write(arguments, details)
            case "grep":
                return await self._grep(arguments)
            case "glob":
                return await self._glob(arguments)
            case "todo":
                return self._plan(arguments, details)
            case name:
                raise AssertionError(name)

    # Commands

    async def _bash(self, arguments: Arguments, folder: str, details: dict[str, Any]) -> str:
        command = arguments.text("command")
        if not command:
            if "job" not in arguments.given:
                raise ToolError("bash needs command, or job")
            return await self._job(arguments)
        try:
            if arguments.flag("background"):
                job = await self.sandbox.start(command, folder=folder)
                return f"job {job} runs in the background"
            self._output = []
            outcome = await self.sandbox.run(
                command,
                seconds=arguments.number("timeout", 120, most=3600),
                folder=folder,
                on_output=self._hear,
            )
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            raise ToolError(
                f"the shell's folder {folder} is gone, so nothing was run; it is back in the "
                "workspace"
            ) from None
        self._output = []
        details["exit_code"] = outcome.exit_code if outcome.exit_code is not None else -1
        note, self._shell_note = self._shell_note, ""
        return _joined(told_outcome(outcome), note)

    def _hear(self, text: str) -> None:
        self._output.append(text)
        if self._on_output is not None:
            self._on_output(text)

    async def _job(self, arguments: Arguments) -> str:
        job = arguments.number("job", 0, least=0, most=2**31)
        if job == 0:
            rows = []
            for one in await self.sandbox.jobs():
                rows.append(f"job {one.job}: {one.command}: {_state(one)}")
            return "\n".join(rows) or "there are no jobs"
        if arguments.flag("stop"):
            await self.sandbox.kill_job(job)
        found = await self.sandbox.read_job(job, cursor=self._cursors.get(job, 0))
        self._cursors[job] = found.cursor
        return _joined(found.output.rstrip("\n") or "(nothing new)", f"({_state(found)})")

    # Files

    async def _read(self, arguments: Arguments) -> str:
        path = arguments.text("path")
        first = arguments.number("offset", 1, most=2**31)
        limit = arguments.number("limit", _MAX_LINES, most=_MAX_LINES)
        found = await self.sandbox.read_file(path, max_bytes=_MAX_READ_BYTES)
        if b"\0" in found.content[:8192]:
            raise ToolError(f"{path} is no text file; it has {found.size:,} bytes")
        lines = found.content.decode("utf-8", "replace").split("\n")
        if lines[-1] == "":
            lines.pop()
        if first > max(len(lines), 1):
            raise ToolError(f"{path} has {len(lines)} lines, line {first} was asked for")
        shown = lines[first - 1 : first - 1 + limit]
        rows = [f"{place}\t{_short(line)}" for place, line in enumerate(shown, first)]
        rest = len(lines) - (first - 1 + len(shown))
        if rest:
            how = f"go on with offset {first + len(shown)}"
            if "offset" not in arguments.tool.parameters["properties"]:
                how = f"run sed -n '{first + len(shown)},$p' to see them"
            rows.append(f"({rest:,} more lines; {how})")
        if found.size > len(found.content):
            rows.append(
                f"(the file has {found.size:,} bytes, the first {len(found.content):,} count)"
            )
        instructions = await self._instructions(path)
        return "\n".join(rows or ["(the file is empty)"]) + instructions

    async def _instructions(self, path: str) -> str:
        """Return the instructions of folders below that hold for a file, each once a run."""
        places = instruction_places(path, workspace=self.folder)
        new = [place for place in places if place not in self._told]
        found = await asyncio.gather(*map(self._instruction, new))
        texts = {place: text for place, text in zip(new, found, strict=True) if text}
        self._told.update(texts)
        return "".join(
            f"\n\n(Instructions for this folder, from {place})\n{text}"
            for place, text in texts.items()
        )

    async def _instruction(self, place: Path) -> str:
        """Return the instructions in one file; nothing if there is none that counts."""
        try:
            found = await self.sandbox.read_file(str(place), max_bytes=MAX_BYTES + 1)
        except (OSError, ValueError):
            return ""
        if not is_instruction(found.real, workspace=self.folder):
            return ""
        one = instructions_of(place, found.content, found.size)
        return "" if one is None else one.text

    async def _edit(self, arguments: Arguments, details: dict[str, Any]) -> str:
        path = arguments.text("path")
        before, after, expected = await self._change(arguments)
        await self.sandbox.write_file(path, after.encode(), expected=expected)
        details["diff"] = await asyncio.to_thread(diff, path, before, after)
        return f"{path} is changed" + await self._instructions(path)

    async def _write(self, arguments: Arguments, details: dict[str, Any]) -> str:
        path = arguments.text("path")
        before, after, expected = await self._change(arguments)
        content = after.encode("utf-8", "surrogatepass")
        await self.sandbox.write_file(path, content, expected=expected)
        details["diff"] = await asyncio.to_thread(diff, path, before, after)
        lines = after.count("\n") + (not after.endswith("\n") and bool(after))
        return f"{path} is written, {lines} lines" + await self._instructions(path)

    async def _change(self, arguments: Arguments) -> tuple[str, str, str | None]:
        """Return a file's text, the text that a call puts in its place, and the SHA-256 of what is
        there: empty for nothing, None for a file that is too large to be read whole."""
        path, is_edit = arguments.text("path"), arguments.tool.name == "edit"
        old, new = arguments.text("old"), arguments.text("new")
        can_write = any(tool.name == "write" for tool in self._tools)
        try:
            found = await self.sandbox.read_file(path, max_bytes=_MAX_READ_BYTES)
        except FileNotFoundError:
            if is_edit and (can_write or old):
                raise
            return "", new if is_edit else arguments.text("content"), ""
        expected = found.sha256
        if not is_edit:
            return found.content.decode("utf-8", "replace"), arguments.text("content"), expected
        if found.size > len(found.content):
            raise ToolError(f"{path} has {found.size:,} bytes, edit takes {_MAX_READ_BYTES:,}")
        try:
            text = found.content.decode("utf-8")
        except UnicodeDecodeError:
            raise ToolError(f"{path} is not UTF-8, it cannot be edited as text") from None
        has_all = "all" in arguments.tool.parameters["properties"]
        after = await asyncio.to_thread(
            replaced, text, old, new, path=path, all=arguments.flag("all"), has_all=has_all
        )
        return text, after, expected

    async def _grep(self, arguments: Arguments) -> str:
        found = await self.sandbox.search(
            arguments.text("pattern"),
            arguments.text("path", "."),
            glob=arguments.text("glob"),
            is_case_ignored=arguments.flag("ignore_case"),
            max_matches=_MAX_FOUND,
        )
        rows = [
            f"{self._from_here(str(path))}:{line}:{_short(str(text), 300)}"
            for path, line, text in found.rows
            if not self.permissions.hides(self.folder / str(path))
        ]
        if found.is_cut:
            rows.append(f"(more than {_MAX_FOUND} lines match, only the first are shown)")
        return "\n".join(rows) or "no line matches"

    async def _glob(self, arguments: Arguments) -> str:
        root = Path(arguments.text("path", "."))
        found = await self.sandbox.list_folder(
            str(root),
            depth=_MAX_DEPTH,
            max_entries=_MAX_LISTED,
            glob=arguments.text("pattern"),
        )
        paths = [root / str(path) for path, _, _ in found.rows]
        rows = [
            self._from_here(path)
            for path in paths
            if not self.permissions.hides(self.folder / path)
        ]
        shown = rows[:_MAX_FOUND]
        if len(rows) > len(shown):
            shown.append(f"({len(rows) - len(shown):,} more)")
        if found.is_cut:
            shown.append(f"(there are more than these {len(rows):,}: give a path)")
        return "\n".join(shown) or "no file has such a name"

    def _from_here(self, path: Path | str) -> str:
        """Return a path that was found as the tools take it, from the workspace on."""
        whole = Path(os.path.normpath(self.folder / path))
        return str(whole.relative_to(self.folder) if whole.is_relative_to(self.folder) else whole)

    def _plan(self, arguments: Arguments, details: dict[str, Any]) -> str:
        items = arguments.given["items"]
        states = {"open", "doing", "done"}
        if len(items) > _MAX_TODO:
            raise ToolError(f"there are {len(items)} items, at most {_MAX_TODO} may be")
        for item in items:
            is_whole = isinstance(item, dict) and isinstance(item.get("text"), str)
            state = item.get("state") if is_whole else None
            if not isinstance(state, str) or state not in states:
                raise ToolError("an item has a text, and a state: open, doing or done")
        self.todo = tuple({"text": item["text"], "state": item["state"]} for item in items)
        details["todo"] = list(self.todo)
        left = sum(item["state"] != "done" for item in self.todo)
        return f"noted; {left} of {len(self.todo)} are left"


def told_outcome(outcome: Outcome) -> str:
    """Return what a command came to, as the model reads it; not cut."""
    text = outcome.output.rstrip("\n")
    if outcome.ended_by == "exit":
        how = "" if outcome.exit_code == 0 else f"(exit code {outcome.exit_code})"
    else:
        reason = _REASONS.get(outcome.ended_by, outcome.ended_by)
        how = f"({reason}; it ran {outcome.seconds:.1f} s)"
    return _joined(text, how) or "(no output)"


def _state(job: JobStatus | JobOutput) -> str:
    """Return how a job stands, as the model reads it."""
    if not job.ended_by:
        return "still runs"
    if job.ended_by == "exit":
        return f"exit code {job.exit_code}"
    return _REASONS.get(job.ended_by, job.ended_by)


def _joined(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _cut(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    half = _MAX_TEXT // 2
    return f"{text[:half]}\n({len(text) - 2 * half:,} characters left out)\n{text[-half:]}"


def _short(line: str, limit: int = _MAX_LINE_CHARACTERS) -> str:
    line = line.removesuffix("\r")
    return line if len(line) <= limit else f"{line[:limit]} ... ({len(line):,} characters)"
