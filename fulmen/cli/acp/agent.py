"""The agent's side of the protocol: sessions begun, listed, loaded, resumed, forked and closed.

session/new     a run in a folder              session/list    runs, the last used first
session/load    a run, with all that happened  session/resume  a run, without that
session/fork    another way from the last step, in a folder of its own
"""

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, get_args

from fulmen import __version__
from fulmen.agent import Archive, Mode, Run, Setup, agent_folder
from fulmen.chat import ChatModel
from fulmen.cli.acp.session import OpenRun, servers_of
from fulmen.files import explain, shorten
from fulmen.sandbox import SandboxError

if TYPE_CHECKING:
    from fulmen.cli.agent_run import Side
    from fulmen.cli.agent_wanted import Wanted

_PAGE: Final = 50
_UNUSED_SECONDS: Final = 7 * 86400.0
_UNUSED_BYTES: Final = 4096
"""Size below which a log is read to see that nothing was said in it"""
_MODES: Final[dict[Mode, str]] = {
    "plan": "reads only",
    "ask": "asks about everything but reading",
    "accept-edits": "changes files of the folder unasked",
    "auto": "does all that stays in the sandbox",
}


class AcpAgent:
    """Runs of an archive for one editor; `acp.Agent`."""

    def __init__(self, archive: Archive, side: "Side", wanted: "Wanted", settings: Any) -> None:
        """
        wanted    flags that hold for all sessions
        settings  flags as a run keeps them
        """
        self._archive, self._side = archive, side
        self._wanted, self._settings = wanted, settings
        self._model: ChatModel | None = None
        self._editor: Any = None
        self._open: dict[str, OpenRun] = {}
        self._opening, self._forking = asyncio.Lock(), asyncio.Lock()

    def on_connect(self, editor: Any) -> None:
        """Take note of the connection."""
        self._editor = editor

    async def initialize(self, protocol_version: int, **_: Any) -> Any:
        """Tell what the agent can do."""
        from acp import PROTOCOL_VERSION, schema

        none: dict[str, Any] = {}
        sessions = {"list": none, "fork": none, "resume": none, "close": none}
        return schema.InitializeResponse(
            protocol_version=protocol_version
            if 1 <= protocol_version <= PROTOCOL_VERSION
            else PROTOCOL_VERSION,
            agent_info=schema.Implementation(name="fulmen", title="Fulmen", version=__version__),
            agent_capabilities=schema.AgentCapabilities(
                load_session=True,
                prompt_capabilities=schema.PromptCapabilities(embedded_context=True),
                mcp_capabilities=schema.McpCapabilities(http=True),
                session_capabilities=schema.SessionCapabilities.model_validate(sessions),
            ),
            auth_methods=[],
        )

    async def new_session(
        self, cwd: str, mcp_servers: Sequence[Any] | None = None, **_: Any
    ) -> Any:
        """Begin a run in a folder."""
        from acp import schema

        from fulmen.cli.agent_run import begin

        with _told():
            folder = _absolute(cwd)
            wanted = replace(self._wanted, folder=folder)
            servers = servers_of(mcp_servers)
            setup = await asyncio.to_thread(Setup.read, folder.resolve(), agent_folder())
            arguments = (self._archive, wanted, self._side, setup, self._settings)
            await asyncio.to_thread(self._forget_unused)
            run = await asyncio.to_thread(begin, *arguments)
            try:
                opened = await self._opened(run.name, servers)
            except (ValueError, SandboxError):  # nothing was said in it
                await asyncio.to_thread(self._archive.remove, run.name, prunes=False)
                raise
            response = schema.NewSessionResponse(session_id=run.name, modes=_modes(opened))
            await self._tell_commands(opened)
            return response

    async def load_session(
        self, cwd: str, session_id: str, mcp_servers: Sequence[Any] | None = None, **_: Any
    ) -> Any:
        """Open a run, and send all that happened in it."""
        from acp import schema

        with _told():
            opened = await self._opened(session_id, servers_of(mcp_servers))
            assert opened.updates is not None
            opened.updates.replay(self._archive.runs.open(session_id).trajectory)
            await opened.updates.drained()
            await self._tell_commands(opened)
            return schema.LoadSessionResponse(modes=_modes(opened))

    async def resume_session(
        self, session_id: str, cwd: str, mcp_servers: Sequence[Any] | None = None, **_: Any
    ) -> Any:
        """Open a run."""
        from acp import schema

        with _told():
            opened = await self._opened(session_id, servers_of(mcp_servers))
            await self._tell_commands(opened)
            return schema.ResumeSessionResponse(modes=_modes(opened))

    async def fork_session(
        self, session_id: str, cwd: str, mcp_servers: Sequence[Any] | None = None, **_: Any
    ) -> Any:
        """Begin another run that has the past of one, in a folder of its own: the one that is asked
        for if it is empty or not there, else one beside the run's. The answer's `_meta` has it."""
        from acp import schema

        with _told():
            servers = servers_of(mcp_servers)
            async with self._forking:  # a name is free for one
                fork = await asyncio.to_thread(self._forked, session_id, _absolute(cwd))
            try:
                opened = await self._opened(fork.name, servers)
            except (ValueError, SandboxError):  # its folder stays, as that of any run
                await asyncio.to_thread(self._archive.remove, fork.name, prunes=False)
                raise
            await self._tell_commands(opened)
            return schema.ForkSessionResponse(
                session_id=fork.name,
                modes=_modes(opened),
                field_meta={"fulmen": {"cwd": fork.facts.folder}},
            )

    def _forked(self, name: str, folder: Path) -> Run:
        """Fork a run after its last whole step, into a folder that is free."""
        run = self._archive.runs.open(name)
        steps = run.trajectory.steps
        num_steps = len(steps) - (bool(steps) and not steps[-1].is_whole)
        new = self._archive.free_name(name)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            place = Path(run.facts.folder)
            folder = place.with_name(f"{place.name}-{new}")
        return self._archive.fork(name, num_steps, folder, new=new)

    async def list_sessions(
        self, cwd: str | None = None, cursor: str | None = None, **_: Any
    ) -> Any:
        """List runs in which something was said, the last used first; those of one folder if it is
        named."""
        from acp import schema

        with _told():
            first = 0 if cursor is None else int(cursor) if cursor.isdecimal() else -1
            if first < 0:
                raise ValueError(f"the cursor {shorten(cursor, 20)} is none of this agent's")
            place = None if cwd is None else os.path.realpath(cwd)
            found, cursor = await asyncio.to_thread(self._listed, place, first)
            sessions = [schema.SessionInfo(**one) for one in found]
            return schema.ListSessionsResponse(sessions=sessions, next_cursor=cursor)

    def _listed(self, folder: str | None, first: int) -> tuple[list[dict[str, Any]], str | None]:
        found: list[dict[str, Any]] = []
        names = self._archive.runs.names()
        for place, name in enumerate(names[first:], first):
            if len(found) == _PAGE:
                return found, str(place)
            try:
                outline = self._archive.runs.outline(name)
            except ValueError:
                continue  # it cannot be read, `fulmen agent list` says why
            if outline.task and folder in (None, outline.facts.folder):
                used = (self._archive.runs.root / name / "log.jsonl").stat().st_mtime
                stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(used))
                about = {"title": outline.task, "updated_at": stamp}
                found.append({"session_id": name, "cwd": outline.facts.folder, **about})
        return found, None

    def _forget_unused(self) -> None:
        """Remove runs that an editor began long ago and said nothing in. Some begin a session with
        one process and load it with the next, so none is removed when its editor goes away."""
        before = time.time() - _UNUSED_SECONDS
        for name in self._archive.runs.names():
            with suppress(ValueError, OSError):  # it cannot be read, or it is used
                log = (self._archive.runs.root / name / "log.jsonl").stat()
                if log.st_mtime < before and log.st_size < _UNUSED_BYTES:
                    outline = self._archive.runs.outline(name)
                    if not outline.task and not outline.num_steps:
                        self._archive.remove(name, prunes=False)

    async def set_session_mode(self, session_id: str, mode_id: str, **_: Any) -> Any:
        """Change what needs consent."""
        from acp import schema

        with _told():
            if mode_id not in get_args(Mode):
                raise ValueError(
                    f"{shorten(mode_id, 40)} is no mode, known are {', '.join(_MODES)}"
                )
            await self._known(session_id).set_mode(cast("Mode", mode_id))
            return schema.SetSessionModeResponse()

    async def prompt(self, session_id: str, prompt: Sequence[Any], **_: Any) -> Any:
        """Let the agent work on what a person says."""
        from acp import schema

        with _told():
            reason = await self._known(session_id).say(_words(prompt))
            return schema.PromptResponse(stop_reason=cast("Any", reason))

    async def cancel(self, session_id: str, **_: Any) -> None:
        """End what is under way."""
        if session_id in self._open:
            self._open[session_id].interrupt()

    async def close_session(self, session_id: str, **_: Any) -> Any:
        """Leave a run; it can be loaded or resumed again."""
        from acp import schema

        with _told():
            opened = self._known(session_id)
            del self._open[session_id]
            await opened.close()
            return schema.CloseSessionResponse()

    async def authenticate(self, method_id: str, **_: Any) -> None:
        """Do nothing: whoever starts the agent is its user."""

    async def close(self) -> None:
        """Leave all runs, and the model."""
        runs, self._open = list(self._open.values()), {}
        await asyncio.gather(*(one.close() for one in runs), return_exceptions=True)
        if self._model is not None:
            await self._model.close()  # type: ignore[attr-defined]

    def _known(self, name: str) -> OpenRun:
        if name not in self._open:
            raise ValueError(f"the session {shorten(name, 80)} is not open")
        return self._open[name]

    async def _opened(self, name: str, servers: Any) -> OpenRun:
        """Open a run, unless it is open."""
        async with self._opening:
            if name in self._open and self._open[name].is_open:
                return self._open[name]
            if self._model is None:
                self._model = self._side.open()
            facts = self._archive.runs.facts(name)
            if (facts.session is None) != (self._side.llm is None):
                raise ValueError(f"run {name} has another kind of model: {facts.model}")
            opened = OpenRun(
                *(name, self._archive, self._side, self._model, self._wanted, self._editor),
                servers=servers,
            )
            await opened.open()
            self._open[name] = opened
            return opened

    async def _tell_commands(self, opened: OpenRun) -> None:
        """Tell the editor of the commands from folders."""
        from acp import helpers, schema

        assert opened.setup is not None
        commands = [
            schema.AvailableCommand(name=one.name, description=one.description or one.name)
            for one in opened.setup.folders.commands
        ]
        if commands:
            update = helpers.update_available_commands(commands)
            await self._editor.session_update(session_id=opened.name, update=update)


def _absolute(cwd: str) -> Path:
    if not os.path.isabs(cwd):
        raise ValueError(f"cwd is {shorten(cwd)}, it must be an absolute path")
    return Path(cwd)


def _modes(opened: OpenRun) -> Any:
    from acp import schema

    modes = [
        schema.SessionMode(id=mode, name=mode, description=about) for mode, about in _MODES.items()
    ]
    return schema.SessionModeState(current_mode_id=opened.mode, available_modes=modes)


def _words(prompt: Sequence[Any]) -> str:
    """Return what a person says as text: files that are named by their paths, and what comes along
    marked as such. Raises ValueError for what is no text."""
    parts = []
    for block in prompt:
        match block.type:
            case "text":
                parts.append(block.text)
            case "resource_link":
                parts.append(f"({block.uri.removeprefix('file://')})")
            case "resource" if getattr(block.resource, "text", None) is not None:
                parts.append(f"({block.resource.uri})\n{block.resource.text}")
            case kind:
                raise ValueError(f"the prompt has {kind} in it, this agent reads text")
    if not "".join(parts).strip():
        raise ValueError("the prompt is empty, there is nothing to do")
    return "\n".join(parts)


@contextmanager
def _told() -> Iterator[None]:
    """Make an error of the protocol of what went wrong."""
    from acp import RequestError

    try:
        yield
    except SandboxError as error:
        raise RequestError(-32603, str(error)) from None
    except ValueError as error:
        raise RequestError(-32602, str(error)) from None
    except OSError as error:
        raise RequestError(-32603, explain(error)) from None


def serve(archive: Archive, side: "Side", wanted: "Wanted", settings: Any) -> None:
    """Serve an editor on stdin and stdout until it closes them; stdout is the protocol's alone."""
    try:
        from acp import run_agent
    except ModuleNotFoundError:
        raise ValueError("--acp needs pip install 'fulmen[acp]'") from None

    async def run() -> None:
        agent = AcpAgent(archive, side, wanted, settings)
        try:
            await run_agent(cast("Any", agent), use_unstable_protocol=True)
        finally:
            await agent.close()

    asyncio.run(run())
