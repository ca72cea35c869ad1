"""Conversations on disk: saved, forked, taken back, taken up again, and never different."""

import json
import math
import os
import random
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from fulmen.chat import Completion, Message, Prompt, Tool
from fulmen.engine import EngineConfig
from fulmen.llm import LLM
from fulmen.models import Cache
from fulmen.sampling import SamplingParams
from fulmen.sessions import Session, SessionStore, check, export
from tests.engine.helpers import assert_nothing_is_owned
from tests.tiny import write_checkpoint
from tests.warm import python

PARAMS = SamplingParams(temperature=1.0, top_p=1.0, top_k=None)
WORDS = ["light", "bolt", "storm", "quiet", "rain", "17", "=", "+", "é", "日", "\n"]


@pytest.fixture(scope="module", params=["m1", "m2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


def load(folder: Path, **config: int) -> LLM:
    return LLM.load(str(folder), engine_config=EngineConfig(max_num_seqs=2, **config))  # type: ignore[arg-type]


def ask(session: Session, text: str, params: SamplingParams) -> Completion:
    messages = [*session.messages, Message("user", text)]
    completion = session.llm.chat(session.request(messages, params=params))
    session.save(messages, completion)
    return completion


class Story:
    """Random things done to the sessions of one store, each compared with a plain run."""

    def __init__(self, folder: Path, store: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.folder = folder
        self.root = store
        self.plain = load(folder)
        self.names = ["s0"]
        self.num_points = 0
        self.num_hits = 0
        self.restart()

    def restart(self) -> None:
        """A new process, as far as one can be had here: nothing is left but the disk."""
        # Sometimes with so little memory that not all of a session fits.
        pages = self.random.choice([16, 24, 200])
        self.llm = load(self.folder)
        page_bytes = self.llm.engine.prefixes.cache.page_bytes
        self.llm = load(self.folder, kv_cache_bytes=pages * page_bytes)
        self.store = SessionStore(self.root)
        self.open(self.random.choice(self.names))

    def open(self, name: str) -> None:
        self.session = Session(self.llm, self.store, name, model=str(self.folder))

    def step(self) -> None:
        """One point: something random is done, then an answer is made."""
        name = self.session.state.name
        turns = self.store.turns(self.session.state)
        kind = self.random.choice(["go on", "restart", "fork", "rewind", "cut", "cut", "restart"])
        if kind == "restart":
            self.restart()
        elif kind in ("fork", "rewind", "cut") and turns:
            count = self.random.randrange(kind == "cut", len(turns) + 1)
            most = turns[count - 1].num_answer
            cut = self.random.randrange(most + 1) if kind == "cut" else None
            if kind == "rewind":
                self.store.rewind(name, num_turns=count)
            else:
                name = f"s{len(self.names)}"
                self.names.append(name)
                self.store.fork(self.session.state.name, name, num_turns=count, num_kept=cut)
            self.open(name)
        if self.random.random() < 0.2:
            self.llm.engine.prefixes.clear()
        before = self.llm.engine.stats.num_hit_tokens
        if self.session.state.num_kept is not None:
            messages = self.session.messages
            completion = self.llm.chat(self.session.resume())
            self.session.save(messages, completion)
        else:
            text = " ".join(self.random.choices(WORDS, k=self.random.randrange(1, 30)))
            if len(self.session.transcript.ids()) > 700:
                self.session.rewind(0)
            params = replace(
                PARAMS,
                seed=self.random.randrange(2**40),
                max_tokens=self.random.randrange(1, 90),
                thinking_budget=self.random.choice([None, 0, 5, 30]),
            )
            completion = ask(self.session, text, params)
        self.num_hits += self.llm.engine.stats.num_hit_tokens - before
        self.num_points += 1
        self.check(completion)

    def check(self, completion: Completion) -> None:
        """The whole answer, in one go and without any cache, has the same bits."""
        self.plain.engine.prefixes.clear()
        prompt = Prompt(completion.prompt_ids)
        expected = self.plain.chat(prompt=prompt, params=completion.params)
        assert completion.answer_ids == expected.answer_ids
        stored = export(self.store, self.session.state.name, tokens=True)[-1]
        assert stored["answer_ids"] == list(expected.answer_ids)
        assert stored["prompt_ids"] == list(expected.prompt_ids)
        assert stored["logprobs"] == [token.logprob for token in expected.tokens]
        assert completion.reply == expected.reply
        assert self.session.messages[-1] == expected.reply.message()


def test_random_points_of_a_conversation_have_the_bits_of_a_plain_run(
    folder: Path, tmp_path: Path
) -> None:
    story = Story(folder, tmp_path / "store", seed=1)
    for _ in range(25):
        story.step()
    assert story.num_hits > 1000


@pytest.mark.slow
def test_five_hundred_random_points_each(folder: Path, tmp_path: Path) -> None:
    story = Story(folder, tmp_path / "store", seed=2)
    for _ in range(500):
        story.step()
    print(f"{story.num_points} points, {len(story.names)} sessions, {story.num_hits} tokens hit")


def test_a_resumed_session_reads_nothing_twice(folder: Path, tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    session = Session(load(folder), store, "a", model=str(folder))
    first = ask(session, "x" * 300, replace(PARAMS, seed=1, max_tokens=20, thinking_budget=0))
    again = Session(load(folder), SessionStore(tmp_path), "a", model=str(folder))
    known = len(first.prompt_ids) + len(first.answer_ids) - 1
    assert again.num_restored == known
    assert again.messages == session.messages
    again.llm.chat(prompt=Prompt(first.prompt_ids), params=replace(PARAMS, max_tokens=1))
    # All but the last token, which is read for its logits, or the last place with a state.
    assert again.llm.engine.stats.num_hit_tokens >= (len(first.prompt_ids) - 1) // 64 * 64


def test_a_fork_costs_a_few_hundred_bytes(folder: Path, tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    session = Session(load(folder), store, "a", model=str(folder))
    for seed in range(3):
        ask(session, "x" * 150, replace(PARAMS, seed=seed, max_tokens=20))
    before = disk_use(tmp_path)
    store.fork("a", "b")
    assert disk_use(tmp_path) - before < 1000
    assert store.ids_of(store.state("b")) == store.ids_of(store.state("a"))


def disk_use(root: Path) -> int:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def test_what_no_session_has_is_deleted_with_the_last_one(folder: Path, tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    session = Session(load(folder), store, "a", model=str(folder))
    ask(session, "x" * 150, replace(PARAMS, seed=0, max_tokens=20))
    store.fork("a", "b")
    ask(session, "y" * 150, replace(PARAMS, seed=0, max_tokens=20))
    store.remove("a")
    b = Session(load(folder), store, "b", model=str(folder))
    assert b.num_restored > 150
    store.remove("b")
    assert not list((tmp_path / "chunks").iterdir())
    assert not list((tmp_path / "turns").iterdir())
    assert store.names() == []


def test_above_the_cap_states_of_the_session_unused_for_longest_go(
    folder: Path, tmp_path: Path
) -> None:
    llm = load(folder)
    store = SessionStore(tmp_path)
    params = replace(PARAMS, seed=0, max_tokens=4, thinking_budget=0)
    for name in "abc":
        ask(Session(llm, store, name, model=str(folder)), name * 400, params)
    used = sum(path.stat().st_size for path in (tmp_path / "chunks").iterdir())
    small = SessionStore(tmp_path, max_bytes=used)
    small.restore(small.state("a"), llm.origin, llm.engine.prefixes)  # now b is the oldest
    ask(Session(llm, small, "d", model=str(folder)), "d" * 400, params)
    kept = {name: load_tokens(folder, small, name) for name in "abcd"}
    assert kept["b"] == 0
    assert kept["a"] > 400
    assert kept["d"] > 400
    assert sum(path.stat().st_size for path in (tmp_path / "chunks").iterdir()) <= used
    # What went can be computed again, and is kept again.
    b = Session(load(folder), small, "b", model=str(folder))
    assert len(b.messages) == 2
    ask(b, "and?", params)
    assert load_tokens(folder, small, "b") > 400


def load_tokens(folder: Path, store: SessionStore, name: str) -> int:
    return Session(load(folder), store, name, model=str(folder)).num_restored


def test_of_a_session_above_the_cap_its_beginning_stays(folder: Path, tmp_path: Path) -> None:
    llm = load(folder)
    params = replace(PARAMS, seed=0, max_tokens=4, thinking_budget=0)
    session = Session(llm, SessionStore(tmp_path), "a", model=str(folder))
    for text in "abc":
        ask(session, text * 200, params)
    used = sum(path.stat().st_size for path in (tmp_path / "chunks").iterdir())
    small = SessionStore(tmp_path, max_bytes=used - 1)
    small.create("b", model="m", fingerprint=llm.origin.model)
    (tmp_path / "chunks" / ".left.part").write_bytes(b"by a kill")
    ask(Session(llm, small, "b", model=str(folder)), "d", params)
    again = Session(load(folder), small, "a", model=str(folder))
    assert 200 <= again.num_restored < len(small.ids_of(small.state("a"))) - 1
    assert not (tmp_path / "chunks" / ".left.part").exists()


def test_damaged_chunks_are_read_again(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SessionStore(tmp_path)
    session = Session(load(folder), store, "a", model=str(folder))
    ask(session, "x" * 300, replace(PARAMS, seed=1, max_tokens=20, thinking_budget=0))
    expected = ask(session, "y", replace(PARAMS, seed=2, max_tokens=20, thinking_budget=0))
    store.rewind("a", num_turns=1)
    for path in (tmp_path / "chunks").iterdir():
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    again = Session(load(folder), store, "a", model=str(folder))
    assert again.num_restored == 0
    assert "is damaged" in caplog.text
    assert ask(again, "y", expected.params).answer_ids == expected.answer_ids
    # And they are written anew.
    assert load_tokens(folder, store, "a") > 300


def test_a_damaged_turn_is_refused(folder: Path, tmp_path: Path) -> None:
    session = Session(load(folder), SessionStore(tmp_path), "a", model=str(folder))
    ask(session, "hello", replace(PARAMS, seed=1, max_tokens=5))
    (path,) = (tmp_path / "turns").iterdir()
    path.write_text(path.read_text().replace("hello", "jello"))
    with pytest.raises(ValueError, match="is damaged, the session cannot be read"):
        SessionStore(tmp_path).turns(session.state)


def test_a_session_that_another_process_changed_is_not_saved_over(
    folder: Path, tmp_path: Path
) -> None:
    store = SessionStore(tmp_path)
    params = replace(PARAMS, seed=1, max_tokens=5)
    first, second = (Session(load(folder), store, "a", model=str(folder)) for _ in range(2))
    ask(first, "one", params)
    with pytest.raises(ValueError, match="was changed by another process"):
        ask(second, "two", params)
    store.remove("a")
    with pytest.raises(ValueError, match="there is no session 'a'"):
        ask(first, "three", params)
    assert store.names() == []


def test_pages_that_were_not_written_are_not_known(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore(tmp_path)
    ask(Session(load(folder), store, "a", model=str(folder)), "x" * 200, replace(PARAMS, seed=1))
    llm = load(folder)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Cache, "write_pages", interrupt)
        with pytest.raises(KeyboardInterrupt):
            Session(llm, store, "a", model=str(folder))
    assert llm.engine.prefixes.known(store.ids_of(store.state("a"))) == []
    assert_nothing_is_owned(llm.engine)


def test_an_answer_that_repeats_itself_ends_where_it_would_have(
    folder: Path, tmp_path: Path
) -> None:
    params = replace(
        PARAMS, temperature=0, seed=1, max_tokens=60, ignore_eos=True, thinking_budget=0,
        repetition_window=9, repetition_probability=0.004,
    )  # fmt: skip
    store = SessionStore(tmp_path)
    session = Session(load(folder), store, "a", model=str(folder))
    whole = ask(session, "Hello", params)
    assert whole.finish_reason == "repetition"
    store.rewind("a", num_turns=1, num_kept=len(whole.answer_ids) - 4)
    again = Session(load(folder), store, "a", model=str(folder))
    resumed = again.llm.chat(again.resume())
    assert resumed.answer_ids == whole.answer_ids
    assert resumed.finish_reason == "repetition"


def test_states_of_another_build_are_left_alone(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SessionStore(tmp_path)
    llm = load(folder)
    session = Session(llm, store, "a", model=str(folder))
    ask(session, "x" * 100, replace(PARAMS, seed=1, max_tokens=5))
    other = replace(llm.origin, numerics="another build")
    assert store.restore(store.state("a"), other, load(folder).engine.prefixes) == 0
    assert "are read again" in caplog.text


def test_another_model_and_another_version_are_refused(
    folder: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = SessionStore(tmp_path)
    session = Session(load(folder), store, "a", model=str(folder))
    ask(session, "hello", replace(PARAMS, seed=1, max_tokens=5))
    kind = "m2" if "m1" in folder.name else "m1"
    other = load(write_checkpoint(tmp_path_factory.mktemp("other"), kind))
    with pytest.raises(ValueError, match="session 'a' belongs to another model, it was begun with"):
        Session(other, store, "a", model="other")
    path = tmp_path / "sessions" / "a.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 9}))
    with pytest.raises(ValueError, match="has format 9, this version of Fulmen reads format 1"):
        store.state("a")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda store: store.state("b"), "there is no session 'b'"),
        (lambda store: store.state("../b"), "cannot name a session"),
        (lambda store: store.fork("a", "a"), "there is a session 'a' already"),
        (lambda store: store.rewind("a", num_turns=2), "session 'a' has 1 turns"),
        (
            lambda store: store.rewind("a", num_turns=1, num_kept=99),
            "the answer of turn 1 has 5 tokens",
        ),
        (lambda store: store.rewind("a", num_turns=0, num_kept=0), "turn 0 has none"),
        (lambda store: store.remove("b"), "there is no session 'b'"),
    ],
)
def test_what_is_not_there_is_one_sentence(
    call: object, sentence: str, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path_factory.mktemp("m2-bad"), "m2")
    store = SessionStore(tmp_path)
    params = replace(PARAMS, seed=1, max_tokens=5, ignore_eos=True)
    ask(Session(load(folder), store, "a", model="m"), "hello", params)
    with pytest.raises(ValueError, match=sentence):
        call(store)  # type: ignore[operator]
    assert store.names() == ["a"]
    assert len(store.turns(store.state("a"))) == 1


def test_an_interrupt_after_the_turn_was_written_loses_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SessionStore(tmp_path)
    session = Session(load(folder), store, "a", model=str(folder))
    params = replace(PARAMS, seed=1, max_tokens=5)
    for error in (KeyboardInterrupt(), PermissionError("no")):

        def fail(error: BaseException = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(store, "_shrink", fail)
            with suppress(KeyboardInterrupt):
                ask(session, "one", params)
    ask(session, "two", params)
    again = Session(load(folder), SessionStore(tmp_path), "a", model=str(folder))
    assert again.messages == session.messages
    assert len(again.transcript.turns) == 3


def test_a_turn_that_is_no_json_is_refused_and_the_next_one_saved(
    folder: Path, tmp_path: Path
) -> None:
    store = SessionStore(tmp_path)
    session = Session(load(folder), store, "a", model=str(folder))
    params = replace(PARAMS, seed=1, max_tokens=5)
    messages = [Message("user", "one")]
    completion = session.llm.chat(session.request(messages, params=params))
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        session.save(messages, completion, tools=[{"name": "f", "parameters": {"a": {1, 2}}}])
    tokens = tuple(replace(token, logprob=-math.inf) for token in completion.tokens)
    session.save(messages, replace(completion, tokens=tokens), tools=[Tool("f")])
    ask(session, "two", params)
    prefix = completion.answer_ids[:2]
    continued = session.request(session.messages, params=params, prefix_ids=prefix)
    session.save(session.messages, session.llm.chat(continued))
    again = Session(load(folder), SessionStore(tmp_path), "a", model=str(folder))
    assert again.transcript.turns[0].logprobs == (None,) * 5
    assert again.transcript.turns[2].logprobs[:2] == (None, None)
    assert check(store) == []


def test_a_rewind_beyond_the_transcript_changes_nothing(folder: Path, tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    session = Session(load(folder), store, "a", model=str(folder))
    ask(session, "one", replace(PARAMS, seed=1, max_tokens=5))
    for count in (-1, 2, 9):
        with pytest.raises(ValueError, match="was asked for, the transcript has 1 turns"):
            session.rewind(count)
    assert len(session.messages) == 2


def test_a_session_in_use_is_not_shared(tmp_path: Path) -> None:
    store = SessionStore(tmp_path)
    store.create("a", model="m", fingerprint="f")
    with (
        store.used_by_one("a"),
        pytest.raises(ValueError, match="is in use by another process"),
        SessionStore(tmp_path).used_by_one("a"),
    ):
        pass


SAVER = """
import sys
from dataclasses import replace
from pathlib import Path
from tests.sessions.test_sessions import PARAMS, ask, load
from fulmen.sessions import Session, SessionStore
folder, root = map(Path, sys.argv[1:])
session = Session(load(folder), SessionStore(root), "a", model=str(folder))
while True:
    count = len(session.messages) // 2
    if count == 6:
        session.rewind(0)
        count = 0
    ask(session, f"{count} " + "x" * 60, replace(PARAMS, seed=count, max_tokens=12))
    print(count + 1, flush=True)
"""


def kill_while_saving(folder: Path, root: Path, times: int, seed: int) -> None:
    random_ = random.Random(seed)
    reference = load(folder)
    for _ in range(times):
        with subprocess.Popen(
            python("-c", SAVER, folder, root),
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        ) as program:
            assert program.stdout is not None
            acknowledged = program.stdout.readline()
            time.sleep(random_.random() * 0.25)
            program.send_signal(signal.SIGKILL)
            rest = program.stdout.read().split()
        last = int((rest or [acknowledged])[-1])
        store = SessionStore(root)
        session = Session(load(folder), store, "a", model=str(folder))
        turns = store.turns(session.state)
        # One more may have been saved and not told, or the session been taken back after six.
        assert len(turns) in (last, last + 1, *((0, 1) if last == 6 else ()))
        assert [m.content.split()[0] for m in session.messages[::2]] == [
            str(number) for number in range(len(turns))
        ]
        if turns:
            record = export(store, "a", tokens=True)[-1]
            reference.engine.prefixes.clear()
            params = replace(PARAMS, seed=len(turns) - 1, max_tokens=12)
            prompt = Prompt(tuple(record["prompt_ids"]))
            expected = reference.chat(prompt=prompt, params=params)
            assert record["answer_ids"] == list(expected.answer_ids)
            assert session.num_restored >= len(record["prompt_ids"]) // 64 * 64


def test_a_kill_loses_at_most_the_turn_it_interrupts(folder: Path, tmp_path: Path) -> None:
    kill_while_saving(folder, tmp_path / "store", times=1, seed=0)


@pytest.mark.slow
def test_twenty_five_kills_each_lose_at_most_a_turn(folder: Path, tmp_path: Path) -> None:
    kill_while_saving(folder, tmp_path / "store", times=25, seed=1)


def test_a_token_that_the_model_does_not_have_is_named_with_its_session(
    folder: Path, tmp_path: Path
) -> None:
    store = SessionStore(tmp_path)
    session = Session(load(folder), store, "trip", model="m")
    for question in ("one", "two"):
        ask(session, question, replace(PARAMS, seed=1, max_tokens=5, ignore_eos=True))
    turns = store.turns(store.state("trip"))
    record = {**turns[1].record}
    store.rewind("trip", num_turns=1)
    llm = load(folder)
    store.save(
        store.state("trip"),
        parent=turns[0].hash,
        ids=[*store.ids(turns[0]), 10**6, *turns[1].answer_ids],
        num_answer=turns[1].num_answer,
        record=record,
        origin=llm.origin,
        prefixes=llm.engine.prefixes,
    )
    sentence = "^session 'trip' holds the token id 1000000 in turn 2, the model has ids from 0 to "
    with pytest.raises(ValueError, match=sentence) as error:
        Session(llm, SessionStore(tmp_path), "trip", model="m")
    assert "fulmen sessions rewind trip --turn 1 " in str(error.value)
    SessionStore(tmp_path).rewind("trip", num_turns=1)
    assert len(Session(llm, SessionStore(tmp_path), "trip", model="m").messages) == 2
