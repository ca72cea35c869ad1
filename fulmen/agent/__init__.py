"""The agent: what its tools may do, and by whose consent."""

from fulmen.agent.permissions import MODES, Mode, Part, Permissions, Verdict
from fulmen.agent.rules import Rule, Rules

__all__ = [
    "MODES",
    "Mode",
    "Part",
    "Permissions",
    "Rule",
    "Rules",
    "Verdict",
]
