"""Help as text: options in panels, summaries whole, examples last.

It is plain text without boxes, so that it reads the same in a pipe, a narrow terminal and a search.
"""

import difflib
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

THINKING: Final = "Thinking"
STRUCTURE: Final = "Structured output"
SAMPLING: Final = "Sampling"
SESSION: Final = "Session"
REMOTE: Final = "Model at a URL"
ENGINE: Final = "Engine"
LOADING: Final = "Loading"
ACCESS: Final = "Access"
AGENT: Final = "Tools and consent"
HISTORIES: Final = "Histories"
LIMITS: Final = "Limits"
LOG: Final = "Log"
UPSTREAM: Final = "Upstream"
_FIRST: Final = "Options"
"""Panel of options that name none"""
_LAST: Final = "Other options"
"""Panel of --help and of shell completion"""
_PANELS: Final = (
    "Arguments",
    _FIRST,
    AGENT,
    ACCESS,
    HISTORIES,
    LIMITS,
    LOG,
    UPSTREAM,
    THINKING,
    STRUCTURE,
    SAMPLING,
    SESSION,
    REMOTE,
    ENGINE,
    LOADING,
    _LAST,
)
"""Panels in the order in which help shows them"""


_WIDTH: Final = 72
"""Longest line of examples and notes, which terminals of 80 columns show whole"""
_SAID_COLUMN: Final = 42
"""Column in which an example's explanation begins"""


USAGE_ERROR: Final[Any] = typer.BadParameter.__base__
"""Error of a command line that cannot be read, wherever this version of typer has its click"""

_MEANT: Final = {
    **dict.fromkeys(("--continue", "--resume", "--conversation"), "--session"),
    **dict.fromkeys(("--json", "--format", "--output-format"), "--json-schema"),
    **dict.fromkeys(("--max-new-tokens", "--num-predict", "--n-predict"), "--max-tokens"),
    **dict.fromkeys(("--ctx-size", "--num-ctx", "--context"), "--max-model-len"),
    **dict.fromkeys(("--system-prompt", "--append-system-prompt"), "--system"),
}
"""Options of other programs, and ours for the same"""
_DONE_BY: Final = {
    "--session": "NAME keeps a conversation and goes on with it",
    "--json-schema": "makes the answer JSON",
    "--max-tokens": "is its name here",
    "--max-model-len": "is its name here",
    "--system": "is its name here",
}
_LEAST_LIKENESS: Final = 0.8
"""Likeness of a mistyped option and the one that it may have meant, from 0 to 1"""


@contextmanager
def usage_errors(ctx: Any) -> Iterator[None]:
    """Make a mistake of usage of each ValueError that begins with a flag: exit code 2."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith("--"):
            raise USAGE_ERROR(str(error), ctx) from error
        raise


class Command(TyperCommand):
    """A command whose help shows its options in panels, and that tells a mistake of usage from
    others."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with usage_errors(ctx):
            return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read arguments; of what cannot be read, say what may have been meant, or nothing."""
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            if hasattr(error, "possibilities"):
                self._explain_option(error)
            elif "unexpected extra argument" in error.message:
                text = [each.metavar for each in self.params if each.name in ("message", "prompt")]
                if text:
                    error.message = (
                        f"{text[0]} is one argument, put quotes around its words: "
                        f'{ctx.command_path} "..."'
                    )
            raise

    def _explain_option(self, error: Any) -> None:
        """Say what an unknown option may have meant: one of ours, if any is near."""
        known = [name for option in self.params for name in option.opts]
        close = difflib.get_close_matches(error.option_name, known, 1, _LEAST_LIKENESS)
        hint = f", did you mean {close[0]}?" if close else ""
        meant = _MEANT.get(error.option_name)
        if meant is not None and meant in known:
            hint = f", {meant} {_DONE_BY[meant]}"
        if error.option_name == "--url" and "--url" not in known:
            hint = ", it is for chat, generate, batch, scale and eval: this command asks no server"
        error.possibilities = []
        error.message += hint

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words after the command in its usage: NAME for what is needed."""
        return [
            piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)
        ]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then the options panel by panel."""
        write_panels(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands whose help shows each summary whole."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands first, they are what one looks for."""
        self.format_commands(ctx, formatter)
        write_panels(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with its summary; a narrow terminal wraps it."""
        rows = [
            (name, command.get_short_help_str(10_000))
            for name, command in self.commands.items()
            if not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class DefaultGroup(Group):
    """A group whose first word may be none of its commands: then all words are those of `run`."""

    default_command: Final = "run"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments; what is no command belongs to `run`."""
        if not args or (args[0] not in self.commands and args[0] not in ("--help", "-h")):
            args = [self.default_command, *args]
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, then the options of `run`."""
        self.format_commands(ctx, formatter)
        write_panels(self.commands[self.default_command], ctx, formatter)


def write_panels(command: Any, ctx: Any, formatter: Any) -> None:
    """Write a command's arguments and options, panel by panel."""
    panels: dict[str, list[tuple[str, str]]] = {name: [] for name in _PANELS}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        name = getattr(parameter, "rich_help_panel", None) or _FIRST
        if parameter.param_type_name == "argument":
            name, record = "Arguments", (record[0].split()[0], record[1])
        elif parameter.name in ("help", "install_completion", "show_completion"):
            name = _LAST
        panels[name].append(_in_our_words(*record))
    for name, records in panels.items():
        if records:
            with formatter.section(name):
                formatter.write_dl(records)


def _in_our_words(name: str, text: str) -> tuple[str, str]:
    """Return an option as help shows it: TEXT for `<str>`, and defaults as a sentence."""
    kinds = {"str": "TEXT", "int": "INTEGER", "float": "NUMBER", "path": "PATH"}
    name = re.sub(r"<([^>]*)>", lambda found: kinds.get(found[1], found[1]), name)
    text = re.sub(r"\s*\[(?:default: (.*)|required)\]$", _default, text)
    return name, text


def _default(found: re.Match[str]) -> str:
    return "" if found[1] is None else f" Default: {found[1]}."


def examples(lines: str, notes: Mapping[str, str] | None = None) -> str:
    """Return the end of a help: examples, a line each, and paragraphs with a title.

    Two spaces or more part a command from what is said about it.
    """
    text = "\b\nExamples:"
    for line in lines.strip().splitlines():
        command, _, said = line.strip().partition("  ")
        text += f"\n  {command:<{_SAID_COLUMN}}  {said.strip()}".rstrip()
    for title, note in (notes or {}).items():
        body = textwrap.wrap(" ".join(note.split()), _WIDTH)
        text += f"\n\n\b\n{title}:\n" + "\n".join(f"  {line}" for line in body)
    return text
