"""Questions that are put at a terminal and on the page: the first answer counts."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from fulmen.agent import Verdict
from fulmen.chat import ToolCall
from fulmen.cli.agent_asking import NOT_ALLOWED, Asker
from fulmen.cli.agent_view import View
from fulmen.cli.watching.feed import LEAD, Feed, Reply

_MOST_ALONE: Final = 30.0
"""Seconds in which a browser may come back to a question that it left"""
_TICK: Final = 0.5


class PageAsker:
    """Asks whoever is first: the person at the terminal, if there is one, or one at the page.

    Where there is no terminal, a question waits as long as a page is open."""

    def __init__(self, inner: Asker, feed: Feed, view: View) -> None:
        """
        inner  asks at the terminal, or refuses where there is none
        view   is told what was answered on the page
        """
        self._inner = inner
        self._feed = feed
        self._view = view

    @property
    def remember(self) -> Callable[[Verdict], Any] | None:
        """Function that keeps a rule."""
        return self._inner.remember

    @remember.setter
    def remember(self, remember: Callable[[Verdict], Any] | None) -> None:
        self._inner.remember = remember

    @property
    def num_refused(self) -> int:
        """Number of calls for which nobody could be asked."""
        return self._inner.num_refused

    async def __call__(self, call: ToolCall, verdict: Verdict, preview: str) -> str | None:
        """Return None if a call may be made, else a sentence for the model."""
        if not self._inner.asks and self._is_left():
            return await self._inner(call, verdict, preview)
        asked = {
            "name": call.name,
            "reason": verdict.reason,
            "preview": preview,
            "rules": sorted(map(str, verdict.rules)) if self.remember is not None else [],
        }
        question = self._feed.ask(LEAD, asked)
        how = "interrupted"
        here = asyncio.ensure_future(self._asked_here(call, verdict, preview))
        there = asyncio.ensure_future(asyncio.wrap_future(question.reply))
        both: list[asyncio.Future[Any]] = [here, there]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if there.done():
                how = f"{there.result().kind} on the page"
                return self._obey(there.result(), verdict)
            refusal = here.result()
            how = "allowed at the terminal" if refusal is None else "refused"
            return refusal
        finally:
            for task in both:
                task.cancel()
            await asyncio.wait(both)
            self._feed.close(question, LEAD, how)

    def _obey(self, reply: Reply, verdict: Verdict) -> str | None:
        if reply.kind == "no":
            self._view.note("refused on the page")
            return f"{NOT_ALLOWED}, and says: {reply.words}" if reply.words else NOT_ALLOWED
        if reply.kind == "always" and self.remember is not None:
            self.remember(verdict)
        self._view.note("allowed on the page")
        return None

    async def _asked_here(self, call: ToolCall, verdict: Verdict, preview: str) -> str | None:
        """Ask at the terminal; where there is none, refuse once no page is open any more."""
        while not self._inner.asks and not self._is_left():
            await asyncio.sleep(_TICK)
        return await self._inner(call, verdict, preview)

    def _is_left(self) -> bool:
        alone = self._feed.seconds_alone()
        return alone is not None and alone > _MOST_ALONE
