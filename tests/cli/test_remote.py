"""Commands that talk to a model at a URL: they print what they print of one that is here."""

import json
import os
import signal
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fulmen.chat import Message
from fulmen.cli.conversation import Conversation
from fulmen.cli.converse import _converse
from fulmen.cli.remote import open_remote, url_key
from tests.cli.test_cli import assert_refused, called
from tests.server.helpers import answering, served, served_checkpoint
from tests.server.test_batch import chat, read, write
from tests.tiny import write_checkpoint

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m2"), "m2")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served_checkpoint("m2", answer_share=0) as address:
        yield address


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FULMEN_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_chat_prints_the_same_answer(folder: Path, url: str, dialect: str) -> None:
    flags = ("chat", "Hello", "--max-tokens", "12", "--temperature", "0", "--thinking-budget", "3")
    here = called(*flags, "--model", folder)
    there = called(*flags, "--url", url, "--url-dialect", dialect)
    assert here.returncode == there.returncode == 0, there.stderr
    assert there.stdout.strip() == here.stdout.strip()
    assert "stopped at the token limit" in there.stderr


def test_generate_prints_the_same_text_and_tokens(folder: Path, url: str) -> None:
    flags: tuple[str, ...] = ("generate", "Once", "--max-tokens", "9", "--seed", "1")
    plain = [called(*flags, *where) for where in (("--model", folder), ("--url", url))]
    assert plain[0].stdout == plain[1].stdout != ""
    flags = (*flags, "--json", "--logprobs", "2")
    here = json.loads(called(*flags, "--model", folder).stdout)
    there = json.loads(called(*flags, "--url", url).stdout)
    tops = [token.pop("top_logprobs") for token in there["tokens"]]
    assert all(len(top) in (2, 3) for top in tops)  # the drawn one may be a third
    for token in here["tokens"]:
        del token["top_logprobs"]
    assert there == here


def test_generate_says_whose_limit_it_met(url: str) -> None:
    run = called("generate", "Once", "--url", url, "--seed", "1")
    assert run.stderr == "stopped at the server's limit, --max-tokens sets another\n"


def test_batch_asks_the_server_and_goes_on_where_it_was_down(url: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    claude = {"model": "x", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    write(
        source,
        [
            *(chat(f"q{number}", max_tokens=4) for number in range(5)),
            {"custom_id": "c", "params": claude},
        ],
    )
    down = called("batch", source, out, "--url", NOWHERE)
    assert down.returncode == 1
    assert "stopped with 0 of 6 requests done" in down.stderr
    assert f"{NOWHERE}/v1 cannot be reached" in down.stderr
    assert not read(out)
    up = called("batch", source, out, "--url", url)
    assert up.returncode == 0, up.stderr
    results = {result["custom_id"]: result for result in read(out)}
    counts = [
        results[f"q{number}"]["response"]["body"]["usage"]["completion_tokens"]
        for number in range(5)
    ]
    assert counts == [4] * 5
    assert results["c"]["result"]["message"]["usage"]["output_tokens"] == 4
    write(source, [*(chat(f"q{number}") for number in range(5)), chat("hot", temperature=9)])
    hot = called("batch", source, out, "--url", url)
    assert hot.returncode == 1
    (refused,) = (result for result in read(out) if result["custom_id"] == "hot")
    assert refused["response"]["status_code"] == 400
    assert "temperature is 9" in refused["response"]["body"]["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("chat", "Hi", "--session", "a"), "--session is for a model on this machine"),
        (("chat", "Hi", "--keep-thoughts"), "--keep-thoughts is for a model on this machine"),
        (("chat", "Hi", "--max-model-len", "99"), "--max-model-len is for a model on this"),
        (("generate", "Hi", "--dtype", "float32"), "--dtype is for a model on this machine"),
        (("batch", "a", "b", "--temperature", "0"), "--temperature is for a model on this"),
        (("batch", "a", "b", "--max-answers", "2"), "--max-answers is for a model on this"),
        (("generate", "Hi", "--json", "--prompt-logprobs", "0"), "--prompt-logprobs is 0, a model"),
    ],
)
def test_what_a_url_cannot_do_is_refused(
    arguments: tuple[str, ...], sentence: str, url: str
) -> None:
    assert_refused(called(*arguments, "--url", url), sentence)


def test_options_of_a_url_need_one() -> None:
    assert_refused(called("chat", "Hi", "--url-key", "k"), "--url-key is given, it needs --url")


def test_what_is_not_there_is_one_sentence() -> None:
    run = called("chat", "Hi", "--url", "ftp://fake")
    assert_refused(run, "ftp://fake/v1 is no URL of a server")
    run = called("bench", "--url", "http://fake")
    assert "No such option: --url, it is for chat, generate, batch, scale and" in run.stderr


def test_a_conversation_flows_as_with_a_model_that_is_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []

    def say(text: str) -> str:
        asked.append(text)
        return f"Hm.</think>\n\nYou said {text}, {len(asked)}."

    lines = iter(
        ["one", "two", "/retry", "/undo", "/set temperature 0.5", "/set", "/stats", "/exit"]
    )

    class Typed:
        def read(self) -> str:
            return next(lines)

    with (
        served(answering("m2", say), model_name="tiny") as address,
        open_remote(address, None, "auto", None, {}) as remote,
    ):
        assert remote.describe() == f"tiny at {address}/v1 (fulmen)"
        conversation = Conversation(remote, remote.params, system="Be brief.")
        _converse(conversation, Typed())
        assert conversation.messages == [
            Message("system", "Be brief."),
            Message("user", "one"),
            Message("assistant", "You said one, 1.", "Hm."),
        ]
        assert remote.sent == {"temperature"}
    assert asked == ["one", "two", "two"]
    out, err = capsys.readouterr()
    assert out.splitlines() == ["You said one, 1.", "You said two, 2.", "You said two, 3."]
    assert "temperature = 0.5" in err
    assert "top_p" not in err
    assert "new tokens" in err


def test_a_turn_that_failed_leaves_no_trace(capsys: pytest.CaptureFixture[str]) -> None:
    def say(text: str) -> Any:
        if text == "fail":
            raise ValueError("no such line")
        return "Hm.</think>\n\nYes."

    lines = iter(["one", "fail", "/exit"])

    class Typed:
        def read(self) -> str:
            return next(lines)

    with served(answering("m2", say)) as address, open_remote(address, None, "auto", None, {}) as r:
        conversation = Conversation(r, r.params)
        _converse(conversation, Typed())
        assert len(conversation.messages) == 2
    assert "no such line" in capsys.readouterr().err


def test_ctrl_c_ends_an_answer_and_keeps_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    model = answering("m2", lambda text: "Hm.</think>\n\n" + "word " * 500, delay_seconds=0.02)
    with served(model) as address, open_remote(address, None, "auto", None, {}) as remote:
        remote.describe()
        conversation = Conversation(remote, remote.params)
        timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        completion = conversation.ask("Hi")
        timer.join()
        assert completion.finish_reason == "abort"
        assert completion.reply.content.startswith("word word")
        assert conversation.messages[-1].content == completion.reply.content
        deadline = time.monotonic() + 20
        while model.counts["num_running"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not model.counts["num_running"]
    assert "(stopped)" in capsys.readouterr().err


def test_a_batch_stops_where_the_key_is_wrong(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(source, [chat("a"), chat("b")])
    with served(answering("m2", lambda text: "Hm.</think>\n\nYes."), api_keys=("right",)) as url:
        run = called("batch", source, out, "--url", url, "--url-key", "wrong", "--model", "m")
        assert run.returncode == 1
        assert "stopped with 0 of 2 requests done" in run.stderr
        assert "answered with 401" in run.stderr
        assert not read(out)
        assert called("batch", source, out, "--url", url, "--url-key", "right").returncode == 0
    assert [result["response"]["status_code"] for result in read(out)] == [200, 200]


@pytest.mark.parametrize(
    ("status", "headers", "sentence"),
    [
        (502, "", "answered with 502"),
        (504, "", "answered with 504"),
        (408, "", "answered with 408"),
        (302, "location: http://elsewhere/\r\n", "sends elsewhere"),
        (200, "content-encoding: gzip\r\n", "answered compressed"),
    ],
)
def test_a_batch_stops_where_what_comes_is_no_answer(
    status: int, headers: str, sentence: str, tmp_path: Path
) -> None:
    class Gateway(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            head = self.rfile.readline()
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    size = int(line.split(b":")[1])
            if head.startswith(b"POST"):
                self.rfile.read(size)
            text = f"HTTP/1.1 {status} X\r\n{headers}content-length: 2\r\nconnection: close"
            self.wfile.write(text.encode() + b"\r\n\r\n{}")

    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(source, [chat("a"), chat("b")])
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Gateway) as gateway:
        threading.Thread(target=gateway.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{gateway.server_address[1]}"
        run = called("batch", source, out, "--url", url, "--url-dialect", "openai", "--model", "m")
        gateway.shutdown()
    assert run.returncode == 1
    assert "stopped with 0 of 2 requests done" in run.stderr
    assert sentence in run.stderr
    assert not read(out)


def test_a_key_is_found_by_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "o")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a")
    assert url_key(None, "http://fake", "auto") == "o"
    assert url_key(None, "http://fake/anthropic", "auto") == "a"
    assert url_key(None, "http://fake", "anthropic") == "a"
    monkeypatch.setenv("FULMEN_API_KEY", "f")
    assert url_key(None, "http://fake", "openai") == "f"
    assert url_key("k", "http://fake", "openai") == "k"


def test_a_key_reaches_the_server() -> None:
    with served(answering("m2", lambda text: "Hm.</think>\n\nYes."), api_keys=("right",)) as url:
        right = called("chat", "Hi", "--url", url, "--url-key", "right")
        wrong = called("chat", "Hi", "--url", url, "--url-key", "wrong")
    assert right.stdout == "Yes.\n"
    assert wrong.returncode == 1
    assert "is the key right?" in wrong.stderr
    assert "wrong" not in wrong.stderr.replace("is the key right", "")
