"""A team as its user writes it down, in a TOML file.

    [lead]
    alone = true              # works by itself, and gives tasks where that helps; false if omitted
    prompt = "Split the work, and check what you merge."    # added to its instructions

    [[agents]]
    name = "explorer"
    role = "explorer"         # explorer and reviewer only read; worker has a copy to change
    count = 3                 # that may work at one time
    description = "Finds causes."                    # for the lead
    prompt = "Look for the cause, not for the symptom."
    tools = "coding"          # coding or minimal
    mode = "plan"             # plan, ask, accept-edits or auto; never wider than the lead's
    max-turns = 50            # answers for one task

    [budget]                  # of all agents together, the lead too
    max-tokens = 200_000
    max-seconds = 1800
    answer = 8192             # tokens of one answer

Any other key is refused.
"""

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from fulmen.agent.permissions import MODES, Mode
from fulmen.agent.project import MAX_BYTES, Tools
from fulmen.agent.skills import SubAgent
from fulmen.files import explain, shorten

Role = Literal["explorer", "worker", "reviewer"]
ROLES: Final = get_args(Role)
_READING: Final = frozenset(
    {"read", "grep", "glob", "ls", "todo", "skill", "todowrite", "webfetch", "websearch"}
)
"""Names of tools, here and in other agents, that change no files"""
_SUB_AGENTS: Final = 4
"""Sub-agents of one name that may work at one time"""
LEAD: Final = "lead"
USER: Final = "user"
_TAKEN: Final = (LEAD, "post", USER)
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,19}")
_MAX_AGENTS: Final = 20
_MAX_COUNT: Final = 64
_KEYS: Final = (LEAD, "agents", "budget")
_AGENT_KEYS: Final = (
    *("name", "role", "count", "description", "prompt"),
    *("tools", "mode", "max-turns"),
)
_BUDGET_KEYS: Final = ("max-tokens", "max-seconds", "answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentKind:
    """Agents of one name in a team: worker-1, worker-2 and so on."""

    name: str
    role: Role
    count: int = 1
    """Most that work at one time"""
    description: str = ""
    """Sentence that tells the lead what it is good for"""
    prompt: str = ""
    tools: Tools | None = None
    """None: those of the lead"""
    mode: Mode | None = None
    """None: plan for those that only read; accept-edits in a worker's copy, where the lead asks"""
    max_turns: int | None = 50
    """Answers for one task"""

    @property
    def is_worker(self) -> bool:
        """True if it has a copy of the folder that it may change."""
        return self.role == "worker"

    def mode_under(self, lead: Mode) -> Mode:
        """Return its mode under a lead of some mode: never a wider one, but for edits of a copy,
        since merging them asks."""
        if not self.is_worker or lead == "plan":
            return "plan"
        if self.mode is None:
            return "accept-edits" if lead == "ask" else lead
        widest: Mode = "accept-edits" if lead == "ask" else lead
        return min(self.mode, widest, key=MODES.index)


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamConfig:
    """A team: its agents, and what they may take together."""

    agents: tuple[AgentKind, ...]
    lead_prompt: str = ""
    is_lead_alone: bool = False
    """The lead works by itself, and gives tasks where that helps"""
    max_tokens: int | None = None
    """New tokens of all answers"""
    max_seconds: float | None = None
    max_answer: int = 8192
    """Tokens of one answer"""
    kinds: Mapping[str, AgentKind] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", {one.name: one for one in self.agents})


def read_team(path: Path) -> tuple[TeamConfig, str]:
    """Read a team and the text that says it. Raises ValueError, one sentence that names the file
    and the key."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"the team cannot be read: {explain(error)}") from None
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes, it is no team")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    return parse_team(text, str(path)), text


def parse_team(text: str, where: str) -> TeamConfig:
    """Read a team. Raises ValueError like `read_team`.

    where  names the text in an error, such as its path
    """
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is not valid TOML: {shorten(error)}") from None
    _check_keys(document, _KEYS, where)
    lead, budget = (_table(document.get(key, {}), f"{where}: {key}") for key in (LEAD, "budget"))
    _check_keys(lead, ("alone", "prompt"), f"{where}: lead")
    if type(alone := lead.get("alone", False)) is not bool:
        raise ValueError(f"{where}: alone of lead is {shorten(repr(alone))}, it is true or false")
    _check_keys(budget, _BUDGET_KEYS, f"{where}: budget")
    seconds = budget.get("max-seconds")
    if seconds is not None and (type(seconds) not in (int, float) or not 0 < seconds < 2**62):
        raise ValueError(
            f"{where}: max-seconds of budget is {shorten(repr(seconds))}, it must be a number "
            "above 0"
        )
    return TeamConfig(
        agents=_agents(document.get("agents"), where),
        lead_prompt=_text(lead, "prompt", f"{where}: lead"),
        is_lead_alone=alone,
        max_tokens=_whole(budget, "max-tokens", None, 2**62, f"{where}: budget"),
        max_seconds=seconds,
        max_answer=_whole(budget, "answer", 8192, 2**31, f"{where}: budget") or 8192,
    )


def team_of(agents: Sequence[SubAgent]) -> tuple[str, tuple[str, ...]]:
    """Return the team of an agent that has sub-agents in folders, as its TOML, and sentences on
    those that cannot be in it; an empty text if none can.

    One whose tools only read is an explorer, any other one is a worker.
    """
    tables, notes, names = [], [], set[str]()
    for one in agents:
        name = one.name.lower().replace("-", "_")[:20]
        if not _NAME.fullmatch(name) or name in (*_TAKEN, *names) or len(names) == _MAX_AGENTS:
            why = "there are 20 already" if len(names) == _MAX_AGENTS else "this name cannot be had"
            notes.append(f"the sub-agent {one.name} is left out: {why}")
            continue
        if one.model not in ("", "inherit"):
            notes.append(f"the sub-agent {one.name} asks for {one.model}, it has this run's model")
        names.add(name)
        tools = None if one.tools is None else {tool.lower() for tool in one.tools}
        fields = {
            "name": name,
            "role": "explorer" if tools is not None and tools <= _READING else "worker",
            "count": _SUB_AGENTS,
            "description": one.description,
            "prompt": one.text.strip(),
        }
        lines = (f"{key} = {_toml(value)}" for key, value in fields.items())
        tables.append("\n".join(["[[agents]]", *lines]))
    text = "\n\n".join(["[lead]\nalone = true", *tables]) + "\n" if tables else ""
    if len(text.encode()) > MAX_BYTES:
        return "", (f"the sub-agents have more than {MAX_BYTES:,} bytes, they are left out",)
    return text, tuple(notes)


def _toml(value: str | int) -> str:
    """Return a value as TOML has it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _agents(tables: Any, where: str) -> tuple[AgentKind, ...]:
    if not isinstance(tables, list) or not tables:
        raise ValueError(f"{where} has no agents, a team needs one or more tables [[agents]]")
    if len(tables) > _MAX_AGENTS:
        raise ValueError(f"{where} has {len(tables)} agents, at most {_MAX_AGENTS} may be")
    kinds = [_agent(table, f"{where}: agents {at}") for at, table in enumerate(tables, 1)]
    names = [one.name for one in kinds]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{where} has two agents of the name {name}, count makes several")
    return tuple(kinds)


def _agent(value: Any, where: str) -> AgentKind:
    table = _table(value, where)
    _check_keys(table, _AGENT_KEYS, where)
    name = table.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{where}: name is {shorten(repr(name))}, it must be a text of up to 20 small letters, "
            "digits and underlines that begins with a letter"
        )
    if name in _TAKEN:
        raise ValueError(f"{where}: name is {name!r}, which no agent beside the lead can have")
    where = f"{where} ({name})"
    role = _choice(table, "role", ROLES, where)
    if role is None:
        raise ValueError(f"{where} has no role, it must be one of {', '.join(ROLES)}")
    mode = _choice(table, "mode", MODES, where)
    if role != "worker" and mode not in (None, "plan"):
        raise ValueError(f"{where}: mode is {mode!r}, but a {role} only reads, which is plan")
    turns = _whole(table, "max-turns", 50, 2**31, where)
    return AgentKind(
        name=name,
        role=cast("Role", role),
        count=_whole(table, "count", 1, _MAX_COUNT, where) or 1,
        description=_text(table, "description", where),
        prompt=_text(table, "prompt", where),
        tools=cast("Tools | None", _choice(table, "tools", get_args(Tools), where)),
        mode=cast("Mode | None", mode),
        max_turns=turns,
    )


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a table, it is {shorten(repr(value))}")
    return value


def _check_keys(table: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise ValueError(f"{where} has {shorten(repr(key))}, it may have {', '.join(known)}")


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str):
        raise ValueError(f"{where}: {key} is {shorten(repr(value))}, it must be a text")
    return value.strip()


def _whole(
    table: Mapping[str, Any], key: str, default: int | None, most: int, where: str
) -> int | None:
    value = table.get(key, default)
    if value is not None and (type(value) is not int or not 0 < value <= most):
        raise ValueError(
            f"{where}: {key} is {shorten(repr(value))}, it must be a whole number from 1 to "
            f"{most:,}"
        )
    return value


def _choice(table: Mapping[str, Any], key: str, choices: tuple[str, ...], where: str) -> str | None:
    value = table.get(key)
    if value is not None and value not in choices:
        raise ValueError(
            f"{where}: {key} is {shorten(repr(value))}, it must be one of {', '.join(choices)}"
        )
    return cast("str | None", value)
