"""Agents: a model that works in a folder by calling tools, and every state that it went through.

    ChatModel <-> Agent (loop.py) <-> Workbench (tools in a sandbox, by consent) <-> a folder
                    |                                                                |
                    records (trajectory.py, run.py)                     snapshots (workspace.py)

A trajectory is everything that happened in one run, token by token; `Runs` keeps it on disk.
`Archive` goes back to any step of one, `Work` goes on with it.

The room has more files than most, since each is one thing that is looked for by its name. Its two
halves, consent (permissions, rules, commands ...) and time (archive, workspace, repository ...),
know nothing of one another but what `Work` tells them.
"""

from fulmen.agent.archive import Archive, Aside
from fulmen.agent.compaction import Compactor, summary_of
from fulmen.agent.consent import Approve, Consent
from fulmen.agent.hooks import Hook, HookedHands
from fulmen.agent.instructions import Instructions, find_instructions
from fulmen.agent.joined import JoinedHands
from fulmen.agent.loop import Agent, Budget, Hands, Inbox, TokensSpent, Watcher
from fulmen.agent.mcp import McpHands, McpServer
from fulmen.agent.memory import Memory, PlainMemory, SessionMemory, TranscriptMemory
from fulmen.agent.notes import NoteHands, Notes
from fulmen.agent.permissions import MODES, Mode, Permissions
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
from fulmen.agent.run import Outline, Run, RunFacts, Runs, default_runs, new_name
from fulmen.agent.scan import Limits, Skipped
from fulmen.agent.setup import Setup
from fulmen.agent.skills import Folders, PromptCommand, Skill, SkillHands, SubAgent
from fulmen.agent.team import (
    AgentKind,
    BudgetedModel,
    Conflict,
    Letter,
    Mailbox,
    Member,
    Merge,
    Post,
    Report,
    Review,
    SharedBudget,
    Team,
    TeamConfig,
    TeamWatcher,
    Try,
    best_of_n,
    fan_out,
    is_approved,
    lead_words,
    map_reduce,
    parse_team,
    read_team,
    review_loop,
    team_of,
)
from fulmen.agent.tools import PROFILES, system_prompt
from fulmen.agent.trajectory import (
    USAGE,
    Answer,
    Compaction,
    EndReason,
    Journal,
    Notebook,
    Result,
    Sampled,
    Score,
    Step,
    Trajectory,
    records_of,
    said_record,
)
from fulmen.agent.trajectory_files import (
    read_trajectories,
    read_trajectory,
    to_atif,
    trajectory_record,
    write_trajectories,
)
from fulmen.agent.verdicts import Part, Verdict
from fulmen.agent.viewer import escaped, html_page, trajectory_facts, view, view_inside
from fulmen.agent.work import Means, Work, check_protected, run_settings
from fulmen.agent.workbench import Workbench
from fulmen.agent.workspace import Change, ChangedSince, NotSaved, Restored, Snapshot, Snapshots

__all__ = [
    "MODES",
    "PROFILES",
    "USAGE",
    "Agent",
    "AgentConfig",
    "AgentKind",
    "Answer",
    "Approvals",
    "Approve",
    "Archive",
    "Aside",
    "Budget",
    "BudgetedModel",
    "Change",
    "ChangedSince",
    "Compaction",
    "Compactor",
    "Conflict",
    "Consent",
    "EndReason",
    "Folders",
    "Hands",
    "Hook",
    "HookedHands",
    "Inbox",
    "Instructions",
    "JoinedHands",
    "Journal",
    "Letter",
    "Limits",
    "Mailbox",
    "McpHands",
    "McpServer",
    "Means",
    "Member",
    "Memory",
    "Merge",
    "Mode",
    "NotSaved",
    "NoteHands",
    "Notebook",
    "Notes",
    "Outline",
    "Part",
    "Permissions",
    "PlainMemory",
    "Post",
    "PromptCommand",
    "RememberedRules",
    "Report",
    "Restored",
    "Result",
    "Review",
    "Rule",
    "Rules",
    "Run",
    "RunFacts",
    "Runs",
    "Sampled",
    "Score",
    "SessionMemory",
    "Setup",
    "SharedBudget",
    "Skill",
    "SkillHands",
    "Skipped",
    "Snapshot",
    "Snapshots",
    "Step",
    "SubAgent",
    "Team",
    "TeamConfig",
    "TeamWatcher",
    "TokensSpent",
    "Trajectory",
    "TranscriptMemory",
    "Try",
    "Verdict",
    "Watcher",
    "Work",
    "Workbench",
    "agent_folder",
    "best_of_n",
    "check_protected",
    "default_runs",
    "escaped",
    "fan_out",
    "find_instructions",
    "html_page",
    "is_approved",
    "lead_words",
    "map_reduce",
    "new_name",
    "parse_config",
    "parse_team",
    "project_file",
    "read_content",
    "read_project",
    "read_team",
    "read_trajectories",
    "read_trajectory",
    "records_of",
    "review_loop",
    "run_settings",
    "said_record",
    "summary_of",
    "system_prompt",
    "team_of",
    "to_atif",
    "trajectory_facts",
    "trajectory_record",
    "view",
    "view_inside",
    "write_trajectories",
]
