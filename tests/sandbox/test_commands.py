"""Commands: what passes from one to the next, what comes back, and how each limit ends one."""

import asyncio
import contextlib
import random
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.sandbox import Access, Limits, Outcome, Sandbox, SandboxError
from fulmen.sandbox.output import Kept, Output
from fulmen.sandbox.shell import is_poison, left_state
from tests.examples import examples
from tests.sandbox.helpers import inside, num_processes, python, run_inside


def test_a_command_has_output_in_order_and_an_exit_code(tmp_path: Path) -> None:
    outcome = run_inside(tmp_path, "echo one; echo two >&2; echo three; exit 7")
    assert outcome.output == "one\ntwo\nthree\n"
    assert (outcome.exit_code, outcome.ended_by) == (7, "exit")
    assert 0 <= outcome.seconds < 60


def test_folder_and_variables_pass_on_and_nothing_else_does(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> list[str]:
        first = await sandbox.run(
            "mkdir sub; cd sub; export A='one\ntwo' B=3; export PATH=/evil BASH_ENV=/evil "
            "LD_PRELOAD=/evil GIT_DIR=/evil; C=4; f() { :; }; alias ls=rm; set -u; exit 3"
        )
        assert first.exit_code == 3
        show = 'pwd; echo "$A $B ${C-none}"; type f; alias; echo $PATH $BASH_ENV $LD_PRELOAD'
        texts = [(await sandbox.run(show)).output]
        await sandbox.run("unset B; cd /; exec true")  # tells nothing
        texts.append((await sandbox.run('echo "$B"; pwd')).output)
        await sandbox.run("rmdir $PWD; trap - EXIT")
        texts.append((await sandbox.run("pwd")).output)
        return texts

    first, second, third = inside(tmp_path, use)
    assert first.startswith(f"{tmp_path}/sub\none\ntwo 3 none\n")
    assert "evil" not in first
    assert "f: not found" in first
    assert second == f"3\n{tmp_path}/sub\n"
    assert third == f"{tmp_path}\n"  # a folder that is gone


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "ENV", "PROMPT_COMMAND", "PS4"),
        *("GIT_SSH_COMMAND", "GIT_CONFIG_COUNT", "GIT_DIR", "PAGER", "MANPAGER", "LESSOPEN", "IFS"),
        *("PYTHONPATH", "PYTHONSTARTUP", "PYTHONINSPECT", "NODE_OPTIONS", "PERL5OPT", "RUBYOPT"),
        *("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "EDITOR", "GIT_EDITOR", "VISUAL", "BROWSER"),
        *("CC", "CFLAGS", "MAKEFLAGS", "RUSTC_WRAPPER", "CARGO_BUILD_RUSTC", "HOME", "SHELLOPTS"),
        *("XDG_CONFIG_HOME", "OPENSSL_CONF", "SSH_ASKPASS", "http_proxy", "HTTPS_PROXY", "CDPATH"),
        *("RIPGREP_CONFIG_PATH", "npm_config_script_shell", "PIP_INDEX_URL", "GCONV_PATH"),
        *("MAVEN_OPTS", "GREP_OPTIONS", "CLASSPATH", "GLOBIGNORE", "TMPDIR", "GOFLAGS"),
    ],
)
def test_a_variable_that_changes_what_programs_do_never_passes_on(name: str) -> None:
    assert is_poison(name)


@pytest.mark.parametrize("name", ["A", "DEBUG", "DJANGO_SETTINGS_MODULE", "DATABASE_URL", "SEED"])
def test_an_ordinary_variable_passes_on(name: str) -> None:
    assert not is_poison(name)


@given(st.binary(max_size=300))
@settings(max_examples=examples(100))
def test_any_bytes_that_a_shell_tells_are_a_state_or_none(text: bytes) -> None:
    state = left_state(text)
    if state:
        folder, exported = state
        assert folder.startswith("/")
        assert not any(is_poison(name) or "\0" in name for name in exported)


@given(st.lists(st.binary(max_size=400), max_size=30), st.integers(2, 500))
@settings(max_examples=examples(100))
def test_of_any_output_first_and_last_bytes_are_kept(pieces: list[bytes], limit: int) -> None:
    output = Output(limit)
    head = b"".join(output.add(piece) for piece in pieces)
    tail, num_dropped = output.tail()
    whole = b"".join(pieces)
    assert len(head) + num_dropped + len(tail) == len(whole) == output.total
    assert whole.startswith(head)
    assert whole.endswith(tail)
    assert len(head) + len(tail) == min(len(whole), limit)


@given(st.lists(st.binary(max_size=400), max_size=30), st.integers(1, 500), st.integers(0, 9999))
@settings(max_examples=examples(100))
def test_kept_bytes_are_read_from_any_place(pieces: list[bytes], limit: int, cursor: int) -> None:
    kept = Kept(limit)
    for piece in pieces:
        kept.add(piece)
    whole = b"".join(pieces)
    begin, found = kept.read(cursor, limit)
    assert found == whole[begin:]
    assert begin == min(max(cursor, len(whole) - limit, 0), len(whole))


def test_output_beyond_the_limit_is_cut_in_the_middle(tmp_path: Path) -> None:
    limits = Limits(output_bytes=1000)
    outcome = run_inside(tmp_path, "seq 1 100000", limits=limits)
    assert outcome.output.startswith("1\n2\n3\n")
    assert outcome.output.endswith("99999\n100000\n")
    assert outcome.num_dropped_bytes == 588_895 - 1000
    assert f"\n[... {outcome.num_dropped_bytes:,} bytes left out ...]\n" in outcome.output


def test_output_comes_while_the_command_runs(tmp_path: Path) -> None:
    seen: list[tuple[float, str]] = []

    async def use(sandbox: Sandbox) -> Outcome:
        return await sandbox.run(
            "printf 'a\\xc3'; sleep 0.5; printf '\\xa4b'",
            on_output=lambda text: seen.append((time.monotonic(), text)),
        )

    outcome = inside(tmp_path, use)
    assert [text for _, text in seen] == ["a", "äb"]
    assert seen[1][0] - seen[0][0] > 0.3
    assert outcome.output == "aäb"


def test_an_error_of_the_one_who_listens_is_his(tmp_path: Path) -> None:
    def listen(text: str) -> None:
        raise KeyError(text)

    async def use(sandbox: Sandbox) -> str:
        with pytest.raises(KeyError, match="x"):
            await sandbox.run("echo x; sleep 100", on_output=listen)
        return (await sandbox.run("pgrep sleep | wc -l")).output

    assert inside(tmp_path, use) == "0\n"


def test_endless_output_ends_the_command(tmp_path: Path) -> None:
    limits = Limits(total_output_bytes=10_000_000)
    outcome = run_inside(tmp_path, "yes", limits=limits)
    assert (outcome.ended_by, outcome.exit_code) == ("output", None)
    assert outcome.num_dropped_bytes < 20_000_000
    assert len(outcome.output) < 70_000


def test_the_clock_ends_a_command_and_its_children(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> tuple[Outcome, str]:
        outcome = await sandbox.run("(setsid sleep 98); sleep 99 & wait", seconds=0.3)
        return outcome, (await sandbox.run("pgrep -x sleep | wc -l")).output

    outcome, left = inside(tmp_path, use)
    assert (outcome.ended_by, outcome.exit_code) == ("timeout", None)
    assert outcome.seconds < 5
    assert left == "0\n"


def test_cancelling_kills_the_command(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> str:
        task = asyncio.create_task(sandbox.run("echo begun; sleep 97"))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.1)
        return (await sandbox.run("pgrep -x sleep | wc -l")).output

    assert inside(tmp_path, use) == "0\n"


def test_what_is_left_running_neither_delays_a_command_nor_dies_of_its_end(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> tuple[Outcome, str]:
        first = await sandbox.run("(while sleep 0.05; do echo tick; done) & echo left")
        await asyncio.sleep(0.5)
        return first, (await sandbox.run("pgrep -x bash | wc -l")).output

    first, left = inside(tmp_path, use)
    assert first.output.replace("tick\n", "") == "left\n"
    assert first.seconds < 2
    assert left in ("2\n", "3\n")  # it, the shell that asks, and one that becomes `sleep`


def test_commands_run_side_by_side(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> tuple[list[Outcome], float]:
        began = time.monotonic()
        commands = [sandbox.run(f"sleep 0.5; echo {number}") for number in range(8)]
        return list(await asyncio.gather(*commands)), time.monotonic() - began

    outcomes, seconds = inside(tmp_path, use)
    assert [outcome.output for outcome in outcomes] == [f"{number}\n" for number in range(8)]
    assert seconds < 3


def test_a_signal_is_told_from_an_exit_code(tmp_path: Path) -> None:
    outcome = run_inside(tmp_path, "kill -9 $$")
    assert (outcome.ended_by, outcome.exit_code) == ("signal", None)


@pytest.mark.parametrize("command", ["x" * 100_001, "a\0b"])
def test_a_command_that_no_shell_takes_is_refused(tmp_path: Path, command: str) -> None:
    async def use(sandbox: Sandbox) -> None:
        with pytest.raises(ValueError, match="a command"):
            await sandbox.run(command)

    inside(tmp_path, use)


def test_jobs_run_in_the_background_and_are_read_from_any_place(tmp_path: Path) -> None:
    limits = Limits(job_bytes=1000, output_bytes=500)

    async def use(sandbox: Sandbox) -> None:
        job = await sandbox.start("echo begin; sleep 0.4; seq 1 1000; exit 5")
        first = await sandbox.read_job(job)
        while not first.output:
            first = await sandbox.read_job(job)
        assert (first.output, first.exit_code, first.ended_by) == ("begin\n", None, "")
        (status,) = await sandbox.jobs()
        assert (status.job, status.exit_code, status.command[:10]) == (job, None, "echo begin")
        await asyncio.sleep(0.8)
        second = await sandbox.read_job(job, cursor=first.cursor)
        assert (second.exit_code, second.ended_by) == (5, "exit")
        assert second.begin == 6 + 3893 - 1000  # the first ones are lost
        third = await sandbox.read_job(job, cursor=second.cursor)
        assert (second.output + third.output).endswith("\n999\n1000\n")
        assert len(second.output) == len(third.output) == 500

        endless = await sandbox.start("sleep 96 & sleep 96")
        await sandbox.kill_job(endless)
        await asyncio.sleep(0.1)
        assert (await sandbox.read_job(endless)).ended_by == "cancelled"
        assert (await sandbox.run("pgrep -x sleep | wc -l")).output == "0\n"
        with pytest.raises(ValueError, match="there is no job 99"):
            await sandbox.read_job(99)

    inside(tmp_path, use, limits=limits)


def test_no_more_jobs_run_than_fit(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> None:
        for _ in range(64):
            await sandbox.start("sleep 95")
        with pytest.raises(ValueError, match="64 jobs run already"):
            await sandbox.start("sleep 95")
        await sandbox.kill_job(1)
        await asyncio.sleep(0.1)
        assert await sandbox.start("true") == 65

    inside(tmp_path, use)


def test_hundreds_of_commands_leave_nothing_behind(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> tuple[int, int, int]:
        sizes = []
        for _ in range(2):
            for number in range(100):
                outcome = await sandbox.run(f"X={number} :; (:) &")
                assert outcome.exit_code == 0
            status = Path(f"/proc/{sandbox_pid(sandbox)}/status").read_text()
            sizes.append(int(status.partition("VmRSS:")[2].split()[0]))
        descriptors = 0
        with contextlib.suppress(PermissionError):  # only root sees them
            descriptors = len(list(Path(f"/proc/{sandbox_pid(sandbox)}/fd").iterdir()))
        return sizes[0], sizes[1], descriptors

    first, second, descriptors = inside(tmp_path, use)
    assert second < first + 512  # kilobytes
    assert descriptors < 80


def sandbox_pid(sandbox: Sandbox) -> int:
    parts = sandbox._parts
    assert parts is not None
    assert parts.namespaces is not None
    assert parts.namespaces.first_pid is not None
    return parts.namespaces.first_pid


def test_random_commands_and_ends_keep_a_sandbox_usable(tmp_path: Path) -> None:
    choice = random.Random(7)
    kinds = ["kill -9 -1", "exit 3", "kill -9 $$", "exec 19>&- 1>&- 2>&-; sleep 0.02", "cd /proc/1"]

    async def use(sandbox: Sandbox) -> None:
        for _ in range(25):
            commands = [sandbox.run(choice.choice(kinds)) for _ in range(choice.randint(1, 4))]
            await asyncio.gather(*commands)
        assert (await sandbox.run("echo well")).output == "well\n"

    inside(tmp_path, use)


def test_nothing_runs_before_the_sandbox_is_open_or_after_it_is_closed(tmp_path: Path) -> None:
    async def use(sandbox: Sandbox) -> Sandbox:
        job = await sandbox.start("exec -a left-in-the-sandbox sleep 94")
        assert job == 1
        return sandbox

    sandbox = inside(tmp_path, use)
    with pytest.raises(SandboxError, match="the sandbox is closed"):
        asyncio.run(sandbox.run("true"))
    assert num_processes("left-in-the-sandbox") == 0


def test_memory_and_processes_are_limited_with_or_without_a_cgroup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(memory_bytes=2**28, num_processes=32)
    hog = python("x = []\nwhile True: x.append(bytearray(b'x') * 2**20)")
    shared = python(
        "import mmap, os, time\n"
        "for _ in range(4): os.fork()\n"
        "m = mmap.mmap(-1, 2**26)\n"
        "for i in range(0, 2**26, 4096): m[i] = 1\n"
        "time.sleep(60)"
    )
    bomb = "f() { f | f & }; f; sleep 60"
    files = "head -c 1G /dev/zero > /tmp/a; head -c 1G /dev/zero > ~/a; du -cm /tmp/a ~/a | tail -1"

    async def use(sandbox: Sandbox) -> None:
        assert (await sandbox.run(hog)).exit_code != 0
        outcome = await sandbox.run(bomb)
        assert outcome.ended_by == "processes"
        assert outcome.seconds < 20
        assert (await sandbox.run("ps ax | wc -l")).output.strip() in ("4", "5")
        assert (await sandbox.run(files)).output.split()[-2:] == ["128", "total"]
        assert (await sandbox.run("echo well")).output == "well\n"
        # Last: if the kernel ends the shell first, its children run on into the next command.
        assert (await sandbox.run(shared)).ended_by == "memory"

    inside(tmp_path, use, limits=limits)
    monkeypatch.setattr("fulmen.sandbox.sandbox.make_cgroup", lambda *_: None)
    inside(tmp_path, use, limits=limits)


def test_a_file_has_a_largest_size(tmp_path: Path) -> None:
    limits = Limits(file_bytes=2**20)
    outcome = run_inside(tmp_path, "head -c 5M /dev/zero > big; stat -c %s big", limits=limits)
    assert outcome.output.endswith("1048576\n")


def test_variables_that_are_given_hold_in_every_command(tmp_path: Path) -> None:
    given = {"RUST_BACKTRACE": "1", "NODE_ENV": "test", "PYTHONPATH": "src", "A": "b\nc $x '"}

    async def use(sandbox: Sandbox) -> list[str]:
        show = 'echo "$RUST_BACKTRACE $NODE_ENV $PYTHONPATH $A"'
        job = await sandbox.start(show)
        texts = [(await sandbox.run(f"{show}; unset A NODE_ENV; export PYTHONPATH=evil")).output]
        texts += [(await sandbox.run(show)).output, (await sandbox.read_job(job)).output]
        return texts

    assert set(inside(tmp_path, use, environment=given)) == {"1 test src b\nc $x '\n"}


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "BASH_ENV", "LD_PRELOAD", "GIT_PAGER", "PAGER", "GIT_CONFIG_COUNT", "IFS", "_"),
        *("GIT_SSH_COMMAND", "GIT_EXTERNAL_DIFF", "HOME", "PS4", "a-b", "", "1"),
    ],
)
def test_a_variable_that_leads_plain_commands_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be set|no variable"):
        Access(folder=Path("/a"), environment={name: "x"})
    assert Access(folder=Path("/a"), environment={"GIT_AUTHOR_NAME": "x"}).environment


def test_limits_hold_while_the_host_is_at_something_else(tmp_path: Path) -> None:
    """A host that takes nothing, while it asks a person for example, stops no clock inside."""
    (tmp_path / "large").write_bytes(b"x" * (8 * 2**20))
    bomb = "sleep 0.3; for i in $(seq 30); do sleep 31.5 & done; sleep 0.7; echo > lived; wait"

    async def use(sandbox: Sandbox) -> None:
        job = await sandbox.start(bomb)
        reading = asyncio.create_task(sandbox.read_file("large"))
        await asyncio.sleep(0.02)
        time.sleep(1.5)
        assert not (tmp_path / "lived").exists()
        assert len((await reading).content) == 8 * 2**20
        assert (await sandbox.read_job(job)).ended_by == "processes"

    inside(tmp_path, use, limits=Limits(num_processes=10))


def test_many_large_answers_come_whole_to_a_host_that_is_slow(tmp_path: Path) -> None:
    contents = [bytes([65 + number]) * (5 * 2**20) for number in range(6)]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)

    async def use(sandbox: Sandbox) -> None:
        reading = [asyncio.create_task(sandbox.read_file(str(one))) for one in range(6)]
        await asyncio.sleep(0.02)
        time.sleep(0.5)
        assert [(await one).content for one in reading] == contents
        assert (await sandbox.run("echo well")).output == "well\n"

    inside(tmp_path, use)
