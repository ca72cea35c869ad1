"""file: what is in a file or in a line of it, a new file, a word that another one takes the place
of. Played in a folder with the tools read, edit and run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from fulmen.agent import Score, Trajectory
from fulmen.chat import Message, ToolCall
from fulmen.envs.calls.case import Case, said
from fulmen.envs.calls.names import Names, syllables
from fulmen.envs.calls.tables import LANGUAGES
from fulmen.envs.left import left_file
from fulmen.envs.logic.words import WORDS
from fulmen.envs.task import Task
from fulmen.envs.tools.values import has_value

_LONGEST: Final = 200
_MOST_LINES: Final = 6
_ENDINGS: Final = ("txt", "txt", "md", "csv", "log", "cfg")
_ALL_ASKED: Final = {
    "en": ("What is in {path}?", "Show me {path}.", "Read {path}.", "What does {path} say?"),
    "de": ("Was steht in {path}?", "Zeig mir {path}.", "Lies {path}.", "Was ist in {path}?"),
}
_LINE_ASKED: Final = {
    "en": (
        *("What is in line {n} of {path}?", "Tell me line {n} of {path}."),
        *("Which words are in line {n} of {path}?", "Line {n} of {path}?"),
    ),
    "de": (
        *("Was steht in Zeile {n} von {path}?", "Sag mir Zeile {n} von {path}."),
        *("Wie lautet Zeile {n} in {path}?",),
    ),
}
_NEW_ASKED: Final = {
    "en": (
        *("Create {path} with the line: {line}", "Make a file {path} that says: {line}"),
        *("Write a new file {path}: {line}",),
    ),
    "de": (
        *("Erstelle {path} mit der Zeile: {line}", "Schreib eine neue Datei {path}: {line}"),
        *("Leg eine Datei {path} an, in der steht: {line}",),
    ),
}
_CHANGE_ASKED: Final = {
    "en": (
        *("Replace {old} by {new} in {path}.", "In {path}, change {old} to {new}."),
        *("Put {new} in the place of {old} in {path}.",),
    ),
    "de": (
        *("Ersetze {old} durch {new} in {path}.", "Ändere in {path} {old} zu {new}."),
        *("Schreib in {path} {new} statt {old}.",),
    ),
}
_SAYS: Final = {"en": "It says: {text}", "de": "Da steht: {text}"}
_DONE: Final = {
    "new": {"en": "I made {path}.", "de": "Ich habe {path} erstellt."},
    "change": {"en": "I changed {path}.", "de": "Ich habe {path} geändert."},
}


@dataclass(frozen=True)
class FileTask(Task):
    """Something to read or to change in a folder with a file or two."""

    question: str
    files: Mapping[str, str] = field(repr=False)
    """Texts by path"""
    right: Mapping[str, str] = field(repr=False)
    """Texts by path, as they have to be in the end, but for ends of lines at the end"""
    play: tuple[Message, ...] = field(repr=False)
    is_told: Callable[[str], bool] = field(repr=False)
    """True for a last answer that is right"""

    @property
    def messages(self) -> tuple[Message, ...]:
        """The question, as a user's message."""
        return (Message("user", self.question),)

    @property
    def key(self) -> str:
        """The question and the files."""
        return "\n".join([self.question, *(f"{path}\n{self.files[path]}" for path in self.files)])

    @property
    def profile(self) -> str:
        """The tools of small models."""
        return "minimal"

    @property
    def known_answers(self) -> tuple[Message, ...]:
        """Calls that do it, and the answer."""
        return self.play

    @property
    def known_results(self) -> tuple[str, ...]:
        """Results of the calls of the known answer."""
        calls = [call for answer in self.play for call in answer.tool_calls]
        return tuple(
            shown_file(self.files[call.arguments["path"]])
            if call.name == "read"
            else f"{call.arguments['path']} is changed"
            for call in calls
        )

    async def prepare(self, folder: Path) -> None:
        """Write the files."""
        for path, text in self.files.items():
            (folder / path).write_text(text, encoding="utf-8")

    async def score(self, trajectory: Trajectory, folder: Path | None = None) -> Score:
        """Return 1 if the files are as they have to be and the answer is right.

        Parts: format (it ends with words), calls (all calls are those of the known answer),
        correct (files and answer are right), false_call (a call was made where none is needed).
        What needs a call may be done by any calls.
        """
        right = [call for answer in self.play for call in answer.tool_calls]
        made = [call for step in trajectory.steps for call in step.answer.message.tool_calls]
        reply = trajectory.reply
        is_ended = reply is not None and not reply.tool_calls and bool(reply.content.strip())
        is_told = is_ended and reply is not None and self.is_told(reply.content)
        is_left = folder is not None and all(
            _is_same(left_file(folder / path), text) for path, text in self.right.items()
        )
        is_right = is_told and is_left and bool(made) == bool(right)
        parts = {
            "format": float(is_ended),
            "calls": float(made == right),
            "correct": float(is_right),
            "false_call": float(bool(made) and not right),
        }
        return Score(float(is_right), parts)


def in_folder(draw: Random, names: Names, case: Case) -> FileTask:
    """Return talk that needs no call, in a folder with a file."""
    files = {f"{names.word(1, 2)}.{draw.choice(_ENDINGS)}": f"{_line(draw)}\n"}
    return FileTask(case.question, files, files, case.play, case.is_told)


def _is_same(content: bytes | None, text: str) -> bool:
    return content is not None and content.rstrip(b"\n") == text.encode().rstrip(b"\n")


def shown_file(text: str) -> str:
    """Return a file as `read` shows it."""
    return "\n".join(f"{place}\t{line}" for place, line in enumerate(text.splitlines(), 1))


def make_file_task(draw: Random, names: Names) -> FileTask:
    """Return a task with a file."""
    maker = draw.choice((_read_all, _read_line, _make_new, _change))
    return maker(draw, f"{names.word(1, 2)}.{draw.choice(_ENDINGS)}", draw.choice(LANGUAGES))


def _read_all(draw: Random, path: str, language: str) -> FileTask:
    line = _line(draw)
    return _told(draw, _ALL_ASKED[language], path, language, [line], 0)


def _read_line(draw: Random, path: str, language: str) -> FileTask:
    lines = [_line(draw) for _ in range(draw.randint(2, _MOST_LINES))]
    return _told(draw, _LINE_ASKED[language], path, language, lines, draw.randrange(len(lines)))


def _told(
    draw: Random, ways: tuple[str, ...], path: str, language: str, lines: list[str], at: int
) -> FileTask:
    """Return the task to tell a line of a file."""
    files = {path: "".join(f"{line}\n" for line in lines)}
    line = lines[at]
    return FileTask(
        draw.choice(ways).format(path=path, n=at + 1),
        files,
        files,
        (
            _reading(path, f"I read {path}."),
            said(f"Line {at + 1} is {line}.", _SAYS[language].format(text=line)),
        ),
        lambda reply: _is_line(reply, line, lines),
    )


def _is_line(reply: str, line: str, lines: list[str]) -> bool:
    """Return whether a reply tells a line, and no other one."""
    others = (one for one in lines if not has_value(line, one))
    is_told = len(reply) <= _LONGEST and has_value(reply, line)
    return is_told and not any(has_value(reply, one) for one in others)


def _make_new(draw: Random, path: str, language: str) -> FileTask:
    line = _line(draw)
    call = ToolCall("edit", {"path": path, "old": "", "new": line})
    thought = f"{path} is new, so old is empty."
    return FileTask(
        draw.choice(_NEW_ASKED[language]).format(path=path, line=line),
        {},
        {path: line},
        (
            Message("assistant", "", thinking=thought, tool_calls=(call,)),
            said("It is made.", _DONE["new"][language].format(path=path)),
        ),
        lambda reply: len(reply) <= _LONGEST,
    )


def _change(draw: Random, path: str, language: str) -> FileTask:
    while True:
        lines = [_line(draw) for _ in range(draw.randint(1, 4))]
        text = "".join(f"{line}\n" for line in lines)
        old, new = draw.choice(text.split()), _word(draw)
        if text.count(old) == 1 and new not in text:
            break
    call = ToolCall("edit", {"path": path, "old": old, "new": new})
    return FileTask(
        draw.choice(_CHANGE_ASKED[language]).format(path=path, old=old, new=new),
        {path: text},
        {path: text.replace(old, new)},
        (
            _reading(path, f"I read {path} first."),
            Message("assistant", "", thinking=f"{old} becomes {new}.", tool_calls=(call,)),
            said("It is changed.", _DONE["change"][language].format(path=path)),
        ),
        lambda reply: len(reply) <= _LONGEST,
    )


def _reading(path: str, thought: str) -> Message:
    return Message(
        "assistant", "", thinking=thought, tool_calls=(ToolCall("read", {"path": path}),)
    )


def _line(draw: Random) -> str:
    """Return one to three words, numbers among them."""
    return " ".join(_word(draw) for _ in range(draw.randint(1, 3)))


def _word(draw: Random) -> str:
    kind = draw.random()
    if kind < 0.2:
        return str(draw.randint(10, 9999))
    return draw.choice(WORDS) if kind < 0.7 else syllables(draw)
