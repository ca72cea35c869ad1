"""Sessions over HTTP beyond asking: begun with a conversation, named, searched, their tokens looked
at, and answers that go on from some of them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulmen.sessions import SessionStore, check
from tests.server.conversing import CHAT, LONG, RESPONSES, bits, chat, served_folder, shown, user
from tests.server.helpers import Answer, ask
from tests.tiny import write_checkpoint

SESSIONS = "/v1/sessions"
HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "Be short."},
    user("What is 6 times 7?"),
    {"role": "assistant", "content": "42.", "reasoning_content": "Six sevens."},
    user("And 7 times 8?"),
    user("Quick."),
    {"role": "assistant", "content": "56."},
]


@pytest.fixture(scope="module", params=["m1", "m2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def m2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "only-m2", "m2")


@pytest.fixture(scope="module")
def keeping(m2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server that keeps sessions, and its folder."""
    folder = tmp_path_factory.mktemp("sessions")
    with served_folder(m2, sessions=folder) as url:
        yield url, folder


def patch(url: str, name: str, metadata: Any, **headers: str) -> Answer:
    return ask(url, f"{SESSIONS}/{name}", {"metadata": metadata}, method="PATCH", headers=headers)


def sentence(answer: Answer) -> str:
    return str(answer.json()["error"]["message"])


# ---- begun ---------------------------------------------------------------------------------------


def test_an_empty_session_is_there_at_once_and_answers(keeping: tuple[str, Path]) -> None:
    url, _ = keeping
    begun = ask(url, SESSIONS, {"name": "empty", "metadata": {"title": "Numbers"}})
    assert begun.status == 200
    assert begun.json() == ask(url, f"{SESSIONS}/empty").json()
    assert (begun.json()["turns"], begun.json()["messages"]) == ([], [])
    assert begun.json()["metadata"] == {"title": "Numbers"}
    again = ask(url, SESSIONS, {"name": "empty", "messages": HISTORY})
    assert (again.status, sentence(again)) == (409, "there is a session 'empty' already")
    messages: list[Any] = [user(LONG)]
    expected = chat(url, [user(LONG)])
    assert bits(chat(url, messages, "empty")) == bits(expected)
    kept = shown(url, "empty")
    assert (len(kept["turns"]), kept["metadata"]) == (1, {"title": "Numbers"})


def test_a_conversation_from_elsewhere_goes_on_as_if_it_had_been_asked_without_a_session(
    folder: Path, tmp_path: Path
) -> None:
    question = user("And 9 times 9?")
    with served_folder(folder, sessions=tmp_path / "a") as url:
        begun = ask(url, SESSIONS, {"name": "trip", "messages": HISTORY}).json()
        assert [m["content"] for m in begun["messages"]] == [m["content"] for m in HISTORY]
        assert [turn["num_messages"] for turn in begun["turns"]] == [3, 3]
        assert [turn["answer_tokens"] for turn in begun["turns"]] == [0, 0]
        assert begun["tokens"] == 0
        assert ask(url, f"{SESSIONS}/trip/tokens?turn=1&top=3").json()["data"] == []
        forked = ask(url, f"{SESSIONS}/trip/fork", {"name": "first", "turn": 1}).json()
        assert forked["turns"] == begun["turns"][:1]
    assert check(SessionStore(tmp_path / "a")) == []
    with served_folder(folder, sessions=tmp_path / "a") as url:  # read back from its files
        said = [*HISTORY, question]
        reply = chat(url, said, "trip")
        assert [turn["state"] for turn in reply["fulmen"]["turns"]] == ["rendered", "rendered"]
        kept = shown(url, "trip")
        assert [turn["number"] for turn in kept["turns"]] == [1, 2, 3]
        assert kept["turns"][:2] == begun["turns"]
        assert kept["tokens"] == reply["usage"]["total_tokens"]
        more = chat(url, [*said, user("Sure?")], "trip")
        assert more["fulmen"]["turns"][-1]["state"] == "matched"
        edited = chat(url, [*HISTORY[:3], question], "first")
    with served_folder(folder) as url:
        assert bits(chat(url, [*HISTORY, question])) == bits(reply)
        assert bits(chat(url, [*HISTORY[:3], question])) == bits(edited)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": HISTORY[:-1]}, "the last message is of the role user"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0]"),
        ({"messages": [user("x"), {"role": "assistant", "content": 7}]}, "messages[1]"),
        ({"messages": [7]}, "messages[0]"),
        ({"messages": "x"}, "messages"),
        ({"messages": [user("x")] * 5001}, "messages"),
        ({"metadata": {"title": 7}}, "metadata"),
        ({"metadata": {str(number): number for number in range(17)}}, "it may have 16 entries"),
        ({"metadata": {"a": "x" * 40_000}}, "metadata has 40,001 characters, it may have 32,768"),
        ({"unknown": 1}, "unknown"),
        ({"name": "../x"}, "'../x'"),
    ],
)
def test_what_no_session_can_begin_with_is_refused_and_leaves_nothing(
    keeping: tuple[str, Path], body: dict[str, Any], said: str
) -> None:
    url, folder = keeping
    before = sorted(folder.rglob("*"))
    answer = ask(url, SESSIONS, {"name": "wrong", **body})
    assert (answer.status, said in sentence(answer)) == (400, True), answer.text
    assert sorted(folder.rglob("*")) == before
    assert ask(url, f"{SESSIONS}/wrong").status == 404


def test_a_session_that_cannot_be_written_is_not_begun(m2: Path, tmp_path: Path) -> None:
    with served_folder(m2, sessions=tmp_path, max_sessions=2) as url:
        (tmp_path / "turns").write_text("in the way")
        answer = ask(url, SESSIONS, {"name": "trip", "messages": HISTORY})
        assert answer.status == 500
        assert str(tmp_path) not in answer.text
        assert ask(url, SESSIONS).json()["data"] == []
        (tmp_path / "turns").unlink()
        assert ask(url, SESSIONS, {"name": "trip", "messages": HISTORY}).status == 200
        assert ask(url, SESSIONS, {"name": "other"}).status == 200
        many = ask(url, SESSIONS, {"name": "third"})
        assert (many.status, "delete some" in many.text) == (409, True)


def test_a_thousand_turns_are_taken_over_soon(keeping: tuple[str, Path]) -> None:
    url, _ = keeping
    history = [
        message
        for n in range(1000)
        for message in (user(f"{n}?"), {"role": "assistant", "content": f"{n}."})
    ]
    started = time.monotonic()
    answer = ask(url, SESSIONS, {"name": "long", "messages": history})
    assert len(answer.json()["turns"]) == 1000
    assert time.monotonic() - started < 60
    assert ask(url, f"{SESSIONS}/long", method="DELETE").status == 200


# ---- metadata ------------------------------------------------------------------------------------


def test_metadata_is_kept_over_a_restart_and_forked_with_the_session(
    m2: Path, tmp_path: Path
) -> None:
    messages: list[Any] = [user(LONG)]
    with served_folder(m2, sessions=tmp_path) as url:
        assert patch(url, "trip", {"title": "x"}).status == 404
        chat(url, messages, "trip")
        assert shown(url, "trip")["metadata"] == {}
        noted = patch(url, "trip", {"title": "Ärger 🦋", "group": "g"})
        assert noted.json()["metadata"] == {"title": "Ärger 🦋", "group": "g"}
        chat(url, [*messages, user("And 7 times 8?")], "trip")
        kept = shown(url, "trip")
        assert (len(kept["turns"]), kept["metadata"]["title"]) == (2, "Ärger 🦋")
    with served_folder(m2, sessions=tmp_path) as url:
        assert ask(url, f"{SESSIONS}/trip").json() == kept
        assert ask(url, SESSIONS).json()["data"][0]["metadata"]["group"] == "g"
        copy = ask(url, f"{SESSIONS}/trip/fork", {"name": "copy", "turn": 1}).json()
        assert copy["metadata"] == kept["metadata"]
        body = {"name": "other", "metadata": {"title": "Other"}}
        assert ask(url, f"{SESSIONS}/trip/fork", body).json()["metadata"] == {"title": "Other"}
        rewound = ask(url, f"{SESSIONS}/trip/rewind", {"turn": 1}).json()
        assert rewound["metadata"] == kept["metadata"]
        assert patch(url, "trip", {}).json()["metadata"] == {}
        assert ask(url, f"{SESSIONS}/copy").json()["metadata"] == kept["metadata"]


def test_metadata_has_limits_and_a_wrong_change_changes_nothing(keeping: tuple[str, Path]) -> None:
    url, _ = keeping
    ask(url, SESSIONS, {"name": "noted"})
    largest = {str(number): "ä" * 2000 for number in range(16)}
    assert patch(url, "noted", largest).json()["metadata"] == largest
    wrong: list[Any] = [
        *({**largest, "more": "x"}, {"a": "x" * 32_768}, {"a": 1}, {"a": None}, [], "x", None),
    ]
    for metadata in wrong:
        answer = patch(url, "noted", metadata)
        assert (answer.status, "metadata" in sentence(answer)) == (400, True)
        body = {"name": "not", "metadata": metadata}
        if metadata is not None:
            assert ask(url, f"{SESSIONS}/noted/fork", body).status == 400
    assert ask(url, f"{SESSIONS}/noted").json()["metadata"] == largest
    assert ask(url, f"{SESSIONS}/not").status == 404
    ask(url, f"{SESSIONS}/noted", method="DELETE")


def test_another_key_begins_notes_and_finds_only_its_own(m2: Path, tmp_path: Path) -> None:
    keys = ("sk-first-0123", "sk-second-4567")
    with served_folder(m2, sessions=tmp_path, api_keys=keys) as url:
        first, second = (f"Bearer {key}" for key in keys)
        headers = {"authorization": first}
        assert ask(url, SESSIONS, {"name": "trip", "messages": HISTORY}, headers=headers)
        assert patch(url, "trip", {"title": "Mine"}, authorization=first).status == 200
        headers = {"authorization": second}
        assert patch(url, "trip", {"title": "Yours"}, authorization=second).status == 404
        tokens = ask(url, f"{SESSIONS}/trip/tokens?turn=1", headers=headers)
        assert tokens.status == 404
        assert ask(url, f"{SESSIONS}?search=42", headers=headers).json()["data"] == []
        assert ask(url, SESSIONS, {"name": "trip"}, headers=headers).status == 200
        assert ask(url, SESSIONS, {"name": "trip"}).status == 401
        headers = {"authorization": first}
        assert ask(url, f"{SESSIONS}/trip", headers=headers).json()["metadata"]["title"] == "Mine"


# ---- search --------------------------------------------------------------------------------------


def test_a_search_finds_what_metadata_and_messages_say_page_by_page(
    m2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served_folder(m2, sessions=tmp_path) as url:
        for number in range(6):
            asked = user(f"What is {number}?")
            history = [asked, {"role": "assistant", "content": f"STRASSE {number % 2}"}]
            metadata = {"title": "Éclair"} if number == 3 else {}
            body = {"name": f"s{number}", "messages": history, "metadata": metadata}
            assert ask(url, SESSIONS, body).status == 200
        (tmp_path / "sessions" / "broken.json").write_text("{}")

        def found(text: str, limit: int = 20) -> list[str]:
            names, after, pages = list[str](), "", 0
            while True:
                query = f"{SESSIONS}?search={text}&limit={limit}{after}"
                page = ask(url, query).json()
                names += [one["id"] for one in page["data"]]
                pages += 1
                assert pages < 20
                if not page["has_more"]:
                    return names
                after = f"&after={page['last_id']}"

        assert found("stra%C3%9Fe%201") == ["s5", "s3", "s1"]
        assert found("%C3%89CLAIR") == ["s3"]
        assert found("what%20is%204") == ["s4"]
        assert found("nowhere") == []
        assert found("stra%C3%9Fe", limit=2) == [f"s{number}" for number in (5, 4, 3, 2, 1, 0)]
        monkeypatch.setattr("fulmen.server.sessions_reply._SEARCH_SECONDS", -1.0)
        first = ask(url, f"{SESSIONS}?search=what%20is%204").json()
        assert (first["data"], first["has_more"]) == ([], True)
        assert found("what%20is%204") == ["s4"]
        assert ask(url, f"{SESSIONS}?search={'x' * 201}").status == 400
        assert len(ask(url, f"{SESSIONS}?search=").json()["data"]) == 7


# ---- tokens --------------------------------------------------------------------------------------


def tokens_of(url: str, name: str, turn: int, top: int = 0) -> list[Any]:
    answer = ask(url, f"{SESSIONS}/{name}/tokens?turn={turn}&top={top}")
    assert answer.status == 200, answer.text
    data: list[Any] = answer.json()["data"]
    return data


def drawn(tokens: list[Any]) -> Any:
    """Return the ids of tokens and their log-probabilities."""
    return [token["id"] for token in tokens], [token["logprob"] for token in tokens]


def test_tokens_are_those_that_were_sampled_with_the_others_at_their_place(
    folder: Path, tmp_path: Path
) -> None:
    fields = {"max_tokens": 40, "top_logprobs": 5, "thinking_budget": 16, "temperature": 1.0}
    replies, messages = list[Any](), list[Any]()
    with served_folder(folder, sessions=tmp_path) as url:
        for question in (LONG, "And 7 times 8?"):
            messages.append(user(question))
            replies.append(chat(url, messages, "trip", **fields))
        shown(url, "trip")
    with served_folder(folder, sessions=tmp_path) as url:
        for turn, reply in enumerate(replies, 1):
            content = reply["choices"][0]["logprobs"]["content"]
            plain, full = (tokens_of(url, "trip", turn, top) for top in (0, 5))
            assert drawn(plain) == drawn(full) == bits(reply)
            assert all(token["top"] == [] for token in plain)
            for token, said in zip(full, content, strict=True):
                assert token["text"] == said["token"]
                tops = [(one["text"], one["logprob"]) for one in token["top"]]
                assert tops == [(one["token"], one["logprob"]) for one in said["top_logprobs"]]
            kinds = [token["kind"] for token in full]
            turn_object = shown(url, "trip")["turns"][turn - 1]
            assert turn_object["answer_tokens"] == len(full)
            used = reply["usage"]["completion_tokens_details"]
            assert turn_object["thinking_tokens"] == used["reasoning_tokens"]
            forced = [token["text"] for token in full if token["is_forced"]]
            assert ("thinking" in kinds) == ("</think>" in forced)  # where the budget ends it
        for query in ("turn=3", "turn=0", "", "turn=1&top=21", "turn=1&top=-1", "turn=x"):
            assert ask(url, f"{SESSIONS}/trip/tokens?{query}").status == 400, query
        assert ask(url, f"{SESSIONS}/nothing/tokens?turn=1").status == 404


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_an_answer_that_goes_on_from_some_of_its_tokens_is_the_same_in_greedy(
    path: str, folder: Path, tmp_path: Path
) -> None:
    question = {"input": LONG} if path == RESPONSES else {"messages": [user(LONG)]}
    limit = "max_output_tokens" if path == RESPONSES else "max_tokens"
    body = {**question, "temperature": 0}
    with served_folder(folder, sessions=tmp_path, answer_share=0.0) as url:
        assert ask(url, path, {**body, limit: 24, "session": "whole"}).status == 200
        shown(url, "whole")
        whole = tokens_of(url, "whole", 1, 5)
        ids = drawn(whole)[0]
        for count in (1, 9, 23):
            more = {**body, limit: 24 - count, "prefix_token_ids": ids[:count]}
            name = f"from-{count}"
            assert ask(url, path, {**more, "session": name}).status == 200
            kept = shown(url, name)
            assert kept["messages"] == shown(url, "whole")["messages"]
            again = tokens_of(url, name, 1, 5)
            assert [token["is_forced"] for token in again[:count]] == [True] * count
            assert drawn(again) == drawn(whole)
            assert [token["top"] for token in again] == [token["top"] for token in whole]


def test_a_reply_says_what_comes_after_the_tokens_it_began_with(m2: Path) -> None:
    fields: Any = {"max_tokens": 24, "temperature": 0, "thinking_budget": 9}
    with served_folder(m2) as url:
        whole = chat(url, [user(LONG)], **fields)
        ids = bits(whole)[0]
        for count in (4, 17):  # in the thought, and after it
            body = {"messages": [user(LONG)], **fields, "max_tokens": 24 - count}
            body["prefix_token_ids"] = ids[:count]
            message = ask(url, CHAT, body).json()["choices"][0]["message"]
            deltas = [
                chunk["choices"][0]["delta"]
                for chunk in ask(url, CHAT, {**body, "stream": True}).chunks()
                if chunk["choices"]
            ]
            for name in ("reasoning_content", "content"):
                streamed = "".join(delta.get(name) or "" for delta in deltas)
                assert (message.get(name) or "") == streamed
                assert whole["choices"][0]["message"][name].endswith(streamed)
            assert ("reasoning_content" in message) == (count == 4)
        said = {"role": "assistant", "content": whole["choices"][0]["message"]["content"]}
        more = chat(url, [user(LONG), said, user("?")])
        assert [turn["state"] for turn in more["fulmen"]["turns"]] == ["matched"]


def test_another_token_begins_a_branch_that_shares_only_what_it_has_in_common(
    folder: Path, tmp_path: Path
) -> None:
    with served_folder(folder, sessions=tmp_path) as url:
        chat(url, [user(LONG)], "trip", max_tokens=20)
        shown(url, "trip")
        tokens = tokens_of(url, "trip", 1, 5)
        assert ask(url, f"{SESSIONS}/trip/fork", {"name": "branch", "turn": 0}).status == 200
        other = next(one["id"] for one in tokens[7]["top"] if one["id"] != tokens[7]["id"])
        prefix = [*(token["id"] for token in tokens[:7]), other]
        fields: Any = {"max_tokens": 10, "prefix_token_ids": prefix}
        branch = chat(url, [user(LONG)], "branch", **fields)
        kept = shown(url, "branch")
        of_branch = tokens_of(url, "branch", 1)
        assert drawn(of_branch)[0] == [*prefix, *bits(branch)[0]]
        assert drawn(of_branch)[1][:7] == drawn(tokens)[1][:7]
        content = kept["messages"][-1]["content"]
        said = [user(LONG), {"role": "assistant", "content": content}]
        more = chat(url, [*said, user("?")], "branch")
        assert [turn["state"] for turn in more["fulmen"]["turns"]] == ["matched"]
        assert len(shown(url, "branch")["turns"]) == 2
        assert drawn(tokens_of(url, "trip", 1)) == drawn(tokens)
    with served_folder(folder) as url:  # nothing is known here
        assert bits(chat(url, [user(LONG)], **fields)) == bits(branch)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prefix_token_ids": [10**9]}, "prefix_token_ids has 1000000000 in it"),
        ({"prefix_token_ids": [-1]}, "prefix_token_ids has -1 in it"),
        ({"prefix_token_ids": ["x"]}, "prefix_token_ids"),
        ({"prefix_token_ids": [65] * 5000}, "too long"),
        (
            {
                "prefix_token_ids": [65],
                "continue_final_message": True,
                "messages": [user("x"), {"role": "assistant", "content": "y"}],
            },
            "only one of them can be",
        ),
    ],
)
def test_what_no_answer_can_begin_with_is_refused(
    keeping: tuple[str, Path], fields: dict[str, Any], said: str
) -> None:
    url, _ = keeping
    answer = ask(url, CHAT, {"messages": [user("x")], "max_tokens": 2, **fields})
    assert (answer.status, said in sentence(answer)) == (400, True), answer.text


# ---- running -------------------------------------------------------------------------------------


def test_whoever_comes_back_finds_the_answer_that_runs_and_follows_it(
    m2: Path, tmp_path: Path
) -> None:
    history: list[Any] = [*HISTORY, user("And 9 times 9?"), user("Quick.")]
    body = {
        "input": [{"role": one["role"], "content": one["content"]} for one in history],
        "session": "trip",
        "background": True,
        "temperature": 0,
    }
    with served_folder(m2, sessions=tmp_path) as url:
        assert ask(url, SESSIONS, {"name": "trip", "messages": HISTORY}).status == 200
        started = ask(url, RESPONSES, {**body, "max_output_tokens": 300}).json()
        running = ask(url, f"{SESSIONS}/trip").json()
        assert (running["status"], running["response_id"]) == ("answering", started["id"])
        assert [one["content"] for one in running["asked"]] == ["And 9 times 9?", "Quick."]
        assert len(running["turns"]) == 2
        assert patch(url, "trip", {"title": "Meanwhile"}).status == 200
        followed = ask(url, f"{RESPONSES}/{started['id']}?stream=true").chunks()
        assert followed[0]["type"] == "response.created"
        assert followed[-1]["type"] in ("response.completed", "response.incomplete")
        kept = shown(url, "trip")
        assert (kept["status"], kept["response_id"], kept["asked"]) == ("idle", None, [])
        assert len(kept["turns"]) == 3
        assert kept["metadata"] == {"title": "Meanwhile"}
        said = "".join(
            one["delta"] for one in followed if one["type"] == "response.output_text.delta"
        )
        assert kept["messages"][-1]["content"] == said
        started = ask(url, RESPONSES, {**body, "max_output_tokens": 100_000}).json()
        assert ask(url, f"{RESPONSES}/{started['id']}/cancel", {}).json()["status"] == "cancelled"
        assert shown(url, "trip")["response_id"] is None
