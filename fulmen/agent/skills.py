"""Skills, commands and sub-agents that lie in folders, as other agents have them too.

    skills/NAME/SKILL.md    instructions for a kind of work, read by the model when it needs them
    commands/NAME.md        words that a person says by a name: /NAME ARGUMENTS
    agents/NAME.md          another agent that may be given a task

Each is Markdown with YAML before it. They lie in the user's folder of settings, and in `.fulmen` or
`.claude` of a workspace, which a sandbox protects from the agent. A workspace's are a stranger's
text like its AGENTS.md: they say things, and allow nothing. The user's own win where a name is the
same.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fulmen.agent.front_matter import list_field, read_front_matter, text_field
from fulmen.agent.instructions import Instructions, read_instructions, read_own
from fulmen.agent.trajectory import Result
from fulmen.chat import Tool, ToolCall
from fulmen.files import printable, shorten

_PLACES: Final = (".fulmen", ".claude")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.I)
_MAX_FOUND: Final = 64
"""Files of one kind in one folder"""
_MAX_DESCRIPTION: Final = 400


@dataclass(frozen=True, slots=True)
class Skill:
    """Instructions for a kind of work."""

    name: str
    description: str
    text: str
    folder: Path
    """Folder on this machine with more files for it"""
    is_own: bool
    """True for the user's own"""


@dataclass(frozen=True, slots=True)
class PromptCommand:
    """Words that a person says by a name."""

    name: str
    description: str
    hint: str
    """Arguments that it takes, for people"""
    text: str

    def expand(self, arguments: str) -> str:
        """Return the words with what stands behind the name in them: `$ARGUMENTS` is all of it, $1
        to $9 are its parts; where neither stands, it comes last."""
        parts = arguments.split()

        def value(found: re.Match[str]) -> str:
            name = found.group(1)
            if name == "ARGUMENTS":
                return arguments
            return parts[int(name) - 1] if int(name) <= len(parts) else ""

        text, num_found = re.subn(r"\$(ARGUMENTS\b|[1-9](?!\d))", value, self.text.strip())
        return text if num_found or not arguments else f"{text}\n\n{arguments}"


@dataclass(frozen=True, slots=True)
class SubAgent:
    """Another agent that may be given a task."""

    name: str
    description: str
    tools: tuple[str, ...] | None
    """Names of its tools; None: all of them"""
    model: str
    """Name of its model; empty for that of the agent which gives the task"""
    text: str
    """Instructions, its system prompt"""


@dataclass(frozen=True, slots=True)
class Folders:
    """All that lies in the folders of the user and of a workspace."""

    skills: tuple[Skill, ...] = ()
    commands: tuple[PromptCommand, ...] = ()
    agents: tuple[SubAgent, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences on files that say nothing"""

    @classmethod
    def read(cls, workspace: Path, home: Path) -> "Folders":
        """Read the folders, in an order that depends on the names alone.

        home  the user's folder of settings
        """
        notes: list[str] = []
        skills: dict[str, Skill] = {}
        commands: dict[str, PromptCommand] = {}
        agents: dict[str, SubAgent] = {}
        for name, file, is_own in _files("skills", workspace, home):
            fields, text = read_front_matter(file.text)
            about = text_field(fields, "description")
            if not about:
                notes.append(f"{printable(str(file.path))} has no description, it is left out")
                continue
            about = shorten(about, _MAX_DESCRIPTION)
            skills.setdefault(name, Skill(name, about, text, file.path.parent, is_own))
        for name, file, _ in _files("commands", workspace, home):
            fields, text = read_front_matter(file.text)
            about, hint = text_field(fields, "description"), text_field(fields, "argument-hint")
            about, hint = shorten(about, _MAX_DESCRIPTION), shorten(hint, 80)
            commands.setdefault(name, PromptCommand(name, about, hint, text))
        for name, file, _ in _files("agents", workspace, home):
            fields, text = read_front_matter(file.text)
            about = shorten(text_field(fields, "description"), _MAX_DESCRIPTION)
            tools, model = list_field(fields, "tools"), text_field(fields, "model")
            agents.setdefault(name, SubAgent(name, about, tools, model, text))
        return cls(
            tuple(skills[name] for name in sorted(skills)),
            tuple(commands[name] for name in sorted(commands)),
            tuple(agents[name] for name in sorted(agents)),
            tuple(notes),
        )

    def expanded(self, words: str) -> str:
        """Return words of a person, or those that they stand for: /NAME ARGUMENTS."""
        name, rest = (*words.split(maxsplit=1), "", "")[:2]
        for one in self.commands:
            if words.startswith("/") and name == f"/{one.name}":
                return one.expand(rest.strip())
        return words


def _files(kind: str, workspace: Path, home: Path) -> Iterator[tuple[str, Instructions, bool]]:
    """Yield the files of one kind by their names, the user's first, and whether they are his."""
    for name, path in _entries(home / kind, kind):
        if (own := read_own(path)) is not None:
            yield name, own, True
    for place in _PLACES:
        for name, path in _entries(workspace / place / kind, kind):
            if (found := read_instructions(path, within=workspace)) is not None:
                yield name, found, False


def _entries(folder: Path, kind: str) -> list[tuple[str, Path]]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    found = []
    for name in names:
        is_skill = kind == "skills"
        stem = name if is_skill else name.removesuffix(".md")
        if _NAME.fullmatch(stem) and (is_skill or name.endswith(".md")):
            found.append((stem, folder / name / "SKILL.md" if is_skill else folder / name))
    return found[:_MAX_FOUND]


class SkillHands:
    """The tool `skill`, which reads one; `Hands` of an agent."""

    def __init__(self, skills: Sequence[Skill], *, workspace: Path) -> None:
        """
        workspace  the folder on this machine that the workspace's own skills lie in
        """
        self._skills = {one.name: one for one in skills}
        self._workspace = workspace
        rows = [f"- {one.name}: {one.description}" for one in self._skills.values()]
        about = "Read instructions for a kind of work before you begin it. There are:\n"
        schema = {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
        }
        self._tool = Tool("skill", about + "\n".join(rows), schema)

    @property
    def tools(self) -> Sequence[Tool]:
        """The one tool."""
        return (self._tool,)

    def is_independent(self, call: ToolCall) -> bool:
        """Return True: it only reads."""
        return True

    async def run(self, number: int, call: ToolCall) -> Result:
        """Return the text of a skill, and where its other files are."""
        name = call.arguments.get("name")
        one = self._skills.get(name) if isinstance(name, str) else None
        if one is None:
            known = ", ".join(self._skills)
            text = f"there is no skill {shorten(str(name), 60)}; there are: {known}"
            return Result(number, text, True)
        place = str(one.folder) if one.is_own else os.path.relpath(one.folder, self._workspace)
        whose = "the user's" if one.is_own else "this folder's"
        return Result(number, f"(a skill, {whose}; its files are in {place})\n{one.text.strip()}")

    async def interrupted(self, number: int, call: ToolCall, by: str) -> Result:
        """Return the result of a call that was ended."""
        return Result(number, f"(ended by {by} before it was read)", True)

    def forget(self) -> None:
        """Do nothing: a skill is read again when it is asked for again."""
