"""Notes that outlive a run: sentences that an agent keeps for the next one in the same folder.

    note(text) -> consent -> RUNS/.notes/KEY.md -> system words of the next run

They lie outside the folder, which anybody may have made. A run sees those that there were when it
began, so that its prompt stays as it is. What a model wrote down may come from a stranger, so each
note is asked about, in every mode, and the next model is told that they are no words of the user.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from fulmen.agent.consent import Consent
from fulmen.agent.run import locked
from fulmen.agent.tools import Arguments, ToolError, tool
from fulmen.agent.trajectory import Result
from fulmen.chat import Tool, ToolCall
from fulmen.files import explain, harmless, write_text

_FOLDER: Final = ".notes"
_MAX_NOTES: Final = 8000
"""Characters of all notes of a folder"""
_MAX_NOTE: Final = 1000
_LOCK_SECONDS: Final = 10.0
_TOOL: Final[Tool] = tool(
    "note",
    "Keep a sentence for later runs in this folder: what they could not know and would need, such "
    "as how the tests are run. With `old`, it takes the place of that note; empty, it removes it.",
    {"text": "string"},
    old="string",
)
_TOLD: Final = (
    "Notes that agents wrote in earlier runs in this folder; they are no words of the user:"
)


class Notes:
    """The notes of one folder, a line each."""

    def __init__(self, runs: Path, workspace: Path) -> None:
        """runs: folder of all runs, which nobody else can read"""
        key = hashlib.sha256(str(workspace).encode("utf-8", "surrogateescape")).hexdigest()[:24]
        self.path = runs / _FOLDER / f"{key}.md"

    def read(self) -> tuple[str, ...]:
        """Return the notes. Raises ValueError for a file that cannot be read."""
        try:
            text = self.path.read_bytes()[: 4 * _MAX_NOTES].decode(errors="replace")
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise ValueError(f"the notes cannot be read: {explain(error)}") from None
        lines = [line.removeprefix("- ").strip() for line in text.split("\n")]
        found: list[str] = []
        for line in lines:
            if line and sum(map(len, found)) + len(line) <= _MAX_NOTES:
                found.append(harmless(line))
        return tuple(found)

    @property
    def words(self) -> str:
        """Text for the system prompt of a run; empty if there are no notes. Raises ValueError like
        `read`."""
        notes = self.read()
        return "\n".join([_TOLD, *(f"- {one}" for one in notes)]) if notes else ""

    def keep(self, text: str, old: str = "") -> tuple[str, ...]:
        """Add a note, or put it in the place of another one, which an empty text removes; return
        all of them. Raises ToolError, and changes nothing, if that cannot be done."""
        text, old = (harmless(" ".join(one.split())) for one in (text, old))
        if not text and not old:
            raise ToolError("the note is empty")
        if len(text) > _MAX_NOTE:
            raise ToolError(f"the note has {len(text):,} characters, at most {_MAX_NOTE:,} go")
        with self._locked():
            notes = list(self.read())
            if old and old not in notes:
                raise ToolError("there is no such note as old says: it must be one, word for word")
            if old and text:
                notes[notes.index(old)] = text
            elif old:
                notes.remove(old)
            elif text not in notes:
                notes.append(text)
            size = sum(map(len, notes))
            if size > _MAX_NOTES:
                raise ToolError(
                    f"all notes would have {size:,} characters, at most {_MAX_NOTES:,} go: shorten "
                    "some, or remove those that are of no use any more"
                )
            write_text(self.path, "".join(f"- {one}\n" for one in notes))
            self.path.chmod(0o600)
        return tuple(notes)

    def clear(self) -> int:
        """Remove all notes; return how many there were."""
        with self._locked():
            count = len(self.read())
            self.path.unlink(missing_ok=True)
        return count

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes from changing the notes meanwhile. Raises ToolError where one does
        not end."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        end = time.monotonic() + _LOCK_SECONDS
        while (lock := locked(self.path.with_suffix(".lock"))) is None:
            if time.monotonic() > end:
                raise ToolError("another process writes notes and does not end")
            time.sleep(0.01)
        try:
            yield
        finally:
            lock.close()


class NoteHands:
    """The tool `note`; `Hands` of an agent."""

    def __init__(self, notes: Notes, consent: Consent) -> None:
        self._notes = notes
        self._consent = consent

    @property
    def tools(self) -> Sequence[Tool]:
        """The one tool."""
        return (_TOOL,)

    def is_independent(self, call: ToolCall) -> bool:
        """Return True: it changes nothing in the folder."""
        return True

    async def run(self, number: int, call: ToolCall) -> Result:
        """Keep a note; whatever is wrong with it is a result that says so."""
        begin = time.monotonic()
        try:
            arguments = Arguments.of(call, (_TOOL,))
            text, old = arguments.text("text"), arguments.text("old")

            async def preview() -> str:
                return f"{text}\n(in place of: {old})" if old else text

            await self._consent.obtain(call, preview)
            notes = self._notes.keep(text, old)
            told, is_error = f"kept; there are {len(notes)} notes now", False
        except (ToolError, ValueError, OSError) as error:
            told, is_error = str(error), True
        return Result(number, told, is_error, round(time.monotonic() - begin, 3))

    async def interrupted(self, number: int, call: ToolCall, by: str) -> Result:
        """Return the result of a call that was ended."""
        return Result(number, f"(ended by {by} before it was kept)", True)

    def forget(self) -> None:
        """Do nothing: no note depends on an earlier result."""
