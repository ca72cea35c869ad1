"""File work: what a path is, is decided by the kernel inside, for tools as for commands."""

import asyncio
import contextlib
import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.sandbox import FileChangedError, Sandbox
from fulmen.sandbox.wire import Unpacker, pack
from tests.examples import examples
from tests.sandbox.helpers import inside, run_inside


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_whole_or_in_part(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    (tmp_path / "a").write_bytes(content)

    async def use(sandbox: Sandbox) -> None:
        whole = await sandbox.read_file("a")
        assert (whole.content, whole.size, whole.sha256) == (content, 10240, digest(content))
        part = await sandbox.read_file(str(tmp_path / "a"), offset=100, max_bytes=50)
        assert (part.content, part.size, part.sha256) == (content[100:150], 10240, None)
        with pytest.raises(FileNotFoundError):
            await sandbox.read_file("b")
        with pytest.raises(IsADirectoryError):
            await sandbox.read_file(".")
        for name in ("", "a\0b"):
            with pytest.raises((ValueError, IsADirectoryError)):
                await sandbox.read_file(name)

    inside(tmp_path, use)


def test_nothing_but_a_regular_file_is_read_or_written(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> None:
        await sandbox.run("mkfifo pipe; ln -s /dev/zero zero; ln -s self self; mknod s p")
        began = time.monotonic()
        for name in ("pipe", "zero", "/dev/tty", "/dev/full"):
            with pytest.raises(ValueError, match=r"a regular file is needed"):
                await sandbox.read_file(name)
            with pytest.raises(ValueError, match=r"a regular file is needed"):
                await sandbox.write_file(name, b"")
        with pytest.raises(OSError, match="symbolic links"):
            await sandbox.read_file("self")
        assert time.monotonic() - began < 5

    inside(tmp_path, use)


def test_a_file_is_written_whole_if_it_is_still_the_one_that_was_read(tmp_path: Path) -> None:
    target = tmp_path / "a.sh"
    target.write_bytes(b"old")
    target.chmod(0o750)

    async def use(sandbox: Sandbox) -> None:
        read = await sandbox.read_file("a.sh")
        assert await sandbox.write_file("a.sh", b"new", expected=read.sha256) == digest(b"new")
        assert (target.read_bytes(), target.stat().st_mode & 0o777) == (b"new", 0o750)
        with pytest.raises(FileChangedError, match=r"a\.sh has changed"):
            await sandbox.write_file("a.sh", b"newer", expected=read.sha256)
        with pytest.raises(FileChangedError):
            await sandbox.write_file("a.sh", b"newer", expected="")
        await sandbox.write_file("deep/er/b", b"b", expected="")
        await sandbox.write_file("link", b"c")
        os.symlink("deep/er/b", tmp_path / "to-b")
        await sandbox.write_file("to-b", b"bb")
        with pytest.raises(ValueError, match="at most 8,388,608 bytes"):
            await sandbox.write_file("a.sh", bytes(2**23 + 1))

    inside(tmp_path, use)
    assert target.read_bytes() == b"new"
    assert (tmp_path / "deep/er/b").read_bytes() == b"bb"
    assert (tmp_path / "to-b").is_symlink()
    assert target.stat().st_uid == os.getuid()
    assert not list(tmp_path.rglob("*.part"))


def test_one_of_many_writers_wins_each_round(tmp_path: Path) -> None:
    (tmp_path / "n").write_text("0")

    async def add(sandbox: Sandbox) -> int:
        losses = 0
        while True:
            read = await sandbox.read_file("n")
            text = str(int(read.content) + 1).encode()
            try:
                await sandbox.write_file("n", text, expected=read.sha256)
                return losses
            except FileChangedError:
                losses += 1

    async def use(sandbox: Sandbox) -> None:
        for _ in range(3):
            await add(sandbox)

    inside(tmp_path, use)
    assert (tmp_path / "n").read_text() == "3"


def test_tools_obey_the_roots_that_commands_obey(tmp_path: Path) -> None:
    workspace, secret = tmp_path / "workspace", tmp_path / "secret"
    workspace.mkdir()
    secret.write_text("secret")
    names = {
        "link": secret,
        "up": Path("../secret"),
        "twice": Path("link"),
        "shadow": Path("/etc/shadow"),
        "home": Path.home(),
    }
    for name, target in names.items():
        (workspace / name).symlink_to(target)

    async def use(sandbox: Sandbox) -> None:
        for name in (*list(names)[:4], "../secret", str(secret), f"/proc/1/root{secret}"):
            command = await sandbox.run(f"cat {name}")
            assert command.exit_code != 0
            with pytest.raises((OSError, ValueError)):
                await sandbox.read_file(name)
        for name in (*names, "../secret", str(secret)):
            with contextlib.suppress(OSError, ValueError):  # the sandbox's /tmp is its own
                await sandbox.write_file(name, b"written")
        with pytest.raises(OSError, match=r"passwd"):
            await sandbox.write_file("/etc/passwd", b"x")
        with pytest.raises(OSError, match=r"usr"):
            await sandbox.write_file("/usr/x", b"x")
        with pytest.raises(OSError, match=r"hooks"):
            await sandbox.write_file(".git/hooks/pre-commit", b"x")
        with pytest.raises(OSError, match=r"AGENTS"):
            await sandbox.write_file("AGENTS.md", b"x")
        # What a command may do, a tool may do: both write to the sandbox's own /tmp.
        await sandbox.write_file("/tmp/own", b"own")
        assert (await sandbox.run("cat /tmp/own")).output == "own"

    inside(workspace, use)
    assert secret.read_text() == "secret"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["secret", "workspace"]
    assert not Path("/tmp/own").exists()


def test_a_folder_is_listed_down_to_a_depth_without_what_only_stands_there(tmp_path: Path) -> None:
    for name in ("b/c/d/e", "a", "z/y"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / os.fsdecode(b"\xff")).touch()
    (tmp_path / "link").symlink_to("b")

    async def use(sandbox: Sandbox) -> None:
        rows = await sandbox.list_folder(".")
        assert [row[:2] for row in rows.rows] == [
            *[("a", "file"), ("b", "folder"), ("link", "link"), ("z", "folder")],
            ("\N{REPLACEMENT CHARACTER}", "file"),
        ]
        deep = await sandbox.list_folder("b", depth=9)
        assert [row[0] for row in deep.rows] == ["c", "c/d", "c/d/e"]
        assert deep.rows[2] == ("c/d/e", "file", 7)
        cut = await sandbox.list_folder(".", depth=9, max_entries=3)
        assert (len(cut.rows), cut.is_cut, deep.is_cut) == (3, True, False)
        with pytest.raises(NotADirectoryError):
            await sandbox.list_folder("a")
        status = await sandbox.stat("link")
        assert (status.kind, status.target) == ("link", "b")
        assert (await sandbox.stat("a")).size == 1
        await sandbox.run("mkdir many; cd many; touch $(seq 1 3000)")
        many = await sandbox.list_folder("many", max_entries=100_000)
        assert len(many.rows) == 3000

    inside(tmp_path, use)


def test_a_search_finds_what_grep_finds(tmp_path: Path) -> None:
    lines = ["alpha one", "beta", "Alpha two", "ga\tmma", "alpha\r"]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/b.py").write_text("\n".join(lines))
    (tmp_path / "a.txt").write_text("none\nalpha\n")
    (tmp_path / "binary").write_bytes(b"alpha\0alpha")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text("alpha")

    async def use(sandbox: Sandbox) -> None:
        found = await sandbox.search("alpha")
        grep = await sandbox.run("grep -rnI --exclude-dir=.git alpha . | tr -d '\\r' | sort")
        texts = sorted(f"./{path}:{number}:{line}\n" for path, number, line in found.rows)
        assert "".join(texts) == grep.output
        assert len(texts) == 3
        only = await sandbox.search("^alpha", glob="*.py", is_case_ignored=True)
        assert [row[1] for row in only.rows] == [1, 3, 5]
        assert (await sandbox.search("alpha", "a.txt")).rows == (("a.txt", 2, "alpha"),)
        assert (await sandbox.search("alpha", glob="sub/*", max_matches=1)).is_cut
        with pytest.raises(ValueError, match=r"no regular expression"):
            await sandbox.search("(")
        with pytest.raises(FileNotFoundError):
            await sandbox.search("x", "nowhere")

    inside(tmp_path, use)


def test_file_work_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a" * 64 + "!")

    async def use(sandbox: Sandbox) -> None:
        task = asyncio.create_task(sandbox.search("(a+)+$"))
        await asyncio.sleep(0.3)
        assert (
            await sandbox.run("pkill -9 -f '[s]upervisor import'; echo well")
        ).output == "well\n"
        with pytest.raises(TimeoutError, match=r"too long"):
            await task

    inside(tmp_path, use)


@given(st.lists(st.tuples(st.binary(max_size=50), st.binary(max_size=50))), st.integers(1, 40))
@settings(max_examples=examples(50))
def test_messages_come_out_as_they_went_in(messages: list[tuple[bytes, bytes]], size: int) -> None:
    stream = b"".join(pack({"a": text.hex()}, body) for text, body in messages)
    unpacker = Unpacker()
    pieces = [stream[begin : begin + size] for begin in range(0, len(stream), size)]
    found = [message for piece in pieces for message in unpacker.feed(piece)]
    assert found == [(b'{"a": "%s"}' % text.hex().encode(), body) for text, body in messages]


@pytest.mark.parametrize("lengths", [(2**16 + 1, 0), (0, 2**23 + 1), (2**32 - 1, 2**32 - 1)])
def test_a_length_above_the_limits_is_refused_at_once(lengths: tuple[int, int]) -> None:
    head = b"".join(length.to_bytes(4, "big") for length in lengths)
    with pytest.raises(ValueError, match="longer than any may be"):
        Unpacker().feed(head)


def test_a_read_only_sandbox_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")

    async def use(sandbox: Sandbox) -> None:
        assert (await sandbox.run("echo b > a; echo c > d")).exit_code == 1
        with pytest.raises(OSError, match="a"):
            await sandbox.write_file("a", b"b")
        assert (await sandbox.run("echo b > /tmp/b; cat a /tmp/b")).output == "ab\n"

    inside(tmp_path, use, is_read_only=True)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a"]
    assert (tmp_path / "a").read_text() == "a"


def test_a_copy_is_seen_at_the_path_of_the_original(tmp_path: Path) -> None:
    outcome = run_inside(tmp_path, "pwd; touch made", seen_as=Path("/somewhere/else"))
    assert outcome.output == "/somewhere/else\n"
    assert (tmp_path / "made").exists()
