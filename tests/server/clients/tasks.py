"""A task that every coding client does: write a file, read it, edit it, look at it twice at once.

    question -> write -> read -> edit -> count and read a line, in one turn -> the last word

Each client has tools of its own, so each has its own script of it. The texts have what is easily
lost on the way: quotes, backslashes, tags, a tab, a character of four bytes, numbers in JSON.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from fulmen.chat import ChatRequest, read_messages
from tests.server.clients import programs
from tests.server.clients.engine import Step, call

TEXT: Final = 'naïve "quotes" \\n\n\ttab 🦊 <b>&amp;</b>\n{"n": 1.0, "10": [], "2": null}\n'
EDITED: Final = TEXT.replace("[]", "[\"é\", '']")
OLD: Final = '"10": []'
NEW: Final = '"10": ["é", \'\']'
FINAL: Final = "The file is as you wanted it: three lines."
QUESTION: Final = "Write a.txt, then show me that it is right."


def _steps(
    write: str, read: str, edit: str, look: Sequence[str], end: Sequence[str] = ()
) -> list[Step]:
    """Return the steps of the task with a client's calls."""
    return [
        Step("I write it.", "Writing.", [write]),
        Step("I read  it.\n\nAll of it.", "", [read]),
        Step('A "list" is \\missing\\.\n\n    - é', "Now the list.\n", [edit]),
        Step("Two looks at once.", "Counting, and looking at the second line.", look),
        Step("Done 🦊.", FINAL, end),
    ]


def _claude_code(work: Path) -> list[Step]:
    file = str(work / "a.txt")
    return _steps(
        call("Write", file_path=file, content=TEXT),
        call("Read", file_path=file, offset=1, limit=50),
        call("Edit", file_path=file, old_string=OLD, new_string=NEW),
        [
            call("Bash", command="wc -l < a.txt", description="Count lines"),
            call("Read", file_path=file, offset=2, limit=1),
        ],
    )


def _opencode(work: Path) -> list[Step]:
    file = str(work / "a.txt")
    return _steps(
        call("write", filePath=file, content=TEXT),
        call("read", filePath=file, offset=1, limit=50),
        call("edit", filePath=file, oldString=OLD, newString=NEW),
        [
            call("bash", command="wc -l < a.txt", description="Count lines"),
            call("read", filePath=file, offset=2, limit=1),
        ],
    )


def _codex(work: Path) -> list[Step]:
    return _steps(
        call("exec_command", cmd=f"cat > {work}/a.txt <<'END'\n{TEXT}END"),
        call("exec_command", cmd="cat a.txt", yield_time_ms=5000),
        call("exec_command", cmd=f"apply_patch <<'END'\n{PATCH}\nEND"),
        [
            call("exec_command", cmd="wc -l < a.txt"),
            call("exec_command", cmd="sed -n 2p a.txt", login=False),
        ],
    )


PATCH: Final = f"""*** Begin Patch
*** Update File: a.txt
@@
-{TEXT.splitlines()[2]}
+{EDITED.splitlines()[2]}
*** End Patch"""
"""The edit in the format of codex"""


def codex_patch_steps(work: Path) -> list[Step]:
    """Return the task for codex where it knows the model: it then has a tool for patches alone."""
    lines = "".join(f"+{line}\n" for line in TEXT.splitlines())
    return _steps(
        call("apply_patch", input=f"*** Begin Patch\n*** Add File: a.txt\n{lines}*** End Patch"),
        call("exec_command", cmd="cat a.txt"),
        call("apply_patch", input=PATCH),
        [
            call("exec_command", cmd="wc -l < a.txt"),
            call("exec_command", cmd="sed -n 2p a.txt", workdir=str(work)),
        ],
    )


def _qwen_code(work: Path) -> list[Step]:
    file = str(work / "a.txt")
    return _steps(
        call("write_file", file_path=file, content=TEXT),
        call("read_file", file_path=file, offset=0, limit=50),
        call("edit", file_path=file, old_string=OLD, new_string=NEW),
        [
            call("run_shell_command", command="wc -l < a.txt", is_background=False),
            call("read_file", file_path=file, offset=1, limit=1),
        ],
    )


def _cline(work: Path) -> list[Step]:
    file = str(work / "a.txt")
    return _steps(
        call("editor", path=file, new_text=TEXT),
        call("read_files", files=[{"path": file, "start_line": 1, "end_line": None}]),
        call("editor", path=file, old_text=OLD, new_text=NEW),
        [
            call("run_commands", commands=["wc -l < a.txt"]),
            call("read_files", files=[{"path": file, "start_line": 2, "end_line": 2}]),
        ],
    )


def _pi(work: Path) -> list[Step]:
    return _steps(
        call("write", path="a.txt", content=TEXT),
        call("read", path=str(work / "a.txt"), offset=1, limit=50),
        call("edit", path="a.txt", edits=[{"oldText": OLD, "newText": NEW}]),
        [call("bash", command="wc -l < a.txt"), call("read", path="a.txt", offset=2, limit=1)],
    )


def _mini_swe_agent(work: Path) -> list[Step]:
    quoted = NEW.replace("'", "'\\''")
    return _steps(
        call("bash", command=f"cat > {work}/a.txt <<'END'\n{TEXT}END"),
        call("bash", command="cat a.txt"),
        call("bash", command=f"sed -i 's/\"10\": \\[\\]/{quoted}/' a.txt"),
        [call("bash", command="wc -l < a.txt"), call("bash", command="sed -n 2p a.txt")],
        [call("bash", command="echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT")],
    )


@dataclass(frozen=True, slots=True)
class Client:
    """A coding client in one of its dialects, and the task in its words."""

    dialect: str
    start: Callable[..., programs.Running]
    steps: Callable[[Path], list[Step]]
    program: str
    """Name that scripts/install_clients has for it"""
    can_hide: bool = True
    """A user can have it ask for no thoughts"""
    can_go_on: bool = True
    """It can continue its last conversation without being asked at a terminal, and then sends all
    of it as it was"""


def _client(
    dialect: str, steps: Callable[[Path], list[Step]], program: str, **fields: Any
) -> Client:
    """Return a client whose function in `programs` has the name of its program."""
    start = getattr(programs, program.replace("-", "_"))
    return Client(dialect, partial(start, **fields.pop("options", {})), steps, program, **fields)


CLIENTS: Final = {
    "claude-code": _client("Messages", _claude_code, "claude-code"),
    "codex": _client("Responses", _codex, "codex", can_hide=False),
    "opencode": _client("Chat", _opencode, "opencode"),
    "opencode-messages": _client(
        "Messages",
        _opencode,
        "opencode",
        can_hide=False,
        options={"package": "@ai-sdk/anthropic"},
    ),
    "qwen-code": _client("Chat", _qwen_code, "qwen-code", can_go_on=False),
    "cline": _client("Chat", _cline, "cline", can_hide=False, can_go_on=False),
    "pi": _client("Chat", _pi, "pi", can_hide=False),
    "pi-responses": _client(
        "Responses", _pi, "pi", can_hide=False, options={"dialect": "openai-responses"}
    ),
    "pi-messages": _client(
        "Messages", _pi, "pi", can_hide=False, options={"dialect": "anthropic-messages"}
    ),
    "mini-swe-agent": _client("Chat", _mini_swe_agent, "mini-swe-agent", can_go_on=False),
}


def again(steps: Sequence[Step]) -> list[Step]:
    """Return the task a second time: it reads where it wrote, and has other thoughts."""
    second = [replace(step, thought=f"Again. {step.thought}") for step in steps]
    for place in (0, 2):
        second[place] = replace(second[place], calls=steps[1].calls)
    return second


def write_steps(steps: Sequence[Step]) -> Callable[[ChatRequest], str]:
    """Say one step after the other; a request without tools wants a title."""

    def write(request: ChatRequest) -> str:
        if not request.tools:
            return Step("A title is wanted.", "Writing a file").text
        messages = read_messages(request.messages)
        return steps[sum(message.role == "assistant" for message in messages)].text

    return write
