"""The agent: what its tools may do, by whose consent, and the instructions it follows."""

from fulmen.agent.instructions import Instructions, find_instructions, instructions_for
from fulmen.agent.permissions import MODES, Mode, Part, Permissions, Verdict
from fulmen.agent.project import (
    AgentConfig,
    Approvals,
    RememberedRules,
    agent_folder,
    parse_config,
    project_file,
    read_content,
    read_project,
)
from fulmen.agent.rules import Rule, Rules

__all__ = [
    "MODES",
    "AgentConfig",
    "Approvals",
    "Instructions",
    "Mode",
    "Part",
    "Permissions",
    "RememberedRules",
    "Rule",
    "Rules",
    "Verdict",
    "agent_folder",
    "find_instructions",
    "instructions_for",
    "parse_config",
    "project_file",
    "read_content",
    "read_project",
]
