"""fulmen serve: one line on stdout, a server behind it, and sentences for what cannot be."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import called
from tests.tiny import write_checkpoint
from tests.warm import python

KEY = "sk-first-0123"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny-m2", "m2")


@contextlib.contextmanager
def served(
    *arguments: str | Path, home: Path
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """Run `fulmen serve` in an empty home; give its address, and in the end what it printed."""
    command = python("-m", "fulmen", "serve", *arguments, "--port", "0")
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PYTHONPATH": ":".join(sys.path)}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"FULMEN_API_KEY": "sk-environment"},
    )
    printed: list[str] = []
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            pytest.fail(process.communicate(timeout=20)[1])
        yield process, url, printed
        process.send_signal(signal.SIGTERM)
        printed += process.communicate(timeout=30)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def ask(url: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
    headers = {"content-type": "application/json"}
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers), timeout=60
        ) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def root_of(url: str, key: str = "") -> str:
    """Return the type of what a browser finds at the address."""
    headers = {"accept": "text/html", "authorization": f"Bearer {key}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
        return str(answer.headers.get_content_type())


CHAT = {"model": "any", "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 4}


def test_the_address_is_the_one_line_and_both_dialects_answer(folder: Path, tmp_path: Path) -> None:
    with served(folder, home=tmp_path) as (process, url, printed):
        assert url.startswith("http://127.0.0.1:")
        assert ask(f"{url}/ready")[0] == 200
        assert root_of(url) == "text/html"
        assert ask(f"{url}/v1/models")[1]["data"][0]["id"] == "tiny-m2"
        status, answer = ask(f"{url}/v1/chat/completions", CHAT)
        assert (status, answer["usage"]["completion_tokens"]) == (200, 4)
        status, answer = ask(f"{url}/v1/messages", CHAT)
        assert (status, answer["usage"]["output_tokens"]) == (200, 4)
    out, err = printed
    assert out == ""
    assert process.returncode == 0
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "path=/v1/" in line]
    assert len(lines) == 3
    assert "new_tokens=4" in lines[1]
    assert "secret" not in err
    assert (tmp_path / ".local/share/fulmen/transcripts.sqlite3").exists()


def test_settings_of_the_server_and_of_sampling_hold(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsk-second-4567\n")
    keys.chmod(0o600)
    arguments: list[str | Path] = [
        *(folder, "--api-key", KEY, "--api-key-file", keys, "--no-transcripts"),
        *("--model-name", "m2", "--alias", "gpt-4o", "--alias", "claude", "--strict-model-names"),
        *("--max-tokens", "3", "--max-body", "1KiB", "--log-format", "json", "--log-content"),
        "--no-page",
    ]
    with served(*arguments, home=tmp_path) as (process, url, printed):
        for key in (None, "sk-environment", "sk-third-8901"):
            assert ask(f"{url}/v1/models", key=key)[0] == 401
        assert root_of(url, KEY) == "application/json"
        listed = ask(f"{url}/v1/models", key="sk-second-4567")[1]["data"]
        assert [each["id"] for each in listed] == ["m2", "gpt-4o", "claude"]
        few = {**CHAT, "model": "claude"}
        del few["max_tokens"]
        status, answer = ask(f"{url}/v1/chat/completions", few, KEY)
        assert (status, answer["usage"]["completion_tokens"]) == (200, 3)
        assert ask(f"{url}/v1/chat/completions", {**few, "model": "other"}, KEY)[0] == 404
        large = {**few, "user": "x" * 2000}
        assert ask(f"{url}/v1/chat/completions", large, KEY)[0] == 413
    assert process.returncode == 0
    out, err = printed
    assert out == ""
    assert not list(tmp_path.rglob("*.sqlite3*"))
    lines = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [line["status"] for line in lines if "chat" in line["path"]] == [200, 404, 413]
    assert any("a secret" in line.get("question", "") for line in lines)
    for key in (KEY, "sk-second-4567", "sk-third-8901", "sk-environment"):
        assert key not in err


def test_an_interrupt_while_a_model_is_loaded_is_quiet(folder: Path, tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from fulmen import cli, llm\n"
        "def load(*_, **__): os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(20)\n"
        "llm.LLM.load = load\n"
        f"sys.argv = ['fulmen', 'serve', {str(folder)!r}, '--port', '0', '--no-transcripts']\n"
        "cli.main()"
    )
    run = subprocess.run(python("-c", program), capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (130, "")
    assert "Traceback" not in run.stderr


def test_a_server_that_is_killed_goes_on_with_a_saved_session(folder: Path, tmp_path: Path) -> None:
    name = {"session": "trip", "max_tokens": 6, "seed": 5, "return_token_ids": True}
    question = {"role": "user", "content": "a long question " * 30}
    first = {**name, "messages": [question], "logprobs": True}

    def second(answer: Any) -> Any:
        said = {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
        return {**first, "messages": [question, said, {"role": "user", "content": "and?"}]}

    with served(folder, home=tmp_path / "a") as (_, url, _):
        status, answer = ask(f"{url}/v1/chat/completions", first)
        assert status == 200
        assert ask(f"{url}/v1/sessions/trip/save", {})[0] == 200
        expected = ask(f"{url}/v1/chat/completions", second(answer))[1]
    with served(folder, "--no-transcripts", home=tmp_path / "b") as (process, url, _):
        assert ask(f"{url}/v1/chat/completions", first)[1]["choices"] == answer["choices"]
        assert ask(f"{url}/v1/sessions/trip/save", {})[0] == 200
        process.kill()
        process.wait()
    with served(folder, "--no-transcripts", home=tmp_path / "b") as (process, url, _):
        reply = ask(f"{url}/v1/chat/completions", second(answer))[1]
        assert reply["choices"] == expected["choices"]
        assert reply["usage"] == expected["usage"]
        assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] > 64
    store = tmp_path / "b/.local/share/fulmen/sessions"
    listed = json.loads(called("sessions", "list", "--json", "--store", store).stdout)
    assert [(each["name"], each["turns"]) for each in listed] == [("trip", 2)]
    assert called("sessions", "check", "--store", store).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--host", "0.0.0.0"), "--host is 0.0.0.0, which other machines reach"),
        (("--host", "::"), "--host is ::, which other machines reach"),
        (("--host", "0.0.0.0", "--api-key-file", "missing"), "missing: no such file"),
        (("--api-key", "with blank"), "has a character that a header cannot carry"),
        (("--transcripts", "a", "--no-transcripts"), "one of them has no effect"),
        (("--sessions", "a", "--no-sessions"), "one of them has no effect"),
        (("smollm2", "--model", "other"), "the model is given twice"),
        (("a", "a"), "two models are called a, each must have a name of its own"),
        (("a", "b", "--upstream", "http://c"), "--upstream is given with 2 models, a and b"),
        (("a", "b", "--model-name", "c"), "it goes with one: --alias c=a adds a name"),
        (("a", "b", "--alias", "c=d"), "--alias has 'c=d', it must be NAME, or NAME=MODEL with"),
        (("--volatile-line", "("), "no regular expression"),
        (("--max-queued", "-1"), "--max-queued"),
        (("--drain-seconds", "0"), "--drain-seconds is 0"),
        (("--max-num-seqs", "0"), "--max-num-seqs"),
        (("--temperature", "-1"), "--temperature"),
        (("--log-format", "xml"), "xml"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = ("./missing-model",) if arguments[0].startswith("--") else ()
    run = called("serve", *model, "--port", "0", *arguments)
    assert run.returncode in (1, 2)
    assert run.stdout == ""
    assert sentence in " ".join(run.stderr.split())
    assert "Traceback" not in run.stderr


def test_an_upstream_goes_with_a_model() -> None:
    run = called("serve", "--port", "0", "--upstream", "http://127.0.0.1:9")
    assert (run.returncode, run.stdout) == (2, "")
    assert "--upstream is given without a model; name the one" in " ".join(run.stderr.split())


def test_a_port_that_is_taken_is_told_before_a_model_is_looked_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        run = called("serve", tmp_path / "missing", "--no-transcripts", "--port", str(port))
    assert run.returncode == 1
    assert run.stderr.splitlines() == [
        f"fulmen: 127.0.0.1:{port} is taken by another program, choose another port"
    ]
