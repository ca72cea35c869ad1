"""Runs in temporary folders: what a scripted or forced model is told, and what it then does."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fulmen.agent import Archive, Means, Permissions, Rules, Run, Work, system_prompt
from fulmen.chat import AnswerStream, ChatModel, ChatRequest, Message, get_format, read_messages
from fulmen.llm import LLM, ForcedModel, LocalModel, ScriptedModel
from fulmen.sandbox import PROTECTED
from fulmen.sessions import Session, SessionStore

TASK = "Do it."


def m2_calls(*calls: tuple[str, dict[str, Any]], thought: str = "Hm.") -> str:
    """Return an answer of M2 that makes calls."""
    inner = "".join(
        f'<invoke name="{name}">\n'
        + "".join(
            f'<parameter name="{key}">{value if isinstance(value, str) else json.dumps(value)}'
            "</parameter>\n"
            for key, value in arguments.items()
        )
        + "</invoke>\n"
        for name, arguments in calls
    )
    return f"{thought}\n</think>\n\n<minimax:tool_call>\n{inner}</minimax:tool_call>"


def m1_calls(*calls: tuple[str, dict[str, Any]], thought: str = "Hm.") -> str:
    """Return an answer of M1 that makes calls."""
    lines = "\n".join(json.dumps({"name": name, "arguments": given}) for name, given in calls)
    return f"<think>\n{thought}\n</think>\n\n<tool_calls>\n{lines}\n</tool_calls>"


def bash(kind: str, *commands: str, tool: str = "bash") -> str:
    """Return an answer that runs commands."""
    made = [(tool, {"command": command}) for command in commands]
    return m2_calls(*made) if kind == "m2" else m1_calls(*made)


def says(kind: str, text: str) -> str:
    """Return an answer without calls."""
    return f"Hm.\n</think>\n\n{text}" if kind == "m2" else f"<think>\nHm.\n</think>\n\n{text}"


def by_place(script: Sequence[str]) -> Callable[[ChatRequest], str]:
    """Return a line of a script that is the answer for the place of a request, however often that
    is asked: the number of answers before it."""

    def line(request: ChatRequest) -> str:
        messages = read_messages(request.messages)
        return script[sum(message.role == "assistant" for message in messages)]

    return line


@dataclass
class Noting:
    """A model that notes what it is asked."""

    model: ChatModel
    requests: list[ChatRequest] = field(default_factory=list)

    def stream(self, request: ChatRequest) -> AnswerStream:
        """Return the model's answer."""
        self.requests.append(request)
        return self.model.stream(request)


def content(folder: Path) -> dict[str, tuple[int, bytes | str]]:
    """Return everything in a folder: permissions, and bytes or target of a link. What an open
    sandbox puts there is left out."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_dir() and path.name in PROTECTED and path.lstat().st_mtime == 0:
            continue
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if path.is_symlink():
            found[name] = (mode, os.readlink(path))
        else:
            found[name] = (mode, b"" if path.is_dir() else path.read_bytes())
    return found


def means(folder: Path | str, mode: Any = "auto", **fields: Any) -> Means:
    """Return means without rules and limits."""
    permissions = Permissions(mode, fields.pop("rules", Rules()), workspace=Path(folder))
    return Means(permissions=permissions, **fields)


def begun(archive: Archive, folder: Path, **fields: Any) -> Run:
    """Return a new run in a folder."""
    fields = {"model": "m", "tools": "coding"} | fields
    system = (Message("system", system_prompt(fields["tools"])),)
    return archive.begin(folder, system=system, **fields)


def scripted(script: Sequence[Any], kind: str = "m2") -> ScriptedModel:
    """Return a model that says a script."""
    return ScriptedModel(get_format("minimax_m2" if kind == "m2" else "minimax_m1"), script)


@dataclass
class Local:
    """A model with an engine, and sessions for its states."""

    llm: LLM
    store: SessionStore
    model: LocalModel

    def forced(self, script: Any) -> Noting:
        """Return it, made to say a script."""
        return Noting(ForcedModel(self.model, script))

    def open_session(self, name: str) -> Session:
        """Open a session as the command line does."""
        import asyncio

        loop = self.loop

        def between(work: Any, /) -> Any:
            return asyncio.run_coroutine_threadsafe(self.model.call(work), loop).result()

        return Session(
            self.llm, self.store, name, model="tiny", keep_thoughts=True, between=between
        )

    def __post_init__(self) -> None:
        import asyncio

        self.loop = asyncio.get_running_loop()


def work_of(archive: Archive, name: str, model: Any, **fields: Any) -> Work:
    """Return the work on a run, unopened."""
    open_session = fields.pop("open_session", None)
    seen_as = archive.runs.open(name).facts.seen_as
    return Work(archive, name, model, means(seen_as, **fields), open_session=open_session)


@dataclass
class FirstForced:
    """A model that is made to say a text first, and then says what it likes."""

    free: LocalModel
    forced: ForcedModel
    asked: int = 0

    def stream(self, request: ChatRequest) -> AnswerStream:
        self.asked += 1
        return (self.forced if self.asked == 1 else self.free).stream(request)
