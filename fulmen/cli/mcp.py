"""fulmen mcp: models, sessions and runs of this machine as tools of an MCP server, on stdio.

    an MCP client <-> stdio (package mcp) <-> Tools -> model, SessionStore, Archive

The tools read, and one asks a model; none changes a run or a file. A model is loaded when it is
first asked.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fulmen.cli.agent_runs import RunsOption, open_archive
from fulmen.cli.help import examples
from fulmen.cli.options import (
    DEFAULT_AGENT_MODEL,
    ENGINE_CONFIG,
    MODEL_HELP,
    MODEL_OPTION,
    DeviceOption,
    DtypeOption,
    StoreOption,
    UrlDialectOption,
    UrlKeyOption,
    UrlOption,
    check_url_options,
    engine_flags,
    lasting_name,
    load_llm,
    read_dtype,
    with_flags_of,
)
from fulmen.files import shorten

if TYPE_CHECKING:  # a command imports what it needs, so that help comes at once
    from fulmen.agent import Archive
    from fulmen.chat import ChatModel, Message
    from fulmen.cli.agent_run import Side

_ENGINE_FLAGS: Final = ("max_model_len", "kv_cache_bytes", "kv_cache_dtype", "num_draft_tokens")
_MAX_LISTED: Final = 100
_MAX_TEXT: Final = 60_000
"""Characters of an answer to a client"""
_MAX_NEW_TOKENS: Final = 32_768

EXAMPLES: Final = examples(
    """
fulmen mcp                                   with the small model, on stdio
fulmen mcp --model minimax-m2
fulmen mcp --url http://127.0.0.1:8000       a model that a server has
""",
    {
        "Tools": """
One asks the model, in a session if one is named; others list models, sessions and runs of fulmen
agent, and read them.
""",
        "Clients": """
A client's settings have a command and its arguments: fulmen, and mcp with its options.
""",
    },
)


@with_flags_of(ENGINE_CONFIG, into="engine", only=_ENGINE_FLAGS, shows_defaults=True)
def mcp(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=f"{MODEL_HELP} With --url, its name there. Default: {DEFAULT_AGENT_MODEL}.",
            **MODEL_OPTION,
        ),
    ] = None,
    store: StoreOption = None,
    runs: RunsOption = None,
    url: UrlOption = None,
    url_key: UrlKeyOption = None,
    url_dialect: UrlDialectOption = "auto",
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
    *,
    engine: dict[str, Any],
) -> None:
    """Serve models, sessions and runs to programs by MCP."""
    local = engine_flags(engine, dtype, device, None) | {"--store": store}
    check_url_options(url, url_key, url_dialect, local)
    try:
        import mcp as _  # noqa: F401
    except ModuleNotFoundError:
        raise ValueError("fulmen mcp needs pip install 'fulmen[mcp]'") from None

    if url is None:  # a model is loaded later, what is wrong with it is told now
        from fulmen.engine import EngineConfig

        EngineConfig(**engine)
        read_dtype(dtype)

    def open_side() -> "Side":
        from fulmen.cli.agent_run import Side

        if url is not None:
            from fulmen.cli.remote import new_remote

            remote = new_remote(url, model, url_dialect, url_key)
            return Side(f"{model} at {url}" if model else url, remote=remote)
        name = model or DEFAULT_AGENT_MODEL
        return Side(lasting_name(name), llm=load_llm(name, dtype, device, engine))

    try:
        sys.stdin.fileno(), sys.stdout.fileno()
    except (OSError, ValueError):
        raise ValueError("stdin and stdout must be open, on which fulmen mcp speaks") from None
    tools = Tools(open_archive(runs, store, "20GiB"), open_side)
    asyncio.run(tools.serve())


class Tools:
    """The server's tools, for one event loop."""

    def __init__(self, archive: "Archive", open_side: "Callable[[], Side]") -> None:
        """
        open_side  loads the model, or finds it at a URL; called once, in a thread
        """
        self._archive = archive
        self._open_side = open_side
        self._side: Side | None = None
        self._model: ChatModel | None = None
        self._loading = asyncio.Lock()

    async def serve(self) -> None:
        """Serve a client until it closes stdin."""
        try:
            await self.server().run_stdio_async()
        finally:
            if self._model is not None:
                await self._model.close()  # type: ignore[attr-defined]

    def server(self) -> Any:
        """Return the server with its tools."""
        from mcp.server.mcpserver import MCPServer
        from mcp_types import ToolAnnotations

        from fulmen import __version__

        about = "Models, conversations and agents' runs of Fulmen on this machine."
        server = MCPServer("fulmen", version=__version__, instructions=about, log_level="ERROR")
        reads = ToolAnnotations(read_only_hint=True)
        for tool in (
            self.list_models,
            *(self.list_sessions, self.read_session, self.list_runs, self.read_run),
        ):
            server.tool(annotations=reads, structured_output=False)(_told(tool))
        server.tool(structured_output=False)(_told(self.ask))
        return server

    async def ask(
        self, prompt: str, session: str = "", system: str = "", max_tokens: int = 1024
    ) -> str:
        """Ask the model. With `session` the conversation of that name goes on, or begins, and is
        kept; `system` counts where a conversation begins."""
        from fulmen.chat import complete
        from fulmen.sampling import SamplingParams

        if not prompt.strip():
            raise ValueError("the prompt is empty, there is nothing to ask")
        if not 0 < max_tokens <= _MAX_NEW_TOKENS:
            raise ValueError(f"max_tokens is {max_tokens}, it must be up to {_MAX_NEW_TOKENS:,}")
        side, model = await self._loaded()
        params = side.params({}) if side.llm is not None else SamplingParams()
        if side.remote is not None:
            side.remote.sends = frozenset({"max_tokens"})
        params = replace(params, max_tokens=max_tokens)
        if session:
            return await self._in_session(side, model, session, (prompt, system), params)
        from fulmen.agent import PlainMemory

        request = PlainMemory().request(_messages(prompt, system), (), params=params)
        return (await complete(model, request)).reply.content

    async def _in_session(
        self, side: "Side", model: "ChatModel", name: str, said: tuple[str, str], params: Any
    ) -> str:
        from fulmen.agent import SessionMemory
        from fulmen.chat import complete
        from fulmen.cli.agent_means import session_opener

        store = self._archive.sessions
        if side.llm is None or store is None:
            raise ValueError("session is given, but the model is at a URL: its states are not here")
        opener = session_opener(
            side, self._archive, model, asyncio.get_running_loop(), keep_thoughts=False
        )
        with store.used_by_one(name):
            opened = await asyncio.to_thread(opener, name)
            before = opened.messages
            messages = [*before, *_messages(said[0], "" if before else said[1])]
            memory = SessionMemory(opened, lambda: opened)
            completion = await complete(model, memory.request(messages, (), params=params))
            await memory.keep(messages, completion, ())
        return completion.reply.content

    async def _loaded(self) -> "tuple[Side, ChatModel]":
        async with self._loading:
            if self._side is not None and self._model is not None:
                return self._side, self._model
            side = await asyncio.to_thread(self._open_side)
            model = side.open()
            self._side, self._model = side, model
            return side, model

    async def list_models(self) -> str:
        """List the models that Fulmen knows; `is_asked` is the one that `ask` asks, once it is
        loaded."""
        from fulmen.catalog import context_of, list_cards

        rows = [
            {
                "name": card.name,
                "title": card.title,
                "context": context_of(card),
                "comes_with_fulmen": card.folder is not None,
            }
            for card in list_cards()
        ]
        asked = None if self._side is None else self._side.name
        return _written({"models": rows, "is_asked": asked})

    async def list_sessions(self) -> str:
        """List conversations that are kept, the last used first."""
        return await asyncio.to_thread(self._sessions)

    def _sessions(self) -> str:
        from fulmen.sessions import last_question

        store = self._archive.sessions
        rows: list[Mapping[str, Any]] = []
        for name in () if store is None else store.names()[:_MAX_LISTED]:
            assert store is not None
            try:
                state = store.state(name)
                turns = store.turns(state)
            except ValueError:
                continue  # it cannot be read, `fulmen sessions list` says why
            about = {"model": state.model, "num_turns": len(turns)}
            rows.append({"name": name, **about, "last_question": last_question(turns)[:200]})
        return _written({"sessions": rows})

    async def read_session(self, name: str) -> str:
        """Read a conversation."""
        return await asyncio.to_thread(self._session, name)

    def _session(self, name: str) -> str:
        from fulmen.sessions import read_stored

        store = self._archive.sessions
        if store is None or not store.has(name):
            raise ValueError(f"there is no session {shorten(name, 80)}")
        lines = []
        for turn in store.turns(store.state(name)):
            read = read_stored(turn)
            lines += [_line(message) for message in (*read.messages, read.reply)]
        return "\n\n".join(lines) or "(nothing was said yet)"

    async def list_runs(self) -> str:
        """List runs of agents, the last used first."""
        return await asyncio.to_thread(self._runs)

    def _runs(self) -> str:
        rows = []
        for name in self._archive.runs.names()[:_MAX_LISTED]:
            try:
                one = self._archive.runs.outline(name)
            except ValueError:
                continue  # it cannot be read, `fulmen agent list` says why
            about = {"folder": one.facts.folder, "model": one.facts.model, "end": one.end}
            rows.append({"name": name, **about, "num_steps": one.num_steps, "task": one.task})
        return _written({"runs": rows})

    async def read_run(self, name: str, first_step: int = 1) -> str:
        """Read a run of an agent step by step: what was said, called and answered."""
        return await asyncio.to_thread(self._run, name, first_step)

    def _run(self, name: str, first_step: int) -> str:
        trajectory = self._archive.runs.open(name).trajectory
        if first_step < 1:
            raise ValueError(f"first_step is {first_step}, steps are numbered from 1")
        lines = []
        for number, step in enumerate(trajectory.steps[first_step - 1 :], first_step):
            lines.append(f"== step {number}")
            lines += [_line(message) for message in step.messages]
        lines += [_line(message) for message in trajectory.said]
        lines.append(f"({len(trajectory.steps)} steps, end: {trajectory.end or 'none yet'})")
        return "\n\n".join(lines)


def _messages(prompt: str, system: str) -> "list[Message]":
    from fulmen.chat import Message

    said = [Message("system", system)] if system.strip() else []
    return [*said, Message("user", prompt)]


def _line(message: "Message") -> str:
    calls = [
        f"{call.name}({json.dumps(dict(call.arguments), ensure_ascii=False)})"
        for call in message.tool_calls
    ]
    return "\n".join((f"-- {message.role}", *filter(None, (message.content, *calls))))


def _written(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)


def _told(tool: Any) -> Any:
    """Return a tool whose mistakes are sentences for the client, and whose texts are bounded."""
    from functools import wraps

    from mcp.server.mcpserver.exceptions import ToolError

    from fulmen.chat import ModelError
    from fulmen.files import explain

    @wraps(tool)
    async def told(*arguments: Any, **named: Any) -> str:
        try:
            text = await tool(*arguments, **named)
        except (ValueError, ModelError) as error:
            raise ToolError(str(error)) from None
        except OSError as error:
            raise ToolError(explain(error)) from None
        if len(text) <= _MAX_TEXT:
            return str(text)
        return f"{text[:_MAX_TEXT]}\n({len(text) - _MAX_TEXT:,} more characters)"

    return told
