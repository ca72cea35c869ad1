"""An adversary inside: what it may not see, change, reach or outlive."""

import asyncio
import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fulmen.sandbox import PROTECTED, Sandbox
from fulmen.sandbox.access import MAY_APPEAR
from fulmen.sandbox.kernel import can_leave_abstract_sockets
from fulmen.sandbox.mounts import Mounts, plan_mounts
from tests.sandbox.helpers import EVIL, closed, inside, python, run_inside


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(folder), *settings, *words]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout


@contextmanager
def listening(*sockets: socket.socket) -> Iterator[list[str]]:
    """Listen; give a list that gets a name for every connection that anybody makes."""
    seen: list[str] = []
    stop = threading.Event()

    def accept(server: socket.socket) -> None:
        while not stop.is_set():
            try:
                server.accept()[0].close()
                seen.append(str(server.getsockname()))
            except TimeoutError:
                continue

    threads = []
    for server in sockets:
        server.settimeout(0.05)
        server.listen()
        threads.append(threading.Thread(target=accept, args=(server,)))
        threads[-1].start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for server in sockets:
            server.close()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init")
    (folder / "a").write_text("a")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "a")
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Configuration that runs later, outside


def test_nothing_of_git_is_changed_and_git_works(repository: Path) -> None:
    before = {
        path: path.read_bytes() for path in (repository / ".git").rglob("*") if path.is_file()
    }
    attempts = """
    echo evil > .git/hooks/pre-commit; echo evil >> .git/config; rm -rf .git; mv .git away
    mkdir other; mv other .git; ln -sf /tmp .git; mv -T .git/hooks .git/x; chmod 777 .git/config
    git config core.fsmonitor evil; git config --global core.hooksPath /tmp; git commit -am evil
    git init .; git worktree add /tmp/w; mount --bind /tmp .git; umount .git; ln .git/config link
    cp -a .git copy; cd .git && echo evil > HEAD; touch .gitmodules AGENTS.md .mcp.json
    git update-ref refs/heads/evil HEAD; truncate -s 0 .git/index; touch -d yesterday .git/HEAD
    """
    outcome = run_inside(repository, f"{attempts}\ncd {repository}; git status --short; git log")
    assert outcome.output.count("Read-only file system") + outcome.output.count("busy") > 10
    assert outcome.output.rstrip().endswith("a")
    assert contents(repository / ".git") == before
    assert not any((repository / name).exists() for name in ("AGENTS.md", ".mcp.json", "link"))


@pytest.mark.parametrize("way", ["echo evil > {0}", "mkdir -p {0}/hooks", "ln -s /tmp {0}"])
def test_a_protected_name_cannot_be_created_and_leaves_no_trace(tmp_path: Path, way: str) -> None:
    names = set(PROTECTED) - set(MAY_APPEAR)
    commands = [way.format(name) for name in names]
    moves = [f"echo evil > x; mv -T x {name}; mv {name} away" for name in names]
    removals = [f"rmdir {name}; rm -rf {name}; echo evil > {name}/x" for name in names]
    run_inside(tmp_path, "\n".join([*commands, *moves, *removals, "rm -rf x away"]))
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_may_appear_is_held_where_it_is(tmp_path: Path) -> None:
    for name in MAY_APPEAR:
        (tmp_path / name).write_text("good")
        run_inside(tmp_path, f"echo evil > {name}; rm {name}; mv {name} x; ls -a")
        assert (tmp_path / name).read_text() == "good"


def test_a_protected_name_is_held_wherever_it_is_and_whatever_is_renamed(tmp_path: Path) -> None:
    for name in ("a/b/.git/config", "a/AGENTS.md", "c/.vscode/tasks.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("good")
    command = """
    for round in 1 2 3; do
      mv a x; mv x/b x/y; mv c x/; echo evil > x/y/.git/config; echo evil > x/AGENTS.md
      echo evil > x/c/.vscode/tasks.json; rm -rf x/y; mv x/c .; mv x/y x/b; mv x a
    done; rm -rf a c; mkdir new; mv a new; find . -name config -o -name AGENTS.md -type f
    """
    run_inside(tmp_path, command)
    texts = {path.name: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert texts == {"config": "good", "AGENTS.md": "good", "tasks.json": "good"}


def test_a_linked_worktree_works_and_its_repository_is_read_only(
    repository: Path, tmp_path: Path
) -> None:
    worktree = tmp_path / "worktree"
    git(repository, "worktree", "add", str(worktree))
    before = sorted((repository / ".git").rglob("*"))
    command = f"""
    git log --oneline; git status --short
    echo evil > {repository}/.git/hooks/pre-commit; echo evil > .git; rm .git
    echo evil >> {repository}/.git/config; ls -A {repository}
    """
    outcome = run_inside(worktree, command)
    assert outcome.output.count("Read-only file system") == 3
    assert outcome.output.endswith("\n.git\n")  # nothing else of the folder is seen
    assert sorted((repository / ".git").rglob("*")) == before
    assert (worktree / ".git").read_text().startswith("gitdir: ")


def test_a_pointer_of_git_that_is_not_gits_shows_nothing(tmp_path: Path) -> None:
    secret, workspace = tmp_path / "secret", tmp_path / "workspace"
    for folder in (secret, workspace):
        folder.mkdir()
    (secret / "key").write_text("secret")
    (secret / "HEAD").write_text("x")
    (secret / "objects").mkdir()
    (secret / "commondir").write_text(".")
    (secret / "gitdir").write_text("/elsewhere/.git")
    (workspace / ".git").write_text(f"gitdir: {secret}\n")
    outcome = run_inside(workspace, f"cat {secret}/key; cat .git; echo evil > .git")
    assert "No such file" in outcome.output
    assert (workspace / ".git").read_text() == f"gitdir: {secret}\n"


@pytest.mark.parametrize("target", ["elsewhere", "inside/real", "nowhere"])
def test_a_protected_name_that_is_a_link_is_put_back(tmp_path: Path, target: str) -> None:
    workspace = tmp_path / "workspace"
    (workspace / "inside/real").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    link = workspace / ".git"
    link.symlink_to(tmp_path / target if target == "elsewhere" else target)
    before = os.readlink(link)

    async def use(sandbox: Sandbox) -> tuple[str, ...]:
        await sandbox.run("rm .git; mkdir -p .git/hooks; echo evil > .git/hooks/post-checkout")
        assert os.readlink(link) == before
        await sandbox.start("rm .git; echo evil > .git")
        await asyncio.sleep(0.2)
        return sandbox.notes

    notes = inside(workspace, use)
    assert any("is a link again" in note for note in notes)
    assert os.readlink(link) == before
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_link_is_put_back_nowhere_else(tmp_path: Path) -> None:
    """Restoring it is the host's own work in a folder that the adversary may rename."""
    workspace, other = tmp_path / "workspace", tmp_path / "other"
    for folder in (workspace / "sub", other / ".git"):
        folder.mkdir(parents=True)
    (other / ".git/config").write_text("good")
    (workspace / "sub/.git").symlink_to("real")
    command = f"mv sub moved; ln -s {other} sub; rm moved/.git; echo evil > moved/.git"
    run_inside(workspace, command)
    assert contents(other) == {other / ".git/config": b"good"}
    assert [path.name for path in other.iterdir()] == [".git"]
    assert os.readlink(workspace / "moved/.git") == "real"


def test_hooks_that_a_repository_names_are_held(repository: Path) -> None:
    (repository / ".husky").mkdir()
    (repository / ".husky/pre-commit").write_text("good")
    git(repository, "config", "core.hooksPath", ".husky")
    run_inside(repository, "echo evil > .husky/pre-commit; rm -rf .husky; mv .husky x")
    assert (repository / ".husky/pre-commit").read_text() == "good"


# Repositories that are made inside


def repositories_made(folder: Path, command: str, **access: Any) -> list[str]:
    """Run a command; return what is told of repositories that it made."""
    return [note for note in closed(folder, command, **access) if "made" in note]


@pytest.mark.parametrize(
    ("command", "place"),
    [
        (f"git init -q sub; cd sub; {EVIL}", "sub"),
        (f"git init -q a/b/sub; cd a/b/sub; {EVIL}; rm -r .git/hooks", "a/b/sub"),
        ("git init -q sub; echo exit > sub/.git/hooks/post-checkout", "sub"),
        ("git init -q sub; cd sub; git config core.hooksPath x", "sub"),
        ("git init -q sub; cd sub; git config include.path ../x", "sub"),
        ("git init -q sub; cd sub; git config core.worktree ..", "sub"),
        ("git init -q sub; cd sub; git config remote.o.url 'ext::sh -c x'", "sub"),
        ("git init -q sub; cd sub; printf '[core]\\nbare=false\\\\\\n' >> .git/config", "sub"),
        ("git init -q sub; rm sub/.git/config; ln -s x sub/.git/config", "sub"),
        (
            f"git init -q x; cd x; {EVIL}; cd ..; mkdir sub; echo gitdir: ../x/.git > sub/.git",
            "sub",
        ),
        (f"git init -q x; cd x; {EVIL}; cd ..; mkdir sub; ln -s ../x/.git sub/.git", "sub"),
        (f"git init -q --bare sub; cd sub; git config core.bare false; {EVIL}", "sub"),
        (f"git init -q x; (cd x; {EVIL}; mv .git y); mv x/y/* .; git config core.worktree .", "."),
        (
            f"git init -q x; cd x; {EVIL}; mkdir w; cp .git/HEAD w; echo ../.git > w/commondir",
            "x/w",
        ),
    ],
)
def test_git_does_not_see_a_repository_whose_settings_start_programs(
    tmp_path: Path, command: str, place: str
) -> None:
    (tmp_path / "free").touch()
    notes = repositories_made(tmp_path, command)
    assert any("git does not see it" in note for note in notes)
    folder = tmp_path / place
    done = subprocess.run(["git", "-C", folder, "status"], capture_output=True, text=True)
    assert "not a git repository" in done.stderr
    assert not list(tmp_path.rglob("pwned"))


def test_a_repository_with_plain_settings_stays_and_is_named(tmp_path: Path) -> None:
    command = """
    git init -q sub; cd sub; git config user.name a; git config user.email a@b
    touch f; git add .; git commit -qm a; git branch -q x; cd ..
    git clone -q sub copy; git clone -q --bare sub bare.git; git init -q .github.io
    """
    notes = repositories_made(tmp_path, command)
    assert sorted(notes) == [
        f"{tmp_path / name} was made a repository"
        for name in (".github.io", "bare.git", "copy", "sub")
    ]
    assert git(tmp_path / "copy", "log", "--format=%s") == "a\n"
    moved = "mkdir new; mv copy bare.git new; ls -a sub"
    assert repositories_made(tmp_path, moved) == []  # they are known


def test_a_repository_is_left_alone_where_that_is_asked_for(
    tmp_path: Path, repository: Path
) -> None:
    others = tuple(name for name in PROTECTED if name != ".git")
    command = f"git init -q sub; cd sub; {EVIL}"
    assert repositories_made(repository, command, protected=others) == []
    assert "fsmonitor" in (repository / "sub/.git/config").read_text()


def test_a_folder_in_the_place_of_one_that_was_given_is_not_touched(tmp_path: Path) -> None:
    workspace, other = tmp_path / "w", tmp_path / "other"
    (workspace / "a/b").mkdir(parents=True)
    (other / "b").mkdir(parents=True)
    git(other / "b", "init")
    git(other / "b", "config", "core.fsmonitor", "x")
    command = f"mv a c && ln -s {other} a"
    repositories_made(workspace, command, writable=(workspace / "a/b",))
    assert (other / "b/.git/HEAD").exists()


# Files of others


def test_what_we_run_from_cannot_be_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would run on the host, with the next start of fulmen."""
    for name in (".venv/lib/site-packages", "src/deep", "free"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.syspath_prepend(tmp_path / "src")
    monkeypatch.syspath_prepend(tmp_path / ".venv/lib/site-packages")

    async def use(sandbox: Sandbox) -> str:
        for place in (".venv/lib/site-packages", ".venv", "src", "src/deep"):
            with pytest.raises(OSError, match="Read-only"):
                await sandbox.write_file(f"{place}/sitecustomize.py", b"evil")
        await sandbox.run("mv src x; mv .venv y; rm -rf src .venv; echo good > free/a")
        return " ".join(sandbox.notes)

    notes = inside(tmp_path, use)
    assert f"fulmen itself runs from (install it elsewhere to change it): {tmp_path}/.venv" in notes
    assert f"PYTHONPATH names: {tmp_path}/src" in notes
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert found >= {".venv/lib/site-packages", "src/deep", "free/a"}
    assert not list(tmp_path.rglob("sitecustomize.py"))


def test_a_folder_of_modules_cannot_be_moved_with_one_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a/b/src").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "a/b/src")
    moved = "mv a x; mv a/b a/x; mkdir -p a/b/src; echo evil > a/b/src/json.py; touch a/b/free"
    for shown in (None, Path("/elsewhere")):
        run_inside(tmp_path, moved, seen_as=shown)
        found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
        assert found == ["a", "a/b", "a/b/free", "a/b/src"]
    run_inside(tmp_path, moved, writable=(tmp_path / "a/b",))
    assert (tmp_path / "a/b/src").is_dir()
    assert not list(tmp_path.rglob("json.py"))
    run_inside(tmp_path, "touch a/b/new a/new", readable=(tmp_path / "a/b",))
    assert (tmp_path / "a/new").exists()
    assert not (tmp_path / "a/b/new").exists()


@pytest.mark.parametrize("place", [".", "missing"])
def test_a_workspace_that_python_looks_for_modules_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """`sitecustomize.py`, or `json.py`, would run with the next start."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / place)])
    with pytest.raises(ValueError, match=r"on Python's path of modules.*PYTHONPATH"):
        run_inside(tmp_path, "true")
    assert list(tmp_path.iterdir()) == []
    run_inside(tmp_path, "true", is_read_only=True)
    monkeypatch.setattr(sys, "path", ["", *sys.path[:-1]])  # where Python was started
    run_inside(tmp_path, "true")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="on Python's path of modules"):
        run_inside(tmp_path, "true")


def test_nothing_is_written_outside_the_workspace(tmp_path: Path) -> None:
    workspace, outside = tmp_path / "workspace", tmp_path / "outside"
    workspace.mkdir()
    outside.write_text("good")
    (workspace / "link").symlink_to(outside)
    (workspace / "up").symlink_to("..")
    places = [str(outside), "link", "up/new", "../new"]
    places += ["/etc/new", "/usr/new", "/new", "/bin/new"]
    places += ["/proc/1/root/new", "/proc/self/root/etc/new", "/root/new", "/home/new", "/dev/new"]
    places += ["/sys/new", "/opt/new", "/var/new", "/proc/1/mem", "/proc/self/uid_map"]
    command = "\n".join(f"echo evil > {place} && echo wrote {place}" for place in places)
    outcome = run_inside(workspace, command)
    written = [line for line in outcome.output.splitlines() if line.startswith("wrote")]
    # /tmp is the sandbox's own, and tmp_path lies there.
    private = (
        {str(outside), "link", "up/new", "../new"} if tmp_path.is_relative_to("/tmp") else {""}
    )
    assert {line.split()[1] for line in written} <= private
    assert outside.read_text() == "good"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["outside", "workspace"]
    assert not any(os.path.exists(place) for place in places if place.endswith("/new"))


def test_a_file_with_another_name_outside_is_read_only(tmp_path: Path) -> None:
    workspace, outside = tmp_path / "workspace", tmp_path / "outside"
    (workspace / "sub").mkdir(parents=True)
    outside.write_text("good")
    os.link(outside, workspace / "one")
    os.link(outside, workspace / "sub/two")
    (workspace / "own").write_text("own")
    os.link(workspace / "own", workspace / "own-too")

    async def use(sandbox: Sandbox) -> tuple[str, tuple[str, ...]]:
        outcome = await sandbox.run(
            "for f in one sub/two; do echo evil > $f; ln $f x; mv $f y; cp x $f; done; mv sub z;"
            "echo evil >> z/two; echo new > own"
        )
        with pytest.raises(OSError, match="one"):
            await sandbox.write_file("one", b"evil")
        return outcome.output, sandbox.notes

    output, notes = inside(workspace, use)
    assert "Read-only file system" in output
    assert outside.read_text() == "good"
    assert (workspace / "own-too").read_text() == "new\n"
    assert any("hard link" in note and f"{workspace}/one" in note for note in notes)


def test_many_files_with_names_outside_are_held_by_their_folder(tmp_path: Path) -> None:
    workspace, cache = tmp_path / "workspace", tmp_path / "cache"
    (workspace / "venv/lib").mkdir(parents=True)
    cache.mkdir()
    for number in range(1000):
        (cache / str(number)).write_text("good")
        os.link(cache / str(number), workspace / f"venv/lib/{number}")
    run_inside(workspace, "for i in venv/lib/*; do echo evil > $i; done; echo x > venv/new")
    assert {path.read_text() for path in cache.iterdir()} == {"good"}
    assert not (workspace / "venv/lib/new").exists()


def test_secrets_of_system_and_home_are_not_there(tmp_path: Path) -> None:
    command = """
    cat /etc/shadow /etc/gshadow /etc/sudoers /etc/ssh/*_key; ls -A ~ /root /home /mnt /media /srv
    find / -xdev -name '*.pem' -path '*ssh*'; cat /proc/1/environ
    tr '\\0' '\\n' < /proc/self/environ
    """
    os.environ["FULMEN_TEST_SECRET"] = "zubrowka"
    try:
        outcome = run_inside(tmp_path, command)
    finally:
        del os.environ["FULMEN_TEST_SECRET"]
    assert "zubrowka" not in outcome.output
    assert "root:x:0:0:" not in outcome.output
    assert "root:$" not in outcome.output
    assert ".ssh" not in outcome.output
    assert ".bash" not in outcome.output


@pytest.mark.skipif(not os.access("/usr/local/share", os.W_OK), reason="only root may write there")
def test_what_only_root_may_read_of_what_is_installed_by_hand_is_hidden(tmp_path: Path) -> None:
    private = Path(f"/usr/local/share/fulmen-{os.getpid()}")
    private.write_text("zubrowka")
    private.chmod(0o600)
    try:
        output = run_inside(tmp_path, f"cat {private}").output
    finally:
        private.unlink()
    assert "zubrowka" not in output


@pytest.mark.skipif(not os.access("/etc", os.W_OK), reason="only root may write there")
def test_a_private_file_may_go_while_a_sandbox_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = Path(f"/etc/fulmen-{os.getpid()}")

    def plan_while_it_goes(*given: Any, **options: Any) -> Mounts:
        private.touch(0o600)
        try:
            return plan_mounts(*given, **options)
        finally:
            private.unlink()
            monkeypatch.setattr("fulmen.sandbox.sandbox.plan_mounts", plan_mounts)

    monkeypatch.setattr("fulmen.sandbox.sandbox.plan_mounts", plan_while_it_goes)
    assert run_inside(tmp_path, "echo here").output == "here\n"


def test_the_folders_of_fulmen_itself_are_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever could write there would approve his own settings."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("config/fulmen/agent", "data/fulmen/sessions"):
        (tmp_path / name).mkdir(parents=True)
    for folder in ("config", "config/fulmen/agent", "data", "data/fulmen/sessions"):
        with pytest.raises(ValueError, match="is fulmen's own"):
            run_inside(tmp_path / folder, "true")
    with pytest.raises(ValueError, match="is fulmen's own"):
        run_inside(Path(__file__).parent, "true", is_read_only=False, writable=(tmp_path,))
    run_inside(tmp_path / "config", "true", is_read_only=True)


@pytest.mark.parametrize("linked", ["agent", "agent/agent.toml", "agent/approved"])
def test_settings_that_are_links_into_the_workspace_are_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: str
) -> None:
    """One's own are often kept with other settings of programs, in a repository."""
    dots, own = tmp_path / "dots", tmp_path / "config/fulmen" / linked
    real = dots / "deep" / own.name
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    own.parent.mkdir(parents=True)
    (dots / "deep").mkdir(parents=True)
    own.symlink_to(real)
    with pytest.raises(ValueError, match="where nothing is"):
        run_inside(dots, "true")
    real.write_text("good") if real.suffix else real.mkdir()
    way = f"echo evil > {real}; echo evil > {real}/agent.toml; rm -rf {real}; mv {real} x"
    way += f"; mv deep x; mkdir -p deep/agent; echo evil > {real}; echo fine > deep/free"
    run_inside(dots, way)
    assert real.read_text() == "good" if real.suffix else list(real.iterdir()) == []
    assert (dots / "deep/free").read_text() == "fine\n"
    if real.is_dir():
        with pytest.raises(ValueError, match="leads into it"):
            run_inside(real, "true")
    (dots / "other").symlink_to(real)
    own.unlink()
    own.symlink_to(dots / "other")
    with pytest.raises(ValueError, match=r"through the link .*/dots/other"):
        run_inside(dots, "true")


def test_sockets_of_the_host_cannot_be_reached(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    places = [f"/tmp/fulmen-{os.getpid()}", str(workspace / "s"), str(tmp_path / "t")]
    if os.access("/run", os.W_OK):
        places.append(f"/run/fulmen-{os.getpid()}")
    sockets = []
    for place in (*places, f"\0fulmen-{os.getpid()}"):
        sockets.append(socket.socket(socket.AF_UNIX))
        sockets[-1].bind(place)
    program = python(
        f"import socket\nfor place in {[*places, f'{chr(0)}fulmen-{os.getpid()}']!r}:\n"
        "    try:\n        socket.socket(socket.AF_UNIX).connect(place)\n        print('reached')\n"
        "    except OSError as error: print(error.errno)"
    )
    try:
        with listening(*sockets) as seen:
            for has_network in (False, True):
                outcome = run_inside(workspace, program, has_network=has_network)
                assert outcome.output.count("\n") == len(places) + 1
                assert "reached" not in outcome.output
        assert seen == []
    finally:
        for place in places:
            os.unlink(place)


def test_abstract_sockets_are_kept_out_by_older_kernels_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fulmen.sandbox.sandbox.can_leave_abstract_sockets", lambda: False)
    program = python(
        "import socket\na, b = socket.socketpair()\n"
        "try: socket.socket(socket.AF_UNIX)\nexcept OSError as error: print(error.errno)"
    )

    async def use(sandbox: Sandbox) -> None:
        assert (await sandbox.run(program)).output == "97\n"
        assert any("no Unix sockets" in note for note in sandbox.notes)

    inside(tmp_path, use, has_network=True)


def test_there_is_no_network_unless_it_is_allowed(tmp_path: Path) -> None:
    server, datagrams = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))
    datagrams.bind(("127.0.0.1", 0))
    datagrams.settimeout(0.1)
    program = python(
        f"""
import socket
for family, kind, address in (
    (2, 1, ("127.0.0.1", {server.getsockname()[1]})), (10, 1, ("::1", 80)),
    (2, 1, ("192.0.2.1", 80)), (2, 2, ("192.0.2.1", 53)),
    (2, 2, ("127.0.0.1", {datagrams.getsockname()[1]})),
):
    s = socket.socket(family, kind)
    s.settimeout(1)
    try:
        s.connect(address); s.send(b"x"); print("sent", address)
    except OSError as error: print(error.errno)
for name in ("localhost.example.org", "a.com"):
    try: print("resolved", socket.getaddrinfo(name, 80))
    except OSError as error: print("unknown")
"""
    )
    with listening(server) as seen:
        outcome = run_inside(tmp_path, program)
        assert seen == []
        with pytest.raises(TimeoutError):
            datagrams.recv(10)
        assert "resolved" not in outcome.output
        assert f"sent ('127.0.0.1', {server.getsockname()[1]}" not in outcome.output
        allowed = run_inside(tmp_path, program, has_network=True)
        assert f"sent ('127.0.0.1', {server.getsockname()[1]}" in allowed.output
        assert datagrams.recv(10) == b"x"
        assert len(seen) == 1
    datagrams.close()


# Powers


def test_only_what_was_given_and_what_is_private_is_mounted_for_writing(tmp_path: Path) -> None:
    """Root's user inside owns what root owns: only read-only mounts keep it from the kernel's
    settings in /proc and from the modes of device nodes."""
    output = run_inside(tmp_path, "cat /proc/self/mountinfo").output
    mounts = {}
    for line in output.splitlines():
        fields = line.split(" ")
        mounts[fields[4]] = set(fields[5].split(","))
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    private = {"/tmp", "/var/tmp", "/run", "/dev/shm", "/home/agent", "/dev/pts"}
    writable = {place for place, options in mounts.items() if "rw" in options}
    assert writable == {*devices, *private, str(tmp_path)}
    assert {place for place, options in mounts.items() if "nosuid" not in options} == set()
    with_devices = {place for place, options in mounts.items() if "nodev" not in options}
    assert with_devices == {*devices, "/dev/pts"}


def test_the_kernel_and_the_devices_of_the_host_stay_as_they_are(tmp_path: Path) -> None:
    nodes = [Path("/dev") / name for name in ("null", "zero", "full", "random", "urandom", "tty")]
    before = [(node.stat().st_mode, node.stat().st_uid) for node in nodes]
    command = """
    chmod 640 /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; touch /dev/null
    for f in kernel/core_pattern kernel/modprobe vm/overcommit_memory kernel/panic; do
      cat /proc/sys/$f > /proc/sys/$f && echo wrote $f; done
    echo h > /proc/sysrq-trigger && echo wrote; echo 0 > /proc/self/oom_score_adj && echo wrote
    for f in /proc/*; do [ -f $f ] && [ -w $f ] && echo wrote $f; done; chmod 777 /usr /etc/passwd
    head -c 8 /proc/kpageflags /proc/vmallocinfo /proc/slabinfo /proc/kallsyms 2>/dev/null | wc -c
    """
    output = run_inside(tmp_path, command).output
    assert "wrote" not in output
    assert [(node.stat().st_mode, node.stat().st_uid) for node in nodes] == before
    # Others may open a sandbox now, or may have been killed while they did.
    assert list(Path("/dev").glob(f"fulmen-sandbox-{os.getpid()}-*")) == []


def test_no_system_call_that_is_denied_gets_through(tmp_path: Path) -> None:
    program = python(
        """
import ctypes, errno, os, socket, fcntl
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    ctypes.set_errno(0)
    done = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return errno.errorcode.get(ctypes.get_errno(), "0") if done < 0 else f"done {done}"
arm = os.uname().machine == "aarch64"
NEW = {"mnt": 0x20000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
for name, flag in NEW.items():
    print("unshare", name, call(97 if arm else 272, flag))
    print("clone", name, call(220 if arm else 56, flag | 17, 0, 0, 0, 0))
print("clone3", call(435, ctypes.create_string_buffer(88), 88))
print("mount", call(40 if arm else 165, b"none", b"/tmp", b"tmpfs", 0, 0))
print("ptrace", call(117 if arm else 101, 16, 1, 0, 0))
print("process_vm_writev", call(271 if arm else 311, 1, 0, 0, 0, 0, 0))
print("bpf", call(280 if arm else 321, 0, 0, 0))
print("io_uring", call(425, 1, ctypes.create_string_buffer(120)))
print("keyctl", call(219 if arm else 250, 0, 0, 0))
print("userfaultfd", call(282 if arm else 323, 0))
print("perf", call(241 if arm else 298, 0, 0, 0, 0, 0))
print("prlimit", call(261 if arm else 302, 1, 0, 0, 0))
print("open_by_handle_at", call(265 if arm else 304, 0, 0, 0))
print("personality", call(92 if arm else 135, 0x400000))
print("setns", call(268 if arm else 308, 0, 0))
for family in (16, 17, 31, 38, 40, 44):
    for protocol in (0, 3, 15):
        try: socket.socket(family, 3, protocol); print("socket", family, protocol, "done")
        except OSError as error: print("socket", family, protocol, errno.errorcode[error.errno])
for command in (0x5412, 0x541C):
    try: fcntl.ioctl(0, command, b"x"); print("ioctl done")
    except OSError as error: print("ioctl", errno.errorcode[error.errno])
"""
    )
    output = run_inside(tmp_path, program).output
    lines = output.splitlines()
    done = [line for line in lines if "done" in line]
    assert done == ["socket 16 0 done"]  # routing netlink, of its own empty network
    refused = {"EPERM", "ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT"}
    assert {line.split()[-1] for line in lines} - {"done"} <= refused
    assert len(lines) == 8 + 13 + 18 + 2


def test_neither_setuid_programs_nor_devices_give_power(tmp_path: Path) -> None:
    command = """
    cp /usr/bin/id own; chmod 4755 own 2> errors; ./own -u; su -c id; sudo -n id; mknod dev b 8 0
    mount -t tmpfs x /mnt; chroot /; ls /dev; dmesg; hostname evil; date -s 1999-01-01
    chown 0 own; cat /dev/sda /dev/mem /dev/kmsg /proc/kcore /proc/kmsg | wc -c
    """
    output = run_inside(tmp_path, command).output
    lines = output.splitlines()
    assert lines[0] == "1000"
    assert "uid=0" not in output
    assert lines[-1] == "0"
    assert not {"sda", "mem", "kmsg", "kvm", "fuse"} & set(lines)


def test_no_file_gets_a_setuid_or_setgid_bit(tmp_path: Path) -> None:
    """Inside they are without effect; on the host the file is the caller's."""
    program = python(
        """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
make, write = os.O_CREAT | os.O_WRONLY, os.O_WRONLY
def tried(name, call):
    try: call(); print(name, "done")
    except OSError as error: print(name, errno.errorcode[error.errno])
for mode in (0o4755, 0o2755, 0o6755):
    tried("open", lambda: os.open(f"o{mode}", make, mode))
    tried("temporary", lambda: os.open(".", os.O_TMPFILE | os.O_WRONLY, mode))
    tried("chmod", lambda: os.chmod("own", mode))
    tried("fchmod", lambda: os.fchmod(os.open("own", os.O_RDONLY), mode))
    tried("mknod", lambda: os.mknod(f"n{mode}", 0o100000 | mode))
    tried("fchmodat", lambda: os.chmod("own", mode, dir_fd=os.open(".", os.O_RDONLY)))
how = (ctypes.c_uint64 * 3)(make, 0o4755, 0)
done = libc.syscall(437, -100, b"o2", how, 24)
print("openat2", errno.errorcode[ctypes.get_errno()] if done < 0 else "done")
os.chmod("own", 0o755); os.open("own", write, 0o4755); os.open("new", make, 0o700)
"""
    )
    command = f"cp /usr/bin/id own; {program}\nchmod 4755 own; mkdir -m 2777 g"
    output = run_inside(tmp_path, command).output
    lines = output.splitlines()
    assert [line for line in lines if "done" in line] == []
    assert {line.split()[-1] for line in lines[:19]} == {"EPERM", "ENOSYS"}
    modes = {path.name: path.stat().st_mode & 0o7777 for path in tmp_path.iterdir()}
    assert (modes["own"], modes["new"]) == (0o755, 0o700)
    assert not any(mode & 0o6000 for mode in modes.values())


def test_a_setuid_file_is_none_any_more_once_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "a").chmod(0o4755)
    inside(tmp_path, lambda sandbox: sandbox.write_file("a", b"b"))
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o755


def test_the_supervisor_is_out_of_reach(tmp_path: Path) -> None:
    command = """
    kill -9 1; kill -STOP 1; kill -TERM 1; kill -INT 1; kill -HUP 1; kill -CHLD 1
    ls -l /proc/1/fd; cat /proc/1/mem /proc/1/maps /proc/1/environ; ls /proc/1/root/ /proc/1/cwd/
    gdb -p 1 -batch; echo evil > /proc/1/mem; echo 1000 > /proc/1/oom_score_adj
    prlimit --pid 1 --cpu=0:0; prlimit --pid 1 --nofile=1:1; renice -n 19 -p 1
    rm -rf /run/fulmen; echo evil > /run/fulmen/fulmen/sandbox/supervisor.py
    """

    async def use(sandbox: Sandbox) -> str:
        output = (await sandbox.run(command)).output
        assert (await sandbox.run("echo well")).output == "well\n"
        assert (await sandbox.stat(".")).kind == "folder"
        return output

    output = inside(tmp_path, use)
    assert "socket:" not in output
    assert "python" not in output.replace(".cpython-", "")  # names of compiled files


def test_a_command_has_no_descriptor_of_anybody(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(writer, True)
    program = python(
        "import os\nfor fd in sorted(os.listdir('/proc/self/fd'), key=int):\n"
        "    try: print(fd, os.readlink(f'/proc/self/fd/{fd}'))\n    except OSError: pass"
    )
    try:
        output = run_inside(tmp_path, program).output
    finally:
        os.close(reader)
        os.close(writer)
    kinds = dict(line.split(" ", 1) for line in output.splitlines())
    assert set(kinds) == {"0", "1", "2", "19"}
    assert kinds["1"] == kinds["2"]


def test_processes_of_the_host_are_unseen(tmp_path: Path) -> None:
    command = f"ls /proc | grep -c '^[0-9]'; kill -9 {os.getppid()}; kill -9 {os.getpid()}; ps ax"
    output = run_inside(tmp_path, command).output
    assert int(output.split()[0]) < 6
    assert "pytest" not in output


def test_the_terminal_of_the_caller_is_unreachable(tmp_path: Path) -> None:
    output = run_inside(tmp_path, "echo evil > /dev/tty; tty; ps -o tty= $$").output
    assert "not a tty" in output
    assert output.split()[-1] == "?"


def test_the_environment_of_one_command_does_not_poison_the_next(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> str:
        await sandbox.run(
            "mkdir bin; echo 'echo evil' > bin/ls; chmod +x bin/ls; export PATH=$PWD/bin:$PATH;"
            "export BASH_ENV=$PWD/bin/ls ENV=$PWD/bin/ls PROMPT_COMMAND='echo evil';"
            "declare -fx; ls() { echo evil; }; export -f ls; alias ls='echo evil';"
            "typeset -x LD_PRELOAD=$PWD/bin/ls; readonly HOME; hash -p $PWD/bin/ls ls;"
            "enable -n cd; trap 'echo evil' DEBUG; set -o noexec"
        )
        return (await sandbox.run("ls; cd .; git --version; type -t ls")).output

    assert "evil" not in inside(tmp_path, use)


def test_scopes_are_found_out_without_harm() -> None:
    program = """
import socket, sys
from fulmen.sandbox import kernel
print(kernel.can_leave_abstract_sockets())
kernel._call("prctl", 38, 1, 0, 0, 0)  # no new privileges, which an ordinary user needs
try:
    kernel.leave_abstract_sockets()
    socket.socket(socket.AF_UNIX).connect(chr(0) + sys.argv[1])
    print("reached")
except OSError as error:
    print(error.errno)
"""
    name = f"fulmen-scope-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        words = [sys.executable, "-c", program, name]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        told, number = done.stdout.split()
        assert told == str(can_leave_abstract_sockets())
        assert number != "reached"
        assert (number == str(errno.EPERM)) >= (told == "True")
        with socket.socket(socket.AF_UNIX) as client:  # we are free
            client.connect(f"\0{name}")
