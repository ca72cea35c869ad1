"""Recent prompts with their answers, to say where a later prompt left them, and why."""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from threading import Lock
from typing import Any

import numpy as np

from fulmen.chat import Message, Tool
from fulmen.server.asking import MissReason, Report


@dataclass(frozen=True, slots=True)
class Digests:
    """Digests of a prompt's beginning, to say which part of it changed."""

    system: str
    tools: str

    @classmethod
    def of(cls, messages: Sequence[Message], tools: Sequence[Tool]) -> "Digests":
        """Return the digests of the system messages that lead a history, and of its tools."""
        systems = takewhile(lambda message: message.role == "system", messages)
        return cls(
            _digest([message.content for message in systems]),
            _digest([dict(tool.function) for tool in tools]),
        )


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _KnownPrompt:
    """Ids of an answer and its prompt."""

    digests: Digests
    ids: "np.ndarray[Any, np.dtype[np.int32]]"


class KnownPrompts:
    """Ids of recent prompts with their answers, for any thread, to say where a later prompt left
    them."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._lock = Lock()
        self._known: OrderedDict[tuple[str, str], _KnownPrompt] = OrderedDict()

    def add(self, turn_id: str, ids: Sequence[int], digests: Digests, scope: str) -> None:
        known = _KnownPrompt(digests, np.asarray(ids, dtype=np.int32))
        with self._lock:
            self._known[scope, turn_id] = known
            self._num_bytes += known.ids.nbytes
            while self._num_bytes > self._max_bytes:
                _, oldest = self._known.popitem(last=False)
                self._num_bytes -= oldest.ids.nbytes

    def compare(
        self,
        turn_id: str | None,
        ids: Sequence[int],
        digests: Digests,
        scope: str,
        report: Report,
    ) -> Report:
        """Return the report with what this prompt has in common with an earlier one."""
        known = None if turn_id is None else self._known.get((scope, turn_id))
        if known is None:
            return report
        num_common = _num_common(known.ids, np.asarray(ids, dtype=np.int32))
        num_missed = len(known.ids) - num_common
        reason: MissReason | None = None
        if num_missed:
            reason = "messages_changed"
            if known.digests.system != digests.system:
                reason = "system_changed"
            elif known.digests.tools != digests.tools:
                reason = "tools_changed"
        return replace(
            report,
            previous_id=turn_id,
            num_common_tokens=num_common,
            num_missed_tokens=num_missed,
            miss_reason=reason,
        )


def _num_common(first: Any, second: Any) -> int:
    """Return how many ids two arrays begin with in common."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length
