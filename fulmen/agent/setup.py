"""Everything that is said about an agent before it begins: by its user, a workspace, and both.

    agent.toml, AGENTS.md of the user  +  .fulmen/agent.toml, AGENTS.md of the workspace
    -> mode, tools, network, limits, rules, variables of the shell, instructions

The workspace's settings are a stranger's until they are approved (`project.py`).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fulmen.agent.consent import Consent
from fulmen.agent.ignored import repository_above
from fulmen.agent.instructions import (
    NAME,
    Instructions,
    find_instructions,
    read_instructions,
    read_own,
)
from fulmen.agent.loop import Hands
from fulmen.agent.mcp import McpHands
from fulmen.agent.permissions import Mode, Permissions
from fulmen.agent.project import (
    AgentConfig,
    Approvals,
    RememberedRules,
    parse_config,
    project_file,
    read_content,
    read_project,
)
from fulmen.agent.rules import Rules
from fulmen.agent.skills import Folders, SkillHands
from fulmen.agent.web import WebHands

_USERS: Final = "agent.toml"


@dataclass(frozen=True, slots=True)
class Setup:
    """Settings and instructions that hold in one workspace."""

    workspace: Path
    """Folder that they were read in"""
    home: Path
    """The user's folder of settings"""
    config: AgentConfig
    instructions: tuple[Instructions, ...]
    """Instructions of the user, then those of the workspace"""
    waiting: bytes | None
    """Settings of the workspace that do not hold before the user approves them"""
    notes: tuple[str, ...] = ()
    """Sentences on what is not as one would expect"""
    folders: Folders = field(default_factory=Folders)
    """Skills, commands and sub-agents"""

    @classmethod
    def read(cls, workspace: Path, home: Path) -> "Setup":
        """Read all that is said. Raises ValueError, a sentence that names the file, for settings
        that cannot be read and for instructions that are not there."""
        users = _users_config(home)
        own, waiting = read_project(workspace, Approvals(home))
        found = find_instructions(workspace, home=home)
        for config, folder in ((users, home), (own, workspace)):
            found += [_named(name, folder, is_own=folder == home) for name in config.instructions]
        folders = Folders.read(workspace, home)
        notes = (*_notes(workspace, found), *folders.notes)
        return cls(workspace, home, users.under(own), tuple(found), waiting, notes, folders)

    def approve(self) -> "Setup":
        """Let the workspace's settings hold from now on, until their content changes."""
        if self.waiting is None:
            return self
        Approvals(self.home).approve(project_file(self.workspace), self.waiting)
        return Setup.read(self.workspace, self.home)

    def approve_as(self, other: Path) -> None:
        """Approve a fork's settings, if they are those that were approved for another folder."""
        approvals = Approvals(self.home)
        if self.waiting is not None and approvals.is_approved(project_file(other), self.waiting):
            approvals.approve(project_file(self.workspace), self.waiting)

    @property
    def text(self) -> str:
        """The instructions for a system prompt: without a path, so that forks share it."""
        parts = []
        for one in self.instructions:
            is_users = one.path.is_relative_to(self.home)
            folder, whose = (self.home, "the user") if is_users else (self.workspace, "this folder")
            if not is_users and not one.path.is_relative_to(self.workspace):
                whose = "a folder above"
            name = os.path.relpath(one.path, folder)
            parts.append(f"Instructions of {whose} ({name}):\n\n{one.text.strip()}")
        return "\n\n".join(parts)

    def more_hands(
        self, *, folder: Path | None = None, only_reads: bool = False
    ) -> tuple[Callable[[Consent], Hands], ...]:
        """Return the tools beside those of the workbench that the settings name, as `Means` has
        them.

        folder      where MCP servers begin, such as a worker's copy; the workspace if omitted
        only_reads  those alone that plan mode does not refuse
        """
        made: list[Callable[[Consent], Hands]] = []
        place = folder or self.workspace
        if (servers := self.config.mcp) and not only_reads:
            made.append(lambda consent: McpHands(servers, consent, folder=place))
        if self.config.has_web:
            made.append(WebHands)
        if skills := self.folders.skills:
            made.append(lambda _: SkillHands(skills, workspace=self.workspace))
        return tuple(made)

    @property
    def readable(self) -> tuple[Path, ...]:
        """Folders outside the workspace that the agent may read: those of the user's skills."""
        return tuple(one.folder for one in self.folders.skills if one.is_own)

    def permissions(
        self, *, seen_as: Path, mode: Mode | None = None, rules: Rules | None = None
    ) -> Permissions:
        """Return what the agent may do.

        seen_as  path of the workspace inside the sandbox
        mode     the mode, whatever the settings say
        rules    more rules
        """
        remembered = RememberedRules(self.home, seen_as)
        return Permissions(
            mode or self.config.mode or "ask",
            self.config.rules | remembered.read() | (rules or Rules()),
            workspace=seen_as,
            source=self.workspace,
            store=remembered.add,
        )


def _users_config(home: Path) -> AgentConfig:
    path = home / _USERS
    content = read_content(path.resolve())  # one's own settings may be a link, to one's dotfiles
    return AgentConfig() if content is None else parse_config(content, str(path))


def _notes(workspace: Path, found: list[Instructions]) -> tuple[str, ...]:
    notes = []
    place = workspace / NAME
    if place.is_symlink() and all(one.path != place for one in found):
        notes.append(f"{place} is not read: the link leads to no Markdown in the folder")
    top = repository_above(Path(os.path.realpath(workspace)))
    if top is not None:
        notes.append(
            f"the repository begins at {top}: git finds none here, start there if the agent is to "
            "use it"
        )
    return tuple(notes)


def _named(name: str, folder: Path, *, is_own: bool) -> Instructions:
    path = folder / name
    found = read_own(path) if is_own else read_instructions(path, within=folder)
    if found is None:
        raise ValueError(f"{folder / name} is named as instructions, and cannot be read as such")
    return found
