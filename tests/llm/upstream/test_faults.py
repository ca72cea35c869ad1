"""An upstream that hangs, dies or lies: a sentence in time, and nothing lost of what came."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from hypothesis import given
from hypothesis import strategies as st

from fulmen.chat import ChatRequest, complete
from fulmen.engine import Choice
from fulmen.llm import PeerConfig, PeerError, UpstreamModel
from fulmen.llm.answer import Answer
from fulmen.llm.upstream.sglang import SGLangWire
from fulmen.llm.upstream.vllm import VllmWire
from fulmen.llm.upstream.wire import Chunk, Draw, Wire
from fulmen.sampling import SamplingParams
from tests.llm.upstream.fakes import running
from tests.server.helpers import byte_tokenizer
from tests.tiny import write_checkpoint

VOCAB = 300
DRAW = Draw(
    ids=[1, 2, 3], max_tokens=5, params=SamplingParams(logprobs=1), seed=1, stop_token_ids=[299]
)
WIRES: dict[str, Wire] = {"sglang": SGLangWire(VOCAB), "vllm": VllmWire(VOCAB, model="m")}


def event(kind: str, ids: Sequence[Any], **changes: Any) -> dict[str, Any]:
    """Return an event that brings these ids; changes go into its one choice or its meta_info."""
    if kind == "vllm":
        logprobs = {
            "token_logprobs": [-0.5] * len(ids),
            "top_logprobs": [{f"token_id:{token_id}": -0.5} for token_id in ids],
        }
        choice = {"text": "?", "token_ids": ids, "logprobs": logprobs, "finish_reason": None}
        return {"choices": [{**choice, **changes}]}
    meta = {
        "completion_tokens": len(ids),
        "output_token_logprobs": [[-0.5, token_id, None] for token_id in ids],
        "output_top_logprobs": [[[-0.5, token_id, None]] for token_id in ids],
        "finish_reason": None,
    }
    return {"text": "?", "output_ids": ids, "meta_info": {**meta, **changes}}


LIES: dict[str, dict[str, list[Any]]] = {
    "vllm": {
        "an id outside the vocabulary": [event("vllm", [VOCAB])],
        "a negative id": [event("vllm", [-1])],
        "an id that is a text": [event("vllm", ["7"])],
        "an id that is true": [event("vllm", [True])],
        "text without ids": [{"choices": [{"text": "Hello", "token_ids": None}]}],
        "no choices": [{"object": "text_completion"}],
        "choices of nothing": [{"choices": [None]}],
        "ids that are no list": [event("vllm", [7], token_ids={"7": 1})],
        "no log-probabilities": [event("vllm", [7], logprobs=None)],
        "too few log-probabilities": [event("vllm", [7, 8], logprobs={"token_logprobs": [-1.0]})],
        "a log-probability that is NaN": [
            event("vllm", [7], logprobs={"token_logprobs": [math.nan]})
        ],
        "a log-probability above 0": [event("vllm", [7], logprobs={"token_logprobs": [3.0]})],
        "a log-probability that is null": [event("vllm", [7], logprobs={"token_logprobs": [None]})],
        "more tokens than were asked for": [event("vllm", [7] * 6)],
        "more tokens, bit by bit": [event("vllm", [7])] * 6,
        "another prompt": [event("vllm", [7], prompt_token_ids=[9, 9])],
        "a wrong count": [event("vllm", [7]), {"choices": [], "usage": {"completion_tokens": 9}}],
        "an error event": [{"error": {"message": "out of memory", "code": 500}}],
        "an unknown end": [event("vllm", [7], finish_reason="abort")],
    },
    "sglang": {
        "an id outside the vocabulary": [event("sglang", [VOCAB])],
        "an id that is true": [event("sglang", [True])],
        "text without ids": [{"text": "Hello", "meta_info": {"completion_tokens": 1}}],
        "ids that are no list": [{"output_ids": "7", "meta_info": {}}],
        "a count below what came": [event("sglang", [7, 8]), event("sglang", [7])],
        "a count beyond what came": [event("sglang", [7], completion_tokens=4)],
        "a count that is no number": [event("sglang", [7], completion_tokens="1")],
        "another past": [event("sglang", [7]), event("sglang", [8, 9])],
        "no log-probabilities": [event("sglang", [7], output_token_logprobs=None)],
        "a log-probability that is NaN": [
            event("sglang", [7], output_token_logprobs=[[math.nan, 7, None]])
        ],
        "a log-probability of another id": [
            event("sglang", [7], output_token_logprobs=[[-1.0, 8, None]])
        ],
        "a log-probability without an id": [event("sglang", [7], output_token_logprobs=[[-1.0]])],
        "no likeliest ids": [event("sglang", [7], output_top_logprobs=[])],
        "more tokens than were asked for": [event("sglang", [7] * 6)],
        "an error event": [{"error": {"message": "out of memory", "code": 500}}],
        "an abort": [event("sglang", [7], finish_reason={"type": "abort", "message": "no room"})],
    },
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, lies in LIES.items() for name in lies]
)
def test_a_lie_is_one_sentence(kind: str, name: str) -> None:
    reader = WIRES[kind].reader(DRAW)
    *truths, lie = LIES[kind][name]
    for truth in truths:
        reader.read(truth)
    with pytest.raises(PeerError) as caught:
        reader.read(lie)
    sentence = str(caught.value)
    assert sentence.startswith(WIRES[kind].name)
    assert "\n" not in sentence
    assert len(sentence) < 400


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 400) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    *(
                        "choices",
                        "token_ids",
                        "logprobs",
                        "token_logprobs",
                        "top_logprobs",
                        "usage",
                    ),
                    *("output_ids", "meta_info", "completion_tokens", "output_token_logprobs"),
                    *("finish_reason", "error", "cached_tokens", "text", "prompt_token_ids"),
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@pytest.mark.parametrize("kind", WIRES)
@given(values=st.lists(ANYTHING.filter(lambda value: isinstance(value, dict)), max_size=4))
def test_whatever_comes_is_tokens_of_the_model_or_a_sentence(kind: str, values: list[Any]) -> None:
    reader = WIRES[kind].reader(DRAW)
    try:
        for value in values:
            chunk = reader.read(value)
            assert isinstance(chunk, Chunk)
            for token in chunk.tokens:
                assert 0 <= token.token_id < VOCAB
                assert token.logprob <= 0
    except PeerError:
        pass


@given(ids=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=5), data=st.data())
def test_both_kinds_of_events_of_sglang_are_the_same_tokens(
    ids: list[int], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(ids)), max_size=len(ids))) | {len(ids)})
    whole, parts = WIRES["sglang"].reader(DRAW), WIRES["sglang"].reader(DRAW)
    start = 0
    for cut in cuts:
        cumulative = whole.read(event("sglang", ids[:cut]))
        alone = parts.read(event("sglang", ids[start:cut], completion_tokens=cut))
        assert cumulative == alone
        assert [token.token_id for token in alone.tokens] == ids[start:cut]
        start = cut


# ---- a server in front --------------------------------------------------------------------------

Events = Callable[[int], AsyncIterator[bytes]]


def liar(events: Events, *, status: int = 200) -> FastAPI:
    """Return a vLLM that answers its n-th request for tokens with these events."""
    app = FastAPI()
    app.state.num_requests = 0

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"data": [{"id": "the model", "max_model_len": 500}]}

    @app.get("/version")
    async def version() -> dict[str, Any]:
        return {"version": "0.33.0"}

    @app.post("/v1/completions", response_model=None)
    async def complete(request: Request) -> Response:
        app.state.bodies = [*getattr(app.state, "bodies", []), await request.json()]
        app.state.num_requests += 1
        if status != 200:
            return JSONResponse({"error": {"message": "the prompt is odd"}}, status_code=status)
        return StreamingResponse(events(app.state.num_requests), media_type="text/event-stream")

    return app


def sse(ids: Sequence[int], **changes: Any) -> bytes:
    value = event("vllm", list(ids), **changes)
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def text_ids(text: str) -> list[int]:
    """Ids of plain letters in the byte tokenizer of the tiny checkpoint."""
    return byte_tokenizer("m2").encode(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("models"), "m2")
    for weights in folder.glob("*.safetensors*"):
        weights.unlink()
    return folder


QUICK = PeerConfig(
    connect_seconds=10,
    first_byte_seconds=10,
    idle_seconds=3,
    max_retries=1,
    first_retry_seconds=0.01,
)


async def dies(number: int) -> AsyncIterator[bytes]:
    yield sse(text_ids("Half an ans"))
    raise RuntimeError("dead")


async def ends(number: int) -> AsyncIterator[bytes]:
    yield sse(text_ids("Half an ans"))


async def hangs(number: int) -> AsyncIterator[bytes]:
    yield sse(text_ids("Half an ans"))
    await asyncio.sleep(20)


async def shouts(number: int) -> AsyncIterator[bytes]:
    yield sse(text_ids("Half an ans"))
    for _ in range(20):
        yield b"x" * 2**20


async def lies(number: int) -> AsyncIterator[bytes]:
    yield sse(text_ids("Half an ans"))
    yield sse([10**6])


async def speaks_html(number: int) -> AsyncIterator[bytes]:
    yield b"data: <html>\n\n"


async def recovers(number: int) -> AsyncIterator[bytes]:
    if number == 1:
        yield sse(text_ids("Half an ans"))
        raise RuntimeError("dead")
    yield sse(text_ids("wer"), finish_reason="length")


SENTENCES: dict[Events, tuple[int, str]] = {
    dies: (502, "broke off|ended in mid-answer|mid-answer"),
    ends: (502, "ended in mid-answer"),
    hangs: (504, "sent nothing more within"),
    shouts: (502, "more than"),
    lies: (502, "the token id 1000000"),
    speaks_html: (502, "JSON|json"),
}


async def connected(folder: Path, url: str) -> UpstreamModel:
    return await UpstreamModel.connect(str(folder), url, config=QUICK)


PLAIN = SamplingParams(temperature=0, thinking_budget=None, max_tokens=50)
HELLO = ChatRequest(text="Hello", params=PLAIN)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fault", SENTENCES, ids=lambda fault: fault.__name__)
def test_a_fault_is_one_sentence_and_what_came_is_kept(fault: Events, folder: Path) -> None:
    status, sentence = SENTENCES[fault]

    async def main(url: str) -> None:
        async with await connected(folder, url) as model, model.stream(HELLO) as stream:
            with pytest.raises(PeerError, match=sentence) as caught:
                async for _ in stream:
                    pass
            assert caught.value.status == status
            completion = await stream.finish()
            assert completion.finish_reason == "error"
            came = "" if fault is speaks_html else "Half an ans"
            assert completion.reply.content.startswith(came)
            assert model.stats.num_running == 0

    with running(liar(fault)) as url:
        asyncio.run(asyncio.wait_for(main(url), 20))


def test_an_answer_that_broke_off_goes_on_where_it_was(folder: Path) -> None:
    app = liar(recovers)

    async def main(url: str) -> None:
        async with await connected(folder, url) as model:
            completion = await complete(model, replace(HELLO, params=replace(PLAIN, max_tokens=14)))
        assert completion.reply.content == "Half an answer"
        assert completion.finish_reason == "length"
        first, second = app.state.bodies
        assert second["prompt"] == [*first["prompt"], *text_ids("Half an ans")]
        assert (first["max_tokens"], second["max_tokens"]) == (14, 3)

    with running(app) as url:
        asyncio.run(asyncio.wait_for(main(url), 20))


async def dies_twice(number: int) -> AsyncIterator[bytes]:
    """Break off behind two tokens, then behind the head and behind an event without tokens."""
    if number == 1:
        yield sse(text_ids("Ha"))
    if number == 3:
        yield sse([])
    if number == 4:
        yield sse(text_ids("lf."), finish_reason="length")
        return
    raise RuntimeError("dead")


def test_an_answer_that_breaks_off_again_before_a_token_still_goes_on(folder: Path) -> None:
    app = liar(dies_twice)

    async def main(url: str) -> None:
        patient = replace(QUICK, max_retries=3)
        async with await UpstreamModel.connect(str(folder), url, config=patient) as model:
            completion = await complete(model, replace(HELLO, params=replace(PLAIN, max_tokens=5)))
        assert completion.reply.content == "Half."
        assert app.state.num_requests == 4

    with running(app) as url:
        asyncio.run(asyncio.wait_for(main(url), 20))


CHOOSING = replace(
    PLAIN, choice=("ab", "xyz"), temperature=1.0, top_k=None, top_p=1.0, max_tokens=2
)


async def errs(number: int) -> AsyncIterator[bytes]:
    """Draw what is not allowed, break off where it is drawn again, and give in then."""
    if number == 2:
        yield sse([])
        raise RuntimeError("dead")
    yield sse(text_ids({1: "Q", 3: "a", 4: "b"}[number]))


def test_a_draw_under_a_grammar_that_broke_off_is_made_again(folder: Path) -> None:
    app = liar(errs)

    async def main(url: str) -> None:
        async with await connected(folder, url) as model:
            completion = await complete(model, replace(HELLO, params=CHOOSING))
        assert completion.reply.content == "ab"
        biases = [body.get("logit_bias") for body in app.state.bodies]
        first, second = (text_ids(text)[0] for text in "ax")
        wanted = {str(first): 100.0, str(second): 100.0}
        assert biases == [None, wanted, wanted, None]

    with running(app) as url:
        asyncio.run(asyncio.wait_for(main(url), 20))


def test_other_work_goes_on_while_a_grammar_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Answer.ask

    def slowly(self: Answer, draft_ids: Sequence[int]) -> list[Choice]:
        time.sleep(0.3)
        return ask(self, draft_ids)

    monkeypatch.setattr(Answer, "ask", slowly)
    num_ticks = 0

    async def tick() -> None:
        nonlocal num_ticks
        while True:
            await asyncio.sleep(0.01)
            num_ticks += 1

    async def main(url: str) -> None:
        async with await connected(folder, url) as model:
            ticking = asyncio.ensure_future(tick())
            request = replace(HELLO, params=replace(CHOOSING, top_k=5))
            assert (await complete(model, request)).reply.content == "ab"
            assert num_ticks > 20  # of 60
            async with model.stream(request) as stream:
                await asyncio.sleep(0.05)  # it is asked now
                await stream.close()
                assert (await stream.finish()).finish_reason == "abort"
            ticking.cancel()

    with running(liar(obeys)) as url:
        asyncio.run(asyncio.wait_for(main(url), 20))


async def obeys(number: int) -> AsyncIterator[bytes]:
    yield sse(text_ids("ab"[(number - 1) % 2]))


@pytest.mark.parametrize("filter", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}], ids=str)
def test_a_filter_comes_after_a_mask_of_few_ids_as_in_the_engine(
    filter: dict[str, Any], folder: Path
) -> None:
    app = liar(obeys)

    async def main(url: str) -> None:
        async with await connected(folder, url) as model:
            request = replace(HELLO, params=replace(CHOOSING, **filter))
            assert (await complete(model, request)).reply.content == "ab"
        # The first token is one of two, the second is settled: whoever draws it draws the same.
        assert ["logit_bias" in body for body in app.state.bodies] == [True, False]

    with running(app) as url:
        asyncio.run(asyncio.wait_for(main(url), 20))


@pytest.mark.parametrize(("status", "ours"), [(400, 400), (404, 502), (401, 502), (503, 503)])
def test_a_refusal_is_passed_on_with_its_sentence(status: int, ours: int, folder: Path) -> None:
    async def main(url: str) -> None:
        async with await connected(folder, url) as model:
            with pytest.raises(PeerError, match="the prompt is odd") as caught:
                await complete(model, HELLO)
            assert caught.value.status == ours

    with running(liar(ends, status=status)) as url:
        asyncio.run(asyncio.wait_for(main(url), 20))
