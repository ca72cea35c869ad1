"""Teams: a lead that gives tasks to agents, each with a run of its own, on one model.

    team.toml -> TeamConfig -> Team -> lead <-> Post <-> explorers, workers, reviewers
                                |                         |
                          SharedBudget              git worktrees

Agents talk by messages that wait in mailboxes (`mailbox.py`), pay from one budget (`budget.py`),
and end with their lead (`team.py`). `patterns.py` has ways of working together that need no lead.
"""

from fulmen.agent.team.budget import BudgetedModel, SharedBudget
from fulmen.agent.team.config import AgentKind, TeamConfig, parse_team, read_team, team_of
from fulmen.agent.team.mailbox import Letter, Mailbox, Post
from fulmen.agent.team.members import Member, Report
from fulmen.agent.team.patterns import (
    Review,
    Try,
    best_of_n,
    fan_out,
    is_approved,
    map_reduce,
    review_loop,
)
from fulmen.agent.team.roles import lead_words
from fulmen.agent.team.team import Team, TeamWatcher
from fulmen.agent.team.worktrees import Conflict, Merge

__all__ = [
    "AgentKind",
    "BudgetedModel",
    "Conflict",
    "Letter",
    "Mailbox",
    "Member",
    "Merge",
    "Post",
    "Report",
    "Review",
    "SharedBudget",
    "Team",
    "TeamConfig",
    "TeamWatcher",
    "Try",
    "best_of_n",
    "fan_out",
    "is_approved",
    "lead_words",
    "map_reduce",
    "parse_team",
    "read_team",
    "review_loop",
    "team_of",
]
