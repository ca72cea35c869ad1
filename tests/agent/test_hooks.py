"""Commands of the user's around calls and before the end: what they see, refuse and change."""

import json
from pathlib import Path
from typing import Any

import pytest

from fulmen.agent import Archive, Hook, Setup, Trajectory, parse_config
from tests.agent.test_work import run
from tests.agent.working import bash, begun, m2_calls, says, scripted, work_of
from tests.sandbox.helpers import skip_without_sandbox


def worked(tmp_path: Path, script: list[str], *hooks: Hook, **fields: Any) -> Trajectory:
    """Return what came of a script in a run with hooks, in the folder `f`."""
    skip_without_sandbox()
    folder = tmp_path / "f"
    folder.mkdir()
    archive = Archive(tmp_path / "runs")
    begun(archive, folder, name="one")

    async def work() -> Trajectory:
        async with work_of(archive, "one", scripted(script), hooks=hooks, **fields) as one:
            assert await one.say("go") == "done"
            return one.trajectory

    trajectory: Trajectory = run(work())
    return trajectory


def before(command: str, match: str = "*") -> Hook:
    """Return a hook before calls."""
    return Hook(event="before_tool", command=command, match=match)


def after(command: str, match: str = "*") -> Hook:
    """Return a hook after calls."""
    return Hook(event="after_tool", command=command, match=match)


def results(trajectory: Trajectory) -> list[tuple[str, bool]]:
    """Return texts of all results, and whether they are errors."""
    steps = trajectory.steps
    return [(result.text, result.is_error) for step in steps for result in step.results]


def test_a_hook_reads_the_call_and_its_refusal_keeps_it_from_being_made(tmp_path: Path) -> None:
    script = [bash("m2", "touch 'a b'"), bash("m2", "touch c"), says("m2", "Done.")]
    refuses = "cat > seen; grep -q \"'a b'\" seen && { echo no blanks >&2; exit 2; } # x"
    trajectory = worked(tmp_path, script, before(refuses, "run|ba?h"), before("exit 2", "edit"))
    assert results(trajectory) == [
        ("(a hook of the user's refused this call)\nno blanks", True),
        ("(no output)", False),
    ]
    folder = tmp_path / "f"
    assert not (folder / "a b").exists()
    assert (folder / "c").exists()
    assert json.loads((folder / "seen").read_text()) == {
        "event": "before_tool",
        "tool": "bash",
        "arguments": {"command": "touch c"},
    }


def test_a_hook_after_a_call_changes_files_that_a_snapshot_has(tmp_path: Path) -> None:
    write = m2_calls(("write", {"path": "x", "content": "it's 1\n"}))
    hooks = (after("sed -i s/1/2/ x; cat > seen; echo checked; exit 2", "write"), after("exit 7"))
    trajectory = worked(tmp_path, [write, says("m2", "Done.")], *hooks)
    (result,) = trajectory.steps[0].results
    assert result.text == "x is written, 1 lines\n(a hook of the user's says)\nchecked"
    seen = json.loads((tmp_path / "f/seen").read_text())
    assert seen["result"] == "x is written, 1 lines"
    assert seen["is_error"] is False
    archive = Archive(tmp_path / "runs")
    archive.export_files("one", tmp_path / "out", num_steps=1)
    assert (tmp_path / "out/x").read_text() == "it's 2\n"


def test_a_hook_that_fails_refuses_nothing_and_is_told_of(tmp_path: Path) -> None:
    hooks = (before("echo broken; exit 1"), Hook(event="before_tool", command="cat", timeout=5))
    trajectory = worked(tmp_path, [bash("m2", "echo hi"), says("m2", "Done.")], *hooks)
    (result,) = trajectory.steps[0].results
    assert result.text == "hi"
    assert result.details["hooks"] == ["echo broken; exit 1: exit code 1: broken"]


def test_hooks_leave_the_shell_where_it_is(tmp_path: Path) -> None:
    script = [
        bash("m2", "mkdir d; cd d; export A=1"),
        bash("m2", "pwd; echo $A $B"),
        says("m2", ""),
    ]
    trajectory = worked(tmp_path, script, before("pwd > /tmp/at; cd /; export A=2 B=3"))
    assert results(trajectory)[1][0] == f"{tmp_path}/f/d\n1"


def test_a_hook_before_the_end_sends_the_model_on_a_few_times(tmp_path: Path) -> None:
    hook = Hook(event="before_end", command="test -e made || { echo make it; exit 2; }")
    script = [says("m2", "A."), bash("m2", "touch made"), says("m2", "B.")]
    trajectory = worked(tmp_path, script, hook)
    assert [step.answer.message.content for step in trajectory.steps][::2] == ["A.", "B."]
    (said,) = trajectory.steps[1].said
    assert said.content.startswith("(This is no message of the user's:")
    assert said.content.endswith("\nmake it")
    assert (tmp_path / "f/made").exists()


def test_a_hook_that_never_lets_go_does_not_hold_a_run_forever(tmp_path: Path) -> None:
    hook = Hook(event="before_end", command="exit 2")
    trajectory = worked(tmp_path, [says("m2", "A.")] * 9, hook)
    assert len(trajectory.steps) == 4
    assert trajectory.steps[1].said[0].content.endswith("it did not say why")


def test_hooks_of_a_workspace_run_once_it_is_approved(tmp_path: Path) -> None:
    home, workspace = tmp_path / "home", tmp_path / "w"
    (workspace / ".fulmen").mkdir(parents=True)
    home.mkdir()
    text = '[[hooks]]\nevent = "after_tool"\nmatch = "edit|write"\ncommand = "fmt"\ntimeout = 5\n'
    (workspace / ".fulmen/agent.toml").write_text(text)
    (home / "agent.toml").write_text('[[hooks]]\nevent = "before_end"\ncommand = "mine"\n')
    setup = Setup.read(workspace, home)
    assert [one.command for one in setup.config.hooks] == ["mine"]
    hooks = setup.approve().config.hooks
    assert [one.command for one in hooks] == ["mine", "fmt"]
    assert [hooks[1].means(name) for name in ("edit", "write", "bash")] == [True, True, False]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("hooks = 1", "each begins with"),
        ("[[hooks]]\nevent = 'later'\ncommand = 'x'", "event is 'later'"),
        ("[[hooks]]\nevent = 'before_end'", "needs a command"),
        ("[[hooks]]\nevent = 'before_end'\ncommand = 'x'\nmatch = 'edit'", "says nothing"),
        ("[[hooks]]\nevent = 'before_tool'\ncommand = 'x'\nmatch = ''", "names of tools"),
        ("[[hooks]]\nevent = 'before_tool'\ncommand = 'x'\ntimeout = -1", "timeout is -1"),
        ("[[hooks]]\nevent = 'before_tool'\ncommand = 'x'\nwhen = 1", "has 'when'"),
    ],
)
def test_a_hook_that_is_none_is_named(text: str, found: str) -> None:
    with pytest.raises(ValueError, match=found) as error:
        parse_config(text.encode(), "here")
    assert str(error.value).startswith("here: hook")


def test_half_a_surrogate_pair_in_a_call_does_not_end_a_run_with_hooks(tmp_path: Path) -> None:
    todo = m2_calls(("todo", {"items": [{"text": "HALF", "state": "open"}]}))
    script = [todo.replace("HALF", "\\ud800"), says("m2", "Done.")]
    trajectory = worked(tmp_path, script, before("cat > seen"))
    assert len(trajectory.steps) == 2
    assert "\\ud800" in (tmp_path / "f/seen").read_text()


def test_a_hook_before_the_end_that_fails_is_told_of(tmp_path: Path) -> None:
    told: list[str] = []

    class Watching:
        def event(self, event: object) -> None: ...

        def calling(self, call: object) -> None: ...

        def record(self, record: Any) -> None:
            told.extend([record["text"]] if record["type"] == "note" else [])

    hook = Hook(event="before_end", command="no-such-checker")
    worked(tmp_path, [says("m2", "Done.")], hook, watcher=Watching())
    assert len(told) == 1
    assert told[0].startswith("a hook before the end: no-such-checker: exit code 127")
