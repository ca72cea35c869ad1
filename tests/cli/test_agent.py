"""fulmen agent as people and scripts use it: stdout, stderr, JSON lines, questions, exit codes."""

import asyncio
import contextlib
import io
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import Archive, Trajectory, default_runs
from fulmen.chat import ChatRequest, read_messages
from fulmen.cli import agent_run, main
from fulmen.cli.agent_view import EXIT_CODES
from fulmen.envs import RepairTask, load_environment
from fulmen.llm import LLM, ForcedModel, LocalModel, LocalStream
from tests.agent.working import (
    bash,
    by_place,
    content,
    m1_calls,
    m2_calls,
    says,
)
from tests.cli.test_cli import assert_refused, called
from tests.sandbox.helpers import skip_without_sandbox
from tests.server.helpers import scripted, served
from tests.tiny import write_checkpoint
from tests.warm import python

ADD = "def add(a, b):\n    return a - b\n"
TEST = "from add import add\n\nassert add(2, 3) == 5\n"


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.delenv("FULMEN_API_KEY", raising=False)
    skip_without_sandbox()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "add.py").write_text(ADD)
    (folder / "test_add.py").write_text(TEST)
    return folder


def repair(kind: str) -> list[str]:
    """Return the answers that make the failing test pass."""
    make = m2_calls if kind == "m2" else m1_calls
    return [
        bash(kind, "python3 -B test_add.py"),
        make(("read", {"path": "add.py"})),
        make(("edit", {"path": "add.py", "old": "a - b", "new": "a + b"})),
        bash(kind, "python3 -B test_add.py && echo well"),
        says(kind, "The sign was wrong."),
    ]


@contextlib.contextmanager
def served_script(
    script: Sequence[str | Callable[[ChatRequest], str]], kind: str = "m2", **settings: Any
) -> Iterator[str]:
    """Serve a model that says a script."""
    delay = settings.pop("delay_seconds", 0.0)
    with served(scripted(kind, *script, piece_chars=20, delay_seconds=delay), **settings) as url:
        yield url


def agent(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Let an agent work in a folder, with a model at a URL."""
    return called("agent", *arguments, "--folder", folder, "--url", url)


def lines(run: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """Return JSON lines of stdout."""
    return [json.loads(line) for line in run.stdout.splitlines()]


def results_of(run: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what the model read of its calls."""
    return [one["text"] for one in lines(run) if one["type"] == "result"]


def run_name() -> str:
    """Return the run that was used last."""
    return Archive(default_runs()).runs.names()[0]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def typed(
    keys: str,
    *arguments: str | Path,
    monkeypatch: pytest.MonkeyPatch,
    out: io.StringIO | None = None,
) -> tuple[int, str, str]:
    """Run a command at a terminal where somebody types; return its exit code, stdout and stderr.

    out  stdout, which is no terminal if omitted
    """
    error = Terminal()
    out = io.StringIO() if out is None else out
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["fulmen", *map(str, arguments)])
        patch.setattr(sys, "stdin", Terminal(keys))
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", error)
        patch.setenv("TERM", "dumb")
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), error.getvalue()


@pytest.mark.parametrize("kind", ["m1", "m2"])
@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_a_task_is_done_and_its_answer_alone_is_on_stdout(
    folder: Path, kind: str, dialect: str
) -> None:
    with served_script(repair(kind), kind) as url:
        flags = ("--mode", "auto", "--url-dialect", dialect)
        run = agent(folder, url, "-p", "Make the failing test pass.", *flags)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "The sign was wrong.\n"
    assert (folder / "add.py").read_text() == ADD.replace("-", "+")
    assert "+    return a + b" in run.stderr
    assert "python3 -B test_add.py && echo well" in run.stderr


@pytest.mark.parametrize(("kind", "dialect"), [("m1", "anthropic"), ("m2", "openai")])
def test_an_engine_that_is_made_to_say_it_does_it_too(
    folder: Path, tmp_path: Path, kind: str, dialect: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / kind, kind, max_position_embeddings=16384)
    model = LocalModel(LLM.load(str(checkpoint)))
    flags = ("--mode", "auto", "--url-dialect", dialect)
    with served(ForcedModel(model, repair(kind)), answer_share=0) as url:
        run = agent(folder, url, "-p", "Make the failing test pass.", *flags)
    asyncio.run(model.close())
    assert run.returncode == 0, run.stderr
    assert run.stdout == "The sign was wrong.\n"
    steps = Archive(default_runs()).runs.open(run_name()).trajectory.steps
    for before, after in pairwise(steps):  # what was read and said is in the server's cache
        known = before.answer.num_prompt_tokens + before.answer.num_new_tokens
        assert after.answer.num_cached_tokens >= known - 64


@pytest.mark.parametrize(("kind", "level"), [("m1", 3), ("m2", 5)])
def test_a_repository_is_repaired_with_the_model_on_this_machine(
    kind: str, level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = load_environment(f"repairs:{level}", seed=1).task(0)
    assert isinstance(task, RepairTask)
    work = tmp_path / "work"
    work.mkdir()
    asyncio.run(task.prepare(work))
    ((path, text),) = task.solution.items()
    make = m2_calls if kind == "m2" else m1_calls
    script = iter(
        [
            bash(kind, "python3 -B -m unittest 2>&1 | tail -n 1"),
            make(("write", {"path": path, "content": text})),
            bash(kind, "python3 -B -m unittest 2>&1 | tail -n 1"),
            says(kind, "It is repaired."),
        ]
    )

    class Saying(LocalModel):
        """The model of the command, made to say the script."""

        def stream(self, request: ChatRequest) -> LocalStream:
            ids = self.tokenizer.encode(next(script))
            end = self.tokenizer.token_id(self.format.end_of_turn)
            assert end is not None
            return super().stream(replace(request, forced_ids=(*ids, end)))

    monkeypatch.setattr(agent_run, "LocalModel", Saying)
    checkpoint = write_checkpoint(tmp_path / kind, kind, max_position_embeddings=32768)
    flags = ("--mode", "auto", "--folder", work, "--model", checkpoint)
    run = called("agent", "-p", "Make the failing test pass.", *flags)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "It is repaired.\n"
    steps = Archive(default_runs()).runs.open(run_name()).trajectory.steps
    found = [step.results[0].text for step in steps[:-1]]
    assert "FAILED" in found[0]
    assert found[2] == "OK"
    assert all(step.answer.sampled is not None for step in steps)
    assert asyncio.run(task.score(Trajectory(), work)).value == 1


def test_json_lines_say_everything(folder: Path) -> None:
    with served_script(repair("m2")) as url:
        run = agent(folder, url, "--json", "Make the failing test pass.", "--mode", "auto")
    found = lines(run)
    assert [one["type"] for one in found] == [
        *("run.started", "user"),
        *("answer", "call", "result") * 4,
        *("answer", "run.ended"),
    ]
    begin, end = found[0], found[-1]
    assert (begin["folder"], begin["mode"], begin["tools"]) == (str(folder), "auto", "coding")
    results = [one for one in found if one["type"] == "result"]
    assert [one["name"] for one in results] == ["bash", "read", "edit", "bash"]
    assert [one["step"] for one in results] == [1, 2, 3, 4]
    assert [one["is_error"] for one in results] == [True, False, False, False]
    assert results[0]["details"]["exit_code"] == 1
    calls = [one for one in found if one["type"] == "call"]
    assert [one["id"] for one in calls] == [one["id"] for one in results]
    assert calls[2]["arguments"] == {"path": "add.py", "old": "a - b", "new": "a + b"}
    assert (end["reason"], end["exit_code"], end["answer"]) == ("done", 0, "The sign was wrong.")
    answers = [one for one in found if one["type"] == "answer"]
    assert all(one["thinking"].strip() == "Hm." for one in answers)
    for name, total in end["usage"].items():
        assert total == sum(one["usage"][name] for one in answers)


def test_what_asks_is_refused_where_nobody_can_be_asked(folder: Path) -> None:
    script = [bash("m2", "touch new"), says("m2", "Then not.")]
    with served_script(script) as url:
        run = agent(folder, url, "--json", "Do it.")
    assert run.returncode == EXIT_CODES["refused"] == 3
    found = lines(run)
    (refused,) = (one for one in found if one["type"] == "refused")
    assert refused["rules"] == ["bash(touch new)"]
    assert "nobody can be asked" in next(one for one in found if one["type"] == "result")["text"]
    assert found[-1]["num_refused"] == 1
    assert not (folder / "new").exists()
    with served_script(script) as url:
        run = agent(folder, url, "-p", "Do it.", "--allow", "bash(touch *)")
    assert run.returncode == 0
    assert (folder / "new").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--max-turns", "1"), "turns"),
        (("--max-tokens", "60"), "tokens"),
        (("--max-seconds", "1e-9"), "seconds"),
    ],
)
def test_each_limit_has_an_exit_code_and_a_larger_one_goes_on(
    folder: Path, flags: tuple[str, ...], reason: str
) -> None:
    script = by_place([bash("m2", f"echo {'x' * 30} > a"), says("m2", "Done.")])
    with served_script([script] * 9) as url:
        run = agent(folder, url, "-p", "Do it.", "--mode", "auto", *flags)
        assert run.returncode == EXIT_CODES[reason], run.stderr
        wider = [flags[0], "1k" if flags[0] == "--max-tokens" else "100"]
        run = called("agent", "-p", "--resume", run_name(), *wider)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "Done.\n"
    assert (folder / "a").exists()


def test_the_same_calls_again_and_again_end_it(folder: Path) -> None:
    with served_script([bash("m2", "false")] * 9) as url:
        run = agent(folder, url, "-p", "Do it.", "--mode", "auto")
    assert run.returncode == EXIT_CODES["loop"]
    assert "again and again" in run.stderr


def test_a_model_that_fails_is_one_sentence(folder: Path) -> None:
    run = agent(folder, "http://127.0.0.1:9", "-p", "Do it.")
    assert run.returncode == 1
    assert "cannot be reached" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-p",), "the task is empty"),
        (("-p", "x", "--continue", "--resume", "r"), "--continue is given with --resume"),
        (("-p", "x", "--continue"), "there is no run in"),
        (("-p", "x", "--resume", "r"), "there is no run r"),
        (
            ("-p", "x", "--deny", "bash("),
            "Invalid value for '--deny': the rule 'bash(' has no closing bracket",
        ),
        (("-p", "x", "--mode", "yolo"), "Invalid value for '--mode'"),
        (("-p", "x", "--max-turns", "-1"), "--max-turns is -1"),
        (
            ("-p", "x", "--writable", "Makefile"),
            "Invalid value for '--writable': Makefile is not protected",
        ),
        (("-p", "x", "--url-key", "k"), "--url-key is given, it needs --url"),
        (("-p", "x", "--url", "http://a", "--thinking-tokens", "5"), "--thinking-tokens is for a"),
        (("rewind", "r", "--step", "1"), "there is no run r"),
        (("export", "r", "--step", "1"), "there is no run r"),
    ],
)
def test_a_mistake_is_one_sentence(
    folder: Path, arguments: tuple[str, ...], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run = called("agent", *arguments)
    assert_refused(run, sentence)
    assert not list(default_runs().glob("*"))


def test_a_person_is_asked_and_always_is_remembered(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [
        bash("m2", "touch one"),
        bash("m2", "npm run t -x; npm run t -q"),
        bash("m2", "touch three"),
        says("m2", "Done \x1b[31m."),
    ]
    with served_script(script) as url:
        code, _, error = typed(
            "y\na\nrather not\n",
            *("agent", "-p", "Do it.", "--folder", folder, "--url", url),
            monkeypatch=monkeypatch,
        )
    assert code == 0
    assert (folder / "one").exists()
    assert not (folder / "three").exists()
    assert "[a]lways bash(npm run t *)" in error
    (text,) = (
        step.results[0].text
        for step in Archive(default_runs()).runs.open(run_name()).trajectory.steps[2:3]
    )
    assert text == "the user did not allow this, and says: rather not"
    with served_script([bash("m2", "npm run t --co"), says("m2", "Done.")]) as url:
        assert agent(folder, url, "-p", "Do it.").returncode == 0  # nobody had to be asked


def test_a_conversation_goes_on_word_by_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [
        bash("m2", "echo 1 > a"),
        says("m2", "First."),
        bash("m2", "echo 2 > a"),
        says("m2", "Second."),
        says("m2", "Third."),
    ]
    keys = "Now two.\n/diff\n/rewind 2\n/nonsense\n/rewind x\nAnd three.\n/exit\n"
    with served_script(script) as url:
        code, out, error = typed(
            keys,
            *("agent", "Write one.", "--mode", "auto", "--folder", folder, "--url", url),
            monkeypatch=monkeypatch,
        )
    assert code == 0, error
    assert [line for line in out.splitlines() if line] == ["First.", "Second.", "Third."]
    assert (folder / "a").read_text() == "1\n"
    assert "/nonsense is no command" in error
    assert "'x' is no number of a step" in error
    assert "is back at step 2: 1 files written, 0 deleted" in error
    assert f"fulmen agent --resume {run_name()} goes on here" in error
    contents = [
        one.content
        for one in Archive(default_runs()).runs.open(run_name()).trajectory.messages
        if one.role == "user"
    ]
    assert contents == ["Write one.", "And three."]


def test_settings_of_a_workspace_hold_once_they_are_approved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".fulmen").mkdir()
    settings = 'mode = "auto"\n[environment]\nWHO = "me & you"\n'
    (folder / ".fulmen/agent.toml").write_text(settings)
    (folder / "AGENTS.md").write_text("Speak low.\n")
    script = [bash("m2", 'echo "$WHO" > who'), says("m2", "Done.")]
    with served_script(script) as url:
        run = agent(folder, url, "-p", "Do it.")
    assert run.returncode == EXIT_CODES["refused"]
    assert "is not approved" in run.stderr
    with served_script(script) as url:
        arguments = ("agent", "-p", "Do it.", "--folder", folder, "--url", url)
        code, _, error = typed("y\n", *arguments, monkeypatch=monkeypatch)
    assert code == 0
    assert 'mode = "auto"' in error
    assert (folder / "who").read_text() == "me & you\n"
    with served_script(script) as url:
        assert agent(folder, url, "-p", "Do it.").returncode == 0  # and from then on
    run_ = Archive(default_runs()).runs.open(run_name())
    assert "Instructions of this folder (AGENTS.md):\n\nSpeak low." in run_.facts.system[0].content
    assert str(folder) not in run_.facts.system[0].content
    (folder / ".fulmen/agent.toml").write_text(settings + "\n")
    with served_script(script) as url:
        assert agent(folder, url, "-p", "Do it.").returncode == EXIT_CODES["refused"]


def test_the_users_own_settings_hold_everywhere_and_a_flag_beats_them(
    folder: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "config/fulmen/agent/agent.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(
        'mode = "auto"\ntools = "minimal"\nnetwork = true\nmax-turns = 1\n'
        'thinking-tokens = 5\n[rules]\nallow = ["run(python3 *)"]\ndeny = ["run(touch *)"]\n'
    )
    place = {"url": ""}

    def look(request: ChatRequest) -> str:
        program = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1]).status)"
        return bash("m2", f"python3 -c '{program}' {place['url']}/health", tool="run")

    script: list[Any] = [
        look,
        look,
        bash("m2", "touch new", tool="run"),
        *[says("m2", "Done.")] * 2,
    ]
    with served_script(script) as url:
        place["url"] = url
        run = agent(folder, url, "--json", "Do it.")
        assert run.returncode == EXIT_CODES["turns"], run.stderr
        start = next(one for one in lines(run) if "mode" in one)
        assert (start["mode"], start["tools"]) == ("auto", "minimal")
        assert results_of(run) == ["200"]
        run = agent(folder, url, "--json", "Do it.", "--max-turns", "none", "--no-network")
        assert run.returncode == 0, run.stderr
        network, rule = results_of(run)
        assert "URLError" in network
        assert "the rule bash(touch *) denies it" in rule
        run = agent(folder, url, "--json", "Do it.", "--mode", "plan", "--tools", "coding")
        assert (lines(run)[0]["mode"], lines(run)[0]["tools"]) == ("plan", "coding")
    assert not (folder / "new").exists()
    settings.write_text("max-turns = 'x'\n")
    assert_refused(called("agent", "-p", "x", "--folder", folder, "--url", url), "max-turns is 'x'")


def test_runs_are_listed_shown_compared_taken_back_forked_and_forgotten(folder: Path) -> None:
    with served_script(repair("m2")) as url:
        assert agent(folder, url, "-p", "Fix it.", "--mode", "auto").returncode == 0
    name = run_name()
    (row,) = json.loads(called("agent", "list", "--json").stdout)
    assert (row["run"], row["num_steps"], row["end"], row["task"]) == (name, 5, "done", "Fix it.")
    assert "Fix it." in called("agent", "list").stdout
    shown = json.loads(called("agent", "show", name, "--json").stdout)
    assert [len(step["calls"]) for step in shown["steps"]] == [1, 1, 1, 1, 0]
    assert "== step 3" in called("agent", "show", name).stdout
    diff = called("agent", "diff", name, "2", "3").stdout
    assert diff.endswith("-    return a - b\n+    return a + b\n")
    assert called("agent", "diff", name, "0", "2").stdout == ""
    assert "changed add.py  +1 -1" in called("agent", "diff", name, "--stat").stdout
    records = [json.loads(line) for line in called("agent", "export", name).stdout.splitlines()]
    assert [one["type"] for one in records][:3] == ["run", "said", "answer"]
    assert records[-1] == {"type": "ended", "reason": "done"}

    before = content(folder)
    fork = called("agent", "fork", name, "--step", "2")
    assert fork.stdout == f"{name}-2\n"
    other = folder.with_name(f"project-{name}-2")
    assert (other / "add.py").read_text() == ADD
    script = [bash("m2", "echo '# mine' >> add.py"), says("m2", "Otherwise.")]
    with served_script(script) as url:
        run = called("agent", "resume", f"{name}-2", "Go another way.", "-p", "--url", url)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "Otherwise.\n"
    assert (other / "add.py").read_text() == ADD + "# mine\n"
    assert content(folder) == before

    (folder / "add.py").write_text("mine")
    refused = called("agent", "rewind", name, "--step", "2")
    assert refused.returncode == 1
    assert "nothing was restored: add.py" in refused.stderr
    assert called("agent", "rewind", name, "--step", "2", "--force").returncode == 0
    assert (folder / "add.py").read_text() == ADD
    out = folder.with_name("out")
    assert "kept aside as 1" in called("agent", "show", name).stdout
    assert called("agent", "export", name, "--files", str(out), "--saved", "1").returncode == 0
    assert (out / "add.py").read_text() == "mine"
    assert called("agent", "rm", name, f"{name}-2").returncode == 0
    assert json.loads(called("agent", "list", "--json").stdout) == []
    assert (other / "add.py").exists()


def test_what_a_model_writes_reaches_no_terminal_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "\x1b]0;evil\x07\x1b[2J"
    script = [
        bash("m2", f"printf 'a{evil}b'; echo '{evil}' > 'x{evil[1:4]}'"),
        m2_calls(("write", {"path": "y", "content": evil})),
        says("m2", f"Done {evil}."),
    ]
    with served_script(script) as url:
        arguments = ("agent", "-p", "Do it.", "--mode", "auto", "--folder", folder, "--url", url)
        _, out, error = typed("", *arguments, monkeypatch=monkeypatch, out=Terminal())
    assert "Done" in out
    name = run_name()
    shown = called("agent", "show", name).stdout
    for text in (out, error):
        assert "\x1b]" not in text
        assert "\x1b[2J" not in text
        assert "\x07" not in text
    assert "\x1b" not in shown


def test_the_model_on_this_machine_keeps_its_states_for_the_next_time(
    folder: Path, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "m2", "m2", max_position_embeddings=16384)
    flags = ("--temperature", "0", "--max-tokens", "30", "--thinking-budget", "5", "-p")
    first = called("agent", *flags, "Hello.", "--folder", folder, "--model", checkpoint)
    assert first.returncode == EXIT_CODES["tokens"], first.stderr
    name = run_name()
    second = called("agent", *flags[:2], "-p", "--json", "--resume", name, "--max-tokens", "90")
    assert second.returncode in (0, EXIT_CODES["tokens"]), second.stderr
    (answer, *_) = (one for one in lines(second) if one["type"] == "answer")
    assert answer["usage"]["cached_tokens"] > answer["usage"]["prompt_tokens"] // 2
    (session,) = json.loads(called("sessions", "list", "--json").stdout)
    assert session["name"] == name
    assert called("agent", "rm", name).returncode == 0
    assert json.loads(called("sessions", "list", "--json").stdout) == []


def test_a_model_whose_format_has_no_tools_is_said_to_have_none(
    folder: Path, tmp_path: Path
) -> None:
    checkpoint = write_checkpoint(tmp_path / "m2", "m2")
    template = "{% for one in messages %}{{ one.content }}\n{% endfor %}"
    (checkpoint / "chat_template.jinja").write_text(template)
    flags = ("--folder", folder, "--model", checkpoint, "--max-tokens", "5")
    run = called("agent", "-p", "Hello.", *flags)
    assert run.returncode in (0, EXIT_CODES["tokens"]), run.stderr
    assert f"{checkpoint} has a chat format without tools" in run.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("kind", "code"), [(signal.SIGINT, EXIT_CODES["interrupted"]), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_it_and_it_goes_on_from_there(
    folder: Path, kind: signal.Signals, code: int
) -> None:
    check_signals(folder, kind, code, 1, random.Random(int(kind)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "code"), [(signal.SIGINT, EXIT_CODES["interrupted"]), (signal.SIGTERM, 143)]
)
def test_a_hundred_signals_lose_nothing(folder: Path, kind: signal.Signals, code: int) -> None:
    check_signals(folder, kind, code, 100, random.Random(int(kind)))


def check_signals(
    folder: Path, kind: signal.Signals, code: int, num_signals: int, draw: random.Random
) -> None:
    """Interrupt the command at random moments, and let it go on until it is done."""
    texts = [*(bash("m2", f"echo {i} >> log; sleep 0.1") for i in range(4)), says("m2", "Done.")]

    def line(request: ChatRequest) -> str:
        # A command that was ended is made once more, from what is there.
        messages = read_messages(request.messages)
        made = sum(
            one.role == "tool" and "ended by the user" not in one.content for one in messages
        )
        return texts[made]

    given = 0
    with served_script([line] * 100_000, delay_seconds=0.005) as url:
        while given < num_signals:
            name, is_done = "", False
            while given < num_signals and not is_done:
                arguments = ["--resume", name] if name else ["Do it.", "--folder", str(folder)]
                process = subprocess.Popen(
                    python(
                        *("-m", "fulmen.cli", "agent", "-p", *arguments),
                        *("--mode", "auto", "--url", url),
                    ),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                assert process.stderr is not None
                first = process.stderr.readline()  # the run is open
                time.sleep(draw.uniform(0, 1.0))
                process.send_signal(kind)
                _, error = process.communicate(timeout=60)
                assert "Traceback" not in error, error
                name = name or run_name()
                # It may come right at the end, or when only the process is still there.
                is_done = process.returncode == 0 or "is done, say what to do next" in first
                given += 1
                assert is_done or process.returncode in (code, -kind), first + error
            if Archive(default_runs()).runs.open(name).trajectory.end != "done":
                run = called("agent", "-p", "--resume", name)
                assert run.returncode == 0, run.stderr
                assert run.stdout == "Done.\n"
            log = (folder / "log").read_text().split()
            # An interrupted command has done what it has done, and says so; nothing is lost.
            assert sorted(set(log)) == ["0", "1", "2", "3"]
            assert log == sorted(log)
            (folder / "log").unlink()
            called("agent", "rm", name)
