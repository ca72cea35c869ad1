"""An agent's work as it is seen: by a person at a terminal, or by a script as JSON lines.

What a model or a command wrote reaches a terminal without its control characters. The answer goes
to stdout; thoughts, calls, results and diffs go to stderr.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from rich.console import Console

from fulmen.agent import USAGE, EndReason, Trajectory, Verdict
from fulmen.chat import ContentDelta, Event, ThinkingDelta, ToolCall
from fulmen.cli.output import harmless, print_json
from fulmen.cli.printer import Printer, new_printer
from fulmen.cli.progress import stderr

EXIT_CODES: Final[Mapping[EndReason | str, int]] = {
    "done": 0,
    "error": 1,
    "refused": 3,
    "turns": 4,
    "tokens": 5,
    "seconds": 6,
    "loop": 7,
    "context": 8,
    "sandbox": 9,
    "interrupted": 130,
}
"""Exit code for each way in which a run can end; `refused`: it is done, but something that asks for
consent was refused because nobody could be asked; `sandbox`: there can be none here"""
_SAID: Final[Mapping[EndReason, str]] = {
    "turns": "stopped after as many answers as --max-turns allows",
    "tokens": "stopped at the token limit",
    "seconds": "stopped after the time that --max-seconds allows",
    "loop": "stopped: the same calls came to the same results again and again",
    "context": "stopped: the context is full, and a summary made no room",
    "interrupted": "stopped",
}
_FAILED: Final = ("error", "sandbox")
"""Ends in which there is no answer to what was said last"""
_READ: Final = ("read", "grep", "glob")
_MAX_SHOWN_LINES: Final = 12
_MAX_DIFF_LINES: Final = 60
_MAX_PREVIEW_LINES: Final = 30
_MAX_STREAMED: Final = 20_000
"""Characters of a command's output that are shown as they come"""
_STYLES: Final = {"+": "green", "-": "red", "@": "cyan"}


class View(Protocol):
    """Somebody who sees the work on a run; `Watcher` of its agent."""

    def begin(self, fields: Mapping[str, Any], trajectory: Trajectory) -> None:
        """See that the run is gone on with; fields say what with."""

    def note(self, text: str) -> None:
        """See a sentence that is not the agent's."""

    def event(self, event: Event) -> None:
        """See a piece of an answer."""

    def calling(self, call: ToolCall) -> None:
        """See a call that begins."""

    def output(self, text: str) -> None:
        """See what a command prints, as it comes."""

    def refuse(self, call: ToolCall, verdict: Verdict) -> None:
        """See a call that was refused because nobody could be asked."""

    def record(self, record: Mapping[str, Any]) -> None:
        """See a record that was just kept."""

    def end(self, reason: str, code: int, trajectory: Trajectory, refused: int) -> None:
        """See that the work ended; refused: calls for which nobody could be asked."""


class TerminalView:
    """A view for people."""

    _mark = ""
    """Stands before a call"""

    def __init__(
        self,
        *,
        is_answer_last: bool,
        show_thinking: bool,
        plain: bool = False,
        console: Console = stderr,
    ) -> None:
        """
        is_answer_last  print only the last answer on stdout, in the end; else all of them, as they
                        come
        console         where all else is printed
        """
        self._console = console
        self._is_answer_last = is_answer_last
        self._show_thinking = show_thinking
        self._plain = plain
        self._is_thinking = False
        self._printer: Printer | None = None
        self._calls: tuple[ToolCall, ...] = ()
        self._output = ""
        """Output of the command that runs, as far as it was shown"""

    def begin(self, fields: Mapping[str, Any], trajectory: Trajectory) -> None:
        """Show the name of the run, and what it runs with."""
        if trajectory.steps:
            self._calls = trajectory.steps[-1].answer.message.tool_calls
            steps = f", {len(trajectory.steps)} steps so far"
        else:
            steps = ""
        text = f"run {fields['run']}: {fields['model']} in {fields['folder']}, {fields['mode']}"
        self._line(text + steps, "dim")

    def note(self, text: str) -> None:
        """Show a sentence."""
        self._settle()
        self._line(text, "yellow")

    def event(self, event: Event) -> None:
        """Show the thought dimmed, and the answer on stdout if all are printed as they come."""
        if isinstance(event, ThinkingDelta):
            if self._show_thinking:
                self._is_thinking = True
                shown = harmless(event.text)
                self._console.print(shown, style="dim", end="", markup=False, soft_wrap=True)
        elif isinstance(event, ContentDelta) and not self._is_answer_last:
            if self._printer is None:
                if not event.text.strip():
                    return
                self._settle()
                self._printer = new_printer(plain=self._plain)
            self._printer.write(event.text)

    def calling(self, call: ToolCall) -> None:
        """Show a call by its most telling argument."""
        self._settle()
        self._output = ""
        lines = harmless(telling(call)).split("\n")
        num_more = len(lines) - _MAX_CALL_LINES
        more = f"  (and {num_more} more lines)" if num_more > 0 else ""
        text = "\n    ".join(_cut(line, _MAX_CALL_WIDTH) for line in lines[:_MAX_CALL_LINES])
        self._line(f"{self._mark}{call.name}  {text}{more}", "bold")

    def output(self, text: str) -> None:
        """Show the beginning of it dimmed, line by line."""
        room = _MAX_STREAMED - len(self._output)
        if room <= 0:
            return
        begin = self._output.endswith("\n") or not self._output
        self._output += text[:room]
        shown = harmless(text[:room]).replace("\n", "\n    ")
        if text[:room].endswith("\n"):  # the next piece begins with the spaces of its line
            shown = shown[:-4]
        shown = ("    " if begin else "") + shown
        self._console.print(shown, style="dim", end="", markup=False, soft_wrap=True)

    def refuse(self, call: ToolCall, verdict: Verdict) -> None:
        """Show why."""
        self.note(f"refused, nobody can be asked: {verdict.reason}")

    def record(self, record: Mapping[str, Any]) -> None:
        """Show results, and what else a person wants to know."""
        match record["type"]:
            case "said" if "sender" in record:
                self._settle()
                self._line(record["messages"][0]["content"], "cyan")
            case "answer":
                self._answered(record)
            case "result":
                self._show_result(record)
            case "compacted":
                what = f"the first {record['num_steps']} steps gave way to a summary"
                if not record["text"]:
                    what = "long results were cut"
                self._line(
                    f"{what}: about {record['num_tokens_before']:,} tokens became "
                    f"{record['num_tokens_after']:,}",
                    "yellow",
                )
            case "note":
                self.note(record["text"])

    def end(self, reason: str, code: int, trajectory: Trajectory, refused: int) -> None:
        """Print the last answer if it was not, and say how the run ended."""
        self._settle()
        reply = trajectory.reply
        is_old = reason in _FAILED or bool(trajectory.said)
        is_answer = reply is not None and not reply.tool_calls and not is_old
        if self._is_answer_last and reply is not None and is_answer and reply.content:
            printer = new_printer(plain=self._plain)
            printer.write(reply.content.strip("\n"))
            printer.close()
        if reason in _SAID:
            self._line(f"({_SAID[reason]})", "dim")  # type: ignore[index]

    def _answered(self, record: Mapping[str, Any]) -> None:
        self._settle()
        message = record["message"]
        calls = message.get("tool_calls") or ()
        self._calls = tuple(
            ToolCall(one["function"]["name"], one["function"]["arguments"]) for one in calls
        )
        if self._is_answer_last and calls and str(message.get("content") or "").strip():
            self._line(str(message["content"]).strip(), None)

    def _show_result(self, record: Mapping[str, Any]) -> None:
        self._settle()
        name = self._calls[record["call"]].name if record["call"] < len(self._calls) else ""
        details, text = record["details"], str(record["text"])
        if details.get("diff") and not record["is_error"]:
            show_diff(details["diff"], self._console)
        elif details.get("todo"):
            for item in details["todo"]:
                mark = {"done": "x", "doing": ">"}.get(item["state"], " ")
                self._line(f"    [{mark}] {item['text']}", "dim")
        elif name in _READ and not record["is_error"]:
            self._line(f"    {len(text.splitlines())} lines", "dim")
        else:
            self._show_lines(self._not_shown(text), "red" if record["is_error"] else "dim")
        if details.get("not_saved") and record["snapshot"] is None:
            self.note(f"no snapshot was taken after this: {details['not_saved'][0]}")

    def _not_shown(self, text: str) -> str:
        """Return what of a result was not shown while the command ran."""
        shown, self._output = self._output, ""
        if not shown:
            return text
        if not shown.endswith("\n"):
            self._console.print()
        if text.startswith(shown.rstrip("\n")):
            return text[len(shown.rstrip("\n")) :].lstrip("\n")
        lines = text.split("\n")
        return "\n".join(["... the end of it:", *lines[-_MAX_SHOWN_LINES // 2 :]])

    def _show_lines(self, text: str, style: str) -> None:
        lines = harmless(text).split("\n") if text else []
        half = _MAX_SHOWN_LINES // 2
        if len(lines) > _MAX_SHOWN_LINES:
            left = len(lines) - 2 * half
            lines = [*lines[:half], f"... {left:,} more lines ...", *lines[-half:]]
        for line in lines:
            self._line(f"    {_cut(line, 400)}", style)

    def _settle(self) -> None:
        """End the line of a thought, and the block of an answer."""
        if self._is_thinking:
            self._console.print()
            self._is_thinking = False
        if self._printer is not None:
            self._printer.close()
            self._printer = None

    def _line(self, text: str, style: str | None) -> None:
        self._console.print(harmless(text), style=style, markup=False, soft_wrap=True)


_MAX_CALL_LINES: Final = 3
_MAX_CALL_WIDTH: Final = 160
_TELLING: Final = ("command", "path", "pattern", "job", "prompt", "url", "to", "agent", "name")
"""Arguments by which a person knows a call"""


def telling(call: ToolCall) -> str:
    """Return the argument by which a person knows a call, with the agent that a task is for."""
    key = next((one for one in _TELLING if one in call.arguments), None)
    text = "" if key is None else str(call.arguments[key])
    agent = call.arguments.get("agent")
    return f"{agent}: {text}" if key == "prompt" and agent else text


class JsonView:
    """A view for scripts: one JSON object a line on stdout, see docs/agents.md."""

    def __init__(self, emit: Callable[[Mapping[str, Any]], object] | None = None) -> None:
        """emit: takes the objects, in place of stdout"""
        self._emit = emit or _print_line
        self._num_steps = 0
        self._calls: tuple[Mapping[str, Any], ...] = ()

    def begin(self, fields: Mapping[str, Any], trajectory: Trajectory) -> None:
        """Print what the run goes on with."""
        self._stand(trajectory)
        self._print("run.started", **fields, num_steps=self._num_steps)

    def _stand(self, trajectory: Trajectory) -> None:
        """Take note of the steps that there are, and of the last one's calls."""
        self._num_steps = len(trajectory.steps)
        if trajectory.steps:
            calls = trajectory.steps[-1].answer.message.tool_calls
            self._calls = tuple({"name": one.name, "arguments": one.arguments} for one in calls)

    def note(self, text: str) -> None:
        """Print a sentence."""
        self._print("note", text=text)

    def event(self, event: Event) -> None:
        """Print nothing: answers are printed whole."""

    def output(self, text: str) -> None:
        """Print nothing: results are printed whole."""

    def calling(self, call: ToolCall) -> None:
        """Print a call that begins."""
        fields = {"name": call.name, "arguments": call.arguments}
        self._print("call", step=self._num_steps, id=call.id, **fields)

    def refuse(self, call: ToolCall, verdict: Verdict) -> None:
        """Print why a call was refused."""
        fields = {"name": call.name, "arguments": call.arguments, "reason": verdict.reason}
        rules = sorted(map(str, verdict.rules))
        self._print("refused", step=self._num_steps, id=call.id, **fields, rules=rules)

    def record(self, record: Mapping[str, Any]) -> None:
        """Print a record in the words of the format."""
        match record["type"]:
            case "said" if "sender" in record:
                (message,) = record["messages"]
                sender = record["sender"]
                self._print(
                    "message", agent=sender["agent"], id=sender["message"], text=message["content"]
                )
            case "said":
                for message in record["messages"]:
                    self._print("user", text=message["content"])
            case "answer":
                self._print_answer(record)
            case "result":
                call = self._calls[record["call"]]
                fields = {key: record[key] for key in _RESULT}
                self._print(
                    "result", step=self._num_steps, id=call.get("id"), name=call["name"], **fields
                )
            case "compacted":
                usage = {name: record[f"num_{name}"] for name in USAGE}
                self._print("compacted", **{key: record[key] for key in _COMPACTED}, usage=usage)
            case "note":
                self._print("note", text=record["text"])

    def end(self, reason: str, code: int, trajectory: Trajectory, refused: int) -> None:
        """Print how it ended, with the last answer and the tokens of all steps."""
        reply = trajectory.reply
        is_last = reply is not None and not reply.tool_calls and not trajectory.said
        self._print(
            "run.ended",
            reason=reason,
            exit_code=code,
            answer=reply.content if reply is not None and is_last else None,
            num_steps=len(trajectory.steps),
            num_refused=refused,
            usage=trajectory.usage,
        )

    def _print_answer(self, record: Mapping[str, Any]) -> None:
        message = record["message"]
        self._num_steps += 1
        self._calls = tuple(
            {"id": one.get("id"), **one["function"]} for one in message.get("tool_calls") or ()
        )
        self._print(
            "answer",
            step=self._num_steps,
            thinking=message.get("reasoning_content") or message.get("thinking"),
            content=message.get("content"),
            tool_calls=list(self._calls),
            finish_reason=record["finish_reason"],
            seconds=round(record["seconds"], 3),
            usage={name: record[f"num_{name}"] for name in USAGE},
        )

    def _print(self, type: str, **fields: Any) -> None:
        self._emit({"type": type, **fields})


def _print_line(event: Mapping[str, Any]) -> None:
    print_json(dict(event))
    sys.stdout.flush()


_RESULT: Final = ("text", "is_error", "seconds", "snapshot", "details")
_COMPACTED: Final = ("num_steps", "text", "num_tokens_before", "num_tokens_after")


def _cut(line: str, limit: int) -> str:
    """Return a line as a terminal shows it, cut to a length."""
    line = line.expandtabs(4)
    return line if len(line) <= limit else f"{line[:limit]}..."


def show_diff(text: str, console: Console = stderr) -> None:
    """Show a diff in colours, its first lines."""
    lines = harmless(text).rstrip("\n").split("\n")
    _show_diff_lines([_cut(line, 400) for line in lines[:_MAX_DIFF_LINES]], console)
    if len(lines) > _MAX_DIFF_LINES:
        console.print(f"    ... {len(lines) - _MAX_DIFF_LINES:,} more lines", style="dim")


def show_preview(
    text: str, *, is_diff: bool, is_whole: bool = False, console: Console = stderr
) -> bool:
    """Show what somebody is to consent to, a diff in colours; return whether anything of it was
    left out. A command that was shown whole as the call began is not shown again."""
    text = harmless(text).rstrip("\n")
    lines = text.split("\n")
    is_short = len(lines) <= _MAX_CALL_LINES and len(max(lines, key=len)) <= _MAX_CALL_WIDTH
    if not text or (is_short and not is_diff):
        return False
    if is_whole:
        show_all(text, is_diff=is_diff, console=console)
        return False
    shown = [_cut(line, 400) for line in lines[:_MAX_PREVIEW_LINES]]
    _show_kind(shown, console, is_diff=is_diff)
    if shown == [line.expandtabs(4) for line in lines]:
        return False
    console.print(f"    ... this is not all of {len(lines):,} lines", style="dim")
    return True


def show_all(text: str, *, is_diff: bool, console: Console = stderr) -> None:
    """Show all lines of a text that somebody is to consent to, a diff in colours."""
    _show_kind(harmless(text).split("\n"), console, is_diff=is_diff)


def _show_kind(lines: Sequence[str], console: Console, *, is_diff: bool) -> None:
    if is_diff:
        _show_diff_lines(lines, console)
        return
    for line in lines:
        console.print(f"    {line}", markup=False, soft_wrap=True)


def _show_diff_lines(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        style = "bold" if line.startswith(("+++", "---")) else _STYLES.get(line[:1], "dim")
        console.print(f"    {line}", style=style, markup=False, soft_wrap=True)
