"""A person at the keys, an agent and its sandbox in one process; the terminal is a text."""

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.input import create_pipe_input

from fulmen.agent import Archive, Setup, agent_folder, default_runs
from fulmen.chat import AnswerStream, ChatRequest, Message, read_messages
from fulmen.cli.agent_run import Side, Talk, begin
from fulmen.cli.agent_wanted import Wanted
from fulmen.cli.terminal import Conversation
from fulmen.sampling import SamplingParams
from tests.agent.working import bash, m2_calls, says, scripted
from tests.cli.terminal.test_region import new_output
from tests.cli.test_agent import _own_folders, folder, run_name

__all__ = ["_own_folders", "folder"]

WAIT_SECONDS = 60
Until = Callable[[Conversation], bool]


@dataclass
class Model:
    """A model that says a script, and notes what it is asked."""

    model: Any
    asked: list[list[Message]] = field(default_factory=list)

    def stream(self, request: ChatRequest) -> AnswerStream:
        self.asked.append(read_messages(request.messages))
        stream: AnswerStream = self.model.stream(request)
        return stream

    async def close(self) -> None:
        """Do nothing: there is nothing to end."""


@dataclass(frozen=True)
class Scripted(Side):
    """The side of such a model."""

    model: Any = None

    def open(self) -> Any:
        return self.model

    def params(self, given: Any) -> SamplingParams:
        return SamplingParams()


def rests(num_steps: int) -> Until:
    """Return whether nothing is under way, after so many steps."""

    def until(one: Conversation) -> bool:
        is_done = not one.front.is_working and not one.front.queue and one.front.choice is None
        return is_done and len(one.talk.work.trajectory.steps) == num_steps

    return until


def asks(one: Conversation) -> bool:
    """Return whether a question was there for long enough to be read."""
    choice = one.front.choice
    return choice is not None and time.monotonic() - choice.shown > 0.6


def converse(
    folder: Path,
    script: Sequence[Any],
    steps: Sequence[tuple[Until, str | Callable[[], None]]],
    *,
    words: str | None = None,
    mode: Any = "ask",
) -> tuple[str, list[list[Message]], int]:
    """Hold a conversation; each step is what is waited for, and the keys that come then. Return all
    that reached the terminal, all that the model was asked, and the exit code."""
    output, written = new_output()
    archive, model = Archive(default_runs()), Model(scripted(script))
    side, wanted = Scripted("script", model=model), Wanted(folder=folder, mode=mode)
    run = begin(archive, wanted, side, Setup.read(folder, agent_folder()), {})
    failed: list[int] = []
    with create_pipe_input() as keys:
        one = Conversation(keys=keys, output=output)
        talk = Talk(
            *(archive, run, side, wanted, one.view),
            asks=True,
            is_new=True,
            asker=one.asker,
            inbox=one.waiting,
        )

        def type_all() -> None:
            for number, (until, typed) in enumerate(steps):
                end = time.monotonic() + WAIT_SECONDS
                while one.screen.app is None or not one.screen.is_drawn or not until(one):
                    time.sleep(0.02)
                    if time.monotonic() > end:
                        failed.append(number)
                        assert talk.interrupts.loop is not None
                        talk.interrupts.loop.call_soon_threadsafe(one.interrupt)
                        talk.interrupts.loop.call_soon_threadsafe(one.front.leave)
                        return
                time.sleep(0.1)
                if callable(typed):
                    typed()
                else:
                    asked = one.front.choice
                    keys.send_text(typed)
                    while asked is not None and one.front.choice is asked and until is asks:
                        time.sleep(0.02)
                time.sleep(0.2)

        typing = threading.Thread(target=type_all)
        typing.start()
        with talk.opened():
            code = one.converse(talk, words)
        typing.join()
    text = written.getvalue()
    assert not failed, f"step {failed[0]} waited in vain; the terminal has\n{text[-3000:]}"
    return text, model.asked, code


def test_a_conversation_is_asked_answered_and_gone_on_with(folder: Path) -> None:
    script = [
        m2_calls(("edit", {"path": "add.py", "old": "a - b", "new": "a + b"})),
        bash("m2", "touch new"),
        says("m2", "**Done**, without the file."),
    ]
    text, asked, code = converse(
        folder,
        script,
        [
            (rests(0), "mend @add.py\r"),
            (asks, "y"),
            (asks, "t"),
            (lambda one: one.front.choice is None, "use no file\r"),
            (rests(3), "\x04"),
        ],
    )
    assert code == 0
    assert "a + b" in (folder / "add.py").read_text()
    assert not (folder / "new").exists()
    assert asked[0][-1].content == (
        "mend @add.py\n\nThe file add.py:\n```\ndef add(a, b):\n    return a - b\n```"
    )
    assert asked[2][-1].content == "the user did not allow this, and says: use no file"
    assert text.count("+    return a + b") == 1
    assert "\x1b[1mDone" in text


def test_control_characters_of_others_do_not_reach_the_terminal(folder: Path) -> None:
    evil = "\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b31m\x1b]0;title\x07"
    (folder / f"a{evil.replace('/', '')}").touch()
    script = [
        f"Hm {evil}\n</think>\n\nI look {evil}"
        + bash("m2", "printf '\\033]52;c;ZXZpbA==\\007\\033[2J'; ls; sleep 0.5").partition("\n\n")[
            2
        ],
        m2_calls((f"ba{evil}sh", {"command": evil})),
        m2_calls(("write", {"path": f"x{evil}", "content": f"{evil}\n"})),
        m2_calls(("todo", {"items": [{"text": evil, "state": "open"}]})),
        says("m2", f"`{evil}` [a]({evil})\n\n```{evil}\n{evil}\n```"),
    ]
    text, _, _ = converse(
        folder,
        script,
        [
            (rests(0), f"\x1b[200~{evil}\x1b[201~\r"),
            (rests(5), "/rewind\r"),
            (asks, "\x1b"),
            (rests(5), "/branches\r"),
            (asks, "\x1b"),
            (rests(5), "\x04"),
        ],
        mode="auto",
    )
    for sequence in ("\x1b]", "\x07", "\x1b[2J", "\x9b"):
        assert sequence not in text
    assert "\\x1b]52;c;ZXZpbA==" in text


def test_megabytes_cost_little_on_the_terminal(folder: Path) -> None:
    script = [
        bash("m2", "yes line | head -c 20000000; seq 100000"),
        m2_calls(("write", {"path": "new", "content": "a line of text\n" * 20_000})),
        says("m2", "Done."),
    ]
    begin = time.process_time()
    text, _, _ = converse(
        folder,
        script,
        [(asks, "y"), (asks, "n"), (rests(3), "\x04")],
        words="Do it.",
    )
    assert time.process_time() - begin < 60
    assert len(text) < 300_000
    assert "this is not all of 20,0" in text


def test_a_command_of_the_persons_own_is_given_along_with_the_next_words(folder: Path) -> None:
    text, asked, _ = converse(
        folder,
        [says("m2", "I see.")],
        [
            (rests(0), "!echo one; echo '```' > new\r"),
            (lambda one: rests(0)(one) and (folder / "new").exists(), "!sleep 50\r"),
            (lambda one: one.front.is_working, "\x1b"),
            (rests(0), "go on\r"),
            (rests(1), "/exit\r"),
        ],
    )
    assert "    one\n" in text.replace("\r", "").replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert len(asked) == 1
    assert asked[0][-1].content == (
        "I ran this command:\n````\necho one; echo '```' > new\n````\nIt printed:\n"
        "```\none\n```\n\n"
        "I ran this command:\n```\nsleep 50\n```\nIt printed:\n"
        "```\n(ended by the user before it was done)\n```\n\ngo on"
    )


def test_in_plan_mode_the_sandbox_cannot_be_written_to(folder: Path) -> None:
    script = [
        bash("m2", "touch new"),
        says("m2", "Not now."),
        bash("m2", "touch new"),
        says("m2", "So."),
    ]
    _, asked, _ = converse(
        folder,
        script,
        [
            (rests(0), "\x1b[Z" * 3 + "plan it\r"),  # ask, accept-edits, auto, plan
            (rests(2), "!touch mine\r"),
            (rests(2), "/mode auto\r"),
            (rests(2), "do it\r"),
            (rests(4), "\x04"),
        ],
    )
    assert "not allowed" in asked[1][-1].content
    assert "Read-only file system" in asked[2][-1].content
    assert (folder / "new").exists()
    assert not (folder / "mine").exists()


def test_words_while_it_works_are_read_behind_the_call_and_those_with_files_at_the_end(
    folder: Path,
) -> None:
    script = [
        bash("m2", "touch one; while [ ! -e go ]; do sleep 0.1; done", "touch two"),
        says("m2", "Seen."),
        says("m2", "With a file."),
    ]
    _, asked, code = converse(
        folder,
        script,
        [
            (lambda one: (folder / "one").exists(), "look here\r"),
            (lambda one: len(one.front.queue) == 1, "and here\r"),
            (lambda one: len(one.front.queue) == 2, "see @add.py\r"),
            (lambda one: len(one.front.queue) == 3, lambda: (folder / "go").touch()),
            (rests(3), "\x04"),
        ],
        words="Do it.",
        mode="auto",
    )
    assert code == 0
    assert [one.role for one in asked[1]][1:] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "user",
        "user",
    ]
    assert [one.content for one in asked[1]][-2:] == ["look here", "and here"]
    assert asked[2][-1].content.startswith("see @add.py")
    assert "return a - b" in asked[2][-1].content
    assert (folder / "two").exists()
    steps = Archive(default_runs()).runs.open(run_name()).trajectory.steps
    assert [[one.content for one in step.said] for step in steps[:2]] == [
        ["Do it."],
        ["look here", "and here"],
    ]


def test_words_that_come_with_the_last_answer_are_answered_and_commands_stand_for_words(
    folder: Path,
) -> None:
    (folder / ".claude/commands").mkdir(parents=True)
    (folder / ".claude/commands/fix.md").write_text("---\ndescription: Fix it\n---\nFix $1 now.")
    sent: list[Conversation] = []

    def late(request: ChatRequest) -> str:
        sent[0].front.submit("one thing more")
        return says("m2", "Done.")

    def keep(one: Conversation) -> bool:
        sent.append(one)
        return rests(0)(one)

    written, asked, code = converse(
        folder,
        [late, says("m2", "That too."), says("m2", "Fixed.")],
        [(keep, "go\r"), (rests(2), "/help\r"), (rests(2), "/fix add\r"), (rests(3), "\x04")],
    )
    assert code == 0
    assert asked[1][-1].content == "one thing more"
    assert asked[2][-1].content == "Fix add now."
    assert "Fix it" in written


def test_what_waits_is_sent_after_an_interrupt_and_a_rewind_gives_words_back(folder: Path) -> None:
    script = [
        bash("m2", "touch one; sleep 60"),
        says("m2", "Another way."),
        says("m2", "Begun again."),
    ]
    _, asked, code = converse(
        folder,
        script,
        [
            (lambda one: (folder / "one").exists(), "rather so\r"),
            (lambda one: bool(one.front.queue), "\x1b"),
            (rests(2), "/rewind\r"),
            (asks, "\x1b[A\x1b[A\r"),
            (lambda one: rests(0)(one) and one.region.buffer.text == "Do it.", "\x15again\r"),
            (rests(1), "/fork\r"),
            (lambda one: one.talk.name.endswith("-2") and rests(1)(one), "/branches\r"),
            (asks, "\x1b[A\r"),
            (lambda one: not one.talk.name.endswith("-2") and rests(1)(one), "\x04"),
        ],
        words="Do it.",
        mode="auto",
    )
    assert code == 0
    assert [one[-1].content for one in asked] == ["Do it.", "rather so", "again"]
    assert "(ended by the user before it was done)" in asked[1][-2].content
    assert not (folder / "one").exists()
    runs = Archive(default_runs()).runs
    forked = runs.open(f"{run_name()}" if run_name().endswith("-2") else f"{run_name()}-2")
    assert forked.facts.num_inherited == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_work_and_the_conversation(folder: Path, number: int) -> None:
    def kill() -> None:
        os.kill(os.getpid(), number)

    def works(one: Conversation) -> bool:
        return (folder / "one").exists()

    steps: list[Any] = [(works, kill)]
    if number == signal.SIGINT:
        steps.append((rests(1), "\x04"))
    _, _, code = converse(
        folder, [bash("m2", "touch one; sleep 60")], steps, words="Do it.", mode="auto"
    )
    assert code == (143 if number == signal.SIGTERM else 130)


def test_a_terminal_that_is_closed_ends_all(folder: Path) -> None:
    with create_pipe_input() as keys:
        output, _ = new_output()
        archive, model = Archive(default_runs()), Model(scripted([bash("m2", "sleep 60")]))
        side, wanted = Scripted("script", model=model), Wanted(folder=folder, mode="auto")
        run = begin(archive, wanted, side, Setup.read(folder, agent_folder()), {})
        one = Conversation(keys=keys, output=output)
        talk = Talk(archive, run, side, wanted, one.view, asks=True, is_new=True, asker=one.asker)
        timer = threading.Timer(3, keys.close)
        timer.start()
        with talk.opened():
            one.converse(talk, "Do it.")
        timer.join()
    assert archive.runs.open(run.name).trajectory.end == "interrupted"
