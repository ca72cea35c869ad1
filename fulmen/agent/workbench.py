"""The tools at work: a call is checked, consented to, made in the sandbox, and the folder is saved.

    call -> Arguments -> Permissions (a person is asked) -> Sandbox -> Result, with a snapshot

All that a call touches goes through the sandbox, reading and editing too, so one set of mounts
decides what can be seen and changed. What goes wrong in a call is a result that the model reads;
only a sandbox that fails itself ends the run.
"""

import asyncio
import difflib
import io
import os
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from fulmen.agent.editing import replaced
from fulmen.agent.instructions import instructions_for
from fulmen.agent.permissions import Permissions, Verdict
from fulmen.agent.tools import PROFILES, READING, Arguments, ToolError
from fulmen.agent.trajectory import Result
from fulmen.agent.workspace import Snapshot
from fulmen.chat import Tool, ToolCall
from fulmen.files import explain
from fulmen.sandbox import FileChangedError, Outcome, Sandbox

Approve = Callable[[ToolCall, Verdict], Awaitable[str | None]]
"""Asks a person about a call: None to make it, else a sentence for the model"""

_MAX_READ_BYTES: Final = 4 * 2**20
_MAX_LINES: Final = 2000
_MAX_LINE_CHARACTERS: Final = 2000
_MAX_TEXT: Final = 40_000
"""Characters of a result"""
_MAX_DIFF: Final = 20_000
_MAX_COMPARED: Final = 20_000
"""Lines of a file before and after that are compared"""
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
        source: Path | None = None,
        approve: Approve | None = None,
        snapshots: Saves | None = None,
        on_output: Callable[[str], None] | None = None,
        shell_note: str = "",
    ) -> None:
        """
        folder      the workspace as the sandbox shows it
        source      the workspace as it lies on this machine; folder if omitted
        approve     asks a person; without it, what asks is refused
        on_output   sees what a command prints, as it comes
        shell_note  told to the model with the result of its next command
        """
        self.sandbox = sandbox
        self.permissions = permissions
        self.folder = folder
        self.source = folder if source is None else source
        self.todo: tuple[dict[str, str], ...] = ()
        """Steps that the model wrote down"""
        self._tools = PROFILES[profile]
        self._approve = approve
        self._snapshots = snapshots
        self._on_output = on_output
        self._shell_note = shell_note
        self._asking = asyncio.Lock()
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
        try:
            arguments = Arguments.of(call, tuple(self._tools))
            await self._consent(call)
            text, is_error = await self._make(arguments, details), False
        except ToolError as error:
            text, is_error = str(error), True
        except FileChangedError:
            text, is_error = "the file was changed meanwhile; read it again", True
        except (OSError, ValueError) as error:
            text = explain(error) if isinstance(error, OSError) else str(error)
            is_error = True
        if details.get("exit_code", 0) != 0:
            is_error = True
        return await self._result(number, call, _cut(text), is_error, begin, details)

    async def interrupted(self, number: int, call: ToolCall) -> Result:
        """Return the result of a call that was ended, with what a command printed until then."""
        printed = "".join(self._output)
        text = f"{printed}\n(ended by the user before it was done)".lstrip("\n")
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
        snapshot = None
        if self._snapshots is not None and call.name not in READING and call.name != "todo":
            taken = await asyncio.to_thread(self._snapshots.take, call.name)
            snapshot = taken.id
            if taken.skipped:
                details["not_saved"] = [str(one.path) for one in taken.skipped[:20]]
        seconds = round(time.monotonic() - begin, 3)
        return Result(number, text, is_error, seconds, snapshot, details)

    async def _consent(self, call: ToolCall) -> None:
        """Return if a call may be made. Raises ToolError if not."""
        if call.name == "bash" and not call.arguments.get("command"):
            return  # it looks at jobs that were consented to, or ends them
        verdict = self.permissions.judge(call)
        if verdict.decision == "ask":
            async with self._asking:  # one question at a time
                verdict = self.permissions.judge(call)  # an answer may have made a rule
                if verdict.decision == "ask":
                    if self._approve is None:
                        raise ToolError(f"not allowed here: {verdict.reason}")
                    refusal = await self._approve(call, verdict)
                    if refusal is not None:
                        raise ToolError(refusal or "the user did not allow this")
        if verdict.decision == "deny":
            raise ToolError(f"not allowed: {verdict.reason}")

    async def _make(self, arguments: Arguments, details: dict[str, Any]) -> str:
        match arguments.tool.name:
            case "bash" | "run":
                return await self._bash(arguments, details)
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

    async def _bash(self, arguments: Arguments, details: dict[str, Any]) -> str:
        command = arguments.text("command")
        if not command:
            if "job" not in arguments.given:
                raise ToolError("bash needs command, or job")
            return await self._job(arguments)
        if arguments.flag("background"):
            job = await self.sandbox.start(command)
            return f"job {job} runs in the background"
        self._output = []
        outcome = await self.sandbox.run(
            command,
            seconds=arguments.number("timeout", 120, most=3600),
            on_output=self._hear,
        )
        self._output = []
        details["exit_code"] = outcome.exit_code if outcome.exit_code is not None else -1
        note, self._shell_note = self._shell_note, ""
        return "\n".join(part for part in (_told(outcome), note) if part)

    def _hear(self, text: str) -> None:
        self._output.append(text)
        if self._on_output is not None:
            self._on_output(text)

    async def _job(self, arguments: Arguments) -> str:
        job = arguments.number("job", 0, least=0, most=2**31)
        if job == 0:
            rows = []
            for one in await self.sandbox.jobs():
                state = _REASONS.get(one.ended_by, one.ended_by) or "runs"
                rows.append(f"job {one.job}: {one.command}: {state}")
            return "\n".join(rows) or "there are no jobs"
        if arguments.flag("stop"):
            await self.sandbox.kill_job(job)
        found = await self.sandbox.read_job(job, cursor=self._cursors.get(job, 0))
        self._cursors[job] = found.cursor
        return found.output or "(nothing new)"

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
            rows.append(f"({rest:,} more lines; go on with offset {first + len(shown)})")
        if found.size > len(found.content):
            rows.append(
                f"(the file has {found.size:,} bytes, the first {len(found.content):,} count)"
            )
        instructions = await asyncio.to_thread(self._instructions, path)
        return "\n".join(rows or ["(the file is empty)"]) + instructions

    def _instructions(self, path: str) -> str:
        """Return the instructions of folders below that hold for a file, each once a run."""
        below = os.path.relpath(os.path.join(self.folder, path), self.folder)
        found = instructions_for(Path(below), workspace=self.source)
        new = [one for one in found if one.path not in self._told]
        self._told.update(one.path for one in new)
        return "".join(
            f"\n\n(Instructions for this folder, from {os.path.relpath(one.path, self.source)})\n"
            f"{one.text}"
            for one in new
        )

    async def _edit(self, arguments: Arguments, details: dict[str, Any]) -> str:
        path = arguments.text("path")
        found = await self.sandbox.read_file(path, max_bytes=_MAX_READ_BYTES)
        if found.size > len(found.content):
            raise ToolError(f"{path} has {found.size:,} bytes, edit takes {_MAX_READ_BYTES:,}")
        try:
            text = found.content.decode("utf-8")
        except UnicodeDecodeError:
            raise ToolError(f"{path} is not UTF-8, it cannot be edited as text") from None
        changed = replaced(
            text,
            arguments.text("old"),
            arguments.text("new"),
            path=path,
            all=arguments.flag("all"),
        )
        await self.sandbox.write_file(path, changed.encode(), expected=found.sha256)
        details["diff"] = _diff(path, text, changed)
        return f"{path} is changed"

    async def _write(self, arguments: Arguments, details: dict[str, Any]) -> str:
        path, content = arguments.text("path"), arguments.text("content")
        before: str = ""
        expected: str | None = ""
        with suppress(FileNotFoundError):
            found = await self.sandbox.read_file(path, max_bytes=_MAX_READ_BYTES)
            before, expected = found.content.decode("utf-8", "replace"), found.sha256
        await self.sandbox.write_file(
            path, content.encode("utf-8", "surrogatepass"), expected=expected
        )
        details["diff"] = _diff(path, before, content)
        lines = content.count("\n") + (not content.endswith("\n") and bool(content))
        return f"{path} is written, {lines} lines"

    async def _grep(self, arguments: Arguments) -> str:
        found = await self.sandbox.search(
            arguments.text("pattern"),
            arguments.text("path", "."),
            glob=arguments.text("glob"),
            is_case_ignored=arguments.flag("ignore_case"),
            max_matches=_MAX_FOUND,
        )
        rows = [
            f"{path}:{line}:{_short(str(text), 300)}"
            for path, line, text in found.rows
            if not self.permissions.hides(self.folder / str(path))
        ]
        if found.is_cut:
            rows.append(f"(more than {_MAX_FOUND} lines match, only the first are shown)")
        return "\n".join(rows) or "no line matches"

    async def _glob(self, arguments: Arguments) -> str:
        root = arguments.text("path", ".")
        found = await self.sandbox.list_folder(root, depth=_MAX_DEPTH, max_entries=_MAX_LISTED)
        matches = _glob_pattern(arguments.text("pattern"))
        rows = [
            str(path)
            for path, kind, _ in found.rows
            if kind != "folder"
            and matches(str(path))
            and not self.permissions.hides(self.folder / root / str(path))
        ]
        shown = rows[:_MAX_FOUND]
        if len(rows) > len(shown):
            shown.append(f"({len(rows) - len(shown):,} more)")
        if found.is_cut:
            shown.append(f"(only the first {_MAX_LISTED:,} files were looked at: give a path)")
        return "\n".join(shown) or "no file has such a name"

    def _plan(self, arguments: Arguments, details: dict[str, Any]) -> str:
        items = arguments.given["items"]
        states = {"open", "doing", "done"}
        if len(items) > _MAX_TODO:
            raise ToolError(f"there are {len(items)} items, at most {_MAX_TODO} may be")
        for item in items:
            is_whole = isinstance(item, dict) and isinstance(item.get("text"), str)
            if not is_whole or item.get("state") not in states:
                raise ToolError("an item has a text, and a state: open, doing or done")
        self.todo = tuple({"text": item["text"], "state": item["state"]} for item in items)
        details["todo"] = list(self.todo)
        left = sum(item["state"] != "done" for item in self.todo)
        return f"noted; {left} of {len(self.todo)} are left"


def _told(outcome: Outcome) -> str:
    """Return what a command came to, as the model reads it."""
    text = outcome.output.rstrip("\n")
    if outcome.ended_by == "exit":
        how = "" if outcome.exit_code == 0 else f"(exit code {outcome.exit_code})"
    else:
        reason = _REASONS.get(outcome.ended_by, outcome.ended_by)
        how = f"({reason}; it ran {outcome.seconds:.1f} s)"
    return "\n".join(part for part in (text, how) if part) or "(no output)"


def _cut(text: str) -> str:
    if len(text) <= _MAX_TEXT:
        return text
    half = _MAX_TEXT // 2
    return f"{text[:half]}\n({len(text) - 2 * half:,} characters left out)\n{text[-half:]}"


def _short(line: str, limit: int = _MAX_LINE_CHARACTERS) -> str:
    line = line.removesuffix("\r")
    return line if len(line) <= limit else f"{line[:limit]} ... ({len(line):,} characters)"


def _diff(path: str, before: str, after: str) -> str:
    old, new = (list(io.StringIO(text, newline="\n")) for text in (before, after))
    if len(old) + len(new) > _MAX_COMPARED:
        return ""
    text = "".join(
        line if line.endswith("\n") else f"{line}\n"
        for line in difflib.unified_diff(old, new, f"a/{path}", f"b/{path}")
    )
    return text if len(text) <= _MAX_DIFF else text[:_MAX_DIFF] + "...\n"


def _glob_pattern(pattern: str) -> Callable[[str], object]:
    """Return a test for paths: `*` and `?` match within a part, `**` matches any parts; a pattern
    without a slash is a file's name in any folder."""
    if not pattern or len(pattern) > 1000:
        raise ToolError("pattern must have from 1 to 1000 characters")
    pattern = pattern.removeprefix("./")
    parts = pattern.split("/") if "/" in pattern else ["**", pattern]
    found = ""
    for place, part in enumerate(parts):
        is_last = place == len(parts) - 1
        if part == "**":
            found += ".*" if is_last else "(?:[^/]+/)*"
            continue
        for piece in re.findall(r"\*+|\?|\[[^\]/]+\]|\{[^{}/]*\}|.", part, re.DOTALL):
            found += _glob_piece(piece)
        found += "" if is_last else "/"
    try:
        return re.compile(found, re.DOTALL).fullmatch
    except re.error:
        raise ToolError(f"{pattern} is no pattern for names") from None


def _glob_piece(piece: str) -> str:
    match piece[0]:
        case "*":
            return "[^/]*"
        case "?":
            return "[^/]"
        case "[" if len(piece) > 1:
            return (
                f"[{'^' if piece[1] in '!^' else ''}{re.escape(piece[1:-1].lstrip('!^'))}]".replace(
                    r"\-", "-"
                )
            )
        case "{" if len(piece) > 1:
            return f"(?:{'|'.join(re.escape(one) for one in piece[1:-1].split(','))})"
        case _:
            return re.escape(piece)
