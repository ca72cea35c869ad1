"""Sessions over HTTP: conversations that a request names, kept with the model's states."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fulmen.chat import ChatRequest, Message, Transcript
from fulmen.engine import EngineConfig
from fulmen.llm import LLM
from fulmen.sessions import SessionStore
from fulmen.sessions.objects import Objects
from tests.examples import examples
from tests.server.conversing import (
    CHAT,
    LONG,
    MESSAGES,
    RESPONSES,
    bits,
    cached,
    chat,
    served_folder,
    shown,
    user,
)
from tests.server.helpers import Answer, ask, scripted, served
from tests.tiny import write_checkpoint

ROLES = ("user", "assistant")
MOST_TOKENS = 500
"""Longest conversation in which one more question has room, whichever it is"""


@pytest.fixture(scope="module", params=["m1", "m2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


def test_a_server_that_restarts_goes_on_as_if_it_had_not(folder: Path, tmp_path: Path) -> None:
    messages: list[Any] = [user(LONG)]
    with served_folder(folder, sessions=tmp_path / "a") as url:
        chat(url, messages, "trip")
        kept = shown(url, "trip")
        assert kept["status"] == "idle"
        assert len(kept["turns"]) == 1
        assert kept["turns"][0]["stored_tokens"] >= kept["tokens"] - 1
        again = [*messages, user("And 7 times 8?")]
        expected = chat(url, again, "trip")
        assert cached(expected) > 100
        assert len(shown(url, "trip")["turns"]) == 2
    with served_folder(folder, sessions=tmp_path / "b") as url:
        messages = [user(LONG)]
        chat(url, messages, "trip")
        shown(url, "trip")
    with served_folder(folder, sessions=tmp_path / "b") as url:  # its log is empty
        reply = chat(url, [*messages, user("And 7 times 8?")], "trip")
        assert bits(reply) == bits(expected)
        assert reply["choices"][0]["token_ids"]
        assert cached(reply) == cached(expected)
        assert [turn["state"] for turn in reply["fulmen"]["turns"]] == ["matched"]
        assert [m["content"] for m in shown(url, "trip")["messages"]] == [
            m["content"] for m in again
        ]


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_each_dialect_names_a_session_in_its_header_or_its_body(
    path: str, is_streamed: bool, m2: Path, tmp_path: Path
) -> None:
    question = {"input": LONG} if path == RESPONSES else {"messages": [user(LONG)]}
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    body = {**question, limit: 8, "stream": is_streamed}
    with served_folder(m2, sessions=tmp_path) as url:
        for name, field, headers in (
            ("a", {}, {"fulmen-session": "a"}),
            ("b", {"session": "b"}, {}),
            ("c", {"session": "c"}, {"fulmen-session": "c"}),
        ):
            answer = ask(url, path, {**body, **field}, headers=headers)
            assert answer.headers["fulmen-session"] == name
            assert shown(url, name)["messages"][0]["content"] == LONG  # it is saved
        other = ask(url, path, {**body, "session": "d"}, headers={"fulmen-session": "e"})
        assert other.status == 400
        assert "'d' and 'e'" in other.text
        assert ask(url, "/v1/sessions").json()["data"][0]["id"] == "c"
        assert len(ask(url, "/v1/sessions").json()["data"]) == 3


@pytest.fixture(scope="module")
def m2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "only-m2", "m2")


BAD_NAMES = [
    *("..", "../x", "../../etc/passwd", "a/b", "a/../b", ".hidden", "-x", "a b", "a\\b"),
    *("a\x00b", "a\x1b[31m", "a\nb", "a\r\nx: y", "\u202etxt", "x" * 10_000, "a\u200bb", "%", ""),
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: repr(name[:12]))
def test_what_is_no_name_is_refused_with_a_sentence_and_leaves_nothing(
    name: str, keeping: tuple[str, Path]
) -> None:
    url, folder = keeping
    body = {"messages": [user("hello")], "max_tokens": 2}
    before = sorted(folder.rglob("*"))
    twice = quote(quote(name, safe=""), safe="")
    answers = [
        ask(url, CHAT, {**body, "session": name}),
        ask(url, CHAT, body, headers={"Fulmen-Session": quote(name, safe="")}),
    ]
    if name:
        for path in (quote(name, safe=""), quote(name), twice):
            answers.append(ask(url, f"/v1/sessions/{path}"))
            answers.append(ask(url, f"/v1/sessions/{path}", method="DELETE"))
            answers.append(ask(url, f"/v1/sessions/{path}/fork", {"name": "b"}))
        answers.append(ask(url, "/v1/sessions/any/fork", {"name": name}))
    for answer in answers:
        is_no_path = "/" in name or "\n" in name
        assert answer.status == 400 or (is_no_path and answer.status == 404), answer.text
        message = answer.json()["error"]["message"]
        assert "\n" not in message
        assert "\x1b" not in message
        assert len(message) < 400
        assert str(folder) not in message
    assert sorted(folder.rglob("*")) == before


@pytest.fixture(scope="module")
def keeping(m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server that keeps sessions, and its folder; one is named any."""
    folder = tmp_path_factory.mktemp("sessions")
    with served_folder(m2, sessions=folder) as url:
        chat(url, [user("hello")], "any")
        shown(url, "any")
        yield url, folder


def test_a_header_that_is_sent_twice_or_is_no_text_is_refused(keeping: tuple[str, Path]) -> None:
    host, port = keeping[0].removeprefix("http://").split(":")
    body = json.dumps({"messages": [user("hello")], "max_tokens": 2}).encode()
    for values in ((b"a", b"b"), (b"\xff\xfe",), (b"%ff",), (b"a, b",)):
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.putrequest("POST", CHAT)
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(len(body)))
        for value in values:
            connection.putheader("Fulmen-Session", value)
        connection.endheaders(body)
        reply = connection.getresponse()
        assert reply.status == 400
        assert "session" in json.loads(reply.read())["error"]["message"]
        connection.close()


def test_a_name_may_be_of_any_script(keeping: tuple[str, Path]) -> None:
    url, _ = keeping
    for value in (quote("Überfahrt"), "Überfahrt".encode().decode("latin-1")):
        body = {"messages": [user("hello")], "max_tokens": 2}
        answer = ask(url, CHAT, body, headers={"Fulmen-Session": value})
        assert answer.headers["fulmen-session"] == quote("Überfahrt")
    assert shown(url, quote("Überfahrt"))["id"] == "Überfahrt"
    assert ask(url, f"/v1/sessions/{quote('Überfahrt')}", method="DELETE").status == 200


def test_sessions_are_listed_shown_forked_rewound_and_deleted(keeping: tuple[str, Path]) -> None:
    url, _ = keeping
    messages: list[Any] = [user(LONG)]
    for question in ("And 7 times 8?", "And 9?"):
        chat(url, messages, "trip")
        messages.append(user(question))
    whole = shown(url, "trip")
    assert [turn["number"] for turn in whole["turns"]] == [1, 2]
    assert whole["turns"][1]["parent"] == whole["turns"][0]["id"]
    assert [turn["num_messages"] for turn in whole["turns"]] == [2, 2]
    assert ask(url, "/v1/sessions/trip").json() == whole
    forked = ask(url, "/v1/sessions/trip/fork", {"name": "other", "turn": 1}).json()
    assert forked["id"] == "other"
    assert forked["turns"] == whole["turns"][:1]
    assert ask(url, "/v1/sessions/trip/fork", {"name": "other"}).status == 409
    reply = chat(url, [*messages[:2], user("Why?")], "other")
    assert cached(reply) > 100
    assert len(shown(url, "other")["turns"]) == 2
    assert ask(url, "/v1/sessions/trip").json()["turns"] == whole["turns"]
    rewound = ask(url, "/v1/sessions/trip/rewind", {"turn": 1}).json()
    assert rewound["turns"] == whole["turns"][:1]
    assert rewound["messages"] == whole["messages"][:2]
    wrong: list[tuple[str, Any]] = [
        *(("rewind", {"turn": 2}), ("rewind", {"turn": -1}), ("rewind", {})),
        *(("fork", {"name": "x", "turn": 2}), ("fork", {"name": "x", "unknown": 2}), ("fork", {})),
    ]
    for path, body in wrong:
        assert ask(url, f"/v1/sessions/trip/{path}", body).status == 400, (path, body)
    first = ask(url, "/v1/sessions?limit=2").json()
    assert first["has_more"]
    rest = ask(url, f"/v1/sessions?limit=2&after={first['last_id']}").json()
    names = [one["id"] for page in (first, rest) for one in page["data"]]
    assert names == ["trip", "other", "any"]
    assert ask(url, "/v1/sessions?after=nothing").status == 400
    assert ask(url, "/v1/sessions?limit=0").status == 400
    for name in ("trip", "other"):
        deleted = ask(url, f"/v1/sessions/{name}", method="DELETE")
        assert deleted.json() == {"id": name, "object": "session", "deleted": True}
    gone: list[tuple[str, Any]] = [
        *(("", None), ("/fork", {"name": "x"}), ("/rewind", {"turn": 0}), ("/save", {})),
    ]
    for path, body in gone:
        answer = ask(url, f"/v1/sessions/trip{path}", body)
        assert (answer.status, answer.json()["error"]["message"]) == (
            404,
            "there is no session 'trip'",
        )
    assert ask(url, "/v1/sessions/trip", method="DELETE").status == 404


def test_another_history_takes_a_session_back_to_what_is_common(
    keeping: tuple[str, Path],
) -> None:
    url, _ = keeping
    messages: list[Any] = [user(LONG)]
    chat(url, messages, "edited")
    second = [*messages, user("And 7 times 8?")]
    chat(url, second, "edited")
    third = [*messages, user("And 7 times 9?")]
    chat(url, third, "edited")
    kept = shown(url, "edited")
    assert [message["content"] for message in kept["messages"]] == [m["content"] for m in third]
    chat(url, [user("Something else")], "edited")
    assert len(shown(url, "edited")["turns"]) == 1


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_a_request_for_another_state_of_a_session_is_refused_and_changes_nothing(
    path: str, m2: Path, tmp_path: Path
) -> None:
    def asked(known: str | None, *texts: str) -> Answer:
        history = [{"role": r, "content": t} for r, t in zip(cycle(ROLES), texts)]
        limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
        name = "input" if path == RESPONSES else "messages"
        body = {name: history, limit: 8, "session": "trip", "session_turn": known}
        return ask(url, path, body)

    with served_folder(m2, sessions=tmp_path) as url:
        gone = asked("0" * 64, "One")
        assert gone.status == 409
        assert path == MESSAGES or gone.json()["error"]["param"] == "session_turn"
        assert ask(url, "/v1/sessions/trip").status == 404
        assert asked("", "One").status == 200
        (first,) = shown(url, "trip")["turns"]
        answer = shown(url, "trip")["messages"][-1]["content"]
        for known in ("", "0" * 64, "x" * 10_000, "\x1b[31m"):
            refused = asked(known, "Another beginning")
            assert refused.status == 409, refused.text
            assert "session 'trip' stands at turn" in refused.text
            assert len(refused.text) < 1000
        assert shown(url, "trip")["turns"] == [first]
        assert asked(first["id"], "One", answer, "Two").status == 200
        assert len(shown(url, "trip")["turns"]) == 2
        assert asked(first["id"], "One", answer, "Three").status == 409
        assert asked(None, "Another beginning").status == 200
        assert len(shown(url, "trip")["turns"]) == 1


def test_a_session_is_found_only_with_the_key_that_made_it(m2: Path, tmp_path: Path) -> None:
    keys = ("sk-first-0123", "sk-second-4567")
    with served_folder(m2, sessions=tmp_path, api_keys=keys) as url:
        first, second = ({"authorization": f"Bearer {key}"} for key in keys)
        body = {"messages": [user(LONG)], "max_tokens": 4, "session": "trip"}
        assert ask(url, CHAT, body, headers=first).status == 200
        assert ask(url, "/v1/sessions/trip/save", {}, headers=first).status == 200
        for method, path, sent in (
            ("GET", "", None),
            ("DELETE", "", None),
            ("POST", "/fork", {"name": "a"}),
            ("POST", "/rewind", {"turn": 0}),
            ("POST", "/save", {}),
        ):
            answer = ask(url, f"/v1/sessions/trip{path}", sent, method=method, headers=second)
            assert answer.status == 404, (method, path)
        assert ask(url, "/v1/sessions", headers=second).json()["data"] == []
        assert len(ask(url, "/v1/sessions", headers=first).json()["data"]) == 1
        assert ask(url, "/v1/sessions").status == 401


def test_a_session_that_answers_is_nobody_elses(m2: Path, tmp_path: Path) -> None:
    body = {"messages": [user(LONG)], "max_tokens": 3000, "session": "trip", "ignore_eos": True}
    with served_folder(m2, sessions=tmp_path) as url:
        host, port = url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        sent = json.dumps({**body, "stream": True})
        connection.request("POST", CHAT, sent, {"content-type": "application/json"})
        reply = connection.getresponse()
        assert reply.readline()
        for path, other in ((CHAT, body), ("/v1/sessions/trip/rewind", {"turn": 0})):
            answer = ask(url, path, other)
            assert answer.status == 409
            assert "is answering another request" in answer.json()["error"]["message"]
        assert ask(url, "/v1/sessions/trip", method="DELETE").status == 409
        connection.close()
        reply.close()
        deadline = time.monotonic() + 20
        while (again := ask(url, CHAT, {**body, "max_tokens": 4})).status == 409:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert again.status == 200
        assert len(shown(url, "trip")["turns"]) == 1


def test_nobody_waits_while_a_session_is_saved_but_its_own_next_request(
    m2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    put = Objects.put

    def slow_put(objects: Objects, content: bytes) -> str:
        assert may_write.wait(30)
        return put(objects, content)

    monkeypatch.setattr(Objects, "put", slow_put)
    with served_folder(m2, sessions=tmp_path) as url:
        messages: list[Any] = [user(LONG)]
        chat(url, messages, "trip")
        messages.append(user("And?"))
        for name in (None, "other", "third"):
            chat(url, [user(LONG)], name)
        next_one = threading.Thread(target=lambda: chat(url, messages, "trip"))
        next_one.start()
        time.sleep(0.3)
        assert next_one.is_alive()
        may_write.set()
        next_one.join(30)
        assert len(shown(url, "trip")["turns"]) == 2
        assert {one["id"] for one in ask(url, "/v1/sessions").json()["data"]} == {
            *("trip", "other", "third")
        }


def test_an_answer_that_cannot_be_saved_goes_out_and_is_saved_later(
    m2: Path, tmp_path: Path
) -> None:
    with served_folder(m2, sessions=tmp_path) as url:
        messages: list[Any] = [user(LONG)]
        chat(url, messages, "trip")
        assert len(shown(url, "trip")["turns"]) == 1
        (tmp_path / "turns").rename(tmp_path / "away")
        (tmp_path / "turns").write_text("in the way")
        messages.append(user("And 7 times 8?"))
        chat(url, messages, "trip")
        failed = ask(url, "/v1/sessions/trip/save", {})
        assert failed.status == 500
        assert str(tmp_path) not in failed.text
        (tmp_path / "turns").unlink()
        (tmp_path / "away").rename(tmp_path / "turns")
        assert len(shown(url, "trip")["turns"]) == 2
        messages.append(user("And 9?"))
        chat(url, messages, "trip")
        assert len(shown(url, "trip")["turns"]) == 3


def test_sessions_of_another_model_or_in_use_elsewhere_are_refused(
    m2: Path, tmp_path: Path
) -> None:
    other = write_checkpoint(tmp_path / "other", "m1")
    with served_folder(other, sessions=tmp_path / "kept", model_name="secret/other") as url:
        chat(url, [user("hello")], "trip")
        shown(url, "trip")
    body = {"messages": [user("hello")], "max_tokens": 2}
    with served_folder(m2, sessions=tmp_path / "kept") as url:
        answer = ask(url, CHAT, {**body, "session": "trip"})
        assert answer.status == 409
        assert answer.json()["error"]["message"] == (
            "session 'trip' belongs to another model, it was begun with other"
        )
        tokens = ask(url, "/v1/sessions/trip/tokens?turn=1")
        assert (tokens.status, tokens.json()) == (409, answer.json())
        chat(url, [user("hello")], "mine")
        shown(url, "mine")
        with SessionStore(tmp_path / "kept").used_by_one("mine"):
            answer = ask(url, CHAT, {**body, "session": "mine"})
            assert answer.status == 409
            assert "in use by another process" in answer.json()["error"]["message"]
        assert ask(url, CHAT, {**body, "session": "mine"}).status == 200


def test_a_session_is_brought_back_when_the_cache_has_lost_it(folder: Path, tmp_path: Path) -> None:
    config = EngineConfig(max_num_seqs=1, kv_cache_bytes=2**20, max_model_len=768)
    with served_folder(folder, engine=config, sessions=tmp_path) as url:
        messages: list[Any] = [user(LONG)]
        chat(url, messages, "trip")
        again = [*messages, user("And 7 times 8?")]
        expected = chat(url, list(again), None)
        for number in range(40):
            chat(url, [user(f"{number} is another question. " * 20)])
        lost = chat(url, list(again), None)
        assert cached(lost) < 64
        for number in range(40):
            chat(url, [user(f"{number} is one more question. " * 20)])
        reply = chat(url, list(again), "trip")
        assert cached(reply) == cached(expected)
        assert bits(reply) == bits(expected) == bits(lost)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"n": 2}, "a session goes on with one answer"),
        ({"messages": [], "prompt_token_ids": [1, 2]}, "a session needs messages"),
        ({"session": 7}, "session is 7"),
    ],
)
def test_what_a_session_cannot_hold_is_refused(
    keeping: tuple[str, Path], fields: dict[str, Any], sentence: str
) -> None:
    url, _ = keeping
    body = {"messages": [user("hello")], "max_tokens": 2, "session": "x", **fields}
    answer = ask(url, CHAT, body)
    assert answer.status == 400
    assert sentence in answer.json()["error"]["message"]
    texts = ask(url, "/v1/completions", {"prompt": "x"}, headers={"fulmen-session": "x"})
    assert texts.status == 400
    assert ask(url, "/v1/sessions/x").status == 404


def test_a_server_without_sessions_says_so(m2: Path, tmp_path: Path) -> None:
    body = {"messages": [user("hello")], "max_tokens": 2, "session": "x"}
    with served_folder(m2) as url:
        assert ask(url, CHAT, body).status == 404
        assert ask(url, "/v1/sessions").status == 404
    with served(scripted("m2", "hello"), sessions=tmp_path) as url:
        assert ask(url, CHAT, body).status == 404
    with served_folder(m2, sessions=tmp_path, max_sessions=1) as url:
        assert ask(url, CHAT, body).status == 200
        assert shown(url, "x")["status"] == "idle"
        answer = ask(url, CHAT, {**body, "session": "y"})
        assert (answer.status, "delete some" in answer.text) == (409, True)
        assert ask(url, "/v1/sessions/x/fork", {"name": "y"}).status == 409
        assert ask(url, CHAT, body).status == 200


def test_replies_are_as_the_openapi_page_has_them(keeping: tuple[str, Path]) -> None:
    url, _ = keeping
    page = ask(url, "/openapi.json").json()
    schemas, paths = page["components"]["schemas"], page["paths"]
    for body in ("ChatBody", "MessagesBody", "ResponsesBody"):
        assert "session" in schemas[body]["properties"]
    for path, method, sent in (
        ("/v1/sessions", "get", None),
        ("/v1/sessions/{name}", "get", None),
        ("/v1/sessions/{name}/save", "post", {}),
        ("/v1/sessions/{name}/fork", "post", {"name": "forked"}),
        ("/v1/sessions/{name}/rewind", "post", {"turn": 1}),
    ):
        reply = paths[path][method]["responses"]["200"]["content"]["application/json"]["schema"]
        schema = schemas[reply["$ref"].rpartition("/")[2]]
        answer = ask(url, path.format(name="any"), sent).json()
        assert set(answer) == set(schema["properties"])
    ask(url, "/v1/sessions/forked", method="DELETE")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "ask", "edit", "fork", "rewind", "restart"]),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    min_size=2,
    max_size=7,
)
_QUESTIONS = [LONG, "And 7 times 8?", "Why so? " * 20, "Sure?"]


class Conversations:
    """Plain conversations with a model, side by side: the definition of what a server answers."""

    def __init__(self, folder: Path) -> None:
        self.llm = LLM.load(str(folder))
        self.kept: dict[str, Transcript] = {}

    def of(self, name: str) -> Transcript:
        if name not in self.kept:
            self.kept[name] = Transcript(self.llm.format, self.llm.tokenizer)
        return self.kept[name]

    def ask(self, name: str, question: str, num_turns: int) -> tuple[Any, Any]:
        """Ask after the first turns; return the ids and log-probabilities."""
        transcript = self.of(name)
        transcript.rewind(num_turns)
        messages = [*transcript.messages, Message("user", question)]
        params = replace(self.llm.defaults, max_tokens=12, seed=3, logprobs=0, thinking_budget=9)
        prompt = transcript.prompt(messages)
        completion = self.llm.chat(ChatRequest(messages=messages, prompt=prompt, params=params))
        transcript.add(messages, completion)
        return list(completion.answer_ids), [token.logprob for token in completion.tokens]


@given(steps=STEPS)
@settings(max_examples=examples(6), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_walk_through_sessions_is_answered_like_a_plain_conversation(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    kept = tmp_path_factory.mktemp("kept")
    plain = Conversations(folder)
    steps = [*steps, ("ask", 0, 1)]
    while steps:
        with served_folder(folder, sessions=kept) as url:
            while steps:
                kind, first, second = steps.pop(0)
                if kind == "restart":
                    break
                take(url, plain, kind, first, second)
            for name, transcript in plain.kept.items():
                replies = [turn.reply for turn in transcript.turns]
                if replies and all(reply.content or reply.thinking for reply in replies):
                    assert len(shown(url, name)["turns"]) == len(transcript.turns)


def take(url: str, plain: Conversations, kind: str, first: int, second: int) -> None:
    """Take a step on the server and in the plain conversations."""
    names = [name for name in plain.kept if plain.kept[name].turns] or ["s0"]
    name = names[first % len(names)]
    transcript = plain.of(name)
    count = len(transcript.turns)
    if kind in ("ask", "edit"):
        num_turns = count if kind == "ask" else second % (count + 1)
        if len(transcript.ids(num_turns)) > MOST_TOKENS:  # no room for another question
            num_turns = 0
        said = [m for turn in transcript.turns[:num_turns] for m in (*turn.messages, turn.reply)]
        messages = [{"role": m.role, "content": m.content} for m in said]
        question = _QUESTIONS[second]
        reply = chat(url, [*messages, user(question)], name)
        assert bits(reply) == plain.ask(name, question, num_turns)
    elif not count:
        return
    elif kind == "fork":
        new = f"s{len(plain.kept)}"
        num_turns = 1 + second % count
        assert ask(url, f"/v1/sessions/{name}/fork", {"name": new, "turn": num_turns}).status == 200
        plain.of(new).turns = transcript.turns[:num_turns]
    else:
        num_turns = 1 + second % count
        assert ask(url, f"/v1/sessions/{name}/rewind", {"turn": num_turns}).status == 200
        transcript.rewind(num_turns)
