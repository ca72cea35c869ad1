"""Questions in the region: may this call be made? One row is chosen, or a sentence is written."""

import asyncio
from typing import Final

from fulmen.agent import Verdict
from fulmen.chat import ToolCall
from fulmen.cli.agent_asking import NOT_ALLOWED, Asker, Interrupts
from fulmen.cli.agent_view import show_all, show_preview
from fulmen.cli.terminal.region import Region
from fulmen.cli.terminal.screen import Screen
from fulmen.cli.terminal.state import Front, Option
from fulmen.cli.terminal.view import ScreenView
from fulmen.files import shorten

_CHANGING: Final = ("edit", "write")
_SHOWN_TOGETHER: Final = 500
"""Lines that are shown before a key is looked for"""


class ScreenAsker(Asker):
    """Asks a person about calls, below what they would do."""

    def __init__(self, view: ScreenView, screen: Screen, front: Front) -> None:
        super().__init__(view, Interrupts(), asks=True)
        self.region: Region | None = None
        self._view: ScreenView = view
        self._screen = screen
        self._front = front
        self._asking = asyncio.Lock()

    async def __call__(self, call: ToolCall, verdict: Verdict, preview: str) -> str | None:
        """Return None if a call may be made, else a sentence for the model."""
        async with self._asking:
            refusal = await self._ask(call, verdict, preview)
        if refusal is None:  # else the call's result says so
            self._view.note_dim("  allowed")
        self._view.is_diff_known = refusal is None and call.name in _CHANGING
        return refusal

    async def _ask(self, call: ToolCall, verdict: Verdict, preview: str) -> str | None:
        rules = ", ".join(sorted(map(str, verdict.rules)))
        is_diff = call.name in _CHANGING
        is_cut = show_preview(preview, is_diff=is_diff, console=self._screen.console)
        options = [Option("yes", "y")]
        if rules and self.remember is not None:
            options.append(Option(f"yes, and always {rules}", "a"))
        options += [Option("no", "n"), Option("no, and say what to do instead", "t")]
        if is_cut:
            options.append(Option("show all of it", "s"))
        title = shorten(verdict.reason, 400)
        if not title.startswith(call.name):
            title = f"{shorten(call.name, 60)}: {title}"
        index, is_sudden = 0, True
        while True:
            key, index = await self._front.choose(title, options, index=index, is_sudden=is_sudden)
            is_sudden = False
            match "n" if key == "escape" else options[index].key:
                case "y":
                    return None
                case "a" if self.remember is not None:
                    self.remember(verdict)
                    return None
                case "s":
                    await self._show_all(preview, is_diff=is_diff)
                case "t":
                    assert self.region is not None
                    text = await self.region.ask_text("instead > ")
                    if text is not None:
                        return f"{NOT_ALLOWED}, and says: {text}"
                case _:
                    return NOT_ALLOWED

    async def _show_all(self, preview: str, *, is_diff: bool) -> None:
        """Show all of what would be done; keys are answered in between."""
        lines = preview.split("\n")
        for at in range(0, len(lines), _SHOWN_TOGETHER):
            part = "\n".join(lines[at : at + _SHOWN_TOGETHER])
            show_all(part, is_diff=is_diff, console=self._screen.console)
            await asyncio.sleep(0)
