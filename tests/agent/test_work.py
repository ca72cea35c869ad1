"""A run that is gone on with: whatever ended it, and wherever it is gone back to, nothing is lost.

Files, transcript, prompt and the model's next token are those of the first time.
"""

import asyncio
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.agent import (
    Archive,
    Budget,
    ChangedSince,
    Means,
    Permissions,
    Rules,
    Verdict,
    Work,
)
from fulmen.agent.compaction import REQUEST
from fulmen.chat import ChatRequest, Message, Prompt, complete, read_messages
from fulmen.llm import LLM, LocalModel
from fulmen.sampling import SamplingParams
from fulmen.sessions import SessionStore
from tests.agent.working import (
    TASK,
    Local,
    Noting,
    bash,
    begun,
    by_place,
    content,
    m2_calls,
    says,
    scripted,
    work_of,
)
from tests.examples import examples
from tests.sandbox.helpers import skip_without_sandbox
from tests.tiny import write_checkpoint


@pytest.fixture(autouse=True, scope="module")
def _sandbox() -> None:
    skip_without_sandbox()


COMMANDS = (
    ("echo one >> log; mkdir -p a/b; echo 1 > a/b/one",),
    ("echo two >> log; rm -r a; ln -s log link; chmod 600 log",),
    ("echo three >> log", "echo again >> log; echo x > .hidden; printf '\\0' > bin"),
    ("cat log",),
    ("echo five >> log; rm link; mkdir empty; chmod 755 log",),
)
GREEDY = SamplingParams(temperature=0.0, max_tokens=1)


def script_of(kind: str, tool: str = "bash") -> list[str]:
    """Return what a model says in turn."""
    return [*(bash(kind, *commands, tool=tool) for commands in COMMANDS), says(kind, "Done.")]


def run(work: Any, seconds: float = 60) -> Any:
    """Run asynchronous work to its end."""
    return asyncio.run(asyncio.wait_for(work, seconds))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "kept").write_text("as it was\n")
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "runs", SessionStore(tmp_path / "sessions"))


async def said(work: Work, words: str | None = None) -> str:
    """Open a run, let it work, and close it."""
    async with work:
        return await work.say(words)


# ---- interrupted -------------------------------------------------------------------------------


def test_an_interrupt_right_after_new_words_is_not_lost(folder: Path, tmp_path: Path) -> None:
    class Slow(Archive):
        """An archive of a folder that takes its time."""

        work: Work
        loop: asyncio.AbstractEventLoop

        def found(self, run: Any) -> None:
            self.loop.call_soon_threadsafe(self.work.interrupt)
            time.sleep(0.2)
            super().found(run)

    archive = Slow(tmp_path / "runs")
    begun(archive, folder, name="run")
    script = [says("m2", "A."), bash("m2", "touch made"), says("m2", "B.")]

    async def work() -> None:
        archive.loop = asyncio.get_running_loop()
        archive.work = work_of(archive, "run", scripted(script))
        async with archive.work as work:
            assert await work.say("one") == "done"
            assert await work.say("two") == "interrupted"
            assert not (folder / "made").exists()
            assert await work.say() == "done"  # it goes on, and is interrupted no more
            assert (folder / "made").exists()
            assert [one.content for one in work.trajectory.steps[1].said] == ["two"]

    run(work())


# ---- time: every step comes back ----------------------------------------------------------------


class World:
    """A run with all that was ever so in it: the truth that going back is compared with."""

    def __init__(self, root: Path, kind: str) -> None:
        self.kind, self.name, self.folder = kind, "run", root / "folder"
        self.checkpoint = write_checkpoint(root / kind, kind, max_position_embeddings=16384)
        self.folder.mkdir()
        (self.folder / "kept").write_text("as it was\n")
        self.archive = Archive(root / "runs", SessionStore(root / "sessions"))
        begun(self.archive, self.folder, name="run", tools="minimal", has_session=True)
        self.files: dict[int, Any] = {}
        """Content of the folder after so many steps"""
        self.requests: dict[int, ChatRequest] = {}
        """Request for the answer after so many steps"""
        self.tokens: dict[tuple[int, ...], int] = {}
        """Likeliest id after a prompt, of an engine that knows nothing yet"""

    def event(self, event: Any) -> None:
        """See nothing."""

    def calling(self, call: Any) -> None:
        """See nothing."""

    def record(self, record: Mapping[str, Any]) -> None:
        """Look at the folder between two steps."""
        if record["type"] == "answer":
            self.files[self.num_steps() - 1] = content(self.folder)

    def num_steps(self) -> int:
        """Return how many steps there are."""
        return len(self.archive.runs.open(self.name).trajectory.steps)

    def token(self, ids: tuple[int, ...]) -> int:
        """Return the likeliest id after a prompt."""
        if ids not in self.tokens:
            fresh = LLM.load(str(self.checkpoint))
            completion = fresh.chat(ChatRequest(prompt=Prompt(ids), params=GREEDY))
            self.tokens[ids] = completion.tokens[0].token_id
        return self.tokens[ids]

    async def go_on(self, local: Local, words: str | None, most: int) -> list[ChatRequest]:
        """Let the agent work until it has so many steps; return what the model was asked."""
        noting = local.forced([by_place(script_of(self.kind, "run"))] * 9)
        before = self.num_steps()
        work = work_of(
            self.archive,
            self.name,
            noting,
            open_session=local.open_session,
            budget=Budget(turns=most),
            watcher=self,
        )
        assert await said(work, words) in ("turns", "done")
        total = self.num_steps()
        self.files[total] = content(self.folder)
        for number in [at for at in self.requests if at >= before]:
            del self.requests[number]  # they were of what was gone back behind
        self.requests |= dict(enumerate(noting.requests, before))
        return noting.requests

    def check(self, number: int) -> None:
        """Compare everything after a step with what was so then."""
        assert content(self.folder) == self.files[number]
        trajectory = self.archive.runs.open(self.name).trajectory
        assert len(trajectory.steps) == number
        if number in self.requests:
            assert trajectory.messages == read_messages(self.requests[number].messages)


async def walk(world: World, draw: random.Random, num_rewinds: int) -> None:
    """Go back to random steps, by rewinding or in a fork, and on from there."""
    archive = world.archive
    total = len(COMMANDS) + 1
    async with LocalModel(LLM.load(str(world.checkpoint))) as model:
        assert archive.sessions is not None
        local = Local(model.llm, archive.sessions, model)
        if not world.num_steps():
            await world.go_on(local, TASK, total)
        for _ in range(num_rewinds):
            number = draw.randint(0, world.num_steps())
            if draw.random() < 0.2:
                place = Path(mkdtemp(dir=archive.runs.root.parent)) / "fork"
                made = archive.fork(world.name, number, place)
                archive.remove(world.name)
                world.name, world.folder = made.name, place
            else:
                archive.rewind(world.name, number)
            world.check(number)
            if number == total:
                continue
            known = world.requests.get(number)
            asked = await world.go_on(local, None, draw.randint(number + 1, total))
            assert asked[0].prompt is not None
            assert known is None or asked[0].prompt == known.prompt
            ids = tuple(asked[0].prompt.ids)
            token = await complete(model, ChatRequest(prompt=asked[0].prompt, params=GREEDY))
            assert token.tokens[0].token_id == world.token(ids)
            step = archive.runs.open(world.name).trajectory.steps[number]
            assert step.answer.sampled is not None
            assert step.answer.sampled.prompt_ids == ids
            if number:  # a fork, or an earlier step, is found in the cache
                assert step.answer.num_cached_tokens >= len(ids) // 2


@pytest.fixture(scope="module", params=["m1", "m2"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"), request.param)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=examples(10), deadline=None)
def test_gone_back_to_any_step_all_is_as_it_was(world: World, seed: int) -> None:
    run(walk(world, random.Random(seed), 1), 120)


@pytest.mark.slow
def test_gone_back_a_thousand_times_all_is_as_it_was(world: World) -> None:
    run(walk(world, random.Random(17), 1000), 3600)


def test_a_summary_is_gone_back_behind_and_the_prompt_is_that_of_before(
    tmp_path: Path, folder: Path, archive: Archive
) -> None:
    checkpoint = write_checkpoint(tmp_path / "m2", "m2", max_position_embeddings=16384)

    def line(request: ChatRequest) -> str:
        messages = read_messages(request.messages)
        if messages[-1] == Message("user", REQUEST):
            return says("m2", "Nine files were written.")
        seen = [re.match(r"made (\d+)", message.content) for message in messages]
        done = max((int(one[1]) for one in seen if one), default=0) + 1
        command = f"echo made {done} > f{done}; cat f{done}; echo {'x' * 250}"
        return says("m2", "Done.") if done > 12 else bash("m2", command, tool="run")

    async def go() -> None:
        llm = LLM.load(str(checkpoint))
        async with LocalModel(llm) as model:
            assert archive.sessions is not None
            local = Local(llm, archive.sessions, model)
            begun(archive, folder, name="run", tools="minimal", has_session=True)

            async def go_on(words: str | None, turns: int) -> list[Prompt]:
                noting = local.forced([line] * 40)
                work = work_of(
                    archive,
                    "run",
                    noting,
                    open_session=local.open_session,
                    context=8000,
                    budget=Budget(turns=turns),
                )
                assert await said(work, words) == "turns"
                return [
                    one.prompt
                    for one in noting.requests
                    if one.prompt and read_messages(one.messages)[-1] != Message("user", REQUEST)
                ]

            asked = await go_on(TASK, 11)
            made = archive.runs.open("run")
            (compaction,) = made.trajectory.compactions
            at = compaction.num_seen
            assert 5 < at < 10
            assert archive.session_name(made) == "run.2"
            assert len(asked[at].ids) < len(asked[at - 1].ids)
            for number in (10, at, at - 1):
                archive.rewind("run", number)
                count = len(archive.runs.open("run").trajectory.compactions)
                assert count == (number >= at)
                again = await go_on(None, 11)
                assert again[0].ids == asked[number].ids, number
                assert sorted(path.name for path in folder.iterdir()) == sorted(
                    ["kept", *(f"f{one}" for one in range(1, 12))]
                )

    run(go(), 200)


# ---- crashes --------------------------------------------------------------------------------


def test_calls_that_were_under_way_are_made_again_from_the_files_before(
    folder: Path, archive: Archive
) -> None:
    begun(archive, folder, name="run")
    script = script_of("m2")

    async def crash() -> None:
        work = work_of(archive, "run", scripted([by_place(script)] * 9), budget=Budget(turns=2))
        await said(work, TASK)
        noting = Noting(scripted([bash("m2", "echo half >> log; sleep 30; echo whole >> log")]))
        async with work_of(archive, "run", noting) as work:
            task = asyncio.ensure_future(work.say())
            while b"half" not in (folder / "log").read_bytes():
                await asyncio.sleep(0.01)
            log = (archive.runs.root / "run/log.jsonl").read_bytes()
            work.interrupt()
            await task
        # What a crash leaves: the answer is in the log, and nothing after it.
        (archive.runs.root / "run/log.jsonl").write_bytes(log + b'{"type": "resu')

    run(crash())
    assert (folder / "log").read_text() == "one\ntwo\nhalf\n"
    (folder / "mine").write_text("a person's")

    async def resume() -> Work:
        work = work_of(archive, "run", scripted([says("m2", "So be it.")]))
        async with work:
            assert (folder / "log").read_text() == "one\ntwo\n"
            interrupting = asyncio.get_running_loop().call_later(0.5, work.interrupt)
            assert await work.say() == "interrupted"
            interrupting.cancel()
        return work

    work = run(resume())
    assert "kept aside as 1" in work.notes[0]
    aside = folder.with_name("aside")
    archive.export_aside("run", aside, 1)
    assert (aside / "log").read_text() == "one\ntwo\nhalf\n"
    assert (aside / "mine").read_text() == "a person's"
    assert (folder / "log").read_text() == "one\ntwo\nhalf\n"
    work = work_of(archive, "run", scripted([says("m2", "So be it.")]))
    assert run(said(work, "Go on.")) == "done"


def test_a_session_that_is_ahead_of_the_log_is_taken_back(
    tmp_path: Path, folder: Path, archive: Archive
) -> None:
    checkpoint = write_checkpoint(tmp_path / "m1", "m1", max_position_embeddings=16384)
    script = script_of("m1")

    async def go(turns: int, words: str | None) -> Noting:
        llm = LLM.load(str(checkpoint))
        async with LocalModel(llm) as model:
            assert archive.sessions is not None
            local = Local(llm, archive.sessions, model)
            noting = local.forced([by_place(script)] * 9)
            options = {"open_session": local.open_session, "budget": Budget(turns=turns)}
            await said(work_of(archive, "run", noting, **options), words)
            return noting

    begun(archive, folder, name="run", has_session=True)
    first = run(go(4, TASK))
    log = archive.runs.root / "run/log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    at = [place for place, line in enumerate(lines) if b'"type": "answer"' in line]
    log.write_bytes(b"".join(lines[: at[-1]]))  # the session was saved, the record was not
    again = run(go(5, None))
    assert again.requests[0].prompt == first.requests[3].prompt
    # The session is lost: the log's own ids make the same prompt.
    archive.rewind("run", 3)
    assert archive.sessions is not None
    archive.sessions.remove("run")
    once_more = run(go(4, None))
    assert once_more.requests[0].prompt is not None
    assert first.requests[3].prompt is not None
    assert once_more.requests[0].prompt.ids == first.requests[3].prompt.ids


async def gone_on(root: Path, checkpoint: Path | None) -> str:
    """Go on with a run to its end; with a checkpoint, an engine says the script."""
    archive = Archive(root / "runs", SessionStore(root / "sessions"))
    lines = [by_place(script_of("m2", "run"))] * 9
    trajectory = archive.runs.open("run").trajectory
    if trajectory.end == "done":  # it was killed right at the end
        return "done"
    words = None if trajectory.steps or trajectory.said else TASK
    if checkpoint is None:
        return await said(work_of(archive, "run", scripted(lines)), words)
    async with LocalModel(LLM.load(str(checkpoint))) as model:
        assert archive.sessions is not None
        local = Local(model.llm, archive.sessions, model)
        work = work_of(archive, "run", local.forced(lines), open_session=local.open_session)
        return await said(work, words)


def until_done(root: Path, start: Callable[[], int], draw: random.Random) -> int:
    """Start a process that goes on with a run, and kill it at a random moment of its work, until
    the run is done; return how often that was."""
    log = root / "runs/run/log.jsonl"
    for kills in range(200):
        size, end = log.stat().st_size, 0.0
        child = start()
        while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
            # The clock begins when the work does: the time of imports is not what is tested.
            if log.stat().st_size == size:
                end = time.monotonic() + draw.uniform(0, 0.5)
            elif time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                found = os.waitpid(child, 0)
                break
            time.sleep(0.001)
        if found[1] == 0:
            return kills
        error = root / "error"
        assert os.WIFSIGNALED(found[1]), error.read_text() if error.exists() else found
    raise AssertionError("it never came to its end")


def check_killed(root: Path, seed: int, *, has_engine: bool, num_kills: int) -> None:
    """Kill the work on runs so often, and look at what came of each."""
    folder = root / "folder"
    folder.mkdir()
    archive = Archive(root / "runs", SessionStore(root / "sessions"))
    checkpoint = None
    if has_engine:
        checkpoint = write_checkpoint(root / "m2", "m2", max_position_embeddings=16384)
    path = f"Path({str(checkpoint)!r})" if checkpoint else None
    program = (
        "import asyncio; from pathlib import Path; from tests.agent.test_work import gone_on; "
        f"asyncio.run(gone_on(Path({str(root)!r}), {path}))"
    )

    def forked() -> int:
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(gone_on(root, None))
                os._exit(0)
            except BaseException:
                (root / "error").write_text(traceback.format_exc())
            finally:
                os._exit(1)
        return child

    def spawned() -> int:
        tree = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return os.posix_spawn(sys.executable, [sys.executable, "-c", program], tree)

    draw, kills = random.Random(seed), 0
    truth: Any = None
    while kills < num_kills:
        begun(archive, folder, name="run", tools="minimal", has_session=has_engine)
        kills += until_done(root, spawned if has_engine else forked, draw)
        trajectory = archive.runs.open("run").trajectory
        # Every command took effect once, whatever was under way when.
        assert (folder / "log").read_text() == "one\ntwo\nthree\nagain\nfive\n"
        assert [len(step.results) for step in trajectory.steps] == [1, 1, 2, 1, 1, 0]
        now = ([step.answer.message for step in trajectory.steps], content(folder))
        truth = now if truth is None else truth
        assert now == truth
        archive.rewind("run", 0)
        assert content(folder) == {}
        archive.remove("run")


def test_killed_at_random_moments_nothing_is_lost_or_done_twice(tmp_path: Path) -> None:
    check_killed(tmp_path, 3, has_engine=False, num_kills=3)


@pytest.mark.slow
@pytest.mark.parametrize("has_engine", [False, True])
def test_killed_a_hundred_times_nothing_is_lost_or_done_twice(
    tmp_path: Path, has_engine: bool
) -> None:
    check_killed(tmp_path, 5, has_engine=has_engine, num_kills=100)


# ---- people -----------------------------------------------------------------------------------


def test_a_persons_changes_are_asked_about_and_kept_aside(folder: Path, archive: Archive) -> None:
    begun(archive, folder, name="run")
    model = scripted([by_place(script_of("m2"))] * 9)
    assert run(said(work_of(archive, "run", model), TASK)) == "done"
    (folder / "log").write_text("a person's")
    before = content(folder)
    with pytest.raises(ChangedSince, match="log"):
        archive.rewind("run", 1)
    assert content(folder) == before
    assert len(archive.runs.open("run").trajectory.steps) == 6
    archive.rewind("run", 1, overwrite=True)
    assert (folder / "log").read_text() == "one\n"
    (aside,) = archive.asides(archive.runs.open("run").facts)
    archive.export_aside("run", folder.with_name("aside"), aside.number)
    assert (folder.with_name("aside") / "log").read_text() == "a person's"


def test_a_persons_changes_between_two_words_are_the_runs_from_then_on(
    folder: Path, archive: Archive
) -> None:
    begun(archive, folder, name="run")
    script = [bash("m2", "echo one > a"), says("m2", "Done."), bash("m2", "cat a"), says("m2", "")]

    async def go() -> Work:
        work = work_of(archive, "run", scripted([by_place(script)] * 9))
        async with work:
            await work.say(TASK)
            (folder / "a").write_text("two")
            await work.say("And?")
        return work

    work = run(go())
    assert work.trajectory.steps[2].results[0].text == "two"
    assert sorted(work.trajectory.found) == [2]
    archive.rewind("run", 2)  # nobody changed anything since
    assert (folder / "a").read_text() == "two"
    with pytest.raises(ChangedSince, match="a"):  # what they changed would be gone
        archive.rewind("run", 1)
    archive.rewind("run", 1, overwrite=True)
    assert (folder / "a").read_text() == "one\n"


def test_other_words_take_the_place_of_those_that_were_gone_back_behind(
    folder: Path, archive: Archive
) -> None:
    begun(archive, folder, name="run")
    assert run(said(work_of(archive, "run", scripted([says("m2", "A.")])), "First.")) == "done"
    archive.rewind("run", 0)
    model = scripted([says("m2", "B.")])
    assert run(said(work_of(archive, "run", model), "Second.")) == "done"
    asked = read_messages(model.requests[0].messages)
    assert [one.content for one in asked][1:] == ["Second."]
    assert run(said(work_of(archive, "run", scripted([says("m2", "C.")])), "Third.")) == "done"
    contents = [message.content for message in archive.runs.open("run").trajectory.messages]
    assert contents[1:] == ["Second.", "B.", "Third.", "C."]


def test_a_run_with_nothing_left_to_do_says_so(folder: Path, archive: Archive) -> None:
    begun(archive, folder, name="run")
    with pytest.raises(ValueError, match="no task yet"):
        run(said(work_of(archive, "run", scripted([]))))
    assert run(said(work_of(archive, "run", scripted([says("m2", "A.")])), TASK)) == "done"
    with pytest.raises(ValueError, match="is done, say what to do next"):
        run(said(work_of(archive, "run", scripted([]))))


def test_a_fork_lives_in_a_folder_of_its_own_and_sees_the_first_ones_path(
    folder: Path, archive: Archive
) -> None:
    begun(archive, folder, name="run")
    model = scripted([by_place(script_of("m2"))] * 9)
    assert run(said(work_of(archive, "run", model), TASK)) == "done"
    before, place = content(folder), folder.with_name("other")
    with pytest.raises(ValueError, match="7 was asked for, run run has 6 steps"):
        archive.fork("run", 7, place)
    with pytest.raises(ValueError, match="no name of a run"):
        archive.fork("run", 1, place, new="A b")
    assert not place.exists()
    made = archive.fork("run", 1, place)
    assert made.name == "run-2"
    script = [bash("m2", "pwd; echo mine >> log"), says("m2", "Done.")]

    def line(request: ChatRequest) -> str:
        count = sum(one.role == "assistant" for one in read_messages(request.messages))
        return script[count - 1]

    model = scripted([line] * 3)
    assert run(said(work_of(archive, "run-2", model), "Otherwise.")) == "done"
    assert model.requests[0].messages[:4] == tuple(archive.runs.open("run").trajectory.messages[:4])
    steps = archive.runs.open("run-2").trajectory.steps
    assert steps[1].results[0].text.splitlines()[0] == str(folder)
    assert (place / "log").read_text() == "one\nmine\n"
    assert content(folder) == before
    with pytest.raises(ValueError, match="is not empty"):
        archive.fork("run", 1, place)
    archive.remove("run")  # the fork keeps what it has
    archive.rewind("run-2", 0)
    assert content(place) == {"kept": before["kept"]}


def test_snapshots_have_nothing_of_the_sandbox(folder: Path, archive: Archive) -> None:
    begun(archive, folder, name="run")
    script = [bash("m2", "ls -a; touch new"), says("m2", "Done.")]
    assert run(said(work_of(archive, "run", scripted(script)), TASK)) == "done"
    assert [change.path for change in archive.changes("run", 0, 2)] == ["new"]
    assert sorted(path.name for path in folder.iterdir()) == ["kept", "new"]
    assert archive.runs.open("run").trajectory.found == {}


@dataclass
class Watching:
    """Somebody who sees the records."""

    records: list[Mapping[str, Any]] = field(default_factory=list)

    def event(self, event: object) -> None: ...

    def calling(self, call: object) -> None: ...

    def record(self, record: Mapping[str, Any]) -> None:
        self.records.append(record)


def test_repositories_made_inside_are_settled_with_the_answer(
    folder: Path, archive: Archive
) -> None:
    """A person may be there with the answer, while the conversation goes on."""
    begun(archive, folder, name="run")
    evil = "git init -q sub; git -C sub config core.fsmonitor x"
    script = [bash("m2", evil), says("m2", "Done."), says("m2", "Yes.")]
    seen = Watching()

    async def go() -> list[str]:
        async with work_of(archive, "run", scripted(script), watcher=seen) as work:
            assert await work.say(TASK) == "done"
            assert not (folder / "sub/.git/HEAD").exists()
            (record,) = (archive.runs.root / ".sandboxes").iterdir()
            assert record.stat().st_size > 0
            assert await work.say("Sure?") == "done"
            return work.notes

    notes = run(go())
    assert ["git does not see it" in note for note in notes] == [True]
    assert seen.records[-4]["text"] == notes[0]
    assert list((archive.runs.root / ".sandboxes").iterdir()) == []
    assert archive.runs.names() == ["run"]


def test_what_the_mode_forbids_is_not_done(folder: Path, archive: Archive) -> None:
    begun(archive, folder, name="run")
    script = [bash("m2", "touch new"), says("m2", "Then not.")]
    work = work_of(archive, "run", scripted(script), mode="plan")
    assert run(said(work, TASK)) == "done"
    (result,) = work.trajectory.steps[0].results
    assert result.is_error
    assert "not allowed" in result.text
    assert not (folder / "new").exists()


def test_a_job_in_the_background_can_be_read_and_ended(folder: Path, archive: Archive) -> None:
    begun(archive, folder, name="run")
    script = [
        m2_calls(("bash", {"command": "echo begun; sleep 60", "background": True})),
        bash("m2", "sleep 0.3"),
        m2_calls(("bash", {"job": 1})),
        m2_calls(("bash", {"job": 1, "stop": True})),
        says("m2", "Done."),
    ]
    work = work_of(archive, "run", scripted(script), mode="ask", rules=Rules.parse(["bash"]))
    assert run(said(work, TASK)) == "done"
    assert work.trajectory.steps[2].results[0].text == "begun\n(still runs)"


def test_a_new_shell_is_told_to_the_model_once(folder: Path, archive: Archive) -> None:
    begun(archive, folder, name="run")
    script = [bash("m2", "cd /tmp"), says("m2", "A."), *[bash("m2", "pwd")] * 2, says("m2", "B.")]
    line = by_place(script)
    assert run(said(work_of(archive, "run", scripted([line] * 9)), TASK)) == "done"
    work = work_of(archive, "run", scripted([line] * 9))
    assert run(said(work, "And?")) == "done"
    texts = [work.trajectory.steps[place].results[0].text for place in (2, 3)]
    assert texts[0].startswith(f"{folder}\n(The shell was begun anew")
    assert texts[1] == str(folder)


def test_two_processes_never_go_on_with_one_run(folder: Path, archive: Archive) -> None:
    begun(archive, folder, name="run")

    async def both() -> None:
        async with work_of(archive, "run", scripted([])):
            with pytest.raises(ValueError, match="going on in another process"):
                await said(work_of(archive, "run", scripted([])), TASK)
            with pytest.raises(ValueError, match="going on in another process"):
                archive.rewind("run", 0)

    run(both())


def test_a_folder_that_is_gone_is_one_sentence(folder: Path, archive: Archive) -> None:
    begun(archive, folder, name="run")
    assert run(said(work_of(archive, "run", scripted([says("m2", "A.")])), TASK)) == "done"
    folder.rename(folder.with_name("moved"))
    with pytest.raises(ValueError, match="is no folder"):
        archive.rewind("run", 0)
    with pytest.raises(ValueError, match="is no folder"):
        run(said(work_of(archive, "run", scripted([])), "And?"))
    archive.export_files("run", folder, num_steps=1)  # but its files are there
    assert (folder / "kept").read_text() == "as it was\n"


def test_nothing_is_written_in_plan_mode_whatever_is_allowed(
    folder: Path, archive: Archive
) -> None:
    """Programs are for the sandbox to stop."""
    begun(archive, folder, name="run")

    class Allowing(Permissions):
        def judge(self, *_: Any, **__: Any) -> Verdict:
            return Verdict("allow")

    permissions = Allowing("plan", Rules(), workspace=folder)
    script = [bash("m2", "touch new; echo evil > kept"), says("m2", "Done.")]
    work = Work(archive, "run", scripted(script), Means(permissions=permissions))
    assert run(said(work, TASK)) == "done"
    assert content(folder) == {"kept": ((folder / "kept").lstat().st_mode, b"as it was\n")}
    assert "Read-only" in work.trajectory.steps[0].results[0].text


def test_variables_of_the_settings_hold_in_every_command(folder: Path, archive: Archive) -> None:
    begun(archive, folder, name="run")
    script = [bash("m2", "echo $RUST_BACKTRACE"), bash("m2", "echo $NODE_ENV"), says("m2", "Done.")]
    given = {"RUST_BACKTRACE": "1", "NODE_ENV": "test"}
    work = work_of(archive, "run", scripted(script), environment=given)
    assert run(said(work, TASK)) == "done"
    texts = [step.results[0].text for step in work.trajectory.steps[:2]]
    assert texts == ["1", "test"]
    work = work_of(archive, "run", scripted([]), environment={"PATH": "/evil"})
    with pytest.raises(ValueError, match="PATH cannot be set"):
        run(said(work, "Go on."))


@pytest.mark.parametrize("inside", ["runs", "sessions"])
def test_what_is_kept_of_a_run_lies_outside_its_folder(folder: Path, inside: str) -> None:
    begun(Archive(folder.parent / "runs"), folder, name="run")
    places = {one: folder.parent / one for one in ("runs", "sessions")}
    if inside == "runs":
        os.rename(places["runs"], folder / "runs")
    places[inside] = folder / inside
    archive = Archive(places["runs"], SessionStore(places["sessions"]))
    with pytest.raises(ValueError, match="where the agent could change it"):
        run(said(work_of(archive, "run", scripted([])), TASK))


def test_a_repository_that_was_made_is_noted_in_the_log(folder: Path, archive: Archive) -> None:
    begun(archive, folder, name="run")
    command = "git init -q sub; git -C sub config core.fsmonitor 'touch pwned; false'"
    work = work_of(archive, "run", scripted([bash("m2", command), says("m2", "Done.")]))
    assert run(said(work, TASK)) == "done"
    assert any("git does not see it" in note for note in work.notes)
    assert "git does not see it" in (archive.runs.root / "run/log.jsonl").read_text()
    archive.rewind("run", 0)
    assert not (folder / "sub/.git/HEAD").exists()
    assert archive.runs.open("run").trajectory.steps == []
