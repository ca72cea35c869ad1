"""Tools of several kinds as one: a call goes to the hands that own its name.

    Workbench + tools of MCP servers + web_fetch + ... -> JoinedHands -> Agent

The list of tools is that which a run began with, even where a tool has gone or another one came
since: so a run that is resumed or forked has the same prompt, and reads nothing again.
"""

from collections.abc import Awaitable, Callable, Sequence

from fulmen.agent.loop import Hands
from fulmen.agent.trajectory import Result
from fulmen.chat import Tool, ToolCall
from fulmen.files import shorten


class JoinedHands:
    """Several hands; `Hands` of an agent."""

    def __init__(
        self,
        hands: Sequence[Hands],
        *,
        known: Sequence[Tool] | None = None,
        saved: Callable[[Result, str], Awaitable[Result]] | None = None,
    ) -> None:
        """
        known  tools as the model was told of them when the run began; None for a new run
        saved  adds a snapshot to the result of a call, given the tool's name, for tools of all but
               the first hands, which take their own

        Raises ValueError if two hands have a tool of one name.
        """
        self._hands = tuple(hands)
        self._saved = saved
        self._owners: dict[str, Hands] = {}
        for one in self._hands:
            for tool in one.tools:
                if tool.name in self._owners:
                    raise ValueError(f"two tools have the name {tool.name}, rename one of them")
                self._owners[tool.name] = one
        own = tuple(tool for one in self._hands for tool in one.tools)
        self._tools = own if known is None else tuple(known)
        names = {tool.name for tool in self._tools}
        self._owners = {name: one for name, one in self._owners.items() if name in names}

    @property
    def tools(self) -> Sequence[Tool]:
        """Tools as the model is told of them; the same for the whole run."""
        return self._tools

    @property
    def missing(self) -> list[str]:
        """Names of tools that the model is told of and that nothing here has any more."""
        return [tool.name for tool in self._tools if tool.name not in self._owners]

    def is_independent(self, call: ToolCall) -> bool:
        """Return whether a call may run beside others."""
        owner = self._owners.get(call.name)
        return owner is not None and owner.is_independent(call)

    async def run(self, number: int, call: ToolCall) -> Result:
        """Make a call; a name that nothing owns is a result that says so."""
        owner = self._owners.get(call.name)
        if owner is not None:
            return await self._with_snapshot(owner, call, await owner.run(number, call))
        known = ", ".join(tool.name for tool in self._tools if tool.name in self._owners) or "none"
        if call.name in self.missing:
            text = f"{call.name} is not here any more; there are: {known}"
        else:
            text = f"there is no tool {shorten(call.name, 60)}; there are: {known}"
        return Result(number, text, True)

    async def interrupted(self, number: int, call: ToolCall, by: str) -> Result:
        """Return the result of a call that was ended before its time."""
        owner = self._owners.get(call.name)
        if owner is not None:
            result = await owner.interrupted(number, call, by)
            return await self._with_snapshot(owner, call, result)
        return Result(number, f"(ended by {by} before it was done)", True)

    async def _with_snapshot(self, owner: Hands, call: ToolCall, result: Result) -> Result:
        if self._saved is None or owner is self._hands[0] or owner.is_independent(call):
            return result
        return await self._saved(result, call.name)

    def forget(self) -> None:
        """Take note that the model does not see earlier results any more."""
        for one in self._hands:
            one.forget()
