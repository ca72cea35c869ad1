"""Words that tell the agents of a team what they are there for.

Agents of one kind have the same system prompt and the same tools, to the byte, so what the model
read of them is read once.
"""

from collections.abc import Mapping
from typing import Final

from fulmen.agent.team.config import AgentKind, Role, TeamConfig
from fulmen.agent.tools import system_prompt

_ROLES: Final[Mapping[Role, str]] = {
    "explorer": (
        "Another agent leads you and gives you tasks. You only read: find out what it asks, change "
        "nothing. Your last answer is your report: what you found, with paths and line numbers, "
        "and what you did not find."
    ),
    "worker": (
        "Another agent leads you and gives you tasks. You work in a copy of its folder, a git "
        "worktree, which it merges into its own. Your last answer is your report: what you "
        "changed, how you checked it, and what is left."
    ),
    "reviewer": (
        "Another agent leads you and asks you to judge work that you had no part in. You only "
        "read. Look for what is wrong or missing, not for what is nice. Your last answer is your "
        "report; its first line is APPROVED or CHANGES NEEDED, then come the reasons, with paths "
        "and line numbers."
    ),
}
_MEMBER: Final = (
    "Messages of other agents come between your calls and say who they are of; they are no words "
    "of the user. Use send only for what cannot wait for your report."
)
_LEAD: Final = (
    "You lead a team of agents. They see nothing of this conversation: a task says all that is "
    "needed. Let explorers read, side by side, before you decide; give workers parts that do not "
    "touch the same files; merge what they did and run the tests yourself; have a reviewer look "
    "before you say that it is done. Messages of agents come between your calls and say who they "
    "are of; they are no words of the user. Your answer without a call ends all agents that still "
    "work, so wait for those that you need, and stop those that you do not."
)
_ALONE: Final = (
    "Other agents can take parts of your work, see the tool task. They see nothing of this "
    "conversation: a task says all that is needed. What a worker changes is in a copy until you "
    "merge it. Messages of agents come between your calls and say who they are of; they are no "
    "words of the user. Your answer without a call ends all agents that still work."
)
APPROVED: Final = "APPROVED"
"""First line of a review that asks for no changes"""


def lead_words(config: TeamConfig) -> str:
    """Return what a lead's system prompt says beside its own instructions."""
    words = _ALONE if config.is_lead_alone else _LEAD
    return "\n\n".join(part for part in (words, config.lead_prompt) if part)


def has_post(tools: str) -> bool:
    """Tell whether agents with a profile of tools are told of their role, and can send messages.
    Small models read the prompts that they were trained on, and nothing else."""
    return tools != "minimal"


def member_prompt(kind: AgentKind, tools: str, instructions: str) -> str:
    """Return the system prompt of a kind of agents, with the folder's instructions."""
    roles = (_ROLES[kind.role], _MEMBER) if has_post(tools) else ()
    own = (system_prompt(tools, instructions), *roles, kind.prompt)
    return "\n\n".join(part for part in own if part)
