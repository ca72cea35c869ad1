"""Files of requests: every line gets its result once, whatever stops a run in between."""

import asyncio
import errno
import json
import os
from collections import Counter
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

from fulmen.chat import ChatRequest, get_format
from fulmen.llm import LLM, LocalModel, ScriptedModel
from fulmen.server import Batch, BatchCounts, ServerConfig, create_app
from fulmen.server.batch_results import read_lines
from tests.server.helpers import ask, byte_tokenizer, last_message, served
from tests.tiny import write_checkpoint

CHAT = "/v1/chat/completions"


def chat(custom_id: str, content: str = "Hi", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": CHAT,
        "body": {"model": "any", "messages": messages, "max_tokens": 50, **body},
    }


def write(path: Path, lines: Sequence[Any]) -> Path:
    path.write_bytes(
        b"".join(
            (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n"
            for line in lines
        )
    )
    return path


def read(path: Path) -> list[Any]:
    text = path.read_text()
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def model(**options: Any) -> ScriptedModel:
    """Return a model that repeats what it is asked."""

    def say(request: ChatRequest) -> Any:
        if request.text is not None:
            return f"after {request.text}"
        return f"Hm.</think>\n\nsaid {last_message(request).content}"

    return ScriptedModel(
        get_format("minimax_m2"), repeat(say), tokenizer=byte_tokenizer("m2"), **options
    )


async def answer(source: Path, out: Path, **options: Any) -> BatchCounts:
    app = create_app(options.pop("model", None) or model(), ServerConfig(max_queued=100))
    with Batch(source, out) as batch:
        await batch.run(app, **{"max_running": 4, **options})
        return batch.counts


def run(source: Path, out: Path, **options: Any) -> BatchCounts:
    return asyncio.run(answer(source, out, **options))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "in.jsonl", tmp_path / "out.jsonl"


def test_every_route_answers_as_over_http(files: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = files
    llm = LLM.load(str(write_checkpoint(tmp_path / "m2", "m2")))
    user = [{"role": "user", "content": "Hi"}]
    fields = {"model": "any", "max_tokens": 12, "temperature": 0}
    bodies: dict[str, Any] = {
        CHAT: {**fields, "messages": user},
        "/v1/completions": {**fields, "prompt": ["Once", "Two"], "logprobs": 1},
        "/v1/responses": {
            "model": "any",
            "max_output_tokens": 12,
            "input": "Hi",
            "store": False,
            "temperature": 0,
        },
        "/v1/messages": {**fields, "messages": user},
        "/tokenize": {"prompt": "Hi"},
    }
    lines = [{"custom_id": url, "url": url, "body": body} for url, body in bodies.items()]
    lines.append({"custom_id": "anthropic", "params": bodies["/v1/messages"]})
    write(source, lines)

    async def work() -> BatchCounts:
        local = LocalModel(llm)
        try:
            return await answer(source, out, model=local)
        finally:
            await local.close()

    assert asyncio.run(work()) == BatchCounts(6, 6, 0)
    results = {result["custom_id"]: result for result in read(out)}
    local = LocalModel(llm)
    with served(local) as url:
        for path, body in bodies.items():
            result = results[path]
            assert set(result) == {"id", "custom_id", "response", "error"}
            assert result["error"] is None
            assert result["response"]["status_code"] == 200
            assert result["response"]["request_id"]
            expected = ask(url, path, body).json()
            assert told(result["response"]["body"]) == told(expected), path
        message = results["anthropic"]["result"]["message"]
        assert results["anthropic"]["result"]["type"] == "succeeded"
        assert told(message) == told(ask(url, "/v1/messages", bodies["/v1/messages"]).json())
    asyncio.run(local.close())


def told(value: Any) -> Any:
    """Return a reply without ids, times and the cache's account."""
    if isinstance(value, list):
        return [told(each) for each in value]
    if not isinstance(value, dict):
        return value
    names = (
        *("id", "created", "created_at", "completed_at", "signature", "encrypted_content", "model"),
        *("usage", "fulmen"),
    )
    return {name: told(each) for name, each in value.items() if name not in names}


def test_wrong_lines_get_errors_and_the_others_their_answers(files: tuple[Path, Path]) -> None:
    source, out = files
    lines: list[Any] = [
        chat("good", "one"),
        b"no json",
        b"",
        b"[1]",
        b"\xff\xfe",
        b"[" * 10_000,
        {"url": CHAT, "body": {}},
        {"custom_id": 7, "url": CHAT, "body": {}},
        {"custom_id": "method", "method": "GET", "url": CHAT, "body": {}},
        {"custom_id": "url", "url": "https://there/v1/chat/completions", "body": {}},
        {"custom_id": "body", "url": CHAT, "body": "text"},
        chat("stream", stream=True),
        {"custom_id": "background", "url": "/v1/responses", "body": {"background": True}},
        {"custom_id": "route", "url": "/v1/nothing", "body": {}},
        {"custom_id": "embeddings", "url": "/v1/embeddings", "body": {"input": "a"}},
        chat("temperature", temperature=5),
        {"custom_id": "claude", "params": {"messages": []}},
        {"custom_id": "claude stream", "params": {"messages": [], "stream": True}},
        chat("last \ud800", "two"),
    ]
    write(source, lines)
    counts = run(source, out)
    assert counts == BatchCounts(18, 2, 16)
    results = read(out)
    assert len(results) == 18
    by_id = {result["custom_id"]: result for result in results}
    for custom_id, said in (("good", "said one"), ("last \ud800", "said two")):
        body = by_id[custom_id]["response"]["body"]
        assert body["choices"][0]["message"]["content"] == said
    for custom_id, status in (("route", 404), ("embeddings", 501), ("temperature", 400)):
        response = by_id[custom_id]["response"]
        assert response["status_code"] == status
        assert response["body"]["error"]["message"]
    for custom_id, sentence in (
        ("method", "its method is 'GET', it must be POST"),
        ("url", "it must be a path such as /v1/chat/completions"),
        ("body", "its body is 'text', it must be an object"),
        ("stream", "its body.stream is True"),
        ("background", "its body.background is True"),
    ):
        error = by_id[custom_id]["error"]
        assert sentence in error["message"], error
        assert by_id[custom_id]["response"] is None
    for custom_id in ("claude", "claude stream"):
        assert by_id[custom_id]["result"]["type"] == "errored"
        assert by_id[custom_id]["result"]["error"]["error"]["type"] == "invalid_request_error"
    unnamed = [result["error"] for result in results if result["custom_id"] is None]
    assert sorted(error["line"] for error in unnamed) == [2, 4, 5, 6, 7, 8]
    assert all(f"in.jsonl, line {error['line']}: it" in error["message"] for error in unnamed)
    before = out.read_bytes()
    assert run(source, out, model=nobody()) == counts  # all have their result
    assert out.read_bytes() == before


def nobody() -> ScriptedModel:
    return ScriptedModel(get_format("minimax_m2"), [], tokenizer=byte_tokenizer("m2"))


@pytest.mark.parametrize(
    "torn",
    [b"", b"{", b'{"id":"batch', b'{"id":"batch_req_1","custom_id":"q3', b'{"custom_id":"q3'],
)
def test_a_run_that_was_stopped_goes_on_where_it_was(files: tuple[Path, Path], torn: bytes) -> None:
    source, out = files
    write(source, [chat(f"q{number}", f"question {number}") for number in range(30)])

    async def stopped() -> None:
        seen = asyncio.Event()

        def look(counts: BatchCounts) -> None:
            if counts.num_done >= 7:
                seen.set()

        task = asyncio.create_task(
            answer(source, out, model=model(delay_seconds=0.001), on_progress=look)
        )
        await seen.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(stopped())
    first = read(out)
    assert 7 <= len(first) < 30
    with out.open("ab") as file:
        file.write(torn)
    again = model()
    counts: list[int] = []
    done = run(source, out, model=again, on_progress=lambda each: counts.append(each.num_done))
    assert done == BatchCounts(30, 30, 0)
    assert counts[0] == len(first)
    assert len(again.requests) == 30 - len(first)
    results = read(out)
    assert results[: len(first)] == first
    assert Counter(result["custom_id"] for result in results) == {f"q{n}": 1 for n in range(30)}
    for result in results:
        said = result["response"]["body"]["choices"][0]["message"]["content"]
        assert said == f"said question {result['custom_id'][1:]}"


def test_a_whole_last_line_that_lacks_its_end_stays(files: tuple[Path, Path]) -> None:
    source, out = files
    write(source, [chat("a"), chat("b")])
    assert run(source, out).num_answered == 2
    out.write_bytes(out.read_bytes().splitlines()[0])
    assert run(source, out) == BatchCounts(2, 2, 0)
    assert len(read(out)) == 2


def test_no_more_run_at_once_than_told_and_all_places_are_used(files: tuple[Path, Path]) -> None:
    source, out = files
    write(source, [chat(f"{number}") for number in range(20)])
    busy: list[int] = []
    slow = model(delay_seconds=0.002)

    def look(counts: BatchCounts) -> None:
        if counts.num_left > 5:
            busy.append(slow.stats.num_running)

    run(source, out, model=slow, max_running=5, on_progress=look)
    assert max(busy) <= 5
    assert len(read(out)) == 20


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([chat("a"), chat("b"), chat("a")], "has the custom_id 'a' twice, in lines 1 and 3"),
        ([chat("a"), b"", b"no", {"custom_id": "a"}], "twice, in lines 1 and 4"),
    ],
)
def test_a_custom_id_that_stands_twice_is_a_sentence(
    files: tuple[Path, Path], lines: list[Any], sentence: str
) -> None:
    source, out = files
    write(source, lines)
    with pytest.raises(ValueError, match=sentence):
        run(source, out)
    assert not out.exists()


@pytest.mark.parametrize(
    "held",
    [
        b"notes of mine\n",
        b"notes of mine",
        b'{"custom_id": "a", "url": "/v1/chat/completions", "body": {}}\n',
        b'{"custom_id": "a", "url": "/v1/chat/completions", "body": {}}',
        b"[1]\n",
        b'{"a": 1}',
        b"\x00" * 100,
    ],
)
def test_a_file_that_holds_something_else_is_left_alone(
    files: tuple[Path, Path], held: bytes
) -> None:
    source, out = files
    write(source, [chat("a")])
    out.write_bytes(held)
    with pytest.raises(ValueError, match="line 1 is no result of a batch"):
        run(source, out)
    assert out.read_bytes() == held


def test_files_that_cannot_be_used_are_a_sentence(files: tuple[Path, Path]) -> None:
    source, out = files
    with pytest.raises(FileNotFoundError):
        run(source, out)
    write(source, [chat("a")])
    with pytest.raises(ValueError, match="holds the requests, results need a file of their own"):
        run(source, source)
    assert len(read(source)) == 1
    with pytest.raises(ValueError, match="is no regular file"):
        run(source, Path("/dev/null"))
    with Batch(source, out), pytest.raises(ValueError, match="written by another process"):
        run(source, out)
    assert run(source, out).num_answered == 1


def test_an_empty_file_has_no_results(files: tuple[Path, Path]) -> None:
    source, out = files
    source.write_bytes(b"\n\n")
    assert run(source, out) == BatchCounts(0, 0, 0)
    assert out.read_bytes() == b""


def test_a_full_disk_ends_the_run_and_keeps_whole_lines(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = files
    write(source, [chat(f"{number}") for number in range(20)])
    with monkeypatch.context() as patch:
        real, room = os.write, 3000

        def write_some(descriptor: int, data: bytes) -> int:
            nonlocal room
            if room <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            num = real(descriptor, data[: min(len(data), 400, room)])
            room -= num
            return num

        patch.setattr("fulmen.server.batch_results.os.write", write_some)
        with pytest.raises(OSError, match="No space left") as caught:
            run(source, out)
        assert caught.value.filename == str(out)
    kept = read(out)
    assert 0 < len(kept) < 20
    assert run(source, out).num_answered == 20
    assert read(out)[: len(kept)] == kept


def test_a_line_that_is_too_long_is_not_kept_in_memory(files: tuple[Path, Path]) -> None:
    source, _ = files
    write(source, [b"x" * 1000, chat("a"), b"y" * 50])
    found = list(read_lines(source, 300))
    assert [number for number, _ in found] == [1, 2, 3]
    assert (found[0][1], found[2][1]) == (None, b"y" * 50 + b"\n")
