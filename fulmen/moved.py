"""Import paths of 0.1 that have moved: an import of one fails, and the sentence names the new path.

Python asks a finder for a module that it did not find, and the same way for a name that a package
lacks, as in `from fulmen.llm import AsyncLLM`. So one table answers for both. Names of
`fulmen.models` that moved still work: see `models/moved.py`.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Final

MOVED: Final[Mapping[str, str]] = {
    "fulmen.async_llm": "fulmen.llm.LocalModel",
    "fulmen.llm.AsyncLLM": "fulmen.llm.LocalModel",
    "fulmen.llm.StopTexts": "fulmen.chat.StopTexts",
    "fulmen.llm.recommended_sampling": "fulmen.catalog.recommended_sampling",
    "fulmen.scale": "fulmen.evaluate",
    "fulmen.terminal": "fulmen.cli.conversation",
    "fulmen.thinking": "fulmen.llm.thinking",
    **dict.fromkeys(("fulmen.models.catalog", "fulmen.models.download"), "fulmen.catalog"),
    **dict.fromkeys(
        ("fulmen.models.checkpoint", "fulmen.models.fingerprint", "fulmen.models.gguf"),
        "fulmen.checkpoints",
    ),
    "fulmen.engine.session": "fulmen.sessions",
    "fulmen.engine.cache": "fulmen.engine.prefixes",
    "fulmen.engine.FinishReason": "fulmen.sampling.FinishReason",
    "fulmen.engine.SessionStore": "fulmen.sessions.SessionStore",
    "fulmen.engine.Turn": "fulmen.sessions.StoredTurn",
    "fulmen.llm.ChatStream": "fulmen.llm.Stream",
    "fulmen.llm.Completion": "fulmen.chat.Completion",
    "fulmen.llm.Purse": "fulmen.chat.TokenBudget",
    "fulmen.models.plan": "fulmen.plan",
    "fulmen.models.quantize": "fulmen.quantize",
}
"""New path by old path, of modules and of names that were behind a room's door."""


class _Finder:
    """Finder that finds nothing, and says where an old path has gone."""

    @staticmethod
    def find_spec(fullname: str, path: Sequence[str] | None, target: object = None) -> None:
        if fullname in MOVED:
            raise ImportError(f"{fullname} has moved, it is now {MOVED[fullname]}", name=fullname)


def install() -> None:
    """Ask this table last, after every finder that could find a module."""
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
