"""One run that an editor has open: its work, who is asked, and what is sent."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fulmen.agent import (
    Archive,
    EndReason,
    McpServer,
    Mode,
    Setup,
    Verdict,
    Work,
    agent_folder,
    project_file,
)
from fulmen.chat import ChatModel, ModelError, ToolCall
from fulmen.cli.acp.updates import Updates, kind_of, title_of
from fulmen.cli.agent_means import means_of, session_opener
from fulmen.cli.output import harmless
from fulmen.sandbox import SandboxError

if TYPE_CHECKING:
    from fulmen.cli.agent_run import Side
    from fulmen.cli.agent_wanted import Wanted

_REFUSED: Final = "the user did not allow this"
_STOPS: Final[Mapping[EndReason, str]] = {
    "done": "end_turn",
    "turns": "max_turn_requests",
    "seconds": "max_turn_requests",
    "loop": "max_turn_requests",
    "tokens": "max_tokens",
    "context": "max_tokens",
    "interrupted": "cancelled",
}


@dataclass(slots=True)
class OpenRun:
    """A run that is open; for one event loop."""

    name: str
    archive: Archive
    side: "Side"
    model: ChatModel
    wanted: "Wanted"
    editor: Any
    """Connection to the editor"""
    servers: Mapping[str, McpServer] = field(default_factory=dict)
    """Servers that the editor gives"""
    mode: Mode = "ask"
    setup: Setup | None = None
    updates: Updates | None = None
    _work: Work | None = None
    _busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    _remember: Callable[[Verdict], Any] | None = None

    async def open(self) -> None:
        """Take the run, and make its sandbox and its tools ready. Raises ValueError, and
        SandboxError where there can be none."""
        facts = self.archive.runs.open(self.name).facts
        folder, seen_as = Path(facts.folder), Path(facts.seen_as)
        setup = await asyncio.to_thread(Setup.read, folder, agent_folder())
        if setup.waiting is not None and seen_as != folder:
            setup.approve_as(seen_as)
            setup = await asyncio.to_thread(Setup.read, folder, agent_folder())
        config = replace(setup.config, mcp={**self.servers, **setup.config.mcp})
        self.setup = setup = replace(setup, config=config)
        permissions = setup.permissions(
            seen_as=seen_as, mode=self.wanted.mode, rules=self.wanted.rules
        )
        self.mode, self._remember = permissions.mode, permissions.remember
        self.updates = updates = Updates(self._send, folder=folder, seen_as=seen_as)
        means = means_of(
            setup,
            self.wanted,
            self.side,
            permissions,
            approve=self._approve,
            watcher=updates,
            on_output=updates.output,
            runs=self.archive.runs.root,
        )
        loop = asyncio.get_running_loop()
        opener = session_opener(self.side, self.archive, self.model, loop)
        work = Work(self.archive, self.name, self.model, means, open_session=opener)
        await work.__aenter__()
        self._work = work
        updates.begin(work.trajectory)
        if setup.waiting is not None:
            updates.note(
                f"{project_file(folder)} is not approved: only its ask and deny rules hold; run "
                "fulmen agent at a terminal to approve it"
            )
        for note in (*setup.notes, *work.notes):
            updates.note(note)

    @property
    def is_open(self) -> bool:
        """True if words can be said; False once it was closed, or could not be opened again."""
        return self._work is not None

    async def close(self) -> None:
        """End what is under way, and leave the run as it stands."""
        if self._work is not None:
            self._work.interrupt()
        async with self._busy:
            await self._close()

    async def _close(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            await work.__aexit__()
        if self.updates is not None:
            await self.updates.close()

    async def say(self, words: str) -> str:
        """Let the agent work on words; return why it stopped, in the protocol's words. Raises
        ValueError if it is at work already or has failed, SandboxError likewise."""
        if self._busy.locked():
            raise ValueError("the session is at work already, cancel that first")
        async with self._busy:
            work, updates = self._work, self.updates
            if work is None or updates is None:
                raise ValueError(f"the session {self.name} is closed")
            assert self.setup is not None
            try:
                reason = await work.say(self.setup.folders.expanded(words))
            except ModelError as error:
                raise OSError(f"the model failed: {error}") from None
            except SandboxError:  # another one for what is said next
                await self._close()
                with suppress(SandboxError, ValueError):
                    await self.open()
                raise
            finally:
                await updates.drained()
            if reason in ("seconds", "loop", "context"):
                updates.note(f"stopped: {reason}, see Limits in docs/agents.md")
                await updates.drained()
            return _STOPS[reason]

    def interrupt(self) -> None:
        """End what is under way and keep what there is of it."""
        if self._work is not None:
            self._work.interrupt()

    async def set_mode(self, mode: Mode) -> None:
        """Change what needs consent; the sandbox is begun anew, since a plan cannot write. Raises
        ValueError while the agent is at work."""
        if self._busy.locked():
            raise ValueError("the mode is changed between answers, the session is at work")
        async with self._busy:
            await self._close()
            before, self.wanted = self.wanted, replace(self.wanted, mode=mode)
            try:
                await self.open()
            except (ValueError, SandboxError):
                self.wanted = before
                raise

    async def _send(self, update: Any) -> None:
        await self.editor.session_update(session_id=self.name, update=update)

    async def _approve(self, call: ToolCall, verdict: Verdict, preview: str) -> str | None:
        """Ask the editor about a call: None to make it, else a sentence for the model."""
        from acp import RequestError, helpers
        from acp.schema import PermissionOption, ToolCallUpdate

        assert self.updates is not None
        await self.updates.drained()
        number = self.updates.number_of(call)
        text = f"{harmless(verdict.reason)}\n\n{_code(preview)}"
        content = self.updates.change_of(call)
        content = [helpers.tool_content(helpers.text_block(text)), *content]
        asked = ToolCallUpdate(
            tool_call_id=self.updates.id_of(number or 0),
            title=title_of(call),
            kind=kind_of(call),
            status="pending",
            content=content,
            raw_input=call.arguments,
        )
        options = [PermissionOption(option_id="once", name="Allow", kind="allow_once")]
        if verdict.rules:
            rules = harmless(", ".join(sorted(map(str, verdict.rules))))
            options.append(
                PermissionOption(option_id="always", name=f"Always {rules}", kind="allow_always")
            )
        options.append(PermissionOption(option_id="no", name="Refuse", kind="reject_once"))
        try:
            answer = await self.editor.request_permission(
                session_id=self.name, tool_call=asked, options=options
            )
        except (RequestError, ConnectionError):
            return "not allowed, and the user could not be asked"
        chosen = getattr(answer.outcome, "option_id", None)
        if chosen == "always" and verdict.rules and self._remember is not None:
            with suppress(OSError):
                self._remember(verdict)
        return None if chosen in ("once", "always") else _REFUSED


def _code(text: str) -> str:
    """Return text indented, as Markdown shows code whatever is in it."""
    return "\n".join(f"    {line}" for line in harmless(text[:20_000]).split("\n"))


def servers_of(given: Sequence[Any] | None) -> dict[str, McpServer]:
    """Return the MCP servers that an editor gives. Raises ValueError for one that is none, or of a
    kind that is not known."""
    found: dict[str, McpServer] = {}
    for place, one in enumerate(given or (), 1):
        name = "".join(char if char.isalnum() and char.isascii() else "-" for char in one.name)
        name = name.strip("-")[:32].strip("-") or f"server-{place}"
        if name in found:
            name = f"{name[:28]}-{place}"
        url = getattr(one, "url", "")
        if url and getattr(one, "type", "") != "http":
            raise ValueError(f"the MCP server {name} speaks {one.type}, known are http and stdio")
        found[name] = McpServer(
            name=name,
            url=url,
            command=() if url else (one.command, *one.args),
            env={} if url else {pair.name: pair.value for pair in one.env},
            headers={pair.name: pair.value for pair in one.headers} if url else {},
        )
    return found
