"""A person's consent to the calls of one run, whatever tools they are of.

    call -> Permissions -> allowed, refused, or a question -> a rule that holds from then on

All tools of a run share one `Consent`: one question at a time, and a rule that an answer made
holds for the next call, of whichever tool.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from fulmen.agent.permissions import Permissions
from fulmen.agent.tools import ToolError
from fulmen.agent.verdicts import Verdict
from fulmen.chat import ToolCall

Approve = Callable[[ToolCall, Verdict, str], Awaitable[str | None]]
"""Asks a person about a call, given the whole command, or the diff of what it would change: None to
make it, else a sentence for the model"""


class Consent:
    """Consent to the calls of one run, for one event loop."""

    def __init__(self, permissions: Permissions, approve: Approve | None = None) -> None:
        """
        approve  asks a person; without it, what asks is refused
        """
        self.permissions = permissions
        self._approve = approve
        self._asking = asyncio.Lock()

    async def obtain(
        self,
        call: ToolCall,
        preview: Callable[[], Awaitable[str]],
        *,
        folder: Path | None = None,
        leaves: str | None = None,
    ) -> None:
        """Return if a call may be made. Raises ToolError if not.

        preview  makes what a person is shown
        folder   where a command would begin
        leaves   what a command has outside the sandbox, see `Permissions.judge`
        """
        await self._obtain(
            call, lambda: self.permissions.judge(call, folder=folder, leaves=leaves), preview
        )

    async def obtain_all(
        self, call: ToolCall, parts: Sequence[ToolCall], preview: Callable[[], Awaitable[str]]
    ) -> None:
        """Return if a call may be made that does what several others do: those are judged, and what
        asks is one question. Raises ToolError if it may not."""

        def verdict() -> Verdict:
            verdicts = [self.permissions.judge(one) for one in parts]
            for decision in ("deny", "ask"):
                if found := [one for one in verdicts if one.decision == decision]:
                    return Verdict(decision, tuple(part for one in found for part in one.parts))
            return Verdict("allow")

        await self._obtain(call, verdict, preview)

    async def _obtain(
        self,
        call: ToolCall,
        judge: Callable[[], Verdict],
        preview: Callable[[], Awaitable[str]],
    ) -> None:
        verdict = judge()
        if verdict.decision == "ask":
            async with self._asking:  # one question at a time
                verdict = judge()  # an answer may have made a rule
                if verdict.decision == "ask":
                    if self._approve is None:
                        raise ToolError(f"not allowed here: {verdict.reason}")
                    refusal = await self._approve(call, verdict, await preview())
                    if refusal is not None:
                        raise ToolError(refusal or "the user did not allow this")
        if verdict.decision == "deny":
            raise ToolError(f"not allowed: {verdict.reason}")
