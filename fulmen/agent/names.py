"""Names of files that are asked about in every mode: those that decide what runs, or hold keys."""

import re
from typing import Final

from fulmen.agent.rules import MARKS, Rule
from fulmen.sandbox import PROTECTED

_DECIDING: Final = frozenset((*PROTECTED, "HEAD"))
"""Any folder with a HEAD may be a repository, whose settings start programs"""
_SECRET: Final = re.compile(
    r"\.env(?!\.(example|sample|template)$)(\..*)?|\.envrc|\.npmrc|\.netrc|\.pypirc|"
    r"\.git-credentials"
)
_SECRETS: Final = tuple(
    Rule("read", name)
    for name in (".env", ".env.*", ".envrc", ".npmrc", ".netrc", ".pypirc", ".git-credentials")
)
"""Those that a name may become of which only a part is known, such as `.en?`"""


def decides(name: str) -> bool:
    """Return whether a file of this name, or one below it, decides what runs later or what the
    agent may do."""
    return name in _DECIDING


def may_hold_keys(name: str) -> bool:
    """Return whether a name, or one that it may become, is that of a file with keys. A wildcard at
    its beginning stands for no dot."""
    if not MARKS & set(name):
        return bool(_SECRET.fullmatch(name))
    return name[:1] == "." and any(rule.match((name,)) != "no" for rule in _SECRETS)
