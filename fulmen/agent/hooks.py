"""Hooks: commands of the user's that run before a tool, after it, and before the end of a run.

    [[hooks]]
    event = "before_tool"            # before_tool, after_tool or before_end
    match = "edit|write"             # names of tools, with * and ?; all if omitted
    command = "scripts/may-change"
    timeout = 60

A hook runs in the agent's sandbox, in the workspace, and reads a JSON object on stdin. Exit code 2
refuses: before a tool its call is not made, after a tool the model reads what the hook printed,
before the end the model goes on with it. Other codes refuse nothing; they are kept with the result.
"""

import json
import shlex
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Final, Literal, cast, get_args

from fulmen.agent.cutting import cut_text
from fulmen.agent.loop import Hands
from fulmen.agent.trajectory import Result
from fulmen.chat import Tool, ToolCall
from fulmen.files import shorten
from fulmen.sandbox import Outcome, Sandbox

HookEvent = Literal["before_tool", "after_tool", "before_end"]
_EVENTS: Final = get_args(HookEvent)
_KEYS: Final = ("event", "match", "command", "timeout")
_MAX_HOOKS: Final = 50
_MAX_SECONDS: Final = 3600.0
_MAX_GIVEN: Final = 20_000
"""Characters of one text that a hook is given"""
_MAX_PRINTED: Final = 4000
_REFUSES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A command, and when it runs."""

    event: HookEvent
    command: str
    match: str = "*"
    """Names of tools, apart by |"""
    timeout: float = 60.0
    """Seconds that it may take"""

    def means(self, tool: str) -> bool:
        """Return whether it runs at calls of a tool."""
        return any(fnmatchcase(tool, one.strip()) for one in self.match.split("|"))


def parse_hooks(written: Any, where: str) -> tuple[Hook, ...]:
    """Read the hooks of a file of settings. Raises ValueError that names the key.

    where  names the file in an error
    """
    if not isinstance(written, list) or not all(isinstance(one, dict) for one in written):
        raise ValueError(f"{where}: hooks are tables, each begins with [[hooks]]")
    if len(written) > _MAX_HOOKS:
        raise ValueError(f"{where}: at most {_MAX_HOOKS} hooks are read")
    return tuple(_hook(one, f"{where}: hook {place}") for place, one in enumerate(written, 1))


def _hook(table: Mapping[str, Any], where: str) -> Hook:
    for key in table:
        if key not in _KEYS:
            raise ValueError(f"{where} has {shorten(repr(key))}, it may have {', '.join(_KEYS)}")
    event, command = table.get("event"), table.get("command")
    match, timeout = table.get("match", "*"), table.get("timeout", 60.0)
    if event not in _EVENTS:
        raise ValueError(f"{where}: event is {event!r}, it must be one of {', '.join(_EVENTS)}")
    if not isinstance(command, str) or not command.strip() or "\0" in command:
        raise ValueError(f"{where} needs a command, a text")
    if not isinstance(match, str) or not match.strip():
        raise ValueError(f"{where}: match must be names of tools, such as edit|write")
    if event == "before_end" and "match" in table:
        raise ValueError(f"{where}: match says nothing before the end, leave it out")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise ValueError(f"{where}: timeout must be a number of seconds")
    if not 0 < timeout <= _MAX_SECONDS:
        raise ValueError(f"{where}: timeout is {timeout}, it must be up to 3600 seconds")
    return Hook(
        event=cast("HookEvent", event), command=command, match=match, timeout=float(timeout)
    )


class HookedHands:
    """Tools with hooks around them; `Hands` of an agent."""

    def __init__(
        self,
        hands: Hands,
        hooks: Sequence[Hook],
        sandbox: Sandbox,
        *,
        folder: str,
        saved: Callable[[Result, str], Awaitable[Result]],
        tell: Callable[[str], None],
    ) -> None:
        """
        tell    is given sentences for people on hooks that fail
        folder  the workspace as the sandbox shows it
        saved   adds a snapshot to a result, given a label
        """
        self._hands = hands
        self._hooks = tuple(hooks)
        self._sandbox = sandbox
        self._folder = folder
        self._saved = saved
        self._tell = tell

    @property
    def tools(self) -> Sequence[Tool]:
        """Tools as the model is told of them."""
        return self._hands.tools

    def is_independent(self, call: ToolCall) -> bool:
        """Return whether a call may run beside others; one with a hook may not, since hooks are
        commands."""
        has_hook = any(one.event != "before_end" and one.means(call.name) for one in self._hooks)
        return not has_hook and self._hands.is_independent(call)

    async def run(self, number: int, call: ToolCall) -> Result:
        """Make a call between its hooks."""
        given: dict[str, Any] = {"tool": call.name, "arguments": _cut(call.arguments)}
        notes: list[str] = []
        refusal = await self._run_all("before_tool", call.name, given, notes)
        if refusal is not None:
            text = f"(a hook of the user's refused this call)\n{refusal}"
            return Result(number, text, True, details={"hooks": notes} if notes else {})
        result = await self._hands.run(number, call)
        given |= {"result": _cut(result.text), "is_error": result.is_error}
        ran = any(one.event == "after_tool" and one.means(call.name) for one in self._hooks)
        said = await self._run_all("after_tool", call.name, given, notes)
        if ran:  # it may have changed files
            result = await self._saved(result, f"{call.name} and hooks")
        if said is not None:
            result = replace(result, text=f"{result.text}\n(a hook of the user's says)\n{said}")
        return replace(result, details={**result.details, "hooks": notes}) if notes else result

    async def interrupted(self, number: int, call: ToolCall, by: str) -> Result:
        """Return the result of a call that was ended before its time."""
        return await self._hands.interrupted(number, call, by)

    def forget(self) -> None:
        """Take note that the model does not see earlier results any more."""
        self._hands.forget()

    async def before_end(self, answer: str) -> str | None:
        """Return what a hook has against the end, None if nothing.

        answer  the last words of the model
        """
        notes: list[str] = []
        refusal = await self._run_all("before_end", None, {"answer": _cut(answer)}, notes)
        for note in notes:
            self._tell(f"a hook before the end: {note}")
        return refusal

    async def _run_all(
        self, event: HookEvent, tool: str | None, given: Mapping[str, Any], notes: list[str]
    ) -> str | None:
        """Run the hooks of an event, one after the other, until one refuses; return its words."""
        for hook in self._hooks:
            if hook.event != event or not (tool is None or hook.means(tool)):
                continue
            text = json.dumps({"event": event, **given})
            outcome = await self._sandbox.run(
                self._command(hook.command, text), seconds=hook.timeout
            )
            if outcome.exit_code == _REFUSES:
                return cut_text(outcome.output.strip(), _MAX_PRINTED) or "it did not say why"
            if outcome.exit_code != 0:
                notes.append(_told(hook, outcome))
        return None

    def _command(self, command: str, text: str) -> str:
        """Return a command that leaves the shell's folder and variables as they are."""
        folder, given = shlex.quote(self._folder), shlex.quote(text)
        return f"(cd {folder} && builtin printf %s {given} | {{ {command}\n}})"


def _told(hook: Hook, outcome: Outcome) -> str:
    how = f"exit code {outcome.exit_code}" if outcome.ended_by == "exit" else outcome.ended_by
    return f"{shorten(hook.command, 80)}: {how}: {shorten(outcome.output.strip(), 200)}"


def _cut(value: Any) -> Any:
    """Return arguments whose texts are cut."""
    if isinstance(value, str):
        return cut_text(value, _MAX_GIVEN)
    if isinstance(value, Mapping):
        return {name: _cut(one) for name, one in value.items()}
    if isinstance(value, Iterable):
        return [_cut(one) for one in value]
    return value
