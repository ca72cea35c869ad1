"""Tokens over HTTP: ids of texts and conversations are those of the model, there and back."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fulmen.chat import get_format
from fulmen.llm import ScriptedModel
from fulmen.server.routes.absent import ABSENT
from tests.examples import examples
from tests.server.helpers import answering, ask, byte_tokenizer, served
from tests.server.test_completions import bos_model

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "What is 6 times 7? 🦩"}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module", params=["m1", "m2"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def url(kind: str) -> Iterator[str]:
    thought = "<think>\nHm.\n</think>\nFine." if kind == "m1" else "Hm.</think>\n\nFine."
    with served(answering(kind, lambda _: thought)) as url:
        yield url


def tokenized(url: str, **body: Any) -> Any:
    answer = ask(url, "/tokenize", body)
    assert answer.status == 200, answer.body
    return answer.json()


@settings(max_examples=examples(60), deadline=None)
@given(text=st.lists(st.sampled_from(["]~b]", "<think>", "[e~[", "é", "🦩", "a b", "\n"])))
def test_a_text_comes_back_from_its_tokens(url: str, kind: str, text: list[str]) -> None:
    given_text, tokenizer = "".join(text), byte_tokenizer(kind)
    reply = tokenized(url, prompt=given_text, return_token_strs=True)
    assert reply["tokens"] == tokenizer.encode(given_text)
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"])
    assert reply["token_strs"] == [tokenizer.token(id) for id in reply["tokens"]]
    assert reply["max_model_len"] == 2**20
    back = ask(url, "/detokenize", {"tokens": reply["tokens"]})
    assert back.json() == {"prompt": given_text}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tools": [WEATHER]},
        {"messages": [{"role": "system", "content": "Be brief."}, USER]},
        {
            "messages": [USER, {"role": "assistant", "content": "It is"}],
            "continue_final_message": True,
        },
    ],
)
def test_tokens_of_a_conversation_are_those_of_its_answers_prompt(
    url: str, fields: dict[str, Any]
) -> None:
    body = {"messages": [USER], **fields}
    reply = ask(url, CHAT, {**body, "return_token_ids": True})
    if body.get("continue_final_message"):  # a script does not begin with what it is given
        assert reply.status == 400
        begun = {**body, "continue_final_message": False, "messages": [USER]}
        ids = ask(url, CHAT, {**begun, "return_token_ids": True}).json()["prompt_token_ids"]
        assert tokenized(url, **body)["tokens"][: len(ids)] == ids
        assert tokenized(url, **body)["count"] > len(ids)
        return
    ids = reply.json()["prompt_token_ids"]
    assert tokenized(url, **body)["tokens"] == ids
    assert tokenized(url, **body, add_generation_prompt=True)["count"] == len(ids)
    said = {"role": "assistant", "content": reply.json()["choices"][0]["message"]["content"]}
    longer = {**body, "messages": [*body["messages"], said, USER]}
    ids = ask(url, CHAT, {**longer, "return_token_ids": True}).json()["prompt_token_ids"]
    assert tokenized(url, **longer)["tokens"] == ids


def test_the_beginning_of_the_answer_can_be_left_out(url: str, kind: str) -> None:
    format = get_format({"m1": "minimax_m1", "m2": "minimax_m2"}[kind])
    expected = format.encode([USER], None, False, tokenizer=byte_tokenizer(kind))
    reply = tokenized(url, messages=[USER], add_generation_prompt=False)
    assert reply["tokens"] == expected
    assert reply["tokens"] == tokenized(url, messages=[USER])["tokens"][: len(expected)]


def test_what_the_tokenizer_puts_around_a_text_can_be_left_out() -> None:
    model = bos_model(0)
    ids = model.tokenizer.encode("Hi")
    with served(model) as url:
        assert tokenized(url, prompt="Hi")["tokens"] == [model.tokenizer.bos_token_id, *ids]
        assert tokenized(url, prompt="Hi", add_special_tokens=False)["tokens"] == ids
        info = ask(url, "/tokenizer_info").json()
    assert info["bos_token"] == "<begin_of_document>"
    assert info["eos_token"] == "<end_of_sentence>"


def test_the_tokenizer_is_told(url: str, kind: str) -> None:
    info = ask(url, "/tokenizer_info").json()
    tokenizer = byte_tokenizer(kind)
    assert info["eos_token"] == tokenizer.special_tokens["eos_token"]
    assert info["vocab_size"] == tokenizer.vocab_size
    assert (info["bos_token"], info["chat_template"]) == (None, None)
    assert info["tokenizer_class"]


def test_peers_other_paths_work_too(url: str) -> None:
    reply = ask(url, "/v1/tokenize", {"prompt": "Hi"})
    assert reply.json() == tokenized(url, prompt="Hi")
    reply = ask(url, "/v1/detokenize", {"tokens": reply.json()["tokens"]})
    assert reply.json() == {"prompt": "Hi"}


@pytest.mark.parametrize(
    ("path", "body", "sentence"),
    [
        ("/tokenize", {}, "neither prompt nor messages"),
        ("/tokenize", {"prompt": "a", "messages": [USER]}, "prompt and messages are given"),
        ("/tokenize", {"prompt": "a", "tools": [{"type": 7}]}, "tools are given with prompt"),
        ("/tokenize", {"prompt": "\ud800"}, "half of a surrogate pair"),
        ("/tokenize", {"prompt": 7}, "prompt"),
        ("/tokenize", {"messages": []}, "messages is empty"),
        ("/tokenize", {"messages": [{"role": "cat", "content": "a"}]}, "'cat'"),
        ("/detokenize", {"tokens": [10**7]}, "tokens has 10000000 in it, it must hold ids from"),
        ("/detokenize", {"tokens": [-1]}, "tokens has -1 in it"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
    ],
)
def test_what_is_wrong_is_named(url: str, path: str, body: Any, sentence: str) -> None:
    answer = ask(url, path, body)
    assert answer.status == 400, answer.body
    assert sentence in answer.json()["error"]["message"]


def test_no_text_and_no_ids_are_none(url: str) -> None:
    assert tokenized(url, prompt="")["tokens"] == []
    assert ask(url, "/detokenize", {"tokens": []}).json() == {"prompt": ""}


def test_a_model_that_tells_no_tokens_says_so() -> None:
    with served(ScriptedModel(get_format("minimax_m2"), [])) as url:
        for path, body in (
            ("/tokenize", {"prompt": "a"}),
            ("/detokenize", {"tokens": [1]}),
            ("/tokenizer_info", None),
        ):
            assert ask(url, path, body).status == 501


@pytest.mark.parametrize("path", ABSENT)
def test_what_this_server_has_not_it_says_in_a_sentence(url: str, path: str) -> None:
    path = path.replace("{path:path}", "speech")
    form = {"content-type": "multipart/form-data; boundary=x"}
    for body, headers in (({"input": "a"}, None), (b"--x--\r\n", form)):
        answer = ask(url, path, body, headers=headers)
        assert answer.status == 501
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["message"].startswith("this server generates text and ")
